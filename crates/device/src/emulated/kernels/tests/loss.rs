//! Losses against their formulas and gradients against central differences, and the gradients of rotary position
//! embedding.

use acl_abi::{DataType, OpId, ops};

use super::super::testing::{A, Lab, Noise, close};

use DataType::{F32, F64, I32, I64};

type Pointwise = fn([f64; 4]) -> f64;

/// Forward, backward, number of optional weights, arguments after the reduction, formula.
struct Loss {
    forward: OpId,
    backward: OpId,
    weights: usize,
    more: Vec<A>,
    formula: Pointwise,
    /// Both operands are probabilities.
    probabilities: bool,
}

fn losses() -> Vec<Loss> {
    let loss = |forward, backward, weights, more, probabilities, formula| Loss {
        forward,
        backward,
        weights,
        more,
        formula,
        probabilities,
    };
    let smooth = |[x, t, ..]: [f64; 4]| {
        let d = (x - t).abs();
        if d < 0.7 { d * d / 1.4 } else { d - 0.35 }
    };
    vec![
        loss(ops::aclnnMseLoss, ops::aclnnMseLossBackward, 0, vec![], false, |[x, t, ..]| (x - t).powi(2)),
        loss(ops::aclnnL1Loss, ops::aclnnL1LossBackward, 0, vec![], false, |[x, t, ..]| (x - t).abs()),
        loss(ops::aclnnSmoothL1Loss, ops::aclnnSmoothL1LossBackward, 0, vec![A::F(0.7)], false, smooth),
        loss(ops::aclnnBinaryCrossEntropy, ops::aclnnBinaryCrossEntropyBackward, 1, vec![], true, |[x, t, w, _]| {
            -w * (t * x.ln() + (1.0 - t) * (1.0 - x).ln())
        }),
        loss(
            ops::aclnnBinaryCrossEntropyWithLogits,
            ops::aclnnBinaryCrossEntropyWithLogitsBackward,
            2,
            vec![],
            false,
            |[x, t, w, p]| {
                let y = 1.0 / (1.0 + (-x).exp());
                -w * (p * t * y.ln() + (1.0 - t) * (1.0 - y).ln())
            },
        ),
        loss(ops::aclnnKlDiv, ops::aclnnKlDivBackward, 0, vec![A::B(false)], true, |[x, t, ..]| t * (t.ln() - x)),
        loss(ops::aclnnKlDiv, ops::aclnnKlDivBackward, 0, vec![A::B(true)], false, |[x, t, ..]| t.exp() * (t - x)),
        loss(ops::aclnnSoftMarginLoss, ops::aclnnSoftMarginLossBackward, 0, vec![], false, |[x, t, ..]| {
            (-t * x).exp().ln_1p()
        }),
    ]
}

#[test]
fn pointwise_losses_and_their_gradients() {
    let mut noise = Noise::new(80);
    for Loss { forward, backward, weights, more, formula, probabilities } in losses() {
        for reduction in 0..3 {
            for present in [true, false] {
                let mut draw = |n: usize| -> Vec<f64> {
                    let all = noise.fractions(n);
                    all.into_iter().map(|v| if probabilities { 0.5 + 0.4 * v } else { v }).collect()
                };
                let (x, t) = (draw(12), draw(4));
                let (w, p) = (noise.values(12), noise.values(4));
                let factor = |values: &[f64], i: usize| if present { values[i % values.len()] } else { 1.0 };
                let all = |x: &[f64]| -> Vec<f64> {
                    (0..12).map(|i| formula([x[i], t[i % 4], factor(&w, i), factor(&p, i)])).collect()
                };
                let reduce = |losses: Vec<f64>| match reduction {
                    0 => losses,
                    1 => vec![losses.iter().sum::<f64>() / 12.0],
                    _ => vec![losses.iter().sum()],
                };
                let want = reduce(all(&x));
                let mut lab = Lab::new();
                let (tx, tt) = (lab.tensor(F64, &[3, 4], &x), lab.tensor(F64, &[4], &t));
                let (tw, tp) = (lab.tensor(F64, &[3, 4], &w), lab.tensor(F64, &[4], &p));
                let given: Vec<A> =
                    [tw, tp][..weights].iter().map(|&t| if present { A::T(t) } else { A::Null }).collect();
                let out = lab.room(F64, if reduction == 0 { &[3, 4] } else { &[] });
                let mut args = vec![A::T(tx), A::T(tt)];
                args.extend(given.clone());
                args.push(A::I(reduction));
                args.extend(more.clone());
                args.push(A::T(out));
                lab.ok(forward, &args);
                close(&lab.read(&out), &want, 1e-12);

                let dy = noise.values(want.len());
                let slopes: Vec<f64> = (0..12)
                    .map(|i| {
                        let at = |by: f64| {
                            let mut moved = x.clone();
                            moved[i] += by;
                            reduce(all(&moved)).iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>()
                        };
                        (at(1e-6) - at(-1e-6)) / 2e-6
                    })
                    .collect();
                let ty = lab.tensor(F64, if reduction == 0 { &[3, 4] } else { &[] }, &dy);
                let dx = lab.room(F64, &[3, 4]);
                let mut args = vec![A::T(ty), A::T(tx), A::T(tt)];
                args.extend(given);
                args.push(A::I(reduction));
                args.extend(more.clone());
                args.push(A::T(dx));
                lab.ok(backward, &args);
                close(&lab.read(&dx), &slopes, 1e-6);
            }
        }
    }
}

#[test]
fn edges_of_the_pointwise_losses() {
    let mut lab = Lab::new();
    let out = lab.room(F32, &[4]);
    let x = lab.tensor(F32, &[4], &[0.0, 1.0, 0.0, 1.0]);
    let t = lab.tensor(F32, &[4], &[0.0, 1.0, 1.0, 0.0]);
    lab.ok(ops::aclnnBinaryCrossEntropy, &[A::T(x), A::T(t), A::Null, A::I(0), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, 0.0, 100.0, 100.0], "logarithms end at −100");
    let far = lab.tensor(F32, &[4], &[200.0, -200.0, 200.0, -200.0]);
    lab.ok(ops::aclnnBinaryCrossEntropyWithLogits, &[A::T(far), A::T(t), A::Null, A::Null, A::I(0), A::T(out)]);
    assert_eq!(lab.read(&out), [200.0, 200.0, 0.0, 0.0], "large logits neither overflow nor vanish");
    lab.ok(ops::aclnnKlDiv, &[A::T(x), A::T(t), A::I(0), A::B(false), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, -1.0, 0.0, 0.0], "a probability of 0 adds nothing");
    let (empty, one) = (lab.room(F32, &[0]), lab.room(F32, &[]));
    lab.ok(ops::aclnnMseLoss, &[A::T(empty), A::T(empty), A::I(1), A::T(one)]);
    assert!(lab.read(&one)[0].is_nan(), "the mean of nothing");
    lab.refused(ops::aclnnMseLoss, &[A::T(x), A::T(t), A::I(7), A::T(one)], "reduction: 7 is not supported");
}

/// Class of every row, and its loss, for `[N, C, inner]`.
fn nll(x: &[f64], t: &[f64], w: &[f64], classes: usize, inner: usize, ignore: f64) -> (Vec<f64>, f64) {
    let at = |row: usize| (row / inner * classes + t[row] as usize) * inner + row % inner;
    let losses = (0..t.len()).map(|r| if t[r] == ignore { 0.0 } else { -w[t[r] as usize] * x[at(r)] }).collect();
    (losses, t.iter().filter(|&&t| t != ignore).map(|&t| w[t as usize]).sum())
}

#[test]
fn negative_log_likelihood_of_rows_and_of_pixels() {
    let mut noise = Noise::new(81);
    for (inner, dims, rows) in [(1usize, &[4i64, 5][..], &[4i64][..]), (6, &[2, 5, 2, 3], &[2, 2, 3]), (1, &[5], &[])] {
        let count = dims.iter().product::<i64>() as usize;
        let n = count / 5;
        let x = noise.fractions(count);
        let w: Vec<f64> = (0..5).map(|i| 0.5 + f64::from(i)).collect();
        let t: Vec<f64> = (0..n).map(|i| if i == 1 { -100.0 } else { noise.below(5) as f64 }).collect();
        for (weighted, labels) in [(true, I64), (false, I32)] {
            let w = if weighted { w.clone() } else { vec![1.0; 5] };
            for reduction in 0..3 {
                let reduce = |x: &[f64]| {
                    let (losses, total) = nll(x, &t, &w, 5, inner, -100.0);
                    match reduction {
                        0 => losses,
                        1 => vec![losses.iter().sum::<f64>() / total],
                        _ => vec![losses.iter().sum()],
                    }
                };
                let mut lab = Lab::new();
                let (tx, tt) = (lab.tensor(F64, dims, &x), lab.tensor(labels, rows, &t));
                let tw = if weighted { A::T(lab.tensor(F64, &[5], &w)) } else { A::Null };
                let shape = if reduction == 0 { rows } else { &[] };
                let (out, total) = (lab.room(F64, shape), lab.room(F64, &[]));
                let (forward, backward) = match inner {
                    1 => (ops::aclnnNLLLoss, ops::aclnnNLLLossBackward),
                    _ => (ops::aclnnNLLLoss2d, ops::aclnnNLLLoss2dBackward),
                };
                let ignore = A::I(-100);
                let args = [A::T(tx), A::T(tt), tw.clone(), A::I(reduction), ignore.clone(), A::T(out), A::T(total)];
                lab.ok(forward, &args);
                let want = reduce(&x);
                close(&lab.read(&out), &want, 1e-12);
                let sum = nll(&x, &t, &w, 5, inner, -100.0).1;
                close(&lab.read(&total), &[if reduction == 0 { 0.0 } else { sum }], 1e-12);
                let dy = noise.values(want.len());
                let (ty, dx) = (lab.tensor(F64, shape, &dy), lab.room(F64, dims));
                let args = [A::T(ty), A::T(tx), A::T(tt), tw, A::I(reduction), ignore, A::T(total), A::T(dx)];
                lab.ok(backward, &args);
                let slopes: Vec<f64> = (0..count)
                    .map(|i| {
                        let at = |by: f64| {
                            let mut moved = x.clone();
                            moved[i] += by;
                            reduce(&moved).iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>()
                        };
                        (at(0.5) - at(-0.5)) / 1.0
                    })
                    .collect();
                close(&lab.read(&dx), &slopes, 1e-9);
            }
        }
    }
    let mut lab = Lab::new();
    let (x, t) = (lab.room(F32, &[2, 3]), lab.tensor(I64, &[2], &[1.0, 3.0]));
    let (out, total) = (lab.tensor(F32, &[2], &[7.0, 7.0]), lab.room(F32, &[]));
    let args = [A::T(x), A::T(t), A::Null, A::I(0), A::I(-100), A::T(out), A::T(total)];
    lab.refused(ops::aclnnNLLLoss, &args, "target: class 3 is not in 0..3");
    assert_eq!(lab.read(&out), [7.0, 7.0], "nothing was written");
}

#[test]
fn cross_entropy_with_smoothing_and_its_gradient() {
    let mut noise = Noise::new(82);
    let (n, c) = (4usize, 5usize);
    let (x, w) = (noise.fractions(n * c), [0.5, 1.0, 2.0, 1.5, 1.0]);
    let t = [1.0, -100.0, 4.0, 0.0];
    for smoothing in [0.0, 0.25] {
        for reduction in ["none", "mean", "sum"] {
            let reduce = |x: &[f64]| {
                let losses: Vec<f64> = (0..n)
                    .map(|r| {
                        let row = &x[r * c..][..c];
                        let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
                        if t[r] < 0.0 {
                            return 0.0;
                        }
                        let own = w[t[r] as usize] * (row[t[r] as usize] - sum);
                        let even: f64 = (0..c).map(|k| w[k] * (row[k] - sum)).sum();
                        -(1.0 - smoothing) * own - smoothing / c as f64 * even
                    })
                    .collect();
                match reduction {
                    "none" => losses,
                    "mean" => vec![losses.iter().sum::<f64>() / (1.0 + 1.0 + 0.5)],
                    _ => vec![losses.iter().sum()],
                }
            };
            let mut lab = Lab::new();
            let (tx, tt) = (lab.tensor(F32, &[4, 5], &x), lab.tensor(I64, &[4], &t));
            let tw = A::T(lab.tensor(F32, &[5], &w));
            let shape: &[i64] = if reduction == "none" { &[4] } else { &[] };
            let (loss, log_prob) = (lab.room(F32, shape), lab.room(F32, &[4, 5]));
            let (z, lse) = (lab.room(F32, &[0]), lab.room(F32, &[0]));
            let tail = [A::Str(reduction), A::I(-100), A::F(smoothing), A::F(0.0)];
            let mut args = vec![A::T(tx), A::T(tt), tw.clone()];
            args.extend(tail.clone());
            args.extend([A::B(false), A::T(loss), A::T(log_prob), A::T(z), A::T(lse)]);
            lab.ok(ops::aclnnCrossEntropyLoss, &args);
            let want = reduce(&x);
            close(&lab.read(&loss), &want, 1e-6);
            let dy = noise.values(want.len());
            let (ty, dx) = (lab.tensor(F32, shape, &dy), lab.room(F32, &[4, 5]));
            let mut args = vec![A::T(ty), A::T(log_prob), A::T(tt), tw, A::Null, A::Null];
            args.extend(tail);
            args.push(A::T(dx));
            lab.ok(ops::aclnnCrossEntropyLossGrad, &args);
            let slopes: Vec<f64> = (0..n * c)
                .map(|i| {
                    let at = |by: f64| {
                        let mut moved = x.clone();
                        moved[i] += by;
                        reduce(&moved).iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>()
                    };
                    (at(1e-5) - at(-1e-5)) / 2e-5
                })
                .collect();
            close(&lab.read(&dx), &slopes, 1e-5);
        }
    }
}

#[test]
fn gradients_of_rotary_embedding_and_of_its_tables() {
    let mut noise = Noise::new(84);
    let (b, s, n, d) = (2usize, 3usize, 2usize, 4usize);
    let count = b * s * n * d;
    for mode in 0..2 {
        let (x, g) = (noise.values(count), noise.values(count));
        let (cos, sin) = (noise.values(s * d), noise.values(s * d));
        let loss = |x: &[f64], cos: &[f64], sin: &[f64]| -> f64 {
            (0..count)
                .map(|i| {
                    let (row, c, token) = (i / d * d, i % d, i / d / n % s);
                    let turned = match mode {
                        0 if c < d / 2 => -x[row + c + d / 2],
                        0 => x[row + c - d / 2],
                        _ if c % 2 == 0 => -x[row + c + 1],
                        _ => x[row + c - 1],
                    };
                    g[i] * (x[i] * cos[token * d + c] + turned * sin[token * d + c])
                })
                .sum()
        };
        let slope = |values: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
            (0..values.len())
                .map(|k| {
                    let at = |by: f64| {
                        let mut moved = values.to_vec();
                        moved[k] += by;
                        f(&moved)
                    };
                    at(0.5) - at(-0.5)
                })
                .collect()
        };
        let mut lab = Lab::new();
        let (whole, table) = ([2i64, 3, 2, 4], [1i64, 3, 1, 4]);
        let (tx, tg) = (lab.tensor(F32, &whole, &x), lab.tensor(F32, &whole, &g));
        let (tc, ts) = (lab.tensor(F32, &table, &cos), lab.tensor(F32, &table, &sin));
        let (dx, dc, ds) = (lab.room(F32, &whole), lab.room(F32, &table), lab.room(F32, &table));
        let args = [A::T(tg), A::T(tc), A::T(ts), A::T(tx), A::I(mode), A::T(dx), A::T(dc), A::T(ds)];
        lab.ok(ops::aclnnRotaryPositionEmbeddingGrad, &args);
        close(&lab.read(&dx), &slope(&x, &|x| loss(x, &cos, &sin)), 1e-5);
        close(&lab.read(&dc), &slope(&cos, &|cos| loss(&x, cos, &sin)), 1e-5);
        close(&lab.read(&ds), &slope(&sin, &|sin| loss(&x, &cos, sin)), 1e-5);
    }
}

#[test]
fn entropy_against_probabilities_and_its_gradient() {
    let mut lab = Lab::new();
    let (x, p) = ([1.0f64, 2.0, 0.5, -1.0, 0.0, 3.0], [0.2f64, 0.3, 0.5, 0.0, 1.0, 0.0]);
    let (tx, tp) = (lab.tensor(F32, &[2, 3], &x), lab.tensor(F32, &[2, 3], &p));
    let (loss, back) = (lab.room(F32, &[2]), lab.room(F32, &[2, 3]));
    lab.ok(ops::aclnnSoftmaxCrossEntropyWithLogits, &[A::T(tx), A::T(tp), A::T(loss), A::T(back)]);
    for row in 0..2 {
        let sum: f64 = x[3 * row..][..3].iter().map(|x| x.exp()).sum();
        let want: f64 = (0..3).map(|i| -p[3 * row + i] * (x[3 * row + i].exp() / sum).ln()).sum();
        assert!((lab.read(&loss)[row] - want).abs() < 1e-6);
        for i in 3 * row..3 * row + 3 {
            assert!((lab.read(&back)[i] - (x[i].exp() / sum - p[i])).abs() < 1e-6);
        }
    }
    let one = lab.room(F32, &[1]);
    lab.refused(
        ops::aclnnSoftmaxCrossEntropyWithLogits,
        &[A::T(tx), A::T(tp), A::T(one), A::T(back)],
        "loss: shape [1]",
    );
}
