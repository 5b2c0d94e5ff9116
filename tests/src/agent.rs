//! Connections of an agent on which the test itself speaks, byte by byte as it likes.

use std::{
    io::{IoSliceMut, Write as _},
    net::TcpStream,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Mutex,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::{
    daemon::Daemon,
    paths,
    run::{self, Running},
    scratch,
};

/// An agent that does nothing but connect, and hands its connections to the test.
#[derive(Debug)]
pub struct Agent {
    control: Mutex<UnixStream>,
    _program: Running,
}

/// Shells between `interceptor run` and the program.
const SHELLS: usize = 4;

impl Agent {
    /// Starts one of this name.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn start(daemon: &Daemon, name: &str) -> Result<Self> {
        let path = daemon.folder().join(scratch::name("agent"));
        let listener = UnixListener::bind(&path)?;
        let mut command = daemon.command(["run", "--agent", name, "--allow-socket"]);
        command.arg(&path).arg("--");
        // As agents are: with a prompt in the command line, and started by shells with long scripts.
        let long = "x".repeat(9_000);
        let script = format!("\"$@\"; exit $? # {long}");
        for _ in 0..SHELLS {
            command.args(["sh", "-c", &script, "sh"]);
        }
        let program = paths::client("connect.py");
        command.arg("python3").arg(program).arg(&path).arg(&long);
        let mut program = run::start(&mut command)?;
        listener.set_nonblocking(true)?;
        let control = run::wait_for("the agent", run::PATIENCE, || match listener.accept() {
            Ok((control, _)) => Ok(Some(control)),
            Err(_) if program.is_running()? => Ok(None),
            Err(_) => bail!("the agent ended"),
        })?;
        control.set_nonblocking(false)?;
        Ok(Self {
            control: Mutex::new(control),
            _program: program,
        })
    }

    /// A connection of its to `port` of 127.0.0.1.
    ///
    /// # Errors
    /// Where it could not connect.
    pub fn connect(&self, port: u16) -> Result<TcpStream> {
        let mut control = self.control.lock().map_err(|_| anyhow::anyhow!("broken"))?;
        control.write_all(&port.to_be_bytes())?;
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(files) = control
                && let [file] = *files
            {
                // SAFETY: the kernel has just made this descriptor for this process; nobody else has it.
                return Ok(unsafe { OwnedFd::from_raw_fd(file) }.into());
            }
        }
        None.context("the agent could not connect")
    }
}
