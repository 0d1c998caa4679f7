//! Benchmarks: each prints a table, takes `--json FILE` and `--quick`, and compares what it compares interleaved.

mod decoder;
pub mod dispatch;
pub mod dispatch_cost;
pub mod gateway;
pub mod ledger;
pub mod loadgen;
pub mod overhead;
pub mod phases;
pub mod timing;
pub mod torch;
pub mod vllm;
