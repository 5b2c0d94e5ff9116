//! From an operation to a permission. The one place that asks the policy.
//!
//! A [`Permit`] can't be forged: its fields are private, and only [`Judge::judge`] and
//! [`Hold::approve`] make one. Decoders release bytes for a permit and for nothing else.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::policy::decision::{
    Decision, Escalation, HoldTerms, Otherwise, PolicyHash, Verdict, WindowLimits, WindowScope,
};
use crate::{
    mask::MaskPlan,
    operation::{
        Operation,
        http::{Body, Rewrite},
    },
    origin::Origin,
    policy::{
        Policy, TlsDecision, Treatment,
        scope::{Evaluated, Scope},
    },
    record::{ApprovalId, Timestamp},
};

/// Decides the operations of one session under one policy.
#[derive(Debug)]
pub struct Judge {
    scope: Scope,
}

/// What the policy says of one operation.
#[derive(Debug)]
pub enum Judgement {
    /// It may go.
    Permit(Permit),
    /// It may not, by this decision.
    Refuse(Arc<Decision>, Refusal),
    /// People have to be asked.
    Hold(Hold),
    /// It depends on content that isn't there yet.
    Incomplete,
}

/// What the policy says of a TLS connection.
#[derive(Debug)]
pub enum TlsRuling {
    /// It is ended here, and what is inside is decided.
    Intercept,
    /// It may go through as it is.
    Passthrough {
        /// Leave to relay it.
        permit: Permit,
        /// The rule goes by the name that the client gives, which has to be held to what is known.
        by_name: bool,
    },
    /// It may not go.
    Deny(Arc<Decision>, Refusal),
}

/// Leave to send exactly the bytes of the operation it was minted for; used up by doing so.
#[derive(Debug)]
pub struct Permit {
    decision: Arc<Decision>,
    masks: Arc<MaskPlan>,
    rewrite: Option<Arc<Rewrite>>,
}

/// An operation that waits for people. Only an approval turns it into a [`Permit`].
#[derive(Debug)]
pub struct Hold {
    decision: Arc<Decision>,
    masks: Arc<MaskPlan>,
}

/// Why an operation does not go through, with what its sender needs to do something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of no it is.
    pub cause: Cause,
    /// The rule that decided, by id.
    pub rule: Arc<str>,
    /// The rule's or reviewer's reason, for people and language models.
    pub reason: Arc<str>,
    /// The approval that was asked for, if any.
    pub approval: Option<ApprovalId>,
}

/// The kinds of no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A rule denies it.
    Denied,
    /// A reviewer said no.
    Rejected,
    /// Nobody answered in time.
    TimedOut,
    /// People are still being asked, and the client needn't wait: once they have agreed, the same operation passes.
    Waiting,
    /// interceptor can't record or decide it now.
    Unavailable,
    /// Whoever asked for it took it back while people were asked.
    Cancelled,
}

/// The answer to a decoder's proposal.
#[derive(Debug)]
pub enum Ruling {
    /// Release the proposed bytes.
    Permit(Permit),
    /// Drop them and tell the client.
    Refuse(Refusal),
    /// It can't be decided yet: propose it again with all of its content.
    Gather,
}

impl Judge {
    /// A judge for `origin` under `policy`.
    #[must_use]
    pub fn new(policy: &Arc<Policy>, origin: Arc<Origin>) -> Self {
        Self {
            scope: Policy::scope(policy, origin),
        }
    }

    /// The policy that this judge decides by.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        self.scope.policy()
    }

    /// What becomes of a TLS connection to a server that the client calls `name`.
    #[must_use]
    pub fn tls(&self, origin: &Origin, name: Option<&str>) -> TlsRuling {
        let TlsDecision {
            treatment,
            decision,
            by_name,
        } = self.policy().tls(origin, name);
        match treatment {
            Treatment::Deny if decision.enforced => {
                let refusal = Refusal {
                    cause: Cause::Denied,
                    rule: decision.rule.clone(),
                    reason: decision.reason.clone(),
                    approval: None,
                };
                TlsRuling::Deny(decision, refusal)
            }
            Treatment::Passthrough => TlsRuling::Passthrough {
                permit: Permit {
                    decision,
                    masks: Arc::default(),
                    rewrite: None,
                },
                by_name,
            },
            Treatment::Deny | Treatment::Intercept => TlsRuling::Intercept,
        }
    }

    /// Decides `operation` at `now`.
    pub fn judge(&mut self, operation: &Operation, now: Timestamp) -> Judgement {
        let coming = operation
            .http
            .as_ref()
            .is_some_and(|request| matches!(request.body, Body::Coming(_)));
        if coming && self.scope.needs_content(operation, now) {
            return Judgement::Incomplete;
        }
        let Evaluated {
            decision,
            masks,
            rewrite,
        } = self.scope.evaluate(operation, now);
        match &decision.verdict {
            _ if !decision.enforced => Judgement::Permit(Permit {
                decision,
                masks,
                rewrite: None,
            }),
            Verdict::Allow => Judgement::Permit(Permit {
                decision,
                masks,
                rewrite,
            }),
            Verdict::Deny => {
                let refusal = Refusal {
                    cause: Cause::Denied,
                    rule: decision.rule.clone(),
                    reason: decision.reason.clone(),
                    approval: None,
                };
                Judgement::Refuse(decision, refusal)
            }
            // People are asked about all of it.
            Verdict::Hold(_) if coming => Judgement::Incomplete,
            Verdict::Hold(_) => Judgement::Hold(Hold { decision, masks }),
        }
    }
}

impl Permit {
    /// A permit for tests of decoders, which have no policy to ask.
    #[cfg(test)]
    pub(crate) fn unjudged(masks: Arc<MaskPlan>) -> Self {
        let decision = Decision {
            verdict: Verdict::Allow,
            enforced: true,
            rule: "test".into(),
            reason: "".into(),
            masked_by: [].into(),
            observed: [].into(),
            strict: false,
            policy: PolicyHash([0; 32]),
        };
        Self {
            decision: Arc::new(decision),
            masks,
            rewrite: None,
        }
    }

    /// The decision behind it.
    #[must_use]
    pub const fn decision(&self) -> &Arc<Decision> {
        &self.decision
    }

    /// What has to be changed in the request.
    #[must_use]
    pub const fn rewrite(&self) -> Option<&Arc<Rewrite>> {
        self.rewrite.as_ref()
    }

    /// What has to be masked in the response.
    #[must_use]
    pub const fn masks(&self) -> &Arc<MaskPlan> {
        &self.masks
    }
}

impl Hold {
    /// The decision behind it.
    #[must_use]
    pub const fn decision(&self) -> &Arc<Decision> {
        &self.decision
    }

    /// The people said yes.
    #[must_use]
    pub fn approve(self) -> Permit {
        Permit {
            decision: self.decision,
            masks: self.masks,
            // What people agreed to goes on as they saw it.
            rewrite: None,
        }
    }

    /// The people said no, or nobody answered.
    #[must_use]
    pub fn refuse(self, cause: Cause, reason: Arc<str>, approval: ApprovalId) -> Refusal {
        Refusal {
            cause,
            rule: self.decision.rule.clone(),
            reason,
            approval: Some(approval),
        }
    }
}
