//! The control API over the Unix socket.
//!
//! Whoever speaks to it is known by what the kernel says of the peer, and is refused if it runs as
//! an agent. What the daemon is made of stays behind [`Host`].

mod api;
mod channel;
mod host;
mod links;
mod peer;
mod person;
mod query;
mod routes;
mod socket;
mod streams;
mod table;
#[cfg(test)]
mod tests;

pub use self::{
    api::{
        AgentConnects, AuthorityCertificate, Ballot, ConsoleLink, ConsoleStatus, Deed, Done,
        ErrorBody, ExportManifest, ExportQuery, JournalStatus, KeyQuery, Label, LinkCode, Me,
        NewDeed, NewKey, NewTag, Note, ObservedQuery, OldSocketCounts, PolicyFile, PolicyStatus,
        PolicyText, ProxyStatus, Reason, Session, SignIn, Status, TagTarget, Tagged, Trouble,
        agent_name,
    },
    channel::IDENTITY,
    host::{ConsoleDesk, Failure, FailureKind, Host, Told},
    links::Links,
    person::{Identity, Person, Role, Way, user},
    query::{STOPPED, SessionsQuery, encoded, with_query},
    socket::{ControlSocket, SocketError},
};

use std::{future::Future, io, os::unix::net::UnixStream, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

/// How long a stopping daemon waits for requests that are being answered.
const FAREWELL: Duration = Duration::from_secs(2);

/// Answers each console whose line comes by `lines`.
async fn consoles(
    mut lines: mpsc::UnboundedReceiver<UnixStream>,
    host: Arc<dyn Host>,
    stopped: watch::Receiver<bool>,
) {
    while let Some(line) = lines.recv().await {
        tokio::spawn(channel::serve(line, host.clone(), stopped.clone()));
    }
}

/// Answers requests on `socket`, and those of consoles, whose lines come by `lines`, until `stop` ends; then removes
/// the socket.
///
/// # Errors
/// Where the socket fails.
pub async fn serve(
    socket: ControlSocket,
    host: Arc<dyn Host>,
    lines: mpsc::UnboundedReceiver<UnixStream>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = watch::channel(false);
    let consoles_host = host.clone();
    let router = routes::socket(host.clone(), stopped.clone());
    let listener = socket.listen(host)?;
    let mut ended = stopped.clone();
    tokio::spawn(consoles(lines, consoles_host, stopped.clone()));
    let serving = axum::serve(
        listener,
        router.into_make_service_with_connect_info::<peer::Peer>(),
    )
    .with_graceful_shutdown(async move {
        stop.await;
        // Streams end with this; without it they would keep the server up for ever.
        stopping.send_replace(true);
    });
    tokio::select! {
        served = serving => served,
        () = async {
            // An error means that the sender is gone: it has stopped.
            _ = ended.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(FAREWELL).await;
        } => Ok(()),
    }
}
