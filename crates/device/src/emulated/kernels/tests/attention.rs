//! Attention: against a naive reference in every layout, and the promise that a row's bits depend on nothing but the row
//! and the keys it sees.

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, LAYS, Lab, Lay, Noise, close};

use DataType::{BF16, Bool, F16, F32, I8, I32, I64};

/// Positions of FusedInferAttentionScoreV3's parameters; [`positions_match_the_signature`].
pub mod at {
    pub const QUERY: usize = 0;
    pub const KEY: usize = 1;
    pub const VALUE: usize = 2;
    pub const BIAS: usize = 3;
    pub const ATTEN_MASK: usize = 4;
    pub const LENGTHS_Q: usize = 5;
    pub const LENGTHS_KV: usize = 6;
    pub const BLOCK_TABLE: usize = 14;
    pub const NUM_HEADS: usize = 27;
    pub const SCALE: usize = 28;
    pub const PRE_TOKENS: usize = 29;
    pub const NEXT_TOKENS: usize = 30;
    pub const LAYOUT: usize = 31;
    pub const NUM_KV_HEADS: usize = 32;
    pub const SPARSE_MODE: usize = 33;
    pub const BLOCK_SIZE: usize = 35;
    pub const ANTIQUANT_MODE: usize = 36;
    pub const LSE_FLAG: usize = 37;
    pub const KEY_ANTIQUANT_MODE: usize = 38;
    pub const VALUE_ANTIQUANT_MODE: usize = 39;
    pub const OUT: usize = 40;
    pub const LSE: usize = 41;
    /// Parameters that must be null.
    pub const UNSUPPORTED: [usize; 19] = [7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26];
}

#[test]
fn positions_match_the_signature() {
    let signature = ops::aclnnFusedInferAttentionScoreV3.signature();
    for (position, name) in [
        (at::QUERY, "query"),
        (at::KEY, "key"),
        (at::VALUE, "value"),
        (at::BIAS, "pseShiftOptional"),
        (at::ATTEN_MASK, "attenMaskOptional"),
        (at::LENGTHS_Q, "actualSeqLengthsOptional"),
        (at::LENGTHS_KV, "actualSeqLengthsKvOptional"),
        (at::BLOCK_TABLE, "blockTableOptional"),
        (at::NUM_HEADS, "numHeads"),
        (at::SCALE, "scaleValue"),
        (at::PRE_TOKENS, "preTokens"),
        (at::NEXT_TOKENS, "nextTokens"),
        (at::LAYOUT, "inputLayout"),
        (at::NUM_KV_HEADS, "numKeyValueHeads"),
        (at::SPARSE_MODE, "sparseMode"),
        (at::BLOCK_SIZE, "blockSize"),
        (at::ANTIQUANT_MODE, "antiquantMode"),
        (at::LSE_FLAG, "softmaxLseFlag"),
        (at::KEY_ANTIQUANT_MODE, "keyAntiquantMode"),
        (at::VALUE_ANTIQUANT_MODE, "valueAntiquantMode"),
        (at::OUT, "attentionOut"),
        (at::LSE, "softmaxLse"),
    ] {
        assert_eq!(signature.params[position].name, name);
    }
}

/// Arguments with every optional absent: TND, sparse mode 3.
pub fn arguments(
    query: TensorDesc,
    key: TensorDesc,
    value: TensorDesc,
    out: TensorDesc,
    heads: i64,
    kv_heads: i64,
) -> Vec<A> {
    let mut args = vec![A::Null; 42];
    args[at::QUERY] = A::T(query);
    args[at::KEY] = A::List(vec![key]);
    args[at::VALUE] = A::List(vec![value]);
    args[at::NUM_HEADS] = A::I(heads);
    args[at::SCALE] = A::F(0.5);
    args[at::PRE_TOKENS] = A::I(i64::from(i32::MAX));
    args[at::NEXT_TOKENS] = A::I(i64::from(i32::MAX));
    args[at::LAYOUT] = A::Str("TND");
    args[at::NUM_KV_HEADS] = A::I(kv_heads);
    args[at::SPARSE_MODE] = A::I(3);
    args[34] = A::I(0);
    args[at::BLOCK_SIZE] = A::I(0);
    args[at::ANTIQUANT_MODE] = A::I(0);
    args[at::LSE_FLAG] = A::B(false);
    args[at::KEY_ANTIQUANT_MODE] = A::I(0);
    args[at::VALUE_ANTIQUANT_MODE] = A::I(0);
    args[at::OUT] = A::T(out);
    args
}

/// One sequence on the host: `[tokens, heads, width]` row-major.
struct Host {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    queries: usize,
    keys: usize,
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    d: usize,
    dv: usize,
}

impl Shape {
    fn host(self, noise: &mut Noise, queries: usize, keys: usize) -> Host {
        Host {
            q: noise.fractions(queries * self.heads * self.d),
            k: noise.fractions(keys * self.kv_heads * self.d),
            v: noise.fractions(keys * self.kv_heads * self.dv),
            queries,
            keys,
        }
    }

    /// Result and log-sum-exp, with the score scale 0.5.
    fn reference(self, host: &Host, hidden: impl Fn(usize, usize) -> bool) -> (Vec<f64>, Vec<f64>) {
        let Shape { heads, kv_heads, d, dv } = self;
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for i in 0..host.queries {
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let q = &host.q[(i * heads + h) * d..][..d];
                let score = |t: usize| -> f64 {
                    let k = &host.k[(t * kv_heads + kv) * d..][..d];
                    0.5 * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>()
                };
                let seen: Vec<usize> = (0..host.keys).filter(|&t| !hidden(i, t)).collect();
                let sum: f64 = seen.iter().map(|&t| score(t).exp()).sum();
                lse.push(if seen.is_empty() { f64::INFINITY } else { sum.ln() });
                for c in 0..dv {
                    let value = |t: usize| host.v[(t * kv_heads + kv) * dv + c];
                    out.push(seen.iter().map(|&t| score(t).exp() / sum * value(t)).sum::<f64>());
                }
            }
        }
        (out, lse)
    }
}

fn causal(host: &Host) -> impl Fn(usize, usize) -> bool + use<> {
    let (queries, keys) = (host.queries, host.keys);
    move |i, t| t + queries > keys + i
}

fn join(hosts: &[Host], part: impl Fn(&Host) -> &Vec<f64>) -> Vec<f64> {
    hosts.iter().flat_map(|h| part(h).iter().copied()).collect()
}

fn ends(lengths: impl Iterator<Item = usize>) -> A {
    let mut end = 0;
    A::Ints(
        lengths
            .map(|n| {
                end += n as i64;
                end
            })
            .collect(),
    )
}

fn i(n: usize) -> i64 {
    n as i64
}

#[test]
fn packed_sequences_match_the_reference() {
    let mut noise = Noise::new(20);
    for (dtype, tolerance) in [(F32, 2e-6), (BF16, 1e-2), (F16, 1e-3)] {
        for shape in [
            Shape { heads: 4, kv_heads: 2, d: 16, dv: 16 },
            Shape { heads: 3, kv_heads: 3, d: 8, dv: 12 },
            Shape { heads: 7, kv_heads: 1, d: 64, dv: 64 },
        ] {
            for mode in [0, 3] {
                for lay in LAYS {
                    let hosts: Vec<Host> = [(5, 5), (1, 9), (3, 200), (2, 2), (4, 0)]
                        .into_iter()
                        .map(|(q, k)| shape.host(&mut noise, q, k))
                        .collect();
                    let (queries, keys): (usize, usize) = (15, 216);
                    let mut lab = Lab::new();
                    let q =
                        lab.tensor_as(dtype, &[i(queries), i(shape.heads), i(shape.d)], &join(&hosts, |h| &h.q), lay);
                    let k =
                        lab.tensor_as(dtype, &[i(keys), i(shape.kv_heads), i(shape.d)], &join(&hosts, |h| &h.k), lay);
                    let v = lab.tensor(dtype, &[i(keys), i(shape.kv_heads), i(shape.dv)], &join(&hosts, |h| &h.v));
                    let out = lab.room_as(dtype, &[i(queries), i(shape.heads), i(shape.dv)], lay);
                    let lse = lab.room(F32, &[i(queries), i(shape.heads), 1]);
                    let mut args = arguments(q, k, v, out, i(shape.heads), i(shape.kv_heads));
                    args[at::LENGTHS_Q] = ends(hosts.iter().map(|h| h.queries));
                    args[at::LENGTHS_KV] = ends(hosts.iter().map(|h| h.keys));
                    args[at::SPARSE_MODE] = A::I(mode);
                    args[at::LSE_FLAG] = A::B(true);
                    args[at::LSE] = A::T(lse);
                    lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
                    let (mut want, mut want_lse) = (Vec::new(), Vec::new());
                    for host in &hosts {
                        let hides = causal(host);
                        let (o, l) = shape.reference(host, |i, t| mode == 3 && hides(i, t));
                        want.extend(o);
                        want_lse.extend(l);
                    }
                    close(&lab.read(&out), &want, tolerance);
                    for (g, w) in lab.read(&lse).iter().zip(&want_lse) {
                        assert!(g == w || (g - w).abs() < 2e-2, "log-sum-exp {g} instead of {w}");
                    }
                }
            }
        }
    }
}

#[test]
fn batched_layouts_agree_with_the_packed_one_bit_for_bit() {
    let mut noise = Noise::new(21);
    let shape = Shape { heads: 4, kv_heads: 2, d: 16, dv: 16 };
    let (heads, kv_heads, d) = (4usize, 2usize, 16usize);
    let (padded_q, padded_k) = (4usize, 40usize);
    for mode in [0, 3] {
        let hosts: Vec<Host> = [(4, 40), (1, 17)].into_iter().map(|(q, k)| shape.host(&mut noise, q, k)).collect();
        let mut lab = Lab::new();
        let mut packed_args = {
            let q = lab.tensor(F32, &[5, 4, 16], &join(&hosts, |h| &h.q));
            let k = lab.tensor(F32, &[57, 2, 16], &join(&hosts, |h| &h.k));
            let v = lab.tensor(F32, &[57, 2, 16], &join(&hosts, |h| &h.v));
            let out = lab.room(F32, &[5, 4, 16]);
            arguments(q, k, v, out, 4, 2)
        };
        packed_args[at::LENGTHS_Q] = A::Ints(vec![4, 5]);
        packed_args[at::LENGTHS_KV] = A::Ints(vec![40, 57]);
        packed_args[at::SPARSE_MODE] = A::I(mode);
        lab.ok(ops::aclnnFusedInferAttentionScoreV3, &packed_args);
        let A::T(packed_out) = packed_args[at::OUT] else { unreachable!() };
        let packed = lab.read(&packed_out);

        // [sequence, token, head, width] with padding at the end of each sequence.
        let pad = |part: &dyn Fn(&Host) -> &Vec<f64>, tokens: usize, heads: usize| -> Vec<f64> {
            let mut all = Vec::new();
            for host in &hosts {
                let own = part(host);
                all.extend(own);
                all.resize(all.len() + tokens * heads * d - own.len(), 77.0);
            }
            all
        };
        let (vq, vk, vv) =
            (pad(&|h| &h.q, padded_q, heads), pad(&|h| &h.k, padded_k, kv_heads), pad(&|h| &h.v, padded_k, kv_heads));
        let swap = |values: &[f64], tokens: usize, heads: usize| -> Vec<f64> {
            (0..values.len())
                .map(|at| {
                    let (c, t, h, b) = (at % d, at / d % tokens, at / d / tokens % heads, at / d / tokens / heads);
                    values[((b * tokens + t) * heads + h) * d + c]
                })
                .collect()
        };
        let row = heads * d;
        for layout in ["BSND", "BSH", "BNSD"] {
            let dims = |tokens: usize, heads: usize| match layout {
                "BSND" => vec![2, i(tokens), i(heads), i(d)],
                "BSH" => vec![2, i(tokens), i(heads * d)],
                _ => vec![2, i(heads), i(tokens), i(d)],
            };
            let order = |values: &[f64], tokens, heads| {
                if layout == "BNSD" { swap(values, tokens, heads) } else { values.to_vec() }
            };
            let q = lab.tensor(F32, &dims(padded_q, heads), &order(&vq, padded_q, heads));
            let k = lab.tensor(F32, &dims(padded_k, kv_heads), &order(&vk, padded_k, kv_heads));
            let v = lab.tensor(F32, &dims(padded_k, kv_heads), &order(&vv, padded_k, kv_heads));
            let out = lab.room(F32, &dims(padded_q, heads));
            let mut args = arguments(q, k, v, out, 4, 2);
            args[at::LAYOUT] = A::Str(layout);
            args[at::LENGTHS_Q] = A::Ints(vec![4, 1]);
            args[at::LENGTHS_KV] = A::Ints(vec![40, 17]);
            args[at::SPARSE_MODE] = A::I(mode);
            lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
            let got = lab.read(&out);
            let got = if layout == "BNSD" {
                (0..got.len())
                    .map(|at| {
                        let (c, h, t, b) = (at % d, at / d % heads, at / row % padded_q, at / row / padded_q);
                        got[((b * heads + h) * padded_q + t) * d + c]
                    })
                    .collect()
            } else {
                got
            };
            assert_eq!(got[..4 * row], packed[..4 * row], "{layout}");
            assert_eq!(got[4 * row..5 * row], packed[4 * row..], "{layout}");
            assert!(got[5 * row..].iter().all(|&v| v == 0.0), "{layout}: padding is zero");
        }
    }
}

#[test]
fn one_length_serves_all_sequences_and_none_means_full() {
    let mut noise = Noise::new(22);
    let mut lab = Lab::new();
    let (vq, vk) = (noise.values(2 * 3 * 8), noise.values(2 * 6 * 8));
    let (q, k) = (lab.tensor(F32, &[2, 3, 1, 8], &vq), lab.tensor(F32, &[2, 6, 1, 8], &vk));
    let mut results = Vec::new();
    for lengths in [A::Null, A::Ints(vec![]), A::Ints(vec![6]), A::Ints(vec![6, 6])] {
        let out = lab.room(F32, &[2, 3, 1, 8]);
        let mut args = arguments(q, k, k, out, 1, 0);
        args[at::LAYOUT] = A::Str("BSND");
        args[at::LENGTHS_KV] = lengths;
        lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
        results.push(lab.read(&out));
    }
    assert!(results.iter().all(|result| result == &results[0]));
}

#[test]
fn a_mask_hides_keys() {
    let mut noise = Noise::new(23);
    let shape = Shape { heads: 2, kv_heads: 1, d: 8, dv: 8 };
    let hosts: Vec<Host> = (0..2).map(|_| shape.host(&mut noise, 3, 150)).collect();
    let flags: Vec<f64> = (0..2 * 3 * 150).map(|_| noise.below(2) as f64).collect();
    // Row 1 of sequence 0 sees nothing.
    let flags: Vec<f64> = flags.iter().enumerate().map(|(at, &f)| if at / 150 == 1 { 1.0 } else { f }).collect();
    for dtype in [Bool, I8] {
        for (dims, shared) in
            [(&[2i64, 1, 3, 150][..], false), (&[2, 3, 150], false), (&[3, 150], true), (&[1, 1, 3, 150], true)]
        {
            let mut lab = Lab::new();
            let q = lab.tensor(F32, &[2, 3, 2, 8], &join(&hosts, |h| &h.q));
            let k = lab.tensor(F32, &[2, 150, 1, 8], &join(&hosts, |h| &h.k));
            let v = lab.tensor(F32, &[2, 150, 1, 8], &join(&hosts, |h| &h.v));
            let out = lab.room(F32, &[2, 3, 2, 8]);
            let mask = lab.tensor_as(dtype, dims, &flags[..if shared { 450 } else { 900 }], Lay::Sliced);
            let mut args = arguments(q, k, v, out, 2, 1);
            args[at::LAYOUT] = A::Str("BSND");
            args[at::SPARSE_MODE] = A::I(0);
            args[at::ATTEN_MASK] = A::T(mask);
            lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
            let want: Vec<f64> = (0..2)
                .flat_map(|b| {
                    let from = if shared { 0 } else { b * 450 };
                    let flags = &flags;
                    shape.reference(&hosts[b], move |i, t| flags[from + i * 150 + t] != 0.0).0
                })
                .map(|v| if v.is_nan() { 0.0 } else { v })
                .collect();
            close(&lab.read(&out), &want, 2e-6);
        }
    }
}

/// A paged cache on the device: pages of sequences scattered over it, the rest poisoned with NaN.
struct Paged {
    keys: TensorDesc,
    values: TensorDesc,
    table: TensorDesc,
}

fn paged(lab: &mut Lab, dtype: DataType, shape: Shape, hosts: &[Host], size: usize, form: usize) -> Paged {
    let pages = |host: &Host| host.keys.div_ceil(size);
    let blocks = hosts.iter().map(pages).sum::<usize>() + 2;
    let most = hosts.iter().map(pages).max().unwrap_or(0).max(1);
    let mut table = vec![-7.0; hosts.len() * most];
    let mut next = blocks - 1;
    let mut place = Vec::new();
    for (b, host) in hosts.iter().enumerate() {
        for page in 0..pages(host) {
            table[b * most + page] = next as f64;
            place.push((b, page, next));
            next -= 1;
        }
    }
    let mut fill = |width: usize, part: &dyn Fn(&Host) -> &Vec<f64>| {
        let row = shape.kv_heads * width;
        let mut cache = vec![f64::NAN; blocks * size * row];
        for &(b, page, block) in &place {
            let own = part(&hosts[b]);
            let from = page * size * row;
            let count = (own.len() - from).min(size * row);
            cache[block * size * row..][..count].copy_from_slice(&own[from..from + count]);
        }
        let (blocks, size, heads, width) = (i(blocks), i(size), i(shape.kv_heads), i(width));
        match form {
            0 => lab.tensor(dtype, &[blocks, size, heads * width], &cache),
            1 => lab.tensor(dtype, &[blocks, size, heads, width], &cache),
            _ => {
                let plain = lab.tensor(dtype, &[blocks, size, heads, width], &cache);
                let mut turned = plain;
                turned.dims.swap(1, 2);
                turned.strides.swap(1, 2);
                turned
            }
        }
    };
    let (keys, values) = (fill(shape.d, &|h| &h.k), fill(shape.dv, &|h| &h.v));
    let index = if form == 1 { I64 } else { I32 };
    let table = lab.tensor(index, &[i(hosts.len()), i(most)], &table);
    Paged { keys, values, table }
}

fn run_paged(lab: &mut Lab, dtype: DataType, shape: Shape, cache: &Paged, size: usize, hosts: &[Host]) -> Vec<f64> {
    let queries: usize = hosts.iter().map(|h| h.queries).sum();
    let q = lab.tensor(dtype, &[i(queries), i(shape.heads), i(shape.d)], &join(hosts, |h| &h.q));
    let out = lab.room(dtype, &[i(queries), i(shape.heads), i(shape.dv)]);
    let mut args = arguments(q, cache.keys, cache.values, out, i(shape.heads), i(shape.kv_heads));
    args[at::LENGTHS_Q] = ends(hosts.iter().map(|h| h.queries));
    args[at::LENGTHS_KV] = A::Ints(hosts.iter().map(|h| i(h.keys)).collect());
    args[at::BLOCK_TABLE] = A::T(cache.table);
    args[at::BLOCK_SIZE] = A::I(i(size));
    lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
    lab.read(&out)
}

#[test]
fn pages_change_nothing() {
    let mut noise = Noise::new(24);
    let shape = Shape { heads: 4, kv_heads: 2, d: 16, dv: 24 };
    for dtype in [F32, BF16] {
        let hosts: Vec<Host> =
            [(3, 300), (1, 1), (2, 0), (7, 64)].into_iter().map(|(q, k)| shape.host(&mut noise, q, k)).collect();
        let mut lab = Lab::new();
        let q = lab.tensor(dtype, &[13, 4, 16], &join(&hosts, |h| &h.q));
        let k = lab.tensor(dtype, &[365, 2, 16], &join(&hosts, |h| &h.k));
        let v = lab.tensor(dtype, &[365, 2, 24], &join(&hosts, |h| &h.v));
        let out = lab.room(dtype, &[13, 4, 24]);
        let mut args = arguments(q, k, v, out, 4, 2);
        args[at::LENGTHS_Q] = ends(hosts.iter().map(|h| h.queries));
        args[at::LENGTHS_KV] = ends(hosts.iter().map(|h| h.keys));
        lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
        let want = lab.read(&out);
        for size in [16, 128, 200] {
            for form in 0..3 {
                let cache = paged(&mut lab, dtype, shape, &hosts, size, form);
                assert_eq!(
                    run_paged(&mut lab, dtype, shape, &cache, size, &hosts),
                    want,
                    "blocks of {size}, form {form}"
                );
            }
        }
    }
}

/// The heart of batch invariance: the tokens of a prompt give the same bits computed at once, in chunks of any size,
/// one by one, beside other sequences, from other pages, and on any number of threads.
#[test]
fn a_row_has_the_same_bits_in_any_batch_chunk_or_page() {
    let shape = Shape { heads: 6, kv_heads: 2, d: 32, dv: 32 };
    let row = shape.heads * shape.dv;
    let total = 330usize;
    for dtype in [F32, BF16] {
        let mut noise = Noise::new(25);
        let whole = shape.host(&mut noise, total, total);
        let chunk = |from: usize, to: usize| Host {
            q: whole.q[from * shape.heads * shape.d..to * shape.heads * shape.d].to_vec(),
            k: whole.k[..to * shape.kv_heads * shape.d].to_vec(),
            v: whole.v[..to * shape.kv_heads * shape.dv].to_vec(),
            queries: to - from,
            keys: to,
        };
        let other = |noise: &mut Noise| {
            let (queries, keys) = (1 + noise.below(5) as usize, 5 + noise.below(300) as usize);
            shape.host(noise, queries, keys)
        };
        let mut reference: Vec<f64> = Vec::new();
        for helpers in [0, 2] {
            for cuts in [
                vec![total],
                vec![1, 2, 3, 130, 131, total],
                vec![64, 128, 192, 256, 320, total],
                (1..=total).step_by(1).collect(),
            ] {
                let mut got = Vec::new();
                let mut from = 0;
                for (step, &to) in cuts.iter().enumerate() {
                    if cuts.len() == total && to > 3 && to % 41 != 0 && to != total {
                        // One by one takes long; a sample of positions is enough.
                        got.extend(&reference[from * row..to * row]);
                        from = to;
                        continue;
                    }
                    let mut lab = Lab::with_helpers(helpers);
                    let size = [16, 128][step % 2];
                    let mut hosts = vec![chunk(from, to)];
                    if step % 3 > 0 {
                        hosts.insert(0, other(&mut noise));
                        hosts.push(other(&mut noise));
                    }
                    let before = if hosts.len() > 1 { hosts[0].queries * row } else { 0 };
                    let cache = paged(&mut lab, dtype, shape, &hosts, size, step % 3);
                    let out = run_paged(&mut lab, dtype, shape, &cache, size, &hosts);
                    got.extend(&out[before..before + (to - from) * row]);
                    from = to;
                }
                if reference.is_empty() {
                    reference = got;
                } else {
                    assert!(got == reference, "{dtype:?}, {helpers} helpers, {} chunks", cuts.len());
                }
            }
        }
    }
}

#[test]
fn decode_beside_padding_rows() {
    let mut noise = Noise::new(26);
    let shape = Shape { heads: 2, kv_heads: 2, d: 8, dv: 8 };
    let mut lab = Lab::new();
    let hosts: Vec<Host> = [(1, 20), (1, 0), (1, 0)].into_iter().map(|(q, k)| shape.host(&mut noise, q, k)).collect();
    let cache = paged(&mut lab, F32, shape, &hosts, 16, 0);
    let got = run_paged(&mut lab, F32, shape, &cache, 16, &hosts);
    let (want, _) = shape.reference(&hosts[0], |_, _| false);
    close(&got[..16], &want, 2e-6);
    assert!(got[16..].iter().all(|&v| v == 0.0), "a padded sequence has no keys and gives zeros");
}

/// Named arguments of any operator of inference; what is not given is null, 0 or empty.
fn named(op: acl_abi::OpId, given: Vec<(&str, A)>) -> Vec<A> {
    use acl_abi::Kind;
    let params = op.signature().params.iter();
    params
        .map(|p| match (given.iter().find(|(name, _)| *name == p.name), p.kind) {
            (Some((_, value)), _) => value.clone(),
            (None, Kind::F32 | Kind::F64) => A::F(0.0),
            (None, Kind::Bool) => A::B(false),
            (None, Kind::Str) => A::Str(""),
            (None, Kind::I8 | Kind::I32 | Kind::I64 | Kind::U64) => A::I(0),
            (None, _) => A::Null,
        })
        .collect()
}

#[test]
fn the_other_operators_and_layouts_of_inference_give_the_same_bits() {
    let mut noise = Noise::new(27);
    let shape = Shape { heads: 4, kv_heads: 2, d: 8, dv: 8 };
    let hosts: Vec<Host> = [(1, 20), (1, 20)].into_iter().map(|(q, k)| shape.host(&mut noise, q, k)).collect();
    let mut lab = Lab::new();
    let (vq, vk, vv) = (join(&hosts, |h| &h.q), join(&hosts, |h| &h.k), join(&hosts, |h| &h.v));
    let (q, k, v) = (
        lab.tensor(F32, &[2, 1, 4, 8], &vq),
        lab.tensor(F32, &[2, 20, 2, 8], &vk),
        lab.tensor(F32, &[2, 20, 2, 8], &vv),
    );
    let out = lab.room(F32, &[2, 1, 4, 8]);
    let mut args = arguments(q, k, v, out, 4, 2);
    (args[at::LAYOUT], args[at::SPARSE_MODE]) = (A::Str("BSND"), A::I(0));
    args[at::LENGTHS_KV] = A::Ints(vec![13, 20]);
    lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
    let want = lab.read(&out);
    let shared = |lab: &mut Lab| {
        let out = lab.room(F32, &[2, 1, 4, 8]);
        let given = vec![
            ("query", A::T(q)),
            ("numHeads", A::I(4)),
            ("numKeyValueHeads", A::I(2)),
            ("scaleValue", A::F(0.5)),
            ("inputLayout", A::Str("BSND")),
            ("attentionOut", A::T(out)),
        ];
        (out, given)
    };
    let lengths = || A::Ints(vec![13, 20]);
    for (op, listed, lens) in [
        (ops::aclnnFusedInferAttentionScoreV2, true, "actualSeqLengthsKvOptional"),
        (ops::aclnnFusedInferAttentionScoreV4, true, "actualSeqLengthsKvOptional"),
        (ops::aclnnPromptFlashAttentionV3, false, "actualSeqLengthsKv"),
        (ops::aclnnIncreFlashAttentionV4, true, "actualSeqLengths"),
    ] {
        let (out, mut given) = shared(&mut lab);
        let (k, v) = if listed { (A::List(vec![k]), A::List(vec![v])) } else { (A::T(k), A::T(v)) };
        given.extend([("key", k), ("value", v), (lens, lengths())]);
        lab.ok(op, &named(op, given));
        assert_eq!(lab.read(&out), want, "{}", op.name());
    }
    // Another layout for the result, heads first in a packed one, and a term added to the scaled scores.
    let turned = lab.room(F32, &[2, 4, 1, 8]);
    args[at::OUT] = A::T(turned);
    args[at::LAYOUT] = A::Str("BSND_BNSD");
    lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
    assert_eq!(lab.read(&turned), want, "one token: the order of heads and tokens is the same in memory");
    let bias = noise.values(4 * 20);
    let tb = lab.tensor(F32, &[1, 4, 1, 20], &bias);
    (args[at::OUT], args[at::LAYOUT], args[at::BIAS]) = (A::T(out), A::Str("BSND"), A::T(tb));
    lab.ok(ops::aclnnFusedInferAttentionScoreV3, &args);
    let got = lab.read(&out);
    for (at, value) in got.iter().enumerate() {
        let (b, h, c) = (at / 32, at / 8 % 4, at % 8);
        let keys = [13, 20][b];
        let score = |t: usize| -> f64 {
            let dot: f64 = (0..8).map(|i| hosts[b].q[h * 8 + i] * hosts[b].k[(t * 2 + h / 2) * 8 + i]).sum();
            (0.5 * dot + bias[h * 20 + t]).exp()
        };
        let sum: f64 = (0..keys).map(score).sum();
        let want: f64 = (0..keys).map(|t| score(t) / sum * hosts[b].v[(t * 2 + h / 2) * 8 + c]).sum();
        assert!((value - want).abs() < 1e-5, "{at}: {value} instead of {want}");
    }
}
