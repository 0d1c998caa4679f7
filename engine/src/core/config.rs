//! Everything an engine is started with. The program's flags map onto these fields one to one.

use std::path::PathBuf;

/// Where the model's shapes and weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A directory with `config.json` and `*.safetensors`.
    Dir(PathBuf),
    /// A built-in set of shapes without weights (`qwen2.5-7b`, …); implies [`LoadFormat::Dummy`].
    Preset(String),
}

/// Whether weights are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// From safetensors.
    Auto,
    /// Device memory is allocated and never written: for timing.
    Dummy,
}

/// Element type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    Float32,
    /// bfloat16.
    BFloat16,
    /// IEEE half.
    Float16,
}

impl Dtype {
    /// By the name that checkpoints and flags use.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "float32" => Some(Self::Float32),
            "bfloat16" => Some(Self::BFloat16),
            "float16" => Some(Self::Float16),
            _ => None,
        }
    }

    /// `float32`, `bfloat16`, `float16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::BFloat16 | Self::Float16 => 2,
        }
    }

    /// The type as AscendCL calls it.
    pub fn acl(self) -> acl_abi::DataType {
        match self {
            Self::Float32 => acl_abi::DataType::F32,
            Self::BFloat16 => acl_abi::DataType::BF16,
            Self::Float16 => acl_abi::DataType::F16,
        }
    }
}

/// How much device memory the KV cache takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvCacheSize {
    /// This many bytes, over all layers.
    Bytes(u64),
    /// This fraction of the device's memory for weights and KV cache together, in (0, 1].
    MemoryUtilization(f64),
    /// This many blocks (a test's way to run out of them).
    Blocks(usize),
}

/// Settings of one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Shapes and weights.
    pub model: ModelSource,
    /// Whether weights are read.
    pub load_format: LoadFormat,
    /// Element type; `None` is the checkpoint's.
    pub dtype: Option<Dtype>,
    /// Device index.
    pub device: i32,
    /// Most sequences in a decode step.
    pub max_num_seqs: usize,
    /// Most tokens of a sequence; `None` is the model's, or what the KV cache holds if that is less.
    pub max_model_len: Option<usize>,
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Size of the KV cache.
    pub kv_cache: KvCacheSize,
    /// Whether a prompt may be split over prefill steps.
    pub enable_chunked_prefill: bool,
    /// Decode and pieces of prompts run in one step on one stream; prompts are split then.
    pub mixed_batches: bool,
    /// Most tokens of a prefill step. Without chunking, a longer prompt still runs, alone.
    pub max_num_batched_tokens: usize,
    /// Sequences that may be prefilled and parked beyond `max_num_seqs`; 0 starts a prefill only for a free decode slot.
    pub prefill_ahead: usize,
    /// Most requests waiting before [`super::SubmitError::QueueFull`].
    pub max_waiting: usize,
    /// AscendCL runtime library, by name or path.
    pub acl_library: String,
    /// Operator library, by name or path.
    pub op_library: String,
}

impl EngineConfig {
    /// Whether a prompt may be split over steps.
    pub(super) fn splits_prompts(&self) -> bool {
        self.enable_chunked_prefill || self.mixed_batches
    }

    /// Defaults, for a model.
    pub fn new(model: ModelSource) -> Self {
        let load_format = match model {
            ModelSource::Dir(_) => LoadFormat::Auto,
            ModelSource::Preset(_) => LoadFormat::Dummy,
        };
        Self {
            model,
            load_format,
            dtype: None,
            device: 0,
            max_num_seqs: 64,
            max_model_len: None,
            block_size: 128,
            kv_cache: KvCacheSize::MemoryUtilization(0.9),
            enable_chunked_prefill: false,
            mixed_batches: false,
            max_num_batched_tokens: 8192,
            prefill_ahead: 0,
            max_waiting: 4096,
            acl_library: "libascendcl.so".to_owned(),
            op_library: "libopapi.so".to_owned(),
        }
    }
}
