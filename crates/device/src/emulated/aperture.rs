//! Page-wise memory: handles, and the windows that they are mapped into. Bookkeeping; [`super::mapping`] has the pages.
//!
//! A window is a range of the aperture that belongs to one reservation of one client, as long as that reservation, so that
//! whatever is mapped into it side by side is one contiguous range for a kernel. Windows cost address space only: the
//! aperture is far larger than the device.
//!
//! **Invariant:** the range of a window is handed out again only when the worker is through with everything that was
//! submitted before the window was released.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::DeviceError;
use crate::extents::Extents;
use crate::interface::{PAGE_BYTES, PhysAddr};

use super::hbm::PHYS_BASE;
use super::mapping::Mapping;
use super::memory::Ranges;

/// Addresses for windows: 256 reservations of a 64 GiB device's allocator (1.125 × its memory each), in a 47-bit address
/// space that direct mode shares with the application. Halved while the system refuses.
pub const APERTURE_BYTES: u64 = 16 << 40;
/// Less is not worth having.
pub const APERTURE_BYTES_MIN: u64 = 64 << 30;
/// Mapped pieces of all windows at once: each may cost the host two of a process's 65,530 mappings, itself and a gap.
pub const PIECES_MAX: usize = 16_384;

/// Ranges that the worker has unmapped.
pub type Unmapped = Arc<Mutex<Vec<u64>>>;

/// Windows of a device.
pub struct Aperture {
    /// Offset of the first byte in the device's address range.
    start: u64,
    ranges: Ranges,
    /// Live windows by start (in the aperture): length, and mapped pieces (start in the aperture → length).
    windows: BTreeMap<u64, (u64, BTreeMap<u64, u64>)>,
    pieces: usize,
    unmapped: Unmapped,
    /// The pages; where nothing is computed, only where they would be.
    mapping: Result<Arc<Mapping>, Extents>,
}

impl Aperture {
    /// An aperture of `bytes` bytes behind `start` bytes of memory.
    pub fn new(start: u64, bytes: u64, mapping: Option<Arc<Mapping>>) -> Self {
        debug_assert!(start.is_multiple_of(PAGE_BYTES));
        Self {
            start,
            ranges: Ranges::new(bytes),
            windows: BTreeMap::new(),
            pieces: 0,
            unmapped: Unmapped::default(),
            mapping: mapping.ok_or_else(Extents::default),
        }
    }

    /// True if all of `len` bytes at `offset` of the device's address range are mapped.
    pub fn is_mapped(&self, offset: u64, len: u64) -> bool {
        match &self.mapping {
            Ok(mapping) => mapping.is_accessible(offset as usize, len as usize),
            Err(extents) => offset.checked_add(len).is_some_and(|end| extents.holds(offset, end)),
        }
    }

    /// Where the worker notes what it has unmapped.
    pub fn unmapped(&self) -> Unmapped {
        self.unmapped.clone()
    }

    fn addr(&self, at: u64) -> PhysAddr {
        PhysAddr(PHYS_BASE + self.start + at)
    }

    fn at(&self, addr: PhysAddr) -> u64 {
        addr.0.wrapping_sub(PHYS_BASE + self.start)
    }

    /// A window of `bytes`, rounded up to [`PAGE_BYTES`].
    ///
    /// # Errors
    /// No addresses are left.
    pub fn reserve(&mut self, bytes: u64) -> Result<PhysAddr, DeviceError> {
        for start in self.unmapped.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.ranges.release(start);
        }
        let len = bytes.max(1).checked_next_multiple_of(PAGE_BYTES);
        let found = len.and_then(|len| self.ranges.alloc_aligned(len, PAGE_BYTES).ok().map(|start| (start, len)));
        let (start, len) =
            found.ok_or(DeviceError::OutOfAddresses { wanted: bytes, free: self.ranges.free_bytes() })?;
        self.windows.insert(start, (len, BTreeMap::new()));
        Ok(self.addr(start))
    }

    /// Maps `bytes` bytes of the handle file, from `from` on, at `addr`.
    ///
    /// # Errors
    /// [`PIECES_MAX`], or the system's refusal.
    ///
    /// # Panics
    /// If the target is not an unmapped part of one window: a bug of the caller.
    pub fn map(&mut self, addr: PhysAddr, from: u64, bytes: u64) -> Result<(), DeviceError> {
        let at = self.at(addr);
        let (&start, (len, pieces)) = self.windows.range_mut(..=at).next_back().expect("a window holds the target");
        assert!(at - start + bytes <= *len, "mapped past the end of a window");
        let before = pieces.range(..at + bytes).next_back();
        assert!(before.is_none_or(|(&p, &n)| p + n <= at), "mapped twice at {:#x}", addr.0);
        let refused = |reason: String| DeviceError::Map { bytes, reason };
        if self.pieces >= PIECES_MAX {
            return Err(refused(format!("{PIECES_MAX} pieces are mapped, the most allowed")));
        }
        let offset = self.start + at;
        match &mut self.mapping {
            Ok(mapping) => {
                mapping.map(offset as usize, from, bytes as usize).map_err(|e| refused(e.to_string()))?;
            }
            Err(extents) => extents.insert(offset, offset + bytes),
        }
        pieces.insert(at, bytes);
        self.pieces += 1;
        Ok(())
    }

    /// Undoes one [`Aperture::map`].
    ///
    /// # Panics
    /// If nothing was mapped there: a bug of the caller.
    pub fn unmap(&mut self, addr: PhysAddr) {
        let at = self.at(addr);
        let (_, (_, pieces)) = self.windows.range_mut(..=at).next_back().expect("a window holds the piece");
        let bytes = pieces.remove(&at).expect("a piece begins here");
        self.pieces -= 1;
        let offset = self.start + at;
        match &mut self.mapping {
            Ok(mapping) => mapping.unmap(offset as usize, bytes as usize),
            Err(extents) => extents.remove(offset, offset + bytes),
        }
    }

    /// Forgets a window; answers its place in the device's address range (offset and length) for the worker to unmap, which
    /// then notes [`Aperture::key`]. `None`: nothing is there to unmap, and the range is free again.
    ///
    /// # Panics
    /// If no window begins there: a bug of the caller.
    pub fn release(&mut self, addr: PhysAddr) -> Option<(usize, usize)> {
        let at = self.at(addr);
        let (len, pieces) = self.windows.remove(&at).expect("a window begins here");
        self.pieces -= pieces.len();
        let offset = self.start + at;
        match &mut self.mapping {
            Ok(_) if !pieces.is_empty() => return Some((offset as usize, len as usize)),
            Ok(_) => {}
            Err(extents) => extents.remove(offset, offset + len),
        }
        self.ranges.release(at);
        None
    }

    /// What the worker notes for the range that begins at this offset of the device's address range.
    pub fn key(&self, offset: usize) -> u64 {
        offset as u64 - self.start
    }
}
