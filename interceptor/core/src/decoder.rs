//! What every protocol's decoder is to the byte loop: a state machine without I/O.
//!
//! The loop feeds bytes with [`Decoder::receive`], then takes [`Step`]s until it gets
//! [`Step::Wait`]. The bytes of a proposed operation stay inside the decoder until a
//! [`Permit`](crate::ruling::Permit) releases exactly them.

use std::{fmt, net::IpAddr, time::Duration};

use bytes::{Bytes, BytesMut};

use crate::{
    login::{Authorization, Login},
    operation::Operation,
    record::{ApprovalId, Event, Timestamp},
    ruling::Ruling,
};

/// One of the two ends of an intercepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The agent's side.
    Client,
    /// The true destination's side.
    Upstream,
}

/// What the byte loop has to do next.
#[derive(Debug)]
pub enum Step {
    /// Nothing until more bytes or a ruling arrive.
    Wait,
    /// Have this decided, then call [`Decoder::rule`]. At most one proposal is open at a time.
    Propose(Operation),
    /// Say, with [`Decoder::login`], whether the configuration has a credential for this login; nothing
    /// goes on before.
    Login {
        /// The user that the agent wants to be.
        user: String,
        /// The database that it wants to be in.
        database: String,
    },
    /// Say, with [`Decoder::authorize`], whether the configuration has a credential for requests of this
    /// host and path; nothing goes on before.
    Authorize {
        /// The host that the request names.
        host: Option<Box<str>>,
        /// Its path.
        path: Box<str>,
    },
    /// Send these bytes.
    Send(Peer, Bytes),
    /// Put this into the session's record.
    Record(Event),
    /// The client is about to be told these addresses of a name.
    Resolved(Resolved),
    /// Who presents this key to the same destination may cancel what this session waits for.
    Cancellable(CancelKey),
    /// The session with this key is to be cancelled; the destination is told as well.
    Cancel(CancelKey),
    /// This side gets nothing more: half of the connection is closed once what is queued is sent.
    Finish(Peer),
    /// Both sides agreed to go on in TLS, and have said nothing since: send what is queued, have both
    /// handshakes, then call [`Decoder::secured`].
    StartTls,
    /// The server passes on what follows to somewhere else: send what is queued, then look at the connection
    /// as if it had just begun.
    Tunnel {
        /// What the client said already.
        client: BytesMut,
        /// What the server said already.
        upstream: BytesMut,
    },
    /// Both sides agreed to go on in HTTP/2, in which the client asks: send what is queued, then take its requests
    /// one by one.
    Http2 {
        /// What the client said already.
        client: BytesMut,
        /// What the server said already.
        upstream: BytesMut,
    },
    /// Send what is queued, then close both sides.
    Close(Closing),
}

/// What a client is told of a name.
///
/// It is as true as the server that says so: whoever answers can give his own address any name, and any
/// alias. Only what a server says that the operator trusts proves anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The name that was asked for, lower case, without the last dot.
    pub name: Box<str>,
    /// What it stands for according to the answer, in the order of the chain. Not the targets of services
    /// (HTTPS records): with those anybody can call his own address by anybody's name.
    pub aliases: Vec<Box<str>>,
    /// The addresses at the end of the chain, each with how long it may be remembered.
    pub addresses: Vec<(IpAddr, Duration)>,
}

/// What a server gave a session to be cancelled by (PostgreSQL's BackendKeyData). A secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey(pub Bytes);

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelKey(…)")
    }
}

/// Why a decoder ends its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// The protocol's own farewell or end of stream.
    Finished,
    /// It could not be understood or broke a rule of the protocol; the reason is for people.
    Malformed(String),
    /// It was refused; the client has been told in its own protocol.
    Refused(String),
}

/// Why a session can't go on, whatever was said in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The true destination can't be reached; the reason is for people.
    Unreachable(String),
    /// There is a credential for this login, but not what it refers to; the reason is for the agent,
    /// which the operator's paths are not.
    NoSecret(String),
    /// The journal takes no records. Nothing that is still to be sent may be sent.
    Unrecorded,
    /// The sessions of this agent hold more memory than those of one agent may, and this one is large.
    Memory,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) => write!(f, "unreachable: {reason}"),
            Self::NoSecret(reason) => f.write_str(reason),
            Self::Unrecorded => f.write_str("the journal takes no records"),
            Self::Memory => f.write_str(
                "this agent's connections hold more memory than one agent's may (`limits.memory_per_agent`)",
            ),
        }
    }
}

/// A protocol's state machine.
pub trait Decoder: Send {
    /// Takes all of `bytes` (leaving it empty) as the next bytes from `peer`.
    fn receive(&mut self, from: Peer, bytes: &mut BytesMut, now: Timestamp);

    /// `peer` will send nothing more.
    fn finish(&mut self, from: Peer);

    /// Ends the session; the client is told why in its own protocol, as far as that has a way.
    fn fail(&mut self, failure: &Failure);

    /// TLS has been started on both sides, as [`Step::StartTls`] asked.
    fn secured(&mut self) {}

    /// Answers the open proposal.
    fn rule(&mut self, ruling: Ruling, now: Timestamp);

    /// The proposal is still open because people are asked, about `approval`; a protocol that has a way to keep its
    /// client waiting uses it.
    fn still_held(&mut self, approval: ApprovalId) {
        // Others have none.
        let _ = approval;
    }

    /// What its operations depend on from the beginning of the session: as whom, in which database, with which
    /// settings.
    fn beginning(&self) -> Bytes {
        Bytes::new()
    }

    /// Answers [`Step::Login`]: the credential to log in with, or that the agent's own messages do.
    fn login(&mut self, login: Option<Login>) {
        // Only protocols that ask have something to do.
        let _ = login;
    }

    /// Answers [`Step::Authorize`]: what the request takes, or that it goes on as it is.
    fn authorize(&mut self, authorization: Option<Authorization>) {
        let _ = authorization;
    }

    /// Whether the client has begun something that it has to finish before long.
    fn is_waiting_for_client(&self) -> bool {
        false
    }

    /// The client took too long over what it had begun.
    fn expire(&mut self) {}

    /// Whether a peer that takes nothing of what is there for it is given up before long; some protocols'
    /// clients rest for hours over a result.
    fn gives_up_stalled(&self) -> bool {
        false
    }

    /// A peer took nothing for too long; `why` is for people.
    fn stalled(&mut self, why: &str) {
        let _ = why;
    }

    /// What to do next.
    fn poll(&mut self) -> Step;

    /// Whether the loop should go on reading from `peer`; `false` when the decoder is full.
    fn wants(&self, from: Peer) -> bool;
}
