//! The sessions that are open: what the proxy is believed about.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use interceptor_core::{
    origin::{Agent, Destination, Origin, Process},
    record::{Event, SessionEnd, SessionId},
};

use crate::{
    accept::random_id,
    books::Tally,
    config::Limits,
    engines::Engine,
    journal::{Fed, What},
    namespaces::Network,
    sync::lock,
};

/// All open sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    limits: Limits,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    sessions: HashMap<SessionId, Session>,
    /// How many each agent has, by its number.
    of_agent: HashMap<u64, u32>,
    /// How many operations each rule has decided.
    hits: BTreeMap<Box<str>, u64>,
}

/// One of them, as the daemon knows it.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The agent's number.
    pub(super) number: u64,
    pub(super) origin: Arc<Origin>,
    /// The agent's name, as records have it.
    pub(super) agent: Arc<str>,
    pub(super) network: Network,
    /// What it is connected to, of a session with a container engine.
    pub(super) engine: Option<Arc<Engine>>,
    /// Which of the proxy's lines it is on.
    pub(super) line: usize,
    /// Counts it once it is on record; nothing does for datagrams.
    tally: Option<Arc<Tally>>,
    progress: Progress,
}

/// What is on record of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    started: bool,
    operations: u64,
    ended: bool,
}

/// What a record that was taken says of its session.
#[derive(Debug, Clone)]
pub(super) enum Fact {
    Started(SessionId),
    Operation(SessionId, u64),
    /// By this rule.
    Decided(Box<str>),
    Ended(SessionId),
}

/// What opens a session.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The agent and its number.
    pub(crate) agent: (u64, Arc<Agent>),
    /// Who.
    pub(crate) process: Process,
    /// Where to.
    pub(crate) destination: Destination,
    /// Who is there, where that is a container engine.
    pub(crate) engine: Option<Arc<Engine>>,
    /// Where from.
    pub(crate) network: Network,
    /// Counts it.
    pub(crate) tally: Option<Arc<Tally>>,
    /// The proxy's line that it goes by.
    pub(crate) line: usize,
}

impl Sessions {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Mutex::default(),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.open().sessions.len()
    }

    /// Opens one, where its agent may have one more.
    ///
    /// # Errors
    /// Which limit it is over.
    pub(crate) fn begin(&self, opening: Opening) -> Result<(SessionId, Session), &'static str> {
        let (number, agent) = opening.agent;
        let mut open = self.open();
        if open.sessions.len() >= self.limits.connections.get() as usize {
            return Err(
                "too many connections are open (`limits.connections` in the configuration)",
            );
        }
        let of_agent = open.of_agent.entry(number).or_default();
        if *of_agent >= self.limits.connections_per_agent.get() {
            return Err(
                "the agent has too many connections open (`limits.connections_per_agent` in the configuration)",
            );
        }
        *of_agent += 1;
        let id = loop {
            let id = SessionId(random_id());
            if !open.sessions.contains_key(&id) {
                break id;
            }
        };
        let session = Session {
            number,
            agent: Arc::from(&*agent.name),
            origin: Arc::new(Origin {
                agent,
                process: opening.process,
                destination: opening.destination,
                names: Vec::new(),
            }),
            network: opening.network,
            engine: opening.engine,
            line: opening.line,
            tally: opening.tally,
            progress: Progress::default(),
        };
        open.sessions.insert(id, session.clone());
        Ok((id, session))
    }

    /// Whether `id` goes on.
    pub(crate) fn is_open(&self, id: SessionId) -> bool {
        self.find(id).is_some()
    }

    /// One of them.
    pub(super) fn find(&self, id: SessionId) -> Option<Session> {
        self.open().sessions.get(&id).cloned()
    }

    /// Those of an agent, by its number, each with its line.
    pub(super) fn of_agent(&self, number: u64) -> Vec<(SessionId, usize)> {
        let open = self.open();
        let of_agent = open
            .sessions
            .iter()
            .filter(|(_, session)| session.number == number);
        of_agent.map(|(id, session)| (*id, session.line)).collect()
    }

    /// One is over.
    pub(super) fn end(&self, id: SessionId) -> Option<Session> {
        let mut open = self.open();
        let session = open.sessions.remove(&id)?;
        if let Some(count) = open.of_agent.get_mut(&session.number) {
            *count -= 1;
            if *count == 0 {
                open.of_agent.remove(&session.number);
            }
        }
        Some(session)
    }

    /// All are over.
    pub(super) fn end_all(&self) -> Vec<(SessionId, Session)> {
        let mut open = self.open();
        open.of_agent.clear();
        open.sessions.drain().collect()
    }

    /// What `record` says of its session.
    ///
    /// # Errors
    /// Where it is of no open session or another agent, isn't of the kind that sessions write, or says of who is
    /// behind its session what isn't so.
    pub(super) fn vouch(&self, record: &Fed) -> Result<Option<Fact>, &'static str> {
        let open = self.open();
        let id = record.session;
        let session = open
            .sessions
            .get(&id)
            .ok_or("it is of a session that isn't open")?;
        if *record.agent != *session.agent {
            return Err("it is of another agent");
        }
        match &record.what {
            What::Started(start) if !session.is_told_by(&start.event) => {
                Err("its session says that it is another one")
            }
            What::Started(_) => Ok(Some(Fact::Started(id))),
            What::Operation(number, ..) => Ok(Some(Fact::Operation(id, *number))),
            What::Ended(_) => Ok(Some(Fact::Ended(id))),
            What::Approval => Err("it says what people do"),
            What::Decision(_, rule) => Ok(Some(Fact::Decided(rule.clone()))),
            What::Told(_) | What::Other => Ok(None),
        }
    }

    /// What `facts` say is on record.
    pub(super) fn recorded(&self, facts: Vec<Fact>) {
        let mut open = self.open();
        for fact in facts {
            let id = match &fact {
                Fact::Started(id) | Fact::Operation(id, _) | Fact::Ended(id) => *id,
                Fact::Decided(rule) => {
                    match open.hits.get_mut(rule) {
                        Some(hits) => *hits += 1,
                        None => drop(open.hits.insert(rule.clone(), 1)),
                    }
                    continue;
                }
            };
            let Some(session) = open.sessions.get_mut(&id) else {
                continue;
            };
            match fact {
                Fact::Started(_) => {
                    session.progress.started = true;
                    if let Some(tally) = session.tally.take() {
                        tally.session();
                    }
                }
                Fact::Operation(_, number) => session.progress.operations = number,
                Fact::Ended(_) => session.progress.ended = true,
                Fact::Decided(_) => {}
            }
        }
    }

    /// How many operations each rule has decided since the daemon started.
    pub(crate) fn hits(&self) -> BTreeMap<Box<str>, u64> {
        self.open().hits.clone()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

impl Session {
    /// Whether `start` says of who is behind it what is so.
    fn is_told_by(&self, start: &Event) -> bool {
        let (Event::SessionStart(start) | Event::DatagramsStart(start)) = start else {
            return false;
        };
        let Origin {
            agent,
            process,
            destination,
            names: _,
        } = &*start.origin;
        let known = &*self.origin;
        // Records have the namespace elsewhere.
        let known_process = Process {
            network_namespace: None,
            ..known.process.clone()
        };
        *agent == known.agent && *process == known_process && *destination == known.destination
    }

    /// What has to go on record of it where the proxy ended before it did, and whom it then counts for.
    pub(super) fn last_words(&mut self, reason: &str) -> Option<(Event, Option<Arc<Tally>>)> {
        match self.progress {
            Progress { ended: true, .. } => None,
            Progress {
                started: true,
                operations,
                ..
            } => {
                let end = SessionEnd {
                    reason: reason.into(),
                    operations,
                    bytes_from_client: 0,
                    bytes_from_upstream: 0,
                };
                Some((Event::SessionEnd(end), None))
            }
            Progress { started: false, .. } => {
                let reason = [("reason", reason.to_owned())];
                let name = match self.engine {
                    Some(_) => "engine_refused",
                    None => "connection_refused",
                };
                let event = Event::notice(name, reason);
                Some((event, self.tally.take()))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use interceptor_core::record::{
        ApprovalId, ApprovalRecord, ApprovalStep, Record, SessionStart, Timestamp,
    };

    use super::*;

    pub(in crate::proxy) fn opening(number: u64) -> Opening {
        let agent = Agent {
            name: "a".into(),
            labels: Default::default(),
        };
        Opening {
            agent: (number, Arc::new(agent)),
            process: Process {
                pid: 7,
                network_namespace: Some(3),
                ..Process::default()
            },
            destination: Destination::Ip("192.0.2.1:80".parse().unwrap()),
            network: Network::Host { cookie: 1 },
            engine: None,
            tally: Some(Arc::default()),
            line: 0,
        }
    }

    fn record(session: SessionId, event: Event) -> Fed {
        record_of("a", session, event)
    }

    fn record_of(agent: &str, session: SessionId, event: Event) -> Fed {
        let record = Record {
            seq: 0,
            time: Timestamp(1),
            session: Some(session),
            agent: Arc::from(agent),
            event,
        };
        let mut bytes = Vec::new();
        crate::journal::encode(&record, &mut bytes).unwrap();
        Fed::read(bytes).unwrap()
    }

    fn start(origin: &Origin) -> Event {
        let mut origin = origin.clone();
        // As it comes out of a record.
        origin.process.network_namespace = None;
        Event::SessionStart(SessionStart {
            origin: Arc::new(origin),
            client: "127.0.0.1:1".parse().ok(),
        })
    }

    #[test]
    fn records_are_of_who_was_handed_over_whatever_they_say() {
        let sessions = Sessions::new(Limits::default());
        let (id, session) = sessions.begin(opening(1)).unwrap();
        let nothing = || Event::notice("x", []);
        let good = [record(id, start(&session.origin)), record(id, nothing())];
        for record in &good {
            sessions.recorded(sessions.vouch(record).unwrap().into_iter().collect());
        }
        let mut other = (*session.origin).clone();
        other.process.pid = 8;
        let approval = Event::Approval(ApprovalRecord {
            approval: ApprovalId(1),
            number: 1,
            digest: interceptor_core::operation::Digest([0; 32]),
            step: ApprovalStep::Approved { window: None },
        });
        for bad in [
            record_of("b", id, nothing()),
            record(SessionId(id.0 ^ 1), nothing()),
            record(id, start(&other)),
            record(id, approval),
        ] {
            sessions.vouch(&bad).unwrap_err();
        }
        let mut ended = sessions.end(id).unwrap();
        let (words, tally) = ended.last_words("why").unwrap();
        assert!(matches!(words, Event::SessionEnd(_)) && tally.is_none());
        sessions.vouch(&good[1]).unwrap_err();
    }

    #[test]
    fn each_agent_has_its_share() {
        let limits = Limits {
            connections: 3.try_into().unwrap(),
            connections_per_agent: 2.try_into().unwrap(),
            ..Limits::default()
        };
        let sessions = Sessions::new(limits);
        let (first, _) = sessions.begin(opening(1)).unwrap();
        sessions.begin(opening(1)).unwrap();
        let over = sessions.begin(opening(1)).unwrap_err();
        assert!(over.contains("connections_per_agent"), "{over}");
        let (other, _) = sessions.begin(opening(2)).unwrap();
        assert!(
            !sessions
                .begin(opening(2))
                .unwrap_err()
                .contains("per_agent")
        );
        let mut unserved = sessions.end(first).unwrap();
        let (words, tally) = unserved.last_words("why").unwrap();
        assert!(matches!(words, Event::Event(_)) && tally.is_some());
        assert_eq!((sessions.of_agent(1).len(), sessions.count()), (1, 2));
        sessions.begin(opening(1)).unwrap();
        sessions.end(other);
        assert_eq!(sessions.end_all().len(), 2);
        assert_eq!(sessions.count(), 0);
    }
}
