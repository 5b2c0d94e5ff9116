//! The queue itself: one lock, no I/O but what the [`Recorder`] does.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use interceptor_core::{
    limits::{APPROVALS_ENDED_MAX, APPROVALS_PENDING_AGENT_MAX, APPROVALS_PENDING_MAX},
    record::{ApprovalId, ApprovalRecord, ApprovalStep, Choice, Event, Timestamp, Window},
    ruling::{Cause, Otherwise, WindowScope},
};
use tokio::{
    sync::{broadcast, oneshot},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::{
    ballot::{Ballot, Inadmissible, Tally},
    grants::{End, Grant, Grants, Standing},
    pending::Pending,
    request::{
        Outcome, REASON_BYTES_MAX, Recorder, Request, Say, Unrecorded, VoteError, Withdrawal,
    },
    restart::Recovered,
    reviewers::{Asked, Reviewers, Voter},
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

    /// Takes up what an earlier daemon left, as its journal has it.
    pub(crate) fn recover(&self, recovered: Recovered, now: Timestamp) {
        let mut queue = self.queue();
        for (id, granted) in recovered.granted {
            let span = Duration::from_nanos(granted.until.0.saturating_sub(now.0));
            let until = End {
                clock: granted.until,
                passes: Instant::now() + span.min(granted.span).min(WITHIN_MAX),
            };
            let grant = Grant {
                request: granted.request,
                scope: granted.scope,
                left: granted.left,
                until,
                by: granted.by,
            };
            queue.grants.add(id, grant, now);
        }
        for (id, left) in recovered.left {
            if left.waited {
                let why = "the daemon stopped".into();
                drop(self.append(id, &left.request, ApprovalStep::Left { why }));
            }
            let mut ballot = Ballot::new(left.request.terms.quorum, left.until);
            let escalated = left.escalations;
            for (uid, vote) in left.votes {
                ballot.recorded(uid, vote);
            }
            let passed = Duration::from_nanos(now.0.saturating_sub(left.requested.0));
            let groups = left.request.terms.escalate.iter().take(escalated);
            let mut open = Open {
                requested: left.requested,
                until: left.until,
                escalated: groups.flat_map(|step| step.groups.to_vec()).collect(),
                decided: None,
                answer: None,
                attended: None,
                request: left.request,
                ballot,
            };
            let tally = open.ballot.tally();
            if tally == Tally::Open {
                open.attended = Some(self.attend(id, &open.request, escalated, passed));
                queue.open.insert(id, open);
                continue;
            }
            // It was decided, and the daemon ended before that was on record.
            open.decided = Some((now, Instant::now()));
            let (step, outcome, state) = verdict(tally, &open.ballot);
            let recorded = self.append(id, &open.request, step);
            queue.open.insert(id, open);
            let approvals = self.clone();
            tokio::spawn(async move { approvals.answer(id, recorded.await, outcome, state) });
        }
    }

    /// Has what was approved and handed out, and wasn't used because of `why`, stand until it comes again; where
    /// it may not, that is on record.
    pub fn unused(&self, id: ApprovalId, request: &Arc<Request>, why: Withdrawal) {
        let mut queue = self.queue();
        let handed_out = queue.handed_out.remove(&id);
        let now = (self.0.clock)();
        match handed_out.filter(|_| request.returns(why)) {
            Some((until, by)) => {
                let why = why.why().into();
                drop(self.append(id, request, ApprovalStep::Left { why }));
                let grant = Grant {
                    request: request.clone(),
                    scope: WindowScope::Operation,
                    left: 1,
                    until,
                    by,
                };
                queue.grants.add(id, grant, now);
            }
            None => {
                let why = why.why().into();
                drop(self.append(id, request, ApprovalStep::Withdrawn { why }));
            }
        }
    }

    /// Forgets what was handed out: it was used, or nobody can tell any more.
    pub fn used(&self, id: ApprovalId) {
        self.queue().handed_out.remove(&id);
    }

    /// Counts what `voter` says, once it is in the journal, and answers the request where that
    /// decides it. Goes on even if the caller stops waiting.
    ///
    /// # Errors
    /// When the vote doesn't count; the error says why.
    pub async fn vote(&self, id: ApprovalId, voter: Voter, say: Say) -> Result<Summary, VoteError> {
        if !is_fit(&say.reason) {
            return Err(VoteError::UnfitReason);
        }
        let vote = Vote {
            by: voter.name.clone(),
            choice: say.choice,
            reason: say.reason,
            window: say.window.filter(|_| say.choice == Choice::Approve),
            time: (self.0.clock)(),
        };
        let approvals = self.clone();
        // A task of its own: a reviewer's connection that breaks in the middle must not leave a
        // vote that is in the journal but was never counted.
        in_its_own_task(async move { approvals.cast(id, voter, vote).await }).await
    }

    /// Lets a request through on the word of `voter` alone, once that is in the journal.
    ///
    /// # Errors
    /// Where `voter` may not, gives no reason, or it is over.
    pub async fn override_alone(
        &self,
        id: ApprovalId,
        voter: Voter,
        reason: &str,
    ) -> Result<Summary, VoteError> {
        if !is_fit(reason) {
            return Err(VoteError::UnfitReason);
        }
        let (approvals, reason) = (self.clone(), Box::from(reason));
        in_its_own_task(async move { approvals.break_glass(id, voter, reason).await }).await
    }

    /// Has nothing more go by an approval, at once.
    ///
    /// # Errors
    /// Where nothing does, or `voter` is none of those who may vote on it.
    pub async fn revoke(
        &self,
        id: ApprovalId,
        voter: &Voter,
        reason: &str,
    ) -> Result<Standing, VoteError> {
        if !is_fit(reason) {
            return Err(VoteError::UnfitReason);
        }
        let (standing, recorded) = {
            let mut queue = self.queue();
            let request = match queue.grants.get(id) {
                Some(grant) => grant.request.clone(),
                None => return Err(VoteError::NoGrant(id)),
            };
            let later = request.terms.escalate.iter();
            let escalated: Vec<_> = later.flat_map(|step| step.groups.to_vec()).collect();
            let asked = request.asked(&escalated);
            let reviewers = &self.0.reviewers;
            if !reviewers.admit(voter, asked) && !reviewers.may_break_glass(voter) {
                return Err(not_reviewer(id, voter, asked));
            }
            // Whether it can be recorded or not.
            let Some(mut grant) = queue.grants.remove(id) else {
                return Err(VoteError::NoGrant(id));
            };
            grant.left = 0;
            let step = ApprovalStep::Revoked {
                by: voter.name.clone(),
                reason: reason.into(),
            };
            (grant.standing(id), self.append(id, &request, step))
        };
        self.tell(Change::Revoked(Box::new(standing.clone())));
        recorded.await?;
        Ok(standing)
    }

    /// What may go by what was approved before, oldest first.
    #[must_use]
    pub fn grants(&self) -> Vec<Standing> {
        let now = (self.0.clock)();
        self.queue().grants.standing(now)
    }

    /// All that are open, those whose client waits first, of these the oldest; then the latest that ended where `ended` asks for them.
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

    /// Lets the time of a request pass, of which `passed` has, and `escalations` happened.
    fn attend(
        &self,
        id: ApprovalId,
        request: &Arc<Request>,
        escalations: usize,
        passed: Duration,
    ) -> AbortHandle {
        let (approvals, request) = (self.clone(), request.clone());
        let began = Instant::now();
        let at = move |after: Duration| began + after.min(WITHIN_MAX).saturating_sub(passed);
        let task = tokio::spawn(async move {
            for step in request.terms.escalate.iter().skip(escalations) {
                sleep_until(at(step.after)).await;
                approvals.escalate(id, &step.groups);
            }
            sleep_until(at(request.terms.within)).await;
            approvals.lapse(id);
        });
        task.abort_handle()
    }

    fn escalate(&self, id: ApprovalId, groups: &Arc<[Box<str>]>) {
        let mut queue = self.queue();
        let Some(open) = queue.open.get_mut(&id) else {
            return;
        };
        open.escalated.extend(groups.iter().cloned());
        let groups = groups.clone();
        drop(self.append(id, &open.request, ApprovalStep::Escalated { groups }));
        let summary = open.summary(id, State::Pending);
        self.tell(Change::Escalated(Box::new(summary)));
    }

    /// The time of a request is over.
    fn lapse(&self, id: ApprovalId) {
        let mut queue = self.queue();
        let Some(open) = queue.open.get_mut(&id) else {
            return;
        };
        let waits = open.waits();
        if !open.ballot.decide() {
            // In time; the outcome is on its way to the journal.
            return;
        }
        let is_unopposed = open.ballot.is_unopposed();
        if open.request.terms.otherwise == Otherwise::Allow && is_unopposed && waits {
            let recorded = self.append(id, &open.request, ApprovalStep::Unopposed);
            let approvals = self.clone();
            tokio::spawn(async move {
                approvals.answer(id, recorded.await, Outcome::Approved, State::Approved)
            });
            return;
        }
        let Some(mut open) = queue.open.remove(&id) else {
            return;
        };
        let cause = Cause::TimedOut;
        drop(self.append(id, &open.request, refused(cause)));
        self.end(&mut queue, open.summary(id, State::Refused { cause }));
        let reason = format!("nobody decided within {}", span(open.request.terms.within));
        if let Some(answer) = open.answer.take() {
            let reason = reason.into();
            _ = answer.send(Outcome::Refused { cause, reason });
        }
    }

    /// See [`Self::vote`]; the three steps are: admit and append, wait for the disk, count.
    async fn cast(&self, id: ApprovalId, voter: Voter, vote: Vote) -> Result<Summary, VoteError> {
        let choice = vote.choice;
        let durable = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            let asked = open.request.asked(&open.escalated);
            if !self.0.reviewers.admit(&voter, asked) {
                return Err(not_reviewer(id, &voter, asked));
            }
            if choice == Choice::Approve {
                open.request.may_be_approved(id, &voter, &vote)?;
            }
            if let Err(why) = open.ballot.cast(&voter, choice, now) {
                return Err(open.inadmissible(id, &voter, why));
            }
            let step = ApprovalStep::Voted {
                by: vote.by.clone(),
                uid: voter.uid,
                choice,
                reason: vote.reason.clone(),
                window: vote.window,
            };
            self.append(id, &open.request, step)
        };
        if let Err(error) = durable.await {
            if let Some(open) = self.queue().open.get_mut(&id) {
                open.ballot.uncast(&voter, choice);
            }
            return Err(error.into());
        }
        let (durable, outcome, state) = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            let tally = match open.ballot.count(&voter, vote, now) {
                Ok(tally) => tally,
                Err(why) => return Err(open.inadmissible(id, &voter, why)),
            };
            let summary = open.summary(id, State::Pending);
            self.tell(Change::Voted(Box::new(summary.clone())));
            if tally == Tally::Open {
                return Ok(summary);
            }
            open.decided = Some((now, Instant::now()));
            let (step, outcome, state) = verdict(tally, &open.ballot);
            (self.append(id, &open.request, step), outcome, state)
        };
        self.answer(id, durable.await, outcome, state)
    }

    /// See [`Self::override_alone`].
    async fn break_glass(
        &self,
        id: ApprovalId,
        voter: Voter,
        reason: Box<str>,
    ) -> Result<Summary, VoteError> {
        let (recorded, state) = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            if !self.0.reviewers.may_break_glass(&voter) {
                return Err(VoteError::NoBreakGlass {
                    name: voter.name,
                    groups: self.0.reviewers.break_glass().to_vec(),
                });
            }
            open.request.is_not_of(&voter)?;
            if reason.trim().is_empty() {
                return Err(VoteError::ReasonMissing { id });
            }
            if now >= open.until {
                return Err(open.inadmissible(id, &voter, Inadmissible::TooLate));
            }
            if !open.ballot.decide() {
                return Err(open.inadmissible(id, &voter, Inadmissible::Decided));
            }
            open.decided = Some((now, Instant::now()));
            let by = voter.name;
            tracing::warn!(approval = %id, %by, %reason, agent = &*open.request.origin.agent.name, "an operation is let through by one person's word: break-glass");
            let step = ApprovalStep::Overridden {
                by: by.clone(),
                reason: reason.clone(),
            };
            let recorded = self.append(id, &open.request, step);
            (recorded, State::Overridden { by, reason })
        };
        self.answer(id, recorded.await, Outcome::Approved, state)
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
        let Some(mut open) = queue.open.remove(&id) else {
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
        if outcome == Outcome::Approved {
            self.approved(&mut queue, id, &mut open, &summary);
        } else if let Some(answer) = open.answer.take() {
            // A receiver that is gone says so in the record when it is dropped.
            _ = answer.send(outcome);
        }
        self.end(&mut queue, summary.clone());
        recorded?;
        Ok(summary)
    }

    /// Hands an approval to who waits for it, or keeps it for when the operation comes again; with what else people
    /// agreed to.
    fn approved(&self, queue: &mut Queue, id: ApprovalId, open: &mut Open, summary: &Summary) {
        let now = (self.0.clock)();
        let (decided, passed) = open.decided.unwrap_or_else(|| (now, Instant::now()));
        let end = |span: Duration| End {
            clock: later(decided, span),
            passes: passed + span.min(WITHIN_MAX),
        };
        let by: Vec<Box<str>> = match &summary.state {
            State::Overridden { by, .. } => vec![by.clone()],
            _ => summary.votes.iter().map(|vote| vote.by.clone()).collect(),
        };
        let retry = open.request.terms.retry;
        let waits = open.answer.take().is_some_and(|answer| {
            queue.handed_out.insert(id, (end(retry), by.clone()));
            // Who is gone this moment finds it there when its receiver is dropped.
            answer.send(Outcome::Approved).is_ok()
        });
        let (window, by_people) = match (&summary.state, open.ballot.tally()) {
            (State::Approved, Tally::Approved(window)) => (window, true),
            (State::Overridden { .. }, _) => (None, true),
            // What nobody objected to goes where its client waits.
            _ => (None, false),
        };
        let grant = |scope, left, until| Grant {
            request: open.request.clone(),
            scope,
            left,
            until,
            by: by.clone(),
        };
        if let Some(window) = window {
            let span = Duration::from_secs(window.seconds);
            // Who doesn't wait goes by the window as well.
            let left = window.at_most.saturating_add(u32::from(!waits));
            queue
                .grants
                .add(id, grant(window.scope, left, end(span)), now);
            queue.handed_out.remove(&id);
        } else if !waits {
            queue.handed_out.remove(&id);
            if by_people && !retry.is_zero() {
                queue
                    .grants
                    .add(id, grant(WindowScope::Operation, 1, end(retry)), now);
            }
        }
    }

    /// Nobody waits for the outcome any more; `false` where one is already on its way, which is
    /// then kept.
    pub(super) fn leave(&self, id: ApprovalId, why: Withdrawal) -> bool {
        let mut queue = self.queue();
        let Some(open) = queue.open.get_mut(&id) else {
            return false;
        };
        if open.request.returns(why) {
            open.answer = None;
            let step = ApprovalStep::Left {
                why: why.why().into(),
            };
            drop(self.append(id, &open.request, step));
            let summary = open.summary(id, State::Pending);
            self.tell(Change::Left(Box::new(summary)));
            return true;
        }
        let why: Box<str> = why.why().into();
        let step = ApprovalStep::Withdrawn { why: why.clone() };
        let Some(open) = queue.open.remove(&id) else {
            return false;
        };
        drop(self.append(id, &open.request, step));
        self.end(&mut queue, open.summary(id, State::Withdrawn { why }));
        true
    }

    /// Ends a request that can't be recorded.
    pub(super) fn unrecorded(&self, id: ApprovalId) {
        let mut queue = self.queue();
        queue.handed_out.remove(&id);
        let Some(open) = queue.open.remove(&id) else {
            return;
        };
        let cause = Cause::Unavailable;
        drop(self.append(id, &open.request, refused(cause)));
        self.end(&mut queue, open.summary(id, State::Refused { cause }));
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

    /// Nobody approves what their own agent asks for.
    fn is_not_of(&self, voter: &Voter) -> Result<(), VoteError> {
        if voter.owns(&self.origin.agent) {
            return Err(VoteError::OwnAgent {
                name: voter.name.clone(),
                agent: self.origin.agent.name.clone(),
            });
        }
        Ok(())
    }

    /// Whether `vote` is a yes that its terms allow.
    fn may_be_approved(&self, id: ApprovalId, voter: &Voter, vote: &Vote) -> Result<(), VoteError> {
        self.is_not_of(voter)?;
        if self.terms.reason && vote.reason.trim().is_empty() {
            return Err(VoteError::ReasonMissing { id });
        }
        let Some(Window {
            scope,
            seconds,
            at_most,
        }) = vote.window
        else {
            return Ok(());
        };
        let limits = self.terms.windows;
        let is_within = limits.is_some_and(|limits| {
            scope <= limits.scope
                && (1..=limits.span.as_secs()).contains(&seconds)
                && (1..=limits.at_most).contains(&at_most)
        });
        if !is_within {
            return Err(VoteError::TooMuch { id, limits });
        }
        if scope == WindowScope::Shape && self.shape.is_none() {
            return Err(VoteError::Shapeless { id });
        }
        Ok(())
    }
}

pub(super) const STOPPING: &str = "interceptor is stopping";

pub(super) const UNRECORDED: &str = "the request for approval can't be recorded";

async fn in_its_own_task(
    work: impl Future<Output = Result<Summary, VoteError>> + Send + 'static,
) -> Result<Summary, VoteError> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(Unrecorded("interceptor is stopping".to_owned()).into()))
}

fn is_fit(reason: &str) -> bool {
    reason.len() <= REASON_BYTES_MAX && !reason.contains(char::is_control)
}

/// `span` after `now`.
fn later(now: Timestamp, span: Duration) -> Timestamp {
    let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Timestamp(now.0.saturating_add(span))
}

fn not_reviewer(id: ApprovalId, voter: &Voter, asked: Asked<'_>) -> VoteError {
    VoteError::NotReviewer {
        id,
        name: voter.name.clone(),
        who: asked.to_string(),
    }
}

/// What is recorded and answered where the votes are an outcome.
fn verdict(tally: Tally, ballot: &Ballot) -> (ApprovalStep, Outcome, State) {
    match tally {
        Tally::Approved(window) => (
            ApprovalStep::Approved { window },
            Outcome::Approved,
            State::Approved,
        ),
        Tally::Rejected | Tally::Open => {
            let cause = Cause::Rejected;
            let objection = ballot.votes().find(|vote| vote.choice == Choice::Deny);
            let reason = objection.map_or_else(|| Arc::from(""), rejection);
            let outcome = Outcome::Refused { cause, reason };
            (refused(cause), outcome, State::Refused { cause })
        }
    }
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
