//! Mixture of experts: routing against sorting by hand, the way there and back, and grouped products.

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, Lab, Noise, close};

use DataType::{BF16, F32, I32, I64};

/// Tokens, experts a token, experts, width.
const SIZES: [usize; 4] = [7, 3, 5, 4];

struct Routed {
    x: Vec<f64>,
    experts: Vec<f64>,
    /// Pairs in the order of their experts.
    order: Vec<usize>,
}

fn routed(noise: &mut Noise) -> Routed {
    let [n, k, e, h] = SIZES;
    let experts: Vec<f64> = (0..n * k).map(|_| noise.below(e as u64) as f64).collect();
    let mut order: Vec<usize> = (0..n * k).collect();
    order.sort_by_key(|&pair| experts[pair] as i64);
    Routed { x: noise.values(n * h), experts, order }
}

fn row(x: &[f64], token: usize) -> &[f64] {
    &x[token * 4..][..4]
}

fn tensors(lab: &mut Lab, r: &Routed, dtype: DataType) -> (A, A) {
    (A::T(lab.tensor(dtype, &[7, 4], &r.x)), A::T(lab.tensor(I32, &[7, 3], &r.experts)))
}

fn ints(values: &[i64]) -> Vec<A> {
    values.iter().map(|&value| A::I(value)).collect()
}

#[test]
fn rows_are_brought_into_the_order_of_the_experts_and_back() {
    let mut noise = Noise::new(90);
    for dtype in [F32, BF16] {
        let r = routed(&mut noise);
        let mut lab = Lab::new();
        let (x, experts) = tensors(&mut lab, &r, dtype);
        let (expanded, index, counts) = (lab.room(dtype, &[21, 4]), lab.room(I32, &[21]), lab.room(I32, &[5]));
        let counted: Vec<f64> =
            (0..5).map(|e| r.experts.iter().filter(|&&x| x == f64::from(e)).count() as f64).collect();
        let ends: Vec<f64> = (0..5).map(|e| counted[..=e].iter().sum()).collect();
        for (flag, want) in [(1, &ends), (2, &counted)] {
            let mut args = vec![x.clone(), experts.clone()];
            args.extend(ints(&[0, 0, 5, 0, flag]));
            args.extend([A::B(false), A::T(expanded), A::T(index), A::T(counts), A::Null]);
            lab.ok(ops::aclnnMoeInitRoutingV2, &args);
            let rows: Vec<f64> = r.order.iter().flat_map(|&pair| row(&r.x, pair / 3)).copied().collect();
            assert_eq!(lab.read(&expanded), rows);
            assert_eq!(&lab.read(&counts), want);
            for (position, &pair) in r.order.iter().enumerate() {
                assert_eq!(lab.read(&index)[pair], position as f64);
            }
        }
        // Back: with weights, residuals and the bias of each expert, from rows in row-major order of pairs.
        let (scales, bias, extra) = (noise.values(21), noise.values(20), noise.values(28));
        let (ts, tb) = (A::T(lab.tensor(dtype, &[7, 3], &scales)), A::T(lab.tensor(dtype, &[5, 4], &bias)));
        let (t1, out) = (A::T(lab.tensor(dtype, &[7, 4], &extra)), lab.room(dtype, &[7, 4]));
        let args = [A::T(expanded), A::T(index), t1, A::Null, tb, ts, experts.clone(), A::I(2), A::T(out)];
        lab.ok(ops::aclnnMoeFinalizeRoutingV2, &args);
        let want: Vec<f64> = (0..28)
            .map(|at| {
                let (i, j) = (at / 4, at % 4);
                let each = |k: usize| scales[i * 3 + k] * (r.x[at] + bias[r.experts[i * 3 + k] as usize * 4 + j]);
                extra[at] + (0..3).map(each).sum::<f64>()
            })
            .collect();
        close(&lab.read(&out), &want, if dtype == F32 { 1e-6 } else { 1e-2 });
        // Column-major indices name the same rows.
        let turned: Vec<f64> = (0..21).map(|at| lab.read(&index)[at % 7 * 3 + at / 7]).collect();
        let turned = A::T(lab.tensor(I32, &[21], &turned));
        let again = lab.room(dtype, &[7, 4]);
        let mut args = args.to_vec();
        (args[1], args[7], args[8]) = (turned, A::I(0), A::T(again));
        lab.ok(ops::aclnnMoeFinalizeRoutingV2, &args);
        assert_eq!(lab.read(&again), lab.read(&out));
    }
}

#[test]
fn capacity_drops_pairs_and_pads_with_zeros() {
    let mut noise = Noise::new(91);
    let r = routed(&mut noise);
    let mut lab = Lab::new();
    let (x, experts) = tensors(&mut lab, &r, F32);
    let (expanded, index, before) = (lab.room(F32, &[5, 2, 4]), lab.room(I32, &[21]), lab.room(I32, &[5]));
    let mut args = vec![x, experts];
    args.extend(ints(&[0, 2, 5, 1, 0]));
    args.extend([A::B(true), A::T(expanded), A::T(index), A::Null, A::T(before)]);
    lab.ok(ops::aclnnMoeInitRoutingV2, &args);
    let (mut rows, mut places) = (vec![0.0; 40], vec![-1.0; 21]);
    let mut used = [0usize; 5];
    for &pair in &r.order {
        let e = r.experts[pair] as usize;
        if used[e] < 2 {
            rows[(e * 2 + used[e]) * 4..][..4].copy_from_slice(row(&r.x, pair / 3));
            places[pair] = (e * 2 + used[e]) as f64;
        }
        used[e] += 1;
    }
    assert!(places.contains(&-1.0), "the case drops something");
    assert_eq!((lab.read(&expanded), lab.read(&index)), (rows, places.clone()));
    assert_eq!(lab.read(&before), used.map(|n| n as f64));
    // What was dropped adds nothing.
    let out = lab.room(F32, &[7, 4]);
    let nothing = A::Null;
    let args = [
        A::T(expanded),
        A::T(index),
        nothing.clone(),
        nothing.clone(),
        nothing.clone(),
        nothing.clone(),
        nothing,
        A::I(3),
        A::T(out),
    ];
    lab.ok(ops::aclnnMoeFinalizeRoutingV2, &args);
    let kept = |i: usize| places[i * 3..][..3].iter().filter(|&&p| p >= 0.0).count() as f64;
    let want: Vec<f64> = (0..28).map(|at| kept(at / 4) * r.x[at]).collect();
    close(&lab.read(&out), &want, 1e-6);
}

#[test]
fn only_experts_of_the_range_take_part() {
    let mut noise = Noise::new(92);
    let r = routed(&mut noise);
    let own: Vec<usize> = r.order.iter().copied().filter(|&pair| (1.0..4.0).contains(&r.experts[pair])).collect();
    let mut lab = Lab::new();
    let (x, experts) = tensors(&mut lab, &r, F32);
    let scale = noise.values(7);
    let ts = A::T(lab.tensor(F32, &[7], &scale));
    for (kind, counts_kind, dims) in [(0, 1, &[3i64][..]), (1, 0, &[3]), (0, 2, &[5, 2])] {
        let (expanded, index) = (lab.tensor(F32, &[21, 4], &[7.0; 84]), lab.room(I32, &[21]));
        let (counts, scales) = (lab.room(I64, dims), lab.room(F32, &[21]));
        let mut args = vec![x.clone(), experts.clone(), ts.clone(), A::Null];
        args.extend(ints(&[21, 0, 5, 0, counts_kind]));
        args.extend([A::B(true), A::I(-1), A::Ints(vec![1, 4]), A::I(kind)]);
        args.extend([expanded, index, counts, scales].map(A::T));
        lab.ok(if kind == 0 { ops::aclnnMoeInitRoutingCustom } else { ops::aclnnMoeInitRoutingV3 }, &args);
        let rows: Vec<f64> = own.iter().flat_map(|&pair| row(&r.x, pair / 3)).copied().collect();
        let got = lab.read(&expanded);
        assert_eq!(got[..rows.len()], rows);
        assert!(got[rows.len()..].iter().all(|&v| v == 7.0));
        let mut places = vec![-1.0; 21];
        for (position, &pair) in own.iter().enumerate() {
            if kind == 0 {
                places[pair] = position as f64;
            } else {
                places[position] = pair as f64;
            }
        }
        assert_eq!(lab.read(&index), places);
        let sizes: Vec<f64> =
            (1..4).map(|e| own.iter().filter(|&&pair| r.experts[pair] == f64::from(e)).count() as f64).collect();
        let want = match counts_kind {
            0 => (0..3).map(|e| sizes[..=e].iter().sum()).collect(),
            1 => sizes,
            _ => {
                let some = (0..3).filter(|&e| sizes[e] > 0.0);
                let mut table: Vec<f64> = some.flat_map(|e| [e as f64 + 1.0, sizes[e]]).collect();
                table.resize(10, 0.0);
                table
            }
        };
        assert_eq!(lab.read(&counts), want);
        let wanted: Vec<f64> = own.iter().map(|&pair| scale[pair / 3]).collect();
        close(&lab.read(&scales)[..own.len()], &wanted, 1e-7);
    }
}

#[test]
fn permuted_tokens_return_and_gradients_go_the_other_way() {
    let mut noise = Noise::new(93);
    let r = routed(&mut noise);
    for cut in [0i64, 15, -4] {
        let rows = if cut == 0 { 21 } else { (cut + 21) as usize % 21 };
        let mut lab = Lab::new();
        let (x, experts) = tensors(&mut lab, &r, F32);
        let (permuted, index) = (lab.room(F32, &[rows as i64, 4]), lab.room(I32, &[21]));
        lab.ok(ops::aclnnMoeTokenPermute, &[x, experts, A::I(cut), A::B(false), A::T(permuted), A::T(index)]);
        let kept: Vec<usize> = r.order[..rows].to_vec();
        let want: Vec<f64> = kept.iter().flat_map(|&pair| row(&r.x, pair / 3)).copied().collect();
        assert_eq!(lab.read(&permuted), want);

        let probs = noise.values(21);
        let tp = A::T(lab.tensor(F32, &[7, 3], &probs));
        let out = lab.room(F32, &[7, 4]);
        let args = [A::T(permuted), A::T(index), tp.clone(), A::B(false), A::Null, A::T(out)];
        lab.ok(ops::aclnnMoeTokenUnpermute, &args);
        let mass = |i: usize| (0..3).filter(|k| kept.contains(&(i * 3 + k))).map(|k| probs[i * 3 + k]).sum::<f64>();
        let want: Vec<f64> = (0..28).map(|at| mass(at / 4) * r.x[at]).collect();
        close(&lab.read(&out), &want, 1e-6);

        let dy = noise.values(28);
        let ty = A::T(lab.tensor(F32, &[7, 4], &dy));
        let (dx, dp) = (lab.room(F32, &[rows as i64, 4]), lab.room(F32, &[7, 3]));
        let args = [A::T(permuted), ty, A::T(index), tp, A::B(false), A::Null, A::T(dx), A::T(dp)];
        lab.ok(ops::aclnnMoeTokenUnpermuteGrad, &args);
        let want: Vec<f64> = kept
            .iter()
            .flat_map(|&pair| row(&dy, pair / 3).iter().map(move |d| (pair, d)))
            .map(|(pair, d)| d * probs[pair])
            .collect();
        close(&lab.read(&dx), &want, 1e-6);
        let want: Vec<f64> = (0..21)
            .map(|pair| {
                let both = row(&dy, pair / 3).iter().zip(row(&r.x, pair / 3));
                if kept.contains(&pair) { both.map(|(a, b)| a * b).sum() } else { 0.0 }
            })
            .collect();
        close(&lab.read(&dp), &want, 1e-6);

        let g = noise.values(rows * 4);
        let (tg, out) = (A::T(lab.tensor(F32, &[rows as i64, 4], &g)), lab.room(F32, &[7, 4]));
        lab.ok(ops::aclnnMoeTokenPermuteGrad, &[tg, A::T(index), A::I(3), A::B(false), A::T(out)]);
        let mut want = vec![0.0; 28];
        for (position, &pair) in kept.iter().enumerate() {
            (0..4).for_each(|j| want[pair / 3 * 4 + j] += g[position * 4 + j]);
        }
        close(&lab.read(&out), &want, 1e-6);
    }
}

#[test]
fn gates_choose_groups_then_experts() {
    let mut noise = Noise::new(94);
    let (rows, experts, groups, each, k) = (6usize, 12usize, 4usize, 3usize, 3usize);
    for (norm, mode, kept_groups, biased) in [(0, 0, 4, false), (1, 1, 2, true), (1, 0, 2, true), (0, 1, 1, true)] {
        let x = noise.fractions(rows * experts);
        let bias = if biased { noise.fractions(experts) } else { vec![0.0; experts] };
        let (mut ys, mut ids, mut outs) = (Vec::new(), Vec::new(), Vec::new());
        for row in x.chunks(experts) {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            let score = |x: f64| if norm == 0 { x.exp() / sum } else { 1.0 / (1.0 + (-x).exp()) };
            let scores: Vec<f64> = row.iter().map(|&x| score(x)).collect();
            let with: Vec<f64> = scores.iter().zip(&bias).map(|(s, b)| s + b).collect();
            let value = |g: usize| {
                let mut own = with[g * each..][..each].to_vec();
                own.sort_by(|a, b| b.partial_cmp(a).unwrap());
                if mode == 0 { own[0] } else { own[0] + own[1] }
            };
            let mut order: Vec<usize> = (0..groups).collect();
            order.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).unwrap());
            let kept = &order[..kept_groups];
            let mut all: Vec<usize> = (0..experts).filter(|e| kept.contains(&(e / each))).collect();
            all.sort_by(|&a, &b| with[b].partial_cmp(&with[a]).unwrap());
            let best = &all[..k];
            let total: f64 = if norm == 1 { best.iter().map(|&e| scores[e]).sum::<f64>() + 1e-20 } else { 1.0 };
            ys.extend(best.iter().map(|&e| scores[e] / total * 2.5));
            ids.extend(best.iter().map(|&e| e as f64));
            outs.extend(scores);
        }
        let mut lab = Lab::new();
        let (y, id, out) = (lab.room(F32, &[6, 3]), lab.room(I32, &[6, 3]), lab.room(F32, &[6, 12]));
        let mut args = vec![A::T(lab.tensor(F32, &[6, 12], &x))];
        args.push(if biased { A::T(lab.tensor(F32, &[12], &bias)) } else { A::Null });
        args.extend(ints(&[k as i64, kept_groups as i64, groups as i64, mode, 0, norm]));
        args.extend([A::B(true), A::F(2.5), A::F(1e-20), A::T(y), A::T(id), A::T(out)]);
        lab.ok(ops::aclnnMoeGatingTopK, &args);
        assert_eq!(lab.read(&id), ids);
        close(&lab.read(&y), &ys, 1e-6);
        close(&lab.read(&out), &outs, 1e-6);
    }
}

fn product(x: &[f64], w: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    (0..m * n).map(|at| (0..k).map(|j| x[at / n * k + j] * w[j * n + at % n]).sum()).collect()
}

/// Arguments of GroupedMatmulV4.
fn grouped(
    x: Vec<TensorDesc>,
    w: Vec<TensorDesc>,
    bias: A,
    groups: A,
    kinds: [i64; 3],
    out: Vec<TensorDesc>,
) -> Vec<A> {
    let mut args = vec![A::List(x), A::List(w), bias];
    args.extend((0..5).map(|_| A::Null));
    args.push(groups);
    args.extend((0..3).map(|_| A::Null));
    args.extend(ints(&[3, kinds[0], kinds[1], kinds[2]]));
    args.extend([A::List(out), A::Null, A::Null]);
    args
}

#[test]
fn products_by_group_of_rows_or_of_depth_or_tensor_by_tensor() {
    let mut noise = Noise::new(95);
    let (m, k, n) = (9usize, 6usize, 5usize);
    let sizes = [4usize, 0, 3];
    let (x, w, b) = (noise.values(m * k), noise.values(3 * k * n), noise.values(3 * n));
    let mut want = vec![7.0; m * n];
    let mut from = 0;
    for (g, &size) in sizes.iter().enumerate() {
        let part = product(&x[from * k..][..size * k], &w[g * k * n..][..k * n], size, k, n);
        for (at, value) in part.into_iter().enumerate() {
            want[from * n + at] = value + b[g * n + at % n];
        }
        from += size;
    }
    let mut lab = Lab::new();
    let (tx, tw) = (lab.tensor(F32, &[9, 6], &x), lab.tensor(F32, &[3, 6, 5], &w));
    let ends = A::T(lab.tensor(I64, &[3], &[4.0, 4.0, 7.0]));
    let counts = A::T(lab.tensor(I64, &[3], &[4.0, 0.0, 3.0]));
    let alone: Vec<TensorDesc> = (0..3).map(|g| lab.tensor(F32, &[6, 5], &w[g * 30..][..30])).collect();
    let rows = A::List(vec![lab.tensor(F32, &[3, 5], &b)]);
    let each = A::List((0..3).map(|g| lab.tensor(F32, &[5], &b[g * 5..][..5])).collect());
    for (weights, bias, list, kind) in
        [(vec![tw], rows.clone(), ends.clone(), 0), (alone.clone(), each.clone(), counts, 1)]
    {
        let out = lab.tensor(F32, &[9, 5], &[7.0; 45]);
        let args = grouped(vec![tx], weights, bias.clone(), list, [0, kind, 0], vec![out]);
        lab.ok(ops::aclnnGroupedMatmulV4, &args);
        close(&lab.read(&out), &want, 1e-5);
    }
    let out = lab.tensor(F32, &[9, 5], &[7.0; 45]);
    let mut args = vec![A::List(vec![tx]), A::List(vec![tw]), rows];
    args.extend((0..4).map(|_| A::Null));
    args.extend([A::Ints(vec![4, 4, 7]), A::I(3), A::List(vec![out])]);
    lab.ok(ops::aclnnGroupedMatmul, &args);
    close(&lab.read(&out), &want, 1e-5);

    // A tensor a group, of any rank.
    let (a, c) = (lab.tensor(F32, &[2, 2, 6], &x[..24]), lab.tensor(F32, &[3, 6], &x[24..42]));
    let outs = vec![lab.room(F32, &[2, 2, 5]), lab.room(F32, &[3, 5])];
    let args = grouped(vec![a, c], alone[..2].to_vec(), A::List(vec![]), A::Null, [-1, 0, 0], outs.clone());
    lab.ok(ops::aclnnGroupedMatmulV4, &args);
    close(&lab.read(&outs[0]), &product(&x[..24], &w[..30], 4, 6, 5), 1e-5);
    close(&lab.read(&outs[1]), &product(&x[24..42], &w[30..60], 3, 6, 5), 1e-5);

    // By depth: xᵀ·dy for every expert.
    let dy = noise.values(m * n);
    let (mut turned, ty, out) = (tx, lab.tensor(F32, &[9, 5], &dy), lab.room(F32, &[3, 6, 5]));
    turned.dims.swap(0, 1);
    turned.strides.swap(0, 1);
    let args = grouped(vec![turned], vec![ty], A::Null, ends.clone(), [2, 0, 0], vec![out]);
    lab.ok(ops::aclnnGroupedMatmulV4, &args);
    let mut from = 0;
    for (g, &size) in sizes.iter().enumerate() {
        let x: Vec<f64> = (0..k * size).map(|at| x[(from + at % size) * k + at / size]).collect();
        close(&lab.read(&out)[g * 30..][..30], &product(&x, &dy[from * n..][..size * n], k, size, n), 1e-5);
        from += size;
    }
    let out = lab.room(F32, &[9, 5]);
    let far = A::T(lab.tensor(I64, &[3], &[4.0, 4.0, 10.0]));
    let args = grouped(vec![tx], vec![tw], A::Null, far, [0, 0, 0], vec![out]);
    lab.refused(ops::aclnnGroupedMatmulV4, &args, "x: shape [9, 6] has no rows 4+6 for group 2");
    let args = grouped(vec![tx], vec![tw], A::Null, ends, [0, 0, 1], vec![out]);
    lab.refused(ops::aclnnGroupedMatmulV4, &args, "actType: 1 is not supported");
}

#[test]
fn rotations_from_a_table_by_position_and_of_interleaved_heads() {
    let mut noise = Noise::new(96);
    let (tokens, heads, d, r) = (3usize, 2usize, 6usize, 4usize);
    let (q, k) = (noise.values(tokens * heads * d), noise.values(tokens * d));
    let cache = noise.values(5 * r);
    let places = [4usize, 0, 4];
    for neox in [true, false] {
        let turn = |x: &[f64], heads: usize| -> Vec<f64> {
            let mut y = x.to_vec();
            for row in 0..tokens * heads {
                let table = &cache[places[row / heads] * r..][..r];
                for i in 0..r / 2 {
                    let (low, high) = if neox { (i, i + r / 2) } else { (2 * i, 2 * i + 1) };
                    let (a, b) = (x[row * d + low], x[row * d + high]);
                    y[row * d + low] = a * table[i] - b * table[r / 2 + i];
                    y[row * d + high] = b * table[i] + a * table[r / 2 + i];
                }
            }
            y
        };
        let mut lab = Lab::new();
        let (tq, tk) = (lab.tensor(F32, &[3, 12], &q), lab.tensor(F32, &[3, 6], &k));
        let (oq, ok) = (lab.room(F32, &[3, 12]), lab.room(F32, &[3, 6]));
        let table = A::T(lab.tensor(F32, &[5, 4], &cache));
        let at = A::T(lab.tensor(I64, &[3], &places.map(|p| p as f64)));
        let args = [at, A::T(tq), A::T(tk), table.clone(), A::Null, A::I(6), A::B(neox), A::T(oq), A::T(ok)];
        lab.ok(ops::aclnnRopeWithSinCosCache, &args);
        close(&lab.read(&oq), &turn(&q, 2), 1e-6);
        close(&lab.read(&ok), &turn(&k, 1), 1e-6);
        let mut args = args.to_vec();
        args[0] = A::T(lab.tensor(I64, &[3], &[0.0, 5.0, 1.0]));
        lab.refused(ops::aclnnRopeWithSinCosCache, &args, "positions: Some(5) is not in 0..5");
    }
    let (x, cos, sin) = (noise.values(2 * 3 * 4), noise.values(12), noise.values(12));
    let mut lab = Lab::new();
    let (tx, out) = (lab.tensor(F32, &[1, 2, 3, 4], &x), lab.room(F32, &[1, 2, 3, 4]));
    let (tc, ts) = (lab.tensor(F32, &[1, 1, 3, 4], &cos), lab.tensor(F32, &[1, 1, 3, 4], &sin));
    lab.ok(ops::aclnnInterleaveRope, &[A::T(tx), A::T(tc), A::T(ts), A::T(out)]);
    let want: Vec<f64> = (0..24)
        .map(|at| {
            let (row, i, token) = (at / 4 * 4, at % 4, at / 4 % 3);
            let sorted = |i: usize| x[row + if i < 2 { 2 * i } else { 2 * (i - 2) + 1 }];
            let turned = if i < 2 { -sorted(i + 2) } else { sorted(i - 2) };
            sorted(i) * cos[token * 4 + i] + turned * sin[token * 4 + i]
        })
        .collect();
    close(&lab.read(&out), &want, 1e-6);
}
