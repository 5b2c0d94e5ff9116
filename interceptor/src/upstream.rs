//! Dials the true destination.
