//! Operators on the CPU.

use acl_abi::OpCall;

use crate::error::OpError;

use super::hbm::Hbm;

/// What kernels run on.
pub struct Machine {
    /// Device memory.
    pub hbm: Hbm,
}

impl Machine {
    /// A machine with this memory.
    pub fn new(hbm: Hbm) -> Self {
        Self { hbm }
    }
}

/// Executes one operator.
///
/// # Errors
/// With the operator's name and the reason.
pub fn run(call: &OpCall, _machine: &mut Machine) -> Result<(), OpError> {
    Err(OpError::new(format!("{}: not computed by this device", call.op.name())))
}
