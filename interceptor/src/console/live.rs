//! What happens, to pages that are open: server-sent events, whose HTML is rendered here.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    pages,
    people::Session,
    server::{App, SignedIn},
};
use crate::approval::{Change, Detail, Summary};

/// Events that may wait for a slow browser; one that is slower loads the page again.
const QUEUED: usize = 256;

/// How often a connection is tried that nothing happens on.
const ALIVE: Duration = Duration::from_secs(15);

/// Longest line of the daemon's, in bytes.
const LINE_BYTES_MAX: usize = 16 << 20;

pub(super) async fn events(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: axum::http::HeaderMap,
) -> Response {
    let identity = Some(&session.identity);
    let watch = app
        .daemon
        .send(identity, Method::GET, "/v1/approvals/watch", Bytes::new());
    let body = match watch.await {
        Ok(response) if response.status().is_success() => response.into_body(),
        Ok(response) => return response.status().into_response(),
        Err(refused) => return (refused.status, refused.error).into_response(),
    };
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(QUEUED);
    let cookie = super::server::cookie(&headers, app.cookie())
        .unwrap_or_default()
        .to_owned();
    tokio::spawn(async move {
        let told = tell(&app, &session, body, &sender);
        tokio::select! {
            () = told => {}
            () = sender.closed() => {}
            // Who is signed out sees no more.
            () = signed_out(&app, &cookie) => {
                let _ = sender.send(Ok(Event::default().event("over").data("signed out"))).await;
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::new().interval(ALIVE))
        .into_response()
}

async fn signed_out(app: &App, cookie: &str) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if app
            .sessions
            .of(cookie, std::time::Instant::now(), false)
            .is_none()
        {
            return;
        }
    }
}

async fn tell(
    app: &App,
    session: &Session,
    mut body: Incoming,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) {
    let mut held = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        held.extend_from_slice(&data);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            let Ok(change) = serde_json::from_slice::<Change>(&line) else {
                continue;
            };
            let Some(event) = event(app, session, change).await else {
                continue;
            };
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        if held.len() > LINE_BYTES_MAX {
            return;
        }
    }
}

async fn event(app: &App, session: &Session, change: Change) -> Option<Event> {
    let (what, summary) = match change {
        Change::Requested(summary) | Change::Resumed(summary) => ("asked", summary),
        Change::Estimated(summary)
        | Change::Voted(summary)
        | Change::Left(summary)
        | Change::Escalated(summary) => ("changed", summary),
        Change::Ended(summary) => ("ended", summary),
        Change::Admitted(_) | Change::Revoked(_) => {
            return Some(Event::default().event("grants").data("changed"));
        }
        Change::Missed { .. } => return Some(Event::default().event("missed").data("reload")),
    };
    let id = summary.id;
    let agent = summary.agent.clone();
    let detail = if what == "ended" {
        ended(*summary)
    } else {
        // One that ended meanwhile is told of next.
        app.daemon
            .get(&session.identity, &format!("/v1/approvals/{id}"))
            .await
            .ok()?
    };
    let html = pages::part(app, session, &pages::card(&detail));
    let data = json!({"id": id.to_string(), "what": what, "agent": agent, "html": html});
    Some(Event::default().event("approval").data(data.to_string()))
}

fn ended(summary: Summary) -> Detail {
    Detail {
        summary,
        content: None,
        parameters: Vec::new(),
        options: Vec::new(),
    }
}
