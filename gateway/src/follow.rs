//! How an engine's limits follow what it and the daemon under it say of their state.
//!
//! Pure. Three things are learned from an engine's metrics: whether it queues requests itself (behind that queue no order of
//! ours counts, so fewer prompts are sent), how many sequences and KV tokens others than this gateway have there, and how
//! large its KV cache is. Two from the daemon's status: how long the device takes for a token of prompt, by its own
//! prediction, and for what part of the time the dispatch policy holds prefill back.

use admission::{Capacity, Others};
use serde::Deserialize;

use crate::config;
use crate::quirks::MetricNames;

/// Least part of the configured prefill tokens that is left, whatever is said.
const PART_MIN: f64 = 1.0 / 16.0;
/// Part of the old in what is averaged over looks.
const KEEP: f64 = 0.75;
/// Prompt tokens below which a time per token says more about the other operators.
const TOKENS_MIN: f64 = 256.0;

/// What has been said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said {
    /// Longest context of its models.
    pub context_tokens: Option<u64>,
    /// Size of its KV cache.
    pub kv_tokens: Option<u64>,
    /// What others than this gateway have there.
    pub others: Others,
    /// Part of the configured prefill tokens that its own queue leaves to us.
    pub queue_part: f64,
    /// Part of the time in which the daemon does not hold prefill back.
    pub free_part: f64,
    work: Work,
}

/// Predicted prefill time against prompt tokens, the past fading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Work {
    ns: f64,
    tokens: f64,
}

impl Default for Said {
    fn default() -> Self {
        Self {
            context_tokens: None,
            kv_tokens: None,
            others: Others::default(),
            queue_part: 1.0,
            free_part: 1.0,
            work: Work::default(),
        }
    }
}

impl Said {
    /// The limits that follow.
    pub fn capacity(&self, config: &config::Engine) -> Capacity {
        let part = (self.queue_part * self.free_part).max(PART_MIN);
        Capacity {
            prefill_tokens: ((config.prefill_tokens as f64 * part) as u64).max(1),
            sequences: config.sequences,
            kv_tokens: config.kv_tokens.or(self.kv_tokens).unwrap_or(u64::MAX),
            context_tokens: config.context_tokens.or(self.context_tokens).unwrap_or(u64::MAX),
        }
    }

    /// Nanoseconds from the start of prefill to its end for a token of prompt, hold-backs included; unknown without a daemon.
    pub fn prefill_ns_per_token(&self) -> Option<f64> {
        (self.work.tokens >= TOKENS_MIN).then(|| self.work.ns / self.work.tokens / self.free_part)
    }

    /// It showed its metrics while we had so many sequences and KV tokens there.
    pub fn engine(&mut self, page: &str, names: &MetricNames, ours: Others) {
        let waiting = sample(page, names.waiting).unwrap_or(0.0);
        self.queue_part = next_part(self.queue_part, waiting);
        self.kv_tokens = names.kv_tokens.and_then(|read| read(page)).or(self.kv_tokens);
        let sequences = sample(page, names.running).map_or(0, |running| (running + waiting) as u64);
        let used = names.kv_used_part.iter().find_map(|name| sample(page, name));
        let kv_tokens = used.zip(self.kv_tokens).map_or(0, |(part, all)| (part * all as f64) as u64);
        self.others = Others {
            sequences: sequences.saturating_sub(ours.sequences),
            kv_tokens: kv_tokens.saturating_sub(ours.kv_tokens),
        };
    }

    /// The daemon under it went from one state to another while so many prompt tokens were prefilled.
    pub fn daemon(&mut self, before: &Prefill, after: &Prefill, tokens: u64) {
        let passed_ns = after.uptime_ns.saturating_sub(before.uptime_ns);
        if passed_ns == 0 {
            // Another daemon.
            return;
        }
        let held = after.held_ns.saturating_sub(before.held_ns) as f64 / passed_ns as f64;
        let free = (1.0 - held).clamp(PART_MIN, 1.0);
        self.free_part = self.free_part * KEEP + free * (1.0 - KEEP);
        if tokens > 0 {
            self.work.ns = self.work.ns * KEEP + after.predicted_ns.saturating_sub(before.predicted_ns) as f64;
            self.work.tokens = self.work.tokens * KEEP + tokens as f64;
        }
    }
}

/// Part of the configured prefill tokens to use: halved while the engine has a queue of its own, then raised step by step.
fn next_part(part: f64, waiting: f64) -> f64 {
    if waiting > 0.0 { (part / 2.0).max(PART_MIN) } else { (part + 0.125).min(1.0) }
}

/// Sum of a Prometheus sample's lines.
pub fn sample(page: &str, name: &str) -> Option<f64> {
    let lines = page.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).reduce(|a, b| a + b)
}

/// Tokens in the KV cache, from the labels of vLLM's `cache_config_info`.
pub fn vllm_kv_tokens(page: &str) -> Option<u64> {
    let line = page.lines().find(|l| l.starts_with("vllm:cache_config_info{"))?;
    let label = |name: &str| line.split_once(&format!("{name}=\""))?.1.split('"').next()?.parse::<u64>().ok();
    label("num_gpu_blocks")?.checked_mul(label("block_size")?).filter(|&tokens| tokens > 0)
}

/// Tokens in the KV cache of SGLang.
pub fn sglang_kv_tokens(page: &str) -> Option<u64> {
    sample(page, "sglang:max_total_num_tokens").map(|tokens| tokens as u64).filter(|&tokens| tokens > 0)
}

/// Prefill on a device since its daemon started, out of `/v1/status` of the daemon's admin API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefill {
    uptime_ns: u64,
    predicted_ns: u64,
    held_ns: u64,
}

impl Prefill {
    /// Reads a status; `None` if it is none.
    pub fn of(status: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Status {
            uptime_ns: u64,
            phases: Vec<Phase>,
            held_now: Vec<Held>,
        }
        #[derive(Deserialize)]
        struct Phase {
            phase: String,
            predicted_ns: u64,
            held_ns: u64,
        }
        #[derive(Deserialize)]
        struct Held {
            phase: String,
            held_ns: u64,
        }
        let status: Status = serde_json::from_slice(status).ok()?;
        let prefill = status.phases.iter().find(|p| p.phase == "prefill");
        // A hold that is not over is not in the sum yet.
        let now = status.held_now.iter().filter(|h| h.phase == "prefill").map(|h| h.held_ns).max();
        Some(Self {
            uptime_ns: status.uptime_ns,
            predicted_ns: prefill.map_or(0, |p| p.predicted_ns),
            held_ns: prefill.map_or(0, |p| p.held_ns).saturating_add(now.unwrap_or(0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quirks::Kind;

    fn names(kind: Kind) -> MetricNames {
        kind.quirks().metrics.unwrap()
    }

    #[test]
    fn engine_state_is_read_from_its_metrics() {
        let page = "# HELP x\nvllm:num_requests_waiting{model_name=\"m\"} 3.0\nvllm:num_requests_waiting{a=\"b\"} 1\n\
                    vllm:num_requests_waiting_by 9\nvllm:num_requests_running{a=\"b\"} 6\n\
                    vllm:kv_cache_usage_perc{a=\"b\"} 0.5\n\
                    vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\",x=\"None\"} 1.0\n";
        assert_eq!(sample(page, "vllm:num_requests_waiting"), Some(4.0));
        assert_eq!(sample(page, "vllm:other"), None);
        assert_eq!(vllm_kv_tokens("vllm:cache_config_info{num_gpu_blocks=\"None\",block_size=\"16\"} 1"), None);
        let mut said = Said::default();
        said.engine(page, &names(Kind::Vllm), Others { sequences: 7, kv_tokens: 6000 });
        assert_eq!((said.kv_tokens, said.queue_part), (Some(16_000), 0.5));
        assert_eq!(said.others, Others { sequences: 3, kv_tokens: 2000 });
        said.engine(page, &names(Kind::Vllm), Others { sequences: 70, kv_tokens: 60_000 });
        assert_eq!(said.others, Others::default(), "our own reservations are no one else's");
        let page = "sglang:num_running_reqs 2\nsglang:num_queue_reqs 0\nsglang:token_usage 0.25\n\
                    sglang:max_total_num_tokens 4000\n";
        said.engine(page, &names(Kind::Sglang), Others::default());
        assert_eq!((said.kv_tokens, said.others), (Some(4000), Others { sequences: 2, kv_tokens: 1000 }));
        let page = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n";
        said.engine(page, &names(Kind::LlamaCpp), Others::default());
        assert_eq!((said.others.sequences, said.queue_part), (3, 0.1875));
        assert!(Kind::Mindie.quirks().metrics.is_none());
    }

    #[test]
    fn long_engine_queue_holds_back_and_its_end_lets_go() {
        let mut part = 1.0;
        for _ in 0..10 {
            part = next_part(part, 5.0);
        }
        assert_eq!(part, PART_MIN);
        for _ in 0..10 {
            part = next_part(part, 0.0);
        }
        assert_eq!(part, 1.0);
    }

    #[test]
    fn hold_backs_and_predictions_of_the_daemon_are_followed() {
        let status = |uptime_ns: u64, predicted_ns: u64, held_ns: u64, now_ns: u64| {
            let status = serde_json::json!({
                "uptime_ns": uptime_ns,
                "phases": [{ "phase": "decode", "predicted_ns": 9, "held_ns": 9 },
                           { "phase": "prefill", "predicted_ns": predicted_ns, "held_ns": held_ns }],
                "held_now": [{ "phase": "prefill", "held_ns": now_ns }, { "phase": "decode", "held_ns": 99 }],
            });
            Prefill::of(status.to_string().as_bytes()).unwrap()
        };
        let mut said = Said::default();
        let config = config::Engine::at("a:1");
        assert_eq!(said.prefill_ns_per_token(), None);
        said.daemon(&status(0, 0, 0, 0), &status(1000, 512_000, 0, 0), 512);
        assert_eq!(said.prefill_ns_per_token(), Some(1000.0));
        assert_eq!(said.capacity(&config).prefill_tokens, config.prefill_tokens);
        // Held back for half of the time, part of it in a hold that goes on.
        for at in 1..40 {
            said.daemon(&status(at * 1000, 0, at * 400, 0), &status((at + 1) * 1000, 0, at * 400 + 300, 200), 0);
        }
        let part = said.capacity(&config).prefill_tokens as f64 / config.prefill_tokens as f64;
        assert!((0.49..0.51).contains(&part), "{part}");
        assert!(said.prefill_ns_per_token().is_some_and(|ns| (1950.0..2050.0).contains(&ns)), "{said:?}");
        for at in 1..40 {
            said.daemon(&status(at, 0, 0, 0), &status(at + 1, 0, 9, 0), 0);
        }
        assert_eq!(said.capacity(&config).prefill_tokens, config.prefill_tokens / 16, "never nothing");
        assert_eq!(Prefill::of(b"{}"), None);
    }
}
