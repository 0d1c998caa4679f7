//! ATB operations as aclnn operators.
//!
//! Pure: tensors in, one [`OpCall`] out. What depends on the parameters alone is checked by [`Kind::check`], so that an
//! operation that is not supported is never made.

use acl_abi::{Arg, DataType, Kind as Parameter, OpCall, OpId, Scalar, TensorDesc, ops};

use super::layout::{
    ElewiseParam, LinearParam, PagedAttentionParam, ReshapeAndCacheParam, RmsNormParam, RopeParam, SelfAttentionParam,
    TYPE_UNDEFINED, Tensor,
};
use crate::error::Failure;

/// An operation with its parameters.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `out = A · B`, with a bias, or added to what is in `out`.
    Linear(LinearParam),
    /// One operand or two, element by element.
    Elewise(ElewiseParam),
    /// Normalisation, alone or behind an addition.
    RmsNorm(RmsNormParam),
    /// Attention over keys and values that lie side by side.
    SelfAttention(SelfAttentionParam),
    /// Attention of one token each over a paged cache.
    PagedAttention(PagedAttentionParam),
    /// Writes keys and values into a paged cache.
    ReshapeAndCache(ReshapeAndCacheParam),
    /// Turns queries and keys by their positions.
    Rope(RopeParam),
}

/// Element-wise operations: ATB's number, operands, the operator.
const ELEWISE: [(i32, usize, OpId); 15] = [
    (CAST, 1, ops::aclnnCast),
    (MULS, 1, ops::aclnnMuls),
    (3, 1, ops::aclnnCos),
    (4, 1, ops::aclnnSin),
    (5, 1, ops::aclnnNeg),
    (7, 1, ops::aclnnLogicalNot),
    (8, 2, ops::aclnnAdd),
    (9, 2, ops::aclnnMul),
    (10, 2, ops::aclnnDiv),
    (11, 2, ops::aclnnLogicalAnd),
    (12, 2, ops::aclnnLogicalOr),
    (13, 2, ops::aclnnLtTensor),
    (14, 2, ops::aclnnGtTensor),
    (15, 2, ops::aclnnSub),
    (16, 2, ops::aclnnEqTensor),
];
const CAST: i32 = 1;
const MULS: i32 = 2;
const NORM_ALONE: i32 = 1;
const NORM_AFTER_ADDITION: i32 = 2;
/// Attention of whole prompts.
const PROMPTS: i32 = 3;
/// A mask of scores that all heads share, and one for each head (ALiBi): both are added.
const MASK: i32 = 1;
const MASK_OF_HEADS: i32 = 2;
/// Pairs of a rotation are a half apart.
const HALVES: i32 = 2;

/// `name: value`, for parameters that must have one value.
fn only<T: PartialEq + Copy + std::fmt::Display>(name: &str, value: T, supported: T) -> Result<(), Failure> {
    if value == supported {
        return Ok(());
    }
    Err(Failure::unsupported(format!("{name} {value} is not supported ({supported})")))
}

impl Kind {
    /// What ATB calls the operation.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear(_) => "LinearOperation",
            Self::Elewise(_) => "ElewiseOperation",
            Self::RmsNorm(_) => "RmsNormOperation",
            Self::SelfAttention(_) => "SelfAttentionOperation",
            Self::PagedAttention(_) => "PagedAttentionOperation",
            Self::ReshapeAndCache(_) => "ReshapeAndCacheOperation",
            Self::Rope(_) => "RopeOperation",
        }
    }

    /// Tensors that it reads.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Linear(p) => 2 + usize::from(p.has_bias != 0) + usize::from(p.accumulate != 0),
            Self::Elewise(p) => elewise_row(p).map_or(0, |(operands, _)| operands),
            Self::RmsNorm(p) => {
                if p.layer == NORM_ALONE {
                    2
                } else {
                    3
                }
            }
            Self::SelfAttention(p) => 4 + usize::from(p.mask != 0),
            Self::PagedAttention(_) | Self::ReshapeAndCache(_) | Self::Rope(_) => 5,
        }
    }

    /// Tensors that it writes.
    pub fn outputs(&self) -> usize {
        match self {
            Self::ReshapeAndCache(_) | Self::Rope(_) => 2,
            Self::RmsNorm(p) if p.layer == NORM_AFTER_ADDITION => 2,
            _ => 1,
        }
    }

    /// Refuses parameters that are not supported.
    ///
    /// # Errors
    /// Names the parameter.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Linear(p) => {
                only("outDataType", p.out_type, TYPE_UNDEFINED)?;
                only("hasBias with enAccum", p.has_bias != 0 && p.accumulate != 0, false)
            }
            Self::Elewise(p) => elewise_row(p).map(|_| ()),
            Self::RmsNorm(p) if p.layer == NORM_ALONE => {
                only("normParam.quantType", p.norm.quantisation, 0)?;
                only("normParam.dynamicQuantType", p.norm.dynamic_quantisation, 0)?;
                only("normParam.modelType", p.norm.model, 0)?;
                only("normParam.rstd", p.norm.rstd, 0)
            }
            Self::RmsNorm(p) if p.layer == NORM_AFTER_ADDITION => {
                only("preNormParam.quantType", p.before.quantisation, 0)?;
                only("preNormParam.hasBias", p.before.has_bias, 0)
            }
            Self::RmsNorm(p) => Err(Failure::unsupported(format!("layerType {} is not supported", p.layer))),
            Self::SelfAttention(p) => check_self_attention(p),
            Self::PagedAttention(p) => {
                only("maskType", p.mask, 0)?;
                only("quantType", p.quantisation, 0)?;
                only("outDataType", p.out_type, TYPE_UNDEFINED)?;
                only("batchRunStatusEnable", p.batch_status, 0)?;
                only("compressType", p.compression, 0)?;
                only("calcType", p.calculation, 0)?;
                only("scaleType", p.scale_kind, 0)?;
                only("inputLayout", p.layout, 0)?;
                only("mlaVHeadSize", p.value_head, 0)
            }
            Self::ReshapeAndCache(p) => {
                only("compressType", p.compression, 0)?;
                only("kvCacheCfg", p.caches, 0)
            }
            Self::Rope(p) => only("cosFormat", p.table_format, 0),
        }
    }

    /// The operators that compute it, in order.
    ///
    /// # Errors
    /// Names the tensor that does not fit.
    pub fn calls(&self, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Vec<OpCall>, Failure> {
        let counts = [("inputs", inputs.len(), self.inputs()), ("outputs", outputs.len(), self.outputs())];
        if let Some((what, have, want)) = counts.into_iter().find(|(_, have, want)| have != want) {
            return Err(Failure::invalid(format!("{have} {what}, want {want}")));
        }
        match self {
            Self::Linear(p) => linear(p, inputs, outputs).map(one),
            Self::Elewise(p) => elewise(p, inputs, outputs).map(one),
            Self::RmsNorm(p) => rms_norm(p, inputs, outputs).map(one),
            Self::SelfAttention(p) if p.mask != 0 => masked_attention(p, inputs, outputs),
            Self::SelfAttention(p) => self_attention(p, inputs, outputs).map(one),
            Self::PagedAttention(p) => paged_attention(p, inputs, outputs).map(one),
            Self::ReshapeAndCache(_) => reshape_and_cache(inputs, outputs).map(one),
            Self::Rope(p) => rope(p, inputs, outputs),
        }
    }
}

fn check_self_attention(p: &SelfAttentionParam) -> Result<(), Failure> {
    only("calcType", p.calculation, PROMPTS)?;
    if ![0, MASK, MASK_OF_HEADS].contains(&p.mask) {
        let text = format!("maskType {} is not supported (0, {MASK}, {MASK_OF_HEADS})", p.mask);
        return Err(Failure::unsupported(text));
    }
    only("quantType", p.quantisation, 0)?;
    only("outDataType", p.out_type, TYPE_UNDEFINED)?;
    only("qScale", p.query_scale, 1.0)?;
    only("batchRunStatusEnable", p.batch_status, 0)?;
    only("isTriuMask", p.triangle, 0)?;
    only("clampType", p.clamp, 0)?;
    only("kvcacheCfg", p.caches, 0)?;
    only("scaleType", p.scale_kind, 0)?;
    only("inputLayout", p.layout, 0)?;
    only("mlaVHeadSize", p.value_head, 0)?;
    only("cacheType", p.cache_kind, 0)?;
    only("windowSize", p.window, 0)
}

fn one(call: OpCall) -> Vec<OpCall> {
    vec![call]
}

/// A call by parameter name; what is not named is absent or zero.
struct Build {
    op: OpId,
    set: Vec<(&'static str, Value)>,
}

enum Value {
    Tensor(TensorDesc),
    List(TensorDesc),
    Ints(Vec<i64>),
    Text(&'static str),
    Plain(Arg),
}

impl Build {
    fn new(op: OpId) -> Self {
        Self { op, set: Vec::new() }
    }

    fn set(mut self, name: &'static str, value: Value) -> Self {
        debug_assert!(self.op.signature().position(name).is_some(), "{} has no {name}", self.op.name());
        self.set.push((name, value));
        self
    }

    fn tensor(self, name: &'static str, desc: TensorDesc) -> Self {
        self.set(name, Value::Tensor(desc))
    }

    fn plain(self, name: &'static str, arg: Arg) -> Self {
        self.set(name, Value::Plain(arg))
    }

    fn call(self) -> OpCall {
        let mut call = OpCall::new(self.op);
        for parameter in self.op.signature().params {
            match (self.set.iter().find(|(name, _)| *name == parameter.name).map(|(_, value)| value), parameter.kind) {
                (Some(Value::Tensor(desc)), _) => call.push_tensor(Some(*desc)),
                (Some(Value::List(desc)), _) => call.push_tensor_list(&[*desc]),
                (Some(Value::Ints(values)), _) => call.push_ints(Some(values)),
                (Some(Value::Text(text)), _) => call.push_str(text.as_bytes()),
                (Some(Value::Plain(arg)), _) => call.push(*arg),
                (None, Parameter::Scalar) => call.push(single(1.0)),
                (None, Parameter::Bool) => call.push(Arg::Bool(false)),
                (None, Parameter::I8 | Parameter::I32 | Parameter::I64) => call.push(Arg::Int(0)),
                (None, Parameter::F32 | Parameter::F64) => call.push(Arg::Float(0.0)),
                (None, _) => call.push(Arg::Absent),
            };
        }
        call
    }
}

fn single(value: f32) -> Arg {
    Arg::Scalar(Scalar { dtype: DataType::F32, bits: u64::from(value.to_bits()) })
}

/// The same memory with another shape.
fn shaped(desc: &TensorDesc, dims: &[i64], name: &str) -> Result<TensorDesc, Failure> {
    let wanted = TensorDesc::contiguous(desc.addr, desc.dtype, dims);
    if wanted.elements() != desc.elements() || dims.iter().any(|&d| d < 0) {
        return Err(Failure::invalid(format!("{name}: shape {:?} does not make {dims:?}", desc.dims())));
    }
    Ok(wanted)
}

fn matrix(tensor: &Tensor, transposed: bool, name: &str) -> Result<TensorDesc, Failure> {
    let mut desc = tensor.desc(name)?;
    if desc.ndim != 2 {
        return Err(Failure::invalid(format!("{name}: shape {:?}, want a matrix", desc.dims())));
    }
    if transposed {
        desc.dims.swap(0, 1);
        desc.strides.swap(0, 1);
    }
    Ok(desc)
}

fn linear(p: &LinearParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<OpCall, Failure> {
    let left = matrix(&inputs[0], p.transpose_a != 0, "x")?;
    let right = matrix(&inputs[1], p.transpose_b != 0, "weight")?;
    let out = outputs[0].desc("out")?;
    if inputs.len() == 2 {
        return Ok(Build::new(ops::aclnnMatmul).tensor("self", left).tensor("mat2", right).tensor("out", out).call());
    }
    let name = if p.accumulate != 0 { "accum" } else { "bias" };
    let mut added = inputs[2].desc(name)?;
    if added.ndim == 2 && p.has_bias != 0 && added.dims[0] == 1 {
        added = shaped(&added, &[added.dims[1]], name)?;
    }
    let call = Build::new(ops::aclnnAddmm).tensor("self", added).tensor("mat1", left).tensor("mat2", right);
    Ok(call.tensor("out", out).call())
}

/// Operands and operator of an element-wise operation.
fn elewise_row(p: &ElewiseParam) -> Result<(usize, OpId), Failure> {
    let row = ELEWISE.iter().find(|(kind, ..)| *kind == p.kind).map(|&(_, operands, op)| (operands, op));
    row.ok_or_else(|| Failure::unsupported(format!("elewiseType {} is not supported", p.kind)))
}

fn elewise(p: &ElewiseParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<OpCall, Failure> {
    let (first, out) = (inputs[0].desc("x")?, outputs[0].desc("out")?);
    if p.kind == CAST {
        let to = if p.out_type == TYPE_UNDEFINED { out.dtype as i32 } else { p.out_type };
        let cast = Build::new(ops::aclnnCast).tensor("self", first).plain("dtype", Arg::DType(to));
        return Ok(cast.tensor("out", out).call());
    }
    let call = Build::new(elewise_row(p)?.1).tensor("self", first).tensor("out", out);
    let call = if inputs.len() == 2 { call.tensor("other", inputs[1].desc("y")?) } else { call };
    Ok(if p.kind == MULS { call.plain("other", single(p.factor)) } else { call }.call())
}

fn rms_norm(p: &RmsNormParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<OpCall, Failure> {
    let (x, y) = (inputs[0].desc("x")?, outputs[0].desc("y")?);
    if p.layer == NORM_ALONE {
        let norm = Build::new(ops::aclnnRmsNorm).tensor("x", x).tensor("gamma", inputs[1].desc("gamma")?);
        return Ok(norm.plain("epsilon", Arg::Float(f64::from(p.norm.epsilon))).tensor("yOut", y).call());
    }
    let norm = Build::new(ops::aclnnAddRmsNorm).tensor("x1", x).tensor("x2", inputs[1].desc("residual")?);
    let norm = norm.tensor("gamma", inputs[2].desc("gamma")?).tensor("yOut", y);
    let epsilon = Arg::Float(f64::from(p.before.epsilon));
    Ok(norm.tensor("xOut", outputs[1].desc("sum")?).plain("epsilon", epsilon).call())
}

/// Heads of queries, and of keys.
fn heads(heads: i32, kv_heads: i32) -> (i64, i64) {
    let heads = i64::from(heads);
    (heads, if kv_heads == 0 { heads } else { i64::from(kv_heads) })
}

/// `[T, …]` as `[T, heads, size]`.
fn with_heads(tensor: &Tensor, heads: i64, name: &str) -> Result<TensorDesc, Failure> {
    let desc = tensor.desc(name)?;
    let tokens = desc.dims().first().copied().unwrap_or(0);
    let size = desc.dims().iter().skip(1).product::<i64>().checked_div(heads).unwrap_or(0);
    shaped(&desc, &[tokens, heads, size], name)
}

fn attention(scale: f32, heads: i64, kv_heads: i64, layout: &'static str) -> Build {
    Build::new(ops::aclnnFusedInferAttentionScoreV3)
        .plain("scaleValue", Arg::Float(f64::from(scale)))
        .plain("numHeads", Arg::Int(heads))
        .plain("numKeyValueHeads", Arg::Int(kv_heads))
        .plain("preTokens", Arg::Int(i64::from(i32::MAX)))
        .plain("nextTokens", Arg::Int(i64::from(i32::MAX)))
        .set("inputLayout", Value::Text(layout))
}

fn self_attention(p: &SelfAttentionParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<OpCall, Failure> {
    let (heads, kv_heads) = heads(p.heads, p.kv_heads);
    let mut ends = inputs[3].host_ints("seqLen")?;
    let mut end = 0i64;
    for length in &mut ends {
        end = end.saturating_add(*length);
        *length = end;
    }
    let call = attention(p.scale, heads, kv_heads, "TND")
        .tensor("query", with_heads(&inputs[0], heads, "query")?)
        .set("key", Value::List(with_heads(&inputs[1], kv_heads, "key")?))
        .set("value", Value::List(with_heads(&inputs[2], kv_heads, "value")?))
        .set("actualSeqLengthsOptional", Value::Ints(ends.clone()))
        .set("actualSeqLengthsKvOptional", Value::Ints(ends));
    Ok(call.tensor("attentionOut", with_heads(&outputs[0], heads, "out")?).call())
}

/// As [`self_attention`] with a mask that is added to the scaled scores: an operator a sequence. The mask is as large as the longest
/// sequence, for all sequences or for each.
fn masked_attention(p: &SelfAttentionParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Vec<OpCall>, Failure> {
    let (heads, kv_heads) = heads(p.heads, p.kv_heads);
    let lengths = inputs[4].host_ints("seqLen")?;
    let (query, out) = (with_heads(&inputs[0], heads, "query")?, with_heads(&outputs[0], heads, "out")?);
    let (key, value) = (with_heads(&inputs[1], kv_heads, "key")?, with_heads(&inputs[2], kv_heads, "value")?);
    let mask = inputs[3].desc("attnMask")?;
    if mask.dtype == DataType::BF16 {
        // Some callers write ones there in place of what is to be added, which nothing tells.
        return Err(Failure::unsupported("attnMask: bfloat16 is not supported (float16, float32)"));
    }
    // From one sequence to the next, from one head to the next, and the longest sequence.
    let (each, head, longest) = match (p.mask, mask.dims()) {
        (MASK, &[rows, columns]) => (0, 0, rows.min(columns)),
        (MASK, &[_, rows, columns]) => (rows.saturating_mul(columns), 0, rows.min(columns)),
        (MASK_OF_HEADS, &[of, rows, columns]) if of == heads => (0, rows.saturating_mul(columns), rows.min(columns)),
        (MASK_OF_HEADS, &[_, of, rows, columns]) if of == heads => {
            let head = rows.saturating_mul(columns);
            (head.saturating_mul(of), head, rows.min(columns))
        }
        (kind, dims) => return Err(Failure::invalid(format!("attnMask: shape {dims:?} with maskType {kind}"))),
    };
    let width = mask.dims().last().copied().unwrap_or(0);
    let several = if each == 0 { i64::MAX } else { mask.dims[0] };
    let mut calls = Vec::with_capacity(lengths.len());
    let mut first = 0i64;
    for (sequence, &length) in (0i64..).zip(&lengths) {
        if !(0..=longest).contains(&length) || sequence >= several {
            let dims = mask.dims();
            return Err(Failure::invalid(format!(
                "attnMask: shape {dims:?} for {length} tokens of sequence {sequence}"
            )));
        }
        let rows = |desc: &TensorDesc| {
            let (heads, size) = (desc.dims[1], desc.dims[2]);
            let mut part = TensorDesc::contiguous(desc.addr, desc.dtype, &[1, length, heads, size]);
            part.offset = first.saturating_mul(heads).saturating_mul(size);
            part
        };
        let mut added = TensorDesc::contiguous(mask.addr, mask.dtype, &[1, heads, length, length]);
        added.offset = sequence.saturating_mul(each);
        added.strides[..4].copy_from_slice(&[0, head, width, 1]);
        if length > 0 {
            let call = attention(p.scale, heads, kv_heads, "BSND")
                .tensor("query", rows(&query))
                .set("key", Value::List(rows(&key)))
                .set("value", Value::List(rows(&value)))
                .tensor("pseShiftOptional", added);
            calls.push(call.tensor("attentionOut", rows(&out)).call());
        }
        first = first.saturating_add(length);
    }
    Ok(calls)
}

fn paged_attention(p: &PagedAttentionParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<OpCall, Failure> {
    let (heads, kv_heads) = heads(p.heads, p.kv_heads);
    // One token a sequence: [B, H, D] is [B, 1, H, D].
    let tokens = |tensor: &Tensor, name: &str| {
        let desc = with_heads(tensor, heads, name)?;
        shaped(&desc, &[desc.dims[0], 1, heads, desc.dims[2]], name)
    };
    let cache = |tensor: &Tensor, name: &str| {
        let desc = tensor.desc(name)?;
        let &[blocks, block, heads, size] = desc.dims() else {
            return Err(Failure::invalid(format!("{name}: shape {:?}, want four dimensions", desc.dims())));
        };
        shaped(&desc, &[blocks, block, heads.saturating_mul(size)], name)
    };
    let (key, value) = (cache(&inputs[1], "keyCache")?, cache(&inputs[2], "valueCache")?);
    let call = attention(p.scale, heads, kv_heads, "BSND")
        .tensor("query", tokens(&inputs[0], "query")?)
        .plain("blockSize", Arg::Int(key.dims[1]))
        .set("key", Value::List(key))
        .set("value", Value::List(value))
        .tensor("blockTableOptional", inputs[3].desc("blockTables")?)
        .set("actualSeqLengthsKvOptional", Value::Ints(inputs[4].host_ints("contextLens")?));
    Ok(call.tensor("attentionOut", tokens(&outputs[0], "out")?).call())
}

fn reshape_and_cache(inputs: &[Tensor], outputs: &[Tensor]) -> Result<OpCall, Failure> {
    for (position, name) in [(0, "keyCache"), (1, "valueCache")] {
        if inputs[2 + position].desc(name)? != outputs[position].desc(name)? {
            return Err(Failure::invalid(format!("{name}: the caches that are read are not those that are written")));
        }
    }
    let call = Build::new(ops::aclnnScatterPaKvCache)
        .tensor("key", inputs[0].desc("key")?)
        .tensor("value", inputs[1].desc("value")?)
        .tensor("keyCacheRef", outputs[0].desc("keyCache")?)
        .tensor("valueCacheRef", outputs[1].desc("valueCache")?)
        .tensor("slotMapping", inputs[4].desc("slotMapping")?);
    Ok(call.call())
}

/// Queries and keys may have different numbers of heads, so each is an operator of its own. The fifth input, the number of
/// tokens, says what the shapes say.
fn rope(p: &RopeParam, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Vec<OpCall>, Failure> {
    let (cos, sin) = (inputs[2].desc("cos")?, inputs[3].desc("sin")?);
    let &[tokens, size] = cos.dims() else {
        return Err(Failure::invalid(format!("cos: shape {:?}, want two dimensions", cos.dims())));
    };
    let interleaved = match i64::from(p.coefficient) {
        c if c == i64::from(HALVES) => 0,
        c if c == size => 1,
        other => {
            let text = format!("rotaryCoeff {other} is not supported with tables of width {size} (2, {size})");
            return Err(Failure::unsupported(text));
        }
    };
    let table = |desc: &TensorDesc, name: &str| shaped(desc, &[1, tokens, 1, size], name);
    let (cos, sin) = (table(&cos, "cos")?, table(&sin, "sin")?);
    let mut calls = Vec::with_capacity(2);
    for (position, name) in [(0, "query"), (1, "key")] {
        let desc = inputs[position].desc(name)?;
        let row = tokens.saturating_mul(size);
        let heads = if row == 0 { 0 } else { (desc.elements() as i64).checked_div(row).unwrap_or(0) };
        let dims = [1, tokens, heads, size];
        let call = Build::new(ops::aclnnRotaryPositionEmbedding)
            .tensor("x", shaped(&desc, &dims, name)?)
            .tensor("cos", cos)
            .tensor("sin", sin)
            .plain("mode", Arg::Int(interleaved))
            .tensor("out", shaped(&outputs[position].desc(name)?, &dims, name)?);
        calls.push(call.call());
    }
    Ok(calls)
}
