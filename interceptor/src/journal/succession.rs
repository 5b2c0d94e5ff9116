//! The succession of a journal's keys: which key came after which, from which block on.
//!
//! Each change of the key is a record of the host's that has a statement signed by the key before: both public keys,
//! and the tree over all blocks before the one that the record is in. That key vouches for those blocks and for no
//! other; the new one for every tree with the record in it. So whoever kept any of the keys finds all that follow, and
//! what an old key signs for a later place shows. The statements also stand one behind the other in `journal.keys` for
//! who shows something without its blocks; what counts there are their signatures.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use interceptor_core::record::{Event, Record};

use super::checkpoint::{Bad, Checkpoint, Key, PublicKey};

/// First line of every statement.
const ORIGIN: &str = "interceptor/journal-key";

/// Name of the notice that the journal's key was replaced.
pub const KEY_ROTATED: &str = "journal_key_rotated";

/// The file with all statements.
pub(super) const STATEMENTS: &str = "journal.keys";

/// A change of the key, signed by the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rotation {
    pub(super) old: PublicKey,
    pub(super) new: PublicKey,
    /// All that the old key vouches for: what was before the block with the record.
    pub(super) up_to: Checkpoint,
}

impl Rotation {
    /// Its statement, by the `old` key, which has signed or may have signed what `up_to` says.
    pub(super) fn sign(old: &Key, new: &PublicKey, up_to: &Checkpoint) -> String {
        old.note(&format!(
            "{ORIGIN}\nold {}new {}journal {} {} {}\n",
            old.public().to_text(),
            new.to_text(),
            up_to.size,
            STANDARD.encode(up_to.root),
            up_to.last_seq,
        ))
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// Where it is none, or not signed by the key that it says was the one before; for people.
    pub(super) fn read(note: &str) -> Result<Self, String> {
        let (text, _) = note.split_once("\n\n").ok_or("it has no signature")?;
        let rotation =
            Self::parse(text).ok_or("it is not a statement of a key that is replaced")?;
        match rotation.old.text(note) {
            Ok(_) => Ok(rotation),
            Err(Bad::AnotherKey) => Err("it isn't signed by the key that it replaces".to_owned()),
            Err(bad) => Err(bad.to_string().replace("a checkpoint", "the statement")),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != ORIGIN {
            return None;
        }
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let old = PublicKey::parse(value("old")?)?;
        let new = PublicKey::parse(value("new")?)?;
        let mut journal = value("journal")?.split(' ');
        let up_to = Checkpoint {
            size: journal.next()?.parse().ok()?,
            root: STANDARD.decode(journal.next()?).ok()?.try_into().ok()?,
            last_seq: journal.next()?.parse().ok()?,
        };
        let is_all = journal.next().is_none() && lines.next().is_none();
        is_all.then_some(Self { old, new, up_to })
    }

    /// What is put on record of it.
    pub(super) fn event(&self, statement: String, by: &str, reason: &str) -> Event {
        Event::notice(
            KEY_ROTATED,
            [
                ("old", self.old.to_text().trim_end().to_owned()),
                ("new", self.new.to_text().trim_end().to_owned()),
                ("up_to", self.up_to.last_seq.to_string()),
                ("by", by.to_owned()),
                ("reason", reason.to_owned()),
                ("statement", statement),
            ],
        )
    }
}

/// The statement in `record`, if it says that the key was replaced.
pub(super) fn statement(record: &Record) -> Option<&str> {
    // Most records are of sessions.
    if record.session.is_some() || !record.agent.is_empty() {
        return None;
    }
    let Event::Event(notice) = &record.event else {
        return None;
    };
    let is_it = &*notice.name == KEY_ROTATED;
    is_it.then(|| notice.detail.get("statement").map_or("", |text| text))
}

/// The notes in `text`, one behind the other with an empty line between them.
pub(crate) fn notes(text: &str) -> Vec<String> {
    // A note is a text and its signatures, with an empty line between the two.
    let parts: Vec<&str> = text.trim_end_matches('\n').split("\n\n").collect();
    let notes = parts.chunks(2).filter(|note| note.len() == 2);
    notes
        .map(|note| format!("{}\n", note.join("\n\n")))
        .collect()
}

/// The statements that stand beside the journal in `directory`: none where its key was never replaced.
pub(super) fn beside(directory: &Path) -> Vec<String> {
    notes(&fs::read_to_string(directory.join(STATEMENTS)).unwrap_or_default())
}

/// `key` and those that came after it, as `statements` say. What isn't signed by the key before leads nowhere.
pub(super) fn follow(key: PublicKey, statements: &[String]) -> Vec<PublicKey> {
    let mut keys = vec![key];
    for statement in statements {
        if let Ok(rotation) = Rotation::read(statement)
            && keys.last() == Some(&rotation.old)
        {
            keys.push(rotation.new);
        }
    }
    keys
}

/// What tells the journal in `directory` from all others, for as long as it is there: the text of its first key.
pub(crate) fn identity(directory: &Path) -> Vec<u8> {
    let statements = beside(directory);
    let first = statements.first().map(|first| Rotation::read(first));
    match first {
        Some(Ok(rotation)) => rotation.old.to_text().into_bytes(),
        _ => fs::read(directory.join("journal.pub")).unwrap_or_default(),
    }
}

/// Whether the journal in `directory`, whose key is `now`, was once signed with the key `earlier`.
pub(crate) fn is_of_one_journal(directory: &Path, earlier: &[u8], now: &[u8]) -> bool {
    let parse = |text| std::str::from_utf8(text).ok().and_then(PublicKey::parse);
    let (Some(earlier), Some(now)) = (parse(earlier), parse(now)) else {
        return false;
    };
    follow(earlier, &beside(directory)).contains(&now)
}

/// Whether `note` is a checkpoint that was signed with `key`.
pub(crate) fn is_signed_with(note: &[u8], key: &[u8]) -> bool {
    let key = std::str::from_utf8(key).ok().and_then(PublicKey::parse);
    key.is_some_and(|key| key.verify(&String::from_utf8_lossy(note)).is_ok())
}

/// The keys of a journal and where each was in force, as its records say.
#[derive(Debug, Clone, Default)]
pub(super) struct Succession {
    turns: Vec<(Rotation, u64)>,
}

/// A succession, seen from one key of it that is believed.
#[derive(Debug)]
pub(super) struct Believed {
    /// All keys, from the journal's first on, each with the blocks that it may vouch for: from and to.
    keys: Vec<(PublicKey, u64, u64)>,
    /// The record that replaced each, but for the last.
    replaced: Vec<u64>,
    /// Which of them is believed.
    place: usize,
    /// No record names it, though others are named.
    pub(super) is_stranger: bool,
}

impl Succession {
    /// Takes the rotation that the record `seq` has; says what is wrong with it. That it is where it says is for who
    /// reads the blocks to see.
    ///
    /// # Errors
    /// Where it doesn't follow those before; for people.
    pub(super) fn take(&mut self, rotation: Rotation, seq: u64) -> Result<(), &'static str> {
        if let Some((before, _)) = self.turns.last() {
            if before.new != rotation.old {
                return Err("it is signed by a key that was not in force there");
            }
            if before.up_to.size >= rotation.up_to.size {
                return Err("it stands where the key before it was not in force yet");
            }
        }
        self.turns.push((rotation, seq));
        Ok(())
    }

    /// How often the key was replaced.
    pub(super) const fn rotations(&self) -> u64 {
        self.turns.len() as u64
    }

    /// What `key` makes believable.
    pub(super) fn believe(&self, key: PublicKey) -> Believed {
        let first = self.turns.first().map_or(&key, |(first, _)| &first.old);
        let mut keys = vec![(first.clone(), 0, u64::MAX)];
        for (rotation, _) in &self.turns {
            if let Some((_, _, to)) = keys.last_mut() {
                *to = rotation.up_to.size;
            }
            keys.push((rotation.new.clone(), rotation.up_to.size + 1, u64::MAX));
        }
        match keys.iter().position(|(known, ..)| *known == key) {
            Some(place) => Believed {
                keys,
                replaced: self.turns.iter().map(|(_, seq)| *seq).collect(),
                place,
                is_stranger: false,
            },
            None => Believed {
                keys: vec![(key, 0, u64::MAX)],
                replaced: Vec::new(),
                place: 0,
                is_stranger: true,
            },
        }
    }
}

impl Believed {
    /// The key that is in force at the end.
    pub(super) fn last(&self) -> Option<&PublicKey> {
        self.keys.last().map(|(key, ..)| key)
    }

    pub(super) fn knows(&self, key: &PublicKey) -> bool {
        self.keys.iter().any(|(known, ..)| known == key)
    }

    /// Reads a checkpoint that is signed by the key that was in force where it belongs. The journal's own `is_latest`:
    /// it has to be signed by the key that is believed or a later one, since without that nothing that is believed
    /// vouches for the records that name the others.
    ///
    /// # Errors
    /// What is wrong with it; for people.
    pub(super) fn verify(&self, note: &str, is_latest: bool) -> Result<Checkpoint, (Bad, String)> {
        let signer = self.keys.iter().enumerate();
        let signer = signer
            .filter(|(_, (key, ..))| key.is_named_in(note))
            .map(|(place, (key, from, to))| (place, key, *from, *to))
            .next();
        let Some((place, key, from, to)) = signer else {
            return Err((Bad::AnotherKey, Bad::AnotherKey.to_string()));
        };
        let checkpoint = key.verify(note).map_err(|bad| (bad, bad.to_string()))?;
        let record = |place: usize| self.replaced.get(place).copied().unwrap_or_default();
        let what = if checkpoint.size > to {
            format!(
                "a checkpoint of {} blocks is signed with a key that record {} had replaced: whoever has the old key goes on signing with it",
                checkpoint.size,
                record(place)
            )
        } else if checkpoint.size < from {
            format!(
                "a checkpoint of {} blocks is signed with a key that record {}, behind those, put in force",
                checkpoint.size,
                record(place.saturating_sub(1))
            )
        } else if is_latest && place < self.place {
            format!(
                "a checkpoint is signed with a key that was replaced, by record {}, before the one that is believed came into force",
                record(place)
            )
        } else {
            return Ok(checkpoint);
        };
        Err((Bad::AnotherKey, what))
    }
}
