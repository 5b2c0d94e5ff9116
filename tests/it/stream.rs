//! Records told to others as they happen: all of them, in order, whatever becomes of either side.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use interceptor_tests::{
    certificates::Certificates,
    clients::Way,
    cluster::free_port,
    daemon::Daemon,
    keeper::{Farewell, Keeper},
    paths, run, scratch,
};
use serde_json::Value;

use crate::support::{ALLOW_ALL, cluster};

/// How long something may take that is tried every few seconds.
const SOON: Duration = Duration::from_secs(40);

/// Some statements are refused, so that there is something that matters.
const NO_DROPS: &str = "
default: {action: allow}
rules:
  - id: no \"drops\"]
    match: {protocol: postgres, class: schema}
    action: deny
    reason: \"nothing is dropped here\"
";

const HOSTILE: &str = "SELECT 'a\r\n<0>1 - - forged - - - no record\u{1b}[2J\u{9b}31m\u{202e} [x@1 y=\"z\"]' AS \"b\\\"\"";

/// A process of the test's own that listens.
struct Server {
    child: Child,
    keeper: Keeper,
}

impl Server {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.spawn().unwrap();
        let nothing = scratch::folder("server").unwrap();
        let keeper = Keeper::of_process(child.id(), Farewell::Terminate, &nothing).unwrap();
        run::wait_for("a server", SOON, || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
        })
        .unwrap();
        Self { child, keeper }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.keeper.release();
    }
}

/// rsyslogd, which writes down each message as it understands it.
struct Rsyslog {
    folder: PathBuf,
    port: u16,
}

impl Rsyslog {
    fn new(folder: &Path, certificates: Option<&mut Certificates>) -> Self {
        let (port, folder) = (free_port().unwrap(), folder.to_owned());
        let (mut tls, mut driver) = (String::new(), "");
        if let Some(certificates) = certificates {
            let files = certificates.issue("syslog", &["localhost"]).unwrap();
            tls = format!(
                "global(DefaultNetstreamDriver=\"gtls\" DefaultNetstreamDriverCAFile=\"{}\" DefaultNetstreamDriverCertFile=\"{}\" DefaultNetstreamDriverKeyFile=\"{}\")\n",
                certificates.authority().display(),
                files.certificate.display(),
                files.key.display(),
            );
            // Who sends has to have a certificate too.
            driver = "StreamDriver.Name=\"gtls\" StreamDriver.Mode=\"1\" StreamDriver.AuthMode=\"x509/certvalid\"";
        }
        let configuration = format!(
            "global(workDirectory=\"{0}\" maxMessageSize=\"8k\")\n{tls}module(load=\"imtcp\" {driver})\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\ntemplate(name=\"parsed\" type=\"string\" string=\"%protocol-version%|%pri%|%app-name%|%msgid%|%structured-data%|%msg%\\n\")\n*.* action(type=\"omfile\" file=\"{0}/messages\" template=\"parsed\")\n",
            folder.display()
        );
        fs::write(folder.join("rsyslog.conf"), configuration).unwrap();
        Self { folder, port }
    }

    fn start(&self) -> Server {
        let mut command = Command::new("rsyslogd");
        command
            .args(["-n", "-f"])
            .arg(self.folder.join("rsyslog.conf"));
        command.arg("-i").arg(self.folder.join("pid"));
        Server::start(&mut command, self.port)
    }

    /// What came, by the numbers of the records: header fields and the line. A record that comes again is the same.
    fn messages(&self) -> BTreeMap<u64, (Vec<String>, Value)> {
        let text = fs::read_to_string(self.folder.join("messages")).unwrap_or_default();
        let mut found = BTreeMap::new();
        // A line that is just being written has no end.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let parts: Vec<String> = line.splitn(6, '|').map(str::to_owned).collect();
            assert_eq!((&*parts[0], &*parts[2]), ("1", "interceptor"), "{line}");
            let value: Value = serde_json::from_str(parts[5].trim_start())
                .unwrap_or_else(|error| panic!("{error}: {line}"));
            let seq = value["seq"].as_u64().unwrap();
            if let Some((_, before)) = found.insert(seq, (parts, value.clone())) {
                assert_eq!(before, value);
            }
        }
        found
    }
}

fn sql(daemon: &Daemon, statement: &str) {
    let database = cluster().database().unwrap();
    let statement = format!("--command={statement}");
    run::outcome(&mut Way::Guarded(daemon, "told").psql(&database, &[&statement])).unwrap();
}

/// What `status` says, whatever troubles it.
fn status(daemon: &Daemon) -> String {
    run::outcome(&mut daemon.command(["status"]))
        .unwrap()
        .stdout
}

#[track_caller]
fn says(daemon: &Daemon, what: &str) {
    let said = run::wait_for(what, SOON, || {
        Ok(status(daemon).contains(what).then_some(()))
    });
    said.unwrap_or_else(|error| panic!("{error}: {}\n{}", status(daemon), daemon.log()));
}

/// The records of a journal whose daemon is stopped, by their numbers.
fn exported(daemon: &Daemon) -> BTreeMap<u64, Value> {
    let state = daemon.state();
    let text = daemon
        .ask(&["export", "--state", state.to_str().unwrap()])
        .unwrap();
    text.lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            (value["seq"].as_u64().unwrap(), value)
        })
        .collect()
}

/// Holds what was told to what is on record: from the first that was told on everything, and nothing else.
#[track_caller]
fn is_all(told: &BTreeMap<u64, Value>, daemon: &Daemon) {
    let exported = exported(daemon);
    let first = *told.keys().next().expect("something that was told");
    assert!(first < 5, "{first}");
    let expected: Vec<u64> = exported
        .keys()
        .copied()
        .filter(|seq| *seq >= first)
        .collect();
    let came: Vec<u64> = told.keys().copied().collect();
    assert_eq!(came, expected);
    for (seq, value) in told {
        let is_whole = value.get("left_out").is_none();
        if is_whole {
            assert_eq!(value, &exported[seq]);
        }
        for (name, value) in value.as_object().unwrap() {
            if name != "left_out" {
                assert_eq!(value, &exported[seq][name]);
            }
        }
    }
}

#[test]
fn rsyslog_is_told_of_everything_over_tls_whatever_happens_to_either() {
    let folder = scratch::folder("rsyslog").unwrap();
    let mut certificates = Certificates::new(&folder).unwrap();
    let rsyslog = Rsyslog::new(&folder, Some(&mut certificates));
    let own = certificates.issue("daemon", &["host1"]).unwrap();
    let mut daemon = Daemon::configured(NO_DROPS, |_| {
        format!(
            "journal:\n  stream:\n  - syslog: {{server: 'tls://localhost:{}', certificate: {}, key: {}}}\ntls: {{roots: [{}]}}\n",
            rsyslog.port,
            own.certificate.display(),
            own.key.display(),
            certificates.authority().display()
        )
    })
    .unwrap();
    // It isn't there at first, and keeps nobody.
    sql(&daemon, "SELECT 1");
    says(&daemon, "Connection refused");
    let server = rsyslog.start();
    sql(&daemon, HOSTILE);
    sql(&daemon, "DROP TABLE shop.customers");
    sql(&daemon, "SELECT repeat('long', 20000)");
    run::wait_for("messages", SOON, || {
        let came = rsyslog.messages();
        let is_there = came
            .values()
            .any(|(_, line)| line.get("left_out").is_some());
        Ok(is_there.then_some(()))
    })
    .unwrap();
    // It dies in the middle, and loses what it hasn't confirmed; so does the daemon.
    server.kill();
    sql(&daemon, "SELECT 2");
    says(&daemon, "records aren't streamed to syslog tls://localhost");
    let server = rsyslog.start();
    sql(&daemon, "SELECT 3");
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    sql(&daemon, "SELECT 4");
    daemon.stop().unwrap();
    let messages = rsyslog.messages();
    let told = messages
        .iter()
        .map(|(seq, (_, line))| (*seq, line.clone()))
        .collect();
    is_all(&told, &daemon);
    // What was said is inert, and is what was said.
    let (parts, _) = messages
        .values()
        .find(|(_, line)| line["kind"] == "operation" && line["content"] == HOSTILE)
        .expect("what was said");
    let is_inert = |part: &String| part.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    assert!(parts.iter().all(is_inert));
    // Facility 13, and by what matters.
    assert_eq!(parts[1], "110");
    let (parts, _) = messages
        .values()
        .find(|(_, line)| line["verdict"] == "deny")
        .expect("a refusal");
    assert_eq!((&*parts[1], &*parts[3]), ("108", "decision"));
    for part in [
        "[interceptor@32473 seq=\"",
        "agent=\"told\"",
        "verdict=\"deny\"",
        "rule=\"no \\\"drops\\\"\\]\"",
        "[origin software=\"interceptor\"",
    ] {
        assert!(parts[4].contains(part), "{parts:?}");
    }
    let lengths = messages.values().map(|(parts, _)| parts.join("|").len());
    assert!(lengths.max().unwrap() <= 8_192);
    server.kill();
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn a_receiver_that_nobody_vouches_for_is_told_nothing() {
    let folder = scratch::folder("rsyslog").unwrap();
    let mut certificates = Certificates::new(&folder).unwrap();
    let rsyslog = Rsyslog::new(&folder, Some(&mut certificates));
    let server = rsyslog.start();
    let daemon = Daemon::configured(ALLOW_ALL, |_| {
        format!(
            "journal: {{stream: [{{syslog: {{server: 'tls://localhost:{}'}}}}]}}\n",
            rsyslog.port
        )
    })
    .unwrap();
    says(&daemon, "UnknownIssuer");
    assert!(rsyslog.messages().is_empty());
    server.kill();
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn what_is_required_stops_what_it_is_not_told_of() {
    let folder = scratch::folder("rsyslog").unwrap();
    let rsyslog = Rsyslog::new(&folder, None);
    let mut daemon = Daemon::configured(ALLOW_ALL, |_| {
        format!(
            "journal: {{stream: [{{syslog: {{server: 'tcp://127.0.0.1:{}'}}, required: true, backlog_records: 30}}]}}\n",
            rsyslog.port
        )
    })
    .unwrap();
    for _ in 0..10 {
        sql(&daemon, "SELECT 1");
    }
    says(&daemon, "which is required, and 30 may");
    let database = cluster().database().unwrap();
    let refused = &["--command=SELECT 5"];
    let seen = run::outcome(&mut Way::Guarded(&daemon, "told").psql(&database, refused)).unwrap();
    assert_ne!(seen.status.code(), Some(0), "{seen:?}");
    let server = rsyslog.start();
    run::wait_for("the journal", SOON, || {
        Ok(status(&daemon).starts_with("running").then_some(()))
    })
    .unwrap();
    sql(&daemon, "SELECT 6");
    daemon.stop().unwrap();
    let told = rsyslog.messages().into_iter();
    is_all(&told.map(|(seq, (_, line))| (seq, line)).collect(), &daemon);
    server.kill();
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn a_collector_of_opentelemetry_is_told_of_everything() {
    let folder = scratch::folder("collector").unwrap();
    let port = free_port().unwrap();
    let mut daemon = Daemon::configured(NO_DROPS, |folder| {
        for (name, secret) in [("token", "tell-it\n"), ("tenant", "seven\n")] {
            fs::write(folder.join(name), secret).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        format!(
            "journal:\n  stream:\n  - otlp: {{url: 'http://127.0.0.1:{port}/v1/logs', bearer: {{file: {0}/token}}, headers: {{x-tenant: {{file: {0}/tenant}}}}}}\n",
            folder.display()
        )
    })
    .unwrap();
    sql(&daemon, "SELECT 1");
    says(&daemon, "Connection refused");
    let mut collector = Command::new(paths::python().unwrap());
    collector
        .arg(paths::client("collector.py"))
        .arg(port.to_string())
        .arg(&folder);
    let server = Server::start(&mut collector, port);
    let records = || -> BTreeMap<u64, Value> {
        let text = fs::read_to_string(folder.join("records")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let values = whole
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        values
            .map(|value| (value["line"]["seq"].as_u64().unwrap(), value))
            .collect()
    };
    let is_told = |daemon: &Daemon, what: &str| {
        run::wait_for(what, SOON, || {
            let is_there = |record: &Value| record["line"].to_string().contains(what);
            Ok(records().values().any(is_there).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {}", status(daemon)));
    };
    sql(&daemon, "SELECT 'first'");
    is_told(&daemon, "'first'");
    for (fault, said) in [
        ("500", "it answers 500 Internal Server Error: no\\u{1b}[2J"),
        ("busy", "it answers 429"),
        ("partial", "it rejects 1 records: not today"),
        // A batch that is too large goes in halves.
        ("small", ""),
    ] {
        fs::write(folder.join("fault"), fault).unwrap();
        sql(&daemon, &format!("SELECT 'during {fault}'"));
        if said.is_empty() {
            is_told(&daemon, &format!("during {fault}"));
        } else {
            says(&daemon, said);
        }
        fs::write(folder.join("fault"), "").unwrap();
        is_told(&daemon, &format!("during {fault}"));
    }
    server.kill();
    sql(&daemon, "DROP TABLE shop.customers");
    says(&daemon, "records aren't streamed to otlp http://127.0.0.1");
    daemon.kill().unwrap();
    let server = Server::start(&mut collector, port);
    daemon.restart().unwrap();
    sql(&daemon, HOSTILE);
    daemon.stop().unwrap();
    let records = records();
    let told = records
        .iter()
        .map(|(seq, record)| (*seq, record["line"].clone()));
    is_all(&told.collect(), &daemon);
    let denied = records
        .values()
        .find(|record| record["line"]["verdict"] == "deny")
        .expect("a refusal");
    assert_eq!(denied["severity"], 13);
    assert_eq!(denied["facts"]["interceptor.agent"], "told");
    assert_eq!(denied["facts"]["interceptor.rule"], "no \"drops\"]");
    for (seq, record) in &records {
        let uid = record["facts"]["log.record.uid"].as_str().unwrap();
        assert!(uid.ends_with(&format!("-{seq}")), "{uid}");
    }
    let is_hostile = |record: &Value| record["line"]["content"] == HOSTILE;
    assert!(records.values().any(is_hostile));
    let log = daemon.log();
    assert!(!log.contains("tell-it") && !log.contains("seven"));
    server.kill();
    let _ = fs::remove_dir_all(folder);
}
