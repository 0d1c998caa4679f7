//! Waiting: spin for a moment, then sleep in the kernel.
//!
//! Every sleep has a timeout and every sleeper looks at the session's lost flag when it wakes, so a lost wake-up costs
//! [`SLEEP`] and never hangs.

use rustix::thread::futex::{self, Flags};
use rustix::time::Timespec;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a caller spins before it sleeps. A reply from an awake daemon takes 1 to 3 µs and a sleep with its wake-up
/// costs 6 µs or more, so longer spinning would cost what it saves; on a machine with two cores a spinning caller also
/// keeps a core from the daemon.
pub const SPIN: Duration = Duration::from_micros(4);

/// Longest uninterrupted sleep.
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// Pauses between two looks at the clock.
const PAUSES: u32 = 16;

/// Calls `done` until it answers true (`true`) or [`SPIN`] is over (`false`).
pub(crate) fn spin(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..PAUSES {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= SPIN {
            // The peer may be waiting for this core.
            std::thread::yield_now();
            return done();
        }
    }
}

/// Sleeps while `word` is `value`, [`SLEEP`] at most; may return at any time.
pub(crate) fn sleep_while(word: &AtomicU32, value: u32) {
    // EAGAIN (already changed), EINTR and ETIMEDOUT all mean: look again.
    let _ = futex::wait(word, Flags::empty(), value, Some(&SLEEP));
}

/// Wakes everyone who sleeps on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), i32::MAX as u32);
}

/// A counter that sleepers wait on, and a flag that says whether anyone does: the sleeping side of a Dekker handshake.
///
/// Waiter: read `count`, set `waiting`, fence, look at the condition, sleep while `count` stays. Waker: change the
/// condition, fence, look at `waiting`. Of the two looks at least one sees the other's write.
pub(crate) struct Gate<'a> {
    pub(crate) count: &'a AtomicU32,
    pub(crate) waiting: &'a AtomicU32,
}

impl Gate<'_> {
    /// Announces a waiter; the caller looks at its condition next and then calls [`Gate::sleep`] with the answer.
    pub(crate) fn announce(&self) -> u32 {
        let ticket = self.count.load(Ordering::Acquire);
        self.waiting.store(1, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        ticket
    }

    pub(crate) fn sleep(&self, ticket: u32) {
        sleep_while(self.count, ticket);
    }

    /// Wakes the waiters if there are any; the condition was changed before.
    pub(crate) fn open(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) != 0 {
            self.open_always();
        }
    }

    /// Wakes whoever waits, without looking at the flag.
    pub(crate) fn open_always(&self) {
        self.waiting.store(0, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
        wake_all(self.count);
    }
}
