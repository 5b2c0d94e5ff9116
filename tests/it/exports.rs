//! Exports of real traffic, opened by what people open them with.

use std::{fs, path::PathBuf, process::Command};

use interceptor_tests::{
    clients::Way, console, daemon::Daemon, dns::Dns, netns::Outside, paths, run, schema,
};
use serde_json::Value;

use crate::{
    support::{ALLOW_ALL, cluster},
    tls::{daemon, web},
};

const POLICY: &str = "
default: {action: allow}
rules:
  - {id: masked, match: {protocol: postgres, action: SELECT}, action: allow, mask: [{column: email, with: email}]}
  - {id: no-roles, match: {protocol: postgres, class: admin}, action: deny, reason: \"=roles are Terraform's\"}
  - {id: changes-wait, match: {protocol: postgres, class: write}, action: hold, reason: a person looks first, reviewers: {within: 30s}}
  - {id: not-there, match: {protocol: http, http: {path: \"/private/{name}\"}}, action: deny, reason: that is private}
";

/// Every format that a file is made of.
const FORMATS: [&str; 8] = [
    "jsonl",
    "csv",
    "html",
    "ocsf",
    "har",
    "pcapng",
    "asciicast",
    "soc2",
];

/// A daemon with some of everything on record.
fn recorded() -> Daemon {
    let (web, daemon) = (web(), daemon(POLICY));
    let database = cluster().database().unwrap();
    for sql in [
        "SELECT id, name, email FROM shop.customers ORDER BY id",
        "SELECT '<script>alert(1)</script>\u{202e}' AS \"<b>\"",
        "=1+1",
        "SELECT 1/0",
        "ALTER ROLE postgres SUPERUSER",
        "SELECT word FROM plain",
    ] {
        let command = format!("--command={sql}");
        run::outcome(&mut Way::Guarded(&daemon, "shopper").psql(&database, &[&command])).unwrap();
    }
    let mut script = Way::Guarded(&daemon, "shopper")
        .script(&database, "values.py", &["1"])
        .unwrap();
    let held = run::start(&mut script).unwrap();
    let question = daemon.held().unwrap();
    let id = question["id"].as_str().unwrap();
    daemon
        .ask(&["approvals", "approve", id, "--reason", "it's fine"])
        .unwrap();
    held.outcome().unwrap().success().unwrap();
    let plain = format!("http://127.0.0.1:{}", web.plain);
    let good = format!("https://localhost:{}", web.good);
    for (version, url, more) in [
        ("--http1.1", format!("{plain}/echo/plain?a=b"), &[][..]),
        ("--http1.1", format!("{plain}/private/notes"), &[]),
        (
            "--http1.1",
            format!("{good}/echo/inside"),
            &["--data", "x=y"],
        ),
        ("--http2", format!("{good}/echo/second"), &[]),
        ("--http2", format!("{good}/echo/post"), &["--data", "x=y"]),
    ] {
        let mut curl = daemon.run_as("browser", "curl");
        curl.args(["--silent", "--max-time", "20", version])
            .args(more)
            .arg(url);
        run::outcome(&mut curl).unwrap();
    }
    daemon
}

/// Exports into a file of the daemon's folder.
fn export(daemon: &Daemon, name: &str, arguments: &[&str]) -> PathBuf {
    let path = daemon.folder().join(name);
    let output = path.to_str().unwrap().to_owned();
    daemon
        .ask(&[&["export", "--output", &output], arguments].concat())
        .unwrap();
    path
}

/// What `tests/clients/exports.py` says of a file.
fn opened(arguments: &[&str]) -> String {
    let mut python = Command::new(paths::python().unwrap());
    python.arg(paths::client("exports.py")).args(arguments);
    run::output(&mut python).unwrap()
}

/// What tshark shows of a file's packets, by the ports' protocols.
fn shark(file: &str, ports: &[String], more: &[&str]) -> String {
    let mut tshark = Command::new("tshark");
    tshark
        // Where it keeps its preferences.
        .env("HOME", "/nonexistent")
        .args(["-r", file]);
    for port in ports {
        tshark.args(["-d", port]);
    }
    run::output(tshark.args(more)).unwrap()
}

#[test]
fn every_format_is_opened_by_its_readers() {
    let daemon = recorded();
    let [jsonl, csv, html, ocsf, har, pcapng, cast, soc2] = FORMATS.map(|format| {
        let path = export(&daemon, &format!("all.{format}"), &["--format", format]);
        path.to_str().unwrap().to_owned()
    });

    let published = paths::root().join("docs");
    let schema = |name: &str| published.join(name).to_str().unwrap().to_owned();
    opened(&["lines", &schema("export-schema.json"), &jsonl]);
    let events = opened(&["lines", &schema("export-ocsf.json"), &ocsf]);
    assert!(events.contains(" 0 wrong"), "{events}");
    let events = fs::read_to_string(&ocsf).unwrap();
    let events: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for class in [4_001, 4_002, 6_003, 6_005] {
        let of_class = |event: &&Value| event["class_uid"] == class;
        assert!(events.iter().any(|event| of_class(&event)), "{class}");
    }
    let of = |statement: &str| {
        let fits = |event: &&Value| event["query_info"]["query_string"] == statement;
        events.iter().find(fits).unwrap()
    };
    let denied = of("ALTER ROLE postgres SUPERUSER");
    assert_eq!(
        (&denied["action_id"], &denied["disposition_id"]),
        (&2.into(), &2.into())
    );
    assert_eq!(of("SELECT 1/0")["status_code"], "22012");
    let refused = events
        .iter()
        .find(|event| event["http_request"]["url"]["path"] == "/private/notes");
    assert_eq!(refused.unwrap()["http_response"]["code"], 403);

    // Of tables: as many rows as there are operations, with what people want to know of each.
    let rows = opened(&["csv", &csv]);
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |content: &str| {
        let fits = |row: &&Value| row["content"].as_str().unwrap().contains(content);
        rows.iter().find(fits).unwrap()
    };
    assert_eq!(of("=1+1")["status"], "error");
    assert_eq!(of("FROM shop.customers")["masked"], "email");
    let held = of("DELETE FROM shop.orders");
    assert_eq!(held["approval"], "approved");
    assert_eq!(held["answered_by"], "root");
    assert_eq!(of("ALTER ROLE")["reason"], "=roles are Terraform's");
    assert_eq!(of("GET /private/notes")["verdict"], "deny");

    // For auditors: who agreed to what, what was refused, and under which policy.
    let page = fs::read_to_string(&soc2).unwrap();
    for told in [
        "root: approve",
        "DELETE FROM shop.orders",
        "no-roles",
        "sha256:",
    ] {
        assert!(page.contains(told), "{told}");
    }

    // Of packets: each protocol's dissector reads its own.
    let port = |destination: &Value| {
        let (_, port) = destination.as_str().unwrap().rsplit_once(':').unwrap();
        port.to_owned()
    };
    let database = port(&of("FROM shop.customers")["destination"]);
    let ports = [
        format!("tcp.port=={database},pgsql"),
        format!("tcp.port=={},http", web().plain),
        format!("tcp.port=={},http", web().good),
    ];
    let statements = shark(
        &pcapng,
        &ports,
        &["-Y", "pgsql", "-T", "fields", "-e", "pgsql.query"],
    );
    for statement in [
        "FROM shop.customers",
        "SELECT 1/0",
        "DELETE FROM shop.orders",
    ] {
        assert!(statements.contains(statement), "{statements}");
    }
    let requests = [
        "-Y",
        "http.request",
        "-T",
        "fields",
        "-e",
        "http.request.uri",
    ];
    let requests = shark(&pcapng, &ports, &requests);
    for path in ["/echo/plain?a=b", "/private/notes", "/echo/inside"] {
        assert!(requests.contains(path), "{requests}");
    }
    let answers = [
        "-Y",
        "http.response",
        "-T",
        "fields",
        "-e",
        "http.response.code",
    ];
    let answers = shark(&pcapng, &ports, &answers);
    assert!(
        answers.contains("200") && answers.contains("403"),
        "{answers}"
    );
    let second = [
        "-Y",
        "http2",
        "-T",
        "fields",
        "-e",
        "http2.headers.path",
        "-e",
        "http2.headers.status",
    ];
    let http2 = [ports[0].clone(), format!("tcp.port=={},http2", web().good)];
    let second = shark(&pcapng, &http2, &second);
    assert!(
        second.contains("/echo/second") && second.contains("200"),
        "{second}"
    );
    // Streams without gaps or repeats, and nothing that a dissector can't make sense of.
    let broken = "(tcp.analysis.flags && !tcp.analysis.reused_ports) || _ws.malformed || tcp.checksum.status == 0 || ip.checksum.status == 0";
    let checked = [
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-Y",
        broken,
    ];
    let broken = shark(&pcapng, &ports, &checked);
    assert_eq!(broken, "");

    opened(&["cast", &cast]);
    // It wants a terminal.
    let mut terminal = Command::new("script");
    terminal
        .env("HOME", "/tmp")
        .args(["--quiet", "--return", "--command"])
        .args([&format!("asciinema cat {cast}"), "/dev/null"]);
    let played = run::output(&mut terminal).unwrap();
    assert!(played.contains("DELETE FROM shop.orders") && played.contains("it's fine"));

    let requests: Value = serde_json::from_str(&fs::read_to_string(&har).unwrap()).unwrap();
    assert_eq!(requests["log"]["entries"].as_array().unwrap().len(), 5);

    let pictures = paths::target().join("screenshots");
    fs::create_dir_all(&pictures).unwrap();
    let mut browser = console::node("report.js").unwrap();
    let said = run::output(browser.arg(&html).arg(&pictures)).unwrap();
    assert!(said.ends_with("ok\n"), "{said}");
}

#[test]
fn questions_are_exported_with_their_answers() {
    let outside = Outside::new().unwrap();
    let dns = Dns::start(&outside).unwrap();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for transport in ["+notcp", "+tcp"] {
        let mut dig = Way::Guarded(&daemon, "asker").command("dig");
        let server = format!("@{}", dns.servers()[0]);
        dig.args(["+time=5", "+tries=1", transport, &server, "web.test", "A"]);
        run::output(&mut dig).unwrap();
    }
    let file = |format: &str| {
        let path = export(&daemon, &format!("dns.{format}"), &["--format", format]);
        path.to_str().unwrap().to_owned()
    };
    let (jsonl, ocsf, pcapng) = (file("jsonl"), file("ocsf"), file("pcapng"));
    for (schema, file) in [("export-schema.json", &jsonl), ("export-ocsf.json", &ocsf)] {
        let schema = paths::root().join("docs").join(schema);
        opened(&["lines", schema.to_str().unwrap(), file]);
    }
    let events = fs::read_to_string(&ocsf).unwrap();
    let answered = events.lines().filter(|event| {
        event.contains("\"type_uid\":400306") && event.contains("\"rdata\":\"203.0.113.")
    });
    assert_eq!(answered.count(), 2, "{events}");
    let fields = [
        "-Y",
        "dns",
        "-T",
        "fields",
        "-e",
        "dns.qry.name",
        "-e",
        "dns.a",
        "-e",
        "_ws.malformed",
    ];
    let seen = shark(&pcapng, &[], &fields);
    let answers = seen
        .lines()
        .filter(|line| line.starts_with("web.test\t203.0.113."));
    assert_eq!((seen.lines().count(), answers.count()), (4, 2), "{seen}");
}

#[test]
fn the_same_records_give_the_same_bytes() {
    let mut daemon = recorded();
    let sessions = daemon.ask_json(&["sessions", "list"]).unwrap();
    let session = sessions[0]["id"].as_str().unwrap().to_owned();
    let live = FORMATS.map(|format| {
        let name = format!("live.{format}");
        let path = export(&daemon, &name, &["--format", format, "--session", &session]);
        fs::read(path).unwrap()
    });
    daemon.stop().unwrap();
    let state = daemon.state().to_str().unwrap().to_owned();
    for (format, live) in FORMATS.iter().zip(live) {
        let arguments = ["--format", *format, "--state", &state];
        let one = [&arguments[..], &["--session", &session]].concat();
        let stopped = fs::read(export(&daemon, &format!("stopped.{format}"), &one)).unwrap();
        assert!(live == stopped, "{format} of a session");
        let [first, second] = ["first", "second"].map(|name| {
            fs::read(export(&daemon, &format!("{name}.{format}"), &arguments)).unwrap()
        });
        assert!(
            !first.is_empty() && first == second,
            "{format} of everything"
        );
        // One that was interrupted is gone on with, and is the same then; what is another's isn't.
        let name = format!("resumed.{format}");
        let partial = daemon.folder().join(format!("{name}.partial"));
        fs::write(&partial, &first[..first.len() / 2]).unwrap();
        let resumed = [&arguments[..], &["--resume"]].concat();
        let made = fs::read(export(&daemon, &name, &resumed)).unwrap();
        assert!(made == first && !partial.exists(), "{format} resumed");
        let mut other = first[..first.len() / 2].to_vec();
        other[first.len() / 4] ^= 1;
        fs::write(&partial, &other).unwrap();
        let mut command = daemon.command(["export", "--output"]);
        let said = run::outcome(command.arg(daemon.folder().join(&name)).args(&resumed)).unwrap();
        assert!(said.stderr.contains("not the beginning"), "{}", said.stderr);
        assert!(fs::read(&partial).unwrap() == other, "{format} is left");
    }
}

#[test]
fn what_began_before_is_told_of_whom_it_was() {
    let daemon = recorded();
    let journal = daemon.journal().unwrap();
    let operation = journal
        .mentioning("operation", "SELECT 1/0")
        .next()
        .unwrap();
    let since = ["--since", &operation.time, "--until", &operation.time];
    let csv = export(
        &daemon,
        "since.csv",
        &[&["--format", "csv"][..], &since].concat(),
    );
    let rows = opened(&["csv", csv.to_str().unwrap()]);
    let row: Value = serde_json::from_str(rows.trim()).unwrap();
    assert!(
        row["destination"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:"),
        "{row}"
    );
    // Lines are of their time alone.
    let jsonl = fs::read_to_string(export(&daemon, "since.jsonl", &since)).unwrap();
    assert!(!jsonl.contains("session_start"), "{jsonl}");
}

#[test]
fn the_published_schema_is_that_of_the_control_api() {
    let published = fs::read_to_string(schema::path()).unwrap();
    assert!(
        published == schema::derived().unwrap(),
        "`cargo xtask schema` writes {} anew",
        schema::path().display()
    );
}
