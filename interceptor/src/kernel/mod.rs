//! The kernel side: load, pin, attach, look up. aya lives here alone.
//!
//! Everything is pinned: when the daemon dies the hooks stay, find no living listener and refuse. A
//! new daemon adopts the pins. Pins and cgroups carry the instance's name, so that two daemons (a
//! demonstration beside the real one) don't meet.

mod cgroup;
mod hooks;
mod process;
mod routes;
mod tags;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf, SkStorage};
use interceptor_abi as abi;
use interceptor_core::origin::{Agent, Process};
use nix::time::{ClockId, clock_gettime};

pub use self::{
    process::describe_process,
    routes::Unrouted,
    tags::{Tag, TagKind},
};

/// How long a listener counts as alive after the daemon last said so.
const ARMED_NS: u64 = 3_000_000_000;

/// What went wrong on the kernel side, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not do this.
    #[error("{what} needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): run interceptor as root")]
    Privilege {
        /// What was attempted.
        what: String,
    },
    /// There is no cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted (looked in /proc/self/mountinfo); mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoCgroup2,
    /// Pins of another version are there.
    #[error("{} holds the hooks of another version of interceptor; stop that version with its hooks removed, or untag every agent and delete the folder", .0.display())]
    OtherVersion(PathBuf),
    /// The operating system refused a file operation.
    #[error("{what} ({}): {error}", .path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        error: io::Error,
    },
    /// The kernel refused a program, map or link.
    #[error("the kernel refused {what}: {error}")]
    Bpf {
        /// What was attempted.
        what: String,
        /// Its answer.
        error: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Refused(String),
}

/// A connection's note: who connected where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// Number of the agent.
    pub agent: u64,
    /// The true destination; v4-mapped addresses are given as IPv4.
    pub destination: SocketAddr,
    /// The process that called connect.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// Something that a hook refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the agent.
    pub agent: u64,
    /// What was refused: `udp_refused`, `socket_refused`, …
    pub name: &'static str,
    /// Where to, where there was a destination.
    pub destination: Option<SocketAddr>,
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Type and protocol number of the socket.
    pub kind: (u16, u16),
}

/// The kernel's counters, see [`abi::counter`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// TCP connects that were redirected to the proxy.
    pub redirected: u64,
    /// Connects refused because no living daemon listened.
    pub refused_unarmed: u64,
    /// Connects refused because nothing could be noted.
    pub refused_storage: u64,
    /// Connects to the proxy's own listener and binds to its port.
    pub refused_listener: u64,
    /// Connects that are tied to a network device.
    pub refused_device: u64,
    /// Connects over IPv6 to where nothing can answer.
    pub refused_absent: u64,
    /// UDP that is not DNS.
    pub refused_udp: u64,
    /// Sockets that are neither TCP nor UDP.
    pub refused_socket: u64,
    /// Refusals that could not be reported one by one.
    pub events_lost: u64,
    /// Redirected connections that the proxy had to refuse for want of a note.
    pub flows_lost: u64,
}

/// The kernel side of one instance.
pub struct Kernel {
    instance: String,
    cgroup2: PathBuf,
    pins: PathBuf,
    netns_cookie: u64,
    notes: SkStorage<MapData, Plain<abi::Note>>,
    listeners: Mutex<BpfHashMap<MapData, u64, Plain<abi::Listener>>>,
    stats: PerCpuArray<MapData, u64>,
    events: Mutex<Option<RingBuf<MapData>>>,
    numbers: Arc<tags::Numbers>,
    tags: Mutex<tags::Tags>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

/// Lets aya copy an ABI type to and from the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: the ABI types are repr(C), hold integers only and have no padding (their sizes are asserted),
// so every bit pattern is a value.
unsafe impl aya::Pod for Plain<abi::Note> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Listener> {}

/// A lock that a panic elsewhere doesn't take away: the state behind these is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KernelError + 'a {
    move |error| KernelError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}

impl Kernel {
    /// Opens the kernel side of `instance`: mounts bpffs where it isn't, moves this process into the
    /// instance's own cgroup (so its sockets are never an agent's), loads or adopts maps and hooks.
    ///
    /// # Errors
    /// Without privileges, cgroup v2 or eBPF, or where pins of another version are in the way.
    pub fn open(instance: &str) -> Result<Self, KernelError> {
        if !instance
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            || instance.is_empty()
        {
            return Err(KernelError::Refused(format!(
                "`{instance}` is no name for an instance: letters, digits, - and _ are"
            )));
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::Privilege {
                what: "loading the redirect hooks".to_owned(),
            });
        }
        let cgroup2 = cgroup::mount_point()?;
        let bpffs = cgroup::bpffs()?;
        let root = bpffs.join(instance);
        let is_new = !root.exists();
        let opened = Self::open_at(instance, cgroup2.clone(), &root);
        if opened.is_err() && is_new {
            // Nothing was there before, so nothing is adopted later: leave nothing. The first error is
            // the one that tells something.
            let _ = fs::remove_dir_all(&root);
            let _ = cgroup::leave_and_remove(&cgroup2, instance);
        }
        opened
    }

    fn open_at(instance: &str, cgroup2: PathBuf, root: &Path) -> Result<Self, KernelError> {
        let pins = root.join(format!("abi-{}", abi::ABI_VERSION));
        if let Ok(entries) = fs::read_dir(root) {
            for entry in entries.flatten() {
                if entry.path() != pins {
                    return Err(KernelError::OtherVersion(entry.path()));
                }
            }
        }
        fs::create_dir_all(&pins).map_err(io_error("creating the pin folder", &pins))?;
        let own = cgroup2.join(instance).join("daemon");
        cgroup::enter(&own)?;
        let mut object = hooks::load(&pins, 0)?;
        hooks::attach_daemon(&mut object, &own, &pins)?;
        let mut map = |name: &'static str| {
            object.take_map(name).ok_or_else(|| KernelError::Bpf {
                what: format!("the map {name}"),
                error: "it is not in the object".to_owned(),
            })
        };
        let bad = |what: &str| {
            let what = format!("the map {what}");
            move |error: aya::maps::MapError| KernelError::Bpf {
                what,
                error: error.to_string(),
            }
        };
        let notes = SkStorage::try_from(map("NOTES")?).map_err(bad("NOTES"))?;
        let listeners = BpfHashMap::try_from(map("LISTENERS")?).map_err(bad("LISTENERS"))?;
        let stats = PerCpuArray::try_from(map("STATS")?).map_err(bad("STATS"))?;
        let events = RingBuf::try_from(map("EVENTS")?).map_err(bad("EVENTS"))?;
        let tags = tags::Tags::adopt(instance, &pins)?;
        Ok(Self {
            instance: instance.to_owned(),
            cgroup2,
            pins,
            netns_cookie: netns_cookie()?,
            notes,
            listeners: Mutex::new(listeners),
            stats,
            events: Mutex::new(Some(events)),
            numbers: tags.numbers(),
            tags: Mutex::new(tags),
        })
    }

    /// Says that the proxy listens on these ports of 127.0.0.1 and ::1, for the next three seconds.
    ///
    /// # Errors
    /// Where the map can't be written.
    pub fn arm(&self, port_v4: u16, port_v6: u16, unrouted: Unrouted) -> Result<(), KernelError> {
        let armed_until_ns = boot_time_ns()? + ARMED_NS;
        let listener = abi::Listener {
            armed_until_ns,
            port_v4,
            port_v6,
            unrouted: unrouted.0,
        };
        lock(&self.listeners)
            .insert(self.netns_cookie, Plain(listener), 0)
            .map_err(|error| KernelError::Bpf {
                what: "arming the listener".to_owned(),
                error: error.to_string(),
            })
    }

    /// Says that nobody listens any more: connects of agents are refused from now on.
    pub fn disarm(&self) {
        // An error means that it wasn't armed.
        let _ = lock(&self.listeners).remove(&self.netns_cookie);
    }

    /// The note that the kernel left at an accepted socket; `None` where there is none.
    ///
    /// # Errors
    /// Where the storage can't be read.
    pub fn note(&self, socket: BorrowedFd<'_>) -> Result<Option<Note>, KernelError> {
        match self.notes.get(&socket.as_raw_fd(), 0) {
            Ok(Plain(note)) => {
                let address = Ipv6Addr::from(note.address_be);
                let address = address
                    .to_ipv4_mapped()
                    .map_or(IpAddr::V6(address), IpAddr::V4);
                Ok(Some(Note {
                    agent: note.agent,
                    destination: SocketAddr::new(address, u16::from_be(note.port_be)),
                    pid: note.pid,
                    uid: note.uid,
                }))
            }
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(KernelError::Bpf {
                what: "reading a connection's note".to_owned(),
                error: error.to_string(),
            }),
        }
    }

    /// The agent of that number.
    #[must_use]
    pub fn agent(&self, number: u64) -> Option<Arc<Agent>> {
        self.numbers.find(number)
    }

    /// What is known of a process.
    #[must_use]
    pub fn describe_process(&self, pid: u32) -> Process {
        describe_process(pid, &self.cgroup2)
    }

    /// Tags an existing cgroup: everything its processes connect to from now on is intercepted.
    ///
    /// # Errors
    /// Where it isn't a cgroup v2 folder, holds the daemon, or overlaps with another agent's.
    pub fn tag(&self, cgroup: &Path, agent: Agent, kind: TagKind) -> Result<Tag, KernelError> {
        let cgroup = self.resolve(cgroup)?;
        let own = self.cgroup2.join(&self.instance).join("daemon");
        if own.starts_with(&cgroup) {
            return Err(KernelError::Refused(format!(
                "{} holds interceptor itself, whose own connections would be redirected; tag a cgroup below it",
                cgroup.display()
            )));
        }
        lock(&self.tags).add(cgroup, agent, kind, boot_time_ns()?)
    }

    /// Makes a cgroup for an agent that is about to be launched, and tags it.
    ///
    /// # Errors
    /// Where the name is taken or the cgroup can't be made.
    pub fn tag_new(&self, agent: Agent) -> Result<Tag, KernelError> {
        let name = format!("{}-{:x}", tags::file_name(&agent.name), boot_time_ns()?);
        let cgroup = self.cgroup2.join(&self.instance).join("agents").join(name);
        fs::create_dir_all(&cgroup).map_err(io_error("creating the agent's cgroup", &cgroup))?;
        let tagged = self.tag(&cgroup, agent, TagKind::Launched);
        if tagged.is_err() {
            let _ = fs::remove_dir(&cgroup);
        }
        tagged
    }

    /// Takes the hooks off an agent's cgroup. A cgroup that was made for it is emptied (what still
    /// runs in it is killed) and removed.
    ///
    /// # Errors
    /// Where there is no such agent, or the kernel refuses.
    pub fn untag(&self, name: &str) -> Result<Tag, KernelError> {
        lock(&self.tags).remove(name)
    }

    /// Launched agents of which nothing runs any more, by number and name. One that is just being
    /// launched looks the same for a moment.
    #[must_use]
    pub fn ended(&self) -> Vec<(u64, String)> {
        lock(&self.tags)
            .ended()
            .map(|tag| (tag.number, tag.agent.name.to_string()))
            .collect()
    }

    /// All agents, by name.
    #[must_use]
    pub fn tags(&self) -> Vec<Tag> {
        lock(&self.tags).list()
    }

    /// The agent that a process belongs to, if any.
    #[must_use]
    pub fn agent_of(&self, pid: u32) -> Option<Tag> {
        let path = cgroup::of_process(pid, &self.cgroup2)?;
        lock(&self.tags)
            .list()
            .into_iter()
            .find(|tag| path.starts_with(&tag.cgroup))
    }

    /// The cgroup of a process, as a path in the file system.
    #[must_use]
    pub fn cgroup_of(&self, pid: u32) -> Option<PathBuf> {
        cgroup::of_process(pid, &self.cgroup2)
    }

    /// What the hooks have refused since the last call; each call of the taker's needs `events` first.
    #[must_use]
    pub fn take_events(&self) -> Option<Events> {
        lock(&self.events).take().map(Events)
    }

    /// The kernel's counters, summed over all CPUs.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |index| {
            self.stats
                .get(&index, 0)
                .map_or(0, |values| values.iter().sum())
        };
        Counters {
            redirected: read(abi::counter::REDIRECTED),
            refused_unarmed: read(abi::counter::REFUSED_UNARMED),
            refused_storage: read(abi::counter::REFUSED_STORAGE),
            refused_listener: read(abi::counter::REFUSED_LISTENER),
            refused_device: read(abi::counter::REFUSED_DEVICE),
            refused_absent: read(abi::counter::REFUSED_ABSENT),
            refused_udp: read(abi::counter::REFUSED_UDP),
            refused_socket: read(abi::counter::REFUSED_SOCKET),
            events_lost: read(abi::counter::EVENTS_LOST),
            flows_lost: read(abi::counter::FLOWS_LOST),
        }
    }

    /// Takes everything away: hooks, pins, notes of agents and the cgroups that were made. What runs in
    /// launched agents' cgroups is killed; a tagged cgroup stays, without hooks.
    ///
    /// # Errors
    /// Where something can't be removed.
    pub fn remove_all(&self) -> Result<(), KernelError> {
        self.disarm();
        for tag in self.tags() {
            self.untag(&tag.agent.name)?;
        }
        lock(&self.tags).remove_folder()?;
        let root = self.pins.parent().unwrap_or(&self.pins);
        fs::remove_dir_all(root).map_err(io_error("removing the pin folder", root))?;
        cgroup::leave_and_remove(&self.cgroup2, &self.instance)
    }

    fn resolve(&self, cgroup: &Path) -> Result<PathBuf, KernelError> {
        let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
        let path = if cgroup.starts_with(&self.cgroup2) {
            cgroup.to_owned()
        } else {
            self.cgroup2.join(below)
        };
        let path = path
            .canonicalize()
            .map_err(io_error("finding the cgroup", &path))?;
        if !path.starts_with(&self.cgroup2) || !path.join("cgroup.procs").is_file() {
            return Err(KernelError::Refused(format!(
                "{} is not a cgroup v2 below {}",
                cgroup.display(),
                self.cgroup2.display()
            )));
        }
        Ok(path)
    }
}

/// The stream of refusals.
pub struct Events(RingBuf<MapData>);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl Events {
    /// The stream, watched by the runtime that this is called in.
    ///
    /// # Errors
    /// Where the runtime can't watch it.
    pub fn watched(self) -> io::Result<tokio::io::unix::AsyncFd<Self>> {
        // SAFETY: the descriptor belongs to the ring that `self` owns: it stays open, and the same,
        // for as long as the AsyncFd that takes `self`.
        unsafe { tokio::io::unix::AsyncFd::register(self) }.map_err(Into::into)
    }

    /// The next refusal, if there is one now.
    pub fn next_refusal(&mut self) -> Option<Refusal> {
        let item = self.0.next()?;
        // SAFETY: the kernel programs write nothing but whole `Refused` entries, and every bit pattern
        // is one; the read is unaligned because the ring aligns to 8 only by chance of its header.
        let refused = (item.len() >= size_of::<abi::Refused>())
            .then(|| unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<abi::Refused>()) })?;
        let address = Ipv6Addr::from(refused.address_be);
        let address = address
            .to_ipv4_mapped()
            .map_or(IpAddr::V6(address), IpAddr::V4);
        let port = u16::from_be(refused.port_be);
        let name = match refused.reason {
            abi::counter::REFUSED_UDP => "udp_refused",
            abi::counter::REFUSED_UNARMED => "connect_refused_unarmed",
            abi::counter::REFUSED_LISTENER => "connect_refused_listener",
            abi::counter::REFUSED_DEVICE => "connect_refused_device",
            abi::counter::REFUSED_ABSENT => "connect_refused_absent",
            abi::counter::REFUSED_STORAGE => "connect_refused_storage",
            _ => "socket_refused",
        };
        Some(Refusal {
            agent: refused.agent,
            name,
            destination: (port != 0).then(|| SocketAddr::new(address, port)),
            pid: refused.pid,
            uid: refused.uid,
            kind: ((refused.kind >> 16) as u16, (refused.kind & 0xFFFF) as u16),
        })
    }
}

fn boot_time_ns() -> Result<u64, KernelError> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|error| KernelError::Bpf {
        what: "reading the boot clock".to_owned(),
        error: error.to_string(),
    })?;
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Ok(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0))
}

/// The cookie of this process' network namespace, as the hooks see it.
fn netns_cookie() -> Result<u64, KernelError> {
    /// SO_NETNS_COOKIE, since Linux 5.14.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let failed = |error: io::Error| KernelError::Bpf {
        what: "telling this network namespace (SO_NETNS_COOKIE, Linux 5.14)".to_owned(),
        error: error.to_string(),
    };
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(failed)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to locals of the sizes given, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(failed(io::Error::last_os_error()))
    }
}
