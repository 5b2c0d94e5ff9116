//! Where the files are put together that the agent sees in the place of others: a file system in memory,
//! which has no name anywhere once the agent runs and ends with its last process, however that ends.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io::{self, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use super::reach::Place;

/// A folder that every system has and that nothing here reads: covered for as long as files are put
/// together, in a view that nobody shares yet. A folder of our own would stay behind on the host.
const HERE: &str = "/sys";

/// What all files together may take of the host's memory: the system's roots have 220 KiB, and equal
/// files are kept once.
const OPTIONS: &str = "mode=0755,size=64m,nr_inodes=16k";

const NONE: Option<&str> = None;

/// The files, while they are put together.
#[derive(Debug)]
pub(super) struct Stage {
    count: u32,
    /// By content, owner and mode.
    files: HashMap<([u8; 32], Owner), PathBuf>,
}

/// Owner, group and mode.
type Owner = (u32, u32, u32);

impl Stage {
    /// Gives this process a view of its own.
    pub(super) fn new() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is mounted here stays here; what the host mounts is still seen.
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
        mount(
            Some("interceptor"),
            HERE,
            Some("tmpfs"),
            harmless(),
            Some(OPTIONS),
        )?;
        Ok(Self {
            count: 0,
            files: HashMap::new(),
        })
    }

    /// A file with `content` and the owner and mode of another.
    pub(super) fn file(&mut self, content: &[u8], like: &Metadata) -> io::Result<PathBuf> {
        let hash = digest::digest(&digest::SHA256, content);
        let hash: [u8; 32] = hash.as_ref().try_into().map_err(io::Error::other)?;
        let key = (hash, owner(like));
        if let Some(path) = self.files.get(&key) {
            return Ok(path.clone());
        }
        let path = self.fresh();
        write(&path, content, like)?;
        self.files.insert(key, path.clone());
        Ok(path)
    }

    /// An empty folder with the owner and mode of another.
    pub(super) fn folder(&mut self, like: &Metadata) -> io::Result<PathBuf> {
        let path = self.fresh();
        folder(&path, like)?;
        Ok(path)
    }

    fn fresh(&mut self) -> PathBuf {
        self.count += 1;
        Path::new(HERE).join(self.count.to_string())
    }

    /// Nothing in it can be changed any more, and nothing of it is seen but where it was shown.
    pub(super) fn seal(self) -> io::Result<()> {
        let flags = harmless() | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, HERE, NONE, flags, NONE)?;
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The files live on in the places where they are seen. Where this fails, the agent's cgroup can't
        // be entered, which is said.
        let _ = umount2(HERE, MntFlags::MNT_DETACH);
    }
}

/// Shows `new` in the place of `old`.
pub(super) fn show(new: &Path, old: &Place) -> io::Result<()> {
    mount(Some(new), &old.link(), NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

/// A file with the owner and mode of another, whatever this process's umask is.
pub(super) fn write(path: &Path, content: &[u8], like: &Metadata) -> io::Result<()> {
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    own(path, like)
}

/// A new file that everybody can read.
pub(super) fn write_for_all(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// An empty folder with the owner and mode of another.
pub(super) fn folder(path: &Path, like: &Metadata) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    own(path, like)
}

fn own(path: &Path, like: &Metadata) -> io::Result<()> {
    let (uid, gid, mode) = owner(like);
    std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn owner(of: &Metadata) -> Owner {
    (of.uid(), of.gid(), of.mode() & 0o777)
}

fn harmless() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}
