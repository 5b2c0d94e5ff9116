//! Segment files: the evidence.
//!
//! A segment is a header and blocks. A block is a header of fixed size, whose last field chains it to
//! the block before it, and a zstd frame with its records. The chain covers every byte of the block,
//! and each segment's header starts with the chain's value at the end of the one before, so that no
//! byte of the journal can change, go or move without `verify` noticing.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use interceptor_core::record::Record;

use super::{
    JournalError,
    checkpoint::{Checkpoint, Tree},
    glance, io_error,
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
    /// The segment to go on with, and its good length.
    pub(super) open: Option<(u64, u64)>,
    /// Bytes of a torn block that were cut off.
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
    /// Length up to the end of the last whole block.
    pub(super) good: u64,
    pub(super) length: u64,
}

pub(super) fn folder(directory: &Path) -> PathBuf {
    directory.join("segments")
}

pub(super) fn path(directory: &Path, first_seq: u64) -> PathBuf {
    folder(directory).join(format!("{first_seq:020}.seg"))
}

/// The segments of a journal by the number of their first record, in order.
pub(super) fn list(directory: &Path) -> Result<Vec<u64>, JournalError> {
    let folder = folder(directory);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(&folder).map_err(io_error("listing", &folder))? {
        let entry = entry.map_err(io_error("listing", &folder))?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".seg"))
            .and_then(|name| name.parse().ok());
        if let Some(number) = number {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
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

/// Reads the headers of a segment up to the first that isn't whole. `Err` is for what can't be read;
/// `Ok(None)` is a file whose own header is missing or not ours.
pub(super) fn scan(file: &mut File) -> io::Result<Option<Scanned>> {
    let length = file.metadata()?.len();
    let mut start = [0; SEGMENT_HEADER];
    file.seek(SeekFrom::Start(0))?;
    if length < SEGMENT_HEADER as u64 {
        return Ok(None);
    }
    file.read_exact(&mut start)?;
    let Some((magic, rest)) = start.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let Some((first_seq, rest)) = rest.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let Some((chain_before, _)) = rest.split_first_chunk::<32>() else {
        return Ok(None);
    };
    if magic != MAGIC {
        return Ok(None);
    }
    let mut scanned = Scanned {
        first_seq: u64::from_le_bytes(*first_seq),
        chain_before: *chain_before,
        blocks: Vec::new(),
        good: SEGMENT_HEADER as u64,
        length,
    };
    let mut reader = io::BufReader::with_capacity(64 << 10, file);
    while length - scanned.good >= BLOCK_HEADER as u64 {
        let mut bytes = [0; BLOCK_HEADER];
        reader.read_exact(&mut bytes)?;
        let Some(header) = BlockHeader::decode(&bytes) else {
            break;
        };
        let end = scanned.good + BLOCK_HEADER as u64 + u64::from(header.compressed);
        if end > length {
            break;
        }
        reader.seek_relative(i64::from(header.compressed))?;
        scanned.blocks.push((scanned.good, header));
        scanned.good = end;
    }
    Ok(Some(scanned))
}

/// Reads what is on disk and holds it to the checkpoint `signed` (`None` where none was ever made), then
/// cuts off a block that a crash has left torn at the very end.
///
/// Whoever opens a journal goes on to sign it, so what was signed before has to be what is there:
/// nothing is changed, and nothing returned, where it isn't.
pub(super) fn recover(
    directory: &Path,
    signed: Option<&Checkpoint>,
) -> Result<Recovered, JournalError> {
    let mut recovered = Recovered {
        next_seq: 1,
        chain: [0; 32],
        leaves: Vec::new(),
        blocks: Vec::new(),
        open: None,
        cut_bytes: 0,
        unsigned_blocks: 0,
    };
    let signed_blocks = signed.map_or(0, |checkpoint| checkpoint.size);
    let mut torn = None;
    let numbers = list(directory)?;
    let last = numbers.last().copied();
    for number in numbers {
        let path = path(directory, number);
        let is_last = Some(number) == last;
        let mut file = File::open(&path).map_err(io_error("opening", &path))?;
        let damaged = |offset: u64, what: &str| JournalError::Damaged {
            path: path.clone(),
            offset,
            what: what.to_owned(),
        };
        let scanned = scan(&mut file).map_err(io_error("reading", &path))?;
        let Some(scanned) = scanned else {
            let length = file.metadata().map_err(io_error("reading", &path))?.len();
            if is_last && length < SEGMENT_HEADER as u64 {
                // Its first bytes never reached the disk, so nothing in it was ever acknowledged.
                torn = Some((path, None));
                recovered.cut_bytes += length;
                continue;
            }
            return Err(damaged(0, "its header is not a segment's"));
        };
        if scanned.chain_before != recovered.chain || scanned.first_seq != recovered.next_seq {
            return Err(damaged(0, "it does not follow the segment before it"));
        }
        let mut good = SEGMENT_HEADER as u64;
        let mut blocks = scanned.blocks.iter().peekable();
        while let Some((offset, header)) = blocks.next() {
            // The checkpoint vouches for its blocks; those after it are hashed here.
            if recovered.leaves.len() as u64 >= signed_blocks
                && !is_whole(&file, *offset, header, &recovered.chain)
                    .map_err(io_error("reading", &path))?
            {
                // A torn write may leave a last block of the right length with other bytes in it. It
                // was never acknowledged, since the sync that would have come after it didn't.
                if is_last && blocks.peek().is_none() {
                    break;
                }
                return Err(damaged(
                    *offset,
                    "a block was changed, or doesn't follow the one before it",
                ));
            }
            if header.first_seq != recovered.next_seq {
                return Err(damaged(*offset, "its records don't follow those before"));
            }
            good = offset + BLOCK_HEADER as u64 + u64::from(header.compressed);
            recovered.next_seq += u64::from(header.count);
            recovered.chain = header.chain;
            recovered.leaves.push(header.chain);
            recovered.blocks.push((
                Location {
                    segment: number,
                    offset: *offset,
                },
                header.first_seq,
                header.count,
            ));
        }
        if good < scanned.length {
            if !is_last {
                return Err(damaged(good, "what follows is not a block"));
            }
            recovered.cut_bytes += scanned.length - good;
            torn = Some((path, Some(good)));
        }
        recovered.open = Some((number, good));
    }
    recovered.hold_to(directory, signed)?;
    match torn {
        None => {}
        Some((path, None)) => {
            fs::remove_file(&path).map_err(io_error("removing the empty", &path))?;
        }
        Some((path, Some(good))) => super::private()
            .open(&path)
            .and_then(|file| file.set_len(good).and_then(|()| file.sync_data()))
            .map_err(io_error("cutting", &path))?,
    }
    Ok(recovered)
}

/// Whether the payload at `offset` is what `header` was made for, after `before`.
fn is_whole(file: &File, offset: u64, header: &BlockHeader, before: &Chain) -> io::Result<bool> {
    let mut payload = vec![0; header.compressed as usize];
    file.read_exact_at(&mut payload, offset + BLOCK_HEADER as u64)?;
    Ok(header.is_chained(before, &payload))
}

impl Recovered {
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
        self.unsigned_blocks = unsigned;
        Ok(())
    }
}

/// The records in a block's payload.
pub(super) fn records(header: &BlockHeader, payload: &[u8]) -> Result<Vec<Record>, String> {
    let raw = zstd::bulk::decompress(payload, header.raw as usize)
        .map_err(|error| format!("its content doesn't decompress: {error}"))?;
    if raw.len() != header.raw as usize {
        return Err("its content is shorter than its header says".to_owned());
    }
    let records = parse(&raw)?;
    for (record, seq) in records.iter().zip(header.first_seq..) {
        if record.seq != seq {
            return Err(format!("record {} stands where {seq} belongs", record.seq));
        }
    }
    if records.len() != header.count as usize {
        return Err(format!(
            "it has {} records, its header says {}",
            records.len(),
            header.count
        ));
    }
    Ok(records)
}

/// Records as they wait to be written: each behind its length.
pub(super) fn parse(raw: &[u8]) -> Result<Vec<Record>, String> {
    let mut rest = raw;
    let mut records = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (bytes, after) = after
            .split_at_checked(length)
            .ok_or("a record in it is cut short")?;
        let record = glance::decode(bytes)
            .map_err(|error| format!("a record in it can't be read: {error}"))?;
        records.push(record);
        rest = after;
    }
    if !rest.is_empty() {
        return Err("it ends with a part of a record".to_owned());
    }
    Ok(records)
}
