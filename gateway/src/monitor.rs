//! Looks at each engine from time to time: is it well, what does it serve, how much KV cache has it, is its own queue long?
//!
//! A request's failure closes an engine at once; what is found here opens it again. Where the engine queues requests itself,
//! the gateway holds back: behind that queue, no order of ours counts.

use std::sync::Arc;
use std::time::Duration;

use admission::Capacity;
use bytes::Bytes;
use pingora_core::protocols::http::client::HttpSession;
use pingora_http::RequestHeader;
use serde_json::Value;

use crate::config::Timeouts;
use crate::engines::Engine;
use crate::gateway::Gateway;

/// Between two looks at the breakers: how late a pause may end.
const TICK: Duration = Duration::from_millis(50);
/// Between two sweeps of idle connections.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Longest answer read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Looks between two readings of the model list.
const MODELS_EVERY: u32 = 8;
/// Least part of the configured prefill tokens that is left when an engine's own queue is long.
const HOLD_BACK_MIN: f64 = 1.0 / 16.0;

/// Looks at all engines for as long as the gateway lives.
pub fn start(gateway: &Arc<Gateway>) {
    for index in 0..gateway.engines.len() {
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move { watch(&gateway, &gateway.engines[index]).await });
    }
    let sweeping = Arc::clone(gateway);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            tick.tick().await;
            sweeping.connections.sweep();
        }
    });
    let gateway = Arc::clone(gateway);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            gateway.engines.iter().for_each(|e| e.update(&gateway.admitter));
        }
    });
}

async fn watch(gateway: &Gateway, engine: &Engine) {
    let mut every = tokio::time::interval(Timeouts::of(gateway.config.timeouts.health_ms.max(10)));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut part = 1.0;
    let mut looks = 0u32;
    loop {
        every.tick().await;
        let was_open = engine.is_open();
        match fetch(gateway, engine, engine.quirks.health_path).await {
            Some((status, _)) if status < 500 => {
                // While requests go through, their fate decides.
                if !was_open {
                    engine.succeeded(&gateway.admitter);
                }
            }
            _ => {
                engine.failed(&gateway.admitter);
                continue;
            }
        }
        if (looks.is_multiple_of(MODELS_EVERY) || !was_open || engine.models().is_empty())
            && let Some((200, body)) = fetch(gateway, engine, "/v1/models").await
            && let Some(models) = models(&body)
        {
            engine.set_models(models, &gateway.admitter);
        }
        if engine.quirks.vllm_metrics
            && let Some((200, page)) = fetch(gateway, engine, "/metrics").await
        {
            follow(gateway, engine, &String::from_utf8_lossy(&page), &mut part);
        }
        looks = looks.wrapping_add(1);
    }
}

/// Sets an engine's limits by what its metrics say.
fn follow(gateway: &Gateway, engine: &Engine, page: &str, part: &mut f64) {
    let waiting = sample(page, "vllm:num_requests_waiting");
    *part = next_part(*part, waiting.unwrap_or(0.0));
    let now = gateway.admitter.ledger(engine.index).capacity;
    let prefill_tokens = (engine.config.prefill_tokens as f64 * *part) as u64;
    let kv_tokens = engine.config.kv_tokens.or_else(|| kv_tokens(page)).unwrap_or(now.kv_tokens);
    gateway.admitter.set_capacity(engine.index, Capacity { prefill_tokens: prefill_tokens.max(1), kv_tokens, ..now });
}

/// Part of the configured prefill tokens to use: halved while the engine has a queue of its own, then raised step by step.
fn next_part(part: f64, waiting: f64) -> f64 {
    if waiting > 0.0 { (part / 2.0).max(HOLD_BACK_MIN) } else { (part + 0.125).min(1.0) }
}

/// The models of a list; `None` if it is none.
fn models(body: &[u8]) -> Option<Vec<Value>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let models = value.get("data")?.as_array()?;
    Some(models.iter().filter(|m| m["id"].is_string()).cloned().collect())
}

/// Sum of a Prometheus sample's lines.
fn sample(page: &str, name: &str) -> Option<f64> {
    let lines = page.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).reduce(|a, b| a + b)
}

/// Tokens in the KV cache, from the labels of vLLM's `cache_config_info`.
fn kv_tokens(page: &str) -> Option<u64> {
    let line = page.lines().find(|l| l.starts_with("vllm:cache_config_info{"))?;
    let label = |name: &str| line.split_once(&format!("{name}=\""))?.1.split('"').next()?.parse::<u64>().ok();
    label("num_gpu_blocks")?.checked_mul(label("block_size")?).filter(|&tokens| tokens > 0)
}

/// Body of a GET at an engine; `None` if it does not answer in time.
async fn fetch(gateway: &Gateway, engine: &Engine, path: &str) -> Option<(u16, Bytes)> {
    let ask = async {
        loop {
            let (mut session, reused) = gateway.connections.get(&engine.peer).await.ok()?;
            match get(&mut session, engine, path).await {
                Some(answer) => {
                    gateway.connections.keep(session, &engine.peer).await;
                    return Some(answer);
                }
                // That an idle connection has been closed says nothing about the engine.
                None if reused => {}
                None => return None,
            }
        }
    };
    tokio::time::timeout(Timeouts::of(gateway.config.timeouts.connect_ms), ask).await.ok().flatten()
}

async fn get(session: &mut HttpSession, engine: &Engine, path: &str) -> Option<(u16, Bytes)> {
    let mut head = RequestHeader::build("GET", path.as_bytes(), Some(3)).ok()?;
    head.insert_header("host", &engine.config.address).ok()?;
    if let Some(authorization) = &engine.authorization {
        head.insert_header("authorization", authorization.clone()).ok()?;
    }
    session.write_request_header(Box::new(head)).await.ok()?;
    session.finish_request_body().await.ok()?;
    session.read_response_header().await.ok()?;
    let status = session.response_header()?.status.as_u16();
    let mut body = Vec::new();
    while let Some(piece) = session.read_response_body().await.ok()? {
        body.extend_from_slice(&piece);
        if body.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    Some((status, body.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_state_is_read_from_its_metrics() {
        let page = "# HELP x\nvllm:num_requests_waiting{model_name=\"m\"} 3.0\nvllm:num_requests_waiting{a=\"b\"} 1\n\
                    vllm:num_requests_waiting_by 9\n\
                    vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\",x=\"None\"} 1.0\n";
        assert_eq!(sample(page, "vllm:num_requests_waiting"), Some(4.0));
        assert_eq!(sample(page, "vllm:other"), None);
        assert_eq!(kv_tokens(page), Some(16_000));
        assert_eq!(kv_tokens("vllm:cache_config_info{num_gpu_blocks=\"None\",block_size=\"16\"} 1"), None);
        assert_eq!(models(br#"{"data":[{"id":"a"},{"x":1}]}"#).map(|m| m.len()), Some(1));
        assert_eq!(models(b"[]"), None);
    }

    #[test]
    fn long_engine_queue_holds_back_and_its_end_lets_go() {
        let mut part = 1.0;
        for _ in 0..10 {
            part = next_part(part, 5.0);
        }
        assert_eq!(part, HOLD_BACK_MIN);
        for _ in 0..10 {
            part = next_part(part, 0.0);
        }
        assert_eq!(part, 1.0);
    }
}
