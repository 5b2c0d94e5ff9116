//! A report for auditors (SOC 2: CC6, CC7, CC8): over a period, who approved what, which policies were in force, what was
//! denied, and when nobody watched. One page without scripts that needs nothing but a browser or a printer.
//!
//! It keeps what it counts and no content but the beginnings of what people were asked about; each table has an end, and
//! says what is left out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use askama::Template;
use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    Form,
    line::{bytes, get, list, moment, number, plain, text as word, texts},
};
use crate::console::text;

/// Rows of a table.
const ROWS_MAX: usize = 5_000;
/// Characters of what people were asked about.
const CONTENT_CHARS_MAX: usize = 300;

const STYLE: &str = include_str!("html/report.css");

/// Writes a report of exported lines.
#[derive(Debug)]
pub struct Soc2 {
    title: String,
    span: Option<(String, String)>,
    operations: u64,
    sessions: u64,
    /// The latest operation of each session that is open, in a line.
    latest: BTreeMap<String, String>,
    /// Questions by their ids.
    asked: BTreeMap<String, Asked>,
    denied: BTreeMap<(String, String, String), Denied>,
    policies: BTreeMap<String, Policy>,
    watched: Watched,
    agents: BTreeMap<String, Vec<Span>>,
    /// What stands out: overrides, failures of the journal, of the proxy and of policies.
    exceptions: Table,
    access: Table,
}

/// A question and its outcome.
#[derive(Debug, Default)]
struct Asked {
    time: String,
    agent: String,
    what: String,
    votes: Vec<String>,
    outcome: String,
    ended: String,
}

/// Operations that one rule denied an agent.
#[derive(Debug, Default)]
struct Denied {
    count: u64,
    enforced: u64,
    first: String,
    last: String,
    reason: String,
}

/// A policy, as far as it decided something or was loaded.
#[derive(Debug, Default)]
struct Policy {
    loaded: Vec<String>,
    first: String,
    last: String,
    decisions: u64,
}

/// From when to when; open where it goes on.
#[derive(Debug, Default, Clone)]
struct Span {
    from: String,
    to: String,
    why: String,
}

/// When a daemon was there.
#[derive(Debug, Default)]
struct Watched {
    /// Time of the last line of any kind.
    seen: String,
    /// It was stopped then, in order.
    stopped: Option<String>,
    /// Whether anything of the daemon itself is part of the export.
    is_known: bool,
    gaps: Vec<Span>,
}

/// A table whose rows have an end.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Vec<String>>,
    left_out: u64,
}

/// A table on the page.
struct Shown {
    title: &'static str,
    what: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<text::Html>>,
    left_out: u64,
}

#[derive(Template)]
#[template(path = "soc2.html")]
struct Page<'a> {
    title: text::Html,
    style: &'a str,
    style_hash: String,
    version: &'static str,
    span: String,
    totals: Vec<(u64, &'static str)>,
    tables: Vec<Shown>,
}

impl Table {
    fn push(&mut self, row: Vec<String>) {
        if self.rows.len() < ROWS_MAX {
            self.rows.push(row);
        } else {
            self.left_out += 1;
        }
    }

    fn shown(
        self,
        title: &'static str,
        what: &'static str,
        columns: &'static [&'static str],
    ) -> Shown {
        let cells = |row: Vec<String>| row.iter().map(|cell| text::line(cell)).collect();
        Shown {
            title,
            what,
            columns,
            rows: self.rows.into_iter().map(cells).collect(),
            left_out: self.left_out,
        }
    }
}

impl FromIterator<Vec<String>> for Table {
    fn from_iter<T: IntoIterator<Item = Vec<String>>>(rows: T) -> Self {
        let mut table = Self::default();
        rows.into_iter().for_each(|row| table.push(row));
        table
    }
}

impl Soc2 {
    /// A report with this title.
    #[must_use]
    pub fn new(title: String) -> Self {
        Self {
            title,
            span: None,
            operations: 0,
            sessions: 0,
            latest: BTreeMap::new(),
            asked: BTreeMap::new(),
            denied: BTreeMap::new(),
            policies: BTreeMap::new(),
            watched: Watched::default(),
            agents: BTreeMap::new(),
            exceptions: Table::default(),
            access: Table::default(),
        }
    }

    fn decided(&mut self, line: &Value) {
        let (time, agent) = (word(line, "time"), word(line, "agent"));
        let policy = self
            .policies
            .entry(word(line, "policy").to_owned())
            .or_default();
        if policy.decisions == 0 {
            time.clone_into(&mut policy.first);
        }
        policy.decisions += 1;
        time.clone_into(&mut policy.last);
        if word(line, "verdict") != "deny" {
            return;
        }
        let rule = word(line, "rule").to_owned();
        let what = self.latest.get(word(line, "session"));
        // What it was about is in the other formats; here it is how often, by what.
        let action = what.map_or("", |what| what.split(": ").next().unwrap_or_default());
        let key = (agent.to_owned(), rule, action.to_owned());
        let denied = self.denied.entry(key).or_default();
        if denied.count == 0 {
            time.clone_into(&mut denied.first);
            word(line, "reason").clone_into(&mut denied.reason);
        }
        denied.count += 1;
        denied.enforced += u64::from(get(line, "enforced").as_bool().unwrap_or(true));
        time.clone_into(&mut denied.last);
    }

    fn approval(&mut self, line: &Value) {
        let (time, step) = (word(line, "time"), word(line, "step"));
        let asked = self
            .asked
            .entry(word(line, "approval").to_owned())
            .or_default();
        if asked.time.is_empty() {
            time.clone_into(&mut asked.time);
            word(line, "agent").clone_into(&mut asked.agent);
            let what = self.latest.get(word(line, "session"));
            asked.what = what.cloned().unwrap_or_default();
        }
        let by = word(line, "by");
        let mut end = |outcome: String| {
            asked.outcome = outcome;
            time.clone_into(&mut asked.ended);
        };
        match step {
            "voted" => {
                let key = match get(line, "consent").is_null() {
                    true => "",
                    false => ", signed by a security key",
                };
                let vote = match word(line, "reason") {
                    "" => format!("{by}: {}{key}", word(line, "choice")),
                    reason => format!("{by}: {}{key} ({reason})", word(line, "choice")),
                };
                asked.votes.push(vote);
            }
            "approved" => end("approved".to_owned()),
            "unopposed" => end("let through unanswered, as its rule says".to_owned()),
            "refused" => end(format!("refused ({})", plain(get(line, "cause")))),
            "withdrawn" => end(format!("withdrawn: {}", word(line, "why"))),
            "overridden" => {
                let reason = word(line, "reason");
                end(format!("overridden by {by} alone: {reason}"));
                let what = asked.what.clone();
                self.exceptions.push(vec![
                    moment(time),
                    "override".to_owned(),
                    format!("{by}: {reason}; {what}"),
                ]);
            }
            "revoked" => self.exceptions.push(vec![
                moment(time),
                "approval revoked".to_owned(),
                format!("{by}: {}", word(line, "reason")),
            ]),
            _ => {}
        }
    }

    fn event(&mut self, line: &Value) {
        let (time, name, agent) = (word(line, "time"), word(line, "name"), word(line, "agent"));
        let detail = get(line, "detail");
        match name {
            "daemon_started" => self.watched.begin(time),
            "daemon_stopped" => {
                self.watched.is_known = true;
                self.watched.stopped = Some(time.to_owned());
            }
            "policy_loaded" => {
                let policy = self.policies.entry(word(detail, "policy").to_owned());
                policy.or_default().loaded.push(moment(time));
            }
            "tag_added" => {
                let spans = self.agents.entry(agent.to_owned()).or_default();
                spans.push(Span {
                    from: moment(time),
                    why: word(detail, "by").to_owned(),
                    ..Span::default()
                });
            }
            "tag_removed" => {
                let spans = self.agents.entry(agent.to_owned()).or_default();
                let why = word(detail, "by").to_owned();
                match spans.last_mut().filter(|span| span.to.is_empty()) {
                    Some(span) => {
                        span.to = moment(time);
                        span.why = format!("{}; off by {why}", span.why);
                    }
                    None => spans.push(Span {
                        to: moment(time),
                        why: format!("off by {why}"),
                        ..Span::default()
                    }),
                }
            }
            "signed_in"
            | "sign_in_refused"
            | "signed_out"
            | "exported"
            | "policy_reload"
            | "security_key_added"
            | "security_key_removed" => {
                self.access
                    .push(vec![moment(time), name.to_owned(), facts(detail)]);
            }
            "journal_recovered"
            | "policy_broken"
            | "proxy_ended"
            | "proxy_misbehaved"
            | "notification_failed"
            | "agent_frozen"
            | "agent_thawed"
            | "agent_cut" => {
                self.exceptions.push(vec![
                    moment(time),
                    name.to_owned(),
                    format!("{agent} {}", facts(detail)).trim().to_owned(),
                ]);
            }
            _ => {}
        }
    }
}

impl Watched {
    fn begin(&mut self, time: &str) {
        self.is_known = true;
        let (from, why) = match self.stopped.take() {
            Some(stopped) => (stopped, "stopped in order"),
            None if self.seen.is_empty() => return,
            None => (
                self.seen.clone(),
                "ended without being stopped: from the last record before",
            ),
        };
        self.gaps.push(Span {
            from: moment(&from),
            to: moment(time),
            why: why.to_owned(),
        });
    }
}

impl Form for Soc2 {
    fn take(&mut self, line: Value, _: &mut dyn Write) -> io::Result<u64> {
        let time = word(&line, "time").to_owned();
        let session = word(&line, "session");
        let mut counted = 0;
        match word(&line, "kind") {
            "session_start" => self.sessions += 1,
            "session_end" => _ = self.latest.remove(session),
            "operation" => {
                self.operations += 1;
                counted = 1;
                self.latest.insert(session.to_owned(), in_a_line(&line));
            }
            "decision" => self.decided(&line),
            "approval" => self.approval(&line),
            "event" => self.event(&line),
            _ => {}
        }
        match &mut self.span {
            Some((_, last)) => last.clone_from(&time),
            None => self.span = Some((time.clone(), time.clone())),
        }
        self.watched.seen = time;
        Ok(counted)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        let report = std::mem::replace(self, Self::new(String::new()));
        let hash = digest::digest(&digest::SHA256, STYLE.as_bytes());
        let denied: u64 = report.denied.values().map(|denied| denied.enforced).sum();
        let gaps = report.watched.gaps.len() as u64;
        let page = Page {
            title: text::line(&report.title),
            style: STYLE,
            style_hash: format!("sha256-{}", STANDARD.encode(hash)),
            version: env!("CARGO_PKG_VERSION"),
            span: report
                .span
                .as_ref()
                .map_or_else(String::new, |(first, last)| {
                    format!("{} to {}", moment(first), moment(last))
                }),
            totals: vec![
                (report.sessions, "sessions"),
                (report.operations, "operations"),
                (report.asked.len() as u64, "questions to people"),
                (denied, "denied"),
                (gaps, "times without a daemon"),
            ],
            tables: report.tables(),
        };
        out.write_all(page.render().map_err(io::Error::other)?.as_bytes())?;
        Ok(0)
    }
}

impl Soc2 {
    fn tables(self) -> Vec<Shown> {
        let mut asked: Vec<Asked> = self.asked.into_values().collect();
        asked.sort_by(|one, other| one.time.cmp(&other.time));
        let approvals: Table = asked
            .into_iter()
            .map(|asked| {
                let outcome = match asked.outcome.is_empty() {
                    true => "open at the end of this report".to_owned(),
                    false => asked.outcome,
                };
                vec![
                    moment(&asked.time),
                    asked.agent,
                    asked.what,
                    asked.votes.join("; "),
                    outcome,
                    moment(&asked.ended),
                ]
            })
            .collect();
        let denied: Table = self
            .denied
            .into_iter()
            .map(|((agent, rule, action), denied)| {
                vec![
                    agent,
                    rule,
                    action,
                    denied.reason,
                    denied.enforced.to_string(),
                    (denied.count - denied.enforced).to_string(),
                    moment(&denied.first),
                    moment(&denied.last),
                ]
            })
            .collect();
        let policies: Table = self
            .policies
            .into_iter()
            .map(|(hash, policy)| {
                vec![
                    hash,
                    policy.loaded.join(", "),
                    policy.decisions.to_string(),
                    moment(&policy.first),
                    moment(&policy.last),
                ]
            })
            .collect();
        let span = |span: &Span| vec![span.from.clone(), span.to.clone(), span.why.clone()];
        let gaps: Table = match self.watched.is_known {
            true => self.watched.gaps.iter().map(span).collect(),
            false => [vec![
                String::new(),
                String::new(),
                "not part of this export: make it of all agents, and of a time in which the daemon was started"
                    .to_owned(),
            ]]
            .into_iter()
            .collect(),
        };
        let agents: Table = self
            .agents
            .iter()
            .flat_map(|(agent, spans)| {
                spans
                    .iter()
                    .map(move |one| [vec![agent.clone()], span(one)].concat())
            })
            .collect();
        vec![
            approvals.shown(
                "Who approved what (CC6.1, CC8.1)",
                "Operations that waited for people, with every answer and its reason.",
                &["Asked", "Agent", "What for", "Answers", "Outcome", "Ended"],
            ),
            self.exceptions.shown(
                "What stands out (CC7.3)",
                "Overrides, agents that were stopped, and failures of the guard itself.",
                &["When", "What", "Detail"],
            ),
            denied.shown(
                "What was denied (CC6.6, CC7.2)",
                "By agent, rule and kind of operation. Observed is what a rule that is not enforced would have denied.",
                &[
                    "Agent", "Rule", "Operation", "Reason", "Denied", "Observed", "First", "Last",
                ],
            ),
            policies.shown(
                "Policies in force (CC8.1)",
                "By the hash of all their files, which every decision on record names.",
                &["Policy", "Loaded", "Decisions", "First", "Last"],
            ),
            gaps.shown(
                "Times without a daemon (CC7.1)",
                "Connections of tagged agents fail meanwhile, unless its hooks were removed.",
                &["From", "To", "How it ended"],
            ),
            agents.shown(
                "Agents under guard (CC6.8)",
                "When each was tagged and untagged in this period; an end that is missing goes on.",
                &["Agent", "From", "To", "By"],
            ),
            self.access.shown(
                "Who looked and who changed what may be done (CC6.2, CC6.3)",
                "Sign-ins, exports, policy reloads and security keys.",
                &["When", "What", "Detail"],
            ),
        ]
    }
}

/// An operation in a line: what it does, to what, and the beginning of it.
fn in_a_line(operation: &Value) -> String {
    let resources: BTreeSet<&str> = list(operation, "resources")
        .map(|resource| word(resource, "name"))
        .collect();
    let resources: Vec<&str> = resources.into_iter().take(5).collect();
    let content = bytes(get(operation, "content"));
    let content = String::from_utf8_lossy(&content);
    let mut begin: String = content.chars().take(CONTENT_CHARS_MAX).collect();
    if begin.len() < content.len() {
        begin.push('…');
    }
    let actions = texts(operation, "actions").join(", ");
    let number = number(operation, "operation");
    format!(
        "{} {actions}: {} {begin} (operation {number} of session {})",
        word(operation, "protocol"),
        resources.join(", "),
        word(operation, "session"),
    )
}

fn facts(detail: &Value) -> String {
    let facts = detail.as_object().into_iter().flatten();
    let facts: Vec<String> = facts
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    facts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{sample, written},
        *,
    };

    fn page(lines: &[Value]) -> String {
        let (_, out) = written(&mut Soc2::new("All agents".to_owned()), lines);
        String::from_utf8(out).unwrap()
    }

    fn event(second: u64, agent: &str, name: &str, detail: Value) -> Value {
        let time = format!("2026-11-20T23:00:{second:02}.0Z");
        json!({"kind": "event", "session": null, "agent": agent, "time": time, "name": name, "detail": detail})
    }

    #[test]
    fn auditors_find_what_they_ask_for() {
        let mut lines = sample();
        lines.extend([
            event(1, "", "daemon_started", json!({"version": "1"})),
            event(2, "", "policy_loaded", json!({"policy": "sha256:22"})),
            event(
                3,
                "demo",
                "tag_added",
                json!({"by": "root (uid 0)", "detail": ""}),
            ),
            event(
                4,
                "demo",
                "tag_removed",
                json!({"by": "otto (uid 7)", "detail": ""}),
            ),
            event(5, "", "exported", json!({"by": "vera", "sha256": "00"})),
            event(6, "", "proxy_ended", json!({"how": "killed"})),
            event(9, "", "daemon_started", json!({"version": "1"})),
        ]);
        let page = page(&lines);
        for told in [
            "alice: approve (fine)",
            "DELETE FROM shop.orders",
            "<td>approved</td>",
            "sha256:11",
            "sha256:22",
            // Stopped in order, and killed.
            "<td>2026-11-20 22:07:09</td><td>2026-11-20 23:00:01</td><td>stopped in order</td>",
            "<td>2026-11-20 23:00:06</td><td>2026-11-20 23:00:09</td><td>ended without being stopped",
            "<td>demo</td><td>2026-11-20 23:00:03</td><td>2026-11-20 23:00:04</td><td>root (uid 0); off by otto (uid 7)</td>",
            "by vera, sha256 00",
            "how killed",
            "<b>4</b>operations",
            "<b>1</b>questions to people",
        ] {
            assert!(page.contains(told), "{told}: {page}");
        }
        // The denial wasn't enforced.
        assert!(page.contains("<b>0</b>denied") && page.contains("dns QUERY"));
        for acts in ["<script", "alert(1)</", "\u{202e}", "javascript:"] {
            assert!(!page.contains(acts), "{acts}");
        }
    }

    #[test]
    fn tables_have_an_end_and_say_so() {
        let lines: Vec<Value> = (0..ROWS_MAX + 3)
            .map(|number| event(1, "", "signed_in", json!({"by": number.to_string()})))
            .collect();
        assert!(page(&lines).contains("3 more"));
        assert!(page(&[]).contains("not part of this export"));
    }
}
