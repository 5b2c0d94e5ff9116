//! What a process of ours gives up before it reads the first byte of somebody else's: the proxy, before those of
//! agents and servers, the console, before those of browsers.

use std::{collections::BTreeMap, io, path::Path};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use libc::c_long;
use nix::{
    sys::{
        prctl::{set_dumpable, set_no_new_privs, set_pdeathsig},
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Gid, Uid, User, setgroups, setresgid, setresuid},
};

use crate::{
    config::Config,
    seccomp::{self, Rules},
};

/// Users that systemd gives to services without one of their own: nobody else has them.
const USERS: std::ops::Range<u32> = 61_184..65_520;

/// What names are looked up with, where it is there.
const READABLE: [&str; 9] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
];

/// The processes that are confined, as the configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// It reads what agents and servers send.
    Proxy,
    /// It reads what browsers, identity providers and chats send.
    Console,
}

/// The user that one of them is: the configured one, else one that has no name and is this instance's own.
///
/// # Errors
/// Where the configured one isn't there, or is root.
pub(crate) fn user(which: Which, config: &Config) -> io::Result<u32> {
    let (name, configured) = match which {
        Which::Proxy => ("proxy", &config.proxy.user),
        Which::Console => (
            "console",
            config
                .console
                .as_ref()
                .map_or(&None, |console| &console.user),
        ),
    };
    if let Some(name_of_it) = configured {
        let (section, name) = (name, name_of_it);
        let user = User::from_name(name)?.ok_or_else(|| {
            io::Error::other(format!(
                "there is no user `{name}` (`{section}: {{user: …}}` in the configuration); make one with `useradd --system {name}`, or leave it out"
            ))
        })?;
        if user.uid.is_root() {
            return Err(io::Error::other(format!(
                "`{section}: {{user: …}}` in the configuration is root: a process that reads what others send has to be somebody who may do nothing",
            )));
        }
        return Ok(user.uid.as_raw());
    }
    let count = USERS.end - USERS.start;
    // Neither is the other's, so that neither can do anything to the other.
    let half = count / 2;
    let start = crc32fast::hash(config.instance.as_str().as_bytes()) % half;
    let first = USERS.start + if which == Which::Console { half } else { 0 };
    let mut users = (0..half).map(|turn| first + (start + turn) % half);
    let free = users.find(|user| matches!(User::from_uid(Uid::from_raw(*user)), Ok(None)));
    free.ok_or_else(|| {
        io::Error::other("all users of systemd's range for services have names; say `proxy: {user: …}` and `console: {user: …}` in the configuration")
    })
}

/// Becomes `user`, who may do nothing, and keeps this process and its threads to come from all but its work.
/// What the kernel lacks for that, for people.
///
/// # Errors
/// Where something of it can't be done that every supported kernel has.
pub(crate) fn enter(which: Which, user: u32) -> io::Result<Vec<String>> {
    let mut weaker = Vec::new();
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    caps::clear(None, caps::CapSet::Bounding).map_err(io::Error::other)?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    for set in [
        caps::CapSet::Ambient,
        caps::CapSet::Inheritable,
        caps::CapSet::Effective,
        caps::CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    set_no_new_privs()?;
    // Neither a debugger of the same user nor a core file sees what it holds.
    set_dumpable(false)?;
    // Behind all that changes who this is, which takes it back.
    set_pdeathsig(Signal::SIGKILL)?;
    weaker.extend(files()?);
    calls(which)?;
    Ok(weaker)
}

/// Landlock: no file but what names are looked up with, no port of its own, nobody else's abstract sockets,
/// no signals.
fn files() -> io::Result<Option<String>> {
    let abi = ABI::V6;
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::BindTcp))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(abi)))
        .and_then(|ruleset| ruleset.create())
        .and_then(|mut ruleset| {
            for path in READABLE {
                // What isn't there isn't needed.
                if let Ok(opened) = PathFd::new(path) {
                    let read = if Path::new(path).is_dir() {
                        AccessFs::ReadFile | AccessFs::ReadDir
                    } else {
                        AccessFs::ReadFile.into()
                    };
                    ruleset = ruleset.add_rule(PathBeneath::new(opened, read))?;
                }
            }
            ruleset.restrict_self()
        });
    let status = restricted.map_err(io::Error::other)?.ruleset;
    Ok(match status {
        RulesetStatus::FullyEnforced => None,
        RulesetStatus::PartiallyEnforced => Some(
            "this kernel's Landlock is older than Linux 6.12's: the process that carries sessions keeps from less"
                .to_owned(),
        ),
        RulesetStatus::NotEnforced => Some(
            "this kernel has no Landlock: files that everybody may read stay within reach of the process that carries sessions"
                .to_owned(),
        ),
    })
}

/// What carrying sessions takes of the kernel. Everything else fails with EPERM.
const CALLS: [c_long; 62] = [
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
    // Answered below as what isn't there, so that threads are made by `clone`, whose flags can be looked at.
    libc::SYS_clone3,
    libc::SYS_getegid,
];

/// The same where the architecture has older ones as well.
#[cfg(target_arch = "x86_64")]
const OLDER: [c_long; 4] = [
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_open,
    libc::SYS_stat,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: [c_long; 0] = [];

fn calls(which: Which) -> io::Result<()> {
    let mut allowed: Rules = CALLS
        .iter()
        .chain(&OLDER)
        .map(|number| (*number, Vec::new()))
        .collect();
    if which == Which::Console {
        // Browsers come to it; whom the proxy carries is handed to it.
        allowed.insert(libc::SYS_accept4, Vec::new());
    }
    // Threads, in this process's own namespaces.
    let thread = u64::from((libc::CLONE_THREAD | libc::CLONE_VM).cast_unsigned());
    let namespaces = libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWUTS;
    let looked_at = thread | u64::from(namespaces.cast_unsigned());
    allowed.insert(
        libc::SYS_clone,
        vec![seccomp::rule([seccomp::masked(0, looked_at, thread)?])?],
    );
    // Memory, but none that could be run.
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    let plain = || seccomp::rule([seccomp::masked(2, executable, 0)?]);
    allowed.insert(libc::SYS_mmap, vec![plain()?]);
    allowed.insert(libc::SYS_mprotect, vec![plain()?]);
    // Connections to servers, and questions about their names.
    let family = |family| seccomp::rule([seccomp::is(0, family)?]);
    allowed.insert(
        libc::SYS_socket,
        vec![family(libc::AF_INET)?, family(libc::AF_INET6)?],
    );
    let request = |request| seccomp::rule([seccomp::is(1, request)?]);
    allowed.insert(
        libc::SYS_ioctl,
        vec![
            request(libc::FIONBIO)?,
            request(libc::FIONREAD)?,
            request(libc::TCGETS)?,
        ],
    );
    // The feed may grow, and not be cut: the daemon reads it by its length.
    allowed.insert(
        libc::SYS_fallocate,
        vec![seccomp::rule([seccomp::is(1, 0_u32)?])?],
    );
    let names = |name: i32| seccomp::rule([seccomp::is(0, name.cast_unsigned())?]);
    allowed.insert(
        libc::SYS_prctl,
        vec![names(libc::PR_SET_NAME)?, names(PR_SET_VMA)?],
    );
    // Its own limits can be looked at, and not changed.
    allowed.insert(
        libc::SYS_prlimit64,
        vec![seccomp::rule([seccomp::is(2, 0_u32)?])?],
    );
    let missing: Rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    seccomp::refuse(missing, libc::ENOSYS)?;
    // Of several filters the strictest answer counts. This one is the last: it allows no other.
    seccomp::allow_only(allowed)
}

/// `<linux/prctl.h>`: allocators name their memory.
const PR_SET_VMA: i32 = 0x5356_4d41;
