//! From a configuration to a model on a device: weights, KV cache, buffers of both loops.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::config::{Dtype, EngineConfig, KvCacheSize, LoadFormat, ModelSource};
use crate::acl::Device;
use crate::kv::blocks_for;
use crate::model::checkpoint::Checkpoint;
use crate::model::{Activations, Capacity, Forward, KvCache, ModelConfig, Weights, preset};

/// Most sequences of a prefill step: more would only grow the output layer's buffers, for prompts so short that a step
/// holds this many take little time each.
const PREFILL_SEQS_MAX: usize = 64;

/// A model on a device, ready to run.
pub(super) struct Loaded {
    pub(super) device: Device,
    pub(super) weights: Arc<Weights>,
    pub(super) kv: Arc<KvCache>,
    /// Of the loop for prefill steps, or for all.
    pub(super) prefill: Forward,
    /// Of the loop for decode steps, if there are two.
    pub(super) decode: Option<Forward>,
    pub(super) max_model_len: usize,
    pub(super) max_prefill_seqs: usize,
    pub(super) dummy: bool,
}

/// Shapes, element type and checkpoint of a configuration: everything that needs no device.
pub(super) struct Source {
    pub(super) model: ModelConfig,
    pub(super) dtype: Dtype,
    /// Tokens a sequence may have, unless the KV cache holds less.
    pub(super) max_model_len: usize,
    checkpoint: Option<Checkpoint>,
}

impl Source {
    /// Reads the model's configuration and opens its files.
    pub(super) fn open(config: &EngineConfig) -> anyhow::Result<Self> {
        check(config)?;
        let (model, dir): (ModelConfig, Option<&Path>) = match &config.model {
            ModelSource::Dir(dir) => (ModelConfig::from_dir(dir)?, Some(dir)),
            ModelSource::Preset(name) => {
                let known = || preset::names().collect::<Vec<_>>().join(", ");
                (preset::by_name(name).with_context(|| format!("no preset {name}; there are {}", known()))?, None)
            }
        };
        let checkpoint = match (config.load_format, dir) {
            (LoadFormat::Dummy, _) => None,
            (LoadFormat::Auto, Some(dir)) => Some(Checkpoint::open(dir)?),
            (LoadFormat::Auto, None) => bail!("a preset has no weights: use load format dummy"),
        };
        let dtype = match (config.dtype, model.torch_dtype.as_deref()) {
            (Some(dtype), _) => dtype,
            (None, None) => Dtype::Float32,
            (None, Some(name)) => Dtype::by_name(name).with_context(|| {
                format!("config.json says element type {name}: choose float32, bfloat16 or float16")
            })?,
        };
        let max_model_len = config.max_model_len.unwrap_or(model.max_position);
        if max_model_len > model.max_position {
            bail!("a context of {max_model_len} tokens exceeds the {} positions of the model", model.max_position);
        }
        Ok(Self { model, dtype, max_model_len, checkpoint })
    }

    /// Opens the device and loads the weights.
    pub(super) fn upload(&self, config: &EngineConfig) -> anyhow::Result<(Device, Arc<Weights>)> {
        let device = Device::open(&config.acl_library, &config.op_library, config.device)?;
        let (model, positions) = (self.model.clone(), self.max_model_len);
        let weights = Weights::load(&device, model, self.dtype, positions, self.checkpoint.as_ref())?;
        Ok((device, Arc::new(weights)))
    }
}

/// Settings that make no sense whatever the model.
fn check(config: &EngineConfig) -> anyhow::Result<()> {
    for (name, value) in [
        ("max_num_seqs", config.max_num_seqs),
        ("block_size", config.block_size),
        ("max_num_batched_tokens", config.max_num_batched_tokens),
        ("max_model_len", config.max_model_len.unwrap_or(1)),
    ] {
        if value == 0 {
            bail!("{name} must be at least 1");
        }
    }
    if config.mixed_batches && config.max_num_batched_tokens <= config.max_num_seqs {
        bail!("max_num_batched_tokens must exceed max_num_seqs where both run in one step");
    }
    if let KvCacheSize::MemoryUtilization(share) = config.kv_cache
        && !(share > 0.0 && share <= 1.0)
    {
        bail!("memory utilization {share} is not in (0, 1]");
    }
    Ok(())
}

/// Sizes of both loops' steps.
struct Capacities {
    prefill: Capacity,
    /// Sequences of a step whose prompts it works on.
    prefill_seqs: usize,
    decode: Capacity,
}

impl Capacities {
    fn new(config: &EngineConfig, max_model_len: usize) -> Self {
        let table_width = blocks_for(max_model_len, config.block_size);
        let admitted = config.max_num_seqs + config.prefill_ahead;
        let budget = config.max_num_batched_tokens;
        let tokens = if config.splits_prompts() { budget } else { budget.max(max_model_len) };
        let prefill_seqs = admitted.min(PREFILL_SEQS_MAX);
        let seqs = config.max_num_seqs;
        let beside = if config.mixed_batches { seqs } else { 0 };
        Self {
            prefill: Capacity { tokens, sequences: prefill_seqs + beside, rows: prefill_seqs + beside, table_width },
            prefill_seqs,
            decode: Capacity { tokens: seqs, sequences: seqs, rows: seqs, table_width },
        }
    }
}

/// Loads everything that serving needs.
pub(super) fn load(config: &EngineConfig) -> anyhow::Result<Loaded> {
    let source = Source::open(config)?;
    let (device, weights) = source.upload(config)?;
    let capacities = Capacities::new(config, source.max_model_len);
    let item = source.dtype.bytes();
    let activations = |capacity| {
        Activations::new(&device, &source.model, item, capacity)
            .with_context(|| format!("allocating buffers for steps of {} tokens", capacity.tokens))
    };
    let prefill = activations(capacities.prefill)?;
    let decode = (!config.mixed_batches).then(|| activations(capacities.decode)).transpose()?;
    let blocks = kv_blocks(config, &source, &device)?;
    let dummy = source.checkpoint.is_none();
    let kv = KvCache::new(&device, &source.model, source.dtype, blocks, config.block_size, !dummy)
        .with_context(|| format!("allocating {blocks} KV blocks of {} tokens", config.block_size))?;
    let kv = Arc::new(kv);
    let forward = |activations| Forward::new(&device, weights.clone(), kv.clone(), activations);
    Ok(Loaded {
        prefill: forward(prefill)?,
        decode: decode.map(forward).transpose()?,
        max_model_len: context_that_fits(config, source.max_model_len, blocks)?,
        max_prefill_seqs: capacities.prefill_seqs,
        device,
        weights,
        kv,
        dummy,
    })
}

/// Blocks of the KV cache: as configured, and no more than could ever be held or numbered.
fn kv_blocks(config: &EngineConfig, source: &Source, device: &Device) -> anyhow::Result<usize> {
    let block_bytes = KvCache::block_bytes(&source.model, source.dtype, config.block_size);
    let wanted = match config.kv_cache {
        KvCacheSize::Blocks(blocks) => blocks,
        KvCacheSize::Bytes(bytes) => (bytes / block_bytes) as usize,
        KvCacheSize::MemoryUtilization(share) => {
            let memory = device.memory()?;
            let used = memory.total - memory.free;
            let budget = (memory.total as f64 * share) as u64;
            let room = budget.checked_sub(used).with_context(|| {
                format!("the model takes {used} bytes, more than {share} of the device's {} bytes", memory.total)
            })?;
            let useful = (config.max_num_seqs + config.prefill_ahead)
                .saturating_mul(blocks_for(source.max_model_len, config.block_size));
            ((room / block_bytes) as usize).min(useful)
        }
    };
    // Slots travel as 32-bit integers.
    let blocks = wanted.min(i32::MAX as usize / config.block_size);
    if blocks == 0 {
        bail!("the KV cache has no room for one block of {block_bytes} bytes");
    }
    Ok(blocks)
}

/// The context that both the model and the KV cache hold; an explicit wish that does not fit is refused.
fn context_that_fits(config: &EngineConfig, max_model_len: usize, blocks: usize) -> anyhow::Result<usize> {
    let held = blocks * config.block_size;
    match config.max_model_len {
        Some(wanted) if wanted > held => {
            bail!(
                "a context of {wanted} tokens does not fit the KV cache of {blocks} blocks, which holds {held} tokens"
            )
        }
        _ => Ok(max_model_len.min(held)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_holds_a_whole_prompt_unless_prompts_are_chunked() {
        let config = EngineConfig::new(ModelSource::Preset("qwen2.5-7b".to_owned()));
        for (chunked, budget, want) in [(false, 512, 4096), (true, 512, 512), (false, 8192, 8192)] {
            let config =
                EngineConfig { enable_chunked_prefill: chunked, max_num_batched_tokens: budget, ..config.clone() };
            assert_eq!(Capacities::new(&config, 4096).prefill.tokens, want);
        }
    }

    #[test]
    fn a_context_is_clamped_only_if_nobody_asked_for_it() {
        let mut config = EngineConfig::new(ModelSource::Preset("qwen2.5-7b".to_owned()));
        assert_eq!(context_that_fits(&config, 4096, 10).unwrap(), 1280);
        config.max_model_len = Some(1281);
        assert!(context_that_fits(&config, 1281, 10).is_err());
        config.max_model_len = Some(1280);
        assert_eq!(context_that_fits(&config, 1280, 10).unwrap(), 1280);
    }

    #[test]
    fn impossible_settings_are_refused_before_any_device_is_touched() {
        let preset = |name: &str| EngineConfig::new(ModelSource::Preset(name.to_owned()));
        for (config, want) in [
            (preset("qwen9"), "qwen2.5-7b"),
            (EngineConfig { load_format: LoadFormat::Auto, ..preset("qwen2.5-7b") }, "dummy"),
            (EngineConfig { max_num_seqs: 0, ..preset("qwen2.5-7b") }, "max_num_seqs"),
            (
                EngineConfig { mixed_batches: true, max_num_batched_tokens: 64, ..preset("qwen2.5-7b") },
                "max_num_batched_tokens",
            ),
            (EngineConfig { max_model_len: Some(40_000), ..preset("qwen2.5-7b") }, "32768"),
            (EngineConfig { kv_cache: KvCacheSize::MemoryUtilization(1.5), ..preset("qwen2.5-7b") }, "1.5"),
        ] {
            let error = Source::open(&config).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(want), "{error}");
        }
    }
}
