//! Synchronising and fetching in one call: only while the bytes can have one value.

mod common;

use common::{Bench, FUNCTIONAL, add};
use wire::{ArenaRange, Record, Reply};

/// Synchronises stream 0 and fetches 4 bytes at `src`; what the daemon says, and the bytes.
fn fetch(bench: &mut Bench, s: usize, src: u64) -> (Reply, [u8; 4]) {
    let client = bench.client(s);
    let room = client.pinned_alloc(4).unwrap();
    let dst: ArenaRange = client.pinned_range(room, 4).unwrap();
    // SAFETY: `room` has 4 bytes that are this test's; no copy into them is under way.
    unsafe { std::ptr::write_bytes(room, 0xee, 4) };
    let reply = bench.call(s, move |reply| Record::StreamFetch { stream: 0, dst, src, reply });
    // SAFETY: as above: the call has been answered.
    let bytes = unsafe { room.cast::<[u8; 4]>().read_unaligned() };
    assert!(bench.client(s).pinned_free(room));
    (reply, bytes)
}

#[test]
fn the_last_result_comes_with_the_synchronisation() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let a = bench.malloc(s, 64);
    assert_eq!(bench.write(s, a, &1f32.to_le_bytes()).status, 0);
    for round in 1..5 {
        bench.op(s, 0, &add(a, a, a, &[1]));
        let (reply, bytes) = fetch(&mut bench, s, a);
        assert_eq!((reply.status, reply.payload[0]), (0, 1));
        assert_eq!(f32::from_le_bytes(bytes), 2f32.powi(round));
    }
    let answered = bench.core.snapshot(Default::default(), 0).sessions[0].round_trips;
    assert_eq!(answered, 1 + 1 + 4, "allocation, copy and four fetches");
}

#[test]
fn nothing_is_fetched_beside_other_work_or_from_foreign_memory() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, other) = (bench.open(), bench.open());
    let (a, foreign) = (bench.malloc(s, 64), bench.malloc(other, 64));
    let freed = bench.malloc(s, 64);
    bench.free(s, freed);
    for src in [foreign, freed, a + 62, u64::MAX] {
        let (reply, bytes) = fetch(&mut bench, s, src);
        assert_eq!((reply.status, reply.payload[0], bytes), (0, 0, [0xee; 4]), "{src:#x}");
    }
    // Another stream that cannot get past a wait: as good as busy for ever.
    bench.post(s, &Record::StreamCreate { stream: 1, priority: 0, flags: 0 });
    bench.post(s, &Record::StreamCreate { stream: 2, priority: 0, flags: 0 });
    bench.post(s, &Record::EventCreate { event: 1, flags: 0 });
    let big = bench.malloc(s, 8 << 20);
    for _ in 0..20 {
        bench.op(s, 1, &add(big, big, big, &[2 << 20]));
    }
    bench.post(s, &Record::EventRecord { event: 1, stream: 1 });
    bench.post(s, &Record::StreamWaitEvent { stream: 2, event: 1 });
    let (reply, bytes) = fetch(&mut bench, s, a);
    assert_eq!((reply.status, reply.payload[0], bytes), (0, 0, [0xee; 4]));
    assert_eq!(bench.device_sync(s).status, 0);
    assert_eq!(fetch(&mut bench, s, a).0.payload[0], 1, "idle again");
}

#[test]
fn a_stream_that_only_waits_changes_no_bytes() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let a = bench.malloc(s, 64);
    let big = bench.malloc(s, 8 << 20);
    assert_eq!(bench.write(s, a, &1f32.to_le_bytes()).status, 0);
    bench.post(s, &Record::StreamCreate { stream: 1, priority: 0, flags: 0 });
    bench.post(s, &Record::EventCreate { event: 1, flags: 0 });
    // As torch_npu does with its second stream before attention.
    for _ in 0..20 {
        bench.op(s, 0, &add(big, big, big, &[2 << 20]));
    }
    bench.post(s, &Record::EventRecord { event: 1, stream: 0 });
    bench.post(s, &Record::StreamWaitEvent { stream: 1, event: 1 });
    bench.op(s, 0, &add(a, a, a, &[1]));
    let (reply, bytes) = fetch(&mut bench, s, a);
    assert_eq!((reply.status, reply.payload[0], f32::from_le_bytes(bytes)), (0, 1, 2.0));
}

#[test]
fn an_error_of_the_stream_comes_first() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let a = bench.malloc(s, 64);
    bench.op(s, 0, &add(a, a, 0xdead_0000, &[1]));
    assert_ne!(fetch(&mut bench, s, a).0.status, 0);
    assert_eq!(fetch(&mut bench, s, a).0.status, 0, "told once");
}
