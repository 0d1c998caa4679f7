//! Communicators over several daemons: how their ranks find each other, and what they share.
//!
//! Each daemon listens at a path of its own beside its clients' socket. One that is asked for a key ([`Peers::root`]) makes the
//! communicator of that key: every rank's daemon, its own included, connects there ([`Peers::join`]); when all have come it
//! makes the memory that they share ([`Segment`]) and gives it to each, with everyone's bells. From then on dispatch threads
//! speak through that memory and ring each other; the connections only tell who is gone.
//!
//! A key names the daemon by a hash of its socket's name, never by a path, and is looked for in the daemon's own directory: no
//! client can make a daemon connect anywhere else. Only processes of the daemon's user are let in.
//!
//! | thread | waits in |
//! |---|---|
//! | `peers` | `accept` |
//! | one a rank that has come | its connection |
//! | one a rank of this daemon's, while it is in a communicator | its connection |
//!
//! **Bounds:** [`KEYS_MAX`] keys wait for their ranks, [`CONNECTIONS_MAX`] connections are open.

mod hello;
mod hub;
mod member;
mod segment;
#[cfg(test)]
mod tests;

pub use hub::{CONNECTIONS_MAX, KEYS_MAX, Peers};
pub use member::Member;
pub use segment::{CHUNK_BYTES, Left, SLOTS, Segment};
