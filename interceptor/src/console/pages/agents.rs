//! Agents, and stopping them.

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
    control::{Deed, Done, NewDeed, Status, Tagged, agent_name},
};

struct Row {
    name: Box<str>,
    shown: Html,
    labels: Vec<Html>,
    cgroup: Html,
    state: &'static str,
    style: &'static str,
    is_frozen: bool,
    is_away: bool,
    old_sockets: u64,
    connects: String,
}

#[derive(Template)]
#[template(path = "agents.html")]
struct ListPage<'a> {
    frame: &'a Frame,
    rows: Vec<Row>,
}

pub(super) async fn list(State(app): State<Arc<App>>, SignedIn { session }: SignedIn) -> Response {
    let frame = Frame::new(&app, &session, "agents");
    let by = &session.identity;
    let found = async {
        let agents: Vec<Tagged> = app.daemon.get(by, "/v1/agents").await?;
        let status: Status = app.daemon.get(by, "/v1/status").await?;
        Ok((agents, status))
    };
    let (agents, status) = match found.await {
        Ok(found) => found,
        Err(refused) => return error(&frame, &refused),
    };
    let rows = agents.into_iter().map(|agent| {
        let books = status
            .connects
            .iter()
            .find(|books| *books.account.agent == *agent.agent);
        let (state, style) = match (agent.frozen, agent.away) {
            (true, _) => ("frozen", "deny"),
            (_, true) => ("not running", "gone"),
            _ => ("running", "allow"),
        };
        Row {
            shown: text::line(&agent.agent),
            labels: view::labels(&agent.labels)
                .iter()
                .map(|label| text::line(label))
                .collect(),
            cgroup: text::line(&agent.cgroup.to_string_lossy()),
            state,
            style,
            is_frozen: agent.frozen,
            is_away: agent.away,
            old_sockets: agent.old_sockets.allowed,
            connects: match books {
                None => String::new(),
                Some(books) if books.unaccounted == 0 => "every connect accounted for".to_owned(),
                Some(books) => format!(
                    "{} not accounted for",
                    view::count(books.unaccounted, "connect")
                ),
            },
            name: agent.agent,
        }
    });
    let rows = rows.collect();
    render(&ListPage {
        frame: &frame,
        rows,
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct DeedForm {
    csrf: String,
    agent: String,
    deed: Deed,
}

pub(super) async fn act(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: HeaderMap,
    Form(form): Form<DeedForm>,
) -> Response {
    let acted = async {
        is_own_form(&session, &form.csrf)?;
        let agent = agent_name(&form.agent).map_err(|error| {
            crate::console::daemon::Refused::new(axum::http::StatusCode::BAD_REQUEST, &error, "")
        })?;
        let deed = NewDeed {
            agent,
            deed: form.deed,
        };
        let _: Done = app
            .daemon
            .post(&session.identity, "/v1/agents/deeds", &deed)
            .await?;
        Ok(())
    };
    let result = acted.await;
    done(&app, &session, "/agents", &headers, result)
}
