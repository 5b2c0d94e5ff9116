//! The queue against its promises: by example, then with everything in random order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use interceptor_core::{
    operation::{Description, Effects, Operation, Parameter, ParameterFormat, Protocol},
    origin::{Agent, Destination, Origin, Process},
    record::{ApprovalId, ApprovalStep, Event, Record, SessionId, Timestamp},
    ruling::{Cause, Decision, HoldTerms, PolicyHash, Verdict},
};
use proptest::prelude::*;
use tokio::{
    runtime::Builder,
    time::{Instant, sleep},
};

use super::*;

type Log = Arc<Mutex<Vec<(Duration, ApprovalId, ApprovalStep)>>>;

/// A queue under a paused clock, whose journal takes some time and can be broken.
struct Bench {
    approvals: Approvals,
    log: Log,
    broken: Arc<Mutex<bool>>,
    start: Instant,
    ids: std::sync::atomic::AtomicU64,
}

impl Bench {
    fn id(&self) -> ApprovalId {
        ApprovalId(self.ids.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    fn new(reviewers: Reviewers, disk: Duration) -> Self {
        let start = Instant::now();
        let log = Log::default();
        let broken = Arc::new(Mutex::new(false));
        let recorder = {
            let (log, broken) = (log.clone(), broken.clone());
            move |_: SessionId, _: &Arc<str>, event: Event| {
                let Event::Approval(record) = event else {
                    panic!("only approvals are recorded")
                };
                log.lock()
                    .unwrap()
                    .push((start.elapsed(), record.approval, record.step));
                let broken = *broken.lock().unwrap();
                let future: futures_util::future::BoxFuture<'static, _> = Box::pin(async move {
                    sleep(disk).await;
                    if broken {
                        Err(Unrecorded("the disk is full".to_owned()))
                    } else {
                        Ok(())
                    }
                });
                future
            }
        };
        let ids = std::sync::atomic::AtomicU64::new(1);
        Self {
            approvals: Approvals::new(recorder, reviewers, move || now(start)),
            ids,
            log,
            broken,
            start,
        }
    }

    fn plain() -> Self {
        Self::new(Reviewers::default(), Duration::from_millis(1))
    }

    fn ask(&self, quorum: u32, within_s: u64) -> Pending {
        self.approvals.request(
            self.id(),
            request("agent", quorum, within_s, &[]),
            now(self.start),
        )
    }

    async fn vote(&self, id: ApprovalId, name: &str, approve: bool) -> Result<Summary, VoteError> {
        self.approvals.vote(id, voter(name), approve, "").await
    }

    fn steps(&self) -> Vec<ApprovalStep> {
        let log = self.log.lock().unwrap();
        log.iter().map(|(_, _, step)| step.clone()).collect()
    }
}

fn now(start: Instant) -> Timestamp {
    Timestamp(u64::try_from(start.elapsed().as_nanos()).unwrap())
}

fn voter(name: &str) -> Voter {
    Voter {
        uid: name.bytes().map(u32::from).sum(),
        name: name.into(),
        groups: [].into(),
    }
}

/// A request of `agent`'s to drop a table.
pub(crate) fn request(agent: &str, quorum: u32, within_s: u64, groups: &[&str]) -> Request {
    let terms = HoldTerms {
        groups: groups.iter().map(|group| (*group).into()).collect(),
        quorum,
        within: Duration::from_secs(within_s),
    };
    let origin = Arc::new(Origin {
        agent: Arc::new(Agent {
            name: agent.into(),
            labels: BTreeMap::new(),
        }),
        process: Process::default(),
        destination: Destination::Ip("192.0.2.1:5432".parse().unwrap()),
        names: Vec::new(),
    });
    let operation = Operation {
        protocol: Protocol::Postgres,
        description: Arc::new(Description {
            actions: ["DROP TABLE".into()].into(),
            effects: Effects::SCHEMA,
            ..Description::default()
        }),
        content: Bytes::from_static(b"DROP TABLE t"),
        parameters: [
            Parameter {
                format: ParameterFormat::Text,
                type_oid: 25,
                value: Some(Bytes::from_static(b"x")),
            },
            Parameter {
                format: ParameterFormat::Binary,
                type_oid: 23,
                value: Some(Bytes::from_static(&[0, 0, 0, 65])),
            },
        ]
        .into(),
        options: Vec::new(),
        http: None,
    };
    Request {
        session: SessionId(1),
        number: 1,
        digest: operation.digest(&origin),
        origin,
        operation,
        decision: Arc::new(Decision {
            verdict: Verdict::Hold(terms.clone()),
            enforced: true,
            rule: "held".into(),
            reason: "ask first".into(),
            masked_by: [].into(),
            strict: false,
            policy: PolicyHash([0; 32]),
        }),
        terms,
    }
}

#[test]
fn what_is_approved_in_one_network_is_not_approved_in_another() {
    let request = request("agent", 1, 60, &[]);
    let mut digests = vec![request.digest];
    for cookie in [7, 8] {
        let mut origin = Origin::clone(&request.origin);
        origin.process.network_namespace = Some(cookie);
        digests.push(request.operation.digest(&origin));
    }
    assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
}

fn refusal(outcome: Outcome) -> (Cause, String) {
    match outcome {
        Outcome::Refused { cause, reason } => (cause, reason.to_string()),
        Outcome::Approved => panic!("it was approved"),
    }
}

#[tokio::test(start_paused = true)]
async fn one_yes_releases_once() {
    let bench = Bench::plain();
    let mut pending = bench.ask(1, 60);
    let summary = bench.vote(pending.id(), "alice", true).await.unwrap();
    assert_eq!(summary.state, State::Approved);
    assert_eq!(pending.outcome().await, Outcome::Approved);
    assert_eq!(
        refusal(pending.outcome().await),
        (Cause::Unavailable, "the approval has been used".to_owned())
    );
    drop(pending);
    let steps = bench.steps();
    assert!(
        matches!(
            &steps[..],
            [
                ApprovalStep::Requested { .. },
                ApprovalStep::Voted { approve: true, .. },
                ApprovalStep::Approved
            ]
        ),
        "{steps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_no_ends_it_with_the_reviewers_words() {
    let bench = Bench::plain();
    let mut pending = bench.ask(2, 60);
    bench.vote(pending.id(), "alice", true).await.unwrap();
    bench
        .approvals
        .vote(pending.id(), voter("bob"), false, "not on a Friday")
        .await
        .unwrap();
    assert_eq!(
        refusal(pending.outcome().await),
        (Cause::Rejected, "not on a Friday (by bob)".to_owned())
    );
    assert_eq!(
        bench
            .vote(pending.id(), "carol", true)
            .await
            .unwrap_err()
            .to_string(),
        "approval 0000000000000001 can't be voted on any more: it was rejected"
    );
}

#[tokio::test(start_paused = true)]
async fn quorum_counts_distinct_people() {
    let bench = Bench::plain();
    let mut pending = bench.ask(2, 60);
    bench.vote(pending.id(), "alice", true).await.unwrap();
    assert_eq!(
        bench
            .vote(pending.id(), "alice", true)
            .await
            .unwrap_err()
            .to_string(),
        "`alice` has already approved 0000000000000001; 1 more distinct people have to"
    );
    // Twice at the same moment is no way around it.
    let (first, second) = tokio::join!(
        bench.vote(pending.id(), "bob", true),
        bench.vote(pending.id(), "bob", true)
    );
    assert!(first.is_ok() != second.is_ok());
    assert_eq!(pending.outcome().await, Outcome::Approved);
}

#[tokio::test(start_paused = true)]
async fn only_members_of_the_rules_groups_vote() {
    let reviewers = Reviewers::new(BTreeMap::from([(
        "dba".into(),
        BTreeSet::from(["alice".into()]),
    )]));
    let bench = Bench::new(reviewers, Duration::ZERO);
    let pending =
        bench
            .approvals
            .request(bench.id(), request("agent", 1, 60, &["dba"]), Timestamp(0));
    assert_eq!(
        bench
            .vote(pending.id(), "root", true)
            .await
            .unwrap_err()
            .to_string(),
        "`root` may not vote on approval 0000000000000001: only members of dba may"
    );
    assert!(bench.vote(pending.id(), "alice", true).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn silence_refuses() {
    let bench = Bench::plain();
    let mut pending = bench.ask(1, 900);
    let id = pending.id();
    assert_eq!(
        refusal(pending.outcome().await),
        (Cause::TimedOut, "nobody decided within 15m".to_owned())
    );
    let error = bench.vote(id, "alice", true).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "approval 0000000000000001 can't be voted on any more: its time is over"
    );
    assert!(bench.approvals.list(false).is_empty());
    assert_eq!(bench.approvals.list(true).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_vote_that_reaches_the_disk_too_late_does_not_count() {
    let bench = Bench::new(Reviewers::default(), Duration::from_secs(2));
    let mut pending = bench.ask(1, 5);
    let id = pending.id();
    let late = async {
        sleep(Duration::from_secs(4)).await;
        bench.vote(id, "alice", true).await
    };
    let (outcome, vote) = tokio::join!(pending.outcome(), late);
    assert_eq!(refusal(outcome).0, Cause::TimedOut);
    assert!(vote.is_err());
}

#[tokio::test(start_paused = true)]
async fn hanging_up_withdraws() {
    let bench = Bench::plain();
    let pending = bench.ask(1, 60);
    let id = pending.id();
    drop(pending);
    assert!(matches!(
        bench.steps().last(),
        Some(ApprovalStep::Withdrawn { why }) if &**why == "the agent hung up"
    ));
    assert_eq!(
        bench.vote(id, "alice", true).await.unwrap_err().to_string(),
        "approval 0000000000000001 can't be voted on any more: it was withdrawn (the agent hung up)"
    );
}

#[tokio::test(start_paused = true)]
async fn an_approval_nobody_waits_for_any_more_is_withdrawn() {
    let bench = Bench::plain();
    let pending = bench.ask(1, 60);
    bench.vote(pending.id(), "alice", true).await.unwrap();
    drop(pending);
    assert!(matches!(
        &bench.steps()[2..],
        [ApprovalStep::Approved, ApprovalStep::Withdrawn { .. }]
    ));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_recorded_does_not_happen() {
    let bench = Bench::plain();
    let mut pending = bench.ask(1, 60);
    *bench.broken.lock().unwrap() = true;
    assert_eq!(
        bench
            .vote(pending.id(), "alice", true)
            .await
            .unwrap_err()
            .to_string(),
        "the vote doesn't count: it can't be recorded: the disk is full; see `interceptor status`"
    );
    assert_eq!(bench.approvals.pending(), 1);
    *bench.broken.lock().unwrap() = false;
    bench.vote(pending.id(), "alice", true).await.unwrap();
    assert_eq!(pending.outcome().await, Outcome::Approved);

    *bench.broken.lock().unwrap() = true;
    let mut pending = bench.ask(1, 60);
    assert_eq!(refusal(pending.outcome().await).0, Cause::Unavailable);
    assert_eq!(bench.approvals.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn stopping_refuses_all_that_waits_and_all_that_comes() {
    let bench = Bench::plain();
    let mut pending = bench.ask(1, 60);
    bench.approvals.stop();
    let expected = (Cause::Unavailable, "interceptor is stopping".to_owned());
    assert_eq!(refusal(pending.outcome().await), expected);
    assert_eq!(refusal(bench.ask(1, 60).outcome().await), expected);
}

#[tokio::test(start_paused = true)]
async fn one_agent_cannot_take_all_places() {
    let bench = Bench::plain();
    let places = interceptor_core::limits::APPROVALS_PENDING_AGENT_MAX;
    let waiting: Vec<_> = (0..places).map(|_| bench.ask(1, 60)).collect();
    assert_eq!(
        refusal(bench.ask(1, 60).outcome().await),
        (
            Cause::Unavailable,
            "too many operations of this agent wait for approval".to_owned()
        )
    );
    let other = bench
        .approvals
        .request(bench.id(), request("other", 1, 60, &[]), Timestamp(0));
    assert_eq!(bench.approvals.pending(), places + 1);
    drop((waiting, other));
    assert_eq!(bench.approvals.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn reviewers_see_exactly_what_will_be_sent() {
    let bench = Bench::plain();
    let mut watch = bench.approvals.watch();
    let pending = bench.ask(1, 60);
    let detail = bench.approvals.show(pending.id()).unwrap();
    assert_eq!(
        detail.content,
        Some(Content::Text("DROP TABLE t".to_owned()))
    );
    assert_eq!(detail.parameters[0].value, "x");
    assert_eq!(detail.parameters[0].hex, None);
    // A binary integer whose bytes look like text is shown as the integer, with its bytes.
    assert_eq!(detail.parameters[1].value, "65");
    assert_eq!(detail.parameters[1].hex.as_deref(), Some("00000041"));
    let json = serde_json::to_string(&detail).unwrap();
    assert_eq!(serde_json::from_str::<Detail>(&json).unwrap(), detail);
    assert!(
        matches!(&*watch.recv().await.unwrap(), Change::Requested(summary)
        if summary.digest == detail.summary.digest)
    );
}

#[test]
fn a_restart_withdraws_what_never_ended() {
    let approval = |id, step| {
        Event::Approval(interceptor_core::record::ApprovalRecord {
            approval: ApprovalId(id),
            number: 1,
            digest: interceptor_core::operation::Digest([0; 32]),
            step,
        })
    };
    let until = Timestamp(9);
    let mut unfinished = Unfinished::default();
    for event in [
        approval(1, ApprovalStep::Requested { until }),
        approval(2, ApprovalStep::Requested { until }),
        approval(1, ApprovalStep::Approved),
    ] {
        unfinished.observe(&Record {
            seq: 1,
            time: Timestamp(1),
            session: Some(SessionId(7)),
            agent: "a".into(),
            event,
        });
    }
    let left: Vec<_> = unfinished.withdrawals().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].0, Some(SessionId(7)));
    assert!(matches!(&left[0].2, Event::Approval(record)
        if record.approval == ApprovalId(2) && matches!(record.step, ApprovalStep::Withdrawn { .. })));
}

/// A thing that can happen; `usize` picks one of the requests made so far.
#[derive(Debug, Clone)]
enum Happening {
    Ask {
        quorum: u32,
        within_s: u64,
    },
    Vote {
        request: usize,
        voter: usize,
        approve: bool,
    },
    HangUp {
        request: usize,
    },
    Wait {
        ms: u64,
    },
    Disk {
        broken: bool,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0..4_u32, 0..6_u64).prop_map(|(quorum, within_s)| Happening::Ask { quorum, within_s }),
        8 => (any::<usize>(), 0..4_usize, prop::bool::weighted(0.9))
            .prop_map(|(request, voter, approve)| Happening::Vote { request, voter, approve }),
        1 => any::<usize>().prop_map(|request| Happening::HangUp { request }),
        4 => (0..1_500_u64).prop_map(|ms| Happening::Wait { ms }),
        1 => prop::bool::weighted(0.3).prop_map(|broken| Happening::Disk { broken }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing approved without its quorum of distinct people, nothing twice, nothing after its
    /// time, nothing that isn't on record, and nothing left waiting.
    #[test]
    fn the_promises_hold_in_any_order(
        happenings in prop::collection::vec(happening(), 1..60),
        disk_ms in 0..700_u64,
    ) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(hold_in(happenings, Duration::from_millis(disk_ms)))?;
    }
}

type Outcomes = Arc<Mutex<Vec<(ApprovalId, Outcome, Duration)>>>;

async fn hold_in(happenings: Vec<Happening>, disk: Duration) -> Result<(), TestCaseError> {
    let bench = Arc::new(Bench::new(Reviewers::default(), disk));
    let outcomes = Outcomes::default();
    let mut requests = Vec::new();
    for happening in happenings {
        match happening {
            Happening::Ask { quorum, within_s } => {
                let mut pending = bench.ask(quorum, within_s);
                let (id, until) = (pending.id(), pending.until());
                let (outcomes, start) = (outcomes.clone(), bench.start);
                let task = tokio::spawn(async move {
                    let outcome = pending.outcome().await;
                    outcomes
                        .lock()
                        .unwrap()
                        .push((id, outcome, start.elapsed()));
                });
                requests.push((id, quorum.max(1) as usize, until, task));
            }
            Happening::Vote {
                request,
                voter: who,
                approve,
            } if !requests.is_empty() => {
                let id = requests[request % requests.len()].0;
                let bench = bench.clone();
                tokio::spawn(async move {
                    _ = bench
                        .vote(id, ["alice", "bob", "carol", "dave"][who], approve)
                        .await;
                });
            }
            Happening::HangUp { request } if !requests.is_empty() => {
                requests[request % requests.len()].3.abort();
            }
            Happening::Wait { ms } => sleep(Duration::from_millis(ms)).await,
            Happening::Disk { broken } => *bench.broken.lock().unwrap() = broken,
            Happening::Vote { .. } | Happening::HangUp { .. } => {}
        }
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_secs(60)).await;
    prop_assert_eq!(bench.approvals.pending(), 0, "something still waits");

    let log = bench.log.lock().unwrap();
    for (id, quorum, until, _) in &requests {
        let until = Duration::from_nanos(until.0);
        let steps: Vec<_> = log.iter().filter(|(_, of, _)| of == id).collect();
        let approved: Vec<_> = steps
            .iter()
            .filter(|(_, _, step)| *step == ApprovalStep::Approved)
            .collect();
        let refused = steps
            .iter()
            .filter(|(_, _, step)| matches!(step, ApprovalStep::Refused { .. }))
            .count();
        prop_assert!(approved.len() + refused <= 1, "two outcomes: {:?}", steps);
        if let Some((at, _, _)) = approved.first() {
            prop_assert!(*at < until, "approved after its time: {:?}", steps);
            let people: BTreeSet<_> = steps
                .iter()
                .filter_map(|(_, _, step)| match step {
                    ApprovalStep::Voted {
                        by, approve: true, ..
                    } => Some(by),
                    _ => None,
                })
                .collect();
            prop_assert!(
                people.len() >= *quorum,
                "approved without quorum: {:?}",
                steps
            );
        }
        let answers: Vec<_> = outcomes
            .lock()
            .unwrap()
            .iter()
            .filter(|(of, _, _)| of == id)
            .cloned()
            .collect();
        prop_assert!(answers.len() <= 1);
        if let Some((_, Outcome::Approved, at)) = answers.first() {
            let recorded = approved.first().map(|(at, _, _)| *at + disk);
            prop_assert!(
                recorded.is_some_and(|recorded| recorded <= *at),
                "released before it was on record: {:?}",
                steps
            );
        }
        if answers.is_empty() {
            let withdrawn = steps
                .iter()
                .any(|(_, _, step)| matches!(step, ApprovalStep::Withdrawn { .. }));
            let unused = refused == 1;
            prop_assert!(withdrawn || unused, "ended without a record: {:?}", steps);
        }
    }
    Ok(())
}
