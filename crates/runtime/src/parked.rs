//! Calls that wait for memory which is freed but still in use by queued work.

use acl_abi::values as acl;
use sched::Nanos;
use wire::{Reply, ReplyTo};

use crate::core::Core;
use crate::fault::Fault;

/// How long an allocation waits for memory that is freed but still in use by queued work, before it fails: as long as a
/// generous step. A real device would make the `aclrtFree` wait instead, without a bound.
pub(crate) const MALLOC_WAIT_MAX_NS: Nanos = 1_000_000_000;
/// Allocations that wait at once.
pub(crate) const MALLOC_WAITERS_MAX: usize = 256;

/// A call that waits for memory that queued work still uses.
pub(crate) struct Parked {
    pub session: u64,
    pub request: Request,
    pub reply: ReplyTo,
    pub until: Nanos,
}

/// A call that may wait for memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    /// An allocation of that many bytes; the answer is its address.
    Malloc(u64),
    /// A physical handle of that many bytes; the answer is its number.
    Physical(u64),
    /// A mapping.
    Map { addr: u64, size: u64, offset: u64, handle: u64 },
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

    /// Tries the allocations that wait for freed memory once more.
    pub(crate) fn retry_parked(&mut self) {
        let mut index = 0;
        while index < self.parked.len() {
            let Parked { session, request, reply, until } = self.parked[index];
            let give_up = self.time >= until || !self.memory_is_pending();
            match self.try_request(session, request) {
                Err(_) if !give_up => {
                    index += 1;
                    continue;
                }
                result => {
                    self.parked.remove(index);
                    self.answer(session, reply, result.map(Reply::value));
                }
            }
        }
    }

    /// Freed memory that queued work still uses, of any session.
    pub(crate) fn memory_is_pending(&self) -> bool {
        self.tenants.values().any(|(t, _)| t.space.is_draining())
    }
}
