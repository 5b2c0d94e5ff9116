//! Who is told besides, how that goes, and what couldn't be told.

use std::sync::Arc;

use askama::Template;
use axum::{
    Form,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Deserialize;

use super::{Frame, done, is_own_form, render, view};
use crate::{
    console::{
        daemon::Refused,
        server::{App, SignedIn},
        text::{self, Html},
    },
    control::Role,
    notify::{NotifierState, NotifierStatus},
};

struct Row {
    name: Html,
    kind: Box<str>,
    state: &'static str,
    style: &'static str,
    counts: String,
    error: Html,
    socket: Html,
    dead: Vec<Dead>,
    forgotten: u64,
}

struct Dead {
    id: Box<str>,
    approval: String,
    what: &'static str,
    agent: Html,
    time: String,
    why: Html,
    attempts: String,
}

#[derive(Template)]
#[template(path = "notifications.html")]
struct ListPage<'a> {
    frame: &'a Frame,
    rows: Vec<Row>,
}

pub(super) async fn list(State(app): State<Arc<App>>, SignedIn { session }: SignedIn) -> Response {
    let frame = Frame::new(&app, &session, "notifications");
    let status = app
        .teller
        .as_ref()
        .map(|teller| teller.notifiers().status());
    let rows = status.unwrap_or_default().into_iter().map(row).collect();
    render(&ListPage {
        frame: &frame,
        rows,
    })
}

fn row(status: NotifierStatus) -> Row {
    let (state, style) = match status.state {
        NotifierState::Idle => ("idle", "allow"),
        NotifierState::Delivering => ("telling", "allow"),
        NotifierState::Failing => ("failing", "deny"),
    };
    let since = status
        .failing_since
        .map(|since| format!(" since {} UTC", view::time(since)));
    let error = status.last_error.map(|error| {
        format!(
            "The last attempt failed{}: {error}",
            since.unwrap_or_default()
        )
    });
    Row {
        name: text::line(&status.name),
        kind: status.kind,
        state,
        style,
        counts: format!(
            "{} told, {} waiting, {} withdrawn because they were over",
            status.delivered, status.queued, status.withdrawn
        ),
        error: text::line(&error.unwrap_or_default()),
        socket: text::line(&status.socket.unwrap_or_default()),
        forgotten: status.dead_forgotten,
        dead: status
            .dead
            .into_iter()
            .map(|letter| Dead {
                approval: letter.approval.to_string(),
                what: letter.event.name(),
                agent: text::line(&letter.agent),
                time: view::time(letter.time),
                why: text::line(&letter.why),
                attempts: view::count(letter.attempts.into(), "attempt"),
                id: letter.id,
            })
            .collect(),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct LetterForm {
    csrf: String,
    id: String,
}

/// Tries a dead letter again.
pub(super) async fn redeliver(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: HeaderMap,
    Form(form): Form<LetterForm>,
) -> Response {
    let tried = || {
        is_own_form(&session, &form.csrf)?;
        if session.me.role < Role::Operator {
            let what = "this takes the role operator";
            return Err(Refused::new(StatusCode::FORBIDDEN, what, ""));
        }
        let teller = app.teller.as_ref();
        let again = teller.map(|teller| teller.notifiers().redeliver(&form.id));
        match again {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Refused::new(StatusCode::NOT_FOUND, &error.to_string(), "")),
            None => Err(Refused::new(StatusCode::NOT_FOUND, "nobody is told", "")),
        }
    };
    let result = tried();
    done(&app, &session, "/notifications", &headers, result)
}
