//! The waiting side of a request.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use interceptor_core::{
    record::{ApprovalId, Timestamp},
    ruling::Cause,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    queue::{Approvals, STOPPING, UNRECORDED, unavailable},
    request::{Outcome, Request, Unrecorded, Withdrawal},
};

/// A request that waits. Its [`outcome`](Self::outcome) comes once.
#[derive(Debug)]
pub struct Pending {
    approvals: Approvals,
    id: ApprovalId,
    request: Arc<Request>,
    until: Timestamp,
    /// When its client is told to come back, where it doesn't wait for as long as people have.
    patience: Option<Instant>,
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
        let terms = &request.terms;
        let patience = (terms.wait < terms.within).then(|| Instant::now() + terms.wait);
        Self {
            approvals,
            id,
            request,
            until,
            patience,
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
            if recorded.is_err() {
                self.receiver = None;
                self.approvals.unrecorded(self.id);
                return unavailable(UNRECORDED);
            }
        }
        let Some(receiver) = &mut self.receiver else {
            return unavailable("the approval has been used");
        };
        let answer = match self.patience {
            None => receiver.await,
            Some(patience) => tokio::select! {
                biased;
                answer = &mut *receiver => answer,
                () = sleep_until(patience) => {
                    if self.approvals.leave(self.id, Withdrawal::GaveUp) {
                        // Whatever comes now is kept for the next time.
                        self.receiver = None;
                        return self.come_back();
                    }
                    receiver.await
                }
            },
        };
        self.receiver = None;
        answer.unwrap_or_else(|_| unavailable(STOPPING))
    }

    /// What a client is told that needn't wait.
    fn come_back(&self) -> Outcome {
        Outcome::Refused {
            cause: Cause::Waiting,
            reason: format!("people have until {}", crate::rfc3339::short(self.until)).into(),
        }
    }

    /// Doesn't wait any more, unless it has been answered; whether it hasn't.
    pub fn withdraw(&mut self, why: Withdrawal) -> bool {
        let left = self.receiver.is_some() && self.approvals.leave(self.id, why);
        if left {
            self.receiver = None;
        }
        left
    }

    /// Its id: of what was asked before, where this is the same operation again.
    #[must_use]
    pub const fn id(&self) -> ApprovalId {
        self.id
    }

    /// What is asked about.
    #[must_use]
    pub const fn request(&self) -> &Arc<Request> {
        &self.request
    }

    /// When it ends by itself.
    #[must_use]
    pub const fn until(&self) -> Timestamp {
        self.until
    }
}

impl Drop for Pending {
    /// Whoever asked is gone: what was approved may wait for the operation to come again, or the record says that
    /// nothing comes of it.
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else {
            return;
        };
        if self.approvals.leave(self.id, Withdrawal::HungUp) {
            return;
        }
        // Approved, but it came too late to be used.
        if matches!(receiver.try_recv(), Ok(Outcome::Approved)) {
            self.approvals
                .unused(self.id, &self.request, Withdrawal::HungUp);
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
