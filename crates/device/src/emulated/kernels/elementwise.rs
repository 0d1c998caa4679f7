//! Arithmetic element by element, conversions and copies: broadcasting, torch's type promotion, one rounding.
//!
//! An operation computes in the lane of its promoted type: `i64` (wrapping) where every operand is an integer or bool,
//! `f64` with a double among them, `f32` otherwise. The output may have any type that the promoted one converts to
//! without losing its kind: a float result is never stored as an integer, except by Cast and InplaceCopy, which convert
//! as asked.

use acl_abi::{DataType, Scalar, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{Nest, broadcast_shape, map1, map2};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAdd, add),
    (ops::aclnnAdds, adds),
    (ops::aclnnCast, cast),
    (ops::aclnnDiv, div),
    (ops::aclnnInplaceCopy, inplace_copy),
    (ops::aclnnMul, mul),
    (ops::aclnnMuls, muls),
    (ops::aclnnSub, sub),
];

/// The type that an operation on `a` and `b` computes in, torch's `promote_types`.
pub fn promote(a: DataType, b: DataType) -> DataType {
    use DataType::{Bool, F32, F64, I8, I16, I32, I64, U8};
    if a == b {
        return a;
    }
    let float = |t: DataType| class(t) != Class::Int;
    match (float(a), float(b)) {
        (true, false) => a,
        (false, true) => b,
        (true, true) if a == F64 || b == F64 => F64,
        // float16 with bfloat16, or either with float32.
        (true, true) => F32,
        (false, false) => {
            let rank = |t: DataType| match t {
                Bool => 0,
                U8 => 1,
                I8 => 2,
                I16 => 3,
                I32 => 4,
                _ => 5,
            };
            match (a, b) {
                (U8, I8) | (I8, U8) => I16,
                _ if rank(a) == 5 || rank(b) == 5 => I64,
                _ if rank(a) >= rank(b) => a,
                _ => b,
            }
        }
    }
}

/// The type of an operation between a tensor and a host scalar: the scalar's kind counts, not its width.
fn promote_scalar(tensor: DataType, scalar: DataType) -> DataType {
    match (class(tensor), class(scalar)) {
        (Class::Int, Class::Single | Class::Double) => DataType::F32,
        (Class::Int, Class::Int) if tensor == DataType::Bool => scalar,
        _ => tensor,
    }
}

/// Refuses an output type that would lose the result's kind.
fn check_output(args: &Args<'_>, position: usize, out: &View, computed: DataType) -> Outcome {
    let fits = match (class(computed), class(out.dtype)) {
        (Class::Single | Class::Double, Class::Int) => false,
        (Class::Int, Class::Int) => out.dtype != DataType::Bool || computed == DataType::Bool,
        _ => true,
    };
    let name = args.name(position);
    ensure!(fits, "{name}: a {} result cannot be stored as {}", lane::name(computed), lane::name(out.dtype));
    Ok(())
}

/// Operands `self`, `other` and output `out` of a binary operator, and the type that it computes in.
fn binary(args: &Args<'_>, out: usize) -> Outcome<(View, View, View, DataType)> {
    let (a, b) = (args.tensor(0)?, args.tensor(1)?);
    let out_view = args.output(out)?;
    let shape = broadcast_shape(a.dims(), b.dims())?;
    let name = args.name(out);
    ensure!(out_view.dims() == shape.dims(), "{name}: shape {:?}, want {:?}", out_view.dims(), shape.dims());
    Ok((a, b, out_view, promote(a.dtype, b.dtype)))
}

/// `self + alpha·other`.
pub fn add(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out, dtype) = binary(args, 3)?;
    let alpha = args.scalar(2)?;
    check_output(args, 3, &out, dtype)?;
    add_scaled(machine, &out, &a, &b, dtype, alpha, 1)
}

/// `self − alpha·other`.
pub fn sub(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out, dtype) = binary(args, 3)?;
    let alpha = args.scalar(2)?;
    ensure!(dtype != DataType::Bool, "subtraction of bool tensors is not supported");
    check_output(args, 3, &out, dtype)?;
    add_scaled(machine, &out, &a, &b, dtype, alpha, -1)
}

fn add_scaled(
    machine: &mut Machine,
    out: &View,
    a: &View,
    b: &View,
    dtype: DataType,
    alpha: Scalar,
    sign: i64,
) -> Outcome {
    match class(dtype) {
        Class::Int => {
            ensure!(class(alpha.dtype) == Class::Int, "alpha: a fraction cannot scale integers");
            let alpha = alpha.as_i64().wrapping_mul(sign);
            map2(machine, out, a, b, |x: i64, y: i64| x.wrapping_add(y.wrapping_mul(alpha)))
        }
        Class::Single => {
            let alpha = alpha.as_f64() as f32 * sign as f32;
            map2(machine, out, a, b, |x: f32, y: f32| x + alpha * y)
        }
        Class::Double => {
            let alpha = alpha.as_f64() * sign as f64;
            map2(machine, out, a, b, |x: f64, y: f64| x + alpha * y)
        }
    }
}

/// `self · other`.
pub fn mul(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out, dtype) = binary(args, 2)?;
    check_output(args, 2, &out, dtype)?;
    match class(dtype) {
        Class::Int => map2(machine, &out, &a, &b, i64::wrapping_mul),
        Class::Single => map2(machine, &out, &a, &b, |x: f32, y: f32| x * y),
        Class::Double => map2(machine, &out, &a, &b, |x: f64, y: f64| x * y),
    }
}

/// `self / other`, true division: integers give a float.
pub fn div(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out, dtype) = binary(args, 2)?;
    let dtype = if class(dtype) == Class::Int { DataType::F32 } else { dtype };
    check_output(args, 2, &out, dtype)?;
    match class(dtype) {
        Class::Double => map2(machine, &out, &a, &b, |x: f64, y: f64| x / y),
        _ => map2(machine, &out, &a, &b, |x: f32, y: f32| x / y),
    }
}

/// Tensor `self`, output, and the type that an operation with a scalar computes in.
fn with_scalar(args: &Args<'_>, scalar: Scalar, out: usize) -> Outcome<(View, View, DataType)> {
    let a = args.tensor(0)?;
    let out_view = args.output(out)?;
    let name = args.name(out);
    ensure!(out_view.dims() == a.dims(), "{name}: shape {:?}, want {:?}", out_view.dims(), a.dims());
    let dtype = promote_scalar(a.dtype, scalar.dtype);
    check_output(args, out, &out_view, dtype)?;
    Ok((a, out_view, dtype))
}

/// `self + alpha·other` with a host scalar.
pub fn adds(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (other, alpha) = (args.scalar(1)?, args.scalar(2)?);
    let (a, out, dtype) = with_scalar(args, other, 3)?;
    match class(dtype) {
        Class::Int => {
            ensure!(class(alpha.dtype) == Class::Int, "alpha: a fraction cannot scale integers");
            let term = other.as_i64().wrapping_mul(alpha.as_i64());
            map1(machine, &out, &a, |x: i64| x.wrapping_add(term))
        }
        Class::Single => {
            let term = other.as_f64() as f32 * alpha.as_f64() as f32;
            map1(machine, &out, &a, |x: f32| x + term)
        }
        Class::Double => {
            let term = other.as_f64() * alpha.as_f64();
            map1(machine, &out, &a, |x: f64| x + term)
        }
    }
}

/// `self · other` with a host scalar.
pub fn muls(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let other = args.scalar(1)?;
    let (a, out, dtype) = with_scalar(args, other, 2)?;
    match class(dtype) {
        Class::Int => {
            let factor = other.as_i64();
            map1(machine, &out, &a, |x: i64| x.wrapping_mul(factor))
        }
        Class::Single => {
            let factor = other.as_f64() as f32;
            map1(machine, &out, &a, |x: f32| x * factor)
        }
        Class::Double => {
            let factor = other.as_f64();
            map1(machine, &out, &a, |x: f64| x * factor)
        }
    }
}

/// `out = self` as type `dtype`.
pub fn cast(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, out) = (args.tensor(0)?, args.output(2)?);
    let want = args.int(1)?;
    ensure!(i64::from(out.dtype.abi()) == want, "dtype: {want}, but out has type {}", lane::name(out.dtype));
    ensure!(out.dims() == a.dims(), "out: shape {:?}, want {:?}", out.dims(), a.dims());
    copy(machine, &out, &a)
}

/// `selfRef = src`, with broadcasting and conversion.
pub fn inplace_copy(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, source) = (args.output(0)?, args.tensor(1)?);
    copy(machine, &out, &source).map_err(|f| f.about("src"))
}

/// Copies with conversion. Values pass through the widest lane that either type needs, so integers stay exact.
pub fn copy(machine: &mut Machine, out: &View, source: &View) -> Outcome {
    if out.dtype == source.dtype {
        return copy_bits(machine, out, source);
    }
    match (class(source.dtype), class(out.dtype)) {
        (Class::Int, Class::Int) => map1(machine, out, source, |x: i64| x),
        (Class::Double, _) | (_, Class::Double) => map1(machine, out, source, |x: f64| x),
        _ => map1(machine, out, source, |x: f32| x),
    }
}

/// Copies between views of one type, bit for bit; a row that is contiguous on both sides is one block.
fn copy_bits(machine: &mut Machine, out: &View, source: &View) -> Outcome {
    let nest = Nest::new(out.dims(), [out, source])?;
    nest.rows(|[out, source]| out.copy_from(&mut machine.hbm, &source));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_follows_torch() {
        use DataType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
        for (a, b, want) in [
            (F32, F32, F32),
            (BF16, F16, F32),
            (BF16, F32, F32),
            (F16, F64, F64),
            (I64, BF16, BF16),
            (Bool, F16, F16),
            (I32, I64, I64),
            (U8, I8, I16),
            (U8, I16, I16),
            (Bool, I8, I8),
            (Bool, Bool, Bool),
        ] {
            assert_eq!((promote(a, b), promote(b, a)), (want, want), "{a:?} {b:?}");
        }
    }
}
