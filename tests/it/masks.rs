//! What is masked reaches neither the agent nor the log, whatever way it is asked for.

use interceptor_tests::{
    clients::Way,
    cluster::Database,
    daemon::Daemon,
    run::{self, Outcome},
};

use crate::support::cluster;

const MASKED: &str = "
default: {action: allow}
rules:
  - id: customers-are-masked
    match: {protocol: postgres, resources: [\"*.customers\", \"*.contacts\"]}
    action: allow
    mask:
      - {column: email, with: email}
      - {column: \"card_*\", with: last4}
      - {column: token, with: \"null\"}
";

const BY_PATTERN: &str = "
default: {action: allow}
rules:
  - id: secrets-by-form
    match: {protocol: postgres}
    action: allow
    mask:
      - {pattern: email}
      - {pattern: card}
";

/// What must never be seen.
const SECRETS: [&str; 4] = [
    "ada@example.com",
    "grace@example.org",
    "4111111111111111",
    "5500005555555559",
];

fn psql(daemon: &Daemon, database: &Database<'_>, sql: &str) -> Outcome {
    run::outcome(&mut Way::Guarded(daemon, "masked").psql(database, &[&format!("--command={sql}")]))
        .unwrap()
}

fn assert_hidden(text: &str, context: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{context} shows {secret}:\n{text}");
    }
}

fn hides(policy: &str, statements: &[&str]) {
    let daemon = Daemon::start(policy).unwrap();
    let database = cluster().database().unwrap();
    for sql in statements {
        let outcome = psql(&daemon, &database, sql);
        assert_hidden(&format!("{}{}", outcome.stdout, outcome.stderr), sql);
    }
    let journal = daemon.journal().unwrap();
    assert!(journal.of_kind("response").count() >= statements.len());
    for line in journal.of_kind("response") {
        assert_hidden(&format!("{:?}", line.rest), "the log");
    }
}

#[test]
fn by_column_wherever_it_comes_out() {
    hides(
        MASKED,
        &[
            "SELECT email, card_number FROM shop.customers",
            "SELECT * FROM shop.customers",
            "SELECT c.* FROM shop.customers AS c JOIN shop.orders AS o ON o.customer = c.id",
            "SELECT email AS name, card_number AS id FROM shop.customers",
            "SELECT x.a FROM (SELECT email AS a FROM shop.customers) AS x",
            "WITH c AS (SELECT * FROM shop.customers) SELECT * FROM c",
            "SELECT id, email FROM shop.customers ORDER BY email LIMIT 1",
            "TABLE shop.customers",
            "UPDATE shop.customers SET name = name RETURNING *",
            "UPDATE shop.customers SET name = name RETURNING email AS e",
            "BEGIN; DECLARE c CURSOR FOR SELECT email FROM shop.customers; FETCH ALL FROM c; COMMIT",
            "PREPARE p AS SELECT email FROM shop.customers; EXECUTE p",
        ],
    );
}

#[test]
fn strictly_nothing_is_computed_from_it() {
    let strict = MASKED.replace("with: email}", "with: email, strict: true}");
    let daemon = Daemon::start(&strict).unwrap();
    let database = cluster().database().unwrap();
    for sql in [
        "SELECT lower(email) FROM shop.customers",
        "SELECT c FROM shop.customers AS c",
        "SELECT to_json(email) FROM shop.customers",
    ] {
        let outcome = psql(&daemon, &database, sql);
        assert!(!outcome.status.success(), "{sql}: {outcome}");
        assert!(outcome.stderr.contains("customers-are-masked"), "{outcome}");
        assert_hidden(&format!("{}{}", outcome.stdout, outcome.stderr), sql);
    }
    let outcome = psql(&daemon, &database, "SELECT name, email FROM shop.customers");
    assert_hidden(&outcome.success().unwrap(), "by column");
}

#[test]
fn what_is_not_masked_is_untouched() {
    let daemon = Daemon::start(MASKED).unwrap();
    let database = cluster().database().unwrap();
    let seen = psql(
        &daemon,
        &database,
        "SELECT id, name, email, card_number, token, balance FROM shop.customers ORDER BY id",
    )
    .success()
    .unwrap();
    let rows: Vec<Vec<&str>> = seen.lines().map(|line| line.split('|').collect()).collect();
    assert_eq!(rows.len(), 3, "{seen}");
    assert_eq!(rows[0][..2], ["1", "Ada"]);
    assert_eq!(rows[0][5], "12.50");
    assert!(rows[0][3].ends_with("1111"), "the last four stay: {seen}");
    assert_eq!(rows[0][4], "", "NULL: {seen}");
    assert_eq!(rows[2][3], "", "NULL stays NULL: {seen}");
    assert_hidden(&seen, "the row");
}

#[test]
fn while_one_transaction_makes_tables() {
    let daemon = Daemon::start(MASKED).unwrap();
    let database = cluster().database().unwrap();
    let mut commands = vec!["--command=BEGIN".to_owned()];
    for table in ["one", "two", "three"] {
        commands.push("--command=SELECT email FROM shop.customers WHERE id = 1".to_owned());
        commands.push(format!("--command=CREATE TABLE {table} (a int)"));
    }
    commands.push("--command=COMMIT".to_owned());
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let outcome =
        run::outcome(&mut Way::Guarded(&daemon, "maker").psql(&database, &commands)).unwrap();
    assert_eq!(outcome.stdout, "a***@example.com\n".repeat(3), "{outcome}");
    assert_eq!(
        database.sql("SELECT to_regclass('three')").unwrap(),
        "three"
    );
}

#[test]
fn by_pattern_where_the_origin_is_lost() {
    hides(
        BY_PATTERN,
        &[
            "SELECT address FROM shop.contacts",
            "SELECT lower(email) FROM shop.customers",
            "SELECT 'mail ' || email || ' now' FROM shop.customers",
            "SELECT row_to_json(c) FROM shop.customers AS c",
            "SELECT array_agg(email) FROM shop.customers",
            "SELECT string_agg(email, ', ') FROM shop.customers",
            "SELECT c FROM shop.customers AS c",
            "SELECT card_number FROM shop.customers",
            "SELECT jsonb_build_object('mail', email) FROM shop.customers",
            "SELECT xmlelement(name mail, email) FROM shop.customers",
            "EXPLAIN SELECT * FROM shop.customers WHERE email = 'ada@example.com'",
        ],
    );
}

#[test]
fn in_errors_and_notices() {
    hides(
        BY_PATTERN,
        &[
            "SELECT shop.complain('write to ada@example.com or 4111111111111111')",
            "SELECT email::int FROM shop.customers",
            "DO $$ BEGIN RAISE NOTICE '%', (SELECT email FROM shop.customers LIMIT 1); END $$",
        ],
    );
}

#[test]
fn in_binary_formats() {
    // What is computed (an array of the column, JSON of it) has no origin: patterns see to that.
    let both = format!("{MASKED}      - {{pattern: email}}\n");
    for policy in [both.as_str(), BY_PATTERN] {
        let daemon = Daemon::start(policy).unwrap();
        let database = cluster().database().unwrap();
        for (script, mode) in [("masked.py", "psycopg"), ("masked.py", "asyncpg")] {
            let outcome = run::outcome(
                &mut Way::Guarded(&daemon, "masked")
                    .script(&database, script, &[mode])
                    .unwrap(),
            )
            .unwrap();
            let seen = outcome.success().unwrap();
            assert!(seen.contains("Ada"), "{seen}");
            assert_hidden(&seen, mode);
        }
        for line in daemon.journal().unwrap().of_kind("response") {
            assert_hidden(&format!("{:?}", line.rest), "the log");
        }
    }
}

#[test]
fn in_copy_out() {
    hides(
        BY_PATTERN,
        &[
            "COPY shop.customers TO STDOUT",
            "COPY (SELECT email FROM shop.customers) TO STDOUT (FORMAT csv)",
        ],
    );
    // Where the mask goes by column, a copy stream doesn't say which column is which: it is masked
    // from the statement or refused, never passed.
    hides(
        MASKED,
        &[
            "COPY shop.customers TO STDOUT",
            "COPY shop.customers (email) TO STDOUT",
            "COPY (SELECT email AS e FROM shop.customers) TO STDOUT (FORMAT csv)",
            "COPY shop.customers TO STDOUT (FORMAT binary)",
        ],
    );
}
