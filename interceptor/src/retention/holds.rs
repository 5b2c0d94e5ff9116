//! Legal holds: sessions that are kept whatever their age, as records say it.

use std::{collections::BTreeMap, sync::Mutex};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::sync::lock;

/// Name of the notice that a session is held.
pub(crate) const PLACED: &str = "legal_hold_placed";
/// Name of the notice that it isn't any more.
pub(crate) const RELEASED: &str = "legal_hold_released";

/// A session that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Which.
    pub session: SessionId,
    /// Who holds it.
    pub by: Box<str>,
    /// What for, in their words.
    pub reason: Box<str>,
    /// Since when.
    #[serde(with = "crate::rfc3339")]
    pub since: Timestamp,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<BTreeMap<SessionId, Hold>>);

impl Holds {
    /// Takes in what the record says of holds, if it does.
    pub(super) fn observe(&self, record: &Record) {
        let (Event::Event(notice), None) = (&record.event, record.session) else {
            return;
        };
        let of = |name: &str| notice.detail.get(name).cloned();
        let session = of("session").and_then(|session| session.parse::<SessionId>().ok());
        match (&*notice.name, session) {
            (PLACED, Some(session)) => self.put(Hold {
                session,
                by: of("by").unwrap_or_default(),
                reason: of("reason").unwrap_or_default(),
                since: record.time,
            }),
            (RELEASED, Some(session)) => self.remove(session),
            _ => {}
        }
    }

    pub(super) fn has(&self, session: SessionId) -> bool {
        lock(&self.0).contains_key(&session)
    }

    pub(super) fn put(&self, hold: Hold) {
        lock(&self.0).insert(hold.session, hold);
    }

    pub(super) fn remove(&self, session: SessionId) {
        lock(&self.0).remove(&session);
    }

    /// By when they began.
    pub(super) fn all(&self) -> Vec<Hold> {
        let mut all: Vec<Hold> = lock(&self.0).values().cloned().collect();
        all.sort_by_key(|hold| hold.since);
        all
    }
}
