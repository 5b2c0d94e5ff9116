//! Which servers a credential is for.

use std::net::IpAddr;

use interceptor_core::{glob::Glob, origin::Destination};
use serde::Deserialize;

/// Servers by verified name or by address, and by port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Servers {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    /// Names that TLS has verified, in lower case: what a resolver says of a name is no proof.
    Named(Glob),
    /// The addresses whose first bits are these.
    Network { address: IpAddr, prefix_bits: u32 },
}

impl Servers {
    /// Whether the server at `destination`, which has proved to be called `host`, is one of them.
    #[must_use]
    pub fn contains(&self, destination: &Destination, host: Option<&str>) -> bool {
        let Some(server) = destination.address() else {
            return false;
        };
        if self.port.is_some_and(|port| port != server.port()) {
            return false;
        }
        match &self.hosts {
            Hosts::Named(pattern) => host.is_some_and(|host| {
                let host = host.strip_suffix('.').unwrap_or(host);
                pattern.matches(&host.to_ascii_lowercase())
            }),
            Hosts::Network {
                address,
                prefix_bits,
            } => match (*address, server.ip().to_canonical()) {
                (IpAddr::V4(network), IpAddr::V4(address)) => {
                    (network.to_bits() ^ address.to_bits()).leading_zeros() >= *prefix_bits
                }
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    (network.to_bits() ^ address.to_bits()).leading_zeros() >= *prefix_bits
                }
                _ => false,
            },
        }
    }
}

impl TryFrom<String> for Servers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is no destination; `db.example.com:5432`, `*.example.com`, `192.0.2.0/24`, `[2001:db8::1]:5432` are",
                text.escape_debug()
            )
        };
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or_else(wrong)?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        } else {
            match text.split_once(':') {
                // More colons than one: an address of version 6, which has no port without brackets.
                Some((_, rest)) if rest.contains(':') => (&*text, None),
                Some((host, port)) => (host, Some(port)),
                None => (&*text, None),
            }
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(port @ 1..) => Some(port),
                _ => return Err(wrong()),
            },
        };
        let (address, bits) = match host.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (host, None),
        };
        let hosts = match (address.parse::<IpAddr>(), bits) {
            (Ok(address), bits) => {
                let bits_max = if address.is_ipv4() { 32 } else { 128 };
                let prefix_bits = match bits {
                    None => bits_max,
                    Some(bits) => bits.parse().map_err(|_| wrong())?,
                };
                if prefix_bits > bits_max {
                    return Err(wrong());
                }
                if prefix_bits == 0 {
                    return Err(anywhere(&text));
                }
                Hosts::Network {
                    address,
                    prefix_bits,
                }
            }
            (Err(_), Some(_)) => return Err(wrong()),
            (Err(_), None) => {
                Hosts::Named(name_pattern(host).map_err(|why| why.unwrap_or_else(wrong))?)
            }
        };
        Ok(Self { hosts, port })
    }
}

/// A pattern for hosts' names; where it is none, why, if there is more to say.
fn name_pattern(host: &str) -> Result<Glob, Option<String>> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*?".contains(&byte);
    if host.is_empty() || !host.bytes().all(allowed) {
        return Err(None);
    }
    if host.bytes().all(|byte| b".*?".contains(&byte)) {
        return Err(Some(anywhere(&host)));
    }
    if !host.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        // It looks live and would match nothing: a name doesn't end in a number.
        return Err(Some(format!(
            "`{host}` is no address; ranges of addresses are written `192.0.2.0/24`"
        )));
    }
    Ok(Glob::new(&host))
}

fn anywhere(text: &str) -> String {
    format!(
        "`{text}` would give the password to whatever server an agent connects to; name the servers it is for"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Result<Servers, String> {
        Servers::try_from(text.to_owned())
    }

    #[test]
    fn servers_are_those_that_are_named() {
        for (pattern, destination, host, expected) in [
            ("192.0.2.1", "192.0.2.1:5432", None, true),
            ("192.0.2.1", "192.0.2.2:5432", None, false),
            ("192.0.2.1:5432", "192.0.2.1:5432", None, true),
            ("192.0.2.1:5433", "192.0.2.1:5432", None, false),
            ("192.0.2.0/24", "192.0.2.99:1", None, true),
            ("192.0.2.0/24:1", "192.0.2.99:1", None, true),
            ("192.0.2.0/24", "192.0.3.1:1", None, false),
            ("192.0.2.1", "[::ffff:192.0.2.1]:5432", None, true),
            ("2001:db8::1", "[2001:db8::1]:5432", None, true),
            ("[2001:db8::1]:5432", "[2001:db8::1]:5432", None, true),
            ("[2001:db8::/32]:5432", "[2001:db8::7]:5432", None, true),
            ("2001:db8::/32", "[2001:db9::7]:5432", None, false),
            ("127.0.0.1", "[::1]:5432", None, false),
            ("db.example.com", "192.0.2.1:5432", None, false),
            (
                "DB.example.com",
                "192.0.2.1:5432",
                Some("db.EXAMPLE.com."),
                true,
            ),
            (
                "db.example.com:5432",
                "192.0.2.1:5432",
                Some("db.example.com"),
                true,
            ),
            (
                "db.example.com:1",
                "192.0.2.1:5432",
                Some("db.example.com"),
                false,
            ),
            (
                "*.example.com",
                "192.0.2.1:5432",
                Some("db.example.com"),
                true,
            ),
            (
                "*.example.com",
                "192.0.2.1:5432",
                Some("example.org"),
                false,
            ),
            ("192.0.2.1", "192.0.2.1:5432", Some("db.example.com"), true),
        ] {
            let destination = Destination::Ip(destination.parse().unwrap());
            assert_eq!(
                servers(pattern).unwrap().contains(&destination, host),
                expected,
                "{pattern} {destination} {host:?}"
            );
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for (text, expected) in [
            ("", "is no destination"),
            (":5432", "is no destination"),
            ("db:0", "is no destination"),
            ("db:65536", "is no destination"),
            ("db:port", "is no destination"),
            ("[::1", "is no destination"),
            ("[::1]5432", "is no destination"),
            ("db/24", "is no destination"),
            ("10.0.0.0/33", "is no destination"),
            ("postgres://db", "is no destination"),
            ("db example", "is no destination"),
            ("*", "whatever server"),
            ("*:5432", "whatever server"),
            ("*.*", "whatever server"),
            ("0.0.0.0/0", "whatever server"),
            ("::/0", "whatever server"),
            ("10.0.0.*", "ranges of addresses are written"),
            ("10.0.0.256", "ranges of addresses are written"),
        ] {
            let error = servers(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
