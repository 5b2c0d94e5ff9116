//! Logging in to a server in an agent's place: what a decoder is handed for it.
//!
//! Secrets live here only as long as the login takes; they have no way into output, errors or records.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

/// What to log in with, in the place of what the agent says.
#[derive(Debug)]
pub struct Login {
    /// Which credential of the configuration this is, from 1: what records and errors call it.
    pub credential: usize,
    /// The user to log in as.
    pub user: String,
    /// That user's password.
    pub password: Secret,
    /// What the agent has to present; without one it may present anything or nothing.
    pub placeholder: Option<Secret>,
    /// The hash of the server's certificate that channel binding `tls-server-end-point` (RFC 5929)
    /// asks for, where the way to the server is TLS.
    pub upstream_binding: Option<Bytes>,
    /// The same of the certificate that the agent was shown, where the way to it is TLS.
    pub agent_binding: Option<Bytes>,
    /// Nobody can listen on the way to the server: it is TLS with a verified certificate, or stays on
    /// this host. Only then is the password itself sent, or a proof that is quickly guessed from.
    pub confidential: bool,
    /// Randomness for this login alone.
    pub randomness: Randomness,
}

/// What proves an HTTP request's right, in the place of what the agent says.
#[derive(Debug)]
pub struct Authorization {
    /// Which credential of the configuration this is, from 1: what records and errors call it.
    pub credential: usize,
    /// Where in a request it stands.
    pub place: Place,
    /// What stands there.
    pub secret: Secret,
    /// What the agent has to present in that place; without one it may present anything or nothing.
    pub placeholder: Option<Secret>,
}

/// Where a request proves its right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `Authorization: Bearer …` (RFC 6750).
    Bearer,
    /// `Authorization: Basic …` (RFC 7617), as this user.
    Basic(Box<str>),
    /// A header field of this name, lower case.
    Header(Box<str>),
    /// A parameter of the query.
    Query(Box<str>),
}

/// Random bytes that a login takes: never used twice, not predictable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Randomness {
    /// The nonce of the side that faces the server.
    pub client_nonce: [u8; 18],
    /// The nonce of the side that faces the agent.
    pub server_nonce: [u8; 18],
    /// The salt under which the agent proves that it knows the placeholder.
    pub salt: [u8; 16],
}

/// Bytes that nobody may see; overwritten when they are dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The secret `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for what has to compute with them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(
            format!("{:?}", Some(Secret::new(b"hunter2".to_vec()))),
            "Some(Secret(…))"
        );
    }
}
