//! UNIX sockets: which of them an agent may connect and send to.
//!
//! A path is no identity: links, a folder of its own choice and mounts have any path lead anywhere. So there is a
//! list of what is allowed and none of what isn't, and a path is never the agent's own by its looks. An abstract
//! name has one owner in its network namespace, whom the kernel's table tells: where that is the agent itself,
//! it is let be.
//!
//! What sockets are connected to each other without a name (`socketpair`) or were connected before doesn't come by
//! here.

use core::{
    arch::asm,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
    macros::cgroup_sock_addr,
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use interceptor_abi::{UnixFolder, UnixLayout, UnixName, counter, family, unix};

use crate::{
    maps::{UNIX_FOLDERS, UNIX_NAMES, agent},
    report,
    verdict::{PASS, REFUSE},
};

/// What is done about what is neither the agent's own nor allowed, of [`unix`]; set when this is loaded.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.set")]
static UNIX: u32 = unix::REFUSE;

/// Set when this is loaded.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.set")]
static UNIX_LAYOUT: UnixLayout = UnixLayout {
    names: 0,
    owners: 0,
    context_address: 0,
    context_length: 0,
    context_socket: 0,
    socket_net: 0,
    socket_next: 0,
    socket_cgroup: 0,
    socket_name: 0,
    net_buckets: 0,
    name_length: 0,
    name_address: 0,
    cgroup_level: 0,
    cgroup_ancestors: 0,
    cgroup_folder: 0,
    folder_id: 0,
};

/// The id of the agent's cgroup; set when this is loaded.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.set")]
static CGROUP: u64 = 0;

/// Bytes of an address before the name.
const FAMILY_BYTES: u64 = 2;

/// The table's second half is of abstract names.
const FIRST_ABSTRACT: u32 = 256;

/// Sockets of one bucket that are looked at, and cgroups that one may be in. Beyond these nothing is the agent's own.
const BUCKET_MAX: u32 = 64;
const DEPTH_MAX: u32 = 32;

// Both bear the section of another program's kind: the loader has no name for theirs, and says which they are when
// it loads them.

#[cgroup_sock_addr(connect4)]
pub fn agent_connect_unix(ctx: SockAddrContext) -> i32 {
    ask(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn agent_sendmsg_unix(ctx: SockAddrContext) -> i32 {
    ask(&ctx)
}

#[inline(always)]
fn ask(ctx: &SockAddrContext) -> i32 {
    // SAFETY: a static that the loader writes before the program runs; volatile, so that the compiler doesn't fold
    // the value that stands here.
    let otherwise = unsafe { core::ptr::read_volatile(&raw const UNIX) };
    if otherwise == unix::ALLOW {
        return PASS;
    }
    let address: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: a plain field of the context that this program was called with, read once.
    let kind = unsafe { core::ptr::read_volatile(&raw const (*address).type_) };
    let mut name = MaybeUninit::<UnixName>::uninit();
    zero(name.as_mut_ptr().cast::<[u64; size_of::<UnixName>() / 8]>());
    // SAFETY: all of it has just been written, and zeros are a name.
    let name = unsafe { name.assume_init_mut() };
    name.agent = agent();
    let context = kernel_context(ctx);
    if read_name(context, name) {
        if is_tried(name) {
            return REFUSE;
        }
        // SAFETY: the value isn't used.
        if unsafe { UNIX_NAMES.get(&*name) }.is_some() || is_in_folder(name) {
            report::unix(counter::UNIX_ALLOWED, kind, name);
            return PASS;
        }
        if name.bytes[0] == 0 && is_own(context, kind, name) {
            report::unix(counter::UNIX_DIRECT, kind, name);
            return PASS;
        }
    }
    if otherwise == unix::REPORT {
        report::unix(counter::UNIX_REPORTED, kind, name);
        return PASS;
    }
    report::unix(counter::REFUSED_UNIX, kind, name);
    REFUSE
}

/// Whether it is a path into a folder that is allowed.
#[inline(always)]
fn is_in_folder(name: &UnixName) -> bool {
    const SLASH: u8 = b'/';
    const DOT: u8 = b'.';
    if name.bytes[0] != SLASH {
        return false;
    }
    // `..` leads out of it again. Without branches, see `read`.
    let mut leads_out = 0_u32;
    let mut index = 0;
    while index + 2 < UnixName::BYTES {
        let differs = (name.bytes[index] ^ SLASH)
            | (name.bytes[index + 1] ^ DOT)
            | (name.bytes[index + 2] ^ DOT);
        leads_out |= (u32::from(differs).wrapping_sub(1)) >> 31;
        index += 1;
    }
    if leads_out != 0 {
        return false;
    }
    let mut key = MaybeUninit::<Key<UnixFolder>>::uninit();
    let agent = agent();
    // SAFETY: all of the key is written: its length, the agent, and the name word by word, because of what `zero`
    // says.
    let key = unsafe {
        let at = key.as_mut_ptr();
        (&raw mut (*at).prefix_len)
            .write_unaligned(UnixFolder::FIXED_BITS + UnixName::BYTES as u32 * 8);
        let data = (&raw mut (*at).data).cast::<u32>();
        data.write_volatile((agent >> 32) as u32);
        data.add(1).write_volatile(agent as u32);
        let words = words(name);
        let mut index = 0;
        while index < WORDS {
            data.add(2 + index * 2).write_volatile(words[index] as u32);
            data.add(3 + index * 2)
                .write_volatile((words[index] >> 32) as u32);
            index += 1;
        }
        key.assume_init_ref()
    };
    UNIX_FOLDERS.get(key).is_some()
}

/// The kernel's own `struct bpf_sock_addr_kern` behind the context; 0 where it doesn't show it.
#[inline(always)]
fn kernel_context(ctx: &SockAddrContext) -> u64 {
    let context: u64;
    // SAFETY: the loader has this call the kernel's function bpf_cast_to_kern_ctx, or puts a zero in its place. It
    // takes the context and changes nothing; the registers that a call may change are given up.
    unsafe {
        asm!(
            "call {function}",
            function = const interceptor_abi::CAST_TO_KERNEL_CONTEXT,
            inlateout("r1") ctx.as_ptr() => _,
            lateout("r0") context,
            lateout("r2") _,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
            options(nostack),
        );
    }
    context
}

/// Reads the name that is asked for: what stood in the process's memory has been copied already.
#[inline(always)]
fn read_name(context: u64, name: &mut UnixName) -> bool {
    if context == 0 || layout(offset_of!(UnixLayout, names)) == 0 {
        return false;
    }
    let address: u64 = read(context + offset(offset_of!(UnixLayout, context_address)));
    let length: u32 = read(context + offset(offset_of!(UnixLayout, context_length)));
    let length = u64::from(length);
    if length <= FAMILY_BYTES || length > FAMILY_BYTES + UnixName::LENGTH_MAX as u64 {
        return false;
    }
    let length = (length - FAMILY_BYTES) as u32;
    let from = address + FAMILY_BYTES;
    let bytes = name.bytes.as_mut_ptr();
    if read::<u8>(from) == 0 {
        // All of it counts, zeros as well.
        // SAFETY: at most as many bytes are written as there is room for; an address that can't be read is an error.
        if unsafe { bpf_probe_read_kernel(bytes.cast(), length, from as *const _) } != 0 {
            return false;
        }
        name.length = length;
        return true;
    }
    // Up to its end, which need not be there.
    // SAFETY: as above.
    let read = unsafe { bpf_probe_read_kernel_str(bytes.cast(), length + 1, from as *const _) };
    if read <= 1 {
        return false;
    }
    name.length = (read - 1) as u32;
    true
}

/// Writes zeros, one by one: what the compiler takes for a filling of memory it makes a loop over bytes of, and the
/// verifier looks at each of its steps.
#[inline(always)]
fn zero<const COUNT: usize>(words: *mut [u64; COUNT]) {
    let words = words.cast::<u64>();
    let mut index = 0;
    while index < COUNT {
        // SAFETY: the caller's pointer is to that many words.
        unsafe { core::ptr::write_volatile(words.add(index), 0) };
        index += 1;
    }
}

/// Names as words: the verifier looks at every step of a loop, and these are an eighth of the bytes.
pub(crate) const WORDS: usize = UnixName::BYTES / 8;

#[inline(always)]
pub(crate) fn words(name: &UnixName) -> &[u64; WORDS] {
    // SAFETY: the bytes are as many as those words, and stand at a multiple of eight in what is aligned so.
    unsafe { &*name.bytes.as_ptr().cast() }
}

#[inline(always)]
fn is_tried(name: &UnixName) -> bool {
    const TRIED: [u64; WORDS] = {
        let mut words = [0; WORDS];
        let mut index = 0;
        while index < UnixName::TRIED.len() {
            words[index / 8] |= (UnixName::TRIED[index] as u64) << (index % 8 * 8);
            index += 1;
        }
        words
    };
    name.length as usize == UnixName::TRIED.len() && differs(words(name), &TRIED) == 0
}

#[inline(always)]
fn differs(one: &[u64; WORDS], other: &[u64; WORDS]) -> u64 {
    let mut differs = 0;
    let mut index = 0;
    while index < WORDS {
        differs |= one[index] ^ other[index];
        index += 1;
    }
    differs
}

/// Whether the socket of that abstract name was born in the agent's cgroup or below. The kernel looks it up once
/// more: in between the agent could close it, and somebody else take the name.
#[inline(always)]
fn is_own(context: u64, kind: u32, name: &UnixName) -> bool {
    if layout(offset_of!(UnixLayout, owners)) == 0 {
        return false;
    }
    let cgroup = owner(context, kind, name);
    if cgroup == 0 {
        return false;
    }
    // SAFETY: a static that the loader writes before the program runs.
    let agents = unsafe { core::ptr::read_volatile(&raw const CGROUP) };
    let level: u32 = read(cgroup + offset(offset_of!(UnixLayout, cgroup_level)));
    let ancestors = cgroup + offset(offset_of!(UnixLayout, cgroup_ancestors));
    let at_folder = offset(offset_of!(UnixLayout, cgroup_folder));
    let at_id = offset(offset_of!(UnixLayout, folder_id));
    let mut depth = 0;
    while depth < DEPTH_MAX && depth <= level {
        let ancestor: u64 = read(ancestors + u64::from(depth) * 8);
        let folder: u64 = read(ancestor + at_folder);
        // No cgroup has the id 0, which is what can't be read.
        if read::<u64>(folder + at_id) == agents && agents != 0 {
            return true;
        }
        depth += 1;
    }
    false
}

/// The cgroup in which the socket of that abstract name was born; 0 where there is none.
#[inline(always)]
fn owner(context: u64, kind: u32, name: &UnixName) -> u64 {
    let next = offset(offset_of!(UnixLayout, socket_next));
    let at_name = offset(offset_of!(UnixLayout, socket_name));
    let at_length = offset(offset_of!(UnixLayout, name_length));
    let at_bytes = offset(offset_of!(UnixLayout, name_address)) + FAMILY_BYTES;
    let length = name.length;
    if length == 0 || length > UnixName::LENGTH_MAX as u32 {
        return 0;
    }
    let socket: u64 = read(context + offset(offset_of!(UnixLayout, context_socket)));
    let net: u64 = read(socket + offset(offset_of!(UnixLayout, socket_net)));
    let buckets: u64 = read(net + offset(offset_of!(UnixLayout, net_buckets)));
    let mut at: u64 = read(buckets + u64::from(bucket(kind, name)) * 8);
    let mut count = 0;
    while count < BUCKET_MAX && at != 0 {
        let found = at - next;
        let bound: u64 = read(found + at_name);
        if read::<u32>(bound + at_length) == length + FAMILY_BYTES as u32 {
            let mut other = MaybeUninit::<[u64; WORDS]>::uninit();
            zero(other.as_mut_ptr());
            // SAFETY: at most as many bytes are written as there is room for; what can't be read is zeros, which no
            // name is.
            unsafe {
                bpf_probe_read_kernel(
                    other.as_mut_ptr().cast(),
                    length,
                    (bound + at_bytes) as *const _,
                );
            }
            // SAFETY: zeros have been written, at least.
            if differs(words(name), unsafe { other.assume_init_ref() }) == 0 {
                return read(found + offset(offset_of!(UnixLayout, socket_cgroup)));
            }
        }
        at = read(at);
        count += 1;
    }
    0
}

/// Which bucket of the table an abstract name is in: the kernel sums up the address as it does packets, and adds the
/// type. On a kernel that does otherwise no name is found, and none is the agent's own.
#[inline(always)]
fn bucket(kind: u32, name: &UnixName) -> u32 {
    let mut sum = u64::from(family::UNIX);
    let words = words(name);
    let mut index = 0;
    while index < WORDS {
        // What is carried over is counted again: a sum of halves is one of the whole.
        sum += (words[index] & 0xFFFF_FFFF) + (words[index] >> 32);
        index += 1;
    }
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    let hash = !(sum as u32) & 0xFFFF;
    FIRST_ABSTRACT + ((hash ^ hash >> 8 ^ kind) & (FIRST_ABSTRACT - 1))
}

/// Reads a value out of the kernel's memory; 0 where it can't be read. Every branch here would be taken both ways by
/// the verifier at every step of the loops above.
#[inline(always)]
fn read<T: Default>(at: u64) -> T {
    let mut value = T::default();
    // SAFETY: as many bytes are written as the value has, which is an integer; where they can't be read they are
    // zeros.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(&mut value).cast(),
            size_of::<T>() as u32,
            at as *const _,
        );
    }
    value
}

/// A field of the layout, by where it stands there.
#[inline(always)]
fn layout(field: usize) -> u32 {
    // SAFETY: all fields are of four bytes, and this is one of them; the loader writes them before the program runs.
    unsafe { core::ptr::read_volatile((&raw const UNIX_LAYOUT).cast::<u8>().add(field).cast()) }
}

#[inline(always)]
fn offset(field: usize) -> u64 {
    u64::from(layout(field))
}
