//! Sockets that no hook sees: those from before the tag, and those that others handed over.
//!
//! A socket belongs to the cgroup of its birth for ever, whoever holds it, and a connection that stands
//! asks no hook any more. So what an agent holds is looked for: all of it when it is tagged, and what is
//! new to it ever after.
//!
//! Not found are descriptors that are on their way through a UNIX socket (until they arrive), and what
//! a process outside does for the agent. Of UNIX sockets what is connected stays so, and is told of where somebody
//! else is at its other end: that is where a service's own output goes. What was born elsewhere and could still be
//! connected, or send to whom it likes, is cut.

mod diag;
mod holders;
mod sever;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    net::SocketAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use self::{
    diag::{Diag, Listed},
    holders::Held,
    sever::{Sort, Taken},
};
use super::{process, unix};

/// A socket that no hook sees, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Where it comes from.
    pub birth: Birth,
    /// What became of it.
    pub fate: Fate,
    /// Its protocol.
    pub protocol: &'static str,
    /// Where it is.
    pub local: Option<SocketAddr>,
    /// Whom it is, or was, connected to.
    pub peer: Option<SocketAddr>,
    /// The name of the UNIX socket that it is connected to, where that has one.
    pub name: Option<String>,
    /// A process that holds it; `None` where it is held elsewhere, or not at all any more.
    pub pid: Option<u32>,
    /// That process's program.
    pub executable: Option<Box<str>>,
}

/// Where a socket that no hook sees comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Birth {
    /// It was there before the tag.
    Old,
    /// It was born in another cgroup, and came to the agent later.
    Foreign,
    /// It is of a kind that no hook sees.
    Unseen,
}

/// What became of a socket that no hook sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is of no use any more.
    Cut,
    /// It may be used until it is closed.
    Allowed,
    /// It stays connected to a UNIX socket of somebody else.
    Kept,
    /// It can't be cut; why, and whether its holders were killed for it.
    Uncut {
        /// Why.
        why: String,
        /// Whether its holders were killed.
        killed: bool,
    },
}

/// What to do with sockets that no hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handling {
    /// Whether those from before the tag may be used until they are closed.
    pub allows_old: bool,
    /// Whether who holds one that can't be cut is killed.
    pub kills: bool,
    /// Whether hooks refuse UNIX sockets.
    pub refuses_unix: bool,
}

/// What is known of the sockets of one agent.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of no concern: hooks see them, they stay on this host, or they have been cut.
    settled: HashSet<u64>,
    /// From before the tag, and allowed.
    allowed: HashSet<u64>,
    /// Told of already, and can't be cut.
    uncut: HashSet<u64>,
    /// The cgroups that have been the agent's. Sockets outlive the cgroup they were born in.
    cgroups: BTreeSet<u64>,
}

impl Known {
    /// What is known of an agent whose sockets from before the tag, `allowed`, may be used.
    pub(super) fn allowing(allowed: impl IntoIterator<Item = u64>) -> Self {
        Self {
            allowed: allowed.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The sockets from before the tag that are still open.
    pub(super) fn allowed(&self) -> impl Iterator<Item = u64> {
        self.allowed.iter().copied()
    }

    /// How many sockets the agent holds that can't be cut.
    pub(super) fn uncut(&self) -> usize {
        self.uncut.len()
    }

    /// Deals with all sockets of the processes in `cgroup`, as they were before the tag, and with all that
    /// were born in it, wherever they are now. It should be frozen meanwhile.
    pub(super) fn deal_with_old(&mut self, cgroup: &Path, handling: Handling) -> Vec<Stray> {
        self.cgroups.extend(holders::cgroup_ids(cgroup));
        let mut namespaces = Namespaces::default();
        let mut strays = Vec::new();
        // Held where no descriptor can be had from: a thread's own table, an io_uring.
        let mut out_of_reach: BTreeMap<u64, Held> = BTreeMap::new();
        let mut local = Vec::new();
        let processes = holders::processes(cgroup);
        let held = by_inode(&processes);
        let own: BTreeSet<u64> = held.keys().copied().collect();
        for (inode, holders) in held {
            let Some(socket) = take(&holders) else {
                out_of_reach.extend(holders.into_iter().next().map(|held| (inode, held)));
                continue;
            };
            match socket.sort() {
                Sort::Local => {
                    self.settled.insert(inode);
                }
                Sort::Unix => {
                    let stray = self.deal_with_unix(Birth::Old, inode, &socket, &holders, handling);
                    if let Some(stray) = stray
                        && let Ok(namespace) = diag::netns_of(socket.as_fd())
                    {
                        namespaces.learn(namespace);
                        local.push((inode, stray));
                    }
                }
                Sort::Inet | Sort::Unseen => {
                    if let Ok(namespace) = diag::netns_of(socket.as_fd()) {
                        namespaces.learn(namespace);
                    }
                    let birth = Birth::Old;
                    strays.push(self.deal_with(birth, inode, &socket, &holders, handling));
                }
            }
        }
        if !local.is_empty() {
            let peers = namespaces.peers();
            // Its processes among themselves; what isn't known counts as somebody else.
            let is_within = |inode: &u64| peers.get(inode).is_some_and(|peer| own.contains(peer));
            local.retain(|(inode, stray)| stray.fate != Fate::Kept || !is_within(inode));
            strays.extend(local.into_iter().map(|(_, stray)| stray));
        }
        for pid in &processes {
            namespaces.learn_of(*pid);
        }
        for (diag, listed) in namespaces.all() {
            for socket in &listed.sockets {
                let is_own = socket.cgroup.is_some_and(|id| self.cgroups.contains(&id));
                let holder = out_of_reach.get(&socket.inode);
                let is_done = [&self.settled, &self.allowed, &self.uncut]
                    .iter()
                    .any(|known| known.contains(&socket.inode));
                if is_done || !(is_own || holder.is_some()) {
                    continue;
                }
                strays.push(self.deal_from_afar(Birth::Old, diag, socket, holder, handling));
            }
        }
        strays
    }

    /// Deals with what has come to the processes in `cgroup` since the last time.
    pub(super) fn deal_with_new(&mut self, cgroup: &Path, handling: Handling) -> Vec<Stray> {
        self.cgroups.extend(holders::cgroup_ids(cgroup));
        let held = by_inode(&holders::processes(cgroup));
        for known in [&mut self.settled, &mut self.allowed, &mut self.uncut] {
            known.retain(|inode| held.contains_key(inode));
        }
        let mut namespaces = Namespaces::default();
        let mut strays = Vec::new();
        let mut out_of_reach: BTreeMap<u64, Held> = BTreeMap::new();
        for (inode, holders) in held {
            if self.settled.contains(&inode) || self.allowed.contains(&inode) {
                continue;
            }
            let Some(socket) = take(&holders) else {
                out_of_reach.extend(holders.into_iter().next().map(|held| (inode, held)));
                continue;
            };
            let birth = match socket.sort() {
                Sort::Local => {
                    self.settled.insert(inode);
                    continue;
                }
                Sort::Unix => {
                    let was_told = self.uncut.contains(&inode);
                    let birth = Birth::Foreign;
                    let stray = self.deal_with_unix(birth, inode, &socket, &holders, handling);
                    strays.extend(stray.filter(|_| !was_told));
                    continue;
                }
                Sort::Unseen => Birth::Unseen,
                // An agent's own are refused when they are made.
                Sort::Inet if !socket.is_listed() => Birth::Foreign,
                Sort::Inet => match namespaces.birth_of(inode, &socket) {
                    Some(cgroup) if self.cgroups.contains(&cgroup) => {
                        self.settled.insert(inode);
                        continue;
                    }
                    Some(_) => Birth::Foreign,
                    // Neither bound nor connected: it leads nowhere yet.
                    None => continue,
                },
            };
            let was_told = self.uncut.contains(&inode);
            let stray = self.deal_with(birth, inode, &socket, &holders, handling);
            if !was_told {
                strays.push(stray);
            }
        }
        if out_of_reach.is_empty() {
            return strays;
        }
        for held in out_of_reach.values() {
            namespaces.learn_of(held.pid);
        }
        for (diag, listed) in namespaces.all() {
            for socket in &listed.sockets {
                let Some(holder) = out_of_reach.get(&socket.inode) else {
                    continue;
                };
                if socket.cgroup.is_some_and(|id| self.cgroups.contains(&id)) {
                    self.settled.insert(socket.inode);
                    continue;
                }
                let was_told = self.uncut.contains(&socket.inode);
                let birth = Birth::Foreign;
                let stray = self.deal_from_afar(birth, diag, socket, Some(holder), handling);
                if !was_told {
                    strays.push(stray);
                }
            }
        }
        strays
    }

    /// Deals with a UNIX socket; what came of it, where that is worth telling.
    fn deal_with_unix(
        &mut self,
        birth: Birth,
        inode: u64,
        socket: &Taken,
        holders: &[Held],
        handling: Handling,
    ) -> Option<Stray> {
        let is_seen = !handling.refuses_unix || socket.is_seen();
        let (own, other) = socket.unix_names();
        let is_connected = other.is_some();
        // Of those that were accepted from outside each has its listener's name.
        let is_worth_telling = match birth {
            Birth::Old => is_connected,
            _ => !is_seen && is_connected && own.is_none(),
        };
        if is_seen || (!socket.is_datagrams() && (is_connected || socket.listens())) {
            self.settled.insert(inode);
            let pid = holders.first().map(|held| held.pid);
            return (handling.refuses_unix && is_worth_telling).then(|| Stray {
                birth,
                fate: Fate::Kept,
                protocol: socket.protocol(),
                local: None,
                peer: None,
                name: other.and_then(|name| unix::seen(&name)),
                pid,
                executable: pid.and_then(process::executable),
            });
        }
        let mut stray = self.deal_with(birth, inode, socket, holders, handling);
        stray.name = other.and_then(|name| unix::seen(&name));
        Some(stray)
    }

    fn deal_with(
        &mut self,
        birth: Birth,
        inode: u64,
        socket: &Taken,
        holders: &[Held],
        handling: Handling,
    ) -> Stray {
        let (local, peer) = socket.addresses();
        let pid = holders.first().map(|held| held.pid);
        let fate = if birth == Birth::Old && handling.allows_old {
            self.allowed.insert(inode);
            Fate::Allowed
        } else {
            match socket.sever() {
                Ok(()) => {
                    self.settled.insert(inode);
                    Fate::Cut
                }
                Err(error) => self.cannot_cut(inode, error.to_string(), holders, handling),
            }
        };
        Stray {
            birth,
            fate,
            protocol: socket.protocol(),
            local,
            peer,
            name: None,
            pid,
            executable: pid.and_then(process::executable),
        }
    }

    /// Deals with a socket of which no descriptor can be had. What was born in the agent's cgroup is seen
    /// by hooks once it is used anew; what was born elsewhere is not.
    fn deal_from_afar(
        &mut self,
        birth: Birth,
        diag: &Diag,
        socket: &Listed,
        holder: Option<&Held>,
        handling: Handling,
    ) -> Stray {
        let is_own = socket.cgroup.is_some_and(|id| self.cgroups.contains(&id));
        let fate = if birth == Birth::Old && handling.allows_old {
            if socket.inode != 0 && holder.is_some() {
                self.allowed.insert(socket.inode);
            }
            Fate::Allowed
        } else {
            let holders = holder.map(std::slice::from_ref).unwrap_or_default();
            match diag.destroy(socket) {
                // ENOENT: it ended by itself.
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    self.cannot_cut(socket.inode, error.to_string(), holders, handling)
                }
                _ if is_own => Fate::Cut,
                _ => {
                    let why = "it was reset, but is held where it can't be taken from, and can be used anew";
                    self.cannot_cut(socket.inode, why.to_owned(), holders, handling)
                }
            }
        };
        let pid = holder.map(|held| held.pid);
        Stray {
            birth,
            fate,
            protocol: socket.protocol,
            local: (socket.local.port() != 0).then_some(socket.local),
            peer: socket.peer,
            name: None,
            pid,
            executable: pid.and_then(process::executable),
        }
    }

    fn cannot_cut(
        &mut self,
        inode: u64,
        why: String,
        holders: &[Held],
        handling: Handling,
    ) -> Fate {
        self.uncut.insert(inode);
        let mut killed = false;
        if handling.kills {
            for held in holders {
                killed |= process::started(held.pid)
                    .is_some_and(|started| process::kill(held.pid, started).is_ok());
            }
        }
        Fate::Uncut { why, killed }
    }
}

/// Ends the connections of all sockets that were born in `cgroup` or below; how many.
///
/// # Errors
/// The first failure, once all that can be ended has been.
pub(super) fn destroy_all(cgroup: &Path) -> std::io::Result<usize> {
    let own = holders::cgroup_ids(cgroup);
    let mut namespaces = Namespaces::default();
    for pid in holders::processes(cgroup) {
        namespaces.learn_of(pid);
    }
    let mut count = 0;
    let mut failed = Ok(());
    for (diag, listed) in namespaces.all() {
        let own = listed.sockets.iter().filter(|socket| {
            socket.peer.is_some() && socket.cgroup.is_some_and(|id| own.contains(&id))
        });
        for socket in own {
            match diag.destroy(socket) {
                Ok(()) => count += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => failed = failed.and(Err(error)),
            }
        }
    }
    failed.map(|()| count)
}

/// The sockets that `processes` hold, each with its holders.
fn by_inode(processes: &BTreeSet<u32>) -> BTreeMap<u64, Vec<Held>> {
    let mut all: BTreeMap<u64, Vec<Held>> = BTreeMap::new();
    for held in processes.iter().flat_map(|pid| holders::sockets(*pid)) {
        all.entry(held.inode).or_default().push(held);
    }
    all
}

/// A descriptor for the socket that these hold, from the first of them that has one.
fn take(holders: &[Held]) -> Option<Taken> {
    holders.iter().find_map(|held| {
        let holder = held.thread.unwrap_or(held.pid);
        Taken::from(holder, held.thread.is_some(), held.descriptor?).ok()
    })
}

/// The network namespaces that were met, with their sockets as soon as somebody asks.
#[derive(Default)]
struct Namespaces(HashMap<(u64, u64), Namespace>);

enum Namespace {
    Met(File),
    Listed(Diag, Listing),
    /// The kernel doesn't tell; [`probe`] has said so.
    Closed,
}

/// A namespace's sockets.
struct Listing {
    sockets: Vec<Listed>,
    births: HashMap<u64, u64>,
}

impl Namespaces {
    fn learn(&mut self, namespace: File) -> Option<(u64, u64)> {
        let metadata = namespace.metadata().ok()?;
        let id = (metadata.dev(), metadata.ino());
        self.0.entry(id).or_insert(Namespace::Met(namespace));
        Some(id)
    }

    /// The namespace that process `pid` is in.
    fn learn_of(&mut self, pid: u32) {
        if let Ok(namespace) = File::open(format!("/proc/{pid}/ns/net")) {
            self.learn(namespace);
        }
    }

    /// The cgroup that `socket` was born in, if the kernel lists it.
    fn birth_of(&mut self, inode: u64, socket: &Taken) -> Option<u64> {
        // What has no port is in no list: most of what is asked about, and asking would cost most.
        socket.addresses().0?;
        let id = self.learn(diag::netns_of(socket.as_fd()).ok()?)?;
        match self.0.get_mut(&id)?.list() {
            Namespace::Listed(_, listing) => listing.births.get(&inode).copied(),
            _ => None,
        }
    }

    /// Whom each UNIX socket of theirs is connected to.
    fn peers(&mut self) -> HashMap<u64, u64> {
        let mut peers = HashMap::new();
        for (diag, _) in self.all() {
            match diag.peers() {
                Ok(known) => peers.extend(known),
                Err(error) => {
                    tracing::debug!(%error, "the kernel doesn't tell of a network namespace's UNIX sockets");
                }
            }
        }
        peers
    }

    fn all(&mut self) -> impl Iterator<Item = (&Diag, &Listing)> {
        self.0
            .values_mut()
            .filter_map(|namespace| match namespace.list() {
                Namespace::Listed(diag, listing) => Some((&*diag, &*listing)),
                _ => None,
            })
    }
}

impl Namespace {
    /// The same with its sockets.
    fn list(&mut self) -> &mut Self {
        if let Self::Met(file) = self {
            let listed = Diag::of(file).and_then(|diag| {
                let sockets = diag.list()?;
                Ok((diag, sockets))
            });
            *self = match listed {
                Ok((diag, sockets)) => {
                    let births = sockets
                        .iter()
                        .filter_map(|socket| Some((socket.inode, socket.cgroup?)))
                        .collect();
                    Self::Listed(diag, Listing { sockets, births })
                }
                Err(error) => {
                    tracing::debug!(%error, "the kernel doesn't tell of a network namespace's sockets");
                    Self::Closed
                }
            };
        }
        self
    }
}

/// The cgroup in which the socket of this network namespace at `local` was born that is connected to `peer`.
pub(super) fn birth_of(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Option<u64>> {
    Ok(find(local, peer)?.and_then(|listed| listed.cgroup))
}

fn find(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Option<Listed>> {
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let listed = Diag::of(&namespace)?.list()?;
    let is_it = |socket: &Listed| socket.local == local && socket.peer == Some(peer);
    Ok(listed.into_iter().find(is_it))
}

/// Ends the socket of this network namespace at `local` that is connected to `peer`.
pub(super) fn destroy_one(local: SocketAddr, peer: SocketAddr) -> std::io::Result<()> {
    let found = find(local, peer)?.ok_or(std::io::ErrorKind::NotFound)?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    Diag::of(&namespace)?.destroy(&found)
}

/// Whether the kernel tells of sockets and their births.
///
/// # Errors
/// Its answer, where it doesn't.
pub(super) fn probe() -> std::io::Result<()> {
    let namespace = File::open("/proc/thread-self/ns/net")?;
    Diag::of(&namespace)?.list().map(drop)
}
