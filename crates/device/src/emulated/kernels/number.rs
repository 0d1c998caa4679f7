//! Arithmetic and order on lanes, for operators that are written once for every type.

use super::lane::Lane;

/// A lane that operators calculate and compare in.
pub trait Number: Lane {
    /// Neutral element of [`Self::times`].
    const ONE: Self;
    /// Sum; integers wrap.
    fn plus(self, other: Self) -> Self;
    /// Product; integers wrap.
    fn times(self, other: Self) -> Self;
    /// Quotient by a positive count; integers round down, as torch's mean of integers in a scatter does.
    fn over(self, count: u64) -> Self;
    /// True for NaN.
    fn is_nan(self) -> bool;
    /// A number that sorts like the value: −∞ … ∞, both zeros alike, NaN last.
    fn key(self) -> u64;
    /// The value in double precision.
    fn wide(self) -> f64;
    /// A host value in this lane.
    fn narrow(value: f64) -> Self;

    /// The larger value; NaN if either is.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self || other.is_nan() { other } else { self }
    }

    /// The smaller value; NaN if either is.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if other < self || other.is_nan() { other } else { self }
    }
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Number for $t {
            const ONE: Self = 1.0;
            #[inline(always)]
            fn plus(self, other: Self) -> Self { self + other }
            #[inline(always)]
            fn times(self, other: Self) -> Self { self * other }
            #[inline(always)]
            fn over(self, count: u64) -> Self { self / count as Self }
            #[inline(always)]
            fn is_nan(self) -> bool { <$t>::is_nan(self) }
            #[inline(always)]
            fn key(self) -> u64 {
                if self.is_nan() {
                    return u64::MAX;
                }
                // Adding zero makes −0 into 0.
                let bits = (f64::from(self) + 0.0).to_bits();
                if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
            }
            #[inline(always)]
            fn wide(self) -> f64 { f64::from(self) }
            #[inline(always)]
            fn narrow(value: f64) -> Self { value as Self }
        }
    )*};
}
floats!(f32, f64);

impl Number for i64 {
    const ONE: Self = 1;
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self.wrapping_mul(other)
    }
    #[inline(always)]
    fn over(self, count: u64) -> Self {
        self.div_euclid(count.max(1) as i64)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        false
    }
    #[inline(always)]
    fn key(self) -> u64 {
        self as u64 ^ 1 << 63
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value as Self
    }
}

/// Runs `$body` with `$L` bound to the lane of class `$class`.
macro_rules! with_lane {
    ($class:expr, $L:ident => $body:expr) => {
        match $class {
            $crate::emulated::kernels::lane::Class::Int => {
                type $L = i64;
                $body
            }
            $crate::emulated::kernels::lane::Class::Single => {
                type $L = f32;
                $body
            }
            $crate::emulated::kernels::lane::Class::Double => {
                type $L = f64;
                $body
            }
        }
    };
}
pub(crate) use with_lane;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_like_values() {
        let sorted = [f64::NEG_INFINITY, -2.0, -1e-300, 0.0, 1e-300, 2.0, f64::INFINITY, f64::NAN];
        assert!(sorted.windows(2).all(|w| w[0].key() < w[1].key()));
        assert_eq!((-0.0f32).key(), 0.0f32.key());
        assert_eq!(f32::NAN.key(), (-f32::NAN).key());
        let whole = [i64::MIN, -1, 0, 1, i64::MAX];
        assert!(whole.windows(2).all(|w| w[0].key() < w[1].key()));
    }

    #[test]
    fn extremes_keep_nan() {
        assert!(1.0f32.larger(f32::NAN).is_nan() && f32::NAN.larger(1.0).is_nan());
        assert!(1.0f32.smaller(f32::NAN).is_nan() && f32::NAN.smaller(1.0).is_nan());
        assert_eq!((3i64.larger(4), 3i64.smaller(4)), (4, 3));
    }
}
