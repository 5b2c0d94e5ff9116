//! A /run of the agent's own. Services put their sockets there, and remove and make them anew when they
//! restart: a mount on a socket or on its folder goes with it, so the whole is replaced and not its parts.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use super::{
    Subject, context,
    found::{self, Found},
    mounts,
};

const RUNTIME: [&str; 2] = ["/run", "/var/run"];

/// What stays in sight, for programs read files there: removable media, secrets that containers are given.
const SHOWN: [&str; 2] = ["media", "secrets"];

/// What isn't there at all: programs ask whether it is to learn whether systemd is, and each user has one.
const LEFT_OUT: [&str; 2] = ["systemd", "user"];

/// Bounds of what is made anew.
const FOLDERS_MAX: usize = 1_024;
const DEPTH_MAX: usize = 3;

/// Replaces it by empty folders of the same names and owners, so that servers of the agent's own find
/// theirs, and with the links and the few files that are for everybody.
pub(super) fn replace(subject: &Subject<'_>) -> io::Result<()> {
    for root in RUNTIME.map(Path::new) {
        // The second is a link to the first, mostly.
        let Some(old) = found::if_there(Found::named(root))? else {
            continue;
        };
        if old.is_dir() {
            one(root, &old, subject)?;
        }
    }
    Ok(())
}

fn one(root: &Path, old: &Found, subject: &Subject<'_>) -> io::Result<()> {
    let files = linked_files(root);
    mounts::tmpfs(root, "mode=0755,size=64m,nr_inodes=16k")
        .map_err(|error| context(&format!("{}", root.display()), &error.into()))?;
    let mut left = FOLDERS_MAX;
    copy(&old.link(), root, 0, &mut left)?;
    let own = root.join("user").join(subject.uid.to_string());
    fs::create_dir_all(&own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700))?;
    chown(&own, Some(subject.uid.as_raw()), Some(subject.gid.as_raw()))?;
    for file in files {
        if let Some(folder) = file.path().parent() {
            fs::create_dir_all(folder)?;
        }
        fs::File::create(file.path())?;
        mounts::bind(&file, file.path())?;
    }
    Ok(())
}

/// Files of it that links in /etc are for: `resolv.conf`, mostly.
fn linked_files(root: &Path) -> Vec<Found> {
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter_map(|entry| entry.path().canonicalize().ok())
        .filter(|path| path.starts_with(root))
        .filter_map(|path| Found::named(&path).ok())
        .filter(|found| found.metadata().is_file())
        .collect()
}

fn copy(old: &Path, new: &Path, depth: usize, left: &mut usize) -> io::Result<()> {
    // What can't be read, or goes while it is, isn't there.
    for entry in fs::read_dir(old).into_iter().flatten().flatten() {
        let (from, to) = (entry.path(), new.join(entry.file_name()));
        let Ok(metadata) = fs::symlink_metadata(&from) else {
            continue;
        };
        let is_one_of = |names: &[&str]| {
            depth == 0
                && names
                    .iter()
                    .any(|name| entry.file_name().as_os_str() == *name)
        };
        if metadata.is_symlink() {
            if let Ok(target) = fs::read_link(&from) {
                symlink(target, &to)?;
            }
        } else if metadata.is_dir() && !is_one_of(&LEFT_OUT) && *left > 0 {
            *left -= 1;
            fs::create_dir(&to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
            chown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
            if is_one_of(&SHOWN) {
                mounts::bind(&Found::named(&from)?, &to)?;
            } else if depth < DEPTH_MAX {
                copy(&from, &to, depth + 1, left)?;
            }
        }
    }
    Ok(())
}

/// Whether it is one of the folders that are replaced, where nothing of the host's is any more.
pub(super) fn is(path: &Path) -> bool {
    RUNTIME.map(Path::new).contains(&path)
}

/// Whether it is below one of the folders that are replaced.
pub(super) fn has(path: &Path) -> bool {
    RUNTIME.iter().map(PathBuf::from).any(|root| {
        path.starts_with(&root) && fs::symlink_metadata(&root).is_ok_and(|root| root.is_dir())
    })
}
