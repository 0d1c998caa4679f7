//! Dimensions that an operator reduces, and the loop over what it reduces.
//!
//! A [`Reduction`] splits a view into leading dimensions, which the output keeps, and reduced ones. Each output element
//! sees its [`Group`] of input elements in row-major order of the reduced dimensions, in pieces of at most
//! [`CHUNK`] elements: which elements share a piece depends on the reduced dimensions alone.

use acl_abi::MAX_DIMS;

use super::Machine;
use super::args::{Args, wrap_dim};
use super::fault::{Outcome, ensure};
use super::lane::Lane;
use super::nest::{CHUNK, Nest};
use super::view::{Row, View};
use crate::emulated::hbm::Hbm;

/// Most outputs of a reduction.
const OUTPUTS_MAX: usize = 3;

/// A set of dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes([bool; MAX_DIMS]);

impl Axes {
    /// Every dimension.
    pub fn all() -> Self {
        Self([true; MAX_DIMS])
    }

    /// One dimension.
    pub fn one(dim: usize) -> Self {
        Self(std::array::from_fn(|d| d == dim))
    }

    /// The dimensions of the int array at `position`, of a tensor with `ndim` dimensions; every one where it is null or
    /// empty.
    pub fn of(args: &Args<'_>, position: usize, ndim: usize) -> Outcome<Self> {
        let listed = args.ints(position).unwrap_or_default();
        if listed.is_empty() {
            return Ok(Self::all());
        }
        let mut axes = Self([false; MAX_DIMS]);
        for &dim in listed {
            let dim = wrap_dim(args.name(position), dim, ndim)?;
            ensure!(!axes.0[dim], "{}: dimension {dim} appears twice", args.name(position));
            axes.0[dim] = true;
        }
        Ok(axes)
    }

    /// True for a dimension of the set.
    pub fn contains(self, dim: usize) -> bool {
        self.0[dim]
    }
}

/// A view split into leading and reduced dimensions.
pub struct Reduction {
    x: View,
    axes: Axes,
    lead: View,
    inner: Nest<1>,
    len: usize,
}

/// The input elements of one output element.
pub struct Group<'a> {
    inner: &'a Nest<1>,
    start: usize,
    len: usize,
}

impl Reduction {
    /// `x` reduced over `axes`; a 0-d view counts as one element of one dimension.
    ///
    /// # Errors
    /// If an expanded view has more elements than the device has bytes.
    pub fn new(machine: &Machine, x: &View, axes: Axes) -> Outcome<Self> {
        let x = if x.ndim() == 0 { x.unsqueeze(0) } else { *x };
        let (elements, bytes) = (x.elements() as u64, machine.hbm.len());
        ensure!(elements <= bytes, "{elements} elements are more than the device has bytes");
        let (mut lead, mut reduced) = (x, x);
        for dim in (0..x.ndim()).rev() {
            if axes.contains(dim) {
                lead = lead.without(dim);
            } else {
                reduced = reduced.without(dim);
            }
        }
        let inner = Nest::new(reduced.dims(), [&reduced])?;
        Ok(Self { x, axes, lead, inner, len: reduced.elements() })
    }

    /// Elements that one output element is made of.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are output elements, but nothing to make them of.
    pub fn lacks_elements(&self) -> bool {
        self.len == 0 && self.lead.elements() > 0
    }

    /// The output at `position` without the reduced dimensions, which it may keep with size 1.
    pub fn output(&self, args: &Args<'_>, position: usize) -> Outcome<View> {
        let out = args.output(position)?;
        if out.dims() == self.lead.dims() {
            return Ok(out);
        }
        let x = &self.x;
        let wanted = |d: usize| if self.axes.contains(d) { 1 } else { x.dim(d) };
        let fits = out.ndim() == x.ndim() && (0..x.ndim()).all(|d| out.dim(d) == wanted(d));
        ensure!(
            fits,
            "{}: shape {:?}, want {:?} (or the reduced dimensions with size 1)",
            args.name(position),
            out.dims(),
            self.lead.dims()
        );
        Ok((0..x.ndim()).rev().filter(|&d| self.axes.contains(d)).fold(out, |out, d| out.without(d)))
    }

    /// Calls `body` with every group and the one element of each output that it belongs to.
    ///
    /// # Errors
    /// Never for outputs that [`Self::output`] made.
    pub fn each(&self, outputs: &[View], mut body: impl FnMut(Group<'_>, [Row; OUTPUTS_MAX])) -> Outcome {
        // Outputs that are not there are stood in for by the input, and not touched.
        let view = |i: usize| outputs.get(i).unwrap_or(&self.lead);
        let nest = Nest::new(self.lead.dims(), [&self.lead, view(0), view(1), view(2)])?;
        nest.rows(|rows| {
            for i in 0..rows[0].len {
                let group = Group { inner: &self.inner, start: rows[0].at(i), len: self.len };
                body(group, std::array::from_fn(|o| Row::new(rows[o + 1].dtype, rows[o + 1].at(i), 1, 1)));
            }
        });
        Ok(())
    }
}

impl Group<'_> {
    /// Calls `body(i, piece)` with the elements from `i` on, in order.
    pub fn pieces<L: Lane>(&self, hbm: &Hbm, mut body: impl FnMut(usize, &[L])) {
        let mut piece = [L::default(); CHUNK];
        let mut done = 0;
        self.inner.rows_at([self.start], |[row]| {
            for from in (0..row.len).step_by(CHUNK) {
                let piece = &mut piece[..CHUNK.min(row.len - from)];
                row.load(hbm, from, piece);
                body(done, piece);
                done += piece.len();
            }
        });
    }

    /// Elements of the group.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// `view` with dimension `dim` last; a 0-d view counts as one element of one dimension.
pub fn move_last(view: &View, dim: usize) -> View {
    let view = if view.ndim() == 0 { view.unsqueeze(0) } else { *view };
    (dim + 1..view.ndim()).fold(view, |view, d| view.transpose(d - 1, d))
}
