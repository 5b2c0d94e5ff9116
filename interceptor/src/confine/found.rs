//! A file that was found, whatever its name stands for by now: others can write where this looks, and what is
//! looked at has to be what is covered.

use std::{
    fs::{File, Metadata},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A file, folder, socket or device that isn't opened, only held.
#[derive(Debug)]
pub(super) struct Found {
    path: PathBuf,
    handle: File,
    metadata: Metadata,
}

impl Found {
    /// Finds what a path leads to.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Self::with(path, 0)
    }

    /// Finds what has this name itself, where that is a link.
    pub(super) fn named(path: &Path) -> io::Result<Self> {
        Self::with(path, libc::O_NOFOLLOW)
    }

    fn with(path: &Path, flags: i32) -> io::Result<Self> {
        let handle = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | flags)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            metadata: handle.metadata()?,
            handle,
        })
    }

    /// What it was found as.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(super) fn is_dir(&self) -> bool {
        self.metadata.is_dir()
    }

    /// A name for exactly this, for as long as this value lives.
    pub(super) fn link(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }
}

/// `found`, or nothing where there is nothing of that name, or nothing that it could be.
pub(super) fn if_there(found: io::Result<Found>) -> io::Result<Option<Found>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) || error.raw_os_error() == Some(libc::ELOOP) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
