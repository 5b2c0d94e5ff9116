//! The kernel's own file systems: cgroups that could be left by, switches that have the host run programs,
//! other processes' memory and descriptors.

use std::{io, path::Path};

use nix::mount::{MsFlags, mount};

use super::{
    context,
    found::{self, Found},
    mountinfo::Mount,
    mounts::{self, Depth, NONE},
};

/// Types that are seen but not written to: the cgroup hierarchies of both versions (a process leaves by
/// writing to `cgroup.procs`), sysfs (uevent helpers, devices).
const READ_ONLY: [&str; 3] = ["cgroup", "cgroup2", "sysfs"];

/// Types that nothing but administration and debugging needs: pins of our own hooks, tracing of others,
/// kernel objects made by mkdir, other processes and devices under a second name.
const HIDDEN: [&str; 15] = [
    "binfmt_misc",
    "bpf",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "tracefs",
];

/// Made anew, or left on purpose with all that is below.
const OWN: [&str; 2] = ["/proc", "/dev"];

/// What of /proc is seen but not written to: `core_pattern`, `modprobe` and others have the kernel start
/// programs outside, and `sysrq-trigger` reboots.
const PROC_READ_ONLY: [&str; 6] = ["sys", "sysrq-trigger", "irq", "bus", "fs", "dynamic_debug"];

/// What of /proc tells of the host's memory, keys and devices.
const PROC_HIDDEN: [&str; 10] = [
    "acpi",
    "kcore",
    "keys",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
];

/// Guards what is mounted, wherever that is.
pub(super) fn guard(all: &[Mount], null: &Found) -> io::Result<()> {
    // What the host mounts there later, a cgroup hierarchy for instance, isn't seen at all.
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/sys", NONE, flags, NONE)
        .map_err(|error| context("/sys can't be set apart", &error.into()))?;
    // cgroup v1 has its hierarchies in a file system in memory.
    mounts::set(Path::new("/sys"), libc::MOUNT_ATTR_RDONLY, 0, Depth::Below)
        .map_err(|error| context("/sys can't be made read-only", &error))?;
    let elsewhere = |mount: &&Mount| !OWN.iter().any(|own| mount.point.starts_with(own));
    for mount in all.iter().filter(elsewhere) {
        let is_hidden = HIDDEN.contains(&&*mount.kind);
        if !is_hidden && !READ_ONLY.contains(&&*mount.kind) {
            continue;
        }
        // Covered already, with what it is mounted on.
        let Some(found) = found::if_there(Found::at(&mount.point))? else {
            continue;
        };
        if is_hidden {
            mounts::cover(&found, null)?;
        } else {
            mounts::set(&found.link(), libc::MOUNT_ATTR_RDONLY, 0, Depth::Here).map_err(
                |error| {
                    let what = format!("{} can't be made read-only", mount.point.display());
                    context(&what, &error)
                },
            )?;
        }
    }
    Ok(())
}

/// A /proc of this process namespace: processes outside have no entry, so no memory, descriptors, root or
/// namespaces that could be opened.
pub(super) fn replace_proc(null: &Found) -> io::Result<()> {
    let proc = Path::new("/proc");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), proc, Some("proc"), flags, NONE)
        .map_err(|error| context("a /proc of its own can't be mounted", &error.into()))?;
    for name in PROC_READ_ONLY {
        if let Some(found) = found::if_there(Found::at(&proc.join(name)))? {
            mounts::read_only(&found)?;
        }
    }
    for name in PROC_HIDDEN {
        if let Some(found) = found::if_there(Found::at(&proc.join(name)))? {
            mounts::cover(&found, null)?;
        }
    }
    Ok(())
}
