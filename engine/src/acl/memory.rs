//! Device memory and pinned host memory, owned.

use std::ffi::c_void;
use std::ptr::NonNull;

use acl_abi::values::{ACL_MEM_MALLOC_HUGE_FIRST, ACL_MEMCPY_HOST_TO_DEVICE};

use super::library::Raw;
use super::{AclError, Device};

/// Bytes of device memory. The contents of a fresh buffer are undefined.
#[derive(Debug)]
pub struct DeviceBuffer {
    device: Device,
    addr: u64,
    len: u64,
}

impl DeviceBuffer {
    /// Allocates `len` bytes (at least 1).
    ///
    /// # Errors
    /// [`AclError::is_out_of_memory`] if the device cannot.
    pub fn new(device: &Device, len: u64) -> Result<Self, AclError> {
        let mut raw: Raw = std::ptr::null_mut();
        let api = device.api();
        // SAFETY: `raw` is a valid place for the result.
        let code = unsafe { (api.rt.aclrtMalloc)(&mut raw, len.max(1) as usize, ACL_MEM_MALLOC_HUGE_FIRST) };
        api.check("aclrtMalloc", code)?;
        Ok(Self { device: device.clone(), addr: raw as u64, len })
    }

    /// Device address of the first byte.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets every byte to 0 and waits until it is done. Not ordered with any stream.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn clear(&self) -> Result<(), AclError> {
        let api = self.device.api();
        // SAFETY: the range is this allocation.
        let code = unsafe { (api.rt.aclrtMemset)(self.addr as Raw, self.len as usize, 0, self.len as usize) };
        api.check("aclrtMemset", code)
    }

    /// Copies `bytes` to `offset` and waits until they are there. Not ordered with any stream.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), AclError> {
        let room = self.len.checked_sub(offset).expect("offset inside the buffer");
        assert!(bytes.len() as u64 <= room, "{} bytes at {offset} of {}", bytes.len(), self.len);
        let api = self.device.api();
        // SAFETY: source and its length come from a slice; the call returns after the bytes were read. The destination is
        // a device address inside this allocation.
        let code = unsafe {
            (api.rt.aclrtMemcpy)(
                (self.addr + offset) as Raw,
                room as usize,
                bytes.as_ptr().cast::<c_void>(),
                bytes.len(),
                ACL_MEMCPY_HOST_TO_DEVICE,
            )
        };
        api.check("aclrtMemcpy", code)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once. An error (a lost device) leaves nothing to do.
        unsafe { (self.device.api().rt.aclrtFree)(self.addr as Raw) };
    }
}

/// Page-locked host memory, zeroed when made: the source and target of asynchronous copies.
#[derive(Debug)]
pub struct PinnedBuffer {
    device: Device,
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is ordinary host memory owned by this value.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `len` bytes (at least 1), aligned for any element type.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(device: &Device, len: usize) -> Result<Self, AclError> {
        let mut raw: Raw = std::ptr::null_mut();
        let api = device.api();
        let len = len.max(1);
        // SAFETY: `raw` is a valid place for the result.
        let code = unsafe { (api.rt.aclrtMallocHost)(&mut raw, len) };
        api.check("aclrtMallocHost", code)?;
        let data = NonNull::new(raw.cast::<u8>()).ok_or_else(|| api.error("aclrtMallocHost", -1))?;
        // SAFETY: `len` bytes at `data` are ours; writing them makes every byte initialised.
        unsafe { data.write_bytes(0, len) };
        Ok(Self { device: device.clone(), data, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes owned by this value. Asynchronous copies into them exist only inside
        // [`super::Stream`]'s unsafe functions, whose callers keep hands off until the stream was synchronised.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }

    pub(super) fn ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: at least one byte is allocated.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        unsafe { (self.device.api().rt.aclrtFreeHost)(self.data.as_ptr().cast::<c_void>()) };
    }
}
