//! A proxy that was started to be measured.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use interceptor_tests::{
    keeper::{Farewell, Keeper},
    run,
};

/// A running proxy, ended and its folder removed when dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    pid: u32,
    _keeper: Keeper,
}

impl Proxy {
    /// Starts `command`, whose files are in `folder`, and waits until `port` is listened on.
    ///
    /// # Errors
    /// Where it doesn't start; with what it said.
    pub(super) fn start(
        name: &str,
        port: u16,
        command: &mut Command,
        folder: &Path,
    ) -> Result<Self> {
        let log = fs::File::create(folder.join("said"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the keeper to see to.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} doesn't start"))?;
        let pid = child.id();
        let mut keeper = Keeper::of_process(pid, Farewell::Terminate, folder)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let up = run::wait_for(name, Duration::from_secs(20), || {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended with {status}");
            }
            Ok(TcpStream::connect(address).ok())
        });
        keeper.reap(child);
        up.with_context(|| fs::read_to_string(folder.join("said")).unwrap_or_default())?;
        Ok(Self {
            pid,
            _keeper: keeper,
        })
    }

    /// Its process id.
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }
}
