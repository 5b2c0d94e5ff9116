//! OCSF events, a line of JSON each: one an operation, and one each for what sessions and approvals come to.
//!
//! <https://schema.ocsf.io>, version 1.8.0, with its profiles `host` (whose process it was) and `security_control` (what
//! was decided). The class goes by the protocol. What OCSF has no place for stands in `unmapped`.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use interceptor_core::record::SCHEMA_VERSION;
use serde_json::{Map, Value, json};

use super::{
    Form,
    deed::{Deed, Deeds, Kept, Session},
    line::{bytes, get, list, number, plain, text, texts, time},
    message::{field, parts},
};

/// Writes exported lines as OCSF events.
#[derive(Debug)]
pub struct Ocsf {
    deeds: Deeds,
}

impl Default for Ocsf {
    fn default() -> Self {
        // Of bodies what a refusal of ours says: it is recorded without a head.
        let kept = Kept {
            rows_max: 0,
            body_bytes_max: 4 << 10,
        };
        Self {
            deeds: Deeds::new(kept),
        }
    }
}

/// The version of OCSF that events are written by.
const VERSION: &str = "1.8.0";

/// A class of events, with the category that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    uid: u64,
    name: &'static str,
    category_uid: u64,
    category: &'static str,
}

const NETWORK: Class = Class {
    uid: 4_001,
    name: "Network Activity",
    category_uid: 4,
    category: "Network Activity",
};
const HTTP: Class = Class {
    uid: 4_002,
    name: "HTTP Activity",
    ..NETWORK
};
const DNS: Class = Class {
    uid: 4_003,
    name: "DNS Activity",
    ..NETWORK
};
const API: Class = Class {
    uid: 6_003,
    name: "API Activity",
    category_uid: 6,
    category: "Application Activity",
};
const DATASTORE: Class = Class {
    uid: 6_005,
    name: "Datastore Activity",
    ..API
};

/// A number of an enumeration with its word.
type Named = (u64, &'static str);

const OTHER: u64 = 99;

impl Form for Ocsf {
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64> {
        let event = match text(&line, "kind") {
            "session_start" if get(&line, "context") != true => {
                let session = Session {
                    start: line.clone(),
                    ..Session::default()
                };
                Some(opened(&line, &session))
            }
            "session_end" => Some(closed(&line, &self.deeds.session(&line))),
            "approval" => Some(approval(&line, &self.deeds.session(&line))),
            _ => None,
        };
        let is_end = text(&line, "kind") == "session_end";
        let mut events: Vec<Value> = self.deeds.take(line).iter().map(operation).collect();
        // What a session leaves open was before its end.
        let at = if is_end { events.len() } else { 0 };
        if let Some(event) = event {
            events.insert(at, event);
        }
        write(&events, out)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        let events: Vec<Value> = self.deeds.finish().iter().map(operation).collect();
        write(&events, out)
    }
}

fn write(events: &[Value], out: &mut dyn Write) -> io::Result<u64> {
    for event in events {
        writeln!(out, "{event}")?;
    }
    Ok(events.len() as u64)
}

/// What all events have.
fn base(line: &Value, session: &Session, class: Class, activity: Named) -> Map<String, Value> {
    let at = time(line).0 / 1_000_000;
    let start = &session.start;
    let labels: Vec<String> = get(start, "labels")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", plain(value)))
        .collect();
    let mut metadata = json!({
        "version": VERSION,
        "product": {"name": "interceptor", "vendor_name": "interceptor", "version": env!("CARGO_PKG_VERSION")},
        "profiles": ["host", "security_control"],
        "log_name": "interceptor journal",
        "log_version": SCHEMA_VERSION.to_string(),
        "uid": number(line, "seq").to_string(),
        "sequence": number(line, "seq"),
        "original_time": text(line, "time"),
        "event_code": text(line, "kind"),
    });
    if !text(line, "session").is_empty() {
        set(
            &mut metadata,
            "correlation_uid",
            text(line, "session").into(),
        );
    }
    if !labels.is_empty() {
        set(&mut metadata, "labels", labels.into());
    }
    let mut event = object(json!({
        "class_uid": class.uid,
        "class_name": class.name,
        "category_uid": class.category_uid,
        "category_name": class.category,
        "activity_id": activity.0,
        "activity_name": activity.1,
        "type_uid": class.uid * 100 + activity.0,
        "type_name": format!("{}: {}", class.name, activity.1),
        "time": at,
        "severity_id": 1,
        "severity": "Informational",
        "metadata": metadata,
        "actor": actor(text(line, "agent"), session),
        "src_endpoint": source(start),
        "unmapped": {"agent": text(line, "agent")},
    }));
    let destination = text(start, "destination");
    if !destination.is_empty() {
        event.insert("dst_endpoint".to_owned(), endpoint(destination));
    }
    event
}

/// The agent's process, and the agent as what started it.
fn actor(agent: &str, session: &Session) -> Value {
    let mut actor = json!({"app_name": agent});
    let process = get(&session.start, "process");
    if process.is_object() {
        let arguments = texts(process, "arguments").join(" ");
        let path = text(process, "executable");
        let name = path.rsplit('/').next().unwrap_or(path);
        let mut shown = json!({
            "pid": number(process, "pid"),
            "user": {"uid": number(process, "uid").to_string()},
        });
        if !arguments.is_empty() {
            set(&mut shown, "cmd_line", arguments.into());
        }
        if !name.is_empty() {
            set(&mut shown, "name", name.into());
            // 1: a regular file.
            set(
                &mut shown,
                "file",
                json!({"name": name, "path": path, "type_id": 1}),
            );
        }
        set(&mut actor, "process", shown);
    }
    if !session.user.is_empty() {
        set(&mut actor, "user", json!({"name": session.user}));
    }
    actor
}

/// Where the agent's side of a connection is.
fn source(start: &Value) -> Value {
    match text(start, "client") {
        "" => json!({"name": "agent"}),
        client => endpoint(client),
    }
}

/// An address with its port, or what else is connected to.
fn endpoint(text: &str) -> Value {
    match text.parse::<SocketAddr>() {
        Ok(address) => json!({"ip": address.ip().to_string(), "port": address.port()}),
        Err(_) => json!({"name": text}),
    }
}

/// How a connection is made.
fn connection(line: &Value, start: &Value) -> Value {
    let address = text(start, "destination").parse::<SocketAddr>().ok();
    let (name, protocol) = match text(start, "transport") {
        "udp" => ("udp", 17),
        "unix" => ("unix", -1),
        _ => ("tcp", 6),
    };
    // Local, or outbound.
    let is_local = address.is_none_or(|address| address.ip().to_canonical().is_loopback());
    let mut shown = json!({
        "direction_id": if is_local { 4 } else { 2 },
        "protocol_name": name,
        "protocol_num": protocol,
        "uid": text(line, "session"),
    });
    if let Some(address) = address {
        let version = if address.is_ipv4() { 4 } else { 6 };
        set(&mut shown, "protocol_ver_id", version.into());
    }
    shown
}

fn opened(line: &Value, session: &Session) -> Value {
    let mut event = base(line, session, NETWORK, (1, "Open"));
    event.insert("connection_info".to_owned(), connection(line, line));
    event.insert(
        "unmapped".to_owned(),
        json!({
            "agent": text(line, "agent"),
            "cgroup": text(get(line, "process"), "cgroup"),
        }),
    );
    Value::Object(event)
}

fn closed(line: &Value, session: &Session) -> Value {
    let mut event = base(line, session, NETWORK, (2, "Close"));
    event.insert(
        "connection_info".to_owned(),
        connection(line, &session.start),
    );
    let (sent, received) = (
        number(line, "bytes_from_client"),
        number(line, "bytes_from_upstream"),
    );
    let traffic = json!({"bytes_out": sent, "bytes_in": received, "bytes": sent + received});
    event.insert("traffic".to_owned(), traffic);
    event.insert("status_detail".to_owned(), text(line, "reason").into());
    if !session.start.is_null() {
        let began = time(&session.start).0 / 1_000_000;
        let ended = time(line).0 / 1_000_000;
        event.insert("start_time".to_owned(), began.into());
        event.insert("end_time".to_owned(), ended.into());
        event.insert("duration".to_owned(), ended.saturating_sub(began).into());
    }
    event.insert(
        "unmapped".to_owned(),
        json!({
            "agent": text(line, "agent"),
            "operations": number(line, "operations"),
        }),
    );
    Value::Object(event)
}

/// A step of an approval: something that was asked of us, by the agent's operation or by a person.
fn approval(line: &Value, session: &Session) -> Value {
    let step = text(line, "step");
    let activity = match step {
        "requested" => (1, "Create"),
        "withdrawn" | "revoked" => (4, "Delete"),
        _ => (3, "Update"),
    };
    let mut event = base(line, session, API, activity);
    let (action, disposition): (Named, Named) = match step {
        "approved" | "unopposed" | "admitted" => ((1, "Allowed"), (8, "Approved")),
        "overridden" => ((1, "Allowed"), (8, "Approved")),
        "refused" => ((2, "Denied"), (25, "Rejected")),
        "revoked" => ((2, "Denied"), (24, "Access Revoked")),
        "withdrawn" | "left" => ((OTHER, "Ended"), (16, "No Action")),
        _ => ((OTHER, "Held"), (14, "Delayed")),
    };
    control(&mut event, action, disposition);
    let severity = match step {
        // Break-glass.
        "overridden" => (4, "High"),
        "refused" | "revoked" => (3, "Medium"),
        _ => (2, "Low"),
    };
    severe(&mut event, severity);
    let by = text(line, "by");
    if !by.is_empty() {
        let mut person = json!({"name": by});
        if let Some(uid) = get(line, "uid").as_u64() {
            set(&mut person, "uid", uid.to_string().into());
        }
        event.insert("actor".to_owned(), json!({"user": person}));
        event.insert("src_endpoint".to_owned(), json!({"name": "reviewer"}));
    }
    let api = json!({"operation": format!("approval {step}"), "service": {"name": "interceptor"}});
    event.insert("api".to_owned(), api);
    let mut unmapped = line.clone();
    if let Value::Object(members) = &mut unmapped {
        for name in ["v", "seq", "time", "kind"] {
            members.remove(name);
        }
    }
    event.insert("unmapped".to_owned(), unmapped);
    let reason = ["reason", "why", "cause"]
        .map(|name| plain(get(line, name)))
        .into_iter()
        .find(|reason| !reason.is_empty());
    if let Some(reason) = reason {
        event.insert("status_detail".to_owned(), reason.into());
    }
    Value::Object(event)
}

fn operation(deed: &Deed) -> Value {
    let line = &deed.operation;
    let mut event = match text(line, "protocol") {
        "postgres" => datastore(deed),
        "http" => http(deed),
        "dns" => dns(deed),
        _ => network(deed),
    };
    decided(&mut event, deed);
    answered(&mut event, deed);
    let unmapped = event.entry("unmapped").or_insert_with(|| json!({}));
    let resources: Vec<Value> = list(line, "resources").cloned().collect();
    let masked: Vec<&String> = deed.answer.masked.iter().collect();
    let facts = [
        ("operation", get(line, "operation").clone()),
        ("protocol", get(line, "protocol").clone()),
        ("actions", get(line, "actions").clone()),
        ("effects", get(line, "effects").clone()),
        ("resources", resources.into()),
        ("digest", get(line, "digest").clone()),
        ("attributes", get(line, "attributes").clone()),
        ("parameters", get(line, "parameters").clone()),
        ("options", get(line, "options").clone()),
        ("masked", json!(masked)),
        ("rows", deed.answer.rows.into()),
        ("masked_by", get(&deed.decision, "masked_by").clone()),
        ("observed", get(&deed.decision, "observed").clone()),
    ];
    for (name, fact) in facts {
        if !fact.is_null() {
            set(unmapped, name, fact);
        }
    }
    let actions = deed.actions();
    event.insert("message".to_owned(), actions.into());
    Value::Object(event)
}

fn datastore(deed: &Deed) -> Map<String, Value> {
    let line = &deed.operation;
    let activity = activity_of_statement(line);
    let mut event = base(line, &deed.session, DATASTORE, activity);
    let database = match &*deed.session.database {
        "" => "unknown",
        name => name,
    };
    event.insert("type_id".to_owned(), 1.into());
    event.insert("type".to_owned(), "Database".into());
    let database = json!({"name": database, "type_id": 1, "type": "Relational"});
    event.insert("database".to_owned(), database);
    let tables: Vec<&str> = list(line, "resources")
        .filter(|resource| text(resource, "kind") == "table")
        .map(|resource| text(resource, "name"))
        .collect();
    // OCSF has a place for one.
    if let [table] = tables[..] {
        event.insert("table".to_owned(), json!({"name": table}));
    }
    let statement = plain(get(line, "content"));
    let query = json!({
        "uid": plain(get(line, "digest")),
        "query_string": statement,
        "bytes": bytes(get(line, "content")).len(),
        "query_time": time(line).0 / 1_000_000,
    });
    event.insert("query_info".to_owned(), query);
    event
}

/// What of OCSF's activities on data a statement is; of several, the first that changes something.
fn activity_of_statement(line: &Value) -> Named {
    let of = |action: &str| -> Option<Named> {
        let verb = action.split(' ').next().unwrap_or(action);
        Some(match verb {
            "UPDATE" | "ALTER" | "MERGE" => (2, "Update"),
            "CONNECT" | "STARTUP" => (3, "Connect"),
            "INSERT" => (5, "Write"),
            "CREATE" => (6, "Create"),
            "DELETE" | "DROP" | "TRUNCATE" => (7, "Delete"),
            "SELECT" | "VALUES" | "TABLE" | "FETCH" => (4, "Query"),
            _ => return None,
        })
    };
    let known: Vec<Named> = texts(line, "actions").into_iter().filter_map(of).collect();
    let changes = known.iter().find(|(id, _)| *id != 4);
    if let Some(activity) = changes.or(known.first()) {
        return *activity;
    }
    let effects = texts(line, "effects");
    match (effects.contains(&"write"), effects.as_slice()) {
        (true, _) => (5, "Write"),
        (false, ["read"]) => (1, "Read"),
        _ => (OTHER, "Other"),
    }
}

fn http(deed: &Deed) -> Map<String, Value> {
    let line = &deed.operation;
    let request = bytes(get(line, "content"));
    let (first, fields, body) = parts(&request);
    let mut words = first.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or("/"),
    );
    let version = words.next().unwrap_or("HTTP/1.1");
    let activity = match method {
        "CONNECT" => (1, "Connect"),
        "DELETE" => (2, "Delete"),
        "GET" => (3, "Get"),
        "HEAD" => (4, "Head"),
        "OPTIONS" => (5, "Options"),
        "POST" => (6, "Post"),
        "PUT" => (7, "Put"),
        "TRACE" => (8, "Trace"),
        "PATCH" => (9, "Patch"),
        _ => (OTHER, "Other"),
    };
    let mut event = base(line, &deed.session, HTTP, activity);
    event.insert(
        "connection_info".to_owned(),
        connection(line, &deed.session.start),
    );
    let authority = field(&fields, ":authority").or_else(|| field(&fields, "host"));
    let authority = authority.unwrap_or_else(|| deed.attribute("http.host"));
    let scheme = match deed.attribute("http.scheme") {
        "" => "http",
        scheme => scheme,
    };
    let is_path = target.starts_with('/') || target == "*";
    let whole = if is_path {
        format!("{scheme}://{authority}{target}")
    } else {
        target.to_owned()
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut url = json!({"url_string": whole, "scheme": scheme, "path": path});
    let host = deed.attribute("http.host");
    if !host.is_empty() {
        set(&mut url, "hostname", host.into());
    }
    if !query.is_empty() {
        set(&mut url, "query_string", query.into());
    }
    let mut asked = json!({
        "url": url,
        "version": version.strip_prefix("HTTP/").unwrap_or(version),
        "http_headers": headers(&fields),
        "body_length": body.len() as u64 + deed.sent.bytes,
    });
    if activity.0 != OTHER {
        set(&mut asked, "http_method", method.into());
    }
    if let Some(agent) = field(&fields, "user-agent") {
        set(&mut asked, "user_agent", agent.into());
    }
    event.insert("http_request".to_owned(), asked);
    let head = bytes(&deed.answer.head);
    let (first, fields, _) = parts(&head);
    let code = text(&deed.answer.last, "tag").parse::<u64>().ok();
    let code = code.or_else(|| first.split(' ').nth(1)?.parse().ok());
    let refused = || {
        let problem: Value = serde_json::from_slice(&deed.answer.body.first).ok()?;
        let status = get(&problem, "status").as_u64();
        status.filter(|_| deed.status() == "refused")
    };
    let code = code.or_else(refused);
    if let Some(code) = code {
        let mut response = json!({
            "code": code,
            "http_headers": headers(&fields),
            "body_length": deed.answer.bytes,
            "latency": deed.answer.elapsed_ns / 1_000_000,
        });
        if let Some(kind) = field(&fields, "content-type") {
            set(&mut response, "content_type", kind.into());
        }
        if let Some(reason) = first
            .splitn(3, ' ')
            .nth(2)
            .filter(|reason| !reason.is_empty())
        {
            set(&mut response, "status", reason.into());
        }
        event.insert("http_response".to_owned(), response);
    }
    event
}

fn headers(fields: &[(String, String)]) -> Vec<Value> {
    fields
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect()
}

fn dns(deed: &Deed) -> Map<String, Value> {
    let line = &deed.operation;
    let is_answered = !deed.answer.last.is_null();
    let activity = if is_answered {
        (6, "Traffic")
    } else {
        (1, "Query")
    };
    let mut event = base(line, &deed.session, DNS, activity);
    event.insert("query_time".to_owned(), (time(line).0 / 1_000_000).into());
    let action = deed.actions();
    let opcode: Named = match &*action {
        "QUERY" | "AXFR" | "IXFR" => (0, "Query"),
        "STATUS" => (2, "Status"),
        "NOTIFY" => (4, "Notify"),
        "UPDATE" => (5, "Update"),
        _ => (OTHER, "Other"),
    };
    event.insert(
        "query".to_owned(),
        json!({
            "hostname": deed.attribute("dns.name"),
            "type": deed.attribute("dns.type"),
            "class": deed.attribute("dns.class"),
            "opcode_id": opcode.0,
            "opcode": opcode.1,
        }),
    );
    if !is_answered {
        return event;
    }
    let answers: Vec<Value> = deed.answer.answers.iter().filter_map(record).collect();
    event.insert("answers".to_owned(), answers.into());
    event.insert(
        "response_time".to_owned(),
        (time(&deed.answer.last).0 / 1_000_000).into(),
    );
    let code = match text(&deed.answer.last, "tag") {
        "" => text(&deed.answer.last, "code"),
        tag => tag,
    };
    let rcode: Option<Named> = match code {
        "NOERROR" => Some((0, "NoError")),
        "FORMERR" => Some((1, "FormError")),
        "SERVFAIL" => Some((2, "ServError")),
        "NXDOMAIN" => Some((3, "NXDomain")),
        "NOTIMP" => Some((4, "NotImp")),
        "REFUSED" => Some((5, "Refused")),
        "YXDOMAIN" => Some((6, "YXDomain")),
        "YXRRSET" => Some((7, "YXRRSet")),
        "NXRRSET" => Some((8, "NXRRSet")),
        "NOTAUTH" => Some((9, "NotAuth")),
        "NOTZONE" => Some((10, "NotZone")),
        "" => None,
        _ => Some((OTHER, "Other")),
    };
    if let Some((id, name)) = rcode {
        event.insert("rcode_id".to_owned(), id.into());
        event.insert("rcode".to_owned(), name.into());
    }
    event
}

/// `www.example.com. 300 A 192.0.2.1`, which names a class where it isn't IN.
fn record(line: &Value) -> Option<Value> {
    let mut words = line.as_str()?.splitn(3, ' ');
    let (_, ttl, rest) = (words.next()?, words.next()?, words.next()?);
    let ttl: u64 = ttl.parse().ok()?;
    let (first, behind) = rest.split_once(' ')?;
    let names_class = matches!(first, "CH" | "HS" | "NONE" | "ANY") || first.starts_with("CLASS");
    let (class, kind, data) = match behind.split_once(' ') {
        Some((kind, data)) if names_class => (first, kind, data),
        _ => ("IN", first, behind),
    };
    Some(json!({"ttl": ttl, "class": class, "type": kind, "rdata": data}))
}

fn network(deed: &Deed) -> Map<String, Value> {
    let line = &deed.operation;
    let mut event = base(line, &deed.session, NETWORK, (6, "Traffic"));
    event.insert(
        "connection_info".to_owned(),
        connection(line, &deed.session.start),
    );
    let sent = bytes(get(line, "content")).len() as u64 + deed.sent.bytes;
    let received = deed.answer.bytes;
    let traffic = json!({"bytes_out": sent, "bytes_in": received, "bytes": sent + received});
    event.insert("traffic".to_owned(), traffic);
    event
}

/// What was decided, as the profile `security_control` says it.
fn decided(event: &mut Map<String, Value>, deed: &Deed) {
    let decision = &deed.decision;
    if decision.is_null() {
        return;
    }
    let is_enforced = get(decision, "enforced") != false;
    let (outcome, by) = deed.approval();
    let (action, disposition, severity): (Named, Named, Named) =
        match (text(decision, "verdict"), is_enforced) {
            ("allow", _) => ((1, "Allowed"), (1, "Allowed"), (1, "Informational")),
            (_, false) => ((3, "Observed"), (17, "Logged"), (2, "Low")),
            ("deny", _) => ((2, "Denied"), (2, "Blocked"), (3, "Medium")),
            _ => match &*outcome {
                "approved" | "unopposed" | "admitted" => {
                    ((1, "Allowed"), (8, "Approved"), (2, "Low"))
                }
                "overridden" => ((1, "Allowed"), (8, "Approved"), (4, "High")),
                "refused" => ((2, "Denied"), (25, "Rejected"), (3, "Medium")),
                "withdrawn" | "left" => ((OTHER, "Ended"), (16, "No Action"), (2, "Low")),
                _ => ((OTHER, "Held"), (14, "Delayed"), (2, "Low")),
            },
        };
    control(event, action, disposition);
    severe(event, severity);
    let mut rule = json!({"name": text(decision, "rule")});
    if !text(decision, "reason").is_empty() {
        set(&mut rule, "desc", text(decision, "reason").into());
    }
    event.insert("firewall_rule".to_owned(), rule);
    let policy = json!({"uid": text(decision, "policy"), "is_applied": is_enforced});
    event.insert("policy".to_owned(), policy);
    if !deed.approvals.is_empty() {
        let id = deed.approvals.first().map(|line| text(line, "approval"));
        let unmapped = event.entry("unmapped").or_insert_with(|| json!({}));
        let approval = json!({"id": id, "outcome": outcome, "answered_by": by});
        set(unmapped, "approval", approval);
    }
}

fn control(event: &mut Map<String, Value>, action: Named, disposition: Named) {
    event.insert("action_id".to_owned(), action.0.into());
    event.insert("action".to_owned(), action.1.into());
    event.insert("disposition_id".to_owned(), disposition.0.into());
    event.insert("disposition".to_owned(), disposition.1.into());
}

fn severe(event: &mut Map<String, Value>, severity: Named) {
    event.insert("severity_id".to_owned(), severity.0.into());
    event.insert("severity".to_owned(), severity.1.into());
}

/// How it ended.
fn answered(event: &mut Map<String, Value>, deed: &Deed) {
    let last = &deed.answer.last;
    let status: Named = match deed.status() {
        "complete" => (1, "Success"),
        "error" | "refused" | "skipped" | "interrupted" => (2, "Failure"),
        _ => (0, "Unknown"),
    };
    event.insert("status_id".to_owned(), status.0.into());
    event.insert("status".to_owned(), status.1.into());
    if last.is_null() {
        return;
    }
    let began = time(&deed.operation).0 / 1_000_000;
    event.insert("start_time".to_owned(), began.into());
    event.insert("end_time".to_owned(), (time(last).0 / 1_000_000).into());
    event.insert(
        "duration".to_owned(),
        (deed.answer.elapsed_ns / 1_000_000).into(),
    );
    let code = match text(last, "code") {
        "" => text(last, "tag"),
        code => code,
    };
    if !code.is_empty() {
        event.insert("status_code".to_owned(), code.into());
    }
    let detail = match text(last, "message") {
        "" if status.0 == 2 => deed.status(),
        message => message,
    };
    if !detail.is_empty() {
        event.insert("status_detail".to_owned(), detail.into());
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn set(value: &mut Value, name: &str, member: Value) {
    if let Value::Object(members) = value {
        members.insert(name.to_owned(), member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::export::{sample, written};

    fn events() -> Vec<Value> {
        let (count, out) = written(&mut Ocsf::default(), &sample());
        let out = String::from_utf8(out).unwrap();
        let events: Vec<Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(events.len() as u64, count);
        events
    }

    fn of_type(events: &[Value], uid: u64) -> Value {
        let found: Vec<_> = events
            .iter()
            .filter(|event| event["type_uid"] == uid)
            .collect();
        assert_eq!(found.len(), 1, "{uid}");
        found[0].clone()
    }

    #[test]
    fn each_protocol_has_its_class() {
        let events = events();
        assert_eq!(events.len(), 4 + 2 + 3 + 4);
        for event in &events {
            let (class, activity) = (&event["class_uid"], &event["activity_id"]);
            let expected = class.as_u64().unwrap() * 100 + activity.as_u64().unwrap();
            assert_eq!(event["type_uid"], expected);
            assert_eq!(event["metadata"]["version"], "1.8.0");
        }
        let statement = of_type(&events, 600_507);
        assert_eq!(statement["time"], 1_795_212_422_123_u64);
        assert_eq!(statement["table"]["name"], "shop.orders");
        assert_eq!(statement["database"]["name"], "shop");
        assert_eq!(statement["actor"]["user"]["name"], "app");
        assert_eq!(statement["actor"]["process"]["pid"], 7);
        assert_eq!(
            statement["dst_endpoint"],
            json!({"ip": "192.0.2.5", "port": 5432})
        );
        assert_eq!(
            (&statement["action_id"], &statement["disposition_id"]),
            (&1.into(), &8.into())
        );
        assert_eq!(statement["unmapped"]["approval"]["answered_by"], "alice");
        assert_eq!(statement["unmapped"]["masked"], json!(["email"]));
        assert_eq!(statement["metadata"]["labels"], json!(["team=x"]));
        let request = of_type(&events, 400_203);
        assert_eq!(
            request["http_request"]["url"]["url_string"],
            "https://x.example/a?b=c"
        );
        assert_eq!(request["http_request"]["user_agent"], "u");
        assert_eq!(request["http_response"]["code"], 200);
        assert_eq!(request["http_response"]["body_length"], 5);
        let question = of_type(&events, 400_306);
        assert_eq!(question["query"]["hostname"], "www.example");
        assert_eq!(
            question["answers"],
            json!([{"ttl": 300, "class": "IN", "type": "A", "rdata": "192.0.2.7"}])
        );
        // A rule that only observes.
        assert_eq!(
            (&question["action_id"], &question["severity_id"]),
            (&3.into(), &2.into())
        );
        let bytes = of_type(&events, 400_106);
        assert_eq!(bytes["dst_endpoint"]["name"], "unix:/run/docker.sock");
        assert_eq!(bytes["status_id"], 0);
    }

    #[test]
    fn what_people_answer_is_theirs() {
        let events = events();
        let votes: Vec<_> = events
            .iter()
            .filter(|event| event["api"]["operation"] == "approval voted")
            .collect();
        assert_eq!(votes.len(), 1);
        assert_eq!(
            votes[0]["actor"],
            json!({"user": {"name": "alice", "uid": "0"}})
        );
        assert_eq!(votes[0]["status_detail"], "fine");
        assert_eq!(votes[0]["unmapped"]["digest"], "sha256:00");
    }

    #[test]
    fn records_of_other_classes_are_read_too() {
        let txt = json!("version.bind. 0 CH TXT \"9.18 x\"");
        assert_eq!(
            record(&txt).unwrap(),
            json!({"ttl": 0, "class": "CH", "type": "TXT", "rdata": "\"9.18 x\""})
        );
        let mx = json!("example. 60 MX 10 mail.example.");
        assert_eq!(record(&mx).unwrap()["rdata"], "10 mail.example.");
    }
}
