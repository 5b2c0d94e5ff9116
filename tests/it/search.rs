//! Sessions found by the words of what was done in them.

use std::{fs, path::Path};

use interceptor_tests::{clients::Way, cluster::Database, daemon::Daemon, run};
use serde_json::Value;

use crate::{
    support::{ALLOW_ALL, cluster},
    tls,
};

fn psql(daemon: &Daemon, agent: &str, database: &Database<'_>, sql: &str) {
    let command = format!("--command={sql}");
    run::outcome(&mut Way::Guarded(daemon, agent).psql(database, &[&command])).unwrap();
}

/// The agents of the sessions that have `text`, as the daemon finds them; the same without it.
fn agents(daemon: &Daemon, text: &str) -> Vec<String> {
    let state = daemon.state();
    let asked = ["sessions", "list", "--text", text];
    let offline = [&asked[..], &["--state", state.to_str().unwrap()]].concat();
    let [live, offline] = [&asked[..], &offline].map(|arguments| {
        let found = daemon.ask_json(arguments).unwrap();
        let sessions = found.as_array().unwrap().iter();
        sessions
            .map(|session| session["agent"].as_str().unwrap().to_owned())
            .collect::<Vec<String>>()
    });
    assert_eq!(live, offline, "{text}");
    live
}

#[test]
fn sessions_are_found_by_statements_paths_and_hosts() {
    let (web, daemon) = (tls::web(), tls::daemon(ALLOW_ALL));
    let database = cluster().database().unwrap();
    psql(
        &daemon,
        "reader",
        &database,
        "SELECT id, name FROM shop.customers ORDER BY id",
    );
    psql(
        &daemon,
        "writer",
        &database,
        "UPDATE shop.orders SET note = 'Überfällig' WHERE id = 1",
    );
    let mut curl = daemon.run_as("browser", "curl");
    curl.args(["--silent", "--max-time", "20"]).arg(format!(
        "http://localhost:{}/echo/Invoices/2026?page=7",
        web.plain
    ));
    run::outcome(&mut curl).unwrap().success().unwrap();
    for (text, expected) in [
        ("shop.customers", &["reader"][..]),
        ("SHOP.ORDERS", &["writer"]),
        ("überfällig", &["writer"]),
        ("ord*", &["reader", "writer"]),
        ("shop.*", &["reader", "writer"]),
        ("update note", &["writer"]),
        ("update customers", &[]),
        ("\"order by id\"", &["reader"]),
        ("\"by order\"", &[]),
        ("invoices", &["browser"]),
        ("/echo/invoices", &["browser"]),
        ("localhost", &["browser"]),
        // What came back is not searched.
        ("grace", &[]),
    ] {
        assert_eq!(agents(&daemon, text), expected, "{text}");
    }
    let filtered = daemon
        .ask_json(&["sessions", "list", "--text", "shop.*", "--agent", "reader"])
        .unwrap();
    assert_eq!(filtered.as_array().unwrap().len(), 1);
    let long = "word ".repeat(20_000);
    for (text, said) in [
        ("*", "write `ord*`"),
        ("\"drop table", "quotation mark is not closed; put one"),
        ("--", "there is no word in"),
        (&*long, "give up to 1024"),
    ] {
        let refused = daemon
            .ask(&["sessions", "list", &format!("--text={text}")])
            .unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
    }
    // Whoever asks the API is told the same.
    let path = "http://localhost/v1/sessions?text=%22drop";
    let mut curl = std::process::Command::new("curl");
    curl.args(["--silent", "--unix-socket"])
        .arg(daemon.control())
        .arg(path);
    let body: Value = serde_json::from_str(&run::output(&mut curl).unwrap()).unwrap();
    assert!(
        body["error"].as_str().unwrap().contains("not closed"),
        "{body}"
    );
}

#[test]
fn what_a_mask_removed_is_not_found_and_not_on_disk() {
    let mut daemon = Daemon::start(
        "
default: {action: allow}
rules:
  - {id: masked, match: {protocol: postgres, action: SELECT}, action: allow, mask: [{column: email, with: redact}]}
",
    )
    .unwrap();
    let database = cluster().database().unwrap();
    let secret = "grace@navy.example";
    database
        .sql(&format!(
            "UPDATE shop.customers SET email = '{secret}' WHERE id = 1"
        ))
        .unwrap();
    psql(
        &daemon,
        "reader",
        &database,
        "SELECT id, email FROM shop.customers ORDER BY id",
    );
    assert_eq!(agents(&daemon, "email"), ["reader"]);
    for text in [
        "grace",
        "navy.example",
        "navy",
        secret,
        "\"grace@navy.example\"",
    ] {
        assert!(agents(&daemon, text).is_empty(), "{text}");
    }
    let state = daemon.state();
    let absent = |when| {
        each_file(&state, &mut |path, bytes| {
            for part in ["grace", "navy"] {
                let has = bytes
                    .windows(part.len())
                    .any(|window| window == part.as_bytes());
                assert!(!has, "{part} is in {} {when}", path.display());
            }
        });
    };
    absent("while it runs");
    daemon.stop().unwrap();
    absent("when it has stopped");
}

fn each_file(folder: &Path, each: &mut impl FnMut(&Path, &[u8])) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            each_file(&path, each);
        } else if kind.is_file() {
            each(&path, &fs::read(&path).unwrap());
        }
    }
}

#[test]
fn what_was_found_is_found_again_after_a_kill_and_with_a_damaged_index() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    psql(
        &daemon,
        "first",
        &database,
        "SELECT 'needle' FROM shop.orders",
    );
    for round in 0..3 {
        daemon.kill().unwrap();
        daemon.restart().unwrap();
        psql(
            &daemon,
            "more",
            &database,
            &format!("SELECT 'thread{round}'"),
        );
        assert_eq!(agents(&daemon, "needle shop.orders"), ["first"]);
        assert_eq!(agents(&daemon, "thread*").len(), round + 1);
    }
    let index = daemon.state().join("index");
    for damage in ["changed", "cut", "gone"] {
        daemon.stop().unwrap();
        each_file(&index, &mut |path, bytes| match damage {
            "changed" => {
                let mut changed = bytes.to_vec();
                changed
                    .iter_mut()
                    .step_by(97)
                    .for_each(|byte| *byte ^= 0x55);
                fs::write(path, changed).unwrap();
            }
            "cut" => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
            _ => fs::remove_file(path).unwrap(),
        });
        daemon.restart().unwrap();
        assert_eq!(agents(&daemon, "needle"), ["first"], "{damage}");
        assert_eq!(
            agents(&daemon, "\"from shop.orders\""),
            ["first"],
            "{damage}"
        );
        assert_eq!(agents(&daemon, "thread2").len(), 1, "{damage}");
    }
}

#[test]
fn hostile_statements_are_found_and_shown_escaped() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    let evil = "SELECT 'needle1\u{1b}]52;c;b3duZWQ=\u{7}needle2\u{202e}needle3\r\nneedle4'";
    psql(&daemon, "evil", &database, evil);
    for text in ["needle1", "needle2 needle3", "needle4", "b3duZWQ"] {
        assert_eq!(agents(&daemon, text), ["evil"], "{text}");
    }
    let refused = daemon
        .ask(&["sessions", "list", "--text", "\u{1b}]52;c;x\u{7}*"])
        .unwrap_err();
    assert!(
        !refused.to_string().contains(['\u{1b}', '\u{7}']),
        "{refused:?}"
    );
}
