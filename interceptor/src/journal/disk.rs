//! What the evidence needs of a disk: few operations, each of which may fail.
//!
//! Everything that evidence rests on goes through [`Disk`]: segments, checkpoints, the key. The daemon's is
//! [`Local`], whose operations are the system's; tests have one in memory that fails, tears and forgets as real
//! ones do, at any of them.

use std::{
    fmt::Debug,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A disk with folders, files and names.
pub(super) trait Disk: Clone + Debug + Send + 'static {
    /// A file that is open.
    type File: Content;

    /// Opens a file that is there, to read it.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file that is there, to write it.
    fn edit(&self, path: &Path) -> io::Result<Self::File>;

    /// Makes a file that wasn't there, for its owner alone.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// The names in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Gives a file another name; whoever had that one is gone. All at once or not at all.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Has the names in a folder outlive a power failure.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// All that is in a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Takes a file's name, if it is there.
    fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Has nothing be left of what a file says, if it is there: what the medium keeps of what was overwritten is beyond
    /// our reach.
    fn overwrite(&self, path: &Path) -> io::Result<()> {
        match self.edit(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => blank(&opened?),
        }
    }

    /// Has `path` hold `bytes`: whoever looks, also after a power failure, sees all of what was there or all of
    /// this. When it returns, it is this.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let draft = draft_of(path);
        // A new file each time: of one whose sync has failed the system may believe that it is on disk.
        self.remove_if_there(&draft)?;
        let file = self.create(&draft)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        self.rename(&draft, path)?;
        self.sync_folder(folder_of(path))
    }
}

/// What is in a file.
pub(super) trait Content: Debug + Send {
    /// Bytes in it.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` with what is from `offset` on.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`; after an error any of them may be there.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes it `length` bytes long.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Has what was written outlive a power failure. After an error nothing is known of what was written since
    /// the last time, and asking again proves nothing: the system may have dropped it and call it written.
    fn sync(&self) -> io::Result<()>;
}

/// The disks of this host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local;

impl Disk for Local {
    type File = File;

    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn edit(&self, path: &Path) -> io::Result<File> {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(folder)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

impl Content for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What all files in `folder` take of a disk of this host, in bytes: some have room ahead, some have holes.
///
/// # Errors
/// Where they can't be listed.
pub(crate) fn taken_by(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // What is gone by now takes nothing.
        let Ok(found) = entry.metadata() else {
            continue;
        };
        sum += match found.is_dir() {
            true => taken_by(&entry.path()).unwrap_or(0),
            false => found.blocks() * 512,
        };
    }
    Ok(sum)
}

/// Has nothing be left of what `file` says.
pub(super) fn blank<F: Content>(file: &F) -> io::Result<()> {
    let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
    // What is no key is taken for none, should it be seen like this.
    file.write_all_at(&vec![b'-'; length], 0)?;
    file.sync()
}

/// Where a file is made before it takes the place of `path`.
pub(super) fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".draft");
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Reads a file from its beginning on, for who wants a reader.
pub(super) struct Sequential<'a, F> {
    file: &'a F,
    length: u64,
    at: u64,
}

impl<'a, F: Content> Sequential<'a, F> {
    /// What is in `file` from `at` on.
    pub(super) fn from(file: &'a F, at: u64) -> io::Result<Self> {
        Ok(Self {
            file,
            length: file.length()?,
            at,
        })
    }
}

impl<F: Content> io::Read for Sequential<'_, F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = bytes.len().min(left);
        if let Some(part) = bytes.get_mut(..count) {
            self.file.read_exact_at(part, self.at)?;
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl<F: Content> io::Seek for Sequential<'_, F> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let place = match to {
            io::SeekFrom::Start(place) => Some(place),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            io::SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
