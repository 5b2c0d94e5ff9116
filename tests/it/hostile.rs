//! Bad input: a clear error where the person or client sees it; never a panic, a hang or a pass.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
};

use interceptor_tests::{
    clients::Way,
    cluster::{self, Database},
    daemon::Daemon,
    keeper::{self, Keeper},
    paths,
    run::{self, Outcome},
    scratch,
};

use crate::support::{ALLOW_ALL, cluster};

const NO_TABLES: &str = "
default: {action: allow}
rules:
  - id: no-tables
    match: {protocol: postgres, class: [schema, unclassified]}
    action: deny
    reason: \"no tables are made here\"
";

fn still_works(daemon: &Daemon, database: &Database<'_>) {
    let seen =
        run::output(&mut Way::Guarded(daemon, "after").psql(database, &["--command=SELECT 1"]));
    assert_eq!(seen.unwrap(), "1\n");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn byte_streams_that_lie_neither_hang_nor_pass() {
    let daemon = Daemon::start(NO_TABLES).unwrap();
    let database = cluster().database().unwrap();
    let mut script = Way::Guarded(&daemon, "hostile")
        .script(
            &database,
            "hostile.py",
            &[&database.port().to_string(), database.name()],
        )
        .unwrap();
    let said = run::start(&mut script)
        .unwrap()
        .outcome_within(std::time::Duration::from_secs(120))
        .unwrap()
        .success()
        .unwrap();
    assert!(said.lines().count() > 30, "{said}");
    assert!(!said.contains("hung"), "{said}");
    assert_eq!(
        database.sql("SELECT to_regclass('pwned') IS NULL").unwrap(),
        "t",
        "{said}"
    );
    still_works(&daemon, &database);
    daemon.ask(&["verify"]).unwrap();
}

/// A server that says `answer` to the first query of one connection, then hangs up.
fn fake_server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        // Connections without a query (SSLRequest answered on the way) are served as they come.
        for connection in listener.incoming() {
            let _ = fake_session(connection.unwrap(), answer);
        }
    });
    port
}

fn fake_session(mut connection: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let read = connection.read(&mut buffer)?;
        match &buffer[..read] {
            [] => return Ok(()),
            [0, 0, 0, 8, ..] => connection.write_all(b"N")?,
            // The start-up packet: authentication is fine, ready.
            [0, ..] => connection.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")?,
            _ => return connection.write_all(answer),
        }
    }
}

fn ask_fake(answer: &'static [u8]) -> (Daemon, Outcome) {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let mut psql = Way::Guarded(&daemon, "faked").command("psql");
    psql.args(["--no-psqlrc", "--command=SELECT 1"])
        .args([
            "--host=127.0.0.1",
            &format!("--port={}", fake_server(answer)),
        ])
        .args(["--username=agent", "--dbname=nowhere"]);
    let outcome = run::outcome(&mut psql).unwrap();
    assert!(!outcome.status.success(), "{outcome}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    (daemon, outcome)
}

#[test]
fn an_upstream_that_closes_in_the_middle_of_a_row() {
    let (daemon, outcome) = ask_fake(
        b"T\0\0\0\x1a\0\x01x\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0",
    );
    assert!(!outcome.stderr.is_empty());
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.of_kind("session_end").count(), 1);
    assert!(
        journal
            .mentioning("response", "interrupted")
            .next()
            .is_some(),
        "{:#?}",
        journal.lines
    );
}

#[test]
fn an_upstream_whose_lengths_lie() {
    for answer in [
        b"D\x7f\xff\xff\xff\0\x01".as_slice(),
        b"D\0\0\0\x02",
        b"D\xff\xff\xff\xff",
        b"T\0\0\0\x08\xff\xff\0\0D\0\0\0\x0a\x7f\xff\0\0\0\0",
        b"\0\0\0\0\0\0\0\0",
        b"T\0\0\0\x1a\0\x01x\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0a\0\x01\x7f\xff\xff\xff",
    ] {
        ask_fake(answer);
    }
}

#[test]
fn an_upstream_that_cannot_be_reached() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let port = cluster::free_port().unwrap();
    let mut psql = Way::Guarded(&daemon, "nowhere").command("psql");
    psql.args([
        "--host=127.0.0.1",
        &format!("--port={port}"),
        "--command=SELECT 1",
    ]);
    let outcome = run::outcome(&mut psql).unwrap();
    assert!(!outcome.status.success());
    // libpq shows no error that answers its SSLRequest, so it has to come after.
    assert!(outcome.stderr.contains("Connection refused"), "{outcome}");
    assert!(
        daemon
            .journal()
            .unwrap()
            .mentions(&format!("127.0.0.1:{port}")),
        "the attempt is on record"
    );
}

#[test]
fn a_second_daemon_on_the_same_state() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let outcome = run::outcome(&mut daemon.serve()).unwrap();
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(
        outcome.stderr.contains(daemon.state().to_str().unwrap())
            || outcome.stderr.contains("already"),
        "{outcome}"
    );
    daemon.ask(&["tag", "list"]).unwrap();
}

#[test]
fn a_policy_with_an_error_stops_the_start_and_says_where() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let broken = "default: {action: allow}\nrules:\n  - id: x\n    match: {protocl: postgres}\n    action: deny\n";
    let path = daemon.folder().join("broken.yaml");
    fs::write(&path, broken).unwrap();
    let outcome =
        run::outcome(&mut daemon.command(["policy", "check", path.to_str().unwrap()])).unwrap();
    assert_eq!(outcome.status.code(), Some(4), "{outcome}");
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(
        said.contains("protocl") && said.contains("protocol"),
        "{said}"
    );
    assert!(said.contains(":4:") || said.contains("line 4"), "{said}");

    let error = format!("{:#}", Daemon::start(broken).unwrap_err());
    assert!(error.contains("protocl"), "{error}");
}

#[test]
fn a_broken_reload_keeps_the_old_policy() {
    let daemon = Daemon::start(NO_TABLES).unwrap();
    let database = cluster().database().unwrap();
    daemon
        .write_policy("default: {action: allow}\nrule: []\n")
        .unwrap();
    run::wait_for("the alarm", std::time::Duration::from_secs(10), || {
        Ok(daemon.journal()?.mentions("rule").then_some(()))
    })
    .unwrap();
    let refused = run::outcome(
        &mut Way::Guarded(&daemon, "reload").psql(&database, &["--command=CREATE TABLE pwned ()"]),
    )
    .unwrap();
    assert!(refused.stderr.contains("no-tables"), "{refused}");
    daemon.write_policy(ALLOW_ALL).unwrap();
    run::wait_for("the new policy", std::time::Duration::from_secs(10), || {
        let made = run::outcome(
            &mut Way::Guarded(&daemon, "reload")
                .psql(&database, &["--command=CREATE TABLE IF NOT EXISTS made ()"]),
        )?;
        Ok(made.status.success().then_some(()))
    })
    .unwrap();
}

/// Starts a second daemon behind `wrapper`, which takes something away from it.
fn start_wrapped(wrapper: &mut Command) -> Outcome {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let instance = scratch::name("interceptor-it");
    // What it made before it failed stays for its next start; there won't be one.
    let _keeper = Keeper::of_leftovers(&instance).unwrap();
    wrapper
        .arg(paths::interceptor().unwrap())
        .arg("--control")
        .arg(daemon.folder().join("second.sock"))
        .arg("serve")
        .arg("--state")
        .arg(daemon.folder().join("second"))
        .arg("--policies")
        .arg(daemon.policies())
        .args(["--instance", &instance]);
    run::outcome(wrapper).unwrap()
}

#[test]
fn without_the_capabilities() {
    let mut setpriv = Command::new("setpriv");
    setpriv.arg("--bounding-set=-bpf,-sys_admin,-net_admin,-perfmon");
    let outcome = start_wrapped(&mut setpriv);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(
        outcome.stderr.contains("root") || outcome.stderr.contains("CAP_BPF"),
        "{outcome}"
    );
}

#[test]
fn without_cgroup_v2() {
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-c", "umount -l \"$0\" && exec \"$@\""])
        .arg(keeper::cgroup2().unwrap());
    let outcome = start_wrapped(&mut unshare);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("cgroup"), "{outcome}");
}
