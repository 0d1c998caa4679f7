//! One admitted request from arrival to end: its phase, hints, lease, quota, usage, metrics and log line.
//!
//! Everything that must happen at the end happens when the value is dropped, whatever way the request ends.

use std::sync::Arc;
use std::time::Instant;

use admission::Served;
use http::HeaderMap;
use openai::{Prompt, Usage};
use opentelemetry::Context;

use crate::admit::Lease;
use crate::engines::Engine;
use crate::gateway::Gateway;
use crate::hints::Hints;
use crate::identity::Tenant;
use crate::metrics::{TenantLabel, TokensLabel};
use crate::phase::{End, Lifecycle, Phase};
use crate::request::{Incoming, Summary};
use crate::telemetry::{Ended, Telemetry, operation};
use crate::wants::Wants;

/// A tracked request.
pub struct Tracked<'a> {
    gateway: &'a Gateway,
    tenant: &'a Tenant,
    /// Its phase.
    pub life: Lifecycle,
    /// What it asks for.
    pub summary: Summary,
    wants: Wants,
    model: String,
    prompt: Prompt,
    arrived: Instant,
    sent: Option<Instant>,
    operation: &'static str,
    trace: Option<Context>,
    reserved: u64,
    lease: Option<Lease>,
    engine: Option<Arc<Engine>>,
    /// Of the engine that it is at.
    hints: Hints,
    /// That engine's scheduler knows nothing of it yet.
    unknown: bool,
    /// Wait in the queue so far, microseconds.
    pub queued_us: u64,
    /// The engine's count, once it has sent one.
    pub usage: Option<Usage>,
    /// How it ends; a request whose task is dropped has lost its client.
    pub end: End,
    /// For the log: what the client sees.
    pub status: u16,
    /// For the log: name of the request.
    pub id: &'a str,
}

impl<'a> Tracked<'a> {
    /// A request that has just arrived and reserved so many tokens of its tenant's quota.
    pub fn new(
        gateway: &'a Gateway,
        incoming: &'a Incoming<'_>,
        summary: Summary,
        wants: Wants,
        (model, prompt): (String, Prompt),
        reserved: u64,
    ) -> Self {
        let Incoming { tenant, name: id, head, .. } = *incoming;
        let operation = operation(head.uri.path());
        let telemetry = gateway.telemetry.as_ref();
        let trace = telemetry.map(|t| t.arrived(&head.headers, operation, &model));
        let now = Instant::now();
        let life = Lifecycle::new(gateway.next_request(), now);
        gateway.metrics.in_phase(life.phase(), 1);
        Self {
            gateway,
            tenant,
            life,
            summary,
            wants,
            model,
            prompt,
            arrived: now,
            sent: None,
            operation,
            trace,
            reserved,
            lease: None,
            engine: None,
            hints: gateway.hints.of(None),
            unknown: false,
            queued_us: 0,
            usage: None,
            end: End::ClientLeft,
            status: 0,
            id,
        }
    }

    /// It was admitted, to `engine`.
    pub fn admitted(&mut self, lease: Lease, engine: Arc<Engine>) {
        let hints = self.gateway.hints.of(engine.config.hints.as_deref());
        if !hints.is(&self.hints) {
            if self.life.phase() != Phase::Queued {
                self.hints.send(self.life.withdrawn());
                self.unknown = true;
            }
            self.hints = hints;
        }
        self.engine = Some(engine);
        self.queued_us += lease.waited_us;
        self.gateway.metrics.queue_s.observe(lease.waited_us as f64 / 1e6);
        self.lease = Some(lease);
    }

    /// The engine has computed nothing for it: it failed before it answered, or refused.
    pub fn give_back(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.served = Some(Served::default());
        }
        self.lease = None;
    }

    /// The engine is through with it. What it held there returns before the client sees the end and can send its next request.
    pub fn settle(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            lease.served = self.usage.map(|usage| Served {
                prompt_tokens: usage.prompt_tokens - usage.cached_tokens,
                output_tokens: usage.output_tokens,
            });
        }
    }

    /// What tells an engine whose part its work is.
    pub fn trace_headers(&self) -> HeaderMap {
        self.trace.as_ref().map_or_else(HeaderMap::new, Telemetry::headers)
    }

    /// It is written to an engine now.
    pub fn sent(&mut self) {
        self.sent.get_or_insert_with(Instant::now);
        if self.life.phase() == Phase::Queued {
            self.shift(|t| {
                for hint in t.life.sent(&t.summary, &t.wants) {
                    t.hints.send(hint);
                }
            });
            self.gateway.metrics.prompt_tokens.inc_by(u64::from(self.summary.prompt_tokens));
        } else if std::mem::take(&mut self.unknown) {
            self.life.announced(&self.summary, &self.wants).into_iter().for_each(|hint| self.hints.send(hint));
        }
    }

    /// Tokens passed by on their way to the client.
    pub fn tokens(&mut self, count: u32) {
        if count == 0 {
            return;
        }
        let first = self.life.tokens() == 0;
        let now = Instant::now();
        self.shift(|t| t.life.tokens_came(count, now).into_iter().for_each(|hint| t.hints.send(hint)));
        self.gateway.metrics.output_tokens.inc_by(u64::from(count));
        if let Some(lease) = &mut self.lease {
            lease.first_token();
            lease.tokens(count);
        }
        if first {
            self.prefilled();
        }
        if let Some(ttft_s) = self.life.ttft_s().filter(|_| first) {
            self.gateway.metrics.ttft_s.get_or_create(&TenantLabel::of(self.tenant)).observe(ttft_s);
        }
    }

    /// An answer that is not streamed is there whole: what it cost, where it says so.
    pub fn whole_answer(&mut self, usage: Option<Usage>) {
        self.usage = usage;
        let output = usage.map_or(0, |u| u.output_tokens);
        self.gateway.metrics.output_tokens.inc_by(output);
        self.prefilled();
        self.settle();
    }

    fn prefilled(&self) {
        if let Some(engine) = &self.engine {
            engine.prefilled(u64::from(self.summary.prompt_tokens));
        }
    }

    fn shift(&mut self, transition: impl FnOnce(&mut Self)) {
        let before = self.life.phase();
        transition(self);
        let after = self.life.phase();
        if before != after {
            self.gateway.metrics.in_phase(before, -1);
            self.gateway.metrics.in_phase(after, 1);
        }
    }

    /// What it cost: the engine's count, else what went by, else nothing.
    fn cost(&self, reached_engine: bool) -> Usage {
        self.usage.unwrap_or_else(|| match reached_engine {
            true => Usage {
                prompt_tokens: u64::from(self.summary.prompt_tokens),
                cached_tokens: 0,
                output_tokens: u64::from(self.life.tokens()),
            },
            false => Usage::default(),
        })
    }
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let gateway = self.gateway;
        let reached_engine = self.life.phase() != Phase::Queued;
        // An engine that refused or broke off before a token has computed nothing to pay for.
        let nothing_came = self.end == End::Failed && self.life.tokens() == 0 && self.usage.is_none();
        let cost = self.cost(reached_engine && !nothing_came);
        if let Some(tpot_s) = self.life.tpot_s(now).filter(|_| self.end == End::Finished) {
            gateway.metrics.tpot_s.get_or_create(&TenantLabel::of(self.tenant)).observe(tpot_s);
        }
        gateway.metrics.duration_s.observe(now.duration_since(self.arrived).as_secs_f64());
        let end = self.end;
        self.shift(|t| t.life.ended(end).into_iter().for_each(|hint| t.hints.send(hint)));
        gateway.metrics.ended(end);

        let used = cost.prompt_tokens.saturating_add(cost.output_tokens);
        self.tenant.meter.lock().settle(self.reserved, used, gateway.admitter.now_us());
        if nothing_came {
            self.give_back();
        } else {
            self.settle();
        }
        if let Some(usage) = self.usage.filter(|_| self.prompt.tokens == 0 && self.prompt.media == 0) {
            gateway.learn(&self.model, self.prompt.text_bytes, usage.prompt_tokens);
        }
        let kinds = [("input", cost.prompt_tokens), ("cached", cost.cached_tokens), ("output", cost.output_tokens)];
        for (kind, tokens) in kinds.into_iter().filter(|(_, tokens)| *tokens > 0) {
            let label = TokensLabel { tenant: self.tenant.name.clone(), kind };
            gateway.metrics.tokens.get_or_create(&label).inc_by(tokens);
        }
        if let Some((telemetry, trace)) = gateway.telemetry.as_ref().zip(self.trace.as_ref()) {
            let engine = self.engine.as_ref().map(|e| &e.config);
            telemetry.ended(
                trace,
                &Ended {
                    operation: self.operation,
                    model: &self.model,
                    request: self.id,
                    tenant: &self.tenant.name,
                    engine: engine.map(|e| (e.name.as_str(), e.address.as_str(), e.kind.name())),
                    stream: self.summary.stream,
                    max_tokens: self.summary.max_tokens,
                    arrived: self.arrived,
                    sent: self.sent,
                    first_token: self.life.first_token(),
                    tpot_s: self.life.tpot_s(now).filter(|_| end == End::Finished),
                    usage: cost,
                    status: self.status,
                    end,
                },
            );
        }
        if let Some(log) = &gateway.access_log {
            log.line(&serde_json::json!({
                "request": self.id,
                "tenant": self.tenant.name,
                "model": self.model,
                "engine": self.engine.as_ref().map(|e| e.config.name.as_str()),
                "stream": self.summary.stream,
                "status": self.status,
                "end": match end {
                    End::Finished => "finished",
                    End::ClientLeft => "client_left",
                    End::Failed => "failed",
                },
                "prompt_tokens": cost.prompt_tokens,
                "cached_tokens": cost.cached_tokens,
                "output_tokens": cost.output_tokens,
                "estimated": self.usage.is_none(),
                "queue_ms": self.queued_us as f64 / 1e3,
                "ttft_ms": self.life.ttft_s().map(|s| s * 1e3),
                "duration_ms": now.duration_since(self.arrived).as_secs_f64() * 1e3,
            }));
        }
    }
}
