//! `aclTensorDesc` and `aclDataBuffer`: descriptions of the older operator interface, kept and read back on the host.

use acl_abi::{DataType, MAX_DIMS};

use crate::handle::{Kind, Table};

/// An `aclTensorDesc`.
#[derive(Clone, Debug, Default)]
pub struct TensorDesc {
    /// `aclDataType`, any value: no device computes with it.
    pub dtype: i32,
    /// `aclFormat`.
    pub format: i32,
    /// Sizes.
    pub dims: Vec<i64>,
    /// Name, bounded by [`NAME_BYTES_MAX`].
    pub name: String,
    /// `aclMemType`.
    pub placement: i32,
}

/// Longest name kept.
pub const NAME_BYTES_MAX: usize = 1024;
/// Most dimensions of a description: `aclTensorDesc` is host data, so it may have more than a device tensor.
pub const DESC_DIMS_MAX: usize = 4 * MAX_DIMS;

impl TensorDesc {
    /// Elements of the shape; 0 with an unknown size, saturating.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1u64, |n, &d| n.saturating_mul(d.max(0) as u64))
    }

    /// Bytes of the shape; 0 for a type without a size.
    pub fn bytes(&self) -> u64 {
        DataType::from_abi(self.dtype).and_then(|t| t.bytes_of(self.elements())).unwrap_or(0)
    }
}

/// An `aclDataBuffer`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataBuffer {
    /// Address, as given.
    pub data: usize,
    /// Bytes.
    pub size: usize,
}

/// The descriptions of one process.
pub struct Descriptors {
    /// `aclTensorDesc`.
    pub tensors: Table<TensorDesc>,
    /// `aclDataBuffer`.
    pub buffers: Table<DataBuffer>,
}

impl Descriptors {
    /// Empty tables.
    pub fn new(seed: u32) -> Self {
        Self { tensors: Table::new(Kind::TensorDesc, seed), buffers: Table::new(Kind::DataBuffer, seed) }
    }
}
