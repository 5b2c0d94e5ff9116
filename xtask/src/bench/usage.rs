//! What processes use: what is in the way may be more than one.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// What the processes `pids` have used so far in user and kernel, threads that ended included.
///
/// # Errors
/// Where one is gone.
pub(super) fn processor(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| processor_of(*pid)).sum()
}

/// The memory that the processes `pids` have now, in bytes.
///
/// # Errors
/// Where one is gone.
pub(super) fn memory(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| resident_bytes(*pid)).sum()
}

/// The accounting cgroup would do too, but hybrid hierarchies have no cpu controller in cgroup v2;
/// the kernel's ticks (10 ms) are a hundredth of what a second of load uses.
fn processor_of(pid: u32) -> Result<Duration> {
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

fn resident_bytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("the process {pid} is gone"))?;
    let kilobytes: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .context("/proc/PID/status doesn't say how much memory it has")?;
    Ok(f64::from(kilobytes) * 1024.0)
}
