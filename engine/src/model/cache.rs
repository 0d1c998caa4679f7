//! The paged KV cache in device memory: per layer one tensor of keys and one of values.

use crate::acl::{AclError, Device, DeviceBuffer};
use crate::core::Dtype;

use super::ModelConfig;

/// Keys and values of every layer, `[blocks, block size, kv heads, head dim]` each.
#[derive(Debug)]
pub struct KvCache {
    /// Keys, one buffer a layer.
    pub keys: Vec<DeviceBuffer>,
    /// Values, one buffer a layer.
    pub values: Vec<DeviceBuffer>,
    /// Blocks.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
}

impl KvCache {
    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(config: &ModelConfig, dtype: Dtype, block_size: usize) -> u64 {
        2 * config.layers as u64 * (block_size * config.kv_width() * dtype.bytes()) as u64
    }

    /// Allocates the cache. With `zero` it is cleared, so that a tail never written holds numbers; without, device memory
    /// stays untouched.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: Dtype,
        blocks: usize,
        block_size: usize,
        zero: bool,
    ) -> Result<Self, AclError> {
        let bytes = Self::block_bytes(config, dtype, block_size) / (2 * config.layers as u64) * blocks as u64;
        let tensor = |_| {
            let buffer = DeviceBuffer::new(device, bytes)?;
            if zero {
                buffer.clear()?;
            }
            Ok(buffer)
        };
        let tensors = || (0..config.layers).map(tensor).collect::<Result<Vec<_>, AclError>>();
        Ok(Self { keys: tensors()?, values: tensors()?, blocks, block_size })
    }
}
