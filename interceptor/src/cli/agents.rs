//! `interceptor agents`: who is an agent; stop one, let it go on, sever its connections.

use std::process::ExitCode;

use super::{
    Context, Outcome,
    display::{count, labels, message, print, table},
};
use crate::{
    control::{Deed, Done, NewDeed, Tagged, agent_name},
    kernel::TagKind,
};

/// List all agents; stop one, let it go on, sever its connections
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List all agents
    List,
    /// Stop all processes of an agent
    Freeze(Named),
    /// Let the processes of an agent go on
    Thaw(Named),
    /// Sever all connections of an agent; it can connect anew
    Cut(Named),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The agent's name
    #[arg(value_name = "NAME", value_parser = agent_name)]
    agent: Box<str>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    match &arguments.command {
        None | Some(Command::List) => list(context),
        Some(Command::Freeze(named)) => act(context, named, Deed::Freeze),
        Some(Command::Thaw(named)) => act(context, named, Deed::Thaw),
        Some(Command::Cut(named)) => act(context, named, Deed::Cut),
    }
}

fn act(context: &Context, named: &Named, deed: Deed) -> Outcome {
    let request = NewDeed {
        agent: named.agent.clone(),
        deed,
    };
    let done: Done = context.client.post("/v1/agents/deeds", &request)?;
    if context.is_json() {
        return context.print_json(&done);
    }
    let agent = &named.agent;
    message(&match deed {
        Deed::Freeze => {
            format!("agent `{agent}` stands still; `interceptor agents thaw {agent}` lets it go on")
        }
        Deed::Thaw => format!("agent `{agent}` goes on"),
        Deed::Cut => format!(
            "{} of agent `{agent}` severed",
            count(done.connections, "connection")
        ),
    });
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(context: &Context) -> Outcome {
    let agents: Vec<Tagged> = context.client.get("/v1/agents")?;
    if context.is_json() {
        return context.print_json(&agents);
    }
    if agents.is_empty() {
        message("no agent is tagged; `interceptor tag add` and `interceptor run` make some");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = agents
        .iter()
        .map(|agent| {
            vec![
                agent.agent.to_string(),
                labels(&agent.labels),
                match agent.kind {
                    TagKind::Existing => "tagged",
                    TagKind::Followed => "followed",
                    TagKind::Launched => "launched",
                }
                .to_owned(),
                state(agent),
                agent.cgroup.display().to_string(),
            ]
        })
        .collect();
    print(&table(
        &["AGENT", "LABELS", "HOW", "STATE", "CGROUP"],
        &rows,
        context.color,
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn state(agent: &Tagged) -> String {
    let mut state = match (agent.away, agent.frozen) {
        (true, _) => "away",
        (false, true) => "frozen",
        (false, false) => "running",
    }
    .to_owned();
    if agent.old_sockets.allowed > 0 {
        let old = count(agent.old_sockets.allowed, "socket");
        state.push_str(&format!(", {old} from before"));
    }
    state
}
