//! Prometheus metrics.
//!
//! What vLLM also measures carries vLLM's name, unit and label (`vllm:num_requests_running{model_name=…}`), so that one
//! dashboard, one autoscaler and one inference gateway read both engines. What only this engine has is called `engine_…`.
//!
//! Gauges and counters that the core keeps are read when scraped; only latencies are observed here, at the moment the
//! event is taken out of the request's channel.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::ApiError;
use crate::core::EngineHandle;

/// OpenMetrics text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const TTFT_BUCKETS_S: [f64; 19] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const TPOT_BUCKETS_S: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];
const E2E_BUCKETS_S: [f64; 16] =
    [0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 240.0];
const TOKENS_BUCKETS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishLabels {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    status: u16,
    code: &'static str,
}

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    prompt_tokens: Counter,
    success: Family<FinishLabels, Counter>,
    refused: Family<RefusalLabels, Counter>,
    connections: Gauge,
    ttft: Histogram,
    itl: Histogram,
    tpot: Histogram,
    e2e: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn new(engine: &EngineHandle, model_name: &str) -> Self {
        let mut registry = Registry::with_labels([("model_name".into(), model_name.to_owned().into())].into_iter());
        registry.register_collector(Box::new(CoreCollector(engine.clone())));
        let metrics = Self {
            prompt_tokens: Counter::default(),
            success: Family::default(),
            refused: Family::default(),
            connections: Gauge::default(),
            ttft: Histogram::new(TTFT_BUCKETS_S),
            itl: Histogram::new(TPOT_BUCKETS_S),
            tpot: Histogram::new(TPOT_BUCKETS_S),
            e2e: Histogram::new(E2E_BUCKETS_S),
            request_prompt_tokens: Histogram::new(TOKENS_BUCKETS),
            request_generation_tokens: Histogram::new(TOKENS_BUCKETS),
            registry: Registry::default(),
        };
        // The unit is part of the name, as vLLM has it.
        registry.register(
            "vllm:prompt_tokens",
            "Prompt tokens of requests that reached their first token",
            metrics.prompt_tokens.clone(),
        );
        registry.register("vllm:request_success", "Sequences completed, by reason", metrics.success.clone());
        registry.register(
            "vllm:time_to_first_token_seconds",
            "From the request's arrival to its first token",
            metrics.ttft.clone(),
        );
        registry.register("vllm:inter_token_latency_seconds", "Between two tokens of a sequence", metrics.itl.clone());
        registry.register(
            "vllm:request_time_per_output_token_seconds",
            "Mean time per token after the first, per completed sequence",
            metrics.tpot.clone(),
        );
        registry.register(
            "vllm:e2e_request_latency_seconds",
            "From the request's arrival to the end of a sequence",
            metrics.e2e.clone(),
        );
        registry.register(
            "vllm:request_prompt_tokens",
            "Prompt tokens of completed sequences",
            metrics.request_prompt_tokens.clone(),
        );
        registry.register(
            "vllm:request_generation_tokens",
            "Generated tokens of completed sequences",
            metrics.request_generation_tokens.clone(),
        );
        registry.register(
            "engine_errors",
            "Error responses and error events, by status and code",
            metrics.refused.clone(),
        );
        registry.register("engine_connections", "Open connections", metrics.connections.clone());
        Self { registry, ..metrics }
    }

    /// Open connections, for the listener to count.
    pub(crate) fn connections(&self) -> Gauge {
        self.connections.clone()
    }

    pub(crate) fn first_token(&self, since_arrival: Duration, prompt_tokens: usize) {
        self.ttft.observe(since_arrival.as_secs_f64());
        self.prompt_tokens.inc_by(prompt_tokens as u64);
    }

    pub(crate) fn next_token(&self, since_last: Duration) {
        self.itl.observe(since_last.as_secs_f64());
    }

    /// `decoding` is the time from the first to the last of `tokens` tokens.
    pub(crate) fn finished(
        &self,
        reason: &'static str,
        e2e: Duration,
        decoding: Duration,
        prompt_tokens: usize,
        tokens: usize,
    ) {
        self.success.get_or_create(&FinishLabels { finished_reason: reason }).inc();
        self.e2e.observe(e2e.as_secs_f64());
        if tokens > 1 {
            self.tpot.observe(decoding.as_secs_f64() / (tokens - 1) as f64);
        }
        self.request_prompt_tokens.observe(prompt_tokens as f64);
        self.request_generation_tokens.observe(tokens as f64);
    }

    pub(crate) fn error(&self, error: &ApiError) {
        let labels = RefusalLabels { status: error.status().as_u16(), code: error.code().unwrap_or("invalid_request") };
        self.refused.get_or_create(&labels).inc();
    }

    /// The whole page.
    pub(crate) fn encode(&self) -> String {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("a String takes everything");
        page
    }
}

/// The core's own numbers, read at scrape time.
#[derive(Debug)]
struct CoreCollector(EngineHandle);

impl Collector for CoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.0.stats();
        let used = stats.kv_blocks_total.saturating_sub(stats.kv_blocks_free);
        let gauges: [(&str, &str, f64); 6] = [
            (
                "vllm:num_requests_running",
                "Sequences being prefilled or decoded",
                (stats.prefilling + stats.running) as f64,
            ),
            ("vllm:num_requests_waiting", "Requests waiting for blocks", stats.waiting as f64),
            (
                "vllm:kv_cache_usage_perc",
                "KV blocks in use; 1 is all",
                used as f64 / stats.kv_blocks_total.max(1) as f64,
            ),
            (
                "engine_requests_prefilling",
                "Sequences in the prefill loop, parked ones included",
                stats.prefilling as f64,
            ),
            ("engine_requests_decoding", "Sequences in the decode loop", stats.running as f64),
            ("engine_kv_blocks", "KV blocks in the pool", stats.kv_blocks_total as f64),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge_type())?)?;
        }
        let counters: [(&str, &str, f64); 9] = [
            ("vllm:generation_tokens", "Tokens generated", stats.tokens_generated as f64),
            ("vllm:num_preemptions", "Times a sequence lost its blocks", stats.preemptions as f64),
            (
                "engine_prefilled_tokens",
                "Prompt tokens run through prefill, recomputed ones included",
                stats.tokens_prefilled as f64,
            ),
            ("engine_prefill_steps", "Prefill steps", stats.prefill_steps as f64),
            ("engine_decode_steps", "Decode steps", stats.decode_steps as f64),
            ("engine_decode_post_seconds", "Host time spent posting decode steps", stats.decode_post_ns as f64 / 1e9),
            ("engine_requests_finished", "Requests completed", stats.finished as f64),
            ("engine_requests_aborted", "Requests aborted, by their client or by a stop string", stats.aborted as f64),
            ("engine_requests_failed", "Requests failed", stats.failed as f64),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter_type())?)?;
        }
        Ok(())
    }
}

fn gauge_type() -> prometheus_client::metrics::MetricType {
    prometheus_client::metrics::MetricType::Gauge
}

fn counter_type() -> prometheus_client::metrics::MetricType {
    prometheus_client::metrics::MetricType::Counter
}
