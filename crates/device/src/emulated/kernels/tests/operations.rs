//! Operations element by element: what each computes, on the values where types and formulas differ.

use acl_abi::{DataType, OpId, Scalar, TensorDesc, ops};

use super::super::testing::{A, LAYS, Lab, Lay, Noise, rounded, whole};

use DataType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// Equal, or both NaN; zeros by sign too.
#[track_caller]
pub(super) fn same(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert!(g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan(), "{what}: {got:?} instead of {want:?}");
    }
}

/// A double as a scalar, which is how torch passes every Python float.
pub(super) fn double(value: f64) -> A {
    A::S(Scalar { dtype: F64, bits: value.to_bits() })
}

/// Runs `op` on one row a layout: operands of type `dtype`, output of type `to`.
#[track_caller]
pub(super) fn check(op: OpId, dtype: DataType, to: DataType, operands: &[&[f64]], rest: &[A], want: &[f64]) {
    for lay in LAYS {
        let mut lab = Lab::new();
        let len = want.len() as i64;
        let mut args: Vec<A> =
            operands.iter().map(|v| A::T(lab.tensor_as(dtype, &[len], v, lay))).chain(rest.iter().cloned()).collect();
        let what = format!("{} {dtype:?} → {to:?} {lay:?}", op.name());
        if op.name().starts_with("aclnnInplace") {
            let A::T(first) = args[0] else { panic!() };
            lab.ok(op, &args);
            same(&lab.read(&first), want, &what);
        } else {
            let out = lab.room_as(to, &[len], lay);
            args.push(A::T(out));
            lab.ok(op, &args);
            same(&lab.read(&out), want, &what);
        }
    }
}

#[test]
fn comparisons_of_every_kind() {
    let (a, b) = ([1.0, 2.0, 3.0, NAN, -0.0, INF], [2.0, 2.0, 2.0, NAN, 0.0, INF]);
    type Case = (OpId, OpId, OpId, OpId, [f64; 6]);
    let cases: [Case; 6] = [
        (
            ops::aclnnEqTensor,
            ops::aclnnInplaceEqTensor,
            ops::aclnnEqScalar,
            ops::aclnnInplaceEqScalar,
            [0.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        ),
        (
            ops::aclnnNeTensor,
            ops::aclnnInplaceNeTensor,
            ops::aclnnNeScalar,
            ops::aclnnInplaceNeScalar,
            [1.0, 0.0, 1.0, 1.0, 0.0, 0.0],
        ),
        (
            ops::aclnnLtTensor,
            ops::aclnnInplaceLtTensor,
            ops::aclnnLtScalar,
            ops::aclnnInplaceLtScalar,
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ),
        (
            ops::aclnnLeTensor,
            ops::aclnnInplaceLeTensor,
            ops::aclnnLeScalar,
            ops::aclnnInplaceLeScalar,
            [1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        ),
        (
            ops::aclnnGtTensor,
            ops::aclnnInplaceGtTensor,
            ops::aclnnGtScalar,
            ops::aclnnInplaceGtScalar,
            [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        ),
        (
            ops::aclnnGeTensor,
            ops::aclnnInplaceGeTensor,
            ops::aclnnGeScalar,
            ops::aclnnInplaceGeScalar,
            [0.0, 1.0, 1.0, 0.0, 1.0, 1.0],
        ),
    ];
    for (tensor, tensor_in_place, scalar, scalar_in_place, want) in cases {
        for dtype in [F32, BF16, F16, F64] {
            check(tensor, dtype, Bool, &[&a, &b], &[], &want);
            check(tensor_in_place, dtype, dtype, &[&a, &b], &[], &want);
            check(scalar, dtype, Bool, &[&a[..4]], &[double(2.0)], &[&want[..3], &[want[3]]].concat());
            check(scalar_in_place, dtype, dtype, &[&a[..3]], &[whole(2)], &want[..3]);
        }
        for dtype in [I64, I32, U8] {
            check(tensor, dtype, Bool, &[&a[..3], &b[..3]], &[], &want[..3]);
            check(scalar, dtype, Bool, &[&a[..3]], &[whole(2)], &want[..3]);
        }
    }
}

#[test]
fn comparisons_happen_in_the_common_type() {
    // 0.3 is compared as the 16-bit number next to it.
    let third = rounded(BF16, 0.3);
    check(ops::aclnnEqScalar, BF16, Bool, &[&[third, 0.25]], &[double(0.3)], &[1.0, 0.0]);
    check(ops::aclnnGtScalar, F32, Bool, &[&[f64::from(0.3f32)]], &[double(0.3)], &[0.0]);
    // An integer tensor and a fraction are compared as floats, large integers exactly.
    check(ops::aclnnLtScalar, I64, Bool, &[&[1.0, 2.0]], &[double(1.5)], &[1.0, 0.0]);
    let large = (1i64 << 53) as f64;
    let mut lab = Lab::new();
    let (x, y) = (lab.tensor(I64, &[1], &[large]), lab.tensor(I64, &[1], &[large]));
    let at = (x.addr - crate::emulated::hbm::PHYS_BASE) as usize / 8;
    lab.machine.hbm.elements_mut::<i64>()[at] += 1;
    let out = lab.room(Bool, &[1]);
    lab.ok(ops::aclnnGtTensor, &[A::T(x), A::T(y), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0]);
    // A 0-d tensor of a wider type does not widen the others.
    let (x, zero_dim) = (lab.tensor(BF16, &[2], &[third, 1.0]), lab.tensor(F64, &[], &[0.3]));
    let out = lab.room(Bool, &[2]);
    lab.ok(ops::aclnnEqTensor, &[A::T(x), A::T(zero_dim), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, 0.0]);
}

#[test]
fn logic_treats_everything_but_zero_as_true() {
    let (a, b) = ([0.0, 0.0, 0.5, NAN], [0.0, -2.0, 0.0, 1.0]);
    for (op, want) in [
        (ops::aclnnLogicalAnd, [0.0, 0.0, 0.0, 1.0]),
        (ops::aclnnLogicalOr, [0.0, 1.0, 1.0, 1.0]),
        (ops::aclnnLogicalXor, [0.0, 1.0, 1.0, 0.0]),
    ] {
        check(op, F32, Bool, &[&a, &b], &[], &want);
        check(op, BF16, Bool, &[&a, &b], &[], &want);
    }
    check(ops::aclnnLogicalNot, F16, Bool, &[&a], &[], &[1.0, 1.0, 0.0, 0.0]);
    check(ops::aclnnInplaceLogicalNot, I32, I32, &[&[0.0, 7.0]], &[], &[1.0, 0.0]);
    check(ops::aclnnInplaceLogicalAnd, Bool, Bool, &[&[0.0, 1.0], &[1.0, 1.0]], &[], &[0.0, 1.0]);
    check(ops::aclnnInplaceLogicalOr, Bool, Bool, &[&[0.0, 1.0], &[1.0, 1.0]], &[], &[1.0, 1.0]);
}

#[test]
fn bits_of_integers_and_bools() {
    for dtype in [I64, I32, I16, I8] {
        let (a, b) = ([12.0, -1.0, 5.0], [10.0, 7.0, -8.0]);
        check(ops::aclnnBitwiseAndTensor, dtype, dtype, &[&a, &b], &[], &[8.0, 7.0, 0.0]);
        check(ops::aclnnBitwiseOrTensor, dtype, dtype, &[&a, &b], &[], &[14.0, -1.0, -3.0]);
        check(ops::aclnnBitwiseXorTensor, dtype, dtype, &[&a, &b], &[], &[6.0, -8.0, -3.0]);
        check(ops::aclnnBitwiseAndScalar, dtype, dtype, &[&a], &[whole(6)], &[4.0, 6.0, 4.0]);
        check(ops::aclnnInplaceBitwiseXorScalar, dtype, dtype, &[&a], &[whole(1)], &[13.0, -2.0, 4.0]);
        check(ops::aclnnBitwiseNot, dtype, dtype, &[&a], &[], &[-13.0, 0.0, -6.0]);
    }
    check(ops::aclnnBitwiseNot, U8, U8, &[&[0.0, 250.0]], &[], &[255.0, 5.0]);
    check(ops::aclnnBitwiseNot, Bool, Bool, &[&[0.0, 1.0]], &[], &[1.0, 0.0]);
    let (a, b) = ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]);
    check(ops::aclnnBitwiseAndTensor, Bool, Bool, &[&a, &b], &[], &[0.0, 0.0, 0.0, 1.0]);
    check(ops::aclnnBitwiseOrTensor, Bool, Bool, &[&a, &b], &[], &[0.0, 1.0, 1.0, 1.0]);
    check(ops::aclnnInplaceBitwiseXorTensor, Bool, Bool, &[&a, &b], &[], &[0.0, 1.0, 1.0, 0.0]);
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[1], &[1.0]);
    lab.refused(ops::aclnnBitwiseNot, &[A::T(x), A::T(x)], "type float32 is not supported");
}

#[test]
fn quotients_round_as_their_mode_says() {
    let (a, b) = ([7.0, -7.0, 7.0, -7.0, 6.0], [2.0, 2.0, -2.0, -2.0, -3.0]);
    for dtype in [F32, BF16, F64, I64, I32, I8] {
        check(ops::aclnnDivMod, dtype, dtype, &[&a, &b], &[A::I(1)], &[3.0, -3.0, -3.0, 3.0, -2.0]);
        check(ops::aclnnDivMod, dtype, dtype, &[&a, &b], &[A::I(2)], &[3.0, -4.0, -4.0, 3.0, -2.0]);
        check(ops::aclnnFloorDivide, dtype, dtype, &[&a, &b], &[], &[3.0, -4.0, -4.0, 3.0, -2.0]);
        check(ops::aclnnInplaceDivMods, dtype, dtype, &[&a], &[whole(2), A::I(2)], &[3.0, -4.0, 3.0, -4.0, 3.0]);
        check(ops::aclnnInplaceFloorDivides, dtype, dtype, &[&a], &[whole(-2)], &[-4.0, 3.0, -4.0, 3.0, -3.0]);
    }
    check(ops::aclnnDivMod, I32, F32, &[&a, &b], &[A::I(0)], &[3.5, -3.5, -3.5, 3.5, -2.0]);
    check(ops::aclnnDivs, I64, F32, &[&[7.0, -1.0]], &[whole(2)], &[3.5, -0.5]);
    check(ops::aclnnInplaceDivs, F32, F32, &[&[7.0, -1.0]], &[double(2.0)], &[3.5, -0.5]);
    check(ops::aclnnDivs, F32, F32, &[&[1.0, -1.0, 0.0]], &[whole(0)], &[INF, -INF, NAN]);
    check(ops::aclnnFloorDivide, F32, F32, &[&[1.0, -1.0, INF], &[0.0, 0.0, 2.0]], &[], &[INF, -INF, NAN]);
    check(ops::aclnnFloorDivide, I32, I32, &[&[5.0, -2_147_483_648.0], &[0.0, -1.0]], &[], &[0.0, -2_147_483_648.0]);
    // 0.9 / 0.1 is 9 in single precision, but 0.1 goes only eight times into 0.9.
    check(ops::aclnnFloorDivides, F32, F32, &[&[f64::from(0.9f32)]], &[double(0.1)], &[8.0]);
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[1], &[1.0]);
    lab.refused(ops::aclnnDivMods, &[A::T(x), whole(1), A::I(3), A::T(x)], "mode: 3 is not");
}

#[test]
fn remainders_take_the_sign_of_one_side() {
    let (a, b) = ([7.0, -7.0, 7.0, -7.0], [3.0, 3.0, -3.0, -3.0]);
    for dtype in [F32, F16, F64, I64, I8] {
        check(ops::aclnnFmodTensor, dtype, dtype, &[&a, &b], &[], &[1.0, -1.0, 1.0, -1.0]);
        check(ops::aclnnRemainderTensorTensor, dtype, dtype, &[&a, &b], &[], &[1.0, 2.0, -2.0, -1.0]);
        check(ops::aclnnInplaceFmodScalar, dtype, dtype, &[&a], &[whole(-4)], &[3.0, -3.0, 3.0, -3.0]);
        check(ops::aclnnInplaceRemainderTensorScalar, dtype, dtype, &[&a], &[whole(-4)], &[-1.0, -3.0, -1.0, -3.0]);
    }
    check(ops::aclnnRemainderTensorTensor, I64, I64, &[&[5.0], &[0.0]], &[], &[0.0]);
    check(ops::aclnnRemainderTensorTensor, F32, F32, &[&[5.0, INF], &[0.0, 2.0]], &[], &[NAN, NAN]);
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(I64, &[2], &[3.0, -4.0]), lab.room(I64, &[2]));
    lab.ok(ops::aclnnRemainderScalarTensor, &[whole(7), A::T(x), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, -1.0]);
}

#[test]
fn sums_and_differences_with_scalars() {
    check(ops::aclnnSubs, F32, F32, &[&[1.0, 2.0]], &[double(0.5), whole(2)], &[0.0, 1.0]);
    check(ops::aclnnRsubs, I64, I64, &[&[1.0, 5.0]], &[whole(3), whole(1)], &[2.0, -2.0]);
    check(ops::aclnnRsub, F32, F32, &[&[1.0, 2.0], &[3.0, 3.0]], &[whole(2)], &[1.0, -1.0]);
    check(ops::aclnnRsubs, Bool, F32, &[&[1.0, 0.0]], &[double(1.0), whole(1)], &[0.0, 1.0]);
    check(ops::aclnnInplaceAdds, U8, U8, &[&[250.0]], &[whole(10), whole(1)], &[4.0]);
    check(ops::aclnnInplaceSubs, F32, F32, &[&[1.0]], &[whole(3), whole(1)], &[-2.0]);
    check(ops::aclnnInplaceMuls, BF16, BF16, &[&[3.0]], &[double(0.1)], &[rounded(BF16, 3.0 * 0.1f32)]);
    check(ops::aclnnInplaceAdd, F16, F16, &[&[1.0], &[2.0]], &[double(0.5)], &[2.0]);
    check(ops::aclnnInplaceSub, I32, I32, &[&[1.0], &[2.0]], &[whole(3)], &[-5.0]);
    check(ops::aclnnInplaceMul, I8, I8, &[&[100.0], &[3.0]], &[], &[44.0]);
    check(ops::aclnnInplaceDiv, F64, F64, &[&[1.0], &[3.0]], &[], &[1.0 / 3.0]);
}

#[test]
fn powers_of_every_kind() {
    for (exponent, want) in [
        (2.0, [4.0, 2.25, 0.0]),
        (3.0, [8.0, -3.375, 0.0]),
        (0.5, [2f64.sqrt(), NAN, 0.0]),
        (-0.5, [1.0 / 2f64.sqrt(), NAN, INF]),
        (-1.0, [0.5, -1.0 / 1.5, INF]),
        (-2.0, [0.25, 1.0 / 2.25, INF]),
        (0.0, [1.0, 1.0, 1.0]),
        (1.5, [2f64.powf(1.5), NAN, 0.0]),
    ] {
        for (dtype, tolerance) in [(F64, 1e-15), (F32, 1e-7)] {
            let mut lab = Lab::new();
            let (x, out) = (lab.tensor(dtype, &[3], &[2.0, -1.5, 0.0]), lab.room(dtype, &[3]));
            lab.ok(ops::aclnnPowTensorScalar, &[A::T(x), double(exponent), A::T(out)]);
            for (g, w) in lab.read(&out).into_iter().zip(want) {
                let near = (g - w).abs() <= tolerance * w.abs() || g == w || g.is_nan() && w.is_nan();
                assert!(near, "{dtype:?} to {exponent}: {g} instead of {w}");
            }
        }
    }
    check(ops::aclnnPowTensorScalar, I64, I64, &[&[3.0, -2.0]], &[whole(3)], &[27.0, -8.0]);
    check(ops::aclnnPowTensorScalar, I8, I8, &[&[3.0]], &[whole(5)], &[-13.0]);
    check(ops::aclnnPowTensorScalar, I64, F32, &[&[4.0]], &[double(0.5)], &[2.0]);
    let (base, power) = ([1.0, -1.0, -1.0, 2.0, 0.0, 5.0], [-3.0, -3.0, -2.0, -1.0, 0.0, 2.0]);
    check(ops::aclnnPowTensorTensor, I64, I64, &[&base, &power], &[], &[1.0, -1.0, 1.0, 0.0, 1.0, 25.0]);
    check(ops::aclnnInplacePowTensorTensor, F32, F32, &[&[2.0, 9.0], &[10.0, 0.5]], &[], &[1024.0, 3.0]);
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(F32, &[2], &[3.0, -1.0]), lab.room(F32, &[2]));
    lab.ok(ops::aclnnPowScalarTensor, &[whole(2), A::T(x), A::T(out)]);
    assert_eq!(lab.read(&out), [8.0, 0.5]);
    let int = lab.tensor(I32, &[1], &[2.0]);
    lab.refused(ops::aclnnPowTensorScalar, &[A::T(int), whole(-1), A::T(int)], "negative power -1");
}

#[test]
fn extrema_keep_nan_and_clamps_prefer_the_upper_bound() {
    let (a, b) = ([1.0, NAN, 3.0, -INF], [2.0, 1.0, NAN, 5.0]);
    for dtype in [F32, BF16, F16, F64] {
        check(ops::aclnnMaximum, dtype, dtype, &[&a, &b], &[], &[2.0, NAN, NAN, 5.0]);
        check(ops::aclnnMinimum, dtype, dtype, &[&a, &b], &[], &[1.0, NAN, NAN, -INF]);
        check(ops::aclnnClamp, dtype, dtype, &[&a], &[double(0.0), double(2.0)], &[1.0, NAN, 2.0, 0.0]);
        check(ops::aclnnClamp, dtype, dtype, &[&a], &[A::Null, double(2.0)], &[1.0, NAN, 2.0, -INF]);
        check(ops::aclnnClamp, dtype, dtype, &[&a], &[double(2.0), A::Null], &[2.0, NAN, 3.0, 2.0]);
        check(ops::aclnnClamp, dtype, dtype, &[&a], &[double(5.0), double(2.0)], &[2.0, NAN, 2.0, 2.0]);
        check(ops::aclnnClampMin, dtype, dtype, &[&a], &[double(2.0)], &[2.0, NAN, 3.0, 2.0]);
        check(ops::aclnnInplaceClampMax, dtype, dtype, &[&a], &[double(2.0)], &[1.0, NAN, 2.0, -INF]);
        check(ops::aclnnClampMinTensor, dtype, dtype, &[&a, &b], &[], &[2.0, NAN, NAN, 5.0]);
        check(ops::aclnnInplaceClampMaxTensor, dtype, dtype, &[&a, &b], &[], &[1.0, NAN, NAN, -INF]);
        check(ops::aclnnClampTensor, dtype, dtype, &[&[0.0, 9.0], &[1.0, 1.0], &[3.0, 3.0]], &[], &[1.0, 3.0]);
    }
    check(ops::aclnnMaximum, I64, I64, &[&[1.0, -5.0], &[0.0, -4.0]], &[], &[1.0, -4.0]);
    check(ops::aclnnClamp, I64, I64, &[&[-9.0, 9.0, 1.0]], &[A::Null, whole(3)], &[-9.0, 3.0, 1.0]);
    check(ops::aclnnClampMin, I32, I32, &[&[-9.0, 9.0]], &[whole(0)], &[0.0, 9.0]);
    check(ops::aclnnHardtanh, I64, I64, &[&[-9.0, 0.0, 9.0]], &[double(-0.5), double(2.5)], &[0.0, 0.0, 2.0]);
    check(ops::aclnnClamp, I64, F32, &[&[-9.0, 9.0]], &[double(0.5), double(2.5)], &[0.5, 2.5]);
}

#[test]
fn a_condition_chooses_and_does_not_promote() {
    let mut lab = Lab::new();
    for (dtype, a, b) in [(F32, [NAN, 1.0], [2.0, INF]), (BF16, [1.0, 2.0], [3.0, 4.0]), (I64, [1.0, 2.0], [3.0, 4.0])]
    {
        let condition = lab.tensor(Bool, &[2, 1], &[1.0, 0.0]);
        let (x, y) = (lab.tensor(dtype, &[2], &a), lab.tensor(dtype, &[1, 2], &b));
        let out = lab.room(dtype, &[2, 2]);
        lab.ok(ops::aclnnSWhere, &[A::T(condition), A::T(x), A::T(y), A::T(out)]);
        same(&lab.read(&out), &[a[0], a[1], b[0], b[1]], "where");
    }
    let flags = lab.tensor(Bool, &[2], &[1.0, 0.0]);
    let (x, y) = (lab.tensor(Bool, &[2], &[1.0, 1.0]), lab.tensor(Bool, &[2], &[0.0, 0.0]));
    lab.ok(ops::aclnnSWhere, &[A::T(flags), A::T(x), A::T(y), A::T(x)]);
    assert_eq!(lab.read(&x), [1.0, 0.0], "over an operand");
}

#[test]
fn masked_fill_changes_what_the_mask_names() {
    for lay in LAYS {
        for (dtype, value, filled) in [
            (F32, double(-INF), -INF),
            (BF16, double(0.3), rounded(BF16, 0.3)),
            (I64, whole(-7), -7.0),
            (I32, double(2.9), 2.0),
        ] {
            let mut lab = Lab::new();
            let x = lab.tensor_as(dtype, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], lay);
            let mask = lab.tensor(Bool, &[3], &[0.0, 1.0, 0.0]);
            lab.ok(ops::aclnnInplaceMaskedFillScalar, &[A::T(x), A::T(mask), value]);
            same(&lab.read(&x), &[1.0, filled, 3.0, 4.0, filled, 6.0], "masked fill");
        }
    }
    let mut lab = Lab::new();
    let (x, mask) = (lab.tensor(F16, &[2], &[1.0, 2.0]), lab.tensor(Bool, &[1], &[1.0]));
    let (value, many) = (lab.tensor(F32, &[], &[9.0]), lab.tensor(F32, &[2], &[9.0, 9.0]));
    lab.ok(ops::aclnnInplaceMaskedFillTensor, &[A::T(x), A::T(mask), A::T(value)]);
    assert_eq!(lab.read(&x), [9.0, 9.0]);
    lab.refused(ops::aclnnInplaceMaskedFillTensor, &[A::T(x), A::T(mask), A::T(many)], "value: shape [2]");
    let wide = lab.tensor(Bool, &[3, 2], &[1.0; 6]);
    lab.refused(ops::aclnnInplaceMaskedFillScalar, &[A::T(x), A::T(wide), whole(1)], "mask: shape [2], want [3, 2]");
}

#[test]
fn expanded_and_empty_operands() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[3], &[1.0, 2.0, 3.0]);
    let mut expanded = TensorDesc { ndim: 2, ..x };
    expanded.dims[..2].copy_from_slice(&[2, 3]);
    expanded.strides[..2].copy_from_slice(&[0, 1]);
    let mut one = TensorDesc { ndim: 2, ..x };
    one.dims[..2].copy_from_slice(&[2, 3]);
    one.strides[..2].copy_from_slice(&[0, 0]);
    let out = lab.room_as(F32, &[2, 3], Lay::Reversed);
    lab.ok(ops::aclnnMaximum, &[A::T(expanded), A::T(one), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    let (none, row) = (lab.room(F32, &[0, 3]), lab.room(Bool, &[0, 3]));
    lab.ok(ops::aclnnGtTensor, &[A::T(none), A::T(x), A::T(row)]);
    lab.ok(ops::aclnnInplaceExp, &[A::T(none)]);
    let (zero_dim, flag) = (lab.tensor(F32, &[], &[-2.0]), lab.room(Bool, &[]));
    lab.ok(ops::aclnnLtScalar, &[A::T(zero_dim), double(0.0), A::T(flag)]);
    assert_eq!(lab.read(&flag), [1.0]);
    lab.refused(ops::aclnnInplaceExp, &[A::T(expanded)], "cannot be expanded");
    let wide = lab.tensor(F32, &[2, 3], &[0.0; 6]);
    lab.refused(ops::aclnnInplaceMul, &[A::T(x), A::T(wide)], "selfRef: shape [3], want [2, 3]");
    let complex = A::S(Scalar { dtype: DataType::Complex64, bits: 0 });
    lab.refused(ops::aclnnMuls, &[A::T(x), complex, A::T(x)], "other: type complex64 is not supported");
}

#[test]
fn threads_share_large_operations_and_change_no_bit() {
    // Rows that are shared, in pieces and blocks that do not divide evenly; a column broadcast; in place.
    let (rows, columns) = (3, 500_000);
    let values = Noise::new(4).fractions(rows * columns);
    let run = |helpers| {
        let mut lab = Lab::with_helpers(helpers);
        let dims = [rows as i64, columns as i64];
        let x = lab.tensor(F32, &dims, &values);
        let column = lab.tensor(F32, &[rows as i64, 1], &[0.5, -1.0, 3.0]);
        let out = lab.room_as(F32, &dims, Lay::Sliced);
        lab.ok(ops::aclnnMul, &[A::T(x), A::T(column), A::T(out)]);
        lab.ok(ops::aclnnInplaceTanh, &[A::T(x)]);
        (lab.read(&out), lab.read(&x))
    };
    let (alone, together) = (run(0), run(1));
    assert_eq!(alone, together);
    for i in [0, 499_999, 500_000, 1_499_999] {
        let factor = [0.5, -1.0, 3.0][i / columns];
        assert_eq!(together.0[i], f64::from(values[i] as f32 * factor as f32));
        assert!((together.1[i] - values[i].tanh()).abs() < 1e-6);
    }
}

#[test]
fn casts_between_every_pair_of_types() {
    let types = [F32, F16, BF16, F64, I8, I16, I32, I64, U8, Bool];
    for from in types {
        for to in types {
            let values = if from == Bool { [1.0, 0.0] } else { [3.0, 0.0] };
            let want = if to == Bool { [1.0, 0.0] } else { values };
            let mut lab = Lab::new();
            let (x, out) = (lab.tensor_as(from, &[2], &values, Lay::Sliced), lab.room(to, &[2]));
            lab.ok(ops::aclnnCast, &[A::T(x), A::D(to), A::T(out)]);
            assert_eq!(lab.read(&out), want, "{from:?} → {to:?}");
        }
    }
    // Floats that a narrow integer does not hold wrap, as torch's conversion by way of 64 bits does.
    for (to, want) in [(U8, [255.0, 44.0, 0.0]), (I8, [-1.0, 44.0, 0.0]), (I16, [-1.0, 300.0, 0.0])] {
        let mut lab = Lab::new();
        let (x, out) = (lab.tensor(F32, &[3], &[-1.0, 300.5, -0.5]), lab.room(to, &[3]));
        lab.ok(ops::aclnnCast, &[A::T(x), A::D(to), A::T(out)]);
        assert_eq!(lab.read(&out), want, "{to:?}");
    }
}
