//! What interceptor understands and decides, without any I/O.
//!
//! Bytes come in, typed messages, operations, rulings and records go out. There is no socket,
//! clock, randomness, environment or file in here: time and ids are arguments. That is what lets
//! the same code be unit-tested, fuzzed, simulated and reused.
//!
//! Walls (kept by a test): `protocol` and `policy` never import each other; protocols see
//! [`ruling`], and only [`ruling`] calls [`policy`].

pub mod decoder;
pub mod glob;
pub mod limits;
pub mod login;
pub mod mask;
pub mod operation;
pub mod origin;
pub mod policy;
pub mod protocol;
pub mod record;
pub mod ruling;
pub mod sniff;
