//! Benchmarks: each prints a table, takes `--json FILE` and `--quick`, and compares what it compares interleaved.

pub mod dispatch;
pub mod overhead;
pub mod timing;
pub mod torch;
