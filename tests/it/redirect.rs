//! The hooks for real: whatever a tagged process connects to goes through interceptor, and it
//! doesn't notice; everybody else isn't touched.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use interceptor_tests::{
    daemon::Daemon,
    keeper::{self, Keeper},
    netns::Outside,
    paths, run, scratch,
};

use crate::support::ALLOW_ALL;

/// An echo server in a namespace of its own.
pub(crate) struct World {
    pub(crate) outside: Outside,
    server: Child,
}

pub(crate) const PORT: u16 = 7_000;

impl World {
    pub(crate) fn new() -> Self {
        let outside = Outside::new().unwrap();
        let mut server = outside
            .command(paths::python().unwrap())
            .arg(paths::client("net.py"))
            .args(["echo", "::", &PORT.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self { outside, server }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A cgroup that interceptor didn't make.
pub(crate) struct Cgroup {
    path: PathBuf,
    _keeper: Keeper,
}

impl Cgroup {
    pub(crate) fn new() -> Self {
        let path = keeper::cgroup2().unwrap().join(scratch::name("it-tagged"));
        fs::create_dir(&path).unwrap();
        let keeper = Keeper::of_command("rmdir \"$1\"", [path.as_os_str()]).unwrap();
        Self {
            path,
            _keeper: keeper,
        }
    }

    /// `program`, to be started inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""])
            .arg(&self.path)
            .arg(program);
        command
    }

    /// `net.py` inside.
    fn net(&self, arguments: &[&str]) -> String {
        let mut command = self.command(paths::python().unwrap());
        command.arg(paths::client("net.py")).args(arguments);
        run::output(&mut command).unwrap()
    }

    pub(crate) fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// `net.py` in no tagged cgroup.
fn untagged(arguments: &[&str]) -> String {
    let mut command = Command::new(paths::python().unwrap());
    command.arg(paths::client("net.py")).args(arguments);
    run::output(&mut command).unwrap()
}

/// `net.py` under `interceptor run`.
fn agent(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = daemon.run_as("net", paths::python().unwrap());
    command.arg(paths::client("net.py")).args(arguments);
    run::output(&mut command).unwrap()
}

fn sessions(daemon: &Daemon) -> usize {
    daemon.journal().unwrap().of_kind("session_start").count()
}

#[test]
fn every_kind_of_address_is_redirected_and_answers_as_itself() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let port = PORT.to_string();
    let v4 = world.outside.address_v4();
    let v6 = world.outside.address_v6();
    for (asked, destination) in [
        (v4.clone(), format!("{v4}:{PORT}")),
        (v6.clone(), format!("[{v6}]:{PORT}")),
        (format!("::ffff:{v4}"), format!("{v4}:{PORT}")),
    ] {
        let seen = agent(&daemon, &["peer", &asked, &port]);
        assert_eq!(seen, format!("{asked} {PORT}\nport {PORT} got ping\n\n"));
        let journal = daemon.journal().unwrap();
        let last = journal.of_kind("session_start").last().unwrap();
        assert!(last.mentions(&destination), "{last:#?}");
        assert_eq!(last.agent, "net");
    }
    assert_eq!(sessions(&daemon), 3);
}

#[test]
fn loopback_is_redirected_too() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut connection, b"loop").unwrap();
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).unwrap();
    });
    let seen = agent(&daemon, &["peer", "127.0.0.1", &port.to_string()]);
    server.join().unwrap();
    assert_eq!(seen, format!("127.0.0.1 {port}\nloop\n"));
    assert_eq!(sessions(&daemon), 1);
}

#[test]
fn a_thousand_reconnects_each_go_where_they_asked() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let seen = agent(
        &daemon,
        &[
            "many",
            &world.outside.address_v4(),
            &PORT.to_string(),
            "1000",
        ],
    );
    assert_eq!(seen, "all right\n");
    assert_eq!(sessions(&daemon), 1_000);
}

#[test]
fn a_cgroup_is_tagged_listed_and_untagged() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let arguments = ["peer", &world.outside.address_v4(), &PORT.to_string()];

    cgroup.net(&arguments);
    assert_eq!(sessions(&daemon), 0, "not tagged yet");
    daemon
        .ask(&[
            "tag",
            "add",
            cgroup.name(),
            "--agent",
            "tagged",
            "--label",
            "team=red",
        ])
        .unwrap();
    let listed = daemon.ask(&["tag", "list"]).unwrap();
    assert!(
        listed.contains("tagged") && listed.contains("team=red"),
        "{listed}"
    );
    cgroup.net(&arguments);
    untagged(&arguments);
    assert_eq!(sessions(&daemon), 1, "only the tagged one");
    daemon.ask(&["tag", "remove", "tagged"]).unwrap();
    assert!(!daemon.ask(&["tag", "list"]).unwrap().contains("tagged"));
    cgroup.net(&arguments);
    assert_eq!(sessions(&daemon), 1, "no longer tagged");
}

#[test]
fn a_killed_daemon_stops_the_tagged_and_nobody_else_and_is_adopted() {
    let world = World::new();
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let arguments = ["peer", &world.outside.address_v4(), &PORT.to_string()];
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "tagged"])
        .unwrap();
    let right = cgroup.net(&arguments);

    daemon.kill().unwrap();
    let start = Instant::now();
    let refused = cgroup.net(&arguments);
    assert!(
        refused == "error ECONNREFUSED\n" || refused == "error EPERM\n",
        "{refused}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "it failed at once"
    );
    assert_eq!(untagged(&arguments), right, "nobody else notices");

    daemon.restart().unwrap();
    assert!(daemon.ask(&["tag", "list"]).unwrap().contains("tagged"));
    assert_eq!(cgroup.net(&arguments), right, "adopted");
    assert_eq!(sessions(&daemon), 2);
}

#[test]
fn raw_sockets_are_refused() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let seen = agent(&daemon, &["raw", "127.0.0.1", "0"]);
    assert_eq!(seen.lines().count(), 5);
    assert!(seen.lines().all(|line| line.ends_with("refused")), "{seen}");
}

#[test]
fn datagrams_are_refused_and_recorded() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for address in [world.outside.address_v4(), world.outside.address_v6()] {
        let seen = agent(&daemon, &["udp", &address, "9000"]);
        assert!(seen.starts_with("error "), "{seen}");
        let journal = run::wait_for("the event", Duration::from_secs(5), || {
            let journal = daemon.journal()?;
            let found = journal.mentioning("event", &address).next().is_some();
            Ok(found.then_some(journal))
        })
        .unwrap();
        let event = journal.mentioning("event", &address).next().unwrap();
        assert!(event.mentions("udp_refused"), "{event:#?}");
        assert_eq!(event.agent, "net");
    }
}

#[test]
fn a_flood_of_refusals_is_recorded_as_a_number_and_holds_nobody_up() {
    const SENT: u64 = 200_000;
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let script = format!(
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range({SENT}):
    try: s.sendto(b'x', ('192.0.2.9', 9))
    except OSError: pass"
    );
    let flood = run::start(daemon.run_as("flooder", "python3").args(["-c", &script])).unwrap();
    // Meanwhile others are served.
    agent(
        &daemon,
        &["peer", &world.outside.address_v4(), &PORT.to_string()],
    );
    flood.outcome().unwrap().success().unwrap();
    let counted = |daemon: &Daemon| {
        let journal = daemon.journal().unwrap();
        let number = |line: &interceptor_tests::journal::Line, name| {
            line.at(name)
                .and_then(|value| value.as_str()?.parse::<u64>().ok())
        };
        let (mut lines, mut sum) = (0, 0);
        for line in journal.of_kind("event") {
            if line.mentions("udp_refused") {
                lines += 1;
                sum += number(line, "/detail/more").unwrap_or(1);
            } else if line.mentions("refusals_uncounted") {
                sum += number(line, "/detail/count").unwrap();
            }
        }
        (lines, sum)
    };
    let lines = run::wait_for("the flood to be counted", Duration::from_secs(10), || {
        let (lines, sum) = counted(&daemon);
        Ok((sum == SENT).then_some(lines))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", counted(&daemon)));
    assert!(lines < 5_000, "{lines} lines");
}

#[test]
fn the_exit_status_is_the_commands() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for code in [0, 1, 42] {
        let mut command = daemon.run_as("status", "sh");
        let outcome = run::outcome(command.args(["-c", &format!("exit {code}")])).unwrap();
        assert_eq!(outcome.status.code(), Some(code));
    }
}

#[test]
fn a_launched_agent_outlives_its_killed_launcher_under_guard_and_is_cleared_when_it_ends() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut launcher = run::start(daemon.run_as("orphan", "sleep").arg("600")).unwrap();
    let kill = |pid: i32| {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
    };
    let processes = || {
        let listed = daemon.ask_json(&["tag", "list"]).unwrap();
        let cgroup = listed.get(0)?["cgroup"].as_str()?.to_owned();
        let procs = std::fs::read_to_string(format!("{cgroup}/cgroup.procs")).ok()?;
        procs.lines().next()?.parse::<i32>().ok()
    };
    let sleep = run::wait_for("the agent", Duration::from_secs(10), || Ok(processes())).unwrap();
    kill(launcher.pid().unwrap().try_into().unwrap());
    run::wait_for("the launcher's end", Duration::from_secs(10), || {
        Ok((!launcher.is_running()?).then_some(()))
    })
    .unwrap();
    assert_eq!(processes(), Some(sleep), "it still runs, under guard");
    kill(sleep);
    run::wait_for("the agent to be cleared", Duration::from_secs(30), || {
        let listed = daemon.ask_json(&["tag", "list"])?;
        Ok(listed.as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .unwrap();
    assert!(
        daemon
            .journal()
            .unwrap()
            .mentions("nothing of it runs any more")
    );
}
