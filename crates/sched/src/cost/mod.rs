//! What an operator asks of the device: FLOP, bytes, and seconds on a [`Profile`].
//!
//! [`work`] sees only the call (shapes, attributes, host-side length arrays), never data, and costs tens of
//! nanoseconds: the daemon weighs every operator with it. Quantities are *equivalents*, so that one peak an engine is
//! enough: cube FLOP as if in bfloat16 (an INT8 product counts half, a single-precision one four times), vector FLOP as
//! if in float16 (a 32-bit element counts twice).
//!
//! Time alone on the device is a roofline over the rates of a [`Profile`]:
//! `t = max(cube/(peak·0.7), vector/(peak·0.7), bytes/(bandwidth·0.6)) + static`.

mod attention;
mod evidence;
mod formulas;
pub mod model;
mod plan;
mod profile;
#[cfg(test)]
mod tests;
mod vector;

pub use attention::AttentionBatch;
pub(crate) use evidence::{Evidence, evidence, sequences};
pub use formulas::work;
pub use profile::{Demand, Profile};

/// What bounds the fixed part of an operator's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OpClass {
    /// Cube work: matrix products and attention.
    Matmul,
    /// Everything that runs on the vector cores, device-to-device copies included.
    #[default]
    Vector,
    /// A transfer between host and device: [`Work::hbm_bytes`] also cross the host link.
    Copy,
    /// A collective that is one operator.
    Communication,
    /// Bytes for other devices: [`Work::hbm_bytes`] also cross the link between devices. The first of a collective `opens`.
    Link {
        /// Begins a collective.
        opens: bool,
    },
}

/// What one operator asks of the device, independent of which device.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Work {
    /// FLOP of the cube cores, bfloat16 equivalents (a multiply-add is 2).
    pub cube_flops: f64,
    /// FLOP of the vector cores, float16 equivalents.
    pub vector_flops: f64,
    /// Bytes read from and written to HBM.
    pub hbm_bytes: f64,
    /// Class, which decides the static cost.
    pub class: OpClass,
}

impl Work {
    /// A transfer of `bytes` between host and device.
    pub fn host_copy(bytes: u64) -> Self {
        Self { hbm_bytes: bytes as f64, class: OpClass::Copy, ..Self::default() }
    }

    /// A transfer of `bytes` to another device.
    pub fn link(bytes: u64, opens: bool) -> Self {
        Self { hbm_bytes: bytes as f64, class: OpClass::Link { opens }, ..Self::default() }
    }

    /// A reduction of `pieces` pieces of `bytes` to one, `elements` elements each.
    pub fn combine(pieces: u64, bytes: u64, elements: u64) -> Self {
        let (read, folded) = ((pieces * bytes) as f64, ((pieces - 1) * elements) as f64);
        Self { vector_flops: folded, hbm_bytes: read + bytes as f64, ..Self::default() }
    }

    /// A copy of `bytes` within the device: read once, written once.
    pub fn device_copy(bytes: u64) -> Self {
        Self { hbm_bytes: 2.0 * bytes as f64, ..Self::default() }
    }

    /// A fill of `bytes` of device memory.
    pub fn fill(bytes: u64) -> Self {
        Self { hbm_bytes: bytes as f64, ..Self::default() }
    }
}
