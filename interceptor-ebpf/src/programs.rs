//! One function a hook.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock_addr},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        generated::{bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get},
    },
    macros::{cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use interceptor_abi::{Flow, Listener, Note, Refused, counter, family, unrouted};

use crate::maps::{EVENTS, FLOWS, LISTENERS, NOTES, agent, count};

const REFUSE: i32 = 0;
const PASS: i32 = 1;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const DNS_PORT_BE: u16 = 53u16.to_be();

/// 127.0.0.1 in network byte order, as it lies in memory.
const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// ::1 in network byte order.
const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1u32.to_be()];
/// The third word of ::ffff:0:0/96.
const MAPPED: u32 = 0xFFFF_u32.to_be();

const TCP_CLOSE: u32 = 7;
const OP_TCP_CONNECT: u32 = 3;
const OP_PASSIVE_ESTABLISHED: u32 = 5;
const OP_STATE: u32 = 10;

// === TCP: redirect ===

#[cgroup_sock_addr(connect4)]
pub fn agent_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, false)
}

#[cgroup_sock_addr(connect6)]
pub fn agent_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, true)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, v6: bool) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let destination = Destination::read(address, v6);
    match (address.type_, address.protocol) {
        (SOCK_STREAM, IPPROTO_TCP) => {}
        (SOCK_DGRAM, IPPROTO_UDP) => return datagram(address, &destination),
        _ => return refuse(counter::REFUSED_SOCKET, address, &destination),
    }
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is read once, before anything could remove it in this program.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return refuse(counter::REFUSED_UNARMED, address, &destination);
    };
    let listener: Listener = *listener;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let to_v6 = v6 && !destination.mapped;
    let port = if to_v6 {
        listener.port_v6
    } else {
        listener.port_v4
    };
    if now > listener.armed_until_ns || port == 0 {
        return refuse(counter::REFUSED_UNARMED, address, &destination);
    }
    if destination.loopback
        && (destination.port_be == listener.port_v4.to_be()
            || destination.port_be == listener.port_v6.to_be())
    {
        return refuse(counter::REFUSED_LISTENER, address, &destination);
    }
    if destination.link_local || !reaches_loopback(address) {
        return refuse(counter::REFUSED_DEVICE, address, &destination);
    }
    if to_v6 && !may_answer(ctx, &listener, &destination) {
        // The redirected connect would succeed before the daemon finds out, and a client that tries IPv6
        // first would never try IPv4. Nothing can listen on port 0, so the kernel says ECONNREFUSED. IPv4
        // isn't looked at: what is forwarded from its loopback (published ports of containers) has no
        // listener either.
        let _ = refuse(counter::REFUSED_ABSENT, address, &destination);
        set_ip6(address, LOOPBACK_V6);
        address.user_port = 0;
        return PASS;
    }
    let mut note = Note {
        agent: agent(),
        connected_ns: now,
        netns_cookie,
        address_be: destination.address_be(),
        port_be: destination.port_be,
        family: if v6 {
            family::INET6 as u16
        } else {
            family::INET as u16
        },
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        client_port: 0,
    };
    // SAFETY: the kernel checks the socket pointer; the storage is this socket's own.
    let stored = unsafe { NOTES.get_or_insert_ptr_mut(ctx, Some(&mut note)) };
    if stored.is_null() {
        return refuse(counter::REFUSED_STORAGE, address, &destination);
    }
    // SAFETY: not null, and as large as a Note by the map's definition. An earlier connect of the same
    // socket may have left its note there.
    unsafe { *stored = note };
    if to_v6 {
        set_ip6(address, LOOPBACK_V6);
    } else if v6 {
        set_ip6(address, [0, 0, MAPPED, LOOPBACK_V4]);
    } else {
        address.user_ip4 = LOOPBACK_V4;
    }
    address.user_port = u32::from(port.to_be());
    count(counter::REDIRECTED);
    PASS
}

/// A socket that is bound to another device than loopback would send its SYN out of there.
#[inline(always)]
fn reaches_loopback(address: &bpf_sock_addr) -> bool {
    /// Its number in every network namespace.
    const LOOPBACK_DEVICE: u32 = 1;
    // SAFETY: the context's socket pointer is checked, and the field is open to programs.
    let device = unsafe {
        let socket = address.__bindgen_anon_1.sk;
        if socket.is_null() {
            return false;
        }
        core::ptr::read_volatile(&raw const (*socket).bound_dev_if)
    };
    device == 0 || device == LOOPBACK_DEVICE
}

/// Whether anything could answer at an IPv6 destination.
#[inline(always)]
fn may_answer(ctx: &SockAddrContext, listener: &Listener, destination: &Destination) -> bool {
    if destination.loopback {
        return listens(ctx, destination.port_be);
    }
    let first = u32::from_be(destination.words[0]);
    let network = if first >> 29 == 0b001 {
        unrouted::GLOBAL
    } else if first >> 25 == 0xFC >> 1 {
        unrouted::PRIVATE
    } else {
        0
    };
    listener.unrouted & network == 0
}

/// Whether something listens on a port of ::1 in the agent's network namespace.
#[inline(always)]
fn listens(ctx: &SockAddrContext, port_be: u16) -> bool {
    /// BPF_F_CURRENT_NETNS: that of the socket.
    const CURRENT: u64 = u64::MAX;
    /// What the kernel knows an IPv6 connection by, as in `bpf_sock_tuple`.
    #[repr(C)]
    struct Tuple {
        source: [u32; 4],
        destination: [u32; 4],
        source_port_be: u16,
        destination_port_be: u16,
    }
    let mut tuple = Tuple {
        source: LOOPBACK_V6,
        destination: LOOPBACK_V6,
        source_port_be: 0,
        destination_port_be: port_be,
    };
    // SAFETY: the context is the one that this program was called with, the tuple is as long as is said,
    // and the socket that is found is given back.
    unsafe {
        let found = bpf_sk_lookup_tcp(
            ctx.as_ptr(),
            (&raw mut tuple).cast(),
            size_of::<Tuple>() as u32,
            CURRENT,
            0,
        );
        if found.is_null() {
            return false;
        }
        let _ = bpf_sk_release(found.cast());
    }
    true
}

#[cgroup_sock_addr(getpeername4)]
pub fn agent_getpeername4(ctx: SockAddrContext) -> i32 {
    peer(&ctx, false)
}

#[cgroup_sock_addr(getpeername6)]
pub fn agent_getpeername6(ctx: SockAddrContext) -> i32 {
    peer(&ctx, true)
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, v6: bool) -> i32 {
    // SAFETY: the kernel checks the socket pointer.
    let note = unsafe { NOTES.get_ptr_mut(ctx) };
    if note.is_null() {
        return PASS;
    }
    // SAFETY: not null, and as large as a Note by the map's definition.
    let note = unsafe { &*note };
    let address = unsafe { &mut *ctx.sock_addr };
    let words = words(&note.address_be);
    if v6 {
        set_ip6(address, words);
    } else {
        address.user_ip4 = words[3];
    }
    address.user_port = u32::from(note.port_be);
    PASS
}

// === Everything else: DNS or nothing ===

#[cgroup_sock_addr(sendmsg4)]
pub fn agent_sendmsg4(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let destination = Destination::read(address, false);
    datagram(address, &destination)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn agent_sendmsg6(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let destination = Destination::read(address, true);
    datagram(address, &destination)
}

#[inline(always)]
fn datagram(address: &bpf_sock_addr, destination: &Destination) -> i32 {
    if address.protocol == IPPROTO_UDP && destination.port_be == DNS_PORT_BE {
        return PASS;
    }
    refuse(counter::REFUSED_UDP, address, destination)
}

#[cgroup_sock(sock_create)]
pub fn agent_sock_create(ctx: SockContext) -> i32 {
    let socket = unsafe { &*ctx.sock };
    match (socket.type_, socket.protocol) {
        (SOCK_STREAM, 0 | IPPROTO_TCP) | (SOCK_DGRAM, 0 | IPPROTO_UDP) => PASS,
        (kind, protocol) => {
            count(counter::REFUSED_SOCKET);
            report(
                counter::REFUSED_SOCKET,
                socket.family,
                kind,
                protocol,
                &Destination::NONE,
            );
            REFUSE
        }
    }
}

#[cgroup_sock(post_bind4)]
pub fn agent_post_bind4(ctx: SockContext) -> i32 {
    bound(&ctx)
}

#[cgroup_sock(post_bind6)]
pub fn agent_post_bind6(ctx: SockContext) -> i32 {
    bound(&ctx)
}

/// An agent that took the port of a daemon that died would be sent the others' connections until the
/// daemon counts as dead, and keep the next one from starting.
#[inline(always)]
fn bound(ctx: &SockContext) -> i32 {
    // SAFETY: plain fields of the context that this program was called with, each read once.
    let (family, kind, protocol, port) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.sock).family),
            core::ptr::read_volatile(&raw const (*ctx.sock).type_),
            core::ptr::read_volatile(&raw const (*ctx.sock).protocol),
            core::ptr::read_volatile(&raw const (*ctx.sock).src_port),
        )
    };
    if protocol != IPPROTO_TCP || port == 0 {
        return PASS;
    }
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied before anything else happens.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return PASS;
    };
    let listener: Listener = *listener;
    if port != u32::from(listener.port_v4) && port != u32::from(listener.port_v6) {
        return PASS;
    }
    let reason = counter::REFUSED_LISTENER;
    count(reason);
    report(reason, family, kind, protocol, &Destination::NONE);
    REFUSE
}

// === The hand-over from the agent's socket to the proxy's ===

#[sock_ops]
pub fn agent_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        OP_TCP_CONNECT => {
            let stored = storage(&ctx, 0);
            if stored.is_null() {
                // Not redirected by our hook; the proxy refuses what carries no note.
                return 0;
            }
            let flow = flow(&ctx, ctx.local_port(), port(ctx.remote_port()), true);
            // SAFETY: not null, and as large as a Note by the map's definition.
            let mut note: Note = unsafe { *stored };
            note.client_port = flow.client_port;
            if FLOWS.insert(&flow, &note, 0).is_err() {
                count(counter::FLOWS_LOST);
            }
            // So that a connection that is never accepted takes its entry with it; what other programs
            // asked for stays.
            let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
            let _ = ctx.set_cb_flags(flags as i32);
        }
        OP_STATE if ctx.arg(1) == TCP_CLOSE => {
            let flow = flow(&ctx, ctx.local_port(), port(ctx.remote_port()), true);
            let _ = FLOWS.remove(&flow);
        }
        _ => {}
    }
    0
}

#[sock_ops]
pub fn daemon_sockops(ctx: SockOpsContext) -> u32 {
    if ctx.op() != OP_PASSIVE_ESTABLISHED {
        return 0;
    }
    let flow = flow(&ctx, port(ctx.remote_port()), ctx.local_port(), false);
    // SAFETY: the entry is copied, and the copy checked, before it is used.
    let Some(note) = (unsafe { FLOWS.get(&flow) }) else {
        return 0;
    };
    let note: Note = *note;
    // The memory of an entry that its owner removes meanwhile may hold another connection's by now.
    if note.client_port != flow.client_port || note.netns_cookie != flow.netns_cookie {
        count(counter::FLOWS_LOST);
        return 0;
    }
    let stored = storage(&ctx, BPF_SK_STORAGE_GET_F_CREATE as u64);
    if stored.is_null() {
        count(counter::REFUSED_STORAGE);
    } else {
        // SAFETY: not null, and as large as a Note by the map's definition.
        unsafe { *stored = note };
    }
    let _ = FLOWS.remove(&flow);
    0
}

#[inline(always)]
fn storage(ctx: &SockOpsContext, flags: u64) -> *mut Note {
    // SAFETY: the context is the one that this program was called with.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return core::ptr::null_mut();
    }
    // SAFETY: the kernel checks the socket pointer, which isn't null.
    unsafe {
        bpf_sk_storage_get(
            (&raw const NOTES).cast_mut().cast(),
            socket.cast(),
            core::ptr::null_mut(),
            flags,
        )
    }
    .cast()
}

/// `remote_port` is in network byte order, in the upper half of the word on little-endian hosts.
#[inline(always)]
fn port(remote_port: u32) -> u32 {
    u32::from_be(remote_port)
}

/// The flow that `ctx`'s socket is one end of; `client` tells whether it is the agent's end.
#[inline(always)]
fn flow(ctx: &SockOpsContext, client_port: u32, listener_port: u32, client: bool) -> Flow {
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // Every field is read here, once: a load that the compiler moves behind a branch may end up at a
    // computed offset, which the verifier refuses for a context.
    let ops = ctx.ops;
    macro_rules! field {
        ($($place:tt)+) => {
            // SAFETY: the context is the one that this program was called with.
            unsafe { core::ptr::read_volatile(&raw const (*ops).$($place)+) }
        };
    }
    let socket_family = field!(family);
    let (local_v4, remote_v4) = (field!(local_ip4), field!(remote_ip4));
    let local = [
        field!(local_ip6[0]),
        field!(local_ip6[1]),
        field!(local_ip6[2]),
        field!(local_ip6[3]),
    ];
    let remote = [
        field!(remote_ip6[0]),
        field!(remote_ip6[1]),
        field!(remote_ip6[2]),
        field!(remote_ip6[3]),
    ];
    // A v4-mapped connect is an IPv6 socket here, while the proxy accepts it as IPv4.
    let v4 =
        socket_family == family::INET || (remote[0] == 0 && remote[1] == 0 && remote[2] == MAPPED);
    let own = match (v4, client) {
        (true, true) => [0, 0, MAPPED, local_v4],
        (true, false) => [0, 0, MAPPED, remote_v4],
        (false, true) => local,
        (false, false) => remote,
    };
    Flow {
        netns_cookie,
        client_be: bytes(own),
        client_port,
        listener_port,
    }
}

// === Helpers ===

struct Destination {
    words: [u32; 4],
    port_be: u16,
    mapped: bool,
    loopback: bool,
    /// fe80::/10.
    link_local: bool,
}

impl Destination {
    const NONE: Self = Self {
        words: [0; 4],
        port_be: 0,
        mapped: false,
        loopback: false,
        link_local: false,
    };

    #[inline(always)]
    fn read(address: &bpf_sock_addr, v6: bool) -> Self {
        let words = if v6 {
            [
                address.user_ip6[0],
                address.user_ip6[1],
                address.user_ip6[2],
                address.user_ip6[3],
            ]
        } else {
            [0, 0, MAPPED, address.user_ip4]
        };
        let mapped = words[0] == 0 && words[1] == 0 && words[2] == MAPPED;
        let zero_v6 = v6 && words[0] == 0 && words[1] == 0 && words[2] == 0;
        let loopback = if mapped {
            let first = words[3].to_ne_bytes()[0];
            first == 127 || words[3] == 0
        } else {
            zero_v6 && (words[3] == LOOPBACK_V6[3] || words[3] == 0)
        };
        Self {
            words,
            port_be: address.user_port as u16,
            mapped,
            loopback,
            link_local: u32::from_be(words[0]) >> 22 == 0xFE80 >> 6,
        }
    }

    #[inline(always)]
    fn address_be(&self) -> [u8; 16] {
        bytes(self.words)
    }
}

/// Writes an IPv6 address word by word: a block copy would take the context's address, which the
/// verifier refuses.
#[inline(always)]
fn set_ip6(address: &mut bpf_sock_addr, words: [u32; 4]) {
    // SAFETY: plain fields of the context that this program was called with.
    unsafe {
        core::ptr::write_volatile(&raw mut address.user_ip6[0], words[0]);
        core::ptr::write_volatile(&raw mut address.user_ip6[1], words[1]);
        core::ptr::write_volatile(&raw mut address.user_ip6[2], words[2]);
        core::ptr::write_volatile(&raw mut address.user_ip6[3], words[3]);
    }
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    // SAFETY: both are 16 plain bytes; the note they come from is aligned to 8.
    unsafe { core::mem::transmute(*bytes) }
}

#[inline(always)]
fn refuse(reason: u32, address: &bpf_sock_addr, destination: &Destination) -> i32 {
    count(reason);
    report(
        reason,
        address.family,
        address.type_,
        address.protocol,
        destination,
    );
    REFUSE
}

#[inline(always)]
fn report(reason: u32, family: u32, kind: u32, protocol: u32, destination: &Destination) {
    let Some(mut entry) = EVENTS.reserve::<Refused>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    entry.write(Refused {
        agent: agent(),
        address_be: destination.address_be(),
        port_be: destination.port_be,
        reserved: 0,
        reason,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        family,
        kind: kind << 16 | protocol & 0xFFFF,
    });
    entry.submit(0);
}
