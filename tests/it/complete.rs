//! The books: whatever the kernel counts of an agent's connects is on record, or it is said what became of it.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use aya::maps::{Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use interceptor_abi::counter;
use interceptor_tests::{daemon::Daemon, paths, run};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    redirect::Cgroup,
    support::{ALLOW_ALL, pin},
};

/// A server on loopback that answers everybody with a word; its port.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut connection = connection;
                let _ = connection.read(&mut [0; 16]);
                let _ = connection.write_all(b"word");
            });
        }
    });
    port
}

fn tag(daemon: &Daemon, cgroup: &Cgroup, agent: &str) {
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", agent])
        .unwrap();
}

/// The books of the one agent there is, as `status` has them.
fn books(daemon: &Daemon) -> Value {
    let status = daemon.ask_json(&["status"]).unwrap();
    let [agent] = status["connects"].as_array().unwrap().as_slice() else {
        panic!("{status:#}")
    };
    agent.clone()
}

fn number(books: &Value, name: &str) -> u64 {
    books[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {books:#}"))
}

/// Holds both halves of the books to each other, with nothing left.
#[track_caller]
fn assert_balanced(books: &Value) {
    let of = |name| number(books, name);
    assert_eq!(
        of("begun"),
        of("given_up") + of("lost") + of("taken") + of("waiting"),
        "{books:#}"
    );
    assert_eq!(
        of("taken"),
        of("sessions") + of("turned_away") + of("cut_off"),
        "{books:#}"
    );
}

/// What `verify` says of the one agent that was ever counted, and its exit status.
fn verified(daemon: &Daemon) -> (Value, Option<i32>) {
    let output = daemon
        .command(["-o", "json", "verify"])
        .arg(daemon.state())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (report, output.status.code())
}

/// The same of an agent that is none any more, once its last count is on record.
fn closed(daemon: &Daemon) -> (Value, Option<i32>) {
    run::wait_for("the last count", Duration::from_secs(10), || {
        let (report, code) = verified(daemon);
        let is_closed = report["connects"][0]["is_closed"] == true;
        Ok(is_closed.then_some((report, code)))
    })
    .unwrap()
}

/// Connects as often as it is told to, and says how often it did.
const CONNECT: &str = "
import socket, sys
port, times = int(sys.argv[1]), int(sys.argv[2])
for i in range(times):
    with socket.create_connection(('127.0.0.1', port), 10) as s:
        s.sendall(b'say\\n')
        assert s.recv(4) == b'word'
print(times)
";

/// Connects from eight threads until its input ends, whatever comes of it, and says how often it tried.
const HAMMER: &str = "
import socket, sys, threading, time
port, tried, over = int(sys.argv[1]), [0] * 8, threading.Event()
def hammer(me):
    while not over.is_set():
        s = socket.socket()
        s.settimeout(5)
        tried[me] += 1
        try:
            s.connect(('127.0.0.1', port))
            s.sendall(b'say\\n')
            s.recv(4)
        except OSError:
            time.sleep(0.001)
        s.close()
threads = [threading.Thread(target=hammer, args=(i,)) for i in range(8)]
for t in threads:
    t.start()
print('begun', flush=True)
sys.stdin.read()
over.set()
for t in threads:
    t.join()
print(sum(tried), flush=True)
";

fn hammer(cgroup: &Cgroup, port: u16) -> Child {
    let mut child = cgroup
        .command(paths::python().unwrap())
        .args(["-c", HAMMER, &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut begun = [0; 6];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut begun).unwrap();
    child
}

/// Ends what [`hammer`] began; how often it tried to connect.
fn end(mut child: Child) -> u64 {
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn every_connect_of_an_agent_is_on_record() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let port = server().to_string();
    let mut command = daemon.run_as("plain", paths::python().unwrap());
    // A question is a session too, and no connect.
    let ask = "\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.sendto(bytes.fromhex('000101000001000000000000016100000100 01'.replace(' ', '')), ('127.0.0.1', 53))\n\
        s.settimeout(5)\ns.recv(512)";
    let script = format!("{CONNECT}{ask}");
    command.args(["-c", &script, &port, "40"]);
    assert_eq!(run::output(&mut command).unwrap(), "40\n");
    let (report, code) = closed(&daemon);
    let account = &report["connects"][0];
    assert_balanced(account);
    assert_eq!(number(account, "redirected"), 40, "{account:#}");
    assert_eq!(number(account, "sessions"), 40, "{account:#}");
    assert_eq!((number(&report, "unaccounted"), code), (0, Some(0)));
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.of_kind("session_start").count(), 41);
    assert!(
        daemon
            .ask(&["verify"])
            .unwrap()
            .contains("complete: every connect is accounted for: 40 redirected: 40 on record\n")
    );
}

#[test]
fn what_is_turned_away_is_on_record_too() {
    let daemon = Daemon::configured(ALLOW_ALL, |_| {
        "limits: {connections_per_agent: 1}\n".to_owned()
    })
    .unwrap();
    let port = server().to_string();
    let script = "
import socket, sys
held = []
for i in range(8):
    try:
        held.append(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5))
    except ConnectionResetError:
        # Turned away before connect() had returned.
        assert held
held[0].sendall(b'say\\n')
assert held[0].recv(4) == b'word'
";
    let mut command = daemon.run_as("many", paths::python().unwrap());
    command.args(["-c", script, &port]);
    run::output(&mut command).unwrap();
    let (report, code) = closed(&daemon);
    let account = &report["connects"][0];
    assert_balanced(account);
    assert_eq!(number(account, "redirected"), 8);
    assert_eq!(number(account, "sessions"), 1, "{account:#}");
    assert_eq!(code, Some(0));
}

/// What an agent's programs count in, and what the daemon's count of its connections, changed by somebody.
struct Kernel<'d> {
    daemon: &'d Daemon,
    agent: u64,
}

impl Kernel<'_> {
    fn map(&self, name: &str) -> Map {
        let data = MapData::from_pin(pin(self.daemon, name)).unwrap();
        Map::from_map_data(data).unwrap()
    }

    /// So many connects more have begun.
    fn begin(&self, more: u64) {
        let map = self.map(&format!("stats-{}", self.agent));
        let mut stats: PerCpuArray<_, u64> = map.try_into().unwrap();
        let mut values = stats.get(&counter::BEGUN, 0).unwrap().to_vec();
        values[0] += more;
        let values = PerCpuValues::try_from(values).unwrap();
        stats.set(counter::BEGUN, values, 0).unwrap();
    }

    /// So many more were taken by the proxy's side.
    fn take(&self, more: u64) {
        let mut handovers: PerCpuHashMap<_, u64, [u64; 2]> =
            self.map("HANDOVERS").try_into().unwrap();
        let mut values = handovers.get(&self.agent, 0).unwrap().to_vec();
        let [taken, _lost] = &mut values[0];
        *taken += more;
        let values = PerCpuValues::try_from(values).unwrap();
        handovers.insert(self.agent, values, 0).unwrap();
    }
}

#[test]
fn what_nothing_accounts_for_is_said_by_a_daemon_that_runs_and_by_its_log() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "gap");
    let mut command = cgroup.command(paths::python().unwrap());
    command.args(["-c", CONNECT, &server().to_string(), "3"]);
    assert_eq!(run::output(&mut command).unwrap(), "3\n");
    // It says so and is degraded, as its exit status tells.
    let missing = |expected: [u64; 2]| {
        run::wait_for("the gap to be said", Duration::from_secs(20), || {
            let said = run::outcome(&mut daemon.command(["-o", "json", "status"]))?;
            let status: Value = serde_json::from_str(&said.stdout)?;
            let books = &status["connects"][0];
            let found = ["unsettled", "unrecorded"].map(|name| number(books, name));
            Ok((found == expected && said.status.code() == Some(3)).then_some(()))
        })
        .unwrap();
        let said = run::outcome(&mut daemon.command(["status"])).unwrap();
        assert!(said.stdout.contains("2 NOT ACCOUNTED FOR"), "{said:?}");
    };
    let kernel = Kernel {
        daemon: &daemon,
        agent: number(&books(&daemon), "number"),
    };
    // The kernel has begun what nobody had.
    kernel.begin(2);
    missing([2, 0]);
    // The proxy's side had them, and no session is on record.
    kernel.take(2);
    missing([0, 2]);
    daemon.ask(&["tag", "remove", "gap"]).unwrap();
    daemon.stop().unwrap();
    let (report, code) = closed(&daemon);
    assert_eq!(
        (number(&report, "unaccounted"), code),
        (2, Some(3)),
        "{report:#}"
    );
    let said = run::outcome(daemon.command(["verify"]).arg(daemon.state())).unwrap();
    assert!(
        said.stdout
            .contains("NOT COMPLETE: 2 connects not accounted for, of 3 redirected"),
        "{said:?}"
    );
}

#[test]
fn connects_to_a_dead_daemon_are_refused_and_counted() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "orphan");
    let port = server();
    daemon.kill().unwrap();
    let child = hammer(&cgroup, port);
    // At first the hooks still believe in it, and nobody listens; then they refuse.
    thread::sleep(Duration::from_secs(4));
    let tried = end(child);
    daemon.restart().unwrap();
    let books = books(&daemon);
    assert_balanced(&books);
    assert!(number(&books, "given_up") > 0, "{books:#}");
    assert!(number(&books, "refused") > 0, "{books:#}");
    assert_eq!(number(&books, "sessions"), 0);
    assert_eq!(
        number(&books, "redirected") + number(&books, "refused"),
        tried
    );
    assert_eq!(number(&books, "unaccounted"), 0);
}

#[test]
fn no_connect_is_lost_where_the_daemon_is_killed_under_load() {
    const ROUNDS: usize = 4;
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "loaded");
    let child = hammer(&cgroup, server());
    for _ in 0..ROUNDS {
        thread::sleep(Duration::from_millis(700));
        daemon.kill().unwrap();
        daemon.restart().unwrap();
    }
    thread::sleep(Duration::from_millis(700));
    let tried = end(child);
    // What is on its way to being recorded arrives.
    let settled = run::wait_for("the books to settle", Duration::from_secs(10), || {
        let books = books(&daemon);
        let on_record = number(&books, "sessions") + number(&books, "cut_off");
        Ok((number(&books, "taken") <= on_record).then_some(books))
    })
    .unwrap();
    assert_balanced(&settled);
    assert!(number(&settled, "sessions") > 100, "{settled:#}");
    assert_eq!(
        number(&settled, "redirected") + number(&settled, "refused"),
        tried,
        "{settled:#}"
    );
    daemon.ask(&["tag", "remove", "loaded"]).unwrap();
    daemon.stop().unwrap();
    // Offline, from the records alone.
    let (report, code) = closed(&daemon);
    assert_eq!(
        (number(&report, "unaccounted"), code),
        (0, Some(0)),
        "{report:#}"
    );
    let account = &report["connects"][0];
    assert_eq!(number(account, "sessions"), number(&settled, "sessions"));
    assert_eq!(number(account, "cut_off"), number(&settled, "cut_off"));
}

#[test]
fn a_flood_of_refusals_hides_no_connect() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let port = server().to_string();
    let flood = format!(
        "{CONNECT}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused = 0
for i in range(60000):
    try:
        s.sendto(b'x', ('192.0.2.1', 9))
    except OSError:
        refused += 1
    if i % 2000 == 0:
        socket.create_connection(('127.0.0.1', port), 10).close()
print(refused)
"
    );
    let mut command = daemon.run_as("loud", paths::python().unwrap());
    command.args(["-c", &flood, &port, "10"]);
    assert_eq!(run::output(&mut command).unwrap(), "10\n60000\n");
    let kernel = daemon.ask_json(&["status"]).unwrap()["kernel"].clone();
    assert_eq!(number(&kernel, "refused_udp"), 60_000);
    let (report, code) = closed(&daemon);
    let account = &report["connects"][0];
    assert_balanced(account);
    assert_eq!(number(account, "redirected"), 40, "{account:#}");
    assert_eq!(number(account, "sessions"), 40, "{account:#}");
    assert_eq!(code, Some(0));
}

#[test]
fn what_a_daemon_took_and_never_recorded_is_said_to_be_cut_off() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "stuck");
    let pid = i32::try_from(daemon.pid().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    // The kernel completes connections for who doesn't run.
    let script = "
import socket, sys
held = [socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2) for i in range(6)]
print(len(held))
";
    let mut command = cgroup.command(paths::python().unwrap());
    command.args(["-c", script, &server().to_string()]);
    assert_eq!(run::output(&mut command).unwrap(), "6\n");
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    let books = books(&daemon);
    assert_balanced(&books);
    assert_eq!(number(&books, "taken"), 6, "{books:#}");
    assert_eq!(number(&books, "cut_off"), 6, "{books:#}");
    assert_eq!(number(&books, "sessions"), 0, "{books:#}");
}
