//! A refusal is an error like any other: 42501, and then the connection is as PostgreSQL itself
//! would have left it. The oracle is PostgreSQL: a role that doesn't own the table is refused by
//! the server with the same code, so the same script has to see the same.

use interceptor_tests::{clients::Way, daemon::Daemon, run};

use crate::support::cluster;

const NO_DROPS: &str = "
default: {action: allow}
rules:
  - id: no-drops
    match: {protocol: postgres, class: [schema, execute]}
    action: deny
    reason: \"tables are dropped by the release process\"
";

/// A role that may do what the script does, except for what is refused.
const LIMITED: &str = "
    DO $$ BEGIN CREATE ROLE limited LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$;
    GRANT USAGE ON SCHEMA shop TO limited;
    GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA shop, public TO limited;";

fn as_the_server_leaves_it(mode: &str) -> String {
    let directly = cluster().database().unwrap();
    directly.sql(LIMITED).unwrap();
    let mut script = Way::Direct
        .script(&directly, "refused.py", &[mode])
        .unwrap();
    let expected = run::output(script.env("PGUSER", "limited")).unwrap();
    assert!(expected.contains("42501"), "{expected}");

    let daemon = Daemon::start(NO_DROPS).unwrap();
    let guarded = cluster().database().unwrap();
    let mut script = Way::Guarded(&daemon, "refused")
        .script(&guarded, "refused.py", &[mode])
        .unwrap();
    assert_eq!(run::output(&mut script).unwrap(), expected);
    assert_eq!(
        guarded.sql("SELECT count(*) FROM plain").unwrap(),
        "1000",
        "the table is there"
    );
    expected
}

#[test]
fn in_the_simple_protocol() {
    as_the_server_leaves_it("simple");
}

#[test]
fn in_a_transaction() {
    as_the_server_leaves_it("transaction");
}

#[test]
fn in_the_extended_protocol() {
    as_the_server_leaves_it("extended");
}

#[test]
fn in_a_pipeline() {
    as_the_server_leaves_it("pipelined");
}

#[test]
fn with_portals_and_prepared_statements_around() {
    as_the_server_leaves_it("portals");
}

#[test]
fn the_error_says_which_rule_and_why() {
    let daemon = Daemon::start(NO_DROPS).unwrap();
    let database = cluster().database().unwrap();
    let outcome = run::outcome(&mut Way::Guarded(&daemon, "refused").psql(
        &database,
        &["--set=VERBOSITY=verbose", "--command=DROP TABLE plain"],
    ))
    .unwrap();
    assert!(!outcome.status.success());
    assert!(outcome.stderr.contains("42501"), "{outcome}");
    assert!(outcome.stderr.contains("no-drops"), "{outcome}");
    assert!(
        outcome
            .stderr
            .contains("tables are dropped by the release process"),
        "{outcome}"
    );
}

#[test]
fn several_statements_in_one_message_are_decided_together() {
    let daemon = Daemon::start(NO_DROPS).unwrap();
    let database = cluster().database().unwrap();
    let outcome = run::outcome(&mut Way::Guarded(&daemon, "refused").psql(
        &database,
        // One -c is one message; the COMMIT inside would make the INSERT last.
        &["--command=BEGIN; INSERT INTO shop.orders VALUES (90, 1, 1); COMMIT; DROP TABLE plain"],
    ))
    .unwrap();
    assert!(outcome.stderr.contains("no-drops"), "{outcome}");
    assert_eq!(
        database
            .sql("SELECT count(*) FROM shop.orders WHERE id = 90")
            .unwrap(),
        "0",
        "none runs unless all may"
    );
}

#[test]
fn observing_records_and_stops_nothing() {
    let policy = NO_DROPS.replace("default:", "enforce: false\ndefault:");
    let daemon = Daemon::start(&policy).unwrap();
    let database = cluster().database().unwrap();
    run::output(
        &mut Way::Guarded(&daemon, "observed").psql(&database, &["--command=DROP TABLE plain"]),
    )
    .unwrap();
    let journal = daemon.journal().unwrap();
    assert!(
        journal.mentioning("decision", "no-drops").count() == 1,
        "{:#?}",
        journal.of_kind("decision").collect::<Vec<_>>()
    );
}

#[test]
fn replication_is_an_operation_of_its_own() {
    let policy = "
default: {action: allow}
rules:
  - id: no-replication
    match: {protocol: postgres, action: REPLICATION}
    action: deny
    reason: \"it carries every table\"
";
    let daemon = Daemon::start(policy).unwrap();
    let database = cluster().database().unwrap();
    let mut psql = Way::Guarded(&daemon, "replica").command("psql");
    let target = format!("dbname={} replication=database", database.name());
    psql.args(["--no-psqlrc", "--command=IDENTIFY_SYSTEM"]);
    database.enter(&mut psql).env_remove("PGDATABASE");
    let outcome = run::outcome(psql.args(["--dbname", &target])).unwrap();
    assert!(!outcome.status.success(), "{outcome}");
    assert!(outcome.stderr.contains("no-replication"), "{outcome}");
}

#[test]
fn encryption_is_declined_and_insisting_on_it_fails() {
    let daemon = Daemon::start(NO_DROPS).unwrap();
    let database = cluster().database().unwrap();
    for (mode, works) in [("disable", true), ("prefer", true), ("require", false)] {
        let mut psql = Way::Guarded(&daemon, "tls").psql(&database, &["--command=SELECT 1"]);
        let outcome = run::outcome(psql.env("PGSSLMODE", mode)).unwrap();
        assert_eq!(outcome.status.success(), works, "{mode}: {outcome}");
    }
}
