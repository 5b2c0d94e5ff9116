//! What a client may say: exactly what is understood, because all else could carry data past the policy.

use super::wire::{self, Header, Reader, Record, flag, kind, opcode, rcode};
use crate::operation::dns;

/// Flags of EDNS that have a meaning: DNSSEC OK, and compact answers OK (RFC 9824).
const EDNS_FLAGS: u16 = 0xC000;

/// Longest list of algorithms: there are some twenty.
const ALGORITHMS_MAX: usize = 32;

/// What an option may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Empty,
    /// Numbers of algorithms, a byte each (RFC 6975).
    Algorithms,
    /// An address, as far as its prefix goes (RFC 7871).
    Subnet,
    /// 8 bytes of the client's, 8 to 32 of the server's (RFC 7873).
    Cookie,
    Zeros,
    Name,
    /// Numbers of keys, two bytes each (RFC 8145).
    Tags,
}

/// A message that is understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query<'a> {
    pub(super) header: Header,
    /// Name, type and class, as they were sent.
    pub(super) question: Question<'a>,
    pub(super) edns: Option<Edns<'a>>,
    /// What follows the question in a message that isn't one, by section.
    pub(super) records: Vec<(Section, Record<'a>)>,
}

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question<'a> {
    /// All of it.
    pub(super) bytes: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) kind: u16,
    pub(super) class: u16,
}

/// The sections behind the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// What is said of EDNS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Edns<'a> {
    /// Largest answer over UDP.
    pub(super) payload_bytes: u16,
    pub(super) flags: u16,
    /// Names and contents, in order.
    pub(super) options: Vec<(&'static str, &'a [u8])>,
}

/// Why a message isn't understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed {
    /// What it is answered with.
    pub(super) rcode: u16,
    /// For people.
    pub(super) why: &'static str,
}

const fn malformed(why: &'static str) -> Malformed {
    Malformed {
        rcode: rcode::FORMERR,
        why,
    }
}

impl<'a> Query<'a> {
    /// Reads a message with a header.
    pub(super) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::read(message).ok_or(malformed("it has no header"))?;
        let code = header.opcode();
        if !matches!(code, opcode::QUERY | opcode::NOTIFY | opcode::UPDATE) {
            return Err(Malformed {
                rcode: rcode::NOTIMP,
                why: "its operation code isn't understood",
            });
        }
        // A NOTIFY is sent with AA.
        let allowed = match code {
            opcode::NOTIFY => flag::AUTHORITATIVE,
            _ => 0,
        };
        let reserved = flag::AUTHORITATIVE
            | flag::TRUNCATED
            | flag::RECURSION_AVAILABLE
            | flag::RESERVED
            | flag::RCODE;
        if header.has(reserved & !allowed) {
            return Err(malformed(
                "bits of its header are set that a question doesn't have",
            ));
        }
        let mut reader = Reader::starting(message, wire::HEADER_BYTES);
        let [questions, answers, authorities, additional] = header.counts;
        if questions != 1 {
            return Err(malformed("it hasn't exactly one question"));
        }
        let question =
            Question::read(&mut reader).ok_or(malformed("its question can't be read"))?;
        let mut query = Self {
            header,
            question,
            edns: None,
            records: Vec::new(),
        };
        if code == opcode::QUERY {
            // A transfer of changes says from which version (RFC 1995).
            let versions = u16::from(question.kind == kind::IXFR);
            if answers != 0 || authorities > versions || additional > 1 {
                return Err(malformed("it has records that a question doesn't have"));
            }
        }
        for (section, count) in [
            (Section::Answer, answers),
            (Section::Authority, authorities),
            (Section::Additional, additional),
        ] {
            for _ in 0..count {
                query.record(section, &mut reader)?;
            }
        }
        if !reader.rest().is_empty() {
            return Err(malformed("bytes follow its end"));
        }
        Ok(query)
    }

    fn record(&mut self, section: Section, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        let record = reader
            .record()
            .ok_or(malformed("a record of it can't be read"))?;
        let is_question = self.header.opcode() == opcode::QUERY;
        if section == Section::Additional && record.kind == kind::OPT {
            if self.edns.is_some() {
                return Err(malformed("it has EDNS twice"));
            }
            self.edns = Some(Edns::read(reader.message, &record)?);
            return Ok(());
        }
        let is_version = section == Section::Authority
            && record.kind == kind::SOA
            && record.owner.eq_ignore_ascii_case(self.question.name);
        if is_question && !is_version {
            return Err(malformed("it has records that a question doesn't have"));
        }
        self.records.push((section, record));
        Ok(())
    }
}

impl<'a> Question<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let start = reader.at;
        let name = reader.plain_name()?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        Some(Self {
            bytes: reader.message.get(start..reader.at)?,
            name,
            kind,
            class,
        })
    }
}

impl<'a> Edns<'a> {
    fn read(message: &'a [u8], record: &Record<'a>) -> Result<Self, Malformed> {
        let [extended, version, high, low] = record.ttl.to_be_bytes();
        let flags = u16::from_be_bytes([high, low]);
        // The root's name has other ways to be written, by a pointer.
        if message.get(record.start) != Some(&0) || extended != 0 || version != 0 {
            return Err(malformed("its EDNS record can't be read"));
        }
        if flags & !EDNS_FLAGS != 0 {
            return Err(malformed("its EDNS has flags that aren't understood"));
        }
        let mut edns = Self {
            payload_bytes: record.class,
            flags,
            options: Vec::new(),
        };
        let data = message.get(record.data.clone()).unwrap_or_default();
        let mut reader = Reader::new(data);
        while !reader.rest().is_empty() {
            let (name, content) = option(&mut reader)?;
            if edns.options.iter().any(|(before, _)| *before == name) {
                return Err(malformed("an EDNS option is there twice"));
            }
            edns.options.push((name, content));
        }
        Ok(edns)
    }
}

fn option<'a>(reader: &mut Reader<'a>) -> Result<(&'static str, &'a [u8]), Malformed> {
    const CUT: Malformed = malformed("its EDNS options can't be read");
    let code = reader.u16().ok_or(CUT)?;
    let length = reader.u16().ok_or(CUT)?;
    let content = reader.take(usize::from(length)).ok_or(CUT)?;
    let known = dns::OPTIONS.iter().find(|(known, _)| *known == code);
    let (Some((_, name)), Some(payload)) = (known, Payload::of(code)) else {
        return Err(malformed("it has an EDNS option that isn't understood"));
    };
    if !payload.takes(content) {
        return Err(malformed(
            "an EDNS option of it holds what doesn't belong there",
        ));
    }
    Ok((name, content))
}

impl Payload {
    /// What the option of that number may hold. A server takes no others (RFC 6891), so what has them carries
    /// something for somebody who isn't that server.
    const fn of(code: u16) -> Option<Self> {
        Some(match code {
            // NSID, EXPIRE, keep-alive, zone version
            3 | 9 | 11 | 19 => Self::Empty,
            5..=7 => Self::Algorithms,
            8 => Self::Subnet,
            10 => Self::Cookie,
            // Padding, extended error
            12 | 15 => Self::Zeros,
            13 => Self::Name,
            14 => Self::Tags,
            _ => return None,
        })
    }

    fn takes(self, content: &[u8]) -> bool {
        match self {
            Self::Empty => content.is_empty(),
            Self::Algorithms => content.len() <= ALGORITHMS_MAX,
            Self::Cookie => matches!(content.len(), 8 | 16..=40),
            Self::Zeros => content.iter().all(|byte| *byte == 0),
            Self::Name => {
                let mut reader = Reader::new(content);
                reader.plain_name().is_some() && reader.rest().is_empty()
            }
            Self::Tags => content.len().is_multiple_of(2) && content.len() <= 2 * ALGORITHMS_MAX,
            Self::Subnet => is_subnet(content),
        }
    }
}

/// Family, length of the prefix, 0, and as many bytes of address as the prefix takes, zero behind it.
fn is_subnet(content: &[u8]) -> bool {
    let Some((&[high, family, prefix, scope], address)) = content.split_first_chunk::<4>() else {
        return false;
    };
    let bits = usize::from(prefix);
    let bits_max = match family {
        0 => 0,
        1 => 32,
        2 => 128,
        _ => return false,
    };
    if high != 0 || scope != 0 || bits > bits_max || address.len() != bits.div_ceil(8) {
        return false;
    }
    let spare = address.len() * 8 - bits;
    let last = address.last().copied().unwrap_or_default();
    last.trailing_zeros() as usize >= spare
}

/// What a message says that can't be understood, as far as it can be told: for people.
pub(super) fn glimpse(message: &[u8]) -> Option<String> {
    let mut reader = Reader::starting(message, wire::HEADER_BYTES);
    let question = Question::read(&mut reader)?;
    Some(super::describe::readable(&question))
}
