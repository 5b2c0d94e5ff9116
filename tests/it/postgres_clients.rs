//! Unmodified clients see through interceptor what they see without it, to the byte.

use std::process::Command;

use interceptor_tests::{clients::Way, cluster::Database, daemon::Daemon, run};

use crate::support::{ALLOW_ALL, cluster};

/// Runs the same client directly and as an agent, each in a database of its own, and gives what
/// both printed.
fn alike(client: impl Fn(Way<'_>, &Database<'_>) -> Command) -> String {
    let directly = cluster().database().unwrap();
    let expected = run::output(&mut client(Way::Direct, &directly)).unwrap();
    assert!(!expected.is_empty(), "the client said nothing");

    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let guarded = cluster().database().unwrap();
    let seen = run::output(&mut client(Way::Guarded(&daemon, "clients"), &guarded)).unwrap();
    assert_eq!(seen, expected);

    let journal = daemon.journal().unwrap();
    let sessions = journal.of_kind("session_start").count();
    assert!(
        sessions > 0,
        "nothing was recorded: it went past interceptor"
    );
    expected
}

fn script(script: &str, mode: &str) -> String {
    alike(|way, database| way.script(database, script, &[mode]).unwrap())
}

#[test]
fn psql_runs_commands_scripts_and_meta_commands() {
    let seen = alike(|way, database| {
        way.psql(
            database,
            &[
                "--command=SELECT id, name FROM shop.customers ORDER BY id",
                "--command=\\d shop.customers",
                "--command=\\dt shop.*",
                "--command=BEGIN; UPDATE plain SET word = 'x' WHERE id = 7; COMMIT",
                "--command=\\copy plain to stdout",
                "--command=SELECT word FROM plain WHERE id = 7",
                "--command=\\set FETCH_COUNT 100",
                "--command=SELECT count(*) FROM plain",
            ],
        )
    });
    assert!(seen.starts_with("1|Ada\n2|Grace\n"), "{seen}");
    assert!(seen.ends_with("\nx\n1000\n"), "{seen}");
}

#[test]
fn psql_reads_copy_data_and_shows_errors() {
    alike(|way, database| {
        let mut psql = way.psql(
            database,
            &["--command=\\copy plain from program 'seq 5000 5010 | sed s/$/,w/' csv"],
        );
        psql.args([
            "--command=SELECT count(*) FROM plain",
            "--command=TABLE plain LIMIT 1",
        ]);
        psql
    });
}

#[test]
fn psycopg_uses_the_simple_protocol() {
    let seen = script("psycopg_client.py", "simple");
    assert!(
        seen.starts_with("[(1, 'Ada'), (2, 'Grace')] SELECT 2"),
        "{seen}"
    );
}

#[test]
fn psycopg_uses_the_extended_protocol() {
    let seen = script("psycopg_client.py", "extended");
    assert!(seen.contains("(7, 'héllo', {'a': [1]}, UUID("), "{seen}");
}

#[test]
fn psycopg_uses_pipelines() {
    let seen = script("psycopg_client.py", "pipeline");
    assert_eq!(
        seen,
        "[(10,)] [('Grace',)] [(20,)]\nerror 22012\n(0,)\n(300,)\n"
    );
}

#[test]
fn psycopg_uses_cursors() {
    let seen = script("psycopg_client.py", "cursors");
    assert!(seen.contains("[(1,), (2,), (3,)]\nUPDATE 1\n"), "{seen}");
}

#[test]
fn psycopg_copies_in_and_out() {
    let seen = script("psycopg_client.py", "copy");
    assert!(seen.ends_with("error 23505\ngave up\n(2100,)\n"), "{seen}");
}

#[test]
fn psycopg_uses_transactions() {
    let seen = script("psycopg_client.py", "transactions");
    assert!(
        seen.ends_with("error 42703\nINERROR\nerror 25P02\nIDLE\n(1,)\n"),
        "{seen}"
    );
}

#[test]
fn psycopg_sees_notices_notifications_and_cancels() {
    let seen = script("psycopg_client.py", "notices");
    assert_eq!(
        seen,
        "notice careful\nbell ding\nrenamed\nerror 57014\n('still here',)\n"
    );
}

#[test]
fn psycopg_logs_in_in_every_way() {
    let seen = script("psycopg_client.py", "authentication");
    assert_eq!(seen.matches("refused True").count(), 3, "{seen}");
}

#[test]
fn psycopg_moves_large_values() {
    assert_eq!(
        script("psycopg_client.py", "big"),
        "5242880\n8000000\n200000\n"
    );
}

#[test]
fn asyncpg_queries() {
    let seen = script("asyncpg_client.py", "queries");
    assert!(seen.ends_with("DROP TABLE\n200\n"), "{seen}");
}

#[test]
fn asyncpg_uses_portals() {
    script("asyncpg_client.py", "cursors");
}

#[test]
fn asyncpg_copies() {
    script("asyncpg_client.py", "copy");
}

#[test]
fn asyncpg_goes_on_after_errors() {
    let seen = script("asyncpg_client.py", "errors");
    assert_eq!(
        seen,
        "error 22012\nerror 42703\nerror 23505\nerror 23505\n0\n"
    );
}

#[test]
fn asyncpg_listens_and_cancels() {
    let seen = script("asyncpg_client.py", "notifications");
    assert!(seen.ends_with("timed out\nstill here\n"), "{seen}");
}

#[test]
fn node_postgres_queries() {
    script("node_client.js", "queries");
}

#[test]
fn node_postgres_goes_on_after_errors() {
    let seen = script("node_client.js", "errors");
    assert!(
        seen.ends_with("error 25P02\n[{\"here\":\"still here\"}]\n"),
        "{seen}"
    );
}

#[test]
fn node_postgres_queues_and_listens() {
    let seen = script("node_client.js", "queued");
    assert!(seen.ends_with("ding\n"), "{seen}");
}

#[test]
fn node_postgres_pools() {
    assert_eq!(script("node_client.js", "pool"), "64\n");
}

#[test]
fn pgbench_runs_in_its_three_protocols() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    let pgbench = |arguments: &[&str]| {
        let mut pgbench =
            Way::Guarded(&daemon, "pgbench").command("/usr/lib/postgresql/15/bin/pgbench");
        database.enter(&mut pgbench);
        run::output(pgbench.args(arguments)).unwrap()
    };
    pgbench(&["--initialize", "--quiet", "--scale=1"]);
    for protocol in ["simple", "extended", "prepared"] {
        for script in ["select-only", "tpcb-like"] {
            let report = pgbench(&[
                "--no-vacuum",
                &format!("--protocol={protocol}"),
                &format!("--builtin={script}"),
                "--client=4",
                "--transactions=25",
            ]);
            assert!(
                report.contains("number of transactions actually processed: 100/100"),
                "{report}"
            );
            assert!(
                report.contains("number of failed transactions: 0"),
                "{report}"
            );
        }
    }
}
