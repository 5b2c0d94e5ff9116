//! A container engine's socket that a launched agent is allowed is one of the daemon's: what is asked of the engine
//! is decided, held and recorded, and the engine's own is out of reach.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use interceptor_tests::{
    daemon::Daemon,
    h2::{self, Frame, kind},
    keeper::{self, Keeper},
    paths, run, scratch,
};
use serde_json::Value;

use crate::support::ALLOW_ALL;

/// As `policies/docker.yaml` has it, shorter.
const POLICY: &str = r#"
default: {action: deny, reason: "no rule allows it"}
rules:
  - id: looked-at
    match: {destination: {socket: "*/docker.sock"}, protocol: http, action: [GET, HEAD], http: {path: ["/_ping", "*/containers/json", "*/version"]}}
    action: allow
    mask: [{json: "$[*].Labels.owner", with: redact}]
  - id: no-privileges
    match: {protocol: http, http: {path: "*/containers/create"}, content: '(?i)"privileged"\s*:\s*true'}
    action: deny
    reason: "as good as the host"
  - id: pulls-wait
    match: {protocol: http, http: {path: "*/images/create"}}
    action: hold
    reason: "a person looks first"
    reviewers: {quorum: 1, within: 1m}
"#;

/// What stands in for an engine, and a folder where an agent can say how far it is.
struct World {
    daemon: Daemon,
    folder: PathBuf,
    socket: PathBuf,
    engine: Child,
    _keeper: Keeper,
}

impl World {
    fn new(policy: &str) -> Self {
        Self::with(policy, "666")
    }

    fn with(policy: &str, mode: &str) -> Self {
        let daemon = Daemon::start(policy).unwrap();
        let folder = scratch::folder("engine").unwrap();
        let keeper = Keeper::of_command("rm -rf -- \"$1\"", [folder.as_os_str()]).unwrap();
        let sockets = folder.join("engine");
        for made in [&sockets, &folder.join("signs")] {
            fs::create_dir(made).unwrap();
            fs::set_permissions(made, fs::Permissions::from_mode(0o777)).unwrap();
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let socket = sockets.join("docker.sock");
        let engine = engine(&socket, &folder.join("log"), mode);
        Self {
            daemon,
            folder,
            socket,
            engine,
            _keeper: keeper,
        }
    }

    /// `interceptor run FLAGS -- ARGUMENTS`, allowed the engine.
    fn run(&self, flags: &[&str], arguments: &[&str]) -> Command {
        let allow = format!("--allow-socket={}", self.socket.display());
        self.run_with(&[flags, &[&allow]].concat(), arguments)
    }

    fn run_with(&self, flags: &[&str], arguments: &[&str]) -> Command {
        let before = ["run", "--agent", "builder"];
        self.daemon
            .command([&before, flags, &["--"], arguments].concat())
    }

    /// The same of curl, which asks the engine.
    fn ask(&self, arguments: &[&str]) -> Command {
        let socket = self.socket.to_str().unwrap();
        let curl = ["curl", "-sS", "--max-time", "20", "--unix-socket", socket];
        self.run(&[], &[&curl, arguments].concat())
    }

    /// What reached the engine: who, and the rest.
    fn reached(&self) -> Vec<(u32, String)> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        lines
            .map(|(pid, request)| (pid.parse().unwrap(), request.trim_end().to_owned()))
            .collect()
    }

    fn sign(&self, name: &str) -> PathBuf {
        self.folder.join("signs").join(name)
    }

    fn wait_for(&self, sign: &str) {
        let path = self.sign(sign);
        run::wait_for(sign, run::PATIENCE, || Ok(path.exists().then_some(()))).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.engine.kill();
        let _ = self.engine.wait();
    }
}

fn engine(socket: &Path, log: &Path, mode: &str) -> Child {
    let mut engine = Command::new("/usr/bin/python3")
        .arg(paths::client("engine.py"))
        .args([socket, log])
        .arg(mode)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut output = BufReader::new(engine.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    engine
}

#[test]
fn what_is_asked_of_an_engine_is_decided_masked_and_recorded() {
    let world = World::new(POLICY);
    let listed = run::output(&mut world.ask(&["http://docker/v1.48/containers/json"])).unwrap();
    assert!(listed.contains("3f4c"), "{listed}");
    assert!(!listed.contains("ada@example.com"), "{listed}");

    let create = [
        "-w",
        " %{http_code}",
        "-H",
        "Content-Type: application/json",
        "-d",
        "{\"HostConfig\": {\"Privileged\": true}}",
        "http://docker/v1.48/containers/create",
    ];
    let refused = run::output(&mut world.ask(&create)).unwrap();
    assert!(refused.contains("no-privileges"), "{refused}");
    assert!(refused.ends_with(" 403"), "{refused}");
    let other =
        run::output(&mut world.ask(&["-w", " %{http_code}", "http://docker/info"])).unwrap();
    assert!(other.ends_with(" 403"), "{other}");

    let daemon = world.daemon.pid().unwrap();
    assert_eq!(
        world.reached(),
        [(daemon, "GET /v1.48/containers/json".to_owned())]
    );

    let journal = world.daemon.journal().unwrap();
    let destination = format!("unix:{}", world.socket.display());
    let starts: Vec<_> = journal.of_kind("session_start").collect();
    assert_eq!(starts.len(), 3);
    for start in starts {
        assert_eq!(start.agent, "builder");
        assert_eq!(
            start.at("/destination").unwrap(),
            &Value::from(&*destination)
        );
        assert_eq!(start.at("/transport").unwrap(), "unix");
        assert_eq!(start.at("/client").unwrap(), &Value::Null);
        let executable = start.at("/process/executable").unwrap();
        assert!(executable.as_str().unwrap().ends_with("/curl"), "{start:?}");
    }
    assert_eq!(journal.of_kind("operation").count(), 3);
    assert_eq!(journal.mentioning("decision", "no-privileges").count(), 1);
    assert!(!journal.mentions("ada@example.com"));
    let tagged = journal.mentioning("event", "--allow-socket=");
    assert!(tagged.count() >= 1, "what was allowed is on record");
    // No connect of the hooks' is missing or one too many.
    let status = world.daemon.ask_json(&["status"]).unwrap();
    assert_eq!(status["troubles"], Value::Array(Vec::new()), "{status}");
}

#[test]
fn what_is_approved_reaches_an_engine_once() {
    let world = World::new(POLICY);
    let pull = [
        "-X",
        "POST",
        "http://docker/v1.48/images/create?fromImage=alpine",
    ];
    let mut agent = run::start(&mut world.ask(&pull)).unwrap();
    let held = world.daemon.held().unwrap();
    let text = held.to_string();
    assert!(
        text.contains("unix:") && text.contains("fromImage"),
        "{text}"
    );
    assert!(agent.is_running().unwrap());
    assert!(world.reached().is_empty());
    let id = held["id"].as_str().unwrap();
    world.daemon.ask(&["approvals", "approve", id]).unwrap();
    agent.outcome().unwrap().success().unwrap();
    let [(pid, request)] = &*world.reached() else {
        panic!("{:?}", world.reached());
    };
    assert_eq!(*pid, world.daemon.pid().unwrap());
    assert_eq!(request, "POST /v1.48/images/create?fromImage=alpine");
}

#[test]
fn the_engine_s_own_socket_is_nowhere_not_even_when_it_starts_again() {
    let mut world = World::new(ALLOW_ALL);
    // Mounted elsewhere as well, in a mount namespace of this test's own.
    let mirror = world.folder.join("mirror");
    fs::create_dir(&mirror).unwrap();
    let script = format!(
        "import glob, os, socket, time
def ask(path):
    try:
        s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(path)
        s.sendall(b'GET /_ping HTTP/1.1\\r\\nHost: docker\\r\\n\\r\\n')
        return s.recv(4096).split(b'\\r\\n')[0].decode()
    except OSError as error: return error.strerror
print(ask('{socket}'), sorted(os.listdir(os.path.dirname('{socket}'))))
print(ask('{mirror}/docker.sock'), os.path.exists('{mirror}/docker.sock'))
print(glob.glob('/run/{instance}/engines/*/*'), os.listdir('/run/.interceptor'))
for change in (os.unlink, lambda path: os.rename(path, path + '.old')):
    try: change('/run/.interceptor/0'); print('changed')
    except OSError as error: print(error.strerror)
open('{asked}', 'x').close()
while not os.path.exists('{again}'): time.sleep(.01)
print(ask('{socket}'), sorted(os.listdir(os.path.dirname('{socket}'))))
print(ask('{mirror}/docker.sock'))
",
        socket = world.socket.display(),
        mirror = mirror.display(),
        instance = world.daemon.instance(),
        asked = world.sign("asked").display(),
        again = world.sign("again").display(),
    );
    let start = world.run(&[], &["/usr/bin/python3", "-c", &script]);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("set -e; mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"")
        .arg("sh")
        .args([world.socket.parent().unwrap(), &*mirror])
        .arg(start.get_program())
        .args(start.get_args());
    let agent = run::start(&mut command).unwrap();
    world.wait_for("asked");
    world.engine.kill().unwrap();
    world.engine.wait().unwrap();
    world.engine = engine(&world.socket, &world.folder.join("log"), "666");
    fs::write(world.sign("again"), "").unwrap();
    let said = agent.outcome().unwrap().success().unwrap();
    let kept = "Read-only file system\n";
    let gone = "No such file or directory";
    assert_eq!(
        said,
        format!(
            "HTTP/1.1 200 OK ['docker.sock']\n{gone} False\n[] ['0']\n{kept}{kept}\
             HTTP/1.1 200 OK ['docker.sock']\n{gone}\n"
        )
    );
    let daemon = world.daemon.pid().unwrap();
    let reached = world.reached();
    assert_eq!(reached.len(), 2);
    assert!(reached.iter().all(|(pid, _)| *pid == daemon), "{reached:?}");
}

#[test]
fn without_a_daemon_an_engine_is_not_reached_and_with_the_next_one_it_is() {
    let mut world = World::new(ALLOW_ALL);
    let script = "import sys, socket, os, time
path, up, down, over, back = sys.argv[1:]
def ask(kept):
    try:
        if kept is None: kept = socket.socket(socket.AF_UNIX); kept.settimeout(20); kept.connect(path)
        kept.sendall(b'GET /_ping HTTP/1.1\\r\\nHost: docker\\r\\n\\r\\n')
        return kept, kept.recv(4096)[:12]
    except OSError as error: return kept, type(error).__name__
kept, said = ask(None); print(said)
open(up, 'x').close()
while not os.path.exists(down): time.sleep(.01)
print(ask(None)[1]); said = ask(kept)[1]; print(said in (b'', 'BrokenPipeError', 'ConnectionResetError'))
open(over, 'x').close()
while not os.path.exists(back): time.sleep(.01)
print(ask(None)[1])";
    let [up, down, over, back] = ["up", "down", "over", "back"].map(|sign| world.sign(sign));
    let arguments = [
        "/usr/bin/python3",
        "-c",
        script,
        world.socket.to_str().unwrap(),
        up.to_str().unwrap(),
        down.to_str().unwrap(),
        over.to_str().unwrap(),
        back.to_str().unwrap(),
    ];
    let agent = run::start(&mut world.run(&[], &arguments)).unwrap();
    world.wait_for("up");
    world.daemon.kill().unwrap();
    fs::write(&down, "").unwrap();
    world.wait_for("over");
    assert_eq!(world.reached().len(), 1);
    world.daemon.restart().unwrap();
    // It answers when it serves.
    world.daemon.ask(&["tag", "list"]).unwrap();
    fs::write(&back, "").unwrap();
    let said = agent.outcome().unwrap().stdout;
    let answer = "b'HTTP/1.1 200'\n";
    assert_eq!(
        said,
        format!("{answer}ConnectionRefusedError\nTrue\n{answer}")
    );
    let reached = world.reached();
    assert_eq!(reached.len(), 2);
    assert_eq!(reached[1].0, world.daemon.pid().unwrap());
}

#[test]
fn who_may_not_connect_to_an_engine_may_not_by_way_of_the_daemon() {
    let world = World::with(ALLOW_ALL, "600");
    let nobody = run::outcome(&mut world.run(&["--user", "nobody"], &["true"])).unwrap();
    assert!(!nobody.status.success());
    assert!(
        nobody.stderr.contains("nobody can't connect to")
            && nobody.stderr.contains("Permission denied"),
        "{nobody}"
    );
    // Root may, and what it starts as somebody else may not.
    let script = "import os, socket, sys
socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('root')
os.setuid(65534)
try: socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('nobody')
except OSError as error: print(error.strerror)";
    let arguments = [
        "/usr/bin/python3",
        "-c",
        script,
        world.socket.to_str().unwrap(),
    ];
    let flags = ["--allow-capability=setuid"];
    let said = run::output(&mut world.run(&flags, &arguments)).unwrap();
    assert_eq!(said, "root\nPermission denied\n");
}

#[test]
fn nobody_else_is_met_in_an_agent_s_place() {
    let world = World::new(ALLOW_ALL);
    let up = world.sign("up");
    let script = "touch \"$0\"; while [ -e \"$0\" ]; do sleep 0.02; done";
    let arguments = ["sh", "-c", script, up.to_str().unwrap()];
    let agent = run::start(&mut world.run(&[], &arguments)).unwrap();
    world.wait_for("up");
    let folder = Path::new("/run")
        .join(world.daemon.instance())
        .join("engines");
    assert_eq!(
        fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let entries = fs::read_dir(&folder).unwrap();
    let mut entries = entries.map(|entry| entry.unwrap().path());
    let own = entries.find(|path| path.is_dir()).unwrap();
    let mut stream = UnixStream::connect(own.join("0")).unwrap();
    let _ = stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n");
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert_eq!(said, b"");
    fs::remove_file(&up).unwrap();
    agent.outcome().unwrap().success().unwrap();
    assert!(world.reached().is_empty());
    let journal = world.daemon.journal().unwrap();
    let refused = journal.mentioning("event", "engine_refused");
    assert_eq!(refused.count(), 1);
    assert!(!own.exists(), "it goes with its agent");
}

#[test]
fn an_engine_is_reached_unseen_only_by_a_flag_that_says_so() {
    let world = World::new(ALLOW_ALL);
    let folder = world.socket.parent().unwrap().display();
    let whole =
        run::outcome(&mut world.run_with(&[&format!("--allow-socket={folder}")], &["true"]));
    let whole = whole.unwrap();
    assert!(
        !whole.status.success() && whole.stderr.contains("--allow-socket-unseen"),
        "{whole}"
    );
    let socket = world.socket.to_str().unwrap();
    let curl = [
        "curl",
        "-sS",
        "--unix-socket",
        socket,
        "http://docker/_ping",
    ];
    let unseen = format!("--allow-socket-unseen={socket}");
    let said = run::output(&mut world.run_with(&[&unseen], &curl)).unwrap();
    assert_eq!(said, "OK");
    let reached = world.reached();
    assert_eq!(reached.len(), 1);
    assert_ne!(reached[0].0, world.daemon.pid().unwrap());
    let journal = world.daemon.journal().unwrap();
    assert_eq!(journal.of_kind("session_start").count(), 0);
    assert_eq!(journal.mentioning("event", &unseen).count(), 1);
    let without = run::outcome(&mut world.run_with(&[], &curl)).unwrap();
    assert!(!without.status.success(), "{without}");
}

#[test]
fn whoever_allows_an_engine_to_what_is_tagged_while_running_is_told_what_that_means() {
    let world = World::new(ALLOW_ALL);
    let cgroup = keeper::cgroup2().unwrap().join(scratch::name("it-engine"));
    let _keeper = Keeper::of_command("rmdir \"$1\"", [cgroup.as_os_str()]).unwrap();
    fs::create_dir(&cgroup).unwrap();
    let add = |socket: &str| {
        let cgroup = cgroup.to_str().unwrap();
        let agent = ["tag", "add", cgroup, "--agent", "tagged"];
        let command = [&agent[..], &["--allow-socket", socket]].concat();
        let said = run::outcome(&mut world.daemon.command(command)).unwrap();
        assert!(said.status.success(), "{said}");
        world.daemon.ask(&["tag", "remove", "tagged"]).unwrap();
        said.stderr
    };
    let [engine, other] = [world.socket.to_str().unwrap(), "/run/systemd/notify"].map(add);
    let caution = "isn't decided and not on record";
    assert!(engine.contains(caution), "{engine}");
    assert!(!other.contains(caution), "{other}");
}

#[test]
fn attached_connections_pass_unseen_where_a_rule_allows_them_and_nothing_is_masked() {
    let script = "import socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])
s.sendall(b'POST /v1.48/containers/a/attach HTTP/1.1\\r\\nHost: docker\\r\\nConnection: Upgrade\\r\\nUpgrade: tcp\\r\\nContent-Length: 0\\r\\n\\r\\n')
head = s.recv(65536).decode()
if ' 101 ' in head: s.sendall(b'hello\\n'); head = s.recv(65536).decode()
print(head)";
    for (policy, expected) in [(ALLOW_ALL, "attached: hello"), (MASKED, "can't be masked")] {
        let world = World::new(policy);
        let socket = world.socket.to_str().unwrap();
        let arguments = ["/usr/bin/python3", "-c", script, socket];
        let said = run::output(&mut world.run(&[], &arguments)).unwrap();
        assert!(said.contains(expected), "{said}");
        assert_eq!(world.reached().len(), usize::from(policy == ALLOW_ALL));
    }
}

const MASKED: &str = "
default: {action: allow}
rules:
  - {id: masked, match: {protocol: http}, action: allow, mask: [{key: token, with: redact}]}
";

#[test]
fn engines_that_speak_http2_are_met_as_well_and_nothing_that_hides_it() {
    let policy = r#"
default: {action: deny}
rules:
  - {id: versions, match: {destination: {socket: "*containerd.sock"}, protocol: http, http: {path: "/containerd.services.version.v1.Version/Version"}}, action: allow}
"#;
    let world = World::new(policy);
    let path = world.socket.with_file_name("containerd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let served = thread::spawn(move || (serve_http2(&listener), listener));
    let flags = [&*format!("--allow-socket={}", path.display())];
    let run = |curl: &[&str]| {
        let curl = [
            &["curl", "-sS", "--max-time", "20", "-w", " %{http_code}"],
            curl,
        ]
        .concat();
        let mut command = world.run_with(
            &flags,
            &[&curl, &["--unix-socket", path.to_str().unwrap()][..]].concat(),
        );
        run::outcome(&mut command).unwrap()
    };
    let version = "/containerd.services.version.v1.Version/Version";
    let h2 = "--http2-prior-knowledge";
    let allowed = run(&[h2, "-d", "", &format!("http://localhost{version}")]);
    assert_eq!(allowed.stdout, " 200", "{allowed}");
    let denied = run(&[
        h2,
        "-d",
        "",
        "http://localhost/containerd.services.tasks.v1.Tasks/Create",
    ]);
    assert!(denied.stdout.ends_with(" 403"), "{denied}");
    let (requests, _listener) = served.join().unwrap();
    assert_eq!(requests, 1, "requests that arrived");
    let tls = run(&["-k", "https://localhost/"]);
    assert!(!tls.status.success(), "{tls}");
    let journal = world.daemon.journal().unwrap();
    assert_eq!(
        journal
            .mentioning("session_end", "TLS to a UNIX socket")
            .count(),
        1
    );
}

/// Answers requests in HTTP/2 on the first two connections; how many came.
fn serve_http2(listener: &UnixListener) -> usize {
    let mut requests = 0;
    for stream in listener.incoming().take(2) {
        let mut stream = stream.unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut preface = [0; h2::PREFACE.len()];
        if stream.read_exact(&mut preface).is_err() {
            continue;
        }
        stream.write_all(&h2::settings(&[])).unwrap();
        while let Ok(Some(frame)) = Frame::read(&mut stream) {
            match frame.kind {
                kind::HEADERS => {
                    requests += 1;
                    let block = h2::block(&[(":status", "200")]);
                    let answer = h2::headers(frame.stream, &block, true);
                    if stream.write_all(&answer).is_err() {
                        break;
                    }
                }
                kind::SETTINGS if frame.flags & h2::END_STREAM == 0 => {
                    let acknowledged = h2::frame(kind::SETTINGS, h2::END_STREAM, 0, &[]);
                    let _ = stream.write_all(&acknowledged);
                }
                _ => {}
            }
        }
    }
    requests
}
