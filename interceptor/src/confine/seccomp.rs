//! System calls that an agent isn't answered: those that lead past the hooks, out of its namespaces or into
//! the kernel. They fail with an error that programs report or have another way for; nothing is killed but
//! what calls the kernel as another architecture, where the numbers mean something else.
//!
//! Not among them: what needs a capability that is gone, and what concerns own processes only (ptrace).

use std::io;

use libc::c_long;
use seccompiler::{BpfProgram, SeccompCmpOp, sock_filter};

use super::{Allowance, Exemptions};
use crate::seccomp::{Rules, condition, has, install, is, refuse, rule};

/// Refused with EPERM: BPF, other processes' descriptors, files past the mounts, keys (the kernel starts
/// `request-key` outside to find one), the kernel's own state. Some need a capability that is gone as well:
/// those are the ones that bugs have been found in.
const REFUSED: [c_long; 27] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// The number of `open_tree_attr` on all architectures; libc doesn't have it yet.
const OPEN_TREE_ATTR: c_long = 467;

/// Refused with EPERM unless namespaces are allowed.
const MOUNTING: [c_long; 12] = [
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    OPEN_TREE_ATTR,
];

/// The last system call of the kernel that this was written for, Linux 6.18's `file_setattr`: numbers are the
/// same on all architectures. What comes later isn't there, and x86-64's second set of numbers (x32) isn't.
const LAST: u32 = 469;

/// Flags of `unshare` and `clone` that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// `unshare`'s alone; `clone` has the signal of the child's end there.
const CLONE_NEWTIME: i32 = 0x80;

/// Address families that the hooks see, and the one that tells of interfaces and routes.
const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// The lower bits of a socket's type; the others are flags.
const SOCKET_TYPE: u64 = 0xf;

/// `<linux/net.h>`; deprecated in favour of AF_PACKET, which it turns into.
const SOCK_PACKET: i32 = 10;

/// Keeps this process, and all that come of it, from what is refused.
pub(super) fn enter(exemptions: &Exemptions) -> io::Result<()> {
    // Of several filters the strictest answer counts, and each has one answer.
    for (rules, errno) in [
        (refused(exemptions)?, libc::EPERM),
        (families()?, libc::EAFNOSUPPORT),
        (missing(exemptions), libc::ENOSYS),
    ] {
        refuse(rules, errno)?;
    }
    install(&unknown())
}

fn refused(exemptions: &Exemptions) -> io::Result<Rules> {
    let mut rules: Rules = REFUSED.iter().map(|number| (*number, Vec::new())).collect();
    if !exemptions.allows(Allowance::Namespaces) {
        rules.extend(MOUNTING.iter().map(|number| (*number, Vec::new())));
        let flags = |more: &[i32]| -> io::Result<Vec<_>> {
            let all = NAMESPACES.iter().chain(more);
            all.map(|flag| rule([has(0, *flag)?])).collect()
        };
        rules.insert(libc::SYS_unshare, flags(&[CLONE_NEWTIME])?);
        rules.insert(libc::SYS_clone, flags(&[])?);
    }
    // Both type into the terminal that the command is started from, for the shell that is there afterwards.
    rules.insert(
        libc::SYS_ioctl,
        vec![
            rule([is(1, libc::TIOCSTI)?])?,
            rule([is(1, libc::TIOCLINUX)?])?,
        ],
    );
    let kind = |kind: i32| -> io::Result<_> {
        let operation = SeccompCmpOp::MaskedEq(SOCKET_TYPE);
        condition(1, operation, u64::from(kind.cast_unsigned()))
    };
    rules.insert(
        libc::SYS_socket,
        vec![
            rule([is(0, libc::AF_INET)?, kind(libc::SOCK_RAW)?])?,
            rule([is(0, libc::AF_INET6)?, kind(libc::SOCK_RAW)?])?,
            // Turns into a packet socket, whatever the family.
            rule([kind(SOCK_PACKET)?])?,
        ],
    );
    Ok(rules)
}

fn families() -> io::Result<Rules> {
    let mut others = Vec::new();
    for family in FAMILIES {
        let family = u64::from(family.cast_unsigned());
        others.push(condition(0, SeccompCmpOp::Ne, family)?);
    }
    let other_family = rule(others)?;
    let route = u64::from(libc::NETLINK_ROUTE.cast_unsigned());
    let other_netlink = rule([
        is(0, libc::AF_NETLINK)?,
        condition(2, SeccompCmpOp::Ne, route)?,
    ])?;
    Ok(Rules::from([
        (libc::SYS_socket, vec![other_family.clone(), other_netlink]),
        (libc::SYS_socketpair, vec![other_family]),
    ]))
}

fn missing(exemptions: &Exemptions) -> Rules {
    // Its flags are in memory, where a filter can't look, and one of them starts a process in another cgroup.
    // The C libraries then take `clone`.
    let mut numbers = vec![libc::SYS_clone3];
    if !exemptions.allows(Allowance::IoUring) {
        numbers.extend([
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ]);
    }
    numbers
        .into_iter()
        .map(|number| (number, Vec::new()))
        .collect()
}

/// Answers numbers above the last as a kernel does that doesn't have them. The other filters see to the
/// architecture.
fn unknown() -> BpfProgram {
    const NUMBER_OFFSET: u32 = 0;
    let statement = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    let [load, jump, answer] = [
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ]
    .map(|code| u16::try_from(code).unwrap_or_default());
    vec![
        statement(load, 0, NUMBER_OFFSET),
        statement(jump, 1, LAST),
        statement(
            answer,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        ),
        statement(answer, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
