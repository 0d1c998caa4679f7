//! Weights on the device, with what belongs to them: rotary tables and the attention mask.
//!
//! Query, key and value projections are stored as one matrix, gate and up projections as another, so a layer is four
//! matrix products. Matrices keep the checkpoint's `[out, in]` order; operators see transposed views of them.

use crate::acl::{AclError, Device, DeviceBuffer};
use crate::core::Dtype;

use super::ModelConfig;
use super::checkpoint::{Checkpoint, CheckpointError, encode};

/// Side of the causal mask that the attention operator wants in its compressed causal modes.
pub const MASK_SIDE: usize = 2048;

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device.
    #[error("uploading weights: {0}")]
    Device(#[from] AclError),
}

/// Weights of one decoder layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// Norm before attention, `[hidden]`.
    pub input_norm: DeviceBuffer,
    /// `[qkv width, hidden]`.
    pub qkv: DeviceBuffer,
    /// `[qkv width]`.
    pub qkv_bias: Option<DeviceBuffer>,
    /// `[hidden, heads · dim]`.
    pub output: DeviceBuffer,
    /// Norm before the MLP, `[hidden]`.
    pub post_norm: DeviceBuffer,
    /// `[2 · intermediate, hidden]`, gate first.
    pub gate_up: DeviceBuffer,
    /// `[hidden, intermediate]`.
    pub down: DeviceBuffer,
}

/// Everything constant that the forward pass reads.
#[derive(Debug)]
pub struct Weights {
    /// Shapes.
    pub config: ModelConfig,
    /// Element type of weights and activations.
    pub dtype: Dtype,
    /// `[vocab, hidden]`.
    pub embedding: DeviceBuffer,
    /// Decoder layers.
    pub layers: Vec<LayerWeights>,
    /// Norm before the output layer, `[hidden]`.
    pub final_norm: DeviceBuffer,
    /// Output layer `[vocab, hidden]`; `None` is the embedding.
    pub head: Option<DeviceBuffer>,
    /// Cosines `[positions, head dim]`.
    pub cos: DeviceBuffer,
    /// Sines `[positions, head dim]`.
    pub sin: DeviceBuffer,
    /// `[MASK_SIDE, MASK_SIDE]` bytes, 1 above the diagonal.
    pub mask: DeviceBuffer,
    /// Rows of `cos` and `sin`.
    pub positions: usize,
}

/// One part of a tensor: checkpoint key and shape.
type Part<'a> = (String, &'a [usize]);

struct Loader<'a> {
    device: &'a Device,
    checkpoint: Option<&'a Checkpoint>,
    dtype: Dtype,
}

impl Loader<'_> {
    /// One device tensor of the parts laid one after the other.
    fn tensor(&self, parts: &[Part<'_>]) -> Result<DeviceBuffer, WeightsError> {
        let bytes = |shape: &[usize]| (shape.iter().product::<usize>() * self.dtype.bytes()) as u64;
        let buffer = DeviceBuffer::new(self.device, parts.iter().map(|(_, shape)| bytes(shape)).sum())?;
        if let Some(checkpoint) = self.checkpoint {
            let mut start = 0;
            for (key, shape) in parts {
                checkpoint.read(key, shape, self.dtype, |offset, piece| {
                    buffer.write(start + offset, piece).map_err(WeightsError::from)
                })?;
                start += bytes(shape);
            }
        }
        Ok(buffer)
    }

    fn one(&self, key: impl Into<String>, shape: &[usize]) -> Result<DeviceBuffer, WeightsError> {
        self.tensor(&[(key.into(), shape)])
    }

    fn layer(&self, config: &ModelConfig, index: usize) -> Result<LayerWeights, WeightsError> {
        let key = |name: &str| format!("model.layers.{index}.{name}");
        let (hidden, inner) = (config.hidden, config.intermediate);
        let (q, kv) = (config.heads * config.head_dim, config.kv_width());
        let qkv = |suffix: &str| ["q", "k", "v"].map(|p| key(&format!("self_attn.{p}_proj.{suffix}")));
        let [q_weight, k_weight, v_weight] = qkv("weight");
        let [q_bias, k_bias, v_bias] = qkv("bias");
        Ok(LayerWeights {
            input_norm: self.one(key("input_layernorm.weight"), &[hidden])?,
            qkv: self.tensor(&[(q_weight, &[q, hidden]), (k_weight, &[kv, hidden]), (v_weight, &[kv, hidden])])?,
            qkv_bias: match config.qkv_bias {
                true => Some(self.tensor(&[(q_bias, &[q]), (k_bias, &[kv]), (v_bias, &[kv])])?),
                false => None,
            },
            output: self.one(key("self_attn.o_proj.weight"), &[hidden, q])?,
            post_norm: self.one(key("post_attention_layernorm.weight"), &[hidden])?,
            gate_up: self.tensor(&[
                (key("mlp.gate_proj.weight"), &[inner, hidden]),
                (key("mlp.up_proj.weight"), &[inner, hidden]),
            ])?,
            down: self.one(key("mlp.down_proj.weight"), &[hidden, inner])?,
        })
    }

    /// A tensor computed here; left unwritten without a checkpoint.
    fn computed(&self, len: usize, bytes: impl FnOnce() -> Vec<u8>) -> Result<DeviceBuffer, WeightsError> {
        let buffer = DeviceBuffer::new(self.device, len as u64)?;
        if self.checkpoint.is_some() {
            buffer.write(0, &bytes())?;
        }
        Ok(buffer)
    }
}

impl Weights {
    /// Allocates every tensor and fills it from `checkpoint`; without one, device memory stays as it is.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn load(
        device: &Device,
        config: ModelConfig,
        dtype: Dtype,
        positions: usize,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self, WeightsError> {
        let load = Loader { device, checkpoint, dtype };
        let table_elements = positions * config.head_dim;
        let table = |values: &[f32]| {
            let mut bytes = Vec::with_capacity(values.len() * dtype.bytes());
            values.iter().for_each(|&v| encode(v, dtype, &mut bytes));
            bytes
        };
        let (cos, sin) = match checkpoint {
            Some(_) => config.rope.tables(config.head_dim, positions),
            None => (Vec::new(), Vec::new()),
        };
        let vocab_shape = [config.vocab, config.hidden];
        Ok(Self {
            dtype,
            embedding: load.one("model.embed_tokens.weight", &vocab_shape)?,
            layers: (0..config.layers).map(|i| load.layer(&config, i)).collect::<Result<_, _>>()?,
            final_norm: load.one("model.norm.weight", &[config.hidden])?,
            head: match config.tied_embeddings {
                true => None,
                false => Some(load.one("lm_head.weight", &vocab_shape)?),
            },
            cos: load.computed(table_elements * dtype.bytes(), || table(&cos))?,
            sin: load.computed(table_elements * dtype.bytes(), || table(&sin))?,
            mask: load.computed(MASK_SIDE * MASK_SIDE, || {
                (0..MASK_SIDE * MASK_SIDE).map(|i| u8::from(i % MASK_SIDE > i / MASK_SIDE)).collect()
            })?,
            positions,
            config,
        })
    }
}
