//! Reads a journal along, from a record on, while it is written.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use interceptor_core::record::Record;

use super::{
    JournalError,
    block::{BLOCK_HEADER, Unreadable},
    disk::Local,
    encryption::SessionKeys,
    husk::Husk,
    io_error,
    reader::read_block,
    segment::{self, SEGMENT_HEADER},
};

/// Reads block after block, each once. It keeps a place and no records, so that it costs the same however far it is
/// behind.
#[derive(Debug)]
pub(crate) struct Follower {
    directory: PathBuf,
    keys: Arc<SessionKeys>,
    /// Number of the record that it gives next.
    next_seq: u64,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    file: File,
    offset: u64,
}

/// Where the record that comes next is.
enum Found {
    Place(Place),
    /// It was removed, and this is what stays of its segment.
    Husk(Husk),
}

impl Follower {
    /// Reads the journal in `directory` from record `next_seq` on, with these keys.
    pub(super) fn new(directory: &Path, keys: Arc<SessionKeys>, next_seq: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            keys,
            next_seq,
            place: None,
        }
    }

    /// Number of the record that it gives next.
    pub(crate) const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The records of the next block; of sessions that were erased there are none. Only for who knows that it is on disk: nothing says where a block that is
    /// being written ends.
    ///
    /// # Errors
    /// Where it isn't there or is damaged. The next call looks for it anew.
    pub(crate) fn next_block(&mut self) -> Result<Vec<Record>, JournalError> {
        let read = self.read();
        if read.is_err() {
            self.place = None;
        }
        read
    }

    fn read(&mut self) -> Result<Vec<Record>, JournalError> {
        loop {
            let mut place = match self.place.take() {
                Some(place) => place,
                None => match self.find()? {
                    Found::Place(place) => place,
                    Found::Husk(husk) => {
                        let behind = std::mem::replace(&mut self.next_seq, husk.next_seq);
                        let mut records = husk.records;
                        records.retain(|record| record.seq >= behind);
                        if records.is_empty() {
                            continue;
                        }
                        return Ok(records);
                    }
                },
            };
            let damaged = |what: &str| JournalError::Damaged {
                path: place.path.clone(),
                offset: place.offset,
                what: what.to_owned(),
            };
            let block = read_block(&place.file, place.offset)
                .map_err(io_error("reading", &place.path))?
                // The block that failed at the end of a segment is in the next one as well.
                .filter(|(header, _)| {
                    header.first_seq.saturating_add(header.count.into()) > self.next_seq
                });
            let Some((header, payload)) = block.filter(|_| !self.begins_a_segment(&place)) else {
                if !self.is_removed() {
                    self.place = Some(self.next_segment(&place)?);
                }
                continue;
            };
            let records = header.records(&payload, &self.keys);
            let mut records = records.map_err(|why| match why {
                Unreadable::Damaged(what) => damaged(&what),
                Unreadable::Locked(session) => JournalError::Locked(session),
                Unreadable::Erased(session) => JournalError::Erased(session),
            })?;
            records.retain(|record| record.seq >= self.next_seq);
            self.next_seq = header.first_seq.saturating_add(header.count.into());
            place.offset += BLOCK_HEADER as u64 + payload.len() as u64;
            self.place = Some(place);
            return Ok(records);
        }
    }

    /// Whether the record that comes next begins a segment, and `place` is in another one.
    fn begins_a_segment(&self, place: &Place) -> bool {
        let path = segment::path(&self.directory, self.next_seq);
        path != place.path && path.exists()
    }

    /// Whether the record that comes next began a segment that is gone.
    fn is_removed(&self) -> bool {
        !segment::path(&self.directory, self.next_seq).exists()
            && segment::husk_path(&self.directory, self.next_seq).exists()
    }

    /// The beginning of the segment that begins with the record that comes next, which isn't in `place`'s.
    fn next_segment(&self, place: &Place) -> Result<Place, JournalError> {
        let path = segment::path(&self.directory, self.next_seq);
        if path == place.path {
            return Err(JournalError::Damaged {
                path,
                offset: place.offset,
                what: "there is no block".to_owned(),
            });
        }
        open(path, SEGMENT_HEADER as u64)
    }

    /// Where the block stands that has the record that comes next.
    fn find(&self) -> Result<Found, JournalError> {
        let names = segment::Names::read(&Local, &self.directory)?;
        let numbers = names.merged();
        let number = numbers
            .iter()
            .rev()
            .find(|number| **number <= self.next_seq);
        let number = number.copied().unwrap_or(1);
        if names.husks.contains(&number) {
            return segment::husk(&Local, &self.directory, number).map(Found::Husk);
        }
        let path = segment::path(&self.directory, number);
        let mut place = open(path, SEGMENT_HEADER as u64)?;
        let scanned = segment::scan(&place.file).map_err(io_error("reading", &place.path))?;
        for (offset, header) in scanned.iter().flat_map(|scanned| &scanned.blocks) {
            place.offset = *offset;
            if header.first_seq.saturating_add(header.count.into()) > self.next_seq {
                break;
            }
            place.offset = offset + BLOCK_HEADER as u64 + u64::from(header.stored);
        }
        Ok(Found::Place(place))
    }
}

fn open(path: PathBuf, offset: u64) -> Result<Place, JournalError> {
    let file = File::open(&path).map_err(io_error("opening", &path))?;
    Ok(Place { path, file, offset })
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::Arc};

    use interceptor_core::record::{Event, Timestamp};

    use super::*;
    use crate::journal::{Journal, Reader};

    async fn append(journal: &Journal, count: u64) {
        for _ in 0..count {
            let event = Event::notice("x", []);
            let seq = journal.append(None, &Arc::from("a"), Timestamp(1), [event]);
            journal.durable(seq.unwrap()).await.unwrap();
        }
    }

    /// A journal of three segments with five records each, in blocks of one.
    async fn recorded(directory: &Path) {
        for _ in 0..3 {
            let journal = Journal::open(directory).unwrap();
            append(&journal, 5).await;
            journal.close();
        }
    }

    #[tokio::test]
    async fn it_goes_on_from_any_record_across_segments_and_waits_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        recorded(folder.path()).await;
        for first in 1..=15 {
            let mut follower = Follower::new(folder.path(), SessionKeys::none(), first);
            let mut seen = Vec::new();
            while follower.next_seq() <= 15 {
                let records = follower.next_block().unwrap();
                seen.extend(records.iter().map(|record| record.seq));
            }
            assert_eq!(seen, (first..=15).collect::<Vec<_>>());
            // Nothing of it is lost by asking too early.
            follower.next_block().unwrap_err();
            assert_eq!(follower.next_seq(), 16);
        }
        let mut follower = Follower::new(folder.path(), SessionKeys::none(), 15);
        follower.next_block().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        append(&journal, 1).await;
        assert_eq!(journal.beyond(15).await, Some(16));
        assert_eq!(follower.next_block().unwrap()[0].seq, 16);
        journal.close();
    }

    #[tokio::test]
    async fn what_a_disk_has_left_behind_a_segment_is_neither_read_nor_on_record() {
        let folder = tempfile::tempdir().unwrap();
        recorded(folder.path()).await;
        let reader = Reader::open(folder.path()).unwrap();
        let numbers = reader.segments().unwrap();
        assert_eq!(numbers, [1, 6, 11]);
        let (path, bytes) = reader.on_record(1, Some(6)).unwrap();
        assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
        // The first block of the next segment, which was tried here first.
        let next = std::fs::read(segment::path(folder.path(), 6)).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&next[SEGMENT_HEADER..]).unwrap();
        assert_eq!(reader.on_record(1, Some(6)).unwrap(), (path, bytes));
        let mut follower = Follower::new(folder.path(), SessionKeys::none(), 1);
        let mut seen = Vec::new();
        while follower.next_seq() <= 15 {
            let records = follower.next_block().unwrap();
            seen.extend(records.iter().map(|record| record.seq));
        }
        assert_eq!(seen, (1..=15).collect::<Vec<_>>());
        let (last, bytes) = reader.on_record(11, None).unwrap();
        assert_eq!(bytes, std::fs::metadata(last).unwrap().len());
    }

    #[tokio::test]
    async fn what_is_withheld_by_two_is_let_go_of_by_both() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let (one, other): (Arc<str>, Arc<str>) = (Arc::from("one"), Arc::from("other"));
        journal.withhold(&one, Some("it waits".to_owned()));
        journal.withhold(&other, Some("so does it".to_owned()));
        journal.withhold(&one, None);
        let event = || [Event::notice("x", [])];
        let refused = journal
            .append(None, &one, Timestamp(1), event())
            .unwrap_err();
        assert_eq!(&*refused.0, "so does it");
        assert_eq!(journal.stopped(), Some(refused));
        let resumed = tokio::spawn({
            let journal = journal.clone();
            async move { journal.resumed().await }
        });
        tokio::task::yield_now().await;
        assert!(!resumed.is_finished());
        journal.withhold(&other, None);
        resumed.await.unwrap();
        append(&journal, 1).await;
        journal.close();
    }
}
