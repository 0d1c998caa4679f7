//! The engine's core: requests in, tokens out.
//!
//! [`start`] loads a model and runs it in two loops, one for prefill and one for decode steps, each on its own stream, over
//! one paged KV cache; or in one loop whose steps hold both. [`scheduler`] decides what runs; it is pure. The API layer needs [`EngineHandle`] and the types
//! around it, nothing else.

mod config;
pub mod debug;
mod ground_truth;
mod live;
mod load;
pub mod plan;
mod request;
pub mod scheduler;
mod service;
mod steps;
pub mod timing;

use std::sync::Arc;

pub use config::{Dtype, EngineConfig, KvCacheSize, LoadFormat, ModelSource};
pub use request::{
    Engine, EngineHandle, EngineRequest, EngineStats, FailKind, FinishReason, Health, LOGPROBS_MAX, Logprobs,
    ModelInfo, SamplingParams, SubmitError, TokenEvent, TokenLogprob, Usage,
};

/// Loads the model, starts the loops and returns when the engine can serve. The loops end with the last handle, with
/// [`EngineHandle::shutdown`], or when the device is lost.
///
/// # Errors
/// A missing library, device or checkpoint file, a checkpoint that does not match its `config.json` (names file and
/// key), or too little device memory (says how much was wanted).
pub fn start(config: EngineConfig) -> anyhow::Result<EngineHandle> {
    let loaded = load::load(&config)?;
    Ok(EngineHandle::new(Arc::new(service::DeviceEngine::start(loaded, &config)?)))
}
