//! Both ends in one process: what the two ends promise each other, and what a peer that breaks its promise can do.

use crate::client::Client;
use crate::shared::{Ring, SEQ_LOST};
use crate::{DeviceFacts, Doorbell, Layout, ServerSession, Violation, local};
use acl_abi::{DataType, OpCall, TensorDesc, ops};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use wire::ring::Memory;
use wire::{ArenaRange, HostSource, Record, Reply, ReplyTo};

/// Longest any of these tests waits for something that should take microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

fn small() -> Layout {
    Layout { ring_bytes: 4096, arena_bytes: 64 * 4096, staging_block_bytes: 4096, staging_blocks: 2, reply_slots: 4 }
}

fn facts() -> DeviceFacts {
    DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 64 << 30, device_index: 0, epoch: 5 }
}

fn pair(layout: Layout) -> (Client, ServerSession, Doorbell) {
    let doorbell = Doorbell::new().unwrap();
    let (client, server) = local(layout, doorbell.clone(), facts()).unwrap();
    (client, server, doorbell)
}

/// Drains until `count` records came, sleeping on the doorbell in between.
fn drain(
    server: &mut ServerSession,
    doorbell: &Doorbell,
    count: usize,
    f: &mut dyn FnMut(&crate::Replier, Record<'_>, &mut OpCall),
) {
    let (start, mut taken) = (Instant::now(), 0);
    while taken < count {
        taken += server.drain(count - taken, f).unwrap();
        if taken < count && !server.prepare_sleep() {
            doorbell.wait(Some(Duration::from_millis(100)));
        }
        server.cancel_sleep();
        assert!(start.elapsed() < PATIENCE, "{taken} of {count} records");
    }
}

fn op() -> OpCall {
    let mut call = OpCall::new(ops::aclnnAbs);
    let t = TensorDesc::contiguous(0x1000, DataType::F16, &[4, 5, 6]);
    call.push_tensor(Some(t)).push_tensor(Some(t));
    call
}

#[test]
fn records_arrive_in_order_with_their_calls() {
    let (client, mut server, doorbell) = pair(small());
    let call = op();
    let mut body = Vec::new();
    wire::op::encode_op(&call, &mut body).unwrap();
    client.post(&Record::Op { stream: 1 }, Some(&call)).unwrap();
    client.post_op(2, &body).unwrap();
    let mut bytes = Vec::new();
    wire::encode(&Record::StreamDestroy { stream: 3 }, None, &mut bytes).unwrap();
    client.post_encoded(&bytes).unwrap();
    let mut seen = Vec::new();
    drain(&mut server, &doorbell, 3, &mut |_, record, scratch| {
        if let Record::Op { stream } = record {
            assert_eq!(*scratch, op());
            seen.push(stream);
        } else {
            assert_eq!(record, Record::StreamDestroy { stream: 3 });
        }
    });
    assert_eq!(seen, [1, 2]);
}

#[test]
fn replies_carry_values_and_errors() {
    let (client, mut server, doorbell) = pair(small());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drain(&mut server, &doorbell, 40, &mut |replier, record, _| match record {
                Record::Malloc { size, reply } => replier.reply(reply, &Reply::value(size + 1)),
                Record::Free { reply, .. } => {
                    replier.reply(reply, &Reply::error(107_000, "aclnnMatmul: no such address"))
                }
                other => panic!("{other:?}"),
            });
        });
        for i in 0..20 {
            assert_eq!(client.call(|reply| Record::Malloc { size: i, reply }), Ok(Reply::value(i + 1)));
            let error = Reply::error(107_000, "aclnnMatmul: no such address");
            assert_eq!(client.call(|reply| Record::Free { addr: i, reply }), Ok(error));
        }
    });
}

#[test]
fn more_callers_than_reply_slots_all_get_their_own_answer() {
    let (client, mut server, doorbell) = pair(small());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drain(&mut server, &doorbell, 16 * 200, &mut |replier, record, _| {
                let Record::Malloc { size, reply } = record else { panic!("{record:?}") };
                replier.reply(reply, &Reply::value(!size));
            });
        });
        for thread in 0..16u64 {
            let client = &client;
            scope.spawn(move || {
                for i in 0..200 {
                    let size = thread << 32 | i;
                    assert_eq!(client.call(|reply| Record::Malloc { size, reply }), Ok(Reply::value(!size)));
                }
            });
        }
    });
}

#[test]
fn an_answer_with_another_sequence_number_is_not_mine() {
    let (client, mut server, doorbell) = pair(small());
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| client.call(|reply| Record::MemInfo { reply }));
        let mut to = None;
        drain(&mut server, &doorbell, 1, &mut |_, record, _| {
            let Record::MemInfo { reply } = record else { panic!("{record:?}") };
            to = Some(reply);
        });
        let to = to.unwrap();
        for seq in [to.seq.wrapping_add(1), to.seq.wrapping_sub(1)] {
            server.reply(ReplyTo { seq, ..to }, &Reply::value(666));
        }
        server.reply(ReplyTo { slot: u16::MAX, ..to }, &Reply::value(666));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!caller.is_finished());
        server.reply(to, &Reply::value(1));
        assert_eq!(caller.join().unwrap(), Ok(Reply::value(1)));
    });
}

#[test]
fn full_ring_waits_for_room_and_loses_nothing() {
    let (client, mut server, doorbell) = pair(small());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for stream in 0..20_000 {
                client.post(&Record::StreamDestroy { stream }, None).unwrap();
            }
        });
        // The ring holds 256 such records: the writer is asleep by now.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished());
        let mut next = 0;
        drain(&mut server, &doorbell, 20_000, &mut |_, record, _| {
            assert_eq!(record, Record::StreamDestroy { stream: next });
            next += 1;
        });
    });
}

#[test]
fn staging_blocks_come_back_and_keep_their_bytes() {
    let (client, mut server, doorbell) = pair(small());
    const COPIES: u64 = 2000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..COPIES {
                let block = client.staging_take().unwrap();
                assert_eq!(block.len, 4096);
                // SAFETY: the block is ours and has 4096 bytes.
                unsafe { block.ptr.cast::<u64>().write(i) };
                let source = HostSource::Staging { block: block.block, len: 8 };
                client.post(&Record::CopyIn { dst: i, source, stream: Some(0), reply: None }, None).unwrap();
            }
        });
        drain(&mut server, &doorbell, COPIES as usize, &mut |replier, record, _| {
            let Record::CopyIn { dst, source: HostSource::Staging { block, len }, .. } = record else {
                panic!("{record:?}")
            };
            let range = replier.arena().staging_range(block, len).unwrap();
            let ptr = replier.arena().ptr(range).unwrap();
            // SAFETY: eight bytes of the arena, which is mapped; the client does not write before it gets the block back.
            assert_eq!(unsafe { ptr.cast::<u64>().read() }, dst);
            replier.release_staging(block);
        });
    });
    let (a, b) = (client.staging_take().unwrap(), client.staging_take().unwrap());
    assert_ne!(a.block, b.block);
    client.staging_give_back(a);
    client.staging_give_back(b);
}

#[test]
fn pinned_memory_is_apart_from_staging_and_known_by_its_address() {
    let (client, server, _doorbell) = pair(small());
    let ptr = client.pinned_alloc(5000).unwrap();
    assert!((ptr as usize).is_multiple_of(256));
    // SAFETY: 5000 bytes were allocated.
    unsafe { ptr.write_bytes(7, 5000) };
    let range = client.pinned_range(ptr, 5000).unwrap();
    assert!(range.offset >= small().staging_bytes());
    // SAFETY: inside the allocation.
    assert_eq!(unsafe { *server.arena().ptr(range).unwrap().add(4999) }, 7);
    let inside = client.pinned_range(ptr.wrapping_add(100), 10).unwrap();
    assert_eq!(inside, ArenaRange { offset: range.offset + 100, len: 10 });
    assert_eq!(client.pinned_range(ptr, 50_000), None);
    assert_eq!(client.pinned_range((&raw const range).cast(), 1), None, "ordinary memory");
    assert!(client.pinned_alloc(1 << 30).is_none(), "the arena is bounded");
    assert!(!client.pinned_free(ptr.wrapping_add(256)));
    assert!(client.pinned_free(ptr));
    assert_eq!(client.pinned_range(ptr, 1), None);
}

#[test]
fn a_system_call_wakes_the_consumer_only_when_it_sleeps() {
    let (client, server, doorbell) = pair(small());
    let post = || client.post(&Record::StreamDestroy { stream: 1 }, None).unwrap();
    let rings = || doorbell.wait(Some(Duration::ZERO)) || doorbell.wait(Some(Duration::from_micros(1)));
    post();
    assert!(!rings(), "awake: no ring");
    assert!(server.prepare_sleep(), "a record is pending");
    server.cancel_sleep();
    post();
    assert!(!rings(), "awake again");
    server.prepare_sleep();
    post();
    assert!(rings());
    post();
    assert!(!rings(), "one ring a sleep");
}

#[test]
fn everyone_who_waits_learns_that_the_server_is_gone() {
    let (client, server, _doorbell) = pair(small());
    let _all_blocks = [client.staging_take().unwrap(), client.staging_take().unwrap()];
    std::thread::scope(|scope| {
        // More callers than slots, a post into a full ring, and a wait for a staging block.
        let mut waiting: Vec<_> =
            (0..6).map(|_| scope.spawn(|| client.call(|reply| Record::MemInfo { reply }).map(|_| ()))).collect();
        waiting.push(scope.spawn(|| {
            loop {
                client.post(&Record::StreamDestroy { stream: 1 }, None)?;
            }
        }));
        waiting.push(scope.spawn(|| client.staging_take().map(|_| ())));
        std::thread::sleep(Duration::from_millis(30));
        assert!(waiting.iter().all(|w| !w.is_finished()));
        let start = Instant::now();
        drop(server);
        for w in waiting {
            assert_eq!(w.join().unwrap(), Err(crate::Lost));
        }
        assert!(start.elapsed() < Duration::from_millis(200), "{:?}: nobody slept until a timeout", start.elapsed());
    });
    assert!(client.is_lost());
    assert_eq!(client.call(|reply| Record::MemInfo { reply }), Err(crate::Lost));
    assert_eq!(client.post(&Record::StreamDestroy { stream: 1 }, None), Err(crate::Lost));
    assert!(client.pinned_alloc(10).is_some(), "bookkeeping of host memory goes on, so that applications can clean up");
}

#[test]
fn a_client_that_breaks_the_protocol_ends_its_session_only() {
    const REPLY: ReplyTo = ReplyTo { slot: 0, seq: 1 };
    let outside = ArenaRange { offset: small().arena_bytes - 8, len: 9 };
    let copy_in = |source| Record::CopyIn { dst: 0, source, stream: None, reply: None };
    let cases: [(&str, Record<'static>); 6] = [
        ("slot", Record::MemInfo { reply: ReplyTo { slot: 4, ..REPLY } }),
        (
            "optional slot",
            Record::Memset { addr: 0, len: 0, value: 0, stream: None, reply: Some(ReplyTo { slot: 4, seq: 1 }) },
        ),
        ("staging block", copy_in(HostSource::Staging { block: 2, len: 1 })),
        ("staging length", copy_in(HostSource::Staging { block: 1, len: 4097 })),
        ("pinned range", copy_in(HostSource::Pinned(outside))),
        ("copy out", Record::CopyOut { dst: outside, src: 0, stream: None, reply: None }),
    ];
    for (what, record) in cases {
        let (client, mut server, _doorbell) = pair(small());
        client.post(&Record::StreamDestroy { stream: 1 }, None).unwrap();
        client.post(&record, None).unwrap();
        client.post(&Record::StreamDestroy { stream: 2 }, None).unwrap();
        let mut seen = 0;
        let violation = server.drain(10, &mut |_, _, _| seen += 1).unwrap_err();
        assert_eq!(seen, 1, "{what}: only what came before");
        assert!(!matches!(violation, Violation::Ring(_) | Violation::Record(_)), "{what}: {violation}");
        assert_eq!(server.drain(10, &mut |_, _, _| seen += 1), Err(violation), "{what}: stays refused");
        assert_eq!(seen, 1);
    }
}

#[test]
fn hostile_words_are_violations_and_never_touch_other_memory() {
    type Attack = fn(&Ring);
    let attacks: [(&str, Attack); 5] = [
        ("tail outruns the ring", |r| r.tail().store(1 << 40, Relaxed)),
        ("tail moves back", |r| r.tail().store(u64::MAX, Relaxed)),
        ("absurd length", |r| {
            r.words()[0].store(u64::MAX / 2, Relaxed);
            r.tail().store(4, Relaxed);
        }),
        ("no such record", |r| {
            r.words()[0].store(8, Relaxed);
            r.words()[1].store(0xff, Relaxed);
            r.tail().store(2, Relaxed);
        }),
        ("head is not believed", |r| {
            r.head().store(77, Relaxed);
            r.tail().store(u64::MAX, Relaxed);
        }),
    ];
    for (what, attack) in attacks {
        let (client, mut server, _doorbell) = pair(small());
        attack(&client.ring());
        let violation = server.drain(10, &mut |_, record, _| panic!("{what}: {record:?}")).unwrap_err();
        assert!(matches!(violation, Violation::Ring(_) | Violation::Record(_)), "{what}: {violation}");
        server.mark_dead();
        assert!(client.is_lost());
    }
}

#[test]
fn a_server_whose_position_makes_no_sense_is_lost() {
    let (client, _server, _doorbell) = pair(small());
    client.ring().head().store(1 << 50, Relaxed);
    let mut result = Ok(());
    for _ in 0..1000 {
        result = client.post(&Record::StreamDestroy { stream: 1 }, None);
        if result.is_err() {
            break;
        }
    }
    assert_eq!(result, Err(crate::Lost));
    assert!(client.is_lost());
}

#[test]
fn sequence_numbers_skip_the_reserved_ones() {
    let (client, mut server, doorbell) = pair(Layout { reply_slots: 1, ..small() });
    client.set_seq(SEQ_LOST - 2);
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                client.call(|reply| Record::MemInfo { reply }).unwrap();
            }
        });
        drain(&mut server, &doorbell, 3, &mut |replier, record, _| {
            let Record::MemInfo { reply } = record else { panic!("{record:?}") };
            seen.push(reply.seq);
            replier.reply(reply, &Reply::ok());
        });
    });
    assert_eq!(seen, [SEQ_LOST - 1, 1, 2]);
}
