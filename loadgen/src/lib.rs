//! What the load generator sends, for others that replay the same traces: lengths, arrivals, trace formats. Pure.

pub mod dataset;
pub mod schedule;
