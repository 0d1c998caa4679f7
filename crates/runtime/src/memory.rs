//! One session's virtual device memory: which client addresses are allocated and where they lie on the device.
//!
//! A client never sees a physical address. It reserves a range of its own address space and names it when it connects;
//! allocations are handed out of that range here, and every address that a record carries is resolved against the live
//! allocations of the session that sent it.
//!
//! **Invariants**
//! - An access resolves only if it lies wholly inside *one* live allocation. An unmapped guard of at least
//!   [`GUARD_BYTES`] follows each allocation, so the address just past an end is never the start of a neighbour.
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

/// Virtual allocations start at multiples of this: a host page, so that the reservation can be protected in pages.
pub const GRANULE_BYTES: u64 = 4096;

/// Unmapped bytes after each allocation, at least.
pub const GUARD_BYTES: u64 = GRANULE_BYTES;

/// Physical blocks are multiples of this ([`device::Device::alloc`]); what an allocation is charged.
pub const FOOTPRINT_BYTES: u64 = 512;

/// Names a block while it is mapped or pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockId(u32);

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

/// A physical block that nobody uses any more: give it back to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a block that is not given back to the device leaks"]
pub struct Released(pub PhysAddr);

#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    size: u64,
    physical: PhysAddr,
    pins: u32,
    mapped: bool,
    /// Back at the device; the slot is vacant.
    retired: bool,
}

/// Virtual device memory of one session.
#[derive(Debug)]
pub struct AddressSpace {
    base: u64,
    end: u64,
    /// Where the search for a gap starts.
    cursor: u64,
    /// Mapped blocks by start.
    mapped: BTreeMap<u64, u32>,
    blocks: Vec<Block>,
    vacant: Vec<u32>,
    last_hit: Option<u32>,
    held_bytes: u64,
    unmapped_bytes: u64,
    peak_bytes: u64,
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
            held_bytes: 0,
            unmapped_bytes: 0,
            peak_bytes: 0,
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

    /// Most bytes held at once so far.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// Number of mapped blocks.
    pub fn blocks(&self) -> usize {
        self.mapped.len()
    }

    /// A start address for `size` bytes; nothing is mapped yet.
    ///
    /// # Errors
    /// No gap is large enough.
    pub fn find_gap(&self, size: u64) -> Result<u64, MapError> {
        let full = MapError::RangeFull { size, range: self.end - self.base };
        let span = size.checked_next_multiple_of(GRANULE_BYTES).and_then(|s| s.checked_add(GUARD_BYTES)).ok_or(full)?;
        self.gap_from(self.cursor, span).or_else(|| self.gap_from(self.base, span)).ok_or(full)
    }

    /// First gap of `span` bytes at or after `from`.
    fn gap_from(&self, from: u64, span: u64) -> Option<u64> {
        let mut start = from;
        if let Some((_, &slot)) = self.mapped.range(..=from).next_back() {
            start = start.max(next_free(&self.blocks[slot as usize]));
        }
        for (&next, &slot) in self.mapped.range(start..) {
            if next - start >= span {
                break;
            }
            start = next_free(&self.blocks[slot as usize]);
        }
        (start.checked_add(span)? <= self.end).then_some(start)
    }

    /// Maps a physical block of `size` bytes (> 0) at `start`, which [`Self::find_gap`] answered just before.
    pub fn map(&mut self, start: u64, size: u64, physical: PhysAddr) {
        debug_assert!(size > 0 && start.is_multiple_of(GRANULE_BYTES));
        let block = Block { start, size, physical, pins: 0, mapped: true, retired: false };
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
        let previous = self.mapped.insert(start, slot);
        assert!(previous.is_none(), "two allocations at {start:#x}");
        self.cursor = next_free(&block);
        self.held_bytes += footprint(size);
        self.peak_bytes = self.peak_bytes.max(self.held_bytes);
    }

    /// Unmaps the allocation that starts at `start`: from here on no access resolves to it. `None` as the released
    /// block: pinned work still uses it, and the last [`Self::unpin`] returns it.
    ///
    /// # Errors
    /// `start` is not the start of a live allocation.
    pub fn unmap(&mut self, start: u64) -> Result<Option<Released>, BoundsError> {
        let slot = self.mapped.remove(&start).ok_or(BoundsError::Unmapped { addr: start })?;
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

    /// Takes every block away, mapped or pinned, and leaves the space empty: the session is gone, and what it had queued is
    /// dropped.
    pub fn release_all(&mut self, mut release: impl FnMut(Released)) {
        for block in self.blocks.iter().filter(|b| !b.retired) {
            release(Released(block.physical));
        }
        self.mapped.clear();
        self.blocks.clear();
        self.vacant.clear();
        self.last_hit = None;
        (self.held_bytes, self.unmapped_bytes) = (0, 0);
    }

    /// Finds the one live allocation that holds `[addr, addr + len)`.
    ///
    /// # Errors
    /// No live allocation holds the whole access.
    pub fn resolve(&mut self, addr: u64, len: u64) -> Result<Resolved, BoundsError> {
        let slot = match self.last_hit {
            Some(slot) if self.blocks[slot as usize].holds(addr) => slot,
            _ => {
                let found = self.mapped.range(..=addr).next_back().map(|(_, &slot)| slot);
                found.filter(|&s| self.blocks[s as usize].holds(addr)).ok_or(BoundsError::Unmapped { addr })?
            }
        };
        self.last_hit = Some(slot);
        let block = &self.blocks[slot as usize];
        let inside = addr - block.start;
        if len > block.size - inside {
            return Err(BoundsError::PastEnd { addr, len, start: block.start, size: block.size });
        }
        Ok(Resolved { block: BlockId(slot), physical: PhysAddr(block.physical.0 + inside) })
    }

    /// Keeps the physical block alive until the matching [`Self::unpin`].
    pub fn pin(&mut self, block: BlockId) {
        self.blocks[block.0 as usize].pins += 1;
    }

    /// Undoes one [`Self::pin`].
    pub fn unpin(&mut self, block: BlockId) -> Option<Released> {
        let entry = &mut self.blocks[block.0 as usize];
        assert!(entry.pins > 0, "unpinned more often than pinned");
        entry.pins -= 1;
        if entry.mapped || entry.pins > 0 {
            return None;
        }
        self.unmapped_bytes -= footprint(entry.size);
        Some(self.retire(block.0))
    }

    fn retire(&mut self, slot: u32) -> Released {
        let block = &mut self.blocks[slot as usize];
        block.retired = true;
        let (size, physical) = (block.size, block.physical);
        self.held_bytes -= footprint(size);
        self.vacant.push(slot);
        Released(physical)
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

fn next_free(block: &Block) -> u64 {
    (block.start + block.size).next_multiple_of(GRANULE_BYTES) + GUARD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 1 << 40;

    fn map(space: &mut AddressSpace, size: u64, physical: u64) -> u64 {
        let start = space.find_gap(size).unwrap();
        space.map(start, size, PhysAddr(physical));
        start
    }

    #[test]
    fn an_access_must_lie_inside_one_live_allocation() {
        let mut space = AddressSpace::new(BASE, 1 << 30);
        let a = map(&mut space, 1000, 0x10_0000);
        let b = map(&mut space, 1000, 0x20_0000);
        let table: &[(&str, u64, u64, Result<u64, &str>)] = &[
            ("whole", a, 1000, Ok(0x10_0000)),
            ("inside", a + 10, 20, Ok(0x10_000a)),
            ("last byte", b + 999, 1, Ok(0x20_03e7)),
            ("one past the end", a, 1001, Err("run 1 bytes past")),
            ("starts at the end", a + 1000, 1, Err("no live allocation")),
            ("into the neighbour", a, b - a + 1, Err("past the end")),
            ("length that wraps", a + 1, u64::MAX, Err("past the end")),
            ("before the range", BASE - 1, 1, Err("no live allocation")),
            ("null", 0, 8, Err("no live allocation")),
            ("top of the address space", u64::MAX, u64::MAX, Err("no live allocation")),
        ];
        for (name, addr, len, want) in table {
            match (space.resolve(*addr, *len), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.physical, PhysAddr(*want), "{name}"),
                (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn freed_memory_is_unmapped_at_once_and_released_after_its_last_use() {
        let mut space = AddressSpace::new(BASE, 1 << 30);
        let a = map(&mut space, 512, 0x1000);
        let block = space.resolve(a, 512).unwrap().block;
        space.pin(block);
        space.pin(block);
        assert_eq!(space.unmap(a), Ok(None));
        assert!(space.resolve(a, 1).is_err());
        assert_eq!(space.unmapped_bytes(), 512);
        assert_eq!(space.unpin(block), None);
        assert_eq!(space.unpin(block), Some(Released(PhysAddr(0x1000))));
        assert_eq!((space.held_bytes(), space.unmapped_bytes()), (0, 0));
        assert_eq!(space.unmap(a), Err(BoundsError::Unmapped { addr: a }), "a second free is refused");
    }

    #[test]
    fn freed_addresses_are_reused_only_after_the_range_was_passed() {
        let mut space = AddressSpace::new(BASE, 4 * (GRANULE_BYTES + GUARD_BYTES));
        let first = map(&mut space, GRANULE_BYTES, 0);
        assert!(space.unmap(first).unwrap().is_some());
        let others: Vec<u64> = (0..3).map(|_| map(&mut space, GRANULE_BYTES, 0)).collect();
        assert!(!others.contains(&first));
        assert_eq!(map(&mut space, GRANULE_BYTES, 0), first, "wrapped around");
        assert!(matches!(space.find_gap(1), Err(MapError::RangeFull { size: 1, .. })));
        assert!(space.find_gap(u64::MAX).is_err());
    }

    #[test]
    fn a_hostile_range_maps_nothing() {
        for (base, len) in [(0, 0), (u64::MAX, u64::MAX), (u64::MAX - 10, 5), (BASE, 1)] {
            assert!(AddressSpace::new(base, len).find_gap(1).is_err(), "{base:#x}+{len:#x}");
        }
    }

    proptest! {
        #[test]
        fn live_allocations_never_overlap_and_every_block_comes_back_once(
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), 1u64..20_000), 1..200)
        ) {
            let mut space = AddressSpace::new(BASE, 1 << 19);
            let mut live: Vec<(u64, u64, u64)> = Vec::new();
            let mut pinned: Vec<(BlockId, u64)> = Vec::new();
            let (mut made, mut returned) = (0u64, std::collections::BTreeSet::new());
            for (what, index, size) in steps {
                match what {
                    0 | 1 => if let Ok(start) = space.find_gap(size) {
                        for &(s, n, _) in &live {
                            prop_assert!(start > s + n || s > start + size);
                        }
                        space.map(start, size, PhysAddr(made << 32));
                        live.push((start, size, made << 32));
                        made += 1;
                    },
                    2 => if !live.is_empty() {
                        let (start, _, physical) = live.swap_remove(index.index(live.len()));
                        match space.unmap(start).unwrap() {
                            Some(r) => { prop_assert_eq!(r, Released(PhysAddr(physical))); prop_assert!(returned.insert(physical)); }
                            None => prop_assert!(pinned.iter().any(|p| p.1 == physical)),
                        }
                    },
                    _ => if !pinned.is_empty() && size % 2 == 0 {
                        let (block, physical) = pinned.swap_remove(index.index(pinned.len()));
                        if let Some(r) = space.unpin(block) {
                            prop_assert_eq!(r, Released(PhysAddr(physical)));
                            prop_assert!(returned.insert(physical));
                        }
                    } else if !live.is_empty() {
                        let (start, size, physical) = live[index.index(live.len())];
                        let got = space.resolve(start + size - 1, 1).unwrap();
                        prop_assert_eq!(got.physical, PhysAddr(physical + size - 1));
                        space.pin(got.block);
                        pinned.push((got.block, physical));
                    },
                }
            }
            space.release_all(|r| assert!(returned.insert(r.0.0)));
            prop_assert_eq!(returned.len() as u64, made);
            prop_assert_eq!((space.held_bytes(), space.unmapped_bytes()), (0, 0));
        }
    }
}
