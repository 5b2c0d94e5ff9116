//! Policies: typed YAML, parsed, compiled, evaluated.
//!
//! The most restrictive rule that matches wins (deny, then hold, then allow); masks add up; what no rule
//! matches gets the default, which has to be given. A rule that denies or holds matches when any part
//! of an operation is meant; one that allows only when it covers all of it, by itself.
//!
//! Masks are different: they are for what comes back, and a column is known by the table that it comes
//! from, not by the statement. The masks of every rule whose agent, destination and protocol match a
//! session apply to all of its results, whatever else the rule's conditions say.

mod cases;
mod compile;
pub mod decision;
mod direct;
mod dns;
mod error;
mod explain;
mod file;
mod http;
mod replay;
mod rule;
pub mod scope;
mod suggest;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use aws_lc_rs::digest;

pub use self::decision::{Observation, Would};
pub use self::direct::{Meeting, Reach};
pub use self::rule::Treatment;
pub use self::{
    cases::{Attempt, Case, Describe, Given, Outcome},
    error::{PolicyError, Problem},
    explain::{Answer, Explanation, RuleExplained, Standing},
    replay::{Again, Difference, Recorded, Replay, Within},
    suggest::{Suggesting, Suggestion},
};
use self::{
    compile::Compiler,
    decision::{Decision, PolicyHash, Verdict},
    direct::DirectRule,
    file::ActionSpec,
    rule::{Rule, Says, TlsRule},
};
use crate::origin::Origin;

/// A valid policy; one that exists can be evaluated.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Arc<Rule>>,
    tls: Vec<TlsRule>,
    direct: Vec<DirectRule>,
    default: Says,
    default_reason: Arc<str>,
    enforced: bool,
    hash: PolicyHash,
    cases: Vec<Case>,
}

/// What becomes of a TLS connection.
#[derive(Debug, Clone)]
pub struct TlsDecision {
    /// What becomes of it.
    pub treatment: Treatment,
    /// The decision as it is recorded.
    pub decision: Arc<Decision>,
    /// Whether the rule goes by the name that the client gives, which has to be held to what is known.
    pub by_name: bool,
}

impl Policy {
    /// The policy that `files` (name and text of each, in order) make together.
    ///
    /// # Errors
    /// Everything that is wrong with them, each with file, line and column.
    pub fn parse(files: &[(String, String)]) -> Result<Self, PolicyError> {
        let mut compiler = Compiler::default();
        let mut context = digest::Context::new(&digest::SHA256);
        let (mut default, mut enforced, mut cases) = (None, true, Vec::new());
        for (name, text) in files {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
            let file = match file::read(name, text) {
                Ok(file) => file,
                Err(problem) => {
                    compiler.problems.push(problem);
                    continue;
                }
            };
            compiler.add(name, &file);
            enforced &= file.enforce.unwrap_or(true);
            if let Some(given) = &file.default {
                if default.is_some() {
                    let what = "a default is given in another file already; one is enough";
                    compiler
                        .problems
                        .push(Problem::at(name, given.referenced, what));
                }
                default = Some(given.value.clone());
            }
            for case in &file.tests {
                match Case::new(name, case) {
                    Ok(case) => cases.push(case),
                    Err(problem) => compiler.problems.push(problem),
                }
            }
        }
        if default.is_none() && compiler.problems.is_empty() {
            let file = files
                .first()
                .map_or_else(|| "the policy".to_owned(), |(name, _)| name.clone());
            let what =
                "no default is given; add `default: {action: deny, reason: \"no rule allows it\"}`"
                    .to_owned();
            compiler.problems.push(Problem {
                file,
                line: 0,
                column: 0,
                what,
            });
        }
        let (Some(default), true) = (default, compiler.problems.is_empty()) else {
            return Err(PolicyError(compiler.problems));
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Ok(Self {
            rules: compiler.rules.into_iter().map(Arc::new).collect(),
            tls: compiler.tls,
            direct: compiler.direct,
            default: match default.action {
                ActionSpec::Allow => Says::Allow,
                ActionSpec::Deny => Says::Deny,
                ActionSpec::Hold => Says::Hold(decision::HoldTerms::default()),
            },
            default_reason: default.reason.into(),
            enforced,
            hash: PolicyHash(hash),
            cases,
        })
    }

    /// A policy that denies everything, for when there is none that can be read.
    #[must_use]
    pub fn deny_all(reason: &str) -> Self {
        Self {
            rules: Vec::new(),
            tls: Vec::new(),
            direct: Vec::new(),
            default: Says::Deny,
            default_reason: reason.into(),
            enforced: true,
            hash: PolicyHash([0; 32]),
            cases: Vec::new(),
        }
    }

    /// The part of the policy that can concern `origin`, ready to decide its operations.
    #[must_use]
    pub fn scope(policy: &Arc<Self>, origin: Arc<Origin>) -> scope::Scope {
        scope::Scope::new(policy.clone(), origin)
    }

    /// What becomes of a TLS connection of `origin` to a server that the client calls `name`, and why.
    /// The most restrictive of the rules that match counts; without any it is intercepted.
    #[must_use]
    pub fn tls(&self, origin: &Origin, name: Option<&str>) -> TlsDecision {
        let matching = self.tls.iter();
        let matching = matching.filter(|rule| rule.unmet(origin, name).is_none());
        // Of equals the first.
        let found = matching.reduce(|best, rule| {
            if rule.treatment > best.treatment {
                rule
            } else {
                best
            }
        });
        let (treatment, rule, reason, by_name) = match found {
            Some(rule) => (
                rule.treatment,
                rule.id.clone(),
                rule.reason.clone(),
                rule.names.is_some(),
            ),
            None => (
                Treatment::Intercept,
                Arc::from("default"),
                Arc::from(""),
                false,
            ),
        };
        let decision = Decision {
            verdict: match treatment {
                Treatment::Deny => Verdict::Deny,
                Treatment::Intercept | Treatment::Passthrough => Verdict::Allow,
            },
            enforced: self.enforced,
            rule,
            reason,
            masked_by: [].into(),
            observed: [].into(),
            strict: true,
            policy: self.hash,
        };
        TlsDecision {
            treatment,
            decision: Arc::new(decision),
            by_name,
        }
    }

    /// Its hash, which every decision carries.
    #[must_use]
    pub const fn hash(&self) -> PolicyHash {
        self.hash
    }

    /// How many rules it has.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len() + self.tls.len() + self.direct.len()
    }

    /// Whether its verdicts are carried out.
    #[must_use]
    pub const fn is_enforced(&self) -> bool {
        self.enforced
    }

    /// Its own test cases.
    #[must_use]
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }
}
