//! Whom agents may exchange with directly: what rules allow that isn't redirected.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use aya::maps::{LpmTrie, MapData, lpm_trie::Key};
use interceptor_abi as abi;
use interceptor_core::policy::Meeting;

use super::{KernelError, Plain, mapped};

/// Peers of an agent within one network. The longest prefix that an address matches is what counts for
/// it, so an entry says all that is allowed there, wider ones included; without ports it allows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Number of the agent.
    pub agent: u64,
    /// How they may meet.
    pub meeting: Meeting,
    /// The network's address, and the length of its prefix in bits.
    pub network: (IpAddr, u8),
    /// Which ports, at most [`Peer::RANGES_MAX`] ranges.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl Peer {
    /// Ranges of ports that an entry has room for.
    pub const RANGES_MAX: usize = abi::Ports::RANGES_MAX;
}

/// A key of the trie, comparable.
type Entry = (u32, [u32; 2], u32, [u8; 16]);

/// The trie in the kernel, and what is in it.
pub(super) struct Peers {
    trie: LpmTrie<MapData, Plain<abi::Peer>, Plain<abi::Ports>>,
    /// What is written there; `None` is what an earlier daemon wrote.
    written: BTreeMap<Entry, Option<[u16; 2 * Peer::RANGES_MAX]>>,
}

impl Peers {
    /// The first [`Peers::set`] replaces what an earlier daemon wrote.
    pub(super) fn new(trie: LpmTrie<MapData, Plain<abi::Peer>, Plain<abi::Ports>>) -> Self {
        let keys = trie.keys().filter_map(Result::ok);
        let written = keys.map(|key| (entry(&key), None)).collect();
        Self { trie, written }
    }

    /// Makes `peers` all that there is. What is less than before is taken away first.
    pub(super) fn set(&mut self, peers: &[Peer]) -> Result<(), KernelError> {
        let wanted: BTreeSet<Entry> = peers.iter().map(|peer| entry(&key(peer))).collect();
        self.written.retain(|known, _| {
            let stays = wanted.contains(known);
            if !stays {
                let _ = self.trie.remove(&of_entry(known));
            }
            stays
        });
        for peer in peers {
            let key = key(peer);
            let entry = entry(&key);
            let ports = ports(peer);
            if self.written.get(&entry) == Some(&Some(flat(&ports))) {
                continue;
            }
            self.trie
                .insert(&key, Plain(ports), 0)
                .map_err(|error| KernelError::Bpf {
                    what: "an entry of those that agents may meet directly".to_owned(),
                    error: error.to_string(),
                })?;
            self.written.insert(entry, Some(flat(&ports)));
        }
        Ok(())
    }
}

fn key(peer: &Peer) -> Key<Plain<abi::Peer>> {
    let (address, bits) = peer.network;
    let bits = u32::from(bits) + if address.is_ipv4() { 96 } else { 0 };
    let reach = match peer.meeting {
        Meeting::Datagrams => abi::reach::DATAGRAMS,
        Meeting::Inbound => abi::reach::INBOUND,
    };
    // Bits behind the prefix are zero, so that one network has one key.
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let address = u128::from_be_bytes(mapped(address)) & mask;
    let data = abi::Peer::new(peer.agent, reach, address.to_be_bytes());
    Key::new(abi::Peer::FIXED_BITS + bits, Plain(data))
}

fn ports(peer: &Peer) -> abi::Ports {
    let mut ports = abi::Ports {
        count: 0,
        ranges: [[0; 2]; Peer::RANGES_MAX],
    };
    for (place, range) in ports.ranges.iter_mut().zip(&peer.ports) {
        *place = [*range.start(), *range.end()];
        ports.count += 1;
    }
    ports
}

fn flat(ports: &abi::Ports) -> [u16; 2 * Peer::RANGES_MAX] {
    let mut flat = [0; 2 * Peer::RANGES_MAX];
    let given = ports.ranges.iter().take(ports.count as usize).flatten();
    for (place, port) in flat.iter_mut().zip(given) {
        *place = *port;
    }
    flat
}

fn entry(key: &Key<Plain<abi::Peer>>) -> Entry {
    let Plain(peer) = key.data();
    (key.prefix_len(), peer.agent, peer.reach, peer.address_be)
}

fn of_entry((bits, agent, reach, address_be): &Entry) -> Key<Plain<abi::Peer>> {
    let peer = abi::Peer {
        agent: *agent,
        reach: *reach,
        address_be: *address_be,
    };
    Key::new(*bits, Plain(peer))
}
