//! Encrypted ClientHello's keys, taken out of answers: with them a client hides from us whom it talks to.
//!
//! Only they go: everything else of the message stays as it is, byte by byte, but for the lengths and pointers
//! that have to follow. A client that checks signatures itself finds those over such a record broken.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use super::{
    answer::within,
    query::Section,
    wire::{Reader, Record, kind},
};

/// Keys of parameters (RFC 9460, section 14.3.2).
mod key {
    pub(super) const MANDATORY: u16 = 0;
    pub(super) const IPV4_HINT: u16 = 4;
    pub(super) const ECH: u16 = 5;
    pub(super) const IPV6_HINT: u16 = 6;
}

/// The data of an HTTPS or SVCB record.
#[derive(Debug)]
pub(super) struct Service<'a> {
    /// Whose service it is, written out; the root's for the owner's own.
    pub(super) target: &'a [u8],
    /// Key, the place of all of it and its value.
    parameters: Vec<(u16, Range<usize>, &'a [u8])>,
}

impl<'a> Service<'a> {
    pub(super) fn read(message: &'a [u8], record: &Record<'_>) -> Option<Self> {
        let mut data = within(message, record);
        data.u16()?;
        let mut service = Self {
            target: data.plain_name()?,
            parameters: Vec::new(),
        };
        while !data.rest().is_empty() {
            let start = data.at;
            let (key, length) = (data.u16()?, usize::from(data.u16()?));
            let value = data.take(length)?;
            service.parameters.push((key, start..data.at, value));
        }
        Some(service)
    }

    /// Addresses that a client may use before it has asked for them.
    pub(super) fn hints(&self) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for (key, _, value) in &self.parameters {
            match *key {
                key::IPV4_HINT => {
                    let (addresses, _) = value.as_chunks::<4>();
                    found.extend(
                        addresses
                            .iter()
                            .map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
                    );
                }
                key::IPV6_HINT => {
                    let (addresses, _) = value.as_chunks::<16>();
                    found.extend(
                        addresses
                            .iter()
                            .map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
                    );
                }
                _ => {}
            }
        }
        found
    }

    /// What has to go, and the new lengths of what a part goes of.
    fn cut(&self, edits: &mut Edits) {
        for (key, place, value) in &self.parameters {
            match *key {
                key::ECH => edits.gone.push(place.clone()),
                // Who is told that a client has to know a key that isn't there ignores all of the record.
                key::MANDATORY => {
                    let (keys, _) = value.as_chunks::<2>();
                    let named = |key: &[u8; 2]| u16::from_be_bytes(*key) == key::ECH;
                    let count = keys.iter().filter(|key| named(key)).count();
                    if count > 0 && count == keys.len() {
                        edits.gone.push(place.clone());
                    } else if count > 0 {
                        let length = value.len() - 2 * count;
                        edits.fields.push((place.start + 2, length as u16));
                        let at = place.start + 4;
                        let of = keys.iter().enumerate().filter(|(_, key)| named(key));
                        edits
                            .gone
                            .extend(of.map(|(n, _)| at + 2 * n..at + 2 * n + 2));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Changes of a message, by places in what it was.
#[derive(Debug, Default)]
struct Edits {
    /// In order, without overlaps.
    gone: Vec<Range<usize>>,
    /// New values of 16 bits.
    fields: Vec<(usize, u16)>,
}

/// The message without keys for Encrypted ClientHello, where it has any.
pub(super) fn without(
    message: &[u8],
    records: &[(Section, Record<'_>)],
) -> Result<Option<Vec<u8>>, &'static str> {
    let mut edits = Edits::default();
    for (_, record) in records {
        if !matches!(record.kind, kind::HTTPS | kind::SVCB) {
            continue;
        }
        let service =
            Service::read(message, record).ok_or("a record in it isn't what its type says")?;
        let before = edits.gone.len();
        service.cut(&mut edits);
        let gone: usize = edits.gone.iter().skip(before).map(Range::len).sum();
        if gone > 0 {
            let length = record.data.len() - gone;
            edits.fields.push((record.data.start - 2, length as u16));
        }
    }
    if edits.gone.is_empty() {
        return Ok(None);
    }
    const KEPT: &str = "it can't be kept whole without the keys that are taken out of it";
    let changed = edits.apply(message, records).ok_or(KEPT)?;
    if !is_same(message, records, &changed) {
        return Err(KEPT);
    }
    Ok(Some(changed))
}

impl Edits {
    fn apply(&mut self, message: &[u8], records: &[(Section, Record<'_>)]) -> Option<Vec<u8>> {
        for (_, record) in records {
            let mut owner = Reader::starting(message, record.start);
            self.point(&mut owner)?;
            let mut data = within(message, record);
            for skipped in names_in(record.kind) {
                skipped.pass(&mut data)?;
                self.point(&mut data)?;
            }
        }
        let mut out = message.to_vec();
        for (at, value) in &self.fields {
            out.get_mut(*at..*at + 2)?
                .copy_from_slice(&value.to_be_bytes());
        }
        for gone in self.gone.iter().rev() {
            out.drain(gone.clone());
        }
        Some(out)
    }

    /// Corrects the pointer that the name at this place may end with.
    fn point(&mut self, name: &mut Reader<'_>) -> Option<()> {
        loop {
            let at = name.at;
            match name.u8()? {
                0 => return Some(()),
                length @ 1..=63 => _ = name.take(usize::from(length))?,
                high @ 0xC0.. => {
                    let target = u16::from_be_bytes([high & 0x3F, name.u8()?]);
                    let before = |gone: &&Range<usize>| gone.start < usize::from(target);
                    let gone: usize = self.gone.iter().filter(before).map(Range::len).sum();
                    // One that leads into what is gone is found when the outcome is compared.
                    let target = target.checked_sub(gone as u16)?;
                    self.fields.push((at, 0xC000 | target));
                    return Some(());
                }
                64..=0xBF => return None,
            }
        }
    }
}

/// What stands before a name in a record's data.
#[derive(Debug, Clone, Copy)]
enum Before {
    Bytes(usize),
    /// 4 bytes and 3 character strings (NAPTR).
    Services,
}

impl Before {
    fn pass(self, data: &mut Reader<'_>) -> Option<()> {
        match self {
            Self::Bytes(count) => _ = data.take(count)?,
            Self::Services => {
                data.take(4)?;
                for _ in 0..3 {
                    let length = data.u8()?;
                    data.take(usize::from(length))?;
                }
            }
        }
        Some(())
    }
}

/// The names in a record's data that may be compressed (RFC 3597, section 4), each by what stands before it.
const fn names_in(kind: u16) -> &'static [Before] {
    use Before::{Bytes, Services};
    match kind {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, NXT, DNAME
        2..=5 | 7..=9 | 12 | 30 | 39 => &[Bytes(0)],
        // SOA, MINFO, RP
        6 | 14 | 17 => &[Bytes(0), Bytes(0)],
        // MX, AFSDB, RT, KX
        15 | 18 | 21 | 36 => &[Bytes(2)],
        // PX
        26 => &[Bytes(2), Bytes(0)],
        // SIG
        24 => &[Bytes(18)],
        // SRV
        33 => &[Bytes(6)],
        // NAPTR
        35 => &[Services],
        _ => &[],
    }
}

/// Whether every record is as it was but for the parameters of services.
fn is_same(message: &[u8], records: &[(Section, Record<'_>)], changed: &[u8]) -> bool {
    let start = records.first().map_or(0, |(_, record)| record.start);
    let mut reader = Reader::starting(changed, start);
    records.iter().all(|(_, was)| {
        reader.record().is_some_and(|is| {
            (&is.owner, is.kind, is.class, is.ttl) == (&was.owner, was.kind, was.class, was.ttl)
                && names(changed, &is) == names(message, was)
        })
    }) && reader.rest().len() == behind(message, records).len()
}

fn names<'a>(message: &'a [u8], record: &Record<'_>) -> Option<Vec<Cow<'a, [u8]>>> {
    let mut data = within(message, record);
    let names = names_in(record.kind).iter().map(|before| {
        before.pass(&mut data)?;
        data.name()
    });
    names.collect()
}

/// What follows the last record.
fn behind<'a>(message: &'a [u8], records: &[(Section, Record<'_>)]) -> &'a [u8] {
    let end = records.last().map_or(0, |(_, record)| record.data.end);
    message.get(end..).unwrap_or_default()
}
