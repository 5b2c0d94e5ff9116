//! What this host's kernel lacks, as `interceptor doctor` says it: on an older one a test holds the program to saying
//! so, in the place of holding a guard that isn't there.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::daemon::Daemon;

/// The guard of UNIX sockets in cgroups that are tagged: hooks of Linux 6.7.
pub const UNIX_HOOKS: &str = "UNIX sockets of agents that are tagged while they run";

/// The guard of abstract UNIX sockets in what `run` launches: Landlock of Linux 6.12.
pub const ABSTRACT_SCOPE: &str = "abstract Unix sockets of others";

/// Why `guard` is weaker here than it could be; nothing where it is in force.
///
/// # Errors
/// Where the doctor can't be asked, or has no such guard, or found it missing.
pub fn weaker(daemon: &Daemon, guard: &str) -> Result<Option<String>> {
    let output = daemon.command(["-o", "json", "doctor"]).output()?;
    let guards: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let found = guards
        .iter()
        .find(|found| found["guard"] == guard)
        .with_context(|| format!("the doctor knows no guard {guard}: {guards:#?}"))?;
    match found["state"].as_str() {
        Some("in_force") => Ok(None),
        Some("weaker") => Ok(Some(
            found["rests_on"].as_str().unwrap_or_default().to_owned(),
        )),
        _ => anyhow::bail!("{found:#}"),
    }
}
