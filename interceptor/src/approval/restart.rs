//! What an earlier daemon left in the journal: questions that never ended, and approvals that weren't used.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use interceptor_core::{
    operation::{Digest, Operation, radius::BlastRadius},
    origin::{Origin, Surroundings},
    record::{
        ApprovalId, ApprovalRecord, ApprovalStep, Choice, Event, Record, SessionEnd, SessionId,
        Timestamp, Window,
    },
    ruling::{Cause, Decision, Verdict, WindowScope},
};

use super::{request::Request, summary::Vote};
use crate::journal::RECORDS_REMOVED;

/// Why a session is over whose end nobody was there to record.
const ENDED_WITH_DAEMON: &str = "the daemon ended, and the session with it";

/// Reads what is left of approvals from the records of earlier runs.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Sessions that go on, and the last operation in each.
    sessions: HashMap<SessionId, Seen>,
    asked: BTreeMap<ApprovalId, Asked>,
    /// What was approved and may be used still.
    approved: BTreeMap<ApprovalId, Approved>,
}

#[derive(Debug)]
struct Seen {
    origin: Arc<Origin>,
    operations: u64,
    last: Option<(u64, Operation)>,
    held: Option<Arc<Decision>>,
}

/// A question without an outcome.
#[derive(Debug)]
struct Asked {
    session: Option<SessionId>,
    agent: Arc<str>,
    record: ApprovalRecord,
    /// What it is about, where all of that is on record.
    left: Option<Left>,
    /// A client waits for the answer.
    waits: bool,
}

/// A question that may be answered still.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) request: Arc<Request>,
    pub(super) requested: Timestamp,
    pub(super) until: Timestamp,
    pub(super) votes: Vec<Vote>,
    /// What it would touch, as far as that was found out.
    pub(super) radius: Option<Arc<BlastRadius>>,
    /// How many times further groups were asked.
    pub(super) escalations: usize,
    /// Its client waited until the daemon ended.
    pub(super) waited: bool,
}

/// Something that was approved.
#[derive(Debug)]
struct Approved {
    request: Arc<Request>,
    at: Timestamp,
    by: Vec<Box<str>>,
    window: Option<(Window, u32)>,
    /// Its client didn't use it.
    unused: bool,
}

/// An approval that more may go by.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) request: Arc<Request>,
    pub(super) scope: WindowScope,
    pub(super) left: u32,
    pub(super) until: Timestamp,
    /// How long it was given for, at the most.
    pub(super) span: Duration,
    pub(super) by: Vec<Box<str>>,
}

/// What is taken up.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(super) left: Vec<(ApprovalId, Left)>,
    pub(super) granted: Vec<(ApprovalId, Granted)>,
    /// What has to be recorded of what ended with the daemon that held it, before the first new connection:
    /// questions, then sessions.
    pub(crate) ends: Vec<(Option<SessionId>, Arc<str>, Event)>,
}

impl Unfinished {
    /// Takes the next record of the journal, in order.
    pub fn observe(&mut self, record: &Record) {
        let seen = record.session;
        match (&record.event, seen) {
            (Event::SessionStart(start) | Event::DatagramsStart(start), Some(session)) => {
                let seen = Seen {
                    origin: start.origin.clone(),
                    operations: 0,
                    last: None,
                    held: None,
                };
                self.sessions.insert(session, seen);
            }
            (Event::SessionEnd(_), Some(session)) => {
                self.sessions.remove(&session);
            }
            (Event::Operation(attempt), Some(session)) => {
                if let Some(seen) = self.sessions.get_mut(&session) {
                    seen.operations += 1;
                    seen.last = Some((attempt.number, attempt.operation.clone()));
                    seen.held = None;
                }
            }
            (Event::Decision(decided), Some(session)) => {
                if let Some(seen) = self.sessions.get_mut(&session) {
                    let is_held = matches!(decided.decision.verdict, Verdict::Hold(_));
                    seen.held = is_held.then(|| decided.decision.clone());
                    if !is_held {
                        seen.last = None;
                    }
                }
            }
            (Event::Approval(approval), _) => self.step(record, approval),
            // What was asked, answered or used there isn't known: nothing from before it passes by that again.
            (Event::Event(notice), None) if &*notice.name == RECORDS_REMOVED => {
                self.asked.clear();
                self.approved.clear();
            }
            _ => {}
        }
    }

    fn step(&mut self, record: &Record, approval: &ApprovalRecord) {
        let id = approval.approval;
        let mut asked = self.asked.get_mut(&id);
        match &approval.step {
            ApprovalStep::Requested {
                until,
                context,
                shape,
            } => {
                let request = self.request(record, approval, (*context, *shape));
                let left = request.map(|request| Left {
                    request: Arc::new(request),
                    requested: record.time,
                    until: *until,
                    votes: Vec::new(),
                    radius: None,
                    escalations: 0,
                    waited: true,
                });
                let asked = Asked {
                    session: record.session,
                    agent: record.agent.clone(),
                    record: approval.clone(),
                    left,
                    waits: true,
                };
                self.asked.insert(id, asked);
            }
            ApprovalStep::Estimated { radius } => {
                if let Some(left) = asked.and_then(|asked| asked.left.as_mut()) {
                    left.radius = Some(radius.clone());
                }
            }
            ApprovalStep::Escalated { .. } => {
                if let Some(left) = asked.and_then(|asked| asked.left.as_mut()) {
                    left.escalations += 1;
                }
            }
            ApprovalStep::Voted {
                by,
                choice,
                reason,
                window,
                ..
            } => {
                if let Some(left) = asked.and_then(|asked| asked.left.as_mut()) {
                    let vote = Vote {
                        by: by.clone(),
                        choice: *choice,
                        reason: reason.clone(),
                        window: *window,
                        time: record.time,
                    };
                    left.votes.push(vote);
                }
            }
            ApprovalStep::Left { .. } => {
                if let Some(asked) = &mut asked {
                    asked.waits = false;
                }
                if let Some(approved) = self.approved.get_mut(&id) {
                    approved.unused = true;
                }
            }
            ApprovalStep::Resumed => {
                if let Some(asked) = &mut asked {
                    asked.waits = true;
                    asked.session = record.session;
                    asked.record = approval.clone();
                }
            }
            ApprovalStep::Approved { window } => {
                let window = window.map(|window| (window, window.at_most));
                self.approved(record, id, (None, window));
            }
            ApprovalStep::Overridden { by, .. } => {
                self.approved(record, id, (Some(by.clone()), None));
            }
            ApprovalStep::Admitted => {
                if let Some(approved) = self.approved.get_mut(&id) {
                    match &mut approved.window {
                        Some((_, left)) if *left > 0 => *left -= 1,
                        _ => approved.unused = false,
                    }
                }
            }
            ApprovalStep::Revoked { .. } => {
                self.approved.remove(&id);
            }
            ApprovalStep::Unopposed
            | ApprovalStep::Refused { .. }
            | ApprovalStep::Withdrawn { .. } => {
                self.asked.remove(&id);
            }
        }
    }

    fn approved(
        &mut self,
        record: &Record,
        id: ApprovalId,
        (by, window): (Option<Box<str>>, Option<(Window, u32)>),
    ) {
        let Some(asked) = self.asked.remove(&id) else {
            return;
        };
        let Some(left) = asked.left else {
            return;
        };
        let by = by.map_or_else(
            || agreed(&left.votes).map(|vote| vote.by.clone()).collect(),
            |by| vec![by],
        );
        let window = window.map(|(window, left)| {
            // Who didn't wait goes by the window as well.
            (window, left.saturating_add(u32::from(!asked.waits)))
        });
        let approved = Approved {
            request: left.request,
            at: record.time,
            by,
            unused: !asked.waits && window.is_none(),
            window,
        };
        self.approved.insert(id, approved);
    }

    /// What people were asked about, where its session's start, it and its decision are on record.
    fn request(
        &self,
        record: &Record,
        approval: &ApprovalRecord,
        (context, shape): (Digest, Option<Digest>),
    ) -> Option<Request> {
        let session = record.session?;
        let Seen {
            origin, last, held, ..
        } = self.sessions.get(&session)?;
        let (number, operation) = last.as_ref()?;
        let decision = held.clone()?;
        let Verdict::Hold(terms) = &decision.verdict else {
            return None;
        };
        if *number != approval.number || operation.digest(origin) != approval.digest {
            return None;
        }
        Some(Request {
            // It has gone since, or isn't the same.
            surroundings: Surroundings::default(),
            session,
            number: *number,
            origin: origin.clone(),
            operation: operation.clone(),
            digest: approval.digest,
            context,
            shape,
            terms: terms.clone(),
            decision,
        })
    }

    /// What is taken up at `now`.
    pub(crate) fn recovered(self, now: Timestamp) -> Recovered {
        let mut recovered = Recovered::default();
        let mut sessions: Vec<(SessionId, Seen)> = self.sessions.into_iter().collect();
        sessions.sort_by_key(|(session, _)| session.0);
        for (id, asked) in self.asked {
            let Asked {
                session,
                agent,
                record,
                left,
                waits,
            } = asked;
            let left = left.map(|left| Left {
                waited: waits,
                ..left
            });
            match left.filter(|left| !left.request.terms.retry.is_zero()) {
                Some(left) if left.until > now || is_decided(&left) => {
                    recovered.left.push((id, left));
                }
                lapsed => {
                    // Whose connection ended with the daemon that held it.
                    let step = match lapsed {
                        Some(_) => ApprovalStep::Refused {
                            cause: Cause::TimedOut,
                        },
                        None => ApprovalStep::Withdrawn {
                            why: "the daemon stopped before an outcome".into(),
                        },
                    };
                    let event = Event::Approval(ApprovalRecord { step, ..record });
                    recovered.ends.push((session, agent, event));
                }
            }
        }
        for (session, seen) in sessions {
            let end = Event::SessionEnd(SessionEnd {
                reason: ENDED_WITH_DAEMON.into(),
                operations: seen.operations,
                // Nobody is left who has counted them.
                bytes_from_client: 0,
                bytes_from_upstream: 0,
            });
            let agent = seen.origin.agent.name.as_ref().into();
            recovered.ends.push((Some(session), agent, end));
        }
        for (id, approved) in self.approved {
            let retry = approved.request.terms.retry;
            let (scope, left, span) = match approved.window {
                Some((window, left)) => (window.scope, left, Duration::from_secs(window.seconds)),
                None => (WindowScope::Operation, u32::from(approved.unused), retry),
            };
            let nanoseconds = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
            let until = Timestamp(approved.at.0.saturating_add(nanoseconds));
            // A clock that was set back doesn't give it more time than it was given.
            if left > 0 && until > now {
                let granted = Granted {
                    request: approved.request,
                    scope,
                    left,
                    until,
                    span,
                    by: approved.by,
                };
                recovered.granted.push((id, granted));
            }
        }
        recovered
    }
}

/// The yeses that stand.
fn agreed(votes: &[Vote]) -> impl Iterator<Item = &Vote> {
    votes.iter().enumerate().filter_map(|(at, vote)| {
        let later = votes.iter().skip(at + 1).any(|other| other.by == vote.by);
        (vote.choice == Choice::Approve && !later).then_some(vote)
    })
}

/// Whether the votes were an outcome that the daemon didn't live to record.
fn is_decided(left: &Left) -> bool {
    let objected = left.votes.iter().any(|vote| vote.choice == Choice::Deny);
    objected || agreed(&left.votes).count() >= left.request.terms.quorum.max(1) as usize
}

#[cfg(test)]
mod tests {
    use interceptor_core::{
        record::{OperationRecord, SessionStart},
        ruling::HoldTerms,
    };

    use super::{super::tests::request, *};

    /// What is taken up of a question that was asked, and agreed to for several of the same if `is_agreed`, with a
    /// gap behind it or not: how many questions and how many grants.
    fn taken_up(is_agreed: bool, has_gap: bool) -> (usize, usize) {
        let asked = request("agent", 1, 600, &[]);
        let terms = HoldTerms {
            retry: Duration::from_secs(600),
            ..asked.terms.clone()
        };
        let decision = Decision {
            verdict: Verdict::Hold(terms),
            ..(*asked.decision).clone()
        };
        let step = |step| {
            Event::Approval(ApprovalRecord {
                approval: ApprovalId(7),
                number: 1,
                digest: asked.digest,
                step,
            })
        };
        let mut events = vec![
            Event::SessionStart(SessionStart {
                origin: asked.origin.clone(),
                client: None,
            }),
            Event::Operation(OperationRecord {
                number: 1,
                operation: asked.operation.clone(),
            }),
            Event::Decision(interceptor_core::record::DecisionRecord {
                number: 1,
                decision: Arc::new(decision),
            }),
            step(ApprovalStep::Requested {
                until: Timestamp(600_000_000_000),
                context: asked.context,
                shape: None,
            }),
        ];
        if is_agreed {
            let window = Window {
                scope: WindowScope::Operation,
                seconds: 600,
                at_most: 5,
            };
            events.push(step(ApprovalStep::Approved {
                window: Some(window),
            }));
        }
        let mut unfinished = Unfinished::default();
        for (seq, event) in (1..).zip(events) {
            unfinished.observe(&Record {
                seq,
                time: Timestamp(seq),
                session: Some(asked.session),
                agent: Arc::from("agent"),
                event,
            });
        }
        if has_gap {
            unfinished.observe(&Record {
                seq: 50,
                time: Timestamp(50),
                session: None,
                agent: Arc::from(""),
                event: Event::notice(RECORDS_REMOVED, []),
            });
        }
        let recovered = unfinished.recovered(Timestamp(100));
        (recovered.left.len(), recovered.granted.len())
    }

    #[test]
    fn nothing_passes_by_what_may_have_been_used_where_records_are_gone() {
        assert_eq!(taken_up(false, false), (1, 0));
        assert_eq!(taken_up(true, false), (0, 1));
        assert_eq!(taken_up(false, true), (0, 0));
        assert_eq!(taken_up(true, true), (0, 0));
    }
}
