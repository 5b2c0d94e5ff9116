//! cgroup v2 and bpffs: where they are mounted, who is where.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{KernelError, io_error};

/// Where cgroup v2 is mounted: the unified hierarchy, or its part of a hybrid one.
pub(super) fn mount_point() -> Result<PathBuf, KernelError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(io_error("reading the mounts", path))?;
    text.lines()
        .find_map(|line| mounted(line, "cgroup2"))
        .ok_or(KernelError::NoCgroup2)
}

/// Where a file system of type `kind` is mounted, if one is.
pub(super) fn mounted_at(kind: &str) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| mounted(line, kind))
}

/// The mount point in a line of mountinfo, where its file system is of type `kind`.
fn mounted(line: &str, kind: &str) -> Option<PathBuf> {
    // proc(5): id parent major:minor root mount-point options optional… - type source super-options
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next()? != kind {
        return None;
    }
    let escaped = before.split(' ').nth(4)?;
    Some(PathBuf::from(unescape(escaped)))
}

/// mountinfo writes space, tab, newline and backslash as \ooo.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Where bpffs is mounted; it is mounted at its usual place where it isn't.
pub(super) fn bpffs() -> Result<PathBuf, KernelError> {
    let mounts = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(mounts).map_err(io_error("reading the mounts", mounts))?;
    if let Some(path) = text.lines().find_map(|line| mounted(line, "bpf")) {
        return Ok(path);
    }
    let path = PathBuf::from("/sys/fs/bpf");
    let flags = nix::mount::MsFlags::MS_NOSUID
        | nix::mount::MsFlags::MS_NODEV
        | nix::mount::MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), &path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|error| io_error("mounting bpffs", &path)(error.into()))?;
    Ok(path)
}

/// Makes `cgroup` where it isn't and moves this process into it.
pub(super) fn enter(cgroup: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(cgroup).map_err(io_error("creating interceptor's cgroup", cgroup))?;
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").map_err(io_error("entering interceptor's cgroup", &procs))
}

/// The cgroup of a process, as a path in the file system.
pub(super) fn of_process(pid: u32, cgroup2: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(below(cgroup2, path))
}

/// The cgroup that the kernel calls `path`, as a path in the file system.
pub(super) fn below(cgroup2: &Path, path: &str) -> PathBuf {
    match path.trim_start_matches('/') {
        "" => cgroup2.to_owned(),
        path => cgroup2.join(path),
    }
}

/// The id of a cgroup: the number of its folder, which the kernel never uses again.
pub(super) fn id(cgroup: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(cgroup).map(|folder| folder.ino())
}

/// `cgroup` and all below it.
#[must_use]
pub fn with_below(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = found.get(looked_at) {
        let entries = fs::read_dir(folder);
        looked_at += 1;
        for entry in entries.into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// The processes in `cgroup` itself. A threaded one has no list of its own: that of the nearest above which
/// isn't has its processes too.
pub(super) fn processes_in(cgroup: &Path) -> impl Iterator<Item = u32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<u32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
    // 0 is a process that this one's pid namespace doesn't have.
    pids.into_iter().filter(|pid| *pid != 0)
}

/// Whether anything runs in `cgroup` or below.
pub(super) fn is_populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Kills what runs in `cgroup` and below, and removes it.
pub(super) fn kill_and_remove(cgroup: &Path) -> Result<(), KernelError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let kill = cgroup.join("cgroup.kill");
    // Linux 5.14; before that the processes are killed one by one.
    if fs::write(&kill, "1").is_err() {
        let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    let until = Instant::now() + PATIENCE;
    loop {
        remove_below(cgroup);
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > until => {
                return Err(io_error("removing the agent's cgroup", cgroup)(error));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Removes empty cgroups below `cgroup`, deepest first.
fn remove_below(cgroup: &Path) {
    let Ok(entries) = fs::read_dir(cgroup) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Moves this process to the root cgroup and removes the instance's own ones.
pub(super) fn leave_and_remove(cgroup2: &Path, instance: &str) -> Result<(), KernelError> {
    let procs = cgroup2.join("cgroup.procs");
    fs::write(&procs, "0").map_err(io_error("leaving interceptor's cgroup", &procs))?;
    let own = cgroup2.join(instance);
    remove_below(&own);
    fs::remove_dir(&own).map_err(io_error("removing interceptor's cgroup", &own))
}

#[cfg(test)]
mod tests {
    use super::mounted;

    #[test]
    fn mount_points_are_found_in_unified_and_hybrid_hierarchies() {
        let hybrid = "38 30 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 none rw";
        assert_eq!(
            mounted(hybrid, "cgroup2").unwrap().to_str(),
            Some("/sys/fs/cgroup/unified")
        );
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";
        assert_eq!(
            mounted(unified, "cgroup2").unwrap().to_str(),
            Some("/sys/fs/cgroup")
        );
        let spaced = "30 23 0:26 / /mnt/a\\040b rw - cgroup2 cgroup2 rw";
        assert_eq!(
            mounted(spaced, "cgroup2").unwrap().to_str(),
            Some("/mnt/a b")
        );
        assert_eq!(
            mounted("30 23 0:26 / /sys rw - cgroup none rw", "cgroup2"),
            None
        );
    }
}
