//! The queue itself: one lock, no I/O but what the [`Recorder`] does.

mod outcomes;
mod recover;
mod votes;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use interceptor_core::{
    limits::{APPROVALS_ENDED_MAX, APPROVALS_PENDING_AGENT_MAX, APPROVALS_PENDING_MAX},
    operation::radius::BlastRadius,
    record::{ApprovalId, ApprovalRecord, ApprovalStep, Event, SessionId, Timestamp},
    ruling::{Cause, WindowScope},
};
use tokio::{
    sync::{broadcast, oneshot},
    task::AbortHandle,
    time::Instant,
};

use super::{
    ballot::{Ballot, Inadmissible},
    grants::{End, Grant, Grants, Standing},
    keys::SecurityKeys,
    pending::Pending,
    request::{Outcome, Recorder, Request, Unrecorded, VoteError, Withdrawal},
    reviewers::{Asked, Reviewers, Voter},
    summary::{Change, Detail, State, Summary},
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
    /// What may go by what was approved before.
    grants: Grants,
    /// Approvals that were handed out, until it is known that they were used.
    handed_out: HashMap<ApprovalId, (End, Vec<Box<str>>)>,
    /// The latest that ended, without their content, oldest first.
    ended: VecDeque<Arc<Summary>>,
    stopping: bool,
}

struct Open {
    request: Arc<Request>,
    requested: Timestamp,
    until: Timestamp,
    ballot: Ballot,
    /// What it would touch, as far as that has been found out.
    radius: Option<Arc<BlastRadius>>,
    /// Groups that were asked later.
    escalated: Vec<Box<str>>,
    /// When the outcome was known, though perhaps not yet recorded: what is approved stands from then on.
    decided: Option<(Timestamp, Instant)>,
    /// The client that waits, if it does.
    answer: Option<oneshot::Sender<Outcome>>,
    /// What lets its time pass.
    attended: Option<AbortHandle>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(attended) = &self.attended {
            attended.abort();
        }
    }
}

/// Changes a slow watcher may lag behind before it misses some.
const CHANGES_QUEUED: usize = 1_024;

/// Longest time that the runtime's timer is asked for; a longer one ends by the clock's `until`.
const WITHIN_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

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

    /// Asks people about `request`, which is called `id`; unless it goes by what they have approved, or is one that
    /// they are being asked about and that nobody waits for. Dropping the [`Pending`] before its outcome is as
    /// [`Withdrawal::HungUp`].
    #[must_use]
    pub fn request(&self, id: ApprovalId, request: Request, now: Timestamp) -> Pending {
        let (answer, receiver) = oneshot::channel();
        let request = Arc::new(request);
        let mut queue = self.queue();
        let pending = |id, until| Pending::new(self.clone(), id, request.clone(), until, receiver);
        if queue.stopping {
            return self.turned_away((id, &request), STOPPING, (answer, pending));
        }
        if let Some(admission) = queue.grants.admit(&request, now) {
            let id = admission.id;
            let mut pending = pending(id, admission.until.clock);
            pending.is_on_record(self.append(id, &request, ApprovalStep::Admitted));
            // The receiver is in hand and alive.
            _ = answer.send(Outcome::Approved);
            let standing = Grant {
                request: request.clone(),
                scope: WindowScope::Operation,
                left: 0,
                until: admission.until,
                by: admission.by.clone(),
            };
            self.tell(Change::Admitted(Box::new(standing.standing(id))));
            if admission.is_last {
                queue.handed_out.insert(id, (admission.until, admission.by));
            }
            return pending;
        }
        if let Some((id, open)) = queue.left_as(&request) {
            let mut pending = pending(id, open.until);
            pending.is_on_record(self.append(id, &request, ApprovalStep::Resumed));
            open.request = request.clone();
            open.answer = Some(answer);
            let summary = open.summary(id, State::Pending);
            self.tell(Change::Resumed(Box::new(summary)));
            return pending;
        }
        self.make_room(&mut queue, &request);
        let full = if queue.open.contains_key(&id) {
            Some("another request is called so")
        } else {
            queue.full(&request)
        };
        if let Some(why) = full {
            return self.turned_away((id, &request), why, (answer, pending));
        }
        let until = later(now, request.terms.within);
        let mut pending = pending(id, until);
        let step = ApprovalStep::Requested {
            until,
            context: request.context,
            shape: request.shape,
        };
        pending.is_on_record(self.append(id, &request, step));
        let open = Open {
            ballot: Ballot::new(request.terms.quorum, until),
            requested: now,
            until,
            radius: None,
            escalated: Vec::new(),
            decided: None,
            answer: Some(answer),
            attended: Some(self.attend(id, &request, 0, Duration::ZERO)),
            request,
        };
        let summary = open.summary(id, State::Pending);
        queue.open.insert(id, open);
        self.tell(Change::Requested(Box::new(summary)));
        pending
    }

    /// Has people see what the operation of a question that is open would touch.
    pub fn estimated(&self, id: ApprovalId, radius: BlastRadius) {
        let mut queue = self.queue();
        let Some(open) = queue.open.get_mut(&id) else {
            return;
        };
        let radius = Arc::new(radius);
        open.radius = Some(radius.clone());
        let summary = open.summary(id, State::Pending);
        drop(self.append(id, &open.request, ApprovalStep::Estimated { radius }));
        self.tell(Change::Estimated(Box::new(summary)));
    }

    /// What may go by what was approved before, oldest first.
    #[must_use]
    pub fn grants(&self) -> Vec<Standing> {
        let now = (self.0.clock)();
        self.queue().grants.standing(now)
    }

    /// Whether something of `session` is open, or stands.
    #[must_use]
    pub fn concern(&self, session: SessionId) -> bool {
        let queue = self.queue();
        let mut open = queue.open.values().map(|open| &open.request);
        open.any(|request| request.session == session)
            || queue.grants.concern(session, (self.0.clock)())
    }

    /// Forgets what ended of `session`, which was erased.
    pub fn forget(&self, session: SessionId) {
        let mut queue = self.queue();
        queue.ended.retain(|ended| ended.session != session);
    }

    /// All that are open, those whose client waits first, of these the oldest; then the latest that ended where
    /// `ended` asks for them.
    #[must_use]
    pub fn list(&self, ended: bool) -> Vec<Summary> {
        let queue = self.queue();
        let mut open: Vec<_> = queue
            .open
            .iter()
            .map(|(id, open)| open.summary(*id, State::Pending))
            .collect();
        open.sort_by_key(|summary| (!summary.waits, summary.requested));
        if ended {
            open.extend(
                queue
                    .ended
                    .iter()
                    .rev()
                    .map(|summary| Summary::clone(summary)),
            );
        }
        for summary in &mut open {
            summary.surroundings = None;
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

    /// What people sign with.
    #[must_use]
    pub fn keys(&self) -> &SecurityKeys {
        self.0.reviewers.keys()
    }

    /// The people behind groups.
    #[must_use]
    pub fn reviewers(&self) -> &Reviewers {
        &self.0.reviewers
    }

    /// How many questions are open.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue().open.len()
    }

    /// The daemon stops: nobody waits any more, and what still comes is refused. Questions whose operation may come
    /// again are taken up by the next daemon.
    pub fn stop(&self) {
        let mut queue = self.queue();
        queue.stopping = true;
        for (id, mut open) in mem::take(&mut queue.open) {
            let answer = open.answer.take();
            let returns = open.request.returns(Withdrawal::HungUp);
            let why: Box<str> = "the daemon stopped".into();
            if !returns {
                let step = ApprovalStep::Withdrawn { why: why.clone() };
                drop(self.append(id, &open.request, step));
            } else if answer.is_some() {
                let step = ApprovalStep::Left { why: why.clone() };
                drop(self.append(id, &open.request, step));
            }
            self.end(&mut queue, open.summary(id, State::Withdrawn { why }));
            if let Some(answer) = answer {
                // A receiver that is gone has withdrawn by itself.
                _ = answer.send(unavailable(STOPPING));
            }
        }
    }

    /// Where its agent has as many questions as it may, the oldest that nobody waits for gives way to `request`.
    fn make_room(&self, queue: &mut Queue, request: &Request) {
        if queue.of_agent(request).count() < APPROVALS_PENDING_AGENT_MAX {
            return;
        }
        let left = queue.of_agent(request).filter(|(_, open)| !open.waits());
        let undecided = left.filter(|(_, open)| !open.ballot.is_decided());
        let oldest = undecided.min_by_key(|(_, open)| open.requested);
        let Some((id, open)) = oldest
            .map(|(id, _)| *id)
            .and_then(|id| Some((id, queue.open.remove(&id)?)))
        else {
            return;
        };
        let why: Box<str> = "the agent has asked for too much since".into();
        let step = ApprovalStep::Withdrawn { why: why.clone() };
        drop(self.append(id, &open.request, step));
        self.end(queue, open.summary(id, State::Withdrawn { why }));
    }

    /// The answer to what can't be asked.
    fn turned_away(
        &self,
        (id, request): (ApprovalId, &Arc<Request>),
        why: &str,
        (answer, pending): (
            oneshot::Sender<Outcome>,
            impl FnOnce(ApprovalId, Timestamp) -> Pending,
        ),
    ) -> Pending {
        drop(self.append(id, request, refused(Cause::Unavailable)));
        // The receiver is in hand and alive.
        _ = answer.send(unavailable(why));
        pending(id, (self.0.clock)())
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
    fn append(
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
    /// The question about `request` that nobody waits for the answer to, if there is one.
    fn left_as(&mut self, request: &Request) -> Option<(ApprovalId, &mut Open)> {
        let mut open = self.open.iter_mut();
        open.find(|(_, open)| {
            let own = &open.request;
            !open.waits()
                && !open.ballot.is_decided()
                && own.origin.agent == request.origin.agent
                && own.is_same(request)
                && own.is_held_as(request)
        })
        .map(|(id, open)| (*id, open))
    }

    /// Why nothing more can be asked, if so.
    fn full(&self, request: &Request) -> Option<&'static str> {
        if self.open.len() >= APPROVALS_PENDING_MAX {
            Some("too many operations wait for approval on this host")
        } else if self.of_agent(request).count() >= APPROVALS_PENDING_AGENT_MAX {
            Some("too many operations of this agent wait for approval")
        } else {
            None
        }
    }

    /// What the agent of `request` has open.
    fn of_agent(&self, request: &Request) -> impl Iterator<Item = (&ApprovalId, &Open)> {
        let agent = request.origin.agent.name.clone();
        let open = self.open.iter();
        open.filter(move |(_, open)| open.request.origin.agent.name == agent)
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
    /// Whether its client waits.
    fn waits(&self) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|answer| !answer.is_closed())
    }

    fn summary(&self, id: ApprovalId, state: State) -> Summary {
        Summary::new(
            (id, state),
            &self.request,
            (self.requested, self.until),
            self.ballot.votes().cloned().collect(),
            (&self.escalated, self.waits()),
            self.radius.as_deref(),
        )
    }

    fn inadmissible(&self, id: ApprovalId, voter: &Voter, why: Inadmissible) -> VoteError {
        let name = voter.name.clone();
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
            Inadmissible::NotAgreed => VoteError::NotAgreed { id, name },
            Inadmissible::Repeated => VoteError::Repeated {
                id,
                name,
                more: (self.request.terms.quorum.max(1) as usize)
                    .saturating_sub(self.ballot.agreed())
                    .max(1),
            },
        }
    }
}

impl Request {
    /// Who is asked about it, with the groups that were asked later.
    fn asked<'a>(&'a self, escalated: &'a [Box<str>]) -> Asked<'a> {
        Asked {
            groups: &self.terms.groups,
            people: &self.terms.people,
            escalated,
        }
    }

    /// Whether it may come again after `why`.
    fn returns(&self, why: Withdrawal) -> bool {
        why.may_return() && !self.terms.retry.is_zero()
    }
}

pub(super) const STOPPING: &str = "interceptor is stopping";

pub(super) const UNRECORDED: &str = "the request for approval can't be recorded";

/// `span` after `now`.
fn later(now: Timestamp, span: Duration) -> Timestamp {
    let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Timestamp(now.0.saturating_add(span))
}

const fn refused(cause: Cause) -> ApprovalStep {
    ApprovalStep::Refused { cause }
}

pub(super) fn unavailable(reason: &str) -> Outcome {
    Outcome::Refused {
        cause: Cause::Unavailable,
        reason: reason.into(),
    }
}

/// How a request ended, in words.
fn ended(state: &State) -> String {
    match state {
        State::Pending => "it is being decided".to_owned(),
        State::Approved => "it was approved".to_owned(),
        State::Overridden { by, .. } => format!("{by} let it through"),
        State::Refused { cause } => match cause {
            Cause::TimedOut => "its time is over".to_owned(),
            Cause::Unavailable => "it could not be recorded".to_owned(),
            Cause::Denied | Cause::Rejected | Cause::Waiting => "it was rejected".to_owned(),
            Cause::Cancelled => "the agent cancelled it".to_owned(),
        },
        State::Withdrawn { why } => format!("it was withdrawn ({why})"),
    }
}

/// A span of time as rules write it: `90s`, `15m`, `2h`.
pub(super) fn span(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{}ms", span.as_millis()),
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}
