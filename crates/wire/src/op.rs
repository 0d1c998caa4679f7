//! Operator calls as bytes.
//!
//! The signature says how many arguments there are and of what kind, so neither travels. A body is the operator's index
//! (16 bit) followed by its arguments in signature order:
//!
//! | kind | bytes |
//! |---|---|
//! | tensor | one byte: dimensions in the low four bits (15 for null), flags above; element type (1), address (8), then as the flags say: offset (8), format (4); sizes and, unless row-major, strides, each 4 bytes or 8 |
//! | scalar | element type (1; 255 for null), bits (8) |
//! | tensor list, scalar list | count (2; 65535 for null), entries |
//! | int, bool, float array; string | count (4; 2³²−1 for null), entries of 8, 1, 4, 1 bytes |
//! | bool, i8 | 1; i32, dtype: 4; i64, u64, f32, f64: 8 |
//!
//! A contiguous 3-d tensor takes 22 bytes. The decoder gives tensors, list entries and text the order of the arguments:
//! a call built with `OpCall::push_*` comes back equal; one whose arguments share an entry comes back with copies.
//!
//! Not checked here: addresses and spans (the daemon knows what the session allocated) and the meaning of values (the
//! device knows the operator).

use crate::cursor::{Put, Reader};
use crate::limits::{FLOATS_MAX, INTS_MAX, RECORD_BYTES_MAX, SCALARS_MAX, TENSORS_MAX, TEXT_BYTES_MAX};
use crate::{DecodeError, EncodeError};
use acl_abi::{Arg, DataType, Kind, MAX_DIMS, OpCall, OpId, Param, Scalar, TensorDesc};

/// Most bytes of a body: what is left of a record after its headers, also those of a graph's node.
pub const OP_BYTES_MAX: usize = RECORD_BYTES_MAX - 32;

/// First byte of an absent tensor.
const ABSENT: u8 = 0x0f;
const NDIM: u8 = 0x0f;
const STRIDED: u8 = 0x10;
const OFFSET: u8 = 0x20;
const FORMAT: u8 = 0x40;
const WIDE: u8 = 0x80;
const FORMAT_ND: i32 = 2;

const TENSOR_BYTES_MIN: usize = 1 + 1 + 8;
const SCALAR_BYTES: usize = 1 + 8;

/// Appends the body of `call`.
///
/// # Errors
/// If the call does not fit its signature or a limit; `out` is then unchanged.
pub fn encode_op(call: &OpCall, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let result = put_call(call, out).and_then(|()| {
        let count = out.len() - start;
        if count > OP_BYTES_MAX {
            return Err(EncodeError::TooMany { what: "bytes of an operator call", count, max: OP_BYTES_MAX });
        }
        Ok(())
    });
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Reads a body into `call`, whose allocations are reused.
///
/// # Errors
/// If the bytes are no body; `call` then holds a part of it.
pub fn decode_op(bytes: &[u8], call: &mut OpCall) -> Result<(), DecodeError> {
    let mut r = Reader::new(bytes);
    let index = r.u16()?;
    let op = OpId::checked(index).ok_or(DecodeError::Unknown { what: "operator", value: u64::from(index) })?;
    call.clear(op);
    for param in op.signature().params {
        let arg = take_arg(param.kind, &mut r, call)?;
        call.args.push(arg);
    }
    r.end()
}

fn put_call(call: &OpCall, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let signature = call.op.signature();
    let op = signature.name;
    if call.args.len() != signature.params.len() {
        return Err(EncodeError::ArgCount { op, have: call.args.len(), want: signature.params.len() });
    }
    out.u16(call.op.0);
    let mut used = Used::default();
    for (param, arg) in signature.params.iter().zip(&call.args) {
        put_arg(call, param, arg, &mut used, out)?;
    }
    Ok(())
}

/// Entries written so far, against the limits.
#[derive(Default)]
struct Used {
    tensors: usize,
    scalars: usize,
    ints: usize,
    floats: usize,
    text: usize,
}

fn spend(used: &mut usize, more: usize, what: &'static str, max: usize) -> Result<(), EncodeError> {
    *used += more;
    if *used > max { Err(EncodeError::TooMany { what, count: *used, max }) } else { Ok(()) }
}

/// Entries `start..start + len` of `all`.
fn entries<T>(all: &[T], start: usize, len: usize) -> Option<&[T]> {
    all.get(start..start.checked_add(len)?)
}

fn put_arg(call: &OpCall, param: &Param, arg: &Arg, used: &mut Used, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let value = |what| EncodeError::ArgValue { op: call.op.name(), param: param.name, what };
    let outside = || value("its entries lie outside the call");
    match (param.kind, *arg) {
        (Kind::Tensor | Kind::TensorOut, Arg::Absent) => out.u8(ABSENT),
        (Kind::Tensor | Kind::TensorOut, Arg::Tensor(i)) => {
            spend(&mut used.tensors, 1, "tensors", TENSORS_MAX)?;
            put_tensor(call.tensors.get(usize::from(i)).ok_or_else(outside)?, out).map_err(value)?;
        }
        (Kind::TensorList | Kind::TensorListOut | Kind::ScalarList, Arg::Absent) => out.u16(u16::MAX),
        (Kind::TensorList | Kind::TensorListOut, Arg::TensorList { start, len }) => {
            spend(&mut used.tensors, usize::from(len), "tensors", TENSORS_MAX)?;
            out.u16(len);
            for t in entries(&call.tensors, start.into(), len.into()).ok_or_else(outside)? {
                put_tensor(t, out).map_err(value)?;
            }
        }
        (Kind::Scalar, Arg::Absent) => out.u8(u8::MAX),
        (Kind::Scalar, Arg::Scalar(s)) => put_scalar(s, out),
        (Kind::ScalarList, Arg::ScalarList { start, len }) => {
            spend(&mut used.scalars, usize::from(len), "scalars", SCALARS_MAX)?;
            out.u16(len);
            for &s in entries(&call.scalars, start.into(), len.into()).ok_or_else(outside)? {
                put_scalar(s, out);
            }
        }
        (Kind::IntArray | Kind::BoolArray | Kind::FloatArray | Kind::Str, Arg::Absent) => out.u32(u32::MAX),
        (Kind::IntArray | Kind::BoolArray, Arg::Ints { start, len }) => {
            spend(&mut used.ints, len as usize, "array entries", INTS_MAX)?;
            out.u32(len);
            let ints = entries(&call.ints, start as usize, len as usize).ok_or_else(outside)?;
            if param.kind == Kind::IntArray {
                ints.iter().for_each(|&v| out.i64(v));
            } else {
                for &v in ints {
                    out.u8(u8::try_from(v).ok().filter(|&v| v < 2).ok_or_else(|| value("a bool is 0 or 1"))?);
                }
            }
        }
        (Kind::FloatArray, Arg::Floats { start, len }) => {
            spend(&mut used.floats, len as usize, "array entries", FLOATS_MAX)?;
            out.u32(len);
            let floats = entries(&call.floats, start as usize, len as usize).ok_or_else(outside)?;
            floats.iter().for_each(|&v| out.u32(v.to_bits()));
        }
        (Kind::Str, Arg::Str { start, len }) => {
            spend(&mut used.text, len as usize, "bytes of strings", TEXT_BYTES_MAX)?;
            out.u32(len);
            out.extend_from_slice(entries(&call.text, start as usize, len as usize).ok_or_else(outside)?);
        }
        (Kind::DType, Arg::DType(v)) => out.i32(v),
        (Kind::Bool, Arg::Bool(v)) => out.u8(v.into()),
        (Kind::I8, Arg::Int(v)) => out.u8(i8::try_from(v).map_err(|_| value("wider than int8_t"))? as u8),
        (Kind::I32, Arg::Int(v)) => out.i32(i32::try_from(v).map_err(|_| value("wider than int32_t"))?),
        (Kind::I64, Arg::Int(v)) => out.i64(v),
        (Kind::U64, Arg::UInt(v)) => out.u64(v),
        (Kind::F32 | Kind::F64, Arg::Float(v)) => out.u64(v.to_bits()),
        _ => return Err(EncodeError::ArgKind { op: call.op.name(), param: param.name }),
    }
    Ok(())
}

fn put_scalar(s: Scalar, out: &mut Vec<u8>) {
    let mut bytes = [0; SCALAR_BYTES];
    bytes[0] = s.dtype.abi() as u8;
    bytes[1..].copy_from_slice(&s.bits.to_le_bytes());
    out.put(bytes);
}

fn put_tensor(t: &TensorDesc, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let n = usize::from(t.ndim);
    if n > MAX_DIMS {
        return Err("a tensor has too many dimensions");
    }
    // One pass: are the strides those of `TensorDesc::contiguous`, and which bits do the numbers use?
    let (mut row_major, mut strided, mut dim_bits, mut stride_bits) = (1i64, false, 0, 0);
    for (&d, &s) in t.dims[..n].iter().zip(&t.strides[..n]).rev() {
        strided |= s != row_major;
        row_major = row_major.saturating_mul(d.max(1));
        dim_bits |= d as u64;
        stride_bits |= s as u64;
    }
    if dim_bits >> 63 != 0 {
        return Err("a tensor has a size below zero");
    }
    let wide = (dim_bits | if strided { stride_bits } else { 0 }) >> 32 != 0;
    let flag = |on, bit| if on { bit } else { 0 };
    let flags =
        flag(strided, STRIDED) | flag(t.offset != 0, OFFSET) | flag(t.format != FORMAT_ND, FORMAT) | flag(wide, WIDE);

    let mut head = [0; TENSOR_BYTES_MIN];
    head[0] = t.ndim | flags;
    head[1] = t.dtype.abi() as u8;
    head[2..].copy_from_slice(&t.addr.to_le_bytes());
    out.put(head);
    if t.offset != 0 {
        out.i64(t.offset);
    }
    if t.format != FORMAT_ND {
        out.i32(t.format);
    }
    put_sizes(&t.dims, n, wide, out);
    if strided {
        put_sizes(&t.strides, n, wide, out);
    }
    Ok(())
}

#[inline]
fn put_sizes(sizes: &[i64; MAX_DIMS], n: usize, wide: bool, out: &mut Vec<u8>) {
    if wide {
        sizes[..n].iter().for_each(|&v| out.i64(v));
    } else {
        // All of them at a fixed length, then only those in use: no loop over a variable length.
        let mut bytes = [0; MAX_DIMS * 4];
        for (to, &v) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(sizes) {
            *to = (v as u32).to_le_bytes();
        }
        out.extend_from_slice(&bytes[..n * 4]);
    }
}

fn take_dtype(abi: u8) -> Result<DataType, DecodeError> {
    DataType::from_abi(i32::from(abi)).ok_or(DecodeError::Unknown { what: "element type", value: u64::from(abi) })
}

/// Reads the tensor that starts with `first` into the end of `tensors`.
fn take_tensor(first: u8, r: &mut Reader<'_>, tensors: &mut Vec<TensorDesc>) -> Result<(), DecodeError> {
    let ndim = first & NDIM;
    let n = usize::from(ndim);
    if n > MAX_DIMS {
        return Err(DecodeError::Range { what: "number of dimensions", value: i64::from(ndim) });
    }
    if tensors.len() >= TENSORS_MAX {
        return Err(DecodeError::TooMany { what: "tensors", count: tensors.len() + 1, max: TENSORS_MAX });
    }
    let has = |bit| first & bit != 0;
    let dtype = take_dtype(r.u8()?)?;
    let addr = r.u64()?;
    let offset = if has(OFFSET) { r.i64()? } else { 0 };
    let format = if has(FORMAT) { r.i32()? } else { FORMAT_ND };
    // Filled where it stays: sizes are written one by one, and copying them all right afterwards would wait for each to have
    // left the store buffer, which took longer than everything else here together.
    tensors.push(TensorDesc { addr, offset, dtype, format, ndim, dims: [0; MAX_DIMS], strides: [0; MAX_DIMS] });
    let Some(TensorDesc { dims, strides, .. }) = tensors.last_mut() else { return Ok(()) };
    take_sizes(dims, n, has(WIDE), r)?;
    if has(WIDE)
        && let Some(&value) = dims.iter().find(|&&d| d < 0)
    {
        return Err(DecodeError::Range { what: "size of a dimension", value });
    }
    if has(STRIDED) {
        take_sizes(strides, n, has(WIDE), r)?;
    } else {
        let mut row_major = 1i64;
        for (s, &d) in strides[..n].iter_mut().zip(&dims[..n]).rev() {
            *s = row_major;
            row_major = row_major.saturating_mul(d.max(1));
        }
    }
    Ok(())
}

#[inline]
fn take_sizes(sizes: &mut [i64; MAX_DIMS], n: usize, wide: bool, r: &mut Reader<'_>) -> Result<(), DecodeError> {
    let bytes = r.take(if wide { n * 8 } else { n * 4 })?;
    if wide {
        for (v, bytes) in sizes.iter_mut().zip(bytes.as_chunks().0) {
            *v = i64::from_le_bytes(*bytes);
        }
    } else {
        for (v, bytes) in sizes.iter_mut().zip(bytes.as_chunks().0) {
            *v = i64::from(u32::from_le_bytes(*bytes));
        }
    }
    Ok(())
}

fn take_scalar(dtype: u8, r: &mut Reader<'_>) -> Result<Scalar, DecodeError> {
    Ok(Scalar { dtype: take_dtype(dtype)?, bits: r.u64()? })
}

/// Checks a count against the limit (with what the call already holds) and against the bytes that are left, so that a
/// count alone never makes us allocate.
fn bounded(
    r: &Reader<'_>,
    have: usize,
    count: usize,
    entry_bytes: usize,
    what: &'static str,
    max: usize,
) -> Result<(), DecodeError> {
    if have + count > max {
        return Err(DecodeError::TooMany { what, count: have + count, max });
    }
    let need = count * entry_bytes;
    if need > r.left() {
        return Err(DecodeError::Truncated { need, have: r.left() });
    }
    Ok(())
}

fn take_arg(kind: Kind, r: &mut Reader<'_>, call: &mut OpCall) -> Result<Arg, DecodeError> {
    Ok(match kind {
        Kind::Tensor | Kind::TensorOut => match r.u8()? {
            ABSENT => Arg::Absent,
            first => {
                let index = call.tensors.len() as u16;
                take_tensor(first, r, &mut call.tensors)?;
                Arg::Tensor(index)
            }
        },
        Kind::TensorList | Kind::TensorListOut => match r.u16()? {
            u16::MAX => Arg::Absent,
            len => {
                bounded(r, call.tensors.len(), len.into(), TENSOR_BYTES_MIN, "tensors", TENSORS_MAX)?;
                let start = call.tensors.len() as u16;
                for _ in 0..len {
                    // An absent one has too many dimensions: a list has no holes.
                    let first = r.u8()?;
                    take_tensor(first, r, &mut call.tensors)?;
                }
                Arg::TensorList { start, len }
            }
        },
        Kind::Scalar => match r.u8()? {
            u8::MAX => Arg::Absent,
            dtype => Arg::Scalar(take_scalar(dtype, r)?),
        },
        Kind::ScalarList => match r.u16()? {
            u16::MAX => Arg::Absent,
            len => {
                bounded(r, call.scalars.len(), len.into(), SCALAR_BYTES, "scalars", SCALARS_MAX)?;
                let start = call.scalars.len() as u16;
                for _ in 0..len {
                    let dtype = r.u8()?;
                    call.scalars.push(take_scalar(dtype, r)?);
                }
                Arg::ScalarList { start, len }
            }
        },
        Kind::IntArray => match r.u32()? {
            u32::MAX => Arg::Absent,
            len => {
                bounded(r, call.ints.len(), len as usize, 8, "array entries", INTS_MAX)?;
                let start = call.ints.len() as u32;
                for _ in 0..len {
                    call.ints.push(r.i64()?);
                }
                Arg::Ints { start, len }
            }
        },
        Kind::BoolArray => match r.u32()? {
            u32::MAX => Arg::Absent,
            len => {
                bounded(r, call.ints.len(), len as usize, 1, "array entries", INTS_MAX)?;
                let start = call.ints.len() as u32;
                for _ in 0..len {
                    call.ints.push(i64::from(take_bool(r)?));
                }
                Arg::Ints { start, len }
            }
        },
        Kind::FloatArray => match r.u32()? {
            u32::MAX => Arg::Absent,
            len => {
                bounded(r, call.floats.len(), len as usize, 4, "array entries", FLOATS_MAX)?;
                let start = call.floats.len() as u32;
                for _ in 0..len {
                    call.floats.push(f32::from_bits(r.u32()?));
                }
                Arg::Floats { start, len }
            }
        },
        Kind::Str => match r.u32()? {
            u32::MAX => Arg::Absent,
            len => {
                bounded(r, call.text.len(), len as usize, 1, "bytes of strings", TEXT_BYTES_MAX)?;
                let start = call.text.len() as u32;
                call.text.extend_from_slice(r.take(len as usize)?);
                Arg::Str { start, len }
            }
        },
        Kind::DType => Arg::DType(r.i32()?),
        Kind::Bool => Arg::Bool(take_bool(r)?),
        Kind::I8 => Arg::Int(i64::from(r.i8()?)),
        Kind::I32 => Arg::Int(i64::from(r.i32()?)),
        Kind::I64 => Arg::Int(r.i64()?),
        Kind::U64 => Arg::UInt(r.u64()?),
        Kind::F32 | Kind::F64 => Arg::Float(f64::from_bits(r.u64()?)),
    })
}

fn take_bool(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        v => Err(DecodeError::Unknown { what: "bool", value: u64::from(v) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use acl_abi::{SIGNATURES, ops};

    fn body(call: &OpCall) -> Vec<u8> {
        let mut out = Vec::new();
        encode_op(call, &mut out).unwrap();
        out
    }

    fn tensor(dims: &[i64]) -> TensorDesc {
        TensorDesc::contiguous(0x1000, DataType::BF16, dims)
    }

    #[test]
    fn tensors_take_the_bytes_they_need() {
        let t = tensor(&[2, 3, 4]);
        let cases = [
            ("contiguous", t, 22),
            ("no dimensions", tensor(&[]), 10),
            ("empty", tensor(&[0, 7]), 18),
            ("offset", TensorDesc { offset: -1, ..t }, 30),
            ("format", TensorDesc { format: 29, ..t }, 26),
            ("transposed", TensorDesc { strides: [1, 2, 6, 0, 0, 0, 0, 0], ..t }, 34),
            ("backwards", TensorDesc { strides: [12, 4, -1, 0, 0, 0, 0, 0], ..t }, 58),
            ("huge", tensor(&[1 << 40, 3, 4]), 34),
            ("odd stride of a size 1", TensorDesc { strides: [7, 1, 0, 0, 0, 0, 0, 0], ..tensor(&[1, 3]) }, 26),
            ("eight dimensions", tensor(&[1; 8]), 42),
        ];
        for (what, t, bytes) in cases {
            let mut call = OpCall::new(ops::aclnnAbs);
            call.push_tensor(Some(t)).push_tensor(None);
            let encoded = body(&call);
            assert_eq!(encoded.len(), 2 + bytes + 1, "{what}");
            let mut back = OpCall::new(ops::aclnnMatmul);
            decode_op(&encoded, &mut back).unwrap();
            assert_eq!(back, call, "{what}");
        }
    }

    #[test]
    fn calls_that_do_not_fit_are_refused_by_name() {
        let t = tensor(&[4]);
        let case = |f: &dyn Fn(&mut OpCall)| {
            let mut call = OpCall::new(ops::aclnnArgMax);
            call.push_tensor(Some(t)).push(Arg::Int(-1)).push(Arg::Bool(true)).push_tensor(Some(t));
            f(&mut call);
            let mut out = vec![1];
            let error = encode_op(&call, &mut out).unwrap_err();
            assert_eq!(out, [1], "nothing was written");
            error.to_string()
        };
        assert_eq!(case(&|c| c.args.truncate(3)), "aclnnArgMax: 3 arguments where the signature has 4");
        assert_eq!(
            case(&|c| c.args[1] = Arg::Float(1.0)),
            "aclnnArgMax: parameter dim has an argument of the wrong kind"
        );
        assert_eq!(
            case(&|c| c.args[0] = Arg::Tensor(9)),
            "aclnnArgMax: parameter self: its entries lie outside the call"
        );
        assert_eq!(case(&|c| c.tensors[0].dims[0] = -4), "aclnnArgMax: parameter self: a tensor has a size below zero");
        assert_eq!(case(&|c| c.tensors[0].ndim = 9), "aclnnArgMax: parameter self: a tensor has too many dimensions");
    }

    #[test]
    fn integers_keep_to_their_c_type() {
        for (kind, fits, does_not) in [
            (Kind::I8, i64::from(i8::MIN), 128),
            (Kind::I32, i64::from(i32::MAX), i64::from(i32::MIN) - 1),
            (Kind::BoolArray, 1, 2),
        ] {
            let param = Param { name: "p", kind };
            let mut call = OpCall::new(ops::aclnnAbs);
            let arg = |call: &mut OpCall, v| {
                call.clear(ops::aclnnAbs);
                if kind == Kind::BoolArray {
                    call.push_ints(Some(&[v]))
                } else {
                    call.push(Arg::Int(v))
                };
                call.args[0]
            };
            let mut out = Vec::new();
            let good = arg(&mut call, fits);
            put_arg(&call, &param, &good, &mut Used::default(), &mut out).unwrap();
            let mut back = OpCall::new(ops::aclnnAbs);
            assert_eq!(take_arg(kind, &mut Reader::new(&out), &mut back), Ok(good));
            assert_eq!(back.ints, call.ints);
            let bad = arg(&mut call, does_not);
            assert!(put_arg(&call, &param, &bad, &mut Used::default(), &mut out).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn counts_alone_allocate_nothing() {
        let op = SIGNATURES.iter().position(|s| s.params[0].kind == Kind::TensorList).unwrap() as u16;
        let mut call = OpCall::new(ops::aclnnAbs);
        for len in [1025u16, 1024, 65534] {
            let bytes = [op.to_le_bytes(), len.to_le_bytes()].concat();
            assert!(decode_op(&bytes, &mut call).is_err(), "{len}");
            assert_eq!(call.tensors.capacity(), 0, "{len}");
        }
    }

    #[test]
    fn totals_are_limited() {
        let param = Param { name: "p", kind: Kind::IntArray };
        let mut call = OpCall::new(ops::aclnnAbs);
        call.push_ints(Some(&vec![0; INTS_MAX]));
        let mut used = Used::default();
        put_arg(&call, &param, &call.args[0], &mut used, &mut Vec::new()).unwrap();
        call.push_ints(Some(&[0]));
        let error = put_arg(&call, &param, &call.args[1], &mut used, &mut Vec::new()).unwrap_err();
        assert_eq!(error, EncodeError::TooMany { what: "array entries", count: INTS_MAX + 1, max: INTS_MAX });
    }
}
