//! Direct mode: the device, its dispatch thread and the other end of the session, in this process.
//!
//! The passthrough that the daemon's overhead is measured against, and the way to run without a daemon. Everything but
//! the socket is the same code.

use std::ffi::CString;

use acl_abi::values as acl;
use device::{DeviceSpec, Emulated};
use runtime::{DeviceHandle, DeviceLoop, Limits};
use sched::{PolicyConfig, Profile};
use session::{Client, DeviceFacts, Doorbell, Layout};

use crate::config::{Config, Mode};
use crate::error::Failure;

/// Name of a hosted device that has not been started; `None` if it is no device of ours, which starting it will explain.
pub fn soc_name(config: &Config, device: u32) -> Option<CString> {
    let Mode::Direct { specs, .. } = &config.mode else { return None };
    let spec: DeviceSpec = specs.get(device as usize)?.parse().ok()?;
    Profile::by_soc_name(&spec.soc_name)?;
    CString::new(spec.soc_name).ok()
}

/// A hosted device; dropping it ends its dispatch thread.
pub struct Direct {
    handle: DeviceHandle,
}

impl Direct {
    /// Makes the device and opens a session with it.
    ///
    /// # Errors
    /// A spec or policy that does not parse, a device that does not fit this machine.
    pub fn host(device: u32, spec: &str, policy: &str) -> Result<(Client, Self), Failure> {
        let setup =
            |what: &str, reason: String| Failure::new(acl::ACL_ERROR_RT_DEV_SETUP_ERROR, format!("{what}: {reason}"));
        let parsed: DeviceSpec = spec.parse().map_err(|e: device::SpecError| setup("VNPU_DEVICE", e.to_string()))?;
        let policy: PolicyConfig = policy.parse().map_err(|e| setup("VNPU_POLICY", format!("{e}")))?;
        let doorbell = Doorbell::new().map_err(|e| setup("doorbell", e.to_string()))?;
        let bell = doorbell.clone();
        let config = parsed.emulated(std::sync::Arc::new(move || bell.ring()));
        let emulated = Emulated::new(config).map_err(|e| setup("VNPU_DEVICE", e.to_string()))?;
        let emulated: Box<dyn device::Device> = Box::new(emulated);
        let info = emulated.info();
        let facts = DeviceFacts {
            soc_name: info.soc_name.clone(),
            hbm_bytes: info.hbm_bytes,
            device_index: device,
            epoch: u64::from(std::process::id()),
        };
        let handle = DeviceLoop::spawn(emulated, policy, Limits::default(), doorbell.clone())
            .map_err(|e| setup("dispatch loop", e.to_string()))?;
        let (client, server) =
            session::local(Layout::default(), doorbell, facts).map_err(|e| setup("session", e.to_string()))?;
        handle.attach(server).map_err(|e| setup("session", e.to_string()))?;
        Ok((client, Self { handle }))
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}
