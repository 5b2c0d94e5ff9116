//! PostgreSQL's frontend/backend protocol.
//!
//! Source: the PostgreSQL documentation, chapter "Frontend/Backend Protocol", versions 3.0 and 3.2.

pub mod describe;
