//! Operator calls of a decoder step with the shapes that unmodified engines send.
//!
//! For whoever needs a step without an engine: the tests of the cost model and the classifier, and the simulator. A
//! [`Batch`] says what the step works on; [`step`] lists its operators in the order in which the reference engine launches
//! them. Addresses are placeholders: nothing here runs, everything here can be weighed ([`crate::work`]) and classified
//! ([`crate::Classifier`]).

use crate::model::Model;
use acl_abi::{Arg, DataType, Kind, OpCall, OpId, Scalar, TensorDesc};

/// Builds a call by parameter name; what is not named is absent or zero.
pub struct Build {
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
    /// A call of the operator of this name.
    pub fn new(name: &'static str) -> Self {
        Self { name, set: Vec::new() }
    }

    fn set(mut self, name: &'static str, value: Value) -> Self {
        self.set.push((name, value));
        self
    }

    /// A contiguous tensor.
    pub fn tensor(self, name: &'static str, dtype: DataType, dims: &[i64]) -> Self {
        self.set(name, Value::Tensor(TensorDesc::contiguous(PLACEHOLDER, dtype, dims)))
    }

    /// Any tensor.
    pub fn desc(self, name: &'static str, desc: TensorDesc) -> Self {
        self.set(name, Value::Tensor(desc))
    }

    /// A list of contiguous tensors.
    pub fn list(self, name: &'static str, dtype: DataType, dims: &[&[i64]]) -> Self {
        let tensors = dims.iter().map(|d| TensorDesc::contiguous(PLACEHOLDER, dtype, d)).collect();
        self.set(name, Value::List(tensors))
    }

    /// An array of integers on the host.
    pub fn ints(self, name: &'static str, ints: &[i64]) -> Self {
        self.set(name, Value::Ints(ints.to_vec()))
    }

    /// An integer.
    pub fn int(self, name: &'static str, int: i64) -> Self {
        self.set(name, Value::Int(int))
    }

    /// A string.
    pub fn str(self, name: &'static str, text: &'static str) -> Self {
        self.set(name, Value::Str(text))
    }

    /// The call.
    ///
    /// # Panics
    /// If there is no such operator, or it has no parameter of a name that was given.
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

/// Address that tensors are given.
const PLACEHOLDER: u64 = 0x1000;
/// Rows of the rotary tables.
const POSITIONS: i64 = 32_768;
const BF16: DataType = DataType::BF16;

/// The weight `[n, k]` as the right operand `[k, n]` of a product.
fn transposed(k: u64, n: u64) -> TensorDesc {
    let mut weight = TensorDesc::contiguous(PLACEHOLDER, BF16, &[k as i64, n as i64]);
    (weight.strides[0], weight.strides[1]) = (1, k as i64);
    weight
}

/// `[m, k] · [k, n]` with the weight handed over as the transposed view of `[n, k]`.
pub fn mm(m: u64, k: u64, n: u64) -> OpCall {
    Build::new("aclnnMm")
        .tensor("self", BF16, &[m as i64, k as i64])
        .desc("mat2", transposed(k, n))
        .tensor("out", BF16, &[m as i64, n as i64])
        .call()
}

/// The batch that one step works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Query tokens a sequence.
    pub queries: Vec<u64>,
    /// Context a sequence, the queries included.
    pub contexts: Vec<u64>,
    /// Keys come from the paged cache.
    pub paged: bool,
}

impl Batch {
    /// One whole prompt.
    pub fn prefill(tokens: u64) -> Self {
        Self { queries: vec![tokens], contexts: vec![tokens], paged: false }
    }

    /// One token for each of `batch` sequences with `context` tokens.
    pub fn decode(batch: usize, context: u64) -> Self {
        Self { queries: vec![1; batch], contexts: vec![context; batch], paged: true }
    }

    /// Query tokens of all sequences.
    pub fn tokens(&self) -> u64 {
        self.queries.iter().sum()
    }
}

/// FusedInferAttentionScoreV3 as vLLM-Ascend calls it (TND, sparse mode 3, compressed mask).
pub fn attention(m: &Model, batch: &Batch) -> OpCall {
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

/// Every operator of one step of a Qwen2 model, in the order in which the reference engine launches them: q, k and v in
/// one product with bias, 11 operators a layer. `rows` of the tokens go through the output layer; with none there is no
/// output layer at all (a piece of a prompt).
pub fn step(m: &Model, batch: &Batch, rows: u64) -> Vec<OpCall> {
    let t = batch.tokens();
    let (ti, h, f) = (t as i64, m.hidden as i64, m.ffn as i64);
    let (heads, kv, d) = (m.heads as i64, m.kv_heads as i64, m.head_dim as i64);
    let qkv = m.head_dim * (m.heads + 2 * m.kv_heads);
    let states: &[i64] = &[ti, h];
    let look_up = |table: &[i64], rows: i64| {
        Build::new("aclnnIndexSelect")
            .tensor("self", BF16, table)
            .tensor("index", DataType::I32, &[rows])
            .tensor("out", BF16, &[rows, table[1]])
            .call()
    };
    let product = |k: u64, n: u64, rows: u64| {
        Build::new("aclnnMatmul")
            .tensor("self", BF16, &[rows as i64, k as i64])
            .desc("mat2", transposed(k, n))
            .tensor("out", BF16, &[rows as i64, n as i64])
            .call()
    };
    let rotate = |heads: i64| {
        Build::new("aclnnRotaryPositionEmbedding")
            .tensor("x", BF16, &[1, ti, heads, d])
            .tensor("cos", BF16, &[1, ti, 1, d])
            .tensor("sin", BF16, &[1, ti, 1, d])
            .tensor("out", BF16, &[1, ti, heads, d])
            .call()
    };
    let add_norm = || {
        Build::new("aclnnAddRmsNorm")
            .tensor("x1", BF16, states)
            .tensor("x2", BF16, states)
            .tensor("gamma", BF16, &[h])
            .tensor("yOut", BF16, states)
            .tensor("rstdOut", DataType::F32, &[ti, 1])
            .tensor("xOut", BF16, states)
            .call()
    };
    let mut calls = vec![
        Build::new("aclnnEmbedding")
            .tensor("weight", BF16, &[m.vocab as i64, h])
            .tensor("indices", DataType::I32, &[ti])
            .tensor("out", BF16, states)
            .call(),
        look_up(&[POSITIONS, d], ti),
        look_up(&[POSITIONS, d], ti),
        Build::new("aclnnRmsNorm")
            .tensor("x", BF16, states)
            .tensor("gamma", BF16, &[h])
            .tensor("yOut", BF16, states)
            .tensor("rstdOut", DataType::F32, &[ti, 1])
            .call(),
    ];
    for _ in 0..m.layers {
        calls.push(
            Build::new("aclnnAddmm")
                .tensor("self", BF16, &[qkv as i64])
                .tensor("mat1", BF16, states)
                .desc("mat2", transposed(m.hidden, qkv))
                .tensor("out", BF16, &[ti, qkv as i64])
                .call(),
        );
        calls.push(rotate(heads));
        calls.push(rotate(kv));
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
        calls.push(product(m.heads * m.head_dim, m.hidden, t));
        calls.push(add_norm());
        calls.push(product(m.hidden, 2 * m.ffn, t));
        calls.push(
            Build::new("aclnnSwiGlu")
                .tensor("x", BF16, &[ti, 2 * f])
                .int("dim", -1)
                .tensor("out", BF16, &[ti, f])
                .call(),
        );
        calls.push(product(m.ffn, m.hidden, t));
        calls.push(add_norm());
    }
    if rows == 0 {
        return calls;
    }
    if rows < t {
        calls.push(look_up(&[ti, h], rows as i64));
    }
    calls.push(product(m.hidden, m.vocab, rows));
    calls.push(
        Build::new("aclnnArgMax")
            .tensor("self", BF16, &[rows as i64, m.vocab as i64])
            .int("dim", -1)
            .tensor("out", DataType::I64, &[rows as i64])
            .call(),
    );
    calls
}
