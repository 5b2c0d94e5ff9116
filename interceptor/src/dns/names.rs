//! Which names the addresses came from that agents connect to, and which servers are believed about it.
//!
//! A name that an agent was told an address for is worth as much as who told it: an agent may ask a
//! server of its own, which gives any address any name. So names count for rules only where the server
//! is one that the operator chose: those of the configuration, or else of this host's resolver.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant, SystemTime},
};

use crate::sync::{lock, read, write};
use interceptor_core::decoder::Resolved;

/// Where this host says which servers its programs ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How long that is believed before it is looked at again.
const LOOKED_AT: Duration = Duration::from_secs(2);

/// How much longer than it was told an agent may use an address: programs remember longer, and connections
/// are made some time after.
const GRACE: Duration = Duration::from_secs(300);

/// Longest time that an address is remembered.
const REMEMBERED: Duration = Duration::from_secs(86_400);

/// Addresses that are remembered for one agent; of more, those that end first are forgotten.
const ADDRESSES_MAX: usize = 10_000;

/// Names that one address is known by; of more, those that end first are forgotten.
const NAMES_MAX: usize = 32;

/// Names of addresses, by agent.
#[derive(Debug)]
pub struct Names {
    /// Servers of the configuration are asked in place of those that agents mean.
    is_configured: bool,
    host: RwLock<Host>,
    known: Mutex<HashMap<Arc<str>, Addresses>>,
}

type Addresses = HashMap<IpAddr, Vec<Known>>;

/// A name that an address is known by.
#[derive(Debug)]
struct Known {
    name: Box<str>,
    until: Instant,
}

/// The servers of this host's resolver.
#[derive(Debug, Default)]
struct Host {
    servers: Vec<IpAddr>,
    changed: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Names {
    /// Nothing is known yet; `is_configured` says whether servers of the configuration are asked in place of
    /// those that agents mean.
    #[must_use]
    pub fn new(is_configured: bool) -> Self {
        Self {
            is_configured,
            host: RwLock::default(),
            known: Mutex::default(),
        }
    }

    /// Whether servers of the configuration are asked in place of those that agents mean.
    #[must_use]
    pub const fn is_configured(&self) -> bool {
        self.is_configured
    }

    /// Whether what a server says counts, which an agent asks at `meant`.
    #[must_use]
    pub fn is_trusted(&self, meant: SocketAddr) -> bool {
        self.is_configured() || self.is_host_server(meant.ip().to_canonical())
    }

    /// Remembers that `agent` is told these addresses of a name.
    pub fn learn(&self, agent: &Arc<str>, resolved: &Resolved) {
        let now = Instant::now();
        let mut known = lock(&self.known);
        let addresses = known.entry(agent.clone()).or_default();
        for (address, time_to_live) in &resolved.addresses {
            let until = now + (*time_to_live + GRACE).min(REMEMBERED);
            let names = addresses.entry(address.to_canonical()).or_default();
            names.retain(|known| known.until > now && known.name != resolved.name);
            if names.len() >= NAMES_MAX {
                names.sort_by_key(|known| std::cmp::Reverse(known.until));
                names.truncate(NAMES_MAX - 1);
            }
            names.push(Known {
                name: resolved.name.clone(),
                until,
            });
        }
        if addresses.len() > ADDRESSES_MAX {
            forget(addresses, now);
        }
    }

    /// The names that `agent` was told `address` for, the last one first.
    #[must_use]
    pub fn known(&self, agent: &str, address: IpAddr) -> Vec<Box<str>> {
        let now = Instant::now();
        let known = lock(&self.known);
        let names = known
            .get(agent)
            .and_then(|addresses| addresses.get(&address.to_canonical()));
        names
            .into_iter()
            .flatten()
            .rev()
            .filter(|known| known.until > now)
            .map(|known| known.name.clone())
            .collect()
    }

    /// The addresses that `agent` was told, with their names.
    #[must_use]
    pub fn all(&self, agent: &str) -> Vec<(IpAddr, Vec<Box<str>>)> {
        let now = Instant::now();
        let known = lock(&self.known);
        let live = |names: &Vec<Known>| -> Vec<Box<str>> {
            let names = names.iter().filter(|known| known.until > now);
            names.map(|known| known.name.clone()).collect()
        };
        let addresses = known.get(agent).into_iter().flatten();
        addresses
            .map(|(address, names)| (*address, live(names)))
            .filter(|(_, names)| !names.is_empty())
            .collect()
    }

    /// Forgets what has ended, and all of agents that `is_alive` doesn't know.
    pub fn sweep(&self, is_alive: impl Fn(&str) -> bool) {
        let now = Instant::now();
        let mut known = lock(&self.known);
        known.retain(|agent, addresses| {
            addresses.retain(|_, names| {
                names.retain(|known| known.until > now);
                !names.is_empty()
            });
            is_alive(agent)
        });
    }

    fn is_host_server(&self, address: IpAddr) -> bool {
        {
            let host = read(&self.host);
            if host
                .looked
                .is_some_and(|looked| looked.elapsed() < LOOKED_AT)
            {
                return host.servers.contains(&address);
            }
        }
        let mut host = write(&self.host);
        let changed = fs::metadata(RESOLV_CONF)
            .and_then(|file| file.modified())
            .ok();
        if changed.is_none() || changed != host.changed {
            let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            host.servers = servers(&text);
            host.changed = changed;
        }
        host.looked = Some(Instant::now());
        host.servers.contains(&address)
    }
}

/// Makes room: what has ended goes, then what ends first.
fn forget(addresses: &mut Addresses, now: Instant) {
    let end = |names: &Vec<Known>| names.iter().map(|known| known.until).max();
    addresses.retain(|_, names| end(names).is_some_and(|end| end > now));
    if addresses.len() > ADDRESSES_MAX {
        let mut ends: Vec<_> = addresses.values().filter_map(end).collect();
        ends.sort_unstable();
        let first = ends.get(ADDRESSES_MAX / 10).copied();
        addresses.retain(|_, names| end(names) > first);
    }
}

/// The servers that resolv.conf(5) names; without any, programs ask this host.
fn servers(text: &str) -> Vec<IpAddr> {
    let named: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = words
                .next()
                .filter(|word| *word == "nameserver")
                .and(words.next())?;
            // A link-local one names its device.
            let address = address.split('%').next().unwrap_or(address);
            Some(address.parse::<IpAddr>().ok()?.to_canonical())
        })
        .collect();
    if named.is_empty() {
        vec![[127, 0, 0, 1].into()]
    } else {
        named
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc, time::Duration};

    use interceptor_core::decoder::Resolved;

    use super::{ADDRESSES_MAX, NAMES_MAX, Names, servers};

    fn resolved(name: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Resolved {
        Resolved {
            name: name.into(),
            aliases: Vec::new(),
            addresses: addresses
                .into_iter()
                .map(|address| (address, Duration::from_secs(60)))
                .collect(),
        }
    }

    #[test]
    fn each_agent_knows_addresses_by_the_names_that_it_was_told() {
        let names = Names::new(false);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        names.learn(&a, &resolved("one.test", [address]));
        names.learn(&a, &resolved("two.test", [address]));
        names.learn(&a, &resolved("one.test", [address]));
        names.learn(&b, &resolved("three.test", [address]));
        assert_eq!(
            names.known("a", address),
            ["one.test".into(), "two.test".into()]
        );
        assert_eq!(
            names.known("b", "::ffff:192.0.2.7".parse().unwrap()),
            ["three.test".into()]
        );
        assert!(names.known("c", address).is_empty());
        names.sweep(|agent| agent == "a");
        assert!(names.known("b", address).is_empty());
        assert_eq!(names.known("a", address).len(), 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let names = Names::new(false);
        let agent: Arc<str> = "a".into();
        for number in 0..2 * NAMES_MAX {
            names.learn(
                &agent,
                &resolved(&format!("{number}.test"), [[192, 0, 2, 1].into()]),
            );
        }
        assert_eq!(names.known("a", [192, 0, 2, 1].into()).len(), NAMES_MAX);
        for number in 0..2 * ADDRESSES_MAX as u32 {
            names.learn(
                &agent,
                &resolved("many.test", [IpAddr::from(number.to_be_bytes())]),
            );
        }
        let known = names.known.lock().unwrap();
        assert!(known["a"].len() <= ADDRESSES_MAX);
        assert!(known["a"].len() > ADDRESSES_MAX / 2);
    }

    #[test]
    fn the_hosts_servers_are_read_as_its_programs_do() {
        let text = "# nameserver 192.0.2.9\nsearch x.test\nnameserver 192.0.2.1 # first\n  nameserver  fe80::1%eth0\nnameserver ::ffff:192.0.2.3\nnameservers 192.0.2.4\n";
        let expected: [IpAddr; 3] =
            ["192.0.2.1", "fe80::1", "192.0.2.3"].map(|address| address.parse().unwrap());
        assert_eq!(servers(text), expected);
        assert_eq!(servers(""), [IpAddr::from([127, 0, 0, 1])]);
    }
}
