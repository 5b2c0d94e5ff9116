//! What the two processes say to each other.
//!
//! The daemon believes of what the proxy says only what concerns sessions that it has handed over, and answers
//! with as little as a session takes.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use interceptor_core::{
    decoder::Resolved,
    operation::{Digest, Operation, radius::BlastRadius},
    origin::Origin,
    record::{ApprovalId, SessionId},
    ruling::{Decision, PolicyHash},
};
use serde::{Deserialize, Serialize};

use crate::{
    approval::{Outcome, Withdrawal},
    tls::Wanted,
};

/// Tells questions of one line apart.
pub(super) type Call = u64;

/// What the daemon says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToProxy {
    /// What the proxy is to do, the first message of the first line: with the feed's file, what wakes its reader,
    /// and the other lines' ends.
    Begin(Box<Begin>),
    /// A connection of an agent, with its socket.
    Connection(Box<Handed>),
    /// A socket that agents' questions to DNS servers come in at.
    Questions(NetworkId),
    /// Nobody asks in that network namespace any more.
    Left(u64),
    /// The policy's files as they are now.
    Policy(Vec<(String, String)>),
    /// Ends a session.
    Sever(SessionId),
    /// A held operation, asked about under the first id, has been asked about before under the second.
    Called(ApprovalId, ApprovalId),
    /// What people say about a held operation.
    Outcome(ApprovalId, Outcome),
    /// The answer to a question.
    Answer(Call, Answer),
}

/// What the proxy is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Begin {
    /// The configuration's text, and the file that it is from.
    pub(super) config: (String, PathBuf),
    /// The policy's files: name and text.
    pub(super) policy: Vec<(String, String)>,
    /// The local authority's certificate, in DER.
    pub(super) authority: Vec<u8>,
    /// The network that the daemon is in.
    pub(super) network: NetworkId,
    /// The user that it is to be.
    pub(super) user: u32,
    /// Lines beside the first.
    pub(super) lines: usize,
}

/// Which network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkId {
    /// Its cookie.
    pub(super) cookie: u64,
    /// It is the daemon's own.
    pub(super) is_host: bool,
}

/// A session that the proxy is to carry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Handed {
    /// Its id.
    pub(super) session: SessionId,
    /// Who, and where to.
    pub(super) origin: Arc<Origin>,
    /// What a resolver that the operator trusts has called the destination.
    pub(super) names: Vec<Box<str>>,
    /// Where the agent's side of it is.
    pub(super) network: NetworkId,
}

/// What the proxy says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToDaemon {
    /// It is confined, and carries sessions from now on; what the kernel lacks for that, for people.
    Ready(Vec<String>),
    /// It can't; why, for people.
    Failed(String),
    /// A session is over.
    Ended(SessionId),
    /// People are to be asked.
    Ask(Box<Ask>),
    /// What the operation that was asked about would touch.
    Estimated(ApprovalId, Box<BlastRadius>),
    /// What was asked isn't waited for any more; why.
    Withdraw(ApprovalId, Withdrawal),
    /// Whether the disk has no room for records that wait.
    NoRoom(bool),
    /// The policy of this hash is in force.
    InForce(PolicyHash),
    /// A question.
    Call(Call, Question),
}

/// A held operation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// What the question is called, unless the operation has been asked about before.
    pub(crate) approval: ApprovalId,
    /// The session that waits.
    pub(crate) session: SessionId,
    /// The destination's names, as far as they have been proved.
    pub(crate) names: Vec<Box<str>>,
    /// Its number in the session.
    pub(crate) number: u64,
    /// What it depends on besides its bytes.
    pub(crate) context: Digest,
    /// What it is but for its values, where that can be told.
    pub(crate) shape: Option<Digest>,
    /// All of it.
    pub(crate) operation: Operation,
    /// What holds it.
    pub(crate) decision: Decision,
}

/// What the proxy asks the daemon for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// That everything in the feed before this position is on disk.
    Durable(u64),
    /// That there is room for more records.
    Room,
    /// That the journal takes records again.
    Resumed,
    /// A socket in the session's network.
    Socket(SessionId, Towards),
    /// The secret and the placeholder of a credential, by its place in the list.
    Secret(usize),
    /// To remember what an agent is about to be told. The answer comes when rules by name have effect.
    Learn(SessionId, Names),
    /// Which session a question to a DNS server is of.
    Asker {
        /// The cookie of the network namespace that it came in.
        network: u64,
        /// The agent's socket.
        from: SocketAddr,
        /// The address that it was sent to.
        token: IpAddr,
    },
    /// A certificate for these names that the authority has signed.
    Leaf(Wanted),
}

/// A socket that the proxy can't open itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Towards {
    /// A TCP socket, to be connected there.
    Stream(SocketAddr),
    /// A UDP socket that is connected there.
    Datagrams(SocketAddr),
    /// A connection to the UNIX socket that the session is for.
    Engine,
}

/// What an agent is told of a name.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Names {
    /// The name.
    pub(super) name: Box<str>,
    /// Its aliases.
    pub(super) aliases: Vec<Box<str>>,
    /// Its addresses, and how long each may be remembered.
    pub(super) addresses: Vec<(IpAddr, Duration)>,
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is so.
    Done,
    /// It isn't; why, for people.
    No(String),
    /// A socket, with it.
    Socket,
    /// A secret and a placeholder.
    Secret(Secret, Option<Secret>),
    /// Whether who told it is believed.
    Believed(bool),
    /// The session of who asked.
    Asker(Box<Handed>),
    /// A certificate in DER, and when it ends, in seconds since 1970.
    Leaf(Vec<u8>, i64),
}

/// A secret on its way. It isn't printed.
#[derive(Serialize, Deserialize)]
pub(super) struct Secret(pub(super) Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl From<&Resolved> for Names {
    fn from(resolved: &Resolved) -> Self {
        let Resolved {
            name,
            aliases,
            addresses,
        } = resolved.clone();
        Self {
            name,
            aliases,
            addresses,
        }
    }
}

impl From<Names> for Resolved {
    fn from(names: Names) -> Self {
        let Names {
            name,
            aliases,
            addresses,
        } = names;
        Self {
            name,
            aliases,
            addresses,
        }
    }
}
