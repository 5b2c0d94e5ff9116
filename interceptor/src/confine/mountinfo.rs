//! What is mounted where, as `/proc/self/mountinfo` tells.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which file system, as `major:minor`.
    device: Box<str>,
    /// Which folder of it.
    root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
    /// The file system's type.
    pub(super) kind: Box<str>,
}

/// All mounts of this process's view, in the order in which they were made.
pub(super) fn read() -> io::Result<Vec<Mount>> {
    let bytes = fs::read("/proc/self/mountinfo")?;
    Ok(bytes
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// Other names of the same file, by mounts that show the same part of its file system.
pub(super) fn others(mounts: &[Mount], path: &Path) -> Vec<PathBuf> {
    let Some(here) = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
    else {
        return Vec::new();
    };
    let Ok(below) = path.strip_prefix(&here.point) else {
        return Vec::new();
    };
    let inside = here.root.join(below);
    let identity = |path: &Path| {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let own = identity(path);
    mounts
        .iter()
        .filter(|mount| mount.device == here.device)
        .filter_map(|mount| Some(join(&mount.point, inside.strip_prefix(&mount.root).ok()?)))
        .filter(|other| other != path && own.is_some() && identity(other) == own)
        .collect()
}

fn join(folder: &Path, below: &Path) -> PathBuf {
    // Joining nothing would end in a slash.
    if below.as_os_str().is_empty() {
        folder.to_owned()
    } else {
        folder.join(below)
    }
}

/// `36 35 98:0 /root /point options optional… - type source super-options`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?)?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?)?;
    Some(Mount {
        device,
        root,
        point,
        kind,
    })
}

fn text(field: &[u8]) -> Option<Box<str>> {
    std::str::from_utf8(field).ok().map(Into::into)
}

/// Space, tab, newline and backslash stand as three octal digits after a backslash.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = |digit: u8| digit.checked_sub(b'0').filter(|digit| *digit < 8);
        if let (b'\\', [a, b, c, after @ ..]) = (first, after)
            && let (Some(a @ ..4), Some(b), Some(c)) = (octal(*a), octal(*b), octal(*c))
        {
            bytes.push(a << 6 | b << 3 | c);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes_and_optional_fields() {
        let line = br"36 35 98:0 /mnt1 /a\040b rw,noatime master:1 shared:2 - ext4 /dev/root rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/a b"));
        assert_eq!((&*mount.kind, &*mount.device), ("ext4", "98:0"));
        assert!(parse(b"36 35 98:0 /").is_none());
        assert!(parse(b"").is_none());
    }

    #[test]
    fn everything_that_the_kernel_says_is_understood() {
        let lines = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(read().unwrap().len(), lines.lines().count());
    }
}
