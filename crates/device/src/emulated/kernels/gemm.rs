//! Matrix products: the one place that calls the library, [`matrixmultiply`].
//!
//! A library first: products are not what this project is about, and its packing, blocking and vector code for several
//! instruction sets are kept by others. This file adds what the library leaves to its caller: bounds, and 16-bit operands.
//!
//! **Invariance.** `out[i][j] = Σ_k a[i][k]·b[k][j]` in single precision. The library cuts `k` into blocks of a constant
//! length, sums a block in order of `k` with one accumulator an element, and adds block after block; rows and columns
//! beside an element only decide what else is computed with it. So the bits of an element depend on its row, its column
//! and nothing else: not on the number of rows or columns, the layout of either matrix, panels, or threads. A token gives
//! the same bits alone, in a batch, and in a chunk of its prompt. Tests hold the library to this.
//!
//! **Memory.** Single-precision operands are read where they lie, with any strides. 16-bit ones are widened before, the
//! second matrix in panels of [`PANEL_BYTES`]; so is one in FRACTAL_NZ.
//!
//! **Cost.** The library repacks both matrices and computes tiles of 8×8, so one row costs what eight do. Measured on two
//! cores with `engine/examples/steps.rs` and the shapes of a 0.5-billion-parameter model in bfloat16, against vector code of
//! our own that read weights in place: a decode step of one row took 0.3 s instead of 0.03 s, one of eight rows 0.4 s instead
//! of 0.14 s, a prompt of 128 tokens 1.7 s instead of 1.1 s. That is accepted: what the device emulates is results, its times
//! come from a model, and two codes, one for each end, would sum in different orders and give up the invariance.

use matrixmultiply::sgemm;

use super::view::View;
use crate::emulated::hbm::Hbm;
use acl_abi::DataType;

/// Bytes of widened columns that one call of the library works on, where a sum is not longer than that.
pub const PANEL_BYTES: usize = 1 << 20;

/// Longest sum, so that scratch stays bounded: a panel of the fewest columns is 128 MiB.
pub const K_MAX: usize = 4 << 20;

/// Most rows or columns of the library's tiles. Fewer cost as much, so work is cut in multiples of this.
pub const TILE: usize = 8;

/// Element types that products take.
pub fn is_operand(dtype: DataType) -> bool {
    matches!(dtype, DataType::F32 | DataType::F16 | DataType::BF16)
}

/// A single-precision matrix inside a slice: element `(i, j)` is `data[start + i·rows_apart + j·columns_apart]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    start: usize,
    dims: [usize; 2],
    strides: [isize; 2],
}

impl<'a> Matrix<'a> {
    /// The matrix of `dims` elements from `start` on, `strides` apart; strides may be zero or negative.
    ///
    /// # Panics
    /// If an element is outside of `data`.
    pub fn new(data: &'a [f32], start: usize, dims: [usize; 2], strides: [isize; 2]) -> Self {
        let (mut low, mut high) = (start as i128, start as i128);
        for (size, stride) in dims.into_iter().zip(strides) {
            let reach = size.saturating_sub(1) as i128 * stride as i128;
            low += reach.min(0);
            high += reach.max(0);
        }
        let inside = dims.contains(&0) || (low >= 0 && high < data.len() as i128);
        assert!(inside, "elements {low}..={high} of {}", data.len());
        Self { data, start, dims, strides }
    }

    /// All of `data`, row by row.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn rows(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::new(data, 0, [rows, columns], [columns as isize, 1])
    }

    /// Rows as columns.
    pub fn transposed(self) -> Self {
        let (dims, strides) = ([self.dims[1], self.dims[0]], [self.strides[1], self.strides[0]]);
        Self { dims, strides, ..self }
    }

    /// A 2-d view of a type that [`is_operand`] accepts: in single precision where it lies, other types and what lies in
    /// FRACTAL_NZ copied into `scratch`.
    pub fn of_view(hbm: &'a Hbm, view: &View, scratch: &'a mut Vec<f32>) -> Self {
        let (rows, columns) = (view.dim(0), view.dim(1));
        if view.dtype == DataType::F32 && view.strip_dim().is_none() {
            return Self::new(hbm.elements(), view.start(), [rows, columns], [view.stride(0), view.stride(1)]);
        }
        if scratch.len() < rows * columns {
            scratch.resize(rows * columns, 0.0);
        }
        if let Some(dim) = view.strip_dim() {
            if dim == 0 {
                return Self::of_view(hbm, &view.transpose(0, 1), scratch).transposed();
            }
            let widened = &mut scratch[..rows * columns];
            for (from, piece) in view.pieces() {
                for (row, out) in widened.chunks_exact_mut(columns).enumerate() {
                    piece.select(0, row).row().load(hbm, 0, &mut out[from..from + piece.dim(1)]);
                }
            }
            return Self::rows(widened, rows, columns);
        }
        // Along memory, whichever way that is.
        if view.stride(0).unsigned_abs() < view.stride(1).unsigned_abs() {
            return Self::of_view(hbm, &view.transpose(0, 1), scratch).transposed();
        }
        let widened = &mut scratch[..rows * columns];
        view.load_matrix(hbm, widened);
        Self::rows(widened, rows, columns)
    }
}

/// `out = a·b`, or `out += a·b` with `add`. Rows of the result are `pitch` elements apart in `out`.
///
/// # Panics
/// If sizes do not agree or `out` is too short.
pub fn multiply(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], pitch: usize, add: bool) {
    let ([m, k], [depth, n]) = (a.dims, b.dims);
    assert_eq!(k, depth, "sizes agree");
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= pitch && (m - 1).checked_mul(pitch).is_some_and(|last| last + n <= out.len()), "{m}·{n} fit");
    if k == 0 {
        // The operands have no elements: their starts may point nowhere.
        if !add {
            out.chunks_mut(pitch).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    // SAFETY: every element of `a` and `b` lies in a borrowed slice (`Matrix::new` checked), every element of the result in
    // `out` (checked just now), which nothing else borrows; rows do not overlap, as `n ≤ pitch`.
    unsafe {
        sgemm(
            m,
            k,
            n,
            1.0,
            a.data.as_ptr().wrapping_add(a.start),
            a.strides[0],
            a.strides[1],
            b.data.as_ptr().wrapping_add(b.start),
            b.strides[0],
            b.strides[1],
            if add { 1.0 } else { 0.0 },
            out.as_mut_ptr(),
            pitch as isize,
            1,
        );
    }
}

/// `out = a·b` for a 2-d view `b` of a type that [`is_operand`] accepts; `out` is row-major without gaps. `panel` is scratch.
///
/// # Panics
/// If sizes do not agree or sums are longer than [`K_MAX`].
pub fn product(hbm: &Hbm, a: Matrix<'_>, b: &View, out: &mut [f32], panel: &mut Vec<f32>) {
    let (k, n) = (b.dim(0), b.dim(1));
    assert!(k <= K_MAX, "{k} products a sum");
    let in_place = b.dtype == DataType::F32 && b.strip_dim().is_none();
    let step = if in_place { n.max(1) } else { panel_columns(k) };
    for from in (0..n).step_by(step) {
        let part = Matrix::of_view(hbm, &b.narrow(1, from, step.min(n - from)), panel);
        multiply(a, part, &mut out[from..], n, false);
    }
}

/// Columns of `k` elements that fill a panel.
pub fn panel_columns(k: usize) -> usize {
    let whole = PANEL_BYTES / size_of::<f32>() / k.max(1);
    (whole / TILE * TILE).clamp(TILE, PANEL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_outside_their_slice_are_refused() {
        let data = [0.0; 12];
        for (start, dims, strides, inside) in [
            (0, [3, 4], [4, 1], true),
            (11, [3, 4], [-4, -1], true),
            (3, [3, 4], [4, -1], true),
            (0, [1 << 40, 1 << 20], [0, 0], true),
            (usize::MAX, [0, 4], [4, 1], true),
            (0, [3, 4], [5, 1], false),
            (1, [3, 4], [4, 1], false),
            (10, [3, 4], [-4, -1], false),
            (0, [usize::MAX, 2], [isize::MAX, isize::MIN], false),
        ] {
            let made = std::panic::catch_unwind(|| Matrix::new(&data, start, dims, strides).dims);
            assert_eq!(made.is_ok(), inside, "{dims:?} from {start}, {strides:?}");
        }
    }

    #[test]
    fn results_outside_their_slice_are_refused() {
        let data = [1.0; 12];
        let run = |len: usize, pitch: usize| {
            let mut out = vec![7.0; len];
            multiply(Matrix::rows(&data, 3, 4), Matrix::rows(&data, 4, 2), &mut out, pitch, false);
            out
        };
        assert_eq!(run(8, 3), [4.0, 4.0, 7.0, 4.0, 4.0, 7.0, 4.0, 4.0]);
        for (len, pitch) in [(7, 3), (6, 1), (5, 2), (0, 2), (8, usize::MAX)] {
            assert!(std::panic::catch_unwind(|| run(len, pitch)).is_err(), "{len} elements, rows {pitch} apart");
        }
    }
}
