//! Running a command to its end, within a time, and saying what went wrong.

use std::{
    fmt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a client may take unless said otherwise; a hang is a failed test, not a stuck one.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, lossily decoded.
    pub stdout: String,
    /// Its standard error, lossily decoded.
    pub stderr: String,
}

/// A command that runs while its starter does something else.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Option<Child>,
    stdout: Option<thread::JoinHandle<Vec<u8>>>,
    stderr: Option<thread::JoinHandle<Vec<u8>>>,
}

/// Runs `command` to its end within [`PATIENCE`].
///
/// # Errors
/// Where it can't be started or takes too long.
pub fn outcome(command: &mut Command) -> Result<Outcome> {
    start(command)?.outcome_within(PATIENCE)
}

/// Runs `command` within [`PATIENCE`] and gives its standard output.
///
/// # Errors
/// Where it can't be started, takes too long or fails.
pub fn output(command: &mut Command) -> Result<String> {
    outcome(command)?.success()
}

/// Starts `command` with its output collected.
///
/// # Errors
/// Where it can't be started.
pub fn start(command: &mut Command) -> Result<Running> {
    let text = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {text}"))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    Ok(Running {
        command: text,
        child: Some(child),
        stdout,
        stderr,
    })
}

/// Asks `ready` every 10 ms until it answers, within `limit`.
///
/// # Errors
/// The error of `ready`, or that `what` did not happen in time.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ready()? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            bail!("waited {:.1} s for {what}", limit.as_secs_f32());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn collect(mut pipe: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

impl Outcome {
    /// The standard output, where the command succeeded.
    ///
    /// # Errors
    /// All of the outcome, where it failed.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("{self}");
        }
        Ok(self.stdout)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

impl Running {
    /// Waits for the end, within [`PATIENCE`].
    ///
    /// # Errors
    /// Where it takes too long.
    pub fn outcome(self) -> Result<Outcome> {
        self.outcome_within(PATIENCE)
    }

    /// Waits for the end, within `limit`; kills what takes longer.
    ///
    /// # Errors
    /// Where it takes too long.
    pub fn outcome_within(mut self, limit: Duration) -> Result<Outcome> {
        let start = Instant::now();
        while self.is_running()? {
            if start.elapsed() > limit {
                self.kill();
                bail!(
                    "still running after {:.0} s: {}",
                    limit.as_secs_f32(),
                    self.command
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut child = self.child.take().context("waited for twice")?;
        let status = child.wait()?;
        Ok(Outcome {
            status,
            stdout: join(self.stdout.take()),
            stderr: join(self.stderr.take()),
        })
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// Where the system won't say.
    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Its process id, while it is known.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The readers end only when every holder of the pipes has, so they are not waited for.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn join(reader: Option<thread::JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
