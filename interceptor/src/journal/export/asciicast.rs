//! asciicast v2: what was said as text in time, for asciinema's player.
//!
//! Who shows lines as text is given; what an agent wrote does nothing there already.

use std::{
    fmt,
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Form,
    line::{text, time},
};

/// Writes exported lines as output of a terminal, in the time in which they came.
pub struct Asciicast {
    show: Box<dyn FnMut(&Value) -> String>,
    pause_max: Duration,
    /// When the line before this one was recorded.
    last_ns: Option<u64>,
    /// What has been shown so far takes this long.
    played: Duration,
    session: String,
}

/// The terminal's size, in characters.
const WIDTH: u16 = 132;
const HEIGHT: u16 = 40;

impl Asciicast {
    /// Shows lines by `show`; where nothing happens for longer than `pause_max`, that long.
    pub fn new(pause_max: Duration, show: impl FnMut(&Value) -> String + 'static) -> Self {
        Self {
            show: Box::new(show),
            pause_max,
            last_ns: None,
            played: Duration::ZERO,
            session: String::new(),
        }
    }

    fn begin(&self, line: Option<&Value>, out: &mut dyn Write) -> io::Result<()> {
        let mut header =
            json!({"version": 2, "width": WIDTH, "height": HEIGHT, "title": "interceptor"});
        if let (Some(line), Value::Object(members)) = (line, &mut header) {
            members.insert(
                "timestamp".to_owned(),
                (time(line).0 / 1_000_000_000).into(),
            );
            let title = match (text(line, "session"), text(line, "agent")) {
                ("", _) => "interceptor".to_owned(),
                (session, agent) => format!("interceptor: session {session} of {agent}"),
            };
            let title = crate::inert::inert(&title).into_owned();
            members.insert("title".to_owned(), title.into());
        }
        writeln!(out, "{header}")
    }
}

impl Form for Asciicast {
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64> {
        let at_ns = time(&line).0;
        let Some(last_ns) = self.last_ns else {
            self.begin(Some(&line), out)?;
            self.last_ns = Some(at_ns);
            return self.show(&line, out);
        };
        // Sessions run beside each other: a record may be of an earlier moment than the one before it.
        let pause = Duration::from_nanos(at_ns.saturating_sub(last_ns));
        self.played += pause.min(self.pause_max);
        self.last_ns = Some(last_ns.max(at_ns));
        self.show(&line, out)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        if self.last_ns.is_none() {
            self.begin(None, out)?;
        }
        Ok(0)
    }
}

impl Asciicast {
    fn show(&mut self, line: &Value, out: &mut dyn Write) -> io::Result<u64> {
        let mut shown = String::new();
        let session = text(line, "session");
        if session != self.session {
            session.clone_into(&mut self.session);
            let of = if session.is_empty() {
                "the daemon"
            } else {
                session
            };
            shown = crate::inert::inert(&format!("-- {of} {}", text(line, "agent"))).into_owned();
            shown.push('\n');
        }
        shown.push_str(&(self.show)(line));
        if shown.is_empty() {
            return Ok(0);
        }
        // A terminal's cursor goes down by one and to the left by the other.
        let shown = shown.replace('\n', "\r\n");
        let microseconds = self.played.as_micros();
        let (seconds, fraction) = (microseconds / 1_000_000, microseconds % 1_000_000);
        writeln!(
            out,
            "[{seconds}.{fraction:06}, \"o\", {}]",
            Value::from(shown)
        )?;
        Ok(1)
    }
}

impl fmt::Debug for Asciicast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asciicast")
            .field("pause_max", &self.pause_max)
            .field("played", &self.played)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::export::written;

    fn cast(lines: &[Value]) -> Vec<Value> {
        let show = |line: &Value| format!("{}\n", text(line, "kind"));
        let mut cast = Asciicast::new(Duration::from_secs(2), show);
        let (_, out) = written(&mut cast, lines);
        let out = String::from_utf8(out).unwrap();
        out.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn lines_are_output_in_time_and_pauses_have_an_end() {
        let line = |kind: &str, time: &str| json!({"kind": kind, "session": "s", "agent": "a\u{1b}", "time": time});
        let lines = [
            line("session_start", "2026-11-20T22:07:01.25Z"),
            line("operation", "2026-11-20T22:07:01.5Z"),
            // Out of order by a little, as sessions beside each other are.
            line("decision", "2026-11-20T22:07:01.4Z"),
            line("response", "2026-11-20T23:00:00Z"),
        ];
        let cast = cast(&lines);
        assert_eq!(
            cast[0],
            json!({"version": 2, "width": WIDTH, "height": HEIGHT, "timestamp": 1_795_212_421, "title": "interceptor: session s of a\\u{1b}"})
        );
        assert_eq!(
            cast[1..],
            [
                json!([0.0, "o", "-- s a\\u{1b}\r\nsession_start\r\n"]),
                json!([0.25, "o", "operation\r\n"]),
                json!([0.25, "o", "decision\r\n"]),
                json!([2.25, "o", "response\r\n"]),
            ]
        );
    }

    #[test]
    fn nothing_is_a_cast_too() {
        assert_eq!(cast(&[]).len(), 1);
    }
}
