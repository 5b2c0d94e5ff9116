//! The registry of protocols: adding one is a folder and a line here.

pub mod dns;
pub mod http;
pub mod opaque;
pub mod postgres;
pub mod tls;

use bytes::Bytes;

use self::postgres::shape::Trace;
use crate::operation::{Operation, Protocol, recalled::Recalled};

/// What `operation` is but for its values, so that people can agree to more than one like it; `None` where that
/// can't be told.
#[must_use]
pub fn shape(operation: &Operation) -> Option<Bytes> {
    match operation.protocol {
        Protocol::Postgres => postgres::shape::shape(operation),
        Protocol::Http => http::shape::shape(operation),
        _ => None,
    }
}

/// What `recorded` was when it was decided, from what is on record of it.
///
/// # Errors
/// Why that can't be told.
pub fn recall(recorded: Operation) -> Result<Recalled, &'static str> {
    match recorded.protocol {
        Protocol::Http => http::recall(&recorded),
        _ => Ok(Recalled::whole(recorded)),
    }
}

/// What `operation` does to the session that it is in.
#[must_use]
pub fn trace(operation: &Operation) -> Trace {
    match operation.protocol {
        Protocol::Postgres => postgres::shape::trace(operation),
        // Each request stands for itself.
        _ => Trace::None,
    }
}
