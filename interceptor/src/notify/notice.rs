//! What there is to tell, and what goes back to the daemon: who was told, and who clicked.

use std::fmt;

use interceptor_core::{
    operation::Digest,
    record::{ApprovalId, Choice, Timestamp},
};
use serde::{Deserialize, Serialize};

use crate::approval::{Change, Content, Detail, Standing, State, Summary};

/// What can be told of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// People are asked.
    Requested,
    /// Further groups are.
    Escalated,
    /// It is over.
    Ended,
    /// Somebody let it through alone, in an emergency. Every notifier tells, whatever its filters.
    Overridden,
    /// Nothing goes by it any more.
    Revoked,
}

impl Event {
    /// As it is written in the configuration and on record.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Escalated => "escalated",
            Self::Ended => "ended",
            Self::Overridden => "overridden",
            Self::Revoked => "revoked",
        }
    }

    /// Whether it asks people for something, which they needn't know of any more once the approval has ended.
    #[must_use]
    pub const fn asks(self) -> bool {
        matches!(self, Self::Requested | Self::Escalated)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// When.
    #[serde(with = "crate::rfc3339")]
    pub time: Timestamp,
    /// To what.
    pub subject: Subject,
}

/// What something happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A request for approval.
    Request {
        /// It, as it is now.
        summary: Box<Summary>,
        /// Its content, where there is one.
        content: Option<Content>,
        /// How many bound values and further wire facts it has, which the console alone shows.
        values: usize,
    },
    /// What was approved and let more through.
    Standing(Box<Standing>),
}

impl Notice {
    /// What is to be told of `change` at `time`, if anything is. `detail` gives the content of a request that waits.
    #[must_use]
    pub fn of(change: &Change, detail: Option<&Detail>, time: Timestamp) -> Option<Self> {
        let (event, summary) = match change {
            Change::Requested(summary) => (Event::Requested, summary),
            Change::Escalated(summary) => (Event::Escalated, summary),
            Change::Ended(summary) if matches!(summary.state, State::Overridden { .. }) => {
                (Event::Overridden, summary)
            }
            Change::Ended(summary) => (Event::Ended, summary),
            Change::Revoked(standing) => {
                return Some(Self {
                    event: Event::Revoked,
                    time,
                    subject: Subject::Standing(standing.clone()),
                });
            }
            Change::Estimated(_)
            | Change::Voted(_)
            | Change::Left(_)
            | Change::Resumed(_)
            | Change::Admitted(_)
            | Change::Missed { .. } => return None,
        };
        let subject = Subject::Request {
            summary: summary.clone(),
            content: detail.and_then(|detail| detail.content.clone()),
            values: detail.map_or(0, |detail| detail.parameters.len() + detail.options.len()),
        };
        Some(Self {
            event,
            time,
            subject,
        })
    }

    /// The approval that it is about.
    #[must_use]
    pub fn approval(&self) -> ApprovalId {
        match &self.subject {
            Subject::Request { summary, .. } => summary.id,
            Subject::Standing(standing) => standing.id,
        }
    }
}

/// What became of an attempt to tell somebody, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The same for every attempt at one notice by one notifier, also of the next daemon: receivers drop repeats by it.
    pub id: Box<str>,
    /// The approval that it is about.
    pub approval: ApprovalId,
    /// Which notifier, by name.
    pub notifier: Box<str>,
    /// What is told.
    pub event: Event,
    /// Which attempt it was, from 1; 0 where there was none.
    pub attempt: u32,
    /// How it went.
    pub outcome: Outcome,
}

/// How an attempt to tell somebody went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// They were told.
    Delivered {
        /// What the receiver calls the message, where it can be changed later: see [`Means::posted`](super::Means).
        reference: Option<Box<str>>,
        /// What wasn't quite right.
        note: Option<Box<str>>,
    },
    /// It failed, and is tried again.
    Failed {
        /// Why.
        why: Box<str>,
        /// In so many seconds.
        again_in_s: u64,
    },
    /// It failed for the last time, and is kept among the dead letters.
    Dead {
        /// Why.
        why: Box<str>,
    },
    /// It isn't told any more: its approval has ended meanwhile.
    Withdrawn {
        /// Why.
        why: Box<str>,
    },
}

/// What somebody in a chat wants an approval to become. It is the daemon that decides whether they may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Its number, for [`Notifiers::answer`](super::Notifiers::answer).
    pub id: u64,
    /// The notifier that it comes by.
    pub notifier: Box<str>,
    /// Who, as the configuration maps them.
    pub person: Box<str>,
    /// Which approval.
    pub approval: ApprovalId,
    /// The digest of what they were shown. It has to be that of the approval.
    pub digest: Digest,
    /// What they want.
    pub choice: Choice,
}

/// A message that was delivered and can still be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posted {
    /// By which notifier.
    pub notifier: Box<str>,
    /// About which approval.
    pub approval: ApprovalId,
    /// The digest that its buttons carry.
    pub digest: Digest,
    /// What the receiver calls it, as in [`Outcome::Delivered`].
    pub reference: Box<str>,
}
