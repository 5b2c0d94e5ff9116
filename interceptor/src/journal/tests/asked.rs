//! Which sessions are found: the same by the index, by one made anew, by what stands in for it, and without one.

use std::{path::Path, sync::Arc};

use interceptor_core::{
    operation::{Description, Digest, Effects, Operation, Protocol},
    origin::{Agent, Destination, Origin, Process},
    record::{
        ApprovalId, ApprovalRecord, ApprovalStep, Choice, DecisionRecord, Event, OperationRecord,
        SessionEnd, SessionId, SessionStart, Timestamp,
    },
    ruling::{Decision, HoldTerms, PolicyHash, Verdict},
};

use super::{Journal, Reader, Wanted, durable};
use crate::journal::{Decided, Text, sessions};

/// A session of the test, in a line.
struct Told {
    id: u64,
    agent: &'static str,
    team: &'static str,
    to: &'static str,
    name: &'static str,
    protocol: Protocol,
    effects: Effects,
    verdict: Verdict,
    rule: &'static str,
    by: Option<&'static str>,
    is_over: bool,
}

fn all() -> Vec<Told> {
    let told = |id, agent, team, to, name, protocol, effects, verdict, rule, by, is_over| Told {
        id,
        agent,
        team,
        to,
        name,
        protocol,
        effects,
        verdict,
        rule,
        by,
        is_over,
    };
    let held = Verdict::Hold(HoldTerms::default());
    let (pg, web) = (Protocol::Postgres, Protocol::Http);
    let (read, write, schema) = (Effects::READ, Effects::WRITE, Effects::SCHEMA);
    let (db, api) = ("192.0.2.10:5432", "198.51.100.7:443");
    vec![
        told(
            1,
            "reporter",
            "data",
            db,
            "db.example.com",
            pg,
            read,
            Verdict::Allow,
            "reads",
            None,
            true,
        ),
        told(
            2,
            "reporter",
            "data",
            api,
            "api.example.com",
            web,
            read,
            Verdict::Allow,
            "reads",
            None,
            true,
        ),
        told(
            3,
            "migrator",
            "ops",
            db,
            "db.example.com",
            pg,
            schema,
            Verdict::Deny,
            "no-drops",
            None,
            true,
        ),
        told(
            4,
            "migrator",
            "ops",
            db,
            "",
            pg,
            write | read,
            held.clone(),
            "changes",
            Some("erin"),
            true,
        ),
        told(
            5,
            "reporter",
            "data",
            db,
            "",
            pg,
            write,
            held,
            "changes",
            Some("frank"),
            false,
        ),
        told(
            6,
            "idle",
            "ops",
            api,
            "",
            web,
            read,
            Verdict::Allow,
            "reads",
            None,
            false,
        ),
    ]
}

fn records(told: &Told) -> Vec<Event> {
    let origin = Origin {
        agent: Arc::new(Agent {
            name: told.agent.into(),
            labels: [("team".into(), told.team.into())].into(),
        }),
        process: Process::default(),
        destination: Destination::Ip(told.to.parse().unwrap()),
        names: Vec::new(),
    };
    let mut events = vec![Event::SessionStart(SessionStart {
        origin: Arc::new(origin),
        client: None,
    })];
    if !told.name.is_empty() {
        let names = [("names", told.name.to_owned())];
        events.push(Event::notice("destination_names", names));
    }
    events.push(Event::Operation(OperationRecord {
        number: 1,
        operation: Operation {
            protocol: told.protocol,
            description: Arc::new(Description {
                actions: ["X".into()].into(),
                effects: told.effects,
                ..Description::default()
            }),
            content: "x".into(),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        },
    }));
    events.push(Event::Decision(DecisionRecord {
        number: 1,
        decision: Arc::new(Decision {
            verdict: told.verdict.clone(),
            enforced: true,
            rule: told.rule.into(),
            reason: "".into(),
            masked_by: [].into(),
            observed: [].into(),
            strict: false,
            policy: PolicyHash([0; 32]),
        }),
    }));
    if told.is_over {
        events.push(Event::SessionEnd(SessionEnd {
            reason: "finished".into(),
            operations: 1,
            bytes_from_client: 0,
            bytes_from_upstream: 0,
        }));
    }
    // People may answer when nobody waits any more.
    if let Some(by) = told.by {
        events.push(Event::Approval(ApprovalRecord {
            approval: ApprovalId(told.id),
            number: 1,
            digest: Digest([0; 32]),
            step: ApprovalStep::Voted {
                by: by.into(),
                uid: None,
                choice: Choice::Approve,
                reason: "".into(),
                window: None,
                consent: None,
            },
        }));
    }
    events
}

fn fill(journal: &Journal) {
    for told in all() {
        let agent = Arc::from(told.agent);
        for event in records(&told) {
            let time = Timestamp(told.id * 1_000);
            let seq = journal.append(Some(SessionId(told.id)), &agent, time, [event]);
            // Each in a block of its own.
            durable(journal, seq.unwrap());
        }
    }
}

fn questions() -> Vec<(Wanted, &'static [u64])> {
    let any = Wanted::default;
    vec![
        (any(), &[6, 5, 4, 3, 2, 1]),
        (
            Wanted {
                agent: Some("migrator".into()),
                ..any()
            },
            &[4, 3],
        ),
        (
            Wanted {
                agent: Some("migrat".into()),
                ..any()
            },
            &[],
        ),
        (
            Wanted {
                labels: vec![("team".into(), "data".into())],
                ..any()
            },
            &[5, 2, 1],
        ),
        (
            Wanted {
                labels: vec![("team".into(), "none".into())],
                ..any()
            },
            &[],
        ),
        (
            Wanted {
                since: Some(Timestamp(3_000)),
                ..any()
            },
            &[6, 5, 4, 3],
        ),
        (
            Wanted {
                until: Some(Timestamp(2_000)),
                ..any()
            },
            &[2, 1],
        ),
        (
            Wanted {
                since: Some(Timestamp(2_000)),
                until: Some(Timestamp(4_000)),
                ..any()
            },
            &[4, 3, 2],
        ),
        (
            Wanted {
                protocol: Some(Protocol::Http),
                ..any()
            },
            &[6, 2],
        ),
        (
            Wanted {
                class: Effects::WRITE | Effects::SCHEMA,
                ..any()
            },
            &[5, 4, 3],
        ),
        (
            Wanted {
                verdict: Some(Decided::Deny),
                ..any()
            },
            &[3],
        ),
        (
            Wanted {
                verdict: Some(Decided::Hold),
                ..any()
            },
            &[5, 4],
        ),
        (
            Wanted {
                verdict: Some(Decided::Allow),
                ..any()
            },
            &[6, 2, 1],
        ),
        (
            Wanted {
                rule: Some("changes".into()),
                ..any()
            },
            &[5, 4],
        ),
        (
            Wanted {
                reviewer: Some("erin".into()),
                ..any()
            },
            &[4],
        ),
        (
            Wanted {
                reviewer: Some("frank".into()),
                ..any()
            },
            &[5],
        ),
        (
            Wanted {
                destination: Some("example.com".into()),
                ..any()
            },
            &[3, 2, 1],
        ),
        (
            Wanted {
                destination: Some("192.0.2.".into()),
                ..any()
            },
            &[5, 4, 3, 1],
        ),
        (
            Wanted {
                live: Some(true),
                ..any()
            },
            &[6, 5],
        ),
        (
            Wanted {
                live: Some(false),
                agent: Some("reporter".into()),
                ..any()
            },
            &[2, 1],
        ),
    ]
}

fn ask(how: &str, find: impl Fn(&Wanted, usize) -> Vec<u64>) {
    for (wanted, expected) in questions() {
        assert_eq!(find(&wanted, 10), expected, "{how}: {wanted:?}");
        let first = expected.get(..1).unwrap_or_default();
        assert_eq!(find(&wanted, 1), first, "{how}, the first: {wanted:?}");
    }
}

fn ask_journal(how: &str, journal: &Journal) {
    ask(how, |wanted, limit| {
        let found = journal.sessions(wanted, limit);
        found.iter().map(|session| session.session.0).collect()
    });
}

fn ask_folder(how: &str, folder: &Path) {
    let reader = Reader::open(folder).unwrap();
    ask(how, |wanted, limit| {
        let found = sessions(&reader, wanted, limit).unwrap();
        found.iter().map(|session| session.session.0).collect()
    });
}

#[test]
fn sessions_are_found_by_what_they_were_whoever_is_asked() {
    let folder = super::folder();
    let journal = Journal::open(folder.path()).unwrap();
    fill(&journal);
    ask_journal("as it came", &journal);
    ask_folder("without an index", folder.path());
    journal.close();
    drop(journal);
    let journal = Journal::open(folder.path()).unwrap();
    ask_journal("closed and opened", &journal);
    journal
        .shared
        .index
        .break_sled(|| panic!("as on a damaged medium"));
    ask_journal("from the segments", &journal);
    // Then it isn't sealed.
    journal.close();
    drop(journal);
    let journal = Journal::open(folder.path()).unwrap();
    ask_journal("made anew", &journal);
    journal.close();
}

/// Statements of a session that goes on while others come, in blocks of their own.
pub(super) fn attempt(journal: &Journal, session: u64, number: u64, statement: &str) -> u64 {
    let event = Event::Operation(OperationRecord {
        number,
        operation: Operation {
            protocol: Protocol::Postgres,
            description: Arc::new(Description::default()),
            content: statement.to_owned().into(),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        },
    });
    let agent = Arc::from("reporter");
    let time = Timestamp(1_000_000 + session);
    journal
        .append(Some(SessionId(session)), &agent, time, [event])
        .unwrap()
}

fn begin(journal: &Journal, session: u64) {
    let origin = Origin {
        agent: Arc::new(Agent {
            name: "reporter".into(),
            labels: [].into(),
        }),
        process: Process {
            pid: 7,
            uid: 0,
            executable: None,
            arguments: Default::default(),
            cgroup: "/x".into(),
            network_namespace: None,
        },
        destination: Destination::Ip(([192, 0, 2, 10], 5_432).into()),
        names: Vec::new(),
    };
    let start = Event::SessionStart(SessionStart {
        origin: Arc::new(origin),
        client: None,
    });
    let agent = Arc::from("reporter");
    let time = Timestamp(1_000_000 + session);
    journal
        .append(Some(SessionId(session)), &agent, time, [start])
        .unwrap();
}

/// Three sessions over several blocks: 3 begins last, and 1 goes on longest.
fn say(journal: &Journal) {
    begin(journal, 1);
    durable(journal, attempt(journal, 1, 1, "SELECT * FROM shop.orders"));
    begin(journal, 2);
    attempt(journal, 2, 1, "DROP TABLE customers");
    durable(
        journal,
        attempt(journal, 2, 2, "select Note from SHOP.Orders"),
    );
    begin(journal, 3);
    durable(
        journal,
        attempt(journal, 3, 1, "DROP INDEX table_of_customers"),
    );
    durable(journal, attempt(journal, 1, 2, "DELETE\n  FROM  users"));
}

const SAID: [(&str, &[u64]); 14] = [
    ("shop.orders", &[2, 1]),
    ("ORDERS", &[2, 1]),
    ("orders delete", &[1]),
    ("drop", &[3, 2]),
    ("drop customers", &[2]),
    ("customers*", &[2]),
    ("table*", &[3, 2]),
    ("\"drop table\"", &[2]),
    ("\"delete from users\" orders", &[1]),
    ("\"orders delete\"", &[]),
    ("from", &[2, 1]),
    ("delete drop", &[]),
    ("nowhere", &[]),
    ("shop.*", &[2, 1]),
];

fn search_journal(how: &str, journal: &Journal) {
    for (text, expected) in SAID {
        let wanted = Wanted {
            text: Some(Arc::new(Text::parse(text).unwrap())),
            ..Wanted::default()
        };
        for limit in [10, 1] {
            let found = journal.find(&wanted, limit).unwrap();
            assert_eq!(found.stopped, None);
            let found: Vec<u64> = found.sessions.iter().map(|one| one.session.0).collect();
            let expected = expected.get(..limit.min(expected.len())).unwrap();
            assert_eq!(found, expected, "{how}: {text}, {limit}");
        }
    }
}

#[test]
fn texts_are_found_whoever_is_asked() {
    let folder = super::folder();
    let journal = Journal::open(folder.path()).unwrap();
    say(&journal);
    search_journal("as it came", &journal);
    let reader = Reader::open(folder.path()).unwrap();
    for (text, expected) in SAID {
        let wanted = Wanted {
            text: Some(Arc::new(Text::parse(text).unwrap())),
            ..Wanted::default()
        };
        let found = sessions(&reader, &wanted, 10).unwrap();
        let found: Vec<u64> = found.iter().map(|one| one.session.0).collect();
        assert_eq!(found, expected, "without an index: {text}");
    }
    journal.close();
    drop(journal);
    let journal = Journal::open(folder.path()).unwrap();
    search_journal("closed and opened", &journal);
    // A session that is in several runs by now.
    attempt(&journal, 3, 2, "VACUUM shop.orders");
    let wanted = |text| Wanted {
        text: Some(Arc::new(Text::parse(text).unwrap())),
        ..Wanted::default()
    };
    durable(&journal, journal.last_seq());
    let found = journal.find(&wanted("index vacuum"), 10).unwrap().sessions;
    assert_eq!(found.first().map(|one| one.session.0), Some(3));
    journal.close();
    drop(journal);
    let journal = Journal::open(folder.path()).unwrap();
    for text in ["index vacuum", "vacu* drop", "\"vacuum shop.orders\" index"] {
        let found = journal.find(&wanted(text), 10).unwrap().sessions;
        assert_eq!(found.len(), 1, "{text}");
    }
    journal
        .shared
        .index
        .break_sled(|| panic!("as on a damaged medium"));
    let found = journal.find(&wanted("index vacuum"), 10).unwrap();
    assert_eq!((found.sessions.len(), found.stopped), (1, None));
    journal.close();
    drop(journal);
    // It wasn't sealed, and is made anew.
    let journal = Journal::open(folder.path()).unwrap();
    let found = journal.find(&wanted("index vacuum"), 10).unwrap();
    assert_eq!(found.sessions.len(), 1);
    journal.close();
}

#[test]
fn a_statement_with_more_words_than_there_is_memory_for_is_found_by_any_of_them() {
    let folder = super::folder();
    let journal = Journal::open(folder.path()).unwrap();
    begin(&journal, 1);
    attempt(&journal, 1, 1, "the first");
    // Several runs' worth.
    let many: Vec<String> = (0..700_000).map(|word| format!("w{word}")).collect();
    attempt(&journal, 1, 2, &many.join(" "));
    begin(&journal, 2);
    durable(&journal, attempt(&journal, 2, 1, "w699999 last"));
    for (text, expected) in [
        ("w0", &[1][..]),
        ("w350000 first", &[1]),
        ("w699999", &[2, 1]),
        ("first w1 w399999 w699999", &[1]),
        ("w699999 last", &[2]),
        ("w70000*", &[1]),
        ("\"w5 w6 w7\" w123456", &[1]),
    ] {
        let wanted = Wanted {
            text: Some(Arc::new(Text::parse(text).unwrap())),
            ..Wanted::default()
        };
        let found = journal.find(&wanted, 10).unwrap().sessions;
        let found: Vec<u64> = found.iter().map(|one| one.session.0).collect();
        assert_eq!(found, expected, "{text}");
    }
    journal.close();
}
