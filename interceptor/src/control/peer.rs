//! Who speaks at the control socket: what the kernel says of the other end of a connection.

use std::sync::Arc;

use axum::{
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    middleware::Next,
    response::{IntoResponse, Response},
    serve::IncomingStream,
};

use super::{
    host::{Failure, FailureKind, Host},
    person::{Person, Way},
    socket::Gate,
};

/// The other end of a connection, as it was when it connected.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: u32,
    /// Why it may not speak, if so.
    pub(super) barred: Option<Failure>,
}

impl Peer {
    /// The peer with these credentials. Whoever can't be placed is barred like an agent: a process
    /// that is gone may have been one.
    pub(super) fn new(host: &dyn Host, uid: u32, pid: Option<i32>) -> Self {
        let pid = pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        Self {
            uid,
            pid,
            barred: barred(host, pid).err(),
        }
    }
}

fn barred(host: &dyn Host, pid: u32) -> Result<(), Failure> {
    let remedy = "run interceptor from a shell outside of any agent";
    // A process in another pid namespace has no number here.
    if pid == 0 {
        let error = "the control socket can't tell which process this is";
        return Err(Failure::new(FailureKind::Forbidden, error).with_remedy(remedy));
    }
    match host.agent_of(pid) {
        Ok(None) => Ok(()),
        Ok(Some(agent)) => Err(Failure::new(
            FailureKind::Forbidden,
            format!("this process runs as agent `{agent}`, and agents may not control interceptor"),
        )
        .with_remedy(remedy)),
        Err(failure) => Err(Failure::new(
            FailureKind::Forbidden,
            format!("the control socket can't tell whether this process is an agent: {failure}"),
        )
        .with_remedy(remedy)),
    }
}

impl Connected<IncomingStream<'_, Gate>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Tells who asks. Refuses agents: those that were one when they connected and those that have become one since.
pub(super) async fn identify(
    State(host): State<Arc<dyn Host>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let verdict = match peer.barred {
        Some(failure) => Err(failure),
        None => {
            super::routes::blocking(move || {
                barred(&*host, peer.pid)?;
                let voter = super::person::user(peer.uid);
                let role = host.role(&voter, Way::Socket);
                Person::admit(voter, Way::Socket, role)
            })
            .await
        }
    };
    match verdict {
        Ok(person) => {
            request.extensions_mut().insert(person);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}
