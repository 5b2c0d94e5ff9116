//! The journal on real files: round trips, torn ends, changed bytes, full disks, broken indexes.

mod asked;
mod crashes;
mod damage;
mod erased;
mod killed;
mod memory;
mod migrated;
mod proved;
mod removed;
mod rotated;
mod stopping;

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use interceptor_core::origin::{Agent, Destination, Origin, Process};
use interceptor_core::record::{Event, Record, SessionEnd, SessionId, SessionStart, Timestamp};
use tempfile::TempDir;

use super::{
    Fed, Filter, Inlet, Journal, JournalError, Kept, Outlet, Reader, Wanted, block, export_jsonl,
    segment, verify,
};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn notice(text: &str) -> Event {
    Event::notice("test", [("text", text.to_owned())])
}

/// The start of a session.
fn started() -> Event {
    let origin = Arc::new(Origin {
        agent: Arc::new(Agent {
            name: "agent".into(),
            labels: [("team".into(), "data".into())].into(),
        }),
        process: Process {
            pid: 7,
            ..Process::default()
        },
        destination: Destination::Ip("192.0.2.1:5432".parse().unwrap()),
        names: Vec::new(),
    });
    Event::SessionStart(SessionStart {
        origin,
        client: "127.0.0.1:1".parse().ok(),
    })
}

/// The end of one.
fn ended() -> Event {
    Event::SessionEnd(SessionEnd {
        reason: "finished".into(),
        operations: 4,
        bytes_from_client: 1,
        bytes_from_upstream: 2,
    })
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
    let report = verify(directory, &Kept::default(), |_, _| {}, |_| {}).unwrap();
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
    let report = verify(folder.path(), &Kept::default(), |_, _| {}, |_| {}).unwrap();
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
fn another_format_is_refused() {
    let folder = folder();
    closed(folder.path());
    fs::write(folder.path().join("format"), "interceptor state 1\n").unwrap();
    let error = Journal::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("doesn't know (`interceptor state 1`)"),
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
    let old = fs::read(folder.path().join("checkpoint")).unwrap();
    closed(folder.path());
    // The segment of yesterday beside the checkpoint of today.
    let newer = segment::path(folder.path(), 7);
    let later = fs::read(&newer).unwrap();
    fs::remove_file(&newer).unwrap();
    assert!(
        problems(folder.path())[0].contains("cut off or rolled back"),
        "{:?}",
        problems(folder.path())
    );
    fs::write(&newer, &later).unwrap();
    // A checkpoint of the right key, but older: it vouches for less, and that is said.
    fs::write(folder.path().join("checkpoint"), old).unwrap();
    assert_eq!(
        verify(folder.path(), &Kept::default(), |_, _| {}, |_| {})
            .unwrap()
            .signed_up_to,
        Some(6)
    );
    fs::remove_file(&path).unwrap();
    assert!(problems(folder.path())[0].contains("records 1 to 6 are missing"));
    fs::remove_file(&newer).unwrap();
    assert!(problems(folder.path())[0].contains("cut off or rolled back"));
}

#[test]
fn a_journal_resealed_with_another_key_is_found_by_who_knows_the_key() {
    let (ours, theirs) = (folder(), folder());
    closed(ours.path());
    let key = fs::read_to_string(ours.path().join("journal.pub")).unwrap();
    closed(theirs.path());
    assert_eq!(problems(theirs.path()), Vec::<String>::new());
    let kept = Kept {
        key: Some(&key),
        ..Kept::default()
    };
    let report = verify(theirs.path(), &kept, |_, _| {}, |_| {}).unwrap();
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
    let file = fs::File::open(&path).unwrap();
    let scanned = segment::scan(&file).unwrap().unwrap();
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
    changed[last as usize + block::BLOCK_HEADER + 3] ^= 1;
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
    let agent: Arc<str> = Arc::from("agent");
    journal
        .append(Some(SessionId(9)), &agent, Timestamp(5), [started()])
        .unwrap();
    append(&journal, 9, "in between");
    let seq = journal
        .append(Some(SessionId(9)), &agent, Timestamp(6), [ended()])
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
        let sessions = journal.sessions(&Wanted::default(), 10);
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

/// A copy of the folder as SIGKILL could leave it.
///
/// A kill takes everything at one moment, a copy doesn't: what waits is copied first, so that what the
/// writer takes out of there meanwhile is in the segments, and what vouches for them before they are.
fn as_killed(directory: &Path) -> TempDir {
    let copy = folder();
    // Whoever is started stays in the cgroup that this process is in, which other tests remove.
    let _turn = crate::kernel::tests::turn();
    let status = std::process::Command::new("sh")
        .args(["-c", "cd \"$0\" && cp -a feed \"$1\" && cp -a waiting-* \"$1\" && cp -a checkpoint format journal.* \"$1\" && cp -a segments \"$1\""])
        .arg(directory)
        .arg(copy.path())
        .status()
        .unwrap();
    assert!(status.success());
    copy
}

#[test]
fn what_was_appended_outlives_the_daemon_before_it_is_written() {
    let directory = folder();
    let journal = Journal::open(directory.path()).unwrap();
    let mut last = 0;
    for round in 0..20 {
        for number in 0..=round {
            last = append(&journal, number, "a deed that goes on at once");
            assert!(journal.is_kept(last));
        }
        let killed = as_killed(directory.path());
        let next = Journal::open(killed.path()).unwrap();
        next.close();
        drop(next);
        let seqs: Vec<u64> = all(killed.path()).iter().map(|record| record.seq).collect();
        assert!(seqs.len() as u64 >= last, "{} of {last}", seqs.len());
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64));
        assert_eq!(problems(killed.path()), Vec::<String>::new());
        // What is there is there once, however often it is started again.
        let again = as_killed(killed.path());
        Journal::open(again.path()).unwrap().close();
        assert!(all(again.path()).len() <= seqs.len() + 1);
    }
    journal.close();
}

#[test]
fn what_has_no_room_to_be_kept_is_said_until_it_is_on_disk() {
    let directory = folder();
    let journal = Journal::open(directory.path()).unwrap();
    let large = append(&journal, 1, &"x".repeat(9 << 20));
    let durable_now = |seq| journal.shared.progress.borrow().durable >= seq;
    assert!(!journal.is_kept(large) || durable_now(large));
    // What comes behind it says nothing of it.
    let behind = append(&journal, 1, "behind it");
    assert!(!journal.is_kept(large) || durable_now(large));
    assert!(!journal.is_kept(behind) || durable_now(large));
    durable(&journal, large);
    assert!(journal.is_kept(large));
    let small = append(&journal, 1, "small");
    assert!(journal.is_kept(small));
    journal.close();
}

/// A record as another process writes it.
fn fed(text: &str) -> Vec<u8> {
    let record = Record {
        seq: 0,
        time: Timestamp(1),
        session: Some(SessionId(3)),
        agent: Arc::from("agent"),
        event: notice(text),
    };
    let mut bytes = Vec::new();
    super::encode(&record, &mut bytes).unwrap();
    bytes
}

/// Takes in what there is now; whether all of it.
fn take_in(journal: &Journal, feed: &mut Outlet) -> bool {
    let waiting = feed.peek().unwrap();
    let frames = waiting.frames.into_iter();
    let records: Vec<Fed> = frames.map(|(frame, _)| Fed::read(frame).unwrap()).collect();
    journal.take_in(&records, (feed, waiting.end)).is_ok()
}

#[test]
fn what_is_fed_is_on_record_once_whenever_both_are_killed() {
    let directory = folder();
    let journal = Journal::open(directory.path()).unwrap();
    let mut feed = journal.feed().unwrap();
    let mut writer = Inlet::of(feed.file().unwrap()).unwrap();
    let mut expected = Vec::new();
    for round in 0..30 {
        for number in 0..=round {
            let text = format!("{round}.{number}");
            writer.push(&fed(&text)).unwrap();
            expected.push(notice(&text));
            if number == round / 2 && round % 3 != 0 {
                take_in(&journal, &mut feed);
                append(&journal, 1, "its own");
            }
        }
        let killed = as_killed(directory.path());
        // However often it is started again.
        for _ in 0..2 {
            Journal::open(killed.path()).unwrap().close();
        }
        let found: Vec<Event> = all(killed.path())
            .into_iter()
            .filter(|record| record.session == Some(SessionId(3)))
            .map(|record| record.event)
            .collect();
        assert_eq!(found, expected, "{round}");
        assert_eq!(problems(killed.path()), Vec::<String>::new());
    }
    journal.close();
}

#[test]
fn what_is_fed_stays_in_the_feed_where_it_could_not_be_kept() {
    let directory = folder();
    let journal = Journal::open(directory.path()).unwrap();
    let mut feed = journal.feed().unwrap();
    let mut writer = Inlet::of(feed.file().unwrap()).unwrap();
    let large = fed(&"x".repeat(3 << 20));
    for _ in 0..40 {
        writer.push(&large).unwrap();
    }
    let mut refused = 0;
    while feed.has_more() {
        if !take_in(&journal, &mut feed) {
            refused += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert!(refused > 0);
    journal.close();
    assert_eq!(all(directory.path()).len(), 40);
}
