//! Copies in a folder: a disk of another host's, most likely, which may not be there at times.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{
    SMALL_BYTES_MAX,
    piece::{self, Piece, Sha256},
};

/// What every copy has, and what shows that the folder is still the one that it was.
const MARK: &str = "journal.pub";

/// A folder with a copy.
#[derive(Debug, Clone)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Bytes of the file `name`, where there is one.
    pub(super) fn length(&self, name: &str) -> Result<Option<u64>, String> {
        self.is_there()?;
        let path = self.0.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => Ok(Some(found.len())),
            Ok(_) => Err(format!("{} is no file", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(said(&path, &error)),
        }
    }

    /// What the disk holds of the file `name`, not what this host remembers of it.
    pub(super) fn sha256(&self, name: &str) -> Result<Option<Sha256>, String> {
        let path = self.0.join(name);
        let read = || {
            let mut file = File::open(&path)?;
            // Advice: where it isn't taken what is remembered is what was written.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            piece::sha256_of(&mut file)
        };
        match read() {
            Ok(sha256) => Ok(Some(sha256)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(said(&path, &error)),
        }
    }

    /// What is in the small file `name`, where there is one.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        self.is_there()?;
        let path = self.0.join(name);
        let read = || {
            let mut bytes = Vec::new();
            let file = File::open(&path)?;
            file.take(SMALL_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if io::Error::kind(&error) == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(said(&path, &error)),
        }
    }

    /// Has the file be there, all of it or nothing, also after a power failure.
    pub(super) fn put(&self, piece: &Piece) -> Result<(), String> {
        self.is_there()?;
        if piece.name.contains('/') && !self.0.join(MARK).exists() {
            return Err(format!(
                "{} isn't what it was: the copy that was in it is gone. If it is to begin anew, remove what is remembered of it below `shipped` in the state folder",
                self.0.display()
            ));
        }
        let path = self.0.join(&piece.name);
        let folder = path.parent().unwrap_or(&self.0);
        if folder != self.0 {
            make(folder).map_err(|error| said(folder, &error))?;
        }
        let mut draft = path.clone().into_os_string();
        draft.push(".part");
        let draft = PathBuf::from(draft);
        let written = write(&draft, piece)
            .and_then(|()| std::fs::rename(&draft, &path))
            .and_then(|()| File::open(folder)?.sync_all());
        written.map_err(|error| {
            // What has no room there isn't left to take it from others.
            let _ = std::fs::remove_file(&draft);
            said(&path, &error)
        })
    }

    /// Whether there is such a folder: one that isn't mounted is not made in its place, on this host's own disk.
    fn is_there(&self) -> Result<(), String> {
        match std::fs::metadata(&self.0) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(format!("{} is no folder", self.0.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(format!(
                "there is no folder {}: make it, or mount what belongs there",
                self.0.display()
            )),
            Err(error) => Err(said(&self.0, &error)),
        }
    }
}

fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn write(draft: &Path, piece: &Piece) -> io::Result<()> {
    // A new file each time: of one whose sync has failed the system may believe that it is on disk.
    match std::fs::remove_file(draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    let mut failed = None;
    piece.read(|part| {
        failed = file.write_all(&part).err();
        failed.is_none()
    })?;
    match failed {
        Some(error) => Err(error),
        None => file.sync_all(),
    }
}

fn said(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Folder(folder.path().join("mnt"));
        let piece = Piece::text("journal.pub", b"k".to_vec());
        let error = missing.put(&piece).unwrap_err();
        assert!(error.contains("mount what belongs there"), "{error}");
        assert!(!missing.0.exists());
        // And one in whose place there is an empty one gets nothing.
        let empty = Folder(folder.path().to_owned());
        let segment = Piece::text("segments/1.seg", b"s".to_vec());
        let error = empty.put(&segment).unwrap_err();
        assert!(error.contains("isn't what it was"), "{error}");
        empty.put(&piece).unwrap();
        empty.put(&segment).unwrap();
        assert_eq!(empty.length("segments/1.seg").unwrap(), Some(1));
        assert_eq!(
            empty.sha256("segments/1.seg").unwrap(),
            Some(segment.sha256)
        );
        assert_eq!(empty.read("journal.pub").unwrap(), Some(b"k".to_vec()));
        assert_eq!(empty.length("segments/2.seg").unwrap(), None);
        assert_eq!(empty.sha256("segments/2.seg").unwrap(), None);
    }

    #[test]
    fn what_a_crash_has_left_half_written_is_no_copy() {
        let folder = tempfile::tempdir().unwrap();
        let to = Folder(folder.path().to_owned());
        std::fs::write(folder.path().join("checkpoint.part"), b"half").unwrap();
        assert_eq!(to.length("checkpoint").unwrap(), None);
        to.put(&Piece::text("checkpoint", b"whole".to_vec()))
            .unwrap();
        assert_eq!(to.read("checkpoint").unwrap(), Some(b"whole".to_vec()));
        assert!(!folder.path().join("checkpoint.part").exists());
    }
}
