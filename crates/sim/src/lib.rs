//! Serving in virtual time: engines, dispatcher and device without a process, a socket or a clock.
//!
//! What decides is the real thing: [`sched::Dispatcher`] with any of its policies, and the emulated device's timing model
//! ([`device::emulated::model::Model`]). What is modelled is the engine: requests with arrival, prompt and output lengths,
//! continuous batching with decode slots and KV blocks ([`engine`]), steps as lists of weighed operators ([`step`]), and a
//! host that needs time to launch an operator and to turn a step round ([`world::Host`]).
//!
//! - [`world`]: the loop. [`world::run`] takes a [`world::Setup`] and requests, and answers when each token came out.
//! - [`bound`]: what no time-sharing schedule exceeds, and a clairvoyant schedule that obeys the same TPOT target.
//! - [`report`]: the figures of a run.
//!
//! **Exactness.** Operators are the unit, as in the daemon; one costs about a microsecond of host time. What makes long runs
//! affordable: while a stream is alone on its device and nothing can arrive before its step ends, no decision can depend on
//! the operators in between, and the step is handed over as one. `tests/virtual_time.rs` holds the error of that to 1 %.
//! Merging neighbours anywhere else is not done: runs of 0.3 ms already moved TTFT by 2 % at ω = 1, because operators
//! that are bound by different resources overlap better one by one than as their mean.
//!
//! **Invariants:** no clock, no I/O, no threads, no randomness; the same setup and requests give the same answer, bit for
//! bit.

pub mod bound;
pub mod engine;
pub mod report;
pub mod step;
pub mod world;

pub use report::Report;
pub use world::{Host, Run, Setup, run};

use sched::Nanos;

/// A request, as a trace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it arrives.
    pub arrival: Nanos,
    /// Prompt, tokens, at least 1.
    pub prompt: u32,
    /// Tokens it generates, at least 1: the first ends its prefill, the others are decoded.
    pub output: u32,
    /// Which engine serves it: an index into [`Setup::engines`].
    pub engine: usize,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When it arrived.
    pub arrival: Nanos,
    /// Prompt, tokens.
    pub prompt: u32,
    /// Tokens generated.
    pub output: u32,
    /// When the first token came out.
    pub first: Nanos,
    /// When it had a decode slot: with the first token, or when one became free.
    pub slot: Nanos,
    /// When the last token came out.
    pub last: Nanos,
    /// Longest time between two tokens.
    pub stall: Nanos,
    /// The same, time without a decode slot left out.
    pub stall_in_slot: Nanos,
    /// Times it lost its KV blocks and was prefilled again.
    pub preemptions: u32,
    /// Which engine served it.
    pub engine: usize,
}
