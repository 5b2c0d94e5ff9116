//! The routes of the control API.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    middleware,
    response::Response,
    routing::{get, post},
};
use interceptor_core::record::{ApprovalId, SessionId};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    api::{
        AuthorityCertificate, Ballot, Done, ExportQuery, Label, NewDeed, NewTag, PolicyStatus,
        Reason, Session, Status, Tagged,
    },
    host::{Failure, FailureKind, Host},
    peer::{self, Person},
    streams,
};
use crate::{
    approval::{Detail, Say, Standing, Summary},
    confine::Places,
    journal::Filter,
};

/// Largest request body, in bytes: an agent with its labels is far below.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Sessions that are listed unless asked for more.
const SESSIONS_LISTED: usize = 1_000;

type HostState = State<Arc<dyn Host>>;
type Answer<T> = Result<Json<T>, Failure>;

/// Turns `true` when the daemon stops.
pub(super) type Stopping = watch::Receiver<bool>;

pub(super) fn router(host: Arc<dyn Host>, stopping: Stopping) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/ca", get(authority))
        .route("/v1/places", get(places))
        .route("/v1/agents", get(agents).post(tag).delete(untag))
        .route("/v1/agents/deeds", post(act))
        .route("/v1/sessions", get(sessions))
        .route("/v1/sessions/{id}", get(session))
        .route("/v1/tail", get(tail))
        .route("/v1/export", get(export))
        .route("/v1/approvals", get(approvals))
        .route("/v1/approvals/watch", get(watch_approvals))
        .route("/v1/approvals/{id}", get(approval))
        .route("/v1/approvals/grants", get(grants))
        .route("/v1/approvals/{id}/votes", post(vote))
        .route("/v1/approvals/{id}/override", post(override_alone))
        .route("/v1/approvals/{id}/revocation", post(revoke))
        .route("/v1/policy/reload", post(reload))
        .fallback(async || missing("this version of interceptor has no such request"))
        .layer(Extension(stopping))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(
            host.clone(),
            peer::refuse_agents,
        ))
        .with_state(host)
}

/// Runs what may block where blocking hurts nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(FailureKind::Broken, error)))
}

async fn status(State(host): HostState) -> Answer<Status> {
    blocking(move || host.status()).await.map(Json)
}

async fn authority(State(host): HostState) -> Json<AuthorityCertificate> {
    Json(AuthorityCertificate {
        pem: host.authority(),
    })
}

async fn places(State(host): HostState) -> Json<Places> {
    Json(host.places())
}

async fn agents(State(host): HostState) -> Answer<Vec<Tagged>> {
    blocking(move || host.agents()).await.map(Json)
}

async fn tag(
    State(host): HostState,
    by: Person,
    body: Result<Json<NewTag>, JsonRejection>,
) -> Answer<Tagged> {
    let Json(tag) = body.map_err(invalid)?;
    for (name, value) in &tag.labels {
        Label::new(name, value).map_err(invalid)?;
    }
    blocking(move || host.tag(tag, &by)).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UntagQuery {
    agent: String,
}

async fn untag(
    State(host): HostState,
    by: Person,
    query: Result<Query<UntagQuery>, QueryRejection>,
) -> Answer<Tagged> {
    let Query(query) = query.map_err(invalid)?;
    blocking(move || host.untag(&query.agent, &by))
        .await
        .map(Json)
}

async fn act(
    State(host): HostState,
    by: Person,
    body: Result<Json<NewDeed>, JsonRejection>,
) -> Answer<Done> {
    let Json(deed) = body.map_err(invalid)?;
    blocking(move || host.act(deed, &by)).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionsQuery {
    agent: Option<String>,
    limit: Option<usize>,
}

/// The latest sessions, oldest of them first.
async fn sessions(
    State(host): HostState,
    query: Result<Query<SessionsQuery>, QueryRejection>,
) -> Answer<Vec<Session>> {
    let Query(query) = query.map_err(invalid)?;
    caught_up(&host).await;
    blocking(move || {
        let mut sessions: Vec<Session> = host
            .journal()
            .sessions()
            .into_iter()
            .filter(|session| {
                query
                    .agent
                    .as_ref()
                    .is_none_or(|agent| **agent == *session.agent)
            })
            .take(query.limit.unwrap_or(SESSIONS_LISTED))
            .map(Session::from)
            .collect();
        sessions.reverse();
        Ok(Json(sessions))
    })
    .await
}

async fn session(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let id: SessionId = id.parse().map_err(invalid)?;
    caught_up(&host).await;
    let reading = host.clone();
    let records = blocking(move || Ok(reading.journal().session(id)?)).await?;
    if records.is_empty() {
        return Err(missing(format!("there is no session {id}"))
            .with_remedy("`interceptor sessions list` shows those on record"));
    }
    Ok(streams::records(records, stopping))
}

async fn export(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
    query: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(invalid)?;
    caught_up(&host).await;
    Ok(streams::export(host, filter(query), stopping))
}

async fn tail(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
    query: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(invalid)?;
    Ok(streams::tail(
        host.journal().follow(),
        filter(query),
        stopping,
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalsQuery {
    #[serde(default)]
    ended: bool,
}

async fn approvals(
    State(host): HostState,
    query: Result<Query<ApprovalsQuery>, QueryRejection>,
) -> Answer<Vec<Summary>> {
    let Query(query) = query.map_err(invalid)?;
    Ok(Json(host.approvals().list(query.ended)))
}

async fn watch_approvals(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
) -> Response {
    streams::approvals(host.approvals(), stopping)
}

async fn approval(State(host): HostState, Path(id): Path<String>) -> Answer<Detail> {
    let id: ApprovalId = id.parse().map_err(invalid)?;
    host.approvals().show(id).map(Json).ok_or_else(|| {
        missing(format!(
            "there is no approval {id} that waits or ended lately"
        ))
        .with_remedy("`interceptor approvals list` shows those that wait")
    })
}

async fn vote(
    State(host): HostState,
    by: Person,
    Path(id): Path<String>,
    body: Result<Json<Ballot>, JsonRejection>,
) -> Answer<Summary> {
    let id: ApprovalId = id.parse().map_err(invalid)?;
    let Json(ballot) = body.map_err(invalid)?;
    let say = Say {
        choice: ballot.choice,
        reason: ballot.reason.into(),
        window: ballot.window,
    };
    let voted = host.approvals().vote(id, by.into_voter(), say).await?;
    Ok(Json(voted))
}

async fn grants(State(host): HostState) -> Json<Vec<Standing>> {
    Json(host.approvals().grants())
}

async fn override_alone(
    State(host): HostState,
    by: Person,
    Path(id): Path<String>,
    body: Result<Json<Reason>, JsonRejection>,
) -> Answer<Summary> {
    let id: ApprovalId = id.parse().map_err(invalid)?;
    let Json(Reason { reason }) = body.map_err(invalid)?;
    let approvals = host.approvals();
    let summary = approvals.override_alone(id, by.into_voter(), &reason);
    Ok(Json(summary.await?))
}

async fn revoke(
    State(host): HostState,
    by: Person,
    Path(id): Path<String>,
    body: Result<Json<Reason>, JsonRejection>,
) -> Answer<Standing> {
    let id: ApprovalId = id.parse().map_err(invalid)?;
    let Json(Reason { reason }) = body.map_err(invalid)?;
    let voter = by.into_voter();
    let standing = host.approvals().revoke(id, &voter, &reason).await?;
    Ok(Json(standing))
}

async fn reload(State(host): HostState, by: Person) -> Answer<PolicyStatus> {
    blocking(move || host.reload(&by)).await.map(Json)
}

/// Brings to disk what was recorded so far, so that an answer read from there is up to date.
async fn caught_up(host: &Arc<dyn Host>) {
    // A journal that takes nothing more is still worth reading; `status` says so.
    if let Err(error) = host.journal().flush().await {
        tracing::warn!(%error, "the answer may lack the latest records");
    }
}

fn filter(query: ExportQuery) -> Filter {
    Filter {
        session: query.session,
        agent: query.agent,
        since: query.since,
        until: query.until,
    }
}

fn invalid(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Invalid, error)
}

fn missing(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Missing, error)
}
