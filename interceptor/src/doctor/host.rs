//! The kernel and what is mounted.

use std::path::PathBuf;

use super::{Group, Guard, read};
use crate::kernel;

/// The oldest kernel that everything was made for.
const OLDEST: (u32, u32) = (5, 15);

#[derive(Debug, Clone)]
pub(super) struct Found {
    /// As `uname -r` has it.
    kernel: String,
    cgroup2: Option<PathBuf>,
    /// A hierarchy of version 1 is mounted as well.
    is_hybrid: bool,
    bpffs: Option<PathBuf>,
    /// `kernel.unprivileged_bpf_disabled`.
    unprivileged_bpf: Option<String>,
}

pub(super) fn find() -> Found {
    let (cgroup2, is_hybrid) = kernel::cgroups();
    Found {
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cgroup2,
        is_hybrid,
        bpffs: kernel::bpffs(),
        unprivileged_bpf: read("/proc/sys/kernel/unprivileged_bpf_disabled"),
    }
}

pub(super) fn guards(found: &Found) -> Vec<Guard> {
    let mut group = Group::new("host");
    let kernel = format!("Linux {}", found.kernel);
    match version(&found.kernel) {
        Some(version) if version >= OLDEST => group.in_force("kernel", kernel),
        _ => group.weaker(
            "kernel",
            kernel,
            "use Linux 5.15 or later: older ones were never tried",
        ),
    }
    match (&found.cgroup2, found.is_hybrid) {
        (Some(path), false) => {
            group.in_force("cgroup v2", format!("mounted at {}", path.display()));
        }
        (Some(path), true) => group.in_force(
            "cgroup v2",
            format!("mounted at {} beside version 1", path.display()),
        ),
        (None, _) => group.missing(
            "cgroup v2",
            "not mounted",
            "mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
    }
    match &found.bpffs {
        Some(path) => group.in_force(
            "pins",
            format!(
                "bpffs at {}: hooks outlive the daemon, and refuse",
                path.display()
            ),
        ),
        None => group.missing(
            "pins",
            "bpffs is not mounted",
            "`interceptor serve` mounts it; at boot: mount -t bpf bpf /sys/fs/bpf",
        ),
    }
    match found.unprivileged_bpf.as_deref() {
        Some("0") => group.weaker(
            "bpf()",
            "kernel.unprivileged_bpf_disabled = 0: agents may load programs and maps of their own",
            "sysctl kernel.unprivileged_bpf_disabled=2",
        ),
        Some(value) => group.in_force(
            "bpf()",
            format!("kernel.unprivileged_bpf_disabled = {value}"),
        ),
        None => group.in_force("bpf()", "the kernel has it for the privileged alone"),
    }
    group.guards
}

/// Major and minor of `6.1.0-13-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{State, states},
        *,
    };

    #[test]
    fn hosts_are_judged_by_what_they_have() {
        let good = Found {
            kernel: "5.15.0-105-generic".to_owned(),
            cgroup2: Some("/sys/fs/cgroup".into()),
            is_hybrid: false,
            bpffs: Some("/sys/fs/bpf".into()),
            unprivileged_bpf: Some("2".to_owned()),
        };
        assert!(
            guards(&good)
                .iter()
                .all(|guard| guard.state == State::InForce && guard.remedy.is_empty())
        );
        let bad = Found {
            kernel: "5.4.0".to_owned(),
            cgroup2: None,
            bpffs: None,
            unprivileged_bpf: Some("0".to_owned()),
            ..good
        };
        let judged = guards(&bad);
        assert_eq!(
            states(&judged),
            [
                ("kernel", State::Weaker),
                ("cgroup v2", State::Missing),
                ("pins", State::Missing),
                ("bpf()", State::Weaker)
            ]
        );
        assert!(judged.iter().all(|guard| !guard.remedy.is_empty()));
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        let table = [
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.15.0", Some((5, 15))),
            ("6.1-rc3", Some((6, 1))),
            ("unknown", None),
            ("", None),
        ];
        for (release, expected) in table {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
