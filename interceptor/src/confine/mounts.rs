//! The few things that are done with mounts. None of them can be undone without CAP_SYS_ADMIN, which the
//! agent doesn't have, and in a user namespace of its own all of them are locked.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

use super::{context, found::Found};

pub(super) const NONE: Option<&str> = None;

/// How far a change of attributes goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// One mount.
    Here,
    /// It and all that are mounted below.
    Below,
}

/// Shows `found` at `path`.
pub(super) fn bind(found: &Found, path: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&found.link()), path, NONE, flags, NONE)
        .map_err(|error| said(found.path(), "shown", error))
}

/// Covers a folder by an empty one, anything else by a device that nothing can be done with: opening it is
/// refused (EACCES), connecting to it as well (ECONNREFUSED).
pub(super) fn cover(found: &Found, null: &Found) -> io::Result<()> {
    cover_but(found, null, [])
}

/// The same, with `shown`, files that are in the folder, as they are but for writing.
pub(super) fn cover_but<'a>(
    found: &Found,
    null: &Found,
    shown: impl IntoIterator<Item = &'a Found>,
) -> io::Result<()> {
    if found.is_dir() {
        tmpfs(&found.link(), "mode=0555,size=64k,nr_inodes=64")
            .map_err(|error| said(found.path(), "covered", error))?;
        for file in shown {
            if let Some(folder) = file.path().parent() {
                fs::create_dir_all(folder)?;
            }
            fs::File::create(file.path())?;
            bind(file, file.path())?;
        }
        let cover = Found::at(found.path())?;
        return set(&cover.link(), libc::MOUNT_ATTR_RDONLY, 0, Depth::Below);
    }
    let link = found.link();
    mount(Some(&null.link()), &link, NONE, MsFlags::MS_BIND, NONE)
        .map_err(|error| said(found.path(), "covered", error))?;
    // The descriptor is of what is below; its name leads to what covers it.
    let covered = Found::named(found.path())?;
    set(
        &covered.link(),
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        0,
        Depth::Here,
    )
}

/// Covers a folder by one that is empty and of the agent's own.
pub(super) fn own(found: &Found, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    let options = format!("mode={mode:o},uid={uid},gid={gid},size=16m,nr_inodes=4k");
    tmpfs(&found.link(), &options).map_err(|error| said(found.path(), "covered", error))
}

/// A file system in memory without devices and setuid programs.
pub(super) fn tmpfs(path: &Path, options: &str) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("interceptor"),
        path,
        Some("tmpfs"),
        flags,
        Some(options),
    )
}

/// Makes what is at `found` a mount of its own that can't be written to.
pub(super) fn read_only(found: &Found) -> io::Result<()> {
    bind(found, &found.link())?;
    // As above: by name, to get the new mount.
    let bound = Found::at(found.path())?;
    set(&bound.link(), libc::MOUNT_ATTR_RDONLY, 0, Depth::Below)
        .map_err(|error| context(&format!("{}", found.path().display()), &error))
}

/// Sets and clears attributes of mounts (`MOUNT_ATTR_…`) and leaves the others alone.
pub(super) fn set(path: &Path, set: u64, clear: u64, depth: Depth) -> io::Result<()> {
    let path = CString::new(PathBuf::from(path).as_os_str().as_bytes())?;
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = match depth {
        Depth::Here => 0,
        Depth::Below => libc::AT_RECURSIVE,
    };
    // SAFETY: both pointers are to values that live until the call returns, and the size is the structure's;
    // the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn said(path: &Path, what: &str, error: nix::errno::Errno) -> io::Error {
    context(
        &format!("{} can't be {what}", path.display()),
        &error.into(),
    )
}
