//! Device memory, pinned host memory, copies.

use acl_abi::values as acl;

use crate::abi::{In, Opaque, Out};
use crate::copy::{copy, set};
use crate::entry::status;
use crate::error::Failure;
use crate::process::process;

fn malloc(devPtr: Out<Opaque>, size: usize) -> Result<(), Failure> {
    devPtr.check("devPtr")?;
    if size == 0 {
        return Err(Failure::invalid("parameter size: 0 bytes"));
    }
    let addr = process().current_link()?.malloc(size as u64)?;
    devPtr.set("devPtr", std::ptr::without_provenance_mut(addr as usize))
}

/// Memory of the thread's device. Every policy gives the same pages.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMalloc(devPtr: Out<Opaque>, size: usize, _policy: i32) -> i32 {
    status("aclrtMalloc", || malloc(devPtr, size))
}

/// As [`aclrtMalloc`]: every allocation is aligned to more than 32 bytes.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMallocAlign32(devPtr: Out<Opaque>, size: usize, _policy: i32) -> i32 {
    status("aclrtMallocAlign32", || malloc(devPtr, size))
}

/// As [`aclrtMalloc`].
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMallocCached(devPtr: Out<Opaque>, size: usize, _policy: i32) -> i32 {
    status("aclrtMallocCached", || malloc(devPtr, size))
}

/// `aclrtMallocAttribute`: the value is a union, of which the low half holds every kind.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MallocAttribute {
    attr: i32,
    value: [u32; 2],
}

/// `aclrtMallocConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MallocConfig {
    attrs: *const MallocAttribute,
    count: usize,
}

/// Most attributes of a `aclrtMallocConfig`: there are four kinds.
const MALLOC_ATTRIBUTES_MAX: usize = 16;

fn malloc_with(devPtr: Out<Opaque>, size: usize, cfg: In<MallocConfig>) -> Result<(), Failure> {
    if cfg.is_null() {
        return malloc(devPtr, size);
    }
    let cfg = cfg.get("cfg")?;
    if cfg.count > MALLOC_ATTRIBUTES_MAX {
        return Err(Failure::invalid(format!("parameter cfg: {} attributes", cfg.count)));
    }
    let mut attributes = Vec::new();
    In::from(cfg.attrs).append_to("cfg", cfg.count, &mut attributes)?;
    for attribute in attributes {
        match attribute.attr {
            // Whose memory it is called in a profile.
            acl::ACL_RT_MEM_ATTR_RSV | acl::ACL_RT_MEM_ATTR_MODULE_ID => {}
            acl::ACL_RT_MEM_ATTR_DEVICE_ID if process().current_device()? == attribute.value[0] => {}
            other => {
                return Err(Failure::unsupported(format!("parameter cfg: attribute {other} = {}", attribute.value[0])));
            }
        }
    }
    malloc(devPtr, size)
}

/// As [`aclrtMalloc`]. Attributes may name a module and the thread's own device.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMallocWithCfg(devPtr: Out<Opaque>, size: usize, _policy: i32, cfg: In<MallocConfig>) -> i32 {
    status("aclrtMallocWithCfg", || malloc_with(devPtr, size, cfg))
}

fn free(devPtr: Opaque) -> Result<(), Failure> {
    let process = process();
    if devPtr.is_null() {
        return Err(Failure::null("devPtr"));
    }
    let addr = devPtr.addr() as u64;
    match process.link_of(addr) {
        Some(_) if process.keys.is_import(addr) => {
            let text = format!("parameter devPtr: {addr:#x} is memory of another process; aclrtIpcMemClose lets it go");
            Err(Failure::invalid(text))
        }
        Some(link) => link.free(addr),
        None => {
            let text = format!("parameter devPtr: {addr:#x} is not a device address of this process");
            process.forgive_after_finalise(Err(Failure::invalid(text)))
        }
    }
}

/// Frees device memory. Operators that use it may still be queued: it goes when they are done.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtFree(devPtr: Opaque) -> i32 {
    status("aclrtFree", || free(devPtr))
}

/// As [`aclrtFree`].
#[unsafe(no_mangle)]
pub extern "C" fn aclrtFreeWithDevSync(devPtr: Opaque) -> i32 {
    status("aclrtFreeWithDevSync", || free(devPtr))
}

/// Pinned host memory: in the session's arena, or ordinary memory once that is full.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMallocHost(hostPtr: Out<Opaque>, size: usize) -> i32 {
    status("aclrtMallocHost", || {
        hostPtr.check("hostPtr")?;
        if size == 0 {
            return Err(Failure::invalid("parameter size: 0 bytes"));
        }
        let process = process();
        let link = process.current_link()?;
        link.check_alive()?;
        let block = match link.client.pinned_alloc(size as u64) {
            Some(block) => block,
            None => process.host.alloc(size)?,
        };
        hostPtr.set("hostPtr", block.cast())
    })
}

fn free_host(hostPtr: Opaque) -> Result<(), Failure> {
    let process = process();
    if hostPtr.is_null() {
        return Err(Failure::null("hostPtr"));
    }
    let block: *mut u8 = hostPtr.cast();
    let freed = process.open_links().any(|link| link.client.pinned_free(block)) || process.host.free(block);
    if freed {
        return Ok(());
    }
    let text = format!("parameter hostPtr: {hostPtr:p} is not the start of a live block of aclrtMallocHost");
    process.forgive_after_finalise(Err(Failure::invalid(text)))
}

/// Frees pinned host memory.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtFreeHost(hostPtr: Opaque) -> i32 {
    status("aclrtFreeHost", || free_host(hostPtr))
}

/// As [`aclrtFreeHost`].
#[unsafe(no_mangle)]
pub extern "C" fn aclrtFreeHostWithDevSync(hostPtr: Opaque) -> i32 {
    status("aclrtFreeHostWithDevSync", || free_host(hostPtr))
}

/// Copies and waits.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpy(dst: *mut u8, destMax: usize, src: *const u8, count: usize, kind: i32) -> i32 {
    status("aclrtMemcpy", || copy(process(), (dst.cast(), destMax), (src.cast_mut().cast(), count), kind, None))
}

fn copy_async(
    (dst, destMax): (*mut u8, usize),
    (src, count): (*const u8, usize),
    kind: i32,
    stream: Opaque,
) -> Result<(), Failure> {
    let process = process();
    let stream = process.stream(stream)?;
    copy(process, (dst.cast(), destMax), (src.cast_mut().cast(), count), kind, Some(&stream))
}

/// Copies in stream order. Returns before that where host memory is pinned, or pageable and the source.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpyAsync(
    dst: *mut u8,
    destMax: usize,
    src: *const u8,
    count: usize,
    kind: i32,
    stream: Opaque,
) -> i32 {
    status("aclrtMemcpyAsync", || copy_async((dst, destMax), (src, count), kind, stream))
}

/// As [`aclrtMemcpyAsync`], which already returns only when pageable host memory is no longer needed.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpyAsyncWithCondition(
    dst: *mut u8,
    destMax: usize,
    src: *const u8,
    count: usize,
    kind: i32,
    stream: Opaque,
) -> i32 {
    status("aclrtMemcpyAsyncWithCondition", || copy_async((dst, destMax), (src, count), kind, stream))
}

/// Sets bytes and waits.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemset(devPtr: Opaque, maxCount: usize, value: i32, count: usize) -> i32 {
    status("aclrtMemset", || set(process(), (devPtr, maxCount), value, count, None))
}

/// Sets bytes in stream order.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemsetAsync(devPtr: Opaque, maxCount: usize, value: i32, count: usize, stream: Opaque) -> i32 {
    status("aclrtMemsetAsync", || {
        let process = process();
        let stream = process.stream(stream)?;
        set(process, (devPtr, maxCount), value, count, Some(&stream))
    })
}

/// `aclrtPtrAttributes`.
#[repr(C)]
pub struct PointerAttributes {
    device: u32,
    location: i32,
    page_bytes: u32,
    reserved: [u32; 4],
}

/// Where an address lies: on a device, in pinned host memory, or in memory that AscendCL does not know.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtPointerGetAttributes(ptr: *const u8, attributes: Out<PointerAttributes>) -> i32 {
    status("aclrtPointerGetAttributes", || {
        attributes.check("attributes")?;
        let process = process();
        let pinned = |p: *const u8| process.open_links().any(|link| link.client.pinned_range(p, 1).is_some());
        let (device, location) = match process.link_of(ptr.addr() as u64) {
            Some(link) => (link.device, acl::ACL_MEM_LOCATION_TYPE_DEVICE),
            None if pinned(ptr) || process.host.contains(ptr.addr()) => (0, acl::ACL_MEM_LOCATION_TYPE_HOST),
            None => (0, acl::ACL_MEM_LOCATION_TYPE_UNREGISTERED),
        };
        attributes.set("attributes", PointerAttributes { device, location, page_bytes: 4096, reserved: [0; 4] })
    })
}

/// Start and size of the allocation that holds a device address.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemGetAddressRange(ptr: Opaque, pbase: Out<Opaque>, psize: Out<usize>) -> i32 {
    status("aclrtMemGetAddressRange", || {
        let addr = ptr.addr() as u64;
        let found = process().link_of(addr).and_then(|link| link.allocation_of(addr));
        let unknown = || Failure::invalid(format!("parameter ptr: {addr:#x} is in no live device allocation"));
        let (start, size) = found.ok_or_else(unknown)?;
        pbase.set_if_wanted(std::ptr::without_provenance_mut(start as usize));
        psize.set_if_wanted(size as usize);
        Ok(())
    })
}
