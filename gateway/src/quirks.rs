//! How engines differ: one row each.

use serde::Deserialize;

use crate::follow;

/// What an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Our reference engine, or any that behaves like it.
    #[default]
    Openai,
    /// vLLM.
    Vllm,
    /// vLLM on Ascend: vLLM's API.
    VllmAscend,
    /// Huawei MindIE.
    Mindie,
    /// SGLang.
    Sglang,
    /// llama.cpp's server.
    LlamaCpp,
}

/// What the gateway must know about it.
#[derive(Clone, Copy, Debug)]
pub struct Quirks {
    /// Answers 200 when it is well.
    pub health_path: &'static str,
    /// Understands `stream_options.include_usage`. Others send usage unasked or not at all, and may refuse the field.
    pub takes_stream_options: bool,
    /// Understands `max_completion_tokens`; others know only `max_tokens`.
    pub takes_max_completion_tokens: bool,
    /// What its metrics call its state, if it shows them beside its API.
    pub metrics: Option<MetricNames>,
}

/// Names in an engine's `/metrics`.
#[derive(Clone, Copy, Debug)]
pub struct MetricNames {
    /// Sequences running.
    pub running: &'static str,
    /// Sequences that wait in the engine.
    pub waiting: &'static str,
    /// Part of the KV cache that running sequences hold, by the engine's version.
    pub kv_used_part: &'static [&'static str],
    /// Reads the size of the KV cache, tokens.
    pub kv_tokens: Option<fn(&str) -> Option<u64>>,
}

const VLLM: MetricNames = MetricNames {
    running: "vllm:num_requests_running",
    waiting: "vllm:num_requests_waiting",
    kv_used_part: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
    kv_tokens: Some(follow::vllm_kv_tokens),
};
const SGLANG: MetricNames = MetricNames {
    running: "sglang:num_running_reqs",
    waiting: "sglang:num_queue_reqs",
    kv_used_part: &["sglang:token_usage"],
    kv_tokens: Some(follow::sglang_kv_tokens),
};
/// With `--metrics`. It tells nothing of its KV cache.
const LLAMA_CPP: MetricNames = MetricNames {
    running: "llamacpp:requests_processing",
    waiting: "llamacpp:requests_deferred",
    kv_used_part: &[],
    kv_tokens: None,
};

impl Kind {
    /// Its name, as the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Vllm => "vllm",
            Self::VllmAscend => "vllm-ascend",
            Self::Mindie => "mindie",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llama-cpp",
        }
    }

    /// Its row.
    pub const fn quirks(self) -> Quirks {
        let vllm = Quirks {
            health_path: "/health",
            takes_stream_options: true,
            takes_max_completion_tokens: true,
            metrics: Some(VLLM),
        };
        match self {
            Self::Openai | Self::Vllm | Self::VllmAscend => vllm,
            // Its management port, metrics included, is apart; the model list is the only page of the service port that needs no body.
            Self::Mindie => Quirks {
                health_path: "/v1/models",
                takes_stream_options: false,
                takes_max_completion_tokens: false,
                metrics: None,
            },
            Self::Sglang => Quirks { metrics: Some(SGLANG), ..vllm },
            Self::LlamaCpp => Quirks { metrics: Some(LLAMA_CPP), ..vllm },
        }
    }
}
