//! Operator calls of a Qwen2 step with the shapes that unmodified engines send, for the tests of this crate.

use crate::model::Model;
use acl_abi::{Arg, DataType, Kind, OpCall, OpId, Scalar, TensorDesc};

/// Builds a call by parameter name; what is not named is absent or zero.
pub(crate) struct Build {
    name: &'static str,
    set: Vec<(&'static str, Value)>,
}

#[derive(Clone)]
enum Value {
    Tensor(TensorDesc),
    List(Vec<TensorDesc>),
    Ints(Vec<i64>),
    Int(i64),
    Str(&'static str),
}

impl Build {
    pub fn new(name: &'static str) -> Self {
        Self { name, set: Vec::new() }
    }

    fn set(mut self, name: &'static str, value: Value) -> Self {
        self.set.push((name, value));
        self
    }

    pub fn tensor(self, name: &'static str, dtype: DataType, dims: &[i64]) -> Self {
        self.set(name, Value::Tensor(TensorDesc::contiguous(0x1000, dtype, dims)))
    }

    pub fn desc(self, name: &'static str, desc: TensorDesc) -> Self {
        self.set(name, Value::Tensor(desc))
    }

    pub fn list(self, name: &'static str, dtype: DataType, dims: &[&[i64]]) -> Self {
        let tensors = dims.iter().map(|d| TensorDesc::contiguous(0x1000, dtype, d)).collect();
        self.set(name, Value::List(tensors))
    }

    pub fn ints(self, name: &'static str, ints: &[i64]) -> Self {
        self.set(name, Value::Ints(ints.to_vec()))
    }

    pub fn int(self, name: &'static str, int: i64) -> Self {
        self.set(name, Value::Int(int))
    }

    pub fn str(self, name: &'static str, text: &'static str) -> Self {
        self.set(name, Value::Str(text))
    }

    pub fn call(self) -> OpCall {
        let op = OpId::by_name(self.name).unwrap_or_else(|| panic!("no operator {}", self.name));
        let mut call = OpCall::new(op);
        for (name, _) in &self.set {
            assert!(op.signature().position(name).is_some(), "{} has no parameter {name}", self.name);
        }
        for p in op.signature().params {
            let value = self.set.iter().find(|(n, _)| *n == p.name).map(|(_, v)| v.clone());
            match (value, p.kind) {
                (Some(Value::Tensor(t)), _) => call.push_tensor(Some(t)),
                (Some(Value::List(l)), _) => call.push_tensor_list(&l),
                (Some(Value::Ints(l)), _) => call.push_ints(Some(&l)),
                (Some(Value::Int(v)), _) => call.push(Arg::Int(v)),
                (Some(Value::Str(s)), _) => call.push_str(s.as_bytes()),
                (None, Kind::Scalar) => call.push(Arg::Scalar(Scalar { dtype: DataType::F32, bits: 0 })),
                (None, Kind::Bool) => call.push(Arg::Bool(false)),
                (None, Kind::I8 | Kind::I32 | Kind::I64) => call.push(Arg::Int(0)),
                (None, Kind::U64) => call.push(Arg::UInt(0)),
                (None, Kind::F32 | Kind::F64) => call.push(Arg::Float(0.0)),
                (None, Kind::DType) => call.push(Arg::DType(27)),
                (None, _) => call.push(Arg::Absent),
            };
        }
        call
    }
}

const BF16: DataType = DataType::BF16;

/// `[m, k] · [k, n]` with the weight handed over as the transposed view of `[n, k]`.
pub(crate) fn mm(m: u64, k: u64, n: u64) -> OpCall {
    let (m, k, n) = (m as i64, k as i64, n as i64);
    let mut weight = TensorDesc::contiguous(0x1000, BF16, &[k, n]);
    (weight.strides[0], weight.strides[1]) = (1, k);
    Build::new("aclnnMm").tensor("self", BF16, &[m, k]).desc("mat2", weight).tensor("out", BF16, &[m, n]).call()
}

/// The batch that one step works on.
#[derive(Clone)]
pub(crate) struct Batch {
    /// Query tokens a sequence.
    pub queries: Vec<u64>,
    /// Context a sequence, the queries included.
    pub contexts: Vec<u64>,
    /// Keys come from the paged cache.
    pub paged: bool,
}

impl Batch {
    pub fn prefill(tokens: u64) -> Self {
        Self { queries: vec![tokens], contexts: vec![tokens], paged: false }
    }

    pub fn decode(batch: usize, context: u64) -> Self {
        Self { queries: vec![1; batch], contexts: vec![context; batch], paged: true }
    }

    pub fn tokens(&self) -> u64 {
        self.queries.iter().sum()
    }
}

/// FusedInferAttentionScoreV3 as vLLM-Ascend calls it (TND, sparse mode 3, compressed mask).
pub(crate) fn attention(m: &Model, batch: &Batch) -> OpCall {
    let cumulative = |l: &[u64]| {
        let mut sum = 0;
        l.iter().map(|&n| (sum += n as i64, sum).1).collect::<Vec<i64>>()
    };
    let (t, h, kv, d) = (batch.tokens() as i64, m.heads as i64, m.kv_heads as i64, m.head_dim as i64);
    let mut b = Build::new("aclnnFusedInferAttentionScoreV3")
        .tensor("query", BF16, &[t, h, d])
        .tensor("attenMaskOptional", DataType::I8, &[2048, 2048])
        .ints("actualSeqLengthsOptional", &cumulative(&batch.queries))
        .int("numHeads", h)
        .int("numKeyValueHeads", kv)
        .int("preTokens", 2_147_483_647)
        .int("nextTokens", 2_147_483_647)
        .str("inputLayout", "TND")
        .int("sparseMode", 3)
        .tensor("attentionOut", BF16, &[t, h, d]);
    if batch.paged {
        let cache: &[i64] = &[4096, 128, kv * d];
        let columns = batch.contexts.iter().max().copied().unwrap_or(1).div_ceil(128) as i64;
        let contexts: Vec<i64> = batch.contexts.iter().map(|&c| c as i64).collect();
        b = b
            .list("key", BF16, &[cache])
            .list("value", BF16, &[cache])
            .tensor("blockTableOptional", DataType::I32, &[contexts.len() as i64, columns])
            .ints("actualSeqLengthsKvOptional", &contexts)
            .int("blockSize", 128);
    } else {
        b = b
            .list("key", BF16, &[&[t, kv, d]])
            .list("value", BF16, &[&[t, kv, d]])
            .ints("actualSeqLengthsKvOptional", &cumulative(&batch.contexts));
    }
    b.call()
}

/// Every operator of one step, in order, with q, k and v in one product.
pub(crate) fn step(m: &Model, batch: &Batch) -> Vec<OpCall> {
    let t = batch.tokens();
    let (ti, h, f) = (t as i64, m.hidden as i64, m.ffn as i64);
    let (heads, kv, d) = (m.heads as i64, m.kv_heads as i64, m.head_dim as i64);
    let qkv = m.head_dim * (m.heads + 2 * m.kv_heads);
    let add_norm = || {
        let rows: &[i64] = &[ti, h];
        Build::new("aclnnAddRmsNorm")
            .tensor("x1", BF16, rows)
            .tensor("x2", BF16, rows)
            .tensor("gamma", BF16, &[h])
            .tensor("yOut", BF16, rows)
            .tensor("rstdOut", DataType::F32, &[ti, 1])
            .tensor("xOut", BF16, rows)
            .call()
    };
    let mut calls = vec![
        Build::new("aclnnEmbedding")
            .tensor("weight", BF16, &[m.vocab as i64, h])
            .tensor("indices", DataType::I64, &[ti])
            .tensor("out", BF16, &[ti, h])
            .call(),
    ];
    for _ in 0..m.layers {
        calls.push(add_norm());
        calls.push(mm(t, m.hidden, qkv));
        calls.push(
            Build::new("aclnnApplyRotaryPosEmbV2")
                .tensor("queryRef", BF16, &[1, ti, heads, d])
                .tensor("keyRef", BF16, &[1, ti, kv, d])
                .tensor("cos", BF16, &[1, ti, 1, d])
                .tensor("sin", BF16, &[1, ti, 1, d])
                .call(),
        );
        calls.push(
            Build::new("aclnnScatterPaKvCache")
                .tensor("key", BF16, &[ti, kv, d])
                .tensor("keyCacheRef", BF16, &[4096, 128, kv, d])
                .tensor("slotMapping", DataType::I32, &[ti])
                .tensor("value", BF16, &[ti, kv, d])
                .tensor("valueCacheRef", BF16, &[4096, 128, kv, d])
                .call(),
        );
        calls.push(attention(m, batch));
        calls.push(mm(t, m.heads * m.head_dim, m.hidden));
        calls.push(add_norm());
        calls.push(mm(t, m.hidden, 2 * m.ffn));
        calls.push(
            Build::new("aclnnSwiGlu")
                .tensor("x", BF16, &[ti, 2 * f])
                .int("dim", -1)
                .tensor("out", BF16, &[ti, f])
                .call(),
        );
        calls.push(mm(t, m.ffn, m.hidden));
    }
    calls.push(add_norm());
    let b = batch.queries.len() as u64;
    calls.push(
        Build::new("aclnnIndexSelect")
            .tensor("self", BF16, &[ti, h])
            .tensor("index", DataType::I64, &[b as i64])
            .tensor("out", BF16, &[b as i64, h])
            .call(),
    );
    calls.push(mm(b, m.hidden, m.vocab));
    calls.push(
        Build::new("aclnnArgMax")
            .tensor("self", BF16, &[b as i64, m.vocab as i64])
            .int("dim", -1)
            .tensor("out", DataType::I64, &[b as i64])
            .call(),
    );
    calls
}
