//! Cgroups that are made while one looks, told as soon as they are there.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Mutex,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sync::lock;

/// Tells which cgroups are made in the folders that are watched. What it misses (the kernel's queue is full, or has
/// no room for one more folder) is for its user to find by looking.
#[derive(Debug)]
pub struct Arrivals {
    inotify: AsyncFd<Descriptor>,
    folders: Mutex<HashMap<WatchDescriptor, PathBuf>>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Arrivals {
    /// Watches nothing yet. To be called within a runtime.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // SAFETY: a descriptor that is owned here, and stays open for as long as it is watched.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE)? };
        Ok(Self {
            inotify,
            folders: Mutex::default(),
        })
    }

    /// Watches `folder` as well, until it is removed. Another time is the same as once.
    ///
    /// # Errors
    /// The operating system's.
    pub fn watch(&self, folder: &Path) -> io::Result<()> {
        let made = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
        // Held meanwhile: what it tells of is found when it is.
        let mut folders = lock(&self.folders);
        let watch = self.inotify.get_ref().0.add_watch(folder, made)?;
        folders.entry(watch).or_insert_with(|| folder.to_owned());
        Ok(())
    }

    /// The next that are made.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn next(&self) -> io::Result<Vec<PathBuf>> {
        loop {
            let events = self
                .inotify
                .async_io(Interest::READABLE, |inotify| Ok(inotify.0.read_events()?))
                .await?;
            let mut folders = lock(&self.folders);
            let mut made = Vec::new();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    folders.remove(&event.wd);
                } else if event.mask.contains(AddWatchFlags::IN_ISDIR)
                    && let (Some(folder), Some(name)) = (folders.get(&event.wd), event.name)
                {
                    made.push(folder.join(name));
                }
            }
            if !made.is_empty() {
                return Ok(made);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::Arrivals;

    #[tokio::test]
    async fn folders_that_are_made_are_told_at_once_and_files_arent() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        fs::create_dir(&first).unwrap();
        let arrivals = Arrivals::new().unwrap();
        for _ in 0..2 {
            arrivals.watch(folder.path()).unwrap();
        }
        arrivals.watch(&first).unwrap();
        assert!(arrivals.watch(&second).is_err());
        fs::write(first.join("file"), "").unwrap();
        fs::create_dir(first.join("inner")).unwrap();
        assert_eq!(arrivals.next().await.unwrap(), [first.join("inner")]);
        fs::remove_dir_all(&first).unwrap();
        fs::create_dir(&second).unwrap();
        assert_eq!(arrivals.next().await.unwrap(), [second]);
        assert_eq!(arrivals.folders.lock().unwrap().len(), 1);
        let more = tokio::time::timeout(Duration::from_millis(50), arrivals.next()).await;
        assert!(more.is_err());
    }
}
