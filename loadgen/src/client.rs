//! Sends the plan and times the answers.
//!
//! One task a request, each asleep until its absolute moment; a semaphore only where the user asked for
//! `--max-concurrency`, and the time spent in it counts as latency. The timestamp of a chunk is taken when its bytes
//! leave the socket, before any parsing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::measure::Outcome;
use loadgen::dataset::{Planned, prompt_ids};

/// How to reach the server and what to ask of it.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://host:port`.
    pub base_url: String,
    /// Path, `/v1/completions` or `/v1/chat/completions`.
    pub endpoint: String,
    /// Model name.
    pub model: String,
    /// Bearer token.
    pub api_key: Option<String>,
    /// Extra headers.
    pub headers: Vec<(String, String)>,
    /// Fields merged into every body.
    pub extra_body: serde_json::Map<String, Value>,
    /// Ask the server not to stop before the planned length.
    pub ignore_eos: bool,
    /// Token ids of prompts are below this.
    pub vocab: u32,
    /// Seed of prompts.
    pub seed: u64,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

/// Progress counters, read by whoever draws them.
#[derive(Default)]
pub struct Progress {
    /// Requests sent.
    pub sent: AtomicUsize,
    /// Requests ended, well or not.
    pub done: AtomicUsize,
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// Runs the plan; outcomes come back in plan order.
pub async fn run(
    target: &Target,
    plan: &[Planned],
    max_concurrency: Option<usize>,
    progress: &Arc<Progress>,
) -> Vec<Outcome> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let http: Http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1024).build(connector);
    let permits = max_concurrency.map(|n| Arc::new(tokio::sync::Semaphore::new(n.max(1))));
    // A little ahead, so that the first requests are not late by the time it takes to spawn all tasks.
    let start = Instant::now() + Duration::from_millis(20);
    let tasks: Vec<_> = plan
        .iter()
        .cloned()
        .enumerate()
        .map(|(index, planned)| {
            let (target, http, permits, progress) =
                (target.clone(), http.clone(), permits.clone(), Arc::clone(progress));
            tokio::spawn(async move {
                let body = Bytes::from(body(&target, &planned, index));
                tokio::time::sleep_until(start + Duration::from_secs_f64(planned.at_s)).await;
                let _permit = match permits {
                    Some(p) => p.acquire_owned().await.ok(),
                    None => None,
                };
                progress.sent.fetch_add(1, Ordering::Relaxed);
                let mut outcome = Outcome {
                    scheduled_s: planned.at_s,
                    sent_s: start.elapsed().as_secs_f64(),
                    prompt_tokens: planned.prompt_tokens,
                    ..Outcome::default()
                };
                let result = tokio::time::timeout(target.timeout, one(&target, &http, body, start, &mut outcome)).await;
                outcome.error = match result {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error),
                    Err(_) => Some(format!("no end after {} s", target.timeout.as_secs())),
                };
                progress.done.fetch_add(1, Ordering::Relaxed);
                outcome
            })
        })
        .collect();
    let mut outcomes = Vec::with_capacity(tasks.len());
    for (task, planned) in tasks.into_iter().zip(plan) {
        outcomes.push(task.await.unwrap_or_else(|e| Outcome {
            scheduled_s: planned.at_s,
            sent_s: planned.at_s,
            error: Some(format!("load generator task failed: {e}")),
            ..Outcome::default()
        }));
    }
    outcomes
}

/// The JSON body of request `index`.
fn body(target: &Target, planned: &Planned, index: usize) -> Vec<u8> {
    let ids = prompt_ids(planned.prompt_tokens, target.vocab, target.seed, index);
    let mut body = json!({
        "model": target.model,
        "stream": true,
        "stream_options": { "include_usage": true },
        "max_tokens": planned.output_tokens.max(1),
        "temperature": 0,
    });
    if target.endpoint.ends_with("/chat/completions") {
        // Chat endpoints take text: one short word a token is the closest that holds for any tokenizer.
        let words: Vec<String> = ids.iter().map(|id| format!("w{}", id % 10)).collect();
        body["messages"] = json!([{ "role": "user", "content": words.join(" ") }]);
    } else {
        body["prompt"] = json!(ids);
    }
    if target.ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    for (key, value) in &target.extra_body {
        body[key] = value.clone();
    }
    body.to_string().into_bytes()
}

async fn one(target: &Target, http: &Http, body: Bytes, start: Instant, outcome: &mut Outcome) -> Result<(), String> {
    let uri: Uri = format!("{}{}", target.base_url, target.endpoint).parse().map_err(|e| format!("bad URL: {e}"))?;
    let mut request =
        Request::post(uri).header("content-type", "application/json").header("accept", "text/event-stream");
    if let Some(key) = &target.api_key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body)).map_err(|e| format!("bad header: {e}"))?;
    let mut response = http.request(request).await.map_err(|e| chain(&e))?;
    if !response.status().is_success() {
        let status = response.status();
        let text = response.body_mut().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        return Err(format!("HTTP {status}: {}", String::from_utf8_lossy(&text).chars().take(300).collect::<String>()));
    }
    let mut parser = sse::Parser::default();
    let mut stream = Stream::default();
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|e| format!("stream broke off: {}", chain(&e)))?;
        let now_s = start.elapsed().as_secs_f64();
        if let Some(data) = frame.data_ref() {
            parser.feed(data, |event| stream.event(event, now_s, outcome)).map_err(|e| e.to_string())?;
        }
    }
    stream.finish(outcome)
}

/// Body of a GET of `path`.
///
/// # Errors
/// A sentence with the HTTP status or the connection's failure.
pub async fn get(target: &Target, path: &str) -> Result<Bytes, String> {
    let http: Http = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let mut request = Request::get(format!("{}{path}", target.base_url));
    if let Some(key) = &target.api_key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|e| e.to_string())?;
    let response = http.request(request).await.map_err(|e| chain(&e))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| chain(&e))?.to_bytes();
    if status.is_success() { Ok(body) } else { Err(format!("HTTP {status}")) }
}

/// What the events of one response have said so far.
#[derive(Default)]
struct Stream {
    usage_tokens: Option<u32>,
    done: bool,
    error: Option<String>,
}

impl Stream {
    fn event(&mut self, data: &[u8], now_s: f64, outcome: &mut Outcome) {
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(data) else {
            self.error.get_or_insert_with(|| format!("event is not JSON: {}", String::from_utf8_lossy(data)));
            return;
        };
        if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
            self.error.get_or_insert_with(|| format!("server error in the stream: {error}"));
        }
        let content = value["choices"].as_array().is_some_and(|choices| {
            choices.iter().any(|c| {
                let text =
                    c["text"].as_str().or(c["delta"]["content"].as_str()).or(c["delta"]["reasoning_content"].as_str());
                text.is_some_and(|t| !t.is_empty())
            })
        });
        if content {
            outcome.chunks_s.push(now_s);
        }
        if let Some(tokens) = value["usage"]["completion_tokens"].as_u64() {
            self.usage_tokens = u32::try_from(tokens).ok();
            if let Some(prompt) = value["usage"]["prompt_tokens"].as_u64() {
                outcome.prompt_tokens = prompt as u32;
            }
        }
    }

    fn finish(self, outcome: &mut Outcome) -> Result<(), String> {
        outcome.output_tokens = self.usage_tokens.unwrap_or(outcome.chunks_s.len() as u32);
        match self.error {
            Some(error) => Err(error),
            None if !self.done => Err("stream ended without [DONE]".into()),
            None if outcome.chunks_s.is_empty() => Err("no content in the answer".into()),
            None => Ok(()),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        out += &format!(": {e}");
        source = e.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(events: &[&str]) -> (Result<(), String>, Outcome) {
        let (mut stream, mut outcome) = (Stream::default(), Outcome::default());
        for (i, e) in events.iter().enumerate() {
            stream.event(e.as_bytes(), i as f64, &mut outcome);
        }
        (stream.finish(&mut outcome), outcome)
    }

    #[test]
    fn role_only_and_usage_chunks_are_not_tokens() {
        let (result, outcome) = play(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"Hel"}}]}"#,
            r#"{"choices":[{"delta":{"content":"lo"}}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#,
            "[DONE]",
        ]);
        assert_eq!(result, Ok(()));
        assert_eq!((outcome.chunks_s, outcome.output_tokens, outcome.prompt_tokens), (vec![1.0, 2.0], 4, 9));
    }

    #[test]
    fn broken_streams_are_failures() {
        let chunk = r#"{"choices":[{"text":"a"}]}"#;
        for (events, want) in [
            (vec![chunk], "stream ended without [DONE]"),
            (vec!["[DONE]"], "no content in the answer"),
            (vec![chunk, r#"{"error":{"message":"device lost"}}"#], "server error in the stream"),
            (vec![chunk, "{oops", "[DONE]"], "event is not JSON"),
        ] {
            let error = play(&events).0.unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
