//! DNS of agents: what they ask over UDP is decided and forwarded, and what they are told is remembered.

mod forwarder;
mod names;
mod servers;
mod socket;

pub(crate) use self::{forwarder::Forwarder, socket::Socket};
pub use self::{names::Names, servers::Servers, socket::listen};
