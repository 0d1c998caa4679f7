//! Allocations: bounds, reuse, and what comes back to the device.

use super::*;
use proptest::prelude::*;

const BASE: u64 = 1 << 40;

fn map(space: &mut AddressSpace, size: u64, physical: u64) -> u64 {
    let start = space.find_gap(size).unwrap();
    space.map(start, size, PhysAddr(physical));
    start
}

/// The last of what comes back.
fn unpin(space: &mut AddressSpace, block: BlockId) -> Option<Released> {
    let mut released = None;
    space.unpin(block, |r| assert!(released.replace(r).is_none()));
    released
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
    assert_eq!(unpin(&mut space, block), None);
    assert_eq!(unpin(&mut space, block), Some(Released::Block(PhysAddr(0x1000))));
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
                        Some(r) => { prop_assert_eq!(r, Released::Block(PhysAddr(physical))); prop_assert!(returned.insert(physical)); }
                        None => prop_assert!(pinned.iter().any(|p| p.1 == physical)),
                    }
                },
                _ => if !pinned.is_empty() && size % 2 == 0 {
                    let (block, physical) = pinned.swap_remove(index.index(pinned.len()));
                    if let Some(r) = unpin(&mut space, block) {
                        prop_assert_eq!(r, Released::Block(PhysAddr(physical)));
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
        space.release_all(|r| match r {
                Released::Block(physical) => assert!(returned.insert(physical.0)),
                other => panic!("{other:?}"),
            });
        prop_assert_eq!(returned.len() as u64, made);
        prop_assert_eq!((space.held_bytes(), space.unmapped_bytes()), (0, 0));
    }
}
