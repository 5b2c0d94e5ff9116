//! The packs that people start from, valid and true to their own cases; and what policies say of the past.

use std::time::Duration;

use interceptor_tests::{clients::Way, daemon::Daemon, dns::Dns, netns::Outside, paths, run};
use serde_json::Value;

use crate::{
    support::{ALLOW_ALL, cluster},
    tls::{self, web},
};

#[test]
fn the_packs_are_valid_and_pass_their_cases() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for pack in [
        "starter.yaml",
        "postgres.yaml",
        "web.yaml",
        "dns.yaml",
        "docker.yaml",
    ] {
        let path = paths::root().join("policies").join(pack);
        let path = path.to_str().unwrap();
        daemon.ask(&["policy", "check", path]).unwrap();
        daemon.ask(&["policy", "test", path]).unwrap();
    }
}

#[test]
fn the_starter_pack_does_on_a_first_day_what_it_says() {
    let starter = std::fs::read_to_string(paths::root().join("policies/starter.yaml")).unwrap();
    let daemon = Daemon::start(&starter).unwrap();
    let database = cluster().database().unwrap();
    let psql = |sql: &str| {
        run::outcome(
            &mut Way::Guarded(&daemon, "first-day").psql(&database, &[&format!("--command={sql}")]),
        )
        .unwrap()
    };
    let read = psql("SELECT id, name, email FROM shop.customers ORDER BY id");
    let read = read.success().unwrap();
    assert!(
        read.contains("Ada") && !read.contains("ada@example.com"),
        "{read}"
    );
    for (sql, rule) in [
        ("TRUNCATE plain", "destruction-is-refused"),
        ("DELETE FROM plain", "whole-tables-stay"),
        (
            "SELECT pg_read_file('postgresql.conf')",
            "the-server-is-off-limits",
        ),
        ("COPY plain TO PROGRAM 'true'", "the-server-is-off-limits"),
    ] {
        let outcome = psql(sql);
        assert!(!outcome.status.success(), "{sql}");
        assert!(outcome.stderr.contains(rule), "{sql}: {outcome}");
    }
    assert_eq!(database.sql("SELECT count(*) FROM plain").unwrap(), "1000");
}

#[test]
fn the_dns_pack_lets_names_by_and_closes_a_tunnel() {
    let pack = std::fs::read_to_string(paths::root().join("policies/dns.yaml")).unwrap();
    let outside = Outside::new().unwrap();
    let dns = Dns::start(&outside).unwrap();
    let daemon = Daemon::start(&pack).unwrap();
    let [v4, v6] = dns.servers();
    let ask = |arguments: &[&str]| {
        let mut dig = Way::Guarded(&daemon, "dig").command("dig");
        dig.args(["+time=5", "+tries=1", &format!("@{v4}")])
            .args(arguments);
        run::output(&mut dig).unwrap()
    };
    assert_eq!(ask(&["+short", "web.test"]).trim(), v4);
    assert_eq!(ask(&["+short", "txt", "txt.test"]), "\"hello\"\n");
    for (arguments, rule) in [
        (
            &["any", "web.test"][..],
            "dns-names-are-looked-up-for-something",
        ),
        (
            &["+subnet=192.0.2.0/24", "web.test"],
            "dns-names-are-asked-for-alone",
        ),
        (&["use-application-dns.net"], "dns-names-are-looked-up-here"),
        (&["ch", "txt", "version.bind"], "default"),
    ] {
        let said = ask(arguments);
        assert!(said.contains("status: NXDOMAIN"), "{arguments:?}: {said}");
        assert!(said.contains(rule), "{arguments:?}: {said}");
    }
    // 40 characters in each name, over either server: one agent and one domain.
    let mut denied = 0;
    for server in [v4, v6] {
        let mut command = daemon.run_as("tunnel", paths::python().unwrap());
        command
            .arg(paths::client("resolve.py"))
            .args(["flood", server, "300", "tunnel.test"]);
        let said = run::output(&mut command).unwrap();
        let (answered, refused) = said.trim().split_once(' ').unwrap();
        assert_eq!(answered, "300");
        denied += refused.parse::<usize>().unwrap();
    }
    // The server doesn't know any of them and says so too; what reached it is what counts.
    assert_eq!(denied, 600);
    let reached = std::fs::read_to_string(dns.folder().join("log"))
        .unwrap()
        .lines()
        .filter(|line| line.contains("query[A]") && line.contains("tunnel.test"))
        .count();
    // Twice as many where ten minutes end in between.
    assert!((200..=400).contains(&reached), "{reached}");
    let journal = daemon.journal().unwrap();
    let few = journal.mentioning("decision", "dns-few-names-below-one-domain");
    assert_eq!(few.count(), 600 - reached);
    let shown = format!(" A {v4}");
    assert!(journal.mentioning("response", &shown).count() > 0);
    // Counted again, the same names are too many.
    is_decided_again(&daemon);
}

/// Holds the daemon's policy, under which all happened, to what it said.
pub(crate) fn is_decided_again(daemon: &Daemon) {
    let replayed = replayed(daemon, &[]);
    assert!(replayed["decided"].as_u64().unwrap() > 0, "{replayed:#}");
    assert_eq!(replayed["ways"], serde_json::json!([]), "{replayed:#}");
    assert_eq!(replayed["undecided"], serde_json::json!({}), "{replayed:#}");
}

/// What the daemon's own policy, or the one in `more`, says of what it decided.
fn replayed(daemon: &Daemon, more: &[&str]) -> Value {
    let [state, policies] = [daemon.state(), daemon.policies()];
    let mut arguments = vec!["policy", "replay", "--state", state.to_str().unwrap()];
    match more {
        [] => arguments.push(policies.to_str().unwrap()),
        more => arguments.extend(more),
    }
    daemon.ask_json(&arguments).unwrap()
}

const PAST: &str = "
default: {action: deny, reason: no rule allows it}
rules:
  - {id: sql-is-read, match: {protocol: postgres, class: [read]}, action: allow, mask: [{column: email, with: email}]}
  - {id: nothing-is-dropped, match: {protocol: postgres, action: \"DROP*\"}, action: deny, reason: tables stay}
  - {id: pages-are-read, match: {protocol: http, class: [read], destination: {name: localhost}}, action: allow}
  - {id: uploads, match: {protocol: http, action: POST, destination: {name: localhost}}, action: allow}
  - {id: no-drops, match: {protocol: http, http: {json: {\"$.op\": drop}}}, action: deny, reason: nothing is dropped}
  - {id: keys-stay, match: {protocol: http, content: \"AKIA[0-9A-Z]{16}\"}, action: deny, reason: that is a key}
  - {id: large, match: {protocol: http, http: {larger_than: 1KiB}}, action: deny, reason: that is too much}
  - {id: often, match: {agent: busy, rate: {over: 2, per: 1d}}, action: deny, reason: that is too often}
";

#[test]
fn the_past_is_explained_decided_again_and_made_into_rules() {
    let (web, daemon) = (web(), tls::daemon(PAST));
    let database = cluster().database().unwrap();
    let psql = |agent: &'static str, sql: &str| {
        let command = format!("--command={sql}");
        run::outcome(&mut Way::Guarded(&daemon, agent).psql(&database, &[&command])).unwrap()
    };
    for sql in [
        "SELECT id, email FROM shop.customers",
        "SELECT count(*) FROM plain",
        "DROP TABLE plain",
    ] {
        psql("reporter", sql);
    }
    for _ in 0..4 {
        psql("busy", "SELECT 1");
    }
    let bodies = [
        "{\"op\": \"add\"}",
        "{\"op\": \"drop\"}",
        "key=AKIAIOSFODNN7EXAMPLE",
        &"x".repeat(2_000),
    ];
    for (version, base) in [
        ("--http1.1", format!("https://localhost:{}", web.good)),
        ("--http2", format!("https://localhost:{}", web.good)),
        ("--http1.1", format!("http://localhost:{}", web.plain)),
    ] {
        let ask = |path: &str, more: &[&str]| {
            let mut curl = daemon.run_as("web", "curl");
            curl.args(["--silent", "--max-time", "30", version])
                .args(more);
            run::outcome(curl.arg(format!("{base}{path}"))).unwrap()
        };
        ask("/index.html?a=b", &["--header", "Authorization: Bearer x"]);
        for body in bodies {
            for framing in [
                "Content-Type: application/json",
                "Transfer-Encoding: chunked",
            ] {
                ask("/echo", &["--header", framing, "--data", body]);
            }
        }
    }

    // The same policy says the same of all of it, as soon as the last of it is on disk.
    let journal = daemon.journal().unwrap();
    let decisions: Vec<_> = journal.of_kind("decision").collect();
    let same = run::wait_for(
        "what is on record to be on disk",
        Duration::from_secs(10),
        || {
            let same = replayed(&daemon, &[]);
            Ok((same["decided"] == decisions.len()).then_some(same))
        },
    );
    let same = same.unwrap();
    assert_eq!(same["changed"], 0, "{same:#}");
    assert_eq!(same["ways"], serde_json::json!([]), "{same:#}");
    assert_eq!(same["undecided"], serde_json::json!({}), "{same:#}");
    assert!(decisions.len() >= 3 + 4 + 27, "{}", decisions.len());

    // Another one doesn't, and says of what.
    let other = daemon.folder().join("other.yaml");
    let text = PAST.replace(
        "class: [read]}, action: allow, mask",
        "class: [read], agent: busy}, action: allow, mask",
    );
    std::fs::write(&other, text).unwrap();
    let other = other.to_str().unwrap();
    let changed = replayed(&daemon, &["--agent", "reporter", other]);
    assert_eq!(changed["changed"], 2, "{changed:#}");
    assert_eq!(changed["operations"][0]["to"]["rule"], "default");
    let [state, policies] = [daemon.state(), daemon.policies()];
    let [state, policies] = [&state, &policies].map(|path| path.to_str().unwrap());
    let failing = [
        "policy",
        "replay",
        "--state",
        state,
        "--fail-on-change",
        other,
    ];
    assert_eq!(
        run::outcome(&mut daemon.command(failing))
            .unwrap()
            .status
            .code(),
        Some(1)
    );

    // Each is explained as it was decided.
    for decision in &decisions {
        let at = |pointer: &str| decision.at(pointer).unwrap().clone();
        let number = at("/operation").to_string();
        let session = decision.session.as_deref().unwrap();
        let explained = daemon
            .ask_json(&[
                "policy",
                "explain",
                "--state",
                state,
                "--session",
                session,
                "--operation",
                &number,
                policies,
            ])
            .unwrap();
        assert_eq!(explained["rule"], at("/rule"), "{explained:#}");
        assert_eq!(explained["answer"], at("/verdict"), "{explained:#}");
    }
    let text = daemon
        .ask(&[
            "policy",
            "explain",
            "--statement",
            "DROP TABLE a",
            "--agent",
            "x",
            policies,
        ])
        .unwrap();
    assert!(
        text.starts_with("denied by rule nothing-is-dropped: tables stay\n"),
        "{text}"
    );

    // Rules of what was allowed allow it, and pass their cases.
    for agent in ["reporter", "web"] {
        let output = daemon.folder().join(format!("{agent}.yaml"));
        let output = output.to_str().unwrap();
        daemon
            .ask(&[
                "policy", "suggest", "--state", state, "--agent", agent, "--output", output,
            ])
            .unwrap();
        let tested = daemon.ask(&["policy", "test", output]).unwrap();
        assert!(tested.contains(" cases passed"), "{tested}");
        let again = replayed(&daemon, &["--agent", agent, output]);
        let ways = again["ways"].as_array().unwrap();
        let stopped = ways
            .iter()
            .filter(|way| way["from"]["answer"] == "allow" && way["to"]["answer"] != "allow");
        assert_eq!(
            stopped.count(),
            0,
            "{again:#}\n{}",
            std::fs::read_to_string(output).unwrap()
        );
        assert_eq!(again["undecided"], serde_json::json!({}), "{again:#}");
    }
}

#[test]
fn what_would_be_stopped_is_told_before_it_is() {
    let observing = format!("enforce: false\n{PAST}");
    let daemon = Daemon::start(&observing).unwrap();
    let database = cluster().database().unwrap();
    for sql in [
        "DROP TABLE plain",
        "SELECT email FROM shop.customers",
        "CREATE TABLE a (b int)",
    ] {
        let command = format!("--command={sql}");
        let mut psql = Way::Guarded(&daemon, "reporter").psql(&database, &[&command]);
        run::outcome(&mut psql).unwrap().success().unwrap();
    }
    let state = daemon.state();
    let state = state.to_str().unwrap();
    let observed = run::wait_for(
        "what is on record to be on disk",
        Duration::from_secs(10),
        || {
            let observed = daemon.ask_json(&["policy", "observed", "--state", state])?;
            Ok((observed["operations"] == 3).then_some(observed))
        },
    );
    let observed = observed.unwrap();
    assert_eq!(observed["stopped"], 2, "{observed:#}");
    let rules = observed["rules"].as_array().unwrap();
    let found: Vec<_> = rules
        .iter()
        .map(|rule| {
            (
                rule["would"].as_str().unwrap(),
                rule["rule"].as_str().unwrap(),
            )
        })
        .collect();
    assert!(
        found.contains(&("deny", "nothing-is-dropped")),
        "{observed:#}"
    );
    assert!(found.contains(&("deny", "default")), "{observed:#}");
    assert!(found.contains(&("mask", "sql-is-read")), "{observed:#}");
    let text = daemon
        .ask(&["policy", "observed", "--state", state, "--since", "1h"])
        .unwrap();
    assert!(text.contains("2 would have been stopped"), "{text}");
    assert!(text.contains("DROP TABLE plain"), "{text}");
    // Enforced, it is what would be stopped.
    let enforced = daemon.folder().join("enforced.yaml");
    std::fs::write(&enforced, PAST).unwrap();
    let replayed = replayed(&daemon, &[enforced.to_str().unwrap()]);
    let stopped = replayed["ways"].as_array().unwrap().iter();
    let stopped = stopped.filter(|way| way["difference"] == "answer");
    assert_eq!(
        stopped
            .map(|way| way["operations"].as_u64().unwrap())
            .sum::<u64>(),
        2,
        "{replayed:#}"
    );
}
