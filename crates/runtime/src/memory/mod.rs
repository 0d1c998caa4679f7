//! One session's virtual device memory: which client addresses are allocated and where they lie on the device.
//!
//! A client never sees a physical address. It reserves a range of its own address space and names it when it connects;
//! allocations are handed out of that range here, and every address that a record carries is resolved against the live
//! allocations of the session that sent it.
//!
//! **Invariants**
//! - An access resolves only if it lies wholly inside *one* live allocation, or inside one stretch of a reserved range where
//!   physical handles are mapped without a gap. An unmapped guard of at least [`GUARD_BYTES`] follows each allocation and
//!   each reservation, so the address just past an end is never the start of a neighbour.
//! - A physical block goes back to the device only when it is unmapped *and* no queued or running item holds it:
//!   `unmap` and `unpin` return the block exactly once, whichever comes last. (The end of the session is the exception:
//!   see [`AddressSpace::release_all`].)
//! - Virtual addresses are handed out in rotation: a freed address is reused only after the whole range has been passed
//!   through, so that a use after free is refused rather than landing in a newer allocation.
//!
//! Cost: one ordered-map look-up an operand (one comparison when it hits the block of the operand before it), no
//! allocation in steady state.

use std::collections::BTreeMap;

use device::PhysAddr;

use pages::Handle;
pub use pages::ReserveError;
use reservation::Reservation;

mod pages;
mod reservation;

/// Virtual allocations start at multiples of this: a host page, so that the reservation can be protected in pages.
pub const GRANULE_BYTES: u64 = 4096;

/// Unmapped bytes after each allocation, at least.
pub const GUARD_BYTES: u64 = GRANULE_BYTES;

/// Physical blocks are multiples of this ([`device::Device::alloc`]); what an allocation is charged.
pub const FOOTPRINT_BYTES: u64 = 512;

/// Unit of page-wise memory: sizes and addresses of reservations, handles and mappings. What CANN's huge pages have.
pub const HANDLE_BYTES: u64 = 2 << 20;

/// Names what an access holds while it is mapped or pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockId {
    /// An allocation.
    Block(u32),
    /// What a reservation shows, as of an epoch.
    Reserved {
        /// Reservation.
        slot: u32,
        /// Its epoch; 0 before [`AddressSpace::pin`].
        epoch: u32,
    },
}

/// Where an access lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Block that holds the bytes.
    pub block: BlockId,
    /// Physical address of the first byte.
    pub physical: PhysAddr,
}

/// Why an access is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundsError {
    /// No live allocation holds the address.
    #[error("address {addr:#x} is in no live allocation of this process (never allocated, or freed)")]
    Unmapped {
        /// First byte of the access.
        addr: u64,
    },
    /// The address is reserved, and nothing is mapped there.
    #[error("nothing is mapped at {addr:#x} in the {size} bytes reserved at {start:#x} (never mapped, or unmapped)")]
    Hole {
        /// First byte of the access.
        addr: u64,
        /// Start of the reservation.
        start: u64,
        /// Bytes of the reservation.
        size: u64,
    },
    /// The access starts inside an allocation and ends outside.
    #[error(
        "{len} bytes at {addr:#x} run {} bytes past the end of the {size}-byte allocation at {start:#x}",
        (addr - start).saturating_add(*len).saturating_sub(*size)
    )]
    PastEnd {
        /// First byte of the access.
        addr: u64,
        /// Bytes of the access.
        len: u64,
        /// Start of the allocation.
        start: u64,
        /// Bytes of the allocation.
        size: u64,
    },
}

/// Why a block cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No gap of that size is left in the reserved range.
    #[error("no {size} contiguous bytes are left in the reserved address range of {range} bytes")]
    RangeFull {
        /// Bytes wanted.
        size: u64,
        /// Bytes of the reserved range.
        range: u64,
    },
}

/// What nobody uses any more: give it back to the device, in the order of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is not given back to the device leaks"]
pub enum Released {
    /// An allocation.
    Block(PhysAddr),
    /// A handle's pages at this address of a window.
    Piece(PhysAddr),
    /// A physical handle.
    Handle(PhysAddr),
    /// A window, with whatever is still mapped in it.
    Window(PhysAddr),
}

/// What lies at a start address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Block(u32),
    Reserved(u32),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    size: u64,
    physical: PhysAddr,
    pins: u32,
    mapped: bool,
    /// Back at the device; the slot is vacant.
    retired: bool,
    /// Imported: it counts for another session.
    borrowed: bool,
}

/// Virtual device memory of one session.
#[derive(Debug)]
pub struct AddressSpace {
    base: u64,
    end: u64,
    /// Where the search for a gap starts.
    cursor: u64,
    /// Live allocations and reservations by start.
    mapped: BTreeMap<u64, Taken>,
    blocks: Vec<Block>,
    vacant: Vec<u32>,
    last_hit: Option<u32>,
    reservations: Vec<Option<Reservation>>,
    reserved: usize,
    pieces: usize,
    /// Pieces that are unmapped and still used by work in flight.
    draining: usize,
    /// The mapped stretch that was hit last: start, end, reservation.
    last_stretch: Option<(u64, u64, u32)>,
    handles: BTreeMap<u64, Handle>,
    next_handle: u64,
    held_bytes: u64,
    unmapped_bytes: u64,
    peak_bytes: u64,
    /// Changes with every mapping and unmapping.
    version: u64,
}

impl AddressSpace {
    /// Memory in `[base, base + len)`. Both are the client's word: a range that is not usable leaves nothing to map.
    pub fn new(base: u64, len: u64) -> Self {
        let start = base.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX).max(GRANULE_BYTES);
        let end = base.saturating_add(len).max(start);
        Self {
            base: start,
            end,
            cursor: start,
            mapped: BTreeMap::new(),
            blocks: Vec::new(),
            vacant: Vec::new(),
            last_hit: None,
            reservations: Vec::new(),
            reserved: 0,
            pieces: 0,
            draining: 0,
            last_stretch: None,
            handles: BTreeMap::new(),
            next_handle: 1,
            held_bytes: 0,
            unmapped_bytes: 0,
            peak_bytes: 0,
            version: 0,
        }
    }

    /// Bytes of device memory held: mapped, or unmapped and still pinned.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes unmapped whose physical block is still pinned.
    pub fn unmapped_bytes(&self) -> u64 {
        self.unmapped_bytes
    }

    /// True while something that the session gave back is still used by work in flight.
    pub fn is_draining(&self) -> bool {
        self.unmapped_bytes > 0 || self.draining > 0
    }

    /// Most bytes held at once so far.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// Changes whenever an address may resolve otherwise than before.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of live allocations and physical handles.
    pub fn blocks(&self) -> usize {
        self.mapped.len() - self.reserved + self.handles.len()
    }

    /// Number of reserved ranges.
    pub fn reservations(&self) -> usize {
        self.reserved
    }

    /// Number of mapped pieces of physical handles.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// A start address for `size` bytes; nothing is mapped yet.
    ///
    /// # Errors
    /// No gap is large enough.
    pub fn find_gap(&self, size: u64) -> Result<u64, MapError> {
        self.find_gap_aligned(size, GRANULE_BYTES)
    }

    /// [`Self::find_gap`] at a multiple of `align`, a power of two of at least [`GRANULE_BYTES`].
    ///
    /// # Errors
    /// No gap is large enough.
    pub fn find_gap_aligned(&self, size: u64, align: u64) -> Result<u64, MapError> {
        let full = MapError::RangeFull { size, range: self.end - self.base };
        let span = size.checked_next_multiple_of(GRANULE_BYTES).and_then(|s| s.checked_add(GUARD_BYTES)).ok_or(full)?;
        self.gap_from(self.cursor, span, align).or_else(|| self.gap_from(self.base, span, align)).ok_or(full)
    }

    /// First gap of `span` bytes at or after `from`.
    fn gap_from(&self, from: u64, span: u64, align: u64) -> Option<u64> {
        let mut start = from.checked_next_multiple_of(align)?;
        if let Some((_, &taken)) = self.mapped.range(..=start).next_back() {
            start = start.max(self.next_free(taken)).checked_next_multiple_of(align)?;
        }
        for (&next, &taken) in self.mapped.range(start..) {
            if next >= start && next - start >= span {
                break;
            }
            start = self.next_free(taken).checked_next_multiple_of(align)?;
        }
        (start.checked_add(span)? <= self.end).then_some(start)
    }

    fn next_free(&self, taken: Taken) -> u64 {
        let end = match taken {
            Taken::Block(slot) => self.blocks[slot as usize].start + self.blocks[slot as usize].size,
            Taken::Reserved(slot) => self.reservations[slot as usize].as_ref().map_or(0, |r| r.start + r.size),
        };
        end.next_multiple_of(GRANULE_BYTES) + GUARD_BYTES
    }

    /// Maps a physical block of `size` bytes (> 0) at `start`, which [`Self::find_gap`] answered just before.
    pub fn map(&mut self, start: u64, size: u64, physical: PhysAddr) {
        self.map_block(start, size, physical, false);
        self.hold(size);
    }

    /// As [`Self::map`], for a block that counts for another session.
    pub fn borrow(&mut self, start: u64, size: u64, physical: PhysAddr) {
        self.map_block(start, size, physical, true);
    }

    fn map_block(&mut self, start: u64, size: u64, physical: PhysAddr, borrowed: bool) {
        debug_assert!(size > 0 && start.is_multiple_of(GRANULE_BYTES));
        let block = Block { start, size, physical, pins: 0, mapped: true, retired: false, borrowed };
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.blocks[slot as usize] = block;
                slot
            }
            None => {
                self.blocks.push(block);
                (self.blocks.len() - 1) as u32
            }
        };
        let previous = self.mapped.insert(start, Taken::Block(slot));
        assert!(previous.is_none(), "two allocations at {start:#x}");
        self.cursor = self.next_free(Taken::Block(slot));
        self.version += 1;
    }

    /// Memory and bytes of the live allocation that begins at `start`.
    ///
    /// # Errors
    /// None begins there.
    pub fn allocation(&self, start: u64) -> Result<(PhysAddr, u64), BoundsError> {
        match self.mapped.get(&start) {
            Some(&Taken::Block(slot)) => {
                let block = &self.blocks[slot as usize];
                Ok((block.physical, block.size))
            }
            _ => Err(BoundsError::Unmapped { addr: start }),
        }
    }

    /// Counts memory that was borrowed.
    pub fn charge(&mut self, physical: PhysAddr) {
        let blocks = self.blocks.iter_mut().filter(|b| !b.retired).map(|b| (b.physical, b.size, &mut b.borrowed));
        let handles = self.handles.values_mut().map(|h| (h.physical, h.size, &mut h.borrowed));
        let found = blocks.chain(handles).find(|(at, _, borrowed)| *at == physical && **borrowed);
        if let Some((_, size, borrowed)) = found {
            *borrowed = false;
            self.hold(size);
        }
    }

    fn hold(&mut self, size: u64) {
        self.held_bytes += footprint(size);
        self.peak_bytes = self.peak_bytes.max(self.held_bytes);
    }

    /// Unmaps the allocation that starts at `start`: from here on no access resolves to it. `None` as the released
    /// block: pinned work still uses it, and the last [`Self::unpin`] returns it.
    ///
    /// # Errors
    /// `start` is not the start of a live allocation.
    pub fn unmap(&mut self, start: u64) -> Result<Option<Released>, BoundsError> {
        let Some(&Taken::Block(slot)) = self.mapped.get(&start) else {
            return Err(BoundsError::Unmapped { addr: start });
        };
        self.mapped.remove(&start);
        self.version += 1;
        if self.last_hit == Some(slot) {
            self.last_hit = None;
        }
        let block = &mut self.blocks[slot as usize];
        block.mapped = false;
        let size = block.size;
        if block.pins == 0 {
            return Ok(Some(self.retire(slot)));
        }
        self.unmapped_bytes += footprint(size);
        Ok(None)
    }

    /// Takes everything away, mapped or pinned, and leaves the space empty: the session is gone, and what it had queued is
    /// dropped.
    pub fn release_all(&mut self, mut release: impl FnMut(Released)) {
        for block in self.blocks.iter().filter(|b| !b.retired) {
            release(Released::Block(block.physical));
        }
        for reservation in self.reservations.iter().flatten() {
            release(Released::Window(reservation.window));
        }
        for handle in self.handles.values() {
            release(Released::Handle(handle.physical));
        }
        *self = Self {
            peak_bytes: self.peak_bytes,
            next_handle: self.next_handle,
            ..Self::new(self.base, self.end - self.base)
        };
    }

    /// Finds the live allocation, or the stretch of mapped handles, that holds `[addr, addr + len)`.
    ///
    /// # Errors
    /// Nothing that is mapped holds the whole access.
    #[inline]
    pub fn resolve(&mut self, addr: u64, len: u64) -> Result<Resolved, BoundsError> {
        // Mostly the block of the tensor before.
        if let Some((slot, block)) = self.last_hit.map(|slot| (slot, &self.blocks[slot as usize]))
            && block.holds(addr)
            && len <= block.size - (addr - block.start)
        {
            let physical = PhysAddr(block.physical.0 + (addr - block.start));
            return Ok(Resolved { block: BlockId::Block(slot), physical });
        }
        self.resolve_anew(addr, len)
    }

    fn resolve_anew(&mut self, addr: u64, len: u64) -> Result<Resolved, BoundsError> {
        if let Some((start, end, slot)) = self.last_stretch
            && addr >= start
            && addr < end
        {
            return self.resolve_reserved(slot, addr, len, start, end);
        }
        let slot = match self.last_hit {
            Some(slot) if self.blocks[slot as usize].holds(addr) => slot,
            _ => match self.mapped.range(..=addr).next_back() {
                Some((_, &Taken::Block(slot))) if self.blocks[slot as usize].holds(addr) => slot,
                Some((_, &Taken::Reserved(slot))) => {
                    let reservation = self.reservations[slot as usize].as_ref();
                    let inside = reservation.filter(|r| r.holds(addr, 0) && addr < r.start + r.size);
                    let r = inside.ok_or(BoundsError::Unmapped { addr })?;
                    let hole = BoundsError::Hole { addr, start: r.start, size: r.size };
                    let (start, end) = r.stretch(addr).ok_or(hole)?;
                    self.last_stretch = Some((start, end, slot));
                    return self.resolve_reserved(slot, addr, len, start, end);
                }
                _ => return Err(BoundsError::Unmapped { addr }),
            },
        };
        self.last_hit = Some(slot);
        let block = &self.blocks[slot as usize];
        let inside = addr - block.start;
        if len > block.size - inside {
            return Err(BoundsError::PastEnd { addr, len, start: block.start, size: block.size });
        }
        Ok(Resolved { block: BlockId::Block(slot), physical: PhysAddr(block.physical.0 + inside) })
    }

    fn resolve_reserved(&self, slot: u32, addr: u64, len: u64, start: u64, end: u64) -> Result<Resolved, BoundsError> {
        if len > end - addr {
            return Err(BoundsError::PastEnd { addr, len, start, size: end - start });
        }
        let reservation = self.reservations[slot as usize].as_ref().expect("a stretch lies in a reservation");
        Ok(Resolved { block: BlockId::Reserved { slot, epoch: 0 }, physical: reservation.device_addr(addr) })
    }

    /// Keeps what an access resolved to until the matching [`Self::unpin`], which takes the answer.
    pub fn pin(&mut self, block: BlockId) -> BlockId {
        match block {
            BlockId::Block(slot) => {
                self.blocks[slot as usize].pins += 1;
                block
            }
            BlockId::Reserved { slot, .. } => {
                let reservation = self.reservations[slot as usize].as_mut().expect("resolved just now");
                BlockId::Reserved { slot, epoch: reservation.pin() }
            }
        }
    }

    /// Undoes one [`Self::pin`].
    pub fn unpin(&mut self, block: BlockId, mut release: impl FnMut(Released)) {
        match block {
            BlockId::Block(slot) => {
                let entry = &mut self.blocks[slot as usize];
                assert!(entry.pins > 0, "unpinned more often than pinned");
                entry.pins -= 1;
                if !entry.mapped && entry.pins == 0 {
                    self.unmapped_bytes -= footprint(entry.size);
                    release(self.retire(slot));
                }
            }
            BlockId::Reserved { slot, epoch } => {
                self.reservations[slot as usize].as_mut().expect("pinned reservations stay").unpin(epoch);
                self.settle(slot, &mut release);
            }
        }
    }

    fn retire(&mut self, slot: u32) -> Released {
        let block = &mut self.blocks[slot as usize];
        block.retired = true;
        let (size, physical) = (block.size, block.physical);
        if !block.borrowed {
            self.held_bytes -= footprint(size);
        }
        self.vacant.push(slot);
        Released::Block(physical)
    }
}

impl Block {
    fn holds(&self, addr: u64) -> bool {
        self.mapped && addr >= self.start && addr - self.start < self.size
    }
}

/// What `size` bytes are charged.
pub fn footprint(size: u64) -> u64 {
    size.div_ceil(FOOTPRINT_BYTES).saturating_mul(FOOTPRINT_BYTES)
}

#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;
