//! Every interleaving of a producer and a consumer, and every value a relaxed load may return, on a tiny ring.

use super::*;
use loom::sync::atomic::AtomicU64;
use loom::sync::{Arc, Notify};
use loom::thread;

struct Shared<W> {
    head: W,
    tail: W,
    sleeping: W,
    words: Vec<W>,
}

struct LoomRing<W>(Arc<Shared<W>>);

impl<W> Clone for LoomRing<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Word> LoomRing<W> {
    fn new(word: impl Fn() -> W) -> Self {
        let words = (0..WORDS_MIN).map(|_| word()).collect();
        Self(Arc::new(Shared { head: word(), tail: word(), sleeping: word(), words }))
    }
}

impl<W: Word> Memory for LoomRing<W> {
    type Word = W;

    fn head(&self) -> &W {
        &self.0.head
    }

    fn tail(&self) -> &W {
        &self.0.tail
    }

    fn sleeping(&self) -> &W {
        &self.0.sleeping
    }

    fn words(&self) -> &[W] {
        &self.0.words
    }
}

/// Three records through a ring that holds two: the third reuses the words of the first.
fn pass_three<W: Word + Send + Sync + 'static>(word: impl Fn() -> W) {
    let ring = LoomRing::new(word);
    let mut producer = Producer::new(ring.clone());
    let writer = thread::spawn(move || {
        for i in 1..=3u64 {
            while producer.try_push(&i.to_le_bytes()).is_err() {
                thread::yield_now();
            }
        }
    });
    let mut consumer = Consumer::new(ring);
    let mut got = Vec::new();
    for i in 1..=3u64 {
        while !consumer.pop(&mut got).expect("an honest producer") {
            thread::yield_now();
        }
        assert_eq!(got, i.to_le_bytes(), "a record was seen before it was written");
    }
    writer.join().unwrap();
}

#[test]
fn records_are_seen_whole_and_in_order() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| pass_three(|| AtomicU64::new(0)));
}

/// The same words with every ordering weakened: what a forgotten `Release` would be.
struct Unordered(AtomicU64);

impl Word for Unordered {
    fn load(&self, _: Ordering) -> u64 {
        self.0.load(Relaxed)
    }
    fn store(&self, value: u64, _: Ordering) {
        self.0.store(value, Relaxed);
    }
    fn swap(&self, value: u64, _: Ordering) -> u64 {
        self.0.swap(value, Relaxed)
    }
    fn fence(_: Ordering) {}
}

#[test]
#[should_panic(expected = "a record was seen before it was written")]
fn the_model_notices_missing_publication() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| pass_three(|| Unordered(AtomicU64::new(0))));
}

/// One record to a consumer that sleeps when there is nothing; a lost wake-up is a deadlock, which loom reports.
fn wake<W: Word + Send + Sync + 'static>(word: impl Fn() -> W) {
    let ring = LoomRing::new(word);
    let bell = Arc::new(Notify::new());
    let mut producer = Producer::new(ring.clone());
    let ringer = Arc::clone(&bell);
    let writer = thread::spawn(move || {
        producer.try_push(&[7]).expect("room");
        if producer.must_ring() {
            ringer.notify();
        }
    });
    let mut consumer = Consumer::new(ring);
    let mut got = Vec::new();
    while !consumer.pop(&mut got).expect("an honest producer") {
        if !consumer.prepare_sleep() {
            bell.wait();
        }
        consumer.cancel_sleep();
    }
    assert_eq!(got, [7]);
    writer.join().unwrap();
}

#[test]
fn no_wake_up_of_the_ring_is_lost() {
    loom::model(|| wake(|| AtomicU64::new(0)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_notices_a_lost_wake_up() {
    loom::model(|| wake(|| Unordered(AtomicU64::new(0))));
}
