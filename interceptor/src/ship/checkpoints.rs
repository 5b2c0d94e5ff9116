//! Which checkpoint goes with which segments.
//!
//! The newest checkpoint of a journal vouches for the segment that is being written as well, which no copy has yet, and
//! a copy with less than its checkpoint vouches for is one that was cut off. So those are kept that were the last
//! within a segment: one goes with a copy as soon as that has all it vouches for.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use crate::{journal::Reader, sync::lock};

/// How often it is looked whether there is a newer one; the journal signs every second.
pub(super) const EVERY: Duration = Duration::from_millis(250);

/// The checkpoints of a journal that are still to be shipped.
#[derive(Debug)]
pub(super) struct Checkpoints {
    directory: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    last: String,
    /// The newest of those whose last record is in a segment, by the segment's number.
    newest: BTreeMap<u64, Checkpoint>,
}

/// A signed note, and the last record that it vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) seq: u64,
    pub(super) note: String,
}

impl Checkpoints {
    /// Those of the journal in `directory`, beginning with the one that stands there. Before a daemon opens the
    /// journal that is of segments alone that nobody adds to any more.
    pub(super) fn new(directory: &Path) -> Self {
        let checkpoints = Self {
            directory: directory.to_owned(),
            seen: Mutex::default(),
        };
        checkpoints.look();
        checkpoints
    }

    /// Takes the one that stands there now.
    pub(super) fn look(&self) {
        // A journal that has just begun has none, nor segments.
        let Ok(note) = std::fs::read_to_string(self.directory.join("checkpoint")) else {
            return;
        };
        if lock(&self.seen).last == note {
            return;
        }
        let numbers = Reader::open(&self.directory).and_then(|reader| reader.segments());
        if let Ok(numbers) = numbers {
            lock(&self.seen).take(note, &numbers);
        }
    }

    /// The newest one that vouches for nothing behind the segment `number`.
    pub(super) fn up_to(&self, number: u64) -> Option<Checkpoint> {
        let seen = lock(&self.seen);
        let (_, checkpoint) = seen.newest.range(..=number).next_back()?;
        Some(checkpoint.clone())
    }

    /// Lets go of those before the one that vouches for `seq`, which all copies have.
    pub(super) fn forget_before(&self, seq: u64) {
        lock(&self.seen)
            .newest
            .retain(|_, checkpoint| checkpoint.seq >= seq);
    }
}

impl Seen {
    fn take(&mut self, note: String, numbers: &[u64]) {
        let seq = note
            .lines()
            .find_map(|line| line.strip_prefix("seq ")?.parse().ok());
        let within = seq.and_then(|seq| {
            let number = numbers.iter().rev().find(|number| **number <= seq)?;
            Some((*number, seq))
        });
        if let Some((number, seq)) = within {
            let checkpoint = Checkpoint {
                seq,
                note: note.clone(),
            };
            self.newest.insert(number, checkpoint);
        }
        self.last = note;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_gets_no_checkpoint_that_vouches_for_more_than_it_has() {
        let mut seen = Seen::default();
        for (seq, numbers) in [
            (0, &[][..]),
            (5, &[1]),
            (9, &[1]),
            // Signed when the next segment had begun already.
            (15, &[1, 11]),
            (30, &[1, 11, 21]),
        ] {
            seen.take(format!("origin\n1\nroot\nseq {seq}\n\nsigned\n"), numbers);
        }
        let checkpoints = Checkpoints {
            directory: PathBuf::new(),
            seen: Mutex::new(seen),
        };
        let up_to = |number| checkpoints.up_to(number).map(|checkpoint| checkpoint.seq);
        assert_eq!(up_to(1), Some(9));
        assert_eq!(up_to(11), Some(15));
        assert_eq!(up_to(21), Some(30));
        checkpoints.forget_before(15);
        assert_eq!((up_to(1), up_to(11)), (None, Some(15)));
    }
}
