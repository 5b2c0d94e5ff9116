//! What is known of a session without reading its records, and which sessions are asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use interceptor_core::{
    operation::{Effects, Operation, Protocol},
    record::{ApprovalStep, Event, Notice, Record, SessionId, Timestamp},
    ruling::Verdict,
};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::{
    JournalError, Reader,
    glance::Answer,
    search::{Seen, Text},
};

/// Rules, reviewers and names of one session that are known each; of more it is only known that there are more.
const NAMED_MAX: usize = 64;

/// What is known of a session without reading its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSummary {
    /// Its id.
    pub session: SessionId,
    /// The agent's name.
    pub agent: Arc<str>,
    /// The agent's labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Where it went.
    pub destination: String,
    /// Process id of who connected.
    pub pid: u32,
    /// Its executable.
    pub executable: Option<Box<str>>,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; `None` while it lives, or where the daemon was killed.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<Box<str>>,
    /// Operations attempted in it; known once it has ended.
    pub operations: u64,
    /// What was done in it.
    pub done: Deeds,
}

/// What was done in a session, or in a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deeds {
    /// Operations denied.
    pub denied: u64,
    /// Operations held for approval.
    pub held: u64,
    /// Operations let through without asking.
    pub allowed: u64,
    /// The protocols of its operations.
    pub protocols: BTreeSet<Protocol>,
    /// All effects of its operations.
    pub effects: Effects,
    /// The rules that decided.
    pub rules: Some64,
    /// Who voted.
    pub reviewers: Some64,
    /// What its destination is called, by who was believed.
    pub names: Some64,
}

/// Up to [`NAMED_MAX`] names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Some64 {
    /// Those.
    pub known: BTreeSet<Box<str>>,
    /// There are more.
    pub more: bool,
}

impl Some64 {
    fn add(&mut self, name: &str) {
        if self.known.contains(name) {
            return;
        }
        if self.known.len() < NAMED_MAX {
            self.known.insert(name.into());
        } else {
            self.more = true;
        }
    }

    fn merge(&mut self, other: &Self) {
        other.known.iter().for_each(|name| self.add(name));
        self.more |= other.more;
    }

    fn view(&self) -> View64<'_> {
        View64 {
            known: self.known.iter().map(|name| &**name).collect(),
            more: self.more,
        }
    }
}

/// A summary where it stands: what sessions are chosen by, without a copy of it. Its fields are those of
/// [`SessionSummary`], in their order.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct View<'a> {
    _session: SessionId,
    agent: &'a str,
    #[serde(borrow)]
    labels: Vec<(&'a str, &'a str)>,
    destination: &'a str,
    _pid: u32,
    _executable: Option<&'a str>,
    pub(super) started: Timestamp,
    ended: Option<Timestamp>,
    _reason: Option<&'a str>,
    _operations: u64,
    done: ViewDeeds<'a>,
}

/// [`Deeds`] where they stand.
#[derive(Debug, PartialEq, Deserialize)]
struct ViewDeeds<'a> {
    denied: u64,
    held: u64,
    allowed: u64,
    protocols: Vec<Protocol>,
    effects: Effects,
    #[serde(borrow)]
    rules: View64<'a>,
    #[serde(borrow)]
    reviewers: View64<'a>,
    #[serde(borrow)]
    names: View64<'a>,
}

/// [`Some64`] where they stand.
#[derive(Debug, PartialEq, Deserialize)]
struct View64<'a> {
    #[serde(borrow)]
    known: Vec<&'a str>,
    more: bool,
}

impl View64<'_> {
    /// Whether `name` is one of them, or may be.
    fn may_have(&self, name: &str) -> bool {
        self.more || self.known.contains(&name)
    }
}

impl<'a> View<'a> {
    /// The summary that `bytes` are in postcard's encoding.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    fn of(summary: &'a SessionSummary) -> Self {
        let done = &summary.done;
        let labels = summary.labels.iter();
        Self {
            _session: summary.session,
            agent: &summary.agent,
            labels: labels.map(|(name, value)| (&**name, &**value)).collect(),
            destination: &summary.destination,
            _pid: summary.pid,
            _executable: summary.executable.as_deref(),
            started: summary.started,
            ended: summary.ended,
            _reason: summary.reason.as_deref(),
            _operations: summary.operations,
            done: ViewDeeds {
                denied: done.denied,
                held: done.held,
                allowed: done.allowed,
                protocols: done.protocols.iter().copied().collect(),
                effects: done.effects,
                rules: done.rules.view(),
                reviewers: done.reviewers.view(),
                names: done.names.view(),
            },
        }
    }
}

/// What some records say of one session.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) started: Option<Box<SessionSummary>>,
    pub(super) done: Deeds,
    pub(super) ended: Option<(Timestamp, Box<str>, u64)>,
}

impl Part {
    /// Takes what `record` says.
    pub(super) fn take(&mut self, record: &Record) {
        let Some(session) = record.session else {
            return;
        };
        match &record.event {
            Event::SessionStart(start) | Event::DatagramsStart(start) => {
                self.started = Some(Box::new(SessionSummary {
                    session,
                    agent: record.agent.clone(),
                    labels: start.origin.agent.labels.clone(),
                    destination: start.origin.destination.to_string(),
                    pid: start.origin.process.pid,
                    executable: start.origin.process.executable.clone(),
                    started: record.time,
                    ended: None,
                    reason: None,
                    operations: 0,
                    done: Deeds::default(),
                }));
            }
            Event::Operation(attempted) => self.attempted(&attempted.operation),
            Event::Decision(decided) => {
                let answer = match decided.decision.verdict {
                    Verdict::Allow => Answer::Allow,
                    Verdict::Deny => Answer::Deny,
                    Verdict::Hold(_) => Answer::Hold,
                };
                self.decided(answer, &decided.decision.rule);
            }
            Event::Approval(approval) => {
                if let ApprovalStep::Voted { by, .. } | ApprovalStep::Overridden { by, .. } =
                    &approval.step
                {
                    self.done.reviewers.add(by);
                }
            }
            Event::SessionEnd(end) => {
                self.ended = Some((record.time, end.reason.clone(), end.operations));
            }
            Event::Event(notice) => self.noticed(notice),
            Event::Response(_) | Event::Content(_) => {}
        }
    }

    fn attempted(&mut self, operation: &Operation) {
        self.done.protocols.insert(operation.protocol);
        self.done.effects |= operation.description.effects;
    }

    /// Takes that an operation of `protocol` with `effects` was attempted.
    pub(super) fn seen(&mut self, protocol: Protocol, effects: Effects) {
        self.done.protocols.insert(protocol);
        self.done.effects |= effects;
    }

    /// Takes that an operation was decided so, by `rule`.
    pub(super) fn decided(&mut self, answer: Answer, rule: &str) {
        *match answer {
            Answer::Allow => &mut self.done.allowed,
            Answer::Deny => &mut self.done.denied,
            Answer::Hold => &mut self.done.held,
        } += 1;
        self.done.rules.add(rule);
    }

    fn noticed(&mut self, notice: &Notice) {
        let fact = |name: &str| notice.detail.get(name).map_or("", |value| value);
        let names = match &*notice.name {
            NAMES => fact("names"),
            NAME if fact("known") == "true" => fact("name"),
            TLS => fact("server_name"),
            _ => return,
        };
        for name in names.split(' ').filter(|name| !name.is_empty()) {
            self.done.names.add(name);
        }
    }
}

/// What the resolver that the operator trusts said.
const NAMES: &str = "destination_names";
/// What a request claimed and this host's resolver knows.
const NAME: &str = "destination_name";
/// What a certificate proved.
const TLS: &str = "tls";

/// Notices that say something of what a session is about.
pub(super) const TELLING: [&str; 3] = [NAMES, NAME, TLS];

impl Deeds {
    fn merge(&mut self, other: &Self) {
        self.denied += other.denied;
        self.held += other.held;
        self.allowed += other.allowed;
        self.protocols.extend(&other.protocols);
        self.effects |= other.effects;
        self.rules.merge(&other.rules);
        self.reviewers.merge(&other.reviewers);
        self.names.merge(&other.names);
    }
}

impl SessionSummary {
    /// Has it say what `part` of its records says.
    pub(super) fn learn(&mut self, part: &Part) {
        self.done.merge(&part.done);
        if let Some((at, reason, operations)) = &part.ended {
            self.ended = Some(*at);
            self.reason = Some(reason.clone());
            self.operations = *operations;
        }
    }
}

/// Which sessions are asked for; empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of this agent.
    pub agent: Option<Box<str>>,
    /// Of agents with these labels.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// That began then or later.
    pub since: Option<Timestamp>,
    /// That began then or earlier.
    pub until: Option<Timestamp>,
    /// With operations of this protocol.
    pub protocol: Option<Protocol>,
    /// With operations that have any of these effects.
    pub class: Effects,
    /// With operations that were decided so.
    pub verdict: Option<Decided>,
    /// With operations that this rule decided.
    pub rule: Option<Box<str>>,
    /// With operations that this person voted on.
    pub reviewer: Option<Box<str>>,
    /// To an address or a name that has this in it.
    pub destination: Option<Box<str>>,
    /// That are going on; or that are over.
    pub live: Option<bool>,
    /// With operations that have this.
    pub text: Option<Arc<Text>>,
}

/// The latest `limit` sessions that are `wanted` of what `reader` has, newest first: for whoever has no index.
///
/// # Errors
/// Where it can't be read.
pub fn sessions(
    reader: &Reader,
    wanted: &Wanted,
    limit: usize,
) -> Result<Vec<SessionSummary>, JournalError> {
    let mut known: FxHashMap<SessionId, (SessionSummary, Seen)> = FxHashMap::default();
    reader.each(|record| {
        let mut part = Part::default();
        part.take(&record);
        if let Some(started) = part.started.take() {
            known.insert(started.session, (*started, Seen::default()));
        } else if let Some((summary, seen)) = record.session.and_then(|id| known.get_mut(&id)) {
            summary.learn(&part);
            if let (Some(text), Event::Operation(attempted)) = (&wanted.text, &record.event) {
                seen.take(text, &attempted.operation);
            }
        }
        true
    })?;
    let mut found: Vec<_> = known
        .into_values()
        .filter(|(one, seen)| {
            let has_text = wanted.text.as_ref().is_none_or(|text| seen.is_all(text));
            has_text && wanted.takes(one)
        })
        .map(|(one, _)| one)
        .collect();
    found.sort_by_key(|session| std::cmp::Reverse((session.started, session.session)));
    found.truncate(limit);
    Ok(found)
}

/// How an operation was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    /// Let through without asking.
    Allow,
    /// Denied.
    Deny,
    /// Held for people.
    Hold,
}

impl Wanted {
    /// Whether `session` is one of them but for the text, which a summary doesn't tell. Where not all rules, people or names of a session are known, it is taken
    /// rather than left out.
    #[must_use]
    pub fn takes(&self, session: &SessionSummary) -> bool {
        self.fits(&View::of(session))
    }

    /// The same of what a summary is at a glance.
    pub(super) fn fits(&self, session: &View<'_>) -> bool {
        let done = &session.done;
        let is =
            |wanted: &Option<Box<str>>, is: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(is);
        is(&self.agent, &|agent| agent == session.agent)
            && self
                .labels
                .iter()
                .all(|(name, value)| session.labels.contains(&(name, value)))
            && self.since.is_none_or(|since| session.started >= since)
            && self.until.is_none_or(|until| session.started <= until)
            && self
                .protocol
                .is_none_or(|protocol| done.protocols.contains(&protocol))
            && (self.class.is_empty() || self.class.intersects(done.effects))
            && self.verdict.is_none_or(|verdict| match verdict {
                Decided::Allow => done.allowed > 0,
                Decided::Deny => done.denied > 0,
                Decided::Hold => done.held > 0,
            })
            && is(&self.rule, &|rule| done.rules.may_have(rule))
            && is(&self.reviewer, &|by| done.reviewers.may_have(by))
            && is(&self.destination, &|wanted| {
                let names = &done.names;
                session.destination.contains(wanted)
                    || names.known.iter().any(|name| name.contains(wanted))
                    || names.more
            })
            && self.live.is_none_or(|live| session.ended.is_none() == live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_seen_where_it_stands_as_it_is() {
        let some = |names: &[&str], more| Some64 {
            known: names.iter().map(|name| Box::from(*name)).collect(),
            more,
        };
        let summary = SessionSummary {
            session: SessionId(u64::MAX),
            agent: "agent".into(),
            labels: [("team", "data"), ("env", "")]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            destination: "192.0.2.1:5432".to_owned(),
            pid: 7,
            executable: Some("/bin/x".into()),
            started: Timestamp(300),
            ended: Some(Timestamp(301)),
            reason: None,
            operations: 5,
            done: Deeds {
                denied: 1,
                held: 200,
                allowed: 0,
                protocols: Protocol::ALL.into_iter().collect(),
                effects: Effects::READ | Effects::SCHEMA,
                rules: some(&["a", "b"], false),
                reviewers: some(&[], true),
                names: some(&["db.example.com"], false),
            },
        };
        let bytes = postcard::to_stdvec(&summary).unwrap();
        assert_eq!(View::read(&bytes), Some(View::of(&summary)));
        assert_eq!(View::read(&bytes[..bytes.len() - 1]), None);
    }
}
