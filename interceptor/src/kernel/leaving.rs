//! Who leaves an agent's cgroup.
//!
//! Those that were in it are compared with those that are, and children are looked at where their parent
//! is. What leaves and loses its parent between two looks is known by its [`Lineage`], where the kernel
//! tells of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    cgroup,
    lineage::{Happened, Lineage},
    process,
};

/// A process that is out of its agent's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// The process.
    pub pid: u32,
    /// When it was started, see proc_pid_stat(5); `None` where it has ended since.
    pub started: Option<u64>,
    /// Its program.
    pub executable: Option<Box<str>>,
    /// The cgroup that it, or where it was never seen there its parent, was in.
    pub from: PathBuf,
    /// The cgroup that it is, or was, in.
    pub to: PathBuf,
    /// The parent that is in the agent's cgroup, of a process that never was seen there.
    pub parent: Option<u32>,
}

/// Who is in an agent's cgroup.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_pid: HashMap<u32, Member>,
    /// Who left and has been told of, by number and start.
    told: HashSet<(u32, Option<u64>)>,
}

#[derive(Debug)]
struct Member {
    started: u64,
    cgroup: PathBuf,
}

impl Members {
    /// Who has left `cgroup`, agent `number`'s, since the last look.
    pub(super) fn departed(
        &mut self,
        number: u64,
        cgroup: &Path,
        cgroup2: &Path,
        happened: &Happened,
        mut lineage: Option<&mut Lineage>,
    ) -> Vec<Departure> {
        let present = present(cgroup);
        let mut departed = Vec::new();
        self.by_pid.retain(|pid, member| {
            if present.contains_key(pid) {
                return true;
            }
            if process::started(*pid) != Some(member.started) {
                return false;
            }
            let Some(to) = cgroup::of_process(*pid, cgroup2) else {
                return false;
            };
            if to.starts_with(cgroup) {
                // A zombie, or one that came back since it was looked for.
                return true;
            }
            departed.push(Departure {
                pid: *pid,
                started: Some(member.started),
                executable: process::executable(*pid),
                from: member.cgroup.clone(),
                to,
                parent: None,
            });
            false
        });
        for (pid, folder) in &present {
            match self.by_pid.get_mut(pid) {
                Some(member) if member.cgroup == *folder => {}
                _ => {
                    if let Some(started) = process::started(*pid) {
                        let cgroup = folder.clone();
                        self.by_pid.insert(*pid, Member { started, cgroup });
                        self.told.remove(&(*pid, Some(started)));
                    }
                }
            }
            if let Some(lineage) = &mut lineage {
                lineage.follow(*pid, number);
            }
            departed.extend(
                children(*pid)
                    .filter(|child| !present.contains_key(child))
                    .filter_map(|child| born_outside(child, *pid, cgroup, folder, cgroup2)),
            );
        }
        departed.extend(suspects(number, cgroup, cgroup2, happened));
        self.told
            .retain(|(pid, started)| started.is_some() && process::started(*pid) == *started);
        departed.retain(|departure| self.told.insert((departure.pid, departure.started)));
        for departure in &departed {
            // Its children are no news.
            if let Some(lineage) = &mut lineage {
                lineage.forget(departure.pid);
            }
        }
        departed
    }
}

/// Who has left by what the kernel tells, the dead included.
fn suspects(number: u64, cgroup: &Path, cgroup2: &Path, happened: &Happened) -> Vec<Departure> {
    let is_own = |pid: u32| {
        let path = cgroup::of_process(pid, cgroup2);
        path.map(|path| (path.starts_with(cgroup), path))
    };
    let departure = |pid: u32, to: PathBuf| Departure {
        pid,
        started: process::started(pid),
        executable: process::executable(pid),
        from: cgroup.to_owned(),
        to,
        parent: None,
    };
    let mut found = Vec::new();
    let born = happened.born.iter().filter(|(_, agent)| *agent == number);
    for (pid, _) in born {
        // Threads are where their process is.
        if let Some((false, to)) = is_own(*pid)
            && process::is_process(*pid)
        {
            found.push(departure(*pid, to));
        }
    }
    let ids: HashSet<u64> = cgroup::with_below(cgroup)
        .iter()
        .filter_map(|folder| cgroup::id(folder).ok())
        .collect();
    let moved = happened.moved.iter().filter(|moved| moved.agent == number);
    for moved in moved {
        let to = cgroup::below(cgroup2, &moved.cgroup);
        // A cgroup below may have been removed since.
        if ids.contains(&moved.cgroup_id) || to.starts_with(cgroup) {
            continue;
        }
        match is_own(moved.pid) {
            // It has come back by itself; where it was it could do as it liked.
            Some((true, _)) | None => found.push(departure(moved.pid, to)),
            Some((false, now)) => found.push(departure(moved.pid, now)),
        }
    }
    found
}

/// The processes of `cgroup` and below, each with the cgroup that it is in.
fn present(cgroup: &Path) -> BTreeMap<u32, PathBuf> {
    let mut all = BTreeMap::new();
    for folder in cgroup::with_below(cgroup) {
        all.extend(cgroup::processes_in(&folder).map(|pid| (pid, folder.clone())));
    }
    all
}

/// The children of all threads of process `pid`.
fn children(pid: u32) -> impl Iterator<Item = u32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|thread| {
            // Empty where the kernel was built without CONFIG_PROC_CHILDREN.
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace();
            children
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<u32>>()
        })
}

fn born_outside(
    child: u32,
    parent: u32,
    cgroup: &Path,
    from: &Path,
    cgroup2: &Path,
) -> Option<Departure> {
    let to = cgroup::of_process(child, cgroup2)?;
    (!to.starts_with(cgroup)).then_some(())?;
    Some(Departure {
        pid: child,
        started: Some(process::started(child)?),
        executable: process::executable(child),
        from: from.to_owned(),
        to,
        parent: Some(parent),
    })
}
