//! The web server: connections, the headers of every answer, who may ask what.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{self, COOKIE},
        request::Parts,
    },
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    daemon::Daemon,
    pages,
    people::{Limits, Oidc, Passwords, Session, Sessions, Tokens},
    setup::{Setup, Telling},
    telling::Teller,
};
use crate::{control::encoded, fetch::Fetch};

/// Connections at once: tabs of some hundred reviewers.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a browser may take to shake hands, and to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest form or document that is taken, in bytes.
const BODY_BYTES_MAX: usize = 256 << 10;

/// What everything in here works with.
pub(super) struct App {
    pub(super) daemon: Daemon,
    pub(super) sessions: Sessions,
    pub(super) passwords: Arc<Passwords>,
    /// Who tells people, if anybody does.
    pub(super) teller: Option<Teller>,
    pub(super) oidc: Option<Oidc>,
    pub(super) tokens: Tokens,
    pub(super) limits: Limits,
    pub(super) instance: String,
    /// Its address, as browsers know it.
    pub(super) origin: Box<str>,
    /// Its host, which security keys are asked from.
    pub(super) host: Box<str>,
    /// Whether browsers reach it by TLS.
    pub(super) is_tls: bool,
}

/// A console that has read all that it needs of files.
pub(super) struct Prepared {
    setup: Setup,
    line: UnixStream,
    listener: TcpListener,
    fetch: Fetch,
    telling: Telling,
    tls: Option<TlsAcceptor>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct From(pub(super) IpAddr);

impl Prepared {
    /// # Errors
    /// Where a certificate can't be used.
    pub(super) fn new(setup: Setup, line: UnixStream, listener: TcpListener) -> io::Result<Self> {
        let fetch = Fetch::new(&setup.roots)?;
        let tls = setup.tls.as_ref().map(|(chain, key)| acceptor(chain, key));
        Ok(Self {
            fetch,
            telling: Telling::read(&setup)?,
            tls: tls.transpose()?,
            setup,
            line,
            listener,
        })
    }

    /// Who it is to become.
    pub(super) const fn user(&self) -> u32 {
        self.setup.user
    }

    /// Serves until the daemon is gone.
    ///
    /// # Errors
    /// Where it can't begin to.
    pub(super) async fn serve(self) -> io::Result<()> {
        let Self {
            setup,
            line,
            listener,
            fetch,
            telling,
            tls,
        } = self;
        let (daemon, ends) = Daemon::connect(line).await?;
        let ends = tokio::spawn(ends);
        let passwords = Arc::new(Passwords::new(setup.users));
        let teller = Teller::start(telling, &setup.origin, daemon.clone(), passwords.clone());
        let teller = teller.await.map_err(io::Error::other)?;
        let origin = setup.origin.clone();
        let app = Arc::new(App {
            daemon,
            sessions: Sessions::new(setup.idle, setup.absolute),
            passwords,
            teller,
            oidc: setup
                .oidc
                .map(|provider| Oidc::new(provider, origin, fetch)),
            tokens: Tokens::new(setup.tokens),
            limits: Limits::default(),
            instance: setup.instance,
            is_tls: setup.origin.starts_with("https:"),
            origin: setup.origin,
            host: setup.host,
        });
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = router(app);
        tokio::select! {
            _ = ends => Ok(()),
            () = accept(listener, tls, router) => Ok(()),
        }
    }
}

fn acceptor(chain: &str, key: &str) -> io::Result<TlsAcceptor> {
    let unfit = |error: rustls::pki_types::pem::Error| {
        io::Error::other(format!(
            "the console's certificate or key is no PEM: {error}"
        ))
    };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(unfit)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(unfit)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| io::Error::other(format!("the console's certificate and key: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: tokio::net::TcpListener, tls: Option<TlsAcceptor>, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the console can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Small answers are to leave at once.
        let _ = stream.set_nodelay(true);
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            match tls {
                None => serve(stream, address, router).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(PATIENCE, tls.accept(stream)).await {
                        serve(stream, address, router).await;
                    }
                }
            }
        });
    }
}

async fn serve(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    router: Router,
) {
    let router = router.layer(axum::Extension(From(address.ip().to_canonical())));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a browser's connection ended");
    }
}

pub(super) fn router(app: Arc<App>) -> Router {
    pages::routes()
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// What an answer tells browsers that they may do with it: nothing but what is ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Turns away what isn't meant for this address, or comes from another site; has every answer say what browsers may do.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = match misdirected(&app, &request) {
        Some(why) => (StatusCode::MISDIRECTED_REQUEST, why).into_response(),
        None if is_foreign(&app, &request) => (
            StatusCode::FORBIDDEN,
            "another site asked for this in your name; nothing was done",
        )
            .into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    // Of our own pages only: forms say where they come from, and nobody else learns what is looked at.
    set(header::REFERRER_POLICY, "same-origin");
    set(
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    );
    set(
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    );
    set(
        HeaderName::from_static("permissions-policy"),
        "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), microphone=(), geolocation=()",
    );
    if app.is_tls {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A name that leads here and isn't ours is how a page elsewhere reads what only this host may (DNS rebinding).
fn misdirected(app: &App, request: &Request) -> Option<String> {
    let said = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let own = app.origin.split_once("://").map(|(_, authority)| authority);
    let is_own = said.is_some() && said.map(str::to_ascii_lowercase).as_deref() == own;
    (!is_own).then(|| {
        format!(
            "this console is {} and nothing else (`console: {{url: …}}`)",
            app.origin
        )
    })
}

/// Whether a request that does something comes from another site's page. Browsers say so.
fn is_foreign(app: &App, request: &Request) -> bool {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return false;
    }
    let header = |name: &HeaderName| request.headers().get(name).map(HeaderValue::as_bytes);
    let origin = header(&header::ORIGIN);
    let site = header(&HeaderName::from_static("sec-fetch-site"));
    origin.is_some_and(|origin| origin != app.origin.as_bytes())
        || site.is_some_and(|site| site != b"same-origin" && site != b"none")
}

impl App {
    /// The name of the cookie that somebody is signed in by. With TLS one that only this host can have set.
    pub(super) const fn cookie(&self) -> &'static str {
        if self.is_tls {
            "__Host-interceptor"
        } else {
            "interceptor"
        }
    }

    /// The name of the cookie of a browser that is at the provider.
    pub(super) const fn flow_cookie(&self) -> &'static str {
        if self.is_tls {
            "__Host-interceptor-flow"
        } else {
            "interceptor-flow"
        }
    }

    /// Has a browser keep `value` as the cookie `name` until it is closed, or drop it where there is none.
    pub(super) fn set_cookie(&self, name: &str, value: Option<&str>) -> HeaderValue {
        let secure = if self.is_tls { "; Secure" } else { "" };
        let (value, age) = match value {
            Some(value) => (value, ""),
            None => ("", "; Max-Age=0"),
        };
        // Lax: whoever follows a link from a chat is signed in.
        let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}");
        HeaderValue::from_str(&cookie).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// The cookie `name` of a request.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// Somebody who is signed in.
pub(super) struct SignedIn {
    pub(super) session: Session,
}

impl FromRequestParts<Arc<App>> for SignedIn {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        // Watching isn't doing: a page that is left open signs out all the same.
        let acts = parts.uri.path() != pages::EVENTS;
        let found = cookie(&parts.headers, app.cookie())
            .and_then(|cookie| app.sessions.of(cookie, Instant::now(), acts));
        if let Some(session) = found {
            return Ok(Self { session });
        }
        if parts.method == Method::GET && acts {
            let next = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let query = encoded(next);
            return Err(Redirect::to(&format!("/sign-in?next={query}")).into_response());
        }
        Err((
            StatusCode::UNAUTHORIZED,
            "you aren't signed in, or not any more; nothing was done",
        )
            .into_response())
    }
}

/// Where `next` leads, if that is one of our pages.
pub(super) fn own_page(next: &str) -> &str {
    let is_own = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains(['\\', '\r', '\n', '\t'])
        && !next.starts_with("/sign-");
    if is_own { next } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_site() {
        for next in [
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "javascript:x",
            "",
            "/\t/evil",
            "/sign-in",
        ] {
            assert_eq!(own_page(next), "/", "{next}");
        }
        assert_eq!(own_page("/approvals/0011?x=y"), "/approvals/0011?x=y");
    }

    #[test]
    fn the_cookie_is_the_one_of_that_name() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; xinterceptor=2"));
        headers.append(COOKIE, HeaderValue::from_static("interceptor=3;b=4"));
        assert_eq!(cookie(&headers, "interceptor"), Some("3"));
        assert_eq!(cookie(&headers, "c"), None);
    }
}
