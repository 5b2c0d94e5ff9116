//! The last guard: packets that leave an agent's sockets, and those that reach them.
//!
//! A stream is let by at its SYN, where it is redirected, stays within the agent, or came in by a rule.
//! Datagrams are looked at one by one. Whatever can't be read is dropped.

use aya_ebpf::{
    bindings::__sk_buff,
    cty::c_void,
    helpers::generated::{bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use interceptor_abi::{Listener, Note, Source, counter, reach, state, transport};

use crate::{
    address::{LOOPBACK_V4, LOOPBACK_V6, MAPPED, bytes},
    datagrams::number_of,
    maps::{LISTENERS, SOURCES, agent, may_meet, note},
    report,
    streams::{CURRENT_NETNS, TupleV4, TupleV6},
    verdict::{PASS, REFUSE},
};

/// The loopback device's number in every network namespace.
const LOOPBACK_DEVICE: u32 = 1;

const ETH_P_IP: u32 = (0x0800_u16.to_be()) as u32;
const ETH_P_IPV6: u32 = (0x86DD_u16.to_be()) as u32;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What is read of a packet: addresses as in IPv6, network byte order.
struct Packet {
    source: [u32; 4],
    destination: [u32; 4],
    transport: u32,
    /// Where the transport's header stands.
    offset: usize,
}

#[cgroup_skb(egress)]
pub fn agent_egress(ctx: SkBuffContext) -> i32 {
    let Some(packet) = read(&ctx) else {
        report::packet(counter::REFUSED_PACKET, None, [0; 16], 0, 0);
        return REFUSE;
    };
    if packet.transport == transport::TCP {
        return stream_leaves(&ctx, &packet);
    }
    datagram_leaves(&ctx, &packet)
}

#[cgroup_skb(ingress)]
pub fn agent_ingress(ctx: SkBuffContext) -> i32 {
    let Some(packet) = read(&ctx) else {
        report::packet(counter::REFUSED_INBOUND, None, [0; 16], 0, 0);
        return REFUSE;
    };
    if packet.transport == transport::TCP {
        return stream_arrives(&ctx, &packet);
    }
    datagram_arrives(&ctx, &packet)
}

// === Out ===

#[inline(always)]
fn stream_leaves(ctx: &SkBuffContext, packet: &Packet) -> i32 {
    let Ok(flags) = ctx.load::<u8>(packet.offset + 13) else {
        return REFUSE;
    };
    let begins = flags & (SYN | ACK) == SYN;
    if !begins && is_on_loopback(ctx) {
        return PASS;
    }
    let Ok([source_port_be, port_be]) = ctx.load::<[u16; 2]>(packet.offset) else {
        return REFUSE;
    };
    if !begins {
        // An answer to who came in by a rule.
        let own = u16::from_be(source_port_be);
        if may_meet(reach::INBOUND, bytes(packet.destination), own) {
            return PASS;
        }
        report::packet(
            counter::REFUSED_PACKET,
            None,
            bytes(packet.destination),
            port_be,
            transport::TCP,
        );
        return REFUSE;
    }
    if port_be == 0 && is_on_loopback(ctx) {
        // Nothing can listen there: it is what is to be refused in the words of the kernel.
        return PASS;
    }
    let noted = noted(ctx);
    if !noted.is_null() && is_on_loopback(ctx) {
        // SAFETY: not null, and as large as a Note by the map's definition.
        let note = unsafe { &*noted };
        if note.state == state::REDIRECTED {
            if is_proxy(note.netns_cookie, &packet.destination, port_be) {
                return PASS;
            }
        } else if owner(ctx, packet, [source_port_be, port_be]) == Some(agent()) {
            return PASS;
        }
    }
    report::packet(
        counter::REFUSED_PACKET,
        None,
        bytes(packet.destination),
        port_be,
        transport::TCP,
    );
    REFUSE
}

#[inline(always)]
fn datagram_leaves(ctx: &SkBuffContext, packet: &Packet) -> i32 {
    let Ok([source_port_be, port_be]) = ctx.load::<[u16; 2]>(packet.offset) else {
        return REFUSE;
    };
    let peer = bytes(packet.destination);
    let noted = noted(ctx);
    if noted.is_null() {
        report::packet(counter::REFUSED_UDP, None, peer, port_be, transport::UDP);
        return REFUSE;
    }
    // SAFETY: not null, and as large as a Note by the map's definition.
    let note = unsafe { &mut *noted };
    let local = is_on_loopback(ctx);
    if local
        && (is_forwarder(note.netns_cookie, &packet.destination, port_be)
            || owner(ctx, packet, [source_port_be, port_be]) == Some(agent()))
    {
        if is_known_source(note, packet, source_port_be) {
            return PASS;
        }
        report::packet(
            counter::REFUSED_STORAGE,
            Some(note),
            peer,
            port_be,
            transport::UDP,
        );
        return REFUSE;
    }
    if may_meet(reach::DATAGRAMS, peer, u16::from_be(port_be)) {
        if note.told_be != peer || note.told_port_be != port_be {
            note.told_be = peer;
            note.told_port_be = port_be;
            report::packet(
                counter::DATAGRAMS,
                Some(note),
                peer,
                port_be,
                transport::UDP,
            );
        }
        return PASS;
    }
    // An answer to who came in by a rule.
    if may_meet(reach::INBOUND, peer, u16::from_be(source_port_be)) {
        return PASS;
    }
    report::packet(
        counter::REFUSED_UDP,
        Some(note),
        peer,
        port_be,
        transport::UDP,
    );
    REFUSE
}

/// Says whose datagrams come from this packet's source; `false` where that can't be said.
#[inline(always)]
fn is_known_source(note: &mut Note, packet: &Packet, source_port_be: u16) -> bool {
    let port = u32::from(u16::from_be(source_port_be));
    let mut source = Source::of_datagrams(note.netns_cookie, note.client_be, note.client_port);
    let address_be = bytes(packet.source);
    let moved = note.client_port != port || note.client_be != address_be;
    if moved && note.client_port != 0 {
        let _ = SOURCES.remove(&source);
    }
    note.client_be = address_be;
    note.client_port = port;
    source.address_be = address_be;
    source.port = port;
    // SAFETY: only compared, before anything could remove it in this program.
    let known = unsafe { SOURCES.get(&source) };
    if let Some(known) = known
        && known.agent == note.agent
        && known.pid == note.pid
        && known.uid == note.uid
    {
        return true;
    }
    let copy: Note = *note;
    SOURCES.insert(&source, &copy, 0).is_ok()
}

// === In ===

#[inline(always)]
fn stream_arrives(ctx: &SkBuffContext, packet: &Packet) -> i32 {
    let Ok(flags) = ctx.load::<u8>(packet.offset + 13) else {
        return REFUSE;
    };
    if flags & (SYN | ACK) != SYN {
        // It belongs to a connection whose SYN was let by, or to none.
        return PASS;
    }
    let Ok([source_port_be, port_be]) = ctx.load::<[u16; 2]>(packet.offset) else {
        return REFUSE;
    };
    let peer = bytes(packet.source);
    let noted = noted(ctx);
    if !noted.is_null() {
        // SAFETY: not null, and as large as a Note by the map's definition.
        let netns_cookie = unsafe { (*noted).netns_cookie };
        let sender = sender(netns_cookie, packet, [source_port_be, port_be]);
        // 0 is the daemon, which dials what it has decided.
        if sender == Some(agent()) || sender == Some(0) {
            return PASS;
        }
        if may_meet(reach::INBOUND, peer, u16::from_be(port_be)) {
            report::packet(counter::INBOUND, None, peer, port_be, transport::TCP);
            return PASS;
        }
    }
    report::packet(
        counter::REFUSED_INBOUND,
        None,
        peer,
        port_be,
        transport::TCP,
    );
    REFUSE
}

#[inline(always)]
fn datagram_arrives(ctx: &SkBuffContext, packet: &Packet) -> i32 {
    let Ok([source_port_be, port_be]) = ctx.load::<[u16; 2]>(packet.offset) else {
        return REFUSE;
    };
    let peer = bytes(packet.source);
    let noted = noted(ctx);
    if !noted.is_null() {
        // SAFETY: not null, and as large as a Note by the map's definition.
        let netns_cookie = unsafe { (*noted).netns_cookie };
        if is_forwarder(netns_cookie, &packet.source, source_port_be)
            || sender(netns_cookie, packet, [source_port_be, port_be]) == Some(agent())
            || may_meet(reach::DATAGRAMS, peer, u16::from_be(source_port_be))
            || may_meet(reach::INBOUND, peer, u16::from_be(port_be))
        {
            return PASS;
        }
    }
    report::packet(
        counter::REFUSED_INBOUND,
        None,
        peer,
        port_be,
        transport::UDP,
    );
    REFUSE
}

/// Which agent a packet is of, as far as that is known; 0 is the daemon.
#[inline(always)]
fn sender(netns_cookie: u64, packet: &Packet, ports_be: [u16; 2]) -> Option<u64> {
    let [port, peer_port] = ports_be.map(|port_be| u32::from(u16::from_be(port_be)));
    let address_be = bytes(packet.source);
    let mut source = Source::of_datagrams(netns_cookie, address_be, port);
    if packet.transport == transport::TCP {
        source.transport = transport::TCP;
        source.peer_be = bytes(packet.destination);
        source.peer_port = peer_port;
    }
    // SAFETY: one field is read, before anything could remove it in this program.
    unsafe { SOURCES.get(&source) }.map(|note| note.agent)
}

// === Helpers ===

/// Reads a packet's addresses and finds its transport; `None` for what isn't plain TCP or UDP.
#[inline(always)]
fn read(ctx: &SkBuffContext) -> Option<Packet> {
    match ctx.skb.protocol() {
        ETH_P_IP => {
            let head = ctx.load::<[u32; 5]>(0).ok()?;
            let first = head[0].to_ne_bytes();
            let [_, _, fragment_high, fragment_low] = head[1].to_ne_bytes();
            let protocol = head[2].to_ne_bytes()[1];
            // Options would say where it goes on to; the rest of a fragment has no ports.
            if first[0] != 0x45 || fragment_high & 0x1F != 0 || fragment_low != 0 {
                return None;
            }
            let transport = u32::from(protocol);
            (transport == transport::TCP || transport == transport::UDP).then_some(())?;
            Some(Packet {
                source: [0, 0, MAPPED, head[3]],
                destination: [0, 0, MAPPED, head[4]],
                transport,
                offset: 20,
            })
        }
        ETH_P_IPV6 => {
            let head = ctx.load::<[u32; 10]>(0).ok()?;
            // Extension headers have no business here.
            let transport = u32::from(head[1].to_ne_bytes()[2]);
            (transport == transport::TCP || transport == transport::UDP).then_some(())?;
            Some(Packet {
                source: [head[2], head[3], head[4], head[5]],
                destination: [head[6], head[7], head[8], head[9]],
                transport,
                offset: 40,
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn is_on_loopback(ctx: &SkBuffContext) -> bool {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: a plain field of the context that this program was called with.
    unsafe { core::ptr::read_volatile(&raw const (*skb).ifindex) == LOOPBACK_DEVICE }
}

/// The note at the agent's socket, or null.
#[inline(always)]
fn noted(ctx: &SkBuffContext) -> *mut Note {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context's socket pointer is checked; the helper gives a socket or null.
    let socket: *mut c_void = unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return core::ptr::null_mut();
        }
        bpf_sk_fullsock(socket).cast()
    };
    if socket.is_null() {
        return core::ptr::null_mut();
    }
    note(socket)
}

#[inline(always)]
fn is_proxy(netns_cookie: u64, address: &[u32; 4], port_be: u16) -> bool {
    // SAFETY: the value is copied before anything else happens.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return false;
    };
    let listener: Listener = *listener;
    let v4 = address[0] == 0 && address[1] == 0 && address[2] == MAPPED;
    if v4 {
        return address[3] == LOOPBACK_V4 && port_be == listener.port_v4.to_be();
    }
    address[0] == 0
        && address[1] == 0
        && address[2] == 0
        && address[3] == LOOPBACK_V6[3]
        && port_be == listener.port_v6.to_be()
}

#[inline(always)]
fn is_forwarder(netns_cookie: u64, address: &[u32; 4], port_be: u16) -> bool {
    // SAFETY: the value is copied before anything else happens.
    let Some(listener) = (unsafe { LISTENERS.get(&netns_cookie) }) else {
        return false;
    };
    let listener: Listener = *listener;
    number_of(&listener, address, port_be).is_some()
}

/// Whose socket this very packet is going to reach within this host: the number of an agent, 0 for
/// anybody else, `None` for nobody.
#[inline(always)]
fn owner(ctx: &SkBuffContext, packet: &Packet, ports_be: [u16; 2]) -> Option<u64> {
    let [source_port_be, destination_port_be] = ports_be;
    let context: *mut c_void = ctx.skb.skb.cast();
    let v4 = packet.source[0] == 0 && packet.source[1] == 0 && packet.source[2] == MAPPED;
    let is_stream = packet.transport == transport::TCP;
    let found = if v4 {
        let mut tuple = TupleV4 {
            source: packet.source[3],
            destination: packet.destination[3],
            source_port_be,
            destination_port_be,
        };
        let (tuple, length) = ((&raw mut tuple).cast(), size_of::<TupleV4>() as u32);
        // SAFETY: the context is the one that this program was called with, and the tuple is as long as is
        // said.
        unsafe {
            if is_stream {
                bpf_sk_lookup_tcp(context, tuple, length, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(context, tuple, length, CURRENT_NETNS, 0)
            }
        }
    } else {
        let mut tuple = TupleV6 {
            source: packet.source,
            destination: packet.destination,
            source_port_be,
            destination_port_be,
        };
        let (tuple, length) = ((&raw mut tuple).cast(), size_of::<TupleV6>() as u32);
        // SAFETY: as above.
        unsafe {
            if is_stream {
                bpf_sk_lookup_tcp(context, tuple, length, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(context, tuple, length, CURRENT_NETNS, 0)
            }
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
