//! Operator arguments: tensor views, tensor lists, integer arrays, scalars.
//!
//! A descriptor is a host object that describes device memory; making one costs the device nothing. Descriptors that
//! outlive a step (weights, KV cache) are made once and reused, those that depend on the number of tokens once a step.

use std::ffi::c_void;

use acl_abi::{DataType, TensorDesc};

use super::library::Raw;
use super::{AclError, Device};

/// `aclTensor`: a strided view of device memory.
///
/// It does not keep the memory: whoever makes it keeps the [`super::DeviceBuffer`] for as long as operators use it.
#[derive(Debug)]
pub struct Tensor {
    device: Device,
    /// Null once a list owns the tensor.
    raw: Raw,
}

// SAFETY: the handle is used by one owner at a time and the platform ties it to no thread.
unsafe impl Send for Tensor {}

impl Tensor {
    /// Describes `view`.
    ///
    /// # Errors
    /// [`AclError`] if the platform refuses the view.
    pub fn new(device: &Device, view: &TensorDesc) -> Result<Self, AclError> {
        let bytes = view.byte_span().ok().flatten().map_or(0, |(_, end)| end);
        let storage = [(bytes * 8 / u64::from(view.dtype.bits())) as i64];
        let api = device.api();
        // SAFETY: dims, strides and storage are arrays of the lengths given; the data pointer is only a device address.
        let raw = unsafe {
            (api.meta.aclCreateTensor)(
                view.dims().as_ptr(),
                view.dims().len() as u64,
                view.dtype.abi(),
                view.strides().as_ptr(),
                view.offset,
                view.format,
                storage.as_ptr(),
                1,
                view.addr as Raw,
            )
        };
        if raw.is_null() {
            return Err(api.error("aclCreateTensor", -1));
        }
        Ok(Self { device: device.clone(), raw })
    }

    pub(super) fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by `new`, destroyed once; operators snapshot their arguments in phase one.
            unsafe { (self.device.api().meta.aclDestroyTensor)(self.raw) };
        }
    }
}

/// `aclTensorList`; destroying it destroys its tensors.
#[derive(Debug)]
pub struct TensorList {
    device: Device,
    raw: Raw,
}

// SAFETY: as for `Tensor`.
unsafe impl Send for TensorList {}

impl TensorList {
    /// A list of one tensor.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn single(mut tensor: Tensor) -> Result<Self, AclError> {
        let device = tensor.device.clone();
        let raws = [tensor.raw.cast_const()];
        // SAFETY: an array of one live tensor.
        let raw = unsafe { (device.api().meta.aclCreateTensorList)(raws.as_ptr(), 1) };
        if raw.is_null() {
            return Err(device.api().error("aclCreateTensorList", -1));
        }
        tensor.raw = std::ptr::null_mut(); // the list owns it from here on
        Ok(Self { device, raw })
    }

    pub(super) fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for TensorList {
    fn drop(&mut self) {
        // SAFETY: made by `single`, destroyed once, together with its tensor.
        unsafe { (self.device.api().meta.aclDestroyTensorList)(self.raw) };
    }
}

/// `aclIntArray`: integers in host memory.
#[derive(Debug)]
pub struct IntArray {
    device: Device,
    raw: Raw,
}

// SAFETY: as for `Tensor`.
unsafe impl Send for IntArray {}

impl IntArray {
    /// Copies `values`.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(device: &Device, values: &[i64]) -> Result<Self, AclError> {
        let api = device.api();
        // SAFETY: pointer and length of a slice; the platform copies it.
        let raw = unsafe { (api.meta.aclCreateIntArray)(values.as_ptr(), values.len() as u64) };
        if raw.is_null() {
            return Err(api.error("aclCreateIntArray", -1));
        }
        Ok(Self { device: device.clone(), raw })
    }

    pub(super) fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for IntArray {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        unsafe { (self.device.api().meta.aclDestroyIntArray)(self.raw) };
    }
}

/// `aclScalar`.
#[derive(Debug)]
pub struct Scalar {
    device: Device,
    raw: Raw,
}

// SAFETY: as for `Tensor`.
unsafe impl Send for Scalar {}

impl Scalar {
    /// A single-precision scalar.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn f32(device: &Device, mut value: f32) -> Result<Self, AclError> {
        let api = device.api();
        // SAFETY: the pointer is to a float, as the type says; the platform copies it.
        let raw = unsafe { (api.meta.aclCreateScalar)((&raw mut value).cast::<c_void>(), DataType::F32.abi()) };
        if raw.is_null() {
            return Err(api.error("aclCreateScalar", -1));
        }
        Ok(Self { device: device.clone(), raw })
    }

    pub(super) fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for Scalar {
    fn drop(&mut self) {
        // SAFETY: made by `f32`, destroyed once.
        unsafe { (self.device.api().meta.aclDestroyScalar)(self.raw) };
    }
}
