//! Whoever is signed in, and their security keys.

use std::sync::Arc;

use askama::Template;
use axum::{
    Form,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use super::{Frame, done, error, is_own_form, render, view};
use crate::{
    approval::SecurityKey,
    console::{
        daemon::Refused,
        server::{App, SignedIn},
        text::{self, Html},
    },
    control::{NewKey, encoded},
};

#[derive(Template)]
#[template(path = "account.html")]
struct ShowPage<'a> {
    frame: &'a Frame,
    groups: Vec<Html>,
    way: &'static str,
    keys: Vec<(Html, String, String)>,
    credentials: String,
    host: &'a str,
    /// Registered under this; the person's name says nothing to the key.
    handle: String,
}

pub(super) async fn show(State(app): State<Arc<App>>, SignedIn { session }: SignedIn) -> Response {
    let frame = Frame::new(&app, &session, "account");
    let mut keys: Vec<SecurityKey> = Vec::new();
    if frame.reviews() {
        keys = match app.daemon.get(&session.identity, "/v1/keys").await {
            Ok(keys) => keys,
            Err(refused) => return error(&frame, &refused),
        };
    }
    let id = |key: &SecurityKey| URL_SAFE_NO_PAD.encode(&key.credential);
    let credentials: Vec<String> = keys.iter().map(id).collect();
    let voter = &session.identity.voter;
    let handle = crate::console::people::hashed(&format!("{} {}", app.origin, voter.name));
    render(&ShowPage {
        frame: &frame,
        groups: voter.groups.iter().map(|group| text::line(group)).collect(),
        way: session.identity.way.name(),
        keys: keys
            .iter()
            .map(|key| (text::line(&key.label), view::time(key.added), id(key)))
            .collect(),
        credentials: serde_json::Value::from(credentials).to_string(),
        host: &app.host,
        handle: URL_SAFE_NO_PAD.encode(handle),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyForm {
    csrf: String,
    /// A [`NewKey`] as JSON, which a script makes of what the browser says.
    key: String,
}

pub(super) async fn add_key(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: HeaderMap,
    Form(form): Form<KeyForm>,
) -> Response {
    let added = async {
        is_own_form(&session, &form.csrf)?;
        let key: NewKey = serde_json::from_str(&form.key).map_err(|error| {
            let what = format!("what the browser says of the key can't be read: {error}");
            Refused::new(
                StatusCode::BAD_REQUEST,
                &what,
                "try again, or another browser",
            )
        })?;
        let _: Vec<SecurityKey> = app.daemon.post(&session.identity, "/v1/keys", &key).await?;
        Ok(())
    };
    let result = added.await;
    done(&app, &session, "/account", &headers, result)
}

#[derive(Debug, Deserialize)]
pub(super) struct RemovalForm {
    csrf: String,
    credential: String,
}

pub(super) async fn remove_key(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: HeaderMap,
    Form(form): Form<RemovalForm>,
) -> Response {
    let removed = async {
        is_own_form(&session, &form.csrf)?;
        let path = format!("/v1/keys?credential={}", encoded(&form.credential));
        let response = app
            .daemon
            .send(Some(&session.identity), Method::DELETE, &path, Bytes::new())
            .await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(Refused::new(
            response.status(),
            "that key can't be removed",
            "load the page again",
        ))
    };
    let result = removed.await;
    done(&app, &session, "/account", &headers, result)
}
