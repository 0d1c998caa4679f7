//! Arithmetic: sums, products, quotients with their roundings, powers, extrema and clamps.

use acl_abi::{DataType, Scalar};
use half::{bf16, f16};

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Outcome, ensure};
use super::super::lane::{Class, Lane, class};
use super::number::{Number, Real};
use super::{Operand, Value, exact, number, number_of, operators, ratio, real};

operators! {
    exact add => aclnnAdd aclnnAdds aclnnAddV3 aclnnInplaceAdd aclnnInplaceAdds aclnnForeachAddList
        aclnnForeachAddListV2;
    exact sum => aclnnForeachAddScalar aclnnForeachAddScalarV2 aclnnForeachAddScalarList;
    exact difference => aclnnForeachSubList aclnnForeachSubListV2;
    exact minus => aclnnForeachSubScalar aclnnForeachSubScalarV2 aclnnForeachSubScalarList;
    custom sub => aclnnSub aclnnSubs aclnnInplaceSub aclnnInplaceSubs;
    custom rsub => aclnnRsub aclnnRsubs;
    exact mul => aclnnMul aclnnMuls aclnnInplaceMul aclnnInplaceMuls aclnnForeachMulList aclnnForeachMulScalar
        aclnnForeachMulScalarV2 aclnnForeachMulScalarList;
    ratio div => aclnnDiv aclnnDivs aclnnInplaceDiv aclnnInplaceDivs aclnnForeachDivList aclnnForeachDivScalar
        aclnnForeachDivScalarV2 aclnnForeachDivScalarList;
    custom div_mode => aclnnDivMod aclnnDivMods aclnnInplaceDivMod aclnnInplaceDivMods;
    number floor_divide => aclnnFloorDivide aclnnFloorDivides aclnnInplaceFloorDivide aclnnInplaceFloorDivides;
    number fmod => aclnnFmodScalar aclnnFmodTensor aclnnInplaceFmodScalar aclnnInplaceFmodTensor;
    number remainder => aclnnRemainderScalarTensor aclnnRemainderTensorScalar aclnnRemainderTensorTensor
        aclnnInplaceRemainderTensorScalar aclnnInplaceRemainderTensorTensor;
    number maximum => aclnnMaximum aclnnClampMin aclnnClampMinTensor aclnnInplaceClampMinTensor aclnnForeachMaximumList
        aclnnForeachMaximumScalar aclnnForeachMaximumScalarV2 aclnnForeachMaximumScalarList;
    number minimum => aclnnMinimum aclnnClampMax aclnnClampMaxTensor aclnnInplaceClampMax aclnnInplaceClampMaxTensor
        aclnnForeachMinimumList aclnnForeachMinimumScalar aclnnForeachMinimumScalarV2 aclnnForeachMinimumScalarList;
    custom clamp => aclnnClamp aclnnClampTensor aclnnHardtanh aclnnInplaceHardtanh;
    custom pow => aclnnPowTensorScalar aclnnPowTensorTensor aclnnPowScalarTensor aclnnInplacePowTensorScalar
        aclnnInplacePowTensorTensor aclnnForeachPowList aclnnForeachPowScalar aclnnForeachPowScalarV2
        aclnnForeachPowScalarList aclnnForeachPowScalarAndTensor;
    exact add_product => aclnnAddcmul aclnnInplaceAddcmul aclnnForeachAddcmulScalar aclnnForeachAddcmulScalarV2
        aclnnForeachAddcmulScalarList;
    ratio add_quotient => aclnnAddcdiv aclnnInplaceAddcdiv aclnnForeachAddcdivScalar aclnnForeachAddcdivScalarV2
        aclnnForeachAddcdivScalarList;
    ratio masked_scale => aclnnMaskedScale;
    ratio lerp => aclnnLerp aclnnLerps aclnnInplaceLerp aclnnInplaceLerps aclnnForeachLerpList aclnnForeachLerpScalar;
}

/// `a + alpha·b`.
pub fn add<T: Number>([a, b, alpha]: [T; 3]) -> T {
    a.plus(alpha.times(b))
}

fn sum<T: Number>([a, b]: [T; 2]) -> T {
    a.plus(b)
}

fn minus<T: Number>([a, b]: [T; 2]) -> T {
    a.minus(b)
}

/// `x + value·a·b`.
fn add_product<T: Number>([x, a, b, value]: [T; 4]) -> T {
    x.plus(value.times(a).times(b))
}

/// `x + value·a/b`.
fn add_quotient<T: Real>([x, a, b, value]: [T; 4]) -> T {
    x + value * a / b
}

/// `x · mask · scale`: dropout with a mask of any type.
fn masked_scale<T: Real>([x, mask, scale]: [T; 3]) -> T {
    x * mask * scale
}

/// `start + weight·(end − start)`, from the end that is nearer.
fn lerp<T: Real>([start, end, weight]: [T; 3]) -> T {
    if Number::abs(weight) < T::real(0.5) {
        start + weight * (end - start)
    } else {
        end - (end - start) * (T::real(1.0) - weight)
    }
}

/// `a − alpha·b`.
pub fn difference<T: Number>([a, b, alpha]: [T; 3]) -> T {
    a.minus(alpha.times(b))
}

fn reversed_difference<T: Number>([a, b, alpha]: [T; 3]) -> T {
    b.minus(alpha.times(a))
}

/// `a · b`.
pub fn mul<T: Number>([a, b]: [T; 2]) -> T {
    a.times(b)
}

/// `a / b`.
pub fn div<T: Real>([a, b]: [T; 2]) -> T {
    a / b
}

fn floor_divide<T: Number>([a, b]: [T; 2]) -> T {
    a.floor_div(b)
}

fn fmod<T: Number>([a, b]: [T; 2]) -> T {
    a.trunc_rem(b)
}

fn remainder<T: Number>([a, b]: [T; 2]) -> T {
    a.floor_rem(b)
}

/// The larger of two; NaN if either is.
pub fn maximum<T: Number>([a, b]: [T; 2]) -> T {
    a.larger(b)
}

/// The smaller of two; NaN if either is.
pub fn minimum<T: Number>([a, b]: [T; 2]) -> T {
    a.smaller(b)
}

/// `self − alpha·other`; not of two bools.
fn sub(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    refuse_bools(args)?;
    exact(args, machine, difference, difference, difference)
}

/// `other − alpha·self`; not of two bools.
fn rsub(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    refuse_bools(args)?;
    exact(args, machine, reversed_difference, reversed_difference, reversed_difference)
}

fn refuse_bools(args: &Args<'_>) -> Outcome {
    let bools = args.tensor(0)?.dtype == DataType::Bool
        && args.tensor(1).map_or_else(|_| args.scalar(1).map(|s| s.dtype), |t| Ok(t.dtype))? == DataType::Bool;
    ensure!(!bools, "subtraction of bool tensors is not supported");
    Ok(())
}

/// `self / other`, rounded as `mode` says: 0 not at all, 1 towards zero, 2 down.
fn div_mode(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    const MODE: usize = 2;
    match args.int(MODE)? {
        0 => ratio(args, machine, |[a, b, _]| a / b, |[a, b, _]| a / b),
        1 => {
            // 16-bit quotients are rounded before their fraction is dropped, as torch does.
            let half = args.output(if args.is_in_place() { 0 } else { 3 })?.dtype;
            let towards_zero = |[a, b, _]: [f32; 3]| match half {
                DataType::BF16 => f32::of(bf16::from_f32(a / b)).trunc(),
                DataType::F16 => f32::of(f16::from_f32(a / b)).trunc(),
                _ => (a / b).trunc(),
            };
            number(args, machine, towards_zero, |[a, b, _]| a.trunc_div(b), |[a, b, _]| a.trunc_div(b))
        }
        2 => {
            let down = |[a, b, _]: [f32; 3]| a.floor_div(b);
            number(args, machine, down, |[a, b, _]| a.floor_div(b), |[a, b, _]| a.floor_div(b))
        }
        mode => Err(super::Fault::new(format!("mode: {mode} is not 0 (exact), 1 (towards zero) or 2 (down)"))),
    }
}

/// `min(max(self, low), high)`; a bound may be null.
fn clamp(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn between<T: Number>([x, low, high]: [T; 3]) -> T {
        // A bound that is NaN makes everything NaN, as in torch.
        x.larger(low).smaller(high)
    }
    let x = args.tensor(0)?;
    let out = if args.is_in_place() { args.output(0)? } else { args.output(3)? };
    let bound = |position: usize, absent: f64| -> Outcome<Operand> {
        if args.is_absent(position) {
            // Lies beyond every integer too.
            let whole = Scalar { dtype: DataType::I64, bits: (absent as i64) as u64 };
            return Ok(if class(x.dtype) == Class::Int { Operand::factor(whole) } else { Operand::number(absent) });
        }
        let bound = super::operand(args, position, None)?;
        Ok(match bound.value {
            // An integer result has the bounds without their fraction.
            Value::Scalar(scalar) if class(out.dtype) == Class::Int && class(scalar.dtype) != Class::Int => {
                Operand::factor(Scalar { dtype: DataType::I64, bits: scalar.as_i64() as u64 })
            }
            _ => bound,
        })
    };
    let operands = [Operand::tensor(x), bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?];
    number_of(machine, &out, &operands, "out", between, between, between)
}

/// `self` to the power `exponent`. Powers that torch computes without a logarithm are computed so.
fn pow(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn of<T: Number>([base, exponent]: [T; 2]) -> T {
        base.pow(exponent)
    }
    let Ok(exponent) = args.scalar(1) else { return number(args, machine, of, of, of) };
    if args.tensors(0).is_ok_and(|list| list.len() == 0) {
        return Ok(());
    }
    let value = exponent.as_f64();
    let base = args.tensor(0).or_else(|_| args.tensors(0)?.next().unwrap_or_else(|| args.tensor(0)))?;
    let whole = class(base.dtype) == Class::Int && class(exponent.dtype) == Class::Int;
    ensure!(!whole || value >= 0.0, "exponent: integers to the negative power {value} are not integers");
    macro_rules! short {
        ($form:ident, $($f:expr),+) => { $form(args, machine, $($f),+) };
    }
    match value {
        2.0 => short!(number, |[x, _]| x * x, |[x, _]| x * x, |[x, _]| x.times(x)),
        3.0 => short!(number, |[x, _]| x * x * x, |[x, _]| x * x * x, |[x, _]| x.times(x).times(x)),
        0.5 => short!(real, |[x, _]| x.sqrt(), |[x, _]| x.sqrt()),
        -0.5 => short!(real, |[x, _]| 1.0 / x.sqrt(), |[x, _]| 1.0 / x.sqrt()),
        -1.0 => short!(real, |[x, _]| 1.0 / x, |[x, _]| 1.0 / x),
        -2.0 => short!(real, |[x, _]| 1.0 / (x * x), |[x, _]| 1.0 / (x * x)),
        _ => number(args, machine, of, of, of),
    }
}
