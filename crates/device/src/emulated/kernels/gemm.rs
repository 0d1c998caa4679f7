//! Products of matrices whose every element has one fixed order of summation.
//!
//! `out[m][n] = Σ_k a[m][k]·w[n][k]`, accumulated in single precision: partial sum `k mod 8` takes its products in order
//! of `k` with fused multiply-adds, and the eight partial sums are added as a balanced tree ([`math::fold`]). The order
//! depends on nothing but the length of the sum: not on the number of rows or columns, the layout of either matrix,
//! blocking, or threads. So a token gives the same bits alone, in a batch, and in a chunk of its prompt.
//!
//! Own code instead of a general library (`matrixmultiply` was measured): a decode step multiplies one or a few rows with
//! a large matrix, where repacking the matrix, as blocked libraries do for any size, costs many times the product itself.
//! Here weights whose rows are contiguous are read in place, 16-bit ones included: 19 times faster for one row, 4 times
//! for eight, on a par around a hundred, half as fast for many hundreds. Two codes, one for each end, would sum in
//! different orders and give up the invariance.
//!
//! Cost: an inner loop ([`simd::dots`]) of 4×3 tiles of eight lanes, under one load a multiply-add; weights pass through the
//! second-level cache in chunks of [`PANEL_BYTES`].

use half::{bf16, f16};

use super::math;
use super::simd::{self, LANES, Weight};
use super::view::View;
use crate::emulated::hbm::Hbm;
use acl_abi::DataType;

/// Bytes of single-precision weights that one pass over the rows works on: a part of a second-level cache.
pub const PANEL_BYTES: usize = 256 * 1024;

/// Longest sum, so that scratch stays bounded: 16 rows of weights are 256 MiB.
pub const K_MAX: usize = 4 << 20;

/// Rows up to which weights with contiguous columns are used in place, instead of being turned into a panel first.
const IN_PLACE_ROWS_MAX: usize = 4;

/// Element types that weights may have.
pub fn is_weight(dtype: DataType) -> bool {
    matches!(dtype, DataType::F32 | DataType::F16 | DataType::BF16)
}

/// `out[m][n] = Σ_k a[m][k]·w[n][k]`: `a` is row-major `rows × k`, `w` a 2-d view `n × k` with any strides, `out`
/// row-major `rows × n`. `panel` is scratch.
///
/// # Panics
/// If sizes do not agree, `k` exceeds [`K_MAX`], or `w` is not of a type that [`is_weight`] accepts.
pub fn product(hbm: &Hbm, a: &[f32], w: &View, out: &mut [f32], panel: &mut Vec<f32>) {
    let (n, k) = (w.dim(0), w.dim(1));
    if n == 0 {
        return;
    }
    let rows = out.len() / n;
    assert!(k <= K_MAX, "{k} products a sum");
    assert!(out.len() == rows * n && a.len() == rows * k, "{} = {rows}·{n}, {} = {rows}·{k}", out.len(), a.len());
    if k == 0 {
        out.fill(0.0);
        return;
    }
    let rows_contiguous = w.stride(1) == 1 || k == 1;
    let columns_contiguous = w.stride(0) == 1 && rows <= IN_PLACE_ROWS_MAX;
    match w.dtype {
        DataType::F32 if rows_contiguous => in_place::<f32>(hbm, a, w, out),
        DataType::BF16 if rows_contiguous && rows <= IN_PLACE_ROWS_MAX => in_place::<bf16>(hbm, a, w, out),
        DataType::F32 if columns_contiguous => by_columns::<f32>(hbm, a, w, out),
        DataType::BF16 if columns_contiguous => by_columns::<bf16>(hbm, a, w, out),
        DataType::F16 if columns_contiguous => by_columns::<f16>(hbm, a, w, out),
        dtype => {
            assert!(is_weight(dtype), "{dtype:?} weights");
            let step = panel_rows(k);
            for from in (0..n).step_by(step) {
                let w = w.narrow(0, from, step.min(n - from));
                let len = w.dim(0) * k;
                if panel.len() < len {
                    panel.resize(len, 0.0);
                }
                let panel = &mut panel[..len];
                if w.stride(0) == 1 && w.stride(1) != 1 {
                    // Read along memory, write transposed: the panel is small and near.
                    transposed(hbm, &w, panel);
                } else {
                    w.load_matrix(hbm, panel);
                }
                tiles(a, k, |i| &panel[i * k..][..k], w.dim(0), out, n, from);
            }
        }
    }
}

/// Rows of `k` weights that fill a panel.
fn panel_rows(k: usize) -> usize {
    (PANEL_BYTES / size_of::<f32>() / k / 16 * 16).clamp(16, 4096)
}

/// Weights whose rows are contiguous in memory.
fn in_place<W: Weight>(hbm: &Hbm, a: &[f32], w: &View, out: &mut [f32]) {
    let (n, k) = (w.dim(0), w.dim(1));
    let memory: &[W] = hbm.elements();
    let step = panel_rows(k);
    for from in (0..n).step_by(step) {
        let w = w.narrow(0, from, step.min(n - from));
        let row = |i: usize| &memory[w.start().wrapping_add_signed(i as isize * w.stride(0))..][..k];
        tiles(a, k, row, w.dim(0), out, n, from);
    }
}

/// Loads a view whose first dimension is contiguous as a row-major matrix.
fn transposed(hbm: &Hbm, w: &View, panel: &mut [f32]) {
    const BLOCK: usize = 16;
    let (n, k) = (w.dim(0), w.dim(1));
    let mut strip = [0.0f32; BLOCK];
    for from in (0..n).step_by(BLOCK) {
        let strip = &mut strip[..BLOCK.min(n - from)];
        let w = w.narrow(0, from, strip.len());
        for j in 0..k {
            w.select(1, j).row().load(hbm, 0, strip);
            for (i, value) in strip.iter().enumerate() {
                panel[(from + i) * k + j] = *value;
            }
        }
    }
}

/// Columns `from..from + n` of `out` (rows of `pitch` elements) from `n` rows of weights of length `k`.
fn tiles<'w, W: Weight>(
    a: &[f32],
    k: usize,
    w: impl Fn(usize) -> &'w [W],
    n: usize,
    out: &mut [f32],
    pitch: usize,
    from: usize,
) {
    let rows = a.len() / k;
    let a = |m: usize| &a[m * k..][..k];
    let mut m = 0;
    while m < rows {
        let out = &mut out[m * pitch + from..];
        // As many rows and columns at a time as sixteen vector registers hold partial sums for.
        match rows - m {
            1 => simd::dots::<W, 1, 6>([a(m)], &w, n, out, pitch),
            2 => simd::dots::<W, 2, 4>([a(m), a(m + 1)], &w, n, out, pitch),
            3 => simd::dots::<W, 3, 3>([a(m), a(m + 1), a(m + 2)], &w, n, out, pitch),
            _ => simd::dots::<W, 4, 3>([a(m), a(m + 1), a(m + 2), a(m + 3)], &w, n, out, pitch),
        }
        m += 4;
    }
}

/// Weights whose columns are contiguous (a plain row-major second matrix), few rows: eight columns side by side.
fn by_columns<W: Weight>(hbm: &Hbm, a: &[f32], w: &View, out: &mut [f32]) {
    let (n, k) = (w.dim(0), w.dim(1));
    let memory: &[W] = hbm.elements();
    let at = |j: usize, c: usize| w.start().wrapping_add(j).wrapping_add_signed(c as isize * w.stride(1));
    for (a, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
        let (whole, tail) = out.as_chunks_mut::<LANES>();
        for (j, out) in whole.iter_mut().enumerate() {
            *out = simd::columns(a, |c| -> &[W; LANES] {
                let from = at(j * LANES, c);
                memory[from..from + LANES].first_chunk().expect("eight weights")
            });
        }
        let done = whole.len() * LANES;
        for (j, out) in tail.iter_mut().enumerate() {
            let mut sums = [0.0f32; LANES];
            for (c, a) in a.iter().enumerate() {
                sums[c % LANES] = a.mul_add(memory[at(done + j, c)].to_f32(), sums[c % LANES]);
            }
            *out = math::fold(sums);
        }
    }
}

/// Scores of attention: `out[i][t] = Σ_d q[i][d]·k[t][d]`, both row-major with rows of `d`; `out` has rows of `pitch`
/// from column `from` on.
pub fn scores(q: &[f32], k: &[f32], d: usize, out: &mut [f32], pitch: usize, from: usize) {
    tiles::<f32>(q, d, |t| &k[t * d..][..d], k.len() / d, out, pitch, from);
}
