//! A single-producer single-consumer ring of records in memory that the two ends share and only one of them trusts.
//!
//! Memory is 64-bit words: `words` (a power of two of them) and two positions, `head` and `tail`, free-running counts of
//! words on their own cache lines. A record is one header word (its length in bytes) and its bytes, padded to a word; it
//! wraps at the end of `words` wherever that falls.
//!
//! **Invariants**
//! - The producer writes words with relaxed stores and publishes with one `Release` store of `tail`; the consumer reads
//!   `tail` with `Acquire` and each word once. Because words are atomics, a peer that writes while we read gives us a wrong
//!   value, not undefined behaviour.
//! - The consumer's position is private; the shared `head` is only told to the producer. A `tail` that moves back or
//!   outruns the capacity, or a length that outruns `tail`, is a [`Violation`], after which the ring yields nothing more.
//! - The producer's position is private too; a `head` that moves back or overtakes it is [`PushError::Corrupt`].
//! - No wake-up is lost: after a publish the producer looks at `sleeping` ([`Producer::must_ring`]), after setting
//!   `sleeping` the consumer looks at `tail` ([`Consumer::prepare_sleep`]), with a sequentially consistent fence between
//!   write and look on both sides, so at least one of them sees the other.
//!
//! The ring never waits itself: how to sleep and how to ring is `session`'s.
//!
//! Publication and wake-ups are checked by loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p wire --release --target-dir target/loom ring`

use crate::RECORD_BYTES_MAX;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use thiserror::Error;

/// A shared 64-bit word.
pub trait Word {
    /// Atomic load.
    fn load(&self, order: Ordering) -> u64;
    /// Atomic store.
    fn store(&self, value: u64, order: Ordering);
    /// Atomic exchange.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// The fence that goes with these atomics.
    fn fence(order: Ordering);
}

macro_rules! word {
    ($atomic:ty, $fence:path) => {
        impl Word for $atomic {
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                <$atomic>::load(self, order)
            }
            #[inline]
            fn store(&self, value: u64, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
            #[inline]
            fn swap(&self, value: u64, order: Ordering) -> u64 {
                <$atomic>::swap(self, value, order)
            }
            #[inline]
            fn fence(order: Ordering) {
                $fence(order);
            }
        }
    };
}
word!(std::sync::atomic::AtomicU64, std::sync::atomic::fence);
#[cfg(loom)]
word!(loom::sync::atomic::AtomicU64, loom::sync::atomic::fence);

/// The memory of one ring, as one end sees it. Clones and other ends see the same words.
pub trait Memory {
    /// Its word type.
    type Word: Word;
    /// Words consumed so far; written by the consumer.
    fn head(&self) -> &Self::Word;
    /// Words produced so far; written by the producer.
    fn tail(&self) -> &Self::Word;
    /// 1 while the consumer sleeps and wants to be rung; set by the consumer, cleared by both.
    fn sleeping(&self) -> &Self::Word;
    /// Records; a power of two of words, at least [`WORDS_MIN`], the same slice every time.
    fn words(&self) -> &[Self::Word];
}

/// Smallest ring in words, for tests with tiny records.
pub const WORDS_MIN: usize = 4;

/// Words that a record of `bytes` bytes takes.
pub const fn words_of(bytes: usize) -> usize {
    1 + bytes.div_ceil(8)
}

/// Why a record was not pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PushError {
    /// Not enough room until the consumer reads; try again.
    #[error("the ring is full")]
    Full,
    /// It never fits.
    #[error("a record of {bytes} bytes exceeds {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most this ring takes.
        max: usize,
    },
    /// The consumer's position makes no sense.
    #[error("the consumer's position {head} is not between the last one and {tail}")]
    Corrupt {
        /// What the consumer claims.
        head: u64,
        /// What was produced.
        tail: u64,
    },
}

/// The producer broke the protocol; the session must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// `tail` moved back or outran the capacity.
    #[error("ring tail {tail} with head {head} in a ring of {capacity} words")]
    Tail {
        /// What the producer claims.
        tail: u64,
        /// The consumer's position.
        head: u64,
        /// Words of the ring.
        capacity: u64,
    },
    /// A record that does not end before `tail`, or is longer than any may be.
    #[error("a record of {bytes} bytes where {available} words were published")]
    Length {
        /// What its header says.
        bytes: u64,
        /// Words between head and tail.
        available: u64,
    },
}

fn mask_of<M: Memory>(memory: &M) -> u64 {
    let len = memory.words().len();
    assert!(len.is_power_of_two() && len >= WORDS_MIN, "a ring of {len} words");
    len as u64 - 1
}

/// The writing end.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    mask: u64,
    tail: u64,
    /// The consumer's position as last read; read again only when the ring looks full.
    head: u64,
}

impl<M: Memory> Producer<M> {
    /// The writing end of an empty ring whose positions are both 0.
    ///
    /// # Panics
    /// If the number of words is not a power of two of at least [`WORDS_MIN`].
    pub fn new(memory: M) -> Self {
        Self::starting_at(memory, 0)
    }

    /// The writing end of an empty ring whose positions are both `position`.
    ///
    /// # Panics
    /// Like [`Producer::new`].
    pub fn starting_at(memory: M, position: u64) -> Self {
        let mask = mask_of(&memory);
        Self { memory, mask, tail: position, head: position }
    }

    /// Most bytes of one record: half the ring at most, so that a full ring always drains.
    pub fn record_bytes_max(&self) -> usize {
        (((self.mask as usize).div_ceil(2) - 1) * 8).min(RECORD_BYTES_MAX)
    }

    /// The ring's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Words produced so far.
    pub fn position(&self) -> u64 {
        self.tail
    }

    /// Writes and publishes one record.
    ///
    /// # Errors
    /// [`PushError::Full`] changes nothing; the others never succeed later.
    pub fn try_push(&mut self, record: &[u8]) -> Result<(), PushError> {
        let max = self.record_bytes_max();
        if record.len() > max {
            return Err(PushError::TooLong { bytes: record.len(), max });
        }
        let need = words_of(record.len()) as u64;
        let capacity = self.mask + 1;
        if capacity - self.tail.wrapping_sub(self.head) < need {
            let head = self.memory.head().load(Acquire);
            if head.wrapping_sub(self.head) > self.tail.wrapping_sub(self.head) {
                return Err(PushError::Corrupt { head, tail: self.tail });
            }
            self.head = head;
            if capacity - self.tail.wrapping_sub(head) < need {
                return Err(PushError::Full);
            }
        }
        let words = self.memory.words();
        let at = (self.tail & self.mask) as usize;
        // The record's words before the end of the ring, and those after it.
        let (wrapped, straight) = words.split_at(at);
        straight[0].store(record.len() as u64, Relaxed);
        let room = ((straight.len() - 1) * 8).min(record.len());
        let (first, second) = record.split_at(room);
        write_words(&straight[1..], first);
        write_words(wrapped, second);
        self.tail = self.tail.wrapping_add(need);
        self.memory.tail().store(self.tail, Release);
        Ok(())
    }

    /// After one or more pushes: true if the consumer sleeps and the caller must wake it. True once a sleep.
    pub fn must_ring(&self) -> bool {
        M::Word::fence(SeqCst);
        let sleeping = self.memory.sleeping();
        sleeping.load(Relaxed) != 0 && sleeping.swap(0, Relaxed) != 0
    }

    /// True if nothing that was pushed is still unread, as far as the shared head tells.
    pub fn is_drained(&self) -> bool {
        self.memory.head().load(Acquire) == self.tail
    }
}

/// `bytes`, zero-padded, into the first words of `to`, which has enough of them.
#[inline]
fn write_words<W: Word>(to: &[W], bytes: &[u8]) {
    let (full, rest) = bytes.as_chunks::<8>();
    for (word, chunk) in to.iter().zip(full) {
        word.store(u64::from_le_bytes(*chunk), Relaxed);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        to[full.len()].store(u64::from_le_bytes(last), Relaxed);
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    mask: u64,
    head: u64,
    /// The producer's position as last read and accepted.
    tail: u64,
}

impl<M: Memory> Consumer<M> {
    /// The reading end of an empty ring whose positions are both 0.
    ///
    /// # Panics
    /// If the number of words is not a power of two of at least [`WORDS_MIN`].
    pub fn new(memory: M) -> Self {
        Self::starting_at(memory, 0)
    }

    /// The reading end of an empty ring whose positions are both `position`.
    ///
    /// # Panics
    /// Like [`Consumer::new`].
    pub fn starting_at(memory: M, position: u64) -> Self {
        let mask = mask_of(&memory);
        Self { memory, mask, head: position, tail: position }
    }

    /// The ring's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// True if the producer published something not yet popped, or broke the protocol (the next pop tells).
    pub fn has_pending(&self) -> bool {
        self.memory.tail().load(Acquire) != self.head
    }

    /// Asks the producer to ring from now on. True if something is pending: then do not sleep.
    pub fn prepare_sleep(&self) -> bool {
        self.memory.sleeping().store(1, Relaxed);
        M::Word::fence(SeqCst);
        self.has_pending()
    }

    /// The consumer is awake: the producer need not ring.
    pub fn cancel_sleep(&self) {
        self.memory.sleeping().store(0, Relaxed);
    }

    /// Copies the next record into `into` (its contents are replaced, its allocation kept) and gives its room back.
    /// `false` if there is none.
    ///
    /// # Errors
    /// If the producer broke the protocol; the position stays, and every later call fails too unless the producer's words
    /// change. The caller ends the session.
    pub fn pop(&mut self, into: &mut Vec<u8>) -> Result<bool, Violation> {
        let capacity = self.mask + 1;
        if self.tail == self.head {
            let tail = self.memory.tail().load(Acquire);
            if tail == self.head {
                return Ok(false);
            }
            if tail.wrapping_sub(self.head) > capacity {
                return Err(Violation::Tail { tail, head: self.head, capacity });
            }
            self.tail = tail;
        }
        let available = self.tail.wrapping_sub(self.head);
        let words = self.memory.words();
        let at = (self.head & self.mask) as usize;
        let (wrapped, straight) = words.split_at(at);
        let bytes = straight[0].load(Relaxed);
        if bytes > RECORD_BYTES_MAX as u64 || words_of(bytes as usize) as u64 > available {
            return Err(Violation::Length { bytes, available });
        }
        let len = bytes as usize;
        let count = words_of(len) - 1;
        if into.len() < count * 8 {
            into.resize(count * 8, 0);
        }
        let first = count.min(straight.len() - 1);
        let (chunks, _) = into.as_chunks_mut::<8>();
        let (to_first, to_second) = chunks[..count].split_at_mut(first);
        read_words(&straight[1..], to_first);
        read_words(wrapped, to_second);
        into.truncate(len);
        self.head = self.head.wrapping_add(words_of(len) as u64);
        self.memory.head().store(self.head, Release);
        Ok(true)
    }
}

#[inline]
fn read_words<W: Word>(from: &[W], to: &mut [[u8; 8]]) {
    for (word, chunk) in from.iter().zip(to) {
        *chunk = word.load(Relaxed).to_le_bytes();
    }
}

#[cfg(all(test, loom))]
#[path = "ring_loom.rs"]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::{HeapRing, check_ring};
    use proptest::prelude::*;

    fn ring(words: usize, position: u64) -> (Producer<HeapRing>, Consumer<HeapRing>, HeapRing) {
        let memory = HeapRing::new(words, position);
        (Producer::starting_at(memory.clone(), position), Consumer::starting_at(memory.clone(), position), memory)
    }

    #[test]
    fn records_wrap_anywhere_and_positions_run_free() {
        for position in (0..16).chain(u64::MAX - 20..=u64::MAX) {
            let (mut producer, mut consumer, _) = ring(16, position);
            let mut got = Vec::new();
            for len in (0..=56).chain(0..=56) {
                let record: Vec<u8> = (0..len).map(|i| i ^ 0x5a).collect();
                producer.try_push(&record).unwrap();
                assert_eq!(consumer.pop(&mut got), Ok(true));
                assert_eq!(got, record, "length {len} from position {position}");
                assert_eq!(consumer.pop(&mut got), Ok(false));
            }
            assert!(producer.is_drained());
        }
    }

    #[test]
    fn full_ring_rejects_push_and_takes_it_later() {
        let (mut producer, mut consumer, _) = ring(8, 0);
        for i in 0..4 {
            producer.try_push(&[i; 8]).unwrap();
        }
        assert_eq!(producer.try_push(&[9]), Err(PushError::Full));
        let mut got = Vec::new();
        assert_eq!(consumer.pop(&mut got), Ok(true));
        assert_eq!(got, [0; 8]);
        producer.try_push(&[9]).unwrap();
        assert_eq!(producer.try_push(&[]), Err(PushError::Full));
    }

    #[test]
    fn record_longer_than_half_the_ring_never_fits() {
        let (mut producer, ..) = ring(8, 0);
        assert_eq!(producer.record_bytes_max(), 24);
        producer.try_push(&[0; 24]).unwrap();
        assert_eq!(producer.try_push(&[0; 25]), Err(PushError::TooLong { bytes: 25, max: 24 }));
        let (producer, ..) = ring(1 << 19, 0);
        assert_eq!(producer.record_bytes_max(), RECORD_BYTES_MAX);
    }

    #[test]
    fn hostile_producer_is_a_violation() {
        type Attack = fn(&HeapRing);
        let attacks: [(&str, Attack); 5] = [
            ("tail outruns the capacity", |m| m.tail().store(9 + 8 + 1, Relaxed)),
            ("tail moves back", |m| m.tail().store(8, Relaxed)),
            ("tail moves far back", |m| m.tail().store(0, Relaxed)),
            ("record outruns the tail", |m| {
                m.words()[1].store(9, Relaxed);
                m.tail().store(11, Relaxed);
            }),
            ("record has an absurd length", |m| {
                m.words()[1].store(u64::MAX, Relaxed);
                m.tail().store(11, Relaxed);
            }),
        ];
        for (what, attack) in attacks {
            let (mut producer, mut consumer, memory) = ring(8, 8);
            let mut got = Vec::new();
            producer.try_push(&[]).unwrap();
            assert_eq!(consumer.pop(&mut got), Ok(true));
            attack(&memory);
            assert!(consumer.has_pending(), "{what}");
            assert!(consumer.pop(&mut got).is_err(), "{what}");
            assert!(consumer.pop(&mut got).is_err(), "{what}: stays refused");
            assert_eq!(memory.head().load(Relaxed), 9, "{what}: nothing was consumed");
            assert!(got.capacity() <= 64, "{what}: nothing was allocated");
        }
    }

    #[test]
    fn hostile_consumer_is_noticed() {
        for head in [1, 9, u64::MAX] {
            let (mut producer, _, memory) = ring(8, 2);
            for _ in 0..4 {
                producer.try_push(&[1]).unwrap();
            }
            memory.head().store(head, Relaxed);
            let want = if head == 9 { Ok(()) } else { Err(PushError::Corrupt { head, tail: 10 }) };
            assert_eq!(producer.try_push(&[1]), want, "head {head}");
        }
    }

    #[test]
    fn consumer_is_rung_once_a_sleep() {
        let (mut producer, mut consumer, _) = ring(8, 0);
        producer.try_push(&[1]).unwrap();
        assert!(!producer.must_ring(), "awake");
        assert!(consumer.prepare_sleep(), "a record is pending");
        consumer.cancel_sleep();
        consumer.pop(&mut Vec::new()).unwrap();
        assert!(!consumer.prepare_sleep());
        producer.try_push(&[1]).unwrap();
        assert!(producer.must_ring());
        assert!(!producer.must_ring(), "rung already");
    }

    #[test]
    fn two_threads_pass_everything_in_order() {
        let (mut producer, mut consumer, _) = ring(64, u64::MAX - 100);
        const COUNT: u64 = 200_000;
        let writer = std::thread::spawn(move || {
            for i in 0..COUNT {
                let record = [i.to_le_bytes(), (!i).to_le_bytes()].concat();
                let record = &record[..8 + (i % 9) as usize];
                while producer.try_push(record) == Err(PushError::Full) {
                    std::thread::yield_now();
                }
            }
        });
        let (mut got, mut next) = (Vec::new(), 0u64);
        while next < COUNT {
            if consumer.pop(&mut got).unwrap() {
                assert_eq!(got.len(), 8 + (next % 9) as usize);
                assert_eq!(got[..8], next.to_le_bytes());
                assert_eq!(got[8..], (!next).to_le_bytes()[..(next % 9) as usize]);
                next += 1;
            } else {
                std::thread::yield_now();
            }
        }
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn ring_agrees_with_a_queue_and_survives_hostile_words(script in prop::collection::vec(any::<u8>(), 0..400)) {
            check_ring(&script);
        }
    }
}
