//! Husks: what stays of a segment that retention has removed. Bytes in, what they say out; no file is known here.
//!
//! A husk has the chain value of each of the segment's blocks, so that the tree over all blocks, and with it every
//! checkpoint that was ever signed, can be computed as before. It has the host's own records whole (starts, policies,
//! keys, holds), since what was true of the host stays true; and notices that stand in place of the rest, which say
//! what was there.
//!
//! A husk is no more trusted than what says that it belongs there: the record of the removal, which is in the chain
//! and has the husk's SHA-256. That record is the host's and so outlives the segment that it is in.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};
use rustc_hash::FxHashSet;

use super::{
    LENGTH_BYTES,
    block::{self, Hash, sha256},
    encode,
};

/// First bytes of a husk.
const MAGIC: &[u8; 8] = b"ICPTGON1";
/// Magic, number of the first record, number of the one behind the last, chain value before the first block, blocks.
const HEADER: usize = 8 + 8 + 8 + 32 + 8;

/// Name of the notice that a segment was removed, which has its husk's hash.
pub(super) const REMOVED: &str = "segment_removed";
/// Name of the notice that stands in place of the first record that was removed, and says from where to where.
pub const RECORDS_REMOVED: &str = "records_removed";
/// Name of the notice that stands in place of sessions that began there.
pub const SESSIONS_REMOVED: &str = "sessions_removed";

/// What such a notice counts: sessions that connects began, those that something else did, and refused connections.
const COUNTED: [&str; 3] = ["sessions", "other_sessions", "refused"];

/// The notice that stands in place of so many of what [`COUNTED`] names, which `agent` began from that place on.
pub(super) fn in_place_of(
    agent: Arc<str>,
    (seq, time): (u64, Timestamp),
    counts: [u64; 3],
) -> Record {
    let detail = COUNTED
        .into_iter()
        .zip(counts.map(|count| count.to_string()));
    Record {
        seq,
        time,
        session: None,
        agent,
        event: Event::notice(SESSIONS_REMOVED, detail),
    }
}

/// What is kept of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Husk {
    /// Number of its first record, which named it.
    pub(super) first_seq: u64,
    /// Number of the record behind its last.
    pub(super) next_seq: u64,
    /// The chain's value before it.
    pub(super) before: Hash,
    /// The chain's value after each of its blocks.
    pub(super) leaves: Vec<Hash>,
    /// The records that stay, and what stands in place of the others, in order.
    pub(super) records: Vec<Record>,
}

impl Husk {
    /// As it is on disk.
    ///
    /// # Errors
    /// Where a record can't be encoded; for people.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(HEADER + self.leaves.len() * size_of::<Hash>());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.next_seq.to_le_bytes());
        out.extend_from_slice(&self.before);
        out.extend_from_slice(&(self.leaves.len() as u64).to_le_bytes());
        out.extend_from_slice(self.leaves.as_flattened());
        for record in &self.records {
            let start = out.len();
            out.extend_from_slice(&[0; LENGTH_BYTES]);
            encode(record, &mut out).map_err(|stopped| stopped.to_string())?;
            let length = u32::try_from(out.len() - start - LENGTH_BYTES)
                .map_err(|_| "a record is larger than 4 GiB")?;
            if let Some(place) = out.get_mut(start..start + LENGTH_BYTES) {
                place.copy_from_slice(&length.to_le_bytes());
            }
        }
        Ok(out)
    }

    /// What `bytes` say.
    ///
    /// # Errors
    /// Where they aren't a husk; for people.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let fields = bytes.split_first_chunk().and_then(|(magic, rest)| {
            let (first_seq, rest) = rest.split_first_chunk()?;
            let (next_seq, rest) = rest.split_first_chunk()?;
            let (before, rest) = rest.split_first_chunk()?;
            let (blocks, rest) = rest.split_first_chunk()?;
            let fields = (
                u64::from_le_bytes(*first_seq),
                u64::from_le_bytes(*next_seq),
                *before,
                usize::try_from(u64::from_le_bytes(*blocks)).ok()?,
            );
            (magic == MAGIC).then_some((fields, rest))
        });
        let Some(((first_seq, next_seq, before, blocks), rest)) = fields else {
            return Err("it doesn't begin as what stays of a segment does".to_owned());
        };
        let leaves = blocks.checked_mul(size_of::<Hash>());
        let split = leaves.and_then(|leaves| rest.split_at_checked(leaves));
        let Some((leaves, records)) = split else {
            return Err("it has fewer blocks than it says".to_owned());
        };
        let (leaves, _) = leaves.as_chunks();
        let records = block::parse(records)?;
        let mut last = None;
        for record in &records {
            let is_inside = (first_seq..next_seq).contains(&record.seq);
            if !is_inside || last >= Some(record.seq) {
                return Err(format!("record {} doesn't belong there", record.seq));
            }
            last = Some(record.seq);
        }
        Ok(Self {
            first_seq,
            next_seq,
            before,
            leaves: leaves.to_vec(),
            records,
        })
    }

    /// The chain's value at its end.
    pub(super) fn chain(&self) -> Hash {
        self.leaves.last().copied().unwrap_or(self.before)
    }
}

/// What stands for a husk of these bytes in the record of the removal.
pub(super) fn hash(bytes: &[u8]) -> String {
    hex::encode(sha256(&[bytes]))
}

/// The segment that the record says was removed, and the hash of its husk, where it says that.
pub(super) fn removal(record: &Record) -> Option<(u64, &str)> {
    let Event::Event(notice) = &record.event else {
        return None;
    };
    if record.session.is_some() || &*notice.name != REMOVED {
        return None;
    }
    let segment = notice.detail.get("segment")?.parse().ok()?;
    Some((segment, notice.detail.get("husk")?))
}

/// What stays of a segment, in the making: of its records in order, but for content, of which nothing does.
#[derive(Debug, Default)]
pub(super) struct Remains {
    records: Vec<Record>,
    began: FxHashSet<SessionId>,
    /// What began of each agent since something of its stayed: only their order matters to its books.
    runs: BTreeMap<Arc<str>, Run>,
    /// The last count of each agent's connects, if it is of the number of the one before it: the next such says all
    /// that it says.
    counts: HashMap<Arc<str>, (Box<str>, Option<Record>)>,
}

#[derive(Debug)]
struct Run {
    seq: u64,
    time: Timestamp,
    /// What [`COUNTED`] names.
    counts: [u64; 3],
}

impl Remains {
    /// Takes the next record.
    pub(super) fn take(&mut self, record: Record) {
        match (&record.event, record.session) {
            (Event::SessionStart(start), Some(session)) => {
                self.began.insert(session);
                // No connect that the hooks count leads to a UNIX socket.
                match start.origin.destination.address() {
                    Some(_) => self.count(&record, [1, 0, 0]),
                    None => self.count(&record, [0, 1, 0]),
                }
            }
            (Event::DatagramsStart(_), Some(session)) => {
                self.began.insert(session);
                self.count(&record, [0, 1, 0]);
            }
            // A session that began elsewhere has ended, which nothing else would say.
            (Event::SessionEnd(_), Some(session)) if !self.began.contains(&session) => {
                self.records.push(record);
            }
            (Event::Event(notice), None) => match &*notice.name {
                "connection_refused" => self.count(&record, [0, 0, 1]),
                // Of a session that can't be read here.
                SESSIONS_REMOVED => {
                    let of = |name: &str| notice.detail.get(name)?.parse().ok();
                    self.count(&record, COUNTED.map(|name| of(name).unwrap_or(0)));
                }
                "connects_counted" => self.counted(record),
                "tag_added" | "tag_removed" => {
                    if let Some((_, Some(count))) = self.counts.remove(&record.agent) {
                        self.keep(count);
                    }
                    self.keep(record);
                }
                _ if record.agent.is_empty() => self.records.push(record),
                _ => {}
            },
            _ => {}
        }
    }

    fn counted(&mut self, record: Record) {
        let Event::Event(notice) = &record.event else {
            return;
        };
        let number: Box<str> = notice.detail.get("number").cloned().unwrap_or_default();
        let before = self.counts.remove(&record.agent);
        let goes_on = before.as_ref().is_some_and(|(of, _)| *of == number);
        let agent = record.agent.clone();
        if goes_on {
            self.counts.insert(agent, (number, Some(record)));
            return;
        }
        if let Some((_, Some(count))) = before {
            self.keep(count);
        }
        self.counts.insert(agent, (number, None));
        self.keep(record);
    }

    fn count(&mut self, record: &Record, counts: [u64; 3]) {
        let run = self.runs.entry(record.agent.clone()).or_insert(Run {
            seq: record.seq,
            time: record.time,
            counts: [0; 3],
        });
        for (sum, count) in run.counts.iter_mut().zip(counts) {
            *sum += count;
        }
    }

    fn keep(&mut self, record: Record) {
        if let Some((agent, run)) = self.runs.remove_entry(&record.agent) {
            self.end(agent, &run);
        }
        self.records.push(record);
    }

    fn end(&mut self, agent: Arc<str>, run: &Run) {
        let place = (run.seq, run.time);
        self.records.push(in_place_of(agent, place, run.counts));
    }

    /// The records that stay and those that stand in place of the others, in order; of a segment that began at
    /// `time` and had the records from `first_seq` to before `next_seq`.
    pub(super) fn finish(
        mut self,
        time: Timestamp,
        (first_seq, next_seq): (u64, u64),
    ) -> Vec<Record> {
        for (_, (_, count)) in std::mem::take(&mut self.counts) {
            self.records.extend(count);
        }
        for (agent, run) in std::mem::take(&mut self.runs) {
            self.end(agent, &run);
        }
        self.records.sort_by_key(|record| record.seq);
        // Each number is one record's, so this has that of one that is gone.
        let stay = self.records.iter().map(|record| record.seq);
        let gone = (first_seq..next_seq)
            .zip(stay.map(Some).chain(std::iter::repeat(None)))
            .find(|(seq, stays)| Some(*seq) != *stays);
        if let Some((seq, _)) = gone {
            let detail = [("first", first_seq), ("last", next_seq.saturating_sub(1))];
            let marker = Record {
                seq,
                time,
                session: None,
                agent: Arc::from(""),
                event: Event::notice(
                    RECORDS_REMOVED,
                    detail.map(|(name, seq)| (name, seq.to_string())),
                ),
            };
            let place = self.records.partition_point(|record| record.seq < seq);
            self.records.insert(place, marker);
        }
        self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(seq: u64, agent: &str, name: &str, number: &str) -> Record {
        Record {
            seq,
            time: Timestamp(seq),
            session: None,
            agent: agent.into(),
            event: Event::notice(name, [("number", number.to_owned())]),
        }
    }

    fn names(records: &[Record]) -> Vec<(u64, &str)> {
        let name = |record: &Record| match &record.event {
            Event::Event(notice) => notice.name.to_string(),
            other => other.kind().to_owned(),
        };
        records
            .iter()
            .map(|record| (record.seq, &*Box::leak(name(record).into_boxed_str())))
            .collect()
    }

    #[test]
    fn what_the_host_recorded_stays_and_the_rest_is_counted() {
        let facts = [
            notice(10, "", "daemon_started", ""),
            notice(11, "a", "connection_refused", ""),
            notice(12, "b", "connection_refused", ""),
            notice(13, "a", "tag_added", ""),
            notice(14, "a", "connection_refused", ""),
            notice(15, "a", "connects_counted", "1"),
            notice(16, "a", "connects_counted", "1"),
            notice(17, "a", "connects_counted", "1"),
            notice(18, "a", "mask_failed", ""),
            notice(19, "a", "connection_refused", ""),
            notice(20, "a", "connects_counted", "1"),
            notice(21, "a", "connects_counted", "2"),
        ];
        let mut remains = Remains::default();
        for fact in facts {
            remains.take(fact);
        }
        let kept = remains.finish(Timestamp(9), (10, 30));
        assert_eq!(
            names(&kept),
            [
                (10, "daemon_started"),
                (11, SESSIONS_REMOVED),
                (12, SESSIONS_REMOVED),
                (13, "tag_added"),
                (14, SESSIONS_REMOVED),
                // Of several counts the first and the last say all.
                (15, "connects_counted"),
                (16, RECORDS_REMOVED),
                (19, SESSIONS_REMOVED),
                (20, "connects_counted"),
                (21, "connects_counted"),
            ]
        );
        let husk = Husk {
            first_seq: 10,
            next_seq: 30,
            before: [3; 32],
            leaves: vec![[4; 32], [5; 32]],
            records: kept,
        };
        let bytes = husk.encode().unwrap();
        assert_eq!(Husk::decode(&bytes).unwrap(), husk);
        assert_eq!(husk.chain(), [5; 32]);
        for length in 0..bytes.len() {
            // Cut off or changed, it is an error or something else, and never a panic.
            let _ = Husk::decode(&bytes[..length]);
            let mut changed = bytes.clone();
            changed[length] ^= 0x81;
            assert_ne!(Husk::decode(&changed).as_ref(), Ok(&husk), "byte {length}");
        }
        Husk::decode(&bytes[..bytes.len() - 1]).unwrap_err();
    }

    #[test]
    fn a_removal_is_told_by_the_host_alone() {
        let mut record = notice(7, "", REMOVED, "");
        assert_eq!(removal(&record), None);
        record.event = Event::notice(
            REMOVED,
            [("segment", "3".to_owned()), ("husk", "ab".to_owned())],
        );
        assert_eq!(removal(&record), Some((3, "ab")));
        record.session = Some(SessionId(1));
        assert_eq!(removal(&record), None);
    }
}
