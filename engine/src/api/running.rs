//! The sequences of one request while they run: events in, steps of final text out.
//!
//! Who owns what: a [`Running`] lives in the future of a non-streaming response or in the body of a streaming one. The
//! HTTP server drops both as soon as it sees the peer gone, also while nothing is being sent. Dropping a [`Sequence`] that
//! is not finished aborts it in the engine; there is no other abort path and nothing to forget.
//!
//! Limit: the HTTP server looks for the end of the connection only while it holds no unread bytes of it. A client that has
//! sent more than its request (a pipelined one) and leaves is noticed when the next token is written.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc;

use super::ApiError;
use super::metrics::Metrics;
use crate::core::{EngineHandle, FinishReason, Logprobs, TokenEvent, Usage};
use crate::text::TextStream;

/// Why a sequence is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` or the context is exhausted.
    Length,
}

impl Finish {
    /// The `finish_reason` of the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What one event adds to one choice.
#[derive(Debug)]
pub(crate) struct Step {
    /// Index of the choice.
    pub choice: usize,
    /// The first step of this choice.
    pub first: bool,
    /// Final text; may be empty.
    pub text: String,
    /// Of the tokens since the last step, if asked for.
    pub logprobs: Vec<(u32, Logprobs)>,
    /// The last step of this choice.
    pub finish: Option<Finish>,
}

/// One sequence in the engine.
#[derive(Debug)]
pub(crate) struct Sequence {
    engine: EngineHandle,
    id: u64,
    events: mpsc::UnboundedReceiver<TokenEvent>,
    text: TextStream,
    /// The engine has no more to do for it: it finished, failed, or was told to abort.
    done: bool,
    shown: bool,
    logprobs: Vec<(u32, Logprobs)>,
    usage: Usage,
    metrics: Arc<Metrics>,
    arrived: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.abort();
    }
}

impl Sequence {
    /// Of an accepted request.
    pub(crate) fn new(
        engine: EngineHandle,
        id: u64,
        events: mpsc::UnboundedReceiver<TokenEvent>,
        text: TextStream,
        prompt_tokens: usize,
        metrics: Arc<Metrics>,
        arrived: Instant,
    ) -> Self {
        Self {
            engine,
            id,
            events,
            text,
            done: false,
            shown: false,
            logprobs: Vec::new(),
            usage: Usage { prompt_tokens, completion_tokens: 0 },
            metrics,
            arrived,
            first_token: None,
            last_token: arrived,
        }
    }

    fn abort(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.engine.abort(self.id);
        }
    }

    /// The step that an event makes, if there is anything to show. `None` as event: the channel closed.
    fn take(&mut self, choice: usize, event: Option<TokenEvent>) -> Result<Option<Step>, ApiError> {
        let (text, finish) = match event {
            Some(TokenEvent::Token { id, logprobs }) => {
                self.token_arrived(Instant::now());
                self.logprobs.extend(logprobs.map(|logprobs| (id, logprobs)));
                let delta = self.text.push(id);
                self.usage.completion_tokens = self.text.tokens();
                if delta.stopped {
                    self.abort();
                }
                (delta.text, delta.stopped.then_some(Finish::Stop))
            }
            Some(TokenEvent::Finished { reason, usage }) => {
                self.done = true;
                self.usage.completion_tokens = usage.completion_tokens;
                let finish = match reason {
                    FinishReason::Stop => Finish::Stop,
                    FinishReason::Length => Finish::Length,
                    FinishReason::Abort => return Err(ApiError::internal("The engine aborted the request.")),
                };
                (self.text.finish(), Some(finish))
            }
            Some(TokenEvent::Failed { kind, message }) => {
                self.done = true;
                return Err(ApiError::from_failure(&kind, &message));
            }
            None => {
                self.done = true;
                return Err(ApiError::internal("The engine dropped the request without saying why."));
            }
        };
        if let Some(finish) = finish {
            self.finished(finish, Instant::now());
        }
        let first = !std::mem::replace(&mut self.shown, true);
        if !first && text.is_empty() && finish.is_none() {
            return Ok(None);
        }
        // Log-probabilities travel with text, so those of a token whose text is still held back wait for it.
        let logprobs =
            if text.is_empty() && finish.is_none() { Vec::new() } else { std::mem::take(&mut self.logprobs) };
        Ok(Some(Step { choice, first, text, logprobs, finish }))
    }

    fn token_arrived(&mut self, now: Instant) {
        match self.first_token {
            None => {
                self.first_token = Some(now);
                self.metrics.first_token(now - self.arrived, self.usage.prompt_tokens);
            }
            Some(_) => self.metrics.next_token(now - self.last_token),
        }
        self.last_token = now;
    }

    fn finished(&self, finish: Finish, now: Instant) {
        let decoding = self.last_token - self.first_token.unwrap_or(self.last_token);
        let Usage { prompt_tokens, completion_tokens } = self.usage;
        self.metrics.finished(finish.as_str(), now - self.arrived, decoding, prompt_tokens, completion_tokens);
    }
}

/// All sequences of one request.
#[derive(Debug)]
pub(crate) struct Running {
    sequences: Vec<Sequence>,
    /// Alternatives per prompt.
    n: usize,
    /// Sequence to look at first: no choice starves the others.
    next: usize,
}

impl Running {
    pub(crate) fn new(sequences: Vec<Sequence>, n: usize) -> Self {
        Self { sequences, n, next: 0 }
    }

    /// Number of choices.
    pub(crate) fn choices(&self) -> usize {
        self.sequences.len()
    }

    /// The next step of any choice; `None` when all are finished. Cancel-safe.
    ///
    /// # Errors
    /// The first failure of any sequence; the request is over then and the others are aborted when `self` is dropped.
    pub(crate) async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Step, ApiError>>> {
        let len = self.sequences.len();
        let mut all_done = true;
        for offset in 0..len {
            let choice = (self.next + offset) % len;
            let sequence = &mut self.sequences[choice];
            while !sequence.done {
                let Poll::Ready(event) = sequence.events.poll_recv(cx) else {
                    all_done = false;
                    break;
                };
                if let Some(step) = sequence.take(choice, event).transpose() {
                    self.next = choice + 1;
                    return Poll::Ready(Some(step));
                }
            }
        }
        if all_done { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Tokens so far: every prompt counts once, every alternative's completion counts.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.sequences.iter().step_by(self.n).map(|sequence| sequence.usage.prompt_tokens).sum(),
            completion_tokens: self.sequences.iter().map(|sequence| sequence.usage.completion_tokens).sum(),
        }
    }
}
