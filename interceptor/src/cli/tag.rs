//! `interceptor tag`: make an existing cgroup an agent.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use super::{
    Context, Outcome, agents,
    display::{count, inert, message},
    engines,
    failed::Failed,
};
use crate::{
    config::OldSockets,
    control::{Label, NewTag, OldSocketCounts, TagTarget, Tagged, agent_name, with_query},
    kernel::{SocketName, UnixSockets},
};

/// Make existing cgroups agents, or stop doing so
///
/// Sockets that a cgroup's processes have when it becomes an agent were never decided on: they are cut,
/// connections and listeners and what is bound or idle, an SSH session's own included, unless they are
/// allowed.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:
  interceptor tag add /sys/fs/cgroup/my.slice --agent batch --label team=data
  interceptor tag add system.slice/worker.service --agent worker
  interceptor tag add --pid 4242 --agent reporter
  interceptor tag add --unit worker --agent worker
  interceptor tag add --container nightly-build --agent build
  interceptor tag add --unit app --agent app --allow-socket /run/postgresql/.s.PGSQL.5432
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
#[command(group = clap::ArgGroup::new("target").required(true).args(["cgroup", "pid", "unit", "container"]))]
pub(super) struct Add {
    /// The cgroup: an absolute path, or one below the cgroup v2 mount point
    cgroup: Option<PathBuf>,
    /// The cgroup of this process
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// The cgroup of this systemd unit, a service where the name doesn't say. Whenever it is started anew, which is in
    /// another cgroup, it is the agent again
    #[arg(long)]
    unit: Option<Box<str>>,
    /// The cgroup of this container of docker, podman, containerd, CRI-O or Kubernetes, crun or runc: its id,
    /// the beginning of its id, or its name where the engine's program is here to be asked. Whenever it is started
    /// anew it is the agent again; one that is made anew is another
    #[arg(long, value_name = "ID|NAME")]
    container: Option<Box<str>>,
    /// Name of the agent
    #[arg(long, value_name = "NAME", value_parser = agent_name)]
    agent: Box<str>,
    /// A label that rules can match; may be repeated
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<Label>,
    /// What happens to its sockets from before: cut them, or allow them until they are closed
    /// [default: what `tags: {old_sockets: …}` of the daemon's configuration says, or else cut]
    #[arg(long, value_enum)]
    old_sockets: Option<OldSockets>,
    /// What happens where it asks for a UNIX socket that is neither its own nor allowed: refuse it, report it, or
    /// allow all. Its own are abstract ones that its processes have bound; a path is nobody's own, because links
    /// lead it anywhere. What is connected already stays [default: what `tags: {unix_sockets: …}` of the daemon's
    /// configuration says, or else refuse]
    #[arg(long, value_enum)]
    unix_sockets: Option<UnixSockets>,
    /// Let it reach this UNIX socket, by the very name that its programs use, or, with a slash at the end, those in
    /// this folder and below; may be repeated
    #[arg(long = "allow-socket", value_name = "PATH|FOLDER/|@NAME")]
    allow_sockets: Vec<SocketName>,
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
            let target = match (add.cgroup, add.pid, add.unit, add.container) {
                (Some(cgroup), ..) => TagTarget::Cgroup(cgroup),
                (_, Some(pid), ..) => TagTarget::Pid(pid),
                (_, _, Some(unit), _) => TagTarget::Unit(unit),
                (.., Some(name)) => {
                    let id = engines::container_id(&name)?;
                    TagTarget::Container(id.map_or(name, String::into_boxed_str))
                }
                (None, None, None, None) => {
                    return Err(Failed::because(
                        "give a cgroup, --pid, --unit or --container",
                    ));
                }
            };
            let tag = NewTag {
                confined: None,
                agent: add.agent,
                labels: labels(add.labels),
                target,
                old_sockets: add.old_sockets,
                unix_sockets: add.unix_sockets,
                open_sockets: false,
                allow_sockets: add.allow_sockets,
                engines: Vec::new(),
            };
            let tagged: Tagged = context.client.post("/v1/agents", &tag)?;
            if context.is_json() {
                return context.print_json(&tagged);
            }
            message(&format!(
                "{} is agent `{}` now{}",
                tagged.cgroup.display(),
                tagged.agent,
                old_sockets(tagged.old_sockets)
            ));
            for caution in &tagged.cautions {
                message(&inert(caution));
            }
            if tagged.old_sockets.kept > 0 {
                message(&format!(
                    "it stays connected to {} of others \
                     (`interceptor export --agent {}` names each: old_socket_kept)",
                    count(tagged.old_sockets.kept, "UNIX socket"),
                    tagged.agent
                ));
            }
            if tagged.old_sockets.uncut > 0 {
                message(&format!(
                    "it holds {} that can't be cut and that no hook sees; restart what holds them \
                     (`interceptor export --agent {}` names it: old_socket_uncut), or configure \
                     `tags: {{uncuttable: kill}}`",
                    count(tagged.old_sockets.uncut, "socket"),
                    tagged.agent
                ));
            }
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
            if tagged.frozen {
                message(&format!(
                    "it is still frozen; write 0 to {}/cgroup.freeze to let it go on, unguarded",
                    tagged.cgroup.display()
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What became of the sockets from before.
fn old_sockets(counts: OldSocketCounts) -> String {
    if counts.cut > 0 {
        let were = if counts.cut == 1 { "was" } else { "were" };
        format!("; {} from before {were} cut", count(counts.cut, "socket"))
    } else if counts.allowed > 0 {
        let sockets = count(counts.allowed, "socket");
        format!("; {sockets} from before may be used until closed")
    } else {
        String::new()
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
