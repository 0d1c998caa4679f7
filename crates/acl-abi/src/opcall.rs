//! One operator call with its arguments: what the interposer captures, the wire carries, the cost model weighs and a
//! device executes.
//!
//! Storage is struct-of-arrays and reusable ([`OpCall::clear`]), so that a steady stream of operators allocates nothing.
//! The length of every list is bounded by what the wire decoder accepts.

use crate::values::ACL_FORMAT_FRACTAL_NZ;
use crate::{DataType, OpId, nz};

/// Most dimensions a tensor view may have.
pub const MAX_DIMS: usize = 8;

/// A strided view of device memory.
///
/// `addr` is the *storage base* in the client's virtual device address space; element `[i0, i1, …]` lies at
/// `addr + (offset + Σ i_k · strides[k]) · itemsize`. Strides and offset are in elements; a stride may be 0 (expanded).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorDesc {
    /// Storage base, client virtual device address.
    pub addr: u64,
    /// Offset of the view's first element, in elements.
    pub offset: i64,
    /// Element type.
    pub dtype: DataType,
    /// `aclFormat` (2 = ND, 29 = FRACTAL_NZ, …).
    pub format: i32,
    /// Number of dimensions, at most [`MAX_DIMS`].
    pub ndim: u8,
    /// Sizes; entries past `ndim` are 0.
    pub dims: [i64; MAX_DIMS],
    /// Strides in elements; entries past `ndim` are 0.
    pub strides: [i64; MAX_DIMS],
}

impl TensorDesc {
    /// A contiguous row-major view with format ND.
    ///
    /// # Panics
    /// With more than [`MAX_DIMS`] dimensions.
    pub fn contiguous(addr: u64, dtype: DataType, dims: &[i64]) -> Self {
        assert!(dims.len() <= MAX_DIMS, "{} dimensions", dims.len());
        let mut desc = Self {
            addr,
            offset: 0,
            dtype,
            format: 2,
            ndim: dims.len() as u8,
            dims: [0; MAX_DIMS],
            strides: [0; MAX_DIMS],
        };
        desc.dims[..dims.len()].copy_from_slice(dims);
        let mut stride = 1i64;
        for i in (0..dims.len()).rev() {
            desc.strides[i] = stride;
            stride = stride.saturating_mul(dims[i].max(1));
        }
        desc
    }

    /// Sizes.
    pub fn dims(&self) -> &[i64] {
        &self.dims[..usize::from(self.ndim)]
    }

    /// Strides, in elements.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..usize::from(self.ndim)]
    }

    /// Number of elements of the view (1 for 0-d); saturating, negative sizes count as 0.
    pub fn elements(&self) -> u64 {
        self.dims().iter().fold(1u64, |n, &d| n.saturating_mul(d.max(0) as u64))
    }

    /// Bytes that the view's elements take without gaps; saturating.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes_of(self.elements()).unwrap_or(u64::MAX)
    }

    /// True for row-major without gaps (dimensions of size 1 may have any stride).
    pub fn is_contiguous(&self) -> bool {
        let mut want = 1i64;
        for (&d, &s) in self.dims().iter().zip(self.strides()).rev() {
            if d != 1 {
                if s != want {
                    return false;
                }
                want = want.saturating_mul(d);
            }
        }
        true
    }

    /// Byte range `[first, last_end)` that the view touches, relative to `addr`: `None` for an empty view or where the
    /// arithmetic overflows or starts below the storage base (`Err`). In FRACTAL_NZ, whole matrices with their padding
    /// ([`crate::nz`]).
    #[allow(clippy::result_unit_err)]
    pub fn byte_span(&self) -> Result<Option<(u64, u64)>, ()> {
        if self.format == ACL_FORMAT_FRACTAL_NZ
            && let Some(matrices) = nz::matrices(self)?
        {
            let bytes = |elements: i64| self.dtype.bytes_of(elements as u64).ok_or(());
            let first = matrices.first.checked_mul(matrices.matrix).ok_or(())?;
            return Ok(Some((bytes(first)?, bytes(matrices.end().ok_or(())?)?)));
        }
        // One pass: every operand of every operator comes through here.
        let (mut low, mut high) = (self.offset, self.offset);
        let (mut negative, mut empty, mut overflow) = (false, false, false);
        for (&d, &s) in self.dims().iter().zip(self.strides()) {
            negative |= d < 0;
            empty |= d == 0;
            let (reach, too_far) = d.wrapping_sub(1).overflowing_mul(s);
            let end = if reach < 0 { &mut low } else { &mut high };
            let (moved, past) = end.overflowing_add(reach);
            *end = moved;
            overflow |= too_far | past;
        }
        if negative {
            return Err(());
        }
        if empty {
            return Ok(None);
        }
        if overflow {
            return Err(());
        }
        let low = u64::try_from(low).map_err(|_| ())?;
        let high = u64::try_from(high).map_err(|_| ())?.checked_add(1).ok_or(())?;
        let bits = u64::from(self.dtype.bits());
        let start = low.checked_mul(bits).ok_or(())? / 8;
        let end = high.checked_mul(bits).ok_or(())?.div_ceil(8);
        Ok(Some((start, end)))
    }
}

/// A host scalar (`aclScalar`): its type and its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar {
    /// Element type.
    pub dtype: DataType,
    /// Little-endian value in the low `bits` bits (complex128 does not fit and is refused by the interposer).
    pub bits: u64,
}

impl Scalar {
    /// Value as a double: integers convert, floats widen; half types are decoded.
    pub fn as_f64(&self) -> f64 {
        match self.dtype {
            DataType::F32 => f64::from(f32::from_bits(self.bits as u32)),
            DataType::F64 => f64::from_bits(self.bits),
            DataType::BF16 => f64::from(f32::from_bits((self.bits as u32) << 16)),
            DataType::F16 => half_to_f64(self.bits as u16),
            DataType::U64 => self.bits as f64,
            _ => self.as_i64() as f64,
        }
    }

    /// Value as an integer: floats truncate.
    pub fn as_i64(&self) -> i64 {
        match self.dtype {
            DataType::I8 => i64::from(self.bits as i8),
            DataType::U8 | DataType::Bool => i64::from(self.bits as u8),
            DataType::I16 => i64::from(self.bits as i16),
            DataType::U16 => i64::from(self.bits as u16),
            DataType::I32 => i64::from(self.bits as i32),
            DataType::U32 => i64::from(self.bits as u32),
            DataType::I64 | DataType::U64 => self.bits as i64,
            _ => self.as_f64() as i64,
        }
    }
}

fn half_to_f64(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
    }
}

/// One argument. Ranges index the arrays of the [`OpCall`] that holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A null pointer: an absent optional.
    Absent,
    /// Index into [`OpCall::tensors`].
    Tensor(u16),
    /// Consecutive entries of [`OpCall::tensors`].
    TensorList {
        /// First entry.
        start: u16,
        /// Number of entries.
        len: u16,
    },
    /// A scalar.
    Scalar(Scalar),
    /// Consecutive entries of [`OpCall::scalars`].
    ScalarList {
        /// First entry.
        start: u16,
        /// Number of entries.
        len: u16,
    },
    /// Consecutive entries of [`OpCall::ints`]: int and bool arrays.
    Ints {
        /// First entry.
        start: u32,
        /// Number of entries.
        len: u32,
    },
    /// Consecutive entries of [`OpCall::floats`].
    Floats {
        /// First entry.
        start: u32,
        /// Number of entries.
        len: u32,
    },
    /// Bytes of [`OpCall::text`], UTF-8 not guaranteed.
    Str {
        /// First byte.
        start: u32,
        /// Number of bytes, without the NUL.
        len: u32,
    },
    /// `aclDataType` by ABI value (an output type may be one we do not carry).
    DType(i32),
    /// `bool`.
    Bool(bool),
    /// `int8_t`, `int32_t`, `int64_t`.
    Int(i64),
    /// `uint64_t`.
    UInt(u64),
    /// `float`, `double`.
    Float(f64),
}

/// An operator and its arguments in signature order.
#[derive(Clone, Debug, PartialEq)]
pub struct OpCall {
    /// Operator.
    pub op: OpId,
    /// One entry a parameter of the signature.
    pub args: Vec<Arg>,
    /// Tensor views that `args` index.
    pub tensors: Vec<TensorDesc>,
    /// Scalars of scalar lists.
    pub scalars: Vec<Scalar>,
    /// Integers of int and bool arrays.
    pub ints: Vec<i64>,
    /// Values of float arrays.
    pub floats: Vec<f32>,
    /// Bytes of strings.
    pub text: Vec<u8>,
}

impl OpCall {
    /// An empty call of `op`.
    pub fn new(op: OpId) -> Self {
        Self {
            op,
            args: Vec::new(),
            tensors: Vec::new(),
            scalars: Vec::new(),
            ints: Vec::new(),
            floats: Vec::new(),
            text: Vec::new(),
        }
    }

    /// Empties the call and makes it one of `op`; keeps the allocations.
    pub fn clear(&mut self, op: OpId) {
        self.op = op;
        self.args.clear();
        self.tensors.clear();
        self.scalars.clear();
        self.ints.clear();
        self.floats.clear();
        self.text.clear();
    }

    /// Makes the call a copy of another; keeps the allocations.
    pub fn copy_from(&mut self, other: &Self) {
        self.clear(other.op);
        self.args.extend_from_slice(&other.args);
        self.tensors.extend_from_slice(&other.tensors);
        self.scalars.extend_from_slice(&other.scalars);
        self.ints.extend_from_slice(&other.ints);
        self.floats.extend_from_slice(&other.floats);
        self.text.extend_from_slice(&other.text);
    }

    /// Appends a tensor argument.
    pub fn push_tensor(&mut self, desc: Option<TensorDesc>) -> &mut Self {
        match desc {
            None => self.args.push(Arg::Absent),
            Some(desc) => {
                self.args.push(Arg::Tensor(self.tensors.len() as u16));
                self.tensors.push(desc);
            }
        }
        self
    }

    /// Appends a tensor list argument.
    pub fn push_tensor_list(&mut self, list: &[TensorDesc]) -> &mut Self {
        self.args.push(Arg::TensorList { start: self.tensors.len() as u16, len: list.len() as u16 });
        self.tensors.extend_from_slice(list);
        self
    }

    /// Appends an int array argument.
    pub fn push_ints(&mut self, ints: Option<&[i64]>) -> &mut Self {
        match ints {
            None => self.args.push(Arg::Absent),
            Some(ints) => {
                self.args.push(Arg::Ints { start: self.ints.len() as u32, len: ints.len() as u32 });
                self.ints.extend_from_slice(ints);
            }
        }
        self
    }

    /// Appends a string argument.
    pub fn push_str(&mut self, text: &[u8]) -> &mut Self {
        self.args.push(Arg::Str { start: self.text.len() as u32, len: text.len() as u32 });
        self.text.extend_from_slice(text);
        self
    }

    /// Appends an argument that needs no storage.
    pub fn push(&mut self, arg: Arg) -> &mut Self {
        self.args.push(arg);
        self
    }

    /// Tensor argument at `position`; `None` if absent or of another kind.
    pub fn tensor(&self, position: usize) -> Option<&TensorDesc> {
        match self.args.get(position)? {
            Arg::Tensor(i) => self.tensors.get(usize::from(*i)),
            _ => None,
        }
    }

    /// Tensor list argument at `position`.
    pub fn tensor_list(&self, position: usize) -> Option<&[TensorDesc]> {
        match *self.args.get(position)? {
            Arg::TensorList { start, len } => {
                self.tensors.get(usize::from(start)..usize::from(start) + usize::from(len))
            }
            _ => None,
        }
    }

    /// Scalar argument at `position`.
    pub fn scalar(&self, position: usize) -> Option<Scalar> {
        match self.args.get(position)? {
            Arg::Scalar(s) => Some(*s),
            _ => None,
        }
    }

    /// Scalar list argument at `position`.
    pub fn scalar_list(&self, position: usize) -> Option<&[Scalar]> {
        match *self.args.get(position)? {
            Arg::ScalarList { start, len } => {
                self.scalars.get(usize::from(start)..usize::from(start) + usize::from(len))
            }
            _ => None,
        }
    }

    /// Int or bool array argument at `position`.
    pub fn ints(&self, position: usize) -> Option<&[i64]> {
        match *self.args.get(position)? {
            Arg::Ints { start, len } => self.ints.get(start as usize..(start as usize).checked_add(len as usize)?),
            _ => None,
        }
    }

    /// String argument at `position`.
    pub fn str(&self, position: usize) -> Option<&[u8]> {
        match *self.args.get(position)? {
            Arg::Str { start, len } => self.text.get(start as usize..(start as usize).checked_add(len as usize)?),
            _ => None,
        }
    }

    /// Integer, bool or data-type argument at `position`.
    pub fn int(&self, position: usize) -> Option<i64> {
        match *self.args.get(position)? {
            Arg::Int(v) => Some(v),
            Arg::UInt(v) => i64::try_from(v).ok(),
            Arg::Bool(v) => Some(i64::from(v)),
            Arg::DType(v) => Some(i64::from(v)),
            _ => None,
        }
    }

    /// Floating-point argument at `position`.
    pub fn float(&self, position: usize) -> Option<f64> {
        match self.args.get(position)? {
            Arg::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Position of the parameter called `name`: for operators with long signatures.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.op.signature().position(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn span_of_views() {
        let t = TensorDesc::contiguous(0x1000, DataType::F32, &[2, 3]);
        assert_eq!(t.byte_span(), Ok(Some((0, 24))));
        assert!(t.is_contiguous());
        let transposed = TensorDesc { dims: [3, 2, 0, 0, 0, 0, 0, 0], strides: [1, 3, 0, 0, 0, 0, 0, 0], ..t };
        assert_eq!(transposed.byte_span(), Ok(Some((0, 24))));
        assert!(!transposed.is_contiguous());
        let expanded = TensorDesc { strides: [0; 8], ..t };
        assert_eq!(expanded.byte_span(), Ok(Some((0, 4))));
        let below = TensorDesc { offset: -1, ..t };
        assert_eq!(below.byte_span(), Err(()));
        let huge = TensorDesc { strides: [i64::MAX, 1, 0, 0, 0, 0, 0, 0], dims: [3, 3, 0, 0, 0, 0, 0, 0], ..t };
        assert_eq!(huge.byte_span(), Err(()));
        let empty = TensorDesc::contiguous(0, DataType::F32, &[0, 4]);
        assert_eq!(empty.byte_span(), Ok(None));
    }

    #[test]
    fn span_of_a_private_format_holds_the_padding() {
        let plain = TensorDesc::contiguous(0x1000, DataType::F16, &[20, 33]);
        let private = TensorDesc { format: ACL_FORMAT_FRACTAL_NZ, ..plain };
        assert_eq!(plain.byte_span(), Ok(Some((0, 20 * 33 * 2))));
        assert_eq!(private.byte_span(), Ok(Some((0, 32 * 48 * 2))));
        assert_eq!(TensorDesc { offset: 660, ..private }.byte_span(), Ok(Some((3072, 6144))));
        assert_eq!(TensorDesc { offset: 1, ..private }.byte_span(), Err(()));
    }

    #[test]
    fn arguments_come_back_by_position() {
        let mut call = OpCall::new(ops::aclnnArgMax);
        let t = TensorDesc::contiguous(0, DataType::F32, &[4]);
        call.push_tensor(Some(t)).push(Arg::Int(-1)).push(Arg::Bool(true)).push_tensor(None);
        assert_eq!(call.tensor(0), Some(&t));
        assert_eq!(call.int(1), Some(-1));
        assert_eq!(call.int(2), Some(1));
        assert_eq!(call.tensor(3), None);
        assert_eq!(call.tensor(9), None);
    }

    #[test]
    fn scalars_decode() {
        for (dtype, bits, want) in [
            (DataType::F16, 0x3e00u64, 1.5),
            (DataType::F16, 0x0001, 5.960464477539063e-8),
            (DataType::BF16, 0x3fc0, 1.5),
            (DataType::F32, u64::from(1.5f32.to_bits()), 1.5),
            (DataType::I32, u64::from(-2i32 as u32), -2.0),
        ] {
            assert_eq!(Scalar { dtype, bits }.as_f64(), want, "{dtype:?}");
        }
    }
}
