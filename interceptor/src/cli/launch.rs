//! The hidden step between `run` and the command: enters the cgroup, gives up what an agent must not have, and
//! starts the command, as the first process of its process namespace.
//!
//! A process of its own, because all of that between fork and exec would have to be done without memory
//! allocation; here nothing else runs, and errors can be told.

use std::{
    ffi::{CString, OsString},
    fs::{self, File},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    errno::Errno,
    sys::{
        signal::SigSet,
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd::{Uid, User, getegid, geteuid, initgroups},
};

use super::{Outcome, display::count, failed::Failed, run::FORWARDED};
use crate::{
    confine::{self, Exemptions, Places, StandIn, Subject},
    trust,
};

/// Enter a cgroup and become a command
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(long)]
    as_user: Option<String>,
    /// What the command must not see
    #[arg(long)]
    hidden: Vec<PathBuf>,
    /// What in there it sees all the same
    #[arg(long)]
    shown: Vec<PathBuf>,
    /// What it must not change
    #[arg(long)]
    read_only: Vec<PathBuf>,
    /// A container engine's socket, and the folder and name of the daemon's that stands in for it
    #[arg(long, num_args = 3)]
    engine: Vec<OsString>,
    #[command(flatten)]
    exemptions: Exemptions,
    /// The certificate that the command is to trust, as PEM
    #[arg(long)]
    authority: Option<String>,
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Exit statuses that shells and `env` use for a command that can't be found or run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub(super) fn run(arguments: Arguments) -> Outcome {
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(Failed::because("no command is given"));
    };
    confine::close_descriptors(&arguments.exemptions.descriptors).map_err(unconfined)?;
    // Looked up outside of the agent's cgroup: a user database in the network is not the agent's.
    let user = arguments.as_user.as_deref().map(find_user).transpose()?;
    if let Some(user) = &user {
        let name = CString::new(user.name.as_str()).map_err(Failed::because)?;
        initgroups(&name, user.gid).map_err(|error| denied("take on the user's groups", error))?;
    }
    // The signals that `run` reads are blocked there, and that is inherited.
    SigSet::empty()
        .thread_set_mask()
        .map_err(|error| denied("unblock signals", error))?;
    let stand_ins = stand_ins(&arguments, user.as_ref())?;
    let mut command = Command::new(program);
    command.args(rest);
    if let Some(certificate) = &arguments.authority {
        let (identity, home) = match &user {
            Some(user) => (
                trust::Identity::new(user.uid, user.gid),
                Some(user.dir.clone()),
            ),
            None => (
                trust::Identity::own(),
                std::env::var_os("HOME").map(PathBuf::from),
            ),
        };
        let agent = trust::Agent {
            identity,
            home: home.as_deref(),
            program,
        };
        trust(&mut command, certificate, &agent);
    }
    enter(&arguments.cgroup)?;
    let home = match &user {
        Some(user) => Some(user.dir.clone()),
        None => std::env::var_os("HOME").map(PathBuf::from),
    };
    let subject = Subject {
        uid: user.as_ref().map_or_else(geteuid, |user| user.uid),
        gid: user.as_ref().map_or_else(getegid, |user| user.gid),
        home: home.as_deref(),
    };
    let places = Places {
        hidden: arguments.hidden,
        shown: arguments.shown,
        read_only: arguments.read_only,
    };
    begin_numbering();
    let unseen =
        confine::view(&subject, &arguments.exemptions, &places, &stand_ins).map_err(unconfined)?;
    let kept = confine::give_up(&subject, &arguments.exemptions).map_err(unconfined)?;
    for problem in unseen.into_iter().chain(kept) {
        super::display::message(&problem);
    }
    if let Some(user) = &user {
        command
            .env("HOME", &user.dir)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("SHELL", &user.shell);
    }
    let error = match confine::attend(&mut command, &FORWARDED) {
        Ok(ended) => {
            if ended.left > 0 {
                let left = count(ended.left, "process").replace("processs", "processes");
                super::display::message(&format!("the command left {left} running; killed"));
            }
            return Ok(super::run::code(ended.status));
        }
        Err(error) => error,
    };
    let code = if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    };
    super::display::message(&format!(
        "{} can't be run: {error}",
        program.to_string_lossy()
    ));
    Ok(ExitCode::from(code))
}

/// What stands in for container engines' sockets, of engines that the command's user could use itself: the daemon
/// connects as root.
fn stand_ins(arguments: &Arguments, user: Option<&User>) -> Result<Vec<StandIn>, Failed> {
    let identity = match user {
        Some(user) => trust::Identity::new(user.uid, user.gid),
        None => trust::Identity::own(),
    };
    let mut stand_ins = Vec::new();
    for three in arguments.engine.chunks(3) {
        let [engine, folder, name] = three else {
            return Err(Failed::because("an engine without what stands in for it"));
        };
        let engine = Path::new(engine);
        if let Err(error) = identity.assume(|| knock(engine))? {
            let whose = user.map_or("the command's user", |user| &*user.name);
            return Err(Failed::because(format!(
                "{whose} can't connect to {}: {}",
                engine.display(),
                error.desc()
            ))
            .with_remedy(
                "make the user a member of the group that may, or leave --allow-socket out",
            ));
        }
        stand_ins.push(StandIn {
            engine: engine.to_owned(),
            folder: folder.into(),
            name: name.to_string_lossy().into_owned(),
        });
    }
    Ok(stand_ins)
}

/// Whether this process may connect to `path`, and not whether anybody listens. `access` would ask for root, whose
/// process this is.
fn knock(path: &Path) -> nix::Result<()> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED | Errno::EAGAIN) => Ok(()),
        knocked => knocked,
    }
}

/// Has the command find `certificate` wherever its programs look for those they trust. What can't be
/// shown it there is said: TLS fails then where it would have worked, which is no reason not to start.
fn trust(command: &mut Command, certificate: &str, agent: &trust::Agent<'_>) {
    match trust::show(certificate, agent) {
        Ok(shown) => {
            command.envs(shown.environment);
            for problem in shown.problems {
                super::display::message(&format!("the local certificate authority: {problem}"));
            }
        }
        Err(error) => super::display::message(&format!(
            "the command can't be shown the local certificate authority ({error}), so its TLS connections will fail; `interceptor ca install` has the whole system trust it"
        )),
    }
}

fn enter(cgroup: &Path) -> Result<(), Failed> {
    let path = cgroup.join("cgroup.procs");
    let entered = File::options()
        .write(true)
        .open(&path)
        .and_then(|mut procs| procs.write_all(b"0"));
    entered.map_err(|error| {
        let failed = Failed::because(format!("{} can't be entered: {error}", cgroup.display()));
        if error.kind() == io::ErrorKind::PermissionDenied {
            failed.with_remedy("`interceptor run` needs root; --user gives it up for the command")
        } else {
            failed
        }
    })?;
    // The kernel moved this process; a proof that it did costs little.
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let here = own.lines().find_map(|line| line.strip_prefix("0::"));
    match here {
        Some(here) if cgroup.ends_with(here.trim_start_matches('/')) => Ok(()),
        _ => Err(Failed::because(format!(
            "this process is not in {} after entering it, so nothing is run",
            cgroup.display()
        ))),
    }
}

/// Has the command's processes numbered from anywhere. Agents share /tmp, and programs name files there by
/// their own number: Java warns where the command of every agent is number 2.
fn begin_numbering() {
    /// The number that was given out last in the writer's process namespace.
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    // Where the host has more than the usual 32 768 there are more to choose from.
    let number = 300 + crate::accept::random_id() % 30_000;
    // A kernel without CONFIG_CHECKPOINT_RESTORE begins with 2.
    let _ = fs::write(LAST, number.to_string());
}

fn find_user(name: &str) -> Result<User, Failed> {
    let found = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    found
        .map_err(|error| denied("look the user up", error))?
        .ok_or_else(|| Failed::because(format!("there is no user `{name}` on this host")))
}

fn unconfined(error: io::Error) -> Failed {
    let failed = Failed::because(format!(
        "the command can't be confined, so it isn't run: {error}"
    ));
    if error.kind() == io::ErrorKind::PermissionDenied {
        failed.with_remedy(
            "`interceptor run` needs root with all its capabilities, Linux 5.15 or later",
        )
    } else {
        failed
    }
}

fn denied(what: &str, error: nix::errno::Errno) -> Failed {
    Failed::because(format!("the command can't {what}: {}", error.desc()))
}
