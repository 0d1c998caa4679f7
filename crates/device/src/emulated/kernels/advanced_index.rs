//! Index and IndexPutImpl: a tensor indexed by several index tensors at once, as `x[i, :, j]`.
//!
//! Index tensors broadcast to one shape. Where the indexed dimensions are neighbours that shape stands in their place,
//! else it comes first. A null entry leaves its dimension as it is, and so does an empty one of the table's type, which
//! torch_npu passes instead; a bool tensor stands for the positions of its true elements.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::indices::{each_block, to_front};
use super::lane::{self, Class, class, with_elem};
use super::nest::{Nest, Shape, broadcast_shape};
use super::number::{Number, with_lane};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnIndex, index), (ops::aclnnIndexPutImpl, index_put)];

/// Index tensors resolved against a table.
struct Selection {
    /// Shape that the index tensors broadcast to.
    lead: Shape,
    /// Offset in elements of each combination, row-major.
    offsets: Vec<isize>,
    /// The table without the indexed dimensions.
    block: View,
    /// Dimension of the result where the index shape stands.
    front: usize,
}

impl Selection {
    fn new(args: &Args<'_>, machine: &Machine, table: &View, position: usize) -> Outcome<Self> {
        let name = args.name(position);
        let entries = args.optional_tensors(position)?;
        let is_null = |view: &View| view.dims() == [0] && view.dtype == table.dtype;
        let mut dim = 0;
        // Indexed dimensions, each with its entry; the dimensions of a bool tensor belong together.
        let mut indexed: Vec<(usize, Entry)> = Vec::new();
        for entry in entries {
            match entry {
                Some(view) if !is_null(&view) && view.dtype == DataType::Bool => {
                    let fits =
                        dim + view.ndim() <= table.ndim() && *view.dims() == table.dims()[dim..dim + view.ndim()];
                    ensure!(fits, "{name}: mask of shape {:?} at dimension {dim} of {:?}", view.dims(), table.dims());
                    let offsets = true_offsets(machine, &view, &table.strides()[dim..])?;
                    let count = view.ndim();
                    indexed.push((dim, Entry::Mask { offsets, count }));
                    dim += count;
                }
                Some(view) if !is_null(&view) => {
                    ensure!(dim < table.ndim(), "{name}: more entries than {:?} has dimensions", table.dims());
                    indexed.push((dim, Entry::Tensor(view)));
                    dim += 1;
                }
                _ => {
                    ensure!(dim < table.ndim(), "{name}: more entries than {:?} has dimensions", table.dims());
                    dim += 1;
                }
            }
        }
        ensure!(!indexed.is_empty(), "{name}: no entry is an index");
        let mut lead = broadcast_shape(&[], &[])?;
        for (_, entry) in &indexed {
            lead = match entry {
                Entry::Mask { offsets, .. } => broadcast_shape(lead.dims(), &[offsets.len()])?,
                Entry::Tensor(view) => broadcast_shape(lead.dims(), view.dims())?,
            };
        }
        let count = lead.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
        ensure!(count <= INTERMEDIATE_MAX, "{name}: {count} positions, at most {INTERMEDIATE_MAX} are supported");
        let mut offsets = vec![0isize; count];
        for (dim, entry) in &indexed {
            entry.add_to(machine, table, *dim, lead.dims(), &mut offsets).map_err(|f| f.about(name))?;
        }
        let covered = |d: usize| indexed.iter().any(|(at, entry)| (*at..at + entry.dims()).contains(&d));
        let block = (0..table.ndim()).rev().filter(|&d| covered(d)).fold(*table, |view, d| view.without(d));
        let neighbours = indexed.windows(2).all(|pair| pair[0].0 + pair[0].1.dims() == pair[1].0);
        let front = if neighbours { indexed[0].0 } else { 0 };
        Ok(Self { lead, offsets, block, front })
    }

    /// `view`, of the result's shape, with the index dimensions first.
    fn arranged(&self, view: &View) -> View {
        to_front(view, self.front, self.lead.dims().len())
    }

    /// Shape of the result.
    fn shape(&self) -> Vec<usize> {
        let (before, after) = self.block.dims().split_at(self.front);
        [before, self.lead.dims(), after].concat()
    }

    /// True if there is nothing to move.
    fn is_empty(&self) -> bool {
        self.offsets.is_empty() || self.block.elements() == 0
    }
}

enum Entry {
    Tensor(View),
    Mask { offsets: Vec<isize>, count: usize },
}

impl Entry {
    /// Dimensions of the table that it indexes.
    fn dims(&self) -> usize {
        match self {
            Self::Tensor(_) => 1,
            Self::Mask { count, .. } => *count,
        }
    }

    fn add_to(&self, machine: &Machine, table: &View, dim: usize, lead: &[usize], offsets: &mut [isize]) -> Outcome {
        let view = match self {
            Self::Tensor(view) => view,
            Self::Mask { offsets: own, .. } => {
                // The last dimension of the index shape runs over the true elements, or they are one for all.
                let last = own.len();
                for (at, offset) in offsets.iter_mut().enumerate() {
                    *offset += own[if last == 1 { 0 } else { at % last }];
                }
                return Ok(());
            }
        };
        ensure!(class(view.dtype) == Class::Int, "type {}, want int32 or int64", lane::name(view.dtype));
        let (size, stride) = (table.dim(dim) as i64, table.stride(dim));
        let expanded = view.broadcast(lead)?;
        let mut at = 0;
        let mut bad = None;
        Nest::new(lead, [&expanded])?.rows(|[row]| {
            for i in 0..row.len {
                let index = row.integer(&machine.hbm, i);
                if !(-size..size).contains(&index) {
                    bad = bad.or(Some((index, at)));
                } else {
                    offsets[at] += (if index < 0 { index + size } else { index }) as isize * stride;
                }
                at += 1;
            }
        });
        match bad {
            Some((value, at)) => {
                ensure!(false, "value {value} at position {at} is out of range for dimension {dim} with size {size}");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Offsets of the true elements of `mask` in a tensor with these strides.
fn true_offsets(machine: &Machine, mask: &View, strides: &[isize]) -> Outcome<Vec<isize>> {
    let mut offsets = Vec::new();
    super::select::each_true(machine, mask, |position| {
        offsets.push(position.iter().zip(strides).map(|(&at, &stride)| at as isize * stride).sum());
    })?;
    Ok(offsets)
}

/// `self indices → out`.
fn index(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    if out.elements() == 0 {
        return Ok(());
    }
    let selection = Selection::new(args, machine, &x, 1)?;
    let shape = selection.shape();
    ensure!(out.dims() == shape, "out: shape {:?}, want {shape:?}", out.dims());
    let lead = selection.lead.dims().len();
    each_block(&selection.arranged(&out), lead, &selection.block, selection.offsets.iter().copied(), |[out, block]| {
        out.copy_from(&mut machine.hbm, &block);
    })
}

/// `selfRef indices values accumulate unsafe`: the values, broadcast to the result of indexing, replace what is indexed
/// (the last of several for one element stays) or are added to it.
fn index_put(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (table, values, accumulate) = (args.output(0)?, args.tensor(2)?, args.int(3)? != 0);
    let dtype = lane::name(values.dtype);
    ensure!(values.dtype == table.dtype, "values: type {dtype}, want {}", lane::name(table.dtype));
    // Without any element in any entry nothing is indexed.
    let mut entries = args.optional_tensors(1)?.into_iter().flatten();
    if table.elements() == 0 || entries.all(|view| view.elements() == 0) {
        return Ok(());
    }
    let selection = Selection::new(args, machine, &table, 1)?;
    let shape = selection.shape();
    ensure!(shape.len() <= acl_abi::MAX_DIMS, "indices: a result with {} dimensions", shape.len());
    // torch allows leading dimensions of size 1 that the result does not have.
    let extra = values.ndim().saturating_sub(shape.len());
    ensure!(values.dims()[..extra].iter().all(|&d| d == 1), "values: shape {:?}, want {shape:?}", values.dims());
    let values = (0..extra).fold(values, |view, _| view.without(0));
    let values = values.broadcast(&shape).map_err(|f| f.about("values"))?;
    if selection.is_empty() {
        return Ok(());
    }
    let lead = selection.lead.dims().len();
    let (slices, offsets) = (selection.arranged(&values), selection.offsets.iter().copied());
    if !accumulate {
        return each_block(&slices, lead, &selection.block, offsets, |[values, block]| {
            block.copy_from(&mut machine.hbm, &values);
        });
    }
    with_lane!(class(table.dtype), L => with_elem!(table.dtype, E => {
        use super::lane::Lane;
        let memory: &mut [E] = machine.hbm.elements_mut();
        each_block(&slices, lead, &selection.block, offsets, |[values, block]| {
            for i in 0..block.len {
                let sum = L::of(memory[block.at(i)]).plus(L::of(memory[values.at(i)]));
                memory[block.at(i)] = sum.to();
            }
        })
    }, else => Ok(())))
}
