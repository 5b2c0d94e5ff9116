//! Agents that are tagged while they run can try to get away: out of their cgroup, or from under their
//! hooks. It is noticed within a second, recorded, and stopped where that is configured.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use interceptor_tests::{
    daemon::Daemon,
    journal::Line,
    keeper::{self, Keeper},
    run, scratch,
};

use crate::support::ALLOW_ALL;

/// What is noticed is noticed within this, and a little for the test itself to look.
const A_SECOND: Duration = Duration::from_millis(1_200);

/// A shell in a cgroup that interceptor didn't make, which does what it is told.
struct Agent {
    cgroup: PathBuf,
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    _keeper: Keeper,
}

impl Agent {
    fn start() -> Self {
        let cgroup = keeper::cgroup2().unwrap().join(scratch::name("it-leaving"));
        fs::create_dir(&cgroup).unwrap();
        fs::create_dir(cgroup.join("inner")).unwrap();
        let script = "echo 0 >\"$1/cgroup.freeze\"; echo 1 >\"$1/cgroup.kill\"; n=0; \
                      while [ -d \"$1\" ] && [ $n -lt 100 ]; do \
                      rmdir \"$1/inner\" \"$1\"; sleep 0.02; n=$((n+1)); done";
        let keeper = Keeper::of_command(script, [cgroup.as_os_str()]).unwrap();
        let mut shell = Command::new("/bin/bash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Self {
            orders: shell.stdin.take().unwrap(),
            answers: BufReader::new(shell.stdout.take().unwrap()),
            cgroup,
            shell,
            _keeper: keeper,
        };
        agent.order(&format!("echo $$ >{}", agent.procs()));
        agent
    }

    /// Has the shell do something, and waits until it has.
    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}; echo done").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "{order}");
            if line == "done\n" {
                return said;
            }
            said.push_str(&line);
        }
    }

    fn procs(&self) -> String {
        self.cgroup.join("cgroup.procs").display().to_string()
    }

    fn tag(&self, daemon: &Daemon) {
        let cgroup = self.cgroup.to_str().unwrap();
        daemon
            .ask(&["tag", "add", cgroup, "--agent", "runaway"])
            .unwrap();
    }

    fn is_frozen(&self) -> bool {
        let events = fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap();
        events.contains("frozen 1")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = fs::write(self.cgroup.join("cgroup.freeze"), "0");
        let _ = self.shell.wait();
    }
}

/// The record of that name, as soon as it is there, which it has to be within a second of `since`.
fn noticed(daemon: &Daemon, name: &str, since: Instant) -> Line {
    let found = run::wait_for(name, Duration::from_secs(5), || {
        let journal = daemon.journal()?;
        let line = journal.mentioning("event", name).next().cloned();
        Ok(line.map(|line| (line, since.elapsed())))
    });
    let (line, took) = found.unwrap();
    assert!(took < A_SECOND, "{took:?}");
    assert_eq!(line.agent, "runaway");
    line
}

fn outside() -> String {
    let root = keeper::cgroup2().unwrap();
    root.join("cgroup.procs").display().to_string()
}

#[test]
fn a_process_that_leaves_is_told_of() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    let pid = agent.shell.id().to_string();
    // Below it is still in it.
    agent.order(&format!(
        "echo $$ >{}/inner/cgroup.procs",
        agent.cgroup.display()
    ));
    std::thread::sleep(A_SECOND);
    assert!(!daemon.journal().unwrap().mentions("agent_left"));
    let since = Instant::now();
    agent.order(&format!("echo $$ >{}", outside()));
    let left = noticed(&daemon, "agent_left", since);
    assert!(left.mentions(&pid) && left.mentions("bash"), "{left:#?}");
    assert!(left.mentions("inner"), "{left:#?}");
    std::thread::sleep(A_SECOND);
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.mentioning("event", "agent_left").count(), 1);
}

#[test]
fn a_child_that_was_never_seen_inside_is_told_of() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    let since = Instant::now();
    agent.order(&format!(
        "sh -c 'echo $$ >{}; exec sleep 20' & echo",
        outside()
    ));
    let left = noticed(&daemon, "agent_left", since);
    assert!(left.mentions(&agent.shell.id().to_string()), "{left:#?}");
    agent.order("kill %1; echo");
}

#[test]
fn one_that_leaves_and_ends_at_once_and_its_orphans_are_told_of() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    let since = Instant::now();
    // Twice forked, out, with a child that is nobody's, and gone before anybody could look.
    agent.order(&format!(
        "( ( sh -c 'echo $$ >{}; setsid sleep 20 & echo $$ $!' ) & )",
        outside()
    ));
    noticed(&daemon, "agent_left", since);
    let alive = run::wait_for("both", Duration::from_secs(2), || {
        let journal = daemon.journal()?;
        let all: Vec<_> = journal.mentioning("event", "agent_left").cloned().collect();
        let alive = all.iter().find(|line| line.mentions("sleep")).cloned();
        Ok(alive.filter(|_| all.len() == 2))
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", daemon.journal().unwrap()));
    let pid = alive.at("/detail/pid").unwrap().as_str().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

#[test]
fn a_process_that_leaves_is_killed_where_that_is_configured() {
    let daemon = Daemon::configured(ALLOW_ALL, |_| "tags: {on_escape: kill}\n".to_owned()).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    let since = Instant::now();
    writeln!(agent.orders, "echo $$ >{}", outside()).unwrap();
    let left = noticed(&daemon, "agent_left", since);
    assert!(left.mentions("killed"), "{left:#?}");
    run::wait_for("its end", Duration::from_secs(5), || {
        Ok(agent.shell.try_wait()?)
    })
    .unwrap();
}

#[test]
fn a_process_that_leaves_is_put_back_and_frozen_where_that_is_configured() {
    let daemon =
        Daemon::configured(ALLOW_ALL, |_| "tags: {on_escape: freeze}\n".to_owned()).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    let since = Instant::now();
    writeln!(agent.orders, "echo $$ >{}", outside()).unwrap();
    let left = noticed(&daemon, "agent_left", since);
    assert!(left.mentions("frozen"), "{left:#?}");
    let pid = agent.shell.id().to_string();
    let back = fs::read_to_string(agent.procs()).unwrap();
    assert!(back.lines().any(|line| line == pid), "{back}");
    assert!(agent.is_frozen());
    let listed = daemon.ask(&["agents"]).unwrap();
    assert!(listed.contains("frozen"), "{listed}");
    daemon.ask(&["agents", "thaw", "runaway"]).unwrap();
    agent.order("true");
}

/// The pinned links of the one agent.
fn links(daemon: &Daemon) -> PathBuf {
    let root = Path::new("/sys/fs/bpf").join(daemon.instance());
    let version = fs::read_dir(root).unwrap().next().unwrap().unwrap().path();
    let entries = fs::read_dir(version).unwrap().flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("agent-"))
        .unwrap()
}

/// BPF_LINK_DETACH of what is pinned there, as `bpftool link detach` does it.
const DETACH: &str = "
import ctypes, struct, sys
bpf = lambda command, attributes: ctypes.CDLL(None, use_errno=True).syscall(
    {'x86_64': 321, 'aarch64': 280}[__import__('os').uname().machine], command, attributes, len(attributes))
path = ctypes.create_string_buffer(sys.argv[1].encode())
link = bpf(7, struct.pack('QII', ctypes.addressof(path), 0, 0))
assert link >= 0 and bpf(34, struct.pack('I', link)) == 0
";

fn hooks_are_mended(daemon: &mut Daemon, harm: impl FnOnce(&Path)) {
    let mut agent = Agent::start();
    agent.tag(daemon);
    std::thread::sleep(A_SECOND);
    let links = links(daemon);
    let since = Instant::now();
    harm(&links);
    let changed = noticed(daemon, "hooks_changed", since);
    assert!(changed.mentions("agent_connect4"), "{changed:#?}");
    assert!(changed.mentions("frozen"), "{changed:#?}");
    assert!(agent.is_frozen());
    let mut status = daemon.command(["status"]);
    let status = run::outcome(&mut status).unwrap();
    assert_eq!(status.status.code(), Some(3), "{status}");
    assert!(status.stdout.contains("agents thaw runaway"), "{status}");

    daemon.ask(&["agents", "thaw", "runaway"]).unwrap();
    assert_eq!(daemon.command(["status"]).status().unwrap().code(), Some(0));
    // The hooks are there again: a datagram is refused.
    let send = "python3 -c \"import socket; socket.socket(type=2).sendto(b'x', ('192.0.2.9', 9))\"";
    agent.order(&format!("{send} 2>/dev/null"));
    run::wait_for("the refusal", Duration::from_secs(5), || {
        Ok(daemon.journal()?.mentions("udp_refused").then_some(()))
    })
    .unwrap();
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.mentioning("event", "hooks_changed").count(), 1);
}

#[test]
fn a_hook_whose_pin_is_removed_is_attached_again_and_the_agent_frozen() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    hooks_are_mended(&mut daemon, |links| {
        fs::remove_file(links.join("agent_connect4")).unwrap();
    });
}

#[test]
fn a_hook_that_is_detached_is_attached_again_and_the_agent_frozen() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    hooks_are_mended(&mut daemon, |links| {
        let mut command = Command::new("python3");
        command
            .args(["-c", DETACH])
            .arg(links.join("agent_connect4"));
        run::output(&mut command).unwrap();
    });
}

#[test]
fn hooks_that_went_while_no_daemon_ran_are_attached_again() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    let links = links(&daemon);
    daemon.kill().unwrap();
    for entry in fs::read_dir(&links).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
    daemon.restart().unwrap();
    assert!(daemon.ask(&["agents"]).unwrap().contains("runaway"));
    let send = "python3 -c \"import socket; socket.socket(type=2).sendto(b'x', ('192.0.2.9', 9))\"";
    agent.order(&format!("{send} 2>/dev/null"));
    run::wait_for("the refusal", Duration::from_secs(5), || {
        Ok(daemon.journal()?.mentions("udp_refused").then_some(()))
    })
    .unwrap();
}

#[test]
fn a_tag_that_a_killed_daemon_left_half_made_is_finished() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    daemon.kill().unwrap();
    // A connection from before that the daemon had no time to cut, and the note that it stands still.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    agent.order(&format!("echo $$ >{}", outside()));
    agent.order(&format!("exec 9<>/dev/tcp/127.0.0.1/{port}"));
    agent.order(&format!("echo $$ >{}", agent.procs()));
    let note = Path::new("/run").join(daemon.instance()).join("paused");
    fs::write(note, agent.cgroup.as_os_str().as_encoded_bytes()).unwrap();
    fs::write(agent.cgroup.join("cgroup.freeze"), "1").unwrap();

    daemon.restart().unwrap();
    agent.order("true");
    let journal = daemon.journal().unwrap();
    let cut = journal
        .mentioning("event", "old_socket_cut")
        .next()
        .unwrap();
    assert!(cut.mentions(&format!("127.0.0.1:{port}")), "{cut:#?}");
}

#[test]
fn an_agent_that_ends_or_is_untagged_raises_no_alarm() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    run::output(daemon.run_as("short", "true").arg("")).unwrap();
    let agent = Agent::start();
    agent.tag(&daemon);
    std::thread::sleep(A_SECOND);
    daemon.ask(&["tag", "remove", "runaway"]).unwrap();
    std::thread::sleep(A_SECOND);
    let journal = daemon.journal().unwrap();
    for name in ["hooks_changed", "agent_left"] {
        assert!(!journal.mentions(name), "{journal:#?}");
    }
}

#[test]
fn people_freeze_thaw_and_cut() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut agent = Agent::start();
    agent.tag(&daemon);
    daemon.ask(&["agents", "freeze", "runaway"]).unwrap();
    assert!(agent.is_frozen());
    daemon.ask(&["agents", "thaw", "runaway"]).unwrap();
    agent.order("true");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    agent.order(&format!(
        "exec 9<>/dev/tcp/127.0.0.1/{port}; echo hello >&9"
    ));
    let sessions = || daemon.ask_json(&["status"]).unwrap()["sessions"].as_u64();
    run::wait_for("the session", Duration::from_secs(5), || {
        Ok((sessions() == Some(1)).then_some(()))
    })
    .unwrap();
    let cut = daemon.ask_json(&["agents", "cut", "runaway"]).unwrap();
    assert_eq!(cut["connections"], 1, "{cut}");
    run::wait_for("its end", Duration::from_secs(5), || {
        Ok((sessions() == Some(0)).then_some(()))
    })
    .unwrap();
    let journal = daemon.journal().unwrap();
    for name in ["agent_frozen", "agent_thawed", "agent_cut"] {
        let line = journal.mentioning("event", name).next().unwrap();
        assert!(line.mentions("root (uid 0)"), "{line:#?}");
    }
    let unknown = run::outcome(&mut daemon.command(["agents", "freeze", "nobody"])).unwrap();
    assert!(!unknown.status.success());
    assert!(unknown.stderr.contains("runaway"), "{unknown}");
}
