//! How the contributions of several ranks become one.

use crate::DataType;

/// `HcclReduceOp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fold {
    /// Sum; integers wrap.
    Sum,
    /// Product; integers wrap.
    Product,
    /// Largest; NaN if any is.
    Max,
    /// Smallest; NaN if any is.
    Min,
}

impl Fold {
    /// All of them, each at its number in `HcclReduceOp`.
    pub const ALL: [Self; 4] = [Self::Sum, Self::Product, Self::Max, Self::Min];

    /// The operation of this number.
    pub fn of(number: i32) -> Option<Self> {
        usize::try_from(number).ok().and_then(|i| Self::ALL.get(i).copied())
    }

    /// True for the element types that collectives reduce.
    pub const fn takes(element: DataType) -> bool {
        use DataType as D;
        matches!(
            element,
            D::I8 | D::I16 | D::I32 | D::I64 | D::U8 | D::U16 | D::U32 | D::U64 | D::F16 | D::BF16 | D::F32 | D::F64
        )
    }
}
