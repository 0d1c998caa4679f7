//! Elementary functions whose loops become vector code, with one result on every machine.
//!
//! Plain multiplications and additions in a fixed order (never fused): compiled into a scalar or a vector loop, for
//! any instruction set, they give the same bits.

/// `eˣ` to within 2 units in the last place. Below −87.3 the result is 0 (it would be subnormal), above 88.7 infinite.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.336_54;
    const HIGH: f32 = 88.722_83;
    // 1.5·2²³: adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so that n·LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < LOW { LOW } else { x };
    let clamped = if clamped > HIGH { HIGH } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    // Minimax polynomial of (eʳ − 1 − r)/r² on ±ln2/2.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let y = (p * (r * r) + r) + 1.0;
    // 2ⁿ in two factors: n reaches 128.
    let whole = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = whole >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) << 23) as u32);
    let value = y * power(half) * power(whole.wrapping_sub(half));
    let value = if x < LOW { 0.0 } else { value };
    let value = if x > HIGH { f32::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x` to within 3 units in the last place.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    // Odd polynomial below 0.625, where 1 − 2/(e²ˣ + 1) would cancel.
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * square + 2.063_909e-2;
    p = p * square - 5.373_971_6e-2;
    p = p * square + 1.333_144_2e-1;
    p = p * square - 3.333_328e-1;
    let small = (p * square * x + x).copysign(x);
    // From 10 on the result is 1 to the last bit.
    let bounded = if magnitude > 10.0 { 10.0 } else { magnitude };
    let large = (1.0 - 2.0 / (exp(bounded + bounded) + 1.0)).copysign(x);
    let value = if magnitude < 0.625 { small } else { large };
    if x.is_nan() { x } else { value }
}

/// The error function to within 3 units in the last place.
///
/// Polynomials fitted to `erf(x)/x` in `x²` on 0..1 and to `ln erfc(x)` on 1..4, at Chebyshev nodes.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let square = x * x;
    let mut p = 7.882_497e-5;
    p = p * square - 8.018_855e-4;
    p = p * square + 5.189_312e-3;
    p = p * square - 2.685_432_8e-2;
    p = p * square + 1.128_359_7e-1;
    p = p * square - 3.761_262_6e-1;
    p = p * square + std::f32::consts::FRAC_2_SQRT_PI;
    let small = p * x;
    // From 4 on the result is 1 to the last bit.
    let m = if magnitude > 4.0 { 4.0 } else { magnitude };
    let mut q = -1.330_939_1e-5;
    q = q * m + 3.175_720_3e-4;
    q = q * m - 3.436_867_6e-3;
    q = q * m + 2.262_198_6e-2;
    q = q * m - 1.033_189_8e-1;
    q = q * m - 6.390_933_4e-1;
    q = q * m - 1.125_925_9;
    q = q * m - 7.569_686e-4;
    let large = (1.0 - exp(q)).copysign(x);
    let value = if magnitude < 1.0 { small } else { large };
    if x.is_nan() { x } else { value }
}

/// Lanes of [`sum`] and [`sum_of_squares`].
const LANES: usize = 8;

#[inline(always)]
fn reduce(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane += f(*value);
    }
    fold(lanes)
}

/// Adds eight lanes as a balanced tree.
#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Sum in a fixed order: lane `i mod 8` in order of `i`, then a tree.
pub fn sum(values: &[f32]) -> f32 {
    reduce(values, |v| v)
}

/// Sum of squares in the order of [`sum`].
pub fn sum_of_squares(values: &[f32]) -> f32 {
    reduce(values, |v| v * v)
}

/// Largest value, −∞ of none; NaN if any is.
pub fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, *value);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// Replaces every value by `e^(value − shift)`.
pub fn exp_shifted(values: &mut [f32], shift: f32) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, checked just now.
        return unsafe { exp_shifted_avx2(values, shift) };
    }
    exp_shifted_any(values, shift);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn exp_shifted_avx2(values: &mut [f32], shift: f32) {
    exp_shifted_any(values, shift);
}

#[inline(always)]
fn exp_shifted_any(values: &mut [f32], shift: f32) {
    for value in values {
        *value = exp(*value - shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_over_its_range() {
        let mut worst = 0.0f64;
        let mut x = -87.3f32;
        while x < 88.7 {
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max((f64::from(exp(x)) - want).abs() / ulp);
            x += 0.000_37;
        }
        assert!(worst <= 2.0, "{worst} ulp");
    }

    /// Largest error of `f` against `want` at multiples of `step`, in units in the last place of the result.
    fn worst(f: impl Fn(f32) -> f32, want: impl Fn(f64) -> f64, range: std::ops::Range<f32>, step: f32) -> f64 {
        let mut worst = 0.0f64;
        let mut x = range.start;
        while x < range.end {
            let exact = want(f64::from(x));
            let near = (exact as f32).abs();
            let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
            worst = worst.max((f64::from(f(x)) - exact).abs() / ulp);
            x += step;
        }
        worst
    }

    #[test]
    fn tanh_and_erf_are_within_three_ulps() {
        for range in [-12.0..-1e-3, 1e-3..12.0, 1e-30..2e-30, 0.6..0.65, 0.99..1.01, 3.9..4.1] {
            let step = (range.end - range.start) / 50_000.0;
            let (t, e) = (worst(tanh, libm::tanh, range.clone(), step), worst(erf, libm::erf, range.clone(), step));
            assert!(t <= 3.0 && e <= 3.0, "{t} and {e} ulp in {range:?}");
        }
        for f in [tanh, erf] {
            assert_eq!((f(0.0).to_bits(), f(-0.0).to_bits()), (0, 1 << 31));
            assert_eq!((f(f32::INFINITY), f(f32::NEG_INFINITY)), (1.0, -1.0));
            assert!(f(f32::NAN).is_nan());
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(88.7) < f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn maximum_keeps_nan() {
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[-3.0, -1.0, -2.0]), -1.0);
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(sum(&[1.0; 13]), 13.0);
        assert_eq!(sum_of_squares(&[2.0; 13]), 52.0);
    }
}
