//! `interceptor run`: launch a command as an agent.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{self, ExitCode},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd, siginfo},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    Context, Outcome,
    client::with_query,
    display::{count, message},
    failed::Failed,
    tag,
};
use crate::console::{AuthorityCertificate, Label, NewTag, TagTarget, Tagged, agent_name};

/// Launch a command as an agent; the exit status is the command's
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  interceptor run --agent reporter --label team=data -- python report.py
  interceptor run --agent assistant --user alice -- claude")]
pub(super) struct Arguments {
    /// Name of the agent
    #[arg(long, value_name = "NAME", value_parser = agent_name)]
    agent: Box<str>,
    /// A label that rules can match; may be repeated
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<Label>,
    /// Run it as this user, by name or number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Let it gain no privileges through setuid programs
    #[arg(long)]
    no_new_privs: bool,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

/// Signals that are passed on when somebody sends them to us.
const FORWARDED: [Signal; 10] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGPIPE,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// `si_code` of a signal that the kernel made, as the terminal's Ctrl-C is: it went to the whole
/// foreground process group, the command included.
const SI_KERNEL: i32 = 0x80;

pub(super) fn run(context: &Context, arguments: Arguments) -> Outcome {
    let tag = NewTag {
        agent: arguments.agent.clone(),
        labels: tag::labels(arguments.labels),
        target: TagTarget::New,
    };
    let tagged: Tagged = context.client.post("/v1/agents", &tag)?;
    let authority: Result<AuthorityCertificate, _> = context.client.get("/v1/ca");
    let ended = Signals::block().and_then(|signals| {
        let child = launch(
            authority.as_ref().ok().map(|authority| &*authority.pem),
            &tagged.cgroup,
            arguments.user.as_deref(),
            arguments.no_new_privs,
            &arguments.command,
        )?;
        signals.attend(child)
    });
    tidy(context, &tagged);
    ended
}

/// Starts this program again, as the small step that enters the cgroup and becomes the command.
fn launch(
    authority: Option<&str>,
    cgroup: &Path,
    user: Option<&str>,
    no_new_privs: bool,
    command: &[OsString],
) -> Result<Pid, Failed> {
    let mut launcher = process::Command::new("/proc/self/exe");
    launcher
        .arg0("interceptor")
        .arg("launch")
        .arg("--cgroup")
        .arg(cgroup);
    if let Some(user) = user {
        launcher.args(["--as-user", user]);
    }
    if no_new_privs {
        launcher.arg("--no-new-privs");
    }
    if let Some(certificate) = authority {
        // One argument: PEM begins like an option.
        launcher.arg(format!("--authority={certificate}"));
    }
    let child = launcher
        .arg("--")
        .args(command)
        .spawn()
        .map_err(|error| Failed::because(format!("no process can be started: {error}")))?;
    i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(Failed::because)
}

/// The signals that would end or stop us, as something to read.
struct Signals(SignalFd);

impl Signals {
    fn block() -> Result<Self, Failed> {
        let mut set = SigSet::from_iter(FORWARDED);
        set.add(Signal::SIGCHLD);
        set.thread_block().map_err(os)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)
            .map(Self)
            .map_err(os)
    }

    /// Passes signals on until `child` has ended; its status is ours.
    fn attend(self, child: Pid) -> Outcome {
        loop {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(code(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(code(128 + signal as i32)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(os(error)),
            }
            match self.0.read_signal() {
                Ok(Some(info)) => forward(&info, child),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(error) => return Err(os(error)),
            }
        }
    }
}

fn forward(info: &siginfo, child: Pid) {
    let by_kernel = info.ssi_code == SI_KERNEL;
    let by_child = i32::try_from(info.ssi_pid) == Ok(child.as_raw());
    let signal = i32::try_from(info.ssi_signo)
        .ok()
        .and_then(|number| Signal::try_from(number).ok());
    match signal {
        None | Some(Signal::SIGCHLD) => {}
        Some(_) if by_kernel || by_child => {}
        // It may have ended meanwhile.
        Some(signal) => _ = kill(child, signal),
    }
}

/// Takes the tag off again, which ends what the command left running.
fn tidy(context: &Context, tagged: &Tagged) {
    let left = processes(&tagged.cgroup);
    if left > 0 {
        message(&format!(
            "the command left {} running as agent `{}`; killed",
            count(left, "process").replace("processs", "processes"),
            tagged.agent
        ));
    }
    let path = with_query("/v1/agents", &[("agent", Some(tagged.agent.to_string()))]);
    if let Err(failed) = context.client.delete::<Tagged>(&path) {
        message(&format!(
            "agent `{}` could not be removed: {failed}; try `interceptor tag remove {}`",
            tagged.agent, tagged.agent
        ));
    }
}

/// How many processes are in a cgroup and below.
fn processes(cgroup: &Path) -> u64 {
    let here = fs::read_to_string(cgroup.join("cgroup.procs"))
        .map_or(0, |list| list.lines().count() as u64);
    let below: u64 = fs::read_dir(cgroup)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| processes(&entry.path()))
        .sum();
    here + below
}

fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

fn os(error: Errno) -> Failed {
    Failed::because(format!("the operating system refused: {}", error.desc()))
}
