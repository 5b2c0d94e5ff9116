//! interceptor's kernel programs.
//!
//! They look up, store and rewrite; the only decisions here are "redirect" and "refuse". Every way
//! that isn't understood refuses. No map evicts: full means refuse.
//!
//! - [`sockets`]: which sockets there may be, and what may be set on them.
//! - [`streams`]: TCP goes to the proxy, with a note of where it was meant for.
//! - [`datagrams`]: DNS goes to the forwarder; what else is sent is for [`packets`] to judge.
//! - [`packets`]: the last guard. What leaves or reaches an agent's socket belongs to something that was
//!   redirected, stays within the agent, or is allowed by a rule.
//! - [`unix`]: which UNIX sockets may be reached.
#![no_std]
#![feature(asm_experimental_arch)]
#![no_main]

mod address;
mod datagrams;
mod maps;
mod packets;
mod report;
mod sockets;
mod streams;
mod unix;

/// What a program answers.
mod verdict {
    /// The call fails with EPERM, the packet is dropped.
    pub(crate) const REFUSE: i32 = 0;
    pub(crate) const PASS: i32 = 1;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only open to programs under the GPL; the rest of the project is not affected.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
