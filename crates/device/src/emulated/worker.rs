//! The thread that computes: it owns device memory and executes commands one after another, in submission order.
//!
//! The dispatch thread appends to a queue and takes results from a list; both are exchanged whole under a short lock,
//! so a steady stream of commands allocates nothing. The doorbell rings only when the dispatch thread has something to
//! do that it does not know of: it is *armed* by the device when it finds an awaited result missing, rings once, and
//! stays silent until armed again. An armed doorbell rings when the queue runs empty, at the latest
//! [`RING_AFTER`] after the first unreported result, so that long queues do not wake anyone once per operator.
//!
//! A kernel that panics is an error result of that command; the thread goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::command::Command;
use crate::error::OpError;

use super::aperture::Unmapped;
use super::execute::Executor;
use super::model::Id;

/// Longest time that a result stays unreported while the worker has more to do: well under a decode step, well over the
/// cost of waking a thread.
pub const RING_AFTER: Duration = Duration::from_micros(100);

/// What the worker does.
pub enum Job {
    /// Execute a command.
    Run(Id, Box<Command>),
    /// Zero a freed range: offset and bytes.
    Scrub(usize, usize),
    /// Take access to a released window away (offset and bytes), and note the key when that is done.
    Unmap(usize, usize, u64, Unmapped),
    /// Zero a freed handle: offset in the handle file and bytes.
    Punch(u64, u64),
}

/// An executed command.
pub struct Finished {
    /// Which.
    pub id: Id,
    /// Whether it worked, and the extent that it found.
    pub result: Result<Option<u64>, OpError>,
    /// The command, given back.
    pub cmd: Box<Command>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    finished: Mutex<Vec<Finished>>,
    armed: AtomicBool,
    /// The handle was dropped: nobody wants the rest.
    closing: AtomicBool,
    doorbell: Arc<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    closed: bool,
    sleeping: bool,
}

/// Handle of the worker thread; dropping it ends the command that runs, drops the queued ones and joins.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks; a poisoned one is still consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// Starts the thread, which takes over `executor`.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn spawn(executor: Executor, doorbell: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            finished: Mutex::default(),
            armed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            doorbell,
        });
        let its = shared.clone();
        let thread = std::thread::Builder::new().name("npu-compute".into()).spawn(move || its.work(executor))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a job.
    pub fn push(&self, job: Job) {
        let mut queue = lock(&self.shared.queue);
        queue.jobs.push(job);
        if std::mem::take(&mut queue.sleeping) {
            drop(queue);
            self.shared.wake.notify_one();
        }
    }

    /// Appends every result that has not been taken yet, in order of execution.
    pub fn take_finished(&self, out: &mut Vec<Finished>) {
        out.append(&mut lock(&self.shared.finished));
    }

    /// Asks for one ring of the doorbell when the next result comes. True if results wait already: nothing rings for
    /// those, take them.
    pub fn arm(&self) -> bool {
        self.shared.armed.store(true, Ordering::SeqCst);
        !lock(&self.shared.finished).is_empty()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        lock(&self.shared.queue).closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn ring(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            (self.doorbell)();
        }
    }

    fn work(&self, mut executor: Executor) {
        let mut batch = Vec::new();
        let mut unreported_since: Option<Instant> = None;
        loop {
            {
                let mut queue = lock(&self.queue);
                if queue.jobs.is_empty() && !queue.closed {
                    drop(queue);
                    // The queue ran empty: whoever waits for a result gets it now.
                    if !lock(&self.finished).is_empty() {
                        self.ring();
                    }
                    unreported_since = None;
                    queue = lock(&self.queue);
                    while queue.jobs.is_empty() && !queue.closed {
                        queue.sleeping = true;
                        queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    }
                }
                if queue.jobs.is_empty() {
                    return;
                }
                std::mem::swap(&mut queue.jobs, &mut batch);
            }
            for job in batch.drain(..) {
                if self.closing.load(Ordering::Relaxed) {
                    return;
                }
                match job {
                    Job::Scrub(offset, bytes) => executor.scrub(offset, bytes),
                    Job::Unmap(offset, bytes, key, unmapped) => {
                        executor.unmap(offset, bytes);
                        lock(&unmapped).push(key);
                    }
                    Job::Punch(from, bytes) => executor.punch(from, bytes),
                    Job::Run(id, mut cmd) => {
                        let result = executor.run(&mut cmd);
                        lock(&self.finished).push(Finished { id, result, cmd });
                        let since = *unreported_since.get_or_insert_with(Instant::now);
                        if self.armed.load(Ordering::SeqCst) && since.elapsed() >= RING_AFTER {
                            self.ring();
                            unreported_since = None;
                        }
                    }
                }
            }
        }
    }
}
