//! The program `interceptor`: sockets, kernel, storage, people.
//!
//! What can be decided without I/O lives in `interceptor-core`.

pub mod accept;
pub mod approval;
pub mod cancellations;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod cores;
pub mod credentials;
pub mod daemon;
pub mod journal;
pub mod kernel;
pub mod leg;
pub mod patience;
pub mod policies;
mod refusals;
pub mod rfc3339;
pub mod secret;
pub mod session;
pub mod tls;
pub mod trust;
pub mod upstream;
