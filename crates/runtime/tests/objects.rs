//! Memory, streams, events and errors of sessions on a functional device: what applications see.

mod common;

use acl_abi::{DataType, OpCall, TensorDesc, ops};
use common::{Bench, FUNCTIONAL, add, tensor};
use runtime::Limits;
use wire::{HostSource, Record};

const KIB: u64 = 1024;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A session with three buffers of `bytes`.
fn three(bench: &mut Bench, bytes: u64) -> (usize, [u64; 3]) {
    let session = bench.open();
    (session, std::array::from_fn(|_| bench.malloc(session, bytes)))
}

#[test]
fn bytes_and_operators_make_the_round_trip() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, [a, b, out]) = three(&mut bench, 64);
    let (x, y): (Vec<f32>, Vec<f32>) = (0..16).map(|i| (i as f32, 100.0 - i as f32 * 0.5)).unzip();
    assert_eq!(bench.write(s, a, &floats(&x)).status, 0);
    assert_eq!(bench.write(s, b, &floats(&y)).status, 0);
    bench.op(s, 0, &add(a, b, out, &[16]));
    assert_eq!(bench.sync(s, 0).status, 0);
    let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    assert_eq!(bench.read(s, out, 64).unwrap(), floats(&sum));
    let reply =
        bench.call(s, move |reply| Record::CopyDevice { dst: a, src: out, len: 64, stream: None, reply: Some(reply) });
    assert_eq!(reply.status, 0);
    bench.post(s, &Record::Memset { addr: out, len: 32, value: 0xff, stream: Some(0), reply: None });
    assert_eq!(bench.device_sync(s).status, 0);
    assert_eq!(bench.read(s, a, 64).unwrap(), floats(&sum));
    assert_eq!(bench.read(s, out, 64).unwrap()[..40], [[0xff; 32].as_slice(), &floats(&sum)[32..40]].concat());
}

#[test]
fn asynchronous_copies_keep_their_place_in_the_stream_and_give_staging_back() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, [a, b, out]) = three(&mut bench, 4 * KIB);
    let blocks = common::layout().staging_blocks;
    for round in 0..3 * blocks {
        // All blocks would be gone after the first few rounds if the daemon kept them.
        let client = bench.client(s);
        let block = client.staging_take().unwrap();
        // SAFETY: the block is ours until it is posted, and has at least 4 KiB.
        unsafe { std::ptr::write_bytes(block.ptr, round as u8, 4096) };
        let source = HostSource::Staging { block: block.block, len: 4096 };
        bench.post(s, &Record::CopyIn { dst: a, source, stream: Some(0), reply: None });
        bench.post(s, &Record::CopyDevice { dst: b, src: a, len: 4 * KIB, stream: Some(0), reply: None });
        assert_eq!(bench.sync(s, 0).status, 0);
        assert_eq!(bench.read(s, b, 4 * KIB).unwrap(), vec![round as u8; 4096], "round {round}");
    }
    // A copy that is refused gives its block back as well.
    for _ in 0..3 * blocks {
        let block = bench.client(s).staging_take().unwrap().block;
        let source = HostSource::Staging { block, len: 4096 };
        bench.post(s, &Record::CopyIn { dst: out + 1, source, stream: Some(0), reply: None });
        assert_ne!(bench.sync(s, 0).status, 0);
    }
}

#[test]
fn a_session_reaches_no_byte_of_its_neighbour() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (victim, [secret, ..]) = three(&mut bench, KIB);
    let (thief, [own, own2, out]) = three(&mut bench, KIB);
    let before = vec![0x5a; 1024];
    assert_eq!(bench.write(victim, secret, &before).status, 0);
    // The same number means the thief's own memory, another's address means nothing.
    let mut refused = 0;
    for addr in [secret, own + KIB, own + 1020, own - 4, 0, u64::MAX - 8, own + (1 << 39)] {
        let len = 8;
        let reads = bench.read(thief, addr, len);
        if (own..=own + KIB - len).contains(&addr)
            || (own2..=own2 + KIB - len).contains(&addr)
            || (out..=out + KIB - len).contains(&addr)
        {
            continue;
        }
        let reply = reads.expect_err("read of a foreign address");
        assert_eq!(reply.status, 107_000, "{addr:#x}: {}", reply.text);
        assert!(reply.text.starts_with("aclrtMemcpy: parameter `src`"), "{}", reply.text);
        assert_eq!(bench.write(thief, addr, &[1; 8]).status, 107_000, "{addr:#x}");
        let set =
            bench.call(thief, move |reply| Record::Memset { addr, len, value: 1, stream: None, reply: Some(reply) });
        assert_eq!(set.status, 107_000, "{addr:#x}");
        bench.op(thief, 0, &add(own, addr & !3, out, &[2]));
        let fault = bench.sync(thief, 0);
        assert_eq!(fault.status, 107_000, "{addr:#x}");
        assert!(fault.text.starts_with("aclnnAdd: parameter `other`"), "{}", fault.text);
        bench.op(thief, 0, &add(own, own2, addr & !3, &[2]));
        assert!(bench.sync(thief, 0).text.starts_with("aclnnAdd: parameter `out`"));
        refused += 1;
    }
    assert!(refused >= 6, "{refused}");
    assert_eq!(bench.read(victim, secret, KIB).unwrap(), before);
}

#[test]
fn freed_memory_is_refused_and_scrubbed() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, [a, b, out]) = three(&mut bench, KIB);
    assert_eq!(bench.write(s, a, &[7; 1024]).status, 0);
    assert_eq!(bench.free(s, a).status, 0);
    assert_eq!(bench.free(s, a).status, 107_000, "twice");
    assert_eq!(bench.free(s, b + 8).status, 107_000, "not the start");
    bench.op(s, 0, &add(a, b, out, &[4]));
    let fault = bench.sync(s, 0);
    assert!(fault.text.contains("`self`") && fault.text.contains("freed"), "{}", fault.text);
    let again = bench.malloc(s, KIB);
    assert_ne!(again, a, "addresses are not reused at once");
    assert_eq!(bench.read(s, again, KIB).unwrap(), vec![0; 1024], "nobody's old bytes");
}

#[test]
fn an_error_without_a_reply_is_told_once_by_the_next_synchronising_call() {
    let bad = |out: u64| add(out, out, out + (1 << 30), &[4]);
    // What the session does next, and whether that tells the error of stream 7.
    type Next = fn(&mut Bench, usize, u64) -> wire::Reply;
    let table: [(&str, Next, bool); 7] = [
        ("its stream", |b, s, _| b.sync(s, 7), true),
        ("another stream", |b, s, _| b.sync(s, 0), false),
        ("device", |b, s, _| b.device_sync(s), true),
        ("query", |b, s, _| b.call(s, |reply| Record::StreamQuery { stream: 7, reply }), true),
        ("event of the stream", |b, s, _| b.call(s, |reply| Record::EventSync { event: 1, reply }), true),
        ("synchronous copy", |b, s, a| b.write(s, a, &[1]), true),
        ("memory info", |b, s, _| b.call(s, |reply| Record::MemInfo { reply }), false),
    ];
    for (name, next, tells) in table {
        let mut bench = Bench::new(FUNCTIONAL, "passthrough");
        let (s, [a, _, out]) = three(&mut bench, KIB);
        bench.post(s, &Record::StreamCreate { stream: 7, priority: 0, flags: 0 });
        bench.post(s, &Record::EventCreate { event: 1, flags: 0 });
        bench.op(s, 7, &bad(out));
        bench.op(s, 7, &add(a, a, out, &[999_999]));
        bench.post(s, &Record::EventRecord { event: 1, stream: 7 });
        let reply = next(&mut bench, s, a);
        assert_eq!(reply.status, if tells { 107_000 } else { 0 }, "{name}: {}", reply.text);
        if tells {
            assert!(reply.text.starts_with("aclnnAdd: parameter `out`"), "{name}: the first one: {}", reply.text);
        }
        let reply = bench.sync(s, 7);
        assert_eq!(reply.status, if tells { 0 } else { 107_000 }, "{name}, afterwards: {}", reply.text);
        assert_eq!(bench.device_sync(s).status, 0, "{name}");
        bench.op(s, 7, &add(a, a, out, &[4]));
        assert_eq!(bench.sync(s, 7).status, 0, "{name}: the stream goes on");
    }
}

#[test]
fn what_the_device_finds_wrong_is_told_too() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, [a, b, out]) = three(&mut bench, KIB);
    let mut mismatch = OpCall::new(ops::aclnnMatmul);
    for (addr, dims) in [(a, [4, 5]), (b, [6, 3]), (out, [4, 3])] {
        mismatch.push_tensor(Some(TensorDesc::contiguous(addr, DataType::F32, &dims)));
    }
    mismatch.push(acl_abi::Arg::Int(0));
    bench.op(s, 0, &mismatch);
    let reply = bench.sync(s, 0);
    assert_ne!(reply.status, 0);
    assert!(reply.text.starts_with("aclnnMatmul"), "{}", reply.text);
    assert_eq!(bench.sync(s, 0).status, 0);
}

#[test]
fn unknown_streams_and_events_are_errors_that_name_the_call() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, [a, ..]) = three(&mut bench, KIB);
    let (other, _) = three(&mut bench, KIB);
    bench.post(other, &Record::StreamCreate { stream: 9, priority: 0, flags: 0 });
    bench.post(other, &Record::EventCreate { event: 9, flags: 0 });
    type Ask = fn(wire::ReplyTo) -> Record<'static>;
    let asked: [(Ask, &str); 5] = [
        (|reply| Record::StreamSync { stream: 9, reply }, "aclrtSynchronizeStream: stream 9"),
        (|reply| Record::StreamQuery { stream: 9, reply }, "aclrtStreamQuery: stream 9"),
        (|reply| Record::EventSync { event: 9, reply }, "aclrtSynchronizeEvent: event 9"),
        (|reply| Record::EventQuery { event: 9, reply }, "aclrtQueryEventStatus: event 9"),
        (|reply| Record::EventElapsed { start: 9, end: 9, reply }, "aclrtEventElapsedTime: event 9"),
    ];
    for (ask, words) in asked {
        let reply = bench.call(s, ask);
        assert!(reply.status != 0 && reply.text.starts_with(words), "{words}: {}", reply.text);
    }
    let posted = [
        (Record::StreamDestroy { stream: 9 }, "aclrtDestroyStream: stream 9"),
        (Record::StreamDestroy { stream: 0 }, "aclrtDestroyStream: the default stream"),
        (Record::StreamCreate { stream: 0, priority: 0, flags: 0 }, "aclrtCreateStream: stream 0 exists"),
        (Record::EventDestroy { event: 9 }, "aclrtDestroyEvent: event 9"),
        (Record::EventRecord { event: 9, stream: 0 }, "aclrtRecordEvent: event 9"),
        (Record::StreamWaitEvent { event: 9, stream: 0 }, "aclrtStreamWaitEvent: event 9"),
        (Record::Memset { addr: a, len: 4, value: 0, stream: Some(9), reply: None }, "aclrtMemsetAsync: stream 9"),
    ];
    for (record, words) in posted {
        bench.post(s, &record);
        let reply = bench.device_sync(s);
        assert!(reply.status != 0 && reply.text.starts_with(words), "{words}: {}", reply.text);
    }
    bench.op(s, 9, &add(a, a, a, &[4]));
    assert!(bench.device_sync(s).text.starts_with("aclnnAdd: stream 9"));
    assert_eq!(bench.device_sync(other).status, 0, "the neighbour has both and no error");
}

#[test]
fn out_of_memory_says_how_much_and_heals() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let total = bench.free_bytes();
    let big = bench.malloc(s, total - 8 * KIB);
    let reply = bench.call(s, |reply| Record::Malloc { size: 16 * KIB, reply });
    assert_eq!(reply.status, 207_001);
    assert!(reply.text.contains("16384 bytes wanted, 8192 bytes free"), "{}", reply.text);
    let info = bench.call(s, |reply| Record::MemInfo { reply });
    assert_eq!(info.payload[..2], [8 * KIB, total]);
    assert_eq!(bench.free(s, big).status, 0);
    let again = bench.malloc(s, total / 2);
    assert_eq!(bench.free(s, again).status, 0);
    assert_eq!(bench.free_bytes(), total);
    assert_eq!(bench.call(s, |reply| Record::Malloc { size: 0, reply }).status, 107_000);
    assert_eq!(bench.call(s, |reply| Record::Malloc { size: u64::MAX, reply }).status, 207_001);
}

#[test]
fn limits_hold_for_each_session() {
    let limits = Limits {
        session_memory_bytes_max: 8 * KIB,
        blocks_max: 3,
        streams_max: 2,
        events_max: 2,
        sessions_max: 2,
        ..Limits::default()
    };
    let mut bench = Bench::with_limits(FUNCTIONAL, "passthrough", limits);
    let s = bench.open();
    let blocks: Vec<u64> = (0..3).map(|_| bench.malloc(s, KIB)).collect();
    let reply = bench.call(s, |reply| Record::Malloc { size: 512, reply });
    assert_eq!(reply.status, 207_001);
    assert!(reply.text.contains("already has 3 allocations"), "{}", reply.text);
    assert_eq!(bench.free(s, blocks[0]).status, 0);
    let reply = bench.call(s, |reply| Record::Malloc { size: 7 * KIB, reply });
    assert_eq!(reply.status, 207_001);
    assert!(reply.text.contains("6144 bytes free of this process's limit of 8192 bytes"), "{}", reply.text);
    assert_eq!(bench.call(s, |reply| Record::MemInfo { reply }).payload[..2], [6 * KIB, 8 * KIB]);
    for (id, fails) in [(1, false), (2, false), (3, true)] {
        bench.post(s, &Record::StreamCreate { stream: id, priority: 0, flags: 0 });
        assert_eq!(bench.device_sync(s).status, if fails { 207_008 } else { 0 }, "stream {id}");
        bench.post(s, &Record::EventCreate { event: id, flags: 0 });
        assert_eq!(bench.device_sync(s).status, if fails { 207_007 } else { 0 }, "event {id}");
    }
    bench.post(s, &Record::StreamDestroy { stream: 1 });
    bench.post(s, &Record::StreamCreate { stream: 4, priority: 0, flags: 0 });
    assert_eq!(bench.device_sync(s).status, 0, "a destroyed stream makes room");
    bench.open();
    let (_client, server) = session::local(common::layout(), bench.doorbell.clone(), common::facts()).unwrap();
    let refused = bench.core.attach(&server, runtime::DEFAULT_TENANT, sched::SessionParams::default()).unwrap_err();
    assert!(refused.to_string().contains("2 sessions"), "{refused}");
}

#[test]
fn a_session_that_ends_gives_everything_back_and_its_neighbour_goes_on() {
    let mut bench = Bench::new(FUNCTIONAL, "fifo");
    let start = bench.free_bytes();
    let (neighbour, [a, b, out]) = three(&mut bench, KIB);
    assert_eq!(bench.write(neighbour, a, &floats(&[1.5; 256])).status, 0);
    let between = bench.free_bytes();
    let (dying, buffers) = three(&mut bench, 4 << 20);
    let [x, y, z] = buffers;
    bench.post(dying, &Record::StreamCreate { stream: 1, priority: 0, flags: 0 });
    bench.post(dying, &Record::EventCreate { event: 1, flags: 0 });
    for _ in 0..200 {
        bench.op(dying, 0, &add(x, y, z, &[1 << 20]));
        bench.post(dying, &Record::EventRecord { event: 1, stream: 0 });
        bench.post(dying, &Record::StreamWaitEvent { event: 1, stream: 1 });
        bench.op(dying, 1, &add(z, y, x, &[1 << 20]));
    }
    bench.op(neighbour, 0, &add(a, b, out, &[256]));
    let (now, id) = (bench.now, bench.id(dying));
    bench.core.detach(now, id);
    assert_eq!(bench.free_bytes(), between, "at once, though work was queued and running");
    assert!(!bench.core.has_room(id));
    bench.core.detach(now, id);
    assert_eq!(bench.sync(neighbour, 0).status, 0);
    assert_eq!(bench.read(neighbour, out, KIB).unwrap(), floats(&[1.5; 256]));
    // What ran for the dead session completes and belongs to nobody.
    let snapshot = |bench: &Bench| bench.core.snapshot(Default::default(), 0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while snapshot(&bench).in_flight > 0 {
        assert!(std::time::Instant::now() < deadline, "work never completes");
        bench.pass(100_000);
    }
    let after = snapshot(&bench);
    assert_eq!((after.queued, after.calls_waiting, after.sessions.len()), (0, 0, 1));
    let id = bench.id(neighbour);
    bench.core.detach(bench.now, id);
    assert_eq!(bench.free_bytes(), start);
}

#[test]
fn a_queue_at_its_bound_stops_the_ring_and_loses_nothing() {
    let limits = Limits { queued_items_max: 20, drain_records_max: 8, ..Limits::default() };
    // Paced: nothing completes before time passes, so the queue really fills.
    let mut bench = Bench::with_limits(&format!("{FUNCTIONAL}:paced"), "passthrough", limits);
    let (s, [a, b, _]) = three(&mut bench, 64);
    assert_eq!(bench.write(s, a, &floats(&[0.0; 16])).status, 0);
    assert_eq!(bench.write(s, b, &floats(&[1.0; 16])).status, 0);
    // a += b, 500 times, in one go: the ring holds what the queue does not.
    for _ in 0..500 {
        bench.client(s).post(&Record::Op { stream: 0 }, Some(&add(a, b, a, &[16]))).unwrap();
    }
    let mut most = 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    for _ in 0..10 {
        bench.turn();
    }
    loop {
        let snapshot = bench.core.snapshot(Default::default(), 0);
        most = most.max(snapshot.sessions[0].items);
        bench.pass(1000);
        if snapshot.phases.iter().map(|p| p.completed).sum::<u64>() >= 502 {
            break;
        }
        assert!(std::time::Instant::now() < deadline);
    }
    assert!((20..20 + 8).contains(&most), "{most}");
    assert_eq!(bench.read(s, a, 64).unwrap(), floats(&[500.0; 16]));
}

#[test]
fn zero_bytes_are_copied_without_looking_at_addresses() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let reply = bench.call(s, |reply| Record::CopyDevice { dst: 0, src: 0, len: 0, stream: None, reply: Some(reply) });
    assert_eq!(reply.status, 0);
    let reply =
        bench.call(s, |reply| Record::Memset { addr: 0, len: 0, value: 0, stream: Some(0), reply: Some(reply) });
    assert_eq!(reply.status, 0);
    let empty = tensor(0xdead_beef, &[0, 4]);
    let mut call = OpCall::new(ops::aclnnAdd);
    call.push_tensor(Some(empty)).push_tensor(Some(empty));
    call.push(acl_abi::Arg::Scalar(acl_abi::Scalar { dtype: DataType::F32, bits: 0 })).push_tensor(Some(empty));
    bench.op(s, 0, &call);
    let reply = bench.sync(s, 0);
    assert_eq!(reply.status, 0, "{}", reply.text);
}
