//! The journal's vocabulary: what is recorded, of whom, when.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    operation::{Digest, Operation, Protocol, radius::BlastRadius},
    origin::{Agent, Origin},
    ruling::{Cause, Decision, WindowScope},
};

/// Version of the exported schema (`docs/export-schema.md`), raised with every incompatible change.
pub const SCHEMA_VERSION: u32 = 1;

/// Nanoseconds since the Unix epoch, UTC.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    /// RFC 3339 with nanoseconds, `2026-11-20T22:07:01.000000001Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => write!(f, "{time:.9}"),
            Err(_) => write!(f, "{} ns", self.0),
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if text.len() != 16 {
                    return Err(format!("`{text}` is not an id: 16 hexadecimal digits are"));
                }
                u64::from_str_radix(text, 16)
                    .map(Self)
                    .map_err(|_| format!("`{text}` is not an id: 16 hexadecimal digits are"))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    u64::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

id! {
    /// One intercepted connection.
    SessionId
}
id! {
    /// One request for approval.
    ApprovalId
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Position in the journal, from 1, without gaps.
    pub seq: u64,
    /// When it happened.
    pub time: Timestamp,
    /// The session it belongs to; `None` for what concerns an agent or the daemon as a whole.
    pub session: Option<SessionId>,
    /// The agent's name; empty for what concerns the daemon as a whole.
    pub agent: Arc<str>,
    /// What happened.
    pub event: Event,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A connection was intercepted.
    SessionStart(SessionStart),
    /// An operation was attempted.
    Operation(OperationRecord),
    /// An operation was decided.
    Decision(DecisionRecord),
    /// An approval was asked for, voted on or ended.
    Approval(ApprovalRecord),
    /// (A part of) what came back, after masking.
    Response(ResponseRecord),
    /// The connection is over.
    SessionEnd(SessionEnd),
    /// Anything else worth knowing.
    Event(Notice),
    /// (A part of) what was sent within an operation: a request's body, messages of an upgraded
    /// connection; or the digest of what is too long to be on record.
    Content(ContentRecord),
    /// Datagrams were intercepted: what a socket of the agent asks a DNS server. A session like any other, that
    /// no connect began.
    DatagramsStart(SessionStart),
}

/// Which of the two speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The agent.
    Client,
    /// The destination.
    Upstream,
}

/// (A part of) what was sent within an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRecord {
    /// Number of the operation in its session.
    pub number: u64,
    /// Who sent it.
    pub of: Speaker,
    /// The content, after masking.
    pub data: Vec<Bytes>,
    /// Bytes of content in all so far.
    pub bytes: u64,
    /// Digest of all of the content, where not all of it is on record.
    pub sha256: Option<Digest>,
    /// The message that it is (a part of), where a connection was upgraded to one of messages.
    pub message: Option<MessageRecord>,
}

/// A message within an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// What kind of message it is, in the words of its protocol.
    pub kind: Box<str>,
    /// This is the end of it.
    pub ends: bool,
    /// What was masked in it.
    pub masked: Box<[Box<str>]>,
}

/// The start of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStart {
    /// Who, and where to.
    pub origin: Arc<Origin>,
    /// The agent's own socket address; a UNIX socket's client has none.
    pub client: Option<SocketAddr>,
}

/// An attempted operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Number of the operation in its session, from 1.
    pub number: u64,
    /// All of it.
    pub operation: Operation,
}

/// How an operation was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Number of the operation in its session.
    pub number: u64,
    /// The decision.
    pub decision: Arc<Decision>,
}

/// A step in the life of an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRecord {
    /// Its id.
    pub approval: ApprovalId,
    /// Number of the operation in its session.
    pub number: u64,
    /// Binds the approval to the operation.
    pub digest: Digest,
    /// The step.
    pub step: ApprovalStep,
}

/// The steps in the life of an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApprovalStep {
    /// People were asked; they have until then.
    Requested {
        /// When the request ends by itself.
        until: Timestamp,
        /// What besides its bytes the operation depends on: what its session did before, and credentials.
        context: Digest,
        /// What it is but for its values, where its protocol tells.
        shape: Option<Digest>,
    },
    /// What the operation would touch was found out, and shown to whom is asked.
    Estimated {
        /// What.
        radius: Arc<BlastRadius>,
    },
    /// Further groups were asked.
    Escalated {
        /// Which.
        groups: Arc<[Box<str>]>,
    },
    /// Somebody voted.
    Voted {
        /// Who: the name makes people distinct.
        by: Box<str>,
        /// Their user id, where the kernel told who they are; of people at the console there is none.
        uid: Option<u32>,
        /// What they said.
        choice: Choice,
        /// Why, in their words.
        reason: Box<str>,
        /// What they agreed to beyond this operation.
        window: Option<Window>,
        /// What their security key signed, where the rule asks for one.
        consent: Option<Box<Consent>>,
    },
    /// The client gave up waiting, or was told to come back. The question stays, or the approval that it didn't use.
    Left {
        /// Which of them.
        why: Box<str>,
    },
    /// The same operation came again and waits: that of this record's session and number.
    Resumed,
    /// Enough agreed: the operation goes through once.
    Approved {
        /// What else they agreed to.
        window: Option<Window>,
    },
    /// Somebody with the right to let it through alone, in an emergency.
    Overridden {
        /// Who.
        by: Box<str>,
        /// Why.
        reason: Box<str>,
    },
    /// Nobody objected in time, and the rule lets it through then.
    Unopposed,
    /// What was approved before let the operation of this record's session and number through.
    Admitted,
    /// What was approved lets nothing through any more.
    Revoked {
        /// Who says so.
        by: Box<str>,
        /// Why.
        reason: Box<str>,
    },
    /// Refused.
    Refused {
        /// How.
        cause: Cause,
    },
    /// The agent took it back, or hung up and may not send it again, before an outcome.
    Withdrawn {
        /// Which of them.
        why: Box<str>,
    },
}

/// A yes that a security key signed, checkable without this daemon: a WebAuthn assertion (W3C Web Authentication,
/// section 7.2) whose challenge is the SHA-256 of [`Consent::text`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// The key's public half, as a SubjectPublicKeyInfo in DER.
    pub public_key: Bytes,
    /// What the browser says was asked of the key (`clientDataJSON`).
    pub client_data: Bytes,
    /// What the key says of itself (`authenticatorData`).
    pub authenticator_data: Bytes,
    /// The key's signature over `authenticator_data` and the SHA-256 of `client_data`.
    pub signature: Bytes,
}

impl Consent {
    /// What is agreed to, a fact a line: which question, exactly which operation, and what besides it.
    #[must_use]
    pub fn text(approval: ApprovalId, digest: &Digest, window: Option<Window>) -> String {
        let window = window.map_or_else(
            || "this operation alone".to_owned(),
            |Window {
                 scope,
                 seconds,
                 at_most,
             }| {
                let scope = format!("{scope:?}").to_lowercase();
                format!("and the same {scope} for {seconds} s, at most {at_most} times")
            },
        );
        format!("interceptor: I approve\napproval {approval}\noperation {digest}\n{window}\n")
    }
}

/// What somebody says who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// It may go.
    Approve,
    /// It may not.
    Deny,
    /// They take back that it may.
    Retract,
}

/// Later operations that people agree to together with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Which.
    pub scope: WindowScope,
    /// For how many seconds from the approval on.
    pub seconds: u64,
    /// How many.
    pub at_most: u32,
}

/// How a response ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// More parts follow.
    Continues,
    /// It completed; the protocol's own word for it (PostgreSQL's command tag).
    Complete(Box<str>),
    /// The upstream answered with an error.
    Error {
        /// The protocol's own code (SQLSTATE).
        code: Box<str>,
        /// Its message, after masking.
        message: Box<str>,
    },
    /// interceptor answered in the upstream's place.
    Refused,
    /// The server skipped it after an earlier error in its pipeline.
    Skipped,
    /// The connection ended first.
    Interrupted,
}

/// (A part of) a response, after masking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseRecord {
    /// Number of the operation in its session; 0 for what answers none (a notification).
    pub number: u64,
    /// The protocol that `data` and `shape` are written in.
    pub protocol: Protocol,
    /// How it ended.
    pub status: ResponseStatus,
    /// Rows in this part.
    pub rows: u64,
    /// Bytes that reached the client in this part.
    pub bytes: u64,
    /// Nanoseconds from release of the operation to this part.
    pub elapsed_ns: u64,
    /// What `data` needs to be understood and lacks: the layout of its rows (PostgreSQL's RowDescription
    /// message), or the head of the response whose body it is.
    pub shape: Option<Bytes>,
    /// The messages that reached the client, whole.
    pub data: Vec<Bytes>,
    /// Columns that were masked in this part, by name.
    pub masked: Arc<[Box<str>]>,
}

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// Why it ended.
    pub reason: Box<str>,
    /// Operations attempted in it.
    pub operations: u64,
    /// Bytes that the agent sent.
    pub bytes_from_client: u64,
    /// Bytes that the upstream sent.
    pub bytes_from_upstream: u64,
}

/// Anything else: a name from the documented list and its facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What happened, `udp_refused`.
    pub name: Box<str>,
    /// The facts, by name.
    pub detail: BTreeMap<Box<str>, Box<str>>,
}

impl Event {
    /// The `kind` of an exported line.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SessionStart(_) | Self::DatagramsStart(_) => "session_start",
            Self::Operation(_) => "operation",
            Self::Decision(_) => "decision",
            Self::Approval(_) => "approval",
            Self::Response(_) => "response",
            Self::SessionEnd(_) => "session_end",
            Self::Event(_) => "event",
            Self::Content(_) => "content",
        }
    }

    /// A notice of `name` with `detail`.
    pub fn notice<'a>(name: &str, detail: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        Self::Event(Notice {
            name: name.into(),
            detail: detail
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        })
    }
}

impl Record {
    /// The agent's name as records keep it.
    #[must_use]
    pub fn agent_name(agent: &Agent) -> Arc<str> {
        Arc::from(&*agent.name)
    }
}
