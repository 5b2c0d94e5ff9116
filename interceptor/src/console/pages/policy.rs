//! The policy in force, as it is written.

use std::sync::Arc;

use askama::Template;
use axum::{Form, extract::State, http::HeaderMap, response::Response};
use serde::Deserialize;

use super::{Frame, done, error, is_own_form, render, view};
use crate::{
    console::{
        server::{App, SignedIn},
        text::{self, Html},
    },
    control::{PolicyStatus, PolicyText},
};

#[derive(Template)]
#[template(path = "policy.html")]
struct ShowPage<'a> {
    frame: &'a Frame,
    status: &'a PolicyStatus,
    loaded: String,
    broken: Html,
    enforced: bool,
    files: Vec<(Html, Vec<Html>)>,
}

pub(super) async fn show(State(app): State<Arc<App>>, SignedIn { session }: SignedIn) -> Response {
    let frame = Frame::new(&app, &session, "policy");
    let policy: PolicyText = match app.daemon.get(&session.identity, "/v1/policy").await {
        Ok(policy) => policy,
        Err(refused) => return error(&frame, &refused),
    };
    let files = policy.files.iter().map(|file| {
        let lines = file.text.lines().map(text::line).collect();
        (text::line(&file.path), lines)
    });
    render(&ShowPage {
        frame: &frame,
        status: &policy.status,
        loaded: view::time(policy.status.loaded),
        broken: text::line(policy.status.broken.as_deref().unwrap_or_default()),
        enforced: policy.enforced,
        files: files.collect(),
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
        Ok(())
    };
    let result = reloaded.await;
    done(&app, &session, "/policy", &headers, result)
}
