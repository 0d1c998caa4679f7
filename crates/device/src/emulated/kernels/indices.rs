//! Indices out of device memory: checked before use, then turned into places.
//!
//! Two kinds of operators exist. Some move *blocks*: an index names a slice of a table ([`each_block`]). Others move single
//! *elements*: an index tensor of the table's rank names, for each of its positions, the coordinate in one dimension
//! ([`Lines`]). Either kind reads all indices first, so a bad one is reported before anything is written.

use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{Nest, load_all};
use super::view::{Row, View};
use super::{Machine, sized};

/// What a negative index means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negative {
    /// An error.
    Refused,
    /// Counted from the end.
    FromEnd,
}

/// Every element of `index` in row-major order, each in `0..limit`. The buffer is scratch: hand it back with
/// [`give_back`].
pub fn checked(machine: &mut Machine, index: &View, limit: usize, negative: Negative) -> Outcome<Vec<i64>> {
    ensure!(class(index.dtype) == Class::Int, "type {}, want int32 or int64", lane::name(index.dtype));
    let mut indices = std::mem::take(&mut machine.scratch.indices);
    sized(&mut indices, index.elements())?;
    indices.truncate(index.elements());
    load_all(machine, index, &mut indices)?;
    let limit = limit as i64;
    let lowest = if negative == Negative::FromEnd { -limit } else { 0 };
    for (at, value) in indices.iter_mut().enumerate() {
        ensure!((lowest..limit).contains(value), "value {value} at position {at} is not in {lowest}..{limit}");
        if *value < 0 {
            *value += limit;
        }
    }
    Ok(indices)
}

/// Returns the buffer of [`checked`].
pub fn give_back(machine: &mut Machine, indices: Vec<i64>) {
    machine.scratch.indices = indices;
}

/// The view with `count` dimensions from `from` on moved to the front.
pub fn to_front(view: &View, from: usize, count: usize) -> View {
    let sink = |view: View, dim: usize, to: usize| (to..dim).rev().fold(view, |view, d| view.transpose(d, d + 1));
    (0..count).fold(*view, |view, i| sink(view, from + i, i))
}

/// Calls `body` with matching rows of two blocks for each of `offsets`: the next slice of `slices` (whose first `lead`
/// dimensions count the offsets) and `block` moved by the offset, in elements.
pub fn each_block(
    slices: &View,
    lead: usize,
    block: &View,
    offsets: impl Iterator<Item = isize>,
    mut body: impl FnMut([Row; 2]),
) -> Outcome {
    let heads = (lead..slices.ndim()).rev().fold(*slices, |view, d| view.without(d));
    let slice = (0..lead).rev().fold(*slices, |view, d| view.without(d));
    ensure!(slice.dims() == block.dims(), "slices of shape {:?} do not fit {:?}", slice.dims(), block.dims());
    let inner = Nest::new(block.dims(), [&slice, block])?;
    let mut offsets = offsets;
    Nest::new(heads.dims(), [&heads])?.rows(|[row]| {
        for (i, offset) in offsets.by_ref().take(row.len).enumerate() {
            inner.rows_at([row.at(i), block.start().wrapping_add_signed(offset)], &mut body);
        }
    });
    Ok(())
}

/// A table addressed element by element along one dimension.
pub struct Lines {
    base: View,
    stride: isize,
}

impl Lines {
    /// `table` along `dim`, for index tensors of shape `shape`: they may be shorter than the table in the other dimensions.
    /// 0-d tensors count as one element of one dimension: see [`at_least_1d`].
    pub fn new(table: &View, dim: usize, shape: &[usize]) -> Outcome<Self> {
        let fits = shape.len() == table.ndim() && (0..shape.len()).all(|d| d == dim || shape[d] <= table.dim(d));
        ensure!(fits, "shape {shape:?} does not fit {:?} along dimension {dim}", table.dims());
        let mut base = *table;
        for (d, &size) in shape.iter().enumerate().filter(|(d, _)| *d != dim) {
            base = base.narrow(d, 0, size);
        }
        Ok(Self { base: base.without(dim).unsqueeze(dim), stride: table.stride(dim) })
    }

    /// Calls `body(place in the table, place in other)` for each index, which is a checked coordinate; `other` has the
    /// index tensor's shape.
    pub fn each(&self, other: &View, indices: &[i64], mut body: impl FnMut(usize, usize)) -> Outcome {
        let mut next = indices.iter();
        Nest::new(other.dims(), [&self.base, other])?.rows(|[base, other]| {
            for (i, &index) in next.by_ref().take(other.len).enumerate() {
                body(base.at(i).wrapping_add_signed(index as isize * self.stride), other.at(i));
            }
        });
        Ok(())
    }
}

/// The view itself, or a 0-d one with a dimension of size 1.
pub fn at_least_1d(view: View) -> View {
    if view.ndim() == 0 { view.unsqueeze(0) } else { view }
}
