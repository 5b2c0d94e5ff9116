//! What is on disk of a journal: opened, held to what was signed, added to block by block, signed.
//!
//! Nothing here waits, retries or knows a thread; whoever adds a block may say that it is on record when
//! [`Store::add`] has returned, and not before.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    JournalError,
    block::{BLOCK_HEADER, BlockHeader, Hash},
    checkpoint::{Checkpoint, Key},
    disk::{Content, Disk},
    segment::{self, Location, Recovered, SEGMENT_HEADER},
    tree::Tree,
};

/// A journal's files, for the one who adds to them.
pub(super) struct Store<D: Disk> {
    disk: D,
    directory: PathBuf,
    key: Arc<Key>,
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
        let key = Key::open(&disk, &directory)?;
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
        let store = Self {
            disk,
            key: Arc::new(key),
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
        Ok((store, recovered))
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
        let checkpoint = Checkpoint::of(&self.tree, self.next_seq - 1);
        self.key.publish(&self.disk, &self.directory, &checkpoint)?;
        self.signed = self.tree.size();
        Ok(())
    }

    /// Whether a checkpoint vouches for everything.
    pub(super) const fn is_signed(&self) -> bool {
        self.signed == self.tree.size()
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
    pub(super) fn key(&self) -> Arc<Key> {
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
