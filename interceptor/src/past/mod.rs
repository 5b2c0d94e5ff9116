//! What is on record as operations that can be decided again: whose they were, what was known of where they went,
//! and what was decided.
//!
//! It reads what agents wrote (heads of requests), so it is for the command line and never runs in the daemon; only
//! [`observed`] looks at nothing but decisions.

mod explain;
mod names;
pub mod observed;
mod replay;
mod suggest;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use interceptor_core::{
    operation::Operation,
    origin::Origin,
    policy::Recorded,
    protocol,
    record::{Event, Record, SessionId, Timestamp},
    ruling::Decision,
};

use self::names::Names;
pub use self::{
    explain::{NotFound, explain},
    observed::{Observed, observed},
    replay::{Changed, Counted, Kind, Replayed, Said, Way, replay},
    suggest::suggest,
};

/// Which part of the past is asked about; empty means all.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Nothing before.
    pub since: Option<Timestamp>,
    /// Only this agent, by name.
    pub agent: Option<String>,
}

impl Asked {
    fn takes(&self, agent: &str, time: Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since)
            && self.agent.as_ref().is_none_or(|asked| asked == agent)
    }
}

/// A decided operation of the past.
#[derive(Debug, Clone)]
pub struct Deed {
    /// Its session.
    pub session: SessionId,
    /// Its number in there.
    pub number: u64,
    /// When it was decided.
    pub time: Timestamp,
    /// The agent's name.
    pub agent: Arc<str>,
    /// The operation as it is on record.
    pub operation: Operation,
    /// What was decided.
    pub decision: Arc<Decision>,
    /// What it takes to decide it again, or why that can't be done.
    pub recorded: Result<Recorded, String>,
}

/// What a record comes to.
#[derive(Debug)]
pub enum Happened {
    /// An operation was decided.
    Deed(Box<Deed>),
    /// Who decides began anew, and what was counted until then is forgotten.
    Restart,
}

/// Follows the journal from its beginning.
#[derive(Debug, Default)]
pub struct Past {
    sessions: HashMap<SessionId, Told>,
}

/// What was told of a session so far.
#[derive(Debug)]
struct Told {
    origin: Arc<Origin>,
    names: Names,
    /// The operation whose decision follows.
    attempted: Option<(u64, Operation)>,
}

impl Past {
    /// What `record`, the next one, comes to.
    pub fn take(&mut self, record: Record) -> Option<Happened> {
        let Record {
            time,
            session,
            agent,
            event,
            ..
        } = record;
        let Some(id) = session else {
            return match event {
                Event::Event(notice)
                    if matches!(&*notice.name, "daemon_started" | "proxy_ended") =>
                {
                    Some(Happened::Restart)
                }
                _ => None,
            };
        };
        match event {
            Event::SessionStart(start) | Event::DatagramsStart(start) => {
                let told = Told {
                    names: Names::new(&start.origin),
                    origin: start.origin,
                    attempted: None,
                };
                self.sessions.insert(id, told);
                None
            }
            Event::Operation(attempted) => {
                let told = self
                    .sessions
                    .entry(id)
                    .or_insert_with(|| Told::unbegun(&agent));
                told.attempted = Some((attempted.number, attempted.operation));
                None
            }
            Event::Decision(decided) => {
                let told = self.sessions.get_mut(&id)?;
                let (number, operation) = told.attempted.take()?;
                (number == decided.number).then(|| {
                    let recorded = told.recorded(number, &operation);
                    Happened::Deed(Box::new(Deed {
                        session: id,
                        number,
                        time,
                        agent,
                        recorded,
                        operation,
                        decision: decided.decision,
                    }))
                })
            }
            Event::Response(response) => {
                let told = self.sessions.get_mut(&id)?;
                told.names.answered(response.number, &response.status);
                None
            }
            Event::Event(notice) => {
                let told = self.sessions.get_mut(&id)?;
                told.names.noted(&told.origin, &notice);
                None
            }
            Event::SessionEnd(_) => {
                self.sessions.remove(&id);
                None
            }
            Event::Approval(_) | Event::Content(_) => None,
        }
    }
}

impl Told {
    /// Of a session whose beginning isn't on record any more.
    fn unbegun(agent: &str) -> Self {
        let origin = names::nobody(agent);
        Self {
            names: Names::unknown(),
            origin,
            attempted: None,
        }
    }

    fn recorded(&mut self, number: u64, operation: &Operation) -> Result<Recorded, String> {
        let (origins, open) = self.names.of(&self.origin, number, operation)?;
        Ok(Recorded {
            origins,
            open,
            recalled: protocol::recall(operation.clone())?,
            within: self.names.within().to_vec(),
        })
    }
}
