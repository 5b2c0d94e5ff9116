//! Why a policy decides an operation as it does: of each rule whether it matches, and if not, what of it doesn't.
//!
//! Nothing is matched in a second way here: an explanation asks the rules what the evaluation asks them, and says in
//! words what they answer.

#[cfg(test)]
mod tests;
mod words;

use std::{fmt, sync::Arc};

use serde::Serialize;

pub(super) use self::words::kind;
use super::{
    Policy, TlsDecision, Treatment,
    decision::{Decision, Verdict},
    rule::{Counting, Rule, Says, TlsRule, Weight},
};
use crate::{
    operation::{Operation, Protocol, attribute},
    origin::Origin,
    record::Timestamp,
};

/// What becomes of an operation or of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It goes.
    Allow,
    /// People are asked.
    Hold,
    /// It is refused.
    Deny,
    /// A TLS connection is ended here, and what is inside is decided.
    Intercept,
    /// A TLS connection goes through as it is.
    Passthrough,
}

/// Why an operation is decided as it is.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// What becomes of it, if the policy is enforced.
    pub answer: Answer,
    /// Whether that is carried out; `false` only observes.
    pub enforced: bool,
    /// The rule that decides, `default` where none does.
    pub rule: Arc<str>,
    /// The rule's reason, empty where it gives none.
    pub reason: Arc<str>,
    /// The rules whose masks apply to what comes back.
    pub masked_by: Arc<[Box<str>]>,
    /// The policy's hash.
    pub policy: String,
    /// Each of its rules: those on operations in their order, then those on TLS, UDP and who may come in.
    pub rules: Vec<RuleExplained>,
    /// The decision as it would be recorded.
    #[serde(skip)]
    pub decision: Arc<Decision>,
}

/// What one rule has to do with it.
#[derive(Debug, Clone, Serialize)]
pub struct RuleExplained {
    /// Its id.
    pub id: Arc<str>,
    /// What it says of what matches it; `None` of one that is for something else than operations and TLS.
    pub says: Option<Answer>,
    /// Whether it is enforced by itself.
    pub enforced: bool,
    /// Its part in the decision.
    pub standing: Standing,
    /// That in words. They may quote what the agent wrote.
    pub why: String,
    /// Its masks apply to what comes back, whether it matches or not.
    pub masks: bool,
}

/// A rule's part in a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It decides.
    Decides,
    /// It matches, and another goes before it.
    Outranked,
    /// It matches, and is not enforced.
    Observes,
    /// It doesn't match.
    Unmet,
    /// It is for something else than operations of this kind.
    NotAsked,
}

impl Answer {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Hold => "hold",
            Self::Deny => "deny",
            Self::Intercept => "intercept",
            Self::Passthrough => "passthrough",
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<&Verdict> for Answer {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Hold(_) => Self::Hold,
            Verdict::Deny => Self::Deny,
        }
    }
}

impl From<&Says> for Answer {
    fn from(says: &Says) -> Self {
        match says {
            Says::Allow => Self::Allow,
            Says::Hold(_) => Self::Hold,
            Says::Deny => Self::Deny,
        }
    }
}

impl From<Treatment> for Answer {
    fn from(treatment: Treatment) -> Self {
        match treatment {
            Treatment::Passthrough => Self::Passthrough,
            Treatment::Intercept => Self::Intercept,
            Treatment::Deny => Self::Deny,
        }
    }
}

impl Policy {
    /// Why `policy` decides `operation` of `origin` at `now` as it does. It doesn't count as an operation for rules
    /// that count.
    ///
    /// A TLS connection (an operation of that protocol) is asked about as it begins: by what the client calls the
    /// server.
    #[must_use]
    pub fn explain(
        policy: &Arc<Self>,
        operation: &Operation,
        origin: &Arc<Origin>,
        now: Timestamp,
    ) -> Explanation {
        if operation.protocol == Protocol::Tls {
            return policy.explain_tls(origin, server_name(operation));
        }
        let mut scope = Self::scope(policy, origin.clone());
        let decision = scope.look(operation, now).decision;
        let weight = policy.rules.iter().find(|rule| rule.id == decision.rule);
        let weight = weight.map(|rule| rule.weight());
        let mut rules: Vec<_> = policy
            .rules
            .iter()
            .map(|rule| {
                let unmet = rule
                    .scope
                    .unmet(origin)
                    .or_else(|| rule.unmet(operation, origin, now, Counting::Look));
                let (standing, why) = match unmet {
                    Some(unmet) => (
                        Standing::Unmet,
                        words::unmet(rule, unmet, operation, origin, now),
                    ),
                    None => matching(rule, &decision, weight),
                };
                RuleExplained {
                    id: rule.id.clone(),
                    says: Some(Answer::from(&rule.says)),
                    enforced: rule.enforced,
                    standing,
                    why,
                    masks: decision.masked_by.iter().any(|id| **id == *rule.id),
                }
            })
            .collect();
        let later = "it is asked when a TLS connection begins";
        let tls = policy.tls.iter();
        rules.extend(tls.map(|rule| tls_rule(rule, Standing::NotAsked, later.to_owned())));
        rules.extend(policy.direct_explained());
        Explanation {
            answer: Answer::from(&decision.verdict),
            enforced: decision.enforced,
            rule: decision.rule.clone(),
            reason: decision.reason.clone(),
            masked_by: decision.masked_by.clone(),
            policy: decision.policy.to_string(),
            rules,
            decision,
        }
    }

    /// Why a TLS connection of `origin` to what the client calls `name` is treated as it is.
    pub(super) fn explain_tls(&self, origin: &Origin, name: Option<&str>) -> Explanation {
        let TlsDecision {
            treatment,
            decision,
            by_name: _,
        } = self.tls(origin, name);
        let elsewhere =
            "it is about operations, and this is a TLS connection before anything in it is seen";
        let rules = self.rules.iter().map(|rule| RuleExplained {
            id: rule.id.clone(),
            says: Some(Answer::from(&rule.says)),
            enforced: rule.enforced,
            standing: Standing::NotAsked,
            why: elsewhere.to_owned(),
            masks: false,
        });
        let tls = self.tls.iter().map(|rule| {
            let (standing, why) = match rule.unmet(origin, name) {
                Some(unmet) => (Standing::Unmet, words::unmet_tls(rule, unmet, origin, name)),
                None if rule.id == decision.rule => (Standing::Decides, "matches".to_owned()),
                None => {
                    let than = if rule.treatment == treatment {
                        "which stands before it"
                    } else {
                        "which is stricter"
                    };
                    let why = format!("matches, but `{}` decides, {than}", decision.rule);
                    (Standing::Outranked, why)
                }
            };
            tls_rule(rule, standing, why)
        });
        Explanation {
            answer: treatment.into(),
            enforced: decision.enforced,
            rule: decision.rule.clone(),
            reason: decision.reason.clone(),
            masked_by: decision.masked_by.clone(),
            policy: decision.policy.to_string(),
            rules: rules.chain(tls).chain(self.direct_explained()).collect(),
            decision,
        }
    }

    fn direct_explained(&self) -> impl Iterator<Item = RuleExplained> {
        self.direct.iter().map(|rule| RuleExplained {
            id: rule.id.clone(),
            says: None,
            enforced: true,
            standing: Standing::NotAsked,
            why: "it is about UDP or who may come in, which the kernel decides".to_owned(),
            masks: false,
        })
    }
}

/// What the client of a TLS connection calls the server.
pub(super) fn server_name(operation: &Operation) -> Option<&str> {
    let attributes = &operation.description.attributes;
    let name = attributes.get(attribute::TLS_SERVER_NAME)?;
    (!name.is_empty()).then_some(name)
}

fn tls_rule(rule: &TlsRule, standing: Standing, why: String) -> RuleExplained {
    RuleExplained {
        id: rule.id.clone(),
        says: Some(rule.treatment.into()),
        enforced: true,
        standing,
        why,
        masks: false,
    }
}

/// The part of a rule that matches, where that of `weight` decides.
fn matching(rule: &Rule, decision: &Decision, weight: Option<Weight>) -> (Standing, String) {
    if rule.id == decision.rule {
        return (Standing::Decides, "matches".to_owned());
    }
    if !rule.enforced {
        let would = match &rule.says {
            Says::Allow => "allow",
            Says::Hold(_) => "hold",
            Says::Deny => "deny",
        };
        let why = format!("matches and would {would} it, but is not enforced");
        return (Standing::Observes, why);
    }
    let than = match weight {
        Some(weight) if weight == rule.weight() => "which says the same and stands before it",
        Some((1, ..)) => "which allows it with changes",
        Some((says, ..)) if says == rule.weight().0 => {
            "which asks people who are harder to convince"
        }
        _ => "which is stricter",
    };
    let why = format!("matches, but `{}` decides, {than}", decision.rule);
    (Standing::Outranked, why)
}
