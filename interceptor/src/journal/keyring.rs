//! The files of a journal's key, while one takes the place of another.
//!
//! The order is what makes it safe to end at any moment. The new key is on disk, in `journal.key.next`, before anything
//! names it. With the record of the rotation on disk it is decided: before that a start destroys the new key, after it
//! a start goes on with it. Then the new key signs a checkpoint; only then the old one is overwritten and the new one
//! gets its name, and last `journal.pub` shows it. So a key that a start may need is never gone.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{
    JournalError,
    checkpoint::{self, Key},
    disk::{Disk, draft_of},
    io_error,
    succession::{STATEMENTS, notes},
};

fn path(directory: &Path) -> PathBuf {
    directory.join("journal.key")
}

fn next_path(directory: &Path) -> PathBuf {
    directory.join("journal.key.next")
}

/// The key in force of what a daemon has left, and one that was to follow it.
///
/// # Errors
/// Where the disk fails, or there is no key that can be used.
pub(super) fn open<D: Disk>(
    disk: &D,
    directory: &Path,
) -> Result<(Key, Option<Key>), JournalError> {
    let next = match disk.read(&next_path(directory)) {
        // One that isn't whole was never named.
        Ok(text) => String::from_utf8(text)
            .ok()
            .and_then(|text| Key::parse(text).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io_error("reading", &next_path(directory))(error)),
    };
    let Some(next) = next else {
        return Ok((Key::open(disk, directory)?, None));
    };
    let note = match disk.read(&checkpoint::path_of(directory)) {
        Ok(note) => note,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io_error("reading", directory)(error)),
    };
    // It signs nothing before it is in force.
    if next
        .public()
        .verify(&String::from_utf8_lossy(&note))
        .is_err()
    {
        return Ok((Key::open(disk, directory)?, Some(next)));
    }
    // What is seen of the checkpoint may not be there for good, and then the old key would be asked for.
    let finished = disk
        .sync_folder(directory)
        .and_then(|()| take_over(disk, directory));
    finished.map_err(io_error("replacing", &path(directory)))?;
    Ok((next, None))
}

/// Puts `next` where the next start finds it.
///
/// # Errors
/// Where the disk fails.
pub(super) fn prepare<D: Disk>(disk: &D, directory: &Path, next: &Key) -> io::Result<()> {
    disk.replace(&next_path(directory), next.secret().as_bytes())
}

/// Destroys a key that was prepared and never came into force.
///
/// # Errors
/// Where the disk fails; the next start tries again.
pub(super) fn discard<D: Disk>(disk: &D, directory: &Path) -> io::Result<()> {
    let next = next_path(directory);
    for path in [draft_of(&next), next] {
        disk.overwrite(&path)?;
        disk.remove_if_there(&path)?;
    }
    disk.sync_folder(directory)
}

/// Keeps `statement` beside the journal, behind those before it.
///
/// # Errors
/// Where the disk fails.
pub(super) fn state<D: Disk>(disk: &D, directory: &Path, statement: &str) -> io::Result<()> {
    let path = directory.join(STATEMENTS);
    let before = match disk.read(&path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut all = notes(&before);
    if !all.iter().any(|known| known == statement) {
        all.push(statement.to_owned());
    }
    disk.replace(&path, all.join("\n").as_bytes())
}

/// Destroys the key before and gives its name to the next, which has signed: what a disk keeps of what was overwritten
/// is beyond our reach.
///
/// # Errors
/// Where the disk fails. Both are where they can be found.
pub(super) fn take_over<D: Disk>(disk: &D, directory: &Path) -> io::Result<()> {
    let (path, next) = (path(directory), next_path(directory));
    match disk.open(&next) {
        Ok(_) => {
            disk.overwrite(&path)?;
            disk.rename(&next, &path)?;
        }
        // An attempt before has come as far, and may not have made sure of it.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    disk.sync_folder(directory)
}
