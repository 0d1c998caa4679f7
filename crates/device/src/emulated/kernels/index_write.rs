//! Operators that write whole slices by index: IndexAdd, IndexCopy, IndexFill, the gradient of an embedding.
//!
//! All indices are checked before anything is written; slices are written in the order of the indices.

use acl_abi::ops;

use super::args::{Args, wrap_dim};
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::fill::fill;
use super::indices::{Negative, at_least_1d, checked, each_block, give_back, to_front};
use super::lane::{self, Lane, class, with_elem};
use super::nest::lines;
use super::number::{Number, with_lane};
use super::scatter::scalar_as;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnEmbeddingDenseBackward, embedding_dense_backward),
    (ops::aclnnIndexAdd, |args, machine| index_add(args, machine, 5)),
    (ops::aclnnIndexAddV2, |args, machine| index_add(args, machine, 6)),
    (ops::aclnnIndexCopy, |args, machine| index_copy(args, machine, 4)),
    (ops::aclnnIndexFill, |args, machine| index_fill(args, machine, 4)),
    (ops::aclnnIndexFillTensor, |args, machine| index_fill_listed(args, machine, 4)),
    (ops::aclnnInplaceIndexCopy, |args, machine| index_copy(args, machine, 0)),
    (ops::aclnnInplaceIndexFill, |args, machine| index_fill(args, machine, 0)),
    (ops::aclnnInplaceIndexFillTensor, |args, machine| index_fill_listed(args, machine, 0)),
];

/// The output, holding self's elements; output 0 means in place.
fn target(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome<View> {
    let out = args.output(output)?;
    if output > 0 {
        let (x, name) = (args.tensor(0)?, args.name(output));
        ensure!(out.dims() == x.dims(), "{name}: shape {:?}, want {:?}", out.dims(), x.dims());
        ensure!(out.dtype == x.dtype, "{name}: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
        if out != x {
            copy(machine, &out, &x)?;
        }
    }
    Ok(out)
}

/// The slices of `source` that the indices name in `out`, and the slice at the first index.
fn slices(args: &Args<'_>, out: &View, dim: usize, index: &View) -> Outcome<(View, View)> {
    let source = at_least_1d(args.tensor(3)?);
    let (name, count) = (args.name(3), index.elements());
    ensure!(source.dtype == out.dtype, "{name}: type {}, want {}", lane::name(source.dtype), lane::name(out.dtype));
    ensure!(index.ndim() <= 1, "index: shape {:?}, want one dimension", index.dims());
    let fits = source.ndim() == out.ndim()
        && (0..out.ndim()).all(|d| source.dim(d) == if d == dim { count } else { out.dim(d) });
    ensure!(fits, "{name}: shape {:?} does not fit {count} slices of {:?}", source.dims(), out.dims());
    Ok((to_front(&source, dim, 1), out.without(dim)))
}

/// `self dim index source alpha … → out`: `out[index[i]] += alpha·source[i]` along `dim`.
fn index_add(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let (index, alpha) = (args.tensor(2)?, args.scalar(4)?);
    let out = at_least_1d(target(args, machine, output)?);
    let dim = args.dim(1, out.ndim())?;
    let (source, block) = slices(args, &out, dim, &index)?;
    let indices = checked(machine, &index, out.dim(dim), Negative::Refused).map_err(|f| f.about("index"))?;
    let offsets = indices.iter().map(|&index| (index as isize).wrapping_mul(out.stride(dim)));
    let outcome = with_lane!(class(out.dtype), L => with_elem!(out.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        let alpha: L = scalar_as(alpha, out.dtype);
        each_block(&source, 1, &block, offsets, |[source, block]| {
            for i in 0..block.len {
                let sum = L::of(memory[block.at(i)]).plus(alpha.times(L::of(memory[source.at(i)])));
                memory[block.at(i)] = sum.to();
            }
        })
    }, else => Ok(())));
    give_back(machine, indices);
    outcome
}

/// `selfRef dim index source [→ out]`: `out[index[i]] = source[i]` along `dim`. `aclnnIndexCopy` leaves self as it is.
fn index_copy(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let index = args.tensor(2)?;
    let out = at_least_1d(target(args, machine, output)?);
    let dim = args.dim(1, out.ndim())?;
    let (source, block) = slices(args, &out, dim, &index)?;
    let indices = checked(machine, &index, out.dim(dim), Negative::Refused).map_err(|f| f.about("index"))?;
    let offsets = indices.iter().map(|&index| (index as isize).wrapping_mul(out.stride(dim)));
    let outcome = each_block(&source, 1, &block, offsets, |[source, block]| {
        block.copy_from(&mut machine.hbm, &source);
    });
    give_back(machine, indices);
    outcome
}

/// `self dim index value → out`: slices set to a value; the indices are in memory.
fn index_fill(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let index = args.tensor(2)?;
    ensure!(index.ndim() <= 1, "index: shape {:?}, want one dimension", index.dims());
    let size = at_least_1d(args.tensor(0)?);
    let dim = args.dim(1, size.ndim())?;
    let indices = checked(machine, &index, size.dim(dim), Negative::FromEnd).map_err(|f| f.about("index"))?;
    let outcome = fill_slices(args, machine, output, dim, indices.iter().copied());
    give_back(machine, indices);
    outcome
}

/// The same with indices that come with the call.
fn index_fill_listed(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let x = at_least_1d(args.tensor(0)?);
    let dim = args.dim(1, x.ndim())?;
    let size = x.dim(dim);
    let listed = args.ints(2).unwrap_or_default();
    for &index in listed {
        let bound = size as i64;
        ensure!((-bound..bound).contains(&index), "index: {index} of dimension {dim} with size {size}");
    }
    let indices = listed.iter().map(|&index| wrap_dim("index", index, size).map_or(0, |i| i as i64));
    fill_slices(args, machine, output, dim, indices)
}

fn fill_slices(
    args: &Args<'_>,
    machine: &mut Machine,
    output: usize,
    dim: usize,
    mut indices: impl Iterator<Item = i64>,
) -> Outcome {
    let value = args.scalar(3)?;
    let out = at_least_1d(target(args, machine, output)?);
    indices.try_for_each(|index| fill(machine, &out.select(dim, index as usize), value))
}

/// `grad indices numWeights paddingIdx scaleGradByFreq → out`: `[V, D]`, the sum of the gradients of each row's uses (their
/// mean with `scaleGradByFreq`); the padding row gets nothing. Sums go in the order of the uses, in single precision
/// for half types.
fn embedding_dense_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (grad, index, out) = (args.tensor(0)?, args.tensor(1)?, args.output(5)?);
    let (rows, padding, mean) = (args.bits(2)?, args.bits(3)?, args.int(4)? != 0);
    ensure!(out.ndim() == 2 && out.dim(0) as u64 == rows, "out: shape {:?}, want [{rows}, width]", out.dims());
    let (lead, width) = (index.ndim(), out.dim(1));
    let fits = grad.ndim() == lead + 1 && grad.dims()[..lead] == *index.dims() && grad.dim(lead) == width;
    ensure!(fits, "grad: shape {:?}, want {:?} and then {width}", grad.dims(), index.dims());
    let indices = checked(machine, &index, out.dim(0), Negative::Refused).map_err(|f| f.about("indices"))?;
    // Uses by row: which they are, in order.
    let mut uses: Vec<(i64, u32)> = indices.iter().enumerate().map(|(use_, &row)| (row, use_ as u32)).collect();
    give_back(machine, indices);
    uses.sort_unstable();
    super::fill::zero(machine, &out)?;
    let mut gradients = Vec::with_capacity(uses.len());
    lines(index.dims(), [&grad], |[row]| gradients.push(row))?;
    with_lane!(class(out.dtype), L => {
        let mut total = vec![L::default(); width];
        let mut term = vec![L::default(); width];
        for group in uses.chunk_by(|a, b| a.0 == b.0) {
            let row = group[0].0;
            if row as u64 == padding || width == 0 {
                continue;
            }
            total.fill(L::default());
            for (_, use_) in group {
                gradients[*use_ as usize].load(&machine.hbm, 0, &mut term);
                total.iter_mut().zip(&term).for_each(|(total, &term)| *total = total.plus(term));
            }
            if mean {
                total.iter_mut().for_each(|total| *total = total.over(group.len() as u64));
            }
            out.select(0, row as usize).row().store(&mut machine.hbm, 0, &total);
        }
        Ok(())
    })
}
