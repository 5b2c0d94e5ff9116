//! `interceptor sessions`: what was done over which connection.

use std::{path::PathBuf, process::ExitCode};

use interceptor_core::{
    operation::Protocol,
    record::{SessionId, Timestamp},
};
use serde_json::Value;

use super::{
    Context, Outcome,
    client::Reading,
    display::{between, message, print, span, table, time},
    export::moment,
    failed::Failed,
    offline, replay, tail,
    timeline::Timeline,
};
use crate::{
    control::{Reason, STOPPED, Session, SessionsQuery, with_query},
    journal::{Decided, Erasure},
    retention::Hold,
};

/// List sessions, show one as a dialogue, or follow them as they happen
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  interceptor sessions
  interceptor sessions show 8d3f00a1b2c4e5f6
  interceptor sessions replay 8d3f00a1b2c4e5f6 --speed 2
  interceptor sessions tail --agent reporter
  interceptor sessions list --since 7d --verdict deny --class schema
  interceptor sessions list --text 'drop customers' --since 30d
  interceptor sessions list --text '\"delete from\" shop.*' --agent reporter
  interceptor sessions list --destination db.example.com --reviewer erin
  interceptor sessions hold 8d3f00a1b2c4e5f6 --reason 'case 2026-117'
  interceptor sessions erase 8d3f00a1b2c4e5f6 --reason 'request of the person concerned, ticket 7'
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
    Replay(replay::Arguments),
    /// Print what happens as it happens
    Tail(tail::Arguments),
    /// Keep a session whatever its age and however little room there is (legal hold)
    Hold(Holding),
    /// Keep a session no longer than others
    Release(Holding),
    /// List the sessions that are held, by whom and why
    Holds,
    Erase(Erasing),
    /// List the sessions that were erased, by whom and why
    Erased,
}

/// Have nobody be able to read a session any more, for good
///
/// For sessions that were encrypted (`journal: {encryption: {}}`), when they are over and nobody holds them. The key of
/// the session is destroyed: what it said can't be read on this host, nor in copies of its segments, by anybody. That
/// it was, whose it was and how many records it had stay, and so does what proves all others. Who was given the session
/// before (streams, exports, evidence files) has it still, and so has whoever kept a copy of `session.keys` from before.
#[derive(Debug, clap::Args)]
struct Erasing {
    /// Its id
    #[arg(value_name = "ID")]
    id: SessionId,
    /// Why, for the record; not what the record is not to know
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, clap::Args)]
struct Holding {
    /// Its id
    #[arg(value_name = "ID")]
    id: SessionId,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<Box<str>>,
    /// Only of agents with this label; can be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Only those that began then or later: a time (2026-11-20T22:07:01Z) or how long ago (7d, 12h, 90m)
    #[arg(long, value_name = "T", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only those that began then or earlier: as --since
    #[arg(long, value_name = "T", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only with operations of this protocol: postgres, http, dns, tls, opaque
    #[arg(long, value_name = "NAME", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Only with operations of this class (read, write, schema, …); can be given more than once: any of them
    #[arg(long, value_name = "CLASS")]
    class: Vec<String>,
    /// Only with operations that were decided so
    #[arg(long, value_enum)]
    verdict: Option<Decided>,
    /// Only with operations that this rule decided
    #[arg(long, value_name = "ID")]
    rule: Option<Box<str>>,
    /// Only with operations that this person voted on
    #[arg(long, value_name = "NAME")]
    reviewer: Option<Box<str>>,
    /// Only to an address or a name that has this in it
    #[arg(long, value_name = "TEXT")]
    destination: Option<Box<str>>,
    /// Only with operations whose statement, path, resource, command or host has these words, in any case and order:
    /// orders, shop.orders, ord*, "a phrase"
    #[arg(long, value_name = "WORDS")]
    text: Option<String>,
    /// Only those that go on
    #[arg(long, conflicts_with = "over")]
    live: bool,
    /// Only those that are over
    #[arg(long)]
    over: bool,
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
        Some(Command::Replay(arguments)) => replay::run(context, &arguments),
        Some(Command::Tail(arguments)) => tail::run(context, &arguments),
        Some(Command::Hold(arguments)) => hold(context, arguments),
        Some(Command::Release(arguments)) => release(context, arguments),
        Some(Command::Holds) => holds(context),
        Some(Command::Erase(arguments)) => erase(context, arguments),
        Some(Command::Erased) => erased(context),
    }
}

/// `text` as a protocol's name.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    let mut all = Protocol::ALL.into_iter();
    let found = all.find(|protocol| protocol.name() == text);
    found.ok_or_else(|| {
        let names: Vec<_> = Protocol::ALL
            .iter()
            .map(|protocol| protocol.name())
            .collect();
        format!("it is none of {}", names.join(", "))
    })
}

fn list(context: &Context, arguments: List) -> Outcome {
    let joined = |all: &[String]| (!all.is_empty()).then(|| all.join(","));
    let asked = SessionsQuery {
        label: joined(&arguments.label),
        class: joined(&arguments.class),
        agent: arguments.agent,
        since: arguments.since,
        until: arguments.until,
        protocol: arguments.protocol,
        verdict: arguments.verdict,
        rule: arguments.rule,
        reviewer: arguments.reviewer,
        destination: arguments.destination,
        text: arguments.text,
        live: match (arguments.live, arguments.over) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        limit: Some(arguments.limit),
    };
    // Before anybody is asked.
    asked.wanted().map_err(Failed::because)?;
    let (sessions, stopped): (Vec<Session>, _) = match &arguments.state {
        Some(folder) => (offline::sessions(context, folder, &asked)?, None),
        None => context
            .client
            .get_with(&with_query("/v1/sessions", &asked.pairs()), STOPPED)?,
    };
    if let Some(since) = stopped {
        message(&format!(
            "the records of many sessions have to be looked through, so of those that began at {since} or earlier \
             only some were; narrow it down with --until {since}, --agent or further words"
        ));
    }
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

fn hold(context: &Context, Holding { id, reason }: Holding) -> Outcome {
    let path = format!("/v1/sessions/{id}/hold");
    let hold: Hold = context.client.post(&path, &Reason { reason })?;
    if context.is_json() {
        return context.print_json(&hold);
    }
    message(&format!("session {id} is kept until it is released"));
    Ok(ExitCode::SUCCESS)
}

fn release(context: &Context, Holding { id, reason }: Holding) -> Outcome {
    let path = format!("/v1/sessions/{id}/release");
    let left: Vec<Hold> = context.client.post(&path, &Reason { reason })?;
    if context.is_json() {
        return context.print_json(&left);
    }
    message(&format!("session {id} is kept no longer than others"));
    Ok(ExitCode::SUCCESS)
}

fn holds(context: &Context) -> Outcome {
    let holds: Vec<Hold> = context.client.get("/v1/holds")?;
    if context.is_json() {
        return context.print_json(&holds);
    }
    if holds.is_empty() {
        message("no session is held");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = holds
        .iter()
        .map(|hold| {
            vec![
                hold.session.to_string(),
                time(hold.since),
                hold.by.to_string(),
                hold.reason.to_string(),
            ]
        })
        .collect();
    let headings = ["SESSION", "SINCE", "BY", "REASON"];
    print(&table(&headings, &rows, context.color))?;
    Ok(ExitCode::SUCCESS)
}

fn erase(context: &Context, Erasing { id, reason }: Erasing) -> Outcome {
    let path = format!("/v1/sessions/{id}/erase");
    let erasure: Erasure = context.client.post(&path, &Reason { reason })?;
    if context.is_json() {
        return context.print_json(&erasure);
    }
    message(&format!("session {id} can't be read any more"));
    Ok(ExitCode::SUCCESS)
}

fn erased(context: &Context) -> Outcome {
    let erasures: Vec<Erasure> = context.client.get("/v1/erasures")?;
    if context.is_json() {
        return context.print_json(&erasures);
    }
    if erasures.is_empty() {
        message("no session was erased");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = erasures
        .iter()
        .map(|erasure| {
            vec![
                erasure.session.to_string(),
                time(erasure.at),
                erasure.agent.to_string(),
                erasure.by.to_string(),
                erasure.reason.to_string(),
            ]
        })
        .collect();
    let headings = ["SESSION", "ERASED", "AGENT", "BY", "REASON"];
    print(&table(&headings, &rows, context.color))?;
    Ok(ExitCode::SUCCESS)
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
        Some(folder) => offline::session(context, folder, arguments.id, each)?,
        None => context
            .client
            .lines(&format!("/v1/sessions/{}", arguments.id), each)?,
    }
    Ok(ExitCode::SUCCESS)
}
