//! DNS: questions decided one by one, answers held to what was asked.
//!
//! The decoder reads messages behind their lengths, as they go over TCP (RFC 1035, section 4.2.2); for UDP the
//! length is put before each datagram and taken off again. Questions may be outstanding in any number and
//! answered in any order. What is let by goes on as the agent sent it, byte by byte; an answer loses at most the
//! keys for Encrypted ClientHello.

mod answer;
pub mod describe;
mod ech;
mod query;
mod refuse;
#[cfg(test)]
mod tests;
mod transcript;
mod wire;

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

pub use self::transcript::Transcript;
use self::{
    answer::{Answer, Transfer},
    query::Query,
    refuse::{Asked, extended},
    wire::{Header, flag, opcode, rcode},
};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    limits,
    operation::Protocol,
    record::{Event, ResponseRecord, ResponseStatus, Timestamp},
    ruling::Ruling,
};

/// One connection to a DNS server, or what stands for one over UDP.
#[derive(Debug, Default)]
pub struct Dns {
    from_client: BytesMut,
    from_upstream: BytesMut,
    finished: [bool; 2],
    /// Operations that were proposed.
    operations: u64,
    proposed: Option<Pending>,
    /// What the server hasn't answered, oldest first.
    outstanding: VecDeque<Pending>,
    steps: VecDeque<Step>,
    now: Timestamp,
    /// Messages that answered nothing.
    dropped: u64,
    /// The end of what the client says was passed on.
    passed_on: bool,
    closing: Option<Closing>,
    closed: bool,
}

/// A message that has to be answered.
#[derive(Debug)]
struct Pending {
    /// Number of its operation.
    number: u64,
    id: u16,
    opcode: u8,
    /// With its question, copied: a slice would keep the whole message for as long as nobody answers.
    asked: Asked,
    /// All of it, behind its length, until it is sent.
    frame: Bytes,
    transfer: Option<Transfer>,
    released: Timestamp,
}

/// Whether these are the first bytes of a question over TCP; `None` while that can't be told.
#[must_use]
pub fn is_query(first: &[u8]) -> Option<bool> {
    /// Header, the root's name, type and class.
    const BYTES_MIN: u16 = 17;
    let expected = |index: usize, byte: u8| match index {
        // Questions have less than 512 bytes, with padding too. Of protocols whose clients begin with fewer bytes
        // than a header has (SOCKS does), none begins so.
        0 => byte <= 1,
        // QR, and the count of questions.
        4 => byte & 0x80 == 0,
        6 => byte == 0,
        7 => byte == 1,
        _ => true,
    };
    let (header, name) = first.split_at(first.len().min(2 + wire::HEADER_BYTES));
    let mut bytes = header.iter().enumerate();
    if !bytes.all(|(index, byte)| expected(index, *byte)) {
        return Some(false);
    }
    let mut length = wire::Reader::new(first);
    let length = length.u16()?;
    if length < BYTES_MIN {
        return Some(false);
    }
    if header.len() < 2 + wire::HEADER_BYTES {
        return None;
    }
    let room = usize::from(length) - wire::HEADER_BYTES - 4;
    let mut at = 0;
    loop {
        match *name.get(at)? {
            0 => break,
            label @ 1..=63 => at += 1 + usize::from(label),
            _ => return Some(false),
        }
        if at >= room.min(wire::NAME_BYTES_MAX) {
            return Some(false);
        }
    }
    Some(true)
}

impl Dns {
    /// Goes on with what either side has said, as far as that is whole. Whether anything came of it.
    fn advance(&mut self) -> bool {
        if let Some(frame) = take_frame(&mut self.from_upstream) {
            self.answered(&frame);
            return true;
        }
        if self.proposed.is_none()
            && let Some(frame) = take_frame(&mut self.from_client)
        {
            self.asked(frame);
            return true;
        }
        self.end();
        !self.steps.is_empty() || self.closing.is_some()
    }

    /// The client has sent a message.
    fn asked(&mut self, frame: Bytes) {
        let message = frame.get(2..).unwrap_or_default();
        let Some(header) = Header::read(message) else {
            let why = format!("a message of {} bytes has no header", message.len());
            self.closing = Some(Closing::Malformed(why));
            return;
        };
        if header.has(flag::RESPONSE) {
            // To answer it could be the half of a loop.
            return self.not_understood(message, "it is an answer");
        }
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(malformed) => {
                self.not_understood(message, malformed.why);
                let reason = (extended::OTHER, malformed.why);
                let answer = Asked::unread(header).answer(malformed.rcode, reason);
                return self.send_to_client(&answer);
            }
        };
        self.operations += 1;
        let operation = describe::operation(message, &query);
        self.proposed = Some(Pending {
            number: self.operations,
            id: header.id,
            opcode: header.opcode(),
            asked: Asked::new(&query),
            transfer: match header.opcode() {
                opcode::QUERY => Transfer::asked_for(query.question.kind),
                _ => None,
            },
            frame: frame.clone(),
            released: self.now,
        });
        self.steps.push_back(Step::Propose(operation));
    }

    /// What can't be understood isn't waved through, and isn't worth asking anybody about: no resolver sends it.
    fn not_understood(&mut self, message: &[u8], reason: &str) {
        /// More is no question, and of what isn't sent on nobody needs the rest.
        const SHOWN_BYTES_MAX: usize = 512;
        let shown = message.get(..message.len().min(SHOWN_BYTES_MAX));
        let mut detail = vec![
            ("reason", reason.to_owned()),
            ("bytes", message.len().to_string()),
            ("message", hex::encode(shown.unwrap_or_default())),
        ];
        detail.extend(query::glimpse(message).map(|question| ("question", question)));
        let event = Event::notice("dns_refused", detail);
        self.steps.push_back(Step::Record(event));
    }

    /// The server has sent a message.
    fn answered(&mut self, frame: &Bytes) {
        let message = frame.slice(2..);
        let header = match Header::read(&message) {
            Some(header) if header.has(flag::RESPONSE) => header,
            Some(_) => return self.drop(&message, "it is no answer"),
            None => return self.drop(&message, "it has no header"),
        };
        let place = self.outstanding.iter().position(|pending| {
            let [questions, ..] = header.counts;
            let goes_on =
                questions == 0 && pending.transfer.as_ref().is_some_and(Transfer::has_begun);
            pending.id == header.id
                && (goes_on
                    || answer::is_for(&message, header, pending.opcode, pending.asked.question()))
        });
        let Some(mut pending) = place.and_then(|place| self.outstanding.remove(place)) else {
            return self.drop(&message, "nothing like it was asked for");
        };
        let question = pending.asked.question();
        let (name, _) = question.split_at(question.len().saturating_sub(4));
        let found = match answer::read(&message, header, name) {
            Ok(found) => found,
            Err(reason) => return self.unreadable(pending, reason),
        };
        let Answer {
            changed,
            status,
            records,
            resolved,
            versions,
        } = found;
        let masked: &[&str] = match &changed {
            Some(_) if !header.has(flag::TRUNCATED) => &["ech"],
            _ => &[],
        };
        let is_last = match &mut pending.transfer {
            Some(transfer) => transfer.take(&versions),
            None => true,
        };
        let status = match is_last {
            true => status,
            false => ResponseStatus::Continues,
        };
        let sent = changed.map_or(message, Bytes::from);
        let event = self.response(&pending, status, Some((records, &sent)), masked);
        self.steps.push_back(Step::Record(event));
        self.steps.extend(resolved.map(Step::Resolved));
        self.send_to_client(&sent);
        if !is_last {
            // As old as it was.
            let place = place.unwrap_or_default().min(self.outstanding.len());
            self.outstanding.insert(place, pending);
        }
    }

    /// An answer in which something could stand that isn't seen here but by the client isn't passed on.
    fn unreadable(&mut self, pending: Pending, reason: &'static str) {
        let detail = [
            ("operation", pending.number.to_string()),
            ("reason", reason.to_owned()),
        ];
        self.steps
            .push_back(Step::Record(Event::notice("dns_unreadable", detail)));
        let text = format!("interceptor: the server's answer isn't passed on: {reason}");
        let reason = (extended::INVALID_DATA, &*text);
        let answer = pending.asked.answer(rcode::SERVFAIL, reason);
        self.refuse(&pending, &answer);
    }

    /// What answers nothing goes no further: it is late, or somebody guesses.
    fn drop(&mut self, message: &[u8], reason: &str) {
        self.dropped += 1;
        if self.dropped > limits::DNS_DROPPED_RECORDED_MAX {
            return;
        }
        let mut detail = vec![
            ("reason", reason.to_owned()),
            ("bytes", message.len().to_string()),
        ];
        detail.extend(query::glimpse(message).map(|question| ("question", question)));
        let event = Event::notice("dns_dropped", detail);
        self.steps.push_back(Step::Record(event));
    }

    /// Puts an answer of ours on record and sends it.
    fn refuse(&mut self, pending: &Pending, answer: &[u8]) {
        let sent = Bytes::copy_from_slice(answer);
        let event = self.response(pending, ResponseStatus::Refused, Some((0, &sent)), &[]);
        self.steps.push_back(Step::Record(event));
        self.send_to_client(answer);
    }

    fn send_to_client(&mut self, message: &[u8]) {
        // None of ours is longer than a frame can be.
        if let Some(frame) = wire::framed(message) {
            self.steps.push_back(Step::Send(Peer::Client, frame.into()));
        }
    }

    fn response(
        &self,
        pending: &Pending,
        status: ResponseStatus,
        sent: Option<(u16, &Bytes)>,
        masked: &[&str],
    ) -> Event {
        Event::Response(ResponseRecord {
            number: pending.number,
            protocol: Protocol::Dns,
            status,
            rows: sent.map_or(0, |(records, _)| records.into()),
            bytes: sent.map_or(0, |(_, message)| message.len() as u64),
            elapsed_ns: self.now.0.saturating_sub(pending.released.0),
            shape: None,
            data: sent
                .map(|(_, message)| message.clone())
                .into_iter()
                .collect(),
            masked: masked.iter().map(|name| Box::from(*name)).collect(),
        })
    }

    /// Nobody will answer it any more.
    fn interrupt(&mut self, pending: &Pending) {
        let event = self.response(pending, ResponseStatus::Interrupted, None, &[]);
        self.steps.push_back(Step::Record(event));
    }

    /// Everything that was said whole is done: ends the connection where a side has.
    fn end(&mut self) {
        if self.closing.is_some() || !self.steps.is_empty() {
            return;
        }
        let [client, upstream] = self.finished;
        // Who is gone gets no answer, and people needn't be asked for it.
        if upstream || (client && (self.outstanding.is_empty() || self.proposed.is_some())) {
            self.closing = Some(
                match self.from_client.is_empty() || self.proposed.is_some() {
                    true => Closing::Finished,
                    false => Closing::Malformed("the client ended within a message".to_owned()),
                },
            );
        } else if client && !std::mem::replace(&mut self.passed_on, true) {
            self.steps.push_back(Step::Finish(Peer::Upstream));
        }
    }

    /// The last that is to be said before it is closed.
    fn close(&mut self, closing: Closing) {
        for pending in std::mem::take(&mut self.outstanding) {
            self.interrupt(&pending);
        }
        let more = self
            .dropped
            .saturating_sub(limits::DNS_DROPPED_RECORDED_MAX);
        if more > 0 {
            let event = Event::notice("dns_dropped", [("more", more.to_string())]);
            self.steps.push_back(Step::Record(event));
        }
        self.steps.push_back(Step::Close(closing));
        self.closed = true;
    }
}

impl Decoder for Dns {
    fn receive(&mut self, from: Peer, bytes: &mut BytesMut, now: Timestamp) {
        self.now = now;
        let buffer = match from {
            Peer::Client => &mut self.from_client,
            Peer::Upstream => &mut self.from_upstream,
        };
        if buffer.is_empty() {
            std::mem::swap(buffer, bytes);
        } else {
            buffer.extend_from_slice(bytes);
        }
        bytes.clear();
    }

    fn finish(&mut self, from: Peer) {
        let [client, upstream] = &mut self.finished;
        match from {
            Peer::Client => *client = true,
            Peer::Upstream => *upstream = true,
        }
    }

    fn fail(&mut self, failure: &Failure) {
        let mut waiting: Vec<Pending> = std::mem::take(&mut self.outstanding).into();
        waiting.extend(self.proposed.take());
        for pending in waiting {
            self.refuse(&pending, &pending.asked.failed(failure));
        }
        // Each of those behind it would be told the same; on a connection that ends they are asked again.
        self.closing = Some(Closing::Refused(failure.to_string()));
    }

    fn rule(&mut self, ruling: Ruling, now: Timestamp) {
        self.now = now;
        let Some(mut pending) = self.proposed.take() else {
            return;
        };
        match ruling {
            // What masks are for has no place in the DNS.
            Ruling::Permit(_) => {
                pending.released = now;
                let frame = std::mem::take(&mut pending.frame);
                if self.outstanding.len() >= limits::DNS_OUTSTANDING_MAX
                    && let Some(oldest) = self.outstanding.pop_front()
                {
                    self.interrupt(&oldest);
                }
                self.outstanding.push_back(pending);
                self.steps.push_back(Step::Send(Peer::Upstream, frame));
            }
            Ruling::Refuse(refusal) => {
                let answer = pending.asked.refused(&refusal);
                self.refuse(&pending, &answer);
            }
            // All of it is there.
            Ruling::Gather => {
                let reason = (extended::OTHER, "interceptor: it can't be decided");
                let answer = pending.asked.answer(rcode::SERVFAIL, reason);
                self.refuse(&pending, &answer);
            }
        }
    }

    fn is_waiting_for_client(&self) -> bool {
        !self.from_client.is_empty() && self.proposed.is_none()
    }

    fn expire(&mut self) {
        let why = "the client didn't finish its message in time".to_owned();
        self.closing = Some(Closing::Malformed(why));
    }

    fn gives_up_stalled(&self) -> bool {
        true
    }

    fn stalled(&mut self, why: &str) {
        self.steps.clear();
        self.closing = Some(Closing::Refused(why.to_owned()));
    }

    fn poll(&mut self) -> Step {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            if self.closed {
                return Step::Wait;
            }
            if let Some(closing) = self.closing.take() {
                self.close(closing);
            } else if !self.advance() {
                return Step::Wait;
            }
        }
    }

    fn wants(&self, from: Peer) -> bool {
        /// A whole message and the beginning of the next.
        const HELD_BYTES_MAX: usize = 2 * (2 + u16::MAX as usize);
        let [client, upstream] = self.finished;
        match from {
            Peer::Client => !client && self.from_client.len() < HELD_BYTES_MAX,
            Peer::Upstream => !upstream && self.from_upstream.len() < HELD_BYTES_MAX,
        }
    }
}

/// The next message behind its length, where it is whole.
fn take_frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let (length, _) = buffer.split_first_chunk::<2>()?;
    let end = 2 + usize::from(u16::from_be_bytes(*length));
    (buffer.remaining() >= end).then(|| buffer.split_to(end).freeze())
}
