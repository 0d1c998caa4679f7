//! Softmax, its logarithm, their gradients, and the masked form.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close};

use DataType::{BF16, Bool, F16, F32, F64};

/// Rows of `values` along `dim`, each with the flat indices of its elements.
fn rows(dims: &[usize], dim: usize) -> Vec<Vec<usize>> {
    let inner: usize = dims[dim + 1..].iter().product();
    let size = dims[dim];
    let outer: usize = dims[..dim].iter().product();
    (0..outer * inner).map(|at| (0..size).map(|i| (at / inner * size + i) * inner + at % inner).collect()).collect()
}

fn soft(row: &[f64]) -> Vec<f64> {
    let m = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - m).exp()).sum();
    row.iter().map(|x| (x - m).exp() / sum).collect()
}

#[test]
fn every_dimension_type_and_layout_and_the_gradients() {
    let mut noise = Noise::new(60);
    for (dtype, tolerance) in [(F32, 2e-6), (BF16, 1e-2), (F16, 1e-3), (F64, 1e-14)] {
        for dims in [&[3usize, 4, 5][..], &[2, 33], &[7], &[2, 0, 3], &[1, 1]] {
            for lay in LAYS {
                let shape: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
                let count = dims.iter().product();
                let (x, g) = (noise.values(count), noise.values(count));
                for dim in 0..dims.len() {
                    let (mut y, mut log, mut dx, mut dlog) = (x.clone(), x.clone(), x.clone(), x.clone());
                    for row in rows(dims, dim) {
                        let p = soft(&row.iter().map(|&at| x[at]).collect::<Vec<_>>());
                        let dot: f64 = row.iter().zip(&p).map(|(&at, p)| g[at] * p).sum();
                        let total: f64 = row.iter().map(|&at| g[at]).sum();
                        for (&at, p) in row.iter().zip(&p) {
                            (y[at], log[at]) = (*p, p.ln());
                            (dx[at], dlog[at]) = (p * (g[at] - dot), g[at] - p * total);
                        }
                    }
                    let mut lab = Lab::new();
                    let (tx, tg) = (lab.tensor_as(dtype, &shape, &x, lay), lab.tensor(dtype, &shape, &g));
                    let (ty, tl) = (lab.room_as(dtype, &shape, lay), lab.room(dtype, &shape));
                    let out = lab.room_as(dtype, &shape, lay);
                    let way = A::I(dim as i64 - if dim % 2 == 0 { dims.len() as i64 } else { 0 });
                    lab.ok(ops::aclnnSoftmax, &[A::T(tx), way.clone(), A::T(ty)]);
                    close(&lab.read(&ty), &y, tolerance);
                    lab.ok(ops::aclnnLogSoftmax, &[A::T(tx), way.clone(), A::T(tl)]);
                    close(&lab.read(&tl), &log, tolerance);
                    lab.ok(ops::aclnnSoftmaxBackward, &[A::T(tg), A::T(ty), way.clone(), A::T(out)]);
                    close(&lab.read(&out), &dx, 4.0 * tolerance);
                    lab.ok(ops::aclnnLogSoftmaxBackward, &[A::T(tg), A::T(tl), way, A::T(out)]);
                    close(&lab.read(&out), &dlog, 8.0 * tolerance);
                }
            }
        }
    }
}

#[test]
fn numbers_hidden_rows_and_nan() {
    let mut lab = Lab::new();
    let (number, out) = (lab.tensor(F32, &[], &[3.0]), lab.room(F32, &[]));
    lab.ok(ops::aclnnSoftmax, &[A::T(number), A::I(-1), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0]);
    lab.ok(ops::aclnnLogSoftmax, &[A::T(number), A::I(0), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0]);
    let inf = f64::INFINITY;
    let x = lab.tensor(F32, &[3, 2], &[-inf, -inf, 0.0, -inf, f64::NAN, 1.0]);
    let out = lab.room(F32, &[3, 2]);
    lab.ok(ops::aclnnSoftmax, &[A::T(x), A::I(1), A::T(out)]);
    let got = lab.read(&out);
    assert!(got[0].is_nan() && got[1].is_nan() && got[4].is_nan() && got[5].is_nan());
    assert_eq!(got[2..4], [1.0, 0.0]);
    lab.ok(ops::aclnnLogSoftmax, &[A::T(x), A::I(1), A::T(out)]);
    assert_eq!(lab.read(&out)[2..4], [0.0, -inf]);
    let int = lab.room(DataType::I32, &[3, 2]);
    lab.refused(ops::aclnnSoftmax, &[A::T(int), A::I(1), A::T(out)], "self: type int32");
    lab.refused(ops::aclnnLogSoftmax, &[A::T(x), A::I(2), A::T(out)], "dim: dimension 2 of a tensor with 2");
}

#[test]
fn masked_scores_and_their_gradient() {
    let mut noise = Noise::new(61);
    let (b, n, s, t) = (2usize, 2usize, 3usize, 5usize);
    let (x, g) = (noise.values(b * n * s * t), noise.values(b * n * s * t));
    let flags: Vec<f64> = (0..b * s * t).map(|_| noise.below(2) as f64).collect();
    for triangle in [false, true] {
        let hidden = |at: usize| {
            let (j, i, bb) = (at % t, at / t % s, at / t / s / n);
            if triangle { j > i } else { flags[(bb * s + i) * t + j] != 0.0 }
        };
        let scaled: Vec<f64> =
            x.iter().enumerate().map(|(at, x)| if hidden(at) { -10_000.0 } else { 0.5 * x }).collect();
        let y: Vec<f64> = scaled.chunks(t).flat_map(soft).collect();
        let dx: Vec<f64> = (0..x.len())
            .map(|at| {
                let row = at / t * t..at / t * t + t;
                let dot: f64 = row.map(|k| g[k] * y[k]).sum();
                if hidden(at) { 0.0 } else { 0.5 * y[at] * (g[at] - dot) }
            })
            .collect();
        let mut lab = Lab::new();
        let dims = [b as i64, n as i64, s as i64, t as i64];
        let (tx, tg) = (lab.tensor(F32, &dims, &x), lab.tensor(F32, &dims, &g));
        let mask = lab.tensor(Bool, &[dims[0], 1, dims[2], dims[3]], &flags);
        let (ty, out) = (lab.room(F32, &dims), lab.room(F32, &dims));
        lab.ok(ops::aclnnScaledMaskedSoftmax, &[A::T(tx), A::T(mask), A::F(0.5), A::B(triangle), A::T(ty)]);
        close(&lab.read(&ty), &y, 1e-6);
        let back = [A::T(tg), A::T(ty), A::T(mask), A::F(0.5), A::B(triangle), A::T(out)];
        lab.ok(ops::aclnnScaledMaskedSoftmaxBackward, &back);
        close(&lab.read(&out), &dx, 1e-6);
    }
}
