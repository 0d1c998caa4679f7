//! Benchmarks: each prints a table, takes `--json FILE` and `--quick`, and compares what it compares interleaved.

pub mod overhead;
pub mod timing;
