//! Which processes hold which sockets: all tables of descriptors, those of single threads too, and what
//! is registered with io_uring.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    fcntl::{OFlag, readlinkat},
    sys::stat::Mode,
};

use super::super::cgroup;

/// A socket as a process holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// The number of the socket, which it has wherever it is held.
    pub(super) inode: u64,
    /// The process.
    pub(super) pid: u32,
    /// The thread whose table it is in, where it isn't the process's.
    pub(super) thread: Option<u32>,
    /// The descriptor; `None` for one that only an io_uring has.
    pub(super) descriptor: Option<i32>,
}

/// The processes of `cgroup` and below.
pub(super) fn processes(cgroup: &Path) -> BTreeSet<u32> {
    cgroup::with_below(cgroup)
        .iter()
        .flat_map(|folder| cgroup::processes_in(folder))
        .collect()
}

/// The ids of `cgroup` and of those below.
pub(super) fn cgroup_ids(cgroup: &Path) -> BTreeSet<u64> {
    cgroup::with_below(cgroup)
        .iter()
        .filter_map(|folder| cgroup::id(folder).ok())
        .collect()
}

/// The sockets that process `pid` holds; none of one that is gone.
pub(super) fn sockets(pid: u32) -> Vec<Held> {
    let mut held = Vec::new();
    let process = PathBuf::from(format!("/proc/{pid}"));
    collect(&process, pid, None, &mut held);
    for thread in threads(&process) {
        if thread != pid && !shares_descriptors(pid, thread) {
            let folder = process.join("task").join(thread.to_string());
            collect(&folder, pid, Some(thread), &mut held);
        }
    }
    held
}

fn threads(process: &Path) -> Vec<u32> {
    fs::read_dir(process.join("task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether a thread has the same table of descriptors as its process; where the kernel can't tell, it
/// counts as having its own.
fn shares_descriptors(pid: u32, thread: u32) -> bool {
    /// KCMP_FILES of linux/kcmp.h.
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, thread, KCMP_FILES, 0, 0) == 0 }
}

/// Agents with thousands of descriptors are looked at twice a second: each is one call, by its number alone.
fn collect(folder: &Path, pid: u32, thread: Option<u32>, held: &mut Vec<Held>) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(mut descriptors) = Dir::open(&folder.join("fd"), flags, Mode::empty()) else {
        return;
    };
    let names: Vec<CString> = descriptors
        .iter()
        .flatten()
        .map(|entry| entry.file_name().to_owned())
        .collect();
    for name in names {
        // "." and ".." are no numbers.
        let number = name.to_str().ok().and_then(|name| name.parse::<i32>().ok());
        let Some(number) = number else { continue };
        let Ok(target) = readlinkat(&descriptors, name.as_c_str()) else {
            continue;
        };
        let Some(target) = target.to_str() else {
            continue;
        };
        if let Some(inode) = socket(target) {
            held.push(Held {
                inode,
                pid,
                thread,
                descriptor: Some(number),
            });
        } else if target == "anon_inode:[io_uring]" {
            let info = folder.join("fdinfo").join(number.to_string());
            let info = fs::read_to_string(info).unwrap_or_default();
            held.extend(registered(&info).map(|inode| Held {
                inode,
                pid,
                thread,
                descriptor: None,
            }));
        }
    }
}

/// The number of the socket that a descriptor's link leads to, if it does.
fn socket(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The sockets among the files that an io_uring's fdinfo lists as registered: `    0: socket:[1234]`.
fn registered(info: &str) -> impl Iterator<Item = u64> {
    info.lines()
        .filter_map(|line| socket(line.split_once(": ")?.1.trim()))
}

#[cfg(test)]
mod tests {
    use super::{registered, socket};

    #[test]
    fn links_and_registered_files_name_sockets() {
        assert_eq!(socket("socket:[4711]"), Some(4_711));
        assert_eq!(socket("pipe:[4711]"), None);
        assert_eq!(socket("/tmp/socket:[1]"), None);
        let info = "SqThread:\t-1\nUserFiles:\t3\n    0: socket:[12]\n    1: <none>\n    2: socket:[34]\nUserBufs:\t0\n";
        assert_eq!(registered(info).collect::<Vec<_>>(), [12, 34]);
    }
}
