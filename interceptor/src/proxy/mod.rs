//! The proxy: a process of its own, which alone reads what agents and servers send.
//!
//! The daemon holds what is worth taking: the hooks, cgroups and network namespaces, the authority's key, the
//! log, people's answers, secrets. It parses nothing that comes from an agent or a server. Who does is the proxy:
//! a user of its own, without a capability, a file or a system call beyond its work (`sandbox.rs`). It is handed
//! connections that are accepted and whose true destination is known, and asks for what a session takes
//! ([`message`]). What it says goes on record only of sessions that it was handed. When it ends, so do its
//! sessions, which is on record, and another one is started; what connects meanwhile waits.
//!
//! ```text
//! daemon (root)                                      proxy (nobody)
//!   accept ── keeper ═══ lines: sessions, questions ═══ carrier ── session …
//!   journal ── intake ◄══ feed: records ═══════════════ records
//! ```

mod carrier;
mod desk;
mod intake;
mod keeper;
mod line;
mod message;
mod network;
mod process;
mod records;
mod sessions;
mod share;
mod volume;

pub use self::keeper::ProxyError;
pub(crate) use self::{
    carrier::{Carrier, Place, run},
    desk::{Desk, Held},
    keeper::{Means, Proxy},
    message::{Ask, NetworkId},
    network::Network,
    process::COMMAND,
    records::Records,
    sessions::Opening,
    share::Share,
};
