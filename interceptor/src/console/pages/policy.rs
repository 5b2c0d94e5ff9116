//! The policy in force: as it is written, what its rules have decided, what it says of something, and what it would have
//! done.

use std::sync::Arc;

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    http::HeaderMap,
    response::Response,
};
use interceptor_core::{
    policy::{Attempt, Given, Policy, Standing, Would},
    record::Timestamp,
};
use serde::Deserialize;

use super::{Frame, done, error, is_own_form, render, view};
use crate::{
    clock,
    console::{
        daemon::Refused,
        server::{App, SignedIn},
        text::{self, Html},
    },
    control::{PolicyStatus, PolicyText},
    past::Observed,
    policies,
};

/// How far the view of what would have happened looks back, in nanoseconds: a week.
const OBSERVED_NS: u64 = 7 * 86_400 * 1_000_000_000;

/// What is tried.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tried {
    agent: String,
    destination: String,
    protocol: String,
    statement: String,
}

/// What the policy says of it.
struct Said {
    answer: &'static str,
    style: &'static str,
    rule: Html,
    reason: Html,
    /// Each rule, its part, and why.
    rules: Vec<(Html, &'static str, Html)>,
}

#[derive(Template)]
#[template(path = "policy.html")]
struct ShowPage<'a> {
    frame: &'a Frame,
    status: &'a PolicyStatus,
    loaded: String,
    broken: Html,
    enforced: bool,
    files: Vec<(Html, Vec<Html>)>,
    hits: Vec<(Html, u64)>,
    tried: &'a Tried,
    said: Option<Result<Said, Html>>,
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    Query(tried): Query<Tried>,
) -> Response {
    let frame = Frame::new(&app, &session, "policy");
    let policy: PolicyText = match app.daemon.get(&session.identity, "/v1/policy").await {
        Ok(policy) => policy,
        Err(refused) => return error(&frame, &refused),
    };
    let files = policy.files.iter().map(|file| {
        let lines = file.text.lines().map(text::line).collect();
        (text::line(&file.path), lines)
    });
    let files = files.collect();
    let said = (!tried.statement.is_empty()).then(|| try_out(&policy, &tried));
    let mut hits: Vec<_> = policy
        .hits
        .iter()
        .map(|(rule, hits)| (text::line(rule), *hits))
        .collect();
    hits.sort_by_key(|(_, hits)| std::cmp::Reverse(*hits));
    render(&ShowPage {
        frame: &frame,
        status: &policy.status,
        loaded: view::time(policy.status.loaded),
        broken: text::line(policy.status.broken.as_deref().unwrap_or_default()),
        enforced: policy.enforced,
        files,
        hits,
        tried: &tried,
        said: said.map(|said| said.map_err(|why| text::line(&why))),
    })
}

/// Asks the policy, here: whoever has it parsed is the process that may do nothing.
fn try_out(policy: &PolicyText, tried: &Tried) -> Result<Said, String> {
    let files: Vec<(String, String)> = policy
        .files
        .iter()
        .map(|file| (file.path.clone(), file.text.clone()))
        .collect();
    let parsed = Policy::parse(&files).map_err(|error| error.to_string())?;
    let some = |text: &String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let given = Given {
        agent: some(&tried.agent),
        destination: some(&tried.destination),
        protocol: some(&tried.protocol),
        statement: Some(tried.statement.clone()),
        ..Given::default()
    };
    let (origin, operation) = Attempt::new(&given)?.operation(&policies::describer())?;
    let explained = Policy::explain(&Arc::new(parsed), &operation, &origin, clock::now());
    let rules = explained.rules.iter().map(|rule| {
        let part = match rule.standing {
            Standing::Decides => "decides",
            Standing::Outranked => "outranked",
            Standing::Observes => "only observes",
            Standing::Unmet => "doesn't match",
            Standing::NotAsked => "isn't asked",
        };
        (text::line(&rule.id), part, text::line(&rule.why))
    });
    let answer = explained.answer.name();
    Ok(Said {
        answer,
        style: match answer {
            "allow" => "allow",
            "hold" => "hold",
            _ => "deny",
        },
        rule: text::line(&explained.rule),
        reason: text::line(&explained.reason),
        rules: rules.collect(),
    })
}

/// What one rule would have done.
struct Row {
    rule: Html,
    would: &'static str,
    style: &'static str,
    operations: u64,
    agents: Html,
    last: String,
    session: String,
    example: Html,
}

#[derive(Template)]
#[template(path = "observed.html")]
struct ObservedPage<'a> {
    frame: &'a Frame,
    operations: u64,
    stopped: u64,
    rows: Vec<Row>,
}

/// What would have happened in the last week, had what only observes been enforced.
pub(super) async fn observed(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
) -> Response {
    let frame = Frame::new(&app, &session, "policy");
    let since = Timestamp(clock::now().0.saturating_sub(OBSERVED_NS));
    let path = format!("/v1/policy/observed?since={since}");
    let observed: Observed = match app.daemon.get(&session.identity, &path).await {
        Ok(observed) => observed,
        Err(refused) => return error(&frame, &refused),
    };
    let rows = observed.rules.iter().map(|rule| {
        let (would, style) = match rule.would {
            Would::Deny => ("denied", "deny"),
            Would::Hold => ("held", "hold"),
            Would::Mask => ("masked", "allow"),
        };
        let agents = rule
            .agents
            .iter()
            .map(|(agent, count)| format!("{agent} ({count})"));
        Row {
            rule: text::line(&rule.rule),
            would,
            style,
            operations: rule.operations,
            agents: text::line(&agents.collect::<Vec<_>>().join(", ")),
            last: view::time(rule.last),
            session: rule.example.session.to_string(),
            example: text::line(&rule.example.content),
        }
    });
    render(&ObservedPage {
        frame: &frame,
        operations: observed.operations,
        stopped: observed.stopped,
        rows: rows.collect(),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct ReloadForm {
    csrf: String,
}

pub(super) async fn reload(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: HeaderMap,
    Form(form): Form<ReloadForm>,
) -> Response {
    let reloaded = async {
        is_own_form(&session, &form.csrf)?;
        let _: PolicyStatus = app
            .daemon
            .post(&session.identity, "/v1/policy/reload", &())
            .await?;
        Ok::<_, Refused>(())
    };
    let result = reloaded.await;
    done(&app, &session, "/policy", &headers, result)
}
