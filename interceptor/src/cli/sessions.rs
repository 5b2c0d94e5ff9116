//! `interceptor sessions`: what was done over which connection.

use std::{path::PathBuf, process::ExitCode};

use interceptor_core::record::SessionId;
use serde_json::Value;

use super::{
    Context, Outcome,
    client::{Reading, with_query},
    display::{between, message, print, span, table, time},
    failed::Failed,
    offline, tail,
    timeline::Timeline,
};
use crate::control::Session;

/// List sessions, show one as a dialogue, or follow them as they happen
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  interceptor sessions
  interceptor sessions show 8d3f00a1b2c4e5f6
  interceptor sessions tail --agent reporter
  interceptor sessions list --state /path/to/copy")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the latest sessions, oldest of them first
    List(List),
    /// Show a session as a dialogue
    Show(Show),
    /// Print what happens as it happens
    Tail(tail::Arguments),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
    /// Read this state folder (of a stopped daemon, or a copy) instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// Its id
    #[arg(value_name = "ID")]
    id: SessionId,
    /// Rows of each response to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    rows: usize,
    /// Read this state folder (of a stopped daemon, or a copy) instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.command {
        None => list(context, arguments.list),
        Some(Command::List(arguments)) => list(context, arguments),
        Some(Command::Show(arguments)) => show(context, &arguments),
        Some(Command::Tail(arguments)) => tail::run(context, &arguments),
    }
}

fn list(context: &Context, arguments: List) -> Outcome {
    let sessions: Vec<Session> = match &arguments.state {
        Some(folder) => offline::sessions(folder, arguments.agent.as_deref(), arguments.limit)?,
        None => context.client.get(&with_query(
            "/v1/sessions",
            &[
                ("agent", arguments.agent),
                ("limit", Some(arguments.limit.to_string())),
            ],
        ))?,
    };
    if context.is_json() {
        return context.print_json(&sessions);
    }
    if sessions.is_empty() {
        message("no session is on record");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = sessions.iter().map(row).collect();
    print(&table(
        &[
            "ID",
            "STARTED",
            "LASTED",
            "AGENT",
            "PROCESS",
            "DESTINATION",
            "OPS",
            "DENIED",
            "HELD",
        ],
        &rows,
        context.color,
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn row(session: &Session) -> Vec<String> {
    let executable = session.executable.as_deref().unwrap_or("?");
    let program = executable.rsplit('/').next().unwrap_or(executable);
    vec![
        session.id.to_string(),
        time(session.started),
        session.ended.map_or_else(
            || "open".to_owned(),
            |ended| span(between(session.started, ended)),
        ),
        session.agent.to_string(),
        format!("{program}[{}]", session.pid),
        session.destination.clone(),
        session
            .operations
            .map_or_else(|| "-".to_owned(), |operations| operations.to_string()),
        session.denied.to_string(),
        session.held.to_string(),
    ]
}

fn show(context: &Context, arguments: &Show) -> Outcome {
    let timeline = Timeline::new(arguments.rows, context.color);
    let each = |line: &[u8]| {
        if context.is_json() {
            print(&format!("{}\n", String::from_utf8_lossy(line)))?;
            return Ok(Reading::On);
        }
        let line: Value = serde_json::from_slice(line).map_err(Failed::because)?;
        offline::check(&line)?;
        print(&timeline.line(&line))?;
        Ok(Reading::On)
    };
    match &arguments.state {
        Some(folder) => offline::session(folder, arguments.id, each)?,
        None => context
            .client
            .lines(&format!("/v1/sessions/{}", arguments.id), each)?,
    }
    Ok(ExitCode::SUCCESS)
}
