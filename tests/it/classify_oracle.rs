//! pgAudit as an oracle: what the server says it did is never more than what we declared.
//!
//! The corpus of statements is run for real on a server of its own, each in a fresh database.

use std::collections::BTreeSet;

use interceptor_core::{
    operation::{Effects, ResourceKind},
    protocol::postgres::describe::{Described, Describer, Encoding, Lexing},
};
use interceptor_tests::{
    clients::Way,
    cluster::{Cluster, Database},
    run,
};
use serde::Deserialize;

const CORPUS: &str =
    include_str!("../../interceptor/core/src/protocol/postgres/describe/corpus.yaml");

/// What the corpus's statements find, so that most of them run.
const WORLD: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, email text, name text, loid oid);
    INSERT INTO customers VALUES (1, 'ada@example.com', 'Ada', 1);
    CREATE TABLE \"Customers\" (id int);
    CREATE TABLE orders (id int PRIMARY KEY, total int, name text, note text, a int, b int,
        created date, data jsonb, \"delete\" int, \"drop\" int);
    INSERT INTO orders VALUES (7, 1, 'n', 'x', 1, 2, '2020-01-01', '{}', 1, 1);
    CREATE TABLE orders_archive (LIKE orders);
    CREATE SEQUENCE orders_id_seq;
    CREATE TABLE items (i int, o int);
    CREATE TABLE secrets (x int, total int);
    CREATE TABLE staging (id int);
    CREATE TABLE audit (id int);
    CREATE SCHEMA audit;
    CREATE TABLE audit.deleted_orders (id int);
    CREATE TABLE \"update\" (id int);
    CREATE VIEW v AS SELECT 1 AS one;
    CREATE FUNCTION my_function() RETURNS int LANGUAGE plpgsql
        AS 'BEGIN DELETE FROM orders WHERE id = 100; RETURN 1; END';
    CREATE FUNCTION my_function(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE plpgsql
        AS 'BEGIN DELETE FROM orders; RETURN $1; END';
    CREATE PROCEDURE housekeeping(int) LANGUAGE plpgsql AS 'BEGIN DELETE FROM orders; END';
    CREATE EXTENSION pgaudit;";

/// Everything that the statements may change in it.
const DATA: &str = "SELECT (SELECT string_agg(o::text, ';') FROM orders AS o),
    (SELECT string_agg(c::text, ';') FROM customers AS c), (SELECT count(*) FROM pg_class)";

/// Statements that reach out of the server.
const NOT_RUN: [&str; 3] = ["192.0.2.", "/tmp/", "pg_terminate_backend"];

#[derive(Deserialize)]
struct Corpus {
    hidden: Vec<Case>,
    harmless: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    sql: String,
    how: String,
}

/// One line of pgAudit's.
#[derive(Debug)]
struct Done {
    class: String,
    object: String,
}

#[test]
fn the_server_never_does_more_than_was_declared() {
    let server = server();
    let describer = Describer::default();
    let corpus: Corpus = serde_saphyr::from_str(CORPUS).unwrap();
    let cases: Vec<&Case> = corpus
        .hidden
        .iter()
        .chain(&corpus.harmless)
        .filter(|case| !NOT_RUN.iter().any(|reach| case.sql.contains(reach)))
        .collect();

    let untouched = server.sql("fixture", DATA).unwrap();
    let mut overlooked = Vec::new();
    let mut ran = 0;
    for case in &cases {
        let database = server.database().unwrap();
        let described = describer.describe(
            case.sql.as_bytes(),
            Lexing {
                standard_conforming_strings: true,
                encoding: Encoding::Utf8,
            },
        );
        let (succeeded, done) = run_and_ask(&server, &database, &case.sql);
        ran += usize::from(succeeded);
        if only_plans(&described) {
            // pgAudit logs what a plan would touch; whether it was touched, the data say.
            assert_eq!(database.sql(DATA).unwrap(), untouched, "{}", case.sql);
            continue;
        }
        for done in done {
            if let Some(what) = exceeds(&done, &described, &case.sql) {
                overlooked.push(format!("{what}: {} ({})\n  {done:?}", case.sql, case.how));
            }
        }
    }
    assert!(overlooked.is_empty(), "{}", overlooked.join("\n"));
    // The oracle says little of statements that fail; most have to run for it to mean something.
    assert!(
        ran * 10 >= cases.len() * 7,
        "only {ran} of {} ran",
        cases.len()
    );
}

/// A server with [`WORLD`] as the template of its databases, where pgAudit says everything.
fn server() -> Cluster {
    let server = Cluster::bare(&[("shared_preload_libraries", "pgaudit")]).unwrap();
    for sql in [
        "CREATE ROLE agent SUPERUSER LOGIN; CREATE ROLE admin; CREATE ROLE a; CREATE ROLE b;
         ALTER ROLE agent SET pgaudit.log = 'all'; ALTER ROLE agent SET pgaudit.log_relation = on;
         ALTER ROLE agent SET statement_timeout = '5s'",
        "CREATE DATABASE fixture",
    ] {
        server.sql("postgres", sql).unwrap();
    }
    server.sql("fixture", WORLD).unwrap();
    server
}

/// Whether `sql` succeeded, and what pgAudit logged of it.
fn run_and_ask(server: &Cluster, database: &Database<'_>, sql: &str) -> (bool, Vec<Done>) {
    let before = server.log().unwrap().len();
    let mut psql = Way::Direct.psql(database, &["--set=ON_ERROR_STOP=1", "--command", sql]);
    let outcome = run::outcome(&mut psql).unwrap();
    let log = server.log().unwrap();
    let done = log[before..]
        .lines()
        .filter_map(|line| line.split_once("AUDIT: SESSION,"))
        .map(|(_, fields)| {
            let mut fields = fields.split(',').skip(2).map(str::to_owned);
            let mut next = || fields.next().unwrap_or_default();
            let (class, _command, _kind, object) = (next(), next(), next(), next());
            Done { class, object }
        })
        .collect();
    (outcome.status.success(), done)
}

/// Whether nothing but a plan or a prepared statement was declared.
fn only_plans(described: &Described) -> bool {
    let description = &described.description;
    description
        .actions
        .iter()
        .all(|action| matches!(&**action, "EXPLAIN" | "PREPARE"))
        && !description.actions.is_empty()
        && !description.effects.contains(Effects::WRITE)
}

/// What the server did and we hadn't declared.
fn exceeds(done: &Done, described: &Described, sql: &str) -> Option<&'static str> {
    let declared = described.description.effects;
    // Running a prepared statement or a cursor is decided by the session, which knows its name.
    if declared.intersects(Effects::EXECUTE | Effects::UNCLASSIFIED) || !described.runs.is_empty() {
        return None;
    }
    let enough = match done.class.as_str() {
        "READ" => Effects::READ | Effects::EXPORT | Effects::TRANSFER,
        "WRITE" => Effects::WRITE,
        "DDL" => Effects::SCHEMA | Effects::ADMIN,
        "ROLE" => Effects::ADMIN,
        "FUNCTION" => Effects::EXECUTE,
        // SET, FETCH, transactions, …: nothing that has an effect of its own in pgAudit's terms.
        _ => return None,
    };
    if !declared.intersects(enough) {
        return Some("an effect");
    }
    if !matches!(done.class.as_str(), "READ" | "WRITE") || done.object.is_empty() {
        return None;
    }
    let bare = done.object.rsplit('.').next().unwrap_or_default();
    let named: BTreeSet<&str> = described
        .description
        .resources
        .iter()
        .filter(|resource| resource.kind == ResourceKind::Table)
        .map(|resource| &*resource.name)
        .collect();
    // What a view or rule reaches is not in the text; what is in the text has to be declared.
    let in_text = sql
        .to_lowercase()
        .contains(&bare.trim_matches('"').to_lowercase());
    (in_text && !named.contains(bare.trim_matches('"'))).then_some("a table")
}
