//! The maps, shared by the programs of all agents through their pins. STATS alone is an agent's own.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::SkStorage,
    cty::c_void,
    helpers::generated::bpf_sk_storage_get,
    macros::{btf_map, map},
    maps::{HashMap, LpmTrie, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key},
};
use interceptor_abi::{
    Flow, HANDOVERS_MAX, Handover, Listener, Note, PEERS_MAX, Peer, Ports, Server, Source,
    TOKENS_MAX, Token, UNIX_NAMES_MAX, UnixFolder, UnixName, counter,
};

/// Number of the agent whose cgroup these programs are attached to; set when they are loaded. What is set so stands in
/// a section of its own: elsewhere the compiler may take it for the same as a constant of the same value, a zero that
/// some call is given by its address, which then changes with it.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.set")]
static AGENT: u64 = 0;

/// The note at each socket.
#[btf_map]
pub(crate) static NOTES: SkStorage<Note> = SkStorage::new();

/// Notes on their way from the agent's socket to the accepted one. BPF_F_NO_PREALLOC is 1.
#[map]
pub(crate) static FLOWS: HashMap<Flow, Note> = HashMap::with_max_entries(16_384, 1);

/// Who sends what isn't redirected: agents to themselves and to the forwarder, the daemon to this host.
#[map]
pub(crate) static SOURCES: HashMap<Source, Note> = HashMap::with_max_entries(65_536, 1);

/// The proxy's listeners by network namespace.
#[map]
pub(crate) static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(1_024, 1);

/// The token of each DNS server that an agent asks.
#[map]
pub(crate) static TOKENS: HashMap<Server, Token> = HashMap::with_max_entries(TOKENS_MAX, 1);

/// The DNS server that each token's number stands for.
#[map]
pub(crate) static SERVERS: HashMap<u32, Server> = HashMap::with_max_entries(TOKENS_MAX, 1);

/// How many tokens each agent has.
#[map]
pub(crate) static SERVER_COUNTS: HashMap<u64, u32> = HashMap::with_max_entries(TOKENS_MAX, 1);

/// Whom agents may exchange with directly.
#[map]
pub(crate) static PEERS: LpmTrie<Peer, Ports> = LpmTrie::with_max_entries(PEERS_MAX, 0);

/// The UNIX sockets that each agent may reach; the values mean nothing. BPF_F_NO_PREALLOC is 1.
#[map]
pub(crate) static UNIX_NAMES: HashMap<UnixName, u8> = HashMap::with_max_entries(UNIX_NAMES_MAX, 1);

/// The folders whose UNIX sockets each agent may reach; the values mean nothing.
#[map]
pub(crate) static UNIX_FOLDERS: LpmTrie<UnixFolder, u8> =
    LpmTrie::with_max_entries(UNIX_NAMES_MAX, 0);

/// What the proxy's side took of each agent's connections. The daemon makes the entries: BPF_F_NO_PREALLOC is 1.
#[map]
pub(crate) static HANDOVERS: PerCpuHashMap<u64, Handover> =
    PerCpuHashMap::with_max_entries(HANDOVERS_MAX, 1);

/// Counters of this agent, see [`counter`].
#[map]
pub(crate) static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// What was refused, or let by. No verdict depends on it: what doesn't fit is only counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// Only where there is no such entry yet.
pub(crate) const BPF_NOEXIST: u64 = 1;

#[inline(always)]
pub(crate) fn agent() -> u64 {
    // SAFETY: a static that the loader writes before the program runs; volatile, so that the
    // compiler doesn't fold the value that stands here.
    unsafe { core::ptr::read_volatile(&raw const AGENT) }
}

#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        add_one(counter);
    }
}

/// Counts one more in this CPU's own slot. A packet may interrupt a system call on the same CPU: added at once,
/// no count is lost.
#[inline(always)]
pub(crate) fn add_one(slot: *mut u64) {
    // The standard library has no atomic addition for this target, the machine has.
    // SAFETY: the slot is a map's, aligned as its values are.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({slot} + 0) += {one}",
            slot = in(reg) slot,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
}

/// The note at `socket`, or null.
#[inline(always)]
pub(crate) fn note(socket: *mut c_void) -> *mut Note {
    storage(socket, core::ptr::null_mut(), 0)
}

/// The note at `socket`, which is made with what `initial` says where there is none; null where it can't be.
#[inline(always)]
pub(crate) fn note_or(socket: *mut c_void, initial: &mut Note) -> *mut Note {
    storage(socket, initial, BPF_SK_STORAGE_GET_F_CREATE.into())
}

#[inline(always)]
fn storage(socket: *mut c_void, initial: *mut Note, flags: u64) -> *mut Note {
    // SAFETY: the kernel checks the socket pointer, and that the value is as large as a Note.
    unsafe {
        bpf_sk_storage_get(
            (&raw const NOTES).cast_mut().cast(),
            socket.cast(),
            initial.cast(),
            flags,
        )
    }
    .cast()
}

/// Whether this agent may meet the peer at `address_be` in this way at `port`, host byte order.
#[inline(always)]
pub(crate) fn may_meet(reach: u32, address_be: [u8; 16], port: u16) -> bool {
    let key = Key::new(
        Peer::FIXED_BITS + 128,
        Peer::new(agent(), reach, address_be),
    );
    let Some(ports) = PEERS.get(key) else {
        return false;
    };
    let mut index = 0;
    while index < Ports::RANGES_MAX {
        // Bounded by the length, which the verifier has to see.
        let [first, last] = ports.ranges[index];
        if (index as u32) < ports.count && first <= port && port <= last {
            return true;
        }
        index += 1;
    }
    false
}
