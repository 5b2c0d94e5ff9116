//! What the queue is given and what it answers.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use interceptor_core::{
    operation::{Digest, Operation},
    origin::{Origin, Surroundings},
    record::{ApprovalId, Choice, Event, SessionId, Window},
    ruling::{Cause, Decision, HoldTerms, WindowLimits},
};
use serde::{Deserialize, Serialize};

use super::keys::{KeyError, Signed};
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
    /// What is around the process that asks.
    pub surroundings: Surroundings,
    /// All of the operation.
    pub operation: Operation,
    /// Its digest; an approval is for exactly this.
    pub digest: Digest,
    /// What it depends on besides: it is the same operation again only where this is the same.
    pub context: Digest,
    /// What it is but for its values, where that can be told.
    pub shape: Option<Digest>,
    /// The decision that holds it.
    pub decision: Arc<Decision>,
    /// Who has to agree, and by when.
    pub terms: HoldTerms,
}

impl Request {
    /// Whether `other` is this operation once more, in the same circumstances.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.context == other.context
    }

    /// Whether the same rule holds `other` on the same terms.
    pub(super) fn is_held_as(&self, other: &Self) -> bool {
        self.decision.rule == other.decision.rule && self.terms == other.terms
    }
}

/// Why an operation isn't waited for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Withdrawal {
    /// Its client is gone.
    HungUp,
    /// Its client doesn't wait so long.
    GaveUp,
    /// Its client took it back.
    Cancelled,
}

impl Withdrawal {
    /// In words.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::HungUp => "the agent hung up",
            Self::GaveUp => "the agent gave up waiting",
            Self::Cancelled => "the agent cancelled it",
        }
    }

    /// Whether the operation may come again.
    pub(super) const fn may_return(self) -> bool {
        !matches!(self, Self::Cancelled)
    }
}

/// What somebody says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Say {
    /// Yes, no, or not yes any more.
    pub choice: Choice,
    /// Why, in their words.
    pub reason: Box<str>,
    /// What a yes is for beyond the one operation.
    pub window: Option<Window>,
    /// What a security key signed of it.
    pub signed: Option<Signed>,
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
    /// The rule asks other people.
    #[error("`{name}` may not vote on approval {id}: only {who} may")]
    NotReviewer {
        /// Which.
        id: ApprovalId,
        /// The voter.
        name: Box<str>,
        /// Those who may.
        who: String,
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
    /// There is no yes to take back.
    #[error("`{name}` hasn't approved {id}, so there is nothing to retract")]
    NotAgreed {
        /// Which.
        id: ApprovalId,
        /// The voter.
        name: Box<str>,
    },
    /// The agent is the voter's own.
    #[error(
        "`{name}` owns agent `{agent}` (label `owner`): nobody approves what their own agent asks for"
    )]
    OwnAgent {
        /// The voter.
        name: Box<str>,
        /// The agent.
        agent: Box<str>,
    },
    /// The rule wants a reason.
    #[error("a reason is required for {id}: add `--reason`")]
    ReasonMissing {
        /// Which.
        id: ApprovalId,
    },
    /// The rule wants a security key's signature.
    #[error("{id} needs your security key: answer it in the console, at {}", place(link.as_deref()))]
    Unsigned {
        /// Which.
        id: ApprovalId,
        /// Where the console shows it, if there is one.
        link: Option<Box<str>>,
    },
    /// The signature isn't one for this.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// More is agreed to than the rule lets people agree to.
    #[error("{id} can't be approved for that much: {}", most(limits.as_ref()))]
    TooMuch {
        /// Which.
        id: ApprovalId,
        /// What the rule lets people agree to.
        limits: Option<WindowLimits>,
    },
    /// Nobody can tell what is of the same shape.
    #[error(
        "what is of the same shape as {id} can't be told; approve it alone, or for the same operation"
    )]
    Shapeless {
        /// Which.
        id: ApprovalId,
    },
    /// The configuration gives this person no right to override.
    #[error(
        "`{name}` may not override: only members of `approvals: {{break_glass: […]}}` in the configuration may{}",
        members(groups)
    )]
    NoBreakGlass {
        /// Who.
        name: Box<str>,
        /// The groups whose members may.
        groups: Vec<Box<str>>,
    },
    /// There is nothing to revoke.
    #[error(
        "nothing goes by approval {0} any more; `interceptor approvals grants` lists what does"
    )]
    NoGrant(ApprovalId),
    /// The reason is too long or holds control characters.
    #[error("a reason is at most {REASON_BYTES_MAX} bytes of text without control characters")]
    UnfitReason,
    /// The journal didn't take it, so it doesn't count.
    #[error("the vote doesn't count: {0}; see `interceptor status`")]
    Unrecorded(#[from] Unrecorded),
}

fn most(limits: Option<&WindowLimits>) -> String {
    match limits {
        None => "its rule has no `windows`, so it can be approved alone only".to_owned(),
        Some(limits) => format!(
            "its rule allows at most scope `{}`, for {}, {} times",
            limits.scope.name(),
            super::queue::span(limits.span),
            limits.at_most
        ),
    }
}

fn place(link: Option<&str>) -> &str {
    link.unwrap_or(
        "the address that `console: {url: …}` in the configuration says, which is missing",
    )
}

fn members(groups: &[Box<str>]) -> String {
    match groups {
        [] => ", and it names none".to_owned(),
        groups => format!(": {}", groups.join(", ")),
    }
}

/// Longest reason of a vote, in bytes: it becomes part of an error message to the agent, and
/// clients cut long ones.
pub(super) const REASON_BYTES_MAX: usize = 1_000;
