//! What a target was found to have, remembered from one daemon to the next.
//!
//! It spares looking, and proves nothing: a target is asked again, and what it no longer has goes to it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::DirBuilder,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::piece::{Piece, Sha256};
use crate::journal;

/// The file of one target.
#[derive(Debug)]
pub(super) struct Remembered {
    path: PathBuf,
    kept: Kept,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Which target, for people.
    target: String,
    /// By the number of its first record.
    segments: BTreeMap<u64, Segment>,
    /// Number of the last record that its checkpoint vouches for.
    vouched: u64,
}

/// A segment as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) bytes: u64,
    #[serde(with = "hex::serde")]
    pub(super) sha256: Sha256,
}

impl Remembered {
    /// What is remembered of `target` in the state folder `directory`; nothing, where that can't be read.
    pub(super) fn open(directory: &Path, target: &str) -> Self {
        let path = cursor(directory, "shipped", target);
        let read = std::fs::read(&path).map_err(|error| (error.kind(), error.to_string()));
        let kept = read.and_then(|bytes| {
            serde_json::from_slice(&bytes)
                .map_err(|error| (ErrorKind::InvalidData, error.to_string()))
        });
        let kept = kept.unwrap_or_else(|(kind, error)| {
            if kind != ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), error, "what was shipped isn't remembered: the target is asked");
            }
            Kept {
                target: target.to_owned(),
                ..Kept::default()
            }
        });
        Self { path, kept }
    }

    pub(super) fn segment(&self, number: u64) -> Option<Segment> {
        self.kept.segments.get(&number).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.segments.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.kept.segments.len()
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.kept.segments.keys().copied().collect()
    }

    pub(super) const fn vouched(&self) -> u64 {
        self.kept.vouched
    }

    pub(super) fn add(&mut self, number: u64, piece: &Piece) {
        let (bytes, sha256) = (piece.bytes, piece.sha256);
        self.kept.segments.insert(number, Segment { bytes, sha256 });
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.kept.segments.remove(&number);
    }

    /// Forgets segments that aren't here any more: what became of them at the target is its own affair.
    pub(super) fn keep_only(&mut self, here: &BTreeSet<u64>) {
        self.kept.segments.retain(|number, _| here.contains(number));
    }

    pub(super) const fn vouch(&mut self, seq: u64) {
        self.kept.vouched = seq;
    }

    /// What is to be written, and where to.
    pub(super) fn draft(&self) -> io::Result<(PathBuf, Vec<u8>)> {
        Ok((self.path.clone(), serde_json::to_vec(&self.kept)?))
    }
}

/// The file in the state folder `directory` in which it is remembered how far `target` is, of those in the folder
/// `kind`. Its name holds whatever a target may be called.
pub(crate) fn cursor(directory: &Path, kind: &str, target: &str) -> PathBuf {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, target.as_bytes());
    let name = hex::encode(hash.as_ref().get(..8).unwrap_or_default());
    directory.join(kind).join(format!("{name}.json"))
}

/// Has the file `path` hold `bytes`, all or nothing.
///
/// # Errors
/// Where the disk fails, or is full.
pub(crate) fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    journal::replace(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shipped_is_remembered_and_a_damaged_file_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Remembered::open(folder.path(), "/mnt/a");
        assert!(first.is_empty());
        let piece = Piece::text("segments/1.seg", b"s".to_vec());
        first.add(1, &piece);
        first.add(7, &piece);
        first.vouch(6);
        let (path, bytes) = first.draft().unwrap();
        save(&path, &bytes).unwrap();
        let mut again = Remembered::open(folder.path(), "/mnt/a");
        assert_eq!((again.segment(1), again.vouched()), (first.segment(1), 6));
        again.keep_only(&[7, 9].into());
        assert_eq!(again.numbers(), [7]);
        assert!(Remembered::open(folder.path(), "/mnt/b").is_empty());
        std::fs::write(&path, b"{\"target\":").unwrap();
        assert!(Remembered::open(folder.path(), "/mnt/a").is_empty());
    }
}
