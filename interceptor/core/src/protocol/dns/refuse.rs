//! Answers in the place of the server: the protocol's own error, and why in words (RFC 8914).
//!
//! What is denied doesn't exist (NXDOMAIN), as response policy zones do it. REFUSED would be the better word, but
//! stubs take it for a server that doesn't serve them: glibc goes on to every other server and search domain,
//! musl waits for seconds for one that answers better. To either, NXDOMAIN is an answer.
//!
//! It says of a name that there is nothing of any type. So what programs ask for beside the IPv4 address has no
//! records of that type instead: where a rule denies AAAA or HTTPS alone, the address has to be found still (musl
//! gives up where one of both answers is NXDOMAIN). And a zone that may not be changed is there: REFUSED.

use super::{
    query::{Edns, Query},
    wire::{self, Header, Reader, flag, kind, opcode, rcode},
};
use crate::{
    decoder::Failure,
    ruling::{Cause, Refusal},
};

/// Numbers of extended errors.
pub(super) mod extended {
    pub(in super::super) const OTHER: u16 = 0;
    pub(in super::super) const BLOCKED: u16 = 15;
    pub(in super::super) const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub(in super::super) const INVALID_DATA: u16 = 24;
}

/// Largest answer of ours: what fits into a datagram for any client, so that it needs no second question.
const ANSWER_BYTES_MAX: usize = 512;

/// Largest answer over UDP that we claim to take, as resolvers do since the flag day of 2020.
const PAYLOAD_BYTES: u16 = 1_232;

/// What an answer has to repeat of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    header: Header,
    /// As it was sent, letter by letter (0x20); empty where it can't be read.
    question: Box<[u8]>,
    /// The flags of its EDNS, where it has that.
    edns: Option<u16>,
}

impl Asked {
    pub(super) fn new(query: &Query<'_>) -> Self {
        Self {
            header: query.header,
            question: query.question.bytes.into(),
            edns: query.edns.as_ref().map(|Edns { flags, .. }| *flags),
        }
    }

    /// Of a message that isn't understood.
    pub(super) fn unread(header: Header) -> Self {
        Self {
            header,
            question: [].into(),
            edns: None,
        }
    }

    /// Name, type and class, as they were sent.
    pub(super) const fn question(&self) -> &[u8] {
        &self.question
    }

    /// The answer to it, and a reason of that number where the client has a place for it.
    pub(super) fn answer(&self, code: u16, (number, reason): (u16, &str)) -> Vec<u8> {
        let kept = 0x7800 | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        let mut out = Vec::with_capacity(ANSWER_BYTES_MAX);
        let question = u16::from(!self.question.is_empty());
        Header {
            id: self.header.id,
            flags: flag::RESPONSE
                | flag::RECURSION_AVAILABLE
                | self.header.flags & kept
                | code & flag::RCODE,
            counts: [question, 0, 0, u16::from(self.edns.is_some())],
        }
        .encode(&mut out);
        out.extend_from_slice(&self.question);
        let Some(flags) = self.edns else {
            return out;
        };
        // Root, type, payload, extended code and version, flags, length, and the option's own 6.
        let left = ANSWER_BYTES_MAX.saturating_sub(out.len() + 11 + 6);
        let reason = beginning(reason, left);
        let length = 6 + reason.len() as u16;
        out.push(0);
        for field in [kind::OPT, PAYLOAD_BYTES, 0, flags & 0x8000, length] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        for field in [15, length - 4, number] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(reason.as_bytes());
        out
    }

    /// The answer to what may not go.
    pub(super) fn refused(&self, refusal: &Refusal) -> Vec<u8> {
        let Refusal {
            cause,
            rule,
            reason,
            approval,
        } = refusal;
        let what = match cause {
            Cause::Denied => format!("denied by rule \"{rule}\""),
            Cause::Rejected => format!("held by rule \"{rule}\" and rejected"),
            Cause::TimedOut => format!("held by rule \"{rule}\" and not approved in time"),
            Cause::Waiting => format!("held by rule \"{rule}\" until a person approves it"),
            Cause::Cancelled => "cancelled".to_owned(),
            Cause::Unavailable => "can't be decided or recorded now".to_owned(),
        };
        let approval = approval.map_or_else(String::new, |id| format!(" (approval {id})"));
        let reason = if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        };
        let text = format!("interceptor: {what}{approval}{reason}");
        match cause {
            Cause::Denied | Cause::Rejected | Cause::TimedOut => {
                self.answer(self.denial(), (extended::BLOCKED, &text))
            }
            Cause::Cancelled | Cause::Waiting | Cause::Unavailable => {
                self.answer(rcode::SERVFAIL, (extended::OTHER, &text))
            }
        }
    }

    fn denial(&self) -> u16 {
        let mut behind_name =
            Reader::starting(&self.question, self.question.len().saturating_sub(4));
        match (self.header.opcode(), behind_name.u16()) {
            (opcode::QUERY, Some(kind::AAAA | kind::HTTPS | kind::SVCB)) => rcode::NOERROR,
            (opcode::QUERY, _) => rcode::NXDOMAIN,
            _ => rcode::REFUSED,
        }
    }

    /// The answer to what can't be served.
    pub(super) fn failed(&self, failure: &Failure) -> Vec<u8> {
        let number = match failure {
            Failure::Unreachable(_) => extended::NO_REACHABLE_AUTHORITY,
            Failure::NoSecret(_) | Failure::Unrecorded | Failure::Memory => extended::OTHER,
        };
        let text = format!("interceptor: {failure}");
        self.answer(rcode::SERVFAIL, (number, &text))
    }
}

/// As much of `text` as fits into `bytes`; all of it is on record.
fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The largest name leaves room for a reason.
const _: () = assert!(ANSWER_BYTES_MAX > wire::HEADER_BYTES + wire::NAME_BYTES_MAX + 4 + 11 + 6);
