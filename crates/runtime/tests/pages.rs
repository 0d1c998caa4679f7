//! Memory that an application maps itself, through the whole runtime on a functional device.

mod common;

use common::{Bench, FUNCTIONAL, PACED, add};
use runtime::Limits;
use wire::{Record, Reply};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 2 * MIB;

fn reserve(bench: &mut Bench, s: usize, size: u64) -> u64 {
    let reply = bench.call(s, |reply| Record::Reserve { size, reply });
    assert_eq!(reply.status, 0, "{}", reply.text);
    reply.payload[0]
}

fn physical(bench: &mut Bench, s: usize, size: u64) -> u64 {
    let reply = bench.call(s, |reply| Record::PhysicalAlloc { size, reply });
    assert_eq!(reply.status, 0, "{}", reply.text);
    reply.payload[0]
}

fn map(bench: &mut Bench, s: usize, addr: u64, size: u64, handle: u64) -> Reply {
    bench.call(s, move |reply| Record::Map { addr, size, offset: 0, handle, reply })
}

fn unmap(bench: &mut Bench, s: usize, addr: u64) -> Reply {
    bench.call(s, |reply| Record::Unmap { addr, reply })
}

fn free(bench: &mut Bench, s: usize, handle: u64) -> Reply {
    bench.call(s, |reply| Record::PhysicalFree { handle, reply })
}

#[track_caller]
fn ok(reply: Reply) {
    assert_eq!(reply.status, 0, "{}", reply.text);
}

#[track_caller]
fn refused(reply: Reply, part: &str) {
    assert_eq!(reply.status, 107_000, "{}", reply.text);
    assert!(reply.text.contains(part), "`{}` does not say `{part}`", reply.text);
}

#[test]
fn a_tensor_spans_handles_and_grows_with_them() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let before = bench.free_bytes();
    // As an allocator reserves: more than the device has, twice.
    let (a, b) = (reserve(&mut bench, s, before / 8 * 9), reserve(&mut bench, s, before / 8 * 9));
    assert_eq!(bench.free_bytes(), before, "addresses cost nothing");
    // Interleaved, so that neighbours in one reservation are none on the device.
    let mut handles = Vec::new();
    for i in 0..3 {
        for base in [a, b] {
            let handle = physical(&mut bench, s, PAGE);
            ok(map(&mut bench, s, base + i * PAGE, PAGE, handle));
            handles.push(handle);
        }
    }
    assert_eq!(bench.free_bytes(), before - 6 * PAGE, "each handle once");
    let n = (3 * PAGE / 4) as i64;
    bench.post(s, &Record::Memset { addr: a, len: 3 * PAGE, value: 0x3f, stream: Some(0), reply: None });
    bench.op(s, 0, &add(a, a, b, &[n]));
    ok(bench.sync(s, 0));
    let value = f32::from_le_bytes([0x3f; 4]);
    for at in [0, PAGE - 8, PAGE, 2 * PAGE - 4, 3 * PAGE - 16] {
        let got = bench.read(s, b + at, 16).unwrap();
        let floats: Vec<f32> = got.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        assert_eq!(floats, [value + value; 4], "at {at}");
    }
    let past = move |reply| Record::Memset { addr: a, len: 3 * PAGE + 1, value: 0, stream: None, reply: Some(reply) };
    refused(bench.call(s, past), "run 1 bytes past the end");
    // The middle goes: what is left on both sides works, nothing reaches over the hole.
    ok(unmap(&mut bench, s, a + PAGE));
    refused(bench.read(s, a + PAGE, 1).unwrap_err(), "nothing is mapped at");
    refused(bench.read(s, a + PAGE - 4, 8).unwrap_err(), "run 4 bytes past the end");
    assert_eq!(bench.read(s, a + 2 * PAGE, 4).unwrap(), [0x3f; 4]);
    refused(bench.call(s, |reply| Record::Release { addr: a, reply }), "still has 2 mappings");
    // Its memory is what it was when it appears elsewhere.
    ok(map(&mut bench, s, b + 5 * PAGE, PAGE, handles[2]));
    assert_eq!(bench.read(s, b + 5 * PAGE, 4).unwrap(), [0x3f; 4]);
    // Freed while mapped: it stays until it is unmapped.
    ok(free(&mut bench, s, handles[2]));
    refused(free(&mut bench, s, handles[2]), "does not exist");
    assert_eq!(bench.free_bytes(), before - 6 * PAGE);
    ok(unmap(&mut bench, s, b + 5 * PAGE));
    assert_eq!(bench.free_bytes(), before - 5 * PAGE);
    let id = bench.id(s);
    bench.core.detach(bench.now, id);
    assert_eq!(bench.free_bytes(), before, "the end of the session returns all");
}

#[test]
fn unmapping_waits_for_the_work_that_was_there_before_and_for_no_other() {
    let mut bench = Bench::new(&format!("{PACED}:hbm=1"), "passthrough");
    let s = bench.open();
    let before = bench.free_bytes();
    let a = reserve(&mut bench, s, 256 * MIB);
    let (first, second) = (physical(&mut bench, s, 128 * MIB), physical(&mut bench, s, 128 * MIB));
    ok(map(&mut bench, s, a, 128 * MIB, first));
    ok(map(&mut bench, s, a + 128 * MIB, 128 * MIB, second));
    // Long work on the first half, then much longer on the second.
    let n = (32 * MIB / 4) as i64;
    bench.op(s, 0, &add(a, a + 32 * MIB, a + 64 * MIB, &[n]));
    ok(unmap(&mut bench, s, a));
    ok(free(&mut bench, s, first));
    for _ in 0..100 {
        bench.op(s, 0, &add(a + 128 * MIB, a + 160 * MIB, a + 192 * MIB, &[n]));
    }
    assert_eq!(bench.free_bytes(), before - 256 * MIB, "work in flight still has it");
    bench.op(s, 0, &add(a, a + 32 * MIB, a + 64 * MIB, &[n]));
    // Mapped again where the first was: answered when the old work is through, long before the new.
    let third = physical(&mut bench, s, 128 * MIB);
    let (start, begun) = (bench.now, bench.core.snapshot(Default::default(), 0).items_in_flight());
    ok(map(&mut bench, s, a, 128 * MIB, third));
    assert!(begun > 50);
    let left = bench.core.snapshot(Default::default(), 0).items_in_flight();
    assert!(left > 50 && bench.now > start, "waited for {} of {begun} items", begun - left);
    assert_eq!(bench.free_bytes(), before - 256 * MIB, "the first has come back, the third is there");
    let late = bench.sync(s, 0);
    refused(late, "aclnnAdd: parameter `self`: nothing is mapped at");
}

trait InFlight {
    fn items_in_flight(&self) -> usize;
}

impl InFlight for runtime::Snapshot {
    fn items_in_flight(&self) -> usize {
        self.sessions.iter().map(|s| s.items).sum()
    }
}

#[test]
fn a_released_range_and_a_dead_session_leave_running_work_alone() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let before = bench.free_bytes();
    for round in 0..10 {
        let s = bench.open();
        let a = reserve(&mut bench, s, 1 << 40 >> 4);
        let handle = physical(&mut bench, s, 4 * PAGE);
        ok(map(&mut bench, s, a + 64 * PAGE, 4 * PAGE, handle));
        for _ in 0..20 {
            bench.op(s, 0, &add(a + 64 * PAGE, a + 65 * PAGE, a + 66 * PAGE, &[100_000]));
        }
        if round % 2 == 0 {
            ok(unmap(&mut bench, s, a + 64 * PAGE));
            ok(bench.call(s, |reply| Record::Release { addr: a, reply }));
            ok(free(&mut bench, s, handle));
            ok(bench.sync(s, 0));
            assert_eq!(bench.free_bytes(), before);
            refused(bench.call(s, |reply| Record::Release { addr: a, reply }), "is not the start of a reserved range");
        }
        let id = bench.id(s);
        bench.core.detach(bench.now, id);
        assert_eq!(bench.free_bytes(), before);
    }
}

#[test]
fn bounds_and_quota_hold_for_mapped_memory_too() {
    let limits = Limits { session_memory_bytes_max: 8 * MIB, blocks_max: 3, reservations_max: 2, ..Limits::default() };
    let mut bench = Bench::with_limits(FUNCTIONAL, "passthrough", limits);
    let s = bench.open();
    let a = reserve(&mut bench, s, 512);
    assert!(a.is_multiple_of(PAGE), "a probe gets a whole granule");
    reserve(&mut bench, s, PAGE);
    let more = bench.call(s, |reply| Record::Reserve { size: PAGE, reply });
    assert!(more.text.contains("already has 2"), "{}", more.text);
    refused(bench.call(s, |reply| Record::Reserve { size: 0, reply }), "not possible");

    for (size, part) in [(0, "size 0x0"), (PAGE + 1, "granularity"), (MIB, "granularity")] {
        refused(bench.call(s, |reply| Record::PhysicalAlloc { size, reply }), part);
    }
    let big = bench.call(s, |reply| Record::PhysicalAlloc { size: 10 * MIB, reply });
    assert_eq!(big.status, 207_001);
    assert!(big.text.contains("aclrtMallocPhysical: out of device memory"), "{}", big.text);
    let handle = physical(&mut bench, s, 6 * MIB);
    assert_eq!(bench.call(s, |reply| Record::Malloc { size: 4 * MIB, reply }).status, 207_001, "one quota for both");
    let info = bench.call(s, |reply| Record::MemInfo { reply });
    assert_eq!(info.payload[..2], [2 * MIB, 8 * MIB]);
    ok(map(&mut bench, s, a, PAGE, handle));
    let info = bench.call(s, |reply| Record::MemInfo { reply });
    assert_eq!(info.payload[..2], [2 * MIB, 8 * MIB], "mapping takes nothing more");
    refused(bench.free(s, a), "is in no live allocation");
    // Another session knows neither the address nor the handle.
    let other = bench.open();
    refused(map(&mut bench, other, a, PAGE, handle), "does not exist");
    refused(unmap(&mut bench, other, a), "is not the start of a mapping");
}
