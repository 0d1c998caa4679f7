//! Rotary embedding and the paged cache's writer.

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, LAYS, Lab, Lay, Noise, close};

use DataType::{BF16, F16, F32, I32, I64};

/// `x·cos + rotate(x)·sin` on rows of `d`; `table(row)` is the row's position in the tables.
fn reference(x: &[f64], cos: &[f64], sin: &[f64], d: usize, table: impl Fn(usize) -> usize, half: bool) -> Vec<f64> {
    (0..x.len())
        .map(|i| {
            let (row, c) = (i / d, i % d);
            let (partner, sign) = match half {
                true if c < d / 2 => (c + d / 2, -1.0),
                true => (c - d / 2, 1.0),
                false if c % 2 == 0 => (c + 1, -1.0),
                false => (c - 1, 1.0),
            };
            let at = table(row) * d + c;
            x[i] * cos[at] + sign * x[row * d + partner] * sin[at]
        })
        .collect()
}

#[test]
fn packed_and_batched_layouts_rotate_in_place() {
    let mut noise = Noise::new(10);
    let (tokens, heads, kv_heads, d) = (6usize, 4usize, 2usize, 8usize);
    for (dtype, tolerance) in [(F32, 1e-6), (BF16, 1.6e-2), (F16, 2e-3)] {
        let (vq, vk) = (noise.values(tokens * heads * d), noise.values(tokens * kv_heads * d));
        let (vc, vs) = (noise.values(tokens * d), noise.values(tokens * d));
        for (mode, half) in [("half", true), ("interleave", false), ("", true)] {
            for lay in LAYS {
                // Tokens as T, as B·S, and as B·S with heads merged: the same memory order.
                for (layout, q_dims, k_dims, t_dims) in [
                    (4, &[6i64, 4, 8][..], &[6i64, 2, 8][..], &[6i64, 1, 8][..]),
                    (1, &[2, 3, 4, 8], &[2, 3, 2, 8], &[2, 3, 1, 8]),
                    (1, &[2, 3, 32], &[2, 3, 16], &[2, 3, 1, 8]),
                    (2, &[3, 2, 4, 8], &[3, 2, 2, 8], &[3, 2, 1, 8]),
                ] {
                    let mut lab = Lab::new();
                    let (q, k) = (lab.tensor_as(dtype, q_dims, &vq, lay), lab.tensor_as(dtype, k_dims, &vk, lay));
                    let (cos, sin) = (lab.tensor(dtype, t_dims, &vc), lab.tensor_as(dtype, t_dims, &vs, lay));
                    lab.ok(
                        ops::aclnnApplyRotaryPosEmbV2,
                        &[A::T(q), A::T(k), A::T(cos), A::T(sin), A::I(layout), A::Str(mode)],
                    );
                    close(&lab.read(&q), &reference(&vq, &vc, &vs, d, |row| row / heads, half), tolerance);
                    close(&lab.read(&k), &reference(&vk, &vc, &vs, d, |row| row / kv_heads, half), tolerance);
                }
            }
        }
    }
}

#[test]
fn heads_before_tokens_share_a_table() {
    let mut noise = Noise::new(11);
    let (vx, vc, vs) = (noise.values(2 * 3 * 5 * 4), noise.values(5 * 4), noise.values(5 * 4));
    for (mode, half) in [(0, true), (1, false)] {
        let mut lab = Lab::new();
        let x = lab.tensor(F32, &[2, 3, 5, 4], &vx);
        let (cos, sin) = (lab.tensor(F32, &[1, 1, 5, 4], &vc), lab.tensor(F32, &[1, 1, 5, 4], &vs));
        let out = lab.room(F32, &[2, 3, 5, 4]);
        lab.ok(ops::aclnnRotaryPositionEmbedding, &[A::T(x), A::T(cos), A::T(sin), A::I(mode), A::T(out)]);
        close(&lab.read(&out), &reference(&vx, &vc, &vs, 4, |row| row % 5, half), 1e-6);
        let (q, k) = (lab.tensor(F32, &[2, 3, 5, 4], &vx), lab.tensor(F32, &[2, 3, 5, 4], &vx));
        let mode = if half { "half" } else { "interleave" };
        lab.ok(ops::aclnnApplyRotaryPosEmbV2, &[A::T(q), A::T(k), A::T(cos), A::T(sin), A::I(3), A::Str(mode)]);
        assert_eq!((lab.read(&q), lab.read(&k)), (lab.read(&out), lab.read(&out)));
    }
}

#[test]
fn malformed_rotations_are_refused() {
    let mut lab = Lab::new();
    let t = |lab: &mut Lab, dims: &[i64]| A::T(lab.room(F32, dims));
    let (q, k, table) = (t(&mut lab, &[6, 4, 8]), t(&mut lab, &[6, 2, 8]), t(&mut lab, &[6, 1, 8]));
    let (short, narrow, odd, odd_table) =
        (t(&mut lab, &[5, 1, 8]), t(&mut lab, &[6, 1, 4]), t(&mut lab, &[6, 2, 7]), t(&mut lab, &[6, 1, 7]));
    let merged = t(&mut lab, &[2, 3, 20]);
    let table4 = t(&mut lab, &[2, 3, 1, 8]);
    for (args, part) in [
        (
            vec![q.clone(), k.clone(), table.clone(), table.clone(), A::I(4), A::Str("quarter")],
            "rotaryMode: \"quarter\"",
        ),
        (vec![q.clone(), k.clone(), table.clone(), table.clone(), A::I(5), A::Str("half")], "layout: 5"),
        (
            vec![q.clone(), k.clone(), table.clone(), table.clone(), A::I(1), A::Str("half")],
            "3 dimensions, layout 1 has 4",
        ),
        (vec![q.clone(), k.clone(), short.clone(), short, A::I(4), A::Str("half")], "does not broadcast"),
        (vec![q.clone(), k.clone(), narrow.clone(), narrow, A::I(4), A::Str("half")], "do not fit width 8"),
        (vec![q.clone(), odd.clone(), odd_table.clone(), odd_table, A::I(4), A::Str("half")], "queryRef: "),
        (
            vec![merged, k, table4.clone(), table4, A::I(1), A::Str("half")],
            "20 is not a multiple of the tables' width 8",
        ),
    ] {
        lab.refused(ops::aclnnApplyRotaryPosEmbV2, &args, part);
    }
    lab.refused(ops::aclnnRotaryPositionEmbedding, &[q.clone(), table.clone(), table, A::I(2), q], "mode: 2");
}

fn cache_args(key: TensorDesc, keys: TensorDesc, slots: TensorDesc, value: TensorDesc, values: TensorDesc) -> Vec<A> {
    let mut args = vec![A::T(key), A::T(keys), A::T(slots), A::T(value), A::T(values), A::Null, A::Null, A::Null];
    args.extend([A::Str("Norm"), A::Str("None"), A::Null, A::Null]);
    args
}

#[test]
fn tokens_go_to_their_slots_and_nowhere_else() {
    let mut noise = Noise::new(12);
    for dtype in [F32, BF16, F16] {
        for slot_type in [I32, I64] {
            for lay in [Lay::Plain, Lay::Sliced] {
                let mut lab = Lab::new();
                let (vk, vv) = (noise.values(4 * 2 * 3), noise.values(4 * 2 * 5));
                let (key, value) = (lab.tensor_as(dtype, &[4, 2, 3], &vk, lay), lab.tensor(dtype, &[4, 2, 5], &vv));
                let keys = lab.tensor_as(dtype, &[3, 4, 2, 3], &[9.0; 72], lay);
                let values = lab.tensor(dtype, &[3, 4, 2, 5], &[9.0; 120]);
                let slots = lab.tensor(slot_type, &[4], &[11.0, -1.0, 0.0, 5.0]);
                lab.ok(ops::aclnnScatterPaKvCache, &cache_args(key, keys, slots, value, values));
                let (mut want_k, mut want_v) = (vec![9.0; 72], vec![9.0; 120]);
                for (token, slot) in [(0, 11), (2, 0), (3, 5)] {
                    want_k[slot * 6..][..6].copy_from_slice(&vk[token * 6..][..6]);
                    want_v[slot * 10..][..10].copy_from_slice(&vv[token * 10..][..10]);
                }
                assert_eq!((lab.read(&keys), lab.read(&values)), (want_k, want_v));
            }
        }
    }
}

#[test]
fn slots_outside_the_cache_are_refused_before_anything_is_written() {
    let mut lab = Lab::new();
    let (key, value) = (lab.tensor(F32, &[2, 1, 2], &[1.0; 4]), lab.tensor(F32, &[2, 1, 2], &[1.0; 4]));
    let (keys, values) = (lab.tensor(F32, &[2, 4, 1, 2], &[9.0; 16]), lab.tensor(F32, &[2, 4, 1, 2], &[9.0; 16]));
    for bad in [8.0, -2.0, 2e9] {
        let slots = lab.tensor(I32, &[2], &[0.0, bad]);
        lab.refused(
            ops::aclnnScatterPaKvCache,
            &cache_args(key, keys, slots, value, values),
            "of token 1 is not in the cache's 8 slots",
        );
    }
    assert_eq!(lab.read(&keys), [9.0; 16]);
    let slots = lab.tensor(I32, &[2], &[0.0, 1.0]);
    let (wide, half, few) = (lab.room(F32, &[2, 4, 1, 3]), lab.room(F16, &[2, 4, 1, 2]), lab.tensor(I32, &[1], &[0.0]));
    for (args, part) in [
        (cache_args(key, wide, slots, value, values), "keyCacheRef: shape [2, 4, 1, 3]"),
        (cache_args(key, keys, slots, value, half), "valueCacheRef: type float16"),
        (cache_args(key, keys, few, value, values), "slotMapping: 1 slots for the 2 tokens"),
        (cache_args(key, keys, key, value, values), "slotMapping: [2, 1, 2] float32"),
    ] {
        lab.refused(ops::aclnnScatterPaKvCache, &args, part);
    }
    let mut nz = cache_args(key, keys, slots, value, values);
    nz[8] = A::Str("PA_NZ");
    lab.refused(ops::aclnnScatterPaKvCache, &nz, "cacheModeOptional: \"PA_NZ\" is not supported");
}
