//! The three inner loops of products and attention, in vector instructions where the processor has them.
//!
//! Each loop exists twice: in plain Rust, which defines the result, and for AVX2 with FMA. Both do the same
//! multiply-adds in the same order (`f32::mul_add` rounds once, like the instruction), so they give the same bits and
//! results do not depend on the processor. Without hardware FMA the plain form is correct but slow.
//!
//! | loop | sums over | order |
//! |---|---|---|
//! | [`dots`] | contiguous elements of two rows | partial sum `k mod 8` in order of `k`, then [`math::fold`] |
//! | [`columns`] | rows of a matrix, for eight adjacent columns | the same |
//! | [`accumulate`] | rows of a matrix, for every column | in order of the row, onto what is there |

use half::{bf16, f16};

use super::lane::Elem;
use super::math;

/// Partial sums of one dot product.
pub const LANES: usize = 8;

/// A weight in memory, eight at a time.
pub trait Weight: Elem {
    /// Eight weights as single precision.
    fn widen(eight: &[Self; LANES]) -> [f32; LANES];

    /// The same in a vector register.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn wide(eight: &[Self; LANES]) -> std::arch::x86_64::__m256;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(eight: &[Self; LANES]) -> [f32; LANES] {
        *eight
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn wide(eight: &[Self; LANES]) -> std::arch::x86_64::__m256 {
        // SAFETY: eight elements are readable behind the reference; the load needs no alignment.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(eight.as_ptr()) }
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn widen(eight: &[Self; LANES]) -> [f32; LANES] {
        eight.map(Elem::to_f32)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn wide(eight: &[Self; LANES]) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_slli_epi32};
        // SAFETY: 16 bytes are readable behind the reference; the load needs no alignment.
        let halves = unsafe { _mm_loadu_si128(eight.as_ptr().cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn widen(eight: &[Self; LANES]) -> [f32; LANES] {
        let mut wide = [0.0; LANES];
        Elem::load_f32(eight, &mut wide);
        wide
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn wide(eight: &[Self; LANES]) -> std::arch::x86_64::__m256 {
        let wide = Self::widen(eight);
        // SAFETY: eight elements are readable behind the reference; the load needs no alignment.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(wide.as_ptr()) }
    }
}

/// True where the processor multiplies and adds eight lanes in one instruction.
#[inline]
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Rows `0..M` of a block of the result: `out[i·pitch + j] = Σ_k a[i][k]·w(j)[k]` for `j` below `n`.
pub fn dots<'w, W: Weight, const M: usize, const N: usize>(
    a: [&[f32]; M],
    w: &impl Fn(usize) -> &'w [W],
    n: usize,
    out: &mut [f32],
    pitch: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the processor has AVX2 and FMA, checked just now.
        return unsafe { avx2::dots::<W, M, N>(a, w, n, out, pitch) };
    }
    plain::dots::<W, M, N>(a, w, n, out, pitch)
}

/// Eight adjacent elements of a row of the result: `Σ_k a[k]·w(k)[j]`.
pub fn columns<'w, W: Weight>(a: &[f32], w: impl Fn(usize) -> &'w [W; LANES]) -> [f32; LANES] {
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the processor has AVX2 and FMA, checked just now.
        return unsafe { avx2::columns(a, w) };
    }
    plain::columns(a, w)
}

/// `out[i] += Σ_t p[i][t]·v[t]` in order of `t`, for `R` rows over the same `v` (row-major, rows of `d`). Every `p[i]` has
/// one length, every `out[i]` has `d` elements.
pub fn accumulate<const R: usize>(p: [&[f32]; R], v: &[f32], out: [&mut [f32]; R]) {
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the processor has AVX2 and FMA, checked just now.
        return unsafe { avx2::accumulate(p, v, out) };
    }
    plain::accumulate(p, v, out)
}

/// The loops in plain Rust.
mod plain {
    use super::{LANES, Weight, math};

    pub fn dots<'w, W: Weight, const M: usize, const N: usize>(
        a: [&[f32]; M],
        w: &impl Fn(usize) -> &'w [W],
        n: usize,
        out: &mut [f32],
        pitch: usize,
    ) {
        for j in 0..n {
            let w = w(j);
            for (i, a) in a.iter().enumerate() {
                let mut sums = [0.0f32; LANES];
                for (k, (a, w)) in a.iter().zip(w).enumerate() {
                    sums[k % LANES] = a.mul_add(w.to_f32(), sums[k % LANES]);
                }
                out[i * pitch + j] = math::fold(sums);
            }
        }
    }

    pub fn columns<'w, W: Weight>(a: &[f32], w: impl Fn(usize) -> &'w [W; LANES]) -> [f32; LANES] {
        // sums[lane][column]
        let mut sums = [[0.0f32; LANES]; LANES];
        for (k, a) in a.iter().enumerate() {
            for (sum, w) in sums[k % LANES].iter_mut().zip(W::widen(w(k))) {
                *sum = a.mul_add(w, *sum);
            }
        }
        std::array::from_fn(|j| math::fold(std::array::from_fn(|l| sums[l][j])))
    }

    pub fn accumulate<const R: usize>(p: [&[f32]; R], v: &[f32], out: [&mut [f32]; R]) {
        for (p, out) in p.into_iter().zip(out) {
            for (p, v) in p.iter().zip(v.chunks_exact(out.len().max(1))) {
                for (out, v) in out.iter_mut().zip(v) {
                    *out = p.mul_add(*v, *out);
                }
            }
        }
    }
}

/// The loops in vector instructions.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm256_add_ps,
        _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps,
    };

    use super::{LANES, Weight, math};

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load(eight: &[f32; LANES]) -> __m256 {
        // SAFETY: eight elements are readable behind the reference; the load needs no alignment.
        unsafe { _mm256_loadu_ps(eight.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store(to: &mut [f32; LANES], value: __m256) {
        // SAFETY: eight elements are writable behind the reference; the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn dots<'w, W: Weight, const M: usize, const N: usize>(
        a: [&[f32]; M],
        w: &impl Fn(usize) -> &'w [W],
        n: usize,
        out: &mut [f32],
        pitch: usize,
    ) {
        let mut j = 0;
        while j + N <= n {
            let tile = tile::<W, M, N>(a, std::array::from_fn(|i| w(j + i)));
            for i in 0..M {
                out[i * pitch + j..][..N].copy_from_slice(&tile[i]);
            }
            j += N;
        }
        while j < n {
            let tile = tile::<W, M, 1>(a, [w(j)]);
            for i in 0..M {
                out[i * pitch + j] = tile[i][0];
            }
            j += 1;
        }
    }

    /// [`math::fold`] without leaving the registers.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn fold(lanes: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// `M × N` dot products with all their partial sums in registers.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn tile<W: Weight, const M: usize, const N: usize>(a: [&[f32]; M], w: [&[W]; N]) -> [[f32; N]; M] {
        let k = a[0].len();
        let whole = k / LANES;
        let mut sums = [[_mm256_setzero_ps(); N]; M];
        let mut a_whole: [&[[f32; LANES]]; M] = [&[]; M];
        let mut w_whole: [&[[W; LANES]]; N] = [&[]; N];
        for i in 0..M {
            a_whole[i] = &a[i].as_chunks::<LANES>().0[..whole];
        }
        for j in 0..N {
            w_whole[j] = &w[j].as_chunks::<LANES>().0[..whole];
        }
        for c in 0..whole {
            let mut wide = [_mm256_setzero_ps(); N];
            for j in 0..N {
                // SAFETY: this function is only called where AVX2 is there.
                wide[j] = unsafe { W::wide(&w_whole[j][c]) };
            }
            for i in 0..M {
                let a = load(&a_whole[i][c]);
                for j in 0..N {
                    sums[i][j] = _mm256_fmadd_ps(a, wide[j], sums[i][j]);
                }
            }
        }
        let mut out = [[0.0; N]; M];
        if whole * LANES == k {
            for i in 0..M {
                for j in 0..N {
                    out[i][j] = fold(sums[i][j]);
                }
            }
            return out;
        }
        for i in 0..M {
            for j in 0..N {
                let mut lanes = [0.0; LANES];
                store(&mut lanes, sums[i][j]);
                for (l, c) in (whole * LANES..k).enumerate() {
                    lanes[l] = a[i][c].mul_add(w[j][c].to_f32(), lanes[l]);
                }
                out[i][j] = math::fold(lanes);
            }
        }
        out
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn columns<'w, W: Weight>(a: &[f32], w: impl Fn(usize) -> &'w [W; LANES]) -> [f32; LANES] {
        let mut sums = [_mm256_setzero_ps(); LANES];
        let (whole, tail) = a.as_chunks::<LANES>();
        for (c, eight) in whole.iter().enumerate() {
            for l in 0..LANES {
                // SAFETY: this function is only called where AVX2 is there.
                let w = unsafe { W::wide(w(c * LANES + l)) };
                sums[l] = _mm256_fmadd_ps(_mm256_set1_ps(eight[l]), w, sums[l]);
            }
        }
        for (l, a) in tail.iter().enumerate() {
            // SAFETY: this function is only called where AVX2 is there.
            let w = unsafe { W::wide(w(whole.len() * LANES + l)) };
            sums[l] = _mm256_fmadd_ps(_mm256_set1_ps(*a), w, sums[l]);
        }
        // The tree of `math::fold`, for eight columns at once.
        let [s0, s1, s2, s3, s4, s5, s6, s7] = sums;
        let even = _mm256_add_ps(_mm256_add_ps(s0, s4), _mm256_add_ps(s2, s6));
        let odd = _mm256_add_ps(_mm256_add_ps(s1, s5), _mm256_add_ps(s3, s7));
        let mut out = [0.0; LANES];
        store(&mut out, _mm256_add_ps(even, odd));
        out
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn accumulate<const R: usize>(p: [&[f32]; R], v: &[f32], out: [&mut [f32]; R]) {
        let d = out[0].len();
        if d == 0 {
            return;
        }
        let mut out = out;
        let mut from = 0;
        // Eight registers of sums, however many rows share a value.
        while from + 2 * LANES <= d {
            if R == 1 && from + 8 * LANES <= d {
                strip::<R, 8>(p, v, &mut out, from);
                from += 8 * LANES;
            } else {
                strip::<R, 2>(p, v, &mut out, from);
                from += 2 * LANES;
            }
        }
        while from + LANES <= d {
            strip::<R, 1>(p, v, &mut out, from);
            from += LANES;
        }
        for column in from..d {
            for r in 0..R {
                let mut sum = out[r][column];
                for (p, v) in p[r].iter().zip(v.chunks_exact(d)) {
                    sum = p.mul_add(v[column], sum);
                }
                out[r][column] = sum;
            }
        }
    }

    /// `8·S` columns from `from` on.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn strip<const R: usize, const S: usize>(p: [&[f32]; R], v: &[f32], out: &mut [&mut [f32]; R], from: usize) {
        let d = out[0].len();
        let tokens = p[0].len();
        let mut rows = [p[0]; R];
        let mut sums = [[_mm256_setzero_ps(); S]; R];
        for r in 0..R {
            rows[r] = &p[r][..tokens];
            let (chunks, _) = out[r][from..].as_chunks::<LANES>();
            for s in 0..S {
                sums[r][s] = load(&chunks[s]);
            }
        }
        for (t, v) in v.chunks_exact(d).take(tokens).enumerate() {
            let (chunks, _) = v[from..from + S * LANES].as_chunks::<LANES>();
            for s in 0..S {
                let v = load(&chunks[s]);
                for r in 0..R {
                    sums[r][s] = _mm256_fmadd_ps(_mm256_set1_ps(rows[r][t]), v, sums[r][s]);
                }
            }
        }
        for r in 0..R {
            let (chunks, _) = out[r][from..].as_chunks_mut::<LANES>();
            for s in 0..S {
                store(&mut chunks[s], sums[r][s]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Noise;
    use super::*;

    fn numbers(noise: &mut Noise, count: usize) -> Vec<f32> {
        noise.fractions(count).into_iter().map(|v| v as f32).collect()
    }

    /// Which loops run depends on the processor; results must not.
    #[test]
    fn plain_and_vector_loops_give_the_same_bits() {
        let mut noise = Noise::new(40);
        for k in [1, 7, 8, 9, 31, 64, 100] {
            let (a, w) = (numbers(&mut noise, 4 * k), numbers(&mut noise, 7 * k));
            let rows = [&a[..k], &a[k..2 * k], &a[2 * k..3 * k], &a[3 * k..]];
            let halves: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            let (mut got, mut want) = ([0.0; 28], [0.0; 28]);
            dots::<f32, 4, 3>(rows, &|j| &w[j * k..][..k], 7, &mut got, 7);
            plain::dots::<f32, 4, 3>(rows, &|j| &w[j * k..][..k], 7, &mut want, 7);
            assert_eq!(got, want);
            dots::<bf16, 4, 3>(rows, &|j| &halves[j * k..][..k], 7, &mut got, 7);
            plain::dots::<bf16, 4, 3>(rows, &|j| &halves[j * k..][..k], 7, &mut want, 7);
            assert_eq!(got, want);
            let w = numbers(&mut noise, 8 * k);
            let at = |c: usize| -> &[f32; 8] { w[8 * c..].first_chunk().unwrap() };
            assert_eq!(columns(rows[0], at), plain::columns(rows[0], at));
        }
        for d in [1, 8, 9, 16, 33, 64, 100] {
            let (p, v) = (numbers(&mut noise, 4 * 13), numbers(&mut noise, 13 * d));
            let start = numbers(&mut noise, 4 * d);
            let p: [&[f32]; 4] = std::array::from_fn(|r| &p[13 * r..][..13]);
            let run = |plainly: bool| {
                let mut out = start.clone();
                let mut rows = out.chunks_exact_mut(d);
                let rows: [&mut [f32]; 4] = std::array::from_fn(|_| rows.next().unwrap());
                if plainly {
                    plain::accumulate(p, &v, rows)
                } else {
                    accumulate(p, &v, rows)
                }
                out
            };
            assert_eq!(run(false), run(true));
            let mut one = start[..d].to_vec();
            accumulate([p[0]], &v, [&mut one]);
            assert_eq!(one, run(true)[..d], "rows together and alone");
        }
    }
}
