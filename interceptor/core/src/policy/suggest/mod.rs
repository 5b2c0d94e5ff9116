//! Rules out of what an agent did: the tightest that would have allowed it, for people to look through.
//!
//! A rule is for one agent, destination and protocol, and for the actions, effects and resources that were seen
//! together. What rules can't tell apart by those (calls of unknown code, statements that touch no table) is allowed by
//! its text. Patterns stand for names only where many are siblings. What comes out is held to what went in before
//! anybody sees it.

mod group;
mod siblings;
#[cfg(test)]
mod tests;
mod text;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use self::group::{Contents, Key};
use super::{
    Answer, Policy,
    cases::Describe,
    decision::{Decision, Verdict},
    replay::{Recorded, Replay},
};
use crate::{
    operation::{Operation, Protocol},
    record::Timestamp,
};

/// Distinct operations that are looked at; those beyond are counted.
const DISTINCT_MAX: usize = 100_000;

/// Bytes of a text that a rule is made of; nobody looks through a longer one.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Operations that are left out and named.
const NAMED_MAX: usize = 40;

/// Operations of one rule that cases are made of.
const CASES_MAX: usize = 3;

/// Collects what an agent did.
#[derive(Debug)]
pub struct Suggesting {
    agent: Box<str>,
    groups: BTreeMap<Key, Contents>,
    /// What was allowed, each once.
    allowed: Vec<(Recorded, Timestamp)>,
    seen: HashSet<String>,
    operations: u64,
    /// Beyond [`DISTINCT_MAX`].
    beyond: u64,
    left_out: BTreeMap<LeftOut, u64>,
    /// Rules that masked what came back.
    masked_by: BTreeSet<Box<str>>,
    has_whole_tables: bool,
}

/// An operation for which there is no rule, in short.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct LeftOut {
    why: String,
    what: String,
}

/// What is suggested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// A policy file.
    pub rules: String,
    /// The cases that go with it.
    pub cases: String,
    /// How many rules there are.
    pub rule_count: usize,
    /// How many cases.
    pub case_count: usize,
    /// Operations that they are made from.
    pub operations: u64,
    /// Operations for which there is no rule.
    pub left_out: u64,
}

impl Suggesting {
    /// Of the agent of that name.
    #[must_use]
    pub fn new(agent: &str) -> Self {
        Self {
            agent: agent.into(),
            groups: BTreeMap::new(),
            allowed: Vec::new(),
            seen: HashSet::new(),
            operations: 0,
            beyond: 0,
            left_out: BTreeMap::new(),
            masked_by: BTreeSet::new(),
            has_whole_tables: false,
        }
    }

    /// Takes an operation of the agent, about which `decision` was made: what a rule denied or held is left out, even if
    /// that only observed, and so is what `default` refused.
    pub fn take(
        &mut self,
        operation: &Operation,
        decision: &Decision,
        recorded: &Result<Recorded, String>,
        time: Timestamp,
    ) {
        if let Some(why) = is_unwanted(decision) {
            return self.leave_out(why, operation);
        }
        let recorded = match recorded {
            Ok(recorded) => recorded,
            Err(why) => return self.leave_out(why.clone(), operation),
        };
        let Some((origin, fullest)) = recorded.fullest() else {
            return;
        };
        // Names that it only may have had are not for rules.
        let origin = match &*recorded.origins {
            [origin] => origin.clone(),
            _ => Arc::new(crate::origin::Origin {
                names: Vec::new(),
                ..(**origin).clone()
            }),
        };
        let key = Key::of(&origin, fullest);
        if key.is_exact() && fullest.content.len() > TEXT_BYTES_MAX {
            let why = "only its text tells it from others, and that is too long for a rule";
            return self.leave_out(why.to_owned(), operation);
        }
        self.operations += 1;
        self.masked_by.extend(decision.masked_by.iter().cloned());
        let attributes = &fullest.description.attributes;
        self.has_whole_tables |= attributes.get("where").is_some_and(|is| **is == *"absent");
        let text = key.is_exact().then_some(&fullest.content);
        let description = &fullest.description;
        let within = &recorded.within;
        let once = format!("{:?} {text:?} {description:?} {within:?}", key.place());
        if !self.seen.contains(&once) {
            if self.seen.len() >= DISTINCT_MAX {
                self.beyond += 1;
                return;
            }
            self.seen.insert(once);
            self.allowed.push((recorded.clone(), time));
        }
        self.groups.entry(key).or_default().take(&origin, fullest);
    }

    fn leave_out(&mut self, why: String, operation: &Operation) {
        let what = text::in_short(operation);
        let left_out = LeftOut { why, what };
        // One line for all that there is no room to name.
        let left_out = match self.left_out.len() >= DISTINCT_MAX {
            true if !self.left_out.contains_key(&left_out) => LeftOut {
                why: left_out.why,
                what: "others".to_owned(),
            },
            _ => left_out,
        };
        *self.left_out.entry(left_out).or_default() += 1;
    }

    /// The rules for what was taken, with cases; `None` where nothing was. `describe` reads the cases' statements.
    #[must_use]
    pub fn finish(mut self, describe: Describe<'_>) -> Option<Suggestion> {
        if self.groups.is_empty() && self.left_out.is_empty() {
            return None;
        }
        let rules = text::rules(&self.agent, &self.groups, self.has_whole_tables);
        let text = text::policy(&rules);
        let policy = Policy::parse(&[("suggested".to_owned(), text.clone())]);
        let policy = match policy {
            Ok(policy) => Arc::new(policy),
            // No rule that is made here is known to be refused; a policy without any allows nothing too much.
            Err(error) => {
                let left_out = LeftOut {
                    why: format!("the rules made of them aren't valid: {error}"),
                    what: "everything".to_owned(),
                };
                let operations = std::mem::take(&mut self.operations);
                self.left_out.insert(left_out, operations);
                self.allowed.clear();
                let text = text::policy(&[]);
                let policy = Policy::parse(&[("suggested".to_owned(), text)]).ok()?;
                return Some(self.suggestion(&[], &Arc::new(policy), describe));
            }
        };
        let mut replay = Replay::new(policy.clone());
        for (recorded, time) in std::mem::take(&mut self.allowed) {
            let again = replay.decide(&recorded, time);
            let goes = |answer| matches!(answer, Answer::Allow | Answer::Passthrough);
            if !again.is_ok_and(|again| goes(again.answer))
                && let Some((_, operation)) = recorded.fullest()
            {
                let why = "no rule can be made for it".to_owned();
                self.operations = self.operations.saturating_sub(1);
                self.leave_out(why, operation);
            }
        }
        Some(self.suggestion(&rules, &policy, describe))
    }

    fn suggestion(
        &self,
        rules: &[text::Rule],
        policy: &Arc<Policy>,
        describe: Describe<'_>,
    ) -> Suggestion {
        let cases = text::cases(&self.agent, &self.groups, policy, describe);
        let mut head = format!(
            "# Suggested from {} of agent {}. Look through it before it is in force.\n#\n\
             # It allows what was seen: a combination of destination, action, effect and resource that wasn't is denied. Not\n\
             # limited are the values in statements, the queries, header fields and bodies of requests, and how often and when.\n",
            text::count(self.operations, "operation"),
            yaml::quoted(&self.agent),
        );
        if !self.masked_by.is_empty() {
            let by = self.masked_by.iter();
            head.push_str(&format!(
                "#\n# Results were masked by {}: these rules mask nothing, so keep those.\n",
                by.map(|rule| yaml::quoted(rule))
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        if self.beyond > 0 {
            head.push_str(&format!(
                "#\n# {} were too different from one another to be looked at one by one.\n",
                text::count(self.beyond, "more operation")
            ));
        }
        if !self.left_out.is_empty() {
            head.push_str("#\n# Left out:\n");
        }
        for (LeftOut { why, what }, count) in self.left_out.iter().take(NAMED_MAX) {
            let times = match count {
                1 => String::new(),
                count => format!(" ({count} times)"),
            };
            head.push_str(&format!("#   {what}{times}: {}\n", yaml::comment(why)));
        }
        if let Some(more @ 1..) = self.left_out.len().checked_sub(NAMED_MAX) {
            head.push_str(&format!("#   and {more} more\n"));
        }
        Suggestion {
            rules: format!("{head}{}", text::policy(rules)),
            case_count: cases.len(),
            cases: text::all_cases(&cases),
            rule_count: rules.len(),
            operations: self.operations,
            left_out: self.left_out.values().sum(),
        }
    }
}

/// Why what was decided so is for no rule that allows.
fn is_unwanted(decision: &Decision) -> Option<String> {
    if let Some(observation) = decision
        .observations()
        .into_iter()
        .find(|observation| observation.would != super::Would::Mask)
    {
        // Nothing was said of it, and it was let go to see what there is.
        let is_unsaid = &*observation.rule == "default";
        return (!is_unsaid).then(|| {
            format!(
                "rule {} would {} it",
                observation.rule,
                observation.would.name()
            )
        });
    }
    match decision.verdict {
        Verdict::Allow => None,
        Verdict::Deny => Some(format!("denied by rule {}", decision.rule)),
        Verdict::Hold(_) => Some(format!("held by rule {}", decision.rule)),
    }
}

/// Whether rules of that protocol can name what it is about.
const fn is_understood(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::Postgres | Protocol::Http | Protocol::Dns
    )
}
