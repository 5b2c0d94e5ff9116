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

use interceptor_core::{
    record::{Event, Record, SessionId, Timestamp},
    ruling::Verdict,
};
use serde::{Deserialize, Serialize};

use super::{
    JournalError,
    checkpoint::Key,
    reader::Reader,
    seal::{self, Broken, Sealed},
    segment::{Location, Recovered},
};
use crate::sync::lock;

/// What is known of a session without reading its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSummary {
    /// Its id.
    pub session: SessionId,
    /// The agent's name.
    pub agent: Arc<str>,
    /// The agent's labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Where it went.
    pub destination: String,
    /// Process id of who connected.
    pub pid: u32,
    /// Its executable.
    pub executable: Option<Box<str>>,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; `None` while it lives, or where the daemon was killed.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<Box<str>>,
    /// Operations attempted in it; known once it has ended.
    pub operations: u64,
    /// Operations denied.
    pub denied: u64,
    /// Operations held for approval.
    pub held: u64,
}

/// What the index learns from a record.
#[derive(Debug)]
pub(super) enum Fact {
    Started(Box<SessionSummary>),
    Denied(SessionId),
    Held(SessionId),
    Ended {
        session: SessionId,
        at: Timestamp,
        reason: Box<str>,
        operations: u64,
    },
}

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

type Job = Box<dyn FnOnce(&Trees) -> sled::Result<()> + Send>;

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
    pub(super) sessions: Vec<SessionId>,
    pub(super) facts: Vec<Fact>,
}

/// Blocks that may stay untold, some seconds of a busy host.
const UNTOLD_MAX: usize = 128;

#[derive(Debug, Clone)]
struct Trees {
    sessions: sled::Tree,
    blocks: sled::Tree,
    database: sled::Db,
}

impl Fact {
    fn session(&self) -> SessionId {
        match self {
            Self::Started(summary) => summary.session,
            Self::Denied(session) | Self::Held(session) | Self::Ended { session, .. } => *session,
        }
    }

    /// Has `summary`, which is of its session, say so.
    fn apply(&self, summary: &mut SessionSummary) {
        match self {
            Self::Started(_) => {}
            Self::Denied(_) => summary.denied += 1,
            Self::Held(_) => summary.held += 1,
            Self::Ended {
                at,
                reason,
                operations,
                ..
            } => {
                summary.ended = Some(*at);
                summary.reason = Some(reason.clone());
                summary.operations = *operations;
            }
        }
    }

    pub(super) fn of(record: &Record) -> Option<Self> {
        let session = record.session?;
        match &record.event {
            Event::SessionStart(start) | Event::DatagramsStart(start) => {
                Some(Self::Started(Box::new(SessionSummary {
                    session,
                    agent: record.agent.clone(),
                    labels: start.origin.agent.labels.clone(),
                    destination: start.origin.destination.to_string(),
                    pid: start.origin.process.pid,
                    executable: start.origin.process.executable.clone(),
                    started: record.time,
                    ended: None,
                    reason: None,
                    operations: 0,
                    denied: 0,
                    held: 0,
                })))
            }
            Event::Decision(decided) => match decided.decision.verdict {
                Verdict::Allow => None,
                Verdict::Deny => Some(Self::Denied(session)),
                Verdict::Hold(_) => Some(Self::Held(session)),
            },
            Event::SessionEnd(end) => Some(Self::Ended {
                session,
                at: record.time,
                reason: end.reason.clone(),
                operations: end.operations,
            }),
            _ => None,
        }
    }
}

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

    /// Summaries of all sessions, newest first.
    pub(super) fn sessions(&self) -> Vec<SessionSummary> {
        let in_sled = |trees: &Trees| {
            let values = trees.sessions.iter().values();
            values
                .map(|value| Ok(serde_json::from_slice(&value?).ok()))
                .filter_map(Result::transpose)
                .collect::<sled::Result<Vec<SessionSummary>>>()
        };
        let mut sessions = self.ask(in_sled, |known| {
            known.sessions.values().cloned().collect::<Vec<_>>()
        });
        sessions.sort_by_key(|session| std::cmp::Reverse(session.started));
        sessions
    }

    /// The blocks that hold records of a session, in order.
    pub(super) fn blocks_of(&self, session: SessionId) -> Vec<Location> {
        let in_sled = move |trees: &Trees| {
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
        in_sled: impl FnOnce(&Trees) -> sled::Result<T> + Send + 'static,
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
                if !sled.send(move |trees| trees.learn_all(&blocks)) {
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
            let Some(trees) = contained(|| Trees::open(&path)) else {
                return;
            };
            if opened.send(()).is_err() {
                return;
            }
            for job in todo {
                if contained(|| job(&trees)).is_none() {
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
    fn send(&self, job: impl FnOnce(&Trees) -> sled::Result<()> + Send + 'static) -> bool {
        let waiting = self.waiting.clone();
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let job = move |trees: &Trees| {
            let done = job(trees);
            waiting.fetch_sub(1, Ordering::Relaxed);
            done
        };
        self.jobs.send(Box::new(job)).is_ok() && before < WAITING_MAX
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Trees) -> sled::Result<T> + Send + 'static,
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
        let flushed = self.ask(|trees| trees.database.flush());
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
        for session in &block.sessions {
            self.blocks
                .insert((session.0, block.first_seq), block.location);
        }
        for fact in &block.facts {
            if let Fact::Started(summary) = fact {
                self.sessions.insert(summary.session, (**summary).clone());
            } else if let Some(summary) = self.sessions.get_mut(&fact.session()) {
                fact.apply(summary);
            }
        }
    }
}

impl Block {
    fn of(records: &[Record], (first_seq, count): (u64, u32), location: Location) -> Self {
        Self {
            first_seq,
            count,
            location,
            sessions: records.iter().filter_map(|record| record.session).collect(),
            facts: records.iter().filter_map(Fact::of).collect(),
        }
    }
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
            blocks: database.open_tree("blocks")?,
            database,
        })
    }

    fn learn_all(&self, blocks: &[Block]) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for block in blocks {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&block.location.segment.to_be_bytes());
            value[8..].copy_from_slice(&block.location.offset.to_be_bytes());
            for session in &block.sessions {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&session.0.to_be_bytes());
                key[8..].copy_from_slice(&block.first_seq.to_be_bytes());
                batch.insert(&key, &value);
            }
        }
        self.blocks.apply_batch(batch)?;
        blocks
            .iter()
            .flat_map(|block| &block.facts)
            .try_for_each(|fact| self.learn(fact))
    }

    fn learn(&self, fact: &Fact) -> sled::Result<()> {
        let key = fact.session().0.to_be_bytes();
        let summary = if let Fact::Started(summary) = fact {
            serde_json::to_vec(summary)
        } else {
            let Some(value) = self.sessions.get(key)? else {
                return Ok(());
            };
            let Ok(mut summary) = serde_json::from_slice::<SessionSummary>(&value) else {
                return Ok(());
            };
            fact.apply(&mut summary);
            serde_json::to_vec(&summary)
        };
        self.sessions
            .insert(key, summary.unwrap_or_default())
            .map(drop)
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
