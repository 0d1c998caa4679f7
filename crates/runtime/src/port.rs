//! The client's end of a session as the state machine sees it: where answers go, and the host memory that copies use.
//!
//! This is the one place of the crate that makes raw pointers into shared memory, hence the crate's exemption from the
//! workspace's ban on `unsafe`. Nothing here looks at the bytes.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;

use device::HostBytes;
use session::Replier;
use session::peers::Segment;
use wire::{ArenaRange, Reply, ReplyTo};

/// Replies and host memory of one session.
pub struct Port {
    replier: Replier,
    replies: Cell<u64>,
}

impl Port {
    /// The server end's replying half.
    pub fn new(replier: Replier) -> Self {
        Self { replier, replies: Cell::new(0) }
    }

    /// Answers a call.
    pub fn reply(&self, to: ReplyTo, reply: &Reply) {
        self.replies.set(self.replies.get() + 1);
        self.replier.reply(to, reply);
    }

    /// Answers the call that the client keeps open: no round trip, because nothing there waits for it.
    pub fn tell(&self, to: ReplyTo, reply: &Reply) {
        self.replier.reply(to, reply);
    }

    /// Calls answered so far: the session's synchronous round trips.
    pub fn replies(&self) -> u64 {
        self.replies.get()
    }

    /// Gives a staging block back to the client.
    pub fn release_staging(&self, block: u32) {
        self.replier.release_staging(block);
    }

    /// Bytes of the arena; `None` where the range is not inside it.
    pub fn host(&self, range: ArenaRange) -> Option<HostBytes> {
        let len = usize::try_from(range.len).ok()?;
        let ptr = self.replier.arena().ptr(range)?;
        let keep: Arc<dyn Any + Send + Sync> = self.replier.arena().clone();
        // SAFETY: `ptr` answers only for ranges inside the mapping, which lives as long as the `Arc<Arena>` in `keep`; the
        // arena hands out raw pointers, never references.
        Some(unsafe { HostBytes::shared(ptr, len, keep) })
    }

    /// The first `len` bytes of a staging block; `None` where there is no such block or it is shorter.
    pub fn staging(&self, block: u32, len: u32) -> Option<HostBytes> {
        self.host(self.replier.arena().staging_range(block, len)?)
    }
}

/// The first `len` bytes of a slot that ranks share: `(from, to, chunk)`.
///
/// # Panics
/// If a slot is shorter.
pub fn slot(segment: &Arc<Segment>, (from, to, chunk): (usize, usize, u64), len: usize) -> HostBytes {
    assert!(len as u64 <= session::peers::CHUNK_BYTES, "{len} bytes of a slot");
    let keep: Arc<dyn Any + Send + Sync> = segment.clone();
    // SAFETY: a slot is as long as a chunk and lives as long as its segment, which `keep` keeps; the segment hands out raw
    // pointers, never references.
    unsafe { HostBytes::shared(segment.slot(from, to, chunk), len, keep) }
}
