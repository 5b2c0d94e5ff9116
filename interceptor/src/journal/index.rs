//! The index in sled: what is asked of the journal, rebuilt from the segments whenever it may be wrong.
//!
//! It is written for many blocks at once and never once a record: summaries of sessions that begin and end, and
//! for each session the blocks that hold its records.

use std::{
    collections::BTreeMap,
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use interceptor_core::{
    record::{Event, Record, SessionId, Timestamp},
    ruling::Verdict,
};
use serde::{Deserialize, Serialize};

use super::{
    JournalError,
    reader::Reader,
    segment::{Location, Recovered},
};
use crate::sync::lock;

/// What is known of a session without reading its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSummary {
    /// Its id.
    pub session: SessionId,
    /// The agent's name.
    pub agent: Arc<str>,
    /// The agent's labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Where it went.
    pub destination: String,
    /// Process id of who connected.
    pub pid: u32,
    /// Its executable.
    pub executable: Option<Box<str>>,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; `None` while it lives, or where the daemon was killed.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<Box<str>>,
    /// Operations attempted in it; known once it has ended.
    pub operations: u64,
    /// Operations denied.
    pub denied: u64,
    /// Operations held for approval.
    pub held: u64,
}

/// What the index learns from a record.
#[derive(Debug)]
pub(super) enum Fact {
    Started(Box<SessionSummary>),
    Denied(SessionId),
    Held(SessionId),
    Ended {
        session: SessionId,
        at: Timestamp,
        reason: Box<str>,
        operations: u64,
    },
}

#[derive(Debug)]
pub(super) struct Index {
    /// Gone after damage: sled answers some of it with a panic, and then nothing more is asked of it.
    database: Mutex<Option<Trees>>,
    /// Blocks that the database hasn't been told of yet: it is told of many at once, and before it is
    /// asked anything.
    untold: Mutex<Vec<Block>>,
}

/// What the index learns from one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) first_seq: u64,
    pub(super) location: Location,
    pub(super) sessions: Vec<SessionId>,
    pub(super) facts: Vec<Fact>,
}

/// Blocks that may stay untold, some seconds of a busy host.
const UNTOLD_MAX: usize = 128;

#[derive(Debug, Clone)]
struct Trees {
    sessions: sled::Tree,
    blocks: sled::Tree,
    database: sled::Db,
}

/// Number after the last record that the index knows.
const NEXT: &[u8] = b"next";

impl Fact {
    pub(super) fn of(record: &Record) -> Option<Self> {
        let session = record.session?;
        match &record.event {
            Event::SessionStart(start) | Event::DatagramsStart(start) => {
                Some(Self::Started(Box::new(SessionSummary {
                    session,
                    agent: record.agent.clone(),
                    labels: start.origin.agent.labels.clone(),
                    destination: start.origin.destination.to_string(),
                    pid: start.origin.process.pid,
                    executable: start.origin.process.executable.clone(),
                    started: record.time,
                    ended: None,
                    reason: None,
                    operations: 0,
                    denied: 0,
                    held: 0,
                })))
            }
            Event::Decision(decided) => match decided.decision.verdict {
                Verdict::Allow => None,
                Verdict::Deny => Some(Self::Denied(session)),
                Verdict::Hold(_) => Some(Self::Held(session)),
            },
            Event::SessionEnd(end) => Some(Self::Ended {
                session,
                at: record.time,
                reason: end.reason.clone(),
                operations: end.operations,
            }),
            _ => None,
        }
    }
}

impl Index {
    /// Opens the index, or rebuilds it where it is missing, damaged, or not at the segments' state.
    pub(super) fn open(directory: &Path, recovered: &Recovered) -> Result<Self, JournalError> {
        let path = directory.join("index");
        let existed = path.exists();
        let opened = contained(|| Trees::open(&path));
        if let Some(trees) = opened
            && contained(|| trees.next()) == Some(recovered.next_seq)
        {
            return Ok(Self {
                database: Mutex::new(Some(trees)),
                untold: Mutex::default(),
            });
        }
        let aside = set_aside(&path);
        if let (Some(aside), true) = (&aside, existed) {
            tracing::warn!(aside = %aside.display(), "the index doesn't fit the segments and is rebuilt");
        }
        let index = Self {
            database: Mutex::new(contained(|| Trees::open(&path))),
            untold: Mutex::default(),
        };
        let reader = Reader::open(directory)?;
        for (location, first_seq, _) in &recovered.blocks {
            let records = reader.block(*location)?;
            let sessions: Vec<SessionId> =
                records.iter().filter_map(|record| record.session).collect();
            let facts: Vec<Fact> = records.iter().filter_map(Fact::of).collect();
            index.add(Block {
                first_seq: *first_seq,
                location: *location,
                sessions,
                facts,
            });
        }
        index.set_next(recovered.next_seq);
        if let Some(aside) = aside {
            let _ = fs::remove_dir_all(aside);
        }
        Ok(index)
    }

    /// Adds a block. A failure costs answers, never evidence: the next start rebuilds.
    pub(super) fn add(&self, block: Block) {
        let mut untold = lock(&self.untold);
        untold.push(block);
        if untold.len() >= UNTOLD_MAX {
            drop(untold);
            self.tell();
        }
    }

    /// Tells the database what it hasn't been told.
    fn tell(&self) {
        // Held until all is told, so that nobody asks in between.
        let mut untold = lock(&self.untold);
        let blocks = std::mem::take(&mut *untold);
        if blocks.is_empty() {
            return;
        }
        let done = self.with(|trees| {
            let mut batch = sled::Batch::default();
            for block in &blocks {
                let mut value = [0; 16];
                value[..8].copy_from_slice(&block.location.segment.to_be_bytes());
                value[8..].copy_from_slice(&block.location.offset.to_be_bytes());
                for session in &block.sessions {
                    let mut key = [0; 16];
                    key[..8].copy_from_slice(&session.0.to_be_bytes());
                    key[8..].copy_from_slice(&block.first_seq.to_be_bytes());
                    batch.insert(&key, &value);
                }
            }
            trees.blocks.apply_batch(batch)?;
            for fact in blocks.iter().flat_map(|block| &block.facts) {
                trees.learn(fact)?;
            }
            Ok(())
        });
        if done.is_none() {
            tracing::error!("the index can't be written; it is rebuilt at the next start");
        }
    }

    /// Says that the index knows everything before `next`.
    fn set_next(&self, next: u64) {
        self.tell();
        self.with(|trees| trees.database.insert(NEXT, &next.to_be_bytes()).map(drop));
    }

    /// Summaries of all sessions, newest first.
    pub(super) fn sessions(&self) -> Vec<SessionSummary> {
        self.tell();
        let mut sessions: Vec<SessionSummary> = self
            .with(|trees| {
                Ok(trees
                    .sessions
                    .iter()
                    .values()
                    .filter_map(|value| serde_json::from_slice(&value.ok()?).ok())
                    .collect())
            })
            .unwrap_or_default();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.started));
        sessions
    }

    /// The blocks that hold records of a session, in order.
    pub(super) fn blocks_of(&self, session: SessionId) -> Vec<Location> {
        self.tell();
        self.with(|trees| {
            let found = trees.blocks.scan_prefix(session.0.to_be_bytes()).values();
            Ok(found
                .filter_map(|value| {
                    let value = value.ok()?;
                    let (segment, offset) = value.split_first_chunk::<8>()?;
                    let (offset, _) = offset.split_first_chunk::<8>()?;
                    Some(Location {
                        segment: u64::from_be_bytes(*segment),
                        offset: u64::from_be_bytes(*offset),
                    })
                })
                .collect())
        })
        .unwrap_or_default()
    }

    /// Runs `work` on the database; a failure or panic of sled's takes the index out of use.
    fn with<T>(&self, work: impl FnOnce(&Trees) -> sled::Result<T>) -> Option<T> {
        let mut database = lock(&self.database);
        let trees = database.as_ref()?.clone();
        let result = contained(|| work(&trees));
        if result.is_none() {
            *database = None;
        }
        result
    }

    /// Brings what it knows to disk, with the number up to which it is complete.
    pub(super) fn close(&self, next: u64) {
        self.set_next(next);
        self.with(|trees| trees.database.flush().map(drop));
    }
}

impl Trees {
    fn open(path: &Path) -> sled::Result<Self> {
        // Blocks come every 50 ms at most; the segments are what has to be safe, so sled's own
        // flushing every half second is enough.
        let database = sled::Config::new()
            .path(path)
            .cache_capacity(16 << 20)
            .open()?;
        Ok(Self {
            sessions: database.open_tree("sessions")?,
            blocks: database.open_tree("blocks")?,
            database,
        })
    }

    fn next(&self) -> sled::Result<u64> {
        let value = self.database.get(NEXT)?;
        let next = value.and_then(|value| Some(u64::from_be_bytes(*value.first_chunk::<8>()?)));
        // Whatever happens from here on, what the file says is out of date until it is closed.
        self.database.remove(NEXT)?;
        self.database.flush()?;
        Ok(next.unwrap_or(0))
    }

    fn learn(&self, fact: &Fact) -> sled::Result<()> {
        let change =
            |session: SessionId, change: &dyn Fn(&mut SessionSummary)| -> sled::Result<()> {
                let key = session.0.to_be_bytes();
                let Some(value) = self.sessions.get(key)? else {
                    return Ok(());
                };
                if let Ok(mut summary) = serde_json::from_slice::<SessionSummary>(&value) {
                    change(&mut summary);
                    self.sessions
                        .insert(key, serde_json::to_vec(&summary).unwrap_or_default())?;
                }
                Ok(())
            };
        match fact {
            Fact::Started(summary) => {
                let value = serde_json::to_vec(summary).unwrap_or_default();
                self.sessions
                    .insert(summary.session.0.to_be_bytes(), value)
                    .map(drop)
            }
            Fact::Denied(session) => change(*session, &|summary| summary.denied += 1),
            Fact::Held(session) => change(*session, &|summary| summary.held += 1),
            Fact::Ended {
                session,
                at,
                reason,
                operations,
            } => change(*session, &|summary| {
                summary.ended = Some(*at);
                summary.reason = Some(reason.clone());
                summary.operations = *operations;
            }),
        }
    }
}

/// Runs `work`; sled panics on some damage to its files, which is as good as an error here.
fn contained<T>(work: impl FnOnce() -> sled::Result<T>) -> Option<T> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the index");
            None
        }
        Err(_) => None,
    }
}

/// Moves a folder out of the way, under a name that isn't taken.
fn set_aside(path: &Path) -> Option<PathBuf> {
    let aside = path.with_extension("damaged");
    let _ = fs::remove_dir_all(&aside);
    fs::rename(path, &aside).ok().map(|()| aside)
}
