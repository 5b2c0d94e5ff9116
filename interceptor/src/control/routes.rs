//! The routes of the control API.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
    http::header::CONTENT_TYPE,
    middleware,
    response::{AppendHeaders, IntoResponse, Response},
    routing::post,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use interceptor_core::record::{ApprovalId, SessionId};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    api::{
        AuthorityCertificate, Ballot, ConsoleLink, Done, EvidenceQuery, ExportManifest,
        ExportQuery, KeyQuery, Label, LinkCode, Me, NewDeed, NewKey, NewTag, Note, ObservedQuery,
        PolicyStatus, PolicyText, Reason, Session, SignIn, Status, Tagged,
    },
    channel,
    host::{Failure, FailureKind, Host},
    peer,
    person::{Identity, Person, Role, Way},
    query::{STOPPED, SessionsQuery},
    streams,
    table::{self, Route},
};
use crate::{
    approval::{
        Approvals, Detail, KeyError, Say, SecurityKey, Standing, State as Stage, Summary, Yours,
    },
    clock,
    confine::Places,
    journal::{Erasure, Extent, Filter, Made, Rotated, Wanted},
    past::{self, Observed},
    retention::{self, Hold, NotErasable},
};

/// Largest request body, in bytes: an agent with its labels is far below.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What all of it is, in OpenAPI's words; tests hold it to what is served.
pub(super) const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

type HostState = State<Arc<dyn Host>>;
type Answer<T> = Result<Json<T>, Failure>;

/// Turns `true` when the daemon stops.
pub(super) type Stopping = watch::Receiver<bool>;

/// The control socket's.
pub(super) fn socket(host: Arc<dyn Host>, stopping: Stopping) -> Router {
    let routes = table::router(everyones()).merge(table::router(sockets()));
    finish(routes, stopping)
        .layer(middleware::from_fn_with_state(host.clone(), peer::identify))
        .with_state(host)
}

/// The console's: the same for those it asks for, and what it needs itself.
pub(super) fn console(host: Arc<dyn Host>, stopping: Stopping) -> Router {
    let own = Router::new()
        .route("/console/sign-ins", post(sign_in))
        .route("/console/links", post(redeem))
        .route("/console/told", post(told))
        .route("/console/secrets/{place}", post(secret))
        .route("/console/notes", post(note));
    let asked = table::router(everyones()).layer(middleware::from_fn_with_state(
        host.clone(),
        channel::identify,
    ));
    finish(asked.merge(own), stopping).with_state(host)
}

/// What people ask for, and the role that it takes. [`DOCUMENT`] says the rest of each.
pub(super) fn everyones() -> Vec<Route> {
    use Role::{Administrator, Operator, Reviewer, Viewer};
    vec![
        Route::get("/v1/openapi.json", Viewer, document),
        Route::get("/v1/me", Viewer, me),
        Route::get("/v1/status", Viewer, status),
        Route::get("/v1/ca", Viewer, authority),
        Route::get("/v1/places", Viewer, places),
        Route::get("/v1/agents", Viewer, agents),
        Route::post("/v1/agents", Operator, tag),
        Route::delete("/v1/agents", Operator, untag),
        Route::post("/v1/agents/deeds", Operator, act),
        Route::get("/v1/sessions", Viewer, sessions),
        Route::get("/v1/sessions/{id}", Viewer, session),
        Route::get("/v1/holds", Viewer, holds),
        Route::post("/v1/sessions/{id}/hold", Operator, hold),
        Route::post("/v1/sessions/{id}/release", Administrator, release),
        Route::get("/v1/erasures", Viewer, erasures),
        Route::post("/v1/sessions/{id}/erase", Administrator, erase),
        Route::post("/v1/journal/key", Administrator, rotate_key),
        Route::get("/v1/tail", Viewer, tail),
        Route::get("/v1/export", Viewer, export),
        Route::get("/v1/evidence", Viewer, evidence),
        Route::post("/v1/exports", Viewer, exported),
        Route::get("/v1/approvals", Viewer, approvals),
        Route::get("/v1/approvals/watch", Viewer, watch_approvals),
        Route::get("/v1/approvals/grants", Viewer, grants),
        Route::get("/v1/approvals/{id}", Viewer, approval),
        Route::post("/v1/approvals/{id}/votes", Reviewer, vote),
        Route::post("/v1/approvals/{id}/override", Reviewer, override_alone),
        Route::post("/v1/approvals/{id}/revocation", Reviewer, revoke),
        Route::get("/v1/policy", Viewer, policy),
        Route::get("/v1/policy/observed", Viewer, observed),
        Route::post("/v1/policy/reload", Administrator, reload),
        Route::get("/v1/keys", Reviewer, keys),
        Route::post("/v1/keys", Reviewer, add_key),
        Route::delete("/v1/keys", Reviewer, remove_key),
    ]
}

/// The same, of what is asked for at the control socket alone.
pub(super) fn sockets() -> Vec<Route> {
    vec![Route::post("/v1/console/links", Role::Viewer, console_link)]
}

fn finish(routes: Router<Arc<dyn Host>>, stopping: Stopping) -> Router<Arc<dyn Host>> {
    routes
        .fallback(async || missing("this version of interceptor has no such request"))
        .method_not_allowed_fallback(async || {
            let failure = invalid("this can't be done to what is there")
                .with_remedy("`/v1/openapi.json` says what can");
            (StatusCode::METHOD_NOT_ALLOWED, Json(failure.body()))
        })
        .layer(Extension(stopping))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// Runs what may block where blocking hurts nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(FailureKind::Broken, error)))
}

async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT)
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

/// The latest sessions, oldest of them first. Where not all could be looked into, a header says since when they were.
async fn sessions(
    State(host): HostState,
    query: Result<Query<SessionsQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(invalid)?;
    let wanted = query.wanted().map_err(invalid)?;
    caught_up(&host).await;
    blocking(move || {
        let found = host.journal().find(&wanted, query.limit())?;
        let mut sessions: Vec<Session> = found.sessions.into_iter().map(Session::from).collect();
        sessions.reverse();
        let stopped = found.stopped.map(|at| [(STOPPED, at.to_string())]);
        Ok((stopped.map(AppendHeaders), Json(sessions)).into_response())
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
        return Err(match host.retainer().erasure(id) {
            Some(erasure) => missing(NotErasable::Erased(Box::new(erasure))),
            None => missing(format!("there is no session {id}"))
                .with_remedy("`interceptor sessions list` shows those on record"),
        });
    }
    Ok(streams::records(records, stopping))
}

/// The sessions that are held.
async fn holds(State(host): HostState) -> Json<Vec<Hold>> {
    Json(host.retainer().holds())
}

/// Keeps a session whatever its age, until it is released.
async fn hold(
    State(host): HostState,
    by: Person,
    Path(id): Path<String>,
    body: Result<Json<Reason>, JsonRejection>,
) -> Answer<Hold> {
    let (session, reason) = held(&id, body)?;
    caught_up(&host).await;
    let holding = host.clone();
    let hold = blocking(move || {
        if holding.journal().session(session)?.is_empty() {
            return Err(missing(format!("there is no session {session}"))
                .with_remedy("`interceptor sessions list` shows those on record"));
        }
        let hold = Hold {
            session,
            by: by.to_string().into(),
            reason,
            since: clock::now(),
        };
        let detail = [
            ("session", &*session.to_string()),
            ("reason", &*hold.reason),
        ];
        let record = || holding.record(retention::PLACED, &by, &detail);
        match holding.retainer().hold(hold.clone(), record)? {
            true => Ok(hold),
            false => Err(match holding.retainer().erasure(session) {
                Some(erasure) => NotErasable::Erased(Box::new(erasure)).into(),
                None => Failure::new(
                    FailureKind::Conflict,
                    format!("session {session} is held already"),
                )
                .with_remedy("`interceptor sessions holds` says by whom and why"),
            }),
        }
    })
    .await?;
    host.journal().flush().await?;
    Ok(Json(hold))
}

/// Has a session be kept no longer than others.
async fn release(
    State(host): HostState,
    by: Person,
    Path(id): Path<String>,
    body: Result<Json<Reason>, JsonRejection>,
) -> Answer<Vec<Hold>> {
    let (session, reason) = held(&id, body)?;
    let releasing = host.clone();
    blocking(move || {
        let detail = [("session", &*session.to_string()), ("reason", &*reason)];
        let record = || releasing.record(retention::RELEASED, &by, &detail);
        match releasing.retainer().release(session, record)? {
            true => Ok(()),
            false => Err(missing(format!("session {session} isn't held"))
                .with_remedy("`interceptor sessions holds` shows those that are")),
        }
    })
    .await?;
    host.journal().flush().await?;
    Ok(Json(host.retainer().holds()))
}

/// The sessions that were erased.
async fn erasures(State(host): HostState) -> Json<Vec<Erasure>> {
    Json(host.retainer().erasures())
}

/// Has nobody be able to read a session any more.
async fn erase(
    State(host): HostState,
    by: Person,
    Path(id): Path<String>,
    body: Result<Json<Reason>, JsonRejection>,
) -> Answer<Erasure> {
    let session: SessionId = id.parse().map_err(invalid)?;
    let reason = one_line(body, "a session is erased")?;
    if host.is_open(session) {
        return Err(
            Failure::new(FailureKind::Conflict, format!("session {session} goes on"))
                .with_remedy("erase it when it is over"),
        );
    }
    if host.approvals().concern(session) {
        return Err(Failure::new(
            FailureKind::Conflict,
            format!("an operation of session {session} waits for approval, or what was approved of it is in force"),
        )
        .with_remedy("answer it or have it revoked: `interceptor approvals list`, `interceptor approvals grants`"));
    }
    caught_up(&host).await;
    let erased = blocking(move || {
        let (journal, by) = (host.journal(), by.to_string());
        let erasure = host.retainer().erase(journal, session, (&by, &reason))?;
        host.approvals().forget(session);
        Ok(erasure)
    });
    Ok(Json(erased.await?))
}

/// Longest reason for another key or an erasure, in bytes.
const REASON_BYTES_MAX: usize = 1_000;

/// Has the journal be signed with a new key from now on.
async fn rotate_key(
    State(host): HostState,
    by: Person,
    body: Result<Json<Reason>, JsonRejection>,
) -> Answer<Rotated> {
    let reason = one_line(body, "a key is replaced")?;
    let rotated = blocking(move || Ok(host.journal().rotate(&by.to_string(), &reason)?)).await?;
    Ok(Json(rotated))
}

/// Why `what` is done, in a line.
fn one_line(body: Result<Json<Reason>, JsonRejection>, what: &str) -> Result<String, Failure> {
    let Json(Reason { reason }) = body.map_err(invalid)?;
    let is_fit = reason.len() <= REASON_BYTES_MAX && !reason.contains(char::is_control);
    match is_fit && !reason.trim().is_empty() {
        true => Ok(reason),
        false => Err(invalid(format!(
            "{what} for a reason, of at most 1,000 bytes in one line"
        ))),
    }
}

/// The session that is to be held or released, and why.
fn held(
    id: &str,
    body: Result<Json<Reason>, JsonRejection>,
) -> Result<(SessionId, Box<str>), Failure> {
    let session: SessionId = id.parse().map_err(invalid)?;
    let Json(Reason { reason }) = body.map_err(invalid)?;
    if reason.trim().is_empty() {
        return Err(invalid("a legal hold begins and ends with a reason"));
    }
    Ok((session, reason.into()))
}

async fn export(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
    query: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(invalid)?;
    caught_up(&host).await;
    let extent = Extent {
        context: query.context,
        wire: query.wire,
    };
    Ok(streams::export(host, filter(query), extent, stopping))
}

/// Sessions that are proved in one answer.
const PROVED_MAX: usize = 10_000;

async fn evidence(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
    query: Result<Query<EvidenceQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(invalid)?;
    caught_up(&host).await;
    let reading = host.clone();
    let sessions = blocking(move || {
        if let Some(session) = query.session {
            return Ok([session].into());
        }
        let wanted = Wanted {
            agent: query.agent,
            since: query.since,
            until: query.until,
            ..Wanted::default()
        };
        let found = reading.journal().sessions(&wanted, PROVED_MAX + 1);
        if found.len() > PROVED_MAX {
            let error = format!("there are more than {PROVED_MAX} of these sessions");
            return Err(invalid(error).with_remedy(
                "ask for fewer at once: by their session, by agent, or by when they began",
            ));
        }
        Ok(found.iter().map(|found| found.session).collect())
    });
    Ok(streams::evidence(host, sessions.await?, stopping))
}

/// Puts on record that a file was made of what is on record, and signs what is known of it.
async fn exported(
    State(host): HostState,
    by: Person,
    body: Result<Json<Made>, JsonRejection>,
) -> Answer<ExportManifest> {
    let Json(made) = body.map_err(invalid)?;
    if let Some(flaw) = made.flaw() {
        return Err(invalid(flaw));
    }
    blocking(move || {
        let detail = [
            ("sha256", &*hex::encode(made.sha256)),
            ("bytes", &*made.bytes.to_string()),
            ("format", &*made.format),
            ("asked", &*made.asked),
        ];
        host.record("exported", &by, &detail)?;
        let name = nix::unistd::gethostname().unwrap_or_default();
        let journal = host.journal();
        let manifest = journal.manifest(made.clone(), &by.to_string(), &name.to_string_lossy())?;
        Ok(Json(ExportManifest { manifest }))
    })
    .await
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
    by: Person,
    query: Result<Query<ApprovalsQuery>, QueryRejection>,
) -> Answer<Vec<Summary>> {
    let Query(query) = query.map_err(invalid)?;
    let mut summaries = host.approvals().list(query.ended);
    tell_what_counts(host.approvals(), by, &mut summaries);
    Ok(Json(summaries))
}

/// Adds what the one who asks may answer, by what decides when they do.
fn tell_what_counts(approvals: &Approvals, by: Person, summaries: &mut [Summary]) {
    match by.may(Role::Reviewer).and_then(|()| by.into_voter()) {
        Ok(voter) => approvals.tell_what_counts(&voter, summaries),
        Err(failure) => {
            let waiting = summaries
                .iter_mut()
                .filter(|summary| summary.state == Stage::Pending);
            for summary in waiting {
                summary.yours = Some(Yours::nothing(&failure.error));
            }
        }
    }
}

async fn watch_approvals(
    State(host): HostState,
    Extension(stopping): Extension<Stopping>,
) -> Response {
    streams::approvals(host.approvals(), stopping)
}

async fn approval(State(host): HostState, by: Person, Path(id): Path<String>) -> Answer<Detail> {
    let id: ApprovalId = id.parse().map_err(invalid)?;
    let mut detail = host.approvals().show(id).ok_or_else(|| {
        missing(format!(
            "there is no approval {id} that waits or ended lately"
        ))
        .with_remedy("`interceptor approvals list` shows those that wait")
    })?;
    tell_what_counts(
        host.approvals(),
        by,
        std::slice::from_mut(&mut detail.summary),
    );
    Ok(Json(detail))
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
        signed: ballot.signed,
    };
    let voted = host.approvals().vote(id, by.into_voter()?, say).await?;
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
    let summary = approvals.override_alone(id, by.into_voter()?, &reason);
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
    let voter = by.into_voter()?;
    let standing = host.approvals().revoke(id, &voter, &reason).await?;
    Ok(Json(standing))
}

/// Whoever asks.
async fn me(person: Person) -> Json<Me> {
    Json(Me::from(&person))
}

async fn policy(State(host): HostState) -> Answer<PolicyText> {
    blocking(move || host.policy()).await.map(Json)
}

/// What the policy would have done, of what is on record, had it been enforced.
async fn observed(
    State(host): HostState,
    query: Result<Query<ObservedQuery>, QueryRejection>,
) -> Answer<Observed> {
    let Query(ObservedQuery { since, agent }) = query.map_err(invalid)?;
    caught_up(&host).await;
    blocking(move || {
        let reader = host.journal().reader()?;
        let asked = past::Asked { since, agent };
        Ok(Json(past::observed(&reader, &asked)?))
    })
    .await
}

async fn keys(State(host): HostState, by: Person) -> Json<Vec<SecurityKey>> {
    Json(host.approvals().keys().of(by.name()))
}

async fn add_key(
    State(host): HostState,
    by: Person,
    body: Result<Json<NewKey>, JsonRejection>,
) -> Answer<Vec<SecurityKey>> {
    let Json(new) = body.map_err(invalid)?;
    blocking(move || {
        let keys = host.approvals().keys();
        keys.admit(by.name(), &new.key, new.vouched.as_ref())
            .map_err(unfit)?;
        // Before it is there, so that no yes is ever by a key that isn't on record.
        let public = hex::encode(&new.key.public_key);
        host.record(
            "security_key_added",
            &by,
            &[("label", &new.key.label), ("public_key", &public)],
        )?;
        let key = SecurityKey {
            added: clock::now(),
            ..new.key
        };
        keys.add(by.name(), key).map_err(unfit)?;
        Ok(Json(keys.of(by.name())))
    })
    .await
}

async fn remove_key(
    State(host): HostState,
    by: Person,
    query: Result<Query<KeyQuery>, QueryRejection>,
) -> Answer<Vec<SecurityKey>> {
    let Query(query) = query.map_err(invalid)?;
    blocking(move || {
        let keys = host.approvals().keys();
        let gone = URL_SAFE_NO_PAD.decode(&query.credential).map_err(invalid)?;
        host.record(
            "security_key_removed",
            &by,
            &[("credential", &query.credential)],
        )?;
        if !keys.remove(by.name(), &gone).map_err(unfit)? {
            return Err(missing("you have no such security key"));
        }
        Ok(Json(keys.of(by.name())))
    })
    .await
}

/// A link by which whoever asks signs in at the console.
async fn console_link(State(host): HostState, by: Person) -> Answer<ConsoleLink> {
    let Some(desk) = host.console() else {
        let error = "this daemon has no console";
        return Err(Failure::new(FailureKind::Missing, error)
            .with_remedy("add `console: {}` to its configuration and start it again"));
    };
    let code = desk.links.make(by.voter().clone())?;
    let url = format!("{}/sign-in/link#{code}", desk.url);
    Ok(Json(ConsoleLink { url }))
}

/// The console asks whether somebody whom it knows may come in. That is on record, whatever the answer.
async fn sign_in(State(host): HostState, body: Result<Json<SignIn>, JsonRejection>) -> Answer<Me> {
    let Json(SignIn { identity, from }) = body.map_err(invalid)?;
    blocking(move || {
        let name = identity.voter.name.to_string();
        let way = identity.way;
        match channel::admit(&*host, identity) {
            Ok(person) => {
                let role = person.role().name();
                host.record("signed_in", &person, &[("from", &from), ("role", role)])?;
                Ok(Json(Me::from(&person)))
            }
            Err(failure) => {
                let detail = [
                    ("name", name.as_str()),
                    ("way", way.name()),
                    ("from", &from),
                    ("why", "no role"),
                ];
                host.note("sign_in_refused", &detail)?;
                Err(failure)
            }
        }
    })
    .await
}

/// The console asks whom a link signs in.
async fn redeem(
    State(host): HostState,
    body: Result<Json<LinkCode>, JsonRejection>,
) -> Answer<Identity> {
    let Json(LinkCode { code }) = body.map_err(invalid)?;
    let Some(desk) = host.console() else {
        return Err(missing("there is no console"));
    };
    let voter = desk.links.redeem(&code)?;
    Ok(Json(Identity {
        voter,
        way: Way::Link,
        at_most: None,
    }))
}

/// The console has something on record: who couldn't sign in, who signed out, who was told.
async fn note(State(host): HostState, body: Result<Json<Note>, JsonRejection>) -> Answer<()> {
    let Json(Note { name, detail }) = body.map_err(invalid)?;
    const NAMES: [&str; 5] = [
        "sign_in_refused",
        "signed_out",
        "notified",
        "notification_failed",
        "notification_withdrawn",
    ];
    if !NAMES.contains(&&*name) {
        return Err(invalid("the console has nothing of that name to record"));
    }
    if &*name == "notified"
        && let Some(desk) = host.console()
    {
        desk.told.add(Note {
            name: name.clone(),
            detail: detail.clone(),
        });
    }
    blocking(move || {
        let detail: Vec<(&str, &str)> = detail
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        host.note(&name, &detail).map(Json)
    })
    .await
}

/// The console asks what it, or one before it, has told people.
async fn told(State(host): HostState) -> Json<Vec<Note>> {
    Json(
        host.console()
            .map(|desk| desk.told.all())
            .unwrap_or_default(),
    )
}

/// The console asks for a secret of a notifier's, by its place in the configuration; in base64.
async fn secret(State(host): HostState, Path(place): Path<usize>) -> Answer<String> {
    blocking(move || {
        let desk = host.console();
        let source = desk.and_then(|desk| desk.secrets.get(place));
        let source = source.ok_or_else(|| missing("the configuration has no such secret"))?;
        let secret = source
            .read()
            .map_err(|error| Failure::new(FailureKind::Unavailable, error))?;
        Ok(Json(STANDARD.encode(secret.expose())))
    })
    .await
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

fn unfit(error: KeyError) -> Failure {
    let kind = match error {
        KeyError::File { .. } => FailureKind::Broken,
        _ => FailureKind::Forbidden,
    };
    Failure::new(kind, error)
}

fn invalid(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Invalid, error)
}

fn missing(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Missing, error)
}
