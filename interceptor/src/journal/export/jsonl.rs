//! Records as lines of JSON, for people and other programs. The schema is `docs/export-schema.md`.

use std::{collections::HashMap, io, sync::Arc};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use interceptor_core::{
    operation::{Operation, Parameter, ParameterFormat, Protocol},
    origin::{Destination, Origin},
    protocol::{
        dns,
        postgres::transcript::{self, Transcript},
    },
    record::{
        ApprovalStep, Choice, Consent, Event, Record, ResponseRecord, ResponseStatus,
        SCHEMA_VERSION, SessionId, Timestamp,
    },
    ruling::Verdict,
};
use serde_json::{Map, Value, json};

use crate::journal::{JournalError, Reader};

/// Which records to export; empty means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this session.
    pub session: Option<SessionId>,
    /// Only this agent, by name.
    pub agent: Option<String>,
    /// Nothing before.
    pub since: Option<Timestamp>,
    /// Nothing after.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Whether `record` is asked for.
    #[must_use]
    pub fn takes(&self, record: &Record) -> bool {
        self.is_of(record)
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time <= until)
    }

    /// Whether `record` is of the session and the agent that are asked for.
    fn is_of(&self, record: &Record) -> bool {
        let (session, agent) = (self.session, self.agent.as_deref());
        session.is_none_or(|session| record.session == Some(session))
            && agent.is_none_or(|agent| agent == &*record.agent)
    }
}

/// How much lines say beyond what was recorded at their time, for what is made of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Of a session that began earlier than what is asked for, its start comes before its first line, with `context`.
    pub context: bool,
    /// Responses have the bytes that are on record as well (`wire`), of protocols whose messages are exported as values.
    pub wire: bool,
}

/// Turns records into lines: remembers each session's origin, which digests are made over.
#[derive(Debug, Default)]
pub struct Lines {
    origins: HashMap<SessionId, Arc<Origin>>,
    wire: bool,
}

/// The lines of an export, out of every record of the journal.
#[derive(Debug)]
pub struct Selection {
    lines: Lines,
    filter: Filter,
    context: bool,
    /// Starts of sessions that are asked for, before the time that is; as long as the session runs.
    early: HashMap<SessionId, Value>,
}

impl Selection {
    /// What `filter` takes, in that extent.
    #[must_use]
    pub fn new(filter: Filter, extent: Extent) -> Self {
        Self {
            lines: Lines {
                wire: extent.wire,
                ..Lines::default()
            },
            filter,
            context: extent.context,
            early: HashMap::new(),
        }
    }

    /// Gives the lines that `record`, the next one, comes to, until `each` says that it wants no more; whether it does.
    pub fn take(&mut self, record: &Record, mut each: impl FnMut(Value) -> bool) -> bool {
        // Every record passes through: digests need the starts of sessions.
        let takes = self.filter.takes(record);
        let is_start = matches!(
            record.event,
            Event::SessionStart(_) | Event::DatagramsStart(_)
        );
        if !takes && !is_start {
            self.lines.pass(record);
            if let (Event::SessionEnd(_), Some(session)) = (&record.event, record.session) {
                self.early.remove(&session);
            }
            return true;
        }
        let mut line = self.lines.line(record);
        if takes {
            let early = record
                .session
                .and_then(|session| self.early.remove(&session));
            return early.is_none_or(&mut each) && each(line);
        }
        let since = self.filter.since;
        let is_early = since.is_some_and(|since| record.time < since);
        if let Some(session) = record.session
            && self.context
            && is_early
            && self.filter.is_of(record)
        {
            if let Value::Object(members) = &mut line {
                members.insert("context".to_owned(), true.into());
            }
            self.early.insert(session, line);
        }
        true
    }
}

/// Writes the records that `filter` takes to `out`, a line each.
///
/// # Errors
/// Where the journal can't be read or `out` can't be written.
pub fn export_jsonl(
    reader: &Reader,
    filter: &Filter,
    out: &mut dyn io::Write,
) -> Result<u64, JournalError> {
    let mut selection = Selection::new(filter.clone(), Extent::default());
    let mut count = 0;
    let mut failed = None;
    reader.each(|record| {
        selection.take(&record, |line| {
            count += 1;
            failed = writeln!(out, "{line}").err();
            failed.is_none()
        })
    })?;
    match failed {
        None => Ok(count),
        Some(error) => Err(crate::journal::io_error(
            "writing",
            std::path::Path::new("the export"),
        )(error)),
    }
}

/// One record as an exported object. Digests need [`Lines`], which knows the session's origin.
#[must_use]
pub fn to_json(record: &Record) -> Value {
    Lines::default().line(record)
}

impl Lines {
    /// Takes note of `record` without making a line of it.
    pub(crate) fn pass(&mut self, record: &Record) {
        match (&record.event, record.session) {
            (Event::SessionStart(start) | Event::DatagramsStart(start), Some(session)) => {
                self.origins.insert(session, start.origin.clone());
            }
            (Event::SessionEnd(_), Some(session)) => _ = self.origins.remove(&session),
            _ => {}
        }
    }

    /// One record as an exported object.
    pub fn line(&mut self, record: &Record) -> Value {
        let mut line = Map::new();
        line.insert("v".to_owned(), SCHEMA_VERSION.into());
        line.insert("seq".to_owned(), record.seq.into());
        line.insert("time".to_owned(), record.time.to_string().into());
        line.insert("session".to_owned(), json!(record.session));
        line.insert("agent".to_owned(), record.agent.to_string().into());
        line.insert("kind".to_owned(), record.event.kind().into());
        let facts = match &record.event {
            Event::SessionStart(start) | Event::DatagramsStart(start) => {
                self.pass(record);
                json!({
                    "destination": start.origin.destination,
                    "client": start.client,
                    "labels": start.origin.agent.labels,
                    "process": start.origin.process,
                    "transport": match (&record.event, &start.origin.destination) {
                        (_, Destination::Unix(_)) => "unix",
                        (Event::DatagramsStart(_), _) => "udp",
                        _ => "tcp",
                    },
                })
            }
            Event::Operation(operation) => {
                let origin = record
                    .session
                    .and_then(|session| self.origins.get(&session));
                let mut facts = operation_facts(&operation.operation);
                facts.insert("operation".to_owned(), operation.number.into());
                let digest = origin.map(|origin| operation.operation.digest(origin));
                facts.insert("digest".to_owned(), json!(digest));
                Value::Object(facts)
            }
            Event::Decision(decided) => {
                let decision = &decided.decision;
                json!({
                    "operation": decided.number,
                    "verdict": verdict(&decision.verdict),
                    "enforced": decision.enforced,
                    "rule": decision.rule,
                    "reason": decision.reason,
                    "masked_by": decision.masked_by,
                    "observed": decision.observed,
                    "policy": decision.policy.to_string(),
                })
            }
            Event::Approval(approval) => {
                let mut facts = step(&approval.step);
                facts.insert("approval".to_owned(), json!(approval.approval));
                facts.insert("operation".to_owned(), approval.number.into());
                facts.insert("digest".to_owned(), json!(approval.digest));
                Value::Object(facts)
            }
            Event::Response(response) => {
                let mut facts = response_facts(response);
                let is_bytes = matches!(response.protocol, Protocol::Http | Protocol::Opaque);
                if self.wire && !is_bytes {
                    let wire = json!({
                        "shape": response.shape.as_ref().map(|shape| STANDARD.encode(shape)),
                        "data": STANDARD.encode(response.data.concat()),
                    });
                    facts.insert("wire".to_owned(), wire);
                }
                Value::Object(facts)
            }
            Event::SessionEnd(end) => {
                self.pass(record);
                json!({
                    "reason": end.reason,
                    "operations": end.operations,
                    "bytes_from_client": end.bytes_from_client,
                    "bytes_from_upstream": end.bytes_from_upstream,
                })
            }
            Event::Content(content) => {
                let mut facts = body_facts(&content.data);
                facts.insert("operation".to_owned(), content.number.into());
                facts.insert("of".to_owned(), json!(content.of));
                facts.insert("bytes".to_owned(), content.bytes.into());
                if let Some(digest) = &content.sha256 {
                    facts.insert("digest".to_owned(), json!(digest));
                }
                if let Some(message) = &content.message {
                    facts.insert("message".to_owned(), json!(message.kind));
                    facts.insert("ends".to_owned(), message.ends.into());
                    if !message.masked.is_empty() {
                        facts.insert("masked".to_owned(), json!(message.masked));
                    }
                }
                Value::Object(facts)
            }
            Event::Event(notice) => json!({"name": notice.name, "detail": notice.detail}),
        };
        if let Value::Object(facts) = facts {
            line.extend(facts);
        }
        Value::Object(line)
    }
}

fn operation_facts(operation: &Operation) -> Map<String, Value> {
    let description = &operation.description;
    let resources: Vec<Value> = description
        .resources
        .iter()
        .map(|resource| json!({"kind": resource.kind, "name": resource.to_string(), "touch": resource.touch}))
        .collect();
    let mut facts = Map::new();
    facts.insert("protocol".to_owned(), json!(operation.protocol));
    facts.insert("actions".to_owned(), json!(description.actions));
    facts.insert("effects".to_owned(), json!(description.effects));
    facts.insert("resources".to_owned(), resources.into());
    facts.insert("content".to_owned(), transcript::text(&operation.content));
    if !description.attributes.is_empty() {
        facts.insert("attributes".to_owned(), json!(description.attributes));
    }
    if !operation.parameters.is_empty() {
        let parameters: Vec<Value> = operation.parameters.iter().map(parameter).collect();
        facts.insert("parameters".to_owned(), parameters.into());
    }
    if !operation.options.is_empty() {
        let options: Map<String, Value> = operation
            .options
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value)))
            .collect();
        facts.insert("options".to_owned(), Value::Object(options));
    }
    facts
}

/// A bound value, readable where its type is known.
#[must_use]
pub fn parameter(parameter: &Parameter) -> Value {
    match (&parameter.value, parameter.format) {
        (None, _) => Value::Null,
        (Some(value), ParameterFormat::Text) => transcript::text(value),
        (Some(value), ParameterFormat::Binary) => transcript::binary(value, parameter.type_oid),
    }
}

fn response_facts(response: &ResponseRecord) -> Map<String, Value> {
    let mut facts = Map::new();
    facts.insert("operation".to_owned(), response.number.into());
    let (status, more) = match &response.status {
        ResponseStatus::Continues => ("continues", None),
        ResponseStatus::Complete(tag) => ("complete", Some(("tag", json!(tag)))),
        ResponseStatus::Error { code, message } => {
            facts.insert("code".to_owned(), json!(code));
            ("error", Some(("message", json!(message))))
        }
        ResponseStatus::Refused => ("refused", None),
        ResponseStatus::Skipped => ("skipped", None),
        ResponseStatus::Interrupted => ("interrupted", None),
    };
    facts.insert("status".to_owned(), status.into());
    facts.extend(more.map(|(name, value)| (name.to_owned(), value)));
    facts.insert("rows".to_owned(), response.rows.into());
    facts.insert("bytes".to_owned(), response.bytes.into());
    facts.insert("elapsed_ns".to_owned(), response.elapsed_ns.into());
    if !response.masked.is_empty() {
        facts.insert("masked".to_owned(), json!(response.masked));
    }
    if response.protocol == Protocol::Postgres {
        let mut transcript = Transcript::new(response.shape.as_deref());
        for messages in &response.data {
            transcript.read(messages);
        }
        facts.extend(transcript.finish());
    }
    if response.protocol == Protocol::Http {
        if let Some(head) = &response.shape {
            facts.insert("head".to_owned(), transcript::text(head));
        }
        facts.extend(body_facts(&response.data));
    }
    if response.protocol == Protocol::Dns {
        let dns::Transcript {
            answers,
            notes,
            is_truncated,
        } = dns::Transcript::read(&response.data.concat());
        facts.insert("answers".to_owned(), json!(answers));
        if !notes.is_empty() {
            facts.insert("notes".to_owned(), json!(notes));
        }
        if is_truncated {
            facts.insert("truncated".to_owned(), true.into());
        }
    }
    facts
}

/// Content as text, or in base64 where it is none.
fn body_facts(data: &[Bytes]) -> Map<String, Value> {
    let mut facts = Map::new();
    let body = data.concat();
    if !body.is_empty() {
        facts.insert("body".to_owned(), transcript::text(&body));
    }
    facts
}

fn verdict(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Hold(_) => "hold",
    }
}

/// What a security key signed, as WebAuthn names its parts, in base64url.
fn consented(consent: &Consent) -> Value {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({
        "publicKey": text(&consent.public_key),
        "clientDataJSON": text(&consent.client_data),
        "authenticatorData": text(&consent.authenticator_data),
        "signature": text(&consent.signature),
    })
}

fn step(step: &ApprovalStep) -> Map<String, Value> {
    let facts = match step {
        ApprovalStep::Requested { until, shape, .. } => {
            json!({"step": "requested", "until": until.to_string(), "shape": shape})
        }
        ApprovalStep::Estimated { radius } => {
            json!({"step": "estimated", "blast_radius": radius})
        }
        ApprovalStep::Escalated { groups } => json!({"step": "escalated", "groups": groups}),
        ApprovalStep::Voted {
            by,
            uid,
            choice,
            reason,
            window,
            consent,
        } => {
            let approve = *choice == Choice::Approve;
            let consent = consent.as_deref().map(consented);
            json!({"step": "voted", "by": by, "uid": uid, "choice": choice, "approve": approve, "reason": reason, "window": window, "consent": consent})
        }
        ApprovalStep::Left { why } => json!({"step": "left", "why": why}),
        ApprovalStep::Resumed => json!({"step": "resumed"}),
        ApprovalStep::Approved { window } => json!({"step": "approved", "window": window}),
        ApprovalStep::Overridden { by, reason } => {
            json!({"step": "overridden", "by": by, "reason": reason})
        }
        ApprovalStep::Unopposed => json!({"step": "unopposed"}),
        ApprovalStep::Admitted => json!({"step": "admitted"}),
        ApprovalStep::Revoked { by, reason } => {
            json!({"step": "revoked", "by": by, "reason": reason})
        }
        ApprovalStep::Refused { cause } => json!({"step": "refused", "cause": cause}),
        ApprovalStep::Withdrawn { why } => json!({"step": "withdrawn", "why": why}),
    };
    match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}
