//! The mail server. lettre speaks SMTP; connections and TLS are ours where they can be, so that names are looked up as
//! the caller says and the same roots are believed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use interceptor_core::login::Secret;
use lettre::transport::smtp::{
    Error,
    authentication::{Credentials, DEFAULT_MECHANISMS},
    client::{AsyncSmtpConnection, AsyncTokioStream, Certificate, CertificateStore, TlsParameters},
    commands::{Data, Mail, Rcpt},
    extension::ClientId,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::{
    config::{EmailConfig, Security},
    net::{Net, Stream},
    queue::Failure,
    secrets::text,
};

/// A mail server.
pub(super) struct Server {
    net: Net,
    /// For STARTTLS, which lettre does.
    tls: Option<TlsParameters>,
}

/// What a server did, by recipient, with its codes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) taken: Vec<usize>,
    /// Not now.
    pub(super) later: Vec<(usize, u16)>,
    /// Not at all.
    pub(super) never: Vec<(usize, u16)>,
}

impl Server {
    pub(super) fn new(
        config: &EmailConfig,
        net: Net,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, String> {
        let tls = if config.security == Security::StartTls {
            let mut builder = TlsParameters::builder(config.server.to_string())
                .certificate_store(CertificateStore::None);
            for root in roots {
                // The system may have some that can't be read; nobody is believed because of them.
                if webpki_reads(root)
                    && let Ok(certificate) = Certificate::from_der(root.to_vec())
                {
                    builder = builder.add_root_certificate(certificate);
                }
            }
            Some(builder.build().map_err(|error| error.to_string())?)
        } else {
            None
        };
        Ok(Self { net, tls })
    }

    /// Sends `mail` to those of the configured recipients whose places are `to`.
    pub(super) async fn send(
        &self,
        config: &EmailConfig,
        password: Option<Secret>,
        to: &[usize],
        mail: &[u8],
    ) -> Result<Accepted, Failure> {
        let server = &config.server;
        let broke = |error: Error| failure(server, "broke off", &error);
        let mut connection = self.open(config).await?;
        if let (Some((user, _)), Some(password)) = (&config.login, password) {
            let password = text(&password, "its password")?.to_owned();
            let credentials = Credentials::new(user.to_string(), password);
            let login = connection.auth(DEFAULT_MECHANISMS, &credentials).await;
            login.map_err(|error| failure(server, &format!("doesn't let `{user}` in"), &error))?;
        }
        let sender = Some(config.from.email.clone());
        let mailed = connection.command(Mail::new(sender, Vec::new())).await;
        mailed.map_err(|error| failure(server, "won't have mail from this sender", &error))?;
        let mut accepted = Accepted::default();
        for index in to {
            let Some(mailbox) = config.to.get(*index) else {
                continue;
            };
            let answer = connection
                .command(Rcpt::new(mailbox.email.clone(), Vec::new()))
                .await;
            match answer {
                Ok(_) => accepted.taken.push(*index),
                Err(error) => match error.status().map(u16::from) {
                    Some(code) if error.is_permanent() => accepted.never.push((*index, code)),
                    Some(code) => accepted.later.push((*index, code)),
                    None => return Err(broke(error)),
                },
            }
        }
        if !accepted.taken.is_empty() {
            connection.command(Data).await.map_err(broke)?;
            let taken = connection.message(mail).await;
            taken.map_err(|error| failure(server, "won't have the mail", &error))?;
        }
        // It has it, whether or not it says good-bye.
        _ = connection.quit().await;
        Ok(accepted)
    }

    async fn open(&self, config: &EmailConfig) -> Result<AsyncSmtpConnection, Failure> {
        let server = &config.server;
        let secure = config.security == Security::Smtps;
        let stream = match config.security {
            // TLS begins later, and nothing is said before.
            Security::StartTls => self.net.connect_for_starttls(server, config.port).await?,
            Security::Smtps | Security::None => {
                self.net.connect(server, config.port, secure).await?
            }
        };
        let hello = ClientId::Domain(config.from.email.domain().to_owned());
        let stream = Box::new(Lines {
            stream,
            held: Vec::new(),
        });
        let opened = AsyncSmtpConnection::connect_with_transport(stream, &hello).await;
        let mut connection = opened.map_err(|error| failure(server, "speaks no SMTP", &error))?;
        if let Some(tls) = &self.tls {
            let upgraded = connection.starttls(tls.clone(), &hello).await;
            upgraded.map_err(|error| failure(server, "begins no TLS", &error))?;
        }
        Ok(connection)
    }
}

/// Why a server failed. Of what it says only the code is told on: it may repeat what it was sent, a password included.
fn failure(server: &str, what: &str, error: &Error) -> Failure {
    let why = match error.status() {
        Some(code) => format!("{server} {what}: it answers {code}"),
        None if error.is_tls() => {
            format!("{server} {what}: no TLS, or nobody vouches for its certificate")
        }
        None if error.is_client() => format!("{server} {what}: it lacks what is needed for that"),
        None => format!("{server} {what}: the connection failed"),
    };
    if error.is_permanent() || error.is_client() {
        Failure::unwelcome(why)
    } else {
        Failure::down(why)
    }
}

/// Whether the library takes `root`; one that it doesn't would spoil all others.
fn webpki_reads(root: &CertificateDer<'static>) -> bool {
    rustls::RootCertStore::empty().add(root.clone()).is_ok()
}

/// A connection that is read line by line, so that lettre never has anything in hand when TLS begins: what somebody in
/// between sent along with the answer to STARTTLS meets the handshake, and ends it.
#[derive(Debug)]
struct Lines {
    stream: Stream,
    held: Vec<u8>,
}

impl AsyncRead for Lines {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            let mut bytes = [0; 1_024];
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.stream).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) => this.held.extend_from_slice(read.filled()),
                other => return other,
            }
        }
        let line = memchr::memchr(b'\n', &this.held).map_or(this.held.len(), |end| end + 1);
        let count = line.min(buffer.remaining());
        buffer.put_slice(this.held.get(..count).unwrap_or_default());
        this.held.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lines {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl AsyncTokioStream for Lines {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer()
    }
}
