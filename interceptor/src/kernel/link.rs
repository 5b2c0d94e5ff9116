//! Links that aya can't make: it has no bpf_link for programs on socket options.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// BPF_CGROUP_SETSOCKOPT of `enum bpf_attach_type`.
pub(super) const CGROUP_SETSOCKOPT: u32 = 22;

/// BPF_OBJ_PIN and BPF_LINK_CREATE of `enum bpf_cmd`.
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;

/// The part of `union bpf_attr` that BPF_LINK_CREATE reads here.
#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_PIN reads.
#[repr(C)]
struct Pin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Attaches `program` to `cgroup` by a link that is pinned at `pin`.
pub(super) fn attach(
    program: impl AsFd,
    cgroup: impl AsFd,
    attach_type: u32,
    pin: &Path,
) -> io::Result<()> {
    let descriptor = |fd: &dyn AsRawFd| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
    let create = Create {
        program: descriptor(&program.as_fd()),
        target: descriptor(&cgroup.as_fd()),
        attach_type,
        flags: 0,
    };
    let link = bpf(LINK_CREATE, &create)?;
    let link = i32::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let pin = Pin {
        path: path.as_ptr() as u64,
        descriptor: descriptor(&link),
        flags: 0,
    };
    bpf(OBJ_PIN, &pin).map(drop)
}

/// Calls bpf(2).
pub(super) fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are as long as is said, and what they point to lives until the call is over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
