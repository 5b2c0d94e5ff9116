//! Benchmarks against peers, interleaved, with medians and spread.

pub(crate) mod cpu;
pub(crate) mod postgres;
pub(crate) mod report;
pub(crate) mod targets;
