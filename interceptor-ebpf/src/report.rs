//! What the daemon is told.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid},
};
use interceptor_abi::{AskedUnix, Note, Refused, UnixName, counter, family, transport};

use crate::{
    address::Destination,
    maps::{EVENTS, agent, count},
    sockets::{SOCK_DGRAM, SOCK_STREAM},
    unix,
    verdict::REFUSE,
};

/// Refuses a call of the current process, and says so.
#[inline(always)]
pub(crate) fn refuse(reason: u32, address: &bpf_sock_addr, destination: &Destination) -> i32 {
    call(reason, address, destination);
    REFUSE
}

/// Counts and reports a call of the current process.
#[inline(always)]
pub(crate) fn call(reason: u32, address: &bpf_sock_addr, destination: &Destination) {
    count(reason);
    let (pid, uid) = current();
    report(&Refused {
        agent: agent(),
        address_be: destination.address_be(),
        port_be: destination.port_be,
        reserved: 0,
        reason,
        pid,
        uid,
        family: address.family,
        kind: address.type_ << 16 | address.protocol & 0xFFFF,
    });
}

/// Counts and reports what a process, of a user, does with a socket of this family, type and protocol.
#[inline(always)]
pub(crate) fn socket(reason: u32, by: (u32, u32), of: [u32; 3]) {
    count(reason);
    let (pid, uid) = by;
    let [family, kind, protocol] = of;
    report(&Refused {
        agent: agent(),
        address_be: [0; 16],
        port_be: 0,
        reserved: 0,
        reason,
        pid,
        uid,
        family,
        kind: kind << 16 | protocol & 0xFFFF,
    });
}

/// Counts and reports that the current process asks for a UNIX socket.
#[inline(always)]
pub(crate) fn unix(reason: u32, kind: u32, name: &UnixName) {
    count(reason);
    let Some(mut entry) = EVENTS.reserve::<AskedUnix>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let (pid, uid) = current();
    let asked = entry.as_mut_ptr();
    let refused = Refused {
        agent: agent(),
        address_be: [0; 16],
        port_be: 0,
        reserved: 0,
        reason,
        pid,
        uid,
        family: family::UNIX,
        kind: kind << 16,
    };
    // SAFETY: the entry is as large as one, and aligned; all of it is written. The name goes word by word, because
    // of what `unix::zero` says.
    unsafe {
        (*asked).refused = refused;
        (*asked).length = name.length;
        (*asked).reserved = 0;
        let bytes = (&raw mut (*asked).bytes).cast::<u64>();
        let words = unix::words(name);
        let mut index = 0;
        while index < unix::WORDS {
            core::ptr::write_volatile(bytes.add(index), words[index]);
            index += 1;
        }
    }
    entry.submit(0);
}

/// Counts and reports a packet of the socket that `note` is at, where there is one, from or to the peer.
#[inline(always)]
pub(crate) fn packet(
    reason: u32,
    note: Option<&Note>,
    peer_be: [u8; 16],
    port_be: u16,
    transport: u32,
) {
    count(reason);
    let (pid, uid, family) = match note {
        Some(note) => (note.pid, note.uid, note.family.into()),
        None => (0, 0, 0),
    };
    report(&Refused {
        agent: agent(),
        address_be: peer_be,
        port_be,
        reserved: 0,
        reason,
        pid,
        uid,
        family,
        kind: socket_type(transport) << 16 | transport & 0xFFFF,
    });
}

/// The type of the sockets that speak it.
#[inline(always)]
const fn socket_type(protocol: u32) -> u32 {
    match protocol {
        transport::TCP => SOCK_STREAM,
        transport::UDP => SOCK_DGRAM,
        _ => 0,
    }
}

/// Process (thread group) and user that run now.
#[inline(always)]
pub(crate) fn current() -> (u32, u32) {
    (
        (bpf_get_current_pid_tgid() >> 32) as u32,
        bpf_get_current_uid_gid() as u32,
    )
}

#[inline(always)]
fn report(refused: &Refused) {
    let Some(mut entry) = EVENTS.reserve::<Refused>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    entry.write(*refused);
    entry.submit(0);
}
