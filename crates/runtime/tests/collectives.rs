//! Collectives of two devices, each with a state machine and a time of its own.

mod common;

use acl_abi::{DataType, Fold};
use common::{Bench, FUNCTIONAL, PACED};
use sched::Nanos;
use session::peers::{CHUNK_BYTES, Member};
use wire::exchange::{Combine, Part};
use wire::{Exchange, Record};

const COMM: u32 = 1;
const GONE: i32 = 507_057;
const MS: Nanos = 1_000_000;

/// Two devices whose first sessions are ranks of one communicator.
fn two(spec: &str, policy: &str) -> [Bench; 2] {
    let mut benches = [Bench::new(spec, policy), Bench::new(spec, policy)];
    let members = Member::group(&[benches[0].doorbell.clone(), benches[1].doorbell.clone()]).unwrap();
    for (bench, member) in benches.iter_mut().zip(members) {
        let s = bench.open();
        let id = bench.id(s);
        bench.core.enter_comm(id, COMM, member, 0);
        for (stream, priority) in [(1, 0), (2, 7)] {
            bench.post(s, &Record::StreamCreate { stream, priority, flags: 0 });
        }
    }
    benches
}

/// What rank `rank` does in an AllReduce of `len` bytes.
fn all_reduce(rank: usize, send: u64, recv: u64, len: u64) -> Vec<u8> {
    let peer = 1 - rank as u16;
    let exchange = Exchange {
        tag: 1,
        combine: Some(Combine { element: DataType::F32, fold: Fold::Sum, own: send }),
        sends: vec![Part { peer, addr: send, len }],
        receives: vec![Part { peer, addr: recv, len }],
    };
    let mut body = Vec::new();
    exchange.encode(&mut body).unwrap();
    body
}

fn is_idle(bench: &mut Bench, stream: u32) -> bool {
    let reply = bench.call(0, |reply| Record::StreamQuery { stream, reply });
    assert_eq!(reply.status, 0, "{}", reply.text);
    reply.payload[0] == 1
}

/// Both devices go on by `step` until `done`.
fn run(benches: &mut [Bench; 2], step: Nanos, mut done: impl FnMut(&mut [Bench; 2]) -> bool) {
    let begin = std::time::Instant::now();
    while !done(benches) {
        assert!(begin.elapsed().as_secs() < 20, "nothing happens any more");
        benches.iter_mut().for_each(|bench| bench.pass(step));
    }
}

#[test]
fn both_ranks_get_the_sum_in_stream_order() {
    let mut benches = two(FUNCTIONAL, "passthrough");
    // More chunks than there are slots, the last one not full.
    let len = 5 * CHUNK_BYTES + 12;
    let places = [0, CHUNK_BYTES - 4, 3 * CHUNK_BYTES, len - 4];
    let mut memory = [0; 2];
    for (rank, bench) in benches.iter_mut().enumerate() {
        let addr = bench.malloc(0, len);
        bench.post(0, &Record::Memset { addr, len, value: 0x40, stream: Some(1), reply: None });
        assert_eq!(bench.sync(0, 1).status, 0);
        for at in places {
            let value = at as f32 + 0.5 * rank as f32;
            assert_eq!(bench.write(0, addr + at, &value.to_le_bytes()).status, 0);
        }
        // Twice: the second needs what the first has written.
        for _ in 0..2 {
            let body = all_reduce(rank, addr, addr, len);
            bench.post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
        }
        memory[rank] = addr;
    }
    assert!(!is_idle(&mut benches[0], 1), "the stream stands until the other device is there");
    run(&mut benches, 1000, |b| b.iter_mut().all(|b| is_idle(b, 1)));
    let [a, b] = [0, 1].map(|rank| benches[rank].read(0, memory[rank], len).unwrap());
    assert!(a == b, "the same bits");
    let at = |at: u64| f32::from_le_bytes(a[at as usize..][..4].try_into().unwrap());
    for place in places {
        assert_eq!(at(place), 2.0 * (2.0 * place as f32 + 0.5));
    }
    assert_eq!(at(4 * CHUNK_BYTES), 4.0 * f32::from_le_bytes([0x40; 4]), "and what lies between");
    assert_eq!(benches[0].free_bytes(), benches[1].free_bytes());
    for (bench, addr) in benches.iter_mut().zip(memory) {
        assert_eq!(bench.device_sync(0).status, 0);
        assert_eq!(bench.free(0, addr).status, 0);
        assert_eq!(bench.core.device().memory().free, bench.core.device().memory().total, "nothing is held");
    }
}

#[test]
fn a_rank_that_dies_ends_what_waits_for_it() {
    let mut benches = two(FUNCTIONAL, "passthrough");
    let addr = benches[0].malloc(0, 64);
    let body = all_reduce(0, addr, addr, 64);
    benches[0].post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
    benches[0].post(0, &Record::Exchange { stream: 2, comm: COMM, body: &body });
    let status = |b: &mut Bench| b.call(0, |reply| Record::CommStatus { comm: COMM, reply }).status;
    assert_eq!(status(&mut benches[0]), 0);
    let (id, now) = (benches[1].id(0), benches[1].now);
    benches[1].core.detach(now, id);
    benches[0].pass(1000);
    assert_eq!(status(&mut benches[0]), GONE);
    for stream in [1, 2] {
        let reply = benches[0].sync(0, stream);
        assert_eq!(reply.status, GONE);
        assert!(reply.text.contains("rank 1 of the communicator is gone"), "{}", reply.text);
    }
    benches[0].post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
    assert_eq!(benches[0].sync(0, 1).status, GONE, "and whatever comes later");
    assert_eq!(benches[0].sync(0, 1).status, 0, "told once");
}

#[test]
fn one_device_does_not_hold_back_what_another_waits_for() {
    // The first stream's work goes before the second's, and there is a second of it.
    let mut benches = two(PACED, "priority:age_max_ms=100000");
    let big = 1 << 30;
    let mut bodies = Vec::new();
    for (rank, bench) in benches.iter_mut().enumerate() {
        let addr = bench.malloc(0, big);
        bodies.push((all_reduce(rank, addr, addr, 1 << 20), addr));
    }
    let addr = bodies[0].1;
    for _ in 0..900 {
        benches[0].post(0, &Record::Memset { addr, len: big, value: 0, stream: Some(1), reply: None });
    }
    // Behind an operator that is held back, an event of its stream, and on a third stream the collective.
    benches[0].post(0, &Record::StreamCreate { stream: 3, priority: 7, flags: 0 });
    benches[0].post(0, &Record::EventCreate { event: 1, flags: 0 });
    benches[0].post(0, &Record::Memset { addr, len: 4096, value: 0, stream: Some(2), reply: None });
    benches[0].post(0, &Record::EventRecord { event: 1, stream: 2 });
    benches[0].post(0, &Record::Memset { addr, len: 8192, value: 0, stream: Some(2), reply: None });
    benches[0].post(0, &Record::StreamWaitEvent { stream: 3, event: 1 });
    benches[0].post(0, &Record::Exchange { stream: 3, comm: COMM, body: &bodies[0].0 });
    for _ in 0..20 {
        benches.iter_mut().for_each(|bench| bench.pass(MS));
    }
    assert!(!is_idle(&mut benches[0], 3), "the policy holds it back");
    benches[1].post(0, &Record::Exchange { stream: 1, comm: COMM, body: &bodies[1].0 });
    let since = benches[1].now;
    run(&mut benches, MS / 50, |b| is_idle(&mut b[0], 3) || b[1].now > since + 100 * MS);
    let took = benches[1].now - since;
    // Its own operators, one of the busy stream that the device has, 10 µs to begin, 1 MiB over the link and through memory.
    assert!(took < 5 * MS, "{took} ns from the other rank's arrival to the end");
    assert!(!is_idle(&mut benches[0], 1), "the busy stream is still busy");
    assert!(!is_idle(&mut benches[0], 2), "what nobody waits for is held back");
}

#[test]
fn the_paced_device_takes_the_link_s_time() {
    let mut benches = two(PACED, "passthrough");
    let len = 13_720_000 / 4 * 4;
    for (rank, bench) in benches.iter_mut().enumerate() {
        let addr = bench.malloc(0, len);
        let body = all_reduce(rank, addr, addr, len);
        bench.post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
    }
    let since = benches[0].now;
    run(&mut benches, 500, |b| b.iter_mut().all(|b| is_idle(b, 1)));
    let took = (benches[0].now - since) as f64 / 1e3;
    // 100 µs over the link and 14 µs out of memory; three passes over memory to add, in 27 pieces of 2 µs each; some turns of
    // this test's clock.
    assert!((150.0..330.0).contains(&took), "{took} µs");
}

#[test]
fn a_peer_that_lives_and_never_comes_is_an_error_of_the_stream_in_the_end() {
    let mut benches = [Bench::new(FUNCTIONAL, "passthrough"), Bench::new(FUNCTIONAL, "passthrough")];
    let members = Member::group(&[benches[0].doorbell.clone(), benches[1].doorbell.clone()]).unwrap();
    let mut memory = [0; 2];
    for (rank, (bench, member)) in benches.iter_mut().zip(members).enumerate() {
        let s = bench.open();
        let id = bench.id(s);
        bench.core.enter_comm(id, COMM, member, 3000 * MS);
        bench.post(s, &Record::StreamCreate { stream: 1, priority: 0, flags: 0 });
        memory[rank] = bench.malloc(s, 64);
    }
    let body = all_reduce(0, memory[0], memory[0], 64);
    benches[0].post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
    let begin = benches[0].now;
    assert!(!is_idle(&mut benches[0], 1));
    // The device must be woken for it, once a thread has sent what this rank has: nothing else happens.
    let started = std::time::Instant::now();
    while matches!(benches[0].core.next_wake(begin), runtime::Wake::Doorbell) {
        assert!(started.elapsed().as_secs() < 20, "nothing wakes the device");
        benches[0].turn();
    }
    for _ in 0..29 {
        benches.iter_mut().for_each(|bench| bench.pass(100 * MS));
    }
    assert!(!is_idle(&mut benches[0], 1));
    run(&mut benches, 100 * MS, |b| b[0].now > begin + 3200 * MS);
    let reply = benches[0].sync(0, 1);
    assert_eq!(reply.status, GONE, "{}", reply.text);
    assert!(reply.text.contains("stood still for 3 s (HCCL_EXEC_TIMEOUT): rank 1 has not come"), "{}", reply.text);
    // The other learns when it comes: at once, or with its next exchange where what this rank had sent was all that it wanted.
    let body = all_reduce(1, memory[1], memory[1], 64);
    benches[1].post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
    let first = benches[1].sync(0, 1);
    assert!(first.status == 0 || first.text.contains("rank 0 of the communicator is gone"), "{}", first.text);
    benches[1].post(0, &Record::Exchange { stream: 1, comm: COMM, body: &body });
    let reply = benches[1].sync(0, 1);
    assert_eq!(reply.status, GONE, "{}", reply.text);
}
