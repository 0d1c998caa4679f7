//! Pinned host memory that did not fit into a session's arena.
//!
//! `aclrtMallocHost` serves from the shared arena, so that copies from there move no bytes twice. When the arena is full the
//! caller gets ordinary memory instead: copies of it take the pageable path, which is slower and otherwise the same.

use std::collections::BTreeMap;
use std::sync::Mutex;

use acl_abi::values as acl;

use crate::error::Failure;
use crate::handle::lock;

/// What AscendCL aligns pinned memory to, and what clients rely on.
const ALIGN: usize = 4096;
/// Blocks alive at once.
pub const BLOCKS_MAX: usize = 65_536;

/// Live blocks by address.
#[derive(Default)]
pub struct HostBlocks(Mutex<BTreeMap<usize, usize>>);

impl HostBlocks {
    /// A block of at least `size` bytes.
    ///
    /// # Errors
    /// `ACL_ERROR_RT_MEMORY_ALLOCATION`: no memory, or [`BLOCKS_MAX`].
    pub fn alloc(&self, size: usize) -> Result<*mut u8, Failure> {
        let full = |why: String| Failure::new(acl::ACL_ERROR_RT_MEMORY_ALLOCATION, why);
        let mut blocks = lock(&self.0);
        if blocks.len() >= BLOCKS_MAX {
            return Err(full(format!("{BLOCKS_MAX} host blocks are alive; free some")));
        }
        let mut block = std::ptr::null_mut();
        // SAFETY: `block` is a place for the result; the alignment is a power of two and a multiple of a pointer's size.
        let status = unsafe { libc::posix_memalign(&mut block, ALIGN, size) };
        if status != 0 {
            return Err(full(format!("no host memory for {size} bytes")));
        }
        blocks.insert(block.addr(), size);
        Ok(block.cast())
    }

    /// Frees a block; false if `block` is not one.
    pub fn free(&self, block: *mut u8) -> bool {
        if lock(&self.0).remove(&block.addr()).is_none() {
            return false;
        }
        // SAFETY: `block` came from `posix_memalign` in `alloc` and was removed from the list, so this is its only free.
        unsafe { libc::free(block.cast()) };
        true
    }

    /// True if `addr` lies in a live block.
    pub fn contains(&self, addr: usize) -> bool {
        lock(&self.0).range(..=addr).next_back().is_some_and(|(&start, &size)| addr - start < size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_freed_once() {
        let blocks = HostBlocks::default();
        let block = blocks.alloc(100).unwrap();
        assert_eq!(block.addr() % ALIGN, 0);
        assert!(blocks.contains(block.addr() + 99) && !blocks.contains(block.addr() + 100));
        assert!(!blocks.free(block.wrapping_add(1)));
        assert!(blocks.free(block));
        assert!(!blocks.free(block));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let failure = HostBlocks::default().alloc(isize::MAX as usize).unwrap_err();
        assert_eq!(failure.code, 207_001);
    }
}
