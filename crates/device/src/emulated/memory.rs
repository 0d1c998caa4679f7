//! Physical memory bookkeeping: which byte ranges of the device are taken.
//!
//! Best fit over free ranges, merged with their neighbours as soon as they are freed. Every range starts and ends at a
//! multiple of [`GRANULE_BYTES`], as on the real device, so that any element type is aligned. Pure: offsets from 0,
//! nothing is mapped or touched here.
//!
//! **Invariant:** live and free ranges partition `[0, total)`, and no two free ranges touch. Cost of either call:
//! O(log n) in the number of ranges.

use std::collections::{BTreeMap, BTreeSet};

/// Size and alignment of every range, in bytes.
pub const GRANULE_BYTES: u64 = 512;

/// A device's memory.
#[derive(Debug)]
pub struct Ranges {
    total: u64,
    free_bytes: u64,
    /// Free ranges: start → length.
    free: BTreeMap<u64, u64>,
    /// The same ranges as (length, start), for best fit.
    by_len: BTreeSet<(u64, u64)>,
    /// Live ranges: start → length.
    live: BTreeMap<u64, u64>,
}

/// No free range was large enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Bytes wanted, rounded up.
    pub wanted: u64,
    /// Free bytes in all.
    pub free: u64,
    /// Bytes of the largest free range.
    pub largest: u64,
}

impl Ranges {
    /// `total` bytes, rounded down to the granule, all free.
    pub fn new(total: u64) -> Self {
        let total = total / GRANULE_BYTES * GRANULE_BYTES;
        let mut ranges =
            Self { total, free_bytes: 0, free: BTreeMap::new(), by_len: BTreeSet::new(), live: BTreeMap::new() };
        if total > 0 {
            ranges.insert_free(0, total);
        }
        ranges
    }

    /// Takes the smallest free range that holds `bytes` (0 takes one granule) and answers its start.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, Exhausted> {
        let exhausted = |ranges: &Self, wanted| Exhausted {
            wanted,
            free: ranges.free_bytes,
            largest: ranges.by_len.last().map_or(0, |&(len, _)| len),
        };
        let Some(len) = bytes.max(1).checked_next_multiple_of(GRANULE_BYTES) else {
            return Err(exhausted(self, bytes));
        };
        let Some(&(found, start)) = self.by_len.range((len, 0)..).next() else {
            return Err(exhausted(self, len));
        };
        self.remove_free(start, found);
        if found > len {
            self.insert_free(start + len, found - len);
        }
        self.live.insert(start, len);
        Ok(start)
    }

    /// As [`Ranges::alloc`], at a multiple of `align`, which is a power of two of at least [`GRANULE_BYTES`].
    pub fn alloc_aligned(&mut self, bytes: u64, align: u64) -> Result<u64, Exhausted> {
        let exhausted = |ranges: &Self, wanted| Exhausted {
            wanted,
            free: ranges.free_bytes,
            largest: ranges.by_len.last().map_or(0, |&(len, _)| len),
        };
        let Some(len) = bytes.max(1).checked_next_multiple_of(GRANULE_BYTES) else {
            return Err(exhausted(self, bytes));
        };
        // From `len + align` on every range fits, so few are looked at in vain unless memory is badly cut up.
        let fit = self.by_len.range((len, 0)..).find_map(|&(found, start)| {
            let aligned = start.checked_next_multiple_of(align)?;
            (aligned - start <= found - len).then_some((start, found, aligned))
        });
        let Some((start, found, aligned)) = fit else { return Err(exhausted(self, len)) };
        self.remove_free(start, found);
        if aligned > start {
            self.insert_free(start, aligned - start);
        }
        let rest = start + found - (aligned + len);
        if rest > 0 {
            self.insert_free(aligned + len, rest);
        }
        self.live.insert(aligned, len);
        Ok(aligned)
    }

    /// Gives back the live range that starts at `start` and answers its length; `None` if there is none.
    pub fn release(&mut self, start: u64) -> Option<u64> {
        let len = self.live.remove(&start)?;
        let (mut free_start, mut free_len) = (start, len);
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.remove_free(before, before_len);
            free_start = before;
            free_len += before_len;
        }
        if let Some(&after_len) = self.free.get(&(start + len)) {
            self.remove_free(start + len, after_len);
            free_len += after_len;
        }
        self.insert_free(free_start, free_len);
        Some(len)
    }

    /// Bytes that are free, in however many pieces.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Bytes in all.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    fn insert_free(&mut self, start: u64, len: u64) {
        self.free.insert(start, len);
        self.by_len.insert((len, start));
        self.free_bytes += len;
    }

    fn remove_free(&mut self, start: u64, len: u64) {
        self.free.remove(&start);
        self.by_len.remove(&(len, start));
        self.free_bytes -= len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exhausted_memory_says_how_much_is_left() {
        let mut ranges = Ranges::new(4 * GRANULE_BYTES + 100);
        assert_eq!(ranges.total_bytes(), 2048);
        let starts: Vec<_> = (0..4).map(|_| ranges.alloc(1).unwrap()).collect();
        assert_eq!(starts, [0, 512, 1024, 1536]);
        assert_eq!(ranges.alloc(0), Err(Exhausted { wanted: 512, free: 0, largest: 0 }));
        ranges.release(0);
        ranges.release(1024);
        assert_eq!(ranges.alloc(513), Err(Exhausted { wanted: 1024, free: 1024, largest: 512 }));
        assert_eq!(ranges.alloc(u64::MAX), Err(Exhausted { wanted: u64::MAX, free: 1024, largest: 512 }));
        assert_eq!(ranges.release(512), Some(512));
        assert_eq!(ranges.alloc(1536), Ok(0), "the three freed neighbours are one range");
        assert_eq!(ranges.release(512), None, "inside a live range");
    }

    #[test]
    fn the_tightest_hole_is_used() {
        let mut ranges = Ranges::new(1 << 20);
        let a = ranges.alloc(4096).unwrap();
        let _ = ranges.alloc(512).unwrap();
        let b = ranges.alloc(1024).unwrap();
        let _ = ranges.alloc(512).unwrap();
        ranges.release(a);
        ranges.release(b);
        assert_eq!(ranges.alloc(1000), Ok(b));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Random allocations and frees: live ranges never overlap, the sizes add up, a refusal is true, and freeing
        /// everything leaves one range.
        #[test]
        fn ranges_never_overlap_and_always_merge(
            steps in prop::collection::vec((any::<bool>(), 0u64..6000, any::<prop::sample::Index>()), 1..200),
            aligned in any::<bool>(),
        ) {
            let total = 64 * 1024;
            let align = if aligned { 4096 } else { GRANULE_BYTES };
            let mut ranges = Ranges::new(total);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (allocate, bytes, which) in steps {
                if allocate || live.is_empty() {
                    let len = bytes.max(1).next_multiple_of(GRANULE_BYTES);
                    match if aligned { ranges.alloc_aligned(bytes, align) } else { ranges.alloc(bytes) } {
                        Ok(start) => {
                            prop_assert_eq!(start % align, 0);
                            prop_assert!(start + len <= total);
                            for &(s, l) in &live {
                                prop_assert!(start + len <= s || s + l <= start, "{start}+{len} overlaps {s}+{l}");
                            }
                            live.push((start, len));
                        }
                        Err(e) => {
                            let mut taken = live.clone();
                            taken.sort_unstable();
                            taken.push((total, 0));
                            let mut end = 0;
                            let (mut largest, mut fits) = (0, 0);
                            for (s, l) in taken {
                                largest = largest.max(s - end);
                                fits = fits.max(s.saturating_sub(end.next_multiple_of(align)));
                                end = s + l;
                            }
                            prop_assert_eq!((e.wanted, e.largest), (len, largest));
                            prop_assert!(fits < len);
                        }
                    }
                } else {
                    let (start, len) = live.swap_remove(which.index(live.len()));
                    prop_assert_eq!(ranges.release(start), Some(len));
                    prop_assert_eq!(ranges.release(start), None);
                }
                let used: u64 = live.iter().map(|r| r.1).sum();
                prop_assert_eq!(ranges.free_bytes(), total - used);
            }
            for (start, _) in live {
                ranges.release(start);
            }
            prop_assert_eq!(ranges.alloc(total), Ok(0));
        }
    }
}
