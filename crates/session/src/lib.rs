//! Sessions: the shared memory, sockets, futexes and doorbells under the protocol of `wire`, for both ends. No policy.
//!
//! The daemon end is a [`Listener`] that turns each connecting process into a [`ServerSession`] (the ring's reader, owned
//! by the dispatch thread), any number of [`Replier`]s, and a [`Connection`] (liveness, owned by whoever watches it). The
//! client end is a [`Client`], one a process. [`local`] makes both ends inside one process over the same code.
//!
//! One memfd holds everything that is shared: fixed words, staging states, reply slots, ring, arena. The daemon creates,
//! sizes and seals it, so no client can shrink it under the daemon; the client checks the seals for the same reason.
//!
//! **Invariants**
//! - The server never trusts a shared byte that it has not copied first; nothing it reads there is an index, a length or a
//!   pointer before it was checked against its own [`Layout`].
//! - The server never waits for a client. A client waits for the server only in [`Client::call`], in a post into a full
//!   ring and in [`Client::staging_take`]; each ends with [`Lost`] within milliseconds when the server is gone.
//! - Each client rings its own eventfd, so that a client that misuses its doorbell harms only itself.
//! - A client inherited over `fork` answers [`Lost`] and leaves the parent's session alone.
//!
//! **Costs** (`cargo run --release -p session --example post_cost` measures them)
//!
//! | | bytes written | system calls | allocations |
//! |---|---|---|---|
//! | post | record + 8, rounded to 8 | 0; 1 (eventfd write) if the dispatch thread sleeps | 0 |
//! | drain, a record | record, once, into private memory | 0 | 0 |
//! | reply | 48 (+ text) | 0; 1 (futex wake) if the caller sleeps | 0 |
//! | call | a post and a reply | ≤ 1 each way, and 1 futex wait after [`SPIN`] | 0 (1 if the reply has text) |

mod arena;
mod client;
mod doorbell;
mod fork;
mod futex;
mod listener;
mod local;
pub mod peers;
mod pinned;
mod reserve;
mod server;
mod shared;
mod socket;
pub mod testing;
#[cfg(test)]
mod tests;
mod watch;

pub use arena::Arena;
pub use client::{Client, ConnectError, ConnectOptions, Facts, Lost, StagingBlock};
pub use doorbell::Doorbell;
pub use futex::SPIN;
pub use listener::{AcceptError, Connection, DeviceFacts, HANDSHAKE_TIMEOUT, Listener, PENDING_MAX, Stopper};
pub use local::local;
pub use pinned::PINNED_ALLOCATIONS_MAX;
pub use server::{Peer, Replier, ServerSession, Violation};
pub use wire::control::Layout;
