//! The daemon put together: kernel, journal, policies, approvals, listeners, control API.
