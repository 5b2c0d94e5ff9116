//! Segment files: the evidence.
//!
//! A segment is a header and blocks. A block is a header of fixed size, whose last field chains it to
//! the block before it, and a zstd frame with its records. The chain covers every byte of the block,
//! and each segment's header starts with the chain's value at the end of the one before, so that no
//! byte of the journal can change, go or move without `verify` noticing.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use interceptor_core::record::Record;

use super::{
    JournalError,
    checkpoint::{Checkpoint, Tree},
    disk::{Content, Disk, Sequential},
    glance, io_error,
    reader::read_block,
};

/// First bytes of a segment.
const MAGIC: &[u8; 8] = b"ICPTSEG1";
/// First bytes of a block.
const BLOCK_MAGIC: &[u8; 4] = b"BLK1";
/// Magic, number of the first record, chain value before the first block.
pub(super) const SEGMENT_HEADER: usize = 8 + 8 + 32;
/// Magic, compressed length, raw length, count, first record, time, chain value.
pub(super) const BLOCK_HEADER: usize = 4 + 4 + 4 + 4 + 8 + 8 + 32;
/// The header's bytes that the chain covers: all but the chain value itself.
const CHAINED: usize = BLOCK_HEADER - 32;

/// Largest block that is read back, in bytes before compression: the writer takes up to 32 MiB of
/// waiting records at once, and one record may be as large as the largest message.
const RAW_BYTES_MAX: u32 = 512 << 20;

/// The chain's value after a block.
pub(super) type Chain = [u8; 32];

/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Number of the segment's first record, which names its file.
    pub segment: u64,
    /// Byte offset of the block in it.
    pub offset: u64,
}

/// A block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHeader {
    pub(super) compressed: u32,
    pub(super) raw: u32,
    pub(super) count: u32,
    pub(super) first_seq: u64,
    pub(super) time_ns: u64,
    pub(super) chain: Chain,
}

/// What is on disk when a journal is opened.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) next_seq: u64,
    pub(super) chain: Chain,
    /// Chain values of all blocks, the leaves of the tree that checkpoints sign.
    pub(super) leaves: Vec<Chain>,
    /// Blocks with their first and last record.
    pub(super) blocks: Vec<(Location, u64, u32)>,
    /// Bytes of torn blocks that were cut off.
    pub(super) cut_bytes: u64,
    /// Blocks at the end that no checkpoint vouches for yet.
    pub(super) unsigned_blocks: u64,
}

/// What a scan of one segment found.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) first_seq: u64,
    pub(super) chain_before: Chain,
    pub(super) blocks: Vec<(u64, BlockHeader)>,
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("segments")
}

pub(super) fn path(directory: &Path, first_seq: u64) -> PathBuf {
    folder(directory).join(format!("{first_seq:020}.seg"))
}

/// The segments of a journal by the number of their first record, in order.
pub(super) fn list<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<u64>, JournalError> {
    let folder = folder(directory);
    let names = disk.list(&folder).map_err(io_error("listing", &folder))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number that a segment's name says; one segment has one name.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name
        .strip_suffix(".seg")
        .filter(|digits| digits.len() == 20)?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

pub(super) fn header(first_seq: u64, chain_before: &Chain) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEGMENT_HEADER);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&first_seq.to_le_bytes());
    out.extend_from_slice(chain_before);
    out
}

impl BlockHeader {
    /// The header for `payload`, chained to what was before it.
    pub(super) fn chained(mut self, before: &Chain, payload: &[u8]) -> Self {
        self.chain = chain(before, &self.encode(), payload);
        self
    }

    pub(super) fn encode(&self) -> [u8; BLOCK_HEADER] {
        let mut out = [0; BLOCK_HEADER];
        let fields: [&[u8]; 7] = [
            BLOCK_MAGIC,
            &self.compressed.to_le_bytes(),
            &self.raw.to_le_bytes(),
            &self.count.to_le_bytes(),
            &self.first_seq.to_le_bytes(),
            &self.time_ns.to_le_bytes(),
            &self.chain,
        ];
        let mut rest = &mut out[..];
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        }
        out
    }

    pub(super) fn decode(bytes: &[u8; BLOCK_HEADER]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (compressed, rest) = rest.split_first_chunk()?;
        let (raw, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (first_seq, rest) = rest.split_first_chunk()?;
        let (time_ns, rest) = rest.split_first_chunk()?;
        let (chain, _) = rest.split_first_chunk()?;
        let header = Self {
            compressed: u32::from_le_bytes(*compressed),
            raw: u32::from_le_bytes(*raw),
            count: u32::from_le_bytes(*count),
            first_seq: u64::from_le_bytes(*first_seq),
            time_ns: u64::from_le_bytes(*time_ns),
            chain: *chain,
        };
        (magic == BLOCK_MAGIC && header.raw <= RAW_BYTES_MAX).then_some(header)
    }

    /// Whether `payload` and this header are what was chained after `before`.
    pub(super) fn is_chained(&self, before: &Chain, payload: &[u8]) -> bool {
        chain(before, &self.encode(), payload) == self.chain
    }
}

fn chain(before: &Chain, header: &[u8; BLOCK_HEADER], payload: &[u8]) -> Chain {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(before);
    context.update(header.get(..CHAINED).unwrap_or_default());
    context.update(payload);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// What a segment says of itself: the number of its first record, and the chain's value before that. `Ok(None)`
/// is a file whose header is missing or not ours.
pub(super) fn head<F: Content>(file: &F) -> io::Result<Option<(u64, Chain)>> {
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
        let end = good + BLOCK_HEADER as u64 + u64::from(header.compressed);
        if end > length {
            break;
        }
        reader.seek_relative(i64::from(header.compressed))?;
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
    let numbers = list(disk, directory)?;
    let mut index = 0;
    while let Some(number) = numbers.get(index) {
        index += 1;
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
            if next != Some(recovered.next_seq) || !segment.has(taken, &recovered.chain)? {
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
    head: Option<(u64, Chain)>,
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
        before: &Chain,
    ) -> Result<bool, JournalError> {
        let mut payload = vec![0; header.compressed as usize];
        self.file
            .read_exact_at(&mut payload, offset + BLOCK_HEADER as u64)
            .map_err(io_error("reading", &self.path))?;
        Ok(header.is_chained(before, &payload))
    }

    /// Whether it has a block at `index` that follows `before`.
    fn has(&self, index: usize, before: &Chain) -> Result<bool, JournalError> {
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
            offset + BLOCK_HEADER as u64 + u64::from(header.compressed)
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
        let last = match usize::try_from(signed.size).ok() {
            Some(size @ 1..) => self.blocks.get(size - 1),
            _ => None,
        };
        let last = last.map_or(0, |(_, first, count)| {
            first.saturating_add(u64::from(*count)).saturating_sub(1)
        });
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

/// The records of a block.
///
/// # Errors
/// Where it doesn't hold what its header says; for people.
pub(super) fn records(header: &BlockHeader, payload: &[u8]) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    each(header, payload, |bytes| {
        let record = glance::decode(bytes).map_err(unreadable)?;
        let seq = record.seq;
        records.push(record);
        Ok(seq)
    })?;
    Ok(records)
}

/// How many records a block has, and those of them that aren't the content of sessions, which nearly all are.
///
/// # Errors
/// As of [`records`], but for content that can't be read.
pub(super) fn facts(header: &BlockHeader, payload: &[u8]) -> Result<(u64, Vec<Record>), String> {
    let mut facts = Vec::new();
    each(header, payload, |bytes| {
        let (seq, is_content) = glance::peek(bytes).map_err(unreadable)?;
        if !is_content {
            facts.push(glance::decode(bytes).map_err(unreadable)?);
        }
        Ok(seq)
    })?;
    Ok((header.count.into(), facts))
}

/// The records of a block that begin a session or are operations.
///
/// # Errors
/// As of [`records`].
pub(super) fn attempts(header: &BlockHeader, payload: &[u8]) -> Result<Vec<Record>, String> {
    let mut attempts = Vec::new();
    each(header, payload, |bytes| {
        let (seq, is_attempt) = glance::attempt(bytes).map_err(unreadable)?;
        if is_attempt {
            attempts.push(glance::decode(bytes).map_err(unreadable)?);
        }
        Ok(seq)
    })?;
    Ok(attempts)
}

/// Gives `take` each record of a block, which says what number it has.
fn each(
    header: &BlockHeader,
    payload: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<u64, String>,
) -> Result<(), String> {
    let raw = zstd::bulk::decompress(payload, header.raw as usize)
        .map_err(|error| format!("its content doesn't decompress: {error}"))?;
    if raw.len() != header.raw as usize {
        return Err("its content is shorter than its header says".to_owned());
    }
    let mut wanted = header.first_seq;
    split(&raw, |bytes| {
        let seq = take(bytes)?;
        if seq != wanted {
            return Err(format!("record {seq} stands where {wanted} belongs"));
        }
        wanted += 1;
        Ok(())
    })?;
    let count = wanted - header.first_seq;
    if count != u64::from(header.count) {
        return Err(format!(
            "it has {count} records, its header says {}",
            header.count
        ));
    }
    Ok(())
}

/// Records as they wait to be written: each behind its length.
pub(super) fn parse(raw: &[u8]) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    split(raw, |bytes| {
        records.push(glance::decode(bytes).map_err(unreadable)?);
        Ok(())
    })?;
    Ok(records)
}

fn split(raw: &[u8], mut take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut rest = raw;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (bytes, after) = after
            .split_at_checked(length)
            .ok_or("a record in it is cut short")?;
        take(bytes)?;
        rest = after;
    }
    if !rest.is_empty() {
        return Err("it ends with a part of a record".to_owned());
    }
    Ok(())
}

fn unreadable(error: postcard::Error) -> String {
    format!("a record in it can't be read: {error}")
}
