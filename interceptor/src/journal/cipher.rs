//! What a session's records are encrypted with. Bytes in, bytes out; where keys come from is `keytree`'s to know.
//!
//! AES-256-GCM (NIST SP 800-38D) with a random nonce for each part. GCM alone binds nobody to one key: with two keys at
//! hand one can make bytes that open under either, as different things. Evidence must not do that, so a key has a
//! commitment, which stands beside what it has encrypted, where the chain covers it.

use std::{fmt, io};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac, rand,
};
use zeroize::Zeroizing;

use super::block::Hash;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// Bytes that encrypting adds behind what is encrypted.
pub(super) const TAG_BYTES: usize = 16;

/// A key's bytes, gone from memory when it is dropped.
pub(super) type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// What is encrypted is told apart from everything else by this, once a key.
pub(super) type NonceBytes = [u8; NONCE_LEN];

/// What the records of one session are encrypted with.
pub(super) struct ContentKey {
    secret: Secret,
    cipher: LessSafeKey,
    commitment: Hash,
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentKey").finish_non_exhaustive()
    }
}

impl ContentKey {
    /// The one that `secret` is.
    ///
    /// # Errors
    /// Where the cipher doesn't take it, which it does.
    pub(super) fn new(secret: Secret) -> io::Result<Self> {
        let own = derive(&secret, b"interceptor session content: AES-256-GCM");
        let cipher = cipher(&own)?;
        let commitment = *derive(&secret, b"interceptor session content: commitment");
        Ok(Self {
            secret,
            cipher,
            commitment,
        })
    }

    /// One that nobody had before.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub(super) fn fresh() -> io::Result<Self> {
        Self::new(random()?)
    }

    /// What it is told by, which says nothing of it.
    pub(super) const fn commitment(&self) -> &Hash {
        &self.commitment
    }

    /// What it is made of, for who is to read the session.
    pub(super) const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Encrypts `content` in its place, with its tag behind it; what stands `beside` it has to be the same when it is
    /// opened.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub(super) fn seal(&self, beside: &[u8], content: &mut Vec<u8>) -> io::Result<NonceBytes> {
        seal(&self.cipher, beside, content)
    }

    /// What was sealed; `None` where it was changed, or is another key's.
    pub(super) fn open(&self, nonce: &NonceBytes, beside: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut content = vec![0; sealed.len().checked_sub(TAG_BYTES)?];
        open(&self.cipher, nonce, beside, sealed, &mut content).then_some(content)
    }
}

/// The cipher with the key `secret`.
///
/// # Errors
/// Where it doesn't take that.
pub(super) fn cipher(secret: &Secret) -> io::Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, &**secret);
    let key = key.map_err(|_| io::Error::other("the cipher doesn't take the key"))?;
    Ok(LessSafeKey::new(key))
}

/// Encrypts `content` in its place, with its tag behind it.
///
/// # Errors
/// Where the system has no randomness.
pub(super) fn seal(
    cipher: &LessSafeKey,
    beside: &[u8],
    content: &mut Vec<u8>,
) -> io::Result<NonceBytes> {
    // At random: a block that a crash took away may have shown what was encrypted with a number that comes again.
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| no_randomness())?;
    cipher
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(beside),
            content,
        )
        .map_err(|_| io::Error::other("it can't be encrypted"))?;
    Ok(nonce)
}

/// Puts what was `sealed` into `content`, which is as long; whether it is what was sealed.
pub(super) fn open(
    cipher: &LessSafeKey,
    nonce: &NonceBytes,
    beside: &[u8],
    sealed: &[u8],
    content: &mut [u8],
) -> bool {
    let Some((encrypted, tag)) = sealed.split_at_checked(content.len()) else {
        return false;
    };
    let nonce = Nonce::assume_unique_for_key(*nonce);
    cipher
        .open_separate_gather(nonce, Aad::from(beside), encrypted, tag, content)
        .is_ok()
}

/// What HMAC-SHA-256 (RFC 2104) makes of `secret` for what `label` names: nothing of one tells another.
pub(super) fn derive(secret: &Secret, label: &[u8]) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &**secret);
    let tag = hmac::sign(&key, label);
    let mut out = Secret::default();
    for (place, byte) in out.iter_mut().zip(tag.as_ref()) {
        *place = *byte;
    }
    out
}

/// A key that nobody had before.
///
/// # Errors
/// Where the system has no randomness.
pub(super) fn random() -> io::Result<Secret> {
    let mut secret = Secret::default();
    rand::fill(&mut *secret).map_err(|_| no_randomness())?;
    Ok(secret)
}

fn no_randomness() -> io::Error {
    io::Error::other("the system has no randomness")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_the_same_bytes_in_the_same_place() {
        let key = ContentKey::fresh().unwrap();
        let mut sealed = b"DROP TABLE orders".to_vec();
        let nonce = key.seal(b"part 7", &mut sealed).unwrap();
        assert_eq!(sealed.len(), 17 + TAG_BYTES);
        let opened = key.open(&nonce, b"part 7", &sealed);
        assert_eq!(opened.as_deref(), Some(&b"DROP TABLE orders"[..]));
        assert_eq!(key.open(&nonce, b"part 8", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(&nonce, b"part 7", &changed), None);
            assert_eq!(key.open(&nonce, b"part 7", &sealed[..at]), None);
        }
        let other = ContentKey::fresh().unwrap();
        assert_eq!(other.open(&nonce, b"part 7", &sealed), None);
        assert_ne!(other.commitment(), key.commitment());
        let again = ContentKey::new(key.secret().clone()).unwrap();
        assert_eq!(again.commitment(), key.commitment());
        assert!(again.open(&nonce, b"part 7", &sealed).is_some());
        // The same once more is other bytes.
        let mut twice = b"DROP TABLE orders".to_vec();
        key.seal(b"part 7", &mut twice).unwrap();
        assert_ne!(twice, sealed);
    }

    #[test]
    fn what_is_derived_is_hmac_sha_256() {
        // RFC 4231, 4.2, has a key of twenty bytes; this is one of thirty-two, from OpenSSL's `dgst -mac HMAC`.
        let secret = Secret::new([0x0b; KEY_BYTES]);
        assert_eq!(
            hex::encode(*derive(&secret, b"Hi There")),
            "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7"
        );
    }
}
