//! The API layer on a scripted engine: no device, no model, events exactly when a test says so.

mod disconnect;
mod errors;
mod failures;
mod shapes;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tower::ServiceExt;

use super::{KEEP_ALIVE, Server, ServerConfig, router};
use crate::core::{
    Engine, EngineHandle, EngineRequest, EngineStats, FailKind, FinishReason, Health, ModelInfo, SubmitError,
    TokenEvent, Usage,
};
use crate::text::{ChatTemplate, Tokenizer};

/// Bounds every wait of these tests.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the scripted model.
const MAX_MODEL_LEN: usize = 100;
const VOCAB_SIZE: usize = 300;

type Reply = Box<dyn Fn(&EngineRequest) -> Vec<TokenEvent> + Send + Sync>;

/// An engine that does what it is told.
struct Scripted {
    info: ModelInfo,
    health: watch::Sender<Health>,
    stats: Mutex<EngineStats>,
    /// Answers at once; without it, requests go to `submitted` and the test sends the events.
    reply: Option<Reply>,
    /// Submissions to accept before refusing with this error.
    refuse: Mutex<Option<(usize, SubmitError)>>,
    submitted: mpsc::UnboundedSender<EngineRequest>,
    aborted: mpsc::UnboundedSender<u64>,
}

impl Engine for Scripted {
    fn submit(&self, request: EngineRequest) -> Result<(), SubmitError> {
        if let Some((left, error)) = &mut *self.refuse.lock() {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(error.clone()),
            }
        }
        if let Some(reply) = &self.reply {
            for event in reply(&request) {
                let _ = request.events.send(event);
            }
        }
        let _ = self.submitted.send(request);
        Ok(())
    }

    fn abort(&self, id: u64) {
        let _ = self.aborted.send(id);
    }

    fn stats(&self) -> EngineStats {
        *self.stats.lock()
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn shutdown(&self) {
        self.health.send_replace(Health::Stopped);
    }
}

/// A server on a scripted engine, and the engine's other end.
struct Bench {
    server: Arc<Server>,
    engine: Arc<Scripted>,
    submitted: mpsc::UnboundedReceiver<EngineRequest>,
    aborted: mpsc::UnboundedReceiver<u64>,
}

impl Bench {
    /// The test sends the events.
    fn manual() -> Self {
        Self::with(None, KEEP_ALIVE, Some(ChatTemplate::chatml()))
    }

    /// Every request is answered at once.
    fn replying(reply: impl Fn(&EngineRequest) -> Vec<TokenEvent> + Send + Sync + 'static) -> Self {
        Self::with(Some(Box::new(reply)), KEEP_ALIVE, Some(ChatTemplate::chatml()))
    }

    /// Every request is answered with `text`, one byte a token, cut at its `max_tokens`.
    fn saying(text: &'static str) -> Self {
        Self::replying(move |request| say(text, request.params.max_tokens, request.prompt.len()))
    }

    fn with(reply: Option<Reply>, keep_alive: Duration, template: Option<ChatTemplate>) -> Self {
        let (submitted_sender, submitted) = mpsc::unbounded_channel();
        let (aborted_sender, aborted) = mpsc::unbounded_channel();
        let info = ModelInfo {
            architecture: "Qwen2ForCausalLM".into(),
            max_model_len: MAX_MODEL_LEN,
            eos_token_ids: vec![256],
            vocab_size: VOCAB_SIZE,
            dtype: "float32",
            dummy: false,
            soc_name: "Ascend910B3".into(),
        };
        let engine = Arc::new(Scripted {
            info,
            health: watch::Sender::new(Health::Ready),
            stats: Mutex::default(),
            reply,
            refuse: Mutex::new(None),
            submitted: submitted_sender,
            aborted: aborted_sender,
        });
        let server = Server::new(ServerConfig {
            engine: EngineHandle::new(Arc::clone(&engine) as Arc<dyn Engine>),
            tokenizer: Tokenizer::bytes(),
            template,
            model_names: vec!["tiny".into(), "models/tiny".into()],
            model_root: "models/tiny".into(),
            keep_alive,
        });
        Self { server, engine, submitted, aborted }
    }

    fn router(&self) -> Router {
        router(Arc::clone(&self.server))
    }

    /// Sends a request without a connection and reads the whole answer.
    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, body.collect()).await.expect("in time").expect("reads").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Answer { status: parts.status, headers: parts.headers, text }
    }

    async fn post(&self, path: &str, body: impl ToString) -> Answer {
        let body = Body::from(body.to_string());
        self.send(Request::post(path).body(body).expect("a request")).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn next_submitted(&mut self) -> EngineRequest {
        tokio::time::timeout(PATIENCE, self.submitted.recv()).await.expect("in time").expect("a request")
    }

    async fn next_aborted(&mut self) -> u64 {
        tokio::time::timeout(PATIENCE, self.aborted.recv()).await.expect("in time").expect("an abort")
    }

    /// Ids aborted so far.
    fn aborted_now(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.aborted.try_recv().ok()).collect()
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Data of all events of a stream; comments are skipped.
    fn events(&self) -> Vec<String> {
        assert_eq!(self.headers["content-type"], "text/event-stream; charset=utf-8");
        assert!(self.text.ends_with("\n\n"), "the last event is complete");
        let blocks = self.text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
        blocks.map(|block| block.strip_prefix("data: ").expect("a data event").to_owned()).collect()
    }

    /// The chunks of a stream that ends well.
    fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }
}

fn token(id: u32) -> TokenEvent {
    TokenEvent::Token { id, logprobs: None }
}

fn finished(reason: FinishReason, prompt_tokens: usize, completion_tokens: usize) -> TokenEvent {
    TokenEvent::Finished { reason, usage: Usage { prompt_tokens, completion_tokens } }
}

fn failed(kind: FailKind, message: &str) -> TokenEvent {
    TokenEvent::Failed { kind, message: message.into() }
}

/// `text` as byte tokens and an end token, or cut at `max_tokens`.
fn say(text: &str, max_tokens: usize, prompt_tokens: usize) -> Vec<TokenEvent> {
    let mut events: Vec<TokenEvent> = text.bytes().take(max_tokens).map(|byte| token(byte.into())).collect();
    let (reason, tokens) =
        if text.len() < max_tokens { (FinishReason::Stop, text.len() + 1) } else { (FinishReason::Length, max_tokens) };
    events.push(finished(reason, prompt_tokens, tokens));
    events
}
