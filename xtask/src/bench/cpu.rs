//! Processor time of one process.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// What the process `pid` has used so far in user and kernel, threads that ended included.
///
/// The accounting cgroup would do too, but hybrid hierarchies have no cpu controller in cgroup v2;
/// the kernel's ticks (10 ms) are a hundredth of what a second of load uses.
///
/// # Errors
/// Where the process is gone.
pub(super) fn used(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("the process {pid} is gone"))?;
    // The name, in brackets, may hold spaces and brackets itself.
    let (_, fields) = stat
        .rsplit_once(')')
        .context("/proc/PID/stat has no name")?;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || -> Result<u64> {
        times
            .next()
            .context("/proc/PID/stat is too short")?
            .parse()
            .context("/proc/PID/stat has no number")
    };
    let ticks = next()? + next()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?
        .and_then(|ticks| u64::try_from(ticks).ok())
        .unwrap_or(100);
    Ok(Duration::from_micros(ticks * 1_000_000 / per_second))
}
