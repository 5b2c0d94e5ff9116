//! What servers answer: whether it answers the question, what is learned from it, and what is taken out.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use super::{
    ech,
    query::Section,
    wire::{self, Header, Reader, Record, flag, kind, opcode, rcode},
};
use crate::{decoder::Resolved, limits, record::ResponseStatus};

/// An answer that is understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The message, where something was taken out of it.
    pub(super) changed: Option<Vec<u8>>,
    pub(super) status: ResponseStatus,
    /// Records that answer.
    pub(super) records: u16,
    pub(super) resolved: Option<Resolved>,
    /// The first of its records and all that start or end a version of a zone: what tells where a transfer ends.
    pub(super) versions: Versions,
}

/// Serial numbers in the answer section, as far as they tell where a transfer ends.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Versions {
    /// Of every SOA record, with its place among the records.
    serials: Vec<(usize, u32)>,
    records: usize,
}

/// A transfer of a zone, which takes as many messages as it likes (RFC 5936, RFC 1995).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    /// The version that is sent, which its first record says.
    serial: Option<u32>,
    records: usize,
    /// How often that version was named.
    named: usize,
    /// Only changes were asked for.
    of_changes: bool,
    /// Its second record is a version as well: it is a list of changes.
    is_incremental: bool,
}

impl Transfer {
    /// The transfer that a question of that type asks for, where it asks for one.
    pub(super) fn asked_for(asked: u16) -> Option<Self> {
        matches!(asked, kind::AXFR | kind::IXFR).then(|| Self {
            of_changes: asked == kind::IXFR,
            ..Self::default()
        })
    }

    /// Whether its first message was there: those behind it don't have to repeat the question.
    pub(super) const fn has_begun(&self) -> bool {
        self.serial.is_some()
    }

    /// Takes what one message holds; whether that was the last.
    pub(super) fn take(&mut self, versions: &Versions) -> bool {
        for (place, serial) in &versions.serials {
            match self.records + place {
                0 => self.serial = Some(*serial),
                1 => self.is_incremental = true,
                _ => {}
            }
            self.named += usize::from(self.serial == Some(*serial));
        }
        self.records += versions.records;
        // A zone stands between its version twice; changes end with the version that the first record and the
        // last additions begin with. Of changes, one record alone says that there are none.
        let last = if self.is_incremental { 3 } else { 2 };
        let has_nothing_new = self.of_changes && self.records == 1;
        self.serial.is_none() || self.named >= last || has_nothing_new
    }
}

/// Whether the message with that header, sent by a server, answers `question` as it was sent.
///
/// A client that mixes case has only its answer in the same case (draft-vixie-dnsext-dns0x20). A server that
/// doesn't understand a question may leave it out.
pub(super) fn is_for(message: &[u8], header: Header, code: u8, question: &[u8]) -> bool {
    if header.opcode() != code {
        return false;
    }
    let behind = message.get(wire::HEADER_BYTES..).unwrap_or_default();
    if header.counts == [0; 4] || header.counts == [0, 0, 0, 1] {
        return match header.flags & flag::RCODE {
            rcode::FORMERR | rcode::SERVFAIL | rcode::NOTIMP | rcode::REFUSED => true,
            // Nor does it have to be in what isn't a question (RFC 2136, section 3.8).
            _ => code != opcode::QUERY,
        };
    }
    let [questions, ..] = header.counts;
    let (Some(said), 1) = (behind.get(..question.len()), questions) else {
        return false;
    };
    let (name, kind) = said.split_at(said.len().saturating_sub(4));
    let (asked, asked_kind) = question.split_at(question.len().saturating_sub(4));
    let is_mixed =
        asked.iter().any(u8::is_ascii_uppercase) && asked.iter().any(u8::is_ascii_lowercase);
    kind == asked_kind && (name == asked || (!is_mixed && name.eq_ignore_ascii_case(asked)))
}

/// The records of a message.
pub(super) fn records_behind_question(message: &[u8], header: Header) -> Option<Reader<'_>> {
    let mut reader = Reader::starting(message, wire::HEADER_BYTES);
    let [questions, ..] = header.counts;
    for _ in 0..questions {
        reader.name()?;
        reader.take(4)?;
    }
    Some(reader)
}

/// Reads the answer to a question for `asked`, a name on the wire.
pub(super) fn read(message: &[u8], header: Header, asked: &[u8]) -> Result<Answer, &'static str> {
    let Some(records) = records(message, header) else {
        if header.has(flag::TRUNCATED) {
            return Ok(truncated(message, header, asked));
        }
        return Err("its records can't be read");
    };
    let in_section = |wanted| {
        let of = records
            .iter()
            .filter(move |(section, _)| *section == wanted);
        of.map(|(_, record)| record)
    };
    let changed = ech::without(message, &records)?;
    let found = resolved(message, &records, asked)?;
    let mut versions = Versions::default();
    for (place, record) in in_section(Section::Answer).enumerate() {
        versions.records = place + 1;
        if record.kind == kind::SOA {
            let serial = serial(message, record).ok_or("a version in it can't be read")?;
            versions.serials.push((place, serial));
        }
    }
    let extended = in_section(Section::Additional).find(|record| record.kind == kind::OPT);
    let notes = extended.map(|record| extended_errors(message, record));
    let high = extended.map_or(0, |record| (record.ttl >> 24) as u16);
    let code = high << 4 | header.flags & flag::RCODE;
    let [_, count, ..] = header.counts;
    Ok(Answer {
        changed,
        status: status(code, notes.unwrap_or_default()),
        records: count,
        // Clients believe nothing that comes with an error.
        resolved: found.filter(|_| code == rcode::NOERROR),
        versions,
    })
}

/// An answer that was cut in the middle: the client has to ask over TCP in any case, and gets what it needs to
/// know that.
fn truncated(message: &[u8], header: Header, asked: &[u8]) -> Answer {
    let mut cut = Vec::new();
    Header {
        counts: [1, 0, 0, 0],
        ..header
    }
    .encode(&mut cut);
    let end = wire::HEADER_BYTES + asked.len() + 4;
    cut.extend_from_slice(message.get(wire::HEADER_BYTES..end).unwrap_or_default());
    Answer {
        changed: Some(cut),
        status: status(header.flags & flag::RCODE, Vec::new()),
        records: 0,
        resolved: None,
        versions: Versions::default(),
    }
}

fn records(message: &[u8], header: Header) -> Option<Vec<(Section, Record<'_>)>> {
    let mut reader = records_behind_question(message, header)?;
    let mut found = Vec::new();
    let [_, answers, authorities, additional] = header.counts;
    for (section, count) in [
        (Section::Answer, answers),
        (Section::Authority, authorities),
        (Section::Additional, additional),
    ] {
        for _ in 0..count {
            found.push((section, reader.record()?));
        }
    }
    Some(found)
}

const BROKEN: &str = "a record in it isn't what its type says";

/// The names that the asked one stands for, and the addresses of the last of them. Other addresses in the answer
/// aren't what was asked for.
///
/// An honest resolver passes on what the owner of a name says about services, hints included, and he may call any
/// name a target. So a target gets no address by this, only the names that led to it do.
fn resolved(
    message: &[u8],
    records: &[(Section, Record<'_>)],
    asked: &[u8],
) -> Result<Option<Resolved>, &'static str> {
    let chain = aliases(message, records, asked)?;
    let owners = match chain.last() {
        Some(last) => targets(message, records, last)?,
        None => Vec::new(),
    };
    let mut addresses: Vec<(IpAddr, Duration)> = Vec::new();
    let mut add = |address: IpAddr, ttl: u32| {
        // The highest bit counts for 0 (RFC 2181, section 8).
        let ttl = Duration::from_secs(if ttl > i32::MAX as u32 { 0 } else { ttl.into() });
        let is_full = addresses.len() >= limits::DNS_ADDRESSES_MAX;
        match addresses.iter_mut().find(|(known, _)| *known == address) {
            Some((_, longest)) => *longest = ttl.max(*longest),
            None if is_full => {}
            None => addresses.push((address, ttl)),
        }
    };
    for (section, record) in records {
        let counts = match section {
            Section::Answer => true,
            Section::Authority => false,
            // With a service come its target's addresses (RFC 9460, section 4.2).
            Section::Additional => owners.len() > 1,
        };
        if !counts || record.class != wire::IN {
            continue;
        }
        let mut data = within(message, record);
        match record.kind {
            kind::A | kind::AAAA => {
                let address: IpAddr = match (record.kind, data.rest().len()) {
                    (kind::A, 4) => data.u32().map(|bits| IpAddr::V4(bits.into())),
                    (kind::AAAA, 16) => {
                        let octets: Option<[u8; 16]> = data.rest().try_into().ok();
                        octets.map(|octets| IpAddr::V6(octets.into()))
                    }
                    _ => None,
                }
                .ok_or(BROKEN)?;
                if is_among(&owners, &record.owner) {
                    add(address, record.ttl);
                }
            }
            kind::HTTPS | kind::SVCB if is_among(&owners, &record.owner) => {
                let service = ech::Service::read(message, record).ok_or(BROKEN)?;
                for address in service.hints() {
                    add(address, record.ttl);
                }
            }
            _ => {}
        }
    }
    if addresses.is_empty() {
        return Ok(None);
    }
    let mut names = chain.iter().map(|name| wire::folded(name).into());
    Ok(Some(Resolved {
        name: names.next().unwrap_or_default(),
        aliases: names.collect(),
        addresses,
    }))
}

/// `asked` and the aliases that lead from it, in order; nothing where they don't lead to one end. A name with two
/// aliases, or with one and addresses, would give the one's addresses to the other.
fn aliases(
    message: &[u8],
    records: &[(Section, Record<'_>)],
    asked: &[u8],
) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut chain: Vec<Vec<u8>> = vec![asked.to_ascii_lowercase()];
    while let (Some(last), ..=limits::DNS_ALIASES_MAX) = (chain.last(), chain.len()) {
        let mut next: Option<Vec<u8>> = None;
        for (_, record) in of(records, last, &[Section::Answer]) {
            if record.kind != kind::CNAME {
                continue;
            }
            let target = within(message, record).name().ok_or(BROKEN)?;
            let target = target.to_ascii_lowercase();
            if next.as_ref().is_some_and(|other| *other != target) {
                return Ok(Vec::new());
            }
            next = Some(target);
        }
        match next {
            None => return Ok(chain),
            Some(target) if is_among(&chain, &target) => return Ok(Vec::new()),
            Some(target) => chain.push(target),
        }
    }
    Ok(Vec::new())
}

/// `owner` and what its services are at, whose addresses a client takes for the owner's.
fn targets(
    message: &[u8],
    records: &[(Section, Record<'_>)],
    owner: &[u8],
) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut found: Vec<Vec<u8>> = vec![owner.to_vec()];
    let mut place = 0;
    while let Some(owner) = found.get(place).cloned() {
        for (_, record) in of(records, &owner, &[Section::Answer, Section::Additional]) {
            let target = match record.kind {
                // The owner's own are followed already.
                kind::CNAME if place > 0 => within(message, record).name().ok_or(BROKEN)?,
                kind::HTTPS | kind::SVCB => {
                    let service = ech::Service::read(message, record).ok_or(BROKEN)?;
                    match service.target {
                        [0] => continue,
                        target => Cow::Borrowed(target),
                    }
                }
                _ => continue,
            };
            if !is_among(&found, &target) && found.len() <= limits::DNS_ALIASES_MAX {
                found.push(target.to_ascii_lowercase());
            }
        }
        place += 1;
    }
    Ok(found)
}

/// The records of the Internet that `owner` has in those sections.
fn of<'a, 'm>(
    records: &'a [(Section, Record<'m>)],
    owner: &'a [u8],
    sections: &'a [Section],
) -> impl Iterator<Item = &'a (Section, Record<'m>)> {
    records.iter().filter(move |(section, record)| {
        record.class == wire::IN
            && sections.contains(section)
            && record.owner.eq_ignore_ascii_case(owner)
    })
}

fn is_among(chain: &[Vec<u8>], name: &[u8]) -> bool {
    chain.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Reads the data of a record, whose names may point to before it.
pub(super) fn within<'a>(message: &'a [u8], record: &Record<'_>) -> Reader<'a> {
    let upto = message.get(..record.data.end).unwrap_or_default();
    Reader::starting(upto, record.data.start)
}

fn serial(message: &[u8], record: &Record<'_>) -> Option<u32> {
    let mut data = within(message, record);
    data.name()?;
    data.name()?;
    data.u32()
}

/// What the server says in words about how it came by its answer, `22 no server answered`.
pub(super) fn extended_errors(message: &[u8], record: &Record<'_>) -> Vec<String> {
    const EXTENDED_ERROR: u16 = 15;
    let mut data = within(message, record);
    let mut found = Vec::new();
    let mut next = || {
        let (code, length) = (data.u16()?, data.u16()?);
        Some((code, data.take(usize::from(length))?))
    };
    while let Some((code, content)) = next() {
        if let (EXTENDED_ERROR, Some((number, text))) = (code, content.split_first_chunk()) {
            let number = u16::from_be_bytes(*number);
            let text = String::from_utf8_lossy(text);
            found.push(format!("{number} {text}").trim_end().to_owned());
        }
    }
    found
}

fn status(code: u16, notes: Vec<String>) -> ResponseStatus {
    match code {
        rcode::NOERROR | rcode::NXDOMAIN => ResponseStatus::Complete(rcode_name(code)),
        _ => ResponseStatus::Error {
            code: rcode_name(code),
            message: notes.join("; ").into(),
        },
    }
}

/// The name of a response code.
pub(super) fn rcode_name(code: u16) -> Box<str> {
    const NAMES: [&str; 12] = [
        "NOERROR",
        "FORMERR",
        "SERVFAIL",
        "NXDOMAIN",
        "NOTIMP",
        "REFUSED",
        "YXDOMAIN",
        "YXRRSET",
        "NXRRSET",
        "NOTAUTH",
        "NOTZONE",
        "DSOTYPENI",
    ];
    match (NAMES.get(usize::from(code)), code) {
        (Some(name), _) => Box::from(*name),
        (None, 16) => "BADVERS".into(),
        (None, 23) => "BADCOOKIE".into(),
        (None, code) => format!("RCODE{code}").into(),
    }
}
