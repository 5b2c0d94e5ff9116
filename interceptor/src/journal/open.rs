//! Opening a journal: what is on disk, what an earlier daemon left on its way there, and who may go on with it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use interceptor_core::record::{Event, Record};
use tokio::sync::{broadcast, watch};

use super::{
    Journal, JournalError, Progress, Shared, block,
    disk::{Disk, Local},
    encryption::{Encryption, SessionKeys},
    feed::{Outlet, lower_half},
    glance::{Fed, What},
    index, io_error, private,
    spill::{self, Spill},
    store::Store,
    succession,
    waiting::Waiting,
    writer,
};
use crate::sync::lock;

/// Version of the state folder's format; in its file `format`.
const FORMAT: &str = "interceptor state 7\n";

/// Versions before, whose blocks are read as they are: what is signed is not written anew. Those of 4 have no parts, 5
/// knows no segments that were removed, and 6 nothing that is encrypted.
const BEFORE: [&str; 3] = [
    "interceptor state 4\n",
    "interceptor state 5\n",
    "interceptor state 6\n",
];

/// Bytes of the longest name that an agent in a process's last words may have; those that are tagged are far shorter.
const AGENT_BYTES_MAX: usize = 1_024;

/// How long a journal that is in use may take to be let go of.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// How long restoring what was left waits for the disk before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Size at which a segment is closed: large enough for few files, small enough to ship.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Size below which no segment is closed.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Segments that what may be kept is divided into, at least: whole ones are removed.
const SEGMENTS_KEPT: u64 = 16;

/// Records that a slow follower of the live stream may lag behind before it is told that it missed some.
const FOLLOW_LAG_MAX: usize = 4_096;

/// How a journal is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How many bytes of it are to be kept: its segments are small enough that one is little of that.
    pub bytes_max: Option<u64>,
    /// How what is recorded from now on is encrypted, if it is.
    pub encryption: Option<Encryption>,
    /// A folder in memory, for this journal alone: where what is encrypted on disk waits to be.
    pub waiting: Option<PathBuf>,
}

impl Options {
    /// Size at which segments are closed.
    fn segment_bytes(&self) -> u64 {
        let share = self
            .bytes_max
            .map_or(SEGMENT_BYTES, |max| max / SEGMENTS_KEPT);
        share.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES)
    }

    /// Where records of the journal in `directory` wait to be written, and where an earlier daemon may have had them.
    fn places<'a>(&'a self, directory: &'a Path) -> (&'a Path, Option<&'a Path>) {
        match &self.waiting {
            Some(waiting) if self.encryption.is_some() => (waiting, Some(directory)),
            waiting => (directory, waiting.as_deref()),
        }
    }
}

impl Journal {
    /// Opens the journal in the state folder `directory`, made if it isn't there, for one daemon alone.
    /// What a crash has left half written is cut off, and said in a record, as is what it left unsigned.
    ///
    /// # Errors
    /// Where the folder is in use, newer, damaged or can't be written.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        Self::open_with(directory, &Options::default())
    }

    /// As [`Journal::open`], with `options`.
    ///
    /// # Errors
    /// As of [`Journal::open`]; and where it has encrypted sessions and nothing opens them.
    pub fn open_with(directory: &Path, options: &Options) -> Result<Self, JournalError> {
        Self::open_on(Local, directory, options)
    }

    /// Opens it with its evidence on `disk`.
    pub(super) fn open_on<D: Disk>(
        disk: D,
        directory: &Path,
        options: &Options,
    ) -> Result<Self, JournalError> {
        let lock_file = prepare(directory)?;
        let keys = SessionKeys::open(&disk, directory, options.encryption.as_ref())?;
        let segment_bytes = options.segment_bytes();
        let (mut store, recovered) = Store::open(disk, directory.to_owned(), segment_bytes)?;
        let key = store.key();
        let (index, broken) =
            index::Index::open(directory, (key.clone(), keys.clone()), &recovered)?;
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
        let (here, elsewhere) = options.places(directory);
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
            keys,
            volatile: Some(here)
                .filter(|here| *here != directory)
                .map(Path::to_owned),
            writer: Mutex::new(None),
            kept: AtomicU64::new(next_seq - 1),
            spare: Mutex::new(None),
            feed: Mutex::new(None),
            _lock: lock_file,
        });
        let mut elsewhere = elsewhere;
        if let Some(waiting) = &options.waiting {
            let is_needed = *here == **waiting;
            let is_own = own(waiting, is_needed).map_err(io_error("making", waiting))?;
            // What isn't there now is somebody else's if it is there later.
            elsewhere = elsewhere.filter(|_| is_own || is_needed);
        }
        let mut left = Vec::new();
        // Those of a daemon before that kept them elsewhere come first.
        if let Some(place) = elsewhere.filter(|place| Outlet::is_there(place)) {
            let (found, _) = left_behind(place, next_seq)?;
            left = found;
        }
        let next_left = next_seq + left.len() as u64;
        let (found, feed) = left_behind(here, next_left)?;
        left.extend(found);
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
        journal.restore(left, here)?;
        if let Some(place) = elsewhere {
            spill::remove(place).map_err(io_error("removing what waited in", place))?;
        }
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
    fn restore(&self, left: Vec<Record>, place: &Path) -> Result<(), JournalError> {
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
        match Spill::open(place) {
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
}

/// The records that an earlier daemon had taken and not yet written when it ended, and those that it was still
/// fed with; and where it is fed from.
fn left_behind(directory: &Path, next_seq: u64) -> Result<(Vec<Record>, Outlet), JournalError> {
    let making = io_error("making room for records that wait in", directory);
    let mut feed = Outlet::open(directory).map_err(making)?;
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
    let fed = fed(&mut feed, next_seq + following as u64);
    if fed.is_empty() {
        return Ok((records, feed));
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
    Ok((records, feed))
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
    if fed.agent.len() > AGENT_BYTES_MAX {
        return Err("no agent has such a name");
    }
    fed.decode()
}

/// Has the folder `place` be nobody else's, where others may make some too; if it `is_needed`, made if it isn't there.
/// Whether it is there: then nobody else can take its name or what is in it.
fn own(place: &Path, is_needed: bool) -> io::Result<bool> {
    match fs::symlink_metadata(place) {
        Ok(found) => {
            let is_own = found.is_dir()
                && found.uid() == nix::unistd::geteuid().as_raw()
                && found.mode() & 0o077 == 0;
            if is_own {
                return Ok(true);
            }
            // What somebody else has put there would be taken for what waits.
            match found.is_dir() {
                true => fs::remove_dir_all(place)?,
                false => fs::remove_file(place)?,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if is_needed {
        fs::DirBuilder::new().mode(0o700).create(place)?;
    }
    Ok(is_needed)
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
