//! Records as what streams carry: the lines of an export, in plain ASCII, no longer than a receiver takes.

use std::io;

use interceptor_core::record::Record;
use serde::Serialize as _;
use serde_json::{Map, Value, ser::Formatter};

/// What says which record it is; never left out.
const CORE: [&str; 6] = ["v", "seq", "time", "session", "agent", "kind"];

/// Where a line says what isn't in it.
const LEFT_OUT: &str = "left_out";

/// Longest name that stands in a header of its own, in bytes; a longer one stands in the line.
const NAME_BYTES_MAX: usize = 128;

/// A record on its way.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) seq: u64,
    pub(super) time_ns: u64,
    pub(super) severity: Severity,
    /// What it is found by, names and values: session, agent, kind, operation, verdict, rule.
    pub(super) facts: Vec<(&'static str, String)>,
    value: Value,
}

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// It was as it should be.
    Informational,
    /// People were asked, or something happened that is rare.
    Notice,
    /// Something was refused, or doesn't work.
    Warning,
}

impl Line {
    /// `record`, whose exported line is `value`.
    pub(super) fn new(record: &Record, value: Value) -> Self {
        let fact = |name: &'static str| {
            let text = match value.get(name)? {
                Value::String(text) if text.is_empty() => return None,
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return None,
            };
            (text.len() <= NAME_BYTES_MAX).then_some((name, text))
        };
        let names = ["session", "agent", "kind", "operation", "verdict", "rule"];
        let mut facts: Vec<_> = names.into_iter().filter_map(fact).collect();
        if record.event.kind() == "event" {
            facts.extend(fact("name"));
        }
        Self {
            seq: record.seq,
            time_ns: record.time.0,
            severity: severity(&value),
            facts,
            value,
        }
    }

    /// It as JSON of at most `bytes_max` bytes, all of them printable ASCII. Where it is longer the longest members
    /// are left out until it isn't, and `left_out` says which, with the bytes of each: the journal has them.
    pub(super) fn text(&self, bytes_max: usize) -> String {
        let whole = ascii(&self.value);
        if whole.len() <= bytes_max {
            return whole;
        }
        let Value::Object(members) = &self.value else {
            return whole;
        };
        let mut members = members.clone();
        let mut sizes: Vec<(usize, String)> = members
            .iter()
            .filter(|(name, _)| !CORE.contains(&name.as_str()))
            .map(|(name, value)| (ascii(value).len(), name.clone()))
            .collect();
        sizes.sort_unstable();
        let mut left_out = Map::new();
        while let Some((size, name)) = sizes.pop() {
            members.remove(&name);
            left_out.insert(name, size.into());
            members.insert(LEFT_OUT.to_owned(), Value::Object(left_out.clone()));
            let text = ascii(&Value::Object(members.clone()));
            if text.len() <= bytes_max || sizes.is_empty() {
                return text;
            }
        }
        whole
    }
}

/// How much a line matters.
fn severity(line: &Value) -> Severity {
    let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("kind") {
        "decision" => match text("verdict") {
            "allow" => Severity::Informational,
            "deny" if line.get("enforced") != Some(&Value::Bool(false)) => Severity::Warning,
            _ => Severity::Notice,
        },
        "approval" => Severity::Notice,
        "event" => {
            let wrong = [
                "failed", "broken", "refused", "lost", "escape", "denied", "stray",
            ];
            if wrong.iter().any(|part| text("name").contains(part)) {
                Severity::Warning
            } else {
                Severity::Notice
            }
        }
        _ => Severity::Informational,
    }
}

/// `value` as JSON in printable ASCII: what agents wrote does nothing to who reads it, whatever that makes of
/// other characters.
pub(super) fn ascii(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Ascii);
    // Writing to memory can't fail, and every value can be written.
    let _ = value.serialize(&mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|character| !matches!(character, ' '..='~')) {
            let (plain, other) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = other.chars();
            if let Some(character) = characters.next() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::record::{Event, Timestamp};
    use serde_json::json;

    use super::*;

    fn line(value: Value) -> Line {
        let record = Record {
            seq: 7,
            time: Timestamp(1),
            session: None,
            agent: Arc::from("a"),
            event: Event::notice("x", []),
        };
        Line::new(&record, value)
    }

    #[test]
    fn whatever_an_agent_writes_is_printable_and_comes_back_as_it_was() {
        let hostile = "a\r\nb\0\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\"\\]漢\u{1f600}";
        let value = json!({"kind": "operation", "content": hostile});
        let text = line(value.clone()).text(10_000);
        assert!(
            text.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{text}"
        );
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back, value);
    }

    #[test]
    fn what_is_left_out_is_said() {
        let value = json!({
            "v": 1, "seq": 7, "time": "t", "session": "s", "agent": "a", "kind": "response",
            "body": "b".repeat(5_000), "rows": 3, "head": "h".repeat(600),
        });
        let line = line(value.clone());
        assert_eq!(line.text(10_000), ascii(&value));
        let shorter: Value = serde_json::from_str(&line.text(1_000)).unwrap();
        assert_eq!(shorter["left_out"], json!({"body": 5_002}));
        assert_eq!(
            (&shorter["head"], &shorter["rows"]),
            (&value["head"], &json!(3))
        );
        assert_eq!(shorter.get("body"), None);
        let least: Value = serde_json::from_str(&line.text(200)).unwrap();
        assert_eq!(least["left_out"], json!({"body": 5_002, "head": 602}));
        for name in CORE {
            assert_eq!(least[name], value[name]);
        }
    }

    #[test]
    fn what_was_refused_matters_more() {
        for (value, expected) in [
            (
                json!({"kind": "decision", "verdict": "deny", "enforced": true}),
                Severity::Warning,
            ),
            (
                json!({"kind": "decision", "verdict": "deny", "enforced": false}),
                Severity::Notice,
            ),
            (
                json!({"kind": "decision", "verdict": "hold"}),
                Severity::Notice,
            ),
            (
                json!({"kind": "decision", "verdict": "allow"}),
                Severity::Informational,
            ),
            (
                json!({"kind": "event", "name": "witness_failed"}),
                Severity::Warning,
            ),
            (
                json!({"kind": "event", "name": "daemon_started"}),
                Severity::Notice,
            ),
            (json!({"kind": "response"}), Severity::Informational),
        ] {
            assert_eq!(severity(&value), expected, "{value}");
        }
    }
}
