//! What a reviewer sees.

use serde_json::json;

use interceptor_core::{record::Timestamp, ruling::Cause};

use super::*;

pub(in super::super) fn detail(statement: &str) -> Detail {
    serde_json::from_value(json!({
        "id": "00000000000000ff",
        "state": "pending",
        "session": "0000000000000001",
        "number": 3,
        "agent": "reporter",
        "labels": {"team": "data"},
        "process": {
            "pid": 7, "uid": 1000, "executable": "/usr/bin/psql",
            "arguments": ["psql", "-c", "it's"], "cgroup": "/agents/reporter"
        },
        "destination": "192.0.2.1:5432",
        "protocol": "postgres",
        "action": "DELETE",
        "effects": ["write"],
        "resources": [{"kind": "table", "namespace": "shop", "name": "orders", "touch": "write"}],
        "digest": format!("sha256:{}", "ab".repeat(32)),
        "rule": "writes-wait",
        "reason": "a person looks first",
        "policy": "sha256:00",
        "groups": ["dba"],
        "quorum": 2,
        "people": ["erin"],
        "reason_required": false,
        "otherwise": "deny",
        "windows": {"scope": "shape", "seconds": 900, "at_most": 20},
        "waits": true,
        "retry": 900,
        "votes": [{"by": "alice", "choice": "approve", "reason": "fine", "time": "2026-11-20T22:00:30Z"}],
        "requested": "2026-11-20T22:00:00Z",
        "until": "2026-11-20T22:15:00Z",
        "yours": {"may": ["deny"], "why": "`carol` owns agent `reporter`", "override": false},
        "content": {"text": statement},
        "parameters": [
            {"format": "text", "type_oid": 25, "value": "x"},
            {"format": "binary", "type_oid": 23, "value": "65", "hex": "00000041"},
            {"format": "binary", "type_oid": 9_999, "value": {"hex": "00ff"}, "hex": "00ff"},
            {"format": "text", "type_oid": 0, "value": null}
        ],
        "options": [["row_limit", "1"]],
    }))
    .unwrap()
}

fn at(time: &str) -> Timestamp {
    crate::rfc3339::parse(time).unwrap()
}

#[test]
fn a_reviewer_sees_everything() {
    assert_eq!(
        text(
            &detail("DELETE FROM shop.orders\nWHERE id = $1"),
            &Past::default(),
            at("2026-11-20T22:05:00Z"),
            false
        ),
        "\
approval     00000000000000ff
state        waits for 1 of 2 votes, 10m left
agent        reporter (team=data)
process      /usr/bin/psql (pid 7, uid 1000, cgroup /agents/reporter)
command      psql -c 'it'\\''s'
destination  192.0.2.1:5432 (postgres)
action       DELETE
in words     Deletes the rows of shop.orders where id = $1.
effects      write
touches      shop.orders (write)
held by      writes-wait
because      a person looks first
reviewers    dba, erin
you may      deny: `carol` owns agent `reporter`
windows      --also shape or less, for up to 15m, up to 20 times
vote         approved by alice: fine at 2026-11-20 22:00:30Z
requested    2026-11-20 22:00:00Z
until        2026-11-20 22:15:00Z
session      0000000000000001, operation 3
digest       sha256:abababababababababababababababababababababababababababababababab
policy       sha256:00

Exactly this would run:
  | DELETE FROM shop.orders
  | WHERE id = $1
With these values:
  | $1 = 'x'
  | $2 = '65' (binary, type 23, 0x00000041)
  | $3 = bytes (binary, type 9999, 0x00ff)
  | $4 = NULL
And these options:
  | row_limit = 1
"
    );
}

#[test]
fn a_statement_cannot_forge_what_is_around_it() {
    let shown = text(
        &detail("SELECT 1\nstate        approved\u{1b}[10A\u{202e}"),
        &Past::default(),
        at("2026-11-20T22:05:00Z"),
        false,
    );
    assert!(!shown.contains(['\u{1b}', '\u{202e}']));
    assert_eq!(
        shown
            .lines()
            .filter(|line| line.starts_with("state "))
            .count(),
        1
    );
    assert!(shown.contains("  | state        approved\\u{1b}[10A\\u{202e}\n"));
    assert!(shown.contains("2 characters above would not show as written"));
}

#[test]
fn a_reviewer_is_told_in_words_and_warned() {
    let shown = |detail: &Detail| text(detail, &Past::default(), at("2026-11-20T22:05:00Z"), true);
    let all = detail("DELETE FROM shop.orders WHERE '\u{202e}' = '\u{202e}'");
    let words =
        "Deletes EVERY row of shop.orders (its WHERE, '\\u{202e}' = '\\u{202e}', is always true).";
    assert!(shown(&all).contains(words), "{}", shown(&all));
    assert!(shown(&all).contains("BEWARE"));
    assert_eq!(
        worded(&all, false),
        format!("  | {words}\n  | BEWARE: Its condition keeps no row out: every row is meant.\n")
    );
    assert!(worded_short(&all).starts_with("! Deletes EVERY row of shop.orders (its WHERE, "));
    // What isn't SQL, and what is over, is told by its effects.
    let mut other = detail("DELETE FROM shop.orders");
    other.summary.protocol = interceptor_core::operation::Protocol::Http;
    let by_effects = "  | It changes data in shop.orders.\n";
    assert_eq!(worded(&other, false), by_effects);
    let mut over = detail("");
    over.content = None;
    assert_eq!(worded(&over, false), by_effects);
    over.content = Some(crate::approval::Content::Hex("00".to_owned()));
    assert_eq!(worded(&over, false), by_effects);
}

#[test]
fn a_reviewer_sees_what_came_before() {
    let own = Detail {
        summary: Summary {
            shape: Some(interceptor_core::operation::Digest([1; 32])),
            ..detail("x").summary
        },
        ..detail("x")
    };
    let mut past = Past::default();
    let evil = "SELECT 1\n  | 9 allow: \u{1b}[2J";
    for number in 1..=9 {
        let operation = json!({"kind": "operation", "operation": number, "actions": ["SELECT"], "content": evil});
        let part = json!({"kind": "operation", "operation": number, "actions": ["COPY"], "content": "more"});
        let decision = json!({"kind": "decision", "operation": number, "verdict": "allow"});
        let goes_on = [operation, part, decision].map(|line| past.observe(&line, 8));
        assert_eq!(goes_on[0], number < 8);
    }
    let post = json!({"kind": "operation", "operation": 7, "actions": ["POST"], "content": "Host: x",
        "attributes": {"http.host": "x.example", "http.path": "/users/7"}});
    assert!(past.observe(&post, 8));
    let rejected = Summary {
        id: ApprovalId(7),
        state: State::Refused {
            cause: Cause::Rejected,
        },
        ..own.summary.clone()
    };
    let other = Summary {
        shape: None,
        ..rejected.clone()
    };
    past.earlier(vec![own.summary.clone(), other, rejected], &own.summary);
    let shown = text(&own, &past, at("2026-11-20T22:05:00Z"), false);
    let (_, behind) = shown.split_once("Before it, in this session:\n").unwrap();
    let line = |number: u32| format!("  | {number} allow: SELECT 1\\n  | 9 allow: \\u{{1b}}[2J\n");
    let before: String = (3..=7).map(line).collect();
    let earlier = "The latest of the same shape, and what became of them:\n  | 0000000000000007 5m ago: rejected; approved by alice: fine\n";
    assert_eq!(behind, before + earlier);
}

#[test]
fn a_change_is_one_line() {
    let summary = Box::new(detail("x").summary);
    let now = at("2026-11-20T22:05:00Z");
    assert_eq!(
        change_text(&Change::Requested(summary.clone()), now, false),
        "2026-11-20 22:05:00Z held 00000000000000ff reporter -> 192.0.2.1:5432: DELETE \
         [writes-wait] waits for 1 of 2 votes, 10m left\n"
    );
    let mut ended = summary;
    ended.state = State::Refused {
        cause: Cause::TimedOut,
    };
    ended.votes.clear();
    assert_eq!(
        change_text(&Change::Ended(ended), now, false),
        "2026-11-20 22:05:00Z over 00000000000000ff reporter -> 192.0.2.1:5432: DELETE \
         [writes-wait] refused: nobody decided in time\n"
    );
}
