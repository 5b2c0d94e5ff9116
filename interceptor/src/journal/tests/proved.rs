//! Evidence files: what they prove, and that nothing else passes for it.

use std::collections::BTreeSet;

use interceptor_core::record::SessionId;

use super::{
    super::{Kind, Proved, Reader, Wanted, evidence, prove},
    *,
};

/// A journal of several sessions that speak in turns, begin and end; two of them go on.
fn talk(folder: &Path) -> Journal {
    let journal = Journal::open(folder).unwrap();
    for turn in 0..6 {
        for session in [1, 2, 3, 4] {
            let event = match (turn, session) {
                (0, _) => started(),
                (5, 1 | 2) => ended(),
                (4, 3) => continue,
                _ => notice(&format!("turn {turn} of {session}: s3cr3t-{session}")),
            };
            let agent = Arc::from("agent");
            let time = Timestamp(turn * 10 + session);
            journal
                .append(Some(SessionId(session)), &agent, time, [event])
                .unwrap();
        }
        let agent = Arc::from("");
        journal
            .append(None, &agent, Timestamp(1), [notice("the host")])
            .unwrap();
        // A block a turn, but for two of them.
        if turn != 2 {
            durable(&journal, journal.last_seq());
        }
    }
    journal
}

pub(super) fn made(folder: &Path, sessions: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    let sessions = sessions.iter().copied().map(SessionId).collect();
    let reader = Reader::open(folder).unwrap();
    evidence(&reader, &sessions, None, |line| {
        out.extend_from_slice(line);
        true
    })
    .unwrap();
    out
}

pub(super) fn proved(mut file: &[u8], key: Option<&str>) -> (Proved, Vec<Record>) {
    let mut records = Vec::new();
    let proved = prove(&mut file, "file", key, |record| records.push(record)).unwrap();
    (proved, records)
}

#[test]
fn a_session_is_proved_alone_and_whole() {
    let folder = folder();
    let journal = talk(folder.path());
    let mut live = Vec::new();
    let both: BTreeSet<_> = [SessionId(1), SessionId(3)].into();
    journal
        .evidence(&both, |line| {
            live.extend_from_slice(line);
            true
        })
        .unwrap();
    journal.close();
    let key = fs::read_to_string(folder.path().join("journal.pub")).unwrap();
    for sessions in [&[1][..], &[1, 3], &[1, 2, 3, 4]] {
        let file = made(folder.path(), sessions);
        let (proved, records) = proved(&file, Some(&key));
        assert_eq!(proved.problems, []);
        assert_eq!(proved.unsigned_blocks, 0);
        assert_eq!(proved.signed_up_to, Some(all(folder.path()).len() as u64));
        let mut found = 0;
        for session in sessions {
            let own: Vec<Record> = all(folder.path())
                .into_iter()
                .filter(|record| record.session == Some(SessionId(*session)))
                .collect();
            let shown: Vec<&Record> = records
                .iter()
                .filter(|record| record.session == Some(SessionId(*session)))
                .collect();
            assert_eq!(shown, own.iter().collect::<Vec<_>>());
            let extent = proved.sessions[&SessionId(*session)];
            assert_eq!(extent.records, own.len() as u64);
            assert_eq!(extent.ended, *session < 3);
            found += own.len();
        }
        assert_eq!(records.len(), found);
        // It shows nothing of others, in whatever form.
        for other in (1..=4).filter(|other| !sessions.contains(other)) {
            let secret = format!("s3cr3t-{other}");
            assert!(
                !records
                    .iter()
                    .any(|record| format!("{record:?}").contains(&secret))
            );
        }
    }
    // Of one that runs as of one that is over.
    let (from_live, _) = proved(&live, Some(&key));
    let (from_disk, _) = proved(&made(folder.path(), &[1, 3]), Some(&key));
    assert_eq!(from_live, from_disk);
    // A session that isn't there is said not to be.
    let (absent, _) = proved(&made(folder.path(), &[1, 99]), None);
    assert_eq!(absent.problems[0].kind, Kind::Missing);
}

#[test]
fn parts_are_counted_on_by_the_next_daemon() {
    let folder = folder();
    talk(folder.path()).close();
    let journal = Journal::open(folder.path()).unwrap();
    let last = append(&journal, 3, "what came late");
    durable(&journal, last);
    let last = append(&journal, 1, "after its end");
    durable(&journal, last);
    let found = journal.sessions(&Wanted::default(), 9);
    assert_eq!(found.len(), 4);
    journal.close();
    let (proved, _) = proved(&made(folder.path(), &[1, 3]), None);
    assert_eq!(proved.problems, []);
    // Six turns in five blocks, and one more.
    assert_eq!(proved.sessions[&SessionId(1)].parts, 6);
}

#[test]
fn no_byte_of_it_can_change_and_no_line_go() {
    let folder = folder();
    talk(folder.path()).close();
    let file = made(folder.path(), &[1]);
    let key = fs::read_to_string(folder.path().join("journal.pub")).unwrap();
    let (good, records) = proved(&file, Some(&key));
    assert!(good.problems.is_empty() && good.blocks > 3);
    let mut tried = 0;
    let mut refused = |file: &[u8], what: &str| {
        let (mut found, shown) = proved(file, Some(&key));
        tried += 1;
        // How much there was besides is what whoever made it says.
        found.unsigned_blocks = 0;
        // What changes nothing that is said is no forgery: JSON may be spelled in several ways.
        if found.problems.is_empty() {
            assert_eq!((&found, &shown), (&good, &records), "{what}");
        }
        found.problems.is_empty()
    };
    let mut same = 0;
    for at in 0..file.len() {
        for flip in [1, 0x20] {
            let mut changed = file.clone();
            changed[at] ^= flip;
            same += usize::from(refused(&changed, &format!("byte {at}")));
        }
    }
    // Case of hexadecimal digits, and the count of what isn't signed.
    assert!(same < file.len() / 2, "{same} of {}", file.len());
    let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    for at in 0..lines.len() - 1 {
        let mut without = lines.clone();
        without.remove(at);
        assert!(!refused(&without.concat(), &format!("without line {at}")));
        let mut swapped = lines.clone();
        swapped.swap(at, at + 1);
        assert!(!refused(&swapped.concat(), &format!("line {at} later")));
        let mut twice = lines.clone();
        twice.insert(at, lines[at]);
        assert!(!refused(&twice.concat(), &format!("line {at} twice")));
    }
    for length in 0..file.len() {
        if !file[..length].ends_with(b"\n") {
            assert!(!refused(&file[..length], "cut off"));
        }
    }
    // Without its end it says that it goes on.
    let (short, _) = proved(&lines[..lines.len() - 1].concat(), Some(&key));
    assert!(!short.sessions[&SessionId(1)].ended && short.problems.is_empty());
    // Another journal's, with its own key.
    let other = self::folder();
    talk(other.path()).close();
    let (found, _) = proved(&made(other.path(), &[1]), Some(&key));
    assert_eq!(found.problems[0].kind, Kind::AnotherKey);
    let mixed = [lines[0], &made(other.path(), &[1])].concat();
    assert!(!refused(&mixed, "another journal's blocks"));
    println!("{tried} evidence files tried, {same} of them say the same in another way");
}

#[test]
fn what_isnt_signed_isnt_proved() {
    let folder = folder();
    talk(folder.path()).close();
    let note = fs::read(folder.path().join("checkpoint")).unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let last = append(&journal, 3, "more");
    durable(&journal, last);
    journal.close();
    fs::write(folder.path().join("checkpoint"), note).unwrap();
    let (proved, records) = proved(&made(folder.path(), &[3]), None);
    assert_eq!(
        (proved.problems.as_slice(), proved.unsigned_blocks),
        (&[][..], 1)
    );
    assert!(!format!("{records:?}").contains("more"));
    // One that was signed and is another now proves nothing.
    let reader = Reader::open(folder.path()).unwrap();
    let path = segment::path(folder.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    let chain = segment::SEGMENT_HEADER + block::BLOCK_HEADER - 1;
    bytes[chain] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = evidence(&reader, &[SessionId(3)].into(), None, |_| true).unwrap_err();
    assert!(
        matches!(error, JournalError::Contradicted { .. }),
        "{error}"
    );
}
