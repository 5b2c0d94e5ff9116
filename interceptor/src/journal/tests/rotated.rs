//! Keys that follow one another: whoever kept any of them can check, whoever has an old one can't go on, and no crash
//! leaves a journal without its key.

use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use super::{
    super::{
        KEY_ROTATED, Kind, Made, Manifest, Options, Problem, Report,
        checkpoint::{Checkpoint, Key},
        disk::{Disk as _, Local},
        evidence, is_of_one_journal, prove,
        succession::{self, Rotation},
        tree::Tree,
    },
    crashes::Life,
    memory::{CRASHES, Crash, Fault, Memory, When},
    *,
};

fn public(directory: &Path) -> String {
    fs::read_to_string(directory.join("journal.pub")).unwrap()
}

fn checkpoint(directory: &Path) -> String {
    fs::read_to_string(directory.join("checkpoint")).unwrap()
}

fn report(directory: &Path, key: &str, checkpoints: &[(String, String)]) -> Report {
    let key = Some(key);
    let kept = Kept {
        key,
        checkpoints,
        ..Kept::default()
    };
    verify(directory, &kept, |_, _| {}, |_| {}).unwrap()
}

fn kinds(problems: &[Problem]) -> Vec<(Kind, &str)> {
    let problems = problems.iter();
    problems
        .map(|problem| (problem.kind, problem.file.as_str()))
        .collect()
}

/// Adds a record and has it signed.
fn signed(journal: &Journal, session: u64, text: &str) -> u64 {
    let seq = append(journal, session, text);
    durable(journal, seq);
    journal.await_checkpoint();
    assert!(journal.signed_seq() >= seq);
    seq
}

fn proof(directory: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let sessions = [SessionId(1)].into();
    evidence(&Reader::open(directory).unwrap(), &sessions, None, |line| {
        out.extend_from_slice(line);
        true
    })
    .unwrap();
    out
}

fn made() -> Made {
    Made {
        sha256: [7; 32],
        bytes: 7,
        format: "html".to_owned(),
        asked: "all agents".to_owned(),
    }
}

#[test]
fn whoever_kept_any_key_can_check() {
    let folder = folder();
    let directory = folder.path();
    let mut journal = Journal::open(directory).unwrap();
    let (mut keys, mut notes) = (vec![public(directory)], Vec::new());
    let (mut proofs, mut manifests) = (Vec::new(), Vec::new());
    for turn in 0..4 {
        signed(&journal, 1, &format!("before {turn}"));
        notes.push((format!("before {turn}"), checkpoint(directory)));
        proofs.push(proof(directory));
        manifests.push(journal.manifest(made(), "somebody", "here").unwrap());
        let before = journal.last_seq();
        let rotated = journal.rotate("somebody", "yearly").unwrap();
        assert_eq!(keys.last().unwrap().trim_end(), rotated.old);
        assert_eq!(public(directory).trim_end(), rotated.new);
        assert_eq!((rotated.up_to, rotated.seq), (before, before + 1));
        notes.push((format!("after {turn}"), checkpoint(directory)));
        keys.push(public(directory));
        if turn % 2 == 0 {
            journal.close();
            drop(journal);
            journal = Journal::open(directory).unwrap();
        }
    }
    signed(&journal, 1, "behind all");
    proofs.push(proof(directory));
    manifests.push(journal.manifest(made(), "somebody", "here").unwrap());
    journal.close();
    let mut names = keys.clone();
    names.dedup();
    assert_eq!(names.len(), 5);
    for key in &keys {
        let checked = report(directory, key, &notes);
        assert_eq!(checked.problems, []);
        assert_eq!(checked.rotations, 4);
        assert_eq!(checked.signed_up_to, Some(journal.last_seq()));
        assert!(checked.witnessed_up_to.is_some());
    }
    assert_eq!(problems(directory), Vec::<String>::new());
    // Made when a key was in force: good for whoever kept that one or an earlier one, and for nobody else.
    for (place, key) in keys.iter().enumerate() {
        for (at, (proof, manifest)) in proofs.iter().zip(&manifests).enumerate() {
            let proved = prove(&mut &proof[..], "file", Some(key), |_| {}).unwrap();
            let said = Manifest::verify(manifest, key);
            if place <= at {
                assert_eq!(proved.problems, [], "{place} {at}");
                assert_eq!(said.unwrap().by, "somebody");
            } else {
                assert_eq!(kinds(&proved.problems), [(Kind::AnotherKey, "file")]);
                assert!(said.unwrap_err().contains("an earlier one is needed"));
            }
        }
    }
    // Nothing is left of a private key but the one in force.
    let mode = fs::metadata(directory.join("journal.key")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    for name in fs::read_dir(directory).unwrap() {
        let name = name.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with("journal.key."));
    }
    let [first, last] = [&keys[0], &keys[4]].map(|key| key.as_bytes());
    assert!(is_of_one_journal(directory, first, last));
    assert!(!is_of_one_journal(directory, last, first));
    assert_eq!(succession::identity(directory), first);
    // A stranger's key is none of them.
    let other = super::folder();
    closed(other.path());
    let stranger = report(directory, &public(other.path()), &[]);
    assert_eq!(
        kinds(&stranger.problems)[..2],
        [
            (Kind::AnotherKey, "journal.pub"),
            (Kind::AnotherKey, "checkpoint")
        ]
    );
}

/// A journal whose key was replaced, and the key that was before.
fn rotated(directory: &Path) -> (Key, String) {
    let journal = Journal::open(directory).unwrap();
    let old = Key::open(&Local, directory).unwrap();
    signed(&journal, 1, "before");
    journal.rotate("somebody", "a theft").unwrap();
    signed(&journal, 1, "after");
    journal.close();
    (old, public(directory))
}

fn tree(directory: &Path) -> Tree {
    let mut tree = Tree::default();
    let reader = Reader::open(directory).unwrap();
    reader
        .each_header(|_, header| {
            tree.push(&header.chain);
            Ok(true)
        })
        .unwrap();
    tree
}

#[test]
fn an_old_key_goes_on_for_nobody() {
    let folder = folder();
    let directory = folder.path();
    let (old, new) = rotated(directory);
    let first = old.public().to_text();
    let all = Checkpoint::of(&tree(directory), 3);
    // Kept elsewhere, by whom the thief told.
    let good = checkpoint(directory);
    old.publish(&Local, directory, &all).unwrap();
    let forged = checkpoint(directory);
    fs::write(directory.join("checkpoint"), &good).unwrap();
    let kept = [("elsewhere".to_owned(), forged)];
    for key in [&first, &new] {
        let checked = report(directory, key, &kept);
        assert_eq!(
            kinds(&checked.problems),
            [(Kind::AnotherKey, "elsewhere")],
            "{:?}",
            checked.problems
        );
        assert!(checked.problems[0].what.contains("record 2 had replaced"));
    }
    // In the folder itself, with the index that is there sealed by the new one.
    old.publish(&Local, directory, &all).unwrap();
    for key in [&first, &new] {
        let checked = report(directory, key, &[]);
        assert_eq!(
            kinds(&checked.problems),
            [(Kind::AnotherKey, "checkpoint")],
            "{:?}",
            checked.problems
        );
    }
    // No daemon goes on with it.
    let Err(error) = Journal::open(directory) else {
        panic!("it was opened");
    };
    assert!(error.to_string().contains("another key"), "{error}");
}

#[test]
fn what_only_an_old_key_vouches_for_is_no_history_of_the_new_one() {
    let folder = folder();
    let directory = folder.path();
    let journal = Journal::open(directory).unwrap();
    let old = Key::open(&Local, directory).unwrap();
    signed(&journal, 1, "before");
    let before = tree(directory);
    journal.rotate("somebody", "a theft").unwrap();
    let new = public(directory);
    journal.close();
    // A thief may write any history up to the rotation, and name the new key at its end.
    old.publish(&Local, directory, &Checkpoint::of(&before, 1))
        .unwrap();
    let checked = report(directory, &new, &[]);
    assert_eq!(
        kinds(&checked.problems),
        [(Kind::AnotherKey, "checkpoint")],
        "{:?}",
        checked.problems
    );
    // Whoever trusts the old key alone can't tell that from a daemon that was killed there.
    let first = old.public().to_text();
    assert_eq!(report(directory, &first, &[]).problems, []);
}

#[test]
fn a_rotation_is_signed_by_the_key_before_and_for_its_place() {
    let stranger = Key::fresh().unwrap();
    let event = |statement: String| Event::notice(KEY_ROTATED, [("statement", statement)]);
    for case in 0..4 {
        let folder = folder();
        let directory = folder.path();
        let journal = Journal::open(directory).unwrap();
        let old = Key::open(&Local, directory).unwrap();
        signed(&journal, 1, "before");
        let head = Checkpoint::of(&tree(directory), 1);
        let elsewhere = Checkpoint { size: 0, ..head };
        let statement = match case {
            0 => Rotation::sign(&stranger, &Key::fresh().unwrap().public(), &head),
            1 => Rotation::sign(&old, &stranger.public(), &elsewhere),
            2 => Rotation::sign(&old, &stranger.public(), &head).replacen("seq", "sec", 1) + "x",
            _ => "nothing of the kind".to_owned(),
        };
        let agent = Arc::from("");
        let seq = journal
            .append(None, &agent, Timestamp(1), [event(statement)])
            .unwrap();
        durable(&journal, seq);
        signed(&journal, 1, "after");
        journal.close();
        let checked = report(directory, &old.public().to_text(), &[]);
        let found = kinds(&checked.problems);
        assert_eq!(found.len(), 1, "{case}: {:?}", checked.problems);
        if case == 0 {
            // A succession of its own, in which the key that is known has no place.
            assert_eq!(found, [(Kind::AnotherKey, "journal.pub")]);
        } else {
            assert_eq!(found[0].0, Kind::Unproven);
            assert_eq!(checked.problems[0].seq, Some(2));
            assert_eq!(checked.rotations, 0);
        }
    }
}

#[test]
fn no_crash_takes_the_key() {
    let mut finished = 0;
    for stays in [true, false] {
        for how in CRASHES {
            for n in 0..70 {
                let mut life = Life::new(n as u64 * 7 + u64::from(stays));
                let mut store = life.open();
                life.extend(&mut store);
                let when = When::Nth { left: n, stays };
                life.fails(when, Fault::Error);
                if life.rotate(&mut store) {
                    let _ = store.sign();
                }
                drop(store);
                life.crash(how);
                // Verifies, with the key that shows or with the first, before anything is mended and after it.
                let mut store = life.open();
                store.sign().unwrap();
                life.extend(&mut store);
                finished += u64::from(life.is_rotated(&store));
                drop(store);
                life.crash(Crash::Nothing);
                let store = life.open();
                assert!(store.is_signed());
                assert_eq!(
                    life.secrets(),
                    ["journal.key"],
                    "operation {n}, {how:?}, {stays}"
                );
            }
        }
    }
    assert!(finished > 100, "{finished}");
}

/// What a daemon leaves in a folder of its own whose evidence was on `disk` and the rest in `directory`.
fn left(disk: &Memory, directory: &Path) -> TempDir {
    let folder = folder();
    let to = folder.path();
    fs::create_dir(to.join("segments")).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    for part in ["", "segments"] {
        for name in disk.list(&directory.join(part)).unwrap() {
            let bytes = disk.read(&directory.join(part).join(&name));
            if let Ok(bytes) = bytes {
                fs::write(to.join(part).join(name), bytes).unwrap();
            }
        }
    }
    folder
}

#[test]
fn a_daemon_that_is_killed_at_it_is_gone_on_with() {
    // Each waits for checkpoints most of the time.
    let lives = |first| (first..45).step_by(6).map(killed_at);
    let found: Vec<[u64; 3]> = std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3, 4, 5].map(|first| scope.spawn(move || lives(first).collect()));
        let found = threads.map(|thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| thread.join());
        found.into_iter().flat_map(Result::unwrap).collect()
    });
    // Before it was on record, kept and not written, and written.
    for place in 0..3 {
        assert!(found.iter().any(|life| life[place] > 0), "{found:?}");
    }
}

/// The disk fails from the `n`-th operation of a rotation on, and the daemon is killed: whether the rotation was not
/// kept, kept and not written, or written.
fn killed_at(n: u64) -> [u64; 3] {
    let here = folder();
    let disk = Memory::new(n);
    let options = Options {
        bytes_max: Some(16 << 20),
        ..Options::default()
    };
    let journal = Journal::open_on(disk.clone(), here.path(), &options).unwrap();
    signed(&journal, 1, "before");
    let first = disk.read(&here.path().join("journal.pub")).unwrap();
    let first = String::from_utf8(first).unwrap();
    let when = When::Nth {
        left: n as usize,
        stays: true,
    };
    disk.fail(when, Fault::Error);
    let rotating = journal.clone();
    let asked = std::thread::spawn(move || rotating.rotate("somebody", "why not").is_ok());
    let until = Instant::now() + Duration::from_secs(5);
    while !asked.is_finished() && disk.failed().0 < 3 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    // It goes on with what waits behind the rotation, as far as it takes any.
    let behind = [notice("behind")];
    let agent = Arc::from("agent");
    let _ = journal.append(Some(SessionId(1)), &agent, Timestamp(1), behind);
    let how = CRASHES[n as usize % 2];
    let killed = disk.crash(how);
    killed.fail(When::Never, Fault::Error);
    let there = left(&killed, here.path());
    disk.fail(When::Never, Fault::Error);
    let was_done = asked.join().unwrap();
    journal.close();

    // A block that is torn is cut off by the start; all else is as it has to be before that as well.
    let found = report(there.path(), &first, &[]);
    let mut others = found.problems.iter();
    assert!(
        others.all(|problem| problem.kind == Kind::Truncated),
        "{n}: {:?}",
        found.problems
    );
    let on_record = found.rotations;
    let next = Journal::open(there.path()).unwrap();
    signed(&next, 1, "behind all");
    next.close();
    let checked = report(there.path(), &first, &[]);
    assert_eq!(checked.problems, [], "{n}");
    assert_eq!(problems(there.path()), Vec::<String>::new(), "{n}");
    assert_eq!(
        checked.rotations == 1,
        public(there.path()) != first,
        "{n}: {was_done}"
    );
    assert!(!there.path().join("journal.key.next").exists());
    [
        1 - checked.rotations,
        checked.rotations - on_record,
        on_record,
    ]
}
