//! Agents in network namespaces of their own: intercepted there, dialled from there, let go of afterwards.

use std::{
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use interceptor_tests::{
    daemon::Daemon,
    dns::Dns,
    journal::{Journal, Line},
    keeper::{self, Keeper},
    netns::Inside,
    paths,
    run::{self, Running},
};

use crate::{
    redirect::{Cgroup, PORT, World},
    support::ALLOW_ALL,
};

const OWN: [&str; 2] = ["198.51.100.2/30", "2001:db8:1::2/64"];
const NEIGHBOUR: [&str; 2] = ["198.51.100.1/30", "2001:db8:1::1/64"];
/// The neighbour, as agents connect to it.
const SERVER: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

fn tag(daemon: &Daemon, cgroup: &Cgroup, agent: &str) {
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", agent])
        .unwrap();
}

/// `program` in `cgroup` and `inside`.
fn command(cgroup: &Cgroup, inside: &Inside, program: &str) -> Command {
    let mut command = cgroup.command("nsenter");
    command.args([&inside.entry(), program]);
    command
}

/// A process of `cgroup` that does nothing `inside`.
fn sleeper(cgroup: &Cgroup, inside: &Inside) -> Running {
    let sleeper = run::start(command(cgroup, inside, "sleep").arg("600")).unwrap();
    // It is inside when it runs what it is to run.
    run::wait_for("a process inside", Duration::from_secs(5), || {
        let pid = sleeper.pid();
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.unwrap_or(0)));
        Ok(name.is_ok_and(|name| name == "sleep\n").then_some(()))
    })
    .unwrap();
    sleeper
}

/// What `net.py peer` says in `cgroup` and `inside`.
fn peer(cgroup: &Cgroup, inside: &Inside, address: &str) -> String {
    let mut command = command(cgroup, inside, paths::python().unwrap().to_str().unwrap());
    command
        .arg(paths::client("net.py"))
        .args(["peer", address, &PORT.to_string()]);
    run::output(&mut command).unwrap()
}

/// `namespace.py` in `cgroup` and `inside`.
fn until_served(cgroup: &Cgroup, inside: &Inside, address: &str) -> String {
    let mut command = command(cgroup, inside, paths::python().unwrap().to_str().unwrap());
    command
        .arg(paths::client("namespace.py"))
        .args(["here", address, &PORT.to_string()]);
    run::output(&mut command).unwrap()
}

fn answer(address: &str) -> String {
    format!("{address} {PORT}\nport {PORT} got ping\n\n")
}

fn sessions(journal: &Journal) -> Vec<&Line> {
    journal.of_kind("session_start").collect()
}

/// The cookie of the network namespace that a session is in.
fn namespace(journal: &Journal, session: &Line) -> Option<u64> {
    let mut notices = journal.mentioning("event", "network_namespace");
    let notice = notices.find(|notice| notice.session == session.session)?;
    notice.at("/detail/cookie")?.as_str()?.parse().ok()
}

/// The namespaces of all sessions.
fn namespaces(journal: &Journal) -> Vec<Option<u64>> {
    let sessions = journal.of_kind("session_start");
    sessions
        .map(|session| namespace(journal, session))
        .collect()
}

/// Waits until it is on record that `event` was for `agent`, `count` times.
fn recorded(daemon: &Daemon, event: &str, agent: &str, count: usize) -> Journal {
    run::wait_for(event, Duration::from_secs(10), || {
        let journal = daemon.journal()?;
        let found = journal.mentioning("event", event);
        let found = found.filter(|line| line.agent == agent).count();
        Ok((found >= count).then_some(journal))
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", daemon.journal()))
}

#[test]
fn what_is_in_a_namespace_of_its_own_when_it_is_tagged_is_intercepted_from_the_first_connect() {
    let world = World::new();
    let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let _sleeper = sleeper(&cgroup, &inside);
    tag(&daemon, &cgroup, "inside");
    let [v4, v6] = SERVER;
    let mapped = format!("::ffff:{v4}");
    for address in [v4, v6, &mapped] {
        assert_eq!(peer(&cgroup, &inside, address), answer(address));
    }
    let journal = daemon.journal().unwrap();
    let sessions = sessions(&journal);
    let destinations = [
        format!("{v4}:{PORT}"),
        format!("[{v6}]:{PORT}"),
        format!("{v4}:{PORT}"),
    ];
    assert_eq!(sessions.len(), destinations.len());
    for (session, destination) in sessions.iter().zip(destinations) {
        assert!(session.mentions(&destination), "{session:#?}");
        assert_eq!(session.agent, "inside");
        assert!(namespace(&journal, session).is_some(), "{session:#?}");
    }
    assert_eq!(journal.mentioning("event", "namespace_served").count(), 1);
    assert!(!journal.mentions("connect_refused"), "{journal:#?}");
    // Who isn't tagged isn't touched there.
    let mut untagged = Command::new("nsenter");
    untagged
        .arg(inside.entry())
        .arg(paths::python().unwrap())
        .arg(paths::client("net.py"))
        .args(["peer", v4, &PORT.to_string()]);
    assert_eq!(run::output(&mut untagged).unwrap(), answer(v4));
    assert_eq!(
        daemon.journal().unwrap().of_kind("session_start").count(),
        3
    );
}

#[test]
fn a_namespace_that_appears_later_is_refused_until_it_is_served_within_milliseconds() {
    const ROUNDS: usize = 5;
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "later");
    let mut fastest = f64::MAX;
    for _ in 0..ROUNDS {
        let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
        let said = until_served(&cgroup, &inside, SERVER[0]);
        eprintln!("{said}");
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words[..1], ["refused"], "{said}");
        assert!(said.contains(&format!("port {PORT} got ping")), "{said}");
        if words[1] != "0" {
            fastest = fastest.min(words[4].parse().unwrap());
        }
    }
    assert!(fastest < 100.0, "{fastest} ms");
    let journal = daemon.journal().unwrap();
    assert!(journal.mentions("connect_refused_unarmed"));
    assert_eq!(sessions(&journal).len(), ROUNDS);
}

#[test]
fn unshare_leads_nowhere_that_isnt_decided() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "alone");
    let server = world.outside.address_v4();
    let mut alone = cgroup.command(paths::python().unwrap());
    alone
        .arg(paths::client("namespace.py"))
        .args(["unshare", &server, &PORT.to_string()]);
    let said = run::output(&mut alone).unwrap();
    assert!(!said.contains("got ping"), "{said}");
    // What it attempted is on record, and that from there nothing leads to it.
    let journal = daemon.journal().unwrap();
    let [session] = sessions(&journal)[..] else {
        panic!("{journal:#?}")
    };
    assert!(
        session.mentions(&format!("{server}:{PORT}")),
        "{session:#?}"
    );
    run::wait_for("the session's end", Duration::from_secs(10), || {
        let journal = daemon.journal()?;
        let end = journal.of_kind("session_end").next();
        Ok(end
            .is_some_and(|end| end.mentions("unreachable"))
            .then_some(()))
    })
    .unwrap();
}

#[test]
fn a_namespace_ends_with_its_last_process_and_is_served_no_longer() {
    let world = World::new();
    let mut inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let sleeper = sleeper(&cgroup, &inside);
    tag(&daemon, &cgroup, "passing");
    for server in SERVER {
        assert_eq!(peer(&cgroup, &inside, server), answer(server));
    }
    inside.forget();
    // The sleeper keeps it.
    thread::sleep(Duration::from_millis(500));
    assert!(inside.is_reached_from(&world.outside));
    drop(sleeper);
    recorded(&daemon, "namespace_released", "passing", 1);
    run::wait_for("the namespace to end", Duration::from_secs(5), || {
        Ok((!inside.is_reached_from(&world.outside)).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_killed_daemon_stops_it_and_the_next_one_serves_it_again() {
    let world = World::new();
    let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let _sleeper = sleeper(&cgroup, &inside);
    tag(&daemon, &cgroup, "kept");
    assert_eq!(peer(&cgroup, &inside, SERVER[0]), answer(SERVER[0]));
    daemon.kill().unwrap();
    let refused = peer(&cgroup, &inside, SERVER[0]);
    assert!(
        ["error ECONNREFUSED\n", "error EPERM\n"].contains(&&*refused),
        "{refused}"
    );
    daemon.restart().unwrap();
    // Nobody has to be refused for it.
    recorded(&daemon, "namespace_served", "kept", 2);
    assert_eq!(peer(&cgroup, &inside, SERVER[0]), answer(SERVER[0]));
    assert_eq!(
        daemon.journal().unwrap().of_kind("session_start").count(),
        2
    );
    // One that ends in order lets go at once.
    daemon.stop().unwrap();
    assert_eq!(peer(&cgroup, &inside, SERVER[0]), "error EPERM\n");
}

#[test]
fn twenty_namespaces_at_once_are_served_side_by_side() {
    const NAMESPACES: usize = 20;
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "many");
    let insides: Vec<(Inside, String)> = (0..NAMESPACES)
        .map(|number| {
            let [own, neighbour] =
                [2, 1].map(|last| format!("198.51.100.{}/30", number * 4 + last));
            let inside = Inside::joined_to(&world.outside, &[&own], &[&neighbour]).unwrap();
            (inside, neighbour.trim_end_matches("/30").to_owned())
        })
        .collect();
    thread::scope(|scope| {
        for (inside, server) in &insides {
            scope.spawn(|| {
                let said = until_served(&cgroup, inside, server);
                assert!(said.contains("got ping"), "{said}");
            });
        }
    });
    let journal = daemon.journal().unwrap();
    let mut namespaces: Vec<u64> = namespaces(&journal).into_iter().flatten().collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    assert_eq!(namespaces.len(), NAMESPACES);
    recorded(&daemon, "namespace_released", "many", NAMESPACES);
}

#[test]
fn two_agents_share_a_namespace_and_each_has_its_own_sessions() {
    let world = World::new();
    let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroups = [Cgroup::new(), Cgroup::new()];
    let first = sleeper(&cgroups[0], &inside);
    let _second = sleeper(&cgroups[1], &inside);
    tag(&daemon, &cgroups[0], "one");
    tag(&daemon, &cgroups[1], "two");
    for cgroup in &cgroups {
        assert_eq!(peer(cgroup, &inside, SERVER[0]), answer(SERVER[0]));
    }
    // One leaves, and the other stays served.
    drop(first);
    daemon.ask(&["tag", "remove", "one"]).unwrap();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(peer(&cgroups[1], &inside, SERVER[0]), answer(SERVER[0]));
    let journal = daemon.journal().unwrap();
    let agents: Vec<&str> = journal
        .of_kind("session_start")
        .map(|session| &*session.agent)
        .collect();
    assert_eq!(agents, ["one", "two", "two"]);
    assert_eq!(journal.mentioning("event", "namespace_served").count(), 1);
    assert!(!journal.mentions("namespace_released"));
}

#[test]
fn the_same_address_in_two_namespaces_is_two_servers() {
    let worlds = [World::new(), World::new()];
    let insides = worlds
        .each_ref()
        .map(|world| Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap());
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let _sleepers = insides.each_ref().map(|inside| sleeper(&cgroup, inside));
    tag(&daemon, &cgroup, "twofold");
    for inside in &insides {
        assert_eq!(peer(&cgroup, inside, SERVER[0]), answer(SERVER[0]));
    }
    // With the first server gone only the second one answers.
    let [first, second] = worlds;
    drop(first);
    let said = until_served(&cgroup, &insides[0], SERVER[0]);
    assert!(!said.contains("got ping"), "{said}");
    assert_eq!(peer(&cgroup, &insides[1], SERVER[0]), answer(SERVER[0]));
    drop(second);
    let journal = daemon.journal().unwrap();
    let namespaces = namespaces(&journal);
    let [Some(a), Some(b), Some(c), Some(d)] = namespaces[..] else {
        panic!("{namespaces:?}")
    };
    assert_ne!(a, b);
    assert_eq!((a, b), (c, d));
}

#[test]
fn a_namespace_with_one_family_alone_is_served_in_it() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    tag(&daemon, &cgroup, "single");
    for family in 0..2 {
        let inside = Inside::joined_to(
            &world.outside,
            &OWN[family..=family],
            &NEIGHBOUR[family..=family],
        )
        .unwrap();
        if family == 0 {
            let mut disable = Command::new("nsenter");
            disable
                .arg(inside.entry())
                .args(["sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1"]);
            run::output(&mut disable).unwrap();
        }
        let said = until_served(&cgroup, &inside, SERVER[family]);
        assert!(said.contains("got ping"), "{said}");
        // And the other one is refused or leads nowhere, at once.
        let said = peer(&cgroup, &inside, SERVER[1 - family]);
        assert!(!said.contains("got ping"), "{said}");
    }
    let journal = daemon.journal().unwrap();
    for server in SERVER {
        let found = journal.mentioning("session_start", server).next();
        assert!(found.is_some(), "{journal:#?}");
    }
}

#[test]
fn queries_go_to_the_server_that_is_meant_there_and_prove_nothing() {
    let world = World::new();
    let dns = Dns::start(&world.outside).unwrap();
    let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    let _sleeper = sleeper(&cgroup, &inside);
    tag(&daemon, &cgroup, "asking");
    let web = &dns.servers()[0];
    for server in SERVER {
        for way in ["+notcp", "+tcp"] {
            let mut dig = command(&cgroup, &inside, "dig");
            dig.args(["+short", "+time=5", "+tries=1", way]);
            dig.args([&format!("@{server}"), "web.test"]);
            assert_eq!(run::output(&mut dig).unwrap().trim(), web);
        }
    }
    // A resolv.conf of its own, as containers have.
    let file = dns.folder().join("inside");
    std::fs::write(&file, format!("nameserver {}\n", SERVER[0])).unwrap();
    let mut resolve = command(&cgroup, &inside, "unshare");
    resolve
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$0\" /etc/resolv.conf && exec getent ahostsv4 web.test")
        .arg(&file);
    assert!(run::output(&mut resolve).unwrap().contains(web));
    let journal = daemon.journal().unwrap();
    assert!(journal.mentioning("operation", "web.test").count() >= 5);
    assert!(namespaces(&journal).iter().all(Option::is_some));
    // Whoever arranges a namespace can have its server say anything.
    assert!(journal.mentioning("event", "dns_untrusted").count() >= 5);
}

#[test]
fn the_operators_dns_server_is_asked_from_the_daemons_own_network() {
    let world = World::new();
    let dns = Dns::start(&world.outside).unwrap();
    // No way leads from inside to the address that the host knows it by.
    let [server, _] = dns.servers();
    let daemon =
        Daemon::configured(ALLOW_ALL, |_| format!("dns: {{servers: [\"{server}\"]}}\n")).unwrap();
    let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
    let cgroup = Cgroup::new();
    let _sleeper = sleeper(&cgroup, &inside);
    tag(&daemon, &cgroup, "asking");
    // Nothing answers at the address that is meant.
    for meant in ["198.51.100.200", server] {
        for way in ["+notcp", "+tcp"] {
            let mut dig = command(&cgroup, &inside, "dig");
            dig.args(["+short", "+time=5", "+tries=1", way]);
            dig.args([&format!("@{meant}"), "web.test"]);
            assert_eq!(
                run::output(&mut dig).unwrap().trim(),
                server,
                "{meant} {way}"
            );
        }
    }
    assert!(!daemon.journal().unwrap().mentions("dns_untrusted"));
}

/// A container of crun's, with its cgroup in the hierarchy that interceptor knows.
struct Container {
    id: String,
    folder: std::path::PathBuf,
    _keeper: Keeper,
}

/// crun wants cgroup v2 where it is usually mounted, which on this host it needn't be; so it gets a mount
/// namespace of its own. `$0` is where cgroup v2 is, `$1` crun's own folder.
const CRUN: &str = concat!(
    "mount --bind \"$0\" /sys/fs/cgroup && root=$1 && shift && ",
    "exec crun --root \"$root\" --cgroup-manager=cgroupfs \"$@\"",
);

impl Container {
    /// One in the network namespace `inside`, in which `sleep` runs.
    fn start(inside: &Inside) -> Self {
        let folder = interceptor_tests::scratch::folder("crun").unwrap();
        // As engines make them: 64 digits, of which the first differ.
        let name = interceptor_tests::scratch::name("");
        let digits: Vec<u32> = name
            .split('-')
            .filter_map(|part| part.parse().ok())
            .collect();
        let id = format!("{:0<64}", format!("{:08x}{:04x}", digits[0], digits[1]));
        for name in ["bin", "dev", "proc"] {
            std::fs::create_dir_all(folder.join("rootfs").join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", folder.join("rootfs/bin/busybox")).unwrap();
        let network = inside.entry().replace("--net=", "");
        let configuration = serde_json::json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/busybox", "sleep", "600"],
                "cwd": "/",
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "network", "path": network},
            ]},
        });
        std::fs::write(folder.join("config.json"), configuration.to_string()).unwrap();
        let cgroup = keeper::cgroup2().unwrap().join(&id);
        let keeper = Keeper::of_command(
            "echo 1 >\"$1/cgroup.kill\"; sleep 0.2; rmdir \"$1\"; rm -rf -- \"$2\"",
            [cgroup.as_os_str(), folder.as_os_str()],
        )
        .unwrap();
        let container = Self {
            id,
            folder,
            _keeper: keeper,
        };
        let bundle = container.folder.to_str().unwrap();
        let run = ["run", "--detach", "--bundle", bundle, &container.id];
        // Whoever detaches leaves its output to the container.
        let output = std::fs::File::create(container.folder.join("output")).unwrap();
        let status = container
            .crun(&run)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .status()
            .unwrap();
        let said = std::fs::read_to_string(container.folder.join("output")).unwrap();
        assert!(status.success(), "{said}");
        container
    }

    fn crun(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", CRUN])
            .arg(keeper::cgroup2().unwrap())
            .arg(self.folder.join("state"))
            .args(arguments);
        command
    }

    /// What the server says to who connects from within.
    fn asks(&self, address: &str) -> String {
        let script = format!("echo ping | /bin/busybox nc -w 5 {address} {PORT}");
        let mut exec = self.crun(&["exec", &self.id, "/bin/busybox", "sh", "-c", &script]);
        run::outcome(&mut exec).unwrap().stdout
    }
}

#[test]
fn a_container_is_found_by_its_id_or_its_name_and_intercepted() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for by_name in [false, true] {
        let inside = Inside::joined_to(&world.outside, &OWN, &NEIGHBOUR).unwrap();
        let container = Container::start(&inside);
        // An engine that knows it by a name.
        let bin = container.folder.join("bin");
        std::fs::create_dir(&bin).unwrap();
        let engine = bin.join("podman");
        let script = format!(
            "#!/bin/sh\n[ \"$*\" = 'container inspect nightly' ] && echo '[{{\"Id\": \"{}\"}}]'\n",
            container.id
        );
        std::fs::write(&engine, script).unwrap();
        std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
        let wanted = if by_name {
            "nightly"
        } else {
            &container.id[..12]
        };
        let mut add = daemon.command(["tag", "add", "--container", wanted, "--agent", "boxed"]);
        add.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        run::output(&mut add).unwrap();
        let listed = daemon.ask(&["tag", "list"]).unwrap();
        assert!(listed.contains(&container.id), "{listed}");
        let answer = format!("port {PORT} got ping\n");
        for server in SERVER {
            assert_eq!(container.asks(server), answer);
        }
        daemon.ask(&["tag", "remove", "boxed"]).unwrap();
    }
    let journal = daemon.journal().unwrap();
    let sessions = sessions(&journal);
    assert_eq!(sessions.len(), 4);
    for session in sessions {
        assert!(session.mentions("busybox"), "{session:#?}");
        assert!(namespace(&journal, session).is_some());
    }
}

#[test]
fn a_unit_is_found_by_its_name_and_what_isnt_there_is_said() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let slice = keeper::cgroup2().unwrap().join(format!(
        "{}.slice",
        interceptor_tests::scratch::name("itunits")
    ));
    let name = interceptor_tests::scratch::name("itworker");
    let unit = slice.join(format!("{name}.service"));
    let users = slice.join("user@1.service").join(format!("{name}.service"));
    std::fs::create_dir_all(&users).unwrap();
    std::fs::create_dir(&unit).unwrap();
    let _keeper =
        Keeper::of_command("rmdir \"$1\"/*/* \"$1\"/* \"$1\"", [slice.as_os_str()]).unwrap();
    daemon
        .ask(&["tag", "add", "--unit", &name, "--agent", "worker"])
        .unwrap();
    let listed = daemon.ask(&["tag", "list"]).unwrap();
    assert!(listed.contains(unit.to_str().unwrap()), "{listed}");
    for (option, remedy) in [("--unit", "systemctl status"), ("--container", "--pid")] {
        let mut add = daemon.command(["tag", "add", option, "itnothing", "--agent", "none"]);
        let outcome = run::outcome(&mut add).unwrap();
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("itnothing"), "{outcome:?}");
        assert!(outcome.stderr.contains(remedy), "{outcome:?}");
    }
    let mut add = daemon.command(["tag", "add", "--container", "-v", "--agent", "none"]);
    assert!(!run::outcome(&mut add).unwrap().status.success());
}

#[test]
fn a_unit_that_starts_again_is_the_same_agent_again_until_somebody_says_otherwise() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let name = interceptor_tests::scratch::name("itagain");
    let slice = keeper::cgroup2().unwrap().join(format!("{name}.slice"));
    let unit = slice.join(format!("{name}.service"));
    std::fs::create_dir_all(&unit).unwrap();
    let _keeper = Keeper::of_command("rmdir \"$1\"/* \"$1\"", [slice.as_os_str()]).unwrap();
    daemon
        .ask(&["tag", "add", "--unit", &name, "--agent", "worker"])
        .unwrap();
    let server = world.outside.address_v4();
    let asks = || {
        let script = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(&unit)
            .arg(paths::python().unwrap())
            .arg(paths::client("net.py"))
            .args(["peer", &server, &PORT.to_string()]);
        assert_eq!(run::output(&mut command).unwrap(), answer(&server));
        let journal = daemon.journal().unwrap();
        journal.of_kind("session_start").count()
    };
    let is_away = || {
        let listed = daemon.ask_json(&["tag", "list"]).unwrap();
        listed[0]["away"].as_bool()
    };
    assert_eq!(asks(), 1);
    for round in 1..=3 {
        std::fs::remove_dir(&unit).unwrap();
        assert_eq!(is_away(), Some(true));
        std::fs::create_dir(&unit).unwrap();
        let journal = recorded(&daemon, "agent_returned", "worker", round);
        assert_eq!(journal.mentioning("event", "agent_away").count(), round);
        assert_eq!(is_away(), Some(false));
        assert_eq!(asks(), 1 + round);
    }
    std::fs::remove_dir(&unit).unwrap();
    assert_eq!(is_away(), Some(true));
    daemon.ask(&["tag", "remove", "worker"]).unwrap();
    assert_eq!(is_away(), None);
    std::fs::create_dir(&unit).unwrap();
    assert_eq!(asks(), 4);
}

#[test]
fn loopback_there_leads_to_who_listens_there_another_agent_too() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let inside = Inside::alone().unwrap();
    let cgroups = [Cgroup::new(), Cgroup::new()];
    tag(&daemon, &cgroups[0], "serving");
    tag(&daemon, &cgroups[1], "asking");
    let python = paths::python().unwrap();
    let mut echo = command(&cgroups[0], &inside, python.to_str().unwrap());
    echo.arg(paths::client("net.py"))
        .args(["echo", "::", &PORT.to_string()]);
    let _echo = run::start(&mut echo).unwrap();
    for address in ["127.0.0.1", "::1"] {
        run::wait_for("an answer", Duration::from_secs(10), || {
            Ok((peer(&cgroups[1], &inside, address) == answer(address)).then_some(()))
        })
        .unwrap();
        // Its own it reaches directly.
        assert_eq!(peer(&cgroups[0], &inside, address), answer(address));
    }
    let journal = daemon.journal().unwrap();
    let agents: Vec<&str> = journal
        .of_kind("session_start")
        .map(|session| &*session.agent)
        .collect();
    assert!(agents.len() >= 2, "{journal:#?}");
    assert!(agents.iter().all(|agent| *agent == "asking"), "{agents:?}");
    assert!(journal.mentions("connect_direct"));
}

#[test]
fn a_launched_agent_that_may_have_namespaces_is_intercepted_in_them() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let server = world.outside.address_v4();
    let mut launched = daemon.command(["run", "--agent", "sandbox", "--allow", "namespaces", "--"]);
    // As a browser's sandbox does it: a user namespace, whose own the network is.
    launched
        .args(["unshare", "--user", "--map-root-user", "--net"])
        .arg(paths::python().unwrap())
        .arg(paths::client("namespace.py"))
        .args(["here", &server, &PORT.to_string()]);
    let said = run::output(&mut launched).unwrap();
    assert!(said.contains("served after"), "{said}");
    assert!(!said.contains("got ping"), "{said}");
    let journal = daemon.journal().unwrap();
    let [session] = sessions(&journal)[..] else {
        panic!("{journal:#?}")
    };
    assert!(session.mentions(&server), "{session:#?}");
    assert!(namespace(&journal, session).is_some());
}

#[test]
fn a_credential_for_an_address_is_not_for_who_has_it_in_another_namespace() {
    const SERVER: &str = "import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = repr(self.headers.get('Authorization')).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(said)))
        self.end_headers()
        self.wfile.write(said)
http.server.HTTPServer(('127.0.0.1', 7000), Echo).serve_forever()";
    let daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let token = folder.join("token");
        std::fs::write(&token, "hunter2\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "credentials:\n- {{destination: 127.0.0.1, protocol: http, bearer: {{file: {}}}}}\n",
            token.display()
        )
    })
    .unwrap();
    let inside = Inside::alone().unwrap();
    let cgroup = Cgroup::new();
    let _sleeper = sleeper(&cgroup, &inside);
    tag(&daemon, &cgroup, "greedy");
    let mut server = Command::new("nsenter");
    server
        .arg(inside.entry())
        .arg(paths::python().unwrap())
        .args(["-c", SERVER]);
    let _server = run::start(&mut server).unwrap();
    let said = run::wait_for("an answer", Duration::from_secs(10), || {
        let mut curl = command(&cgroup, &inside, "curl");
        curl.args([
            "--silent",
            "--fail",
            "--max-time",
            "5",
            "http://127.0.0.1:7000/",
        ]);
        let outcome = run::outcome(&mut curl)?;
        Ok((!outcome.stdout.is_empty()).then_some(outcome.stdout))
    })
    .unwrap();
    // "None" is what Python says of a field that wasn't there.
    assert_eq!(said, "None");
}
