//! Decompositions and solutions through the operators: batches, outputs, refusals.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, close};

use DataType::{F32, F64};

/// Two matrices, of determinants −2 and 10.
const PAIR: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 4.0, 2.0, -1.0, 2.0];

#[test]
fn inverses_and_determinants_of_a_batch() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(F32, &[2, 2, 2], &PAIR, lay);
        let (out, sign, log) = (lab.room_as(F32, &[2, 2, 2], lay), lab.room(F32, &[2]), lab.room(F32, &[2]));
        lab.ok(ops::aclnnInverse, &[A::T(x), A::T(out)]);
        close(&lab.read(&out), &[-2.0, 1.0, 1.5, -0.5, 0.2, -0.2, 0.1, 0.4], 1e-6);
        lab.ok(ops::aclnnSlogdet, &[A::T(x), A::T(sign), A::T(log)]);
        assert_eq!(lab.read(&sign), [-1.0, 1.0]);
        close(&lab.read(&log), &[2f64.ln(), 10f64.ln()], 1e-6);
    }
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(F32, &[2, 2], &[1.0, 2.0, 2.0, 4.0]), lab.room(F32, &[2, 2]));
    lab.refused(ops::aclnnInverse, &[A::T(x), A::T(out)], "singular");
    let wide = lab.room(F32, &[2, 3]);
    lab.refused(ops::aclnnInverse, &[A::T(wide), A::T(out)], "not square");
}

#[test]
fn triangular_systems_of_a_batch() {
    let mut lab = Lab::new();
    let (a, b) = (lab.tensor(F64, &[2, 2, 2], &PAIR), lab.tensor(F64, &[2, 2, 1], &[8.0, 4.0, 2.0, 4.0]));
    let (x, m) = (lab.room(F64, &[2, 2, 1]), lab.room(F64, &[2, 2, 2]));
    let mut solve = |upper, transpose, unit| {
        let flags = [A::B(upper), A::B(transpose), A::B(unit)];
        lab.ok(ops::aclnnTriangularSolve, &[&[A::T(b), A::T(a)], &flags[..], &[A::T(x), A::T(m)]].concat());
        assert_eq!(lab.read(&m), PAIR);
        lab.read(&x)
    };
    assert_eq!(solve(true, false, false), [6.0, 1.0, -0.5, 2.0]);
    assert_eq!(solve(false, false, false), [8.0, -5.0, 0.5, 2.25]);
    assert_eq!(solve(true, true, false), [8.0, -3.0, 0.5, 1.5]);
    assert_eq!(solve(true, false, true), [0.0, 4.0, -6.0, 4.0]);
}

#[test]
fn singular_values_and_factors_in_the_shapes_that_are_asked_for() {
    let mut lab = Lab::new();
    let x = lab.tensor(F64, &[2, 3], &[3.0, 0.0, 0.0, 0.0, 0.0, -2.0]);
    let (sigma, u, v, few) =
        (lab.room(F64, &[2]), lab.room(F64, &[2, 2]), lab.room(F64, &[3, 3]), lab.room(F64, &[3, 2]));
    lab.ok(ops::aclnnSvd, &[A::T(x), A::B(true), A::B(true), A::T(sigma), A::T(u), A::T(v)]);
    close(&lab.read(&sigma), &[3.0, 2.0], 1e-14);
    lab.ok(ops::aclnnSvd, &[A::T(x), A::B(false), A::B(true), A::T(sigma), A::T(u), A::T(few)]);
    let (u, few) = (lab.read(&u), lab.read(&few));
    let back: Vec<f64> =
        (0..6).map(|at| (0..2).map(|k| u[at / 3 * 2 + k] * [3.0, 2.0][k] * few[at % 3 * 2 + k]).sum()).collect();
    close(&back, &lab.read(&x), 1e-14);
    let (q, r, none) = (lab.room(F64, &[2, 2]), lab.room(F64, &[2, 3]), lab.room(F64, &[0]));
    for (mode, q) in [(0, q), (1, q), (2, none)] {
        lab.ok(ops::aclnnLinalgQr, &[A::T(x), A::I(mode), A::T(q), A::T(r)]);
        assert_eq!(lab.read(&r).iter().map(|v| v.abs()).collect::<Vec<_>>(), [3.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }
    let nan = lab.tensor(F64, &[1, 1], &[f64::NAN]);
    let one = lab.room(F64, &[1]);
    lab.refused(ops::aclnnSvd, &[A::T(nan), A::B(true), A::B(false), A::T(one), A::Null, A::Null], "not finite");
}
