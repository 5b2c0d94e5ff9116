//! Encrypted sessions: who can read them, what is on disk of them, and what is left of one that was erased.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    super::{
        Encryption, Erasure, Found, Kind, MasterKey, NotErased, Options, Problem, Text,
        disk::{Disk as _, Local},
        encryption::{Held, SessionKeys, path as keys_path},
        evidence, prove,
        verify::Report,
    },
    memory::{CRASHES, Fault, Memory, When},
    proved::{made, proved},
    removed::{bytes_in, host, ledger, remove, said},
    *,
};

const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);

/// What both sessions say and nobody else is to read.
const SECRETS: [&str; 2] = ["s3cr3t of the one", "s3cr3t of the other"];

fn encrypted(directory: &Path, encryption: Option<Encryption>) -> Result<Journal, JournalError> {
    let options = Options {
        encryption,
        ..Options::default()
    };
    Journal::open_with(directory, &options)
}

fn with(key: &MasterKey) -> Encryption {
    Encryption::With {
        key: key.clone(),
        before: None,
    }
}

/// A journal of two sessions that speak in turns, in blocks that they share. It is open.
fn talk(directory: &Path, encryption: Option<Encryption>) -> Journal {
    let journal = encrypted(directory, encryption).unwrap();
    journal.take_up_keys(None, []).unwrap();
    host(&journal, "agent", "tag_added", "1");
    for turn in 0..4_u64 {
        for session in [1, 2] {
            let event = match turn {
                0 => started(),
                3 => ended(),
                _ => notice(SECRETS[session as usize - 1]),
            };
            said(&journal, session, turn, event);
        }
        host(&journal, "agent", "connects_counted", "1");
        durable(&journal, journal.last_seq());
    }
    journal.await_checkpoint();
    journal
}

/// Ends it, and lets go of the folder.
fn shut(journal: Journal) {
    journal.close();
}

fn erase(journal: &Journal, session: SessionId) -> Result<Erasure, NotErased> {
    journal.erase(session, "somebody", "they asked for it")
}

fn found(directory: &Path, master: Option<&MasterKey>) -> Report {
    let kept = Kept {
        encryption_key: master,
        ..Kept::default()
    };
    verify(directory, &kept, |_, _| {}, |_| {}).unwrap()
}

fn kinds(report: &Report) -> Vec<(Kind, &str)> {
    let told = |problem: &Problem| {
        (
            problem.kind,
            &*Box::leak(problem.file.clone().into_boxed_str()),
        )
    };
    report.problems.iter().map(told).collect()
}

fn of(directory: &Path, session: SessionId) -> Result<Vec<Record>, JournalError> {
    let mut records = Vec::new();
    Reader::open(directory)?.session(session, |record| {
        records.push(record);
        true
    })?;
    Ok(records)
}

fn listed(journal: &Journal) -> BTreeSet<SessionId> {
    let found = journal.sessions(&Wanted::default(), 100);
    found.iter().map(|session| session.session).collect()
}

/// Sessions in which somebody looks for `words`.
fn searched(journal: &Journal, words: &str) -> Vec<SessionId> {
    let wanted = Wanted {
        text: Some(Arc::new(Text::parse(words).unwrap())),
        ..Wanted::default()
    };
    let Found { sessions, .. } = journal.find(&wanted, 10).unwrap();
    sessions.iter().map(|session| session.session).collect()
}

#[test]
fn what_is_encrypted_is_on_disk_for_nobody_without_the_key() {
    let folder = folder();
    let directory = folder.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let master = MasterKey::parse("7f".repeat(32).as_bytes()).unwrap();
    let journal = talk(directory, Some(with(&master)));
    // While it runs, when it is closed, and when another one was there.
    let nowhere = || {
        assert_eq!(bytes_in(directory, "s3cr3t"), None);
        assert_eq!(bytes_in(directory, "192.0.2.1"), None);
    };
    nowhere();
    assert_eq!(listed(&journal), [ONE, TWO].into());
    assert_eq!(journal.session(ONE).unwrap().len(), 4);
    shut(journal);
    nowhere();
    let reader = Reader::unlocked(directory, Some(&master)).unwrap();
    let mut records = Vec::new();
    reader
        .each(|record| {
            records.push(record);
            true
        })
        .unwrap();
    assert_eq!(
        records
            .iter()
            .filter(|record| record.session == Some(ONE))
            .count(),
        4
    );
    // Whoever has the folder alone knows that they are there, that nothing is missing, and nothing of them.
    let locked = found(directory, None);
    assert_eq!(locked.problems, []);
    assert_eq!(
        (locked.records, locked.locked_records),
        (records.len() as u64, 8)
    );
    let open = found(directory, Some(&master));
    assert_eq!(open.problems, []);
    assert_eq!(
        (open.records, open.locked_records),
        (records.len() as u64, 0)
    );
    let error = of(directory, ONE).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("session 0000000000000001 is encrypted"),
        "{error}"
    );
    let error = Reader::open(directory).unwrap().each(|_| true).unwrap_err();
    assert!(matches!(error, JournalError::Locked(_)), "{error}");
    let error = evidence(
        &Reader::open(directory).unwrap(),
        &[ONE].into(),
        None,
        |_| true,
    );
    assert!(matches!(error, Err(JournalError::Locked(ONE))));
    // What every agent's connects became can be told all the same.
    let mut from_outside = crate::books::Ledger::default();
    verify(
        directory,
        &Kept::default(),
        |_, _| {},
        |record| from_outside.observe(record),
    )
    .unwrap();
    let mut from_inside = crate::books::Ledger::default();
    records
        .iter()
        .for_each(|record| from_inside.observe(record));
    assert_eq!(from_outside.accounts(), from_inside.accounts());
    assert_eq!(from_inside.accounts()[0].sessions, 2);
    // Copies of segments are for who has the keys.
    fs::create_dir(elsewhere.path().join("segments")).unwrap();
    for name in ["checkpoint", "journal.pub"] {
        fs::copy(directory.join(name), elsewhere.path().join(name)).unwrap();
    }
    for entry in fs::read_dir(directory.join("segments")).unwrap() {
        let entry = entry.unwrap();
        let to = elsewhere.path().join("segments").join(entry.file_name());
        fs::copy(entry.path(), to).unwrap();
    }
    let copy = found(elsewhere.path(), Some(&master));
    assert_eq!((copy.problems.len(), copy.locked_records), (0, 8));
    fs::copy(keys_path(directory), keys_path(elsewhere.path())).unwrap();
    assert_eq!(found(elsewhere.path(), Some(&master)).locked_records, 0);
    // Another key is said to be.
    let wrong = MasterKey::parse("00".repeat(32).as_bytes()).unwrap();
    assert_eq!(
        kinds(&found(directory, Some(&wrong))),
        [(Kind::Unreadable, "session.keys")]
    );
    encrypted(directory, Some(with(&wrong))).unwrap_err();
    encrypted(directory, None).unwrap_err();
    let again = encrypted(directory, Some(with(&master))).unwrap();
    assert_eq!(listed(&again), [ONE, TWO].into());
    shut(again);
    nowhere();
}

#[test]
fn one_that_was_erased_is_gone_and_all_else_holds_as_before() {
    let folder = folder();
    let directory = folder.path();
    let journal = talk(directory, Some(Encryption::Beside));
    let before = (made(directory, &[1]), made(directory, &[2]));
    let books = ledger(directory).accounts().to_vec();
    let old_keys = fs::read(keys_path(directory)).unwrap();
    let Held::Key(key) = journal.keys().of(ONE) else {
        panic!()
    };
    let secret = **key.secret();
    let segments = || {
        let mut all: Vec<PathBuf> = fs::read_dir(directory.join("segments"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        all.sort();
        all.into_iter()
            .map(|path| fs::read(path).unwrap())
            .collect::<Vec<_>>()
    };
    let written = segments().concat();
    let erasure = erase(&journal, ONE).unwrap();
    assert_eq!((&*erasure.agent, &*erasure.by), ("agent", "somebody"));
    // Not a byte of what was written is another one.
    assert!(segments().concat().starts_with(&written));
    // The running daemon, and whoever opens it afterwards, with the index that it left and with a new one.
    let mut running = Some(journal);
    for life in 0..4 {
        let next = || encrypted(directory, Some(Encryption::Beside)).unwrap();
        let journal = running.take().unwrap_or_else(next);
        assert_eq!(listed(&journal), [TWO].into(), "{life}");
        assert_eq!(journal.session(ONE).unwrap(), []);
        assert_eq!(journal.session(TWO).unwrap().len(), 4);
        let again = erase(&journal, ONE).unwrap_err();
        assert!(matches!(again, NotErased::Unknown(ONE)), "{again}");
        shut(journal);
        if life == 2 {
            fs::remove_dir_all(directory.join("index")).unwrap();
            fs::remove_file(directory.join("index.seal")).unwrap();
        }
        let report = found(directory, None);
        assert_eq!(report.problems, [], "{life}");
        assert_eq!((report.erased_sessions, report.erased_records), (1, 4));
        assert_eq!(ledger(directory).accounts(), books);
        // Neither what it said nor what it was encrypted with, nor what that was derived from.
        assert_eq!(bytes_in(directory, SECRETS[0]), None);
        let is_left = |bytes: &[u8]| {
            let mut folders = vec![directory.to_owned()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        folders.push(path);
                    } else if memchr::memmem::find(&fs::read(path).unwrap(), bytes).is_some() {
                        return true;
                    }
                }
            }
            false
        };
        assert!(!is_left(&secret) && !is_left(&old_keys) && !is_left(&old_keys[36..]));
    }
    let error = of(directory, ONE).unwrap_err();
    assert!(matches!(error, JournalError::Erased(ONE)), "{error}");
    let error = evidence(
        &Reader::open(directory).unwrap(),
        &[ONE].into(),
        None,
        |_| true,
    );
    assert!(matches!(error, Err(JournalError::Erased(ONE))));
    // Evidence of the other is made and proved as before; what was given away before still proves what it has.
    let key = fs::read_to_string(directory.join("journal.pub")).unwrap();
    let files = [&before.0, &before.1, &made(directory, &[2])];
    for (file, (session, secret)) in files.into_iter().zip([(ONE, 0), (TWO, 1), (TWO, 1)]) {
        let (proof, records) = proved(file, Some(&key));
        assert_eq!(proof.problems, []);
        assert!(proof.sessions[&session].ended);
        assert!(
            records
                .iter()
                .any(|record| format!("{record:?}").contains(SECRETS[secret]))
        );
    }
    // A key that was put into the file for another one opens nothing.
    let text = String::from_utf8(before.1).unwrap();
    let foreign = text.replacen(
        "\"keys\":{\"0000000000000002\":\"",
        "\"keys\":{\"0000000000000002\":\"00",
        1,
    );
    let foreign = foreign.replacen(
        &text[text.find("\"keys\"").unwrap() + 28 + 62..][..2],
        "",
        0,
    );
    let mut foreign = foreign.as_bytes();
    let proof = prove(&mut foreign, "foreign", Some(&key), |_| panic!("it opens")).unwrap();
    assert_eq!(proof.problems[0].kind, Kind::Changed);
}

#[test]
fn what_was_destroyed_without_a_record_or_put_back_is_told() {
    let folder = folder();
    let directory = folder.path();
    let journal = talk(directory, Some(Encryption::Beside));
    let known = journal.keys().id().unwrap();
    let old_keys = fs::read(keys_path(directory)).unwrap();
    assert_eq!(listed(&journal), [ONE, TWO].into());
    // Somebody destroys a key and says nothing.
    journal
        .keys()
        .erase(&Local, directory, (TWO, 9_999))
        .unwrap();
    shut(journal);
    let report = found(directory, None);
    assert_eq!(report.problems.len(), 1);
    let problem = &report.problems[0];
    assert_eq!(
        (problem.kind, &*problem.file),
        (Kind::Missing, "00000000000000000001.seg")
    );
    assert!(
        problem
            .what
            .contains("the key of session 0000000000000002 is gone"),
        "{}",
        problem.what
    );
    assert_eq!(problem.seq, Some(2));
    // Somebody erases one and puts the keys back that were there before.
    fs::write(keys_path(directory), &old_keys).unwrap();
    assert_eq!(found(directory, None).problems, []);
    let old_signed = fs::read(directory.join("checkpoint")).unwrap();
    let journal = encrypted(directory, Some(Encryption::Beside)).unwrap();
    let erasure = erase(&journal, ONE).unwrap();
    shut(journal);
    assert_eq!(found(directory, None).problems, []);
    fs::write(keys_path(directory), &old_keys).unwrap();
    let report = found(directory, None);
    assert_eq!(kinds(&report), [(Kind::RolledBack, "session.keys")]);
    assert!(
        report.problems[0]
            .what
            .contains("the key of session 0000000000000001")
    );
    // The next start destroys it again.
    let journal = encrypted(directory, Some(Encryption::Beside)).unwrap();
    journal
        .take_up_keys(Some(&known), [erasure.clone()])
        .unwrap();
    assert_eq!(listed(&journal), [TWO].into());
    shut(journal);
    assert_eq!(found(directory, None).problems, []);
    // Keys that are gone are missed where they belong, and not in a copy, which may lack the end as well.
    let keys = fs::read(keys_path(directory)).unwrap();
    fs::remove_file(keys_path(directory)).unwrap();
    let gone = found(directory, None);
    assert_eq!(kinds(&gone), [(Kind::Missing, "session.keys")]);
    fs::rename(directory.join("journal.key"), directory.join("x")).unwrap();
    assert_eq!(found(directory, None).problems, []);
    fs::write(keys_path(directory), keys).unwrap();
    let last = fs::read_dir(directory.join("segments")).unwrap();
    let last = last.map(|entry| entry.unwrap().path()).max().unwrap();
    let whole = fs::read(&last).unwrap();
    fs::remove_file(&last).unwrap();
    let signed = fs::read(directory.join("checkpoint")).unwrap();
    fs::write(directory.join("checkpoint"), &old_signed).unwrap();
    let copy = found(directory, None);
    assert_eq!((copy.problems, copy.erased_records), (Vec::new(), 4));
    fs::rename(directory.join("x"), directory.join("journal.key")).unwrap();
    assert_eq!(found(directory, None).problems[0].kind, Kind::Missing);
    fs::write(&last, whole).unwrap();
    fs::write(directory.join("checkpoint"), signed).unwrap();
    assert_eq!(found(directory, None).problems, []);
    // Keys of another journal, or new ones, are none of this one's.
    fs::remove_file(keys_path(directory)).unwrap();
    let journal = encrypted(directory, Some(Encryption::Beside)).unwrap();
    let error = journal.take_up_keys(Some(&known), [erasure]).unwrap_err();
    assert!(
        error.to_string().contains("these aren't the keys"),
        "{error}"
    );
    shut(journal);
    let report = found(directory, None);
    let expected = [
        (Kind::Changed, "session.keys"),
        (Kind::RolledBack, "session.keys"),
    ];
    assert_eq!(kinds(&report), expected);
    assert_eq!(report.locked_records, 8);
}

#[test]
fn what_is_in_clear_stays_and_is_not_erased() {
    let folder = folder();
    let directory = folder.path();
    shut(talk(directory, None));
    assert!(bytes_in(directory, SECRETS[0]).is_some());
    assert!(!keys_path(directory).exists());
    let journal = encrypted(directory, Some(Encryption::Beside)).unwrap();
    said(&journal, 3, 50, started());
    said(&journal, 3, 51, notice("s3cr3t of the third"));
    // One that goes on across that has some of both.
    said(&journal, 2, 52, notice("behind"));
    durable(&journal, journal.last_seq());
    assert_eq!(bytes_in(directory, "s3cr3t of the third"), None);
    for session in [ONE, TWO] {
        let error = erase(&journal, session).unwrap_err();
        assert!(matches!(error, NotErased::InClear(_)), "{error}");
    }
    let error = erase(&journal, SessionId(77)).unwrap_err();
    assert!(matches!(error, NotErased::Unknown(_)), "{error}");
    assert_eq!(journal.session(TWO).unwrap().len(), 5);
    erase(&journal, SessionId(3)).unwrap();
    let Event::SessionStart(mut start) = started() else {
        panic!()
    };
    let address = Destination::Ip("198.51.100.7:5432".parse().unwrap());
    Arc::make_mut(&mut start.origin).destination = address;
    said(&journal, 5, 53, Event::SessionStart(start));
    said(&journal, 5, 54, ended());
    durable(&journal, journal.last_seq());
    shut(journal);
    assert_eq!(found(directory, None).problems, []);
    // Without being told to encrypt, with the key beside it: what there is is read, and what comes is in clear.
    let journal = encrypted(directory, None).unwrap();
    said(&journal, 4, 60, notice("in clear again"));
    durable(&journal, journal.last_seq());
    assert!(bytes_in(directory, "in clear again").is_some());
    // One that was begun encrypted goes on so.
    said(&journal, 2, 61, notice("of the second, later"));
    durable(&journal, journal.last_seq());
    assert_eq!(bytes_in(directory, "of the second, later"), None);
    shut(journal);
    // What the index has of it is made anew as it was.
    fs::remove_dir_all(directory.join("index")).unwrap();
    let journal = encrypted(directory, None).unwrap();
    assert!(listed(&journal).contains(&SessionId(5)));
    shut(journal);
    assert_eq!(bytes_in(directory, "198.51.100.7"), None);
    assert_eq!(
        all(directory)
            .iter()
            .filter(|record| record.session == Some(TWO))
            .count(),
        6
    );
}

#[test]
fn a_segment_of_encrypted_sessions_leaves_nothing_of_them_in_clear() {
    let folder = folder();
    let directory = folder.path();
    shut(talk(directory, Some(Encryption::Beside)));
    let books = ledger(directory).accounts().to_vec();
    let journal = encrypted(directory, Some(Encryption::Beside)).unwrap();
    said(&journal, 3, 50, started());
    durable(&journal, journal.last_seq());
    let contents = journal.contents(&journal.closed().unwrap()[0]).unwrap();
    assert_eq!(contents.agents, [Arc::from("agent")].into());
    erase(&journal, ONE).unwrap();
    // Also of what was erased it is known whose it was.
    assert_eq!(
        journal.contents(&journal.closed().unwrap()[0]).unwrap(),
        contents
    );
    remove(&journal, 0);
    shut(journal);
    assert_eq!(bytes_in(directory, "192.0.2.1"), None);
    assert_eq!(bytes_in(directory, "finished"), None);
    let report = found(directory, None);
    assert_eq!(report.problems, []);
    assert_eq!((report.removed_segments, report.erased_sessions), (1, 1));
    let mut accounts = ledger(directory).accounts().to_vec();
    accounts[0].sessions -= 1;
    assert_eq!(accounts, books);
}

#[test]
fn words_are_looked_for_on_record_where_there_is_no_index_of_them() {
    let folder = folder();
    let journal = talk(folder.path(), Some(Encryption::Beside));
    super::asked::attempt(&journal, 1, 9, "DELETE FROM orders");
    super::asked::attempt(&journal, 2, 9, "DELETE FROM customers");
    durable(&journal, journal.last_seq());
    assert_eq!(searched(&journal, "orders"), [ONE]);
    assert_eq!(searched(&journal, "delete").len(), 2);
    erase(&journal, ONE).unwrap();
    assert_eq!(searched(&journal, "orders"), []);
    assert_eq!(searched(&journal, "delete"), [TWO]);
    shut(journal);
    assert_eq!(bytes_in(folder.path(), "customers"), None);
}

#[test]
fn no_crash_brings_a_key_back_or_takes_another() {
    let directory = PathBuf::from("/state");
    let sessions: Vec<SessionId> = (0..6_u64)
        .map(|id| SessionId(id.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
        .collect();
    let held = |keys: &SessionKeys, session| match keys.of(session) {
        Held::Key(key) => Some(**key.secret()),
        Held::Erased => None,
        Held::Locked => panic!("locked"),
    };
    let mut interrupted = 0;
    for n in 0..40 {
        for (how, fault) in CRASHES
            .into_iter()
            .zip([Fault::Error, Fault::Short].into_iter().cycle())
        {
            let disk = Memory::new(n * 7);
            let encryption = Some(Encryption::Beside);
            let keys = SessionKeys::open(&disk, &directory, encryption.as_ref()).unwrap();
            let all: Vec<_> = sessions
                .iter()
                .map(|session| held(&keys, *session))
                .collect();
            keys.erase(&disk, &directory, (sessions[0], 7)).unwrap();
            let when = When::Nth {
                left: n as usize,
                stays: n % 2 == 0,
            };
            disk.fail(when, fault);
            let done: Vec<bool> = sessions[1..4]
                .iter()
                .map(|session| keys.erase(&disk, &directory, (*session, 7)).is_ok())
                .collect();
            interrupted += u64::from(done.contains(&false));
            let disk = disk.crash(how);
            disk.fail(When::Never, Fault::Error);
            let keys = SessionKeys::open(&disk, &directory, encryption.as_ref()).unwrap();
            for (place, session) in sessions.iter().enumerate() {
                let key = held(&keys, *session);
                let is_erased = place == 0 || place < 4 && done[place - 1];
                let may_be = is_erased || (1..4).contains(&place);
                assert!(
                    key.is_none() && may_be || key == all[place] && !is_erased,
                    "{n} {how:?}: {place}"
                );
            }
            // What was asked for and may not be done is done again, and no file has another name than it should.
            for session in &sessions[..4] {
                keys.erase(&disk, &directory, (*session, 7)).unwrap();
                assert_eq!(held(&keys, *session), None);
            }
            let mut names = disk.list(&directory).unwrap();
            names.sort();
            assert_eq!(names, ["encryption.key", "session.keys"], "{n} {how:?}");
            let keys = SessionKeys::open(&disk, &directory, None).unwrap();
            let left: Vec<_> = sessions
                .iter()
                .map(|session| held(&keys, *session))
                .collect();
            assert_eq!(left, [&[None; 4][..], &all[4..]].concat());
        }
    }
    assert!(interrupted > 60, "{interrupted}");
}
