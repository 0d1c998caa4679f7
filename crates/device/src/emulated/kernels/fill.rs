//! Operators that make values: zeros, ones, a scalar, a range.

use acl_abi::{Scalar, ops};

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::indices::at_least_1d;
use super::lane::{Class, class};
use super::nest::store_all;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnArange, arange),
    (ops::aclnnInplaceFillScalar, inplace_fill_scalar),
    (ops::aclnnInplaceFillTensor, inplace_fill_tensor),
    (ops::aclnnInplaceOne, inplace_one),
    (ops::aclnnInplaceZero, inplace_zero),
];

/// `selfRef = 0`.
pub fn inplace_zero(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    zero(machine, &args.output(0)?)
}

/// Sets every element to 0. A large contiguous tensor costs no writes: its pages go back to the system and read as zeros.
pub fn zero(machine: &mut Machine, out: &View) -> Outcome {
    if out.is_contiguous() {
        let size = (out.dtype.bits() / 8) as usize;
        machine.hbm.zero(out.start() * size, out.elements() * size);
        return Ok(());
    }
    store_all(machine, out, |_, piece: &mut [i64]| piece.fill(0))
}

/// `selfRef = 1`.
pub fn inplace_one(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out = args.output(0)?;
    store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(1))
}

/// `selfRef = value`.
pub fn inplace_fill_scalar(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, value) = (args.output(0)?, args.scalar(1)?);
    fill(machine, &out, value)
}

/// `selfRef = value`, which is in memory.
pub fn inplace_fill_tensor(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, value) = (args.output(0)?, args.tensor(1)?);
    ensure!(value.elements() == 1 && value.ndim() <= 1, "value: shape {:?}, want one element", value.dims());
    copy(machine, &out, &at_least_1d(value).select(0, 0))
}

/// Sets every element of `out`.
pub fn fill(machine: &mut Machine, out: &View, value: Scalar) -> Outcome {
    if class(out.dtype) == Class::Int && class(value.dtype) == Class::Int {
        let value = value.as_i64();
        return store_all(machine, out, |_, piece: &mut [i64]| piece.fill(value));
    }
    let value = value.as_f64();
    store_all(machine, out, |_, piece: &mut [f64]| piece.fill(value))
}

/// `start end step → out`: `start + i·step` for as many `i` as stay before `end`; in double precision unless out is of
/// integers.
pub fn arange(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (start, end, step) = (args.scalar(0)?, args.scalar(1)?, args.scalar(2)?);
    let out = args.output(3)?;
    ensure!(out.ndim() == 1, "out: shape {:?}, want one dimension", out.dims());
    let whole = class(out.dtype) == Class::Int;
    let fraction = [start, end, step].iter().any(|s: &Scalar| class(s.dtype) != Class::Int);
    let (first, last, stride) = (start.as_f64(), end.as_f64(), step.as_f64());
    ensure!(stride != 0.0 && stride.is_finite(), "step: {stride} leads nowhere");
    let count = ((last - first) / stride).ceil().max(0.0);
    let size = out.dim(0);
    ensure!(count == size as f64, "out: {size} elements, want {count} from {first} to {last} by {stride}");
    if whole && !fraction {
        let (start, step) = (start.as_i64(), step.as_i64());
        return store_all(machine, &out, |from, piece: &mut [i64]| {
            for (i, value) in piece.iter_mut().enumerate() {
                *value = start.wrapping_add(((from + i) as i64).wrapping_mul(step));
            }
        });
    }
    store_all(machine, &out, |from, piece: &mut [f64]| {
        for (i, value) in piece.iter_mut().enumerate() {
            *value = first + (from + i) as f64 * stride;
        }
    })
}
