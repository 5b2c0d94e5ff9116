//! What is read of TLS before it is spoken: the ClientHello, and the alerts that answer it.
//!
//! The handshake itself is rustls's; here is only what has to be known before one can be made.

mod hello;

pub use self::hello::{ClientHello, Reading, is_hello};

/// Fatal alerts that are sent in the place of a server which could not be reached as it should
/// (RFC 8446, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

impl Alert {
    /// No acceptable set of parameters.
    pub const HANDSHAKE_FAILURE: Self = Self(40);
    /// A certificate was corrupt, or is for another name.
    pub const BAD_CERTIFICATE: Self = Self(42);
    /// A certificate was revoked by its signer.
    pub const CERTIFICATE_REVOKED: Self = Self(44);
    /// A certificate has expired or is not valid yet.
    pub const CERTIFICATE_EXPIRED: Self = Self(45);
    /// Something else is wrong with the certificate.
    pub const CERTIFICATE_UNKNOWN: Self = Self(46);
    /// The certificate authority isn't one of those that are trusted.
    pub const UNKNOWN_CA: Self = Self(48);
    /// All is valid, and it is refused all the same.
    pub const ACCESS_DENIED: Self = Self(49);
    /// A message could not be read.
    pub const DECODE_ERROR: Self = Self(50);
    /// Something went wrong that has nothing to do with the peer.
    pub const INTERNAL_ERROR: Self = Self(80);

    /// The record that carries it before anything is encrypted.
    #[must_use]
    pub const fn record(self) -> [u8; 7] {
        const ALERT: u8 = 21;
        const FATAL: u8 = 2;
        [ALERT, 3, 3, 0, 2, FATAL, self.0]
    }
}
