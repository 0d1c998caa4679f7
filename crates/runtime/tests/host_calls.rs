//! Streams that call the host.

mod common;

use common::{Bench, FUNCTIONAL, add};
use wire::Record;

/// What the client's open call answers.
fn told(bench: &mut Bench, s: usize) -> Vec<u64> {
    let reply = bench.call(s, |reply| Record::HostWait { reply });
    reply.payload[1..][..reply.payload[0] as usize].to_vec()
}

fn number(bench: &mut Bench, s: usize, addr: u64) -> f32 {
    let bytes = bench.read(s, addr, 4).unwrap();
    f32::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn calls_come_in_stream_order_and_hold_the_stream_if_asked() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let a = bench.malloc(s, 64);
    assert_eq!(bench.write(s, a, &1f32.to_le_bytes()).status, 0);
    bench.op(s, 0, &add(a, a, a, &[1]));
    for call in 1..=4 {
        bench.post(s, &Record::HostCall { stream: 0, call, block: call == 4 });
    }
    bench.op(s, 0, &add(a, a, a, &[1]));
    let mut calls = told(&mut bench, s);
    assert!(!calls.is_empty());
    while calls.len() < 4 {
        calls.extend(told(&mut bench, s));
    }
    assert_eq!(calls, [1, 2, 3, 4]);
    let idle = bench.call(s, |reply| Record::StreamQuery { stream: 0, reply });
    assert_eq!((idle.payload[0], number(&mut bench, s, a)), (0, 2.0), "the second operator waits");
    bench.post(s, &Record::FlagRelease { flag: 4 });
    assert_eq!(bench.sync(s, 0).status, 0);
    assert_eq!(number(&mut bench, s, a), 4.0);
    assert_eq!(bench.core.snapshot(Default::default(), 0).queued, 0);
}

#[test]
fn other_streams_go_on_beside_a_call_that_never_returns() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let (s, other) = (bench.open(), bench.open());
    bench.post(s, &Record::StreamCreate { stream: 1, priority: 0, flags: 0 });
    bench.post(s, &Record::HostCall { stream: 1, call: 1, block: true });
    let (a, b) = (bench.malloc(s, 64), bench.malloc(other, 64));
    bench.op(s, 1, &add(a, a, a, &[1]));
    bench.op(s, 0, &add(a, a, a, &[1]));
    bench.op(other, 0, &add(b, b, b, &[1]));
    assert_eq!((bench.sync(s, 0).status, bench.sync(other, 0).status), (0, 0));
    bench.post(s, &Record::StreamDestroy { stream: 1 });
    let (now, id) = (bench.now, bench.id(s));
    bench.core.detach(now, id);
    let left = bench.core.snapshot(Default::default(), 0);
    assert_eq!((left.sessions.len(), left.queued), (1, 0));
}
