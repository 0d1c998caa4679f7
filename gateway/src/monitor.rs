//! Looks at each engine, and at the daemon under it, from time to time: is it well, what does it serve, what has it to do?
//!
//! A request's failure closes an engine at once; what is found here opens it again. What follows for its limits is decided
//! in `follow`.

use std::sync::Arc;
use std::time::Duration;

use admission::Others;
use bytes::Bytes;
use http::HeaderValue;
use pingora_core::protocols::http::client::HttpSession;
use pingora_http::RequestHeader;
use serde_json::Value;

use crate::config::Timeouts;
use crate::engines::Engine;
use crate::follow::Prefill;
use crate::gateway::{Gateway, Reloaded};
use crate::place::Place;

/// Between two looks at the breakers: how late a pause may end.
const TICK: Duration = Duration::from_millis(50);
/// Between two sweeps of idle connections.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Longest answer read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Looks between two readings of the model list.
const MODELS_EVERY: u32 = 8;

/// Looks at all engines for as long as the gateway lives.
pub fn start(gateway: &Arc<Gateway>) {
    watch_all(gateway);
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
            gateway.setup().engines.iter().for_each(|e| e.update(&gateway.admitter));
        }
    });
}

/// Reads the configuration again, and looks at the engines that it names. Call it in the runtime.
///
/// # Errors
/// As [`Gateway::reload`].
pub fn reload(gateway: &Arc<Gateway>) -> anyhow::Result<Reloaded> {
    let reloaded = gateway.reload()?;
    watch_all(gateway);
    Ok(reloaded)
}

fn watch_all(gateway: &Arc<Gateway>) {
    for engine in gateway.setup().engines.iter() {
        tokio::spawn(watch(Arc::clone(gateway), Arc::clone(engine)));
    }
}

/// Looks at an engine until another configuration is in force.
async fn watch(gateway: Arc<Gateway>, engine: Arc<Engine>) {
    let health_ms = gateway.setup().config.timeouts.health_ms;
    let mut every = tokio::time::interval(Timeouts::of(health_ms.max(10)));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Connected before the first request: its hints must not wait for that.
    drop(gateway.hints.of(engine.config.hints.as_deref()));
    let mut looks = 0u32;
    let mut daemon: Option<(Prefill, u64)> = None;
    let in_force = || gateway.setup().engines.iter().any(|e| Arc::ptr_eq(e, &engine));
    loop {
        every.tick().await;
        if !in_force() {
            return;
        }
        let time_max = Timeouts::of(gateway.setup().config.timeouts.connect_ms);
        engine.place.look_up(time_max).await;
        if let Some(daemon) = &engine.daemon {
            daemon.look_up(time_max).await;
        }
        let was_open = engine.is_open();
        match fetch(&gateway, &engine, engine.quirks.health_path).await {
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
            && let Some((200, body)) = fetch(&gateway, &engine, "/v1/models").await
            && let Some(models) = models(&body)
        {
            engine.set_models(models, &gateway.admitter);
        }
        follow(&gateway, &engine).await;
        daemon = follow_daemon(&gateway, &engine, daemon).await;
        looks = looks.wrapping_add(1);
    }
}

/// An engine's limits follow its metrics.
async fn follow(gateway: &Gateway, engine: &Engine) {
    let Some(names) = engine.quirks.metrics else { return };
    let ours = || {
        let ledger = gateway.admitter.ledger(engine.index);
        Others { sequences: ledger.sequences, kv_tokens: ledger.kv_tokens }
    };
    let before = ours();
    let Some((200, page)) = fetch(gateway, engine, "/metrics").await else { return };
    let after = ours();
    // Somewhere between the two it took its figures.
    let ours =
        Others { sequences: before.sequences.max(after.sequences), kv_tokens: before.kv_tokens.max(after.kv_tokens) };
    engine.hear(&gateway.admitter, |said| said.engine(&String::from_utf8_lossy(&page), &names, ours));
}

/// An engine's limits follow the daemon under it. Its state now, and the prompt tokens prefilled until now.
async fn follow_daemon(gateway: &Gateway, engine: &Engine, before: Option<(Prefill, u64)>) -> Option<(Prefill, u64)> {
    let (status, body) = get(gateway, engine.daemon.as_ref()?, "/v1/status", None).await?;
    let tokens = engine.prefilled_tokens();
    let now = Prefill::of(&body).filter(|_| status == 200)?;
    if let Some((then, tokens_then)) = before {
        engine.hear(&gateway.admitter, |said| said.daemon(&then, &now, tokens - tokens_then));
    }
    Some((now, tokens))
}

/// The models of a list; `None` if it is none.
fn models(body: &[u8]) -> Option<Vec<Value>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let models = value.get("data")?.as_array()?;
    Some(models.iter().filter(|m| m["id"].is_string()).cloned().collect())
}

/// Body of a GET at an engine; `None` if it does not answer in time.
async fn fetch(gateway: &Gateway, engine: &Engine, path: &str) -> Option<(u16, Bytes)> {
    get(gateway, &engine.place, path, engine.authorization.as_ref()).await
}

/// Body of a GET; `None` if there is no answer in time.
async fn get(
    gateway: &Gateway,
    place: &Place,
    path: &str,
    authorization: Option<&HeaderValue>,
) -> Option<(u16, Bytes)> {
    let peer = &*place.peer()?;
    let ask = async {
        loop {
            let idle = gateway.connections.idle(peer);
            let reused = idle.is_some();
            let mut session = match idle {
                Some(session) => session,
                None => gateway.connections.open(peer).await.ok()?,
            };
            match answer(&mut session, place.authority(), path, authorization).await {
                Some(answer) => {
                    gateway.connections.keep(session, peer).await;
                    return Some(answer);
                }
                // That an idle connection has been closed says nothing about the engine.
                None if reused => {}
                None => return None,
            }
        }
    };
    tokio::time::timeout(Timeouts::of(gateway.setup().config.timeouts.connect_ms), ask).await.ok().flatten()
}

async fn answer(
    session: &mut HttpSession,
    host: &str,
    path: &str,
    authorization: Option<&HeaderValue>,
) -> Option<(u16, Bytes)> {
    let mut head = RequestHeader::build("GET", path.as_bytes(), Some(3)).ok()?;
    head.insert_header("host", host).ok()?;
    if let Some(authorization) = authorization {
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
    fn models_are_read_from_a_list_only() {
        assert_eq!(models(br#"{"data":[{"id":"a"},{"x":1}]}"#).map(|m| m.len()), Some(1));
        assert_eq!(models(b"[]"), None);
    }
}
