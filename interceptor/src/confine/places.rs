//! Files that are nobody's business inside, and files by which an agent would have others act for it.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use super::{
    Places, Subject, context,
    found::{self, Found},
    mountinfo::{self, Mount},
    mounts,
};

/// Whose jobs run outside of any agent's cgroup.
const SCHEDULES: [&str; 17] = [
    "/etc/anacrontab",
    "/etc/at.allow",
    "/etc/cron.allow",
    "/etc/cron.d",
    "/etc/cron.daily",
    "/etc/cron.hourly",
    "/etc/cron.monthly",
    "/etc/cron.weekly",
    "/etc/crontab",
    "/etc/incron.d",
    "/etc/init.d",
    "/etc/systemd",
    "/etc/xdg/autostart",
    "/var/spool/anacron",
    "/var/spool/at",
    "/var/spool/cron",
    "/var/spool/incron",
];

/// The same, below a user's home.
const SCHEDULES_AT_HOME: [&str; 4] = [
    ".config/autostart",
    ".config/systemd",
    ".local/share/dbus-1/services",
    ".local/share/systemd",
];

/// Guards the daemon's own files, under all names that they have.
pub(super) fn guard(places: &Places, all: &[Mount], null: &Found) -> io::Result<()> {
    for path in names(&places.read_only, all)? {
        if let Some(found) = found::if_there(Found::at(&path))? {
            mounts::read_only(&found)?;
        }
    }
    // Held while they are in sight.
    let mut shown = Vec::new();
    for path in names(&places.shown, &[])? {
        shown.extend(found::if_there(Found::at(&path))?);
    }
    for path in names(&places.hidden, all)? {
        if let Some(found) = found::if_there(Found::at(&path))? {
            let within = shown.iter().filter(|shown| shown.path().starts_with(&path));
            mounts::cover_but(&found, null, within)?;
        }
    }
    Ok(())
}

/// What starts programs outside can't be written to. What doesn't exist yet can be made: see the README.
pub(super) fn guard_schedules(subject: &Subject<'_>) -> io::Result<()> {
    let system = SCHEDULES.iter().map(PathBuf::from);
    let home = subject.home.filter(|home| home.is_absolute());
    let at_home = home
        .into_iter()
        .flat_map(|home| SCHEDULES_AT_HOME.iter().map(|below| home.join(below)));
    for path in system.chain(at_home) {
        if let Some(found) = found::if_there(Found::at(&path))? {
            mounts::read_only(&found)?;
        }
    }
    Ok(())
}

/// Where the paths lead, and what else leads there.
fn names(paths: &[PathBuf], all: &[Mount]) -> io::Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    for path in paths {
        match path.canonicalize() {
            Ok(path) => {
                names.extend(mountinfo::others(all, &path));
                names.insert(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    Ok(names)
}

fn unreadable(path: &Path, error: &io::Error) -> io::Error {
    context(&format!("{} can't be guarded", path.display()), error)
}
