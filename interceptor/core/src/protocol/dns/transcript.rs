//! Answers as people read them: a record a line, as zone files write it (RFC 1035, section 5; RFC 3597).

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    answer,
    wire::{self, Header, Reader, Record, flag, kind},
};
use crate::operation::dns;

/// An answer that is on record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Its records, `name TTL TYPE data` each.
    pub answers: Vec<String>,
    /// What the server said about how it came by it (RFC 8914).
    pub notes: Vec<String>,
    /// There is more than would fit.
    pub is_truncated: bool,
}

impl Transcript {
    /// Reads a whole message; of one that can't be read there is what comes before that.
    #[must_use]
    pub fn read(message: &[u8]) -> Self {
        let mut found = Self::default();
        let Some(header) = Header::read(message) else {
            return found;
        };
        found.is_truncated = header.has(flag::TRUNCATED);
        let Some(mut records) = answer::records_behind_question(message, header) else {
            return found;
        };
        let [_, answers, authorities, additional] = header.counts.map(usize::from);
        for place in 0..answers + authorities + additional {
            let Some(record) = records.record() else {
                break;
            };
            if record.kind == kind::OPT {
                found.notes = answer::extended_errors(message, &record);
            } else if place < answers {
                found.answers.push(line(message, &record));
            }
        }
        found
    }
}

/// `www.example.com. 300 A 192.0.2.1`
pub(super) fn line(message: &[u8], record: &Record<'_>) -> String {
    let mut out = wire::text(&record.owner);
    _ = write!(out, " {} ", record.ttl);
    if record.class != wire::IN {
        out.push_str(&super::describe::class_name(record.class));
        out.push(' ');
    }
    out.push_str(&dns::type_name(record.kind));
    out.push(' ');
    let place = out.len();
    if data(message, record, &mut out).is_none() {
        // What isn't known, or isn't what its type says.
        out.truncate(place);
        let bytes = message.get(record.data.clone()).unwrap_or_default();
        _ = write!(out, "\\# {}", bytes.len());
        if !bytes.is_empty() {
            _ = write!(out, " {}", hex::encode(bytes));
        }
    }
    out
}

fn data(message: &[u8], record: &Record<'_>, out: &mut String) -> Option<()> {
    // Names in it may point to before it, and nothing in it reaches behind its end.
    let mut reader = Reader::starting(message.get(..record.data.end)?, record.data.start);
    match record.kind {
        kind::A => {
            let octets: [u8; 4] = reader.rest().try_into().ok()?;
            _ = reader.take(4)?;
            _ = write!(out, "{}", Ipv4Addr::from(octets));
        }
        kind::AAAA => {
            let octets: [u8; 16] = reader.rest().try_into().ok()?;
            _ = reader.take(16)?;
            _ = write!(out, "{}", Ipv6Addr::from(octets));
        }
        kind::NS | kind::CNAME | kind::PTR | kind::DNAME => {
            out.push_str(&wire::text(&reader.name()?));
        }
        kind::MX => _ = write!(out, "{} {}", reader.u16()?, wire::text(&reader.name()?)),
        kind::SRV => {
            let [priority, weight, port] = [reader.u16()?, reader.u16()?, reader.u16()?];
            let target = wire::text(&reader.name()?);
            _ = write!(out, "{priority} {weight} {port} {target}");
        }
        kind::SOA => {
            let [server, mailbox] = [reader.name()?, reader.name()?].map(|name| wire::text(&name));
            _ = write!(out, "{server} {mailbox}");
            for _ in 0..5 {
                _ = write!(out, " {}", reader.u32()?);
            }
        }
        kind::TXT | kind::SPF => {
            let mut first = true;
            while !reader.rest().is_empty() {
                if !std::mem::take(&mut first) {
                    out.push(' ');
                }
                let length = usize::from(reader.u8()?);
                quoted(reader.take(length)?, out);
            }
        }
        kind::CAA => {
            let (flags, length) = (reader.u8()?, usize::from(reader.u8()?));
            let tag = std::str::from_utf8(reader.take(length)?).ok()?;
            if !tag.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return None;
            }
            _ = write!(out, "{flags} {tag} ");
            quoted(reader.take(reader.rest().len())?, out);
        }
        kind::SVCB | kind::HTTPS => service(&mut reader, out)?,
        _ => return None,
    }
    reader.rest().is_empty().then_some(())
}

/// Priority, target and parameters (RFC 9460, section 2.1).
fn service(reader: &mut Reader<'_>, out: &mut String) -> Option<()> {
    const KEYS: [&str; 9] = [
        "mandatory",
        "alpn",
        "no-default-alpn",
        "port",
        "ipv4hint",
        "ech",
        "ipv6hint",
        "dohpath",
        "ohttp",
    ];
    let priority = reader.u16()?;
    _ = write!(out, "{priority} {}", wire::text(reader.plain_name()?));
    while !reader.rest().is_empty() {
        let (key, length) = (reader.u16()?, usize::from(reader.u16()?));
        let value = reader.take(length)?;
        match KEYS.get(usize::from(key)) {
            Some(name) => _ = write!(out, " {name}"),
            None => _ = write!(out, " key{key}"),
        }
        let mut value = Reader::new(value);
        let mut items: Vec<String> = Vec::new();
        let mut bytes = String::new();
        while !value.rest().is_empty() {
            match key {
                0 => {
                    let key = value.u16()?;
                    let named = KEYS.get(usize::from(key)).copied();
                    items.push(named.map_or_else(|| format!("key{key}"), str::to_owned));
                }
                1 => {
                    let length = usize::from(value.u8()?);
                    items.push(value.take(length)?.escape_ascii().to_string());
                }
                3 => items.push(value.u16()?.to_string()),
                4 => items.push(Ipv4Addr::from(value.u32()?).to_string()),
                6 => {
                    let octets: [u8; 16] = value.take(16)?.try_into().ok()?;
                    items.push(Ipv6Addr::from(octets).to_string());
                }
                _ => quoted(value.take(value.rest().len())?, &mut bytes),
            }
        }
        match (items.is_empty(), bytes.is_empty()) {
            (false, _) => _ = write!(out, "={}", items.join(",")),
            (true, false) => _ = write!(out, "={bytes}"),
            (true, true) => {}
        }
    }
    Some(())
}

/// A character string in quotes, with what isn't printable by number.
fn quoted(bytes: &[u8], out: &mut String) {
    out.push('"');
    for byte in bytes {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b' '..=b'~' => out.push(char::from(*byte)),
            byte => _ = write!(out, "\\{byte:03}"),
        }
    }
    out.push('"');
}
