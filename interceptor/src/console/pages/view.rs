//! Times, amounts and names as people read them.

use std::{collections::BTreeMap, time::Duration};

use interceptor_core::record::Timestamp;

use crate::approval::State;

/// `2026-11-22 14:03:07`, in UTC.
pub(super) fn time(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

/// How long before now `time` was.
pub(super) fn ago(time: Timestamp) -> String {
    let now = crate::clock::now();
    let seconds = now.0.saturating_sub(time.0) / 1_000_000_000;
    match seconds {
        0..2 => "just now".to_owned(),
        _ => format!("{} ago", span(seconds)),
    }
}

/// `90 s`, `12 min`, `3 h`, `2 days`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6_000 => format!("{} min", seconds / 60),
        6_000..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `850 µs`, `12 ms`, `3.1 s`.
pub(super) fn elapsed(nanoseconds: u64) -> String {
    let took = Duration::from_nanos(nanoseconds);
    match took.as_micros() {
        0..1_000 => format!("{} µs", took.as_micros()),
        1_000..1_000_000 => format!("{} ms", took.as_millis()),
        _ => format!("{:.1} s", took.as_secs_f64()),
    }
}

/// `1 row`, `5 rows`.
pub(super) fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// `team=billing owner=alice`.
pub(super) fn labels(labels: &BTreeMap<Box<str>, Box<str>>) -> Vec<String> {
    labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// Where a question stands: in words, and as a style.
pub(super) fn state(state: &State) -> (String, &'static str) {
    use interceptor_core::ruling::Cause;
    match state {
        State::Pending => ("waits for people".to_owned(), "hold"),
        State::Approved => ("approved".to_owned(), "allow"),
        State::Overridden { by, reason } => (
            format!("let through by {by} alone (break-glass): {reason}"),
            "glass",
        ),
        State::Refused { cause } => {
            let how = match cause {
                Cause::Rejected | Cause::Denied | Cause::Waiting => "denied",
                Cause::TimedOut => "nobody decided in time",
                Cause::Unavailable => "couldn't be asked",
                Cause::Cancelled => "cancelled by the agent",
            };
            (how.to_owned(), "deny")
        }
        State::Withdrawn { why } => (format!("withdrawn: {why}"), "gone"),
    }
}
