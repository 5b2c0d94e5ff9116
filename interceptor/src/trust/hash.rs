//! The name under which OpenSSL looks for an authority in a folder: a hash of its subject.

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The name of our certificate in such a folder.
pub(super) const FILE_NAME: &str = "interceptor-ca.pem";

/// `X509_NAME_hash`: the first four bytes, little-endian, of SHA-1 over the canonical encoding of the
/// subject: its parts without the sequence around them, strings as UTF-8, in lower case, with single
/// spaces.
pub(super) fn of_subject(certificate: &str) -> Option<u32> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let mut canonical = Vec::new();
    for part in parsed.subject().iter() {
        let mut set = Vec::new();
        for attribute in part.iter() {
            let text = attribute.as_str().ok()?.to_ascii_lowercase();
            let text = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
            let kind = attribute.attr_type().as_bytes();
            let mut pair = tagged(0x06, kind)?;
            pair.extend(tagged(0x0C, text.as_bytes())?);
            set.extend(tagged(0x30, &pair)?);
        }
        canonical.extend(tagged(0x31, &set)?);
    }
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    let (first, _) = hash.as_ref().split_first_chunk::<4>()?;
    Some(u32::from_le_bytes(*first))
}

/// DER of a short value.
fn tagged(tag: u8, value: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![tag];
    match u8::try_from(value.len()).ok()? {
        length @ 0..0x80 => out.push(length),
        length => out.extend([0x81, length]),
    }
    out.extend_from_slice(value);
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn openssl_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["interceptor CA of  Host-1", "x"] {
            crate::tls::Authority::open(folder.path(), name, 30).unwrap();
            let path = crate::tls::certificate_path(folder.path());
            let pem = std::fs::read_to_string(&path).unwrap();
            // Whoever is started stays in the cgroup that this process is in, which other tests remove.
            let _turn = crate::kernel::tests::turn();
            let said = Command::new("openssl")
                .args(["x509", "-noout", "-hash", "-in"])
                .arg(&path)
                .output()
                .unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            assert_eq!(
                format!("{:08x}", super::of_subject(&pem).unwrap()),
                said.trim()
            );
            std::fs::remove_dir_all(folder.path().join("ca")).unwrap();
        }
    }
}
