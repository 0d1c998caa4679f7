//! Noticing `fork`: a child has its parent's memory but not its threads, and must not speak on its parent's session.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of forks between the first process that asked and this one.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Marks what belongs to the process that made it. One relaxed load to check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner(u32);

impl Owner {
    pub(crate) fn this_process() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            // SAFETY: the hook only adds to an atomic, which is async-signal-safe. It fails only without memory, and
            // then a forked child is not noticed.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
        Self(GENERATION.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn is_this_process(self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }
}
