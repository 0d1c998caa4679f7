//! Modelled time on a paced device: exact, whatever the loop does, and as the contention model says.

mod common;

use common::{Bench, PACED, add, matmul};
use sched::corun::rates;
use sched::{CoRun, Phase, Profile, work};
use wire::Record;

const N: i64 = 4096;

/// Addresses for three matrices; timing devices touch no memory.
fn three(bench: &mut Bench, session: usize) -> [u64; 3] {
    std::array::from_fn(|_| bench.malloc(session, (N * N * 4) as u64))
}

fn events(bench: &mut Bench, session: usize, ids: std::ops::Range<u32>) {
    for event in ids {
        bench.post(session, &Record::EventCreate { event, flags: 0 });
    }
}

fn record(bench: &mut Bench, session: usize, event: u32, stream: u32) {
    bench.post(session, &Record::EventRecord { event, stream });
}

fn solo_ms(calls: &[acl_abi::OpCall]) -> f64 {
    calls.iter().map(|c| Profile::A910B3.demand(&work(c)).solo_s * 1e3).sum()
}

/// Elapsed milliseconds of `calls` on stream 0 alone; `late` is how long the loop sleeps between looks, if it oversleeps.
fn alone(policy: &str, late: Option<u64>) -> (f64, f64) {
    let mut bench = Bench::new(PACED, policy);
    let s = bench.open();
    let [a, b, out] = three(&mut bench, s);
    events(&mut bench, s, 0..2);
    let calls: Vec<_> =
        (0..40).map(|i| if i % 2 == 0 { matmul(a, b, out, N) } else { add(a, b, out, &[N, N]) }).collect();
    // All in one turn, as a client would that runs ahead.
    record(&mut bench, s, 0, 0);
    for call in &calls {
        bench.client(s).post(&Record::Op { stream: 0 }, Some(call)).unwrap();
    }
    bench.client(s).post(&Record::EventRecord { event: 1, stream: 0 }, None).unwrap();
    bench.turn();
    if let Some(late) = late {
        for _ in 0..100 {
            bench.pass(late);
        }
    }
    assert_eq!(bench.sync(s, 0).status, 0);
    (bench.elapsed_ms(s, 0, 1).unwrap(), solo_ms(&calls))
}

#[test]
fn a_stream_alone_takes_the_sum_of_its_operators() {
    for policy in ["passthrough", "fifo", "phase"] {
        let (elapsed, solo) = alone(policy, None);
        assert!((elapsed / solo - 1.0).abs() < 0.001, "{policy}: {elapsed} ms, alone {solo} ms");
    }
}

#[test]
fn waking_up_late_stretches_nothing() {
    let (exact, _) = alone("fifo", None);
    for late in [1_000, 333_333, 7_000_000, 500_000_000] {
        assert_eq!(alone("fifo", Some(late)).0, exact, "looking every {late} ns");
    }
}

#[test]
fn two_streams_together_take_what_the_contention_model_says() {
    for omega in [0.0, 1.0] {
        let spec = format!("Ascend910B3:timing:paced:omega={omega}:kappa_prefill=0:kappa_decode=0");
        let mut bench = Bench::new(&spec, "passthrough");
        let (x, y) = (bench.open(), bench.open());
        let ([a, b, c], [d, e, f]) = (three(&mut bench, x), three(&mut bench, y));
        events(&mut bench, x, 0..2);
        events(&mut bench, y, 0..2);
        let (cube, memory) = (matmul(a, b, c, N), add(d, e, f, &[N, N]));
        record(&mut bench, x, 0, 0);
        record(&mut bench, y, 0, 0);
        let count = 60;
        for _ in 0..count {
            bench.op(x, 0, &cube);
            bench.op(y, 0, &memory);
        }
        record(&mut bench, x, 1, 0);
        record(&mut bench, y, 1, 0);
        assert_eq!(bench.device_sync(x).status, 0);
        assert_eq!(bench.device_sync(y).status, 0);
        let got = [bench.elapsed_ms(x, 0, 1).unwrap(), bench.elapsed_ms(y, 0, 1).unwrap()];

        // Both run side by side until the shorter queue is empty, then the other alone.
        let demands = [&cube, &memory].map(|c| Profile::A910B3.demand(&work(c)));
        let corun = CoRun { omega, kappa_prefill: 0.0, kappa_decode: 0.0 };
        let r = rates(&[(demands[0], Phase::Unknown), (demands[1], Phase::Unknown)], &corun);
        let total = demands.map(|d| d.solo_s * f64::from(count) * 1e3);
        let finish = [total[0] / r[0], total[1] / r[1]];
        let first = usize::from(finish[1] < finish[0]);
        let second = 1 - first;
        let mut want = [0.0; 2];
        want[first] = finish[first];
        want[second] = finish[first] + (total[second] - finish[first] * r[second]);
        for i in 0..2 {
            assert!((got[i] / want[i] - 1.0).abs() < 0.03, "ω={omega}: stream {i} took {got:?} ms, model {want:?} ms");
        }
        let serial = total[0] + total[1];
        let last = got[0].max(got[1]);
        match omega {
            0.0 => assert!((last / serial - 1.0).abs() < 0.01, "nothing overlaps: {last} of {serial}"),
            _ => assert!(last < 0.95 * serial, "cube and memory overlap: {last} of {serial}"),
        }
    }
}

#[test]
fn a_stream_waits_for_the_event_of_another() {
    let mut bench = Bench::new(PACED, "passthrough");
    let s = bench.open();
    let [a, b, out] = three(&mut bench, s);
    events(&mut bench, s, 0..4);
    bench.post(s, &Record::StreamCreate { stream: 1, priority: 0, flags: 0 });
    record(&mut bench, s, 0, 0);
    // Never recorded: nobody waits.
    bench.post(s, &Record::StreamWaitEvent { stream: 1, event: 3 });
    bench.op(s, 0, &matmul(a, b, out, N));
    record(&mut bench, s, 1, 0);
    bench.post(s, &Record::StreamWaitEvent { stream: 1, event: 1 });
    bench.op(s, 1, &matmul(a, b, out, N));
    record(&mut bench, s, 2, 1);
    let query = |bench: &mut Bench, event| bench.call(s, move |reply| Record::EventQuery { event, reply }).payload[0];
    assert_eq!(query(&mut bench, 1), 0);
    assert_eq!(bench.elapsed_ms(s, 0, 1).unwrap_err().status, 507_006, "not complete");
    assert_eq!(bench.elapsed_ms(s, 0, 3).unwrap_err().status, 107_006, "not recorded");
    assert_eq!(bench.call(s, |reply| Record::EventSync { event: 2, reply }).status, 0);
    assert_eq!((query(&mut bench, 1), query(&mut bench, 2), query(&mut bench, 3)), (1, 1, 0));
    let solo = solo_ms(&[matmul(a, b, out, N)]);
    let (first, both) = (bench.elapsed_ms(s, 0, 1).unwrap(), bench.elapsed_ms(s, 0, 2).unwrap());
    assert!((first / solo - 1.0).abs() < 0.001 && (both / solo - 2.0).abs() < 0.002, "{first} {both} {solo}");
    assert_eq!(bench.elapsed_ms(s, 2, 0).unwrap_err().status, 107_007, "backwards");
}

#[test]
fn queries_say_whether_a_stream_is_idle_and_cost_nothing_when_repeated() {
    let mut bench = Bench::new(PACED, "passthrough");
    let s = bench.open();
    let [a, b, out] = three(&mut bench, s);
    let query = |bench: &mut Bench| bench.call(s, |reply| Record::StreamQuery { stream: 0, reply }).payload[0];
    assert_eq!(query(&mut bench), 1, "nothing was pushed");
    bench.op(s, 0, &matmul(a, b, out, N));
    for _ in 0..50 {
        assert_eq!(query(&mut bench), 0);
    }
    let items = bench.core.snapshot(Default::default(), 0).sessions[0].items;
    assert!(items <= 2, "{items} items after fifty queries");
    bench.pass(1_000_000_000);
    assert_eq!(query(&mut bench), 1);
}

#[test]
fn an_allocation_waits_for_memory_that_queued_work_still_uses() {
    let spec = format!("{PACED}:hbm=1");
    let mut bench = Bench::new(&spec, "fifo");
    let s = bench.open();
    let total = bench.free_bytes();
    let size = total / 4;
    let [a, b, out] = std::array::from_fn(|_| bench.malloc(s, size));
    for _ in 0..20 {
        bench.op(s, 0, &matmul(a, b, out, N));
    }
    let queued_at = bench.now;
    assert_eq!(bench.free(s, out).status, 0);
    let held = bench.core.snapshot(Default::default(), 0).sessions[0].clone();
    assert_eq!(held.memory_freeing_bytes, size, "still in use");
    assert_eq!(bench.free_bytes(), total - 3 * size);
    // Fits only once the last of the twenty is through: then it comes, and no sooner.
    let addr = bench.malloc(s, size + size / 2);
    assert_ne!(addr, 0);
    let waited = (bench.now - queued_at) as f64 / 1e6;
    let work = solo_ms(&vec![matmul(a, b, out, N); 20]);
    assert!((waited / work - 1.0).abs() < 0.01, "waited {waited} ms for {work} ms of work");
    // What can never fit fails once nothing is left to wait for, with the code that allocators retry on.
    for _ in 0..5 {
        bench.op(s, 0, &matmul(a, b, a, N));
    }
    assert_eq!(bench.free(s, a).status, 0);
    let reply = bench.call(s, move |reply| Record::Malloc { size: 2 * total, reply });
    assert_eq!(reply.status, 207_001);
}

#[test]
fn a_session_dies_while_its_work_runs_and_the_neighbour_gets_the_device() {
    let mut bench = Bench::new(PACED, "fifo");
    let start = bench.free_bytes();
    let (dying, neighbour) = (bench.open(), bench.open());
    let [a, b, c] = three(&mut bench, dying);
    let [d, e, f] = three(&mut bench, neighbour);
    for _ in 0..1000 {
        bench.op(dying, 0, &matmul(a, b, c, N));
    }
    bench.op(neighbour, 0, &matmul(d, e, f, N));
    let (died, id) = (bench.now, bench.id(dying));
    bench.core.detach(died, id);
    assert_eq!(bench.sync(neighbour, 0).status, 0);
    let one = Profile::A910B3.solo(&work(&matmul(a, b, c, N)));
    assert!(bench.now - died <= 2 * one + 1000, "behind at most one operator: {} of {one}", bench.now - died);
    let id = bench.id(neighbour);
    bench.core.detach(bench.now, id);
    assert_eq!(bench.free_bytes(), start);
}

#[test]
fn the_policy_changes_while_work_is_queued_and_nothing_is_lost() {
    let mut bench = Bench::new(PACED, "fifo");
    let (x, y) = (bench.open(), bench.open());
    let ([a, b, c], [d, e, f]) = (three(&mut bench, x), three(&mut bench, y));
    for _ in 0..30 {
        bench.op(x, 0, &matmul(a, b, c, N));
        bench.op(y, 0, &add(d, e, f, &[N, N]));
    }
    for policy in ["phase", "passthrough", "fifo", "phase"] {
        bench.pass(3_000_000);
        bench.core.set_policy(bench.now, common::policy(policy));
    }
    assert_eq!(bench.device_sync(x).status, 0);
    assert_eq!(bench.device_sync(y).status, 0);
    let snapshot = bench.core.snapshot(Default::default(), 0);
    assert_eq!(snapshot.phases.iter().map(|p| p.completed).sum::<u64>(), 60);
    assert_eq!((snapshot.in_flight, snapshot.queued, snapshot.calls_waiting), (0, 0, 0));
}

#[test]
fn measured_time_equals_predicted_time_for_a_stream_alone() {
    let mut bench = Bench::new(PACED, "fifo");
    let s = bench.open();
    let [a, b, out] = three(&mut bench, s);
    for _ in 0..25 {
        bench.op(s, 0, &matmul(a, b, out, N));
    }
    assert_eq!(bench.sync(s, 0).status, 0);
    let (predicted, measured) = bench
        .core
        .snapshot(Default::default(), 0)
        .phases
        .iter()
        .fold((0, 0), |(p, m), phase| (p + phase.predicted_ns, m + phase.measured_ns));
    assert!(predicted > 0 && (measured as f64 / predicted as f64 - 1.0).abs() < 0.001, "{measured} of {predicted}");
}

#[test]
fn an_unpaced_timing_device_is_through_at_once() {
    let mut bench = Bench::new("Ascend910B3:timing", "fifo");
    let s = bench.open();
    let [a, b, out] = three(&mut bench, s);
    for _ in 0..100 {
        bench.client(s).post(&Record::Op { stream: 0 }, Some(&matmul(a, b, out, N))).unwrap();
    }
    let before = bench.now;
    bench.turn();
    assert_eq!(bench.core.snapshot(Default::default(), 0).sessions[0].items, 0);
    assert_eq!(bench.sync(s, 0).status, 0);
    assert_eq!(bench.now, before);
}

#[test]
fn streams_full_of_event_records_stop_the_ring_and_lose_nothing() {
    let limits = runtime::Limits { queued_items_max: 20, drain_records_max: 8, ..runtime::Limits::default() };
    let mut bench = Bench::with_limits(PACED, "fifo", limits);
    let s = bench.open();
    let [a, b, out] = three(&mut bench, s);
    events(&mut bench, s, 0..2);
    bench.op(s, 0, &matmul(a, b, out, N));
    record(&mut bench, s, 0, 0);
    for i in 0..500 {
        let (event, stream) = (i % 2, 0);
        bench.client(s).post(&Record::EventRecord { event, stream }, None).unwrap();
        bench.client(s).post(&Record::Op { stream }, Some(&add(a, b, out, &[N]))).unwrap();
    }
    for _ in 0..100 {
        bench.turn();
    }
    let snapshot = bench.core.snapshot(Default::default(), 0);
    assert!(snapshot.sessions[0].back_pressure && snapshot.queued <= 4 * 20, "{}", snapshot.queued);
    for _ in 0..1000 {
        bench.pass(100_000);
    }
    let reply = bench.device_sync(s);
    assert_eq!(reply.status, 0, "{}", reply.text);
    let snapshot = bench.core.snapshot(Default::default(), 0);
    assert_eq!(snapshot.phases.iter().map(|p| p.completed).sum::<u64>(), 501);
    // The same with nothing but events behind the operator: only the dispatcher's bound can stop those.
    bench.op(s, 0, &matmul(a, b, out, N));
    for _ in 0..500 {
        bench.client(s).post(&Record::EventRecord { event: 1, stream: 0 }, None).unwrap();
    }
    for _ in 0..600 {
        bench.turn();
    }
    let snapshot = bench.core.snapshot(Default::default(), 0);
    assert!(snapshot.sessions[0].back_pressure && (70..=80).contains(&snapshot.queued), "{}", snapshot.queued);
    bench.pass(1_000_000_000);
    for _ in 0..600 {
        bench.turn();
    }
    let reply = bench.device_sync(s);
    assert_eq!(reply.status, 0, "{}", reply.text);
}
