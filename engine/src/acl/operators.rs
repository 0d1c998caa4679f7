//! Function pointers of operators, typed by `build.rs` from the signature table.

use std::ffi::{CStr, c_void};

use super::library::{Lib, LoadError, Raw};

/// `aclnn<Op>(workspace, workspace size, executor, stream)`.
pub(super) type SecondPhase = unsafe extern "C" fn(*mut c_void, u64, Raw, Raw) -> i32;

/// Both phases of one operator; `F` is the type of the first.
pub(super) struct Operator<F> {
    /// Name of the second phase.
    pub(super) name: &'static str,
    /// `aclnn<Op>GetWorkspaceSize`.
    pub(super) first: F,
    /// `aclnn<Op>`.
    pub(super) second: SecondPhase,
}

impl<F: Copy> Operator<F> {
    fn load(library: &Lib, name: &'static str, first: &CStr, second: &CStr) -> Result<Self, LoadError> {
        // SAFETY: `F` is generated from the operator's signature; the second phase has the same type for every operator.
        unsafe { Ok(Self { name, first: library.symbol(first)?, second: library.symbol(second)? }) }
    }
}

include!(concat!(env!("OUT_DIR"), "/operators.rs"));
