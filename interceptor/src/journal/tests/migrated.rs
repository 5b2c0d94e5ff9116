//! State folders of an earlier version: gone on with as they are, since what is signed stays signed.

use std::path::PathBuf;

use interceptor_core::record::SessionId;

use super::{
    super::{
        Kind, Waiting,
        block::{BlockHeader, Layout},
        disk::Local,
        evidence, prove,
        store::Store,
    },
    *,
};

/// A folder as version 4 left it: blocks of one frame, and no index.
fn folder_of_version_4(folder: &Path) -> Vec<Record> {
    fs::create_dir_all(folder.join("segments")).unwrap();
    fs::write(folder.join("format"), "interceptor state 4\n").unwrap();
    let (mut store, _) = Store::open(Local, PathBuf::from(folder), 200).unwrap();
    let mut records = Vec::new();
    for turn in 0..8 {
        let mut waiting = Waiting {
            next_seq: store.next_seq(),
            ..Waiting::default()
        };
        for session in [1, 2] {
            let record = Record {
                seq: waiting.next_seq,
                time: Timestamp(turn),
                session: Some(SessionId(session)),
                agent: Arc::from("agent"),
                event: match turn {
                    0 => started(),
                    _ => notice(&format!("turn {turn} of {session}")),
                },
            };
            waiting.take(&record).unwrap();
            records.push(record);
        }
        let stored = zstd::bulk::compress(&waiting.bytes, 1).unwrap();
        let header = BlockHeader {
            stored: stored.len() as u32,
            layout: Layout::Whole(waiting.bytes.len() as u32),
            count: waiting.count,
            first_seq: store.next_seq(),
            time_ns: turn,
            chain: [0; 32],
        };
        store.add(header, &stored).unwrap();
    }
    store.sign().unwrap();
    records
}

#[test]
fn a_folder_of_the_version_before_is_gone_on_with() {
    let folder = folder();
    let before = folder_of_version_4(folder.path());
    let note = fs::read_to_string(folder.path().join("checkpoint")).unwrap();
    let segments = |count: usize| {
        let numbers = segment::list(&super::super::disk::Local, folder.path()).unwrap();
        let read = |number: &u64| fs::read(segment::path(folder.path(), *number)).unwrap();
        numbers.iter().take(count).map(read).collect::<Vec<_>>()
    };
    let old = segments(usize::MAX);
    assert!(old.len() > 2);
    let journal = Journal::open(folder.path()).unwrap();
    assert_eq!(journal.sessions(&Wanted::default(), 9).len(), 2);
    assert_eq!(journal.session(SessionId(2)).unwrap().len(), 8);
    let last = append(&journal, 2, "by this version");
    durable(&journal, last);
    assert_eq!(journal.session(SessionId(2)).unwrap().len(), 9);
    journal.close();
    drop(journal);
    // Not a byte of what was there is another, and what was signed then vouches for it now.
    assert_eq!(segments(old.len()), old);
    let format = fs::read_to_string(folder.path().join("format")).unwrap();
    assert_eq!(format, "interceptor state 7\n");
    let kept = Kept {
        key: None,
        checkpoints: &[("then".to_owned(), note)],
        ..Kept::default()
    };
    let report = verify(folder.path(), &kept, |_, _| {}, |_| {}).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(report.witnessed_up_to, Some(16));
    let records = all(folder.path());
    assert_eq!(records[..16], before);
    assert_eq!(records.len(), 17);
    // A changed byte of it is found as ever.
    let path = segment::path(folder.path(), 1);
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        fs::write(&path, changed).unwrap();
        let report = verify(folder.path(), &Kept::default(), |_, _| {}, |_| {}).unwrap();
        assert!(!report.problems.is_empty(), "byte {at}");
    }
    fs::write(&path, whole).unwrap();
    // One session of it can't be shown without the other.
    let reader = Reader::open(folder.path()).unwrap();
    let error = evidence(&reader, &[SessionId(1)].into(), None, |_| true).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("can't be shown without the others"),
        "{error}"
    );
    // And such a block isn't taken for evidence of one.
    let forged = "{\"kind\":\"block\"}\n";
    let mut forged = forged.as_bytes();
    let proved = prove(&mut forged, "forged", None, |_| ()).unwrap();
    assert_eq!(proved.problems[0].kind, Kind::Changed);
}

#[test]
fn other_versions_are_refused_and_named() {
    for version in ["interceptor state 3\n", "interceptor state 8\n", "x", ""] {
        let folder = folder();
        folder_of_version_4(folder.path());
        fs::write(folder.path().join("format"), version).unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        assert!(matches!(&error, JournalError::Foreign { .. }), "{error}");
        assert_eq!(
            fs::read_to_string(folder.path().join("format")).unwrap(),
            version
        );
    }
}
