//! Device selection and contexts. A context is a name for a device; the session is the process's.

use crate::abi::{Opaque, Out};
use crate::entry::status;
use crate::error::Failure;
use crate::process::process;

/// Selects the device for this thread and opens the session.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetDevice(deviceId: i32) -> i32 {
    status("aclrtSetDevice", || {
        let process = process();
        let device = process.check_device(i64::from(deviceId))?;
        process.link(device)?.check_alive()?;
        process.select(device)
    })
}

/// The device that this thread selected.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetDevice(deviceId: Out<i32>) -> i32 {
    status("aclrtGetDevice", || {
        deviceId.check("deviceId")?;
        deviceId.set("deviceId", process().selected_device()? as i32)
    })
}

/// Ends this thread's use of the device. Memory, streams and events stay until `aclFinalize`: clients destroy them after
/// this call. A session that was lost is forgotten, so that the device can be selected again.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtResetDevice(deviceId: i32) -> i32 {
    status("aclrtResetDevice", || reset(deviceId))
}

/// As [`aclrtResetDevice`].
#[unsafe(no_mangle)]
pub extern "C" fn aclrtResetDeviceForce(deviceId: i32) -> i32 {
    status("aclrtResetDeviceForce", || reset(deviceId))
}

fn reset(device: i32) -> Result<(), Failure> {
    let process = process();
    let device = process.check_device(i64::from(device))?;
    process.drop_lost_link(device);
    process.unselect(device, None);
    Ok(())
}

/// Devices of this process; connects to none of them.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetDeviceCount(count: Out<u32>) -> i32 {
    status("aclrtGetDeviceCount", || count.set("count", process().device_count()))
}

/// The thread's context.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetCurrentContext(context: Out<Opaque>) -> i32 {
    status("aclrtGetCurrentContext", || {
        context.check("context")?;
        context.set("context", process().current_context()?)
    })
}

/// Selects a context, and with it its device, for this thread.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetCurrentContext(context: Opaque) -> i32 {
    status("aclrtSetCurrentContext", || process().select_context(context))
}

/// Makes a context of a device and selects it for this thread.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCreateContext(context: Out<Opaque>, deviceId: i32) -> i32 {
    status("aclrtCreateContext", || {
        context.check("context")?;
        let process = process();
        let device = process.check_device(i64::from(deviceId))?;
        process.link(device)?;
        let handle = process.contexts.insert(|c| {
            c.device = device;
            Ok(())
        })?;
        process.select_context(handle)?;
        context.set("context", handle)
    })
}

/// Destroys a context that `aclrtCreateContext` made.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDestroyContext(context: Opaque) -> i32 {
    status("aclrtDestroyContext", || {
        let process = process();
        if process.is_primary(context) {
            return Err(Failure::invalid("parameter context: a device's default context cannot be destroyed"));
        }
        let device = process.contexts.remove(context, "context", |c| c.device)?;
        process.unselect(device, Some(context));
        Ok(())
    })
}

/// The default stream of the thread's context: null, as every call takes it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCtxGetCurrentDefaultStream(stream: Out<Opaque>) -> i32 {
    status("aclrtCtxGetCurrentDefaultStream", || {
        process().current_device()?;
        stream.set("stream", std::ptr::null_mut())
    })
}

/// Whether the device's primary context is in use: its session is open.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetPrimaryCtxState(deviceId: i32, flags: Out<u32>, active: Out<i32>) -> i32 {
    status("aclrtGetPrimaryCtxState", || {
        let process = process();
        let device = process.check_device(i64::from(deviceId))?;
        flags.set_if_wanted(0);
        active.set_if_wanted(i32::from(process.open_link(device).is_some()));
        Ok(())
    })
}
