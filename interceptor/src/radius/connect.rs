//! A connection of our own to the server of a session.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use rustls::Connection;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    task::AbortHandle,
};
use tokio_postgres::{Client, Config, NoTls, config::SslMode};

use super::Scene;
use crate::{
    credentials::Reader,
    leg::Leg,
    tls::{Server, Tls},
    upstream,
};

/// How long a server may take to answer a connect.
const DIAL_PATIENCE: Duration = Duration::from_secs(3);

/// Bytes that a server may send in all. What is asked is answered in some KiB; plans may be long.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// SSLRequest: its length, and its code in place of a protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A connection, which ends when this is dropped.
pub(super) struct Connected {
    pub(super) client: Client,
    driver: AbortHandle,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Logs in as `reader` at the server of `scene`, by TLS to the same name where the session's way there is.
///
/// # Errors
/// Why that can't be, for people.
pub(super) async fn connect(
    tls: &Tls,
    scene: &Scene,
    reader: &Reader,
    database: &str,
) -> Result<Connected, String> {
    let destination = &scene.origin.destination;
    let unreachable = |error: io::Error| format!("{destination} can't be reached: {error}");
    let mut socket = upstream::dial(&scene.network, destination, DIAL_PATIENCE)
        .await
        .map_err(unreachable)?;
    let leg = match (scene.is_secure, destination.address()) {
        (true, Some(address)) => {
            socket.write_all(&SSL_REQUEST).await.map_err(unreachable)?;
            let mut answer = [0];
            socket.read_exact(&mut answer).await.map_err(unreachable)?;
            if answer != *b"S" {
                return Err(format!("{destination} doesn't want TLS here"));
            }
            let name = scene.origin.names.first().map(|name| &**name);
            let server = Server::new(name, address);
            let reached = tls.reach(&socket, &server, vec![b"postgresql".to_vec()]);
            let reached = reached.await.map_err(|unreached| {
                format!("TLS to {destination} can't be had: {}", unreached.reason)
            })?;
            Leg::secure(socket, Connection::Client(reached.connection))
        }
        (true, None) => return Err("there is no TLS to a UNIX socket".to_owned()),
        (false, _) => Leg::plain(socket),
    };
    let mut config = Config::new();
    config
        .user(&*reader.user)
        .password(reader.password.expose())
        .dbname(database)
        .application_name("interceptor")
        // It is there already, where it has to be.
        .ssl_mode(SslMode::Disable);
    let bounded = Bounded {
        inner: leg,
        left: ANSWER_BYTES_MAX,
    };
    let (client, connection) = config
        .connect_raw(bounded, NoTls)
        .await
        .map_err(|error| format!("{} can't log in: {}", reader.user, super::ask::said(&error)))?;
    let driver = tokio::spawn(async move {
        // Its errors are those of what is asked.
        let _ = connection.await;
    });
    Ok(Connected {
        client,
        driver: driver.abort_handle(),
    })
}

/// A stream that gives no more than so much.
struct Bounded<S> {
    inner: S,
    left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        let count = buffer.filled().len().saturating_sub(before);
        match self.left.checked_sub(count) {
            Some(left) => {
                self.left = left;
                read
            }
            None => Poll::Ready(Err(io::Error::other("the server says too much"))),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
