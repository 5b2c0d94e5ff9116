//! What waits: its schedule, its order, its bounds.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::sleep;

use super::{
    super::{
        limits::{DEAD_MAX, QUEUED_MAX},
        queue::{Failure, FailureKind, Job, Step, Told},
        worker::Sink,
    },
    *,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn terms(for_people: bool) -> Terms {
    Terms {
        retry_for: 24 * HOUR,
        first_pause: Duration::from_secs(5),
        longest_pause: HOUR,
        for_people,
    }
}

fn queue(for_people: bool) -> Queue {
    Queue::new("x", terms(for_people), Arc::default())
}

fn shared(notice: &Notice) -> Arc<Facts> {
    Arc::new(facts(notice))
}

fn attempt(queue: &mut Queue, now: Instant) -> Job {
    match queue.next(now) {
        Step::Attempt(job) => job,
        other @ Step::Sleep(_) => panic!("{other:?}"),
    }
}

fn sleeps(queue: &mut Queue, now: Instant) -> Option<Instant> {
    match queue.next(now) {
        Step::Sleep(until) => until,
        Step::Attempt(job) => panic!("{job:?}"),
    }
}

fn reports(queue: &mut Queue) -> Vec<Outcome> {
    std::iter::from_fn(|| queue.take_report())
        .map(|report| report.outcome)
        .collect()
}

#[test]
fn pauses_double_up_to_the_longest_and_the_last_attempt_is_at_the_end() {
    let start = Instant::now();
    let mut queue = queue(false);
    queue.push(shared(&requested(1)), (start, NOW));
    let mut now = start;
    let mut pauses = Vec::new();
    loop {
        let job = attempt(&mut queue, now);
        queue.settle(&job.id, Err(Failure::down("away")), (now, NOW), 1.0);
        let Some(until) = sleeps(&mut queue, now) else {
            break;
        };
        pauses.push((until - now).as_secs());
        now = until;
    }
    assert_eq!(
        pauses[..11],
        [5, 10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600]
    );
    assert!(
        pauses[11..pauses.len() - 1]
            .iter()
            .all(|pause| *pause == 3_600)
    );
    assert_eq!(now - start, 24 * HOUR);
    let last = reports(&mut queue).pop();
    assert_eq!(last, Some(Outcome::Dead { why: "away".into() }));
    let status = queue.status("webhook", None);
    assert_eq!((status.queued, status.dead.len()), (0, 1));
    assert_eq!(status.dead[0].attempts as usize, pauses.len() + 1);
}

#[test]
fn jitter_takes_up_to_half_of_a_pause() {
    let now = Instant::now();
    for (jitter, pause) in [(0.0, 2_500), (0.5, 3_750), (1.0, 5_000)] {
        let mut queue = queue(false);
        queue.push(shared(&requested(1)), (now, NOW));
        let job = attempt(&mut queue, now);
        queue.settle(&job.id, Err(Failure::down("away")), (now, NOW), jitter);
        assert_eq!(
            sleeps(&mut queue, now),
            Some(now + Duration::from_millis(pause))
        );
    }
}

#[test]
fn a_receiver_that_says_when_to_come_again_is_believed_up_to_the_longest_pause() {
    let now = Instant::now();
    for (asked, pause) in [(1, 5), (600, 600), (1_000_000, 3_600)] {
        let mut queue = queue(false);
        queue.push(shared(&requested(1)), (now, NOW));
        let job = attempt(&mut queue, now);
        let kind = FailureKind::Down(Some(Duration::from_secs(asked)));
        let failure = Failure {
            kind,
            why: "busy".into(),
        };
        queue.settle(&job.id, Err(failure), (now, NOW), 1.0);
        assert_eq!(
            sleeps(&mut queue, now),
            Some(now + Duration::from_secs(pause))
        );
    }
}

#[test]
fn what_its_receiver_wont_have_keeps_nothing_else_back() {
    let now = Instant::now();
    let mut queue = queue(false);
    for notice in [requested(1), requested(2), approved(1)] {
        queue.push(shared(&notice), (now, NOW));
    }
    let first = attempt(&mut queue, now);
    queue.settle(&first.id, Err(Failure::unwelcome("no")), (now, NOW), 1.0);
    let second = attempt(&mut queue, now);
    assert_eq!(second.facts.approval, ApprovalId(2));
    queue.settle(&second.id, Ok(Told::default()), (now, NOW), 1.0);
    // The end of the first, which doesn't wait for its beginning.
    assert_eq!(attempt(&mut queue, now).facts.event, Event::Ended);
}

#[test]
fn an_end_is_told_after_its_beginning() {
    let now = Instant::now();
    let mut queue = queue(false);
    queue.push(shared(&requested(1)), (now, NOW));
    queue.end(ApprovalId(1));
    queue.push(shared(&approved(1)), (now, NOW));
    let first = attempt(&mut queue, now);
    assert_eq!(first.facts.event, Event::Requested);
    // While it is under way, and while it waits for its next attempt.
    assert_eq!(sleeps(&mut queue, now), None);
    queue.settle(&first.id, Err(Failure::down("away")), (now, NOW), 1.0);
    let again = sleeps(&mut queue, now).unwrap();
    let first = attempt(&mut queue, again);
    assert_eq!(first.facts.event, Event::Requested);
    queue.settle(&first.id, Ok(Told::default()), (again, NOW), 1.0);
    assert_eq!(attempt(&mut queue, again).facts.event, Event::Ended);
}

#[test]
fn who_is_back_gets_all_that_waits_at_once() {
    let now = Instant::now();
    let mut queue = queue(false);
    for id in 1..=3 {
        queue.push(shared(&requested(id)), (now, NOW));
    }
    let job = attempt(&mut queue, now);
    queue.settle(&job.id, Err(Failure::down("away")), (now, NOW), 1.0);
    let later = now + Duration::from_secs(5);
    let job = attempt(&mut queue, later);
    assert_eq!(job.attempts, 2);
    queue.settle(&job.id, Err(Failure::down("away")), (later, NOW), 1.0);
    assert_eq!(queue.status("webhook", None).state, NotifierState::Failing);
    let later = later + Duration::from_secs(10);
    let job = attempt(&mut queue, later);
    queue.settle(&job.id, Ok(Told::default()), (later, NOW), 1.0);
    assert_eq!(
        queue.status("webhook", None).state,
        NotifierState::Delivering
    );
    for _ in 0..2 {
        let job = attempt(&mut queue, later);
        queue.settle(&job.id, Ok(Told::default()), (later, NOW), 1.0);
    }
    assert_eq!(queue.status("webhook", None).delivered, 3);
}

#[test]
fn who_is_down_is_asked_once_a_minute_however_much_waits_and_for_emergencies_at_once() {
    let start = Instant::now();
    let mut queue = queue(false);
    for id in 1..=100 {
        queue.push(shared(&requested(id)), (start, NOW));
    }
    let mut now = start;
    let mut attempts = 0;
    while now < start + HOUR {
        match queue.next(now) {
            Step::Attempt(job) => {
                attempts += 1;
                queue.settle(&job.id, Err(Failure::down("away")), (now, NOW), 1.0);
            }
            Step::Sleep(until) => now = until.unwrap(),
        }
    }
    assert!((55..=70).contains(&attempts), "{attempts}");

    queue.push(shared(&overridden(1)), (now, NOW));
    let urgent = attempt(&mut queue, now);
    assert_eq!(urgent.facts.event, Event::Overridden);
    queue.settle(&urgent.id, Err(Failure::down("away")), (now, NOW), 1.0);
    assert!(sleeps(&mut queue, now).is_some_and(|until| until <= now + Duration::from_secs(60)));
}

#[test]
fn what_an_earlier_process_told_is_not_told_again() {
    let now = Instant::now();
    let told = [facts(&requested(1)).delivery("x")].into();
    let mut queue = Queue::new("x", terms(false), Arc::new(told));
    queue.push(shared(&requested(1)), (now, NOW));
    queue.push(shared(&approved(1)), (now, NOW));
    assert_eq!(attempt(&mut queue, now).facts.event, Event::Ended);
}

#[test]
fn people_are_not_asked_for_what_has_ended_and_programs_are_told_until_the_end() {
    let now = Instant::now();
    let mut people = queue(true);
    people.push(shared(&requested(1)), (now, NOW));
    people.end(ApprovalId(1));
    people.push(shared(&timed_out(1)), (now, NOW));
    assert_eq!(attempt(&mut people, now).facts.event, Event::Ended);
    let why = "its approval has ended, and it wasn't told before".into();
    assert_eq!(reports(&mut people), [Outcome::Withdrawn { why }]);

    let mut programs = queue(false);
    programs.push(shared(&requested(1)), (now, NOW));
    programs.end(ApprovalId(1));
    let job = attempt(&mut programs, now);
    programs.settle(
        &job.id,
        Err(Failure::down("away")),
        (now + 24 * HOUR, NOW),
        1.0,
    );
    // Withdrawn, not dead: nobody has to look at it.
    let why = "its approval has ended, and it couldn't be told before".into();
    assert_eq!(reports(&mut programs), [Outcome::Withdrawn { why }]);
    let status = programs.status("webhook", None);
    assert_eq!((status.withdrawn, status.dead.len()), (1, 0));
}

#[test]
fn what_is_full_lets_go_of_what_nobody_needs_then_of_the_oldest_then_of_emergencies() {
    let now = Instant::now();
    let mut queue = queue(false);
    queue.push(shared(&overridden(1)), (now, NOW));
    for id in 2..=QUEUED_MAX as u64 {
        queue.push(shared(&requested(id)), (now, NOW));
    }
    queue.end(ApprovalId(500));
    queue.push(shared(&requested(10_001)), (now, NOW));
    let status = queue.status("webhook", None);
    assert_eq!(
        (status.queued, status.crowded_out, status.withdrawn),
        (QUEUED_MAX, 1, 1)
    );
    assert_eq!(queue.take_report().unwrap().approval, ApprovalId(500));

    queue.push(shared(&requested(10_002)), (now, NOW));
    let status = queue.status("webhook", None);
    assert_eq!(
        (status.queued, status.crowded_out, status.dead.len()),
        (QUEUED_MAX, 2, 1)
    );
    // The oldest, but for what was let through in an emergency.
    assert_eq!(status.dead[0].approval, ApprovalId(2));
    assert_eq!(status.dead[0].why, "there was no room for it any more");
    assert_eq!(attempt(&mut queue, now).facts.event, Event::Overridden);

    for id in 20_000..20_000 + DEAD_MAX as u64 {
        queue.push(shared(&requested(id)), (now, NOW));
    }
    let status = queue.status("webhook", None);
    assert_eq!((status.dead.len(), status.dead_forgotten), (DEAD_MAX, 1));
}

#[test]
fn an_emergency_goes_first() {
    let now = Instant::now();
    let mut queue = queue(false);
    queue.push(shared(&requested(1)), (now, NOW));
    queue.push(shared(&requested(2)), (now, NOW));
    queue.push(shared(&overridden(2)), (now, NOW));
    assert_eq!(attempt(&mut queue, now).facts.event, Event::Overridden);
}

#[test]
fn a_dead_letter_is_sent_again_under_its_id_and_what_waits_is_not_taken_twice() {
    let now = Instant::now();
    let mut queue = queue(false);
    queue.push(shared(&requested(1)), (now, NOW));
    queue.push(shared(&requested(1)), (now, NOW));
    assert_eq!(queue.status("webhook", None).queued, 1);
    let job = attempt(&mut queue, now);
    queue.settle(&job.id, Err(Failure::last("gone")), (now, NOW), 1.0);
    let dead = &queue.status("webhook", None).dead[0];
    assert_eq!((&dead.id, dead.why.as_str()), (&job.id, "gone"));
    assert_eq!(
        queue
            .redeliver("msg_x", (now, NOW))
            .unwrap_err()
            .to_string(),
        "there is no dead letter `msg_x`; `status` lists those that there are"
    );
    queue.redeliver(&job.id, (now, NOW)).unwrap();
    let again = attempt(&mut queue, now);
    assert_eq!((&again.id, again.attempts), (&job.id, 1));
    queue.settle(&again.id, Ok(Told::default()), (now, NOW), 1.0);
    let status = queue.status("webhook", None);
    assert_eq!((status.delivered, status.dead.len()), (1, 0));
    assert_eq!(status.state, NotifierState::Idle);
}

#[test]
fn ids_tell_notices_hosts_and_notifiers_apart_and_outlive_a_process() {
    let notice = requested(1);
    let facts = facts(&notice);
    assert_eq!(facts.delivery("a"), super::facts(&notice).delivery("a"));
    let other_host = Facts::new(&notice, None, "db2");
    let mut more = summary(1);
    let first = super::facts(&of(Event::Escalated, more.clone(), None));
    more.groups.push("leads".into());
    let second = super::facts(&of(Event::Escalated, more, None));
    let ids = [
        facts.delivery("a"),
        facts.delivery("b"),
        other_host.delivery("a"),
        super::facts(&requested(2)).delivery("a"),
        super::facts(&approved(1)).delivery("a"),
        first.delivery("a"),
        second.delivery("a"),
    ];
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    assert!(
        ids.iter()
            .all(|id| id.len() == 36 && id.starts_with("msg_"))
    );
}

/// Fails so often, and hangs or not.
struct Flaky {
    failures: usize,
    attempts: Arc<AtomicUsize>,
    hangs: bool,
}

impl Sink for Flaky {
    async fn deliver(&mut self, _: &Job) -> Result<Told, Failure> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        if attempt >= self.failures {
            return Ok(Told::default());
        }
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(Failure::down("away"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_keeps_the_schedule_by_its_clock() {
    let start = Instant::now();
    let attempts = Arc::new(AtomicUsize::new(0));
    let worker = Arc::new(worker::Shared {
        queue: Mutex::new(queue(false)),
        wake: tokio::sync::Notify::new(),
    });
    let (sender, mut reports) = mpsc::channel(16);
    let sink = Flaky {
        failures: 3,
        attempts: attempts.clone(),
        hangs: true,
    };
    let clock: Clock = Arc::new(|| NOW);
    let _task = Aborted(tokio::spawn(work(
        worker.clone(),
        sink,
        Timing::default(),
        clock,
        sender,
    )));
    lock(&worker.queue).push(shared(&requested(1)), (Instant::now(), NOW));
    worker.wake.notify_one();
    for attempt in 1..=3 {
        let report = reports.recv().await.unwrap();
        assert_eq!(report.attempt, attempt);
        let why = "no answer within 30 s".into();
        let Outcome::Failed {
            why: got,
            again_in_s,
        } = report.outcome
        else {
            panic!()
        };
        assert_eq!(got, why);
        let longest = 5 << (attempt - 1);
        assert!(
            (longest / 2 - 1..=longest).contains(&again_in_s),
            "{attempt}: {again_in_s}"
        );
    }
    let report = reports.recv().await.unwrap();
    assert_eq!(
        report.outcome,
        Outcome::Delivered {
            reference: None,
            note: None
        }
    );
    // Three attempts of 30 s and pauses of 5, 10 and 20 s at the most.
    let took = start.elapsed().as_secs();
    assert!((107..=126).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn reports_that_nobody_takes_keep_no_notice_back() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let worker = Arc::new(worker::Shared {
        queue: Mutex::new(queue(false)),
        wake: tokio::sync::Notify::new(),
    });
    let (sender, mut reports) = mpsc::channel(1);
    let sink = Flaky {
        failures: 0,
        attempts: attempts.clone(),
        hangs: false,
    };
    let clock: Clock = Arc::new(|| NOW);
    let _task = Aborted(tokio::spawn(work(
        worker.clone(),
        sink,
        Timing::default(),
        clock,
        sender,
    )));
    for id in 1..=10 {
        lock(&worker.queue).push(shared(&requested(id)), (Instant::now(), NOW));
    }
    worker.wake.notify_one();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 10);
    for id in 1..=10 {
        assert_eq!(reports.recv().await.unwrap().approval, ApprovalId(id));
    }
}

/// Breaks.
struct Broken;

impl Sink for Broken {
    async fn deliver(&mut self, job: &Job) -> Result<Told, Failure> {
        assert_ne!(job.facts.approval, ApprovalId(1), "as libraries do");
        Ok(Told::default())
    }
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_breaks_a_library_ends_itself_alone() {
    let worker = Arc::new(worker::Shared {
        queue: Mutex::new(queue(false)),
        wake: tokio::sync::Notify::new(),
    });
    let (sender, mut reports) = mpsc::channel(16);
    let clock: Clock = Arc::new(|| NOW);
    let work = work(worker.clone(), Broken, Timing::default(), clock, sender);
    let _task = Aborted(tokio::spawn(work));
    for id in 1..=2 {
        lock(&worker.queue).push(shared(&requested(id)), (Instant::now(), NOW));
    }
    worker.wake.notify_one();
    let why = "interceptor fails over it: this is a bug".into();
    assert_eq!(reports.recv().await.unwrap().outcome, Outcome::Dead { why });
    let told = reports.recv().await.unwrap();
    assert!(matches!(told.outcome, Outcome::Delivered { .. }));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order, every notice comes to an end that is reported once, nothing of one approval
    /// overtakes what isn't refused, and nothing grows without bound.
    #[test]
    fn every_notice_comes_to_one_end(
        steps in proptest::collection::vec((0_u8..8, 1_u64..6, 0_u64..400), 1..300),
        for_people: bool,
    ) {
        let mut now = Instant::now();
        let mut queue = queue(for_people);
        let mut pushed = std::collections::BTreeSet::new();
        let mut ended = std::collections::BTreeSet::new();
        let mut under_way: Option<Job> = None;
        let mut ends = BTreeMap::new();
        let mut settle = |queue: &mut Queue| {
            while let Some(report) = queue.take_report() {
                if !matches!(report.outcome, Outcome::Failed { .. }) {
                    *ends.entry(report.id).or_insert(0) += 1;
                }
            }
        };
        for (what, id, seconds) in steps {
            now += Duration::from_secs(seconds);
            match what {
                0 | 1 if !ended.contains(&id) => {
                    let facts = shared(&requested(id));
                    if pushed.insert(facts.delivery("x")) {
                        queue.push(facts, (now, NOW));
                    }
                }
                2 if ended.insert(id) => {
                    queue.end(ApprovalId(id));
                    let notice = if seconds % 2 == 0 { approved(id) } else { overridden(id) };
                    let facts = shared(&notice);
                    pushed.insert(facts.delivery("x"));
                    queue.push(facts, (now, NOW));
                }
                _ => match under_way.take() {
                    None => {
                        if let Step::Attempt(job) = queue.next(now) {
                            under_way = Some(job);
                        }
                    }
                    Some(job) => {
                        let result = match what {
                            3 | 4 => Ok(Told::default()),
                            5 => Err(Failure::down("away")),
                            6 => Err(Failure::unwelcome("no")),
                            _ => Err(Failure::last("never")),
                        };
                        queue.settle(&job.id, result, (now, NOW), 0.5);
                    }
                },
            }
            settle(&mut queue);
        }
        // Then it is there for good, and all that is left is told.
        if let Some(job) = under_way {
            queue.settle(&job.id, Ok(Told::default()), (now, NOW), 0.5);
        }
        for _ in 0..2_000 {
            match queue.next(now) {
                Step::Attempt(job) => queue.settle(&job.id, Ok(Told::default()), (now, NOW), 0.5),
                Step::Sleep(Some(until)) => now = until,
                Step::Sleep(None) => break,
            }
            settle(&mut queue);
        }
        settle(&mut queue);
        proptest::prop_assert_eq!(queue.status("webhook", None).queued, 0);
        proptest::prop_assert!(ends.values().all(|count| *count == 1), "{:?}", ends);
        proptest::prop_assert_eq!(ends.keys().cloned().collect::<std::collections::BTreeSet<_>>(), pushed);
    }
}
