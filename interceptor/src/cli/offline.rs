//! Reading a state folder without a daemon.

use std::{collections::BTreeMap, path::Path};

use interceptor_core::{
    record::{Event, Record, SessionId},
    ruling::Verdict,
};
use serde_json::Value;

use super::{client::Reading, failed::Failed};
use crate::{
    control::{ErrorBody, Session},
    journal::{Lines, Reader},
};

/// A reader of the journal in `folder`.
pub(super) fn reader(folder: &Path) -> Result<Reader, Failed> {
    is_state(folder)?;
    Reader::open(folder).map_err(Failed::because)
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

/// The latest `limit` sessions in `folder`, oldest of them first.
pub(super) fn sessions(
    folder: &Path,
    agent: Option<&str>,
    limit: usize,
) -> Result<Vec<Session>, Failed> {
    let mut sessions = BTreeMap::new();
    reader(folder)?
        .each(|record| {
            if agent.is_none_or(|agent| *agent == *record.agent) {
                learn(&mut sessions, &record);
            }
            true
        })
        .map_err(Failed::because)?;
    let mut sessions: Vec<Session> = sessions.into_values().collect();
    sessions.sort_by_key(|session| session.started);
    let surplus = sessions.len().saturating_sub(limit);
    sessions.drain(..surplus);
    Ok(sessions)
}

fn learn(sessions: &mut BTreeMap<SessionId, Session>, record: &Record) {
    let Some(id) = record.session else { return };
    if let Event::SessionStart(start) | Event::DatagramsStart(start) = &record.event {
        let process = &start.origin.process;
        sessions.insert(
            id,
            Session {
                id,
                agent: (&*record.agent).into(),
                labels: start.origin.agent.labels.clone(),
                destination: start.origin.destination.to_string(),
                pid: process.pid,
                executable: process.executable.clone(),
                started: record.time,
                ended: None,
                reason: None,
                operations: None,
                denied: 0,
                held: 0,
            },
        );
        return;
    }
    let Some(session) = sessions.get_mut(&id) else {
        return;
    };
    match &record.event {
        Event::Decision(decided) => match decided.decision.verdict {
            Verdict::Allow => {}
            Verdict::Deny => session.denied += 1,
            Verdict::Hold(_) => session.held += 1,
        },
        Event::SessionEnd(end) => {
            session.ended = Some(record.time);
            session.reason = Some(end.reason.clone());
            session.operations = Some(end.operations);
        }
        _ => {}
    }
}

/// The lines of one session.
pub(super) fn session(
    folder: &Path,
    id: SessionId,
    mut each: impl FnMut(&[u8]) -> Result<Reading, Failed>,
) -> Result<(), Failed> {
    let mut lines = Lines::default();
    let mut found = false;
    let mut failed = None;
    reader(folder)?
        .each(|record| {
            if record.session != Some(id) {
                return true;
            }
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
