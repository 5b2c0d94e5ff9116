//! What has to be known of an encoded record to take it, without decoding all of it: most of what goes on record
//! is content, which only whoever asks for it looks at.

use interceptor_core::{
    operation::{Effects, Protocol},
    record::{Event, Record, SessionId, Timestamp},
    ruling::HoldTerms,
};
use serde::{Deserialize, Serialize};

use super::summary::TELLING;

/// An encoded record of another process, and what it says at a glance.
#[derive(Debug)]
pub(crate) struct Fed {
    bytes: Vec<u8>,
    /// The session that it is of.
    pub(crate) session: SessionId,
    /// The agent that it is of.
    pub(crate) agent: Box<str>,
    /// What it is.
    pub(crate) what: What,
}

/// What a record is.
#[derive(Debug, PartialEq)]
pub(crate) enum What {
    /// The start of its session.
    Started(Box<Record>),
    /// An operation: its number, protocol and effects.
    Operation(u64, Protocol, Effects),
    /// A decision, and the rule that decided.
    Decision(Answer, Box<str>),
    /// What people do.
    Approval,
    /// The end of its session.
    Ended(Box<Record>),
    /// Something that its session is found by.
    Told(Box<Record>),
    /// Anything else.
    Other,
}

/// The three verdicts, in the order of `Verdict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Answer {
    Allow,
    Deny,
    Hold,
}

/// What a record begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope<'a> {
    pub(super) seq: u64,
    pub(super) time: Timestamp,
    pub(super) session: Option<SessionId>,
    pub(super) agent: &'a str,
}

/// What follows: which event, in the order of [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Kind {
    SessionStart,
    Operation,
    Decision,
    Approval,
    Response,
    SessionEnd,
    Event,
    Content,
    DatagramsStart,
}

impl Fed {
    /// The record that `bytes` are.
    ///
    /// # Errors
    /// Where they are none of a session, or have a number already.
    pub(crate) fn read(bytes: Vec<u8>) -> Result<Self, &'static str> {
        const NONE: &str = "it is none";
        let (envelope, rest) =
            postcard::take_from_bytes::<Envelope<'_>>(&bytes).map_err(|_| NONE)?;
        if envelope.seq != 0 || bytes.first() != Some(&0) {
            return Err("it has a number already");
        }
        let session = envelope.session.ok_or("it is of no session")?;
        let (kind, rest) = postcard::take_from_bytes::<Kind>(rest).map_err(|_| NONE)?;
        let whole = || postcard::from_bytes(&bytes).map(Box::new).map_err(|_| NONE);
        let what = match kind {
            Kind::SessionStart | Kind::DatagramsStart => What::Started(whole()?),
            Kind::SessionEnd => What::Ended(whole()?),
            Kind::Operation => {
                type Beginning<'a> = (u64, Protocol, Vec<&'a str>, Effects);
                let ((number, protocol, _actions, effects), _) =
                    postcard::take_from_bytes::<Beginning<'_>>(rest).map_err(|_| NONE)?;
                What::Operation(number, protocol, effects)
            }
            Kind::Decision => {
                let ((_, answer), rest) =
                    postcard::take_from_bytes::<(u64, Answer)>(rest).map_err(|_| NONE)?;
                let rest = match answer {
                    Answer::Allow | Answer::Deny => rest,
                    Answer::Hold => {
                        postcard::take_from_bytes::<HoldTerms>(rest)
                            .map_err(|_| NONE)?
                            .1
                    }
                };
                let ((_enforced, rule), _) =
                    postcard::take_from_bytes::<(bool, &str)>(rest).map_err(|_| NONE)?;
                What::Decision(answer, rule.into())
            }
            Kind::Approval => What::Approval,
            Kind::Event => {
                let (name, _) = postcard::take_from_bytes::<&str>(rest).map_err(|_| NONE)?;
                match TELLING.contains(&name) {
                    true => What::Told(whole()?),
                    false => What::Other,
                }
            }
            Kind::Response | Kind::Content => What::Other,
        };
        Ok(Self {
            session,
            agent: envelope.agent.into(),
            what,
            bytes,
        })
    }

    /// It with the number `seq`, behind what is in `out`.
    pub(super) fn number(&self, seq: u64, out: &mut Vec<u8>) {
        let mut rest = seq;
        // The number's own encoding: seven bits a byte, the lowest first.
        while rest >= 0x80 {
            out.push(u8::try_from(rest & 0x7F).unwrap_or(0) | 0x80);
            rest >>= 7;
        }
        out.push(u8::try_from(rest).unwrap_or(0));
        // Without the one that says that there is none.
        out.extend_from_slice(self.bytes.get(1..).unwrap_or_default());
    }

    /// All of it.
    ///
    /// # Errors
    /// Where its beginning can't be read, which was.
    pub(super) fn decode(&self) -> Result<Record, &'static str> {
        decode(&self.bytes).map_err(|_| "it is none")
    }

    /// Roughly how much of the journal it takes, in bytes.
    pub(super) fn len(&self) -> usize {
        const NUMBER_AND_LENGTH: usize = 16;
        self.bytes.len() + NUMBER_AND_LENGTH
    }
}

/// What the first bytes of a record say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peeked {
    pub(super) seq: u64,
    pub(super) session: Option<SessionId>,
    /// Whether it is what a session said rather than what became of it.
    pub(super) is_content: bool,
    /// Whether it is what a server answered, or what passed without being an operation: most of the bytes.
    pub(super) is_bulk: bool,
    /// Whether it begins a session.
    pub(super) is_start: bool,
    /// Whether it begins a session or is an operation, which is what words are searched in.
    pub(super) is_attempt: bool,
}

/// What the first bytes of the record that `bytes` are say.
///
/// # Errors
/// Where not even they can be read.
pub(super) fn peek(bytes: &[u8]) -> Result<Peeked, postcard::Error> {
    let (envelope, rest) = postcard::take_from_bytes::<Envelope<'_>>(bytes)?;
    let (kind, _) = postcard::take_from_bytes::<Kind>(rest)?;
    let is_content = match kind {
        Kind::Operation | Kind::Decision | Kind::Response | Kind::Content => true,
        Kind::SessionStart
        | Kind::DatagramsStart
        | Kind::SessionEnd
        | Kind::Approval
        | Kind::Event => false,
    };
    let is_start = matches!(kind, Kind::SessionStart | Kind::DatagramsStart);
    Ok(Peeked {
        seq: envelope.seq,
        session: envelope.session,
        is_content,
        is_bulk: matches!(kind, Kind::Response | Kind::Content),
        is_start,
        is_attempt: is_start || kind == Kind::Operation,
    })
}

/// The agent of the record that `bytes` begin with.
///
/// # Errors
/// Where not even that can be read.
pub(super) fn agent(bytes: &[u8]) -> Result<&str, postcard::Error> {
    let (envelope, _) = postcard::take_from_bytes::<Envelope<'_>>(bytes)?;
    Ok(envelope.agent)
}

/// The record that `bytes` are; one that says so where what it holds can't be read.
///
/// # Errors
/// Where not even its beginning can be.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, postcard::Error> {
    postcard::from_bytes(bytes).or_else(|error| {
        // Whoever wrote it was the process of its session, which another session isn't to suffer from.
        let (envelope, rest) = postcard::take_from_bytes::<Envelope<'_>>(bytes)?;
        let detail = [
            ("error", error.to_string()),
            ("bytes", rest.len().to_string()),
        ];
        Ok(Record {
            seq: envelope.seq,
            time: envelope.time,
            session: envelope.session,
            agent: envelope.agent.into(),
            event: Event::notice("record_unreadable", detail),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::{
        operation::Digest,
        record::{ApprovalId, ApprovalRecord, ApprovalStep, ContentRecord, SessionEnd, Speaker},
    };

    use super::*;

    fn record(event: Event) -> Record {
        Record {
            seq: 0,
            time: Timestamp(1_700_000_000_000_000_000),
            session: Some(SessionId(u64::MAX / 3)),
            agent: Arc::from("agent"),
            event,
        }
    }

    fn encoded(record: &Record) -> Vec<u8> {
        postcard::to_stdvec(record).unwrap()
    }

    #[test]
    fn a_glance_tells_what_a_record_is() {
        let end = SessionEnd {
            reason: "finished".into(),
            operations: 3,
            bytes_from_client: 4,
            bytes_from_upstream: 5,
        };
        let approval = ApprovalRecord {
            approval: ApprovalId(1),
            number: 1,
            digest: Digest([7; 32]),
            step: ApprovalStep::Approved { window: None },
        };
        let content = ContentRecord {
            number: 300,
            of: Speaker::Client,
            data: vec![b"x"[..].into()],
            bytes: 1,
            sha256: None,
            message: None,
        };
        let ended = record(Event::SessionEnd(end));
        let table = [
            (ended.clone(), What::Ended(Box::new(ended))),
            (record(Event::Approval(approval)), What::Approval),
            (record(Event::notice("x", [])), What::Other),
            (record(Event::Content(content)), What::Other),
        ];
        for (mut record, expected) in table {
            let fed = Fed::read(encoded(&record)).unwrap();
            assert_eq!(
                (fed.session, &*fed.agent),
                (SessionId(u64::MAX / 3), "agent")
            );
            assert_eq!(fed.what, expected);
            for seq in [1, 127, 128, 300, 1 << 40, u64::MAX] {
                let mut out = b"before".to_vec();
                fed.number(seq, &mut out);
                record.seq = seq;
                assert_eq!(out[6..], encoded(&record));
            }
            record.seq = 5;
            Fed::read(encoded(&record)).unwrap_err();
        }
        let mut nobodys = record(Event::notice("x", []));
        nobodys.session = None;
        Fed::read(encoded(&nobodys)).unwrap_err();
        Fed::read(b"\0\0".to_vec()).unwrap_err();
    }

    #[test]
    fn what_cant_be_read_says_so_and_harms_nothing_else() {
        let whole = encoded(&record(Event::notice("name", [("a", "b".to_owned())])));
        let unreadable = decode(&whole[..whole.len() - 1]).unwrap();
        assert_eq!(unreadable.session, Some(SessionId(u64::MAX / 3)));
        let Event::Event(notice) = unreadable.event else {
            panic!()
        };
        assert_eq!(&*notice.name, "record_unreadable");
        decode(b"\xff").unwrap_err();
    }
}
