//! The web, over HTTP/1.1 and HTTP/2, through a real server and unmodified clients.

use std::{fs, process::Command};

use interceptor_tests::{daemon::Daemon, run};

use crate::tls::{daemon, records, web};

const POLICY: &str = "
default: {action: deny, reason: no rule allows it}
rules:
  - id: reads
    match: {protocol: http, class: [read]}
    action: allow
    mask:
      - {json: \"$.users[*].phone\", with: null}
      - {key: password, with: redact}
      - {header: x-secret, with: redact}
      - {pattern: email, with: redact}
  - {id: uploads, match: {protocol: http, action: [PUT, POST]}, action: hold, reviewers: {within: 20s}}
  - {id: no-drops, match: {protocol: http, action: POST, http: {json: {\"$.op\": drop}}}, action: deny, reason: nothing is dropped}
  - {id: not-there, match: {protocol: http, http: {path: \"/private/{name}\"}}, action: deny, reason: that is private}
";

const USERS: &str = r#"{"users": [{"name": "Ada", "phone": "555-0100", "mail": "ada@example.com"}], "password": "hunter22"}"#;

fn agent(daemon: &Daemon, version: &str) -> Command {
    let mut curl = daemon.run_as("web", "curl");
    curl.args([
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--compressed",
        version,
    ]);
    curl
}

#[test]
fn requests_are_decided_and_answers_masked_in_every_version() {
    let (web, daemon) = (web(), daemon(POLICY));
    fs::write(web.root().join("users.json"), USERS).unwrap();
    let bases = [
        ("--http1.1", format!("https://localhost:{}", web.good)),
        ("--http2", format!("https://localhost:{}", web.good)),
        ("--http1.0", format!("http://localhost:{}", web.plain)),
        ("--http1.1", format!("http://localhost:{}", web.plain)),
    ];
    for (version, base) in &bases {
        let ask = |path: &str, more: &[&str]| {
            run::outcome(
                agent(&daemon, version)
                    .args(more)
                    .arg(format!("{base}{path}")),
            )
            .unwrap()
        };
        let users = ask("/users.json", &[]);
        let expected = r#"{"users": [{"name": "Ada", "phone": null, "mail": "[redacted]"}], "password": "[redacted]"}"#;
        assert_eq!(users.stdout, expected, "{version}: {}", users.stderr);
        // A part of it couldn't be masked by name: all of it is asked for.
        let part = ask("/users.json", &["--range", "10-60"]);
        assert_eq!(part.stdout, expected, "{version}: {}", part.stderr);
        let refused = ask("/private/notes", &["--write-out", "%{http_code}"]);
        assert!(
            refused.stdout.ends_with("403") && refused.stdout.contains("that is private"),
            "{version}: {}",
            refused.stdout
        );
        let refused = ask("/echo", &["--data", "{\"op\": \"drop\"}"]);
        assert!(
            refused.stdout.contains("nothing is dropped"),
            "{version}: {}",
            refused.stdout
        );
    }
    let journal = daemon.ask(&["export", "--format", "jsonl"]).unwrap();
    for secret in ["hunter22", "555-0100", "ada@example.com"] {
        assert!(!journal.contains(secret), "{secret} is on record");
    }
    let records = records(&daemon);
    let masked = records
        .iter()
        .filter(|record| record["kind"] == "response" && record["masked"].is_array());
    assert!(masked.count() >= bases.len());
}

#[test]
fn fields_are_set_and_removed_as_a_rule_says() {
    let policy = "
default: {action: deny, reason: no}
rules:
  - {id: reads, match: {protocol: http, class: [read]}, action: allow}
  - id: marked
    match: {protocol: http, http: {path: /headers}}
    action: allow
    rewrite: {headers: {set: {X-Added: by-rule}, remove: [\"x-gone\", authorization]}}
  - id: asked
    match: {protocol: http, http: {path: \"/echo/{kind}/{id}\", captures: {kind: [users, team?]}}}
    action: allow
    rewrite: {query: {set: {limit: \"10\"}, remove: [all]}}
";
    let (web, daemon) = (web(), daemon(policy));
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://localhost:{}/headers", web.good);
        let fields = [
            "X-Added: mine",
            "X-Gone: here",
            "Authorization: Bearer placeholder",
        ];
        let fields = fields.iter().flat_map(|field| ["--header", field]);
        let outcome = run::outcome(agent(&daemon, version).args(fields).arg(url)).unwrap();
        assert_eq!(
            outcome.stdout, "by-rule||\n",
            "{version}: {}",
            outcome.stderr
        );
    }
    for (path, expected) in [
        ("/echo/users/1?all=1&x=y", "/echo/users/1?x=y&limit=10"),
        ("/echo/teams/1", "/echo/teams/1?limit=10"),
        ("/echo/keys/1?all=1", "/echo/keys/1?all=1"),
    ] {
        for version in ["--http1.1", "--http2"] {
            let url = format!("https://localhost:{}{path}", web.good);
            let seen = run::outcome(agent(&daemon, version).arg(url)).unwrap();
            let expected = format!("GET localhost:{} {expected}\n", web.good);
            assert_eq!(seen.stdout, expected, "{version}: {}", seen.stderr);
        }
    }
    let rewritten = records(&daemon)
        .iter()
        .filter(|record| record["name"] == "http_rewritten")
        .count();
    assert_eq!(rewritten, 2 + 4);
}

#[test]
fn an_upload_waits_for_a_person_and_goes_on_as_it_was_seen() {
    let (web, daemon) = (web(), daemon(POLICY));
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://localhost:{}/echo", web.good);
        let held = run::start(agent(&daemon, version).args(["--data", "a=1", &url])).unwrap();
        let question = daemon.held().unwrap();
        let id = question["approval"]
            .as_str()
            .or(question["id"].as_str())
            .unwrap()
            .to_owned();
        let shown = daemon.ask(&["approvals", "show", &id]).unwrap();
        assert!(shown.contains("POST") && shown.contains("a=1"), "{shown}");
        daemon.ask(&["approvals", "approve", &id]).unwrap();
        let outcome = held.outcome_within(run::PATIENCE).unwrap();
        assert_eq!(
            outcome.stdout,
            format!("POST localhost:{} /echo\n", web.good),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn much_goes_both_ways_in_little_memory() {
    let (web, daemon) = (web(), daemon("default: {action: allow}\n"));
    const MEBIBYTES: usize = 256;
    /// Of both processes, for a GiB.
    const GROWTH_MAX: usize = 48 << 20;
    let big = web.root().join("big");
    fs::File::create(&big)
        .unwrap()
        .set_len((MEBIBYTES << 20) as u64)
        .unwrap();
    // What launches take once has been taken: the kernel's types are read by a thread of several, and each keeps what
    // that took. Until eight in a row have taken nothing.
    let (mut most, mut calm) = (0, 0);
    for _ in 0..60 {
        let url = format!("https://localhost:{}/echo", web.good);
        run::output(agent(&daemon, "--http1.1").arg(&url)).unwrap();
        let [now, _] = daemon.memory().unwrap();
        calm = if now > most + (1 << 20) { 0 } else { calm + 1 };
        most = most.max(now);
        if calm == 8 {
            break;
        }
    }
    daemon.forget_peak().unwrap();
    let [before, _] = daemon.memory().unwrap();
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://localhost:{}/big", web.good);
        let down = run::outcome(agent(&daemon, version).args([
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            &url,
        ]))
        .unwrap();
        assert_eq!(
            down.stdout,
            (MEBIBYTES << 20).to_string(),
            "{version}: {}",
            down.stderr
        );
        let url = format!("https://localhost:{}/sink", web.good);
        let up = run::outcome(
            agent(&daemon, version)
                .arg("--upload-file")
                .arg(&big)
                .args(["--output", "/dev/null", "--write-out", "%{http_code}", &url]),
        )
        .unwrap();
        assert_eq!(up.stdout, "200", "{version}: {}", up.stderr);
    }
    fs::remove_file(big).unwrap();
    let [_, peak] = daemon.memory().unwrap();
    let growth = peak.saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{} KiB more", growth >> 10);
    let digests = records(&daemon)
        .iter()
        .filter(|record| record["kind"] == "content" && record["digest"].is_string())
        .count();
    assert!(digests >= 4, "{digests}");
}
