//! Removal: closed segments go, and what stays of each is its husk.
//!
//! The order is what makes it safe to end at any moment: first it is on record, on disk, that the segment is removed
//! and what stays of it; then the husk is there; then the segment goes. As long as a segment is there its husk isn't
//! believed, so whoever was interrupted begins anew.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use interceptor_core::record::{Event, Record, SessionEnd, SessionId, Timestamp};

use super::{
    Journal, JournalError, Stopped,
    block::{BLOCK_HEADER, Layout, Unreadable, Whose},
    disk::{Disk, Local},
    encryption::SessionKeys,
    husk::{self, Husk, Remains},
    index::Forgotten,
    io_error,
    reader::read_block,
    segment::{self, Names},
};

/// A segment that nothing is added to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    /// Number of its first record.
    pub(crate) number: u64,
    /// Number of the record behind its last.
    pub(crate) next: u64,
    /// Bytes on disk.
    pub(crate) bytes: u64,
}

/// What is in a closed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    /// When its last block was written.
    pub(crate) newest: Timestamp,
    /// The agents that it has records of; empty where it isn't certain that these are all.
    pub(crate) agents: BTreeSet<Arc<str>>,
}

/// Why a segment wasn't removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRemoved {
    /// It isn't what it was, or the disk fails. What is damaged is evidence of that.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// That it is removed can't be recorded.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl NotRemoved {
    /// Where the work of it didn't come to its end: the daemon stops.
    pub(crate) fn cut_short(error: tokio::task::JoinError) -> Self {
        Self::Stopped(Stopped(error.to_string().into()))
    }
}

/// What becomes of a segment.
pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    contents: Contents,
    forgotten: Forgotten,
}

impl Journal {
    /// The segments that may be removed, oldest first: those that are closed and signed.
    ///
    /// # Errors
    /// Where they can't be listed.
    pub(crate) fn closed(&self) -> Result<Vec<Closed>, JournalError> {
        let directory = self.directory();
        let signed = self.signed_seq();
        let names = Names::read(&Local, directory)?;
        let all = names.merged();
        let following = all.iter().skip(1).copied();
        let pairs = all.iter().copied().zip(following);
        let closed = pairs.filter(|(number, next)| {
            !names.husks.contains(number) && next.saturating_sub(1) <= signed
        });
        Ok(closed
            .map(|(number, next)| {
                let path = segment::path(directory, number);
                let bytes = std::fs::metadata(path).map_or(0, |found| found.len());
                Closed {
                    number,
                    next,
                    bytes,
                }
            })
            .collect())
    }

    /// What is in `closed`: reads all of it.
    ///
    /// # Errors
    /// Where it can't be read, or isn't what it was.
    pub(crate) fn contents(&self, closed: &Closed) -> Result<Contents, JournalError> {
        let made = self.make(closed)?;
        Ok(made.contents)
    }

    /// When the last block of `closed` was written.
    ///
    /// # Errors
    /// Where it can't be read.
    pub(crate) fn newest(&self, closed: &Closed) -> Result<Timestamp, JournalError> {
        let path = segment::path(self.directory(), closed.number);
        let file = std::fs::File::open(&path).map_err(io_error("opening", &path))?;
        let scanned = segment::scan(&file).map_err(io_error("reading", &path))?;
        let last = scanned.and_then(|scanned| scanned.blocks.last().copied());
        Ok(Timestamp(last.map_or(0, |(_, header)| header.time_ns)))
    }

    /// Removes `closed`, and says on record that and why; but not where it has something of a session that is `held`,
    /// which it says itself: an index that has lost something lets go of nothing.
    ///
    /// # Errors
    /// Where it isn't what it was, nothing can be recorded, or the disk fails.
    pub(crate) async fn remove(
        &self,
        closed: Closed,
        held: &BTreeSet<SessionId>,
        why: &str,
    ) -> Result<(), NotRemoved> {
        let journal = self.clone();
        let making = move || journal.make(&closed);
        let made = blocking(making).await?;
        let mut places = made.forgotten.places.iter();
        if places.any(|(session, _)| held.contains(session)) {
            return Ok(());
        }
        let event = Event::notice(
            husk::REMOVED,
            [
                ("segment", closed.number.to_string()),
                ("last", closed.next.saturating_sub(1).to_string()),
                ("bytes", closed.bytes.to_string()),
                ("husk", husk::hash(&made.bytes)),
                ("why", why.to_owned()),
            ],
        );
        let seq = self.append(None, &Arc::from(""), crate::clock::now(), [event])?;
        self.durable(seq).await?;
        let journal = self.clone();
        let replacing = move || {
            replace(&Local, journal.directory(), closed.number, &made.bytes)?;
            let names = Names::read(&Local, journal.directory())?;
            let first_kept = names.segments.first().copied().unwrap_or(closed.next);
            journal.index().forget(made.forgotten, first_kept);
            Ok(())
        };
        blocking(replacing).await
    }

    fn make(&self, closed: &Closed) -> Result<Made, JournalError> {
        let place = (closed.number, closed.next);
        make(&Local, self.directory(), self.keys(), place)
    }

    /// The closed segments that have something of `session`.
    pub(crate) fn segments_of(&self, session: SessionId) -> BTreeSet<u64> {
        let places = self.index().blocks_of(session);
        places.iter().map(|place| place.segment).collect()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, NotRemoved> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(NotRemoved::cut_short)??)
}

/// Makes the husk of the segment `number`, which record `next` follows.
///
/// # Errors
/// Where it can't be read, or isn't what it was.
pub(super) fn make<D: Disk>(
    disk: &D,
    directory: &Path,
    keys: &SessionKeys,
    (number, next): (u64, u64),
) -> Result<Made, JournalError> {
    let path = segment::path(directory, number);
    let file = disk.open(&path).map_err(io_error("opening", &path))?;
    let scanned = segment::scan(&file).map_err(io_error("reading", &path))?;
    let damaged = |offset, what: &str| JournalError::Damaged {
        path: path.clone(),
        offset,
        what: what.to_owned(),
    };
    let scanned = scanned
        .filter(|scanned| scanned.first_seq == number)
        .ok_or_else(|| damaged(0, "its header is not a segment's"))?;
    let mut husk = Husk {
        first_seq: number,
        next_seq: number,
        before: scanned.chain_before,
        leaves: Vec::new(),
        records: Vec::new(),
    };
    let (mut remains, mut places) = (Remains::default(), Vec::new());
    let (mut began_at, mut newest) = (None, 0);
    let (mut agents, mut known) = (BTreeSet::new(), BTreeSet::new());
    for (offset, header) in scanned.blocks {
        if header.first_seq >= next {
            break;
        }
        let block = read_block(&file, offset).map_err(io_error("reading", &path))?;
        let whole = block.filter(|(_, stored)| header.is_chained(&husk.chain(), stored));
        let (_, stored) = whole.ok_or_else(|| {
            damaged(
                offset,
                "a block was changed, or doesn't follow the one before it",
            )
        })?;
        let unreadable = |why: Unreadable| match why {
            Unreadable::Damaged(what) => damaged(offset + BLOCK_HEADER as u64, &what),
            Unreadable::Locked(session) => JournalError::Locked(session),
            Unreadable::Erased(session) => JournalError::Erased(session),
        };
        let facts = header.facts(&stored, keys).map_err(unreadable)?.records;
        let mut sealed = BTreeSet::new();
        match header.layout {
            Layout::Parts(_) => {
                let parts = header.parts(&stored);
                for part in parts.map_err(|what| unreadable(what.into()))? {
                    let Whose::Session(session) = part.whose else {
                        continue;
                    };
                    places.push((session, header.first_seq));
                    if let Some(head) = part.sealed {
                        sealed.insert(session);
                        known.insert(session);
                        if !agents.contains(head.agent) {
                            agents.insert(head.agent.into());
                        }
                    }
                }
            }
            Layout::Whole(_) => {
                let records = header.records(&stored, keys).map_err(unreadable)?;
                let sessions: BTreeSet<_> =
                    records.iter().filter_map(|record| record.session).collect();
                places.extend(
                    sessions
                        .into_iter()
                        .map(|session| (session, header.first_seq)),
                );
            }
        }
        for fact in facts {
            began_at.get_or_insert(fact.time);
            known.extend(fact.session);
            if !fact.agent.is_empty() && !agents.contains(&fact.agent) {
                agents.insert(fact.agent.clone());
            }
            remains.take(match fact.session {
                Some(session) if sealed.contains(&session) => without_content(fact),
                _ => fact,
            });
        }
        newest = newest.max(header.time_ns);
        husk.next_seq = header.first_seq.saturating_add(header.count.into());
        husk.leaves.push(header.chain);
    }
    if husk.next_seq != next {
        return Err(damaged(0, "it doesn't end where the next one begins"));
    }
    // Of a session that has nothing but content there it isn't known whose it is.
    if places.iter().any(|(session, _)| !known.contains(session)) {
        agents.clear();
    }
    let forgotten = Forgotten { places };
    let time = began_at.unwrap_or(Timestamp(newest));
    husk.records = remains.finish(time, (number, next));
    Ok(Made {
        bytes: husk.encode().map_err(|what| damaged(0, &what))?,
        contents: Contents {
            newest: Timestamp(newest),
            agents,
        },
        forgotten,
    })
}

/// A fact of an encrypted session, as it may stay in clear: that it ended, and nothing of how.
fn without_content(fact: Record) -> Record {
    let event = match fact.event {
        Event::SessionEnd(_) => Event::SessionEnd(SessionEnd {
            reason: "not kept".into(),
            operations: 0,
            bytes_from_client: 0,
            bytes_from_upstream: 0,
        }),
        event => event,
    };
    Record { event, ..fact }
}

/// Puts the husk `bytes` in place of the segment `number`.
///
/// # Errors
/// Where the disk fails: then the segment is there still, or the husk.
pub(super) fn replace<D: Disk>(
    disk: &D,
    directory: &Path,
    number: u64,
    bytes: &[u8],
) -> Result<(), JournalError> {
    let husk = segment::husk_path(directory, number);
    disk.replace(&husk, bytes)
        .map_err(io_error("writing", &husk))?;
    let path = segment::path(directory, number);
    disk.remove(&path)
        .and_then(|()| disk.sync_folder(&segment::folder(directory)))
        .map_err(io_error("removing", &path))
}
