//! The runtime of a device: the dispatch thread and everything it owns.
//!
//! ```text
//!  clients' rings ──▶ DeviceLoop ──▶ Core::record ──▶ translate ──▶ sched::Dispatcher
//!                        │ clock,       │ tenants: memory,             │ submit, done
//!                        │ doorbell     │ streams, events, errors      ▼
//!                        └──▶ Core::advance ◀── completions ◀── device::Device
//! ```
//!
//! [`Core`] is the state machine: no clock, no thread, no socket. [`DeviceLoop`] runs it on a thread that sleeps on a
//! doorbell; [`DeviceHandle`] is how the rest of a program speaks to that thread. The daemon has one for its device, and
//! direct mode has one inside the application's process.
//!
//! **Invariants**
//! - One thread owns the device and every session's objects: there are no locks on the data path.
//! - No address of a client reaches the device before [`translate`] has resolved it in that client's own memory.
//! - Modelled time never depends on when the thread woke up ([`core`] says how).
//! - Everything a client can make the daemon hold is bounded by [`Limits`].

mod comm;
mod comm_records;
pub mod core;
mod device_loop;
mod ends;
mod event_records;
mod fault;
mod graph;
mod host_calls;
mod items;
pub mod latency;
pub mod limits;
mod memory;
mod memory_records;
pub mod occupancy;
mod parked;
mod pool;
mod port;
pub mod recording;
mod records;
mod replay;
mod share_records;
mod shared_events;
mod shares;
pub mod snapshot;
mod steps;
mod tenant;
pub mod tenants;
pub mod testing;
mod translate;
pub mod usage;
mod value_records;
mod values;

pub use crate::core::{AttachError, Core, StartError, Wake};
pub use device_loop::{ANSWER_TIMEOUT, DeviceHandle, DeviceLoop, NoAnswer, OnEnd, SPIN_NS, WAKE_LEAD_NS};
pub use fault::Fault;
pub use limits::Limits;
pub use snapshot::Snapshot;
pub use steps::{REQUESTS_LISTED_MAX, RequestSnapshot, STEPS_KEPT_MAX, StepSnapshot};
pub use tenants::{Books, DEFAULT_TENANT, TenantConfig, TenantError, TenantSnapshot};
pub use usage::Usage;
