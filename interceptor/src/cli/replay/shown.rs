//! How a session's lines are shown while it is played: the timeline, with beginnings of what is long, and folded to
//! the terminal's width, so that nothing an agent wrote comes to stand where our own words do.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::Value;
use unicode_width::UnicodeWidthChar as _;

use super::{
    super::{
        display::{count, size},
        timeline::Timeline,
    },
    player::Frame,
};
use crate::rfc3339;

/// Lines of a statement that are shown.
const STATEMENT_LINES_MAX: usize = 40;

/// Characters of a statement or a body that are shown, some screens.
const SHOWN_CHARACTERS_MAX: usize = 4_000;

/// Where what is said begins in a line, behind the time.
const INDENT: usize = 14;

/// What stands before each line that an agent wrote.
const GUTTER: &str = "   | ";

/// Fewest columns that are folded to.
const WIDTH_MIN: usize = 40;

/// Turns the exported lines of a session into frames, one after the other.
#[derive(Debug)]
pub(super) struct Dialogue {
    timeline: Timeline,
    /// Lines of a body that are shown.
    lines: usize,
    /// Operations in HTTP whose response hasn't ended.
    requests: BTreeSet<u64>,
}

impl Dialogue {
    pub(super) fn new(rows: usize, color: bool) -> Self {
        Self {
            timeline: Timeline::new(rows, color),
            lines: rows,
            requests: BTreeSet::new(),
        }
    }

    /// The frame of one line.
    pub(super) fn frame(&mut self, line: &Value) -> Frame {
        let time = line.get("time").and_then(Value::as_str);
        let at = time.and_then(|time| rfc3339::parse(time).ok());
        let kind = line.get("kind").and_then(Value::as_str).unwrap_or_default();
        let number = line.get("operation").and_then(Value::as_u64);
        let mut line = line.clone();
        match kind {
            "operation" => {
                let is_http = line.get("protocol").and_then(Value::as_str) == Some("http");
                if is_http {
                    self.requests.extend(number);
                }
                self.shorten(&mut line, "content", is_http);
            }
            "response" => {
                self.shorten(&mut line, "head", true);
                self.shorten(&mut line, "body", false);
            }
            "content" => self.shorten(&mut line, "body", false),
            _ => {}
        }
        Frame {
            at_ns: at.map_or(0, |at| at.0),
            operation: number.filter(|_| kind == "operation"),
            text: self.timeline.line(&line),
        }
    }

    /// Has the text `name` of `line` be the beginning of what it is; of a message in HTTP its first line, how much
    /// of a head there is, and the beginning of its body.
    fn shorten(&self, line: &mut Value, name: &str, is_message: bool) {
        let Some(Value::String(text)) = line.get_mut(name) else {
            return;
        };
        if !is_message {
            let lines = match name {
                "content" => STATEMENT_LINES_MAX,
                _ => self.lines,
            };
            if let Some(short) = beginning(text, lines) {
                *text = short;
            }
            return;
        }
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let mut short = lines.next().unwrap_or_default().to_owned();
        if let Some(cut) = beginning(&short, 1) {
            short = cut;
        }
        let fields = lines.filter(|line| !line.is_empty()).count() as u64;
        _ = write!(
            short,
            "\n({}, {})",
            count(fields, "header field"),
            size(head.len() as u64)
        );
        if !body.is_empty() {
            let shown = beginning(body, self.lines);
            _ = write!(short, "\n\n{}", shown.as_deref().unwrap_or(body));
        }
        *text = short;
    }
}

/// The beginning of `text` with how much is left out; none where all of it is short enough.
fn beginning(text: &str, lines_max: usize) -> Option<String> {
    let mut end = text
        .char_indices()
        .nth(SHOWN_CHARACTERS_MAX)
        .map_or(text.len(), |(at, _)| at);
    let shown = text.get(..end)?;
    let line = shown.match_indices('\n').nth(lines_max.saturating_sub(1));
    end = line.map_or(end, |(at, _)| at);
    let left = text.get(end..).filter(|left| !left.trim().is_empty())?;
    Some(format!(
        "{}\n… and {} more: `interceptor sessions show` has all of it",
        text.get(..end)?,
        size(left.len() as u64)
    ))
}

/// `text` with its lines folded to `width` columns. What is folded goes on behind the same gutter.
pub(super) fn fold(text: &str, width: usize) -> String {
    // The last column stays free: some terminals go on to the next line as soon as it is filled.
    let width = width.max(WIDTH_MIN) - 1;
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let plain = unpainted(line);
        let is_quoted = plain
            .char_indices()
            .nth(INDENT)
            .and_then(|(at, _)| plain.get(at..))
            .is_some_and(|rest| rest.starts_with(GUTTER));
        let before = if is_quoted { GUTTER } else { "     " };
        let mut column = 0;
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            if character == '\u{1b}' {
                // A colour of ours: nothing else that acts is left in it.
                out.push(character);
                for part in characters.by_ref() {
                    out.push(part);
                    if part == 'm' {
                        break;
                    }
                }
                continue;
            }
            let columns = character.width().unwrap_or(0);
            if column + columns > width {
                _ = write!(out, "\n{:INDENT$}{before}", "");
                column = INDENT + before.len();
            }
            out.push(character);
            column += columns;
        }
        out.push('\n');
    }
    out
}

/// `line` without colours.
fn unpainted(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut is_color = false;
    for character in line.chars() {
        match character {
            '\u{1b}' => is_color = true,
            'm' if is_color => is_color = false,
            _ if is_color => {}
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn shown(line: Value) -> String {
        Dialogue::new(3, false).frame(&line).text
    }

    #[test]
    fn a_request_is_its_first_line_its_size_and_the_beginning_of_its_body() {
        let body = (1..=9)
            .map(|line| format!("line {line}\n"))
            .collect::<String>();
        let request = format!("POST /a?b=c HTTP/1.1\r\nHost: x.example\r\nA: b\r\n\r\n{body}");
        let line = json!({"time": "2026-11-20T22:07:01.123456789Z", "kind": "operation", "operation": 2, "protocol": "http",
            "actions": ["POST"], "effects": ["write"], "resources": [{"name": "x.example/a"}], "content": request});
        assert_eq!(
            shown(line),
            "22:07:01.123  #2 POST · write · x.example/a\n\
             \u{20}                | POST /a?b=c HTTP/1.1\n\
             \u{20}                | (2 header fields, 43 B)\n\
             \u{20}                | \n\
             \u{20}                | line 1\n\
             \u{20}                | line 2\n\
             \u{20}                | line 3\n\
             \u{20}                | … and 43 B more: `interceptor sessions show` has all of it\n"
        );
        let line = json!({"time": "2026-11-20T22:07:01.123456789Z", "kind": "response", "operation": 2, "status": "complete",
            "tag": "200", "rows": 0, "bytes": 5, "elapsed_ns": 2_000_000, "head": "HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "body": "hello"});
        assert_eq!(
            shown(line),
            "22:07:01.123  <- #2 200 · 5 B, 2.000 ms\n\
             \u{20}                | HTTP/1.1 200 OK\n\
             \u{20}                | (1 header field, 21 B)\n\
             \u{20}                | hello\n"
        );
    }

    #[test]
    fn of_what_is_long_the_beginning_is_shown() {
        let line = json!({"kind": "operation", "operation": 1, "protocol": "postgres", "content": "x".repeat(16 << 20)});
        let text = shown(line);
        assert!(text.len() < 5_000);
        assert!(text.contains("… and 15.9 MiB more"));
        let line = json!({"kind": "operation", "operation": 1, "protocol": "postgres", "content": "a\n".repeat(1_000)});
        assert_eq!(shown(line).lines().count(), STATEMENT_LINES_MAX + 2);
    }

    #[test]
    fn what_is_folded_stays_behind_its_gutter() {
        let evil = format!("{}22:07:01.123     approved, once", "x".repeat(60));
        let line =
            json!({"kind": "operation", "operation": 1, "protocol": "postgres", "content": evil});
        let text = fold(&shown(line), 60);
        for line in text.lines().skip(1) {
            assert!(line.starts_with("                 | "), "{text}");
        }
        let colored =
            "\u{1b}[2m22:07:01.123\u{1b}[0m  \u{1b}[2m   | \u{1b}[0m".to_owned() + &"漢".repeat(40);
        let folded = fold(&colored, 50);
        assert_eq!(folded.lines().count(), 3, "{folded}");
        assert!(
            folded
                .lines()
                .skip(1)
                .all(|line| line.starts_with("                 | 漢"))
        );
        assert_eq!(fold("short\n", 80), "short\n");
    }

    proptest! {
        #[test]
        fn any_text_is_inert_and_no_wider_than_the_terminal(content in any::<String>(), width in 0..200_usize) {
            let line = json!({"kind": "operation", "operation": 1, "protocol": "http", "content": content,
                "actions": [content], "resources": [{"name": content}]});
            let text = fold(&shown(line), width);
            for line in text.lines() {
                prop_assert!(!line.contains(super::super::super::display::acts_or_hides));
                let columns: usize = line.chars().filter_map(|c| c.width()).sum();
                prop_assert!(columns < width.max(WIDTH_MIN));
            }
        }
    }
}
