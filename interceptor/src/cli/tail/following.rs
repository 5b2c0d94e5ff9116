//! What is shown of the records that come, without where they come from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use interceptor_core::operation::Effects;
use serde_json::Value;

use super::super::{
    display::{Style, inert, paint},
    timeline::Timeline,
};
use crate::{
    control::Session,
    journal::{Decided, Wanted},
};

/// Characters of a statement that are shown on its line.
const STATEMENT_CHARACTERS_MAX: usize = 120;

/// Operations that nobody has decided yet, of all sessions: a proxy that died leaves some.
const UNDECIDED_MAX: usize = 16_384;

/// Where a record stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) time: String,
}

impl Place {
    /// Of an exported line; none where it is none of a record.
    pub(super) fn of(line: &Value) -> Option<Self> {
        Some(Self {
            seq: line.get("seq")?.as_u64()?,
            time: text(line, "time").to_owned(),
        })
    }
}

/// Turns the lines of records into those that are shown.
#[derive(Debug)]
pub(super) struct Following {
    wanted: Wanted,
    /// All that is said is shown by it.
    timeline: Option<Timeline>,
    color: bool,
    sessions: BTreeMap<String, About>,
    /// Operations that aren't decided yet.
    undecided: BTreeMap<(String, u64), Value>,
    /// Operations that are shown, and haven't ended.
    shown: BTreeSet<(String, u64)>,
    /// The session that the last line was of, where all is shown.
    current: Option<String>,
}

/// What is known of a session.
#[derive(Debug, Default)]
struct About {
    labels: BTreeMap<Box<str>, Box<str>>,
    destination: String,
    names: String,
}

impl Following {
    pub(super) fn new(wanted: Wanted, rows: Option<usize>, color: bool) -> Self {
        Self {
            wanted,
            timeline: rows.map(|rows| Timeline::new(rows, color)),
            color,
            sessions: BTreeMap::new(),
            undecided: BTreeMap::new(),
            shown: BTreeSet::new(),
            current: None,
        }
    }

    /// Takes what is known of a session that goes on.
    pub(super) fn learn(&mut self, session: &Session) {
        let about = About {
            labels: session.labels.clone(),
            destination: session.destination.clone(),
            names: session.names.join(" "),
        };
        self.sessions.insert(session.id.to_string(), about);
    }

    /// Takes the next line; those that are asked for, and how each is shown.
    pub(super) fn take(&mut self, line: Value) -> Vec<(Value, String)> {
        let session = text(&line, "session").to_owned();
        self.note(&session, &line);
        let number = line.get("operation").and_then(Value::as_u64);
        let kind = text(&line, "kind").to_owned();
        let Some(number) = number.filter(|number| *number != 0) else {
            let is_asked = self.is_of(&session, &line) && !self.is_by_operation();
            let shown = match is_asked && self.timeline.is_some() {
                true => self.show(&line),
                false => String::new(),
            };
            if kind == "session_end" {
                self.end(&session);
            }
            return is_asked.then_some((line, shown)).into_iter().collect();
        };
        let key = (session, number);
        match kind.as_str() {
            "operation" => {
                if self.undecided.len() >= UNDECIDED_MAX {
                    self.undecided.pop_first();
                }
                self.undecided.insert(key, line);
                Vec::new()
            }
            "decision" => {
                let Some(operation) = self.undecided.remove(&key) else {
                    return Vec::new();
                };
                if !self.wants(&key.0, &operation, &line) {
                    return Vec::new();
                }
                let (first, second) = match &self.timeline {
                    Some(_) => (self.show(&operation), self.show(&line)),
                    None => (String::new(), self.one_line(&operation, &line)),
                };
                self.shown.insert(key);
                vec![(operation, first), (line, second)]
            }
            _ if !self.shown.contains(&key) => Vec::new(),
            _ => {
                let shown = match &self.timeline {
                    Some(_) => self.show(&line),
                    None => self.outcome(&line),
                };
                let is_over = kind == "response" && text(&line, "status") != "continues";
                if is_over {
                    self.shown.remove(&key);
                }
                vec![(line, shown)]
            }
        }
    }

    /// Remembers what `line` says of its session.
    fn note(&mut self, session: &str, line: &Value) {
        match text(line, "kind") {
            "session_start" => {
                let labels = line.get("labels").and_then(Value::as_object);
                let labels = labels.into_iter().flatten().filter_map(|(name, value)| {
                    Some((name.as_str().into(), value.as_str()?.into()))
                });
                let about = About {
                    labels: labels.collect(),
                    destination: text(line, "destination").to_owned(),
                    names: String::new(),
                };
                self.sessions.insert(session.to_owned(), about);
            }
            "event" => {
                let detail = line.get("detail").unwrap_or(&Value::Null);
                let names = match text(line, "name") {
                    "destination_names" => text(detail, "names"),
                    "destination_name" if text(detail, "known") == "true" => text(detail, "name"),
                    "tls" => text(detail, "server_name"),
                    _ => return,
                };
                if let Some(about) = self.sessions.get_mut(session) {
                    about.names.push(' ');
                    about.names.push_str(names);
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, session: &str) {
        self.sessions.remove(session);
        self.undecided.retain(|(of, _), _| of != session);
        self.shown.retain(|(of, _)| of != session);
    }

    /// Whether operations are asked for by what they are.
    fn is_by_operation(&self) -> bool {
        let wanted = &self.wanted;
        wanted.protocol.is_some()
            || !wanted.class.is_empty()
            || wanted.verdict.is_some()
            || wanted.rule.is_some()
            || wanted.text.is_some()
    }

    /// Whether the session of `line` is asked for.
    fn is_of(&self, session: &str, line: &Value) -> bool {
        let wanted = &self.wanted;
        let agent = wanted.agent.as_deref();
        if agent.is_some_and(|agent| agent != text(line, "agent")) {
            return false;
        }
        if wanted.labels.is_empty() && wanted.destination.is_none() {
            return true;
        }
        let Some(about) = self.sessions.get(session) else {
            return false;
        };
        let has = |(name, value): &(Box<str>, Box<str>)| about.labels.get(name) == Some(value);
        wanted.labels.iter().all(has)
            && wanted.destination.as_deref().is_none_or(|wanted| {
                about.destination.contains(wanted) || about.names.contains(wanted)
            })
    }

    /// Whether an operation is asked for that was decided so.
    fn wants(&self, session: &str, operation: &Value, decision: &Value) -> bool {
        let wanted = &self.wanted;
        let protocol = wanted.protocol.map(|protocol| protocol.name());
        let effects = array(operation, "effects")
            .filter_map(Value::as_str)
            .filter_map(Effects::named)
            .fold(Effects::empty(), |all, one| all | one);
        let verdict = wanted.verdict.map(|verdict| match verdict {
            Decided::Allow => "allow",
            Decided::Deny => "deny",
            Decided::Hold => "hold",
        });
        let rule = wanted.rule.as_deref();
        self.is_of(session, operation)
            && protocol.is_none_or(|protocol| protocol == text(operation, "protocol"))
            && (wanted.class.is_empty() || wanted.class.intersects(effects))
            && verdict.is_none_or(|verdict| verdict == text(decision, "verdict"))
            && rule.is_none_or(|rule| rule == text(decision, "rule"))
            && wanted
                .text
                .as_ref()
                .is_none_or(|text| text.is_among(&texts(operation)))
    }

    /// All of a line, below whose it is where that changes.
    fn show(&mut self, line: &Value) -> String {
        let session = text(line, "session");
        let mut out = String::new();
        if self.current.as_deref() != Some(session) {
            self.current = Some(session.to_owned());
            let of = if session.is_empty() {
                "daemon"
            } else {
                session
            };
            _ = writeln!(out, "-- {} {}", inert(of), inert(text(line, "agent")));
        }
        if let Some(timeline) = &self.timeline {
            out.push_str(&timeline.line(line));
        }
        out
    }

    /// An operation and what was decided.
    fn one_line(&self, operation: &Value, decision: &Value) -> String {
        let enforced = decision.get("enforced").and_then(Value::as_bool) != Some(false);
        let (word, style) = match (text(decision, "verdict"), enforced) {
            ("allow", _) => ("allowed", Style::Good),
            ("deny", true) => ("denied", Style::Bad),
            ("hold", true) => ("held", Style::Wait),
            ("deny", false) => ("would be denied", Style::Wait),
            ("hold", false) => ("would be held", Style::Wait),
            _ => ("decided", Style::Dim),
        };
        let resources: Vec<&str> = array(operation, "resources")
            .map(|resource| text(resource, "name"))
            .collect();
        let actions: Vec<&str> = array(operation, "actions")
            .filter_map(Value::as_str)
            .collect();
        let mut out = format!(
            "{} {} by {}  {}",
            self.whose(operation),
            paint(style, word, self.color),
            inert(text(decision, "rule")),
            inert(&short(&actions.join("; "))),
        );
        if !resources.is_empty() {
            _ = write!(out, " {}", inert(&short(&resources.join(", "))));
        }
        let statement = short(text(operation, "content"));
        if !statement.is_empty() {
            _ = write!(
                out,
                "  {}",
                paint(Style::Dim, &inert(&statement), self.color)
            );
        }
        out.push('\n');
        out
    }

    /// What became of an operation after it was decided, where that is worth a line.
    fn outcome(&self, line: &Value) -> String {
        let said = match (text(line, "kind"), text(line, "step"), text(line, "status")) {
            ("approval", "approved", _) => paint(Style::Good, "approved", self.color),
            ("approval", "unopposed", _) => {
                paint(Style::Good, "approved: nobody objected", self.color)
            }
            ("approval", "admitted", _) => {
                paint(Style::Good, "goes by what was approved before", self.color)
            }
            ("approval", step @ ("voted" | "overridden" | "revoked"), _) => format!(
                "{} by {}: {}",
                match (step, text(line, "choice")) {
                    ("voted", choice) => inert(choice).into_owned(),
                    (step, _) => paint(Style::Bad, step, self.color),
                },
                inert(text(line, "by")),
                inert(&short(text(line, "reason")))
            ),
            ("approval", "refused" | "withdrawn", _) => paint(Style::Bad, "refused", self.color),
            ("response", _, "error") => format!(
                "{} {}",
                paint(
                    Style::Bad,
                    &format!("error {}", inert(text(line, "code"))),
                    self.color
                ),
                inert(&short(text(line, "message")))
            ),
            _ => return String::new(),
        };
        format!("{} {said}\n", self.whose(line))
    }

    /// When, and of whom.
    fn whose(&self, line: &Value) -> String {
        let time = text(line, "time");
        let of_day = time.split_once('T').map_or(time, |(_, of_day)| of_day);
        let of_day: String = inert(of_day).chars().take(12).collect();
        format!(
            "{}  {} {} #{}",
            paint(Style::Dim, &of_day, self.color),
            inert(text(line, "session")),
            paint(Style::Bold, &inert(text(line, "agent")), self.color),
            line.get("operation").and_then(Value::as_u64).unwrap_or(0)
        )
    }
}

/// The texts of an operation's line that are searched: those that the index has.
fn texts(operation: &Value) -> Vec<&[u8]> {
    let strings = |name| array(operation, name).filter_map(Value::as_str);
    let resources = array(operation, "resources").map(|resource| text(resource, "name"));
    let attributes = operation.get("attributes").unwrap_or(&Value::Null);
    let attributes = crate::journal::SEARCHED.map(|name| text(attributes, name));
    std::iter::once(text(operation, "content"))
        .chain(strings("actions"))
        .chain(resources)
        .chain(attributes)
        .chain(strings("parameters"))
        .map(str::as_bytes)
        .collect()
}

/// The beginning of `text`, on one line.
fn short(text: &str) -> String {
    // No more of it than could be shown is looked at.
    let mut short = String::new();
    let mut is_gap = false;
    for character in text.trim_start().chars().take(STATEMENT_CHARACTERS_MAX * 4) {
        if short.chars().count() >= STATEMENT_CHARACTERS_MAX {
            short.push('…');
            break;
        }
        // Other control characters are shown as what they are.
        if matches!(character, ' ' | '\t' | '\r' | '\n') {
            is_gap = true;
            continue;
        }
        if std::mem::take(&mut is_gap) {
            short.push(' ');
        }
        short.push(character);
    }
    short
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn array<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    let array = value.get(name).and_then(Value::as_array);
    array.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::operation::Protocol;
    use serde_json::json;

    use super::*;
    use crate::journal::Text;

    fn lines() -> Vec<Value> {
        let time = "2026-11-20T22:07:01.123456789Z";
        vec![
            json!({"seq": 1, "time": time, "kind": "session_start", "session": "aa", "agent": "shopper", "destination": "192.0.2.5:5432", "labels": {"team": "x"}}),
            json!({"seq": 2, "time": time, "kind": "operation", "session": "aa", "agent": "shopper", "operation": 1, "protocol": "postgres", "actions": ["SELECT"], "effects": ["read"],
                "resources": [{"name": "shop.orders"}], "content": "SELECT *\n  FROM shop.orders\u{1b}[2J", "parameters": ["needle"]}),
            json!({"seq": 3, "time": time, "kind": "session_start", "session": "bb", "agent": "other", "destination": "192.0.2.6:443", "labels": {}}),
            json!({"seq": 4, "time": time, "kind": "decision", "session": "aa", "agent": "shopper", "operation": 1, "verdict": "hold", "rule": "look", "enforced": true}),
            json!({"seq": 5, "time": time, "kind": "operation", "session": "bb", "agent": "other", "operation": 1, "protocol": "http", "actions": ["GET"], "effects": ["read"],
                "resources": [], "attributes": {"http.path": "/a"}, "content": "GET /a HTTP/1.1\r\n\r\n"}),
            json!({"seq": 6, "time": time, "kind": "decision", "session": "bb", "agent": "other", "operation": 1, "verdict": "allow", "rule": "default", "enforced": true}),
            json!({"seq": 7, "time": time, "kind": "approval", "session": "aa", "agent": "shopper", "operation": 1, "step": "voted", "choice": "approve", "by": "erin", "reason": "fine"}),
            json!({"seq": 8, "time": time, "kind": "response", "session": "aa", "agent": "shopper", "operation": 1, "status": "error", "code": "42", "message": "no\u{202e}"}),
            json!({"seq": 9, "time": time, "kind": "session_end", "session": "aa", "agent": "shopper", "reason": "over"}),
        ]
    }

    fn shown(wanted: Wanted) -> (String, Vec<u64>) {
        let mut following = Following::new(wanted, None, false);
        let taken = lines().into_iter().flat_map(|line| following.take(line));
        let (mut text, mut seqs) = (String::new(), Vec::new());
        for (line, shown) in taken {
            text.push_str(&shown);
            seqs.push(Place::of(&line).unwrap().seq);
        }
        (text, seqs)
    }

    #[test]
    fn each_operation_is_a_line_and_what_becomes_of_it_another() {
        let (text, seqs) = shown(Wanted::default());
        assert_eq!(
            text,
            "22:07:01.123  aa shopper #1 held by look  SELECT shop.orders  SELECT * FROM shop.orders\\u{1b}[2J\n\
             22:07:01.123  bb other #1 allowed by default  GET  GET /a HTTP/1.1\n\
             22:07:01.123  aa shopper #1 approve by erin: fine\n\
             22:07:01.123  aa shopper #1 error 42 no\\u{202e}\n"
        );
        assert_eq!(seqs, [1, 3, 2, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn what_is_asked_for_is_shown_and_nothing_else() {
        let any = Wanted::default;
        let words = |text| Some(Arc::new(Text::parse(text).unwrap()));
        let first = &[2, 4, 7, 8][..];
        let table = [
            (
                Wanted {
                    text: words("shop.orders needle"),
                    ..any()
                },
                first,
            ),
            (
                Wanted {
                    text: words("/a"),
                    ..any()
                },
                &[5, 6],
            ),
            (
                Wanted {
                    text: words("nowhere"),
                    ..any()
                },
                &[],
            ),
            (
                Wanted {
                    protocol: Some(Protocol::Http),
                    ..any()
                },
                &[5, 6],
            ),
            (
                Wanted {
                    verdict: Some(Decided::Hold),
                    ..any()
                },
                first,
            ),
            (
                Wanted {
                    rule: Some("default".into()),
                    ..any()
                },
                &[5, 6],
            ),
            (
                Wanted {
                    class: Effects::READ,
                    agent: Some("other".into()),
                    ..any()
                },
                &[5, 6],
            ),
            (
                Wanted {
                    class: Effects::WRITE,
                    ..any()
                },
                &[],
            ),
            (
                Wanted {
                    labels: vec![("team".into(), "x".into())],
                    ..any()
                },
                &[1, 2, 4, 7, 8, 9],
            ),
            (
                Wanted {
                    destination: Some("192.0.2.6".into()),
                    ..any()
                },
                &[3, 5, 6],
            ),
        ];
        for (wanted, expected) in table {
            let asked = format!("{wanted:?}");
            assert_eq!(shown(wanted).1, expected, "{asked}");
        }
    }

    #[test]
    fn a_statement_of_any_length_is_one_line() {
        assert_eq!(short(" a\r\n b\t\tc "), "a b c");
        let long = short(&"x".repeat(10 << 20));
        assert_eq!(long.chars().count(), STATEMENT_CHARACTERS_MAX + 1);
        assert_eq!(short(&" ".repeat(10 << 20)), "");
    }
}
