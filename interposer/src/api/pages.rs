//! Device memory that the application maps itself: addresses, physical memory, and the mapping of one in the other.

use std::sync::Arc;

use acl_abi::values as acl;

use crate::abi::{In, Opaque, Out};
use crate::entry::status;
use crate::error::Failure;
use crate::link::Link;
use crate::process::{Process, process};

/// Unit of sizes, offsets and addresses, in bytes.
const GRANULARITY: usize = 2 << 20;

/// `aclrtPhysicalMemProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PhysicalMemProp {
    handle_type: i32,
    allocation_type: i32,
    attribute: i32,
    location_id: u32,
    location_type: i32,
    reserve: u64,
}

/// `aclrtMemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemAccessDesc {
    flags: i32,
    location_id: u32,
    location_type: i32,
    reserve: [u8; 12],
}

/// Physical memory behind an `aclrtDrvMemHandle`.
#[derive(Clone)]
pub struct Physical {
    /// Session that has it.
    pub link: Arc<Link>,
    /// The daemon's number.
    pub number: u64,
    /// Bytes.
    pub size: u64,
    prop: PhysicalMemProp,
}

impl Physical {
    /// Memory of another process that was imported.
    pub fn imported(link: Arc<Link>, number: u64, size: u64) -> Self {
        let prop = PhysicalMemProp {
            handle_type: acl::ACL_MEM_HANDLE_TYPE_NONE,
            allocation_type: acl::ACL_MEM_ALLOCATION_TYPE_PINNED,
            attribute: acl::ACL_HBM_MEM_HUGE,
            location_id: link.device,
            location_type: acl::ACL_MEM_LOCATION_TYPE_DEVICE,
            reserve: 0,
        };
        Self { link, number, size, prop }
    }
}

/// Physical memory behind a handle of the caller's.
///
/// # Errors
/// A bad handle.
pub fn physical(process: &Process, handle: Opaque) -> Result<Physical, Failure> {
    let found = process.physical.with(handle, "handle", |p| p.clone())?;
    found.ok_or_else(|| Failure::new(acl::ACL_ERROR_RT_INVALID_HANDLE, "parameter handle: being freed"))
}

fn reserve(virPtr: Out<Opaque>, size: usize, alignment: usize, expectPtr: Opaque) -> Result<(), Failure> {
    virPtr.check("virPtr")?;
    if !expectPtr.is_null() {
        return Err(Failure::invalid("parameter expectPtr: the device chooses the address, pass null"));
    }
    if size == 0 {
        return Err(Failure::invalid("parameter size: 0 bytes"));
    }
    if alignment != 0 && !(alignment.is_power_of_two() && alignment <= GRANULARITY) {
        return Err(Failure::invalid(format!(
            "parameter alignment: {alignment}, want 0 or a power of two to {GRANULARITY}"
        )));
    }
    let addr = process().current_link()?.reserve(size as u64)?;
    virPtr.set("virPtr", std::ptr::without_provenance_mut(addr as usize))
}

/// Reserves addresses of the thread's device; they cost nothing. Every kind of page (`flags`) is the same.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtReserveMemAddress(
    virPtr: Out<Opaque>,
    size: usize,
    alignment: usize,
    expectPtr: Opaque,
    _flags: u64,
) -> i32 {
    status("aclrtReserveMemAddress", || reserve(virPtr, size, alignment, expectPtr))
}

/// As [`aclrtReserveMemAddress`]: whether a host caches the range does not matter, no host can reach it.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtReserveMemAddressNoUCMemory(
    virPtr: Out<Opaque>,
    size: usize,
    alignment: usize,
    expectPtr: Opaque,
    _flags: u64,
) -> i32 {
    status("aclrtReserveMemAddressNoUCMemory", || reserve(virPtr, size, alignment, expectPtr))
}

/// The session of an address.
fn link_of(process: &Process, parameter: &str, addr: Opaque) -> Result<Arc<Link>, Failure> {
    if addr.is_null() {
        return Err(Failure::null(parameter));
    }
    process.link_of(addr.addr() as u64).ok_or_else(|| {
        Failure::invalid(format!("parameter {parameter}: {addr:p} is not a device address of this process"))
    })
}

/// Gives reserved addresses back. Nothing may be mapped in them; work may still be queued that used what was.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtReleaseMemAddress(virPtr: Opaque) -> i32 {
    status("aclrtReleaseMemAddress", || {
        let process = process();
        let released = link_of(process, "virPtr", virPtr).and_then(|link| link.release(virPtr.addr() as u64));
        process.forgive_after_finalise(released)
    })
}

fn check_prop(process: &Process, prop: PhysicalMemProp) -> Result<Arc<Link>, Failure> {
    if prop.handle_type != acl::ACL_MEM_HANDLE_TYPE_NONE {
        return Err(Failure::unsupported(format!(
            "parameter prop: handle type {} cannot be shared so",
            prop.handle_type
        )));
    }
    if prop.allocation_type != acl::ACL_MEM_ALLOCATION_TYPE_PINNED {
        return Err(Failure::invalid(format!("parameter prop: {} is no allocation type", prop.allocation_type)));
    }
    match prop.location_type {
        acl::ACL_MEM_LOCATION_TYPE_DEVICE => process.link(process.check_device(i64::from(prop.location_id))?),
        other => {
            Err(Failure::unsupported(format!("parameter prop: memory at a location of type {other}, only of a device")))
        }
    }
}

/// Takes physical memory of a device; every attribute (page size, bandwidth) is its HBM.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMallocPhysical(handle: Out<Opaque>, size: usize, prop: In<PhysicalMemProp>, _flags: u64) -> i32 {
    status("aclrtMallocPhysical", || {
        handle.check("handle")?;
        let (process, prop) = (process(), prop.get("prop")?);
        let link = check_prop(process, prop)?;
        let number = link.physical_alloc(size as u64)?;
        let fresh = Physical { link, number, size: size as u64, prop };
        let made = process.physical.insert(|slot| {
            *slot = Some(fresh);
            Ok(())
        })?;
        handle.set("handle", made)
    })
}

/// Gives physical memory back. What is mapped of it, or used by queued work, stays until that is over.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtFreePhysical(handle: Opaque) -> i32 {
    status("aclrtFreePhysical", || {
        let process = process();
        let freed = process.physical.remove(handle, "handle", Option::take).and_then(|gone| match gone {
            Some(physical) if !physical.link.is_lost() => physical.link.physical_free(physical.number),
            _ => Ok(()),
        });
        process.forgive_after_finalise(freed)
    })
}

/// Makes `size` bytes of physical memory, from `offset` on, appear at a reserved address. Mappings side by side are one range.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMapMem(virPtr: Opaque, size: usize, offset: usize, handle: Opaque, _flags: u64) -> i32 {
    status("aclrtMapMem", || {
        let process = process();
        let link = link_of(process, "virPtr", virPtr)?;
        let physical = physical(process, handle)?;
        if !Arc::ptr_eq(&physical.link, &link) {
            let text = format!("it is of device {}, the address of device {}", physical.link.device, link.device);
            return Err(Failure::invalid(format!("parameter handle: {text}")));
        }
        link.map(virPtr.addr() as u64, size as u64, offset as u64, physical.number)
    })
}

/// Undoes a mapping: no later access reaches it, queued work finishes with what it has.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtUnmapMem(virPtr: Opaque) -> i32 {
    status("aclrtUnmapMem", || {
        let process = process();
        let unmapped = link_of(process, "virPtr", virPtr).and_then(|link| link.unmap(virPtr.addr() as u64));
        process.forgive_after_finalise(unmapped)
    })
}

/// Reading and writing from the memory's own device is what there is, and needs no permission.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemSetAccess(virPtr: Opaque, size: usize, desc: In<MemAccessDesc>, count: usize) -> i32 {
    status("aclrtMemSetAccess", || {
        let link = link_of(process(), "virPtr", virPtr)?;
        let mut wanted = Vec::new();
        if count == 0 || count > crate::config::DEVICES_MAX {
            return Err(Failure::invalid(format!("parameter count: {count}")));
        }
        desc.append_to("desc", count, &mut wanted)?;
        link.check_range("virPtr", virPtr.addr() as u64, size as u64)?;
        for access in wanted {
            if access.flags != acl::ACL_RT_MEM_ACCESS_FLAGS_READWRITE {
                let text = format!("parameter desc: access {}, but only reading and writing can be had", access.flags);
                return Err(Failure::unsupported(text));
            }
            if access.location_type != acl::ACL_MEM_LOCATION_TYPE_DEVICE || access.location_id != link.device {
                let text = format!(
                    "parameter desc: location {} of type {}, but only device {} reaches its memory",
                    access.location_id, access.location_type, link.device
                );
                return Err(Failure::unsupported(text));
            }
        }
        Ok(())
    })
}

/// 2 MiB, whatever the option.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemGetAllocationGranularity(
    prop: In<PhysicalMemProp>,
    option: i32,
    granularity: Out<usize>,
) -> i32 {
    status("aclrtMemGetAllocationGranularity", || {
        granularity.check("granularity")?;
        check_prop(process(), prop.get("prop")?)?;
        match option {
            acl::ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM | acl::ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED => {
                granularity.set("granularity", GRANULARITY)
            }
            other => Err(Failure::invalid(format!("parameter option: {other} is no aclrtMemGranularityOptions"))),
        }
    })
}

/// What physical memory was asked for.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemGetAllocationPropertiesFromHandle(handle: Opaque, prop: Out<PhysicalMemProp>) -> i32 {
    status("aclrtMemGetAllocationPropertiesFromHandle", || {
        prop.check("prop")?;
        prop.set("prop", physical(process(), handle)?.prop)
    })
}
