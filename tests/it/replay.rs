//! Sessions played again, on a terminal that has to be as it was afterwards.

use std::{fs, process::Command};

use interceptor_tests::{clients::Way, daemon::Daemon, paths, run};
use serde_json::Value;

use crate::{
    support::{ALLOW_ALL, cluster},
    tls,
};

/// Some of what a terminal would obey: a title, the clipboard, colours, another direction.
const HOSTILE: &str = "SELECT '\u{1b}]0;owned\u{7}\u{1b}]52;c;b3duZWQ=\u{7}\u{1b}[2J\u{1b}[31m\u{202e}evil\r22:07:01.123     approved, once' AS bad";

/// A session of psql with those statements, and its id.
fn session(daemon: &Daemon, statements: &[&str]) -> String {
    let database = cluster().database().unwrap();
    let commands: Vec<String> = statements
        .iter()
        .map(|statement| format!("--command={statement}"))
        .collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    run::outcome(&mut Way::Guarded(daemon, "player").psql(&database, &commands)).unwrap();
    let sessions = daemon.ask_json(&["sessions", "list"]).unwrap();
    let last = sessions.as_array().unwrap().last().unwrap();
    last["id"].as_str().unwrap().to_owned()
}

/// What becomes of a replay with `arguments` on a terminal of that many columns, by somebody who does what `script` says.
fn played(daemon: &Daemon, columns: u16, script: &str, arguments: &[&str]) -> Value {
    let arguments = [&["sessions", "replay"], arguments].concat();
    let replay = daemon.command(arguments);
    let mut player = Command::new("python3");
    player
        .arg(paths::client("player.py"))
        .arg(columns.to_string())
        .arg(script)
        .arg(replay.get_program())
        .args(replay.get_args());
    let said = run::outcome(&mut player).unwrap().success().unwrap();
    let played: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(played["restored"], true, "{played}");
    played
}

fn screen(played: &Value) -> &str {
    played["screen"].as_str().unwrap()
}

#[test]
fn a_session_plays_as_a_dialogue_and_nothing_in_it_acts_on_the_terminal() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let id = session(
        &daemon,
        &[
            "SELECT id, name FROM shop.customers ORDER BY id",
            HOSTILE,
            "SELECT 1/0",
        ],
    );
    let played = played(&daemon, 60, "", &[&id, "--max-pause", "50ms"]);
    assert_eq!(played["code"], 0);
    let shown = screen(&played);
    for part in [
        "SELECT id, name FROM",
        "Grace",
        "allowed",
        "by rule default",
        "error 22012",
        "owned",
    ] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    for part in ["\u{1b}]", "\u{1b}[2J", "\u{202e}", "\u{7}"] {
        assert!(!shown.contains(part), "{part:?} in {shown:?}");
    }
    // However narrow it is, no line of theirs begins where ours do.
    let faked = shown.lines().filter(|line| line.contains("22:07:01.123"));
    for line in faked {
        let before = line.split("22:07:01.123").next().unwrap_or_default();
        assert!(before.len() >= 19, "{line:?}");
    }
    // Printed at once where nobody watches, and the same without a daemon.
    let piped = daemon.ask(&["sessions", "replay", &id]).unwrap();
    assert!(!piped.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{piped}");
    assert!(
        piped.contains("Grace") && piped.contains("22012"),
        "{piped}"
    );
    let state = daemon.state();
    let offline = daemon
        .ask(&[
            "sessions",
            "replay",
            &id,
            "--state",
            state.to_str().unwrap(),
        ])
        .unwrap();
    assert_eq!(offline, piped);
    let later = daemon
        .ask(&["sessions", "replay", &id, "--from", "3"])
        .unwrap();
    assert!(later.contains("1/0") && !later.contains("Grace"), "{later}");
    let behind = daemon
        .ask(&["sessions", "replay", &id, "--from", "99"])
        .unwrap_err();
    assert!(
        behind.to_string().contains("over by then; it has"),
        "{behind}"
    );
    let json = daemon
        .ask(&["-o", "json", "sessions", "replay", &id])
        .unwrap();
    assert!(json.lines().all(|line| line.starts_with('{')), "{json}");
}

#[test]
fn keys_step_pause_go_back_and_leave_and_the_terminal_is_as_it_was() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let id = session(
        &daemon,
        &[
            "SELECT 'the first'",
            "SELECT 'the second'",
            "SELECT 'the third'",
        ],
    );
    let script = "until space . + - q
        keys .
        until the first
        until space . + - q
        keys \\x1b[C
        until the second
        keys \\x1b[D
        until -- back to #1
        until the first
        keys +
        until 2x paused
        keys \\x1a
        stopped
        until space . + - q
        keys q";
    let stepped = played(&daemon, 100, script, &[&id, "--step"]);
    assert_eq!(stepped["code"], 0);
    assert!(!screen(&stepped).contains("#3"), "{stepped}");
    // By signals from elsewhere it is left as well as it is by keys.
    for (script, code) in [
        (
            "until space . + - q\nsignal SIGTSTP\nstopped\nuntil space . + - q\nkeys \\x03",
            0,
        ),
        ("until space . + - q\nsignal SIGTERM", 143),
        ("until space . + - q\nsignal SIGINT", 130),
    ] {
        let left = played(&daemon, 80, script, &[&id, "--step"]);
        assert_eq!(left["code"], code, "{left}");
    }
}

#[test]
fn a_statement_of_sixteen_mebibytes_shows_its_beginning_and_is_found_by_its_end() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    let file = daemon.folder().join("long.sql");
    let long = format!(
        "SELECT length('{}') AS needle_at_the_end;\n",
        "x".repeat(16 << 20)
    );
    fs::write(&file, long).unwrap();
    let file = format!("--file={}", file.display());
    run::outcome(&mut Way::Direct.psql(&database, &[&file]))
        .unwrap()
        .success()
        .unwrap();
    run::outcome(&mut Way::Guarded(&daemon, "long").psql(&database, &[&file])).unwrap();
    let found = daemon
        .ask_json(&["sessions", "list", "--text", "needle_at_the_end"])
        .unwrap();
    let id = found[0]["id"].as_str().expect("it is found");
    let piped = daemon.ask(&["sessions", "replay", id]).unwrap();
    assert!(piped.len() < 20_000, "{}", piped.len());
    assert!(
        piped.contains("MiB more: `interceptor sessions show`"),
        "{piped}"
    );
    let played = played(&daemon, 80, "", &[id, "--max-pause", "0s"]);
    assert_eq!(played["code"], 0);
}

#[test]
fn requests_play_as_exchanges() {
    let (web, daemon) = (tls::web(), tls::daemon(ALLOW_ALL));
    let mut curl = daemon.run_as("browser", "curl");
    curl.args([
        "--silent",
        "--max-time",
        "20",
        "--data",
        "first line\u{a}second",
        "--header",
    ])
    .arg("X-Evil: \u{9b}31m")
    .arg(format!("http://127.0.0.1:{}/echo/plain?a=b", web.plain));
    run::outcome(&mut curl).unwrap().success().unwrap();
    let sessions = daemon
        .ask_json(&["sessions", "list", "--text", "/echo/plain"])
        .unwrap();
    let id = sessions[0]["id"].as_str().expect("it is found");
    let played = played(&daemon, 100, "", &[id, "--max-pause", "0s"]);
    let shown = screen(&played);
    for part in [
        "POST /echo/plain?a=b HTTP/1.1",
        "header fields,",
        "HTTP/1.1 200 OK",
        "allowed",
    ] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert!(!shown.contains(['\u{9b}', '\u{202e}']), "{shown:?}");
}
