//! A policy narrowed to one origin: the rules that can match it, and what they said before.

use std::sync::Arc;

use super::{
    Policy,
    decision::{Decision, PolicyHash, Verdict},
};
use crate::{mask::MaskPlan, operation::Operation, origin::Origin, record::Timestamp};

/// The rules that can concern one origin.
#[derive(Debug)]
pub struct Scope {
    policy: Arc<Policy>,
    #[expect(dead_code, reason = "used as soon as rules are evaluated")]
    origin: Arc<Origin>,
}

impl Scope {
    pub(super) fn new(policy: Arc<Policy>, origin: Arc<Origin>) -> Self {
        Self { policy, origin }
    }

    /// The policy this is a part of.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Decides `operation` at `now`: the decision, and what to mask in its response.
    pub fn evaluate(
        &mut self,
        _operation: &Operation,
        _now: Timestamp,
    ) -> (Arc<Decision>, Arc<MaskPlan>) {
        let decision = Decision {
            verdict: Verdict::Deny,
            enforced: true,
            rule: "default".into(),
            reason: "no rule allows it".into(),
            masked_by: [].into(),
            strict: true,
            policy: PolicyHash([0; 32]),
        };
        (Arc::new(decision), Arc::default())
    }
}
