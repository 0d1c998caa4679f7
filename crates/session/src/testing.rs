//! A client that does as it likes, for tests and fuzz targets: it writes the ring by hand and scribbles over shared words.
//!
//! It never waits, so that one thread can be both ends. Nothing of the daemon's end is reached but through the memory that the
//! two share.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use wire::ring::{Memory as _, Producer};

use crate::client::Client;
use crate::shared::{Ring, Shared};

/// Words of the first page that mean something; see the table in [`crate::shared`](self).
const FIXED_WORDS: usize = 4096 / 8;

/// The hostile end of a session. Dropping the [`Client`] that it was made of ends nothing here.
pub struct Hostile {
    shared: Arc<Shared>,
    producer: Producer<Ring>,
}

/// The words of a session's memory in front of its arena. `Send`: for a thread that writes while the daemon reads.
#[derive(Clone)]
pub struct Words(Arc<Shared>);

impl Hostile {
    /// Takes the place of `client`, which has posted nothing.
    pub fn of(client: &Client) -> Self {
        let shared = Arc::clone(client.shared());
        let producer = Producer::new(Ring(Arc::clone(&shared)));
        Self { shared, producer }
    }

    /// Publishes a record, if it fits; after a scribbled position the ring goes on from where its tail says that it is.
    pub fn push(&mut self, record: &[u8]) -> bool {
        match self.producer.try_push(record) {
            Ok(()) => true,
            Err(wire::ring::PushError::Corrupt { .. }) => {
                let ring = Ring(Arc::clone(&self.shared));
                let tail = ring.tail().load(Relaxed);
                self.producer = Producer::starting_at(ring, tail);
                false
            }
            Err(_) => false,
        }
    }

    /// Words to scribble over.
    pub fn words(&self) -> Words {
        Words(Arc::clone(&self.shared))
    }
}

impl Words {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.words_before_arena().len()
    }

    /// Never: the first page is always there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Overwrites one; past the end, one of the fixed words.
    pub fn store(&self, index: usize, value: u64) {
        let words = self.0.words_before_arena();
        words[if index < words.len() { index } else { index % FIXED_WORDS }].store(value, Relaxed);
    }

    /// Moves the ring's tail by `by` words from where it is.
    pub fn move_tail(&self, by: i64) {
        let ring = Ring(Arc::clone(&self.0));
        let tail = ring.tail().load(Relaxed);
        ring.tail().store(tail.wrapping_add_signed(by), Relaxed);
    }

    /// Overwrites the length of the record that the daemon reads next, and what stands `behind` it.
    pub fn store_at_head(&self, behind: usize, value: u64) {
        let ring = Ring(Arc::clone(&self.0));
        let words = ring.words();
        let at = (ring.head().load(Relaxed) as usize).wrapping_add(behind) & (words.len() - 1);
        words[at].store(value, Relaxed);
    }
}
