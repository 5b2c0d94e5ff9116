//! The session log, as the daemon opens it and what it takes up from it.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{ServeError, io};
use crate::{
    approval::{Recovered, Unfinished},
    books::Ledger,
    clock,
    config::Config,
    control::Told,
    journal::{Encryption, Journal, Options},
    retention::Retainer,
    stream::Streams,
};

/// Where what is gone after a power failure is.
const RUNTIME: &str = "/run";

/// How the journal that `config` speaks of is opened.
pub(super) fn options(config: &Config, retainer: &Retainer) -> Result<Options, ServeError> {
    let waiting = volatile(config);
    let encryption = match &config.journal.encryption {
        None => None,
        Some(encryption) => {
            let kind = statfs(RUNTIME).map_err(|error| io("looking at /run")(error.into()))?;
            if kind.filesystem_type() != TMPFS_MAGIC {
                return Err(ServeError::Encryption(
                    "records wait in memory for their place on disk, and /run is on a disk here; mount a tmpfs there".to_owned(),
                ));
            }
            let master = encryption.master().map_err(ServeError::Encryption)?;
            Some(master.map_or(Encryption::Beside, Encryption::With))
        }
    };
    Ok(Options {
        bytes_max: retainer.bytes_max(),
        encryption,
        waiting: Some(waiting),
    })
}

/// Where records of the journal that `config` speaks of wait in memory, if it is encrypted.
fn volatile(config: &Config) -> PathBuf {
    let state = std::path::absolute(&config.state).unwrap_or_else(|_| config.state.clone());
    let own = digest::digest(&digest::SHA256, state.as_os_str().as_bytes());
    let own = hex::encode(own.as_ref().get(..8).unwrap_or_default());
    let runtime = Path::new(RUNTIME).join(config.instance.as_str());
    runtime.join(format!("waiting-{own}"))
}

/// What is left of earlier daemons: questions and approvals, of which those that are over are recorded as such, and
/// what they had on record of each agent's connects, and of who was told of what.
pub(super) fn take_up(
    journal: &Journal,
    streams: &mut Streams,
    retainer: &Retainer,
) -> Result<(Recovered, Ledger, Told), ServeError> {
    let mut unfinished = Unfinished::default();
    let mut ledger = Ledger::default();
    let told = Told::default();
    journal.reader()?.each(|record| {
        unfinished.observe(&record);
        ledger.observe(&record);
        told.observe(&record);
        streams.observe(&record);
        retainer.observe(&record);
        true
    })?;
    retainer.take_up(journal)?;
    let mut recovered = unfinished.recovered(clock::now());
    for (session, agent, event) in recovered.ends.drain(..) {
        journal.append(session, &agent, clock::now(), [event])?;
    }
    Ok((recovered, ledger, told))
}
