//! Which IPv6 networks no route leads to, in one network namespace.
//!
//! A redirected connect succeeds at once, wherever it goes. On a host without IPv6 that would be the end of
//! every client whose server has an IPv6 address as well: it would never try the IPv4 one.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use interceptor_abi::unrouted;

/// Every IPv6 route of the calling thread's network namespace, a line each. `/proc/net` is the one of the
/// process's first thread.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";

/// RTF_UP: the route is usable.
const UP: u32 = 0x1;
/// RTF_REJECT: it leads nowhere.
const REJECT: u32 = 0x200;

/// The networks, with the first byte of their prefix and its length in bits.
const NETWORKS: [(u32, u8, u32); 2] = [(unrouted::GLOBAL, 0x20, 3), (unrouted::PRIVATE, 0xFC, 7)];

/// IPv6 networks that no route leads to, as [`unrouted`] has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unrouted(pub(super) u32);

impl Unrouted {
    /// As if there were routes to everywhere.
    pub const NOTHING: Self = Self(0);

    const EVERYTHING: Self = Self(unrouted::GLOBAL | unrouted::PRIVATE);

    /// What the routes of the calling thread's network namespace say now.
    #[must_use]
    pub fn now() -> Self {
        match File::open(ROUTES) {
            Ok(routes) => Self::from_routes(BufReader::new(routes)).unwrap_or(Self::NOTHING),
            // There is no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::EVERYTHING,
            Err(_) => Self::NOTHING,
        }
    }

    fn from_routes(routes: impl BufRead) -> io::Result<Self> {
        let mut left = Self::EVERYTHING;
        for route in routes.lines() {
            let Some((prefix, length)) = prefix(&route?) else {
                continue;
            };
            for (network, first, bits) in NETWORKS {
                // One lies in the other.
                let differing = u32::from(prefix ^ first) << 24;
                if differing.leading_zeros() >= length.min(bits) {
                    left.0 &= !network;
                }
            }
            if left == Self::NOTHING {
                // Tables can be long.
                break;
            }
        }
        Ok(left)
    }
}

/// The first byte and the length in bits of what a usable route leads to.
fn prefix(route: &str) -> Option<(u8, u32)> {
    let mut fields = route.split_ascii_whitespace();
    let (network, length) = (fields.next()?, fields.next()?);
    let flags = u32::from_str_radix(fields.nth(6)?, 16).ok()?;
    if flags & (UP | REJECT) != UP {
        return None;
    }
    let first = u8::from_str_radix(network.get(..2)?, 16).ok()?;
    Some((first, u32::from_str_radix(length, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use interceptor_abi::unrouted::{GLOBAL, PRIVATE};

    use super::Unrouted;

    const ZERO: &str = "00000000000000000000000000000000 00";

    fn route(network: &str, length: u8, flags: &str, device: &str) -> String {
        format!(
            "{network:0<32} {length:02x} {ZERO} 00000000000000000000000000000000 00000400 00000003 00000000 {flags} {device}\n"
        )
    }

    #[test]
    fn what_no_route_leads_to_is_known() {
        let own = [
            route("00000000000000000000000000000001", 128, "80200001", "lo"),
            route("fe80", 64, "00000001", "eth0"),
            route("ff00", 8, "00000001", "eth0"),
            route("", 0, "00200200", "lo"),
        ]
        .concat();
        for (more, unrouted) in [
            (String::new(), GLOBAL | PRIVATE),
            (route("", 0, "00000003", "eth0"), 0),
            (route("fd00", 64, "00000001", "docker0"), GLOBAL),
            (route("20010db8", 32, "00000001", "eth0"), PRIVATE),
            (route("2000", 3, "00000001", "eth0"), PRIVATE),
            // This host itself.
            (route("20010db8", 128, "80200001", "lo"), PRIVATE),
            // Down, or leading nowhere.
            (route("", 0, "00000002", "eth0"), GLOBAL | PRIVATE),
            (route("", 0, "00000201", "eth0"), GLOBAL | PRIVATE),
        ] {
            let found = Unrouted::from_routes(format!("{own}{more}").as_bytes()).unwrap();
            assert_eq!(found, Unrouted(unrouted), "{more}");
        }
        for text in ["", "no route", "zz"] {
            let found = Unrouted::from_routes(text.as_bytes()).unwrap();
            assert_eq!(found, Unrouted::EVERYTHING, "{text}");
        }
    }
}
