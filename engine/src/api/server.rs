//! What all handlers share, and the step from a validated request to running sequences.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::ApiError;
use super::metrics::Metrics;
use super::params::Generation;
use super::request::Prompt;
use super::retry::FinishRate;
use super::running::{Running, Sequence};
use crate::core::{EngineHandle, EngineRequest, Health, SamplingParams};
use crate::text::{ChatTemplate, TextStream, Tokenizer};

/// Most sequences of one request (prompts × n).
pub(crate) const CHOICES_MAX: usize = 256;

/// Texts up to this size are tokenized where they arrive (under 2 ms); longer ones on a blocking thread.
const TOKENIZE_INLINE_BYTES_MAX: usize = 8 << 10;

/// No tokenizer spells more bytes than this in one token on average over a long text; a text that exceeds the context even
/// so is refused before it is tokenized. (The longest pieces are runs of spaces: 128 in Qwen's vocabulary.)
const BYTES_PER_TOKEN_MAX: usize = 256;

/// What a server is made of.
#[derive(Debug)]
pub struct ServerConfig {
    /// Engine that runs the requests.
    pub engine: EngineHandle,
    /// Tokenizer, bound to the engine's vocabulary.
    pub tokenizer: Tokenizer,
    /// `None`: a base model; chat is refused.
    pub template: Option<ChatTemplate>,
    /// Names that requests may use, at least one; the first is the one that is listed.
    pub model_names: Vec<String>,
    /// Where the model came from, for `/v1/models`.
    pub model_root: String,
    /// A stream in which nothing was sent for this long (at most twice this long) gets a comment; see [`KEEP_ALIVE`].
    pub keep_alive: Duration,
}

/// Balancers close connections that are idle for 60 s, and a long queue or prefill is silent.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// State of the API layer, shared by all connections.
#[derive(Debug)]
pub struct Server {
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) model_names: Vec<String>,
    pub(crate) model_root: String,
    pub(crate) keep_alive: Duration,
    pub(crate) metrics: Arc<Metrics>,
    /// Unix time of the start, in seconds.
    pub(crate) created: u64,
    next_id: AtomicU64,
    finish_rate: Mutex<FinishRate>,
    /// Long texts tokenized at the same time: one per processor.
    tokenize_slots: Semaphore,
}

impl Server {
    /// # Panics
    /// If there is no model name.
    pub fn new(config: ServerConfig) -> Arc<Self> {
        let ServerConfig { engine, tokenizer, template, model_names, model_root, keep_alive } = config;
        let metrics = Arc::new(Metrics::new(&engine, model_names.first().expect("at least one model name")));
        let slots = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            engine,
            tokenizer: Arc::new(tokenizer),
            template,
            model_names,
            model_root,
            keep_alive,
            metrics,
            created: unix_seconds(),
            next_id: AtomicU64::new(1),
            finish_rate: Mutex::new(FinishRate::new(Instant::now())),
            tokenize_slots: Semaphore::new(slots),
        })
    }

    /// 503 unless the engine can serve.
    pub(crate) fn check_health(&self) -> Result<(), ApiError> {
        match &*self.engine.health().borrow() {
            Health::Ready => Ok(()),
            Health::Failed { kind, message } => Err(match ApiError::from_failure(kind, message) {
                error if error.status() == http::StatusCode::SERVICE_UNAVAILABLE => error,
                // For the request that met it, an operator's failure is a 500; for the engine it is the end.
                _ => ApiError::unavailable("engine_stopped", format!("The engine has stopped: {kind}: {message}")),
            }),
            Health::Stopped => Err(ApiError::unavailable("shutting_down", "The engine is shutting down.")),
        }
    }

    /// The served name that `asked` is.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let asked = asked.ok_or_else(|| ApiError::invalid("model", "You must provide a model parameter."))?;
        match self.model_names.iter().find(|name| *name == asked) {
            Some(name) => Ok(name.clone()),
            None => Err(ApiError::model_not_found(asked, &self.model_names[0])),
        }
    }

    /// Token ids of a prompt. `add_special_tokens` as in [`Tokenizer::encode`].
    pub(crate) async fn tokens(
        &self,
        prompt: Prompt,
        param: &'static str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let text = match prompt {
            Prompt::Tokens(tokens) => {
                self.check_tokens(&tokens, param)?;
                return Ok(tokens);
            }
            Prompt::Text(text) => text,
        };
        let max_model_len = self.engine.info().max_model_len;
        let at_least = text.len() / BYTES_PER_TOKEN_MAX;
        if at_least > max_model_len {
            return Err(ApiError::context_too_long(param, max_model_len, at_least, None, true));
        }
        let result = if text.len() <= TOKENIZE_INLINE_BYTES_MAX {
            self.tokenizer.encode(&text, add_special_tokens)
        } else {
            let _slot = self.tokenize_slots.acquire().await.expect("the semaphore is never closed");
            let tokenizer = Arc::clone(&self.tokenizer);
            tokio::task::spawn_blocking(move || tokenizer.encode(&text, add_special_tokens))
                .await
                .map_err(|error| ApiError::internal(format!("tokenizing failed: {error}")))?
        };
        let tokens = result.map_err(|error| ApiError::invalid(param, error.to_string()))?;
        if tokens.is_empty() {
            return Err(ApiError::invalid(param, format!("{param} must have at least one token.")));
        }
        Ok(tokens)
    }

    fn check_tokens(&self, tokens: &[u32], param: &str) -> Result<(), ApiError> {
        let vocab_size = self.engine.info().vocab_size;
        if tokens.is_empty() {
            return Err(ApiError::invalid(param, format!("{param} must have at least one token.")));
        }
        match tokens.iter().position(|&id| id as usize >= vocab_size) {
            Some(at) => Err(ApiError::invalid(
                format!("{param}[{at}]"),
                format!("Token id {} is outside the vocabulary of {vocab_size} tokens.", tokens[at]),
            )),
            None => Ok(()),
        }
    }

    /// The number of choices of a request with `prompts` prompts, if there are not too many.
    pub(crate) fn check_choices(&self, prompts: usize, generation: &Generation) -> Result<usize, ApiError> {
        let choices = prompts * generation.n;
        if choices <= CHOICES_MAX {
            return Ok(choices);
        }
        let message = format!("{choices} choices asked for (prompts times n); at most {CHOICES_MAX} are allowed.");
        Err(ApiError::invalid(generation.route.prompt_param(), message))
    }

    /// Submits `n` sequences for every prompt. Choice `p * n + i` is alternative `i` of prompt `p`.
    ///
    /// # Errors
    /// The engine's refusal of any of them; those accepted before are aborted.
    pub(crate) fn start(
        &self,
        prompts: Vec<Vec<u32>>,
        generation: &Generation,
        arrived: Instant,
    ) -> Result<Running, ApiError> {
        let choices = self.check_choices(prompts.len(), generation)?;
        let mut max_tokens = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            max_tokens.push(self.max_tokens(prompt.len(), generation)?);
        }
        let mut sequences = Vec::with_capacity(choices);
        for (prompt, max_tokens) in prompts.into_iter().zip(max_tokens) {
            for alternative in 0..generation.n {
                let seed = generation.sampling.seed.map(|seed| seed.wrapping_add(alternative as u64));
                let params = SamplingParams { max_tokens, seed, ..generation.sampling.clone() };
                sequences.push(self.submit(prompt.clone(), params, generation, arrived)?);
            }
        }
        Ok(Running::new(sequences, generation.n))
    }

    fn max_tokens(&self, prompt_tokens: usize, generation: &Generation) -> Result<usize, ApiError> {
        let param = generation.route.prompt_param();
        let max_model_len = self.engine.info().max_model_len;
        if prompt_tokens >= max_model_len {
            return Err(ApiError::context_too_long(param, max_model_len, prompt_tokens, None, false));
        }
        let room = max_model_len - prompt_tokens;
        match generation.max_tokens {
            None => Ok(room),
            Some(asked) if asked <= room => Ok(asked),
            Some(asked) => Err(ApiError::context_too_long(param, max_model_len, prompt_tokens, Some(asked), false)),
        }
    }

    fn submit(
        &self,
        prompt: Vec<u32>,
        params: SamplingParams,
        generation: &Generation,
        arrived: Instant,
    ) -> Result<Sequence, ApiError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let text = TextStream::new(Arc::clone(&self.tokenizer), &generation.stops, params.min_tokens);
        let prompt_tokens = prompt.len();
        let (sender, events) = mpsc::unbounded_channel();
        self.engine.submit(EngineRequest { id, prompt, params, events: sender }).map_err(|error| {
            let stats = self.engine.stats();
            let delay = self.finish_rate.lock().retry_after_s(Instant::now(), stats.finished, stats.waiting);
            ApiError::from_submit(&error, generation.route.prompt_param(), delay)
        })?;
        Ok(Sequence::new(self.engine.clone(), id, events, text, prompt_tokens, Arc::clone(&self.metrics), arrived))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
