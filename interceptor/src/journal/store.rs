//! What is on disk of a journal: opened, held to what was signed, added to block by block, signed.
//!
//! Nothing here waits, retries or knows a thread; whoever adds a block may say that it is on record when
//! [`Store::add`] has returned, and not before.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use interceptor_core::record::Event;

use super::{
    JournalError,
    block::{BLOCK_HEADER, BlockHeader, Hash},
    checkpoint::{Checkpoint, Key, PublicKey},
    disk::{Content, Disk},
    encryption::SessionKeys,
    io_error, keyring,
    reader::read_block,
    segment::{self, Location, Recovered, SEGMENT_HEADER},
    succession::{self, Rotation},
    tree::Tree,
};
use crate::sync::{read, write};

/// The key in force: replaced together with the checkpoint that it signs, for who needs the two to fit.
pub(super) type InForce = Arc<RwLock<Arc<Key>>>;

/// A journal's files, for the one who adds to them.
pub(super) struct Store<D: Disk> {
    disk: D,
    directory: PathBuf,
    key: InForce,
    /// A key that is on disk, to follow the one in force once that is on record.
    next: Option<Arc<Key>>,
    /// That is on record, and not all of it is done.
    handover: Option<Handover>,
    chain: Hash,
    tree: Tree,
    next_seq: u64,
    open: Option<Open<D::File>>,
    /// Segments that were let go of with a part of what failed at their end.
    left: Vec<Open<D::File>>,
    /// Size at which a segment is closed.
    segment_bytes: u64,
    /// Age at which it is closed as well, by the next block.
    segment_age: Duration,
    /// Blocks that the last checkpoint vouches for.
    signed: u64,
}

/// A key takes the place of another.
struct Handover {
    next: Arc<Key>,
    statement: String,
    /// The next one has signed.
    is_in_force: bool,
}

/// The segment that is being written.
struct Open<F> {
    number: u64,
    file: F,
    length: u64,
    since: Instant,
}

/// Age at which a segment is closed: what is shipped when it is closed doesn't stay on a quiet host for days.
const SEGMENT_AGE: Duration = Duration::from_secs(3_600);

impl<D: Disk> Store<D> {
    /// Opens what is in `directory`, whose segments are closed from `segment_bytes` on.
    ///
    /// # Errors
    /// Where it isn't what was signed, or the disk fails: then nothing is changed that was on record.
    pub(super) fn open(
        disk: D,
        directory: PathBuf,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), JournalError> {
        let (key, next) = keyring::open(&disk, &directory)?;
        let signed = Checkpoint::read(&disk, &directory, &key.public())?;
        let recovered = segment::recover(&disk, &directory, signed.as_ref())?;
        key.show(&disk, &directory)?;
        if recovered.leaves.is_empty() {
            key.begin(&disk, &directory)?;
        }
        let mut tree = Tree::default();
        for leaf in &recovered.leaves {
            tree.push(leaf);
        }
        let mut store = Self {
            disk,
            key: Arc::new(RwLock::new(Arc::new(key))),
            next: next.map(Arc::new),
            handover: None,
            chain: recovered.chain,
            tree,
            next_seq: recovered.next_seq,
            // What another process wrote to is not written to again: how its last syncs went isn't known.
            open: None,
            left: Vec::new(),
            segment_bytes,
            segment_age: SEGMENT_AGE,
            signed: recovered.leaves.len() as u64 - recovered.unsigned_blocks,
            directory,
        };
        store.resume(&recovered)?;
        Ok((store, recovered))
    }

    /// Goes on with a rotation that an earlier daemon has put on record: then nothing signed vouches for that yet.
    fn resume(&mut self, recovered: &Recovered) -> Result<(), JournalError> {
        let unsigned = usize::try_from(recovered.unsigned_blocks).unwrap_or(usize::MAX);
        let first = recovered.blocks.len().saturating_sub(unsigned);
        for (location, ..) in recovered.blocks.get(first..).unwrap_or_default() {
            let path = segment::path(&self.directory, location.segment);
            let block = self
                .disk
                .open(&path)
                .and_then(|file| read_block(&file, location.offset))
                .map_err(io_error("reading", &path))?;
            // The host's own records are in clear.
            let none = SessionKeys::none();
            let facts = block.and_then(|(header, payload)| header.facts(&payload, &none).ok());
            for record in facts.iter().flat_map(|facts| &facts.records) {
                let Some(statement) = succession::statement(record) else {
                    continue;
                };
                if !self.hand_over(statement) {
                    return Err(JournalError::Key {
                        path: self.directory.join("journal.key"),
                        what: format!(
                            "record {} has replaced it, and the one that follows is missing; put journal.key.next back, or keep the folder as evidence under another name and start a new one",
                            record.seq
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// Makes the key that is to follow, and puts it on disk.
    ///
    /// # Errors
    /// Where the disk fails, or has yet to do what is left of a rotation before.
    pub(super) fn prepare(&mut self) -> io::Result<PublicKey> {
        if self.handover.is_some() {
            return Err(io::Error::other("a rotation isn't over yet"));
        }
        let next = Key::fresh().map_err(io::Error::other)?;
        keyring::prepare(&self.disk, &self.directory, &next)?;
        let public = next.public();
        self.next = Some(Arc::new(next));
        Ok(public)
    }

    /// What to put on record, in the next block, so that the key that was prepared follows.
    pub(super) fn rotation(&self, by: &str, reason: &str) -> Option<(Rotation, Event)> {
        let next = self.next.as_ref()?;
        let key = read(&self.key);
        let rotation = Rotation {
            old: key.public(),
            new: next.public(),
            up_to: self.head(),
        };
        let statement = Rotation::sign(&key, &rotation.new, &rotation.up_to);
        let event = rotation.event(statement, by, reason);
        Some((rotation, event))
    }

    /// Has the key follow that `statement`, which is on record, says does. Whether that is the one that was prepared.
    pub(super) fn hand_over(&mut self, statement: &str) -> bool {
        let rotation = Rotation::read(statement).ok();
        let (Some(rotation), Some(next)) = (rotation, self.next.take()) else {
            return false;
        };
        let is_it = rotation.new == next.public() && rotation.old == read(&self.key).public();
        if is_it {
            self.handover = Some(Handover {
                next,
                statement: statement.to_owned(),
                is_in_force: false,
            });
        } else {
            self.next = Some(next);
        }
        is_it
    }

    /// Destroys a key that was prepared and isn't on record. The disk may fail: the next start does it then.
    pub(super) fn discard(&mut self) {
        if self.handover.is_some() {
            return;
        }
        self.next = None;
        if let Err(error) = keyring::discard(&self.disk, &self.directory) {
            tracing::warn!(%error, "a key that never came into force can't be removed yet");
        }
    }

    /// Adds `payload` with `header`, which has all but its place: where it stands, once it is on disk.
    ///
    /// # Errors
    /// Where the disk fails. The block isn't on record, and may be added again.
    pub(super) fn add(&mut self, header: BlockHeader, payload: &[u8]) -> io::Result<Location> {
        let header = BlockHeader {
            first_seq: self.next_seq,
            ..header
        }
        .chained(&self.chain, payload)
        .ok_or(io::ErrorKind::InvalidInput)?;
        let is_done = |open: &Open<D::File>| {
            open.length >= self.segment_bytes || open.since.elapsed() >= self.segment_age
        };
        self.open = self.open.take().filter(|open| !is_done(open));
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.new_segment()?,
        };
        let location = Location {
            segment: open.number,
            offset: open.length,
        };
        if let Err(error) = open.append(&header, payload) {
            // This file is let go of: after a failed sync the system may have dropped what was written and
            // call it written. What failed goes to a new one, and who reads this one takes no more of it
            // than was on record, whether it can be cut back or not.
            if open.length > SEGMENT_HEADER as u64 {
                self.left.push(open);
                self.cut_back();
            }
            return Err(error);
        }
        self.open = Some(open);
        self.cut_back();
        self.chain = header.chain;
        self.tree.push(&header.chain);
        self.next_seq += u64::from(header.count);
        Ok(location)
    }

    /// Takes what failed from the ends of segments, as soon as the disk lets it.
    fn cut_back(&mut self) {
        self.left
            .retain(|left| left.file.truncate(left.length).is_err());
    }

    fn new_segment(&self) -> io::Result<Open<D::File>> {
        let number = self.next_seq;
        let path = segment::path(&self.directory, number);
        // What an attempt that failed has left. Nothing in it is on record, and neither it nor its name is
        // used again.
        self.disk.remove_if_there(&path)?;
        let file = self.disk.create(&path)?;
        file.write_all_at(&segment::header(number, &self.chain), 0)?;
        file.sync()?;
        // The name has to survive as well.
        self.disk.sync_folder(&segment::folder(&self.directory))?;
        Ok(Open {
            number,
            file,
            length: SEGMENT_HEADER as u64,
            since: Instant::now(),
        })
    }

    /// Signs all that was added.
    ///
    /// # Errors
    /// Where the disk fails. What was signed before stays signed.
    pub(super) fn sign(&mut self) -> io::Result<()> {
        let checkpoint = self.head();
        let (disk, directory) = (&self.disk, &self.directory);
        match &mut self.handover {
            Some(handover) if !handover.is_in_force => {
                // Whoever sees what the new key has signed finds out how it came into force.
                keyring::state(disk, directory, &handover.statement)?;
                let mut key = write(&self.key);
                handover.next.publish(disk, directory, &checkpoint)?;
                *key = handover.next.clone();
                handover.is_in_force = true;
            }
            _ => read(&self.key).publish(disk, directory, &checkpoint)?,
        }
        self.signed = self.tree.size();
        if self.handover.is_some() {
            keyring::take_over(disk, directory)?;
            let shown = read(&self.key).show(disk, directory);
            shown.map_err(io::Error::other)?;
            self.handover = None;
        }
        Ok(())
    }

    /// Whether a checkpoint vouches for everything, and nothing is left of a rotation.
    pub(super) const fn is_signed(&self) -> bool {
        self.signed == self.tree.size() && self.handover.is_none()
    }

    /// What there is to sign.
    fn head(&self) -> Checkpoint {
        Checkpoint::of(&self.tree, self.next_seq - 1)
    }

    /// Has segments be closed at another age.
    #[cfg(test)]
    pub(super) const fn close_at(&mut self, age: Duration) {
        self.segment_age = age;
    }

    /// Number that the next record will have.
    pub(super) const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The key that it is signed with.
    pub(super) fn key(&self) -> InForce {
        self.key.clone()
    }
}

impl<F: Content> Open<F> {
    fn append(&mut self, header: &BlockHeader, payload: &[u8]) -> io::Result<()> {
        self.file.write_all_at(&header.encode(), self.length)?;
        self.file
            .write_all_at(payload, self.length + BLOCK_HEADER as u64)?;
        self.file.sync()?;
        self.length += (BLOCK_HEADER + payload.len()) as u64;
        Ok(())
    }
}
