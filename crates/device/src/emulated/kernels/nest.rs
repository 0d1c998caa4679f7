//! Loops over several views of one shape at once.
//!
//! The views are broadcast to the shape, dimensions that every view runs through evenly are merged, and the body sees
//! one [`Row`] a view: for contiguous operands a single long one. Bodies work through rows in pieces of
//! [`CHUNK`] elements on the stack: load, compute, store. A piece is loaded completely before it is stored, so an
//! output may be one of the inputs.

use acl_abi::{DataType, MAX_DIMS};

use super::Machine;
use super::fault::{Outcome, ensure};
use super::lane::Lane;
use super::view::{Row, View};

/// Elements that a kernel holds on the stack at a time: a few KiB an operand, inside the first-level cache.
pub const CHUNK: usize = 512;

/// Sizes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    ndim: usize,
    sizes: [usize; MAX_DIMS],
}

impl Shape {
    /// The sizes.
    pub fn dims(&self) -> &[usize] {
        &self.sizes[..self.ndim]
    }
}

/// The shape that `a` and `b` broadcast to.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Outcome<Shape> {
    let ndim = a.len().max(b.len());
    let mut sizes = [0; MAX_DIMS];
    let from_end = |dims: &[usize], i: usize| dims.len().checked_sub(i + 1).map_or(1, |d| dims[d]);
    for i in 0..ndim {
        let (x, y) = (from_end(a, i), from_end(b, i));
        ensure!(x == y || x == 1 || y == 1, "shapes {a:?} and {b:?} do not broadcast");
        sizes[ndim - 1 - i] = if x == 1 { y } else { x };
    }
    Ok(Shape { ndim, sizes })
}

/// `N` views of one shape.
pub struct Nest<const N: usize> {
    ndim: usize,
    dims: [usize; MAX_DIMS],
    strides: [[isize; MAX_DIMS]; N],
    starts: [usize; N],
    dtypes: [DataType; N],
    empty: bool,
}

impl<const N: usize> Nest<N> {
    /// The views broadcast to `shape`.
    pub fn new(shape: &[usize], views: [&View; N]) -> Outcome<Self> {
        let mut nest = Self {
            ndim: 0,
            dims: [0; MAX_DIMS],
            strides: [[0; MAX_DIMS]; N],
            starts: views.map(View::start),
            dtypes: views.map(|v| v.dtype),
            empty: shape.contains(&0),
        };
        let mut expanded = [*views[0]; N];
        for (expanded, view) in expanded.iter_mut().zip(views) {
            assert!(view.strip_dim().is_none(), "a matrix in FRACTAL_NZ is read by its pieces");
            *expanded = view.broadcast(shape)?;
        }
        for (dim, &size) in shape.iter().enumerate() {
            if size == 1 {
                continue;
            }
            // Merge with the dimension before where one step of that is `size` steps of this, for every view.
            let last = nest.ndim.wrapping_sub(1);
            let merges = nest.ndim > 0
                && (0..N).all(|v| nest.strides[v][last] == expanded[v].stride(dim).wrapping_mul(size as isize));
            if merges {
                nest.dims[last] *= size;
            } else {
                nest.dims[nest.ndim] = size;
                nest.ndim += 1;
            }
            let at = nest.ndim - 1;
            for (strides, view) in nest.strides.iter_mut().zip(&expanded) {
                strides[at] = view.stride(dim);
            }
        }
        if nest.ndim == 0 {
            nest.ndim = 1;
            nest.dims[0] = 1;
        }
        Ok(nest)
    }

    /// Length of a row.
    pub fn inner(&self) -> usize {
        self.dims[self.ndim - 1]
    }

    /// Calls `body` for every row, outermost dimension slowest.
    pub fn rows(&self, body: impl FnMut([Row; N])) {
        self.rows_at(self.starts, body);
    }

    /// The same for views of these sizes and strides that start elsewhere; what they reach must lie inside memory.
    pub fn rows_at(&self, mut starts: [usize; N], mut body: impl FnMut([Row; N])) {
        if self.empty {
            return;
        }
        let inner = self.ndim - 1;
        let mut index = [0usize; MAX_DIMS];
        loop {
            body(std::array::from_fn(|v| {
                Row::new(self.dtypes[v], starts[v], self.strides[v][inner], self.dims[inner])
            }));
            let mut dim = inner;
            loop {
                if dim == 0 {
                    return;
                }
                dim -= 1;
                index[dim] += 1;
                let wraps = index[dim] == self.dims[dim];
                let step = if wraps { -(self.dims[dim] as isize - 1) } else { 1 };
                for (start, strides) in starts.iter_mut().zip(&self.strides) {
                    *start = start.wrapping_add_signed(step.wrapping_mul(strides[dim]));
                }
                if !wraps {
                    break;
                }
                index[dim] = 0;
            }
        }
    }
}

/// `x[i] = f(x[i])`, with the widest vectors there are: the same operations on every element, so the same bits.
fn each<L: Lane>(x: &mut [L], f: &impl Fn(L) -> L) {
    each_pair(x, &[], &|x, _| f(x));
}

/// `x[i] = f(x[i], y[i])`; a `y` that is too short stands for zeros.
fn each_pair<L: Lane>(x: &mut [L], y: &[L], f: &impl Fn(L, L) -> L) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, checked just now.
        return unsafe { each_pair_avx2(x, y, f) };
    }
    each_pair_any(x, y, f);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn each_pair_avx2<L: Lane>(x: &mut [L], y: &[L], f: &impl Fn(L, L) -> L) {
    each_pair_any(x, y, f);
}

#[inline(always)]
fn each_pair_any<L: Lane>(x: &mut [L], y: &[L], f: &impl Fn(L, L) -> L) {
    if y.len() < x.len() {
        x.iter_mut().for_each(|x| *x = f(*x, L::default()));
    } else {
        x.iter_mut().zip(y).for_each(|(x, y)| *x = f(*x, *y));
    }
}

/// `out = f(a)`, element by element.
pub fn map1<L: Lane>(machine: &mut Machine, out: &View, a: &View, f: impl Fn(L) -> L) -> Outcome {
    let nest = Nest::new(out.dims(), [out, a])?;
    let mut x = [L::default(); CHUNK];
    nest.rows(|[out, a]| {
        for from in (0..out.len).step_by(CHUNK) {
            let n = CHUNK.min(out.len - from);
            let x = &mut x[..n];
            a.load(&machine.hbm, from, x);
            each(x, &f);
            out.store(&mut machine.hbm, from, x);
        }
    });
    Ok(())
}

/// `out = f(a, b)`, element by element, with broadcasting.
pub fn map2<L: Lane>(machine: &mut Machine, out: &View, a: &View, b: &View, f: impl Fn(L, L) -> L) -> Outcome {
    let nest = Nest::new(out.dims(), [out, a, b])?;
    let (mut x, mut y) = ([L::default(); CHUNK], [L::default(); CHUNK]);
    nest.rows(|[out, a, b]| {
        for from in (0..out.len).step_by(CHUNK) {
            let n = CHUNK.min(out.len - from);
            let (x, y) = (&mut x[..n], &mut y[..n]);
            a.load(&machine.hbm, from, x);
            b.load(&machine.hbm, from, y);
            each_pair(x, y, &f);
            out.store(&mut machine.hbm, from, x);
        }
    });
    Ok(())
}

/// Calls `body` with the last dimension of every view, for each index of their leading dimensions in row-major order.
/// Leading sizes are broadcast to `lead`; views with an empty last dimension are skipped.
pub fn lines<const N: usize>(lead: &[usize], views: [&View; N], mut body: impl FnMut([Row; N])) -> Outcome {
    for view in views {
        ensure!(view.ndim() >= 1, "a tensor with at least one dimension is required");
        if view.dim(view.ndim() - 1) == 0 {
            return Ok(());
        }
    }
    let heads = views.map(|v| v.select(v.ndim() - 1, 0));
    let nest = Nest::<N>::new(lead, std::array::from_fn(|v| &heads[v]))?;
    let last = views.map(|v| (v.stride(v.ndim() - 1), v.dim(v.ndim() - 1)));
    nest.rows(|rows| {
        for i in 0..rows[0].len {
            body(std::array::from_fn(|v| {
                let (stride, len) = last[v];
                Row::new(rows[v].dtype, rows[v].at(i), stride, len)
            }));
        }
    });
    Ok(())
}

/// Loads every element in row-major order.
///
/// # Panics
/// If `out` does not have the view's size.
pub fn load_all<L: Lane>(machine: &Machine, view: &View, out: &mut [L]) -> Outcome {
    assert_eq!(out.len(), view.elements());
    let mut done = 0;
    Nest::new(view.dims(), [view])?.rows(|[row]| {
        row.load(&machine.hbm, 0, &mut out[done..done + row.len]);
        done += row.len;
    });
    Ok(())
}

/// Stores every element in row-major order; `values(i, piece)` gives the elements from index `i` on.
pub fn store_all<L: Lane>(machine: &mut Machine, view: &View, mut values: impl FnMut(usize, &mut [L])) -> Outcome {
    let mut piece = [L::default(); CHUNK];
    let mut done = 0;
    Nest::new(view.dims(), [view])?.rows(|[row]| {
        for from in (0..row.len).step_by(CHUNK) {
            let piece = &mut piece[..CHUNK.min(row.len - from)];
            values(done, piece);
            row.store(&mut machine.hbm, from, piece);
            done += piece.len();
        }
    });
    Ok(())
}
