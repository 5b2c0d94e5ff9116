//! The harness: throw-away servers, a daemon of its own, unmodified clients, and their tidying up.
//!
//! Everything that is started here is given to a [`keeper::Keeper`], so it ends with the process
//! that started it, however that one ends. Nothing here decides what is right; the tests do.

pub mod agent;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod console;
pub mod daemon;
pub mod dns;
pub mod docker;
pub mod h2;
pub mod host;
pub mod journal;
pub mod keeper;
pub mod netns;
pub mod paths;
pub mod run;
pub mod schema;
pub mod scratch;
pub mod web;
