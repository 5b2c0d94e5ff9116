//! `interceptor doctor`: it tries things out for real, and leaves nothing behind.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use interceptor_tests::{daemon::Daemon, host, keeper, paths, run};
use serde_json::Value;

use crate::{redirect::Cgroup, support::ALLOW_ALL};

/// A user that may do nothing.
const NOBODY: u32 = 65_534;

/// What `doctor` says, and its exit status.
fn guards(command: &mut Command) -> (Vec<Value>, Option<i32>) {
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let guards = serde_json::from_slice(&output.stdout).unwrap();
    assert_nothing_is_left(pid);
    (guards, output.status.code())
}

/// The guard of that name.
#[track_caller]
fn find<'a>(guards: &'a [Value], name: &str) -> &'a Value {
    guards
        .iter()
        .find(|guard| guard["guard"] == name)
        .unwrap_or_else(|| panic!("no guard {name} in {guards:#?}"))
}

/// Nothing of the process `pid`, which was a doctor, is left; others may be at work at the same time.
fn assert_nothing_is_left(pid: u32) {
    for folder in [
        keeper::cgroup2().unwrap().as_path(),
        Path::new("/sys/fs/bpf"),
        Path::new("/sys/kernel/tracing/instances"),
        Path::new("/run"),
    ] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let left: Vec<String> = names
            .filter(|name| name.contains(&format!("interceptor-doctor-{pid}")))
            .collect();
        assert_eq!(left, [""; 0], "{}", folder.display());
    }
}

#[test]
fn a_host_is_examined_with_and_without_a_daemon() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let (with, code) = guards(&mut daemon.command(["-o", "json", "doctor"]));
    for name in [
        "kernel",
        "cgroup v2",
        "pins",
        "TCP connects",
        "UDP that is sent",
        "kinds of sockets",
        "socket options",
        "packets that leave",
        "packets that arrive",
        "network namespaces told apart",
        "sockets from before the tag are found",
        "connections are cut",
        "daemon",
        "the certificate authority's key",
        "control socket",
    ] {
        assert_eq!(find(&with, name)["state"], "in_force", "{with:#?}");
    }
    let is_whole = with.iter().all(|guard| guard["state"] == "in_force");
    assert_eq!(code, Some(if is_whole { 0 } else { 3 }));
    for guard in &with {
        let is_in_force = guard["state"] == "in_force";
        assert_eq!(guard["remedy"] == "", is_in_force, "{guard:#}");
        assert_ne!(guard["rests_on"], "", "{guard:#}");
    }

    daemon.stop().unwrap();
    let mut alone = daemon.command(["-o", "json", "doctor", "--config"]);
    let (without, _) = guards(alone.arg(daemon.configuration()));
    assert_eq!(find(&without, "daemon")["state"], "in_force");
    assert!(
        find(&without, "daemon")["rests_on"]
            .as_str()
            .unwrap()
            .contains("nobody is tagged")
    );
}

#[test]
fn an_agent_whose_hooks_are_taken_away_is_told_of() {
    let mut daemon = Daemon::configured(ALLOW_ALL, |_| String::new()).unwrap();
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "plucked"])
        .unwrap();
    let mut sleeper = cgroup.command("sleep").arg("60").spawn().unwrap();
    let is_in = || {
        let procs = fs::read_to_string(Path::new(cgroup.name()).join("cgroup.procs")).unwrap();
        Ok((!procs.is_empty()).then_some(()))
    };
    run::wait_for(
        "it to be in its cgroup",
        std::time::Duration::from_secs(5),
        is_in,
    )
    .unwrap();
    let (before, code) = guards(&mut daemon.command(["-o", "json", "doctor"]));
    assert_eq!(find(&before, "plucked: hooks")["state"], "in_force");
    let hooks = find(&before, host::UNIX_HOOKS);
    assert_eq!(
        find(&before, "plucked: UNIX sockets")["state"],
        hooks["state"]
    );
    let rights = find(&before, "plucked: capabilities");
    assert_eq!(
        rights["state"], "weaker",
        "root in a tagged cgroup may leave"
    );
    assert!(
        rights["rests_on"]
            .as_str()
            .unwrap()
            .contains("CAP_SYS_ADMIN")
    );
    assert_eq!(code, Some(3));

    // The daemon would mend it at once.
    daemon.kill().unwrap();
    let pins = Path::new("/sys/fs/bpf").join(daemon.instance());
    let abi = fs::read_dir(&pins).unwrap().next().unwrap().unwrap().path();
    let agent = fs::read_dir(&abi)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("agent-"))
        .unwrap();
    fs::remove_file(agent.path().join("agent_connect6")).unwrap();
    fs::write(
        daemon.configuration(),
        format!("instance: {}\n", daemon.instance()),
    )
    .unwrap();
    let mut alone = daemon.command(["-o", "json", "doctor", "--config"]);
    let (after, code) = guards(alone.arg(daemon.configuration()));
    let hooks = find(&after, "plucked: hooks");
    assert_eq!(hooks["state"], "missing");
    assert!(
        hooks["rests_on"]
            .as_str()
            .unwrap()
            .contains("agent_connect6")
    );
    assert_eq!(
        find(&after, "daemon")["state"],
        "missing",
        "agents are refused"
    );
    assert_eq!(code, Some(3));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn who_is_not_root_is_told_what_cannot_be_seen() {
    let mut command = Command::new(paths::interceptor().unwrap());
    command
        .args([
            "--control",
            "/nonexistent/control.sock",
            "-o",
            "json",
            "doctor",
        ])
        .uid(NOBODY)
        .gid(NOBODY);
    let (guards, code) = guards(&mut command);
    let hooks = find(&guards, "maps and programs");
    assert_eq!(hooks["state"], "unseen");
    assert!(hooks["remedy"].as_str().unwrap().contains("as root"));
    assert_eq!(find(&guards, "cgroup v2")["state"], "in_force");
    assert_eq!(code, Some(3));
}
