//! What the daemon gives the console's process when it starts it: all that it needs of files, which it can't read.

use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use super::config::{Certificate, ConsoleConfig, LocalUser};
use crate::{config::Config, control::Role, notify::NotifierConfig};

/// Largest set-up that is taken, in bytes: certificates, and some hundreds of people.
pub(super) const SETUP_BYTES_MAX: u32 = 4 << 20;

/// All that the console works with. It holds secrets, so nothing prints it.
#[derive(Serialize, Deserialize)]
pub(super) struct Setup {
    /// Who it becomes.
    pub(super) user: u32,
    /// What it tells on stderr.
    pub(super) log: String,
    /// The daemon's instance name.
    pub(super) instance: String,
    /// Its address, as browsers know it.
    pub(super) origin: Box<str>,
    /// Its host, which security keys are asked from.
    pub(super) host: Box<str>,
    /// Certificate chain and key, as PEM.
    pub(super) tls: Option<(String, String)>,
    /// Local users.
    pub(super) users: Vec<LocalUser>,
    /// The OpenID provider.
    pub(super) oidc: Option<Provider>,
    /// Programs: name, hash of the token, role.
    pub(super) tokens: Vec<(Box<str>, Box<str>, Role)>,
    /// Authorities that are believed besides the system's, as PEM.
    pub(super) roots: Vec<String>,
    /// The configuration: text and file. Notifiers are read from it.
    pub(super) config: (String, std::path::PathBuf),
    /// How long who does nothing stays signed in.
    pub(super) idle: Duration,
    /// How long anybody does.
    pub(super) absolute: Duration,
}

/// What notifiers are started with.
pub(super) struct Telling {
    pub(super) notifiers: Vec<NotifierConfig>,
    /// What this host is called.
    pub(super) host: String,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Telling {
    /// Reads the system's roots, so it is for before this process is confined.
    ///
    /// # Errors
    /// Where the configuration can't be read any more, which was.
    pub(super) fn read(setup: &Setup) -> io::Result<Self> {
        let (text, path) = &setup.config;
        let config = Config::parse(text, path).map_err(io::Error::other)?;
        let mut roots = rustls_native_certs::load_native_certs().certs;
        for pem in &setup.roots {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.push(certificate.map_err(io::Error::other)?);
            }
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        Ok(Self {
            notifiers: config.notify,
            host: host.to_string_lossy().into_owned(),
            roots,
        })
    }
}

/// An OpenID provider.
#[derive(Serialize, Deserialize)]
pub(super) struct Provider {
    pub(super) issuer: String,
    pub(super) client_id: Box<str>,
    pub(super) client_secret: Option<String>,
    pub(super) scopes: Vec<Box<str>>,
    pub(super) name_claim: Box<str>,
    pub(super) groups_claim: Box<str>,
    pub(super) aliases: BTreeMap<Box<str>, Box<str>>,
}

impl Setup {
    /// What `console` says, with what its files hold.
    ///
    /// # Errors
    /// Where one of them can't be read.
    pub(super) fn read(config: &Config, console: &ConsoleConfig, user: u32) -> io::Result<Self> {
        let tls = console
            .tls
            .as_ref()
            .map(|Certificate { certificate, key }| {
                Ok::<_, io::Error>((text(certificate)?, text(key)?))
            });
        let oidc = console.oidc.as_ref().map(|oidc| {
            let secret = oidc.client_secret.as_ref().map(|source| {
                let secret = source.read().map_err(io::Error::other)?;
                String::from_utf8(secret.expose().to_vec())
                    .map_err(|_| io::Error::other(format!("{source} holds no text")))
            });
            Ok::<_, io::Error>(Provider {
                issuer: oidc.issuer.clone(),
                client_id: oidc.client_id.clone(),
                client_secret: secret.transpose()?,
                scopes: oidc.scopes.clone(),
                name_claim: oidc.name_claim.clone(),
                groups_claim: oidc.groups_claim.clone(),
                aliases: oidc.aliases.clone(),
            })
        });
        let tokens = console.tokens.iter();
        Ok(Self {
            user,
            log: config.log.as_str().to_owned(),
            instance: config.instance.to_string(),
            origin: console.site.origin.clone(),
            host: console.site.host.clone(),
            tls: tls.transpose()?,
            users: console.users.clone(),
            oidc: oidc.transpose()?,
            tokens: tokens
                .map(|token| (token.name.clone(), token.sha256.clone(), token.role))
                .collect(),
            roots: config
                .tls
                .roots
                .iter()
                .map(|path| text(path))
                .collect::<io::Result<_>>()?,
            config: config.source.clone(),
            idle: console.idle,
            absolute: console.absolute,
        })
    }

    /// Writes it to the process that is to have it.
    ///
    /// # Errors
    /// Where that one is gone.
    pub(super) fn send(&self, out: &mut impl io::Write) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).map_err(io::Error::other)?;
        if length > SETUP_BYTES_MAX {
            return Err(io::Error::other(
                "the console's configuration and certificates are too large",
            ));
        }
        out.write_all(&length.to_be_bytes())?;
        out.write_all(&json)
    }

    /// Reads it.
    ///
    /// # Errors
    /// Where the daemon is gone, or it isn't one.
    pub(super) fn receive(from: &mut impl io::Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > SETUP_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; length as usize];
        from.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

fn text(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}
