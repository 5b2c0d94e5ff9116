//! Whom upstream to believe, and how to say that somebody isn't believed.

use std::{collections::HashSet, fs, io, path::PathBuf, sync::Arc};

use interceptor_core::protocol::tls::Alert;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why upstreams can't be verified.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A configured file can't be read or isn't what it should be.
    #[error("{}: {why}; it is named in the configuration under `tls:`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The library refuses what it was given.
    #[error("upstream servers can't be verified: {0}")]
    Library(String),
}

/// Verifies against the system's roots, the configured ones and the configured revocation lists.
#[derive(Debug)]
pub(super) struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    /// Configured certificates, which are believed as servers' own too: self-signed ones mostly say that
    /// they are authorities, and a chain of one isn't a chain to webpki.
    own: HashSet<Vec<u8>>,
}

impl Verifier {
    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        roots: &[PathBuf],
        revoked: &[PathBuf],
    ) -> Result<Self, TrustError> {
        let mut store = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "some of the system's root certificates can't be read");
        }
        store.add_parsable_certificates(system.certs);
        let mut own = HashSet::new();
        for path in roots {
            for certificate in pem_file::<CertificateDer<'static>>(path)? {
                own.insert(certificate.to_vec());
                store.add(certificate).map_err(|error| TrustError::File {
                    path: path.clone(),
                    why: error.to_string(),
                })?;
            }
        }
        let mut lists = Vec::new();
        for path in revoked {
            lists.extend(pem_file::<CertificateRevocationListDer<'static>>(path)?);
        }
        let has_lists = !lists.is_empty();
        if store.is_empty() {
            tracing::warn!(
                "there are no root certificates: no TLS server can be verified, install `ca-certificates` or set `tls: {{roots: […]}}`"
            );
            // webpki refuses to work with none; this one signs nothing that is ever sent.
            let nobody = rcgen::generate_simple_self_signed(["invalid".to_owned()])
                .map_err(|error| TrustError::Library(error.to_string()))?;
            let _ = store.add(nobody.cert.der().clone());
        }
        let mut builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        if has_lists {
            // Who isn't on a list that was given isn't known to be revoked.
            builder = builder
                .with_crls(lists)
                .allow_unknown_revocation_status()
                .only_check_end_entity_revocation();
        }
        let chains = builder
            .build()
            .map_err(|error| TrustError::Library(error.to_string()))?;
        Ok(Self { chains, own })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .chains
            .verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verified {
            Err(Error::InvalidCertificate(error)) if self.own.contains(&**end_entity) => {
                if matches!(alert_of(&error), Alert::CERTIFICATE_REVOKED) {
                    return Err(Error::InvalidCertificate(error));
                }
                is_valid_at(end_entity, now)?;
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn is_valid_at(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let bad = |error| Err(Error::InvalidCertificate(error));
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return bad(CertificateError::BadEncoding);
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        bad(CertificateError::NotValidYet)
    } else if now > validity.not_after.timestamp() {
        bad(CertificateError::Expired)
    } else {
        Ok(())
    }
}

/// Everything of one kind in a PEM file, at least one.
fn pem_file<T: rustls::pki_types::pem::PemObject>(path: &PathBuf) -> Result<Vec<T>, TrustError> {
    let wrong = |why: String| TrustError::File {
        path: path.clone(),
        why,
    };
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let found = T::pem_slice_iter(&text)
        .collect::<Result<Vec<T>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong(
            "nothing of the kind is in it; PEM is expected".to_owned(),
        ));
    }
    Ok(found)
}

/// The alert that a client sends about such a certificate, and so what it is told of one.
fn alert_of(error: &CertificateError) -> Alert {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
            Alert::CERTIFICATE_EXPIRED
        }
        E::Revoked => Alert::CERTIFICATE_REVOKED,
        E::UnknownIssuer => Alert::UNKNOWN_CA,
        E::NotValidForName | E::NotValidForNameContext { .. } | E::BadEncoding => {
            Alert::BAD_CERTIFICATE
        }
        // A self-signed certificate that says it is an authority.
        E::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => Alert::UNKNOWN_CA,
        _ => Alert::CERTIFICATE_UNKNOWN,
    }
}

/// What an agent is told when the handshake with its destination fails.
pub(super) fn alert(error: &Error) -> Alert {
    match error {
        Error::InvalidCertificate(error) => alert_of(error),
        Error::AlertReceived(description) => Alert(u8::from(*description)),
        Error::PeerIncompatible(_) => Alert::HANDSHAKE_FAILURE,
        Error::PeerMisbehaved(_) | Error::InvalidMessage(_) => Alert::DECODE_ERROR,
        _ => Alert::INTERNAL_ERROR,
    }
}

/// What TLS says in an operating system's error.
pub(super) fn of_tls(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|error| error.downcast_ref())
}

/// Whether a client that says this doesn't believe our certificate.
pub(super) const fn is_disbelief(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}
