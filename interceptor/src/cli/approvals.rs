//! `interceptor approvals`: see what is held and decide it.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use interceptor_core::{
    operation::{Effects, ParameterFormat, Touch},
    record::{ApprovalId, Choice, Timestamp, Window},
    ruling::{Cause, Otherwise, WindowScope},
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
    approval::{Change, Content, Detail, Standing, State, Summary, Value},
    console::{Ballot, Reason},
};

/// See which operations are held, and decide them
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  interceptor approvals
  interceptor approvals show 4f1c2a9be07d6358
  interceptor approvals approve 4f1c2a9be07d6358 --reason \"agreed in the change meeting\"
  interceptor approvals approve 4f1c2a9be07d6358 --also shape --for 10m --at-most 20
  interceptor approvals deny 4f1c2a9be07d6358 --reason \"that table is in use\"
  interceptor approvals grants
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
    /// Let it run, once; with --also, others like it as well
    Approve(Approve),
    /// Refuse it; one no is enough
    Deny(Vote),
    /// Take your own yes back, while it is not decided
    Retract(Vote),
    /// Let it run on your word alone, in an emergency: needs a reason, and stands out in the log
    Override(Vote),
    /// List what may still go by what was approved
    Grants,
    /// Have nothing more go by an approval, at once
    Revoke(Vote),
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

#[derive(Debug, clap::Args)]
struct Approve {
    #[command(flatten)]
    vote: Vote,
    /// What else of this agent may run without being asked about: the same operation, operations of the same shape
    /// (a statement with other values, a path with other ids), or whatever the same rule holds. The rule says how
    /// much of that can be agreed to
    #[arg(long, value_name = "SCOPE")]
    also: Option<AlsoScope>,
    /// For how long; as long as the rule allows, where you don't say
    #[arg(long, value_name = "TIME", requires = "also", value_parser = seconds)]
    r#for: Option<u64>,
    /// How many; as many as the rule allows, where you don't say
    #[arg(long, value_name = "N", requires = "also")]
    at_most: Option<u32>,
}

/// What else may run.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AlsoScope {
    Operation,
    Shape,
    Rule,
}

/// `90s`, `15m`, `2h`, as in policies.
fn seconds(text: &str) -> Result<u64, String> {
    let parsed = text.char_indices().next_back().and_then(|(at, unit)| {
        let number: u64 = text.get(..at)?.parse().ok()?;
        number.checked_mul(match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            _ => return None,
        })
    });
    parsed
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "no time; `30s`, `15m`, `2h` are".to_owned())
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.command.unwrap_or(Command::List { all: false }) {
        Command::List { all } => list(context, all),
        Command::Show { id } => show(context, id),
        Command::Approve(approve) => {
            let window = window(context, &approve)?;
            cast(context, approve.vote, Choice::Approve, window)
        }
        Command::Deny(vote) => cast(context, vote, Choice::Deny, None),
        Command::Retract(vote) => cast(context, vote, Choice::Retract, None),
        Command::Override(vote) => override_alone(context, vote),
        Command::Grants => grants(context),
        Command::Revoke(vote) => revoke(context, vote),
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

/// What a yes is for beyond the one operation: what isn't said is as much as the rule allows.
fn window(context: &Context, approve: &Approve) -> Result<Option<Window>, Failed> {
    let Some(also) = approve.also else {
        return Ok(None);
    };
    let scope = match also {
        AlsoScope::Operation => WindowScope::Operation,
        AlsoScope::Shape => WindowScope::Shape,
        AlsoScope::Rule => WindowScope::Rule,
    };
    let path = format!("/v1/approvals/{}", approve.vote.id);
    let detail: Detail = context.client.get(&path)?;
    // Where the rule allows none, whoever counts the vote says so.
    let none = Window {
        scope,
        seconds: 1,
        at_most: 1,
    };
    let most = detail.summary.windows.unwrap_or(none);
    Ok(Some(Window {
        scope,
        seconds: approve.r#for.unwrap_or(most.seconds),
        at_most: approve.at_most.unwrap_or(most.at_most),
    }))
}

fn cast(context: &Context, vote: Vote, choice: Choice, window: Option<Window>) -> Outcome {
    let ballot = Ballot {
        choice,
        reason: vote.reason,
        window,
    };
    let path = format!("/v1/approvals/{}/votes", vote.id);
    let summary: Summary = context.client.post(&path, &ballot)?;
    say(context, &summary)
}

fn override_alone(context: &Context, vote: Vote) -> Outcome {
    let reason = Reason {
        reason: vote.reason,
    };
    let path = format!("/v1/approvals/{}/override", vote.id);
    let summary: Summary = context.client.post(&path, &reason)?;
    say(context, &summary)
}

/// What came of a vote.
fn say(context: &Context, summary: &Summary) -> Outcome {
    if context.is_json() {
        return context.print_json(summary);
    }
    let what = format!("{} of agent `{}`", summary.action, summary.agent);
    message(&match &summary.state {
        State::Pending => format!(
            "your vote on {} counts; {}",
            summary.id,
            standing(summary, crate::clock::now())
        ),
        State::Approved | State::Overridden { .. } => {
            let when = if summary.waits {
                "runs now, once".to_owned()
            } else {
                let retry = Duration::from_secs(summary.retry);
                format!("runs once when it comes again within {}", span(retry))
            };
            format!("{} is {}: {what} {when}", summary.id, state(&summary.state))
        }
        ended => format!("{} is over: {}", summary.id, state(ended)),
    });
    Ok(ExitCode::SUCCESS)
}

fn grants(context: &Context) -> Outcome {
    let standing: Vec<Standing> = context.client.get("/v1/approvals/grants")?;
    if context.is_json() {
        return context.print_json(&standing);
    }
    if standing.is_empty() {
        message("nothing goes by what was approved before");
        return Ok(ExitCode::SUCCESS);
    }
    let now = crate::clock::now();
    let rows: Vec<Vec<String>> = standing
        .iter()
        .map(|standing| {
            vec![
                standing.id.to_string(),
                standing.agent.to_string(),
                standing.destination.clone(),
                standing.action.clone(),
                standing.rule.to_string(),
                standing.scope.name().to_owned(),
                standing.left.to_string(),
                span(between(now, standing.until)),
                standing.by.join(", "),
            ]
        })
        .collect();
    print(&table(
        &[
            "ID",
            "AGENT",
            "DESTINATION",
            "ACTION",
            "RULE",
            "SCOPE",
            "MORE",
            "LEFT",
            "BY",
        ],
        &rows,
        context.color,
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn revoke(context: &Context, vote: Vote) -> Outcome {
    let reason = Reason {
        reason: vote.reason,
    };
    let path = format!("/v1/approvals/{}/revocation", vote.id);
    let standing: Standing = context.client.post(&path, &reason)?;
    if context.is_json() {
        return context.print_json(&standing);
    }
    message(&format!(
        "nothing of agent `{}` goes by {} any more",
        standing.agent, standing.id
    ));
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
    let asked: Vec<&str> = summary
        .groups
        .iter()
        .chain(&summary.people)
        .map(AsRef::as_ref)
        .collect();
    if !asked.is_empty() {
        field("reviewers", &asked.join(", "));
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

fn state(state: &State) -> String {
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

#[cfg(test)]
mod tests;
