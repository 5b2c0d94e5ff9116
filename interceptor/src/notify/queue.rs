//! What one notifier still has to tell. No I/O and no clock in here: instants and jitter are arguments.
//!
//! Every notice is tried on its own schedule, so that one that its receiver won't have keeps no other from it. Two
//! notices of one approval stay in order: a receiver that hears of the end first would never close what the question
//! opened. What it must not do is grow: what is full lets go of what nobody needs any more, then of the oldest, which
//! becomes a dead letter.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use interceptor_core::record::{ApprovalId, Timestamp};
use tokio::time::Instant;

use super::{
    facts::Facts,
    limits::{DEAD_MAX, QUEUED_MAX, REPORTS_MAX},
    notice::{Delivery, Event, Outcome},
    status::{DeadLetter, NotifierState, NotifierStatus, RedeliverError},
};

/// Why it wasn't told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// For people. Nothing that the receiver wrote, and no secret.
    pub(super) why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The receiver isn't there, or is busy: others would fare the same. It may say for how long.
    Down(Option<Duration>),
    /// The receiver won't have it, which somebody may mend.
    Unwelcome,
    /// No attempt can change that.
    Final,
}

impl Failure {
    pub(super) fn down(why: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Down(None),
            why: why.into(),
        }
    }

    pub(super) fn unwelcome(why: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Unwelcome,
            why: why.into(),
        }
    }

    pub(super) fn last(why: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Final,
            why: why.into(),
        }
    }
}

/// It was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) reference: Option<Box<str>>,
    pub(super) note: Option<Box<str>>,
    /// There was nothing to tell after all, which is no news to anybody.
    pub(super) nothing: bool,
}

/// How a queue treats what fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// From the notice to the last attempt.
    pub(super) retry_for: Duration,
    pub(super) first_pause: Duration,
    pub(super) longest_pause: Duration,
    /// Its receivers are people: a question that has ended is withdrawn when its turn comes. Programs are told of
    /// it all the same, for they may count.
    pub(super) for_people: bool,
}

/// A notice that isn't told yet.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: Box<str>,
    pub(super) facts: Arc<Facts>,
    since: Instant,
    /// Attempts that have begun.
    pub(super) attempts: u32,
    due: Instant,
    failed: Option<Failure>,
    /// Its approval has ended meanwhile.
    ended: bool,
    /// An attempt is under way.
    busy: bool,
}

/// What couldn't be told.
#[derive(Debug, Clone)]
struct Dead {
    job: Job,
    when: Timestamp,
    why: String,
}

/// What a notifier has to do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Tell.
    Attempt(Job),
    /// Wait until then, or for a further notice.
    Sleep(Option<Instant>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    notifier: Box<str>,
    terms: Terms,
    jobs: VecDeque<Job>,
    dead: VecDeque<Dead>,
    reports: VecDeque<Delivery>,
    counts: Counts,
    failing: Option<(Timestamp, String)>,
    /// While its receiver is down nothing is tried but what is urgent: until when, and how often it was down.
    rest: Option<(Instant, u32)>,
    /// Deliveries of an earlier process.
    told: Arc<BTreeSet<Box<str>>>,
}

/// Longest rest of a whole notifier whose receiver is down. Its notices have their own pauses, but a thousand of them
/// would still ask every few seconds whether it is back; once a minute is enough, and soon enough.
const REST_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    delivered: u64,
    withdrawn: u64,
    crowded_out: u64,
    dead_forgotten: u64,
    unreported: u64,
}

impl Queue {
    /// The queue of `notifier`, which needn't tell again what is in `told`.
    pub(super) fn new(notifier: &str, terms: Terms, told: Arc<BTreeSet<Box<str>>>) -> Self {
        Self {
            notifier: notifier.into(),
            terms,
            jobs: VecDeque::new(),
            dead: VecDeque::new(),
            reports: VecDeque::new(),
            counts: Counts::default(),
            failing: None,
            rest: None,
            told,
        }
    }

    /// Takes a notice. One that waits already, is a dead letter or was told by an earlier process is the same again
    /// and isn't taken twice.
    pub(super) fn push(&mut self, facts: Arc<Facts>, (now, time): (Instant, Timestamp)) {
        let id = facts.delivery(&self.notifier);
        let mut known = self
            .jobs
            .iter()
            .chain(self.dead.iter().map(|dead| &dead.job));
        if known.any(|job| job.id == id) || self.told.contains(&id) {
            return;
        }
        self.append(Job::new(id, facts, now), time);
    }

    /// The approval `id` has ended: what asks for it isn't needed any more.
    pub(super) fn end(&mut self, id: ApprovalId) {
        for job in &mut self.jobs {
            job.ended |= job.facts.approval == id;
        }
        for dead in &mut self.dead {
            dead.job.ended |= dead.job.facts.approval == id;
        }
    }

    /// What is to be done at `now`.
    pub(super) fn next(&mut self, now: Instant) -> Step {
        if self.terms.for_people {
            self.withdraw_ended(now);
        }
        let rest = self.rest.map(|(until, _)| until);
        let rest = rest.filter(|until| *until > now);
        let ready = |job: &Job| !job.busy && job.due <= now;
        // Nobody else's turn comes before a rest is over; what is urgent is tried once all the same.
        let urgent = self.jobs.iter().position(|job| {
            let is_urgent = job.facts.event == Event::Overridden;
            ready(job) && is_urgent && (rest.is_none() || job.attempts == 0)
        });
        let first = urgent.or_else(|| {
            let mut indices = 0..self.jobs.len();
            let found = indices
                .find(|index| self.jobs.get(*index).is_some_and(ready) && !self.is_behind(*index));
            found.filter(|_| rest.is_none())
        });
        if let Some(job) = first.and_then(|index| self.jobs.get_mut(index)) {
            job.busy = true;
            job.attempts = job.attempts.saturating_add(1);
            return Step::Attempt(job.clone());
        }
        let indices = (0..self.jobs.len()).filter(|index| !self.is_behind(*index));
        let waiting = indices.filter_map(|index| self.jobs.get(index));
        let due = waiting.filter(|job| !job.busy).map(|job| job.due).min();
        Step::Sleep(due.map(|due| rest.map_or(due, |rest| due.max(rest))))
    }

    /// Takes how the attempt at `id` went. `jitter` is anything from 0 to 1.
    pub(super) fn settle(
        &mut self,
        id: &str,
        result: Result<Told, Failure>,
        (now, time): (Instant, Timestamp),
        jitter: f64,
    ) {
        let Some(index) = self.jobs.iter().position(|job| *job.id == *id) else {
            return;
        };
        match result {
            Ok(told) => {
                let job = self.jobs.remove(index);
                let Told {
                    reference,
                    note,
                    nothing,
                } = told;
                if nothing {
                    return;
                }
                self.failing = None;
                self.rest = None;
                self.counts.delivered += 1;
                if let Some(job) = job {
                    self.report(&job, Outcome::Delivered { reference, note });
                }
                // It is there again, so the others needn't wait for their time.
                for job in &mut self.jobs {
                    let down = job.failed.as_ref().map(|failure| failure.kind);
                    if matches!(down, Some(FailureKind::Down(_))) {
                        job.due = job.due.min(now);
                    }
                }
            }
            Err(failure) => self.failed(index, failure, (now, time), jitter),
        }
    }

    fn failed(
        &mut self,
        index: usize,
        failure: Failure,
        (now, time): (Instant, Timestamp),
        jitter: f64,
    ) {
        let since = self.failing.take().map_or(time, |(since, _)| since);
        self.failing = Some((since, failure.why.clone()));
        let terms = self.terms;
        self.rest = match failure.kind {
            FailureKind::Down(asked) => {
                let downs = self.rest.map_or(0, |(_, downs)| downs).saturating_add(1);
                let rest = pause(downs, &terms, jitter).min(REST_MAX);
                let rest = rest.max(asked.unwrap_or_default().min(terms.longest_pause));
                Some((now + rest, downs))
            }
            // It is there.
            FailureKind::Unwelcome | FailureKind::Final => None,
        };
        let Some(job) = self.jobs.get_mut(index) else {
            return;
        };
        job.busy = false;
        let end = job.since + terms.retry_for;
        let is_last = failure.kind == FailureKind::Final || now >= end;
        if !is_last {
            let pause = pause(job.attempts, &terms, jitter);
            let pause = match failure.kind {
                // However long the receiver would like.
                FailureKind::Down(Some(asked)) => pause.max(asked.min(terms.longest_pause)),
                _ => pause,
            };
            // The last attempt is when the time is over.
            job.due = (now + pause).min(end);
            let again_in_s = (job.due - now).as_secs();
            let why = failure.why.clone().into();
            job.failed = Some(failure);
            let job = job.clone();
            self.report(&job, Outcome::Failed { why, again_in_s });
            return;
        }
        let Some(job) = self.jobs.remove(index) else {
            return;
        };
        if job.ended && job.facts.event.asks() {
            self.withdraw(
                &job,
                "its approval has ended, and it couldn't be told before",
            );
        } else {
            self.bury(job, time, failure.why);
        }
    }

    /// Tries the dead letter `id` again.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) fn redeliver(
        &mut self,
        id: &str,
        (now, time): (Instant, Timestamp),
    ) -> Result<(), RedeliverError> {
        let index = self.dead.iter().position(|dead| *dead.job.id == *id);
        let dead = index.and_then(|index| self.dead.remove(index));
        let dead = dead.ok_or_else(|| RedeliverError::Unknown(id.into()))?;
        let ended = dead.job.ended;
        self.append(
            Job {
                ended,
                ..Job::new(dead.job.id, dead.job.facts, now)
            },
            time,
        );
        Ok(())
    }

    /// The oldest report of what became of a delivery.
    pub(super) fn take_report(&mut self) -> Option<Delivery> {
        self.reports.pop_front()
    }

    /// Whether there are any.
    pub(super) fn has_reports(&self) -> bool {
        !self.reports.is_empty()
    }

    /// How it does; `kind` is what it is.
    pub(super) fn status(&self, kind: &str, socket: Option<String>) -> NotifierStatus {
        let state = match (&self.failing, self.jobs.is_empty()) {
            (Some(_), _) => NotifierState::Failing,
            (None, true) => NotifierState::Idle,
            (None, false) => NotifierState::Delivering,
        };
        let letter = |dead: &Dead| DeadLetter {
            id: dead.job.id.clone(),
            approval: dead.job.facts.approval,
            event: dead.job.facts.event,
            agent: crate::inert::inert(&dead.job.facts.agent).into_owned(),
            time: dead.job.facts.time,
            given_up: dead.when,
            attempts: dead.job.attempts,
            why: dead.why.clone(),
        };
        NotifierStatus {
            name: self.notifier.clone(),
            kind: kind.into(),
            state,
            queued: self.jobs.len(),
            delivered: self.counts.delivered,
            withdrawn: self.counts.withdrawn,
            crowded_out: self.counts.crowded_out,
            failing_since: self.failing.as_ref().map(|(since, _)| *since),
            last_error: self.failing.as_ref().map(|(_, why)| why.clone()),
            dead: self.dead.iter().map(letter).collect(),
            dead_forgotten: self.counts.dead_forgotten,
            unreported: self.counts.unreported,
            socket,
        }
    }

    fn append(&mut self, job: Job, time: Timestamp) {
        if self.jobs.len() >= QUEUED_MAX {
            self.make_room(time);
        }
        self.jobs.push_back(job);
    }

    /// Lets go of what is needed least: a question that has ended, else the oldest; what was let through in an
    /// emergency last of all.
    fn make_room(&mut self, time: Timestamp) {
        let find =
            |fits: &dyn Fn(&Job) -> bool| self.jobs.iter().position(|job| !job.busy && fits(job));
        let index = find(&|job| job.ended && job.facts.event.asks())
            .or_else(|| find(&|job| job.facts.event != Event::Overridden))
            .or_else(|| find(&|_| true));
        let Some(job) = index.and_then(|index| self.jobs.remove(index)) else {
            return;
        };
        self.counts.crowded_out += 1;
        if job.ended && job.facts.event.asks() {
            self.withdraw(&job, "its approval has ended, and there was no room for it");
        } else {
            let why = match &job.failed {
                Some(failure) => format!(
                    "there was no room for it any more; before that: {}",
                    failure.why
                ),
                None => "there was no room for it any more".to_owned(),
            };
            self.bury(job, time, why);
        }
    }

    /// Whether another of the same approval goes before the job at `index`: not what its receiver won't have, or it
    /// would keep the end of an approval back for a day.
    fn is_behind(&self, index: usize) -> bool {
        let Some(job) = self.jobs.get(index) else {
            return false;
        };
        let unwelcome = |failure: &Failure| failure.kind == FailureKind::Unwelcome;
        self.jobs.iter().take(index).any(|earlier| {
            earlier.facts.approval == job.facts.approval
                && (earlier.busy || !earlier.failed.as_ref().is_some_and(unwelcome))
        })
    }

    /// Withdraws questions whose turn has come and that have ended.
    fn withdraw_ended(&mut self, now: Instant) {
        let over = |job: &Job| job.ended && job.facts.event.asks() && !job.busy && job.due <= now;
        while let Some(index) = self.jobs.iter().position(over) {
            if let Some(job) = self.jobs.remove(index) {
                self.withdraw(&job, "its approval has ended, and it wasn't told before");
            }
        }
    }

    fn withdraw(&mut self, job: &Job, why: &str) {
        self.counts.withdrawn += 1;
        self.report(job, Outcome::Withdrawn { why: why.into() });
    }

    fn bury(&mut self, job: Job, when: Timestamp, why: String) {
        self.report(
            &job,
            Outcome::Dead {
                why: why.as_str().into(),
            },
        );
        if self.dead.len() >= DEAD_MAX {
            self.dead.pop_front();
            self.counts.dead_forgotten += 1;
        }
        self.dead.push_back(Dead { job, when, why });
    }

    fn report(&mut self, job: &Job, outcome: Outcome) {
        if self.reports.len() >= REPORTS_MAX {
            self.counts.unreported += 1;
            return;
        }
        self.reports.push_back(Delivery {
            id: job.id.clone(),
            approval: job.facts.approval,
            notifier: self.notifier.clone(),
            event: job.facts.event,
            attempt: job.attempts,
            outcome,
        });
    }
}

impl Job {
    fn new(id: Box<str>, facts: Arc<Facts>, now: Instant) -> Self {
        Self {
            id,
            facts,
            since: now,
            attempts: 0,
            due: now,
            failed: None,
            ended: false,
            busy: false,
        }
    }
}

/// After `attempts` of them: doubled each time, up to the longest, and between a half and all of that, so that many
/// that failed together don't come together again.
fn pause(attempts: u32, terms: &Terms, jitter: f64) -> Duration {
    // 2^20 of anything is longer than the longest.
    let doublings = attempts.saturating_sub(1).min(20);
    let pause = terms
        .first_pause
        .saturating_mul(1 << doublings)
        .min(terms.longest_pause);
    pause.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}
