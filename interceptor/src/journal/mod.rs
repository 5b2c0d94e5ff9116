//! The session log: append-only segments as evidence, sled as what is asked.
//!
//! [`Journal::append`] encodes a record into memory under one short lock; a writer thread turns what
//! has gathered into a block (compressed, hash-chained), writes and syncs it, signs checkpoints and
//! updates the index. Who needs a record on disk before going on awaits [`Journal::durable`].

mod checkpoint;
mod export;
mod har;
mod index;
mod reader;
mod segment;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};
use tokio::sync::{broadcast, watch};

use self::checkpoint::{Checkpoint, Tree};
pub use self::{
    export::{Filter, Lines, export_jsonl, parameter, to_json},
    har::Har,
    index::SessionSummary,
    reader::Reader,
    verify::{Problem, Report, verify},
};

/// Version of the state folder's format; in its file `format`.
const FORMAT: &str = "interceptor state 1\n";

/// Bytes of records that wait to be written before sessions are made to wait as well: more than a disk
/// of ordinary speed leaves behind, so they wait only where one agent moves more than it can take.
const CONGESTED_BYTES: usize = 32 << 20;

/// Bytes of records that may wait to be written, for who doesn't wait: sessions that come at once add a
/// part of a response each, one alone a message of the largest size.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// How long a session waits for the disk before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of records after which the writer is woken early: a busy host's of 50 ms. A sync costs the disk
/// and the kernel the same for much as for little.
const BLOCK_BYTES: usize = 2 << 20;

/// Records that a slow follower of the live stream may lag behind before it is told that it missed some.
const FOLLOW_LAG_MAX: usize = 4_096;

/// Why the journal can't be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another daemon has it.
    #[error("{} is in use by another daemon; stop it, or give this one its own --state", .0.display())]
    InUse(PathBuf),
    /// It was written by a newer version.
    #[error("{} was written by a version of interceptor that this one doesn't know (`{found}`); use that one", .path.display())]
    Newer {
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
    /// Bytes in `waiting`, to be looked at without its lock.
    backlog: AtomicUsize,
    wake: Condvar,
    progress: watch::Sender<Progress>,
    followers: broadcast::Sender<Arc<Record>>,
    index: index::Index,
    writer: Mutex<Option<JoinHandle<()>>>,
    _lock: File,
}

/// What has been appended and not yet been taken by the writer.
#[derive(Debug, Default)]
struct Waiting {
    /// Records, each a little-endian u32 length and the record in postcard's encoding.
    bytes: Vec<u8>,
    count: u32,
    next_seq: u64,
    /// Sessions with records in `bytes`, with repeats only where they alternate.
    sessions: Vec<SessionId>,
    /// What the index has to learn from `bytes`.
    facts: Vec<index::Fact>,
    /// Somebody waits for the disk.
    urgent: bool,
    closing: bool,
    stopped: Option<Stopped>,
}

/// How far the writer has come.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Every record up to this one is on disk.
    durable: u64,
    stopped: Option<Stopped>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens the journal in the state folder `directory`, made if it isn't there, for one daemon alone.
    /// What a crash has left half written is cut off, and said in a record, as is what it left unsigned.
    ///
    /// # Errors
    /// Where the folder is in use, newer, damaged or can't be written.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let lock_file = prepare(directory)?;
        let key = checkpoint::Key::open(directory)?;
        let signed = Checkpoint::read(directory, &key.public())?;
        let recovered = segment::recover(directory, signed.as_ref())?;
        if signed.is_none() {
            // From its first moment on a journal has a checkpoint, so that one that is gone was taken.
            key.publish(directory, &Checkpoint::of(&Tree::default(), 0))
                .map_err(io_error("signing", directory))?;
        }
        let index = index::Index::open(directory, &recovered)?;
        let next_seq = recovered.next_seq;
        let (progress, _) = watch::channel(Progress {
            durable: next_seq - 1,
            stopped: None,
        });
        let (followers, _) = broadcast::channel(FOLLOW_LAG_MAX);
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            waiting: Mutex::new(Waiting {
                next_seq,
                ..Waiting::default()
            }),
            backlog: AtomicUsize::new(0),
            wake: Condvar::new(),
            progress,
            followers,
            index,
            writer: Mutex::new(None),
            _lock: lock_file,
        });
        let (cut, unsigned) = (recovered.cut_bytes, recovered.unsigned_blocks);
        let writer = writer::start(shared.clone(), recovered, key)
            .map_err(io_error("starting the writer of", directory))?;
        *lock(&shared.writer) = Some(writer);
        let journal = Self { shared };
        if cut > 0 || unsigned > 0 {
            let detail = [
                ("bytes_cut", cut.to_string()),
                ("unsigned_blocks", unsigned.to_string()),
            ];
            let event = Event::notice("journal_recovered", detail);
            let _ = journal.append(None, &Arc::from(""), crate::clock::now(), [event]);
        }
        Ok(journal)
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
        if let Some(stopped) = &waiting.stopped {
            return Err(stopped.clone());
        }
        if waiting.bytes.len() > WAITING_BYTES_MAX {
            return Err(Stopped("the disk takes nothing".into()));
        }
        if waiting.closing {
            return Err(Stopped("the daemon stops".into()));
        }
        let was_empty = waiting.bytes.is_empty();
        for event in events {
            let record = Record {
                seq: waiting.next_seq,
                time,
                session,
                agent: agent.clone(),
                event,
            };
            waiting.encode(&record)?;
            waiting.next_seq += 1;
            waiting.count += 1;
            if let Some(fact) = index::Fact::of(&record) {
                waiting.facts.push(fact);
            }
            if followed {
                let _ = self.shared.followers.send(Arc::new(record));
            }
        }
        if let Some(session) = session
            && waiting.sessions.last() != Some(&session)
        {
            waiting.sessions.push(session);
        }
        let last = waiting.next_seq - 1;
        let backlog = waiting.bytes.len();
        self.shared.backlog.store(backlog, Ordering::Relaxed);
        let full = waiting.bytes.len() >= BLOCK_BYTES && !waiting.urgent;
        waiting.urgent |= full;
        drop(waiting);
        if was_empty || full {
            self.shared.wake.notify_one();
        }
        Ok(last)
    }

    /// Waits while more is waiting to be written than the disk takes. Sessions do so before they append:
    /// the agent that asks for much is slowed down, and nobody is refused for it.
    ///
    /// # Errors
    /// Where the disk fails, or takes nothing for ten seconds.
    pub async fn room(&self) -> Result<(), Stopped> {
        if self.shared.backlog.load(Ordering::Relaxed) < CONGESTED_BYTES {
            return Ok(());
        }
        let mut progress = self.shared.progress.subscribe();
        while self.shared.backlog.load(Ordering::Relaxed) >= CONGESTED_BYTES {
            let changed = tokio::time::timeout(PATIENCE, progress.changed()).await;
            if let Some(stopped) = progress.borrow().stopped.clone() {
                return Err(stopped);
            }
            if !matches!(changed, Ok(Ok(()))) {
                return Err(Stopped("the disk takes nothing".into()));
            }
        }
        Ok(())
    }

    /// Waits until records are taken again, or the writer has ended.
    pub async fn resumed(&self) {
        let mut progress = self.shared.progress.subscribe();
        // An error means that there will be no more progress.
        let _ = progress.wait_for(|state| state.stopped.is_none()).await;
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

    /// Summaries of sessions, newest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionSummary> {
        self.shared.index.sessions()
    }

    /// All records of a session that are on disk, in order.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn session(&self, session: SessionId) -> Result<Vec<Record>, JournalError> {
        let reader = self.reader()?;
        let mut records = Vec::new();
        for location in self.shared.index.blocks_of(session) {
            let block = reader.block(location)?;
            records.extend(
                block
                    .into_iter()
                    .filter(|record| record.session == Some(session)),
            );
        }
        Ok(records)
    }

    /// Why the journal takes no records, where that is so.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        lock(&self.shared.waiting).stopped.clone()
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

impl Waiting {
    /// Appends `record`, or nothing where it can't be encoded.
    fn encode(&mut self, record: &Record) -> Result<(), Stopped> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        if let Err(error) = postcard::serialize_with_flavor(record, Encoding(&mut self.bytes)) {
            self.bytes.truncate(start);
            return Err(Stopped(
                format!("a record can't be encoded: {error}").into(),
            ));
        }
        let length = u32::try_from(self.bytes.len() - start - 4).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        Ok(())
    }
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
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(JournalError::InUse(directory.to_owned())),
        Err(fs::TryLockError::Error(error)) => return Err(io_error("locking", &path)(error)),
    }
    let path = directory.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => {}
        Ok(found) => {
            return Err(JournalError::Newer {
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
            fs::write(&path, FORMAT).map_err(io_error("writing", &path))?;
        }
        Err(error) => return Err(io_error("reading", &path)(error)),
    }
    Ok(file)
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
