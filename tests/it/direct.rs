//! What isn't redirected: datagrams that rules let go, connections within an agent, and who may come in.

use std::{
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::Duration,
};

use interceptor_tests::{daemon::Daemon, dns::Dns, journal::Line, netns::Outside, paths, run};

use crate::{redirect::Cgroup, support::ALLOW_ALL};

/// A program of the outside world that says when it is ready.
struct Server(Child);

impl Server {
    fn python(outside: &Outside, text: &str) -> Self {
        let mut child = outside
            .command("python3")
            .args(["-c", text])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers datagrams on port 123 and 443, both families.
const ECHO: &str = "
import select, socket
sockets = []
for port in (123, 443):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(('::', port))
    sockets.append(s)
print('ready', flush=True)
while True:
    for s in select.select(sockets, [], [])[0]:
        text, who = s.recvfrom(9000)
        s.sendto(b'echo ' + text, who)
";

/// Sends to an address and port, connected or not, and says what comes back.
const SEND: &str = "
import errno, socket, sys
for address, port in zip(sys.argv[1::2], sys.argv[2::2]):
    for connected in (True, False):
        family = socket.AF_INET6 if ':' in address else socket.AF_INET
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.settimeout(5)
        try:
            if connected:
                s.connect((address, int(port)))
                s.send(b'ping')
            else:
                s.sendto(b'ping', (address, int(port)))
            print(s.recv(99).decode())
        except OSError as e:
            print(errno.errorcode.get(e.errno, e))
";

fn send(mut command: Command, to: &[&str]) -> String {
    run::output(command.args(["-c", SEND]).args(to)).unwrap()
}

fn events<'a>(lines: impl Iterator<Item = &'a Line>, name: &str) -> Vec<&'a Line> {
    lines
        .filter(|line| line.at("/name").and_then(|found| found.as_str()) == Some(name))
        .collect()
}

#[test]
fn datagrams_go_where_a_rule_lets_them_and_are_on_record() {
    let outside = Outside::new().unwrap();
    let _server = Server::python(&outside, ECHO);
    let [v4, v6] = [outside.address_v4(), outside.address_v6()];
    let policy = format!(
        "
default: {{action: allow}}
rules:
  - {{id: time, match: {{agent: clock, destination: {{address: [\"{v4}/31\", \"{v6}\"], port: 123}}}}, udp: allow}}
"
    );
    let daemon = Daemon::start(&policy).unwrap();
    let [clock, other] = ["clock", "other"].map(|agent| daemon.run_as(agent, "python3"));
    assert_eq!(
        send(clock, &[&v4, "123", &v6, "123", &v4, "443"]),
        "echo ping\necho ping\necho ping\necho ping\nEPERM\nEPERM\n"
    );
    assert_eq!(send(other, &[&v4, "123"]), "EPERM\nEPERM\n");
    let journal = run::wait_for("the events", Duration::from_secs(5), || {
        let journal = daemon.journal()?;
        Ok((events(journal.of_kind("event"), "udp_refused").len() >= 4).then_some(journal))
    })
    .unwrap();
    let allowed = events(journal.of_kind("event"), "datagrams_allowed");
    assert_eq!(allowed.len(), 4, "{allowed:#?}");
    assert!(
        allowed
            .iter()
            .all(|line| line.mentions("time") && line.agent == "clock")
    );
    // Taken out of the policy it is refused, and brought back it passes, of an agent that runs already.
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "clock"])
        .unwrap();
    let ask = || send(cgroup.command("python3"), &[&v4, "123"]);
    assert_eq!(ask(), "echo ping\necho ping\n");
    for (policy, expected) in [
        (ALLOW_ALL, "EPERM\nEPERM\n"),
        (&policy, "echo ping\necho ping\n"),
    ] {
        daemon.write_policy(policy).unwrap();
        run::wait_for("the policy", Duration::from_secs(5), || {
            Ok((ask() == expected).then_some(()))
        })
        .unwrap();
    }
}

#[test]
fn a_rule_by_name_lets_datagrams_go_to_what_the_name_was_resolved_to() {
    let outside = Outside::new().unwrap();
    let dns = Dns::start(&outside).unwrap();
    let _server = Server::python(&outside, ECHO);
    let v4 = outside.address_v4();
    let policy = "
default: {action: allow}
rules:
  - {id: by-name, match: {destination: {name: \"*.test\", port: 443}}, udp: allow}
";
    let daemon = Daemon::configured(policy, |_| format!("dns: {{servers: [\"{v4}\"]}}\n")).unwrap();
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "named"])
        .unwrap();
    let ask = || send(cgroup.command("python3"), &[&v4, "443"]);
    assert_eq!(ask(), "EPERM\nEPERM\n");
    let mut lookup = cgroup.command("dig");
    lookup.args(["+short", &format!("@{v4}"), "web.test"]);
    assert_eq!(run::output(&mut lookup).unwrap().trim(), v4);
    // At once: it is there before the answer is.
    assert_eq!(ask(), "echo ping\necho ping\n");
    drop(dns);
}

#[test]
fn quic_is_refused_at_once_and_tcp_goes_on() {
    let outside = Outside::new().unwrap();
    let _server = Server::python(&outside, ECHO);
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let start = std::time::Instant::now();
    let said = send(
        daemon.run_as("quic", "python3"),
        &[&outside.address_v4(), "443"],
    );
    assert_eq!(said, "EPERM\nEPERM\n");
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn processes_of_an_agent_meet_directly_and_it_is_on_record() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let text = "
import socket, subprocess, sys
server = socket.create_server(('127.0.0.1', 0))
port = server.getsockname()[1]
client = subprocess.Popen([sys.executable, '-c', f'''
import socket
s = socket.create_connection((\"127.0.0.1\", {port}), 5)
s.sendall(b\"within\")
print(s.recv(9).decode(), s.getpeername()[1] == {port})
'''])
connection, _ = server.accept()
print(connection.recv(9).decode(), flush=True)
connection.sendall(b'the agent')
client.wait()
";
    let said = run::output(daemon.run_as("one", "python3").args(["-c", text])).unwrap();
    assert_eq!(said, "within\nthe agent True\n");
    let journal = run::wait_for("the event", Duration::from_secs(5), || {
        let journal = daemon.journal()?;
        Ok(journal.mentions("connect_direct").then_some(journal))
    })
    .unwrap();
    assert_eq!(journal.of_kind("session_start").count(), 0);
}

/// Another agent's service, and one that nobody has tagged, are other people's.
#[test]
fn nobody_else_reaches_an_agent_but_by_rule_and_what_was_decided() {
    const POLICY: &str = "
default: {action: allow}
rules:
  - {id: the-browser, match: {agent: server, source: {address: 127.0.0.0/8}, destination: {port: 8000-8999}}, inbound: allow}
";
    const SERVE: &str = "
import socket, sys
server = socket.create_server(('0.0.0.0', int(sys.argv[1])))
print('ready', flush=True)
while True:
    connection, _ = server.accept()
    connection.recv(99)
    connection.sendall(b'served')
    connection.close()
";
    const ASK: &str = "
import socket, sys
try:
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    # No protocol that is known.
    connection.sendall(b'\\xff' * 16)
    print(connection.recv(9).decode())
except OSError as e:
    print(type(e).__name__)
";
    let outside = Outside::new().unwrap();
    let daemon = Daemon::start(POLICY).unwrap();
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "server"])
        .unwrap();
    let free = || {
        let range = 8_000..9_000_u16;
        range
            .into_iter()
            .find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
            .unwrap()
    };
    let start = |port: u16| {
        let mut child = cgroup
            .command("python3")
            .args(["-c", SERVE, &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Server(child)
    };
    let open = free();
    let closed = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (_one, _two) = (start(open), start(closed));
    let ask = |mut command: Command, address: &str, port: u16| {
        run::output(command.args(["-c", ASK, address, &port.to_string()])).unwrap()
    };
    let host = outside.address_v4();
    // The host's side of the pair.
    let host_own = host
        .rsplit_once('.')
        .map(|(net, last)| format!("{net}.{}", last.parse::<u8>().unwrap() - 1))
        .unwrap();
    // Nobody's process on this host: by rule, and without.
    assert_eq!(ask(Command::new("python3"), "127.0.0.1", open), "served\n");
    assert_eq!(
        ask(Command::new("python3"), "127.0.0.1", closed),
        "TimeoutError\n"
    );
    // From the network: the rule is for loopback.
    assert_eq!(
        ask(outside.command("python3"), &host_own, open),
        "TimeoutError\n"
    );
    // Another agent's connect is decided as its own operation.
    assert_eq!(
        ask(daemon.run_as("client", "python3"), "127.0.0.1", closed),
        "served\n"
    );
    // The agent itself.
    assert_eq!(
        ask(cgroup.command("python3"), "127.0.0.1", closed),
        "served\n"
    );
    let journal = run::wait_for("the events", Duration::from_secs(5), || {
        let journal = daemon.journal()?;
        let found = ["inbound_allowed", "inbound_refused", "connect_direct"];
        Ok(found
            .iter()
            .all(|name| journal.mentions(name))
            .then_some(journal))
    })
    .unwrap();
    let allowed = events(journal.of_kind("event"), "inbound_allowed");
    assert!(allowed[0].mentions("the-browser"), "{allowed:#?}");
    assert_eq!(journal.of_kind("session_start").count(), 1);
}

#[test]
fn getaddrinfo_sorts_as_it_would_without_us() {
    let outside = Outside::new().unwrap();
    let dns = Dns::start(&outside).unwrap();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let text = "import socket; print([found[4][0] for found in socket.getaddrinfo('web.test', 80, type=socket.SOCK_STREAM)])";
    let ask = |mut command: Command| {
        command.args(["-c", text]);
        run::output(&mut dns.resolving(false, &command)).unwrap()
    };
    let python = paths::python().unwrap();
    let direct = ask(Command::new(&python));
    assert_eq!(ask(daemon.run_as("sorts", &python)), direct);
}
