//! How notifiers do, as people are shown it.

use interceptor_core::record::{ApprovalId, Timestamp};
use serde::{Deserialize, Serialize};

use super::notice::Event;

/// How a notifier does, as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifierStatus {
    /// Its name.
    pub name: Box<str>,
    /// Which kind it is.
    pub kind: Box<str>,
    /// What it does.
    pub state: NotifierState,
    /// Notices that wait.
    pub queued: usize,
    /// Notices that were delivered since the start.
    pub delivered: u64,
    /// Questions that ended before they could be told.
    pub withdrawn: u64,
    /// Those of `withdrawn` and `dead` that had to go because there were too many.
    pub crowded_out: u64,
    /// Since when nothing can be delivered.
    #[serde(
        with = "crate::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub failing_since: Option<Timestamp>,
    /// Why the last attempt failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What couldn't be delivered.
    pub dead: Vec<DeadLetter>,
    /// Dead letters that had to go because there were too many.
    pub dead_forgotten: u64,
    /// Reports of deliveries that the daemon didn't take in time.
    pub unreported: u64,
    /// How the connection does by which clicks come, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// What a notifier does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotifierState {
    /// There is nothing to tell.
    Idle,
    /// It tells.
    Delivering,
    /// The last attempt failed.
    Failing,
}

/// A notice that couldn't be delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its id, for [`Notifiers::redeliver`](super::Notifiers::redeliver).
    pub id: Box<str>,
    /// The approval that it is about.
    pub approval: ApprovalId,
    /// What it tells.
    pub event: Event,
    /// The agent, inert.
    pub agent: String,
    /// When that happened.
    #[serde(with = "crate::rfc3339")]
    pub time: Timestamp,
    /// When it was given up.
    #[serde(with = "crate::rfc3339")]
    pub given_up: Timestamp,
    /// After how many attempts.
    pub attempts: u32,
    /// Why.
    pub why: String,
}

/// A dead letter that can't be delivered again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedeliverError {
    /// There is none of this id.
    #[error("there is no dead letter `{0}`; `status` lists those that there are")]
    Unknown(Box<str>),
}
