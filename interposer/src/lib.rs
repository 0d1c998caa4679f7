//! The AscendCL C ABI on top of a session: what applications load in place of CANN.
//!
//! One shared object holds every symbol; `vnpu libs` links it under the names that applications load. Each call is decoded,
//! becomes one record in the session's command ring or is answered from a local copy, and returns; only calls that need an
//! answer wait for one.
//!
//! - [`api`]: the functions written by hand. `operators`: both phases of every operator, generated from the signature table.
//!   [`stub`]: refusals for what clients need in order to load. [`entry`]: the funnel around all of them.
//! - [`process`]: the state of one process; [`link`]: one session; [`handle`]: what clients hold instead of pointers.
//! - [`atb`]: the C++ library beside the operators.
//! - [`executor`], [`copy`], [`fetch`], [`stream`], [`event`], [`hints`], [`host_calls`], [`callbacks`], [`capture`], [`graph`]: what
//!   calls do.
//!
//! **Invariants:** no panic crosses the ABI. Nothing is printed except the log that `VNPU_LOG` asks for, and the process is
//! never ended. No thread and no connection before the first call that needs a device, and none inherited by a forked
//! child. A handle is a number, checked against a table; a device address is never dereferenced. A function that does not work
//! here says so, or is absent where clients then choose better: it never pretends.
//!
//! **Cost of an operator**, both phases and one tensor each way: no system call while the daemon is awake, no allocation, no
//! round trip; locks are process-private. `cargo run --release -p interposer --example overhead` measures it.
//!
//! This crate opts out of the workspace's `unsafe` ban because it is an ABI boundary. Dereferences of callers' pointers stand
//! in [`abi`], [`atb`] and [`copy`]; the rest of the unsafe blocks are `malloc`, `poll` and the fork handler.

// The C ABI has C's names; arguments are opaque pointers that nothing here dereferences.
#![allow(clippy::not_unsafe_ptr_arg_deref)]

pub mod abi;
pub mod api;
pub mod atb;
pub mod callbacks;
pub mod capture;
pub mod collective;
pub mod config;
pub mod copy;
pub mod desc;
pub mod direct;
pub mod entry;
pub mod error;
pub mod event;
pub mod executor;
pub mod fetch;
pub mod graph;
pub mod handle;
pub mod hints;
pub mod host;
pub mod host_calls;
pub mod ipc;
pub mod lines;
pub mod link;
pub mod log;
pub mod objects;
pub mod peers;
pub mod process;
pub mod settings;
pub mod space;
pub mod stream;
pub mod stub;
pub mod testing;
mod trips;

/// Both phases of every operator that the device computes.
#[allow(non_snake_case)]
mod operators {
    use acl_abi::{Arg, ops};

    use crate::abi::{Flag, Out, Text};
    use crate::executor::{first_phase, second_phase};

    include!(concat!(env!("OUT_DIR"), "/operators.rs"));
}
