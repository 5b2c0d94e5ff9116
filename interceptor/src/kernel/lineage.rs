//! Whose children are whose, and who moves where, as the kernel's trace events tell it.
//!
//! Looking at cgroups twice a second misses who is started, leaves and loses its parent in between. The
//! events of two trace instances of our own don't: one follows the forks of agents alone (the kernel itself
//! keeps the list of whom to follow), the other sees every move between cgroups, which are few. A kernel
//! without tracefs, or one that is locked down, leaves it at the looks.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::mount::MsFlags;

/// Where tracefs is mounted.
const TRACEFS: &str = "/sys/kernel/tracing";

/// Kibibytes of events that the kernel keeps for each CPU between two looks: some 3,000 forks, 700 moves.
const FORKS_KIB: &str = "256";
const MOVES_KIB: &str = "64";

/// Bytes of events that are read in one look; what is more waits for the next.
const LOOK_BYTES_MAX: usize = 8 << 20;

/// The kernel's events about agents' processes.
#[derive(Debug)]
pub(super) struct Lineage {
    forks: Events,
    moves: Events,
    /// The threads that are followed, each with its agent's number.
    agents: HashMap<u32, u64>,
}

/// What happened since the last look.
#[derive(Debug, Default)]
pub(super) struct Happened {
    /// New processes and threads, each with its agent's number.
    pub(super) born: Vec<(u32, u64)>,
    /// Moves of agents' processes.
    pub(super) moved: Vec<Move>,
    /// How many events were lost.
    pub(super) lost: u64,
}

/// A move of an agent's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    /// The process.
    pub(super) pid: u32,
    /// Its agent's number.
    pub(super) agent: u64,
    /// Where to, by id.
    pub(super) cgroup_id: u64,
    /// Where to, below the root of cgroups.
    pub(super) cgroup: String,
}

/// Mounts tracefs at its usual place, where it isn't: systemd does, other systems and containers may not.
///
/// # Errors
/// Where there is no such place, or this isn't root on its own host.
pub(super) fn mount_tracefs() -> io::Result<()> {
    if Path::new(TRACEFS).join("instances").exists() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none: Option<&str> = None;
    nix::mount::mount(Some("tracefs"), TRACEFS, Some("tracefs"), flags, none)?;
    tracing::info!("tracefs is mounted at {TRACEFS} now");
    Ok(())
}

impl Lineage {
    /// Begins to listen; what an earlier daemon of the same name left is begun anew.
    ///
    /// # Errors
    /// Where the kernel has no such events, or doesn't let them be had.
    pub(super) fn open(instance: &str) -> io::Result<Self> {
        let forks = Events::open(&format!("{instance}-forks"), FORKS_KIB)?;
        // Nobody is followed yet; without this everybody would be.
        forks.write("set_event_pid", &std::process::id().to_string())?;
        forks.write("options/event-fork", "1")?;
        forks.write("events/sched/sched_process_fork/enable", "1")?;
        let moves = Events::open(&format!("{instance}-moves"), MOVES_KIB)?;
        moves.write("events/cgroup/cgroup_attach_task/enable", "1")?;
        Ok(Self {
            forks,
            moves,
            agents: HashMap::new(),
        })
    }

    /// Follows the threads of process `pid`, if it isn't followed already.
    pub(super) fn follow(&mut self, pid: u32, agent: u64) {
        if self.agents.insert(pid, agent) == Some(agent) {
            return;
        }
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        let mut list = String::new();
        for entry in threads.into_iter().flatten().flatten() {
            if let Some(thread) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                self.agents.insert(thread, agent);
                list.push_str(&format!("{thread} "));
            }
        }
        // An error means that it has ended.
        let _ = self.forks.write("set_event_pid", &list);
    }

    /// Follows a process no longer.
    pub(super) fn forget(&mut self, pid: u32) {
        self.agents.remove(&pid);
    }

    /// What has happened since the last time.
    pub(super) fn happened(&mut self) -> Happened {
        let mut happened = Happened::default();
        // Who has ended is forgotten, after what it did has been read.
        let ended: Vec<u32> = self
            .agents
            .keys()
            .copied()
            .filter(|pid| is_gone(*pid))
            .collect();
        for line in self.forks.lines(&mut happened.lost) {
            let Some((parents, child)) = fork(&line) else {
                continue;
            };
            let agent = parents.iter().find_map(|parent| self.agents.get(parent));
            if let Some(agent) = agent.copied() {
                self.agents.insert(child, agent);
                happened.born.push((child, agent));
            }
        }
        for line in self.moves.lines(&mut happened.lost) {
            let Some((pids, cgroup_id, cgroup)) = moved(&line) else {
                continue;
            };
            let known = |pid: &u32| Some((*pid, *self.agents.get(pid)?));
            happened
                .moved
                .extend(pids.iter().filter_map(known).map(|(pid, agent)| Move {
                    pid,
                    agent,
                    cgroup_id,
                    cgroup: cgroup.clone(),
                }));
        }
        for pid in ended {
            self.agents.remove(&pid);
        }
        happened
    }
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

/// An instance of tracefs: events and buffers of its own.
#[derive(Debug)]
struct Events {
    folder: PathBuf,
    pipe: File,
    rest: Vec<u8>,
}

impl Events {
    fn open(name: &str, kibibytes: &str) -> io::Result<Self> {
        let folder = Path::new(TRACEFS).join("instances").join(name);
        let _ = fs::remove_dir(&folder);
        fs::create_dir(&folder)?;
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(folder.join("trace_pipe"));
        let events = match pipe {
            Ok(pipe) => Self {
                folder,
                pipe,
                rest: Vec::new(),
            },
            Err(error) => {
                let _ = fs::remove_dir(&folder);
                return Err(error);
            }
        };
        events.write("buffer_size_kb", kibibytes)?;
        Ok(events)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let path = self.folder.join(file);
        // Appending: `set_event_pid` forgets the others when it is truncated.
        OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(text.as_bytes())
    }

    /// The whole lines that are there.
    fn lines(&mut self, lost: &mut u64) -> Vec<String> {
        let mut block = vec![0; 64 << 10];
        while self.rest.len() < LOOK_BYTES_MAX {
            match self.pipe.read(&mut block) {
                Ok(count @ 1..) => self.rest.extend(block.iter().take(count)),
                // Nothing more for now.
                _ => break,
            }
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let rest = whole.map(|end| self.rest.split_off(end + 1));
        let Some(rest) = rest else { return Vec::new() };
        let text = std::mem::replace(&mut self.rest, rest);
        let text = String::from_utf8_lossy(&text);
        *lost += text.lines().filter_map(lost_in).sum::<u64>();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // An instance with an open pipe can't be removed.
        if let Ok(nothing) = File::open("/dev/null") {
            self.pipe = nothing;
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// `CPU:1 [LOST 123 EVENTS]`.
fn lost_in(line: &str) -> Option<u64> {
    let (_, after) = line.strip_prefix("CPU:")?.split_once(" [LOST ")?;
    after.strip_suffix(" EVENTS]")?.parse().ok()
}

/// The numbers that could be the parent's, and the child's.
///
/// Programs choose their names, which stand in between unescaped. They are too short to hold the name of an
/// event, but not to hold ` pid=1 `: every number that could be meant is looked at.
fn fork(line: &str) -> Option<(Vec<u32>, u32)> {
    let (_, fields) = line.split_once(" sched_process_fork: comm=")?;
    let (before, child) = fields.rsplit_once(" child_pid=")?;
    Some((numbers(before, " pid="), child.trim().parse().ok()?))
}

/// The numbers that could be the process's, and the id and path of the cgroup that it was moved to.
fn moved(line: &str) -> Option<(Vec<u32>, u64, String)> {
    // 0 is the hierarchy of version 2.
    let (_, fields) = line.split_once(" cgroup_attach_task: dst_root=0 dst_id=")?;
    let (id, fields) = fields.split_once(' ')?;
    let (_, fields) = fields
        .split_once(" dst_path=")
        .or_else(|| fields.split_once("dst_path="))?;
    let (path, _) = fields.split_once(" pid=")?;
    Some((numbers(fields, " pid="), id.parse().ok()?, path.to_owned()))
}

fn numbers(text: &str, behind: &str) -> Vec<u32> {
    text.split(behind)
        .skip(1)
        .filter_map(|after| {
            let end = after.find(|c: char| !c.is_ascii_digit());
            after.get(..end.unwrap_or(after.len()))?.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{fork, lost_in, moved};

    #[test]
    fn events_are_read_whatever_programs_call_themselves() {
        let line = "  sh-24961   [000] dN.1. 59187.05: cgroup_attach_task: dst_root=0 dst_id=44 dst_level=1 dst_path=/a b pid=7 comm=x pid=9 c";
        assert_eq!(moved(line), Some((vec![7, 9], 44, "/a b".to_owned())));
        let other = line.replace("dst_root=0", "dst_root=3");
        assert_eq!(moved(&other), None, "another hierarchy");
        let line = "  a b-1 [001] ..... 1.0: sched_process_fork: comm=a pid=3 comm= pid=12 child_comm= child_pid=5 child_pid=13";
        assert_eq!(fork(line), Some((vec![3, 12], 13)));
        assert_eq!(lost_in("CPU:3 [LOST 4711 EVENTS]"), Some(4_711));
        assert_eq!(lost_in("  x-1 [000] CPU:3 [LOST 4711 EVENTS]"), None);
        for line in [
            "",
            "cgroup_attach_task: ",
            " sched_process_fork: comm= child_pid=x",
        ] {
            assert_eq!((fork(line), moved(line)), (None, None));
        }
    }
}
