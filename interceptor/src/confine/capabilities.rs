//! What root may still do inside: administer files, users and its own processes, not the host.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use super::context;

/// What stays; all others go, those included that kernels to come will have.
///
/// Not among them, though root tools may ask: `DAC_READ_SEARCH` opens files by handle, past every mount;
/// `MKNOD` and `SYS_RAWIO` make and use disks; `SYS_PTRACE`, `SYS_ADMIN`, `SYS_MODULE`, `BPF`, `PERFMON`,
/// `NET_ADMIN` and `NET_RAW` undo the hooks or pass them by; `SYS_TIME`, `SYS_BOOT`, `SYS_RESOURCE`, `SYSLOG`
/// and `AUDIT_CONTROL` are the host's.
const KEPT: [Capability; 11] = [
    // Packages are unpacked with owners, modes and file capabilities.
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETFCAP,
    // Servers and package managers change users, and drop further.
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_CHROOT,
    // It sees its own processes only.
    Capability::CAP_KILL,
    // Inbound connections are the hooks' to refuse.
    Capability::CAP_NET_BIND_SERVICE,
];

/// Numbers of capabilities are below this in all kernels: sets are 64 bits wide.
const NUMBERS: u32 = 64;

/// Takes from this process what it, or a setuid program that it runs, could ever have.
pub(super) fn bound(more: &[Capability]) -> io::Result<()> {
    let kept = kept(more);
    for number in 0..NUMBERS {
        if kept.iter().any(|kept| u32::from(kept.index()) == number) {
            continue;
        }
        // SAFETY: takes a number and changes nothing but this process's bounding set.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
        let error = io::Error::last_os_error();
        // There is no such capability, which ends the list.
        if result != 0 && error.raw_os_error() == Some(libc::EINVAL) {
            break;
        }
        if result != 0 {
            return Err(context("capabilities can't be given up", &error));
        }
    }
    Ok(())
}

/// Gives up what this process has, but for what stays. Another user than root has none already.
pub(super) fn keep(more: &[Capability]) -> io::Result<()> {
    let kept = kept(more);
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let has = caps::read(None, set).map_err(io::Error::other)?;
        let stays = has.intersection(&kept).copied().collect();
        caps::set(None, set, &stays).map_err(io::Error::other)?;
    }
    Ok(())
}

fn kept(more: &[Capability]) -> CapsHashSet {
    KEPT.iter().chain(more).copied().collect()
}
