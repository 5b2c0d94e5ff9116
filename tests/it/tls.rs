//! TLS from both ends: the agent's, with a certificate of ours, and the destination's, verified.

use std::{fs, process::Command, sync::OnceLock};

use interceptor_tests::{
    certificates::Certificates, cluster::Cluster, daemon::Daemon, run, web::Web,
};
use nix::unistd::{User, chown};
use serde_json::Value;

use crate::support::ALLOW_ALL;

/// The web server that these tests share; its keeper ends it with the process.
pub(crate) fn web() -> &'static Web {
    static WEB: OnceLock<Web> = OnceLock::new();
    WEB.get_or_init(|| Web::start().expect("a throw-away nginx"))
}

pub(crate) fn daemon(policy: &str) -> Daemon {
    Daemon::configured(policy, |_| web().configuration()).unwrap()
}

/// curl as an agent that believes our certificates, asking for a server by name.
pub(crate) fn curl(daemon: &Daemon, name: &str, port: u16) -> Command {
    let mut curl = daemon.run_as("web", "curl");
    curl.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--noproxy",
        "*",
    ])
    .arg("--cacert")
    .arg(daemon.state().join("ca/ca.pem"))
    .args(["--connect-to", &format!("{name}:{port}:127.0.0.1:{port}")]);
    curl
}

fn notices<'a>(records: &'a [Value], name: &str) -> Vec<&'a Value> {
    records
        .iter()
        .filter(|record| record["kind"] == "event" && record["name"] == name)
        .collect()
}

/// Everything that is on record.
pub(crate) fn records(daemon: &Daemon) -> Vec<Value> {
    let text = daemon.ask(&["export", "--format", "jsonl"]).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn an_agent_sees_the_destination_as_it_would_without_us() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let ask = |port, more: &[&str]| {
        let url = format!("https://web.test:{port}/echo");
        run::outcome(curl(&daemon, "web.test", port).args(more).arg(url)).unwrap()
    };
    for (port, more) in [
        (web.good, &["--http1.1"][..]),
        (web.good, &["--http2"]),
        (web.good, &["--tls-max", "1.2"]),
        (web.good, &["--tlsv1.3"]),
        (web.good, &["--no-alpn"]),
        (web.tls12, &["--tlsv1.3"]),
    ] {
        let outcome = ask(port, more);
        assert_eq!(
            outcome.stdout,
            format!("GET web.test:{port} /echo\n"),
            "{more:?}: {}",
            outcome.stderr
        );
    }
    // What a client is told of a server that isn't believed: the alert that stands for it.
    for port in [web.expired, web.misnamed, web.self_signed, web.withdrawn] {
        let outcome = ask(port, &[]);
        // The client's own library says so: "SSL connect error", or "certificate verification failed".
        assert!(
            matches!(outcome.status.code(), Some(35 | 60)),
            "{}",
            outcome.stderr
        );
    }
    let records = records(&daemon);
    let alerts: Vec<&str> = notices(&records, "tls_upstream_failed")
        .iter()
        .map(|notice| notice["detail"]["alert"].as_str().unwrap())
        .collect();
    // certificate_expired, bad_certificate, unknown_ca, certificate_revoked.
    assert_eq!(alerts, ["45", "42", "48", "44"]);
    let seen = notices(&records, "tls");
    assert_eq!(seen.len(), 6);
    assert!(
        seen.iter()
            .all(|notice| notice["detail"]["server_name"] == "web.test")
    );
    assert!(
        seen.iter()
            .any(|notice| notice["detail"]["version"] == "TLS 1.2")
    );
    assert!(seen.iter().any(|notice| notice["detail"]["alpn"] == "h2"));
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_the_configured_one() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let ask = |name: &str| {
        let url = format!("https://{name}:{}/who", web.mutual);
        run::outcome(curl(&daemon, name, web.mutual).arg(url)).unwrap()
    };
    assert_eq!(ask("web.test").stdout, "SUCCESS\n");
    // None is configured for this name: the server says so, and the record says what to add.
    assert!(
        ask("localhost")
            .stdout
            .contains("No required SSL certificate")
    );
    let records = records(&daemon);
    let wanted = notices(&records, "tls");
    assert!(
        wanted.iter().any(|notice| {
            let told = notice["detail"]["client_certificate"]
                .as_str()
                .unwrap_or_default();
            told.contains("client_certificates")
        }),
        "{wanted:?}"
    );
}

#[test]
fn a_client_that_pins_is_recognised_and_told_of() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let url = format!("https://web.test:{}/echo", web.good);
    let pinned = run::outcome(
        curl(&daemon, "web.test", web.good)
            .arg("--cacert")
            .arg(web.authority())
            // Debian's curl reads the system's folder beside it.
            .arg("--capath")
            .arg(daemon.folder())
            .arg(url),
    )
    .unwrap();
    assert_eq!(pinned.status.code(), Some(60));
    let records = records(&daemon);
    let told = notices(&records, "tls_client_refused");
    let remedy = told[0]["detail"]["remedy"].as_str().unwrap();
    assert!(remedy.contains("name: \"web.test\"") && remedy.contains("tls: passthrough"));
}

#[test]
fn rules_let_tls_through_unseen_or_refuse_it() {
    let web = web();
    let policy = |rule: &str| format!("default: {{action: allow}}\nrules:\n  - {rule}\n");
    let url = format!("https://web.test:{}/echo", web.good);
    // By address: nothing else to hold it to.
    let daemon = daemon(&policy(
        "{id: unseen, match: {destination: {address: 127.0.0.0/8}}, tls: passthrough}",
    ));
    let outcome = run::outcome(
        curl(&daemon, "web.test", web.good)
            .arg("--cacert")
            .arg(web.authority())
            .arg(&url),
    )
    .unwrap();
    assert_eq!(
        outcome.stdout,
        format!("GET web.test:{} /echo\n", web.good),
        "{}",
        outcome.stderr
    );
    let seen = records(&daemon);
    let operation = seen
        .iter()
        .find(|record| record["kind"] == "operation")
        .unwrap();
    assert_eq!(operation["protocol"], "tls");
    assert_eq!(operation["attributes"]["tls.server_name"], "web.test");
    let chain = operation["attributes"]["tls.certificate_chain"]
        .as_str()
        .unwrap();
    assert!(
        chain.contains("CN=test authority") && chain.contains("sha256="),
        "{chain}"
    );
    assert!(!seen.iter().any(|record| record["protocol"] == "http"));
    // By a name that this host's resolver doesn't know the address by: a claim isn't enough.
    daemon
        .write_policy(&policy(
            "{id: by-name, match: {destination: {name: web.test}}, tls: passthrough}",
        ))
        .unwrap();
    run::wait_for("the new policy", run::PATIENCE, || {
        let outcome = run::outcome(curl(&daemon, "web.test", web.good).arg(&url)).unwrap();
        Ok(outcome.stderr.contains("alert access denied").then_some(()))
    })
    .unwrap();
    daemon.write_policy(&policy("{id: never, match: {destination: {name: \"*.test\"}}, tls: deny, reason: \"not today\"}")).unwrap();
    run::wait_for("the new policy", run::PATIENCE, || {
        let outcome = run::outcome(curl(&daemon, "web.test", web.good).arg(&url)).unwrap();
        assert!(
            outcome.stderr.contains("alert access denied"),
            "{}",
            outcome.stderr
        );
        let seen = records(&daemon);
        Ok(seen
            .iter()
            .any(|record| record["rule"] == "never" && record["verdict"] == "deny")
            .then_some(()))
    })
    .unwrap();
}

#[test]
fn agents_resume_their_sessions() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let script = format!(
        "import ssl, socket\n\
         context = ssl.create_default_context(cafile='{}')\n\
         session = None\n\
         for expected in (False, True):\n\
         \x20   raw = socket.create_connection(('127.0.0.1', {}))\n\
         \x20   tls = context.wrap_socket(raw, server_hostname='web.test', session=session)\n\
         \x20   tls.sendall(b'GET /echo HTTP/1.1\\r\\nHost: web.test\\r\\nConnection: close\\r\\n\\r\\n')\n\
         \x20   while tls.recv(4096): pass\n\
         \x20   assert tls.session_reused == expected, expected\n\
         \x20   session = tls.session\n\
         print('resumed')",
        daemon.state().join("ca/ca.pem").display(),
        web.good,
    );
    let outcome = run::outcome(
        daemon
            .run_as("web", "/usr/bin/python3")
            .args(["-c", &script]),
    )
    .unwrap();
    assert_eq!(outcome.stdout, "resumed\n", "{}", outcome.stderr);
}

/// A PostgreSQL server that proves to be `localhost` and `db.test`, and who says so; files in `folder`.
pub(crate) fn secure_postgres(folder: &std::path::Path) -> (Cluster, Certificates) {
    let mut authority = Certificates::new(folder).unwrap();
    let files = authority
        .issue("server", &["localhost", "db.test"])
        .unwrap();
    let postgres = User::from_name("postgres").unwrap().unwrap();
    for file in [&files.key, &files.certificate] {
        chown(file, Some(postgres.uid), Some(postgres.gid)).unwrap();
        fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let server = Cluster::bare(&[
        ("ssl", "on"),
        ("ssl_cert_file", files.certificate.to_str().unwrap()),
        ("ssl_key_file", files.key.to_str().unwrap()),
    ])
    .unwrap();
    (server, authority)
}

#[test]
fn postgresql_over_tls_is_decoded_like_any() {
    let folder = interceptor_tests::scratch::folder("pgtls").unwrap();
    let (server, authority) = secure_postgres(&folder);
    let configuration = format!("tls: {{roots: [{}]}}\n", authority.authority().display());
    let policy = "default: {action: allow}\nrules:\n  - {id: no-drops, match: {protocol: postgres, action: \"DROP TABLE\", destination: {name: db.test}}, action: deny, reason: \"tables stay\"}\n";
    let daemon = Daemon::configured(policy, |_| configuration).unwrap();
    let ask = |mode: &str, sql: &str| {
        let connection = format!(
            "host=db.test hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode={mode} sslrootcert={}",
            server.port(),
            daemon.state().join("ca/ca.pem").display(),
        );
        run::outcome(
            daemon
                .run_as("db", "psql")
                .args(["-X", "-At", "-c", sql, &connection]),
        )
        .unwrap()
    };
    for (mode, secure) in [
        ("disable", "f"),
        ("prefer", "t"),
        ("require", "t"),
        ("verify-ca", "t"),
        ("verify-full", "t"),
    ] {
        let outcome = ask(
            mode,
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        );
        assert_eq!(outcome.stdout.trim(), secure, "{mode}: {}", outcome.stderr);
    }
    let refused = ask("verify-full", "DROP TABLE a");
    assert!(refused.stderr.contains("tables stay"), "{}", refused.stderr);
    let seen = records(&daemon);
    assert!(seen.iter().any(|record| record["rule"] == "no-drops"));
    assert_eq!(notices(&seen, "tls").len(), 5);
    // A server that isn't believed: the alert reaches libpq, the record says what to do.
    let distrustful = Daemon::start(policy).unwrap();
    let connection = format!(
        "host=db.test hostaddr=127.0.0.1 port={} user=postgres sslmode=require",
        server.port()
    );
    let outcome =
        run::outcome(
            distrustful
                .run_as("db", "psql")
                .args(["-X", "-c", "SELECT 1", &connection]),
        )
        .unwrap();
    assert!(outcome.stderr.contains("unknown ca"), "{}", outcome.stderr);
    let seen = records(&distrustful);
    let told = notices(&seen, "tls_upstream_failed");
    assert!(
        told[0]["detail"]["remedy"]
            .as_str()
            .unwrap()
            .contains("roots")
    );
    fs::remove_dir_all(folder).unwrap();
}
