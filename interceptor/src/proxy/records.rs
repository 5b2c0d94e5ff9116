//! Where sessions put what goes on record.

use std::{
    fs::File,
    io::{self, Write as _},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};

use super::{desk::Desk, keeper::CONGESTED_BYTES, message::ToDaemon};
use crate::{
    journal::{Full, Inlet, Stopped, encode},
    sync::lock,
};

/// The end of the feed that all sessions of this process share.
#[derive(Debug)]
pub(super) struct Feed {
    inlet: Mutex<(Inlet, Vec<u8>)>,
    /// When the disk had no room for a record, in nanoseconds since 1970; 0 where people have been told that it
    /// has some again.
    full_at: AtomicU64,
    bell: File,
}

/// Records that are on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Where the last of them ends.
    pub(crate) position: u64,
    /// How much they are.
    pub(crate) bytes: usize,
}

/// How long a disk that had no room counts as full, in nanoseconds.
const FULL_FOR_NS: u64 = 5_000_000_000;

/// Longest record whose buffer is kept for the next, in bytes.
const KEPT_BYTES: usize = 1 << 20;

impl Feed {
    /// Feeds `file`, and rings `bell` for who reads.
    pub(super) fn new(file: File, bell: File) -> io::Result<Self> {
        Ok(Self {
            inlet: Mutex::new((Inlet::of(file)?, Vec::new())),
            full_at: AtomicU64::new(0),
            bell,
        })
    }

    fn inlet(&self) -> MutexGuard<'_, (Inlet, Vec<u8>)> {
        lock(&self.inlet)
    }
}

/// The same, and how to ask the daemon what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    feed: Arc<Feed>,
    desk: Arc<Desk>,
}

impl Records {
    pub(super) const fn new(feed: Arc<Feed>, desk: Arc<Desk>) -> Self {
        Self { feed, desk }
    }

    /// Puts `events` of `session` on their way to the journal, to follow one another. They outlive this process and the daemon, and are on disk within 50 ms, or when
    /// [`Records::durable`] says so.
    ///
    /// # Errors
    /// Where the journal takes no records now, or not as many.
    pub(crate) fn append(
        &self,
        session: SessionId,
        agent: &Arc<str>,
        time: Timestamp,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Appended, Stopped> {
        let mut inlet = self.feed.inlet();
        let (inlet, buffer) = &mut *inlet;
        if inlet.is_stopped() {
            return Err(Stopped("the disk is full, or fails".into()));
        }
        let mut appended = Appended::default();
        let mut rings = false;
        for event in events {
            let record = Record {
                // The journal's to give.
                seq: 0,
                time,
                session: Some(session),
                agent: agent.clone(),
                event,
            };
            buffer.clear();
            encode(&record, buffer)?;
            let pushed = inlet.push(buffer);
            self.tell_of_room(pushed != Err(Full::Disk), time);
            let (position, asleep) = pushed.map_err(|full| {
                let why = match full {
                    Full::Ring => "the disk takes nothing",
                    Full::Disk => "there is no room on the disk",
                };
                Stopped(why.into())
            })?;
            appended.position = position;
            appended.bytes += buffer.len();
            rings |= asleep;
            buffer.shrink_to(KEPT_BYTES);
        }
        if rings {
            // There is always room for one; where nobody listens this process is about to end.
            let _ = (&self.feed.bell).write(&[0]);
        }
        Ok(appended)
    }

    /// Has people know where the disk has no room, and where it has had some again for a while: small records
    /// find some where large ones don't.
    fn tell_of_room(&self, has_room: bool, now: Timestamp) {
        let full_at = &self.feed.full_at;
        let since = full_at.load(Ordering::Relaxed);
        if !has_room {
            full_at.store(now.0, Ordering::Relaxed);
            self.desk.tell(&ToDaemon::NoRoom(true));
        } else if since != 0 && now.0.saturating_sub(since) > FULL_FOR_NS {
            full_at.store(0, Ordering::Relaxed);
            self.desk.tell(&ToDaemon::NoRoom(false));
        }
    }

    /// Waits while more is waiting to be written than the disk takes. Sessions do so before they append: the agent
    /// that asks for much is slowed down, and nobody is refused for it.
    ///
    /// # Errors
    /// Where the disk fails, or takes nothing for seconds.
    pub(crate) async fn room(&self) -> Result<(), Stopped> {
        if self.feed.inlet().0.backlog() < CONGESTED_BYTES {
            return Ok(());
        }
        self.desk.room().await.map_err(|why| Stopped(why.into()))
    }

    /// Waits until records are taken again, or there is no daemon.
    pub(crate) async fn resumed(&self) {
        let _ = self.desk.resumed().await;
    }

    /// Waits until what is before `position` is on disk.
    ///
    /// # Errors
    /// Where the disk fails before that.
    pub(crate) async fn durable(&self, position: u64) -> Result<(), Stopped> {
        let durable = self.desk.durable(position).await;
        durable.map_err(|why| Stopped(why.into()))
    }
}
