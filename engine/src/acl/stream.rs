//! Streams and asynchronous copies.
//!
//! There are no events here: each loop of this engine synchronises its own stream once a step, before any other stream may
//! see the step's results.

use std::ffi::c_void;

use acl_abi::values::{
    ACL_MEMCPY_DEVICE_TO_HOST, ACL_MEMCPY_HOST_TO_DEVICE, ACL_STREAM_FAST_LAUNCH, ACL_STREAM_FAST_SYNC,
};

use super::library::Raw;
use super::{AclError, Device, DeviceBuffer, PinnedBuffer};

/// Launch resources are kept for the stream's life, and a waiting thread polls before it sleeps.
const STREAM_FLAGS: u32 = (ACL_STREAM_FAST_LAUNCH | ACL_STREAM_FAST_SYNC) as u32;

/// A queue of device work that runs in order.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    raw: Raw,
}

// SAFETY: a stream may be used from any thread that has the device's context; `Stream` is not `Sync`, so from one at a time.
unsafe impl Send for Stream {}

impl Stream {
    /// Makes a stream. Lower `priority` runs first where the platform distinguishes.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(device: &Device, priority: u32) -> Result<Self, AclError> {
        let mut raw: Raw = std::ptr::null_mut();
        let api = device.api();
        // SAFETY: `raw` is a valid place for the result.
        let code = unsafe { (api.rt.aclrtCreateStreamWithConfig)(&mut raw, priority, STREAM_FLAGS) };
        api.check("aclrtCreateStreamWithConfig", code)?;
        Ok(Self { device: device.clone(), raw })
    }

    /// Waits until everything posted so far is done.
    ///
    /// # Errors
    /// The first error of any work posted since the last synchronisation.
    pub fn synchronize(&self) -> Result<(), AclError> {
        let api = self.device.api();
        // SAFETY: the stream is ours.
        api.check("aclrtSynchronizeStream", unsafe { (api.rt.aclrtSynchronizeStream)(self.raw) })
    }

    /// Posts a copy of `len` bytes at `src_offset` of `src` to `dst_offset` of `dst`.
    ///
    /// # Safety
    /// Until this stream was synchronised, `src` must stay allocated and unchanged and `dst` allocated.
    ///
    /// # Panics
    /// If a range leaves its buffer.
    ///
    /// # Errors
    /// [`AclError`].
    pub unsafe fn copy_in(
        &self,
        dst: &DeviceBuffer,
        dst_offset: u64,
        src: &PinnedBuffer,
        src_offset: usize,
        len: usize,
    ) -> Result<(), AclError> {
        assert!(dst_offset + len as u64 <= dst.len() && src_offset + len <= src.len(), "copy inside both buffers");
        let api = self.device.api();
        // SAFETY: both ranges are inside their buffers, which the caller keeps as they are.
        let code = unsafe {
            (api.rt.aclrtMemcpyAsync)(
                (dst.addr() + dst_offset) as Raw,
                (dst.len() - dst_offset) as usize,
                src.ptr().add(src_offset).cast::<c_void>(),
                len,
                ACL_MEMCPY_HOST_TO_DEVICE,
                self.raw,
            )
        };
        api.check("aclrtMemcpyAsync", code)
    }

    /// Posts a copy of `len` bytes at device address `src` to `dst_offset` of `dst`.
    ///
    /// # Safety
    /// Until this stream was synchronised, `dst` must stay allocated, and nobody may read or write it.
    ///
    /// # Panics
    /// If the target range leaves the buffer.
    ///
    /// # Errors
    /// [`AclError`].
    pub unsafe fn copy_out(&self, dst: &PinnedBuffer, dst_offset: usize, src: u64, len: usize) -> Result<(), AclError> {
        assert!(dst_offset + len <= dst.len(), "copy inside the buffer");
        let api = self.device.api();
        // SAFETY: the target range is inside its buffer, which the caller leaves alone; the platform checks the source.
        let code = unsafe {
            (api.rt.aclrtMemcpyAsync)(
                dst.ptr().add(dst_offset).cast::<c_void>(),
                dst.len() - dst_offset,
                src as *const c_void,
                len,
                ACL_MEMCPY_DEVICE_TO_HOST,
                self.raw,
            )
        };
        api.check("aclrtMemcpyAsync", code)
    }

    pub(super) fn raw(&self) -> Raw {
        self.raw
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        unsafe { (self.device.api().rt.aclrtDestroyStream)(self.raw) };
    }
}
