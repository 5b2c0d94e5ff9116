//! pcapng, for Wireshark: what each session said, in the clear, as packets of a TCP stream (or datagrams) of its own.
//!
//! Packets are made up: addresses, ports and times are those on record, everything below the streams' content isn't. The
//! content is what is on record, so after masking; what was never recorded (logins, TLS) isn't there. PostgreSQL's
//! client messages are written anew from the operations, its server's are as they passed; HTTP/2 is written as its frames,
//! each message's fields in the clear; bodies in HTTP/1 are framed by what is on record of them.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    Form,
    line::{bytes, get, list, number, text, time},
    message::{field, parts},
};

/// Writes exported lines as packets.
#[derive(Debug, Default)]
pub struct Pcapng {
    is_begun: bool,
    packets: u64,
    flows: BTreeMap<String, Flow>,
}

/// Bytes of content in a packet at most: below what an IPv4 packet can hold, and like what loopback carries.
const SEGMENT_BYTES_MAX: usize = 32 << 10;

/// Bytes of content in a datagram at most.
const DATAGRAM_BYTES_MAX: usize = 65_000;

/// Addresses for what has none: UNIX sockets, and sessions whose start isn't part of the export (RFC 5737).
const NOWHERE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Agent,
    Server,
}

/// The packets of one session.
#[derive(Debug)]
struct Flow {
    /// The agent's address and the server's.
    ends: [SocketAddr; 2],
    is_datagrams: bool,
    /// The first sequence number of each, and the next one.
    first: [u32; 2],
    next: [u32; 2],
    /// The identification of the next packet of each: Wireshark takes equal ones for repeats.
    identification: u16,
    speech: Speech,
    /// Whether a message of each, over a WebSocket, isn't over yet.
    is_within: [bool; 2],
    /// What is said of the first packet.
    comment: String,
    /// Operations by number: what has to be known of them when they are answered.
    asked: BTreeMap<u64, Asked>,
}

/// What a session speaks, as far as that has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Unknown,
    Postgres,
    Http2,
}

/// An operation that waits for its answer, or for the rest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// PostgreSQL; whether by Parse, Bind and Execute.
    Statement {
        is_extended: bool,
    },
    /// HTTP; whether the answer has begun, in chunks.
    Request {
        is_head: bool,
        is_begun: bool,
    },
    /// HTTP that became WebSocket. The head that says so is recorded behind the messages, and written before them.
    Upgraded,
    /// A DNS question.
    Question {
        id: u16,
    },
    Other,
}

impl Form for Pcapng {
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64> {
        let before = self.packets;
        let mut packets = Packets {
            out,
            at: time(&line).0,
            is_begun: &mut self.is_begun,
            count: &mut self.packets,
        };
        let id = text(&line, "session").to_owned();
        if id.is_empty() {
            return Ok(0);
        }
        if text(&line, "kind") == "session_start" {
            let mut flow = Flow::new(&line);
            flow.open(&mut packets)?;
            self.flows.insert(id, flow);
        } else if text(&line, "kind") == "session_end" {
            if let Some(mut flow) = self.flows.remove(&id) {
                flow.close(&mut packets)?;
            }
        } else {
            // Where its start isn't part of the export it begins here, from nowhere.
            let flow = self.flows.entry(id).or_insert_with(|| Flow::new(&line));
            flow.take(&line, &mut packets)?;
        }
        Ok(self.packets - before)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        if !std::mem::replace(&mut self.is_begun, true) {
            out.write_all(&heading())?;
        }
        Ok(0)
    }
}

impl Flow {
    fn new(start: &Value) -> Self {
        let address = |name: &str, place: usize| {
            let [agent, server] = NOWHERE;
            let (ip, port) = if place == 0 {
                (agent, 49_152)
            } else {
                (server, 80)
            };
            let nowhere = SocketAddr::new(IpAddr::V4(ip), port);
            text(start, name).parse().unwrap_or(nowhere)
        };
        let mut ends = [address("client", 0), address("destination", 1)];
        // A packet has addresses of one kind.
        let [agent, server] = &mut ends;
        if agent.is_ipv4() != server.is_ipv4() {
            for end in [agent, server] {
                let mapped = match end.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                end.set_ip(IpAddr::V6(mapped));
            }
        }
        let destination = text(start, "destination");
        let mut comment = format!(
            "session {} of agent {}",
            text(start, "session"),
            text(start, "agent")
        );
        if destination.starts_with("unix:") {
            comment = format!("{comment}, to {destination}");
        }
        Self {
            ends,
            is_datagrams: text(start, "transport") == "udp",
            next: first(text(start, "session")).map(|first| first.wrapping_add(1)),
            first: first(text(start, "session")),
            identification: 0,
            speech: Speech::Unknown,
            is_within: [false; 2],
            comment: crate::inert::inert(&comment).into_owned(),
            asked: BTreeMap::new(),
        }
    }

    fn open(&mut self, packets: &mut Packets<'_>) -> io::Result<()> {
        if self.is_datagrams {
            return Ok(());
        }
        self.next = self.first;
        self.segment(Side::Agent, flag::SYN, &[], packets)?;
        self.segment(Side::Server, flag::SYN | flag::ACK, &[], packets)?;
        self.segment(Side::Agent, flag::ACK, &[], packets)
    }

    fn close(&mut self, packets: &mut Packets<'_>) -> io::Result<()> {
        if self.is_datagrams {
            return Ok(());
        }
        self.segment(Side::Agent, flag::FIN | flag::ACK, &[], packets)?;
        self.segment(Side::Server, flag::FIN | flag::ACK, &[], packets)?;
        self.segment(Side::Agent, flag::ACK, &[], packets)
    }

    fn take(&mut self, line: &Value, packets: &mut Packets<'_>) -> io::Result<()> {
        let operation = number(line, "operation");
        match text(line, "kind") {
            "event" if text(line, "name") == "postgres_startup" => {
                self.speech = Speech::Postgres;
                let detail = get(line, "detail");
                let (user, database) = (text(detail, "user"), text(detail, "database"));
                let names = [("user", user), ("database", database)];
                self.say(Side::Agent, &postgres::startup(&names), packets)?;
                // How it was let in is never on record: as if nothing had been asked for.
                self.say(Side::Server, &postgres::welcome(), packets)
            }
            "operation" => self.ask(operation, line, packets),
            "content" => {
                let side = match text(line, "of") {
                    "client" => Side::Agent,
                    _ => Side::Server,
                };
                let body = bytes(get(line, "body"));
                let said = match text(line, "message") {
                    "" => body,
                    kind => {
                        self.upgrade(operation, packets)?;
                        let ends = get(line, "ends") == true;
                        let [agent, server] = &mut self.is_within;
                        let is_within = match side {
                            Side::Agent => agent,
                            Side::Server => server,
                        };
                        // A message goes on under no name.
                        let kind = if *is_within { "" } else { kind };
                        *is_within = !ends;
                        websocket(kind, &body, ends, side == Side::Agent)
                    }
                };
                match self.speech {
                    Speech::Http2 => self.say(side, &http2::data(operation, &said, false), packets),
                    _ => self.say(side, &said, packets),
                }
            }
            "response" => self.answer(operation, line, packets),
            _ => Ok(()),
        }
    }

    fn ask(&mut self, operation: u64, line: &Value, packets: &mut Packets<'_>) -> io::Result<()> {
        let content = bytes(get(line, "content"));
        match text(line, "protocol") {
            "postgres" => {
                if get(get(line, "options"), "copy data, part").is_string() {
                    return self.say(Side::Agent, &postgres::message(b'd', &content), packets);
                }
                if content.starts_with(b"StartupMessage ") || content == b"CancelRequest" {
                    return Ok(());
                }
                self.speech = Speech::Postgres;
                let values: Vec<&Value> = list(line, "parameters").collect();
                let is_extended = !values.is_empty();
                let said = match is_extended {
                    true => postgres::extended(&content, &values),
                    false => postgres::query(&content),
                };
                self.asked
                    .insert(operation, Asked::Statement { is_extended });
                self.say(Side::Agent, &said, packets)
            }
            "http" => {
                let (first, fields, body) = parts(&content);
                let is_head = first.starts_with("HEAD ");
                let asked = Asked::Request {
                    is_head,
                    is_begun: false,
                };
                self.asked.insert(operation, asked);
                if !first.ends_with(" HTTP/2") {
                    return self.say(Side::Agent, &content, packets);
                }
                if self.speech != Speech::Http2 {
                    self.speech = Speech::Http2;
                    self.say(Side::Agent, &http2::preface(), packets)?;
                    self.say(Side::Server, &http2::settings(), packets)?;
                }
                let scheme = text(get(line, "attributes"), "http.scheme");
                let mut said = http2::request(operation, &first, scheme, &fields);
                if !body.is_empty() {
                    said.extend(http2::data(operation, body, false));
                }
                self.say(Side::Agent, &said, packets)
            }
            "dns" => {
                let attributes = get(line, "attributes");
                let id = u16::try_from(operation % 65_536).unwrap_or_default();
                self.asked.insert(operation, Asked::Question { id });
                let name = text(attributes, "dns.name");
                let question = dns::question(id, name, text(attributes, "dns.type"));
                // What is asked is told by its answer as well, which is on record as it came.
                match question {
                    Some(question) => self.message(Side::Agent, &question, packets),
                    None => Ok(()),
                }
            }
            _ => {
                self.asked.insert(operation, Asked::Other);
                self.say(Side::Agent, &content, packets)
            }
        }
    }

    /// Has the server agree to messages, once.
    fn upgrade(&mut self, operation: u64, packets: &mut Packets<'_>) -> io::Result<()> {
        let is_request = matches!(self.asked.get(&operation), Some(Asked::Request { .. }));
        if !is_request || self.speech == Speech::Http2 {
            return Ok(());
        }
        self.asked.insert(operation, Asked::Upgraded);
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
        self.say(Side::Server, head.as_bytes(), packets)
    }

    fn answer(
        &mut self,
        operation: u64,
        line: &Value,
        packets: &mut Packets<'_>,
    ) -> io::Result<()> {
        let wire = get(line, "wire");
        let data = STANDARD.decode(text(wire, "data")).unwrap_or_default();
        let ends = text(line, "status") != "continues";
        let asked = match ends {
            true => self.asked.remove(&operation),
            false => self.asked.get(&operation).copied(),
        };
        let said = match asked {
            // Such as a notification, which answers nothing.
            None => data,
            Some(Asked::Upgraded) => return Ok(()),
            Some(Asked::Statement { is_extended }) => {
                if !ends {
                    let is_extended = false;
                    self.asked
                        .insert(operation, Asked::Statement { is_extended });
                }
                let shape = STANDARD.decode(text(wire, "shape")).unwrap_or_default();
                postgres::answer(line, is_extended, &shape, &data, ends)
            }
            Some(Asked::Question { id }) => {
                let message = dns::renumbered(data, id);
                return match message.is_empty() {
                    true => Ok(()),
                    false => self.message(Side::Server, &message, packets),
                };
            }
            Some(Asked::Request { is_head, is_begun }) => {
                if !ends {
                    let asked = Asked::Request {
                        is_head,
                        is_begun: true,
                    };
                    self.asked.insert(operation, asked);
                }
                let mut head = bytes(get(line, "head"));
                let body = bytes(get(line, "body"));
                if head.is_empty() && text(line, "status") == "refused" {
                    head = refusal(&body);
                }
                match self.speech {
                    Speech::Http2 => {
                        let mut said = match head.is_empty() {
                            true => Vec::new(),
                            false => http2::response(operation, &head),
                        };
                        if !body.is_empty() || ends {
                            said.extend(http2::data(operation, &body, ends));
                        }
                        said
                    }
                    _ => http1(&head, &body, is_head, is_begun, ends),
                }
            }
            Some(Asked::Other) => match get(line, "body") {
                Value::Null => data,
                body => bytes(body),
            },
        };
        self.say(Side::Server, &said, packets)
    }

    /// A message of DNS, framed as its transport wants it.
    fn message(&mut self, side: Side, message: &[u8], packets: &mut Packets<'_>) -> io::Result<()> {
        if self.is_datagrams {
            return self.datagram(side, message, packets);
        }
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        self.say(side, &[&length.to_be_bytes(), message].concat(), packets)
    }

    /// Bytes of a stream, in as many packets as they take.
    fn say(&mut self, side: Side, said: &[u8], packets: &mut Packets<'_>) -> io::Result<()> {
        if self.is_datagrams {
            return match said.is_empty() {
                true => Ok(()),
                false => self.datagram(side, said, packets),
            };
        }
        for segment in said.chunks(SEGMENT_BYTES_MAX) {
            self.segment(side, flag::PUSH | flag::ACK, segment, packets)?;
        }
        Ok(())
    }

    /// One packet of a stream. What it acknowledges is all that the other side has sent.
    fn segment(
        &mut self,
        side: Side,
        flags: u8,
        content: &[u8],
        packets: &mut Packets<'_>,
    ) -> io::Result<()> {
        let [agent, server] = self.next;
        let (own, others) = match side {
            Side::Agent => (agent, server),
            Side::Server => (server, agent),
        };
        let acknowledged = if flags & flag::ACK == 0 { 0 } else { others };
        let (from, to) = self.between(side);
        let mut header = Vec::with_capacity(20 + content.len());
        header.extend(from.port().to_be_bytes());
        header.extend(to.port().to_be_bytes());
        header.extend(own.to_be_bytes());
        header.extend(acknowledged.to_be_bytes());
        // Five words of header; a window that never closes; the checksum's place; nothing urgent.
        header.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        header.extend(content);
        let occupies = u32::from(flags & (flag::SYN | flag::FIN) != 0);
        let length = u32::try_from(content.len()).unwrap_or_default();
        let [agent, server] = &mut self.next;
        let next = match side {
            Side::Agent => agent,
            Side::Server => server,
        };
        *next = own.wrapping_add(length).wrapping_add(occupies);
        self.packet(side, TCP, header, 16, packets)
    }

    fn datagram(
        &mut self,
        side: Side,
        content: &[u8],
        packets: &mut Packets<'_>,
    ) -> io::Result<()> {
        let content = content.get(..DATAGRAM_BYTES_MAX).unwrap_or(content);
        let (from, to) = self.between(side);
        let length = u16::try_from(content.len() + 8).unwrap_or(u16::MAX);
        let mut header = Vec::with_capacity(8 + content.len());
        header.extend(from.port().to_be_bytes());
        header.extend(to.port().to_be_bytes());
        header.extend(length.to_be_bytes());
        header.extend([0, 0]);
        header.extend(content);
        self.packet(side, UDP, header, 6, packets)
    }

    const fn between(&self, side: Side) -> (SocketAddr, SocketAddr) {
        let [agent, server] = self.ends;
        match side {
            Side::Agent => (agent, server),
            Side::Server => (server, agent),
        }
    }

    /// An Ethernet frame around `payload`, whose checksum's place is at `checksum_at`.
    fn packet(
        &mut self,
        side: Side,
        protocol: u8,
        mut payload: Vec<u8>,
        checksum_at: usize,
        packets: &mut Packets<'_>,
    ) -> io::Result<()> {
        let (from, to) = self.between(side);
        self.identification = self.identification.wrapping_add(1);
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        let addresses = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            _ => return Ok(()),
        };
        let pseudo = [&[0, protocol][..], &length.to_be_bytes()].concat();
        let sum = match checksum(&[&addresses, &pseudo, &payload]) {
            // None, in UDP.
            0 => 0xffff,
            sum => sum,
        };
        if let Some(place) = payload.get_mut(checksum_at..checksum_at + 2) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        // Locally administered addresses, by side.
        let (agent, server) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut frame = match side {
            Side::Agent => [server, agent].concat(),
            Side::Server => [agent, server].concat(),
        };
        if from.is_ipv4() {
            let total = length.saturating_add(20).to_be_bytes();
            let identification = self.identification.to_be_bytes();
            // Don't fragment; 64 hops.
            let fixed = [
                &[0x45, 0][..],
                &total,
                &identification,
                &[0x40, 0, 64, protocol],
            ]
            .concat();
            let sum = checksum(&[&fixed, &addresses]).to_be_bytes();
            frame.extend([8, 0]);
            frame.extend(fixed);
            frame.extend(sum);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
        }
        frame.extend(addresses);
        frame.extend(payload);
        packets.write(&frame, &std::mem::take(&mut self.comment))
    }
}

/// Where the sequence numbers of a session begin, on both sides. Ports come again: where their streams began alike,
/// the second would pass for the first, sent again.
fn first(session: &str) -> [u32; 2] {
    ["agent", "server"].map(|side| crc32fast::hash([session, side].concat().as_bytes()))
}

const TCP: u8 = 6;
const UDP: u8 = 17;

mod flag {
    pub(super) const FIN: u8 = 1;
    pub(super) const SYN: u8 = 1 << 1;
    pub(super) const PUSH: u8 = 1 << 3;
    pub(super) const ACK: u8 = 1 << 4;
}

/// RFC 1071. All parts but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            let word = match pair {
                [high, low] => u16::from_be_bytes([*high, *low]),
                [high] => u16::from_be_bytes([*high, 0]),
                _ => 0,
            };
            sum += u64::from(word);
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Blocks of a file.
struct Packets<'a> {
    out: &'a mut dyn Write,
    at: u64,
    is_begun: &'a mut bool,
    count: &'a mut u64,
}

impl Packets<'_> {
    fn write(&mut self, frame: &[u8], comment: &str) -> io::Result<()> {
        if !std::mem::replace(self.is_begun, true) {
            self.out.write_all(&heading())?;
        }
        *self.count += 1;
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let high = u32::try_from(self.at >> 32).unwrap_or_default();
        let low = u32::try_from(self.at & 0xffff_ffff).unwrap_or_default();
        let mut body = Vec::with_capacity(frame.len() + 64);
        for word in [0, high, low, length, length] {
            body.extend(word.to_le_bytes());
        }
        body.extend(frame);
        pad(&mut body);
        if !comment.is_empty() {
            option(&mut body, 1, comment.as_bytes());
            option(&mut body, 0, &[]);
        }
        self.out.write_all(&block(6, &body))
    }
}

/// The section's header and its one interface.
fn heading() -> Vec<u8> {
    let mut section = Vec::new();
    section.extend(0x1a2b_3c4d_u32.to_le_bytes());
    // Version 1.0, of a length that isn't told.
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    let program = format!("interceptor {}", env!("CARGO_PKG_VERSION"));
    option(
        &mut section,
        1,
        b"Packets are made up around what is on record: streams in the clear, after masking.",
    );
    option(&mut section, 4, program.as_bytes());
    option(&mut section, 0, &[]);
    // Ethernet, packets of any length.
    let mut interface = vec![1, 0, 0, 0, 0, 0, 0, 0];
    option(&mut interface, 2, b"interceptor");
    // Times in nanoseconds.
    option(&mut interface, 9, &[9]);
    option(&mut interface, 0, &[]);
    [block(0x0a0d_0d0a, &section), block(1, &interface)].concat()
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 12)
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [&kind.to_le_bytes()[..], &length, body, &length].concat()
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
    out.extend(value);
    pad(out);
}

/// Up to a multiple of four.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A response's part in HTTP/1. A body that is on record in one part has its length before it, any other comes in
/// chunks: what the fields said of that was of what was sent, which may be longer, or have been changed by masks.
fn http1(head: &[u8], body: &[u8], is_head: bool, is_begun: bool, ends: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let in_chunks = is_begun || !ends;
    if !head.is_empty() {
        let (first, fields, _) = parts(head);
        let status = first.split(' ').nth(1).unwrap_or_default();
        let has_none = is_head || status.starts_with('1') || matches!(status, "204" | "304");
        let version = first.replacen("HTTP/2", "HTTP/1.1", 1);
        out.extend(version.as_bytes());
        out.extend(b"\r\n");
        for (name, value) in &fields {
            let frames = name.eq_ignore_ascii_case("content-length")
                || name.eq_ignore_ascii_case("transfer-encoding");
            if has_none || !frames {
                out.extend(format!("{name}: {value}\r\n").as_bytes());
            }
        }
        if has_none {
            out.extend(b"\r\n");
            return out;
        }
        let framing = match in_chunks {
            true => "transfer-encoding: chunked".to_owned(),
            false => format!("content-length: {}", body.len()),
        };
        out.extend(format!("{framing}\r\n\r\n").as_bytes());
    } else if is_head {
        return out;
    }
    if !in_chunks {
        out.extend(body);
        return out;
    }
    if !body.is_empty() {
        out.extend(format!("{:x}\r\n", body.len()).as_bytes());
        out.extend(body);
        out.extend(b"\r\n");
    }
    if ends {
        out.extend(b"0\r\n\r\n");
    }
    out
}

/// The head of an answer of ours, which is recorded by its body alone: that says its status.
fn refusal(body: &[u8]) -> Vec<u8> {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let status = get(&problem, "status").as_u64().unwrap_or(403);
    format!("HTTP/1.1 {status} Refused\r\ncontent-type: application/problem+json\r\n\r\n")
        .into_bytes()
}

/// A WebSocket's frame (RFC 6455). The agent's are masked, with zeros.
fn websocket(kind: &str, body: &[u8], ends: bool, is_masked: bool) -> Vec<u8> {
    let opcode = match kind {
        "" => 0,
        "text" => 1,
        "close" => 8,
        _ => 2,
    };
    let masked = if is_masked { 0x80 } else { 0 };
    let mut out = vec![if ends { 0x80 | opcode } else { opcode }];
    match (u8::try_from(body.len()), u16::try_from(body.len())) {
        (Ok(length @ 0..=125), _) => out.push(masked | length),
        (_, Ok(length)) => {
            out.push(masked | 126);
            out.extend(length.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend((body.len() as u64).to_be_bytes());
        }
    }
    if is_masked {
        out.extend([0; 4]);
    }
    out.extend(body);
    out
}

/// PostgreSQL's messages.
mod postgres {
    use super::{Value, bytes, get, text};

    pub(super) fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len() + 4).unwrap_or(u32::MAX);
        [&[tag][..], &length.to_be_bytes(), payload].concat()
    }

    pub(super) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut payload = 196_608_u32.to_be_bytes().to_vec();
        for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
            payload.extend([name.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
        }
        payload.push(0);
        let length = u32::try_from(payload.len() + 4).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], &payload].concat()
    }

    /// AuthenticationOk and ReadyForQuery.
    pub(super) fn welcome() -> Vec<u8> {
        [message(b'R', &[0; 4]), ready()].concat()
    }

    fn ready() -> Vec<u8> {
        message(b'Z', b"I")
    }

    pub(super) fn query(statement: &[u8]) -> Vec<u8> {
        message(b'Q', &[statement, &[0]].concat())
    }

    /// Parse, Bind, Describe, Execute and Sync, with values in their text form.
    pub(super) fn extended(statement: &[u8], values: &[&Value]) -> Vec<u8> {
        let count = u16::try_from(values.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes();
        let mut bind = vec![0, 0];
        bind.extend(count);
        for value in values {
            // 1: binary.
            let is_binary = get(value, "hex").is_string();
            bind.extend(u16::from(is_binary).to_be_bytes());
        }
        bind.extend(count);
        for value in values {
            if value.is_null() {
                bind.extend((-1_i32).to_be_bytes());
                continue;
            }
            let value = bytes(value);
            bind.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
            bind.extend(value);
        }
        bind.extend([0, 0]);
        [
            message(b'P', &[&[0], statement, &[0, 0, 0]].concat()),
            message(b'B', &bind),
            message(b'D', b"P\0"),
            message(b'E', &[0; 5]),
            message(b'S', &[]),
        ]
        .concat()
    }

    /// What came back, with what stands around it where that isn't part of the answer's record.
    pub(super) fn answer(
        line: &Value,
        is_extended: bool,
        shape: &[u8],
        data: &[u8],
        ends: bool,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let tags = tags(data);
        if is_extended && matches!(text(line, "status"), "complete" | "continues") {
            // ParseComplete, BindComplete, and NoData where no rows are to come.
            out.extend(message(b'1', &[]));
            out.extend(message(b'2', &[]));
            if shape.is_empty() && !tags.contains(&b'T') {
                out.extend(message(b'n', &[]));
            }
        }
        out.extend(shape);
        out.extend(data);
        if !ends {
            return out;
        }
        let ended = tags.iter().any(|tag| b"CEIs".contains(tag));
        if !ended {
            match text(line, "status") {
                "complete" => {
                    let tag = text(line, "tag");
                    out.extend(message(b'C', &[tag.as_bytes(), &[0]].concat()));
                }
                "skipped" => {}
                status => {
                    let code = match text(line, "code") {
                        "" => "42501",
                        code => code,
                    };
                    let said = match text(line, "message") {
                        "" => status,
                        said => said,
                    };
                    let fields = format!("SERROR\0C{code}\0M{said}\0\0");
                    out.extend(message(b'E', fields.as_bytes()));
                }
            }
        }
        if tags.last() != Some(&b'Z') {
            out.extend(ready());
        }
        out
    }

    /// The type bytes of whole messages.
    fn tags(mut data: &[u8]) -> Vec<u8> {
        let mut tags = Vec::new();
        while let Some((&[tag, a, b, c, d], _)) = data.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
            tags.push(tag);
            data = data.get(length.max(5)..).unwrap_or_default();
        }
        tags
    }
}

/// HTTP/2's frames (RFC 9113), with fields that are neither indexed nor compressed (RFC 7541).
mod http2 {
    use super::{field, parts};

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    /// Bytes of a frame's payload at most, as long as nobody has agreed to more.
    const PAYLOAD_BYTES_MAX: usize = 16_384;

    pub(super) fn preface() -> Vec<u8> {
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings()].concat()
    }

    pub(super) fn settings() -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[])
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(payload.len())
            .unwrap_or_default()
            .to_be_bytes();
        [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
    }

    /// Streams by the numbers of operations: the agent's are odd.
    fn stream(operation: u64) -> u32 {
        u32::try_from(operation.wrapping_mul(2).wrapping_sub(1) & 0x7fff_ffff).unwrap_or(1)
    }

    pub(super) fn request(
        operation: u64,
        first: &str,
        scheme: &str,
        fields: &[(String, String)],
    ) -> Vec<u8> {
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or("GET"), words.next().unwrap_or("/"));
        let authority = field(fields, ":authority").unwrap_or_default();
        let mut block = Vec::new();
        literal(&mut block, ":method", method);
        literal(&mut block, ":scheme", scheme);
        literal(&mut block, ":authority", authority);
        literal(&mut block, ":path", path);
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
            literal(&mut block, &name.to_lowercase(), value);
        }
        headers(operation, &block)
    }

    pub(super) fn response(operation: u64, head: &[u8]) -> Vec<u8> {
        let (first, fields, _) = parts(head);
        let mut block = Vec::new();
        literal(
            &mut block,
            ":status",
            first.split(' ').nth(1).unwrap_or("0"),
        );
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
            literal(&mut block, &name.to_lowercase(), value);
        }
        headers(operation, &block)
    }

    /// HEADERS, and CONTINUATIONs where it takes any.
    fn headers(operation: u64, block: &[u8]) -> Vec<u8> {
        let count = block.len().div_ceil(PAYLOAD_BYTES_MAX).max(1);
        let mut out = Vec::new();
        for (index, part) in block.chunks(PAYLOAD_BYTES_MAX).enumerate() {
            // 9: CONTINUATION.
            let kind = if index == 0 { HEADERS } else { 9 };
            let flags = if index + 1 == count { END_HEADERS } else { 0 };
            out.extend(frame(kind, flags, stream(operation), part));
        }
        out
    }

    pub(super) fn data(operation: u64, body: &[u8], ends: bool) -> Vec<u8> {
        let stream = stream(operation);
        let mut out: Vec<u8> = body
            .chunks(PAYLOAD_BYTES_MAX)
            .flat_map(|part| frame(DATA, 0, stream, part))
            .collect();
        if ends {
            out.extend(frame(DATA, END_STREAM, stream, &[]));
        }
        out
    }

    /// A literal field without indexing, by a new name.
    fn literal(out: &mut Vec<u8>, name: &str, value: &str) {
        out.push(0);
        for text in [name, value] {
            integer(out, text.len());
            out.extend(text.as_bytes());
        }
    }

    /// An integer with a prefix of seven bits, whose eighth is 0.
    fn integer(out: &mut Vec<u8>, value: usize) {
        let Some(mut rest) = value.checked_sub(127) else {
            out.push(u8::try_from(value).unwrap_or_default());
            return;
        };
        out.push(127);
        while rest >= 128 {
            out.push(0x80 | u8::try_from(rest & 0x7f).unwrap_or_default());
            rest >>= 7;
        }
        out.push(u8::try_from(rest).unwrap_or_default());
    }
}

/// DNS's messages (RFC 1035).
mod dns {
    /// A question as resolvers ask it; none for a type that has no name here.
    pub(super) fn question(id: u16, name: &str, kind: &str) -> Option<Vec<u8>> {
        let kind: u16 = match kind {
            "A" => 1,
            "NS" => 2,
            "CNAME" => 5,
            "SOA" => 6,
            "PTR" => 12,
            "MX" => 15,
            "TXT" => 16,
            "AAAA" => 28,
            "SRV" => 33,
            "SVCB" => 64,
            "HTTPS" => 65,
            "IXFR" => 251,
            "AXFR" => 252,
            "ANY" => 255,
            other => other.strip_prefix("TYPE")?.parse().ok()?,
        };
        let mut out = id.to_be_bytes().to_vec();
        // Recursion desired; one question.
        out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.').filter(|label| !label.is_empty()) {
            out.push(
                u8::try_from(label.len())
                    .ok()
                    .filter(|length| *length < 64)?,
            );
            out.extend(label.as_bytes());
        }
        out.push(0);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        Some(out)
    }

    /// `message` as the answer to the question `id`.
    pub(super) fn renumbered(mut message: Vec<u8>, id: u16) -> Vec<u8> {
        if let Some(place) = message.first_chunk_mut::<2>() {
            *place = id.to_be_bytes();
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::journal::export::{sample, written};

    /// A packet: when, its frame, and what is said of it.
    struct Packet {
        at: u64,
        frame: Vec<u8>,
        comment: String,
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn packets(lines: &[Value]) -> Vec<Packet> {
        let (count, out) = written(&mut Pcapng::default(), lines);
        let mut packets = Vec::new();
        let mut kinds = Vec::new();
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            let length = word(rest, 4) as usize;
            assert_eq!((length % 4, word(rest, length - 4) as usize), (0, length));
            kinds.push(word(rest, 0));
            if word(rest, 0) == 6 {
                let size = word(rest, 20) as usize;
                assert_eq!(word(rest, 24) as usize, size);
                let behind = 28 + size.next_multiple_of(4);
                let comment = match behind + 4 < length {
                    true => String::from_utf8_lossy(
                        &rest[behind + 4..behind + 4 + (word(rest, behind) >> 16) as usize],
                    )
                    .into_owned(),
                    false => String::new(),
                };
                packets.push(Packet {
                    at: u64::from(word(rest, 12)) << 32 | u64::from(word(rest, 16)),
                    frame: rest[28..28 + size].to_vec(),
                    comment,
                });
            }
            rest = &rest[length..];
        }
        assert_eq!(kinds[..2], [0x0a0d_0d0a, 1]);
        assert_eq!(packets.len() as u64, count);
        packets
    }

    /// Each stream's bytes by its agent's port, the agent's and the server's; every packet has to follow the one before.
    fn streams(packets: &[Packet]) -> BTreeMap<u16, [Vec<u8>; 2]> {
        let mut streams: BTreeMap<u16, [Vec<u8>; 2]> = BTreeMap::new();
        let mut next: BTreeMap<(u16, u16), u32> = BTreeMap::new();
        for packet in packets {
            let frame = &packet.frame;
            let (ip, protocol, pseudo) = match frame[12..14] {
                [8, 0] => {
                    assert_eq!(checksum(&[&frame[14..34]]), 0);
                    (&frame[34..], frame[23], &frame[26..34])
                }
                _ => (&frame[54..], frame[20], &frame[22..54]),
            };
            let length = u16::try_from(ip.len()).unwrap().to_be_bytes();
            assert_eq!(checksum(&[pseudo, &[0, protocol], &length, ip]), 0);
            let port = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
            let (from, to) = (port(0), port(2));
            let side = usize::from(from < 40_000);
            let agent = from.max(to);
            let payload = if protocol == TCP { &ip[20..] } else { &ip[8..] };
            if protocol == TCP {
                let sequence = u32::from_be_bytes(ip[4..8].try_into().unwrap());
                let expected = next.entry((from, to)).or_insert(sequence);
                assert_eq!(sequence, *expected);
                let flags = ip[13];
                *expected += payload.len() as u32 + u32::from(flags & (flag::SYN | flag::FIN) != 0);
                if flags & flag::ACK != 0 {
                    let acknowledged = u32::from_be_bytes(ip[8..12].try_into().unwrap());
                    assert_eq!(acknowledged, next[&(to, from)]);
                }
            }
            streams.entry(agent).or_default()[side].extend(payload);
        }
        streams
    }

    #[test]
    fn streams_are_whole_and_say_what_was_said() {
        let packets = packets(&sample());
        assert_eq!(packets[0].at, 1_795_212_421_123_456_789);
        assert_eq!(packets[0].comment, "session pg of agent demo");
        let streams = streams(&packets);
        let [asked, said] = &streams[&40_000];
        let sent = String::from_utf8_lossy(asked);
        assert!(sent.contains("user\0app\0database\0shop\0"), "{sent}");
        assert!(
            sent.contains("DELETE FROM shop.orders WHERE id = $1"),
            "{sent}"
        );
        // Parse, Bind, Describe, Execute, Sync.
        assert!(asked.ends_with(b"D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"));
        assert!(said.ends_with(b"C\0\0\0\x0dDELETE 1\0Z\0\0\0\x05I"));
        let [asked, said] = &streams[&40_001];
        assert_eq!(
            asked,
            b"GET /a?b=c HTTP/1.1\r\nHost: x.example\r\nUser-Agent: u\r\n\r\n"
        );
        assert_eq!(
            String::from_utf8_lossy(said),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
        );
        let [asked, said] = &streams[&40_002];
        assert_eq!(
            asked,
            b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\0\0\x01\0\x01"
        );
        // With the question's number.
        assert_eq!(said[..2], [0, 1]);
        let unix = packets
            .iter()
            .find(|packet| packet.comment.contains("unix:"));
        assert_eq!(
            unix.unwrap().comment,
            "session unix of agent demo, to unix:/run/docker.sock"
        );
    }

    #[test]
    fn what_is_long_takes_several_packets() {
        let content = "x".repeat(3 * SEGMENT_BYTES_MAX + 1);
        let packets = packets(&[
            json!({"kind": "session_start", "session": "s", "client": "192.0.2.1:40000", "destination": "192.0.2.2:80", "transport": "tcp"}),
            json!({"kind": "operation", "session": "s", "operation": 1, "protocol": "opaque", "content": content}),
            json!({"kind": "session_end", "session": "s"}),
        ]);
        assert_eq!(packets.len(), 3 + 4 + 3);
        assert_eq!(streams(&packets)[&40_000][0], content.as_bytes());
    }

    #[test]
    fn ports_that_come_again_begin_another_stream() {
        let start = |session: &str| json!({"kind": "session_start", "session": session, "client": "192.0.2.1:40000", "destination": "192.0.2.2:80", "transport": "tcp"});
        let packets = packets(&[start("a"), start("b")]);
        // Behind Ethernet's header, IP's and the ports.
        assert_ne!(packets[0].frame[38..42], packets[3].frame[38..42]);
    }

    #[test]
    fn a_session_whose_start_is_not_there_is_from_nowhere() {
        let lines = sample();
        let operation = lines
            .iter()
            .find(|line| line["kind"] == "operation")
            .unwrap();
        let packets = packets(std::slice::from_ref(operation));
        assert_eq!(packets[0].frame[26..34], [192, 0, 2, 1, 192, 0, 2, 2]);
    }

    #[test]
    fn second_of_http_is_written_as_its_frames() {
        let start = json!({"kind": "session_start", "session": "s", "client": "192.0.2.1:40000", "destination": "192.0.2.2:443", "transport": "tcp"});
        let long = "v".repeat(300);
        let packets = packets(&[
            start,
            json!({"kind": "operation", "session": "s", "operation": 1, "protocol": "http", "attributes": {"http.scheme": "https"},
                "content": format!("GET /a HTTP/2\r\n:authority: x.example\r\nx-y: {long}\r\n\r\n")}),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "complete", "tag": "200", "head": "HTTP/2 200\r\nx: y\r\n\r\n", "body": "hello"}),
        ]);
        let streams = streams(&packets);
        let [asked, said] = &streams[&40_000];
        let headers = asked.strip_prefix(&http2::preface()[..]).unwrap();
        assert_eq!(headers[3..9], [1, 4, 0, 0, 0, 1]);
        assert!(headers.windows(6).any(|window| window == b"\x05:path"));
        // 300 as an integer with a prefix of seven bits.
        assert!(
            headers
                .windows(6)
                .any(|window| window == b"\x03x-y\x7f\xad")
        );
        let answer = said.strip_prefix(&http2::settings()[..]).unwrap();
        assert!(
            answer
                .windows(12)
                .any(|window| window == b"\x07:status\x03200")
        );
        assert!(answer.ends_with(b"\0\0\x05\0\0\0\0\0\x01hello\0\0\0\0\x01\0\0\0\x01"));
    }

    #[test]
    fn what_was_refused_has_an_answer_too() {
        let packets = packets(&[
            json!({"kind": "session_start", "session": "s", "client": "192.0.2.1:40000", "destination": "192.0.2.2:80", "transport": "tcp"}),
            json!({"kind": "operation", "session": "s", "operation": 1, "protocol": "http", "content": "GET / HTTP/1.1\r\n\r\n"}),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "refused", "body": "{\"status\": 451}"}),
        ]);
        let streams = streams(&packets);
        let [_, said] = &streams[&40_000];
        let said = String::from_utf8_lossy(said);
        assert!(said.starts_with("HTTP/1.1 451 Refused\r\n"), "{said}");
        assert!(said.contains("content-length: 15\r\n"), "{said}");
    }

    #[test]
    fn messages_come_behind_what_agrees_to_them() {
        let content = |of: &str, kind: &str| json!({"kind": "content", "session": "s", "operation": 1, "of": of, "message": kind, "body": "hi", "ends": true});
        let packets = packets(&[
            json!({"kind": "session_start", "session": "s", "client": "192.0.2.1:40000", "destination": "192.0.2.2:80", "transport": "tcp"}),
            json!({"kind": "operation", "session": "s", "operation": 1, "protocol": "http", "content": "GET /ws HTTP/1.1\r\n\r\n"}),
            content("client", "text"),
            content("upstream", "text"),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "complete", "tag": "101", "head": "HTTP/1.1 101 Switching Protocols\r\n\r\n"}),
        ]);
        let streams = streams(&packets);
        let [asked, said] = &streams[&40_000];
        assert!(asked.ends_with(b"\x81\x82\0\0\0\0hi"));
        let said = String::from_utf8_lossy(said);
        assert_eq!(said.matches("101 Switching").count(), 1);
        assert!(said.ends_with("\r\n\r\n\u{fffd}\u{2}hi"), "{said}");
    }

    #[test]
    fn refusals_and_rows_end_as_a_client_expects() {
        let answer = |status: Value, data: &[u8], ends: bool| {
            String::from_utf8_lossy(&postgres::answer(&status, false, &[], data, ends)).into_owned()
        };
        assert_eq!(
            answer(json!({"status": "complete", "tag": "SELECT 0"}), b"", true),
            "C\0\0\0\rSELECT 0\0Z\0\0\0\u{5}I"
        );
        assert!(answer(json!({"status": "refused"}), b"", true).contains("C42501\0Mrefused"));
        assert_eq!(answer(json!({"status": "continues"}), b"", false), "");
    }
}
