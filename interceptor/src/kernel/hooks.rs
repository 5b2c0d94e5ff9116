//! Loading the kernel programs and attaching them, each by a pinned link.

use std::{fs::File, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, SockOps,
        links::{FdLink, PinnedLink},
    },
};

use super::{KernelError, io_error};

/// The object that build.rs made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interceptor-ebpf"));

/// Programs on an agent's cgroup by the types that attach them, in the order in which they are
/// attached: those that answer come before those that redirect.
pub(super) const AGENT_PROGRAMS: [(&str, Kind); 10] = [
    ("agent_getpeername4", Kind::SockAddr),
    ("agent_getpeername6", Kind::SockAddr),
    ("agent_sockops", Kind::SockOps),
    ("agent_sock_create", Kind::Sock),
    ("agent_post_bind4", Kind::Sock),
    ("agent_post_bind6", Kind::Sock),
    ("agent_sendmsg4", Kind::SockAddr),
    ("agent_sendmsg6", Kind::SockAddr),
    ("agent_connect4", Kind::SockAddr),
    ("agent_connect6", Kind::SockAddr),
];

const DAEMON_PROGRAM: &str = "daemon_sockops";
const MAPS: [&str; 5] = ["NOTES", "FLOWS", "LISTENERS", "STATS", "EVENTS"];

/// How a program is attached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    SockAddr,
    Sock,
    SockOps,
}

fn refused(what: &str, error: &dyn std::error::Error) -> KernelError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return KernelError::Privilege {
            what: what.to_owned(),
        };
    }
    KernelError::Bpf {
        what: what.to_owned(),
        error: text,
    }
}

/// Loads the object for agent number `agent`, with the maps that are pinned in `pins`.
pub(super) fn load(pins: &Path, agent: u64) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("AGENT", &agent, true);
    for map in MAPS {
        loader.map_pin_path(map, pins.join(map));
    }
    loader
        .load(OBJECT)
        .map_err(|error| refused("loading the kernel programs", &error))
}

/// Attaches the program that receives notes to the daemon's own cgroup, unless it already is.
pub(super) fn attach_daemon(
    object: &mut Ebpf,
    cgroup: &Path,
    pins: &Path,
) -> Result<(), KernelError> {
    let pin = pins.join(DAEMON_PROGRAM);
    if pin.exists() && PinnedLink::from_pin(&pin).is_ok() {
        // It may hang on a cgroup that was removed and made again: a fresh link costs nothing.
        let old = pins.join(format!("{DAEMON_PROGRAM}_old"));
        let _ = std::fs::remove_file(&old);
        std::fs::rename(&pin, &old).map_err(io_error("replacing a pin", &pin))?;
        attach(object, DAEMON_PROGRAM, Kind::SockOps, cgroup, &pin)?;
        return std::fs::remove_file(&old).map_err(io_error("removing a pin", &old));
    }
    attach(object, DAEMON_PROGRAM, Kind::SockOps, cgroup, &pin)
}

/// Attaches all of an agent's programs to its cgroup, pinned below `pins`.
pub(super) fn attach_agent(
    object: &mut Ebpf,
    cgroup: &Path,
    pins: &Path,
) -> Result<(), KernelError> {
    for (name, kind) in AGENT_PROGRAMS {
        attach(object, name, kind, cgroup, &pins.join(name))?;
    }
    Ok(())
}

fn attach(
    object: &mut Ebpf,
    name: &str,
    kind: Kind,
    cgroup: &Path,
    pin: &Path,
) -> Result<(), KernelError> {
    let what = format!("attaching {name}");
    let folder = File::open(cgroup).map_err(io_error("opening the cgroup", cgroup))?;
    let program = object.program_mut(name).ok_or_else(|| KernelError::Bpf {
        what: what.clone(),
        error: "it is not in the object".to_owned(),
    })?;
    let bad = |error: &dyn std::error::Error| refused(&what, error);
    let link: FdLink = match kind {
        Kind::SockAddr => {
            let program: &mut CgroupSockAddr = program.try_into().map_err(|error| bad(&error))?;
            program.load().map_err(|error| bad(&error))?;
            let id = program
                .attach(folder, CgroupAttachMode::Single)
                .map_err(|error| bad(&error))?;
            let link = program.take_link(id).map_err(|error| bad(&error))?;
            link.try_into().map_err(|error| bad(&error))?
        }
        Kind::Sock => {
            let program: &mut CgroupSock = program.try_into().map_err(|error| bad(&error))?;
            program.load().map_err(|error| bad(&error))?;
            let id = program
                .attach(folder, CgroupAttachMode::Single)
                .map_err(|error| bad(&error))?;
            let link = program.take_link(id).map_err(|error| bad(&error))?;
            link.try_into().map_err(|error| bad(&error))?
        }
        Kind::SockOps => {
            let program: &mut SockOps = program.try_into().map_err(|error| bad(&error))?;
            program.load().map_err(|error| bad(&error))?;
            let id = program
                .attach(folder, CgroupAttachMode::Single)
                .map_err(|error| bad(&error))?;
            let link = program.take_link(id).map_err(|error| bad(&error))?;
            link.try_into().map_err(|error| bad(&error))?
        }
    };
    link.pin(pin).map(drop).map_err(|error| bad(&error))
}
