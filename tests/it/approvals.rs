//! A held operation waits for people: approved once, denied, timed out, withdrawn.

use std::time::{Duration, Instant};

use interceptor_tests::{
    clients::Way,
    cluster::Database,
    daemon::Daemon,
    run::{self, Outcome, Running},
};
use serde_json::Value;

use crate::support::cluster;

const HOLD_WRITES: &str = "
default: {action: allow}
rules:
  - id: writes-wait
    match: {protocol: postgres, class: [write, schema]}
    action: hold
    reason: \"a person looks first\"
    reviewers: {quorum: 1, within: 1m}
";

fn id(approval: &Value) -> String {
    approval["id"].as_str().expect("an id").to_owned()
}

fn psql(daemon: &Daemon, database: &Database<'_>, sql: &str) -> Running {
    run::start(&mut Way::Guarded(daemon, "held").psql(database, &[&format!("--command={sql}")]))
        .unwrap()
}

fn count(database: &Database<'_>, table: &str) -> String {
    database
        .sql(&format!("SELECT count(*) FROM {table}"))
        .unwrap()
}

fn pending(daemon: &Daemon) -> usize {
    let list = daemon.ask_json(&["approvals", "list"]).unwrap();
    list.as_array().expect("a list").len()
}

#[test]
fn what_is_approved_runs_once() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let sql = "DELETE FROM shop.orders WHERE id = (SELECT min(id) FROM shop.orders)";

    let mut agent = psql(&daemon, &database, sql);
    let first = id(&daemon.held().unwrap());
    assert!(agent.is_running().unwrap());
    assert_eq!(count(&database, "shop.orders"), "3", "it waits");
    daemon.ask(&["approvals", "approve", &first]).unwrap();
    agent.outcome().unwrap().success().unwrap();
    assert_eq!(count(&database, "shop.orders"), "2");

    let agent = psql(&daemon, &database, sql);
    let second = id(&daemon.held().unwrap());
    assert_ne!(first, second, "the same statement again is another request");
    assert!(
        daemon.ask(&["approvals", "approve", &first]).is_err(),
        "an approval is used once"
    );
    daemon
        .ask(&["approvals", "deny", &second, "--reason", "enough"])
        .unwrap();
    let outcome = agent.outcome().unwrap();
    assert!(!outcome.status.success());
    assert!(outcome.stderr.contains(&second), "{outcome}");
    assert!(outcome.stderr.contains("enough"), "{outcome}");
    assert_eq!(count(&database, "shop.orders"), "2");

    let journal = daemon.journal().unwrap();
    for approval in [&first, &second] {
        assert!(journal.mentioning("approval", approval).count() >= 3);
    }
}

#[test]
fn a_cancel_request_takes_the_question_back_and_the_session_goes_on() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let agent = run::start(
        &mut Way::Guarded(&daemon, "impatient")
            .script(&database, "cancelled.py", &[])
            .unwrap(),
    )
    .unwrap();
    let asked = id(&daemon.held().unwrap());
    assert_eq!(
        agent.outcome().unwrap().success().unwrap(),
        "57014 interceptor: cancelled while it waited for approval by rule \"writes-wait\"\n\
         goes on\n"
    );
    assert!(daemon.ask(&["approvals", "approve", &asked]).is_err());
    assert_eq!(count(&database, "shop.orders"), "3");
    let journal = daemon.journal().unwrap();
    assert!(
        journal
            .mentioning("approval", &asked)
            .any(|line| line.mentions("the agent cancelled it"))
    );
}

#[test]
fn the_reviewer_sees_the_statement_its_values_and_who_asks() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let agent = run::start(
        &mut Way::Guarded(&daemon, "asker")
            .script(&database, "values.py", &["2"])
            .unwrap(),
    )
    .unwrap();
    let approval = id(&daemon.held().unwrap());
    let shown = daemon.ask(&["approvals", "show", &approval]).unwrap();
    for fact in [
        "DELETE FROM shop.orders WHERE id = $1",
        "asker",
        &format!("127.0.0.1:{}", database.port()),
        "writes-wait",
        "a person looks first",
        "sha256:",
    ] {
        assert!(shown.contains(fact), "no `{fact}` in:\n{shown}");
    }
    daemon.ask(&["approvals", "approve", &approval]).unwrap();
    assert_eq!(agent.outcome().unwrap().success().unwrap(), "2 DELETE 1\n");
}

#[test]
fn other_values_are_another_operation() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let agent = run::start(
        &mut Way::Guarded(&daemon, "asker")
            .script(&database, "values.py", &["1", "2", "1"])
            .unwrap(),
    )
    .unwrap();
    let mut digests = Vec::new();
    for verb in ["approve", "deny", "deny"] {
        let approval = daemon.held().unwrap();
        digests.push(approval["digest"].as_str().expect("a digest").to_owned());
        daemon.ask(&["approvals", verb, &id(&approval)]).unwrap();
    }
    let said = agent.outcome().unwrap().success().unwrap();
    assert!(said.starts_with("1 DELETE 1\n2 42501"), "{said}");
    assert_ne!(digests[0], digests[1], "other values");
    assert_eq!(digests[0], digests[2], "the same operation");
    assert_eq!(count(&database, "shop.orders"), "2");
}

#[test]
fn nobody_answering_is_a_no() {
    let daemon = Daemon::start(&HOLD_WRITES.replace("1m", "1s")).unwrap();
    let database = cluster().database().unwrap();
    let start = Instant::now();
    let outcome = psql(&daemon, &database, "DELETE FROM shop.orders")
        .outcome()
        .unwrap();
    assert!(!outcome.status.success());
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(outcome.stderr.contains("writes-wait"), "{outcome}");
    assert_eq!(count(&database, "shop.orders"), "3");
    assert_eq!(pending(&daemon), 0);
    assert!(
        daemon
            .journal()
            .unwrap()
            .mentioning("approval", "timed_out")
            .count()
            == 1
    );
}

#[test]
fn hanging_up_withdraws_the_request() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let mut client = Way::Guarded(&daemon, "gone").command("timeout");
    client.args([
        "--signal=KILL",
        "1",
        "psql",
        "--command=DELETE FROM shop.orders",
    ]);
    let agent = run::start(database.enter(&mut client)).unwrap();
    let approval = id(&daemon.held().unwrap());
    agent.outcome().unwrap();
    run::wait_for(
        "the request to be withdrawn",
        Duration::from_secs(5),
        || Ok((pending(&daemon) == 0).then_some(())),
    )
    .unwrap();
    assert!(daemon.ask(&["approvals", "approve", &approval]).is_err());
    let journal = daemon.journal().unwrap();
    assert!(
        journal
            .mentioning("approval", &approval)
            .any(|line| format!("{:?}", line.rest).contains("withdrawn")),
        "{:#?}",
        journal.of_kind("approval").collect::<Vec<_>>()
    );
    assert_eq!(count(&database, "shop.orders"), "3");
}

#[test]
fn a_killed_daemon_loses_no_request() {
    let mut daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let agent = psql(&daemon, &database, "DELETE FROM shop.orders");
    let approval = id(&daemon.held().unwrap());
    daemon.kill().unwrap();
    let outcome: Outcome = agent.outcome().unwrap();
    assert!(!outcome.status.success(), "{outcome}");
    daemon.restart().unwrap();
    assert_eq!(count(&database, "shop.orders"), "3");
    assert_eq!(pending(&daemon), 0, "whoever waited is gone");
    let journal = daemon.journal().unwrap();
    let steps: Vec<_> = journal
        .mentioning("approval", &approval)
        .map(|line| format!("{:?}", line.rest))
        .collect();
    assert!(
        steps.first().is_some_and(|step| step.contains("requested")),
        "{steps:?}"
    );
    assert!(
        steps.last().is_some_and(|step| step.contains("withdrawn")),
        "{steps:?}"
    );
    daemon.ask(&["verify"]).unwrap();
}
