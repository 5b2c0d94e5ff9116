//! One page that needs nothing but a browser: sessions with what was asked, decided, agreed to and answered.
//!
//! It asks the network for nothing, and its policy (CSP) lets it run no script but ours. What agents and servers wrote
//! goes through [`text`]. A session is written when it is over, or in parts where it is long.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
};

use askama::Template;
use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    Form,
    deed::{Deed, Deeds, Kept, Session},
    line::{bytes, get, list, moment, number, plain, text as word, texts},
};
use crate::{
    console::text::{self, Language, Shown},
    inert::inert,
};

/// Writes exported lines as a page.
#[derive(Debug)]
pub struct Html {
    title: String,
    is_begun: bool,
    deeds: Deeds,
    /// Sessions that are open, and what was outside of any.
    parts: BTreeMap<String, Part>,
    counts: Counts,
    /// Times of the first and the last line.
    span: Option<(String, String)>,
}

/// What of a session isn't written yet.
#[derive(Debug, Default)]
struct Part {
    /// Parts that are written.
    number: u64,
    entries: String,
}

#[derive(Debug, Default)]
struct Counts {
    sessions: u64,
    operations: u64,
    denied: u64,
    held: u64,
    masked: u64,
}

const STYLE: &str = include_str!("html/report.css");
const SCRIPT: &str = include_str!("html/report.js");

/// What is kept of answers: what somebody reads on a page. The rest is counted. Bodies are cut short, or a few thousand
/// requests would make a page that no browser opens.
const KEPT: Kept = Kept {
    rows_max: 50,
    body_bytes_max: 4 << 10,
};

/// Bytes of a statement that are shown; the rest is counted.
const CONTENT_BYTES_MAX: usize = 64 << 10;

/// Bytes of entries that are kept of a session before they are written.
const PART_BYTES_MAX: usize = 1 << 20;

#[derive(Template)]
#[template(path = "report_head.html")]
struct Head<'a> {
    title: text::Html,
    style: &'a str,
    style_hash: String,
    script_hash: String,
}

#[derive(Template)]
#[template(path = "report_section.html")]
struct Section<'a> {
    heading: text::Html,
    detail: String,
    facts: Vec<(&'static str, text::Html)>,
    entries: Entries<'a>,
}

/// Entries that are rendered already.
struct Entries<'a>(&'a str);

impl std::fmt::Display for Entries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl askama::filters::HtmlSafe for Entries<'_> {}

#[derive(Template)]
#[template(path = "report_tail.html")]
struct Tail<'a> {
    totals: Vec<(u64, &'static str)>,
    version: &'static str,
    span: String,
    script: &'a str,
}

/// Something that happened.
#[derive(Template, Default)]
#[template(path = "report_entry.html")]
struct Entry {
    /// What scripts find it by, and how it looks.
    style: String,
    /// For scripts, in attributes.
    at: String,
    clock: text::Html,
    title: text::Html,
    verdict: String,
    tone: &'static str,
    detail: text::Html,
    why: text::Html,
    flags: Vec<String>,
    blocks: Vec<Block>,
    values: Vec<(String, text::Html)>,
    steps: Vec<(text::Html, text::Html)>,
    answer: text::Html,
    columns: Vec<text::Html>,
    rows: Vec<Vec<text::Html>>,
    more: String,
}

/// Content with what it is.
struct Block {
    name: &'static str,
    shown: Shown,
}

impl Html {
    /// A page with this title.
    #[must_use]
    pub fn new(title: String) -> Self {
        Self {
            title,
            is_begun: false,
            deeds: Deeds::new(KEPT),
            parts: BTreeMap::new(),
            counts: Counts::default(),
            span: None,
        }
    }
}

impl Form for Html {
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64> {
        self.begin(out)?;
        let at = word(&line, "time").to_owned();
        match &mut self.span {
            Some((_, last)) => *last = at,
            None => self.span = Some((at.clone(), at)),
        }
        let id = word(&line, "session").to_owned();
        let session = self.deeds.session(&line);
        let entry = match word(&line, "kind") {
            "session_start" => {
                self.counts.sessions += 1;
                None
            }
            "session_end" => {
                let deeds = self.deeds.take(line.clone());
                let count = self.deeds(&id, &deeds, out)?;
                self.note(&id, &session, ended(&line), out)?;
                self.write(&id, &session, true, out)?;
                self.parts.remove(&id);
                return Ok(count);
            }
            "event" => Some(event(&line)),
            // Messages of an upgraded connection stand for themselves.
            "content" if !word(&line, "message").is_empty() => Some(message(&line)),
            _ => None,
        };
        if let Some(entry) = entry {
            self.note(&id, &session, entry, out)?;
        }
        let deeds = self.deeds.take(line);
        self.deeds(&id, &deeds, out)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        self.begin(out)?;
        let mut count = 0;
        for deed in self.deeds.finish() {
            let id = word(&deed.operation, "session").to_owned();
            count += self.deeds(&id, &[deed], out)?;
        }
        let left: Vec<String> = self.parts.keys().cloned().collect();
        for id in left {
            let line = Value::Object(
                [("session".to_owned(), id.clone().into())]
                    .into_iter()
                    .collect(),
            );
            let session = self.deeds.session(&line);
            self.write(&id, &session, true, out)?;
        }
        let Counts {
            sessions,
            operations,
            denied,
            held,
            masked,
        } = self.counts;
        let span = self.span.take().unwrap_or_default();
        let span = match span {
            (first, _) if first.is_empty() => String::new(),
            (first, last) => format!("{} to {}", moment(&first), moment(&last)),
        };
        let tail = Tail {
            totals: vec![
                (sessions, "sessions"),
                (operations, "operations"),
                (denied, "denied or failed"),
                (held, "held for people"),
                (masked, "with masked values"),
            ],
            version: env!("CARGO_PKG_VERSION"),
            span,
            script: SCRIPT,
        };
        render(&tail, out)?;
        Ok(count)
    }
}

impl Html {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.is_begun, true) {
            return Ok(());
        }
        let hash = |text: &str| {
            let digest = digest::digest(&digest::SHA256, text.as_bytes());
            format!("sha256-{}", STANDARD.encode(digest))
        };
        let head = Head {
            title: text::line(&self.title),
            style: STYLE,
            style_hash: hash(STYLE),
            script_hash: hash(SCRIPT),
        };
        render(&head, out)
    }

    fn deeds(&mut self, id: &str, deeds: &[Deed], out: &mut dyn Write) -> io::Result<u64> {
        for deed in deeds {
            let entry = operation(deed);
            self.counts.operations += 1;
            self.counts.denied += u64::from(entry.style.contains("deny"));
            self.counts.held += u64::from(entry.style.contains("hold"));
            self.counts.masked += u64::from(entry.style.contains("masked"));
            self.note(id, &deed.session, entry, out)?;
        }
        Ok(deeds.len() as u64)
    }

    fn note(
        &mut self,
        id: &str,
        session: &Session,
        entry: Entry,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let part = self.parts.entry(id.to_owned()).or_default();
        let rendered = entry.render().map_err(io::Error::other)?;
        part.entries.push_str(&rendered);
        part.entries.push('\n');
        if part.entries.len() >= PART_BYTES_MAX {
            self.write(id, session, false, out)?;
        }
        Ok(())
    }

    /// Writes what there is of a session.
    fn write(
        &mut self,
        id: &str,
        session: &Session,
        is_last: bool,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let Some(part) = self.parts.get_mut(id) else {
            return Ok(());
        };
        if part.number > 0 || !is_last {
            part.number += 1;
        }
        let start = &session.start;
        let mut facts = Vec::new();
        let heading = if id.is_empty() {
            "Outside of sessions".to_owned()
        } else if start.is_null() {
            format!("Session {id}")
        } else {
            let mut fact = |name, value: String| {
                if !value.is_empty() {
                    facts.push((name, text::line(&value)));
                }
            };
            let process = get(start, "process");
            fact("Began", moment(word(start, "time")));
            fact("Session", id.to_owned());
            fact("Program", word(process, "executable").to_owned());
            fact("Command line", texts(process, "arguments").join(" "));
            let (pid, uid) = (number(process, "pid"), number(process, "uid"));
            fact("Process", format!("{pid} of user {uid}"));
            fact("Control group", word(process, "cgroup").to_owned());
            format!("{} to {}", word(start, "agent"), word(start, "destination"))
        };
        let detail = match part.number {
            0 => String::new(),
            number => format!("Part {number} of it"),
        };
        let entries = std::mem::take(&mut part.entries);
        let section = Section {
            heading: text::line(&heading),
            detail,
            facts,
            entries: Entries(&entries),
        };
        render(&section, out)
    }
}

fn render(template: &impl Template, out: &mut dyn Write) -> io::Result<()> {
    let rendered = template.render().map_err(io::Error::other)?;
    out.write_all(rendered.as_bytes())
}

/// An entry of that time.
fn at(line: &Value) -> Entry {
    let time = word(line, "time");
    Entry {
        at: inert(time).into_owned(),
        clock: clock(time),
        ..Entry::default()
    }
}

/// `22:07:01.123`.
fn clock(time: &str) -> text::Html {
    text::line(time.get(11..23).unwrap_or(time))
}

/// `1.500 ms`, `12 s`.
fn elapsed(nanoseconds: u64) -> String {
    let microseconds = nanoseconds / 1_000;
    match microseconds {
        10_000_000.. => format!("{} s", microseconds / 1_000_000),
        _ => format!("{}.{:03} ms", microseconds / 1_000, microseconds % 1_000),
    }
}

/// `1 row`, `5 rows`.
fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

fn ended(line: &Value) -> Entry {
    Entry {
        style: "note".to_owned(),
        title: text::line("over"),
        detail: text::line(&format!(
            "{}; {}, {} from the agent, {} from the server",
            word(line, "reason"),
            count(number(line, "operations"), "operation"),
            count(number(line, "bytes_from_client"), "byte"),
            count(number(line, "bytes_from_upstream"), "byte")
        )),
        ..at(line)
    }
}

fn event(line: &Value) -> Entry {
    let facts: Vec<String> = get(line, "detail")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    Entry {
        style: "note".to_owned(),
        title: text::line(&word(line, "name").replace('_', " ")),
        detail: text::line(&facts.join(", ")),
        ..at(line)
    }
}

fn message(line: &Value) -> Entry {
    let of = match word(line, "of") {
        "client" => "the agent",
        _ => "the server",
    };
    let title = format!(
        "#{} {} message of {of}",
        number(line, "operation"),
        word(line, "message")
    );
    let body = get(line, "body");
    let blocks = match body {
        Value::Null => Vec::new(),
        body => vec![block("", &plain(body), Language::Plain)],
    };
    Entry {
        style: "note".to_owned(),
        title: text::line(&title),
        blocks,
        ..at(line)
    }
}

fn operation(deed: &Deed) -> Entry {
    let line = &deed.operation;
    let mut entry = at(line);
    let resources: Vec<&str> = list(line, "resources")
        .map(|resource| word(resource, "name"))
        .collect();
    let mut detail = texts(line, "effects").join(", ");
    if !resources.is_empty() {
        _ = write!(detail, " · {}", resources.join(", "));
    }
    entry.title = text::line(&format!(
        "#{} {}",
        number(line, "operation"),
        deed.actions()
    ));
    entry.detail = text::line(&detail);
    decided(&mut entry, deed);
    let language = match word(line, "protocol") {
        "postgres" => Language::Sql,
        _ => Language::Plain,
    };
    let content = plain(get(line, "content"));
    // A head ends with an empty line.
    let content = match word(line, "protocol") {
        "http" => content.trim_end(),
        _ => &content,
    };
    if !content.is_empty() {
        entry.block("", content, language);
    }
    for (index, value) in list(line, "parameters").enumerate() {
        entry.values.push((format!("${}", index + 1), cell(value)));
    }
    if !deed.sent.first.is_empty() {
        let shown = String::from_utf8_lossy(&deed.sent.first).into_owned();
        entry.block("Sent with it", &shown, Language::Plain);
        entry.left(deed.sent.bytes - deed.sent.first.len() as u64, "bytes sent");
    }
    entry.steps = deed.approvals.iter().map(step).collect();
    answered(&mut entry, deed);
    let flags: Vec<String> = entry
        .blocks
        .iter()
        .flat_map(|block| block.shown.flags())
        .collect();
    entry.flags = flags;
    entry
}

/// What was decided, in a word and why.
fn decided(entry: &mut Entry, deed: &Deed) {
    let decision = &deed.decision;
    let is_enforced = get(decision, "enforced") != false;
    let (outcome, by) = deed.approval();
    let passed = matches!(
        &*outcome,
        "approved" | "overridden" | "unopposed" | "admitted"
    );
    let (verdict, tone) = match (word(decision, "verdict"), is_enforced) {
        ("", _) => ("", ""),
        ("allow", _) => ("allowed", "allow"),
        ("deny", true) => ("denied", "deny"),
        (_, true) if passed => ("held, then approved", "hold"),
        (_, true) if outcome == "refused" => ("held, then refused", "deny"),
        (_, true) => ("held", "hold"),
        ("deny", false) => ("would be denied", "allow"),
        (_, false) => ("would be held", "allow"),
    };
    entry.style = format!("operation {tone}");
    if is_enforced && word(decision, "verdict") == "hold" && tone != "hold" {
        entry.style.push_str(" hold");
    }
    entry.verdict = verdict.to_owned();
    entry.tone = tone;
    if decision.is_null() {
        return;
    }
    let mut why = format!("By rule {}", word(decision, "rule"));
    let reason = word(decision, "reason");
    if !reason.is_empty() {
        _ = write!(why, ": {reason}");
    }
    if !by.is_empty() {
        _ = write!(why, " · answered by {by}");
    }
    for other in list(decision, "observed") {
        let (rule, would) = (word(other, "rule"), word(other, "would"));
        _ = write!(why, " · rule {rule} would {would} it");
    }
    entry.why = text::line(&why);
}

/// A step of its approval: when and what.
fn step(line: &Value) -> (text::Html, text::Html) {
    let by = word(line, "by");
    let mut what = match word(line, "step") {
        "requested" => format!("people are asked, until {}", moment(word(line, "until"))),
        "estimated" => "what it would touch was found out".to_owned(),
        "voted" => match word(line, "choice") {
            "approve" => format!("{by} agrees"),
            "retract" => format!("{by} takes the yes back"),
            _ => format!("{by} refuses"),
        },
        "overridden" => format!("{by} lets it through alone (break-glass)"),
        "unopposed" => "nobody objected in time".to_owned(),
        "admitted" => "goes by what was approved before".to_owned(),
        step => step.to_owned(),
    };
    for name in ["reason", "why", "cause"] {
        let reason = plain(get(line, name));
        if !reason.is_empty() {
            _ = write!(what, ": {reason}");
        }
    }
    (clock(word(line, "time")), text::line(&what))
}

/// What came back.
fn answered(entry: &mut Entry, deed: &Deed) {
    let answer = &deed.answer;
    let last = &answer.last;
    let said = match deed.status() {
        "" => "no end of its answer is on record".to_owned(),
        "complete" => word(last, "tag").to_owned(),
        "error" => format!("error {} {}", word(last, "code"), word(last, "message")),
        "refused" => "refused by interceptor".to_owned(),
        "skipped" => "skipped after an error".to_owned(),
        other => other.to_owned(),
    };
    let mut shown = format!("← {said} · {}", count(answer.bytes, "byte"));
    if answer.rows > 0 {
        _ = write!(shown, ", {}", count(answer.rows, "row"));
    }
    _ = write!(shown, ", {}", elapsed(answer.elapsed_ns));
    if !answer.masked.is_empty() {
        entry.style.push_str(" masked");
        let masked: Vec<&str> = answer.masked.iter().map(String::as_str).collect();
        _ = write!(shown, " · masked: {}", masked.join(", "));
    }
    let failed = matches!(deed.status(), "error" | "refused" | "interrupted");
    if failed && !entry.style.contains("deny") {
        entry.style.push_str(" deny");
    }
    entry.answer = text::line(&shown);
    let head = bytes(&answer.head);
    if !head.is_empty() {
        let head = String::from_utf8_lossy(&head).trim_end().to_owned();
        entry.block("Answer", &head, Language::Plain);
    }
    if !answer.body.first.is_empty() {
        match std::str::from_utf8(&answer.body.first) {
            Ok(body) => entry.block("Body", body, Language::Plain),
            // Cut within a character, or no text at all.
            Err(error) if error.error_len().is_none() => {
                let body = String::from_utf8_lossy(&answer.body.first).into_owned();
                entry.block("Body", &body, Language::Plain);
            }
            Err(_) => {
                entry.more = format!("A body that isn't text, of {} bytes. ", answer.body.bytes)
            }
        }
        let left = answer.body.bytes - answer.body.first.len() as u64;
        entry.left(left, "bytes of its body");
    }
    for answer in &answer.answers {
        entry.rows.push(vec![cell(answer)]);
    }
    entry.columns = answer.columns.iter().map(cell).collect();
    let rows = answer.data.iter().map(|row| match row {
        Value::Array(values) => values.iter().map(cell).collect(),
        other => vec![cell(other)],
    });
    entry.rows.extend(rows);
    if answer.answers.is_empty() {
        let left = answer.rows.saturating_sub(answer.data.len() as u64);
        let has_rows = !answer.columns.is_empty() || !answer.data.is_empty();
        entry.left(if has_rows { left } else { 0 }, "rows");
    }
}

impl Entry {
    fn block(&mut self, name: &'static str, content: &str, language: Language) {
        let mut end = content.len().min(CONTENT_BYTES_MAX);
        while !content.is_char_boundary(end) {
            end -= 1;
        }
        let (shown, left) = content.split_at_checked(end).unwrap_or((content, ""));
        self.blocks.push(block(name, shown, language));
        self.left(left.len() as u64, "bytes");
    }

    /// Says that so much isn't shown.
    fn left(&mut self, count: u64, what: &str) {
        if count > 0 {
            _ = write!(self.more, "{count} more {what} aren't shown. ");
        }
    }
}

fn block(name: &'static str, content: &str, language: Language) -> Block {
    Block {
        name,
        shown: text::block(content, language),
    }
}

fn cell(value: &Value) -> text::Html {
    match value {
        Value::Null => text::line("NULL"),
        other => text::line(&plain(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        inert::acts_or_hides,
        journal::export::{sample, written},
    };

    fn page(lines: &[Value]) -> String {
        let mut form = Html::new("All agents".to_owned());
        String::from_utf8(written(&mut form, lines).1).unwrap()
    }

    #[test]
    fn everything_is_told_and_nothing_of_it_acts() {
        let page = page(&sample());
        for told in [
            "demo to 192.0.2.5:5432",
            "#1 DELETE",
            "held, then approved",
            "alice agrees: fine",
            "masked: email",
            "← DELETE 1",
            "$1",
            "GET /a?b=c HTTP/1.1",
            "hello",
            "www.example. 300 A 192.0.2.7",
            "daemon stopped",
            "Outside of sessions",
            "<b>4</b>sessions",
            "<b>4</b>operations",
        ] {
            assert!(page.contains(told), "{told}");
        }
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("&lt;script&gt;alert(1)"));
        assert!(!page.contains("\u{202e}") && page.contains("\\u{202e}"));
        let ours = page.replace('\n', "");
        assert!(!ours.contains(acts_or_hides));
        assert_eq!(
            page.matches("<section>").count(),
            page.matches("</section>").count()
        );
    }

    #[test]
    fn its_policy_lets_run_what_is_in_it_alone() {
        let page = page(&[]);
        for (kind, open, close) in [
            ("style", "<style>", "</style>"),
            ("script", "<script>", "</script>"),
        ] {
            let (_, behind) = page.split_once(open).unwrap();
            let (text, _) = behind.split_once(close).unwrap();
            let digest = digest::digest(&digest::SHA256, text.as_bytes());
            let allowed = format!("{kind}-src 'sha256-{}'", STANDARD.encode(digest));
            assert!(page.contains(&allowed), "{allowed}");
        }
        assert!(page.contains("default-src 'none'"));
        for network in ["http://", "https://", "url(", "@import", "fetch(", "src="] {
            assert!(!page.contains(network), "{network}");
        }
    }

    #[test]
    fn a_long_session_comes_in_parts_and_much_is_counted() {
        let start = json!({"kind": "session_start", "session": "s", "agent": "a", "destination": "d", "time": "2026-11-20T22:07:01Z", "process": {}});
        let content = "x".repeat(CONTENT_BYTES_MAX + 5);
        let mut lines = vec![start];
        for number in 1..=20 {
            lines.push(json!({"kind": "operation", "session": "s", "operation": number, "protocol": "opaque", "content": content}));
            let rows: Vec<Value> = (0..60).map(|row| json!([row.to_string()])).collect();
            lines.push(json!({"kind": "response", "session": "s", "operation": number, "status": "complete", "tag": "x", "rows": 60, "columns": ["n"], "data": rows}));
        }
        let page = page(&lines);
        assert!(page.contains("Part 1 of it") && page.contains("Part 2 of it"));
        assert!(page.contains("5 more bytes aren&#39;t shown. 10 more rows aren&#39;t shown."));
        assert_eq!(page.matches("class=\"entry").count(), 20);
    }
}
