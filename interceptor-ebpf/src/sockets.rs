//! Which sockets an agent may have, and what it may set on them.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sockopt,
    helpers::generated::bpf_get_netns_cookie,
    macros::{cgroup_sock, cgroup_sockopt},
    programs::{SockContext, SockoptContext},
};
use interceptor_abi::{Listener, Note, Source, counter, state, transport};

use crate::{
    maps::{LISTENERS, SOURCES, agent, note, note_or},
    report,
    verdict::{PASS, REFUSE},
};

pub(crate) const SOCK_STREAM: u32 = 1;
pub(crate) const SOCK_DGRAM: u32 = 2;

/// A note of this agent at a socket of its own that is going nowhere yet; `by` is the process, and its user.
#[inline(always)]
pub(crate) fn born(netns_cookie: u64, family: u16, by: (u32, u32)) -> Note {
    let (pid, uid) = by;
    Note {
        agent: agent(),
        connected_ns: 0,
        netns_cookie,
        address_be: [0; 16],
        port_be: 0,
        family,
        pid,
        uid,
        client_port: 0,
        client_be: [0; 16],
        told_be: [0; 16],
        told_port_be: 0,
        reserved: 0,
        state: state::BORN,
    }
}

#[cgroup_sock(sock_create)]
pub fn agent_sock_create(ctx: SockContext) -> i32 {
    // SAFETY: plain fields of the context that this program was called with, each read once.
    let (family, kind, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.sock).family),
            core::ptr::read_volatile(&raw const (*ctx.sock).type_),
            core::ptr::read_volatile(&raw const (*ctx.sock).protocol),
        )
    };
    match (kind, protocol) {
        (SOCK_STREAM, 0 | transport::TCP) | (SOCK_DGRAM, 0 | transport::UDP) => {}
        _ => {
            report::socket(
                counter::REFUSED_SOCKET,
                report::current(),
                [family, kind, protocol],
            );
            return REFUSE;
        }
    }
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let mut born = born(netns_cookie, family as u16, report::current());
    if note_or(ctx.as_ptr(), &mut born).is_null() {
        report::socket(
            counter::REFUSED_STORAGE,
            report::current(),
            [family, kind, protocol],
        );
        return REFUSE;
    }
    PASS
}

#[cgroup_sock(sock_release)]
pub fn agent_sock_release(ctx: SockContext) -> i32 {
    let note = note(ctx.as_ptr());
    if note.is_null() {
        return PASS;
    }
    // SAFETY: not null, and as large as a Note by the map's definition.
    let note = unsafe { &*note };
    if note.client_port != 0 {
        let source = Source::of_datagrams(note.netns_cookie, note.client_be, note.client_port);
        // TCP's ends with its connection.
        let _ = SOURCES.remove(&source);
    }
    PASS
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
    if port == 0 {
        return PASS;
    }
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied before anything else happens.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return PASS;
    };
    let listener: Listener = *listener;
    let ours = if protocol == transport::TCP {
        [listener.port_v4, listener.port_v6]
    } else {
        [listener.dns_v4, listener.dns_v6]
    };
    if port != u32::from(ours[0]) && port != u32::from(ours[1]) {
        return PASS;
    }
    report::socket(
        counter::REFUSED_LISTENER,
        report::current(),
        [family, kind, protocol],
    );
    REFUSE
}

const SOL_SOCKET: i32 = 1;
const SO_BROADCAST: i32 = 6;
const SOL_IP: i32 = 0;
const SOL_TCP: i32 = 6;
const SOL_IPV6: i32 = 41;

/// Whether a program on options may ask which process calls it (Linux 6.1); set when this is loaded. Where it isn't set
/// the verifier never comes to the question, which it would refuse.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.set")]
static SETTER_IS_TOLD: u32 = 0;

/// Refuses options by which something leaves that no hook decides: memberships (the kernel itself tells
/// the network the group's address, which the agent chooses), headers that say where a packet goes on
/// to, filters that say who of those that share a port gets a connection, and connections put together by hand.
#[cgroup_sockopt(setsockopt)]
pub fn agent_setsockopt(ctx: SockoptContext) -> i32 {
    /// More of an option's value than this isn't shown to programs (a page).
    const SHOWN_MAX: i32 = 4_096;
    let options: *mut bpf_sockopt = ctx.sockopt;
    // SAFETY: plain fields of the context that this program was called with, each read once.
    let (level, option, length) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*options).level),
            core::ptr::read_volatile(&raw const (*options).optname),
            core::ptr::read_volatile(&raw const (*options).optlen),
        )
    };
    let refused = match level {
        // IP_OPTIONS, IP_TRANSPARENT; IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, MCAST_JOIN_GROUP,
        // MCAST_JOIN_SOURCE_GROUP, and the two that set their filters.
        SOL_IP => matches!(option, 4 | 19 | 35 | 39 | 41 | 42 | 46 | 48),
        // IPV6_ADD_MEMBERSHIP, IPV6_JOIN_ANYCAST; MCAST_… as above; IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS,
        // IPV6_RTHDR, IPV6_DSTOPTS, IPV6_2292PKTOPTIONS, IPV6_TRANSPARENT.
        SOL_IPV6 => matches!(option, 6 | 20 | 27 | 42 | 46 | 48 | 54 | 55 | 57 | 59 | 75),
        // SO_ATTACH_REUSEPORT_CBPF and _EBPF: a filter gives a connect of the agent's to somebody else who shares
        // its port, and the kernel's lookup, which says who would get it, doesn't ask the filter.
        SOL_SOCKET => matches!(option, 51 | 52),
        // TCP_REPAIR.
        SOL_TCP => option == 19,
        _ => false,
    };
    if level == SOL_SOCKET && option == SO_BROADCAST {
        // The kernel keeps a copy of a broadcast for this host, which no guard of packets sees. Who asks is
        // told yes (Java asks for every socket), and the kernel isn't told: a broadcast is EACCES then.
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*options).optlen, -1) };
        return PASS;
    }
    if refused {
        // The number of the option, in the place of a protocol's.
        let of = [0, level as u32, option as u32];
        report::socket(counter::REFUSED_OPTION, setter(options), of);
        return REFUSE;
    }
    if length > SHOWN_MAX {
        // Zero: the kernel is to take the value as it was given, not what of it was shown here.
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*options).optlen, 0) };
    }
    PASS
}

/// Process and user that set an option. Before Linux 6.1 the kernel doesn't say: they are those that last used the
/// socket then.
#[inline(always)]
fn setter(options: *mut bpf_sockopt) -> (u32, u32) {
    // SAFETY: a static that the loader writes before the program runs; volatile, so that the compiler doesn't fold
    // the value that stands here.
    if unsafe { core::ptr::read_volatile(&raw const SETTER_IS_TOLD) } != 0 {
        return report::current();
    }
    // SAFETY: a plain field of the context that the program was called with.
    let socket = unsafe { (*options).__bindgen_anon_1.sk };
    if socket.is_null() {
        return (0, 0);
    }
    let note = note(socket.cast());
    if note.is_null() {
        return (0, 0);
    }
    // SAFETY: not null, and as large as a Note by the map's definition.
    unsafe { ((*note).pid, (*note).uid) }
}
