//! That an explanation says what is decided, and in words that tell why.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Answer, Explanation, Standing};
use crate::{
    operation::{Operation, Protocol},
    origin::{Agent, Destination, Origin, Process},
    policy::{Policy, tests::corpus},
    record::Timestamp,
};

fn policy(text: &str) -> Arc<Policy> {
    let files = [("p.yaml".to_owned(), text.to_owned())];
    Arc::new(Policy::parse(&files).unwrap_or_else(|error| panic!("{error}\n{text}")))
}

/// The explanation, after it has been held to what is decided.
fn explained(
    policy: &Arc<Policy>,
    operation: &Operation,
    origin: &Arc<Origin>,
    now: Timestamp,
) -> Explanation {
    let explanation = Policy::explain(policy, operation, origin, now);
    let decision = Policy::scope(policy, origin.clone())
        .evaluate(operation, now)
        .decision;
    assert_eq!(explanation.decision, decision);
    assert_eq!(explanation.answer, Answer::from(&decision.verdict));
    assert_eq!(explanation.rule, decision.rule);
    let deciding: Vec<_> = explanation
        .rules
        .iter()
        .filter(|rule| rule.standing == Standing::Decides)
        .map(|rule| &*rule.id)
        .collect();
    match &*decision.rule {
        "default" => assert_eq!(deciding, [""; 0]),
        rule => assert_eq!(deciding, [rule]),
    }
    for rule in &explanation.rules {
        assert!(!rule.why.is_empty(), "{rule:?}");
        let masks = decision.masked_by.iter().any(|id| **id == *rule.id);
        assert_eq!(rule.masks, masks, "{rule:?}");
    }
    explanation
}

#[test]
fn every_case_of_every_pack_is_explained_as_it_is_decided_by_every_pack() {
    let packs = corpus();
    let mut explanations = 0;
    for (policy, _) in &packs {
        for (origin, operation) in packs.iter().flat_map(|(_, attempts)| attempts) {
            // Saturday, 1970-01-03, at 12:00.
            for now in [0, 216_000] {
                explained(policy, operation, origin, Timestamp(now * 1_000_000_000));
                explanations += 1;
            }
        }
    }
    assert!(explanations > 1_000, "{explanations}");
}

/// Conditions for rules, each of which some of the corpus meets and some doesn't.
const CONDITIONS: [&str; 24] = [
    "{}",
    "{agent: agent}",
    "{agent: \"bot-*\"}",
    "{labels: {team: data}}",
    "{destination: {address: 169.254.0.0/16}}",
    "{destination: {port: [53, 80, 443]}}",
    "{destination: {name: \"*.org\"}}",
    "{destination: {socket: \"*/docker.sock\"}}",
    "{protocol: postgres}",
    "{protocol: http}",
    "{class: [read]}",
    "{class: [write, schema, execute]}",
    "{action: [SELECT, GET, A]}",
    "{resources: [customers, \"url:pypi.org*\"]}",
    "{touch: read}",
    "{attributes: {where: absent}}",
    "{content: \"(?i)key|customers\"}",
    "{http: {path: [\"/v1.48/*\", \"/simple/{name}/\"]}}",
    "{http: {json: {\"$.Image\": web}}}",
    "{http: {content_type: \"*json*\", larger_than: \"10\"}}",
    "{dns: {name: \"*.example.com\"}}",
    "{dns: {longer_than: 30}}",
    "{time: {days: [sat], hours: \"09:00-17:00\"}}",
    "{rate: {over: 0, per: 1m}}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_policy_is_explained_as_it_decides(
        rules in prop::collection::vec(
            (prop::sample::select(CONDITIONS.to_vec()), 0_u8..3, prop::bool::weighted(0.9), any::<bool>()),
            0..6,
        ),
        chosen in any::<prop::sample::Index>(),
        saturday in any::<bool>(),
    ) {
        let mut text = "default: {action: hold}\nrules:\n".to_owned();
        for (index, (condition, says, enforced, masks)) in rules.iter().enumerate() {
            let says = ["allow", "hold", "deny"][usize::from(*says)];
            let mask = match condition.contains("dns") || !masks || says == "deny" {
                true => "",
                false => ", mask: [{pattern: card}]",
            };
            text.push_str(&format!(
                "  - {{id: r{index}, match: {condition}, action: {says}, enforce: {enforced}{mask}}}\n"
            ));
        }
        if rules.is_empty() {
            text = text.replace("rules:\n", "");
        }
        // A rule behind one that denies everything is an error.
        let files = [("p.yaml".to_owned(), text)];
        prop_assume!(Policy::parse(&files).is_ok());
        let policy = policy(&files[0].1);
        thread_local! {
            static ATTEMPTS: Vec<(Arc<Origin>, Operation)> =
                corpus().into_iter().flat_map(|(_, attempts)| attempts).collect();
        }
        let (origin, operation) = ATTEMPTS.with(|attempts| chosen.get(attempts).clone());
        let now = if saturday { 216_000 } else { 0 };
        explained(&policy, &operation, &origin, Timestamp(now * 1_000_000_000));
    }
}

#[test]
fn the_first_condition_that_isnt_met_is_said() {
    let postgres = |text: &str| crate::policy::tests::described(Protocol::Postgres, text);
    let web = |text: &str| crate::policy::tests::described(Protocol::Http, text);
    let dns = |text: &str| crate::policy::tests::described(Protocol::Dns, text);
    for (operation, condition, allows, expected) in [
        (postgres("SELECT 1"), "{agent: [\"billing-*\", x]}", "agent is `ci`, the rule is for `billing-*` or `x`", true),
        (postgres("SELECT 1"), "{labels: {team: web}}", "label `team` is `data`, the rule is for `web`", true),
        (postgres("SELECT 1"), "{labels: {tier: \"1\"}}", "there is no label `tier`, the rule is for `1`", true),
        (postgres("SELECT 1"), "{destination: {address: [10.0.0.0/8, 192.0.2.1]}}", "destination is 192.0.2.9:5432, the rule is for 10.0.0.0/8 or 192.0.2.1", true),
        (postgres("SELECT 1"), "{destination: {port: [80, 90-99]}}", "destination is 192.0.2.9:5432, the rule is for port 80 or 90-99", false),
        (postgres("SELECT 1"), "{destination: {socket: /run/docker.sock}}", "the rule is for the UNIX socket `/run/docker.sock`", true),
        (postgres("SELECT 1"), "{protocol: http}", "protocol is postgres, the rule is for http", true),
        (postgres("DROP TABLE a"), "{action: SELECT}", "action is `DROP TABLE`, the rule is for `SELECT`", true),
        (postgres("SELECT 1; DROP TABLE a"), "{action: SELECT}", "`DROP TABLE` is among its actions, the rule allows `SELECT` alone", true),
        (postgres("DROP TABLE a"), "{class: [read, write]}", "its class is schema, the rule is for read or write", false),
        (postgres("SELECT f(a) FROM b"), "{class: [read]}", "as well, the rule allows read alone", true),
        (postgres("SELECT f(a) FROM b"), "{action: SELECT}", "it is execute as well, which a rule that allows has to name under `class`", true),
        (postgres("SELECT * FROM a, hr.b"), "{resources: [a]}", "it touches `table:hr.b` (read), the rule is for `table:a` alone", true),
        (postgres("SELECT * FROM a"), "{resources: [\"hr.*\"], touch: write}", "it touches `table:a` (read), the rule is for `table:hr.*`, written", false),
        (postgres("SELECT 1"), "{resources: [a]}", "it touches nothing that the rule could mean", true),
        (postgres("SELECT 1"), "{destination: {name: db.example}}", "destination is 192.0.2.9:5432, of which no name is known, the rule is for `db.example`", true),
        (web("GET https://a.example/x"), "{destination: {name: b.example}}", "nothing proves that the destination is `a.example`, the rule is for `b.example`", true),
        (postgres("DELETE FROM a WHERE b"), "{attributes: {where: absent}}", "there is no attribute `where`, the rule is for `absent`", false),
        (postgres("SELECT 1"), "{content: secret}", "its content doesn't match `secret`", false),
        (postgres("SELECT 1"), "{http: {path: /x}}", "the rule is for HTTP requests, and this is none", false),
        (web("GET https://a.example/x?b=c"), "{http: {path: [/y, \"/{id}/z\"]}}", "path is `/x`, the rule is for `/y` or `/{id}/z`", true),
        (web("GET https://a.example/x?b=c"), "{http: {query: {b: d}}}", "`b` of the query is `c`, the rule is for `d`", true),
        (web("GET https://a.example/x?b=c"), "{http: {headers: {X-A: d}}}", "there is no header field `X-A`, the rule is for `d`", true),
        (web("GET https://a.example/x"), "{http: {content_type: \"*json\"}}", "it says of no body what that is", true),
        (web("POST https://a.example/x\n\nabc"), "{http: {larger_than: 1KiB}}", "its body has 3 bytes, the rule is for more than 1024", true),
        (web("POST https://a.example/x\n\n{\"a\": 1}"), "{http: {json: {$.a: \"2\"}}}", "its body isn't JSON where `$.a` is `2`", true),
        (dns("TXT a.example.com"), "{dns: {type: [A, AAAA]}}", "it asks for TXT, the rule is for `A` or `AAAA`", true),
        (dns("TXT a.example.com"), "{dns: {name: example.com}}", "it asks for `a.example.com`, the rule is for `example.com`", true),
        (dns("TXT a.example.com"), "{dns: {option: cookie}}", "it uses no extension, the rule is for `cookie`", false),
        (dns("TXT a.example.com"), "{dns: {longer_than: 30}}", "its name has 13 bytes, the rule is for more than 30", false),
        (dns("TXT a.example.com"), "{dns: {label_longer_than: 30}}", "the longest label has 7 bytes, the rule is for more than 30", false),
        (dns("TXT a.example.com"), "{dns: {entropy_over: 3.5}}", "its name has 0.00 bits a character, the rule is for more than 3.5", false),
        (dns("TXT a.example.com"), "{dns: {distinct: {over: 2, per: 10m}}}", "2 different ones below a domain by every 10m", false),
        (dns("AXFR example.com"), "{dns: {name: \"*\"}}", "it is more than a question", true),
        (postgres("SELECT 1"), "{dns: {}}", "the rule is for questions to the DNS, and this is none", false),
        (postgres("SELECT 1"), "{time: {days: [mon, tue], hours: \"09:00-17:30\"}}", "it is thu 00:00 UTC, the rule is for mon and tue, 09:00 to 17:30", false),
        (postgres("SELECT 1"), "{rate: {over: 3, per: 1h}}", "it would be number 1 of agent `ci` in these 1h, and the rule lets 3 by", false),
    ]
    .map(|(operation, condition, expected, allows)| (operation, condition, allows, expected))
    {
        let says = if allows { "allow" } else { "deny" };
        let text = format!(
            "default: {{action: hold}}\nrules: [{{id: it, match: {condition}, action: {says}}}]"
        );
        let explanation = explained(&policy(&text), &operation, &ci(), Timestamp(0));
        let [rule] = &*explanation.rules else {
            panic!("{explanation:?}");
        };
        assert_eq!(rule.standing, Standing::Unmet, "{condition}: {}", rule.why);
        assert!(rule.why.contains(expected), "{condition}: {}", rule.why);
    }
}

fn ci() -> Arc<Origin> {
    Arc::new(Origin {
        agent: Arc::new(Agent {
            name: "ci".into(),
            labels: [("team".into(), "data".into())].into(),
        }),
        process: Process::default(),
        destination: Destination::Ip("192.0.2.9:5432".parse().unwrap()),
        names: Vec::new(),
    })
}

#[test]
fn rules_that_match_and_dont_decide_say_what_goes_before_them() {
    let policy = policy(
        "default: {action: deny}\nrules:\n  \
         - {id: reads, match: {class: [read]}, action: allow, mask: [{column: email, with: email}]}\n  \
         - {id: asked, match: {action: SELECT}, action: hold}\n  \
         - {id: asked-too, match: {protocol: postgres}, action: hold}\n  \
         - {id: observed, match: {agent: ci}, action: deny, enforce: false}\n  \
         - {id: web, match: {protocol: http}, action: allow, mask: [{header: set-cookie}]}\n  \
         - {id: unseen, match: {destination: {name: pinned.example}}, tls: passthrough}\n  \
         - {id: clocks, match: {destination: {address: 192.0.2.0/24, port: 123}}, udp: allow}\n",
    );
    let select = crate::policy::tests::described(Protocol::Postgres, "SELECT 1");
    let explanation = explained(&policy, &select, &ci(), Timestamp(0));
    let found: Vec<_> = explanation
        .rules
        .iter()
        .map(|rule| (&*rule.id, rule.standing, rule.masks, &*rule.why))
        .collect();
    assert_eq!(
        found,
        [
            (
                "reads",
                Standing::Outranked,
                true,
                "matches, but `asked` decides, which is stricter"
            ),
            ("asked", Standing::Decides, false, "matches"),
            (
                "asked-too",
                Standing::Outranked,
                false,
                "matches, but `asked` decides, which says the same and stands before it"
            ),
            (
                "observed",
                Standing::Observes,
                false,
                "matches and would deny it, but is not enforced"
            ),
            (
                "web",
                Standing::Unmet,
                false,
                "protocol is postgres, the rule is for http"
            ),
            (
                "unseen",
                Standing::NotAsked,
                false,
                "it is asked when a TLS connection begins"
            ),
            (
                "clocks",
                Standing::NotAsked,
                false,
                "it is about UDP or who may come in, which the kernel decides"
            ),
        ]
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["answer"], "hold");
    assert_eq!(json["rules"][0]["standing"], "outranked");
    assert_eq!(json["rules"][6]["says"], serde_json::Value::Null);
}

#[test]
fn a_tls_connection_is_explained_by_the_rules_that_are_asked_of_it() {
    let policy = policy(
        "default: {action: deny}\nrules:\n  \
         - {id: unseen, match: {destination: {name: \"*.example\"}}, tls: passthrough}\n  \
         - {id: never, match: {destination: {name: \"evil.*\"}}, tls: deny}\n  \
         - {id: of-others, match: {agent: x}, tls: deny}\n",
    );
    let connect = |name: &str| {
        let mut operation = crate::policy::tests::described(Protocol::Postgres, "SELECT 1");
        operation.protocol = Protocol::Tls;
        let description = Arc::make_mut(&mut operation.description);
        let attributes = &mut description.attributes;
        attributes.insert("tls.server_name".into(), name.into());
        let explanation = Policy::explain(&policy, &operation, &ci(), Timestamp(0));
        let decided = policy.tls(&ci(), Some(name).filter(|name| !name.is_empty()));
        assert_eq!(explanation.decision, decided.decision);
        assert_eq!(explanation.answer, Answer::from(decided.treatment));
        let said: Vec<_> = explanation
            .rules
            .iter()
            .map(|rule| rule.why.clone())
            .collect();
        (explanation.answer, explanation.rule.to_string(), said)
    };
    let of_others = "agent is `ci`, the rule is for `x`".to_owned();
    let never = |name: &str| format!("the client asks for `{name}`, the rule is for `evil.*`");
    assert_eq!(
        connect("a.example"),
        (
            Answer::Passthrough,
            "unseen".to_owned(),
            vec!["matches".to_owned(), never("a.example"), of_others.clone()]
        )
    );
    assert_eq!(connect("evil.example").0, Answer::Deny);
    assert_eq!(
        connect(""),
        (
            Answer::Intercept,
            "default".to_owned(),
            vec![
                "the client names no server, the rule is for `*.example`".to_owned(),
                "the client names no server, the rule is for `evil.*`".to_owned(),
                of_others
            ]
        )
    );
}
