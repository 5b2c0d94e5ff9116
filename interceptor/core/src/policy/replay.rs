//! Recorded operations decided again, by another policy or the same.
//!
//! What the record leaves open isn't guessed: where that makes a difference, an operation can't be decided again, and
//! why is said.

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::FxHashMap;

use super::{
    Policy, TlsDecision, Treatment,
    decision::{Decision, Verdict},
    explain::{Answer, Explanation, server_name},
    rule::{Counting, Rule},
    scope::Scope,
};
use crate::{
    operation::{
        Operation, Protocol,
        http::{Body, Fields, HttpRequest},
        recalled::Recalled,
    },
    origin::{Agent, Destination, Origin},
    record::Timestamp,
};

/// Origins for which the policy's rules are kept apart; over it all are forgotten.
const SCOPES_MAX: usize = 1_024;

const NOTHING: &str = "nothing of it is on record";
const NO_BODY: &str = "not all of its body is on record beside it, and a rule looks at that";

/// An operation as it is on record.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Whose it may have been, one at least: they differ in the names that the destination had.
    pub origins: Vec<Arc<Origin>>,
    /// Why there is more than one.
    pub open: Option<&'static str>,
    /// What was attempted.
    pub recalled: Recalled,
    /// The TLS that it came in and that was ended here, the outermost first.
    pub within: Vec<Within>,
}

/// TLS that was ended here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Within {
    /// Whose connection it was when it began.
    pub origin: Arc<Origin>,
    /// What the client called the server.
    pub server_name: Option<Box<str>>,
}

/// What a policy says of a recorded operation.
#[derive(Debug, Clone)]
pub struct Again {
    /// What would have become of it.
    pub answer: Answer,
    /// The decision as it would have been recorded.
    pub decision: Arc<Decision>,
}

/// What is different about two decisions on one operation, the least of it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Difference {
    /// Nothing that counts.
    Nothing,
    /// Another rule says the same.
    Rule,
    /// Other rules mask what comes back.
    Masks,
    /// Other people are asked, or on other terms.
    Terms,
    /// Something else becomes of it.
    Answer,
}

/// Decides recorded operations by one policy, in the order in which they were attempted.
#[derive(Debug)]
pub struct Replay {
    policy: Arc<Policy>,
    counts: bool,
    scopes: FxHashMap<Whose, Scope>,
}

/// A decision, with what was there of the operation when it was made.
#[derive(Debug, Clone)]
struct Judged {
    decision: Arc<Decision>,
    operation: Operation,
}

/// What of an origin rules ask.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Whose {
    agent: Box<str>,
    labels: BTreeMap<Box<str>, Box<str>>,
    destination: Destination,
    names: Vec<Box<str>>,
}

impl Recorded {
    /// All that is known of it, as one operation of one origin.
    #[must_use]
    pub fn fullest(&self) -> Option<(&Arc<Origin>, &Operation)> {
        Some((self.origins.first()?, self.recalled.fullest()?))
    }
}

impl Replay {
    /// By `policy`, of which nothing has been counted yet.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            counts: policy.rules.iter().any(|rule| rule.counts()),
            policy,
            scopes: FxHashMap::default(),
        }
    }

    /// Whether what is decided depends on what was decided before.
    #[must_use]
    pub const fn depends_on_before(&self) -> bool {
        self.counts
    }

    /// Forgets what was counted, as a daemon does that starts again.
    pub fn forget(&mut self) {
        for rule in &self.policy.rules {
            rule.forget();
        }
    }

    /// What the policy says of `recorded`, attempted at `now`. It counts for rules that count.
    ///
    /// # Errors
    /// Why that can't be told.
    pub fn decide(&mut self, recorded: &Recorded, now: Timestamp) -> Result<Again, String> {
        let (origin, fullest) = recorded.fullest().ok_or(NOTHING)?;
        if fullest.protocol == Protocol::Tls {
            return Ok(self.tls(origin, server_name(fullest)));
        }
        for Within {
            origin,
            server_name,
        } in &recorded.within
        {
            let again = self.tls(origin, server_name.as_deref());
            if again.answer != Answer::Intercept {
                return Ok(again);
            }
        }
        let ways = &recorded.recalled.ways;
        if let ([origin], [stages]) = (&*recorded.origins, &**ways) {
            let judged = self.judge(origin, recorded, stages, now, Counting::Count)?;
            return Ok(Again::judged(judged.decision));
        }
        let Judged { decision, .. } = self.look(recorded, now)?;
        // All ways lead to the same.
        if self.counts
            && let (Some(origin), Some(stages)) = (recorded.origins.first(), ways.first())
        {
            self.judge(origin, recorded, stages, now, Counting::Count)?;
        }
        Ok(Again::judged(decision))
    }

    /// Why the policy decides `recorded` as it does, after what was decided before. It doesn't count.
    ///
    /// # Errors
    /// Why that can't be told.
    pub fn explain(&mut self, recorded: &Recorded, now: Timestamp) -> Result<Explanation, String> {
        let (origin, fullest) = recorded.fullest().ok_or(NOTHING)?;
        if fullest.protocol == Protocol::Tls {
            return Ok(Policy::explain(&self.policy, fullest, origin, now));
        }
        for Within {
            origin,
            server_name,
        } in &recorded.within
        {
            if self.tls(origin, server_name.as_deref()).answer != Answer::Intercept {
                return Ok(self.policy.explain_tls(origin, server_name.as_deref()));
            }
        }
        let Judged { operation, .. } = self.look(recorded, now)?;
        Ok(Policy::explain(&self.policy, &operation, origin, now))
    }

    /// What is said of `recorded`, where all of what it may have been leads to the same.
    fn look(&mut self, recorded: &Recorded, now: Timestamp) -> Result<Judged, String> {
        let mut found: Option<Judged> = None;
        for origin in &recorded.origins {
            for stages in &recorded.recalled.ways {
                let judged = self.judge(origin, recorded, stages, now, Counting::Look)?;
                let before = found.get_or_insert_with(|| judged.clone());
                if before.decision != judged.decision {
                    let open = recorded.open.or(recorded.recalled.open);
                    return Err(open
                        .unwrap_or("it may have been more than one thing")
                        .to_owned());
                }
            }
        }
        found.ok_or_else(|| NOTHING.to_owned())
    }

    fn tls(&self, origin: &Origin, name: Option<&str>) -> Again {
        let TlsDecision {
            treatment,
            decision,
            by_name: _,
        } = self.policy.tls(origin, name);
        let answer = match treatment {
            Treatment::Deny if !decision.enforced => Answer::Intercept,
            treatment => treatment.into(),
        };
        Again { answer, decision }
    }

    /// Decides it as it came: by what was there of it first, and by more of it where that is needed.
    fn judge(
        &mut self,
        origin: &Arc<Origin>,
        recorded: &Recorded,
        stages: &[Operation],
        now: Timestamp,
        counting: Counting,
    ) -> Result<Judged, String> {
        let scope = self.scope(origin);
        for (place, operation) in stages.iter().enumerate() {
            let coming = match operation.http.as_ref().map(|request| &request.body) {
                Some(Body::Coming(length)) => Some(*length),
                _ => None,
            };
            let is_last = place + 1 == stages.len();
            if coming.is_some() && scope.needs_content(operation, now) {
                if is_last {
                    return Err(NO_BODY.to_owned());
                }
                continue;
            }
            let decision = match counting {
                Counting::Count => scope.evaluate(operation, now).decision,
                Counting::Look => scope.look(operation, now).decision,
            };
            // People are asked about all of it, and then the rules are once more.
            if decision.enforced && matches!(decision.verdict, Verdict::Hold(_)) {
                match coming {
                    Some(_) if !is_last => continue,
                    Some(None) if !is_the_same_of_any_length(scope, operation, now) => {
                        return Err(NO_BODY.to_owned());
                    }
                    _ => {}
                }
            }
            if let Some(name) = self.depends_on_hidden(origin, recorded, operation, &decision, now)
            {
                return Err(format!(
                    "a rule asks for the value of `{name}`, which is never on record"
                ));
            }
            return Ok(Judged {
                decision,
                operation: operation.clone(),
            });
        }
        Err(NO_BODY.to_owned())
    }

    fn scope(&mut self, origin: &Arc<Origin>) -> &mut Scope {
        let Agent { name, labels } = &*origin.agent;
        let whose = Whose {
            agent: name.clone(),
            labels: labels.clone(),
            destination: origin.destination.clone(),
            names: origin.names.clone(),
        };
        if self.scopes.len() >= SCOPES_MAX && !self.scopes.contains_key(&whose) {
            self.scopes.clear();
        }
        let policy = &self.policy;
        self.scopes
            .entry(whose)
            .or_insert_with(|| Policy::scope(policy, origin.clone()))
    }

    /// The header field, if any, whose value isn't on record and could lead to another decision.
    fn depends_on_hidden(
        &self,
        origin: &Origin,
        recorded: &Recorded,
        operation: &Operation,
        decision: &Decision,
        now: Timestamp,
    ) -> Option<String> {
        let hidden = &recorded.recalled.hidden;
        let request = operation.http.as_ref().filter(|_| !hidden.is_empty())?;
        let rules = &self.policy.rules;
        let deciding = rules.iter().position(|rule| rule.id == decision.rule);
        let weight = |place: usize| rules.get(place).map(|rule| rule.weight());
        let mut could = rules.iter().enumerate().filter(|(place, rule)| {
            rule.enforced
                && match deciding {
                    None => true,
                    Some(deciding) if deciding == *place => true,
                    Some(deciding) => {
                        let (new, found) = (weight(*place), weight(deciding));
                        new > found || (new == found && *place < deciding)
                    }
                }
        });
        could.find_map(|(_, rule)| {
            let asked = asked_of_hidden(rule, hidden)?;
            let name = asked.first().map(|(name, _)| name.clone())?;
            let mut guess = operation.clone();
            guess.http = Some(Arc::new(HttpRequest {
                fields: with_values(&request.fields, &asked),
                ..(**request).clone()
            }));
            let is_meant =
                rule.scope.matches(origin) && rule.matches(&guess, origin, now, Counting::Look);
            is_meant.then_some(name)
        })
    }
}

/// Whether it makes no difference how long the body is that `operation` is still to have.
fn is_the_same_of_any_length(scope: &mut Scope, operation: &Operation, now: Timestamp) -> bool {
    let mut decided = |bytes: u64| {
        let mut operation = operation.clone();
        if let Some(request) = &mut operation.http {
            Arc::make_mut(request).body = Body::Coming(Some(bytes));
        }
        scope.look(&operation, now).decision
    };
    decided(0) == decided(u64::MAX)
}

/// The fields among `hidden` whose values `rule` asks for, each with a value that is one of those meant. Where any
/// value is, it isn't asked for.
fn asked_of_hidden(rule: &Rule, hidden: &[Box<str>]) -> Option<Vec<(String, String)>> {
    let headers = &rule.http.as_ref()?.headers;
    let asked = headers.iter().filter(|(name, glob)| {
        !glob.is_any() && hidden.iter().any(|known| known.eq_ignore_ascii_case(name))
    });
    let meant = |pattern: &str| pattern.replace('*', "").replace('?', "x");
    let asked: Vec<_> = asked
        .map(|(name, glob)| (name.to_ascii_lowercase(), meant(glob.as_str())))
        .collect();
    (!asked.is_empty()).then_some(asked)
}

/// `fields` with other values for those that are named.
fn with_values(fields: &Fields, values: &[(String, String)]) -> Fields {
    let (mut raw, mut places) = (Vec::new(), Vec::new());
    for (name, value) in fields.iter() {
        let other = values
            .iter()
            .find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name));
        let value = other.map_or(value, |(_, value)| value.as_bytes());
        let start = raw.len();
        raw.extend_from_slice(name);
        let name = start..raw.len();
        raw.extend_from_slice(value);
        places.push((name.clone(), name.end..raw.len()));
    }
    Fields::new(raw.into(), places)
}

impl Again {
    fn judged(decision: Arc<Decision>) -> Self {
        Self {
            answer: Answer::from(&decision.verdict),
            decision,
        }
    }

    /// What was decided of a recorded operation of `protocol`.
    #[must_use]
    pub fn recorded(protocol: Protocol, decision: Arc<Decision>) -> Self {
        let answer = match (protocol, &decision.verdict) {
            (Protocol::Tls, Verdict::Allow) => Answer::Passthrough,
            (_, verdict) => Answer::from(verdict),
        };
        Self { answer, decision }
    }

    /// Whether nothing is done of what it says.
    #[must_use]
    pub fn only_observes(&self) -> bool {
        !self.decision.enforced && matches!(self.answer, Answer::Hold | Answer::Deny)
    }

    /// What is different about `new`, which is of the same operation.
    #[must_use]
    pub fn difference(&self, new: &Self) -> Difference {
        let is_same_rule = self.decision.rule == new.decision.rule;
        // What a rule lets through unseen is still refused where the server isn't who it should be.
        let is_refused_later =
            is_same_rule && (self.answer, new.answer) == (Answer::Deny, Answer::Passthrough);
        if is_refused_later {
            return Difference::Nothing;
        }
        if self.answer != new.answer || self.only_observes() != new.only_observes() {
            return Difference::Answer;
        }
        if self.decision.verdict != new.decision.verdict {
            return Difference::Terms;
        }
        let masks = |of: &Self| {
            let by = of.decision.masked_by.clone();
            // Of what is refused nothing comes back.
            let is_masked = of.answer != Answer::Deny && !by.is_empty();
            is_masked.then_some((by, of.decision.enforced))
        };
        if masks(self) != masks(new) {
            return Difference::Masks;
        }
        match is_same_rule {
            true => Difference::Nothing,
            false => Difference::Rule,
        }
    }
}
