//! The contract between the API layer and the core: what a request carries in, which events come out, how a handle is
//! asked for numbers.
//!
//! The API layer sees nothing of devices, operators or blocks. A request's events go straight from the loop that made
//! them into the request's own channel, so no task of the API layer stands between the device and a client. That
//! channel has no bound of its own: a request sends at most `max_tokens + 1` events, which is the bound.
//!
//! [`EngineHandle`] wraps a trait object, so the API layer's tests can run on a scripted engine without any device.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

/// How the next token is chosen from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 chooses the most likely token; above 0 divides the logits before the softmax.
    pub temperature: f32,
    /// Smallest set of most likely tokens whose probability reaches this; 1 is off. In (0, 1].
    pub top_p: f32,
    /// Only the k most likely tokens; −1 or 0 is off.
    pub top_k: i32,
    /// Seed of this request's own generator; `None` draws one. Never shared with another request.
    pub seed: Option<u64>,
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// Tokens that end the sequence and are not reported, besides the model's own end tokens.
    pub stop_token_ids: Vec<u32>,
    /// The model's own end tokens do not end the sequence; `stop_token_ids` still do.
    pub ignore_eos: bool,
    /// End tokens cannot be chosen before this many tokens were generated.
    pub min_tokens: usize,
    /// Report the chosen token's log-probability and this many of the most likely alternatives.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: -1,
            seed: None,
            max_tokens: 16,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            logprobs: None,
        }
    }
}

/// Most alternatives that [`SamplingParams::logprobs`] may ask for.
pub const LOGPROBS_MAX: usize = 20;

/// One prompt to continue.
#[derive(Debug)]
pub struct EngineRequest {
    /// Chosen by the caller, unique among live requests; names it for [`EngineHandle::abort`].
    pub id: u64,
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// Sampling.
    pub params: SamplingParams,
    /// Receives every event of this request. A dropped receiver aborts the request at its next token.
    pub events: mpsc::UnboundedSender<TokenEvent>,
}

/// Log-probability of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Token.
    pub id: u32,
    /// Natural logarithm of its probability under the unmodified softmax (temperature 1, no filter).
    pub logprob: f32,
}

/// Log-probabilities at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most likely tokens, most likely first, as many as [`SamplingParams::logprobs`] asked for.
    pub top: Vec<TokenLogprob>,
}

/// What happens to a request. `Finished` or `Failed` is the last event, exactly one of them, exactly once.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// A new token. End tokens are not reported.
    Token {
        /// Token.
        id: u32,
        /// Present if the request asked for log-probabilities.
        logprobs: Option<Logprobs>,
    },
    /// The sequence is complete.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Token counts.
        usage: Usage,
    },
    /// The request cannot be completed.
    Failed {
        /// Whose fault.
        kind: FailKind,
        /// For a human, names the operator where one failed.
        message: String,
    },
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token.
    Stop,
    /// `max_tokens` reached.
    Length,
    /// Aborted by the caller.
    Abort,
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated; an end token counts.
    pub completion_tokens: usize,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailKind {
    /// The device is gone; so is this engine.
    DeviceLost,
    /// Device memory ran out in a step.
    OutOfMemory,
    /// An operator failed; its name.
    Operator(String),
    /// Another AscendCL call failed; its name.
    Runtime(String),
    /// The engine was shut down.
    Shutdown,
}

impl fmt::Display for FailKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceLost => f.write_str("device lost"),
            Self::OutOfMemory => f.write_str("out of device memory"),
            Self::Operator(name) => write!(f, "operator {name} failed"),
            Self::Runtime(name) => write!(f, "{name} failed"),
            Self::Shutdown => f.write_str("engine shut down"),
        }
    }
}

/// Why a request was not accepted. Nothing was queued and no event will come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Prompt and `max_tokens` do not fit the context.
    #[error(
        "the request needs {prompt} prompt tokens and up to {max_tokens} generated tokens, but the context holds {max_model_len}"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens the context holds.
        max_model_len: usize,
    },
    /// The prompt has no token, or one outside the vocabulary, or a parameter is out of range.
    #[error("{0}")]
    Invalid(String),
    /// Too many requests wait; retry later.
    #[error("{limit} requests are waiting already")]
    QueueFull {
        /// Bound on waiting requests.
        limit: usize,
    },
    /// The engine has stopped; why.
    #[error("the engine has stopped: {0}")]
    EngineDead(String),
}

/// Numbers of a running engine. Counters count since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests not yet given any blocks, preempted ones included.
    pub waiting: usize,
    /// Sequences in the prefill loop, parked ones included.
    pub prefilling: usize,
    /// Sequences that are decoding.
    pub running: usize,
    /// KV blocks in the pool.
    pub kv_blocks_total: usize,
    /// KV blocks not held by any sequence.
    pub kv_blocks_free: usize,
    /// Tokens generated.
    pub tokens_generated: u64,
    /// Prompt tokens run through prefill, recomputed ones included.
    pub tokens_prefilled: u64,
    /// Times a sequence lost its blocks to an older one.
    pub preemptions: u64,
    /// Prefill steps.
    pub prefill_steps: u64,
    /// Decode steps.
    pub decode_steps: u64,
    /// Host time spent posting decode steps, in nanoseconds (without waiting for the device).
    pub decode_post_ns: u64,
    /// Requests completed: `Finished` with `Stop` or `Length`.
    pub finished: u64,
    /// Requests aborted.
    pub aborted: u64,
    /// Requests failed.
    pub failed: u64,
}

/// What the engine serves.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `architectures[0]` of `config.json`, e.g. `Qwen2ForCausalLM`.
    pub architecture: String,
    /// Tokens a sequence may have, prompt included.
    pub max_model_len: usize,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Size of the vocabulary (rows of the output layer).
    pub vocab_size: usize,
    /// Element type the model runs in: `float32`, `bfloat16`, `float16`.
    pub dtype: &'static str,
    /// True without weights (`--load-format dummy`): tokens mean nothing and end tokens are ignored.
    pub dummy: bool,
    /// SoC name that the device reports.
    pub soc_name: String,
}

/// Whether the engine can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Serving.
    Ready,
    /// Stopped by a failure that no retry cures; every live request got `Failed`. The process should exit non-zero.
    Failed {
        /// Whose fault.
        kind: FailKind,
        /// For a human.
        message: String,
    },
    /// Stopped by [`EngineHandle::shutdown`].
    Stopped,
}

/// What an engine does. [`crate::core::start`] makes the one that runs on a device; tests script their own.
pub trait Engine: Send + Sync {
    /// Queues a request. Never blocks on the device.
    ///
    /// # Errors
    /// [`SubmitError`]; the request is dropped and no event is sent.
    fn submit(&self, request: EngineRequest) -> Result<(), SubmitError>;
    /// Ends a request; unknown ids are ignored. Its last event is `Finished` with [`FinishReason::Abort`].
    fn abort(&self, id: u64);
    /// Numbers.
    fn stats(&self) -> EngineStats;
    /// The model.
    fn info(&self) -> &ModelInfo;
    /// Follows the engine's health; the last value stays readable.
    fn health(&self) -> watch::Receiver<Health>;
    /// Fails every live request with [`FailKind::Shutdown`], frees the device, and waits for the loops to end.
    fn shutdown(&self);
}

/// A shared reference to a running engine.
#[derive(Clone)]
pub struct EngineHandle(Arc<dyn Engine>);

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EngineHandle").field(self.0.info()).finish()
    }
}

impl EngineHandle {
    /// Wraps an engine.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self(engine)
    }

    /// See [`Engine::submit`].
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&self, request: EngineRequest) -> Result<(), SubmitError> {
        self.0.submit(request)
    }

    /// See [`Engine::abort`].
    pub fn abort(&self, id: u64) {
        self.0.abort(id);
    }

    /// See [`Engine::stats`].
    pub fn stats(&self) -> EngineStats {
        self.0.stats()
    }

    /// See [`Engine::info`].
    pub fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    /// See [`Engine::health`].
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health()
    }

    /// See [`Engine::shutdown`].
    pub fn shutdown(&self) {
        self.0.shutdown();
    }
}
