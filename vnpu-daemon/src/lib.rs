//! The daemon as a library: what its program puts together, and what tests and fuzzers drive without a socket.
//!
//! The program is `src/main.rs`, which says what the daemon is.

pub mod admin;
pub mod args;
pub mod ledger;
mod metrics;
pub mod record;
pub mod tenants;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod usage;
pub mod watch;
