//! Graphs: captured once, launched many times, as if their nodes had been posted.

mod common;

use acl_abi::OpCall;
use common::{Bench, FUNCTIONAL, PACED, add, matmul};
use runtime::Limits;
use sched::Phase;
use sched::calls::{Batch, attention};
use sched::model::Model;
use wire::{Hint, Record, Reply};

/// Bytes of a record that is a node.
fn node(record: &Record<'_>, call: Option<&OpCall>) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode(record, call, &mut bytes).unwrap();
    bytes
}

fn begin(bench: &mut Bench, s: usize, graph: u32, stream: u32) {
    bench.post(s, &Record::GraphBegin { graph, stream });
}

fn append(bench: &mut Bench, s: usize, graph: u32, record: &Record<'_>, call: Option<&OpCall>) {
    bench.post(s, &Record::GraphNode { graph, group: 0, node: &node(record, call) });
}

fn end(bench: &mut Bench, s: usize, graph: u32) -> Reply {
    bench.call(s, move |reply| Record::GraphEnd { graph, reply })
}

fn number(bench: &mut Bench, s: usize, addr: u64) -> f32 {
    let bytes = bench.read(s, addr, 4).unwrap();
    f32::from_le_bytes(bytes.try_into().unwrap())
}

fn stream(bench: &mut Bench, s: usize, stream: u32) {
    bench.post(s, &Record::StreamCreate { stream, priority: 0, flags: 0 });
}

#[test]
fn a_launch_does_what_its_nodes_would_and_again_with_other_contents() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let (a, b) = (bench.malloc(s, 64), bench.malloc(s, 64));
    begin(&mut bench, s, 1, 0);
    append(&mut bench, s, 1, &Record::Op { stream: 0 }, Some(&add(a, a, b, &[1])));
    append(&mut bench, s, 1, &Record::CopyDevice { dst: a, src: b, len: 4, stream: Some(0), reply: None }, None);
    assert_eq!(end(&mut bench, s, 1).status, 0);
    for start in [1f32, 3.0] {
        assert_eq!(bench.write(s, a, &start.to_le_bytes()).status, 0);
        for _ in 0..5 {
            bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
        }
        assert_eq!(bench.sync(s, 0).status, 0);
        assert_eq!(number(&mut bench, s, a), start * 32.0);
    }
    bench.post(s, &Record::GraphDestroy { graph: 1 });
    bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
    let gone = bench.sync(s, 0);
    assert!(gone.status != 0 && gone.text.contains("no graph 1"), "{gone:?}");
}

#[test]
fn lanes_run_beside_each_other_and_are_joined() {
    let n = 2048;
    let mut bench = Bench::new(PACED, "passthrough");
    let s = bench.open();
    let [a, b, c] = std::array::from_fn(|_| bench.malloc(s, n * n * 2));
    for id in [1, 2, 3] {
        stream(&mut bench, s, id);
    }
    begin(&mut bench, s, 9, 1);
    let op = |stream, out| (Record::Op { stream }, matmul(a, b, out, n as i64));
    append(&mut bench, s, 9, &Record::EventRecord { event: 1, stream: 1 }, None);
    append(&mut bench, s, 9, &Record::StreamWaitEvent { stream: 2, event: 1 }, None);
    for (record, call) in [op(1, c), op(2, a)] {
        append(&mut bench, s, 9, &record, Some(&call));
    }
    append(&mut bench, s, 9, &Record::EventRecord { event: 2, stream: 2 }, None);
    append(&mut bench, s, 9, &Record::StreamWaitEvent { stream: 1, event: 2 }, None);
    append(&mut bench, s, 9, &op(1, b).0, Some(&op(1, b).1));
    assert_eq!(end(&mut bench, s, 9).status, 0);
    // On another stream than it was captured on, twice at once.
    bench.post(s, &Record::GraphLaunch { graph: 9, stream: 3 });
    bench.post(s, &Record::GraphLaunch { graph: 9, stream: 3 });
    assert_eq!(bench.sync(s, 3).status, 0);
    let snapshot = bench.core.snapshot(Default::default(), 0);
    let completed: u64 = snapshot.sessions[0].phases.iter().map(|p| p.completed).sum();
    assert_eq!(completed, 6, "the launching stream waited for both lanes");
    assert_eq!((snapshot.sessions[0].items, snapshot.queued), (0, 0));
    let streams = snapshot.sessions[0].streams;
    bench.post(s, &Record::GraphDestroy { graph: 9 });
    assert_eq!(bench.core.snapshot(Default::default(), 0).sessions[0].streams, streams - 1, "the lane is gone");
}

#[test]
fn freed_memory_is_an_error_of_the_launch_and_harms_nothing() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let (a, b) = (bench.malloc(s, 64), bench.malloc(s, 64));
    assert_eq!(bench.write(s, a, &1f32.to_le_bytes()).status, 0);
    begin(&mut bench, s, 1, 0);
    append(&mut bench, s, 1, &Record::Op { stream: 0 }, Some(&add(a, a, a, &[1])));
    append(&mut bench, s, 1, &Record::Op { stream: 0 }, Some(&add(a, a, b, &[1])));
    assert_eq!(end(&mut bench, s, 1).status, 0);
    bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
    assert_eq!(bench.sync(s, 0).status, 0);
    assert_eq!(bench.free(s, b).status, 0);
    bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
    let refused = bench.sync(s, 0);
    assert!(refused.status != 0 && refused.text.contains("aclmdlRIExecuteAsync: aclnnAdd"), "{refused:?}");
    assert_eq!(number(&mut bench, s, a), 2.0, "not even the first node ran");
    assert_eq!(bench.sync(s, 0).status, 0, "told once");
    assert_eq!(bench.free(s, a).status, 0);
    assert_eq!(bench.free_bytes(), bench.core.device().memory().total);
}

#[test]
fn groups_take_new_arguments_also_in_launches_under_way() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let [a, b, c] = std::array::from_fn(|_| bench.malloc(s, 64));
    assert_eq!(bench.write(s, a, &1f32.to_le_bytes()).status, 0);
    begin(&mut bench, s, 1, 0);
    let gate = 5;
    append(&mut bench, s, 1, &Record::FlagWait { stream: 0, flag: gate }, None);
    append(&mut bench, s, 1, &Record::FlagClear { stream: 0, flag: gate }, None);
    let grouped = node(&Record::Op { stream: 0 }, Some(&add(a, a, b, &[1])));
    bench.post(s, &Record::GraphNode { graph: 1, group: 7, node: &grouped });
    assert_eq!(end(&mut bench, s, 1).status, 0);
    stream(&mut bench, s, 1);
    // Launched first, updated behind it, let go last: as vLLM does.
    bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
    let other = node(&Record::Op { stream: 0 }, Some(&add(a, a, c, &[1])));
    bench.post(s, &Record::GraphUpdate { graph: 1, group: 7, index: 0, node: &other });
    bench.post(s, &Record::FlagSet { stream: 1, flag: gate });
    assert_eq!(bench.sync(s, 0).status, 0);
    assert_eq!((number(&mut bench, s, b), number(&mut bench, s, c)), (0.0, 2.0));
    // An update that frees the ground under itself is an error of that operator.
    bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
    assert_eq!(bench.free(s, c).status, 0);
    bench.post(s, &Record::FlagSet { stream: 1, flag: gate });
    assert!(bench.sync(s, 0).text.contains("aclnnAdd"));
    bench.post(s, &Record::GraphUpdate { graph: 1, group: 7, index: 1, node: &other });
    assert!(bench.device_sync(s).text.contains("no operator number 1"));
}

/// Attention over sequences of these lengths, a token each; 0 pads.
fn decode(base: u64, contexts: &[u64]) -> OpCall {
    at(base, &Batch { queries: vec![1; contexts.len()], contexts: contexts.to_vec(), paged: true })
}

fn at(base: u64, batch: &Batch) -> OpCall {
    let mut call = attention(&Model { layers: 1, ..Model::QWEN2_5_7B }, batch);
    for tensor in &mut call.tensors {
        tensor.addr = base;
    }
    call
}

#[test]
fn steps_and_requests_of_a_graph_are_those_of_its_updates() {
    const GATE: u32 = 5;
    let mut bench = Bench::new(PACED, "passthrough");
    let s = bench.open();
    let base = bench.malloc(s, 8 << 30);
    stream(&mut bench, s, 1);
    begin(&mut bench, s, 1, 0);
    append(&mut bench, s, 1, &Record::FlagWait { stream: 0, flag: GATE }, None);
    append(&mut bench, s, 1, &Record::FlagClear { stream: 0, flag: GATE }, None);
    // Captured as vLLM does: four sequences of one token, which looks like four prompts.
    let captured = node(&Record::Op { stream: 0 }, Some(&decode(base, &[1; 4])));
    bench.post(s, &Record::GraphNode { graph: 1, group: 7, node: &captured });
    assert_eq!(end(&mut bench, s, 1).status, 0);
    let hint = Hint::Admitted {
        request: 9,
        prompt_tokens: 40,
        max_tokens: 20,
        ttft_deadline_ms: 0,
        tpot_target_ms: 0,
        priority: 0,
        tenant: "blue".to_owned(),
    };
    bench.post(s, &Record::Hint(hint));
    bench.op(s, 0, &at(base, &Batch { paged: true, ..Batch::prefill(40) }));
    assert_eq!(bench.sync(s, 0).status, 0);
    let launch = |bench: &mut Bench, update: Option<&[u64]>, between: &mut dyn FnMut(&mut Bench)| {
        bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
        between(bench);
        if let Some(contexts) = update {
            let replaced = node(&Record::Op { stream: 0 }, Some(&decode(base, contexts)));
            bench.post(s, &Record::GraphUpdate { graph: 1, group: 7, index: 0, node: &replaced });
        }
        bench.post(s, &Record::FlagSet { stream: 1, flag: GATE });
        assert_eq!(bench.sync(s, 0).status, 0);
    };
    launch(&mut bench, Some(&[41, 17, 9, 0]), &mut |_| {});
    // The graph's step has ended, as far as the stream tells, before it is known what it works on.
    launch(&mut bench, Some(&[42, 18, 10, 5]), &mut |bench| {
        bench.op(s, 0, &at(base, &Batch { paged: true, ..Batch::prefill(30) }));
    });
    // Not updated: it works on what it did before.
    launch(&mut bench, None, &mut |_| {});
    let found: Vec<_> = bench.core.steps(0).iter().map(|s| (s.phase, s.query_tokens, s.key_tokens)).collect();
    let (prefill, decode) = (Phase::Prefill, Phase::Decode);
    assert_eq!(found, [(prefill, 40, 40), (decode, 3, 67), (decode, 4, 75), (prefill, 30, 30), (decode, 4, 75)]);
    let whose: Vec<_> = bench.core.steps(0).into_iter().map(|s| s.requests).collect();
    assert_eq!(whose, [vec![9], vec![9], vec![9], vec![], vec![]]);
    assert_eq!(bench.core.requests()[0].context, 42);
}

#[test]
fn a_launch_larger_than_the_queue_goes_in_piece_by_piece() {
    let limits = Limits { queued_items_max: 8, ..Limits::default() };
    let mut bench = Bench::with_limits(PACED, "passthrough", limits);
    let s = bench.open();
    let a = bench.malloc(s, 1 << 20);
    begin(&mut bench, s, 1, 0);
    for _ in 0..100 {
        append(&mut bench, s, 1, &Record::Op { stream: 0 }, Some(&add(a, a, a, &[1 << 18])));
    }
    assert_eq!(end(&mut bench, s, 1).status, 0);
    bench.client(s).post(&Record::GraphLaunch { graph: 1, stream: 0 }, None).unwrap();
    bench.turn();
    let held = bench.core.snapshot(Default::default(), 0);
    assert!(held.sessions[0].items <= 9 && held.sessions[0].back_pressure, "{:?}", held.sessions[0]);
    let mut passes = 0;
    while bench.core.snapshot(Default::default(), 0).sessions[0].back_pressure {
        bench.pass(10_000);
        passes += 1;
        assert!(passes < 100_000, "the launch never gets in");
    }
    assert_eq!(bench.sync(s, 0).status, 0);
    let completed: u64 =
        bench.core.snapshot(Default::default(), 0).sessions[0].phases.iter().map(|p| p.completed).sum();
    assert_eq!(completed, 100);
}

/// What a launch waits for at its start may be posted behind it, however long the launch is.
#[test]
fn a_launch_larger_than_the_queue_may_wait_for_what_is_posted_behind_it() {
    let limits = Limits { queued_items_max: 8, ..Limits::default() };
    for (device, policy) in [(FUNCTIONAL, "passthrough"), (PACED, "phase")] {
        let mut bench = Bench::with_limits(device, policy, limits);
        let s = bench.open();
        let [a, b, c] = std::array::from_fn(|_| bench.malloc(s, 64));
        assert_eq!(bench.write(s, a, &1f32.to_le_bytes()).status, 0);
        stream(&mut bench, s, 1);
        begin(&mut bench, s, 1, 0);
        append(&mut bench, s, 1, &Record::FlagWait { stream: 0, flag: 5 }, None);
        append(&mut bench, s, 1, &Record::FlagClear { stream: 0, flag: 5 }, None);
        let grouped = node(&Record::Op { stream: 0 }, Some(&add(a, a, b, &[1])));
        for _ in 0..100 {
            append(&mut bench, s, 1, &Record::Op { stream: 0 }, Some(&add(b, a, b, &[1])));
        }
        bench.post(s, &Record::GraphNode { graph: 1, group: 7, node: &grouped });
        assert_eq!(end(&mut bench, s, 1).status, 0);
        for launch in 1..=3 {
            bench.post(s, &Record::GraphLaunch { graph: 1, stream: 0 });
            // As many more as the queue holds, then what lets the launch go.
            let other = node(&Record::Op { stream: 0 }, Some(&add(b, a, c, &[1])));
            bench.post(s, &Record::GraphUpdate { graph: 1, group: 7, index: 0, node: &other });
            for _ in 0..4 {
                bench.client(s).post(&Record::Op { stream: 1 }, Some(&add(a, a, a, &[0]))).unwrap();
            }
            bench.post(s, &Record::FlagSet { stream: 1, flag: 5 });
            // The device takes its time, which passes here alone until a call has come.
            let mut passes = 0;
            while bench.core.snapshot(Default::default(), 0).sessions[0].items > 0 {
                bench.pass(10_000);
                passes += 1;
                assert!(passes < 100_000, "{policy}, launch {launch} never gets in");
            }
            assert_eq!(bench.sync(s, 0).status, 0);
            let sums = (number(&mut bench, s, b), number(&mut bench, s, c));
            // A device that only takes time computes nothing.
            let want =
                if device == FUNCTIONAL { (100.0 * launch as f32, 100.0 * launch as f32 + 1.0) } else { (0.0, 0.0) };
            assert_eq!(sums, want, "{policy}, launch {launch}");
        }
    }
}

#[test]
fn what_is_no_node_is_refused_at_the_end_and_a_death_leaves_nothing() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let a = bench.malloc(s, 64);
    begin(&mut bench, s, 1, 0);
    append(&mut bench, s, 1, &Record::StreamDestroy { stream: 0 }, None);
    assert!(end(&mut bench, s, 1).text.contains("do not hold"));
    begin(&mut bench, s, 2, 0);
    bench.post(s, &Record::GraphNode { graph: 2, group: 0, node: b"\xff\xff" });
    assert_ne!(end(&mut bench, s, 2).status, 0);
    assert_ne!(end(&mut bench, s, 3).status, 0, "never begun");
    begin(&mut bench, s, 4, 0);
    append(&mut bench, s, 4, &Record::FlagWait { stream: 0, flag: 1 }, None);
    append(&mut bench, s, 4, &Record::Op { stream: 0 }, Some(&add(a, a, a, &[1])));
    assert_eq!(end(&mut bench, s, 4).status, 0);
    bench.post(s, &Record::GraphLaunch { graph: 4, stream: 0 });
    bench.post(s, &Record::HostCall { stream: 0, call: 9, block: true });
    begin(&mut bench, s, 5, 0);
    let (now, id) = (bench.now, bench.id(s));
    bench.core.detach(now, id);
    let left = bench.core.snapshot(Default::default(), 0);
    assert_eq!((left.sessions.len(), left.queued, left.memory.used_bytes), (0, 0, 0));
}
