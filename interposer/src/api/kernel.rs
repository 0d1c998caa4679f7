//! Binaries of raw kernels: registered, never run.
//!
//! A library with kernels of its own registers all of them when it is loaded, long before it is known whether any is launched.
//! Registering is harmless, so it works. A raw kernel addresses memory by itself and cannot be kept inside its tenant, so asking
//! for a function in order to launch it is refused, with the kernel's name (`refusals.rs`).

use crate::abi::{Opaque, Out};
use crate::entry::status;
use crate::error::Failure;
use crate::process::process;

/// Keeps the length of the binary, for the refusal; nothing reads the binary.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtBinaryLoadFromData(data: Opaque, length: u64, _options: Opaque, binHandle: Out<Opaque>) -> i32 {
    status("aclrtBinaryLoadFromData", || {
        binHandle.check("binHandle")?;
        if data.is_null() {
            return Err(Failure::null("data"));
        }
        if length == 0 {
            return Err(Failure::invalid("parameter length: 0"));
        }
        let handle = process().binaries.insert(|slot| {
            *slot = length;
            Ok(())
        })?;
        binHandle.set("binHandle", handle)
    })
}

/// Forgets the binary.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtBinaryUnLoad(binHandle: Opaque) -> i32 {
    status("aclrtBinaryUnLoad", || {
        let process = process();
        let result = process.binaries.remove(binHandle, "binHandle", |_| ());
        process.forgive_after_finalise(result)
    })
}
