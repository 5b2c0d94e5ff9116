//! Java's trust stores. What is written is JKS, which all its versions read, whatever a store was before:
//! Java tells the forms apart by their content.
//!
//! Magic, version, number of entries, entries, then SHA-1 over the store's password, a phrase and all
//! that stands before. The password of trust stores is known to everybody; it only guards against decay,
//! and programs that give none don't look.

use std::io;

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{pkcs12, reach::invalid};

/// The largest store that is taken for one.
pub(super) const BYTES_MAX: u64 = 8 << 20;

/// JKS and its sibling JCEKS, version 2 each.
const MAGICS: [[u8; 8]; 2] = [
    [0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2],
    [0xCE, 0xCE, 0xCE, 0xCE, 0, 0, 0, 2],
];
const DIGEST: usize = 20;
const PASSWORD: &str = "changeit";
const PHRASE: &[u8] = b"Mighty Aphrodite";

/// A store that can be shown.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) content: Vec<u8>,
    /// What whoever uses it has to know.
    pub(super) problem: Option<&'static str>,
}

/// `store` with `certificate` (PEM) in it. Of a PKCS#12 store the certificates are kept that aren't
/// encrypted; if all are, it is replaced by `roots` (PEM).
///
/// # Errors
/// Where it is no store.
pub(super) fn with(store: &[u8], certificate: &str, roots: &str) -> io::Result<Store> {
    let own = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|_| invalid("our own certificate can't be read"))?;
    if let Some(parts) = Parts::of(store) {
        let problem = (digest_of(parts.signed) != parts.digest).then_some(
            "its password isn't `changeit`: programs that say which it is can't open it",
        );
        let content = finish(
            parts.magic,
            parts.count.saturating_add(1),
            &[parts.entries, &entry("interceptor", &own)].concat(),
        );
        return Ok(Store { content, problem });
    }
    let kept = pkcs12::certificates(store).ok_or_else(|| invalid("it is no Java key store"))?;
    let (certificates, problem) = if kept.is_empty() {
        let roots = CertificateDer::pem_slice_iter(roots.as_bytes()).flatten();
        let roots = roots.map(|root| root.to_vec()).collect();
        let problem = "it is encrypted, so the system's roots are seen in its place";
        (roots, Some(problem))
    } else {
        (kept, None)
    };
    let mut entries = Vec::new();
    let mut count = 1;
    for certificate in &certificates {
        entries.extend(entry(&format!("root-{count}"), certificate));
        count += 1;
    }
    entries.extend(entry("interceptor", &own));
    let [magic, _] = &MAGICS;
    let content = finish(magic, count, &entries);
    Ok(Store { content, problem })
}

/// Whether `certificate` is in `store` already.
pub(super) fn has(store: &[u8], certificate: &str) -> bool {
    CertificateDer::from_pem_slice(certificate.as_bytes())
        .is_ok_and(|own| memchr::memmem::find(store, &own).is_some())
}

fn finish(magic: &[u8], count: u32, entries: &[u8]) -> Vec<u8> {
    let mut out = [magic, &count.to_be_bytes(), entries].concat();
    let digest = digest_of(&out);
    out.extend(digest);
    out
}

fn digest_of(signed: &[u8]) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    for character in PASSWORD.encode_utf16() {
        context.update(&character.to_be_bytes());
    }
    context.update(PHRASE);
    context.update(signed);
    context.finish().as_ref().to_vec()
}

/// A store in our form.
struct Parts<'a> {
    magic: &'a [u8],
    count: u32,
    entries: &'a [u8],
    signed: &'a [u8],
    digest: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(store: &'a [u8]) -> Option<Self> {
        let (signed, digest) = store.split_at_checked(store.len().checked_sub(DIGEST)?)?;
        let (magic, rest) = signed.split_first_chunk::<8>()?;
        let (count, entries) = rest.split_first_chunk()?;
        MAGICS.contains(magic).then_some(Self {
            magic,
            count: u32::from_be_bytes(*count),
            entries,
            signed,
            digest,
        })
    }
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
    use std::process::Command;

    use super::*;

    fn authority(name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let authority = crate::tls::Authority::open(folder.path(), name, 30).unwrap();
        authority.pem().to_owned()
    }

    fn count(store: &Store) -> u32 {
        Parts::of(&store.content).unwrap().count
    }

    #[test]
    fn a_store_is_added_to() {
        let (ours, roots) = (authority("ours"), authority("root"));
        let certificate = CertificateDer::from_pem_slice(roots.as_bytes()).unwrap();
        for magic in &MAGICS {
            let store = finish(magic, 1, &entry("company", &certificate));
            let with = with(&store, &ours, "").unwrap();
            assert_eq!(count(&with), 2);
            assert!(with.content.starts_with(magic) && with.problem.is_none());
        }
        let store = finish(&MAGICS[0], 0, &[]);
        let mut other_password = store.clone();
        *other_password.last_mut().unwrap() ^= 1;
        let with = with(&other_password, &ours, "").unwrap();
        assert!(with.problem.unwrap().contains("changeit"));
    }

    #[test]
    fn what_is_no_store_stays_what_it_is() {
        let ours = authority("ours");
        for other in [
            &b"root:x:0:0:root:/root:/bin/sh\n"[..],
            b"",
            b"\x30",
            b"\x30\x03\x02\x01\x07",
        ] {
            assert!(with(other, &ours, &ours).is_err());
        }
    }

    #[test]
    fn pkcs12_keeps_what_it_holds() {
        let (ours, company) = (authority("ours"), authority("company"));
        let folder = tempfile::tempdir().unwrap();
        let (pem, store) = (folder.path().join("a.pem"), folder.path().join("a.p12"));
        std::fs::write(&pem, &company).unwrap();
        for (encryption, kept) in [("NONE", true), ("AES-256-CBC", false)] {
            // Whoever is started stays in the cgroup that this process is in, which other tests remove.
            let _turn = crate::kernel::tests::turn();
            let made = Command::new("openssl")
                .args(["pkcs12", "-export", "-nokeys", "-passout", "pass:changeit"])
                .args(["-certpbe", encryption, "-in"])
                .arg(&pem)
                .arg("-out")
                .arg(&store)
                .status()
                .unwrap();
            assert!(made.success());
            let store = std::fs::read(&store).unwrap();
            let with = with(&store, &ours, "").unwrap();
            assert_eq!(count(&with), if kept { 2 } else { 1 });
            assert_eq!(with.problem.is_none(), kept);
            let company = CertificateDer::from_pem_slice(company.as_bytes()).unwrap();
            let found = memchr::memmem::find(&with.content, &company).is_some();
            assert_eq!(found, kept);
        }
    }
}
