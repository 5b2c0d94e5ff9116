//! The last guard: what no connect or send was decided for neither leaves nor arrives.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::{Fixture, output, said, spawn};
use crate::kernel::Peer;
use interceptor_core::policy::Meeting;

fn events(fixture: &Fixture) -> Vec<(&'static str, Option<String>)> {
    let mut events = fixture.kernel().take_events().unwrap();
    std::iter::from_fn(|| events.next_refusal())
        .map(|event| {
            let destination = event.destination.map(|destination| destination.to_string());
            (event.name, destination)
        })
        .collect()
}

#[test]
fn udp_other_than_dns_and_raw_sockets_are_refused_and_reported() {
    let fixture = Fixture::new("udp");
    let cgroup = fixture.tag("udp");
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let attempts = format!(
        "
import socket
def attempt(name, what):
    try:
        what()
        print(name, 'passed')
    except OSError as e:
        print(name, 'refused', e.errno)
def udp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_DGRAM)
def connected(family, address):
    s = udp(family)
    s.connect(address)
    s.send(b'x')
attempt('sendto', lambda: udp().sendto(b'x', ('127.0.0.1', {port})))
attempt('connected', lambda: connected(socket.AF_INET, ('127.0.0.1', {port})))
attempt('sendto6', lambda: udp(socket.AF_INET6).sendto(b'x', ('::1', 9)))
attempt('connected6', lambda: connected(socket.AF_INET6, ('::ffff:127.0.0.1', {port})))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt('mptcp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
attempt('multicast', lambda: udp().setsockopt(0, 35, socket.inet_aton('224.0.0.251') + bytes(4)))
attempt('repair', lambda: socket.socket().setsockopt(6, 19, 1))
attempt('filter', lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 51, bytes(16)))
attempt('filter by number', lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 52, 1))
attempt('large', lambda: socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, bytes(8000)))
"
    );
    let text = said(&cgroup, &attempts);
    let expected = "sendto refused 1\nconnected refused 1\nsendto6 refused 1\nconnected6 refused 1\n\
                    raw refused 1\nmptcp refused 1\nmulticast refused 1\nrepair refused 1\n\
                    filter refused 1\nfilter by number refused 1\nlarge passed\n";
    assert_eq!(text, expected);
    server.set_nonblocking(true).unwrap();
    assert!(server.recv(&mut [0]).is_err(), "nothing arrived");
    let own = format!("127.0.0.1:{port}");
    let seen = events(&fixture);
    let expected = [
        ("udp_refused", Some(own.clone())),
        ("udp_refused", Some(own.clone())),
        ("udp_refused", Some("[::1]:9".to_owned())),
        ("udp_refused", Some(own)),
        ("socket_refused", None),
        ("socket_refused", None),
        ("option_refused", None),
        ("option_refused", None),
        ("option_refused", None),
        ("option_refused", None),
    ];
    assert_eq!(seen, expected);
}

/// Programs find out their own address by connecting a datagram socket, and sort those of a server by it.
#[test]
fn connecting_a_datagram_socket_sends_nothing_and_is_no_ones_business() {
    let fixture = Fixture::new("own");
    let cgroup = fixture.tag("own");
    let text = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('127.0.0.9', 443))
print(*s.getpeername(), s.getsockname()[0])
";
    assert_eq!(said(&cgroup, text), "127.0.0.9 443 127.0.0.1\n");
    assert_eq!(events(&fixture), []);
}

#[test]
fn processes_of_one_agent_meet_directly() {
    let fixture = Fixture::new("same");
    let cgroup = fixture.tag("same");
    for (family, address) in [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")] {
        let text = format!(
            "
import os, socket
server = socket.create_server(('{address}', 0), family=socket.{family})
port = server.getsockname()[1]
if os.fork() == 0:
    s = socket.create_connection(('{address}', port), 5)
    s.sendall(b'direct')
    s.close()
    os._exit(0)
connection, who = server.accept()
print(connection.recv(9).decode())
a, b = (socket.socket(socket.{family}, socket.SOCK_DGRAM) for _ in range(2))
a.bind(('{address}', 0))
a.settimeout(5)
b.settimeout(5)
b.sendto(b'ping', a.getsockname())
text, who = a.recvfrom(9)
a.sendto(b'pong', who)
print(text.decode(), b.recv(9).decode())
"
        );
        assert_eq!(said(&cgroup, &text), "direct\nping pong\n", "{address}");
    }
    let counters = fixture.kernel().counters();
    assert_eq!((counters.direct, counters.redirected), (2, 0));
    let seen = events(&fixture);
    assert!(
        seen.iter().all(|(name, _)| *name == "connect_direct"),
        "{seen:?}"
    );
}

/// A Python text that listens, says where, and serves one connection and one datagram.
const SERVE: &str = "
import socket, sys
server = socket.create_server(('127.0.0.1', 0))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('127.0.0.1', 0))
open('{path}', 'w').write(f'{server.getsockname()[1]} {u.getsockname()[1]}')
server.settimeout(3)
u.settimeout(1)
try:
    connection, who = server.accept()
    print(connection.recv(9).decode())
    connection.sendall(b'hello')
except TimeoutError:
    print('nobody connected')
try:
    print(u.recv(9).decode())
except TimeoutError:
    print('nothing came')
";

fn ports_of(path: &std::path::Path) -> (u16, u16) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut ports = text.split(' ').map(str::parse);
        if let (Some(Ok(tcp)), Some(Ok(udp))) = (ports.next(), ports.next()) {
            return (tcp, udp);
        }
        assert!(Instant::now() < until, "no server");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nobody_else_connects_or_sends_to_an_agent() {
    let fixture = Fixture::new("inbound");
    let cgroup = fixture.tag("inbound");
    let number = fixture.kernel().tags()[0].number;
    let folder = tempfile::tempdir().unwrap();
    for allowed in [false, true] {
        let ports = vec![1..=u16::MAX];
        let peer = Peer {
            agent: number,
            meeting: Meeting::Inbound,
            network: ([127, 0, 0, 0].into(), 8),
            ports,
        };
        let peers = if allowed { vec![peer] } else { Vec::new() };
        fixture.kernel().set_peers(&peers).unwrap();
        let path = folder.path().join(allowed.to_string());
        let child = spawn(&cgroup, &SERVE.replace("{path}", path.to_str().unwrap()));
        let (tcp, udp) = ports_of(&path);
        let address = (Ipv4Addr::LOCALHOST, tcp).into();
        // Outside of the daemon's cgroup: what it dials itself is decided already.
        let outside = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!(
                "echo $$ > {}/cgroup.procs; exec python3 -c \"
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b'datagram', ('127.0.0.1', {udp}))
try:
    s = socket.create_connection(('127.0.0.1', {tcp}), 2)
    s.sendall(b'stream')
    print(s.recv(9).decode())
except TimeoutError:
    print('no answer')
\"",
                fixture.kernel().cgroup2.display()
            ))
            .output()
            .unwrap();
        let outside = String::from_utf8_lossy(&outside.stdout).into_owned();
        let inside = String::from_utf8_lossy(&output(child).stdout).into_owned();
        if allowed {
            assert_eq!((&*outside, &*inside), ("hello\n", "stream\ndatagram\n"));
        } else {
            assert_eq!(
                (&*outside, &*inside),
                ("no answer\n", "nobody connected\nnothing came\n")
            );
        }
        let _: std::net::SocketAddr = address;
    }
    let counters = fixture.kernel().counters();
    assert!(counters.refused_inbound >= 2);
    assert_eq!(counters.inbound_allowed, 1);
}

#[test]
fn what_the_daemon_dials_reaches_an_agent() {
    let fixture = Fixture::new("dialled");
    let cgroup = fixture.tag("dialled");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ports");
    let child = spawn(&cgroup, &SERVE.replace("{path}", path.to_str().unwrap()));
    let (tcp, _) = ports_of(&path);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).unwrap();
    stream.write_all(b"decided").unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    assert!(String::from_utf8_lossy(&output(child).stdout).starts_with("decided\n"));
}

#[test]
fn datagrams_go_where_a_rule_lets_them_and_nowhere_else() {
    let fixture = Fixture::new("rule");
    let cgroup = fixture.tag("rule");
    let number = fixture.kernel().tags()[0].number;
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let port = server.local_addr().unwrap().port();
    let peer = |network, ports| Peer {
        agent: number,
        meeting: Meeting::Datagrams,
        network,
        ports,
    };
    let [wide, narrow] = [
        peer(([127, 0, 0, 0].into(), 8), vec![9..=9, port..=port]),
        peer(([127, 0, 0, 2].into(), 32), vec![]),
    ];
    fixture.kernel().set_peers(&[wide, narrow]).unwrap();
    let child = spawn(
        &cgroup,
        &format!(
            "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
for address in (('127.0.0.1', {port}), ('127.0.0.1', 10), ('127.0.0.2', {port}), ('192.0.2.1', {port})):
    try:
        s.sendto(b'ping', address)
        print('passed')
    except PermissionError:
        print('refused')
print(s.recv(9).decode())
"
        ),
    );
    let mut bytes = [0; 4];
    let (_, from) = server.recv_from(&mut bytes).unwrap();
    server.send_to(b"pong", from).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output(child).stdout),
        "passed\nrefused\nrefused\nrefused\npong\n"
    );
    assert_eq!(
        events(&fixture)[0],
        ("datagrams_allowed", Some(format!("127.0.0.1:{port}")))
    );
    // Taken away, it is refused again.
    fixture.kernel().set_peers(&[]).unwrap();
    let again = format!(
        "import socket\ntry:\n  socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))\nexcept PermissionError:\n  print('refused')"
    );
    assert_eq!(said(&cgroup, &again), "refused\n");
}
