//! The waiting side of a request.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use interceptor_core::{
    record::{ApprovalId, ApprovalStep, Timestamp},
    ruling::Cause,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    queue::{Approvals, STOPPING, UNRECORDED, refused, unavailable, within},
    request::{Outcome, Request, Unrecorded},
};

/// A request that waits. Its [`outcome`](Self::outcome) comes once.
#[derive(Debug)]
pub struct Pending {
    approvals: Approvals,
    id: ApprovalId,
    request: Arc<Request>,
    until: Timestamp,
    deadline: Instant,
    recorded: Option<Recorded>,
    receiver: Option<oneshot::Receiver<Outcome>>,
}

impl Pending {
    pub(super) fn new(
        approvals: Approvals,
        id: ApprovalId,
        request: Arc<Request>,
        until: Timestamp,
        receiver: oneshot::Receiver<Outcome>,
    ) -> Self {
        let deadline = Instant::now() + request.terms.within.min(WITHIN_MAX);
        Self {
            approvals,
            id,
            request,
            until,
            deadline,
            recorded: None,
            receiver: Some(receiver),
        }
    }

    /// The outcome waits for this first: nothing is answered before the request is on disk.
    pub(super) fn is_on_record(&mut self, recorded: BoxFuture<'static, Result<(), Unrecorded>>) {
        self.recorded = Some(Recorded(recorded));
    }

    /// What became of it. May be polled, dropped and called again until it answers; a second
    /// answer is always a refusal, because an approval is used once.
    pub async fn outcome(&mut self) -> Outcome {
        if let Some(recorded) = &mut self.recorded {
            let recorded = recorded.0.as_mut().await;
            self.recorded = None;
            let step = refused(Cause::Unavailable);
            if recorded.is_err() && self.approvals.abandon(self.id, &step) {
                self.receiver = None;
                return unavailable(UNRECORDED);
            }
        }
        let Some(receiver) = &mut self.receiver else {
            return unavailable("the approval has been used");
        };
        let answer = tokio::select! {
            biased;
            answer = &mut *receiver => answer,
            () = sleep_until(self.deadline) => {
                if self.approvals.abandon(self.id, &refused(Cause::TimedOut)) {
                    self.receiver = None;
                    return Outcome::Refused {
                        cause: Cause::TimedOut,
                        reason: format!(
                            "nobody decided within {}",
                            within(self.request.terms.within)
                        )
                        .into(),
                    };
                }
                // Decided in time; the outcome is on its way to the journal.
                receiver.await
            }
        };
        self.receiver = None;
        answer.unwrap_or_else(|_| unavailable(STOPPING))
    }

    /// Takes the request back, unless it has been decided; whether it was taken back.
    pub fn withdraw(&mut self, why: &str) -> bool {
        let step = ApprovalStep::Withdrawn { why: why.into() };
        let withdrawn = self.receiver.is_some() && self.approvals.abandon(self.id, &step);
        if withdrawn {
            self.receiver = None;
        }
        withdrawn
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> ApprovalId {
        self.id
    }

    /// When it ends by itself.
    #[must_use]
    pub const fn until(&self) -> Timestamp {
        self.until
    }
}

impl Drop for Pending {
    /// Whoever asked is gone: nothing may be released any more, and the record says so.
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else {
            return;
        };
        let step = ApprovalStep::Withdrawn {
            why: "the agent hung up".into(),
        };
        if self.approvals.abandon(self.id, &step) {
            return;
        }
        // Approved, but it came too late to be used.
        if matches!(receiver.try_recv(), Ok(Outcome::Approved)) {
            drop(self.approvals.append(self.id, &self.request, step));
        }
    }
}

/// Only there because futures have no `Debug`.
struct Recorded(BoxFuture<'static, Result<(), Unrecorded>>);

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorded")
    }
}

/// Longest time that the runtime's timer is asked for; a longer one ends by the clock's `until`.
const WITHIN_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
