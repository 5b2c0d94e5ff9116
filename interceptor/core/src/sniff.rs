//! Which protocol it is, from the first bytes of either side, never from the port alone.

use crate::{
    operation::Protocol,
    protocol::{dns, http, postgres, tls},
};

/// What the first bytes of a connection tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// It is this protocol.
    Protocol(Protocol),
    /// It may still be one of several.
    Unsure,
}

/// What the first bytes from the client tell; fewer than that are [`Sniffed::Unsure`].
///
/// Leans to [`Protocol::Opaque`], which is decided by rule and never waved through: bytes that only
/// look like a protocol are refused by its decoder.
#[must_use]
pub fn from_client(first: &[u8]) -> Sniffed {
    if first.is_empty() {
        return Sniffed::Unsure;
    }
    let candidates = [
        (Protocol::Postgres, postgres::is_startup(first)),
        (Protocol::Tls, tls::is_hello(first)),
        (Protocol::Http, http::is_request(first)),
        (Protocol::Dns, dns::is_query(first)),
    ];
    for (protocol, answer) in candidates {
        match answer {
            Some(true) => return Sniffed::Protocol(protocol),
            Some(false) => {}
            None => return Sniffed::Unsure,
        }
    }
    Sniffed::Protocol(Protocol::Opaque)
}

#[cfg(test)]
mod tests {
    use super::{Sniffed, from_client};
    use crate::operation::Protocol;

    #[test]
    fn start_up_packets_are_postgres_as_soon_as_their_code_is_there() {
        for packet in [
            &b"\0\0\0\x08\x04\xd2\x16\x2f"[..],
            b"\0\0\0\x08\x04\xd2\x16\x30",
            b"\0\0\0\x10\x04\xd2\x16\x2e12345678",
            b"\0\0\0\x20\0\x03\0\0user\0",
            b"\0\0\0\x20\0\x03\0\x02user\0",
        ] {
            for end in 0..8 {
                assert_eq!(
                    from_client(&packet[..end]),
                    Sniffed::Unsure,
                    "{end} bytes of {packet:?}"
                );
            }
            assert_eq!(
                from_client(packet),
                Sniffed::Protocol(Protocol::Postgres),
                "{packet:?}"
            );
        }
    }

    #[test]
    fn questions_over_tcp_are_dns_once_their_name_is_there() {
        let question = b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
        for end in 0..27 {
            assert_eq!(
                from_client(&question[..end]),
                Sniffed::Unsure,
                "{end} bytes"
            );
        }
        assert_eq!(
            from_client(&question[..27]),
            Sniffed::Protocol(Protocol::Dns)
        );
    }

    #[test]
    fn other_first_bytes_are_opaque() {
        for bytes in [
            &b"EHLO there\r\n"[..],
            b"\x16\x03\x01\x02\0\x02",
            b"SSH-2.0-x\r\n",
            b"\0\0\0\x07\0\x03\0\0",
            b"\0\x01",
            b"\x05\x01\0",
            b"\0\x1d\x12\x34\x81\0\0\x01",
        ] {
            assert_eq!(
                from_client(bytes),
                Sniffed::Protocol(Protocol::Opaque),
                "{bytes:?}"
            );
        }
    }
}
