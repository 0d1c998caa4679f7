//! The client's watcher: a thread that sleeps on the socket and declares the session lost when the daemon is gone.

use crate::doorbell::ring_fd;
use crate::fork::Owner;
use crate::shared::Shared;
use crate::socket::poll_for;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// It calls `poll` and a few atomics.
const STACK_BYTES: usize = 64 * 1024;

/// Owns the socket; closing it ends the session on the daemon's side.
pub(crate) struct Watcher {
    quit: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    owner: Owner,
}

impl Watcher {
    /// Watches `socket` until it ends or the watcher is dropped.
    pub(crate) fn start(socket: OwnedFd, shared: Arc<Shared>) -> io::Result<Self> {
        let quit = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stop = Arc::clone(&quit);
        let thread = with_signals_blocked(|| {
            thread::Builder::new().name("vnpu-watch".into()).stack_size(STACK_BYTES).spawn(move || {
                let mut fds = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&*stop, PollFlags::IN)];
                // Nothing is ever sent after the handshake: whatever happens on the socket is its end.
                let _ = poll_for(&mut fds, None);
                shared.declare_lost();
            })
        })?;
        Ok(Self { quit, thread: Some(thread), owner: Owner::this_process() })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.owner.is_this_process() {
            ring_fd(&self.quit);
            let _ = thread.join();
        } else {
            // The thread exists in the parent only.
            std::mem::forget(thread);
        }
    }
}

/// Runs `f` with every signal blocked, so that a thread it starts never runs the application's handlers.
fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises the set before it is read; both point to live sets.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let result = f();
    if blocked {
        // SAFETY: the call above succeeded and so initialised `before`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    result
}
