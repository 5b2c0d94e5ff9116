//! What agents exchange without us in between: datagrams that a rule lets go, and who may come in.
//!
//! The kernel decides packet by packet and knows no rules, so they are made into networks with ports: of
//! those that an address lies in the longest counts, and says all that is allowed there.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use super::{
    Policy,
    rule::{Network, ScopeMatch},
};
use crate::{glob::Glob, origin::Agent};

/// How an agent and a peer meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meeting {
    /// The agent sends datagrams to the peer, which may answer; ports are the peer's.
    Datagrams,
    /// The peer connects or sends to the agent; ports are the agent's.
    Inbound,
}

/// A rule on what isn't redirected.
#[derive(Debug)]
pub(super) struct DirectRule {
    pub(super) id: Arc<str>,
    /// Which agents; the rest of it is not asked.
    pub(super) scope: ScopeMatch,
    pub(super) meeting: Meeting,
    /// Without names: the peers.
    pub(super) networks: Vec<Network>,
    pub(super) names: Option<Vec<Glob>>,
    pub(super) ports: Vec<RangeInclusive<u16>>,
    pub(super) allows: bool,
}

/// Peers of an agent within a network, and the ports they may meet it at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// How they meet.
    pub meeting: Meeting,
    /// The network's address, and the length of its prefix in bits.
    pub network: (IpAddr, u8),
    /// The ports, in order and apart; none where nothing is allowed there.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// ::ffff:0:0, where IPv4 begins within IPv6.
const IPV4_AS_IPV6: IpAddr = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());

/// Everything, in both families.
pub(super) const EVERYWHERE: [Network; 2] = [
    Network {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        prefix_bits: 0,
    },
    Network {
        address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        prefix_bits: 0,
    },
];

impl DirectRule {
    /// Whether all of `network` is meant.
    fn covers(&self, network: Network, known: &[(IpAddr, Vec<Box<str>>)]) -> bool {
        if let Some(globs) = &self.names {
            return network.is_host()
                && known.iter().any(|(address, names)| {
                    *address == network.address
                        && names
                            .iter()
                            .any(|name| globs.iter().any(|glob| glob.matches(name)))
                });
        }
        self.networks.iter().any(|own| own.covers(network))
    }
}

impl Network {
    const fn bits(self) -> u8 {
        match self.address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }

    const fn is_host(self) -> bool {
        self.prefix_bits == self.bits()
    }

    fn covers(self, other: Self) -> bool {
        self.prefix_bits <= other.prefix_bits && self.contains(other.address)
    }

    /// The same network, written in one way: what is behind the prefix is zero.
    pub(super) fn canonical(self) -> Self {
        let behind = u32::from(self.bits() - self.prefix_bits.min(self.bits()));
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
                IpAddr::from((u32::from(address) & mask).to_be_bytes())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
                IpAddr::from((u128::from(address) & mask).to_be_bytes())
            }
        };
        Self { address, ..self }
    }

    const fn host(address: IpAddr) -> Self {
        let whole = Self {
            address,
            prefix_bits: 0,
        };
        Self {
            address,
            prefix_bits: whole.bits(),
        }
    }
}

impl Policy {
    /// Whom `agent` may meet without us in between, where `known` are the addresses that it was told names
    /// for. A policy that isn't enforced keeps it from nobody.
    #[must_use]
    pub fn reach(&self, agent: &Agent, known: &[(IpAddr, Vec<Box<str>>)]) -> Vec<Reach> {
        let mut all = Vec::new();
        for meeting in [Meeting::Datagrams, Meeting::Inbound] {
            if !self.enforced {
                all.extend(EVERYWHERE.map(|network| Reach {
                    meeting,
                    network: (network.address, network.prefix_bits),
                    ports: vec![0..=u16::MAX],
                }));
                continue;
            }
            let rules: Vec<&DirectRule> = self
                .direct
                .iter()
                .filter(|rule| rule.meeting == meeting && rule.scope.is_for(agent))
                .collect();
            let mut networks: BTreeSet<(IpAddr, u8)> = rules
                .iter()
                .filter(|rule| rule.names.is_none())
                .flat_map(|rule| &rule.networks)
                .map(|network| (network.address, network.prefix_bits))
                .collect();
            if rules.iter().any(|rule| rule.names.is_some()) {
                networks.extend(known.iter().map(|(address, _)| {
                    let host = Network::host(*address);
                    (host.address, host.prefix_bits)
                }));
            }
            // The kernel keeps IPv4 addresses as ::ffff:a.b.c.d: what is said of all of IPv6 isn't said of them.
            let holds_ipv4 = |(address, bits): &(IpAddr, u8)| {
                let network = Network {
                    address: *address,
                    prefix_bits: *bits,
                };
                network.contains(IPV4_AS_IPV6)
            };
            if networks.iter().any(holds_ipv4) {
                networks.insert((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
            }
            all.extend(networks.into_iter().map(|(address, prefix_bits)| {
                let network = Network {
                    address,
                    prefix_bits,
                };
                let of = |allows: bool| {
                    let meant = rules
                        .iter()
                        .filter(move |rule| rule.allows == allows && rule.covers(network, known));
                    meant.flat_map(|rule| rule.ports.iter().cloned())
                };
                Reach {
                    meeting,
                    network: (address, prefix_bits),
                    ports: without(joined(of(true)), &joined(of(false))),
                }
            }));
        }
        all
    }

    /// The rule by which `agent` may or may not meet a peer; `names` are those that the agent was told the
    /// address for.
    #[must_use]
    pub fn meeting_rule(
        &self,
        agent: &Agent,
        meeting: Meeting,
        (peer, port): (IpAddr, u16),
        names: &[Box<str>],
    ) -> Option<&Arc<str>> {
        let known = [(peer, names.to_vec())];
        let network = Network::host(peer);
        let mut rules: Vec<&DirectRule> = self
            .direct
            .iter()
            .filter(|rule| {
                rule.meeting == meeting
                    && rule.scope.is_for(agent)
                    && rule.covers(network, &known)
                    && rule.ports.iter().any(|range| range.contains(&port))
            })
            .collect();
        // The most restrictive, of equals the first.
        rules.sort_by_key(|rule| rule.allows);
        rules.first().map(|rule| &rule.id)
    }

    /// Whether what agents are told of names changes whom they may meet.
    #[must_use]
    pub fn reaches_by_name(&self) -> bool {
        self.direct.iter().any(|rule| rule.names.is_some())
    }
}

/// Ranges in order, those that touch as one.
fn joined(ranges: impl Iterator<Item = RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_by_key(|range| *range.start());
    let mut out: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => out.push(range),
        }
    }
    out
}

/// What of `ranges` is in none of `taken`; both in order and apart.
fn without(
    ranges: Vec<RangeInclusive<u16>>,
    taken: &[RangeInclusive<u16>],
) -> Vec<RangeInclusive<u16>> {
    let mut out = Vec::new();
    for range in ranges {
        let (mut start, end) = (u32::from(*range.start()), u32::from(*range.end()));
        for hole in taken {
            let (first, last) = (u32::from(*hole.start()), u32::from(*hole.end()));
            if last < start || first > end {
                continue;
            }
            out.extend(first.checked_sub(1).and_then(|before| ports(start, before)));
            start = last + 1;
        }
        out.extend(ports(start, end));
    }
    out
}

fn ports(start: u32, end: u32) -> Option<RangeInclusive<u16>> {
    (start <= end).then_some(u16::try_from(start).ok()?..=u16::try_from(end).ok()?)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Meeting, Reach, without};
    use crate::{origin::Agent, policy::Policy};

    fn policy(rules: &str) -> Policy {
        let text = format!("default: {{action: deny}}\nrules:\n{rules}");
        Policy::parse(&[("p.yaml".to_owned(), text)]).unwrap()
    }

    fn agent(name: &str) -> Agent {
        Agent {
            name: name.into(),
            labels: [("team".into(), "red".into())].into(),
        }
    }

    fn reach(policy: &Policy, name: &str, known: &[(IpAddr, Vec<Box<str>>)]) -> Vec<String> {
        policy
            .reach(&agent(name), known)
            .into_iter()
            .map(
                |Reach {
                     meeting,
                     network: (address, bits),
                     ports,
                 }| format!("{meeting:?} {address}/{bits} {ports:?}"),
            )
            .collect()
    }

    #[test]
    fn the_longest_network_says_all_that_is_allowed_there() {
        let policy = policy(
            "
  - {id: ntp, match: {destination: {address: [192.0.2.0/24, \"2001:db8::/32\"], port: 123}}, udp: allow}
  - {id: games, match: {agent: gamer, labels: {team: red}, destination: {address: 192.0.2.0/25, port: [27000-27100, 9]}}, udp: allow}
  - {id: not-there, match: {destination: {address: 192.0.2.7, port: [100-200]}}, udp: deny}
  - {id: dev, match: {agent: \"dev*\", source: {address: 127.0.0.0/8}, destination: {port: [3000, 3001]}}, inbound: allow}
",
        );
        assert_eq!(
            reach(&policy, "gamer", &[]),
            [
                "Datagrams 192.0.2.0/24 [123..=123]",
                "Datagrams 192.0.2.0/25 [9..=9, 123..=123, 27000..=27100]",
                "Datagrams 192.0.2.7/32 [9..=9, 27000..=27100]",
                "Datagrams 2001:db8::/32 [123..=123]",
            ]
        );
        assert!(
            reach(&policy, "dev1", &[]).contains(&"Inbound 127.0.0.0/8 [3000..=3001]".to_owned())
        );
        let rule = |address: &str, port| {
            let peer = (address.parse().unwrap(), port);
            policy
                .meeting_rule(&agent("gamer"), Meeting::Datagrams, peer, &[])
                .map(|id| id.to_string())
        };
        assert_eq!(rule("192.0.2.9", 123).as_deref(), Some("ntp"));
        assert_eq!(rule("192.0.2.7", 123).as_deref(), Some("not-there"));
        assert_eq!(rule("192.0.2.7", 9).as_deref(), Some("games"));
        assert_eq!(rule("198.51.100.1", 123), None);
    }

    #[test]
    fn names_stand_for_the_addresses_that_the_agent_was_told() {
        let policy = policy(
            "
  - {id: stun, match: {destination: {name: \"*.stun.test\", port: 3478}}, udp: allow}
",
        );
        assert!(policy.reaches_by_name());
        assert_eq!(reach(&policy, "a", &[]), Vec::<String>::new());
        let known = [
            ("192.0.2.9".parse().unwrap(), vec!["eu.stun.test".into()]),
            ("192.0.2.8".parse().unwrap(), vec!["web.test".into()]),
        ];
        assert_eq!(
            reach(&policy, "a", &known),
            [
                "Datagrams 192.0.2.8/32 []",
                "Datagrams 192.0.2.9/32 [3478..=3478]"
            ]
        );
    }

    #[test]
    fn networks_are_told_apart_however_they_are_written() {
        let policy = policy(
            "
  - {id: all-of-ipv6, match: {destination: {address: \"::/0\", port: 9}}, udp: allow}
  - {id: one, match: {destination: {address: 192.0.2.77/24, port: 1}}, udp: allow}
  - {id: two, match: {destination: {address: 192.0.2.0/24, port: 2}}, udp: allow}
",
        );
        assert_eq!(
            reach(&policy, "a", &[]),
            [
                "Datagrams 0.0.0.0/0 []",
                "Datagrams 192.0.2.0/24 [1..=2]",
                "Datagrams ::/0 [9..=9]",
            ]
        );
    }

    #[test]
    fn a_policy_that_only_observes_keeps_nobody_from_anybody() {
        let text = "default: {action: deny}\nenforce: false\nrules: [{id: a, match: {destination: {address: 192.0.2.1, port: 9}}, udp: deny}]";
        let policy = Policy::parse(&[("p.yaml".to_owned(), text.to_owned())]).unwrap();
        assert_eq!(reach(&policy, "a", &[]).len(), 4);
        assert!(
            policy
                .reach(&agent("a"), &[])
                .iter()
                .all(|reach| reach.ports == [0..=u16::MAX])
        );
    }

    #[test]
    fn ports_are_taken_out_of_ranges() {
        for (ranges, taken, left) in [
            (vec![1..=10], vec![3..=4], vec![1..=2, 5..=10]),
            (vec![1..=10], vec![0..=u16::MAX], vec![]),
            (
                vec![0..=u16::MAX],
                vec![0..=0, u16::MAX..=u16::MAX],
                vec![1..=u16::MAX - 1],
            ),
            (vec![1..=2, 5..=6], vec![2..=5], vec![1..=1, 6..=6]),
            (vec![1..=2], vec![3..=4], vec![1..=2]),
        ] {
            assert_eq!(without(ranges, &taken), left);
        }
    }
}
