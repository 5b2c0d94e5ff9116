//! aya lives here alone: load, pin, attach, look up.
