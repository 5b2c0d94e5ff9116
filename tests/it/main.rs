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
mod before;
mod ca;
mod classify_oracle;
mod complete;
mod confine;
mod console;
mod credentials;
mod direct;
mod dns;
mod docker;
mod doctor;
mod engines;
mod erasure;
mod evidence;
mod exports;
mod fuzz_seeds;
mod hostile;
mod journal;
mod killed;
mod leaving;
mod masks;
mod messages;
mod namespaces;
mod openapi;
mod policies;
mod postgres_clients;
mod proxy;
mod radius;
mod redirect;
mod refusals;
mod replay;
mod retention;
mod rotation;
mod search;
mod ship;
mod stream;
mod support;
mod tail;
mod tls;
mod trust;
mod unix;
mod walls;
mod ways_out;
mod web;
