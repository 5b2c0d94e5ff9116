//! Encrypted sessions of real clients: nothing of them is on disk in clear, whoever has the key reads them, and one that
//! was erased nobody.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use interceptor_tests::{clients::Way, cluster::Database, daemon::Daemon, run};
use serde_json::Value;

use crate::{
    evidence::{checked, verified},
    support::{ALLOW_ALL, cluster},
};

const SOON: Duration = Duration::from_secs(20);

fn psql(daemon: &Daemon, agent: &str, database: &Database<'_>, sql: &str) {
    let command = format!("--command={sql}");
    run::output(&mut Way::Guarded(daemon, agent).psql(database, &[&command])).unwrap();
}

/// The session of `agent`, as soon as it is over.
fn session(daemon: &Daemon, agent: &str) -> String {
    run::wait_for("the session to be over", SOON, || {
        let found = daemon.ask_json(&["sessions", "list", "--over", "--agent", agent])?;
        Ok(found[0]["id"].as_str().map(str::to_owned))
    })
    .unwrap()
}

/// What `interceptor` says on standard error, failing.
fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let outcome = run::outcome(&mut daemon.command(arguments)).unwrap();
    assert!(
        !outcome.status.success(),
        "{arguments:?}: {}",
        outcome.stdout
    );
    outcome.stderr
}

/// The files of `folder` that have one of `words` in them.
fn with_any_of(folder: &Path, words: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(with_any_of(&path, words));
        } else if let Ok(bytes) = fs::read(&path)
            && words
                .iter()
                .any(|word| memchr::memmem::find(&bytes, word.as_bytes()).is_some())
        {
            found.push(path);
        }
    }
    found
}

/// What the journal in `folder` is found to be.
fn report(daemon: &Daemon, folder: &Path, key: Option<&Path>) -> Value {
    let mut command = daemon.command(["-o", "json", "verify"]);
    if let Some(key) = key {
        command.arg("--encryption-key").arg(key);
    }
    let outcome = run::outcome(command.arg(folder)).unwrap();
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What one agent says, and the other.
const SECRETS: [&str; 2] = ["maria-8842-k", "jonas-3317-q"];

#[test]
fn sessions_are_encrypted_on_disk_and_one_is_erased_for_good() {
    let mut places = None;
    let mut daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let (key, copy) = (folder.join("master"), folder.join("copy"));
        let made = run::output(Command::new("openssl").args(["rand", "-hex", "32"])).unwrap();
        fs::write(&key, made).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(&copy).unwrap();
        let configured = format!(
            "journal: {{encryption: {{key: {{file: {}}}}}, ship: [{{folder: {}}}]}}\n",
            key.display(),
            copy.display()
        );
        places = Some((key, copy));
        configured
    })
    .unwrap();
    let (key, copy) = places.unwrap();
    let state = daemon.state();
    let database = cluster().database().unwrap();
    // What is asked, what comes back, whom it went to and as whom.
    let address = database.name().to_owned();
    let words = [SECRETS[0], SECRETS[1], "a8a8-answer", &address];
    for (agent, secret) in ["one", "other"].into_iter().zip(SECRETS) {
        let sql = format!("SELECT '{secret}', 'a8a8' || '-answer'");
        psql(&daemon, agent, &database, &sql);
    }
    let [one, other] = ["one", "other"].map(|agent| session(&daemon, agent));
    let nowhere: Vec<PathBuf> = Vec::new();
    assert_eq!(with_any_of(&state, &words), nowhere);
    // Records wait in memory for their place on disk.
    let waiting = |folder: &Path| {
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        let names = names.filter(|name| name == "feed" || name.starts_with("waiting-"));
        names.collect::<Vec<_>>()
    };
    assert_eq!(waiting(&state), Vec::<String>::new());
    let names = fs::read_dir("/dev/shm").unwrap();
    let paths = names.map(|entry| entry.unwrap().path());
    let own = format!("/dev/shm/interceptor-{}-", daemon.instance());
    let mut in_memory: Vec<_> = paths.filter(|path| text(path).starts_with(&own)).collect();
    let in_memory = in_memory.remove(0);
    assert_eq!(fs::metadata(&in_memory).unwrap().mode() & 0o777, 0o700);
    assert!(waiting(&in_memory).contains(&"feed".to_owned()));

    // Whoever may ask the daemon finds and reads them as ever.
    for (session, secret) in [&one, &other].into_iter().zip(SECRETS) {
        assert!(
            daemon
                .ask(&["sessions", "show", session])
                .unwrap()
                .contains(secret)
        );
        let found = daemon
            .ask_json(&["sessions", "list", "--text", secret])
            .unwrap();
        assert_eq!(found[0]["id"], **session, "{found}");
    }
    let status = daemon.ask_json(&["status"]).unwrap();
    assert_eq!(status["journal"]["encrypted"], true);

    // Killed in the middle of traffic, there is nothing on disk either, and nothing is lost.
    thread::scope(|scope| {
        let sql = "--command=SELECT 'maria-8842-k', pg_sleep(0.002) FROM generate_series(1, 2000)";
        let asking = scope.spawn(|| {
            let mut psql = Way::Guarded(&daemon, "killed").psql(&database, &[sql]);
            run::outcome(&mut psql).unwrap()
        });
        thread::sleep(Duration::from_millis(1_000));
        let pid = i32::try_from(daemon.pid().unwrap()).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        asking.join().unwrap();
    });
    assert_eq!(with_any_of(&state, &words), nowhere);
    daemon.restart().unwrap();
    let killed = session(&daemon, "killed");
    assert!(
        daemon
            .ask(&["sessions", "show", &killed])
            .unwrap()
            .contains(SECRETS[0])
    );

    // Evidence has what its sessions are read with, and other people's code reads them with that.
    let public = daemon.folder().join("kept.pub");
    fs::copy(state.join("journal.pub"), &public).unwrap();
    let evidence = |daemon: &Daemon, session: &str, name: &str| {
        let path = daemon.folder().join(name);
        let common = [
            "export",
            "--format",
            "evidence",
            "--session",
            session,
            "--output",
        ];
        daemon.ask(&[&common[..], &[text(&path)]].concat()).unwrap();
        path
    };
    let before = [
        evidence(&daemon, &one, "one.evidence"),
        evidence(&daemon, &other, "other.evidence"),
    ];
    for file in &before {
        let (proved, is_good) = verified(&daemon, &public, file);
        assert!(is_good, "{proved}");
        let blocks = usize::try_from(proved["blocks"].as_u64().unwrap()).unwrap();
        assert_eq!(checked(&public, file), Ok(blocks));
    }
    let swapped = fs::read_to_string(&before[0]).unwrap();
    let (at, _) = swapped.match_indices("\"keys\":{\"").next().unwrap();
    let digit = at + "\"keys\":{\"0000000000000000\":\"".len();
    let other_digit = if swapped[digit..].starts_with('0') {
        "1"
    } else {
        "0"
    };
    let swapped = format!(
        "{}{other_digit}{}",
        &swapped[..digit],
        &swapped[digit + 1..]
    );
    let swapped_path = daemon.folder().join("swapped.evidence");
    fs::write(&swapped_path, swapped).unwrap();
    assert!(!verified(&daemon, &public, &swapped_path).1);
    assert!(
        checked(&public, &swapped_path)
            .unwrap_err()
            .contains("another key")
    );

    // What isn't over, is held or has no reason isn't erased.
    let held = ["sessions", "hold", &other, "--reason", "case 7"];
    daemon.ask(&held).unwrap();
    for (session, reason, why) in [
        (&*other, "ticket 7", "is held"),
        (&one, " ", "for a reason"),
        ("0123456789abcdef", "ticket 7", "there is no session"),
    ] {
        let said = refused(&daemon, &["sessions", "erase", session, "--reason", reason]);
        assert!(said.contains(why), "{said}");
    }
    thread::scope(|scope| {
        let sql = "--command=SELECT pg_sleep(3)";
        scope.spawn(|| run::outcome(&mut Way::Guarded(&daemon, "open").psql(&database, &[sql])));
        let open = run::wait_for("the session to begin", SOON, || {
            let found = daemon.ask_json(&["sessions", "list", "--agent", "open"])?;
            Ok(found[0]["id"].as_str().map(str::to_owned))
        });
        let said = refused(
            &daemon,
            &["sessions", "erase", &open.unwrap(), "--reason", "x"],
        );
        assert!(said.contains("goes on"), "{said}");
    });

    let old_keys = fs::read(state.join("session.keys")).unwrap();
    daemon
        .ask(&["sessions", "erase", &one, "--reason", "ticket 7"])
        .unwrap();
    let said = refused(
        &daemon,
        &["sessions", "erase", &one, "--reason", "ticket 8"],
    );
    assert!(
        said.contains("erased already") && said.contains("ticket 7"),
        "{said}"
    );
    let is_gone = |daemon: &Daemon| {
        let said = refused(daemon, &["sessions", "show", &one]);
        assert!(
            said.contains("was erased") && said.contains("ticket 7"),
            "{said}"
        );
        let list = daemon.ask(&["sessions", "list"]).unwrap();
        assert!(!list.contains(&one) && list.contains(&other), "{list}");
        let erased = daemon.ask_json(&["sessions", "erased"]).unwrap();
        assert_eq!(
            (&erased[0]["session"], &erased[0]["agent"]),
            (&one.clone().into(), &"one".into())
        );
        assert_eq!(with_any_of(&state, &words), nowhere);
    };
    is_gone(&daemon);
    let said = refused(
        &daemon,
        &["export", "--format", "evidence", "--session", &one],
    );
    assert!(said.contains("was erased"), "{said}");
    let file = evidence(&daemon, &other, "again.evidence");
    assert!(verified(&daemon, &public, &file).1);
    assert!(checked(&public, &file).is_ok());
    // Traffic goes on, and what stays is what it was.
    psql(&daemon, "third", &database, "SELECT 'later'");
    assert!(
        daemon
            .ask(&["sessions", "show", &other])
            .unwrap()
            .contains(SECRETS[1])
    );
    daemon.stop().unwrap();
    assert_eq!(with_any_of(&state, &words), nowhere);
    assert!(!in_memory.exists());
    // Somebody puts something there, to be taken for what waits.
    fs::create_dir(&in_memory).unwrap();
    std::os::unix::fs::chown(&in_memory, Some(65_534), Some(65_534)).unwrap();
    fs::copy(daemon.configuration(), in_memory.join("waiting-a")).unwrap();

    // Offline: without the key all is in the chain, and with it all but one is read.
    let locked = report(&daemon, &state, None);
    assert_eq!(locked["problems"], Value::Array(Vec::new()), "{locked}");
    assert_eq!(locked["unaccounted"], 0);
    assert!(locked["locked_records"].as_u64().unwrap() > 10);
    let open = report(&daemon, &state, Some(&key));
    assert_eq!(open["problems"], Value::Array(Vec::new()), "{open}");
    assert_eq!(
        (&open["locked_records"], &open["erased_sessions"]),
        (&0.into(), &1.into())
    );
    assert_eq!(open["connects"], locked["connects"]);
    let said = refused(&daemon, &["export", "--state", text(&state)]);
    assert!(
        said.contains("is encrypted") && said.contains("--encryption-key"),
        "{said}"
    );
    let with_key = |arguments: &[&str]| {
        let key = ["--encryption-key", text(&key)];
        run::outcome(&mut daemon.command([&key, arguments].concat())).unwrap()
    };
    let all = with_key(&["export", "--state", text(&state)]).stdout;
    let has = |all: &str, session: &str| {
        let mut lines = all
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.any(|line| line["session"] == session)
    };
    assert!(all.contains(SECRETS[1]) && has(&all, &other) && !has(&all, &one));
    let said = with_key(&["sessions", "show", &one, "--state", text(&state)]).stderr;
    assert!(said.contains("was erased"), "{said}");
    // A copy has no keys: it is checked alone, and read with those of this host.
    assert_eq!(with_any_of(&copy, &words), nowhere);
    let copied = report(&daemon, &copy, Some(&key));
    assert_eq!(copied["problems"], Value::Array(Vec::new()), "{copied}");
    assert!(copied["locked_records"].as_u64().unwrap() > 10);
    assert!(
        with_key(&["export", "--state", text(&copy)])
            .stderr
            .contains("session.keys")
    );
    fs::copy(state.join("session.keys"), copy.join("session.keys")).unwrap();
    let all = with_key(&["export", "--state", text(&copy)]).stdout;
    assert!(all.contains(SECRETS[1]) && has(&all, &other) && !has(&all, &one));

    // Keys that are put back are told, and destroyed again by the next start.
    fs::write(state.join("session.keys"), &old_keys).unwrap();
    let back = report(&daemon, &state, Some(&key));
    assert_eq!(back["problems"][0]["kind"], "rolled_back", "{back}");
    daemon.restart().unwrap();
    assert_eq!(fs::metadata(&in_memory).unwrap().uid(), 0);
    is_gone(&daemon);
    daemon.stop().unwrap();
    let open = report(&daemon, &state, Some(&key));
    assert_eq!(open["problems"], Value::Array(Vec::new()), "{open}");

    // Without the key, or with another one, no daemon goes on.
    let configuration = fs::read_to_string(daemon.configuration()).unwrap();
    let start = |daemon: &Daemon| {
        let serve = run::start(&mut daemon.serve()).unwrap();
        let outcome = serve.outcome_within(SOON).unwrap();
        assert!(!outcome.status.success());
        outcome.stderr
    };
    let without = configuration.replace("encryption:", "retention: {age: 1d} } #");
    fs::write(daemon.configuration(), without).unwrap();
    assert!(start(&daemon).contains("what opens it is missing"));
    fs::write(daemon.configuration(), &configuration).unwrap();
    let right = fs::read(&key).unwrap();
    fs::write(&key, "0".repeat(64)).unwrap();
    assert!(start(&daemon).contains("is another one"));
    fs::write(&key, "not a key").unwrap();
    let said = start(&daemon);
    assert!(
        said.contains("is not 64 hexadecimal digits") && said.contains(text(&key)),
        "{said}"
    );
    fs::write(&key, &right).unwrap();
    let kept = fs::read(state.join("session.keys")).unwrap();
    fs::remove_file(state.join("session.keys")).unwrap();
    assert!(start(&daemon).contains("put the file back"));
    fs::write(state.join("session.keys"), kept).unwrap();
    daemon.restart().unwrap();
    is_gone(&daemon);
    // Nothing of it stays in memory.
    daemon.stop().unwrap();
    assert!(!in_memory.exists());
}
