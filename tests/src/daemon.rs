//! A daemon of its own: state, policies, control socket and instance name that nobody else has.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{journal::Journal, keeper::Keeper, paths, run, scratch};

/// How long a daemon may take to come up or to go down.
const START_OR_STOP: Duration = Duration::from_secs(10);

/// A running `interceptor serve`.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    folder: PathBuf,
    instance: String,
    child: Option<Child>,
    keeper: Option<Keeper>,
}

impl Daemon {
    /// Starts the program that was built beside this one under `policy`.
    ///
    /// # Errors
    /// Where it has not been built or doesn't come up, with what it said.
    pub fn start(policy: &str) -> Result<Self> {
        Self::of(paths::interceptor()?, policy, |_| String::new())
    }

    /// Starts the program that was built beside this one under `policy`, with the configuration file that
    /// `configuration` makes of its folder.
    ///
    /// # Errors
    /// Where it has not been built or doesn't come up, with what it said.
    pub fn configured(policy: &str, configuration: impl FnOnce(&Path) -> String) -> Result<Self> {
        Self::of(paths::interceptor()?, policy, configuration)
    }

    /// Starts `program` under `policy`, with the configuration that its folder leads to.
    ///
    /// # Errors
    /// Where it doesn't come up, with what it said.
    pub fn of(
        program: PathBuf,
        policy: &str,
        configuration: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        let folder = scratch::folder("daemon")?;
        let mut daemon = Self {
            program,
            folder,
            instance: scratch::name("interceptor-it"),
            child: None,
            keeper: None,
        };
        fs::create_dir(daemon.policies())?;
        daemon.write_policy(policy)?;
        fs::write(daemon.configuration(), configuration(&daemon.folder))?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts it again on the same state, after [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Errors
    /// Where it doesn't come up, with what it said.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))?;
        let mut child = self
            .serve()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the keeper to see to, so that what runs under the daemon ends first.
            .process_group(0)
            .spawn()
            .context("the daemon doesn't start")?;
        if let Some(keeper) = self.keeper.take() {
            // It kept the process before this one.
            keeper.release();
        }
        self.keeper = Some(Keeper::of_daemon(child.id(), &self.instance, &self.folder)?);
        let control = self.control();
        let up = run::wait_for("the daemon to answer", START_OR_STOP, || {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended with {status}");
            }
            Ok(UnixStream::connect(&control).ok())
        });
        self.child = Some(child);
        up.with_context(|| format!("the daemon's log:\n{}", self.log()))?;
        Ok(())
    }

    /// The command line that [`Daemon::start`] uses, not started.
    #[must_use]
    pub fn serve(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([OsStr::new("--config"), self.configuration().as_os_str()])
            .args([OsStr::new("--control"), self.control().as_os_str()])
            .arg("serve")
            .args([OsStr::new("--state"), self.state().as_os_str()])
            .args([OsStr::new("--policies"), self.policies().as_os_str()])
            .args(["--instance", &self.instance]);
        command
    }

    /// Kills it as `kill -9` does, so that it can't tidy up.
    ///
    /// # Errors
    /// Where it isn't running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon isn't running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The process that carries its sessions, if one runs.
    #[must_use]
    pub fn proxy(&self) -> Option<nix::unistd::Pid> {
        // Whatever troubles it.
        let said = run::outcome(&mut self.command(["-o", "json", "status"])).ok()?;
        let status: Value = serde_json::from_str(&said.stdout).ok()?;
        let pid = status.pointer("/proxy/pid")?.as_i64()?;
        Some(nix::unistd::Pid::from_raw(pid.try_into().ok()?))
    }

    /// Its processes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let proxy = self.proxy().map(|pid| pid.as_raw().cast_unsigned());
        self.pid().into_iter().chain(proxy).collect()
    }

    /// Stops it in order, if it runs.
    ///
    /// # Errors
    /// Where it doesn't stop in time.
    pub fn stop(&mut self) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        if let Ok(pid) = i32::try_from(child.id()) {
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        run::wait_for(
            "the daemon to stop",
            START_OR_STOP,
            || Ok(child.try_wait()?),
        )
        .map(Some)
    }

    /// Replaces the policy file; the daemon notices by itself.
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn write_policy(&self, policy: &str) -> Result<()> {
        let new = self.folder.join("new.yaml");
        fs::write(&new, policy)?;
        fs::rename(new, self.policies().join("policy.yaml")).context("can't replace the policy")
    }

    /// `interceptor` with `arguments`, speaking to this daemon.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([OsStr::new("--control"), self.control().as_os_str()])
            .args(arguments)
            .env("NO_COLOR", "1");
        command
    }

    /// Runs `interceptor ARGUMENTS` and gives what it printed.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        run::output(&mut self.command(arguments))
    }

    /// Runs `interceptor -o json ARGUMENTS` and gives the parsed answer.
    ///
    /// # Errors
    /// Where it fails or doesn't print JSON.
    pub fn ask_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ask(&[&["-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// `interceptor run --agent AGENT -- PROGRAM`, to which the program's arguments can be added.
    pub fn run_as(&self, agent: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(["run", "--agent", agent, "--"]);
        command.arg(program);
        command
    }

    /// The journal as `export` gives it now.
    ///
    /// # Errors
    /// Where the export fails or isn't what its schema says.
    pub fn journal(&self) -> Result<Journal> {
        Journal::parse(&self.ask(&["export", "--format", "jsonl"])?)
    }

    /// The one pending approval, as soon as there is one.
    ///
    /// # Errors
    /// Where none comes within 10 s.
    pub fn held(&self) -> Result<Value> {
        run::wait_for("an approval to be asked for", START_OR_STOP, || {
            let list = self.ask_json(&["approvals", "list"])?;
            Ok(list.as_array().and_then(|pending| pending.first()).cloned())
        })
    }

    /// What the daemon wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Bytes of memory that it has resident, now and at the most since [`Daemon::forget_peak`].
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn memory(&self) -> Result<[usize; 2]> {
        let mut sum = [0; 2];
        for pid in self.both()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let of = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                let kibibytes: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
                Some(kibibytes << 10)
            };
            for (sum, name) in sum.iter_mut().zip(["VmRSS:", "VmHWM:"]) {
                *sum += of(name).context("no memory in a process's status")?;
            }
        }
        Ok(sum)
    }

    /// Has [`Daemon::memory`] tell the most from here on.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn forget_peak(&self) -> Result<()> {
        for pid in self.both()? {
            fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        }
        Ok(())
    }

    /// Its two processes.
    fn both(&self) -> Result<Vec<u32>> {
        let pids = self.pids();
        anyhow::ensure!(pids.len() == 2, "only {pids:?} run");
        Ok(pids)
    }

    /// Its instance name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Its policy folder.
    #[must_use]
    pub fn policies(&self) -> PathBuf {
        self.folder.join("policies")
    }

    /// Its configuration file.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("interceptor.yaml")
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// A folder for a test's own files, removed with the daemon's.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}", self.log());
        }
        // The keeper ends what doesn't stop by itself, and removes the folder.
        let _ = self.stop();
        self.keeper = None;
    }
}
