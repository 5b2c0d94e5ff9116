//! Java's trust stores, in the one form that all its versions read: JKS.
//!
//! Magic, version, number of entries, entries, then SHA-1 over the store's password, a phrase and all
//! that stands before. The password of trust stores is known to everybody; it only guards against decay.

use std::io;

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

const MAGIC: [u8; 8] = [0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2];
const HEADER: usize = 12;
const DIGEST: usize = 20;
const PASSWORD: &str = "changeit";
const PHRASE: &[u8] = b"Mighty Aphrodite";

/// `store` with `certificate` (PEM) in it. A store of another form is replaced by `roots` (PEM) and it:
/// Java tells the forms apart by their content.
pub(super) fn with(store: &[u8], certificate: &str, roots: &str) -> io::Result<Vec<u8>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let own = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|_| invalid("our own certificate can't be read"))?;
    let (mut count, mut entries) = match own_form(store) {
        Some((count, entries)) => (count, entries.to_vec()),
        None => {
            let (mut count, mut entries) = (0, Vec::new());
            for root in CertificateDer::pem_slice_iter(roots.as_bytes()).flatten() {
                count += 1;
                entries.extend(entry(&format!("root-{count}"), &root));
            }
            if count == 0 {
                return Err(invalid(
                    "it isn't JKS, and the system's roots can't be read",
                ));
            }
            (count, entries)
        }
    };
    count += 1;
    entries.extend(entry("interceptor", &own));
    let mut out = MAGIC.to_vec();
    out.extend(u32::to_be_bytes(count));
    out.extend(entries);
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    for character in PASSWORD.encode_utf16() {
        context.update(&character.to_be_bytes());
    }
    context.update(PHRASE);
    context.update(&out);
    out.extend_from_slice(context.finish().as_ref());
    Ok(out)
}

/// Number and bytes of the entries of a store in this form.
fn own_form(store: &[u8]) -> Option<(u32, &[u8])> {
    let (header, rest) = store.split_at_checked(HEADER)?;
    let count = header.strip_prefix(&MAGIC)?;
    let entries = rest.get(..rest.len().checked_sub(DIGEST)?)?;
    Some((u32::from_be_bytes(count.try_into().ok()?), entries))
}

/// A trusted certificate under a name.
fn entry(alias: &str, certificate: &[u8]) -> Vec<u8> {
    const TRUSTED: u32 = 2;
    let text = |text: &str| {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), text.as_bytes()].concat()
    };
    let mut out = TRUSTED.to_be_bytes().to_vec();
    out.extend(text(alias));
    out.extend(0_u64.to_be_bytes());
    out.extend(text("X.509"));
    out.extend(
        u32::try_from(certificate.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    out.extend_from_slice(certificate);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_added_to_and_another_form_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let pem = crate::tls::Authority::open(folder.path(), "a", 30)
            .unwrap()
            .pem()
            .to_owned();
        let fresh = with(b"\x30\x82 PKCS#12", &pem, &pem).unwrap();
        assert_eq!(own_form(&fresh).unwrap().0, 2);
        let again = with(&fresh, &pem, "").unwrap();
        assert_eq!(own_form(&again).unwrap().0, 3);
        assert!(with(b"", &pem, "").is_err());
        // Java's own tool believes it, where there is one.
        let path = folder.path().join("cacerts");
        std::fs::write(&path, &again).unwrap();
        if let Ok(listed) = std::process::Command::new("keytool")
            .args(["-list", "-storepass", PASSWORD, "-keystore"])
            .arg(&path)
            .output()
        {
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(listed.contains("interceptor,"), "{listed}");
        }
    }
}
