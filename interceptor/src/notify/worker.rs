//! One notifier at work: takes what its queue says, tells it, and reports. A task of its own, so that it delays nobody.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};

use futures_util::FutureExt as _;
use interceptor_core::record::Timestamp;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
    },
    time::{Instant, sleep_until, timeout},
};

use super::{
    limits::Timing,
    notice::Delivery,
    queue::{Failure, Job, Queue, Step, Told},
};
use crate::sync::lock;

/// What tells: a kind of notifier.
pub(super) trait Sink: Send {
    /// Tells, once.
    fn deliver(&mut self, job: &Job) -> impl Future<Output = Result<Told, Failure>> + Send;
}

/// A queue and what wakes its worker.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) wake: Notify,
}

/// Wall-clock time, as the caller has it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Works off `shared` for ever, or until nobody takes reports any more.
pub(super) async fn work(
    shared: Arc<Shared>,
    mut sink: impl Sink,
    timing: Timing,
    clock: Clock,
    reports: mpsc::Sender<Delivery>,
) {
    loop {
        // Whatever happens between here and the wait wakes it.
        let woken = shared.wake.notified();
        // Where the daemon is behind with its reports, they wait, and who is to be told doesn't.
        while lock(&shared.queue).has_reports() {
            match reports.try_reserve() {
                Ok(permit) => {
                    if let Some(report) = lock(&shared.queue).take_report() {
                        permit.send(report);
                    }
                }
                Err(TrySendError::Full(())) => break,
                Err(TrySendError::Closed(())) => return,
            }
        }
        let step = lock(&shared.queue).next(Instant::now());
        match step {
            Step::Attempt(job) => {
                // A notice that breaks a library ends itself, and not the notifier.
                let told = AssertUnwindSafe(sink.deliver(&job)).catch_unwind();
                let told = timeout(timing.attempt, told).await;
                let told = told.map(|told| {
                    let broken = "interceptor fails over it: this is a bug";
                    told.unwrap_or_else(|_| Err(Failure::last(broken)))
                });
                let told = told.unwrap_or_else(|_| {
                    let seconds = timing.attempt.as_secs_f32();
                    Err(Failure::down(format!("no answer within {seconds} s")))
                });
                let now = (Instant::now(), clock());
                lock(&shared.queue).settle(&job.id, told, now, jitter());
            }
            Step::Sleep(until) => {
                let has_reports = lock(&shared.queue).has_reports();
                // Those of this very step can go at once.
                if has_reports && reports.capacity() > 0 {
                    continue;
                }
                let due = async {
                    match until {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = woken => {}
                    () = due => {}
                    // Dropped at once, so that the loop's beginning finds the place free.
                    _ = reports.reserve(), if has_reports => {}
                    () = reports.closed() => return,
                }
            }
        }
    }
}

/// Anything from 0 to 1.
pub(super) fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness, which there always is, all wait the longest that they may.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}
