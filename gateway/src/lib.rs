//! The gateway as a library: what its program puts together, and what tests and fuzzers drive without a socket.
//!
//! The program is `src/main.rs`, which says what the gateway is. Only modules that it, or a fuzz target, takes something from
//! are public; nothing outside this repository depends on them.

pub mod access_log;
pub mod admin;
mod admit;
mod body;
pub mod config;
mod connections;
mod console;
mod engines;
mod error;
mod events;
mod exchange;
mod follow;
pub mod gateway;
pub mod hints;
pub mod identity;
mod inference;
pub mod joined;
pub mod metrics;
mod mistakes;
mod models;
pub mod monitor;
mod phase;
mod place;
pub mod proxy;
mod quirks;
mod reply;
mod request;
mod route;
pub mod setup;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod timers;
mod tls;
mod tokens;
mod tracked;
pub mod wants;
