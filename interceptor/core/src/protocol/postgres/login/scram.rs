//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides of it, without randomness of its own.
//!
//! Sources: RFC 5802 (the exchange), RFC 7677 (SHA-256), RFC 5929 (`tls-server-end-point`), and where
//! they leave room what PostgreSQL does: the user's name in the messages is empty and ignored, it is
//! that of the StartupMessage; a password that SASLprep refuses is taken as it is.

use std::{borrow::Cow, num::NonZeroU32, str};

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use zeroize::Zeroizing;

use crate::limits;

/// The mechanism's name.
pub(super) const SCRAM: &str = "SCRAM-SHA-256";
/// The name of the one that is bound to the TLS connection beneath it.
pub(super) const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The only way to bind that PostgreSQL knows.
const END_POINT: &str = "p=tls-server-end-point,,";

type Key = Zeroizing<[u8; digest::SHA256_OUTPUT_LEN]>;

/// What a client says about the TLS connection beneath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Binding {
    /// It binds to none.
    Unsupported,
    /// It could bind, but the server doesn't offer to: one that did has been talked down on the way.
    Unoffered,
    /// It binds to the connection whose server's certificate has this hash.
    EndPoint(Bytes),
}

/// The side that logs in, after its first message.
pub(super) struct Client {
    password: Zeroizing<Vec<u8>>,
    nonce: String,
    binding: Binding,
    first_bare: String,
}

/// The client after its proof: what the server has to know to have checked it.
pub(super) struct Proved {
    server_signature: Key,
}

/// The side that is logged in to, after its challenge.
pub(super) struct Challenged {
    password: Zeroizing<Vec<u8>>,
    salt: [u8; 16],
    iterations: u32,
    nonce: String,
    /// What the client has to repeat of its first message and the connection beneath, in base64.
    binding: String,
    first_bare: String,
    server_first: String,
}

/// Why a server doesn't let a client in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// The client broke the protocol.
    Malformed(&'static str),
    /// It doesn't know the password.
    WrongPassword,
}

impl Client {
    pub(super) fn new(password: &[u8], user: &str, nonce: &[u8], binding: Binding) -> Self {
        let nonce = STANDARD.encode(nonce);
        Self {
            password: prepared(password),
            first_bare: format!("n={user},r={nonce}"),
            nonce,
            binding,
        }
    }

    /// client-first-message.
    pub(super) fn first(&self) -> String {
        format!("{}{}", self.binding.header(), self.first_bare)
    }

    /// The client-final-message that answers `server_first`; fewer rounds than `iterations_min` are
    /// not proved with.
    pub(super) fn prove(
        self,
        server_first: &[u8],
        iterations_min: u32,
    ) -> Result<(String, Proved), String> {
        let malformed = || "its SCRAM challenge is malformed".to_owned();
        let server_first = str::from_utf8(server_first).map_err(|_| malformed())?;
        let mut fields = server_first.split(',');
        let mut field = |name: &str| fields.next().and_then(|field| field.strip_prefix(name));
        // An extension that has to be understood (`m=`) would stand in the nonce's place.
        let (nonce, salt, iterations) =
            (|| Some((field("r=")?, field("s=")?, field("i=")?)))().ok_or_else(malformed)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("its SCRAM challenge doesn't answer our nonce".to_owned());
        }
        let salt = STANDARD.decode(salt).map_err(|_| malformed())?;
        let iterations: u32 = iterations.parse().map_err(|_| malformed())?;
        if iterations < iterations_min {
            return Err(format!(
                "it asks for {iterations} SCRAM iterations; fewer than {iterations_min} are only given where nobody can listen (TLS, or a server on this host)"
            ));
        }
        if iterations > limits::SCRAM_ITERATIONS_MAX {
            return Err(format!(
                "it asks for {iterations} SCRAM iterations; the limit is {}",
                limits::SCRAM_ITERATIONS_MAX
            ));
        }
        let keys = Keys::derive(&self.password, &salt, iterations).ok_or_else(malformed)?;
        let unproved = format!("c={},r={nonce}", self.binding.repeated());
        let message = format!("{},{server_first},{unproved}", self.first_bare);
        let proof = xor(&keys.client, &keys.client_signature(&message));
        let proved = Proved {
            server_signature: keys.server_signature(&message),
        };
        Ok((format!("{unproved},p={}", STANDARD.encode(*proof)), proved))
    }
}

impl Proved {
    /// Checks that whoever sent `server_final` knows the password too.
    pub(super) fn verify(&self, server_final: &[u8]) -> Result<(), String> {
        let signature = server_final
            .strip_prefix(b"v=")
            .map(|rest| rest.split(|byte| *byte == b',').next().unwrap_or_default())
            .and_then(|signature| STANDARD.decode(signature).ok());
        match signature {
            Some(signature) if equal(&signature, &*self.server_signature) => Ok(()),
            _ => Err(
                "it didn't prove that it knows the password: it may not be the server it claims to be"
                    .to_owned(),
            ),
        }
    }
}

impl Challenged {
    /// Answers `client_first`, sent for `mechanism`, with the server-first-message. `binding` is the
    /// hash of the certificate that the client was shown, where it was offered to bind to it.
    pub(super) fn new(
        password: &[u8],
        nonce: &[u8],
        salt: [u8; 16],
        binding: Option<&Bytes>,
        mechanism: &str,
        client_first: &[u8],
    ) -> Result<Self, Rejected> {
        let malformed = |what| Err(Rejected::Malformed(what));
        let Ok(client_first) = str::from_utf8(client_first) else {
            return malformed("a SCRAM message that isn't UTF-8");
        };
        let wanted = match (mechanism, binding) {
            (SCRAM, _) if client_first.starts_with("n,,") => Binding::Unsupported,
            (SCRAM, None) if client_first.starts_with("y,,") => Binding::Unoffered,
            (SCRAM, Some(_)) if client_first.starts_with("y,,") => {
                return malformed(
                    "a client that could bind to the TLS connection and wasn't offered to, though it was: somebody on the way changed the offer",
                );
            }
            (SCRAM_PLUS, Some(hash)) if client_first.starts_with(END_POINT) => {
                Binding::EndPoint(hash.clone())
            }
            _ => {
                return malformed(
                    "a channel binding that wasn't offered, or an authorization identity",
                );
            }
        };
        let first_bare = client_first
            .strip_prefix(wanted.header())
            .unwrap_or_default();
        let mut fields = first_bare.split(',');
        let user = fields.next().and_then(|field| field.strip_prefix("n="));
        let nonce_field = fields.next().and_then(|field| field.strip_prefix("r="));
        let (Some(_), Some(client_nonce)) = (user, nonce_field) else {
            return malformed("a SCRAM message without user and nonce");
        };
        if client_nonce.is_empty() || !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return malformed("a SCRAM nonce that isn't printable");
        }
        let nonce = format!("{client_nonce}{}", STANDARD.encode(nonce));
        Ok(Self {
            password: prepared(password),
            salt,
            iterations: limits::SCRAM_ITERATIONS,
            server_first: format!(
                "r={nonce},s={},i={}",
                STANDARD.encode(salt),
                limits::SCRAM_ITERATIONS
            ),
            nonce,
            binding: wanted.repeated(),
            first_bare: first_bare.to_owned(),
        })
    }

    /// server-first-message.
    pub(super) fn first(&self) -> &str {
        &self.server_first
    }

    /// Checks `client_final`, and gives the server-final-message.
    pub(super) fn finish(&self, client_final: &[u8]) -> Result<String, Rejected> {
        let malformed = |what| Err(Rejected::Malformed(what));
        let Ok(client_final) = str::from_utf8(client_final) else {
            return malformed("a SCRAM message that isn't UTF-8");
        };
        let Some((unproved, proof)) = client_final.rsplit_once(",p=") else {
            return malformed("a SCRAM message without proof");
        };
        let mut fields = unproved.split(',');
        let binding = fields.next().and_then(|field| field.strip_prefix("c="));
        let nonce = fields.next().and_then(|field| field.strip_prefix("r="));
        if binding != Some(&self.binding) {
            return malformed("a channel binding that doesn't match this connection");
        }
        if nonce != Some(&self.nonce) {
            return malformed("a SCRAM nonce other than the one agreed on");
        }
        let proof: Option<[u8; digest::SHA256_OUTPUT_LEN]> = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok());
        let Some(proof) = proof else {
            return malformed("a SCRAM proof of the wrong size");
        };
        let Some(keys) = Keys::derive(&self.password, &self.salt, self.iterations) else {
            return malformed("a SCRAM exchange without rounds");
        };
        let message = format!("{},{},{unproved}", self.first_bare, self.server_first);
        let client_key = xor(&proof, &keys.client_signature(&message));
        if !equal(&*hash(&*client_key), &*keys.stored()) {
            return Err(Rejected::WrongPassword);
        }
        Ok(format!(
            "v={}",
            STANDARD.encode(*keys.server_signature(&message))
        ))
    }
}

impl Binding {
    /// gs2-header.
    fn header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::Unoffered => "y,,",
            Self::EndPoint(_) => END_POINT,
        }
    }

    /// The header and the data, as the proof covers them: base64 of cbind-input.
    fn repeated(&self) -> String {
        let data: &[u8] = match self {
            Self::Unsupported | Self::Unoffered => b"",
            Self::EndPoint(hash) => hash,
        };
        STANDARD.encode([self.header().as_bytes(), data].concat())
    }
}

/// What RFC 5802 derives from a password.
struct Keys {
    client: Key,
    server: Key,
}

impl Keys {
    fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Option<Self> {
        let mut salted = Key::default();
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            NonZeroU32::new(iterations)?,
            salt,
            password,
            &mut *salted,
        );
        Some(Self {
            client: mac(&*salted, b"Client Key"),
            server: mac(&*salted, b"Server Key"),
        })
    }

    fn stored(&self) -> Key {
        hash(&*self.client)
    }

    fn client_signature(&self, message: &str) -> Key {
        mac(&*self.stored(), message.as_bytes())
    }

    fn server_signature(&self, message: &str) -> Key {
        mac(&*self.server, message.as_bytes())
    }
}

fn mac(key: &[u8], message: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    key_of(tag.as_ref())
}

fn hash(bytes: &[u8]) -> Key {
    key_of(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// `bytes` of a SHA-256, which always has this length.
fn key_of(bytes: &[u8]) -> Key {
    let mut key = Key::default();
    for (to, from) in key.iter_mut().zip(bytes) {
        *to = *from;
    }
    key
}

fn xor(a: &[u8; digest::SHA256_OUTPUT_LEN], b: &[u8; digest::SHA256_OUTPUT_LEN]) -> Key {
    let mut out = Key::default();
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a ^ b;
    }
    out
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// The password as it is hashed: SASLprep (RFC 4013), and where that refuses it, as it is.
fn prepared(password: &[u8]) -> Zeroizing<Vec<u8>> {
    // PostgreSQL doesn't look at ASCII: control characters in it stay.
    if password.is_ascii() {
        return Zeroizing::new(password.to_vec());
    }
    let prepared = str::from_utf8(password)
        .ok()
        .and_then(|password| stringprep::saslprep(password).ok());
    Zeroizing::new(match prepared {
        Some(Cow::Borrowed(same)) => same.as_bytes().to_vec(),
        Some(Cow::Owned(prepared)) => prepared.into_bytes(),
        None => password.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7677, section 3.
    #[test]
    fn the_vector_of_rfc_7677_is_met_on_both_sides() {
        let server_first: &[u8] = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let client = Client {
            password: prepared(b"pencil"),
            nonce: "rOprNGfwEbeRWgbNEkqO".to_owned(),
            binding: Binding::Unsupported,
            first_bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".to_owned(),
        };
        assert_eq!(client.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (last, proved) = client.prove(server_first, 4_096).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let server_final = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(proved.verify(server_final.as_bytes()), Ok(()));

        let server = Challenged {
            password: prepared(b"pencil"),
            salt: STANDARD
                .decode("W22ZaJ0SNY7soEsUEjb6gQ==")
                .unwrap()
                .try_into()
                .unwrap(),
            iterations: 4_096,
            nonce: "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned(),
            binding: "biws".to_owned(),
            first_bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".to_owned(),
            server_first: str::from_utf8(server_first).unwrap().to_owned(),
        };
        assert_eq!(server.finish(last.as_bytes()).unwrap(), server_final);
    }

    fn exchange(
        known: &[u8],
        right: &[u8],
        client: Binding,
        offered: Option<&Bytes>,
    ) -> Result<(), Rejected> {
        let mechanism = match client {
            Binding::EndPoint(_) => SCRAM_PLUS,
            _ => SCRAM,
        };
        let client = Client::new(known, "", &[1; 18], client);
        let server = Challenged::new(
            right,
            &[2; 18],
            [3; 16],
            offered,
            mechanism,
            client.first().as_bytes(),
        )?;
        let (last, proved) = client.prove(server.first().as_bytes(), 4_096).unwrap();
        let signed = server.finish(last.as_bytes())?;
        assert_eq!(proved.verify(signed.as_bytes()), Ok(()));
        Ok(())
    }

    #[test]
    fn both_sides_agree_only_on_the_same_password_and_connection() {
        let (here, there) = (
            Bytes::from_static(b"this certificate"),
            Bytes::from_static(b"another one"),
        );
        let malformed = |result| matches!(result, Err(Rejected::Malformed(_)));
        assert_eq!(exchange(b"a", b"a", Binding::Unsupported, None), Ok(()));
        assert_eq!(
            exchange(b"a", b"a", Binding::Unsupported, Some(&here)),
            Ok(())
        );
        assert_eq!(exchange(b"a", b"a", Binding::Unoffered, None), Ok(()));
        assert!(malformed(exchange(
            b"a",
            b"a",
            Binding::Unoffered,
            Some(&here)
        )));
        let bound = |hash: &Bytes| Binding::EndPoint(hash.clone());
        assert_eq!(exchange(b"a", b"a", bound(&here), Some(&here)), Ok(()));
        assert!(malformed(exchange(b"a", b"a", bound(&there), Some(&here))));
        assert!(malformed(exchange(b"a", b"a", bound(&here), None)));
        assert_eq!(
            exchange(b"a", b"b", Binding::Unsupported, None),
            Err(Rejected::WrongPassword)
        );
        assert_eq!(
            exchange(b"a", b"b", bound(&here), Some(&here)),
            Err(Rejected::WrongPassword)
        );
    }

    #[test]
    fn passwords_are_prepared_as_postgresql_does() {
        // RFC 4013, section 3, and what PostgreSQL takes as it is.
        for (password, expected) in [
            ("I\u{AD}X", "IX"),
            ("\u{AA}", "a"),
            ("\u{2168}", "IX"),
            ("\u{7}", "\u{7}"),
            ("\u{627}1", "\u{627}1"),
            ("pa ss", "pa ss"),
        ] {
            assert_eq!(&*prepared(password.as_bytes()), expected.as_bytes());
        }
        assert_eq!(&*prepared(b"\xff\xfe"), b"\xff\xfe");
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_found_out() {
        let client = || Client::new(b"a", "", &[1; 18], Binding::Unsupported);
        let nonce = STANDARD.encode([1; 18]);
        for challenge in [
            String::new(),
            format!("r={nonce},s=AAAA,i=4096"),
            "r=another,s=AAAA,i=4096".to_owned(),
            format!("r={nonce}x,s=?,i=4096"),
            format!("r={nonce}x,s=AAAA,i=0"),
            format!("r={nonce}x,s=AAAA,i=4095"),
            format!("r={nonce}x,s=AAAA,i=999999999"),
            format!("m=x,r={nonce}x,s=AAAA,i=4096"),
        ] {
            assert!(
                client().prove(challenge.as_bytes(), 4_096).is_err(),
                "{challenge}"
            );
        }
        let challenge = format!("r={nonce}x,s=AAAA,i=4096");
        let (_, proved) = client().prove(challenge.as_bytes(), 4_096).unwrap();
        for last in ["", "v=", "v=AAAA", "e=other-error"] {
            assert!(proved.verify(last.as_bytes()).is_err(), "{last}");
        }
    }

    proptest! {
        #[test]
        fn nothing_a_peer_says_panics(first: Vec<u8>, text in "\\PC*", last: Vec<u8>) {
            let client = || Client::new(b"a", "", &[1; 18], Binding::Unsupported);
            let _ = client().prove(&first, 1);
            let _ = client().prove(text.as_bytes(), 1);
            for said in [&first[..], text.as_bytes()] {
                let _ = Challenged::new(b"a", &[2; 18], [3; 16], None, SCRAM, said);
            }
            let server =
                Challenged::new(b"a", &[2; 18], [3; 16], None, SCRAM, b"n,,n=,r=x").unwrap();
            let _ = server.finish(&last);
        }
    }
}
