//! An inference request: peeked at, admitted, sent to an engine, and to another if that one fails before it answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use admission::{Demand, EngineSet, Request, block_hashes};
use http::HeaderMap;
use openai::{Peek, whole};
use pingora_http::RequestHeader;
use serde_json::json;

use crate::admit::{Asked, Outside};
use crate::engines::Engine;
use crate::error::Failure;
use crate::exchange::{Outgoing, Stop, UNAVAILABLE};
use crate::gateway::Gateway;
use crate::identity::Tenant;
use crate::phase::End;
use crate::reply::{Interrupted, Reply};
use crate::request::{Incoming, Summary, demand};
use crate::timers::Timers;
use crate::tokens;
use crate::tracked::Tracked;
use crate::wants::Wants;

/// Headers by which a client says which requests belong together.
const SESSION_HEADERS: [&str; 2] = ["x-session-id", "x-session-affinity"];

/// From here on reading a body takes long enough (a millisecond and more) to be kept from those that share the thread.
const PEEK_INLINE_BYTES_MAX: usize = 1 << 20;

/// A request as far as it is understood before anything happens to it.
struct Understood<'a> {
    peek: Peek<'a>,
    model: String,
    demand: Demand,
    wants: Wants,
    request: Request,
    prefix: Vec<u64>,
}

impl Gateway {
    /// Serves an inference request.
    ///
    /// # Errors
    /// If the client has left before it could be told the end.
    pub async fn inference(
        &self,
        incoming: &Incoming<'_>,
        generates: bool,
        reply: &mut Reply<'_>,
    ) -> Result<(), pingora_core::BError> {
        let now_us = self.admitter.now_us();
        let Incoming { setup, tenant, head, body, .. } = incoming;
        let understand = || self.understand(incoming, generates);
        let inline_max = if setup.tokenizers.are_some() { tokens::INLINE_BYTES_MAX } else { PEEK_INLINE_BYTES_MAX };
        let understood = if body.len() <= inline_max { understand() } else { tokio::task::block_in_place(understand) };
        let understood = match understood {
            Ok(understood) => understood,
            Err(failure) => return reply.fail(&failure).await,
        };
        let Understood { peek, model, demand, wants, request, prefix } = understood;
        let reserved = demand.kv_tokens();
        let taken = tenant.meter.lock().take(reserved, now_us);
        self.tell_limits(tenant, reply);
        if let Err(exceeded) = taken {
            return reply.fail(&Failure::QuotaExceeded(exceeded)).await;
        }
        let summary = Summary::of(&demand, peek.stream);
        let mut tracked = Tracked::new(self, incoming, summary, wants, (model, peek.prompt), reserved);
        if told(head) {
            reply.header("x-vnpu-prompt-tokens", demand.prompt_tokens);
        }
        let result = self.attempts(incoming, &peek, request, prefix, &mut tracked, reply).await;
        match result {
            Ok(whole) => {
                tracked.end = if whole { End::Finished } else { End::Failed };
                Ok(())
            }
            Err(Stop::Failed(failure)) => {
                tracked.end = End::Failed;
                if !reply.begun() {
                    tracked.status = failure.status();
                }
                // The reservation ends before the client can send its next request.
                drop(tracked);
                reply.fail(&failure).await
            }
            Err(_) => {
                drop(tracked);
                reply.leave().await;
                Ok(())
            }
        }
    }

    /// Waits for an engine and tries it; then perhaps another. Ends in success, [`Stop::ClientLeft`] or [`Stop::Failed`].
    async fn attempts(
        &self,
        incoming: &Incoming<'_>,
        peek: &Peek<'_>,
        mut request: Request,
        prefix: Vec<u64>,
        tracked: &mut Tracked<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<bool, Stop> {
        let Incoming { setup, head, .. } = incoming;
        let timeouts = &setup.config.timeouts;
        let mut retries_left = setup.config.retries;
        let mut failed_engines = EngineSet::EMPTY;
        let mut generation = setup.generation;
        loop {
            let now = Instant::now();
            let left_us = request.deadline_us.saturating_sub(self.admitter.now_us());
            let mut timers = Timers::waiting(timeouts, peek.stream, now, Duration::from_micros(left_us));
            let asked = Asked { model: peek.model.as_deref().map(str::to_owned), prefix: prefix.clone(), generation };
            let mut waiting = match self.admitter.enter(request.clone(), asked) {
                Ok(waiting) => waiting,
                Err(Outside::Refused(refusal)) => return Err(Stop::Failed(Failure::Refused(refusal))),
                Err(Outside::Outdated) => {
                    let setup = self.setup();
                    generation = setup.generation;
                    request.preferred.clear();
                    request.eligible = setup.engines.for_model(peek.model.as_deref()).without(failed_engines);
                    continue;
                }
            };
            let turn = reply.attend(waiting.turn(), &mut timers).await;
            let lease = match turn {
                Ok(turn) => turn.map_err(Stop::Failed)?,
                Err(Interrupted::ClientLeft) => return Err(Stop::ClientLeft),
                Err(Interrupted::Silent(_)) => {
                    let waited_ms = now.elapsed().as_millis() as u64;
                    return Err(Stop::Failed(Failure::WaitedTooLong { waited_ms }));
                }
            };
            drop(waiting);
            let (engine, others_open) = {
                let engines = &self.setup().engines;
                let engine = Arc::clone(engines.at(lease.engine));
                let others = request.eligible.without(failed_engines.with(engine.index));
                let others_open = others.iter().any(|other| engines.at(other).is_open());
                (engine, others_open)
            };
            tracked.admitted(lease, Arc::clone(&engine));
            if told(head) {
                reply.header("x-vnpu-queue-ms", tracked.queued_us / 1000);
                reply.header("x-vnpu-engine", &engine.config.name);
                reply.header("x-vnpu-phase", "prefill");
            }
            let mut outgoing = outgoing(incoming, peek, &engine, tracked.trace_headers());
            outgoing.elsewhere = retries_left > 0 && others_open;
            let mut timers = timers.sent(timeouts, Instant::now());
            let result = self.try_engine(&engine, &outgoing, reply, &mut timers, Some(tracked)).await;
            let failure = match result {
                Err(Stop::NotReached) => Failure::EngineUnreachable,
                Err(Stop::BeforeAnswer { .. } | Stop::Unavailable) => Failure::EngineFailed,
                other => {
                    match &other {
                        // In its own words: it is the last that could be asked. Its health says when it is back.
                        Ok(false) if tracked.status == UNAVAILABLE => {}
                        Ok(_) => engine.succeeded(&self.admitter),
                        // Too late for another engine, but not for the next request.
                        Err(Stop::Failed(Failure::EngineLost)) => engine.failed(&self.admitter),
                        Err(_) => {}
                    }
                    return other;
                }
            };
            engine.failed(&self.admitter);
            failed_engines = failed_engines.with(engine.index);
            request.eligible = request.eligible.without(failed_engines);
            if retries_left == 0 || request.eligible.is_empty() {
                return Err(Stop::Failed(failure));
            }
            retries_left -= 1;
            self.metrics.retries.inc();
            tracked.give_back();
        }
    }

    /// One attempt. If the engine closes a connection that had been idle without a word of an answer, it has most likely done so
    /// before it saw the request: that is sent once more, over a new connection, whatever it asks for.
    async fn try_engine(
        &self,
        engine: &Engine,
        outgoing: &Outgoing<'_>,
        reply: &mut Reply<'_>,
        timers: &mut Timers,
        mut tracked: Option<&mut Tracked<'_>>,
    ) -> Result<bool, Stop> {
        let first = self.exchange(engine, outgoing, reply, timers, tracked.as_deref_mut(), false).await;
        let Err(Stop::BeforeAnswer { stale: true }) = &first else { return first };
        self.metrics.retries.inc();
        // Seldom: on the heap, so that not every request carries room for it.
        Box::pin(self.exchange(engine, outgoing, reply, timers, tracked, true)).await
    }

    fn understand<'a>(&self, incoming: &'a Incoming<'_>, generates: bool) -> Result<Understood<'a>, Failure> {
        let Incoming { setup, tenant, head, body, .. } = incoming;
        let (config, engines) = (&setup.config, &setup.engines);
        let peek = Peek::of(body).map_err(|malformed| Failure::Malformed(malformed.0))?;
        let model = peek.model.as_deref().unwrap_or_default().to_owned();
        let counted = setup.tokenizers.count(&peek, generates);
        let demand = demand(&peek, &self.estimate(&model), counted, generates, config.queue.output_tokens_default);
        let mut wants = match self.trusting {
            true => self.objectives.of(&head.headers).map_err(Failure::BadHeader)?,
            false => self.objectives.clone(),
        };
        if setup.tenants.keyed() {
            wants.tenant.clone_from(&tenant.name);
        }
        let eligible = engines.for_model(peek.model.as_deref());
        if eligible.is_empty() {
            return Err(Failure::UnknownModel(model));
        }
        let wait_ms = number(head, "x-vnpu-wait-ms")?.unwrap_or(u64::MAX).min(config.queue.wait_max_ms);
        let band = number(head, "x-vnpu-band")?.map_or(tenant.tier.band, |b| tenant.tier.band.min(b as usize));
        let several = engines.are_several();
        let session = SESSION_HEADERS.iter().find_map(|name| head.headers.get(*name)).filter(|_| several);
        let preferred = session.map_or(Vec::new(), |s| engines.for_session(s.as_bytes()));
        let prefix =
            if several { block_hashes(&format!("{}\0{model}", tenant.name), peek.leading) } else { Vec::new() };
        let request = Request {
            tenant: tenant.index,
            band,
            deadline_us: self.admitter.now_us().saturating_add(wait_ms.saturating_mul(1000)),
            demand,
            bytes: body.len() as u64,
            eligible,
            preferred,
        };
        Ok(Understood { peek, model, demand, wants, request, prefix })
    }

    /// The usual headers about a tenant's limits a minute.
    fn tell_limits(&self, tenant: &Tenant, reply: &mut Reply<'_>) {
        let (requests, tokens) = tenant.meter.lock().remaining(self.admitter.now_us());
        for (remaining, names) in [
            (requests, ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]),
            (tokens, ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]),
        ] {
            let Some(remaining) = remaining else { continue };
            reply.header(names[0], remaining.limit);
            reply.header(names[1], remaining.remaining);
            reply.header(names[2], format!("{}ms", remaining.reset_us.div_ceil(1000)));
        }
    }

    /// Says what would happen to an inference request, without doing it.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn explain(&self, incoming: &Incoming<'_>, reply: &mut Reply<'_>) -> Result<(), pingora_core::BError> {
        let Incoming { setup, tenant, .. } = incoming;
        let understood = match self.understand(incoming, true) {
            Ok(understood) => understood,
            Err(failure) => return reply.fail(&failure).await,
        };
        let Understood { model, demand, request, .. } = understood;
        let (explanation, refusal) = self.admitter.explain(&request);
        let quota = tenant.meter.lock().check(demand.kv_tokens(), self.admitter.now_us()).err();
        let refused = quota.map(Failure::QuotaExceeded).or(refusal.map(Failure::Refused));
        let engines = request.eligible.iter().map(|e| {
            let engine = setup.engines.at(e);
            let mut load = engine.load(&self.admitter);
            load.insert("engine".to_owned(), json!(engine.config.name));
            load
        });
        let estimate = self.estimate(&model);
        let decision = match (&refused, explanation.starts_now) {
            (Some(_), _) => "refuse",
            (None, true) => "start",
            (None, false) => "wait",
        };
        let answer = json!({
            "decision": decision,
            "model": model,
            "tenant": tenant.name,
            "band": request.band,
            "prompt_tokens": demand.prompt_tokens,
            "prompt_tokens_exact": demand.exact,
            "bytes_per_token": estimate.bytes_per_token,
            "estimate_error": estimate.error,
            "output_tokens_max": demand.output_tokens,
            "sequences": demand.sequences,
            "tokens_ahead": explanation.tokens_ahead,
            "wait_ms": explanation.wait_us.map(|us| us / 1000),
            "ttft_ms": explanation.ttft_us().map(|us| us / 1000),
            "engines": engines.collect::<Vec<_>>(),
            "refusal": refused.map(|f| json!({
                "status": f.status(),
                "code": f.code(),
                "retry_after_ms": f.retry_after().map(|d| d.as_millis() as u64),
            })),
        });
        reply.json(200, answer.to_string().into()).await
    }

    /// Passes a request that is not admitted to `engine`, or to others if it cannot be reached.
    ///
    /// # Errors
    /// If the client has left.
    pub async fn pass(&self, incoming: &Incoming<'_>, reply: &mut Reply<'_>) -> Result<(), pingora_core::BError> {
        let Incoming { setup, head, body, .. } = incoming;
        // A lone engine gets whatever it is.
        let peek = if setup.engines.are_several() { Peek::of(body).ok() } else { None };
        let model = peek.and_then(|p| p.model.map(|m| m.into_owned()));
        let eligible = setup.engines.for_model(model.as_deref());
        let mut failure = if eligible.is_empty() {
            Failure::UnknownModel(model.unwrap_or_default())
        } else {
            Failure::EngineUnreachable
        };
        let body = if body.is_empty() { Vec::new() } else { vec![body.clone()] };
        let outgoing = Outgoing {
            head,
            body,
            hide_usage: false,
            keyed: setup.tenants.keyed(),
            trace: HeaderMap::new(),
            elsewhere: false,
        };
        for engine in eligible.iter().map(|e| setup.engines.at(e)).filter(|e| e.is_open()) {
            let mut timers = Timers::new(&setup.config.timeouts, false, Instant::now());
            match self.try_engine(engine, &outgoing, reply, &mut timers, None).await {
                Ok(_) => return Ok(()),
                Err(Stop::ClientLeft) => {
                    reply.leave().await;
                    return Ok(());
                }
                Err(Stop::Failed(failure)) => return reply.fail(&failure).await,
                Err(Stop::NotReached) => engine.failed(&self.admitter),
                Err(Stop::BeforeAnswer { .. } | Stop::Unavailable) => {
                    failure = Failure::EngineFailed;
                    break;
                }
            }
        }
        reply.fail(&failure).await
    }
}

/// The request as `engine` gets it.
fn outgoing<'a>(incoming: &'a Incoming<'_>, peek: &Peek<'_>, engine: &Engine, trace: HeaderMap) -> Outgoing<'a> {
    let Incoming { setup, head, body, .. } = incoming;
    let responses = head.uri.path() == "/v1/responses";
    // The Responses API sends usage anyway.
    let ask = if engine.quirks.takes_stream_options && !responses { peek.ask_for_usage() } else { None };
    let hide_usage = ask.is_some();
    let rename = if engine.quirks.takes_max_completion_tokens { None } else { peek.name_max_tokens() };
    let edits: Vec<_> = ask.into_iter().chain(rename).collect();
    let body = whole(body, &edits);
    Outgoing { head, body, hide_usage, keyed: setup.tenants.keyed(), trace, elsewhere: false }
}

/// Whether the client wants to be told about admission.
fn told(head: &RequestHeader) -> bool {
    head.headers.get("x-vnpu-explain").is_some_and(|v| v.as_bytes() != b"0")
}

fn number(head: &RequestHeader, name: &'static str) -> Result<Option<u64>, Failure> {
    let value = head.headers.get(name);
    value.map(|v| v.to_str().ok().and_then(|v| v.trim().parse().ok()).ok_or(Failure::BadHeader(name))).transpose()
}
