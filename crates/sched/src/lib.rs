//! What an operator costs, which phase of serving it belongs to, and when it may start.
//!
//! Everything here is a decision, and decisions are pure: time comes in as [`Nanos`], operators as
//! [`acl_abi::OpCall`] or as numbers taken from it, completions as tokens; submissions come out. The daemon, the
//! property tests and a simulator drive the same code and get the same decisions for the same inputs.
//!
//! - [`cost`]: FLOP and bytes of an operator from its shapes, and its time on a device profile ([`model`]: the same for
//!   a whole model step in closed form).
//! - [`corun`]: how much operators slow each other down when they run side by side.
//! - [`calls`]: the operators of a decoder step, for whoever needs them without an engine.
//! - [`phase`]: prefill or decode, from the shapes of the attention operator.
//! - [`dispatch`]: stream queues, events, synchronisation, hand-over to the device.
//! - [`split`]: time of a device that several use at once, divided.
//! - [`policy`]: which ready operator goes next, and which one is held back, why and until when.
//!
//! **Invariants:** no clock, no I/O, no threads, no randomness; no iteration over a randomly ordered map, so that equal
//! inputs give equal outputs; every queue and table has a limit in [`dispatch::Limits`].

pub mod calls;
pub mod corun;
pub mod cost;
pub mod dispatch;
pub mod phase;
pub mod policy;
pub mod split;

pub use corun::{CoRun, CoreSplit};
pub use cost::{Demand, OpClass, Profile, Work, model, work};
pub use dispatch::{
    Action, Dispatcher, EventKey, FlagKey, Item, Label, Limits, SessionParams, StreamKey, TenantParams, Token,
};
pub use phase::{Classifier, Phase};
pub use policy::PolicyConfig;

/// Nanoseconds since an arbitrary start that the caller chose; never goes back.
pub type Nanos = u64;

/// Seconds to nanoseconds, rounded up, saturating; negative and NaN give 0.
pub fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).ceil() as Nanos
}
