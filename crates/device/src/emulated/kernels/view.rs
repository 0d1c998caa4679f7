//! Strided views of device memory, checked once and then safe to index.
//!
//! A [`View`] is made from a [`TensorDesc`] whose byte span was checked against the device's memory; everything derived
//! from it (a row, a slice of a dimension, a broadcast) stays inside that span by construction, and every access is a
//! bounds-checked slice access on top. A view holds no reference: reading takes `&Hbm`, writing `&mut Hbm`.

use acl_abi::{DataType, MAX_DIMS, TensorDesc, nz, values};

use super::fault::{Fault, ensure};
use super::lane::{self, Elem, Lane, with_elem};
use crate::emulated::hbm::{Hbm, offset_of};
use crate::interface::PhysAddr;

/// Most elements that a view may have, counting repeated ones: keeps products of sizes inside 64 bits.
pub const ELEMENTS_MAX: u64 = 1 << 40;

/// A strided view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Element type.
    pub dtype: DataType,
    /// Index of the first element, in elements of `dtype` from the start of memory.
    start: usize,
    ndim: usize,
    dims: [usize; MAX_DIMS],
    strides: [isize; MAX_DIMS],
    /// Set for a matrix in FRACTAL_NZ that is wider than one strip.
    strips: Option<Strips>,
}

/// A dimension that is cut into strips (`acl_abi::nz`): its element `i` lies `(first + i) / width · apart + (first + i) % width`
/// behind the view's first element, which is that of `first` 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strips {
    dim: usize,
    width: usize,
    apart: isize,
    first: usize,
}

impl Strips {
    /// Where element `index` of the dimension lies.
    fn at(&self, index: usize) -> isize {
        let index = self.first + index;
        ((index / self.width) as isize).wrapping_mul(self.apart).wrapping_add((index % self.width) as isize)
    }
}

/// Elements of one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Element type.
    pub dtype: DataType,
    /// Number of elements.
    pub len: usize,
    start: usize,
    stride: isize,
}

impl View {
    /// Checks `desc` against a memory of `total` bytes.
    pub fn new(desc: &TensorDesc, total: u64) -> Result<Self, Fault> {
        ensure!(usize::from(desc.ndim) <= MAX_DIMS, "{} dimensions, at most {MAX_DIMS} are supported", desc.ndim);
        ensure!(lane::is_supported(desc.dtype), "element type {} is not supported", lane::name(desc.dtype));
        let plain = matches!(
            desc.format,
            values::ACL_FORMAT_UNDEFINED
                | values::ACL_FORMAT_ND
                | values::ACL_FORMAT_NCHW
                | values::ACL_FORMAT_NHWC
                | values::ACL_FORMAT_HWCN
                | values::ACL_FORMAT_NDHWC
                | values::ACL_FORMAT_NCDHW
                | values::ACL_FORMAT_NC
                | values::ACL_FORMAT_NCL
                | values::ACL_FORMAT_FRACTAL_NZ
        );
        ensure!(
            plain,
            "storage format {} is not supported (plain strided formats, ND = 2, and FRACTAL_NZ = 29)",
            desc.format
        );
        // Empty dimensions count as one, so that no product of some of the sizes overflows either.
        let elements = desc.dims().iter().fold(1u64, |n, &d| n.saturating_mul(d.max(1) as u64));
        ensure!(elements <= ELEMENTS_MAX, "sizes {:?}: more than {ELEMENTS_MAX} elements", desc.dims());
        let Ok(private) = nz::matrices(desc) else {
            return Err(Fault::new("FRACTAL_NZ: sizes, strides and offset are not those of whole matrices"));
        };
        let span = desc.byte_span();
        let Ok(span) = span else { return Err(Fault::new("sizes and strides overflow, or reach below the storage")) };
        let ndim = desc.dims().len();
        let mut view =
            Self { dtype: desc.dtype, start: 0, ndim, dims: [0; MAX_DIMS], strides: [0; MAX_DIMS], strips: None };
        for i in 0..view.ndim {
            view.dims[i] = desc.dims[i] as usize;
            view.strides[i] = desc.strides[i] as isize;
        }
        let mut offset = desc.offset as u64;
        if let Some(private) = private {
            view.lay_out(&private);
            offset = (private.first * private.matrix) as u64;
        }
        let size = u64::from(desc.dtype.bits() / 8);
        if let Some((first, end)) = span {
            let addr = desc.addr.checked_add(first).ok_or_else(|| Fault::new("address overflows"))?;
            let low = offset_of(PhysAddr(addr), end - first, total).map_err(|e| Fault::new(e.to_string()))?;
            ensure!(low % size == 0, "address {addr:#x} is not aligned to the {size}-byte element");
            // `low` belongs to the lowest element, which lies `first / size` elements above the storage base.
            view.start = (low / size + (offset - first / size)) as usize;
        }
        Ok(view)
    }

    /// Strides of matrices in FRACTAL_NZ instead of those they have row by row.
    fn lay_out(&mut self, private: &nz::Matrices) {
        let mut apart = private.matrix as isize;
        for dim in (0..self.ndim - 2).rev() {
            self.strides[dim] = apart;
            apart *= self.dims[dim] as isize;
        }
        let (dim, width) = (private.columns, private.width as usize);
        (self.strides[private.rows], self.strides[dim]) = (private.width as isize, 1);
        self.strips =
            (self.dims[dim] > width).then_some(Strips { dim, width, apart: private.strip as isize, first: 0 });
    }

    /// The dimension that is cut into strips; such a view is read and written by its [`Self::pieces`].
    pub fn strip_dim(&self) -> Option<usize> {
        self.strips.map(|strips| strips.dim)
    }

    /// Views without strips that make up this one, each with its first index along [`Self::strip_dim`].
    pub fn pieces(&self) -> impl Iterator<Item = (usize, Self)> + use<> {
        let view = *self;
        let (mut next, mut whole) = (0, view.strips.is_none().then_some((0, view)));
        std::iter::from_fn(move || {
            let Some(Strips { dim, width, first, .. }) = view.strips else { return whole.take() };
            let from = next;
            next = ((first + from) / width + 1) * width - first;
            next = next.min(view.dim(dim));
            (from < next).then(|| (from, view.narrow(dim, from, next - from)))
        })
    }

    /// Sizes.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.ndim]
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides[..self.ndim]
    }

    /// Number of dimensions.
    pub fn ndim(&self) -> usize {
        self.ndim
    }

    /// Size of dimension `dim`.
    pub fn dim(&self, dim: usize) -> usize {
        self.dims()[dim]
    }

    /// Stride of dimension `dim`, in elements.
    pub fn stride(&self, dim: usize) -> isize {
        self.strides()[dim]
    }

    /// Index of the first element.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Number of elements (1 for 0-d).
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// True if two indices surely name one element, as in an expanded view: such a view is not to be written.
    pub fn repeats(&self) -> bool {
        if self.strips.is_some() {
            // Made of whole matrices, and kernels do not expand them before they write.
            return false;
        }
        let mut reach = 1usize;
        for (&d, &s) in self.dims().iter().zip(self.strides()) {
            if d > 1 && s == 0 {
                return true;
            }
            reach = reach.saturating_add(d.saturating_sub(1).saturating_mul(s.unsigned_abs()));
        }
        self.elements() > reach
    }

    /// True for row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        if self.elements() == 0 {
            return true;
        }
        if self.strips.is_some() {
            return false;
        }
        let mut want = 1;
        for (&d, &s) in self.dims().iter().zip(self.strides()).rev() {
            if d != 1 {
                if s != want {
                    return false;
                }
                want *= d as isize;
            }
        }
        true
    }

    /// The view at index `index` of dimension `dim`, one dimension less.
    ///
    /// # Panics
    /// If there is no such index.
    pub fn select(&self, dim: usize, index: usize) -> Self {
        assert!(index < self.dim(dim), "index {index} of dimension {dim} with size {}", self.dim(dim));
        let mut view = self.without(dim);
        view.start = self.start.wrapping_add_signed(self.reach(dim, index));
        view
    }

    /// Where index `index` of dimension `dim` lies, from index 0 of a view without strips there.
    fn reach(&self, dim: usize, index: usize) -> isize {
        match self.strips {
            Some(strips) if strips.dim == dim => strips.at(index),
            _ => (index as isize).wrapping_mul(self.strides[dim]),
        }
    }

    /// `len` indices of dimension `dim` from `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn narrow(&self, dim: usize, from: usize, len: usize) -> Self {
        assert!(from + len <= self.dim(dim), "{from}+{len} of dimension {dim} with size {}", self.dim(dim));
        let mut view = *self;
        view.dims[dim] = len;
        match &mut view.strips {
            Some(strips) if strips.dim == dim => {
                strips.first += from;
                if strips.first % strips.width + len <= strips.width {
                    // All in one strip.
                    view.start = self.start.wrapping_add_signed(self.reach(dim, from));
                    view.strips = None;
                }
            }
            _ if len > 0 => view.start = self.start.wrapping_add_signed(self.reach(dim, from)),
            _ => {}
        }
        view
    }

    /// The only element of a view that has one, without dimensions.
    ///
    /// # Panics
    /// If there are more or none.
    pub fn single(&self) -> Self {
        assert_eq!(self.elements(), 1);
        self.no_strips();
        Self { ndim: 0, dims: [0; MAX_DIMS], strides: [0; MAX_DIMS], ..*self }
    }

    /// `count` indices of dimension `dim`, from `from` on, every `step`-th.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn step(&self, dim: usize, from: usize, step: isize, count: usize) -> Self {
        let last = (count as isize - 1).checked_mul(step).and_then(|reach| reach.checked_add(from as isize));
        let size = self.dim(dim) as isize;
        let inside = (from as isize) < size && last.is_some_and(|last| (0..size).contains(&last));
        assert!(count == 0 || inside, "{count} of {size} from {from} by {step}");
        self.no_strips();
        let mut view = *self;
        view.dims[dim] = count;
        view.strides[dim] = self.strides[dim].wrapping_mul(step);
        if count > 0 {
            view.start = self.start.wrapping_add_signed((from as isize).wrapping_mul(self.strides[dim]));
        }
        view
    }

    /// The first `count` elements whose indices are all equal.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn diagonal(&self, count: usize) -> Self {
        assert!(self.dims().iter().all(|&d| count <= d));
        self.no_strips();
        let mut view = Self { ndim: 1, dims: [0; MAX_DIMS], strides: [0; MAX_DIMS], ..*self };
        view.dims[0] = count;
        view.strides[0] = self.strides().iter().fold(0, |sum: isize, &stride| sum.wrapping_add(stride));
        view
    }

    /// A row-major view of these sizes from the first element on.
    ///
    /// # Panics
    /// If this view is not contiguous, or smaller.
    pub fn packed(&self, dims: &[usize]) -> Self {
        assert!(self.is_contiguous() && dims.iter().product::<usize>() <= self.elements());
        let mut view = Self { ndim: dims.len(), dims: [0; MAX_DIMS], strides: [0; MAX_DIMS], ..*self };
        let mut stride = 1;
        for (dim, &size) in dims.iter().enumerate().rev() {
            view.dims[dim] = size;
            view.strides[dim] = stride;
            stride *= size.max(1) as isize;
        }
        view
    }

    /// The view with dimensions `a` and `b` exchanged.
    pub fn transpose(&self, a: usize, b: usize) -> Self {
        let mut view = *self;
        view.dims.swap(a, b);
        view.strides.swap(a, b);
        if let Some(strips) = &mut view.strips {
            strips.dim = match strips.dim {
                dim if dim == a => b,
                dim if dim == b => a,
                dim => dim,
            };
        }
        view
    }

    /// The view with a dimension of size 1 before dimension `dim`.
    ///
    /// # Panics
    /// If there are [`MAX_DIMS`] dimensions already.
    pub fn unsqueeze(&self, dim: usize) -> Self {
        assert!(self.ndim < MAX_DIMS);
        let mut view = *self;
        view.dims.copy_within(dim..self.ndim, dim + 1);
        view.strides.copy_within(dim..self.ndim, dim + 1);
        view.dims[dim] = 1;
        view.strides[dim] = 0;
        view.ndim += 1;
        if let Some(strips) = &mut view.strips {
            strips.dim += usize::from(dim <= strips.dim);
        }
        view
    }

    /// Dimension `dim` as two, of sizes `outer` and `inner`.
    ///
    /// # Panics
    /// If the sizes do not multiply to the dimension's, or there are [`MAX_DIMS`] dimensions already.
    pub fn split(&self, dim: usize, outer: usize, inner: usize) -> Self {
        assert!(outer.checked_mul(inner) == Some(self.dim(dim)), "{outer}·{inner} is not {}", self.dim(dim));
        self.no_strips();
        let mut view = self.unsqueeze(dim);
        view.dims[dim] = outer;
        view.dims[dim + 1] = inner;
        view.strides[dim] = self.strides[dim].wrapping_mul(inner as isize);
        view
    }

    /// The view expanded to `shape`: trailing dimensions match or have size 1.
    pub fn broadcast(&self, shape: &[usize]) -> Result<Self, Fault> {
        let fits = self.ndim <= shape.len()
            && self.dims().iter().rev().zip(shape.iter().rev()).all(|(&have, &want)| have == want || have == 1);
        ensure!(fits, "shape {:?} does not broadcast to {shape:?}", self.dims());
        let added = shape.len() - self.ndim;
        let mut view = *self;
        view.ndim = shape.len();
        if let Some(strips) = &mut view.strips {
            strips.dim += added;
        }
        for (dim, &want) in shape.iter().enumerate() {
            let have = dim.checked_sub(added).map(|d| (self.dims[d], self.strides[d]));
            view.dims[dim] = want;
            view.strides[dim] = match have {
                Some((size, stride)) if size == want => stride,
                _ => 0,
            };
        }
        Ok(view)
    }

    /// For what strips have no meaning in.
    ///
    /// # Panics
    /// If there are any.
    fn no_strips(&self) {
        assert!(self.strips.is_none(), "a matrix in FRACTAL_NZ is read by its pieces");
    }

    /// The only dimension of a 1-d view.
    ///
    /// # Panics
    /// With another number of dimensions.
    pub fn row(&self) -> Row {
        assert_eq!(self.ndim, 1);
        self.no_strips();
        Row { dtype: self.dtype, len: self.dims[0], start: self.start, stride: self.strides[0] }
    }

    /// Loads a 2-d view row by row into `out`, as `f32`.
    ///
    /// # Panics
    /// If `out` is not of the view's size.
    pub fn load_matrix(&self, hbm: &Hbm, out: &mut [f32]) {
        let (rows, columns) = (self.dim(0), self.dim(1));
        assert_eq!(out.len(), rows * columns);
        if columns == 0 {
            return;
        }
        with_elem!(self.dtype, E => {
            for (i, out) in out.chunks_exact_mut(columns).enumerate() {
                let start = self.start.wrapping_add_signed(i as isize * self.strides[0]);
                load_run::<E, f32>(hbm.elements(), start, self.strides[1], out);
            }
        }, else => unsupported(self.dtype));
    }

    /// The view at the first index of dimension `dim`, one dimension less; where the dimension is empty there is no such
    /// element, and the result must not be read.
    pub fn without(&self, dim: usize) -> Self {
        let mut view = *self;
        view.dims.copy_within(dim + 1..self.ndim, dim);
        view.strides.copy_within(dim + 1..self.ndim, dim);
        view.ndim -= 1;
        view.dims[view.ndim] = 0;
        view.strides[view.ndim] = 0;
        match &mut view.strips {
            Some(strips) if strips.dim == dim => {
                view.start = self.start.wrapping_add_signed(self.reach(dim, 0));
                view.strips = None;
            }
            Some(strips) => strips.dim -= usize::from(dim < strips.dim),
            None => {}
        }
        view
    }
}

impl Row {
    /// A row of `len` elements `stride` apart; inside memory if the view it is derived from is.
    pub(super) fn new(dtype: DataType, start: usize, stride: isize, len: usize) -> Self {
        Self { dtype, len, start, stride }
    }

    /// Index in memory of element `index`, in elements.
    pub(super) fn at(&self, index: usize) -> usize {
        self.start.wrapping_add_signed((index as isize).wrapping_mul(self.stride))
    }

    /// Loads `out.len()` elements from index `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn load<L: Lane>(&self, hbm: &Hbm, from: usize, out: &mut [L]) {
        assert!(from + out.len() <= self.len);
        let start = self.start.wrapping_add_signed((from as isize).wrapping_mul(self.stride));
        with_elem!(self.dtype, E => load_run::<E, L>(hbm.elements(), start, self.stride, out),
            else => unsupported(self.dtype));
    }

    /// Stores `values` from index `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn store<L: Lane>(&self, hbm: &mut Hbm, from: usize, values: &[L]) {
        assert!(from + values.len() <= self.len);
        let start = self.start.wrapping_add_signed((from as isize).wrapping_mul(self.stride));
        with_elem!(self.dtype, E => store_run::<E, L>(hbm.elements_mut(), start, self.stride, values),
            else => unsupported(self.dtype));
    }

    /// Copies `source` of the same type and length, bit for bit; the two may overlap where both are contiguous.
    ///
    /// # Panics
    /// If types or lengths differ.
    pub fn copy_from(&self, hbm: &mut Hbm, source: &Self) {
        assert_eq!((self.dtype, self.len), (source.dtype, source.len));
        with_elem!(self.dtype, E => {
            let memory: &mut [E] = hbm.elements_mut();
            if self.len > 0 && self.stride == 1 && source.stride == 1 {
                memory.copy_within(source.start..source.start + self.len, self.start);
                return;
            }
            let (mut to, mut from) = (self.start, source.start);
            for _ in 0..self.len {
                memory[to] = memory[from];
                to = to.wrapping_add_signed(self.stride);
                from = from.wrapping_add_signed(source.stride);
            }
        }, else => unsupported(self.dtype));
    }

    /// Element `index` as an integer: indices, slots, block numbers.
    pub fn integer(&self, hbm: &Hbm, index: usize) -> i64 {
        let mut value = [0i64];
        self.load(hbm, index, &mut value);
        value[0]
    }
}

/// Views are only made of supported types.
#[cold]
fn unsupported(dtype: DataType) -> ! {
    unreachable!("a view of {}", lane::name(dtype))
}

#[inline(always)]
fn load_run<E: Elem, L: Lane>(memory: &[E], start: usize, stride: isize, out: &mut [L]) {
    match stride {
        _ if out.is_empty() => {}
        1 => L::load(&memory[start..start + out.len()], out),
        0 => out.fill(L::of(memory[start])),
        _ => {
            let mut at = start;
            for out in out {
                *out = L::of(memory[at]);
                at = at.wrapping_add_signed(stride);
            }
        }
    }
}

#[inline(always)]
fn store_run<E: Elem, L: Lane>(memory: &mut [E], start: usize, stride: isize, values: &[L]) {
    if values.is_empty() {
    } else if stride == 1 {
        L::store(values, &mut memory[start..start + values.len()]);
    } else {
        let mut at = start;
        for value in values {
            memory[at] = value.to();
            at = at.wrapping_add_signed(stride);
        }
    }
}
