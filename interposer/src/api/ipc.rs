//! Device memory and events shared between processes of one tenant. The daemon of the device brokers it; in direct mode there is no other
//! process on the device.

use std::ffi::c_char;
use std::sync::Arc;

use acl_abi::values as acl;
use wire::Record;

use crate::abi::{In, Opaque, Out, Text};
use crate::api::event::hand_out;
use crate::api::pages::{Physical, physical};
use crate::entry::status;
use crate::error::Failure;
use crate::event::Event;
use crate::ipc::{KEY_CHARS, Key, Known, from_text, to_text};
use crate::link::Link;
use crate::process::process;

/// Export for every process of the tenant, not only for those that are named.
const EVERY_PROCESS: u64 = 1;
/// Import for the device's own use and for copies to peers: no difference here.
const PEER_ACCESS: u64 = 1;
/// Most processes named at once.
const PIDS_MAX: usize = 1024;

fn check_flags(flags: u64, known: u64) -> Result<(), Failure> {
    if flags & !known == 0 {
        return Ok(());
    }
    Err(Failure::unsupported(format!("parameter flags: {flags:#x}, known are {known:#x}")))
}

/// Makes a key for a whole allocation.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtIpcMemGetExportKey(
    devPtr: Opaque,
    size: usize,
    key: Out<c_char>,
    len: usize,
    flags: u64,
) -> i32 {
    status("aclrtIpcMemGetExportKey", || {
        key.check("key")?;
        if len <= KEY_CHARS {
            return Err(Failure::invalid(format!("parameter len: {len} bytes for a key of {KEY_CHARS} and a NUL")));
        }
        check_flags(flags, EVERY_PROCESS)?;
        let (process, addr) = (process(), devPtr.addr() as u64);
        let unknown =
            || Failure::invalid(format!("parameter devPtr: {addr:#x} is not a device address of this process"));
        let link = process.link_of(addr).ok_or_else(unknown)?;
        let (size, named_only) = (size as u64, flags & EVERY_PROCESS == 0);
        let made = link.call(|reply| Record::Export { handle: false, subject: addr, size, named_only, reply })?;
        process.keys.insert(made, Known::Exported(link.device));
        key.set_text("key", &to_text(made), len)
    })
}

/// Shows another process's allocation to the thread's device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtIpcMemImportByKey(devPtr: Out<Opaque>, key: Text, flags: u64) -> i32 {
    status("aclrtIpcMemImportByKey", || {
        devPtr.check("devPtr")?;
        check_flags(flags, PEER_ACCESS)?;
        let key = from_text(key.bytes().ok_or_else(|| Failure::null("key"))?)?;
        let process = process();
        let link = process.current_link()?;
        let [addr, size, ..] = link.call(|reply| Record::Import { key, handle: false, reply })?;
        link.imported(addr, size);
        process.keys.insert(key, Known::Imported(link.device, addr));
        devPtr.set("devPtr", std::ptr::without_provenance_mut(addr as usize))
    })
}

/// Lets imported memory go, or ends a key of this process. Memory stays as long as somebody holds it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtIpcMemClose(key: Text) -> i32 {
    status("aclrtIpcMemClose", || {
        let key = from_text(key.bytes().ok_or_else(|| Failure::null("key"))?)?;
        let process = process();
        let closed = match process.keys.get(key) {
            Some(Known::Imported(device, addr)) => process.link(device)?.free(addr),
            Some(Known::Exported(device)) => {
                process.link(device)?.call(|reply| Record::ExportClose { key, reply }).map(|_| ())
            }
            None => Err(Failure::invalid("parameter key: this process neither exported nor imported it")),
        };
        process.keys.remove(key);
        process.forgive_after_finalise(closed)
    })
}

fn allow(link: &Arc<Link>, key: Key, pids: In<i32>, count: usize) -> Result<(), Failure> {
    if count == 0 || count > PIDS_MAX {
        return Err(Failure::invalid(format!("parameter num: {count} processes, want 1 to {PIDS_MAX}")));
    }
    let mut list = Vec::new();
    pids.append_to("pid", count, &mut list)?;
    for pid in list {
        let pid = u32::try_from(pid).map_err(|_| Failure::invalid(format!("parameter pid: {pid}")))?;
        link.call(|reply| Record::ExportAllow { key, pid, reply })?;
    }
    Ok(())
}

/// Names processes that may import. Needed for keys that were not made for every process.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtIpcMemSetImportPid(key: Text, pid: In<i32>, num: usize) -> i32 {
    status("aclrtIpcMemSetImportPid", || {
        let key = from_text(key.bytes().ok_or_else(|| Failure::null("key"))?)?;
        let process = process();
        match process.keys.get(key) {
            Some(Known::Exported(device)) => allow(&process.link(device)?, key, pid, num),
            _ => Err(Failure::invalid("parameter key: this process did not export it")),
        }
    })
}

/// `aclrtIpcEventHandle`: a word that tells it from garbage, and the key.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcEventHandle([u64; EVENT_HANDLE_WORDS]);

const EVENT_HANDLE_WORDS: usize = acl::ACL_IPC_EVENT_HANDLE_SIZE as usize / size_of::<u64>();
const EVENT_HANDLE_MARK: u64 = u64::from_le_bytes(*b"vnpu-evt");

/// Makes a handle by which other processes open the event.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtIpcGetEventHandle(event: Opaque, handle: Out<IpcEventHandle>) -> i32 {
    status("aclrtIpcGetEventHandle", || {
        handle.check("handle")?;
        let [a, b, c, d] = process().event(event, "event")?.export()?;
        handle.set("handle", IpcEventHandle([EVENT_HANDLE_MARK, a, b, c, d, 0, 0, 0]))
    })
}

/// Another process's event, on the thread's device, which must be the one that it was made on.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtIpcOpenEventHandle(handle: IpcEventHandle, event: Out<Opaque>) -> i32 {
    status("aclrtIpcOpenEventHandle", || {
        event.check("event")?;
        let IpcEventHandle([EVENT_HANDLE_MARK, a, b, c, d, 0, 0, 0]) = handle else {
            return Err(Failure::invalid("parameter handle: aclrtIpcGetEventHandle did not make it"));
        };
        hand_out(event, Event::open(process().current_link()?, [a, b, c, d])?)
    })
}

/// Makes a number by which other processes import physical memory.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemExportToShareableHandle(
    handle: Opaque,
    handleType: i32,
    flags: u64,
    shareableHandle: Out<u64>,
) -> i32 {
    status("aclrtMemExportToShareableHandle", || {
        shareableHandle.check("shareableHandle")?;
        if handleType != acl::ACL_MEM_HANDLE_TYPE_NONE {
            return Err(Failure::unsupported(format!("parameter handleType: {handleType}, only numbers are made")));
        }
        check_flags(flags, EVERY_PROCESS)?;
        let process = process();
        let physical = physical(process, handle)?;
        let (subject, named_only) = (physical.number, flags & EVERY_PROCESS == 0);
        let made = physical.link.call(|reply| Record::Export { handle: true, subject, size: 0, named_only, reply })?;
        process.keys.insert(made, Known::Exported(physical.link.device));
        shareableHandle.set("shareableHandle", made[0])
    })
}

/// Physical memory of another process, for a device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemImportFromShareableHandle(shareableHandle: u64, deviceId: i32, handle: Out<Opaque>) -> i32 {
    status("aclrtMemImportFromShareableHandle", || {
        handle.check("handle")?;
        let process = process();
        let link = process.link(process.check_device(i64::from(deviceId))?)?;
        let key = [shareableHandle, 0, 0, 0];
        let [number, size, ..] = link.call(|reply| Record::Import { key, handle: true, reply })?;
        let fresh = Physical::imported(link, number, size);
        let made = process.physical.insert(|slot| {
            *slot = Some(fresh);
            Ok(())
        })?;
        handle.set("handle", made)
    })
}

/// Names processes that may import physical memory.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemSetPidToShareableHandle(shareableHandle: u64, pid: In<i32>, pidNum: usize) -> i32 {
    status("aclrtMemSetPidToShareableHandle", || {
        let (process, key) = (process(), [shareableHandle, 0, 0, 0]);
        match process.keys.get(key) {
            Some(Known::Exported(device)) => allow(&process.link(device)?, key, pid, pidNum),
            _ => Err(Failure::invalid("parameter shareableHandle: this process did not export it")),
        }
    })
}
