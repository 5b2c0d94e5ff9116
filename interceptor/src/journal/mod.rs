//! The session log: append-only segments as evidence, sled as what is asked.
