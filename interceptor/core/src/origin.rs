//! Who attempts it and where to. Identity comes from the kernel, never from what the client says.

use std::{
    collections::BTreeMap,
    fmt,
    net::{AddrParseError, IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

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
    /// Its command line, where it could be read. Shared by all of its connections.
    pub arguments: Arc<[Box<str>]>,
    /// The cgroup's path below the cgroup v2 mount point.
    pub cgroup: Box<str>,
    /// The cookie of its network namespace, where it isn't the daemon's: the kernel gives none out twice. An
    /// address means another host there. A session begins by saying so on record.
    #[serde(skip)]
    pub network_namespace: Option<u64>,
}

/// What is around the process that connected, read when its operation was held; for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The name of its user, where there is one.
    pub user: Option<Box<str>>,
    /// Its working folder, where it could be read.
    pub folder: Option<Box<str>>,
    /// The id of the container that it is in, as far as its cgroup's name tells.
    pub container: Option<Box<str>>,
    /// Who started it, who started that one, and so on, up to [`ANCESTORS_MAX`]. Shared by all who descend from
    /// the same.
    pub ancestors: Arc<[Ancestor]>,
}

/// Ancestors of a process that people are shown: a shell, a supervisor, a session and what is between.
pub const ANCESTORS_MAX: usize = 8;

/// A process that another one descends from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its process id in the daemon's namespace.
    pub pid: u32,
    /// The executable's path, where it could be read.
    pub executable: Option<Box<str>>,
    /// Its command line, where it could be read.
    pub arguments: Vec<Box<str>>,
}

/// Where the agent connected to: what it gave to `connect()`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Destination {
    /// An address.
    Ip(SocketAddr),
    /// The UNIX socket of this path, on the host: that of a container engine, which is met by one of ours.
    Unix(Arc<str>),
}

/// What a UNIX socket's path stands behind, where a destination is written.
const UNIX: &str = "unix:";

impl Destination {
    /// The address with its port, of what has one.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The address alone.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.address().map(|address| address.ip())
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.address().map(|address| address.port())
    }

    /// The path, of a UNIX socket.
    #[must_use]
    pub fn socket(&self) -> Option<&str> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => Some(path),
        }
    }

    /// Whether nothing that goes there leaves this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.ip().is_none_or(|ip| ip.to_canonical().is_loopback())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{path}"),
        }
    }
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl FromStr for Destination {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(UNIX) {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Ip),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
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
    /// by to this host's resolver; never what the agent merely claims. Lower case. A session starts with
    /// those that the agent was told; these and what it learns are on record where it learns them.
    #[serde(skip)]
    pub names: Vec<Box<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_written_as_they_are_read() {
        for text in [
            "192.0.2.1:80",
            "[2001:db8::1]:443",
            "unix:/run/docker.sock",
            "unix:/a b:80",
        ] {
            let read: Destination = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            assert_eq!(read.socket().is_some(), text.starts_with("unix:"));
            assert_eq!(read.port().is_none(), read.socket().is_some());
        }
        assert!("/run/docker.sock".parse::<Destination>().is_err());
    }
}
