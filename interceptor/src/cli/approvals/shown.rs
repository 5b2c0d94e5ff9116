//! What people are shown of what waits.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use interceptor_core::{
    operation::{Effects, ParameterFormat, Touch, radius::BlastRadius},
    record::{Choice, Timestamp},
    ruling::{Cause, Otherwise},
};
use serde_json::Value as Json;

use super::super::display::{
    Style, between, block, command_line, inert, labels, paint, span, time,
};
use crate::{
    approval::{Change, Content, Detail, Standing, State, Summary, Value, Yours},
    words::words,
};

/// Operations before the one in question that are shown.
const BEFORE: usize = 5;

/// Characters of each.
const BEFORE_CHARACTERS: usize = 100;

/// Characters of what a line of a list says in words.
const WORDS_CHARACTERS: usize = 80;

/// Earlier questions of the same shape that are shown.
const EARLIER: usize = 5;

/// What came before a question.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The last operations of the same session: number, verdict, what.
    before: VecDeque<(u64, String, String)>,
    /// Questions of the same shape that ended, the latest first.
    earlier: Vec<Summary>,
}

impl Past {
    /// Takes the next line of the session, up to the operation `number`; whether there may be more.
    pub(super) fn observe(&mut self, line: &Json, number: u64) -> bool {
        let text = |name: &str| line.get(name).and_then(Json::as_str).unwrap_or_default();
        let of = line.get("operation").and_then(Json::as_u64).unwrap_or(0);
        match text("kind") {
            "operation" if of >= number => return false,
            "operation" => {
                let known = self.before.back().is_some_and(|(last, _, _)| *last == of);
                // Further parts of the same have the same number.
                if !known {
                    if self.before.len() == BEFORE {
                        self.before.pop_front();
                    }
                    self.before.push_back((of, "?".to_owned(), what(line)));
                }
            }
            "decision" => {
                let mut all = self.before.iter_mut();
                if let Some((_, verdict, _)) = all.find(|(number, _, _)| *number == of) {
                    text("verdict").clone_into(verdict);
                }
            }
            _ => {}
        }
        true
    }

    /// Takes those of `all`, the latest first, that ended and were of the same shape as `own`.
    pub(super) fn earlier(&mut self, all: Vec<Summary>, own: &Summary) {
        let same = all.into_iter().filter(|other| {
            let ended = other.state != State::Pending && other.id != own.id;
            ended && own.shape.is_some() && other.shape == own.shape
        });
        self.earlier = same.take(EARLIER).collect();
    }

    fn text(&self, now: Timestamp, color: bool) -> String {
        let gutter = paint(Style::Dim, "  | ", color);
        let mut out = String::new();
        if !self.before.is_empty() {
            let title = paint(Style::Bold, "Before it, in this session:", color);
            // Writing to a string can't fail.
            _ = writeln!(out, "{title}");
        }
        for (number, verdict, what) in &self.before {
            _ = writeln!(out, "{gutter}{number} {}: {}", inert(verdict), inert(what));
        }
        if !self.earlier.is_empty() {
            let title = "The latest of the same shape, and what became of them:";
            _ = writeln!(out, "{}", paint(Style::Bold, title, color));
        }
        for earlier in &self.earlier {
            let how = match earlier.votes.last() {
                Some(vote) => format!("{}; {}", state(&earlier.state), vote_text(vote)),
                None => state(&earlier.state),
            };
            let ago = span(between(earlier.requested, now));
            _ = writeln!(out, "{gutter}{} {ago} ago: {how}", earlier.id);
        }
        out
    }
}

/// An operation on record in a few words.
fn what(line: &Json) -> String {
    let text = |value: Option<&Json>| value.and_then(Json::as_str).unwrap_or_default().to_owned();
    let actions = line.get("actions").and_then(Json::as_array);
    let actions = actions.into_iter().flatten();
    let actions: Vec<&str> = actions.filter_map(Json::as_str).collect();
    let attribute = |name: &str| text(line.get("attributes").and_then(|all| all.get(name)));
    let path = attribute("http.path");
    let content = if path.is_empty() {
        text(line.get("content"))
    } else {
        format!("{} {}{path}", actions.join("; "), attribute("http.host"))
    };
    let content = if content.is_empty() {
        actions.join("; ")
    } else {
        content
    };
    let mut words: String = content.chars().take(BEFORE_CHARACTERS).collect();
    if words.len() < content.len() {
        words.push('…');
    }
    words
}

pub(super) fn change_text(change: &Change, now: Timestamp, color: bool) -> String {
    let (what, summary) = match change {
        Change::Requested(summary) => (paint(Style::Wait, "held", color), summary),
        Change::Estimated(summary) => (paint(Style::Dim, "size", color), summary),
        Change::Voted(summary) => (paint(Style::Dim, "vote", color), summary),
        Change::Left(summary) => (paint(Style::Dim, "left", color), summary),
        Change::Resumed(summary) => (paint(Style::Wait, "back", color), summary),
        Change::Escalated(summary) => (paint(Style::Wait, "more", color), summary),
        Change::Ended(summary) => match summary.state {
            State::Approved => (paint(Style::Good, "over", color), summary),
            State::Overridden { .. } => (paint(Style::Bad, "BREAK-GLASS", color), summary),
            _ => (paint(Style::Bad, "over", color), summary),
        },
        Change::Admitted(standing) => {
            let what = paint(Style::Good, "went", color);
            return standing_text(&what, standing, now, "goes by what was approved before");
        }
        Change::Revoked(standing) => {
            let what = paint(Style::Bad, "revoked", color);
            return standing_text(&what, standing, now, "nothing more goes by it");
        }
        Change::Missed { changes } => {
            return format!("{changes} changes came too fast; see `interceptor approvals list`\n");
        }
    };
    let tail = match (&summary.state, summary.votes.last()) {
        (State::Pending, Some(vote)) if matches!(change, Change::Voted(_)) => {
            format!("{}; {}", vote_text(vote), standing(summary, now))
        }
        (State::Pending, _) if matches!(change, Change::Estimated(_)) => {
            let radius = summary.blast_radius.as_ref();
            inert(&radius.map_or_else(String::new, in_a_line)).into_owned()
        }
        (State::Pending, _) => standing(summary, now),
        (ended, Some(vote)) => format!("{}; {}", state(ended), vote_text(vote)),
        (ended, None) => state(ended),
    };
    format!(
        "{} {what} {} {} -> {}: {} [{}] {tail}\n",
        time(now),
        summary.id,
        inert(&summary.agent),
        summary.destination,
        inert(&summary.action),
        inert(&summary.rule),
    )
}

/// What an operation would touch, in a line.
fn in_a_line(radius: &BlastRadius) -> String {
    let impacts = radius.impacts.iter().map(ToString::to_string);
    let unknown = radius.unknown.iter().map(|why| format!("not known: {why}"));
    let all: Vec<String> = impacts.chain(unknown).collect();
    all.join("; ")
}

fn standing_text(what: &str, standing: &Standing, now: Timestamp, tail: &str) -> String {
    format!(
        "{} {what} {} {} -> {}: {} [{}] {tail}\n",
        time(now),
        standing.id,
        inert(&standing.agent),
        inert(&standing.destination),
        inert(&standing.action),
        inert(&standing.rule),
    )
}

/// What it does in words, on lines below what says that it waits.
pub(super) fn worded(detail: &Detail, color: bool) -> String {
    let gutter = paint(Style::Dim, "  | ", color);
    let words = words(&detail.summary, detail.content.as_ref());
    let mut out = String::new();
    for sentence in &words.sentences {
        // Writing to a string can't fail.
        _ = writeln!(out, "{gutter}{}.", inert(&sentence.text));
    }
    for warning in words.warnings() {
        let beware = paint(Style::Bad, &format!("BEWARE: {}", warning.text()), color);
        _ = writeln!(out, "{gutter}{beware}");
    }
    out
}

/// The same, short, for a line of a list; with a mark where there is something to beware of.
pub(super) fn worded_short(detail: &Detail) -> String {
    let words = words(&detail.summary, detail.content.as_ref());
    let text = words.text();
    let short: String = text.chars().take(WORDS_CHARACTERS).collect();
    let cut = if short.len() < text.len() { "…" } else { "" };
    let mark = if words.warnings().is_empty() {
        ""
    } else {
        "! "
    };
    format!("{mark}{short}{cut}")
}

/// All that a reviewer needs. Whatever the agent wrote stands behind a gutter and is inert.
pub(super) fn text(detail: &Detail, past: &Past, now: Timestamp, color: bool) -> String {
    let summary = &detail.summary;
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        // Writing to a string can't fail.
        _ = writeln!(
            out,
            "{} {}",
            paint(Style::Bold, &format!("{name:<12}"), color),
            inert(value)
        );
    };
    field("approval", &summary.id.to_string());
    match &summary.state {
        State::Pending => field("state", &standing(summary, now)),
        ended => field("state", &state(ended)),
    }
    field("agent", &with_labels(&summary.agent, &summary.labels));
    let process = &summary.process;
    field(
        "process",
        &format!(
            "{} (pid {}, uid {}, cgroup {})",
            process.executable.as_deref().unwrap_or("unknown"),
            process.pid,
            process.uid,
            process.cgroup
        ),
    );
    if !process.arguments.is_empty() {
        field(
            "command",
            &command_line(process.arguments.iter().map(AsRef::as_ref)),
        );
    }
    let around = summary.surroundings.clone().unwrap_or_default();
    let named = [
        ("user", &around.user),
        ("folder", &around.folder),
        ("container", &around.container),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            field(name, value);
        }
    }
    for ancestor in &*around.ancestors {
        let command = match ancestor.arguments.as_slice() {
            [] => ancestor.executable.as_deref().unwrap_or("?").to_owned(),
            arguments => command_line(arguments.iter().map(AsRef::as_ref)),
        };
        field("started by", &format!("{command} (pid {})", ancestor.pid));
    }
    field(
        "destination",
        &format!("{} ({})", summary.destination, summary.protocol),
    );
    field("action", &summary.action);
    let words = words(summary, detail.content.as_ref());
    for sentence in &words.sentences {
        field("in words", &format!("{}.", sentence.text));
    }
    for warning in words.warnings() {
        field("BEWARE", warning.text());
    }
    field("effects", &effects(summary.effects));
    let resources: Vec<String> = summary
        .resources
        .iter()
        .map(|resource| {
            let touch = match resource.touch {
                Touch::Read => "read",
                Touch::Write => "write",
            };
            format!("{resource} ({touch})")
        })
        .collect();
    if !resources.is_empty() {
        field("touches", &resources.join(", "));
    }
    match (&summary.blast_radius, summary.estimate) {
        (Some(radius), _) => {
            for impact in &radius.impacts {
                let what = match radius.is_of_several() {
                    true => format!("{}: {impact}", impact.statement),
                    false => impact.to_string(),
                };
                field("would touch", &what);
            }
            for why in &radius.unknown {
                field("not known", why);
            }
        }
        (None, Some(_)) => field("would touch", "being found out"),
        (None, None) => {}
    }
    field("held by", &summary.rule);
    if !summary.reason.is_empty() {
        field("because", &summary.reason);
    }
    let asked: Vec<&str> = summary
        .groups
        .iter()
        .chain(&summary.people)
        .map(AsRef::as_ref)
        .collect();
    if !asked.is_empty() {
        field("reviewers", &asked.join(", "));
    }
    if let Some(yours) = &summary.yours {
        field("you may", &yours_text(yours));
    }
    if summary.reason_required {
        field("reason", "required to approve");
    }
    if summary.otherwise == Otherwise::Allow {
        field(
            "otherwise",
            "it runs when its time is over, unless somebody says no",
        );
    }
    if let Some(limits) = &summary.windows {
        let what = format!(
            "--also {} or less, for up to {}, up to {} times",
            limits.scope.name(),
            span(Duration::from_secs(limits.seconds)),
            limits.at_most
        );
        field("windows", &what);
    }
    for vote in &summary.votes {
        field(
            "vote",
            &format!("{} at {}", vote_text(vote), time(vote.time)),
        );
    }
    field("requested", &time(summary.requested));
    field("until", &time(summary.until));
    field(
        "session",
        &format!("{}, operation {}", summary.session, summary.number),
    );
    field("digest", &summary.digest.to_string());
    field("policy", &summary.policy);
    out.push_str(&content_text(detail, color));
    out.push_str(&past.text(now, color));
    out
}

fn content_text(detail: &Detail, color: bool) -> String {
    let gutter = paint(Style::Dim, "  | ", color);
    let mut out = String::new();
    match &detail.content {
        None => {
            _ = writeln!(
                out,
                "\nIt is over; what it was is in `interceptor sessions show {}`.",
                detail.summary.session
            );
            return out;
        }
        Some(Content::Text(text)) => {
            _ = writeln!(
                out,
                "\n{}",
                paint(Style::Bold, "Exactly this would run:", color)
            );
            out.push_str(&block(text, &gutter));
        }
        Some(Content::Hex(digits)) => {
            _ = writeln!(
                out,
                "\n{}",
                paint(
                    Style::Bold,
                    "Exactly this would run; it is not UTF-8, so in hexadecimal:",
                    color
                )
            );
            out.push_str(&block(digits, &gutter));
        }
    }
    if !detail.parameters.is_empty() {
        _ = writeln!(out, "{}", paint(Style::Bold, "With these values:", color));
        for (index, value) in detail.parameters.iter().enumerate() {
            _ = writeln!(out, "{gutter}${} = {}", index + 1, value_text(value));
        }
    }
    if !detail.options.is_empty() {
        _ = writeln!(out, "{}", paint(Style::Bold, "And these options:", color));
        for (name, value) in &detail.options {
            _ = writeln!(out, "{gutter}{} = {}", inert(name), inert(value));
        }
    }
    out
}

fn value_text(value: &Value) -> String {
    let shown = match &value.value {
        serde_json::Value::Null => return "NULL".to_owned(),
        serde_json::Value::String(text) => format!("'{}'", inert(text)),
        // Not readable: the hexadecimal below says it all.
        _ => "bytes".to_owned(),
    };
    let format = match value.format {
        ParameterFormat::Text => "text",
        ParameterFormat::Binary => "binary",
    };
    match &value.hex {
        Some(hex) => format!("{shown} ({format}, type {}, 0x{hex})", value.type_oid),
        None => shown,
    }
}

/// How far a pending request is.
pub(super) fn standing(summary: &Summary, now: Timestamp) -> String {
    let votes = summary.votes.iter();
    let agreed = votes.filter(|vote| vote.choice == Choice::Approve).count();
    let left = span(between(now, summary.until));
    let gone = if summary.waits {
        ""
    } else {
        "; its client doesn't wait, and may come again"
    };
    if summary.quorum > 1 {
        format!(
            "waits for {agreed} of {} votes, {left} left{gone}",
            summary.quorum
        )
    } else {
        format!("waits, {left} left{gone}")
    }
}

/// What whoever asks may answer, and why no more.
fn yours_text(yours: &Yours) -> String {
    match &*yours.why {
        "" => answers(yours),
        why => format!("{}: {why}", answers(yours)),
    }
}

/// What whoever asks may answer.
pub(super) fn answers(yours: &Yours) -> String {
    let names: Vec<&str> = yours
        .may
        .iter()
        .map(|choice| match choice {
            Choice::Approve => "approve",
            Choice::Deny => "deny",
            Choice::Retract => "retract",
        })
        .collect();
    match names.as_slice() {
        [] => "not answer".to_owned(),
        names => names.join(", "),
    }
}

pub(super) fn state(state: &State) -> String {
    match state {
        State::Pending => "waits".to_owned(),
        State::Approved => "approved".to_owned(),
        State::Overridden { by, reason } => {
            format!("let through by {} alone: {}", inert(by), inert(reason))
        }
        State::Refused { cause } => match cause {
            Cause::TimedOut => "refused: nobody decided in time",
            Cause::Unavailable => "refused: it could not be recorded",
            Cause::Denied | Cause::Rejected | Cause::Waiting => "rejected",
            Cause::Cancelled => "cancelled by the agent",
        }
        .to_owned(),
        State::Withdrawn { why } => format!("withdrawn: {why}"),
    }
}

fn vote_text(vote: &crate::approval::Vote) -> String {
    let verb = match vote.choice {
        Choice::Approve => "approved",
        Choice::Deny => "rejected",
        Choice::Retract => "taken back",
    };
    let window = vote.window.map_or_else(String::new, |window| {
        format!(
            ", with {} more of the same {} within {}",
            window.at_most,
            window.scope.name(),
            span(Duration::from_secs(window.seconds))
        )
    });
    let reason = match &*vote.reason {
        "" => String::new(),
        reason => format!(": {}", inert(reason)),
    };
    format!("{verb} by {}{window}{reason}", inert(&vote.by))
}

fn effects(effects: Effects) -> String {
    let names: Vec<&str> = effects.names().collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn with_labels(agent: &str, of_agent: &std::collections::BTreeMap<Box<str>, Box<str>>) -> String {
    if of_agent.is_empty() {
        agent.to_owned()
    } else {
        format!("{agent} ({})", labels(of_agent))
    }
}
