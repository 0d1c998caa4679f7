//! The running engine: the scheduler under its lock, two loops that drive it, and the handle's side.
//!
//! Threads: `engine-prefill` and `engine-decode`, each with its own stream and buffers. A loop takes the lock to schedule,
//! releases it to run the step, takes it again to hand in the results; events are sent outside the lock. Whoever changes
//! something that the other loop may be waiting for wakes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::config::EngineConfig;
use super::live::Live;
use super::load::Loaded;
use super::request::{
    Engine, EngineRequest, EngineStats, FailKind, FinishReason, Health, LOGPROBS_MAX, ModelInfo, SubmitError,
};
use super::scheduler::{Limits, Scheduler, SeqId, StopRule};
use super::steps::{Kind, StepLoop};

/// Everything under the lock.
pub(super) struct State {
    pub(super) scheduler: Scheduler<Arc<Live>>,
    /// Live requests by the caller's name.
    pub(super) ids: HashMap<u64, SeqId>,
    /// Set once: both loops end.
    pub(super) stopped: bool,
    pub(super) prefill_steps: u64,
    pub(super) decode_steps: u64,
    pub(super) decode_post_ns: u64,
}

/// What both loops and every handle share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    prefill: Condvar,
    decode: Condvar,
    health: watch::Sender<Health>,
    info: ModelInfo,
    max_waiting: usize,
}

impl Shared {
    /// What the loop of `kind` waits on.
    pub(super) fn signal(&self, kind: Kind) -> &Condvar {
        match kind {
            Kind::Prefill | Kind::Mixed => &self.prefill,
            Kind::Decode => &self.decode,
        }
    }

    /// Wakes the loops that may have something to do now.
    pub(super) fn wake(&self, state: &State) {
        if state.stopped || state.scheduler.waiting() + state.scheduler.prefilling() > 0 {
            self.prefill.notify_one();
        }
        if state.stopped || state.scheduler.prefilling() + state.scheduler.running() > 0 {
            self.decode.notify_one();
        }
    }

    /// Vocabulary size.
    pub(super) fn vocab(&self) -> usize {
        self.info.vocab_size
    }

    /// True for a model without weights.
    pub(super) fn dummy(&self) -> bool {
        self.info.dummy
    }

    /// Stops both loops and fails every live request. The first cause stays.
    pub(super) fn stop(&self, kind: FailKind, message: &str) {
        let live = {
            let mut state = self.state.lock();
            let live = if state.stopped { Vec::new() } else { state.scheduler.drain() };
            if !state.stopped {
                let health = match kind {
                    FailKind::Shutdown => Health::Stopped,
                    _ => Health::Failed { kind: kind.clone(), message: message.to_owned() },
                };
                self.health.send_replace(health);
            }
            state.ids.clear();
            state.stopped = true;
            self.wake(&state);
            live
        };
        for request in live {
            request.fail(kind.clone(), message.to_owned());
        }
    }

    /// Ends a request that nobody listens to, or that its caller gave up.
    pub(super) fn abort(&self, id: u64) {
        let aborted = {
            let mut state = self.state.lock();
            let sequence = state.ids.remove(&id);
            let aborted = sequence.and_then(|sequence| state.scheduler.abort(sequence));
            self.wake(&state);
            aborted
        };
        if let Some((request, usage)) = aborted {
            request.finish(FinishReason::Abort, usage);
        }
    }

    /// What is wrong with a request, whatever the load.
    fn check(&self, request: &EngineRequest) -> Result<(), SubmitError> {
        let invalid = |problem: String| Err(SubmitError::Invalid(problem));
        let (prompt, params) = (&request.prompt, &request.params);
        let vocab = self.info.vocab_size;
        if prompt.is_empty() {
            return invalid("the prompt has no token".to_owned());
        }
        if let Some(token) = prompt.iter().find(|&&t| t as usize >= vocab) {
            return invalid(format!("token {token} is outside the vocabulary of {vocab}"));
        }
        if params.max_tokens == 0 {
            return invalid("max_tokens must be at least 1".to_owned());
        }
        if !(params.temperature >= 0.0 && params.temperature.is_finite()) {
            return invalid(format!("temperature {} is not a number from 0 up", params.temperature));
        }
        if !(params.top_p > 0.0 && params.top_p <= 1.0) {
            return invalid(format!("top_p {} is not in (0, 1]", params.top_p));
        }
        if params.top_k < -1 {
            return invalid(format!("top_k {} is neither −1, 0 nor positive", params.top_k));
        }
        if params.logprobs.is_some_and(|n| n > LOGPROBS_MAX) {
            return invalid(format!("at most {LOGPROBS_MAX} log-probabilities a token"));
        }
        let max_model_len = self.info.max_model_len;
        if prompt.len().saturating_add(params.max_tokens) > max_model_len {
            let (prompt, max_tokens) = (prompt.len(), params.max_tokens);
            return Err(SubmitError::ContextTooLong { prompt, max_tokens, max_model_len });
        }
        Ok(())
    }

    /// Why the engine has stopped.
    fn cause(&self) -> String {
        match &*self.health.borrow() {
            Health::Failed { kind, message } => format!("{kind}: {message}"),
            Health::Stopped | Health::Ready => "shut down".to_owned(),
        }
    }
}

/// An engine on a device.
pub(super) struct DeviceEngine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl DeviceEngine {
    /// Starts both loops on a loaded model.
    pub(super) fn start(loaded: Loaded, config: &EngineConfig) -> anyhow::Result<Self> {
        let limits = Limits {
            max_num_seqs: config.max_num_seqs,
            prefill_ahead: config.prefill_ahead,
            block_size: config.block_size,
            max_num_batched_tokens: config.max_num_batched_tokens,
            chunked: config.splits_prompts(),
            max_prefill_seqs: loaded.max_prefill_seqs,
        };
        let model = &loaded.weights.config;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                scheduler: Scheduler::new(limits, loaded.kv.blocks),
                ids: HashMap::new(),
                stopped: false,
                prefill_steps: 0,
                decode_steps: 0,
                decode_post_ns: 0,
            }),
            prefill: Condvar::new(),
            decode: Condvar::new(),
            health: watch::Sender::new(Health::Ready),
            info: ModelInfo {
                architecture: model.architecture.clone(),
                max_model_len: loaded.max_model_len,
                eos_token_ids: model.eos_token_ids.clone(),
                vocab_size: model.vocab,
                dtype: loaded.weights.dtype.name(),
                dummy: loaded.dummy,
                soc_name: loaded.device.soc_name().to_owned(),
            },
            max_waiting: config.max_waiting,
        });
        let engine = Self { shared: shared.clone(), threads: Mutex::new(Vec::new()) };
        let first = if config.mixed_batches { Kind::Mixed } else { Kind::Prefill };
        let loops = std::iter::once((first, loaded.prefill)).chain(loaded.decode.map(|d| (Kind::Decode, d)));
        for (kind, forward) in loops {
            let step_loop = StepLoop::new(kind, shared.clone(), loaded.device.clone(), forward);
            let thread = std::thread::Builder::new().name(kind.thread_name().to_owned());
            engine.threads.lock().push(thread.spawn(move || step_loop.run())?);
        }
        Ok(engine)
    }
}

impl Engine for DeviceEngine {
    fn submit(&self, request: EngineRequest) -> Result<(), SubmitError> {
        let shared = &self.shared;
        shared.check(&request)?;
        let (live, prompt) = Live::new(request, &shared.info.eos_token_ids, shared.info.dummy);
        let stop = StopRule { max_tokens: live.params.max_tokens, end_tokens: live.end_tokens.clone() };
        let mut state = shared.state.lock();
        if state.stopped {
            drop(state);
            return Err(SubmitError::EngineDead(shared.cause()));
        }
        if state.scheduler.waiting() >= shared.max_waiting {
            return Err(SubmitError::QueueFull { limit: shared.max_waiting });
        }
        let id = live.id;
        if state.ids.contains_key(&id) {
            return Err(SubmitError::Invalid(format!("request {id} is live already")));
        }
        let sequence = state.scheduler.submit(Arc::new(live), prompt, stop);
        state.ids.insert(id, sequence);
        shared.wake(&state);
        Ok(())
    }

    fn abort(&self, id: u64) {
        self.shared.abort(id);
    }

    fn stats(&self) -> EngineStats {
        let state = self.shared.state.lock();
        let (total, free) = state.scheduler.blocks();
        let counters = state.scheduler.counters();
        EngineStats {
            waiting: state.scheduler.waiting(),
            prefilling: state.scheduler.prefilling(),
            running: state.scheduler.running(),
            kv_blocks_total: total,
            kv_blocks_free: free,
            tokens_generated: counters.tokens_generated,
            tokens_prefilled: counters.tokens_prefilled,
            preemptions: counters.preemptions,
            prefill_steps: state.prefill_steps,
            decode_steps: state.decode_steps,
            decode_post_ns: state.decode_post_ns,
            finished: counters.finished,
            aborted: counters.aborted,
            failed: counters.failed,
        }
    }

    fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn shutdown(&self) {
        self.shared.stop(FailKind::Shutdown, "the engine is shutting down");
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A loop that panicked has reported itself already.
            let _ = thread.join();
        }
    }
}

impl Drop for DeviceEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
