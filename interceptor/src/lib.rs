//! The program `interceptor`: sockets, kernel, storage, people.
//!
//! What can be decided without I/O lives in `interceptor-core`.

pub mod accept;
pub mod approval;
pub mod books;
pub mod cancellations;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod console;
pub mod control;
pub mod cores;
pub mod credentials;
pub mod daemon;
pub mod dns;
pub mod doctor;
mod engines;
mod fetch;
mod follow;
mod guard;
mod inert;
pub mod journal;
pub mod kernel;
pub mod leg;
mod memory;
pub mod namespaces;
pub mod notify;
pub mod past;
pub mod patience;
pub mod policies;
pub mod proxy;
mod radius;
pub mod reach;
mod refusals;
pub mod rfc3339;
mod sandbox;
mod seccomp;
pub mod secret;
pub mod session;
pub mod socket;
mod sync;
pub mod tls;
pub mod trust;
pub mod upstream;
pub mod witness;
mod words;
