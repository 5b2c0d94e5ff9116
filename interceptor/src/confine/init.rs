//! The first process of an agent's process namespace: starts the command, reaps whatever is left to it, and
//! ends with the command, which ends everything else.
//!
//! It is confined like what it starts: an agent that takes it over has gained nothing.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    process::{self, Command},
};

use nix::{
    errno::Errno,
    sys::{
        prctl::set_dumpable,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd, siginfo},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// How the command ended, and what it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status, or 128 and the signal that ended it.
    pub status: i32,
    /// Processes that still ran, and end with this one.
    pub left: u64,
}

/// Starts `command` and attends to it until it has ended, passing on `forwarded` signals that come from
/// outside.
///
/// # Errors
/// Where it can't be started.
pub fn attend(command: &mut Command, forwarded: &[Signal]) -> io::Result<Ended> {
    let mut set: SigSet = forwarded.iter().copied().collect();
    set.add(Signal::SIGCHLD);
    // Before the command is started, so that none is lost: this process's default is to ignore them.
    set.thread_block()?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    // Nobody inside may open what this process has open, its program least of all: that was started in the
    // host's view, where it can be written to.
    set_dumpable(false)?;
    // SAFETY: changing a thread's signal mask is async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(Into::into));
    }
    let child = command.spawn()?;
    let child = i32::try_from(child.id()).map_err(io::Error::other)?;
    let child = Pid::from_raw(child);
    loop {
        if let Some(status) = reap(child)? {
            return Ok(Ended {
                status,
                left: others(),
            });
        }
        match signals.read_signal() {
            Ok(Some(info)) => forward(&info, child),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reaps all that have ended; the status of `child`, where it is among them.
fn reap(child: Pid) -> io::Result<Option<i32>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Ok(Some(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Ok(Some(128 + signal as i32));
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn forward(info: &siginfo, child: Pid) {
    /// Who is outside of the namespace has no number in it.
    const OUTSIDE: u32 = 0;
    /// What the kernel sends for a terminal went to the command as well.
    const SI_KERNEL: i32 = 0x80;
    let signal = i32::try_from(info.ssi_signo)
        .ok()
        .and_then(|number| Signal::try_from(number).ok());
    if let Some(signal) = signal
        && signal != Signal::SIGCHLD
        && info.ssi_pid == OUTSIDE
        && info.ssi_code != SI_KERNEL
    {
        // It may have ended meanwhile.
        _ = kill(child, signal);
    }
}

/// How many processes there are besides this one.
fn others() -> u64 {
    let own = process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .count() as u64
}
