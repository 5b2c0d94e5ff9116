//! Stopping all processes of a cgroup at once, and letting them go on.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{KernelError, io_error};

/// How long processes may take to stop. One that waits for a disk or a child of vfork takes as long as that
/// does; it runs no program meanwhile either.
const PATIENCE: Duration = Duration::from_secs(2);

/// A cgroup that is stopped for as long as this lives, unless it was stopped before.
///
/// A note on disk outlives a daemon that is killed meanwhile: the next one takes it up ([`abandoned`]).
#[derive(Debug)]
pub(super) struct Pause {
    cgroup: PathBuf,
    note: PathBuf,
    was_frozen: bool,
}

impl Pause {
    /// Stops `cgroup`, with a note in `folder`.
    pub(super) fn begin(cgroup: &Path, folder: &Path) -> Result<Self, KernelError> {
        let note = note(folder);
        let pause = Self {
            cgroup: cgroup.to_owned(),
            was_frozen: is_frozen(cgroup),
            note,
        };
        if !pause.was_frozen {
            let text = cgroup.as_os_str().as_encoded_bytes();
            fs::write(&pause.note, text).map_err(io_error("noting a pause", &pause.note))?;
        }
        freeze(cgroup)?;
        Ok(pause)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if self.was_frozen {
            return;
        }
        if let Err(error) = thaw(&self.cgroup) {
            tracing::error!(%error, "an agent stays frozen; `interceptor agents thaw` lets it go on");
        }
        let _ = fs::remove_file(&self.note);
    }
}

/// The cgroup that an earlier daemon stopped for a moment, and was killed before the moment was over.
pub(super) fn abandoned(folder: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = fs::read(note(folder)).ok()?;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// Takes up a pause that an earlier daemon left.
pub(super) fn take_up(cgroup: PathBuf, folder: &Path) -> Pause {
    Pause {
        cgroup,
        note: note(folder),
        was_frozen: false,
    }
}

fn note(folder: &Path) -> PathBuf {
    folder.join("paused")
}

/// Stops the processes of `cgroup` and below, and waits until they are.
pub(super) fn freeze(cgroup: &Path) -> Result<(), KernelError> {
    let file = cgroup.join("cgroup.freeze");
    fs::write(&file, "1").map_err(io_error("freezing the agent's cgroup", &file))?;
    let until = Instant::now() + PATIENCE;
    let events = cgroup.join("cgroup.events");
    loop {
        let stopped = fs::read_to_string(&events)
            .map_err(io_error(
                "waiting for the agent's cgroup to freeze",
                &events,
            ))?
            .lines()
            .any(|line| line == "frozen 1");
        if stopped || Instant::now() > until {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets the processes of `cgroup` go on.
pub(super) fn thaw(cgroup: &Path) -> Result<(), KernelError> {
    let file = cgroup.join("cgroup.freeze");
    match fs::write(&file, "0") {
        // With the cgroup its processes are gone.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(io_error("thawing the agent's cgroup", &file)),
    }
}

/// Whether `cgroup` itself is to be stopped.
pub(super) fn is_frozen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.freeze")).is_ok_and(|state| state.trim() == "1")
}
