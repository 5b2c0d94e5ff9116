//! Sockets that no hook sees: those from before the tag, and those that come from elsewhere later. After
//! the tag nothing that an agent does with them reaches a server.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use interceptor_tests::{
    cluster::free_port,
    daemon::Daemon,
    keeper::{self, Keeper},
    netns::Outside,
    paths, run, scratch,
};
use nix::time::{ClockId, clock_gettime};

use crate::support::ALLOW_ALL;

/// A server that writes down what reaches it, and when.
struct World {
    outside: Outside,
    server: Child,
    called: u16,
    log: PathBuf,
}

const PORT: u16 = 7_000;

impl World {
    fn new(folder: &Path) -> Self {
        let outside = Outside::new().unwrap();
        let log = folder.join("arrived");
        // In the host's namespace, where others have theirs.
        let called = free_port().unwrap();
        let mut command = outside.command(paths::python().unwrap());
        command
            .arg(paths::client("sink.py"))
            .arg(PORT.to_string())
            .arg(&log)
            .args([outside.host_v4(), called.to_string()]);
        let server = ready(&mut command);
        Self {
            outside,
            server,
            called,
            log,
        }
    }

    /// When what of each name arrived last, in milliseconds of CLOCK_MONOTONIC.
    fn arrived(&self) -> BTreeMap<String, u64> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let mut last = BTreeMap::new();
        for line in log.lines() {
            let (time, names) = line.split_once(' ').unwrap();
            for name in names.split(' ') {
                last.insert(name.to_owned(), time.parse().unwrap());
            }
        }
        last
    }

    /// What arrived later than that.
    fn arrived_after(&self, time_ms: u64) -> Vec<String> {
        let arrived = self.arrived().into_iter();
        arrived
            .filter(|(name, last)| *last > time_ms && name != "gone")
            .map(|(name, _)| name)
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A cgroup that interceptor didn't make, with what the test starts in it.
struct Cgroup {
    path: PathBuf,
    processes: Vec<Child>,
    _keeper: Keeper,
}

impl Cgroup {
    fn new() -> Self {
        let path = keeper::cgroup2().unwrap().join(scratch::name("it-before"));
        fs::create_dir(&path).unwrap();
        let script = "echo 0 >\"$1/cgroup.freeze\"; echo 1 >\"$1/cgroup.kill\"; n=0; \
                      while ! rmdir \"$1\" && [ $n -lt 100 ]; do sleep 0.02; n=$((n+1)); done";
        Self {
            _keeper: Keeper::of_command(script, [path.as_os_str()]).unwrap(),
            path,
            processes: Vec::new(),
        }
    }

    /// Starts `before.py`, which takes itself there.
    fn start(&mut self, birth: &str, world: &World, go: &Path) -> u32 {
        self.start_towards(&world.outside.address_v4(), birth, world, go)
    }

    fn start_towards(&mut self, server: &str, birth: &str, world: &World, go: &Path) -> u32 {
        let mut command = Command::new(paths::python().unwrap());
        command
            .arg(paths::client("before.py"))
            .arg(birth)
            .arg(&self.path)
            .args([server, &PORT.to_string(), &world.called.to_string()])
            .arg(go);
        let process = ready(&mut command);
        let pid = process.id();
        self.processes.push(process);
        pid
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = fs::write(self.path.join("cgroup.freeze"), "0");
            let _ = process.wait();
        }
    }
}

/// Starts what says that it is ready.
fn ready(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(time.tv_sec() * 1_000 + time.tv_nsec() / 1_000_000).unwrap()
}

/// What is used before the tag.
const USED: [&str; 8] = [
    "accepted",
    "mptcp",
    "tcp-active",
    "tcp-idle",
    "tcp-ring",
    "tcp-thread",
    "udp-connected",
    "udp-unconnected",
];

/// What is under way before the tag: datagrams that are on the wire when the agent is frozen.
const UNDER_WAY: Duration = Duration::from_millis(50);

fn nothing_arrives_after_the_tag(birth: &str, server: impl Fn(&Outside) -> String) {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let world = World::new(daemon.folder());
    let server = server(&world.outside);
    let mut cgroup = Cgroup::new();
    let go = daemon.folder().join("go");
    let pid = cgroup.start_towards(&server, birth, &world, &go);
    run::wait_for("all sockets to be used", Duration::from_secs(10), || {
        let arrived = world.arrived();
        Ok(USED
            .iter()
            .all(|name| arrived.contains_key(*name))
            .then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", world.arrived()));

    let tagged = daemon
        .ask_json(&["tag", "add", cgroup.name(), "--agent", "old"])
        .unwrap();
    let tagged_at = now_ms();
    thread::sleep(UNDER_WAY);
    fs::write(&go, "").unwrap();
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!(world.arrived_after(tagged_at + 50), [""; 0], "{tagged}");

    let cut = tagged["old_sockets"]["cut"].as_u64().unwrap();
    let journal = daemon.journal().unwrap();
    let records: Vec<_> = journal.mentioning("event", "old_socket_cut").collect();
    assert_eq!(records.len() as u64, cut, "{tagged}");
    let destination = SocketAddr::new(server.parse::<IpAddr>().unwrap().to_canonical(), PORT);
    let destination = destination.to_string();
    assert!(
        records
            .iter()
            .any(|record| record.mentions(&destination) && record.mentions(&pid.to_string()))
    );
    assert!(cut >= 10, "{tagged}");
    let listed = daemon.ask(&["tag", "list"]).unwrap();
    assert!(listed.contains("running"), "{listed}");
}

#[test]
fn what_was_opened_in_the_cgroup_before_its_tag_is_cut() {
    nothing_arrives_after_the_tag("inside", Outside::address_v4);
}

#[test]
fn what_was_opened_before_the_tag_over_ipv6_is_cut() {
    nothing_arrives_after_the_tag("moved", Outside::address_v6);
}

#[test]
fn what_was_opened_before_the_tag_over_both_in_one_is_cut() {
    nothing_arrives_after_the_tag("moved", |outside| {
        format!("::ffff:{}", outside.address_v4())
    });
}

#[test]
fn what_was_opened_elsewhere_before_the_tag_is_cut_for_good() {
    nothing_arrives_after_the_tag("moved", Outside::address_v4);
}

#[test]
fn what_may_stay_stays_until_it_is_closed_and_is_on_record() {
    let mut daemon =
        Daemon::configured(ALLOW_ALL, |_| "tags: {old_sockets: allow}\n".to_owned()).unwrap();
    let world = World::new(daemon.folder());
    let mut cgroup = Cgroup::new();
    let go = daemon.folder().join("go");
    cgroup.start("moved", &world, &go);
    let tagged = daemon
        .ask_json(&["tag", "add", cgroup.name(), "--agent", "old"])
        .unwrap();
    let allowed = tagged["old_sockets"]["allowed"].as_u64().unwrap();
    assert!(allowed >= 10, "{tagged}");
    let journal = daemon.journal().unwrap();
    let records = journal.mentioning("event", "old_socket_allowed").count();
    assert_eq!(records as u64, allowed, "{tagged}");

    // A daemon that starts anew remembers.
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    thread::sleep(Duration::from_millis(1_200));
    let later = now_ms();
    fs::write(&go, "").unwrap();
    run::wait_for("all of it to arrive", Duration::from_secs(10), || {
        let arrived = world.arrived_after(later);
        let missing = |name: &&&str| !arrived.iter().any(|other| other == **name);
        // The io_uring's can't be used from Python; that it is there is enough.
        let missing = USED
            .iter()
            .filter(|name| **name != "tcp-ring")
            .find(missing);
        Ok(missing.is_none().then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", world.arrived_after(later)));
    let open = || {
        let listed = daemon.ask_json(&["tag", "list"]).unwrap();
        listed[0]["old_sockets"]["allowed"].as_u64()
    };
    assert_eq!(open(), Some(allowed));
    let listed = daemon.ask(&["agents"]).unwrap();
    assert!(
        listed.contains(&format!("{allowed} sockets from before")),
        "{listed}"
    );
    cgroup.processes[0].kill().unwrap();
    cgroup.processes[0].wait().unwrap();
    run::wait_for("them to be closed", Duration::from_secs(5), || {
        Ok((open() == Some(0)).then_some(()))
    })
    .unwrap();
}

#[test]
fn the_command_line_says_otherwise_than_the_configuration() {
    let daemon =
        Daemon::configured(ALLOW_ALL, |_| "tags: {old_sockets: allow}\n".to_owned()).unwrap();
    let world = World::new(daemon.folder());
    let mut cgroup = Cgroup::new();
    cgroup.start("inside", &world, &daemon.folder().join("go"));
    let mut add = daemon.command(["tag", "add", cgroup.name(), "--agent", "old"]);
    let said = run::outcome(add.args(["--old-sockets", "cut"])).unwrap();
    assert!(said.status.success(), "{said}");
    assert!(
        said.stderr.contains("sockets from before were cut"),
        "{said}"
    );
}

#[test]
fn who_holds_what_cannot_be_cut_is_killed_where_that_is_configured() {
    let daemon =
        Daemon::configured(ALLOW_ALL, |_| "tags: {uncuttable: kill}\n".to_owned()).unwrap();
    let world = World::new(daemon.folder());
    let mut cgroup = Cgroup::new();
    cgroup.start("moved", &world, &daemon.folder().join("go"));
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "old"])
        .unwrap();
    let journal = daemon.journal().unwrap();
    let record = journal.mentioning("event", "old_socket_uncut").next();
    let record = record.unwrap_or_else(|| panic!("the io_uring's is missing: {journal:#?}"));
    assert!(record.mentions("killed"), "{record:#?}");
    run::wait_for("it to end", Duration::from_secs(5), || {
        Ok(cgroup.processes[0].try_wait()?)
    })
    .unwrap();
}

#[test]
fn what_an_accomplice_hands_over_is_cut_within_a_second() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let world = World::new(daemon.folder());
    let mut cgroup = Cgroup::new();
    let receiver = daemon.folder().join("receiver");
    // In the agent: takes what is handed to it, and sends on it all the time.
    let script = "
import array, os, socket, sys, time
open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))
inbox = socket.socket(socket.AF_UNIX)
inbox.bind(sys.argv[2])
inbox.listen()
print('ready', flush=True)
helper, _ = inbox.accept()
handed = [socket.socket(fileno=fd) for fd in socket.recv_fds(helper, 1, 9)[1]]
while True:
    for number, each in enumerate(handed):
        try: each.send(b'handed-%d ' % number)
        except OSError: pass
    time.sleep(0.01)
";
    let mut command = Command::new("python3");
    command.args(["-c", script, cgroup.name()]).arg(&receiver);
    cgroup.processes.push(ready(&mut command));
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "taker"])
        .unwrap();
    // Outside of it: hands over a connection, and datagrams.
    let script = "
import socket, sys, time
to = (sys.argv[2], int(sys.argv[3]))
tcp = socket.create_connection(to)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(to)
agent = socket.socket(socket.AF_UNIX)
agent.connect(sys.argv[1])
socket.send_fds(agent, [b'.'], [tcp.fileno(), udp.fileno()])
print('ready', flush=True)
time.sleep(60)
";
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(&receiver)
        .args([world.outside.address_v4(), PORT.to_string()]);
    let mut helper = ready(&mut command);
    let handed_at = now_ms();
    thread::sleep(Duration::from_millis(2_500));
    let _ = helper.kill();
    let _ = helper.wait();
    let arrived = world.arrived();
    for name in ["handed-0", "handed-1"] {
        let last = arrived.get(name).expect("it passes until it is noticed");
        assert!(*last < handed_at + 1_000, "{name}: {} ms", last - handed_at);
    }
    let journal = daemon.journal().unwrap();
    let records: Vec<_> = journal.mentioning("event", "foreign_socket_cut").collect();
    assert_eq!(records.len(), 2, "{records:#?}");
    assert!(records.iter().all(|record| record.agent == "taker"));
}

#[test]
fn an_agents_own_connections_are_left_alone() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let world = World::new(daemon.folder());
    let script = "
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
for _ in range(60):
    connection.sendall(b'own ')
    time.sleep(0.05)
";
    let mut command = daemon.run_as("own", "python3");
    command
        .args(["-c", script])
        .args([world.outside.address_v4(), PORT.to_string()]);
    run::output(&mut command).unwrap();
    let journal = daemon.journal().unwrap();
    for name in ["foreign_socket_cut", "agent_left", "hooks_changed"] {
        assert_eq!(journal.mentioning("event", name).count(), 0, "{name}");
    }
}

#[test]
fn sockets_in_a_network_namespace_of_the_agents_own_are_found_too() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut cgroup = Cgroup::new();
    // Loopback of a namespace that ends with the process: both ends are the agent's.
    let script = "
import ctypes, os, socket, subprocess, sys, time
if ctypes.CDLL(None).unshare(0x40000000): raise OSError('unshare')
subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
listener = socket.create_server(('127.0.0.1', 7000))
client = socket.create_connection(('127.0.0.1', 7000))
server, _ = listener.accept()
open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))
print('ready', flush=True)
try:
    while True:
        client.send(b'x')
        time.sleep(0.01)
except OSError:
    open(sys.argv[2], 'w').write('cut')
time.sleep(60)
";
    let said = daemon.folder().join("said");
    let mut command = Command::new("python3");
    command.args(["-c", script, cgroup.name()]).arg(&said);
    cgroup.processes.push(ready(&mut command));
    let tagged = daemon
        .ask_json(&["tag", "add", cgroup.name(), "--agent", "apart"])
        .unwrap();
    assert_eq!(tagged["old_sockets"]["cut"], 3, "{tagged}");
    run::wait_for("it to notice", Duration::from_secs(5), || {
        Ok(said.exists().then_some(()))
    })
    .unwrap();
}

#[test]
fn sockets_that_no_hook_sees_are_told_of_whenever_they_are_opened() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut cgroup = Cgroup::new();
    let go = daemon.folder().join("go");
    // For no protocol: it receives nothing, and nothing is sent on it.
    let script = "
import os, socket, sys, time
open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))
old = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
print('ready', flush=True)
while not os.path.exists(sys.argv[2]): time.sleep(0.02)
new = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
time.sleep(60)
";
    let mut command = Command::new("python3");
    command.args(["-c", script, cgroup.name()]).arg(&go);
    cgroup.processes.push(ready(&mut command));
    let mut add = daemon.command(["tag", "add", cgroup.name(), "--agent", "raw"]);
    let said = run::outcome(&mut add).unwrap();
    assert!(said.stderr.contains("1 socket that can't be cut"), "{said}");
    let count = |name: &str| {
        let journal = daemon.journal().unwrap();
        journal.mentioning("event", name).count()
    };
    assert_eq!(count("old_socket_uncut"), 1);
    fs::write(&go, "").unwrap();
    run::wait_for("the new one", Duration::from_millis(1_500), || {
        Ok((count("socket_unseen") == 1).then_some(()))
    })
    .unwrap();
    let status = run::outcome(&mut daemon.command(["status"])).unwrap();
    assert_eq!(status.status.code(), Some(3), "{status}");
    assert!(status.stdout.contains("uncuttable: kill"), "{status}");
    thread::sleep(Duration::from_millis(1_200));
    assert_eq!(count("socket_unseen"), 1, "told of once");
}
