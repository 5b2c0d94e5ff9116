//! Making blocks: records in, parts out, a part a session. No file is known here.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use aws_lc_rs::aead::NONCE_LEN;
use interceptor_core::record::{Event, SessionId};
use rustc_hash::FxHashMap;

use super::{
    LENGTH_BYTES,
    block::{
        BEGINS, BEGINS_OTHERWISE, BlockHeader, HOST, Hash, Layout, SEALED, SEALED_HEADER, SESSION,
        split, unreadable,
    },
    cipher::{ContentKey, TAG_BYTES},
    glance,
};

/// zstd's fastest ordinary level.
const LEVEL: i32 = 1;

/// What a session's next part is to say of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Next {
    /// How many parts it has had.
    pub(super) nth: u32,
    /// What to encrypt it with, if it is to be.
    pub(super) key: Option<Arc<ContentKey>>,
}

/// Makes blocks of records.
pub(super) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    /// A session's records, brought together.
    gathered: Vec<u8>,
    /// Them, compressed. Room for the worst is asked for and not touched.
    frame: Vec<u8>,
}

/// Bytes of a session's records that are brought together; more are compressed as they stand.
pub(super) const GATHERED_MAX: usize = 256 << 10;

/// Where a session's records are among all.
struct Share {
    session: Option<SessionId>,
    count: u32,
    /// The record that its session begins with, and that one's place among all.
    start: Option<((usize, usize), u32)>,
    /// From where to where; what follows one another is one.
    ranges: Vec<(usize, usize)>,
}

impl Packer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            gathered: Vec::new(),
            frame: Vec::new(),
        })
    }

    /// Packs `records`, each behind its length, into `stored`, and gives the header that only lacks its place in
    /// the journal. `next` says what there is to say of each session.
    ///
    /// # Errors
    /// Where they are no records, or too much; or `next` fails.
    pub(super) fn pack(
        &mut self,
        records: &[u8],
        mut next: impl FnMut(Option<SessionId>) -> io::Result<Next>,
        stored: &mut Vec<u8>,
    ) -> io::Result<BlockHeader> {
        stored.clear();
        let shares = shares(records).map_err(io::Error::other)?;
        let mut count = 0;
        for share in &shares {
            self.part(records, share, &next(share.session)?, stored)?;
            count += share.count;
        }
        Ok(BlockHeader {
            stored: fitting(stored.len())?,
            layout: Layout::Parts(fitting(shares.len())?),
            count,
            first_seq: 0,
            time_ns: 0,
            chain: [0; 32],
        })
    }

    fn part(
        &mut self,
        records: &[u8],
        share: &Share,
        next: &Next,
        stored: &mut Vec<u8>,
    ) -> io::Result<()> {
        let of = |&(start, end): &(usize, usize)| records.get(start..end).unwrap_or_default();
        let raw: usize = share.ranges.iter().map(|range| of(range).len()).sum();
        self.frame.clear();
        match &*share.ranges {
            [one] => self.compress(of(one))?,
            several if raw <= GATHERED_MAX => {
                let mut gathered = std::mem::take(&mut self.gathered);
                gathered.clear();
                for range in several {
                    gathered.extend_from_slice(of(range));
                }
                self.compress(&gathered)?;
                self.gathered = gathered;
            }
            several => {
                let mut encoder = zstd::stream::write::Encoder::new(&mut self.frame, LEVEL)?;
                encoder.set_pledged_src_size(Some(raw as u64))?;
                several
                    .iter()
                    .try_for_each(|range| encoder.write_all(of(range)))?;
                encoder.finish()?;
            }
        }
        let form = match (share.session, &next.key) {
            (None, _) => HOST,
            (Some(_), None) => SESSION,
            (Some(_), Some(_)) => SEALED,
        };
        let start = stored.len();
        stored.push(form);
        stored.extend_from_slice(&share.session.map_or(0, |session| session.0).to_le_bytes());
        stored.extend_from_slice(&next.nth.to_le_bytes());
        stored.extend_from_slice(&share.count.to_le_bytes());
        stored.extend_from_slice(&fitting(raw)?.to_le_bytes());
        match (&next.key, form) {
            (Some(key), SEALED) => {
                let record = |range| of(range).get(LENGTH_BYTES..).unwrap_or_default();
                let begins = match &share.start {
                    Some((range, place)) => {
                        let start = glance::decode(record(range)).map_err(io::Error::other)?;
                        (begins(&start.event), *place)
                    }
                    None => (0, 0),
                };
                let any = share.ranges.first().map_or(&[][..], record);
                let agent = glance::agent(any).map_err(io::Error::other)?;
                self.seal(begins, agent, key, (start, stored))?;
            }
            _ => stored.extend_from_slice(&fitting(self.frame.len())?.to_le_bytes()),
        }
        stored.extend_from_slice(&self.frame);
        self.frame.clear();
        self.frame.shrink_to(GATHERED_MAX);
        Ok(())
    }

    /// Encrypts the frame with `key`, and adds what stands before it to the head of the part that begins at `start`.
    fn seal(
        &mut self,
        (begins, place): (u8, u32),
        agent: &str,
        key: &ContentKey,
        (start, stored): (usize, &mut Vec<u8>),
    ) -> io::Result<()> {
        let length = SEALED_HEADER
            + agent.len()
            + size_of::<Hash>()
            + NONCE_LEN
            + self.frame.len()
            + TAG_BYTES;
        stored.extend_from_slice(&fitting(length)?.to_le_bytes());
        stored.push(begins);
        stored.extend_from_slice(&place.to_le_bytes());
        let named = u16::try_from(agent.len()).map_err(io::Error::other)?;
        stored.extend_from_slice(&named.to_le_bytes());
        stored.extend_from_slice(agent.as_bytes());
        stored.extend_from_slice(key.commitment());
        let beside = stored.get(start..).unwrap_or_default();
        let nonce = key.seal(beside, &mut self.frame)?;
        stored.extend_from_slice(&nonce);
        Ok(())
    }

    /// Makes `raw` the frame.
    fn compress(&mut self, raw: &[u8]) -> io::Result<()> {
        self.frame
            .reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, &mut self.frame)?;
        Ok(())
    }
}

/// How a session begins with this event.
fn begins(event: &Event) -> u8 {
    match event {
        // No connect that the hooks count leads to a UNIX socket.
        Event::SessionStart(start) if start.origin.destination.address().is_some() => BEGINS,
        _ => BEGINS_OTHERWISE,
    }
}

/// Whose each of `records` is: a share a session, in the order in which they begin.
fn shares(records: &[u8]) -> Result<Vec<Share>, String> {
    let mut shares: Vec<Share> = Vec::new();
    let mut known = FxHashMap::default();
    let mut latest = 0;
    let (mut start, mut place) = (0, 0);
    split(records, |bytes| {
        let end = start + LENGTH_BYTES + bytes.len();
        let peeked = glance::peek(bytes).map_err(unreadable)?;
        let session = peeked.session;
        if shares
            .get(latest)
            .is_none_or(|share| share.session != session)
        {
            latest = *known.entry(session).or_insert(shares.len());
        }
        if latest == shares.len() {
            shares.push(Share {
                session,
                count: 0,
                start: None,
                ranges: Vec::new(),
            });
        }
        if let Some(share) = shares.get_mut(latest) {
            share.count += 1;
            if peeked.is_start {
                share.start.get_or_insert(((start, end), place));
            }
            match share.ranges.last_mut() {
                Some((_, before)) if *before == start => *before = end,
                _ => share.ranges.push((start, end)),
            }
        }
        start = end;
        place += 1;
        Ok(())
    })?;
    Ok(shares)
}

fn fitting(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::other("a block is larger than 4 GiB"))
}
