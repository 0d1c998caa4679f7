//! Helper threads for large operators.
//!
//! The worker splits a large operator into independent parts and every thread, itself included, takes the next one
//! until none is left. Which thread computes a part never changes its result. Small operators do not come here: waking
//! a thread costs tens of microseconds.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// Most threads that one operator uses: beyond, memory bandwidth is what limits.
pub const THREADS_MAX: usize = 16;

/// Helper threads; joined on drop.
pub struct Pool {
    jobs: Option<Sender<Arc<Job>>>,
    helpers: Vec<JoinHandle<()>>,
}

struct Job {
    /// Called with the index of a part. The reference is only valid until every part is finished; it is not touched
    /// after that.
    body: *const (dyn Fn(usize) + Sync),
    parts: usize,
    next: AtomicUsize,
    finished: AtomicUsize,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    owner: Thread,
}

// SAFETY: `body` points to a `Sync` closure, and `Pool::run` keeps that closure alive until every part is finished.
unsafe impl Send for Job {}
// SAFETY: as above; everything else in the job is synchronised.
unsafe impl Sync for Job {}

impl Job {
    /// Works on parts until none is left.
    fn work(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            // SAFETY: this part is not finished, so `Pool::run` has not returned and the closure is alive.
            let body = unsafe { &*self.body };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(part))) {
                *self.panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            let owner = self.owner.clone();
            if self.finished.fetch_add(1, Ordering::Release) + 1 == self.parts {
                owner.unpark();
            }
        }
    }
}

impl Pool {
    /// A pool that uses every core of the machine, up to [`THREADS_MAX`]. Fewer if the system gives no more threads.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        Self::with_helpers(threads - 1)
    }

    /// A pool of `helpers` threads besides the caller's.
    pub fn with_helpers(helpers: usize) -> Self {
        let (sender, receiver): (_, Receiver<Arc<Job>>) = unbounded();
        let spawn = |index: usize| {
            let receiver = receiver.clone();
            let builder = std::thread::Builder::new().name(format!("npu-helper-{index}"));
            builder.spawn(move || receiver.iter().for_each(|job| job.work())).ok()
        };
        Self { jobs: Some(sender), helpers: (0..helpers).map_while(spawn).collect() }
    }

    /// Threads that share an operator, the caller's included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `body(part)` once for every part below `parts`, on several threads; returns when all are finished.
    ///
    /// # Panics
    /// If a part panics, after all are finished.
    fn run(&self, parts: usize, body: &(dyn Fn(usize) + Sync)) {
        let Some(jobs) = self.jobs.as_ref().filter(|_| parts > 1 && !self.helpers.is_empty()) else {
            return (0..parts).for_each(body);
        };
        // SAFETY: only the lifetime is changed. The pointer is dereferenced for unfinished parts only, and this
        // function returns (or unwinds) only after all parts are finished.
        let body = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(body)
        };
        let job = Arc::new(Job {
            body,
            parts,
            next: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            panicked: Mutex::new(None),
            owner: std::thread::current(),
        });
        for _ in 0..self.helpers.len().min(parts - 1) {
            // Cannot fail: the helpers hold the receiver until the sender is dropped.
            let _ = jobs.send(job.clone());
        }
        job.work();
        while job.finished.load(Ordering::Acquire) < parts {
            std::thread::park();
        }
        let panicked = job.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    /// Calls `body(i, &mut items[i])` for every item, on several threads; returns when all are finished.
    ///
    /// # Panics
    /// If a call panics, after all are finished.
    pub fn for_each<T: Send>(&self, items: &mut [T], body: impl Fn(usize, &mut T) + Sync) {
        struct Items<T>(*mut T);
        // SAFETY: parts are handed out once each, so no two threads reach the same item, and `T` may be sent.
        unsafe impl<T: Send> Sync for Items<T> {}
        impl<T> Items<T> {
            fn at(&self, index: usize) -> *mut T {
                self.0.wrapping_add(index)
            }
        }
        let base = Items(items.as_mut_ptr());
        self.run(items.len(), &|index| {
            // SAFETY: `index` is below `items.len()` and comes up once, so this is the only reference to the item;
            // `items` is borrowed mutably until `run` returns.
            body(index, unsafe { &mut *base.at(index) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for helper in self.helpers.drain(..) {
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once() {
        for helpers in [0, 1, 3] {
            let pool = Pool::with_helpers(helpers);
            for round in 0..200 {
                let mut items = vec![0usize; round % 17];
                pool.for_each(&mut items, |i, item| *item += i + 1);
                assert!(items.iter().enumerate().all(|(i, &v)| v == i + 1), "{items:?}");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::with_helpers(2);
        let mut items = [0; 8];
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(&mut items, |i, item| if i == 5 { panic!("part 5") } else { *item = 1 });
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"part 5"));
        assert_eq!(items.iter().sum::<i32>(), 7, "the other parts were finished");
        pool.for_each(&mut items, |_, item| *item = 2);
        assert_eq!(items, [2; 8]);
    }
}
