//! The state machine against scripts of both sides.
