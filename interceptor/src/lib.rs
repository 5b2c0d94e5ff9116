//! The program `interceptor`: sockets, kernel, storage, people.
//!
//! What can be decided without I/O lives in `interceptor-core`.

pub mod approval;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod journal;
pub mod kernel;
pub mod rfc3339;
