//! What executes operators: the [`Device`] trait, and its backends.
//!
//! A device owns memory and time. It hands out physical memory, takes commands on physical streams, and says when each
//! of them was complete and whether it worked. It knows nothing of sessions, virtual addresses or policy: the caller
//! translates and bounds-checks every address first, keeps memory allocated until every command that names it has
//! completed, and decides what to submit when.
//!
//! | backend | computes | completes |
//! |---|---|---|
//! | [`emulated`], functional | on the CPU, with right results | when computed; paced: not before the modelled device would |
//! | [`emulated`], timing | nothing, memory is never touched | at once; paced: when the modelled device would |
//!
//! **Invariants:** a device never reads a clock, time comes in as an argument ([`sched::Nanos`]). Every command that was
//! submitted completes exactly once. Commands of one physical stream complete in the order they were submitted. A
//! malformed command is an error result that names the operator and the reason, never a panic and never an access
//! outside the device's memory. Memory that [`Device::alloc`] returns holds zeros, never a previous owner's bytes.
//!
//! Memory is taken in two ways: as ranges ([`Device::alloc`]), or page-wise, as handles that the caller maps side by side into
//! windows of addresses ([`Device::alloc_handle`], [`Device::map`]). Commands cannot tell one from the other.
//!
//! This crate opts out of the workspace's `unsafe` ban: the emulated memory is one mapping that kernels reach by physical
//! address, and pinned host memory is shared with another process. Both are fenced: `emulated::hbm`, `emulated::mapping`
//! and [`command`] hold the accessors, kernels see bounds-checked views.

pub mod command;
pub mod emulated;
pub mod error;
pub mod extents;
pub mod interface;
pub mod spec;

pub use command::{Combine, Command, HostBytes};
pub use emulated::{Emulated, EmulatedConfig};
pub use error::{DeviceError, OpError};
pub use extents::Extents;
pub use interface::{Completion, Compute, Device, DeviceInfo, Memory, PAGE_BYTES, PhysAddr};
pub use spec::{DeviceSpec, SpecError};
