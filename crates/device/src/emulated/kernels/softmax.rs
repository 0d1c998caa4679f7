//! Softmax and its logarithm along a dimension, their gradients, and the softmax of scaled, masked scores.
//!
//! `softmax(x) = e^(x − m) / Σ e^(x − m)` with the maximum `m`: a row of −∞ throughout gives NaN, as in torch.

use acl_abi::ops;

use super::args::Args;
use super::axes::move_last;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::lines;
use super::real::{Real, float, shaped, with_real};
use super::view::{Row, View};
use super::{Family, INTERMEDIATE_MAX, Machine, sized};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnLogSoftmax, log_softmax),
    (ops::aclnnLogSoftmaxBackward, log_softmax_backward),
    (ops::aclnnScaledMaskedSoftmax, scaled_masked_softmax),
    (ops::aclnnScaledMaskedSoftmaxBackward, scaled_masked_softmax_backward),
    (ops::aclnnSoftmax, softmax),
    (ops::aclnnSoftmaxBackward, softmax_backward),
];

/// `out = softmax(self)` along `dim`.
pub fn softmax(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    let (x, out) = along(args, 1, &x, &out, 0, 2)?;
    with_real!(x.dtype, R => rows(machine, [&out, &x], |[row], _| soften::<R>(row)))
}

/// `out = log(softmax(self))` along `dim`.
pub fn log_softmax(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    let (x, out) = along(args, 1, &x, &out, 0, 2)?;
    with_real!(x.dtype, R => rows(machine, [&out, &x], |[row], copy: &mut [R]| {
        let largest = R::largest(row);
        copy.copy_from_slice(row);
        R::exp_shifted(copy, largest);
        let sum = R::sum(copy).ln();
        row.iter_mut().for_each(|x| *x = (*x - largest) - sum);
    }))
}

/// `out = output·(gradOutput − Σ gradOutput·output)` along `dim`.
pub fn softmax_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, y, out) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    shaped(&y, dy.dims(), args.name(1))?;
    float(&y, args.name(1))?;
    let (y, _) = along(args, 2, &y, &out, 1, 3)?;
    let (dy, out) = along(args, 2, &dy, &out, 0, 3)?;
    with_real!(dy.dtype, R => rows(machine, [&out, &dy, &y], |[dy, y], copy: &mut [R]| {
        spread(dy, y, copy, R::from_f64(1.0));
    }))
}

/// `out = gradOutput − e^output·Σ gradOutput` along `dim`.
pub fn log_softmax_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, y, out) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    shaped(&y, dy.dims(), args.name(1))?;
    float(&y, args.name(1))?;
    let (y, _) = along(args, 2, &y, &out, 1, 3)?;
    let (dy, out) = along(args, 2, &dy, &out, 0, 3)?;
    with_real!(dy.dtype, R => rows(machine, [&out, &dy, &y], |[dy, y], _| {
        let sum = R::sum(dy);
        dy.iter_mut().zip(y).for_each(|(dy, y)| *dy -= y.exp() * sum);
    }))
}

/// What is written where the mask hides a score, and what replaces the upper triangle.
const HIDDEN: f32 = -10_000.0;

/// `x mask scale fixedTriuMask → y`: softmax over the last dimension of `x·scale`, −10000 where the mask (`[B or 1, N or 1,
/// S, T]` bools) is true, or above the diagonal with `fixedTriuMask`.
pub fn scaled_masked_softmax(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, mask, y) = (args.tensor(0)?, args.optional(1)?, args.output(4)?);
    let masked = Masked::new(args, &x, mask, 2, 3)?;
    shaped(&y, x.dims(), args.name(4))?;
    float(&y, args.name(4))?;
    let scale = masked.scale;
    let mut hidden = vec![0i64; masked.mask.dim(masked.mask.ndim() - 1)];
    let mut index = 0;
    rows_with(machine, [&y, &x, &masked.mask], |machine, [mask_row], row: &mut [f32]| {
        masked.hidden(machine, mask_row, index, &mut hidden);
        index += 1;
        for (x, hidden) in row.iter_mut().zip(&hidden) {
            *x = if *hidden != 0 { HIDDEN } else { *x * scale };
        }
        soften(row);
    })
}

/// `gradOutput y mask scale fixTriuMask → out`: the gradient of [`scaled_masked_softmax`]; 0 where the mask hides.
pub fn scaled_masked_softmax_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, y, mask, out) = (args.tensor(0)?, args.tensor(1)?, args.optional(2)?, args.output(5)?);
    let masked = Masked::new(args, &dy, mask, 3, 4)?;
    for (position, view) in [(1, &y), (5, &out)] {
        shaped(view, dy.dims(), args.name(position))?;
        float(view, args.name(position))?;
    }
    let scale = masked.scale;
    let width = dy.dim(dy.ndim() - 1);
    let (mut hidden, mut ys, mut copy) = (vec![0i64; width], vec![0f32; width], vec![0f32; width]);
    let mut index = 0;
    rows_with(machine, [&out, &dy, &masked.mask, &y], |machine, [mask_row, y_row], row: &mut [f32]| {
        masked.hidden(machine, mask_row, index, &mut hidden);
        index += 1;
        y_row.load(&machine.hbm, 0, &mut ys);
        spread(row, &ys, &mut copy, scale);
        for (x, hidden) in row.iter_mut().zip(&hidden) {
            *x = if *hidden != 0 { 0.0 } else { *x };
        }
    })
}

struct Masked {
    /// Broadcast to the scores; the scores themselves (not looked at) with the fixed triangle.
    mask: View,
    triangle: bool,
    scale: f32,
    queries: usize,
}

impl Masked {
    fn new(args: &Args<'_>, x: &View, mask: Option<View>, scale: usize, triangle: usize) -> Outcome<Self> {
        ensure!(x.ndim() == 4, "{}: shape {:?}, want [B, N, S, T]", args.name(0), x.dims());
        ensure!(class(x.dtype) == Class::Single, "{}: type {} is not supported", args.name(0), lane::name(x.dtype));
        ensure!(x.dim(3) <= INTERMEDIATE_MAX, "{}: rows of {} scores are not supported", args.name(0), x.dim(3));
        let triangle = args.int(triangle)? != 0;
        let mask = match mask {
            _ if triangle => *x,
            Some(mask) => mask.broadcast(x.dims()).map_err(|f| f.about("mask"))?,
            None => return Err(super::fault::Fault::new("mask: required without the fixed triangle")),
        };
        ensure!(triangle || class(mask.dtype) == Class::Int, "mask: type {}, want bool", lane::name(mask.dtype));
        Ok(Self { mask, triangle, scale: args.float(scale)? as f32, queries: x.dim(2) })
    }

    /// Which scores of row `index` are hidden.
    fn hidden(&self, machine: &Machine, row: Row, index: usize, hidden: &mut [i64]) {
        if self.triangle {
            let query = index % self.queries;
            hidden.iter_mut().enumerate().for_each(|(key, hidden)| *hidden = i64::from(key > query));
        } else {
            row.load(&machine.hbm, 0, hidden);
        }
    }
}

fn soften<R: Real>(row: &mut [R]) {
    R::exp_shifted(row, R::largest(row));
    let sum = R::sum(row);
    row.iter_mut().for_each(|x| *x = *x / sum);
}

/// `dy = scale·y·(dy − Σ dy·y)`.
fn spread<R: Real>(dy: &mut [R], y: &[R], products: &mut [R], scale: R) {
    for ((product, dy), y) in products.iter_mut().zip(dy.iter()).zip(y) {
        *product = *dy * *y;
    }
    let sum = R::sum(products);
    dy.iter_mut().zip(y).for_each(|(dy, y)| *dy = scale * (*y * (*dy - sum)));
}

/// Operand and result with the dimension that `position` names moved to the end; a number counts as one element.
fn along(args: &Args<'_>, position: usize, x: &View, out: &View, x_at: usize, out_at: usize) -> Outcome<(View, View)> {
    float(x, args.name(x_at))?;
    float(out, args.name(out_at))?;
    shaped(out, x.dims(), args.name(out_at))?;
    let dim = args.dim(position, x.ndim())?;
    let (x, out) = if x.ndim() == 0 { (x.unsqueeze(0), out.unsqueeze(0)) } else { (*x, *out) };
    Ok((move_last(&x, dim), move_last(&out, dim)))
}

/// For every row: loads the views after the first, calls `body` with them and with scratch of a row's size, and stores
/// the first of them to the first view.
fn rows<R: Real, const N: usize, const M: usize>(
    machine: &mut Machine,
    views: [&View; N],
    mut body: impl FnMut([&mut [R]; M], &mut [R]),
) -> Outcome {
    const { assert!(N == M + 1) }
    let last = views[0].ndim() - 1;
    let width = views[0].dim(last);
    let mut buffer = Vec::new();
    let (values, scratch) = sized(&mut buffer, (M + 1) * width)?.split_at_mut(M * width);
    lines(&views[0].dims()[..last], views, |rows| {
        for (row, values) in rows[1..].iter().zip(values.chunks_exact_mut(width)) {
            row.load(&machine.hbm, 0, values);
        }
        let mut parts = values.chunks_exact_mut(width);
        body(std::array::from_fn(|_| parts.next().unwrap_or_default()), scratch);
        rows[0].store(&mut machine.hbm, 0, &values[..width]);
    })
}

/// For every row: loads the second view, calls `body` with it and the rows of the others, and stores it to the first view.
fn rows_with<const N: usize, const M: usize>(
    machine: &mut Machine,
    views: [&View; N],
    mut body: impl FnMut(&Machine, [Row; M], &mut [f32]),
) -> Outcome {
    const { assert!(N == M + 2) }
    let last = views[0].ndim() - 1;
    let mut buffer = Vec::new();
    let values = sized(&mut buffer, views[0].dim(last))?;
    lines(&views[0].dims()[..last], views, |rows| {
        rows[1].load(&machine.hbm, 0, values);
        body(machine, std::array::from_fn(|i| rows[i + 2]), values);
        rows[0].store(&mut machine.hbm, 0, values);
    })
}
