//! A run: the words of some sessions' operations, gathered in memory and then never changed.
//!
//! On disk it is a table of its sessions and chunks of its words in order, each word with the sessions that have it
//! as places in the table. Both are small numbers and shared beginnings, and compressed as well.

use std::collections::HashMap;

use interceptor_core::record::{Event, Record, SessionId};
use rustc_hash::FxHashMap;

use super::{
    split,
    text::{Term, Text},
};
use crate::journal::segment::Location;

/// Memory that a run may take before it is put on disk, in bytes: some 30,000 different words.
const MEMORY_BYTES_MAX: usize = 4 << 20;

/// What a word takes besides its own bytes: key, places, a share of the table.
const WORD_BYTES: usize = 112;

/// What a session takes.
const SESSION_BYTES: usize = 48;

/// Bytes of words in a chunk, before compression: read whole for each word that is looked up.
const CHUNK_BYTES: usize = 16 << 10;

/// Largest chunk or table that is read back, in bytes before compression: a word of all the sessions that a run's
/// memory has room for is far below.
const RAW_BYTES_MAX: usize = 64 << 20;

/// zstd's fastest ordinary level.
const LEVEL: i32 = 1;

/// A session in a run: its id, and when it began if that was in the run.
pub(in crate::journal) type Member = (SessionId, Option<u64>);

/// A run in the making.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    members: Vec<Member>,
    places: FxHashMap<SessionId, u32>,
    /// Agents choose the words: their table's order has to be one that nobody can guess.
    words: HashMap<Box<[u8]>, Places>,
    bytes: usize,
    /// The last block that all words were taken of.
    up_to: Option<Location>,
    /// It is one that no run tells of yet.
    is_ahead: bool,
}

/// The places of the sessions that have a word. Most words are of one.
#[derive(Debug)]
struct Places {
    first: u32,
    more: Vec<u32>,
    /// How many of `more` are in order, once each.
    sorted: usize,
}

/// A run that is done.
#[derive(Debug)]
pub(in crate::journal) struct Run {
    /// When its last session began, in nanoseconds since the epoch.
    pub(super) newest: u64,
    /// The last block that it and the runs before it have all words of.
    pub(super) up_to: Option<Location>,
    pub(super) table: Vec<u8>,
    /// Chunks by their first word.
    pub(super) chunks: Vec<(Box<[u8]>, Vec<u8>)>,
}

impl Gathering {
    /// Takes the words of `record`; `put` takes a run where one is full, and says whether it could.
    pub(super) fn take(&mut self, record: &Record, mut put: impl FnMut(Run) -> bool) -> bool {
        let Some(session) = record.session else {
            return true;
        };
        match &record.event {
            Event::SessionStart(_) | Event::DatagramsStart(_) => {
                let place = self.place(session);
                if let Some(member) = self.members.get_mut(place as usize) {
                    member.1 = Some(record.time.0);
                }
            }
            Event::Operation(attempted) => {
                let mut is_put = true;
                let mut place = self.place(session);
                split::texts(&attempted.operation, |text| {
                    split::each(text, |word, _| {
                        // One operation may have more words than there is room for.
                        if self.bytes >= MEMORY_BYTES_MAX {
                            is_put &= put(self.finish());
                            place = self.place(session);
                        }
                        self.add(word, place);
                    });
                });
                return is_put;
            }
            _ => {}
        }
        true
    }

    fn place(&mut self, session: SessionId) -> u32 {
        *self.places.entry(session).or_insert_with(|| {
            // Memory ends long before.
            let place = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
            self.members.push((session, None));
            self.bytes += SESSION_BYTES;
            place
        })
    }

    fn add(&mut self, word: &[u8], place: u32) {
        if let Some(places) = self.words.get_mut(word) {
            self.bytes += places.add(place);
            return;
        }
        self.bytes += WORD_BYTES + word.len();
        let places = Places {
            first: place,
            more: Vec::new(),
            sorted: 0,
        };
        self.words.insert(word.into(), places);
    }

    /// The sessions that have words of `text`, and which of them; with when those began that did in here.
    pub(super) fn find(&self, text: &Text) -> Vec<(Member, u32)> {
        let mut masks = vec![0; self.members.len()];
        for (index, term) in text.terms().iter().enumerate() {
            match term {
                Term::Word(word) => {
                    if let Some(places) = self.words.get(word) {
                        mark(&mut masks, places.all(), 1 << index);
                    }
                }
                Term::Prefix(_) => {
                    let found = self.words.iter().filter(|(word, _)| term.is(word));
                    found.for_each(|(_, places)| mark(&mut masks, places.all(), 1 << index));
                }
            }
        }
        let found = self.members.iter().copied().zip(masks);
        found.filter(|(_, mask)| *mask != 0).collect()
    }

    /// Whether no run has, or tells of, what was taken.
    pub(super) const fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    /// Notes that all of the block at `location` was taken.
    pub(super) const fn has_all_of(&mut self, location: Location) {
        self.up_to = Some(location);
        self.is_ahead = true;
    }

    /// What was gathered, as it is kept; it is empty then.
    pub(super) fn finish(&mut self) -> Run {
        let up_to = self.up_to;
        let Self { members, words, .. } = std::mem::take(self);
        self.up_to = up_to;
        let mut words: Vec<_> = words.into_iter().collect();
        words.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut chunks = Vec::new();
        let mut open = None;
        let mut raw = Vec::with_capacity(CHUNK_BYTES * 2);
        for (word, mut places) in words {
            let (first, last) = open
                .take()
                .unwrap_or_else(|| (word.clone(), Box::default()));
            let shared = word.iter().zip(&last).take_while(|(a, b)| a == b).count();
            let rest = word.get(shared..).unwrap_or_default();
            number(&mut raw, shared as u64);
            number(&mut raw, rest.len() as u64);
            raw.extend_from_slice(rest);
            places.write(&mut raw);
            if raw.len() >= CHUNK_BYTES {
                chunks.push((first, packed(&raw)));
                raw.clear();
            } else {
                open = Some((first, word));
            }
        }
        if let Some((first, _)) = open {
            chunks.push((first, packed(&raw)));
        }
        Run {
            newest: members
                .iter()
                .filter_map(|member| member.1)
                .max()
                .unwrap_or(0),
            up_to,
            table: table(&members),
            chunks,
        }
    }
}

fn mark(masks: &mut [u32], places: impl Iterator<Item = u32>, bit: u32) {
    for place in places {
        if let Some(mask) = masks.get_mut(place as usize) {
            *mask |= bit;
        }
    }
}

impl Places {
    /// Adds `place`; how much more memory it takes.
    fn add(&mut self, place: u32) -> usize {
        if self.more.last().copied().unwrap_or(self.first) == place || self.first == place {
            return 0;
        }
        let before = self.more.capacity();
        // Sessions that go on side by side come again and again.
        if self.more.len() == before && self.more.len() >= 16 && self.more.len() >= self.sorted * 2
        {
            self.sort();
        }
        self.more.push(place);
        self.more.capacity().saturating_sub(before) * size_of::<u32>()
    }

    fn sort(&mut self) {
        self.more.sort_unstable();
        self.more.dedup();
        self.sorted = self.more.len();
    }

    fn all(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        self.more.push(self.first);
        self.sort();
        number(out, self.more.len() as u64);
        let mut before = 0;
        for place in &self.more {
            number(out, u64::from(place - before));
            before = *place;
        }
    }
}

/// The sessions of a run: ids, and when each began, counted from the first that did in it.
fn table(members: &[Member]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(members.len() * 16);
    let starts = members.iter().filter_map(|member| member.1);
    let earliest = starts.min().unwrap_or(0);
    number(&mut raw, members.len() as u64);
    number(&mut raw, earliest);
    for (session, started) in members {
        raw.extend_from_slice(&session.0.to_le_bytes());
        // Zero is that it began earlier.
        number(
            &mut raw,
            started.map_or(0, |at| (at - earliest).saturating_add(1)),
        );
    }
    packed(&raw)
}

/// The sessions that a table has.
pub(super) fn members(table: &[u8]) -> Option<Vec<Member>> {
    let raw = unpacked(table)?;
    let mut rest = raw.as_slice();
    let count = usize::try_from(take_number(&mut rest)?).ok()?;
    let earliest = take_number(&mut rest)?;
    // Each takes nine bytes.
    let mut members = Vec::with_capacity(count.min(rest.len() / 9));
    for _ in 0..count {
        let (id, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        let started = take_number(&mut rest)?;
        let started = started.checked_sub(1).map(|at| earliest.saturating_add(at));
        members.push((SessionId(u64::from_le_bytes(*id)), started));
    }
    Some(members)
}

/// Marks with `bit` those in `masks` that have `term` by a chunk; whether words after the chunk could be it as well.
pub(super) fn look_up(chunk: &[u8], term: &Term, bit: u32, masks: &mut [u32]) -> Option<bool> {
    let raw = unpacked(chunk)?;
    let mut rest = raw.as_slice();
    let mut word = Vec::with_capacity(split::WORD_BYTES_MAX);
    let (Term::Word(wanted) | Term::Prefix(wanted)) = term;
    while !rest.is_empty() {
        let shared = usize::try_from(take_number(&mut rest)?).ok()?;
        let length = usize::try_from(take_number(&mut rest)?).ok()?;
        let (end, after) = rest.split_at_checked(length)?;
        word.truncate(shared);
        word.extend_from_slice(end);
        rest = after;
        let is_it = term.is(&word);
        if !is_it && *word > **wanted {
            return Some(false);
        }
        let count = take_number(&mut rest)?;
        let mut place = 0_u64;
        for _ in 0..count {
            place = place.checked_add(take_number(&mut rest)?)?;
            if is_it {
                *masks.get_mut(usize::try_from(place).ok()?)? |= bit;
            }
        }
    }
    Some(matches!(term, Term::Prefix(_)))
}

/// `raw` compressed, behind how long it is.
fn packed(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, raw.len() as u64);
    // Compressing into memory doesn't fail; what isn't there isn't taken for something else.
    out.extend(zstd::bulk::compress(raw, LEVEL).unwrap_or_default());
    out
}

fn unpacked(packed: &[u8]) -> Option<Vec<u8>> {
    let mut rest = packed;
    let length = usize::try_from(take_number(&mut rest)?).ok()?;
    if length > RAW_BYTES_MAX {
        return None;
    }
    let raw = zstd::bulk::decompress(rest, length).ok()?;
    (raw.len() == length).then_some(raw)
}

/// Writes `value`, seven bits a byte, the lowest first.
fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7F).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

/// Reads one back.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gathered(sessions: &[(u64, &[&str])]) -> Gathering {
        let mut gathering = Gathering::default();
        for (session, words) in sessions {
            let place = gathering.place(SessionId(*session));
            for word in *words {
                gathering.add(word.as_bytes(), place);
            }
        }
        gathering
    }

    fn found(run: &Run, text: &str) -> Vec<u64> {
        let text = Text::parse(text).unwrap();
        let members = members(&run.table).unwrap();
        let mut masks = vec![0; members.len()];
        for (index, term) in text.terms().iter().enumerate() {
            for (_, chunk) in &run.chunks {
                look_up(chunk, term, 1 << index, &mut masks).unwrap();
            }
        }
        let all = super::super::text::all(text.terms().len());
        let members = members.into_iter().zip(masks);
        members
            .filter(|(_, mask)| *mask == all)
            .map(|((id, _), _)| id.0)
            .collect()
    }

    #[test]
    fn what_is_gathered_is_found_before_and_after_it_is_put_away() {
        let mut gathering = gathered(&[
            (7, &["select", "orders", "shop.orders"]),
            (u64::MAX, &["select", "users"]),
            (7, &["delete"]),
            (9, &["selected"]),
        ]);
        for (asked, expected) in [
            ("select", &[7, u64::MAX][..]),
            ("select orders", &[7]),
            ("sel*", &[7, u64::MAX, 9]),
            ("delete users", &[]),
            ("shop.*", &[7]),
            ("shop.o*", &[7]),
            ("zebra", &[]),
        ] {
            let text = Text::parse(asked).unwrap();
            let all = super::super::text::all(text.terms().len());
            let fresh = gathering.find(&text);
            let fresh: Vec<u64> = fresh
                .iter()
                .filter(|(_, mask)| *mask == all)
                .map(|((id, _), _)| id.0)
                .collect();
            assert_eq!(fresh, expected, "{asked}");
        }
        let run = gathering.finish();
        assert!(gathering.members.is_empty() && gathering.words.is_empty());
        assert_eq!(found(&run, "select"), [7, u64::MAX]);
        assert_eq!(found(&run, "select orders"), [7]);
        assert_eq!(found(&run, "sel*"), [7, u64::MAX, 9]);
        assert!(found(&run, "delete users").is_empty());
        assert!(found(&run, "zebra").is_empty());
    }

    #[test]
    fn sessions_side_by_side_take_room_once() {
        let mut gathering = Gathering::default();
        let places: Vec<u32> = (0..100).map(|id| gathering.place(SessionId(id))).collect();
        for _ in 0..10_000 {
            for place in &places {
                gathering.add(b"select", *place);
            }
        }
        assert!(gathering.bytes < 100_000, "{}", gathering.bytes);
        assert_eq!(found(&gathering.finish(), "select").len(), 100);
    }

    proptest! {
        #[test]
        fn words_come_back_as_they_went_in(all in prop::collection::vec((0..40_u64, "[a-f]{1,6}"), 0..400)) {
            let mut gathering = Gathering::default();
            for (session, word) in &all {
                let place = gathering.place(SessionId(*session));
                gathering.add(word.as_bytes(), place);
            }
            let run = gathering.finish();
            for (_, word) in &all {
                let mut expected: Vec<u64> = all.iter().filter(|(_, other)| other == word).map(|(id, _)| *id).collect();
                expected.sort_unstable();
                expected.dedup();
                let mut found = found(&run, word);
                found.sort_unstable();
                prop_assert_eq!(found, expected);
            }
        }

        #[test]
        fn any_bytes_as_a_chunk_or_a_table_do_no_harm(bytes in any::<Vec<u8>>(), at in 0..100_usize, to in any::<u8>()) {
            let term = Term::Prefix(b"ab"[..].into());
            let _ = (members(&bytes), look_up(&bytes, &term, 1, &mut [0; 4]));
            let wrapped = packed(&bytes);
            let _ = (members(&wrapped), look_up(&wrapped, &term, 1, &mut [0; 4]));
            let mut run = gathered(&[(1, &["abc", "abd"]), (2, &["abc"])]).finish();
            for (_, chunk) in &mut run.chunks {
                if let Some(byte) = chunk.get_mut(at) {
                    *byte = to;
                }
                let _ = look_up(chunk, &term, 1, &mut [0; 2]);
            }
        }
    }
}
