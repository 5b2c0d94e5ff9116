//! Names and folders that no second run trips over.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

/// A name that no other caller on this machine has: `prefix`, this process, a counter.
pub fn name(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!(
        "{prefix}-{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

/// A new folder below the system's temporary one that any user may enter. Whoever asks removes it.
///
/// # Errors
/// Where it can't be made.
pub fn folder(prefix: &str) -> Result<PathBuf> {
    let folder = tempfile::Builder::new()
        .prefix(&format!("interceptor-{prefix}-"))
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .context("no temporary folder could be made")?
        .keep();
    Ok(folder)
}
