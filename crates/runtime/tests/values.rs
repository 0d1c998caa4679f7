//! Streams that write and wait for single words of device memory.

mod common;

use common::{Bench, FUNCTIONAL, PACED, add};
use wire::{Record, ValueCondition};

const EQUAL: ValueCondition = ValueCondition::Equal;

fn stream(bench: &mut Bench, s: usize, stream: u32) {
    bench.post(s, &Record::StreamCreate { stream, priority: 0, flags: 0 });
}

fn wait(bench: &mut Bench, s: usize, stream: u32, addr: u64, value: u64, until: ValueCondition) {
    bench.post(s, &Record::ValueWait { stream, addr, value, until });
}

fn is_idle(bench: &mut Bench, s: usize, stream: u32) -> bool {
    let reply = bench.call(s, |reply| Record::StreamQuery { stream, reply });
    assert_eq!(reply.status, 0, "{}", reply.text);
    reply.payload[0] == 1
}

/// Lets the device work until the stream is idle.
fn settle(bench: &mut Bench, s: usize, stream: u32) {
    assert_eq!(bench.sync(s, stream).status, 0);
}

#[test]
fn a_wait_goes_on_when_the_word_is_as_asked_for_whoever_wrote_it() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    stream(&mut bench, s, 1);
    stream(&mut bench, s, 2);
    let word = bench.malloc(s, 64);
    type Write = fn(&mut Bench, usize, u64);
    let writes: [(&str, Write); 4] = [
        ("a write in a stream", |b, s, word| b.post(s, &Record::ValueWrite { stream: 2, addr: word, value: 1 << 32 })),
        ("a copy from the host", |b, s, word| {
            assert_eq!(b.write(s, word, &(1u64 << 32).to_le_bytes()).status, 0);
        }),
        ("a copy within the device", |b, s, word| {
            assert_eq!(b.write(s, word + 8, &(1u64 << 32).to_le_bytes()).status, 0);
            b.post(s, &Record::CopyDevice { dst: word, src: word + 8, len: 8, stream: Some(2), reply: None });
        }),
        // 1.0 in the upper half has bits of its own.
        ("an operator", |b, s, word| {
            assert_eq!(b.write(s, word + 16, &1f32.to_le_bytes()).status, 0);
            b.op(s, 2, &add(word + 32, word + 16, word + 4, &[1]));
        }),
    ];
    for (what, write) in writes {
        assert_eq!(bench.write(s, word, &[0; 16]).status, 0);
        wait(&mut bench, s, 1, word, 1 << 32, ValueCondition::GreaterOrEqual);
        bench.post(s, &Record::ValueWrite { stream: 2, addr: word, value: 1 });
        settle(&mut bench, s, 2);
        assert!(!is_idle(&mut bench, s, 1), "{what}: another value does not do");
        write(&mut bench, s, word);
        settle(&mut bench, s, 1);
    }
}

#[test]
fn what_is_behind_a_wait_waits_and_a_wait_that_is_met_does_not() {
    let mut bench = Bench::new(FUNCTIONAL, "fifo");
    let s = bench.open();
    stream(&mut bench, s, 1);
    let [word, at] = [0; 2].map(|_| bench.malloc(s, 64));
    wait(&mut bench, s, 1, word, 0, EQUAL);
    settle(&mut bench, s, 1);
    wait(&mut bench, s, 1, word, 6, ValueCondition::And);
    bench.post(s, &Record::Memset { addr: at, len: 8, value: 3, stream: Some(1), reply: None });
    bench.post(s, &Record::ValueWrite { stream: 0, addr: word, value: 9 });
    settle(&mut bench, s, 0);
    assert_eq!(bench.read(s, at, 8).unwrap(), [0; 8]);
    bench.post(s, &Record::ValueWrite { stream: 0, addr: word, value: 12 });
    settle(&mut bench, s, 1);
    assert_eq!(bench.read(s, at, 8).unwrap(), [3; 8]);
}

#[test]
fn the_memory_of_a_wait_lives_until_it_is_over() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let free = bench.free_bytes();
    stream(&mut bench, s, 1);
    let word = bench.malloc(s, 64);
    wait(&mut bench, s, 1, word, 1, EQUAL);
    bench.post(s, &Record::ValueWrite { stream: 0, addr: word, value: 0 });
    assert_eq!(bench.free(s, word).status, 0);
    assert!(bench.free_bytes() < free);
    let id = bench.id(s);
    bench.core.detach(bench.now, id);
    assert_eq!(bench.free_bytes(), free, "a session takes its waits along");
}

#[test]
fn wrong_addresses_are_errors_of_the_stream() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    let word = bench.malloc(s, 64);
    wait(&mut bench, s, 0, word + 512, 1, EQUAL);
    let reply = bench.sync(s, 0);
    assert_eq!(reply.status, 107_000);
    assert!(reply.text.contains("aclrtValueWait: parameter `devAddr`"), "{}", reply.text);
    bench.post(s, &Record::ValueWrite { stream: 0, addr: word - 8, value: 1 });
    let reply = bench.sync(s, 0);
    assert!(reply.text.contains("aclrtValueWrite: parameter `devAddr`"), "{}", reply.text);
    wait(&mut bench, s, 77, word, 1, EQUAL);
    assert_eq!(bench.device_sync(s).status, 107_003, "no such stream");
}

#[test]
fn a_device_without_memory_remembers_the_words_that_were_written() {
    let mut bench = Bench::new(PACED, "passthrough");
    let s = bench.open();
    stream(&mut bench, s, 1);
    let word = bench.malloc(s, 64);
    wait(&mut bench, s, 1, word, 5, EQUAL);
    bench.post(s, &Record::ValueWrite { stream: 0, addr: word, value: 4 });
    settle(&mut bench, s, 0);
    assert!(!is_idle(&mut bench, s, 1));
    bench.post(s, &Record::ValueWrite { stream: 0, addr: word, value: 5 });
    settle(&mut bench, s, 1);
    let other = bench.malloc(s, 64);
    wait(&mut bench, s, 1, other, 0, EQUAL);
    settle(&mut bench, s, 1);
}

#[test]
fn a_launch_waits_at_its_node_and_is_let_go_from_outside() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let s = bench.open();
    stream(&mut bench, s, 1);
    stream(&mut bench, s, 2);
    let [word, at] = [0; 2].map(|_| bench.malloc(s, 64));
    bench.post(s, &Record::GraphBegin { graph: 1, stream: 1 });
    for node in [
        Record::ValueWait { stream: 1, addr: word, value: 1, until: EQUAL },
        Record::ValueWrite { stream: 1, addr: word, value: 0 },
        Record::ValueWrite { stream: 1, addr: at, value: 77 },
    ] {
        let mut bytes = Vec::new();
        wire::encode(&node, None, &mut bytes).unwrap();
        bench.post(s, &Record::GraphNode { graph: 1, group: 0, node: &bytes });
    }
    assert_eq!(bench.call(s, |reply| Record::GraphEnd { graph: 1, reply }).status, 0);
    for round in 0..3u64 {
        assert_eq!(bench.write(s, at, &round.to_le_bytes()).status, 0);
        bench.post(s, &Record::GraphLaunch { graph: 1, stream: 2 });
        assert!(!is_idle(&mut bench, s, 2), "round {round}");
        assert_eq!(bench.read(s, at, 8).unwrap(), round.to_le_bytes());
        bench.post(s, &Record::ValueWrite { stream: 1, addr: word, value: 1 });
        settle(&mut bench, s, 2);
        assert_eq!(bench.read(s, at, 8).unwrap(), 77u64.to_le_bytes());
    }
    assert_eq!(bench.free(s, word).status, 0);
    bench.post(s, &Record::GraphLaunch { graph: 1, stream: 2 });
    let reply = bench.sync(s, 2);
    assert!(reply.status != 0 && reply.text.contains("aclrtValueWait"), "{}", reply.text);
}
