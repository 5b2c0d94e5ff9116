//! Signing in and out.

use std::{net::IpAddr, sync::Arc, time::Instant};

use askama::Template;
use axum::{
    Extension, Form,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header::SET_COOKIE},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{is_own_form, render};
use crate::{
    console::{
        assets,
        daemon::Refused,
        people::Callback,
        server::{App, From, SignedIn, cookie, own_page},
    },
    control::{Identity, LinkCode, Me, SignIn},
};

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage<'a> {
    instance: &'a str,
    assets: String,
    next: &'a str,
    error: &'a str,
    remedy: &'a str,
    has_users: bool,
    provider: Option<String>,
    by_link: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Next {
    next: String,
}

fn page(app: &App, next: &str, refused: Option<&Refused>, by_link: bool) -> Response {
    let page = SignInPage {
        instance: &app.instance,
        assets: assets::version(),
        next: own_page(next),
        error: refused.map_or("", |refused| &refused.error),
        remedy: refused.map_or("", |refused| &refused.remedy),
        has_users: !app.passwords.is_empty(),
        provider: app.oidc.as_ref().map(|oidc| oidc.host()),
        by_link,
    };
    let status = refused.map_or(StatusCode::OK, |refused| refused.status);
    (status, render(&page)).into_response()
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Query(Next { next }): Query<Next>,
) -> Response {
    page(&app, &next, None, false)
}

/// The page that a link leads to. What signs in stands behind the `#`, which no server and no log sees, and it takes a
/// click, so that nothing that looks ahead uses it up.
pub(super) async fn link(State(app): State<Arc<App>>) -> Response {
    page(&app, "/", None, true)
}

#[derive(Deserialize)]
pub(super) struct PasswordForm {
    name: String,
    password: String,
    #[serde(default)]
    next: String,
}

pub(super) async fn password(
    State(app): State<Arc<App>>,
    Extension(From(from)): Extension<From>,
    Form(form): Form<PasswordForm>,
) -> Response {
    let name: String = form.name.trim().chars().take(64).collect();
    if let Err(wait) = app.limits.attempt(&name, from, Instant::now()) {
        let what = format!("too many attempts; wait {} s", wait.as_secs().max(1));
        let refused = Refused::new(StatusCode::TOO_MANY_REQUESTS, &what, "");
        return page(&app, &form.next, Some(&refused), false);
    }
    let Some(identity) = app.passwords.check(&name, form.password).await else {
        refuse(
            &app,
            &name,
            "console, by password",
            from,
            "wrong name or password",
        )
        .await;
        let refused = Refused::new(
            StatusCode::FORBIDDEN,
            "that name and password don't belong together",
            "",
        );
        return page(&app, &form.next, Some(&refused), false);
    };
    app.limits.succeeded(&name, from);
    begin(&app, identity, from, None, &form.next).await
}

#[derive(Debug, Deserialize)]
pub(super) struct LinkForm {
    code: String,
}

pub(super) async fn redeem(
    State(app): State<Arc<App>>,
    Extension(From(from)): Extension<From>,
    Form(form): Form<LinkForm>,
) -> Response {
    let code = LinkCode { code: form.code };
    match app.daemon.own::<Identity>("/console/links", &code).await {
        Ok(identity) => begin(&app, identity, from, None, "/").await,
        Err(refused) => {
            refuse(&app, "?", "console, by link", from, &refused.error).await;
            page(&app, "/", Some(&refused), false)
        }
    }
}

/// Sends a browser to the provider.
pub(super) async fn oidc(
    State(app): State<Arc<App>>,
    Query(Next { next }): Query<Next>,
) -> Response {
    let Some(oidc) = &app.oidc else {
        return Redirect::to("/sign-in").into_response();
    };
    match oidc.begin(own_page(&next).to_owned()).await {
        Ok((url, browser)) => {
            let cookie = app.set_cookie(app.flow_cookie(), Some(&browser));
            ([(SET_COOKIE, cookie)], Redirect::to(&url)).into_response()
        }
        Err(error) => {
            tracing::warn!(error, "nobody can sign in by OpenID Connect");
            let refused = Refused::new(
                StatusCode::BAD_GATEWAY,
                &error,
                "try again, or sign in otherwise",
            );
            page(&app, &next, Some(&refused), false)
        }
    }
}

/// Where the provider sends a browser back to.
pub(super) async fn callback(
    State(app): State<Arc<App>>,
    Extension(From(from)): Extension<From>,
    headers: HeaderMap,
    Query(callback): Query<Callback>,
) -> Response {
    let Some(oidc) = &app.oidc else {
        return Redirect::to("/sign-in").into_response();
    };
    let browser = cookie(&headers, app.flow_cookie());
    let mut response = match oidc.finish(callback, browser).await {
        Ok(known) => {
            begin(
                &app,
                known.identity,
                from,
                Some(known.id_token),
                &known.next,
            )
            .await
        }
        Err(why) => {
            refuse(&app, "?", "console, by OpenID Connect", from, &why).await;
            let what = format!("you aren't signed in: {why}");
            let refused = Refused::new(StatusCode::FORBIDDEN, &what, "begin again");
            page(&app, "/", Some(&refused), false)
        }
    };
    response
        .headers_mut()
        .append(SET_COOKIE, app.set_cookie(app.flow_cookie(), None));
    response
}

/// Signs somebody in whom the console knows, if the daemon has them.
async fn begin(
    app: &App,
    identity: Identity,
    from: IpAddr,
    id_token: Option<Box<str>>,
    next: &str,
) -> Response {
    let asked = SignIn {
        identity: identity.clone(),
        from: from.to_string(),
    };
    let me: Me = match app.daemon.own("/console/sign-ins", &asked).await {
        Ok(me) => me,
        Err(refused) => return page(app, next, Some(&refused), false),
    };
    match app.sessions.begin(identity, me, id_token, Instant::now()) {
        Ok(value) => {
            let cookie = app.set_cookie(app.cookie(), Some(&value));
            ([(SET_COOKIE, cookie)], Redirect::to(own_page(next))).into_response()
        }
        Err(why) => {
            let refused = Refused::new(StatusCode::INTERNAL_SERVER_ERROR, why, "");
            page(app, next, Some(&refused), false)
        }
    }
}

async fn refuse(app: &App, name: &str, way: &str, from: IpAddr, why: &str) {
    let from = from.to_string();
    let why: String = why.chars().take(300).collect();
    app.daemon
        .note(
            "sign_in_refused",
            [("name", name), ("way", way), ("from", &from), ("why", &why)],
        )
        .await;
}

#[derive(Debug, Deserialize)]
pub(super) struct SignOutForm {
    csrf: String,
}

#[derive(Template)]
#[template(path = "signed_out.html")]
struct SignedOutPage<'a> {
    instance: &'a str,
    assets: String,
    provider: Option<(String, String)>,
}

pub(super) async fn sign_out(
    State(app): State<Arc<App>>,
    SignedIn { session }: SignedIn,
    headers: HeaderMap,
    Form(form): Form<SignOutForm>,
) -> Response {
    if let Err(refused) = is_own_form(&session, &form.csrf) {
        return (refused.status, refused.error).into_response();
    }
    if let Some(cookie) = cookie(&headers, app.cookie()) {
        app.sessions.end(cookie);
    }
    let who = format!(
        "{} ({})",
        session.identity.voter.name,
        session.identity.way.name()
    );
    app.daemon.note("signed_out", [("by", &who)]).await;
    let provider = match (&app.oidc, &session.id_token) {
        (Some(oidc), Some(token)) => oidc.sign_out(token).await.map(|url| (oidc.host(), url)),
        _ => None,
    };
    let gone = app.set_cookie(app.cookie(), None);
    let clear = HeaderValue::from_static("\"cache\", \"storage\"");
    let page = render(&SignedOutPage {
        instance: &app.instance,
        assets: assets::version(),
        provider,
    });
    (
        [
            (SET_COOKIE, gone),
            (
                axum::http::HeaderName::from_static("clear-site-data"),
                clear,
            ),
        ],
        page,
    )
        .into_response()
}
