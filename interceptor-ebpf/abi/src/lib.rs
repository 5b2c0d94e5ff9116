//! Map keys and values that the kernel programs and the daemon share.
//!
//! Every type is `repr(C)` without implicit padding, and its size is asserted; names say the byte
//! order of fields that are not in the host's. A change here raises [`ABI_VERSION`], which both sides
//! check before they trust each other's pins.
#![no_std]

/// Version of everything in here; part of the pin folder's name.
pub const ABI_VERSION: u32 = 5;

/// Address families as the kernel numbers them.
pub mod family {
    /// AF_UNIX.
    pub const UNIX: u32 = 1;
    /// AF_INET.
    pub const INET: u32 = 2;
    /// AF_INET6.
    pub const INET6: u32 = 10;
}

/// Transport protocols as IP numbers them.
pub mod transport {
    /// TCP.
    pub const TCP: u32 = 6;
    /// UDP.
    pub const UDP: u32 = 17;
}

/// What the hooks write down at a socket of an agent: whose it is, who used it, where it was going.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Number of the agent, from the hook's attach point.
    pub agent: u64,
    /// CLOCK_BOOTTIME at the last connect, in nanoseconds.
    pub connected_ns: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// True destination; IPv4 as ::ffff:a.b.c.d, network byte order.
    pub address_be: [u8; 16],
    /// True port, network byte order.
    pub port_be: u16,
    /// Family of the socket: [`family::INET`] or [`family::INET6`].
    pub family: u16,
    /// Process (thread group) that last connected or sent.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// The agent's own port, host byte order: of a TCP connection from TCP_CONNECT_CB on, of datagrams
    /// from the first on, zero before.
    pub client_port: u32,
    /// The agent's own address as its datagrams carry it, as `address_be`.
    pub client_be: [u8; 16],
    /// Where a rule last let datagrams go to, as `address_be`: each is reported once.
    pub told_be: [u8; 16],
    /// The port of that, network byte order.
    pub told_port_be: u16,
    /// Zero.
    pub reserved: u16,
    /// One of [`state`].
    pub state: u32,
}

/// What a [`Note`]'s destination means.
pub mod state {
    /// None yet: the socket was made by an agent.
    pub const BORN: u32 = 0;
    /// The socket is connected to us in its place.
    pub const REDIRECTED: u32 = 1;
    /// The socket is connected to it.
    pub const DIRECT: u32 = 2;
}

/// A connection between the agent's socket and the proxy's, from SYN to accept.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// The agent's own address; IPv4 as ::ffff:a.b.c.d, network byte order.
    pub client_be: [u8; 16],
    /// The agent's own port, host byte order.
    pub client_port: u32,
    /// The listener's port, host byte order.
    pub listener_port: u32,
}

/// Where something comes from that isn't redirected: a TCP connection by both of its ends, so that nobody who
/// dials from the same place to somewhere else is taken for it; datagrams by their sender.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Source address; IPv4 as ::ffff:a.b.c.d, network byte order.
    pub address_be: [u8; 16],
    /// Destination address of a connection, likewise; zero for datagrams.
    pub peer_be: [u8; 16],
    /// Source port, host byte order.
    pub port: u32,
    /// Destination port of a connection, host byte order; zero for datagrams.
    pub peer_port: u32,
    /// One of [`transport`].
    pub transport: u32,
    /// Zero.
    pub reserved: u32,
}

impl Source {
    /// The sender of datagrams at an address and port.
    #[must_use]
    pub const fn of_datagrams(netns_cookie: u64, address_be: [u8; 16], port: u32) -> Self {
        Self {
            netns_cookie,
            address_be,
            peer_be: [0; 16],
            port,
            peer_port: 0,
            transport: transport::UDP,
            reserved: 0,
        }
    }
}

/// Where the daemon listens in one network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// CLOCK_BOOTTIME in nanoseconds after which the listener counts as dead.
    pub armed_until_ns: u64,
    /// First half of the tokens' IPv6 addresses, network byte order.
    pub tokens_v6_be: [u8; 8],
    /// TCP port of the proxy on 127.0.0.1, host byte order; 0 is none.
    pub port_v4: u16,
    /// TCP port of the proxy on ::1, host byte order; 0 is none.
    pub port_v6: u16,
    /// UDP port of the DNS forwarder on [`TOKENS_V4`], host byte order; 0 is none.
    pub dns_v4: u16,
    /// UDP port of the DNS forwarder on `tokens_v6_be`, host byte order; 0 is none.
    pub dns_v6: u16,
    /// IPv6 networks that no route of this host leads to, of [`unrouted`].
    pub unrouted: u32,
    /// Zero.
    pub reserved: u32,
}

/// IPv6 networks as [`Listener::unrouted`] has them.
pub mod unrouted {
    /// 2000::/3, the Internet.
    pub const GLOBAL: u32 = 1;
    /// fc00::/7, unique local addresses.
    pub const PRIVATE: u32 = 2;
}

/// 127.64.0.0, host byte order: a token's IPv4 address is this plus its number. They are loopback
/// addresses, so that nothing sent to one can leave the host.
pub const TOKENS_V4: u32 = 0x7F40_0000;

/// Tokens that can ever be given out: 127.64.0.0/10 has as many addresses.
pub const TOKEN_NUMBERS: u32 = 1 << 22;

/// Tokens that one agent may have: programs ask a handful of servers.
pub const TOKENS_PER_AGENT_MAX: u32 = 256;

/// Tokens of all agents.
pub const TOKENS_MAX: u32 = 65_536;

/// A DNS server that an agent sends its queries to. Each has an address of the forwarder's for itself
/// (its token), so that a datagram says by where it arrives whose it is and for whom.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// Number of the agent.
    pub agent: u64,
    /// Its address; IPv4 as ::ffff:a.b.c.d, network byte order.
    pub address_be: [u8; 16],
    /// Its port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub reserved: [u8; 6],
}

/// What stands for a [`Server`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// CLOCK_BOOTTIME in nanoseconds of its last use.
    pub used_ns: u64,
    /// Its number.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}

/// Peers that an agent may exchange with directly, as the data of a trie's key: the bits of `address_be`
/// that count come last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Number of the agent, in two halves: nothing here is aligned to more than four bytes.
    pub agent: [u32; 2],
    /// One of [`reach`].
    pub reach: u32,
    /// The peer; IPv4 as ::ffff:a.b.c.d, network byte order.
    pub address_be: [u8; 16],
}

impl Peer {
    /// Bits of a key before those of the address.
    pub const FIXED_BITS: u32 = 96;

    /// The peer at `address_be` of agent number `agent`.
    #[must_use]
    pub const fn new(agent: u64, reach: u32, address_be: [u8; 16]) -> Self {
        Self {
            agent: [(agent >> 32) as u32, agent as u32],
            reach,
            address_be,
        }
    }
}

/// How an agent and a [`Peer`] may meet.
pub mod reach {
    /// The agent sends datagrams, which the peer may answer; the ports are the peer's.
    pub const DATAGRAMS: u32 = 1;
    /// The peer connects or sends to the agent; the ports are the agent's.
    pub const INBOUND: u32 = 2;
}

/// Ports that are reachable.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// How many of `ranges` count.
    pub count: u32,
    /// First and last, host byte order.
    pub ranges: [[u16; 2]; Ports::RANGES_MAX],
}

impl Ports {
    /// Ranges that one entry has room for.
    pub const RANGES_MAX: usize = 8;
}

/// Entries of the trie of [`Peer`]s.
pub const PEERS_MAX: u32 = 65_536;

/// Something that the kernel side refused, or let by unseen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Number of the agent.
    pub agent: u64,
    /// Destination; IPv4 as ::ffff:a.b.c.d, network byte order; zero where there is none.
    pub address_be: [u8; 16],
    /// Port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub reserved: u16,
    /// One of [`counter`].
    pub reason: u32,
    /// Process (thread group); 0 where it isn't known.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Address family of the socket.
    pub family: u32,
    /// Type and protocol of the socket: `type << 16 | protocol`.
    pub kind: u32,
}

/// The name of a UNIX socket, as an agent asks for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixName {
    /// Number of the agent.
    pub agent: u64,
    /// Bytes of `bytes` that count; 0 where the kernel doesn't show the name.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
    /// A path without its end, or a zero and an abstract name; then zeros.
    pub bytes: [u8; UnixName::BYTES],
}

impl UnixName {
    /// Room for a name.
    pub const BYTES: usize = 112;
    /// Bytes that a name can have, as the kernel limits them.
    pub const LENGTH_MAX: usize = 108;
    /// An abstract name that all hooks refuse and none reports, whatever else is allowed: by it the daemon tries
    /// whether a socket is one that they see.
    pub const TRIED: [u8; 31] = *b"\0interceptor: is this one seen?";
}

/// A folder of UNIX sockets, as the data of a trie's key: a path that ends with a slash, of which as many bits count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixFolder {
    /// Number of the agent, in two halves: nothing here is aligned to more than four bytes.
    pub agent: [u32; 2],
    /// As in [`UnixName`].
    pub bytes: [u8; UnixName::BYTES],
}

impl UnixFolder {
    /// Bits of a key before those of the path.
    pub const FIXED_BITS: u32 = 64;

    /// What is called `bytes` for agent number `agent`.
    #[must_use]
    pub const fn new(agent: u64, bytes: [u8; UnixName::BYTES]) -> Self {
        Self {
            agent: [(agent >> 32) as u32, agent as u32],
            bytes,
        }
    }
}

/// The helper's number that stands for the kernel's function `bpf_cast_to_kern_ctx` until the daemon has loaded it:
/// what functions are called by is another on each kernel.
pub const CAST_TO_KERNEL_CONTEXT: i32 = 0x1A7E_0001;

/// Names of all agents' UNIX sockets that are allowed.
pub const UNIX_NAMES_MAX: u32 = 65_536;

/// An [`UnixName`] that was asked for, of which the daemon is told.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedUnix {
    /// Whose it is and what came of it.
    pub refused: Refused,
    /// Bytes of `bytes` that count; 0 where the kernel doesn't show the name.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
    /// As in [`UnixName`].
    pub bytes: [u8; UnixName::BYTES],
}

/// What an agent may do with UNIX sockets that are neither its own nor allowed by name.
pub mod unix {
    /// Nothing.
    pub const REFUSE: u32 = 0;
    /// Connect and send to them, each time reported.
    pub const REPORT: u32 = 1;
    /// Connect and send to them.
    pub const ALLOW: u32 = 2;
}

/// Where in this kernel's structures stands what the hooks on UNIX sockets read; byte offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixLayout {
    /// Not 0 where `context_address` and `context_length` are known.
    pub names: u32,
    /// Not 0 where all others are known too.
    pub owners: u32,
    /// Of the address in `struct bpf_sock_addr_kern`.
    pub context_address: u32,
    /// Of its length.
    pub context_length: u32,
    /// Of the socket.
    pub context_socket: u32,
    /// Of the network namespace in `struct sock`.
    pub socket_net: u32,
    /// Of the link to the next socket of the same bucket.
    pub socket_next: u32,
    /// Of the cgroup that it was born in.
    pub socket_cgroup: u32,
    /// Of the name in `struct unix_sock`.
    pub socket_name: u32,
    /// Of the table's buckets in `struct net`.
    pub net_buckets: u32,
    /// Of the length in `struct unix_address`.
    pub name_length: u32,
    /// Of the address there.
    pub name_address: u32,
    /// Of how deep it is in `struct cgroup`.
    pub cgroup_level: u32,
    /// Of those that it is in.
    pub cgroup_ancestors: u32,
    /// Of its folder.
    pub cgroup_folder: u32,
    /// Of the id in `struct kernfs_node`.
    pub folder_id: u32,
}

/// What the proxy's side took of an agent's connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handover {
    /// Connections whose note is at an accepted socket.
    pub taken: u64,
    /// Connections whose note could not be kept there. The proxy refuses them.
    pub lost: u64,
}

/// Entries of the map of [`Handover`]s: one an agent.
pub const HANDOVERS_MAX: u32 = 65_536;

/// Indices into the STATS map, which each agent has for itself; those that are reported are also reasons of a [`Refused`].
pub mod counter {
    /// TCP connects that were redirected.
    pub const REDIRECTED: u32 = 0;
    /// Connects refused because no living proxy listens in their network namespace.
    pub const REFUSED_UNARMED: u32 = 1;
    /// Connects refused because nothing could be noted at the socket.
    pub const REFUSED_STORAGE: u32 = 2;
    /// Connects to the proxy's own listener, and binds to its port, refused.
    pub const REFUSED_LISTENER: u32 = 3;
    /// UDP that is neither DNS nor allowed by a rule.
    pub const REFUSED_UDP: u32 = 4;
    /// Sockets that are neither TCP nor UDP.
    pub const REFUSED_SOCKET: u32 = 5;
    /// Events that did not fit into the ring.
    pub const EVENTS_LOST: u32 = 6;
    /// Connections whose note could not be handed to the proxy.
    pub const FLOWS_LOST: u32 = 7;
    /// Connects refused because they are tied to a network device: a socket that is bound to one can't
    /// reach the proxy, and a link-local address means nothing without its device.
    pub const REFUSED_DEVICE: u32 = 8;
    /// Connects to where nothing can answer, refused in the words of the kernel: ports of ::1 that nothing
    /// listens on, IPv6 networks that no route leads to.
    pub const REFUSED_ABSENT: u32 = 9;
    /// Queries to more DNS servers than an agent may have at once.
    pub const REFUSED_SERVERS: u32 = 10;
    /// Packets that no connect or send had been decided for.
    pub const REFUSED_PACKET: u32 = 11;
    /// Connections and datagrams to an agent from outside of it.
    pub const REFUSED_INBOUND: u32 = 12;
    /// Socket options that lead around the hooks.
    pub const REFUSED_OPTION: u32 = 13;
    /// Connects to a process of the same agent.
    pub const DIRECT: u32 = 14;
    /// Destinations that a rule lets datagrams go to.
    pub const DATAGRAMS: u32 = 15;
    /// Connections and sources that a rule lets in.
    pub const INBOUND: u32 = 16;
    /// DNS servers that agents began to ask.
    pub const SERVERS: u32 = 17;
    /// Redirected connects whose SYN was about to leave. The others the kernel has refused by itself (no
    /// port was free, say): nothing of them went anywhere.
    pub const BEGUN: u32 = 18;
    /// Of [`BEGUN`]: connections that ended before the proxy's side took their note.
    pub const GIVEN_UP: u32 = 19;
    /// Of [`BEGUN`]: connections whose note could not be published. The proxy refuses them.
    pub const UNPUBLISHED: u32 = 20;
    /// UNIX sockets that are neither the agent's own nor allowed.
    pub const REFUSED_UNIX: u32 = 21;
    /// UNIX sockets that are allowed by name.
    pub const UNIX_ALLOWED: u32 = 22;
    /// Abstract UNIX sockets of the same agent.
    pub const UNIX_DIRECT: u32 = 23;
    /// UNIX sockets that would be refused if they were not just reported.
    pub const UNIX_REPORTED: u32 = 24;
    /// How many counters there are.
    pub const COUNT: u32 = 25;
}

const _: () = assert!(size_of::<Note>() == 96);
const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<Source>() == 56);
const _: () = assert!(size_of::<Listener>() == 32);
const _: () = assert!(size_of::<Server>() == 32);
const _: () = assert!(size_of::<Token>() == 16);
const _: () = assert!(size_of::<Peer>() == 28);
const _: () = assert!(size_of::<Ports>() == 36);
const _: () = assert!(size_of::<Handover>() == 16);
const _: () = assert!(size_of::<Refused>() == 48);
const _: () = assert!(size_of::<UnixName>() == 128);
const _: () = assert!(size_of::<UnixFolder>() == 120);
const _: () = assert!(size_of::<AskedUnix>() == 168);
const _: () = assert!(size_of::<UnixLayout>() == 64);
