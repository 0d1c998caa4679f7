//! The engine: sends prepared requests at their absolute moments and times the answers.
//!
//! One thread a core, each a single-threaded runtime with its own connections, alarms and records; threads share a counter
//! for the progress line and, where the user limits concurrency, a semaphore. Everything that a request needs is made before
//! the run. Per chunk on the hot path: one socket read, one clock read, one scan. A late request is sent late, never left out.

pub mod connect;
pub mod http1;
pub mod request;
mod session;
pub mod target;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use loadgen::audit;
use loadgen::measure::Outcome;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::LocalSet;

use crate::clock::{Alarms, now_ns, thread_cpu_ns};
use crate::cores;
use connect::Pool;
use session::Session;
use target::Target;

/// The clock of a run starts this much after its threads do, so that none is late for the first request.
const LEAD: Duration = Duration::from_millis(50);
/// How often a thread looks whether its loop stands still.
const HEARTBEAT_NS: u64 = 5_000_000;
/// Longest latency that [`Latencies`] tells from longer ones: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Why a request failed, in a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure(pub String);

impl Failure {
    /// An error with its causes.
    pub fn new(error: &dyn std::error::Error) -> Self {
        let mut out = error.to_string();
        let mut source = error.source();
        while let Some(e) = source {
            out += &format!(": {e}");
            source = e.source();
        }
        Self(out)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Requests that follow each other: one alone, or the turns of a session.
#[derive(Clone)]
pub struct Job {
    /// When the first is due, nanoseconds from the start.
    pub at_ns: u64,
    /// One at least.
    pub turns: Vec<Turn>,
}

/// A request made ready.
#[derive(Clone)]
pub struct Turn {
    /// Which request of the plan.
    pub index: usize,
    /// Time from the end of the answer before to when this is due, nanoseconds.
    pub think_ns: u64,
    /// Its body.
    pub body: Bytes,
    /// Prompt tokens planned.
    pub prompt_tokens: u32,
    /// Whether that is what the server should count.
    pub is_exact: bool,
    /// Output tokens asked for.
    pub output_tokens: u32,
    /// The client leaves this long after sending, nanoseconds.
    pub cancel_after_ns: Option<u64>,
}

/// Progress counters, read by whoever draws them.
#[derive(Default)]
pub struct Progress {
    /// Requests sent.
    pub sent: AtomicUsize,
    /// Requests ended, well or not.
    pub done: AtomicUsize,
    /// Requests failed.
    pub failed: AtomicUsize,
    /// Chunks with content in requests that ended.
    pub chunks: AtomicUsize,
    /// Latencies of requests that ended; locked once a request.
    pub latencies: Mutex<Latencies>,
}

/// Latencies for the eye, coarse: results are made of what each request says itself.
pub struct Latencies {
    /// From the schedule, microseconds.
    pub ttft_us: Histogram<u32>,
    /// Microseconds.
    pub tpot_us: Histogram<u32>,
    /// How much later than it could have been a request was sent, at most.
    pub lag_max_ns: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let coarse = || Histogram::new_with_max(LATENCY_US_MAX, 2).expect("the bounds are constants that it takes");
        Self { ttft_us: coarse(), tpot_us: coarse(), lag_max_ns: 0 }
    }
}

impl Progress {
    /// A request has ended.
    fn ended(&self, outcome: &Outcome) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(usize::from(outcome.error.is_some()), Ordering::Relaxed);
        self.chunks.fetch_add(outcome.chunks_ns.len(), Ordering::Relaxed);
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.lag_max_ns = latencies.lag_max_ns.max((outcome.own_lag_ms() * 1e6) as u64);
        if outcome.completed() {
            let us = |ms: Option<f64>| ms.map(|ms| (ms * 1e3) as u64);
            us(outcome.ttft_ms()).into_iter().for_each(|us| latencies.ttft_us.saturating_record(us));
            us(outcome.tpot_ms()).into_iter().for_each(|us| latencies.tpot_us.saturating_record(us));
        }
    }
}

/// How a run is made.
#[derive(Clone)]
pub struct Config {
    /// Threads.
    pub threads: usize,
    /// Most requests in flight.
    pub max_concurrency: Option<usize>,
    /// Begins every request's `x-request-id`.
    pub run_id: String,
    /// Cores that the threads keep to, each to one; none where the system decides.
    pub cores: Vec<usize>,
}

/// What a run gave.
pub struct Run {
    /// One for each request, in the order of their index.
    pub outcomes: Vec<Outcome>,
    /// How each thread fared.
    pub threads: Vec<audit::Thread>,
}

struct Shared {
    target: Target,
    places: Option<Arc<Semaphore>>,
    progress: Arc<Progress>,
    run_id: String,
}

/// A place under the limit on concurrency, and since when; nothing where there is no limit.
type Place = Option<(OwnedSemaphorePermit, u64)>;

impl Shared {
    async fn place(&self) -> Place {
        let permit = Arc::clone(self.places.as_ref()?).acquire_owned().await.expect("nobody closes it");
        Some((permit, now_ns()))
    }
}

/// Sends `jobs`, ascending in the time of their first, and waits for their ends. Blocks the calling thread.
///
/// # Errors
/// If a thread cannot start: no descriptor for its loop or timer, or not the core that it is to keep to.
pub fn run(target: &Target, jobs: Vec<Job>, config: &Config, progress: &Arc<Progress>) -> anyhow::Result<Run> {
    let threads = config.threads.clamp(1, jobs.len().max(1));
    let mut parts: Vec<Vec<Job>> = (0..threads).map(|_| Vec::with_capacity(jobs.len() / threads + 1)).collect();
    for (i, job) in jobs.into_iter().enumerate() {
        parts[i % threads].push(job);
    }
    let shared = Arc::new(Shared {
        target: target.clone(),
        places: config.max_concurrency.map(|n| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)))),
        progress: Arc::clone(progress),
        run_id: config.run_id.clone(),
    });
    let start_ns = now_ns() + LEAD.as_nanos() as u64;
    let ends: Vec<anyhow::Result<(Vec<Outcome>, audit::Thread)>> = std::thread::scope(|scope| {
        let running: Vec<_> = parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| {
                let (shared, core) = (Arc::clone(&shared), cores::of(&config.cores, i));
                scope.spawn(move || {
                    core.map_or(Ok(()), cores::keep_to)?;
                    thread(shared, part, start_ns)
                })
            })
            .collect();
        running.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut run = Run { outcomes: Vec::new(), threads: Vec::new() };
    for end in ends {
        let (outcomes, health) = end?;
        run.outcomes.extend(outcomes);
        run.threads.push(health);
    }
    run.outcomes.sort_unstable_by_key(|o| o.index);
    Ok(run)
}

/// A runtime of one thread, for `work` that spawns on it.
///
/// # Errors
/// If the system gives no descriptor for the loop.
pub fn block_on<F: Future>(work: F) -> anyhow::Result<F::Output> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting an event loop")?;
    Ok(LocalSet::new().block_on(&runtime, work))
}

fn thread(shared: Arc<Shared>, jobs: Vec<Job>, start_ns: u64) -> anyhow::Result<(Vec<Outcome>, audit::Thread)> {
    let head = Rc::new(shared.target.post()?);
    block_on(async {
        let alarms = Alarms::start().context("no descriptor for a timer")?;
        let pool = Rc::new(Pool::new(shared.target.endpoint.clone()));
        let outcomes = Rc::new(RefCell::new(Vec::with_capacity(jobs.len())));
        let health = Rc::new(Cell::new(audit::Thread::default()));
        let mut tasks = tokio::task::JoinSet::new();
        alarms.until(start_ns).await;
        let (began_ns, cpu_before_ns) = (now_ns(), thread_cpu_ns());
        let watch = tokio::task::spawn_local(heartbeat(Rc::clone(&alarms), Rc::clone(&health)));
        for job in jobs {
            alarms.until(start_ns + job.at_ns).await;
            let place = shared.place().await;
            let session = Session {
                pool: Rc::clone(&pool),
                head: Rc::clone(&head),
                alarms: Rc::clone(&alarms),
                outcomes: Rc::clone(&outcomes),
                shared: Arc::clone(&shared),
                start_ns,
            };
            tasks.spawn_local(session.run(job, place));
            // Ended tasks give their memory back while the run goes on.
            while let Some(ended) = tasks.try_join_next() {
                ended.context("a request's task panicked")?;
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a request's task panicked")?;
        }
        watch.abort();
        let health = audit::Thread {
            wall_ns: now_ns() - began_ns,
            cpu_ns: thread_cpu_ns() - cpu_before_ns,
            connections: pool.opened.get(),
            descriptors_missed: pool.descriptors_missed.get(),
            ..health.get()
        };
        Ok((outcomes.take(), health))
    })?
}

/// Notes how late it is woken: what stands between an alarm and its task stands between a chunk and its request too.
async fn heartbeat(alarms: Rc<Alarms>, health: Rc<Cell<audit::Thread>>) {
    loop {
        let due_ns = now_ns() + HEARTBEAT_NS;
        alarms.until(due_ns).await;
        let late_ns = now_ns() - due_ns;
        let mut seen = health.get();
        seen.stall_max_ns = seen.stall_max_ns.max(late_ns);
        if late_ns as f64 > audit::STALL_MS * 1e6 {
            seen.stalled_ns += late_ns;
        }
        health.set(seen);
    }
}

/// Raises the number of descriptors to what the system allows; what it is then.
pub fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
