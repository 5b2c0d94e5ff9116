//! Dials the true destination.

use std::{io, time::Duration};

use interceptor_core::origin::Destination;

use crate::{proxy::Network, socket::Socket};

/// Connects to `destination` from `network`, for `patience` at the most.
///
/// The daemon's own cgroup carries no redirect, so this reaches the real address. A UNIX socket is the daemon's to
/// connect to.
///
/// # Errors
/// The operating system's, or a time-out.
pub(crate) async fn dial(
    network: &Network,
    destination: &Destination,
    patience: Duration,
) -> io::Result<Socket> {
    let connecting = async {
        match destination {
            Destination::Ip(address) => network.connect(*address).await.map(Socket::Tcp),
            Destination::Unix(_) => network.engine().await.map(Socket::Unix),
        }
    };
    let connected = tokio::time::timeout(patience, connecting).await;
    let socket = connected.map_err(|_| {
        let text = format!(
            "no answer from {destination} within {} s",
            patience.as_secs()
        );
        io::Error::new(io::ErrorKind::TimedOut, text)
    })??;
    socket.spare_no_packets();
    if destination.is_local() {
        spare(&socket);
    }
    Ok(socket)
}

/// Whether this host's resolver knows `address` as one of `name`'s.
pub async fn is_address_of(name: &str, address: std::net::SocketAddr) -> bool {
    const PATIENCE: Duration = Duration::from_secs(5);
    let ip = address.ip().to_canonical();
    if let Ok(literal) = name.parse::<std::net::IpAddr>() {
        return literal.to_canonical() == ip;
    }
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, address.port()))).await {
        Ok(Ok(mut known)) => known.any(|known| known.ip().to_canonical() == ip),
        _ => false,
    }
}

/// Has a socket whose bytes never leave this host go without pacing and its timers.
///
/// There is nothing on the way that could be congested, and BBR, where it is the system's default, sets
/// a timer for every segment. Where the kernel lacks Reno its default has to do.
pub fn spare(socket: &Socket) {
    let Socket::Tcp(stream) = socket else {
        return;
    };
    let _ = nix::sys::socket::setsockopt(
        stream,
        nix::sys::socket::sockopt::TcpCongestion,
        &std::ffi::OsString::from("reno"),
    );
}
