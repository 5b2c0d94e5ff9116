//! Bytes that no decoder claims.
