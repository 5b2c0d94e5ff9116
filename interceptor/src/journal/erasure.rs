//! Erasure: what a session said can't be read any more, by anybody, while the chain and its proofs stay as they are.
//!
//! It is on record, on disk, that a session is erased before its key is destroyed, so whoever is interrupted goes on with
//! it; then the index forgets it. What stays in clear is the head of each part: whose it was, and how many records.

use std::{io, path::Path, sync::Arc};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Journal, JournalError, Stopped, block::Whose, disk::Local, encryption};

/// Name of the notice that a session was erased.
const ERASED: &str = "session_erased";
/// Name of the notice that sessions are encrypted from then on, which says with which keys.
const ENCRYPTED: &str = "encryption_began";

/// A session that was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Which.
    pub session: SessionId,
    /// Whose it was.
    pub agent: Box<str>,
    /// Who had it erased.
    pub by: Box<str>,
    /// What for, in their words.
    pub reason: Box<str>,
    /// When.
    #[serde(with = "crate::rfc3339")]
    pub at: Timestamp,
    /// The record that says so.
    pub seq: u64,
}

impl Erasure {
    /// The one that the record tells of, if it does.
    pub(crate) fn read(record: &Record) -> Option<Self> {
        let detail = told(record, ERASED)?;
        let of = |name: &str| detail(name).unwrap_or_default().into();
        Some(Self {
            session: detail("session")?.parse().ok()?,
            agent: of("agent"),
            by: of("by"),
            reason: of("reason"),
            at: record.time,
            seq: record.seq,
        })
    }
}

/// What the record says that sessions are encrypted with from then on, if it says that.
pub(crate) fn began(record: &Record) -> Option<&str> {
    told(record, ENCRYPTED)?("keys")
}

/// What the host's notice `name` says, if `record` is one.
fn told<'a>(record: &'a Record, name: &str) -> Option<impl Fn(&str) -> Option<&'a str>> {
    match (&record.event, record.session) {
        (Event::Event(notice), None) if &*notice.name == name => {
            Some(|name: &str| notice.detail.get(name).map(|value| &**value))
        }
        _ => None,
    }
}

/// Why a session wasn't erased.
#[derive(Debug, thiserror::Error)]
pub enum NotErased {
    /// There is none.
    #[error("there is no session {0}")]
    Unknown(SessionId),
    /// It was recorded in clear.
    #[error("session {0} was recorded in clear, so it can't be erased without what is beside it")]
    InClear(SessionId),
    /// It can't be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It can't be recorded.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It is to be on record, and its key is there still.
    #[error(
        "session {} is erased as soon as the disk takes it, and isn't yet: {error}; the same again goes on with it, and so does the next start",
        .erasure.session
    )]
    Later {
        /// What is to be done.
        erasure: Box<Erasure>,
        /// Why it isn't.
        error: String,
    },
}

impl Journal {
    /// Erases `session`, which `by` wants for this `reason`. Blocks for the disk.
    ///
    /// # Errors
    /// Where it was not recorded or in clear, that can't be recorded, or the disk fails.
    pub fn erase(&self, session: SessionId, by: &str, reason: &str) -> Result<Erasure, NotErased> {
        let agent = self.encrypted(session)?;
        let at = crate::clock::now();
        let event = Event::notice(
            ERASED,
            [
                ("session", session.to_string()),
                ("agent", agent.to_string()),
                ("by", by.to_owned()),
                ("reason", reason.to_owned()),
            ],
        );
        let seq = self.append(None, &Arc::from(""), at, [event])?;
        // From here on it is done, sooner or later.
        let erasure = Erasure {
            session,
            agent,
            by: by.into(),
            reason: reason.into(),
            at,
            seq,
        };
        match self.finish(&erasure) {
            Ok(()) => Ok(erasure),
            Err(error) => Err(NotErased::Later {
                erasure: Box::new(erasure),
                error,
            }),
        }
    }

    /// Destroys the key of what `erasure` says is erased, once it is on disk that it is. Blocks for that.
    ///
    /// # Errors
    /// Where the disk fails; for people.
    pub(crate) fn finish(&self, erasure: &Erasure) -> Result<(), String> {
        self.await_durable(erasure.seq)
            .map_err(|stopped| stopped.to_string())?;
        self.destroy(erasure).map_err(|error| error.to_string())
    }

    /// Whether the key of `session` is there still.
    pub(crate) fn has_key(&self, session: SessionId) -> bool {
        self.keys().has(session)
    }

    /// Goes on with what is on record from before: that sessions are encrypted with the keys `known`, and that those of
    /// `erased` are destroyed.
    ///
    /// # Errors
    /// Where the keys are other ones or gone, or the disk fails.
    pub(crate) fn take_up_keys(
        &self,
        known: Option<&str>,
        erased: impl IntoIterator<Item = Erasure>,
    ) -> Result<(), JournalError> {
        let path = encryption::path(self.directory());
        let own = self.keys().id();
        match (known, own) {
            (None, Some(own)) => {
                let event = Event::notice(ENCRYPTED, [("keys", own)]);
                let recorded = self.append(None, &Arc::from(""), crate::clock::now(), [event]);
                // Before anything is that is encrypted with them, so that whoever reads on knows which they are.
                let is_there = recorded.and_then(|seq| self.await_durable(seq));
                is_there.map_err(|stopped| unwritable(&path, io::Error::other(stopped)))?;
            }
            (Some(known), own) if own.as_deref() != Some(known) => {
                let what = "these aren't the keys that this journal's sessions are encrypted with, which is on record: put the file back from a backup; without it they can't be read any more, then keep the folder as evidence under another name and start a new one";
                return Err(JournalError::Encryption {
                    path,
                    what: what.to_owned(),
                });
            }
            _ => {}
        }
        for erasure in erased.into_iter().filter(|one| self.has_key(one.session)) {
            let destroyed = self.destroy(&erasure);
            destroyed.map_err(|error| unwritable(&path, error))?;
        }
        Ok(())
    }

    /// Whether what is recorded now is encrypted.
    pub(crate) fn encrypts(&self) -> bool {
        self.keys().encrypts()
    }

    /// Destroys the key of what is erased, of which it is on record that it is.
    fn destroy(&self, erasure: &Erasure) -> io::Result<()> {
        let of = (erasure.session, erasure.seq);
        self.keys().erase(&Local, self.directory(), of)?;
        self.index().erase(erasure.session);
        Ok(())
    }

    /// Whose `session` is, all of which is encrypted.
    fn encrypted(&self, session: SessionId) -> Result<Box<str>, NotErased> {
        let reader = self.reader()?;
        let mut agent = None;
        for location in self.index().blocks_of(session) {
            let look = reader.of_block(location, |header, stored| {
                let parts = header.parts(stored)?;
                let own = parts.iter().find(|part| part.may_have(Some(session)));
                Ok(own.map(|part| match (part.whose, part.sealed) {
                    (Whose::Session(_), Some(sealed)) => Some(sealed.agent.into()),
                    _ => None,
                }))
            });
            match look {
                Ok(Some(None)) => return Err(NotErased::InClear(session)),
                Ok(Some(found)) => agent = found,
                // Since it was asked where they are.
                Ok(None) | Err(JournalError::Removed(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        agent.ok_or(NotErased::Unknown(session))
    }
}

fn unwritable(path: &Path, error: io::Error) -> JournalError {
    super::io_error("writing", path)(error)
}
