//! The HTTP side of the engine: the OpenAI API on top of an [`EngineHandle`](crate::core::EngineHandle).
//!
//! A request passes through these files in order:
//!
//! ```text
//! body (bytes, 32 MiB) → request (JSON types) → params (validated Generation) → server (prompt tokens, submit)
//!      → running (events → final text) → chat | completions (bodies, chunks) → sse (bytes)
//! ```
//!
//! Nothing here knows about devices or the scheduler. Per generated token the API layer makes one channel receive, one
//! table look-up, one JSON object and one write; no task stands between the engine's channel and the connection.
//!
//! Invariants:
//! - every error of every route is the OpenAI error object with all four fields;
//! - an accepted request is aborted in the engine as soon as nobody waits for it: the sequences live in the response
//!   future or body, and dropping those (which the HTTP server does when the peer closes) aborts what is unfinished;
//! - a stream ends in exactly one of two ways: `finish_reason` for every choice and `[DONE]`, or one `error` event and
//!   nothing after it.

mod body;
mod chat;
mod completions;
mod connections;
mod error;
mod logprobs;
mod metrics;
mod params;
mod request;
mod retry;
mod routes;
mod running;
mod serve;
mod server;
mod sse;

#[cfg(test)]
mod tests;

pub use error::ApiError;
pub use params::N_MAX;
pub use routes::router;
pub use serve::serve;
pub use server::{KEEP_ALIVE, Server, ServerConfig};
