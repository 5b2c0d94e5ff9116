//! What was open before: a socket or folder that somebody left open is a way out that no file leads to.

use std::{fs, io, path::PathBuf};

use super::context;

/// Standard input, output and error.
const STANDARD: u32 = 3;

/// Closes all descriptors but the standard ones and `kept`. For a process that has opened nothing itself.
///
/// # Errors
/// Where they can't be closed, one to keep isn't open, or a standard one is a folder.
pub fn close(kept: &[u32]) -> io::Result<()> {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    kept.dedup();
    for descriptor in &kept {
        if fs::symlink_metadata(link(*descriptor)).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("descriptor {descriptor} is to be kept and isn't open"),
            ));
        }
    }
    let mut first = STANDARD;
    for descriptor in kept.into_iter().filter(|kept| *kept >= STANDARD) {
        if descriptor > first {
            close_range(first, descriptor - 1)?;
        }
        first = descriptor.saturating_add(1);
    }
    close_range(first, u32::MAX)?;
    for descriptor in 0..STANDARD {
        // From a folder of the host's view everything in that view could be opened.
        if fs::metadata(link(descriptor)).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "descriptor {descriptor} is a folder, by which the command could leave its view of the host"
                ),
            ));
        }
    }
    Ok(())
}

fn link(descriptor: u32) -> PathBuf {
    format!("/proc/self/fd/{descriptor}").into()
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the caller has opened nothing, so no descriptor above the standard ones has an owner in this
    // process that would use or close it later.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(context(
            "inherited descriptors can't be closed",
            &io::Error::last_os_error(),
        ))
    }
}
