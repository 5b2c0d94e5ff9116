//! Reading `export --format jsonl` back, and asking it the questions that tests ask.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The kinds of line that the schema knows.
const KINDS: [&str; 8] = [
    "session_start",
    "operation",
    "decision",
    "approval",
    "response",
    "content",
    "session_end",
    "event",
];

/// One exported line.
#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    /// Position in the journal.
    pub seq: u64,
    /// RFC 3339.
    pub time: String,
    /// The session's id, where the line belongs to one.
    pub session: Option<String>,
    /// The agent's name, empty for the daemon.
    pub agent: String,
    /// One of the documented kinds.
    pub kind: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// An exported journal.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Its lines, in order.
    pub lines: Vec<Line>,
}

impl Journal {
    /// Reads an export; the envelope has to be as documented and the order without a gap.
    ///
    /// # Errors
    /// Where it isn't.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("not an export line: {line}"))
            })
            .collect::<Result<Vec<Line>>>()?;
        let mut previous = 0;
        for line in &lines {
            if line.seq <= previous {
                bail!("seq {} comes after {previous}", line.seq);
            }
            if !KINDS.contains(&line.kind.as_str()) {
                bail!("`{}` is not a kind", line.kind);
            }
            previous = line.seq;
        }
        Ok(Self { lines })
    }

    /// The lines of `kind`.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.kind == kind)
    }

    /// The lines of `kind` that have `text` anywhere in their JSON.
    pub fn mentioning<'a>(
        &'a self,
        kind: &'a str,
        text: &'a str,
    ) -> impl Iterator<Item = &'a Line> {
        self.of_kind(kind).filter(move |line| line.mentions(text))
    }

    /// Whether any line has `text` anywhere in its JSON.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.mentions(text))
    }
}

impl Line {
    /// The value at a JSON pointer, `/operation/action`, below the envelope.
    #[must_use]
    pub fn at(&self, pointer: &str) -> Option<&Value> {
        let (key, rest) = pointer
            .strip_prefix('/')?
            .split_once('/')
            .map_or((pointer.strip_prefix('/')?, ""), |(key, rest)| (key, rest));
        let value = self.rest.get(key)?;
        if rest.is_empty() {
            Some(value)
        } else {
            value.pointer(&format!("/{rest}"))
        }
    }

    /// Whether `text` stands in any string below the envelope.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.rest.values().any(|value| mentions(value, text))
    }
}

fn mentions(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string.contains(text),
        Value::Array(values) => values.iter().any(|value| mentions(value, text)),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key.contains(text) || mentions(value, text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
