//! interceptor's kernel programs.
//!
//! They look up, store and rewrite; the only decisions here are "redirect" and "refuse". Every way
//! that isn't understood refuses. No map evicts: full means refuse.
//!
//! The way of a note: [`connect`] writes the true destination into the socket's own storage; at
//! TCP_CONNECT_CB, before the SYN leaves, [`agent_sockops`] publishes it in FLOWS under the ports that
//! the SYN will carry; [`daemon_sockops`] moves it into the accepted socket's storage before accept
//! can return it. From then on it is bound to that socket, and no reuse of ports can relabel it.
#![no_std]
#![no_main]

mod maps;
mod programs;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only open to programs under the GPL; the rest of the project is not affected.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
