//! The control API over the Unix socket.
//!
//! Whoever speaks to it is known by what the kernel says of the peer, and is refused if it runs as
//! an agent. What the daemon is made of stays behind [`Host`].

mod api;
mod host;
mod peer;
mod routes;
mod socket;
mod streams;
#[cfg(test)]
mod tests;

pub use self::{
    api::{
        AgentConnects, AuthorityCertificate, Ballot, Deed, Done, ErrorBody, ExportQuery,
        JournalStatus, Label, NewDeed, NewTag, OldSocketCounts, PolicyStatus, ProxyStatus, Reason,
        Session, Status, TagTarget, Tagged, Trouble, agent_name,
    },
    host::{Failure, FailureKind, Host},
    peer::Person,
    socket::{ControlSocket, SocketError},
};

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::sync::watch;

/// How long a stopping daemon waits for requests that are being answered.
const FAREWELL: Duration = Duration::from_secs(2);

/// Answers requests on `socket` until `stop` ends, then removes the socket.
///
/// # Errors
/// Where the socket fails.
pub async fn serve(
    socket: ControlSocket,
    host: Arc<dyn Host>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = watch::channel(false);
    let router = routes::router(host.clone(), stopped.clone());
    let listener = socket.listen(host)?;
    let mut ended = stopped.clone();
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
