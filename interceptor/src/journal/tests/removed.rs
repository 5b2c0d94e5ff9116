//! Segments that retention has removed: what stays, what is proved of it, and what would pass for it.

use std::collections::BTreeSet;

use super::{
    super::{
        Follower, Kind, RECORDS_REMOVED, SESSIONS_REMOVED,
        encryption::SessionKeys,
        evidence, prove,
        verify::{Problem, Report},
    },
    *,
};
use crate::books::Ledger;

pub(super) fn host(journal: &Journal, agent: &str, name: &str, number: &str) {
    let event = Event::notice(
        name,
        [("number", number.to_owned()), ("taken", "2".to_owned())],
    );
    let agent = Arc::from(agent);
    journal.append(None, &agent, Timestamp(5), [event]).unwrap();
}

pub(super) fn said(journal: &Journal, session: u64, time: u64, event: Event) {
    let (session, agent) = (Some(SessionId(session)), Arc::from("agent"));
    journal
        .append(session, &agent, Timestamp(time), [event])
        .unwrap();
}

/// A journal of four segments: one session in each that begins and ends there, and one that goes through all.
fn recorded(directory: &Path) {
    for life in 0..4_u64 {
        let journal = Journal::open(directory).unwrap();
        host(&journal, "", "daemon_started", "");
        if life == 0 {
            host(&journal, "agent", "tag_added", "");
            said(&journal, 9, 1, started());
        }
        let own = life + 1;
        said(&journal, own, own * 10, started());
        said(&journal, own, own * 10, notice(&format!("s3cr3t-{own}")));
        host(&journal, "agent", "connects_counted", "1");
        durable(&journal, journal.last_seq());
        said(&journal, 9, 99, notice(&format!("part {life}")));
        said(&journal, own, own * 10 + 1, ended());
        durable(&journal, journal.last_seq());
        journal.close();
    }
}

/// Removes the `nth` of the segments that may be.
pub(super) fn remove(journal: &Journal, nth: usize) -> u64 {
    // Nothing is removed that isn't signed.
    journal.await_checkpoint();
    let closed = journal.closed().unwrap()[nth];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    // What one session in it is held for holds all of it, whatever the index says.
    let reader = journal.reader().unwrap();
    let mut of_it = Vec::new();
    reader
        .each(|record| {
            let is_there = (closed.number..closed.next).contains(&record.seq);
            of_it.extend(record.session.filter(|_| is_there));
            true
        })
        .unwrap();
    for held in of_it {
        let held = [held].into();
        runtime
            .block_on(journal.remove(closed, &held, "a test"))
            .unwrap();
        assert!(segment::path(journal.directory(), closed.number).exists());
    }
    let nobody = BTreeSet::new();
    runtime
        .block_on(journal.remove(closed, &nobody, "a test"))
        .unwrap();
    closed.number
}

fn report(directory: &Path) -> Report {
    verify(directory, &Kept::default(), |_, _| {}, |_| {}).unwrap()
}

fn sessions(journal: &Journal) -> Vec<u64> {
    let found = journal.sessions(&Wanted::default(), 100);
    found.iter().map(|session| session.session.0).collect()
}

pub(super) fn ledger(directory: &Path) -> Ledger {
    let mut ledger = Ledger::default();
    for record in all(directory) {
        ledger.observe(&record);
    }
    ledger
}

/// The file that has it, if one does.
pub(super) fn bytes_in(directory: &Path, what: &str) -> Option<std::path::PathBuf> {
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if memchr::memmem::find(&fs::read(&path).unwrap(), what.as_bytes()).is_some() {
                return Some(path);
            }
        }
    }
    None
}

#[test]
fn what_is_removed_is_gone_and_the_rest_holds_as_before() {
    let folder = folder();
    let directory = folder.path();
    recorded(directory);
    let before = all(directory);
    let books = ledger(directory).accounts().to_vec();
    assert_eq!(books[0].sessions, 5);
    let journal = Journal::open(directory).unwrap();
    let mut seen = sessions(&journal);
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 9]);
    let first = remove(&journal, 0);
    assert_eq!(first, 1);
    // The first session is gone; the one that goes on elsewhere isn't.
    let mut left = sessions(&journal);
    left.sort_unstable();
    assert_eq!(left, [2, 3, 4, 9]);
    assert_eq!(journal.session(SessionId(1)).unwrap(), []);
    assert_eq!(journal.session(SessionId(9)).unwrap().len(), 3);
    assert!(!segment::path(directory, 1).exists());
    // Not in the middle of what others hold on to, but as well.
    let second = remove(&journal, 1);
    assert!(second > 2);
    journal.close();
    let checked = report(directory);
    assert_eq!(checked.problems, []);
    assert_eq!(checked.removed_segments, 2);
    assert_eq!(
        checked.removed_records + checked.records,
        journal.last_seq()
    );
    assert_eq!(checked.signed_up_to, Some(journal.last_seq()));
    drop(journal);
    // Its books are what they were.
    assert_eq!(ledger(directory).accounts(), books);
    // What the host recorded is there, and what there was is counted.
    let after = all(directory);
    let names = |name: &str| {
        let is_it = |record: &&Record| matches!(&record.event, Event::Event(notice) if &*notice.name == name);
        after.iter().filter(is_it).count()
    };
    assert_eq!(names("daemon_started"), 4);
    assert_eq!(names(RECORDS_REMOVED), 2);
    assert_eq!(names(SESSIONS_REMOVED), 2);
    assert_eq!(names("segment_removed"), 2);
    assert!(after.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert!(after.len() < before.len());
    // The next daemon goes on with it, and makes a new index of what is there.
    fs::remove_dir_all(directory.join("index")).unwrap();
    let journal = Journal::open(directory).unwrap();
    assert_eq!(sessions(&journal), [4, 2]);
    let seq = append(&journal, 5, "later");
    durable(&journal, seq);
    remove(&journal, 0);
    journal.close();
    assert_eq!(report(directory).problems, []);
    assert_eq!(bytes_in(directory, "s3cr3t-1"), None);
}

#[test]
fn who_reads_along_is_told_what_is_gone() {
    let folder = folder();
    recorded(folder.path());
    let journal = Journal::open(folder.path()).unwrap();
    let second = journal.closed().unwrap()[1].number;
    let mut follower = Follower::new(folder.path(), SessionKeys::none(), 1);
    follower.next_block().unwrap();
    remove(&journal, 1);
    let last = journal.last_seq();
    let mut seen = Vec::new();
    while follower.next_seq() <= last {
        seen.extend(follower.next_block().unwrap());
    }
    // Each number once, and behind what the host recorded what says that something is gone.
    assert!(seen.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let gone = seen.iter().find(|record| record.seq == second + 2);
    assert!(matches!(
        &gone.unwrap().event,
        Event::Event(notice) if &*notice.name == RECORDS_REMOVED
    ));
    // From the middle of what is gone.
    let mut follower = Follower::new(folder.path(), SessionKeys::none(), second + 2);
    let rest = follower.next_block().unwrap();
    assert!(rest.iter().all(|record| record.seq >= second + 2));
    journal.close();
}

#[test]
fn what_is_left_is_proved_and_no_session_without_its_beginning() {
    let folder = folder();
    let directory = folder.path();
    recorded(directory);
    let journal = Journal::open(directory).unwrap();
    remove(&journal, 0);
    // Its parts are counted on, whoever is asked how many it has had.
    said(&journal, 9, 100, notice("after"));
    durable(&journal, journal.last_seq());
    journal.close();
    let made = |session: u64| {
        let mut file = Vec::new();
        let reader = Reader::open(directory).unwrap();
        let wanted: BTreeSet<_> = [SessionId(session)].into();
        let made = evidence(&reader, &wanted, None, |line| {
            file.extend_from_slice(line);
            true
        });
        made.map(|_| file)
    };
    for session in 2..=4 {
        let proved = prove(&mut &*made(session).unwrap(), "file", None, |_| {}).unwrap();
        assert_eq!(proved.problems, []);
        assert!(proved.sessions[&SessionId(session)].ended);
    }
    let error = made(9).unwrap_err();
    assert!(
        matches!(error, JournalError::Beheaded(SessionId(9))),
        "{error}"
    );
    let reader = Reader::open(directory).unwrap();
    let mut parts = Vec::new();
    reader
        .each_header(|location, _| {
            let part = reader.nth(location, SessionId(9))?;
            parts.extend(part.map(|(nth, _)| nth));
            Ok(true)
        })
        .unwrap();
    let first = parts[0];
    let following: Vec<u32> = (first..first + parts.len() as u32).collect();
    assert!(first > 0);
    assert_eq!(parts, following);
}

#[test]
fn nothing_else_passes_for_what_stays() {
    let folder = folder();
    let directory = folder.path();
    recorded(directory);
    let numbers = segment::list(&super::super::disk::Local, directory).unwrap();
    // Somebody who makes a husk of a segment without a word on record.
    let (second, third) = (numbers[1], numbers[2]);
    let made = super::super::removal::make(
        &super::super::disk::Local,
        directory,
        &SessionKeys::none(),
        (second, third),
    )
    .unwrap();
    let aside = fs::read(segment::path(directory, second)).unwrap();
    let husk = segment::husk_path(directory, second);
    fs::write(&husk, &made.bytes).unwrap();
    // As long as the segment is there nobody believes that.
    assert_eq!(report(directory).problems, []);
    fs::remove_file(segment::path(directory, second)).unwrap();
    let found = |kind: Kind| {
        let problems = report(directory).problems;
        let is_it = |problem: &Problem| problem.kind == kind && problem.seq == Some(second);
        assert!(problems.iter().any(is_it), "{kind:?}: {problems:#?}");
    };
    found(Kind::Missing);
    fs::write(segment::path(directory, second), aside).unwrap();
    fs::remove_file(&husk).unwrap();
    // What stays of one that was removed is what stayed.
    let journal = Journal::open(directory).unwrap();
    remove(&journal, 1);
    journal.close();
    assert_eq!(report(directory).problems, []);
    let bytes = fs::read(&husk).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        fs::write(&husk, &changed).unwrap();
        let problems = report(directory).problems;
        assert!(!problems.is_empty(), "byte {at}");
    }
    for length in [0, 7, 40, bytes.len() - 1] {
        fs::write(&husk, &bytes[..length]).unwrap();
        assert!(!report(directory).problems.is_empty(), "{length} bytes");
    }
    fs::remove_file(&husk).unwrap();
    found(Kind::Missing);
    Journal::open(directory).unwrap_err();
    fs::write(&husk, &bytes).unwrap();
    assert_eq!(report(directory).problems, []);
    // What is damaged is evidence of that, and isn't removed.
    let path = segment::path(directory, third);
    let sound = fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(&path, damaged).unwrap();
    let made = super::super::removal::make(
        &super::super::disk::Local,
        directory,
        &SessionKeys::none(),
        (third, numbers[3]),
    );
    assert!(made.is_err());
}
