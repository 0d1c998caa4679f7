//! Evenly spaced numbers: Linspace, LogSpace, Range.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::nest::store_all;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnLinspace, |args, machine| spaced(args, machine, 3, |exponent| exponent)),
    (ops::aclnnLogSpace, |args, machine| {
        let base = args.float(3)?;
        spaced(args, machine, 4, |exponent| base.powf(exponent))
    }),
    (ops::aclnnRange, range),
];

fn fill(machine: &mut Machine, out: &View, value: impl Fn(usize) -> f64) -> Outcome {
    store_all(machine, out, |from, piece: &mut [f64]| {
        piece.iter_mut().enumerate().for_each(|(i, slot)| *slot = value(from + i));
    })
}

/// `start end steps … → out`: `f` of `steps` numbers from start to end; the second half is counted from the end, so that both
/// ends are exact.
fn spaced(args: &Args<'_>, machine: &mut Machine, output: usize, f: impl Fn(f64) -> f64) -> Outcome {
    let (start, end, steps) = (args.scalar(0)?.as_f64(), args.scalar(1)?.as_f64(), args.int(2)?);
    let (out, name) = (args.output(output)?, args.name(output));
    ensure!(out.ndim() == 1 && out.dim(0) as i64 == steps, "{name}: shape {:?}, want [{steps}]", out.dims());
    let count = out.dim(0);
    let step = (end - start) / (count.max(2) - 1) as f64;
    fill(machine, &out, |i| {
        f(if i < count.div_ceil(2) { start + step * i as f64 } else { end - step * (count - 1 - i) as f64 })
    })
}

/// `start end step → out`: like arange, with `end` itself where a step reaches it.
fn range(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let [start, end, step] = [args.scalar(0)?, args.scalar(1)?, args.scalar(2)?].map(|scalar| scalar.as_f64());
    let out = args.output(3)?;
    ensure!(step != 0.0 && step.is_finite(), "step: {step} leads nowhere");
    let count = ((end - start) / step).floor() + 1.0;
    ensure!(out.ndim() == 1 && out.dim(0) as f64 == count.max(0.0), "out: shape {:?}, want [{count}]", out.dims());
    fill(machine, &out, |i| start + step * i as f64)
}
