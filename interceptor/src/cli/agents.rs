//! `interceptor agents`: who is an agent.

use std::process::ExitCode;

use super::{
    Context, Outcome,
    display::{labels, message, print, table},
};
use crate::console::Tagged;
use crate::kernel::TagKind;

/// List all agents
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
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    match arguments.command {
        None | Some(Command::List) => list(context),
    }
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
                    TagKind::Launched => "launched",
                }
                .to_owned(),
                agent.cgroup.display().to_string(),
            ]
        })
        .collect();
    print(&table(
        &["AGENT", "LABELS", "HOW", "CGROUP"],
        &rows,
        context.color,
    ))?;
    Ok(ExitCode::SUCCESS)
}
