//! The log and the daemon at a glance.

use std::sync::Arc;

use askama::Template;
use axum::{extract::State, response::Response};

use super::{Frame, error, render, view};
use crate::{
    console::{
        server::{App, SignedIn},
        text::{self, Html},
    },
    control::Status,
};

#[derive(Template)]
#[template(path = "log.html")]
struct ShowPage<'a> {
    frame: &'a Frame,
    status: &'a Status,
    started: String,
    path: Html,
    stopped: Html,
    troubles: Vec<(Html, Html)>,
    connects: Vec<(Html, bool, u64, u64)>,
}

pub(super) async fn show(State(app): State<Arc<App>>, SignedIn { session }: SignedIn) -> Response {
    let frame = Frame::new(&app, &session, "log");
    let status: Status = match app.daemon.get(&session.identity, "/v1/status").await {
        Ok(status) => status,
        Err(refused) => return error(&frame, &refused),
    };
    let troubles = status.troubles.iter();
    let connects = status.connects.iter().map(|agent| {
        let is_whole = agent.unaccounted == 0;
        (
            text::line(&agent.account.agent),
            is_whole,
            agent.unaccounted,
            agent.account.connects.redirected,
        )
    });
    render(&ShowPage {
        frame: &frame,
        started: view::time(status.started),
        path: text::line(&status.journal.path.to_string_lossy()),
        stopped: text::line(status.journal.stopped.as_deref().unwrap_or_default()),
        troubles: troubles
            .map(|trouble| (text::line(&trouble.what), text::line(&trouble.remedy)))
            .collect(),
        connects: connects.collect(),
        status: &status,
    })
}
