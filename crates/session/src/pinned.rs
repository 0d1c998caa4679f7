//! Allocator of pinned host memory inside the arena: first fit over free ranges, merged when freed.
//!
//! Pure bookkeeping over offsets. It lives in the client, so its answers are no security boundary: the server checks every
//! range against the arena itself.

use std::collections::BTreeMap;

/// Most live allocations; applications pin a few large buffers and reuse them.
pub const PINNED_ALLOCATIONS_MAX: usize = 65_536;

/// Alignment of every allocation: a cache line pair, and enough for any vector type.
const ALIGN: u64 = 256;

/// Offsets `start..start + len`, free and used.
#[derive(Debug)]
pub(crate) struct Pinned {
    free: BTreeMap<u64, u64>,
    used: BTreeMap<u64, u64>,
}

impl Pinned {
    /// Everything from `start` to `end` is free; `start` is a multiple of [`ALIGN`].
    pub(crate) fn new(start: u64, end: u64) -> Self {
        debug_assert!(start.is_multiple_of(ALIGN));
        let free = if start < end { BTreeMap::from([(start, end - start)]) } else { BTreeMap::new() };
        Self { free, used: BTreeMap::new() }
    }

    /// Offset of `len` bytes; zero bytes take [`ALIGN`] so that every allocation has its own address.
    pub(crate) fn alloc(&mut self, len: u64) -> Option<u64> {
        if self.used.len() >= PINNED_ALLOCATIONS_MAX {
            return None;
        }
        let len = len.max(1).checked_next_multiple_of(ALIGN)?;
        let (&start, &room) = self.free.iter().find(|&(_, &room)| room >= len)?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        self.used.insert(start, len);
        Some(start)
    }

    /// Frees the allocation that starts at `start`; false if there is none.
    pub(crate) fn free(&mut self, start: u64) -> bool {
        let Some(mut len) = self.used.remove(&start) else { return false };
        let mut from = start;
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before + room == start
        {
            self.free.remove(&before);
            from = before;
            len += room;
        }
        self.free.insert(from, len);
        true
    }

    /// True if `start..start + len` lies in one allocation.
    pub(crate) fn contains(&self, start: u64, len: u64) -> bool {
        let Some((&base, &room)) = self.used.range(..=start).next_back() else { return false };
        start - base <= room && len <= room - (start - base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_merge() {
        let mut p = Pinned::new(4096, 4096 + 3 * ALIGN);
        let [a, b, c] = std::array::from_fn(|_| p.alloc(ALIGN).unwrap());
        assert_eq!(p.alloc(1), None);
        assert!(p.free(a) && p.free(c) && p.free(b));
        assert!(!p.free(b), "a second free is refused");
        assert_eq!(p.alloc(3 * ALIGN), Some(4096));
    }

    #[test]
    fn number_of_allocations_is_bounded() {
        let mut p = Pinned::new(0, u64::MAX / 2);
        for _ in 0..PINNED_ALLOCATIONS_MAX {
            p.alloc(1).unwrap();
        }
        assert_eq!(p.alloc(1), None);
    }

    #[test]
    fn ranges_are_inside_one_allocation() {
        let mut p = Pinned::new(0, 10 * ALIGN);
        let (a, b) = (p.alloc(300).unwrap(), p.alloc(10).unwrap());
        assert!(p.contains(a, 300) && p.contains(a + 299, 1) && p.contains(b, 10));
        assert!(!p.contains(a, b - a + 1), "two neighbours are not one range");
        assert!(!p.contains(b + ALIGN, 1) && !p.contains(u64::MAX, 1) && !p.contains(b, u64::MAX));
    }

    proptest! {
        #[test]
        fn allocations_never_overlap_and_nothing_leaks(steps in prop::collection::vec((any::<bool>(), 0u64..5000), 1..200)) {
            let end = 64 * 1024;
            let mut p = Pinned::new(1024, end);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (allocate, n) in steps {
                if allocate {
                    if let Some(at) = p.alloc(n) {
                        prop_assert!(at % ALIGN == 0 && at >= 1024 && at + n <= end);
                        prop_assert!(live.iter().all(|&(s, l)| at + n.max(1) <= s || s + l.max(1) <= at));
                        live.push((at, n));
                    }
                } else if !live.is_empty() {
                    let (at, _) = live.swap_remove(n as usize % live.len());
                    prop_assert!(p.free(at));
                }
            }
            for (at, _) in live {
                prop_assert!(p.free(at));
            }
            prop_assert_eq!(p.alloc(end - 1024), Some(1024));
        }
    }
}
