//! The way out: names looked up as the caller says, addresses tried in turn, TLS that is verified, one HTTP request a
//! connection, everything with an end. This is for some requests a minute; a pool would only go stale.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    address::ServiceUrl,
    limits::{ADDRESSES_MAX, ANSWER_BYTES_MAX, ANSWER_HEAD_BYTES_MAX, Timing},
    queue::{Failure, FailureKind},
};

/// Looks up the addresses of a host's name, with a port.
pub type Resolve =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// What the system's own resolver says. It reads files, so a confined process needs another.
#[must_use]
pub fn system_resolver() -> Resolve {
    Arc::new(|host, port| {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host, port)).await?;
            Ok(addresses.collect())
        })
    })
}

/// How connections are made.
#[derive(Clone)]
pub(super) struct Net {
    tls: TlsConnector,
    resolve: Resolve,
    timing: Timing,
}

impl Net {
    /// Connections that believe `roots` and nobody else.
    ///
    /// # Errors
    /// Where the library won't have that.
    pub(super) fn new(
        roots: &[CertificateDer<'static>],
        resolve: Resolve,
        timing: Timing,
    ) -> Result<Self, rustls::Error> {
        let mut store = RootCertStore::empty();
        // What the system has and webpki can't read is nobody's fault here.
        store.add_parsable_certificates(roots.iter().cloned());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            resolve,
            timing,
        })
    }

    /// A connection to `host`, in the clear or in TLS. In the clear only to this host, whatever its name leads to.
    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
        secure: bool,
    ) -> Result<Stream, Failure> {
        let how = if secure { How::Tls } else { How::Clear };
        self.connect_as(host, port, how).await
    }

    /// A connection to `host` in the clear, which the caller uses for nothing but to begin TLS.
    pub(super) async fn connect_for_starttls(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Stream, Failure> {
        self.connect_as(host, port, How::TlsLater).await
    }

    async fn connect_as(&self, host: &str, port: u16, how: How) -> Result<Stream, Failure> {
        let addresses = self.addresses(host, port).await?;
        let mut last = Failure::down(format!("{host} has no address"));
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            if how == How::Clear && !address.ip().is_loopback() {
                last = Failure::unwelcome(format!(
                    "{host} is {}, not this host: nothing is sent there in the clear",
                    address.ip()
                ));
                continue;
            }
            match timeout(self.timing.connect, self.open(host, address, how)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(failure)) => last = failure,
                Err(_) => {
                    last = Failure::down(format!(
                        "{host} ({address}) doesn't answer within {}",
                        seconds(self.timing.connect)
                    ));
                }
            }
        }
        Err(last)
    }

    /// A POST request to `url`, and its answer; of its body only where `reads`, for who takes it has taken it,
    /// whatever becomes of the rest of their answer.
    pub(super) async fn post(
        &self,
        url: &ServiceUrl,
        headers: HeaderMap,
        body: Bytes,
        reads: bool,
    ) -> Result<Answer, Failure> {
        let host = url.host();
        let stream = self.connect(host, url.port(), url.is_secure()).await?;
        let failed = |error: hyper::Error| Failure::down(format!("{host} broke off: {error}"));
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(ANSWER_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let connection = Aborted(tokio::spawn(async move {
            // Why it ends, the request is told.
            _ = connection.await;
        }));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        // The configuration's parser has seen that it is one.
        *request.uri_mut() = url
            .path()
            .parse()
            .map_err(|_| Failure::unwelcome("its URL has no path that can be asked for"))?;
        *request.headers_mut() = headers;
        let authority = HeaderValue::from_str(url.authority())
            .map_err(|_| Failure::unwelcome("its URL has no host that can be named"))?;
        request.headers_mut().insert(header::HOST, authority);
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = if reads {
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
            body.await.map(http_body_util::Collected::to_bytes).ok()
        } else {
            None
        };
        drop(connection);
        Ok(Answer {
            status,
            after,
            body,
        })
    }

    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        timeout(self.timing.connect, (self.resolve)(host.to_owned(), port))
            .await
            .map_err(|_| {
                Failure::down(format!(
                    "the address of {host} isn't found within {}",
                    seconds(self.timing.connect)
                ))
            })?
            .map_err(|error| Failure::down(format!("the address of {host} isn't found: {error}")))
    }

    async fn open(&self, host: &str, address: SocketAddr, how: How) -> Result<Stream, Failure> {
        let tcp = TcpStream::connect(address).await.map_err(|error| {
            Failure::down(format!("{host} ({address}) can't be reached: {error}"))
        })?;
        if how != How::Tls {
            return Ok(Stream::Clear(tcp));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Failure::unwelcome(format!("{host} is no name that a certificate could have"))
        })?;
        match self.tls.connect(name, tcp).await {
            Ok(stream) => Ok(Stream::Secure(Box::new(stream))),
            Err(error) => Err(Failure::down(format!(
                "no TLS with {host} ({address}): {error}"
            ))),
        }
    }
}

/// How a connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Clear,
    Tls,
    TlsLater,
}

/// An answer to a request.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// How long it wants to be left alone.
    after: Option<Duration>,
    /// None where it wasn't asked for, was too long or broke off.
    pub(super) body: Option<Bytes>,
}

impl Answer {
    /// Whether it was taken. Nothing of the answer but its number is told on: it might repeat what it was sent, and
    /// that holds secrets.
    pub(super) fn check(&self, who: &str) -> Result<(), Failure> {
        let status = self.status;
        if status.is_success() {
            return Ok(());
        }
        let why = format!("{who} answers {status}");
        Err(match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Failure {
                    kind: FailureKind::Down(self.after),
                    why,
                }
            }
            _ if status.is_server_error() => Failure {
                kind: FailureKind::Down(self.after),
                why,
            },
            _ if status.is_redirection() => Failure::unwelcome(format!(
                "{why}; redirects aren't followed, so configure the address that it leads to"
            )),
            // Standard Webhooks: who answers this wants no more of it.
            StatusCode::GONE => Failure::last(why),
            _ => Failure::unwelcome(why),
        })
    }
}

/// A connection.
pub(super) enum Stream {
    Clear(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Clear(stream) => stream.peer_addr(),
            Self::Secure(stream) => stream.get_ref().0.peer_addr(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Secure(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Secure(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(context),
            Self::Secure(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A task that ends when this does.
pub(super) struct Aborted(pub(super) tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}
