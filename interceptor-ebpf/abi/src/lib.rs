//! Map keys and values that the kernel programs and the daemon share.
//!
//! Every type is `repr(C)` without implicit padding, and its size is asserted; names say the byte
//! order of fields that are not in the host's. A change here raises [`ABI_VERSION`], which both sides
//! check before they trust each other's pins.
#![no_std]

/// Version of everything in here; part of the pin folder's name.
pub const ABI_VERSION: u32 = 3;

/// Address families as the kernel numbers them.
pub mod family {
    /// AF_INET.
    pub const INET: u32 = 2;
    /// AF_INET6.
    pub const INET6: u32 = 10;
}

/// What the connect hook writes down at a socket: where it was going and who asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Number of the agent, from the hook's attach point.
    pub agent: u64,
    /// CLOCK_BOOTTIME at connect, in nanoseconds.
    pub connected_ns: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// True destination; IPv4 as ::ffff:a.b.c.d, network byte order.
    pub address_be: [u8; 16],
    /// True port, network byte order.
    pub port_be: u16,
    /// Family of the socket: [`family::INET`] or [`family::INET6`].
    pub family: u16,
    /// Process (thread group) that called connect.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// The agent's own port, host byte order; known from TCP_CONNECT_CB on, zero before.
    pub client_port: u32,
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

/// Where the proxy listens in one network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// CLOCK_BOOTTIME in nanoseconds after which the listener counts as dead.
    pub armed_until_ns: u64,
    /// Port on 127.0.0.1, host byte order; 0 is none.
    pub port_v4: u16,
    /// Port on ::1, host byte order; 0 is none.
    pub port_v6: u16,
    /// IPv6 networks that no route of this host leads to, of [`unrouted`].
    pub unrouted: u32,
}

/// IPv6 networks as [`Listener::unrouted`] has them.
pub mod unrouted {
    /// 2000::/3, the Internet.
    pub const GLOBAL: u32 = 1;
    /// fc00::/7, unique local addresses.
    pub const PRIVATE: u32 = 2;
}

/// Something that the kernel side refused.
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
    /// Process (thread group).
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Address family of the socket.
    pub family: u32,
    /// Type and protocol of the socket: `type << 16 | protocol`.
    pub kind: u32,
}

/// Indices into the STATS map; those that refuse are also reasons of a [`Refused`].
pub mod counter {
    /// TCP connects that were redirected.
    pub const REDIRECTED: u32 = 0;
    /// Connects refused because no living proxy listens in their network namespace.
    pub const REFUSED_UNARMED: u32 = 1;
    /// Connects refused because nothing could be noted at the socket.
    pub const REFUSED_STORAGE: u32 = 2;
    /// Connects to the proxy's own listener, and binds to its port, refused.
    pub const REFUSED_LISTENER: u32 = 3;
    /// UDP that is not DNS.
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
    /// How many counters there are.
    pub const COUNT: u32 = 10;
}

const _: () = assert!(size_of::<Note>() == 56);
const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<Listener>() == 16);
const _: () = assert!(size_of::<Refused>() == 48);
