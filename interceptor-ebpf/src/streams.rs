//! TCP: redirected at connect, handed over from the agent's socket to the proxy's.
//!
//! The way of a note: [`connect`] writes the true destination into the socket's own storage; at
//! TCP_CONNECT_CB, before the SYN leaves, [`agent_sockops`] publishes it in FLOWS under the ports that
//! the SYN will carry; [`daemon_sockops`] moves it into the accepted socket's storage before accept
//! can return it. From then on it is bound to that socket, and no reuse of ports can relabel it.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock_addr},
    cty::c_void,
    helpers::{
        bpf_ktime_get_boot_ns,
        generated::{bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get},
    },
    macros::{cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use interceptor_abi::{Flow, Listener, Note, Source, counter, family, state, transport, unrouted};

use crate::{
    address::{Destination, LOOPBACK_V4, LOOPBACK_V6, MAPPED, bytes, set_ip6, words},
    datagrams,
    maps::{
        BPF_NOEXIST, FLOWS, HANDOVERS, LISTENERS, NOTES, SOURCES, add_one, agent, count, note,
        note_or,
    },
    report::{self, refuse},
    sockets::{SOCK_DGRAM, SOCK_STREAM, born},
    verdict::PASS,
};

const TCP_CLOSE: u32 = 7;
const OP_TCP_CONNECT: u32 = 3;
const OP_PASSIVE_ESTABLISHED: u32 = 5;
const OP_STATE: u32 = 10;

/// BPF_F_CURRENT_NETNS: the network namespace of the context.
pub(crate) const CURRENT_NETNS: u64 = u64::MAX;

// === Redirect ===

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
    // SAFETY: the context is the one that this program was called with.
    let address = unsafe { &mut *ctx.sock_addr };
    let destination = Destination::read(address, v6);
    match (address.type_, address.protocol) {
        (SOCK_STREAM, transport::TCP) => {}
        (SOCK_DGRAM, transport::UDP) => {
            return datagrams::connect(ctx, address, &destination, v6);
        }
        _ => return refuse(counter::REFUSED_SOCKET, address, &destination),
    }
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let to_v6 = v6 && !destination.mapped;
    if destination.loopback && listener_of(ctx, to_v6, destination.port_be) == Some(agent()) {
        // It stays within the agent.
        if !take_note(ctx, address, &destination, now, state::DIRECT, v6) {
            return refuse(counter::REFUSED_STORAGE, address, &destination);
        }
        report::call(counter::DIRECT, address, &destination);
        return PASS;
    }
    // SAFETY: the value is read once, before anything could remove it in this program.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return refuse(counter::REFUSED_UNARMED, address, &destination);
    };
    let listener: Listener = *listener;
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
    if !take_note(ctx, address, &destination, now, state::REDIRECTED, v6) {
        return refuse(counter::REFUSED_STORAGE, address, &destination);
    }
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

/// Writes at the socket where it is going. An earlier connect of the same socket may have left its own
/// there.
#[inline(always)]
pub(crate) fn take_note(
    ctx: &SockAddrContext,
    address: &bpf_sock_addr,
    destination: &Destination,
    now: u64,
    state: u32,
    v6: bool,
) -> bool {
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let family = if v6 { family::INET6 } else { family::INET };
    let mut new = born(netns_cookie, family as u16, report::current());
    // SAFETY: a plain field of the context that this program was called with.
    let socket = unsafe { address.__bindgen_anon_1.sk };
    if socket.is_null() {
        return false;
    }
    let stored = note_or(socket.cast(), &mut new);
    if stored.is_null() {
        return false;
    }
    // SAFETY: not null, and as large as a Note by the map's definition.
    let note = unsafe { &mut *stored };
    note.agent = new.agent;
    note.netns_cookie = netns_cookie;
    note.connected_ns = now;
    note.address_be = destination.address_be();
    note.port_be = destination.port_be;
    note.family = new.family;
    note.pid = new.pid;
    note.uid = new.uid;
    note.state = state;
    true
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
        return listener_of(ctx, true, destination.port_be).is_some();
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

/// What the kernel knows an IPv4 connection by, as in `bpf_sock_tuple`.
#[repr(C)]
pub(crate) struct TupleV4 {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) source_port_be: u16,
    pub(crate) destination_port_be: u16,
}

/// What the kernel knows an IPv6 connection by, as in `bpf_sock_tuple`.
#[repr(C)]
pub(crate) struct TupleV6 {
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    pub(crate) source_port_be: u16,
    pub(crate) destination_port_be: u16,
}

/// Whose socket listens on a port of 127.0.0.1 or ::1 in the agent's network namespace: the number of an
/// agent, 0 for anybody else, `None` where nothing does.
#[inline(always)]
fn listener_of(ctx: &SockAddrContext, v6: bool, port_be: u16) -> Option<u64> {
    let found = if v6 {
        let mut tuple = TupleV6 {
            source: LOOPBACK_V6,
            destination: LOOPBACK_V6,
            source_port_be: 0,
            destination_port_be: port_be,
        };
        // SAFETY: the context is the one that this program was called with, and the tuple is as long as is
        // said.
        unsafe {
            bpf_sk_lookup_tcp(
                ctx.as_ptr(),
                (&raw mut tuple).cast(),
                size_of::<TupleV6>() as u32,
                CURRENT_NETNS,
                0,
            )
        }
    } else {
        let mut tuple = TupleV4 {
            source: LOOPBACK_V4,
            destination: LOOPBACK_V4,
            source_port_be: 0,
            destination_port_be: port_be,
        };
        // SAFETY: as above.
        unsafe {
            bpf_sk_lookup_tcp(
                ctx.as_ptr(),
                (&raw mut tuple).cast(),
                size_of::<TupleV4>() as u32,
                CURRENT_NETNS,
                0,
            )
        }
    };
    if found.is_null() {
        return None;
    }
    let noted = note(found.cast());
    let owner = if noted.is_null() {
        0
    } else {
        // SAFETY: not null, and as large as a Note by the map's definition.
        unsafe { (*noted).agent }
    };
    // SAFETY: the socket that was found, which is given back once.
    let _ = unsafe { bpf_sk_release(found.cast()) };
    Some(owner)
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
    if note.state != state::REDIRECTED {
        return PASS;
    }
    // SAFETY: the context is the one that this program was called with.
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
            if note.state == state::REDIRECTED {
                publish(&flow, &note);
            } else if SOURCES.insert(&source(&ctx, &flow), &note, 0).is_err() {
                count(counter::FLOWS_LOST);
            }
            watch_state(&ctx);
        }
        OP_STATE if ctx.arg(1) == TCP_CLOSE => {
            let flow = flow(&ctx, ctx.local_port(), port(ctx.remote_port()), true);
            if FLOWS.remove(&flow).is_ok() {
                count(counter::GIVEN_UP);
            }
            let _ = SOURCES.remove(&source(&ctx, &flow));
        }
        _ => {}
    }
    0
}

/// Puts the note of a connection where the proxy's side finds it. Each that is counted as begun is counted
/// once more: as published in vain, as given up, or as taken by the proxy's side.
#[inline(always)]
fn publish(flow: &Flow, note: &Note) {
    count(counter::BEGUN);
    if FLOWS.insert(flow, note, BPF_NOEXIST).is_ok() {
        return;
    }
    // Either it is full, or there is one of a connection that has ended without our being told.
    if FLOWS.remove(flow).is_ok() {
        count(counter::GIVEN_UP);
    }
    if FLOWS.insert(flow, note, 0).is_err() {
        count(counter::UNPUBLISHED);
        count(counter::FLOWS_LOST);
    }
}

#[sock_ops]
pub fn daemon_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        OP_PASSIVE_ESTABLISHED => receive(&ctx),
        OP_TCP_CONNECT => {
            // What the daemon dials within this host may be an agent's, which lets in what it knows.
            let flow = flow(&ctx, ctx.local_port(), port(ctx.remote_port()), true);
            if is_local(&ctx, &flow) {
                // Which process it is doesn't matter, and before Linux 6.10 a program here mayn't ask.
                let mut note = born(flow.netns_cookie, 0, (0, 0));
                note.agent = 0;
                if SOURCES.insert(&source(&ctx, &flow), &note, 0).is_err() {
                    count(counter::FLOWS_LOST);
                }
                watch_state(&ctx);
            }
        }
        OP_STATE if ctx.arg(1) == TCP_CLOSE => {
            let flow = flow(&ctx, ctx.local_port(), port(ctx.remote_port()), true);
            let _ = SOURCES.remove(&source(&ctx, &flow));
        }
        _ => {}
    }
    0
}

/// Moves the note of a redirected connection into the storage of the accepted socket.
#[inline(always)]
fn receive(ctx: &SockOpsContext) {
    let flow = flow(ctx, port(ctx.remote_port()), ctx.local_port(), false);
    // SAFETY: the entry is copied, and the copy checked, before it is used.
    let Some(note) = (unsafe { FLOWS.get(&flow) }) else {
        return;
    };
    let note: Note = *note;
    // The memory of an entry that its owner removes meanwhile may hold another connection's by now.
    if note.client_port != flow.client_port || note.netns_cookie != flow.netns_cookie {
        count(counter::FLOWS_LOST);
        return;
    }
    // Who removes it has it: a client that ends at this moment has given up, and its connection is refused.
    if FLOWS.remove(&flow).is_err() {
        return;
    }
    let handover = HANDOVERS.get_ptr_mut(&note.agent);
    let stored = storage(ctx, BPF_SK_STORAGE_GET_F_CREATE as u64);
    if stored.is_null() {
        count(counter::REFUSED_STORAGE);
    } else {
        // SAFETY: not null, and as large as a Note by the map's definition.
        unsafe { *stored = note };
    }
    if let Some(handover) = handover {
        // SAFETY: a field of the value that the pointer is to.
        add_one(unsafe {
            if stored.is_null() {
                &raw mut (*handover).lost
            } else {
                &raw mut (*handover).taken
            }
        });
    }
}

/// So that a connection takes its entries with it when it ends; what other programs asked for stays.
#[inline(always)]
fn watch_state(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
}

#[inline(always)]
fn source(ctx: &SockOpsContext, flow: &Flow) -> Source {
    Source {
        netns_cookie: flow.netns_cookie,
        address_be: flow.client_be,
        peer_be: bytes(remote(ctx, flow)),
        port: flow.client_port,
        peer_port: flow.listener_port,
        transport: transport::TCP,
        reserved: 0,
    }
}

#[inline(always)]
fn storage(ctx: &SockOpsContext, flags: u64) -> *mut Note {
    // SAFETY: the context is the one that this program was called with.
    let socket: *mut c_void = unsafe { (*ctx.ops).__bindgen_anon_2.sk }.cast();
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

macro_rules! field {
    ($ctx:expr, $($place:tt)+) => {
        // SAFETY: the context is the one that the program was called with. Read where it stands: a load that
        // the compiler moves behind a branch may end up at a computed offset, which the verifier refuses.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx.ops).$($place)+) }
    };
}

/// The other end of the flow that `ctx`'s socket begins; IPv4 as ::ffff:a.b.c.d.
#[inline(always)]
fn remote(ctx: &SockOpsContext, flow: &Flow) -> [u32; 4] {
    let v4 = field!(ctx, remote_ip4);
    let v6 = [
        field!(ctx, remote_ip6[0]),
        field!(ctx, remote_ip6[1]),
        field!(ctx, remote_ip6[2]),
        field!(ctx, remote_ip6[3]),
    ];
    let own = words(&flow.client_be);
    if own[0] == 0 && own[1] == 0 && own[2] == MAPPED {
        return [0, 0, MAPPED, v4];
    }
    v6
}

/// Whether a connection of the daemon's own stays on this host: to loopback, or to the address that it
/// comes from.
#[inline(always)]
fn is_local(ctx: &SockOpsContext, flow: &Flow) -> bool {
    let remote = remote(ctx, flow);
    let own = words(&flow.client_be);
    if own[0] == 0 && own[1] == 0 && own[2] == MAPPED {
        return remote[3].to_ne_bytes()[0] == 127 || remote[3] == own[3];
    }
    own[0] == remote[0] && own[1] == remote[1] && own[2] == remote[2] && own[3] == remote[3]
}

/// The flow that `ctx`'s socket is one end of; `client` tells whether it is the agent's end.
#[inline(always)]
fn flow(ctx: &SockOpsContext, client_port: u32, listener_port: u32, client: bool) -> Flow {
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // Every field is read here, once.
    let socket_family = field!(ctx, family);
    let (local_v4, remote_v4) = (field!(ctx, local_ip4), field!(ctx, remote_ip4));
    let local = [
        field!(ctx, local_ip6[0]),
        field!(ctx, local_ip6[1]),
        field!(ctx, local_ip6[2]),
        field!(ctx, local_ip6[3]),
    ];
    let remote = [
        field!(ctx, remote_ip6[0]),
        field!(ctx, remote_ip6[1]),
        field!(ctx, remote_ip6[2]),
        field!(ctx, remote_ip6[3]),
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
