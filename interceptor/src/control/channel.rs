//! The console's way in: HTTP/2 over a socket that only its process has, so that it needs no name and no key.
//!
//! The console says for whom it asks; what they may is decided here. Whoever takes the console over can ask in
//! people's names, and no more than that: it holds no file, no key and no hook, and what a rule wants a security key's
//! signature for it can't ask for at all.

use std::{os::unix::net::UnixStream, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};

use super::{
    host::{Failure, FailureKind, Host},
    person::{Identity, Person},
    routes::{self, Stopping},
};

/// Names the person whom the console asks for: an [`Identity`] as JSON, in base64url.
pub const IDENTITY: &str = "interceptor-identity";

/// Streams that a console may have open: a tab of a browser each.
const STREAMS_MAX: u32 = 4_096;

/// Answers what the console at the other end of `socket` asks, until it ends or the daemon stops.
pub(crate) async fn serve(socket: UnixStream, host: Arc<dyn Host>, mut stopped: Stopping) {
    let router = routes::console(host, stopped.clone());
    let serving = async {
        socket.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(socket)?;
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        connection.await.map_err(std::io::Error::other)
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::debug!(%error, "the console's line ended");
        },
        // An error means that the daemon is gone.
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

/// Tells whom the console asks for.
pub(super) async fn identify(
    State(host): State<Arc<dyn Host>>,
    mut request: Request,
    next: Next,
) -> Response {
    match person(&*host, &request) {
        Ok(person) => {
            request.extensions_mut().insert(person);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

fn person(host: &dyn Host, request: &Request) -> Result<Person, Failure> {
    let header = request.headers().get(IDENTITY);
    let identity = header
        .and_then(|value| URL_SAFE_NO_PAD.decode(value).ok())
        .and_then(|json| serde_json::from_slice::<Identity>(&json).ok())
        .ok_or_else(|| {
            Failure::new(
                FailureKind::Forbidden,
                "the console says not for whom it asks",
            )
        })?;
    admit(host, identity)
}

/// The person that `identity` says, with what they may here.
pub(super) fn admit(host: &dyn Host, identity: Identity) -> Result<Person, Failure> {
    let Identity {
        voter,
        way,
        at_most,
    } = identity;
    let role = host.role(&voter, way);
    let role = role.map(|role| at_most.map_or(role, |most| most.min(role)));
    Person::admit(voter, way, role)
}
