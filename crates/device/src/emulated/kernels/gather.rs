//! Operators that read elements or slices by index: Embedding, IndexSelect, Gather, GatherV2, GatherV3, Take.
//!
//! All indices are checked before the first element is written ([`super::indices`]).

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::indices::{Lines, Negative, at_least_1d, checked, each_block, give_back, to_front};
use super::lane::{self, with_elem};
use super::nest::Nest;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnEmbedding, embedding),
    (ops::aclnnGather, gather),
    (ops::aclnnGatherV2, gather_v2),
    (ops::aclnnGatherV3, gather_v3),
    (ops::aclnnIndexSelect, index_select),
    (ops::aclnnTake, take),
];

fn same_type(args: &Args<'_>, position: usize, out: &View, x: &View) -> Outcome {
    let (name, dtype) = (args.name(position), lane::name(out.dtype));
    ensure!(out.dtype == x.dtype, "{name}: type {dtype}, want {}", lane::name(x.dtype));
    Ok(())
}

/// `self dim index → out`: slices of self.
fn index_select(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, index, out) = (args.tensor(0)?, args.tensor(2)?, args.output(3)?);
    let dim = args.dim(1, x.ndim())?;
    let index = at_least_1d(index);
    ensure!(index.ndim() == 1, "index: shape {:?}, want one dimension", index.dims());
    same_type(args, 3, &out, &x)?;
    // Of a 0-d tensor, torch selects the one element and answers a 0-d tensor.
    slices(args, machine, [&at_least_1d(x), &index, &at_least_1d(out)], dim, 2)
}

/// `weight indices → out`: row `indices[…]` of a table `[V, D]`.
fn embedding(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (table, index, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    ensure!(table.ndim() == 2, "weight: shape {:?}, want [vocabulary, width]", table.dims());
    same_type(args, 2, &out, &table)?;
    slices(args, machine, [&table, &index, &out], 0, 1)
}

/// `self dim index → out`: [`index_select`] with an index of any rank.
fn gather_v2(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, index, out) = (args.tensor(0)?, args.tensor(2)?, args.output(3)?);
    ensure!(x.ndim() > 0, "self: at least one dimension is required");
    let dim = args.dim(1, x.ndim())?;
    same_type(args, 3, &out, &x)?;
    slices(args, machine, [&x, &index, &out], dim, 2)
}

/// `self dim index batchDims mode → out`: [`index_select`] with an index of any rank, for each index of the first
/// `batchDims` dimensions, which all three share. `mode` only hints at the order of memory accesses.
fn gather_v3(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, index, out) = (args.tensor(0)?, args.tensor(2)?, args.output(5)?);
    ensure!(x.ndim() > 0, "self: at least one dimension is required");
    let dim = args.dim(1, x.ndim())?;
    let batch = args.int(3)?;
    let batch = if batch < 0 { batch.saturating_add(index.ndim() as i64) } else { batch };
    ensure!((0..=dim.min(index.ndim()) as i64).contains(&batch), "batchDims: {batch} of dimension {dim}");
    same_type(args, 5, &out, &x)?;
    let batch = batch as usize;
    let shared = out.ndim() >= batch && x.dims()[..batch] == index.dims()[..batch];
    ensure!(shared && out.dims()[..batch] == x.dims()[..batch], "index: batch of shape {:?}", index.dims());
    batches(args, machine, [x, index, out], dim, batch)
}

fn batches(args: &Args<'_>, machine: &mut Machine, views: [View; 3], dim: usize, batch: usize) -> Outcome {
    if batch == 0 {
        return slices(args, machine, [&views[0], &views[1], &views[2]], dim, 2);
    }
    (0..views[0].dim(0))
        .try_for_each(|i| batches(args, machine, views.map(|view| view.select(0, i)), dim - 1, batch - 1))
}

/// `out[…, i…, …] = table[…, index[i…], …]` with the index's dimensions in place of `dim`. `position` is the index's.
fn slices(
    args: &Args<'_>,
    machine: &mut Machine,
    [table, index, out]: [&View; 3],
    dim: usize,
    position: usize,
) -> Outcome {
    let lead = index.ndim();
    let block = table.without(dim);
    let fits = out.ndim() == block.ndim() + lead
        && out.dims()[dim..dim + lead] == *index.dims()
        && out.dims()[..dim] == block.dims()[..dim]
        && out.dims()[dim + lead..] == block.dims()[dim..];
    ensure!(
        fits,
        "out: shape {:?}, want {:?} with {:?} in place of dimension {dim}",
        out.dims(),
        table.dims(),
        index.dims()
    );
    let indices =
        checked(machine, index, table.dim(dim), Negative::Refused).map_err(|f| f.about(args.name(position)))?;
    let stride = table.stride(dim);
    let offsets = indices.iter().map(|&index| index as isize * stride);
    let outcome = each_block(&to_front(out, dim, lead), lead, &block, offsets, |[out, block]| {
        out.copy_from(&mut machine.hbm, &block);
    });
    give_back(machine, indices);
    outcome
}

/// `self dim index → out`: `out[i][j] = self[index[i][j]][j]` for `dim` 0, and so on.
fn gather(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, index, out) = (args.tensor(0)?, args.tensor(2)?, args.output(3)?);
    let dim = args.dim(1, x.ndim())?;
    ensure!(out.dims() == index.dims(), "out: shape {:?}, want {:?}", out.dims(), index.dims());
    same_type(args, 3, &out, &x)?;
    if out.elements() == 0 {
        return Ok(());
    }
    let [x, index, out] = [x, index, out].map(at_least_1d);
    let lines = Lines::new(&x, dim, index.dims()).map_err(|f| f.about("index"))?;
    let indices = checked(machine, &index, x.dim(dim), Negative::FromEnd).map_err(|f| f.about("index"))?;
    let outcome = with_elem!(x.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        lines.each(&out, &indices, |from, to| memory[to] = memory[from])
    }, else => Ok(()));
    give_back(machine, indices);
    outcome
}

/// `self index → out`: elements by their number in row-major order.
fn take(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, index, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    ensure!(out.dims() == index.dims(), "out: shape {:?}, want {:?}", out.dims(), index.dims());
    same_type(args, 2, &out, &x)?;
    let indices = checked(machine, &index, x.elements(), Negative::FromEnd).map_err(|f| f.about("index"))?;
    let places = Places::new(&x);
    let mut next = indices.iter();
    let outcome = with_elem!(x.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        Nest::new(out.dims(), [&out]).map(|nest| nest.rows(|[row]| {
            for (i, &index) in next.by_ref().take(row.len).enumerate() {
                memory[row.at(i)] = memory[places.of(index as usize)];
            }
        }))
    }, else => Ok(()));
    give_back(machine, indices);
    outcome
}

/// Where a view's elements lie by their row-major number.
pub struct Places<'a>(&'a View);

impl<'a> Places<'a> {
    /// The elements of `view`.
    pub fn new(view: &'a View) -> Self {
        Self(view)
    }

    /// Place in memory of element `number`, which the view must have.
    pub fn of(&self, number: usize) -> usize {
        let (mut rest, mut at) = (number, self.0.start());
        for (&size, &stride) in self.0.dims().iter().zip(self.0.strides()).rev() {
            at = at.wrapping_add_signed((rest % size) as isize * stride);
            rest /= size;
        }
        at
    }
}
