//! The shared memory of one session: creation, mapping, and typed views of its words. All raw pointers are here.
//!
//! The first page holds the fixed words, each group on its own pair of cache lines:
//!
//! | byte | content | written by |
//! |---|---|---|
//! | 128 | ring head | server |
//! | 256 | ring tail | client |
//! | 384 | 1 while the consumer sleeps | both |
//! | 512 | room: count, waiting | both |
//! | 640 | staging: count, waiting | both |
//! | 768 | 1 once the session is lost | either |
//!
//! The rest is laid out by `wire::control::Layout::offsets`.
//!
//! **Invariant:** a mapping is never larger or smaller than its memfd, whose size is sealed: no access to it can fault.

use crate::futex::{Gate, wake_all};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use wire::control::{Layout, Offsets};
use wire::reply::SLOT_WORDS;
use wire::ring::Memory;

const HEAD: u64 = 128;
const TAIL: u64 = 256;
const SLEEPING: u64 = 384;
const ROOM: u64 = 512;
const STAGING: u64 = 640;
const LOST: u64 = 768;

/// Sequence number of a reply slot in a lost session. No call has it.
pub(crate) const SEQ_LOST: u32 = u32::MAX;
/// Sequence number of a reply slot that was never used. No call has it.
pub(crate) const SEQ_NONE: u32 = 0;

/// State of a staging block that can be taken.
pub(crate) const BLOCK_FREE: u64 = 0;
/// State of a staging block that someone holds.
pub(crate) const BLOCK_TAKEN: u64 = 1;

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// One mapping.
pub(crate) struct Shared {
    base: NonNull<u8>,
    layout: Layout,
    offsets: Offsets,
}

// SAFETY: the mapping lives as long as the value, every typed view of it is of atomics, and the arena is handed out as
// raw pointers only.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// A new sealed memfd and its mapping, all zero.
    ///
    /// # Panics
    /// If the layout was not checked.
    pub(crate) fn create(layout: Layout) -> io::Result<(Arc<Self>, OwnedFd)> {
        let fd = memfd_create("vnpu-session", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, layout.offsets().total)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok((Self::map(&fd, layout)?, fd))
    }

    /// Maps a memfd that came from a peer after checking its size and its seals.
    pub(crate) fn open(fd: &OwnedFd, layout: Layout) -> io::Result<Arc<Self>> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let seals = fcntl_get_seals(fd)?;
        if !seals.contains(SEALS) {
            return Err(invalid(format!("shared memory is not sealed against resizing (seals {seals:?})")));
        }
        let (size, want) = (fstat(fd)?.st_size as u64, layout.offsets().total);
        if size != want {
            return Err(invalid(format!("shared memory has {size} bytes where its layout needs {want}")));
        }
        Self::map(fd, layout)
    }

    fn map(fd: impl AsFd, layout: Layout) -> io::Result<Arc<Self>> {
        layout.check().expect("the layout was checked");
        let offsets = layout.offsets();
        let len = usize::try_from(offsets.total).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)? };
        // Ring and slots fault now and not on the first lap. An old kernel refuses, which costs only those faults.
        // SAFETY: the range lies inside the new mapping and its content does not change.
        let _ = unsafe { madvise(base, offsets.arena as usize, Advice::LinuxPopulateWrite) };
        let base = NonNull::new(base.cast()).expect("a mapping is not at 0");
        Ok(Arc::new(Self { base, layout, offsets }))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn word32(&self, offset: u64) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.offsets.arena);
        // SAFETY: inside the mapping, which outlives the borrow; the base is page-aligned; all bit patterns are valid;
        // these bytes are accessed only as this atomic.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset as usize).cast()) }
    }

    fn words64(&self, offset: u64, len: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(8) && offset + len as u64 * 8 <= self.offsets.arena);
        // SAFETY: inside the mapping, which outlives the borrow; the base is page-aligned; all bit patterns are valid;
        // these bytes are accessed only as these atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset as usize).cast::<AtomicU64>(), len) }
    }

    /// Everything in front of the arena, for [`crate::testing`]: as another process would, it writes words of 64 bits over states
    /// of 32, which no bit pattern of ours depends on.
    pub(crate) fn words_before_arena(&self) -> &[AtomicU64] {
        self.words64(0, self.offsets.arena as usize / 8)
    }

    /// Where a producer waits for room in the ring.
    pub(crate) fn room(&self) -> Gate<'_> {
        Gate { count: self.word32(ROOM), waiting: self.word32(ROOM + 4) }
    }

    /// Where clients wait for a staging block.
    pub(crate) fn staging(&self) -> Gate<'_> {
        Gate { count: self.word32(STAGING), waiting: self.word32(STAGING + 4) }
    }

    /// State words of the staging blocks.
    pub(crate) fn staging_states(&self) -> &[AtomicU64] {
        self.words64(self.offsets.staging_states, self.layout.staging_blocks as usize)
    }

    /// Gives a staging block back. Out of range: nothing.
    pub(crate) fn release_staging(&self, block: u32) {
        if let Some(state) = self.staging_states().get(block as usize) {
            state.store(BLOCK_FREE, Ordering::Release);
            self.staging().open();
        }
    }

    fn slot_offset(&self, slot: u16) -> u64 {
        assert!(u32::from(slot) < self.layout.reply_slots);
        self.offsets.replies + u64::from(slot) * SLOT_WORDS as u64 * 8
    }

    /// Sequence word of a reply slot, which the server writes last, and its "someone sleeps" flag.
    ///
    /// # Panics
    /// If there is no such slot.
    pub(crate) fn slot_state(&self, slot: u16) -> (&AtomicU32, &AtomicU32) {
        let at = self.slot_offset(slot);
        (self.word32(at), self.word32(at + 4))
    }

    /// Body of a reply slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub(crate) fn slot_body(&self, slot: u16) -> &[AtomicU64] {
        self.words64(self.slot_offset(slot) + 8, SLOT_WORDS - 1)
    }

    /// Bytes `offset..offset + len` of the arena, if it has them.
    pub(crate) fn arena(&self, offset: u64, len: u64) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: the offset is inside the mapping or one past its end.
        (end <= self.layout.arena_bytes)
            .then(|| unsafe { self.base.as_ptr().add((self.offsets.arena + offset) as usize) })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.word32(LOST).load(Ordering::Acquire) != 0
    }

    /// Marks the session lost and wakes everyone who waits in it. Changing the words that they sleep on closes the race
    /// with a waiter between its last look and its sleep.
    pub(crate) fn declare_lost(&self) {
        if self.word32(LOST).swap(1, Ordering::SeqCst) != 0 {
            return;
        }
        for slot in 0..self.layout.reply_slots as u16 {
            let (state, _) = self.slot_state(slot);
            state.store(SEQ_LOST, Ordering::SeqCst);
            wake_all(state);
        }
        self.room().open_always();
        self.staging().open_always();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping; every view borrows from `self`, raw pointers into the arena are documented to end here.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.offsets.total as usize) };
    }
}

/// The ring in a session's memory.
#[derive(Clone)]
pub(crate) struct Ring(pub(crate) Arc<Shared>);

impl Memory for Ring {
    type Word = AtomicU64;

    #[inline]
    fn head(&self) -> &AtomicU64 {
        &self.0.words64(HEAD, 1)[0]
    }

    #[inline]
    fn tail(&self) -> &AtomicU64 {
        &self.0.words64(TAIL, 1)[0]
    }

    #[inline]
    fn sleeping(&self) -> &AtomicU64 {
        &self.0.words64(SLEEPING, 1)[0]
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        self.0.words64(self.0.offsets.ring, self.0.layout.ring_bytes as usize / 8)
    }
}
