//! The client's range of device addresses: reserved, never accessible.
//!
//! Device pointers are addresses in this range, so that pointer arithmetic in the application works and a stray access
//! from the host faults instead of reading something else.

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::io;

/// Smallest range that is worth having: the memory of one device.
const BYTES_MIN: u64 = 64 << 30;

/// A reserved address range. Freed when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: u64,
    bytes: u64,
}

impl Reservation {
    /// Reserves `bytes`, or the largest half, quarter, … down to 64 GiB that the address-space limit of the process allows.
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        let mut bytes = bytes;
        loop {
            // SAFETY: a new mapping at an address of the kernel's choice, without access.
            let mapped = unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                mmap_anonymous(std::ptr::null_mut(), bytes as usize, ProtFlags::empty(), flags)
            };
            match mapped {
                Ok(base) => return Ok(Self { base: base as u64, bytes }),
                Err(_) if bytes / 2 >= BYTES_MIN => bytes /= 2,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// First address and length.
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.base, self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody can have a reference into.
        let _ = unsafe { munmap(self.base as *mut _, self.bytes as usize) };
    }
}
