//! `interceptor approvals`: see what is held and decide it.

mod desk;
mod shown;
mod terminal;

use std::{process::ExitCode, sync::mpsc::channel, thread, time::Duration};

use interceptor_core::{
    record::{ApprovalId, Choice, Window},
    ruling::WindowScope,
};

use self::shown::{Past, answers, change_text, standing, state, text, worded, worded_short};
use super::{
    Context, Outcome,
    client::{Client, Reading},
    display::{between, message, print, span, table},
    failed::Failed,
};
use crate::{
    approval::{Change, Detail, Standing, State, Summary},
    control::{Ballot, Reason},
};

/// Questions of a list that are put into words: each is asked for by itself.
const WORDED_MAX: usize = 100;

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
    /// Print what is asked and decided as it happens; at a terminal, answer it: Enter opens a question, y and n
    /// answer it
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
        .enumerate()
        .map(|(at, summary)| {
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
                summary.yours.as_ref().map_or_else(String::new, answers),
                match summary.state {
                    State::Pending if at < WORDED_MAX => in_words(context, summary),
                    _ => String::new(),
                },
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
            "STATE",
            "YOU MAY",
            "IN WORDS",
        ],
        &rows,
        context.color,
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What waits, in short words; none where it ended meanwhile.
fn in_words(context: &Context, summary: &Summary) -> String {
    let path = format!("/v1/approvals/{}", summary.id);
    let detail = context.client.get(&path);
    detail.map_or_else(|_| String::new(), |detail: Detail| worded_short(&detail))
}

fn show(context: &Context, id: ApprovalId) -> Outcome {
    let detail: Detail = context.client.get(&format!("/v1/approvals/{id}"))?;
    if context.is_json() {
        return context.print_json(&detail);
    }
    print(&whole(context, &detail)?)?;
    Ok(ExitCode::SUCCESS)
}

/// All of a question, as people are shown it.
fn opened(context: &Context, id: ApprovalId) -> Result<String, Failed> {
    let detail: Detail = context.client.get(&format!("/v1/approvals/{id}"))?;
    whole(context, &detail)
}

fn whole(context: &Context, detail: &Detail) -> Result<String, Failed> {
    let past = past(context, &detail.summary)?;
    Ok(text(detail, &past, crate::clock::now(), context.color))
}

/// What the agent did just before in the session, and what became of others of the same shape.
fn past(context: &Context, of: &Summary) -> Result<Past, Failed> {
    let mut past = Past::default();
    let session = format!("/v1/sessions/{}", of.session);
    context.client.lines(&session, |line| {
        let line = serde_json::from_slice(line).map_err(Failed::because)?;
        Ok(match past.observe(&line, of.number) {
            true => Reading::On,
            false => Reading::Done,
        })
    })?;
    past.earlier(context.client.get("/v1/approvals?ended=true")?, of);
    Ok(past)
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
        signed: None,
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

/// Whether there is somebody who sees what is printed, and presses keys.
pub(super) fn is_at_terminal() -> bool {
    terminal::is_there()
}

fn watch(context: &Context) -> Outcome {
    if terminal::is_there() && !context.is_json() {
        return terminal::run(context);
    }
    if context.is_json() {
        context.client.lines("/v1/approvals/watch", |line| {
            print(&format!("{}\n", String::from_utf8_lossy(line)))?;
            Ok(Reading::On)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let (tell, told) = channel();
    // Its own connection, and its own thread: what is asked is asked for by the other meanwhile.
    let client = Client::new(context.config.control.clone())?;
    let changes = thread::spawn(move || {
        client.lines("/v1/approvals/watch", |line| {
            let change: Change = serde_json::from_slice(line).map_err(Failed::because)?;
            Ok(match tell.send(change) {
                Ok(()) => Reading::On,
                Err(_) => Reading::Done,
            })
        })
    });
    for change in told {
        print(&change_text(&change, crate::clock::now(), context.color))?;
        print(&asked_in_words(context, &change))?;
    }
    if let Ok(over) = changes.join() {
        over?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is asked for, in words; none where nothing is, or it ended meanwhile.
fn asked_in_words(context: &Context, change: &Change) -> String {
    let (Change::Requested(summary) | Change::Resumed(summary)) = change else {
        return String::new();
    };
    let detail = context.client.get(&format!("/v1/approvals/{}", summary.id));
    detail.map_or_else(
        |_| String::new(),
        |detail: Detail| worded(&detail, context.color),
    )
}

#[cfg(test)]
mod tests;
