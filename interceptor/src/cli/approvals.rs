//! `interceptor approvals`: see what is held and decide it.

use std::{fmt::Write as _, process::ExitCode};

use interceptor_core::{
    operation::{Effects, ParameterFormat, Touch},
    record::{ApprovalId, Timestamp},
    ruling::Cause,
};

use super::{
    Context, Outcome,
    client::Reading,
    display::{
        Style, between, block, command_line, inert, labels, message, paint, print, span, table,
        time,
    },
    failed::Failed,
};
use crate::{
    approval::{Change, Content, Detail, State, Summary, Value},
    console::Ballot,
};

/// See which operations are held, and decide them
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  interceptor approvals
  interceptor approvals show 4f1c2a9be07d6358
  interceptor approvals approve 4f1c2a9be07d6358 --reason \"agreed in the change meeting\"
  interceptor approvals deny 4f1c2a9be07d6358 --reason \"that table is in use\"
  interceptor approvals watch")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List what waits
    List {
        /// The latest that ended, too
        #[arg(long)]
        all: bool,
    },
    /// Show exactly what would run, for whom, where, and why it is held
    Show {
        /// Its id
        #[arg(value_name = "ID")]
        id: ApprovalId,
    },
    /// Let it run, once
    Approve(Vote),
    /// Refuse it
    Deny(Vote),
    /// Print what is asked and decided as it happens
    Watch,
}

#[derive(Debug, clap::Args)]
struct Vote {
    /// Its id
    #[arg(value_name = "ID")]
    id: ApprovalId,
    /// Why; recorded, and a refused agent is told
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.command.unwrap_or(Command::List { all: false }) {
        Command::List { all } => list(context, all),
        Command::Show { id } => show(context, id),
        Command::Approve(vote) => cast(context, vote, true),
        Command::Deny(vote) => cast(context, vote, false),
        Command::Watch => watch(context),
    }
}

fn list(context: &Context, all: bool) -> Outcome {
    let path = if all {
        "/v1/approvals?ended=true"
    } else {
        "/v1/approvals"
    };
    let summaries: Vec<Summary> = context.client.get(path)?;
    if context.is_json() {
        return context.print_json(&summaries);
    }
    if summaries.is_empty() {
        message("nothing waits for approval");
        return Ok(ExitCode::SUCCESS);
    }
    let now = crate::clock::now();
    let rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|summary| {
            vec![
                summary.id.to_string(),
                summary.agent.to_string(),
                summary.destination.to_string(),
                summary.action.clone(),
                summary.rule.to_string(),
                match &summary.state {
                    State::Pending => standing(summary, now),
                    ended => state(ended),
                },
            ]
        })
        .collect();
    print(&table(
        &["ID", "AGENT", "DESTINATION", "ACTION", "RULE", "STATE"],
        &rows,
        context.color,
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn show(context: &Context, id: ApprovalId) -> Outcome {
    let detail: Detail = context.client.get(&format!("/v1/approvals/{id}"))?;
    if context.is_json() {
        return context.print_json(&detail);
    }
    print(&text(&detail, crate::clock::now(), context.color))?;
    Ok(ExitCode::SUCCESS)
}

fn cast(context: &Context, vote: Vote, approve: bool) -> Outcome {
    let ballot = Ballot {
        approve,
        reason: vote.reason,
    };
    let summary: Summary = context
        .client
        .post(&format!("/v1/approvals/{}/votes", vote.id), &ballot)?;
    if context.is_json() {
        return context.print_json(&summary);
    }
    message(&match &summary.state {
        State::Pending => format!(
            "your vote on {} counts; {}",
            summary.id,
            standing(&summary, crate::clock::now())
        ),
        State::Approved => format!(
            "{} is approved: {} of agent `{}` runs now, once",
            summary.id, summary.action, summary.agent
        ),
        ended => format!("{} is over: {}", summary.id, state(ended)),
    });
    Ok(ExitCode::SUCCESS)
}

fn watch(context: &Context) -> Outcome {
    context.client.lines("/v1/approvals/watch", |line| {
        if context.is_json() {
            print(&format!("{}\n", String::from_utf8_lossy(line)))?;
            return Ok(Reading::On);
        }
        let change: Change = serde_json::from_slice(line).map_err(Failed::because)?;
        print(&change_text(&change, crate::clock::now(), context.color))?;
        Ok(Reading::On)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn change_text(change: &Change, now: Timestamp, color: bool) -> String {
    let (what, summary) = match change {
        Change::Requested(summary) => (paint(Style::Wait, "held", color), summary),
        Change::Voted(summary) => (paint(Style::Dim, "vote", color), summary),
        Change::Ended(summary) => {
            let style = match summary.state {
                State::Approved => Style::Good,
                _ => Style::Bad,
            };
            (paint(style, "over", color), summary)
        }
        Change::Missed { changes } => {
            return format!("{changes} changes came too fast; see `interceptor approvals list`\n");
        }
    };
    let tail = match (&summary.state, summary.votes.last()) {
        (State::Pending, Some(vote)) if matches!(change, Change::Voted(_)) => {
            format!("{}; {}", vote_text(vote), standing(summary, now))
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

/// All that a reviewer needs. Whatever the agent wrote stands behind a gutter and is inert.
fn text(detail: &Detail, now: Timestamp, color: bool) -> String {
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
    field(
        "destination",
        &format!("{} ({})", summary.destination, summary.protocol),
    );
    field("action", &summary.action);
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
    field("held by", &summary.rule);
    if !summary.reason.is_empty() {
        field("because", &summary.reason);
    }
    if !summary.groups.is_empty() {
        field("reviewers", &summary.groups.join(", "));
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
fn standing(summary: &Summary, now: Timestamp) -> String {
    let agreed = summary.votes.iter().filter(|vote| vote.approve).count();
    let left = span(between(now, summary.until));
    if summary.quorum > 1 {
        format!(
            "waits for {agreed} of {} votes, {left} left",
            summary.quorum
        )
    } else {
        format!("waits, {left} left")
    }
}

fn state(state: &State) -> String {
    match state {
        State::Pending => "waits".to_owned(),
        State::Approved => "approved".to_owned(),
        State::Refused { cause } => match cause {
            Cause::TimedOut => "refused: nobody decided in time",
            Cause::Unavailable => "refused: it could not be recorded",
            Cause::Denied | Cause::Rejected => "rejected",
            Cause::Cancelled => "cancelled by the agent",
        }
        .to_owned(),
        State::Withdrawn { why } => format!("withdrawn: {why}"),
    }
}

fn vote_text(vote: &crate::approval::Vote) -> String {
    let verb = if vote.approve { "approved" } else { "rejected" };
    if vote.reason.is_empty() {
        format!("{verb} by {}", inert(&vote.by))
    } else {
        format!("{verb} by {}: {}", inert(&vote.by), inert(&vote.reason))
    }
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

#[cfg(test)]
mod tests;
