//! What was approved and may still be used: by the operation that its client gave up on, when it comes again, and by
//! those that a window is for. Pure.

use std::{collections::BTreeMap, sync::Arc};

use interceptor_core::{
    record::{ApprovalId, SessionId, Timestamp},
    ruling::WindowScope,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::request::Request;

/// The end of a span of time, by the clock and by the time that passes: whoever sets the clock back doesn't put it
/// off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) clock: Timestamp,
    pub(super) passes: Instant,
}

impl End {
    fn is_over(self, now: Timestamp) -> bool {
        now >= self.clock || Instant::now() >= self.passes
    }
}

/// An approval that lets more through.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// What was asked about.
    pub(super) request: Arc<Request>,
    /// What it is for.
    pub(super) scope: WindowScope,
    /// How many operations more.
    pub(super) left: u32,
    pub(super) until: End,
    /// Who agreed.
    pub(super) by: Vec<Box<str>>,
}

/// An approval that lets more through, as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The approval that it came from.
    pub id: ApprovalId,
    /// The agent that it is for.
    pub agent: Box<str>,
    /// What for.
    pub scope: WindowScope,
    /// What was approved, in the protocol's own names.
    pub action: String,
    /// Where to.
    pub destination: String,
    /// The rule that holds it.
    pub rule: Box<str>,
    /// How many operations more.
    pub left: u32,
    /// When it ends by itself.
    #[serde(with = "crate::rfc3339")]
    pub until: Timestamp,
    /// Who agreed.
    pub by: Vec<Box<str>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Grants(BTreeMap<ApprovalId, Grant>);

impl Grants {
    /// Adds one; those that are over go.
    pub(super) fn add(&mut self, id: ApprovalId, grant: Grant, now: Timestamp) {
        self.0.retain(|_, grant| !grant.until.is_over(now));
        self.0.insert(id, grant);
    }

    /// Uses one that `request` may go by, the narrowest: which, and until when it is.
    pub(super) fn admit(&mut self, request: &Request, now: Timestamp) -> Option<Admission> {
        let covering = self.0.iter_mut();
        let (id, grant) = covering
            .filter(|(_, grant)| !grant.until.is_over(now) && grant.covers(request))
            .min_by_key(|(_, grant)| (grant.scope, grant.left))?;
        grant.left = grant.left.saturating_sub(1);
        let admission = Admission {
            id: *id,
            until: grant.until,
            is_last: grant.left == 0,
            by: grant.by.clone(),
        };
        if admission.is_last {
            self.0.remove(&admission.id);
        }
        Some(admission)
    }

    pub(super) fn get(&self, id: ApprovalId) -> Option<&Grant> {
        self.0.get(&id)
    }

    pub(super) fn remove(&mut self, id: ApprovalId) -> Option<Grant> {
        self.0.remove(&id)
    }

    /// Whether one that lets more through at `now` is of `session`.
    pub(super) fn concern(&self, session: SessionId, now: Timestamp) -> bool {
        let mut standing = self.0.values().filter(|grant| !grant.until.is_over(now));
        standing.any(|grant| grant.request.session == session)
    }

    /// Those that let more through at `now`, oldest first.
    pub(super) fn standing(&self, now: Timestamp) -> Vec<Standing> {
        let standing = self.0.iter();
        standing
            .filter(|(_, grant)| !grant.until.is_over(now))
            .map(|(id, grant)| grant.standing(*id))
            .collect()
    }
}

/// Something went by a grant.
#[derive(Debug)]
pub(super) struct Admission {
    /// Which.
    pub(super) id: ApprovalId,
    /// Until when it is, or was.
    pub(super) until: End,
    /// Nothing more goes by it.
    pub(super) is_last: bool,
    /// Who agreed.
    pub(super) by: Vec<Box<str>>,
}

impl Grant {
    /// Whether `request` may go by it. The rule and its terms have to be those that people agreed under: a policy
    /// that asks for more, or for others, isn't met by what was approved before.
    fn covers(&self, request: &Request) -> bool {
        let own = &self.request;
        own.origin.agent == request.origin.agent
            && own.is_held_as(request)
            && match self.scope {
                WindowScope::Operation => own.is_same(request),
                WindowScope::Shape => {
                    own.shape.is_some()
                        && own.shape == request.shape
                        && own.context == request.context
                }
                WindowScope::Rule => true,
            }
    }

    pub(super) fn standing(&self, id: ApprovalId) -> Standing {
        let Request {
            origin, operation, ..
        } = &*self.request;
        Standing {
            id,
            agent: origin.agent.name.clone(),
            scope: self.scope,
            action: operation.description.action(),
            destination: origin.destination.to_string(),
            rule: (&*self.request.decision.rule).into(),
            left: self.left,
            until: self.until.clock,
            by: self.by.clone(),
        }
    }
}
