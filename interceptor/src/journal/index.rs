//! The index in sled: what is asked of the journal, rebuilt from the segments whenever it may be wrong.
//!
//! It is written for many blocks at once and never once a record: summaries of sessions that begin and end, and
//! for each session the blocks that hold its records.

use std::{
    collections::BTreeMap,
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use interceptor_core::record::{Record, SessionId};
use rustc_hash::FxHashMap;

use super::{
    JournalError,
    checkpoint::Key,
    reader::Reader,
    seal::{self, Broken, Sealed},
    segment::{Location, Recovered},
    summary::{Part, SessionSummary, Wanted},
};
use crate::sync::lock;

/// The index. sled answers some damage with a panic, in its own threads as well, after which who asks may wait
/// for ever; so it is asked in a thread of its own, and given up when it fails or doesn't answer. From then on
/// the segments are asked.
#[derive(Debug)]
pub(super) struct Index {
    directory: PathBuf,
    key: Arc<Key>,
    place: Mutex<Place>,
    /// One at a time reads the segments.
    reading: Mutex<()>,
}

/// Where what is known is.
#[derive(Debug)]
struct Place {
    at: At,
    /// Blocks that haven't been told to where it is: they are told many at once, and before anything is asked.
    untold: Vec<Block>,
    /// Number after the last record of the blocks that were added.
    next: u64,
}

#[derive(Debug)]
enum At {
    Sled(Sled),
    /// It has to be read from the segments.
    Lost,
    /// Somebody reads it from the segments.
    Reading,
    Memory(Summaries),
}

/// The thread that asks sled.
#[derive(Debug)]
struct Sled {
    jobs: Sender<Job>,
    /// Jobs that it hasn't done.
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

type Job = Box<dyn FnOnce(&mut Trees) -> sled::Result<()> + Send>;

/// How long sled may take over an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Jobs that may wait for sled before it is given up: minutes of a busy host.
const WAITING_MAX: usize = 256;

/// What the index learns from one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) first_seq: u64,
    pub(super) count: u32,
    pub(super) location: Location,
    /// What it says of each session that it has records of.
    pub(super) parts: Parts,
}

/// What records say of each session, in no order.
pub(super) type Parts = FxHashMap<SessionId, Part>;

/// Blocks that may stay untold, some seconds of a busy host.
const UNTOLD_MAX: usize = 128;

/// What is asked, in sled but for what changes all the time.
#[derive(Debug)]
struct Trees {
    /// Summaries by when their session began, newest first, and its id.
    sessions: sled::Tree,
    /// When each began.
    starts: sled::Tree,
    blocks: sled::Tree,
    database: sled::Db,
    /// Sessions that go on: they are put into sled when they are over, or are too many, or it is closed.
    live: FxHashMap<SessionId, SessionSummary>,
}

/// Sessions that go on and aren't in sled, at the most: some 10 MB.
const LIVE_MAX: usize = 16_384;

impl Index {
    /// Opens the index, or makes it anew where it is missing, damaged, or not at the segments' state; and says
    /// what was wrong with one that a daemon had closed.
    pub(super) fn open(
        directory: &Path,
        key: Arc<Key>,
        recovered: &Recovered,
    ) -> Result<(Self, Option<Broken>), JournalError> {
        let path = seal::folder(directory);
        let sealed = seal::check(directory, &key.public());
        // From here on it is another one; a seal that stays is of an index that it doesn't fit.
        let lifted = seal::lift(directory);
        let is_whole = sealed == Sealed::Whole(recovered.next_seq);
        let sled = if is_whole && lifted.is_ok() {
            Sled::open(&path)
        } else {
            None
        };
        let broken = match sealed {
            Sealed::Broken(broken) => Some(broken),
            Sealed::Whole(_) if !is_whole => Some(Broken {
                file: "index".to_owned(),
                offset: 0,
                what: "it is of another state of the segments",
            }),
            _ => None,
        };
        let place = |at| Place {
            at,
            untold: Vec::new(),
            next: recovered.next_seq,
        };
        let index = |place| Self {
            directory: directory.to_owned(),
            key,
            place: Mutex::new(place),
            reading: Mutex::new(()),
        };
        if let Some(sled) = sled {
            return Ok((index(place(At::Sled(sled))), broken));
        }
        if let Some(broken) = &broken {
            tracing::warn!(file = broken.file, "the index doesn't fit: {}", broken.what);
        }
        let _ = fs::remove_dir_all(&path);
        let index = index(place(Sled::open(&path).map_or(At::Lost, At::Sled)));
        let reader = Reader::open(directory)?;
        for (location, first_seq, count) in &recovered.blocks {
            index.add(Block::of(
                &reader.block(*location)?,
                (*first_seq, *count),
                *location,
            ));
            index.keep_pace();
        }
        lock(&index.place).next = recovered.next_seq;
        Ok((index, broken))
    }

    /// Adds a block. A failure costs time, never evidence: what sled has lost is read from the segments.
    pub(super) fn add(&self, block: Block) {
        let mut place = lock(&self.place);
        place.next = block.first_seq.saturating_add(u64::from(block.count));
        place.untold.push(block);
        if place.untold.len() >= UNTOLD_MAX {
            place.tell();
        }
    }

    /// Waits for sled where much is told at once.
    fn keep_pace(&self) {
        let is_behind = || match &lock(&self.place).at {
            At::Sled(sled) => sled.waiting.load(Ordering::Relaxed) > WAITING_MAX / 2,
            _ => false,
        };
        let until = Instant::now() + PATIENCE;
        while is_behind() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The latest `limit` sessions that are `wanted`, newest first.
    pub(super) fn sessions(&self, wanted: &Wanted, limit: usize) -> Vec<SessionSummary> {
        let asked = wanted.clone();
        self.ask(
            move |trees| trees.find(&asked, limit),
            |known| {
                let found = known.sessions.values();
                let mut found: Vec<_> = found.filter(|one| wanted.takes(one)).collect();
                found.sort_by_key(|session| place_of(session));
                found.into_iter().take(limit).cloned().collect()
            },
        )
    }

    /// The blocks that hold records of a session, in order.
    pub(super) fn blocks_of(&self, session: SessionId) -> Vec<Location> {
        let in_sled = move |trees: &mut Trees| {
            let found = trees.blocks.scan_prefix(session.0.to_be_bytes()).values();
            found
                .map(|value| {
                    let value = value?;
                    let location = value.split_first_chunk::<8>().and_then(|(segment, rest)| {
                        Some(Location {
                            segment: u64::from_be_bytes(*segment),
                            offset: u64::from_be_bytes(*rest.first_chunk::<8>()?),
                        })
                    });
                    Ok(location)
                })
                .filter_map(Result::transpose)
                .collect::<sled::Result<Vec<Location>>>()
        };
        self.ask(in_sled, |known| {
            let of_session = (session.0, 0)..=(session.0, u64::MAX);
            let found = known.blocks.range(of_session);
            found.map(|(_, location)| *location).collect()
        })
    }

    /// Asks sled, or what is known of the segments where it is of no use any more.
    fn ask<T: Send + 'static>(
        &self,
        in_sled: impl FnOnce(&mut Trees) -> sled::Result<T> + Send + 'static,
        in_memory: impl FnOnce(&Summaries) -> T,
    ) -> T {
        let reply = {
            let mut place = lock(&self.place);
            place.tell();
            match &place.at {
                At::Sled(sled) => Some(sled.ask(in_sled)),
                At::Lost | At::Reading | At::Memory(_) => None,
            }
        };
        if let Some(reply) = reply {
            if let Ok(answer) = reply.recv_timeout(PATIENCE) {
                return answer;
            }
            lock(&self.place).lose();
        }
        let _one = lock(&self.reading);
        let next = {
            let mut place = lock(&self.place);
            place.tell();
            if let At::Memory(known) = &place.at {
                return in_memory(known);
            }
            // What is added while the segments are read is told afterwards.
            place.untold.clear();
            place.at = At::Reading;
            place.next
        };
        let mut known = Summaries::default();
        if let Err(error) = known.read(&self.directory, next) {
            tracing::error!(%error, "the segments can't be read in the index's place");
        }
        let mut place = lock(&self.place);
        for block in place.untold.drain(..) {
            known.learn(&block);
        }
        let answer = in_memory(&known);
        place.at = At::Memory(known);
        answer
    }

    /// Brings what it knows to disk and seals it: complete up to the record before `next`.
    pub(super) fn close(&self, next: u64) {
        let mut place = lock(&self.place);
        place.tell();
        let At::Sled(sled) = std::mem::replace(&mut place.at, At::Lost) else {
            return;
        };
        drop(place);
        if sled.close()
            && let Err(error) = seal::set(&self.directory, &self.key, next)
        {
            tracing::warn!(%error, "the index can't be sealed: the next start makes it anew");
        }
    }

    /// Has sled fail as it does on a damaged medium.
    #[cfg(test)]
    pub(super) fn break_sled(&self, how: impl FnOnce() + Send + 'static) {
        if let At::Sled(sled) = &lock(&self.place).at {
            sled.send(move |_| {
                how();
                Ok(())
            });
        }
    }
}

impl Place {
    /// Tells what is untold to where it belongs.
    fn tell(&mut self) {
        match &mut self.at {
            At::Sled(sled) => {
                if self.untold.is_empty() {
                    return;
                }
                let blocks = std::mem::take(&mut self.untold);
                if !sled.send(move |trees| trees.learn_all(blocks)) {
                    self.lose();
                }
            }
            At::Memory(known) => {
                for block in self.untold.drain(..) {
                    known.learn(&block);
                }
            }
            // Who will read the segments finds them there.
            At::Lost => self.untold.clear(),
            At::Reading => {}
        }
    }

    /// Gives sled up.
    fn lose(&mut self) {
        if matches!(self.at, At::Sled(_)) {
            tracing::error!(
                "the index is of no use any more; the segments are asked until the next start"
            );
            self.at = At::Lost;
        }
    }
}

impl Sled {
    /// Opens the database in `path` in a thread of its own, if that can be.
    fn open(path: &Path) -> Option<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (opened, is_open) = mpsc::sync_channel(1);
        let path = path.to_owned();
        let run = move || {
            let Some(mut trees) = contained(|| Trees::open(&path)) else {
                return;
            };
            if opened.send(()).is_err() {
                return;
            }
            for job in todo {
                if contained(|| job(&mut trees)).is_none() {
                    break;
                }
            }
            // It writes what it has when it goes, and may fail over it.
            contained(|| {
                drop(trees);
                Ok(())
            });
        };
        let thread = std::thread::Builder::new()
            .name("index".to_owned())
            .spawn(run)
            .ok()?;
        is_open.recv_timeout(PATIENCE).ok()?;
        Some(Self {
            jobs,
            waiting: Arc::default(),
            thread,
        })
    }

    /// Has `job` done; whether that is to be expected.
    fn send(&self, job: impl FnOnce(&mut Trees) -> sled::Result<()> + Send + 'static) -> bool {
        let waiting = self.waiting.clone();
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let job = move |trees: &mut Trees| {
            let done = job(trees);
            waiting.fetch_sub(1, Ordering::Relaxed);
            done
        };
        self.jobs.send(Box::new(job)).is_ok() && before < WAITING_MAX
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Trees) -> sled::Result<T> + Send + 'static,
    ) -> Receiver<T> {
        let (answer, reply) = mpsc::sync_channel(1);
        self.send(move |trees| {
            let _ = answer.send(work(trees)?);
            Ok(())
        });
        reply
    }

    /// Ends it with everything on disk; whether that is so.
    fn close(self) -> bool {
        let flushed = self.ask(|trees| {
            trees.put_live()?;
            trees.database.flush()
        });
        if flushed.recv_timeout(PATIENCE).is_err() {
            return false;
        }
        let Self { jobs, thread, .. } = self;
        drop(jobs);
        // It is done when the database is gone, which writes for the last time then.
        let until = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.is_finished() && thread.join().is_ok()
    }
}

/// What is known of sessions, in memory.
#[derive(Debug, Default)]
struct Summaries {
    sessions: BTreeMap<SessionId, SessionSummary>,
    /// By session and first record of the block.
    blocks: BTreeMap<(u64, u64), Location>,
}

impl Summaries {
    /// Reads the segments up to the record before `next`.
    fn read(&mut self, directory: &Path, next: u64) -> Result<(), JournalError> {
        Reader::open(directory)?.each_block(|location, records| {
            let Some((first, last)) = records.first().zip(records.last()) else {
                return true;
            };
            if last.seq >= next {
                return false;
            }
            let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
            self.learn(&Block::of(records, (first.seq, count), location));
            true
        })
    }

    fn learn(&mut self, block: &Block) {
        for (session, part) in &block.parts {
            self.blocks
                .insert((session.0, block.first_seq), block.location);
            if let Some(started) = &part.started {
                self.sessions.insert(*session, (**started).clone());
            }
            if let Some(summary) = self.sessions.get_mut(session) {
                summary.learn(part);
            }
        }
    }
}

impl Block {
    fn of(records: &[Record], (first_seq, count): (u64, u32), location: Location) -> Self {
        let mut parts = Parts::default();
        for record in records {
            if let Some(session) = record.session {
                parts.entry(session).or_default().take(record);
            }
        }
        Self {
            first_seq,
            count,
            location,
            parts,
        }
    }
}

/// Where a session stands among all: newest first.
fn place_of(session: &SessionSummary) -> (u64, u64) {
    (u64::MAX - session.started.0, session.session.0)
}

/// The same as sled has it.
fn key_of(session: &SessionSummary) -> [u8; 16] {
    let (started, id) = place_of(session);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&started.to_be_bytes());
    key[8..].copy_from_slice(&id.to_be_bytes());
    key
}

impl Trees {
    fn open(path: &Path) -> sled::Result<Self> {
        // Blocks come every 50 ms at most; the segments are what has to be safe, so sled's own
        // flushing every half second is enough.
        let database = sled::Config::new()
            .path(path)
            .cache_capacity(16 << 20)
            .open()?;
        Ok(Self {
            sessions: database.open_tree("sessions")?,
            starts: database.open_tree("starts")?,
            blocks: database.open_tree("blocks")?,
            database,
            live: FxHashMap::default(),
        })
    }

    fn learn_all(&mut self, blocks: Vec<Block>) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for block in &blocks {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&block.location.segment.to_be_bytes());
            value[8..].copy_from_slice(&block.location.offset.to_be_bytes());
            for session in block.parts.keys() {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&session.0.to_be_bytes());
                key[8..].copy_from_slice(&block.first_seq.to_be_bytes());
                batch.insert(&key, &value);
            }
        }
        self.blocks.apply_batch(batch)?;
        for (session, part) in blocks.into_iter().flat_map(|block| block.parts) {
            self.learn(session, part)?;
        }
        if self.live.len() > LIVE_MAX {
            self.put_live()?;
        }
        Ok(())
    }

    fn learn(&mut self, session: SessionId, mut part: Part) -> sled::Result<()> {
        let known = match part.started.take() {
            Some(started) => Some(*started),
            None => match self.live.remove(&session) {
                None => self.get(session)?,
                live => live,
            },
        };
        let Some(mut summary) = known else {
            return Ok(());
        };
        summary.learn(&part);
        if summary.ended.is_some() {
            return self.put(&summary);
        }
        self.live.insert(session, summary);
        Ok(())
    }

    fn get(&self, session: SessionId) -> sled::Result<Option<SessionSummary>> {
        let Some(key) = self.starts.get(session.0.to_be_bytes())? else {
            return Ok(None);
        };
        let value = self.sessions.get(key)?;
        Ok(value.and_then(|value| postcard::from_bytes(&value).ok()))
    }

    fn put(&self, summary: &SessionSummary) -> sled::Result<()> {
        let key = key_of(summary);
        // A summary is a few names and numbers: it can always be written.
        let value = postcard::to_stdvec(summary).unwrap_or_default();
        self.sessions.insert(key, value)?;
        let session = summary.session.0.to_be_bytes();
        self.starts.insert(session, &key)?;
        Ok(())
    }

    fn put_live(&mut self) -> sled::Result<()> {
        self.live
            .values()
            .try_for_each(|summary| self.put(summary))?;
        self.live.clear();
        Ok(())
    }

    /// The latest `limit` sessions that are `wanted`, newest first.
    fn find(&self, wanted: &Wanted, limit: usize) -> sled::Result<Vec<SessionSummary>> {
        let mut live: Vec<_> = self.live.values().filter(|one| wanted.takes(one)).collect();
        live.sort_by_key(|session| place_of(session));
        let mut live = live.into_iter().peekable();
        let mut found = Vec::new();
        let newest = wanted.until.map_or(0, |until| u64::MAX - until.0);
        for entry in self.sessions.range(newest.to_be_bytes()..) {
            let (key, value) = entry?;
            while found.len() < limit
                && let Some(next) = live.next_if(|next| key_of(next)[..] <= key[..])
            {
                found.push(next.clone());
            }
            if found.len() >= limit {
                return Ok(found);
            }
            let Ok(summary) = postcard::from_bytes::<SessionSummary>(&value) else {
                continue;
            };
            if wanted.since.is_some_and(|since| summary.started < since) {
                break;
            }
            if wanted.takes(&summary) && !self.live.contains_key(&summary.session) {
                found.push(summary);
            }
        }
        let room = limit.saturating_sub(found.len());
        found.extend(live.take(room).cloned());
        Ok(found)
    }
}

/// Runs `work`; sled panics on some damage to its files, which is as good as an error here.
fn contained<T>(work: impl FnOnce() -> sled::Result<T>) -> Option<T> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the index");
            None
        }
        Err(_) => None,
    }
}
