//! The kernel side: load, pin, attach, look up. aya lives here alone.
//!
//! Everything is pinned: when the daemon dies the hooks stay, find no living listener and refuse. A
//! new daemon adopts the pins. Pins and cgroups carry the instance's name, so that two daemons (a
//! demonstration beside the real one) don't meet.

mod arrivals;
mod btf;
mod cgroup;
mod counts;
mod find;
mod freezer;
mod hooks;
mod intact;
mod leaving;
mod lineage;
mod link;
mod netlink;
mod netns;
mod peers;
mod process;
mod program;
mod routes;
mod sockets;
mod tags;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;
mod trial;
mod unix;
mod watch;

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use aya::maps::{HashMap as BpfHashMap, LpmTrie, MapData, RingBuf, SkStorage};
use interceptor_abi as abi;
use interceptor_core::origin::{Agent, Process, Surroundings};
use nix::time::{ClockId, clock_gettime};

pub use self::{
    arrivals::Arrivals,
    cgroup::with_below,
    counts::Connects,
    leaving::Departure,
    netns::{Namespace, Sighting, cookie_here, namespaces_in, namespaces_of, raise_loopback},
    peers::Peer,
    routes::Unrouted,
    sockets::{Birth, Fate, Handling, Stray},
    tags::{Tag, TagKind},
    tokens::Asked,
    trial::{
        ForeignHook, Trial, agents_of, bpffs, cgroups, foreign_hooks, landlock_version,
        processes_of, try_births, try_destroy, try_hooks, try_lineage, try_netns_cookie,
        try_taking_hold,
    },
    unix::{SocketName, UnixAccess, UnixSockets, loose_names, unguarded, unnamed},
    watch::{Finding, Found, OnEscape, Response},
};
use crate::sync::lock;

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
    /// What is asked for isn't there.
    #[error("{0}")]
    Missing(String),
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

/// Something that a hook refused, or let by unseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the agent.
    pub agent: u64,
    /// What it was: `udp_refused`, `socket_refused`, `connect_direct`, …
    pub name: &'static str,
    /// Where to (of what came in, where from), where there was a peer.
    pub destination: Option<SocketAddr>,
    /// The process; 0 where it isn't known.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Type and protocol number of the socket.
    pub kind: (u16, u16),
    /// The UNIX socket that was asked for, where the kernel shows its name.
    pub socket: Option<String>,
}

impl Refusal {
    const UNARMED: &'static str = "connect_refused_unarmed";

    /// Whether it was refused because nobody listens in its network namespace.
    #[must_use]
    pub fn is_unarmed(&self) -> bool {
        self.name == Self::UNARMED
    }
}

/// The kernel's counters, see [`abi::counter`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// TCP connects that were redirected to the proxy.
    pub redirected: u64,
    /// Connects to a process of the same agent.
    pub direct: u64,
    /// DNS servers that agents began to ask.
    pub dns_servers: u64,
    /// Destinations that a rule lets datagrams go to.
    pub datagrams_allowed: u64,
    /// Connections that a rule lets in.
    pub inbound_allowed: u64,
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
    /// UDP that is neither DNS nor allowed by a rule.
    pub refused_udp: u64,
    /// Queries to more DNS servers than an agent may have.
    pub refused_servers: u64,
    /// Sockets that are neither TCP nor UDP.
    pub refused_socket: u64,
    /// Socket options that lead around the hooks.
    pub refused_option: u64,
    /// Packets that no connect or send had been decided for.
    pub refused_packet: u64,
    /// Connections and datagrams to an agent from outside of it.
    pub refused_inbound: u64,
    /// UNIX sockets that are neither the agent's own nor allowed.
    pub refused_unix: u64,
    /// UNIX sockets that are allowed by name.
    pub unix_allowed: u64,
    /// Abstract UNIX sockets of the same agent.
    pub unix_direct: u64,
    /// UNIX sockets that were just reported.
    pub unix_reported: u64,
    /// What could not be reported one by one.
    pub events_lost: u64,
    /// Redirected connections that the proxy had to refuse for want of a note.
    pub flows_lost: u64,
}

/// Where the daemon listens; 0 is nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    /// TCP, on 127.0.0.1 and ::1.
    pub proxy: [u16; 2],
    /// UDP of the DNS forwarder, on IPv4 and IPv6.
    pub dns: [u16; 2],
}

/// Who sends from a port: a process and its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// The kernel side of one instance.
pub struct Kernel {
    instance: String,
    cgroup2: PathBuf,
    pins: PathBuf,
    netns_cookie: u64,
    token_network: tokens::Network,
    notes: SkStorage<MapData, Plain<abi::Note>>,
    sources: Mutex<BpfHashMap<MapData, Plain<abi::Source>, Plain<abi::Note>>>,
    tokens: Mutex<tokens::Tokens>,
    peers: Mutex<peers::Peers>,
    listeners: Mutex<BpfHashMap<MapData, u64, Plain<abi::Listener>>>,
    flows: Mutex<BpfHashMap<MapData, Plain<abi::Flow>, Plain<abi::Note>>>,
    counts: Arc<counts::Counts>,
    events: Mutex<Option<RingBuf<MapData>>>,
    numbers: Arc<tags::Numbers>,
    tags: Mutex<tags::Tags>,
    watch: Mutex<watch::Watch>,
    processes: process::Known,
    /// Why the kernel doesn't tell where sockets were born, where it doesn't.
    births_unknown: Option<String>,
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
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Source> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Flow> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Server> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Token> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Peer> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::Ports> {}

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
        let mut object = hooks::load(&pins, hooks::Bearer::default())?;
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
        let mut listeners: BpfHashMap<_, u64, _> =
            BpfHashMap::try_from(map("LISTENERS")?).map_err(bad("LISTENERS"))?;
        netns::forget_others(&mut listeners, cookie_here()?);
        let flows = BpfHashMap::try_from(map("FLOWS")?).map_err(bad("FLOWS"))?;
        let counts = Arc::new(counts::Counts::new(map("STATS")?, map("HANDOVERS")?)?);
        let events = RingBuf::try_from(map("EVENTS")?).map_err(bad("EVENTS"))?;
        let sources = BpfHashMap::try_from(map("SOURCES")?).map_err(bad("SOURCES"))?;
        let tokens = tokens::Tokens {
            tokens: BpfHashMap::try_from(map("TOKENS")?).map_err(bad("TOKENS"))?,
            servers: BpfHashMap::try_from(map("SERVERS")?).map_err(bad("SERVERS"))?,
            counts: BpfHashMap::try_from(map("SERVER_COUNTS")?).map_err(bad("SERVER_COUNTS"))?,
        };
        let peers = LpmTrie::try_from(map("PEERS")?).map_err(bad("PEERS"))?;
        let names = BpfHashMap::try_from(map("UNIX_NAMES")?).map_err(bad("UNIX_NAMES"))?;
        let folders = LpmTrie::try_from(map("UNIX_FOLDERS")?).map_err(bad("UNIX_FOLDERS"))?;
        let names = unix::Names::new(names, folders);
        let tags = tags::Tags::adopt(instance, &pins, &counts, names)?;
        Ok(Self {
            instance: instance.to_owned(),
            cgroup2,
            pins,
            netns_cookie: cookie_here()?,
            token_network: tokens::Network::of_instance(instance),
            notes,
            sources: Mutex::new(sources),
            tokens: Mutex::new(tokens),
            peers: Mutex::new(peers::Peers::new(peers)),
            listeners: Mutex::new(listeners),
            flows: Mutex::new(flows),
            counts,
            events: Mutex::new(Some(events)),
            numbers: tags.numbers(),
            tags: Mutex::new(tags),
            watch: Mutex::new(watch::Watch::begin(instance)),
            processes: process::Known::default(),
            births_unknown: sockets::probe().err().map(|error| error.to_string()),
        })
    }

    /// The cookie of the daemon's own network namespace.
    #[must_use]
    pub const fn own_netns(&self) -> u64 {
        self.netns_cookie
    }

    /// Has IPv6 addresses of tokens lead to the loopback device of the calling thread's network namespace.
    ///
    /// # Errors
    /// Where it has no IPv6, or doesn't let us.
    pub fn route_tokens(&self) -> io::Result<()> {
        self.token_network.route()
    }

    /// Says that the daemon listens on these ports of a network namespace, for the next three seconds.
    ///
    /// # Errors
    /// Where the map can't be written.
    pub fn arm(
        &self,
        netns_cookie: u64,
        ports: Ports,
        unrouted: Unrouted,
    ) -> Result<(), KernelError> {
        let armed_until_ns = boot_time_ns()? + ARMED_NS;
        let [port_v4, port_v6] = ports.proxy;
        let [dns_v4, dns_v6] = ports.dns;
        let listener = abi::Listener {
            armed_until_ns,
            tokens_v6_be: self.token_network.0,
            port_v4,
            port_v6,
            dns_v4,
            dns_v6,
            unrouted: unrouted.0,
            reserved: 0,
        };
        lock(&self.listeners)
            .insert(netns_cookie, Plain(listener), 0)
            .map_err(|error| KernelError::Bpf {
                what: "arming the listener".to_owned(),
                error: error.to_string(),
            })
    }

    /// Which server of which agent a query is for that arrived at `token`.
    #[must_use]
    pub fn asked(&self, token: IpAddr) -> Option<Asked> {
        let number = tokens::number(self.token_network, token)?;
        lock(&self.tokens).find(number)
    }

    /// Who of agent number `agent` sends datagrams from `from` in a network namespace.
    #[must_use]
    pub fn sender(&self, netns_cookie: u64, agent: u64, from: SocketAddr) -> Option<Sender> {
        let source = tokens::source(netns_cookie, from);
        let Plain(note) = lock(&self.sources).get(&Plain(source), 0).ok()?;
        (note.agent == agent).then_some(Sender {
            pid: note.pid,
            uid: note.uid,
        })
    }

    /// Forgets DNS servers that nobody asks any more.
    pub fn sweep_tokens(&self) {
        let Ok(now) = boot_time_ns() else { return };
        lock(&self.tokens).sweep(now, |agent| self.numbers.find(agent).is_some());
    }

    /// Has agents exchange directly with these peers, and no others.
    ///
    /// # Errors
    /// Where they are too many. What could not be written is refused.
    pub fn set_peers(&self, peers: &[Peer]) -> Result<(), KernelError> {
        lock(&self.peers).set(peers)
    }

    /// Says that nobody listens any more in the calling thread's network namespace, whose cookie this is:
    /// connects of agents are refused there from now on.
    pub fn disarm(&self, netns_cookie: u64) {
        // An error means that it wasn't armed.
        let _ = lock(&self.listeners).remove(&netns_cookie);
        self.token_network.unroute();
    }

    /// The note that the kernel left at an accepted socket; `None` where there is none.
    ///
    /// # Errors
    /// Where the storage can't be read.
    pub fn note(&self, socket: BorrowedFd<'_>) -> Result<Option<Note>, KernelError> {
        match self.notes.get(&socket.as_raw_fd(), 0) {
            Ok(Plain(note)) => Ok(Some(Note {
                agent: note.agent,
                destination: socket_address(note.address_be, note.port_be),
                pid: note.pid,
                uid: note.uid,
            })),
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
        process::describe_process(pid, &self.cgroup2, &self.processes)
    }

    /// What is around `process` now, for people.
    #[must_use]
    pub fn surroundings(&self, process: &Process) -> Surroundings {
        process::surroundings(process, &self.instance, &self.processes)
    }

    /// Tags an existing cgroup: everything its processes connect to from now on is intercepted.
    ///
    /// # Errors
    /// Where it isn't a cgroup v2 folder, holds the daemon, or overlaps with another agent's.
    pub fn tag(
        &self,
        cgroup: &Path,
        agent: Agent,
        kind: TagKind,
        unix: UnixAccess,
    ) -> Result<Tag, KernelError> {
        let cgroup = self.taggable(cgroup)?;
        lock(&self.tags).add(cgroup, agent, kind, unix, boot_time_ns()?)
    }

    /// Makes a cgroup for an agent that is about to be launched, and tags it. Which UNIX sockets it reaches is
    /// for its launcher to say, who has better means: what they are mounted over with, and Landlock.
    ///
    /// # Errors
    /// Where the name is taken or the cgroup can't be made.
    pub fn tag_new(&self, agent: Agent) -> Result<Tag, KernelError> {
        let name = format!("{}-{:x}", tags::file_name(&agent.name), boot_time_ns()?);
        let cgroup = self.cgroup2.join(&self.instance).join("agents").join(name);
        fs::create_dir_all(&cgroup).map_err(io_error("creating the agent's cgroup", &cgroup))?;
        let tagged = self.tag(&cgroup, agent, TagKind::Launched, UnixAccess::FREE);
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

    /// Containers and units that are agents whenever they run, and don't just now.
    #[must_use]
    pub fn away(&self) -> Vec<Tag> {
        lock(&self.tags).away().cloned().collect()
    }

    /// Removes the tags of cgroups that are gone: containers and units are away from now on.
    pub fn set_aside(&self) {
        lock(&self.tags).set_aside();
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

    /// The kernel's counters, of all agents since the daemon began, and of those that there were already.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |index| self.counts.of_all(index);
        Counters {
            redirected: read(abi::counter::REDIRECTED),
            direct: read(abi::counter::DIRECT),
            dns_servers: read(abi::counter::SERVERS),
            datagrams_allowed: read(abi::counter::DATAGRAMS),
            inbound_allowed: read(abi::counter::INBOUND),
            refused_unarmed: read(abi::counter::REFUSED_UNARMED),
            refused_storage: read(abi::counter::REFUSED_STORAGE),
            refused_listener: read(abi::counter::REFUSED_LISTENER),
            refused_device: read(abi::counter::REFUSED_DEVICE),
            refused_absent: read(abi::counter::REFUSED_ABSENT),
            refused_udp: read(abi::counter::REFUSED_UDP),
            refused_servers: read(abi::counter::REFUSED_SERVERS),
            refused_socket: read(abi::counter::REFUSED_SOCKET),
            refused_option: read(abi::counter::REFUSED_OPTION),
            refused_packet: read(abi::counter::REFUSED_PACKET),
            refused_inbound: read(abi::counter::REFUSED_INBOUND),
            refused_unix: read(abi::counter::REFUSED_UNIX),
            unix_allowed: read(abi::counter::UNIX_ALLOWED),
            unix_direct: read(abi::counter::UNIX_DIRECT),
            unix_reported: read(abi::counter::UNIX_REPORTED),
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
        self.disarm(self.netns_cookie);
        for tag in self.tags() {
            self.untag(&tag.agent.name)?;
        }
        lock(&self.tags).remove_folder()?;
        let root = self.pins.parent().unwrap_or(&self.pins);
        fs::remove_dir_all(root).map_err(io_error("removing the pin folder", root))?;
        cgroup::leave_and_remove(&self.cgroup2, &self.instance)
    }

    /// The whole path of `cgroup`, if it can be an agent's.
    fn taggable(&self, cgroup: &Path) -> Result<PathBuf, KernelError> {
        let cgroup = self.resolve(cgroup)?;
        let own = self.cgroup2.join(&self.instance).join("daemon");
        if own.starts_with(&cgroup) {
            return Err(KernelError::Refused(format!(
                "{} holds interceptor itself, whose own connections would be redirected; tag a cgroup below it",
                cgroup.display()
            )));
        }
        Ok(cgroup)
    }

    /// The whole path of `cgroup`.
    ///
    /// # Errors
    /// Where it isn't a cgroup v2 folder.
    pub fn resolve(&self, cgroup: &Path) -> Result<PathBuf, KernelError> {
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
        // SAFETY: the kernel programs write nothing but whole `Refused` entries, by themselves or at the
        // beginning of an `AskedUnix`, and every bit pattern is one; the read is unaligned because the ring
        // aligns to 8 only by chance of its header.
        let refused = (item.len() >= size_of::<abi::Refused>())
            .then(|| unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<abi::Refused>()) })?;
        // SAFETY: as above, of what is as long as one.
        let asked = (item.len() >= size_of::<abi::AskedUnix>())
            .then(|| unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<abi::AskedUnix>()) });
        let name = match refused.reason {
            abi::counter::REFUSED_UDP => "udp_refused",
            abi::counter::REFUSED_UNARMED => Refusal::UNARMED,
            abi::counter::REFUSED_LISTENER => "connect_refused_listener",
            abi::counter::REFUSED_DEVICE => "connect_refused_device",
            abi::counter::REFUSED_ABSENT => "connect_refused_absent",
            abi::counter::REFUSED_STORAGE => "connect_refused_storage",
            abi::counter::REFUSED_SERVERS => "dns_servers_refused",
            abi::counter::REFUSED_OPTION => "option_refused",
            abi::counter::REFUSED_PACKET => "packet_refused",
            abi::counter::REFUSED_INBOUND => "inbound_refused",
            abi::counter::DIRECT => "connect_direct",
            abi::counter::DATAGRAMS => "datagrams_allowed",
            abi::counter::INBOUND => "inbound_allowed",
            abi::counter::SERVERS => "dns_server",
            abi::counter::REFUSED_UNIX => "unix_refused",
            abi::counter::UNIX_ALLOWED => "unix_allowed",
            abi::counter::UNIX_DIRECT => "unix_direct",
            abi::counter::UNIX_REPORTED => "unix_reported",
            _ => "socket_refused",
        };
        let destination = socket_address(refused.address_be, refused.port_be);
        Some(Refusal {
            agent: refused.agent,
            name,
            destination: (destination.port() != 0).then_some(destination),
            pid: refused.pid,
            uid: refused.uid,
            kind: ((refused.kind >> 16) as u16, (refused.kind & 0xFFFF) as u16),
            socket: asked.and_then(|asked| unix::seen(asked.bytes.get(..asked.length as usize)?)),
        })
    }
}

/// An address as the kernel programs write it.
fn socket_address(address_be: [u8; 16], port_be: u16) -> SocketAddr {
    let address = Ipv6Addr::from(address_be).to_canonical();
    SocketAddr::new(address, u16::from_be(port_be))
}

/// An address as the kernel programs write it.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
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
