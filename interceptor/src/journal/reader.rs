//! Reading records back, of a running journal or a copied state folder.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use interceptor_core::record::Record;

use super::{
    JournalError,
    disk::{Content, Local},
    io_error,
    segment::{self, BLOCK_HEADER, BlockHeader, Location},
};

/// Reads the segments of a state folder. It needs no lock: what is written never changes.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
}

impl Reader {
    /// A reader of the state folder `directory`.
    ///
    /// # Errors
    /// Where it isn't one.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        segment::list(&Local, directory)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The records of one block.
    ///
    /// # Errors
    /// Where it can't be read or is damaged.
    pub fn block(&self, location: Location) -> Result<Vec<Record>, JournalError> {
        let path = segment::path(&self.directory, location.segment);
        let file = File::open(&path).map_err(io_error("opening", &path))?;
        let damaged = |what: String| JournalError::Damaged {
            path: path.clone(),
            offset: location.offset,
            what,
        };
        let (header, payload) = read_block(&file, location.offset)
            .map_err(io_error("reading", &path))?
            .ok_or_else(|| damaged("there is no block".to_owned()))?;
        segment::records(&header, &payload).map_err(damaged)
    }

    /// The numbers of the segments' first records, in order; the last one is being written while a daemon runs.
    ///
    /// # Errors
    /// Where they can't be listed.
    pub(crate) fn segments(&self) -> Result<Vec<u64>, JournalError> {
        segment::list(&Local, &self.directory)
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
            let length = BLOCK_HEADER as u64 + u64::from(header.compressed);
            (following, offset.saturating_add(length))
        });
        let end = match next {
            Some(next) => ends.find(|(following, _)| *following == next),
            None => ends.next_back(),
        };
        Ok((path, end.map_or(whole, |(_, end)| end)))
    }

    /// Every record, in order; `each` may end it by returning `false`.
    ///
    /// # Errors
    /// Where a segment can't be read or is damaged.
    pub fn each(&self, mut each: impl FnMut(Record) -> bool) -> Result<(), JournalError> {
        self.each_block(|_, records| records.drain(..).all(&mut each))
    }

    /// Every block with its records, in order; `each` may end it by returning `false`.
    pub(super) fn each_block(
        &self,
        mut each: impl FnMut(Location, &mut Vec<Record>) -> bool,
    ) -> Result<(), JournalError> {
        let mut numbers = segment::list(&Local, &self.directory)?
            .into_iter()
            .peekable();
        while let Some(number) = numbers.next() {
            let path = segment::path(&self.directory, number);
            let file = File::open(&path).map_err(io_error("opening", &path))?;
            let scanned = segment::scan(&file).map_err(io_error("reading", &path))?;
            // A segment that has just been begun, or whose last block is being written, ends early.
            let Some(scanned) = scanned else { continue };
            for (offset, header) in scanned.blocks {
                if numbers.peek().is_some_and(|next| header.first_seq >= *next) {
                    // A disk that failed has left it here; it was written to the next segment.
                    break;
                }
                let location = Location {
                    segment: number,
                    offset,
                };
                if !each(location, &mut self.block(location)?) {
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
    if u64::from(header.compressed) > left {
        return Ok(None);
    }
    let mut payload = vec![0; header.compressed as usize];
    file.read_exact_at(&mut payload, body)?;
    Ok(Some((header, payload)))
}
