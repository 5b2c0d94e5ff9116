//! Sockets: telling them apart, and cutting what no hook sees.

use super::{Group, Guard, Tried, read};
use crate::kernel;

#[derive(Debug, Clone)]
pub(super) struct Found {
    netns_cookie: Tried,
    births: Tried,
    destroy: Tried,
    taking_hold: Tried,
    /// `net.core.optmem_max`.
    optmem_bytes: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    port_range: Option<[u32; 2]>,
    has_ipv6: bool,
}

/// Bytes that the notes at one socket take, with some room for other people's programs.
const NOTE_BYTES: u64 = 4_096;

/// Ports outside of the range for outgoing connections that the listeners need, and then some.
const PORTS: u32 = 256;

pub(super) fn find(is_root: bool) -> Found {
    let range = read("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut range = range.split_whitespace().map(str::parse);
    Found {
        netns_cookie: Tried::out(true, kernel::try_netns_cookie),
        births: Tried::out(is_root, kernel::try_births),
        destroy: Tried::out(is_root, kernel::try_destroy),
        taking_hold: Tried::out(is_root, kernel::try_taking_hold),
        optmem_bytes: read("/proc/sys/net/core/optmem_max").and_then(|text| text.parse().ok()),
        port_range: match (range.next(), range.next()) {
            (Some(Ok(first)), Some(Ok(last))) => Some([first, last]),
            _ => None,
        },
        has_ipv6: std::net::TcpListener::bind("[::1]:0").is_ok(),
    }
}

pub(super) fn guards(found: &Found) -> Vec<Guard> {
    let mut group = Group::new("sockets");
    group.tried(
        "network namespaces told apart",
        &found.netns_cookie,
        "SO_NETNS_COOKIE (Linux 5.14)",
        "use Linux 5.15 or later; the daemon does not start without",
    );
    group.tried(
        "sockets from before the tag are found",
        &found.births,
        "sock_diag with INET_DIAG_CGROUP_ID (Linux 5.8)",
        "use a kernel with CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG",
    );
    group.tried(
        "sockets from before the tag are taken hold of",
        &found.taking_hold,
        "pidfd_getfd (Linux 5.6)",
        "use Linux 5.6 or later, and let the daemon have CAP_SYS_PTRACE; what can't be cut is told of, or killed (`tags: {uncuttable: kill}`)",
    );
    match &found.destroy {
        Tried::Fails(error) => group.weaker(
            "connections are cut",
            format!(
                "SOCK_DESTROY: {error}; sockets are shut down by their holders' descriptors alone"
            ),
            "use a kernel with CONFIG_INET_DIAG_DESTROY",
        ),
        tried => group.tried("connections are cut", tried, "SOCK_DESTROY (Linux 4.5)", ""),
    }
    match found.optmem_bytes {
        Some(bytes) if bytes < NOTE_BYTES => group.weaker(
            "room for notes at sockets",
            format!("net.core.optmem_max = {bytes}: connects that can't be noted are refused"),
            "sysctl net.core.optmem_max=20480",
        ),
        Some(bytes) => group.in_force(
            "room for notes at sockets",
            format!("net.core.optmem_max = {bytes}"),
        ),
        None => group.in_force(
            "room for notes at sockets",
            "net.core.optmem_max as the kernel has it",
        ),
    }
    match found.port_range {
        Some([first, last])
            if u32::from(u16::MAX).saturating_sub(last) < PORTS && first < 20_000 + PORTS =>
        {
            group.weaker(
                "ports for the listeners",
                format!("net.ipv4.ip_local_port_range = {first} {last}: who is quick may take a dead daemon's port"),
                "sysctl net.ipv4.ip_local_port_range=\"32768 60999\", or give ports outside of it (`listen:`)",
            );
        }
        Some([first, last]) => group.in_force(
            "ports for the listeners",
            format!("net.ipv4.ip_local_port_range = {first} {last} leaves some"),
        ),
        None => group.unseen(
            "ports for the listeners",
            "net.ipv4.ip_local_port_range can't be read",
            "mount /proc",
        ),
    }
    if found.has_ipv6 {
        group.in_force("IPv6", "intercepted: ::1 can be listened on");
    } else {
        group.in_force("IPv6", "absent: connects over it are refused");
    }
    group.guards
}

#[cfg(test)]
mod tests {
    use super::{
        super::{State, states},
        *,
    };

    fn good() -> Found {
        Found {
            netns_cookie: Tried::Works,
            births: Tried::Works,
            destroy: Tried::Works,
            taking_hold: Tried::Works,
            optmem_bytes: Some(20_480),
            port_range: Some([32_768, 60_999]),
            has_ipv6: true,
        }
    }

    #[test]
    fn a_kernel_that_cuts_no_sockets_is_weaker() {
        assert!(
            guards(&good())
                .iter()
                .all(|guard| guard.state == State::InForce)
        );
        let judged = guards(&Found {
            destroy: Tried::Fails("Operation not supported".to_owned()),
            births: Tried::Fails("no sock_diag".to_owned()),
            optmem_bytes: Some(512),
            port_range: Some([1_024, 65_535]),
            has_ipv6: false,
            ..good()
        });
        let bad: Vec<_> = states(&judged)
            .into_iter()
            .filter(|(_, state)| *state != State::InForce)
            .collect();
        assert_eq!(
            bad,
            [
                ("sockets from before the tag are found", State::Missing),
                ("connections are cut", State::Weaker),
                ("room for notes at sockets", State::Weaker),
                ("ports for the listeners", State::Weaker)
            ]
        );
    }

    #[test]
    fn without_root_nothing_is_claimed() {
        let judged = guards(&Found {
            births: Tried::Left,
            destroy: Tried::Left,
            taking_hold: Tried::Left,
            ..good()
        });
        let unseen = judged.iter().filter(|guard| guard.state == State::Unseen);
        assert_eq!(unseen.count(), 3);
    }
}
