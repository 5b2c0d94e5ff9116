//! Segment files: the evidence.
//!
//! A segment is a header and blocks, each chained to the one before it. A segment's header starts with the chain's
//! value at the end of the segment before, so that no byte of the journal can change, go or move without `verify`
//! noticing.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    JournalError,
    block::{BLOCK_HEADER, BlockHeader, Hash},
    checkpoint::Checkpoint,
    disk::{Content, Disk, Sequential},
    husk::Husk,
    io_error,
    reader::read_block,
    tree::Tree,
};

/// First bytes of a segment.
const MAGIC: &[u8; 8] = b"ICPTSEG1";
/// Magic, number of the first record, chain value before the first block.
pub(super) const SEGMENT_HEADER: usize = 8 + 8 + 32;
/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Number of the segment's first record, which names its file.
    pub segment: u64,
    /// Byte offset of the block in it.
    pub offset: u64,
}

/// What is on disk when a journal is opened.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) next_seq: u64,
    pub(super) chain: Hash,
    /// Hash values of all blocks, the leaves of the tree that checkpoints sign.
    pub(super) leaves: Vec<Hash>,
    /// Blocks with their first and last record, but for those of removed segments.
    pub(super) blocks: Vec<(Location, u64, u32)>,
    /// Blocks of removed segments, and the record behind the last of them.
    pub(super) gone: (u64, u64),
    /// Bytes of torn blocks that were cut off.
    pub(super) cut_bytes: u64,
    /// Blocks at the end that no checkpoint vouches for yet.
    pub(super) unsigned_blocks: u64,
}

/// What a scan of one segment found.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) first_seq: u64,
    pub(super) chain_before: Hash,
    pub(super) blocks: Vec<(u64, BlockHeader)>,
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("segments")
}

pub(super) fn path(directory: &Path, first_seq: u64) -> PathBuf {
    folder(directory).join(format!("{first_seq:020}.seg"))
}

/// Where the husk of a segment is, once that was removed.
pub(super) fn husk_path(directory: &Path, first_seq: u64) -> PathBuf {
    path(directory, first_seq).with_extension("gone")
}

/// The segments of a journal by the number of their first record, in order.
pub(super) fn list<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<u64>, JournalError> {
    Ok(Names::read(disk, directory)?.segments)
}

/// What there is of a journal, by the numbers of first records, in order.
pub(super) struct Names {
    pub(super) segments: Vec<u64>,
    /// Of segments that aren't there any more: while one is there, its husk is not believed.
    pub(super) husks: BTreeSet<u64>,
}

impl Names {
    pub(super) fn read<D: Disk>(disk: &D, directory: &Path) -> Result<Self, JournalError> {
        let folder = folder(directory);
        let names = disk.list(&folder).map_err(io_error("listing", &folder))?;
        let numbers = |ending| names.iter().filter_map(move |name| number(name, ending));
        let mut segments: Vec<u64> = numbers(".seg").collect();
        segments.sort_unstable();
        let mut husks: BTreeSet<u64> = numbers(".gone").collect();
        for segment in &segments {
            husks.remove(segment);
        }
        Ok(Self { segments, husks })
    }

    /// All of them in order.
    pub(super) fn merged(&self) -> Vec<u64> {
        let mut numbers = self.segments.clone();
        numbers.extend(&self.husks);
        numbers.sort_unstable();
        numbers
    }
}

/// The number that a name with this `ending` says; one segment has one name, and so has its husk.
pub(super) fn number(name: &str, ending: &str) -> Option<u64> {
    let digits = name
        .strip_suffix(ending)
        .filter(|digits| digits.len() == 20)?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// The husk of the segment `number`.
///
/// # Errors
/// Where it can't be read, or isn't one.
pub(super) fn husk<D: Disk>(disk: &D, directory: &Path, number: u64) -> Result<Husk, JournalError> {
    let path = husk_path(directory, number);
    let bytes = disk.read(&path).map_err(io_error("reading", &path))?;
    let damaged = |what| JournalError::Damaged {
        path: path.clone(),
        offset: 0,
        what,
    };
    let husk = Husk::decode(&bytes).map_err(damaged)?;
    if husk.first_seq != number {
        return Err(damaged("it is what stays of another segment".to_owned()));
    }
    Ok(husk)
}

pub(super) fn header(first_seq: u64, chain_before: &Hash) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEGMENT_HEADER);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&first_seq.to_le_bytes());
    out.extend_from_slice(chain_before);
    out
}

/// What a segment says of itself: the number of its first record, and the chain's value before that. `Ok(None)`
/// is a file whose header is missing or not ours.
pub(super) fn head<F: Content>(file: &F) -> io::Result<Option<(u64, Hash)>> {
    let mut start = [0; SEGMENT_HEADER];
    if file.length()? < SEGMENT_HEADER as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut start, 0)?;
    let parts = start.split_first_chunk::<8>().and_then(|(magic, rest)| {
        let (first_seq, chain) = rest.split_first_chunk::<8>()?;
        Some((magic, first_seq, chain.first_chunk::<32>()?))
    });
    Ok(parts
        .filter(|(magic, ..)| *magic == MAGIC)
        .map(|(_, first_seq, chain)| (u64::from_le_bytes(*first_seq), *chain)))
}

/// Reads the headers of a segment up to the first that isn't whole. `Err` is for what can't be read;
/// `Ok(None)` is a file whose own header is missing or not ours.
pub(super) fn scan<F: Content>(file: &F) -> io::Result<Option<Scanned>> {
    let length = file.length()?;
    let Some((first_seq, chain_before)) = head(file)? else {
        return Ok(None);
    };
    let mut blocks = Vec::new();
    let mut good = SEGMENT_HEADER as u64;
    let whole = Sequential::from(file, good)?;
    let mut reader = io::BufReader::with_capacity(64 << 10, whole);
    while length - good >= BLOCK_HEADER as u64 {
        let mut bytes = [0; BLOCK_HEADER];
        reader.read_exact(&mut bytes)?;
        let Some(header) = BlockHeader::decode(&bytes) else {
            break;
        };
        let end = good + BLOCK_HEADER as u64 + u64::from(header.stored);
        if end > length {
            break;
        }
        reader.seek_relative(i64::from(header.stored))?;
        blocks.push((good, header));
        good = end;
    }
    Ok(Some(Scanned {
        first_seq,
        chain_before,
        blocks,
    }))
}

/// What has to be done to what a crash or a failing disk has left, before anything is added.
#[derive(Debug)]
enum Mend {
    /// Cut it to this length.
    Cut(PathBuf, u64),
    /// Remove it: nothing in it was ever on record.
    Remove(PathBuf),
}

/// Reads what is on disk and holds it to the checkpoint `signed` (`None` where none was ever made), then
/// takes away what a crash or a failed write has left of a block that nobody was told is on record.
///
/// Whoever opens a journal goes on to sign it, so what was signed before has to be what is there:
/// nothing is changed, and nothing returned, where it isn't.
pub(super) fn recover<D: Disk>(
    disk: &D,
    directory: &Path,
    signed: Option<&Checkpoint>,
) -> Result<Recovered, JournalError> {
    let mut recovered = Recovered::default();
    let mut mends = Vec::new();
    let signed_blocks = signed.map_or(0, |checkpoint| checkpoint.size);
    let names = Names::read(disk, directory)?;
    let numbers = names.merged();
    let mut index = 0;
    while let Some(number) = numbers.get(index) {
        index += 1;
        if names.husks.contains(number) {
            let husk = husk(disk, directory, *number)?;
            recovered.pass(directory, &husk, signed_blocks)?;
            continue;
        }
        let segment = Segment::open(disk, directory, *number)?;
        if !recovered.follows(&segment)? {
            recovered.cut_bytes += segment.length;
            mends.push(Mend::Remove(segment.path));
            continue;
        }
        let mut taken = 0;
        loop {
            let next = numbers.get(index).copied();
            taken = recovered.take(&segment, taken, next, signed_blocks)?;
            // Where the next segment begins this one may go on. Then what failed here was written there; or
            // the next one is of an attempt that failed, and came back after it was removed.
            if next != Some(recovered.next_seq)
                || names.husks.contains(&recovered.next_seq)
                || !segment.has(taken, &recovered.chain)?
            {
                break;
            }
            let next = Segment::open(disk, directory, recovered.next_seq)?;
            if next.has(0, &recovered.chain)? || next.is_continued(0)? {
                break;
            }
            index += 1;
            recovered.cut_bytes += next.length;
            mends.push(Mend::Remove(next.path));
        }
        mends.extend(recovered.leave(segment, taken, numbers.get(index).copied())?);
    }
    recovered.hold_to(directory, signed)?;
    for mend in &mends {
        mend.apply(disk)?;
    }
    if recovered.unsigned_blocks > 0 {
        recovered.settle(disk, directory)?;
    }
    Ok(recovered)
}

impl Mend {
    fn apply<D: Disk>(&self, disk: &D) -> Result<(), JournalError> {
        match self {
            Self::Cut(path, length) => disk
                .edit(path)
                .and_then(|file| file.truncate(*length).and_then(|()| file.sync()))
                .map_err(io_error("cutting", path)),
            Self::Remove(path) => disk
                .remove(path)
                .map_err(io_error("removing the empty", path)),
        }
    }
}

/// A segment that is being read to be gone on with.
struct Segment<F> {
    number: u64,
    path: PathBuf,
    file: F,
    length: u64,
    head: Option<(u64, Hash)>,
    blocks: Vec<(u64, BlockHeader)>,
}

impl<F: Content> Segment<F> {
    fn open<D: Disk<File = F>>(
        disk: &D,
        directory: &Path,
        number: u64,
    ) -> Result<Self, JournalError> {
        let path = path(directory, number);
        let file = disk.open(&path).map_err(io_error("opening", &path))?;
        let read = || {
            let scanned = scan(&file)?;
            let head = scanned
                .as_ref()
                .map(|found| (found.first_seq, found.chain_before));
            let blocks = scanned.map_or_else(Vec::new, |found| found.blocks);
            Ok((file.length()?, head, blocks))
        };
        let (length, head, blocks) = read().map_err(io_error("reading", &path))?;
        Ok(Self {
            number,
            path,
            file,
            length,
            head,
            blocks,
        })
    }

    fn damaged(&self, offset: u64, what: &str) -> JournalError {
        JournalError::Damaged {
            path: self.path.clone(),
            offset,
            what: what.to_owned(),
        }
    }

    /// Whether the payload at `offset` is what `header` was made for, after `before`.
    fn is_whole(
        &self,
        (offset, header): &(u64, BlockHeader),
        before: &Hash,
    ) -> Result<bool, JournalError> {
        let mut payload = vec![0; header.stored as usize];
        self.file
            .read_exact_at(&mut payload, offset + BLOCK_HEADER as u64)
            .map_err(io_error("reading", &self.path))?;
        Ok(header.is_chained(before, &payload))
    }

    /// Whether it has a block at `index` that follows `before`.
    fn has(&self, index: usize, before: &Hash) -> Result<bool, JournalError> {
        let block = self.blocks.get(index);
        block.map_or(Ok(false), |block| self.is_whole(block, before))
    }

    /// Whether a block behind the one at `index` follows the one before it: then that was on record, whatever
    /// it is now.
    fn is_continued(&self, index: usize) -> Result<bool, JournalError> {
        let blocks = self.blocks.get(index..).unwrap_or_default();
        for pair in blocks.windows(2) {
            if let [(_, before), block] = pair
                && self.is_whole(block, &before.chain)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Default for Recovered {
    fn default() -> Self {
        Self {
            next_seq: 1,
            chain: [0; 32],
            leaves: Vec::new(),
            blocks: Vec::new(),
            gone: (0, 1),
            cut_bytes: 0,
            unsigned_blocks: 0,
        }
    }
}

impl Recovered {
    /// Whether `segment` begins where the others have ended; not where it never came to begin.
    fn follows<F: Content>(&self, segment: &Segment<F>) -> Result<bool, JournalError> {
        match segment.head {
            Some((number, chain))
                if number == segment.number && number == self.next_seq && chain == self.chain =>
            {
                Ok(true)
            }
            Some(_) => Err(segment.damaged(0, "it does not follow the segment before it")),
            // Its first bytes never reached the disk, so nothing in it was ever acknowledged.
            None if segment.length <= SEGMENT_HEADER as u64 && segment.number == self.next_seq => {
                Ok(false)
            }
            None => Err(segment.damaged(0, "its header is not a segment's")),
        }
    }

    /// Takes in what stays of a segment that was removed, of a journal whose first `signed` blocks are vouched for.
    fn pass(&mut self, directory: &Path, husk: &Husk, signed: u64) -> Result<(), JournalError> {
        let damaged = |what: &str| JournalError::Damaged {
            path: husk_path(directory, husk.first_seq),
            offset: 0,
            what: what.to_owned(),
        };
        if husk.first_seq != self.next_seq || husk.before != self.chain {
            return Err(damaged("it does not follow the segment before it"));
        }
        self.leaves.extend_from_slice(&husk.leaves);
        if self.leaves.len() as u64 > signed {
            return Err(damaged("no checkpoint vouches for what was removed"));
        }
        self.next_seq = husk.next_seq;
        self.chain = husk.chain();
        self.gone = (self.gone.0 + husk.leaves.len() as u64, husk.next_seq);
        Ok(())
    }

    /// Takes in the blocks of `segment` from the one at `index` on, up to where the segment `next` begins or
    /// to one that a crash has left torn. The first `signed` blocks of the journal are vouched for. How many
    /// blocks of it are taken in then.
    fn take<F: Content>(
        &mut self,
        segment: &Segment<F>,
        mut index: usize,
        next: Option<u64>,
        signed: u64,
    ) -> Result<usize, JournalError> {
        while let Some(block) = segment.blocks.get(index) {
            let (offset, header) = block;
            if next == Some(self.next_seq) {
                break;
            }
            // The checkpoint vouches for its blocks; those after it are hashed here.
            if self.leaves.len() as u64 >= signed && !segment.is_whole(block, &self.chain)? {
                // A torn write may leave a last block of the right length with other bytes in it. It
                // was never acknowledged, since the sync that would have come after it didn't. What was
                // has others behind it.
                let is_last = next.is_none_or(|next| next == self.next_seq);
                if is_last && !segment.is_continued(index)? {
                    break;
                }
                return Err(segment.damaged(
                    *offset,
                    "a block was changed, or doesn't follow the one before it",
                ));
            }
            if header.first_seq != self.next_seq {
                return Err(segment.damaged(*offset, "its records don't follow those before"));
            }
            self.next_seq = header.first_seq.saturating_add(u64::from(header.count));
            self.chain = header.chain;
            self.leaves.push(header.chain);
            self.blocks.push((
                Location {
                    segment: segment.number,
                    offset: *offset,
                },
                header.first_seq,
                header.count,
            ));
            index += 1;
        }
        Ok(index)
    }

    /// Says what of `segment` has to go when `taken` of its blocks are taken in and `next` comes behind it.
    fn leave<F: Content>(
        &mut self,
        segment: Segment<F>,
        taken: usize,
        next: Option<u64>,
    ) -> Result<Option<Mend>, JournalError> {
        let last = taken
            .checked_sub(1)
            .and_then(|last| segment.blocks.get(last));
        let good = last.map_or(SEGMENT_HEADER as u64, |(offset, header)| {
            offset + BLOCK_HEADER as u64 + u64::from(header.stored)
        });
        let rest = segment.length.saturating_sub(good);
        if rest > 0 && next.is_some_and(|next| next != self.next_seq) {
            return Err(segment.damaged(good, "what follows is not a block"));
        }
        self.cut_bytes += rest;
        Ok(match (taken, rest) {
            // Without a block it may not have its name for good, and nothing is lost with it.
            (0, _) => Some(Mend::Remove(segment.path)),
            (_, 0) => None,
            _ => Some(Mend::Cut(segment.path, good)),
        })
    }

    /// Writes the last block once more, so that it is on disk before anything is built upon it: where the
    /// sync after it has failed, the system may show it here and have dropped it, and every later sync would
    /// succeed without it. Those before it were synced, or it wouldn't have been written.
    fn settle<D: Disk>(&self, disk: &D, directory: &Path) -> Result<(), JournalError> {
        let Some((location, ..)) = self.blocks.last() else {
            return Ok(());
        };
        let path = path(directory, location.segment);
        let settled = disk.edit(&path).and_then(|file| {
            let Some((header, payload)) = read_block(&file, location.offset)? else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            file.write_all_at(&header.encode(), location.offset)?;
            file.write_all_at(&payload, location.offset + BLOCK_HEADER as u64)?;
            file.sync()
        });
        settled.map_err(io_error("writing", &path))
    }

    /// Compares what is there with what was signed.
    fn hold_to(
        &mut self,
        directory: &Path,
        signed: Option<&Checkpoint>,
    ) -> Result<(), JournalError> {
        let contradicted = |what: String| JournalError::Contradicted {
            path: directory.to_owned(),
            what,
        };
        let there = self.leaves.len() as u64;
        let Some(signed) = signed else {
            return match there {
                0 => Ok(()),
                _ => Err(contradicted(format!(
                    "its checkpoint is missing, so nothing vouches for the {there} blocks there"
                ))),
            };
        };
        let Some(unsigned) = there.checked_sub(signed.size) else {
            return Err(contradicted(format!(
                "{} blocks up to record {} were signed, and only {there} whole ones are there",
                signed.size, signed.last_seq
            )));
        };
        let mut tree = Tree::default();
        for leaf in self.leaves.iter().take((there - unsigned) as usize) {
            tree.push(leaf);
        }
        if tree.root() != signed.root {
            return Err(contradicted(
                "its blocks are not those that were signed".to_owned(),
            ));
        }
        // All that was removed is signed, so this is the place of the last signed block among those that are there.
        let (gone, behind) = self.gone;
        let last = match usize::try_from(signed.size.saturating_sub(gone)).ok() {
            Some(size @ 1..) => self.blocks.get(size - 1),
            _ => None,
        };
        let behind = last.map_or(behind, |(_, first, count)| {
            first.saturating_add(u64::from(*count))
        });
        let last = behind.saturating_sub(1);
        if last != signed.last_seq {
            return Err(contradicted(format!(
                "records up to {} were signed, and its blocks say that they are those up to {last}",
                signed.last_seq
            )));
        }
        self.unsigned_blocks = unsigned;
        Ok(())
    }
}
