//! Callbacks of the C ABI: which thread runs which, and the threads that wait for them.
//!
//! A subscribed stream's callbacks go to the queue of its thread and are run there, by `aclrtProcessReport`. Host functions
//! need no subscription; one thread of the process runs them one after the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use acl_abi::values as acl;
use wire::Record;

use crate::abi::Opaque;
use crate::error::Failure;
use crate::handle::lock;
use crate::host_calls::{CALLS_MAX, Held, as_callback_thread};
use crate::stream::Stream;

/// `aclrtCallback` and `aclrtHostFunc`.
pub type Function = extern "C" fn(Opaque);

/// A callback to run.
struct Job {
    function: Function,
    /// The caller's argument; a number, so that it may move between threads.
    argument: usize,
    /// Lets the stream go when the callback has returned.
    held: Held,
}

impl Job {
    fn run(self) {
        as_callback_thread(|| (self.function)(std::ptr::without_provenance_mut(self.argument)));
        drop(self.held);
    }
}

/// A stream: device and number.
type StreamName = (u32, u32);

#[derive(Default)]
struct Subscriptions {
    /// Thread of each subscribed stream.
    threads: BTreeMap<StreamName, u64>,
    /// Callbacks that wait for their thread.
    queues: BTreeMap<u64, VecDeque<(StreamName, Job)>>,
}

/// The callbacks of one process.
#[derive(Default)]
pub struct Callbacks {
    subscriptions: Mutex<Subscriptions>,
    changed: Condvar,
    host_functions: Mutex<Option<Sender<Job>>>,
}

fn name(stream: &Stream) -> StreamName {
    (stream.link.device, stream.id)
}

impl Callbacks {
    /// Callbacks of `stream` are run by `thread` from now on.
    ///
    /// # Errors
    /// The stream is subscribed already.
    pub fn subscribe(&self, thread: u64, stream: &Stream) -> Result<(), Failure> {
        let mut all = lock(&self.subscriptions);
        if let Some(other) = all.threads.get(&name(stream)) {
            let text = format!("parameter stream: thread {other} is subscribed to it already");
            return Err(Failure::new(acl::ACL_ERROR_REPEAT_SUBSCRIBE, text));
        }
        all.threads.insert(name(stream), thread);
        all.queues.entry(thread).or_default();
        Ok(())
    }

    /// Ends a subscription; what was not run then never is, and holds the stream no longer.
    ///
    /// # Errors
    /// `thread` is not subscribed to the stream.
    pub fn unsubscribe(&self, thread: u64, stream: &Stream) -> Result<(), Failure> {
        let mut all = lock(&self.subscriptions);
        if all.threads.get(&name(stream)) != Some(&thread) {
            let text = format!("parameter threadId: {thread} is not subscribed to the stream");
            return Err(Failure::new(acl::ACL_ERROR_THREAD_NOT_SUBSCRIBE, text));
        }
        all.threads.remove(&name(stream));
        let mut gone = VecDeque::new();
        if let Some(queue) = all.queues.get_mut(&thread) {
            let (of_stream, others) = std::mem::take(queue).into_iter().partition(|(of, _)| *of == name(stream));
            (gone, *queue) = (of_stream, others);
        }
        if !all.threads.values().any(|&t| t == thread) {
            all.queues.remove(&thread);
        }
        // Dropping a job posts a record: not under the lock.
        drop(all);
        self.changed.notify_all();
        drop(gone);
        Ok(())
    }

    /// Posts a callback: `function` runs in the stream's thread when the stream gets here.
    ///
    /// # Errors
    /// Nobody is subscribed to the stream; too many callbacks; device lost.
    pub fn launch(
        &'static self,
        stream: &Stream,
        function: Function,
        argument: usize,
        blocks: bool,
    ) -> Result<(), Failure> {
        {
            let all = lock(&self.subscriptions);
            let thread = all.threads.get(&name(stream)).ok_or_else(|| {
                let text = "parameter stream: no thread is subscribed to it; call aclrtSubscribeReport first";
                Failure::new(acl::ACL_ERROR_RT_STREAM_NO_CB_REG, text)
            })?;
            if all.queues.get(thread).is_some_and(|queue| queue.len() >= CALLS_MAX) {
                let text = format!("{CALLS_MAX} callbacks wait for aclrtProcessReport of thread {thread}");
                return Err(Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, text));
            }
        }
        let of = name(stream);
        stream.call_host(blocks, move |held| {
            let mut all = lock(&self.subscriptions);
            let job = Job { function, argument, held };
            match all.threads.get(&of).copied() {
                Some(thread) => all.queues.entry(thread).or_default().push_back((of, job)),
                // Unsubscribed meanwhile.
                None => {
                    drop(all);
                    return drop(job);
                }
            }
            drop(all);
            self.changed.notify_all();
        })
    }

    /// Waits for a callback of one of the calling thread's streams, and runs it. `timeout_ms` below 0: without limit.
    ///
    /// # Errors
    /// The thread is subscribed to nothing; nothing came in time.
    pub fn process(&self, thread: u64, timeout_ms: i32) -> Result<(), Failure> {
        let end = u64::try_from(timeout_ms).ok().map(|ms| Instant::now() + Duration::from_millis(ms));
        let mut all = lock(&self.subscriptions);
        let job = loop {
            let Some(queue) = all.queues.get_mut(&thread) else {
                let text = format!("thread {thread} is subscribed to no stream; call aclrtSubscribeReport first");
                return Err(Failure::new(acl::ACL_ERROR_RT_THREAD_SUBSCRIBE, text));
            };
            if let Some((_, job)) = queue.pop_front() {
                break job;
            }
            let left = match end {
                None => Duration::from_secs(3600),
                Some(end) => end.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                let text = format!("no callback came within {timeout_ms} ms");
                return Err(Failure::new(acl::ACL_ERROR_RT_REPORT_TIMEOUT, text));
            }
            all = self.changed.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(all);
        job.run();
        Ok(())
    }

    /// Posts a host function: it runs when the stream gets here, and the stream waits until it has returned.
    ///
    /// # Errors
    /// No thread for it; too many callbacks; device lost.
    pub fn host_function(&self, stream: &Stream, function: Function, argument: usize) -> Result<(), Failure> {
        let sender = {
            let mut place = lock(&self.host_functions);
            match &*place {
                Some(sender) => sender.clone(),
                None => {
                    let (sender, jobs) = channel::<Job>();
                    let run = move || jobs.into_iter().for_each(Job::run);
                    std::thread::Builder::new().name("vnpu-host-funcs".into()).spawn(run).map_err(|e| {
                        let text = format!("no thread for host functions: {e}");
                        Failure::new(acl::ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, text)
                    })?;
                    place.insert(sender).clone()
                }
            }
        };
        // The thread lives as long as the process, so sending cannot fail; a job that were sent nowhere lets its stream go.
        stream.call_host(true, move |held| drop(sender.send(Job { function, argument, held })))
    }
}

impl Stream {
    /// Runs `action` on the session's bridge when the stream gets here; with `blocks`, the stream waits until it drops its
    /// argument.
    ///
    /// # Errors
    /// A stream that is being captured; too many callbacks; device lost.
    pub fn call_host(&self, blocks: bool, action: impl FnOnce(Held) + Send + 'static) -> Result<(), Failure> {
        let post = |call| self.post(&Record::HostCall { stream: self.id, call, block: blocks });
        self.link.bridge.when_reached(blocks, post, action)
    }

    /// Makes the stream wait until the result is dropped.
    ///
    /// # Errors
    /// A stream that is being captured; device lost.
    pub fn gate(&self) -> Result<Held, Failure> {
        self.link.bridge.gate(|flag| self.post(&Record::FlagWait { stream: self.id, flag }))
    }
}
