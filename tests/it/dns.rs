//! DNS of agents: decided, forwarded to the server that was meant, answered as from there; what is
//! learned names the sessions that follow.

use std::{process::Command, time::Duration};

use interceptor_tests::{
    clients::Way, daemon::Daemon, dns::Dns, journal::Journal, netns::Outside, paths, run,
};

use crate::support::ALLOW_ALL;

const NO_SECRETS: &str = "
default: {action: allow}
rules:
  - id: no-secrets
    match: {protocol: dns, resources: [\"name:*secret*\"]}
    action: deny
    reason: \"not for agents\"
";

struct World {
    outside: Outside,
    dns: Dns,
}

impl World {
    fn new() -> Self {
        let outside = Outside::new().unwrap();
        let dns = Dns::start(&outside).unwrap();
        Self { outside, dns }
    }

    /// Runs `command` where programs ask this world's server.
    fn output(&self, v6: bool, command: &Command) -> String {
        run::output(&mut self.dns.resolving(v6, command)).unwrap()
    }
}

fn dig(way: Way<'_>, server: &str, arguments: &[&str]) -> String {
    let mut dig = way.command("dig");
    dig.args(["+time=5", "+tries=1", &format!("@{server}")])
        .args(arguments);
    let output = run::output(&mut dig).unwrap();
    // What is another one each time.
    output
        .lines()
        .filter(|line| {
            !["; <<>>", ";; Query", ";; WHEN", "; COOKIE"]
                .iter()
                .any(|start| line.starts_with(start))
        })
        .map(|line| match line.split_once(", id: ") {
            Some((before, _)) => format!("{before}\n"),
            None => format!("{line}\n"),
        })
        .collect()
}

fn operations(journal: &Journal, name: &str) -> usize {
    journal.mentioning("operation", name).count()
}

#[test]
fn every_resolver_is_told_what_it_would_be_told_without_us() {
    let world = World::new();
    let daemon = Daemon::start(NO_SECRETS).unwrap();
    let musl = world.dns.folder().join("musl");
    run::output(
        Command::new("musl-gcc")
            .args(["-static", "-o"])
            .arg(&musl)
            .arg(paths::client("resolve.c")),
    )
    .unwrap();
    let glibc = world.dns.folder().join("glibc");
    run::output(
        Command::new("gcc")
            .arg("-o")
            .arg(&glibc)
            .arg(paths::client("resolve.c")),
    )
    .unwrap();
    let client = |file: &str| paths::client(file).to_str().unwrap().to_owned();
    let [python, js, java, go] =
        ["resolve.py", "resolve.js", "Resolve.java", "resolve.go"].map(client);
    let [python_program, go_program] = [paths::python(), paths::go()].map(Result::unwrap);
    let programs: [(&str, Vec<&str>); 6] = [
        (musl.to_str().unwrap(), vec![]),
        (glibc.to_str().unwrap(), vec![]),
        (python_program.to_str().unwrap(), vec![&python, "lookup"]),
        ("node", vec![&js]),
        ("java", vec![&java]),
        (go_program.to_str().unwrap(), vec!["run", &go]),
    ];
    for (program, arguments) in &programs {
        for v6 in [false, true] {
            let [direct, guarded] = [Way::Direct, Way::Guarded(&daemon, "resolver")].map(|way| {
                let mut command = way.command(program);
                command
                    .args(arguments)
                    .args(["web.test", "far.test", "none.test"])
                    .env("GOCACHE", paths::target().join("clients/go-cache"))
                    .env("GOFLAGS", "-mod=mod");
                world.output(v6, &command)
            });
            // Which family comes first is for the resolver to say, and goes by the host's own addresses.
            let is_address = |line: &str| line.contains("web.test") && line.contains("203.0.113.");
            assert!(direct.lines().any(is_address), "{program}: {direct}");
            assert_eq!(direct, guarded, "{program}, IPv6 {v6}");
        }
    }
    let journal = daemon.journal().unwrap();
    assert!(operations(&journal, "web.test") >= programs.len());
    // Who asked is on record by what the kernel knows of it.
    let start = journal.of_kind("session_start").last().unwrap();
    assert!(start.mentions("resolve"), "{start:#?}");
    // What is denied is an answer, at once, and the server isn't asked.
    for (program, arguments) in &programs {
        let mut command = daemon.run_as("resolver", program);
        command
            .args(arguments)
            .arg("my.secret.test")
            .env("GOCACHE", paths::target().join("clients/go-cache"));
        let said = world.output(false, &command);
        assert!(
            [
                "no such name",
                "ENOTFOUND",
                "unknown",
                "not found: true",
                "not known"
            ]
            .iter()
            .any(|no| said.contains(no)),
            "{program}: {said}"
        );
    }
    assert_eq!(world.dns.asked("my.secret.test"), 0);
}

#[test]
fn answers_of_every_kind_pass_unchanged_over_udp_and_tcp() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for server in world.dns.servers() {
        for arguments in [
            &["web.test"][..],
            &["aaaa", "far.test"],
            &["WeB.TeSt"],
            &["+tcp", "web.test"],
            &["txt", "txt.test"],
            // Truncated, and asked again over TCP.
            &["+noedns", "txt", "long.test"],
            &["+bufsize=512", "txt", "long.test"],
            &["+ignore", "+noedns", "txt", "long.test"],
            &["txt", "long.test"],
            &["none.test"],
            &["mx", "web.test"],
            &["+dnssec", "web.test"],
            &["+noedns", "web.test"],
        ] {
            let direct = dig(Way::Direct, server, arguments);
            let guarded = dig(Way::Guarded(&daemon, "dig"), server, arguments);
            assert_eq!(direct, guarded, "{arguments:?}");
        }
    }
}

#[test]
fn keys_for_encrypted_client_hello_are_left_out() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let [server, _] = world.dns.servers();
    let arguments = ["+short", "type65", "svc.test"];
    let direct = dig(Way::Direct, server, &arguments);
    assert!(direct.contains("ech="), "{direct}");
    for more in [&arguments[..], &[&["+tcp"], &arguments[..]].concat()] {
        let guarded = dig(Way::Guarded(&daemon, "dig"), server, more);
        assert_eq!(guarded, "1 web.test. alpn=\"h2\"\n");
    }
}

#[test]
fn a_name_from_a_resolver_that_is_trusted_counts_for_every_protocol() {
    const POLICY: &str = "
default: {action: deny, reason: \"nothing else\"}
rules:
  - id: names
    match: {protocol: dns}
    action: allow
  - id: the-server
    match: {destination: {name: \"*.test\"}, protocol: opaque}
    action: allow
";
    let world = World::new();
    let mut server = world
        .outside
        .command(paths::python().unwrap())
        .arg(paths::client("net.py"))
        .args(["echo", "::", "7000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ready = run::wait_for("the echo server", run::PATIENCE, || {
        let mut dig = Command::new("python3");
        dig.args([
            "-c",
            "import socket,sys; socket.create_connection((sys.argv[1], 7000), 1)",
            &world.outside.address_v4(),
        ]);
        Ok(run::outcome(&mut dig)?.status.success().then_some(()))
    });
    let connect = |daemon: &Daemon, name: &str| {
        let mut command = daemon.run_as("net", paths::python().unwrap());
        command
            .arg(paths::client("net.py"))
            .args(["peer", name, "7000"]);
        run::outcome(&mut world.dns.resolving(false, &command)).unwrap()
    };
    let [v4, _] = world.dns.servers();
    let trusting =
        Daemon::configured(POLICY, |_| format!("dns: {{servers: [\"{v4}\"]}}\n")).unwrap();
    let by_name = connect(&trusting, "far.test");
    let by_address = connect(&trusting, &world.outside.address_v4());
    // A server that the agent chose itself proves nothing.
    let wary = Daemon::start(POLICY).unwrap();
    let untrusted = connect(&wary, "far.test");
    let _ = server.kill();
    let _ = server.wait();
    ready.unwrap();
    assert!(by_name.stdout.contains("got ping"), "{by_name}");
    assert!(!untrusted.stdout.contains("got ping"), "{untrusted}");
    for daemon in [&trusting, &wary] {
        crate::policies::is_decided_again(daemon);
    }
    let journal = trusting.journal().unwrap();
    let named = journal
        .mentioning("event", "destination_names")
        .next()
        .unwrap();
    assert!(named.mentions("far.test"), "{named:#?}");
    // It was resolved a moment ago, and one name is as good as another.
    assert!(by_address.stdout.contains("got ping"), "{by_address}");
    assert!(wary.journal().unwrap().mentions("dns_untrusted"));
}

#[test]
fn a_configured_server_is_asked_in_place_of_the_one_that_the_agent_means() {
    let world = World::new();
    let [v4, v6] = world.dns.servers();
    // The first is nobody's: where it fails the next is asked.
    let daemon = Daemon::configured(ALLOW_ALL, |_| {
        format!("dns: {{servers: [\"127.0.0.1:1\", \"{v6}\", \"{v4}\"]}}\n")
    })
    .unwrap();
    let way = Way::Guarded(&daemon, "dig");
    let _ =
        run::outcome(
            way.command("dig")
                .args(["+time=1", "+tries=1", "@198.51.100.1", "web.test"]),
        );
    for arguments in [&["+short", "web.test"][..], &["+short", "+tcp", "web.test"]] {
        assert_eq!(dig(way, "198.51.100.1", arguments).trim(), v4);
    }
    let journal = daemon.journal().unwrap();
    assert!(
        journal
            .mentioning("session_start", "198.51.100.1:53")
            .count()
            >= 3
    );
}

#[test]
fn a_socket_goes_where_it_is_sent_each_time() {
    let world = World::new();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let [v4, _] = world.dns.servers();
    let mut command = daemon.run_as("switch", paths::python().unwrap());
    command
        .arg(paths::client("resolve.py"))
        .args(["switch", v4, "198.51.100.7"]);
    let said = run::output(&mut command).unwrap();
    // EINVAL: where the socket is connected to gave it a source that doesn't leave this host.
    assert_eq!(
        said,
        format!("('{v4}', 53)\nsent\nEINVAL\n{v4} 53\n('{v4}', 53)\n")
    );
    // What was sent is on its way when its sender is gone.
    let began = |journal: &Journal| {
        let mut sessions = journal.mentioning("session_start", "198.51.100.7:53");
        sessions.next().is_some()
    };
    run::wait_for("the session", Duration::from_secs(5), || {
        Ok(Some(daemon.journal()?).filter(began))
    })
    .unwrap();
}

#[test]
fn a_tunnel_is_closed_by_its_rate() {
    const POLICY: &str = "
default: {action: allow}
rules:
  - id: not-so-fast
    match: {protocol: dns, rate: {over: 100, per: 1h}}
    action: deny
    reason: \"too many questions\"
";
    let world = World::new();
    let daemon = Daemon::start(POLICY).unwrap();
    let [v4, v6] = world.dns.servers();
    // Every server, every transport: one agent.
    for (server, expected) in [(v4, "300 300\n"), (v6, "300 300\n")] {
        let mut command = daemon.run_as("tunnel", paths::python().unwrap());
        command
            .arg(paths::client("resolve.py"))
            .args(["flood", server, "300", "tunnel.test"]);
        assert_eq!(run::output(&mut command).unwrap(), expected);
    }
    let reached = std::fs::read_to_string(world.dns.folder().join("log"))
        .unwrap()
        .lines()
        .filter(|line| line.contains("query[A]") && line.contains("tunnel.test"))
        .count();
    assert_eq!(reached, 100);
}

#[test]
fn a_killed_daemon_leaves_no_dns_and_a_new_one_brings_it_back() {
    let world = World::new();
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = crate::redirect::Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "tagged"])
        .unwrap();
    let [v4, v6] = world.dns.servers();
    let ask = |server: &str| {
        let mut command = cgroup.command("dig");
        command.args([
            "+short",
            "+time=1",
            "+tries=1",
            &format!("@{server}"),
            "web.test",
        ]);
        run::outcome(&mut command).unwrap().stdout
    };
    for server in [v4, v6] {
        assert_eq!(ask(server).trim(), v4);
    }
    daemon.kill().unwrap();
    let before = world.dns.asked("web.test");
    for server in [v4, v6] {
        assert_ne!(ask(server).trim(), v4);
    }
    assert_eq!(world.dns.asked("web.test"), before, "nothing left");
    daemon.restart().unwrap();
    daemon.ask(&["tag", "list"]).unwrap();
    for server in [v4, v6] {
        assert_eq!(ask(server).trim(), v4);
    }
}
