//! Variance, standard deviation, norms and the logarithm of a sum of exponentials over dimensions.
//!
//! Everything accumulates in double precision; the variance takes two passes, mean first.

use acl_abi::ops;

use super::args::Args;
use super::axes::{Axes, Group, Reduction};
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::number::{Number, with_lane};
use super::reduce::{check_dtype, load_class, sum};
use super::view::View;
use super::{Family, Machine};
use crate::emulated::hbm::Hbm;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnLinalgVectorNorm, linalg_vector_norm),
    (ops::aclnnLogSumExp, log_sum_exp),
    (ops::aclnnNorm, |args, machine| norm(args, machine, 4)),
    (ops::aclnnStd, |args, machine| spread(args, machine, true, false)),
    (ops::aclnnStdMeanCorrection, |args, machine| spread(args, machine, true, true)),
    (ops::aclnnVarCorrection, |args, machine| spread(args, machine, false, false)),
    (ops::aclnnVarMean, |args, machine| spread(args, machine, false, true)),
];

fn floating(args: &Args<'_>, position: usize, view: &View) -> Outcome {
    let (name, dtype) = (args.name(position), lane::name(view.dtype));
    ensure!(class(view.dtype) != Class::Int, "{name}: type {dtype} holds no fractions");
    Ok(())
}

/// `self dim correction keepdim → spread [mean]`: the sum of squared deviations over `n − correction` (not below 0), or its
/// square root.
fn spread(args: &Args<'_>, machine: &mut Machine, root: bool, with_mean: bool) -> Outcome {
    let (x, correction) = (args.tensor(0)?, args.int(2)?);
    let reduction = Reduction::new(machine, &x, Axes::of(args, 1, x.ndim())?)?;
    let out = reduction.output(args, 4)?;
    floating(args, 0, &x)?;
    floating(args, 4, &out)?;
    let mean_out = if with_mean { reduction.output(args, 5)? } else { out };
    floating(args, if with_mean { 5 } else { 4 }, &mean_out)?;
    with_lane!(load_class(&x, &out), L => reduction.each(&[out, mean_out], |group, [out, mean_out, _]| {
        let count = group.len() as f64;
        let mean = sum::<L>(&machine.hbm, &group, |v| v) / count;
        let squares = sum::<L>(&machine.hbm, &group, |v| (v - mean) * (v - mean));
        let variance = squares / (count - correction as f64).max(0.0);
        if with_mean {
            mean_out.store(&mut machine.hbm, 0, &[mean]);
        }
        out.store(&mut machine.hbm, 0, &[if root { variance.sqrt() } else { variance }]);
    }))
}

/// `self dim keepdim → out`: `ln Σ eˣ`, computed around the largest element; −∞ of nothing.
fn log_sum_exp(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, Axes::of(args, 1, x.ndim())?)?;
    let out = reduction.output(args, 3)?;
    floating(args, 3, &out)?;
    with_lane!(load_class(&x, &out), L => reduction.each(&[out], |group, [out, ..]| {
        let largest = fold::<L>(&machine.hbm, &group, f64::NEG_INFINITY, f64::larger);
        let around = if largest.is_infinite() { 0.0 } else { largest };
        let total = sum::<L>(&machine.hbm, &group, |v| (v - around).exp());
        out.store(&mut machine.hbm, 0, &[total.ln() + around]);
    }))
}

fn fold<L: Number>(hbm: &Hbm, group: &Group<'_>, start: f64, f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut value = start;
    group.pieces(hbm, |_, piece: &[L]| value = piece.iter().fold(value, |value, v| f(value, v.wide())));
    value
}

/// `self ord dims keepDims dtype → out`.
fn linalg_vector_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out = args.output(5)?;
    check_dtype(args, 4, &out)?;
    norm(args, machine, 5)
}

/// `self p dim keepdim → out`: `(Σ |x|ᵖ)^(1/p)`; how many differ from 0 for p = 0, the largest (smallest) |x| for p = ∞
/// (−∞).
fn norm(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let x = args.tensor(0)?;
    // A null exponent is torch's default.
    let p = if args.is_absent(1) { 2.0 } else { args.scalar(1)?.as_f64() };
    let reduction = Reduction::new(machine, &x, Axes::of(args, 2, x.ndim())?)?;
    let out = reduction.output(args, output)?;
    floating(args, 0, &x)?;
    floating(args, output, &out)?;
    ensure!(p >= 0.0 || !reduction.lacks_elements(), "self: nothing has no norm of order {p}");
    with_lane!(load_class(&x, &out), L => reduction.each(&[out], |group, [out, ..]| {
        let hbm = &machine.hbm;
        let value = if p == 0.0 {
            sum::<L>(hbm, &group, |v| f64::from(v != 0.0))
        } else if p == 1.0 {
            sum::<L>(hbm, &group, f64::abs)
        } else if p == 2.0 {
            sum::<L>(hbm, &group, |v| v * v).sqrt()
        } else if p == f64::INFINITY {
            fold::<L>(hbm, &group, 0.0, |largest, v| largest.larger(v.abs()))
        } else if p == f64::NEG_INFINITY {
            fold::<L>(hbm, &group, f64::INFINITY, |smallest, v| smallest.smaller(v.abs()))
        } else {
            sum::<L>(hbm, &group, |v| v.abs().powf(p)).powf(1.0 / p)
        };
        out.store(&mut machine.hbm, 0, &[value]);
    }))
}
