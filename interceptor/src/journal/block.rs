//! Blocks: what is written to a segment at once. Bytes in, records out; no file is known here.
//!
//! A block is a header of fixed size and its parts, one for each session that it has records of. A part says whose
//! it is and the how manieth of its session, and holds that session's records as one zstd frame, so that it can be
//! read, shown to somebody and held to what was signed without the other sessions beside it.
//!
//! A part may be encrypted with its session's key. Its head then says in clear what is needed of it by who can't or may
//! not read it: whose it is, whether the session begins with it, and which key has encrypted it.
//!
//! Blocks of earlier versions (up to state 4) had everybody's records in one frame, without parts. They stay what they
//! are, since they are signed, and are read as one part of many sessions.
//!
//! The header's last field chains the block to the one before it: it is the SHA-256 of that one's, the rest of the
//! header and the SHA-256 of every part. No byte of the journal can change, go or move without it.

use std::{cell::RefCell, io, sync::Arc};

use aws_lc_rs::{aead::NONCE_LEN, digest};
use interceptor_core::record::{Record, SessionId, Timestamp};

use super::{
    LENGTH_BYTES,
    cipher::{ContentKey, NonceBytes},
    encryption::{Held, SessionKeys},
    glance::{self, Peeked},
    husk,
};

/// First bytes of a block.
const MAGIC: &[u8; 4] = b"BLK2";
/// First bytes of one without parts.
const MAGIC_WHOLE: &[u8; 4] = b"BLK1";
/// Magic, bytes stored behind the header, parts, records, first record, time, chain value.
pub(super) const BLOCK_HEADER: usize = 4 + 4 + 4 + 4 + 8 + 8 + 32;
/// The header's bytes that the chain covers as they are: all but the chain value itself.
pub(super) const CHAINED: usize = BLOCK_HEADER - 32;
/// Form, session, its how manieth part, records, bytes before compression, bytes stored.
pub(super) const PART_HEADER: usize = 1 + 8 + 4 + 4 + 4 + 4;

/// Form of a part of no session.
pub(super) const HOST: u8 = 0;
/// Form of a part of a session.
pub(super) const SESSION: u8 = 1;
/// Form of an encrypted part of a session, which goes on with [`SEALED_HEADER`] bytes and the agent's name. What is
/// stored is counted from there.
pub(super) const SEALED: u8 = 2;
/// How its session begins with it, if it does, and with the how manieth record of the block; bytes of the agent's name;
/// commitment and nonce behind that.
pub(super) const SEALED_HEADER: usize = 1 + 4 + 2;
/// Its session begins with it, by a connect that the hooks count.
pub(super) const BEGINS: u8 = 1;
/// Its session begins with it, by something else.
pub(super) const BEGINS_OTHERWISE: u8 = 2;

/// Largest block that is read back, in bytes before compression: the writer takes up to 32 MiB of
/// waiting records at once, and one record may be as large as the largest message.
const RAW_BYTES_MAX: u64 = 512 << 20;
/// A SHA-256: the chain's value after a block, or what a part is.
pub(super) type Hash = [u8; 32];

/// A block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockHeader {
    /// Bytes behind the header.
    pub(super) stored: u32,
    pub(super) layout: Layout,
    pub(super) count: u32,
    pub(super) first_seq: u64,
    pub(super) time_ns: u64,
    pub(super) chain: Hash,
}

/// How the records of a block stand behind its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In so many parts.
    Parts(u32),
    /// In one frame, of so many bytes before compression: of an earlier version.
    Whole(u32),
}

/// Whose records a part has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Nobody's: they are the host's.
    Host,
    /// A session's.
    Session(SessionId),
    /// Any: it is all of a block of an earlier version.
    Anybody,
}

/// What a block has of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) whose: Whose,
    /// How many parts its session had before it.
    pub(super) nth: u32,
    pub(super) count: u32,
    raw: u32,
    /// All of it, as it stands in the block.
    pub(super) bytes: &'a [u8],
    /// Its records; encrypted, where that is so.
    frame: &'a [u8],
    pub(super) sealed: Option<Sealed<'a>>,
}

/// What the head of an encrypted part says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed<'a> {
    begins: u8,
    /// The place in the block of the record that does.
    first: u32,
    pub(super) agent: &'a str,
    commitment: &'a Hash,
    nonce: &'a NonceBytes,
    /// What has to be the same when it is opened.
    beside: &'a [u8],
}

/// Why records can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// They aren't what they say; for people.
    Damaged(String),
    /// They are this session's, encrypted, and its key isn't at hand.
    Locked(SessionId),
    /// They are this session's, which was erased.
    Erased(SessionId),
}

impl From<String> for Unreadable {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

impl From<&str> for Unreadable {
    fn from(what: &str) -> Self {
        Self::Damaged(what.to_owned())
    }
}

/// Why the content of a part stays closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// Its session was erased.
    Erased,
    /// Its key isn't at hand.
    Locked,
    /// What is at hand isn't its key.
    Foreign,
}

/// What is wrong with a part that its session's key didn't encrypt.
const FOREIGN: &str = "a session in it was encrypted with another key than `session.keys` has for it; put the right file back";

/// What a block has, but for content.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// How many records there are in all.
    pub(super) count: u64,
    /// Those that aren't content, in order; and what stands for sessions that began in what is closed.
    pub(super) records: Vec<Record>,
    /// Sessions with something in it that can't be read, and how many records that are.
    pub(super) closed: Vec<(SessionId, Closed, u32)>,
}

impl BlockHeader {
    /// The header for `stored`, chained to what was before it; `None` where that isn't a block's parts.
    pub(super) fn chained(mut self, before: &Hash, stored: &[u8]) -> Option<Self> {
        let parts = self.parts(stored).ok()?;
        self.chain = match self.layout {
            Layout::Parts(_) => self.link(before, parts.iter().map(Part::hash)),
            Layout::Whole(_) => sha256(&[before, &self.chained_bytes(), stored]),
        };
        Some(self)
    }

    /// Whether `stored` and this header are what was chained after `before`.
    pub(super) fn is_chained(&self, before: &Hash, stored: &[u8]) -> bool {
        let chained = self.chained(before, stored);
        chained.is_some_and(|chained| chained.chain == self.chain)
    }

    /// The chain's value after a block with this header and such `parts`, behind `before`; of one that has parts.
    pub(super) fn link(&self, before: &Hash, parts: impl IntoIterator<Item = Hash>) -> Hash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(before);
        context.update(&self.chained_bytes());
        for part in parts {
            context.update(&part);
        }
        finish(context)
    }

    /// What the chain covers of the header itself.
    pub(super) fn chained_bytes(&self) -> [u8; CHAINED] {
        let mut out = [0; CHAINED];
        out.copy_from_slice(self.encode().get(..CHAINED).unwrap_or(&[0; CHAINED]));
        out
    }

    pub(super) fn encode(&self) -> [u8; BLOCK_HEADER] {
        let mut out = [0; BLOCK_HEADER];
        let (magic, number) = match self.layout {
            Layout::Parts(parts) => (MAGIC, parts),
            Layout::Whole(raw) => (MAGIC_WHOLE, raw),
        };
        put(
            &mut out,
            &[
                magic,
                &self.stored.to_le_bytes(),
                &number.to_le_bytes(),
                &self.count.to_le_bytes(),
                &self.first_seq.to_le_bytes(),
                &self.time_ns.to_le_bytes(),
                &self.chain,
            ],
        );
        out
    }

    pub(super) fn decode(bytes: &[u8; BLOCK_HEADER]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (stored, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (first_seq, rest) = rest.split_first_chunk()?;
        let (time_ns, rest) = rest.split_first_chunk()?;
        let (chain, _) = rest.split_first_chunk()?;
        let number = u32::from_le_bytes(*number);
        Some(Self {
            stored: u32::from_le_bytes(*stored),
            layout: match magic {
                MAGIC => Layout::Parts(number),
                MAGIC_WHOLE => Layout::Whole(number),
                _ => return None,
            },
            count: u32::from_le_bytes(*count),
            first_seq: u64::from_le_bytes(*first_seq),
            time_ns: u64::from_le_bytes(*time_ns),
            chain: *chain,
        })
    }

    /// The parts that `stored` consists of.
    ///
    /// # Errors
    /// Where it isn't what this header says; for people.
    pub(super) fn parts<'a>(&self, stored: &'a [u8]) -> Result<Vec<Part<'a>>, &'static str> {
        let mut parts = Vec::new();
        let announced = match self.layout {
            Layout::Parts(announced) => {
                let mut rest = stored;
                while !rest.is_empty() {
                    let split = Part::split(rest);
                    let (part, after) = split.ok_or("a part of it is none, or cut short")?;
                    parts.push(part);
                    rest = after;
                }
                announced as usize
            }
            Layout::Whole(raw) => {
                parts.push(Part {
                    whose: Whose::Anybody,
                    nth: 0,
                    count: self.count,
                    raw,
                    bytes: stored,
                    frame: stored,
                    sealed: None,
                });
                1
            }
        };
        let sum = |of: fn(&Part<'_>) -> u32| parts.iter().map(|part| u64::from(of(part))).sum();
        let raw: u64 = sum(|part| part.raw);
        let count: u64 = sum(|part| part.count);
        if stored.len() != self.stored as usize || parts.len() != announced {
            return Err("it has other parts than its header says");
        }
        if count != u64::from(self.count) {
            return Err("its parts have more or fewer records than its header says");
        }
        // Whoever reads it makes room for so many.
        if raw > RAW_BYTES_MAX || count * LENGTH_BYTES as u64 > raw {
            return Err("its parts say that they are of a size that none is of");
        }
        Ok(parts)
    }

    /// The records in `stored`, in order; of sessions that were erased what stands for those that began there.
    ///
    /// # Errors
    /// Where it doesn't hold what this header says, or `keys` don't open it.
    pub(super) fn records(
        &self,
        stored: &[u8],
        keys: &SessionKeys,
    ) -> Result<Vec<Record>, Unreadable> {
        self.records_of(stored, keys, |_| true)
    }

    /// The same without what servers answered and what passed without being an operation.
    ///
    /// # Errors
    /// As of [`BlockHeader::records`].
    pub(super) fn deeds(
        &self,
        stored: &[u8],
        keys: &SessionKeys,
    ) -> Result<Vec<Record>, Unreadable> {
        self.records_of(stored, keys, |peeked| !peeked.is_bulk)
    }

    fn records_of(
        &self,
        stored: &[u8],
        keys: &SessionKeys,
        wanted: impl Fn(Peeked) -> bool,
    ) -> Result<Vec<Record>, Unreadable> {
        let (mut records, mut standing) = (Vec::new(), Vec::new());
        self.each_of(
            (stored, keys),
            wanted,
            |record| records.push(record),
            |part, why| {
                standing.extend(self.in_place_of(part));
                unless_locked(part, why)
            },
        )?;
        records.extend(standing);
        // Sessions stand side by side, and have spoken in turns.
        records.sort_by_key(|record| record.seq);
        Ok(records)
    }

    /// What `stored` has but for the content of sessions, which is nearly all of it.
    ///
    /// # Errors
    /// As of [`BlockHeader::records`], but for content that can't be read.
    pub(super) fn facts(&self, stored: &[u8], keys: &SessionKeys) -> Result<Facts, Unreadable> {
        let mut facts = Facts {
            count: self.count.into(),
            ..Facts::default()
        };
        let (mut standing, mut closed) = (Vec::new(), Vec::new());
        self.each_of(
            (stored, keys),
            |peeked| !peeked.is_content,
            |record| facts.records.push(record),
            |part, why| {
                if let Whose::Session(session) = part.whose {
                    closed.push((session, why, part.count));
                }
                standing.extend(self.in_place_of(part));
                Ok(())
            },
        )?;
        facts.records.extend(standing);
        facts.closed = closed;
        facts.records.sort_by_key(|record| record.seq);
        Ok(facts)
    }

    /// What stands for the session that begins in `part`, which is closed.
    fn in_place_of(&self, part: &Part<'_>) -> Option<Record> {
        let sealed = part.sealed.filter(|sealed| sealed.begins != 0)?;
        let counts = match sealed.begins {
            BEGINS => [1, 0, 0],
            _ => [0, 1, 0],
        };
        Some(husk::in_place_of(
            Arc::from(sealed.agent),
            (
                self.first_seq.saturating_add(sealed.first.into()),
                Timestamp(self.time_ns),
            ),
            counts,
        ))
    }

    /// Gives `take` the records in `stored` that begin a session or are operations, session by session; of sessions
    /// that were erased there are none.
    ///
    /// # Errors
    /// As of [`BlockHeader::records`].
    pub(super) fn each_attempt(
        &self,
        stored: &[u8],
        keys: &SessionKeys,
        mut take: impl FnMut(&Record),
    ) -> Result<(), Unreadable> {
        self.each_of(
            (stored, keys),
            |peeked| peeked.is_attempt,
            |record| take(&record),
            unless_locked,
        )
    }

    /// The same of those that are in clear.
    ///
    /// # Errors
    /// As of [`BlockHeader::records`].
    pub(super) fn each_clear_attempt(
        &self,
        stored: &[u8],
        mut take: impl FnMut(&Record),
    ) -> Result<(), Unreadable> {
        self.each_of(
            (stored, &SessionKeys::none()),
            |peeked| peeked.is_attempt,
            |record| take(&record),
            |_, _| Ok(()),
        )
    }

    /// Gives `take` the records in `stored` that look as if they were `wanted`, part by part, once they are known to
    /// stand where they belong; the others aren't decoded. Gives `closed` the parts that `keys` don't open.
    fn each_of(
        &self,
        (stored, keys): (&[u8], &SessionKeys),
        wanted: impl Fn(Peeked) -> bool,
        mut take: impl FnMut(Record),
        mut closed: impl FnMut(&Part<'_>, Closed) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        let parts = self.parts(stored)?;
        let mut numbers = Numbers::new(self, parts.len());
        for part in parts {
            let key = match part.key(keys) {
                Ok(key) => key,
                Err(why) => {
                    closed(&part, why)?;
                    continue;
                }
            };
            part.each(key.as_deref(), |bytes, peeked| {
                numbers.take(peeked.seq)?;
                if wanted(peeked) {
                    take(glance::decode(bytes).map_err(unreadable)?);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Passes over a part whose session was erased; of one that could be read elsewhere it is an error.
fn unless_locked(part: &Part<'_>, why: Closed) -> Result<(), Unreadable> {
    match (why, part.whose) {
        (Closed::Erased, _) => Ok(()),
        (Closed::Locked, Whose::Session(session)) => Err(Unreadable::Locked(session)),
        _ => Err(FOREIGN.into()),
    }
}

/// Which of a block's numbers were seen. So many different ones as there are have to be all of them.
struct Numbers {
    first: u64,
    end: u64,
    /// The next one, where they come in order.
    next: u64,
    /// Those that were, where several parts share them.
    seen: Option<Vec<bool>>,
}

impl Numbers {
    fn new(header: &BlockHeader, parts: usize) -> Self {
        Self {
            first: header.first_seq,
            end: header.first_seq.saturating_add(header.count.into()),
            next: header.first_seq,
            seen: (parts > 1).then(|| vec![false; header.count as usize]),
        }
    }

    fn take(&mut self, seq: u64) -> Result<(), String> {
        let Some(seen) = &mut self.seen else {
            if seq != self.next {
                return Err(format!("record {seq} stands where {} belongs", self.next));
            }
            self.next += 1;
            return Ok(());
        };
        let place = seq.checked_sub(self.first).map(usize::try_from);
        match place
            .and_then(Result::ok)
            .and_then(|place| seen.get_mut(place))
        {
            None => Err(format!(
                "record {seq} stands where those from {} to {} belong",
                self.first,
                self.end.saturating_sub(1)
            )),
            Some(true) => Err(format!("record {seq} is in it twice")),
            Some(seen) => {
                *seen = true;
                Ok(())
            }
        }
    }
}

impl<'a> Part<'a> {
    /// The part that `bytes` begin with, and what is behind it.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (form, rest) = bytes.split_first()?;
        let (session, rest) = rest.split_first_chunk()?;
        let (nth, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (raw, rest) = rest.split_first_chunk()?;
        let (stored, _) = rest.split_first_chunk()?;
        let length = PART_HEADER.checked_add(u32::from_le_bytes(*stored) as usize)?;
        let (bytes, after) = bytes.split_at_checked(length)?;
        let (sealed, frame) = match *form {
            SEALED => {
                let (sealed, frame) = Sealed::split(bytes)?;
                (Some(sealed), frame)
            }
            _ => (None, bytes.get(PART_HEADER..)?),
        };
        let part = Self {
            whose: match (*form, u64::from_le_bytes(*session)) {
                (HOST, 0) => Whose::Host,
                (SESSION | SEALED, session) => Whose::Session(SessionId(session)),
                _ => return None,
            },
            nth: u32::from_le_bytes(*nth),
            count: u32::from_le_bytes(*count),
            raw: u32::from_le_bytes(*raw),
            bytes,
            frame,
            sealed,
        };
        Some((part, after))
    }

    /// What opens it, if it needs that, of `keys`.
    fn key(&self, keys: &SessionKeys) -> Result<Option<Arc<ContentKey>>, Closed> {
        let (Some(sealed), Whose::Session(session)) = (self.sealed, self.whose) else {
            return Ok(None);
        };
        match keys.of(session) {
            Held::Key(key) if key.commitment() != sealed.commitment => Err(Closed::Foreign),
            Held::Key(key) => Ok(Some(key)),
            Held::Erased => Err(Closed::Erased),
            Held::Locked => Err(Closed::Locked),
        }
    }

    /// The part that `bytes` are.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (part, after) = Self::split(bytes)?;
        let is_sound = u64::from(part.raw) <= RAW_BYTES_MAX
            && u64::from(part.count) * LENGTH_BYTES as u64 <= u64::from(part.raw);
        (after.is_empty() && is_sound).then_some(part)
    }

    /// What stands for it in the block's chain value.
    pub(super) fn hash(&self) -> Hash {
        sha256(&[self.bytes])
    }

    /// Its records, in order, opened with one of `keys` if it is encrypted.
    ///
    /// # Errors
    /// Where it doesn't hold what it says, or they don't open it.
    pub(super) fn records(&self, keys: &SessionKeys) -> Result<Vec<Record>, Unreadable> {
        match (self.key(keys), self.whose) {
            (Ok(key), _) => Ok(self.records_with(key.as_deref())?),
            (Err(Closed::Erased), Whose::Session(session)) => Err(Unreadable::Erased(session)),
            (Err(Closed::Locked), Whose::Session(session)) => Err(Unreadable::Locked(session)),
            (Err(_), _) => Err(FOREIGN.into()),
        }
    }

    /// Its records, in order, opened with `key` if it is encrypted.
    ///
    /// # Errors
    /// Where it doesn't hold what it says; for people.
    pub(super) fn records_with(&self, key: Option<&ContentKey>) -> Result<Vec<Record>, String> {
        let mut records = Vec::with_capacity(self.count as usize);
        self.each(key, |bytes, _| {
            records.push(glance::decode(bytes).map_err(unreadable)?);
            Ok(())
        })?;
        Ok(records)
    }

    /// Whether it may have records of `session`, or of none.
    pub(super) fn may_have(&self, session: Option<SessionId>) -> bool {
        match self.whose {
            Whose::Host => session.is_none(),
            Whose::Session(own) => session == Some(own),
            Whose::Anybody => true,
        }
    }

    /// Gives `take` each record and what it is at a glance.
    fn each(
        &self,
        key: Option<&ContentKey>,
        take: impl FnMut(&[u8], Peeked) -> Result<(), String>,
    ) -> Result<(), String> {
        let opened = match self.sealed {
            Some(sealed) => Some(sealed.open(key, self.frame)?),
            None => None,
        };
        let frame = opened.as_deref().unwrap_or(self.frame);
        unpacked(frame, self.raw as usize, |raw| self.each_of(raw, take))
    }

    /// The same of what it is before compression.
    fn each_of(
        &self,
        raw: &[u8],
        mut take: impl FnMut(&[u8], Peeked) -> Result<(), String>,
    ) -> Result<(), String> {
        if raw.len() != self.raw as usize {
            return Err("its content is shorter than its header says".to_owned());
        }
        let (mut count, mut last) = (0_u32, None);
        split(raw, |bytes| {
            let seen = glance::peek(bytes).map_err(unreadable)?;
            if !self.may_have(seen.session) {
                return Err(format!("record {} is of another session", seen.seq));
            }
            if last.is_some_and(|last| seen.seq <= last) {
                return Err(format!("record {} stands too late", seen.seq));
            }
            last = Some(seen.seq);
            count += 1;
            take(bytes, seen)
        })?;
        if count != self.count {
            return Err(format!(
                "it has {count} records, its header says {}",
                self.count
            ));
        }
        Ok(())
    }
}

thread_local! {
    /// Whoever reads many parts has them decompressed by one and the same, into the same room: to make both anew takes
    /// as long as a small part does.
    static UNPACKER: RefCell<Unpacker> = const { RefCell::new(Unpacker { zstd: None, room: Vec::new() }) };
}

struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    room: Vec<u8>,
}

/// Room that is kept from part to part, in bytes.
const ROOM_MAX: usize = 4 << 20;

/// Gives `take` what is in `frame`, of at most `bytes_max` bytes.
fn unpacked(
    frame: &[u8],
    bytes_max: usize,
    take: impl FnOnce(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("its content doesn't decompress: {error}");
    // Taken out, so that `take` may do the same.
    let (zstd, mut room) = UNPACKER.with_borrow_mut(|unpacker| {
        let room = std::mem::take(&mut unpacker.room);
        (unpacker.zstd.take(), room)
    });
    let mut zstd = match zstd {
        Some(zstd) => zstd,
        None => zstd::bulk::Decompressor::new().map_err(failed)?,
    };
    room.clear();
    room.reserve(bytes_max);
    let taken = match zstd.decompress_to_buffer(frame, &mut room) {
        Ok(_) => take(&room),
        Err(error) => Err(failed(error)),
    };
    room.clear();
    room.shrink_to(ROOM_MAX);
    UNPACKER.set(Unpacker {
        zstd: Some(zstd),
        room,
    });
    taken
}

impl<'a> Sealed<'a> {
    /// What the encrypted part that `bytes` are says, and what is encrypted.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let rest = bytes.get(PART_HEADER..)?;
        let (begins, rest) = rest.split_first()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (agent, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
        let (commitment, rest) = rest.split_first_chunk()?;
        let beside = bytes.get(..bytes.len() - rest.len())?;
        let (nonce, frame) = rest.split_first_chunk::<NONCE_LEN>()?;
        let sealed = Self {
            begins: *begins,
            first: u32::from_le_bytes(*first),
            agent: str::from_utf8(agent).ok()?,
            commitment,
            nonce,
            beside,
        };
        Some((sealed, frame))
    }

    /// What is in `frame`, opened with `key`.
    fn open(&self, key: Option<&ContentKey>, frame: &[u8]) -> Result<Vec<u8>, &'static str> {
        let key = key.ok_or("it is encrypted, and there is no key for it")?;
        if key.commitment() != self.commitment {
            return Err("it was encrypted with another key than the one for its session");
        }
        let opened = key.open(self.nonce, self.beside, frame);
        opened.ok_or("what is encrypted in it was changed")
    }
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

pub(super) fn split(
    raw: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut rest = raw;
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
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

pub(super) fn unreadable(error: postcard::Error) -> String {
    format!("a record in it can't be read: {error}")
}

/// Puts `fields` one behind the other at the beginning of `out`.
fn put(out: &mut [u8], fields: &[&[u8]]) {
    let mut rest = out;
    for field in fields {
        let Some((place, after)) = rest.split_at_mut_checked(field.len()) else {
            return;
        };
        place.copy_from_slice(field);
        rest = after;
    }
}

pub(super) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    finish(context)
}

fn finish(context: digest::Context) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::record::{Event, Timestamp};

    use super::*;
    use crate::journal::{
        Waiting,
        pack::{GATHERED_MAX, Next, Packer},
    };

    fn record(seq: u64, session: u64) -> Record {
        Record {
            seq,
            time: Timestamp(seq),
            session: session.checked_sub(1).map(SessionId),
            agent: Arc::from("agent"),
            event: Event::notice("test", [("number", seq.to_string())]),
        }
    }

    /// A block of records from 11 on, of these sessions, in clear.
    fn packed(sessions: &[u64]) -> (BlockHeader, Vec<u8>, Vec<Record>) {
        packed_with(&SessionKeys::none(), sessions)
    }

    /// The same, encrypted where `keys` are there for that.
    fn packed_with(keys: &SessionKeys, sessions: &[u64]) -> (BlockHeader, Vec<u8>, Vec<Record>) {
        let mut waiting = Waiting::default();
        let records: Vec<Record> = (11..)
            .zip(sessions)
            .map(|(seq, of)| record(seq, *of))
            .collect();
        for record in &records {
            waiting.take(record).unwrap();
        }
        let mut stored = b"of another block".to_vec();
        let next = |session: Option<SessionId>| match session {
            Some(session) => Ok(Next {
                nth: session.0 as u32 * 10 + 7,
                key: keys.to_encrypt(session)?,
            }),
            None => Ok(Next::default()),
        };
        let header = Packer::new()
            .unwrap()
            .pack(&waiting.bytes, next, &mut stored)
            .unwrap();
        let header = BlockHeader {
            first_seq: 11,
            ..header
        };
        (header.chained(&[7; 32], &stored).unwrap(), stored, records)
    }

    #[test]
    fn a_block_has_a_part_a_session() {
        let cases = [&[][..], &[3], &[3, 3, 3], &[2, 3, 3, 0, 2, 0, 5, 3]];
        for (keys, sessions) in [SessionKeys::none(), SessionKeys::fresh()]
            .iter()
            .flat_map(|keys| cases.map(|sessions| (keys, sessions)))
        {
            let (header, stored, records) = packed_with(keys, sessions);
            assert_eq!(BlockHeader::decode(&header.encode()), Some(header));
            assert!(header.is_chained(&[7; 32], &stored));
            assert!(!header.is_chained(&[8; 32], &stored));
            assert_eq!(header.records(&stored, keys).unwrap(), records);
            let facts = header.facts(&stored, keys).unwrap();
            assert_eq!(
                (facts.count, facts.records),
                (records.len() as u64, records.clone())
            );
            assert_eq!(facts.closed, []);
            let parts = header.parts(&stored).unwrap();
            for part in &parts {
                let own: Vec<Record> = records
                    .iter()
                    .filter(|record| part.may_have(record.session))
                    .cloned()
                    .collect();
                assert_eq!(part.records(keys).unwrap(), own);
                assert_eq!(part.count as usize, own.len());
                let nth = match part.whose {
                    Whose::Session(session) => session.0 * 10 + 7,
                    _ => 0,
                };
                assert_eq!(u64::from(part.nth), nth);
                let alone = Part::read(part.bytes).unwrap();
                assert_eq!(alone.records(keys).unwrap(), own);
            }
            // What stands for the parts is all that is needed of them.
            let hashes = parts.iter().map(Part::hash);
            assert_eq!(header.link(&[7; 32], hashes), header.chain);
        }
    }

    #[test]
    fn much_of_several_sessions_is_the_same_as_little() {
        let mut waiting = Waiting::default();
        let records: Vec<Record> = (0..40_u64)
            .map(|seq| Record {
                event: Event::notice("big", [("text", format!("{seq} ").repeat(10_000))]),
                ..record(seq, seq % 3)
            })
            .collect();
        for record in &records {
            waiting.take(record).unwrap();
        }
        let mut stored = Vec::new();
        let mut packer = Packer::new().unwrap();
        let header = packer
            .pack(&waiting.bytes, |_| Ok(Next::default()), &mut stored)
            .unwrap();
        assert!(waiting.bytes.len() > 3 * GATHERED_MAX);
        let none = SessionKeys::none();
        assert_eq!(header.records(&stored, &none).unwrap(), records);
    }

    #[test]
    fn every_byte_counts() {
        for keys in [SessionKeys::none(), SessionKeys::fresh()] {
            every_byte_of_it_counts(&keys);
        }
    }

    fn every_byte_of_it_counts(keys: &SessionKeys) {
        let (header, stored, _) = packed_with(keys, &[2, 3, 0, 2, 5]);
        for at in 0..stored.len() {
            for length in [stored.len(), at] {
                let mut changed = stored[..length].to_vec();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1;
                }
                assert!(!header.is_chained(&[7; 32], &changed), "byte {at}");
                // Whatever it is read as, nothing breaks.
                let _ = header.records(&changed, keys);
                let _ = header.facts(&changed, keys);
            }
        }
        let encoded = header.encode();
        for at in 0..BLOCK_HEADER {
            let mut changed = encoded;
            changed[at] ^= 1;
            let changed = BlockHeader::decode(&changed);
            assert!(
                changed.is_none_or(|changed| !changed.is_chained(&[7; 32], &stored)),
                "byte {at}"
            );
        }
    }

    #[test]
    fn blocks_that_lie_are_refused() {
        let (header, stored, _) = packed(&[2, 3]);
        let none = SessionKeys::none();
        let said = |header: BlockHeader, stored: &[u8]| match header.records(stored, &none) {
            Err(Unreadable::Damaged(what)) => what,
            other => panic!("{other:?}"),
        };
        let other = |first_seq| BlockHeader {
            first_seq,
            ..header
        };
        assert_eq!(
            said(other(12), &stored),
            "record 11 stands where those from 12 to 13 belong"
        );
        assert_eq!(
            said(other(10), &stored),
            "record 12 stands where those from 10 to 11 belong"
        );
        let (single, alone, _) = packed(&[2, 2]);
        let single = BlockHeader {
            first_seq: 12,
            ..single
        };
        assert_eq!(said(single, &alone), "record 11 stands where 12 belongs");
        // A part that says that it is another session's.
        let mut stolen = stored.clone();
        stolen[1] = 9;
        assert_eq!(said(header, &stolen), "record 11 is of another session");
        // The same part twice.
        let first = header.parts(&stored).unwrap()[0].bytes;
        let twice = [first, first].concat();
        let doubled = BlockHeader {
            stored: twice.len() as u32,
            ..header
        };
        assert_eq!(said(doubled, &twice), "record 11 is in it twice");
        // Sizes that nothing has.
        for (at, what) in [
            (0, "none"),
            (13, "more or fewer"),
            (17, "of a size"),
            (21, "cut short"),
        ] {
            let mut huge = stored.clone();
            huge[at..at + 4].copy_from_slice(&[0xFF; 4]);
            assert!(
                said(header, &huge).contains(what),
                "{}",
                said(header, &huge)
            );
        }
    }

    #[test]
    fn what_is_encrypted_is_for_who_has_the_key_of_its_session() {
        let keys = SessionKeys::fresh();
        let (header, stored, records) = packed_with(&keys, &[2, 3, 0, 2, 5]);
        let text = b"number";
        let shows = |bytes: &[u8]| bytes.windows(text.len()).any(|bytes| bytes == text);
        // The host's own part alone is in clear.
        for part in header.parts(&stored).unwrap() {
            assert_eq!(shows(part.bytes), part.whose == Whose::Host);
            assert_eq!(part.sealed.is_some(), part.whose != Whose::Host);
        }
        // Without a key, and with another journal's.
        let none = SessionKeys::none();
        let locked = header.records(&stored, &none).unwrap_err();
        assert_eq!(locked, Unreadable::Locked(SessionId(1)));
        let other = header.records(&stored, &SessionKeys::fresh()).unwrap_err();
        let Unreadable::Damaged(what) = other else {
            panic!("{other:?}")
        };
        assert_eq!(what, FOREIGN);
        // What is the host's is known, and what is closed is counted.
        let facts = header.facts(&stored, &none).unwrap();
        assert_eq!((facts.count, facts.records.len()), (5, 1));
        let closed = [1, 2, 4].map(SessionId);
        let counts = [2, 1, 1];
        let all = |why| {
            closed
                .into_iter()
                .zip(counts)
                .map(move |(of, count)| (of, why, count))
        };
        assert_eq!(facts.closed, all(Closed::Locked).collect::<Vec<_>>());
        // Of one that was erased there is nothing, and all others are there.
        keys.forget(SessionId(1));
        let left = header.records(&stored, &keys).unwrap();
        let of_others = |record: &&Record| record.session != Some(SessionId(1));
        assert_eq!(
            left,
            records
                .iter()
                .filter(of_others)
                .cloned()
                .collect::<Vec<_>>()
        );
        let facts = header.facts(&stored, &keys).unwrap();
        assert_eq!(facts.closed, [(SessionId(1), Closed::Erased, 2)]);
        let parts = header.parts(&stored).unwrap();
        let erased = parts[0].records(&keys).unwrap_err();
        assert_eq!(erased, Unreadable::Erased(SessionId(1)));
        assert!(header.is_chained(&[7; 32], &stored));
    }

    #[test]
    fn a_part_is_bound_to_one_key_and_to_its_place() {
        let keys = SessionKeys::fresh();
        let (header, stored, _) = packed_with(&keys, &[2, 3]);
        let part = header.parts(&stored).unwrap()[0];
        let sealed = part.sealed.unwrap();
        // One that would open it as something else can't have the same commitment; one whose commitment is put in
        // its place doesn't open it.
        let other = ContentKey::fresh().unwrap();
        let refused = part.records_with(Some(&other)).unwrap_err();
        assert_eq!(
            refused,
            "it was encrypted with another key than the one for its session"
        );
        let at = sealed.commitment.as_ptr() as usize - part.bytes.as_ptr() as usize;
        let mut claimed = part.bytes.to_vec();
        claimed[at..at + 32].copy_from_slice(other.commitment());
        let claimed = Part::read(&claimed).unwrap();
        let refused = claimed.records_with(Some(&other)).unwrap_err();
        assert_eq!(refused, "what is encrypted in it was changed");
        part.records_with(None).unwrap_err();
        // Another session's, another number, another agent.
        let Held::Key(own) = keys.of(SessionId(1)) else {
            panic!()
        };
        let agent = sealed.agent.as_ptr() as usize - part.bytes.as_ptr() as usize;
        for at in [1, 9, agent] {
            let mut moved = part.bytes.to_vec();
            moved[at] ^= 1;
            let moved = Part::read(&moved).unwrap();
            let refused = moved.records_with(Some(&own)).unwrap_err();
            assert_eq!(refused, "what is encrypted in it was changed");
        }
        assert_eq!(part.records_with(Some(&own)).unwrap().len(), 1);
    }
}
