//! (first shape)
use super::{OpClass, Work};
use acl_abi::OpCall;

/// What `call` asks of the device.
pub fn work(call: &OpCall) -> Work {
    let bytes: u64 = call.tensors.iter().map(acl_abi::TensorDesc::bytes).fold(0, u64::saturating_add);
    Work { hbm_bytes: bytes as f64, class: OpClass::Vector, ..Work::default() }
}
