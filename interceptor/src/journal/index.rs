//! The index in sled: what is asked of the journal, rebuilt from the segments whenever it may be wrong.
//!
//! It is written for many blocks at once and never once a record: summaries of sessions that begin and end, and
//! for each session the blocks that hold its records.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs, io,
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

use interceptor_core::record::{Record, SessionId, Timestamp};
use rustc_hash::FxHashMap;

use super::{
    JournalError,
    block::BlockHeader,
    cipher::NonceBytes,
    disk::taken_by,
    encryption::{Held, SessionKeys},
    reader::Reader,
    seal::{self, Broken, Sealed},
    search::{Fresh, Gatherer, Shelf, Text},
    segment::{self, Location, Recovered},
    store::InForce,
    summary::{Part, SessionSummary, View, Wanted},
};
use crate::sync::{lock, read};

/// The index. sled answers some damage with a panic, in its own threads as well, after which who asks may wait
/// for ever; so it is asked in a thread of its own, and given up when it fails or doesn't answer. From then on
/// the segments are asked.
#[derive(Debug)]
pub(super) struct Index {
    directory: PathBuf,
    key: InForce,
    keys: Arc<SessionKeys>,
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
    /// Sessions that were erased while somebody reads the segments.
    erased: Vec<SessionId>,
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
    jobs: Jobs,
    thread: JoinHandle<()>,
    /// Who gathers words for it.
    words: Gatherer,
}

/// How it is asked.
#[derive(Debug, Clone)]
struct Jobs {
    sender: Sender<Job>,
    /// Jobs that it hasn't done.
    waiting: Arc<AtomicUsize>,
}

type Job = Box<dyn FnOnce(&mut Trees) -> sled::Result<()> + Send>;

/// How long sled may take over an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long who gathers words may take to have those of the last blocks, before they are searched for on record.
const WORDS_PATIENCE: Duration = Duration::from_secs(2);

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

/// What the index is to forget of a segment that is removed.
#[derive(Debug)]
pub(super) struct Forgotten {
    /// Its blocks, by session and first record. A session of which there is no other is forgotten with the last, once
    /// it is over.
    pub(super) places: Vec<(SessionId, u64)>,
}

/// What records say of each session, in no order.
pub(super) type Parts = FxHashMap<SessionId, Part>;

/// A summary in clear.
const CLEAR: u8 = 0;
/// One that is encrypted with its session's key: nonce, rest.
const ENCRYPTED: u8 = 1;
/// What a summary that was encrypted is told by.
const SUMMARY: &[u8] = b"summary";

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
    words: Shelf,
    /// Summaries are encrypted as what they are of.
    keys: Arc<SessionKeys>,
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
        (key, keys): (InForce, Arc<SessionKeys>),
        recovered: &Recovered,
    ) -> Result<(Self, Option<Broken>), JournalError> {
        let path = seal::folder(directory);
        let sealed = seal::check(directory, &read(&key).public());
        // From here on it is another one; a seal that stays is of an index that it doesn't fit.
        let lifted = seal::lift(directory);
        let is_whole = sealed == Sealed::Whole(recovered.next_seq);
        let [own, segments] =
            [&path, &segment::folder(directory)].map(|folder| taken_by(folder).unwrap_or(0));
        let is_bloated = is_bloated(own, segments);
        if is_whole && is_bloated {
            tracing::info!(
                "the index takes {own} bytes for {segments} of segments: it is made anew"
            );
        }
        let sled = if is_whole && !is_bloated && lifted.is_ok() {
            Sled::open(directory, &keys)
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
            erased: Vec::new(),
            next: recovered.next_seq,
        };
        let index = |place| Self {
            directory: directory.to_owned(),
            key,
            keys: keys.clone(),
            place: Mutex::new(place),
            reading: Mutex::new(()),
        };
        if let Some(sled) = sled {
            // A daemon that stops doesn't wait for words: it says where it was with them.
            let locations: Vec<_> = recovered.blocks.iter().map(|(at, ..)| *at).collect();
            let rest = sled.jobs.ask(move |trees| {
                let words = &trees.words;
                Ok(locations
                    .into_iter()
                    .filter(|at| !words.has(*at))
                    .collect::<Vec<_>>())
            });
            let Ok(rest) = rest.recv_timeout(PATIENCE) else {
                return Ok((index(place(At::Lost)), broken));
            };
            for location in rest {
                sled.words.add(location);
            }
            return Ok((index(place(At::Sled(sled))), broken));
        }
        if let Some(broken) = &broken {
            tracing::warn!(file = broken.file, "the index doesn't fit: {}", broken.what);
        }
        let _ = fs::remove_dir_all(&path);
        let sled = Sled::open(directory, &keys);
        let index = index(place(sled.map_or(At::Lost, At::Sled)));
        let reader = Reader::with_keys(directory, keys)?;
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
        if let At::Sled(sled) = &place.at {
            // At once, so that who asks doesn't wait for the words of many.
            sled.words.add(block.location);
        }
        place.untold.push(block);
        if place.untold.len() >= UNTOLD_MAX {
            place.tell();
        }
    }

    /// Forgets what was in a segment, and the words of all before the segment `first_kept`.
    pub(super) fn forget(&self, forgotten: Forgotten, first_kept: u64) {
        let mut place = lock(&self.place);
        place.tell();
        match &mut place.at {
            At::Sled(sled) => {
                if !sled
                    .jobs
                    .send(move |trees| trees.forget(&forgotten, first_kept))
                {
                    place.lose();
                }
            }
            At::Memory(known) => known.forget(&forgotten),
            // Who reads the segments doesn't find it there, or finds that it is gone when it is asked for.
            At::Lost | At::Reading => {}
        }
    }

    /// Forgets `session`, which was erased.
    pub(super) fn erase(&self, session: SessionId) {
        let mut place = lock(&self.place);
        place.tell();
        match &mut place.at {
            At::Sled(sled) => {
                if !sled.jobs.send(move |trees| trees.erase(session)) {
                    place.lose();
                }
            }
            At::Memory(known) => known.erase(session),
            At::Lost => {}
            At::Reading => place.erased.push(session),
        }
    }

    /// Waits for sled where much is told at once.
    fn keep_pace(&self) {
        let is_behind = || match &lock(&self.place).at {
            At::Sled(sled) => sled.jobs.waiting.load(Ordering::Relaxed) > WAITING_MAX / 2,
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

    /// Those of them that have all words of `text`; none where there is no index of words, or it takes too long.
    pub(super) fn with_words(
        &self,
        wanted: &Wanted,
        text: &Arc<Text>,
        limit: usize,
    ) -> Option<Vec<SessionSummary>> {
        // Of what is encrypted no words are kept.
        if self.keys.is_used() {
            return None;
        }
        let (answer, reply) = mpsc::sync_channel(1);
        {
            let mut place = lock(&self.place);
            place.tell();
            let At::Sled(sled) = &place.at else {
                return None;
            };
            let jobs = sled.jobs.clone();
            let (asked, wanted) = (text.clone(), wanted.clone());
            sled.words.ask(text.clone(), move |fresh| {
                jobs.send(move |trees| {
                    let _ = answer.send(trees.with_words(&wanted, &asked, fresh, limit)?);
                    Ok(())
                });
            });
        }
        reply.recv_timeout(WORDS_PATIENCE).ok()
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
                At::Sled(sled) => Some(sled.jobs.ask(in_sled)),
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
        let reader = Reader::with_keys(&self.directory, self.keys.clone());
        if let Err(error) = reader.and_then(|reader| known.read(&reader, next)) {
            tracing::error!(%error, "the segments can't be read in the index's place");
        }
        let mut place = lock(&self.place);
        for block in place.untold.drain(..) {
            known.learn(&block);
        }
        for session in place.erased.drain(..) {
            known.erase(session);
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
            && let Err(error) = seal::set(&self.directory, &read(&self.key), next)
        {
            tracing::warn!(%error, "the index can't be sealed: the next start makes it anew");
        }
    }

    /// Has sled fail as it does on a damaged medium.
    #[cfg(test)]
    pub(super) fn break_sled(&self, how: impl FnOnce() + Send + 'static) {
        if let At::Sled(sled) = &lock(&self.place).at {
            sled.jobs.send(move |_| {
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
                if !sled.jobs.send(move |trees| trees.learn_all(blocks)) {
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
    /// Opens the database of `directory` in a thread of its own, if that can be.
    fn open(directory: &Path, keys: &Arc<SessionKeys>) -> Option<Self> {
        let (sender, todo) = mpsc::channel::<Job>();
        let (opened, is_open) = mpsc::sync_channel(1);
        let (path, keys) = (seal::folder(directory), keys.clone());
        let run = move || {
            let Some(mut trees) = contained(|| Trees::open(&path, keys)) else {
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
        let jobs = Jobs {
            sender,
            waiting: Arc::default(),
        };
        let puts = jobs.clone();
        let words = Gatherer::start(directory, move |run| {
            // One at a time: who gathers doesn't run ahead of sled.
            let put = puts.ask(move |trees| trees.words.put(run));
            put.recv_timeout(PATIENCE).is_ok()
        })?;
        Some(Self {
            jobs,
            thread,
            words,
        })
    }

    /// Ends it with everything on disk; whether that is so.
    fn close(self) -> bool {
        let Self {
            jobs,
            thread,
            words,
        } = self;
        let has_words = words.close(PATIENCE);
        let flushed = jobs.ask(|trees| {
            trees.put_live()?;
            trees.database.flush()
        });
        if !has_words || flushed.recv_timeout(PATIENCE).is_err() {
            return false;
        }
        drop(jobs);
        // It is done when the database is gone, which writes for the last time then.
        let until = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.is_finished() && thread.join().is_ok()
    }
}

impl Jobs {
    /// Has `job` done; whether that is to be expected.
    fn send(&self, job: impl FnOnce(&mut Trees) -> sled::Result<()> + Send + 'static) -> bool {
        let waiting = self.waiting.clone();
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let job = move |trees: &mut Trees| {
            let done = job(trees);
            waiting.fetch_sub(1, Ordering::Relaxed);
            done
        };
        self.sender.send(Box::new(job)).is_ok() && before < WAITING_MAX
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
    fn read(&mut self, reader: &Reader, next: u64) -> Result<(), JournalError> {
        reader.each_block(|location, header, records| {
            let BlockHeader {
                first_seq, count, ..
            } = *header;
            if first_seq.saturating_add(count.into()) > next {
                return false;
            }
            self.learn(&Block::of(records, (first_seq, count), location));
            true
        })
    }

    fn forget(&mut self, forgotten: &Forgotten) {
        for (session, first_seq) in &forgotten.places {
            self.blocks.remove(&(session.0, *first_seq));
        }
        for (session, _) in &forgotten.places {
            let of_session = (session.0, 0)..=(session.0, u64::MAX);
            let is_gone = self.blocks.range(of_session).next().is_none();
            let is_over = |summary: &SessionSummary| summary.ended.is_some();
            if is_gone && self.sessions.get(session).is_some_and(is_over) {
                self.sessions.remove(session);
            }
        }
    }

    fn erase(&mut self, session: SessionId) {
        let of_session = (session.0, 0)..=(session.0, u64::MAX);
        let places: Vec<_> = self.blocks.range(of_session).map(|(at, _)| *at).collect();
        for at in places {
            self.blocks.remove(&at);
        }
        self.sessions.remove(&session);
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

/// Bytes that an index may take whatever there is of segments: sled makes room ahead.
const BLOAT_MIN: u64 = 64 << 20;

/// Whether it pays to make an index of `own` bytes anew from segments of so many. A fresh one takes a quarter of
/// those at most; sled gives no room back for what it has forgotten.
const fn is_bloated(own: u64, segments: u64) -> bool {
    own > BLOAT_MIN && own > segments / 2
}

/// Where a session stands among all: newest first.
fn place_of(session: &SessionSummary) -> (u64, u64) {
    (u64::MAX - session.started.0, session.session.0)
}

/// The same as sled has it.
fn key_of(session: &SessionSummary) -> [u8; 16] {
    key_at(session.started, session.session)
}

/// The same of one that began then.
fn key_at(started: Timestamp, session: SessionId) -> [u8; 16] {
    two(u64::MAX - started.0, session.0)
}

/// Two numbers that are in order as bytes.
fn two(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_be_bytes());
    bytes[8..].copy_from_slice(&second.to_be_bytes());
    bytes
}

impl Trees {
    fn open(path: &Path, keys: Arc<SessionKeys>) -> sled::Result<Self> {
        // Blocks come every 50 ms at most; the segments are what has to be safe, so sled's own
        // flushing every half second is enough.
        let database = sled::Config::new()
            .path(path)
            .cache_capacity(8 << 20)
            .open()?;
        Ok(Self {
            sessions: database.open_tree("sessions")?,
            starts: database.open_tree("starts")?,
            blocks: database.open_tree("blocks")?,
            words: Shelf::open(&database)?,
            keys,
            database,
            live: FxHashMap::default(),
        })
    }

    fn learn_all(&mut self, blocks: Vec<Block>) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for block in &blocks {
            let value = two(block.location.segment, block.location.offset);
            for session in block.parts.keys() {
                batch.insert(&two(session.0, block.first_seq), &value);
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

    fn forget(&mut self, forgotten: &Forgotten, first_kept: u64) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for (session, first_seq) in &forgotten.places {
            batch.remove(&two(session.0, *first_seq));
        }
        self.blocks.apply_batch(batch)?;
        for (session, _) in &forgotten.places {
            let own = session.0.to_be_bytes();
            let is_gone = self.blocks.scan_prefix(own).next().is_none();
            if is_gone
                && !self.live.contains_key(session)
                && let Some(key) = self.starts.remove(own)?
            {
                self.sessions.remove(key)?;
            }
        }
        self.words.forget(first_kept)
    }

    fn erase(&mut self, session: SessionId) -> sled::Result<()> {
        let own = session.0.to_be_bytes();
        let mut batch = sled::Batch::default();
        for key in self.blocks.scan_prefix(own).keys() {
            batch.remove(key?);
        }
        self.blocks.apply_batch(batch)?;
        self.live.remove(&session);
        if let Some(key) = self.starts.remove(own)? {
            self.sessions.remove(key)?;
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
        match self.starts.get(session.0.to_be_bytes())? {
            Some(key) => self.get_at(key),
            None => Ok(None),
        }
    }

    fn get_at(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<SessionSummary>> {
        let value = self.sessions.get(key.as_ref())?;
        Ok(value.and_then(|value| self.decode(key.as_ref(), &value)))
    }

    /// What stands at `key`; nothing where its session was erased.
    fn decode(&self, key: &[u8], value: &[u8]) -> Option<SessionSummary> {
        let summary = self.opened(key, value)?;
        postcard::from_bytes(&summary).ok()
    }

    /// The same as it is encoded.
    fn opened<'a>(&self, key: &[u8], value: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let (form, rest) = value.split_first()?;
        if *form == CLEAR {
            return Some(Cow::Borrowed(rest));
        }
        let session = key
            .last_chunk()
            .map(|id| SessionId(u64::from_be_bytes(*id)))?;
        let (nonce, sealed) = rest.split_first_chunk()?;
        let Held::Key(own) = self.keys.of(session) else {
            return None;
        };
        own.open(nonce, SUMMARY, sealed).map(Cow::Owned)
    }

    fn encode(&self, summary: &SessionSummary) -> io::Result<Vec<u8>> {
        // A summary is a few names and numbers: it can always be written.
        let mut value = postcard::to_stdvec(summary).unwrap_or_default();
        let Some(key) = self.keys.to_encrypt(summary.session)? else {
            value.insert(0, CLEAR);
            return Ok(value);
        };
        let nonce: NonceBytes = key.seal(SUMMARY, &mut value)?;
        Ok([&[ENCRYPTED], &nonce[..], &value].concat())
    }

    fn put(&self, summary: &SessionSummary) -> sled::Result<()> {
        let key = key_of(summary);
        self.sessions.insert(key, self.encode(summary)?)?;
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

    /// The latest `limit` sessions that are `wanted` and have all words of `text`, newest first.
    fn with_words(
        &self,
        wanted: &Wanted,
        text: &Text,
        fresh: Fresh,
        limit: usize,
    ) -> sled::Result<Vec<SessionSummary>> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        self.words.find(text, fresh, |session, started| {
            if wanted.since.is_some_and(|since| started < since) {
                return Ok(false);
            }
            if wanted.until.is_some_and(|until| started > until) {
                return Ok(true);
            }
            let summary = match self.live.get(&session) {
                Some(live) => Some(live.clone()),
                None => self.get_at(key_at(started, session))?,
            };
            found.extend(summary.filter(|summary| wanted.takes(summary)));
            Ok(found.len() < limit)
        })?;
        Ok(found)
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
            let Some(bytes) = self.opened(&key, &value) else {
                continue;
            };
            let Some(seen) = View::read(&bytes) else {
                continue;
            };
            if wanted.since.is_some_and(|since| seen.started < since) {
                break;
            }
            if wanted.fits(&seen)
                && let Ok(summary) = postcard::from_bytes::<SessionSummary>(&bytes)
                && !self.live.contains_key(&summary.session)
            {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_made_anew_when_most_of_what_it_knew_is_gone() {
        const GIB: u64 = 1 << 30;
        assert!(!is_bloated(GIB / 4, GIB));
        assert!(is_bloated(GIB / 4, GIB / 4));
        assert!(!is_bloated(8 << 20, 0), "it has room ahead");
    }
}
