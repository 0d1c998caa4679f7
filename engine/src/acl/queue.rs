//! Operator calls: both phases of one `aclnn` operator a method, posted on one stream.
//!
//! Cost of a call: one first phase, one second phase, no allocation of ours. Workspace is one buffer a queue, grown when
//! an operator asks for more than any before; operators of one stream run in order, so they can share it.

use std::cell::RefCell;
use std::ffi::{CStr, c_void};
use std::ptr::null;

use super::library::{Api, Raw};
use super::operators::Operator;
use super::{AclError, DeviceBuffer, IntArray, Scalar, Stream, Tensor, TensorList};

/// `KEEP_DTYPE`: the cube computes in the operands' type.
const CUBE_KEEP_DTYPE: i8 = 0;
/// Rotate the two halves of the head (GPT-NeoX style, as Llama and Qwen2 do).
const ROTARY_HALF: i64 = 0;
/// Causal, aligned to the lower right corner: the last query row sees every key.
const SPARSE_RIGHT_DOWN_CAUSAL: i64 = 3;
/// No window on either side.
const ALL_TOKENS: i64 = i32::MAX as i64;
/// Smallest workspace allocation.
const WORKSPACE_BYTES_MIN: u64 = 1 << 20;

/// A stream together with what posting operators on it needs.
#[derive(Debug)]
pub struct Queue {
    stream: Stream,
    workspace: RefCell<Option<DeviceBuffer>>,
    one: Scalar,
}

/// Arguments of one attention call, layout TND (tokens, heads, head dimension).
#[derive(Debug)]
pub struct Attention<'a> {
    /// `[tokens, heads, dim]`.
    pub query: &'a Tensor,
    /// `[tokens, kv heads, dim]`, or the cache `[blocks, block size, kv heads · dim]` where `block_table` is given.
    pub key: &'a TensorList,
    /// As `key`.
    pub value: &'a TensorList,
    /// `[2048, 2048]` int8, 1 above the diagonal.
    pub mask: &'a Tensor,
    /// End of each sequence's query rows, cumulative.
    pub query_ends: &'a IntArray,
    /// With a block table: each sequence's number of keys. Without: their ends, cumulative.
    pub key_lens: &'a IntArray,
    /// `[sequences, blocks]` int32.
    pub block_table: Option<&'a Tensor>,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Tokens of a block; 0 without a block table.
    pub block_size: i64,
    /// Factor on the scores before the softmax.
    pub scale: f64,
    /// `[tokens, heads, dim]`.
    pub out: &'a Tensor,
    /// `[1]` float: takes the log-sum-exp output that is switched off.
    pub lse: &'a Tensor,
}

impl Queue {
    /// A queue on `stream`.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn new(stream: Stream) -> Result<Self, AclError> {
        let one = Scalar::f32(stream.device(), 1.0)?;
        Ok(Self { stream, workspace: RefCell::new(None), one })
    }

    /// The stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    fn api(&self) -> &Api {
        self.stream.device().api()
    }

    /// Runs phase one through `first` and posts phase two.
    #[inline]
    fn post<F: Copy>(
        &self,
        operator: &Operator<F>,
        first: impl FnOnce(F, *mut u64, *mut Raw) -> i32,
    ) -> Result<(), AclError> {
        let (mut size, mut executor) = (0u64, std::ptr::null_mut());
        let api = self.api();
        api.check(operator.name, first(operator.first, &mut size, &mut executor))?;
        let workspace = if size == 0 { 0 } else { self.workspace(size)? };
        // SAFETY: the executor came from this operator's phase one just now and is used once; the workspace has `size` bytes
        // and lives until the queue does, or until after a synchronisation.
        let code = unsafe { (operator.second)(workspace as Raw, size, executor, self.stream.raw()) };
        api.check(operator.name, code)
    }

    /// Address of at least `size` bytes of workspace.
    #[cold]
    fn workspace(&self, size: u64) -> Result<u64, AclError> {
        let mut slot = self.workspace.borrow_mut();
        match &*slot {
            Some(buffer) if buffer.len() >= size => Ok(buffer.addr()),
            _ => {
                self.stream.synchronize()?; // earlier operators may still use the smaller one
                *slot = None;
                let buffer =
                    DeviceBuffer::new(self.stream.device(), size.next_power_of_two().max(WORKSPACE_BYTES_MIN))?;
                let addr = buffer.addr();
                *slot = Some(buffer);
                Ok(addr)
            }
        }
    }

    /// `out[i] = weight[indices[i]]`.
    ///
    /// # Errors
    /// [`AclError`], as for every operator here.
    pub fn embedding(&self, weight: &Tensor, indices: &Tensor, out: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnEmbedding, |first, size, executor| {
            // SAFETY: live handles of the kinds the signature names; valid places for both results. So below.
            unsafe { first(weight.raw(), indices.raw(), out.raw(), size, executor) }
        })
    }

    /// `out = x / rms(x) · gamma`; `rstd` takes the reciprocal root mean square.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn rms_norm(&self, x: &Tensor, gamma: &Tensor, eps: f64, out: &Tensor, rstd: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnRmsNorm, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(x.raw(), gamma.raw(), eps, out.raw(), rstd.raw(), size, executor) }
        })
    }

    /// `sum = x + residual; out = rms_norm(sum)`. `sum` must not share memory with the inputs.
    ///
    /// # Errors
    /// [`AclError`].
    #[allow(clippy::too_many_arguments)] // the operator's own
    pub fn add_rms_norm(
        &self,
        x: &Tensor,
        residual: &Tensor,
        gamma: &Tensor,
        eps: f64,
        out: &Tensor,
        rstd: &Tensor,
        sum: &Tensor,
    ) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnAddRmsNorm, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe {
                first(x.raw(), residual.raw(), gamma.raw(), eps, out.raw(), rstd.raw(), sum.raw(), size, executor)
            }
        })
    }

    /// `out = a · b`.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn matmul(&self, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnMatmul, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(a.raw(), b.raw(), out.raw(), CUBE_KEEP_DTYPE, size, executor) }
        })
    }

    /// `out = bias + a · b`.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn addmm(&self, bias: &Tensor, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<(), AclError> {
        let one = self.one.raw();
        self.post(&self.api().ops.aclnnAddmm, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(bias.raw(), a.raw(), b.raw(), one, one, out.raw(), CUBE_KEEP_DTYPE, size, executor) }
        })
    }

    /// Rotates the two halves of each head by its position's angles: `x [1, tokens, heads, dim]`, `cos` and `sin`
    /// `[1, tokens, 1, dim]`.
    ///
    /// Of the platform's two rotary operators this one writes elsewhere, so queries and keys come out of the fused
    /// projection without gaps, and it is indifferent to how many heads keys have.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn rotary(&self, x: &Tensor, cos: &Tensor, sin: &Tensor, out: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnRotaryPositionEmbedding, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(x.raw(), cos.raw(), sin.raw(), ROTARY_HALF, out.raw(), size, executor) }
        })
    }

    /// Writes `key` and `value` `[tokens, kv heads, dim]` into the caches `[blocks, block size, kv heads, dim]` at the
    /// slots given.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn scatter_kv(
        &self,
        key: &Tensor,
        key_cache: &Tensor,
        slots: &Tensor,
        value: &Tensor,
        value_cache: &Tensor,
    ) -> Result<(), AclError> {
        const CACHE_MODE: &CStr = c"Norm";
        const SCATTER_MODE: &CStr = c"None";
        self.post(&self.api().ops.aclnnScatterPaKvCache, |first, size, executor| {
            // SAFETY: as in `embedding`; null marks an absent optional; the strings are NUL-terminated constants.
            unsafe {
                first(
                    key.raw(),
                    key_cache.raw(),
                    slots.raw(),
                    value.raw(),
                    value_cache.raw(),
                    null(),
                    null(),
                    null(),
                    CACHE_MODE.as_ptr(),
                    SCATTER_MODE.as_ptr(),
                    null(),
                    null(),
                    size,
                    executor,
                )
            }
        })
    }

    /// Causal attention with grouped heads.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn attention(&self, a: &Attention<'_>) -> Result<(), AclError> {
        const LAYOUT: &CStr = c"TND";
        let absent = null::<c_void>();
        let block_table = a.block_table.map_or(absent, |t| t.raw().cast_const());
        self.post(&self.api().ops.aclnnFusedInferAttentionScoreV3, |first, size, executor| {
            // SAFETY: as in `scatter_kv`.
            unsafe {
                first(
                    a.query.raw(),
                    a.key.raw(),
                    a.value.raw(),
                    absent, // pseShift
                    a.mask.raw(),
                    a.query_ends.raw(),
                    a.key_lens.raw(),
                    absent, // deqScale1
                    absent, // quantScale1
                    absent, // deqScale2
                    absent, // quantScale2
                    absent, // quantOffset2
                    absent, // antiquantScale
                    absent, // antiquantOffset
                    block_table,
                    absent, // queryPaddingSize
                    absent, // kvPaddingSize
                    absent, // keyAntiquantScale
                    absent, // keyAntiquantOffset
                    absent, // valueAntiquantScale
                    absent, // valueAntiquantOffset
                    absent, // keySharedPrefix
                    absent, // valueSharedPrefix
                    absent, // actualSharedPrefixLen
                    absent, // queryRope
                    absent, // keyRope
                    absent, // keyRopeAntiquantScale
                    a.heads,
                    a.scale,
                    ALL_TOKENS,
                    ALL_TOKENS,
                    LAYOUT.as_ptr(),
                    a.kv_heads,
                    SPARSE_RIGHT_DOWN_CAUSAL,
                    0, // innerPrecise: high precision
                    a.block_size,
                    0,     // antiquantMode
                    false, // softmaxLseFlag
                    0,     // keyAntiquantMode
                    0,     // valueAntiquantMode
                    a.out.raw(),
                    a.lse.raw(),
                    size,
                    executor,
                )
            }
        })
    }

    /// `out = silu(left half of x) · right half`, over the last dimension.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn swiglu(&self, x: &Tensor, out: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnSwiGlu, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(x.raw(), -1, out.raw(), size, executor) }
        })
    }

    /// `out[i] = x[index[i]]` over the first dimension.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn select_rows(&self, x: &Tensor, index: &Tensor, out: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnIndexSelect, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(x.raw(), 0, index.raw(), out.raw(), size, executor) }
        })
    }

    /// Position of each row's first maximum.
    ///
    /// # Errors
    /// [`AclError`].
    pub fn arg_max(&self, x: &Tensor, out: &Tensor) -> Result<(), AclError> {
        self.post(&self.api().ops.aclnnArgMax, |first, size, executor| {
            // SAFETY: as in `embedding`.
            unsafe { first(x.raw(), -1, false, out.raw(), size, executor) }
        })
    }
}
