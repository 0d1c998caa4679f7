//! The engine's core: requests in, tokens out.

mod config;
pub mod plan;
mod request;

pub use config::{Dtype, EngineConfig, KvCacheSize, LoadFormat, ModelSource};
pub use request::{
    Engine, EngineHandle, EngineRequest, EngineStats, FailKind, FinishReason, Health, LOGPROBS_MAX, Logprobs,
    ModelInfo, SamplingParams, SubmitError, TokenEvent, TokenLogprob, Usage,
};

/// Loads the model, starts the loops and returns when the engine can serve.
///
/// # Errors
/// A missing library, device or checkpoint file, a checkpoint that does not match its `config.json` (names file and
/// key), or too little device memory (says how much was wanted).
pub fn start(config: EngineConfig) -> anyhow::Result<EngineHandle> {
    anyhow::bail!("the device side is under construction: cannot serve {:?}", config.model)
}

/// Ways to look inside, for tests.
pub mod debug {
    use super::EngineConfig;

    /// Logits of every position of `tokens`, one row of vocabulary size a position.
    ///
    /// # Errors
    /// As [`super::start`], and any failure of the forward pass.
    pub fn logits(config: EngineConfig, tokens: &[u32]) -> anyhow::Result<Vec<Vec<f32>>> {
        anyhow::bail!("the device side is under construction: cannot run {} tokens of {:?}", tokens.len(), config.model)
    }
}
