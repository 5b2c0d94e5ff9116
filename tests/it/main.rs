//! Real kernel, real servers, unmodified clients: one binary, a file a capability.
//!
//! Needs root, eBPF and what `cargo xtask setup` installs; where one is missing the tests fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests too: clippy.toml exempts only what bears #[test]"
)]

mod abuse;
mod approvals;
mod ca;
mod classify_oracle;
mod credentials;
mod fuzz_seeds;
mod hostile;
mod journal;
mod masks;
mod messages;
mod policies;
mod postgres_clients;
mod redirect;
mod refusals;
mod support;
mod tls;
mod trust;
mod walls;
mod web;
