//! The past, told again from a journal.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use interceptor_core::{
    operation::{
        Operation, Protocol, attribute,
        http::{Body, HttpRequest},
    },
    origin::{Agent, Destination, Origin, Process},
    policy::{Answer, Policy, Replay, Standing, Would},
    record::{
        DecisionRecord, Event, OperationRecord, ResponseRecord, ResponseStatus, SessionEnd,
        SessionId, SessionStart, Timestamp,
    },
    ruling::{Judge, Judgement},
};

use super::{Asked, Counted, Happened, Kind, Past, observed, replay, suggest};
use crate::{
    journal::{Journal, Reader},
    policies,
};

const SECOND: u64 = 1_000_000_000;

/// A journal in the making.
struct Scene {
    folder: tempfile::TempDir,
    journal: Journal,
    sessions: AtomicU64,
}

/// A session in it.
struct Session<'a> {
    scene: &'a Scene,
    id: SessionId,
    origin: Arc<Origin>,
    judge: Judge,
    number: u64,
    time: u64,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        Self {
            folder,
            journal,
            sessions: AtomicU64::new(0),
        }
    }

    fn session(&self, policy: &Arc<Policy>, agent: &str, destination: &str) -> Session<'_> {
        let origin = Arc::new(Origin {
            agent: Arc::new(Agent {
                name: agent.into(),
                labels: [("team".into(), "data".into())].into(),
            }),
            process: Process::default(),
            destination: destination.parse::<Destination>().unwrap(),
            names: Vec::new(),
        });
        let id = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let session = Session {
            scene: self,
            id: SessionId(id),
            judge: Judge::new(policy, origin.clone()),
            origin: origin.clone(),
            number: 0,
            time: id * 1_000 * SECOND,
        };
        session.record(Event::SessionStart(SessionStart {
            origin,
            client: None,
        }));
        session
    }

    /// What the daemon itself has on record.
    fn record(&self, event: Event) {
        self.journal
            .append(None, &Arc::from(""), Timestamp(0), [event])
            .unwrap();
    }

    fn reader(self) -> (tempfile::TempDir, Reader) {
        self.journal.close();
        let reader = Reader::open(self.folder.path()).unwrap();
        (self.folder, reader)
    }
}

impl Session<'_> {
    fn record(&self, event: Event) {
        let agent = Arc::from(&*self.origin.agent.name);
        self.scene
            .journal
            .append(Some(self.id), &agent, Timestamp(self.time), [event])
            .unwrap();
    }

    fn note<const N: usize>(&self, name: &str, detail: [(&str, &str); N]) {
        let detail = detail.map(|(name, value)| (name, value.to_owned()));
        self.record(Event::notice(name, detail));
    }

    /// The destination has these names from here on.
    fn named(&mut self, names: &[&str]) {
        let policy = self.judge.policy().clone();
        self.origin = Arc::new(Origin {
            names: names.iter().map(|name| Box::from(*name)).collect(),
            ..(*self.origin).clone()
        });
        self.judge = Judge::new(&policy, self.origin.clone());
    }

    /// TLS is ended, and proves that the destination is `name`.
    fn secure(&mut self, name: &str) {
        self.note("tls", [("server_name", name)]);
        self.named(&[name]);
    }

    /// Has an operation decided and recorded as sessions do, from what is there of it first to all of it.
    fn attempt(&mut self, stages: &[Operation]) -> u64 {
        self.time += SECOND;
        self.number += 1;
        for operation in stages {
            let decision = match self.judge.judge(operation, Timestamp(self.time)) {
                Judgement::Incomplete => continue,
                Judgement::Permit(permit) => permit.decision().clone(),
                Judgement::Hold(hold) => hold.decision().clone(),
                Judgement::Refuse(decision, _) => decision,
            };
            let number = self.number;
            let operation = operation.clone();
            self.record(Event::Operation(OperationRecord { number, operation }));
            self.record(Event::Decision(DecisionRecord { number, decision }));
            return number;
        }
        panic!("never decided");
    }

    fn statement(&mut self, text: &str) {
        self.attempt(&[described(Protocol::Postgres, text)]);
    }

    fn answered(&self, number: u64, tag: &str) {
        self.record(Event::Response(ResponseRecord {
            number,
            protocol: Protocol::Http,
            status: ResponseStatus::Complete(tag.into()),
            rows: 0,
            bytes: 0,
            elapsed_ns: 0,
            shape: None,
            data: Vec::new(),
            masked: [].into(),
        }));
    }

    fn end(self) {
        self.record(Event::SessionEnd(SessionEnd {
            reason: "finished".into(),
            operations: self.number,
            bytes_from_client: 0,
            bytes_from_upstream: 0,
        }));
    }
}

fn described(protocol: Protocol, text: &str) -> Operation {
    policies::describer()(protocol, text).unwrap()
}

/// What is asked about a request: with a body of known length at once, with chunks of it first without. As text
/// `GET https://host/path`, fields, body.
fn request(text: &str) -> Vec<Operation> {
    let whole = described(Protocol::Http, text);
    let request = whole.http.clone().unwrap();
    if request.fields.get("transfer-encoding").is_none() {
        return vec![whole];
    }
    let coming = Operation {
        content: request.fields.raw().clone(),
        http: Some(Arc::new(HttpRequest {
            body: Body::Coming(None),
            ..(*request).clone()
        })),
        ..whole.clone()
    };
    vec![coming, whole]
}

/// As frames of HTTP/2, with what is known of the body.
fn frames(path: &str, body: &str, content: &str) -> Vec<Operation> {
    let mut whole = described(Protocol::Http, &format!("GET https://web.example{path}"));
    let description = Arc::make_mut(&mut whole.description);
    let attributes = &mut description.attributes;
    attributes.insert("http.version".into(), "2".into());
    attributes.insert(attribute::HTTP_BODY.into(), body.into());
    let head = format!("GET {path} HTTP/2\r\n:authority: web.example\r\naccept: */*\r\n\r\n");
    let with = |body: Body, content: String| Operation {
        content: content.into(),
        http: Some(Arc::new(HttpRequest {
            body,
            ..(**whole.http.as_ref().unwrap()).clone()
        })),
        ..whole.clone()
    };
    if body == "none" {
        return vec![with(Body::None, head)];
    }
    let all = format!("{head}{content}");
    let content = Bytes::from(content.to_owned());
    vec![
        with(Body::Coming(None), head),
        with(Body::Whole(content), all),
    ]
}

fn policy(text: &str) -> Arc<Policy> {
    let policy = Policy::parse(&[("p.yaml".to_owned(), text.to_owned())]);
    Arc::new(policy.unwrap_or_else(|error| panic!("{error}\n{text}")))
}

const RULES: &str = "
rules:
  - {id: reads, match: {protocol: postgres, class: [read]}, action: allow, mask: [{column: email, with: email}]}
  - {id: changes, match: {class: [write]}, action: hold}
  - {id: no-drops, match: {protocol: postgres, action: \"DROP*\"}, action: deny}
  - {id: ours, match: {protocol: http, destination: {name: \"*.example\"}}, action: allow, mask: [{header: set-cookie}]}
  - {id: proxies, match: {protocol: http, action: CONNECT, class: [transfer]}, action: allow}
  - {id: keys-stay, match: {protocol: http, content: \"SECRET\"}, action: deny}
  - {id: no-gpt, match: {protocol: http, http: {json: {$.model: \"gpt*\"}}}, action: deny}
  - {id: large, match: {protocol: http, action: [POST], http: {larger_than: \"20\"}}, action: deny}
  - {id: admins, match: {http: {headers: {authorization: \"Bearer admin*\"}, path: /admin}}, action: deny}
  - {id: names, match: {protocol: dns, dns: {name: \"*\"}}, action: allow}
  - {id: tunnels, match: {dns: {distinct: {over: 2, per: 10m}}}, action: deny}
  - {id: often, match: {agent: busy, rate: {over: 3, per: 1h}}, action: deny}
  - {id: observed, match: {protocol: postgres, action: COPY*}, action: deny, enforce: false}
  - {id: unseen, match: {destination: {name: pinned.example}}, tls: passthrough}
";

fn rules(default: &str) -> String {
    format!("default: {{action: {default}}}\n{RULES}")
}

/// A past in which most of what there is happened, under `policy`.
fn past(policy: &Arc<Policy>) -> Scene {
    let scene = Scene::new();
    scene.record(Event::notice("daemon_started", []));
    let mut session = scene.session(policy, "reporter", "192.0.2.9:5432");
    for statement in [
        "SELECT 1",
        "SELECT * FROM shop.customers",
        "INSERT INTO shop.orders VALUES (1)",
        "DROP TABLE a",
        "COPY shop.customers TO STDOUT",
        "SELEC",
    ] {
        session.statement(statement);
    }
    // What COPY sends is on record under the same number, and isn't decided.
    let rows = OperationRecord {
        number: session.number,
        operation: described(Protocol::Postgres, "DROP TABLE b"),
    };
    session.record(Event::Operation(rows));
    session.statement("SELECT 2");
    session.end();

    let mut session = scene.session(policy, "web", "192.0.2.20:443");
    session.secure("web.example");
    for text in [
        "GET https://web.example/",
        "POST https://web.example/\nContent-Length: 6\n\nSECRET",
        "POST https://web.example/\nContent-Length: 18\nContent-Type: application/json\n\n{\"model\": \"gpt-9\"}",
        "POST https://web.example/\nTransfer-Encoding: chunked\n\nshort",
        "POST https://web.example/\nTransfer-Encoding: chunked\n\n{\"model\": \"gpt-9\"}",
        "POST https://web.example/\nTransfer-Encoding: chunked\n\na body that is much longer",
        "GET https://web.example/other\nAuthorization: Bearer admin-1",
    ] {
        let mut stages = request(text);
        // As it is recorded, without the secret.
        for operation in &mut stages {
            let content = String::from_utf8_lossy(&operation.content).into_owned();
            operation.content = content.replace("admin-1", "[redacted]").into();
        }
        session.attempt(&stages);
    }
    session.attempt(&frames("/h2", "none", ""));
    session.attempt(&frames("/h2", "follows", "{\"model\": \"gpt-9\"}"));
    session.end();

    // In the clear: told by a resolver, looked up, unknown.
    let mut session = scene.session(policy, "web", "192.0.2.21:80");
    session.note(
        "destination_names",
        [("names", "told.example other.example")],
    );
    session.named(&["told.example"]);
    session.attempt(&request("GET http://told.example/"));
    session.note(
        "destination_name",
        [("name", "found.example"), ("known", "true")],
    );
    session.named(&["found.example"]);
    session.attempt(&request("GET http://found.example/"));
    session.note(
        "destination_name",
        [("name", "lost.example"), ("known", "false")],
    );
    session.named(&[]);
    session.attempt(&request("GET http://lost.example/"));
    session.attempt(&request("GET http://192.0.2.21/"));
    session.end();

    // Through a proxy.
    let mut session = scene.session(policy, "web", "192.0.2.22:3128");
    session.note(
        "destination_name",
        [("name", "far.example"), ("known", "false")],
    );
    let connect = described(Protocol::Http, "GET http://far.example/");
    let mut connect = Operation {
        content: Bytes::from_static(
            b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n",
        ),
        ..connect
    };
    let description = Arc::make_mut(&mut connect.description);
    description.actions = [Box::from("CONNECT")].into();
    description.effects = interceptor_core::operation::Effects::TRANSFER;
    description.attributes.remove(attribute::HTTP_PATH);
    let number = session.attempt(&[connect]);
    session.answered(number, "200");
    session.secure("far.example");
    session.attempt(&request("GET https://far.example/"));
    session.end();

    let mut session = scene.session(policy, "web", "192.0.2.53:53");
    for name in ["a", "b", "c", "a"] {
        session.attempt(&[described(Protocol::Dns, &format!("A {name}.example.com"))]);
    }
    session.end();
    for _ in 0..2 {
        let mut session = scene.session(policy, "busy", "192.0.2.9:5432");
        for _ in 0..3 {
            session.time = 10_000 * SECOND;
            session.statement("SELECT 1");
        }
        session.end();
    }
    scene
}

fn counts(replayed: &super::Replayed) -> BTreeMap<String, u64> {
    let said = |said: &super::Said| format!("{} {}", said.answer, said.rule);
    let ways = replayed.ways.iter();
    ways.map(|counted| {
        (
            format!("{} -> {}", said(&counted.way.from), said(&counted.way.to)),
            counted.operations,
        )
    })
    .collect()
}

#[test]
fn the_same_policy_says_the_same_of_all_that_it_decided() {
    for (default, enforce) in [("deny", "true"), ("allow", "true"), ("hold", "false")] {
        let text = format!("enforce: {enforce}\n{}", rules(default));
        let (_folder, reader) = past(&policy(&text)).reader();
        let replayed = replay(&reader, policy(&text), &Asked::default(), 100).unwrap();
        assert_eq!(counts(&replayed), BTreeMap::new(), "{default}");
        assert_eq!(
            (replayed.changed, replayed.decided),
            (0, 32),
            "{default}: {replayed:?}"
        );
        assert_eq!(replayed.undecided, BTreeMap::new(), "{default}");
        // From the middle on: what was counted before counts.
        let asked = Asked {
            since: Some(Timestamp(5_003 * SECOND)),
            agent: None,
        };
        let replayed = replay(&reader, policy(&text), &asked, 100).unwrap();
        assert_eq!(
            (replayed.changed, replayed.decided),
            (0, 8),
            "{default}: {replayed:?}"
        );
    }
}

#[test]
fn a_name_that_a_resolver_told_counts_until_something_else_is_asked_for() {
    const NAMED: &str = "default: {action: deny}\nrules: [{id: it, match: {destination: {name: told.example}}, action: allow}]";
    let scene = Scene::new();
    let mut session = scene.session(&policy(NAMED), "reporter", "192.0.2.9:5432");
    session.note(
        "destination_names",
        [("names", "other.example told.example")],
    );
    session.named(&["other.example", "told.example"]);
    session.statement("SELECT 1");
    session.named(&["other.example"]);
    session.attempt(&request("GET http://other.example/"));
    let (_folder, reader) = scene.reader();
    let replayed = replay(&reader, policy(NAMED), &Asked::default(), 9).unwrap();
    assert_eq!((replayed.decided, replayed.changed), (2, 0), "{replayed:?}");
}

#[test]
fn what_another_policy_would_have_said_is_counted_and_listed() {
    let (_folder, reader) = past(&policy(&rules("deny"))).reader();
    let stricter = rules("deny")
        .replace(
            "class: [read]}, action: allow",
            "class: [read]}, action: hold",
        )
        .replace(
            "id: no-drops, match: {protocol: postgres",
            "id: no-drops-at-all, match: {protocol: postgres",
        )
        .replace(
            "id: changes, match: {class: [write]}, action: hold",
            "id: changes, match: {class: [write]}, action: hold, reviewers: {quorum: 2}",
        )
        .replace(", mask: [{header: set-cookie}]", "");
    let replayed = replay(&reader, policy(&stricter), &Asked::default(), 3).unwrap();
    let ways = counts(&replayed);
    assert_eq!(ways.get("allow reads -> hold reads"), Some(&6), "{ways:?}");
    assert_eq!(
        ways.get("deny no-drops -> deny no-drops-at-all"),
        Some(&1),
        "{ways:?}"
    );
    assert_eq!(
        ways.get("hold changes -> hold changes"),
        Some(&2),
        "{ways:?}"
    );
    let of_kind = |kind| {
        let ways = replayed
            .ways
            .iter()
            .filter(|counted| counted.way.difference == kind);
        ways.map(|counted| counted.operations).sum::<u64>()
    };
    assert_eq!(of_kind(Kind::Rule), 1);
    assert_eq!(of_kind(Kind::Terms), 2);
    assert!(of_kind(Kind::Masks) > 0);
    assert_eq!(replayed.operations.len(), 3);
    assert!(
        replayed
            .operations
            .iter()
            .is_sorted_by_key(|changed| changed.time)
    );
    assert_eq!(
        replayed.changed,
        replayed
            .ways
            .iter()
            .map(|counted| counted.operations)
            .sum::<u64>()
            - 1
    );
    let asked = Asked {
        since: None,
        agent: Some("nobody".to_owned()),
    };
    let replayed = replay(&reader, policy(&stricter), &asked, 3).unwrap();
    assert_eq!((replayed.decided, replayed.first), (0, None));
}

#[test]
fn tls_that_would_be_treated_otherwise_changes_what_was_in_it() {
    let (_folder, reader) = past(&policy(&rules("deny"))).reader();
    for (treatment, expected) in [("deny", "deny tls"), ("passthrough", "passthrough tls")] {
        let text = format!(
            "{}  - {{id: tls, match: {{destination: {{name: web.example}}}}, tls: {treatment}}}\n",
            rules("deny")
        );
        let replayed = replay(&reader, policy(&text), &Asked::default(), 100).unwrap();
        let ways = counts(&replayed);
        let changed = ways.iter().filter(|(way, _)| way.ends_with(expected));
        // What was denied before by a rule is denied by TLS's, too.
        assert_eq!(changed.map(|(_, count)| count).sum::<u64>(), 9, "{ways:?}");
        assert_eq!(ways.values().sum::<u64>(), 9);
    }
}

#[test]
fn what_isnt_on_record_isnt_guessed() {
    let allow = policy("default: {action: allow}");
    let scene = Scene::new();
    let mut session = scene.session(&allow, "web", "192.0.2.20:80");
    // A name that was looked up before that was put on record.
    session.attempt(&request("GET http://web.example/"));
    // A body that nobody needed.
    session.attempt(&request(
        "POST http://192.0.2.20/\nTransfer-Encoding: chunked\n\n{}",
    ));
    // A value that never is on record.
    let mut hidden = request("GET http://192.0.2.20/\nAuthorization: Bearer x");
    hidden[0].content = Bytes::from_static(
        b"GET / HTTP/1.1\r\nHost: 192.0.2.20\r\nAuthorization: Bearer [redacted]\r\n\r\n",
    );
    session.attempt(&hidden);
    session.end();
    // A session of which the beginning is gone.
    let unbegun = Session {
        id: SessionId(99),
        ..scene.session(&allow, "web", "192.0.2.20:80")
    };
    let mut unbegun = unbegun;
    unbegun.statement("SELECT 1");
    let (_folder, reader) = scene.reader();
    let undecided = |rule: &str| {
        let text =
            format!("default: {{action: allow}}\nrules: [{{id: it, match: {rule}, action: deny}}]");
        let replayed = replay(&reader, policy(&text), &Asked::default(), 9).unwrap();
        let why: Vec<_> = replayed.undecided.into_keys().collect();
        (why, replayed.changed, replayed.decided)
    };
    let gone = "the beginning of its session isn't on record any more".to_owned();
    let told = |why: &str| {
        let mut all = vec![gone.clone(), why.to_owned()];
        all.sort();
        all
    };
    assert_eq!(undecided("{protocol: opaque}"), (vec![gone.clone()], 0, 3));
    let name = "whether the destination was known to this host's resolver by the name that it asks for isn't on record";
    // A name that is claimed is enough to restrict, and not to allow.
    assert_eq!(
        undecided("{destination: {name: web.example}}"),
        (vec![gone.clone()], 1, 3)
    );
    let text = "default: {action: deny}\nrules: [{id: it, match: {destination: {name: web.example}}, action: allow}]";
    let replayed = replay(&reader, policy(text), &Asked::default(), 9).unwrap();
    let why: Vec<_> = replayed.undecided.into_keys().collect();
    assert_eq!((why, replayed.changed), (told(name), 2));
    let body = "not all of its body is on record beside it, and a rule looks at that";
    assert_eq!(undecided("{http: {json: {$.a: b}}}"), (told(body), 0, 2));
    let header = "a rule asks for the value of `authorization`, which is never on record";
    assert_eq!(
        undecided("{http: {headers: {authorization: \"Bearer x\"}}}"),
        (told(header), 0, 2)
    );
    // That there is one is.
    assert_eq!(
        undecided("{http: {headers: {authorization: \"*\"}}}"),
        (vec![gone.clone()], 1, 3)
    );
    // And a rule that doesn't match for another reason asks for nothing.
    let elsewhere = "{http: {path: /x, headers: {authorization: \"Bearer x\"}}}";
    assert_eq!(undecided(elsewhere), (vec![gone], 0, 3));
}

#[test]
fn an_operation_of_the_past_is_explained_with_what_came_before_it() {
    let text = rules("deny");
    let (_folder, reader) = past(&policy(&text)).reader();
    let explain = |session: u64, number: u64| {
        super::explain(&reader, &policy(&text), SessionId(session), number, None)
    };
    let (deed, explanation) = explain(1, 4).unwrap();
    assert_eq!(&*deed.decision.rule, "no-drops");
    assert_eq!(
        (explanation.answer, &*explanation.rule),
        (Answer::Deny, "no-drops")
    );
    // All of them, the counts included.
    for (session, operations) in [(1, 7), (2, 9), (3, 4), (4, 2), (5, 4), (6, 3), (7, 3)] {
        for number in 1..=operations {
            let (deed, explanation) = explain(session, number).unwrap();
            assert_eq!(explanation.decision, deed.decision, "{session} {number}");
        }
    }
    let (_, explanation) = explain(5, 3).unwrap();
    let tunnels = explanation
        .rules
        .iter()
        .find(|rule| &*rule.id == "tunnels")
        .unwrap();
    assert_eq!(tunnels.standing, Standing::Decides);
    let error = explain(1, 70).unwrap_err().to_string();
    assert!(
        error.contains("no operation 70 in session 0000000000000001"),
        "{error}"
    );
}

#[test]
fn an_operation_is_explained_as_it_would_be_decided() {
    let (_folder, reader) = past(&policy(&rules("deny"))).reader();
    let without = |text: &str, ids: &[&str]| {
        let lines = text.lines();
        let kept = lines.filter(|line| !ids.iter().any(|id| line.contains(&format!("id: {id},"))));
        kept.collect::<Vec<_>>().join("\n")
    };
    let tls = |treatment: &str| {
        format!(
            "{}  - {{id: tls, match: {{destination: {{name: web.example}}}}, tls: {treatment}}}\n",
            rules("deny")
        )
    };
    for text in [
        rules("deny"),
        rules("allow"),
        // Nobody needs a body, so that what comes in chunks is decided without.
        without(&rules("allow"), &["keys-stay", "no-gpt"]),
        without(&rules("hold"), &["keys-stay", "no-gpt", "often", "tunnels"]),
        tls("deny"),
        tls("passthrough"),
    ] {
        let mut replay = Replay::new(policy(&text));
        let mut past = Past::default();
        let mut decided = 0;
        reader
            .each(|record| {
                match past.take(record) {
                    Some(Happened::Deed(deed)) => {
                        let recorded = deed.recorded.as_ref().unwrap();
                        let explained = replay.explain(recorded, deed.time).unwrap();
                        let again = replay.decide(recorded, deed.time).unwrap();
                        assert_eq!(explained.decision, again.decision, "{text}\n{deed:?}");
                        decided += 1;
                    }
                    Some(Happened::Restart) => replay.forget(),
                    None => {}
                }
                true
            })
            .unwrap();
        assert_eq!(decided, 32);
    }
}

#[test]
fn what_is_only_observed_is_told_by_rule() {
    let text = format!("enforce: false\n{}", rules("deny"));
    let (_folder, reader) = past(&policy(&text)).reader();
    let all = observed(&reader, &Asked::default()).unwrap();
    assert_eq!(all.operations, 32);
    let of = |observed: &observed::Observed, would: Would, rule: &str| {
        let mut rules = observed.rules.iter();
        rules
            .find(|found| found.would == would && &*found.rule == rule)
            .cloned()
    };
    let drops = of(&all, Would::Deny, "no-drops").unwrap();
    assert_eq!(
        (drops.operations, &*drops.example.content),
        (1, "DROP TABLE a")
    );
    assert_eq!(drops.agents, [("reporter".into(), 1)].into());
    let often = of(&all, Would::Deny, "often").unwrap();
    assert_eq!((often.operations, often.agents.len()), (3, 1));
    assert_eq!(of(&all, Would::Hold, "changes").unwrap().operations, 2);
    let masks = of(&all, Would::Mask, "reads").unwrap();
    assert!(masks.operations > 5, "{masks:?}");
    let stopped: u64 = all
        .rules
        .iter()
        .filter(|rule| rule.would != Would::Mask)
        .map(|rule| rule.operations)
        .sum();
    assert_eq!(all.stopped, stopped);
    assert!(
        all.rules
            .is_sorted_by_key(|rule| std::cmp::Reverse(rule.would))
    );
    let asked = Asked {
        since: None,
        agent: Some("busy".to_owned()),
    };
    let busy = observed(&reader, &asked).unwrap();
    assert_eq!((busy.operations, busy.stopped), (6, 3));

    // By a rule alone.
    let (_folder, reader) = past(&policy(&rules("allow"))).reader();
    let alone = observed(&reader, &Asked::default()).unwrap();
    assert_eq!((alone.rules.len(), alone.stopped), (1, 1));
    let copies = of(&alone, Would::Deny, "observed").unwrap();
    assert_eq!(copies.example.content, "COPY shop.customers TO STDOUT");
}

#[test]
fn what_is_suggested_would_have_allowed_what_was() {
    let text = rules("deny");
    let (_folder, reader) = past(&policy(&text)).reader();
    for agent in ["reporter", "web", "busy"] {
        let suggestion = suggest(&reader, agent, &Asked::default()).unwrap().unwrap();
        let files = [
            ("s.yaml".to_owned(), suggestion.rules.clone()),
            ("s.test.yaml".to_owned(), suggestion.cases.clone()),
        ];
        let suggested = Arc::new(
            Policy::parse(&files).unwrap_or_else(|error| panic!("{error}\n{}", suggestion.rules)),
        );
        for (name, outcome) in policies::test(&suggested) {
            assert_eq!(outcome, interceptor_core::policy::Outcome::Passed, "{name}");
        }
        let asked = Asked {
            since: None,
            agent: Some(agent.to_owned()),
        };
        let replayed = replay(&reader, suggested, &asked, 100).unwrap();
        let changed: Vec<_> = replayed
            .ways
            .iter()
            .filter(|Counted { way, .. }| {
                way.from.answer == Answer::Allow && way.to.answer != Answer::Allow
            })
            .collect();
        assert!(changed.is_empty(), "{changed:?}\n{}", suggestion.rules);
        let allowed = replayed.decided - suggestion.left_out;
        assert_eq!(suggestion.operations, allowed, "{}", suggestion.rules);
    }
    assert_eq!(suggest(&reader, "nobody", &Asked::default()).unwrap(), None);
}
