//! The memory that the ranks of a communicator share: for every ordered pair of ranks a channel of a few slots.
//!
//! | byte | content | written by |
//! |---|---|---|
//! | 64 r | how rank r has left: 0 not, 1 in order, 2 otherwise | r, or whoever notices |
//! | 4096 + 512 c | of channel c: chunks in slots so far, messages offered so far | the sender |
//! | … + 64 | chunks taken out so far, messages wanted so far | the receiver |
//! | … + 128 + 16 s | of slot s: tag and length of the message that its chunk is of | the sender, before the count |
//!
//! Behind that the slots' bytes, [`CHUNK_BYTES`] each. Channel c from rank `a` to rank `b` is number `a · ranks + b`.
//!
//! **Trust:** the daemons of one machine and user trust each other with the bytes of collectives and nothing more: counts are
//! checked where they are used, and bytes are only ever copied.

use crate::doorbell::ring_fd;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::RANKS_MAX;

/// Bytes of one slot: large enough that a collective of a few megabytes takes a handful of them, small enough that the first
/// is on its way soon.
pub const CHUNK_BYTES: u64 = 512 << 10;
/// Slots of a channel: one filled, one emptied, and one between each.
pub const SLOTS: u64 = 4;

const CONTROL: u64 = 4096;
const CONTROL_BYTES: u64 = 512;
const RECEIVER: u64 = 64;
const HEADS: u64 = 128;
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// How a rank has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It has not.
    No,
    /// It ended the communicator.
    InOrder,
    /// It died, or its daemon did.
    Died,
}

/// One mapping of the memory.
#[derive(Debug)]
pub struct Segment {
    base: NonNull<u8>,
    ranks: u64,
}

// SAFETY: the mapping lives as long as the value; its words are only seen as atomics and its slots only as raw pointers.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

fn data(ranks: u64) -> u64 {
    (CONTROL + ranks * ranks * CONTROL_BYTES).next_multiple_of(4096)
}

fn total(ranks: u64) -> u64 {
    data(ranks) + ranks * ranks * SLOTS * CHUNK_BYTES
}

impl Segment {
    /// New memory for so many ranks, all zero; pages exist once they are touched.
    ///
    /// # Errors
    /// What the system says.
    ///
    /// # Panics
    /// If `ranks` is not in 1..=[`RANKS_MAX`].
    pub fn create(ranks: usize) -> io::Result<(Arc<Self>, OwnedFd)> {
        let fd = memfd_create("vnpu-peers", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, total(ranks as u64))?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok((Self::map(&fd, ranks)?, fd))
    }

    /// Maps memory that another daemon made.
    ///
    /// # Errors
    /// It is not sealed, or of another size.
    pub fn open(fd: &OwnedFd, ranks: usize) -> io::Result<Arc<Self>> {
        let sealed = fcntl_get_seals(fd)?.contains(SEALS);
        if !sealed || fstat(fd)?.st_size.cast_unsigned() != total(ranks as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory of a communicator that has another layout"));
        }
        Self::map(fd, ranks)
    }

    fn map(fd: impl AsFd, ranks: usize) -> io::Result<Arc<Self>> {
        assert!((1..=RANKS_MAX).contains(&ranks), "{ranks} ranks");
        let len = usize::try_from(total(ranks as u64)).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)? };
        let base = NonNull::new(base.cast()).expect("a mapping is not at 0");
        Ok(Arc::new(Self { base, ranks: ranks as u64 }))
    }

    /// Ranks.
    pub fn ranks(&self) -> usize {
        self.ranks as usize
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= data(self.ranks));
        // SAFETY: inside the mapping, which outlives the borrow; the base is page-aligned; all bit patterns are valid; these
        // bytes are accessed only as this atomic.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset as usize).cast()) }
    }

    fn channel(&self, from: usize, to: usize) -> u64 {
        assert!(from < self.ranks() && to < self.ranks(), "rank {from} or {to} of {}", self.ranks);
        from as u64 * self.ranks + to as u64
    }

    fn control(&self, from: usize, to: usize) -> u64 {
        CONTROL + self.channel(from, to) * CONTROL_BYTES
    }

    /// How a rank has left.
    pub fn left(&self, rank: usize) -> Left {
        assert!(rank < self.ranks());
        match self.word(64 * rank as u64).load(Ordering::Acquire) {
            0 => Left::No,
            1 => Left::InOrder,
            _ => Left::Died,
        }
    }

    /// Notes that a rank has left; the first note stays.
    pub fn leave(&self, rank: usize, how: Left) {
        assert!(rank < self.ranks());
        let value = match how {
            Left::No => return,
            Left::InOrder => 1,
            Left::Died => 2,
        };
        let _ = self.word(64 * rank as u64).compare_exchange(0, value, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Chunks that `from` has put into slots for `to`.
    pub fn sent(&self, from: usize, to: usize) -> u64 {
        self.word(self.control(from, to)).load(Ordering::Acquire)
    }

    /// Of a chunk that is about to be counted: tag and length of its message.
    pub fn set_head(&self, from: usize, to: usize, chunk: u64, tag: u64, len: u64) {
        let head = self.control(from, to) + HEADS + chunk % SLOTS * 16;
        self.word(head).store(tag, Ordering::Relaxed);
        self.word(head + 8).store(len, Ordering::Relaxed);
    }

    /// Tag and length of the message that a chunk is of.
    pub fn head(&self, from: usize, to: usize, chunk: u64) -> (u64, u64) {
        let head = self.control(from, to) + HEADS + chunk % SLOTS * 16;
        (self.word(head).load(Ordering::Relaxed), self.word(head + 8).load(Ordering::Relaxed))
    }

    /// One more chunk is in its slot.
    pub fn count_sent(&self, from: usize, to: usize) {
        self.word(self.control(from, to)).fetch_add(1, Ordering::Release);
    }

    /// Chunks that `to` has taken out.
    pub fn taken(&self, from: usize, to: usize) -> u64 {
        self.word(self.control(from, to) + RECEIVER).load(Ordering::Acquire)
    }

    /// One more chunk is out of its slot.
    pub fn count_taken(&self, from: usize, to: usize) {
        self.word(self.control(from, to) + RECEIVER).fetch_add(1, Ordering::Release);
    }

    /// Messages of the channel whose sender has got to them.
    pub fn offered(&self, from: usize, to: usize) -> u64 {
        self.word(self.control(from, to) + 8).load(Ordering::Acquire)
    }

    /// See [`Segment::offered`].
    pub fn set_offered(&self, from: usize, to: usize, messages: u64) {
        self.word(self.control(from, to) + 8).store(messages, Ordering::Release);
    }

    /// Messages of the channel whose receiver has got to them.
    pub fn wanted(&self, from: usize, to: usize) -> u64 {
        self.word(self.control(from, to) + RECEIVER + 8).load(Ordering::Acquire)
    }

    /// See [`Segment::wanted`].
    pub fn set_wanted(&self, from: usize, to: usize, messages: u64) {
        self.word(self.control(from, to) + RECEIVER + 8).store(messages, Ordering::Release);
    }

    /// The [`CHUNK_BYTES`] bytes of a chunk's slot. They may be read and written from any thread and process for as long as the
    /// segment lives, and are never seen through a reference.
    pub fn slot(&self, from: usize, to: usize, chunk: u64) -> *mut u8 {
        let offset = data(self.ranks) + (self.channel(from, to) * SLOTS + chunk % SLOTS) * CHUNK_BYTES;
        debug_assert!(offset + CHUNK_BYTES <= total(self.ranks));
        // SAFETY: the offset is inside the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: our own mapping; slots' pointers are documented to end here.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), total(self.ranks) as usize) };
    }
}

/// Rings everyone but `me`.
pub(super) fn ring_others(bells: &[OwnedFd], me: usize) {
    for (_, bell) in bells.iter().enumerate().filter(|(rank, _)| *rank != me) {
        ring_fd(bell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_mappings_see_the_same_and_channels_are_apart() {
        let (a, fd) = Segment::create(3).unwrap();
        let b = Segment::open(&fd, 3).unwrap();
        assert!(Segment::open(&fd, 2).is_err(), "another layout");
        for (from, to) in [(0, 1), (1, 0), (2, 1)] {
            let value = (10 * from + to) as u64;
            a.set_head(from, to, 5, value, value + 1);
            a.count_sent(from, to);
            // SAFETY: slots may be written from any thread.
            unsafe { a.slot(from, to, 5).write(value as u8) };
        }
        for (from, to) in [(0, 1), (1, 0), (2, 1)] {
            let value = (10 * from + to) as u64;
            assert_eq!((b.sent(from, to), b.head(from, to, 5)), (1, (value, value + 1)));
            // SAFETY: slots may be read from any thread.
            assert_eq!(unsafe { b.slot(from, to, 5 + SLOTS).read() }, value as u8);
        }
        assert_eq!((b.sent(0, 2), b.taken(0, 1)), (0, 0));
        b.leave(1, Left::Died);
        b.leave(1, Left::InOrder);
        assert_eq!((a.left(1), a.left(0)), (Left::Died, Left::No));
    }
}
