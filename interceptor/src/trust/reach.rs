//! Files as the agent reaches them. The launcher is root and looks where agents write, so it opens nothing
//! with more rights than the agent has, and a file that was opened is the one that is read and covered:
//! names are never resolved twice.

use std::{
    fs::{File, Metadata},
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    libc,
    unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid},
};

/// Whose rights files are opened with. The process's further groups must be that user's already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
}

impl Identity {
    /// The agent's, where it runs as another user than we do.
    #[must_use]
    pub fn new(uid: Uid, gid: Gid) -> Self {
        Self { uid, gid }
    }

    /// Our own.
    #[must_use]
    pub fn own() -> Self {
        Self::new(geteuid(), getegid())
    }

    /// Does `work` with its rights on files; the kernel takes root's from this thread meanwhile.
    ///
    /// # Errors
    /// Where they can't be taken on; nothing is done then.
    pub fn assume<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        /// A number that no user has: asking for it changes nothing and tells the present one.
        const NOBODY: u32 = u32::MAX;
        struct Back;
        impl Drop for Back {
            fn drop(&mut self) {
                setfsuid(geteuid());
                setfsgid(getegid());
            }
        }
        let _back = Back;
        // The group first: afterwards it needs a right that may be gone.
        setfsgid(self.gid);
        setfsuid(self.uid);
        let taken_on = setfsuid(Uid::from_raw(NOBODY)) == self.uid
            && setfsgid(Gid::from_raw(NOBODY)) == self.gid;
        if !taken_on {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the user's rights can't be taken on",
            ));
        }
        Ok(work())
    }
}

/// A file or folder that was found, whatever its name stands for by now.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    handle: File,
    metadata: Metadata,
}

impl Place {
    /// Finds it without opening it: devices and pipes notice nothing.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Self::with(path, 0)
    }

    /// The same, of what a folder has under `name`, links as links.
    pub(super) fn within(&self, name: &Path) -> io::Result<Self> {
        let mut place = Self::with(&self.link().join(name), libc::O_NOFOLLOW)?;
        place.path = self.path.join(name);
        Ok(place)
    }

    fn with(path: &Path, flags: i32) -> io::Result<Self> {
        let handle = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | flags)
            .open(path)?;
        let metadata = handle.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            handle,
            metadata,
        })
    }

    /// What it was found as, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// A name for exactly this file, for as long as this value lives.
    pub(super) fn link(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }

    /// The content of a regular file of at most `bytes_max`.
    pub(super) fn read(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        // Files grow; what was found is no bound.
        let content = self.start(bytes_max.saturating_add(1))?;
        if u64::try_from(content.len()).is_ok_and(|length| length <= bytes_max) {
            Ok(content)
        } else {
            Err(invalid("it is too large for what it should hold"))
        }
    }

    /// The first `bytes` of a regular file, or all there are.
    pub(super) fn start(&self, bytes: u64) -> io::Result<Vec<u8>> {
        let kind = self.metadata.file_type();
        if !kind.is_file() {
            let what = match kind {
                kind if kind.is_fifo() => "it is a pipe",
                kind if kind.is_dir() => "it is a folder",
                _ => "it is no file",
            };
            return Err(invalid(what));
        }
        let mut start = Vec::new();
        let file = File::open(self.link())?;
        file.take(bytes).read_to_end(&mut start)?;
        Ok(start)
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn what_is_found_is_what_is_read_though_its_name_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (name, other) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&name, "found").unwrap();
        fs::write(&other, "swapped").unwrap();
        let place = Place::at(&name).unwrap();
        fs::rename(&other, &name).unwrap();
        assert_eq!(place.read(5).unwrap(), b"found");
        assert!(place.read(4).is_err(), "too large");
    }

    #[test]
    fn pipes_and_devices_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), folder.path()] {
            assert!(Place::at(path).unwrap().read(8).is_err(), "{path:?}");
        }
    }

    #[test]
    fn another_s_rights_can_be_taken_on_by_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let other = Identity::new(Uid::from_raw(65_534), Gid::from_raw(65_534));
        let read = other.assume(|| fs::read(&secret));
        assert!(read.and_then(|read| read).is_err());
        assert!(fs::read(&secret).is_ok(), "they are given back");
    }
}
