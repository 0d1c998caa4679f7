//! Prometheus metrics of the gateway. Every name stands in one table here.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::identity::Tenant;
use crate::phase::{End, Phase};

/// Label of a phase.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PhaseLabel {
    phase: PhaseValue,
}

/// Label of an ending.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EndLabel {
    end: EndValue,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[allow(non_camel_case_types)]
enum PhaseValue {
    queued,
    prefill,
    decode,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[allow(non_camel_case_types)]
enum EndValue {
    finished,
    client_left,
    failed,
}

/// Label of an engine.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EngineLabel {
    /// Name.
    pub engine: String,
}

/// Labels of served tokens.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TokensLabel {
    /// Name of the tenant.
    pub tenant: String,
    /// `input`, `cached` or `output`.
    pub kind: &'static str,
}

/// Label of a tenant. There are as many values as the configuration has had tenants: names of strangers are none.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TenantLabel {
    /// Its name; empty where clients need no key.
    pub tenant: String,
}

impl TenantLabel {
    /// Of a configured one.
    pub fn of(tenant: &Tenant) -> Self {
        Self { tenant: tenant.name.clone() }
    }
}

/// Histograms of seconds, one for each value of a label.
type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// Label of a refusal or failure.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CodeLabel {
    /// The `code` in the error.
    pub code: &'static str,
}

/// Label of a model.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ModelLabel {
    /// Name.
    pub model: String,
}

/// Names of the OpenTelemetry conventions for generative AI, as Prometheus writes them. They are still in development: this
/// table is the one place that knows them.
mod gen_ai {
    /// `gen_ai.server.request.duration`
    pub const DURATION: &str = "gen_ai_server_request_duration_seconds";
    /// `gen_ai.server.time_to_first_token`
    pub const FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
    /// `gen_ai.server.time_per_output_token`
    pub const PER_TOKEN: &str = "gen_ai_server_time_per_output_token_seconds";
}

/// Upper bounds of the TTFT histogram, seconds: from below a short prefill to a long queue.
pub const TTFT_BUCKETS_S: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0, 60.0];
/// Upper bounds of the TPOT histogram, seconds: around the common 50 ms objective.
pub const TPOT_BUCKETS_S: [f64; 12] = [0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5];
/// Upper bounds of the duration histogram, seconds: those of the OpenTelemetry convention.
pub const DURATION_BUCKETS_S: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Upper bounds of the queue wait histogram, seconds.
const QUEUE_BUCKETS_S: [f64; 10] = [0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

/// All metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<PhaseLabel, Gauge>,
    ended: Family<EndLabel, Counter>,
    /// Time to first token, seconds, from arrival at the gateway.
    pub ttft_s: Seconds<TenantLabel>,
    /// Time per output token after the first, seconds.
    pub tpot_s: Seconds<TenantLabel>,
    /// Arrival to end, seconds.
    pub duration_s: Histogram,
    /// Wait in the queue, seconds.
    pub queue_s: Histogram,
    /// Prompt tokens sent to the engine (text prompts are estimated).
    pub prompt_tokens: Counter,
    /// Tokens passed on to clients.
    pub output_tokens: Counter,
    /// Hints written to the listener.
    pub hints_sent: Counter,
    /// Hints dropped: no listener, or its queue is full.
    pub hints_dropped: Counter,
    /// Requests sent again because an idle engine connection had gone stale or an engine had failed.
    pub retries: Counter,
    /// Comments sent to clients that would have heard nothing.
    pub keep_alives: Counter,
    /// Errors of our own, by code.
    pub failures: Family<CodeLabel, Counter>,
    /// Tokens by tenant, as engines count them where they do.
    pub tokens: Family<TokensLabel, Counter>,
    /// Requests waiting.
    pub queue_requests: Gauge,
    /// Bytes of the bodies of requests waiting.
    pub queue_bytes: Gauge,
    /// Requests that hold a reservation.
    pub admitted: Gauge,
    /// Whether an engine gets requests.
    pub engine_open: Family<EngineLabel, Gauge>,
    /// Prompt tokens in flight.
    pub engine_prefill_tokens: Family<EngineLabel, Gauge>,
    /// Sequences admitted.
    pub engine_sequences: Family<EngineLabel, Gauge>,
    /// KV tokens reserved.
    pub engine_kv_tokens: Family<EngineLabel, Gauge>,
    /// Learned bytes a token.
    pub bytes_per_token: Family<ModelLabel, Gauge<f64, AtomicU64>>,
    /// Mean relative error of the estimated prompt tokens.
    pub estimate_error: Family<ModelLabel, Gauge<f64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            ended: Family::default(),
            ttft_s: Seconds::new_with_constructor(|| Histogram::new(TTFT_BUCKETS_S)),
            tpot_s: Seconds::new_with_constructor(|| Histogram::new(TPOT_BUCKETS_S)),
            duration_s: Histogram::new(DURATION_BUCKETS_S),
            queue_s: Histogram::new(QUEUE_BUCKETS_S),
            prompt_tokens: Counter::default(),
            output_tokens: Counter::default(),
            hints_sent: Counter::default(),
            hints_dropped: Counter::default(),
            retries: Counter::default(),
            keep_alives: Counter::default(),
            failures: Family::default(),
            tokens: Family::default(),
            queue_requests: Gauge::default(),
            queue_bytes: Gauge::default(),
            admitted: Gauge::default(),
            engine_open: Family::default(),
            engine_prefill_tokens: Family::default(),
            engine_sequences: Family::default(),
            engine_kv_tokens: Family::default(),
            bytes_per_token: Family::default(),
            estimate_error: Family::default(),
        };
        for phase in [Phase::Queued, Phase::Prefill, Phase::Decode] {
            metrics.in_phase(phase, 0);
        }
        // Every series exists from the start, so that a rate over it is defined.
        for end in [EndValue::finished, EndValue::client_left, EndValue::failed] {
            drop(metrics.ended.get_or_create(&EndLabel { end }));
        }
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        r.register("gateway_requests", "Requests in the gateway by phase", self.requests.clone());
        r.register("gateway_requests_ended", "Requests that are over, by how they ended", self.ended.clone());
        r.register(gen_ai::FIRST_TOKEN, "Time to first token, from arrival", self.ttft_s.clone());
        r.register(gen_ai::PER_TOKEN, "Time per output token after the first", self.tpot_s.clone());
        r.register(gen_ai::DURATION, "From arrival to the end", self.duration_s.clone());
        r.register("gateway_queue_seconds", "Wait in the admission queue", self.queue_s.clone());
        r.register("gateway_prompt_tokens", "Prompt tokens sent to the engine", self.prompt_tokens.clone());
        r.register("gateway_output_tokens", "Tokens passed on to clients", self.output_tokens.clone());
        r.register("gateway_hints_sent", "Phase hints written", self.hints_sent.clone());
        r.register("gateway_hints_dropped", "Phase hints dropped", self.hints_dropped.clone());
        r.register("gateway_retries", "Requests sent again before their answer began", self.retries.clone());
        r.register("gateway_keep_alives", "Comments sent into silent streams", self.keep_alives.clone());
        r.register("gateway_failures", "Errors that the gateway itself answered with", self.failures.clone());
        r.register("gateway_tenant_tokens", "Tokens by tenant: input, cached of these, output", self.tokens.clone());
        r.register("gateway_queue_requests", "Requests waiting for admission", self.queue_requests.clone());
        r.register("gateway_queue_bytes", "Bytes held by requests waiting", self.queue_bytes.clone());
        r.register("gateway_admitted_requests", "Requests that hold a reservation", self.admitted.clone());
        r.register("gateway_engine_open", "1 if the engine gets requests", self.engine_open.clone());
        let prefill = self.engine_prefill_tokens.clone();
        r.register("gateway_engine_prefill_tokens", "Prompt tokens without a first token", prefill);
        r.register("gateway_engine_sequences", "Sequences admitted", self.engine_sequences.clone());
        r.register("gateway_engine_kv_tokens", "KV tokens reserved", self.engine_kv_tokens.clone());
        r.register("gateway_bytes_per_token", "Learned bytes of text a token", self.bytes_per_token.clone());
        let error = self.estimate_error.clone();
        r.register("gateway_estimate_error_ratio", "Mean relative error of estimated prompt tokens", error);
        self.registry = registry;
        self
    }

    /// From now on the tenant of this name has its series.
    pub fn exist(&self, tenant: &str) {
        let label = TenantLabel { tenant: tenant.to_owned() };
        for seconds in [&self.ttft_s, &self.tpot_s] {
            drop(seconds.get_or_create(&label));
        }
    }

    /// Adds `change` to the number of requests in `phase`.
    pub fn in_phase(&self, phase: Phase, change: i64) {
        let phase = match phase {
            Phase::Queued => PhaseValue::queued,
            Phase::Prefill => PhaseValue::prefill,
            Phase::Decode => PhaseValue::decode,
            Phase::Done => return,
        };
        self.requests.get_or_create(&PhaseLabel { phase }).inc_by(change);
    }

    /// Counts an ending.
    pub fn ended(&self, end: End) {
        let end = match end {
            End::Finished => EndValue::finished,
            End::ClientLeft => EndValue::client_left,
            End::Failed => EndValue::failed,
        };
        self.ended.get_or_create(&EndLabel { end }).inc();
    }

    /// The page in Prometheus' text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing into a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut page, &self.registry);
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_names_phases_and_endings() {
        let metrics = Metrics::default();
        metrics.in_phase(Phase::Decode, 1);
        metrics.ended(End::ClientLeft);
        let page = metrics.page();
        for line in ["gateway_requests{phase=\"decode\"} 1", "gateway_requests_ended_total{end=\"client_left\"} 1"] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
    }
}
