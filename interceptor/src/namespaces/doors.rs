//! The sockets at which agents of one network namespace are met.

use std::{
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use tokio::net::TcpListener;

use crate::{
    config::Listen,
    dns,
    kernel::{Kernel, Ports},
};

/// What has just been opened, to be served.
#[derive(Debug)]
pub(crate) enum Door {
    /// Redirected connections come in here.
    Proxy(TcpListener),
    /// What is asked over UDP comes in here.
    Dns(std::net::UdpSocket),
}

/// Which of a namespace's doors are open: on IPv4 and on IPv6.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Doors {
    ports: Ports,
}

/// Why not all of them are open.
#[derive(Debug, thiserror::Error)]
#[error("can't listen {what}: {error}")]
pub(crate) struct Shut {
    /// For what, on which address.
    what: &'static str,
    error: io::Error,
}

impl Doors {
    /// The ports that are open.
    #[must_use]
    pub(crate) const fn ports(&self) -> Ports {
        self.ports
    }

    /// Opens in the calling thread's namespace what isn't open yet, and gives it to `serve`.
    ///
    /// # Errors
    /// What can't be opened; the rest is.
    pub(crate) fn open(
        &mut self,
        kernel: &Kernel,
        listen: Listen,
        mut serve: impl FnMut(Door),
    ) -> Vec<Shut> {
        let mut shut = Vec::new();
        let mut take = |port: &mut u16, what, door: io::Result<(u16, Door)>| match door {
            Ok((number, door)) => {
                *port = number;
                serve(door);
            }
            Err(error) => shut.push(Shut { what, error }),
        };
        let [proxy_v4, proxy_v6] = &mut self.ports.proxy;
        if *proxy_v4 == 0 {
            let door = proxy(Ipv4Addr::LOCALHOST.into(), listen.ipv4_port);
            take(proxy_v4, "on 127.0.0.1", door);
        }
        if *proxy_v6 == 0 {
            let door = proxy(Ipv6Addr::LOCALHOST.into(), listen.ipv6_port);
            take(proxy_v6, "on ::1", door);
        }
        let [dns_v4, dns_v6] = &mut self.ports.dns;
        if *dns_v4 == 0 {
            let door = forwarder(Ipv4Addr::UNSPECIFIED.into());
            take(dns_v4, "for DNS over IPv4", door);
        }
        if *dns_v6 == 0 {
            let door = kernel
                .route_tokens()
                .and_then(|()| forwarder(Ipv6Addr::UNSPECIFIED.into()));
            take(dns_v6, "for DNS over IPv6", door);
        }
        shut
    }
}

fn proxy(address: IpAddr, port: u16) -> io::Result<(u16, Door)> {
    let listener = listen_at(SocketAddr::new(address, port), bind)?;
    Ok((listener.local_addr()?.port(), Door::Proxy(listener)))
}

fn forwarder(address: IpAddr) -> io::Result<(u16, Door)> {
    let socket = listen_at(SocketAddr::new(address, 0), dns::listen)?;
    Ok((socket.local_addr()?.port(), Door::Dns(socket)))
}

/// What `bind` makes of `address`; for port 0 of one that the kernel gives to nobody who doesn't ask for it.
///
/// A `listen()` without a `bind()` gets a port of the range for outgoing connections, and no hook sees
/// it. Were ours of that range, who is quick could take it over when the daemon dies, and would be sent
/// other agents' connections for as long as it counts as alive.
fn listen_at<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 64;
    let unasked = unasked_ports(&fs::read_to_string(LOCAL_PORT_RANGE).unwrap_or_default());
    if address.port() == 0 && !unasked.is_empty() {
        for _ in 0..TRIES {
            let offset = crate::accept::random_id() % unasked.len() as u64;
            let port = unasked.start + u16::try_from(offset).unwrap_or(0);
            match bind(SocketAddr::new(address.ip(), port)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
    }
    bind(address)
}

/// The ports that outgoing connections get, as `first last`, in the calling thread's namespace.
const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports outside `range`, as the kernel writes it: above it, where hardly any service has its own, or else
/// below it.
fn unasked_ports(range: &str) -> Range<u16> {
    /// As many as two listeners surely find a free one among.
    const ENOUGH: usize = 256;
    /// Below stand most services.
    const FIRST: u16 = 20_000;
    let mut ends = range.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return 0..0;
    };
    let above = u16::saturating_add(last, 1)..u16::MAX;
    if above.len() >= ENOUGH {
        above
    } else {
        FIRST..first
    }
}

/// A listener that can be opened again at once after a restart.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    // Agents are on this host: what a host chooses for its network (BBR, say, which paces by timers) only
    // costs here. Connections have it from their listener; those to servers keep the host's choice.
    let _ = setsockopt(&socket, TcpCongestion, &OsString::from("reno"));
    socket.bind(address)?;
    socket.listen(4_096)
}

#[cfg(test)]
mod tests {
    use super::unasked_ports;

    #[test]
    fn the_listener_takes_no_port_that_is_given_to_who_asks_for_none() {
        let table = [
            ("32768\t60999\n", 61_000..65_535),
            ("1024 65000", 65_001..65_535),
            ("32768 65535", 20_000..32_768),
            ("1024 65535", 0..0),
            ("", 0..0),
        ];
        for (range, expected) in table {
            let ports = unasked_ports(range);
            assert!(
                ports == expected || (ports.is_empty() && expected.is_empty()),
                "{range}"
            );
        }
    }
}
