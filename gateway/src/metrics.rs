//! Prometheus metrics of the gateway. Every name stands in one table here.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

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

/// Upper bounds of the TTFT histogram, seconds: from below a short prefill to a long queue.
const TTFT_BUCKETS_S: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0, 60.0];
/// Upper bounds of the TPOT histogram, seconds: around the common 50 ms objective.
const TPOT_BUCKETS_S: [f64; 12] = [0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5];

/// All metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<PhaseLabel, Gauge>,
    ended: Family<EndLabel, Counter>,
    /// Time to first token, seconds, from arrival at the gateway.
    pub ttft_s: Histogram,
    /// Time per output token after the first, seconds.
    pub tpot_s: Histogram,
    /// Prompt tokens sent to the engine (text prompts are estimated).
    pub prompt_tokens: Counter,
    /// Tokens passed on to clients.
    pub output_tokens: Counter,
    /// Hints written to the listener.
    pub hints_sent: Counter,
    /// Hints dropped: no listener, or its queue is full.
    pub hints_dropped: Counter,
    /// Requests sent again because an idle engine connection had gone stale.
    pub retries: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("gateway"),
            requests: Family::default(),
            ended: Family::default(),
            ttft_s: Histogram::new(TTFT_BUCKETS_S),
            tpot_s: Histogram::new(TPOT_BUCKETS_S),
            prompt_tokens: Counter::default(),
            output_tokens: Counter::default(),
            hints_sent: Counter::default(),
            hints_dropped: Counter::default(),
            retries: Counter::default(),
        };
        let m = &mut metrics;
        m.registry.register("requests", "Requests in the gateway by phase", m.requests.clone());
        m.registry.register("requests_ended", "Requests that are over, by how they ended", m.ended.clone());
        m.registry.register("ttft_seconds", "Time to first token, from arrival", m.ttft_s.clone());
        m.registry.register("tpot_seconds", "Time per output token after the first", m.tpot_s.clone());
        m.registry.register("prompt_tokens", "Prompt tokens sent to the engine", m.prompt_tokens.clone());
        m.registry.register("output_tokens", "Tokens passed on to clients", m.output_tokens.clone());
        m.registry.register("hints_sent", "Phase hints written", m.hints_sent.clone());
        m.registry.register("hints_dropped", "Phase hints dropped", m.hints_dropped.clone());
        m.registry.register("retries", "Requests sent again over a fresh connection", m.retries.clone());
        for phase in [Phase::Queued, Phase::Prefill, Phase::Decode] {
            metrics.in_phase(phase, 0);
        }
        // Every series exists from the start, so that a rate over it is defined.
        for end in [EndValue::finished, EndValue::client_left, EndValue::failed] {
            drop(metrics.ended.get_or_create(&EndLabel { end }));
        }
        metrics
    }
}

impl Metrics {
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
