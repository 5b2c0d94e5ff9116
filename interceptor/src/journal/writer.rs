//! The writer thread: waiting records become blocks on disk.

use std::{
    io,
    sync::{Arc, PoisonError, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use interceptor_core::record::{Record, SessionId};
use rustc_hash::FxHashMap;

use super::{
    BLOCK_BYTES, Progress, Reader, STALL, Shared, Stopped, Waiting,
    block::BlockHeader,
    checkpoint::PublicKey,
    disk::Disk,
    index,
    pack::{Next, Packer},
    rotate::{Asked, NotRotated, Rotated},
    segment::Location,
    spill::Spill,
    store::Store,
};
use crate::sync::lock;

/// How long records gather before they are written, unless somebody waits for them.
const GATHER: Duration = Duration::from_millis(50);
/// How often a journal that can't write tries again; tests have it fail a hundred times.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
/// How often it is looked whether the disk takes too long.
const WATCH: Duration = Duration::from_millis(500);
/// At least this often a checkpoint is signed, while records come.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// Sessions of which it is kept how many parts they have had; of others the index is asked.
const NUMBERED_MAX: usize = 64 << 10;

/// A block that is ready to be written.
struct Block {
    header: BlockHeader,
    payload: Vec<u8>,
    taken: Waiting,
}

/// Buffers that are used again for the next block.
#[derive(Default)]
struct Room {
    records: Vec<u8>,
    payload: Vec<u8>,
}

/// Room that is kept from block to block, in bytes; what a rare large block took is given back.
const ROOM_MAX: usize = 2 * BLOCK_BYTES;

struct Writer<D: Disk> {
    shared: Arc<Shared>,
    store: Store<D>,
    packer: Packer,
    /// What sessions that go on have had.
    parts: FxHashMap<SessionId, Had>,
    room: Room,
    signed_at: Option<Instant>,
    /// Somebody wants another key, which is on disk.
    prepared: Option<Asked>,
    /// Who waits for it to be in force, and what to say then.
    rotating: Option<(Asked, Rotated)>,
}

pub(super) fn start<D: Disk>(shared: Arc<Shared>, store: Store<D>) -> io::Result<JoinHandle<()>> {
    let mut writer = Writer {
        shared,
        store,
        packer: Packer::new()?,
        parts: FxHashMap::default(),
        room: Room::default(),
        signed_at: None,
        prepared: None,
        rotating: None,
    };
    let watched = Arc::downgrade(&writer.shared);
    std::thread::Builder::new()
        .name("journal-watch".to_owned())
        .spawn(move || watch(&watched))?;
    std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || writer.run())
}

/// Says that the journal has stopped where the disk takes too long over a block: the writer can't, which waits for
/// it. As soon as the block is there it goes on.
fn watch(shared: &Weak<Shared>) {
    loop {
        std::thread::sleep(WATCH);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut waiting = lock(&shared.waiting);
        let stalled = waiting.since.map(|since| since.elapsed());
        if let Some(stalled) = stalled.filter(|stalled| *stalled > STALL)
            && waiting.stopped.is_none()
        {
            let why = format!(
                "{}: the disk has taken nothing for {} seconds",
                shared.directory.display(),
                stalled.as_secs()
            );
            tracing::error!("the journal can't be written: nothing passes until it can: {why}");
            let stopped = Stopped(why.into());
            waiting.stopped = Some(stopped.clone());
            // With the lock: the writer takes it back with the lock too.
            shared
                .progress
                .send_modify(|progress| progress.stopped = Some(stopped));
        }
    }
}

impl<D: Disk> Writer<D> {
    fn run(&mut self) {
        loop {
            let (mut taken, closing) = self.take();
            if let Some(asked) = taken.rotate.take() {
                self.prepare(asked);
            }
            if taken.count > 0 {
                match self.block(taken) {
                    Ok(block) => self.write(block, closing),
                    Err(error) => self.stop(&error),
                }
            }
            // The first block since the start is signed at once, so that a fresh journal isn't without.
            if !self.store.is_signed()
                && (closing || self.signed_at.is_none_or(|at| at.elapsed() >= CHECKPOINT))
            {
                self.checkpoint();
            }
            if closing && lock(&self.shared.waiting).count == 0 {
                return;
            }
        }
    }

    /// Waits for records, lets more gather, and takes them.
    fn take(&mut self) -> (Waiting, bool) {
        let shared = self.shared.clone();
        let mut waiting = lock(&shared.waiting);
        while waiting.count == 0
            && !waiting.closing
            && waiting.rotate.is_none()
            && self.prepared.is_none()
        {
            let idle = if self.store.is_signed() {
                Duration::from_secs(3600)
            } else {
                CHECKPOINT
            };
            let (guard, timeout) = shared
                .wake
                .wait_timeout(waiting, idle)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            if timeout.timed_out() {
                return (Waiting::default(), false);
            }
        }
        if let Some(asked) = waiting.rotate.take() {
            // Keys go to disk while others append.
            let taken = Waiting {
                rotate: Some(asked),
                ..Waiting::default()
            };
            return (taken, false);
        }
        self.announce(&mut waiting);
        let until = Instant::now() + GATHER;
        while !waiting.urgent && !waiting.closing && waiting.count > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let (guard, _) = shared
                .wake
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
        }
        waiting.urgent = false;
        waiting.since = (waiting.count > 0).then(Instant::now);
        let spill = self.exchange(&mut waiting);
        let taken = Waiting {
            bytes: std::mem::replace(&mut waiting.bytes, std::mem::take(&mut self.room.records)),
            count: std::mem::take(&mut waiting.count),
            next_seq: waiting.next_seq,
            spill,
            statement: waiting.statement.take(),
            parts: std::mem::take(&mut waiting.parts),
            ..Waiting::default()
        };
        (taken, waiting.closing)
    }

    /// Puts the key that who `asked` gets on disk, before anything says that it follows.
    fn prepare(&mut self, asked: Asked) {
        if self.rotating.is_some() || self.prepared.is_some() {
            asked.answer(Err(NotRotated::Busy));
            return;
        }
        match self.store.prepare() {
            Ok(_) => self.prepared = Some(asked),
            Err(error) => {
                self.store.discard();
                asked.answer(Err(NotRotated::Disk(error)));
            }
        }
    }

    /// Appends the record that another key follows. It says what was before its block, so it is written with what
    /// waits now and nothing else.
    fn announce(&mut self, waiting: &mut Waiting) {
        let Some(asked) = self.prepared.take() else {
            return;
        };
        let refused = match waiting.stopped() {
            Some(stopped) => Some(stopped.clone()),
            None if waiting.closing => Some(Stopped("the daemon stops".into())),
            None => None,
        };
        let made = self.store.rotation(&asked.by, &asked.reason);
        let (Some((rotation, event)), None) = (made, &refused) else {
            self.store.discard();
            let stopped = refused.unwrap_or_else(|| Stopped("there is no key".into()));
            asked.answer(Err(NotRotated::Stopped(stopped)));
            return;
        };
        let record = Record {
            seq: waiting.next_seq,
            time: crate::clock::now(),
            session: None,
            agent: Arc::from(""),
            event,
        };
        let start = waiting.bytes.len();
        if let Err(stopped) = waiting.take(&record) {
            self.store.discard();
            asked.answer(Err(NotRotated::Stopped(stopped)));
            return;
        }
        waiting.keep(start);
        waiting.urgent = true;
        let text = |key: &PublicKey| key.to_text().trim_end().to_owned();
        let rotated = Rotated {
            seq: record.seq,
            old: text(&rotation.old),
            new: text(&rotation.new),
            up_to: rotation.up_to.last_seq,
        };
        self.rotating = Some((asked, rotated));
        let _ = self.shared.followers.send(Arc::new(record));
    }

    /// Takes where the records are kept, and leaves room for the next.
    fn exchange(&self, waiting: &mut Waiting) -> Option<Spill> {
        if waiting.bytes.is_empty() {
            return None;
        }
        let spare = lock(&self.shared.spare).take()?;
        waiting.spill.replace(spare)
    }

    fn block(&mut self, taken: Waiting) -> io::Result<Block> {
        let mut payload = std::mem::take(&mut self.room.payload);
        let Self { packer, parts, .. } = self;
        let next = |session| match session {
            Some(session) => {
                let keys = &self.shared.keys;
                let had = had(parts, session, &taken.parts, &self.shared);
                // What was begun encrypted goes on so, also where what begins now isn't.
                let key = match keys.encrypts() || had.is_sealed {
                    true => keys.to_encrypt(session)?,
                    false => None,
                };
                Ok(Next {
                    nth: had.parts,
                    key,
                })
            }
            None => Ok(Next::default()),
        };
        let header = BlockHeader {
            first_seq: self.store.next_seq(),
            time_ns: crate::clock::now().0,
            ..packer.pack(&taken.bytes, next, &mut payload)?
        };
        Ok(Block {
            header,
            payload,
            taken,
        })
    }

    /// Writes a block until it is on disk. While that fails nothing is accepted; nothing is dropped.
    fn write(&mut self, block: Block, closing: bool) {
        loop {
            match self.store.add(block.header, &block.payload) {
                Ok(location) => {
                    self.written(block, location);
                    return;
                }
                Err(error) => {
                    self.stop(&error);
                    if closing || lock(&self.shared.waiting).closing {
                        tracing::error!(
                            records = block.header.count,
                            "records could not be written before the end"
                        );
                        return;
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    fn written(&mut self, block: Block, location: Location) {
        let Block {
            header,
            payload,
            taken,
        } = block;
        self.shared.index.add(index::Block {
            first_seq: header.first_seq,
            count: header.count,
            location,
            parts: taken.parts,
        });
        let again = |mut buffer: Vec<u8>| {
            buffer.clear();
            buffer.shrink_to(ROOM_MAX);
            buffer
        };
        self.room = Room {
            records: again(taken.bytes),
            payload: again(payload),
        };
        if let Some(statement) = &taken.statement {
            if !self.store.hand_over(statement) {
                tracing::error!(
                    "a rotation of the journal's key is on record, and not of the key that was prepared"
                );
            }
            // At once: until the new key has signed, nothing vouches for it.
            self.signed_at = None;
        }
        if let Some(mut spill) = taken.spill {
            spill.clear();
            *lock(&self.shared.spare) = Some(spill);
        }
        let durable = self.store.next_seq() - 1;
        self.answered(|progress| progress.durable = durable);
    }

    /// The disk has done what it was asked for: records are taken, if they weren't.
    fn answered(&self, learn: impl FnOnce(&mut Progress)) {
        let mut waiting = lock(&self.shared.waiting);
        waiting.stopped = None;
        waiting.since = None;
        drop(waiting);
        self.shared.progress.send_modify(|progress| {
            learn(progress);
            progress.stopped = None;
        });
    }

    fn stop(&self, error: &io::Error) {
        let stopped = Stopped(format!("{}: {error}", self.shared.directory.display()).into());
        let mut waiting = lock(&self.shared.waiting);
        if waiting.stopped.is_none() {
            tracing::error!(%error, "the journal can't be written: nothing passes until it can");
        }
        waiting.stopped = Some(stopped.clone());
        drop(waiting);
        self.shared
            .progress
            .send_modify(|progress| progress.stopped = Some(stopped));
    }

    fn checkpoint(&mut self) {
        // Nothing is written meanwhile, so a disk that takes its time over this is too slow for records too.
        let mut waiting = lock(&self.shared.waiting);
        waiting.since = Some(Instant::now());
        let had_stopped = waiting.stopped.is_some();
        drop(waiting);
        let signed = self.store.sign();
        self.signed_at = Some(Instant::now());
        if let Err(error) = &signed {
            tracing::error!(%error, "a checkpoint can't be written");
        }
        if self.store.is_signed()
            && let Some((asked, rotated)) = self.rotating.take()
        {
            asked.answer(Ok(rotated));
        }
        let last = self.store.next_seq() - 1;
        let learn = |progress: &mut Progress| {
            if signed.is_ok() {
                progress.signed = last;
            }
        };
        if had_stopped {
            // Over records that couldn't be written, which this says nothing about.
            lock(&self.shared.waiting).since = None;
            self.shared.progress.send_modify(learn);
        } else {
            self.answered(learn);
        }
    }
}

/// What a session has had on record.
#[derive(Debug, Clone, Copy, Default)]
struct Had {
    parts: u32,
    /// The last of them was encrypted.
    is_sealed: bool,
}

/// What `session` has had before the part that `said` is about.
fn had(
    known: &mut FxHashMap<SessionId, Had>,
    session: SessionId,
    said: &index::Parts,
    shared: &Shared,
) -> Had {
    let part = said.get(&session);
    let before = known.remove(&session).unwrap_or_else(|| {
        // One that begins has had none; of one that an earlier daemon has seen, or that was over, the index knows.
        match part.is_some_and(|part| part.started.is_some()) {
            true => Had::default(),
            false => looked_up(session, shared),
        }
    });
    if part.is_none_or(|part| part.ended.is_none()) {
        if known.len() >= NUMBERED_MAX {
            known.clear();
        }
        let now = Had {
            parts: before.parts.saturating_add(1),
            is_sealed: before.is_sealed || shared.keys.encrypts(),
        };
        known.insert(session, now);
    }
    before
}

/// What `session` has had, as its last part says.
fn looked_up(session: SessionId, shared: &Shared) -> Had {
    let places = shared.index.blocks_of(session);
    let reader = Reader::with_keys(&shared.directory, shared.keys.clone());
    let last = places.last().zip(reader.ok());
    let last = last.and_then(|(last, reader)| reader.nth(*last, session).ok().flatten());
    match last {
        Some((nth, is_sealed)) => Had {
            parts: nth.saturating_add(1),
            is_sealed,
        },
        None => Had {
            parts: u32::try_from(places.len()).unwrap_or(u32::MAX),
            is_sealed: false,
        },
    }
}
