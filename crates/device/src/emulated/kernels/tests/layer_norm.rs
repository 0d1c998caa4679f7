//! LayerNorm, GroupNorm, BatchNorm, the variants of RmsNorm, and the gradients of all of them, against their definitions;
//! gradients against central differences of those.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, rounded};

use DataType::{BF16, F16, F32, F64};

/// `[y, mean, rstd]` of groups of elements: `group(at)` and `parameter(at)` name an element's group and its weight.
fn normal(
    x: &[f64],
    weight: &[f64],
    bias: &[f64],
    epsilon: f64,
    group: &dyn Fn(usize) -> usize,
    parameter: &dyn Fn(usize) -> usize,
) -> [Vec<f64>; 3] {
    let groups = (0..x.len()).map(group).max().map_or(0, |g| g + 1);
    let (mut means, mut rstds) = (vec![0.0; groups], vec![0.0; groups]);
    for g in 0..groups {
        let own: Vec<f64> = (0..x.len()).filter(|&at| group(at) == g).map(|at| x[at]).collect();
        let n = own.len() as f64;
        means[g] = own.iter().sum::<f64>() / n;
        rstds[g] = 1.0 / (own.iter().map(|v| (v - means[g]).powi(2)).sum::<f64>() / n + epsilon).sqrt();
    }
    let y = (0..x.len())
        .map(|at| (x[at] - means[group(at)]) * rstds[group(at)] * weight[parameter(at)] + bias[parameter(at)])
        .collect();
    [y, means, rstds]
}

/// Central differences of `Σ dy·f(v)`.
fn differences(values: &[f64], dy: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let loss = |values: &[f64]| -> f64 { f(values).iter().zip(dy).map(|(a, b)| a * b).sum() };
    let mut moved = values.to_vec();
    (0..values.len())
        .map(|at| {
            moved[at] = values[at] + 1e-5;
            let above = loss(&moved);
            moved[at] = values[at] - 1e-5;
            let below = loss(&moved);
            moved[at] = values[at];
            (above - below) / 2e-5
        })
        .collect()
}

#[test]
fn layer_norm_over_the_last_dimensions() {
    let mut noise = Noise::new(70);
    for (dtype, tolerance) in [(F32, 3e-6), (BF16, 2e-2), (F16, 2e-3), (F64, 1e-12)] {
        for (dims, inner) in [(&[3i64, 20][..], 1), (&[2, 3, 4], 2), (&[2, 0, 4], 1), (&[6], 1), (&[4, 1], 1)] {
            for lay in LAYS {
                let shape = &dims[dims.len() - inner..];
                let (count, width) = (dims.iter().product::<i64>() as usize, shape.iter().product::<i64>() as usize);
                let (x, w, b) = (noise.values(count), noise.values(width), noise.values(width));
                let [want, means, rstds] = normal(&x, &w, &b, 1e-5, &|at| at / width, &|at| at % width);
                let mut lab = Lab::new();
                let (tx, ty) = (lab.tensor_as(dtype, dims, &x, lay), lab.room_as(dtype, dims, lay));
                let (tw, tb) = (lab.tensor(dtype, shape, &w), lab.tensor_as(dtype, shape, &b, lay));
                let mut rows = dims.to_vec();
                rows[dims.len() - inner..].fill(1);
                let kept = if dtype == F64 { F64 } else { F32 };
                let (mean, rstd) = (lab.room(kept, &rows), lab.room(kept, &rows));
                let size = A::Ints(shape.to_vec());
                for op in [ops::aclnnLayerNorm, ops::aclnnFastLayerNorm] {
                    let args =
                        [A::T(tx), size.clone(), A::T(tw), A::T(tb), A::F(1e-5), A::T(ty), A::T(mean), A::T(rstd)];
                    lab.ok(op, &args);
                    close(&lab.read(&ty), &want, tolerance);
                    close(&lab.read(&mean), &means, 1e-5);
                    close(&lab.read(&rstd), &rstds, 1e-4);
                }
                let [plain, ..] =
                    normal(&x, &vec![1.0; width], &vec![0.0; width], 1e-5, &|at| at / width, &|at| at % width);
                lab.ok(
                    ops::aclnnLayerNorm,
                    &[A::T(tx), size, A::Null, A::Null, A::F(1e-5), A::T(ty), A::Null, A::Null],
                );
                close(&lab.read(&ty), &plain, tolerance);
            }
        }
    }
    let mut lab = Lab::new();
    let x = lab.room(F32, &[2, 3]);
    let args = [A::T(x), A::Ints(vec![2]), A::Null, A::Null, A::F(1e-5), A::T(x), A::Null, A::Null];
    lab.refused(ops::aclnnLayerNorm, &args, "normalizedShape: [2] is not the end of the input's shape [2, 3]");
}

#[test]
fn a_sum_is_normalised_and_given_back() {
    let mut noise = Noise::new(71);
    let mut lab = Lab::new();
    let (a, b, bias) = (noise.values(12), noise.values(12), noise.values(4));
    let (w, beta) = (noise.values(4), noise.values(4));
    let sum: Vec<f64> = (0..12).map(|at| a[at] + b[at] + bias[at % 4]).collect();
    let [want, means, rstds] = normal(&sum, &w, &beta, 1e-5, &|at| at / 4, &|at| at % 4);
    let t = |lab: &mut Lab, dims: &[i64], v: &[f64]| A::T(lab.tensor(F32, dims, v));
    let (y, x, mean, rstd) =
        (lab.room(F32, &[3, 4]), lab.room(F32, &[3, 4]), lab.room(F32, &[3, 1]), lab.room(F32, &[3, 1]));
    let args = [
        t(&mut lab, &[3, 4], &a),
        t(&mut lab, &[3, 4], &b),
        t(&mut lab, &[4], &w),
        t(&mut lab, &[4], &beta),
        t(&mut lab, &[4], &bias),
        A::F(1e-5),
        A::B(true),
        A::T(y),
        A::T(mean),
        A::T(rstd),
        A::T(x),
    ];
    lab.ok(ops::aclnnAddLayerNorm, &args);
    for (view, want) in [(y, want), (mean, means), (rstd, rstds), (x, sum)] {
        close(&lab.read(&view), &want, 1e-5);
    }
}

#[test]
fn layer_norm_gradients_match_differences() {
    let mut noise = Noise::new(72);
    let (x, w, b, dy) = (noise.fractions(15), noise.values(5), noise.values(5), noise.values(15));
    let y = |x: &[f64], w: &[f64], b: &[f64]| normal(x, w, b, 1e-5, &|at| at / 5, &|at| at % 5);
    let [_, means, rstds] = y(&x, &w, &b);
    for weighted in [true, false] {
        let w = if weighted { w.clone() } else { vec![1.0; 5] };
        let mut lab = Lab::new();
        let t = |lab: &mut Lab, dims: &[i64], v: &[f64]| A::T(lab.tensor(F64, dims, v));
        let outs = [lab.room(F64, &[3, 5]), lab.room(F64, &[5]), lab.room(F64, &[5])];
        let args = [
            t(&mut lab, &[3, 5], &dy),
            t(&mut lab, &[3, 5], &x),
            A::Ints(vec![5]),
            t(&mut lab, &[3, 1], &means),
            t(&mut lab, &[3, 1], &rstds),
            if weighted { t(&mut lab, &[5], &w) } else { A::Null },
            t(&mut lab, &[5], &b),
            A::Ints(vec![1, 1, 1]),
            A::T(outs[0]),
            A::T(outs[1]),
            A::T(outs[2]),
        ];
        lab.ok(ops::aclnnLayerNormBackward, &args);
        let want = [
            differences(&x, &dy, &|x| y(x, &w, &b)[0].clone()),
            differences(&w, &dy, &|w| y(&x, w, &b)[0].clone()),
            differences(&b, &dy, &|b| y(&x, &w, b)[0].clone()),
        ];
        for (out, want) in outs.iter().zip(&want) {
            close(&lab.read(out), want, 1e-6);
        }
        // What the mask does not ask for stays as it was.
        let mut args = args.to_vec();
        args[7] = A::Ints(vec![0, 1, 0]);
        for out in outs {
            lab.ok(ops::aclnnInplaceZero, &[A::T(out)]);
        }
        lab.ok(ops::aclnnLayerNormBackward, &args);
        assert!(lab.read(&outs[0]).iter().chain(&lab.read(&outs[2])).all(|&v| v == 0.0));
        close(&lab.read(&outs[1]), &want[1], 1e-6);
    }
}

/// Samples, channels, elements of a channel, groups.
const GROUPED: [[usize; 4]; 4] = [[2, 6, 5, 3], [1, 4, 1, 4], [3, 2, 7, 1], [0, 2, 3, 2]];

#[test]
fn groups_of_channels_and_their_gradients() {
    let mut noise = Noise::new(73);
    for [n, c, inner, groups] in GROUPED {
        let count = n * c * inner;
        let (x, w, b, dy) = (noise.fractions(count), noise.values(c), noise.values(c), noise.values(count));
        let width = c / groups * inner;
        let y = |x: &[f64], w: &[f64], b: &[f64]| normal(x, w, b, 1e-5, &|at| at / width, &|at| at / inner % c);
        let [want, means, rstds] = y(&x, &w, &b);
        let (ni, ci, ii, gi) = (n as i64, c as i64, inner as i64, groups as i64);
        for lay in LAYS {
            let mut lab = Lab::new();
            let dims = [ni, ci, ii];
            let (tx, ty) = (lab.tensor_as(F64, &dims, &x, lay), lab.room_as(F64, &dims, lay));
            let (tw, tb) = (A::T(lab.tensor(F64, &[ci], &w)), A::T(lab.tensor(F64, &[ci], &b)));
            let (mean, rstd) = (lab.room(F64, &[ni, gi]), lab.room(F64, &[ni, gi]));
            let sizes = [A::I(ni), A::I(ci), A::I(ii), A::I(gi)];
            let mut args = vec![A::T(tx), tw.clone(), tb.clone()];
            args.extend(sizes.clone());
            args.extend([A::F(1e-5), A::T(ty), A::T(mean), A::T(rstd)]);
            lab.ok(ops::aclnnGroupNorm, &args);
            close(&lab.read(&ty), &want, 1e-11);
            close(&lab.read(&mean), &means, 1e-11);
            close(&lab.read(&rstd), &rstds, 1e-9);
            let args = [A::T(tx), tw.clone(), tb, A::I(gi), A::F(1e-5), A::T(ty), A::T(mean), A::T(rstd)];
            lab.ok(ops::aclnnGroupNormSilu, &args);
            let silu: Vec<f64> = want.iter().map(|y| y / (1.0 + (-y).exp())).collect();
            close(&lab.read(&ty), &silu, 1e-11);

            let outs = [lab.room_as(F64, &dims, lay), lab.room(F64, &[ci]), lab.room(F64, &[ci])];
            let mut args = vec![A::T(lab.tensor(F64, &dims, &dy)), A::T(tx), A::T(mean), A::T(rstd), tw];
            args.extend(sizes);
            args.push(A::Null);
            args.extend(outs.map(A::T));
            lab.ok(ops::aclnnGroupNormBackward, &args);
            let want = [
                differences(&x, &dy, &|x| y(x, &w, &b)[0].clone()),
                differences(&w, &dy, &|w| y(&x, w, &b)[0].clone()),
                differences(&b, &dy, &|b| y(&x, &w, b)[0].clone()),
            ];
            for (out, want) in outs.iter().zip(&want) {
                close(&lab.read(out), want, 1e-5);
            }
        }
    }
}

#[test]
fn batches_are_normalised_by_channel_and_running_statistics_move() {
    let mut noise = Noise::new(74);
    let (n, c, inner) = (3usize, 4usize, 5usize);
    let count = n * c * inner;
    let (x, w, b, dy) = (noise.fractions(count), noise.values(c), noise.values(c), noise.values(count));
    let (running_mean, running_var) = (noise.values(c), vec![0.5f64, 1.0, 2.0, 3.0]);
    let channel = |at: usize| at / inner % c;
    let own = |x: &[f64], w: &[f64], b: &[f64]| normal(x, w, b, 1e-3, &channel, &channel);
    let fixed = |x: &[f64], w: &[f64], b: &[f64]| -> Vec<f64> {
        let of = |at: usize| (running_mean[channel(at)], (running_var[channel(at)] + 1e-3).sqrt());
        (0..count).map(|at| (x[at] - of(at).0) / of(at).1 * w[channel(at)] + b[channel(at)]).collect()
    };
    for training in [true, false] {
        let mut lab = Lab::new();
        let (di, ci) = ([n as i64, c as i64, inner as i64], c as i64);
        let t = |lab: &mut Lab, v: &[f64]| lab.tensor(F64, &[ci], v);
        let tx = lab.tensor_as(F64, &di, &x, super::super::testing::Lay::Reversed);
        let (tw, tb) = (t(&mut lab, &w), t(&mut lab, &b));
        let (tm, tv) = (t(&mut lab, &running_mean), t(&mut lab, &running_var));
        let y = lab.room(F64, &di);
        let size = if training { ci } else { 0 };
        let (mean, rstd) = (lab.room(F64, &[size]), lab.room(F64, &[size]));
        let args = [
            A::T(tx),
            A::T(tw),
            A::T(tb),
            A::T(tm),
            A::T(tv),
            A::B(training),
            A::F(0.1),
            A::F(1e-3),
            A::T(y),
            A::T(mean),
            A::T(rstd),
        ];
        lab.ok(ops::aclnnBatchNorm, &args);
        if training {
            let [want, means, rstds] = own(&x, &w, &b);
            close(&lab.read(&y), &want, 1e-11);
            close(&lab.read(&mean), &means, 1e-11);
            close(&lab.read(&rstd), &rstds, 1e-9);
            let moved: Vec<f64> = (0..c).map(|i| 0.9 * running_mean[i] + 0.1 * means[i]).collect();
            close(&lab.read(&tm), &moved, 1e-11);
            let unbiased = |i: usize| (1.0 / rstds[i].powi(2) - 1e-3) * 15.0 / 14.0;
            let moved: Vec<f64> = (0..c).map(|i| 0.9 * running_var[i] + 0.1 * unbiased(i)).collect();
            close(&lab.read(&tv), &moved, 1e-9);
        } else {
            close(&lab.read(&y), &fixed(&x, &w, &b), 1e-11);
            assert_eq!(lab.read(&tm), running_mean);
        }
        let outs = [lab.room(F64, &di), lab.room(F64, &[ci]), lab.room(F64, &[ci])];
        let tm = t(&mut lab, &running_mean);
        let tv = t(&mut lab, &running_var);
        let kept = |view| if training { A::T(view) } else { A::Null };
        let args = [
            A::T(lab.tensor(F64, &di, &dy)),
            A::T(tx),
            A::T(tw),
            A::T(tm),
            A::T(tv),
            kept(mean),
            kept(rstd),
            A::B(training),
            A::F(1e-3),
            A::Ints(vec![1, 1, 1]),
            A::T(outs[0]),
            A::T(outs[1]),
            A::T(outs[2]),
        ];
        lab.ok(ops::aclnnBatchNormBackward, &args);
        let f = |x: &[f64], w: &[f64], b: &[f64]| if training { own(x, w, b)[0].clone() } else { fixed(x, w, b) };
        let want = [
            differences(&x, &dy, &|x| f(x, &w, &b)),
            differences(&w, &dy, &|w| f(&x, w, &b)),
            differences(&b, &dy, &|b| f(&x, &w, b)),
        ];
        for (out, want) in outs.iter().zip(&want) {
            close(&lab.read(out), want, 1e-5);
        }
    }
}

fn rms(x: &[f64], gamma: &[f64], epsilon: f64) -> Vec<f64> {
    let width = gamma.len();
    x.chunks(width)
        .flat_map(|row| {
            let rstd = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / width as f64 + epsilon).sqrt();
            row.iter().zip(gamma).map(move |(v, g)| v * rstd * g).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn variants_of_rms_norm_and_its_gradient() {
    let mut noise = Noise::new(75);
    for dtype in [F32, BF16] {
        let tolerance = if dtype == F32 { 2e-6 } else { 1e-2 };
        let mut lab = Lab::new();
        let (a, b, g) = (noise.values(24), noise.values(24), noise.values(12));
        let dims = [2i64, 3, 4];
        let (ta, tb, tg) = (lab.tensor(dtype, &dims, &a), lab.tensor(dtype, &dims, &b), lab.tensor(dtype, &[3, 4], &g));
        let (y, rstd) = (lab.room(dtype, &dims), lab.room(F32, &[2, 1, 1]));
        // Gamma of two dimensions.
        lab.ok(ops::aclnnRmsNorm, &[A::T(ta), A::T(tg), A::F(1e-6), A::T(y), A::T(rstd)]);
        close(&lab.read(&y), &rms(&a, &g, 1e-6), tolerance);
        lab.ok(ops::aclnnGemmaRmsNorm, &[A::T(ta), A::T(tg), A::F(1e-6), A::T(y), A::T(rstd)]);
        let more: Vec<f64> = g.iter().map(|g| g + 1.0).collect();
        close(&lab.read(&y), &rms(&a, &more, 1e-6), tolerance);
        let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| rounded(dtype, (a + b) as f32)).collect();
        let (wide, x) = (lab.room(F32, &dims), lab.room(dtype, &dims));
        let args = [A::T(ta), A::T(tb), A::T(tg), A::F(1e-6), A::T(wide), A::T(y), A::T(rstd), A::T(x)];
        lab.ok(ops::aclnnAddRmsNormCast, &args);
        close(&lab.read(&wide), &rms(&sum, &g, 1e-6), 2e-6);
        close(&lab.read(&y), &rms(&sum, &g, 1e-6), tolerance);
        assert_eq!(lab.read(&x), sum);
        lab.ok(ops::aclnnInplaceAddRmsNorm, &[A::T(ta), A::T(tb), A::T(tg), A::F(1e-6), A::T(rstd)]);
        assert_eq!(lab.read(&ta), lab.read(&y));
        assert_eq!(lab.read(&tb), sum);
    }
    let (x, g, dy) = (noise.fractions(12), noise.values(4), noise.values(12));
    let mut lab = Lab::new();
    let t = |lab: &mut Lab, dims: &[i64], v: &[f64]| A::T(lab.tensor(F64, dims, v));
    let rstd: Vec<f64> =
        x.chunks(4).map(|r| 1.0 / (r.iter().map(|v| v * v).sum::<f64>() / 4.0 + 1e-6).sqrt()).collect();
    let (dx, dg) = (lab.room(F64, &[3, 4]), lab.room(F64, &[4]));
    let args = [
        t(&mut lab, &[3, 4], &dy),
        t(&mut lab, &[3, 4], &x),
        t(&mut lab, &[3, 1], &rstd),
        t(&mut lab, &[4], &g),
        A::T(dx),
        A::T(dg),
    ];
    lab.ok(ops::aclnnRmsNormGrad, &args);
    close(&lab.read(&dx), &differences(&x, &dy, &|x| rms(x, &g, 1e-6)), 1e-5);
    close(&lab.read(&dg), &differences(&g, &dy, &|g| rms(&x, g, 1e-6)), 1e-6);
}
