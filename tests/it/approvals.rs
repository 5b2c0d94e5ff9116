//! A held operation waits for people: approved once, denied, timed out, withdrawn.

use std::time::{Duration, Instant};

use interceptor_tests::{
    clients::Way,
    cluster::Database,
    daemon::Daemon,
    paths,
    run::{self, Outcome, Running},
};
use serde_json::Value;

use crate::{support::cluster, tls};

const HOLD_WRITES: &str = "
default: {action: allow}
rules:
  - id: writes-wait
    match: {protocol: postgres, class: [write, schema]}
    action: hold
    reason: \"a person looks first\"
    reviewers: {quorum: 1, within: 1m}
";

/// The same, and what its client gave up on isn't kept for it.
fn hold_writes_once() -> String {
    HOLD_WRITES.replace("within: 1m", "within: 1m, retry: 0s")
}

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
fn who_waits_is_told_what_for() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let mut client = Way::Guarded(&daemon, "told").psql(
        &database,
        &[
            "--command=SET client_min_messages = notice",
            &format!("--command={DELETE}"),
        ],
    );
    let agent = run::start(&mut client).unwrap();
    let asked = question(&daemon, true);
    // One every ten seconds.
    std::thread::sleep(Duration::from_secs(15));
    daemon.ask(&["approvals", "approve", &asked]).unwrap();
    let outcome = agent.outcome().unwrap();
    let told = format!("NOTICE:  interceptor: held until a person approves it (approval {asked})");
    assert!(outcome.stderr.contains(&told), "{outcome}");
    outcome.success().unwrap();
    assert_eq!(count(&database, "shop.orders"), "2");
}

#[test]
fn a_reviewer_at_a_terminal_opens_with_one_key_and_answers_with_one() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let agent = psql(&daemon, &database, DELETE);
    let asked = question(&daemon, true);
    let watch = daemon.command(["approvals", "watch"]);
    let mut reviewer = std::process::Command::new("python3");
    reviewer.arg(paths::client("reviewer.py"));
    reviewer.arg(watch.get_program()).args(watch.get_args());
    let screen = run::outcome(&mut reviewer).unwrap().success().unwrap();
    for part in ["\u{7}", DELETE, "Exactly this would run", &asked] {
        assert!(screen.contains(part), "no {part:?} in {screen}");
    }
    agent.outcome().unwrap().success().unwrap();
    let journal = daemon.journal().unwrap();
    let vote = journal.mentioning("approval", "voted").next().unwrap();
    assert!(vote.mentions("looks fine"), "{vote:?}");
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
        "folder ",
        "started by ",
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
    let daemon = Daemon::start(&hold_writes_once()).unwrap();
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
    let mut daemon = Daemon::start(&hold_writes_once()).unwrap();
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

const DELETE: &str = "DELETE FROM shop.orders WHERE id = (SELECT min(id) FROM shop.orders)";

/// Waits until the agent that ended isn't one any more: its name is free.
fn ended(daemon: &Daemon) {
    run::wait_for("the agent to end", Duration::from_secs(10), || {
        let tags = daemon.ask_json(&["tag", "list"])?;
        Ok(tags.as_array().is_none_or(Vec::is_empty).then_some(()))
    })
    .unwrap();
}

/// The one question, once its client waits or doesn't.
#[track_caller]
fn question(daemon: &Daemon, waits: bool) -> String {
    run::wait_for("a question", Duration::from_secs(10), || {
        let list = daemon.ask_json(&["approvals", "list"])?;
        let all = list.as_array().cloned().unwrap_or_default();
        Ok(match &all[..] {
            [one] if one["waits"] == waits => Some(id(one)),
            _ => None,
        })
    })
    .unwrap()
}

/// `psql` as an agent that gives up after some seconds: on a busy machine it needs one to ask.
fn impatient(daemon: &Daemon, database: &Database<'_>, more: &[&str]) -> Running {
    let mut client = Way::Guarded(daemon, "held").command("timeout");
    client.args(["--signal=KILL", "4", "psql", "--no-psqlrc"]);
    run::start(database.enter(client.args(more))).unwrap()
}

/// The question that a client asked who has given up since.
#[track_caller]
fn given_up(daemon: &Daemon, agent: Running) -> String {
    let asked = question(daemon, true);
    agent.outcome().unwrap();
    assert_eq!(question(daemon, false), asked);
    asked
}

#[test]
fn what_its_client_gave_up_on_passes_when_it_comes_again_and_once() {
    let daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let other = cluster().database().unwrap();
    let command = format!("--command={DELETE}");
    let asked = given_up(&daemon, impatient(&daemon, &database, &[&command]));
    daemon.ask(&["approvals", "approve", &asked]).unwrap();
    assert_eq!(pending(&daemon), 0);
    assert_eq!(
        count(&database, "shop.orders"),
        "3",
        "nobody is there to run it"
    );
    let grants = daemon.ask(&["approvals", "grants"]).unwrap();
    assert!(grants.contains(&asked), "{grants}");

    // In another database it is something else, and where names mean something else.
    let path = "--command=SET search_path = other";
    let function = "--command=SELECT set_config('search_path', 'other', false)";
    for (database, commands) in [
        (&other, &[&*command][..]),
        (&database, &[path, &command]),
        (&database, &[function, &command]),
    ] {
        let another = given_up(&daemon, impatient(&daemon, database, commands));
        assert_ne!(another, asked);
        daemon.ask(&["approvals", "deny", &another]).unwrap();
    }
    psql(&daemon, &database, DELETE)
        .outcome()
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(count(&database, "shop.orders"), "2");
    assert_eq!(count(&other, "shop.orders"), "3");

    let more = psql(&daemon, &database, DELETE);
    let another = question(&daemon, true);
    assert_ne!(another, asked, "an approval is used once");
    daemon.ask(&["approvals", "deny", &another]).unwrap();
    assert!(!more.outcome().unwrap().status.success());
    let journal = daemon.journal().unwrap();
    let steps: Vec<_> = journal.mentioning("approval", &asked).collect();
    for step in ["requested", "left", "voted", "approved", "admitted"] {
        assert!(
            steps.iter().any(|line| line.mentions(step)),
            "no {step}: {steps:#?}"
        );
    }
}

#[test]
fn questions_and_approvals_outlive_a_killed_daemon() {
    let mut daemon = Daemon::start(HOLD_WRITES).unwrap();
    let database = cluster().database().unwrap();
    let agent = psql(&daemon, &database, DELETE);
    let asked = question(&daemon, true);
    daemon.kill().unwrap();
    assert!(!agent.outcome().unwrap().status.success());
    daemon.restart().unwrap();
    assert_eq!(question(&daemon, false), asked);
    daemon.ask(&["approvals", "approve", &asked]).unwrap();
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    ended(&daemon);
    psql(&daemon, &database, DELETE)
        .outcome()
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(count(&database, "shop.orders"), "2");
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    ended(&daemon);
    // Used is used.
    let agent = psql(&daemon, &database, DELETE);
    let another = question(&daemon, true);
    assert_ne!(another, asked);
    daemon.ask(&["approvals", "deny", &another]).unwrap();
    assert!(!agent.outcome().unwrap().status.success());
    assert_eq!(count(&database, "shop.orders"), "2");
    daemon.ask(&["verify"]).unwrap();
}

#[test]
fn who_need_not_wait_is_told_to_come_back() {
    let policy = "
default: {action: allow}
rules:
  - {id: posts, match: {protocol: http, action: POST}, action: hold, reviewers: {within: 1m, wait: 1s}}
  - {id: writes, match: {protocol: postgres, class: [write]}, action: hold, reviewers: {within: 1m, wait: 1s}}
";
    let daemon = tls::daemon(policy);
    let web = tls::web();
    for (version, url) in [
        ("--http1.1", format!("http://localhost:{}/echo", web.plain)),
        ("--http2", format!("https://localhost:{}/echo", web.good)),
    ] {
        let post = |token: &str| {
            let mut curl = daemon.run_as("web", "curl");
            let authorization = format!("Authorization: Bearer {token}");
            curl.args(["--silent", "--include", version, "--data", "x=1"]);
            run::outcome(curl.args(["--header", &authorization, &url]))
                .unwrap()
                .stdout
        };
        let told = post("one");
        let asked = question(&daemon, false);
        for part in [" 403", "problem:held", &asked, "people have until"] {
            assert!(told.contains(part), "no {part} in {told}");
        }
        assert!(told.to_lowercase().contains("retry-after: 30"), "{told}");
        daemon.ask(&["approvals", "approve", &asked]).unwrap();
        // Somebody else's request, though nobody is shown what makes it one.
        assert!(post("other").contains(" 403"));
        let other = question(&daemon, false);
        daemon.ask(&["approvals", "deny", &other]).unwrap();
        assert!(post("one").contains(" 200"));
        assert!(post("one").contains(" 403"), "once");
        let again = question(&daemon, false);
        daemon.ask(&["approvals", "deny", &again]).unwrap();
    }
    let database = cluster().database().unwrap();
    let told = psql(&daemon, &database, DELETE).outcome().unwrap();
    let asked = question(&daemon, false);
    for part in [
        "until a person approves it",
        &asked,
        "send exactly the same again",
    ] {
        assert!(told.stderr.contains(part), "no {part} in {told}");
    }
    daemon.ask(&["approvals", "approve", &asked]).unwrap();
    psql(&daemon, &database, DELETE)
        .outcome()
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(count(&database, "shop.orders"), "2");
}

#[test]
fn people_agree_to_more_of_the_same_and_take_it_back() {
    let policy = HOLD_WRITES.replace(
        "within: 1m",
        "within: 1m, windows: {scope: shape, for: 10m, at_most: 2}",
    );
    let daemon = Daemon::start(&policy).unwrap();
    let database = cluster().database().unwrap();
    let delete = |id: u32| {
        psql(
            &daemon,
            &database,
            &format!("DELETE FROM shop.orders WHERE id = {id}"),
        )
    };
    let approve =
        |asked: &str, more: &[&str]| daemon.ask(&[&["approvals", "approve", asked], more].concat());
    let agent = delete(1);
    let asked = question(&daemon, true);
    let error = approve(&asked, &["--also", "rule"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("at most scope `shape`, for 10m, 2 times"),
        "{error}"
    );
    approve(&asked, &["--also", "shape", "--for", "5m"]).unwrap();
    agent.outcome().unwrap().success().unwrap();
    // Other values are of the same shape; more than values aren't.
    delete(2).outcome().unwrap().success().unwrap();
    let all = psql(&daemon, &database, "DELETE FROM shop.orders");
    let another = question(&daemon, true);
    daemon.ask(&["approvals", "deny", &another]).unwrap();
    assert!(!all.outcome().unwrap().status.success());
    let grants = daemon.ask_json(&["approvals", "grants"]).unwrap();
    assert_eq!(
        (&grants[0]["id"], &grants[0]["left"]),
        (&asked.clone().into(), &1.into())
    );

    daemon.ask(&["approvals", "revoke", &asked]).unwrap();
    let agent = delete(3);
    let another = question(&daemon, true);
    daemon.ask(&["approvals", "deny", &another]).unwrap();
    assert!(!agent.outcome().unwrap().status.success());
    assert_eq!(count(&database, "shop.orders"), "1");
}

#[test]
fn own_agents_and_emergencies() {
    let policy = HOLD_WRITES.replace("within: 1m", "groups: [dba, everyone], within: 1m");
    let configuration = "reviewers: {dba: [nobody], everyone: [root], oncall: [root]}\napprovals: {break_glass: [oncall]}\n";
    let daemon = Daemon::configured(&policy, |_| configuration.to_owned()).unwrap();
    let database = cluster().database().unwrap();
    let delete = |labels: &[&str]| {
        let mut client =
            daemon.command([&["run", "--agent", "held"], labels, &["--", "psql"]].concat());
        let command = format!("--command={DELETE}");
        run::start(database.enter(client.args(["--no-psqlrc", &command]))).unwrap()
    };
    let agent = delete(&["--label", "owner=root"]);
    let asked = question(&daemon, true);
    for verb in [&["approve"][..], &["override", "--reason", "mine"]] {
        let refused = daemon.ask(&[&["approvals"], verb, &[&*asked]].concat());
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("nobody approves what their own agent asks for"),
            "{refused}"
        );
    }
    daemon.ask(&["approvals", "deny", &asked]).unwrap();
    assert!(!agent.outcome().unwrap().status.success());

    let agent = delete(&[]);
    let asked = question(&daemon, true);
    let error = daemon.ask(&["approvals", "override", &asked]).unwrap_err();
    assert!(
        error.to_string().contains("a reason is required"),
        "{error}"
    );
    daemon
        .ask(&[
            "approvals",
            "override",
            &asked,
            "--reason",
            "the shop is down",
        ])
        .unwrap();
    agent.outcome().unwrap().success().unwrap();
    let journal = daemon.journal().unwrap();
    let step = journal.mentioning("approval", "overridden").next().unwrap();
    let shown = daemon
        .ask(&["sessions", "show", step.session.as_deref().unwrap()])
        .unwrap();
    assert!(
        shown.contains("BREAK-GLASS: let through by root: the shop is down"),
        "{shown}"
    );
}
