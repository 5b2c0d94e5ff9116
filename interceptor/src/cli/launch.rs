//! The hidden step between `run` and the command: enters the cgroup and becomes the command.
//!
//! A process of its own, because joining a cgroup and changing users between fork and exec would
//! have to be done without memory allocation; here nothing else runs, and errors can be told.

use std::{
    ffi::{CString, OsString},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    sys::{prctl, signal::SigSet},
    unistd::{Uid, User, initgroups, setgid, setuid},
};

use super::{Outcome, failed::Failed};
use crate::trust;

/// Enter a cgroup and become a command
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(long)]
    as_user: Option<String>,
    #[arg(long)]
    no_new_privs: bool,
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
    if let Some(user) = user {
        setgid(user.gid).map_err(|error| denied("take on the user's group", error))?;
        setuid(user.uid).map_err(|error| denied("become the user", error))?;
        command
            .env("HOME", &user.dir)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("SHELL", &user.shell);
    }
    if arguments.no_new_privs {
        prctl::set_no_new_privs().map_err(|error| denied("give up new privileges", error))?;
    }
    let error = command.exec();
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

fn find_user(name: &str) -> Result<User, Failed> {
    let found = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    found
        .map_err(|error| denied("look the user up", error))?
        .ok_or_else(|| Failed::because(format!("there is no user `{name}` on this host")))
}

fn denied(what: &str, error: nix::errno::Errno) -> Failed {
    Failed::because(format!("the command can't {what}: {}", error.desc()))
}
