//! Which type an operation computes in: torch's `result_type`.

use acl_abi::DataType;

use super::super::lane::{Class, class};

/// The type that two tensors of types `a` and `b` compute in, torch's `promote_types`.
pub fn promote(a: DataType, b: DataType) -> DataType {
    use DataType::{Bool, F32, F64, I8, I16, I32, I64, U8};
    if a == b {
        return a;
    }
    let float = |t: DataType| class(t) != Class::Int;
    match (float(a), float(b)) {
        (true, false) => a,
        (false, true) => b,
        (true, true) if a == F64 || b == F64 => F64,
        // float16 with bfloat16, or either with float32.
        (true, true) => F32,
        (false, false) => {
            let rank = |t: DataType| match t {
                Bool => 0,
                U8 => 1,
                I8 => 2,
                I16 => 3,
                I32 => 4,
                _ => 5,
            };
            match (a, b) {
                (U8, I8) | (I8, U8) => I16,
                _ if rank(a) == 5 || rank(b) == 5 => I64,
                _ if rank(a) >= rank(b) => a,
                _ => b,
            }
        }
    }
}

/// How much an operand says about the type of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// A host scalar: only its kind counts.
    Scalar,
    /// A tensor without dimensions: counts if its kind is wider than that of the tensors with some.
    ZeroDim,
    /// A tensor.
    Tensor,
}

/// The type that operands of these types compute in; `None` without operands.
pub fn result_type(operands: impl Iterator<Item = (Weight, DataType)> + Clone) -> Option<DataType> {
    let of = |weight| {
        let types = operands.clone().filter(move |(w, _)| *w == weight).map(|(_, t)| match (weight, class(t)) {
            // The default types of a number: a double that comes with a float is not meant to widen it.
            (Weight::Scalar, Class::Single | Class::Double) => DataType::F32,
            (Weight::Scalar, Class::Int) if t != DataType::Bool => DataType::I64,
            _ => t,
        });
        types.reduce(promote)
    };
    let combine = |higher: Option<DataType>, lower: Option<DataType>| match (higher, lower) {
        (Some(h), Some(l)) if class(h) == Class::Int && (h == DataType::Bool || class(l) != Class::Int) => {
            Some(promote(h, l))
        }
        (Some(h), _) => Some(h),
        (None, l) => l,
    };
    combine(combine(of(Weight::Tensor), of(Weight::ZeroDim)), of(Weight::Scalar))
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};

    #[test]
    fn promotion_follows_torch() {
        for (a, b, want) in [
            (F32, F32, F32),
            (BF16, F16, F32),
            (BF16, F32, F32),
            (F16, F64, F64),
            (I64, BF16, BF16),
            (Bool, F16, F16),
            (I32, I64, I64),
            (U8, I8, I16),
            (U8, I16, I16),
            (Bool, I8, I8),
            (Bool, Bool, Bool),
        ] {
            assert_eq!((promote(a, b), promote(b, a)), (want, want), "{a:?} {b:?}");
        }
    }

    #[test]
    fn tensors_outweigh_zero_dimensional_ones_and_those_scalars() {
        use Weight::{Scalar, Tensor, ZeroDim};
        for (operands, want) in [
            (&[(Tensor, BF16), (ZeroDim, F64)][..], BF16),
            (&[(Tensor, I32), (ZeroDim, I64)], I32),
            (&[(Tensor, I32), (ZeroDim, F64)], F64),
            (&[(Tensor, Bool), (ZeroDim, U8)], U8),
            (&[(ZeroDim, F32), (ZeroDim, F64)], F64),
            (&[(Tensor, F16), (Scalar, F64)], F16),
            (&[(Tensor, I64), (Scalar, F64)], F32),
            (&[(Tensor, I8), (Scalar, I64)], I8),
            (&[(Tensor, Bool), (Scalar, I64)], I64),
            (&[(Tensor, Bool), (Scalar, Bool)], Bool),
            (&[(Scalar, F64), (ZeroDim, I32)], F32),
        ] {
            assert_eq!(result_type(operands.iter().copied()), Some(want), "{operands:?}");
        }
        assert_eq!(result_type([].into_iter()), None);
    }
}
