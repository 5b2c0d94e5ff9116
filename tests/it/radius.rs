//! What a held statement would touch is found out beforehand, as a user who may read and no more.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use interceptor_tests::{
    clients::Way,
    cluster::Database,
    daemon::Daemon,
    run::{self, Running},
};
use serde_json::Value;

use crate::{support::cluster, tls::secure_postgres};

/// How long it may take until it is known.
const SOON: Duration = Duration::from_secs(15);

fn policy(estimate: &str) -> String {
    format!(
        "
default: {{action: allow}}
rules:
  - id: writes-wait
    match: {{protocol: postgres, class: [write, schema]}}
    action: hold
    reviewers: {{within: 1m, blast_radius: {estimate}}}
  - id: some-reads-wait
    match: {{protocol: postgres, class: read, resources: \"*.trap\"}}
    action: hold
    reviewers: {{within: 1m, blast_radius: {estimate}}}
"
    )
}

/// A daemon that asks as `login`.
fn daemon(estimate: &str, login: &str) -> Daemon {
    Daemon::configured(&policy(estimate), |folder| {
        let path = secret(folder);
        let port = cluster().port();
        format!(
            "credentials:\n- {{destination: \"127.0.0.1:{port}\", protocol: postgres, use: blast_radius, login: {login}, password: {{file: {path}}}}}\n"
        )
    })
    .unwrap()
}

fn secret(folder: &Path) -> String {
    let path = folder.join("reader");
    fs::write(&path, "secret\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// A database that `scram_user` may read.
fn database() -> Database<'static> {
    let database = cluster().database().unwrap();
    database
        .sql(
            "GRANT USAGE ON SCHEMA shop TO scram_user;
             GRANT SELECT ON ALL TABLES IN SCHEMA shop, public TO scram_user;
             ANALYZE",
        )
        .unwrap();
    database
}

fn psql(daemon: &Daemon, database: &Database<'_>, commands: &[&str]) -> Running {
    let commands: Vec<String> = commands
        .iter()
        .map(|command| format!("--command={command}"))
        .collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    run::start(&mut Way::Guarded(daemon, "held").psql(database, &commands)).unwrap()
}

/// The one question that waits, once it is known what it would touch.
fn known(daemon: &Daemon) -> Value {
    run::wait_for("what it would touch", SOON, || {
        let list = daemon.ask_json(&["approvals", "list"])?;
        let all = list.as_array().cloned().unwrap_or_default();
        Ok(all
            .into_iter()
            .find(|one| one["blast_radius"].is_object() && one["state"] == "pending"))
    })
    .unwrap()
}

fn impacts(asked: &Value) -> Vec<String> {
    let impacts = asked["blast_radius"]["impacts"].as_array().unwrap();
    let said = impacts.iter().map(|impact| {
        let text = |name: &str| impact[name].as_str().unwrap_or("-").to_owned();
        let rows = match impact["rows"]
            .as_object()
            .and_then(|rows| rows.iter().next())
        {
            Some((how, count)) => format!("{how} {count}"),
            None => "-".to_owned(),
        };
        format!(
            "{} {} {rows} {}",
            text("change"),
            text("target"),
            text("through")
        )
    });
    said.collect()
}

fn unknown(asked: &Value) -> String {
    asked["blast_radius"]["unknown"].to_string()
}

/// What `commands` would touch; their last is denied then.
fn asked(daemon: &Daemon, database: &Database<'_>, commands: &[&str]) -> Value {
    let agent = psql(daemon, database, commands);
    let asked = known(daemon);
    let id = asked["id"].as_str().unwrap();
    daemon
        .ask(&["approvals", "deny", id, "--reason", "seen"])
        .unwrap();
    assert!(!agent.outcome().unwrap().status.success());
    asked
}

#[test]
fn rows_are_counted_and_shown_before_anybody_agrees() {
    let (daemon, database) = (daemon("count", "scram_user"), database());
    let agent = psql(
        &daemon,
        &database,
        &["DELETE FROM shop.orders WHERE id > 1"],
    );
    let asked = known(&daemon);
    assert_eq!(impacts(&asked), ["deletes shop.orders counted 2 -"]);
    assert_eq!(unknown(&asked), "[]");
    let first = &asked["blast_radius"]["impacts"][0];
    assert_eq!(first["of"], 3);
    assert!(first["bytes"].as_u64().unwrap() > 0);
    assert_eq!(asked["blast_radius"]["asked_as"], "scram_user");
    let id = asked["id"].as_str().unwrap();
    let shown = daemon.ask(&["approvals", "show", id]).unwrap();
    assert!(
        shown.contains("deletes 2 rows of shop.orders (about 3 rows,"),
        "{shown}"
    );
    daemon.ask(&["approvals", "approve", id]).unwrap();
    agent.outcome().unwrap().success().unwrap();
    assert_eq!(
        database.sql("SELECT count(*) FROM shop.orders").unwrap(),
        "1"
    );
    let journal = daemon.journal().unwrap();
    let record = journal.mentioning("approval", "estimated").next().unwrap();
    assert!(record.mentions("shop.orders"), "{record:?}");
    assert!(!record.mentions("secret"));
}

#[test]
fn values_mean_what_they_mean_where_they_are_bound() {
    let (daemon, database) = (daemon("count", "scram_user"), database());
    let mut client = Way::Guarded(&daemon, "bound")
        .script(&database, "bound.py", &[])
        .unwrap();
    let agent = run::start(&mut client).unwrap();
    let asked = known(&daemon);
    assert_eq!(impacts(&asked), ["deletes shop.orders counted 2 -"]);
    let id = asked["id"].as_str().unwrap();
    daemon.ask(&["approvals", "approve", id]).unwrap();
    let said = agent.outcome().unwrap().success().unwrap();
    assert_eq!(said.trim(), "DELETE 2");
}

#[test]
fn what_goes_with_it_is_told() {
    let (daemon, database) = (daemon("plan", "scram_user"), database());
    database
        .sql(
            "CREATE TABLE shop.items (id int PRIMARY KEY, o int REFERENCES shop.orders ON DELETE CASCADE);
             CREATE FUNCTION shop.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
             CREATE TRIGGER noted BEFORE DELETE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.noted();
             GRANT SELECT ON shop.items TO scram_user",
        )
        .unwrap();
    for (sql, expected) in [
        (
            "DELETE FROM shop.orders WHERE customer = 1",
            &[
                "deletes shop.orders planned 2 -",
                "deletes shop.items - the foreign key items_o_fkey",
                "triggers shop.orders - noted",
            ][..],
        ),
        (
            "DELETE FROM shop.customers WHERE id = 1",
            &[
                "deletes shop.customers planned 1 -",
                "may_prevent shop.orders - the foreign key orders_customer_fkey",
            ],
        ),
        (
            "TRUNCATE shop.customers CASCADE",
            &[
                "empties shop.customers - -",
                "empties shop.orders - the foreign key orders_customer_fkey",
                "empties shop.items - the foreign key items_o_fkey",
            ],
        ),
        (
            "DROP TABLE shop.customers CASCADE",
            &[
                "drops shop.customers - -",
                "alters shop.orders - the foreign key orders_customer_fkey",
                "drops shop.contacts - its definition",
            ],
        ),
        (
            "INSERT INTO plain SELECT n, 'x' FROM generate_series(5000, 5999) AS n",
            &["adds public.plain planned 1000 -"],
        ),
        (
            "INSERT INTO plain VALUES (2000, 'a'), (2001, 'b')",
            &["adds public.plain counted 2 -"],
        ),
        (
            "MERGE INTO plain p USING (SELECT 1 AS id) n ON p.id = n.id WHEN MATCHED THEN DELETE",
            &["deletes public.plain planned 1 -"],
        ),
        (
            "UPDATE plain SET word = 'x' WHERE id < 10; DELETE FROM plain",
            &[
                "changes public.plain planned 9 -",
                "deletes public.plain planned 1000 -",
            ],
        ),
    ] {
        let asked = asked(&daemon, &database, &[sql]);
        assert_eq!(impacts(&asked), expected, "{sql}: {asked}");
        assert_eq!(unknown(&asked), "[]", "{sql}");
    }
    let schema = asked(&daemon, &database, &["DROP SCHEMA shop CASCADE"]);
    assert!(
        impacts(&schema)[0].starts_with("drops schema shop with 4 tables"),
        "{schema}"
    );
}

#[test]
fn a_name_without_a_schema_is_the_one_that_the_session_means() {
    let (daemon, database) = (daemon("count", "scram_user"), database());
    // A table of that name that the reader would find by its own search path.
    database
        .sql(&format!(
            "CREATE TABLE public.orders (id int); GRANT SELECT ON public.orders TO scram_user;
             ALTER ROLE agent IN DATABASE {} SET search_path = shop, public",
            database.name()
        ))
        .unwrap();
    let by_role = asked(&daemon, &database, &["DELETE FROM orders"]);
    assert_eq!(impacts(&by_role), ["deletes shop.orders counted 3 -"]);
    for before in [
        "SET search_path = public",
        "CREATE TEMP TABLE other (id int)",
    ] {
        // The second is held itself.
        let commands = [before, "DELETE FROM orders"];
        let mut agent = psql(&daemon, &database, &commands);
        if before.starts_with("CREATE") {
            let first = known(&daemon);
            daemon
                .ask(&["approvals", "approve", first["id"].as_str().unwrap()])
                .unwrap();
            run::wait_for("the next question", SOON, || {
                let next = known(&daemon);
                Ok((next["id"] != first["id"]).then_some(()))
            })
            .unwrap();
        }
        let asked = known(&daemon);
        assert_eq!(impacts(&asked), [""; 0], "{before}");
        assert!(
            unknown(&asked).contains("may mean something else"),
            "{asked}"
        );
        let id = asked["id"].as_str().unwrap();
        daemon
            .ask(&["approvals", "deny", id, "--reason", "seen"])
            .unwrap();
        while agent.is_running().unwrap() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let qualified = [
        "SET search_path = public",
        "DELETE FROM shop.orders WHERE id = 1",
    ];
    let qualified = asked(&daemon, &database, &qualified);
    assert_eq!(impacts(&qualified), ["deletes shop.orders counted 1 -"]);
}

#[test]
fn finding_out_changes_nothing_even_as_somebody_who_could() {
    // The worst choice of a reader: who may do everything.
    let (daemon, database) = (daemon("count", "agent"), database());
    database
        .sql(
            "CREATE VIEW shop.trap AS SELECT shop.rename(1, 'caught') IS NULL AS x;
             CREATE FUNCTION shop.sly(x int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
             $$ BEGIN PERFORM set_config('transaction_read_only', 'off', false); UPDATE shop.customers SET name = 'caught'; RETURN true; END $$",
        )
        .unwrap();
    let view = asked(&daemon, &database, &["SELECT * FROM shop.trap"]);
    assert!(unknown(&view).contains("read-only transaction"), "{view}");
    for sql in [
        "DELETE FROM plain WHERE shop.sly(id)",
        "DELETE FROM plain WHERE shop.sly(1)",
        "DELETE FROM plain WHERE (SELECT shop.rename(1, 'caught')) IS NULL",
        "DELETE FROM plain WHERE id = nextval('s')",
        "WITH gone AS (DELETE FROM shop.orders RETURNING id) INSERT INTO plain SELECT id, 'x' FROM gone",
        "EXPLAIN ANALYZE DELETE FROM shop.orders",
    ] {
        let asked = asked(&daemon, &database, &[sql]);
        assert!(asked["blast_radius"].is_object(), "{sql}");
    }
    assert_eq!(
        database
            .sql("SELECT string_agg(name, ',' ORDER BY id) FROM shop.customers")
            .unwrap(),
        "Ada,Grace,Edsger"
    );
    assert_eq!(
        database.sql("SELECT count(*) FROM shop.orders").unwrap(),
        "3"
    );
    assert_eq!(database.sql("SELECT count(*) FROM plain").unwrap(), "1000");
}

#[test]
fn what_can_not_be_found_out_is_said_and_holds_nobody_up() {
    let database = database();
    // Nobody may read.
    let without = Daemon::start(&policy("plan")).unwrap();
    let asked_without = asked(&without, &database, &["DELETE FROM plain"]);
    assert!(
        unknown(&asked_without).contains("use: blast_radius"),
        "{asked_without}"
    );
    // Who may read, may not read that.
    let daemon = daemon("plan", "scram_user");
    database.sql("CREATE TABLE shop.secrets (x int)").unwrap();
    let denied = asked(&daemon, &database, &["DELETE FROM shop.secrets"]);
    assert!(unknown(&denied).contains("permission denied"), "{denied}");
    let nothing = asked(&daemon, &database, &["DELETE FROM shop.nothing"]);
    assert!(unknown(&nothing).contains("no such relation"), "{nothing}");
    // Somebody holds it: nobody waits for that.
    let mut blocker = std::process::Command::new("psql");
    blocker.args(["--no-psqlrc", "--username", "postgres", "--host"]);
    blocker.arg(cluster().socket_folder());
    blocker.args([
        "--port",
        &cluster().port().to_string(),
        "--dbname",
        database.name(),
    ]);
    blocker.args([
        "--command",
        "BEGIN; LOCK TABLE shop.orders; SELECT pg_sleep(20)",
    ]);
    let mut blocker = blocker.spawn().unwrap();
    run::wait_for("the lock", SOON, || {
        let held = database.sql(
            "SELECT count(*) FROM pg_locks WHERE relation = 'shop.orders'::regclass AND mode = 'AccessExclusiveLock' AND granted",
        )?;
        Ok((held == "1").then_some(()))
    })
    .unwrap();
    let began = Instant::now();
    let locked = asked(&daemon, &database, &["DELETE FROM shop.orders"]);
    assert!(unknown(&locked).contains("lock timeout"), "{locked}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    blocker.kill().unwrap();
    blocker.wait().unwrap();
}

#[test]
fn the_way_there_is_as_safe_as_the_agents() {
    let folder = interceptor_tests::scratch::folder("pgradius").unwrap();
    let (server, authority) = secure_postgres(&folder);
    server
        .sql(
            "postgres",
            "CREATE ROLE reader LOGIN PASSWORD 'secret'; CREATE TABLE things AS SELECT 1 AS n; GRANT SELECT ON things TO reader",
        )
        .unwrap();
    let daemon = Daemon::configured(&policy("count"), |folder| {
        format!(
            "tls: {{roots: [{}]}}\ncredentials:\n- {{destination: \"db.test:{}\", protocol: postgres, use: blast_radius, login: reader, password: {{file: {}}}}}\n",
            authority.authority().display(),
            server.port(),
            secret(folder)
        )
    })
    .unwrap();
    for (mode, is_known) in [("verify-full", true), ("disable", false)] {
        let connection = format!(
            "host=db.test hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode={mode} sslrootcert={}",
            server.port(),
            daemon.state().join("ca/ca.pem").display(),
        );
        let mut client = daemon.run_as("db", "psql");
        client.args(["-X", "-c", "DELETE FROM things", &connection]);
        let agent = run::start(&mut client).unwrap();
        let asked = known(&daemon);
        if is_known {
            assert_eq!(impacts(&asked), ["deletes public.things counted 1 -"]);
        } else {
            // In the clear nobody proves to be `db.test`, so nobody is told its reader's password.
            assert!(unknown(&asked).contains("no user who may read"), "{asked}");
        }
        let id = asked["id"].as_str().unwrap();
        daemon.ask(&["approvals", "deny", id]).unwrap();
        assert!(!agent.outcome().unwrap().status.success());
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn it_outlives_the_client_and_the_daemon() {
    let (mut daemon, database) = (daemon("count", "scram_user"), database());
    let agent = psql(&daemon, &database, &["DELETE FROM shop.orders"]);
    let asked = known(&daemon);
    daemon.kill().unwrap();
    assert!(!agent.outcome().unwrap().status.success());
    daemon.restart().unwrap();
    let again = known(&daemon);
    assert_eq!(again["id"], asked["id"]);
    assert_eq!(again["blast_radius"], asked["blast_radius"]);
}
