//! Datagrams: DNS goes to the forwarder, by an address that says whose it is and for which server.
//!
//! A datagram carries nothing but addresses, and a socket may send to several servers at once (musl's
//! resolver does), so the address that it is sent to has to tell all: each (agent, server, port) has a
//! token, an address of this host that the forwarder answers on. What isn't DNS keeps its destination:
//! a connect alone sends nothing (programs learn their own address by it), and packets are judged where
//! they leave.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns, generated::bpf_get_netns_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use interceptor_abi::{
    Listener, Server, TOKEN_NUMBERS, TOKENS_PER_AGENT_MAX, TOKENS_V4, Token, counter, reach, state,
};

use crate::{
    address::{Destination, MAPPED, set_ip6, words},
    maps::{BPF_NOEXIST, LISTENERS, NOTES, SERVER_COUNTS, SERVERS, TOKENS, agent, count, may_meet},
    report::{self, refuse},
    streams::take_note,
    verdict::PASS,
};

const DNS_PORT_BE: u16 = 53u16.to_be();

/// Numbers that are tried for a new token: with all tokens given out one in 64 is taken.
const TRIES: u32 = 4;

#[inline(always)]
pub(crate) fn connect(
    ctx: &SockAddrContext,
    address: &mut bpf_sock_addr,
    destination: &Destination,
    v6: bool,
) -> i32 {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let is_dns = destination.port_be == DNS_PORT_BE;
    let state = if is_dns {
        state::REDIRECTED
    } else {
        state::DIRECT
    };
    if !take_note(ctx, address, destination, now, state, v6) {
        return refuse(counter::REFUSED_STORAGE, address, destination);
    }
    if is_dns {
        return redirect(ctx, address, destination, v6, now);
    }
    if stays_behind(destination) {
        return refuse(counter::REFUSED_UDP, address, destination);
    }
    PASS
}

/// Whether the kernel keeps a copy of what is sent there for this host, which no guard of packets sees:
/// broadcasts and groups, but for those that a rule lets it send to.
#[inline(always)]
fn stays_behind(destination: &Destination) -> bool {
    let many = if destination.mapped {
        let first = destination.words[3].to_ne_bytes()[0];
        first >> 4 == 0b1110 || destination.words[3] == u32::MAX
    } else {
        destination.words[0].to_ne_bytes()[0] == 0xFF
    };
    let port = u16::from_be(destination.port_be);
    many && !may_meet(reach::DATAGRAMS, destination.address_be(), port)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn agent_sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, false)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn agent_sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, true)
}

#[inline(always)]
fn send(ctx: &SockAddrContext, v6: bool) -> i32 {
    // SAFETY: the context is the one that this program was called with.
    let address = unsafe { &mut *ctx.sock_addr };
    let destination = Destination::read(address, v6);
    // SAFETY: the kernel checks the socket pointer.
    let note = unsafe { NOTES.get_ptr_mut(ctx) };
    if note.is_null() {
        return refuse(counter::REFUSED_STORAGE, address, &destination);
    }
    let (pid, uid) = report::current();
    // SAFETY: not null, and as large as a Note by the map's definition. Where the socket is connected to
    // stays: this datagram goes elsewhere.
    unsafe {
        (*note).pid = pid;
        (*note).uid = uid;
    }
    if destination.port_be == DNS_PORT_BE {
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        return redirect(ctx, address, &destination, v6, now);
    }
    if stays_behind(&destination) {
        return refuse(counter::REFUSED_UDP, address, &destination);
    }
    PASS
}

/// Has a datagram go to the forwarder, at the address of its server's token.
#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    address: &mut bpf_sock_addr,
    destination: &Destination,
    v6: bool,
    now: u64,
) -> i32 {
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied before anything else happens.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return refuse(counter::REFUSED_UNARMED, address, destination);
    };
    let listener: Listener = *listener;
    let to_v6 = v6 && !destination.mapped;
    let port = if to_v6 {
        listener.dns_v6
    } else {
        listener.dns_v4
    };
    if now > listener.armed_until_ns || port == 0 {
        return refuse(counter::REFUSED_UNARMED, address, destination);
    }
    let server = Server {
        agent: agent(),
        address_be: destination.address_be(),
        port_be: destination.port_be,
        reserved: [0; 6],
    };
    let Some(number) = token(&server, now, address, destination) else {
        return refuse(counter::REFUSED_SERVERS, address, destination);
    };
    if to_v6 {
        let [high, low] = network(&listener);
        set_ip6(address, [high, low, 0, number.to_be()]);
    } else {
        let token = (TOKENS_V4 | number).to_be();
        if v6 {
            set_ip6(address, [0, 0, MAPPED, token]);
        } else {
            address.user_ip4 = token;
        }
    }
    address.user_port = u32::from(port.to_be());
    PASS
}

/// The number of a server's token, which is made where it has none yet.
#[inline(always)]
fn token(
    server: &Server,
    now: u64,
    address: &bpf_sock_addr,
    destination: &Destination,
) -> Option<u32> {
    if let Some(token) = TOKENS.get_ptr_mut(server) {
        // SAFETY: the entry of this server; who removes it meanwhile leaves its memory until we are done.
        unsafe {
            (*token).used_ns = now;
            return Some((*token).number);
        }
    }
    let count_of = match SERVER_COUNTS.get_ptr_mut(&server.agent) {
        Some(count) => count,
        None => {
            let _ = SERVER_COUNTS.insert(&server.agent, &0, BPF_NOEXIST);
            SERVER_COUNTS.get_ptr_mut(&server.agent)?
        }
    };
    // SAFETY: the entry of this agent. Two at once may be counted as one; the daemon counts anew.
    unsafe {
        if *count_of >= TOKENS_PER_AGENT_MAX {
            return None;
        }
        *count_of += 1;
    }
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        // SAFETY: a helper without arguments.
        let number = unsafe { bpf_get_prandom_u32() } % TOKEN_NUMBERS;
        // 127.64.0.0 itself is nobody's.
        if number == 0 || SERVERS.insert(&number, server, BPF_NOEXIST).is_err() {
            continue;
        }
        let token = Token {
            used_ns: now,
            number,
            reserved: 0,
        };
        if TOKENS.insert(server, &token, BPF_NOEXIST).is_ok() {
            report::call(counter::SERVERS, address, destination);
            return Some(number);
        }
        // Another CPU was first, or there is no room.
        let _ = SERVERS.remove(&number);
        let token = TOKENS.get_ptr_mut(server)?;
        // SAFETY: as above.
        return Some(unsafe { (*token).number });
    }
    None
}

#[cgroup_sock_addr(recvmsg4)]
pub fn agent_recvmsg4(ctx: SockAddrContext) -> i32 {
    received(&ctx, false)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn agent_recvmsg6(ctx: SockAddrContext) -> i32 {
    received(&ctx, true)
}

/// Says that an answer came from the server that was asked.
#[inline(always)]
fn received(ctx: &SockAddrContext, v6: bool) -> i32 {
    // SAFETY: the context is the one that this program was called with.
    let address = unsafe { &mut *ctx.sock_addr };
    let source = Destination::read(address, v6);
    // SAFETY: the context is the one that this program was called with.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied before anything else happens.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return PASS;
    };
    let listener: Listener = *listener;
    let Some(number) = number_of(&listener, &source.words, source.port_be) else {
        return PASS;
    };
    // SAFETY: the value is copied before anything else happens.
    let Some(server) = (unsafe { SERVERS.get(&number) }) else {
        count(counter::FLOWS_LOST);
        return PASS;
    };
    let server: Server = *server;
    let words = words(&server.address_be);
    if v6 {
        set_ip6(address, words);
    } else {
        address.user_ip4 = words[3];
    }
    address.user_port = u32::from(server.port_be);
    PASS
}

/// The number of the token at an address and port, if they are one's.
#[inline(always)]
pub(crate) fn number_of(listener: &Listener, words: &[u32; 4], port_be: u16) -> Option<u32> {
    if words[0] == 0 && words[1] == 0 && words[2] == MAPPED {
        let address = u32::from_be(words[3]);
        let number = address & (TOKEN_NUMBERS - 1);
        let is_token = address & !(TOKEN_NUMBERS - 1) == TOKENS_V4
            && listener.dns_v4 != 0
            && port_be == listener.dns_v4.to_be();
        return if is_token { Some(number) } else { None };
    }
    let [high, low] = network(listener);
    let is_token = words[0] == high
        && words[1] == low
        && words[2] == 0
        && listener.dns_v6 != 0
        && port_be == listener.dns_v6.to_be();
    if is_token {
        Some(u32::from_be(words[3]))
    } else {
        None
    }
}

#[inline(always)]
fn network(listener: &Listener) -> [u32; 2] {
    // SAFETY: both are eight plain bytes.
    unsafe { core::mem::transmute(listener.tokens_v6_be) }
}
