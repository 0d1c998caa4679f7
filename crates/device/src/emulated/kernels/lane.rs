//! Element types in memory and the types that kernels compute in.
//!
//! Kernels compute in one of three *lanes*: `f32` for all floating-point types up to 32 bits, `f64` for doubles, `i64`
//! for integers and bools. A value is converted when it is loaded and rounded once, to nearest even, when it is stored,
//! as the CPU kernels of torch do. Integers wrap on overflow; a float stored as an integer saturates from 32 bits on and
//! wraps below, NaN becomes 0; anything stored as a bool becomes `≠ 0`.

use acl_abi::DataType;
use bytemuck::{Pod, Zeroable};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// One byte that is 0 or 1 (any other value counts as 1).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bit(pub u8);

/// A type that a tensor's elements have in memory.
pub trait Elem: Pod {
    /// Value as single precision, rounded to nearest.
    fn to_f32(self) -> f32;
    /// Rounds to nearest.
    fn from_f32(value: f32) -> Self;
    /// Value as double precision.
    fn to_f64(self) -> f64;
    /// Rounds to nearest (16-bit floats by way of single precision, as torch does).
    fn from_f64(value: f64) -> Self;
    /// Value as an integer.
    fn to_i64(self) -> i64;
    /// Wraps.
    fn from_i64(value: i64) -> Self;

    /// [`Self::to_f32`] of a run.
    #[inline(always)]
    fn load_f32(from: &[Self], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f32();
        }
    }

    /// [`Self::from_f32`] of a run.
    #[inline(always)]
    fn store_f32(from: &[f32], to: &mut [Self]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = Self::from_f32(*from);
        }
    }
}

macro_rules! numbers {
    ($($($t:ty),*: |$value:ident| $whole:expr);*) => {$($(
        impl Elem for $t {
            #[inline(always)]
            fn to_f32(self) -> f32 { self as f32 }
            #[inline(always)]
            fn from_f32($value: f32) -> Self { ($whole) as Self }
            #[inline(always)]
            fn to_f64(self) -> f64 { self as f64 }
            #[inline(always)]
            fn from_f64($value: f64) -> Self { ($whole) as Self }
            #[inline(always)]
            fn to_i64(self) -> i64 { self as i64 }
            #[inline(always)]
            fn from_i64(value: i64) -> Self { value as Self }
        }
    )*)*};
}
numbers!(f32, f64: |value| value; i8, i16, u8, u16, u32: |value| value as i64; i32, i64, u64: |value| value);

impl Elem for Bit {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self.0 != 0)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self(u8::from(value != 0.0))
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self.0 != 0)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Self(u8::from(value != 0.0))
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        i64::from(self.0 != 0)
    }
    #[inline(always)]
    fn from_i64(value: i64) -> Self {
        Self(u8::from(value != 0))
    }
}

impl Elem for bf16 {
    // Branch-free forms of what `half` computes, so that loops over them become vector code.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
        let quiet = bits >> 16 | 0x40;
        Self::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(Elem::to_f32(self))
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Elem::from_f32(value as f32)
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        Elem::to_f32(self) as i64
    }
    #[inline(always)]
    fn from_i64(value: i64) -> Self {
        Elem::from_f32(value as f32)
    }
}

impl Elem for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f16::to_f64(self)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        f16::from_f32(value as f32)
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        f16::to_f32(self) as i64
    }
    #[inline(always)]
    fn from_i64(value: i64) -> Self {
        f16::from_f32(value as f32)
    }
    fn load_f32(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(&mut to[..from.len()]);
    }
    fn store_f32(from: &[f32], to: &mut [Self]) {
        to[..from.len()].convert_from_f32_slice(from);
    }
}

/// A type that kernels compute in.
pub trait Lane: Copy + Default + PartialOrd + Send + Sync {
    /// From memory.
    fn of<E: Elem>(value: E) -> Self;
    /// To memory.
    fn to<E: Elem>(self) -> E;
    /// A contiguous run from memory; both slices have one length.
    #[inline(always)]
    fn load<E: Elem>(from: &[E], to: &mut [Self]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = Self::of(*from);
        }
    }
    /// A contiguous run to memory; both slices have one length.
    #[inline(always)]
    fn store<E: Elem>(from: &[Self], to: &mut [E]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to();
        }
    }
}

impl Lane for f32 {
    #[inline(always)]
    fn of<E: Elem>(value: E) -> Self {
        value.to_f32()
    }
    #[inline(always)]
    fn to<E: Elem>(self) -> E {
        E::from_f32(self)
    }
    #[inline(always)]
    fn load<E: Elem>(from: &[E], to: &mut [Self]) {
        E::load_f32(from, to);
    }
    #[inline(always)]
    fn store<E: Elem>(from: &[Self], to: &mut [E]) {
        E::store_f32(from, to);
    }
}

impl Lane for f64 {
    #[inline(always)]
    fn of<E: Elem>(value: E) -> Self {
        value.to_f64()
    }
    #[inline(always)]
    fn to<E: Elem>(self) -> E {
        E::from_f64(self)
    }
}

impl Lane for i64 {
    #[inline(always)]
    fn of<E: Elem>(value: E) -> Self {
        value.to_i64()
    }
    #[inline(always)]
    fn to<E: Elem>(self) -> E {
        E::from_i64(self)
    }
}

/// Runs `$body` with `$E` bound to the element type of `$dtype`; `$other` for types that no kernel computes with.
macro_rules! with_elem {
    ($dtype:expr, $E:ident => $body:expr, else => $other:expr) => {
        match $dtype {
            acl_abi::DataType::F32 => {
                type $E = f32;
                $body
            }
            acl_abi::DataType::F16 => {
                type $E = half::f16;
                $body
            }
            acl_abi::DataType::BF16 => {
                type $E = half::bf16;
                $body
            }
            acl_abi::DataType::F64 => {
                type $E = f64;
                $body
            }
            acl_abi::DataType::I8 => {
                type $E = i8;
                $body
            }
            acl_abi::DataType::I16 => {
                type $E = i16;
                $body
            }
            acl_abi::DataType::I32 => {
                type $E = i32;
                $body
            }
            acl_abi::DataType::I64 => {
                type $E = i64;
                $body
            }
            acl_abi::DataType::U8 => {
                type $E = u8;
                $body
            }
            acl_abi::DataType::U16 => {
                type $E = u16;
                $body
            }
            acl_abi::DataType::U32 => {
                type $E = u32;
                $body
            }
            acl_abi::DataType::U64 => {
                type $E = u64;
                $body
            }
            acl_abi::DataType::Bool => {
                type $E = $crate::emulated::kernels::lane::Bit;
                $body
            }
            _ => $other,
        }
    };
}
pub(crate) use with_elem;

/// True for types that kernels can load and store.
pub fn is_supported(dtype: DataType) -> bool {
    with_elem!(dtype, E => { let _ = size_of::<E>(); true }, else => false)
}

/// Which lane a type computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Integers and bools, in `i64`.
    Int,
    /// Floating point up to 32 bits, in `f32`.
    Single,
    /// Doubles.
    Double,
}

/// The lane of `dtype`.
pub fn class(dtype: DataType) -> Class {
    match dtype {
        DataType::F64 => Class::Double,
        DataType::F32 | DataType::F16 | DataType::BF16 => Class::Single,
        _ => Class::Int,
    }
}

/// Name of a type in error texts, torch's spelling.
pub fn name(dtype: DataType) -> &'static str {
    match dtype {
        DataType::F32 => "float32",
        DataType::F16 => "float16",
        DataType::BF16 => "bfloat16",
        DataType::F64 => "float64",
        DataType::I8 => "int8",
        DataType::I16 => "int16",
        DataType::I32 => "int32",
        DataType::I64 => "int64",
        DataType::U8 => "uint8",
        DataType::U16 => "uint16",
        DataType::U32 => "uint32",
        DataType::U64 => "uint64",
        DataType::Bool => "bool",
        DataType::Complex64 => "complex64",
        DataType::Complex128 => "complex128",
        DataType::I4 => "int4",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bfloat16_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let value = bf16::from_bits(bits);
            assert_eq!(Elem::to_f32(value).to_bits() & 0xffff, 0);
            assert_eq!(Elem::to_f32(value).is_nan(), value.is_nan());
            let back: bf16 = Elem::from_f32(Elem::to_f32(value));
            assert!(back == value || value.is_nan() && back.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn rounding_to_bfloat16_is_to_nearest_even() {
        let mut state = 1u32;
        let cases = (0..1_000_000).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        });
        let edges = [0x7f7f_ffff, 0x7f7f_8000, 0x7f80_0000, 0xff80_0000, 0x0000_8000, 0x0001_8000, 0x8000_8001];
        for bits in cases.chain(edges) {
            let value = f32::from_bits(bits);
            let ours: bf16 = Elem::from_f32(value);
            let theirs = bf16::from_f32(value);
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn runs_convert_like_single_values() {
        let values: Vec<f32> = (0..37).map(|i| (i as f32 - 17.3) * 1.37).collect();
        let mut halves = [f16::ZERO; 37];
        <f32 as Lane>::store(&values, &mut halves);
        let mut back = [0.0; 37];
        <f32 as Lane>::load(&halves, &mut back);
        for ((v, h), b) in values.iter().zip(halves).zip(back) {
            assert_eq!((h, b), (f16::from_f32(*v), h.to_f32()));
        }
    }
}
