//! Loading the kernel programs and attaching them, each by a pinned link.

use std::{error::Error, fs::File, path::Path, sync::OnceLock};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr,
        CgroupSockopt, ProgramError, ProgramType, SockOps,
        links::{FdLink, PinnedLink},
    },
    sys::{BpfHelper, is_helper_supported},
};

use super::{KernelError, Plain, counts, io_error, link, program};

/// The object that build.rs made.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interceptor-ebpf"));

/// Programs on an agent's cgroup by the types that attach them, in the order in which they are
/// attached: the guard of packets first, then those that answer before those that redirect.
const AGENT_PROGRAMS: [(&str, Kind); 18] = [
    ("agent_egress", Kind::Packets(CgroupSkbAttachType::Egress)),
    ("agent_ingress", Kind::Packets(CgroupSkbAttachType::Ingress)),
    ("agent_getpeername4", Kind::SockAddr),
    ("agent_getpeername6", Kind::SockAddr),
    ("agent_recvmsg4", Kind::SockAddr),
    ("agent_recvmsg6", Kind::SockAddr),
    ("agent_sockops", Kind::SockOps),
    ("agent_sock_create", Kind::Sock),
    ("agent_sock_release", Kind::Sock),
    ("agent_setsockopt", Kind::SockOpt),
    ("agent_post_bind4", Kind::Sock),
    ("agent_post_bind6", Kind::Sock),
    ("agent_sendmsg4", Kind::SockAddr),
    ("agent_sendmsg6", Kind::SockAddr),
    ("agent_connect4", Kind::SockAddr),
    ("agent_connect6", Kind::SockAddr),
    ("agent_connect_unix", Kind::Unix(program::UNIX_CONNECT)),
    ("agent_sendmsg_unix", Kind::Unix(program::UNIX_SENDMSG)),
];

/// Those of them that this kernel has hooks for: all, but for UNIX sockets before Linux 6.7.
fn programs() -> impl Iterator<Item = (&'static str, Kind)> {
    let has_unix = program::facts().absent.is_none();
    AGENT_PROGRAMS
        .into_iter()
        .filter(move |(_, kind)| has_unix || !matches!(kind, Kind::Unix(_)))
}

/// Their names, which their pins have too.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    programs().map(|(name, _)| name)
}

const DAEMON_PROGRAM: &str = "daemon_sockops";

/// Maps that a restarted daemon adopts. All programs share them, but for the counters, which each agent
/// has for itself.
pub(super) const MAPS: [&str; 13] = [
    "NOTES",
    "FLOWS",
    "SOURCES",
    "LISTENERS",
    "TOKENS",
    "SERVERS",
    "SERVER_COUNTS",
    "PEERS",
    "UNIX_NAMES",
    "UNIX_FOLDERS",
    "HANDOVERS",
    "STATS",
    "EVENTS",
];

/// How a program is attached.
#[derive(Debug, Clone, Copy)]
enum Kind {
    SockAddr,
    /// To UNIX sockets, by this attach type.
    Unix(u32),
    Sock,
    SockOps,
    SockOpt,
    Packets(CgroupSkbAttachType),
}

fn refused(what: &str, error: &(dyn Error + 'static)) -> KernelError {
    let mut text = match error.downcast_ref() {
        Some(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => {
            // All of it is some hundred lines, for who mends the program.
            let log = verifier_log.to_string();
            tracing::debug!(what, log, "the verifier refuses a program");
            format!("{io_error}: {}", program::last_words(log.as_bytes()))
        }
        _ => error.to_string(),
    };
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

/// Whom programs are loaded for. The default is nobody.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bearer {
    /// The agent's number.
    pub(super) agent: u64,
    /// The id of its cgroup.
    pub(super) cgroup_id: u64,
    /// What it may do with UNIX sockets that nobody has allowed, of [`abi::unix`].
    pub(super) unix: u32,
}

/// Loads the object for an agent, with the maps that are pinned in `pins`.
pub(super) fn load(pins: &Path, bearer: Bearer) -> Result<Ebpf, KernelError> {
    let Bearer {
        agent,
        cgroup_id,
        unix,
    } = bearer;
    let layout = Plain(program::facts().layout);
    let setter_is_told = u32::from(setter_is_told());
    let mut loader = EbpfLoader::new();
    loader.override_global("AGENT", &agent, true);
    loader.override_global("CGROUP", &cgroup_id, true);
    loader.override_global("UNIX", &unix, true);
    loader.override_global("UNIX_LAYOUT", &layout, true);
    loader.override_global("SETTER_IS_TOLD", &setter_is_told, true);
    for map in MAPS {
        let name = if map == "STATS" {
            counts::pin_name(agent)
        } else {
            map.to_owned()
        };
        loader.map_pin_path(map, pins.join(name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| refused("loading the kernel programs", &error))
}

/// Whether the kernel tells a program on socket options which process sets one (Linux 6.1), found out once.
pub(super) fn setter_is_told() -> bool {
    static TOLD: OnceLock<bool> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let told = is_helper_supported(
            ProgramType::CgroupSockopt,
            BpfHelper::BPF_FUNC_get_current_pid_tgid,
        );
        // Not knowing costs little: a record then names who used the socket last.
        told.unwrap_or(false)
    })
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
    for (name, kind) in programs() {
        attach(object, name, kind, cgroup, &pins.join(name))?;
    }
    Ok(())
}

/// Tries to attach each program, the daemon's own among them, to `cgroup`.
pub(super) fn attach_each(
    object: &mut Ebpf,
    cgroup: &Path,
    pins: &Path,
) -> Vec<(&'static str, Result<(), String>)> {
    programs()
        .chain([(DAEMON_PROGRAM, Kind::SockOps)])
        .map(|(name, kind)| {
            let attached = attach(object, name, kind, cgroup, &pins.join(name));
            (name, attached.map_err(|error| error.to_string()))
        })
        .collect()
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
    if let Kind::Unix(attach_type) = kind {
        let program = program::load(OBJECT, object, name, attach_type)?;
        return link::attach(program, &folder, attach_type, pin)
            .map_err(|error| refused(&what, &error));
    }
    let program = object.program_mut(name).ok_or_else(|| KernelError::Bpf {
        what: what.clone(),
        error: "it is not in the object".to_owned(),
    })?;
    let bad = |error: &(dyn Error + 'static)| refused(&what, error);
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
        Kind::Unix(_) => return Err(bad(&std::io::Error::from(std::io::ErrorKind::Unsupported))),
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
        Kind::SockOpt => {
            let program: &mut CgroupSockopt = program.try_into().map_err(|error| bad(&error))?;
            program.load().map_err(|error| bad(&error))?;
            let program = program.fd().map_err(|error| bad(&error))?;
            return link::attach(program, &folder, link::CGROUP_SETSOCKOPT, pin)
                .map_err(|error| bad(&error));
        }
        Kind::Packets(direction) => {
            let program: &mut CgroupSkb = program.try_into().map_err(|error| bad(&error))?;
            program.load().map_err(|error| bad(&error))?;
            let id = program
                .attach(folder, direction, CgroupAttachMode::Single)
                .map_err(|error| bad(&error))?;
            let link = program.take_link(id).map_err(|error| bad(&error))?;
            link.try_into().map_err(|error| bad(&error))?
        }
    };
    link.pin(pin).map(drop).map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya_obj::VerifierLog;

    use super::*;

    #[test]
    fn of_what_the_verifier_says_people_are_told_the_end() {
        let mut log = "0: (bf) r6 = r1\n".repeat(500);
        log.push_str("fun()\n277: (85) call bpf_get_current_pid_tgid#14\nunknown func\n");
        let error = ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(libc::EINVAL),
            verifier_log: VerifierLog::new(log),
        };
        let told = refused("attaching daemon_sockops", &error).to_string();
        assert!(told.contains("Invalid argument"), "{told}");
        assert!(
            told.contains("call bpf_get_current_pid_tgid#14; unknown func"),
            "{told}"
        );
        assert!(told.len() < 400, "{told}");
    }
}
