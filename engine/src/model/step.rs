//! The tensors of a step that depend on how much it holds: activations and inputs, as views of buffers allocated once.
//!
//! Decode steps tend to repeat their shape, so the descriptors are kept until the shape changes: a steady decode step
//! makes only its two integer arrays.

use acl_abi::{DataType, TensorDesc};

use crate::acl::{AclError, Device, DeviceBuffer, IntArray, PinnedBuffer, Tensor, TensorList};
use crate::core::plan::StepPlan;

use super::ModelConfig;

/// The most that a step of one loop holds: sizes of the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// New tokens.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Rows through the output layer.
    pub rows: usize,
    /// Entries of a block table row.
    pub table_width: usize,
}

/// Sections of the input buffer start at multiples of this.
const SECTION_ALIGN: usize = 64;

/// What determines every descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    tokens: usize,
    sequences: usize,
    rows: usize,
    table_width: usize,
    fresh: bool,
}

impl Shape {
    pub(super) fn of(plan: &StepPlan) -> Self {
        Self {
            tokens: plan.tokens.len(),
            sequences: plan.sequences(),
            rows: plan.rows.len(),
            table_width: plan.table_width,
            fresh: plan.is_fresh(),
        }
    }

    /// True if the step's own keys are all there are.
    pub(super) fn fresh(&self) -> bool {
        self.fresh
    }

    /// True if every token goes through the output layer, so nothing needs selecting.
    pub(super) fn all_rows(&self) -> bool {
        self.rows == self.tokens
    }

    /// Byte offsets of token, position, slot, row and block table sections, and the end of the last.
    fn sections(&self) -> [usize; 6] {
        let mut offsets = [0; 6];
        let counts = [self.tokens, self.tokens, self.tokens, self.rows, self.sequences * self.table_width];
        for (i, count) in counts.into_iter().enumerate() {
            offsets[i + 1] = (offsets[i] + count * size_of::<i32>()).next_multiple_of(SECTION_ALIGN);
        }
        offsets
    }

    /// Writes the plan's arrays into the pinned buffer, each into its section; returns the bytes to copy.
    pub(super) fn stage(&self, plan: &StepPlan, pinned: &mut PinnedBuffer) -> usize {
        let sections = self.sections();
        let bytes = pinned.bytes_mut();
        let arrays = [&plan.tokens, &plan.positions, &plan.slots, &plan.rows, &plan.block_tables];
        for (start, array) in sections.into_iter().zip(arrays) {
            let source: &[u8] = bytemuck::cast_slice(array);
            bytes[start..start + source.len()].copy_from_slice(source);
        }
        sections[5]
    }
}

/// Device buffers of one loop's activations, sized for its largest step.
#[derive(Debug)]
pub struct Activations {
    pub(super) capacity: Capacity,
    /// Section-packed inputs of a step.
    pub(super) inputs: DeviceBuffer,
    residual: [DeviceBuffer; 2],
    normed: DeviceBuffer,
    qkv: DeviceBuffer,
    query: DeviceBuffer,
    key: DeviceBuffer,
    attended: DeviceBuffer,
    projected: DeviceBuffer,
    gate_up: DeviceBuffer,
    activated: DeviceBuffer,
    rstd: DeviceBuffer,
    cos: DeviceBuffer,
    sin: DeviceBuffer,
    selected: DeviceBuffer,
    /// `[rows, vocab]`.
    pub(super) logits: DeviceBuffer,
    /// `[rows]` int32.
    pub(super) chosen: DeviceBuffer,
    lse: DeviceBuffer,
}

/// Bytes that the inputs of a step take at most.
pub(super) fn input_bytes(capacity: &Capacity) -> usize {
    let most = Shape {
        tokens: capacity.tokens,
        sequences: capacity.sequences,
        rows: capacity.rows,
        table_width: capacity.table_width,
        fresh: false,
    };
    most.sections()[5]
}

impl Activations {
    /// Allocates for steps of `capacity`, elements of `item` bytes.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(device: &Device, config: &ModelConfig, item: usize, capacity: Capacity) -> Result<Self, AclError> {
        let buffer = |rows: usize, width: usize, item: usize| DeviceBuffer::new(device, (rows * width * item) as u64);
        let tokens = |width: usize| buffer(capacity.tokens, width, item);
        let c = config;
        Ok(Self {
            capacity,
            inputs: DeviceBuffer::new(device, input_bytes(&capacity) as u64)?,
            residual: [tokens(c.hidden)?, tokens(c.hidden)?],
            normed: tokens(c.hidden)?,
            qkv: tokens(c.qkv_width())?,
            query: tokens(c.heads * c.head_dim)?,
            key: tokens(c.kv_width())?,
            attended: tokens(c.heads * c.head_dim)?,
            projected: tokens(c.hidden)?,
            gate_up: tokens(2 * c.intermediate)?,
            activated: tokens(c.intermediate)?,
            rstd: buffer(capacity.tokens, 1, size_of::<f32>())?,
            cos: tokens(c.head_dim)?,
            sin: tokens(c.head_dim)?,
            selected: buffer(capacity.rows, c.hidden, item)?,
            logits: buffer(capacity.rows, c.vocab, item)?,
            chosen: buffer(capacity.rows, 1, size_of::<i32>())?,
            lse: buffer(1, 1, size_of::<f32>())?,
        })
    }
}

/// Descriptors of one step shape.
#[derive(Debug)]
pub(super) struct StepTensors {
    pub(super) shape: Shape,
    /// `[tokens]` int32.
    pub(super) tokens: Tensor,
    /// `[tokens]` int32.
    pub(super) positions: Tensor,
    /// `[tokens]` int32.
    pub(super) slots: Tensor,
    /// `[rows]` int32.
    pub(super) rows: Tensor,
    /// `[sequences, table width]` int32.
    pub(super) block_table: Tensor,
    /// `[tokens, hidden]`, twice: a norm reads one and writes the other.
    pub(super) residual: [Tensor; 2],
    /// `[tokens, hidden]`.
    pub(super) normed: Tensor,
    /// `[tokens, qkv width]`.
    pub(super) qkv: Tensor,
    /// Queries inside `qkv`, `[1, tokens, heads, dim]`.
    pub(super) query_in: Tensor,
    /// Keys inside `qkv`, `[1, tokens, kv heads, dim]`.
    pub(super) key_in: Tensor,
    /// Values inside `qkv`, `[tokens, kv heads, dim]`.
    pub(super) value: Tensor,
    /// The same, as the attention operator takes it.
    pub(super) value_list: TensorList,
    /// Rotated queries, `[1, tokens, heads, dim]`.
    pub(super) query_out: Tensor,
    /// Rotated keys, `[1, tokens, kv heads, dim]`.
    pub(super) key_out: Tensor,
    /// Rotated queries, `[tokens, heads, dim]`.
    pub(super) query: Tensor,
    /// Rotated keys, `[tokens, kv heads, dim]`.
    pub(super) key: Tensor,
    /// The same, as the attention operator takes it.
    pub(super) key_list: TensorList,
    /// `[tokens, heads, dim]`.
    pub(super) attended: Tensor,
    /// The same, `[tokens, heads · dim]`.
    pub(super) attended_flat: Tensor,
    /// `[tokens, hidden]`.
    pub(super) projected: Tensor,
    /// `[tokens, 2 · intermediate]`.
    pub(super) gate_up: Tensor,
    /// `[tokens, intermediate]`.
    pub(super) activated: Tensor,
    /// `[tokens, 1]` float.
    pub(super) rstd: Tensor,
    /// `[tokens, dim]`.
    pub(super) cos: Tensor,
    /// `[tokens, dim]`.
    pub(super) sin: Tensor,
    /// `[1, tokens, 1, dim]`.
    pub(super) cos_wide: Tensor,
    /// `[1, tokens, 1, dim]`.
    pub(super) sin_wide: Tensor,
    /// `[rows, hidden]`.
    pub(super) selected: Tensor,
    /// `[rows, vocab]`.
    pub(super) logits: Tensor,
    /// `[rows]` int32.
    pub(super) chosen: Tensor,
    /// `[1]` float.
    pub(super) lse: Tensor,
}

/// A view that starts `offset` elements in, with `strides`.
fn strided(addr: u64, dtype: DataType, dims: &[usize], strides: &[usize], offset: usize) -> TensorDesc {
    let mut view = contiguous(addr, dtype, dims);
    for (slot, &stride) in view.strides.iter_mut().zip(strides) {
        *slot = stride as i64;
    }
    view.offset = offset as i64;
    view
}

pub(super) fn contiguous(addr: u64, dtype: DataType, dims: &[usize]) -> TensorDesc {
    let mut signed = [0i64; acl_abi::MAX_DIMS];
    for (slot, &dim) in signed.iter_mut().zip(dims) {
        *slot = dim as i64;
    }
    TensorDesc::contiguous(addr, dtype, &signed[..dims.len()])
}

impl StepTensors {
    pub(super) fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DataType,
        shape: Shape,
        a: &Activations,
    ) -> Result<Self, AclError> {
        let Shape { tokens: t, sequences, rows, table_width, .. } = shape;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let width = config.qkv_width();
        let make = |view: TensorDesc| Tensor::new(device, &view);
        let plain = |buffer: &DeviceBuffer, dims: &[usize]| make(contiguous(buffer.addr(), dtype, dims));
        let sections = shape.sections();
        let input = |section: usize, dims: &[usize]| {
            make(contiguous(a.inputs.addr() + sections[section] as u64, DataType::I32, dims))
        };
        let inside = |count: usize, head: usize| {
            make(strided(a.qkv.addr(), dtype, &[1, t, count, dim], &[t * width, width, dim, 1], head * dim))
        };
        let value =
            || make(strided(a.qkv.addr(), dtype, &[t, kv_heads, dim], &[width, dim, 1], (heads + kv_heads) * dim));
        Ok(Self {
            shape,
            tokens: input(0, &[t])?,
            positions: input(1, &[t])?,
            slots: input(2, &[t])?,
            rows: input(3, &[rows])?,
            block_table: input(4, &[sequences, table_width])?,
            residual: [plain(&a.residual[0], &[t, config.hidden])?, plain(&a.residual[1], &[t, config.hidden])?],
            normed: plain(&a.normed, &[t, config.hidden])?,
            qkv: plain(&a.qkv, &[t, width])?,
            query_in: inside(heads, 0)?,
            key_in: inside(kv_heads, heads)?,
            value: value()?,
            value_list: TensorList::single(value()?)?,
            query_out: plain(&a.query, &[1, t, heads, dim])?,
            key_out: plain(&a.key, &[1, t, kv_heads, dim])?,
            query: plain(&a.query, &[t, heads, dim])?,
            key: plain(&a.key, &[t, kv_heads, dim])?,
            key_list: TensorList::single(plain(&a.key, &[t, kv_heads, dim])?)?,
            attended: plain(&a.attended, &[t, heads, dim])?,
            attended_flat: plain(&a.attended, &[t, heads * dim])?,
            projected: plain(&a.projected, &[t, config.hidden])?,
            gate_up: plain(&a.gate_up, &[t, 2 * config.intermediate])?,
            activated: plain(&a.activated, &[t, config.intermediate])?,
            rstd: make(contiguous(a.rstd.addr(), DataType::F32, &[t, 1]))?,
            cos: plain(&a.cos, &[t, dim])?,
            sin: plain(&a.sin, &[t, dim])?,
            cos_wide: plain(&a.cos, &[1, t, 1, dim])?,
            sin_wide: plain(&a.sin, &[1, t, 1, dim])?,
            selected: plain(&a.selected, &[rows, config.hidden])?,
            logits: plain(&a.logits, &[rows, config.vocab])?,
            chosen: make(contiguous(a.chosen.addr(), DataType::I32, &[rows]))?,
            lse: make(contiguous(a.lse.addr(), DataType::F32, &[1]))?,
        })
    }
}

/// The two host-side arrays of the attention operator.
pub(super) struct Lengths {
    pub(super) query_ends: IntArray,
    pub(super) key_lens: IntArray,
}

impl Lengths {
    pub(super) fn new(device: &Device, plan: &StepPlan, fresh: bool) -> Result<Self, AclError> {
        // Without a block table the keys lie one sequence after the other, as the queries do.
        let key_lens = if fresh { &plan.query_ends } else { &plan.key_lens };
        Ok(Self { query_ends: IntArray::new(device, &plan.query_ends)?, key_lens: IntArray::new(device, key_lens)? })
    }
}
