//! Unix sockets of others: who listens there would act for the agent, outside of its cgroup.
//!
//! All that have a path and exist at launch are covered one by one, and the folders where they are usually
//! made as a whole, for those that come later. Abstract ones have no path: see `scope`.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::{
    Exemptions, StandIn, Subject, context,
    found::{self, Found},
    mountinfo::{self, Mount},
    mounts, runtime,
};

/// Where displays have theirs. Made where they are missing, with the rights that the system gives them.
const DISPLAYS: [&str; 2] = ["/tmp/.X11-unix", "/tmp/.ICE-unix"];

/// Where in /tmp programs have theirs that run commands for whoever connects: tmux and Emacs, each with the
/// user's number, and both forms of screen.
const BY_USER: [&str; 2] = ["tmux-", "emacs"];
const SCREEN: [&str; 2] = ["screens", "uscreens"];

/// A socket that is bound to a path, as a network namespace's table tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Bound {
    /// The path as it was given: below the working folder, or another root, of who bound it.
    path: PathBuf,
    /// What descriptors of it lead to.
    inode: Box<str>,
}

/// Where all Unix sockets of the host may be that are bound to a path, in all network namespaces that have
/// processes: a path is reached from each of them.
pub(super) fn listening() -> io::Result<BTreeSet<PathBuf>> {
    let mut namespaces = BTreeSet::new();
    let mut roots = BTreeSet::new();
    let mut sockets = BTreeSet::new();
    for process in processes()? {
        // A process may end while it is looked at, and its sockets with it.
        let Ok(namespace) = fs::read_link(process.join("ns/net")) else {
            continue;
        };
        roots.extend(fs::read_link(process.join("root")));
        if namespaces.insert(namespace)
            && let Ok(table) = fs::read(process.join("net/unix"))
        {
            sockets.extend(table.split(|byte| *byte == b'\n').filter_map(bound));
        }
    }
    let (absolute, relative): (Vec<_>, Vec<_>) = sockets
        .into_iter()
        .partition(|socket| socket.path.is_absolute());
    let mut paths: BTreeSet<PathBuf> = absolute
        .iter()
        .filter_map(|socket| socket.path.strip_prefix("/").ok())
        .flat_map(|path| roots.iter().map(move |root| root.join(path)))
        .collect();
    if !relative.is_empty() {
        paths.extend(in_working_folders(&relative)?);
    }
    Ok(paths)
}

/// Where sockets are that were bound to by names in working folders, if those that have them are there still.
fn in_working_folders(sockets: &[Bound]) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for process in processes()? {
        let Ok(folder) = fs::read_link(process.join("cwd")) else {
            continue;
        };
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
        let links: BTreeSet<PathBuf> = descriptors
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .collect();
        let owned = sockets.iter().filter(|socket| {
            let link = format!("socket:[{}]", socket.inode);
            links.contains(Path::new(&link))
        });
        paths.extend(owned.map(|socket| folder.join(&socket.path)));
    }
    Ok(paths)
}

fn processes() -> io::Result<Vec<PathBuf>> {
    let is_number = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| is_number(&entry.file_name()))
        .map(|entry| entry.path())
        .collect())
}

/// `Num: RefCount Protocol Flags Type St Inode Path`, the path of any bytes. Those that accepted a connection
/// bear their listener's path, so a path is told several times.
fn bound(line: &[u8]) -> Option<Bound> {
    let mut rest = line;
    let mut column = || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let (field, after) = rest.split_at_checked(end)?;
        rest = after;
        Some(field)
    };
    // The heading has no number.
    column()?.strip_suffix(b":")?;
    let inode = std::iter::from_fn(column).nth(5)?;
    let inode = std::str::from_utf8(inode).ok()?.into();
    let path = rest.strip_prefix(b" ")?;
    // Abstract ones begin with it here; a file of such a name can be bound to, and is in the working folder.
    let is_path = !path.is_empty() && !path.starts_with(b"@");
    is_path.then(|| Bound {
        path: OsStr::from_bytes(path).into(),
        inode,
    })
}

/// The sockets, or folders of them, that stay: those that are allowed but for those that others stand in for.
pub(super) fn find(exemptions: &Exemptions, stand_ins: &[StandIn]) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for path in exemptions.sockets.iter().chain(&exemptions.unseen) {
        let refused = |error| {
            let what = format!("the socket {} can't be allowed", path.display());
            context(&what, &error)
        };
        let path = path.canonicalize().map_err(refused)?;
        if stand_ins.iter().all(|one| one.engine != path) {
            found.push(Found::named(&path).map_err(refused)?);
        }
    }
    Ok(found)
}

/// Covers those that exist.
pub(super) fn cover(
    listening: &BTreeSet<PathBuf>,
    allowed: &[Found],
    mounts: &[Mount],
    null: &Found,
) -> io::Result<()> {
    for path in listening {
        if allowed.iter().any(|found| path.starts_with(found.path())) {
            continue;
        }
        let names = mountinfo::others(mounts, path);
        for name in names
            .iter()
            .chain([path])
            .filter(|name| !runtime::has(name))
        {
            // What has this name by now may be anything, put there to have it covered: a file that a setuid
            // program reads would be as good as empty.
            if let Some(found) = reached(name)?
                && found.metadata().file_type().is_socket()
            {
                mounts::cover(&found, null)?;
            }
        }
    }
    Ok(())
}

/// What is there, where root can look: a user's own file system may keep it out.
fn reached(path: &Path) -> io::Result<Option<Found>> {
    match found::if_there(Found::named(path)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        found => found,
    }
}

/// Covers the folders where they are made. The agent's own servers can use them, among themselves.
pub(super) fn cover_folders(subject: &Subject<'_>) -> io::Result<()> {
    let tmux = PathBuf::from(format!("/tmp/tmux-{}", subject.uid));
    for folder in DISPLAYS {
        make(Path::new(folder), 0o1777, None)?;
    }
    make(&tmux, 0o700, Some(subject))?;
    let mut folders: BTreeSet<PathBuf> = DISPLAYS.iter().map(PathBuf::from).collect();
    folders.insert(tmux);
    folders.extend(SCREEN.iter().map(|name| Path::new("/tmp").join(name)));
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    folders.extend(
        entries
            .filter(|entry| is_by_user(&entry.file_name()))
            .map(|entry| entry.path()),
    );
    for folder in folders {
        // Never through a link: who made it would choose what the agent owns.
        if let Some(found) = found::if_there(Found::named(&folder))?
            && found.is_dir()
        {
            let like = found.metadata();
            mounts::own(&found, like.uid(), like.gid(), like.mode() & 0o7777)?;
        }
    }
    Ok(())
}

fn is_by_user(name: &OsStr) -> bool {
    BY_USER.iter().any(|prefix| {
        let user = name.as_bytes().strip_prefix(prefix.as_bytes());
        user.is_some_and(|user| !user.is_empty() && user.iter().all(u8::is_ascii_digit))
    })
}

/// Makes a folder in one where only its owner, root, can rename or remove it.
fn make(folder: &Path, mode: u32, owner: Option<&Subject<'_>>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(context(&format!("{}", folder.display()), &error)),
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
    let Some(owner) = owner else {
        return Ok(());
    };
    let (uid, gid) = (owner.uid.as_raw(), owner.gid.as_raw());
    std::os::unix::fs::lchown(folder, Some(uid), Some(gid))
}

/// Shows the allowed ones again where they were covered with all around them.
pub(super) fn show(allowed: &[Found]) -> io::Result<()> {
    let same = |found: &Found, other: &fs::Metadata| {
        (found.metadata().dev(), found.metadata().ino()) == (other.dev(), other.ino())
    };
    for found in allowed {
        let path = found.path();
        if fs::symlink_metadata(path).is_ok_and(|here| same(found, &here)) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if found.is_dir() {
            fs::create_dir_all(path)?;
        } else {
            fs::File::options().create(true).append(true).open(path)?;
        }
        mounts::bind(found, path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_programs_are_told_from_others_with_such_names() {
        for (name, is) in [
            ("tmux-1000", true),
            ("emacs0", true),
            ("tmux-", false),
            ("emacs-29.1", false),
            ("tmux-notes", false),
        ] {
            assert_eq!(is_by_user(OsStr::new(name)), is, "{name}");
        }
    }

    #[test]
    fn paths_are_read_with_spaces_and_others_left_out() {
        for (line, path) in [
            (
                "0000000000000000: 00000002 00000000 00010000 0001 01 22 /run/a b ",
                Some("/run/a b "),
            ),
            (
                "0000000000000000: 00000002 00000000 00000000 0002 01    22 /dev/log",
                Some("/dev/log"),
            ),
            (
                "0000000000000000: 00000002 00000000 00010000 0001 01 22 public/cleanup",
                Some("public/cleanup"),
            ),
            (
                "0000000000000000: 00000002 00000000 00010000 0001 01 22 @abstract",
                None,
            ),
            (
                "0000000000000000: 00000003 00000000 00000000 0001 03 25",
                None,
            ),
            (
                "Num       RefCount Protocol Flags    Type St Inode Path",
                None,
            ),
            ("", None),
        ] {
            let found = bound(line.as_bytes());
            let (seen, inode) = found.map(|found| (found.path, found.inode)).unzip();
            assert_eq!(seen, path.map(PathBuf::from), "{line}");
            assert!(inode.is_none_or(|inode| &*inode == "22"), "{line}");
        }
    }
}
