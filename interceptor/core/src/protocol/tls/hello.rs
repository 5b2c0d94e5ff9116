//! The ClientHello (RFC 8446, section 4.1.2), read without answering it.

use crate::limits;

/// What a client says about itself in its first message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name it wants to reach (`server_name`, RFC 6066), lower-cased; a claim of the client.
    pub server_name: Option<Box<str>>,
    /// The protocols it offers for the inside, best first (ALPN, RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// The versions it offers, best first: 0x0304 is TLS 1.3.
    pub versions: Vec<u16>,
    /// It carries an `encrypted_client_hello` (RFC 9849), real or as grease: only the server can tell.
    pub encrypted: bool,
}

/// How far a message could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// All of it.
    Complete(T),
    /// Not all of it is there.
    More,
    /// It breaks the protocol; the reason is for people.
    Malformed(&'static str),
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_BYTES_MAX: usize = 1 << 14;

mod extension {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const ALPN: u16 = 16;
    pub(super) const SUPPORTED_VERSIONS: u16 = 43;
    pub(super) const ENCRYPTED_CLIENT_HELLO: u16 = 0xFE0D;
}

/// Whether these are the first bytes of a ClientHello; `None` while that can't be told.
#[must_use]
pub fn is_hello(first: &[u8]) -> Option<bool> {
    let expected = |index: usize, byte: u8| match index {
        0 => byte == HANDSHAKE,
        1 => byte == 3,
        2 => byte <= 4,
        3 => usize::from(byte) <= RECORD_BYTES_MAX >> 8,
        4 => true,
        _ => byte == CLIENT_HELLO,
    };
    if !first
        .iter()
        .take(6)
        .enumerate()
        .all(|(index, byte)| expected(index, *byte))
    {
        return Some(false);
    }
    (first.len() >= 6).then_some(true)
}

impl ClientHello {
    /// Reads it from the first bytes of a connection: one handshake message in one record or several.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Reading<Self> {
        let message = match handshake(bytes) {
            Reading::Complete(message) => message,
            Reading::More => return Reading::More,
            Reading::Malformed(why) => return Reading::Malformed(why),
        };
        match Self::body(Input(&message)) {
            Some(hello) => Reading::Complete(hello),
            None => Reading::Malformed("a ClientHello that ends within a field"),
        }
    }

    fn body(mut input: Input<'_>) -> Option<Self> {
        let legacy_version = input.u16()?;
        input.take(32)?; // random
        input.vector8()?; // legacy_session_id
        input.vector16()?; // cipher_suites
        input.vector8()?; // legacy_compression_methods
        let mut hello = Self::default();
        if !input.0.is_empty() {
            let mut extensions = input.vector16()?;
            if !input.0.is_empty() {
                return None;
            }
            while !extensions.0.is_empty() {
                let kind = extensions.u16()?;
                let data = extensions.vector16()?;
                hello.extension(kind, data)?;
            }
        }
        if hello.versions.is_empty() {
            hello.versions.push(legacy_version);
        }
        Some(hello)
    }

    fn extension(&mut self, kind: u16, mut data: Input<'_>) -> Option<()> {
        match kind {
            extension::SERVER_NAME => {
                const HOST_NAME: u8 = 0;
                let mut names = data.vector16()?;
                while !names.0.is_empty() {
                    let kind = names.u8()?;
                    let name = names.vector16()?;
                    if kind == HOST_NAME {
                        let name = std::str::from_utf8(name.0).ok()?;
                        // A second one, or one that no name can be, is no hello that has one meaning.
                        if self.server_name.is_some() || !is_host_name(name) {
                            return None;
                        }
                        let name = name.trim_end_matches('.').to_ascii_lowercase();
                        self.server_name = Some(name.into());
                    }
                }
            }
            extension::ALPN => {
                let mut names = data.vector16()?;
                while !names.0.is_empty() {
                    self.alpn.push(names.vector8()?.0.to_vec());
                }
            }
            extension::SUPPORTED_VERSIONS => {
                let mut versions = data.vector8()?;
                while !versions.0.is_empty() {
                    let version = versions.u16()?;
                    // Reserved values that keep servers tolerant (RFC 8701).
                    if version & 0x0F0F != 0x0A0A {
                        self.versions.push(version);
                    }
                }
            }
            extension::ENCRYPTED_CLIENT_HELLO => self.encrypted = true,
            _ => {}
        }
        Some(())
    }
}

fn is_host_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=255).contains(&name.len()) && name.bytes().all(allowed)
}

/// The body of the first handshake message, put together from its records.
fn handshake(bytes: &[u8]) -> Reading<Vec<u8>> {
    let mut message = Vec::new();
    let mut records = Input(bytes);
    loop {
        if let Some((header, body)) = message.split_at_checked(4) {
            let [kind, a, b, c] = *header else {
                return Reading::Malformed("a handshake message without a header");
            };
            if kind != CLIENT_HELLO {
                return Reading::Malformed("a handshake that doesn't begin with a ClientHello");
            }
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > limits::CLIENT_HELLO_BYTES_MAX {
                return Reading::Malformed("a ClientHello of more than 32 KiB");
            }
            if let Some(body) = body.get(..length) {
                return if body.len() + 4 == message.len() && records.0.is_empty() {
                    Reading::Complete(body.to_vec())
                } else {
                    // Early data is only sent to servers that have offered it, and none has.
                    Reading::Malformed("something behind the ClientHello, before any answer")
                };
            }
        }
        let record = (|| {
            let [kind, major, _minor] = *records.take(3)? else {
                return None;
            };
            let fragment = records.vector16();
            Some((kind, major, fragment))
        })();
        match record {
            None => return Reading::More,
            Some((HANDSHAKE, 3, Some(fragment))) => {
                if fragment.0.is_empty() || fragment.0.len() > RECORD_BYTES_MAX {
                    return Reading::Malformed("a record that is empty or over 16 KiB");
                }
                message.extend_from_slice(fragment.0);
            }
            Some((HANDSHAKE, 3, None)) => return Reading::More,
            Some(_) => return Reading::Malformed("a record that isn't part of a handshake"),
        }
    }
}

/// Bytes that are still to be read.
#[derive(Debug, Clone, Copy)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn vector8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientHello, Reading, is_hello};

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut out = kind.to_be_bytes().to_vec();
        out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
        out
    }

    fn server_name(name: &str) -> Vec<u8> {
        let length = u16::try_from(name.len()).unwrap();
        let mut entry = vec![0];
        entry.extend(length.to_be_bytes());
        entry.extend(name.bytes());
        let mut list = (length + 3).to_be_bytes().to_vec();
        list.extend(entry);
        extension(0, &list)
    }

    fn body(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        body
    }

    /// The hello in records of `size` bytes each.
    fn records(body: &[u8], size: usize) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let mut message = vec![1, length[1], length[2], length[3]];
        message.extend(body);
        let mut out = Vec::new();
        for fragment in message.chunks(size) {
            out.extend([22, 3, 1]);
            out.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
            out.extend(fragment);
        }
        out
    }

    fn full() -> Vec<u8> {
        let mut extensions = server_name("Example.COM.");
        extensions.extend(extension(16, b"\0\x0c\x02h2\x08http/1.1"));
        extensions.extend(extension(43, &[6, 0x5a, 0x5a, 3, 4, 3, 3]));
        extensions.extend(extension(0xFE0D, &[0]));
        body(&extensions)
    }

    #[test]
    fn names_protocols_and_versions_are_read_however_it_is_cut() {
        let expected = ClientHello {
            server_name: Some("example.com".into()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            versions: vec![0x0304, 0x0303],
            encrypted: true,
        };
        for size in [1, 2, 3, 5, 64, 4_096] {
            let bytes = records(&full(), size);
            assert_eq!(
                ClientHello::read(&bytes),
                Reading::Complete(expected.clone()),
                "{size}"
            );
            for end in 0..bytes.len() {
                assert_eq!(
                    ClientHello::read(&bytes[..end]),
                    Reading::More,
                    "{size}: {end}"
                );
            }
        }
    }

    #[test]
    fn a_hello_without_extensions_is_of_its_legacy_version() {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        let Reading::Complete(hello) = ClientHello::read(&records(&body, 4_096)) else {
            panic!();
        };
        assert_eq!((hello.versions, hello.server_name), (vec![0x0303], None));
    }

    #[test]
    fn what_has_two_meanings_or_none_is_malformed() {
        let mut two = server_name("a.example");
        two.extend(server_name("b.example"));
        let mut behind = records(&full(), 4_096);
        behind.extend([23, 3, 3, 0, 1, 0]);
        let mut long = records(&full(), 4_096);
        long[6] = 1;
        for (bytes, what) in [
            (records(&body(&two), 4_096), "two names"),
            (records(&body(&server_name("a b")), 4_096), "no name"),
            (
                records(&body(&server_name("a\0b")), 4_096),
                "a NUL in the name",
            ),
            (
                records(&body(&[0, 0, 0, 9]), 4_096),
                "an extension that is cut",
            ),
            (behind, "data behind it"),
            (long, "too long"),
            (vec![22, 3, 1, 0, 0], "an empty record"),
            (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], "a ServerHello"),
            (
                vec![22, 3, 1, 0, 1, 1, 23, 3, 1, 0, 1, 1],
                "another record in it",
            ),
        ] {
            assert!(
                matches!(ClientHello::read(&bytes), Reading::Malformed(_)),
                "{what}"
            );
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let bytes = records(&full(), 4_096);
        for index in 0..bytes.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut changed = bytes.clone();
                changed[index] = value;
                let _ = ClientHello::read(&changed);
            }
        }
    }

    #[test]
    fn the_first_bytes_tell() {
        let bytes = records(&full(), 4_096);
        for end in 0..6 {
            assert_eq!(is_hello(&bytes[..end]), None);
        }
        assert_eq!(is_hello(&bytes), Some(true));
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"\x16\x02",
            b"\x15\x03\x01",
            b"\x16\x03\x01\x00\x05\x02",
        ] {
            assert_eq!(is_hello(other), Some(false));
        }
    }
}
