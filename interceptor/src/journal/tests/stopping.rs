//! A whole journal, with its threads, on a disk that is full, fails or takes its time: it says so, loses nothing
//! and goes on by itself.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use interceptor_core::record::{Event, SessionId, Timestamp};
use tempfile::TempDir;

use super::{
    super::{Journal, Kept, Options, Stopped, disk::Disk, verify::verify_on},
    folder,
    memory::{Fault, Memory, When},
    notice,
};
use crate::sync::lock;

/// A journal whose evidence is on a disk of its own.
struct OnMemory {
    disk: Memory,
    folder: TempDir,
    journal: Journal,
    on_record: BTreeMap<u64, String>,
    asked: u64,
}

impl OnMemory {
    fn new() -> Self {
        let (folder, disk) = (folder(), Memory::new(1));
        let journal = Journal::open_on(disk.clone(), folder.path(), &Options::default()).unwrap();
        Self {
            disk,
            folder,
            journal,
            on_record: BTreeMap::new(),
            asked: 0,
        }
    }

    /// Appends a record and waits until it is on disk.
    fn strictly(&mut self) -> Result<(), Stopped> {
        self.asked += 1;
        let text = format!("record {}", self.asked);
        let agent = Arc::from("agent");
        let event = [notice(&text)];
        let seq = self
            .journal
            .append(Some(SessionId(1)), &agent, Timestamp(1), event)?;
        // Whatever becomes of it: it was taken, so it will be there.
        self.on_record.insert(seq, text);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(self.journal.durable(seq))
    }

    fn goes_on(&mut self) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.journal.stopped().is_some() {
            assert!(Instant::now() < until, "{:?}", self.journal.stopped());
            std::thread::sleep(Duration::from_millis(2));
        }
        self.strictly().unwrap();
    }

    fn look(self) {
        self.journal.close();
        let mut there = BTreeMap::new();
        let report = verify_on(
            &self.disk,
            self.folder.path(),
            &Kept::default(),
            |_, _| {},
            |record| {
                let Event::Event(notice) = &record.event else {
                    panic!("{record:?}");
                };
                let text: String = notice.detail.values().map(|text| &**text).collect();
                there.insert(record.seq, text);
            },
        );
        assert_eq!(report.unwrap().problems, []);
        assert_eq!(there, self.on_record);
    }
}

#[test]
fn whatever_fails_is_said_and_goes_on_without_a_restart() {
    let mut said: BTreeMap<String, u32> = BTreeMap::new();
    for (fault, name) in [
        (Fault::Full, "No space left"),
        (Fault::Short, "No space left"),
        (Fault::Error, "Input/output error"),
        (Fault::ReadOnly, "Read-only file system"),
    ] {
        for stays in [false, true] {
            for left in 0..12 {
                let mut life = OnMemory::new();
                if left % 2 == 0 {
                    life.strictly().unwrap();
                }
                life.disk.fail(When::Nth { left, stays }, fault);
                let mut stopped = None;
                for _ in 0..6 {
                    if let Err(error) = life.strictly() {
                        stopped = Some(error.to_string());
                        break;
                    }
                }
                if let Some(stopped) = stopped {
                    assert!(stopped.contains(name), "{stopped}");
                    assert!(stopped.contains("takes no records"), "{stopped}");
                    if stays {
                        // Nothing is taken, and so nothing is kept waiting.
                        let refused = life.strictly().unwrap_err();
                        assert!(refused.to_string().contains(name), "{refused}");
                    }
                    *said.entry(name.to_owned()).or_default() += 1;
                }
                life.disk.fail(When::Never, fault);
                life.goes_on();
                life.look();
            }
        }
    }
    println!("said, and gone on from: {said:?}");
    assert_eq!(said.len(), 3, "{said:?}");
}

#[test]
fn a_disk_that_takes_its_time_is_said_to_have_stopped() {
    let mut life = OnMemory::new();
    life.strictly().unwrap();
    let gate = life.disk.gate();
    let held = lock(&gate);
    let since = Instant::now();
    let stopped = life.strictly().unwrap_err().to_string();
    assert!(stopped.contains("has taken nothing for"), "{stopped}");
    assert!(
        since.elapsed() < Duration::from_secs(8),
        "{:?}",
        since.elapsed()
    );
    assert!(life.journal.stopped().is_some());
    life.strictly().unwrap_err();
    drop(held);
    life.goes_on();
    assert!(
        life.disk
            .open(&life.folder.path().join("checkpoint"))
            .is_ok()
    );
    life.look();
}
