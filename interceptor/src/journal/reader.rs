//! Reading records back, of a running journal or a copied state folder.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use interceptor_core::record::{Record, SessionId};

use super::{
    JournalError,
    block::{BLOCK_HEADER, BlockHeader, Unreadable, Whose},
    disk::{Content, Local},
    encryption::{MasterKey, SessionKeys},
    husk::Husk,
    io_error,
    segment::{self, Location},
};

/// What a journal consists of for who reads it.
pub(super) enum Piece<'a> {
    /// What stays of a segment that was removed.
    Husk(Husk),
    /// A block.
    Block(Location, &'a BlockHeader),
}

/// Reads the segments of a state folder. It needs no lock: what is written never changes.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    keys: Arc<SessionKeys>,
}

impl Reader {
    /// A reader of the state folder `directory`, of encrypted sessions too where the key for them is in it.
    ///
    /// # Errors
    /// Where it isn't one, or its key isn't what opens them.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        Self::unlocked(directory, None)
    }

    /// The same with the key `master`, where there is one.
    ///
    /// # Errors
    /// As of [`Reader::open`].
    pub fn unlocked(directory: &Path, master: Option<&MasterKey>) -> Result<Self, JournalError> {
        let keys = SessionKeys::read(&Local, directory, master)?;
        Self::with_keys(directory, keys)
    }

    /// A reader of the state folder `directory` with these keys.
    ///
    /// # Errors
    /// Where it isn't one.
    pub(super) fn with_keys(
        directory: &Path,
        keys: Arc<SessionKeys>,
    ) -> Result<Self, JournalError> {
        segment::list(&Local, directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            keys,
        })
    }

    /// What it opens sessions with.
    pub(super) fn keys(&self) -> &Arc<SessionKeys> {
        &self.keys
    }

    /// The records of one block.
    ///
    /// # Errors
    /// Where it can't be read or is damaged.
    pub fn block(&self, location: Location) -> Result<Vec<Record>, JournalError> {
        self.of_block(location, |header, stored| {
            header.records(stored, &self.keys)
        })
    }

    /// The records of `session` in one block; those of the others aren't looked at.
    ///
    /// # Errors
    /// Where it can't be read or is damaged.
    pub(super) fn part(
        &self,
        location: Location,
        session: SessionId,
    ) -> Result<Vec<Record>, JournalError> {
        self.of_block(location, |header, stored| {
            let parts = header.parts(stored)?;
            let part = parts.iter().find(|part| part.may_have(Some(session)));
            let mut records = match part {
                Some(part) => part.records(&self.keys)?,
                None => Vec::new(),
            };
            records.retain(|record| record.session == Some(session));
            Ok(records)
        })
    }

    /// The how manieth of its session the part in one block is, and whether it is encrypted; `None` where a block has no
    /// parts.
    ///
    /// # Errors
    /// Where it can't be read or is damaged.
    pub(super) fn nth(
        &self,
        location: Location,
        session: SessionId,
    ) -> Result<Option<(u32, bool)>, JournalError> {
        self.of_block(location, |header, stored| {
            let parts = header.parts(stored)?;
            let mut own = parts
                .iter()
                .filter(|part| part.whose == Whose::Session(session));
            Ok(own.next().map(|part| (part.nth, part.sealed.is_some())))
        })
    }

    /// Those of one block that begin a session or are operations.
    ///
    /// # Errors
    /// Where it can't be read or is damaged.
    pub(super) fn attempts(&self, location: Location) -> Result<Vec<Record>, JournalError> {
        let mut attempts = Vec::new();
        self.of_block(location, |header, stored| {
            header.each_attempt(stored, &self.keys, |record| attempts.push(record.clone()))
        })?;
        attempts.sort_by_key(|record| record.seq);
        Ok(attempts)
    }

    /// Gives `take` each of them that is in clear, session by session, one at a time in memory.
    ///
    /// # Errors
    /// Where it can't be read or is damaged; some may have been given then.
    pub(super) fn each_clear_attempt(
        &self,
        location: Location,
        take: impl FnMut(&Record),
    ) -> Result<(), JournalError> {
        self.of_block(location, |header, stored| {
            header.each_clear_attempt(stored, take)
        })
    }

    /// The state folder.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What `look` makes of a block's header and parts; it says what is wrong with them.
    pub(super) fn of_block<T>(
        &self,
        location: Location,
        look: impl FnOnce(&BlockHeader, &[u8]) -> Result<T, Unreadable>,
    ) -> Result<T, JournalError> {
        let path = segment::path(&self.directory, location.segment);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_removed(location) => {
                return Err(JournalError::Removed(location.segment));
            }
            Err(error) => return Err(io_error("opening", &path)(error)),
        };
        let damaged = |what: String| JournalError::Damaged {
            path: path.clone(),
            offset: location.offset,
            what,
        };
        let (header, stored) = read_block(&file, location.offset)
            .map_err(io_error("reading", &path))?
            .ok_or_else(|| damaged("there is no block".to_owned()))?;
        look(&header, &stored).map_err(|why| match why {
            Unreadable::Damaged(what) => damaged(what),
            Unreadable::Locked(session) => JournalError::Locked(session),
            Unreadable::Erased(session) => JournalError::Erased(session),
        })
    }

    fn is_removed(&self, location: Location) -> bool {
        segment::husk_path(&self.directory, location.segment).exists()
    }

    /// The numbers of the segments' first records, in order; the last one is being written while a daemon runs.
    ///
    /// # Errors
    /// Where they can't be listed.
    pub(crate) fn segments(&self) -> Result<Vec<u64>, JournalError> {
        segment::list(&Local, &self.directory)
    }

    /// The same, each with the number of the first record behind it; of the last there is none.
    ///
    /// # Errors
    /// Where they can't be listed.
    pub(crate) fn followed(&self) -> Result<Vec<(u64, Option<u64>)>, JournalError> {
        let names = segment::Names::read(&Local, &self.directory)?;
        let all = names.merged();
        let following = all.iter().skip(1).copied().map(Some).chain([None]);
        let pairs = all.iter().copied().zip(following);
        Ok(pairs
            .filter(|(number, _)| !names.husks.contains(number))
            .collect())
    }

    /// The numbers of the segments that were removed.
    ///
    /// # Errors
    /// Where they can't be listed.
    pub(crate) fn husks(&self) -> Result<Vec<u64>, JournalError> {
        let names = segment::Names::read(&Local, &self.directory)?;
        Ok(names.husks.into_iter().collect())
    }

    /// The file of the segment `number`, and how many bytes of it are on record: up to where record `next` follows,
    /// which the next segment begins with. Of the last segment `next` is `None`. What a disk that failed has left
    /// behind those is in the next segment; where nothing can be told the file is taken as it is.
    ///
    /// # Errors
    /// Where it can't be read.
    pub(crate) fn on_record(
        &self,
        number: u64,
        next: Option<u64>,
    ) -> Result<(PathBuf, u64), JournalError> {
        let path = segment::path(&self.directory, number);
        let file = File::open(&path).map_err(io_error("opening", &path))?;
        let reading = || io_error("reading", &path);
        let whole = file.length().map_err(reading())?;
        let scanned = segment::scan(&file).map_err(reading())?;
        let ends = scanned.iter().flat_map(|scanned| &scanned.blocks);
        let mut ends = ends.map(|(offset, header)| {
            let following = header.first_seq.saturating_add(header.count.into());
            let length = BLOCK_HEADER as u64 + u64::from(header.stored);
            (following, offset.saturating_add(length))
        });
        let end = match next {
            Some(next) => ends.find(|(following, _)| *following == next),
            None => ends.next_back(),
        };
        Ok((path, end.map_or(whole, |(_, end)| end)))
    }

    /// Every record, in order; `each` may end it by returning `false`. Of segments that retention has removed these
    /// are the records that stay and what stands in place of the others; see [`super::RECORDS_REMOVED`].
    ///
    /// # Errors
    /// Where a segment can't be read or is damaged.
    pub fn each(&self, mut each: impl FnMut(Record) -> bool) -> Result<(), JournalError> {
        self.each_piece(|piece| match piece {
            Piece::Husk(husk) => Ok(husk.records.into_iter().all(&mut each)),
            Piece::Block(location, _) => Ok(self.block(location)?.into_iter().all(&mut each)),
        })
    }

    /// The same without what servers answered and what passed without being an operation, which is most of it.
    ///
    /// # Errors
    /// As of [`Reader::each`].
    pub(crate) fn each_deed(
        &self,
        mut each: impl FnMut(Record) -> bool,
    ) -> Result<(), JournalError> {
        self.each_piece(|piece| match piece {
            Piece::Husk(husk) => Ok(husk.records.into_iter().all(&mut each)),
            Piece::Block(location, _) => {
                let deeds =
                    self.of_block(location, |header, stored| header.deeds(stored, &self.keys));
                Ok(deeds?.into_iter().all(&mut each))
            }
        })
    }

    /// Every record of `session`, in order; `each` may end it by returning `false`.
    ///
    /// # Errors
    /// Where a segment can't be read or what it has of the session is damaged.
    pub fn session(
        &self,
        session: SessionId,
        mut each: impl FnMut(Record) -> bool,
    ) -> Result<(), JournalError> {
        self.each_header(|location, _| Ok(self.part(location, session)?.into_iter().all(&mut each)))
    }

    /// Every block with its records, in order; `each` may end it by returning `false`.
    pub(super) fn each_block(
        &self,
        mut each: impl FnMut(Location, &BlockHeader, &mut Vec<Record>) -> bool,
    ) -> Result<(), JournalError> {
        self.each_header(|location, header| Ok(each(location, header, &mut self.block(location)?)))
    }

    /// Every block's header and where it stands, in order; `each` may end it by returning `false`.
    pub(super) fn each_header(
        &self,
        mut each: impl FnMut(Location, &BlockHeader) -> Result<bool, JournalError>,
    ) -> Result<(), JournalError> {
        self.each_piece(|piece| match piece {
            Piece::Husk(_) => Ok(true),
            Piece::Block(location, header) => each(location, header),
        })
    }

    /// Every block's header and, where segments were removed, what stays of them, in order; `each` may end it by
    /// returning `false`.
    pub(super) fn each_piece(
        &self,
        mut each: impl FnMut(Piece<'_>) -> Result<bool, JournalError>,
    ) -> Result<(), JournalError> {
        let names = segment::Names::read(&Local, &self.directory)?;
        let mut numbers = names.merged().into_iter().peekable();
        while let Some(number) = numbers.next() {
            let next = numbers.peek().copied();
            let path = segment::path(&self.directory, number);
            let file = match File::open(&path) {
                Ok(file) => file,
                // It was removed before this was asked for, or since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let husk = segment::husk(&Local, &self.directory, number)?;
                    if !each(Piece::Husk(husk))? {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(io_error("opening", &path)(error)),
            };
            let scanned = segment::scan(&file).map_err(io_error("reading", &path))?;
            // A segment that has just been begun, or whose last block is being written, ends early.
            let Some(scanned) = scanned else { continue };
            for (offset, header) in scanned.blocks {
                if next.is_some_and(|next| header.first_seq >= next) {
                    // A disk that failed has left it here; it was written to the next segment.
                    break;
                }
                let location = Location {
                    segment: number,
                    offset,
                };
                if !each(Piece::Block(location, &header))? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A block's header and payload, or `None` where there is none.
pub(super) fn read_block<F: Content>(
    file: &F,
    offset: u64,
) -> io::Result<Option<(BlockHeader, Vec<u8>)>> {
    let body = offset.saturating_add(BLOCK_HEADER as u64);
    let Some(left) = file.length()?.checked_sub(body) else {
        return Ok(None);
    };
    let mut bytes = [0; BLOCK_HEADER];
    file.read_exact_at(&mut bytes, offset)?;
    let Some(header) = BlockHeader::decode(&bytes) else {
        return Ok(None);
    };
    if u64::from(header.stored) > left {
        return Ok(None);
    }
    let mut payload = vec![0; header.stored as usize];
    file.read_exact_at(&mut payload, body)?;
    Ok(Some((header, payload)))
}
