//! The record: complete, as documented, and no byte of it can change unseen.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use interceptor_tests::{clients::Way, cluster::free_port, daemon::Daemon, paths, run};

use serde_json::{Value, json};

use crate::support::{ALLOW_ALL, cluster};

/// How long something may take that comes every second.
const SOON: Duration = Duration::from_secs(15);

/// A daemon with something on record.
fn recorded() -> Daemon {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    for sql in [
        "SELECT id, name FROM shop.customers ORDER BY id",
        "UPDATE shop.orders SET note = 'changed' WHERE id = 1",
        "SELECT 1/0",
    ] {
        run::outcome(
            &mut Way::Guarded(&daemon, "recorded").psql(&database, &[&format!("--command={sql}")]),
        )
        .unwrap();
    }
    daemon
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files that are the evidence.
fn segments(state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .strip_prefix(state)
                .unwrap()
                .to_string_lossy()
                .contains("segment")
            {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no segments in {}", state.display());
    found
}

#[test]
fn a_session_is_exported_from_start_to_end() {
    let daemon = recorded();
    let journal = daemon.journal().unwrap();
    let start = journal.of_kind("session_start").next().unwrap();
    assert_eq!(start.agent, "recorded");
    let session = start.session.clone().unwrap();
    let kinds: Vec<&str> = journal
        .lines
        .iter()
        .filter(|line| line.session.as_ref() == Some(&session))
        .map(|line| line.kind.as_str())
        .collect();
    assert_eq!(kinds.first(), Some(&"session_start"));
    assert_eq!(kinds.last(), Some(&"session_end"));
    for kind in ["operation", "decision", "response"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let operation = journal
        .mentioning("operation", "SELECT id, name FROM shop.customers")
        .next()
        .expect("the statement");
    assert!(operation.mentions("customers"));
    assert!(
        journal.mentioning("response", "Grace").next().is_some(),
        "the rows"
    );
    assert!(
        journal.mentioning("response", "UPDATE 1").next().is_some(),
        "the tag"
    );
    assert!(
        journal.mentioning("response", "22012").next().is_some(),
        "the error"
    );

    let only = daemon
        .ask(&["export", "--session", &session, "--format", "jsonl"])
        .unwrap();
    let lines = only.lines().filter(|line| !line.is_empty()).count();
    assert_eq!(lines, kinds.len(), "one session's lines and no others");
}

#[test]
fn sessions_are_listed_and_shown() {
    let daemon = recorded();
    let sessions = daemon.ask_json(&["sessions", "list"]).unwrap();
    let sessions = sessions.as_array().unwrap();
    assert_eq!(sessions.len(), 3);
    let first = sessions[0]["id"].as_str().unwrap();
    for (asked, expected) in [
        (&["--class", "write"][..], 1),
        (&["--class", "write", "--class", "schema"], 1),
        (&["--agent", "nobody"], 0),
        (&["--agent", "recorded", "--over", "--verdict", "allow"], 3),
        (&["--verdict", "deny"], 0),
        (&["--live"], 0),
        (&["--destination", "127.0.0.1", "--protocol", "postgres"], 3),
        (&["--protocol", "http"], 0),
        (&["--since", "1h"], 3),
        (&["--until", "1h"], 0),
        (&["--limit", "2"], 2),
    ] {
        let arguments = [&["sessions", "list"], asked].concat();
        let found = daemon.ask_json(&arguments).unwrap();
        assert_eq!(found.as_array().unwrap().len(), expected, "{asked:?}");
        let state = daemon.state();
        let arguments = [&arguments[..], &["--state", state.to_str().unwrap()]].concat();
        let found = daemon.ask_json(&arguments).unwrap();
        assert_eq!(
            found.as_array().unwrap().len(),
            expected,
            "{asked:?} offline"
        );
    }
    let wrong = daemon
        .ask(&["sessions", "list", "--class", "none"])
        .unwrap_err();
    assert!(wrong.to_string().contains("`none` is no class"), "{wrong}");
    assert!(daemon.ask(&["sessions", "list"]).unwrap().contains(first));
    let all: String = sessions
        .iter()
        .map(|session| {
            daemon
                .ask(&["sessions", "show", session["id"].as_str().unwrap()])
                .unwrap()
        })
        .collect();
    assert!(all.contains("UPDATE shop.orders"), "{all}");
    assert!(all.contains("22012"), "{all}");
}

#[test]
fn an_untouched_log_verifies_live_stopped_and_copied() {
    let mut daemon = recorded();
    daemon.ask(&["verify"]).unwrap();
    let state = daemon.state();
    let state = state.to_str().unwrap();
    daemon.ask(&["verify", state]).unwrap();
    let live = daemon.folder().join("live");
    copy(&daemon.state(), &live);
    daemon.ask(&["verify", live.to_str().unwrap()]).unwrap();
    daemon.stop().unwrap();
    let said = daemon.ask(&["verify", state]).unwrap();
    assert!(said.contains("intact"), "{said}");
    daemon.restart().unwrap();
    daemon.ask(&["verify"]).unwrap();
}

#[test]
fn any_changed_byte_is_found() {
    let mut daemon = recorded();
    daemon.stop().unwrap();
    let copied = daemon.folder().join("copied");
    copy(&daemon.state(), &copied);
    let verify = || {
        run::outcome(&mut daemon.command(["verify".as_ref(), copied.as_os_str()]))
            .unwrap()
            .status
            .code()
    };
    assert_eq!(verify(), Some(0));
    for segment in segments(&copied) {
        let bytes = fs::read(&segment).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len().div_ceil(25).max(1)) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            fs::write(&segment, &changed).unwrap();
            assert_eq!(verify(), Some(5), "byte {at} of {}", segment.display());
        }
        for kept in [0, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&segment, &bytes[..kept]).unwrap();
            assert_eq!(verify(), Some(5), "{} cut at {kept}", segment.display());
        }
        fs::write(&segment, &bytes).unwrap();
    }
    assert_eq!(verify(), Some(0));
}

#[test]
fn what_was_put_back_to_an_earlier_time_is_found_by_a_checkpoint_from_elsewhere() {
    let mut daemon = recorded();
    daemon.stop().unwrap();
    let earlier = daemon.folder().join("earlier");
    copy(&daemon.state(), &earlier);
    daemon.restart().unwrap();
    let database = cluster().database().unwrap();
    run::outcome(&mut Way::Guarded(&daemon, "later").psql(&database, &["--command=SELECT 1"]))
        .unwrap();
    daemon.stop().unwrap();
    let newest = daemon.folder().join("newest");
    fs::copy(daemon.state().join("checkpoint"), &newest).unwrap();
    let verify = |state: &Path, checkpoint: &Path| {
        let mut arguments = vec!["verify".as_ref(), state.as_os_str()];
        arguments.extend(["--checkpoint".as_ref(), checkpoint.as_os_str()]);
        run::outcome(&mut daemon.command(arguments)).unwrap()
    };
    // By itself it is as good as it was.
    daemon.ask(&["verify", earlier.to_str().unwrap()]).unwrap();
    let found = verify(&earlier, &newest);
    assert_eq!(found.status.code(), Some(5), "{found:?}");
    assert!(found.stdout.contains("rolled back: 0000"), "{found:?}");
    let sound = verify(&daemon.state(), &earlier.join("checkpoint"));
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert!(sound.stdout.contains("kept elsewhere"), "{sound:?}");
}

#[test]
fn witnesses_are_told_and_missed_and_told_again() {
    let port = free_port().unwrap();
    let mut daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let token = folder.join("token");
        fs::write(&token, "keep-this\n").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "journal:\n  witness_every: 1s\n  witnesses:\n  - {{file: {}}}\n  - {{url: 'http://127.0.0.1:{port}/kept/{{seq}}', method: put, bearer: {{file: {}}}}}\n",
            folder.join("kept").display(),
            token.display()
        )
    })
    .unwrap();
    let (kept, sent) = (daemon.folder().join("kept"), daemon.folder().join("sent"));
    let agent = |daemon: &Daemon| {
        run::outcome(daemon.run_as("busy", "/bin/true").arg("")).unwrap();
    };
    agent(&daemon);
    // One of them isn't there: that is said, and keeps nobody.
    let troubles = || {
        // Degraded, which its exit code says.
        run::outcome(&mut daemon.command(["status"]))
            .unwrap()
            .stdout
    };
    run::wait_for("a trouble", SOON, || {
        Ok(troubles()
            .contains("the witness http://127.0.0.1")
            .then_some(()))
    })
    .unwrap();
    let mut witness = Command::new("python3");
    witness
        .arg(paths::client("witness.py"))
        .arg(port.to_string());
    let mut witness = witness.arg(&sent).spawn().unwrap();
    run::wait_for("a checkpoint", SOON, || Ok(sent.exists().then_some(()))).unwrap();
    run::wait_for("no trouble", SOON, || {
        Ok((!troubles().contains("witness")).then_some(()))
    })
    .unwrap();
    let journal = daemon.journal().unwrap();
    for name in ["witness_failed", "witness_reached"] {
        assert_eq!(journal.mentioning("event", name).count(), 1, "{name}");
    }
    // Those of a daemon's end are among them, so that going back to any earlier time is found.
    daemon.stop().unwrap();
    let earlier = daemon.folder().join("earlier");
    copy(&daemon.state(), &earlier);
    daemon.restart().unwrap();
    agent(&daemon);
    daemon.stop().unwrap();
    witness.kill().unwrap();
    witness.wait().unwrap();
    let own = fs::read_to_string(daemon.state().join("checkpoint")).unwrap();
    let (kept_text, sent) = (
        fs::read_to_string(&kept).unwrap(),
        fs::read_to_string(sent).unwrap(),
    );
    assert!(kept_text.ends_with(&own), "{kept_text}");
    assert!(sent.ends_with(&own) && sent.starts_with("/kept/"), "{sent}");
    assert!(kept_text.matches("interceptor/journal\n").count() > 2);
    let verify = |state: &Path| {
        let arguments = [
            "verify".as_ref(),
            state.as_os_str(),
            "--checkpoint".as_ref(),
            kept.as_os_str(),
        ];
        run::outcome(&mut daemon.command(arguments)).unwrap()
    };
    let sound = verify(&daemon.state());
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    let back = verify(&earlier);
    assert_eq!(back.status.code(), Some(5), "{back:?}");
    assert!(back.stdout.contains("rolled back"), "{back:?}");
}

#[test]
fn an_acknowledged_record_survives_kill() {
    let mut daemon = recorded();
    for _ in 0..5 {
        let before = daemon.journal().unwrap().lines.len();
        daemon.kill().unwrap();
        daemon.restart().unwrap();
        assert!(daemon.journal().unwrap().lines.len() >= before);
        daemon.ask(&["verify"]).unwrap();
    }
}

#[test]
fn what_a_killed_daemon_held_has_ended_when_the_next_one_is_there() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    let sleeps = "--command=SELECT pg_sleep(60)";
    let psql = &mut Way::Guarded(&daemon, "held").psql(&database, &[sleeps]);
    let sleeping = run::start(psql).unwrap();
    let listed = |daemon: &Daemon, live: &[&str]| {
        let list = [&["sessions", "list"], live].concat();
        daemon.ask_json(&list).unwrap()
    };
    let asked =
        || Ok((listed(&daemon, &["--live", "--class", "read"])[0] != Value::Null).then_some(()));
    run::wait_for("it to ask", Duration::from_secs(10), asked).unwrap();
    daemon.kill().unwrap();
    sleeping.outcome().unwrap();
    daemon.restart().unwrap();
    assert_eq!(listed(&daemon, &["--live"]), json!([]));
    let over = listed(&daemon, &["--over", "--agent", "held"]);
    assert_eq!(
        over[0]["reason"], "the daemon ended, and the session with it",
        "{over}"
    );
    assert_eq!(over[0]["operations"], 1, "{over}");
    // Once, and not again by every daemon to come.
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    let journal = daemon.journal().unwrap();
    let ends = journal
        .of_kind("session_end")
        .filter(|line| line.agent == "held");
    assert_eq!(ends.count(), 1);
    daemon.ask(&["verify"]).unwrap();
}

#[test]
fn a_full_disk_ends_sessions_with_an_error_and_loses_nothing() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    daemon.stop().unwrap();
    let state = daemon.state();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &state, Some("tmpfs"), flags, Some("size=4m")).unwrap();
    let unmount = Unmount(state.clone());
    daemon.restart().unwrap();
    let database = cluster().database().unwrap();
    let mut script = Way::Guarded(&daemon, "greedy")
        .script(&database, "unrecorded.py", &[])
        .unwrap();
    // Less is left than one segment takes.
    fs::write(state.join("ballast"), vec![7; 2 << 20]).unwrap();
    let said = run::start(&mut script)
        .unwrap()
        .outcome_within(std::time::Duration::from_secs(60))
        .unwrap()
        .success()
        .unwrap();
    let [answers, refused, anew] = said.lines().collect::<Vec<_>>()[..] else {
        panic!("{said}");
    };
    assert!(refused.starts_with("58030"), "{said}");
    assert!(refused.contains("can't be recorded"), "{said}");
    assert!(anew.contains("can't be recorded"), "{said}");
    let status = run::outcome(&mut daemon.command(["status"])).unwrap();
    assert_eq!(status.status.code(), Some(3));
    assert!(status.stdout.contains("No space left"), "{status:?}");

    // With room again it goes on by itself, and everything that was answered is on record.
    fs::remove_file(state.join("ballast")).unwrap();
    run::wait_for(
        "the journal to go on",
        std::time::Duration::from_secs(10),
        || {
            let asked =
                &mut Way::Guarded(&daemon, "after").psql(&database, &["--command=SELECT 1"]);
            Ok(run::output(asked).ok())
        },
    )
    .unwrap();
    daemon.ask(&["verify"]).unwrap();
    let journal = daemon.journal().unwrap();
    let recorded = journal.mentioning("response", "SELECT 1").count();
    // Those and the one that was asked when there was room again.
    assert!(
        recorded > answers.parse().unwrap(),
        "{recorded} of {answers}"
    );
    // Both that were turned away have an end on record that says why.
    let ends = || {
        let journal = daemon.journal()?;
        let ends = journal
            .mentioning("session_end", "takes no records")
            .count();
        Ok((ends >= 2).then_some(()))
    };
    run::wait_for(
        "the ends to be recorded",
        std::time::Duration::from_secs(30),
        ends,
    )
    .unwrap();
    daemon.stop().unwrap();
    drop(unmount);
}

/// Unmounts when the test is over, however it ends.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
