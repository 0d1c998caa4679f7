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
