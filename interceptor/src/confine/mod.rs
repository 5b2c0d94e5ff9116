//! What a launched agent can't do: leave its cgroup, reach past the hooks, or have somebody outside do it.
//!
//! Two steps. [`view`] gives this process a view of the host without the ways out, while it still may mount.
//! [`give_up`] takes what would undo that, or needs no file to get out: in this order Landlock and seccomp
//! (both while this is root, since setuid programs may be allowed), the user, capabilities, new privileges.
//! A step that fails ends the launch. What somebody exempts by a flag is on record.

mod capabilities;
mod descriptors;
mod devices;
mod engines;
mod exemptions;
mod found;
mod init;
mod kernel_files;
mod mountinfo;
mod mounts;
mod places;
mod runtime;
mod scope;
mod seccomp;
mod sockets;
mod stand_ins;

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, setgid, setuid},
};
use serde::{Deserialize, Serialize};

pub use self::{
    descriptors::close as close_descriptors,
    engines::{StandIn, engines},
    exemptions::{Allowance, Exemptions},
    init::{Ended, attend},
};
pub(crate) use self::{engines::is_engine, scope::unscoped};
use self::{found::Found, mounts::NONE};

/// Who is confined.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The user it runs as.
    pub uid: Uid,
    /// The user's group.
    pub gid: Gid,
    /// The user's home.
    pub home: Option<&'a Path>,
}

/// The daemon's own files, which are no agent's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// What an agent must not see: state, control socket, secrets.
    pub hidden: Vec<PathBuf>,
    /// What in there it sees all the same: the authority's certificate.
    pub shown: Vec<PathBuf>,
    /// What it must not change: policies, configuration, the program.
    pub read_only: Vec<PathBuf>,
}

/// Gives this process, and what it becomes, a view of the host without the ways out, with `stand_ins` in the places
/// of container engines' sockets. Tells what it couldn't cover and why.
///
/// # Errors
/// Where a part of it fails; nothing must be launched then.
pub fn view(
    subject: &Subject<'_>,
    exemptions: &Exemptions,
    places: &Places,
    stand_ins: &[StandIn],
) -> io::Result<Vec<String>> {
    let here = std::env::current_dir();
    let umask_before = umask(Mode::from_bits_truncate(0o022));
    // System V's and POSIX's message queues, semaphores and shared memory of others are ways out, too.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)
        .map_err(|error| failed("a view of its own", error))?;
    // What is mounted here stays here; what the host mounts is still seen.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(|error| failed("a view of its own", error))?;

    // Facts about the host first: its processes and devices are out of sight soon.
    let null = Found::at(Path::new("/dev/null"))?;
    let mounts = mountinfo::read()?;
    let listening = sockets::listening()?;
    let terminal = devices::terminal();
    let shown_devices = devices::find(&exemptions.devices)?;
    let allowed = sockets::find(exemptions, stand_ins)?;
    let stand_in = stand_ins::find(stand_ins)?;

    if !exemptions.allows(Allowance::Devices) {
        // Device files wherever they are; those of /dev are made anew.
        mounts::set(
            Path::new("/"),
            libc::MOUNT_ATTR_NODEV,
            0,
            mounts::Depth::Below,
        )
        .map_err(|error| context("devices can't be taken away", &error))?;
    }
    kernel_files::guard(&mounts, &null)?;
    places::guard(places, &mounts, &null)?;
    if !exemptions.allows(Allowance::Schedules) {
        places::guard_schedules(subject)?;
    }
    if !exemptions.allows(Allowance::Sockets) {
        sockets::cover(&listening, &allowed, &mounts, &null)?;
        sockets::cover_folders(subject)?;
        runtime::replace(subject)?;
        stand_ins::cover(stand_ins, &mounts)?;
    }
    if !exemptions.allows(Allowance::Devices) {
        devices::replace(terminal.as_ref(), &shown_devices)?;
    }
    kernel_files::replace_proc(&null)?;
    sockets::show(&allowed)?;
    stand_ins::show(stand_in.as_ref(), stand_ins)?;

    umask(umask_before);
    Ok(Vec::from_iter(go_back(here)?))
}

/// Gives up, for this process and all that come of it, what an agent must not have.
///
/// # Errors
/// Where a part of it fails; nothing must be launched then.
pub fn give_up(subject: &Subject<'_>, exemptions: &Exemptions) -> io::Result<Vec<String>> {
    let mut problems = Vec::new();
    if !exemptions.allows(Allowance::Sockets) {
        problems.extend(scope::enter()?);
    }
    seccomp::enter(exemptions)?;
    capabilities::bound(&exemptions.capabilities)?;
    setgid(subject.gid).map_err(|error| failed("take on the user's group", error))?;
    setuid(subject.uid).map_err(|error| failed("become the user", error))?;
    capabilities::keep(&exemptions.capabilities)?;
    if !exemptions.allows(Allowance::Setuid) {
        nix::sys::prctl::set_no_new_privs()
            .map_err(|error| failed("give up new privileges", error))?;
    }
    Ok(problems)
}

/// The working folder again, as it is seen now: the process still stands in what may have been covered.
fn go_back(here: io::Result<PathBuf>) -> io::Result<Option<String>> {
    std::env::set_current_dir("/")?;
    let Ok(here) = here else {
        return Ok(Some(
            "the working folder is gone, so the command starts in /".to_owned(),
        ));
    };
    Ok(std::env::set_current_dir(&here).err().map(|error| {
        format!(
            "{} can't be shown to the command ({error}), so it starts in /",
            here.display()
        )
    }))
}

fn failed(what: &str, error: nix::errno::Errno) -> io::Error {
    context(&format!("it can't have or do: {what}"), &error.into())
}

fn context(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
