//! What a device is, how much memory it has, and waiting for all of it.

use std::ffi::c_char;
use std::time::Duration;

use acl_abi::values as acl;
use sched::Profile;
use wire::Record;

use crate::abi::Out;
use crate::entry::{status, value};
use crate::error::Failure;
use crate::process::process;
use crate::stream::poll_until;

/// SoC name of the thread's device, or of device 0 where nothing is selected; opens the session. Null when that fails.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetSocName() -> *const c_char {
    value("aclrtGetSocName", std::ptr::null(), || {
        let process = process();
        Ok(process.soc_name(process.current_device().unwrap_or(0))?.as_ptr())
    })
}

/// Free and total memory. Every kind of memory (`attr`) is the device's HBM.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetMemInfo(_attr: i32, free: Out<usize>, total: Out<usize>) -> i32 {
    status("aclrtGetMemInfo", || {
        free.check("free")?;
        total.check("total")?;
        let (free_bytes, total_bytes) = process().current_link()?.memory()?;
        free.set("free", free_bytes as usize)?;
        total.set("total", total_bytes as usize)
    })
}

/// Applications run on the host.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetRunMode(runMode: Out<i32>) -> i32 {
    status("aclrtGetRunMode", || runMode.set("runMode", acl::ACL_HOST))
}

/// Waits for everything of this process on the thread's device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSynchronizeDevice() -> i32 {
    status("aclrtSynchronizeDevice", || {
        let link = process().current_link()?;
        link.unsafe_while_capturing("aclrtSynchronizeDevice")?;
        link.call(|reply| Record::DeviceSync { reply }).map(|_| ())
    })
}

/// Waits at most `timeout` milliseconds; −1 waits without limit.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSynchronizeDeviceWithTimeout(timeout: i32) -> i32 {
    status("aclrtSynchronizeDeviceWithTimeout", || {
        let process = process();
        let link = process.current_link()?;
        if let Ok(limit) = u64::try_from(timeout) {
            let mut streams = vec![link.default_stream()];
            process.streams.for_each(|s| streams.extend(s.iter().filter(|s| s.link.device == link.device).cloned()));
            let idle = || streams.iter().try_fold(true, |idle, s| Ok(idle && s.is_idle()?));
            let late = || {
                let text = format!("the device has unfinished work after {timeout} ms");
                Failure::new(acl::ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, text)
            };
            poll_until(Duration::from_millis(limit), idle, late)?;
        }
        link.call(|reply| Record::DeviceSync { reply }).map(|_| ())
    })
}

fn profile(device: i64) -> Result<(u32, Profile), Failure> {
    let process = process();
    let device = process.check_device(device)?;
    let link = process.link(device)?;
    let profile = Profile::by_soc_name(link.soc_name());
    let profile = profile.ok_or_else(|| Failure::unsupported(format!("no profile of {}", link.soc_name())))?;
    Ok((device, profile))
}

/// Cores and cache of the device.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetDeviceCapability(deviceId: u32, deviceInfo: i32, value: Out<i64>) -> i32 {
    status("aclGetDeviceCapability", || {
        value.check("value")?;
        let (_, profile) = profile(i64::from(deviceId))?;
        let answer = match deviceInfo {
            acl::ACL_DEVICE_INFO_AI_CORE_NUM => i64::from(profile.cube_cores),
            acl::ACL_DEVICE_INFO_VECTOR_CORE_NUM => i64::from(profile.cube_cores) * 2,
            acl::ACL_DEVICE_INFO_L2_SIZE => profile.l2_bytes as i64,
            other => return Err(Failure::invalid(format!("parameter deviceInfo: {other} is no aclDeviceInfo"))),
        };
        value.set("value", answer)
    })
}

/// Attributes that a virtual NPU has an answer for.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetDeviceInfo(deviceId: u32, attr: i32, value: Out<i64>) -> i32 {
    status("aclrtGetDeviceInfo", || {
        value.check("value")?;
        let (device, profile) = profile(i64::from(deviceId))?;
        let answer = match attr {
            acl::ACL_DEV_ATTR_AICORE_CORE_NUM | acl::ACL_DEV_ATTR_CUBE_CORE_NUM => i64::from(profile.cube_cores),
            acl::ACL_DEV_ATTR_VECTOR_CORE_NUM => i64::from(profile.cube_cores) * 2,
            acl::ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE => process().link(device)?.client.facts().hbm_bytes as i64,
            acl::ACL_DEV_ATTR_L2_CACHE_SIZE => profile.l2_bytes as i64,
            acl::ACL_DEV_ATTR_PHY_CHIP_ID => i64::from(process().link(device)?.client.facts().device_index),
            acl::ACL_DEV_ATTR_IS_VIRTUAL => 1,
            other => {
                return Err(Failure::unsupported(format!("parameter attr: {other} is not known of a virtual NPU")));
            }
        };
        value.set("value", answer)
    })
}

/// None of the optional features.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetDeviceCapability(deviceId: i32, _devFeatureType: i32, value: Out<i32>) -> i32 {
    status("aclrtGetDeviceCapability", || {
        process().check_device(i64::from(deviceId))?;
        value.set("value", acl::ACL_DEV_FEATURE_NOT_SUPPORT)
    })
}

/// `aclrtUuid`.
#[repr(C)]
pub struct Uuid {
    bytes: [u8; 16],
}

/// Start of the daemon and number of the device: the same for every client, other after a restart.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDeviceGetUuid(deviceId: i32, uuid: Out<Uuid>) -> i32 {
    status("aclrtDeviceGetUuid", || {
        uuid.check("uuid")?;
        let process = process();
        let link = process.link(process.check_device(i64::from(deviceId))?)?;
        let facts = link.client.facts();
        let mut bytes = *b"vnpu............";
        bytes[4..12].copy_from_slice(&facts.epoch.to_le_bytes());
        bytes[12..].copy_from_slice(&facts.device_index.to_le_bytes());
        uuid.set("uuid", Uuid { bytes })
    })
}

fn two_devices(device: i32, peer: i32) -> Result<(u32, u32), Failure> {
    let process = process();
    Ok((process.check_device(i64::from(device))?, process.check_device(i64::from(peer))?))
}

/// Devices of one process reach each other by copies; a device is not its own peer.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDeviceCanAccessPeer(canAccessPeer: Out<i32>, deviceId: i32, peerDeviceId: i32) -> i32 {
    status("aclrtDeviceCanAccessPeer", || {
        let (device, peer) = two_devices(deviceId, peerDeviceId)?;
        canAccessPeer.set("canAccessPeer", i32::from(device != peer))
    })
}

/// The peer as seen from the thread's device.
fn pair(peer: i32) -> Result<(u32, u32), Failure> {
    let process = process();
    let (device, peer) = (process.current_device()?, process.check_device(i64::from(peer))?);
    if device == peer {
        return Err(Failure::invalid(format!("parameter peerDeviceId: {peer} is the thread's own device")));
    }
    Ok((device, peer))
}

/// Notes that the thread's device may reach the peer. Copies between devices of one process work either way.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDeviceEnablePeerAccess(peerDeviceId: i32, flags: u32) -> i32 {
    status("aclrtDeviceEnablePeerAccess", || {
        if flags != 0 {
            return Err(Failure::invalid(format!("parameter flags: {flags}, want 0")));
        }
        let (device, peer) = pair(peerDeviceId)?;
        process().peers.allow(device, peer);
        Ok(())
    })
}

/// Takes [`aclrtDeviceEnablePeerAccess`] back.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDeviceDisablePeerAccess(peerDeviceId: i32) -> i32 {
    status("aclrtDeviceDisablePeerAccess", || {
        let (device, peer) = pair(peerDeviceId)?;
        if process().peers.forbid(device, peer) {
            return Ok(());
        }
        Err(Failure::invalid(format!("parameter peerDeviceId: device {device} was not allowed to reach device {peer}")))
    })
}

/// Whether [`aclrtDeviceEnablePeerAccess`] was called for the pair.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDevicePeerAccessStatus(deviceId: i32, peerDeviceId: i32, status: Out<i32>) -> i32 {
    crate::entry::status("aclrtDevicePeerAccessStatus", || {
        let (device, peer) = two_devices(deviceId, peerDeviceId)?;
        status.set("status", i32::from(process().peers.is_allowed(device, peer)))
    })
}

/// `aclrtMemUsageInfo`.
#[repr(C)]
pub struct MemUsageInfo {
    name: [u8; 32],
    current: u64,
    peak: u64,
    reserved: [usize; 8],
}

/// What this process holds on the device: one entry, as neighbours are nobody's business.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetMemUsageInfo(
    deviceId: i32,
    memUsageInfo: Out<MemUsageInfo>,
    inputNum: usize,
    outputNum: Out<usize>,
) -> i32 {
    status("aclrtGetMemUsageInfo", || {
        outputNum.check("outputNum")?;
        if inputNum == 0 {
            return Err(Failure::invalid("parameter inputNum: room for no entry"));
        }
        let process = process();
        let (current, peak) = process.link(process.check_device(i64::from(deviceId))?)?.memory_held()?;
        let mut name = [0; 32];
        name[..12].copy_from_slice(b"this process");
        memUsageInfo.set("memUsageInfo", MemUsageInfo { name, current, peak, reserved: [0; 8] })?;
        outputNum.set("outputNum", 1)
    })
}

/// Normal as long as the session lives.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtQueryDeviceStatus(deviceId: i32, deviceStatus: Out<i32>) -> i32 {
    status("aclrtQueryDeviceStatus", || {
        let process = process();
        let device = process.check_device(i64::from(deviceId))?;
        let lost = process.open_link(device).is_some_and(|l| l.is_lost());
        let answer = if lost { acl::ACL_RT_DEVICE_STATUS_ABNORMAL } else { acl::ACL_RT_DEVICE_STATUS_NORMAL };
        deviceStatus.set("deviceStatus", answer)
    })
}

/// Stream priorities go from 7 to 0, the most urgent.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDeviceGetStreamPriorityRange(leastPriority: Out<i32>, greatestPriority: Out<i32>) -> i32 {
    status("aclrtDeviceGetStreamPriorityRange", || {
        leastPriority.set_if_wanted(super::stream::PRIORITY_LEAST as i32);
        greatestPriority.set_if_wanted(0);
        Ok(())
    })
}

/// This process.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtDeviceGetBareTgid(pid: Out<i32>) -> i32 {
    status("aclrtDeviceGetBareTgid", || pid.set("pid", std::process::id() as i32))
}

fn same_number(device: i32, out: Out<i32>, parameter: &str) -> Result<(), Failure> {
    out.set(parameter, process().check_device(i64::from(device))? as i32)
}

/// Logical and user numbers are the same.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetLogicDevIdByUserDevId(userDevid: i32, logicDevId: Out<i32>) -> i32 {
    status("aclrtGetLogicDevIdByUserDevId", || same_number(userDevid, logicDevId, "logicDevId"))
}

/// Logical and user numbers are the same.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetUserDevIdByLogicDevId(logicDevId: i32, userDevid: Out<i32>) -> i32 {
    status("aclrtGetUserDevIdByLogicDevId", || same_number(logicDevId, userDevid, "userDevid"))
}

/// Logical and physical numbers are the same.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetLogicDevIdByPhyDevId(phyDevId: i32, logicDevId: Out<i32>) -> i32 {
    status("aclrtGetLogicDevIdByPhyDevId", || same_number(phyDevId, logicDevId, "logicDevId"))
}

/// Logical and physical numbers are the same.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetPhyDevIdByLogicDevId(logicDevId: i32, phyDevId: Out<i32>) -> i32 {
    status("aclrtGetPhyDevIdByLogicDevId", || same_number(logicDevId, phyDevId, "phyDevId"))
}
