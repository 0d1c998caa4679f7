//! aclnn objects: tensors, scalars, arrays, lists, executors. All on the host; no device is needed.

use std::ffi::c_void;

use acl_abi::{DataType, Scalar};

use crate::abi::{In, Opaque, Out, malloc_copy};
use crate::entry::{status, value};
use crate::error::{ACLNN_PARAM_INVALID, Failure};
use crate::objects::{Element, Objects, Tensor, TensorArgs, aclnn, data_type, entries};
use crate::process::process;

pub(super) fn objects() -> &'static Objects {
    &process().objects
}

fn created(function: &'static str, make: impl FnOnce() -> Result<*mut c_void, Failure>) -> Opaque {
    value(function, std::ptr::null_mut(), make)
}

/// A view of device memory; null for parameters that make none.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateTensor(
    viewDims: In<i64>,
    viewDimsNum: u64,
    dataType: i32,
    stride: In<i64>,
    offset: i64,
    format: i32,
    storageDims: In<i64>,
    storageDimsNum: u64,
    tensorData: Opaque,
) -> Opaque {
    created("aclCreateTensor", || {
        let args = TensorArgs {
            dims: viewDims,
            ndim: viewDimsNum,
            dtype: dataType,
            strides: stride,
            offset,
            format,
            storage_dims: storageDims,
            storage_ndim: storageDimsNum,
            data: tensorData,
        };
        objects().tensors.insert(|t| args.read(t))
    })
}

/// Makes a tensor describe something else.
#[unsafe(no_mangle)]
pub extern "C" fn aclInitTensor(
    tensor: Opaque,
    viewDims: In<i64>,
    viewDimsNum: u64,
    dataType: i32,
    stride: In<i64>,
    offset: i64,
    format: i32,
    storageDims: In<i64>,
    storageDimsNum: u64,
    tensorDataAddr: Opaque,
) -> i32 {
    status("aclInitTensor", || {
        let args = TensorArgs {
            dims: viewDims,
            ndim: viewDimsNum,
            dtype: dataType,
            strides: stride,
            offset,
            format,
            storage_dims: storageDims,
            storage_ndim: storageDimsNum,
            data: tensorDataAddr,
        };
        objects().tensors.with(tensor, "tensor", |t| args.read(t))?
    })
}

/// Destroys a tensor.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyTensor(tensor: *const c_void) -> i32 {
    status("aclDestroyTensor", || objects().tensors.remove(tensor, "tensor", |_| ()))
}

/// A scalar of any type of up to 64 bits; null for another.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateScalar(value: In<u8>, dataType: i32) -> Opaque {
    created("aclCreateScalar", || {
        let dtype = data_type("dataType", dataType)?;
        if dtype == DataType::Complex128 {
            let text = "parameter dataType: scalars of 128 bits are not supported";
            return Err(Failure::new(ACLNN_PARAM_INVALID, text));
        }
        let mut bytes = [0; 8];
        value.fill("value", &mut bytes[..dtype.bits().div_ceil(8) as usize]).map_err(aclnn)?;
        objects().scalars.insert(|s| {
            s.0 = Scalar { dtype, bits: u64::from_le_bytes(bytes) };
            Ok(())
        })
    })
}

/// Destroys a scalar.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyScalar(scalar: *const c_void) -> i32 {
    status("aclDestroyScalar", || objects().scalars.remove(scalar, "scalar", |_| ()))
}

/// A copy of `size` integers.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateIntArray(value: In<i64>, size: u64) -> Opaque {
    created("aclCreateIntArray", || {
        let count = entries(size)?;
        objects().int_arrays.insert(|array| {
            array.clear();
            value.append_to("value", count, array).map_err(aclnn)
        })
    })
}

/// A copy of `size` floats.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateFloatArray(value: In<f32>, size: u64) -> Opaque {
    created("aclCreateFloatArray", || {
        let count = entries(size)?;
        objects().float_arrays.insert(|array| {
            array.clear();
            value.append_to("value", count, array).map_err(aclnn)
        })
    })
}

/// A copy of `size` truth values.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateBoolArray(value: In<u8>, size: u64) -> Opaque {
    created("aclCreateBoolArray", || {
        let count = entries(size)?;
        objects().bool_arrays.insert(|array| {
            array.clear();
            value.append_to("value", count, array).map_err(aclnn)
        })
    })
}

/// Destroys an array.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyIntArray(array: *const c_void) -> i32 {
    status("aclDestroyIntArray", || objects().int_arrays.remove(array, "array", |_| ()))
}

/// Destroys an array.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyFloatArray(array: *const c_void) -> i32 {
    status("aclDestroyFloatArray", || objects().float_arrays.remove(array, "array", |_| ()))
}

/// Destroys an array.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyBoolArray(array: *const c_void) -> i32 {
    status("aclDestroyBoolArray", || objects().bool_arrays.remove(array, "array", |_| ()))
}

fn elements(
    value: In<usize>,
    size: u64,
    check: impl Fn(Element) -> Result<(), Failure>,
) -> Result<Vec<Element>, Failure> {
    let count = entries(size)?;
    let mut handles = Vec::with_capacity(count);
    value.append_to("value", count, &mut handles).map_err(aclnn)?;
    let list: Vec<Element> = handles.into_iter().map(Element).collect();
    list.iter().try_for_each(|&e| check(e))?;
    Ok(list)
}

/// A list of tensors, which belong to it from now on.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateTensorList(value: In<usize>, size: u64) -> Opaque {
    created("aclCreateTensorList", || {
        let objects = objects();
        let list = elements(value, size, |e| objects.tensors.with(e.handle(), "value", |_| ()))?;
        objects.tensor_lists.insert(|slot| {
            *slot = list;
            Ok(())
        })
    })
}

/// Destroys a list and its tensors.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyTensorList(array: *const c_void) -> i32 {
    status("aclDestroyTensorList", || {
        let objects = objects();
        for element in objects.tensor_lists.remove(array, "array", std::mem::take)? {
            // One that was destroyed by itself before is gone already.
            let _ = objects.tensors.remove(element.handle(), "array", |_| ());
        }
        Ok(())
    })
}

/// A list of scalars, which belong to it from now on.
#[unsafe(no_mangle)]
pub extern "C" fn aclCreateScalarList(value: In<usize>, size: u64) -> Opaque {
    created("aclCreateScalarList", || {
        let objects = objects();
        let list = elements(value, size, |e| objects.scalars.with(e.handle(), "value", |_| ()))?;
        objects.scalar_lists.insert(|slot| {
            *slot = list;
            Ok(())
        })
    })
}

/// Destroys a list and its scalars.
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyScalarList(array: *const c_void) -> i32 {
    status("aclDestroyScalarList", || {
        let objects = objects();
        for element in objects.scalar_lists.remove(array, "array", std::mem::take)? {
            // One that was destroyed by itself before is gone already.
            let _ = objects.scalars.remove(element.handle(), "array", |_| ());
        }
        Ok(())
    })
}

pub(super) fn tensor<T>(handle: *const c_void, get: impl FnOnce(&Tensor) -> T) -> Result<T, Failure> {
    objects().tensors.with(handle, "tensor", |t| get(t))
}

/// Hands out an array that the caller releases, as AscendCL does.
pub(super) fn hand_out(values: &[i64], out: Out<*mut i64>, count: Out<u64>, names: [&str; 2]) -> Result<(), Failure> {
    out.check(names[0]).map_err(aclnn)?;
    count.check(names[1]).map_err(aclnn)?;
    out.set(names[0], malloc_copy(values)?)?;
    count.set(names[1], values.len() as u64)
}

/// Sizes of the view, in memory that the caller releases.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetViewShape(tensor: *const c_void, viewDims: Out<*mut i64>, viewDimsNum: Out<u64>) -> i32 {
    status("aclGetViewShape", || {
        let desc = self::tensor(tensor, |t| t.desc)?;
        hand_out(desc.dims(), viewDims, viewDimsNum, ["viewDims", "viewDimsNum"])
    })
}

/// Sizes of the storage, in memory that the caller releases.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetStorageShape(
    tensor: *const c_void,
    storageDims: Out<*mut i64>,
    storageDimsNum: Out<u64>,
) -> i32 {
    status("aclGetStorageShape", || {
        let copy = self::tensor(tensor, Tensor::clone)?;
        hand_out(copy.storage_dims(), storageDims, storageDimsNum, ["storageDims", "storageDimsNum"])
    })
}

/// Strides of the view, in memory that the caller releases.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetViewStrides(tensor: *const c_void, stridesValue: Out<*mut i64>, stridesNum: Out<u64>) -> i32 {
    status("aclGetViewStrides", || {
        let desc = self::tensor(tensor, |t| t.desc)?;
        hand_out(desc.strides(), stridesValue, stridesNum, ["stridesValue", "stridesNum"])
    })
}

/// First element of the view.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetViewOffset(tensor: *const c_void, offset: Out<i64>) -> i32 {
    status("aclGetViewOffset", || offset.set("offset", self::tensor(tensor, |t| t.desc.offset)?).map_err(aclnn))
}

/// Format of the view.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetFormat(tensor: *const c_void, format: Out<i32>) -> i32 {
    status("aclGetFormat", || format.set("format", self::tensor(tensor, |t| t.desc.format)?).map_err(aclnn))
}

/// Element type.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetDataType(tensor: *const c_void, dataType: Out<i32>) -> i32 {
    status("aclGetDataType", || dataType.set("dataType", self::tensor(tensor, |t| t.desc.dtype.abi())?).map_err(aclnn))
}

/// Storage base.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetRawTensorAddr(tensor: *const c_void, addr: Out<Opaque>) -> i32 {
    status("aclGetRawTensorAddr", || {
        let base = self::tensor(tensor, |t| t.desc.addr)?;
        addr.set("addr", std::ptr::without_provenance_mut(base as usize)).map_err(aclnn)
    })
}

/// Moves the storage base.
#[unsafe(no_mangle)]
pub extern "C" fn aclSetRawTensorAddr(tensor: Opaque, addr: Opaque) -> i32 {
    status("aclSetRawTensorAddr", || objects().tensors.with(tensor, "tensor", |t| t.desc.addr = addr.addr() as u64))
}

/// Entries of an array.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetIntArraySize(array: *const c_void, size: Out<u64>) -> i32 {
    status("aclGetIntArraySize", || {
        size.set("size", objects().int_arrays.with(array, "array", |a| a.len() as u64)?).map_err(aclnn)
    })
}

/// Entries of an array.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetFloatArraySize(array: *const c_void, size: Out<u64>) -> i32 {
    status("aclGetFloatArraySize", || {
        size.set("size", objects().float_arrays.with(array, "array", |a| a.len() as u64)?).map_err(aclnn)
    })
}

/// Entries of an array.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetBoolArraySize(array: *const c_void, size: Out<u64>) -> i32 {
    status("aclGetBoolArraySize", || {
        size.set("size", objects().bool_arrays.with(array, "array", |a| a.len() as u64)?).map_err(aclnn)
    })
}

/// Tensors of a list.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorListSize(tensorList: *const c_void, size: Out<u64>) -> i32 {
    status("aclGetTensorListSize", || {
        size.set("size", objects().tensor_lists.with(tensorList, "tensorList", |l| l.len() as u64)?).map_err(aclnn)
    })
}

/// Scalars of a list.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetScalarListSize(scalarList: *const c_void, size: Out<u64>) -> i32 {
    status("aclGetScalarListSize", || {
        size.set("size", objects().scalar_lists.with(scalarList, "scalarList", |l| l.len() as u64)?).map_err(aclnn)
    })
}

/// Lets phase two be called more than once with the executor; it then lives until [`aclDestroyAclOpExecutor`].
#[unsafe(no_mangle)]
pub extern "C" fn aclSetAclOpExecutorRepeatable(executor: Opaque) -> i32 {
    status("aclSetAclOpExecutorRepeatable", || objects().executors.with(executor, "executor", |e| e.repeatable = true))
}

/// Destroys an executor whose phase two will not be called (again).
#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyAclOpExecutor(executor: Opaque) -> i32 {
    status("aclDestroyAclOpExecutor", || objects().executors.remove(executor, "executor", |_| ()))
}
