//! Element types of tensors and scalars (`aclDataType`).

macro_rules! data_types {
    ($($(#[$doc:meta])* $name:ident = $value:ident, $bits:expr;)*) => {
        /// An `aclDataType` that a tensor may have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum DataType { $($(#[$doc])* $name = crate::values::$value,)* }

        impl DataType {
            /// The type with this ABI value, if it is one we carry.
            pub const fn from_abi(value: i32) -> Option<Self> {
                match value { $(crate::values::$value => Some(Self::$name),)* _ => None }
            }

            /// Bits of one element.
            pub const fn bits(self) -> u32 {
                match self { $(Self::$name => $bits,)* }
            }
        }
    };
}

data_types! {
    /// IEEE single precision.
    F32 = ACL_FLOAT, 32;
    /// IEEE half precision.
    F16 = ACL_FLOAT16, 16;
    /// Signed 8 bit.
    I8 = ACL_INT8, 8;
    /// Signed 32 bit.
    I32 = ACL_INT32, 32;
    /// Unsigned 8 bit.
    U8 = ACL_UINT8, 8;
    /// Signed 16 bit.
    I16 = ACL_INT16, 16;
    /// Unsigned 16 bit.
    U16 = ACL_UINT16, 16;
    /// Unsigned 32 bit.
    U32 = ACL_UINT32, 32;
    /// Signed 64 bit.
    I64 = ACL_INT64, 64;
    /// Unsigned 64 bit.
    U64 = ACL_UINT64, 64;
    /// IEEE double precision.
    F64 = ACL_DOUBLE, 64;
    /// One byte, 0 or 1.
    Bool = ACL_BOOL, 8;
    /// Two singles.
    Complex64 = ACL_COMPLEX64, 64;
    /// Two doubles.
    Complex128 = ACL_COMPLEX128, 128;
    /// bfloat16.
    BF16 = ACL_BF16, 16;
    /// Two elements a byte.
    I4 = ACL_INT4, 4;
}

impl DataType {
    /// ABI value.
    pub const fn abi(self) -> i32 {
        self as i32
    }

    /// Bytes that `elements` elements take, rounded up to whole bytes; `None` on overflow.
    pub const fn bytes_of(self, elements: u64) -> Option<u64> {
        match elements.checked_mul(self.bits() as u64) {
            Some(bits) => Some(bits.div_ceil(8)),
            None => None,
        }
    }

    /// True for the floating-point types a vector or cube core computes in.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::F64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_abi() {
        for value in -1..64 {
            if let Some(t) = DataType::from_abi(value) {
                assert_eq!(t.abi(), value);
                assert!(t.bits() > 0);
            }
        }
        assert_eq!(DataType::from_abi(27), Some(DataType::BF16));
        assert_eq!(DataType::from_abi(13), None, "strings are not tensor elements");
    }

    #[test]
    fn packed_types_round_up_to_bytes() {
        assert_eq!(DataType::I4.bytes_of(3), Some(2));
        assert_eq!(DataType::F32.bytes_of(u64::MAX), None);
    }
}
