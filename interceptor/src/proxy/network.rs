//! The network that a session is in: its sockets are opened there.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket},
    os::unix::net::UnixStream as StdUnixStream,
    sync::Arc,
};

use interceptor_core::record::SessionId;
use tokio::net::{TcpSocket, TcpStream, UdpSocket, UnixStream};

use super::{
    desk::Desk,
    message::{NetworkId, Towards},
};
use crate::namespaces;

/// A network namespace, as a session sees it.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    of: NetworkId,
    session: SessionId,
    desk: Arc<Desk>,
}

impl Network {
    pub(super) const fn new(of: NetworkId, session: SessionId, desk: Arc<Desk>) -> Self {
        Self { of, session, desk }
    }

    /// Its cookie, as the hooks know it.
    pub(crate) const fn cookie(&self) -> u64 {
        self.of.cookie
    }

    /// Whether it is the daemon's own.
    pub(crate) const fn is_host(&self) -> bool {
        self.of.is_host
    }

    /// The daemon's own.
    pub(crate) fn host(&self, host: NetworkId) -> Self {
        Self::new(host, self.session, self.desk.clone())
    }

    /// Connects to `destination`.
    ///
    /// # Errors
    /// The operating system's; or that the namespace isn't served any more.
    pub(crate) async fn connect(&self, destination: SocketAddr) -> io::Result<TcpStream> {
        if self.is_host() {
            return TcpStream::connect(destination).await;
        }
        let towards = Towards::Stream(destination);
        let socket = self.desk.socket(self.session, towards).await?;
        TcpSocket::from_std_stream(StdTcpStream::from(socket))
            .connect(destination)
            .await
    }

    /// A connection to the UNIX socket that the session is for: this process can't make one.
    ///
    /// # Errors
    /// The operating system's, or that it isn't the socket any more that was allowed.
    pub(crate) async fn engine(&self) -> io::Result<UnixStream> {
        let socket = self.desk.socket(self.session, Towards::Engine).await?;
        UnixStream::from_std(StdUnixStream::from(socket))
    }

    /// A UDP socket of its own that is connected to `server`.
    ///
    /// # Errors
    /// As of [`Self::connect`].
    pub(crate) async fn datagrams(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = if self.is_host() {
            namespaces::datagrams(server)?
        } else {
            let towards = Towards::Datagrams(server);
            StdUdpSocket::from(self.desk.socket(self.session, towards).await?)
        };
        UdpSocket::from_std(socket)
    }
}
