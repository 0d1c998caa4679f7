//! The daemon as a library: what its program puts together, and what tests and fuzzers drive without a socket.
//!
//! The program is `src/main.rs`, which says what the daemon is.

pub mod admin;
pub mod args;
mod metrics;
pub mod record;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod watch;
