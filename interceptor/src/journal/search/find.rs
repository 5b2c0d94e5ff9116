//! Looking for what is searched for on record: phrases among what the index finds, and everything where it has none.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};

use super::text::{Seen, Text};
use crate::journal::{
    JournalError, SessionSummary, Wanted, index::Index, reader::Reader, segment::Location,
};

/// How long sessions are looked into for one question. People wait that long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sessions that the index is asked for at once.
const PAGE: usize = 256;

/// Blocks that are kept while sessions that have records in them are looked into: neighbours share theirs.
const BLOCKS_KEPT: usize = 8;

/// Sessions that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Those, newest first.
    pub sessions: Vec<SessionSummary>,
    /// Where looking took too long: of sessions that began then or earlier, only some were looked into.
    pub stopped: Option<Timestamp>,
}

/// The latest `limit` sessions that are `wanted` and have `text`, newest first.
///
/// # Errors
/// Where records can't be read.
pub(in crate::journal) fn find(
    index: &Index,
    reader: &Reader,
    (wanted, text): (&Wanted, &Arc<Text>),
    limit: usize,
) -> Result<Found, JournalError> {
    find_within(PATIENCE, index, reader, (wanted, text), limit)
}

fn find_within(
    patience: Duration,
    index: &Index,
    reader: &Reader,
    (wanted, text): (&Wanted, &Arc<Text>),
    limit: usize,
) -> Result<Found, JournalError> {
    if !text.is_verified()
        && let Some(sessions) = index.with_words(wanted, text, limit)
    {
        return Ok(Found {
            sessions,
            stopped: None,
        });
    }
    let until = Instant::now() + patience;
    // Where it wouldn't tell a moment ago it isn't waited for again.
    let mut has_words = text.is_verified();
    let mut looking = Looking {
        index,
        reader,
        text,
        until,
        blocks: VecDeque::new(),
    };
    let mut found = Found::default();
    let mut asked = wanted.clone();
    // Those that were looked into, of the last moment that was asked about.
    let mut edge = BTreeSet::new();
    while found.sessions.len() < limit {
        let room = PAGE + edge.len();
        let with_words = has_words
            .then(|| index.with_words(&asked, text, room))
            .flatten();
        let page = with_words.unwrap_or_else(|| {
            has_words = false;
            index.sessions(&asked, room)
        });
        let is_last = page.len() < room;
        let Some(oldest) = page.last().map(|session| session.started) else {
            break;
        };
        if asked.until != Some(oldest) {
            edge.retain(|(started, _)| *started == oldest);
        }
        asked.until = Some(oldest);
        for session in page {
            let began = session.started;
            if (began == oldest && !edge.insert((began, session.session)))
                || found.sessions.len() >= limit
            {
                continue;
            }
            match looking.has_it(session.session)? {
                Some(true) => found.sessions.push(session),
                Some(false) => {}
                None => {
                    found.stopped = Some(began);
                    return Ok(found);
                }
            }
        }
        if is_last {
            break;
        }
    }
    Ok(found)
}

/// Looks into sessions.
struct Looking<'a> {
    index: &'a Index,
    reader: &'a Reader,
    text: &'a Text,
    until: Instant,
    /// Operations of the blocks that were read last.
    blocks: VecDeque<(Location, Vec<Record>)>,
}

impl Looking<'_> {
    /// Whether `session` has it all; `None` where there is no time left.
    fn has_it(&mut self, session: SessionId) -> Result<Option<bool>, JournalError> {
        let mut seen = Seen::default();
        for location in self.index.blocks_of(session) {
            if Instant::now() > self.until {
                return Ok(None);
            }
            let text = self.text;
            for record in self.block(location)? {
                if record.session == Some(session)
                    && let Event::Operation(attempted) = &record.event
                {
                    seen.take(text, &attempted.operation);
                }
            }
            if seen.is_all(text) {
                return Ok(Some(true));
            }
        }
        Ok(Some(false))
    }

    fn block(&mut self, location: Location) -> Result<&[Record], JournalError> {
        let known = self.blocks.iter().position(|(known, _)| *known == location);
        let block = match known.and_then(|known| self.blocks.remove(known)) {
            Some(block) => block,
            None => match self.reader.attempts(location) {
                // Since it was asked where they are.
                Err(JournalError::Removed(_)) => (location, Vec::new()),
                attempts => (location, attempts?),
            },
        };
        self.blocks.truncate(BLOCKS_KEPT - 1);
        self.blocks.push_front(block);
        Ok(self.blocks.front().map_or(&[], |(_, records)| records))
    }
}
