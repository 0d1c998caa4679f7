//! The formulas.
//!
//! | operator | FLOP | bytes |
//! |---|---|---|
//! | product, `A [… M, K] · B [… K, N]` | cube `2·M·N·K` (batch: summed) | A, B, addends, result |
//! | attention | cube `4·H·D·Σ pairs`, vector 10 a pair and head | query, result, `2·Hkv·D` a key token read, tables |
//! | its gradient | 2.5 times as much: five products instead of two | and the gradients |
//! | sort, selection by rank | `log2` of the line's length an element | every tensor once |
//! | convolution | cube `2·result·weights of a channel`, its gradients twice that | every tensor once |
//! | lookup, gather | 1 a result element | the rows twice (read, written), indices; never the table |
//! | cache scatter | 1 an element | the rows twice, slots; never the cache |
//! | in place | per element | the tensor twice; fills and overwrites once |
//! | anything else | per element ([`super::vector`]) | every tensor once |
//!
//! `Σ pairs` leaves out what causal modes skip: a prompt of S tokens has `S·(S+1)/2` pairs, so `2·H·D·S²`; a decoding
//! sequence at context L has L, so `4·H·D·L`. An operand whose view repeats memory (stride 0) is read once; what is
//! written counts by elements. Paged caches are counted by the key tokens read, not by the cache tensor.
//!
//! Equivalents: cube FLOP in bfloat16 (INT8 ½; single precision 4, 2 where the call allows HF32), vector FLOP in float16
//! (×2 at 32 bit, ×4 at 64). 10 a pair is the online softmax (scale, maximum, subtract, exponential, sum) in single
//! precision. Factors and per-element counts are judgements; nothing was measured on an NPU.

use super::plan::{self, AttentionParams, Compute, Plan};
use super::{OpClass, Work, attention};
use acl_abi::{Arg, DataType, OpCall, TensorDesc};

const SOFTMAX_FLOPS_PER_SCORE: f64 = 10.0;

/// What `call` asks of the device, from its shapes alone. Calls that do not fit their signature weigh what their tensors
/// weigh; nothing panics.
pub fn work(call: &OpCall) -> Work {
    let plan = plan::of(call.op);
    match plan.compute {
        Compute::Attention(params) => attention_work(call, plan, &params),
        Compute::Product { a, b, out, transpose_a, transpose_b, cube_math } => {
            let flops = product_flops(call, [Some(a), Some(b), out, transpose_a, transpose_b]);
            let factor = cube_factor(call, a, b, cube_math);
            Work { cube_flops: flops * factor, hbm_bytes: traffic(call, plan), class: plan.class, ..Work::default() }
        }
        Compute::Convolution { weight, input, output, transposed, passes } => {
            let flops = f64::from(passes) * convolution_flops(call, weight, input, output, transposed);
            let factor = cube_factor(call, input, weight, None);
            Work { cube_flops: flops * factor, hbm_bytes: traffic(call, plan), class: plan.class, ..Work::default() }
        }
        Compute::PerOutput(flops) => {
            let widest = elements(call, plan.written);
            vector_work(call, plan, flops, widest)
        }
        Compute::PerInput(flops) => vector_work(call, plan, flops, elements(call, !plan.skip)),
        Compute::Sort { dim } => vector_work(call, plan, levels(call, dim), elements(call, !plan.skip)),
    }
}

pub(super) fn tensors(call: &OpCall, position: usize) -> &[TensorDesc] {
    match call.args.get(position) {
        Some(Arg::Tensor(i)) => call.tensors.get(usize::from(*i)..=usize::from(*i)).unwrap_or_default(),
        Some(Arg::TensorList { .. }) => call.tensor_list(position).unwrap_or_default(),
        _ => &[],
    }
}

/// Bytes of memory that a view touches: less than its elements where it repeats them.
fn distinct_bytes(t: &TensorDesc) -> u64 {
    match t.byte_span() {
        Ok(Some((start, end))) => t.bytes().min(end - start),
        Ok(None) => 0,
        Err(()) => t.bytes(),
    }
}

fn traffic(call: &OpCall, plan: &Plan) -> f64 {
    let mut bytes = 0u64;
    for position in 0..call.args.len().min(64) {
        let bit = 1u64 << position;
        if plan.skip & bit != 0 {
            continue;
        }
        for t in tensors(call, position) {
            let once = if plan.written & bit != 0 { t.bytes() } else { distinct_bytes(t) };
            let times = if plan.twice & bit != 0 { 2 } else { 1 };
            bytes = bytes.saturating_add(once.saturating_mul(times));
        }
    }
    bytes as f64
}

/// Elements of the largest tensor, or list, among the parameters of `mask`, in float16 equivalents.
fn elements(call: &OpCall, mask: u64) -> f64 {
    let mut widest = 0.0f64;
    for position in (0..call.args.len().min(64)).filter(|p| mask & (1 << p) != 0) {
        let own: f64 = tensors(call, position)
            .iter()
            .map(|t| {
                let factor = match t.dtype.bits() {
                    0..=16 => 1.0,
                    32 => 2.0,
                    _ => 4.0,
                };
                t.elements() as f64 * factor
            })
            .sum();
        widest = widest.max(own);
    }
    widest
}

/// Levels of a sort of the first tensor's lines: `log2` of their length.
fn levels(call: &OpCall, dim: Option<u8>) -> f32 {
    let Some(tensor) = call.tensors.first() else { return 1.0 };
    let dims = tensor.dims();
    let dim = dim.and_then(|p| call.int(p.into())).map(|d| if d < 0 { d.saturating_add(dims.len() as i64) } else { d });
    let line = dim.and_then(|d| dims.get(usize::try_from(d).ok()?)).map_or(tensor.elements(), |&d| d.max(0) as u64);
    (line.max(2) as f32).log2()
}

fn vector_work(call: &OpCall, plan: &Plan, flops: f32, elements: f64) -> Work {
    Work {
        vector_flops: elements * f64::from(flops),
        hbm_bytes: traffic(call, plan),
        class: plan.class,
        ..Work::default()
    }
}

/// `2·K·elements of the result`, summed over the pairs of a grouped product. `positions`: a, b, out, flags of transposed
/// operands.
fn product_flops(call: &OpCall, positions: [Option<u8>; 5]) -> f64 {
    let [a, b, out, transpose_a, transpose_b] = positions;
    let at = |p: Option<u8>| p.map_or(&[][..], |p| tensors(call, p.into()));
    let flag = |p: Option<u8>| p.and_then(|p| call.int(p.into())).is_some_and(|v| v != 0);
    let (a, b, out) = (at(a), at(b), at(out));
    // K is the last dimension of A, or the one before where A comes transposed.
    let depth = |t: &TensorDesc| {
        let dims = t.dims();
        let back = if flag(transpose_a) && dims.len() > 1 { 2 } else { 1 };
        dims.len().checked_sub(back).map_or(1, |i| dims[i].max(0) as u64)
    };
    if let ([x], [w], [y]) = (a, b, out) {
        match (x.dims().len(), w.dims().len(), y.dims().len()) {
            // Batches summed into one matrix.
            (3, 3, 2) => return 2.0 * x.elements() as f64 * y.dims()[1].max(0) as f64,
            // Depth cut into groups, a matrix each.
            (2, 2, 3) => return 2.0 * depth(x) as f64 * y.elements() as f64 / y.dims()[0].max(1) as f64,
            _ => {}
        }
    }
    if a.len() == out.len() && a.len() > 1 {
        return a.iter().zip(out).map(|(a, y)| 2.0 * depth(a) as f64 * y.elements() as f64).sum();
    }
    let Some(first) = a.first() else { return 0.0 };
    let k = depth(first) as f64;
    if out.is_empty() {
        // No result tensor in the signature: rows of A times columns of B.
        let rows: f64 = a.iter().map(|t| t.elements() as f64).sum::<f64>() / k.max(1.0);
        let back = if flag(transpose_b) { 2 } else { 1 };
        let columns = b.first().map_or(1, |t| t.dims().len().checked_sub(back).map_or(1, |i| t.dims()[i].max(0)));
        return 2.0 * k * rows * columns as f64;
    }
    2.0 * k * out.iter().map(|y| y.elements() as f64).sum::<f64>()
}

/// `2·elements of the output·weights of one of its channels`; of the input where transposed.
fn convolution_flops(call: &OpCall, weight: u8, input: u8, output: u8, transposed: u8) -> f64 {
    let at = |position: u8| tensors(call, position.into()).first();
    let side = if call.int(transposed.into()).is_some_and(|flag| flag != 0) { input } else { output };
    match (at(weight), at(side)) {
        (Some(weight), Some(side)) => {
            let channels = weight.dims().first().map_or(1, |&d| d.max(1)) as f64;
            2.0 * side.elements() as f64 * weight.elements() as f64 / channels
        }
        _ => 0.0,
    }
}

fn cube_factor(call: &OpCall, a: u8, b: u8, cube_math: Option<u8>) -> f64 {
    const ALLOW_HF32: i64 = 1;
    const USE_FP16: i64 = 2;
    const USE_HF32: i64 = 3;
    let dtype = |p: u8| tensors(call, p.into()).first().map(|t| t.dtype);
    let narrow = |d: Option<DataType>| matches!(d, Some(DataType::I8 | DataType::U8 | DataType::I4));
    let single = |d: Option<DataType>| matches!(d, Some(DataType::F32));
    let (da, db) = (dtype(a), dtype(b));
    if narrow(da) && narrow(db) {
        return 0.5;
    }
    if single(da) && single(db) {
        return match cube_math.and_then(|p| call.int(p.into())) {
            Some(USE_FP16) => 1.0,
            Some(ALLOW_HF32 | USE_HF32) => 2.0,
            _ => 4.0,
        };
    }
    1.0
}

fn attention_work(call: &OpCall, plan: &Plan, params: &AttentionParams) -> Work {
    let Some(batch) = attention::batch(call, params, |_, _| ()) else {
        return Work { hbm_bytes: traffic(call, plan), class: OpClass::Matmul, ..Work::default() };
    };
    let size = |p: u8| tensors(call, p.into()).first().map_or(2.0, |t| f64::from(t.dtype.bits()) / 8.0);
    let (scores, heads) = (batch.scores as f64, batch.heads as f64);
    let products = f64::from(params.products);
    let factor = products
        * match call.tensor(params.query.into()).map(|t| t.dtype) {
            Some(DataType::F32) => 4.0,
            Some(DataType::I8) => 0.5,
            _ => 1.0,
        };
    let key_value = (2 * batch.head_dim + batch.rope_dim) as f64 * batch.kv_heads as f64 * size(params.key);
    // Keys and values by the tokens read; compressed masks of the sparse modes stay on chip.
    let rest = Plan { skip: plan.skip | key_value_bits(params) | mask_bits(call, params), ..*plan };
    Work {
        cube_flops: factor * heads * scores * (4 * batch.head_dim + 2 * batch.rope_dim) as f64,
        vector_flops: products * SOFTMAX_FLOPS_PER_SCORE * heads * scores,
        hbm_bytes: key_value * batch.key_tokens as f64 + traffic(call, &rest),
        class: plan.class,
    }
}

fn key_value_bits(params: &AttentionParams) -> u64 {
    1 << params.key | 1 << params.value | params.key_rope.map_or(0, |p| 1 << p)
}

fn mask_bits(call: &OpCall, params: &AttentionParams) -> u64 {
    let compressed = params.sparse_mode.and_then(|p| call.int(p.into())).is_some_and(|mode| mode >= 2);
    if compressed { params.mask.map_or(0, |p| 1 << p) } else { 0 }
}
