//! What rules would have done that only observe, so that they can be enforced without fear.

use std::{collections::BTreeMap, sync::Arc};

use interceptor_core::{
    operation::Operation,
    policy::Would,
    record::{Event, Record, SessionId, Timestamp},
    ruling::Decision,
};
use serde::{Deserialize, Serialize};

use super::Asked;
use crate::journal::{JournalError, Reader};

/// Most characters of an operation that are kept as an example.
const EXAMPLE_CHARACTERS_MAX: usize = 400;

/// What would have been done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Operations on record that were asked about.
    pub operations: u64,
    /// Those of them that would have been denied or held.
    pub stopped: u64,
    /// By rule, what would have been denied first, and the most frequent of that.
    pub rules: Vec<ObservedRule>,
}

/// What one rule would have done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedRule {
    /// Its id, `default` where no rule matched.
    pub rule: Box<str>,
    /// What.
    pub would: Would,
    /// To how many operations; of masks, whose results would have gone through them.
    pub operations: u64,
    /// Of which agents, and how many of each.
    pub agents: BTreeMap<Box<str>, u64>,
    /// When first.
    #[serde(with = "crate::rfc3339")]
    pub first: Timestamp,
    /// When last.
    #[serde(with = "crate::rfc3339")]
    pub last: Timestamp,
    /// The last one.
    pub example: Example,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Its session.
    pub session: SessionId,
    /// Its number in there.
    pub number: u64,
    /// What was attempted, in its protocol's words.
    pub action: String,
    /// What it touched.
    pub resources: Vec<String>,
    /// The beginning of what was sent, as the agent wrote it.
    pub content: String,
}

/// Collects what was only observed, record by record.
#[derive(Debug, Default)]
pub struct Observing {
    asked: Asked,
    operations: u64,
    stopped: u64,
    rules: BTreeMap<(Box<str>, Would), ObservedRule>,
    /// Of each session the operation whose decision follows.
    attempted: BTreeMap<SessionId, (u64, Operation)>,
}

/// What was only observed of what `reader` has and is asked for.
///
/// # Errors
/// Where the journal can't be read.
pub fn observed(reader: &Reader, asked: &Asked) -> Result<Observed, JournalError> {
    let mut observing = Observing::new(asked.clone());
    reader.each(|record| {
        observing.take(record);
        true
    })?;
    Ok(observing.finish())
}

impl Observing {
    /// Of what is asked for.
    #[must_use]
    pub fn new(asked: Asked) -> Self {
        Self {
            asked,
            ..Self::default()
        }
    }

    /// Takes the next record.
    pub fn take(&mut self, record: Record) {
        let Some(session) = record.session else {
            return;
        };
        if !self.asked.takes(&record.agent, record.time) {
            return;
        }
        match record.event {
            Event::Operation(attempted) => {
                let attempted = (attempted.number, attempted.operation);
                self.attempted.insert(session, attempted);
            }
            Event::Decision(decided) => {
                let attempted = self.attempted.remove(&session);
                let operation = attempted
                    .filter(|(number, _)| *number == decided.number)
                    .map(|(_, operation)| operation);
                let place = (session, decided.number);
                self.decided(
                    place,
                    &record.agent,
                    record.time,
                    &decided.decision,
                    operation,
                );
            }
            Event::SessionEnd(_) => _ = self.attempted.remove(&session),
            _ => {}
        }
    }

    fn decided(
        &mut self,
        (session, number): (SessionId, u64),
        agent: &Arc<str>,
        time: Timestamp,
        decision: &Decision,
        operation: Option<Operation>,
    ) {
        self.operations += 1;
        let observations = decision.observations();
        let is_stopped = observations.iter().any(|would| would.would != Would::Mask);
        self.stopped += u64::from(is_stopped);
        for observation in observations {
            let key = (observation.rule, observation.would);
            let rule = self
                .rules
                .entry(key)
                .or_insert_with_key(|(rule, would)| ObservedRule {
                    rule: rule.clone(),
                    would: *would,
                    operations: 0,
                    agents: BTreeMap::new(),
                    first: time,
                    last: time,
                    example: Example::default(),
                });
            rule.operations += 1;
            *rule.agents.entry(Box::from(&**agent)).or_default() += 1;
            rule.last = time;
            rule.example = Example::of(session, number, operation.as_ref());
        }
    }

    /// What came together.
    #[must_use]
    pub fn finish(self) -> Observed {
        let mut rules: Vec<_> = self.rules.into_values().collect();
        rules.sort_by_key(|rule| std::cmp::Reverse((rule.would, rule.operations)));
        Observed {
            operations: self.operations,
            stopped: self.stopped,
            rules,
        }
    }
}

impl Default for Example {
    fn default() -> Self {
        Self::of(SessionId(0), 0, None)
    }
}

impl Example {
    fn of(session: SessionId, number: u64, operation: Option<&Operation>) -> Self {
        let Some(operation) = operation else {
            return Self {
                session,
                number,
                action: String::new(),
                resources: Vec::new(),
                content: String::new(),
            };
        };
        // A character has four bytes at most.
        let content = &operation.content;
        let beginning = content.get(..EXAMPLE_CHARACTERS_MAX * 4).unwrap_or(content);
        let beginning = String::from_utf8_lossy(beginning);
        let resources = operation.description.resources.iter();
        Self {
            session,
            number,
            action: operation.description.action(),
            resources: resources.map(ToString::to_string).collect(),
            content: beginning.chars().take(EXAMPLE_CHARACTERS_MAX).collect(),
        }
    }
}
