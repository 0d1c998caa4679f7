//! What this process has on a device: allocations, reserved addresses, and what is mapped in them.
//!
//! A copy of the daemon's list, so that a wrong address is an error at the call that makes it, with text. The daemon has the
//! last word: what slips through here (another thread frees in between) it refuses.

use std::collections::BTreeMap;

use device::Extents;

/// A reserved range.
#[derive(Default)]
struct Reserved {
    size: u64,
    /// Start → bytes.
    pieces: BTreeMap<u64, u64>,
    mapped: Extents,
}

/// Device memory of one session.
#[derive(Default)]
pub struct Space {
    /// Live allocations: start → bytes asked for.
    allocations: BTreeMap<u64, u64>,
    reservations: BTreeMap<u64, Reserved>,
}

impl Space {
    /// Notes an allocation.
    pub fn allocated(&mut self, addr: u64, size: u64) {
        self.allocations.insert(addr, size);
    }

    /// Forgets an allocation; false if none begins there.
    pub fn freed(&mut self, addr: u64) -> bool {
        self.allocations.remove(&addr).is_some()
    }

    /// Notes a reserved range.
    pub fn reserved(&mut self, addr: u64, size: u64) {
        self.reservations.insert(addr, Reserved { size, ..Reserved::default() });
    }

    /// Forgets a reserved range.
    pub fn released(&mut self, addr: u64) {
        self.reservations.remove(&addr);
    }

    /// Notes a mapping in a reserved range.
    pub fn mapped(&mut self, addr: u64, size: u64) {
        if let Some((_, reserved)) = self.reservations.range_mut(..=addr).next_back() {
            reserved.pieces.insert(addr, size);
            reserved.mapped.insert(addr, addr + size);
        }
    }

    /// Forgets a mapping.
    pub fn unmapped(&mut self, addr: u64) {
        if let Some((_, reserved)) = self.reservations.range_mut(..=addr).next_back()
            && let Some(size) = reserved.pieces.remove(&addr)
        {
            reserved.mapped.remove(addr, addr + size);
        }
    }

    /// Start and size of the live allocation, or of the stretch of mapped memory, that holds `addr`.
    pub fn holder(&self, addr: u64) -> Option<(u64, u64)> {
        if let Some((&start, &size)) = self.allocations.range(..=addr).next_back()
            // An empty allocation holds its own address.
            && addr - start < size.max(1)
        {
            return Some((start, size));
        }
        let (_, reserved) = self.reservations.range(..=addr).next_back()?;
        let (start, end) = reserved.mapped.stretch(addr)?;
        Some((start, end - start))
    }

    /// Why `addr` belongs to nothing that can be accessed.
    pub fn why_not(&self, addr: u64) -> String {
        let reserved = self.reservations.range(..=addr).next_back();
        match reserved.filter(|(start, r)| addr - **start < r.size) {
            Some((start, r)) => {
                format!("{addr:#x} is in the {} bytes reserved at {start:#x}, where nothing is mapped", r.size)
            }
            None => format!("{addr:#x} is in no live device allocation of this process"),
        }
    }

    /// True if a reserved range begins at `addr`.
    pub fn is_reservation(&self, addr: u64) -> bool {
        self.reservations.contains_key(&addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_its_allocation_or_to_what_is_mapped_without_a_gap() {
        let mut space = Space::default();
        space.allocated(0x1000, 100);
        space.reserved(0x10_0000, 0x10_0000);
        space.mapped(0x12_0000, 0x1_0000);
        space.mapped(0x13_0000, 0x1_0000);
        space.mapped(0x15_0000, 0x1_0000);
        assert_eq!(space.holder(0x1000 + 99), Some((0x1000, 100)));
        assert_eq!(space.holder(0x1000 + 100), None);
        assert_eq!(space.holder(0x13_5000), Some((0x12_0000, 0x2_0000)));
        assert!(space.why_not(0x14_0000).contains("nothing is mapped"));
        assert!(space.why_not(0x20_0000).contains("in no live device allocation"));
        space.unmapped(0x12_0000);
        assert_eq!((space.holder(0x12_0000), space.holder(0x13_0000)), (None, Some((0x13_0000, 0x1_0000))));
        assert!(space.freed(0x1000) && !space.freed(0x1000));
        space.released(0x10_0000);
        assert_eq!(space.holder(0x15_0000), None);
    }
}
