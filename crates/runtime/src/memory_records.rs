//! What the records of memory do that an application maps itself: reserved addresses, physical handles, mappings.
//!
//! Reserving and mapping act at once, in the order of the ring; queued and running work keeps what it was translated to
//! (`memory::reservation` says how). A call that wants something such work still uses waits for it.

use acl_abi::values as acl;
use device::DeviceError;
use wire::{Reply, ReplyTo};

use crate::core::{Core, MALLOC_WAIT_MAX_NS, MALLOC_WAITERS_MAX, Parked, Request, give_back};
use crate::fault::Fault;
use crate::memory::{HANDLE_BYTES, ReserveError};

/// A refusal of `what`, as an error of the application.
fn fault(what: &str, error: ReserveError) -> Fault {
    Fault::param(format!("{what}: {error}"))
}

impl Core {
    /// A call that gets its answer now, or when memory that is freed but still in use has come back: the free has
    /// "happened" for the application, so wait for it rather than fail.
    pub(crate) fn request(&mut self, session: u64, request: Request, reply: ReplyTo) {
        let result = self.try_request(session, request);
        let waits = matches!(&result, Err(f) if f.status == acl::ACL_ERROR_RT_MEMORY_ALLOCATION);
        if waits && self.memory_is_pending() && self.parked.len() < MALLOC_WAITERS_MAX {
            let until = self.time.saturating_add(MALLOC_WAIT_MAX_NS);
            return self.parked.push(Parked { session, request, reply, until });
        }
        self.answer(session, reply, result.map(Reply::value));
    }

    /// One attempt. What may get better by waiting fails with `ACL_ERROR_RT_MEMORY_ALLOCATION`.
    pub(crate) fn try_request(&mut self, session: u64, request: Request) -> Result<u64, Fault> {
        match request {
            Request::Malloc(size) => self.try_malloc(session, size),
            Request::Physical(size) => self.try_physical(session, size),
            Request::Map { addr, size, offset, handle } => {
                self.try_map(session, addr, size, offset, handle).map(|()| 0)
            }
        }
    }

    fn try_physical(&mut self, session: u64, size: u64) -> Result<u64, Fault> {
        const WHAT: &str = "aclrtMallocPhysical";
        if size == 0 || !size.is_multiple_of(HANDLE_BYTES) {
            return Err(fault(WHAT, ReserveError::Granularity { what: "size", value: size }));
        }
        self.check_room(session, WHAT, size)?;
        let free = self.device.memory().free;
        let physical = self.device.alloc_handle(size).map_err(|_| Fault::out_of_memory(WHAT, size, free, ""))?;
        Ok(self.space(session).add_handle(physical, size))
    }

    fn try_map(&mut self, session: u64, addr: u64, size: u64, offset: u64, handle: u64) -> Result<(), Fault> {
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
