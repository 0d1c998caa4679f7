//! How each operator is weighed, decided once from its signature.
//!
//! A plan says which tensors cross HBM (and which only lend a few rows), what is counted as FLOP, and where the
//! parameters stand that the formulas need. It is built by name for the whole table on first use, so that weighing a
//! call compares no strings, and so that a new version of an operator (`…V4`) is covered by the names of its parameters.

use super::{OpClass, vector};
use acl_abi::{Kind, OpId, SIGNATURES, Signature};
use std::sync::LazyLock;

/// Positions in an attention operator's signature.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionParams {
    pub query: u8,
    pub key: u8,
    pub value: u8,
    pub layout: u8,
    pub query_rope: Option<u8>,
    pub key_rope: Option<u8>,
    pub mask: Option<u8>,
    pub block_table: Option<u8>,
    pub query_lens: Option<u8>,
    pub key_lens: Option<u8>,
    pub heads: Option<u8>,
    pub kv_heads: Option<u8>,
    pub sparse_mode: Option<u8>,
    pub next_tokens: Option<u8>,
    pub block_size: Option<u8>,
    /// Incremental operators: every sequence has one query token.
    pub one_query_token: bool,
    /// Matrix products beside the two of attention, as a factor: 1, or 2.5 for the gradient, which does five.
    pub products: f32,
}

/// What is counted as FLOP.
#[derive(Clone, Copy, Debug)]
pub(super) enum Compute {
    /// So many vector FLOP an element of the largest output.
    PerOutput(f32),
    /// So many vector FLOP an element of the largest tensor: reductions, sorts.
    PerInput(f32),
    /// A comparison an element of the largest tensor and level of a sort of its lines: those along the dimension in this
    /// parameter, or all of it.
    Sort { dim: Option<u8> },
    /// A matrix product of the parameters `a` and `b`.
    Product { a: u8, b: u8, out: Option<u8>, transpose_a: Option<u8>, transpose_b: Option<u8>, cube_math: Option<u8> },
    /// Attention.
    Attention(AttentionParams),
    /// A convolution, or `passes` products like it: every element of the output (of the input where the flag `transposed`
    /// is set) meets the weights of one of its channels.
    Convolution { weight: u8, input: u8, output: u8, transposed: u8, passes: u8 },
}

/// How one operator is weighed. Masks have one bit a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub compute: Compute,
    pub class: OpClass,
    /// Tensors that lend or take a few rows only: not counted.
    pub skip: u64,
    /// Tensors that cross HBM twice: changed in place, or rows read here and written there.
    pub twice: u64,
    /// Tensors that the operator writes: counted by elements, even where the view repeats memory.
    pub written: u64,
    /// Looks up rows of a table by token: begins a step.
    pub lookup: Option<u8>,
    /// Normalises the scores of attention that is spelt out in single operators.
    pub softmax: Option<u8>,
}

/// The plan of an operator.
pub(super) fn of(op: OpId) -> &'static Plan {
    static PLANS: LazyLock<Vec<Plan>> = LazyLock::new(|| SIGNATURES.iter().map(build).collect());
    &PLANS[usize::from(op.0)]
}

pub(super) fn is_convolution(name: &str) -> bool {
    matches!(name, "Convolution" | "ConvolutionBackward")
}

pub(super) fn is_product(name: &str) -> bool {
    let named = name.contains("Matmul") || name.contains("MatMul") || name.ends_with("ddmm") || name.ends_with("ddbmm");
    let exact = matches!(name, "Mm" | "Mv" | "Addmv" | "Dot" | "Gemm" | "AddmmWeightNz");
    let weight_only = name.starts_with("Trans") && name.ends_with("Weight") || name.starts_with("Calculate");
    (named || exact) && !weight_only
}

pub(super) fn is_collective(name: &str) -> bool {
    ["AllReduce", "AllGather", "AlltoAll", "ReduceScatter", "Distribute"].iter().any(|c| name.contains(c))
}

fn build(signature: &'static Signature) -> Plan {
    let name = signature.name.trim_start_matches("aclnn");
    let at = |names: &[&str]| -> Option<u8> { names.iter().find_map(|n| signature.position(n)).map(|i| i as u8) };
    let bit = |position: Option<u8>| position.map_or(0u64, |i| 1 << i);
    let tensors =
        || {
            signature.params.iter().enumerate().filter(|(_, p)| {
                matches!(p.kind, Kind::Tensor | Kind::TensorOut | Kind::TensorList | Kind::TensorListOut)
            })
        };

    let overwrites = matches!(name, "InplaceZero" | "InplaceOne" | "InplaceCopy" | "ForeachZeroInplace")
        || ["InplaceFill", "InplaceNormal", "InplaceUniform", "InplaceRandom", "InplaceBernoulli"]
            .iter()
            .any(|p| name.starts_with(p));
    let in_place = name.starts_with("Inplace");
    // Changed in place, though their names do not say so.
    let changed: &[&str] = match name {
        "ApplyAdam" => &["m", "v"],
        "ForeachNonFiniteCheckAndUnscale" => &["scaledGrads", "foundInf"],
        _ => &[],
    };
    let (mut written, mut twice, mut skip) = (0u64, 0u64, 0u64);
    for (i, p) in tensors() {
        let by_ref = p.name.ends_with("Ref") || (in_place && i == 0) || changed.contains(&p.name);
        let out = matches!(p.kind, Kind::TensorOut | Kind::TensorListOut)
            || p.name.ends_with("Out")
            || matches!(p.name, "out" | "output" | "y");
        if by_ref || out {
            written |= 1 << i;
        }
        if by_ref && !overwrites {
            twice |= 1 << i;
        }
    }
    if written == 0 {
        // An output that the header does not mark stands last.
        written = tensors().next_back().map_or(0, |(i, _)| 1 << i);
    }

    // Rows of a table: what crosses HBM is the rows, read here and written there, not the table.
    let mut lookup = None;
    match name {
        "InplaceScatterValue" => {
            // A value for each index.
            skip |= bit(at(&["selfRef"]));
            twice |= bit(at(&["index"]));
        }
        "Embedding" => {
            skip |= bit(at(&["weight"]));
            twice |= bit(at(&["out"]));
            lookup = at(&["indices"]);
        }
        "IndexSelect" | "Gather" | "GatherV2" | "GatherV3" | "GatherNd" | "Index" | "Take" => {
            skip |= bit(at(&["self"]));
            twice |= bit(at(&["out"]));
        }
        "ScatterPaKvCache" => {
            skip |= bit(at(&["keyCacheRef"])) | bit(at(&["valueCacheRef"]));
            twice |= bit(at(&["key"])) | bit(at(&["value"]));
        }
        "InplaceIndexCopy"
        | "InplaceScatter"
        | "InplaceScatterReduce"
        | "InplaceScatterUpdate"
        | "InplacePut"
        | "InplaceQuantScatter"
        | "InplaceQuantScatterV2"
        | "IndexPutImpl"
        | "ScatterNdUpdate" => {
            skip |= bit(at(&["selfRef", "data", "varRef"]));
            twice |= bit(at(&["source", "src", "updates", "values"]));
        }
        _ => {}
    }
    twice &= !skip;
    written &= !skip;
    if written == 0 {
        // Rows go into a table that is not counted: the rows are what is worked on.
        written = twice;
    }

    // An operator that nobody thought of counts one an element of what it writes.
    let vector = |name: &str| match vector::rule(name) {
        Some(Compute::Sort { .. }) => Compute::Sort { dim: at(&["dim"]) },
        rule => rule.unwrap_or(Compute::PerOutput(1.0)),
    };
    let attention = name.contains("FlashAttention") || name.contains("FusedInferAttentionScore");
    let compute = match (at(&["query"]), at(&["key", "keyIn"]), at(&["value"]), at(&["inputLayout"])) {
        (Some(query), Some(key), Some(value), Some(layout)) if attention => {
            let incremental = name.starts_with("Incre");
            let lens = at(&["actualSeqLengthsOptional", "actualSeqLengths", "actualSeqQLenOptional"]);
            Compute::Attention(AttentionParams {
                query,
                key,
                value,
                layout,
                query_rope: at(&["queryRopeOptional", "queryRope", "query_rope"]),
                key_rope: at(&["keyRopeOptional", "keyRope", "key_rope"]),
                mask: at(&["attenMaskOptional", "attenMask"]),
                block_table: at(&["blockTableOptional", "blockTable", "blocktable"]),
                query_lens: if incremental { None } else { lens },
                key_lens: if incremental {
                    lens
                } else {
                    at(&["actualSeqLengthsKvOptional", "actualSeqLengthsKv", "actualSeqKvLenOptional"])
                },
                heads: at(&["numHeads", "headNum"]),
                kv_heads: at(&["numKeyValueHeads"]),
                sparse_mode: at(&["sparseMode"]),
                next_tokens: at(&["nextTokens"]),
                block_size: at(&["blockSize"]),
                one_query_token: incremental,
                products: if name.contains("Grad") { 2.5 } else { 1.0 },
            })
        }
        _ if is_convolution(name) => {
            let out = at(&["output", "gradOutput"]).unwrap_or(0);
            let (weight, input) = (at(&["weight"]).unwrap_or(0), at(&["input"]).unwrap_or(0));
            let passes = if name == "Convolution" { 1 } else { 2 };
            Compute::Convolution { weight, input, output: out, transposed: at(&["transposed"]).unwrap_or(0), passes }
        }
        _ if is_product(name) => {
            let pairs: [(&[&str], &[&str]); 7] = [
                (&["mat"], &["vec"]),
                (&["mat1"], &["mat2"]),
                (&["batch1"], &["batch2"]),
                (&["x1", "A"], &["x2", "B"]),
                (&["gmmX", "x"], &["gmmWeight", "weight", "w", "sparseWeight", "wHigh"]),
                (&["self"], &["mat2", "vec", "tensor"]),
                (&["self"], &["other"]),
            ];
            match pairs.iter().find_map(|(a, b)| Some((at(a)?, at(b)?))) {
                Some((a, b)) => Compute::Product {
                    a,
                    b,
                    out: at(&["out", "output", "y", "yOut", "gmmY", "yRef", "selfRef", "normOut"]),
                    transpose_a: at(&["transposeX1", "adjX1", "transposeX", "transA"]),
                    transpose_b: at(&[
                        "transposeX2",
                        "adjX2",
                        "transposeW",
                        "transposeWeight",
                        "transGmmWeight",
                        "transB",
                    ]),
                    cube_math: at(&["cubeMathType"]),
                },
                None => vector(name),
            }
        }
        _ => vector(name),
    };
    let softmax = if name.ends_with("Softmax") && !name.starts_with("Log") { at(&["self", "x"]) } else { None };
    let class = match compute {
        _ if is_collective(name) => OpClass::Communication,
        Compute::Product { .. } | Compute::Attention(_) | Compute::Convolution { .. } => OpClass::Matmul,
        _ => OpClass::Vector,
    };
    Plan { compute, class, skip, twice, written, lookup, softmax }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_room_for_every_signature() {
        for s in SIGNATURES {
            assert!(s.params.len() <= 64, "{} has {} parameters", s.name, s.params.len());
        }
    }

    #[test]
    fn plans_find_the_parameters_by_name() {
        for (name, class, compute) in [
            ("aclnnMm", OpClass::Matmul, "Product { a: 0, b: 1, out: Some(2)"),
            ("aclnnAddmm", OpClass::Matmul, "Product { a: 1, b: 2, out: Some(5)"),
            ("aclnnBaddbmm", OpClass::Matmul, "Product { a: 1, b: 2"),
            ("aclnnGroupedMatmulV4", OpClass::Matmul, "Product { a: 0, b: 1"),
            ("aclnnQuantMatmulV4", OpClass::Matmul, "Product { a: 0, b: 1"),
            ("aclnnMatmulAllReduce", OpClass::Communication, "Product { a: 0, b: 1"),
            ("aclnnFusedInferAttentionScoreV2", OpClass::Matmul, "Attention"),
            ("aclnnFusedInferAttentionScoreV4", OpClass::Matmul, "Attention"),
            ("aclnnFlashAttentionScore", OpClass::Matmul, "Attention"),
            ("aclnnFlashAttentionScoreGradV2", OpClass::Matmul, "Attention"),
            ("aclnnConvolutionBackward", OpClass::Matmul, "Convolution"),
            ("aclnnBatchNormBackward", OpClass::Vector, "PerOutput(8"),
            ("aclnnLogSoftmaxBackward", OpClass::Vector, "PerOutput(8"),
            ("aclnnTransMatmulWeight", OpClass::Vector, "PerOutput"),
            ("aclnnAddmv", OpClass::Matmul, "Product { a: 1, b: 2"),
            ("aclnnCummax", OpClass::Vector, "PerInput"),
            ("aclnnSort", OpClass::Vector, "Sort { dim: Some(2) }"),
            ("aclnnRandperm", OpClass::Vector, "Sort { dim: None }"),
            ("aclnnGemmaRmsNorm", OpClass::Vector, "PerOutput(5"),
            ("aclnnArgMax", OpClass::Vector, "PerInput"),
            ("aclnnInplaceMul", OpClass::Vector, "PerOutput(1"),
        ] {
            let plan = of(OpId::by_name(name).unwrap_or_else(|| panic!("no {name}")));
            assert_eq!(plan.class, class, "{name}");
            let got = format!("{:?}", plan.compute);
            assert!(got.starts_with(compute), "{name}: {got}");
        }
    }
}
