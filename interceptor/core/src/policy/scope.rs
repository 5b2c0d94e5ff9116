//! A policy narrowed to one origin: the rules that can match it, and what they said before.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Policy,
    decision::{Decision, Observation, Verdict, Would},
    rule::{Counting, Rule, Says},
};
use crate::{
    mask::{MaskPlan, Patterns, body::BodyPlan},
    operation::{Description, Effects, Operation, Protocol, http::Rewrite},
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
    /// Rules that always say the same of one description, with their places in the policy.
    fixed: Vec<(usize, Arc<Rule>)>,
    /// Rules that look at content, time or rate: asked each time, as far as they could change anything.
    varying: Vec<(usize, Arc<Rule>)>,
    /// What is masked, for each protocol in the order of [`Protocol::ALL`].
    masks: [Masks; Protocol::ALL.len()],
    /// What the fixed rules say, by the description's address, which its own entry keeps from being used
    /// again.
    decided: FxHashMap<usize, Arc<Decided>>,
}

/// What a policy says of an operation.
#[derive(Debug)]
pub struct Evaluated {
    /// The decision.
    pub decision: Arc<Decision>,
    /// What to mask in the response.
    pub masks: Arc<MaskPlan>,
    /// What to change in the request.
    pub rewrite: Option<Arc<Rewrite>>,
}

/// What is masked in one protocol, and by which rules.
#[derive(Debug, Default)]
struct Masks {
    plan: Arc<MaskPlan>,
    by: Arc<[Box<str>]>,
    /// Who would mask and isn't enforced.
    observed: Arc<[Observation]>,
}

impl Masks {
    fn new(
        policy: &Policy,
        origin: &Origin,
        rules: &[(usize, Arc<Rule>)],
        protocol: Protocol,
    ) -> Self {
        let concerned = || {
            let rules = rules.iter().map(|(_, rule)| rule);
            // A destination whose name isn't known may be any.
            rules.filter(|rule| {
                rule.scope.protocol.is_none_or(|of| of == protocol)
                    && (origin.names.is_empty() || rule.is_for_names(&origin.names))
            })
        };
        let masking = || concerned().filter(|rule| rule.enforced);
        let by = masking().filter(|rule| rule.masks());
        let by = by.map(|rule| Box::from(&*rule.id)).collect();
        if !policy.enforced {
            // It is said who would mask, and nothing is.
            return Self {
                plan: Arc::default(),
                by,
                observed: [].into(),
            };
        }
        let observed = concerned().filter(|rule| !rule.enforced && rule.masks());
        let observed = observed.map(|rule| Observation {
            rule: (&*rule.id).into(),
            would: Would::Mask,
        });
        let observed = observed.collect();
        let patterns = Patterns::new(
            masking()
                .flat_map(|rule| rule.patterns.iter().cloned())
                .collect(),
        );
        let body = BodyPlan {
            paths: masking()
                .flat_map(|rule| rule.web.paths.iter().cloned())
                .collect(),
            keys: masking()
                .flat_map(|rule| rule.web.keys.iter().cloned())
                .collect(),
            patterns: patterns.clone(),
            strict: masking().any(|rule| rule.web.strict),
        };
        let plan = MaskPlan {
            columns: masking()
                .flat_map(|rule| rule.columns.iter().cloned())
                .collect(),
            headers: masking()
                .flat_map(|rule| rule.web.headers.iter().cloned())
                .collect(),
            patterns,
            body: Arc::new(body),
        };
        Self {
            plan: Arc::new(plan),
            by,
            observed,
        }
    }
}

/// What the fixed rules say of a description.
#[derive(Debug)]
struct Decided {
    description: Arc<Description>,
    found: Found,
    decision: Arc<Decision>,
}

/// The rules that count: the most restrictive one, and the most restrictive of those not enforced.
#[derive(Debug, Clone, Default)]
struct Found {
    best: Option<(usize, Arc<Rule>)>,
    observed: Option<(usize, Arc<Rule>)>,
}

impl Found {
    /// Adds those of `rules` that match and are more restrictive than what was found; of equals the one
    /// that stands first in the policy counts. Whether any was added.
    fn add(&mut self, rules: &[(usize, Arc<Rule>)], matches: impl Fn(&Rule) -> bool) -> bool {
        let mut added = false;
        for (place, rule) in rules {
            let found = if rule.enforced {
                &mut self.best
            } else {
                &mut self.observed
            };
            let counts = found.as_ref().is_none_or(|(before, found)| {
                let (found, new) = (found.weight(), rule.weight());
                new > found || (new == found && place < before)
            });
            if counts && matches(rule) {
                *found = Some((*place, rule.clone()));
                added = true;
            }
        }
        added
    }
}

impl Scope {
    pub(super) fn new(policy: Arc<Policy>, origin: Arc<Origin>) -> Self {
        let rules: Vec<(usize, Arc<Rule>)> = policy
            .rules
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, rule)| rule.scope.matches(&origin))
            .collect();
        let masks = Protocol::ALL.map(|protocol| Masks::new(&policy, &origin, &rules, protocol));
        let (varying, fixed) = rules
            .into_iter()
            .partition(|(_, rule)| rule.depends_on_more_than_the_description());
        Self {
            masks,
            fixed,
            varying,
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

    /// Whether a rule that looks at the content could decide `operation` once that is there.
    #[must_use]
    pub fn needs_content(&self, operation: &Operation, now: Timestamp) -> bool {
        let rules = self.fixed.iter().chain(&self.varying);
        let mut rules = rules.map(|(_, rule)| rule);
        rules.any(|rule| {
            rule.looks_at_content() && rule.matches_but_for_content(operation, &self.origin, now)
        })
    }

    /// Decides `operation` at `now`.
    pub fn evaluate(&mut self, operation: &Operation, now: Timestamp) -> Evaluated {
        self.decide(operation, now, Counting::Count)
    }

    /// What [`Self::evaluate`] would say, without it counting as an operation.
    pub fn look(&mut self, operation: &Operation, now: Timestamp) -> Evaluated {
        self.decide(operation, now, Counting::Look)
    }

    fn decide(&mut self, operation: &Operation, now: Timestamp, counting: Counting) -> Evaluated {
        let decided = self.decided(operation, now);
        let matches = |rule: &Rule| rule.matches(operation, &self.origin, now, counting);
        let rewrite = |found: &Found| found.best.as_ref()?.1.rewrite.clone();
        let (decision, rewrite) = if self.varying.is_empty() {
            (decided.decision.clone(), rewrite(&decided.found))
        } else {
            let mut found = decided.found.clone();
            let decision = match found.add(&self.varying, matches) {
                true => Arc::new(self.decision(&found, operation.protocol, &decided.description)),
                false => decided.decision.clone(),
            };
            (decision, rewrite(&found))
        };
        Evaluated {
            decision,
            masks: self.masks(operation.protocol).plan.clone(),
            rewrite,
        }
    }

    /// What the rules say that look at the description only.
    fn decided(&mut self, operation: &Operation, now: Timestamp) -> Arc<Decided> {
        let key = Arc::as_ptr(&operation.description) as usize;
        // Statements of one shape share a description. Each request has its own: to remember it would only
        // keep it.
        let is_shared = operation.protocol != Protocol::Dns && operation.http.is_none();
        if is_shared && let Some(decided) = self.decided.get(&key) {
            return decided.clone();
        }
        let mut found = Found::default();
        found.add(&self.fixed, |rule| {
            // None of these counts.
            rule.matches(operation, &self.origin, now, Counting::Look)
        });
        let description = operation.description.clone();
        let decided = Arc::new(Decided {
            decision: Arc::new(self.decision(&found, operation.protocol, &description)),
            description,
            found,
        });
        if is_shared {
            if self.decided.len() >= REMEMBERED_MAX {
                self.decided.clear();
            }
            self.decided.insert(key, decided.clone());
        }
        decided
    }

    fn masks(&self, protocol: Protocol) -> &Masks {
        let place = Protocol::ALL.iter().position(|of| *of == protocol);
        let [first, ..] = &self.masks;
        place
            .and_then(|place| self.masks.get(place))
            .unwrap_or(first)
    }

    /// The decision that the rules found make of `description`.
    fn decision(&self, found: &Found, protocol: Protocol, description: &Description) -> Decision {
        let best = found.best.as_ref().map(|(_, rule)| &**rule);
        let observed = found.observed.as_ref().map(|(_, rule)| &**rule);
        let (says, rule, reason) = match best {
            Some(rule) => (&rule.says, rule.id.clone(), rule.reason.clone()),
            None => (
                &self.policy.default,
                Arc::from("default"),
                self.policy.default_reason.clone(),
            ),
        };
        let stricter = observed.filter(|observed| observed.says.weight() > says.weight());
        let stricter = stricter.map(|observed| Observation {
            rule: (&*observed.id).into(),
            would: match observed.says {
                Says::Deny => Would::Deny,
                _ => Would::Hold,
            },
        });
        let masks = self.masks(protocol);
        let observed = match (stricter, says) {
            // Neither is anything told of a policy that only observes as a whole: its rules do nothing less.
            _ if !self.policy.enforced => [].into(),
            (None, Says::Allow | Says::Hold(_)) => masks.observed.clone(),
            // What is refused has nothing that comes back, and what would be hasn't either.
            (None, Says::Deny) => [].into(),
            (Some(stricter), _) if stricter.would == Would::Deny => [stricter].into(),
            (Some(stricter), _) => [stricter]
                .into_iter()
                .chain(masks.observed.iter().cloned())
                .collect(),
        };
        let verdict = match says {
            Says::Allow => Verdict::Allow,
            Says::Deny => Verdict::Deny,
            Says::Hold(terms) => Verdict::Hold(terms.clone()),
        };
        let usually_strict =
            description.effects.intersects(STRICT) || matches!(verdict, Verdict::Hold(_));
        Decision {
            enforced: self.policy.enforced,
            strict: best.and_then(|rule| rule.strict).unwrap_or(usually_strict),
            verdict,
            rule,
            reason,
            masked_by: masks.by.clone(),
            observed,
            policy: self.policy.hash,
        }
    }
}
