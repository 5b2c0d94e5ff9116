//! A policy narrowed to one origin: the rules that can match it, and what they said before.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Policy,
    decision::{Decision, Verdict},
    rule::{Rule, Says},
};
use crate::{
    mask::{MaskPlan, Patterns},
    operation::{Description, Effects, Operation},
    origin::Origin,
    record::Timestamp,
};

/// Descriptions whose decision is remembered; over it all are forgotten.
const REMEMBERED_MAX: usize = 4_096;

/// Effects whose records have to be on disk before the operation goes on, unless its rule says otherwise.
const STRICT: Effects = Effects::SCHEMA
    .union(Effects::ADMIN)
    .union(Effects::EXECUTE)
    .union(Effects::UNCLASSIFIED);

/// The rules that can concern one origin.
#[derive(Debug)]
pub struct Scope {
    policy: Arc<Policy>,
    origin: Arc<Origin>,
    rules: Vec<Arc<Rule>>,
    masks: Arc<MaskPlan>,
    masked_by: Arc<[Box<str>]>,
    /// The same description is always decided in the same way.
    remembers: bool,
    /// By the description's address, which its own entry keeps from being used again.
    decided: FxHashMap<usize, (Arc<Description>, Arc<Decision>)>,
}

impl Scope {
    pub(super) fn new(policy: Arc<Policy>, origin: Arc<Origin>) -> Self {
        let rules: Vec<Arc<Rule>> = policy
            .rules
            .iter()
            .filter(|rule| rule.scope.matches(&origin))
            .cloned()
            .collect();
        let masking = || rules.iter().filter(|rule| rule.enforced && policy.enforced);
        let columns = masking()
            .flat_map(|rule| rule.columns.iter().cloned())
            .collect();
        let patterns = Patterns::new(
            masking()
                .flat_map(|rule| rule.patterns.iter().cloned())
                .collect(),
        );
        let masked_by = masking()
            .filter(|rule| !rule.columns.is_empty() || !rule.patterns.is_empty())
            .map(|rule| Box::from(&*rule.id))
            .collect();
        Self {
            remembers: !rules
                .iter()
                .any(|rule| rule.depends_on_more_than_the_description()),
            masks: Arc::new(MaskPlan { columns, patterns }),
            masked_by,
            rules,
            policy,
            origin,
            decided: FxHashMap::default(),
        }
    }

    /// The policy this is a part of.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Decides `operation` at `now`: the decision, and what to mask in its response.
    pub fn evaluate(
        &mut self,
        operation: &Operation,
        now: Timestamp,
    ) -> (Arc<Decision>, Arc<MaskPlan>) {
        let key = Arc::as_ptr(&operation.description) as usize;
        if self.remembers
            && let Some((description, decision)) = self.decided.get(&key)
            && Arc::ptr_eq(description, &operation.description)
        {
            return (decision.clone(), self.masks.clone());
        }
        let decision = Arc::new(self.decide(operation, now));
        if self.remembers {
            if self.decided.len() >= REMEMBERED_MAX {
                self.decided.clear();
            }
            self.decided
                .insert(key, (operation.description.clone(), decision.clone()));
        }
        (decision, self.masks.clone())
    }

    fn decide(&self, operation: &Operation, now: Timestamp) -> Decision {
        let mut best: Option<&Rule> = None;
        let mut observed: Option<&Rule> = None;
        for rule in &self.rules {
            let place = if rule.enforced {
                &mut best
            } else {
                &mut observed
            };
            if place.is_some_and(|found| found.says.weight() >= rule.says.weight()) {
                continue;
            }
            if rule.matches(operation, &self.origin, now) {
                *place = Some(rule);
            }
        }
        let (says, rule, reason) = match best {
            Some(rule) => (&rule.says, rule.id.clone(), rule.reason.clone()),
            None => (
                &self.policy.default,
                Arc::from("default"),
                self.policy.default_reason.clone(),
            ),
        };
        let reason = match observed {
            Some(observed) if observed.says.weight() > says.weight() => {
                let would = if matches!(observed.says, Says::Deny) {
                    "deny"
                } else {
                    "hold"
                };
                format!(
                    "{reason}{}rule `{}` would {would} it, but is not enforced",
                    if reason.is_empty() { "" } else { "; " },
                    observed.id
                )
                .into()
            }
            _ => reason,
        };
        let verdict = match says {
            Says::Allow => Verdict::Allow,
            Says::Deny => Verdict::Deny,
            Says::Hold(terms) => Verdict::Hold(terms.clone()),
        };
        let usually_strict =
            operation.description.effects.intersects(STRICT) || matches!(verdict, Verdict::Hold(_));
        Decision {
            enforced: self.policy.enforced,
            strict: best.and_then(|rule| rule.strict).unwrap_or(usually_strict),
            verdict,
            rule,
            reason,
            masked_by: self.masked_by.clone(),
            policy: self.policy.hash,
        }
    }
}
