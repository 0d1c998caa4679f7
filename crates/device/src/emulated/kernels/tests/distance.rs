//! Distances, slices held to a norm, and RReLU against their definitions.

use acl_abi::{DataType, ops};

use super::super::testing::{A, Lab, Noise, close, real, whole};

use DataType::{F16, F32, F64, I64};

fn norm(a: &[f64], b: &[f64], p: f64) -> f64 {
    let all = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    if p.is_infinite() { all.fold(0.0, f64::max) } else { all.map(|d| d.powf(p)).sum::<f64>().powf(1.0 / p) }
}

#[test]
fn distances_of_all_pairs_and_their_gradients() {
    let (a, b) = (Noise::new(1).fractions(2 * 3 * 4), Noise::new(2).fractions(5 * 4));
    for p in [0.5, 1.0, 2.0, 3.0, f64::INFINITY] {
        let mut lab = Lab::new();
        let (x1, x2) = (lab.tensor(F64, &[2, 3, 4], &a), lab.tensor(F64, &[5, 4], &b));
        let (out, dx) = (lab.room(F64, &[2, 3, 5]), lab.room(F64, &[2, 3, 4]));
        lab.ok(ops::aclnnCdist, &[A::T(x1), A::T(x2), A::F(p), A::I(0), A::T(out)]);
        let row = |values: &[f64], i: usize| values[i * 4..][..4].to_vec();
        let all = |a: &[f64]| -> Vec<f64> { (0..30).map(|at| norm(&row(a, at / 5), &row(&b, at % 5), p)).collect() };
        close(&lab.read(&out), &all(&a), 1e-12);
        let slopes = Noise::new(3).values(30);
        let dy = lab.tensor(F64, &[2, 3, 5], &slopes);
        lab.ok(ops::aclnnCdistBackward, &[A::T(dy), A::T(x1), A::T(x2), A::T(out), A::F(p), A::T(dx)]);
        let want: Vec<f64> = (0..24)
            .map(|i| {
                let moved = |by: f64| {
                    let mut a = a.clone();
                    a[i] += by;
                    all(&a).iter().zip(&slopes).map(|(d, s)| d * s).sum::<f64>()
                };
                (moved(1e-6) - moved(-1e-6)) / 2e-6
            })
            .collect();
        close(&lab.read(&dx), &want, 1e-6);
    }
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(F32, &[3, 2], &[0.0, 0.0, 3.0, 4.0, 0.0, 1.0]), lab.room(F32, &[3]));
    lab.ok(ops::aclnnPdist, &[A::T(x), A::F(2.0), A::T(out)]);
    close(&lab.read(&out), &[5.0, 1.0, 18f64.sqrt()], 1e-6);
    lab.refused(ops::aclnnPdist, &[A::T(x), A::F(-1.0), A::T(out)], "negative");
}

#[test]
fn slices_and_rows_are_held_to_a_norm() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 2], &[3.0, 0.5, 4.0, 0.0]);
    let y = lab.room(F32, &[2, 2]);
    lab.ok(ops::aclnnRenorm, &[A::T(x), real(2.0), A::I(1), real(1.0), A::T(y)]);
    close(&lab.read(&y), &[0.6, 0.5, 0.8, 0.0], 1e-6);
    lab.ok(ops::aclnnInplaceRenorm, &[A::T(x), whole(1), A::I(-2), real(1.75)]);
    close(&lab.read(&x), &[1.5, 0.25, 1.75, 0.0], 1e-6);
    let table = lab.tensor(F16, &[3, 2], &[3.0, 4.0, 3.0, 4.0, 0.0, 1.0]);
    let rows = lab.tensor(I64, &[2], &[1.0, 2.0]);
    lab.ok(ops::aclnnEmbeddingRenorm, &[A::T(table), A::T(rows), A::F(2.5), A::F(2.0)]);
    close(&lab.read(&table), &[3.0, 4.0, 1.5, 2.0, 0.0, 1.0], 1e-3);
    let beyond = lab.tensor(I64, &[1], &[3.0]);
    lab.refused(ops::aclnnEmbeddingRenorm, &[A::T(table), A::T(beyond), A::F(2.5), A::F(2.0)], "a row of 3");
}

#[test]
fn rrelu_draws_between_its_bounds_in_training_only() {
    let values = Noise::new(4).values(200);
    let mut lab = Lab::new();
    let (x, noise, y) = (lab.tensor(F32, &[200], &values), lab.room(F32, &[200]), lab.room(F32, &[200]));
    let call =
        |training, out| [A::T(x), A::T(noise), real(0.25), real(0.75), A::B(training), A::I(3), A::I(4), A::T(out)];
    lab.ok(ops::aclnnRReluWithNoise, &call(false, y));
    let want: Vec<f64> = values.iter().map(|&x| if x > 0.0 { x } else { x * 0.5 }).collect();
    close(&lab.read(&y), &want, 1e-6);
    lab.ok(ops::aclnnRReluWithNoise, &call(true, y));
    let drawn = lab.read(&noise);
    for ((x, slope), y) in values.iter().zip(&drawn).zip(lab.read(&y)) {
        assert!(if *x > 0.0 { *slope == 1.0 } else { (0.25..0.75).contains(slope) });
        assert!((y - x * slope).abs() < 1e-6);
    }
    let below: Vec<f64> = drawn.into_iter().filter(|s| *s != 1.0).collect();
    assert!(below.iter().any(|s| *s < 0.35) && below.iter().any(|s| *s > 0.65), "all alike");
}
