//! The control API at the console's address, for programs with a token and for whoever is signed in.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::is_own_form;
use crate::{
    console::{
        daemon::Refused,
        server::{App, From, cookie},
    },
    control::{ErrorBody, Identity, STOPPED},
};

/// Largest request that is passed on, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What only whoever is at the control socket asks.
const SOCKET_ONLY: &str = "/v1/console/";

/// Passes a request on in the name of whoever asks.
pub(super) async fn pass(
    State(app): State<Arc<App>>,
    Extension(From(from)): Extension<From>,
    request: Request,
) -> Response {
    match passed(&app, from, request).await {
        Ok(response) => response,
        Err(refused) => {
            let body = ErrorBody {
                error: refused.error,
                remedy: refused.remedy,
            };
            let mut response = (refused.status, axum::Json(body)).into_response();
            if refused.status == StatusCode::UNAUTHORIZED {
                let bearer = HeaderValue::from_static("Bearer realm=\"interceptor\"");
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, bearer);
            }
            response
        }
    }
}

async fn passed(app: &App, from: std::net::IpAddr, request: Request) -> Result<Response, Refused> {
    let identity = who(app, from, &request)?;
    let (head, body) = request.into_parts();
    if head.uri.path().starts_with(SOCKET_ONLY) {
        let what = "this is asked at the control socket alone";
        return Err(Refused::new(StatusCode::NOT_FOUND, what, ""));
    }
    let too_large =
        |error: axum::Error| Refused::new(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string(), "");
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(too_large)?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let response = app
        .daemon
        .send(Some(&identity), head.method, path, body)
        .await?;
    let (head, body) = response.into_parts();
    let mut answer = Response::new(Body::new(body));
    *answer.status_mut() = head.status;
    for name in [header::CONTENT_TYPE, HeaderName::from_static(STOPPED)] {
        if let Some(value) = head.headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    Ok(answer)
}

/// Whoever has the token, or is signed in; what does something also shows that it comes from a page of ours.
fn who(app: &App, from: std::net::IpAddr, request: &Request) -> Result<Identity, Refused> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let unknown = |what: &str| {
        Refused::new(
            StatusCode::UNAUTHORIZED,
            what,
            "name a token as `Authorization: Bearer …`",
        )
    };
    if let Some(authorization) = header("authorization") {
        // By address alone: nobody guesses one, and nobody is to keep others out by wrong ones.
        let guesser = format!("a token from {from}");
        let wait = app.limits.attempt(&guesser, from, Instant::now());
        wait.map_err(|_| {
            Refused::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong tokens",
                "wait a minute",
            )
        })?;
        let token = authorization
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let identity = token.and_then(|(_, token)| app.tokens.of(token.trim()));
        let identity = identity.ok_or_else(|| unknown("nobody has this token"))?;
        app.limits.succeeded(&guesser, from);
        return Ok(identity);
    }
    let session = cookie(request.headers(), app.cookie())
        .and_then(|cookie| app.sessions.of(cookie, Instant::now(), true))
        .ok_or_else(|| unknown("nobody knows who asks"))?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        is_own_form(&session, header("x-csrf-token").unwrap_or_default())?;
    }
    Ok(session.identity)
}
