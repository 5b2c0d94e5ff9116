//! Evidence of real sessions: made live and of a copy, checked by us and by other people's code, and refused where
//! it was touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use interceptor_tests::{clients::Way, daemon::Daemon, paths, run};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{ALLOW_ALL, cluster};

/// The checker that knows nothing of us: Go's own notes and trees.
static CHECKER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("evidence");
    let mut build = Command::new(paths::go().unwrap());
    build
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode")])
        .env("GOCACHE", folder.path().join("cache"))
        .args(["build", "-o"])
        .arg(&program)
        .arg(paths::client("evidence.go"));
    run::output(&mut build).unwrap();
    (folder, program)
});

/// How many blocks the checker finds proved.
pub(crate) fn checked(key: &Path, file: &Path) -> Result<usize, String> {
    let outcome = run::outcome(Command::new(&CHECKER.1).arg(key).arg(file)).unwrap();
    match outcome.status.success() {
        true => Ok(outcome.stdout.trim().parse().unwrap()),
        false => Err(outcome.stderr),
    }
}

pub(crate) fn verified(daemon: &Daemon, key: &Path, file: &Path) -> (Value, bool) {
    let arguments = ["-o", "json", "verify", "--key"];
    let mut command = daemon.command(arguments);
    let outcome = run::outcome(command.arg(key).arg(file)).unwrap();
    let answer = serde_json::from_str(&outcome.stdout).unwrap();
    (answer, outcome.status.success())
}

#[test]
fn a_session_is_proved_to_people_who_trust_only_the_key() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    for agent in ["shown", "other"] {
        for number in 0..3 {
            let command = format!("--command=SELECT 'of {agent}, number {number}'");
            let psql = &mut Way::Guarded(&daemon, agent).psql(&database, &[&command]);
            run::output(psql).unwrap();
        }
    }
    let sessions = daemon
        .ask_json(&["sessions", "list", "--agent", "shown"])
        .unwrap();
    let session = sessions[0]["id"].as_str().unwrap().to_owned();
    let folder = daemon.folder().to_owned();
    let path = |name: &str| folder.join(name);
    let export = |daemon: &Daemon, name: &str, arguments: &[&str]| {
        let path = path(name);
        let output = path.to_str().unwrap();
        let common = ["export", "--format", "evidence", "--output", output];
        daemon.ask(&[&common, arguments].concat()).unwrap();
        path
    };
    let one = export(&daemon, "one", &["--session", &session]);
    let all = export(&daemon, "all", &["--agent", "shown"]);
    // Kept apart, as whoever checks has it.
    let key = path("kept.pub");
    fs::copy(daemon.state().join("journal.pub"), &key).unwrap();
    for (file, expected) in [(&one, 1), (&all, 3)] {
        let (proved, is_good) = verified(&daemon, &key, file);
        assert!(is_good, "{proved}");
        let shown = proved["sessions"].as_object().unwrap();
        assert_eq!(shown.len(), expected);
        assert!(
            shown.values().all(|session| session["ended"] == true),
            "{proved}"
        );
        assert_eq!(
            checked(&key, file).unwrap(),
            proved["blocks"].as_u64().unwrap() as usize
        );
    }
    // It is made into what the journal itself is made into.
    let lines = |arguments: [&str; 2]| {
        let [what, whose] = arguments;
        daemon.ask(&["export", what, whose]).unwrap()
    };
    let from_evidence = lines(["--evidence", one.to_str().unwrap()]);
    assert_eq!(from_evidence, lines(["--session", &session]));
    assert!(from_evidence.contains("of shown") && !from_evidence.contains("of other"));
    // A copy without its daemon proves the same sessions.
    daemon.stop().unwrap();
    let state = daemon.state().to_str().unwrap().to_owned();
    let copied = export(&daemon, "copied", &["--state", &state, "--agent", "shown"]);
    assert!(verified(&daemon, &key, &copied).1);
    checked(&key, &copied).unwrap();
    // Whatever was touched is refused, by both.
    let good = fs::read_to_string(&one).unwrap();
    let (first, second) = good.split_once('\n').unwrap();
    let place = second.find("\"bytes\":\"").unwrap() + 60;
    let mut touched = second.to_owned().into_bytes();
    touched[place] = if touched[place] == b'A' { b'B' } else { b'A' };
    let touched = String::from_utf8(touched).unwrap();
    for (what, text) in [
        ("a part", format!("{first}\n{touched}")),
        (
            "the checkpoint",
            format!("{}\n{second}", first.replacen("seq ", "seq 9", 1)),
        ),
        (
            "an index",
            format!(
                "{first}\n{}",
                second.replacen("\"index\":", "\"index\":1", 1)
            ),
        ),
    ] {
        let file = path("touched");
        fs::write(&file, text).unwrap();
        let (proved, is_good) = verified(&daemon, &key, &file);
        assert!(
            !is_good && proved["problems"][0]["kind"] != Value::Null,
            "{what}"
        );
        checked(&key, &file).unwrap_err();
        let mut export = daemon.command(["export", "--evidence"]);
        let refused = run::outcome(export.arg(&file)).unwrap();
        assert!(!refused.status.success(), "{what}: {}", refused.stdout);
    }
    let other = Daemon::start(ALLOW_ALL).unwrap();
    let stranger = other.state().join("journal.pub");
    let (proved, is_good) = verified(&daemon, &stranger, &one);
    assert!(
        !is_good && proved["problems"][0]["kind"] == "another_key",
        "{proved}"
    );
    checked(&stranger, &one).unwrap_err();
}

#[test]
fn who_made_a_file_when_is_signed_and_on_record() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    let psql = &mut Way::Guarded(&daemon, "shown").psql(&database, &["--command=SELECT 1"]);
    run::output(psql).unwrap();
    let path = daemon.folder().join("report.html");
    let output = path.to_str().unwrap();
    let asked = ["export", "--agent", "shown", "--format", "html"];
    daemon
        .ask(&[&asked[..], &["--output", output]].concat())
        .unwrap();
    let manifest = daemon.folder().join("report.html.manifest");
    let key = daemon.state().join("journal.pub");
    let (said, is_good) = verified(&daemon, &key, &manifest);
    assert!(is_good, "{said}");
    assert_eq!(
        (&said["by"], &said["format"], &said["asked"]),
        (
            &"root (uid 0)".into(),
            &"html".into(),
            &"Agent shown".into()
        )
    );
    // The journal knows the same file, and what was signed then covers that.
    let journal = daemon.journal().unwrap();
    let exported = |line: &&interceptor_tests::journal::Line| {
        line.at("/name").is_some_and(|name| name == "exported")
    };
    let record = journal.of_kind("event").find(exported).unwrap();
    assert_eq!(record.at("/detail/sha256").unwrap(), &said["sha256"]);
    assert!(said["signed_up_to"].as_u64().unwrap() >= record.seq);
    // The file changed, the manifest changed, another key.
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b" "].concat()).unwrap();
    assert!(!verified(&daemon, &key, &manifest).1);
    fs::write(&path, &whole).unwrap();
    assert!(verified(&daemon, &key, &manifest).1);
    let note = fs::read_to_string(&manifest).unwrap();
    let refused = |key: &Path| {
        let mut verify = daemon.command(["verify", "--key"]);
        let outcome = run::outcome(verify.arg(key).arg(&manifest)).unwrap();
        assert_eq!(outcome.status.code(), Some(5), "{outcome}");
    };
    fs::write(&manifest, note.replacen("uid 0", "uid 1", 1)).unwrap();
    refused(&key);
    fs::write(&manifest, &note).unwrap();
    let other = Daemon::start(ALLOW_ALL).unwrap();
    refused(&other.state().join("journal.pub"));
    // A checkpoint isn't taken for one, though the same key has signed it.
    let checkpoint = fs::read_to_string(daemon.state().join("checkpoint")).unwrap();
    let forged = note.replacen(
        note.split_once("\n\n").unwrap().1,
        checkpoint.split_once("\n\n").unwrap().1,
        1,
    );
    fs::write(&manifest, forged).unwrap();
    refused(&key);
}
