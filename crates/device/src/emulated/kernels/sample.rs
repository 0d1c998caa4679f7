//! Random choices: Multinomial and Randperm. Deterministic in seed and offset like [`super::random`].

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::store_all;
use super::random::Source;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnMultinomial, |args, machine| multinomial(args, machine, Source::fixed(args, 3)?, 5)),
    (ops::aclnnMultinomialTensor, |args, machine| multinomial(args, machine, Source::stored(args, machine, 3)?, 6)),
    (ops::aclnnRandperm, randperm),
];

/// `self numsamples replacement … → out`: categories drawn with the weights of each row, `[C]` or `[rows, C]`.
///
/// With replacement, a draw is looked up in the running sum of the weights. Without, every category draws an exponential
/// waiting time with its weight as rate, and those that come first are chosen, which has the same distribution.
fn multinomial(args: &Args<'_>, machine: &mut Machine, source: Source, output: usize) -> Outcome {
    let (weights, samples, replacement) = (args.tensor(0)?, args.int(1)?, args.int(2)? != 0);
    let out = args.output(output)?;
    ensure!((1..=2).contains(&weights.ndim()), "self: shape {:?}, want one or two dimensions", weights.dims());
    ensure!(class(weights.dtype) != Class::Int, "self: type {} is no weight", lane::name(weights.dtype));
    let (weights, out) =
        if weights.ndim() == 1 && out.ndim() == 1 { (weights.unsqueeze(0), out.unsqueeze(0)) } else { (weights, out) };
    let (rows, categories) = (weights.dim(0), weights.dim(weights.ndim() - 1));
    let fits = weights.ndim() == 2 && out.ndim() == 2 && out.dim(0) == rows && out.dim(1) as i64 == samples;
    ensure!(fits, "out: shape {:?}, want [{rows}, {samples}]", out.dims());
    ensure!(class(out.dtype) == Class::Int, "out: type {}, want int64", lane::name(out.dtype));
    ensure!(categories <= INTERMEDIATE_MAX, "self: {categories} categories, at most {INTERMEDIATE_MAX} are supported");
    let samples = out.dim(1);
    ensure!(samples <= INTERMEDIATE_MAX, "numsamples: {samples}, at most {INTERMEDIATE_MAX} are supported");
    let mut row = vec![0.0f64; categories];
    let mut chosen = vec![0i64; samples];
    for r in 0..rows {
        weights.select(0, r).row().load(&machine.hbm, 0, &mut row);
        let valid = row.iter().all(|w| w.is_finite() && *w >= 0.0);
        let (total, possible) = (row.iter().sum::<f64>(), row.iter().filter(|w| **w > 0.0).count());
        ensure!(
            valid && total > 0.0 && total.is_finite(),
            "self: row {r} has a weight that is negative, infinite or NaN, or only zeros"
        );
        if replacement {
            let mut running = 0.0;
            for weight in row.iter_mut() {
                running += *weight;
                *weight = running;
            }
            for (i, slot) in chosen.iter_mut().enumerate() {
                let target = source.unit(r * samples + i) * running;
                // The first category whose running sum exceeds the target; one of weight 0 never does.
                let at = row.partition_point(|sum| *sum <= target);
                let last = row.partition_point(|sum| *sum < running);
                *slot = at.min(last) as i64;
            }
        } else {
            ensure!(
                samples <= possible,
                "numsamples: {samples} of {possible} possible categories, without replacement"
            );
            let time = |c: usize| source.exponential(r * categories + c);
            let waiting = row.iter().enumerate().filter(|(_, w)| **w > 0.0).map(|(c, w)| (time(c) / w, c));
            let mut waiting: Vec<(f64, usize)> = waiting.collect();
            waiting.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            chosen.iter_mut().zip(&waiting).for_each(|(slot, (_, c))| *slot = *c as i64);
        }
        out.select(0, r).row().store(&mut machine.hbm, 0, &chosen);
    }
    Ok(())
}

/// `n seed offset → out`: the numbers below `n` in random order.
fn randperm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (n, source, out) = (args.int(0)?, Source::fixed(args, 1)?, args.output(3)?);
    ensure!(out.ndim() == 1 && out.dim(0) as i64 == n, "out: shape {:?}, want [{n}]", out.dims());
    ensure!(out.dim(0) <= INTERMEDIATE_MAX, "n: {n}, at most {INTERMEDIATE_MAX} are supported");
    let mut order: Vec<(u64, u32)> = (0..out.dim(0)).map(|i| (source.bits(i), i as u32)).collect();
    order.sort_unstable();
    store_all(machine, &out, |from, piece: &mut [i64]| {
        piece.iter_mut().enumerate().for_each(|(i, slot)| *slot = i64::from(order[from + i].1));
    })
}
