//! DNS goes to the forwarder and comes back as from the server that was asked.

use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use super::{Fixture, output, said, spawn};
use crate::{
    kernel::{Sender, Unrouted},
    sync::lock,
};

/// A socket as the forwarder has: it learns where datagrams arrive, and answers from there.
pub(super) fn forwarder(address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = crate::dns::listen(address).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    socket
}

/// A received datagram: who sent it, where it arrived, what it says.
fn receive(socket: &UdpSocket) -> (SocketAddr, IpAddr, Vec<u8>) {
    let mut buffer = [0; 512];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .unwrap();
    let from = message.address.unwrap();
    let from = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::from(std::net::SocketAddrV4::from(*v4)),
        (_, Some(v6)) => SocketAddr::from(std::net::SocketAddrV6::from(*v6)),
        _ => panic!("no address"),
    };
    let token = message
        .cmsgs()
        .unwrap()
        .find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
            _ => None,
        })
        .unwrap();
    let length = message.bytes;
    (from, token, buffer[..length].to_vec())
}

fn answer(socket: &UdpSocket, to: SocketAddr, token: IpAddr, text: &[u8]) {
    let slices = [std::io::IoSlice::new(text)];
    let to = SockaddrStorage::from(to);
    let v4;
    let v6;
    let control = match token {
        IpAddr::V4(token) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(token.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(token) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: token.octets(),
                },
                ipi6_ifindex: 0,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    sendmsg(
        socket.as_raw_fd(),
        &slices,
        &[control],
        MsgFlags::empty(),
        Some(&to),
    )
    .unwrap();
}

#[test]
fn queries_of_every_kind_arrive_with_their_server_and_are_answered_as_from_it() {
    let fixture = Fixture::new("dns");
    let cgroup = fixture.tag("dns");
    for (family, address, v6, server) in [
        ("AF_INET", "192.0.2.53", false, "192.0.2.53:53"),
        ("AF_INET", "127.0.0.53", false, "127.0.0.53:53"),
        ("AF_INET6", "2001:db8::53", true, "[2001:db8::53]:53"),
        ("AF_INET6", "::ffff:192.0.2.53", false, "192.0.2.53:53"),
    ] {
        for connected in [true, false] {
            let send = if connected {
                format!(
                    "s.connect(('{address}', 53))\nprint(*s.getpeername()[:2])\ns.send(b'asked')"
                )
            } else {
                format!("print('{address} 53')\ns.sendto(b'asked', ('{address}', 53))")
            };
            let text = format!(
                "import socket\ns = socket.socket(socket.{family}, socket.SOCK_DGRAM)\ns.settimeout(5)\n\
                 {send}\ntext, who = s.recvfrom(99)\nprint(text.decode(), *who[:2])"
            );
            let child = spawn(&cgroup, &text);
            let pid = child.id();
            let socket = &fixture.dns[usize::from(v6)];
            let (from, token, asked) = receive(socket);
            assert_eq!(asked, b"asked");
            let kernel = fixture.kernel();
            let found = kernel.asked(token).expect("a token's server is known");
            assert_eq!(found.server.to_string(), server);
            assert_eq!(&*kernel.agent(found.agent).unwrap().name, "dns");
            assert_eq!(
                kernel.sender(kernel.own_netns(), found.agent, from),
                Some(Sender { pid, uid: 0 })
            );
            answer(socket, from, token, b"told");
            let output = output(child);
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                format!("{address} 53\ntold {address} 53\n"),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    // Two for each of three servers: a token is made once.
    assert_eq!(fixture.kernel().counters().dns_servers, 3);
}

#[test]
fn one_socket_that_asks_many_servers_is_told_apart() {
    const SERVERS: u8 = 20;
    let fixture = Fixture::new("many");
    let cgroup = fixture.tag("many");
    let child = spawn(
        &cgroup,
        &format!(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(5)\n\
             for i in range(1, {SERVERS} + 1): s.sendto(bytes([i]), (f'192.0.2.{{i}}', 53))\n\
             print(sorted((who[0], text[0]) for text, who in (s.recvfrom(9) for _ in range({SERVERS}))) == \
             sorted((f'192.0.2.{{i}}', i) for i in range(1, {SERVERS} + 1)))"
        ),
    );
    for _ in 0..SERVERS {
        let (from, token, asked) = receive(&fixture.dns[0]);
        let found = fixture.kernel().asked(token).unwrap();
        assert_eq!(found.server.to_string(), format!("192.0.2.{}:53", asked[0]));
        answer(&fixture.dns[0], from, token, &asked);
    }
    assert_eq!(String::from_utf8_lossy(&output(child).stdout), "True\n");
}

#[test]
fn an_agent_has_only_so_many_servers_and_others_have_theirs() {
    let fixture = Fixture::new("servers");
    let cgroup = fixture.tag("greedy");
    let other = fixture.tag("other");
    let attempts = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
passed = 0
for i in range(1000):
    try:
        s.sendto(b'x', (f'192.0.{i >> 8}.{i & 255}', 53))
        passed += 1
    except PermissionError:
        pass
print(passed)
";
    assert_eq!(said(&cgroup, attempts), "256\n");
    assert_eq!(fixture.kernel().counters().refused_servers, 744);
    let once = attempts.replace("1000", "1");
    assert_eq!(said(&other, &once), "1\n");
    // What an agent asked that is gone is nobody's.
    fixture.kernel().untag("greedy").unwrap();
    fixture.kernel().sweep_tokens();
    let left = lock(&fixture.kernel().tokens).tokens.keys().count();
    assert_eq!(left, 1);
}

#[test]
fn without_a_living_forwarder_queries_fail_at_once() {
    let fixture = Fixture::new("mute");
    let cgroup = fixture.tag("mute");
    fixture.kernel().disarm(fixture.kernel().own_netns());
    let attempt = "
import socket
for family, address in ((socket.AF_INET, '192.0.2.53'), (socket.AF_INET6, '2001:db8::53')):
    s = socket.socket(family, socket.SOCK_DGRAM)
    for what in (lambda: s.sendto(b'x', (address, 53)), lambda: s.connect((address, 53))):
        try:
            what()
            print('passed')
        except PermissionError:
            print('refused')
";
    assert_eq!(said(&cgroup, attempt), "refused\n".repeat(4));
}

#[test]
fn tokens_are_nobody_elses_to_send_to_and_their_port_nobody_elses_to_take() {
    let mut fixture = Fixture::new("tokens");
    let cgroup = fixture.tag("tokens");
    let port = fixture.dns[0].local_addr().unwrap().port();
    let attempt = format!(
        "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in ({port}, 53):
    try:
        s.sendto(b'x', ('127.64.0.1', port))
        print('passed')
    except PermissionError:
        print('refused')
"
    );
    // To the port of the forwarder it doesn't come by itself; port 53 of any address is a server's.
    assert_eq!(said(&cgroup, &attempt), "passed\npassed\n");
    let arrived = receive(&fixture.dns[0]).1;
    let asked = fixture.kernel().asked(arrived);
    assert!(asked.is_none() || asked.unwrap().server.port() == 53);

    fixture.dns[0] = forwarder("0.0.0.0:0");
    let bind = format!(
        "
import socket
for family, address in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET, '127.64.0.1'), (socket.AF_INET6, '::')):
    try:
        socket.socket(family, socket.SOCK_DGRAM).bind((address, {port}))
        print('bound')
    except PermissionError:
        print('refused')
"
    );
    assert_eq!(said(&cgroup, &bind), "refused\n".repeat(3));
    fixture.arm(Unrouted::NOTHING);
    let _ = setsockopt(&fixture.dns[0], sockopt::ReuseAddr, &true);
}
