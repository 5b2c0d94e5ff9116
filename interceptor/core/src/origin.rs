//! Who attempts it and where to. Identity comes from the kernel, never from what the client says.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A tagged cgroup with its descendants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name, unique on this host.
    pub name: Box<str>,
    /// Labels given with the tag.
    pub labels: BTreeMap<Box<str>, Box<str>>,
}

/// The process that called `connect()`, as read when its connection was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id (thread group id) in the daemon's namespace.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// The executable's path, where it could be read.
    pub executable: Option<Box<str>>,
    /// Its command line, where it could be read.
    pub arguments: Vec<Box<str>>,
    /// The cgroup's path below the cgroup v2 mount point.
    pub cgroup: Box<str>,
}

/// Where the agent connected to: the address it gave to `connect()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Destination(pub SocketAddr);

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Everything known about who is behind a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The agent.
    pub agent: Arc<Agent>,
    /// The process.
    pub process: Process,
    /// The true destination.
    pub destination: Destination,
    /// Names that the destination has proved to have (by a certificate that was verified) or is known
    /// by to this host's resolver; never what the agent merely claims. Lower case. A session starts
    /// without any: what it learns is on record where it learns it.
    #[serde(skip)]
    pub names: Vec<Box<str>>,
}
