//! The addresses by which the forwarder knows whose query it has, and for which server.
//!
//! IPv4's are loopback addresses, which every host has. IPv6 has but one of those, so each instance
//! takes a network of unique local addresses (RFC 4193) and has it lead to the loopback device.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use aws_lc_rs::digest;
use aya::maps::{HashMap as BpfHashMap, MapData};
use interceptor_abi as abi;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{Plain, mapped, netlink, socket_address};

const PREFIX_BITS: u8 = 64;

/// How long a token is kept that nothing is sent to. Sockets that are connected to one fall silent with it.
const KEPT_NS: u64 = 3_600_000_000_000;

/// The IPv6 network of an instance's tokens: its first half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network(pub(super) [u8; 8]);

impl Network {
    /// The same for each start of an instance, another for each instance.
    pub(super) fn of_instance(instance: &str) -> Self {
        let hash = digest::digest(&digest::SHA256, instance.as_bytes());
        let mut half = [0xFD, 0, 0, 0, 0, 0, 0, 1];
        for (byte, random) in half.iter_mut().skip(1).take(5).zip(hash.as_ref()) {
            *byte = *random;
        }
        Self(half)
    }

    /// The address of token `number`.
    fn address(self, number: u32) -> Ipv6Addr {
        let high = u128::from(u64::from_be_bytes(self.0));
        Ipv6Addr::from(high << 64 | u128::from(number))
    }

    /// Has the network lead to the loopback device of the calling thread's network namespace.
    ///
    /// # Errors
    /// Where the host has no IPv6, or doesn't let us.
    pub(super) fn route(self) -> io::Result<()> {
        match self.change(RouteNetlinkMessage::NewRoute, NLM_F_CREATE | NLM_F_EXCL) {
            // It was left there by a daemon that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Takes the route away again.
    pub(super) fn unroute(self) {
        // An error means that it wasn't there.
        let _ = self.change(RouteNetlinkMessage::DelRoute, 0);
    }

    fn change(self, change: fn(RouteMessage) -> RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let device = nix::net::if_::if_nametoindex("lo")?;
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.destination_prefix_length = PREFIX_BITS;
        // The table of what is this host's own: in another one packets go out, and come in nowhere.
        route.header.table = libc::RT_TABLE_LOCAL;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Local;
        let destination = RouteAddress::Inet6(self.address(0));
        route.attributes = vec![
            RouteAttribute::Destination(destination),
            RouteAttribute::Oif(device),
        ];
        netlink::ask(change(route), flags)
    }
}

/// The number of the token at `address`.
pub(super) fn number(network: Network, address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            let number = bits & (abi::TOKEN_NUMBERS - 1);
            (bits - number == abi::TOKENS_V4).then_some(number)
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let number = u32::try_from(bits & u128::from(u64::MAX)).ok()?;
            (network.address(number) == address).then_some(number)
        }
    }
}

/// A DNS server that an agent asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked {
    /// Number of the agent.
    pub agent: u64,
    /// The server.
    pub server: SocketAddr,
}

impl From<abi::Server> for Asked {
    fn from(server: abi::Server) -> Self {
        Self {
            agent: server.agent,
            server: socket_address(server.address_be, server.port_be),
        }
    }
}

/// The maps of tokens.
pub(super) struct Tokens {
    pub(super) tokens: BpfHashMap<MapData, Plain<abi::Server>, Plain<abi::Token>>,
    pub(super) servers: BpfHashMap<MapData, u32, Plain<abi::Server>>,
    pub(super) counts: BpfHashMap<MapData, u64, u32>,
}

impl Tokens {
    pub(super) fn find(&self, number: u32) -> Option<Asked> {
        self.servers
            .get(&number, 0)
            .ok()
            .map(|Plain(server)| server.into())
    }

    /// Forgets tokens that aren't used any more, and those of agents that `is_alive` doesn't know.
    pub(super) fn sweep(&mut self, now_ns: u64, is_alive: impl Fn(u64) -> bool) {
        let mut counts: HashMap<u64, u32> = HashMap::new();
        let mut gone = Vec::new();
        for entry in self.tokens.iter() {
            let Ok((Plain(server), Plain(token))) = entry else {
                // The map changed meanwhile; next time.
                return;
            };
            if now_ns.saturating_sub(token.used_ns) > KEPT_NS || !is_alive(server.agent) {
                gone.push((server, token.number));
            } else {
                *counts.entry(server.agent).or_default() += 1;
            }
        }
        for (server, number) in gone {
            let _ = self.tokens.remove(&Plain(server));
            let _ = self.servers.remove(&number);
        }
        let known: Vec<u64> = self.counts.keys().filter_map(Result::ok).collect();
        for agent in known {
            let _ = match counts.get(&agent) {
                Some(count) => self.counts.insert(agent, count, 0),
                None => self.counts.remove(&agent),
            };
        }
    }
}

/// The key by which the kernel knows where a datagram of an agent comes from.
pub(super) fn source(netns_cookie: u64, from: SocketAddr) -> abi::Source {
    abi::Source::of_datagrams(netns_cookie, mapped(from.ip()), from.port().into())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::{Network, number};

    #[test]
    fn each_instance_has_a_network_of_its_own_and_tokens_in_it_are_told_from_other_addresses() {
        let network = Network::of_instance("interceptor");
        assert_eq!(network, Network::of_instance("interceptor"));
        assert_ne!(network, Network::of_instance("another"));
        assert_eq!(number(network, network.address(77).into()), Some(77));
        let other = Network::of_instance("another").address(77);
        for (address, expected) in [
            ("127.64.0.1".parse().unwrap(), Some(1)),
            ("127.127.255.255".parse().unwrap(), Some((1 << 22) - 1)),
            ("127.0.0.1".parse().unwrap(), None),
            ("127.128.0.1".parse().unwrap(), None),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), None),
            (IpAddr::V6(other), None),
        ] {
            assert_eq!(number(network, address), expected, "{address}");
        }
    }
}
