//! What the queue is given and what it answers.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use interceptor_core::{
    operation::{Digest, Operation},
    origin::Origin,
    record::{ApprovalId, Event, SessionId},
    ruling::{Cause, Decision, HoldTerms},
};
use serde::{Deserialize, Serialize};

use crate::journal::Journal;

/// Puts events into the journal on the queue's behalf.
pub trait Recorder: Send + Sync {
    /// Appends `event` before returning, so that records keep the order of the calls, even if the
    /// future is dropped. The future ends when the record is on disk.
    fn record(
        &self,
        session: SessionId,
        agent: &Arc<str>,
        event: Event,
    ) -> BoxFuture<'static, Result<(), Unrecorded>>;
}

impl<F> Recorder for F
where
    F: Fn(SessionId, &Arc<str>, Event) -> BoxFuture<'static, Result<(), Unrecorded>> + Send + Sync,
{
    fn record(
        &self,
        session: SessionId,
        agent: &Arc<str>,
        event: Event,
    ) -> BoxFuture<'static, Result<(), Unrecorded>> {
        self(session, agent, event)
    }
}

/// The journal can't take a record; the reason is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it can't be recorded: {0}")]
pub struct Unrecorded(pub String);

impl Recorder for Journal {
    fn record(
        &self,
        session: SessionId,
        agent: &Arc<str>,
        event: Event,
    ) -> BoxFuture<'static, Result<(), Unrecorded>> {
        let appended = self.append(Some(session), agent, crate::clock::now(), [event]);
        let journal = self.clone();
        Box::pin(async move {
            let unrecorded = |stopped: crate::journal::Stopped| Unrecorded(stopped.to_string());
            let seq = appended.map_err(unrecorded)?;
            journal.durable(seq).await.map_err(unrecorded)
        })
    }
}

/// An operation that people are asked about.
#[derive(Debug, Clone)]
pub struct Request {
    /// The session that waits.
    pub session: SessionId,
    /// Number of the operation in its session.
    pub number: u64,
    /// Who asks, and where to.
    pub origin: Arc<Origin>,
    /// All of the operation.
    pub operation: Operation,
    /// Its digest; an approval is for exactly this.
    pub digest: Digest,
    /// The decision that holds it.
    pub decision: Arc<Decision>,
    /// Who has to agree, and by when.
    pub terms: HoldTerms,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Enough people agreed in time; it is recorded. The operation may go, once.
    Approved,
    /// It may not go.
    Refused {
        /// What kind of no it is.
        cause: Cause,
        /// Why, for people and language models.
        reason: Arc<str>,
    },
}

/// Why a vote wasn't counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    /// No request has that id.
    #[error("there is no approval {0}; `interceptor approvals list` shows those that wait")]
    Unknown(ApprovalId),
    /// It ended before.
    #[error("approval {id} can't be voted on any more: {how}")]
    Ended {
        /// Which.
        id: ApprovalId,
        /// How it ended.
        how: String,
    },
    /// The voter is in none of the rule's groups.
    #[error("`{name}` may not vote on approval {id}: only members of {groups} may")]
    NotReviewer {
        /// Which.
        id: ApprovalId,
        /// The voter.
        name: Box<str>,
        /// Those whose members may.
        groups: String,
    },
    /// The same person agreed before.
    #[error("`{name}` has already approved {id}; {more} more distinct people have to")]
    Repeated {
        /// Which.
        id: ApprovalId,
        /// The voter.
        name: Box<str>,
        /// How many are missing.
        more: usize,
    },
    /// The reason is too long or holds control characters.
    #[error("a reason is at most {REASON_BYTES_MAX} bytes of text without control characters")]
    UnfitReason,
    /// The journal didn't take it, so it doesn't count.
    #[error("the vote doesn't count: {0}; see `interceptor status`")]
    Unrecorded(#[from] Unrecorded),
}

/// Longest reason of a vote, in bytes: it becomes part of an error message to the agent, and
/// clients cut long ones.
pub(super) const REASON_BYTES_MAX: usize = 1_000;
