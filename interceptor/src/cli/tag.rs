//! `interceptor tag`: make an existing cgroup an agent.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use super::{
    Context, Outcome, agents,
    client::with_query,
    display::{inert, message},
    failed::Failed,
};
use crate::console::{Label, NewTag, TagTarget, Tagged, agent_name};

/// Make existing cgroups agents, or stop doing so
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:
  interceptor tag add /sys/fs/cgroup/my.slice --agent batch --label team=data
  interceptor tag add system.slice/worker.service --agent worker
  interceptor tag add --pid 4242 --agent reporter
  interceptor tag remove batch")]
pub(super) enum Command {
    /// Intercept what a cgroup's processes connect to from now on
    Add(Add),
    /// List all agents
    List,
    /// Stop intercepting an agent
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["cgroup", "pid"]))]
pub(super) struct Add {
    /// The cgroup: an absolute path, or one below the cgroup v2 mount point
    cgroup: Option<PathBuf>,
    /// The cgroup of this process
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Name of the agent
    #[arg(long, value_name = "NAME", value_parser = agent_name)]
    agent: Box<str>,
    /// A label that rules can match; may be repeated
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<Label>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// The agent's name, or its cgroup's absolute path
    #[arg(value_name = "NAME|CGROUP")]
    agent: String,
}

pub(super) fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Add(add) => {
            let target = match (add.cgroup, add.pid) {
                (Some(cgroup), _) => TagTarget::Cgroup(cgroup),
                (None, Some(pid)) => TagTarget::Pid(pid),
                (None, None) => return Err(Failed::because("give a cgroup or --pid")),
            };
            let tag = NewTag {
                agent: add.agent,
                labels: labels(add.labels),
                target,
            };
            let tagged: Tagged = context.client.post("/v1/agents", &tag)?;
            if context.is_json() {
                return context.print_json(&tagged);
            }
            message(&format!(
                "{} is agent `{}` now; connections that were open before are not intercepted",
                tagged.cgroup.display(),
                tagged.agent
            ));
            Ok(ExitCode::SUCCESS)
        }
        Command::List => agents::list(context),
        Command::Remove(remove) => {
            let agent = if remove.agent.starts_with('/') {
                by_cgroup(context, &remove.agent)?
            } else {
                remove.agent
            };
            let path = with_query("/v1/agents", &[("agent", Some(agent))]);
            let tagged: Tagged = context.client.delete(&path)?;
            if context.is_json() {
                return context.print_json(&tagged);
            }
            message(&format!("{} is no agent any more", tagged.cgroup.display()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn by_cgroup(context: &Context, path: &str) -> Result<String, Failed> {
    let agents: Vec<Tagged> = context.client.get("/v1/agents")?;
    let wanted = PathBuf::from(path);
    agents
        .into_iter()
        .find(|tagged| tagged.cgroup == wanted)
        .map(|tagged| tagged.agent.into())
        .ok_or_else(|| {
            Failed::because(format!("{} is not tagged", inert(path)))
                .with_remedy("`interceptor tag list` shows what is")
        })
}

pub(super) fn labels(labels: Vec<Label>) -> BTreeMap<Box<str>, Box<str>> {
    labels
        .into_iter()
        .map(|label| (label.name, label.value))
        .collect()
}
