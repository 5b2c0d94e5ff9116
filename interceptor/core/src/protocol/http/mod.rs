//! HTTP: requests become operations, responses are masked, both go on record.
//!
//! HTTP/1 is read here byte by byte ([`Http1`]), because exactly the bytes that were decided go on; the
//! frames of HTTP/2 are h2's, and the program's edge hands its streams to the same descriptions,
//! refusals and recorders.

pub mod answer;
pub mod change;
pub mod describe;
mod edit;
mod framing;
mod h1;
mod head;
mod recall;
pub mod recorder;
pub mod refuse;
pub mod shape;
#[cfg(test)]
mod tests;
mod websocket;

pub use self::{
    describe::Context,
    h1::{Http1, is_request},
    head::Malformed,
    recall::recall,
};

/// What all HTTP sessions share.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// Largest body that is held back for a decision, in bytes.
    pub message_bytes_max: usize,
    /// Bytes of one body that go on record.
    pub recorded_bytes_max: u64,
    /// The configuration has credentials for requests: each has to be asked for.
    pub has_credentials: bool,
}
