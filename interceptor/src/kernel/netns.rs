//! Network namespaces: which ones agents are in, and what holds of the one that a thread is in.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::maps::{HashMap as BpfHashMap, MapData};
use interceptor_abi as abi;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{KernelError, Plain, cgroup, netlink};

/// The loopback device's number in every network namespace.
const LOOPBACK_DEVICE: u32 = 1;

/// A network namespace, which exists for as long as this does.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// Its number, unique for as long as it exists: `net:[NUMBER]` of namespaces(7).
    pub inode: u64,
}

/// Somebody of an agent in a network namespace.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// The process.
    pub pid: u32,
    /// Its thread's link to the namespace.
    link: PathBuf,
}

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// Where /proc isn't there.
    pub fn here() -> io::Result<Self> {
        Self::at(Path::new("/proc/thread-self/ns/net"))
    }

    /// The one where somebody was seen.
    ///
    /// # Errors
    /// Where that one is gone.
    pub fn of(sighting: &Sighting) -> io::Result<Self> {
        Self::at(&sighting.link)
    }

    fn at(link: &Path) -> io::Result<Self> {
        let file = File::open(link)?;
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode })
    }

    /// Has the calling thread be in it from now on, and this program no longer hold it by this file.
    ///
    /// # Errors
    /// Where we may not.
    pub fn enter(self) -> io::Result<()> {
        Ok(setns(self.file, CloneFlags::CLONE_NEWNET)?)
    }
}

/// Where the threads of process `pid` are, by the namespaces' numbers.
#[must_use]
pub fn namespaces_of(pid: u32) -> BTreeMap<u64, Sighting> {
    let mut seen = BTreeMap::new();
    look_at(pid, &mut seen);
    seen
}

/// Where the threads of all processes of `cgroup` and below are, by the namespaces' numbers.
#[must_use]
pub fn namespaces_in(cgroup: &Path) -> BTreeMap<u64, Sighting> {
    let mut seen = BTreeMap::new();
    for folder in cgroup::with_below(cgroup) {
        for pid in cgroup::processes_in(&folder) {
            look_at(pid, &mut seen);
        }
    }
    seen
}

/// A thread may be in another namespace than its process's first.
fn look_at(pid: u32, seen: &mut BTreeMap<u64, Sighting>) {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let link = thread.path().join("ns/net");
        // Who ends meanwhile is nowhere.
        let number = fs::read_link(&link)
            .ok()
            .and_then(|target| number(target.to_str()?));
        if let Some(number) = number {
            seen.entry(number).or_insert(Sighting { pid, link });
        }
    }
}

/// The number in `net:[NUMBER]`.
fn number(target: &str) -> Option<u64> {
    target
        .strip_prefix("net:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The cookie of the calling thread's network namespace, as the hooks see it.
///
/// # Errors
/// Where the kernel doesn't tell.
pub fn cookie_here() -> Result<u64, KernelError> {
    /// SO_NETNS_COOKIE, since Linux 5.14.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let failed = |error: io::Error| KernelError::Bpf {
        what: "telling this network namespace (SO_NETNS_COOKIE, Linux 5.14)".to_owned(),
        error: error.to_string(),
    };
    // Bound to nothing: there may be no address yet.
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to locals of the sizes given, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
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

/// Has the loopback device of the calling thread's network namespace be up.
///
/// # Errors
/// The kernel's answer.
pub fn raise_loopback() -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = LOOPBACK_DEVICE;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink::ask(RouteNetlinkMessage::SetLink(link), 0)
}

/// Forgets where an earlier daemon listened in other network namespaces than `own`: its sockets are gone.
pub(super) fn forget_others(
    listeners: &mut BpfHashMap<MapData, u64, Plain<abi::Listener>>,
    own: u64,
) {
    let known: Vec<u64> = listeners.keys().filter_map(Result::ok).collect();
    for cookie in known.into_iter().filter(|cookie| *cookie != own) {
        // An error means that it is gone already.
        let _ = listeners.remove(&cookie);
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::{Namespace, cookie_here, namespaces_of, number, raise_loopback};

    #[test]
    fn links_name_namespaces() {
        assert_eq!(number("net:[4026531840]"), Some(4_026_531_840));
        for other in ["mnt:[1]", "net:[]", "net:[1", "net:1", ""] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn a_thread_in_a_namespace_of_its_own_is_seen_there_and_others_arent_moved() {
        let own = Namespace::here().unwrap();
        let own_cookie = cookie_here().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            raise_loopback().unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let here = Namespace::here().unwrap();
            tell.send((here.inode, cookie_here().unwrap())).unwrap();
            let _ = ended.recv();
        });
        let (inode, cookie) = told.recv().unwrap();
        assert_ne!((inode, cookie), (own.inode, own_cookie));
        let seen = namespaces_of(std::process::id());
        assert!(seen.contains_key(&own.inode));
        let found = Namespace::of(&seen[&inode]).unwrap();
        assert_eq!(found.file.metadata().unwrap().ino(), inode);
        let inside = thread::spawn(move || {
            found.enter().unwrap();
            cookie_here().unwrap()
        });
        assert_eq!(inside.join().unwrap(), cookie);
        assert_eq!(cookie_here().unwrap(), own_cookie);
        drop(end);
        other.join().unwrap();
    }
}
