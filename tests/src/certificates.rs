//! A certificate authority of the test's own, and whatever it signs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

/// The authority, with a folder for what it signs.
pub struct Certificates {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    serial: u64,
}

/// Files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Files {
    /// PEM of the certificate.
    pub certificate: PathBuf,
    /// PEM of its private key.
    pub key: PathBuf,
    /// Its serial number.
    pub serial: u64,
}

impl Certificates {
    /// An authority whose files are in `folder`.
    ///
    /// # Errors
    /// Where it can't be made or written.
    pub fn new(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        fs::write(folder.join("authority.pem"), certificate.pem())?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
            serial: 100,
        })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// A certificate for `names`, valid now.
    ///
    /// # Errors
    /// Where it can't be made or written.
    pub fn issue(&mut self, file: &str, names: &[&str]) -> Result<Files> {
        self.sign(file, names, |_| {})
    }

    /// A certificate that was valid once.
    ///
    /// # Errors
    /// Where it can't be made or written.
    pub fn expired(&mut self, file: &str, names: &[&str]) -> Result<Files> {
        self.sign(file, names, |params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        })
    }

    /// A certificate that nobody but itself signed.
    ///
    /// # Errors
    /// Where it can't be made or written.
    pub fn self_signed(&mut self, file: &str, names: &[&str]) -> Result<Files> {
        let key = KeyPair::generate()?;
        let certificate = self.params(names)?.self_signed(&key)?;
        self.write(file, &certificate.pem(), &key)
    }

    /// A revocation list with `files`' certificate on it.
    ///
    /// # Errors
    /// Where it can't be made or written.
    pub fn revoke(&self, files: &Files) -> Result<PathBuf> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(files.serial),
                revocation_time: date_time_ymd(2025, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.join("revoked.pem");
        fs::write(&path, list.signed_by(&self.issuer)?.pem()?)?;
        Ok(path)
    }

    fn params(&mut self, names: &[&str]) -> Result<CertificateParams> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "test");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.serial += 1;
        params.serial_number = Some(SerialNumber::from(self.serial));
        Ok(params)
    }

    fn sign(
        &mut self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Files> {
        let key = KeyPair::generate()?;
        let mut params = self.params(names)?;
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?;
        self.write(file, &certificate.pem(), &key)
    }

    fn write(&self, file: &str, certificate: &str, key: &KeyPair) -> Result<Files> {
        let files = Files {
            certificate: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
            serial: self.serial,
        };
        fs::write(&files.certificate, certificate)
            .and_then(|()| fs::write(&files.key, key.serialize_pem()))
            .context("a certificate can't be written")?;
        Ok(files)
    }
}
