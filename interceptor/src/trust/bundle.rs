//! Files of certificates as PEM.

/// The largest file that is taken for one: all public roots have some 220 KiB.
pub(super) const BYTES_MAX: u64 = 8 << 20;

/// Whether `file` holds certificates, of which OpenSSL knows two kinds, and nothing secret: what has a key
/// is somebody's own certificate, and its first is the one that is shown to others.
pub(super) fn is_one(file: &[u8]) -> bool {
    let has_certificates = ["CERTIFICATE", "TRUSTED CERTIFICATE"]
        .iter()
        .any(|kind| holds(file, format!("-----BEGIN {kind}-----").as_bytes()));
    has_certificates && !holds(file, b"PRIVATE KEY-----")
}

/// Whether `certificate` is in `file` already.
pub(super) fn has(file: &[u8], certificate: &str) -> bool {
    holds(file, certificate.trim().as_bytes())
}

/// `file` with `certificate` in it: before the rest, which may end in the middle of one.
pub(super) fn with(file: &[u8], certificate: &str) -> Vec<u8> {
    [certificate.trim().as_bytes(), b"\n", file].concat()
}

fn holds(file: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(file, text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n";

    #[test]
    fn ours_is_read_whatever_the_rest_is() {
        let cut_off = b"\xff a comment\n-----BEGIN CERTIFICATE-----\ncut o";
        let merged = with(cut_off, OURS);
        assert!(merged.starts_with(OURS.as_bytes()) && merged.ends_with(cut_off));
        assert!(has(&merged, OURS) && !has(cut_off, OURS));
    }

    #[test]
    fn what_holds_certificates_is_a_bundle() {
        assert!(is_one(OURS.as_bytes()));
        assert!(is_one(b"# trusted\n-----BEGIN TRUSTED CERTIFICATE-----\n"));
        let with_key = format!("{OURS}-----BEGIN EC PRIVATE KEY-----\n");
        assert!(!is_one(with_key.as_bytes()) && !is_one(b""));
    }
}
