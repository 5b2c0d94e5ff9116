//! DNS messages as they are on the wire (RFC 1035, section 4): header, names, records.
//!
//! Nothing here changes a byte: what isn't looked at goes on as it came. A name may point backwards only, which
//! every encoder does, so that reading it ends.

use std::{borrow::Cow, fmt::Write as _, ops::Range};

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 12;

/// Longest name on the wire, the root's byte included.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// Most pointers that a name is read through: it has no more labels. Without a bound a message of 64 KiB could
/// send its reader through thousands for each of thousands of names.
const POINTERS_MAX: usize = NAME_BYTES_MAX / 2;

/// Types of records that are looked into.
pub(super) mod kind {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const NS: u16 = 2;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const MX: u16 = 15;
    pub(in super::super) const TXT: u16 = 16;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const SRV: u16 = 33;
    pub(in super::super) const DNAME: u16 = 39;
    pub(in super::super) const OPT: u16 = 41;
    pub(in super::super) const SVCB: u16 = 64;
    pub(in super::super) const HTTPS: u16 = 65;
    pub(in super::super) const SPF: u16 = 99;
    pub(in super::super) const IXFR: u16 = 251;
    pub(in super::super) const AXFR: u16 = 252;
    pub(in super::super) const CAA: u16 = 257;
}

/// The class of the Internet.
pub(super) const IN: u16 = 1;

/// What a message is for (RFC 1035 and IANA's registry).
pub(super) mod opcode {
    pub(in super::super) const QUERY: u8 = 0;
    pub(in super::super) const NOTIFY: u8 = 4;
    pub(in super::super) const UPDATE: u8 = 5;
}

/// How a message was answered.
pub(super) mod rcode {
    pub(in super::super) const NOERROR: u16 = 0;
    pub(in super::super) const FORMERR: u16 = 1;
    pub(in super::super) const SERVFAIL: u16 = 2;
    pub(in super::super) const NXDOMAIN: u16 = 3;
    pub(in super::super) const NOTIMP: u16 = 4;
    pub(in super::super) const REFUSED: u16 = 5;
}

/// Bits of the header's second field.
pub(super) mod flag {
    pub(in super::super) const RESPONSE: u16 = 0x8000;
    pub(in super::super) const AUTHORITATIVE: u16 = 0x0400;
    pub(in super::super) const TRUNCATED: u16 = 0x0200;
    pub(in super::super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in super::super) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(in super::super) const RESERVED: u16 = 0x0040;
    pub(in super::super) const AUTHENTIC: u16 = 0x0020;
    pub(in super::super) const CHECKING_DISABLED: u16 = 0x0010;
    pub(in super::super) const RCODE: u16 = 0x000F;
}

/// The first 12 bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) flags: u16,
    /// Questions, answers, authorities and additional records.
    pub(super) counts: [u16; 4],
}

impl Header {
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message);
        let mut next = || reader.u16();
        Some(Self {
            id: next()?,
            flags: next()?,
            counts: [next()?, next()?, next()?, next()?],
        })
    }

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        for field in [self.id, self.flags].into_iter().chain(self.counts) {
            out.extend_from_slice(&field.to_be_bytes());
        }
    }

    pub(super) const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn opcode(self) -> u8 {
        (self.flags >> 11 & 0xF) as u8
    }
}

/// A place in a message from which is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) message: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    pub(super) const fn starting(message: &'a [u8], at: usize) -> Self {
        Self { message, at }
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let [byte] = self.array()?;
        Some(byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let taken = self.rest().get(..bytes)?;
        self.at += bytes;
        Some(taken)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.message.get(self.at..).unwrap_or_default()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, _) = self.rest().split_first_chunk()?;
        self.at += N;
        Some(*array)
    }

    /// A name that is written out, without a pointer; its bytes with the root's.
    pub(super) fn plain_name(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        loop {
            match self.u8()? {
                0 => break,
                length @ 1..=63 => _ = self.take(usize::from(length))?,
                _ => return None,
            }
        }
        self.message
            .get(start..self.at)
            .filter(|name| name.len() <= NAME_BYTES_MAX)
    }

    /// A name, with what it points to.
    pub(super) fn name(&mut self) -> Option<Cow<'a, [u8]>> {
        let start = self.at;
        let mut out: Vec<u8> = Vec::new();
        let mut at = start;
        // Every pointer leads to before the labels that it ends.
        let mut before = start;
        let mut pointers = 0;
        loop {
            let length = *self.message.get(at)?;
            match length {
                0 => break,
                1..=63 => {
                    let end = at + 1 + usize::from(length);
                    if pointers > 0 {
                        out.extend_from_slice(self.message.get(at..end)?);
                    } else {
                        self.message.get(at..end)?;
                    }
                    at = end;
                }
                0xC0.. => {
                    let low = *self.message.get(at + 1)?;
                    let target = usize::from(u16::from_be_bytes([length & 0x3F, low]));
                    if target >= before || pointers >= POINTERS_MAX {
                        return None;
                    }
                    if pointers == 0 {
                        out.extend_from_slice(self.message.get(start..at)?);
                        self.at = at + 2;
                    }
                    pointers += 1;
                    (at, before) = (target, target);
                }
                // Label types that never came into use (RFC 6891, section 5).
                64..=0xBF => return None,
            }
            if out.len() >= NAME_BYTES_MAX {
                return None;
            }
        }
        if pointers > 0 {
            out.push(0);
            return Some(Cow::Owned(out));
        }
        self.at = at + 1;
        self.message
            .get(start..self.at)
            .filter(|name| name.len() <= NAME_BYTES_MAX)
            .map(Cow::Borrowed)
    }

    /// A record, whose data isn't looked at.
    pub(super) fn record(&mut self) -> Option<Record<'a>> {
        let start = self.at;
        let owner = self.name()?;
        let (kind, class, ttl) = (self.u16()?, self.u16()?, self.u32()?);
        let length = usize::from(self.u16()?);
        let data = self.at..self.at + length;
        self.take(length)?;
        Some(Record {
            start,
            owner,
            kind,
            class,
            ttl,
            data,
        })
    }
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Where in the message it begins.
    pub(super) start: usize,
    /// Whose it is, written out.
    pub(super) owner: Cow<'a, [u8]>,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Where in the message its data stands.
    pub(super) data: Range<usize>,
}

/// `www.Example.com.` of a name that is written out. What would be taken for something else is escaped by
/// number, dots within labels as well: so a pattern's dot always stands between labels.
pub(super) fn text(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    labels(name, &mut out, false);
    if out.is_empty() {
        out.push('.');
    }
    out
}

/// `www.example.com` of a name that is written out; `.` of the root.
pub(super) fn folded(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    labels(name, &mut out, true);
    if out.len() > 1 {
        out.pop();
    } else {
        out.push('.');
    }
    out
}

fn labels(name: &[u8], out: &mut String, fold: bool) {
    let mut reader = Reader::new(name);
    while let Some(length @ 1..) = reader.u8() {
        for byte in reader.take(usize::from(length)).unwrap_or_default() {
            match byte {
                b'.' | b'\\' | ..=b' ' | 0x7F.. => _ = write!(out, "\\{byte:03}"),
                byte if fold => out.push(char::from(byte.to_ascii_lowercase())),
                byte => out.push(char::from(*byte)),
            }
        }
        out.push('.');
    }
}

/// The bytes of a name as text writes it, `www.example.com.` with or without the last dot.
pub(super) fn encoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() + 2);
    if text != "." {
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            let place = out.len();
            out.push(0);
            let mut bytes = label.bytes();
            while let Some(byte) = bytes.next() {
                out.push(match byte {
                    b'\\' => {
                        let mut digit = || bytes.next().filter(u8::is_ascii_digit);
                        let digits = [digit()?, digit()?, digit()?];
                        std::str::from_utf8(&digits).ok()?.parse().ok()?
                    }
                    byte => byte,
                });
            }
            let length = u8::try_from(out.len() - place - 1).ok()?;
            if !(1..=63).contains(&length) {
                return None;
            }
            *out.get_mut(place)? = length;
        }
    }
    out.push(0);
    (out.len() <= NAME_BYTES_MAX).then_some(out)
}

/// A message behind its length, as it goes over TCP.
pub(super) fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut out = Vec::with_capacity(message.len() + 2);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message);
    Some(out)
}
