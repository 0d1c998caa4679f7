//! The model: shapes, weights, and the forward pass as operators on a stream.
//!
//! One architecture family: decoder-only with RMS norm, rotary positions, grouped-query attention and a gated MLP, which
//! covers Qwen2, Qwen2.5 and Llama. What a checkpoint asks for beyond that is refused by name, never approximated.

pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod forward;
pub mod preset;
pub mod rope;
mod step;
pub mod weights;

pub use cache::KvCache;
pub use config::ModelConfig;
pub use forward::Forward;
pub use step::{Activations, Capacity};
pub use weights::Weights;
