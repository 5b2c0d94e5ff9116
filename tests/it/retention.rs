//! What is kept of the log: within its size under load, by age, and what is held whatever comes.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use interceptor_tests::{clients::Way, cluster::Database, daemon::Daemon, run};
use serde_json::Value;

use crate::support::{ALLOW_ALL, cluster};

/// How long something may take that is looked at every second.
const SOON: Duration = Duration::from_secs(30);

/// The least that can be configured.
const SIZE: u64 = 128 << 20;

fn psql(daemon: &Daemon, agent: &str, database: &Database<'_>, sql: &str) {
    let command = format!("--command={sql}");
    run::outcome(&mut Way::Guarded(daemon, agent).psql(database, &[&command]))
        .unwrap()
        .success()
        .unwrap();
}

/// The session of `agent`.
fn session(daemon: &Daemon, agent: &str) -> Option<String> {
    let found = daemon
        .ask_json(&["sessions", "list", "--agent", agent])
        .unwrap();
    Some(found[0]["id"].as_str()?.to_owned())
}

/// What a folder takes of the disk.
fn taken(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let found = entry.metadata().ok()?;
            Some(match found.is_dir() {
                true => taken(&entry.path()),
                false => found.blocks() * 512,
            })
        })
        .sum()
}

/// Has a database answer with some 20 MiB that can't be made smaller than half.
fn flood(daemon: &Daemon, database: &Database<'_>) {
    let row = "SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 8000)";
    let sql = format!("{row} AS a, generate_series(1, 80) AS b GROUP BY b");
    psql(daemon, "flood", database, &sql);
}

fn retention(what: &str) -> String {
    format!("journal: {{retention: {{{what}}}}}\n")
}

/// The journal of `daemon`, which is stopped, is intact; how many segments were removed of it.
#[track_caller]
fn removed(daemon: &Daemon) -> u64 {
    let state = daemon.state();
    let report: Value = daemon
        .ask_json(&["verify", state.to_str().unwrap()])
        .unwrap();
    assert_eq!(report["problems"], Value::Array(Vec::new()), "{report}");
    report["removed_segments"].as_u64().unwrap()
}

#[test]
fn the_log_stays_within_its_size_and_what_is_held_stays() {
    let mut daemon = Daemon::configured(ALLOW_ALL, |_| retention("size: 128MiB")).unwrap();
    let database = cluster().database().unwrap();
    psql(&daemon, "held", &database, "SELECT 'what is held'");
    psql(&daemon, "other", &database, "SELECT 'what is not'");
    let held = session(&daemon, "held").unwrap();
    let said = run::outcome(&mut daemon.command(["sessions", "hold", &held, "--reason", " "]))
        .unwrap()
        .stderr;
    assert!(said.contains("begins and ends with a reason"), "{said}");
    daemon
        .ask(&["sessions", "hold", &held, "--reason", "case 7"])
        .unwrap();
    let said = run::outcome(&mut daemon.command(["sessions", "hold", &held, "--reason", "again"]))
        .unwrap()
        .stderr;
    assert!(said.contains("held already"), "{said}");
    // Its segment is closed, and so is that of the one that isn't held.
    daemon.restart().unwrap();
    psql(&daemon, "third", &database, "SELECT 'what goes'");
    let goes = session(&daemon, "third").unwrap();
    daemon.restart().unwrap();

    let (is_over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let state = daemon.state();
        let (is_over, most) = (&is_over, &most);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                most.fetch_max(taken(&state), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        for _ in 0..20 {
            flood(&daemon, &database);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let most = most.load(Ordering::Relaxed);
    println!("{} MiB at the most, of {}", most >> 20, SIZE >> 20);
    assert!(most <= SIZE, "{most} bytes");
    assert!(most > SIZE / 2, "{most} bytes are little");

    // What was held is there, what wasn't is gone and said to be.
    let shown = daemon.ask(&["sessions", "show", &held]).unwrap();
    assert!(shown.contains("what is held"), "{shown}");
    assert!(session(&daemon, "third").is_none());
    let said = run::outcome(&mut daemon.command(["sessions", "show", &goes])).unwrap();
    assert!(said.stderr.contains("no session"), "{}", said.stderr);
    let journal = daemon.journal().unwrap();
    let named = |name: &str| {
        let lines = journal.of_kind("event");
        lines
            .filter(|line| line.at("/name").and_then(Value::as_str) == Some(name))
            .count()
    };
    assert!(named("segment_removed") > 0);
    assert!(named("records_removed") > 0);
    let status = daemon.ask_json(&["status"]).unwrap();
    assert_eq!(status["journal"]["bytes_max"], SIZE);
    assert_eq!(status["journal"]["held"], 1);

    // Killed in the middle of it, again and again, it goes on.
    for life in 0..3 {
        let agent = format!("killed-{life}");
        thread::scope(|scope| {
            let flooding = scope.spawn(|| {
                let row =
                    "SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 8000)";
                let sql = format!("--command={row} AS a, generate_series(1, 400) AS b GROUP BY b");
                run::outcome(&mut Way::Guarded(&daemon, &agent).psql(&database, &[&sql]))
            });
            thread::sleep(Duration::from_millis(1_500));
            let pid = i32::try_from(daemon.pid().unwrap()).unwrap();
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            )
            .unwrap();
            let _ = flooding.join().unwrap();
        });
        daemon.restart().unwrap();
        let shown = daemon.ask(&["sessions", "show", &held]).unwrap();
        assert!(shown.contains("what is held"), "{shown}");
    }
    let holds = daemon.ask_json(&["sessions", "holds"]).unwrap();
    assert_eq!(holds[0]["reason"], "case 7");
    daemon.stop().unwrap();
    let before = removed(&daemon);
    assert!(before > 10, "{before} segments removed");

    // Released, it goes like the others.
    daemon.restart().unwrap();
    daemon
        .ask(&["sessions", "release", &held, "--reason", "case 7 is closed"])
        .unwrap();
    for _ in 0..4 {
        flood(&daemon, &database);
    }
    run::wait_for("what was held to go", SOON, || {
        Ok(session(&daemon, "held").is_none().then_some(()))
    })
    .unwrap();
    daemon.stop().unwrap();
    assert!(removed(&daemon) > before);
}

#[test]
fn what_is_old_goes_by_whose_it_is() {
    let mut daemon = Daemon::configured(ALLOW_ALL, |_| {
        retention("agents: [{name: 'short-*', age: 2s}, {name: long, age: 1h}]")
    })
    .unwrap();
    let database = cluster().database().unwrap();
    let agents = ["short-a", "long", "kept"];
    for agent in agents {
        // A segment each, and one of the one that goes first beside the one that stays.
        psql(&daemon, agent, &database, &format!("SELECT 'of {agent}'"));
        if agent == "long" {
            psql(&daemon, "short-b", &database, "SELECT 'of short-b'");
        }
        daemon.restart().unwrap();
    }
    run::wait_for("what is short to go", SOON, || {
        Ok(session(&daemon, "short-a").is_none().then_some(()))
    })
    .unwrap();
    for agent in ["long", "short-b", "kept"] {
        assert!(session(&daemon, agent).is_some(), "{agent}");
    }
    daemon.stop().unwrap();
    assert_eq!(removed(&daemon), 1);
    // The whole log can be exported as before, and says what is gone.
    let state = daemon.state();
    let lines = daemon
        .ask(&["export", "--state", state.to_str().unwrap()])
        .unwrap();
    assert!(lines.contains("records_removed") && lines.contains("of short-b"));
    assert!(!lines.contains("of short-a"));
    // What is damaged while a daemon runs stays: it is evidence. The others go.
    let path = daemon.configuration();
    let before = fs::read_to_string(&path).unwrap();
    fs::write(&path, before.replace("age: 1h", "age: 10s")).unwrap();
    daemon.restart().unwrap();
    psql(&daemon, "long", &database, "SELECT 'of the first'");
    daemon.restart().unwrap();
    psql(&daemon, "long", &database, "SELECT 'of the second'");
    daemon.restart().unwrap();
    let segments = daemon.state().join("segments");
    let named = |ending: &str| {
        let names = fs::read_dir(&segments).unwrap();
        let paths = names.map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|found| found == ending))
            .collect();
        paths.sort();
        paths
    };
    let closed = named("seg");
    let [.., first, second, _] = &*closed else {
        panic!("{closed:?}");
    };
    let whole = fs::read(first).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(first, &other).unwrap();
    run::wait_for("the second to go", SOON, || {
        Ok((!second.exists()).then_some(()))
    })
    .unwrap();
    assert!(first.exists());
    let status = run::outcome(&mut daemon.command(["status"])).unwrap();
    assert!(status.stdout.contains("isn't removed"), "{}", status.stdout);
    fs::write(first, &whole).unwrap();
    daemon.stop().unwrap();
    assert_eq!(removed(&daemon), named("gone").len() as u64);
}
