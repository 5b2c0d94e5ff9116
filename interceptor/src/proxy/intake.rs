//! Records from the feed into the journal.

use std::{sync::Mutex, time::Duration};

use super::sessions::{Fact, Sessions};
use crate::{
    journal::{Fed, Fresh, Journal, Later, Outlet, Stopped},
    sync::lock,
};

/// How long records gather in the feed where nobody waits for them: whoever wrote one doesn't have to be woken
/// for the next.
pub(super) const GATHER: Duration = Duration::from_millis(2);

/// How often it is tried again where the journal has others to write first.
pub(super) const BUSY: Duration = Duration::from_millis(2);

/// How often it is tried again where the journal takes no records.
pub(super) const STOPPED: Duration = Duration::from_millis(100);

/// The reader's side of the feed.
#[derive(Debug)]
pub(super) struct Intake {
    journal: Journal,
    outlet: Mutex<Place>,
}

#[derive(Debug)]
struct Place {
    outlet: Outlet,
    /// The last record that was taken.
    last: u64,
}

/// Why not everything was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// The journal takes no records.
    Stopped(Stopped),
    /// It has others to write first.
    Busy,
    /// Whoever writes there can't be trusted any more; what it did.
    Misbehaved(String),
}

impl Intake {
    pub(super) fn new(journal: Journal, outlet: Outlet) -> Self {
        let place = Place { outlet, last: 0 };
        Self {
            journal,
            outlet: Mutex::new(place),
        }
    }

    /// Takes what there is; the number of the last record.
    ///
    /// # Errors
    /// Why something is left.
    pub(super) fn drain(&self, sessions: &Sessions) -> Result<u64, Left> {
        let mut place = self.place();
        let drained = place.drain(&self.journal, sessions);
        let stopped = matches!(drained, Err(Left::Stopped(_)));
        place.outlet.set_stopped(stopped);
        drained
    }

    /// Has whoever writes next wake the reader; whether there is something already.
    pub(super) fn sleep(&self) -> bool {
        let place = self.place();
        place.outlet.set_asleep(true);
        place.outlet.has_more()
    }

    /// The file, for whoever writes.
    pub(super) fn file(&self) -> std::io::Result<std::fs::File> {
        self.place().outlet.file()
    }

    /// Gives up what is there.
    pub(super) fn forget(&self) {
        self.place().outlet.forget();
    }

    /// Whether everything before `position` was taken.
    pub(super) fn has_taken(&self, position: u64) -> bool {
        self.place().outlet.drained() >= position
    }

    /// Bytes that wait.
    pub(super) fn backlog(&self) -> u64 {
        self.place().outlet.backlog()
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        lock(&self.outlet)
    }
}

impl Place {
    fn drain(&mut self, journal: &Journal, sessions: &Sessions) -> Result<u64, Left> {
        if journal.is_kept(self.last) {
            self.outlet.settle();
        }
        loop {
            let waiting = self.outlet.peek();
            let waiting = waiting.map_err(|error| Left::Misbehaved(error.to_string()))?;
            if waiting.frames.is_empty() {
                return Ok(self.last);
            }
            let batch = Batch::of(waiting, sessions);
            if let Some(end) = batch.end {
                match journal.take_in(&batch.records, (&mut self.outlet, end)) {
                    Ok(last) => self.last = last,
                    Err(Later::Stopped(stopped)) => return Err(Left::Stopped(stopped)),
                    Err(Later::Busy) => return Err(Left::Busy),
                }
                sessions.recorded(batch.facts);
            }
            if let Some(what) = batch.wrong {
                return Err(Left::Misbehaved(format!("of a record: {what}")));
            }
        }
    }
}

/// What can be taken at once.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<Fed>,
    facts: Vec<Fact>,
    /// Where the last of them ends, if there is one.
    end: Option<u64>,
    /// What is wrong with the one behind them.
    wrong: Option<&'static str>,
}

impl Batch {
    /// What waits, up to the first record that no session writes: those before it did nothing wrong.
    fn of(waiting: Fresh, sessions: &Sessions) -> Self {
        let mut batch = Self::default();
        for (frame, end) in waiting.frames {
            let read = Fed::read(frame).and_then(|record| Ok((sessions.vouch(&record)?, record)));
            match read {
                Ok((fact, record)) => {
                    batch.facts.extend(fact);
                    batch.records.push(record);
                    batch.end = Some(end);
                }
                Err(what) => {
                    batch.wrong = Some(what);
                    break;
                }
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::record::{Event, Record, SessionId, Timestamp};

    use super::*;
    use crate::{
        journal::{Inlet, encode},
        proxy::sessions::tests::opening,
    };

    fn record(session: SessionId, name: &str) -> Vec<u8> {
        let record = Record {
            seq: 0,
            time: Timestamp(1),
            session: Some(session),
            agent: Arc::from("a"),
            event: Event::notice(name, []),
        };
        let mut bytes = Vec::new();
        encode(&record, &mut bytes).unwrap();
        bytes
    }

    /// What is on record of sessions, by name.
    fn names(folder: &std::path::Path) -> Vec<String> {
        let mut names = Vec::new();
        let journal = Journal::open(folder).unwrap();
        let reader = journal.reader().unwrap();
        reader
            .each(|record| {
                if let (Some(_), Event::Event(notice)) = (record.session, &record.event) {
                    names.push(notice.name.to_string());
                }
                true
            })
            .unwrap();
        journal.close();
        names
    }

    #[test]
    fn what_was_written_before_something_wrong_is_on_record_and_nothing_behind_it() {
        let sessions = Sessions::new(crate::config::Limits::default());
        let (id, _) = sessions.begin(opening(1)).unwrap();
        for wrong in [
            record(SessionId(id.0 ^ 1), "of nobody"),
            b"garbage".to_vec(),
            Vec::new(),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let journal = Journal::open(folder.path()).unwrap();
            let intake = Intake::new(journal.clone(), journal.feed().unwrap());
            let mut inlet = Inlet::of(intake.file().unwrap()).unwrap();
            for frame in [
                record(id, "one"),
                record(id, "two"),
                wrong,
                record(id, "behind"),
            ] {
                inlet.push(&frame).unwrap();
            }
            for _ in 0..2 {
                let left = intake.drain(&sessions).unwrap_err();
                assert!(matches!(left, Left::Misbehaved(_)), "{left:?}");
            }
            intake.forget();
            intake.drain(&sessions).unwrap();
            inlet.push(&record(id, "anew")).unwrap();
            intake.drain(&sessions).unwrap();
            journal.close();
            drop((journal, intake, inlet));
            assert_eq!(names(folder.path()), ["one", "two", "anew"]);
        }
    }
}
