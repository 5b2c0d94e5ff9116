//! What another policy would have said of the past.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use interceptor_core::{
    policy::{Again, Answer, Difference, Policy, Replay},
    record::{SessionId, Timestamp},
};
use serde::Serialize;

use super::{Asked, Deed, Happened, Past};
use crate::journal::{JournalError, Reader};

/// What came of deciding the past again.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Operations that were decided again.
    pub decided: u64,
    /// Those of them that something else would have become of.
    pub changed: u64,
    /// When the first of what was asked about was attempted.
    #[serde(with = "crate::rfc3339::option")]
    pub first: Option<Timestamp>,
    /// And the last.
    #[serde(with = "crate::rfc3339::option")]
    pub last: Option<Timestamp>,
    /// How often what was decided in one way would have been decided in another, the most frequent first.
    pub ways: Vec<Counted>,
    /// The last of those that something else would have become of, the newest last.
    pub operations: VecDeque<Changed>,
    /// Why operations couldn't be decided again, and how many.
    pub undecided: BTreeMap<String, u64>,
}

/// How often one decision would have been another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// From what to what.
    #[serde(flatten)]
    pub way: Way,
    /// How often.
    pub operations: u64,
}

/// From one decision to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Way {
    /// What is different.
    pub difference: Kind,
    /// What was decided.
    pub from: Said,
    /// What would have been.
    pub to: Said,
}

/// What is different about two decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something else becomes of it.
    Answer,
    /// Other people are asked, or on other terms.
    Terms,
    /// Other rules mask what comes back.
    Masks,
    /// Another rule says the same.
    Rule,
}

/// A decision in short.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Said {
    /// What becomes of it.
    pub answer: Answer,
    /// Nothing of that is done.
    pub observed: bool,
    /// The rule that decides.
    pub rule: Arc<str>,
}

/// An operation that something else would have become of.
#[derive(Debug, Serialize)]
pub struct Changed {
    /// Its session.
    pub session: SessionId,
    /// Its number in there.
    pub number: u64,
    /// When it was attempted.
    #[serde(with = "crate::rfc3339")]
    pub time: Timestamp,
    /// The agent.
    pub agent: Arc<str>,
    /// What was attempted, in its protocol's words.
    pub action: String,
    /// What it touched.
    pub resources: Vec<String>,
    /// What is different.
    #[serde(flatten)]
    pub way: Way,
}

/// Decides again what `reader` has and is asked for, by `policy`; of what comes out otherwise the last `limit`.
///
/// The policy's own counts are used: it has to be one that nobody else decides by.
///
/// # Errors
/// Where the journal can't be read.
pub fn replay(
    reader: &Reader,
    policy: Arc<Policy>,
    asked: &Asked,
    limit: usize,
) -> Result<Replayed, JournalError> {
    let mut replay = Replay::new(policy);
    let mut past = Past::default();
    let mut out = Replayed::default();
    let mut ways: BTreeMap<Way, u64> = BTreeMap::new();
    reader.each(|record| {
        match past.take(record) {
            None => {}
            Some(Happened::Restart) => replay.forget(),
            Some(Happened::Deed(deed)) => {
                if asked.takes(&deed.agent, deed.time) {
                    out.first.get_or_insert(deed.time);
                    out.last = Some(deed.time);
                    if let Some(changed) = out.take(&mut replay, &deed) {
                        *ways.entry(changed.way.clone()).or_default() += 1;
                        if changed.way.difference != Kind::Rule {
                            out.changed += 1;
                            out.operations.push_back(changed);
                        }
                        if out.operations.len() > limit {
                            out.operations.pop_front();
                        }
                    }
                } else if replay.depends_on_before()
                    && let Ok(recorded) = &deed.recorded
                {
                    // It counts, and that is all that it is for.
                    _ = replay.decide(recorded, deed.time);
                }
            }
        }
        true
    })?;
    let counted = |(way, operations)| Counted { way, operations };
    out.ways = ways.into_iter().map(counted).collect();
    // Within what is of one kind the most frequent first.
    out.ways
        .sort_by_key(|counted| (counted.way.difference, Reverse(counted.operations)));
    Ok(out)
}

impl Replayed {
    /// Decides `deed` again; what is different about it, if anything is.
    fn take(&mut self, replay: &mut Replay, deed: &Deed) -> Option<Changed> {
        let again = match &deed.recorded {
            Ok(recorded) => replay.decide(recorded, deed.time),
            Err(why) => Err(why.clone()),
        };
        let new = match again {
            Ok(again) => again,
            Err(why) => {
                *self.undecided.entry(why).or_default() += 1;
                return None;
            }
        };
        self.decided += 1;
        let old = Again::recorded(deed.operation.protocol, deed.decision.clone());
        let difference = match old.difference(&new) {
            Difference::Nothing => return None,
            Difference::Rule => Kind::Rule,
            Difference::Masks => Kind::Masks,
            Difference::Terms => Kind::Terms,
            Difference::Answer => Kind::Answer,
        };
        let description = &deed.operation.description;
        let resources = description.resources.iter();
        Some(Changed {
            session: deed.session,
            number: deed.number,
            time: deed.time,
            agent: deed.agent.clone(),
            action: description.action(),
            resources: resources.map(ToString::to_string).collect(),
            way: Way {
                difference,
                from: Said::of(&old),
                to: Said::of(&new),
            },
        })
    }
}

impl Said {
    fn of(again: &Again) -> Self {
        Self {
            answer: again.answer,
            observed: again.only_observes(),
            rule: again.decision.rule.clone(),
        }
    }
}
