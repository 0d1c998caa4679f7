//! Attention refuses what it does not do, by the parameter's name, and never follows a bad block table.

use std::panic::{AssertUnwindSafe, catch_unwind};

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, Lab, Noise};
use super::attention::{arguments, at};

use DataType::{BF16, F32, I8, I32};

/// Two decoding sequences with 3 query heads, 1 kv head of width 4, over 5 blocks of 16.
fn paged_call(lab: &mut Lab) -> Vec<A> {
    let mut noise = Noise::new(30);
    let q = lab.tensor(F32, &[2, 3, 4], &noise.values(24));
    let cache = lab.tensor(F32, &[5, 16, 4], &noise.values(320));
    let table = lab.tensor(I32, &[2, 3], &[0.0, 4.0, 1.0, 2.0, 3.0, 0.0]);
    let out = lab.room(F32, &[2, 3, 4]);
    let mut args = arguments(q, cache, cache, out, 3, 1);
    args[at::LENGTHS_Q] = A::Ints(vec![1, 2]);
    args[at::LENGTHS_KV] = A::Ints(vec![40, 17]);
    args[at::BLOCK_TABLE] = A::T(table);
    args[at::BLOCK_SIZE] = A::I(16);
    args
}

/// One sequence of three tokens, two heads of width 4.
fn batched_call(lab: &mut Lab) -> Vec<A> {
    let mut noise = Noise::new(31);
    let q = lab.tensor(F32, &[1, 3, 2, 4], &noise.values(24));
    let out = lab.room(F32, &[1, 3, 2, 4]);
    let mut args = arguments(q, q, q, out, 2, 2);
    args[at::LAYOUT] = A::Str("BSND");
    args[at::SPARSE_MODE] = A::I(0);
    args
}

#[test]
fn what_is_not_supported_is_named() {
    let mut lab = Lab::new();
    let op = ops::aclnnFusedInferAttentionScoreV3;
    let (decode, batched) = (paged_call(&mut lab), batched_call(&mut lab));
    lab.ok(op, &decode);
    lab.ok(op, &batched);
    let some = A::T(lab.tensor(F32, &[2], &[0.0; 2]));
    for position in at::UNSUPPORTED {
        let mut args = decode.clone();
        args[position] = some.clone();
        let name = op.signature().params[position].name;
        lab.refused(op, &args, &format!("{name}: not supported"));
    }
    let mask = |lab: &mut Lab, dtype, dims: &[i64]| A::T(lab.room(dtype, dims));
    let (mask_3x2, mask_f32, mask_bad) =
        (mask(&mut lab, I8, &[3, 2]), mask(&mut lab, F32, &[3, 3]), mask(&mut lab, I8, &[3, 3]));
    let short_table = A::T(lab.tensor(I32, &[2, 2], &[0.0; 4]));
    let wrong_rows = A::T(lab.tensor(I32, &[1, 3], &[0.0; 3]));
    let wrong_lse = A::T(lab.room(F32, &[2, 3]));
    let narrow = A::T(lab.room(F32, &[2, 3, 2]));
    let int_query = A::T(lab.room(I32, &[2, 3, 4]));
    let ambiguous = lab.room(F32, &[5, 16, 16, 4]);
    let (q16, out16) = (lab.room(F32, &[2, 16, 4]), lab.room(F32, &[2, 16, 4]));
    type Case<'a> = (&'a [A], Vec<(usize, A)>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (&decode, vec![(at::LAYOUT, A::Str("SBH"))], "inputLayout: \"SBH\" is not supported"),
        (&decode, vec![(at::SPARSE_MODE, A::I(5))], "sparseMode: 5 is not supported"),
        (&decode, vec![(at::ANTIQUANT_MODE, A::I(1))], "antiquantMode: 1 is not supported"),
        (&decode, vec![(at::NUM_HEADS, A::I(2))], "query: shape [2, 3, 4]"),
        (&decode, vec![(at::NUM_HEADS, A::I(-1))], "numHeads: -1 is not in"),
        (&decode, vec![(at::NUM_KV_HEADS, A::I(2))], "numKeyValueHeads: 2 does not divide"),
        (&decode, vec![(at::QUERY, int_query)], "query: element type int32"),
        (&decode, vec![(at::OUT, narrow)], "attentionOut: head size 2, but value has 4"),
        (&decode, vec![(at::KEY, A::List(vec![]))], "key: a list of 0 tensors"),
        (&decode, vec![(at::BLOCK_SIZE, A::I(0))], "key: blockSize 0 is not positive"),
        (&decode, vec![(at::BLOCK_SIZE, A::I(8))], "key: shape [5, 16, 4] is not a cache with blocks of 8"),
        (&decode, vec![(at::LENGTHS_Q, A::Null)], "actualSeqLengthsOptional: required for layout TND"),
        (&decode, vec![(at::LENGTHS_Q, A::Ints(vec![2, 1]))], "actualSeqLengthsOptional: 1 after 2"),
        (&decode, vec![(at::LENGTHS_Q, A::Ints(vec![1, 3]))], "actualSeqLengthsOptional: 3 tokens, the tensor has 2"),
        (&decode, vec![(at::LENGTHS_KV, A::Null)], "actualSeqLengthsKvOptional: required with a block table"),
        (&decode, vec![(at::LENGTHS_KV, A::Ints(vec![40]))], "actualSeqLengthsKvOptional: 1 entries for 2 sequences"),
        (&decode, vec![(at::LENGTHS_KV, A::Ints(vec![49, 1]))], "49 of sequence 0 is not in 0..=48"),
        (&decode, vec![(at::LENGTHS_KV, A::Ints(vec![-1, 1]))], "-1 of sequence 0"),
        (&decode, vec![(at::BLOCK_TABLE, short_table)], "40 of sequence 0 is not in 0..=32"),
        (
            &decode,
            vec![(at::BLOCK_TABLE, wrong_rows)],
            "blockTableOptional: [1, 3] int32, want int32 or int64 with [2, blocks]",
        ),
        (&decode, vec![(at::LSE_FLAG, A::B(true))], "softmaxLse: a tensor is required"),
        (&decode, vec![(at::LSE_FLAG, A::B(true)), (at::LSE, wrong_lse)], "softmaxLse: shape [2, 3] does not fit"),
        (
            &decode,
            vec![
                (at::QUERY, A::T(q16)),
                (at::OUT, A::T(out16)),
                (at::KEY, A::List(vec![ambiguous])),
                (at::NUM_HEADS, A::I(16)),
                (at::NUM_KV_HEADS, A::I(16)),
            ],
            "key: blockSize: 16 equals the number of heads",
        ),
        (&batched, vec![(at::ATTEN_MASK, mask_3x2)], "attenMaskOptional: shape [1, 1, 3, 2] does not cover"),
        (&batched, vec![(at::ATTEN_MASK, mask_f32)], "attenMaskOptional: type float32"),
        (&batched, vec![(at::BIAS, mask_bad)], "pseShiftOptional: element type int8"),
        (&batched, vec![(at::LENGTHS_Q, A::Ints(vec![4]))], "4 of sequence 0 is not in 0..=3"),
    ];
    for (base, changes, part) in cases {
        let mut args = base.to_vec();
        for (position, value) in changes {
            args[position] = value;
        }
        lab.refused(op, &args, part);
    }
}

/// The block table is device memory: its entries are the client's to get wrong.
#[test]
fn blocks_outside_the_cache_are_refused_before_anything_is_written() {
    let mut lab = Lab::new();
    let mut args = paged_call(&mut lab);
    let A::T(out) = args[at::OUT] else { unreachable!() };
    let before = lab.read(&out);
    for (bad, part) in [(5.0, "block 5 at [1, 1]"), (-1.0, "block -1 at [1, 1]"), (2e9, "block 2000000000 at [1, 1]")] {
        args[at::BLOCK_TABLE] = A::T(lab.tensor(I32, &[2, 3], &[0.0, 4.0, 1.0, 2.0, bad, 9.0]));
        lab.refused(ops::aclnnFusedInferAttentionScoreV3, &args, part);
    }
    assert_eq!(lab.read(&out), before);
    // Entries past the sequence's length are never looked at.
    args[at::BLOCK_TABLE] = A::T(lab.tensor(I32, &[2, 3], &[0.0, 4.0, 1.0, 2.0, 3.0, -9.0]));
    lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
}

/// Valid calls with a few arguments changed at random: refused by name or computed, never a panic.
#[test]
fn damaged_calls_never_panic() {
    let op = ops::aclnnFusedInferAttentionScoreV3;
    let mut lab = Lab::new();
    let calls = [paged_call(&mut lab), batched_call(&mut lab)];
    let (mut worked, mut refused) = (0, 0);
    for seed in 0..40_000 {
        let mut noise = Noise::new(seed);
        let mut args = calls[seed as usize % 2].clone();
        for _ in 0..=noise.below(2) {
            let position = noise.below(42) as usize;
            let number = [-1, 0, 1, 2, 3, 4, 16, 17, 64, i64::MAX, i64::MIN][noise.below(11) as usize];
            match &mut args[position] {
                A::T(desc) => damage(desc, &mut noise, number),
                A::List(list) => damage(&mut list[0], &mut noise, number),
                A::I(value) => *value = number,
                A::Ints(values) => {
                    let at = noise.below(values.len() as u64) as usize;
                    values[at] = number;
                }
                A::B(flag) => *flag = !*flag,
                A::F(value) => *value = f64::NAN,
                A::Str(text) => *text = ["TND", "BSND", "BNSD", "BSH"][noise.below(4) as usize],
                other => *other = A::Ints(vec![number]),
            }
        }
        match catch_unwind(AssertUnwindSafe(|| lab.run(op, &args))) {
            Ok(Ok(())) => worked += 1,
            Ok(Err(_)) => refused += 1,
            Err(_) => panic!("seed {seed}: {args:?}"),
        }
    }
    assert!(worked > 2_000 && refused > 10_000, "{worked} {refused}");
}

fn damage(desc: &mut TensorDesc, noise: &mut Noise, number: i64) {
    let dim = noise.below(4) as usize;
    match noise.below(6) {
        0 => desc.dims[dim] = number,
        1 => desc.strides[dim] = number,
        2 => desc.offset = number,
        3 => desc.ndim = noise.below(6) as u8,
        4 => desc.dtype = [BF16, I32, F32][noise.below(3) as usize],
        _ => desc.dims.swap(dim, 0),
    }
}
