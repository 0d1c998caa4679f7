//! Comparisons, logic, bits, and what kind of number a value is.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Outcome, ensure};
use super::super::lane::{Class, class};
use super::super::nest::{CHUNK, Nest, store_all};
use super::super::view::View;
use super::number::{Number, Real};
use super::promote::promote;
use super::{DataType, bits, operators, test1};

operators! {
    test equal => aclnnEqTensor aclnnEqScalar aclnnInplaceEqTensor aclnnInplaceEqScalar;
    test unequal => aclnnNeTensor aclnnNeScalar aclnnInplaceNeTensor aclnnInplaceNeScalar;
    test less => aclnnLtTensor aclnnLtScalar aclnnInplaceLtTensor aclnnInplaceLtScalar;
    test less_equal => aclnnLeTensor aclnnLeScalar aclnnInplaceLeTensor aclnnInplaceLeScalar;
    test greater => aclnnGtTensor aclnnGtScalar aclnnInplaceGtTensor aclnnInplaceGtScalar;
    test greater_equal => aclnnGeTensor aclnnGeScalar aclnnInplaceGeTensor aclnnInplaceGeScalar;
    test both => aclnnLogicalAnd aclnnInplaceLogicalAnd;
    test either => aclnnLogicalOr aclnnInplaceLogicalOr;
    test one => aclnnLogicalXor;
    test1 not => aclnnLogicalNot aclnnInplaceLogicalNot;
    test1 is_finite => aclnnIsFinite;
    test1 is_negative_infinity => aclnnIsNegInf;
    test1 is_positive_infinity => aclnnIsPosInf;
    test1 is_signed => aclnnSignbit;
    real_test close => aclnnIsClose;
    custom all_equal => aclnnEqual;
    bits gcd => aclnnGcd;
    custom left_shift => aclnnLeftShift aclnnLeftShifts;
    custom right_shift => aclnnRightShift;
    bits and => aclnnBitwiseAndTensor aclnnBitwiseAndScalar aclnnInplaceBitwiseAndTensor aclnnInplaceBitwiseAndScalar;
    bits or => aclnnBitwiseOrTensor aclnnBitwiseOrScalar;
    bits xor => aclnnBitwiseXorTensor aclnnBitwiseXorScalar aclnnInplaceBitwiseXorTensor aclnnInplaceBitwiseXorScalar;
    custom complement => aclnnBitwiseNot;
}

fn equal<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a == b)
}

fn unequal<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a != b)
}

fn less<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a < b)
}

fn less_equal<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a <= b)
}

fn greater<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a > b)
}

fn greater_equal<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a >= b)
}

fn both<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a.holds() & b.holds())
}

fn either<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a.holds() | b.holds())
}

fn one<T: Number>([a, b]: [T; 2]) -> T {
    T::truth(a.holds() ^ b.holds())
}

fn not<T: Number>(x: T) -> T {
    T::truth(!x.holds())
}

fn is_finite<T: Number>(x: T) -> T {
    T::truth(x.is_finite())
}

fn is_negative_infinity<T: Number>(x: T) -> T {
    T::truth(!x.is_finite() && x < T::default())
}

fn is_positive_infinity<T: Number>(x: T) -> T {
    T::truth(!x.is_finite() && x > T::default())
}

fn is_signed<T: Number>(x: T) -> T {
    T::truth(x.is_signed())
}

fn and([a, b]: [i64; 2]) -> i64 {
    a & b
}

fn or([a, b]: [i64; 2]) -> i64 {
    a | b
}

fn xor([a, b]: [i64; 2]) -> i64 {
    a ^ b
}

/// `|a − b| ≤ atol + rtol·|b|`; equal infinities are close, NaN only if asked for.
fn close<T: Real>([a, b, rtol, atol, equal_nan]: [T; 5]) -> T {
    let gap = Number::abs(a - b);
    let near = gap.is_finite() && gap <= atol + Number::abs(rtol * b);
    T::truth(a == b || near || equal_nan.holds() && a.is_nan() && b.is_nan())
}

/// Greatest common divisor, not negative.
fn gcd([a, b]: [i64; 2]) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a as i64
}

/// Bits of the type that `self` and the distance of a shift compute in.
fn shifted_bits(args: &Args<'_>) -> Outcome<i64> {
    let own = args.tensor(0)?.dtype;
    let dtype = args.tensor(1).map_or(own, |distance| promote(own, distance.dtype));
    Ok(i64::from(dtype.bits()))
}

/// `self · 2^distance`; 0 where the distance is negative or shifts out every bit.
fn left_shift(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let width = shifted_bits(args)?;
    bits(args, machine, |[x, by]| if (0..width).contains(&by) { x.wrapping_shl(by as u32) } else { 0 })
}

/// `⌊self / 2^distance⌋`; the sign alone where the distance is negative or shifts out every bit.
fn right_shift(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let width = shifted_bits(args)?;
    bits(args, machine, |[x, by]| if (0..width).contains(&by) { x >> by } else { x >> 63 })
}

/// `out[0]`: whether two tensors have one shape and the same values.
fn all_equal(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn differ<L: Number>(machine: &Machine, a: &View, b: &View) -> Outcome<bool> {
        let (mut x, mut y) = ([L::default(); CHUNK], [L::default(); CHUNK]);
        let mut differ = false;
        Nest::new(a.dims(), [a, b])?.rows(|[a, b]| {
            for from in (0..a.len).step_by(CHUNK) {
                let n = CHUNK.min(a.len - from);
                a.load(&machine.hbm, from, &mut x[..n]);
                b.load(&machine.hbm, from, &mut y[..n]);
                differ |= x[..n].iter().zip(&y[..n]).any(|(x, y)| x != y);
            }
        });
        Ok(differ)
    }
    let (a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    ensure!(out.elements() == 1, "out: shape {:?}, want one element", out.dims());
    let differ = a.dims() != b.dims()
        || match class(promote(a.dtype, b.dtype)) {
            Class::Int => differ::<i64>(machine, &a, &b)?,
            Class::Single => differ::<f32>(machine, &a, &b)?,
            Class::Double => differ::<f64>(machine, &a, &b)?,
        };
    store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(i64::from(!differ)))
}

/// `out = ¬self`: every bit of an integer, the value of a bool.
fn complement(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    if args.tensor(0)?.dtype == DataType::Bool {
        return test1(args, machine, not, not, not);
    }
    bits(args, machine, |[x]: [i64; 1]| !x)
}
