//! The AscendCL surface as data: types, error codes, operator signatures, C functions.
//!
//! Everything that must agree on the C ABI (interposer, daemon, device backends, engine) takes it from here, and this
//! crate takes it from the tables under `data/`. There is no other list of operators in the repository.
//!
//! **Invariant:** tables and plain types only: no I/O, no clock, no policy.

pub mod codegen;
pub mod dtype;
pub mod extent;
pub mod fold;
pub mod function;
pub mod nz;
pub mod op;
pub mod opcall;
pub mod values;

pub use dtype::DataType;
pub use fold::Fold;
pub use op::{Kind, OpId, Param, SIGNATURES, SIGNATURES_DIGEST, Signature, ops};
pub use opcall::{Arg, MAX_DIMS, OpCall, Scalar, TensorDesc};
