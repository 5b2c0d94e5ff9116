//! The packs that people start from: valid, and true to their own cases.

use interceptor_tests::{clients::Way, daemon::Daemon, dns::Dns, netns::Outside, paths, run};

use crate::support::{ALLOW_ALL, cluster};

#[test]
fn the_packs_are_valid_and_pass_their_cases() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for pack in [
        "starter.yaml",
        "postgres.yaml",
        "web.yaml",
        "dns.yaml",
        "docker.yaml",
    ] {
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

#[test]
fn the_dns_pack_lets_names_by_and_closes_a_tunnel() {
    let pack = std::fs::read_to_string(paths::root().join("policies/dns.yaml")).unwrap();
    let outside = Outside::new().unwrap();
    let dns = Dns::start(&outside).unwrap();
    let daemon = Daemon::start(&pack).unwrap();
    let [v4, v6] = dns.servers();
    let ask = |arguments: &[&str]| {
        let mut dig = Way::Guarded(&daemon, "dig").command("dig");
        dig.args(["+time=5", "+tries=1", &format!("@{v4}")])
            .args(arguments);
        run::output(&mut dig).unwrap()
    };
    assert_eq!(ask(&["+short", "web.test"]).trim(), v4);
    assert_eq!(ask(&["+short", "txt", "txt.test"]), "\"hello\"\n");
    for (arguments, rule) in [
        (
            &["any", "web.test"][..],
            "dns-names-are-looked-up-for-something",
        ),
        (
            &["+subnet=192.0.2.0/24", "web.test"],
            "dns-names-are-asked-for-alone",
        ),
        (&["use-application-dns.net"], "dns-names-are-looked-up-here"),
        (&["ch", "txt", "version.bind"], "default"),
    ] {
        let said = ask(arguments);
        assert!(said.contains("status: NXDOMAIN"), "{arguments:?}: {said}");
        assert!(said.contains(rule), "{arguments:?}: {said}");
    }
    // 40 characters in each name, over either server: one agent and one domain.
    let mut denied = 0;
    for server in [v4, v6] {
        let mut command = daemon.run_as("tunnel", paths::python().unwrap());
        command
            .arg(paths::client("resolve.py"))
            .args(["flood", server, "300", "tunnel.test"]);
        let said = run::output(&mut command).unwrap();
        let (answered, refused) = said.trim().split_once(' ').unwrap();
        assert_eq!(answered, "300");
        denied += refused.parse::<usize>().unwrap();
    }
    // The server doesn't know any of them and says so too; what reached it is what counts.
    assert_eq!(denied, 600);
    let reached = std::fs::read_to_string(dns.folder().join("log"))
        .unwrap()
        .lines()
        .filter(|line| line.contains("query[A]") && line.contains("tunnel.test"))
        .count();
    // Twice as many where ten minutes end in between.
    assert!((200..=400).contains(&reached), "{reached}");
    let journal = daemon.journal().unwrap();
    let few = journal.mentioning("decision", "dns-few-names-below-one-domain");
    assert_eq!(few.count(), 600 - reached);
    let shown = format!(" A {v4}");
    assert!(journal.mentioning("response", &shown).count() > 0);
}
