//! Processes: what confines those that are launched, and what tells of those that leave.

use super::{Group, Guard, Tried, host::version, read};
use crate::kernel;

#[derive(Debug, Clone)]
pub(super) struct Found {
    kernel: String,
    lineage: Tried,
    /// Landlock's version, 0 where there is none.
    landlock: i64,
    /// What seccomp can do, as the kernel lists it.
    seccomp: Option<String>,
    /// `kernel.yama.ptrace_scope`.
    ptrace_scope: Option<String>,
    /// `user.max_user_namespaces`.
    user_namespaces: Option<u64>,
}

pub(super) fn find(is_root: bool) -> Found {
    Found {
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        lineage: Tried::out(is_root, kernel::try_lineage),
        landlock: kernel::landlock_version().unwrap_or(0),
        seccomp: read("/proc/sys/kernel/seccomp/actions_avail"),
        ptrace_scope: read("/proc/sys/kernel/yama/ptrace_scope"),
        user_namespaces: read("/proc/sys/user/max_user_namespaces")
            .and_then(|text| text.parse().ok()),
    }
}

pub(super) fn guards(found: &Found) -> Vec<Guard> {
    /// The first version that keeps abstract Unix sockets and signals within, Linux 6.12.
    const SCOPES: i64 = 6;
    let mut group = Group::new("processes");
    match &found.lineage {
        Tried::Fails(error) => group.weaker(
            "who leaves an agent's cgroup",
            format!("looked for twice a second; the kernel doesn't tell of moves: {error}"),
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ),
        tried => group.tried(
            "who leaves an agent's cgroup",
            tried,
            "tracefs: forks and moves are told, and looked for twice a second",
            "",
        ),
    }
    let landlock = format!("Landlock, version {}", found.landlock);
    match found.landlock {
        SCOPES.. => group.in_force("abstract Unix sockets of others", landlock),
        1.. => group.weaker(
            "abstract Unix sockets of others",
            format!("{landlock}: without scopes, `run` leaves them within reach, and signals to the process group that it is started in"),
            "use Linux 6.12 or later",
        ),
        _ => group.weaker(
            "abstract Unix sockets of others",
            "no Landlock: `run` leaves them within reach, and signals to the process group that it is started in",
            "use Linux 6.12 or later with CONFIG_SECURITY_LANDLOCK and `landlock` among its security modules (lsm=)",
        ),
    }
    match &found.seccomp {
        Some(actions) if actions.split_whitespace().any(|action| action == "errno") => {
            group.in_force("system calls of what `run` launches", "seccomp filters");
        }
        _ => group.missing(
            "system calls of what `run` launches",
            "no seccomp filters",
            "use a kernel with CONFIG_SECCOMP_FILTER; `run` launches nothing without",
        ),
    }
    match found.ptrace_scope.as_deref() {
        Some("0") | None => group.weaker(
            "processes beside an agent",
            match found.ptrace_scope {
                Some(_) => "kernel.yama.ptrace_scope = 0",
                None => "no Yama",
            }
            .to_owned()
                + ": who is tagged while running can drive other processes of its user, which are not tagged",
            "sysctl kernel.yama.ptrace_scope=1, or let agents have users of their own, or launch them with `run`",
        ),
        Some(scope) => group.in_force(
            "processes beside an agent",
            format!("kernel.yama.ptrace_scope = {scope}"),
        ),
    }
    match found.user_namespaces {
        Some(0) => group.in_force("user namespaces", "none can be made"),
        _ => group.in_force(
            "user namespaces",
            "can be made; the hooks hold in there too, and an unserved network namespace is refused",
        ),
    }
    if version(&found.kernel).is_some_and(|version| version >= (6, 7)) {
        group.in_force(
            "Unix sockets by path",
            "what `run` launches doesn't see them (mounts); who is tagged while running is told of below",
        );
    } else {
        group.in_force(
            "Unix sockets by path",
            "what `run` launches doesn't see them (mounts); Linux before 6.7 has no hook for who is tagged while running",
        );
    }
    group.guards
}

#[cfg(test)]
mod tests {
    use super::{
        super::{State, states},
        *,
    };

    fn of_5_15() -> Found {
        Found {
            kernel: "5.15.0".to_owned(),
            lineage: Tried::Works,
            landlock: 1,
            seccomp: Some("kill_process kill_thread trap errno trace log allow".to_owned()),
            ptrace_scope: Some("1".to_owned()),
            user_namespaces: Some(60_000),
        }
    }

    #[test]
    fn linux_5_15_leaves_abstract_sockets_within_reach() {
        let judged = guards(&of_5_15());
        let bad: Vec<_> = states(&judged)
            .into_iter()
            .filter(|(_, state)| *state != State::InForce)
            .collect();
        assert_eq!(bad, [("abstract Unix sockets of others", State::Weaker)]);
        let newer = Found {
            landlock: 6,
            ..of_5_15()
        };
        assert!(
            guards(&newer)
                .iter()
                .all(|guard| guard.state == State::InForce)
        );
    }

    #[test]
    fn what_is_not_there_is_named_with_a_remedy() {
        let judged = guards(&Found {
            lineage: Tried::Fails("no tracefs".to_owned()),
            landlock: 0,
            seccomp: None,
            ptrace_scope: Some("0".to_owned()),
            ..of_5_15()
        });
        let bad: Vec<_> = judged
            .iter()
            .filter(|guard| guard.state != State::InForce)
            .collect();
        assert_eq!(bad.len(), 4);
        assert!(bad.iter().all(|guard| !guard.remedy.is_empty()));
    }
}
