//! What a decision record tells people: what ran when, what waited, why, and until when.
//!
//! - [`Timeline`]: a record replayed into operators, hold-backs and requests with their times.
//! - [`chrome`]: a timeline as a file that Perfetto and `chrome://tracing` open; [`check`]: what such a file must fulfil.
//! - [`decision`]: one decision in words.
//!
//! A record comes from a running daemon or from virtual time; here they are the same. Everything is derived by replaying, in the
//! reader's process: a daemon that is looked at does no more than keep the record.
//!
//! **Invariants:** pure; no clock, no files, no sockets. What is shown adds up to the dispatcher's own counters (tests hold it
//! to the nanosecond).

pub mod about;
pub mod check;
pub mod chrome;
pub mod decision;
mod timeline;

pub use about::About;
pub use timeline::{Hold, Operator, PolicyChange, Request, Timeline};
