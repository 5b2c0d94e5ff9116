//! What this kernel can do, by trying it out: answers to "does it have this feature" are often wrong.
//!
//! Everything is tried on things of our own, which are gone afterwards.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use interceptor_abi as abi;
use nix::errno::Errno;

use super::{
    KernelError, Tag, cgroup, counts, hooks, intact::Pinned, io_error, lineage::Lineage, sockets,
    unix,
};

/// What came of loading the kernel programs and attaching them to a cgroup of their own.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Each program, with the kernel's answer where it refused.
    pub programs: Vec<(&'static str, Result<(), String>)>,
    /// Why agents that are tagged while they run reach all UNIX sockets, where this kernel has no hooks on them.
    pub unguarded: Option<&'static str>,
    /// What the hooks on UNIX sockets can't see, where that is so.
    pub unnamed: Option<&'static str>,
    /// The kernel says who sets an option that is refused (Linux 6.1).
    pub names_setters: bool,
    /// The kernel can kill a cgroup as a whole (Linux 5.14).
    pub kills: bool,
    /// The kernel can have a cgroup stand still (Linux 5.2).
    pub freezes: bool,
}

/// A program of somebody else's that sees where an agent's sockets go, after our own have seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignHook {
    /// The cgroup that it is attached to.
    pub cgroup: PathBuf,
    /// What it is attached for: `connect4`.
    pub point: &'static str,
    /// The kernel's number for it.
    pub id: u32,
    /// Its name, where it has one.
    pub name: String,
}

/// A cgroup and a folder of pins that go with this.
struct Temporary {
    cgroup: PathBuf,
    pins: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pins);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Loads the kernel programs and attaches them to a cgroup of their own.
///
/// # Errors
/// Where that doesn't get as far as the programs: without cgroup v2 or bpffs, or where the kernel refuses a map.
pub fn try_hooks() -> Result<Trial, KernelError> {
    let name = format!("interceptor-doctor-{}", std::process::id());
    let cgroup2 = cgroup::mount_point()?;
    let bpffs = bpffs().ok_or_else(|| {
        KernelError::Refused(
            "bpffs is not mounted; `interceptor serve` mounts it, or `mount -t bpf bpf /sys/fs/bpf`"
                .to_owned(),
        )
    })?;
    let temporary = Temporary {
        cgroup: cgroup2.join(&name),
        pins: bpffs.join(&name),
    };
    fs::create_dir_all(&temporary.cgroup)
        .map_err(io_error("creating a cgroup", &temporary.cgroup))?;
    fs::create_dir_all(&temporary.pins).map_err(io_error("creating pins", &temporary.pins))?;
    let mut object = hooks::load(&temporary.pins, hooks::Bearer::default())?;
    Ok(Trial {
        programs: hooks::attach_each(&mut object, &temporary.cgroup, &temporary.pins),
        unguarded: unix::unguarded(),
        unnamed: unix::unnamed(),
        names_setters: hooks::setter_is_told(),
        kills: temporary.cgroup.join("cgroup.kill").exists(),
        freezes: temporary.cgroup.join("cgroup.freeze").exists(),
    })
}

/// Where bpffs is mounted.
#[must_use]
pub fn bpffs() -> Option<PathBuf> {
    cgroup::mounted_at("bpf")
}

/// Where cgroup v2 is mounted, and whether a hierarchy of version 1 is as well.
#[must_use]
pub fn cgroups() -> (Option<PathBuf>, bool) {
    (
        cgroup::mount_point().ok(),
        cgroup::mounted_at("cgroup").is_some(),
    )
}

/// Whether network namespaces can be told apart.
///
/// # Errors
/// Why not.
pub fn try_netns_cookie() -> Result<(), String> {
    super::cookie_here()
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Whether the kernel tells which cgroup a socket was born in.
///
/// # Errors
/// Why not.
pub fn try_births() -> io::Result<()> {
    let (_listener, client, _server) = pair()?;
    match sockets::birth_of(client.local_addr()?, client.peer_addr()?)? {
        Some(_) => Ok(()),
        None => Err(io::Error::other("sock_diag doesn't tell of cgroups")),
    }
}

/// Whether the kernel ends a connection when it is told to.
///
/// # Errors
/// Why not.
pub fn try_destroy() -> io::Result<()> {
    let (_listener, client, _server) = pair()?;
    sockets::destroy_one(client.local_addr()?, client.peer_addr()?)?;
    match client.take_error()? {
        Some(_) => Ok(()),
        None => Err(io::Error::other("the connection went on")),
    }
}

/// Whether another process's socket can be taken hold of.
///
/// # Errors
/// Why not.
pub fn try_taking_hold() -> io::Result<()> {
    // SAFETY: a system call without pointers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    let process = owned(process)?;
    // SAFETY: likewise.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), 0, 0) };
    owned(taken).map(drop)
}

/// Whether the kernel tells of forks and of moves between cgroups.
///
/// # Errors
/// Why not.
pub fn try_lineage() -> io::Result<()> {
    Lineage::open(&format!("interceptor-doctor-{}", std::process::id())).map(drop)
}

/// Version of Landlock.
///
/// # Errors
/// Where the kernel has none.
pub fn landlock_version() -> io::Result<i64> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: asked for its version, the call reads nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    Ok(Errno::result(version)?)
}

/// What the instance's notes say of its agents, with what is wrong with the hooks of each. It needs no daemon.
#[must_use]
pub fn agents_of(instance: &str) -> Vec<(Tag, Vec<String>)> {
    let folder = Path::new("/run").join(instance).join("agents");
    let pins = bpffs()
        .unwrap_or_else(|| PathBuf::from("/sys/fs/bpf"))
        .join(instance)
        .join(format!("abi-{}", abi::ABI_VERSION));
    let mut agents = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let text = fs::read(entry.path()).unwrap_or_default();
        // A draft, or one that is being removed.
        let Ok(tag) = serde_json::from_slice::<Tag>(&text) else {
            continue;
        };
        let mut pinned = Pinned::default();
        let links = pins.join(format!("agent-{}", tag.number));
        let mut wrong = pinned.links(&links, hooks::names(), tag.cgroup_id);
        wrong.extend(pinned.maps(&pins, [&*counts::pin_name(tag.number)]));
        wrong.extend(pinned.maps(&pins, hooks::MAPS));
        agents.push((tag, wrong));
    }
    agents.sort_by(|(a, _), (b, _)| a.agent.name.cmp(&b.agent.name));
    agents
}

/// The processes of an agent.
#[must_use]
pub fn processes_of(tag: &Tag) -> Vec<u32> {
    cgroup::with_below(&tag.cgroup)
        .iter()
        .flat_map(|cgroup| cgroup::processes_in(cgroup))
        .collect()
}

/// Programs of others that see, on `cgroup` and above, where sockets go.
///
/// # Errors
/// Where the kernel doesn't tell.
pub fn foreign_hooks(cgroup: &Path) -> io::Result<Vec<ForeignHook>> {
    /// Of `enum bpf_attach_type`.
    const POINTS: [(&str, u32); 4] = [
        ("connect4", 10),
        ("connect6", 11),
        ("sendmsg4", 14),
        ("sendmsg6", 15),
    ];
    let (root, _) = cgroups();
    let root = root.ok_or(io::ErrorKind::NotFound)?;
    let names: HashMap<u32, String> = aya::programs::loaded_programs()
        .flatten()
        .map(|program| {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            (program.id(), name)
        })
        .collect();
    let mut found = Vec::new();
    for cgroup in cgroup
        .ancestors()
        .take_while(|path| path.starts_with(&root))
    {
        let folder = File::open(cgroup)?;
        for (point, attach_type) in POINTS {
            for id in attached(&folder, attach_type)? {
                let name = names.get(&id).cloned().unwrap_or_default();
                if !name.starts_with("agent_") {
                    found.push(ForeignHook {
                        cgroup: cgroup.to_owned(),
                        point,
                        id,
                        name,
                    });
                }
            }
        }
    }
    Ok(found)
}

/// Numbers of the programs that are attached to a cgroup itself.
fn attached(cgroup: &File, attach_type: u32) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_int = 16;
    /// The kernel allows 64 for each cgroup.
    const PROGRAMS_MAX: usize = 64;
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        _padding: u32,
    }
    let mut ids = vec![0_u32; PROGRAMS_MAX];
    let mut query = Query {
        target: cgroup.as_raw_fd().try_into().map_err(io::Error::other)?,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        _padding: 0,
    };
    // SAFETY: the attributes are a local of the size given, and the kernel writes at most as many numbers as
    // there is room for.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    Errno::result(answer)?;
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// A connection over loopback: its listener and both of its ends.
fn pair() -> io::Result<(TcpListener, TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((listener, client, server))
}

fn owned(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(Errno::result(descriptor)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this process; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
