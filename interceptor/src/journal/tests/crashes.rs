//! Crashes, power failures and failing disks, thousands of times, each from a seed.
//!
//! `INTERCEPTOR_SEEDS` says how many seeds to try, `INTERCEPTOR_SEED` has one tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};

use super::{
    super::{
        RECORDS_REMOVED, SESSIONS_REMOVED, Waiting,
        block::BlockHeader,
        checkpoint,
        disk::Disk,
        encryption::SessionKeys,
        husk,
        pack::{Next, Packer},
        removal,
        segment::Names,
        store::Store,
        verify::{Kept, verify_on},
    },
    memory::{CRASHES, Crash, Fault, Memory, Random, When},
    notice,
};
use crate::sync::lock;

const FAULTS: [Fault; 4] = [Fault::Error, Fault::Full, Fault::Short, Fault::ReadOnly];

fn directory() -> PathBuf {
    PathBuf::from("/state")
}

/// What was said to be on record, and what was ever asked to be.
#[derive(Default)]
struct Told {
    on_record: BTreeMap<u64, String>,
    asked: BTreeSet<(u64, String)>,
    /// From and to before which records may be gone.
    removed: BTreeSet<(u64, u64)>,
}

/// A journal on a disk that fails, and who is told what.
pub(super) struct Life {
    seed: u64,
    disk: Memory,
    random: Random,
    told: Told,
    packer: Packer,
    segment_bytes: u64,
    count: u64,
    crashes: u64,
    rotations: u64,
    /// Its first public key.
    first: Option<String>,
}

/// Says which seed it was when something goes wrong.
struct Seed(String);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it was {}", self.0);
        }
    }
}

/// Records that wait to be added.
struct Block {
    header: BlockHeader,
    payload: Vec<u8>,
    texts: Vec<(u64, String)>,
}

fn text(event: &Event) -> String {
    match event {
        Event::Event(notice) => notice.detail.values().map(|text| &**text).collect(),
        other => panic!("nobody recorded {other:?}"),
    }
}

/// Whether it isn't a record of its own.
fn stands_in(record: &Record) -> bool {
    let names = [RECORDS_REMOVED, SESSIONS_REMOVED];
    matches!(&record.event, Event::Event(notice) if names.contains(&&*notice.name))
}

impl Life {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            seed,
            disk: Memory::new(random.next()),
            segment_bytes: [300, 2_000, 64 << 20][random.below(3)],
            random,
            told: Told::default(),
            packer: Packer::new().unwrap(),
            count: 0,
            crashes: 0,
            rotations: 0,
            first: None,
        }
    }

    fn try_open(&mut self) -> Option<Store<Memory>> {
        let opened = Store::open(self.disk.clone(), directory(), self.segment_bytes);
        opened.ok().map(|(mut store, _)| {
            store.discard();
            store
        })
    }

    /// Opens the journal on a disk that works: that never fails, and nothing is lost.
    pub(super) fn open(&mut self) -> Store<Memory> {
        self.disk.fail(When::Never, Fault::Error);
        let opened = Store::open(self.disk.clone(), directory(), self.segment_bytes);
        let (mut store, recovered) = match opened {
            Ok(opened) => opened,
            Err(error) => panic!("a crash left what can't be opened: {error}"),
        };
        assert_eq!(store.next_seq(), recovered.next_seq);
        self.look(store.next_seq());
        store.discard();
        if self.first.is_none() {
            let key = self.disk.read(&directory().join("journal.pub"));
            self.first = Some(String::from_utf8(key.unwrap()).unwrap());
        }
        store
    }

    /// Replaces the key, as far as the disk lets it. Whether the journal can be gone on with: of a record that may be
    /// there or not, a daemon that goes on makes sure.
    pub(super) fn rotate(&mut self, store: &mut Store<Memory>) -> bool {
        if store.prepare().is_err() {
            store.discard();
            return true;
        }
        let (_, event) = store.rotation("somebody", "why not").unwrap();
        let Some(added) = self.put(store, event) else {
            return false;
        };
        assert!(store.hand_over(&added.statement.unwrap()));
        self.rotations += 1;
        let _ = store.sign();
        true
    }

    /// Everything that was said to be on record is there, nothing else than what was asked to be, and `verify`
    /// finds nothing. What is there counts as said from now on.
    fn look(&mut self, next_seq: u64) {
        let mut found: Vec<Record> = Vec::new();
        // With the key that shows, or with the first one, from which on the others follow.
        let kept = Kept {
            key: self.first.as_deref().filter(|_| self.random.once_in(2)),
            checkpoints: &[],
            ..Kept::default()
        };
        let report = verify_on(
            &self.disk,
            &directory(),
            &kept,
            |_, _| {},
            |record| {
                found.push(record.clone());
            },
        );
        assert_eq!(report.unwrap().problems, [], "verify");
        found.retain(|record| !stands_in(record));
        let seqs: BTreeSet<u64> = found.iter().map(|record| record.seq).collect();
        assert_eq!(seqs.len(), found.len(), "each record once");
        let removed = self.told.removed.clone();
        let is_removed = |seq: u64| removed.iter().any(|(from, to)| (*from..*to).contains(&seq));
        let mut there = 1..next_seq;
        assert!(
            there.all(|seq| seqs.contains(&seq) || is_removed(seq)),
            "{seqs:?} before {next_seq}, without {removed:?}"
        );
        assert!(seqs.last().is_none_or(|last| *last < next_seq));
        let found: BTreeMap<u64, String> = found
            .iter()
            .map(|record| (record.seq, text(&record.event)))
            .collect();
        for (seq, text) in &self.told.on_record {
            if found.contains_key(seq) || !is_removed(*seq) {
                assert_eq!(
                    found.get(seq),
                    Some(text),
                    "record {seq} was said to be there"
                );
            }
        }
        for there in found {
            assert!(
                self.told.asked.contains(&there),
                "nobody asked for {there:?}"
            );
            self.told.on_record.insert(there.0, there.1);
        }
    }

    /// Removes one of the segments that are closed, as far as the disk lets it.
    fn remove(&mut self, store: &mut Store<Memory>) -> Option<()> {
        store.sign().ok()?;
        let names = Names::read(&self.disk, &directory()).ok()?;
        let all = names.merged();
        let closed: Vec<(u64, u64)> = all
            .windows(2)
            .map(|pair| (pair[0], pair[1]))
            .filter(|(number, _)| !names.husks.contains(number))
            .collect();
        let (number, next) = *closed.get(self.random.below(closed.len().max(1)))?;
        let made = removal::make(
            &self.disk,
            &directory(),
            &SessionKeys::none(),
            (number, next),
        )
        .ok()?;
        let detail = [
            ("segment", number.to_string()),
            ("husk", husk::hash(&made.bytes)),
        ];
        self.put(store, Event::notice(husk::REMOVED, detail))?;
        self.told.removed.insert((number, next));
        removal::replace(&self.disk, &directory(), number, &made.bytes).ok()
    }

    /// Adds a record of the host's to `store`, if the disk lets it: what was taken for it.
    fn put(&mut self, store: &mut Store<Memory>, event: Event) -> Option<Waiting> {
        let record = Record {
            seq: store.next_seq(),
            time: Timestamp(1),
            session: None,
            agent: Arc::from(""),
            event,
        };
        let mut waiting = Waiting {
            next_seq: record.seq,
            ..Waiting::default()
        };
        waiting.take(&record).unwrap();
        let told = (record.seq, text(&record.event));
        self.told.asked.insert(told.clone());
        let mut payload = Vec::new();
        let packed = self
            .packer
            .pack(&waiting.bytes, |_| Ok(Next::default()), &mut payload);
        store.add(packed.unwrap(), &payload).ok()?;
        self.told.on_record.insert(told.0, told.1);
        Some(waiting)
    }

    fn block(&mut self, next_seq: u64) -> Block {
        let mut waiting = Waiting {
            next_seq,
            ..Waiting::default()
        };
        let mut texts = Vec::new();
        for _ in 0..=self.random.below(4) {
            self.count += 1;
            let noise: String = (0..self.random.below(3) * self.random.below(60))
                .map(|_| format!("{:016x}", self.random.next()))
                .collect();
            let text = format!("{} of {}: {noise}", self.count, self.seed);
            // Several sessions, and what is of none.
            let session = self.random.below(4) as u64;
            let record = Record {
                seq: waiting.next_seq,
                time: Timestamp(1),
                session: session.checked_sub(1).map(SessionId),
                agent: Arc::from("agent"),
                event: notice(&text),
            };
            texts.push((record.seq, text));
            waiting.take(&record).unwrap();
        }
        self.told.asked.extend(texts.iter().cloned());
        let mut payload = Vec::new();
        let packed = self
            .packer
            .pack(&waiting.bytes, |_| Ok(Next::default()), &mut payload);
        let header = BlockHeader {
            first_seq: next_seq,
            time_ns: self.count,
            ..packed.unwrap()
        };
        Block {
            header,
            payload,
            texts,
        }
    }

    /// Adds a block to `store` and signs it.
    pub(super) fn extend(&mut self, store: &mut Store<Memory>) {
        let block = self.block(store.next_seq());
        store.add(block.header, &block.payload).unwrap();
        store.sign().unwrap();
    }

    /// Has the disk fail from now on.
    pub(super) fn fails(&self, when: When, fault: Fault) {
        self.disk.fail(when, fault);
    }

    /// Whether it is signed with another key than at first.
    pub(super) fn is_rotated(&self, store: &Store<Memory>) -> bool {
        let key = crate::sync::read(&store.key()).public().to_text();
        self.first.as_ref() != Some(&key)
    }

    /// The files that have a private key.
    pub(super) fn secrets(&self) -> Vec<String> {
        let mut names = self.disk.list(&directory()).unwrap();
        names.retain(|name| name == "journal.key" || name.starts_with("journal.key."));
        names
    }

    pub(super) fn crash(&mut self, how: Crash) {
        self.crashes += 1;
        self.disk = self.disk.crash(how);
    }

    fn fail(&mut self) {
        let fault = FAULTS[self.random.below(FAULTS.len())];
        let when = match self.random.below(4) {
            0 => When::Nth {
                left: self.random.below(12),
                stays: self.random.once_in(2),
            },
            1 => When::OneIn(1 + self.random.below(20)),
            _ => When::Never,
        };
        self.disk.fail(when, fault);
    }

    /// Opens, adds and signs until it crashes, on a disk that fails at times.
    fn live(&mut self) {
        self.fail();
        let mut store = None;
        for _ in 0..self.random.below(3) {
            store = self.try_open();
            if store.is_some() {
                break;
            }
            if self.random.once_in(3) {
                return;
            }
        }
        let mut store = match store {
            Some(store) => store,
            None => self.open(),
        };
        for _ in 0..self.random.below(8) {
            self.fail();
            if self.random.once_in(3) {
                self.remove(&mut store);
            }
            if self.random.once_in(4) && !self.rotate(&mut store) {
                return;
            }
            let block = self.block(store.next_seq());
            let mut attempts = 0;
            while store.add(block.header, &block.payload).is_err() {
                assert_eq!(store.next_seq(), block.header.first_seq);
                attempts += 1;
                if self.random.once_in(4) {
                    return;
                }
                if attempts > 2 {
                    self.disk.fail(When::Never, Fault::Error);
                }
                assert!(attempts < 5, "a disk that works takes blocks");
            }
            self.told.on_record.extend(block.texts);
            if self.random.once_in(2) {
                // Where it fails what was signed before is signed still.
                let _ = store.sign();
            }
        }
    }
}

/// Whole lives of a journal from `seed`: how many crashes and faults there were, records on record and segments that
/// were removed, and how often the key was replaced.
fn lives(seed: u64) -> [u64; 5] {
    let _seed = Seed(format!(
        "seed {seed}: INTERCEPTOR_SEED={seed} tries it again"
    ));
    let mut life = Life::new(seed);
    for _ in 0..=life.random.below(5) {
        life.live();
        let how = CRASHES[life.random.below(CRASHES.len())];
        life.crash(how);
    }
    let mut store = life.open();
    let block = life.block(store.next_seq());
    store.add(block.header, &block.payload).unwrap();
    store.sign().unwrap();
    life.told.on_record.extend(block.texts);
    life.crash(Crash::Nothing);
    life.open();
    let faults = life.disk.failed().0 as u64;
    let removed = life.told.removed.len() as u64;
    let records = life.told.on_record.len() as u64;
    [life.crashes, faults, records, removed, life.rotations]
}

#[test]
fn a_segment_is_closed_by_size_or_by_age() {
    let mut life = Life::new(7);
    life.segment_bytes = 64 << 20;
    let mut store = life.open();
    let segments = |life: &Life| life.disk.list(&directory().join("segments")).unwrap().len();
    life.extend(&mut store);
    life.extend(&mut store);
    let by_size = segments(&life);
    store.close_at(Duration::ZERO);
    for more in 1..=3 {
        life.extend(&mut store);
        assert_eq!(segments(&life), by_size + more);
    }
    drop(store);
    life.open();
}

#[test]
fn nothing_on_record_is_lost_by_any_crash_of_any_seed() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let (first, last) = match number("INTERCEPTOR_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("INTERCEPTOR_SEEDS").unwrap_or(2_000)),
    };
    let next = AtomicU64::new(first);
    let sums = Mutex::new([0; 5]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last {
                        return;
                    }
                    let counts = lives(seed);
                    for (sum, count) in lock(&sums).iter_mut().zip(counts) {
                        *sum += count;
                    }
                }
            });
        }
    });
    let [crashes, faults, records, removed, rotations] = *lock(&sums);
    println!(
        "{} seeds: {crashes} crashes, {faults} operations of the disk failed, {records} records, {removed} segments removed, {rotations} keys replaced; 0 lost",
        last - first
    );
}

/// A short life in which the n-th operation of the disk fails, for `stays` all after it as well until somebody
/// mends it. What failed, if anything did.
fn fails_at(
    n: usize,
    fault: Fault,
    stays: bool,
    at_once: bool,
    how: Crash,
) -> Option<&'static str> {
    let _seed = Seed(format!(
        "operation {n}, {fault:?}, stays {stays}, crash at once {at_once}, {how:?}"
    ));
    let mut life = Life::new(7);
    life.segment_bytes = 500;
    life.disk.fail(When::Nth { left: n, stays }, fault);
    for _ in 0..3 {
        let mut store = match life.try_open() {
            Some(store) => store,
            None => {
                if at_once {
                    life.crash(how);
                }
                life.open()
            }
        };
        for _ in 0..3 {
            let block = life.block(store.next_seq());
            let mut is_told = false;
            for attempt in 0..3 {
                if attempt == 2 {
                    life.disk.fail(When::Never, fault);
                }
                if store.add(block.header, &block.payload).is_ok() {
                    is_told = true;
                    break;
                }
                if at_once {
                    break;
                }
            }
            if !is_told {
                assert!(
                    at_once,
                    "it goes on without a restart as soon as the disk does"
                );
                life.crash(how);
                store = life.open();
                continue;
            }
            life.told.on_record.extend(block.texts);
            if store.sign().is_err() && at_once {
                life.crash(how);
                store = life.open();
            }
        }
        life.crash(how);
    }
    life.open();
    let (failed, last) = life.disk.failed();
    (failed > 0).then_some(last)
}

#[test]
fn every_operation_of_the_disk_may_fail() {
    let mut runs = 0;
    let mut sites: BTreeMap<&str, u32> = BTreeMap::new();
    let mut most = 0;
    for fault in FAULTS {
        for stays in [false, true] {
            for at_once in [false, true] {
                for how in CRASHES {
                    // Operations that this kind of fault doesn't concern are passed over.
                    let mut untouched = 0;
                    for n in 0.. {
                        runs += 1;
                        match fails_at(n, fault, stays, at_once, how) {
                            Some(site) => {
                                *sites.entry(site).or_default() += 1;
                                most = most.max(n);
                                untouched = 0;
                            }
                            None => untouched += 1,
                        }
                        if untouched > 30 {
                            break;
                        }
                    }
                }
            }
        }
    }
    println!("{runs} runs, up to operation {most}, the last to fail: {sites:?}; 0 records lost");
    for site in [
        "create",
        "edit",
        "length",
        "list",
        "open",
        "read",
        "remove",
        "rename",
        "sync",
        "sync folder",
        "write",
    ] {
        assert!(sites.contains_key(site), "{site} never failed");
    }
}

#[test]
fn a_disk_that_is_full_byte_by_byte_takes_whole_blocks_or_none() {
    let mut life = Life::new(11);
    life.segment_bytes = 900;
    let mut store = life.open();
    let (mut refused, mut taken) = (0, 0);
    for more in 0..600 {
        life.disk.give_room(Some(life.disk.used() + more * 3));
        let block = life.block(store.next_seq());
        if store.add(block.header, &block.payload).is_err() {
            refused += 1;
            // Whoever reads meanwhile finds what was on record before, and nothing of this.
            if life.random.once_in(4) {
                life.crash(Crash::Everything);
                life.disk.give_room(None);
                store = life.open();
                continue;
            }
            life.disk.give_room(None);
            store.add(block.header, &block.payload).unwrap();
        } else {
            taken += 1;
        }
        life.told.on_record.extend(block.texts);
        let _ = store.sign();
    }
    life.look(store.next_seq());
    println!("{refused} blocks refused for want of room and taken later, {taken} at once");
    assert!(refused > 50 && taken > 50, "{refused} {taken}");
}

#[test]
fn what_a_failed_sync_left_is_written_before_anything_is_built_upon_it() {
    // The page cache shows the block, the medium doesn't have it, and no sync will ever write it.
    let mut life = Life::new(3);
    life.segment_bytes = 64 << 20;
    let mut store = life.open();
    let block = life.block(store.next_seq());
    store.add(block.header, &block.payload).unwrap();
    life.told.on_record.extend(block.texts);
    for how in [Crash::Nothing, Crash::Everything, Crash::Some, Crash::Torn] {
        let block = life.block(store.next_seq());
        // The sync is the third operation after two writes, cutting back the fourth.
        life.disk.fail(
            When::Nth {
                left: 2,
                stays: true,
            },
            Fault::Error,
        );
        store.add(block.header, &block.payload).unwrap_err();
        life.crash(Crash::Kill);
        let mut next = life.open();
        let behind = life.block(next.next_seq());
        next.add(behind.header, &behind.payload).unwrap();
        life.told.on_record.extend(behind.texts);
        life.crash(how);
        store = life.open();
    }
}

#[test]
fn a_key_is_whole_or_not_there() {
    for how in CRASHES {
        for n in 0..60 {
            let _seed = Seed(format!("operation {n}, {how:?}"));
            let disk = Memory::new(n as u64);
            let stays = true;
            disk.fail(When::Nth { left: n, stays }, Fault::Error);
            let _ = Store::open(disk.clone(), directory(), 1 << 20);
            let disk = disk.crash(how);
            disk.fail(When::Never, Fault::Error);
            Store::open(disk.clone(), directory(), 1 << 20).unwrap();
            let key = checkpoint::Key::open(&disk, &directory()).unwrap();
            let again = checkpoint::Key::open(&disk.crash(Crash::Nothing), &directory()).unwrap();
            assert_eq!(key.public(), again.public());
            assert!(disk.open(Path::new("/state/journal.pub")).is_ok());
        }
    }
}
