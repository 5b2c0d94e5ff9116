//! TLS on both sides: the destination is reached and verified first, then the agent is answered with a
//! certificate of our own that carries the destination's names.

mod authority;
mod hellos;
mod verify;

use std::{
    cell::Cell,
    collections::HashMap,
    fmt, fs, io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::digest;
use bytes::Bytes;
use interceptor_core::{origin::Destination, protocol::tls::Alert};
use rustls::{
    ClientConfig, ClientConnection, Connection, ProtocolVersion, ServerConfig, ServerConnection,
    SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::ProducesTickets,
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use self::{
    authority::{Authority, AuthorityError, Leaf, LeafKeyPair, Signs, Wanted, certificate_path},
    hellos::{NoHello, read_hello},
    verify::TrustError,
};
use crate::{
    config::{ClientCertificate, TlsConfig},
    leg::{handshake, read_once},
    socket::Socket,
    sync::lock,
};

/// Server configurations that are kept: one for each certificate, name and inner protocol. Each has some
/// 4 KiB.
const LEAVES_MAX: usize = 1_024;

/// Sessions that can be resumed with upstream servers.
const RESUMABLE: usize = 1_024;

/// How long a TLS 1.3 server that asked for a certificate and got none is given to say that it won't go
/// on: its refusal comes after the handshake.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(250);

/// Everything that TLS needs on this host.
pub struct Tls {
    authority: CertificateDer<'static>,
    /// One key for all leaves of this process's life, never on disk: making one costs more than signing.
    leaf_key: LeafKeyPair,
    provider: Arc<CryptoProvider>,
    /// For upstreams that get no certificate of ours.
    plain: Arc<ClientConfig>,
    /// For those that do, first match first.
    certified: Vec<(ClientCertificate, Arc<ClientConfig>)>,
    tickets: Arc<dyn ProducesTickets>,
    leaves: Mutex<HashMap<LeafKey, Kept>>,
    /// How long a handshake may take, on either side.
    handshake_patience: Duration,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The local certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The certificates that are believed or presented.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The library refuses.
    #[error("TLS can't be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// The server that was asked for, as its certificate has to name it.
#[derive(Debug, Clone)]
pub struct Server {
    /// The name that the client gave, else the address.
    pub name: ServerName<'static>,
    /// Where it is.
    pub address: SocketAddr,
}

/// A destination that is who it says it is.
#[derive(Debug)]
pub struct Reached {
    /// The connection, its handshake done.
    pub connection: ClientConnection,
    /// The name of the server.
    pub name: Box<str>,
    /// The protocol that it chose for the inside.
    pub alpn: Option<Vec<u8>>,
    /// It asked for a client certificate and there is none to present.
    pub certificate_wanted: bool,
}

/// Why a destination can't be talked to.
#[derive(Debug, Clone)]
pub struct Unreached {
    /// What the agent is told.
    pub alert: Alert,
    /// What people are told.
    pub reason: String,
}

/// Why an agent's handshake failed.
#[derive(Debug)]
pub enum Unmet {
    /// It doesn't believe our certificate; the alert's name.
    Disbelief(String),
    /// Something else.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LeafKey {
    name: Box<str>,
    upstream: [u8; 32],
    alpn: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Kept {
    config: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
    renewed_at: OffsetDateTime,
}

impl Server {
    /// The server at `address` that the client calls `name`, or doesn't name.
    #[must_use]
    pub fn new(name: Option<&str>, address: SocketAddr) -> Self {
        let by_name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        Self {
            name: by_name.unwrap_or_else(|| ServerName::from(address.ip().to_canonical())),
            address,
        }
    }
}

impl Tls {
    /// Reads what the configuration names; leaves are behind `authority`, a certificate.
    ///
    /// # Errors
    /// When a file is missing, broken or not what it should be.
    pub fn open(
        authority: CertificateDer<'static>,
        config: &TlsConfig,
        handshake_patience: Duration,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(verify::Verifier::new(
            &provider,
            &config.roots,
            &config.revoked,
        )?);
        let client = |resolver: Presents| -> Result<Arc<ClientConfig>, TlsError> {
            let mut config = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .dangerous()
                .with_custom_certificate_verifier(verifier.clone())
                .with_client_cert_resolver(Arc::new(resolver));
            config.resumption = Resumption::in_memory_sessions(RESUMABLE);
            Ok(Arc::new(config))
        };
        let mut certified = Vec::new();
        for certificate in &config.client_certificates {
            let key = present(certificate, &provider)?;
            certified.push((certificate.clone(), client(Presents(Some(key)))?));
        }
        Ok(Self {
            authority,
            leaf_key: LeafKeyPair::generate()?,
            plain: client(Presents(None))?,
            certified,
            tickets: rustls::crypto::aws_lc_rs::Ticketer::new()?,
            leaves: Mutex::default(),
            provider,
            handshake_patience,
        })
    }

    /// Has the handshake with `server` on `socket`, offering `alpn` for the inside, and verifies it.
    ///
    /// # Errors
    /// With the alert that the agent would have seen, or sent, without us.
    pub async fn reach(
        &self,
        socket: &Socket,
        server: &Server,
        alpn: Vec<Vec<u8>>,
    ) -> Result<Reached, Unreached> {
        let name = server.name.to_str();
        let config = self
            .certified
            .iter()
            .find(|(certificate, _)| {
                let servers = &certificate.destination;
                servers.contains(&Destination::Ip(server.address), Some(&name))
            })
            .map_or(&self.plain, |(_, config)| config);
        let fail = |error: &rustls::Error| Unreached {
            alert: verify::alert(error),
            reason: error.to_string(),
        };
        let connection = ClientConnection::new_with_alpn(config.clone(), server.name.clone(), alpn)
            .map_err(|error| fail(&error))?;
        let mut connection = Connection::Client(connection);
        let mut wanted = false;
        let done = tokio::time::timeout(self.handshake_patience, async {
            handshake(socket, &mut connection, || wanted |= WANTED.take()).await?;
            let late = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            if wanted && late {
                let answer = async {
                    socket.readable().await?;
                    read_once(socket, &mut connection)
                };
                return tokio::time::timeout(REFUSAL_PATIENCE, answer)
                    .await
                    .unwrap_or(Ok(()));
            }
            Ok(())
        });
        let failed = match done.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(match verify::of_tls(&error) {
                Some(error) => fail(error),
                None => Unreached {
                    alert: Alert::HANDSHAKE_FAILURE,
                    reason: format!("the server ended the handshake: {error}"),
                },
            }),
            Err(_) => Some(Unreached {
                alert: Alert::INTERNAL_ERROR,
                reason: format!(
                    "no handshake within {} s",
                    self.handshake_patience.as_secs()
                ),
            }),
        };
        if let Some(mut failed) = failed {
            if wanted {
                failed.reason.push_str(&format!(
                    "; the server asks for a client certificate: give it one with `tls: {{client_certificates: [{{destination: \"{}\", certificate: FILE, key: FILE}}]}}` in the configuration, or have a rule pass the connection through",
                    server.name.to_str()
                ));
            }
            return Err(failed);
        }
        let Connection::Client(connection) = connection else {
            return Err(Unreached {
                alert: Alert::INTERNAL_ERROR,
                reason: "not a client's connection".to_owned(),
            });
        };
        Ok(Reached {
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            name: server.name.to_str().into(),
            certificate_wanted: wanted,
            connection,
        })
    }

    /// Answers the agent behind `socket`, whose first bytes are `first`, in the place of `reached`.
    ///
    /// # Errors
    /// When it won't have it; it has been told by an alert then.
    pub async fn receive(
        &self,
        socket: &Socket,
        first: &[u8],
        reached: &Reached,
        signer: &impl Signs,
    ) -> Result<Met, Unmet> {
        let kept = self
            .leaf(reached, signer)
            .await
            .map_err(|error| Unmet::Failed(error.to_string()))?;
        let mut connection = ServerConnection::new(kept.config)
            .map(Connection::Server)
            .map_err(|error| Unmet::Failed(error.to_string()))?;
        let mut rest = first;
        let mut fed = Ok(());
        while !rest.is_empty() && fed.is_ok() {
            if connection.read_tls(&mut rest).is_err() {
                break;
            }
            fed = connection.process_new_packets().map(|_| ());
        }
        let done = match fed {
            Ok(()) => {
                let done = handshake(socket, &mut connection, || {});
                tokio::time::timeout(self.handshake_patience, done).await
            }
            Err(error) => {
                // The alert that says why.
                let _ = crate::leg::flush(socket, &mut connection);
                Ok(Err(io::Error::new(io::ErrorKind::InvalidData, error)))
            }
        };
        match done {
            Ok(Ok(())) => Ok(Met {
                connection,
                certificate: kept.certificate,
            }),
            Ok(Err(error)) => Err(match verify::of_tls(&error) {
                Some(rustls::Error::AlertReceived(alert)) if verify::is_disbelief(*alert) => {
                    Unmet::Disbelief(format!("{alert:?}"))
                }
                // What clients do that check the certificate after the handshake, or say nothing.
                None if error.kind() == io::ErrorKind::UnexpectedEof
                    || error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    Unmet::Disbelief("the connection was closed".to_owned())
                }
                _ => Unmet::Failed(error.to_string()),
            }),
            Err(_) => Err(Unmet::Failed(format!(
                "no handshake within {} s",
                self.handshake_patience.as_secs()
            ))),
        }
    }

    /// What to present in the place of `reached`: kept, or made now.
    async fn leaf(&self, reached: &Reached, signer: &impl Signs) -> Result<Kept, TlsError> {
        let upstream = reached
            .connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        let key = LeafKey {
            name: reached.name.clone(),
            upstream: upstream.map_or([0; 32], |certificate| sha256(certificate)),
            alpn: reached.alpn.clone(),
        };
        let now = OffsetDateTime::now_utc();
        let leaves = || lock(&self.leaves);
        if let Some(kept) = leaves().get(&key).filter(|kept| kept.renewed_at > now) {
            return Ok(kept.clone());
        }
        let wanted = self.leaf_key.wanted(upstream, &reached.name);
        let Leaf {
            certificate,
            not_after,
        } = signer.sign(wanted).await?;
        // With the authority behind it: a store may hold it as an intermediate only.
        let chain = vec![certificate.clone(), self.authority.clone()];
        let shown = CertifiedKey::new(chain, self.leaf_key.signer());
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)));
        config.alpn_protocols = reached.alpn.iter().cloned().collect();
        config.ticketer = self.tickets.clone();
        // One is enough: agents that resume come back one after the other.
        config.send_tls13_tickets = 1;
        let kept = Kept {
            config: Arc::new(config),
            certificate,
            renewed_at: not_after - authority::LEAF_RENEWED_BEFORE,
        };
        let mut leaves = leaves();
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        leaves.insert(key, kept.clone());
        Ok(kept)
    }
}

/// An agent that was answered.
#[derive(Debug)]
pub struct Met {
    /// The connection, its handshake done.
    pub connection: Connection,
    /// The certificate that it was shown.
    pub certificate: CertificateDer<'static>,
}

impl Reached {
    /// What people want to know of it, by name.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("server_name", self.name.to_string())];
        if let Some(version) = self.connection.protocol_version() {
            facts.push(("version", version_name(version).to_owned()));
        }
        if let Some(suite) = self.connection.negotiated_cipher_suite() {
            facts.push(("cipher", format!("{:?}", suite.suite())));
        }
        if let Some(alpn) = &self.alpn {
            facts.push(("alpn", String::from_utf8_lossy(alpn).into_owned()));
        }
        let chain = self.connection.peer_certificates().unwrap_or_default();
        facts.push(("certificate_chain", describe_chain(chain)));
        facts
    }

    /// What channel binding `tls-server-end-point` (RFC 5929) takes for its certificate.
    #[must_use]
    pub fn binding(&self) -> Option<Bytes> {
        let chain = self.connection.peer_certificates().unwrap_or_default();
        end_point(chain.first()?)
    }

    /// The names that its certificate is for, lower case, wildcards included.
    #[must_use]
    pub fn names(&self) -> Vec<Box<str>> {
        let chain = self.connection.peer_certificates().unwrap_or_default();
        let Some(Ok((_, parsed))) = chain.first().map(|own| X509Certificate::from_der(own)) else {
            return Vec::new();
        };
        let Ok(Some(extension)) = parsed.subject_alternative_name() else {
            return Vec::new();
        };
        let names = extension.value.general_names.iter();
        names
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::DNSName(name) => {
                    Some(name.to_ascii_lowercase().into())
                }
                _ => None,
            })
            .collect()
    }
}

/// The hash of a certificate that channel binding `tls-server-end-point` asks for: that of its signature,
/// or SHA-256 where that is weaker.
#[must_use]
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Bytes> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = match &*parsed.signature_algorithm.algorithm.to_id_string() {
        // md5, sha1 and sha256 with RSA, sha256 with ECDSA.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        // Undefined for signatures that name no hash (Ed25519, RSASSA-PSS).
        _ => return None,
    };
    Some(Bytes::copy_from_slice(
        digest::digest(algorithm, certificate).as_ref(),
    ))
}

/// A chain as one line: each certificate's subject, issuer, end and fingerprint.
fn describe_chain(chain: &[CertificateDer<'_>]) -> String {
    let one = |der: &CertificateDer<'_>| {
        let fingerprint = hex::encode(sha256(der));
        match X509Certificate::from_der(der) {
            Ok((_, parsed)) => format!(
                "subject=\"{}\" issuer=\"{}\" not_after={} sha256={fingerprint}",
                parsed.subject(),
                parsed.issuer(),
                parsed.validity().not_after.to_datetime().date(),
            ),
            Err(_) => format!("sha256={fingerprint}"),
        }
    };
    chain.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// A version as people know it.
fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLS 1.3",
        ProtocolVersion::TLSv1_2 => "TLS 1.2",
        _ => "another",
    }
}

/// The versions in a ClientHello as people know them.
#[must_use]
pub fn version_names(versions: &[u16]) -> String {
    let name = |version: &u16| match version {
        0x0304 => "TLS 1.3".to_owned(),
        0x0303 => "TLS 1.2".to_owned(),
        0x0302 => "TLS 1.1".to_owned(),
        0x0301 => "TLS 1.0".to_owned(),
        0x0300 => "SSL 3.0".to_owned(),
        other => format!("{other:#06x}"),
    };
    versions.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// The certificate and key that the configuration names.
fn present(
    certificate: &ClientCertificate,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TrustError> {
    let wrong = |path: &Path, why: String| TrustError::File {
        path: path.to_owned(),
        why,
    };
    let read = |path: &Path| fs::read(path).map_err(|error| wrong(path, error.to_string()));
    let (chain_file, key_file) = (&*certificate.certificate, &*certificate.key);
    let chain = CertificateDer::pem_slice_iter(&read(chain_file)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(chain_file, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
        .map_err(|error| wrong(key_file, error.to_string()))?;
    CertifiedKey::from_der(chain, key, provider)
        .map(Arc::new)
        .map_err(|error| wrong(chain_file, error.to_string()))
}

thread_local! {
    /// A server asked for a certificate that there is none of, in the handshake step that is being worked
    /// on. rustls tells the resolver, which all connections share, and works on one step without a pause.
    static WANTED: Cell<bool> = const { Cell::new(false) };
}

/// Presents one certificate to whoever asks, or notes that somebody did.
#[derive(Debug)]
struct Presents(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        if self.0.is_none() {
            WANTED.set(true);
        }
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        // Also where there is none: rustls asks only those that have some.
        true
    }
}
