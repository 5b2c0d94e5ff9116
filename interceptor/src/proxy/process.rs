//! The process itself: this program once more, with nothing of ours but its end of a line.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};

use super::line;

/// The command that it is started by; nobody types it.
pub(crate) const COMMAND: &str = "proxy";

/// A running proxy.
#[derive(Debug)]
pub(super) struct Process(Child);

/// The ends of its lines.
#[derive(Debug)]
pub(super) struct Ends {
    /// The daemon's.
    pub(super) own: Vec<OwnedFd>,
    /// The proxy's, but for the first, which it is started with.
    pub(super) others: Vec<OwnedFd>,
}

impl Process {
    /// Starts one, with as many lines as threads. It ends with the calling thread.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn start(threads: usize) -> io::Result<(Self, Ends)> {
        let (own, first) = line::pair()?;
        let mut ends = Ends {
            own: vec![own],
            others: Vec::new(),
        };
        for _ in 1..threads {
            let (own, other) = line::pair()?;
            ends.own.push(own);
            ends.others.push(other);
        }
        let child = Command::new("/proc/self/exe")
            .arg0("interceptor")
            .arg(COMMAND)
            .env_clear()
            .envs(std::env::var_os("RUST_LOG").map(|log| ("RUST_LOG", log)))
            .current_dir("/")
            // Ctrl-C is for the daemon.
            .process_group(0)
            .stdin(Stdio::from(first))
            .stdout(Stdio::null())
            .spawn()?;
        Ok((Self(child), ends))
    }

    /// Its number.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Waits until it ends. Its number stays its own until [`Self::bury`].
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn wait(&self) -> io::Result<()> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::Pid(self.pid()), flags) {
                Err(Errno::EINTR) => {}
                ended => return Ok(ended.map(drop)?),
            }
        }
    }

    /// How it ended. From here on its number may be another one's.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn bury(&mut self) -> io::Result<String> {
        Ok(self.0.wait()?.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, and have been buried.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
