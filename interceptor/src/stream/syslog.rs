//! Records as syslog messages: RFC 5424, over TLS as RFC 5425 has it, each behind its length.
//!
//! Syslog has no word for "received": what a socket took may be gone with either host. What there is is the end of a
//! connection: a receiver that is told that there will be no more answers when it has read to there (RFC 5425, 4.4).
//! So a connection carries some seconds or megabytes, is ended, and what it carried counts when the other side has
//! ended it too. What doesn't count goes again.

use std::{io, path::Path, sync::Arc, time::Duration};

use nix::unistd::gethostname;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    config::Syslog,
    line::{Line, Severity},
};
use crate::{
    fetch::{authorities, chain},
    inert::inert,
};

/// How long a receiver may take to be there, to take some of what is written, or to end a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest header field of a host's name, in bytes (RFC 5424, 6).
const HOST_BYTES_MAX: usize = 255;

/// What says messages' structure of ours.
const ID: &str = "interceptor";

/// What a receiver may say at the end of a connection, in bytes; none says anything.
const SAID_BYTES_MAX: usize = 4_096;

/// Both directions of a connection, in TLS or not.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A receiver.
pub(super) struct Receiver {
    config: Syslog,
    tls: Option<TlsConnector>,
    host: String,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", self.config)
    }
}

/// A connection to one.
pub(super) struct Connection {
    wire: Box<dyn Wire>,
}

impl Receiver {
    /// `config`'s, believed for `roots`, as PEM, besides the system's authorities.
    ///
    /// # Errors
    /// Where what TLS is to believe or to present can't be read.
    pub(super) fn new(config: Syslog, roots: &[String]) -> io::Result<Self> {
        let tls = match config.is_tls {
            true => Some(TlsConnector::from(Arc::new(tls(&config, roots)?))),
            false => None,
        };
        let host = gethostname().unwrap_or_default();
        Ok(Self {
            tls,
            host: header(&host.to_string_lossy()),
            config,
        })
    }

    /// `line` as a message behind its length (RFC 6587, 3.4.1; RFC 5425, 4.3).
    pub(super) fn message(&self, line: &Line) -> Vec<u8> {
        let severity = match line.severity {
            Severity::Warning => 4,
            Severity::Notice => 5,
            Severity::Informational => 6,
        };
        let fact = |name: &str| {
            let found = line.facts.iter().find(|(of, _)| *of == name);
            found.map_or("-", |(_, text)| text)
        };
        let facts: String = line
            .facts
            .iter()
            .map(|(name, text)| format!(" {name}=\"{}\"", value(text)))
            .collect();
        let head = format!(
            "<{}>1 {} {} interceptor {} {} [{ID}@{} seq=\"{}\"{facts}][origin software=\"interceptor\" swVersion=\"{}\"] ",
            u16::from(self.config.facility) * 8 + severity,
            time(line.time_ns),
            self.host,
            std::process::id(),
            header(fact("kind")),
            self.config.enterprise,
            line.seq,
            env!("CARGO_PKG_VERSION"),
        );
        let room = self.config.message_bytes_max.saturating_sub(head.len());
        let text = line.text(room);
        format!("{} {head}{text}", head.len() + text.len()).into_bytes()
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let (host, port) = (&*self.config.host, self.config.port);
        let connecting = async {
            let stream = TcpStream::connect((host, port)).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let _ = stream.set_nodelay(true);
            let Some(tls) = &self.tls else {
                return Ok(Connection {
                    wire: Box::new(stream),
                });
            };
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| format!("`{host}` is no name that a certificate can have"))?;
            let stream = tls.connect(name, stream).await;
            Ok(Connection {
                wire: Box::new(stream.map_err(|error| chain(&error))?),
            })
        };
        timeout(PATIENCE, connecting)
            .await
            .unwrap_or_else(|_| Err(format!("it isn't there within {} s", PATIENCE.as_secs())))
    }
}

impl Connection {
    /// Has the receiver's host take `messages`.
    pub(super) async fn send(&mut self, messages: &[u8]) -> Result<(), String> {
        let mut rest = messages;
        while !rest.is_empty() {
            let written = timeout(PATIENCE, self.wire.write(rest)).await;
            match written {
                Ok(Ok(0)) => return Err("it takes nothing more".to_owned()),
                Ok(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(stalled()),
            }
        }
        let flushed = timeout(PATIENCE, self.wire.flush()).await;
        flushed
            .map_err(|_| stalled())?
            .map_err(|error| error.to_string())
    }

    /// Waits until the receiver ends the connection, which it shouldn't.
    pub(super) async fn ended(&mut self) -> String {
        let mut said = [0; 64];
        loop {
            match self.wire.read(&mut said).await {
                Ok(0) => return "it ended the connection".to_owned(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    }

    /// Ends the connection, and waits until the receiver, which has read all then, has ended it too.
    pub(super) async fn finish(mut self) -> Result<(), String> {
        let ending = async {
            self.wire.shutdown().await?;
            let mut said = [0; 64];
            let mut bytes = 0;
            loop {
                match self.wire.read(&mut said).await {
                    Ok(0) => return Ok(()),
                    // It ended TCP and forgot to end TLS: it has read all the same.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error),
                    Ok(count) => bytes += count,
                }
                if bytes > SAID_BYTES_MAX {
                    return Err(io::Error::other("it talks, which no receiver does"));
                }
            }
        };
        match timeout(PATIENCE, ending).await {
            Ok(ended) => {
                ended.map_err(|error| format!("it didn't confirm what it was sent: {error}"))
            }
            Err(_) => Err(format!(
                "it didn't confirm what it was sent by ending the connection, within {} s",
                PATIENCE.as_secs()
            )),
        }
    }
}

fn stalled() -> String {
    format!("it took nothing for {} s", PATIENCE.as_secs())
}

fn tls(config: &Syslog, roots: &[String]) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(authorities(roots)?);
    let Some((certificate, key)) = &config.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let named = |path: &Path, what: String| io::Error::other(format!("{}: {what}", path.display()));
    let certificates = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| named(certificate, error.to_string()))?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, error.to_string()))?;
    builder
        .with_client_auth_cert(certificates, private)
        .map_err(|error| named(certificate, error.to_string()))
}

/// `text` as a field of a header: printable ASCII without spaces, `-` for nothing.
fn header(text: &str) -> String {
    let printable = text
        .chars()
        .map(|character| match character {
            '!'..='~' => character,
            _ => '?',
        })
        .take(HOST_BYTES_MAX);
    let field: String = printable.collect();
    if field.is_empty() {
        "-".to_owned()
    } else {
        field
    }
}

/// `text` as a value of structured data (RFC 5424, 6.3.3), with nothing in it that acts on who reads it.
fn value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in inert(text).chars() {
        if matches!(character, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// A time as messages have it: RFC 3339 with microseconds, the most that RFC 5424 (6.2.3) has.
fn time(time_ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time_ns)) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::record::{Event, Record, Timestamp};
    use serde_json::json;

    use super::*;

    fn receiver() -> Receiver {
        let config: super::super::Stream =
            serde_saphyr::from_str("syslog: {server: 'tcp://127.0.0.1:5514', message_bytes: 2048}")
                .unwrap();
        let super::super::config::Receiver::Syslog(config) = config.receiver else {
            panic!()
        };
        let mut receiver = Receiver::new(config, &[]).unwrap();
        receiver.host = "host1".to_owned();
        receiver
    }

    fn message(value: serde_json::Value) -> String {
        let record = Record {
            seq: 7,
            time: Timestamp(1_066_346_055_003_000_999),
            session: None,
            agent: Arc::from("a"),
            event: Event::notice("x", []),
        };
        String::from_utf8(receiver().message(&Line::new(&record, value))).unwrap()
    }

    #[test]
    fn a_message_is_as_the_rfc_says() {
        let value = json!({"kind": "decision", "verdict": "deny", "agent": "a", "rule": "say \"no\" [to] \\this"});
        let message = message(value.clone());
        let (length, rest) = message.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), rest.len());
        let expected = format!(
            "<108>1 2003-10-16T23:14:15.003000Z host1 interceptor {} decision [interceptor@32473 seq=\"7\" agent=\"a\" kind=\"decision\" verdict=\"deny\" rule=\"say \\\"no\\\" [to\\] \\\\this\"][origin software=\"interceptor\" swVersion=\"{}\"] {value}",
            std::process::id(),
            env!("CARGO_PKG_VERSION"),
        );
        assert_eq!(rest, expected);
    }

    #[test]
    fn no_message_is_longer_than_its_receiver_takes_and_none_holds_another() {
        let hostile = "\n<0>1 - - - - - - forged\0\r\n\u{1b}[2J";
        let value = json!({"kind": hostile, "agent": hostile, "rule": hostile, "content": "x".repeat(9_000)});
        let message = message(value);
        assert!(message.len() <= 2_048 + 5, "{}", message.len());
        assert!(
            message.contains(r#""left_out":{"content":9002}"#),
            "{message}"
        );
        assert!(message.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
}
