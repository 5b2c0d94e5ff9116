//! The runs in sled.

use interceptor_core::record::{SessionId, Timestamp};
use rustc_hash::FxHashMap;

use super::{
    Fresh,
    run::{self, Member, Run},
    text::{Term, Text, all},
};
use crate::journal::segment::Location;

/// All runs, newest first in either tree.
#[derive(Debug)]
pub(in crate::journal) struct Shelf {
    /// By number: when the newest session of a run began, and its table.
    runs: sled::Tree,
    /// By number and first word: its chunks.
    words: sled::Tree,
    /// Oldest first.
    known: Vec<Known>,
    /// The last block that all words of are there.
    up_to: Option<Location>,
}

/// What is known of a run without reading it.
#[derive(Debug)]
struct Known {
    number: u64,
    /// When its newest session began.
    newest: u64,
    /// The last block that it and those before it have all words of.
    up_to: Option<Location>,
}

/// What is kept of a run beside its chunks: when its newest session began, the last block that it and those before it
/// have all words of (none where the segment is 0), and its table.
const HEAD: usize = 3 * 8;

impl Shelf {
    /// The runs of `database`.
    ///
    /// # Errors
    /// Where they can't be read.
    pub(in crate::journal) fn open(database: &sled::Db) -> sled::Result<Self> {
        let runs = database.open_tree("runs")?;
        let (mut known, mut up_to) = (Vec::new(), None);
        for entry in &runs {
            let (key, value) = entry?;
            let number = number_of(&key).ok_or_else(|| damaged("the number of a run"))?;
            let (head, _) = head_of(&value).ok_or_else(|| damaged("a run"))?;
            if known.is_empty() {
                up_to = head.up_to;
            }
            known.push(Known {
                number,
                newest: head.newest,
                up_to: head.up_to,
            });
        }
        known.reverse();
        Ok(Self {
            up_to,
            runs,
            words: database.open_tree("words")?,
            known,
        })
    }

    /// Puts `run` in, the newest of all.
    ///
    /// # Errors
    /// Where it can't be written.
    pub(in crate::journal) fn put(&mut self, run: Run) -> sled::Result<()> {
        let number = self.known.last().map_or(0, |last| last.number + 1);
        let mut batch = sled::Batch::default();
        for (first, chunk) in run.chunks {
            batch.insert(key(number, &first), chunk);
        }
        self.words.apply_batch(batch)?;
        let mut value = Vec::with_capacity(HEAD + run.table.len());
        // Segments are called after their first record, which is never 0.
        let (segment, offset) = run.up_to.map_or((0, 0), |at| (at.segment, at.offset));
        for number in [run.newest, segment, offset] {
            value.extend_from_slice(&number.to_be_bytes());
        }
        value.extend_from_slice(&run.table);
        self.up_to = run.up_to;
        self.runs.insert(key(number, &[]), value)?;
        self.known.push(Known {
            number,
            newest: run.newest,
            up_to: run.up_to,
        });
        Ok(())
    }

    /// Takes out the runs that have only words of segments before `first_kept`.
    ///
    /// # Errors
    /// Where they can't be.
    pub(in crate::journal) fn forget(&mut self, first_kept: u64) -> sled::Result<()> {
        let is_before = |known: &Known| known.up_to.is_some_and(|at| at.segment < first_kept);
        let count = self
            .known
            .iter()
            .rposition(is_before)
            .map_or(0, |last| last + 1);
        for known in self.known.drain(..count) {
            let mut batch = sled::Batch::default();
            let own = key(known.number, &[])..key_after(known.number);
            for entry in self.words.range(own).keys() {
                batch.remove(entry?);
            }
            self.words.apply_batch(batch)?;
            self.runs.remove(key(known.number, &[]))?;
        }
        Ok(())
    }

    /// Whether all words of the block at `location` are there.
    pub(in crate::journal) fn has(&self, location: Location) -> bool {
        self.up_to.is_some_and(|up_to| {
            (location.segment, location.offset) <= (up_to.segment, up_to.offset)
        })
    }

    /// Gives `each` the sessions that have all words of `text`, those that began last first, until it says that it is
    /// enough. `fresh` is what isn't in here yet.
    ///
    /// # Errors
    /// Where the runs can't be read, or `each` fails.
    pub(in crate::journal) fn find(
        &self,
        text: &Text,
        fresh: Fresh,
        mut each: impl FnMut(SessionId, Timestamp) -> sled::Result<bool>,
    ) -> sled::Result<()> {
        // When the newest session began of each run and all before it.
        let mut newest = 0;
        let bounds: Vec<u64> = self
            .known
            .iter()
            .map(|known| {
                newest = newest.max(known.newest);
                newest
            })
            .collect();
        let mut matching = Matching {
            wanted: all(text.terms().len()),
            ..Matching::default()
        };
        for (member, mask) in fresh {
            matching.take(member, mask);
        }
        for (known, bound) in self.known.iter().zip(&bounds).rev() {
            // What began after everything that is left comes before all of it.
            if !matching.give(*bound, &mut each)? {
                return Ok(());
            }
            self.look_into(known.number, text, &mut matching)?;
        }
        matching.give(0, &mut each).map(drop)
    }

    /// Has `matching` take what the run has.
    fn look_into(&self, number: u64, text: &Text, matching: &mut Matching) -> sled::Result<()> {
        let value = self.runs.get(key(number, &[]))?;
        let members = value
            .as_deref()
            .and_then(head_of)
            .and_then(|(_, table)| run::members(table))
            .ok_or_else(|| damaged("the sessions of a run"))?;
        let mut masks = vec![0; members.len()];
        for (index, term) in text.terms().iter().enumerate() {
            self.look_up(number, term, 1 << index, &mut masks)?;
        }
        for (member, mask) in members.into_iter().zip(masks) {
            if mask != 0 || matching.goes_on(member.0) {
                matching.take(member, mask);
            }
        }
        Ok(())
    }

    fn look_up(&self, number: u64, term: &Term, bit: u32, masks: &mut [u32]) -> sled::Result<()> {
        let (Term::Word(word) | Term::Prefix(word)) = term;
        let wanted = key(number, word);
        let first = self
            .words
            .range(key(number, &[])..=wanted.clone())
            .next_back()
            .transpose()?;
        let later = self.words.range(wanted.clone()..key_after(number));
        // The range begins with the first one where that is the word itself.
        let later = later.filter(
            |entry| !matches!((entry, &first), (Ok((key, _)), Some((first, _))) if key == first),
        );
        for entry in first.clone().into_iter().map(Ok).chain(later) {
            let (_, chunk) = entry?;
            let goes_on = run::look_up(&chunk, term, bit, masks);
            if !goes_on.ok_or_else(|| damaged("words of a run"))? {
                break;
            }
        }
        Ok(())
    }
}

/// Sessions on the way from newer runs to older ones.
#[derive(Debug, Default)]
struct Matching {
    wanted: u32,
    /// Those that began in an older run, with what they have so far.
    going_on: FxHashMap<SessionId, u32>,
    /// Those that have everything, by when they began.
    found: Vec<(u64, SessionId)>,
}

impl Matching {
    fn goes_on(&self, session: SessionId) -> bool {
        !self.going_on.is_empty() && self.going_on.contains_key(&session)
    }

    fn take(&mut self, (session, started): Member, mask: u32) {
        let mask = match self.going_on.is_empty() {
            true => mask,
            false => mask | self.going_on.remove(&session).unwrap_or(0),
        };
        match started {
            None => _ = self.going_on.insert(session, mask),
            Some(started) if mask == self.wanted => self.found.push((started, session)),
            Some(_) => {}
        }
    }

    /// Gives `each` those found that began at `bound` or later, newest first; whether it wants more.
    fn give(
        &mut self,
        bound: u64,
        mut each: impl FnMut(SessionId, Timestamp) -> sled::Result<bool>,
    ) -> sled::Result<bool> {
        self.found
            .sort_unstable_by_key(|(started, session)| (*started, std::cmp::Reverse(*session)));
        while let Some((started, session)) = self.found.pop_if(|(started, _)| *started >= bound) {
            if !each(session, Timestamp(started))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Newest first.
fn key(number: u64, word: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + word.len());
    key.extend_from_slice(&(u64::MAX - number).to_be_bytes());
    key.extend_from_slice(word);
    key
}

/// What no key of the run reaches.
fn key_after(number: u64) -> Vec<u8> {
    (u64::MAX - number).saturating_add(1).to_be_bytes().to_vec()
}

fn number_of(key: &[u8]) -> Option<u64> {
    let number = key.first_chunk::<8>()?;
    Some(u64::MAX - u64::from_be_bytes(*number))
}

/// What is known of a run without its table.
struct Head {
    newest: u64,
    up_to: Option<Location>,
}

fn head_of(value: &[u8]) -> Option<(Head, &[u8])> {
    let (head, table) = value.split_first_chunk::<HEAD>()?;
    let (newest, rest) = head.split_first_chunk::<8>()?;
    let (segment, offset) = rest.split_first_chunk::<8>()?;
    let at = Location {
        segment: u64::from_be_bytes(*segment),
        offset: u64::from_be_bytes(*offset.first_chunk::<8>()?),
    };
    let head = Head {
        newest: u64::from_be_bytes(*newest),
        up_to: (at.segment != 0).then_some(at),
    };
    Some((head, table))
}

/// sled is given up with it, and the segments are asked.
fn damaged(what: &str) -> sled::Error {
    sled::Error::ReportableBug(format!("{what} can't be read"))
}
