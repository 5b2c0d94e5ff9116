//! Each agent: its hooks, and what its processes may do.

use super::{Group, Guard, NEEDS_ROOT};
use crate::kernel::{self, ForeignHook, TagKind, UnixAccess, UnixSockets};

#[derive(Debug, Clone)]
pub(super) struct Found {
    is_root: bool,
    agents: Vec<Agent>,
}

#[derive(Debug, Clone)]
struct Agent {
    name: String,
    kind: TagKind,
    /// What is wrong with its hooks.
    wrong: Vec<String>,
    /// Processes with capabilities that lead out, each with their names.
    capable: Vec<(u32, Vec<&'static str>)>,
    foreign: Vec<ForeignHook>,
    unix: UnixAccess,
    /// Why this kernel guards no UNIX sockets, where it doesn't.
    unguarded: Option<&'static str>,
}

impl Found {
    pub(super) fn has_agents(&self) -> bool {
        !self.agents.is_empty()
    }
}

/// Capabilities that lead out, by their numbers.
const CAPABILITIES: [(u32, &str); 6] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (16, "CAP_SYS_MODULE"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (39, "CAP_BPF"),
];

/// Processes that are named.
const NAMED_MAX: usize = 3;

pub(super) fn find(instance: &str, is_root: bool) -> Found {
    let agents = kernel::agents_of(instance).into_iter().map(|(tag, wrong)| {
        let capable = kernel::processes_of(&tag).into_iter().filter_map(|pid| {
            let names = capabilities(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
            (!names.is_empty()).then_some((pid, names))
        });
        Agent {
            name: tag.agent.name.to_string(),
            kind: tag.kind,
            wrong,
            capable: capable.collect(),
            foreign: kernel::foreign_hooks(&tag.cgroup).unwrap_or_default(),
            unix: tag.unix,
            unguarded: kernel::unguarded(),
        }
    });
    Found {
        is_root,
        agents: agents.collect(),
    }
}

/// Those of [`CAPABILITIES`] that a process has, of which this is /proc/PID/status.
fn capabilities(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let has = |number: u32| set.is_some_and(|set| set >> number & 1 == 1);
    CAPABILITIES
        .into_iter()
        .filter(|(number, _)| has(*number))
        .map(|(_, name)| name)
        .collect()
}

pub(super) fn guards(found: &Found) -> Vec<Guard> {
    let mut group = Group::new("agents");
    if !found.is_root {
        group.unseen("hooks of each agent", "they can't be looked at", NEEDS_ROOT);
        return group.guards;
    }
    for agent in &found.agents {
        let name = &agent.name;
        let hooks = format!("{name}: hooks");
        if agent.wrong.is_empty() {
            group.in_force(&hooks, "attached, pinned, and nobody else's");
        } else {
            group.missing(
                &hooks,
                agent.wrong.join(", "),
                "find out who did it; a running daemon attaches them again, and a start does",
            );
        }
        let rights = format!("{name}: capabilities");
        if agent.capable.is_empty() {
            group.in_force(&rights, "none of its processes has one that leads out");
        } else {
            let named: Vec<String> = agent
                .capable
                .iter()
                .take(NAMED_MAX)
                .map(|(pid, names)| format!("process {pid} has {}", names.join(", ")))
                .collect();
            let more = agent.capable.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 {
                format!(" (and {more} more processes)")
            } else {
                String::new()
            };
            group.weaker(
                &rights,
                format!("{}{more}", named.join("; ")),
                "launch it with `interceptor run`, which takes them away; what leaves is told of (`tags: {on_escape: kill}` stops it)",
            );
        }
        if agent.kind != TagKind::Launched {
            unix_sockets(&mut group, agent);
        }
        for hook in &agent.foreign {
            let name = if hook.name.is_empty() {
                "without a name"
            } else {
                &hook.name
            };
            group.weaker(
                &format!("{}: hooks of others", agent.name),
                format!(
                    "program {} ({name}) at {} sees {} after our own, and with it the proxy's address",
                    hook.id,
                    hook.cgroup.display(),
                    hook.point
                ),
                "make sure that it changes nothing about loopback addresses",
            );
        }
    }
    group.guards
}

/// What an agent that was tagged while running can do with UNIX sockets.
fn unix_sockets(group: &mut Group, agent: &Agent) {
    let guard = format!("{}: UNIX sockets", agent.name);
    let open = "whatever socket it may open (container engines, D-Bus, SSH agents) it can use";
    match (agent.unguarded, agent.unix.sockets) {
        (Some(why), UnixSockets::Refuse | UnixSockets::Report) => group.weaker(
            &guard,
            format!("tagged while running, {open}: {why}"),
            "launch it with `interceptor run`, or take its user's access to such sockets away",
        ),
        (_, UnixSockets::Allow) => group.weaker(
            &guard,
            format!("{open}, as was asked for"),
            "tag it with `--unix-sockets refuse`, and `--allow-socket` for what it needs",
        ),
        (None, UnixSockets::Report) => group.weaker(
            &guard,
            format!("{open}, and each use is recorded, as was asked for"),
            "tag it with `--unix-sockets refuse`, and `--allow-socket` for what it needs",
        ),
        (None, UnixSockets::Refuse) => group.in_force(&guard, agent.unix.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{State, states},
        *,
    };

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let of = |set: &str| {
            capabilities(&format!(
                "Name:\tsh\nCapEff:\t{set}\nCapBnd:\tffffffffffffffff\n"
            ))
        };
        assert_eq!(of("0000000000000000"), [""; 0]);
        assert_eq!(of("0000000000003000"), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(of("0000008000200000"), ["CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(of("no number"), [""; 0]);
        assert_eq!(capabilities(""), [""; 0]);
    }

    #[test]
    fn an_agent_that_may_leave_is_weaker_and_one_without_hooks_is_not_guarded() {
        let launched = Agent {
            name: "a".to_owned(),
            kind: TagKind::Launched,
            wrong: Vec::new(),
            capable: Vec::new(),
            foreign: Vec::new(),
            unix: UnixAccess::default(),
            unguarded: None,
        };
        let tagged = Agent {
            name: "b".to_owned(),
            kind: TagKind::Existing,
            wrong: vec!["agent_connect4 is detached".to_owned()],
            capable: vec![(7, vec!["CAP_SYS_ADMIN"]); 5],
            foreign: vec![ForeignHook {
                cgroup: "/sys/fs/cgroup".into(),
                point: "connect4",
                id: 9,
                name: "cil_sock4_connec".to_owned(),
            }],
            unix: UnixAccess::default(),
            unguarded: None,
        };
        let found = Found {
            is_root: true,
            agents: vec![launched, tagged],
        };
        let judged = guards(&found);
        assert_eq!(
            states(&judged),
            [
                ("a: hooks", State::InForce),
                ("a: capabilities", State::InForce),
                ("b: hooks", State::Missing),
                ("b: capabilities", State::Weaker),
                ("b: UNIX sockets", State::InForce),
                ("b: hooks of others", State::Weaker),
            ]
        );
        assert!(
            judged
                .iter()
                .any(|guard| guard.rests_on.contains("(and 2 more processes)"))
        );
    }

    #[test]
    fn an_agent_that_reaches_unix_sockets_is_weaker() {
        let of = |sockets, unguarded| {
            let mut group = Group::new("agents");
            let agent = Agent {
                name: "a".to_owned(),
                kind: TagKind::Existing,
                wrong: Vec::new(),
                capable: Vec::new(),
                foreign: Vec::new(),
                unix: UnixAccess {
                    sockets,
                    allowed: vec!["/run/db.sock".parse().unwrap()],
                },
                unguarded,
            };
            unix_sockets(&mut group, &agent);
            let guard = group.guards.remove(0);
            (guard.state, guard.rests_on)
        };
        let refused = of(UnixSockets::Refuse, None);
        let text = "UNIX sockets refused but for /run/db.sock".to_owned();
        assert_eq!(refused, (State::InForce, text));
        for (sockets, unguarded) in [
            (UnixSockets::Report, None),
            (UnixSockets::Allow, None),
            (UnixSockets::Refuse, Some("this kernel has none")),
        ] {
            assert_eq!(of(sockets, unguarded).0, State::Weaker);
        }
    }
}
