//! Streams that call this process.
//!
//! The daemon tells which streams have got to a call; a thread of ours, the *bridge*, waits for that and does what was
//! agreed. It starts with a session's first call, and only it waits: the daemon waits for nothing here.
//!
//! | made by | where it runs |
//! |---|---|
//! | [`Bridge::when_reached`] | the bridge itself: must be short and must not wait |
//! | `aclrtLaunchHostFunc` | one more thread of the process, in the order in which streams got there |
//! | `aclrtLaunchCallback` | the thread that the stream is subscribed to, inside its `aclrtProcessReport` |
//!
//! A call that holds its stream ([`Held`]) lets it go when it is dropped, so a callback that is never run because its
//! thread unsubscribed does not hold the stream for ever.
//!
//! **Invariant:** who posts behind a held stream is slowed down to [`BEHIND_HELD_MAX`] records ([`Bridge::pace`]), so that the
//! record that lets the stream go always finds room in the ring. Threads that run callbacks are exempt.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use acl_abi::values as acl;
use session::Client;
use wire::Record;

use crate::error::Failure;
use crate::handle::lock;

/// Records that may be posted while some stream is held, before who posts waits: a quarter of what the daemon queues.
pub const BEHIND_HELD_MAX: u64 = 4096;
/// Calls that a session has posted and not run, at most.
pub const CALLS_MAX: usize = 16_384;

/// What the bridge does when a stream gets to a call.
type Action = Box<dyn FnOnce(Held) + Send>;

/// The calls of one session.
pub struct Bridge {
    client: Arc<Client>,
    next: AtomicU32,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Streams that a call holds, or that wait for a gate.
    held: AtomicU32,
    /// Records posted since the first of them.
    behind: AtomicU64,
}

#[derive(Default)]
struct State {
    running: bool,
    waiting: BTreeMap<u32, Waiting>,
}

struct Waiting {
    action: Action,
    blocks: bool,
}

thread_local! {
    /// This thread runs callbacks.
    static RUNS_CALLBACKS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` as one who must never be made to wait for a callback.
pub fn as_callback_thread<R>(f: impl FnOnce() -> R) -> R {
    let before = RUNS_CALLBACKS.replace(true);
    let result = f();
    RUNS_CALLBACKS.set(before);
    result
}

/// A stream that stands still until this is dropped.
pub struct Held {
    client: Arc<Client>,
    shared: Arc<Shared>,
    flag: u32,
    blocks: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.blocks {
            return;
        }
        // A lost session has no streams any more.
        let _ = self.client.post(&Record::FlagRelease { flag: self.flag }, None);
        self.shared.behind.store(0, Ordering::Relaxed);
        self.shared.held.fetch_sub(1, Ordering::AcqRel);
        // Under the lock, so that nobody is between its look and its sleep.
        drop(lock(&self.shared.state));
        self.shared.changed.notify_all();
    }
}

impl Bridge {
    /// No calls yet, and no thread.
    pub fn new(client: Arc<Client>) -> Self {
        Self { client, next: AtomicU32::new(1), shared: Arc::default() }
    }

    fn number(&self) -> Result<u32, Failure> {
        let next = |n: u32| n.checked_add(1);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|_| {
            Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "this session has used up its callback numbers")
        })
    }

    /// A number for a flag: no call has it.
    ///
    /// # Errors
    /// After 2³² − 1 of them.
    pub fn next_flag(&self) -> Result<u32, Failure> {
        self.number()
    }

    fn hold(&self, flag: u32, blocks: bool) -> Held {
        if blocks && self.shared.held.fetch_add(1, Ordering::AcqRel) == 0 {
            self.shared.behind.store(0, Ordering::Relaxed);
        }
        Held { client: self.client.clone(), shared: self.shared.clone(), flag, blocks }
    }

    /// Runs `action` on the bridge when the stream has got to the record that `post` posts (a [`Record::HostCall`] with the
    /// number it is given). With `blocks`, the stream waits until `action` drops its argument.
    ///
    /// # Errors
    /// Too many calls; what `post` fails with; no thread to be had.
    pub fn when_reached(
        &self,
        blocks: bool,
        post: impl FnOnce(u32) -> Result<(), Failure>,
        action: impl FnOnce(Held) + Send + 'static,
    ) -> Result<(), Failure> {
        let call = self.number()?;
        {
            let mut state = lock(&self.shared.state);
            if state.waiting.len() >= CALLS_MAX {
                let text = format!("{CALLS_MAX} callbacks of this device are pending, the most allowed");
                return Err(Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, text));
            }
            if !state.running {
                self.start()?;
                state.running = true;
            }
            state.waiting.insert(call, Waiting { action: Box::new(action), blocks });
        }
        // Made before the record is posted: the answer may come at once.
        let counted = blocks.then(|| self.shared.held.fetch_add(1, Ordering::AcqRel));
        let posted = post(call);
        if posted.is_err() {
            lock(&self.shared.state).waiting.remove(&call);
            if counted.is_some() {
                self.shared.held.fetch_sub(1, Ordering::AcqRel);
            }
        } else if counted == Some(0) {
            self.shared.behind.store(0, Ordering::Relaxed);
        }
        posted
    }

    /// Makes a stream wait, with the record that `post` posts (a [`Record::FlagWait`] of the flag it is given), until the
    /// result is dropped.
    ///
    /// # Errors
    /// What `post` fails with.
    pub fn gate(&self, post: impl FnOnce(u32) -> Result<(), Failure>) -> Result<Held, Failure> {
        let flag = self.number()?;
        post(flag)?;
        Ok(self.hold(flag, true))
    }

    /// Called by who is about to post a record: waits while too many were posted behind a held stream.
    pub fn pace(&self) {
        if self.shared.held.load(Ordering::Relaxed) == 0 {
            return;
        }
        let behind = self.shared.behind.fetch_add(1, Ordering::Relaxed);
        if behind < BEHIND_HELD_MAX || RUNS_CALLBACKS.get() {
            return;
        }
        let mut state = lock(&self.shared.state);
        while self.shared.behind.load(Ordering::Relaxed) >= BEHIND_HELD_MAX
            && self.shared.held.load(Ordering::Acquire) > 0
            && !self.client.is_lost()
        {
            let slept = self.shared.changed.wait_timeout(state, Duration::from_millis(50));
            state = slept.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn start(&self) -> Result<(), Failure> {
        let (client, shared) = (self.client.clone(), self.shared.clone());
        let run = move || {
            RUNS_CALLBACKS.set(true);
            while let Ok(reply) = client.call(|reply| Record::HostWait { reply }) {
                let [count, calls @ ..] = reply.payload;
                for &call in calls.iter().take(count as usize) {
                    let Ok(call) = u32::try_from(call) else { continue };
                    let waiting = lock(&shared.state).waiting.remove(&call);
                    if let Some(Waiting { action, blocks }) = waiting {
                        let held = Held { client: client.clone(), shared: shared.clone(), flag: call, blocks };
                        action(held);
                    }
                }
            }
            lock(&shared.state).waiting.clear();
        };
        let thread = std::thread::Builder::new().name("vnpu-host-calls".into()).spawn(run);
        let refused = |e| Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, format!("no thread for callbacks: {e}"));
        thread.map(|_| ()).map_err(refused)
    }
}

/// The calling thread's number, as applications pass it to `aclrtSubscribeReport`.
pub fn this_thread() -> u64 {
    // SAFETY: `pthread_self` has no preconditions.
    unsafe { libc::pthread_self() }
}
