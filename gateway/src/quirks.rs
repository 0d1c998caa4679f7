//! How engines differ: one row each.

use serde::Deserialize;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirks {
    /// Answers 200 when it is well.
    pub health_path: &'static str,
    /// Understands `stream_options.include_usage`. Others send usage unasked or not at all, and may refuse the field.
    pub takes_stream_options: bool,
    /// Understands `max_completion_tokens`; others know only `max_tokens`.
    pub takes_max_completion_tokens: bool,
    /// Metrics of its state, in vLLM's names.
    pub vllm_metrics: bool,
}

impl Kind {
    /// Its row.
    pub const fn quirks(self) -> Quirks {
        let vllm = Quirks {
            health_path: "/health",
            takes_stream_options: true,
            takes_max_completion_tokens: true,
            vllm_metrics: true,
        };
        match self {
            Self::Openai | Self::Vllm | Self::VllmAscend => vllm,
            // Its management port is apart; the model list is the only page of the service port that needs no body.
            Self::Mindie => Quirks {
                health_path: "/v1/models",
                takes_stream_options: false,
                takes_max_completion_tokens: false,
                vllm_metrics: false,
            },
            Self::Sglang => Quirks { vllm_metrics: false, ..vllm },
            Self::LlamaCpp => Quirks { vllm_metrics: false, ..vllm },
        }
    }
}
