//! The table of ways out: what a hostile process tries against the hooks, in which of three settings, and what
//! stops it. Nothing is believed of what it says itself: every byte that reaches anybody is searched for its
//! mark.
//!
//! The numbers are those of the catalogue that the design was made with; 0 is what was thought of later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use interceptor_tests::{
    daemon::Daemon,
    host,
    journal::Line,
    keeper::{self, Keeper},
    netns::Outside,
    paths, run, scratch,
};
use serde_json::{Value, json};

use crate::confine::{self, NOBODY};

/// What stops an attempt, in one setting.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// One of these errors (or words) is all that it gets, and nothing arrives anywhere.
    Refused(&'static str),
    /// It meets interceptor, which has it on record with the port that was meant, and nothing arrives.
    Intercepted(&'static str),
    /// A record of this name is there within a second of it. Until then something may arrive.
    Reported(&'static str),
    /// Nothing: `THREATS.md` says so, in this sentence.
    Unseen(&'static str),
    /// It isn't tried in this setting, because there it is the same as that attempt, or for a reason of more
    /// than a word.
    SameAs(&'static str),
}
use Stop::{Intercepted, Refused, Reported, SameAs, Unseen};

type Row = (u8, &'static str, [Stop; 3]);

/// Three settings: root under `run`, an ordinary user under `run`, root in a cgroup that was tagged while it ran.
const SETTINGS: [&str; 3] = ["root", "user", "tagged"];

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // What is plain: met by the proxy and denied by the default.
    (0, "tcp", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (0, "tcp6", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (8, "v4_mapped", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (8, "v4_mapped_datagram", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (39, "loopback_relay", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (39, "loopback_relay6", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (39, "loopback_datagram", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (0, "unspecified_address", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (0, "hosts_own_address", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    // Sockets below TCP and UDP.
    (1, "ping", [Refused("EACCES"), Refused("EACCES"), Refused("EACCES")]),
    (1, "raw_icmp", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (50, "raw_header", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (0, "gre", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (2, "packet_frame", [Refused("EAFNOSUPPORT"), Refused("EAFNOSUPPORT"), Reported("socket_unseen")]),
    (3, "xdp", [Refused("EAFNOSUPPORT"), Refused("EAFNOSUPPORT"), Reported("socket_unseen")]),
    (36, "vsock", [Refused("EAFNOSUPPORT"), Refused("EAFNOSUPPORT"), Reported("socket_unseen")]),
    (5, "mptcp", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (6, "sctp", [Refused("EPERM|EPROTONOSUPPORT"), Refused("EPERM|EPROTONOSUPPORT"), Refused("EPERM|EPROTONOSUPPORT")]),
    (6, "sctp_packets", [Refused("EPERM|ESOCKTNOSUPPORT"), Refused("EPERM|ESOCKTNOSUPPORT"), Refused("EPERM|ESOCKTNOSUPPORT")]),
    (6, "udp_lite", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (6, "dccp", [Refused("EPERM|ESOCKTNOSUPPORT"), Refused("EPERM|ESOCKTNOSUPPORT"), Refused("EPERM|ESOCKTNOSUPPORT")]),
    (37, "smc", [Refused("EPERM|EPROTONOSUPPORT"), Refused("EPERM|EPROTONOSUPPORT"), Refused("EPERM|EPROTONOSUPPORT")]),
    (37, "l2tp", [Refused("EPERM|EPROTONOSUPPORT"), Refused("EPERM|EPROTONOSUPPORT"), Refused("EPERM|EPROTONOSUPPORT")]),
    (37, "every_other_family", [Refused("none"), Refused("none"), Refused("none")]),
    // TCP by other means.
    (4, "fast_open", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (4, "fast_open_connect", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (11, "used_again", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (11, "used_again_from_within", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (11, "accepted_used_again", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (11, "listener_used_again", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (0, "two_connects_at_once", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (0, "simultaneous_open", [Intercepted("ECONNRESET|closed"), Intercepted("ECONNRESET|closed"), Intercepted("ECONNRESET|closed")]),
    (0, "dialled_from_its_own_port", [Refused("ETIMEDOUT"), Refused("ETIMEDOUT"), Refused("ETIMEDOUT")]),
    (0, "broadcast", [Refused("EPERM|EACCES"), Refused("EPERM|EACCES"), Refused("EPERM|EACCES")]),
    (0, "self_connect", [Refused("ETIMEDOUT"), Refused("ETIMEDOUT"), Refused("ETIMEDOUT")]),
    (41, "fixed_source_port", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (42, "thousands_at_once", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (43, "no_memory_for_a_note", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (44, "flood_of_refusals", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (47, "marked", [Refused("EPERM"), Refused("EPERM"), Intercepted("closed")]),
    (47, "as_somebody_else", [Intercepted("closed"), Refused("EPERM"), Intercepted("closed")]),
    (48, "another_device", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (48, "another_device_later", [Refused("ETIMEDOUT"), Refused("ETIMEDOUT"), Refused("ETIMEDOUT")]),
    (48, "another_device_datagram", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (48, "device_of_a_datagram", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (48, "dns_out_of_a_device", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (51, "put_together_by_hand", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (51, "upper_layer", [Refused("ENOENT"), Refused("ENOENT"), Refused("ENOENT")]),
    (55, "i386_connect", [Refused("SIGSYS"), Refused("SIGSYS"), Intercepted("closed|ENOSYS")]),
    (7, "ring_connect", [Refused("ENOSYS"), Refused("ENOSYS"), Intercepted("closed")]),
    (7, "ring_with_a_thread", [Refused("ENOSYS"), Refused("ENOSYS"), Intercepted("closed")]),
    (7, "ring_send", [Refused("ENOSYS"), Refused("ENOSYS"), Refused("EPERM")]),
    // Before Linux 6.7 rings set no options.
    (7, "ring_option", [Refused("ENOSYS"), Refused("ENOSYS"), Refused("EPERM|ENOTSUP")]),
    // Datagrams.
    (9, "udp_unconnected", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (9, "udp_connected", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (9, "udp_many", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (9, "udp_segments", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    // The option that lets it go doesn't say that it was dropped.
    (9, "udp_corked", [Refused("sent"), Refused("sent"), Refused("sent")]),
    (10, "udp_connected_for_names_sent_elsewhere", [Refused("EINVAL|EPERM"), Refused("EINVAL|EPERM"), Refused("EINVAL|EPERM")]),
    (12, "quic", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (49, "multicast", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (49, "join", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (49, "metadata_service", [Intercepted("closed"), Intercepted("closed"), Intercepted("closed")]),
    (49, "link_local", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (49, "link_local_datagram", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (50, "udp_fragments", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (50, "udp_with_options", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (50, "udp6_with_headers", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (50, "source_route", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    // Names: every question is answered by the forwarder.
    (13, "dns_tunnel", [Refused("NXDOMAIN"), Refused("NXDOMAIN"), Refused("NXDOMAIN")]),
    (14, "dns_tunnel_tcp", [Refused("NXDOMAIN"), Refused("NXDOMAIN"), Refused("NXDOMAIN")]),
    (15, "dns_of_a_local_resolver", [Refused("NXDOMAIN"), Refused("NXDOMAIN"), Refused("NXDOMAIN")]),
    (13, "not_a_question", [Refused("code 1|code 4"), Refused("code 1|code 4"), Refused("code 1|code 4")]),
    (13, "behind_the_question", [Refused("code 1"), Refused("code 1"), Refused("code 1")]),
    (16, "fronted", [Intercepted("HTTP/1.1 403 Forbidden"), Intercepted("HTTP/1.1 403 Forbidden"), Intercepted("HTTP/1.1 403 Forbidden")]),
    // The daemon's own ports, and those of others.
    (38, "the_proxy_itself", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    // An address that is nobody's: it isn't answered.
    (38, "the_forwarder_itself", [Refused("sent"), Refused("sent"), Refused("sent")]),
    (45, "the_proxys_port", [Refused("EADDRINUSE|EPERM"), Refused("EADDRINUSE|EPERM"), Refused("EADDRINUSE|EPERM")]),
    (45, "the_proxys_port_shared", [Refused("EADDRINUSE|EPERM"), Refused("EADDRINUSE|EPERM"), Refused("EADDRINUSE|EPERM")]),
    (45, "the_forwarders_port_shared", [Refused("EADDRINUSE|EPERM"), Refused("EADDRINUSE|EPERM"), Refused("EADDRINUSE|EPERM")]),
    (0, "shared_port", [Refused("closed"), Refused("EADDRINUSE"), Refused("closed")]),
    (24, "bind_shell", [Refused("ETIMEDOUT"), Refused("ETIMEDOUT"), Refused("ETIMEDOUT")]),
    (46, "daemon_stopped", [Refused("ESRCH"), Refused("ESRCH"), Refused("ETIMEDOUT|EPERM|closed")]),
    (46, "signal_outside", [Refused("ESRCH"), Refused("ESRCH"), SameAs("daemon_stopped")]),
    // What others have: UNIX sockets, connections, files.
    (17, "unix_stream", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), Refused("EPERM")]),
    (20, "unix_datagram", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), Refused("EPERM")]),
    (19, "unix_abstract", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (17, "unix_by_a_link", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), Refused("EPERM")]),
    (20, "unix_connected_datagram", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), Refused("EPERM")]),
    (20, "unix_pair_sent_elsewhere", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), Refused("EPERM")]),
    (7, "unix_ring", [Refused("ENOSYS"), Refused("ENOSYS"), Refused("EPERM")]),
    // Of one that was made in another cgroup see unix.rs.
    (23, "unix_from_before", [SameAs("inherited_descriptor"), SameAs("inherited_descriptor"), Refused("EPERM")]),
    (17, "control_socket", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), SameAs("unix_stream")]),
    (20, "datagram_socket", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), SameAs("unix_stream")]),
    (40, "ssh_agent", [Refused("ECONNREFUSED"), Refused("ECONNREFUSED"), SameAs("unix_stream")]),
    (40, "tmux", [Refused("ENOENT"), Refused("ENOENT"), SameAs("unix_stream")]),
    (19, "abstract_socket", [Refused("EPERM"), Refused("EPERM"), SameAs("unix_abstract")]),
    (18, "cron_job", [Refused("EROFS"), Refused("EROFS|EACCES"), SameAs("courier")]),
    (18, "systemd_unit", [Refused("EROFS"), Refused("EROFS|EACCES"), SameAs("courier")]),
    (56, "courier", [Unseen("Whoever may write a file that somebody outside reads has a courier"), Unseen("Whoever may write a file that somebody outside reads has a courier"), Unseen("Whoever may write a file that somebody outside reads has a courier")]),
    (21, "handed_over", [Reported("foreign_socket_cut"), Reported("foreign_socket_cut"), Reported("foreign_socket_cut")]),
    (22, "inherited_descriptor", [Refused("EBADF"), Refused("EBADF"), SameAs("from_before")]),
    (23, "from_before", [SameAs("inherited_descriptor"), SameAs("inherited_descriptor"), Refused("ECONNRESET|EPIPE")]),
    (23, "from_before_datagram", [SameAs("inherited_descriptor"), SameAs("inherited_descriptor"), Refused("EPIPE")]),
    // Sockets that systemd hands over are sockets from before; before.rs has listeners too.
    (25, "listener_from_before", [SameAs("inherited_descriptor"), SameAs("inherited_descriptor"), SameAs("from_before")]),
    (34, "taken_over", [Refused("ESRCH"), Refused("ESRCH"), Reported("foreign_socket_cut")]),
    (34, "bystander_traced", [Refused("ESRCH"), Refused("ESRCH"), Unseen("Root in a merely tagged cgroup can trace any process of the host and have it do what it likes")]),
    (34, "pidfd_getfd", [Refused("ESRCH"), Refused("ESRCH"), SameAs("taken_over")]),
    (34, "process_vm_readv", [Refused("ESRCH"), Refused("ESRCH"), SameAs("bystander_traced")]),
    (35, "opened_by_name", [Refused("ENOENT"), Refused("ENOENT"), Refused("ENXIO")]),
    (35, "descriptor_outside", [Refused("ESRCH"), Refused("ESRCH"), SameAs("opened_by_name")]),
    (35, "root_outside", [Refused("ESRCH"), Refused("ESRCH"), SameAs("bystander_traced")]),
    // Other networks, other cgroups, the hooks themselves.
    (26, "namespace_of_its_own", [Refused("EPERM"), Refused("EPERM"), Refused("EPERM")]),
    (26, "there_and_back", [Refused("EPERM"), Refused("EPERM"), Intercepted("closed")]),
    (26, "setns_outside", [Refused("ESRCH"), Refused("ESRCH"), SameAs("there_and_back")]),
    (27, "relay_out_of_a_namespace", [SameAs("namespace_of_its_own"), SameAs("namespace_of_its_own"), Intercepted("closed")]),
    // Refused until the new namespace is served, and met from then on: which of them depends on who is quicker.
    (28, "pair_to_the_host", [SameAs("namespace_of_its_own"), SameAs("namespace_of_its_own"), Refused("EPERM|closed")]),
    (28, "pair_to_the_host_datagram", [SameAs("namespace_of_its_own"), SameAs("namespace_of_its_own"), Refused("EPERM")]),
    (28, "netlink_add_route", [Refused("EPERM"), Refused("EPERM"), SameAs("pair_to_the_host")]),
    (54, "unshare_user", [Refused("EPERM"), Refused("EPERM"), SameAs("namespace_of_its_own")]),
    (29, "another_cgroup", [Refused("EROFS"), Refused("EROFS|EACCES"), Reported("agent_left")]),
    (29, "mount_cgroupfs", [Refused("EPERM"), Refused("EPERM"), SameAs("another_cgroup")]),
    (30, "born_elsewhere", [Refused("ENOSYS"), Refused("ENOSYS|EACCES"), Reported("agent_left")]),
    (31, "cgroup_below", [Refused("EROFS|EACCES"), Refused("EROFS|EACCES"), Intercepted("closed")]),
    // Of the first hierarchy as well: all are read-only.
    (32, "write_cgroup_procs", [Refused("EROFS"), Refused("EROFS|EACCES"), SameAs("another_cgroup")]),
    (33, "link_detached", [SameAs("pins"), SameAs("pins"), Reported("hooks_changed")]),
    (33, "bpf", [Refused("EPERM"), Refused("EPERM"), SameAs("link_detached")]),
    (33, "pins", [Refused("EMPTY|ENOENT"), Refused("EMPTY|ENOENT"), SameAs("link_detached")]),
    (52, "mount_tmpfs", [Refused("EPERM"), Refused("EPERM"), SameAs("root's, and not tried for the host's sake; see THREATS.md")]),
    (52, "keys", [Refused("EPERM"), Refused("EPERM"), SameAs("root's, and not tried for the host's sake; see THREATS.md")]),
    (53, "setuid_program", [Refused("EPERM"), Refused("EPERM"), SameAs("it is root already")]),
];

/// Attempts that change what the others of an agent would meet: each in a cgroup of its own.
const ALONE: [&str; 2] = ["daemon_stopped", "link_detached"];

/// What is noticed is noticed within this.
const A_SECOND: Duration = Duration::from_secs(1);

#[test]
fn no_way_out_passes_unseen() {
    let world = World::new();
    let lacks = Lacks::of(&world.world.daemon);
    let mut wrong = Vec::new();
    for (at, setting) in SETTINGS.into_iter().enumerate() {
        let here = |row: &&Row| !matches!(row.2[at], SameAs(_));
        let rows: Vec<&Row> = TABLE.iter().filter(here).collect();
        let is_alone = |row: &Row| setting == "tagged" && ALONE.contains(&row.1);
        let together: Vec<&Row> = rows.iter().copied().filter(|row| !is_alone(row)).collect();
        let mut seen = world.attempt(setting, setting, &together);
        for row in rows.iter().copied().filter(|row| is_alone(row)) {
            seen.extend(world.attempt(setting, row.1, &[row]));
        }
        // What is noticed late is noticed too late.
        std::thread::sleep(A_SECOND);
        let journal = world.world.daemon.journal().unwrap();
        let arrived = world.arrived();
        for row in rows {
            let agent = if is_alone(row) { row.1 } else { setting };
            let lines: Vec<&Line> = journal
                .lines
                .iter()
                .filter(|line| line.agent == agent)
                .collect();
            let result = seen.get(row.1).map_or("nothing", String::as_str);
            let mark = format!("way-{}-{setting}", row.1);
            let by = arrived.get(&mark);
            if std::env::var_os("WAYS_SHOW").is_some() {
                eprintln!("{setting:7} {:3} {:40} {result:14} {by:?}", row.0, row.1);
            }
            let stop = lacks.stop(row, at);
            if let Err(why) = judge(stop, result, by, world.port(row.1), &lines) {
                wrong.push(format!(
                    "{setting}: {} said {result}, arrived by {by:?}: {why}",
                    row.1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Guards that this kernel is too old for, as the doctor says.
struct Lacks {
    /// Hooks on UNIX sockets.
    hooks: bool,
    /// Landlock's scopes.
    scopes: bool,
}

impl Lacks {
    fn of(daemon: &Daemon) -> Self {
        let is_weaker = |guard| host::weaker(daemon, guard).unwrap().is_some();
        Self {
            hooks: is_weaker(host::UNIX_HOOKS),
            scopes: is_weaker(host::ABSTRACT_SCOPE),
        }
    }

    /// What stops an attempt in a setting on this kernel: nothing, where the guard isn't there.
    fn stop(&self, row: &Row, at: usize) -> Stop {
        let (name, stop) = (row.1, row.2[at]);
        let is_tagged = SETTINGS[at] == "tagged";
        if self.hooks && is_tagged && name.starts_with("unix_") {
            return Unseen(
                "Before Linux 6.7 nothing covers UNIX sockets in a cgroup that is tagged",
            );
        }
        if self.scopes && !is_tagged && ["unix_abstract", "abstract_socket"].contains(&name) {
            return Unseen(
                "Before Linux 6.12 nothing covers abstract UNIX sockets in what `run` launches",
            );
        }
        stop
    }
}

/// What gets through where nobody is tagged, on any host that these tests run on: that these arrive shows that
/// what the table says of them is the hooks' doing.
const FREE: &[&str] = &[
    "tcp",
    "tcp6",
    "v4_mapped",
    "v4_mapped_datagram",
    "loopback_relay",
    "loopback_relay6",
    "loopback_datagram",
    "unspecified_address",
    "hosts_own_address",
    "raw_icmp",
    "packet_frame",
    "mptcp",
    "udp_lite",
    "fast_open",
    "fast_open_connect",
    "used_again",
    "used_again_from_within",
    "accepted_used_again",
    "listener_used_again",
    "fixed_source_port",
    "thousands_at_once",
    "no_memory_for_a_note",
    "flood_of_refusals",
    "marked",
    "as_somebody_else",
    "another_device",
    "another_device_later",
    "another_device_datagram",
    "device_of_a_datagram",
    "dns_out_of_a_device",
    "i386_connect",
    "ring_connect",
    "ring_with_a_thread",
    "ring_send",
    "udp_unconnected",
    "udp_connected",
    "udp_connected_for_names_sent_elsewhere",
    "udp_many",
    "udp_segments",
    "udp_corked",
    "quic",
    "udp_fragments",
    "udp_with_options",
    "udp6_with_headers",
    "dns_tunnel",
    "dns_tunnel_tcp",
    "not_a_question",
    "behind_the_question",
    "fronted",
    "bind_shell",
    "handed_over",
    "taken_over",
    "from_before",
    "from_before_datagram",
    "there_and_back",
    "cgroup_below",
    "another_cgroup",
    "relay_out_of_a_namespace",
    "pair_to_the_host",
    "pair_to_the_host_datagram",
    "unix_stream",
    "unix_datagram",
    "unix_abstract",
    "unix_by_a_link",
    "unix_connected_datagram",
    "unix_pair_sent_elsewhere",
    "unix_ring",
    "unix_from_before",
    "shared_port",
];

#[test]
fn without_a_tag_they_pass() {
    let world = World::new();
    let rows: Vec<&Row> = TABLE.iter().filter(|row| FREE.contains(&row.1)).collect();
    assert_eq!(rows.len(), FREE.len());
    let seen = world.attempt("free", "free", &rows);
    std::thread::sleep(A_SECOND);
    let arrived = world.arrived();
    let stopped: Vec<_> = FREE
        .iter()
        .filter(|name| !arrived.contains_key(&format!("way-{name}-free")))
        .collect();
    assert!(stopped.is_empty(), "{stopped:?}: {seen:#?}");
}

/// A row a number of the catalogue at least, and more attempts than it has.
#[test]
fn the_table_is_whole() {
    let numbers: BTreeSet<u8> = TABLE.iter().map(|row| row.0).collect();
    assert_eq!(numbers, (0..=56).collect());
    let names: BTreeSet<&str> = TABLE.iter().map(|row| row.1).collect();
    assert_eq!(names.len(), TABLE.len(), "each attempt once");
    assert!(TABLE.len() < usize::from(ALLOWED), "each has its port");
    for (_, name, stops) in TABLE {
        for (at, stop) in stops.iter().enumerate() {
            if let SameAs(other) = stop {
                // What isn't the name of an attempt is a reason.
                let tried = TABLE
                    .iter()
                    .any(|row| row.1 == *other && !matches!(row.2[at], SameAs(_)));
                assert!(
                    tried || other.contains(' '),
                    "{name}: {other} isn't tried there"
                );
            }
        }
    }
}

/// Whether that is what stopped it, and if not, why.
fn judge(
    stop: Stop,
    result: &str,
    arrived: Option<&BTreeSet<String>>,
    port: u16,
    lines: &[&Line],
) -> Result<(), String> {
    let is_one_of = |results: &str| results.split('|').any(|one| one == result);
    if let (Some(by), Refused(_) | Intercepted(_)) = (arrived, stop) {
        return Err(format!("what it sent was seen by {by:?}"));
    }
    match stop {
        Refused(results) if !is_one_of(results) => Err(format!("not {results}")),
        Intercepted(results) if !is_one_of(results) => Err(format!("not {results}")),
        Intercepted(_) => {
            let destination = format!(":{port}");
            let met = lines
                .iter()
                .any(|line| line.kind != "event" && ends_with(line, &destination));
            met.then_some(())
                .ok_or_else(|| "nothing of it is on record".to_owned())
        }
        Reported(name) => {
            let told = lines.iter().any(|line| {
                line.kind == "event" && line.at("/name").and_then(Value::as_str) == Some(name)
            });
            told.then_some(())
                .ok_or_else(|| format!("no {name} is on record"))
        }
        Unseen(sentence) => {
            let threats = fs::read_to_string(paths::root().join("THREATS.md")).unwrap();
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            if !words(&threats).contains(&words(sentence)) {
                return Err(format!("THREATS.md doesn't say: {sentence}"));
            }
            // Once it is stopped, the table and THREATS.md have to say so.
            (arrived.is_some() || result == "out")
                .then_some(())
                .ok_or_else(|| "it is stopped".to_owned())
        }
        Refused(_) | SameAs(_) => Ok(()),
    }
}

/// Whether a string below the envelope ends so.
fn ends_with(line: &Line, end: &str) -> bool {
    fn any(value: &Value, end: &str) -> bool {
        match value {
            Value::String(text) => text.ends_with(end),
            Value::Number(number) => end == format!(":{number}"),
            Value::Array(values) => values.iter().any(|value| any(value, end)),
            Value::Object(map) => map.values().any(|value| any(value, end)),
            Value::Null | Value::Bool(_) => false,
        }
    }
    line.rest.values().any(|value| any(value, end))
}

/// All who could be reached, and the daemon.
struct World {
    world: confine::World,
    outside: Outside,
    logs: [PathBuf; 2],
    first: u16,
    name: String,
    _bystanders: [Bystander; 2],
}

struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports beyond those of the rows, counted from the first.
const ALLOWED: u16 = 148;
const LAST: u16 = 149;
const SHARED: u16 = 150;
const CALLED: u16 = 151;

impl World {
    fn new() -> Self {
        // Below those that the kernel gives out, and another place for each process and test.
        static WORLDS: AtomicU16 = AtomicU16::new(0);
        let slot =
            std::process::id() % 30 * 2 + u32::from(WORLDS.fetch_add(1, Ordering::Relaxed) % 2);
        let first = 20_000 + u16::try_from(slot).unwrap() * 200;
        let policy = format!(
            "default: {{action: deny}}\nrules:\n  - {{id: allowed, match: {{destination: {{port: {}}}}}, action: allow}}\n",
            first + ALLOWED
        );
        let world = confine::World::under(&policy);
        let outside = Outside::new().unwrap();
        let name = scratch::name("interceptor-it-bystander");
        let logs = ["outside", "beside"].map(|side| world.daemon.folder().join(side));
        let script = paths::client("outside.py");
        let range = [first, first + LAST].map(|port| port.to_string());
        let simultaneous = TABLE
            .iter()
            .position(|row| row.1 == "simultaneous_open")
            .unwrap();
        let source = first + u16::try_from(simultaneous).unwrap();
        let mut far = outside.command("python3");
        far.arg(&script)
            .arg(&logs[0])
            .args(&range)
            .args(["out0", &outside.host_v4()]);
        far.arg(format!("{}:0", first + CALLED))
            .arg(format!("{}:{source}", first + CALLED + 1));
        let far = ready(&mut far);
        let mut near = Command::new("python3");
        near.arg(&script).arg(&logs[1]).args(&range);
        near.env("FOLDER", &world.folder)
            .env("SERVER", outside.address_v4())
            .env("ABSTRACT", &name);
        let near = ready(&mut near);
        Self {
            world,
            outside,
            logs,
            first,
            name,
            _bystanders: [far, near],
        }
    }

    /// The port of an attempt, on which everybody listens.
    fn port(&self, attempt: &str) -> u16 {
        let at = TABLE.iter().position(|row| row.1 == attempt).unwrap();
        self.first + u16::try_from(at).unwrap()
    }

    /// Has a hostile process of `agent` try all of `rows`, and gives what it says.
    fn attempt(&self, setting: &str, agent: &str, rows: &[&Row]) -> BTreeMap<String, String> {
        let user = if setting == "user" { NOBODY } else { 0 };
        let folder = &self.world.folder;
        let daemon = &self.world.daemon;
        let cgroup = Cgroup::new();
        let mut what: Value =
            serde_json::from_slice(&fs::read(folder.join(format!("world-{user}"))).unwrap())
                .unwrap();
        let more = json!({
            "server": self.outside.address_v4(),
            "server6": self.outside.address_v6(),
            "host": self.outside.host_v4(),
            "device": self.outside.device(),
            "allowed": self.first + ALLOWED,
            "shared": self.first + SHARED,
            "called": [self.first + CALLED, self.first + CALLED + 1],
            "proxy": listening(daemon, "-t"),
            "forwarder": listening(daemon, "-u"),
            "pins": Path::new("/sys/fs/bpf").join(daemon.instance()),
            "daemon": daemon.pid().unwrap(),
            "bystander": self.name,
            "own_cgroup": cgroup.path,
            "wait": matches!(setting, "tagged" | "free"),
        });
        for (key, value) in more.as_object().unwrap() {
            what[key] = value.clone();
        }
        let name = scratch::name("ways");
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, what.to_string()).unwrap();
        let start = match setting {
            "root" => daemon.command(["run", "--agent", agent, "--"]),
            "user" => daemon.command(["run", "--agent", agent, "--user", "nobody", "--"]),
            _ => cgroup.enter(),
        };
        // Something is open that nobody meant to pass on.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 7</etc/hostname; exec \"$@\"", "sh"]);
        command.arg(start.get_program()).args(start.get_args());
        command
            .arg("/usr/bin/python3")
            .arg(paths::client("ways_out.py"))
            .arg(&file)
            .arg(&name);
        command.args(
            rows.iter()
                .map(|row| format!("{}:{}:way-{}-{setting}", row.1, self.port(row.1), row.1)),
        );
        command
            .env("SSH_AUTH_SOCK", folder.join("agent"))
            .current_dir("/");
        let mut running = run::start(&mut command).unwrap();
        if matches!(setting, "tagged" | "free") {
            let ready = folder.join(format!("ready-{name}"));
            run::wait_for("the hostile process", run::PATIENCE, || {
                Ok(ready.exists().then_some(()))
            })
            .unwrap();
            if setting == "tagged" {
                daemon
                    .ask(&[
                        "tag",
                        "add",
                        cgroup.path.to_str().unwrap(),
                        "--agent",
                        agent,
                    ])
                    .unwrap();
            }
            fs::write(folder.join(format!("go-{name}")), "").unwrap();
        }
        let start = Instant::now();
        while running.is_running().unwrap() && start.elapsed() < Duration::from_secs(90) {
            std::thread::sleep(Duration::from_millis(200));
            if agent == "link_detached" {
                // It is frozen once that is noticed.
                let _ = daemon.ask(&["agents", "thaw", agent]);
            }
        }
        let outcome = running.outcome().unwrap();
        if setting == "tagged" {
            let _ = daemon.ask(&["tag", "remove", agent]);
        }
        assert!(outcome.status.success(), "{outcome}");
        let line = |line: &str| {
            let (name, result) = line.split_once(' ').unwrap();
            (name.to_owned(), result.to_owned())
        };
        outcome.stdout.lines().map(line).collect()
    }

    /// Whose mark arrived, and by what.
    fn arrived(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut arrived = BTreeMap::<_, BTreeSet<_>>::new();
        for log in &self.logs {
            for line in fs::read_to_string(log).unwrap_or_default().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let [mark, by] = ["mark", "by"].map(|key| line[key].as_str().unwrap().to_owned());
                arrived.entry(mark).or_default().insert(by);
            }
        }
        arrived
    }
}

/// The port that the daemon listens on for agents.
fn listening(daemon: &Daemon, kind: &str) -> u16 {
    let said = run::output(Command::new("ss").args(["-Hlnp", "-4", kind])).unwrap();
    let pid = format!("pid={},", daemon.pid().unwrap());
    let line = said.lines().find(|line| line.contains(&pid)).unwrap();
    let local = line
        .split_whitespace()
        .find(|word| word.contains(':'))
        .unwrap();
    local.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Starts what says that it is ready.
fn ready(command: &mut Command) -> Bystander {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let bystander = Bystander(child);
    assert_eq!(line, "ready\n");
    bystander
}

/// A cgroup that interceptor didn't make.
struct Cgroup {
    path: PathBuf,
    _keeper: Keeper,
}

impl Cgroup {
    fn new() -> Self {
        let path = keeper::cgroup2().unwrap().join(scratch::name("it-ways"));
        let script = "echo 0 >\"$1/cgroup.freeze\"; echo 1 >\"$1/cgroup.kill\"; n=0; \
                      while [ -d \"$1\" ] && [ $n -lt 100 ]; do \
                      rmdir \"$1/inner\" \"$1\"; sleep 0.02; n=$((n+1)); done";
        let keeper = Keeper::of_command(script, [path.as_os_str()]).unwrap();
        fs::create_dir(&path).unwrap();
        Self {
            path,
            _keeper: keeper,
        }
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""])
            .arg(&self.path);
        command
    }
}
