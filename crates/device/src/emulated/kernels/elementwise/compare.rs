//! Comparisons, logic, bits, and what kind of number a value is.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::Outcome;
use super::number::Number;
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

/// `out = ¬self`: every bit of an integer, the value of a bool.
fn complement(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    if args.tensor(0)?.dtype == DataType::Bool {
        return test1(args, machine, not, not, not);
    }
    bits(args, machine, |[x]: [i64; 1]| !x)
}
