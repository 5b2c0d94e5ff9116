//! The maps, shared by the programs of all agents through their pins.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{HashMap, PerCpuArray, RingBuf},
};
use interceptor_abi::{Flow, Listener, Note, counter};

/// Number of the agent whose cgroup these programs are attached to; set when they are loaded.
#[unsafe(no_mangle)]
static AGENT: u64 = 0;

/// The note at each socket.
#[btf_map]
pub(crate) static NOTES: SkStorage<Note> = SkStorage::new();

/// Notes on their way from the agent's socket to the accepted one. BPF_F_NO_PREALLOC is 1.
#[map]
pub(crate) static FLOWS: HashMap<Flow, Note> = HashMap::with_max_entries(16_384, 1);

/// The proxy's listeners by network namespace. BPF_F_NO_PREALLOC is 1.
#[map]
pub(crate) static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(1_024, 1);

/// Counters, see [`counter`].
#[map]
pub(crate) static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// What was refused. No verdict depends on it: what doesn't fit is only counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

#[inline(always)]
pub(crate) fn agent() -> u64 {
    // SAFETY: a static that the loader writes before the program runs; volatile, so that the
    // compiler doesn't fold the value that stands here.
    unsafe { core::ptr::read_volatile(&raw const AGENT) }
}

#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: the pointer is this CPU's own slot, and programs aren't preempted by each other here.
        unsafe { *counter += 1 };
    }
}
