//! The packs, the text of every error, and the engine against a plain reading of its rules.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Outcome, Policy, decision::Verdict};
use crate::{
    operation::{Description, Effects, Operation, Protocol, Resource, ResourceKind, Touch},
    origin::{Agent, Destination, Origin, Process},
    record::Timestamp,
};

fn parse(text: &str) -> Result<Policy, String> {
    Policy::parse(&[("p.yaml".to_owned(), text.to_owned())]).map_err(|error| error.to_string())
}

fn origin() -> Arc<Origin> {
    Arc::new(Origin {
        agent: Arc::new(Agent {
            name: "bot-7".into(),
            labels: [("team".into(), "data".into())].into(),
        }),
        process: Process::default(),
        destination: Destination::Ip("192.0.2.9:5432".parse().unwrap()),
        names: Vec::new(),
    })
}

fn operation(actions: &[&str], effects: Effects, tables: &[(&str, Touch)]) -> Operation {
    let resources = tables.iter().map(|(name, touch)| {
        let (namespace, name) = name
            .split_once('.')
            .map_or((None, *name), |(schema, name)| (Some(schema), name));
        Resource {
            kind: ResourceKind::Table,
            namespace: namespace.map(Into::into),
            name: name.into(),
            touch: *touch,
        }
    });
    Operation {
        protocol: Protocol::Postgres,
        description: Arc::new(Description {
            actions: actions.iter().map(|action| (*action).into()).collect(),
            effects,
            resources: resources.collect(),
            ..Description::default()
        }),
        content: "select 1".into(),
        parameters: [].into(),
        options: Vec::new(),
        http: None,
    }
}

fn rule_for(policy: &str, operation: &Operation) -> String {
    let policy = Arc::new(parse(policy).unwrap());
    let mut scope = Policy::scope(&policy, origin());
    let first = scope.evaluate(operation, Timestamp(0)).decision;
    assert_eq!(
        first,
        scope.evaluate(operation, Timestamp(0)).decision,
        "what is remembered is what was decided"
    );
    first.rule.to_string()
}

const READ: Effects = Effects::READ;
const WRITE: Effects = Effects::WRITE;

#[test]
fn mistakes_are_told_with_their_place_and_a_remedy() {
    let rule = |line: &str| {
        format!("default: {{action: deny}}\nrules:\n  - id: a\n    {line}\n    action: allow\n")
    };
    let hold = |reviewers: &str| {
        format!(
            "default: {{action: deny}}\nrules:\n  - id: a\n    action: hold\n    reviewers: {{{reviewers}}}\n"
        )
    };
    for (text, expected) in [
        ("rules: []".to_owned(), "no default is given; add `default: {action: deny"),
        ("defualt: {action: deny}".to_owned(), "p.yaml:1:1: unknown name `defualt`; did you mean `default`?"),
        (rule("match: {protocl: postgres}"), "p.yaml:4:13: unknown name `protocl`; did you mean `protocol`?"),
        (rule("match: {protocol: postgre}"), "p.yaml:4:23: unknown protocol `postgre`; did you mean `postgres`?"),
        (rule("match: {class: [reed]}"), "unknown class `reed`; did you mean `read`?"),
        (rule("match: {class: []}"), "an empty list matches nothing"),
        (rule("match: {class: }"), "p.yaml:4:"),
        (rule("match: {agent: }"), "p.yaml:4:"),
        (rule("mask:"), "a list belongs here"),
        ("default: {action: deny}\nrules: [{id: a, action: hold, reviewers: {groups: }}]".to_owned(), "a list belongs here"),
        (rule("match: {resources: [\"tabel:x\"]}"), "unknown kind of resource `tabel`; did you mean `table`?"),
        (rule("match: {content: \"(\"}"), "`(` is no regular expression"),
        (rule("match: {destination: {address: 192.0.2.0/33}}"), "`192.0.2.0/33` is no address"),
        (rule("match: {destination: {port: 10-5}}"), "`10-5` is no range of ports"),
        (rule("match: {destination: {socket: docker.sock}}"), "p.yaml:4:35: `docker.sock` is no path of a UNIX socket; `/run/docker.sock`"),
        (rule("match: {destination: {socket: }}"), "p.yaml:4:"),
        (rule("match: {destination: {socket: []}}"), "an empty list matches nothing"),
        (rule("match: {destination: {socket: /run/docker.sock, port: 80}}"), "no destination has both"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {socket: /x}}, tls: deny}]".to_owned(), "TLS to a UNIX socket is always refused"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {socket: /x}}, udp: allow}]".to_owned(), "UNIX sockets have none"),
        (rule("match: {time: {days: [mondy]}}"), "unknown day `mondy`; did you mean `mon`?"),
        (rule("match: {time: {hours: \"9-17\"}}"), "the hours are no span of time"),
        (rule("match: {rate: {over: 3, per: soon}}"), "`soon` is no time"),
        (rule("mask: [{column: x, with: emial}]"), "unknown mask `emial`; did you mean `email`?"),
        (rule("mask: [{pattern: cards}]"), "unknown pattern `cards`; did you mean `card`?"),
        (rule("mask: [{column: x, pattern: card}]"), "one of them"),
        (rule("mask: [{json: a.b}]"), "`a.b` is no path into JSON"),
        (rule("match: {http: {path: users}}"), "`users` is no path"),
        (rule("match: {http: {path: \"/{a b}\"}}"), "a segment is named like `{id}`"),
        (rule("match: {http: {larger_than: much}}"), "`much` is no size"),
        (rule("match: {dns: {nmae: x}}"), "p.yaml:4:19: unknown name `nmae`; did you mean `name`?"),
        (rule("match: {dns: {name: }}"), "p.yaml:4:"),
        (rule("match: {dns: {name: []}}"), "an empty list matches nothing"),
        (rule("match: {dns: {name: .example.com}}"), "p.yaml:4:25: `.example.com` is no name: `*.example.com` is what is below"),
        (rule("match: {dns: {name: \"bücher.example\"}}"), "write `xn--…`"),
        (rule("match: {dns: {name: \"\"}}"), "the root is `.`"),
        (rule("match: {dns: {type: [A, TXTT]}}"), "p.yaml:4:25: unknown type of record `TXTT`; did you mean `TXT`?"),
        (rule("match: {dns: {type: TYPE16}}"), "unknown type of record `TYPE16`"),
        (rule("match: {dns: {option: cokie}}"), "unknown EDNS option `cokie`; did you mean `cookie`?"),
        (rule("match: {dns: {longer_than: 253}}"), "p.yaml:4:32: a name has 253 bytes at most"),
        (rule("match: {dns: {longer_than: many}}"), "p.yaml:4:"),
        (rule("match: {dns: {label_longer_than: 64}}"), "a label has 63 bytes at most"),
        (rule("match: {dns: {entropy_over: 8}}"), "p.yaml:4:33: `8` is no entropy that a name could be over"),
        (rule("match: {dns: {entropy_over: .nan}}"), "is no entropy"),
        (rule("match: {dns: {entropy_over: -1}}"), "is no entropy"),
        (rule("match: {dns: {distinct: {over: 3}}}"), "per"),
        (rule("match: {dns: {distinct: {over: 3, per: soon}}}"), "`soon` is no time"),
        (rule("match: {dns: {distinct: {over: 3, per: 1m}}}"), "p.yaml:4:29: `distinct` tells what is too much"),
        (rule("match: {protocol: postgres, dns: {type: A}}"), "this rule for another protocol: it would never match; set `protocol: dns`"),
        (rule("match: {protocol: dns, http: {path: /x}}"), "no HTTP request"),
        (rule("match: {protocol: dns, resources: [\"table:x\"]}"), "`table:x`: what is asked of the DNS are names"),
        ("default: {action: deny}\nrules: [{id: a, match: {protocol: dns}, action: allow, mask: [{pattern: card}]}]".to_owned(), "answers of the DNS aren't masked"),
        ("default: {action: deny}\nrules: [{id: a, match: {protocol: dns}, action: allow, rewrite: {query: {set: {a: b}}}}]".to_owned(), "goes on as it was asked"),
        ("default: {action: deny}\nrules: [{id: a, match: {dns: {type: A}}, tls: deny}]".to_owned(), "a rule with `tls` is asked before anything else is known"),
        (rule("match: {http: {json: {model: x}}}"), "`model` is no path into JSON"),
        (rule("rewrite: {headers: {set: {Host: x}}}"), "`host` says where a request ends or whom it is for"),
        (rule("match: {http: {path: \"/{a}\", captures: {b: x}}}"), "no path of this rule has a segment `{b}`"),
        (rule("rewrite: {headers: {remove: [\"*\"]}}"), "`*` would remove what says where a request ends"),
        (rule("tls: passthrough"), "a rule with `tls` is asked before anything else is known"),
        (rule("udp: allow"), "a rule with `udp` or `inbound` is for the kernel"),
        ("default: {action: deny}\nrules: [{id: a, udp: allow}]".to_owned(), "say where to"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {address: 192.0.2.1}}, udp: allow}]".to_owned(), "say at which ports"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {address: 192.0.2.1, name: x, port: 9}}, udp: allow}]".to_owned(), "not by both"),
        ("default: {action: deny}\nrules: [{id: a, match: {source: {address: 192.0.2.1}, destination: {address: 192.0.2.1, port: 9}}, udp: allow}]".to_owned(), "datagrams that an agent sends come from the agent"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {address: 192.0.2.1, port: 9}}, inbound: allow}]".to_owned(), "what comes in has come to the agent"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {port: 9}}, inbound: allow, udp: deny}]".to_owned(), "a rule with `udp` or `inbound` is for the kernel"),
        ("default: {action: deny}\nrules: [{id: a, match: {source: {address: 192.0.2.1}}, action: deny}]".to_owned(), "only a rule with `inbound` has a `source`"),
        ("default: {action: deny}\nrules: [{id: a, match: {destination: {port: [1, 3, 5, 7, 9, 11, 13, 15, 17]}}, inbound: allow}]".to_owned(), "more than 8 ranges of ports"),
        (hold("blast_radius: guess"), "p.yaml:5:31: "),
        (rule("reviewers: {quorum: 2}"), "only a rule that holds has reviewers"),
        (hold("quorum: 0"), "a quorum of 0"),
        (hold("people: [alice], quorum: 2"), "a quorum of 2 of 1 people can't be reached"),
        (hold("within: 5m, wait: 6m"), "it can't be longer"),
        (hold("wait: 30s, retry: 0s"), "has to be let by when it does"),
        (hold("retry: soon"), "`soon` is no time"),
        (hold("otherwise: maybe"), "maybe"),
        (hold("within: 5m, escalate: [{after: 5m, groups: [leads]}]"), "nobody is asked after `5m`"),
        (hold("escalate: [{after: 5m, groups: []}]"), "an escalation names `groups`"),
        (hold("security_key: true, otherwise: allow"), "which no security key has signed"),
        (hold("windows: {scope: shape, for: 25h, at_most: 5}"), "longer than a day"),
        (hold("windows: {scope: shape, for: 1h, at_most: 0}"), "from 1 to 10000"),
        (hold("windows: {scope: all, for: 1h, at_most: 1}"), "all"),
        ("default: {action: deny}\nrules: [{id: a, action: deny, mask: [{pattern: card}]}]".to_owned(), "nothing to mask"),
        ("default: {action: deny}\nrules: [{id: a, action: deny}, {id: b, action: allow}]".to_owned(), "can never decide"),
        ("default: {action: deny}\nrules: [{id: a, action: deny, match: {touch: read}}, {id: a, action: allow}]".to_owned(), "ids are unique"),
        ("version: 2\ndefault: {action: deny}".to_owned(), "version 2 of the policy format is not known"),
        ("default: {action: maybe}".to_owned(), "maybe"),
        ("default: [".to_owned(), "p.yaml:"),
    ] {
        let error = parse(&text).expect_err(&text);
        assert!(error.contains(expected), "{text}\n{error}\nexpected {expected}");
    }
}

#[test]
fn a_rule_that_allows_has_to_cover_everything() {
    let policy = "default: {action: deny}\nrules:\n  - {id: reads, match: {class: [read]}, action: allow}\n  \
                  - {id: sales, match: {action: [SELECT, INSERT], resources: [\"sales.*\"]}, action: allow}\n";
    let read = [("sales.a", Touch::Read)];
    assert_eq!(
        rule_for(policy, &operation(&["SELECT"], READ, &read)),
        "reads"
    );
    assert_eq!(
        rule_for(
            policy,
            &operation(&["SELECT", "INSERT"], READ | WRITE, &read)
        ),
        "sales"
    );
    assert_eq!(
        rule_for(
            policy,
            &operation(&["SELECT", "DELETE"], READ | WRITE, &read)
        ),
        "default"
    );
    let both = [("sales.a", Touch::Read), ("hr.b", Touch::Read)];
    assert_eq!(
        rule_for(policy, &operation(&["INSERT"], WRITE, &both)),
        "default"
    );
    // Without its schema it may be anybody's.
    assert_eq!(
        rule_for(
            policy,
            &operation(&["INSERT"], WRITE, &[("a", Touch::Write)])
        ),
        "default"
    );
    // Nor is a rule about tables meant for the unknown code beside them.
    let with_code = operation(&["SELECT"], READ | Effects::EXECUTE, &read);
    assert_eq!(rule_for(policy, &with_code), "default");
    // A rule about tables says nothing about what touches none.
    assert_eq!(
        rule_for(policy, &operation(&["INSERT"], WRITE, &[])),
        "default"
    );
}

#[test]
fn a_rule_that_restricts_needs_only_a_part() {
    let policy = "default: {action: allow}\nrules:\n  - {id: held, match: {class: [write]}, action: hold}\n  \
                  - {id: hr, match: {resources: [\"hr.*\"], touch: write}, action: deny}\n";
    assert_eq!(
        rule_for(policy, &operation(&["SELECT", "DELETE"], READ | WRITE, &[])),
        "held"
    );
    assert_eq!(
        rule_for(
            policy,
            &operation(&["UPDATE"], WRITE, &[("hr.a", Touch::Write)])
        ),
        "hr"
    );
    assert_eq!(
        rule_for(
            policy,
            &operation(&["UPDATE"], WRITE, &[("a", Touch::Write)])
        ),
        "hr"
    );
    assert_eq!(
        rule_for(
            policy,
            &operation(&["SELECT"], READ, &[("hr.a", Touch::Read)])
        ),
        "default"
    );
}

#[test]
fn of_two_that_hold_the_one_that_is_harder_to_convince_counts() {
    let held = operation(&["DELETE"], WRITE, &[("public.orders", Touch::Write)]);
    let hold = |id: &str, reviewers: &str| {
        format!(
            "  - {{id: {id}, match: {{class: write}}, action: hold, reviewers: {{{reviewers}}}}}\n"
        )
    };
    let (plain, two, key) = (
        hold("plain", "groups: [dba]"),
        hold("two", "quorum: 2"),
        hold("key", "security_key: true"),
    );
    for (rules, expected) in [
        (vec![&plain, &two], "two"),
        (vec![&two, &plain], "two"),
        (vec![&plain, &two, &key], "key"),
        (vec![&key, &two, &plain], "key"),
        (vec![&plain, &hold("later", "groups: [ops]")], "plain"),
    ] {
        let rules: String = rules.into_iter().map(String::as_str).collect();
        let policy = format!("default: {{action: allow}}\nrules:\n{rules}");
        assert_eq!(rule_for(&policy, &held), expected, "{policy}");
    }
}

#[test]
fn agents_labels_destinations_and_times_narrow_a_rule() {
    let decide = |condition: &str| {
        let policy = format!(
            "default: {{action: deny}}\nrules: [{{id: it, match: {condition}, action: allow}}]"
        );
        rule_for(&policy, &operation(&["SELECT"], READ, &[])) == "it"
    };
    for (condition, expected) in [
        ("{agent: \"bot-*\"}", true),
        ("{agent: [a, b]}", false),
        ("{labels: {team: d*}}", true),
        ("{labels: {team: web}}", false),
        ("{labels: {other: \"*\"}}", false),
        (
            "{destination: {address: 192.0.2.0/24, port: [1, 5430-5440]}}",
            true,
        ),
        ("{destination: {address: 192.0.2.8}}", false),
        ("{destination: {address: \"2001:db8::/32\"}}", false),
        ("{destination: {port: 80}}", false),
        // The test's clock stands at the epoch, a Thursday at midnight.
        ("{time: {days: [thu], hours: \"23:00-01:00\"}}", true),
        ("{time: {days: [fri]}}", false),
        ("{time: {hours: \"09:00-17:00\"}}", false),
        ("{content: \"(?i)SELECT\"}", true),
        ("{content: DELETE}", false),
    ] {
        assert_eq!(decide(condition), expected, "{condition}");
    }
}

#[test]
fn unix_sockets_are_told_from_addresses() {
    let to = |destination: &str| {
        let mut origin = (*origin()).clone();
        origin.destination = destination.parse().unwrap();
        Arc::new(origin)
    };
    let decide = |condition: &str, destination: &str| {
        let policy = format!(
            "default: {{action: allow}}\nrules: [{{id: it, match: {{destination: {condition}}}, action: deny}}]"
        );
        let policy = Arc::new(parse(&policy).unwrap());
        let mut scope = Policy::scope(&policy, to(destination));
        let operation = operation(&["SELECT"], READ, &[]);
        &*scope.evaluate(&operation, Timestamp(0)).decision.rule == "it"
    };
    let (socket, address) = ("unix:/run/docker.sock", "192.0.2.9:80");
    for (condition, of_socket, of_address) in [
        ("{socket: /run/docker.sock}", true, false),
        ("{socket: [/run/x, \"*.sock\"]}", true, false),
        ("{socket: /run/docker}", false, false),
        ("{address: \"0.0.0.0/0\"}", false, true),
        ("{address: \"::/0\"}", false, false),
        ("{port: 1-65535}", false, true),
    ] {
        assert_eq!(decide(condition, socket), of_socket, "{condition}");
        assert_eq!(decide(condition, address), of_address, "{condition}");
    }
    let operation = operation(&["SELECT"], READ, &[]);
    let [one, other] = [socket, "unix:/run/other.sock"].map(|path| operation.digest(&to(path)));
    assert_ne!(one, other, "an approval is for one of them");
}

#[test]
fn a_rate_lets_by_what_it_says_and_no_more() {
    let text = "default: {action: allow}\nrules: [{id: slow, match: {rate: {over: 2, per: 1m}}, action: deny}]";
    let policy = Arc::new(parse(text).unwrap());
    let mut scope = Policy::scope(&policy, origin());
    let one = operation(&["SELECT"], READ, &[]);
    let mut denied = |second: u64| {
        let decision = scope
            .evaluate(&one, Timestamp(second * 1_000_000_000))
            .decision;
        decision.verdict == Verdict::Deny
    };
    assert_eq!(
        [denied(0), denied(1), denied(2), denied(3)],
        [false, false, true, true]
    );
    assert!(!denied(60), "a new minute");
}

#[test]
fn what_is_remembered_of_a_description_yields_to_rules_about_content() {
    let text = "default: {action: allow}
rules:
  - {id: first, match: {content: 'secret'}, action: hold}
  - {id: second, match: {class: [write]}, action: hold}
  - {id: third, match: {content: 'poison'}, action: deny}
  - {id: fourth, match: {content: 'note', class: [read]}, action: deny, enforce: false}";
    let policy = Arc::new(parse(text).unwrap());
    let mut scope = Policy::scope(&policy, origin());
    let read = operation(&["SELECT"], READ, &[]);
    let write = operation(&["UPDATE"], WRITE, &[]);
    let mut rule = |operation: &Operation, content: &'static str| {
        let mut operation = operation.clone();
        operation.content = content.into();
        let decision = scope.evaluate(&operation, Timestamp(0)).decision;
        (decision.rule.to_string(), observed(&decision))
    };
    for _ in 0..2 {
        assert_eq!(rule(&read, "plain").0, "default");
        assert_eq!(rule(&read, "secret").0, "first");
        assert_eq!(rule(&write, "plain").0, "second");
        // Of equals the one that stands first counts, remembered or not.
        assert_eq!(rule(&write, "secret").0, "first");
        assert_eq!(rule(&write, "poison").0, "third");
        let (name, observed) = rule(&read, "note");
        assert_eq!((&*name, &*observed), ("default", "fourth would deny"));
    }
}

/// What rules would have done that aren't enforced.
fn observed(decision: &crate::ruling::Decision) -> String {
    let observed = decision.observed.iter();
    let observed = observed.map(|one| format!("{} would {}", one.rule, one.would.name()));
    observed.collect::<Vec<_>>().join(", ")
}

#[test]
fn masks_that_are_not_enforced_only_observe() {
    for (rules, class, expected) in [
        (
            "{id: m, action: allow, mask: [{pattern: card}], enforce: false}",
            READ,
            "m would mask",
        ),
        (
            "{id: m, match: {protocol: http}, action: allow, mask: [{pattern: card}], enforce: false}",
            READ,
            "",
        ),
        (
            "{id: m, action: allow, mask: [{pattern: card}], enforce: false}, {id: h, match: {class: write}, action: hold, enforce: false}",
            WRITE,
            "h would hold, m would mask",
        ),
        (
            "{id: m, action: allow, mask: [{pattern: card}], enforce: false}, {id: d, match: {class: write}, action: deny, enforce: false}",
            WRITE,
            "d would deny",
        ),
        (
            "{id: m, action: allow, mask: [{pattern: card}], enforce: false}, {id: d, match: {class: write}, action: deny}",
            WRITE,
            "",
        ),
    ] {
        let policy =
            Arc::new(parse(&format!("default: {{action: allow}}\nrules: [{rules}]")).unwrap());
        let evaluated = Policy::scope(&policy, origin())
            .evaluate(&operation(&["SELECT"], class, &[]), Timestamp(0));
        assert_eq!(observed(&evaluated.decision), expected, "{rules}");
        assert!(evaluated.decision.masked_by.is_empty());
        assert!(evaluated.masks.patterns.is_empty());
    }
}

#[test]
fn what_is_not_enforced_only_observes() {
    let text = "default: {action: allow}\nrules: [{id: no, match: {class: [write]}, action: deny, enforce: false}]";
    let policy = Arc::new(parse(text).unwrap());
    let decision = Policy::scope(&policy, origin())
        .evaluate(&operation(&["UPDATE"], WRITE, &[]), Timestamp(0))
        .decision;
    assert_eq!(
        (&*decision.rule, &decision.verdict),
        ("default", &Verdict::Allow)
    );
    assert_eq!(observed(&decision), "no would deny");
    let policy = Arc::new(
        parse(&format!(
            "enforce: false\n{}",
            text.replace(", enforce: false", "")
        ))
        .unwrap(),
    );
    let decision = Policy::scope(&policy, origin())
        .evaluate(&operation(&["UPDATE"], WRITE, &[]), Timestamp(0))
        .decision;
    assert_eq!(
        (&decision.verdict, decision.enforced),
        (&Verdict::Deny, false)
    );
}

/// The packs with the texts of their cases.
const PACKS: [(&str, &str, &str); 5] = [
    (
        "starter",
        include_str!("../../../../policies/starter.yaml"),
        include_str!("../../../../policies/starter.test.yaml"),
    ),
    (
        "postgres",
        include_str!("../../../../policies/postgres.yaml"),
        include_str!("../../../../policies/postgres.test.yaml"),
    ),
    (
        "dns",
        include_str!("../../../../policies/dns.yaml"),
        include_str!("../../../../policies/dns.test.yaml"),
    ),
    (
        "web",
        include_str!("../../../../policies/web.yaml"),
        include_str!("../../../../policies/web.test.yaml"),
    ),
    (
        "docker",
        include_str!("../../../../policies/docker.yaml"),
        include_str!("../../../../policies/docker.test.yaml"),
    ),
];

/// Operations, each with whose it is.
pub(super) type Attempts = Vec<(Arc<Origin>, Operation)>;

/// Each pack, with what its cases attempt.
pub(super) fn corpus() -> Vec<(Arc<Policy>, Attempts)> {
    let pack = |(name, pack, cases): (&str, &str, &str)| {
        let files = [
            (name.to_owned(), pack.to_owned()),
            (format!("{name}.test"), cases.to_owned()),
        ];
        let policy = Arc::new(Policy::parse(&files).unwrap_or_else(|error| panic!("{error}")));
        let describe = |protocol, text: &str| Some(described(protocol, text));
        let attempts = policy.cases().iter();
        let attempts = attempts.map(|case| case.attempt().operation(&describe).unwrap());
        let attempts = attempts.collect();
        (policy, attempts)
    };
    PACKS.into_iter().map(pack).collect()
}

/// The operation that `text` is in `protocol`, as cases give it.
pub(super) fn described(protocol: Protocol, text: &str) -> Operation {
    describe(protocol, text).unwrap()
}

/// As [`described`], of what may be none.
pub(super) fn describe(protocol: Protocol, text: &str) -> Option<Operation> {
    use crate::protocol::{dns, http, postgres::describe};

    match protocol {
        Protocol::Http => http::describe::example(text),
        Protocol::Dns => dns::describe::example(text),
        _ => {
            let describer = describe::Describer::default();
            let described = describer.describe(text.as_bytes(), describe::Lexing::default());
            Some(Operation {
                protocol: Protocol::Postgres,
                description: described.description.clone(),
                content: text.to_owned().into(),
                parameters: [].into(),
                options: Vec::new(),
                http: None,
            })
        }
    }
}

#[test]
fn the_packs_say_what_their_cases_say() {
    for (policy, _) in corpus() {
        assert!(policy.cases().len() >= 10);
        for case in policy.cases() {
            let describe = |protocol, text: &str| Some(described(protocol, text));
            assert_eq!(case.run(&policy, &describe), Outcome::Passed);
        }
    }
}

#[test]
fn the_packs_stand_beside_each_other() {
    let packs = [
        include_str!("../../../../policies/web.yaml"),
        include_str!("../../../../policies/postgres.yaml"),
        include_str!("../../../../policies/dns.yaml"),
        include_str!("../../../../policies/docker.yaml"),
    ];
    // Each without its default, but for the first.
    let files = packs.iter().enumerate().map(|(place, text)| {
        let (before, rest) = text.split_once("default:").unwrap();
        let (_, rules) = rest.split_once("\n\n").unwrap();
        let text = match place {
            0 => (*text).to_owned(),
            _ => format!("{before}\n{rules}"),
        };
        (format!("{place}.yaml"), text)
    });
    let policy = Policy::parse(&files.collect::<Vec<_>>());
    assert!(
        policy
            .unwrap_or_else(|error| panic!("{error}"))
            .rule_count()
            > 30
    );
}

fn action() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["SELECT", "INSERT", "UPDATE", "DROP TABLE"])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Rules by class and action, read as plainly as they are written.
    #[test]
    fn the_engine_decides_as_a_plain_reading_does(
        rules in prop::collection::vec((0_u8..3, any::<bool>(), 1_u16..16, action()), 0..6),
        actions in prop::collection::vec(action(), 1..3),
        effects in 1_u16..16,
    ) {
        let mut text = "default: {action: hold}\nrules:\n".to_owned();
        let says = ["allow", "hold", "deny"];
        for (index, (action, by_class, classes, name)) in rules.iter().enumerate() {
            let classes: Vec<&str> = Effects::from_bits_truncate(*classes).names().collect();
            let condition = if *by_class { format!("class: [{}]", classes.join(", ")) } else { format!("action: \"{name}\"") };
            text.push_str(&format!("  - {{id: r{index}, match: {{{condition}}}, action: {}}}\n", says[usize::from(*action)]));
        }
        if rules.is_empty() {
            text = text.replace("rules:\n", "");
        }
        let effects = Effects::from_bits_truncate(effects);
        let mut expected = ("default".to_owned(), None);
        for (index, (action, by_class, classes, name)) in rules.iter().enumerate() {
            let classes = Effects::from_bits_truncate(*classes);
            let matches = match (*action == 0, by_class) {
                (true, true) => classes.contains(effects),
                (false, true) => classes.intersects(effects),
                // By action alone, `SELECT` is leave for data, not for what else it may do.
                (true, false) => {
                    actions.iter().all(|one| one == name)
                        && (*name == "DROP TABLE" || !effects.contains(Effects::ADMIN))
                }
                (false, false) => actions.contains(name),
            };
            if matches && expected.1.is_none_or(|weight| *action > weight) {
                expected = (format!("r{index}"), Some(*action));
            }
        }
        prop_assert_eq!(rule_for(&text, &operation(&actions, effects, &[])), expected.0, "{}", text);
    }
}
