//! Weights of single operators, and of a whole step against the closed form.

use super::model::Model;
use super::*;
use crate::calls::{Batch, Build, attention, mm, step};
use acl_abi::{DataType, OpCall, OpId, TensorDesc};

const BF16: DataType = DataType::BF16;

#[test]
fn operators_weigh_what_the_formulas_say() {
    let m = Model::QWEN2_5_7B;
    let (h, d, kv) = (28.0, 128.0, 4.0);
    let expanded = TensorDesc { strides: [0; 8], ..TensorDesc::contiguous(0, DataType::F32, &[1024, 1024]) };
    let table: &[i64] = &[152_064, 3584];
    let quant = |a, b| {
        Build::new("aclnnQuantMatmulV4")
            .tensor("x1", a, &[16, 64])
            .tensor("x2", b, &[32, 64])
            .int("transposeX2", 1)
            .tensor("out", BF16, &[16, 32])
            .call()
    };
    let cases: Vec<(&str, OpCall, f64, f64)> = vec![
        // name, call, cube FLOP, bytes
        ("mm", mm(7, 64, 32), 2.0 * 7.0 * 64.0 * 32.0, 2.0 * (7.0 * 64.0 + 64.0 * 32.0 + 7.0 * 32.0)),
        (
            "addmm with a bias row expanded over the rows",
            Build::new("aclnnAddmm")
                .desc(
                    "self",
                    TensorDesc { strides: [0, 1, 0, 0, 0, 0, 0, 0], ..TensorDesc::contiguous(0, BF16, &[8, 16]) },
                )
                .tensor("mat1", BF16, &[8, 4])
                .tensor("mat2", BF16, &[4, 16])
                .tensor("out", BF16, &[8, 16])
                .call(),
            2.0 * 8.0 * 4.0 * 16.0,
            2.0 * (16.0 + 32.0 + 64.0 + 128.0),
        ),
        (
            "batched product",
            Build::new("aclnnBatchMatMul")
                .tensor("self", BF16, &[3, 5, 7])
                .tensor("mat2", BF16, &[3, 7, 11])
                .tensor("out", BF16, &[3, 5, 11])
                .call(),
            2.0 * 3.0 * 5.0 * 7.0 * 11.0,
            2.0 * 3.0 * (35.0 + 77.0 + 55.0),
        ),
        ("int8 counts half", quant(DataType::I8, DataType::I8), 16.0 * 64.0 * 32.0, 1024.0 + 2048.0 + 1024.0),
        ("int8 weights only", quant(BF16, DataType::I8), 2.0 * 16.0 * 64.0 * 32.0, 2048.0 + 2048.0 + 1024.0),
        (
            "single precision counts four times",
            Build::new("aclnnMatmul")
                .tensor("self", DataType::F32, &[2, 3])
                .tensor("mat2", DataType::F32, &[3, 4])
                .tensor("out", DataType::F32, &[2, 4])
                .call(),
            4.0 * 2.0 * 24.0,
            4.0 * (6.0 + 12.0 + 8.0),
        ),
        (
            "grouped product, one tensor a side",
            Build::new("aclnnGroupedMatmulV4")
                .list("x", BF16, &[&[10, 8]])
                .list("weight", BF16, &[&[4, 8, 6]])
                .list("out", BF16, &[&[10, 6]])
                .call(),
            2.0 * 10.0 * 8.0 * 6.0,
            2.0 * (80.0 + 192.0 + 60.0),
        ),
        (
            "decode attention reads the context, not the cache",
            attention(&m, &Batch { queries: vec![1, 1], contexts: vec![100, 28], paged: true }),
            4.0 * h * d * 128.0,
            2.0 * 2.0 * kv * d * 128.0 + 2.0 * 2.0 * 2.0 * h * d + 4.0 * 2.0,
        ),
        (
            "causal prefill computes half the square",
            attention(&m, &Batch::prefill(64)),
            4.0 * h * d * (64.0 * 65.0 / 2.0),
            2.0 * 2.0 * kv * d * 64.0 + 2.0 * 2.0 * 64.0 * h * d,
        ),
        (
            "padding of a captured graph costs nothing but its query rows",
            attention(&m, &Batch { queries: vec![1, 1], contexts: vec![100, 0], paged: true }),
            4.0 * h * d * 100.0,
            2.0 * 2.0 * kv * d * 100.0 + 2.0 * 2.0 * 2.0 * h * d + 4.0 * 2.0,
        ),
        (
            "dense attention of another layout",
            Build::new("aclnnFlashAttentionScore")
                .tensor("query", BF16, &[2, 8, 16, 32])
                .tensor("key", BF16, &[2, 2, 16, 32])
                .tensor("value", BF16, &[2, 2, 16, 32])
                .int("headNum", 8)
                .int("nextTokens", 2_147_483_647)
                .str("inputLayout", "BNSD")
                .tensor("attentionOutOut", BF16, &[2, 8, 16, 32])
                .call(),
            4.0 * 8.0 * 32.0 * 2.0 * 256.0,
            2.0 * (2.0 * 2.0 * 2.0 * 16.0 * 32.0 + 2.0 * 2.0 * 8.0 * 16.0 * 32.0),
        ),
        (
            "the gradient of attention computes five products",
            Build::new("aclnnFlashAttentionScoreGrad")
                .tensor("query", BF16, &[2, 8, 16, 32])
                .tensor("keyIn", BF16, &[2, 2, 16, 32])
                .tensor("value", BF16, &[2, 2, 16, 32])
                .int("headNum", 8)
                .int("nextTokens", 2_147_483_647)
                .str("inputLayout", "BNSD")
                .tensor("dqOut", BF16, &[2, 8, 16, 32])
                .tensor("dkOut", BF16, &[2, 2, 16, 32])
                .tensor("dvOut", BF16, &[2, 2, 16, 32])
                .call(),
            10.0 * 8.0 * 32.0 * 2.0 * 256.0,
            2.0 * (4.0 * 2.0 * 2.0 * 16.0 * 32.0 + 2.0 * 2.0 * 8.0 * 16.0 * 32.0),
        ),
        (
            "attention over packed sequences",
            Build::new("aclnnFlashAttentionVarLenScore")
                .tensor("query", BF16, &[7, 4, 8])
                .tensor("key", BF16, &[9, 2, 8])
                .tensor("value", BF16, &[9, 2, 8])
                .ints("actualSeqQLenOptional", &[3, 7])
                .ints("actualSeqKvLenOptional", &[5, 9])
                .int("headNum", 4)
                .int("nextTokens", 2_147_483_647)
                .str("inputLayout", "TND")
                .tensor("attentionOutOut", BF16, &[7, 4, 8])
                .call(),
            4.0 * 4.0 * 8.0 * (15.0 + 16.0),
            2.0 * (2.0 * 9.0 * 16.0 + 2.0 * 7.0 * 32.0),
        ),
        (
            "batches summed into one matrix",
            Build::new("aclnnAddbmm")
                .tensor("self", BF16, &[5, 11])
                .tensor("batch1", BF16, &[3, 5, 7])
                .tensor("batch2", BF16, &[3, 7, 11])
                .tensor("out", BF16, &[5, 11])
                .call(),
            2.0 * 3.0 * 5.0 * 7.0 * 11.0,
            2.0 * (2.0 * 55.0 + 3.0 * 35.0 + 3.0 * 77.0),
        ),
        (
            "matrix and vector",
            Build::new("aclnnAddmv")
                .tensor("self", BF16, &[5])
                .tensor("mat", BF16, &[5, 7])
                .tensor("vec", BF16, &[7])
                .tensor("out", BF16, &[5])
                .call(),
            2.0 * 35.0,
            2.0 * (5.0 + 35.0 + 7.0 + 5.0),
        ),
        (
            "grouped product over a depth cut into groups",
            Build::new("aclnnGroupedMatmulV4")
                .list("x", BF16, &[&[6, 10]])
                .list("weight", BF16, &[&[10, 4]])
                .list("out", BF16, &[&[3, 6, 4]])
                .call(),
            2.0 * 6.0 * 10.0 * 4.0,
            2.0 * (60.0 + 40.0 + 72.0),
        ),
        (
            "convolution in groups",
            Build::new("aclnnConvolution")
                .tensor("input", BF16, &[2, 8, 10, 10])
                .tensor("weight", BF16, &[6, 4, 3, 3])
                .int("transposed", 0)
                .tensor("output", BF16, &[2, 6, 8, 8])
                .call(),
            2.0 * (2.0 * 6.0 * 64.0) * 36.0,
            2.0 * (1600.0 + 216.0 + 768.0),
        ),
        (
            "gradients of a transposed convolution",
            Build::new("aclnnConvolutionBackward")
                .tensor("gradOutput", BF16, &[2, 8, 10, 10])
                .tensor("input", BF16, &[2, 6, 8, 8])
                .tensor("weight", BF16, &[6, 4, 3, 3])
                .int("transposed", 1)
                .tensor("gradInput", BF16, &[2, 6, 8, 8])
                .call(),
            2.0 * 2.0 * (2.0 * 6.0 * 64.0) * 36.0,
            2.0 * (1600.0 + 216.0 + 2.0 * 768.0),
        ),
        (
            "embedding reads rows, not the table",
            Build::new("aclnnEmbedding")
                .tensor("weight", BF16, table)
                .tensor("indices", DataType::I64, &[5])
                .tensor("out", BF16, &[5, 3584])
                .call(),
            0.0,
            2.0 * 2.0 * 5.0 * 3584.0 + 40.0,
        ),
        (
            "index select reads rows, not the table",
            Build::new("aclnnIndexSelect")
                .tensor("self", BF16, table)
                .tensor("index", DataType::I32, &[5])
                .tensor("out", BF16, &[5, 3584])
                .call(),
            0.0,
            2.0 * 2.0 * 5.0 * 3584.0 + 20.0,
        ),
        (
            "cache scatter writes rows, not the cache",
            Build::new("aclnnScatterPaKvCache")
                .tensor("key", BF16, &[3, 4, 128])
                .tensor("keyCacheRef", BF16, &[4096, 128, 4, 128])
                .tensor("slotMapping", DataType::I32, &[3])
                .tensor("value", BF16, &[3, 4, 128])
                .tensor("valueCacheRef", BF16, &[4096, 128, 4, 128])
                .call(),
            0.0,
            2.0 * 2.0 * 2.0 * 3.0 * 512.0 + 12.0,
        ),
        (
            "zeroing writes the elements of the view",
            Build::new("aclnnInplaceZero").desc("selfRef", expanded).call(),
            0.0,
            4.0 * 1024.0 * 1024.0,
        ),
        (
            "reading an expanded view reads its memory once",
            Build::new("aclnnCast").desc("self", expanded).tensor("out", BF16, &[1024, 1024]).call(),
            0.0,
            4.0 + 2.0 * 1024.0 * 1024.0,
        ),
        (
            "arithmetic in place crosses memory twice",
            Build::new("aclnnInplaceMul").tensor("selfRef", BF16, &[100]).tensor("other", BF16, &[100]).call(),
            0.0,
            2.0 * 300.0,
        ),
        (
            "swiglu",
            Build::new("aclnnSwiGlu").tensor("x", BF16, &[4, 32]).tensor("out", BF16, &[4, 16]).call(),
            0.0,
            2.0 * (128.0 + 64.0),
        ),
        (
            "operators without a formula weigh their tensors",
            Build::new("aclnnRoll").tensor("x", BF16, &[4, 32]).tensor("out", BF16, &[4, 32]).call(),
            0.0,
            2.0 * 256.0,
        ),
    ];
    for (name, call, cube, bytes) in cases {
        let got = work(&call);
        assert_eq!(got.cube_flops, cube, "{name}: cube FLOP");
        assert_eq!(got.hbm_bytes, bytes, "{name}: bytes");
    }
}

#[test]
fn the_gradient_of_attention_is_five_products_where_attention_is_two() {
    let dims: &[i64] = &[2, 4, 64, 16];
    let layout = |name, key, out: &[&'static str]| {
        let build = Build::new(name).str("inputLayout", "BNSD").int("headNum", 4).int("nextTokens", 65536);
        let build = build.tensor("query", BF16, dims).tensor(key, BF16, dims).tensor("value", BF16, dims);
        out.iter().fold(build, |build, out| build.tensor(out, BF16, dims)).call()
    };
    let forward = work(&layout("aclnnFlashAttentionScore", "key", &["attentionOutOut"]));
    let backward = work(&layout("aclnnFlashAttentionScoreGrad", "keyIn", &["dqOut", "dkOut", "dvOut"]));
    assert_eq!(forward.cube_flops, 2.0 * 2.0 * 2.0 * 4.0 * 64.0 * 64.0 * 16.0);
    assert_eq!(backward.cube_flops, forward.cube_flops * 2.5);
    // Queries, keys, values, and the gradients of all three.
    assert_eq!(backward.hbm_bytes, 6.0 * 2.0 * (2 * 4 * 64 * 16) as f64);
}

#[test]
fn optimizers_read_and_write_their_state() {
    let call = Build::new("aclnnApplyAdamWV2")
        .tensor("varRef", DataType::F32, &[100])
        .tensor("mRef", DataType::F32, &[100])
        .tensor("vRef", DataType::F32, &[100])
        .tensor("grad", DataType::F32, &[100])
        .call();
    assert_eq!((work(&call).hbm_bytes, work(&call).vector_flops), (7.0 * 400.0, 16.0 * 2.0 * 100.0));
    let zero = Build::new("aclnnForeachZeroInplace").list("x", DataType::F32, &[&[10], &[20]]).call();
    assert_eq!(work(&zero).hbm_bytes, 120.0);
}

#[test]
fn vector_work_counts_elements() {
    for (name, call, want) in [
        ("cast", Build::new("aclnnCast").tensor("self", BF16, &[10]).tensor("out", BF16, &[10]).call(), 10.0),
        ("add, f32", Build::new("aclnnAdd").tensor("out", DataType::F32, &[10]).call(), 20.0),
        (
            "argmax",
            Build::new("aclnnArgMax").tensor("self", BF16, &[4, 100]).tensor("out", DataType::I64, &[4]).call(),
            400.0,
        ),
        (
            "sort of lines of 1024",
            Build::new("aclnnSort")
                .tensor("self", BF16, &[4, 1024])
                .int("dim", -1)
                .tensor("valuesOut", BF16, &[4, 1024])
                .call(),
            4096.0 * 10.0,
        ),
        (
            "cache scatter",
            Build::new("aclnnScatterPaKvCache")
                .tensor("key", BF16, &[3, 4, 8])
                .tensor("keyCacheRef", BF16, &[64, 128, 4, 8])
                .tensor("value", BF16, &[3, 4, 8])
                .call(),
            96.0,
        ),
        (
            "square roots over a list: all of it",
            Build::new("aclnnForeachSqrt")
                .list("x", DataType::F32, &[&[10], &[2, 3]])
                .list("out", DataType::F32, &[&[10], &[2, 3]])
                .call(),
            5.0 * 2.0 * 16.0,
        ),
        ("rms norm", Build::new("aclnnRmsNorm").tensor("x", BF16, &[4, 8]).tensor("yOut", BF16, &[4, 8]).call(), 160.0),
    ] {
        assert_eq!(work(&call).vector_flops, want, "{name}");
    }
}

#[test]
fn malformed_calls_weigh_something_finite() {
    for s in acl_abi::SIGNATURES {
        let op = OpId::by_name(s.name).unwrap();
        for args in [0, 1, s.params.len()] {
            let mut call = OpCall::new(op);
            for i in 0..args {
                match i % 3 {
                    0 => call.push_tensor(Some(TensorDesc::contiguous(0, BF16, &[i64::MAX, 2, 0, -3]))),
                    1 => call.push_ints(Some(&[i64::MAX, i64::MIN, -1])),
                    _ => call.push_str(b"TND"),
                };
            }
            let w = work(&call);
            assert!(w.cube_flops >= 0.0 && w.hbm_bytes.is_finite() && w.vector_flops.is_finite(), "{}: {w:?}", s.name);
        }
    }
}

/// Sums over the operators of one step: FLOP, seconds of cube operators, seconds of vector operators; static cost left out.
fn sum(profile: &Profile, batch: &Batch) -> (f64, f64, f64) {
    let (mut flops, mut cube, mut vector) = (0.0, 0.0, 0.0);
    for call in step(&Model::QWEN2_5_7B, batch, batch.queries.len() as u64) {
        let w = work(&call);
        let demand = profile.demand(&w);
        flops += w.cube_flops;
        *(if w.class == OpClass::Matmul { &mut cube } else { &mut vector }) += demand.solo_s - demand.static_s;
    }
    (flops, cube, vector)
}

#[test]
fn operators_of_a_step_sum_to_the_closed_form() {
    let m = Model::QWEN2_5_7B;
    for (name, batch, closed, table_ms, vector_share) in [
        ("prefill 1024", Batch::prefill(1024), m.prefill(1024), 66.0, 0.12),
        ("prefill 4096", Batch::prefill(4096), m.prefill(4096), 275.0, 0.12),
        ("decode B=1", Batch::decode(1, 2048), m.decode(1, 2048), 14.9, 0.01),
        ("decode B=32", Batch::decode(32, 2048), m.decode(32, 2048), 18.6, 0.02),
        ("decode B=128", Batch::decode(128, 2048), m.decode(128, 2048), 30.4, 0.05),
    ] {
        let profile = Profile::A910B3;
        let (flops, cube_s, vector_s) = sum(&profile, &batch);
        let demand = profile.demand(&closed);
        let closed_s = demand.solo_s - demand.static_s;
        assert!((flops / closed.cube_flops - 1.0).abs() < 0.005, "{name}: {flops:e} FLOP, not {:e}", closed.cube_flops);
        assert!((cube_s / closed_s - 1.0).abs() < 0.03, "{name}: products and attention {cube_s} s, not {closed_s}");
        assert!(vector_s / closed_s < vector_share, "{name}: vector operators {vector_s} s of {closed_s}");
        assert!((cube_s * 1e3 / table_ms - 1.0).abs() < 0.03, "{name}: {} ms, not {table_ms}", cube_s * 1e3);
    }
}

#[test]
fn profiles_are_found_by_soc_name() {
    for (soc, name) in [
        ("Ascend910B1", "910B1"),
        ("Ascend910B2", "910B2"),
        ("Ascend910B3", "910B3"),
        ("Ascend910B4", "910B4"),
        ("Ascend910_9391", "910C"),
        ("Ascend910_9392", "910C"),
        ("910B3", "910B3"),
    ] {
        assert_eq!(Profile::by_soc_name(soc).map(|p| p.name), Some(name), "{soc}");
    }
    assert_eq!(Profile::by_soc_name("Ascend310P"), None);
}

#[test]
fn static_cost_depends_on_the_class() {
    let p = Profile::A910B3;
    for (class, want) in [(OpClass::Matmul, 5_000), (OpClass::Vector, 2_000), (OpClass::Communication, 10_000)] {
        assert_eq!(p.solo(&Work { class, ..Work::default() }), want, "{class:?}");
    }
    // 25 MB over a 25 GB/s link.
    assert_eq!(p.solo(&Work::host_copy(25_000_000)) / 1000, 1002 + 26, "link and HBM");
    // 13.72 MB over 137.2 GB/s; HBM at 0.96 TB/s; 10 µs to begin a collective, once.
    assert_eq!(p.solo(&Work::link(13_720_000, true)) / 1000, 100 + 14 + 10);
    assert_eq!(p.solo(&Work::link(13_720_000, false)) / 1000, 100 + 14);
}
