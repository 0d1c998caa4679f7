//! AscendCL for the rest of the engine: the only module with `unsafe` calls into the platform.
//!
//! Why a layer of our own: the libraries are opened by name at run time (an application built anywhere runs wherever the
//! platform is installed), every function is typed exactly, and handles free themselves.
//!
//! **Invariants.**
//! - A handle (stream, tensor, buffer, …) keeps its [`Device`] alive; the device is reset after the last of them.
//! - Libraries are never unloaded: they may own threads.
//! - Device addresses are numbers here ([`DeviceBuffer::addr`]); nothing dereferences them on the host.
//! - A call that fails says which call, the platform's code and the platform's own text ([`AclError`]).
//!
//! Threads: everything is `Send`; a [`Queue`] and its stream belong to one thread at a time. A thread calls
//! [`Device::bind_thread`] once before its first call.

mod device;
mod error;
mod library;
mod memory;
mod operators;
mod queue;
mod stream;
mod tensor;

pub use device::{Device, Memory, OpenError};
pub use error::AclError;
pub use library::LoadError;
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use queue::{Attention, Queue};
pub use stream::Stream;
pub use tensor::{IntArray, Scalar, Tensor, TensorList};
