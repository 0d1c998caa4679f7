//! The device: initialisation, its context for each thread, memory figures.

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

use acl_abi::values::{ACL_ERROR_REPEAT_INITIALIZE, ACL_HBM_MEM};
use parking_lot::Mutex;

use super::library::{Api, Raw};
use super::{AclError, LoadError};

/// Devices open in this process: `aclInit` belongs to the first, `aclFinalize` to the last.
static OPEN: Mutex<usize> = Mutex::new(0);

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A library or function is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A call failed.
    #[error(transparent)]
    Acl(#[from] AclError),
    /// There is no such device.
    #[error("device {index} does not exist: the platform has {count} devices")]
    NoDevice {
        /// Device asked for.
        index: i32,
        /// Devices that exist.
        count: u32,
    },
}

/// Device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A shared reference to an open device; reset when the last reference goes.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    api: Api,
    index: i32,
    context: Raw,
    soc_name: String,
}

// SAFETY: the context is an opaque handle that the platform lets any thread make current; the rest is plain data.
unsafe impl Send for Inner {}
// SAFETY: as above; no method mutates.
unsafe impl Sync for Inner {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} {})", self.0.index, self.0.soc_name)
    }
}

impl Device {
    /// Loads the libraries, initialises AscendCL and makes device `index` current on this thread.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(acl_library: &str, op_library: &str, index: i32) -> Result<Self, OpenError> {
        let api = Api::load(acl_library, op_library)?;
        let mut open = OPEN.lock();
        if *open == 0 {
            // SAFETY: a null configuration path means defaults.
            let code = unsafe { (api.rt.aclInit)(std::ptr::null()) };
            if code != ACL_ERROR_REPEAT_INITIALIZE {
                api.check("aclInit", code)?;
            }
        }
        let (context, soc_name) = match Self::set_device(&api, index) {
            Ok(set) => set,
            Err(error) => {
                if *open == 0 {
                    // SAFETY: takes nothing; closes what aclInit opened.
                    unsafe { (api.rt.aclFinalize)() };
                }
                return Err(error);
            }
        };
        *open += 1;
        Ok(Self(Arc::new(Inner { api, index, context, soc_name })))
    }

    fn set_device(api: &Api, index: i32) -> Result<(Raw, String), OpenError> {
        let mut count = 0u32;
        // SAFETY: `count` is a valid place for the result.
        api.check("aclrtGetDeviceCount", unsafe { (api.rt.aclrtGetDeviceCount)(&mut count) })?;
        if u32::try_from(index).is_ok_and(|i| i < count) {
            // SAFETY: takes a number.
            api.check("aclrtSetDevice", unsafe { (api.rt.aclrtSetDevice)(index) })?;
        } else {
            return Err(OpenError::NoDevice { index, count });
        }
        let mut context: Raw = std::ptr::null_mut();
        // SAFETY: `context` is a valid place for the result.
        api.check("aclrtGetCurrentContext", unsafe { (api.rt.aclrtGetCurrentContext)(&mut context) })?;
        // SAFETY: takes nothing; returns null or a string that lives as long as the library.
        let name = unsafe { (api.rt.aclrtGetSocName)() };
        let soc_name = if name.is_null() {
            "unknown".to_owned()
        } else {
            // SAFETY: not null and NUL-terminated.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        };
        Ok((context, soc_name))
    }

    /// Makes the device current on the calling thread: once a thread, before its first call.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn bind_thread(&self) -> Result<(), AclError> {
        // SAFETY: the context lives until the device is reset, which happens after every reference is gone.
        let code = unsafe { (self.0.api.rt.aclrtSetCurrentContext)(self.0.context) };
        self.0.api.check("aclrtSetCurrentContext", code)
    }

    /// Free and total device memory.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn memory(&self) -> Result<Memory, AclError> {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: both are valid places for the results.
        let code = unsafe { (self.0.api.rt.aclrtGetMemInfo)(ACL_HBM_MEM, &mut free, &mut total) };
        self.0.api.check("aclrtGetMemInfo", code)?;
        Ok(Memory { free: free as u64, total: total as u64 })
    }

    /// SoC name, e.g. `Ascend910B3`.
    pub fn soc_name(&self) -> &str {
        &self.0.soc_name
    }

    pub(super) fn api(&self) -> &Api {
        &self.0.api
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut open = OPEN.lock();
        *open -= 1;
        // The device may be gone already; there is nothing left to do about an error here.
        if *open == 0 {
            // SAFETY: every handle of this device is gone (each holds a reference), so reset and finalisation free nothing
            // that is still in use.
            unsafe {
                (self.api.rt.aclrtResetDevice)(self.index);
                (self.api.rt.aclFinalize)();
            }
        }
    }
}
