//! `aclTensorDesc`, `aclDataBuffer`, and the data types' small arithmetic.

use std::ffi::c_void;

use acl_abi::{DataType, values as acl};
use half::f16;

use crate::abi::{In, Opaque, Out, Text};
use crate::desc::{DESC_DIMS_MAX, DataBuffer, Descriptors, NAME_BYTES_MAX, TensorDesc};
use crate::entry::{status, value};
use crate::error::Failure;
use crate::process::process;

fn descriptors() -> &'static Descriptors {
    &process().descriptors
}

fn shape(count: i32, dims: In<i64>) -> Result<Vec<i64>, Failure> {
    let invalid = |text: String| Failure::new(acl::ACL_ERROR_INVALID_PARAM, text);
    let count = match usize::try_from(count) {
        Ok(n) if n <= DESC_DIMS_MAX => n,
        _ => return Err(invalid(format!("parameter numDims: {count}, want 0 to {DESC_DIMS_MAX}"))),
    };
    let mut out = Vec::new();
    dims.append_to("dims", count, &mut out)?;
    Ok(out)
}

/// A tensor description; null for one that cannot be.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateTensorDesc(dataType: i32, numDims: i32, dims: In<i64>, format: i32) -> Opaque {
    value("aclCreateTensorDesc", std::ptr::null_mut(), || {
        let dims = shape(numDims, dims)?;
        descriptors().tensors.insert(|slot| {
            *slot = TensorDesc { dtype: dataType, format, dims, ..TensorDesc::default() };
            Ok(())
        })
    })
}

/// Destroys a description.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyTensorDesc(desc: *const c_void) {
    value("aclDestroyTensorDesc", (), || descriptors().tensors.remove(desc, "desc", std::mem::take).map(|_| ()));
}

fn get<T>(desc: *const c_void, read: impl FnOnce(&TensorDesc) -> T) -> Result<T, Failure> {
    descriptors().tensors.with(desc, "desc", |d| read(d))
}

fn change(desc: *const c_void, write: impl FnOnce(&mut TensorDesc)) -> Result<(), Failure> {
    descriptors().tensors.with(desc, "desc", write)
}

/// Element type; undefined for a bad handle.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescType(desc: *const c_void) -> i32 {
    value("aclGetTensorDescType", acl::ACL_DT_UNDEFINED, || get(desc, |d| d.dtype))
}

/// Format; undefined for a bad handle.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescFormat(desc: *const c_void) -> i32 {
    value("aclGetTensorDescFormat", acl::ACL_FORMAT_UNDEFINED, || get(desc, |d| d.format))
}

/// Bytes of the shape.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescSize(desc: *const c_void) -> usize {
    value("aclGetTensorDescSize", 0, || get(desc, |d| d.bytes() as usize))
}

/// Elements of the shape.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescElementCount(desc: *const c_void) -> usize {
    value("aclGetTensorDescElementCount", 0, || get(desc, |d| d.elements() as usize))
}

/// Dimensions.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescNumDims(desc: *const c_void) -> usize {
    value("aclGetTensorDescNumDims", 0, || get(desc, |d| d.dims.len()))
}

fn dim(desc: *const c_void, index: usize) -> Result<i64, Failure> {
    let (found, count) = get(desc, |d| (d.dims.get(index).copied(), d.dims.len()))?;
    let text = || format!("parameter index: {index} of {count} dimensions");
    found.ok_or_else(|| Failure::new(acl::ACL_ERROR_INVALID_PARAM, text()))
}

/// One size; −1 for a bad handle or index.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescDim(desc: *const c_void, index: usize) -> i64 {
    value("aclGetTensorDescDim", -1, || dim(desc, index))
}

/// One size.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescDimV2(desc: *const c_void, index: usize, dimSize: Out<i64>) -> i32 {
    status("aclGetTensorDescDimV2", || dimSize.set("dimSize", dim(desc, index)?))
}

/// Names a description.
#[unsafe(no_mangle)]
pub extern "C" fn aclSetTensorDescName(desc: Opaque, name: Text) {
    value("aclSetTensorDescName", (), || {
        let name = name.lossy().unwrap_or_default();
        let name: String = name.chars().take(NAME_BYTES_MAX / 4).collect();
        change(desc, |d| d.name = name)
    });
}

/// Changes the format.
#[unsafe(no_mangle)]
pub extern "C" fn aclSetTensorFormat(desc: Opaque, format: i32) -> i32 {
    status("aclSetTensorFormat", || change(desc, |d| d.format = format))
}

/// Changes where the tensor lies.
#[unsafe(no_mangle)]
pub extern "C" fn aclSetTensorPlaceMent(desc: Opaque, memType: i32) -> i32 {
    status("aclSetTensorPlaceMent", || change(desc, |d| d.placement = memType))
}

/// Changes the shape.
#[unsafe(no_mangle)]
pub extern "C" fn aclSetTensorShape(desc: Opaque, numDims: i32, dims: In<i64>) -> i32 {
    status("aclSetTensorShape", || {
        let dims = shape(numDims, dims)?;
        change(desc, |d| d.dims = dims)
    })
}

/// A buffer: an address and a size.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateDataBuffer(data: Opaque, size: usize) -> Opaque {
    value("aclCreateDataBuffer", std::ptr::null_mut(), || {
        descriptors().buffers.insert(|slot| {
            *slot = DataBuffer { data: data.addr(), size };
            Ok(())
        })
    })
}

/// Destroys a buffer, not what it points at.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyDataBuffer(dataBuffer: *const c_void) -> i32 {
    status("aclDestroyDataBuffer", || descriptors().buffers.remove(dataBuffer, "dataBuffer", |_| ()))
}

/// Changes a buffer.
#[unsafe(no_mangle)]
pub extern "C" fn aclUpdateDataBuffer(dataBuffer: Opaque, data: Opaque, size: usize) -> i32 {
    status("aclUpdateDataBuffer", || {
        let fresh = DataBuffer { data: data.addr(), size };
        descriptors().buffers.with(dataBuffer, "dataBuffer", |slot| *slot = fresh)
    })
}

/// Address of a buffer; null for a bad handle.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetDataBufferAddr(dataBuffer: *const c_void) -> Opaque {
    value("aclGetDataBufferAddr", std::ptr::null_mut(), || {
        let address = descriptors().buffers.with(dataBuffer, "dataBuffer", |b| b.data)?;
        Ok(std::ptr::with_exposed_provenance_mut(address))
    })
}

/// Bytes of a buffer, cut to 32 bits.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetDataBufferSize(dataBuffer: *const c_void) -> u32 {
    value("aclGetDataBufferSize", 0, || descriptors().buffers.with(dataBuffer, "dataBuffer", |b| b.size as u32))
}

/// Bytes of a buffer.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetDataBufferSizeV2(dataBuffer: *const c_void) -> usize {
    value("aclGetDataBufferSizeV2", 0, || descriptors().buffers.with(dataBuffer, "dataBuffer", |b| b.size))
}

/// Bytes of an element; 0 for packed and unknown types.
#[unsafe(no_mangle)]
pub extern "C" fn aclDataTypeSize(dataType: i32) -> usize {
    DataType::from_abi(dataType).map_or(0, |t| t.bits() as usize / 8)
}

/// Widens an `aclFloat16`.
#[unsafe(no_mangle)]
pub extern "C" fn aclFloat16ToFloat(value: u16) -> f32 {
    f16::from_bits(value).to_f32()
}

/// Rounds to an `aclFloat16`.
#[unsafe(no_mangle)]
pub extern "C" fn aclFloatToFloat16(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}
