//! Operators on the CPU: one table from operator to kernel.
//!
//! A kernel reads its arguments through [`args::Args`], sees memory only through bounds-checked [`view::View`]s, and answers
//! a reason where a call is malformed; [`run`] puts the operator's name before it. Indices that come out of device
//! memory (block tables, slots, token ids) are checked against the tensor they index before use.
//!
//! Results follow CPU torch: compute in single precision, round once to the output's type. Two properties go further,
//! because an engine must give a request the same tokens whatever runs beside it: a row of a product ([`gemm`]) and a row
//! of attention ([`attention`]) have the same bits in any batch.

mod advanced_index;
mod args;
mod attention;
mod average_pooling;
mod axes;
mod batch_norm;
mod bits;
mod class_loss;
mod convolution;
mod distance;
mod dropout;
mod elementwise;
mod extremum;
mod fault;
mod fill;
mod format;
mod gather;
mod gemm;
mod grouped;
mod index_write;
mod indices;
mod interleave;
mod kv_cache;
mod lane;
mod layer_norm;
mod linalg;
mod loss;
mod math;
mod matmul;
mod max_pooling;
mod moe;
mod moments;
mod nest;
mod norm;
mod number;
mod padding;
mod product;
mod quantize;
mod random;
mod range;
mod real;
mod reduce;
mod renorm;
mod rope;
mod rotary;
mod rrelu;
mod sample;
mod scan;
mod scatter;
mod search;
mod select;
mod shape;
mod softmax;
mod sort;
mod swi_glu;
mod triangle;
mod unfold;
mod unique;
mod update;
mod upsample;
mod view;
mod weight_quant;
mod windows;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use acl_abi::{OpCall, OpId, SIGNATURES};

use crate::error::OpError;

use super::hbm::Hbm;
use super::pool::Pool;
use args::Args;
use fault::{Outcome, ensure};

/// Scratch of one operator is given back when it exceeds this many elements in all: 128 MiB.
pub const SCRATCH_KEPT_MAX: usize = 32 << 20;

/// Most elements of one intermediate buffer, 512 MiB in single precision. Real operators stay far below (a row of 128 Ki
/// logits, the scores of a million keys); a hostile one is refused instead of exhausting the host.
pub const INTERMEDIATE_MAX: usize = 128 << 20;

/// What kernels run on.
pub struct Machine {
    /// Device memory.
    pub hbm: Hbm,
    /// Threads for large operators.
    pub pool: Pool,
    /// Buffers that kernels use for intermediate values; contents are left over from earlier operators.
    pub scratch: Scratch,
    /// Size that an operator with a data-dependent output found for it (`acl_abi::extent`): the output holds that many
    /// rows, contiguously, as a tensor of the smaller shape would. Cleared before each operator.
    pub extent: Option<u64>,
}

/// Intermediate values, reused from operator to operator.
#[derive(Default)]
pub struct Scratch {
    /// Operands widened to single precision.
    pub operand: Vec<f32>,
    /// Results before rounding.
    pub result: Vec<f32>,
    /// Panels of second matrices widened to single precision, one for each thread.
    pub panels: Vec<Vec<f32>>,
    /// Indices read from memory.
    pub indices: Vec<i64>,
    /// Work items of attention.
    pub attention: Vec<attention::Slot>,
}

/// The first `len` elements of a scratch buffer, grown as needed; contents are left over.
pub fn sized<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> Outcome<&mut [T]> {
    ensure!(len <= INTERMEDIATE_MAX, "{len} intermediate values are needed, at most {INTERMEDIATE_MAX} are supported");
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    Ok(&mut buffer[..len])
}

impl Scratch {
    fn elements(&self) -> usize {
        let own = self.operand.capacity() + self.result.capacity() + 2 * self.indices.capacity();
        let panels: usize = self.panels.iter().map(Vec::capacity).sum();
        own + panels + self.attention.iter().map(attention::Slot::elements).sum::<usize>()
    }
}

impl Machine {
    /// A machine with this memory that uses these threads.
    pub fn new(hbm: Hbm, pool: Pool) -> Self {
        Self { hbm, pool, scratch: Scratch::default(), extent: None }
    }
}

/// Computes one operator.
pub type Kernel = fn(&Args<'_>, &mut Machine) -> Outcome;

/// Operators of one family and their kernels.
pub type Family = &'static [(OpId, Kernel)];

/// Every operator that this device computes, by family: each file lists its own.
pub const FAMILIES: &[Family] = &[
    advanced_index::KERNELS,
    attention::flash::KERNELS,
    attention::grad::KERNELS,
    attention::infer::KERNELS,
    average_pooling::KERNELS,
    batch_norm::KERNELS,
    class_loss::KERNELS,
    convolution::KERNELS,
    distance::KERNELS,
    dropout::KERNELS,
    elementwise::activation::KERNELS,
    elementwise::arithmetic::KERNELS,
    elementwise::compare::KERNELS,
    elementwise::convert::KERNELS,
    elementwise::foreach::KERNELS,
    elementwise::functions::KERNELS,
    elementwise::gradient::KERNELS,
    elementwise::optimizer::KERNELS,
    extremum::KERNELS,
    fill::KERNELS,
    format::KERNELS,
    gather::KERNELS,
    grouped::KERNELS,
    index_write::KERNELS,
    interleave::KERNELS,
    kv_cache::KERNELS,
    layer_norm::KERNELS,
    linalg::KERNELS,
    loss::KERNELS,
    matmul::KERNELS,
    max_pooling::KERNELS,
    moe::KERNELS,
    moments::KERNELS,
    norm::KERNELS,
    padding::KERNELS,
    quantize::KERNELS,
    random::KERNELS,
    range::KERNELS,
    reduce::KERNELS,
    renorm::KERNELS,
    rope::KERNELS,
    rotary::KERNELS,
    rrelu::KERNELS,
    sample::KERNELS,
    scan::KERNELS,
    scatter::KERNELS,
    search::KERNELS,
    select::KERNELS,
    shape::KERNELS,
    softmax::KERNELS,
    sort::KERNELS,
    swi_glu::KERNELS,
    triangle::KERNELS,
    unfold::KERNELS,
    unique::KERNELS,
    update::KERNELS,
    upsample::KERNELS,
    weight_quant::KERNELS,
];

/// Every operator that this device computes.
pub fn kernels() -> impl Iterator<Item = (OpId, Kernel)> {
    FAMILIES.iter().copied().flatten().copied()
}

/// [`FAMILIES`] by operator id.
static BY_ID: LazyLock<Vec<Option<Kernel>>> = LazyLock::new(|| {
    let mut by_id = vec![None; SIGNATURES.len()];
    for (id, kernel) in kernels() {
        by_id[usize::from(id.0)] = Some(kernel);
    }
    by_id
});

/// Executes one operator.
///
/// # Errors
/// With the operator's name and the reason.
pub fn run(call: &OpCall, machine: &mut Machine) -> Result<(), OpError> {
    let Some(kernel) = BY_ID.get(usize::from(call.op.0)).copied().flatten() else {
        let name = SIGNATURES.get(usize::from(call.op.0)).map_or("unknown operator", |s| s.name);
        return Err(OpError::new(format!("{name}: the emulated device does not compute this operator")));
    };
    machine.extent = None;
    let outcome = kernel(&Args::new(call, machine.hbm.len()), machine);
    if machine.scratch.elements() > SCRATCH_KEPT_MAX {
        machine.scratch = Scratch::default();
    }
    outcome.map_err(|fault| OpError::new(format!("{}: {}", call.op.name(), fault.text())))
}
