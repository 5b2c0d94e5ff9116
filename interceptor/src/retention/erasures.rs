//! Erased sessions, as records say it.

use std::{collections::BTreeMap, sync::Mutex};

use interceptor_core::record::{Record, SessionId};

use crate::{
    journal::{Erasure, Journal, JournalError, encryption_began},
    sync::lock,
};

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Erasures(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    erased: BTreeMap<SessionId, Erasure>,
    /// What sessions are encrypted with.
    keys: Option<Box<str>>,
}

impl Erasures {
    /// Takes in what the record says of erasures, if it does.
    pub(super) fn observe(&self, record: &Record) {
        if let Some(keys) = encryption_began(record) {
            // There is one such record, and what another one says is none of this journal's.
            lock(&self.0).keys.get_or_insert_with(|| keys.into());
        }
        if let Some(erasure) = Erasure::read(record) {
            self.put(erasure);
        }
    }

    /// Whether it is on record what sessions are encrypted with.
    pub(super) fn has_keys(&self) -> bool {
        lock(&self.0).keys.is_some()
    }

    /// Has `journal` go on with what is on record of it.
    ///
    /// # Errors
    /// Where its keys are other ones, or the disk fails.
    pub(super) fn take_up(&self, journal: &Journal) -> Result<(), JournalError> {
        let known = lock(&self.0);
        journal.take_up_keys(known.keys.as_deref(), known.erased.values().cloned())
    }

    pub(super) fn put(&self, erasure: Erasure) {
        lock(&self.0).erased.insert(erasure.session, erasure);
    }

    pub(super) fn of(&self, session: SessionId) -> Option<Erasure> {
        lock(&self.0).erased.get(&session).cloned()
    }

    /// By when they were.
    pub(super) fn all(&self) -> Vec<Erasure> {
        let mut all: Vec<Erasure> = lock(&self.0).erased.values().cloned().collect();
        all.sort_by_key(|erasure| erasure.at);
        all
    }
}
