//! NpuFormatCast, and what the private format FRACTAL_NZ is on this device.
//!
//! A private format says how the cube cores like a matrix to lie; nothing but operators ever looks into it, and the way
//! back is NpuFormatCast too. The device keeps such tensors row-major under their logical shape, in the beginning of the
//! (padded, so never smaller) storage that the client allocated: the cast copies, and every operator may read them.

use acl_abi::ops;

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::lane;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnNpuFormatCast, format_cast)];

/// `srcTensor → dstTensor`: the same elements; shapes and types agree.
pub fn format_cast(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (from, to) = (args.tensor(0)?, args.output(1)?);
    ensure!(to.dims() == from.dims(), "dstTensor: shape {:?}, want {:?}", to.dims(), from.dims());
    ensure!(to.dtype == from.dtype, "dstTensor: type {}, want {}", lane::name(to.dtype), lane::name(from.dtype));
    copy(machine, &to, &from)
}
