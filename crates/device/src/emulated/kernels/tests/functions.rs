//! Functions of one and two numbers.

use acl_abi::{DataType, OpId, ops};

use super::super::testing::{A, LAYS, Lab, Lay, Noise, close};
use super::operations::{check, double, same};

use DataType::{BF16, Bool, F16, F32, F64, I8, I32, I64, U8};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

#[test]
fn roundings_and_signs() {
    let x = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -0.0, INF, NAN];
    for dtype in [F32, BF16, F16, F64] {
        for (op, want) in [
            (ops::aclnnAbs, [2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 0.0, INF, NAN]),
            (ops::aclnnNeg, [2.5, 1.5, 0.5, -0.5, -1.5, -2.5, 0.0, -INF, NAN]),
            (ops::aclnnCeil, [-2.0, -1.0, -0.0, 1.0, 2.0, 3.0, -0.0, INF, NAN]),
            (ops::aclnnFloor, [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, -0.0, INF, NAN]),
            (ops::aclnnRound, [-2.0, -2.0, -0.0, 0.0, 2.0, 2.0, -0.0, INF, NAN]),
            (ops::aclnnTrunc, [-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, -0.0, INF, NAN]),
        ] {
            check(op, dtype, dtype, &[&x], &[], &want);
        }
        check(ops::aclnnIsFinite, dtype, Bool, &[&x], &[], &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        check(ops::aclnnIsPosInf, dtype, Bool, &[&[INF, -INF, NAN, 1.0]], &[], &[1.0, 0.0, 0.0, 0.0]);
        check(ops::aclnnIsNegInf, dtype, Bool, &[&[INF, -INF, NAN, 1.0]], &[], &[0.0, 1.0, 0.0, 0.0]);
        check(ops::aclnnSignbit, dtype, Bool, &[&[-0.0, 0.0, -INF, 1.0]], &[], &[1.0, 0.0, 1.0, 0.0]);
        check(ops::aclnnRelu, dtype, dtype, &[&[-1.0, 2.0, NAN]], &[], &[0.0, 2.0, NAN]);
    }
    check(ops::aclnnAbs, I8, I8, &[&[-128.0, -3.0, 3.0]], &[], &[-128.0, 3.0, 3.0]);
    check(ops::aclnnNeg, U8, U8, &[&[1.0, 0.0]], &[], &[255.0, 0.0]);
    check(ops::aclnnFloor, I32, I32, &[&[-3.0, 4.0]], &[], &[-3.0, 4.0]);
    check(ops::aclnnInplaceRelu, I32, I32, &[&[-3.0, 4.0]], &[], &[0.0, 4.0]);
    check(ops::aclnnIsFinite, I64, Bool, &[&[-3.0, 0.0]], &[], &[1.0, 1.0]);
}

#[test]
fn functions_match_their_definitions() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let phi = |x: f64| 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
    let tanh_form =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    type Case = (OpId, Vec<A>, Box<dyn Fn(f64) -> f64>);
    let cases: Vec<Case> = vec![
        (ops::aclnnCos, vec![], Box::new(f64::cos)),
        (ops::aclnnInplaceCos, vec![], Box::new(f64::cos)),
        (ops::aclnnSin, vec![], Box::new(f64::sin)),
        (ops::aclnnExp, vec![], Box::new(f64::exp)),
        (ops::aclnnInplaceExp, vec![], Box::new(f64::exp)),
        (ops::aclnnTanh, vec![], Box::new(f64::tanh)),
        (ops::aclnnSigmoid, vec![], Box::new(sigmoid)),
        (ops::aclnnSilu, vec![], Box::new(move |x| x * sigmoid(x))),
        (ops::aclnnGelu, vec![], Box::new(move |x| x * phi(x))),
        (ops::aclnnGeluV2, vec![A::I(0)], Box::new(move |x| x * phi(x))),
        (ops::aclnnGeluV2, vec![A::I(1)], Box::new(tanh_form)),
        (ops::aclnnFastGelu, vec![], Box::new(move |x| x * sigmoid(1.702 * x))),
        (ops::aclnnTan, vec![], Box::new(|x| (x / 2.0).sin() * 2.0 * (x / 2.0).cos() / x.cos())),
        (ops::aclnnAtan, vec![], Box::new(f64::atan)),
        (ops::aclnnSinh, vec![], Box::new(|x| (x.exp() - (-x).exp()) / 2.0)),
        (ops::aclnnCosh, vec![], Box::new(|x| (x.exp() + (-x).exp()) / 2.0)),
        (ops::aclnnAsinh, vec![], Box::new(|x| x.signum() * (x.abs() + (x * x + 1.0).sqrt()).ln())),
        (ops::aclnnErf, vec![], Box::new(libm::erf)),
        (ops::aclnnErfc, vec![], Box::new(|x| 1.0 - libm::erf(x))),
        (ops::aclnnExp2, vec![], Box::new(f64::exp2)),
        (ops::aclnnExpm1, vec![], Box::new(f64::exp_m1)),
        (
            ops::aclnnSinc,
            vec![],
            Box::new(|x| if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) }),
        ),
        (ops::aclnnLog2, vec![], Box::new(f64::log2)),
        (ops::aclnnLog10, vec![], Box::new(f64::log10)),
        (ops::aclnnSqrt, vec![], Box::new(f64::sqrt)),
        (ops::aclnnRsqrt, vec![], Box::new(|x| 1.0 / x.sqrt())),
        (ops::aclnnInplaceLog, vec![], Box::new(f64::ln)),
    ];
    let mut noise = Noise::new(3);
    for (op, rest, reference) in cases {
        for (dtype, tolerance) in [(F32, 1e-6), (BF16, 4e-3), (F16, 5e-4), (F64, 1e-14)] {
            for lay in LAYS {
                let mut lab = Lab::new();
                let positive = reference(-1.0).is_nan();
                // More than one piece, and not a multiple of one.
                let values: Vec<f64> =
                    noise.values(1300).iter().map(|v| if positive { v.abs() + 0.125 } else { *v }).collect();
                let x = lab.tensor_as(dtype, &[13, 100], &values, lay);
                let mut args = vec![A::T(x)];
                args.extend(rest.iter().cloned());
                let out = if op.name().starts_with("aclnnInplace") { x } else { lab.room_as(dtype, &[13, 100], lay) };
                if out != x {
                    args.push(A::T(out));
                }
                lab.ok(op, &args);
                let want: Vec<f64> = values.iter().map(|v| reference(*v)).collect();
                close(&lab.read(&out), &want, tolerance);
            }
        }
        if op != ops::aclnnGeluV2 && !op.name().starts_with("aclnnInplace") {
            let mut lab = Lab::new();
            let (x, out) = (lab.tensor(I64, &[2], &[1.0, 2.0]), lab.room(F32, &[2]));
            lab.ok(op, &[A::T(x), A::T(out)]);
            close(&lab.read(&out), &[reference(1.0), reference(2.0)], 1e-6);
        }
    }
}

#[test]
fn functions_with_narrow_domains() {
    let points = [-0.96875, -0.5, -0.0625, 0.0625, 0.25, 0.875];
    for (dtype, tolerance) in [(F32, 2e-6), (F64, 1e-12)] {
        let mut lab = Lab::new();
        let (x, y, z) = (lab.tensor(dtype, &[6], &points), lab.room(dtype, &[6]), lab.room(dtype, &[6]));
        // What one gives, the other takes back.
        for (there, back) in [
            (ops::aclnnAsin, ops::aclnnSin),
            (ops::aclnnAcos, ops::aclnnCos),
            (ops::aclnnAtanh, ops::aclnnTanh),
            (ops::aclnnErfinv, ops::aclnnErf),
            (ops::aclnnLog1p, ops::aclnnExpm1),
        ] {
            lab.ok(there, &[A::T(x), A::T(y)]);
            lab.ok(back, &[A::T(y), A::T(z)]);
            close(&lab.read(&z), &points, tolerance);
            assert!(lab.read(&y).iter().zip(points).any(|(y, x)| (y - x).abs() > 0.05), "{}", there.name());
        }
        let edge = lab.tensor(dtype, &[6], &[-1.0, 1.0, 2.0, NAN, 0.0, 1.0 - 1e-6]);
        lab.ok(ops::aclnnErfinv, &[A::T(edge), A::T(y)]);
        same(&lab.read(&y)[..5], &[-INF, INF, NAN, NAN, 0.0], "inverse of the error function");
        lab.ok(ops::aclnnErfc, &[A::T(y), A::T(z)]);
        let left = 1.0 - lab.read(&edge)[5];
        assert!((lab.read(&z)[5] / left - 1.0).abs() < 1e-4, "the digits near 1 are kept");
        let more = lab.tensor(dtype, &[6], &[1.0, 1.5, 2.0, 4.0, 8.0, 100.0]);
        lab.ok(ops::aclnnAcosh, &[A::T(more), A::T(y)]);
        lab.ok(ops::aclnnCosh, &[A::T(y), A::T(z)]);
        close(&lab.read(&z), &lab.read(&more), 1e-5);
    }
    let p = [0.25, 0.75, 0.0, 1.0, 0.001, 1.5];
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(F64, &[6], &p), lab.room(F64, &[6]));
    lab.ok(ops::aclnnLogit, &[A::T(x), A::F(-1.0), A::T(out)]);
    let third = 3f64.ln();
    let got = lab.read(&out);
    close(&got[..2], &[-third, third], 1e-12);
    same(&[got[2], got[3], got[5]], &[-INF, INF, NAN], "logit");
    lab.ok(ops::aclnnLogit, &[A::T(x), A::F(0.25), A::T(out)]);
    close(&lab.read(&out), &[-third, third, -third, third, -third, third], 1e-12);
    lab.ok(ops::aclnnLogit, &[A::T(x), A::F(0.75), A::T(out)]);
    close(&lab.read(&out), &[third, -third, third, -third, third, -third], 1e-12);
}

#[test]
fn functions_of_two_numbers() {
    let quarter = std::f64::consts::FRAC_PI_4;
    check(
        ops::aclnnAtan2,
        F64,
        F64,
        &[&[1.0, -1.0, 0.0, 0.0], &[1.0, -1.0, -1.0, 1.0]],
        &[],
        &[quarter, -3.0 * quarter, 4.0 * quarter, 0.0],
    );
    check(
        ops::aclnnLogAddExp,
        F32,
        F32,
        &[&[INF, -INF, NAN, 100.0], &[INF, -INF, 1.0, -100.0]],
        &[],
        &[INF, -INF, NAN, 100.0],
    );
    check(ops::aclnnLogAddExp2, F32, F32, &[&[3.0, 0.0, -INF], &[3.0, 0.0, 2.0]], &[], &[4.0, 1.0, 2.0]);
    check(ops::aclnnXLogYTensor, F32, F32, &[&[0.0, 0.0, 2.0, 0.0], &[0.0, NAN, 1.0, INF]], &[], &[0.0, NAN, 0.0, 0.0]);
    check(ops::aclnnXLogYScalarOther, F32, F32, &[&[0.0, 2.0]], &[double(0.0)], &[0.0, -INF]);
    check(ops::aclnnGcd, I64, I64, &[&[12.0, -12.0, 0.0, 7.0], &[18.0, 18.0, -5.0, 0.0]], &[], &[6.0, 6.0, 5.0, 7.0]);
    check(
        ops::aclnnLeftShift,
        I8,
        I8,
        &[&[1.0, 3.0, 1.0, 1.0], &[7.0, 2.0, 8.0, -1.0]],
        &[],
        &[-128.0, 12.0, 0.0, 0.0],
    );
    check(
        ops::aclnnRightShift,
        I32,
        I32,
        &[&[-8.0, 8.0, -8.0, 8.0], &[1.0, 2.0, 40.0, -1.0]],
        &[],
        &[-4.0, 2.0, -1.0, 0.0],
    );
    let close_at = |equal_nan| [A::F(0.1), A::F(0.5), A::B(equal_nan)];
    let (a, b) = ([1.0, 1.6, 10.0, NAN, INF, INF], [1.5, 1.0, 11.7, NAN, INF, 1.0]);
    check(ops::aclnnIsClose, F32, Bool, &[&a, &b], &close_at(false), &[1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    check(ops::aclnnIsClose, F32, Bool, &[&a[3..4], &b[3..4]], &close_at(true), &[1.0]);
    check(
        ops::aclnnIsClose,
        I64,
        Bool,
        &[&[16_777_217.0, 5.0], &[16_777_216.0, 5.0]],
        &[A::F(0.0), A::F(0.0), A::B(false)],
        &[0.0, 1.0],
    );
    check(
        ops::aclnnNanToNum,
        F32,
        F32,
        &[&[NAN, INF, -INF, 2.0]],
        &[A::F(0.5), A::F(9.0), A::F(-9.0)],
        &[0.5, 9.0, -9.0, 2.0],
    );
    check(ops::aclnnRoundDecimals, F64, F64, &[&[1.25, -1.35, 1234.0]], &[A::I(1)], &[1.2, -1.4, 1234.0]);
    check(ops::aclnnRoundDecimals, F32, F32, &[&[1250.0, 1234.0]], &[A::I(-2)], &[1200.0, 1200.0]);
    check(
        ops::aclnnAngleV2,
        F32,
        F32,
        &[&[-2.0, 0.0, 3.0, NAN]],
        &[],
        &[f64::from(std::f32::consts::PI), 0.0, 0.0, NAN],
    );
    check(ops::aclnnFrac, F32, F32, &[&[1.5, -1.25, -0.0]], &[], &[0.5, -0.25, 0.0]);
    check(ops::aclnnSign, F32, F32, &[&[-3.0, 0.0, 2.0]], &[], &[-1.0, 0.0, 1.0]);
    check(ops::aclnnInplaceRound, F16, F16, &[&[2.5, -0.75]], &[], &[2.0, -1.0]);
    check(ops::aclnnInplaceTrunc, F32, F32, &[&[2.5, -1.75]], &[], &[2.0, -1.0]);
}

#[test]
fn tensors_are_equal_in_shape_and_values() {
    let mut lab = Lab::new();
    let out = lab.room(Bool, &[1]);
    let row = lab.tensor_as(F32, &[600], &[1.5; 600], Lay::Sliced);
    let mut other = [1.5; 600];
    other[599] = 2.0;
    let (same, differs) = (lab.tensor(F64, &[600], &[1.5; 600]), lab.tensor(F32, &[600], &other));
    let (nan, column) = (lab.tensor(F32, &[1], &[NAN]), lab.tensor(F32, &[600, 1], &[1.5; 600]));
    let (none, also) = (lab.room(F32, &[0]), lab.room(F32, &[0]));
    for (a, b, want) in [
        (row, row, 1.0),
        (row, same, 1.0),
        (row, differs, 0.0),
        (row, column, 0.0),
        (nan, nan, 0.0),
        (none, also, 1.0),
        (none, row, 0.0),
    ] {
        lab.ok(ops::aclnnEqual, &[A::T(a), A::T(b), A::T(out)]);
        assert_eq!(lab.read(&out), [want], "{:?} {:?}", a.dims(), b.dims());
    }
}
