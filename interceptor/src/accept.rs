//! From an accepted socket to a connection with its origin.
