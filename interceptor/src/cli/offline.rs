//! Reading a state folder without a daemon.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::Path,
};

use interceptor_core::record::{Record, SessionId};
use serde_json::Value;

use super::{Context, client::Reading, failed::Failed};
use crate::{
    config::master_key,
    control::{ErrorBody, Session, SessionsQuery},
    journal::{self, Lines, MasterKey, Reader},
    secret::Source,
};

/// A reader of the journal in `folder`.
pub(super) fn reader(context: &Context, folder: &Path) -> Result<Reader, Failed> {
    is_state(folder)?;
    let master = master(context, folder)?;
    Reader::unlocked(folder, master.as_ref()).map_err(Failed::because)
}

/// What encrypted sessions in `folder` are read with, unless that is in it: what was given for it, or what the
/// configuration names for its own state folder.
pub(super) fn master(context: &Context, folder: &Path) -> Result<Option<MasterKey>, Failed> {
    if let Some(path) = &context.encryption_key {
        let master = master_key(&Source::File(path.clone()));
        return master.map(Some).map_err(Failed::because);
    }
    let same = |folder: &Path| fs::canonicalize(folder).ok();
    let config = &context.config;
    if same(folder).is_none() || same(folder) != same(&config.state) {
        return Ok(None);
    }
    let configured = config.journal.encryption.as_ref();
    // Where it can't be read here (the daemon has another environment) what is in clear can.
    Ok(configured.and_then(|encryption| encryption.master().ok().flatten()))
}

/// Refuses a folder that no journal was ever in, so that a slip of the pen isn't answered as if it
/// were an empty or a broken journal.
pub(super) fn is_state(folder: &Path) -> Result<(), Failed> {
    let known = ["format", "segments", "checkpoint", "journal.pub"];
    if known.iter().any(|name| folder.join(name).exists()) {
        return Ok(());
    }
    let error = if folder.is_dir() {
        format!("{} holds no journal", folder.display())
    } else {
        format!("{} is not a folder that can be read", folder.display())
    };
    Err(Failed::because(error).with_remedy(
        "give a daemon's state folder (/var/lib/interceptor by default) or a copy of one",
    ))
}

/// The sessions in `folder` that `asked` asks for, oldest of them first.
pub(super) fn sessions(
    context: &Context,
    folder: &Path,
    asked: &SessionsQuery,
) -> Result<Vec<Session>, Failed> {
    let wanted = asked.wanted().map_err(Failed::because)?;
    let found = journal::sessions(&reader(context, folder)?, &wanted, asked.limit());
    let found = found.map_err(Failed::because)?.into_iter();
    let mut sessions: Vec<Session> = found.map(Session::from).collect();
    sessions.reverse();
    Ok(sessions)
}

/// The lines of one session.
pub(super) fn session(
    context: &Context,
    folder: &Path,
    id: SessionId,
    mut each: impl FnMut(&[u8]) -> Result<Reading, Failed>,
) -> Result<(), Failed> {
    let mut lines = Lines::default();
    let mut found = false;
    let mut failed = None;
    reader(context, folder)?
        .session(id, |record| {
            found = true;
            let line = lines.line(&record).to_string();
            match each(line.as_bytes()) {
                Ok(reading) => reading == Reading::On,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })
        .map_err(Failed::because)?;
    match failed {
        Some(error) => Err(error),
        None if found => Ok(()),
        None => Err(
            Failed::because(format!("{} has no session {id}", folder.display()))
                .with_remedy("`interceptor sessions list --state` shows those that it has"),
        ),
    }
}

/// Gives `each` the records that the evidence in `file` proves; it may end them by returning `false`.
pub(super) fn proved(file: &Path, mut each: impl FnMut(Record) -> bool) -> Result<(), Failed> {
    let unreadable = |error: io::Error| {
        Failed::because(format!("{} can't be read: {error}", file.display()))
            .with_remedy("`interceptor export --format evidence --output FILE` makes such a file")
    };
    let open = File::open(file).map_err(unreadable)?;
    let mut goes_on = true;
    let observe = |record| goes_on = goes_on && each(record);
    let name = file.display().to_string();
    let proved = journal::prove(&mut BufReader::new(open), &name, None, observe);
    match proved.map_err(unreadable)?.problems.first() {
        None => Ok(()),
        Some(problem) => Err(Failed::because(format!(
            "{}, byte {}: {}",
            problem.file, problem.offset, problem.what
        ))
        .with_remedy("`interceptor verify FILE` shows all that is wrong with it")),
    }
}

/// Fails where a stream's line says that the rest could not be read.
pub(super) fn check(line: &Value) -> Result<(), Failed> {
    if line.get("seq").is_some() {
        return Ok(());
    }
    match serde_json::from_value::<ErrorBody>(line.clone()) {
        Ok(body) => Err(Failed::because(body.error).with_remedy(body.remedy)),
        Err(_) => Err(Failed::because(
            "the daemon sent a line that is not a record",
        )),
    }
}
