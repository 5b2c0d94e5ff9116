//! The network that a session is in: its sockets are opened there.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::oneshot;

/// A network namespace, as those see it who open sockets there.
#[derive(Debug, Clone)]
pub enum Network {
    /// The daemon's own.
    Host {
        /// Its cookie.
        cookie: u64,
    },
    /// Another one.
    Other(Arc<Other>),
}

/// A network namespace that isn't the daemon's. A socket belongs to the namespace that the thread is in
/// which makes it, so a thread there makes them.
#[derive(Debug)]
pub struct Other {
    cookie: u64,
    inside: mpsc::Sender<Request>,
}

/// What the thread in a network namespace is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// A TCP socket towards an address.
    Stream(SocketAddr, oneshot::Sender<io::Result<OwnedFd>>),
    /// A UDP socket that is connected to an address.
    Datagrams(SocketAddr, oneshot::Sender<io::Result<OwnedFd>>),
    /// To leave.
    Leave,
}

impl Network {
    pub(super) fn other(cookie: u64, inside: mpsc::Sender<Request>) -> Self {
        Self::Other(Arc::new(Other { cookie, inside }))
    }

    /// Its cookie, as the hooks know it.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        match self {
            Self::Host { cookie } => *cookie,
            Self::Other(other) => other.cookie,
        }
    }

    /// Whether it is the daemon's own.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Host { .. })
    }

    /// A TCP socket of it that can be connected to `towards`.
    ///
    /// # Errors
    /// The operating system's; or that the namespace isn't served any more.
    pub async fn stream(&self, towards: SocketAddr) -> io::Result<OwnedFd> {
        match self {
            Self::Host { .. } => stream(towards),
            Self::Other(other) => other.ask(|reply| Request::Stream(towards, reply)).await,
        }
    }

    /// A UDP socket of its own that is connected to `server`.
    ///
    /// # Errors
    /// As of [`Self::stream`].
    pub async fn datagrams(&self, server: SocketAddr) -> io::Result<OwnedFd> {
        match self {
            Self::Host { .. } => datagrams(server).map(OwnedFd::from),
            Self::Other(other) => other.ask(|reply| Request::Datagrams(server, reply)).await,
        }
    }
}

impl Other {
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Request,
    ) -> io::Result<T> {
        let gone = || io::Error::other("no agent is in its network namespace any more");
        let (reply, answer) = oneshot::channel();
        self.inside.send(request(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Does in the calling thread's namespace what it is asked for; `false` where that is to leave.
pub(super) fn answer(request: Request) -> bool {
    // Who asked may have given up meanwhile.
    match request {
        Request::Stream(towards, reply) => {
            let _ = reply.send(stream(towards));
        }
        Request::Datagrams(server, reply) => {
            let _ = reply.send(datagrams(server).map(OwnedFd::from));
        }
        Request::Leave => return false,
    }
    true
}

/// A TCP socket of the calling thread's namespace for the family of `towards`.
fn stream(towards: SocketAddr) -> io::Result<OwnedFd> {
    let family = if towards.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// A UDP socket of the calling thread's namespace that is connected to `server`.
///
/// # Errors
/// The operating system's.
pub(crate) fn datagrams(server: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let own = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = std::net::UdpSocket::bind(own)?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}
