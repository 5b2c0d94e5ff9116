//! The session log: append-only segments as evidence, sled as what is asked.
//!
//! [`Journal::append`] encodes a record into memory under one short lock; a writer thread turns what
//! has gathered into a block (compressed, hash-chained), writes and syncs it, signs checkpoints and
//! updates the index. Who needs a record on disk before going on awaits [`Journal::durable`].

mod block;
mod checkpoint;
mod cipher;
mod disk;
mod encryption;
mod erasure;
mod evidence;
mod export;
mod feed;
mod follow;
mod glance;
mod husk;
mod index;
mod keyring;
mod keytree;
mod manifest;
mod open;
mod pack;
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
mod waiting;
mod writer;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
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
    erasure::began as encryption_began,
    export::plain,
    feed::{Fresh, Full, Inlet, Outlet},
    follow::Follower,
    glance::{Fed, What},
    removal::{Closed, Contents, NotRemoved},
    succession::{identity, is_of_one_journal, is_signed_with, notes},
    waiting::encode,
};
use self::{
    disk::{Disk, Local},
    encryption::SessionKeys,
    spill::Spill,
    waiting::Waiting,
};
pub use self::{
    encryption::{Encryption, MasterKey},
    erasure::{Erasure, NotErased},
    evidence::{Proved, evidence, prove},
    export::{
        Asciicast, Csv, Extent, Filter, Form, Har, Html, Lines, Ocsf, Pcapng, Selection, Soc2,
        export_jsonl, parameter, to_json,
    },
    husk::{RECORDS_REMOVED, SESSIONS_REMOVED},
    manifest::{Made, Manifest},
    open::Options,
    reader::Reader,
    rotate::{NotRotated, Rotated},
    search::{Found, SEARCHED, Seen, Text, TextError},
    succession::KEY_ROTATED,
    summary::{Decided, Deeds, SessionSummary, Some64, Wanted, sessions},
    verify::{Kept, Kind, Problem, Report, verify},
};
use crate::sync::{lock, read};

/// Bytes of records that may wait to be written. Of what another process feeds no more are taken than can be
/// kept; a message of the largest size can't.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// Bytes that say how long a record is.
const LENGTH_BYTES: usize = 4;

/// Bytes of records after which the writer is woken early: a busy host's of 50 ms. A sync costs the disk
/// and the kernel the same for much as for little.
const BLOCK_BYTES: usize = 2 << 20;

/// How long who asks for proofs waits for what is on record to be signed: it is every second.
const SIGNED_SOON: Duration = Duration::from_secs(3);

/// How long the disk may take over a block before the journal is said to have stopped. A disk that is busy takes a
/// second or two at worst; who waits is told while its client still listens.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

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
    /// What sessions' keys are in can't be used.
    #[error("{}: {what}", .path.display())]
    Encryption {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A session's key isn't at hand.
    #[error(
        "session {0} is encrypted, and what opens it isn't here: the journal's `session.keys` and the key for that, which is `encryption.key` beside it or is named by --encryption-key"
    )]
    Locked(SessionId),
    /// A session was erased.
    #[error("session {0} was erased, which is on record")]
    Erased(SessionId),
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
    keys: Arc<SessionKeys>,
    /// Where records wait, if that is not for good.
    volatile: Option<PathBuf>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Every record up to this one outlives the process.
    kept: AtomicU64,
    /// Where the next records are kept, while those before are being written.
    spare: Mutex<Option<Spill>>,
    /// Where records of another process come from, until somebody takes them in.
    feed: Mutex<Option<Outlet>>,
    _lock: File,
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

    /// What is on disk from record `next_seq` on, for who follows it.
    pub(crate) fn follower(&self, next_seq: u64) -> Follower {
        let keys = self.shared.keys.clone();
        Follower::new(&self.shared.directory, keys, next_seq)
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

    /// The same, for who isn't asynchronous.
    ///
    /// # Errors
    /// As of [`Journal::durable`].
    fn await_durable(&self, seq: u64) -> Result<(), Stopped> {
        lock(&self.shared.waiting).urgent = true;
        self.shared.wake.notify_one();
        loop {
            let state = self.shared.progress.borrow().clone();
            match state.stopped {
                _ if state.durable >= seq => return Ok(()),
                Some(stopped) => return Err(stopped),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
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
        Reader::with_keys(&self.shared.directory, self.shared.keys.clone())
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

    fn keys(&self) -> &SessionKeys {
        &self.shared.keys
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
            if let Some(place) = &self.shared.volatile
                && self.durable_seq() == self.last_seq()
                && let Err(error) = spill::remove(place).and_then(|()| fs::remove_dir(place))
            {
                tracing::warn!(%error, "{} can't be removed", place.display());
            }
        }
    }
}

/// Why what another process feeds the journal with isn't taken now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Later {
    /// It takes no records.
    Stopped(Stopped),
    /// It has to write others first.
    Busy,
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
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o600);
    options
}
