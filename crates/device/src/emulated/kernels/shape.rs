//! Operators that lay elements out anew: joining, splitting, repeating, padding, rolling, reversing, slicing.
//!
//! Each is a handful of block copies between parts of views; values are never computed with.

use acl_abi::{MAX_DIMS, ops};

use super::args::{Args, wrap_dim};
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::lane;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnCat, cat),
    (ops::aclnnChunkCat, chunk_cat),
    (ops::aclnnConstantPadNd, constant_pad),
    (ops::aclnnFlip, flip),
    (ops::aclnnChannelShuffle, channel_shuffle),
    (ops::aclnnPermute, permute),
    (ops::aclnnRepeat, repeat),
    (ops::aclnnRoll, roll),
    (ops::aclnnSlice, slice),
    (ops::aclnnSplitWithSize, split_with_size),
    (ops::aclnnStack, stack),
    (ops::aclnnStridedSlice, strided_slice),
];

fn same_type(args: &Args<'_>, position: usize, out: &View, x: &View) -> Outcome {
    let (name, dtype) = (args.name(position), lane::name(out.dtype));
    ensure!(out.dtype == x.dtype, "{name}: type {dtype}, want {}", lane::name(x.dtype));
    Ok(())
}

/// `self groups → out`: channels, dimension 1, seen as groups of as many and taken one of each group in turn.
fn channel_shuffle(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, groups, out) = (args.tensor(0)?, args.int(1)?, args.output(2)?);
    same_type(args, 2, &out, &x)?;
    let fits = x.ndim() >= 3 && out.dims() == x.dims() && groups > 0 && x.dim(1) as i64 % groups == 0;
    ensure!(fits, "groups: {groups} of {:?} to {:?}", x.dims(), out.dims());
    let each = x.dim(1) / groups as usize;
    ensure!(x.ndim() < acl_abi::MAX_DIMS, "self: {} dimensions are too many", x.ndim());
    copy(machine, &out.split(1, each, groups as usize), &x.split(1, groups as usize, each).transpose(1, 2))
}

/// `tensors dim → out`.
fn cat(args: &Args<'_>, machine: &mut Machine) -> Outcome {
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

/// `tensors dim → out`: the tensors, which have one shape, side by side in a new dimension.
fn stack(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out = args.output(2)?;
    ensure!(out.ndim() > 0, "out: at least one dimension is required");
    let dim = args.dim(1, out.ndim())?;
    let tensors = args.tensors(0)?;
    let count = tensors.len();
    ensure!(out.dim(dim) == count, "out: size {} of dimension {dim}, want {count}", out.dim(dim));
    let shape = out.without(dim);
    for (i, view) in tensors.clone().enumerate() {
        let view = view?;
        let fits = view.dims() == shape.dims();
        ensure!(fits, "tensors: shape {:?} of number {i}, want {:?}", view.dims(), shape.dims());
    }
    for (i, view) in tensors.enumerate() {
        copy(machine, &out.select(dim, i), &view?)?;
    }
    Ok(())
}

/// `tensors dim numChunks → out`: every tensor is cut into `numChunks` along `dim` (the last ones filled with zeros), each
/// chunk flattened from there on; row `c` of out's dimension `dim` is the tensors' chunks `c` side by side.
fn chunk_cat(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (chunks, out) = (args.int(2)?, args.output(3)?);
    ensure!((1..=1 << 32).contains(&chunks), "numChunks: {chunks}");
    let chunks = chunks as usize;
    ensure!(out.ndim() >= 2, "out: shape {:?}, want at least two dimensions", out.dims());
    let dim = out.ndim() - 2;
    let parts: Vec<View> = args.tensors(0)?.collect::<Outcome<_>>()?;
    let mut width = 0;
    for (i, view) in parts.iter().enumerate() {
        let fits = view.ndim() > dim && view.dims()[..dim] == out.dims()[..dim];
        let own = wrap_dim(args.name(1), args.int(1)?, view.ndim())?;
        ensure!(fits && own == dim, "tensors: shape {:?} of number {i} does not fit {:?}", view.dims(), out.dims());
        let rest: usize = view.dims()[dim + 1..].iter().product();
        width += view.dim(dim).div_ceil(chunks) * rest;
    }
    ensure!(out.dims()[dim..] == [chunks, width], "out: shape {:?}, want [… {chunks}, {width}]", out.dims());
    super::fill::zero(machine, &out)?;
    let mut from = 0;
    for view in &parts {
        let size = view.dim(dim).div_ceil(chunks);
        let rest: usize = view.dims()[dim + 1..].iter().product();
        for (row, part) in (0..view.dim(dim)).map(|row| (row, view.select(dim, row))) {
            let cell = out.select(dim, row / size).narrow(dim, from + row % size * rest, rest);
            copy_reshaped(machine, cell, dim, &part)?;
        }
        from += size * rest;
    }
    Ok(())
}

/// Copies `source` to `out`, whose dimension `dim` stands for `source`'s dimensions from `dim` on.
fn copy_reshaped(machine: &mut Machine, mut out: View, dim: usize, source: &View) -> Outcome {
    let tail = &source.dims()[dim..];
    if source.elements() == 0 {
        return Ok(());
    }
    if tail.is_empty() {
        return copy(machine, &out.without(dim), source);
    }
    for (i, &size) in tail.iter().enumerate().take(tail.len() - 1) {
        ensure!(out.ndim() < MAX_DIMS, "tensors: more than {MAX_DIMS} dimensions");
        let inner = out.dim(dim + i) / size;
        out = out.split(dim + i, size, inner);
    }
    copy(machine, &out, source)
}

/// `self dims → out`: dimension `i` of out is dimension `dims[i]` of self.
fn permute(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    let dims = args.ints(1).unwrap_or_default();
    same_type(args, 2, &out, &x)?;
    ensure!(dims.len() == x.ndim(), "dims: {dims:?} of a tensor with {} dimensions", x.ndim());
    // Dimension `i` is brought to its place by exchanging it with whatever is there.
    let (mut view, mut order) = (x, [0, 1, 2, 3, 4, 5, 6, 7]);
    for (i, &dim) in dims.iter().enumerate() {
        let dim = wrap_dim("dims", dim, x.ndim())?;
        let at = order[..x.ndim()].iter().position(|&d| d == dim).expect("all dimensions are there");
        ensure!(at >= i, "dims: {dims:?} names a dimension twice");
        view = view.transpose(i, at);
        order.swap(i, at);
    }
    ensure!(out.dims() == view.dims(), "out: shape {:?}, want {:?}", out.dims(), view.dims());
    copy(machine, &out, &view)
}

/// `self dim start end step → out`: every `step`-th index of `dim` from `start` to before `end`, both limited to what there is;
/// negative ones count from the end.
fn slice(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(5)?);
    ensure!(x.ndim() > 0, "self: at least one dimension is required");
    let dim = args.dim(1, x.ndim())?;
    same_type(args, 5, &out, &x)?;
    let (size, step) = (x.dim(dim) as i64, args.int(4)?);
    ensure!(step > 0, "step: {step}, want 1 or more");
    let limit = |at: i64| (if at < 0 { at.saturating_add(size) } else { at }).clamp(0, size);
    let start = limit(args.int(2)?);
    let count = ((limit(args.int(3)?) - start).max(0) as u64).div_ceil(step as u64) as usize;
    let part = x.step(dim, start as usize, step as isize, count);
    ensure!(out.dims() == part.dims(), "out: shape {:?}, want {:?}", out.dims(), part.dims());
    copy(machine, &out, &part)
}

/// `self repeats → out`: whole copies of self along every dimension.
fn repeat(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    let repeats = args.ints(1).unwrap_or_default();
    let added = out.ndim().checked_sub(x.ndim());
    let size = |d: usize| d.checked_sub(out.ndim() - x.ndim()).map_or(1, |d| x.dim(d));
    let fits = added.is_some()
        && repeats.len() == out.ndim()
        && (0..out.ndim())
            .all(|d| usize::try_from(repeats[d]).ok().and_then(|r| r.checked_mul(size(d))) == Some(out.dim(d)));
    ensure!(fits, "out: shape {:?} is not {:?} repeated {repeats:?} times", out.dims(), x.dims());
    same_type(args, 2, &out, &x)?;
    if out.elements() == 0 {
        return Ok(());
    }
    // Every repeated dimension becomes two where there is room, and the copies one broadcast.
    let (mut to, mut from, mut at) = (out, (0..out.ndim() - x.ndim()).fold(x, |x, _| x.unsqueeze(0)), 0);
    for &count in repeats {
        let (count, size) = (count as usize, from.dim(at));
        if count > 1 && size > 1 {
            if to.ndim() == MAX_DIMS {
                return repeat_block(machine, &to, &from, at);
            }
            (to, from) = (to.split(at, count, size), from.unsqueeze(at));
            at += 1;
        }
        at += 1;
    }
    copy(machine, &to, &from)
}

/// The rest of [`repeat`] from dimension `at` on, copy by copy, where views have no dimensions left.
fn repeat_block(machine: &mut Machine, out: &View, x: &View, at: usize) -> Outcome {
    let Some(dim) = (at..x.ndim()).find(|&d| x.dim(d) > 1 && out.dim(d) > x.dim(d)) else {
        return copy(machine, out, x);
    };
    let size = x.dim(dim);
    (0..out.dim(dim) / size).try_for_each(|i| repeat_block(machine, &out.narrow(dim, i * size, size), x, dim + 1))
}

/// `self pad value → out`: pairs of (before, after) from the last dimension on; negative ones cut off.
fn constant_pad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, value, out) = (args.tensor(0)?, args.scalar(2)?, args.output(3)?);
    let pads = args.ints(1).unwrap_or_default();
    ensure!(
        pads.len().is_multiple_of(2) && pads.len() / 2 <= x.ndim(),
        "pad: {} numbers for {} dimensions",
        pads.len(),
        x.ndim()
    );
    ensure!(out.ndim() == x.ndim(), "out: shape {:?} does not fit {:?}", out.dims(), x.dims());
    same_type(args, 3, &out, &x)?;
    let (mut to, mut from) = (out, x);
    let mut covered = true;
    for dim in 0..x.ndim() {
        let back = 2 * (x.ndim() - 1 - dim);
        let pad = |i: usize| pads.get(back + i).copied().unwrap_or(0);
        let (before, after) = (pad(0), pad(1));
        let want = (x.dim(dim) as i64).saturating_add(before).saturating_add(after);
        ensure!(want == out.dim(dim) as i64, "out: size {} of dimension {dim}, want {want}", out.dim(dim));
        // What is left of self, and where it goes.
        let cut = (before.min(0).unsigned_abs() as usize, after.min(0).unsigned_abs() as usize);
        let left = x.dim(dim).saturating_sub(cut.0).saturating_sub(cut.1);
        let at = before.max(0) as usize;
        let left = left.min(out.dim(dim).saturating_sub(at));
        covered &= left == out.dim(dim);
        from = from.narrow(dim, if left == 0 { 0 } else { cut.0 }, left);
        to = to.narrow(dim, if left == 0 { 0 } else { at }, left);
    }
    if !covered {
        super::fill::fill(machine, &out, value)?;
    }
    copy(machine, &to, &from)
}

/// `x shifts dims → out`: elements move `shifts` places along `dims`, round the end; without `dims`, in row-major order.
fn roll(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(3)?);
    let (shifts, dims) = (args.ints(1).unwrap_or_default(), args.ints(2).unwrap_or_default());
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    same_type(args, 3, &out, &x)?;
    if x.elements() == 0 {
        return Ok(());
    }
    if dims.is_empty() {
        ensure!(shifts.len() == 1, "shifts: {} shifts without dims, want 1", shifts.len());
        return roll_flat(machine, &out, &x, shifts[0].rem_euclid(x.elements() as i64) as usize);
    }
    ensure!(shifts.len() == dims.len(), "shifts: {} shifts for {} dimensions", shifts.len(), dims.len());
    let mut by = [0i64; MAX_DIMS];
    for (&shift, &dim) in shifts.iter().zip(dims) {
        let dim = wrap_dim("dims", dim, x.ndim())?;
        let size = x.dims().get(dim).copied().unwrap_or(1) as i64;
        by[dim] = (by[dim] + shift.rem_euclid(size)).rem_euclid(size);
    }
    roll_from(machine, &out, &x, 0, &by)
}

/// Rolls dimensions from `dim` on: two blocks a dimension that moves.
fn roll_from(machine: &mut Machine, out: &View, x: &View, dim: usize, by: &[i64; MAX_DIMS]) -> Outcome {
    let Some(dim) = (dim..x.ndim()).find(|&d| by[d] > 0) else { return copy(machine, out, x) };
    let (size, shift) = (x.dim(dim), by[dim] as usize);
    let (head, tail) = (size - shift, shift);
    roll_from(machine, &out.narrow(dim, shift, head), &x.narrow(dim, 0, head), dim + 1, by)?;
    roll_from(machine, &out.narrow(dim, 0, tail), &x.narrow(dim, head, tail), dim + 1, by)
}

fn roll_flat(machine: &mut Machine, out: &View, x: &View, shift: usize) -> Outcome {
    let mut values = vec![0u64; 0];
    super::bits::load(machine, x, &mut values)?;
    values.rotate_right(shift);
    super::bits::store(machine, out, &values)
}

/// `self dims → out`: the order along `dims` turned round.
fn flip(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    same_type(args, 2, &out, &x)?;
    let mut turned = x;
    for &dim in args.ints(1).unwrap_or_default() {
        let dim = wrap_dim("dims", dim, x.ndim())?;
        if dim < x.ndim() && x.dim(dim) > 0 {
            turned = turned.step(dim, x.dim(dim) - 1, -1, x.dim(dim));
        }
    }
    copy(machine, &out, &turned)
}

/// `self splitSize dim → out[]`: consecutive parts of these sizes.
fn split_with_size(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = args.tensor(0)?;
    let dim = args.dim(2, x.ndim())?;
    ensure!(x.ndim() > 0, "self: at least one dimension is required");
    let sizes = args.ints(1).unwrap_or_default();
    let outs = args.outputs(3)?;
    ensure!(outs.len() == sizes.len(), "out: {} tensors for {} sizes", outs.len(), sizes.len());
    let mut total = 0usize;
    for (i, (out, &size)) in outs.iter().zip(sizes).enumerate() {
        let fits = out.ndim() == x.ndim()
            && (0..x.ndim()).all(|d| if d == dim { out.dim(d) as i64 == size } else { out.dim(d) == x.dim(d) });
        ensure!(fits, "out: shape {:?} of number {i} is not {size} of {:?}", out.dims(), x.dims());
        ensure!(out.dtype == x.dtype, "out: type {} of number {i}", lane::name(out.dtype));
        total += out.dim(dim);
    }
    ensure!(total == x.dim(dim), "splitSize: the sizes add up to {total}, not {}", x.dim(dim));
    let mut from = 0;
    for out in &outs {
        copy(machine, out, &x.narrow(dim, from, out.dim(dim)))?;
        from += out.dim(dim);
    }
    Ok(())
}

/// `self begin end strides beginMask endMask ellipsisMask newAxisMask shrinkAxisMask → out`: `begin:end:stride` of the first
/// dimensions. A bit of the begin (end) mask stands for "from the start" ("to the end"), one of the shrink mask takes
/// only `begin`; ellipses and new axes are refused.
fn strided_slice(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(9)?);
    let [begin, end, strides] = [1, 2, 3].map(|position| args.ints(position).unwrap_or_default());
    let (begin_mask, end_mask, shrink) = (args.int(4)?, args.int(5)?, args.int(8)?);
    ensure!(args.int(6)? == 0, "ellipsisMask: ellipses are not supported");
    ensure!(args.int(7)? == 0, "newAxisMask: new axes are not supported");
    ensure!(begin.len() <= x.ndim() && end.len() == begin.len(), "begin: {} of {} dimensions", begin.len(), x.ndim());
    ensure!(strides.len() == begin.len(), "strides: {}, want {}", strides.len(), begin.len());
    same_type(args, 9, &out, &x)?;
    let mut part = x;
    for dim in 0..begin.len() {
        let (size, step) = (x.dim(dim) as i64, strides[dim]);
        ensure!(step != 0 && step.unsigned_abs() < 1 << 40, "strides: {step} in dimension {dim}");
        let set = |mask: i64| mask >> dim & 1 == 1;
        let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
        let place = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(low, high);
        if set(shrink) {
            let at = if begin[dim] < 0 { begin[dim].saturating_add(size) } else { begin[dim] };
            ensure!((0..size).contains(&at), "begin: {} of dimension {dim} with size {size}", begin[dim]);
            part = part.narrow(dim, at as usize, 1);
            continue;
        }
        let first = if set(begin_mask) { if step > 0 { 0 } else { size - 1 } } else { place(begin[dim]) };
        let last = if set(end_mask) { if step > 0 { size } else { -1 } } else { place(end[dim]) };
        let span = if step > 0 { last - first } else { first - last };
        let count = (span.max(0) as u64).div_ceil(step.unsigned_abs()) as usize;
        part = if count == 0 { part.narrow(dim, 0, 0) } else { part.step(dim, first as usize, step as isize, count) };
    }
    let part = (0..begin.len()).rev().filter(|&d| shrink >> d & 1 == 1).fold(part, |part, d| part.without(d));
    ensure!(out.dims() == part.dims(), "out: shape {:?}, want {:?}", out.dims(), part.dims());
    copy(machine, &out, &part)
}
