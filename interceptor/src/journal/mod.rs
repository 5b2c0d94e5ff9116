//! The session log: append-only segments as evidence, sled as what is asked.
//!
//! [`Journal::append`] encodes a record into memory under one short lock; a writer thread turns what
//! has gathered into a block (compressed, hash-chained), writes and syncs it, signs checkpoints and
//! updates the index. Who needs a record on disk before going on awaits [`Journal::durable`].

mod block;
mod checkpoint;
mod disk;
mod evidence;
mod export;
mod feed;
mod follow;
mod glance;
mod husk;
mod index;
mod keyring;
mod manifest;
mod reader;
mod removal;
mod rotate;
mod seal;
mod search;
mod segment;
mod spill;
mod store;
mod succession;
mod summary;
#[cfg(test)]
mod tests;
mod tree;
mod verify;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};
use tokio::sync::{broadcast, watch};

pub(crate) use self::{
    disk::taken_by,
    export::plain,
    feed::{Fresh, Full, Inlet, Outlet},
    follow::Follower,
    glance::{Fed, What},
    removal::{Closed, Contents, NotRemoved},
    succession::{identity, is_of_one_journal, is_signed_with, notes},
};
use self::{
    disk::{Disk, Local},
    spill::Spill,
    store::Store,
};
pub use self::{
    evidence::{Proved, evidence, prove},
    export::{
        Asciicast, Csv, Extent, Filter, Form, Har, Html, Lines, Ocsf, Pcapng, Selection, Soc2,
        export_jsonl, parameter, to_json,
    },
    husk::{RECORDS_REMOVED, SESSIONS_REMOVED},
    manifest::{Made, Manifest},
    reader::Reader,
    rotate::{NotRotated, Rotated},
    search::{Found, SEARCHED, Seen, Text, TextError},
    succession::KEY_ROTATED,
    summary::{Decided, Deeds, SessionSummary, Some64, Wanted, sessions},
    verify::{Kept, Kind, Problem, Report, verify},
};
use crate::sync::{lock, read};

/// Version of the state folder's format; in its file `format`.
const FORMAT: &str = "interceptor state 6\n";

/// Versions before, whose blocks are read as they are: what is signed is not written anew. Those of 4 have no parts, and
/// 5 knows no segments that were removed.
const BEFORE: [&str; 2] = ["interceptor state 4\n", "interceptor state 5\n"];

/// Bytes of records that may wait to be written. Of what another process feeds no more are taken than can be
/// kept; a message of the largest size can't.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// How long a journal that is in use may take to be let go of.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// How long restoring what was left waits for the disk before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that say how long a record is.
const LENGTH_BYTES: usize = 4;

/// Bytes of records after which the writer is woken early: a busy host's of 50 ms. A sync costs the disk
/// and the kernel the same for much as for little.
const BLOCK_BYTES: usize = 2 << 20;

/// Size at which a segment is closed: large enough for few files, small enough to ship.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Size below which no segment is closed.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Segments that what may be kept is divided into, at least: whole ones are removed.
const SEGMENTS_KEPT: u64 = 16;

/// How long who asks for proofs waits for what is on record to be signed: it is every second.
const SIGNED_SOON: Duration = Duration::from_secs(3);

/// How long the disk may take over a block before the journal is said to have stopped. A disk that is busy takes a
/// second or two at worst; who waits is told while its client still listens.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// Records that a slow follower of the live stream may lag behind before it is told that it missed some.
const FOLLOW_LAG_MAX: usize = 4_096;

/// Why the journal can't be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another daemon has it.
    #[error("{} is in use by another daemon; stop it, or give this one its own --state", .0.display())]
    InUse(PathBuf),
    /// It was written by another version.
    #[error("{} was written by a version of interceptor whose records this one doesn't know (`{found}`); use that one, or another folder (--state)", .path.display())]
    Foreign {
        /// The state folder.
        path: PathBuf,
        /// What its format file says.
        found: String,
    },
    /// The operating system refused.
    #[error("{what} {}: {error}", .path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        error: io::Error,
    },
    /// What is there is damaged.
    #[error("{} is damaged at byte {offset}: {what}; run `interceptor verify` for the whole picture", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// What is there isn't what was signed.
    #[error("the journal in {} is not what was signed: {what}. Nothing is added to it; run `interceptor verify {}` for the whole picture, keep the folder as evidence under another name, and start again", .path.display(), .path.display())]
    Contradicted {
        /// The state folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// What is asked for was removed by retention.
    #[error("the segment that begins with record {0} was removed by retention, which is on record")]
    Removed(u64),
    /// A session can't be shown from its beginning.
    #[error(
        "the beginning of session {0} was removed by retention, which is on record; what is left of it can be exported in any other format, or with a copy of the state folder"
    )]
    Beheaded(SessionId),
    /// More is to be proved at once than fits into memory.
    #[error(
        "these sessions are in more than {0} blocks, which are too many for one evidence file; ask for fewer at once, by --since and --until or by session"
    )]
    TooMuch(usize),
    /// The signing key can't be used.
    #[error("the journal's key {}: {what}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |error| JournalError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}

/// The journal takes no records now; nothing may pass that would have to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal takes no records: {0}")]
pub struct Stopped(pub Arc<str>);

/// The handle that everything is recorded through.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    waiting: Mutex<Waiting>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
    followers: broadcast::Sender<Arc<Record>>,
    index: index::Index,
    key: store::InForce,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Every record up to this one outlives the process.
    kept: AtomicU64,
    /// Where the next records are kept, while those before are being written.
    spare: Mutex<Option<Spill>>,
    /// Where records of another process come from, until somebody takes them in.
    feed: Mutex<Option<Outlet>>,
    _lock: File,
}

/// What has been appended and not yet been taken by the writer.
#[derive(Debug, Default)]
struct Waiting {
    /// Records, each a little-endian u32 length and the record in postcard's encoding.
    bytes: Vec<u8>,
    count: u32,
    next_seq: u64,
    /// What the index has to learn from `bytes`.
    parts: index::Parts,
    /// What one of them says of another key that follows.
    statement: Option<Box<str>>,
    /// Who wants another key.
    rotate: Option<rotate::Asked>,
    /// Where they are kept until they are written.
    spill: Option<Spill>,
    /// Up to where the feed is drained.
    drained: u64,
    /// The last record that there was no room to keep, until it is on disk.
    unkept: Option<u64>,
    /// Somebody waits for the disk.
    urgent: bool,
    closing: bool,
    stopped: Option<Stopped>,
    /// Why nothing is taken though the disk would, by who says so.
    withheld: BTreeMap<Arc<str>, Stopped>,
    /// Since when the disk has what was taken last, and hasn't said that it is there.
    since: Option<Instant>,
}

/// How far the writer has come.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Every record up to this one is on disk.
    durable: u64,
    /// A checkpoint vouches for every record up to this one.
    signed: u64,
    stopped: Option<Stopped>,
    /// Somebody says that nothing is to be taken.
    is_withheld: bool,
}

impl Journal {
    /// Opens the journal in the state folder `directory`, made if it isn't there, for one daemon alone.
    /// What a crash has left half written is cut off, and said in a record, as is what it left unsigned.
    ///
    /// # Errors
    /// Where the folder is in use, newer, damaged or can't be written.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        Self::open_on(Local, directory, SEGMENT_BYTES)
    }

    /// As [`Journal::open`], of which no more than `bytes_max` are to be kept: its segments are small enough that
    /// one is little of that.
    ///
    /// # Errors
    /// As of [`Journal::open`].
    pub fn open_within(directory: &Path, bytes_max: Option<u64>) -> Result<Self, JournalError> {
        let share = bytes_max.map_or(SEGMENT_BYTES, |max| max / SEGMENTS_KEPT);
        let segment = share.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES);
        Self::open_on(Local, directory, segment)
    }

    /// Opens it with its evidence on `disk`, whose segments are closed from `segment_bytes` on.
    fn open_on<D: Disk>(
        disk: D,
        directory: &Path,
        segment_bytes: u64,
    ) -> Result<Self, JournalError> {
        let lock_file = prepare(directory)?;
        let (mut store, recovered) = Store::open(disk, directory.to_owned(), segment_bytes)?;
        let key = store.key();
        let (index, broken) = index::Index::open(directory, key.clone(), &recovered)?;
        let next_seq = recovered.next_seq;
        let (progress, _) = watch::channel(Progress {
            durable: next_seq - 1,
            signed: if recovered.unsigned_blocks == 0 {
                next_seq - 1
            } else {
                0
            },
            ..Progress::default()
        });
        let (followers, _) = broadcast::channel(FOLLOW_LAG_MAX);
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            waiting: Mutex::new(Waiting {
                next_seq,
                ..Waiting::default()
            }),
            wake: Condvar::new(),
            progress,
            followers,
            index,
            key,
            writer: Mutex::new(None),
            kept: AtomicU64::new(next_seq - 1),
            spare: Mutex::new(None),
            feed: Mutex::new(None),
            _lock: lock_file,
        });
        let mut feed = Outlet::open(directory)
            .map_err(io_error("making room for records that wait in", directory))?;
        let left = left_behind(directory, next_seq, &mut feed)?;
        // One that was prepared is in force once it is on record, which it is with what is left.
        if !left
            .iter()
            .any(|record| succession::statement(record).is_some())
        {
            store.discard();
        }
        let (cut, unsigned) = (recovered.cut_bytes, recovered.unsigned_blocks);
        let writer = writer::start(shared.clone(), store)
            .map_err(io_error("starting the writer of", directory))?;
        *lock(&shared.writer) = Some(writer);
        lock(&shared.waiting).drained = feed.drained();
        *lock(&shared.feed) = Some(feed);
        let journal = Self { shared };
        let found = left.len();
        journal.restore(left)?;
        if cut > 0 || unsigned > 0 || found > 0 || broken.is_some() {
            let index = broken.map(|broken| ("index", format!("{}: {}", broken.file, broken.what)));
            let detail = [
                ("bytes_cut", cut.to_string()),
                ("unsigned_blocks", unsigned.to_string()),
                ("records_kept", found.to_string()),
            ];
            let detail = detail.into_iter().chain(index);
            let event = Event::notice("journal_recovered", detail);
            let _ = journal.append(None, &Arc::from(""), crate::clock::now(), [event]);
        }
        Ok(journal)
    }

    /// Takes the records that an earlier daemon left behind, and begins to keep those to come.
    fn restore(&self, left: Vec<Record>) -> Result<(), JournalError> {
        let directory = &self.shared.directory;
        if let Some(last) = left.last().map(|record| record.seq) {
            let mut waiting = lock(&self.shared.waiting);
            for record in &left {
                waiting.take(record).map_err(|stopped| {
                    io_error("restoring", directory)(io::Error::other(stopped))
                })?;
            }
            waiting.urgent = true;
            drop(waiting);
            self.shared.wake.notify_one();
            // They are where they were until they are on disk.
            let until = Instant::now() + PATIENCE;
            while self.shared.progress.borrow().durable < last {
                if Instant::now() > until {
                    let why = io::Error::other(
                        "what a daemon that was killed left behind can't be written; make room",
                    );
                    return Err(io_error("restoring", directory)(why));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        match Spill::open(directory) {
            Ok([current, spare]) => {
                *lock(&self.shared.spare) = Some(spare);
                lock(&self.shared.waiting).spill = Some(current);
            }
            Err(error) => tracing::warn!(
                %error,
                "records can't be kept beside the journal: they wait for the disk block by block"
            ),
        }
        Ok(())
    }

    /// Whether the record `seq` and all before it outlive the end of this process.
    #[must_use]
    pub fn is_kept(&self, seq: u64) -> bool {
        self.shared.kept.load(Ordering::Acquire) >= seq
            || self.shared.progress.borrow().durable >= seq
    }

    /// Takes `events` as records that follow one another, and gives the last one's number. They are on
    /// disk within 50 ms, or when [`Journal::durable`] says so.
    ///
    /// # Errors
    /// Where the journal takes no records now: full or failing disk, or one too slow.
    pub fn append(
        &self,
        session: Option<SessionId>,
        agent: &Arc<str>,
        time: Timestamp,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<u64, Stopped> {
        let followed = self.shared.followers.receiver_count() > 0;
        let mut waiting = lock(&self.shared.waiting);
        if let Some(stopped) = waiting.stopped() {
            return Err(stopped.clone());
        }
        if waiting.bytes.len() > WAITING_BYTES_MAX {
            return Err(Stopped("the disk takes nothing".into()));
        }
        if waiting.closing {
            return Err(Stopped("the daemon stops".into()));
        }
        let start = waiting.bytes.len();
        for event in events {
            let record = Record {
                seq: waiting.next_seq,
                time,
                session,
                agent: agent.clone(),
                event,
            };
            waiting.take(&record)?;
            if followed {
                let _ = self.shared.followers.send(Arc::new(record));
            }
        }
        waiting.keep(start);
        Ok(self.taken(waiting, start))
    }

    /// The records that another process feeds the journal with; for one to take them in.
    pub(crate) fn feed(&self) -> Option<Outlet> {
        lock(&self.shared.feed).take()
    }

    /// Takes `records`, which are what `feed` has up to `end`, and gives the last one's number.
    ///
    /// # Errors
    /// Where the journal takes no records now. They stay in the feed.
    pub(crate) fn take_in(
        &self,
        records: &[Fed],
        (feed, end): (&mut Outlet, u64),
    ) -> Result<u64, Later> {
        let bytes = records.iter().map(Fed::len).sum();
        let followed = self.shared.followers.receiver_count() > 0;
        let mut waiting = lock(&self.shared.waiting);
        if let Some(stopped) = waiting.stopped() {
            return Err(Later::Stopped(stopped.clone()));
        }
        let start = waiting.bytes.len();
        let spill = waiting.spill.as_ref();
        if start > 0 && !spill.is_some_and(|spill| spill.has_room(bytes)) {
            // In the feed they outlive this process, here they wouldn't.
            waiting.urgent = true;
            drop(waiting);
            self.shared.wake.notify_one();
            return Err(Later::Busy);
        }
        for record in records {
            let start = waiting.bytes.len();
            waiting.take_fed(record);
            if followed
                && let Some(bytes) = waiting.bytes.get(start + LENGTH_BYTES..)
                && let Ok(record) = glance::decode(bytes)
            {
                let _ = self.shared.followers.send(Arc::new(record));
            }
        }
        waiting.drained = end;
        waiting.keep(start);
        if self.is_settled(&waiting) {
            // Before the writer can have them: what it has written it forgets.
            feed.release(end);
        } else {
            feed.pass(end);
        }
        Ok(self.taken(waiting, start))
    }

    /// Whether all that was appended is kept. Of one that isn't, nothing behind it may say that it is.
    fn is_settled(&self, waiting: &Waiting) -> bool {
        let durable = |seq| self.shared.progress.borrow().durable >= seq;
        waiting.unkept.is_none_or(durable)
    }

    /// The number of the last record in `waiting`, which were `start` bytes before. Has the writer know.
    fn taken(&self, mut waiting: MutexGuard<'_, Waiting>, start: usize) -> u64 {
        let last = waiting.next_seq - 1;
        if self.is_settled(&waiting) {
            waiting.unkept = None;
            self.shared.kept.store(last, Ordering::Release);
        }
        let full = waiting.bytes.len() >= BLOCK_BYTES && !waiting.urgent;
        waiting.urgent |= full;
        drop(waiting);
        if start == 0 || full {
            self.shared.wake.notify_one();
        }
        last
    }

    /// Waits until records are taken again, or the writer has ended.
    pub async fn resumed(&self) {
        let mut progress = self.shared.progress.subscribe();
        // An error means that there will be no more progress.
        let _ = progress
            .wait_for(|state| state.stopped.is_none() && !state.is_withheld)
            .await;
    }

    /// Waits until a record after `seq` is on disk, without having the disk hurry, and gives the last one's number;
    /// `None` where there will be none.
    pub(crate) async fn beyond(&self, seq: u64) -> Option<u64> {
        let mut progress = self.shared.progress.subscribe();
        let state = progress.wait_for(|state| state.durable > seq).await;
        state.ok().map(|state| state.durable)
    }

    /// Number of the last record that is on disk.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.shared.progress.borrow().durable
    }

    /// Has the journal take no records for the reason `why`, until `by` gives none. What it took before is written.
    pub(crate) fn withhold(&self, by: &Arc<str>, why: Option<String>) {
        let mut waiting = lock(&self.shared.waiting);
        match why {
            Some(why) => {
                let stopped = Stopped(why.into());
                if waiting
                    .withheld
                    .insert(by.clone(), stopped.clone())
                    .is_none()
                {
                    tracing::error!(
                        "the journal takes nothing, so nothing passes: {}",
                        stopped.0
                    );
                }
            }
            None => _ = waiting.withheld.remove(by),
        }
        let is_withheld = !waiting.withheld.is_empty();
        // With the lock, so that of two the later one stays.
        self.shared.progress.send_if_modified(|progress| {
            std::mem::replace(&mut progress.is_withheld, is_withheld) != is_withheld
        });
    }

    /// Waits until the record `seq` and all before it are on disk.
    ///
    /// # Errors
    /// Where the disk fails before that.
    pub async fn durable(&self, seq: u64) -> Result<(), Stopped> {
        let mut progress = self.shared.progress.subscribe();
        if progress.borrow().durable >= seq {
            return Ok(());
        }
        lock(&self.shared.waiting).urgent = true;
        self.shared.wake.notify_one();
        let state = progress
            .wait_for(|state| state.durable >= seq || state.stopped.is_some())
            .await;
        match state {
            Ok(state) if state.durable >= seq => Ok(()),
            Ok(state) => Err(state
                .stopped
                .clone()
                .unwrap_or_else(|| Stopped("unknown".into()))),
            Err(_) => Err(Stopped("its writer has ended".into())),
        }
    }

    /// Waits until everything appended so far is on disk.
    ///
    /// # Errors
    /// Where the disk fails before that.
    pub async fn flush(&self) -> Result<(), Stopped> {
        let last = lock(&self.shared.waiting).next_seq - 1;
        self.durable(last).await
    }

    /// Records as they are appended from now on.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<Record>> {
        self.shared.followers.subscribe()
    }

    /// A reader of what is on disk.
    ///
    /// # Errors
    /// Where the segments can't be listed.
    pub fn reader(&self) -> Result<Reader, JournalError> {
        Reader::open(&self.shared.directory)
    }

    /// The latest `limit` sessions that are `wanted` but for its text, newest first.
    #[must_use]
    pub fn sessions(&self, wanted: &Wanted, limit: usize) -> Vec<SessionSummary> {
        self.shared.index.sessions(wanted, limit)
    }

    /// The same, of those that have the text that is wanted as well: from the index of words, and where that can't
    /// tell from the records, for some seconds at most.
    ///
    /// # Errors
    /// Where records can't be read.
    pub fn find(&self, wanted: &Wanted, limit: usize) -> Result<Found, JournalError> {
        match &wanted.text {
            Some(text) => search::find(&self.shared.index, &self.reader()?, (wanted, text), limit),
            None => Ok(Found {
                sessions: self.sessions(wanted, limit),
                stopped: None,
            }),
        }
    }

    /// All records of a session that are on disk, in order.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn session(&self, session: SessionId) -> Result<Vec<Record>, JournalError> {
        let reader = self.reader()?;
        let mut records = Vec::new();
        for location in self.shared.index.blocks_of(session) {
            match reader.part(location, session) {
                // Since it was asked where they are.
                Err(JournalError::Removed(_)) => {}
                read => records.extend(read?),
            }
        }
        Ok(records)
    }

    /// Gives `take` the lines of an evidence file of `sessions`, against a checkpoint that vouches for all that was
    /// appended, if one is signed in time.
    ///
    /// # Errors
    /// Where the segments can't be read, or aren't what was signed.
    pub fn evidence(
        &self,
        sessions: &BTreeSet<SessionId>,
        take: impl FnMut(&[u8]) -> bool,
    ) -> Result<u64, JournalError> {
        self.await_checkpoint();
        let of = |session: &SessionId| self.shared.index.blocks_of(*session);
        let places = sessions.iter().flat_map(of).collect();
        self.reader()?
            .evidence(self.vouched()?, sessions, Some(&places), take)
    }

    /// The checkpoint and the key that has signed it.
    fn vouched(&self) -> Result<evidence::Vouched, JournalError> {
        let directory = &self.shared.directory;
        let path = directory.join("checkpoint");
        // As long as this is held both stay as they are.
        let key = read(&self.shared.key);
        Ok(evidence::Vouched {
            key: key.public(),
            note: fs::read_to_string(&path).map_err(io_error("reading", &path))?,
            rotations: succession::beside(directory),
        })
    }

    /// The signed manifest of a file that `by` has made on `host` of what is on record, as a note; it says up to
    /// where the journal is signed, which is all that was appended if a checkpoint is signed in time.
    ///
    /// # Errors
    /// Where the checkpoint can't be read.
    pub fn manifest(&self, made: Made, by: &str, host: &str) -> Result<String, JournalError> {
        self.await_checkpoint();
        let directory = &self.shared.directory;
        let key = read(&self.shared.key);
        let signed = checkpoint::Checkpoint::read(&Local, directory, &key.public())?;
        let signed = signed.ok_or_else(|| JournalError::Contradicted {
            path: directory.clone(),
            what: "its checkpoint is gone".to_owned(),
        })?;
        let manifest = Manifest::new(made, by, host, crate::clock::now(), &signed);
        Ok(manifest.sign(&key, &succession::beside(directory)))
    }

    /// Where it is.
    fn directory(&self) -> &Path {
        &self.shared.directory
    }

    fn index(&self) -> &index::Index {
        &self.shared.index
    }

    /// Number of the last record that a checkpoint vouches for.
    fn signed_seq(&self) -> u64 {
        self.shared.progress.borrow().signed
    }

    /// Waits for a checkpoint that vouches for all that was appended; not for ever.
    fn await_checkpoint(&self) {
        let last = self.last_seq();
        let until = Instant::now() + SIGNED_SOON;
        while self.shared.progress.borrow().signed < last && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Why the journal takes no records, where that is so.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        lock(&self.shared.waiting).stopped().cloned()
    }

    /// Number of the last record.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        lock(&self.shared.waiting).next_seq - 1
    }

    /// Writes what waits, signs a last checkpoint and ends the writer.
    pub fn close(&self) {
        lock(&self.shared.waiting).closing = true;
        self.shared.wake.notify_one();
        let writer = lock(&self.shared.writer).take();
        if let Some(writer) = writer {
            let _ = writer.join();
            self.shared.index.close(self.last_seq() + 1);
        }
    }
}

/// The records that an earlier daemon had taken and not yet written when it ended, and those that it was still
/// fed with.
fn left_behind(
    directory: &Path,
    next_seq: u64,
    feed: &mut Outlet,
) -> Result<Vec<Record>, JournalError> {
    let kept = spill::kept(directory).map_err(io_error("reading", directory))?;
    let mut records = Vec::new();
    let (mut newest, mut drained) = (0, None);
    for frame in kept {
        let parsed = block::parse(&frame.records).unwrap_or_default();
        if let Some(last) = parsed.last().filter(|last| last.seq > newest) {
            newest = last.seq;
            drained = Some(frame.drained);
        }
        records.extend(parsed.into_iter().filter(|record| record.seq >= next_seq));
    }
    records.sort_by_key(|record| record.seq);
    records.dedup_by_key(|record| record.seq);
    // What doesn't follow was never kept whole.
    let following = records
        .iter()
        .zip(next_seq..)
        .take_while(|(record, seq)| record.seq == *seq)
        .count();
    records.truncate(following);
    if let Some(drained) = drained {
        feed.skip_to(drained);
    }
    let fed = fed(feed, next_seq + following as u64);
    if fed.is_empty() {
        return Ok(records);
    }
    records.extend(fed);
    // From here on they are in one place, whenever this process ends.
    let mut encoded = Waiting::default();
    for record in &records {
        let encoding = |error| io_error("restoring", directory)(io::Error::other(error));
        encoded.encode(record).map_err(encoding)?;
    }
    let frame = spill::Frame {
        records: encoded.bytes,
        drained: lower_half(feed.drained()),
    };
    spill::set_aside(directory, &frame).map_err(io_error("restoring", directory))?;
    feed.settle();
    Ok(records)
}

/// What is left in `feed`, from number `next_seq` on.
fn fed(feed: &mut Outlet, next_seq: u64) -> Vec<Record> {
    let mut records = Vec::new();
    loop {
        let waiting = match feed.peek() {
            Ok(waiting) if waiting.frames.is_empty() => return records,
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(%error, "records of a process that ended are lost");
                feed.forget();
                return records;
            }
        };
        for (frame, _) in waiting.frames {
            match left_by_a_session(frame) {
                Ok(mut record) => {
                    record.seq = next_seq + records.len() as u64;
                    records.push(record);
                }
                Err(error) => {
                    tracing::error!(error, "a record of a process that ended is lost");
                }
            }
        }
        feed.pass(waiting.end);
    }
}

/// The record that a session left in the feed. What people do is not for it to say.
fn left_by_a_session(frame: Vec<u8>) -> Result<Record, &'static str> {
    let fed = Fed::read(frame)?;
    if fed.what == What::Approval {
        return Err("it says what people do");
    }
    fed.decode()
}

/// What is kept of a position in the feed.
const fn lower_half(position: u64) -> u32 {
    let [a, b, c, d, ..] = position.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Why what another process feeds the journal with isn't taken now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Later {
    /// It takes no records.
    Stopped(Stopped),
    /// It has to write others first.
    Busy,
}

impl Waiting {
    /// Why nothing is taken, where that is so.
    fn stopped(&self) -> Option<&Stopped> {
        let withheld = || self.withheld.values().next();
        self.stopped.as_ref().or_else(withheld)
    }

    /// Appends `record`, the next one.
    fn take(&mut self, record: &Record) -> Result<(), Stopped> {
        self.encode(record)?;
        if let Some(statement) = succession::statement(record) {
            self.statement = Some(statement.into());
        }
        self.next_seq += 1;
        self.count += 1;
        if let Some(session) = record.session {
            self.parts.entry(session).or_default().take(record);
        }
        Ok(())
    }

    /// Appends `record`, the next one.
    fn take_fed(&mut self, record: &Fed) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        record.number(self.next_seq, &mut self.bytes);
        self.measure(start);
        self.next_seq += 1;
        self.count += 1;
        let part = self.parts.entry(record.session).or_default();
        match &record.what {
            What::Started(whole) | What::Ended(whole) | What::Told(whole) => part.take(whole),
            What::Operation(_, protocol, effects) => part.seen(*protocol, *effects),
            What::Decision(answer, rule) => part.decided(*answer, rule),
            What::Approval | What::Other => {}
        }
    }

    /// Has the record that begins at `start` say how long it is.
    fn measure(&mut self, start: usize) {
        let length = u32::try_from(self.bytes.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + LENGTH_BYTES) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Keeps what was appended from `start` on, or notes that there was no room.
    fn keep(&mut self, start: usize) {
        let is_kept = match (&mut self.spill, self.bytes.get(start..)) {
            (Some(spill), Some(records)) => spill.keep(records, lower_half(self.drained)),
            _ => false,
        };
        if !is_kept {
            self.unkept = Some(self.next_seq - 1);
        }
    }

    /// Appends `record`, or nothing where it can't be encoded.
    fn encode(&mut self, record: &Record) -> Result<(), Stopped> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        if let Err(stopped) = encode(record, &mut self.bytes) {
            self.bytes.truncate(start);
            return Err(stopped);
        }
        self.measure(start);
        Ok(())
    }
}

/// Appends `record` to `bytes`, in postcard's encoding.
///
/// # Errors
/// Where it can't be encoded; a part of it may be there.
pub(crate) fn encode(record: &Record, bytes: &mut Vec<u8>) -> Result<(), Stopped> {
    postcard::serialize_with_flavor(record, Encoding(bytes))
        .map_err(|error| Stopped(format!("a record can't be encoded: {error}").into()))
}

/// Where postcard writes a record to: behind what is there already, whole slices at once.
struct Encoding<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Encoding<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Makes the folder where it isn't, takes its lock and checks its format.
fn prepare(directory: &Path) -> Result<File, JournalError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io_error("creating", directory))?;
    let path = directory.join("lock");
    let file = private().open(&path).map_err(io_error("opening", &path))?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // A process that a daemon has just forked has its descriptors until it is another program.
            Err(fs::TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(JournalError::InUse(directory.to_owned()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(io_error("locking", &path)(error)),
        }
    }
    let path = directory.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => {}
        Ok(found) if BEFORE.contains(&&*found) => {
            Local
                .replace(&path, FORMAT.as_bytes())
                .map_err(io_error("writing", &path))?;
            tracing::info!(
                "{} is of an earlier version; it is gone on with, and earlier versions refuse it now",
                directory.display()
            );
        }
        Ok(found) => {
            return Err(JournalError::Foreign {
                path: directory.to_owned(),
                found: found.trim().to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let segments = directory.join("segments");
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&segments)
                .map_err(io_error("creating", &segments))?;
            // Last, so that a folder with a format has all that belongs to it.
            Local
                .replace(&path, FORMAT.as_bytes())
                .map_err(io_error("writing", &path))?;
        }
        Err(error) => return Err(io_error("reading", &path)(error)),
    }
    Ok(file)
}

/// Has `path` hold `bytes`, for its owner alone: whoever looks, also after a power failure, sees all of what was
/// there or all of this.
///
/// # Errors
/// Where the disk fails, or is full.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Local.replace(path, bytes)
}

/// A file that only its owner reads.
fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options
}
