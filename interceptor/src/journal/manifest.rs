//! Manifests: who made a file out of the journal, when, of what; signed with the journal's key.
//!
//! A signed note of C2SP, as checkpoints are, with a first line of its own, so that neither passes for the other. It
//! vouches for the file's hash, and says up to where the journal was signed then: what is in the file can be held to
//! the journal later.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use interceptor_core::record::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    block::Hash,
    checkpoint::{Bad, Checkpoint, Key, PublicKey},
    succession,
};
use crate::rfc3339;

/// First line of every manifest.
const ORIGIN: &str = "interceptor/export";
/// Most bytes of what a text may say.
const TEXT_BYTES_MAX: usize = 1_024;

/// A file that was made of what is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// SHA-256 of all of it, in hexadecimal digits.
    #[serde(with = "hex::serde")]
    pub sha256: Hash,
    /// Its size.
    pub bytes: u64,
    /// Its format, as `export --format` names it.
    pub format: String,
    /// What was asked for, in words.
    pub asked: String,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// The file.
    #[serde(flatten)]
    pub made: Made,
    /// Who asked for it, as records name them.
    pub by: String,
    /// The host that it was made on.
    pub host: String,
    /// When.
    pub time: Timestamp,
    /// The last record that was signed then, the one of this export included.
    pub signed_up_to: u64,
    #[serde(skip)]
    journal: (u64, Hash),
}

impl Made {
    /// What is wrong with it, for people.
    #[must_use]
    pub fn flaw(&self) -> Option<&'static str> {
        let is_text = |text: &str| {
            !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control)
        };
        (!is_text(&self.format) || !is_text(&self.asked))
            .then_some("a format and what was asked for are a line of at most 1,024 bytes each")
    }
}

impl Manifest {
    /// What `by` made on `host` at `time`, with the journal as `checkpoint` has it.
    pub(super) fn new(
        made: Made,
        by: &str,
        host: &str,
        time: Timestamp,
        checkpoint: &Checkpoint,
    ) -> Self {
        // Lines are what it consists of.
        let line = |text: &str| text.replace(char::is_control, "\u{fffd}");
        Self {
            made,
            by: line(by),
            host: line(host),
            time,
            signed_up_to: checkpoint.last_seq,
            journal: (checkpoint.size, checkpoint.root),
        }
    }

    /// As a signed note, with the statements of the keys that were before `key` behind it.
    pub(super) fn sign(&self, key: &Key, rotations: &[String]) -> String {
        let (size, root) = &self.journal;
        let note = key.note(&format!(
            "{ORIGIN}\nsha256 {}\nbytes {}\nformat {}\nasked {}\nby {}\nhost {}\ntime {}\njournal {size} {} {}\n",
            hex::encode(self.made.sha256),
            self.made.bytes,
            self.made.format,
            self.made.asked,
            self.by,
            self.host,
            self.time,
            STANDARD.encode(root),
            self.signed_up_to,
        ));
        let rotations = rotations.iter().map(String::as_str);
        let all: Vec<&str> = [&*note].into_iter().chain(rotations).collect();
        all.join("\n")
    }

    /// Whether `text` begins as a manifest does.
    #[must_use]
    pub fn is_one(text: &[u8]) -> bool {
        text.strip_prefix(ORIGIN.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"\n"))
    }

    /// Reads the manifest in `text`, signed with `key`, a verifier key, or with one that followed it as the statements
    /// behind the manifest say.
    ///
    /// # Errors
    /// Where the key is none, or the note isn't what it has signed; for people.
    pub fn verify(text: &str, key: &str) -> Result<Self, String> {
        let key = PublicKey::parse(key).ok_or("the key is not a public key of a journal")?;
        let notes = succession::notes(text);
        let (note, rotations) = match notes.split_first() {
            Some((note, rotations)) if !rotations.is_empty() => (note.as_str(), rotations),
            // What is no note is told so as it is.
            _ => (text, &[][..]),
        };
        let followed = succession::follow(key.clone(), rotations);
        let signer = followed.into_iter().find(|key| key.is_named_in(note));
        let text = signer.unwrap_or(key).text(note).map_err(|bad| match bad {
            Bad::AnotherKey => "the manifest is signed with another key, and with none that followed the one that was given; if the journal's key was replaced since it was made, an earlier one is needed".to_owned(),
            Bad::Changed(_) => bad.to_string().replace("a checkpoint", "the manifest"),
        })?;
        Self::parse(&text).ok_or_else(|| "what was signed is not a manifest".to_owned())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != ORIGIN {
            return None;
        }
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let made = Made {
            sha256: hex::decode(value("sha256")?).ok()?.try_into().ok()?,
            bytes: value("bytes")?.parse().ok()?,
            format: value("format")?.to_owned(),
            asked: value("asked")?.to_owned(),
        };
        let by = value("by")?.to_owned();
        let host = value("host")?.to_owned();
        let time = rfc3339::parse(value("time")?).ok()?;
        let mut journal = value("journal")?.split(' ');
        let size = journal.next()?.parse().ok()?;
        let root = STANDARD.decode(journal.next()?).ok()?.try_into().ok()?;
        let signed_up_to = journal.next()?.parse().ok()?;
        let is_all = journal.next().is_none() && lines.next().is_none();
        is_all.then_some(Self {
            made,
            by,
            host,
            time,
            signed_up_to,
            journal: (size, root),
        })
    }
}
