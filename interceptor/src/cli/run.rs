//! `interceptor run`: launch a command as an agent.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{fs::FileTypeExt as _, process::CommandExt as _},
    path::Path,
    process::{self, ExitCode},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd, siginfo},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    Context, Outcome,
    display::{count, message},
    failed::Failed,
    tag,
};
use crate::{
    config,
    confine::{self, Exemptions, Places},
    control::{AuthorityCertificate, Label, NewTag, TagTarget, Tagged, agent_name, with_query},
};

/// Launch a command as an agent; the exit status is the command's
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  interceptor run --agent reporter --label team=data -- python report.py
  interceptor run --agent assistant --user alice -- claude
  interceptor run --agent web --allow namespaces -- chromium

It has a view of the host of its own, without other processes, Unix sockets of others, devices,
cgroups to write to, setuid programs' rights and system calls that pass the hooks by. The flags
above leave it some of that.")]
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
    #[command(flatten)]
    exemptions: Exemptions,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

/// Signals that are passed on when somebody sends them to us.
pub(super) const FORWARDED: [Signal; 10] = [
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
        labels: tag::labels(arguments.labels.clone()),
        target: TagTarget::New,
        confined: Some(confinement(&arguments)),
        // Nothing of it runs yet.
        old_sockets: None,
        unix_sockets: None,
        open_sockets: arguments.exemptions.allows(confine::Allowance::Sockets),
        allow_sockets: Vec::new(),
        engines: confine::engines(&arguments.exemptions).map_err(Failed::because)?,
    };
    let places = places(context)?;
    let tagged: Tagged = context.client.post("/v1/agents", &tag)?;
    let authority: Result<AuthorityCertificate, _> = context.client.get("/v1/ca");
    let ended = Signals::block().and_then(|signals| {
        let child = launch(
            authority.as_ref().ok().map(|authority| &*authority.pem),
            &tagged,
            &arguments,
            &places,
        )?;
        signals.attend(child, &tagged.cgroup)
    });
    tidy(context, &tagged);
    ended
}

/// Starts this program again, as the small step that enters the cgroup and becomes the command.
fn launch(
    authority: Option<&str>,
    tagged: &Tagged,
    arguments: &Arguments,
    places: &Places,
) -> Result<Pid, Failed> {
    let mut launcher = process::Command::new("/proc/self/exe");
    launcher
        .arg0("interceptor")
        .arg("launch")
        .arg("--cgroup")
        .arg(&tagged.cgroup);
    if let Some(user) = &arguments.user {
        launcher.args(["--as-user", user]);
    }
    for (flag, paths) in [
        ("--hidden", &places.hidden),
        ("--shown", &places.shown),
        ("--read-only", &places.read_only),
    ] {
        for path in paths {
            launcher.arg(flag).arg(path);
        }
    }
    for one in &tagged.stand_ins {
        launcher
            .arg("--engine")
            .args([one.engine.as_os_str(), one.folder.as_os_str()])
            .arg(&one.name);
    }
    launcher.args(arguments.exemptions.arguments());
    if let Some(certificate) = authority {
        // One argument: PEM begins like an option.
        launcher.arg(format!("--authority={certificate}"));
    }
    launcher.arg("--").args(&arguments.command);
    let child = in_new_process_namespace(|| launcher.spawn())?;
    i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(Failed::because)
}

/// Starts a process that sees nobody but itself and what it starts. This one stays where it is.
fn in_new_process_namespace(
    start: impl FnOnce() -> io::Result<process::Child>,
) -> Result<process::Child, Failed> {
    let own = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| {
        let failed = Failed::because(format!(
            "the command can't have a process namespace of its own: {}",
            error.desc()
        ));
        if error == Errno::EPERM {
            failed.with_remedy("`interceptor run` needs root; --user gives it up for the command")
        } else {
            failed
        }
    })?;
    let child = start();
    setns(&own, CloneFlags::CLONE_NEWPID).map_err(os)?;
    child.map_err(|error| Failed::because(format!("no process can be started: {error}")))
}

/// What the record says of how the command is confined.
fn confinement(arguments: &Arguments) -> Box<str> {
    let mut text = "confined".to_owned();
    if let Some(user) = &arguments.user {
        text = format!("{text} as user {user}");
    }
    for (number, name) in ["input", "output", "error"].into_iter().enumerate() {
        // It reaches whoever holds its other end, and nobody else.
        let stream = fs::metadata(format!("/proc/self/fd/{number}"));
        if stream.is_ok_and(|stream| stream.file_type().is_socket()) {
            text = format!("{text}, standard {name} a socket");
        }
    }
    let kept = arguments.exemptions.arguments();
    if !kept.is_empty() {
        let kept = kept.iter().map(|argument| argument.to_string_lossy());
        text = format!("{text}, but for {}", kept.collect::<Vec<_>>().join(" "));
    }
    text.into()
}

/// The daemon's own files and ours.
fn places(context: &Context) -> Result<Places, Failed> {
    let mut places: Places = context.client.get("/v1/places")?;
    places.hidden.push(context.config.control.clone());
    // The whole folder: by a new name a changed file could take its place.
    let configuration = Path::new(config::PATH).parent().map(Path::to_owned);
    places.read_only.extend(configuration);
    places.read_only.extend(std::env::current_exe().ok());
    Ok(places)
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
    fn attend(self, child: Pid, cgroup: &Path) -> Outcome {
        loop {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(code(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(code(128 + signal as i32)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(os(error)),
            }
            match self.0.read_signal() {
                Ok(Some(info)) => forward(&info, child, cgroup),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(error) => return Err(os(error)),
            }
        }
    }
}

fn forward(info: &siginfo, child: Pid, cgroup: &Path) {
    let by_kernel = info.ssi_code == SI_KERNEL;
    // It has gone to the whole process group, the sender's part included.
    let by_agent = is_in(info.ssi_pid, cgroup);
    let signal = i32::try_from(info.ssi_signo)
        .ok()
        .and_then(|number| Signal::try_from(number).ok());
    match signal {
        None | Some(Signal::SIGCHLD) => {}
        Some(_) if by_kernel || by_agent => {}
        // It may have ended meanwhile.
        Some(signal) => _ = kill(child, signal),
    }
}

/// Whether a process is in a cgroup or below it.
fn is_in(pid: u32, cgroup: &Path) -> bool {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    own.lines()
        .filter_map(|line| line.strip_prefix("0::/"))
        .flat_map(|path| Path::new(path).ancestors())
        .any(|path| path != Path::new("") && cgroup.ends_with(path))
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

pub(super) fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

fn os(error: Errno) -> Failed {
    Failed::because(format!("the operating system refused: {}", error.desc()))
}
