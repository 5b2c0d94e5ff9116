//! The packs that people start from: valid, and true to their own cases.

use interceptor_tests::{clients::Way, daemon::Daemon, paths, run};

use crate::support::{ALLOW_ALL, cluster};

#[test]
fn the_packs_are_valid_and_pass_their_cases() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for pack in ["starter.yaml", "postgres.yaml"] {
        let path = paths::root().join("policies").join(pack);
        let path = path.to_str().unwrap();
        daemon.ask(&["policy", "check", path]).unwrap();
        daemon.ask(&["policy", "test", path]).unwrap();
    }
}

#[test]
fn the_starter_pack_does_on_a_first_day_what_it_says() {
    let starter = std::fs::read_to_string(paths::root().join("policies/starter.yaml")).unwrap();
    let daemon = Daemon::start(&starter).unwrap();
    let database = cluster().database().unwrap();
    let psql = |sql: &str| {
        run::outcome(
            &mut Way::Guarded(&daemon, "first-day").psql(&database, &[&format!("--command={sql}")]),
        )
        .unwrap()
    };
    let read = psql("SELECT id, name, email FROM shop.customers ORDER BY id");
    let read = read.success().unwrap();
    assert!(
        read.contains("Ada") && !read.contains("ada@example.com"),
        "{read}"
    );
    for (sql, rule) in [
        ("TRUNCATE plain", "destruction-is-refused"),
        ("DELETE FROM plain", "whole-tables-stay"),
        (
            "SELECT pg_read_file('postgresql.conf')",
            "the-server-is-off-limits",
        ),
        ("COPY plain TO PROGRAM 'true'", "the-server-is-off-limits"),
    ] {
        let outcome = psql(sql);
        assert!(!outcome.status.success(), "{sql}");
        assert!(outcome.stderr.contains(rule), "{sql}: {outcome}");
    }
    assert_eq!(database.sql("SELECT count(*) FROM plain").unwrap(), "1000");
}
