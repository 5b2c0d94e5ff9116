//! What becomes of a request: an outcome and who is handed it, time that passes, a client that goes.

use std::{sync::Arc, time::Duration};

use interceptor_core::{
    record::{ApprovalId, ApprovalStep},
    ruling::{Cause, Otherwise, WindowScope},
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::{Approvals, Open, Queue, UNRECORDED, WITHIN_MAX, later, refused, span, unavailable};
use crate::approval::{
    ballot::Tally,
    grants::{End, Grant},
    request::{Outcome, Request, Unrecorded, VoteError, Withdrawal},
    summary::{Change, State, Summary},
};

impl Approvals {
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

    /// Lets the time of a request pass, of which `passed` has, and `escalations` happened.
    pub(super) fn attend(
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

    /// Hands a decided request its outcome, if that is on disk.
    pub(super) fn answer(
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
    pub(in super::super) fn leave(&self, id: ApprovalId, why: Withdrawal) -> bool {
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
    pub(in super::super) fn unrecorded(&self, id: ApprovalId) {
        let mut queue = self.queue();
        queue.handed_out.remove(&id);
        let Some(open) = queue.open.remove(&id) else {
            return;
        };
        let cause = Cause::Unavailable;
        drop(self.append(id, &open.request, refused(cause)));
        self.end(&mut queue, open.summary(id, State::Refused { cause }));
    }
}
