//! Pages: a file a kind. Each asks the daemon in the name of whoever looks, and renders what it says.

mod account;
mod agents;
mod api;
mod approvals;
mod log;
mod notifications;
mod policy;
mod sessions;
mod sign_in;
mod view;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html as Page, IntoResponse, Redirect, Response},
    routing::{any, get, post},
};

use super::{
    assets,
    daemon::Refused,
    live,
    people::Session,
    server::{App, SignedIn},
};
use crate::control::Role;

pub(super) use self::approvals::{card, part};

/// Where pages hear of what happens.
pub(super) const EVENTS: &str = "/events";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(async || Redirect::to("/approvals")))
        .route("/approvals", get(approvals::list))
        .route("/approvals/{id}", get(approvals::one))
        .route("/approvals/{id}/votes", post(approvals::vote))
        .route("/approvals/{id}/override", post(approvals::override_alone))
        .route("/approvals/{id}/revocation", post(approvals::revoke))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{id}", get(sessions::one))
        .route("/agents", get(agents::list))
        .route("/agents/deeds", post(agents::act))
        .route("/policy", get(policy::show))
        .route("/policy/observed", get(policy::observed))
        .route("/policy/reload", post(policy::reload))
        .route("/log", get(log::show))
        .route("/notifications", get(notifications::list))
        .route("/notifications/redelivery", post(notifications::redeliver))
        .route("/account", get(account::show))
        .route("/account/keys", post(account::add_key))
        .route("/account/keys/removal", post(account::remove_key))
        .route("/sign-in", get(sign_in::show))
        .route("/sign-in/password", post(sign_in::password))
        .route("/sign-in/oidc", get(sign_in::oidc))
        .route("/sign-in/callback", get(sign_in::callback))
        .route("/sign-in/link", get(sign_in::link).post(sign_in::redeem))
        .route("/sign-out", post(sign_in::sign_out))
        .route(EVENTS, get(live::events))
        .route("/assets/{version}/{name}", get(assets::get))
        .route("/v1/{*rest}", any(api::pass))
        .fallback(
            async |signed: Result<SignedIn, Response>, State(app): State<Arc<App>>| {
                let Ok(SignedIn { session }) = signed else {
                    return Redirect::to("/sign-in").into_response();
                };
                let refused = Refused::new(StatusCode::NOT_FOUND, "there is no such page", "");
                error(&Frame::new(&app, &session, ""), &refused)
            },
        )
}

/// What every page has around it.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) instance: String,
    pub(super) assets: String,
    pub(super) name: Box<str>,
    pub(super) role: Role,
    pub(super) csrf: Box<str>,
    /// The part of the navigation that it belongs to.
    pub(super) here: &'static str,
}

impl Frame {
    pub(super) fn new(app: &App, session: &Session, here: &'static str) -> Self {
        Self {
            instance: app.instance.clone(),
            assets: assets::version(),
            name: session.me.name.clone(),
            role: session.me.role,
            csrf: session.csrf.clone(),
            here,
        }
    }

    /// Whether they may answer what waits.
    pub(super) fn reviews(&self) -> bool {
        self.role >= Role::Reviewer
    }

    /// Whether they may freeze, thaw and cut agents.
    pub(super) fn operates(&self) -> bool {
        self.role >= Role::Operator
    }

    /// Whether they may load policies.
    pub(super) fn administers(&self) -> bool {
        self.role >= Role::Administrator
    }

    fn at(&self, page: &str) -> &'static str {
        if self.here == page { "page" } else { "false" }
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    frame: &'a Frame,
    error: &'a str,
    remedy: &'a str,
}

/// The page that says why something wasn't done.
fn error(frame: &Frame, refused: &Refused) -> Response {
    let page = ErrorPage {
        frame,
        error: &refused.error,
        remedy: &refused.remedy,
    };
    (refused.status, render(&page)).into_response()
}

/// A page, or what went wrong where it is to be seen.
fn render(page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => Page(html).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page can't be rendered");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "this page can't be rendered; the daemon's log says why",
            )
                .into_response()
        }
    }
}

/// The answer to a form: back to `page`, or why it wasn't done. Scripts ask for the latter alone.
fn done(
    app: &App,
    session: &Session,
    page: &str,
    headers: &axum::http::HeaderMap,
    result: Result<(), Refused>,
) -> Response {
    let by_script = headers.get("x-requested-by").is_some();
    match result {
        Ok(()) if by_script => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => Redirect::to(page).into_response(),
        Err(refused) if by_script => {
            let text = match &*refused.remedy {
                "" => refused.error,
                remedy => format!("{}; {remedy}", refused.error),
            };
            let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            (refused.status, kind, text).into_response()
        }
        Err(refused) => error(&Frame::new(app, session, ""), &refused),
    }
}

/// Whether a form is one of ours, made for who is signed in.
fn is_own_form(session: &Session, csrf: &str) -> Result<(), Refused> {
    let (own, given) = (session.csrf.as_bytes(), csrf.as_bytes());
    if aws_lc_rs::constant_time::verify_slices_are_equal(own, given).is_ok() {
        return Ok(());
    }
    Err(Refused::new(
        StatusCode::FORBIDDEN,
        "this form isn't one of this sign-in's; nothing was done",
        "load the page again",
    ))
}
