//! The address range of a functional device: ordinary memory, then an aperture of windows onto page-wise memory.
//!
//! ```text
//!  PHYS_BASE ─▶ ├────── memory ──────┤├──────────────── aperture ────────────────┤
//!                private, anonymous    no access, but where pages of the file are mapped
//!                                      ▲ window ▲            ▲ window ▲
//!                handle file  ├────────┴────────┴── as long as memory ──┴────────┤
//! ```
//!
//! Ordinary allocations live in the private mapping. Memory that an application maps itself (physical handles) lives in a
//! file without a name, at the offset of its physical address; it is reached through windows only, so that several handles
//! lie side by side and one handle may be seen in several places. Both kinds share the device's one stock of addresses, so
//! each byte of the stock is used by one of the two at a time and costs the host nothing in the other.
//!
//! **Ownership:** the worker's [`super::hbm::Hbm`] reads and writes; the device's thread maps and unmaps. That is sound as
//! long as no command that names a window is submitted and unfinished while its pages change, which the callers of
//! [`Mapping::map`] and [`Mapping::unmap`] see to. Two windows onto one handle are one memory: what a command that names both
//! reads is up to the order of its accesses, and nothing else.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use crate::extents::Extents;
use crate::interface::PAGE_BYTES;

/// An address range of this process.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    memory: usize,
    span: usize,
    /// Pages of physical handles; `None` without an aperture.
    handles: Option<OwnedFd>,
    /// What is mapped in the aperture, as offsets.
    mapped: Mutex<Extents>,
}

// SAFETY: the value only owns an address range; who may touch its bytes when is the module's ownership rule.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods make system calls, which the kernel orders.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `memory` bytes of zeros and `aperture` bytes without access; `memory` is a multiple of the host's page, and of
    /// [`PAGE_BYTES`] where there is an aperture.
    ///
    /// # Errors
    /// What the system says, where so much address space cannot be had.
    pub fn new(memory: usize, aperture: usize) -> std::io::Result<Self> {
        let span = memory.checked_add(aperture).ok_or_else(|| std::io::Error::other("more than the address space"))?;
        let handles = match aperture {
            0 => None,
            _ => {
                let file = memfd_create("vnpu-handles", MemfdFlags::CLOEXEC)?;
                ftruncate(&file, memory as u64)?;
                Some(file)
            }
        };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses; it aliases nothing.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), span, ProtFlags::empty(), flags) }?;
        let this = Self { base: base.cast(), memory, span, handles, mapped: Mutex::default() };
        // SAFETY: the start of the mapping made just now, which nobody has seen yet.
        unsafe { mprotect(base, memory, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Ok(this)
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes of ordinary memory.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes of memory and aperture.
    pub fn span(&self) -> usize {
        self.span
    }

    /// Makes `len` bytes of the handle file, from `from` on, appear at `offset`. No unfinished command may name the target.
    ///
    /// # Errors
    /// What the system says; the target then has no access, as before.
    ///
    /// # Panics
    /// If the target is not inside the aperture or not page by page: a bug of the caller.
    pub fn map(&self, offset: usize, from: u64, len: usize) -> std::io::Result<()> {
        let at = self.window(offset, len);
        let file = self.handles.as_ref().expect("an aperture has a file");
        assert!(from.is_multiple_of(PAGE_BYTES) && from + len as u64 <= self.memory as u64);
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: replaces pages of our own aperture (checked by `window`) that no unfinished command names; the file is
        // longer than what is mapped and is never shortened, so no access can fault.
        unsafe { mmap(at.cast(), len, rights, flags, file, from) }?;
        self.mapped().insert(offset as u64, (offset + len) as u64);
        Ok(())
    }

    /// True if `offset..offset + len` lies wholly in memory, or wholly in one stretch of the aperture where something is
    /// mapped.
    pub fn is_accessible(&self, offset: usize, len: usize) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        end <= self.memory || self.mapped().holds(offset as u64, end as u64)
    }

    fn mapped(&self) -> MutexGuard<'_, Extents> {
        // Nothing panics while it holds the lock.
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes access to `len` bytes at `offset` away. No unfinished command may name them.
    ///
    /// # Panics
    /// As [`Mapping::map`].
    pub fn unmap(&self, offset: usize, len: usize) {
        let at = self.window(offset, len);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `map`; the new pages are nobody's.
        // Refused only where it would split one mapping too many: the pages then stay reachable in a range that resolves for
        // nobody, until something else is mapped there.
        let _ = unsafe { mmap_anonymous(at.cast(), len, ProtFlags::empty(), flags) };
        self.mapped().remove(offset as u64, (offset + len) as u64);
    }

    /// Makes `len` bytes of the handle file, from `from` on, zeros that cost nothing.
    pub fn punch(&self, from: u64, len: u64) {
        let file = self.handles.as_ref().expect("an aperture has a file");
        let done = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, len);
        // Files of this kind have known holes since Linux 3.5; a previous owner's bytes must not be seen by the next.
        done.expect("a memory file takes holes");
    }

    fn window(&self, offset: usize, len: usize) -> *mut u8 {
        let page = PAGE_BYTES as usize;
        assert!(offset.is_multiple_of(page) && len.is_multiple_of(page) && len > 0);
        assert!(offset >= self.memory && offset.checked_add(len).is_some_and(|end| end <= self.span));
        self.base.wrapping_add(offset)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, unmapped once; whoever reaches its bytes holds a reference to `self`.
        let _ = unsafe { munmap(self.base.cast(), self.span) };
    }
}
