//! Sessions, live and past; one of them as a timeline, which a script can play.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use interceptor_core::{operation::Protocol, record::SessionId};
use serde::Deserialize;
use serde_json::Value;

use super::{Frame, error, render, view};
use crate::{
    console::{
        daemon::Refused,
        people::Session as Person,
        server::{App, SignedIn},
        text::{self, Html, Language, Shown},
    },
    control::{STOPPED, Session, SessionsQuery, with_query},
    journal::{self, Decided},
};

/// Sessions that are listed.
const LISTED_MAX: usize = 200;

/// Largest timeline that is shown, in bytes of records: the command line shows any.
const RECORDS_BYTES_MAX: usize = 64 << 20;

/// Entries of a timeline on one page.
const ENTRIES_MAX: usize = 500;

/// Rows of a result that are shown.
const ROWS_MAX: usize = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    agent: String,
    state: String,
    /// A part of an address or a name.
    text: String,
    /// Words of operations.
    words: String,
    label: String,
    protocol: String,
    class: String,
    rule: String,
    reviewer: String,
}

struct Row {
    id: String,
    agent: Html,
    destination: Html,
    executable: Html,
    started: String,
    ago: String,
    is_live: bool,
    reason: Html,
    operations: String,
    denied: u64,
    held: u64,
}

#[derive(Template)]
#[template(path = "sessions.html")]
struct ListPage<'a> {
    frame: &'a Frame,
    rows: Vec<Row>,
    filters: &'a Filters,
    agents: Vec<String>,
    live: usize,
    /// Of sessions since then all were looked into.
    stopped: Option<String>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    Query(filters): Query<Filters>,
) -> Response {
    let frame = Frame::new(&app, &session, "sessions");
    let given = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
    let asked = SessionsQuery {
        agent: given(&filters.agent).map(Into::into),
        label: given(&filters.label),
        protocol: Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.name() == filters.protocol),
        class: given(&filters.class),
        verdict: match &*filters.state {
            "denied" => Some(Decided::Deny),
            "held" => Some(Decided::Hold),
            _ => None,
        },
        live: match &*filters.state {
            "live" => Some(true),
            "ended" => Some(false),
            _ => None,
        },
        rule: given(&filters.rule).map(Into::into),
        reviewer: given(&filters.reviewer).map(Into::into),
        destination: given(&filters.text).map(Into::into),
        text: given(&filters.words),
        limit: Some(LISTED_MAX),
        ..SessionsQuery::default()
    };
    let path = with_query("/v1/sessions", &asked.pairs());
    let asked = app.daemon.get_with(&session.identity, &path, STOPPED);
    let (sessions, stopped): (Vec<Session>, _) = match asked.await {
        Ok(answer) => answer,
        Err(refused) => return error(&frame, &refused),
    };
    let mut agents: Vec<String> = sessions
        .iter()
        .map(|session| session.agent.to_string())
        .collect();
    agents.sort();
    agents.dedup();
    let live = sessions
        .iter()
        .filter(|session| session.ended.is_none())
        .count();
    let rows = sessions
        .iter()
        .rev()
        .map(|session| Row {
            id: session.id.to_string(),
            agent: text::line(&session.agent),
            destination: text::line(&session.destination),
            executable: text::line(session.executable.as_deref().unwrap_or("?")),
            started: view::time(session.started),
            ago: view::ago(session.started),
            is_live: session.ended.is_none(),
            reason: text::line(session.reason.as_deref().unwrap_or_default()),
            operations: session
                .operations
                .map_or_else(|| "…".to_owned(), |count| count.to_string()),
            denied: session.denied,
            held: session.held,
        })
        .collect();
    render(&ListPage {
        frame: &frame,
        rows,
        filters: &filters,
        agents,
        live,
        stopped,
    })
}

/// Something in a timeline.
struct Entry {
    /// When, as scripts read it, and as people do.
    at: String,
    time: String,
    /// How it looks.
    style: &'static str,
    title: Html,
    detail: Html,
    content: Option<Shown>,
    columns: Vec<Html>,
    rows: Vec<Vec<Html>>,
    more: String,
}

#[derive(Template)]
#[template(path = "session.html")]
struct OnePage<'a> {
    frame: &'a Frame,
    id: String,
    agent: Html,
    destination: Html,
    facts: Vec<(&'static str, Html)>,
    entries: Vec<Entry>,
    left_out: usize,
    is_over: bool,
}

pub(super) async fn one(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    Path(id): Path<String>,
) -> Response {
    let frame = Frame::new(&app, &session, "sessions");
    let read = async {
        let id: SessionId = id
            .parse()
            .map_err(|error: String| Refused::new(StatusCode::NOT_FOUND, &error, ""))?;
        let records = records(
            &app,
            &session,
            &format!("/v1/sessions/{id}"),
            RECORDS_BYTES_MAX,
        )
        .await?;
        Ok::<_, Refused>((id, records))
    };
    let (id, records) = match read.await {
        Ok(read) => read,
        Err(refused) => return error(&frame, &refused),
    };
    let start = records
        .iter()
        .find(|record| record["kind"] == "session_start");
    let start = start.unwrap_or(&Value::Null);
    let word = |value: &Value| text::line(&plain(value));
    let process = &start["process"];
    let facts = vec![
        ("Began", word(&start["time"])),
        ("Executable", word(&process["executable"])),
        ("Command line", {
            let words = process["arguments"].as_array().cloned().unwrap_or_default();
            text::line(&words.iter().map(plain).collect::<Vec<_>>().join(" "))
        }),
        (
            "Process",
            text::line(&format!("{} of user {}", process["pid"], process["uid"])),
        ),
        ("Control group", word(&process["cgroup"])),
    ];
    let mut entries: Vec<Entry> = records.iter().filter_map(entry).collect();
    let left_out = entries.len().saturating_sub(ENTRIES_MAX);
    entries.truncate(ENTRIES_MAX);
    render(&OnePage {
        frame: &frame,
        id: id.to_string(),
        agent: word(&start["agent"]),
        destination: word(&start["destination"]),
        facts,
        entries,
        left_out,
        is_over: records.iter().any(|record| record["kind"] == "session_end"),
    })
}

/// What is recorded at `path` of the control API, a line each, up to `bytes_max` bytes.
///
/// # Errors
/// The daemon's refusal, or that there is more.
pub(super) async fn records(
    app: &App,
    person: &Person,
    path: &str,
    bytes_max: usize,
) -> Result<Vec<Value>, Refused> {
    let identity = Some(&person.identity);
    let response = app
        .daemon
        .send(identity, Method::GET, path, Bytes::new())
        .await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let broken = |what: &str| {
            Refused::new(
                StatusCode::BAD_GATEWAY,
                what,
                "`interceptor sessions show` shows it all",
            )
        };
        let frame = frame.map_err(|error| broken(&error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > bytes_max {
            return Err(broken("this session is too long for a page"));
        }
        whole.extend_from_slice(&data);
    }
    if !status.is_success() {
        let body: crate::control::ErrorBody = serde_json::from_slice(&whole)
            .map_err(|error| Refused::new(StatusCode::BAD_GATEWAY, &error.to_string(), ""))?;
        return Err(Refused::new(status, &body.error, &body.remedy));
    }
    let lines = whole
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "?".to_owned(),
        other => journal::plain(other),
    }
}

/// A record on a timeline; nothing of what belongs to another one.
fn entry(record: &Value) -> Option<Entry> {
    let words = |name: &str| plain(&record[name]);
    let list = |name: &str| {
        let all = record[name]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        all.iter().map(plain).collect::<Vec<_>>().join(", ")
    };
    let number = record["operation"].as_u64().unwrap_or(0);
    let mut entry = Entry {
        at: words("time"),
        time: words("time").get(11..23).unwrap_or_default().to_owned(),
        style: "",
        title: Html::default(),
        detail: Html::default(),
        content: None,
        columns: Vec::new(),
        rows: Vec::new(),
        more: String::new(),
    };
    let (style, title, detail) = match record["kind"].as_str()? {
        "operation" => {
            let language = if record["protocol"] == "postgres" {
                Language::Sql
            } else {
                Language::Plain
            };
            entry.content = Some(text::block(&words("content"), language));
            let parameters = record["parameters"].as_array();
            let values = parameters.map(|all| all.iter().map(plain).collect::<Vec<_>>().join(", "));
            let values = values
                .map(|values| format!("values {values}"))
                .unwrap_or_default();
            (
                "operation",
                format!("#{number} {}", list("actions")),
                values,
            )
        }
        "decision" => {
            let verdict = words("verdict");
            let style = match &*verdict {
                "allow" => "allow",
                "deny" => "deny",
                _ => "hold",
            };
            let observed = if record["enforced"] == false {
                " (only observed)"
            } else {
                ""
            };
            let reason = words("reason");
            let reason = if reason.is_empty() {
                String::new()
            } else {
                format!(": {reason}")
            };
            let mut why = format!("rule {}{reason}", words("rule"));
            for other in record["observed"].as_array().into_iter().flatten() {
                let word = |name: &str| other[name].as_str().unwrap_or_default();
                why.push_str(&format!(
                    " · rule {} would {} it",
                    word("rule"),
                    word("would")
                ));
            }
            (style, format!("{verdict}{observed}"), why)
        }
        "approval" => {
            let step = words("step");
            let by = record["by"]
                .as_str()
                .map(|by| format!(" by {by}"))
                .unwrap_or_default();
            let choice = record["choice"]
                .as_str()
                .map(|choice| format!(": {choice}"))
                .unwrap_or_default();
            let why = ["reason", "why", "cause"]
                .iter()
                .find_map(|name| record[*name].as_str());
            (
                "hold",
                format!("approval {step}{choice}{by}"),
                why.unwrap_or_default().to_owned(),
            )
        }
        "response" => {
            let took = view::elapsed(record["elapsed_ns"].as_u64().unwrap_or(0));
            let status = words("status");
            let tag = record["tag"].as_str().unwrap_or_default();
            let columns = record["columns"].as_array();
            entry.columns = columns
                .map(|all| all.iter().map(|name| text::line(&column(name))).collect())
                .unwrap_or_default();
            if let Some(rows) = record["data"].as_array() {
                let shown = rows.iter().take(ROWS_MAX).filter_map(Value::as_array);
                entry.rows = shown
                    .map(|row| row.iter().map(|value| text::line(&cell(value))).collect())
                    .collect();
                if rows.len() > ROWS_MAX {
                    entry.more = format!(
                        "and {}",
                        view::count((rows.len() - ROWS_MAX) as u64, "more row")
                    );
                }
            }
            if let Some(body) = record.get("body").or_else(|| record.get("head")) {
                entry.content = Some(text::block(&plain(body), Language::Plain));
            }
            let masked = match list("masked") {
                masked if masked.is_empty() => String::new(),
                masked => format!("; masked: {masked}"),
            };
            let rows = record["rows"].as_u64().unwrap_or(0);
            let error = record["message"]
                .as_str()
                .map(|what| format!(" {} {what}", words("code")))
                .unwrap_or_default();
            let style = if status == "error" || status == "refused" {
                "deny"
            } else {
                "answer"
            };
            (
                style,
                format!("{status} {tag}{error}"),
                format!("{}, {took}{masked}", view::count(rows, "row")),
            )
        }
        "session_start" => ("edge", "connected".to_owned(), words("destination")),
        "session_end" => ("edge", "ended".to_owned(), words("reason")),
        "content" => {
            entry.content = record
                .get("body")
                .map(|body| text::block(&plain(body), Language::Plain));
            (
                "operation",
                format!("#{number} sent by {}", words("of")),
                String::new(),
            )
        }
        "event" => {
            let detail = record["detail"].as_object()?;
            let facts: Vec<String> = detail
                .iter()
                .map(|(name, value)| format!("{name} {}", plain(value)))
                .collect();
            ("event", words("name").replace('_', " "), facts.join(", "))
        }
        _ => return None,
    };
    entry.style = style;
    entry.title = text::line(&title);
    entry.detail = text::line(&detail);
    Some(entry)
}

fn column(value: &Value) -> String {
    value.get("name").map_or_else(|| plain(value), plain)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        other => plain(other),
    }
}
