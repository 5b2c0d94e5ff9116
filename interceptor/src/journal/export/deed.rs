//! An operation and what became of it, put together from its lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::line::{bytes, get, list, number, text};

/// What is kept of an answer's content until it is whole.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    /// Rows of a result.
    pub(super) rows_max: usize,
    /// Bytes of a body, and of what was sent.
    pub(super) body_bytes_max: usize,
}

/// A session, as far as it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Session {
    /// The line of its start; null where that isn't part of the export.
    pub(super) start: Value,
    /// What PostgreSQL was asked for: user and database.
    pub(super) user: String,
    pub(super) database: String,
}

/// An operation with its decision, approvals and answer.
#[derive(Debug, Default)]
pub(super) struct Deed {
    pub(super) session: Arc<Session>,
    /// Its line.
    pub(super) operation: Value,
    /// The line of its decision, or null.
    pub(super) decision: Value,
    /// The lines of its approval.
    pub(super) approvals: Vec<Value>,
    /// What was sent besides its own content.
    pub(super) sent: Body,
    pub(super) answer: Answer,
}

/// The beginning of some content, and how much there is.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) first: Vec<u8>,
    pub(super) bytes: u64,
}

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The line that ended it; null where nothing did.
    pub(super) last: Value,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) elapsed_ns: u64,
    pub(super) masked: BTreeSet<String>,
    /// Head of an HTTP response.
    pub(super) head: Value,
    pub(super) columns: Vec<Value>,
    /// The first rows.
    pub(super) data: Vec<Value>,
    pub(super) body: Body,
    /// Records of a DNS answer.
    pub(super) answers: Vec<Value>,
}

/// Puts operations together as their lines come.
#[derive(Debug, Default)]
pub(super) struct Deeds {
    kept: Kept,
    sessions: BTreeMap<String, Arc<Session>>,
    open: BTreeMap<(String, u64), Deed>,
}

impl Deeds {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            kept,
            ..Self::default()
        }
    }

    /// The session of `line`, as far as it was told.
    pub(super) fn session(&self, line: &Value) -> Arc<Session> {
        let session = self.sessions.get(text(line, "session"));
        session.cloned().unwrap_or_default()
    }

    /// Takes the next line; the operations that it completes. Those that a session leaves open come with its end,
    /// after which it is forgotten.
    pub(super) fn take(&mut self, mut line: Value) -> Vec<Deed> {
        let id = text(&line, "session").to_owned();
        let number = number(&line, "operation");
        match text(&line, "kind") {
            "session_start" => {
                let session = Session {
                    start: line,
                    ..Session::default()
                };
                self.sessions.insert(id, Arc::new(session));
            }
            "event" if text(&line, "name") == "postgres_startup" => {
                let session = Arc::make_mut(self.sessions.entry(id).or_default());
                let detail = get(&line, "detail");
                session.user = text(detail, "user").to_owned();
                session.database = text(detail, "database").to_owned();
            }
            "operation" => {
                let key = (id, number);
                if get(get(&line, "options"), "copy data, part").is_string() {
                    if let Some(deed) = self.open.get_mut(&key) {
                        deed.sent.add(get(&line, "content"), self.kept);
                    }
                    return Vec::new();
                }
                let deed = Deed {
                    session: self.session(&line),
                    operation: line,
                    ..Deed::default()
                };
                // Numbers don't come twice in a session; where they do, both are told.
                return self.open.insert(key, deed).into_iter().collect();
            }
            "session_end" => {
                let of = |key: &&(String, u64)| key.0 == id;
                let left: Vec<_> = self.open.keys().filter(of).cloned().collect();
                let left = left.iter().filter_map(|key| self.open.remove(key));
                let left = left.collect();
                self.sessions.remove(&id);
                return left;
            }
            kind => {
                let is_response = kind == "response";
                let is_decision = kind == "decision";
                let is_approval = kind == "approval";
                let is_sent = kind == "content" && text(&line, "of") == "client";
                let key = (id, number);
                let Some(deed) = self.open.get_mut(&key) else {
                    return Vec::new();
                };
                if is_decision {
                    deed.decision = line;
                } else if is_approval {
                    deed.approvals.push(line);
                } else if is_sent {
                    deed.sent.add(get(&line, "body"), self.kept);
                } else if is_response {
                    let ends = text(&line, "status") != "continues";
                    deed.answer.add(&mut line, self.kept);
                    if ends {
                        deed.answer.last = line;
                        return self.open.remove(&key).into_iter().collect();
                    }
                }
            }
        }
        Vec::new()
    }

    /// What nothing ended, in the order of sessions.
    pub(super) fn finish(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.open).into_values().collect()
    }
}

impl Deed {
    /// The word for how its approval ended, and who said so.
    pub(super) fn approval(&self) -> (String, String) {
        let outcome = self.approvals.iter().rev().find_map(|line| {
            let step = text(line, "step");
            let is_outcome = matches!(
                step,
                "approved"
                    | "overridden"
                    | "unopposed"
                    | "admitted"
                    | "refused"
                    | "withdrawn"
                    | "left"
            );
            is_outcome.then_some(step)
        });
        let waiting = if self.approvals.is_empty() {
            ""
        } else {
            "waiting"
        };
        let mut by = BTreeSet::new();
        for line in &self.approvals {
            let name = text(line, "by");
            match (text(line, "step"), text(line, "choice")) {
                ("voted", "retract") => _ = by.remove(name),
                ("voted" | "overridden", _) => _ = by.insert(name),
                _ => {}
            }
        }
        let by: Vec<_> = by.into_iter().collect();
        (outcome.unwrap_or(waiting).to_owned(), by.join("; "))
    }

    /// How it ended, in the journal's word; empty where nothing is on record.
    pub(super) fn status(&self) -> &str {
        text(&self.answer.last, "status")
    }

    /// `SELECT`, `INSERT; DROP TABLE`.
    pub(super) fn actions(&self) -> String {
        super::line::texts(&self.operation, "actions").join("; ")
    }

    /// The attribute `name`.
    pub(super) fn attribute(&self, name: &str) -> &str {
        text(get(&self.operation, "attributes"), name)
    }

    /// The destination that its agent connected to.
    pub(super) fn destination(&self) -> &str {
        text(&self.session.start, "destination")
    }
}

impl Body {
    fn add(&mut self, content: &Value, kept: Kept) {
        let mut content = bytes(content);
        self.bytes += content.len() as u64;
        let room = kept.body_bytes_max.saturating_sub(self.first.len());
        content.truncate(room);
        self.first.append(&mut content);
    }
}

impl Answer {
    /// Takes a part, and out of its line what isn't kept.
    fn add(&mut self, line: &mut Value, kept: Kept) {
        self.rows += number(line, "rows");
        self.bytes += number(line, "bytes");
        self.elapsed_ns = number(line, "elapsed_ns");
        let masked = list(line, "masked").filter_map(Value::as_str);
        self.masked.extend(masked.map(str::to_owned));
        self.body.add(get(line, "body"), kept);
        let Value::Object(members) = line else {
            return;
        };
        let mut out = |name: &str| members.remove(name).unwrap_or_default();
        let head = out("head");
        if !head.is_null() {
            self.head = head;
        }
        if let Value::Array(columns) = out("columns") {
            self.columns = columns;
        }
        if let Value::Array(answers) = out("answers") {
            self.answers = answers;
        }
        for name in ["data", "copied"] {
            if let Value::Array(mut rows) = out(name) {
                rows.truncate(kept.rows_max.saturating_sub(self.data.len()));
                self.data.append(&mut rows);
            }
        }
        for name in ["body", "wire", "unread"] {
            out(name);
        }
    }
}
