//! Another signing key for the journal of a daemon that runs: whoever kept the first public key goes on checking with it,
//! whatever became of the daemon meanwhile.

use std::{
    fs,
    path::{Path, PathBuf},
};

use interceptor_tests::{clients::Way, daemon::Daemon, run};
use serde_json::Value;

use crate::{
    evidence::{checked, verified},
    support::{ALLOW_ALL, cluster},
};

/// Has the journal's key be replaced.
fn rotate(daemon: &Daemon) -> Value {
    let asked = ["journal", "rotate-key", "--reason", "yearly"];
    daemon.ask_json(&asked).unwrap()
}

/// The public key that shows, kept apart.
fn kept(daemon: &Daemon, name: &str) -> PathBuf {
    let path = daemon.folder().join(name);
    fs::copy(daemon.state().join("journal.pub"), &path).unwrap();
    path
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

#[test]
fn a_rotated_key_is_followed_wherever_it_is_checked() {
    let mut daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let copy = folder.join("copy");
        fs::create_dir(&copy).unwrap();
        format!("journal:\n  ship:\n  - folder: {}\n", copy.display())
    })
    .unwrap();
    let copy = daemon.folder().join("copy");
    let database = cluster().database().unwrap();
    let ask = |daemon: &Daemon| {
        let psql = &mut Way::Guarded(daemon, "shown").psql(&database, &["--command=SELECT 1"]);
        run::output(psql).unwrap();
    };
    let export = |daemon: &Daemon, format: &str, name: &str| {
        let path = daemon.folder().join(name);
        let asked = ["export", "--agent", "shown", "--format", format, "--output"];
        let output = path.to_str().unwrap();
        daemon.ask(&[&asked[..], &[output]].concat()).unwrap();
        path
    };
    ask(&daemon);
    let first = kept(&daemon, "first.pub");
    let early = export(&daemon, "evidence", "early.evidence");
    export(&daemon, "html", "early.html");
    let noted = daemon.folder().join("checkpoint.early");
    fs::copy(daemon.state().join("checkpoint"), &noted).unwrap();

    let rotated = rotate(&daemon);
    assert_eq!(rotated["old"], text(&first));
    let second = kept(&daemon, "second.pub");
    assert_eq!(rotated["new"], text(&second));
    assert!(rotated["up_to"].as_u64() < rotated["seq"].as_u64());
    ask(&daemon);
    let state = daemon.state();
    let good = |daemon: &Daemon, key: &Path, what: &Path| {
        let (said, is_good) = verified(daemon, key, what);
        assert!(is_good, "{}: {said}", what.display());
        said
    };
    for key in [&first, &second] {
        assert_eq!(good(&daemon, key, &state)["rotations"], 1);
    }

    // Killed right after it: one key is in force, and what is there verifies before a daemon mends anything.
    for turn in 0..3 {
        let rotated = rotate(&daemon);
        daemon.kill().unwrap();
        assert_eq!(text(&state.join("journal.pub")), rotated["new"]);
        for key in [&first, &second] {
            assert_eq!(good(&daemon, key, &state)["rotations"], turn + 2);
        }
        daemon.restart().unwrap();
    }
    ask(&daemon);
    let current = kept(&daemon, "current.pub");

    // What was made before is good for who kept the key of then, what is made now for all of them.
    let late = export(&daemon, "evidence", "late.evidence");
    export(&daemon, "html", "late.html");
    let [early_html, late_html] =
        ["early.html.manifest", "late.html.manifest"].map(|name| daemon.folder().join(name));
    for what in [&early, &early_html, &late, &late_html] {
        good(&daemon, &first, what);
    }
    for key in [&first, &second, &current] {
        let proved = good(&daemon, key, &late);
        assert_eq!(checked(key, &late).unwrap() as u64, proved["blocks"]);
        good(&daemon, key, &late_html);
        good(&daemon, key, &state);
    }
    checked(&first, &early).unwrap();
    checked(&current, &early).unwrap_err();
    let (said, is_good) = verified(&daemon, &current, &early);
    assert!(!is_good && said["problems"][0]["kind"] == "another_key");
    let mut verify = daemon.command(["verify", "--key"]);
    let refused = run::outcome(verify.arg(&current).arg(&early_html)).unwrap();
    assert_eq!(refused.status.code(), Some(5), "{refused}");

    // A checkpoint of before the rotation, kept elsewhere, is as good as it was.
    let mut verify = daemon.command(["-o", "json", "verify", "--key"]);
    verify.arg(&current).arg("--checkpoint").arg(&noted);
    let witnessed = run::output(verify.arg(&state)).unwrap();
    let witnessed: Value = serde_json::from_str(&witnessed).unwrap();
    assert!(witnessed["witnessed_up_to"].is_u64(), "{witnessed}");

    // The copy was begun under the first key.
    daemon.stop().unwrap();
    assert_eq!(text(&copy.join("journal.pub")), text(&current));
    for key in [&first, &second, &current] {
        assert_eq!(good(&daemon, key, &copy)["rotations"], 4);
    }
    let report = run::output(&mut daemon.command(["verify", copy.to_str().unwrap()])).unwrap();
    assert!(report.contains("4 rotations"), "{report}");
    let asked = ["export", "--state", copy.to_str().unwrap()];
    let copied = daemon.folder().join("copied.evidence");
    let output = ["--format", "evidence", "--output", copied.to_str().unwrap()];
    daemon.ask(&[&asked[..], &output].concat()).unwrap();
    good(&daemon, &first, &copied);

    // Nothing is left of the private keys before.
    let journal = fs::read_dir(&state).unwrap();
    let names = journal.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let secrets: Vec<String> = names
        .filter(|name| name.starts_with("journal.key.") || name == "journal.key")
        .collect();
    assert_eq!(secrets, ["journal.key"]);
}
