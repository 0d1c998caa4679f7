//! What the records of memory do: allocations, and what an application maps itself (reserved addresses, physical handles,
//! mappings).
//!
//! Reserving and mapping act at once, in the order of the ring; queued and running work keeps what it was translated to
//! (`memory::reservation` says how). A call that wants something such work still uses waits for it.

use acl_abi::values as acl;
use device::DeviceError;
use wire::{Reply, ReplyTo};

use crate::core::{Core, give_back};
use crate::fault::Fault;
use crate::memory::{HANDLE_BYTES, ReserveError, footprint};

/// A refusal of `what`, as an error of the application.
fn fault(what: &str, error: ReserveError) -> Fault {
    Fault::param(format!("{what}: {error}"))
}

impl Core {
    /// One attempt; the address.
    pub(crate) fn try_malloc(&mut self, session: u64, size: u64) -> Result<u64, Fault> {
        if size == 0 {
            return Err(Fault::param("aclrtMalloc: size is 0"));
        }
        const WHAT: &str = "aclrtMalloc";
        self.check_room(session, WHAT, size)?;
        let free = self.device.memory().free;
        let full = |why: &str| Fault::out_of_memory(WHAT, size, free, why);
        let start = self.space(session).find_gap(size).map_err(|e| full(&format!("; {e}")))?;
        let block = self.device.alloc(size).map_err(|_| full(""))?;
        self.space(session).map(start, size, block);
        Ok(start)
    }

    /// Checks the session's own bounds before it gets `size` bytes more.
    pub(crate) fn check_room(&mut self, session: u64, what: &str, size: u64) -> Result<(), Fault> {
        let (limits, free) = (self.limits, self.device.memory().free);
        let (room, most, reserved) = self.tenant_room(self.tenants.get(&session).map_or(0, |(t, _)| t.account));
        if let Some(most) = most
            && footprint(size) > room
        {
            let why = format!(" of this tenant's limit of {most} bytes");
            return Err(Fault::out_of_memory(what, size, room.min(free), &why));
        }
        if reserved > 0 && footprint(size) > free.saturating_sub(reserved) {
            let why = format!("; {reserved} more are guaranteed to other tenants");
            return Err(Fault::out_of_memory(what, size, free.saturating_sub(reserved), &why));
        }
        let space = self.space(session);
        let left = limits.session_memory_bytes_max.saturating_sub(space.held_bytes());
        if footprint(size) > left {
            let why = format!(" of this process's limit of {} bytes", limits.session_memory_bytes_max);
            return Err(Fault::out_of_memory(what, size, left.min(free), &why));
        }
        if space.blocks() >= limits.blocks_max {
            let why = format!(", but this process already has {} allocations, the most allowed", limits.blocks_max);
            return Err(Fault::out_of_memory(what, size, free, &why));
        }
        Ok(())
    }

    pub(crate) fn try_physical(&mut self, session: u64, size: u64) -> Result<u64, Fault> {
        const WHAT: &str = "aclrtMallocPhysical";
        if size == 0 || !size.is_multiple_of(HANDLE_BYTES) {
            return Err(fault(WHAT, ReserveError::Granularity { what: "size", value: size }));
        }
        self.check_room(session, WHAT, size)?;
        let free = self.device.memory().free;
        let physical = self.device.alloc_handle(size).map_err(|_| Fault::out_of_memory(WHAT, size, free, ""))?;
        Ok(self.space(session).add_handle(physical, size))
    }

    pub(crate) fn try_map(
        &mut self,
        session: u64,
        addr: u64,
        size: u64,
        offset: u64,
        handle: u64,
    ) -> Result<(), Fault> {
        const WHAT: &str = "aclrtMapMem";
        let pieces_max = self.limits.blocks_max;
        let space = self.space(session);
        let (at, physical) = match space.check_map(addr, size, offset, handle) {
            Ok(found) => found,
            Err(e @ ReserveError::Draining { .. }) => {
                return Err(Fault::new(acl::ACL_ERROR_RT_MEMORY_ALLOCATION, format!("{WHAT}: {e}")));
            }
            Err(e) => return Err(fault(WHAT, e)),
        };
        if space.pieces() >= pieces_max {
            return Err(Fault::over_limit(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, WHAT, pieces_max));
        }
        let refused = |e: DeviceError| Fault::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, format!("{WHAT}: {e}"));
        self.device.map(at, physical, offset, size).map_err(refused)?;
        self.space(session).map_handle(addr, size, handle);
        Ok(())
    }

    pub(crate) fn free_block(&mut self, session: u64, addr: u64) -> Result<Reply, Fault> {
        let (tenant, _) = self.tenant(session);
        if let Ok((_, size)) = tenant.space.allocation(addr)
            && !tenant.words.is_empty()
        {
            tenant.words.retain(|&at, _| at.wrapping_sub(addr) >= size);
        }
        let released = tenant.space.unmap(addr).map_err(|e| Fault::param(format!("aclrtFree: {e}")))?;
        if let Some(released) = released {
            give_back(&mut *self.device, &mut self.shares, session, released);
        }
        Ok(Reply::ok())
    }

    pub(crate) fn reserve(&mut self, session: u64, size: u64) -> Result<Reply, Fault> {
        const WHAT: &str = "aclrtReserveMemAddress";
        // A client may ask for a few bytes to see whether the function works; it gets addresses for one handle.
        let Some(size) = size.checked_next_multiple_of(HANDLE_BYTES).filter(|&size| size > 0) else {
            return Err(Fault::param(format!("{WHAT}: size {size} is not possible")));
        };
        let limit = self.limits.reservations_max;
        let space = self.space(session);
        if space.reservations() >= limit {
            return Err(Fault::over_limit(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, WHAT, limit));
        }
        let full = |why: String| Fault::new(acl::ACL_ERROR_RT_MEMORY_ALLOCATION, format!("{WHAT}: {why}"));
        let start = space.find_gap_aligned(size, HANDLE_BYTES).map_err(|e| full(e.to_string()))?;
        let window = self.device.reserve(size).map_err(|e| full(e.to_string()))?;
        self.space(session).reserve(start, size, window);
        Ok(Reply::value(start))
    }

    pub(crate) fn release(&mut self, session: u64, addr: u64, reply: ReplyTo) {
        let Self { tenants, device, shares, .. } = self;
        let Some((tenant, _)) = tenants.get_mut(&session) else { return };
        let result = tenant.space.release(addr, |released| give_back(&mut **device, shares, session, released));
        self.answer(session, reply, result.map(|()| Reply::ok()).map_err(|e| fault("aclrtReleaseMemAddress", e)));
    }

    pub(crate) fn free_physical(&mut self, session: u64, handle: u64, reply: ReplyTo) {
        let Self { tenants, device, shares, .. } = self;
        let Some((tenant, _)) = tenants.get_mut(&session) else { return };
        let result = tenant.space.free_handle(handle, |released| give_back(&mut **device, shares, session, released));
        self.answer(session, reply, result.map(|()| Reply::ok()).map_err(|e| fault("aclrtFreePhysical", e)));
    }

    pub(crate) fn unmap(&mut self, session: u64, addr: u64, reply: ReplyTo) {
        let Self { tenants, device, shares, .. } = self;
        let Some((tenant, _)) = tenants.get_mut(&session) else { return };
        let result = tenant.space.unmap_handle(addr, |released| give_back(&mut **device, shares, session, released));
        self.answer(session, reply, result.map(|()| Reply::ok()).map_err(|e| fault("aclrtUnmapMem", e)));
    }
}
