//! The registry of protocols: adding one is a folder and a line here.

pub mod dns;
pub mod http;
pub mod opaque;
pub mod postgres;
pub mod tls;
