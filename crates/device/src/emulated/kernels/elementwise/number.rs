//! What operations need of the type that they compute in: [`Number`] for all three lanes, [`Real`] for the two of floating
//! point.
//!
//! Integers wrap. A division of integers by zero gives 0: torch on the CPU raises there, which a device cannot, and
//! whatever it gave instead is the caller's to mask. Floating-point functions without a vector form of ours come from
//! `libm`, so that they have one result on every machine.

use std::ops::{Add, Div, Mul, Neg, Sub};

use acl_abi::{DataType, Scalar};

use super::super::lane::{Elem, Lane, with_elem};
use super::super::math;

/// A type that operations compute in.
pub trait Number: Lane + std::fmt::Debug + 'static {
    /// From a small literal.
    fn lit(value: i8) -> Self;
    /// From a host scalar; floats truncate to integers.
    fn constant(scalar: &Scalar) -> Self;
    /// Through type `dtype`: what is left of the values after one was stored as that.
    fn through(dtype: DataType, values: &mut [Self]);
    /// `self + other`.
    fn plus(self, other: Self) -> Self;
    /// `self − other`.
    fn minus(self, other: Self) -> Self;
    /// `self · other`.
    fn times(self, other: Self) -> Self;
    /// `|self|`.
    fn abs(self) -> Self;
    /// −1, 0 or 1; 0 of NaN.
    fn sign(self) -> Self;
    /// Largest whole number not above.
    fn floor(self) -> Self;
    /// Smallest whole number not below.
    fn ceil(self) -> Self;
    /// Nearest whole number, ties to even.
    fn round(self) -> Self;
    /// The whole part.
    fn trunc(self) -> Self;
    /// `⌊self / other⌋`, exact.
    fn floor_div(self, other: Self) -> Self;
    /// `self / other` without its fraction.
    fn trunc_div(self, other: Self) -> Self;
    /// What [`Self::floor_div`] leaves: the sign of `other`.
    fn floor_rem(self, other: Self) -> Self;
    /// What [`Self::trunc_div`] leaves: the sign of `self`.
    fn trunc_rem(self, other: Self) -> Self;
    /// `self` to the power `exponent`. Of integers, negative exponents give 0 but for the bases ±1.
    fn pow(self, exponent: Self) -> Self;
    /// True of NaN.
    fn is_nan(self) -> bool;
    /// True unless infinite or NaN.
    fn is_finite(self) -> bool;
    /// True of negative values, −0 and NaN with a sign.
    fn is_signed(self) -> bool;

    /// 1 or 0.
    #[inline(always)]
    fn truth(holds: bool) -> Self {
        if holds { Self::lit(1) } else { Self::default() }
    }
    /// True of everything but 0.
    #[inline(always)]
    fn holds(self) -> bool {
        self != Self::default()
    }
    /// The larger; NaN if either is.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }
    /// The smaller; NaN if either is.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }
}

/// Floating point.
pub trait Real:
    Number + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// From a literal, rounded to nearest.
    fn real(value: f64) -> Self;
    /// `eˣ`.
    fn exp(self) -> Self;
    /// `tanh x`.
    fn tanh(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// `√x`.
    fn sqrt(self) -> Self;
    /// By a function of either precision.
    fn by_either(self, single: impl Fn(f32) -> f32, double: impl Fn(f64) -> f64) -> Self;
    /// By a function of double precision, rounded once.
    fn by(self, f: impl Fn(f64) -> f64) -> Self;
    /// By a function of two values in double precision, rounded once.
    fn by2(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self;

    /// `1 / (1 + e⁻ˣ)`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::real(1.0) / (Self::real(1.0) + (-self).exp())
    }
}

macro_rules! float {
    ($t:ident, own: |$single:ident, $double:ident| $own:ident, exp: $exp:path, tanh: $tanh:path, erf: $erf:path, fmod: $fmod:path) => {
        impl Number for $t {
            #[inline(always)]
            fn lit(value: i8) -> Self {
                Self::from(value)
            }
            fn constant(scalar: &Scalar) -> Self {
                scalar.as_f64() as Self
            }
            fn through(dtype: DataType, values: &mut [Self]) {
                with_elem!(dtype, E => values.iter_mut().for_each(|v| *v = Self::of(v.to::<E>())), else => ());
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self - other
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn sign(self) -> Self {
                Self::truth(self > 0.0) - Self::truth(self < 0.0)
            }
            #[inline(always)]
            fn floor(self) -> Self {
                $t::floor(self)
            }
            #[inline(always)]
            fn ceil(self) -> Self {
                $t::ceil(self)
            }
            #[inline(always)]
            fn round(self) -> Self {
                self.round_ties_even()
            }
            #[inline(always)]
            fn trunc(self) -> Self {
                $t::trunc(self)
            }
            #[inline(always)]
            fn floor_div(self, other: Self) -> Self {
                if other == 0.0 {
                    return self / other;
                }
                // The quotient of what divides evenly is whole but for its rounding.
                let rest = $fmod(self, other);
                let whole = (self - rest) / other;
                let whole = if rest != 0.0 && (rest < 0.0) != (other < 0.0) { whole - 1.0 } else { whole };
                if whole == 0.0 {
                    return $t::copysign(0.0, self / other);
                }
                let below = $t::floor(whole);
                if whole - below > 0.5 { below + 1.0 } else { below }
            }
            #[inline(always)]
            fn trunc_div(self, other: Self) -> Self {
                $t::trunc(self / other)
            }
            #[inline(always)]
            fn floor_rem(self, other: Self) -> Self {
                let rest = $fmod(self, other);
                if rest != 0.0 && (rest < 0.0) != (other < 0.0) { rest + other } else { rest }
            }
            #[inline(always)]
            fn trunc_rem(self, other: Self) -> Self {
                $fmod(self, other)
            }
            #[inline(always)]
            fn pow(self, exponent: Self) -> Self {
                self.by2(exponent, libm::pow)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline(always)]
            fn is_signed(self) -> bool {
                self.is_sign_negative()
            }
        }

        impl Real for $t {
            #[inline(always)]
            fn real(value: f64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn by_either(self, $single: impl Fn(f32) -> f32, $double: impl Fn(f64) -> f64) -> Self {
                $own(self)
            }
            #[inline(always)]
            fn by(self, f: impl Fn(f64) -> f64) -> Self {
                f(f64::from(self)) as Self
            }
            #[inline(always)]
            fn by2(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
                f(f64::from(self), f64::from(other)) as Self
            }
        }
    };
}
float!(f32, own: |single, _double| single, exp: math::exp, tanh: math::tanh, erf: math::erf, fmod: libm::fmodf);
float!(f64, own: |_single, double| double, exp: libm::exp, tanh: libm::tanh, erf: libm::erf, fmod: libm::fmod);

impl Number for i64 {
    #[inline(always)]
    fn lit(value: i8) -> Self {
        Self::from(value)
    }
    fn constant(scalar: &Scalar) -> Self {
        scalar.as_i64()
    }
    fn through(dtype: DataType, values: &mut [Self]) {
        with_elem!(dtype, E => values.iter_mut().for_each(|v| *v = E::from_i64(*v).to_i64()), else => ());
    }
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
    #[inline(always)]
    fn times(self, other: Self) -> Self {
        self.wrapping_mul(other)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.wrapping_abs()
    }
    #[inline(always)]
    fn sign(self) -> Self {
        self.signum()
    }
    #[inline(always)]
    fn floor(self) -> Self {
        self
    }
    #[inline(always)]
    fn ceil(self) -> Self {
        self
    }
    #[inline(always)]
    fn round(self) -> Self {
        self
    }
    #[inline(always)]
    fn trunc(self) -> Self {
        self
    }
    #[inline(always)]
    fn floor_div(self, other: Self) -> Self {
        if other == 0 {
            return 0;
        }
        let whole = self.wrapping_div(other);
        let rest = self.wrapping_rem(other);
        if rest != 0 && (rest < 0) != (other < 0) { whole - 1 } else { whole }
    }
    #[inline(always)]
    fn trunc_div(self, other: Self) -> Self {
        if other == 0 { 0 } else { self.wrapping_div(other) }
    }
    #[inline(always)]
    fn floor_rem(self, other: Self) -> Self {
        let rest = self.trunc_rem(other);
        if rest != 0 && (rest < 0) != (other < 0) { rest + other } else { rest }
    }
    #[inline(always)]
    fn trunc_rem(self, other: Self) -> Self {
        if other == 0 { 0 } else { self.wrapping_rem(other) }
    }
    #[inline(always)]
    fn pow(self, exponent: Self) -> Self {
        if exponent < 0 {
            return match self {
                1 => 1,
                -1 => 1 - 2 * (exponent & 1),
                _ => 0,
            };
        }
        let (mut power, mut base, mut left) = (1i64, self, exponent);
        while left > 0 {
            if left & 1 == 1 {
                power = power.wrapping_mul(base);
            }
            base = base.wrapping_mul(base);
            left >>= 1;
        }
        power
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        false
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        true
    }
    #[inline(always)]
    fn is_signed(self) -> bool {
        self < 0
    }
}
