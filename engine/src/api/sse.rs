//! Running sequences to response bytes: a stream of events or one JSON body, the same for both routes.
//!
//! What differs between the routes is the shape of a choice, which [`Format`] supplies. Per step with text this costs one
//! serialisation into a buffer and one write; the role chunk and the first text travel in the same write.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, header};
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::ApiError;
use super::running::{Finish, Running, Step};
use super::server::Server;
use crate::core::{Logprobs, Usage};

/// The shapes of one route.
pub(crate) trait Format: Send + 'static {
    /// Value of `object` in a body and in a chunk.
    const OBJECT: &'static str;
    const CHUNK_OBJECT: &'static str;
    /// A choice in a chunk and in a body.
    type Delta: Serialize + Send;
    type Choice: Serialize + Send;

    /// The choices that a step streams, in order, one chunk each.
    fn deltas(&mut self, step: Step) -> Vec<Self::Delta>;
    /// A whole choice.
    fn choice(&mut self, index: usize, text: String, logprobs: Vec<(u32, Logprobs)>, finish: Finish) -> Self::Choice;
}

/// What all chunks of a response have in common.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
}

#[derive(Serialize)]
struct Message<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Outer `None`: no such field. Inner `None`: null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Serialize)]
struct UsageBody {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(Usage { prompt_tokens, completion_tokens }: Usage) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

impl Envelope {
    fn message<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        usage: Option<Option<UsageBody>>,
    ) -> Message<'a, C> {
        Message { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// One `data:` event.
fn event<T: Serialize>(buffer: &mut Vec<u8>, data: &T) {
    buffer.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *buffer, data).expect("our own types serialise into memory");
    buffer.extend_from_slice(b"\n\n");
}

/// The streaming response. Headers go out at once; a failure after that is an `error` event and the end.
pub(crate) fn stream<F: Format>(
    server: Arc<Server>,
    running: Running,
    format: F,
    envelope: Envelope,
    include_usage: bool,
) -> Response {
    let mut response = Response::new(Body::from_stream(events(server, running, format, envelope, include_usage)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Buffering proxies would turn tokens into lumps.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn events<F: Format>(
    server: Arc<Server>,
    mut running: Running,
    mut format: F,
    envelope: Envelope,
    include_usage: bool,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    async_stream::stream! {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + server.keep_alive, server.keep_alive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent_since_tick = false;
        loop {
            let step = tokio::select! {
                biased;
                step = running.next() => step,
                _ = ticks.tick() => {
                    if !std::mem::take(&mut sent_since_tick) {
                        yield Ok(Bytes::from_static(b": keep-alive\n\n"));
                    }
                    continue;
                }
            };
            let mut buffer = Vec::with_capacity(512);
            match step {
                Some(Ok(step)) => {
                    for delta in format.deltas(step) {
                        let usage = include_usage.then_some(None);
                        event(&mut buffer, &envelope.message(F::CHUNK_OBJECT, &[delta], usage));
                    }
                    sent_since_tick = true;
                    if !buffer.is_empty() {
                        yield Ok(Bytes::from(buffer));
                    }
                }
                Some(Err(error)) => {
                    server.metrics.error(&error);
                    tracing::debug!(request = envelope.id, %error, "stream failed");
                    yield Ok(Bytes::from(format!("data: {}\n\n", error.to_json())));
                    return;
                }
                None => {
                    if include_usage {
                        let usage = Some(Some(running.usage().into()));
                        event(&mut buffer, &envelope.message::<F::Delta>(F::CHUNK_OBJECT, &[], usage));
                    }
                    buffer.extend_from_slice(b"data: [DONE]\n\n");
                    yield Ok(Bytes::from(buffer));
                    return;
                }
            }
        }
    }
}

/// The non-streaming response.
///
/// # Errors
/// The first failure of any choice.
pub(crate) async fn collect<F: Format>(
    mut running: Running,
    mut format: F,
    envelope: Envelope,
) -> Result<Response, ApiError> {
    let mut texts = vec![(String::new(), Vec::new(), Finish::Stop); running.choices()];
    while let Some(step) = running.next().await {
        let step = step?;
        let (text, logprobs, finish) = &mut texts[step.choice];
        text.push_str(&step.text);
        logprobs.extend(step.logprobs);
        *finish = step.finish.unwrap_or(*finish);
    }
    let choices: Vec<F::Choice> = texts
        .into_iter()
        .enumerate()
        .map(|(index, (text, logprobs, finish))| format.choice(index, text, logprobs, finish))
        .collect();
    let message = envelope.message(F::OBJECT, &choices, Some(Some(running.usage().into())));
    let json = serde_json::to_vec(&message).expect("our own types serialise into memory");
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
