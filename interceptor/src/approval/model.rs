//! The queue against its promises with everything in random order: requests that come, go and come again, votes,
//! time, a clock that is set, disks that fail, policies that change, daemons that are killed.
//!
//! What is asserted is asserted of the records that reached the disk and of what was let through, by rules written
//! down a second time here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use interceptor_core::{
    operation::Digest,
    origin::{Agent, Origin},
    record::{
        ApprovalId, ApprovalRecord, ApprovalStep, Choice, DecisionRecord, Event, OperationRecord,
        Record, SessionId, SessionStart, Timestamp, Window,
    },
    ruling::{Decision, HoldTerms, Otherwise, Verdict, WindowLimits, WindowScope},
};
use proptest::prelude::*;
use tokio::{
    runtime::Builder,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{tests::request, *};

/// A thing that can happen; `usize` picks one of the questions so far.
#[derive(Debug, Clone)]
enum Happening {
    Ask {
        agent: usize,
        statement: u8,
    },
    Say {
        question: usize,
        voter: usize,
        say: Said,
    },
    Override {
        question: usize,
        voter: usize,
    },
    Revoke {
        question: usize,
    },
    HangUp {
        question: usize,
        why: Withdrawal,
    },
    Wait {
        ms: u64,
    },
    SetClock {
        ms: i64,
    },
    Disk {
        broken: bool,
    },
    Reload {
        policy: usize,
    },
    Kill,
    Stop,
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Yes(Option<(WindowScope, u64, u32)>),
    No,
    NotYes,
}

const AGENTS: [&str; 2] = ["alices", "nobodys"];
/// Each its own user id; the first owns the first agent.
const VOTERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// Who may override.
const BREAKS_GLASS: &str = "dave";

/// Terms of the rule, of which one is in force.
fn policies() -> Vec<HoldTerms> {
    let windows = |scope| {
        Some(WindowLimits {
            scope,
            span: Duration::from_secs(4),
            at_most: 2,
        })
    };
    let plain = HoldTerms {
        quorum: 1,
        within: Duration::from_secs(5),
        wait: Duration::from_secs(5),
        retry: Duration::from_secs(3),
        ..HoldTerms::default()
    };
    vec![
        plain.clone(),
        HoldTerms {
            quorum: 2,
            windows: windows(WindowScope::Shape),
            ..plain.clone()
        },
        HoldTerms {
            retry: Duration::ZERO,
            otherwise: Otherwise::Allow,
            ..plain.clone()
        },
        HoldTerms {
            wait: Duration::from_secs(1),
            windows: windows(WindowScope::Rule),
            otherwise: Otherwise::Allow,
            ..plain.clone()
        },
        HoldTerms {
            quorum: 3,
            within: Duration::from_secs(20),
            wait: Duration::from_secs(2),
            retry: Duration::from_secs(30),
            ..plain
        },
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    let scope = prop_oneof![
        Just(WindowScope::Operation),
        Just(WindowScope::Shape),
        Just(WindowScope::Rule)
    ];
    let window = prop::option::weighted(0.4, (scope, 0..6_u64, 0..4_u32));
    let said = prop_oneof![
        8 => window.prop_map(Said::Yes),
        1 => Just(Said::No),
        1 => Just(Said::NotYes),
    ];
    let why = prop_oneof![
        3 => Just(Withdrawal::HungUp),
        2 => Just(Withdrawal::GaveUp),
        1 => Just(Withdrawal::Cancelled),
    ];
    let question = 0..4_usize;
    prop_oneof![
        10 => (0..2_usize, 0..4_u8).prop_map(|(agent, statement)| Happening::Ask { agent, statement }),
        14 => (question.clone(), 0..4_usize, said)
            .prop_map(|(question, voter, say)| Happening::Say { question, voter, say }),
        1 => (question.clone(), 0..4_usize)
            .prop_map(|(question, voter)| Happening::Override { question, voter }),
        1 => question.clone().prop_map(|question| Happening::Revoke { question }),
        4 => (question, why).prop_map(|(question, why)| Happening::HangUp { question, why }),
        8 => (0..1_500_u64).prop_map(|ms| Happening::Wait { ms }),
        1 => (-4_000..4_000_i64).prop_map(|ms| Happening::SetClock { ms }),
        1 => prop::bool::weighted(0.3).prop_map(|broken| Happening::Disk { broken }),
        1 => (0..5_usize).prop_map(|policy| Happening::Reload { policy }),
        2 => Just(Happening::Kill),
        1 => Just(Happening::Stop),
    ]
}

/// A record on its way to the disk.
struct Written {
    record: Record,
    /// When it is there; `None` where it never will be.
    durable: Option<Instant>,
}

/// What is there for all daemons.
struct Host {
    start: Instant,
    clock_set: AtomicI64,
    disk: Duration,
    broken: AtomicBool,
    journal: Mutex<Vec<Written>>,
    sessions: AtomicU64,
    let_through: Mutex<Vec<LetThrough>>,
}

/// An operation that went on.
#[derive(Debug, Clone)]
struct LetThrough {
    session: SessionId,
    approval: ApprovalId,
    at: Instant,
}

impl Host {
    fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.start.elapsed().as_millis()).unwrap();
        // Far enough from 1970 to be set back.
        let ms = 1_000_000 + passed + self.clock_set.load(Ordering::Relaxed);
        Timestamp(u64::try_from(ms).unwrap() * 1_000_000)
    }

    fn write(&self, session: SessionId, agent: &Arc<str>, event: Event) -> Option<Instant> {
        let is_broken = self.broken.load(Ordering::Relaxed);
        let durable = (!is_broken).then(|| Instant::now() + self.disk);
        let record = Record {
            seq: 0,
            time: self.now(),
            session: Some(session),
            agent: agent.clone(),
            event,
        };
        self.journal
            .lock()
            .unwrap()
            .push(Written { record, durable });
        durable
    }

    /// What a killed daemon leaves: nothing that wasn't on disk, nor anything behind it.
    fn lose(&self) {
        let now = Instant::now();
        self.journal
            .lock()
            .unwrap()
            .retain(|written| written.durable.is_some_and(|durable| durable <= now));
    }
}

/// A daemon.
struct Life {
    approvals: Approvals,
    is_alive: Arc<AtomicBool>,
    waiting: Vec<(JoinHandle<()>, Option<oneshot::Sender<Withdrawal>>)>,
}

impl Life {
    fn begin(host: &Arc<Host>) -> Self {
        let is_alive = Arc::new(AtomicBool::new(true));
        let recorder = {
            let (host, is_alive) = (host.clone(), is_alive.clone());
            move |session: SessionId, agent: &Arc<str>, event: Event| {
                let durable = is_alive
                    .load(Ordering::Relaxed)
                    .then(|| host.write(session, agent, event))
                    .flatten();
                let is_alive = is_alive.clone();
                let future: futures_util::future::BoxFuture<'static, _> = Box::pin(async move {
                    let Some(durable) = durable else {
                        return Err(Unrecorded("the disk is full".to_owned()));
                    };
                    tokio::time::sleep_until(durable).await;
                    if !is_alive.load(Ordering::Relaxed) {
                        // A process that is dead goes on with nothing.
                        std::future::pending::<()>().await;
                    }
                    Ok(())
                });
                future
            }
        };
        let clock = {
            let host = host.clone();
            move || host.now()
        };
        let break_glass =
            BTreeMap::from([("oncall".into(), BTreeSet::from([BREAKS_GLASS.into()]))]);
        let reviewers = Reviewers::new(break_glass, vec!["oncall".into()]);
        let approvals = Approvals::new(recorder, reviewers, clock);
        let mut unfinished = Unfinished::default();
        for written in host.journal.lock().unwrap().iter() {
            unfinished.observe(&written.record);
        }
        let mut recovered = unfinished.recovered(host.now());
        for (session, agent, event) in recovered.ends.drain(..) {
            host.write(session.unwrap(), &agent, event);
        }
        approvals.recover(recovered, host.now());
        Self {
            approvals,
            is_alive,
            waiting: Vec::new(),
        }
    }

    fn kill(&self, host: &Host) {
        self.is_alive.store(false, Ordering::Relaxed);
        host.lose();
        for (waiting, _) in &self.waiting {
            waiting.abort();
        }
    }
}

fn voter(which: usize) -> Voter {
    Voter {
        uid: None,
        name: VOTERS[which].into(),
        groups: [].into(),
    }
}

/// Waits for the answer as a session does.
async fn wait(
    mut pending: Pending,
    mut left: oneshot::Receiver<Withdrawal>,
    (host, approvals): (Arc<Host>, Approvals),
    session: SessionId,
) {
    let outcome = tokio::select! {
        biased;
        outcome = pending.outcome() => outcome,
        Ok(why) = &mut left => {
            if !pending.withdraw(why) && pending.outcome().await == Outcome::Approved {
                approvals.unused(pending.id(), pending.request(), why);
            }
            return;
        }
    };
    if outcome != Outcome::Approved {
        return;
    }
    // The way to the session, which may be gone by then.
    tokio::task::yield_now().await;
    if let Ok(why) = left.try_recv() {
        approvals.unused(pending.id(), pending.request(), why);
        return;
    }
    host.let_through.lock().unwrap().push(LetThrough {
        session,
        approval: pending.id(),
        at: Instant::now(),
    });
    approvals.used(pending.id());
}

/// A statement of an agent: two have the same shape.
fn asked(session: SessionId, agent: usize, statement: u8, terms: &HoldTerms) -> Request {
    let mut asked = request(AGENTS[agent], 1, 1, &[]);
    let labels = match agent {
        0 => BTreeMap::from([("owner".into(), "alice".into())]),
        _ => BTreeMap::new(),
    };
    asked.session = session;
    asked.origin = Arc::new(Origin {
        agent: Arc::new(Agent {
            name: AGENTS[agent].into(),
            labels,
        }),
        ..Origin::clone(&asked.origin)
    });
    asked.operation.content = vec![statement].into();
    asked.digest = asked.operation.digest(&asked.origin);
    asked.shape = Some(Digest([statement / 2; 32]));
    asked.terms = terms.clone();
    asked.decision = Arc::new(Decision {
        verdict: Verdict::Hold(terms.clone()),
        ..Decision::clone(&asked.decision)
    });
    asked
}

async fn live(happenings: Vec<Happening>, disk: Duration) -> Result<u64, TestCaseError> {
    let host = Arc::new(Host {
        start: Instant::now(),
        clock_set: AtomicI64::new(0),
        disk,
        broken: AtomicBool::new(false),
        journal: Mutex::default(),
        sessions: AtomicU64::new(1),
        let_through: Mutex::default(),
    });
    let policies = policies();
    let mut policy = 0;
    let mut life = Life::begin(&host);
    let mut requests: HashMap<SessionId, Request> = HashMap::new();
    let mut questions: Vec<ApprovalId> = Vec::new();
    for happening in happenings {
        let pick = |question: usize| {
            let latest = questions.iter().rev();
            latest.copied().nth(question)
        };
        match happening {
            Happening::Ask { agent, statement } => {
                let session = SessionId(host.sessions.fetch_add(1, Ordering::Relaxed));
                let request = asked(session, agent, statement, &policies[policy]);
                let name: Arc<str> = AGENTS[agent].into();
                for event in [
                    Event::SessionStart(SessionStart {
                        origin: request.origin.clone(),
                        client: None,
                    }),
                    Event::Operation(OperationRecord {
                        number: 1,
                        operation: request.operation.clone(),
                    }),
                    Event::Decision(DecisionRecord {
                        number: 1,
                        decision: request.decision.clone(),
                    }),
                ] {
                    host.write(session, &name, event);
                }
                let id = ApprovalId(session.0);
                let pending = life.approvals.request(id, request.clone(), host.now());
                requests.insert(session, request);
                questions.push(pending.id());
                let (leave, left) = oneshot::channel();
                let waits = wait(
                    pending,
                    left,
                    (host.clone(), life.approvals.clone()),
                    session,
                );
                life.waiting.push((tokio::spawn(waits), Some(leave)));
            }
            Happening::Say {
                question,
                voter: who,
                say,
            } => {
                if let Some(id) = pick(question) {
                    let (choice, window) = match say {
                        Said::Yes(window) => (Choice::Approve, window),
                        Said::No => (Choice::Deny, None),
                        Said::NotYes => (Choice::Retract, None),
                    };
                    let say = Say {
                        signed: None,
                        choice,
                        reason: "".into(),
                        window: window.map(|(scope, seconds, at_most)| Window {
                            scope,
                            seconds,
                            at_most,
                        }),
                    };
                    let approvals = life.approvals.clone();
                    tokio::spawn(async move { approvals.vote(id, voter(who), say).await });
                }
            }
            Happening::Override {
                question,
                voter: who,
            } => {
                if let Some(id) = pick(question) {
                    let approvals = life.approvals.clone();
                    tokio::spawn(
                        async move { approvals.override_alone(id, voter(who), "now").await },
                    );
                }
            }
            Happening::Revoke { question } => {
                if let Some(id) = pick(question) {
                    let approvals = life.approvals.clone();
                    tokio::spawn(async move { approvals.revoke(id, &voter(1), "").await });
                }
            }
            Happening::HangUp { question, why } => {
                let count = life.waiting.len();
                let at = count.checked_sub(question + 1);
                if let Some((waiting, leave)) = at.and_then(|at| life.waiting.get_mut(at)) {
                    match (why, leave.take()) {
                        (Withdrawal::HungUp, _) | (_, None) => waiting.abort(),
                        (why, Some(leave)) => drop(leave.send(why)),
                    }
                }
            }
            Happening::Wait { ms } => sleep(Duration::from_millis(ms)).await,
            Happening::SetClock { ms } => {
                host.clock_set.fetch_add(ms, Ordering::Relaxed);
            }
            Happening::Disk { broken } => host.broken.store(broken, Ordering::Relaxed),
            Happening::Reload { policy: other } => policy = other,
            Happening::Kill => {
                life.kill(&host);
                host.broken.store(false, Ordering::Relaxed);
                life = Life::begin(&host);
            }
            Happening::Stop => {
                life.approvals.stop();
                sleep(disk).await;
                life.kill(&host);
                life = Life::begin(&host);
            }
        }
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_secs(120)).await;
    prop_assert_eq!(life.approvals.pending(), 0, "something still waits");
    prop_assert_eq!(life.approvals.grants(), vec![], "something still stands");
    life.kill(&host);
    let journal = host.journal.lock().unwrap();
    let records: Vec<(&Record, Instant)> = journal
        .iter()
        .filter_map(|written| Some((&written.record, written.durable?)))
        .collect();
    let let_through = host.let_through.lock().unwrap();
    for one in let_through.iter() {
        justified(one, &records, &requests)?;
    }
    none_twice(&let_through, &records)?;
    Ok(let_through.len() as u64)
}

/// The steps of one approval, in order, and when each was on disk.
fn steps<'a>(
    of: ApprovalId,
    records: &'a [(&Record, Instant)],
) -> impl Iterator<Item = (&'a Record, &'a ApprovalRecord, Instant)> {
    let all = records.iter();
    all.filter_map(move |(record, durable)| match &record.event {
        Event::Approval(step) if step.approval == of => Some((*record, step, *durable)),
        _ => None,
    })
}

/// What was let through was asked about, agreed to by enough others in time, and is on record as this operation.
fn justified(
    one: &LetThrough,
    records: &[(&Record, Instant)],
    requests: &HashMap<SessionId, Request>,
) -> Result<(), TestCaseError> {
    let own = &requests[&one.session];
    let all: Vec<_> = steps(one.approval, records).collect();
    let mut asked_for: Option<&Request> = None;
    let mut until = Timestamp(0);
    let mut agreed = BTreeMap::new();
    let mut objected = false;
    // When, and with which window.
    let mut approved: Option<(Timestamp, Option<Window>)> = None;
    let mut is_own = false;
    let mut admitted = false;
    for (record, step, durable) in &all {
        let session = record.session.unwrap();
        match &step.step {
            ApprovalStep::Requested { until: end, .. } => {
                asked_for = Some(&requests[&session]);
                until = *end;
                is_own = session == one.session;
            }
            ApprovalStep::Resumed => is_own = session == one.session,
            ApprovalStep::Voted {
                choice, window, by, ..
            } => match choice {
                Choice::Approve => {
                    prop_assert!(record.time < until, "a vote after its time: {:?}", all);
                    let owner = own.origin.agent.labels.get("owner");
                    prop_assert!(owner != Some(by), "an owner's vote: {:?}", all);
                    agreed.insert(by.clone(), *window);
                }
                Choice::Deny => objected = true,
                Choice::Retract => drop(agreed.remove(by)),
            },
            ApprovalStep::Approved { window } => {
                let terms = &asked_for.unwrap().terms;
                prop_assert!(
                    agreed.len() >= terms.quorum as usize,
                    "no quorum: {:?}",
                    all
                );
                prop_assert!(!objected, "somebody said no: {:?}", all);
                prop_assert!(approved.is_none(), "twice approved: {:?}", all);
                if let Some(window) = window {
                    let agreed_to = agreed.values().flatten().filter(|own: &&Window| {
                        own.scope >= window.scope
                            && own.seconds >= window.seconds
                            && own.at_most >= window.at_most
                    });
                    let limits = terms.windows.unwrap();
                    prop_assert!(
                        agreed_to.count() >= terms.quorum as usize
                            && window.scope <= limits.scope
                            && window.seconds <= limits.span.as_secs()
                            && window.at_most <= limits.at_most,
                        "more than was agreed to: {:?}",
                        all
                    );
                }
                if is_own {
                    prop_assert!(*durable <= one.at, "before it was on record: {:?}", all);
                }
                // What a dead daemon couldn't record is recorded late; the votes were in time.
                approved = Some((record.time, *window));
            }
            ApprovalStep::Overridden { by, .. } => {
                prop_assert!(&**by == BREAKS_GLASS && approved.is_none());
                approved = Some((record.time, None));
            }
            ApprovalStep::Unopposed => {
                let otherwise = asked_for.unwrap().terms.otherwise;
                prop_assert!(otherwise == Otherwise::Allow && !objected && approved.is_none());
                approved = Some((record.time, None));
            }
            ApprovalStep::Admitted if session == one.session => {
                let (at, window) = approved.unwrap();
                let retry = asked_for.unwrap().terms.retry;
                let span = window.map_or(retry, |window| Duration::from_secs(window.seconds));
                let end = Timestamp(at.0 + u64::try_from(span.as_nanos()).unwrap());
                prop_assert!(record.time < end, "after its time: {:?}", all);
                prop_assert!(*durable <= one.at, "before it was on record: {:?}", all);
                admitted = true;
            }
            ApprovalStep::Revoked { .. } => {
                prop_assert!(admitted || is_own, "after it was revoked: {:?}", all);
            }
            ApprovalStep::Refused { .. } => {
                prop_assert!(approved.is_none(), "refused after all: {:?}", all);
            }
            _ => {}
        }
    }
    let Some((_, window)) = approved else {
        return Err(TestCaseError::fail(format!(
            "never approved: {one:?} {all:?}"
        )));
    };
    prop_assert!(admitted || is_own, "another's: {:?} {:?}", one, all);
    let asked_for = asked_for.unwrap();
    prop_assert_eq!(&own.origin.agent, &asked_for.origin.agent);
    prop_assert_eq!(&own.terms, &asked_for.terms, "under other terms");
    let scope = window
        .filter(|_| admitted && !is_own)
        .map(|window| window.scope);
    match scope {
        None | Some(WindowScope::Operation) => prop_assert_eq!(own.digest, asked_for.digest),
        Some(WindowScope::Shape) => prop_assert_eq!(own.shape, asked_for.shape),
        Some(WindowScope::Rule) => {}
    }
    Ok(())
}

/// No approval lets more through than it was for.
fn none_twice(
    let_through: &[LetThrough],
    records: &[(&Record, Instant)],
) -> Result<(), TestCaseError> {
    let mut counts: HashMap<ApprovalId, u32> = HashMap::new();
    for one in let_through {
        *counts.entry(one.approval).or_default() += 1;
    }
    for (id, count) in counts {
        let window = steps(id, records).find_map(|(_, step, _)| match &step.step {
            ApprovalStep::Approved { window } => Some(window.map_or(0, |window| window.at_most)),
            _ => None,
        });
        let most = 1 + window.unwrap_or(0);
        prop_assert!(
            count <= most,
            "{} times: {:?} {:?}",
            count,
            let_through
                .iter()
                .filter(|one| one.approval == id)
                .collect::<Vec<_>>(),
            steps(id, records).collect::<Vec<_>>()
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing goes without its quorum of distinct people other than the owner, nothing twice, nothing after its
    /// time, nothing by what was agreed to under other terms, nothing that isn't on record, and nothing stays for
    /// ever. `PROPTEST_CASES` has it try more.
    #[test]
    fn the_promises_hold_in_any_order(
        happenings in prop::collection::vec(happening(), 1..80),
        disk_ms in 0..700_u64,
    ) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let count = happenings.len() as u64;
        let let_through = runtime.block_on(live(happenings, Duration::from_millis(disk_ms)))?;
        let steps = STEPS.fetch_add(count, Ordering::Relaxed) + count;
        let passed = LET_THROUGH.fetch_add(let_through, Ordering::Relaxed) + let_through;
        println!("{steps} steps, {passed} operations let through");
    }
}

/// What the random orders came to, for whoever runs them for long (`--nocapture`).
static STEPS: AtomicU64 = AtomicU64::new(0);
static LET_THROUGH: AtomicU64 = AtomicU64::new(0);
