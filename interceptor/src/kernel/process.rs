//! What is known of a process, from /proc.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use interceptor_core::origin::{ANCESTORS_MAX, Ancestor, Process, Surroundings};
use nix::{
    errno::Errno,
    unistd::{Uid, User},
};

use crate::rows::Rows;

/// Longest command line that is kept of a process that connects, in bytes: the kernel itself allows megabytes.
const ARGUMENTS_BYTES_MAX: usize = 8 << 10;

/// And of one that it descends from: there are many of those, and a shell's holds all of its script.
const ANCESTOR_ARGUMENTS_BYTES_MAX: usize = 1 << 10;

/// What stands in place of the rest of a command line.
const AND_MORE: &str = "…";

/// The command line of process `pid`, as far as it can be read, and no more than `bytes_max` of it.
fn arguments(pid: u32, bytes_max: usize) -> Vec<Box<str>> {
    let mut line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let more = line.len() > bytes_max;
    line.truncate(bytes_max);
    line.split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into())
        .chain(more.then(|| AND_MORE.into()))
        .collect()
}

/// What was last read of processes, for as long as somebody keeps it: a process has thousands of connections, and
/// thousands of operations may wait that processes of one parent have sent.
#[derive(Debug, Default)]
pub(super) struct Known {
    arguments: Rows<Box<str>>,
    ancestors: Rows<Ancestor>,
}

/// What is around `process` now; nothing where another one has its number by now. The cgroup `own` is no container's:
/// it is where agents are that were launched here.
pub(super) fn surroundings(process: &Process, own: &str, known: &Known) -> Surroundings {
    let pid = process.pid;
    if executable(pid) != process.executable {
        return Surroundings::default();
    }
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok();
    let user = User::from_uid(Uid::from_raw(process.uid)).ok().flatten();
    let own = Path::new("/").join(own);
    let cgroups = Path::new(&*process.cgroup).ancestors();
    let mut cgroups = cgroups.filter(|cgroup| *cgroup != own);
    let mut ancestors = Vec::new();
    let mut next = parent(pid);
    while let Some(pid) = next.filter(|pid| *pid != 0 && ancestors.len() < ANCESTORS_MAX) {
        ancestors.push(Ancestor {
            pid,
            executable: executable(pid),
            arguments: arguments(pid, ANCESTOR_ARGUMENTS_BYTES_MAX),
        });
        next = parent(pid);
    }
    Surroundings {
        user: user.map(|user| user.name.into()),
        folder: folder.map(|path| path.to_string_lossy().into()),
        container: cgroups.find_map(super::find::container).map(Into::into),
        ancestors: known.ancestors.shared(pid, ancestors.into()),
    }
}

/// Who started process `pid`, or looks after it since that one ended.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold anything: what follows the last one is numbers.
    let (_, numbers) = stat.rsplit_once(')')?;
    numbers.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What can be read of process `pid` now. A process that is gone leaves the fields empty.
pub(super) fn describe_process(pid: u32, cgroup2: &Path, known: &Known) -> Process {
    let cgroup = super::cgroup::of_process(pid, cgroup2);
    let cgroup = cgroup
        .as_deref()
        .and_then(|path| path.strip_prefix(cgroup2).ok());
    Process {
        pid,
        uid: 0,
        executable: executable(pid),
        arguments: known
            .arguments
            .shared(pid, arguments(pid, ARGUMENTS_BYTES_MAX).into()),
        cgroup: cgroup
            .map(|path| format!("/{}", path.display()).into())
            .unwrap_or_default(),
        network_namespace: None,
    }
}

/// The program that process `pid` runs.
pub(super) fn executable(pid: u32) -> Option<Box<str>> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.to_string_lossy().into())
}

/// When process `pid` was started, in the kernel's ticks since boot: with its number it is the one process.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    start_in(&stat)
}

/// Whether `pid` is a process, and not one of its further threads.
pub(super) fn is_process(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        group.and_then(|group| group.trim().parse().ok()) == Some(pid)
    })
}

/// Field 22 of proc_pid_stat(5). The second is the program's name, with whatever it likes in it.
fn start_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Kills process `pid`, if it is the one that was started then.
///
/// # Errors
/// Where it is gone.
pub(super) fn kill(pid: u32, when: u64) -> io::Result<()> {
    // SAFETY: the call takes two numbers and answers with a new descriptor.
    let process = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let process = i32::try_from(process).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this process; nobody else has it.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    // The descriptor stays the process's, so the number can't become another's between these two.
    if started(pid) != Some(when) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let no_details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and the kernel reads no details where there are none.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            no_details,
            0,
        )
    };
    Errno::result(sent)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_process_is_shown_with_its_folder_and_who_started_it() {
        let known = Known::default();
        let own = describe_process(std::process::id(), Path::new("/sys/fs/cgroup"), &known);
        let around = surroundings(&own, "interceptor", &known);
        let folder = std::env::current_dir().unwrap();
        assert_eq!(around.folder.as_deref(), folder.to_str());
        let parent = std::os::unix::process::parent_id();
        assert_eq!(
            around.ancestors.first().map(|first| first.pid),
            Some(parent)
        );
        assert!(around.ancestors.len() <= ANCESTORS_MAX);
        // A cgroup at the top may be an engine's, and isn't where it is ours.
        let container = |cgroup: &str| {
            let process = Process {
                cgroup: cgroup.into(),
                ..own.clone()
            };
            surroundings(&process, "interceptor", &known).container
        };
        assert_eq!(container("/interceptor/agents/a-1"), None);
        assert_eq!(container("/other/a").as_deref(), Some("other"));
        // Another process has its number by now.
        let gone = Process {
            executable: Some("/gone".into()),
            ..own
        };
        assert_eq!(
            surroundings(&gone, "interceptor", &known),
            Surroundings::default()
        );
    }

    #[test]
    fn long_command_lines_are_cut_and_those_of_the_same_parents_kept_once() {
        // Whoever is started stays in the cgroup that this process is in, which other tests remove.
        let _turn = crate::kernel::tests::turn();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", &"x".repeat(20_000)])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let line = |max| arguments(child.id(), max);
        // Until it is the shell, it is a fork of this.
        while line(1 << 20).first().is_none_or(|first| &**first != "sh") {
            std::thread::yield_now();
        }
        assert_eq!(line(1 << 20).last().map(|last| last.len()), Some(20_000));
        let cut = line(ARGUMENTS_BYTES_MAX);
        let of: usize = cut.iter().map(|argument| argument.len()).sum();
        assert!(of <= ARGUMENTS_BYTES_MAX + AND_MORE.len(), "{of}");
        assert_eq!(cut.last().map(AsRef::as_ref), Some(AND_MORE));
        let known = Known::default();
        let describe = || describe_process(child.id(), Path::new("/sys/fs/cgroup"), &known);
        let (one, other) = (describe(), describe());
        assert_eq!(one.arguments.to_vec(), cut);
        assert!(Arc::ptr_eq(&one.arguments, &other.arguments));
        let around = |process| surroundings(process, "interceptor", &known).ancestors;
        let (one, other) = (around(&one), around(&other));
        assert!(!one.is_empty() && Arc::ptr_eq(&one, &other));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_programs_name_does_not_shift_the_fields() {
        let rest = "S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4711 99";
        assert_eq!(start_in(&format!("7 (a) {rest}")), Some(4_711));
        assert_eq!(start_in(&format!("7 (a) S 1 (b)) {rest}")), Some(4_711));
        assert_eq!(start_in("7 (a) S 1"), None);
    }
}
