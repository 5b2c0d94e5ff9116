//! Another signing key, at somebody's request: the writer makes it, since it alone knows what the old one has signed.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Journal, Stopped};
use crate::sync::lock;

/// How long who asks waits for a disk that takes its time.
const PATIENCE: Duration = Duration::from_secs(15);

/// A key that was replaced, and the one in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The record that says so.
    pub seq: u64,
    /// The public key that was replaced, as a verifier key of C2SP's signed notes.
    pub old: String,
    /// The public key in force.
    pub new: String,
    /// The last record that the old one vouches for.
    pub up_to: u64,
}

/// Why the key wasn't replaced.
#[derive(Debug, thiserror::Error)]
pub enum NotRotated {
    /// Another rotation isn't over.
    #[error("the key is just being replaced")]
    Busy,
    /// The new key can't be kept.
    #[error("a new key can't be kept: {0}")]
    Disk(io::Error),
    /// That can't be recorded.
    #[error(transparent)]
    Stopped(Stopped),
    /// It may be on record, and is not in force yet.
    #[error(
        "the disk takes its time: as soon as the record journal_key_rotated is on it the new key is in force"
    )]
    Unfinished,
}

/// Who wants another key.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) by: String,
    pub(super) reason: String,
    answer: SyncSender<Result<Rotated, NotRotated>>,
}

impl Asked {
    pub(super) fn answer(self, answer: Result<Rotated, NotRotated>) {
        // Who lost patience is told by the record.
        let _ = self.answer.try_send(answer);
    }
}

impl Journal {
    /// Has the journal be signed with a new key from now on, which is on record with the reason that `by` gives.
    /// Returns once the new key has signed and the old one is destroyed. Blocks.
    ///
    /// # Errors
    /// Where the journal takes no records now or the disk fails.
    pub fn rotate(&self, by: &str, reason: &str) -> Result<Rotated, NotRotated> {
        let (answer, answered) = mpsc::sync_channel(1);
        let mut waiting = lock(&self.shared.waiting);
        if let Some(stopped) = waiting.stopped() {
            return Err(NotRotated::Stopped(stopped.clone()));
        }
        if waiting.closing {
            return Err(NotRotated::Stopped(Stopped("the daemon stops".into())));
        }
        if waiting.rotate.is_some() {
            return Err(NotRotated::Busy);
        }
        waiting.rotate = Some(Asked {
            by: by.to_owned(),
            reason: reason.to_owned(),
            answer,
        });
        drop(waiting);
        self.shared.wake.notify_one();
        match answered.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(NotRotated::Unfinished),
            Err(RecvTimeoutError::Disconnected) => {
                Err(NotRotated::Stopped(Stopped("its writer has ended".into())))
            }
        }
    }
}
