//! The queue itself: one lock, no I/O but what the [`Recorder`] does.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use interceptor_core::{
    limits::{APPROVALS_ENDED_MAX, APPROVALS_PENDING_AGENT_MAX, APPROVALS_PENDING_MAX},
    record::{ApprovalId, ApprovalRecord, ApprovalStep, Event, Timestamp},
    ruling::Cause,
};
use tokio::sync::{broadcast, oneshot};

use super::{
    ballot::{Ballot, Inadmissible, Tally},
    pending::Pending,
    request::{Outcome, REASON_BYTES_MAX, Recorder, Request, Unrecorded, VoteError},
    reviewers::{Reviewers, Voter},
    summary::{Change, Detail, State, Summary, Vote},
};
use crate::sync::lock;

/// All requests for approval of this daemon. Cheap to clone; every clone is the same queue.
#[derive(Clone)]
pub struct Approvals(Arc<Shared>);

struct Shared {
    recorder: Box<dyn Recorder>,
    reviewers: Reviewers,
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    queue: Mutex<Queue>,
    changes: broadcast::Sender<Arc<Change>>,
}

#[derive(Default)]
struct Queue {
    open: BTreeMap<ApprovalId, Open>,
    /// The latest that ended, without their content, oldest first.
    ended: VecDeque<Arc<Summary>>,
    stopping: bool,
}

struct Open {
    request: Arc<Request>,
    requested: Timestamp,
    until: Timestamp,
    ballot: Ballot,
    answer: oneshot::Sender<Outcome>,
}

/// Changes a slow watcher may lag behind before it misses some.
const CHANGES_QUEUED: usize = 1_024;

impl Approvals {
    /// An empty queue. `clock` tells the time.
    pub fn new(
        recorder: impl Recorder + 'static,
        reviewers: Reviewers,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            recorder: Box::new(recorder),
            reviewers,
            clock: Box::new(clock),
            queue: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_QUEUED),
        }))
    }

    /// Asks people about `request`, which is called `id`. Dropping the [`Pending`] before its outcome withdraws it.
    #[must_use]
    pub fn request(&self, id: ApprovalId, request: Request, now: Timestamp) -> Pending {
        let (answer, receiver) = oneshot::channel();
        let within = request.terms.within;
        let until = Timestamp(
            now.0
                .saturating_add(u64::try_from(within.as_nanos()).unwrap_or(u64::MAX)),
        );
        let request = Arc::new(request);
        let mut queue = self.queue();
        let full = if queue.open.contains_key(&id) {
            Some("another request is called so")
        } else {
            queue.full(&request)
        };
        let mut pending = Pending::new(self.clone(), id, request.clone(), until, receiver);
        if let Some(reason) = full {
            drop(self.append(id, &request, refused(Cause::Unavailable)));
            // The receiver is in hand and alive.
            _ = answer.send(unavailable(reason));
            return pending;
        }
        pending.is_on_record(self.append(id, &request, ApprovalStep::Requested { until }));
        let open = Open {
            ballot: Ballot::new(request.terms.quorum, until),
            request,
            requested: now,
            until,
            answer,
        };
        let summary = open.summary(id, State::Pending);
        queue.open.insert(id, open);
        self.tell(Change::Requested(Box::new(summary)));
        pending
    }

    /// Has on record that `request`, which was approved, wasn't carried out, and why.
    pub fn came_too_late(&self, id: ApprovalId, request: &Request, why: &str) {
        drop(self.append(id, request, ApprovalStep::Withdrawn { why: why.into() }));
    }

    /// Counts the vote of `voter`, once it is in the journal, and answers the request where that
    /// decides it. Goes on even if the caller stops waiting.
    ///
    /// # Errors
    /// When the vote doesn't count; the error says why.
    pub async fn vote(
        &self,
        id: ApprovalId,
        voter: Voter,
        approve: bool,
        reason: &str,
    ) -> Result<Summary, VoteError> {
        if reason.len() > REASON_BYTES_MAX || reason.contains(char::is_control) {
            return Err(VoteError::UnfitReason);
        }
        let vote = Vote {
            by: voter.name.clone(),
            approve,
            reason: reason.into(),
            time: (self.0.clock)(),
        };
        let approvals = self.clone();
        // A task of its own: a reviewer's connection that breaks in the middle must not leave a
        // vote that is in the journal but was never counted.
        tokio::spawn(async move { approvals.cast(id, voter, vote).await })
            .await
            .unwrap_or_else(|_| Err(Unrecorded("interceptor is stopping".to_owned()).into()))
    }

    /// All that wait, oldest first, then the latest that ended where `ended` asks for them.
    #[must_use]
    pub fn list(&self, ended: bool) -> Vec<Summary> {
        let queue = self.queue();
        let mut open: Vec<_> = queue
            .open
            .iter()
            .map(|(id, open)| open.summary(*id, State::Pending))
            .collect();
        open.sort_by_key(|summary| summary.requested);
        if ended {
            open.extend(
                queue
                    .ended
                    .iter()
                    .rev()
                    .map(|summary| Summary::clone(summary)),
            );
        }
        open
    }

    /// One of them, whole.
    #[must_use]
    pub fn show(&self, id: ApprovalId) -> Option<Detail> {
        let queue = self.queue();
        match queue.open.get(&id) {
            Some(open) => Some(Detail::new(
                open.summary(id, State::Pending),
                &open.request.operation,
            )),
            None => queue
                .find_ended(id)
                .map(|summary| Detail::ended(Summary::clone(summary))),
        }
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<Change>> {
        self.0.changes.subscribe()
    }

    /// How many wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue().open.len()
    }

    /// The daemon stops: everything that waits is withdrawn and refused, and so is what still comes.
    pub fn stop(&self) {
        let mut queue = self.queue();
        queue.stopping = true;
        for (id, open) in mem::take(&mut queue.open) {
            let why: Box<str> = "the daemon stopped".into();
            let step = ApprovalStep::Withdrawn { why: why.clone() };
            drop(self.append(id, &open.request, step));
            self.end(&mut queue, open.summary(id, State::Withdrawn { why }));
            // A receiver that is gone has withdrawn by itself.
            _ = open.answer.send(unavailable(STOPPING));
        }
    }

    /// See [`Self::vote`]; the three steps are: admit and append, wait for the disk, count.
    async fn cast(&self, id: ApprovalId, voter: Voter, vote: Vote) -> Result<Summary, VoteError> {
        let approve = vote.approve;
        let durable = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            let groups = &open.request.terms.groups;
            if !self.0.reviewers.admit(&voter, groups) {
                return Err(VoteError::NotReviewer {
                    id,
                    name: voter.name,
                    groups: groups.join(", "),
                });
            }
            if let Err(why) = open.ballot.cast(&voter, approve, now) {
                return Err(open.inadmissible(id, &voter, why));
            }
            let step = ApprovalStep::Voted {
                by: vote.by.clone(),
                approve,
                reason: vote.reason.clone(),
            };
            self.append(id, &open.request, step)
        };
        if let Err(error) = durable.await {
            if let Some(open) = self.queue().open.get_mut(&id) {
                open.ballot.uncast(&voter);
            }
            return Err(error.into());
        }
        let (durable, outcome, state) = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            let reason = rejection(&vote);
            let tally = match open.ballot.count(&voter, vote, now) {
                Ok(tally) => tally,
                Err(why) => return Err(open.inadmissible(id, &voter, why)),
            };
            let summary = open.summary(id, State::Pending);
            self.tell(Change::Voted(Box::new(summary.clone())));
            let (step, outcome, state) = match tally {
                Tally::Open => return Ok(summary),
                Tally::Approved => (ApprovalStep::Approved, Outcome::Approved, State::Approved),
                Tally::Rejected => {
                    let cause = Cause::Rejected;
                    let outcome = Outcome::Refused { cause, reason };
                    (refused(cause), outcome, State::Refused { cause })
                }
            };
            (self.append(id, &open.request, step), outcome, state)
        };
        self.answer(id, durable.await, outcome, state)
    }

    /// Hands a decided request its outcome, if that is on disk.
    fn answer(
        &self,
        id: ApprovalId,
        recorded: Result<(), Unrecorded>,
        outcome: Outcome,
        state: State,
    ) -> Result<Summary, VoteError> {
        let mut queue = self.queue();
        // It may have been withdrawn while the outcome was being written.
        let Some(open) = queue.open.remove(&id) else {
            return Err(queue.gone(id));
        };
        let (outcome, state) = match &recorded {
            Ok(()) => (outcome, state),
            Err(_) => {
                let cause = Cause::Unavailable;
                (unavailable(UNRECORDED), State::Refused { cause })
            }
        };
        let summary = open.summary(id, state);
        self.end(&mut queue, summary.clone());
        // A receiver that is gone says so in the record when it is dropped.
        _ = open.answer.send(outcome);
        recorded?;
        Ok(summary)
    }

    /// Ends a request that nobody decided; `false` where an outcome is already on its way.
    pub(super) fn abandon(&self, id: ApprovalId, step: &ApprovalStep) -> bool {
        let mut queue = self.queue();
        let withdrawn = matches!(step, ApprovalStep::Withdrawn { .. });
        match queue.open.get(&id) {
            Some(open) if withdrawn || !open.ballot.is_decided() => {}
            _ => return false,
        }
        let Some(open) = queue.open.remove(&id) else {
            return false;
        };
        drop(self.append(id, &open.request, step.clone()));
        let state = match step {
            ApprovalStep::Refused { cause } => State::Refused { cause: *cause },
            ApprovalStep::Withdrawn { why } => State::Withdrawn { why: why.clone() },
            _ => State::Pending,
        };
        self.end(&mut queue, open.summary(id, state));
        true
    }

    fn end(&self, queue: &mut Queue, summary: Summary) {
        queue.ended.push_back(Arc::new(summary.clone()));
        if queue.ended.len() > APPROVALS_ENDED_MAX {
            queue.ended.pop_front();
        }
        self.tell(Change::Ended(Box::new(summary)));
    }

    fn tell(&self, change: Change) {
        // Nobody watching is fine.
        _ = self.0.changes.send(Arc::new(change));
    }

    /// Puts a step into the journal; the future ends when it is on disk.
    pub(super) fn append(
        &self,
        approval: ApprovalId,
        request: &Request,
        step: ApprovalStep,
    ) -> BoxFuture<'static, Result<(), Unrecorded>> {
        let record = ApprovalRecord {
            approval,
            number: request.number,
            digest: request.digest,
            step,
        };
        self.0.recorder.record(
            request.session,
            &Arc::from(&*request.origin.agent.name),
            Event::Approval(record),
        )
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every change under the lock is whole before anything in it could panic.
        lock(&self.0.queue)
    }
}

impl fmt::Debug for Approvals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approvals")
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Why nothing more can be asked, if so.
    fn full(&self, request: &Request) -> Option<&'static str> {
        let agent = &request.origin.agent.name;
        if self.stopping {
            Some(STOPPING)
        } else if self.open.len() >= APPROVALS_PENDING_MAX {
            Some("too many operations wait for approval on this host")
        } else if self
            .open
            .values()
            .filter(|open| open.request.origin.agent.name == *agent)
            .count()
            >= APPROVALS_PENDING_AGENT_MAX
        {
            Some("too many operations of this agent wait for approval")
        } else {
            None
        }
    }

    fn find_ended(&self, id: ApprovalId) -> Option<&Arc<Summary>> {
        self.ended.iter().rev().find(|summary| summary.id == id)
    }

    fn gone(&self, id: ApprovalId) -> VoteError {
        self.find_ended(id)
            .map_or(VoteError::Unknown(id), |summary| VoteError::Ended {
                id,
                how: ended(&summary.state),
            })
    }
}

impl Open {
    fn summary(&self, id: ApprovalId, state: State) -> Summary {
        let votes = self.ballot.votes().cloned().collect();
        Summary::new(id, &self.request, self.requested, self.until, votes, state)
    }

    fn inadmissible(&self, id: ApprovalId, voter: &Voter, why: Inadmissible) -> VoteError {
        match why {
            Inadmissible::Decided => VoteError::Ended {
                id,
                how: "it is already decided".to_owned(),
            },
            Inadmissible::TooLate => VoteError::Ended {
                id,
                how: ended(&State::Refused {
                    cause: Cause::TimedOut,
                }),
            },
            Inadmissible::Repeated => VoteError::Repeated {
                id,
                name: voter.name.clone(),
                more: (self.request.terms.quorum.max(1) as usize)
                    .saturating_sub(self.ballot.votes().count())
                    .max(1),
            },
        }
    }
}

pub(super) const STOPPING: &str = "interceptor is stopping";

pub(super) const UNRECORDED: &str = "the request for approval can't be recorded";

pub(super) const fn refused(cause: Cause) -> ApprovalStep {
    ApprovalStep::Refused { cause }
}

pub(super) fn unavailable(reason: &str) -> Outcome {
    Outcome::Refused {
        cause: Cause::Unavailable,
        reason: reason.into(),
    }
}

/// What the agent is told; "rejected: " stands before it.
fn rejection(vote: &Vote) -> Arc<str> {
    if vote.reason.is_empty() {
        format!("by {}", vote.by).into()
    } else {
        format!("{} (by {})", vote.reason, vote.by).into()
    }
}

/// How a request ended, in words.
fn ended(state: &State) -> String {
    match state {
        State::Pending => "it is being decided".to_owned(),
        State::Approved => "it was approved".to_owned(),
        State::Refused { cause } => match cause {
            Cause::TimedOut => "its time is over".to_owned(),
            Cause::Unavailable => "it could not be recorded".to_owned(),
            Cause::Denied | Cause::Rejected => "it was rejected".to_owned(),
            Cause::Cancelled => "the agent cancelled it".to_owned(),
        },
        State::Withdrawn { why } => format!("it was withdrawn ({why})"),
    }
}

/// A span of time as rules write it: `90s`, `15m`, `2h`.
pub(super) fn within(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{}ms", span.as_millis()),
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}
