//! The index's seal: what the index was when a daemon closed it, signed with the journal's key.
//!
//! sled panics on some damage and believes other damage, so it is only given what is byte for byte what it left
//! behind, and only where that is of these segments. Without a seal, or with one that doesn't fit, the index is
//! made anew from the segments.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use super::{
    checkpoint::{Key, PublicKey},
    disk::{Disk, Local},
};

/// First line of every seal, with the version of what is in the index.
const ORIGIN: &str = "interceptor/index 4";

/// Bytes that have a digest of their own, so that a change is told where it is.
const PART_BYTES: usize = 1 << 20;

/// Where the index is.
pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("index")
}

fn path(directory: &Path) -> PathBuf {
    directory.join("index.seal")
}

/// What is wrong with an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    /// The file.
    pub(super) file: String,
    /// Where in it.
    pub(super) offset: u64,
    /// What.
    pub(super) what: &'static str,
}

/// What a seal says of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sealed {
    /// There is none: the daemon runs, or was killed.
    Not,
    /// It is as it was closed, before the record with this number.
    Whole(u64),
    /// It is not what was sealed.
    Broken(Broken),
}

/// Seals the index of `directory`, which knows every record before `next`.
///
/// # Errors
/// Where it can't be read, or the seal not be written.
pub(super) fn set(directory: &Path, key: &Key, next: u64) -> io::Result<()> {
    let mut text = format!("{ORIGIN}\n{next}\n");
    for part in parts(directory)? {
        text.push_str(&part);
        text.push('\n');
    }
    Local.replace(&path(directory), key.note(&text).as_bytes())
}

/// Takes the seal away: what follows changes the index.
///
/// # Errors
/// Where it can't be.
pub(super) fn lift(directory: &Path) -> io::Result<()> {
    Local.remove_if_there(&path(directory))
}

/// Whether the index of `directory` is what was sealed with `key`.
pub(super) fn check(directory: &Path, key: &PublicKey) -> Sealed {
    let broken = |file: &str, offset, what| {
        let file = file.to_owned();
        Sealed::Broken(Broken { file, offset, what })
    };
    let note = match fs::read_to_string(path(directory)) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Sealed::Not,
        Err(_) => return broken("index.seal", 0, "it can't be read"),
    };
    let Ok(text) = key.text(&note) else {
        return broken(
            "index.seal",
            0,
            "it is not what this journal's key has signed",
        );
    };
    let mut lines = text.lines();
    let next = match (lines.next(), lines.next().map(str::parse)) {
        (Some(ORIGIN), Some(Ok(next))) => next,
        _ => return broken("index.seal", 0, "it is not a seal"),
    };
    let Ok(there) = parts(directory) else {
        return broken("index", 0, "it can't be read");
    };
    let mut there = there.iter().map(String::as_str);
    loop {
        let (sealed, found) = (lines.next(), there.next());
        if sealed == found {
            match sealed {
                Some(_) => continue,
                None => return Sealed::Whole(next),
            }
        }
        // The first that differs; where one ends earlier, what is missing or too much.
        let (file, offset) = sealed.or(found).map_or(("", 0), place);
        let what = "it is not what it was when the daemon closed it; the next start makes it anew";
        return broken(&format!("index/{file}"), offset, what);
    }
}

/// The file and the offset that a line of a seal is about.
fn place(line: &str) -> (&str, u64) {
    let mut words = line.rsplitn(3, ' ').skip(1);
    let offset = words.next().and_then(|word| word.parse().ok());
    (words.next().unwrap_or_default(), offset.unwrap_or(0))
}

/// A line for each part of each file: its name, where the part begins, its digest.
fn parts(directory: &Path) -> io::Result<Vec<String>> {
    let root = folder(directory);
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort_unstable();
    let mut lines = Vec::new();
    for path in files {
        let name = path.strip_prefix(&root).unwrap_or(&path).display();
        let mut file = fs::File::open(&path)?;
        let mut offset = 0;
        loop {
            let mut part = Vec::new();
            file.by_ref()
                .take(PART_BYTES as u64)
                .read_to_end(&mut part)?;
            if part.is_empty() && offset > 0 {
                break;
            }
            let digest = hex::encode(digest::digest(&digest::SHA256, &part));
            lines.push(format!("{name} {offset} {digest}"));
            offset += part.len();
            if part.len() < PART_BYTES {
                break;
            }
        }
    }
    Ok(lines)
}
