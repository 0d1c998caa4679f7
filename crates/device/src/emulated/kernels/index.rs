//! Operators that move or find elements by index: ArgMax, Cat, IndexSelect, Embedding.
//!
//! Indices out of device memory are all checked before the first element is written.

use acl_abi::ops;

use super::Family;
use super::args::Args;
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, Lane, class};
use super::nest::{CHUNK, lines, load_all};
use super::view::{Row, View};
use super::{Machine, math, sized};
use crate::emulated::hbm::Hbm;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnArgMax, arg_max),
    (ops::aclnnCat, cat),
    (ops::aclnnEmbedding, embedding),
    (ops::aclnnIndexSelect, index_select),
];

/// `self dim keepdim → out`: index of the first largest element; NaN counts as larger than any number.
pub fn arg_max(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(3)?);
    let dim = args.dim(1, x.ndim())?;
    let keep = args.int(2)? != 0;
    ensure!(class(out.dtype) == Class::Int, "out: type {}, want int32 or int64", lane::name(out.dtype));
    // 0-d counts as one element.
    let x = if x.ndim() == 0 { x.unsqueeze(0) } else { x };
    let line = x.ndim() - 1;
    let x = move_last(&x, dim);
    let lead = &x.dims()[..line];
    ensure!(x.dim(line) > 0 || lead.contains(&0), "self: dimension {dim} is empty");
    let mut kept = out;
    if !keep && out.ndim() == line {
        kept = out.unsqueeze(line);
    } else if out.ndim() == line + 1 {
        kept = move_last(&out, dim);
    }
    ensure!(
        kept.ndim() == line + 1 && kept.dims()[..line] == *lead && kept.dim(line) == 1,
        "out: shape {:?} does not fit {:?} without dimension {dim}",
        out.dims(),
        args.tensor(0)?.dims()
    );
    lines(lead, [&kept, &x], |[out, x]| {
        let index = match class(x.dtype) {
            Class::Single => first_largest_single(&machine.hbm, &x),
            Class::Double => first_largest::<f64>(&machine.hbm, &x),
            Class::Int => first_largest::<i64>(&machine.hbm, &x),
        };
        out.store(&mut machine.hbm, 0, &[index as i64]);
    })
}

/// The view with dimension `dim` last, the others in order.
pub fn move_last(view: &View, dim: usize) -> View {
    (dim + 1..view.ndim()).fold(*view, |view, d| view.transpose(d - 1, d))
}

fn first_largest<L: Lane>(hbm: &Hbm, row: &Row) -> usize {
    let mut piece = [L::default(); CHUNK];
    let mut best: Option<(usize, L)> = None;
    for from in (0..row.len).step_by(CHUNK) {
        let piece = &mut piece[..CHUNK.min(row.len - from)];
        row.load(hbm, from, piece);
        for (i, &value) in piece.iter().enumerate() {
            // A value that is not equal to itself is NaN.
            let wins = match best {
                None => true,
                Some((_, best)) => {
                    best.partial_cmp(&best).is_some() && (value > best || value.partial_cmp(&value).is_none())
                }
            };
            if wins {
                best = Some((from + i, value));
            }
        }
    }
    best.map_or(0, |(index, _)| index)
}

/// [`first_largest`] with a vector maximum a piece; looks for the position only in pieces that improve.
fn first_largest_single(hbm: &Hbm, row: &Row) -> usize {
    let mut piece = [0.0f32; CHUNK];
    let mut best = (0, f32::NEG_INFINITY);
    for from in (0..row.len).step_by(CHUNK) {
        let piece = &mut piece[..CHUNK.min(row.len - from)];
        row.load(hbm, from, piece);
        let largest = math::max(piece);
        let first = |f: &dyn Fn(f32) -> bool| from + piece.iter().position(|&v| f(v)).unwrap_or(0);
        if largest.is_nan() {
            return first(&|v| v.is_nan());
        }
        if largest > best.1 {
            best = (first(&|v| v == largest), largest);
        }
    }
    best.0
}

/// `tensors dim → out`.
pub fn cat(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out = args.output(2)?;
    let dim = args.dim(1, out.ndim())?;
    ensure!(out.ndim() > 0, "tensors: scalars cannot be joined");
    // torch skips empty one-dimensional tensors whatever the others' shape is.
    let skipped = |view: &View| view.dims() == [0] && out.ndim() != 1;
    let mut total = 0usize;
    for (i, view) in args.tensors(0)?.enumerate() {
        let view = view?;
        if skipped(&view) {
            continue;
        }
        let fits = view.ndim() == out.ndim() && (0..out.ndim()).all(|d| d == dim || view.dim(d) == out.dim(d));
        ensure!(fits, "tensors: shape {:?} of number {i} does not fit out's {:?}", view.dims(), out.dims());
        total += view.dim(dim);
    }
    ensure!(total == out.dim(dim), "out: size {} of dimension {dim}, the tensors have {total}", out.dim(dim));
    let mut from = 0;
    for view in args.tensors(0)? {
        let view = view?;
        if skipped(&view) {
            continue;
        }
        copy(machine, &out.narrow(dim, from, view.dim(dim)), &view)?;
        from += view.dim(dim);
    }
    Ok(())
}

/// `self dim index → out`.
pub fn index_select(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, index, out) = (args.tensor(0)?, args.tensor(2)?, args.output(3)?);
    let dim = args.dim(1, x.ndim())?;
    let index = if index.ndim() == 0 { index.unsqueeze(0) } else { index };
    ensure!(index.ndim() == 1, "index: shape {:?}, want one dimension", index.dims());
    ensure!(x.ndim() > 0, "self: at least one dimension is required");
    let fits =
        out.ndim() == x.ndim() && (0..x.ndim()).all(|d| out.dim(d) == if d == dim { index.dim(0) } else { x.dim(d) });
    ensure!(fits, "out: shape {:?} does not fit {} of {:?}", out.dims(), index.dim(0), x.dims());
    ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    let indices = checked_indices(machine, &index, x.dim(dim)).map_err(|f| f.about("index"))?;
    let mut outcome = Ok(());
    for (to, &from) in indices.iter().enumerate() {
        outcome = outcome.and_then(|()| copy(machine, &out.select(dim, to), &x.select(dim, from as usize)));
    }
    machine.scratch.indices = indices;
    outcome
}

/// `weight indices → out`: row `indices[…]` of a table `[V, D]`.
pub fn embedding(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (table, index, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    ensure!(table.ndim() == 2, "weight: shape {:?}, want [vocabulary, width]", table.dims());
    let fits = out.ndim() == index.ndim() + 1
        && out.dims()[..index.ndim()] == *index.dims()
        && out.dim(index.ndim()) == table.dim(1);
    ensure!(fits, "out: shape {:?}, want {:?} and then {}", out.dims(), index.dims(), table.dim(1));
    ensure!(out.dtype == table.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(table.dtype));
    let indices = checked_indices(machine, &index, table.dim(0)).map_err(|f| f.about("indices"))?;
    let mut next = 0;
    let outcome = lines(index.dims(), [&out], |[out]| {
        let row = table.select(0, indices[next] as usize).row();
        out.copy_from(&mut machine.hbm, &row);
        next += 1;
    });
    machine.scratch.indices = indices;
    outcome
}

/// Every element of `index` in row-major order, each in `0..limit`. The buffer belongs back into scratch.
fn checked_indices(machine: &mut Machine, index: &View, limit: usize) -> Outcome<Vec<i64>> {
    ensure!(class(index.dtype) == Class::Int, "type {}, want int32 or int64", lane::name(index.dtype));
    let mut indices = std::mem::take(&mut machine.scratch.indices);
    sized(&mut indices, index.elements())?;
    indices.truncate(index.elements());
    load_all(machine, index, &mut indices)?;
    for (at, &value) in indices.iter().enumerate() {
        ensure!((0..limit as i64).contains(&value), "value {value} at position {at} is not in 0..{limit}");
    }
    Ok(indices)
}
