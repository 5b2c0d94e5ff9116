//! Addresses as the hooks meet them.

use aya_ebpf::bindings::bpf_sock_addr;

/// 127.0.0.1 in network byte order, as it lies in memory.
pub(crate) const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// ::1 in network byte order.
pub(crate) const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1u32.to_be()];
/// The third word of ::ffff:0:0/96.
pub(crate) const MAPPED: u32 = 0xFFFF_u32.to_be();

/// Where a call is going.
pub(crate) struct Destination {
    /// Network byte order; IPv4 as ::ffff:a.b.c.d.
    pub(crate) words: [u32; 4],
    pub(crate) port_be: u16,
    /// It is an IPv4 address.
    pub(crate) mapped: bool,
    /// It is this host, or unspecified, which means the same.
    pub(crate) loopback: bool,
    /// fe80::/10.
    pub(crate) link_local: bool,
}

impl Destination {
    #[inline(always)]
    pub(crate) fn read(address: &bpf_sock_addr, v6: bool) -> Self {
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
    pub(crate) fn address_be(&self) -> [u8; 16] {
        bytes(self.words)
    }
}

/// Writes an IPv6 address word by word: a block copy would take the context's address, which the
/// verifier refuses.
#[inline(always)]
pub(crate) fn set_ip6(address: &mut bpf_sock_addr, words: [u32; 4]) {
    // SAFETY: plain fields of the context that this program was called with.
    unsafe {
        core::ptr::write_volatile(&raw mut address.user_ip6[0], words[0]);
        core::ptr::write_volatile(&raw mut address.user_ip6[1], words[1]);
        core::ptr::write_volatile(&raw mut address.user_ip6[2], words[2]);
        core::ptr::write_volatile(&raw mut address.user_ip6[3], words[3]);
    }
}

#[inline(always)]
pub(crate) fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
pub(crate) fn words(bytes: &[u8; 16]) -> [u32; 4] {
    // SAFETY: both are 16 plain bytes; what they come from is aligned to 4 at least.
    unsafe { core::mem::transmute(*bytes) }
}
