//! Who speaks: what the kernel says of the other end of a connection.

use std::{ffi::CString, sync::Arc};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State, connect_info::Connected},
    http::request::Parts,
    middleware::Next,
    response::{IntoResponse, Response},
    serve::IncomingStream,
};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::{
    host::{Failure, FailureKind, Host},
    socket::Gate,
};
use crate::approval::Voter;

/// The other end of a connection, as it was when it connected.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: u32,
    /// Why it may not speak, if so.
    pub(super) barred: Option<Failure>,
}

/// A person at the control socket: not an agent, and named by the user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person(Voter);

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

/// Refuses agents: those that were one when they connected and those that have become one since.
pub(super) async fn refuse_agents(
    State(host): State<Arc<dyn Host>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let pid = peer.pid;
    let verdict = match peer.barred {
        Some(failure) => Err(failure),
        None => super::routes::blocking(move || barred(&*host, pid)).await,
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

impl Person {
    /// The person behind a user id; asks the user database, which may block.
    #[must_use]
    pub fn of(uid: u32) -> Self {
        // An unknown user goes by the number; a user database that fails is the same as none, which
        // can only take groups away.
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let groups = user.as_ref().map(groups).unwrap_or_default();
        let name = user.map_or_else(|| uid.to_string(), |user| user.name);
        Self(Voter {
            uid,
            name: name.into(),
            groups,
        })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The user id.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.0.uid
    }

    pub(super) fn into_voter(self) -> Voter {
        self.0
    }
}

fn groups(user: &User) -> Box<[Box<str>]> {
    let Ok(name) = CString::new(user.name.as_str()) else {
        return Box::default();
    };
    let ids: Vec<Gid> = getgrouplist(&name, user.gid).unwrap_or_default();
    ids.into_iter()
        .filter_map(|id| Group::from_gid(id).ok().flatten())
        .map(|group| group.name.into())
        .collect()
}

impl<S: Send + Sync> FromRequestParts<S> for Person {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<Peer>>() else {
            let error = "the control socket doesn't know who is speaking";
            return Err(Failure::new(FailureKind::Forbidden, error));
        };
        let uid = peer.uid;
        super::routes::blocking(move || Ok(Self::of(uid))).await
    }
}
