//! A request in words for people, as an agent and its operators wrote them: not escaped yet.

use std::borrow::Cow;

use interceptor_core::{
    record::Choice,
    ruling::{Cause, Otherwise},
};

use super::{
    limits::{RESOURCES_MAX, TEXT_BYTES_MAX},
    text::cut,
};
use crate::approval::{State, Summary, Vote};

/// What is kept of `text`, and how much isn't.
pub(super) fn kept(text: &str) -> String {
    let kept = cut(text, TEXT_BYTES_MAX);
    if kept.len() == text.len() {
        return text.to_owned();
    }
    format!("{kept} … {} more bytes", text.len() - kept.len())
}

/// `a, b, c`.
pub(super) fn joined<T: AsRef<str>>(parts: impl Iterator<Item = T>) -> String {
    let mut out = String::new();
    for part in parts {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(part.as_ref());
    }
    out
}

/// What it touches.
pub(super) fn resources(summary: &Summary) -> String {
    let named = summary.resources.iter().take(RESOURCES_MAX);
    let text = joined(named.map(ToString::to_string));
    match summary.resources.len().saturating_sub(RESOURCES_MAX) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// The command line, its words quoted where their bounds would be unclear.
pub(super) fn command(arguments: &[Box<str>]) -> String {
    let words = arguments.iter().map(|word| {
        let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            Cow::Borrowed(&**word)
        } else {
            format!("'{}'", word.replace('\'', "'\\''")).into()
        }
    });
    let mut out = String::new();
    for word in words {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&word);
        // More isn't kept, and a command line may have megabytes.
        if out.len() > 4 * TEXT_BYTES_MAX {
            break;
        }
    }
    out
}

/// Who is asked, while they are.
pub(super) fn asked(summary: &Summary) -> String {
    if summary.state != State::Pending {
        return String::new();
    }
    let who = joined(summary.groups.iter().chain(&summary.people));
    let who = if who.is_empty() {
        "anyone".to_owned()
    } else {
        who
    };
    let quorum = match summary.quorum {
        0 | 1 => String::new(),
        quorum => format!("; {quorum} have to agree"),
    };
    let otherwise = match summary.otherwise {
        Otherwise::Deny => "",
        Otherwise::Allow => "; goes if nobody says no",
    };
    format!("{who}{quorum}{otherwise}")
}

/// In a word, who, and in a sentence.
pub(super) fn outcome(summary: &Summary) -> (&'static str, String, String) {
    let voters = |choice: Choice| {
        let votes = summary
            .votes
            .iter()
            .filter(move |vote| vote.choice == choice);
        joined(votes.map(|vote| &vote.by))
    };
    match &summary.state {
        State::Pending => ("pending", String::new(), String::new()),
        State::Approved => {
            let by = voters(Choice::Approve);
            let text = if by.is_empty() {
                "approved: nobody objected in time".to_owned()
            } else {
                format!("approved by {by}{}", last_words(summary))
            };
            ("approved", by, text)
        }
        State::Overridden { by, reason } => (
            "overridden",
            by.to_string(),
            format!("let through by {by} alone, in an emergency: {reason}"),
        ),
        State::Refused { cause } => match cause {
            Cause::Denied | Cause::Rejected | Cause::Waiting => {
                let by = voters(Choice::Deny);
                let text = if by.is_empty() {
                    "refused".to_owned()
                } else {
                    format!("refused by {by}{}", last_words(summary))
                };
                ("refused", by, text)
            }
            Cause::TimedOut => (
                "refused",
                String::new(),
                "refused: nobody decided in time".to_owned(),
            ),
            Cause::Unavailable => {
                let text = "refused: it could not be recorded or decided";
                ("refused", String::new(), text.to_owned())
            }
            Cause::Cancelled => (
                "refused",
                String::new(),
                "cancelled by the agent".to_owned(),
            ),
        },
        State::Withdrawn { why } => ("withdrawn", String::new(), format!("withdrawn: {why}")),
    }
}

/// The last voter's reason.
fn last_words(summary: &Summary) -> String {
    match summary.votes.last() {
        Some(Vote { reason, .. }) if !reason.is_empty() => format!(": {reason}"),
        _ => String::new(),
    }
}
