//! `interceptor sessions replay`: a session again, at its own pace.
//!
//! What agents and servers wrote is shown escaped, as everywhere; nothing of it reaches the terminal as it is.

mod player;
mod screen;
mod shown;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use interceptor_core::record::{SessionId, Timestamp};
use serde_json::Value;

use self::{
    player::{Frame, Pace, Player},
    shown::Dialogue,
};
use super::{
    Context, Outcome, approvals,
    client::Reading,
    display::print,
    export::{ago, pause},
    failed::Failed,
    offline,
};
use crate::rfc3339;

/// Play a session as it went, at its own pace
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys while it plays:
  space          pause, and go on
  . or right     the next operation at once
  left           back to the operation before
  + and -        faster, slower
  q              stop

Where stdin or stdout is no terminal, all of it is printed at once.

Examples:
  interceptor sessions replay 8d3f00a1b2c4e5f6
  interceptor sessions replay 8d3f00a1b2c4e5f6 --speed 4 --max-pause 500ms
  interceptor sessions replay 8d3f00a1b2c4e5f6 --from 12 --step
  interceptor sessions replay 8d3f00a1b2c4e5f6 --state /path/to/copy | less")]
pub(super) struct Arguments {
    /// Its id
    #[arg(value_name = "ID")]
    id: SessionId,
    /// Longest pause: where nothing happened for longer it goes on after this (2s, 500ms, 1m)
    #[arg(long, value_name = "T", default_value = "2s", value_parser = short_pause)]
    max_pause: Duration,
    /// How many times as fast as it was, 0.05 to 100
    #[arg(long, value_name = "X", default_value = "1", value_parser = speed)]
    speed: f64,
    /// Where to begin: an operation (12), a time (2026-11-20T22:07:01Z) or how long after the session's start (90s, 5m)
    #[arg(long, value_name = "WHERE", value_parser = from)]
    from: Option<From>,
    /// Go on by one operation a key
    #[arg(long)]
    step: bool,
    /// Rows of each response, and lines of each body, to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    rows: usize,
    /// Read this state folder (of a stopped daemon, or a copy) instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Operation(u64),
    Time(Timestamp),
    After(Duration),
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    if context.is_json() {
        each(context, arguments, |line| {
            print(&format!("{}\n", String::from_utf8_lossy(line)))?;
            Ok(())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut dialogue = Dialogue::new(arguments.rows, context.color);
    let mut frames = Vec::new();
    each(context, arguments, |line| {
        let line: Value = serde_json::from_slice(line).map_err(Failed::because)?;
        offline::check(&line)?;
        frames.push(dialogue.frame(&line));
        Ok(())
    })?;
    let begin = beginning(&frames, arguments.from)?;
    if !approvals::is_at_terminal() {
        // Who it was belongs to it wherever it begins.
        let start = frames.iter().take(usize::from(begin > 0));
        for frame in start.chain(frames.iter().skip(begin)) {
            print(&frame.text)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let pace = Pace {
        speed: arguments.speed,
        pause_max: arguments.max_pause,
    };
    screen::play(
        Player::new(frames, begin, pace, arguments.step),
        context.color,
    )
}

/// Gives `take` each line of the session.
fn each(
    context: &Context,
    arguments: &Arguments,
    mut take: impl FnMut(&[u8]) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let take = |line: &[u8]| take(line).map(|()| Reading::On);
    match &arguments.state {
        Some(folder) => offline::session(context, folder, arguments.id, take),
        None => context
            .client
            .lines(&format!("/v1/sessions/{}", arguments.id), take),
    }
}

/// The frame to begin with.
fn beginning(frames: &[Frame], from: Option<From>) -> Result<usize, Failed> {
    let first = frames.first().map_or(0, |frame| frame.at_ns);
    let found = match from {
        None => return Ok(0),
        Some(From::Operation(number)) => frames
            .iter()
            .position(|frame| frame.operation.is_some_and(|found| found >= number)),
        Some(From::Time(at)) => frames.iter().position(|frame| frame.at_ns >= at.0),
        Some(From::After(after)) => {
            let after_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
            let at = first.saturating_add(after_ns);
            frames.iter().position(|frame| frame.at_ns >= at)
        }
    };
    found.ok_or_else(|| {
        let operations = frames.iter().filter(|frame| frame.operation.is_some());
        let last = frames.last().map_or(first, |frame| frame.at_ns);
        let lasted = Duration::from_nanos(last.saturating_sub(first));
        Failed::because("the session was over by then").with_remedy(format!(
            "it has {} and lasted {:.1} s; begin earlier with --from",
            super::display::count(operations.count() as u64, "operation"),
            lasted.as_secs_f64()
        ))
    })
}

fn from(text: &str) -> Result<From, String> {
    if let Ok(number) = text.trim_start_matches('#').parse() {
        return Ok(From::Operation(number));
    }
    if let Some(after) = ago(text) {
        return Ok(From::After(after));
    }
    rfc3339::parse(text).map(From::Time).map_err(|error| {
        format!("{error}, 12 is an operation, and 90s or 5m is how long after the start")
    })
}

/// How long: `2s`, `1m`, `500ms`.
fn short_pause(text: &str) -> Result<Duration, String> {
    let milliseconds = text.strip_suffix("ms").and_then(|text| text.parse().ok());
    match milliseconds {
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
        None => pause(text).map_err(|error| format!("{error}, and 500ms")),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.trim_end_matches('x').parse::<f64>();
    speed
        .ok()
        .filter(|speed| (Pace::SPEED_MIN..=Pace::SPEED_MAX).contains(speed))
        .ok_or_else(|| {
            format!(
                "`{}` is no speed: {} to {} is, 2 is twice as fast as it was",
                text.escape_debug(),
                Pace::SPEED_MIN,
                Pace::SPEED_MAX
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_begin_is_an_operation_a_time_or_how_long_after_the_start() {
        assert_eq!(from("12"), Ok(From::Operation(12)));
        assert_eq!(from("#12"), Ok(From::Operation(12)));
        assert_eq!(from("90s"), Ok(From::After(Duration::from_secs(90))));
        assert_eq!(
            from("1970-01-01T00:00:01Z"),
            Ok(From::Time(Timestamp(1_000_000_000)))
        );
        assert!(from("soon").unwrap_err().contains("12 is an operation"));
        assert_eq!(short_pause("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(short_pause("0s"), Ok(Duration::ZERO));
        assert!(short_pause("fast").unwrap_err().ends_with("and 500ms"));
        for no in ["0", "-1", "nan", "inf", "1e9", "", "fast"] {
            assert!(speed(no).unwrap_err().contains("is no speed"), "{no}");
        }
        assert_eq!(speed("2x"), Ok(2.0));
    }

    #[test]
    fn what_is_behind_the_end_says_how_long_it_was() {
        let frame = |second: u64, operation| Frame {
            at_ns: second * 1_000_000_000,
            operation,
            text: String::new(),
        };
        let frames = [
            frame(10, None),
            frame(11, Some(1)),
            frame(11, None),
            frame(20, Some(3)),
        ];
        let begin = |from| beginning(&frames, Some(from)).map_err(|failed| failed.to_string());
        assert_eq!(begin(From::Operation(1)), Ok(1));
        assert_eq!(begin(From::Operation(2)), Ok(3));
        assert_eq!(begin(From::After(Duration::from_secs(2))), Ok(3));
        assert_eq!(begin(From::Time(Timestamp(0))), Ok(0));
        assert_eq!(
            begin(From::Operation(4)).unwrap_err(),
            "the session was over by then; it has 2 operations and lasted 10.0 s; begin earlier with --from"
        );
        begin(From::After(Duration::MAX)).unwrap_err();
        beginning(&[], Some(From::Operation(1))).unwrap_err();
    }
}
