//! Tidying up in a process of its own, so that it happens however this one ends.
//!
//! A keeper is a small shell that waits for its standard input to close. The write end is held by
//! this process alone (pipes are close-on-exec), so the kernel closes it when the process returns,
//! panics, is interrupted or is killed; the shell then ends what it was given, in a process group
//! that a terminal's Ctrl-C doesn't reach.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

/// Ends a process and removes a folder when dropped, or when this process ends.
#[derive(Debug)]
pub struct Keeper {
    shell: Child,
    ended: Option<Child>,
}

/// Says `$1` to the process `$2`, waits until it is gone or a zombie, at most 5 s, and kills it.
const END_PROCESS: &str = concat!(
    "cat >/dev/null; kill -s \"$1\" \"$2\" 2>/dev/null; n=0; ",
    "while kill -0 \"$2\" 2>/dev/null && ! grep -qs '^State:.Z' /proc/$2/status ",
    "&& [ $n -lt 250 ]; do sleep 0.02; n=$((n+1)); done; ",
    "kill -s KILL \"$2\" 2>/dev/null;",
);

/// Removes what bears the name of the instance `$3` and its cgroup `$4`, with all that runs in it.
const REMOVE_INSTANCE: &str = concat!(
    "rm -rf -- \"/sys/fs/bpf/$3\" \"/run/$3\"; ",
    // Its network of unique local addresses, which bears the hash of its name.
    "ip -6 route delete local $(printf %s \"$3\" | sha256sum | ",
    "sed 's|^\\(..\\)\\(....\\)\\(....\\).*|fd\\1:\\2:\\3:1::/64|') table local 2>/dev/null; ",
    "for trace in forks moves; do rmdir \"/sys/kernel/tracing/instances/$3-$trace\"; done; ",
    "if [ -d \"$4\" ]; then echo 1 >\"$4/cgroup.kill\"; fi; n=0; ",
    "while [ -d \"$4\" ] && [ $n -lt 100 ]; do ",
    "find \"$4\" -depth -type d -exec rmdir {} ';'; sleep 0.02; n=$((n+1)); done",
);

/// What a keeper sends to a process that it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// SIGTERM: end in order.
    Terminate,
    /// SIGQUIT: PostgreSQL's immediate shutdown, children included.
    Quit,
}

impl Keeper {
    /// Keeps the process `pid`: says `farewell` to it, waits up to 5 s, kills it, then removes
    /// `folder` with all that is in it.
    ///
    /// # Errors
    /// Where no shell can be started.
    pub fn of_process(pid: u32, farewell: Farewell, folder: &Path) -> Result<Self> {
        Self::spawn(
            &format!("{END_PROCESS} rm -rf -- \"$3\""),
            [
                OsStr::new(farewell.signal()),
                OsStr::new(&pid.to_string()),
                folder.as_os_str(),
            ],
        )
    }

    /// Keeps the daemon `pid` of `instance`: as [`Keeper::of_process`], and what a daemon that was
    /// killed leaves by design: its agents, their cgroups, its pins.
    ///
    /// # Errors
    /// Where no shell can be started.
    pub fn of_daemon(pid: u32, instance: &str, folder: &Path) -> Result<Self> {
        let cgroup = cgroup2()?.join(instance);
        Self::spawn(
            &format!("{END_PROCESS} rm -rf -- \"$5\"; {REMOVE_INSTANCE}"),
            [
                OsStr::new(Farewell::Terminate.signal()),
                OsStr::new(&pid.to_string()),
                OsStr::new(instance),
                cgroup.as_os_str(),
                folder.as_os_str(),
            ],
        )
    }

    /// Keeps what a daemon of `instance` that never came up may leave.
    ///
    /// # Errors
    /// Where no shell can be started.
    pub fn of_leftovers(instance: &str) -> Result<Self> {
        let cgroup = cgroup2()?.join(instance);
        let unused = OsStr::new("");
        Self::of_command(
            REMOVE_INSTANCE,
            [unused, unused, OsStr::new(instance), cgroup.as_os_str()],
        )
    }

    /// Keeps whatever `script` (for `sh`) undoes, with `arguments` as `$1`, `$2`, …
    ///
    /// # Errors
    /// Where no shell can be started.
    pub fn of_command<'a>(
        script: &str,
        arguments: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<Self> {
        Self::spawn(&format!("cat >/dev/null; {script}"), arguments)
    }

    /// Takes the handle of the process that is kept, to reap it once it has been ended.
    pub fn reap(&mut self, child: Child) {
        self.ended = Some(child);
    }

    /// Lets go of what was kept, which has ended otherwise.
    pub fn release(mut self) {
        // A shell that is gone already is what is wanted.
        let _ = self.shell.kill();
    }

    fn spawn<'a>(script: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", script, "keeper"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("no shell could be started to tidy up")?;
        Ok(Self { shell, ended: None })
    }
}

impl Farewell {
    const fn signal(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Quit => "QUIT",
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // Nothing can be done about a keeper that fails, and it bounds its own time.
        let _ = self.shell.wait();
        if let Some(mut ended) = self.ended.take() {
            let _ = ended.wait();
        }
    }
}

/// Where cgroup v2 is mounted.
///
/// # Errors
/// Where it isn't.
pub fn cgroup2() -> Result<PathBuf> {
    std::fs::read_to_string("/proc/self/mounts")?
        .lines()
        .find_map(|line| match *line.split(' ').collect::<Vec<_>>() {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })
        .context("no cgroup v2 is mounted")
}
