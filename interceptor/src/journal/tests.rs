//! The journal on real files: round trips, torn ends, changed bytes, full disks, broken indexes.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use interceptor_core::origin::{Agent, Destination, Origin, Process};
use interceptor_core::record::{Event, Record, SessionEnd, SessionId, SessionStart, Timestamp};
use tempfile::TempDir;

use super::{Filter, Journal, JournalError, Reader, export_jsonl, segment, verify};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn notice(text: &str) -> Event {
    Event::notice("test", [("text", text.to_owned())])
}

fn append(journal: &Journal, session: u64, text: &str) -> u64 {
    journal
        .append(
            Some(SessionId(session)),
            &Arc::from("agent"),
            Timestamp(1),
            [notice(text)],
        )
        .unwrap()
}

fn durable(journal: &Journal, seq: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(journal.durable(seq)).unwrap();
}

fn all(directory: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    Reader::open(directory)
        .unwrap()
        .each(|record| {
            records.push(record);
            true
        })
        .unwrap();
    records
}

fn problems(directory: &Path) -> Vec<String> {
    let report = verify(directory, None, |_, _| {}).unwrap();
    report
        .problems
        .into_iter()
        .map(|problem| format!("{}@{}: {}", problem.file, problem.offset, problem.what))
        .collect()
}

/// A journal of three blocks, closed.
fn closed(directory: &Path) {
    let journal = Journal::open(directory).unwrap();
    for block in 0..3 {
        append(&journal, 1, &format!("first of {block}"));
        let seq = append(&journal, 2, &format!("second of {block}"));
        durable(&journal, seq);
    }
    journal.close();
}

#[test]
fn what_is_appended_is_read_back_and_verified() {
    let folder = folder();
    closed(folder.path());
    let records = all(folder.path());
    assert_eq!(
        records.iter().map(|record| record.seq).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
    assert_eq!(records[5].event, notice("second of 2"));
    let report = verify(folder.path(), None, |_, _| {}).unwrap();
    assert_eq!(
        (report.records, report.blocks, report.signed_up_to),
        (6, 3, Some(6))
    );
    assert_eq!(report.problems, []);
}

#[test]
fn a_journal_goes_on_where_it_ended() {
    let folder = folder();
    closed(folder.path());
    closed(folder.path());
    assert_eq!(all(folder.path()).len(), 12);
    assert_eq!(problems(folder.path()), Vec::<String>::new());
}

#[test]
fn a_second_daemon_is_told_who_is_in_the_way() {
    let folder = folder();
    let _journal = Journal::open(folder.path()).unwrap();
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(error, JournalError::InUse(_)));
    assert!(error.to_string().contains("in use by another daemon"));
}

#[test]
fn a_newer_format_is_refused() {
    let folder = folder();
    closed(folder.path());
    fs::write(folder.path().join("format"), "interceptor state 2\n").unwrap();
    let error = Journal::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("doesn't know (`interceptor state 2`)"),
        "{error}"
    );
}

#[test]
fn keys_and_evidence_are_private() {
    let folder = folder();
    let state = folder.path().join("state");
    closed(&state);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("journal.key")), 0o600);
    assert_eq!(mode(&segment::path(&state, 1)), 0o600);
}

#[test]
fn every_single_changed_byte_is_found() {
    let folder = folder();
    closed(folder.path());
    let files = [
        segment::path(folder.path(), 1),
        folder.path().join("checkpoint"),
        folder.path().join("journal.pub"),
    ];
    for path in files {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for (offset, byte) in whole.iter().enumerate() {
            for flip in [0x01, 0x80] {
                file.write_all_at(&[byte ^ flip], offset as u64).unwrap();
                assert_ne!(
                    problems(folder.path()),
                    Vec::<String>::new(),
                    "{} byte {offset}",
                    path.display()
                );
            }
            file.write_all_at(&[*byte], offset as u64).unwrap();
        }
        assert_eq!(problems(folder.path()), Vec::<String>::new());
    }
}

#[test]
fn a_journal_that_was_cut_off_or_rolled_back_is_found() {
    let folder = folder();
    closed(folder.path());
    let path = segment::path(folder.path(), 1);
    let whole = fs::read(&path).unwrap();
    let old = fs::read(folder.path().join("checkpoint")).unwrap();
    closed(folder.path());
    let later = fs::read(&path).unwrap();
    // The segment of yesterday beside the checkpoint of today.
    fs::write(&path, &whole).unwrap();
    assert!(
        problems(folder.path())[0].contains("cut off or rolled back"),
        "{:?}",
        problems(folder.path())
    );
    fs::write(&path, &later).unwrap();
    // A checkpoint of the right key, but older: it vouches for less, and that is said.
    fs::write(folder.path().join("checkpoint"), old).unwrap();
    assert_eq!(
        verify(folder.path(), None, |_, _| {}).unwrap().signed_up_to,
        Some(6)
    );
    fs::remove_file(&path).unwrap();
    assert!(problems(folder.path())[0].contains("cut off or rolled back"));
}

#[test]
fn a_journal_resealed_with_another_key_is_found_by_who_knows_the_key() {
    let (ours, theirs) = (folder(), folder());
    closed(ours.path());
    let key = fs::read_to_string(ours.path().join("journal.pub")).unwrap();
    closed(theirs.path());
    assert_eq!(problems(theirs.path()), Vec::<String>::new());
    let report = verify(theirs.path(), Some(&key), |_, _| {}).unwrap();
    assert!(
        report.problems[0].what.contains("another key"),
        "{report:?}"
    );
}

/// A journal as a crash leaves it: three blocks, of which the checkpoint vouches for the first.
fn crashed(directory: &Path) {
    let journal = Journal::open(directory).unwrap();
    let checkpoint = directory.join("checkpoint");
    let first = fs::read(&checkpoint).unwrap();
    let signed = || fs::read(&checkpoint).unwrap();
    for block in 0..3 {
        append(&journal, 1, &format!("first of {block}"));
        let seq = append(&journal, 2, &format!("second of {block}"));
        durable(&journal, seq);
        while signed() == first {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    let after_one = signed();
    journal.close();
    fs::write(&checkpoint, after_one).unwrap();
}

/// Where the last block of the first segment begins, and the segment's bytes.
fn last_block(directory: &Path) -> (u64, Vec<u8>) {
    let path = segment::path(directory, 1);
    let mut file = fs::File::open(&path).unwrap();
    let scanned = segment::scan(&mut file).unwrap().unwrap();
    (scanned.blocks.last().unwrap().0, fs::read(&path).unwrap())
}

#[test]
fn a_torn_end_is_cut_off_and_nothing_before_it_is_lost() {
    let folder = folder();
    crashed(folder.path());
    let path = segment::path(folder.path(), 1);
    let checkpoint = fs::read(folder.path().join("checkpoint")).unwrap();
    let (last, whole) = last_block(folder.path());
    let cut = (last..whole.len() as u64)
        .step_by(7)
        .map(|length| whole[..length as usize].to_vec());
    let garbled = (last..whole.len() as u64).step_by(7).map(|place| {
        let mut bytes = whole.clone();
        bytes[place as usize] ^= 0x40;
        bytes
    });
    for bytes in cut.chain(garbled) {
        fs::write(&path, &bytes).unwrap();
        fs::write(folder.path().join("checkpoint"), &checkpoint).unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let seq = append(&journal, 3, "after the crash");
        durable(&journal, seq);
        journal.close();
        let records = all(folder.path());
        assert_eq!(records[3].event, notice("second of 1"));
        let Event::Event(recovered) = &records[4].event else {
            panic!("{:?}", records[4]);
        };
        assert_eq!(&*recovered.name, "journal_recovered");
        assert_eq!(records.last().unwrap().event, notice("after the crash"));
        assert_eq!(records.last().unwrap().seq, records.len() as u64);
        assert_eq!(problems(folder.path()), Vec::<String>::new());
        let _ = fs::remove_dir_all(folder.path().join("index"));
    }
}

#[test]
fn what_contradicts_a_signature_is_left_as_it_is_and_never_signed_again() {
    let folder = folder();
    closed(folder.path());
    let path = segment::path(folder.path(), 1);
    let checkpoint = folder.path().join("checkpoint");
    let key = folder.path().join("journal.key");
    let (last, whole) = last_block(folder.path());
    let signed = fs::read(&checkpoint).unwrap();
    let seed = fs::read(&key).unwrap();
    // A history of its own, with a chain that holds.
    let forged = {
        let other = self::folder();
        closed(other.path());
        fs::read(segment::path(other.path(), 1)).unwrap()
    };
    let mut changed = whole.clone();
    changed[last as usize + segment::BLOCK_HEADER + 3] ^= 1;
    let attacks: [(&str, &dyn Fn()); 7] = [
        ("only 2 whole ones", &|| {
            fs::write(&path, &whole[..last as usize]).unwrap();
        }),
        ("only 2 whole ones", &|| {
            fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        }),
        ("only 0 whole ones", &|| fs::remove_file(&path).unwrap()),
        ("not those that were signed", &|| {
            fs::write(&path, &forged).unwrap();
        }),
        ("its checkpoint is missing", &|| {
            fs::remove_file(&checkpoint).unwrap();
        }),
        ("signature is wrong", &|| {
            let text = String::from_utf8(signed.clone()).unwrap();
            fs::write(&checkpoint, text.replacen("\n3\n", "\n2\n", 1)).unwrap();
        }),
        ("it is missing, and the journal was signed", &|| {
            fs::remove_file(&key).unwrap();
        }),
    ];
    for (expected, attack) in attacks {
        attack();
        let before = (fs::read(&path).ok(), fs::read(&checkpoint).ok());
        let error = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        let after = (fs::read(&path).ok(), fs::read(&checkpoint).ok());
        assert!(before == after, "{expected}: the evidence was changed");
        fs::write(&path, &whole).unwrap();
        fs::write(&checkpoint, &signed).unwrap();
        fs::write(&key, &seed).unwrap();
    }
    Journal::open(folder.path()).unwrap().close();
    // A changed byte in a signed block lets the daemon start, and is found by everyone who looks.
    fs::write(&path, &changed).unwrap();
    Journal::open(folder.path()).unwrap().close();
    assert_ne!(problems(folder.path()), Vec::<String>::new());
}

#[test]
fn a_missing_or_broken_index_is_rebuilt() {
    let folder = folder();
    let journal = Journal::open(folder.path()).unwrap();
    let origin = Arc::new(Origin {
        agent: Arc::new(Agent {
            name: "agent".into(),
            labels: [("team".into(), "data".into())].into(),
        }),
        process: Process {
            pid: 7,
            ..Process::default()
        },
        destination: Destination("192.0.2.1:5432".parse().unwrap()),
        names: Vec::new(),
    });
    let start = SessionStart {
        origin,
        client: "127.0.0.1:1".parse().unwrap(),
    };
    let agent: Arc<str> = Arc::from("agent");
    journal
        .append(
            Some(SessionId(9)),
            &agent,
            Timestamp(5),
            [Event::SessionStart(start)],
        )
        .unwrap();
    append(&journal, 9, "in between");
    let end = SessionEnd {
        reason: "finished".into(),
        operations: 4,
        bytes_from_client: 1,
        bytes_from_upstream: 2,
    };
    let seq = journal
        .append(
            Some(SessionId(9)),
            &agent,
            Timestamp(6),
            [Event::SessionEnd(end)],
        )
        .unwrap();
    durable(&journal, seq);
    journal.close();
    drop(journal);
    let index = folder.path().join("index");
    let damages: [&dyn Fn(); 4] = [
        &|| {},
        &|| fs::remove_dir_all(&index).unwrap(),
        &|| fs::write(index.join("db"), vec![0xFF; 4096]).unwrap(),
        &|| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(index.join("db"))
                .unwrap();
            file.write_all_at(&[0; 512], 64).unwrap();
        },
    ];
    for damage in damages {
        damage();
        let journal = Journal::open(folder.path()).unwrap();
        let sessions = journal.sessions();
        assert_eq!(sessions.len(), 1);
        assert_eq!(
            (sessions[0].operations, sessions[0].ended),
            (4, Some(Timestamp(6)))
        );
        assert_eq!(&*sessions[0].labels["team"], "data");
        assert_eq!(journal.session(SessionId(9)).unwrap().len(), 3);
        journal.close();
    }
}

#[test]
fn a_full_disk_stops_everything_until_there_is_room_again() {
    let folder = folder();
    let mounted = folder.path().join("small");
    fs::create_dir(&mounted).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(
        Some("tmpfs"),
        &mounted,
        Some("tmpfs"),
        flags,
        Some("size=3m"),
    )
    .expect("this test needs root");
    let ballast = mounted.join("ballast");
    let result = std::panic::catch_unwind(|| {
        let journal = Journal::open(&mounted.join("state")).unwrap();
        let first = append(&journal, 1, "before");
        durable(&journal, first);
        // Fill what is left.
        let mut size = 1 << 22;
        let file = fs::File::create(&ballast).unwrap();
        let mut at = 0;
        while size > 0 {
            if file
                .write_at(&vec![7; size], at)
                .map(|count| at += count as u64)
                .is_err()
            {
                size /= 2;
            }
        }
        // Incompressible, so that it can't fit into the rest of a page.
        let mut noise = vec![0; 32 << 10];
        aws_lc_rs::rand::fill(&mut noise).unwrap();
        let kept = append(&journal, 1, &hex::encode(noise));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime
            .block_on(journal.durable(kept))
            .expect_err("a full disk takes nothing");
        assert!(journal.stopped().is_some());
        let refused = journal.append(None, &Arc::from(""), Timestamp(1), [notice("refused")]);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("takes no records")
        );
        drop(file);
        fs::remove_file(&ballast).unwrap();
        // What was taken before it was noticed is written as soon as there is room.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while journal.stopped().is_some() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let last = append(&journal, 1, "after");
        durable(&journal, last);
        journal.close();
        assert_eq!(all(&mounted.join("state")).len(), 3);
        assert_eq!(problems(&mounted.join("state")), Vec::<String>::new());
    });
    nix::mount::umount2(&mounted, nix::mount::MntFlags::MNT_DETACH).unwrap();
    result.unwrap();
}

#[test]
fn many_writers_get_numbers_without_gaps() {
    let folder = folder();
    let journal = Journal::open(folder.path()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let journal = journal.clone();
            scope.spawn(move || {
                for count in 0..500 {
                    append(&journal, writer, &format!("{count}"));
                }
            });
        }
    });
    journal.close();
    let seqs: Vec<u64> = all(folder.path()).iter().map(|record| record.seq).collect();
    assert_eq!(seqs, (1..=4_000).collect::<Vec<_>>());
    assert_eq!(problems(folder.path()), Vec::<String>::new());
}

#[test]
fn exported_lines_carry_the_documented_fields() {
    let folder = folder();
    closed(folder.path());
    let mut out = Vec::new();
    let filter = Filter {
        session: Some(SessionId(2)),
        ..Filter::default()
    };
    let count = export_jsonl(&Reader::open(folder.path()).unwrap(), &filter, &mut out).unwrap();
    assert_eq!(count, 3);
    let line: serde_json::Value =
        serde_json::from_slice(out.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(
        line,
        serde_json::json!({
            "v": 1, "seq": 2, "time": "1970-01-01T00:00:00.000000001Z", "session": "0000000000000002",
            "agent": "agent", "kind": "event", "name": "test", "detail": {"text": "second of 0"},
        })
    );
}

#[test]
fn arbitrary_bytes_as_a_segment_never_panic() {
    let folder = folder();
    closed(folder.path());
    let path = segment::path(folder.path(), 1);
    let whole = fs::read(&path).unwrap();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..=random() % 8 {
            let at = (random() % bytes.len() as u64) as usize;
            bytes[at] = random() as u8;
        }
        bytes.truncate((random() % (whole.len() as u64 + 1)) as usize);
        fs::write(&path, &bytes).unwrap();
        assert_ne!(problems(folder.path()), Vec::<String>::new());
    }
}

#[test]
fn who_asks_for_room_waits_for_the_disk_and_is_not_refused() {
    let folder = folder();
    let journal = Journal::open(folder.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut noise = vec![0; 1 << 20];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    let noise = hex::encode(noise);
    for _ in 0..100 {
        runtime.block_on(journal.room()).unwrap();
        assert!(journal.shared.backlog.load(Ordering::Relaxed) < super::CONGESTED_BYTES);
        append(&journal, 1, &noise);
    }
    journal.close();
    assert_eq!(all(folder.path()).len(), 100);
}
