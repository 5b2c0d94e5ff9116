//! A /dev with what every program needs and nothing that is the host's: no disks, no memory, no terminals of
//! other people, no log socket.

use std::{
    fs,
    io::{self, IsTerminal as _},
    os::{
        fd::AsFd,
        unix::fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{Group, ttyname},
};

use super::{
    context,
    found::Found,
    mounts::{self, Depth},
};

const DEV: &str = "/dev";

/// Name, major and minor number.
const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    // Whoever opens it gets the terminal that it is started from.
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The terminal that the command is started from, if it is.
pub(super) fn terminal() -> Option<Found> {
    let name = |stream: &dyn AsFd| ttyname(stream.as_fd()).ok();
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let name = None
        .or_else(|| stdin.is_terminal().then(|| name(&stdin)).flatten())
        .or_else(|| stdout.is_terminal().then(|| name(&stdout)).flatten())
        .or_else(|| stderr.is_terminal().then(|| name(&stderr)).flatten())?;
    Found::at(&name).ok()
}

/// The devices that are asked for.
pub(super) fn find(paths: &[PathBuf]) -> io::Result<Vec<Found>> {
    let find = |path: &PathBuf| {
        if !path.starts_with(DEV) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not in {DEV}", path.display()),
            ));
        }
        Found::named(path).map_err(|error| context(&format!("{}", path.display()), &error))
    };
    paths.iter().map(find).collect()
}

/// Covers /dev by one of the agent's own.
pub(super) fn replace(terminal: Option<&Found>, shown: &[Found]) -> io::Result<()> {
    let dev = Path::new(DEV);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at(dev, "tmpfs", flags, "mode=0755,size=1m,nr_inodes=1k")?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_bits_truncate(0o666);
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor))
            .map_err(|error| context(&format!("{DEV}/{name} can't be made"), &error.into()))?;
        // Whatever the umask is.
        fs::set_permissions(path, fs::Permissions::from_mode(mode.bits()))?;
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(name))?;
    }
    let group = Group::from_name("tty").ok().flatten();
    let group = group.map_or(String::new(), |group| format!(",gid={}", group.gid));
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at(
        &dev.join("pts"),
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        &options,
    )?;
    mount_at(&dev.join("shm"), "tmpfs", harmless, "mode=1777")?;
    // A kernel can be without these queues.
    if mount_at(&dev.join("mqueue"), "mqueue", harmless, "").is_err() {
        fs::remove_dir(dev.join("mqueue"))?;
    }
    if let Some(terminal) = terminal {
        // `ttyname` looks for it in /dev, and its own name is of the host's terminals.
        show(terminal, &dev.join("console"))?;
    }
    for device in shown {
        if device.metadata().is_symlink() {
            symlink(fs::read_link(device.link())?, device.path())?;
        } else {
            show(device, device.path())?;
        }
    }
    Ok(())
}

fn show(found: &Found, at: &Path) -> io::Result<()> {
    place(found, at)?;
    mounts::bind(found, at)?;
    mounts::set(at, 0, libc::MOUNT_ATTR_NODEV, Depth::Here)
}

/// Something for `found` to be mounted on.
fn place(found: &Found, at: &Path) -> io::Result<()> {
    if let Some(folder) = at.parent() {
        fs::create_dir_all(folder)?;
    }
    if found.is_dir() {
        fs::create_dir_all(at)
    } else {
        fs::File::options()
            .create(true)
            .append(true)
            .open(at)
            .map(drop)
    }
}

fn mount_at(path: &Path, kind: &str, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some("interceptor"), path, Some(kind), flags, Some(options))
        .map_err(|error| context(&format!("{} can't be made", path.display()), &error.into()))
}
