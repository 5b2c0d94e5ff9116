//! The hooks: loaded and attached for real, to a cgroup of their own.

use super::{Group, Guard, NEEDS_ROOT};
use crate::kernel::{self, Trial};

#[derive(Debug, Clone)]
pub(super) enum Found {
    Tried(Trial),
    /// Nothing could be tried: the kernel's or the host's answer.
    Failed(String),
    /// Who asks may not try.
    Left,
}

/// What each guard consists of, and since which Linux there are such hooks.
const GUARDS: [(&str, &[&str], &str); 11] = [
    (
        "TCP connects",
        &["agent_connect4", "agent_connect6"],
        "cgroup/connect4 and connect6 (Linux 4.17)",
    ),
    (
        "hand-over to the proxy",
        &["agent_sockops", "daemon_sockops"],
        "sockops with storage at sockets (Linux 5.10)",
    ),
    (
        "UDP that is sent",
        &["agent_sendmsg4", "agent_sendmsg6"],
        "cgroup/sendmsg4 and sendmsg6 (Linux 4.18)",
    ),
    (
        "UDP that is received",
        &["agent_recvmsg4", "agent_recvmsg6"],
        "cgroup/recvmsg4 and recvmsg6 (Linux 5.2)",
    ),
    (
        "who agents think they talk to",
        &["agent_getpeername4", "agent_getpeername6"],
        "cgroup/getpeername4 and getpeername6 (Linux 5.8)",
    ),
    (
        "kinds of sockets",
        &["agent_sock_create"],
        "cgroup/sock_create (Linux 4.10): neither raw, ICMP, SCTP nor MPTCP",
    ),
    (
        "ends of sockets",
        &["agent_sock_release"],
        "cgroup/sock_release (Linux 5.9)",
    ),
    (
        "the proxy's port",
        &["agent_post_bind4", "agent_post_bind6"],
        "cgroup/post_bind4 and post_bind6 (Linux 4.17)",
    ),
    (
        OPTIONS,
        &["agent_setsockopt"],
        "cgroup/setsockopt (Linux 5.3)",
    ),
    (
        "packets that leave",
        &["agent_egress"],
        "cgroup_skb/egress (Linux 4.10)",
    ),
    (
        "packets that arrive",
        &["agent_ingress"],
        "cgroup_skb/ingress (Linux 4.10)",
    ),
];

const OPTIONS: &str = "socket options";

/// What guards UNIX sockets.
const UNIX: [&str; 2] = ["agent_connect_unix", "agent_sendmsg_unix"];

const REMEDY: &str = "use a kernel of Linux 5.15 or later with CONFIG_CGROUP_BPF, which isn't locked down; the daemon does not tag agents without";

pub(super) fn find(is_root: bool) -> Found {
    if !is_root {
        return Found::Left;
    }
    match kernel::try_hooks() {
        Ok(trial) => Found::Tried(trial),
        Err(error) => Found::Failed(error.to_string()),
    }
}

pub(super) fn guards(found: &Found) -> Vec<Guard> {
    let mut group = Group::new("hooks");
    let trial = match found {
        Found::Tried(trial) => trial,
        Found::Failed(error) => {
            group.missing("maps and programs", error.clone(), REMEDY);
            return group.guards;
        }
        Found::Left => {
            group.unseen("maps and programs", "they weren't tried", NEEDS_ROOT);
            return group.guards;
        }
    };
    group.in_force(
        "maps",
        "storage at sockets (Linux 5.2), ring buffer (Linux 5.8), hashes, a trie",
    );
    for (guard, programs, rests_on) in GUARDS {
        let failed = failed(trial, programs);
        if failed.is_empty() && guard == OPTIONS && !trial.names_setters {
            let who = "refusals are recorded with who last used the socket: before Linux 6.1 the kernel doesn't say who sets an option";
            group.in_force(guard, format!("{rests_on}; {who}"));
        } else if failed.is_empty() {
            group.in_force(guard, rests_on);
        } else {
            group.missing(guard, format!("{rests_on}: {}", failed.join("; ")), REMEDY);
        }
    }
    unix(&mut group, trial);
    if trial.kills {
        group.in_force("ending an agent as a whole", "cgroup.kill (Linux 5.14)");
    } else {
        group.weaker(
            "ending an agent as a whole",
            "no cgroup.kill: its processes are killed one by one",
            "use Linux 5.14 or later",
        );
    }
    if trial.freezes {
        group.in_force("holding an agent still", "cgroup.freeze (Linux 5.2)");
    } else {
        group.missing(
            "holding an agent still",
            "no cgroup.freeze: what runs can't be tagged",
            "use Linux 5.2 or later",
        );
    }
    group.guards
}

/// What the kernel said of those of `programs` that it refused.
fn failed(trial: &Trial, programs: &[&str]) -> Vec<String> {
    let failed = programs.iter().filter_map(|name| {
        match trial.programs.iter().find(|(known, _)| known == name) {
            Some((_, Ok(()))) => None,
            Some((_, Err(error))) => Some(error.clone()),
            None => Some(format!("{name} isn't known")),
        }
    });
    failed.collect()
}

/// Agents are tagged without these hooks too, where the kernel has none.
fn unix(group: &mut Group, trial: &Trial) {
    const GUARD: &str = "UNIX sockets of agents that are tagged while they run";
    const RESTS_ON: &str = "cgroup/connect_unix and sendmsg_unix (Linux 6.7)";
    let failed = failed(trial, &UNIX);
    if let Some(why) = trial.unguarded {
        group.weaker(
            GUARD,
            format!("they reach all: {why}"),
            "use Linux 6.7 or later; without, launch agents with `interceptor run`, which covers container engines, systemd, D-Bus and others",
        );
    } else if !failed.is_empty() {
        group.missing(GUARD, format!("{RESTS_ON}: {}", failed.join("; ")), REMEDY);
    } else if let Some(why) = trial.unnamed {
        group.weaker(
            GUARD,
            format!("{RESTS_ON}, which refuse more than they have to: {why}"),
            "use a kernel with CONFIG_DEBUG_INFO_BTF, as distributions' are",
        );
    } else {
        group.in_force(GUARD, RESTS_ON);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{State, states},
        *,
    };

    fn trial() -> Trial {
        let programs = GUARDS
            .iter()
            .flat_map(|(_, programs, _)| *programs)
            .chain(&UNIX)
            .map(|name| (*name, Ok(())));
        Trial {
            programs: programs.collect(),
            unguarded: None,
            unnamed: None,
            names_setters: true,
            kills: true,
            freezes: true,
        }
    }

    #[test]
    fn a_program_that_the_kernel_refuses_takes_its_guard_away_and_no_other() {
        let mut trial = trial();
        assert!(
            guards(&Found::Tried(trial.clone()))
                .iter()
                .all(|guard| guard.state == State::InForce)
        );
        for (name, result) in &mut trial.programs {
            if *name == "agent_getpeername6" {
                *result = Err("Invalid argument".to_owned());
            }
        }
        trial.kills = false;
        let judged = guards(&Found::Tried(trial));
        let bad: Vec<_> = states(&judged)
            .into_iter()
            .filter(|(_, state)| *state != State::InForce)
            .collect();
        assert_eq!(
            bad,
            [
                ("who agents think they talk to", State::Missing),
                ("ending an agent as a whole", State::Weaker)
            ]
        );
        assert!(
            judged
                .iter()
                .any(|guard| guard.rests_on.ends_with(": Invalid argument"))
        );
    }

    #[test]
    fn without_hooks_on_unix_sockets_agents_are_guarded_less() {
        let unix = |trial: Trial| {
            let judged = guards(&Found::Tried(trial));
            let found = judged
                .into_iter()
                .find(|guard| guard.guard.starts_with("UNIX"));
            let guard = found.unwrap();
            (guard.state, guard.rests_on, guard.remedy)
        };
        let mut old = Trial {
            unguarded: Some("this kernel has none"),
            ..trial()
        };
        old.programs.retain(|(name, _)| !UNIX.contains(name));
        let (state, rests_on, remedy) = unix(old.clone());
        assert_eq!(state, State::Weaker);
        assert_eq!(rests_on, "they reach all: this kernel has none");
        assert!(remedy.contains("interceptor run"));
        // Where the kernel has them and they aren't there, something is amiss.
        old.unguarded = None;
        assert_eq!(unix(old).0, State::Missing);
        let blind = Trial {
            unnamed: Some("no BTF"),
            ..trial()
        };
        assert_eq!(unix(blind).0, State::Weaker);
        assert_eq!(unix(trial()).0, State::InForce);
    }

    #[test]
    fn a_kernel_without_maps_has_no_hooks() {
        let judged = guards(&Found::Failed("no BTF".to_owned()));
        assert_eq!(states(&judged), [("maps and programs", State::Missing)]);
        let judged = guards(&Found::Left);
        assert_eq!(states(&judged), [("maps and programs", State::Unseen)]);
    }
}
