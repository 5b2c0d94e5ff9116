//! What is suggested allows what it was made from, and no more than it has to.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Suggesting, Suggestion};
use crate::{
    operation::{Operation, Protocol, recalled::Recalled},
    origin::{Agent, Destination, Origin, Process},
    policy::{
        Outcome, Policy, Recorded,
        decision::{Decision, PolicyHash, Verdict},
        tests::{corpus, describe, described},
    },
    record::Timestamp,
};

fn origin(agent: &str, destination: &str, name: Option<&str>) -> Arc<Origin> {
    Arc::new(Origin {
        agent: Arc::new(Agent {
            name: agent.into(),
            labels: [].into(),
        }),
        process: Process::default(),
        destination: destination.parse::<Destination>().unwrap(),
        names: name.map(Into::into).into_iter().collect(),
    })
}

fn decided(verdict: Verdict, rule: &str, enforced: bool) -> Decision {
    Decision {
        verdict,
        enforced,
        rule: rule.into(),
        reason: "".into(),
        masked_by: [].into(),
        observed: [].into(),
        strict: false,
        policy: PolicyHash([0; 32]),
    }
}

fn allowed() -> Decision {
    decided(Verdict::Allow, "old", true)
}

fn take(suggesting: &mut Suggesting, origin: &Arc<Origin>, operation: &Operation, by: &Decision) {
    let recorded = Recorded {
        origins: vec![origin.clone()],
        open: None,
        recalled: Recalled::whole(operation.clone()),
        within: Vec::new(),
    };
    suggesting.take(operation, by, &Ok(recorded), Timestamp(0));
}

/// The policy that was suggested, after it has passed its own cases.
fn valid(suggestion: &Suggestion) -> Arc<Policy> {
    let files = [
        ("suggested.yaml".to_owned(), suggestion.rules.clone()),
        ("suggested.test.yaml".to_owned(), suggestion.cases.clone()),
    ];
    let policy = Policy::parse(&files);
    let policy = policy.unwrap_or_else(|error| panic!("{error}\n{}", suggestion.rules));
    assert_eq!(policy.rule_count(), suggestion.rule_count);
    assert_eq!(policy.cases().len(), suggestion.case_count);
    // All in one file as well.
    let both = format!("{}{}", suggestion.rules, suggestion.cases);
    let one = Policy::parse(&[("one.yaml".to_owned(), both)]).unwrap();
    assert_eq!(one.cases().len(), suggestion.case_count);
    let policy = Arc::new(policy);
    for case in policy.cases() {
        assert_eq!(case.run(&policy, &describe), Outcome::Passed);
    }
    policy
}

fn verdict(policy: &Arc<Policy>, origin: &Arc<Origin>, operation: &Operation) -> Verdict {
    let mut scope = Policy::scope(policy, origin.clone());
    scope
        .evaluate(operation, Timestamp(0))
        .decision
        .verdict
        .clone()
}

const DATABASE: &str = "192.0.2.9:5432";

/// What is suggested for these statements, all to one database.
fn of_statements(statements: &[&str]) -> (Suggestion, Arc<Policy>) {
    let mut suggesting = Suggesting::new("reporter");
    let origin = origin("reporter", DATABASE, None);
    for statement in statements {
        let operation = described(Protocol::Postgres, statement);
        take(&mut suggesting, &origin, &operation, &allowed());
    }
    let suggestion = suggesting.finish(&describe).unwrap();
    let policy = valid(&suggestion);
    (suggestion, policy)
}

#[test]
fn statements_like_those_that_were_seen_go_and_others_dont() {
    let seen = [
        "BEGIN",
        "SELECT 1",
        "SELECT id, email FROM shop.customers WHERE id = 7",
        "SELECT * FROM orders JOIN shop.customers USING (id)",
        "INSERT INTO shop.orders VALUES (1, 'x')",
        "UPDATE shop.orders SET state = 'done' WHERE id = 1",
        "INSERT INTO archive.orders SELECT * FROM shop.orders WHERE id < 10",
        "SELECT my_function(3)",
        "SELECT \"we.ird\".\"ta*b.le\".a FROM \"we.ird\".\"ta*b.le\"",
        "SET application_name = 'reporter'",
        "SELECT nextval('shop.numbers')",
        "SELEC nonsense \u{202e}\n",
        "COMMIT",
        "",
    ];
    let (suggestion, policy) = of_statements(&seen);
    let origin_of = |agent: &str, to: &str| origin(agent, to, None);
    let own = origin_of("reporter", DATABASE);
    for statement in seen {
        let operation = described(Protocol::Postgres, statement);
        assert_eq!(
            verdict(&policy, &own, &operation),
            Verdict::Allow,
            "{statement}\n{}",
            suggestion.rules
        );
        for stranger in [
            origin_of("other", DATABASE),
            origin_of("reporter", "192.0.2.10:5432"),
        ] {
            assert_eq!(
                verdict(&policy, &stranger, &operation),
                Verdict::Deny,
                "{statement}"
            );
        }
    }
    assert_eq!(suggestion.left_out, 0);
    for statement in [
        // Other values of the same are what a rule can't tell.
        "SELECT id FROM shop.customers WHERE id = 8",
        "INSERT INTO shop.orders VALUES (2, 'y')",
        "ROLLBACK",
    ] {
        let expected = match statement {
            "ROLLBACK" => Verdict::Deny,
            _ => Verdict::Allow,
        };
        let operation = described(Protocol::Postgres, statement);
        assert_eq!(verdict(&policy, &own, &operation), expected, "{statement}");
    }
    for statement in [
        "SELECT 2",
        "SELECT * FROM shop.secrets",
        "SELECT * FROM hr.orders, hr.people",
        "SELECT * FROM shop.customers FOR UPDATE",
        "INSERT INTO shop.customers VALUES (1)",
        "UPDATE shop.customers SET a = 1 WHERE b = 2",
        // No statement without WHERE was seen.
        "UPDATE shop.orders SET state = 'done'",
        "DELETE FROM shop.orders WHERE id = 1",
        "DROP TABLE shop.orders",
        "TRUNCATE shop.orders",
        "SELECT my_function(4)",
        "SELECT other_function(3)",
        "SELECT id, my_function(3) FROM shop.customers",
        "SET application_name = 'other'",
        "COPY shop.customers TO STDOUT",
        "SELECT 1; DROP TABLE shop.orders",
        "SELEC nonsense",
    ] {
        let operation = described(Protocol::Postgres, statement);
        assert_eq!(
            verdict(&policy, &own, &operation),
            Verdict::Deny,
            "{statement}\n{}",
            suggestion.rules
        );
    }
}

#[test]
fn tables_that_are_many_siblings_become_a_pattern() {
    let partitions: Vec<String> = (1..=9)
        .map(|month| format!("SELECT * FROM log.events_2026_0{month}"))
        .collect();
    let statements: Vec<&str> = partitions.iter().map(String::as_str).collect();
    let (few, _) = of_statements(&statements[..7]);
    assert!(!few.rules.contains("events_*"), "{}", few.rules);
    let (many, policy) = of_statements(&statements);
    assert!(
        many.rules.contains("resources: [\"table:log.events_*\"]"),
        "{}",
        many.rules
    );
    let own = origin("reporter", DATABASE, None);
    for (statement, expected) in [
        ("SELECT * FROM log.events_2026_12", Verdict::Allow),
        ("SELECT * FROM log.eventsecrets", Verdict::Deny),
        ("SELECT * FROM events_2026_01", Verdict::Deny),
    ] {
        let operation = described(Protocol::Postgres, statement);
        assert_eq!(verdict(&policy, &own, &operation), expected, "{statement}");
    }
}

#[test]
fn requests_and_questions_are_told_by_host_path_and_name() {
    let mut suggesting = Suggesting::new("web");
    let api = origin("web", "192.0.2.20:443", Some("api.example"));
    let mut requests: Vec<String> = (0..9)
        .map(|id| format!("GET https://api.example/users/{id}?x=y"))
        .collect();
    requests.extend(
        [
            "GET https://api.example/odd/*/{x}",
            "POST https://api.example/orders\nContent-Type: application/json\n\n{\"a\": 1}",
            "GET https://api.example/socket\nConnection: upgrade\nUpgrade: websocket",
        ]
        .map(str::to_owned),
    );
    for text in &requests {
        take(
            &mut suggesting,
            &api,
            &described(Protocol::Http, text),
            &allowed(),
        );
    }
    let engine = origin("web", "unix:/run/docker.sock", None);
    let ping = described(Protocol::Http, "GET http://docker/_ping");
    take(&mut suggesting, &engine, &ping, &allowed());
    let resolver = origin("web", "192.0.2.53:53", None);
    for question in [
        "A api.example",
        "AAAA api.example",
        "MX example.com",
        "AXFR zone.example",
    ] {
        take(
            &mut suggesting,
            &resolver,
            &described(Protocol::Dns, question),
            &allowed(),
        );
    }
    let suggestion = suggesting.finish(&describe).unwrap();
    let policy = valid(&suggestion);
    let said = &suggestion.rules;
    assert!(said.contains("http: {path: \"/users/{id}\"}"), "{said}");
    for text in &requests {
        let operation = described(Protocol::Http, text);
        assert_eq!(
            verdict(&policy, &api, &operation),
            Verdict::Allow,
            "{text}\n{said}"
        );
    }
    assert_eq!(verdict(&policy, &engine, &ping), Verdict::Allow);
    for (text, expected) in [
        ("GET https://api.example/users/10", Verdict::Allow),
        ("GET https://api.example/users/10/keys", Verdict::Deny),
        ("GET https://api.example/users", Verdict::Deny),
        ("POST https://api.example/users/1", Verdict::Deny),
        ("DELETE https://api.example/orders", Verdict::Deny),
        ("GET https://api.example/orders", Verdict::Deny),
        ("GET https://other.example/users/1", Verdict::Deny),
        ("GET http://api.example/users/1", Verdict::Deny),
        (
            "GET https://api.example/users/1\nConnection: upgrade\nUpgrade: websocket",
            Verdict::Deny,
        ),
        (
            "GET https://api.example/users/1\nX-HTTP-Method-Override: DELETE",
            Verdict::Deny,
        ),
    ] {
        let operation = described(Protocol::Http, text);
        assert_eq!(
            verdict(&policy, &api, &operation),
            expected,
            "{text}\n{said}"
        );
    }
    for (question, expected) in [
        ("A api.example", Verdict::Allow),
        ("MX api.example", Verdict::Deny),
        ("A example.com", Verdict::Deny),
        ("A x.api.example", Verdict::Deny),
        ("AXFR zone.example", Verdict::Allow),
        ("A CH api.example", Verdict::Deny),
    ] {
        let operation = described(Protocol::Dns, question);
        assert_eq!(
            verdict(&policy, &resolver, &operation),
            expected,
            "{question}\n{said}"
        );
    }
    for (destination, name) in [
        ("192.0.2.20:443", None),
        ("192.0.2.20:444", Some("api.example")),
    ] {
        let elsewhere = origin("web", destination, name);
        let operation = described(Protocol::Http, "GET https://api.example/users/1");
        assert_eq!(verdict(&policy, &elsewhere, &operation), Verdict::Deny);
    }
}

#[test]
fn what_was_denied_held_or_would_have_been_is_left_out_and_listed() {
    let mut suggesting = Suggesting::new("reporter");
    let own = origin("reporter", DATABASE, None);
    for (statement, decision) in [
        ("SELECT * FROM a", allowed()),
        ("SELECT * FROM b", decided(Verdict::Deny, "default", false)),
        (
            "DROP TABLE a",
            decided(Verdict::Deny, "destruction-is-refused", true),
        ),
        (
            "DROP TABLE b",
            decided(Verdict::Deny, "destruction-is-refused", false),
        ),
        ("DROP TABLE c", decided(Verdict::Deny, "default", true)),
        (
            "INSERT INTO a VALUES (1)",
            decided(Verdict::Hold(Default::default()), "asked", true),
        ),
    ] {
        take(
            &mut suggesting,
            &own,
            &described(Protocol::Postgres, statement),
            &decision,
        );
    }
    let unreadable = described(Protocol::Postgres, "SELECT 2");
    let unknown = Err("its beginning\nis gone\u{1b}[2J".to_owned());
    suggesting.take(&unreadable, &allowed(), &unknown, Timestamp(0));
    let suggestion = suggesting.finish(&describe).unwrap();
    let policy = valid(&suggestion);
    assert_eq!((suggestion.operations, suggestion.left_out), (2, 5));
    let said = &suggestion.rules;
    assert!(
        said.bytes()
            .all(|byte| byte == b'\n' || matches!(byte, b' '..=b'~')),
        "{said}"
    );
    for line in [
        "#   \"DROP TABLE a\": \"denied by rule destruction-is-refused\"\n",
        "#   \"DROP TABLE b\": \"rule destruction-is-refused would deny it\"\n",
        "#   \"DROP TABLE c\": \"denied by rule default\"\n",
        "#   \"INSERT a\": \"held by rule asked\"\n",
        "#   \"SELECT\": \"its beginning\\nis gone\\u001B[2J\"\n",
    ] {
        assert!(said.contains(line), "{line}{said}");
    }
    for (statement, expected) in [
        ("SELECT * FROM a", Verdict::Allow),
        ("SELECT * FROM b", Verdict::Allow),
        ("DROP TABLE a", Verdict::Deny),
        ("INSERT INTO a VALUES (1)", Verdict::Deny),
    ] {
        let operation = described(Protocol::Postgres, statement);
        assert_eq!(verdict(&policy, &own, &operation), expected, "{statement}");
    }
    assert_eq!(Suggesting::new("nobody").finish(&describe), None);
}

/// For whom a suggestion is made, with what was allowed.
type Made = Vec<(Arc<Origin>, Operation)>;

thread_local! {
    static ATTEMPTS: Made = corpus().into_iter().flat_map(|(_, attempts)| attempts).collect();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any part of the packs' corpus.
    #[test]
    fn all_that_it_was_made_from_goes_and_nothing_of_other_agents(
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
        other in any::<prop::sample::Index>(),
    ) {
        let made: Made = ATTEMPTS.with(|attempts| chosen.iter().map(|index| index.get(attempts).clone()).collect());
        let mut suggesting = Suggesting::new("agent");
        for (origin, operation) in &made {
            take(&mut suggesting, origin, operation, &allowed());
        }
        let suggestion = suggesting.finish(&describe).unwrap();
        let policy = valid(&suggestion);
        for (origin, operation) in &made {
            let verdict = verdict(&policy, origin, operation);
            // A statement without WHERE forbids nothing any more.
            prop_assert_eq!(verdict, Verdict::Allow, "{:?}\n{}", operation, suggestion.rules);
        }
        prop_assert_eq!(suggestion.left_out, 0);
        let (origin, operation) = ATTEMPTS.with(|attempts| other.get(attempts).clone());
        let stranger = Arc::new(Origin {
            agent: Arc::new(Agent { name: "other".into(), labels: [].into() }),
            ..(*origin).clone()
        });
        prop_assert_eq!(verdict(&policy, &stranger, &operation), Verdict::Deny);
    }
}
