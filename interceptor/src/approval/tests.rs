//! The queue against its promises: by example, then with everything in random order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use interceptor_core::{
    operation::{Description, Digest, Effects, Operation, Parameter, ParameterFormat, Protocol},
    origin::{Agent, Destination, Origin, Process, Surroundings},
    record::{ApprovalId, ApprovalStep, Choice, Event, SessionId, Timestamp, Window},
    ruling::{
        Cause, Decision, Escalation, HoldTerms, Otherwise, PolicyHash, Verdict, WindowLimits,
        WindowScope,
    },
};
use tokio::time::{Instant, sleep};

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
        self.approvals
            .vote(id, voter(name), yes_or_no(approve, ""))
            .await
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
        uid: None,
        name: name.into(),
        groups: [].into(),
    }
}

fn yes_or_no(approve: bool, reason: &str) -> Say {
    Say {
        signed: None,
        choice: if approve {
            Choice::Approve
        } else {
            Choice::Deny
        },
        reason: reason.into(),
        window: None,
    }
}

/// A request of `agent`'s to drop a table.
pub(crate) fn request(agent: &str, quorum: u32, within_s: u64, groups: &[&str]) -> Request {
    let terms = HoldTerms {
        groups: groups.iter().map(|group| (*group).into()).collect(),
        quorum,
        within: Duration::from_secs(within_s),
        wait: Duration::from_secs(within_s),
        // Nothing comes again, but where a test is about that.
        retry: Duration::ZERO,
        ..HoldTerms::default()
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
        surroundings: Surroundings::default(),
        session: SessionId(1),
        number: 1,
        digest: operation.digest(&origin),
        context: Digest([1; 32]),
        shape: Some(Digest([2; 32])),
        origin,
        operation,
        decision: Arc::new(Decision {
            verdict: Verdict::Hold(terms.clone()),
            enforced: true,
            rule: "held".into(),
            reason: "ask first".into(),
            masked_by: [].into(),
            observed: [].into(),
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
                ApprovalStep::Voted {
                    choice: Choice::Approve,
                    ..
                },
                ApprovalStep::Approved { window: None }
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
        .vote(
            pending.id(),
            voter("bob"),
            yes_or_no(false, "not on a Friday"),
        )
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
    let reviewers = Reviewers::new(
        BTreeMap::from([("dba".into(), BTreeSet::from(["alice".into()]))]),
        Vec::new(),
    );
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
        [
            ApprovalStep::Approved { .. },
            ApprovalStep::Withdrawn { .. }
        ]
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

/// As [`request`], held by a rule that says `terms`.
fn held(terms: HoldTerms) -> Request {
    let mut request = request("agent", 1, 60, &[]);
    request.decision = Arc::new(Decision {
        verdict: Verdict::Hold(terms.clone()),
        ..Decision::clone(&request.decision)
    });
    request.terms = terms;
    request
}

/// Terms under which what is approved may come again for a minute.
fn returning() -> HoldTerms {
    HoldTerms {
        within: Duration::from_secs(900),
        wait: Duration::from_secs(900),
        retry: Duration::from_secs(60),
        ..HoldTerms::default()
    }
}

impl Bench {
    fn ask_for(&self, request: Request) -> Pending {
        self.approvals.request(self.id(), request, now(self.start))
    }

    async fn approve_with(&self, id: ApprovalId, scope: WindowScope) -> Result<Summary, VoteError> {
        let say = Say {
            window: Some(Window {
                scope,
                seconds: 60,
                at_most: 2,
            }),
            ..yes_or_no(true, "")
        };
        self.approvals.vote(id, voter("alice"), say).await
    }

    /// Whether `request` passes without anybody being asked.
    async fn passes(&self, request: Request) -> bool {
        let mut pending = self.ask_for(request);
        tokio::select! {
            biased;
            outcome = pending.outcome() => outcome == Outcome::Approved,
            () = sleep(Duration::from_millis(100)) => {
                pending.withdraw(Withdrawal::Cancelled);
                false
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_its_client_gave_up_on_may_come_again_and_passes_once() {
    let bench = Bench::plain();
    let first = bench.ask_for(held(returning()));
    let id = first.id();
    drop(first);
    assert!(!bench.approvals.list(false)[0].waits);
    bench.vote(id, "alice", true).await.unwrap();
    assert_eq!(bench.approvals.grants().len(), 1);

    let mut again = bench.ask_for(held(returning()));
    assert_eq!(again.id(), id, "it is the same question");
    assert_eq!(again.outcome().await, Outcome::Approved);
    drop(again);
    assert!(!bench.passes(held(returning())).await, "once");
    // In its time only.
    let late = bench.ask_for(held(returning()));
    let id = late.id();
    drop(late);
    bench.vote(id, "alice", true).await.unwrap();
    sleep(Duration::from_secs(61)).await;
    assert!(!bench.passes(held(returning())).await);
}

#[tokio::test(start_paused = true)]
async fn who_comes_again_before_the_answer_waits_for_the_same() {
    let bench = Bench::plain();
    let first = bench.ask_for(held(returning()));
    let id = first.id();
    drop(first);
    let mut again = bench.ask_for(held(returning()));
    assert_eq!(again.id(), id);
    // Another one at the same time is another question.
    let other = bench.ask_for(held(returning()));
    assert_ne!(other.id(), id);
    bench.vote(id, "alice", true).await.unwrap();
    assert_eq!(again.outcome().await, Outcome::Approved);
    assert_eq!(bench.approvals.pending(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_differs_in_anything_does_not_come_again() {
    let bench = Bench::plain();
    let first = bench.ask_for(held(returning()));
    let id = first.id();
    drop(first);
    bench.vote(id, "alice", true).await.unwrap();
    let mut others = vec![held(HoldTerms {
        quorum: 2,
        ..returning()
    })];
    for change in [
        |request: &mut Request| request.context = Digest([7; 32]),
        |request: &mut Request| request.digest = Digest([7; 32]),
        |request: &mut Request| {
            let decision = Decision::clone(&request.decision);
            request.decision = Arc::new(Decision {
                rule: "another".into(),
                ..decision
            });
        },
        |request: &mut Request| {
            let mut origin = Origin::clone(&request.origin);
            origin.agent = Arc::new(Agent {
                name: "another".into(),
                labels: BTreeMap::new(),
            });
            request.origin = Arc::new(origin);
        },
    ] {
        let mut other = held(returning());
        change(&mut other);
        others.push(other);
    }
    for other in others {
        assert!(!bench.passes(other.clone()).await, "{other:?}");
    }
    assert!(bench.passes(held(returning())).await);
}

#[tokio::test(start_paused = true)]
async fn an_approval_that_came_too_late_stands() {
    let bench = Bench::plain();
    let mut pending = bench.ask_for(held(returning()));
    let id = pending.id();
    bench.vote(id, "alice", true).await.unwrap();
    assert_eq!(pending.outcome().await, Outcome::Approved);
    // The session was gone when it was handed over.
    bench
        .approvals
        .unused(id, pending.request(), Withdrawal::HungUp);
    assert!(bench.passes(held(returning())).await);
    assert!(!bench.passes(held(returning())).await);
    // Not where it was taken back, nor where it was used.
    for used in [true, false] {
        let mut pending = bench.ask_for(held(returning()));
        let id = pending.id();
        bench.vote(id, "alice", true).await.unwrap();
        assert_eq!(pending.outcome().await, Outcome::Approved);
        if used {
            bench.approvals.used(id);
        }
        let why = [Withdrawal::Cancelled, Withdrawal::HungUp][usize::from(used)];
        bench.approvals.unused(id, pending.request(), why);
        assert!(!bench.passes(held(returning())).await);
    }
}

#[tokio::test(start_paused = true)]
async fn who_need_not_wait_is_told_to_come_back() {
    let bench = Bench::plain();
    let terms = HoldTerms {
        wait: Duration::from_secs(30),
        ..returning()
    };
    let mut pending = bench.ask_for(held(terms.clone()));
    let id = pending.id();
    assert_eq!(
        refusal(pending.outcome().await),
        (
            Cause::Waiting,
            "people have until 1970-01-01T00:15:00Z".to_owned()
        )
    );
    assert_eq!(bench.start.elapsed().as_secs(), 30);
    drop(pending);
    bench.vote(id, "alice", true).await.unwrap();
    assert!(bench.passes(held(terms)).await);
}

#[tokio::test(start_paused = true)]
async fn windows_let_through_what_they_are_for_and_no_more() {
    let another_value = |terms: HoldTerms| Request {
        digest: Digest([9; 32]),
        ..held(terms)
    };
    let another_shape = |terms: HoldTerms| Request {
        digest: Digest([9; 32]),
        shape: Some(Digest([9; 32])),
        ..held(terms)
    };
    for (scope, covers) in [
        (WindowScope::Operation, [true, false, false]),
        (WindowScope::Shape, [true, true, false]),
        (WindowScope::Rule, [true, true, true]),
    ] {
        let bench = Bench::plain();
        let terms = HoldTerms {
            windows: Some(WindowLimits {
                scope,
                span: Duration::from_secs(60),
                at_most: 2,
            }),
            retry: Duration::ZERO,
            ..returning()
        };
        let others = [
            held(terms.clone()),
            another_value(terms.clone()),
            another_shape(terms.clone()),
        ];
        for (other, covered) in others.into_iter().zip(covers) {
            let mut pending = bench.ask_for(held(terms.clone()));
            let id = pending.id();
            bench.approve_with(id, scope).await.unwrap();
            assert_eq!(pending.outcome().await, Outcome::Approved);
            assert_eq!(bench.passes(other.clone()).await, covered, "{scope:?}");
            // A window that is revoked lets nothing through.
            bench
                .approvals
                .revoke(id, &voter("alice"), "")
                .await
                .unwrap();
            assert!(!bench.passes(other).await);
        }
        let mut pending = bench.ask_for(held(terms.clone()));
        bench.approve_with(pending.id(), scope).await.unwrap();
        assert_eq!(pending.outcome().await, Outcome::Approved);
        for more in [true, true, false] {
            assert_eq!(bench.passes(held(terms.clone())).await, more, "twice");
        }
        let mut pending = bench.ask_for(held(terms.clone()));
        bench.approve_with(pending.id(), scope).await.unwrap();
        assert_eq!(pending.outcome().await, Outcome::Approved);
        sleep(Duration::from_secs(61)).await;
        assert!(!bench.passes(held(terms)).await, "in its time");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_agrees_to_more_than_the_rule_allows_and_all_agree_to_the_least() {
    let bench = Bench::plain();
    let pending = bench.ask_for(held(returning()));
    let error = bench
        .approve_with(pending.id(), WindowScope::Operation)
        .await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("its rule has no `windows`")
    );
    drop(pending);
    let terms = HoldTerms {
        quorum: 2,
        windows: Some(WindowLimits {
            scope: WindowScope::Shape,
            span: Duration::from_secs(90),
            at_most: 2,
        }),
        ..returning()
    };
    let mut pending = bench.ask_for(held(terms.clone()));
    let id = pending.id();
    let error = bench.approve_with(id, WindowScope::Rule).await.unwrap_err();
    let expected = format!(
        "{id} can't be approved for that much: its rule allows at most scope `shape`, for 90s, 2 times"
    );
    assert_eq!(error.to_string(), expected);
    bench.approve_with(id, WindowScope::Shape).await.unwrap();
    bench.vote(id, "bob", true).await.unwrap();
    assert_eq!(pending.outcome().await, Outcome::Approved);
    assert_eq!(bench.approvals.grants(), [], "bob agreed to one");
}

#[tokio::test(start_paused = true)]
async fn a_yes_can_be_taken_back_until_it_counts() {
    let bench = Bench::plain();
    let mut pending = bench.ask(2, 60);
    let id = pending.id();
    let retract = || Say {
        choice: Choice::Retract,
        ..yes_or_no(true, "")
    };
    let error = bench.approvals.vote(id, voter("alice"), retract()).await;
    assert!(matches!(error, Err(VoteError::NotAgreed { .. })));
    bench.vote(id, "alice", true).await.unwrap();
    let summary = bench.approvals.vote(id, voter("alice"), retract()).await;
    assert_eq!(summary.unwrap().votes, []);
    bench.vote(id, "bob", true).await.unwrap();
    assert_eq!(bench.approvals.pending(), 1);
    // The one may be on its way to the disk while the other is said.
    let (retracted, carol) = tokio::join!(
        bench.approvals.vote(id, voter("bob"), retract()),
        bench.vote(id, "carol", true)
    );
    assert_eq!(
        (retracted.is_ok(), carol.unwrap().state),
        (true, State::Pending)
    );
    bench.vote(id, "bob", true).await.unwrap();
    assert_eq!(pending.outcome().await, Outcome::Approved);
}

#[tokio::test(start_paused = true)]
async fn a_no_that_is_said_first_wins() {
    let bench = Bench::plain();
    let mut pending = bench.ask(1, 60);
    let id = pending.id();
    let (no, yes) = tokio::join!(bench.vote(id, "bob", false), bench.vote(id, "alice", true));
    assert!(no.is_ok() && yes.is_err());
    assert_eq!(refusal(pending.outcome().await).0, Cause::Rejected);
}

#[tokio::test(start_paused = true)]
async fn nobody_approves_for_their_own_agent_or_without_a_reason_that_is_required() {
    let bench = Bench::new(
        Reviewers::new(BTreeMap::new(), vec!["ops".into()]),
        Duration::ZERO,
    );
    let mut request = held(HoldTerms {
        reason: true,
        ..returning()
    });
    let mut origin = Origin::clone(&request.origin);
    origin.agent = Arc::new(Agent {
        name: "agent".into(),
        labels: BTreeMap::from([("owner".into(), "alice".into())]),
    });
    request.origin = Arc::new(origin);
    let mut pending = bench.ask_for(request);
    let id = pending.id();
    let vote = |name: &str, reason: &str| {
        let say = yes_or_no(true, reason);
        bench.approvals.vote(id, voter(name), say)
    };
    assert_eq!(
        vote("alice", "fine").await.unwrap_err().to_string(),
        "`alice` owns agent `agent` (label `owner`): nobody approves what their own agent asks for"
    );
    let own = Voter {
        groups: ["ops".into()].into(),
        ..voter("alice")
    };
    let error = bench.approvals.override_alone(id, own, "it burns").await;
    assert!(matches!(error, Err(VoteError::OwnAgent { .. })));
    assert!(matches!(
        vote("bob", " ").await,
        Err(VoteError::ReasonMissing { .. })
    ));
    vote("bob", "looked at it").await.unwrap();
    assert_eq!(pending.outcome().await, Outcome::Approved);
}

#[tokio::test(start_paused = true)]
async fn what_people_are_told_to_count_is_what_counts() {
    use Choice::{Approve, Deny, Retract};
    // `alice` owns the agent, `bob` has agreed, and nobody asks `dave`, who may override.
    for (name, may, r#override) in [
        ("alice", &[Deny][..], false),
        ("bob", &[Deny, Retract], false),
        ("carol", &[Approve, Deny], false),
        ("dave", &[], true),
    ] {
        for choice in [Approve, Deny, Retract] {
            let dba = ["alice", "bob", "carol"].map(Into::into);
            let reviewers = Reviewers::new(
                BTreeMap::from([
                    ("dba".into(), BTreeSet::from(dba)),
                    (
                        "oncall".into(),
                        BTreeSet::from(["alice".into(), "dave".into()]),
                    ),
                ]),
                vec!["oncall".into()],
            );
            let bench = Bench::new(reviewers, Duration::ZERO);
            let mut request = request("agent", 2, 60, &["dba"]);
            let mut origin = Origin::clone(&request.origin);
            origin.agent = Arc::new(Agent {
                name: "agent".into(),
                labels: BTreeMap::from([("owner".into(), "alice".into())]),
            });
            request.origin = Arc::new(origin);
            let pending = bench.ask_for(request);
            let id = pending.id();
            bench.vote(id, "bob", true).await.unwrap();
            let mut summaries = bench.approvals.list(false);
            bench
                .approvals
                .tell_what_counts(&voter(name), &mut summaries);
            let yours = summaries[0].yours.clone().unwrap();
            assert_eq!((&*yours.may, yours.r#override), (may, r#override), "{name}");
            let say = Say {
                choice,
                ..yes_or_no(true, "")
            };
            let voted = bench.approvals.vote(id, voter(name), say).await;
            assert_eq!(voted.is_ok(), may.contains(&choice), "{name} {choice:?}");
            if choice == Approve {
                let why = voted.map_or_else(|error| error.to_string(), |_| String::new());
                assert_eq!(*yours.why, *why);
            }
            // What is over is nobody's to answer.
            bench.approvals.stop();
            bench
                .approvals
                .tell_what_counts(&voter(name), &mut summaries);
            assert_eq!(summaries[0].yours, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn break_glass_is_for_those_who_are_named_with_a_reason() {
    let bench = Bench::new(
        Reviewers::new(BTreeMap::new(), vec!["oncall".into()]),
        Duration::ZERO,
    );
    let mut watch = bench.approvals.watch();
    let mut pending = bench.ask(3, 60);
    let id = pending.id();
    let oncall = Voter {
        groups: ["oncall".into()].into(),
        ..voter("erin")
    };
    let try_it = |who: Voter, why| bench.approvals.override_alone(id, who, why);
    assert_eq!(
        try_it(voter("root"), "x").await.unwrap_err().to_string(),
        "`root` may not override: only members of `approvals: {break_glass: […]}` in the configuration may: oncall"
    );
    let error = try_it(oncall.clone(), "").await;
    assert!(matches!(error, Err(VoteError::ReasonMissing { .. })));
    let summary = try_it(oncall, "the site is down").await.unwrap();
    let state = State::Overridden {
        by: "erin".into(),
        reason: "the site is down".into(),
    };
    assert_eq!(summary.state, state);
    assert_eq!(pending.outcome().await, Outcome::Approved);
    assert!(
        matches!(bench.steps().last(), Some(ApprovalStep::Overridden { by, .. }) if &**by == "erin")
    );
    watch.recv().await.unwrap();
    assert!(matches!(&*watch.recv().await.unwrap(), Change::Ended(told) if told.state == state));
}

#[tokio::test(start_paused = true)]
async fn others_are_asked_when_it_has_waited() {
    let bench = Bench::plain();
    let mut pending = bench.ask_for(held(HoldTerms {
        groups: ["dba".into()].into(),
        escalate: [Escalation {
            after: Duration::from_secs(300),
            groups: ["leads".into()].into(),
        }]
        .into(),
        ..returning()
    }));
    let id = pending.id();
    let lead = || Voter {
        groups: ["leads".into()].into(),
        ..voter("lea")
    };
    let vote = || bench.approvals.vote(id, lead(), yes_or_no(true, ""));
    assert_eq!(
        vote().await.unwrap_err().to_string(),
        format!("`lea` may not vote on approval {id}: only members of dba may")
    );
    sleep(Duration::from_secs(301)).await;
    assert_eq!(
        *bench.approvals.list(false)[0].groups,
        ["dba".into(), "leads".into()]
    );
    vote().await.unwrap();
    assert_eq!(pending.outcome().await, Outcome::Approved);
}

#[tokio::test(start_paused = true)]
async fn silence_lets_through_where_the_rule_says_so_and_its_client_waits() {
    let terms = HoldTerms {
        otherwise: Otherwise::Allow,
        ..returning()
    };
    let bench = Bench::plain();
    let mut pending = bench.ask_for(held(terms.clone()));
    assert_eq!(pending.outcome().await, Outcome::Approved);
    assert_eq!(bench.start.elapsed().as_secs(), 900);
    assert_eq!(bench.steps().last(), Some(&ApprovalStep::Unopposed));
    // A no is a no, and nobody who isn't there gets a yes by silence.
    let mut refused = bench.ask_for(held(terms.clone()));
    bench.vote(refused.id(), "alice", false).await.unwrap();
    assert_eq!(refusal(refused.outcome().await).0, Cause::Rejected);
    drop(bench.ask_for(held(terms.clone())));
    sleep(Duration::from_secs(901)).await;
    assert!(!bench.passes(held(terms)).await);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_gives_nothing_more_time() {
    let bench = Bench::plain();
    let pending = bench.ask_for(held(returning()));
    let id = pending.id();
    drop(pending);
    bench.vote(id, "alice", true).await.unwrap();
    sleep(Duration::from_secs(61)).await;
    let request = held(returning());
    // An hour ago, says the clock.
    let mut pending = bench.approvals.request(bench.id(), request, Timestamp(0));
    assert_ne!(pending.id(), id);
    assert_eq!(refusal(pending.outcome().await).0, Cause::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_gives_way() {
    let bench = Bench::plain();
    let places = interceptor_core::limits::APPROVALS_PENDING_AGENT_MAX;
    let number = |number: usize| Request {
        digest: Digest([u8::try_from(number % 251).unwrap(); 32]),
        context: Digest([u8::try_from(number / 251).unwrap(); 32]),
        ..held(returning())
    };
    let oldest = bench.ask_for(number(0));
    let id = oldest.id();
    drop(oldest);
    sleep(Duration::from_secs(1)).await;
    let waiting: Vec<_> = (1..places).map(|at| bench.ask_for(number(at))).collect();
    assert!(!bench.approvals.list(false).last().unwrap().waits);
    let mut more = bench.ask_for(number(places));
    assert_eq!(bench.approvals.pending(), places);
    assert!(bench.vote(id, "alice", true).await.is_err(), "it gave way");
    bench.vote(more.id(), "alice", true).await.unwrap();
    assert_eq!(more.outcome().await, Outcome::Approved);
    drop(waiting);
}
