//! The part of the shared memory that holds the application's bytes: staging blocks and pinned host memory.

use crate::shared::Shared;
use std::sync::Arc;
use wire::ArenaRange;

/// A session's arena. Holding one keeps the memory mapped, also after the session ended.
///
/// The other process may write to these bytes at any time: copy them, never borrow them.
pub struct Arena {
    shared: Arc<Shared>,
}

impl Arena {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Address of `range` in this process, valid for its length and as long as the arena is held; `None` if it is not
    /// inside the arena.
    pub fn ptr(&self, range: ArenaRange) -> Option<*mut u8> {
        self.shared.arena(range.offset, range.len)
    }

    /// Bytes of the arena.
    pub fn bytes(&self) -> u64 {
        self.shared.layout().arena_bytes
    }

    /// The first `len` bytes of a staging block; `None` if there is no such block or it is shorter.
    pub fn staging_range(&self, block: u32, len: u32) -> Option<ArenaRange> {
        let layout = self.shared.layout();
        (block < layout.staging_blocks && len <= layout.staging_block_bytes)
            .then(|| ArenaRange { offset: u64::from(block) * u64::from(layout.staging_block_bytes), len: len.into() })
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("bytes", &self.bytes()).finish()
    }
}
