//! The load generator's decisions, for its program and for others that replay the same traces: lengths, arrivals, trace
//! formats, what an event says, definitions, statistics, results, the verdict about the client. Pure: no socket, no clock.

pub mod audit;
pub mod compare;
pub mod console;
pub mod csv;
pub mod curve;
pub mod dataset;
pub mod html;
pub mod http1;
pub mod measure;
pub mod plot;
pub mod policies;
pub mod profile;
pub mod prompt;
pub mod report;
pub mod result;
pub mod scan;
pub mod schedule;
pub mod search;
pub mod stats;
pub mod steady;
pub mod text;
