//! The local certificate authority: made at first start, kept in the state folder.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::hmac;
use interceptor_core::operation::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// How long a leaf is valid from the day before it is made; clients refuse more than 398 days.
const LEAF_DAYS: i64 = 90;

/// How long before its end a leaf isn't handed out any more.
pub(super) const LEAF_RENEWED_BEFORE: Duration = Duration::days(30);

/// Signs the certificates that agents see.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    not_after: OffsetDateTime,
    /// What keeps digests of secrets from being guessed.
    seal: hmac::Key,
}

/// The key of leaves: who has it shows them, and doesn't sign them.
pub struct LeafKeyPair {
    public: Vec<u8>,
    signer: Arc<dyn rustls::sign::SigningKey>,
}

/// A leaf that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its common name.
    pub name: String,
    /// The DNS names that it is for.
    pub names: Vec<String>,
    /// The addresses that it is for.
    pub addresses: Vec<IpAddr>,
    /// Whose it is: a SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7).
    pub key: Vec<u8>,
}

/// Who has leaves signed.
pub trait Signs {
    /// The leaf that is `wanted`, signed.
    ///
    /// # Errors
    /// When a name in it can't be put into a certificate, or nobody signs any more.
    fn sign(&self, wanted: Wanted) -> impl Future<Output = Result<Leaf, AuthorityError>> + Send;
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Why there is no certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        error: io::Error,
    },
    /// What is there is no authority.
    #[error(
        "{}: {why}; restore both files of the certificate authority, or remove the folder to have a new one made (clients have to be told of it again: `interceptor ca install`)",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The library can't do it.
    #[error("the certificate authority can't be made: {0}")]
    Library(String),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// Where the authority's certificate is, below the state folder.
#[must_use]
pub fn certificate_path(state: &Path) -> PathBuf {
    state.join("ca").join("ca.pem")
}

impl Authority {
    /// Reads the authority of the state folder `state`, or makes one called `name` for `days` days.
    ///
    /// # Errors
    /// When it can't be read, written or used.
    pub fn open(state: &Path, name: &str, days: u32) -> Result<Self, AuthorityError> {
        let folder = state.join("ca");
        let (certificate, key) = (certificate_path(state), folder.join("ca.key"));
        let there = |path: &Path| path.try_exists().unwrap_or(true);
        if !there(&certificate) && !there(&key) {
            make(&folder, name, days)?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|error| AuthorityError::Io {
                path: path.to_owned(),
                error,
            })
        };
        let (pem, key_pem) = (read(&certificate)?, read(&key)?);
        let broken = |path: &Path, why: String| AuthorityError::Broken {
            path: path.to_owned(),
            why,
        };
        let key_pair =
            KeyPair::from_pem(&key_pem).map_err(|error| broken(&key, error.to_string()))?;
        let der = <CertificateDer<'static> as rustls::pki_types::pem::PemObject>::from_pem_slice(
            pem.as_bytes(),
        )
        .map_err(|error| broken(&certificate, error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| broken(&certificate, error.to_string()))?;
        if *parsed.public_key().subject_public_key.data != *key_pair.public_key_raw() {
            return Err(broken(
                &key,
                "the key isn't that of the certificate beside it".to_owned(),
            ));
        }
        if !parsed.is_ca() {
            return Err(broken(&certificate, "it isn't an authority's".to_owned()));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        if not_after <= OffsetDateTime::now_utc() {
            return Err(broken(
                &certificate,
                format!("it expired on {}", not_after.date()),
            ));
        }
        let seal = hmac::Key::new(hmac::HMAC_SHA256, &key_pair.serialize_der());
        let issuer = Issuer::from_ca_cert_der(&der, key_pair)
            .map_err(|error| broken(&certificate, error.to_string()))?;
        Ok(Self {
            issuer,
            certificate: der,
            pem,
            not_after,
            seal,
        })
    }

    /// Its certificate, as clients are given it.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate, as others show it behind their own.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// `digest` as it may go on record: without the key of this authority nobody can tell what it is of, though it
    /// be of a short secret.
    #[must_use]
    pub fn keyed(&self, digest: Digest) -> Digest {
        let mut context = hmac::Context::with_key(&self.seal);
        context.update(b"interceptor context v1");
        context.update(&digest.0);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.sign().as_ref());
        Digest(bytes)
    }

    /// Signs the leaf that is `wanted`.
    ///
    /// # Errors
    /// When a name in it can't be put into a certificate, or its key is none.
    pub fn sign(&self, wanted: &Wanted) -> Result<Leaf, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name(&wanted.name));
        for name in &wanted.names {
            let name = name.clone().try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = wanted.addresses.iter().copied();
        params
            .subject_alt_names
            .extend(addresses.map(SanType::IpAddress));
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(1);
        params.not_after = (now + Duration::days(LEAF_DAYS)).min(self.not_after);
        params.serial_number = Some(random_serial()?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(&wanted.key)?;
        let signed = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate: signed.der().clone(),
            not_after: params.not_after,
        })
    }
}

impl LeafKeyPair {
    /// A new one.
    ///
    /// # Errors
    /// Where there are no random numbers.
    pub fn generate() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private)
            .map_err(|error| AuthorityError::Library(error.to_string()))?;
        Ok(Self {
            public: key.subject_public_key_info(),
            signer,
        })
    }

    /// What signs handshakes with it.
    #[must_use]
    pub fn signer(&self) -> Arc<dyn rustls::sign::SigningKey> {
        self.signer.clone()
    }

    /// A leaf of this key with the names of `upstream`'s certificate, or for `name` where it can't be read.
    #[must_use]
    pub fn wanted(&self, upstream: Option<&CertificateDer<'_>>, name: &str) -> Wanted {
        let mut wanted = Wanted {
            name: name.to_owned(),
            names: Vec::new(),
            addresses: Vec::new(),
            key: self.public.clone(),
        };
        for name in upstream.map(names).unwrap_or_default() {
            match name {
                Subject::Name(name) => wanted.names.push(name),
                Subject::Address(address) => wanted.addresses.push(address),
            }
        }
        if wanted.names.is_empty() && wanted.addresses.is_empty() {
            match name.parse() {
                Ok(address) => wanted.addresses.push(address),
                Err(_) if name.is_ascii() => wanted.names.push(name.to_owned()),
                Err(_) => {}
            }
        }
        wanted
    }
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// What a server presents.
    pub certificate: CertificateDer<'static>,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

/// What a certificate is for.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Name(String),
    Address(IpAddr),
}

/// Makes the authority's two files: the key first, and the certificate last, which says that all is there.
fn make(folder: &Path, name: &str, days: u32) -> Result<(), AuthorityError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| AuthorityError::Io { path, error }
    };
    if let Err(error) = fs::DirBuilder::new().mode(0o755).create(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(io(folder)(error));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name(name));
    params
        .distinguished_name
        .push(DnType::OrganizationName, "interceptor");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(i64::from(days));
    params.serial_number = Some(random_serial()?);
    let certificate = params.self_signed(&key)?;
    let write = |name: &str, mode, text: &str| {
        let (path, draft) = (folder.join(name), folder.join(format!("{name}.new")));
        let _ = fs::remove_file(&draft);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)
            .and_then(|mut file| {
                io::Write::write_all(&mut file, text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&draft, &path));
        written.map_err(io(&path))
    };
    write("ca.key", 0o600, &key.serialize_pem())?;
    write("ca.pem", 0o644, &certificate.pem())?;
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io(folder))
}

fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| AuthorityError::Library("no random numbers".to_owned()))?;
    // Positive, and never without leading digits.
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7F | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// A common name has 64 characters at the most (RFC 5280, ub-common-name).
fn common_name(name: &str) -> String {
    name.chars().take(64).collect()
}

/// The names that a certificate is for.
fn names(certificate: &CertificateDer<'_>) -> Vec<Subject> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) if name.is_ascii() => Some(Subject::Name((*name).to_owned())),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(Subject::Address([a, b, c, d].into())),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|bytes| Subject::Address(bytes.into())),
        },
        _ => None,
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(name)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_and_its_key_is_private() {
        let state = tempfile::tempdir().unwrap();
        let first = Authority::open(state.path(), "host CA", 30).unwrap();
        let again = Authority::open(state.path(), "other", 30).unwrap();
        assert_eq!(first.pem(), again.pem());
        let mode = |name| {
            fs::metadata(state.path().join("ca").join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("ca.key"), mode("ca.pem")), (0o600, 0o644));
        let (_, parsed) = X509Certificate::from_der(&first.certificate).unwrap();
        assert!(parsed.is_ca());
        assert!(parsed.subject().to_string().contains("CN=host CA"));
    }

    #[test]
    fn half_of_one_or_somebody_elses_key_is_an_error_with_a_remedy() {
        let state = tempfile::tempdir().unwrap();
        Authority::open(state.path(), "a", 30).unwrap();
        let key = state.path().join("ca/ca.key");
        fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = Authority::open(state.path(), "a", 30)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("isn't that of the certificate") && error.contains("remove the folder"),
            "{error}"
        );
        fs::remove_file(&key).unwrap();
        assert!(matches!(
            Authority::open(state.path(), "a", 30),
            Err(AuthorityError::Io { .. })
        ));
    }

    #[test]
    fn leaves_carry_the_upstreams_names() {
        let state = tempfile::tempdir().unwrap();
        let authority = Authority::open(state.path(), "a", 30).unwrap();
        let upstream = rcgen::generate_simple_self_signed([
            "*.example.com".to_owned(),
            "192.0.2.1".to_owned(),
        ])
        .unwrap();
        let key = LeafKeyPair::generate().unwrap();
        let wanted = key.wanted(Some(upstream.cert.der()), "www.example.com");
        let leaf = authority.sign(&wanted).unwrap();
        let copied = names(&leaf.certificate);
        assert_eq!(copied, names(upstream.cert.der()));
        assert_eq!(copied.len(), 2);
        // Never longer than the authority itself.
        assert!(leaf.not_after <= authority.not_after);
        let bare = authority.sign(&key.wanted(None, "2001:db8::1")).unwrap();
        assert_eq!(
            names(&bare.certificate),
            [Subject::Address("2001:db8::1".parse().unwrap())]
        );
    }
}
