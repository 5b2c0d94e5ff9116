//! What people are shown of a request. These types are the control API's words too.

use std::collections::BTreeMap;

use interceptor_core::{
    operation::{
        Digest, Effects, Operation, Parameter, ParameterFormat, Protocol, Resource,
        radius::{BlastRadius, Estimate},
    },
    origin::{Destination, Process, Surroundings},
    protocol::postgres::transcript,
    record::{ApprovalId, Choice, SessionId, Timestamp, Window},
    ruling::{Cause, Otherwise},
};
use serde::{Deserialize, Serialize};

use super::{grants::Standing, request::Request};

/// A request for approval, without the operation's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id.
    pub id: ApprovalId,
    /// Where it stands.
    pub state: State,
    /// The session that waits.
    pub session: SessionId,
    /// Number of the operation in its session.
    pub number: u64,
    /// The agent's name.
    pub agent: Box<str>,
    /// The agent's labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// The process that connected.
    pub process: Process,
    /// What is around it, as far as it could be read when its operation was held; lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surroundings: Option<Surroundings>,
    /// Where to.
    pub destination: Destination,
    /// The protocol.
    pub protocol: Protocol,
    /// What is done, in the protocol's own names.
    pub action: String,
    /// Its effects.
    pub effects: Effects,
    /// What it touches.
    pub resources: Vec<Resource>,
    /// Binds the approval to the operation.
    pub digest: Digest,
    /// What it is but for its values, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Digest>,
    /// The rule that holds it.
    pub rule: Box<str>,
    /// The rule's reason.
    pub reason: Box<str>,
    /// Hash of the policy in force.
    pub policy: String,
    /// Groups whose members may vote, those that were asked later included. Where neither groups nor people are
    /// named, anyone who may use the control socket.
    pub groups: Vec<Box<str>>,
    /// People who may vote, whichever groups they are in.
    pub people: Vec<Box<str>>,
    /// How many distinct people have to agree.
    pub quorum: u32,
    /// Whether a yes needs a reason.
    pub reason_required: bool,
    /// Whether a yes needs its giver's security key.
    #[serde(default)]
    pub security_key: bool,
    /// How the rule has it found out what the operation would touch, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What it would touch, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blast_radius: Option<BlastRadius>,
    /// What becomes of it where nobody decides.
    pub otherwise: Otherwise,
    /// The most that people may agree to beyond the one operation.
    pub windows: Option<Window>,
    /// Whether its client waits. Where it doesn't, an approval lets the same operation through when it comes again,
    /// for this many seconds.
    pub waits: bool,
    /// See `waits`.
    pub retry: u64,
    /// The votes so far.
    pub votes: Vec<Vote>,
    /// When it was asked for.
    #[serde(with = "crate::rfc3339")]
    pub requested: Timestamp,
    /// When it ends by itself.
    #[serde(with = "crate::rfc3339")]
    pub until: Timestamp,
    /// What whoever asks may answer, where it waits and somebody asks for themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yours: Option<Yours>,
}

/// What one person may answer to a request that waits. Whether it counts is decided when they do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yours {
    /// Answers of theirs that would count.
    pub may: Vec<Choice>,
    /// Why a yes wouldn't; empty where it would.
    pub why: Box<str>,
    /// Whether they may let it through alone, in an emergency.
    pub r#override: bool,
}

/// A counted vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Who, as the kernel names the peer of the control socket.
    pub by: Box<str>,
    /// Yes or no.
    pub choice: Choice,
    /// Why, in their words.
    pub reason: Box<str>,
    /// What a yes is for beyond the one operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// When.
    #[serde(with = "crate::rfc3339")]
    pub time: Timestamp,
}

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for people.
    Pending,
    /// Enough agreed, or nobody objected where the rule takes that for a yes.
    Approved,
    /// Somebody let it through alone, in an emergency.
    Overridden {
        /// Who.
        by: Box<str>,
        /// Why.
        reason: Box<str>,
    },
    /// Refused.
    Refused {
        /// How.
        cause: Cause,
    },
    /// It ended before an outcome.
    Withdrawn {
        /// Why.
        why: Box<str>,
    },
}

/// A request for approval, whole: exactly what will be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// All but the content.
    #[serde(flatten)]
    pub summary: Summary,
    /// The content (the statement for SQL); `None` once the request has ended.
    pub content: Option<Content>,
    /// The values bound to it, in order.
    pub parameters: Vec<Value>,
    /// Further wire facts that change what it does, by name.
    pub options: Vec<(Box<str>, Box<str>)>,
}

/// Bytes, readable where they are text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// They are UTF-8.
    Text(String),
    /// They aren't; hexadecimal.
    Hex(String),
}

/// A value bound to an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// How it is written on the wire.
    pub format: ParameterFormat,
    /// Its type's OID where the protocol gives one, else 0.
    pub type_oid: u32,
    /// What it means, as exports write it; null is NULL.
    pub value: serde_json::Value,
    /// The bytes on the wire, in hexadecimal, where they aren't simply that text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

/// Something happened to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// It was made.
    Requested(Box<Summary>),
    /// It became known what its operation would touch.
    Estimated(Box<Summary>),
    /// A vote was counted.
    Voted(Box<Summary>),
    /// Its client doesn't wait any more; the question stays.
    Left(Box<Summary>),
    /// The same operation came again and waits.
    Resumed(Box<Summary>),
    /// Further groups are asked.
    Escalated(Box<Summary>),
    /// Something went by what was approved before.
    Admitted(Box<Standing>),
    /// Nothing goes by it any more.
    Revoked(Box<Standing>),
    /// It is over.
    Ended(Box<Summary>),
    /// The watcher was too slow and missed this many changes; `approvals list` shows all.
    Missed {
        /// How many.
        changes: u64,
    },
}

impl Summary {
    /// The summary of `request`, in `state`.
    pub(super) fn new(
        (id, state): (ApprovalId, State),
        request: &Request,
        (requested, until): (Timestamp, Timestamp),
        votes: Vec<Vote>,
        (escalated, waits): (&[Box<str>], bool),
        radius: Option<&BlastRadius>,
    ) -> Self {
        let terms = &request.terms;
        let description = &request.operation.description;
        Self {
            id,
            state,
            session: request.session,
            number: request.number,
            agent: request.origin.agent.name.clone(),
            labels: request.origin.agent.labels.clone(),
            process: request.origin.process.clone(),
            surroundings: Some(request.surroundings.clone()),
            destination: request.origin.destination.clone(),
            protocol: request.operation.protocol,
            action: description.action(),
            effects: description.effects,
            resources: description.resources.to_vec(),
            digest: request.digest,
            shape: request.shape,
            rule: (&*request.decision.rule).into(),
            reason: (&*request.decision.reason).into(),
            policy: request.decision.policy.to_string(),
            groups: [&*terms.groups, escalated].concat(),
            people: terms.people.to_vec(),
            quorum: terms.quorum.max(1),
            reason_required: terms.reason,
            security_key: terms.security_key,
            estimate: terms.blast_radius,
            blast_radius: radius.cloned(),
            otherwise: terms.otherwise,
            windows: terms.windows.map(|limits| Window {
                scope: limits.scope,
                seconds: limits.span.as_secs(),
                at_most: limits.at_most,
            }),
            waits,
            retry: terms.retry.as_secs(),
            votes,
            requested,
            until,
            yours: None,
        }
    }
}

impl Yours {
    /// Of somebody who may answer nothing.
    #[must_use]
    pub fn nothing(why: &str) -> Self {
        Self {
            may: Vec::new(),
            why: why.into(),
            r#override: false,
        }
    }
}

impl Detail {
    /// `summary` with the content of `operation`.
    pub(super) fn new(summary: Summary, operation: &Operation) -> Self {
        Self {
            summary,
            content: Some(Content::new(&operation.content)),
            parameters: operation
                .parameters
                .iter()
                .map(|parameter| Value::new(operation.protocol, parameter))
                .collect(),
            options: operation.options.clone(),
        }
    }

    /// `summary` of a request that has ended; its content is in the session's record.
    pub(super) const fn ended(summary: Summary) -> Self {
        Self {
            summary,
            content: None,
            parameters: Vec::new(),
            options: Vec::new(),
        }
    }
}

impl Content {
    fn new(bytes: &[u8]) -> Self {
        std::str::from_utf8(bytes).map_or_else(
            |_| Self::Hex(hex::encode(bytes)),
            |text| Self::Text(text.to_owned()),
        )
    }
}

impl Value {
    fn new(protocol: Protocol, parameter: &Parameter) -> Self {
        let bytes = parameter.value.as_deref();
        let value = match (protocol, parameter.format, bytes) {
            (_, _, None) => serde_json::Value::Null,
            (Protocol::Postgres, ParameterFormat::Binary, Some(bytes)) => {
                transcript::binary(bytes, parameter.type_oid)
            }
            (_, _, Some(bytes)) => transcript::text(bytes),
        };
        let is_text = bytes.is_none_or(|bytes| value.as_str().map(str::as_bytes) == Some(bytes));
        Self {
            format: parameter.format,
            type_oid: parameter.type_oid,
            value,
            hex: bytes.filter(|_| !is_text).map(hex::encode),
        }
    }
}
