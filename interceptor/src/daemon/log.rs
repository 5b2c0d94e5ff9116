//! The session log, as the daemon opens it and what it takes up from it.

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{ServeError, io};
use crate::{
    approval::{Recovered, Unfinished},
    books::Ledger,
    clock,
    config::{Config, MEMORY},
    control::Told,
    journal::{Journal, Options},
    retention::Retainer,
    stream::Streams,
};

/// How the journal that `config` speaks of is opened.
pub(super) fn options(config: &Config, retainer: &Retainer) -> Result<Options, ServeError> {
    let encryption = match &config.journal.encryption {
        None => None,
        Some(encryption) => {
            let kind = statfs(MEMORY).map_err(|error| io("looking at /dev/shm")(error.into()))?;
            if kind.filesystem_type() != TMPFS_MAGIC {
                return Err(ServeError::Encryption(format!(
                    "records wait in memory for their place on disk, and {MEMORY} is no tmpfs here; mount one there"
                )));
            }
            Some(encryption.read().map_err(ServeError::Encryption)?)
        }
    };
    Ok(Options {
        bytes_max: retainer.bytes_max(),
        encryption,
        waiting: Some(config.waiting()),
    })
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
    // Only streams have to know of everything.
    let is_told = !streams.is_empty();
    let take = |record| {
        unfinished.observe(&record);
        ledger.observe(&record);
        told.observe(&record);
        streams.observe(&record);
        retainer.observe(&record);
        true
    };
    let reader = journal.reader()?;
    let read = match is_told {
        true => reader.each(take),
        false => reader.each_deed(take),
    };
    retainer.take_up(journal, read)?;
    let mut recovered = unfinished.recovered(clock::now());
    for (session, agent, event) in recovered.ends.drain(..) {
        journal.append(session, &agent, clock::now(), [event])?;
    }
    Ok((recovered, ledger, told))
}
