//! A session as a readable dialogue, from its exported lines.

use std::fmt::Write as _;

use serde_json::Value;

use super::display::{Style, block, command_line, count, inert, paint, size, span};

/// Turns exported lines into text, one after the other.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Rows of a response that are shown; the rest is counted.
    rows: usize,
    color: bool,
}

/// Widest column of a shown row, in characters.
const CELL_CHARS_MAX: usize = 40;

impl Timeline {
    pub(super) const fn new(rows: usize, color: bool) -> Self {
        Self { rows, color }
    }

    /// The text of one line.
    pub(super) fn line(&self, line: &Value) -> String {
        let clock = clock(text(line, "time"));
        let body = match text(line, "kind") {
            "session_start" => self.start(line),
            "operation" => self.operation(line),
            "decision" => self.decision(line),
            "approval" => self.approval(line),
            "response" => self.response(line),
            "session_end" => self.end(line),
            "content" => self.content(line),
            _ => self.event(line),
        };
        let mut out = String::new();
        for (index, shown) in body.lines().enumerate() {
            let time = if index == 0 { clock.as_str() } else { "" };
            let time = paint(Style::Dim, &format!("{time:<12}"), self.color);
            // Writing to a string can't fail.
            _ = writeln!(out, "{time}  {shown}");
        }
        out
    }

    /// Who, and where to: above the dialogue.
    fn start(&self, line: &Value) -> String {
        let process = line.get("process").unwrap_or(&Value::Null);
        let arguments: Vec<&str> = process
            .get("arguments")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut out = format!(
            "{} agent {} connects to {}",
            self.bold("session"),
            inert(text(line, "agent")),
            inert(text(line, "destination")),
        );
        _ = write!(
            out,
            "\n  {} (pid {}, uid {}, cgroup {})",
            inert(text(process, "executable")),
            number(process, "pid"),
            number(process, "uid"),
            inert(text(process, "cgroup")),
        );
        if !arguments.is_empty() {
            _ = write!(out, "\n  {}", inert(&command_line(arguments.into_iter())));
        }
        out
    }

    fn operation(&self, line: &Value) -> String {
        let resources: Vec<String> = array(line, "resources")
            .map(|resource| inert(text(resource, "name")).into_owned())
            .collect();
        let mut out = format!(
            "{} {} · {}",
            self.bold(&format!("#{}", number(line, "operation"))),
            inert(&strings(line, "actions").join("; ")),
            strings(line, "effects").join(", "),
        );
        if !resources.is_empty() {
            _ = write!(out, " · {}", resources.join(", "));
        }
        out.push('\n');
        let gutter = self.gutter();
        match line.get("content") {
            Some(Value::String(statement)) if !statement.is_empty() => {
                out.push_str(&block(statement, &gutter));
            }
            Some(Value::String(_)) | None => {}
            Some(other) => _ = writeln!(out, "{gutter}{}", inert(&other.to_string())),
        }
        for (index, value) in array(line, "parameters").enumerate() {
            _ = writeln!(out, "{gutter}${} = {}", index + 1, cell(value));
        }
        out
    }

    fn decision(&self, line: &Value) -> String {
        let enforced = line.get("enforced").and_then(Value::as_bool) != Some(false);
        let (word, style) = match (text(line, "verdict"), enforced) {
            ("allow", _) => ("allowed", Style::Good),
            ("deny", true) => ("denied", Style::Bad),
            ("hold", true) => ("held", Style::Wait),
            ("deny", false) => ("would be denied (observing)", Style::Wait),
            ("hold", false) => ("would be held (observing)", Style::Wait),
            _ => ("decided", Style::Dim),
        };
        let mut out = format!(
            "   {} by rule {}",
            paint(style, word, self.color),
            inert(text(line, "rule"))
        );
        let reason = text(line, "reason");
        if !reason.is_empty() {
            _ = write!(out, ": {}", inert(reason));
        }
        let observed = line.get("observed").and_then(Value::as_array);
        for observed in observed.into_iter().flatten() {
            let (rule, would) = (text(observed, "rule"), text(observed, "would"));
            _ = write!(out, " · rule {} would {} it", inert(rule), inert(would));
        }
        let masks = strings(line, "masked_by");
        if !masks.is_empty() {
            _ = write!(out, " · masked by {}", inert(&masks.join(", ")));
        }
        out
    }

    fn approval(&self, line: &Value) -> String {
        let id = inert(text(line, "approval"));
        let step = match text(line, "step") {
            "requested" => format!(
                "{} is asked for, until {}",
                paint(Style::Wait, "approval", self.color),
                inert(text(line, "until"))
            ),
            "escalated" => format!(
                "{} are asked as well",
                inert(&strings(line, "groups").join(", "))
            ),
            "voted" => {
                let verb = match text(line, "choice") {
                    "approve" => "agrees",
                    "retract" => "takes the yes back",
                    _ => "refuses",
                };
                format!(
                    "{} {verb}{}{}",
                    inert(text(line, "by")),
                    because(line),
                    window(line)
                )
            }
            "left" => format!(
                "{}: {}",
                paint(Style::Dim, "not waited for", self.color),
                inert(text(line, "why"))
            ),
            "resumed" => "the same operation came again, and waits".to_owned(),
            "approved" => paint(
                Style::Good,
                &format!("approved, once{}", window(line)),
                self.color,
            ),
            "overridden" => format!(
                "{} by {}{}",
                paint(Style::Bad, "BREAK-GLASS: let through", self.color),
                inert(text(line, "by")),
                because(line)
            ),
            "unopposed" => paint(Style::Good, "approved: nobody objected in time", self.color),
            "admitted" => paint(Style::Good, "goes by what was approved before", self.color),
            "revoked" => format!(
                "{} by {}{}",
                paint(Style::Bad, "revoked", self.color),
                inert(text(line, "by")),
                because(line)
            ),
            "refused" => format!(
                "{} ({})",
                paint(Style::Bad, "refused", self.color),
                inert(text(line, "cause"))
            ),
            _ => format!(
                "{}: {}",
                paint(Style::Bad, "withdrawn", self.color),
                inert(text(line, "why"))
            ),
        };
        format!("   {step} · {id}")
    }

    fn response(&self, line: &Value) -> String {
        let status = match text(line, "status") {
            "complete" => paint(Style::Good, &inert(text(line, "tag")), self.color),
            "error" => format!(
                "{} {}",
                paint(
                    Style::Bad,
                    &format!("error {}", inert(text(line, "code"))),
                    self.color
                ),
                inert(text(line, "message"))
            ),
            "refused" => paint(Style::Bad, "refused by interceptor", self.color),
            "skipped" => "skipped after an error".to_owned(),
            "interrupted" => paint(Style::Bad, "interrupted", self.color),
            "continues" => "…".to_owned(),
            other => inert(other).into_owned(),
        };
        let answers = match number(line, "operation") {
            0 => String::new(),
            operation => format!("#{operation} "),
        };
        let is_message = line.get("head").is_some() || line.get("body").is_some();
        let rows = match line.get("answers") {
            Some(_) => count(number(line, "rows"), "record") + ", ",
            // What HTTP answers has none.
            None if is_message && number(line, "rows") == 0 => String::new(),
            None => count(number(line, "rows"), "row") + ", ",
        };
        let mut out = format!(
            "<- {answers}{status} · {rows}{}, {}",
            size(number(line, "bytes")),
            elapsed(number(line, "elapsed_ns")),
        );
        let masked = strings(line, "masked");
        if !masked.is_empty() {
            _ = write!(out, " · masked: {}", inert(&masked.join(", ")));
        }
        out.push('\n');
        self.rows(line, &mut out);
        self.body(line, &mut out);
        self.answers(line, &mut out);
        for notice in array(line, "notices") {
            _ = writeln!(
                out,
                "{}{} {}",
                self.gutter(),
                inert(text(notice, "severity")),
                inert(text(notice, "message"))
            );
        }
        out
    }

    fn rows(&self, line: &Value, out: &mut String) {
        let gutter = self.gutter();
        let rows: Vec<&Value> = array(line, "data").collect();
        let shown: Vec<Vec<String>> = rows
            .iter()
            .take(self.rows)
            .map(|row| row.as_array().into_iter().flatten().map(cell).collect())
            .collect();
        let names = strings(line, "columns");
        if !shown.is_empty() || !names.is_empty() {
            let names: Vec<String> = names.iter().map(|name| short(&inert(name))).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            for row in super::display::table(&names, &shown, self.color).lines() {
                _ = writeln!(out, "{gutter}{row}");
            }
        }
        let copied: Vec<&Value> = array(line, "copied").collect();
        for part in copied.iter().take(self.rows) {
            match part {
                Value::String(part) => out.push_str(&block(part.trim_end_matches('\n'), &gutter)),
                other => _ = writeln!(out, "{gutter}{}", cell(other)),
            }
        }
        let left = rows.len().saturating_sub(self.rows) + copied.len().saturating_sub(self.rows);
        if left > 0 {
            _ = writeln!(
                out,
                "{gutter}… and {}: see --rows, or `interceptor export`",
                count(left as u64, "more row")
            );
        }
    }

    /// The head and the beginning of the body of an HTTP response.
    fn body(&self, line: &Value, out: &mut String) {
        let gutter = self.gutter();
        for part in ["head", "body"] {
            match line.get(part) {
                Some(Value::String(text)) => {
                    let lines: Vec<&str> = text.trim_end().lines().collect();
                    let shown = lines.iter().take(self.rows).copied();
                    out.push_str(&block(&shown.collect::<Vec<_>>().join("\n"), &gutter));
                    let left = lines.len().saturating_sub(self.rows);
                    if left > 0 {
                        _ = writeln!(out, "{gutter}… and {}", count(left as u64, "more line"));
                    }
                }
                Some(_) => _ = writeln!(out, "{gutter}({part}: not text)"),
                None => {}
            }
        }
    }

    /// The records that a DNS server answered with, and what it said about them.
    fn answers(&self, line: &Value, out: &mut String) {
        let gutter = self.gutter();
        let records = strings(line, "answers");
        for record in records.iter().take(self.rows) {
            _ = writeln!(out, "{gutter}{}", inert(record));
        }
        let left = records.len().saturating_sub(self.rows);
        if left > 0 {
            _ = writeln!(
                out,
                "{gutter}… and {}: see --rows, or `interceptor export`",
                count(left as u64, "more record")
            );
        }
        if line.get("truncated").and_then(Value::as_bool) == Some(true) {
            _ = writeln!(out, "{gutter}(cut: the client is to ask again over TCP)");
        }
        for note in strings(line, "notes") {
            _ = writeln!(out, "{gutter}extended error {}", inert(note));
        }
    }

    /// What was sent within an operation, or the digest of what isn't on record.
    fn content(&self, line: &Value) -> String {
        let (arrow, who) = match text(line, "of") {
            "client" => ("->", "the agent"),
            _ => ("<-", "upstream"),
        };
        let mut out = match text(line, "message") {
            "" => format!(
                "{arrow} #{} {} in all from {who}",
                number(line, "operation"),
                size(number(line, "bytes"))
            ),
            kind => format!(
                "{arrow} #{} {} message from {who}, {}",
                number(line, "operation"),
                inert(kind),
                size(number(line, "bytes"))
            ),
        };
        let masked = strings(line, "masked");
        if !masked.is_empty() {
            _ = write!(out, " · masked {}", inert(&masked.join(", ")));
        }
        let digest = text(line, "digest");
        if !digest.is_empty() {
            _ = write!(out, ", not all on record: {}", inert(digest));
        }
        out.push('\n');
        self.body(line, &mut out);
        out
    }

    fn end(&self, line: &Value) -> String {
        format!(
            "{} {} · {}, {} from the agent, {} from upstream",
            self.bold("over"),
            inert(text(line, "reason")),
            count(number(line, "operations"), "operation"),
            size(number(line, "bytes_from_client")),
            size(number(line, "bytes_from_upstream")),
        )
    }

    fn event(&self, line: &Value) -> String {
        let detail: Vec<String> = line
            .get("detail")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(name, value)| {
                format!(
                    "{}={}",
                    inert(name),
                    inert(value.as_str().unwrap_or_default())
                )
            })
            .collect();
        format!(
            "{} {} {}",
            self.bold("event"),
            inert(text(line, "name")),
            detail.join(" ")
        )
    }

    fn gutter(&self) -> String {
        paint(Style::Dim, "   | ", self.color)
    }

    fn bold(&self, words: &str) -> String {
        paint(Style::Bold, words, self.color)
    }
}

/// `22:07:01.123` out of RFC 3339.
fn clock(time: &str) -> String {
    let of_day = time.split_once('T').map_or(time, |(_, of_day)| of_day);
    inert(of_day).chars().take(12).collect()
}

/// A value of a row, on one line and not too wide.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => short(&inert(text)),
        other => short(&inert(&other.to_string())),
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= CELL_CHARS_MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(CELL_CHARS_MAX - 1).collect();
    short.push('…');
    short
}

fn elapsed(nanoseconds: u64) -> String {
    let microseconds = nanoseconds / 1_000;
    if microseconds >= 10_000_000 {
        format!("{} s", microseconds / 1_000_000)
    } else {
        format!("{}.{:03} ms", microseconds / 1_000, microseconds % 1_000)
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or_default()
}

fn array<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn strings<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    array(value, name).filter_map(Value::as_str).collect()
}

/// `: the reason`, where there is one.
fn because(line: &Value) -> String {
    match text(line, "reason") {
        "" => String::new(),
        reason => format!(": {}", inert(reason)),
    }
}

/// What was agreed to beyond one operation.
fn window(line: &Value) -> String {
    let Some(window) = line.get("window").filter(|window| window.is_object()) else {
        return String::new();
    };
    let number = |name| window.get(name).and_then(Value::as_u64).unwrap_or(0);
    format!(
        ", and {} more of the same {} within {}",
        number("at_most"),
        inert(text(window, "scope")),
        span(std::time::Duration::from_secs(number("seconds")))
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(line: Value) -> String {
        Timeline::new(2, false).line(&line)
    }

    #[test]
    fn a_dialogue_reads_as_one() {
        let time = "2026-11-20T22:07:01.123456789Z";
        let lines = [
            json!({"time": time, "kind": "session_start", "agent": "demo", "destination": "127.0.0.1:5432",
                "process": {"executable": "/usr/bin/psql", "pid": 7, "uid": 0, "cgroup": "/x", "arguments": ["psql", "-c"]}}),
            json!({"time": time, "kind": "operation", "operation": 1, "actions": ["SELECT"], "effects": ["read"],
                "resources": [{"name": "shop.customers"}], "content": "SELECT *\nFROM shop.customers", "parameters": ["x", null]}),
            json!({"time": time, "kind": "decision", "verdict": "hold", "rule": "r", "reason": "ask", "enforced": true}),
            json!({"time": time, "kind": "approval", "step": "voted", "by": "alice", "choice": "approve", "reason": "fine", "approval": "00"}),
            json!({"time": time, "kind": "response", "operation": 1, "status": "complete", "tag": "SELECT 3", "rows": 3,
                "bytes": 2048, "elapsed_ns": 1_500_000, "masked": ["email"], "columns": ["id", "email"],
                "data": [["1", "a***"], ["2", null], ["3", "c"]]}),
            json!({"time": time, "kind": "session_end", "reason": "the client closed", "operations": 1,
                "bytes_from_client": 10, "bytes_from_upstream": 2048}),
        ];
        let text: String = lines.into_iter().map(shown).collect();
        assert_eq!(
            text,
            "22:07:01.123  session agent demo connects to 127.0.0.1:5432\n\
             \u{20}               /usr/bin/psql (pid 7, uid 0, cgroup /x)\n\
             \u{20}               psql -c\n\
             22:07:01.123  #1 SELECT · read · shop.customers\n\
             \u{20}                | SELECT *\n\
             \u{20}                | FROM shop.customers\n\
             \u{20}                | $1 = x\n\
             \u{20}                | $2 = NULL\n\
             22:07:01.123     held by rule r: ask\n\
             22:07:01.123     alice agrees: fine · 00\n\
             22:07:01.123  <- #1 SELECT 3 · 3 rows, 2.0 KiB, 1.500 ms · masked: email\n\
             \u{20}                | id  email\n\
             \u{20}                | 1   a***\n\
             \u{20}                | 2   NULL\n\
             \u{20}                | … and 1 more row: see --rows, or `interceptor export`\n\
             22:07:01.123  over the client closed · 1 operation, 10 B from the agent, 2.0 KiB from upstream\n"
        );
    }

    #[test]
    fn an_answer_of_the_dns_is_shown_record_by_record() {
        let line = json!({"time": "2026-11-20T22:07:01.123456789Z", "kind": "response", "operation": 2,
            "status": "complete", "tag": "NOERROR", "rows": 3, "bytes": 90, "elapsed_ns": 1_500_000,
            "answers": ["www.example.com. 300 CNAME a.example.net.", "a.example.net. 60 A 192.0.2.1",
                "a.example.net. 60 A 192.0.2.2"], "notes": ["3 stale"], "truncated": true});
        assert_eq!(
            shown(line),
            "22:07:01.123  <- #2 NOERROR · 3 records, 90 B, 1.500 ms\n\
             \u{20}                | www.example.com. 300 CNAME a.example.net.\n\
             \u{20}                | a.example.net. 60 A 192.0.2.1\n\
             \u{20}                | … and 1 more record: see --rows, or `interceptor export`\n\
             \u{20}                | (cut: the client is to ask again over TCP)\n\
             \u{20}                | extended error 3 stale\n"
        );
    }

    #[test]
    fn nothing_an_agent_or_server_wrote_is_alive() {
        let evil = "\u{1b}[2J\u{202e}\r\nover";
        let lines = [
            json!({"time": evil, "kind": "session_start", "agent": evil, "destination": evil,
                "process": {"executable": evil, "cgroup": evil, "arguments": [evil]}}),
            json!({"kind": "operation", "actions": [evil], "resources": [{"name": evil}], "content": evil,
                "parameters": [evil, {"hex": evil}]}),
            json!({"kind": "response", "status": "error", "code": evil, "message": evil, "masked": [evil],
                "columns": [evil], "data": [[evil]], "copied": [evil], "answers": [evil], "notes": [evil], "notices": [{"severity": evil, "message": evil}]}),
            json!({"kind": "response", "status": evil}),
            json!({"kind": "approval", "step": "voted", "by": evil, "reason": evil, "approval": evil}),
            json!({"kind": "decision", "rule": evil, "reason": evil, "masked_by": [evil]}),
            json!({"kind": "session_end", "reason": evil}),
            json!({"kind": "event", "name": evil, "detail": {"a": evil}}),
            json!({"kind": evil}),
            json!(null),
        ];
        for line in lines {
            let text = shown(line);
            assert!(
                !text.contains(['\u{1b}', '\u{202e}', '\r']),
                "{}",
                text.escape_debug()
            );
            assert!(!text.lines().any(|line| line.starts_with("over")), "{text}");
        }
    }
}
