//! What operators of the vector units are counted as, by name.
//!
//! Bandwidth decides the time of nearly all of these; the counts are the arithmetic of the textbook definition (a
//! transcendental counts 4, a power 8) and only matter where the operands are tiny. Forms of one operation (in place, with a
//! scalar, over lists, a later version) count the same: [`stem`] finds what they have in common. Every operator that the emulated
//! device computes has a rule here or a formula of its own, which a test holds.

use super::plan::Compute;
use Compute::{PerInput, PerOutput};

/// Operations element by element and what they count, an element of the result.
const ELEMENTWISE: &[(f32, &[&str])] = &[
    // Nothing but moving elements, comparing them, or looking at their bits.
    (
        1.0,
        &[
            "Abs",
            "Add",
            "Adds",
            "BitwiseAnd",
            "BitwiseNot",
            "BitwiseOr",
            "BitwiseXor",
            "Cast",
            "Ceil",
            "Complex",
            "ClampMax",
            "ClampMin",
            "Copy",
            "Eq",
            "Floor",
            "Frac",
            "Ge",
            "Gt",
            "IsFinite",
            "IsNegInf",
            "IsPosInf",
            "Le",
            "LeftShift",
            "LeftShifts",
            "LogicalAnd",
            "LogicalNot",
            "LogicalOr",
            "LogicalXor",
            "Lt",
            "Maximum",
            "Minimum",
            "Mul",
            "Muls",
            "NanToNum",
            "Ne",
            "Neg",
            "NpuFormatCast",
            "Real",
            "Relu",
            "RightShift",
            "Round",
            "RoundOffNumber",
            "Rsub",
            "Rsubs",
            "Sign",
            "Signbit",
            "Sub",
            "Subs",
            "Threshold",
            "ThresholdBackward",
            "TransMatmulWeight",
            "Trunc",
            "Angle",
            "MaskedScale",
        ],
    ),
    (
        2.0,
        &[
            "AddRelu",
            "Clamp",
            "DropoutDoMask",
            "DropoutV3Grad",
            "Equal",
            "HardshrinkBackward",
            "Hardshrink",
            "Hardtanh",
            "HardtanhBackward",
            "LeakyRelu",
            "LeakyReluBackward",
            "MaskedFill",
            "NonFiniteCheckAndUnscale",
            "Prelu",
            "SWhere",
            "Softshrink",
            "SoftshrinkBackward",
        ],
    ),
    // A division, or a few steps.
    (
        4.0,
        &[
            "Addcdiv",
            "Addcmul",
            "Addr",
            "AmpUpdateScale",
            "AscendQuant",
            "Div",
            "DivMod",
            "DivMods",
            "Divs",
            "DynamicQuant",
            "FloorDivide",
            "FloorDivides",
            "Fmod",
            "Hardsigmoid",
            "HardsigmoidBackward",
            "Hardswish",
            "HardswishBackward",
            "Lerp",
            "Lerps",
            "LinalgCross",
            "PreluBackward",
            "Reciprocal",
            "Remainder",
            "RoundDecimals",
            "SigmoidBackward",
            "TanhBackward",
            "IsClose",
        ],
    ),
    // One transcendental.
    (
        5.0,
        &[
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atan2",
            "Atanh",
            "Cos",
            "Cosh",
            "Elu",
            "EluBackward",
            "Celu",
            "Erf",
            "Erfc",
            "Exp",
            "Exp2",
            "Expm1",
            "Log",
            "Log10",
            "Log1p",
            "Log2",
            "Logit",
            "LogitGrad",
            "Rsqrt",
            "Sigmoid",
            "Silu",
            "Sin",
            "Sinc",
            "Sinh",
            "Sqrt",
            "Tan",
            "Tanh",
            "XLogY",
        ],
    ),
    (7.0, &["Glu", "SwiGlu", "ClippedSwiglu", "Swish", "SiluBackward", "LogSigmoidBackward", "SoftplusBackward"]),
    // Two.
    (
        10.0,
        &[
            "Erfinv",
            "FastGelu",
            "FastGeluBackward",
            "Gelu",
            "GeluMul",
            "GluBackward",
            "LogAddExp",
            "LogAddExp2",
            "LogSigmoid",
            "LogSigmoidForward",
            "Mish",
            "Pow",
            "Softplus",
            "SwiGluGrad",
            "FusedSgd",
        ],
    ),
    (16.0, &["ApplyAdam", "ApplyAdamW", "GeluBackward", "MishBackward"]),
    // A remainder a step of Euclid's, of which numbers below 2³² need about 20.
    (80.0, &["Gcd"]),
];

/// Operators that move elements, or make them from nothing: one an element of what they write.
const MOVES: &[&str] = &[
    "Arange",
    "Cat",
    "ChunkCat",
    "ConfusionTranspose",
    "ConstantPad",
    "Embedding",
    "Eye",
    "Fill",
    "Flip",
    "Gather",
    "Im2col",
    "Index",
    "Linspace",
    "LogSpace",
    "Masked",
    "Nonzero",
    "OneHot",
    "One",
    "Pad",
    "Permute",
    "Put",
    "Range",
    "Repeat",
    "Roll",
    "Scatter",
    "Slice",
    "Split",
    "Stack",
    "StridedSlice",
    "Take",
    "Transpose",
    "Tril",
    "Triu",
    "Unfold",
    "Zero",
    "ChannelShuffle",
    "AdvanceStep",
    "ReflectionPad",
    "ReplicationPad",
];

/// Operators that draw numbers: the generator's rounds and a transformation.
const RANDOM: &[&str] =
    &["Bernoulli", "Dropout", "Multinomial", "Normal", "Uniform", "Random", "RRelu", "SimThreadExponential"];

/// Operators that read every element of the input once to give less: one or two an element of the largest tensor.
const REDUCTIONS: &[&str] = &[
    "Amax",
    "Amin",
    "Aminmax",
    "Any",
    "ArgMax",
    "ArgMin",
    "Bincount",
    "CrossEntropyLoss",
    "Cummax",
    "Cummin",
    "Cumprod",
    "Cumsum",
    "Dot",
    "Histc",
    "IsIn",
    "KlDiv",
    "L1Loss",
    "LinalgVectorNorm",
    "Max",
    "Mean",
    "Min",
    "MseLoss",
    "Mv",
    "NLLLoss",
    "Norm",
    "Prod",
    "Reduce",
    "SmoothL1Loss",
    "SoftMarginLoss",
    "Std",
    "Sum",
    "Trace",
    "Var",
    "Renorm",
    "BinaryCrossEntropy",
    "Pdist",
    "Cdist",
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "AvgPool",
    "MaxPool",
    "MaxUnpool",
    "Upsample",
    "GridSampler",
];

/// Operators that order elements: the compare-exchange passes of a sort of their lines.
const SORTS: &[&str] = &[
    "Sort",
    "Argsort",
    "Topk",
    "ApplyTopKTopP",
    "TopKTopPSample",
    "Kthvalue",
    "Median",
    "NanMedian",
    "Randperm",
    "Unique",
];

/// Operators that look each element up in a sorted sequence: the steps of a binary search in one of 128 Ki.
const SEARCHES: &[&str] = &["SearchSorted", "Bucketize"];

/// Solutions and decompositions of matrices, whose steps an element grow with the matrix: those of one with 64 rows.
const SOLVERS: &[&str] =
    &["Inverse", "LinalgCholesky", "LinalgQr", "Logdet", "Qr", "Slogdet", "Svd", "TriangularSolve"];

/// Normalisations, position embeddings and the like, by a part of the name.
const PARTS: &[(f32, &str)] = &[
    (8.0, "Softmax"),
    (8.0, "LogSumExp"),
    (5.0, "RmsNorm"),
    (8.0, "LayerNorm"),
    (8.0, "GroupNorm"),
    (8.0, "BatchNorm"),
    (8.0, "DeepNorm"),
    (3.0, "Rotary"),
    (3.0, "Rope"),
    (2.0, "Quant"),
    (2.0, "MoeInitRouting"),
    (1.0, "MoeTokenPermute"),
    (2.0, "MoeTokenUnpermute"),
    (2.0, "MoeFinalizeRouting"),
    (8.0, "MoeGatingTopK"),
    (1.0, "MoeComputeExpertTokens"),
    (1.0, "MoeReRouting"),
];

/// Operand forms that end a name: the operation is the same.
const FORMS: &[&str] = &[
    "ScalarAndTensor",
    "TensorScalar",
    "ScalarTensor",
    "TensorTensor",
    "ScalarSelf",
    "ScalarOther",
    "ScalarList",
    "Scalar",
    "Tensor",
    "List",
];

/// What the forms of one operation have in common: `InplaceAddcmul`, `ForeachAddcmulScalarV2` and `Addcmul` are `Addcmul`.
fn stem(name: &str) -> &str {
    let name = name.trim_start_matches("Inplace").trim_start_matches("Foreach").trim_end_matches("Inplace");
    let bare = |name: &'_ str| -> usize {
        ["V2", "V3", "V4", "V5"].iter().find_map(|v| name.strip_suffix(v)).unwrap_or(name).len()
    };
    let name = &name[..bare(name)];
    FORMS.iter().find_map(|form| name.strip_suffix(form)).unwrap_or(name)
}

/// The rule for the operator `name` (without `aclnn`); `None` where nobody thought of it.
pub(super) fn rule(name: &str) -> Option<Compute> {
    let stem = stem(name);
    let of = |names: &[&str], exact: &str| names.contains(&exact);
    for exact in [name, stem] {
        if let Some((flops, _)) = ELEMENTWISE.iter().find(|(_, names)| of(names, exact)) {
            return Some(PerOutput(*flops));
        }
    }
    // Longer names first meant for themselves: GeGluV3Backward is no version of GeGlu.
    if name.starts_with("GeGlu") {
        return Some(PerOutput(if name.contains("Backward") { 16.0 } else { 10.0 }));
    }
    if let Some((flops, _)) = PARTS.iter().find(|(_, part)| name.contains(part)) {
        return Some(PerOutput(*flops));
    }
    let begins = |names: &[&str]| names.iter().any(|n| stem.starts_with(n));
    if begins(SORTS) {
        return Some(Compute::Sort { dim: None });
    }
    if begins(SEARCHES) {
        return Some(PerOutput(17.0));
    }
    if begins(RANDOM) {
        return Some(PerOutput(20.0));
    }
    if SOLVERS.contains(&stem) {
        return Some(PerInput(64.0));
    }
    if begins(REDUCTIONS) || name == "All" {
        return Some(PerInput(1.0));
    }
    begins(MOVES).then_some(PerOutput(1.0))
}

#[cfg(test)]
mod tests {
    use super::super::plan::{is_collective, is_convolution, is_product};
    use super::*;
    use acl_abi::SIGNATURES;

    #[test]
    fn forms_share_a_stem() {
        for (name, want) in [
            ("InplaceAddcmul", "Addcmul"),
            ("ForeachAddcmulScalarV2", "Addcmul"),
            ("ForeachAddcdivScalarList", "Addcdiv"),
            ("ForeachPowScalarAndTensor", "Pow"),
            ("InplaceRemainderTensorTensor", "Remainder"),
            ("XLogYScalarSelf", "XLogY"),
            ("InplaceEqScalar", "Eq"),
            ("ForeachZeroInplace", "Zero"),
            ("Scatter", "Scatter"),
        ] {
            assert_eq!(stem(name), want);
        }
    }

    #[test]
    fn rules_say_what_they_should() {
        for (name, want) in [
            ("InplaceMuls", "PerOutput(1.0)"),
            ("PowTensorScalar", "PerOutput(10.0)"),
            ("ForeachSqrt", "PerOutput(5.0)"),
            ("GeluBackwardV2", "PerOutput(16.0)"),
            ("GeGluV3Backward", "PerOutput(16.0)"),
            ("GeGluV3", "PerOutput(10.0)"),
            ("ApplyAdamWV2", "PerOutput(16.0)"),
            ("LogSoftmaxBackward", "PerOutput(8.0)"),
            ("MaxDim", "PerInput(1.0)"),
            ("Maximum", "PerOutput(1.0)"),
            ("ForeachNorm", "PerInput(1.0)"),
            ("RmsNormGrad", "PerOutput(5.0)"),
            ("Topk", "Sort { dim: None }"),
            ("DropoutV3", "PerOutput(20.0)"),
            ("Bucketize", "PerOutput(17.0)"),
            ("InplaceUniform", "PerOutput(20.0)"),
            ("InplaceMaskedFillScalar", "PerOutput(2.0)"),
            ("MaskedSelect", "PerOutput(1.0)"),
            ("All", "PerInput(1.0)"),
            ("AvgPool2dBackward", "PerInput(1.0)"),
            ("UpsampleBicubic2dAAGrad", "PerInput(1.0)"),
            ("ReflectionPad3d", "PerOutput(1.0)"),
            ("InplaceRReluWithNoise", "PerOutput(20.0)"),
            ("TriangularSolve", "PerInput(64.0)"),
            ("Complex", "PerOutput(1.0)"),
        ] {
            let rule = rule(name).unwrap_or_else(|| panic!("{name} has no rule"));
            assert_eq!(format!("{rule:?}"), want, "{name}");
        }
    }

    #[test]
    fn every_operator_that_the_device_computes_has_a_rule() {
        let missing: Vec<_> = SIGNATURES
            .iter()
            .filter(|s| s.emulated)
            .map(|s| s.name.trim_start_matches("aclnn"))
            .filter(|name| !is_product(name) && !is_collective(name) && !name.contains("Attention"))
            .filter(|name| !is_convolution(name))
            .filter(|name| rule(name).is_none())
            .collect();
        assert!(missing.is_empty(), "decide what these count, in this file: {missing:?}");
    }

    #[test]
    fn no_operation_is_in_two_tables_of_counts() {
        let mut names: Vec<_> = ELEMENTWISE.iter().flat_map(|(_, names)| names.iter()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
