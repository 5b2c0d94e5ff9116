//! Who hears what, and that nobody waits for anybody else.

use interceptor_core::ruling::WindowScope;

use super::*;
use crate::approval::{Change, Standing};

fn hook(name: &str, address: SocketAddr, filter: &str) -> String {
    format!(
        "- {{name: {name}, {filter} webhook: {{url: 'http://{address}/{name}', template: {{event: '{{{{event}}}}', approval: '{{{{approval}}}}'}}}}}}\n"
    )
}

/// What a notifier with `filter` hears of `notices`.
async fn heard(filter: &str, notices: Vec<Notice>) -> Vec<(u64, Event)> {
    let server = Server::answering(&[200]).await;
    let mut bench = Bench::new(&hook("hook", server.address, filter), means(&[]));
    for notice in notices {
        bench.tell(notice).await;
    }
    // Told to all, so that it is known when all is told.
    bench.tell(overridden(99)).await;
    let mut heard = Vec::new();
    let mut is_over = false;
    while !is_over || bench.notifiers.status()[0].queued > 0 || !bench.deliveries.is_empty() {
        let report = bench.report().await;
        is_over |= report.approval.0 == 99;
        heard.push((report.approval.0, report.event));
    }
    heard.retain(|(approval, _)| *approval != 99);
    heard.sort_unstable();
    heard
}

fn revoked(id: u64) -> Notice {
    let standing = Standing {
        id: ApprovalId(id),
        agent: "deployer".into(),
        scope: WindowScope::Shape,
        action: "DROP TABLE".to_owned(),
        destination: "192.0.2.1:5432".to_owned(),
        rule: "schema-changes".into(),
        left: 3,
        until: NOW,
        by: vec!["alice".into()],
    };
    Notice::of(&Change::Revoked(Box::new(standing)), None, NOW).unwrap()
}

#[tokio::test]
async fn filters_say_who_hears_what() {
    let all = || {
        vec![
            requested(1),
            of(Event::Escalated, summary(1), None),
            approved(1),
            revoked(1),
        ]
    };
    use Event::{Ended, Escalated, Requested, Revoked};
    let everything = vec![(1, Requested), (1, Escalated), (1, Ended), (1, Revoked)];
    for (filter, expected) in [
        ("", everything.clone()),
        ("on: [requested],", vec![(1, Requested)]),
        ("on: [ended, revoked],", vec![(1, Ended), (1, Revoked)]),
        ("on: [overridden],", vec![]),
        ("groups: [dba, leads],", everything.clone()),
        ("groups: [leads],", vec![]),
        ("rules: ['schema-*'],", everything.clone()),
        ("rules: ['x*', 'y'],", vec![]),
        ("agents: ['deploy*'],", everything.clone()),
        ("agents: ['deploy'],", vec![]),
        (
            "agents: ['*'], rules: ['*'], groups: [dba], on: [requested],",
            vec![(1, Requested)],
        ),
    ] {
        assert_eq!(heard(filter, all()).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn a_group_that_is_asked_later_hears_from_then_on() {
    let mut escalated = summary(1);
    escalated.groups.push("leads".into());
    let ended = Summary {
        state: State::Approved,
        ..escalated.clone()
    };
    let notices = vec![
        requested(1),
        of(Event::Escalated, escalated, None),
        of(Event::Ended, ended, None),
        revoked(1),
    ];
    use Event::{Ended, Escalated, Revoked};
    let expected = [(1, Escalated), (1, Ended), (1, Revoked)];
    assert_eq!(heard("groups: [leads],", notices).await, expected);
}

#[tokio::test]
async fn an_emergency_is_told_to_everybody_whatever_they_want_to_hear() {
    let mut server = Server::answering(&[200]).await;
    let address = server.address;
    let teams = format!("http://{address}/teams");
    let yaml = [
        hook("a", address, "on: [ended],"),
        hook("b", address, "groups: [nobody], rules: [none], agents: [none],"),
        "- {name: teams, on: [requested], agents: [none], teams: {url: {env: T}}}\n".to_owned(),
        format!(
            "- {{name: slack, on: [revoked], slack: {{api: 'http://{address}/slack', channel: C01, bot_token: {{env: B}}}}}}\n"
        ),
    ]
    .concat();
    let mut bench = Bench::new(&yaml, means(&[("T", &teams), ("B", "xoxb")]));
    bench.tell(requested(1)).await;
    bench.tell(overridden(1)).await;
    let mut paths = Vec::new();
    for _ in 0..4 {
        paths.push(server.got().await.path);
    }
    paths.sort();
    assert_eq!(paths, ["/a", "/b", "/slack/chat.postMessage", "/teams"]);
    for _ in 0..4 {
        assert_eq!(bench.report().await.event, Event::Overridden);
    }
}

#[tokio::test]
async fn a_server_that_hangs_delays_nobody_and_loses_nothing() {
    // Takes connections and never says a word.
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hanging.local_addr().unwrap();
    let (sender, mut released) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            tokio::select! {
                stream = hanging.accept() => kept.push(stream.unwrap()),
                _ = released.changed() => break,
            }
        }
        drop(kept);
        let (app, _requests) = app(Arc::new(|_| (StatusCode::OK, String::new())));
        axum::serve(hanging, app).await.unwrap();
    });
    let mut server = Server::answering(&[200]).await;
    let yaml = [
        hook("hangs", address, ""),
        hook("works", server.address, ""),
    ]
    .concat();
    let mut means = means(&[]);
    means.timing.attempt = Duration::from_secs(1);
    let mut bench = Bench::new(&yaml, means);
    let start = std::time::Instant::now();
    for id in 1..=50 {
        bench.tell(requested(id)).await;
    }
    for id in 1..=50 {
        assert_eq!(
            server.got().await.json()["approval"],
            ApprovalId(id).to_string()
        );
    }
    assert!(
        start.elapsed() < Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
    let mut told = std::collections::BTreeSet::new();
    let mut released = false;
    while told.len() < 50 {
        let report = bench.report().await;
        if &*report.notifier == "works" {
            assert!(matches!(report.outcome, Outcome::Delivered { .. }));
            continue;
        }
        match report.outcome {
            Outcome::Failed { why, .. } if !released => {
                assert_eq!(&*why, "no answer within 1 s");
                let status = &bench.notifiers.status()[0];
                assert_eq!((status.state, status.queued), (NotifierState::Failing, 50));
                sender.send(true).unwrap();
                released = true;
            }
            Outcome::Failed { .. } => {}
            Outcome::Delivered { .. } => {
                told.insert(report.approval);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn changes_become_notices_or_not() {
    let change = |state: State| {
        let summary = Box::new(Summary {
            state,
            ..summary(1)
        });
        Notice::of(&Change::Ended(summary), None, NOW)
            .unwrap()
            .event
    };
    assert_eq!(change(State::Approved), Event::Ended);
    let state = State::Overridden {
        by: "bob".into(),
        reason: "x".into(),
    };
    assert_eq!(change(state), Event::Overridden);
    assert!(Notice::of(&Change::Voted(Box::new(summary(1))), None, NOW).is_none());
    assert!(Notice::of(&Change::Missed { changes: 1 }, None, NOW).is_none());
    // They cross from one process to another.
    for notice in [requested(1), approved(1), overridden(1), revoked(1)] {
        let text = serde_json::to_string(&notice).unwrap();
        assert_eq!(serde_json::from_str::<Notice>(&text).unwrap(), notice);
    }
}

#[tokio::test]
async fn what_ends_with_its_owner_makes_no_more_requests() {
    let mut server = Server::answering(&[503]).await;
    let bench = Bench::new(&hook("hook", server.address, ""), means(&[]));
    bench.tell(requested(1)).await;
    server.got().await;
    drop(bench);
    tokio::time::sleep(Duration::from_millis(50)).await;
    while !server.got_nothing() {}
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(server.got_nothing());
}
