//! RepeatInterleave in its forms, and its gradient: each slice several times in a row.

use acl_abi::ops;

use super::args::Args;
use super::axes::move_last;
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::indices::at_least_1d;
use super::lane::{self, Class, class};
use super::nest::{lines, load_all, store_all};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine, bits};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnRepeatInterleave, |args, machine| interleave(args, machine, Times::Listed, None, 3)),
    (ops::aclnnRepeatInterleaveGrad, gradient),
    (ops::aclnnRepeatInterleaveInt, |args, machine| interleave(args, machine, Times::Fixed, None, 3)),
    (ops::aclnnRepeatInterleaveIntWithDim, |args, machine| interleave(args, machine, Times::Fixed, Some(2), 4)),
    (ops::aclnnRepeatInterleaveTensor, positions),
    (ops::aclnnRepeatInterleaveWithDim, |args, machine| interleave(args, machine, Times::Listed, Some(2), 4)),
];

/// What parameter 1 says.
enum Times {
    /// One number for all.
    Fixed,
    /// A tensor: a number for each slice, or one for all.
    Listed,
}

/// The counts in the tensor at `position`, for `size` slices.
fn counts(args: &Args<'_>, machine: &Machine, position: usize, size: usize) -> Outcome<Vec<i64>> {
    let (view, name) = (args.tensor(position)?, args.name(position));
    ensure!(class(view.dtype) == Class::Int, "{name}: type {}, want int32 or int64", lane::name(view.dtype));
    let count = view.elements();
    ensure!(view.ndim() <= 1 && (count == size || count == 1), "{name}: shape {:?} for {size} slices", view.dims());
    ensure!(size <= INTERMEDIATE_MAX, "{name}: {size} slices, at most {INTERMEDIATE_MAX} are supported");
    let mut loaded = vec![0i64; count];
    load_all(machine, &view, &mut loaded)?;
    ensure!(loaded.iter().all(|&n| n >= 0), "{name}: a count is negative");
    Ok(if count == size { loaded } else { vec![loaded[0]; size] })
}

fn total(counts: &[i64]) -> i64 {
    counts.iter().fold(0i64, |sum, &n| sum.saturating_add(n))
}

/// `self repeats [dim] outputSize → out`; without `dim`, of the flattened tensor.
fn interleave(args: &Args<'_>, machine: &mut Machine, times: Times, dim: Option<usize>, output: usize) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(output)?);
    ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    let x = at_least_1d(x);
    let dim = dim.map(|position| args.dim(position, x.ndim())).transpose()?;
    let size = dim.map_or(x.elements(), |dim| x.dim(dim));
    let counts = match times {
        Times::Fixed => {
            let n = args.int(1)?;
            ensure!(n >= 0 && size <= INTERMEDIATE_MAX, "repeats: {n} of {size} slices");
            vec![n; size]
        }
        Times::Listed => counts(args, machine, 1, size)?,
    };
    let want = total(&counts);
    let Some(dim) = dim else {
        ensure!(out.dims() == [want as usize], "out: shape {:?}, want [{want}]", out.dims());
        let mut values = Vec::new();
        bits::load(machine, &x, &mut values)?;
        ensure!(out.elements() <= INTERMEDIATE_MAX, "out: {want} elements, at most {INTERMEDIATE_MAX} are supported");
        let repeated = values.iter().zip(&counts).flat_map(|(&v, &n)| std::iter::repeat_n(v, n as usize));
        let repeated: Vec<u64> = repeated.collect();
        return bits::store(machine, &out, &repeated);
    };
    let fits = out.ndim() == x.ndim()
        && (0..x.ndim()).all(|d| if d == dim { out.dim(d) as i64 == want } else { out.dim(d) == x.dim(d) });
    ensure!(fits, "out: shape {:?}, want {want} slices of {:?} along dimension {dim}", out.dims(), x.dims());
    let mut to = 0;
    for (from, &n) in counts.iter().enumerate() {
        copy(machine, &out.narrow(dim, to, n as usize), &x.narrow(dim, from, 1))?;
        to += n as usize;
    }
    Ok(())
}

/// `repeats outputSize → out`: the number of each slice as often as it is repeated.
fn positions(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (repeats, out) = (args.tensor(0)?, args.output(2)?);
    ensure!(repeats.ndim() == 1, "repeats: shape {:?}, want one dimension", repeats.dims());
    ensure!(class(out.dtype) == Class::Int, "out: type {}, want int64", lane::name(out.dtype));
    let counts = counts(args, machine, 0, repeats.dim(0))?;
    let want = total(&counts);
    ensure!(out.dims() == [want as usize], "out: shape {:?}, want [{want}]", out.dims());
    let mut all = counts.iter().enumerate().flat_map(|(i, &n)| std::iter::repeat_n(i as i64, n as usize));
    store_all(machine, &out, |_, piece: &mut [i64]| {
        piece.iter_mut().zip(all.by_ref()).for_each(|(slot, value)| *slot = value);
    })
}

/// `yGrad repeats axis → out`: the sums of the slices that came of one.
fn gradient(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (grad, out) = (args.tensor(0)?, args.output(3)?);
    let axis = args.dim(2, out.ndim())?;
    ensure!(class(out.dtype) != Class::Int, "out: type {} holds no gradient", lane::name(out.dtype));
    let [grad, out] = [grad, out].map(at_least_1d);
    let counts = counts(args, machine, 1, out.dim(axis))?;
    let fits = grad.ndim() == out.ndim()
        && (0..out.ndim())
            .all(|d| if d == axis { grad.dim(d) as i64 == total(&counts) } else { grad.dim(d) == out.dim(d) });
    ensure!(fits, "yGrad: shape {:?} does not fit {:?} along dimension {axis}", grad.dims(), out.dims());
    let (grad, out): (View, View) = (move_last(&grad, axis), move_last(&out, axis));
    super::fill::zero(machine, &out)?;
    let mut values = vec![0.0f64; grad.dim(grad.ndim() - 1)];
    lines(&out.dims()[..out.ndim() - 1], [&out, &grad], |[out, grad]| {
        grad.load(&machine.hbm, 0, &mut values);
        let mut from = 0;
        for (i, &n) in counts.iter().enumerate() {
            let part = &values[from..from + n as usize];
            out.store(&mut machine.hbm, i, &[part.iter().sum::<f64>()]);
            from += n as usize;
        }
    })
}
