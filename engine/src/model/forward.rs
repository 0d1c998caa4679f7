//! The forward pass: one step posted as operators on one stream, synchronised once.
//!
//! Per step: one copy in (every input array, packed), 4 operators, 11 a layer, 2 for the next tokens and one more where only
//! some rows need them, one copy out of 4 bytes a row, plus rows of logits where a request samples on the host. At 28 layers
//! that is 314 operators for decode and 315 for a prompt, of which only the two length arrays are new descriptors when the
//! shape repeats.
//!
//! **Invariant:** [`Forward::run`] returns only after the stream was synchronised, also when posting failed half way, so the
//! pinned buffers are never touched while a copy may be using them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use acl_abi::{DataType, TensorDesc};

use crate::acl::{AclError, Attention, Device, PinnedBuffer, Queue, Stream, Tensor, TensorList};
use crate::core::Dtype;
use crate::core::plan::StepPlan;

use super::step::{Activations, Capacity, Lengths, Shape, StepTensors, contiguous, input_bytes};
use super::weights::{LayerWeights, MASK_SIDE};
use super::{KvCache, Weights};

/// Rows of logits copied out at once; more take further copies. Bounds pinned memory: 32 rows of 152 thousand half-precision
/// values are 10 MB.
const LOGITS_ROWS_MAX: usize = 32;

/// Constant operands of one layer.
#[derive(Debug)]
struct LayerTensors {
    qkv: Tensor,
    qkv_bias: Option<Tensor>,
    output: Tensor,
    post_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    /// Norm after this layer's MLP: the next layer's first, or the final one.
    next_norm: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_pages: TensorList,
    value_pages: TensorList,
}

/// Constant operands outside the layers.
#[derive(Debug)]
struct ModelTensors {
    embedding: Tensor,
    first_norm: Tensor,
    head: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    layers: Vec<LayerTensors>,
}

/// A weight matrix `[out, in]` as the right operand `[in, out]` of a product.
fn transposed(addr: u64, dtype: DataType, out: usize, inner: usize) -> TensorDesc {
    let mut view = contiguous(addr, dtype, &[inner, out]);
    view.strides[0] = 1;
    view.strides[1] = inner as i64;
    view
}

impl ModelTensors {
    fn new(device: &Device, weights: &Weights, kv: &KvCache) -> Result<Self, AclError> {
        let (c, dtype) = (&weights.config, weights.dtype.acl());
        let plain = |addr: u64, dims: &[usize]| Tensor::new(device, &contiguous(addr, dtype, dims));
        let matrix = |addr: u64, out: usize, inner: usize| Tensor::new(device, &transposed(addr, dtype, out, inner));
        let layer = |i: usize, layer: &LayerWeights| {
            let next = weights.layers.get(i + 1).map_or(&weights.final_norm, |l| &l.input_norm);
            let (keys, values) = (kv.keys[i].addr(), kv.values[i].addr());
            let slots = [kv.blocks, kv.block_size, c.kv_heads, c.head_dim];
            let pages = [kv.blocks, kv.block_size, c.kv_width()];
            Ok::<_, AclError>(LayerTensors {
                qkv: matrix(layer.qkv.addr(), c.qkv_width(), c.hidden)?,
                qkv_bias: match &layer.qkv_bias {
                    Some(bias) => Some(plain(bias.addr(), &[c.qkv_width()])?),
                    None => None,
                },
                output: matrix(layer.output.addr(), c.hidden, c.heads * c.head_dim)?,
                post_norm: plain(layer.post_norm.addr(), &[c.hidden])?,
                gate_up: matrix(layer.gate_up.addr(), 2 * c.intermediate, c.hidden)?,
                down: matrix(layer.down.addr(), c.hidden, c.intermediate)?,
                next_norm: plain(next.addr(), &[c.hidden])?,
                key_cache: plain(keys, &slots)?,
                value_cache: plain(values, &slots)?,
                key_pages: TensorList::single(plain(keys, &pages)?)?,
                value_pages: TensorList::single(plain(values, &pages)?)?,
            })
        };
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        let tables = [weights.positions, c.head_dim];
        let mask = contiguous(weights.mask.addr(), DataType::I8, &[MASK_SIDE, MASK_SIDE]);
        Ok(Self {
            embedding: plain(weights.embedding.addr(), &[c.vocab, c.hidden])?,
            first_norm: plain(weights.layers[0].input_norm.addr(), &[c.hidden])?,
            head: matrix(head.addr(), c.vocab, c.hidden)?,
            cos: plain(weights.cos.addr(), &tables)?,
            sin: plain(weights.sin.addr(), &tables)?,
            mask: Tensor::new(device, &mask)?,
            layers: weights.layers.iter().enumerate().map(|(i, l)| layer(i, l)).collect::<Result<_, _>>()?,
        })
    }
}

/// Runs steps on a stream of its own. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Forward {
    // Declared before the memory they describe: descriptors go first.
    step: Option<StepTensors>,
    model: ModelTensors,
    queue: Queue,
    activations: Activations,
    staged: PinnedBuffer,
    chosen: PinnedBuffer,
    logits: PinnedBuffer,
    device: Device,
    weights: Arc<Weights>,
    kv: Arc<KvCache>,
    last_post: Duration,
}

impl Forward {
    /// A stream of its own over buffers made before. The calling thread need not be the one that runs.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(
        device: &Device,
        weights: Arc<Weights>,
        kv: Arc<KvCache>,
        activations: Activations,
    ) -> Result<Self, AclError> {
        let capacity = activations.capacity;
        let logits_bytes = capacity.rows.min(LOGITS_ROWS_MAX) * weights.config.vocab * weights.dtype.bytes();
        Ok(Self {
            step: None,
            model: ModelTensors::new(device, &weights, &kv)?,
            queue: Queue::new(Stream::new(device, 0)?)?,
            staged: PinnedBuffer::new(device, input_bytes(&capacity))?,
            chosen: PinnedBuffer::new(device, capacity.rows * size_of::<i32>())?,
            logits: PinnedBuffer::new(device, logits_bytes)?,
            activations,
            device: device.clone(),
            weights,
            kv,
            last_post: Duration::ZERO,
        })
    }

    /// The most a step may hold.
    pub fn capacity(&self) -> &Capacity {
        &self.activations.capacity
    }

    /// Element type of activations and logits.
    pub fn dtype(&self) -> Dtype {
        self.weights.dtype
    }

    /// Host time that posting the last step took.
    pub fn last_post(&self) -> Duration {
        self.last_post
    }

    /// Runs one step and waits for it. `on_logits` gets each row of `plan.logits_rows`: its position there, its bytes.
    /// Returns the most likely token of every row.
    ///
    /// # Errors
    /// The first error of posting or of the device; the KV cache at the step's slots is undefined then.
    ///
    /// # Panics
    /// If the plan exceeds the capacity: a bug of the scheduler.
    pub fn run(&mut self, plan: &StepPlan, on_logits: &mut dyn FnMut(usize, &[u8])) -> Result<&[i32], AclError> {
        let capacity = self.capacity();
        assert!(
            plan.tokens.len() <= capacity.tokens
                && plan.rows.len() <= capacity.rows
                && plan.sequences() <= capacity.sequences
                && plan.table_width <= capacity.table_width,
            "a step of {} tokens, {} rows, {} sequences, {} blocks exceeds {capacity:?}",
            plan.tokens.len(),
            plan.rows.len(),
            plan.sequences(),
            plan.table_width,
        );
        let started = Instant::now();
        let posted = self.post(plan);
        self.last_post = started.elapsed();
        let synchronised = self.queue.stream().synchronize();
        posted.and(synchronised)?;
        let row_bytes = self.row_bytes();
        let mut first = 0;
        for group in plan.logits_rows.chunks(LOGITS_ROWS_MAX) {
            if first > 0 {
                let posted = self.post_logits(group);
                let synchronised = self.queue.stream().synchronize();
                posted.and(synchronised)?;
            }
            for (i, row) in self.logits.bytes().chunks_exact(row_bytes).take(group.len()).enumerate() {
                on_logits(first + i, row);
            }
            first += group.len();
        }
        let chosen = &self.chosen.bytes()[..plan.rows.len() * size_of::<i32>()];
        Ok(bytemuck::cast_slice(chosen))
    }

    /// Asks the device for a sign of life.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn probe(&self) -> Result<(), AclError> {
        self.queue.stream().synchronize()
    }

    fn row_bytes(&self) -> usize {
        self.weights.config.vocab * self.weights.dtype.bytes()
    }

    fn post(&mut self, plan: &StepPlan) -> Result<(), AclError> {
        let shape = Shape::of(plan);
        let bytes = shape.stage(plan, &mut self.staged);
        // SAFETY: `run` synchronises the stream before anything writes `staged` again.
        unsafe { self.queue.stream().copy_in(&self.activations.inputs, 0, &self.staged, 0, bytes)? };
        let lengths = Lengths::new(&self.device, plan, shape.fresh())?;
        let step = match self.step.take() {
            Some(step) if step.shape == shape => step,
            _ => StepTensors::new(
                &self.device,
                &self.weights.config,
                self.weights.dtype.acl(),
                shape,
                &self.activations,
            )?,
        };
        let step = self.step.insert(step);
        post_layers(&self.queue, &self.model, &self.weights, self.kv.block_size, step, &lengths)?;
        if plan.rows.is_empty() {
            return Ok(());
        }
        let rows = if shape.all_rows() {
            &step.normed
        } else {
            self.queue.select_rows(&step.normed, &step.rows, &step.selected)?;
            &step.selected
        };
        self.queue.matmul(rows, &self.model.head, &step.logits)?;
        self.queue.arg_max(&step.logits, &step.chosen)?;
        let chosen_bytes = plan.rows.len() * size_of::<i32>();
        // SAFETY: `run` synchronises the stream before anything reads `chosen`.
        unsafe { self.queue.stream().copy_out(&self.chosen, 0, self.activations.chosen.addr(), chosen_bytes)? };
        match plan.logits_rows.chunks(LOGITS_ROWS_MAX).next() {
            Some(group) => self.post_logits(group),
            None => Ok(()),
        }
    }

    /// Posts copies of a group of rows of the logits into the pinned buffer; neighbours travel together.
    fn post_logits(&self, group: &[u32]) -> Result<(), AclError> {
        let row_bytes = self.row_bytes();
        let mut target = 0;
        for run in group.chunk_by(|a, b| a + 1 == *b) {
            let source = self.activations.logits.addr() + u64::from(run[0]) * row_bytes as u64;
            let len = run.len() * row_bytes;
            // SAFETY: `run` synchronises the stream before anything reads `logits`.
            unsafe { self.queue.stream().copy_out(&self.logits, target, source, len)? };
            target += len;
        }
        Ok(())
    }
}

/// Posts everything up to the final norm, whose result is in `step.normed`.
fn post_layers(
    queue: &Queue,
    model: &ModelTensors,
    weights: &Weights,
    block_size: usize,
    step: &StepTensors,
    lengths: &Lengths,
) -> Result<(), AclError> {
    let config = &weights.config;
    let eps = config.rms_norm_eps;
    let fresh = step.shape.fresh();
    let [mut residual, mut sum] = step.residual.each_ref();
    queue.embedding(&model.embedding, &step.tokens, residual)?;
    queue.select_rows(&model.cos, &step.positions, &step.cos)?;
    queue.select_rows(&model.sin, &step.positions, &step.sin)?;
    queue.rms_norm(residual, &model.first_norm, eps, &step.normed, &step.rstd)?;
    for layer in &model.layers {
        match &layer.qkv_bias {
            Some(bias) => queue.addmm(bias, &step.normed, &layer.qkv, &step.qkv)?,
            None => queue.matmul(&step.normed, &layer.qkv, &step.qkv)?,
        }
        queue.rotary(&step.query_in, &step.cos_wide, &step.sin_wide, &step.query_out)?;
        queue.rotary(&step.key_in, &step.cos_wide, &step.sin_wide, &step.key_out)?;
        queue.scatter_kv(&step.key, &layer.key_cache, &step.slots, &step.value, &layer.value_cache)?;
        queue.attention(&Attention {
            query: &step.query,
            key: if fresh { &step.key_list } else { &layer.key_pages },
            value: if fresh { &step.value_list } else { &layer.value_pages },
            mask: &model.mask,
            query_ends: &lengths.query_ends,
            key_lens: &lengths.key_lens,
            block_table: (!fresh).then_some(&step.block_table),
            heads: config.heads as i64,
            kv_heads: config.kv_heads as i64,
            block_size: if fresh { 0 } else { block_size as i64 },
            scale: 1.0 / (config.head_dim as f64).sqrt(),
            out: &step.attended,
            lse: &step.lse,
        })?;
        queue.matmul(&step.attended_flat, &layer.output, &step.projected)?;
        queue.add_rms_norm(&step.projected, residual, &layer.post_norm, eps, &step.normed, &step.rstd, sum)?;
        std::mem::swap(&mut residual, &mut sum);
        queue.matmul(&step.normed, &layer.gate_up, &step.gate_up)?;
        queue.swiglu(&step.gate_up, &step.activated)?;
        queue.matmul(&step.activated, &layer.down, &step.projected)?;
        queue.add_rms_norm(&step.projected, residual, &layer.next_norm, eps, &step.normed, &step.rstd, sum)?;
        std::mem::swap(&mut residual, &mut sum);
    }
    Ok(())
}
