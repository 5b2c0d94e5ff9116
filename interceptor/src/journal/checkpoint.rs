//! Checkpoints: signed heads of the tree over all blocks, in the formats that transparency logs use.
//!
//! The tree is that over the blocks' chain values; the note is C2SP's signed-note with an Ed25519
//! signature, its text C2SP's tlog-checkpoint: origin, size, root, and one extension line with the
//! number of the last record.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    digest,
    signature::{self, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{JournalError, block::Hash, disk::Disk, io_error, tree::Tree};

/// First line of every checkpoint, and the key's name.
const ORIGIN: &str = "interceptor/journal";
/// C2SP's algorithm byte for Ed25519.
const ED25519: u8 = 0x01;

/// The journal's signing key.
pub(super) struct Key {
    pair: Ed25519KeyPair,
    /// What its file has.
    text: String,
}

/// A public key that checkpoints are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey(Vec<u8>);

/// A checkpoint whose signature is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Blocks in the tree.
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) last_seq: u64,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "the key of {:?}", self.public())
    }
}

/// What is wrong with a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    /// It is not what was signed.
    #[error("{0}")]
    Changed(&'static str),
    /// It may be, by somebody else.
    #[error("a checkpoint is signed with another key")]
    AnotherKey,
}

impl Key {
    /// Reads the key of a state folder, or makes one for a journal that was never signed.
    pub(super) fn open<D: Disk>(disk: &D, directory: &Path) -> Result<Self, JournalError> {
        let path = directory.join("journal.key");
        let bad = |what: &str| JournalError::Key {
            path: path.clone(),
            what: what.to_owned(),
        };
        let text = match disk.read(&path) {
            Ok(text) => String::from_utf8(text).map_err(|_| bad("it is not text"))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match disk.open(&path_of(directory)) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Ok(_) => {
                        return Err(bad(
                            "it is missing, and the journal was signed with it; put it back, or keep the folder as evidence under another name and start a new one",
                        ));
                    }
                    Err(error) => return Err(io_error("reading", &path_of(directory))(error)),
                }
                return Self::fresh().map_err(bad);
            }
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        Self::parse(text).map_err(bad)
    }

    /// A key that nobody had before.
    ///
    /// # Errors
    /// Where the system has no randomness; for people.
    pub(super) fn fresh() -> Result<Self, &'static str> {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| "the system has no randomness")?;
        Self::parse(format!("{}\n", hex::encode(seed)))
    }

    /// The key whose file has `text`.
    ///
    /// # Errors
    /// Where that is none; for people.
    pub(super) fn parse(text: String) -> Result<Self, &'static str> {
        let seed = hex::decode(text.trim()).map_err(|_| "it is not 64 hexadecimal digits")?;
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| "it is not an Ed25519 seed")?;
        Ok(Self { pair, text })
    }

    /// What its file has.
    pub(super) fn secret(&self) -> &str {
        &self.text
    }

    /// Has a journal that has no block yet begin: with its key on disk for good, and with a checkpoint, so that
    /// one that is gone was taken. What an earlier attempt has left of either may be seen here and not be on
    /// disk, so it is written anew.
    pub(super) fn begin<D: Disk>(&self, disk: &D, directory: &Path) -> Result<(), JournalError> {
        let path = directory.join("journal.key");
        disk.replace(&path, self.text.as_bytes())
            .map_err(io_error("writing", &path))?;
        self.publish(disk, directory, &Checkpoint::of(&Tree::default(), 0))
            .map_err(io_error("signing", directory))
    }

    /// Has the public key stand beside the journal, for who checks it. Only for a journal that was found to be
    /// signed with this key: the one that stands there is evidence too.
    pub(super) fn show<D: Disk>(&self, disk: &D, directory: &Path) -> Result<(), JournalError> {
        let path = directory.join("journal.pub");
        let text = self.public().to_text();
        if disk.read(&path).ok().as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        disk.replace(&path, text.as_bytes())
            .map_err(io_error("writing", &path))
    }

    pub(super) fn public(&self) -> PublicKey {
        PublicKey(self.pair.public_key().as_ref().to_vec())
    }

    /// Signs a tree and replaces the state folder's checkpoint, as a whole: a reader sees the old one or
    /// the new one, and each vouches for all before it.
    pub(super) fn publish<D: Disk>(
        &self,
        disk: &D,
        directory: &Path,
        checkpoint: &Checkpoint,
    ) -> io::Result<()> {
        disk.replace(&path_of(directory), self.sign(checkpoint).as_bytes())
    }

    /// The signed note for a tree.
    fn sign(&self, checkpoint: &Checkpoint) -> String {
        self.note(&checkpoint.text())
    }

    /// `text` as a signed note. Its first line says what it is, so that none passes for one of another kind.
    pub(super) fn note(&self, text: &str) -> String {
        let mut signature = self.public().id().to_vec();
        signature.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n\u{2014} {ORIGIN} {}\n", STANDARD.encode(signature))
    }
}

impl PublicKey {
    /// C2SP's text form of a verifier key: name, id, algorithm and key.
    pub(super) fn to_text(&self) -> String {
        let mut key = vec![ED25519];
        key.extend_from_slice(&self.0);
        format!(
            "{ORIGIN}+{}+{}\n",
            hex::encode(self.id()),
            STANDARD.encode(key)
        )
    }

    /// Reads the text form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_suffix('\n').unwrap_or(text).splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let key = STANDARD.decode(key).ok()?;
        let (algorithm, key) = key.split_first()?;
        let public = Self(key.to_vec());
        (name == ORIGIN
            && *algorithm == ED25519
            && key.len() == 32
            && id == hex::encode(public.id()))
        .then_some(public)
    }

    fn id(&self) -> [u8; 4] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(ORIGIN.as_bytes());
        context.update(&[b'\n', ED25519]);
        context.update(&self.0);
        let mut id = [0; 4];
        id.copy_from_slice(context.finish().as_ref().get(..4).unwrap_or(&[0; 4]));
        id
    }

    /// Reads a checkpoint; says what is wrong with it where something is.
    pub(super) fn verify(&self, note: &str) -> Result<Checkpoint, Bad> {
        let text = self.text(note)?;
        Checkpoint::parse(&text).ok_or(Bad::Changed("a checkpoint's text is malformed"))
    }

    /// Whether it is said to have signed `note`: where its signature is wrong, somebody has changed that.
    pub(super) fn is_named_in(&self, note: &str) -> bool {
        !matches!(self.text(note), Err(Bad::AnotherKey))
    }

    /// The text of a signed note.
    pub(super) fn text(&self, note: &str) -> Result<String, Bad> {
        let (text, signatures) = note
            .split_once("\n\n")
            .ok_or(Bad::Changed("a checkpoint has no signature"))?;
        let text = format!("{text}\n");
        let line = signatures
            .strip_suffix('\n')
            .ok_or(Bad::Changed("a checkpoint's signature is cut short"))?;
        let encoded = line
            .strip_prefix(&format!("\u{2014} {ORIGIN} "))
            .ok_or(Bad::Changed("a checkpoint is signed by somebody else"))?;
        let bytes = STANDARD
            .decode(encoded)
            .map_err(|_| Bad::Changed("a checkpoint's signature is not base64"))?;
        let (id, signature) = bytes
            .split_first_chunk::<4>()
            .ok_or(Bad::Changed("a checkpoint's signature is too short"))?;
        if *id != self.id() {
            return Err(Bad::AnotherKey);
        }
        UnparsedPublicKey::new(&signature::ED25519, &self.0)
            .verify(text.as_bytes(), signature)
            .map_err(|_| Bad::Changed("a checkpoint's signature is wrong"))?;
        Ok(text)
    }
}

/// Where a state folder's checkpoint is.
pub(super) fn path_of(directory: &Path) -> PathBuf {
    directory.join("checkpoint")
}

impl Checkpoint {
    /// What there is to sign of `tree`, whose last record is `last_seq`.
    pub(super) fn of(tree: &Tree, last_seq: u64) -> Self {
        Self {
            size: tree.size(),
            root: tree.root(),
            last_seq,
        }
    }

    /// What `note` says, whoever has signed it: what to look for, and nothing to believe.
    pub(super) fn claimed(note: &str) -> Option<Self> {
        let (text, _) = note.split_once("\n\n")?;
        Self::parse(&format!("{text}\n"))
    }

    /// The checkpoint of a state folder, checked with its key; `None` where there is none.
    pub(super) fn read<D: Disk>(
        disk: &D,
        directory: &Path,
        key: &PublicKey,
    ) -> Result<Option<Self>, JournalError> {
        let path = path_of(directory);
        match disk.read(&path) {
            Ok(note) => key
                .verify(&String::from_utf8_lossy(&note))
                .map(Some)
                .map_err(|bad| JournalError::Contradicted {
                    path: directory.to_owned(),
                    what: bad.to_string(),
                }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    fn text(&self) -> String {
        format!(
            "{ORIGIN}\n{}\n{}\nseq {}\n",
            self.size,
            STANDARD.encode(self.root),
            self.last_seq
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != ORIGIN {
            return None;
        }
        let size = lines.next()?.parse().ok()?;
        let root = STANDARD.decode(lines.next()?).ok()?.try_into().ok()?;
        let last_seq = lines.next()?.strip_prefix("seq ")?.parse().ok()?;
        lines.next().is_none().then_some(Self {
            size,
            root,
            last_seq,
        })
    }
}
