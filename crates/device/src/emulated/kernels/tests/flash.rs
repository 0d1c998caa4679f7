//! The attention operators of training, forward and back, against a naive double-precision reference.

use acl_abi::{DataType, OpId, TensorDesc, ops};

use super::super::testing::{A, Lab, Noise, close};

use DataType::{BF16, Bool, F16, F32, U8};

/// A problem: `[B, N, S, D]` on the host.
#[derive(Clone)]
struct Problem {
    b: usize,
    n: usize,
    nk: usize,
    s: usize,
    t: usize,
    d: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Problem {
    fn new(noise: &mut Noise, [b, n, nk, s, t, d]: [usize; 6]) -> Self {
        let (q, k, v) = (noise.values(b * n * s * d), noise.values(b * nk * t * d), noise.values(b * nk * t * d));
        Self { b, n, nk, s, t, d, q, k, v }
    }

    /// Result, maxima, sums. `score(b, h, i, j, q·k)` gives the score, or none of a hidden key; `keep` a weight's factor.
    fn forward(&self, score: Score<'_>, keep: Keep<'_>) -> [Vec<f64>; 3] {
        let &Self { b, n, s, t, d, .. } = self;
        let (mut out, mut largest, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..b * n * s {
            let (b, h, i) = (row / s / n, row / s % n, row % s);
            let scores = self.scores(b, h, i, score);
            let m = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
            let w: Vec<f64> = scores.iter().map(|s| s.map_or(0.0, |s| (s - m).exp())).collect();
            let sum: f64 = w.iter().sum();
            for c in 0..d {
                let value = |j: usize| self.v[((b * self.nk + h / (n / self.nk)) * t + j) * d + c];
                let total: f64 = (0..t).map(|j| w[j] * keep(b, h, i, j) * value(j)).sum();
                out.push(if sum == 0.0 { 0.0 } else { total / sum });
            }
            largest.push(m);
            sums.push(sum);
        }
        [out, largest, sums]
    }

    fn scores(&self, b: usize, h: usize, i: usize, score: Score<'_>) -> Vec<Option<f64>> {
        let &Self { n, nk, s, t, d, .. } = self;
        let q = &self.q[((b * n + h) * s + i) * d..][..d];
        let k = |j: usize| &self.k[((b * nk + h / (n / nk)) * t + j) * d..][..d];
        (0..t).map(|j| score(b, h, i, j, q.iter().zip(k(j)).map(|(a, b)| a * b).sum())).collect()
    }

    /// Gradients of `Σ dy·out` by central differences.
    fn backward(&self, dy: &[f64], score: Score<'_>, keep: Keep<'_>) -> [Vec<f64>; 3] {
        let loss = |p: &Self| -> f64 { p.forward(score, keep)[0].iter().zip(dy).map(|(a, b)| a * b).sum() };
        let part = |pick: &dyn Fn(&mut Self) -> &mut Vec<f64>| {
            let mut moved = self.clone();
            (0..pick(&mut moved).len())
                .map(|at| {
                    let own = pick(&mut moved)[at];
                    pick(&mut moved)[at] = own + 1e-4;
                    let above = loss(&moved);
                    pick(&mut moved)[at] = own - 1e-4;
                    let below = loss(&moved);
                    pick(&mut moved)[at] = own;
                    (above - below) / 2e-4
                })
                .collect::<Vec<f64>>()
        };
        [part(&|p| &mut p.q), part(&|p| &mut p.k), part(&|p| &mut p.v)]
    }
}

type Score<'a> = &'a dyn Fn(usize, usize, usize, usize, f64) -> Option<f64>;
type Keep<'a> = &'a dyn Fn(usize, usize, usize, usize) -> f64;

fn i(n: usize) -> i64 {
    n as i64
}

/// A tensor in `layout` with the values of `[b, n, s, d]`, or room for it.
fn lay(lab: &mut Lab, dtype: DataType, layout: &str, [b, n, s, d]: [usize; 4], values: Option<&[f64]>) -> TensorDesc {
    let (bi, ni, si, di) = (i(b), i(n), i(s), i(d));
    let dims = match layout {
        "BNSD" => vec![bi, ni, si, di],
        "BSND" => vec![bi, si, ni, di],
        "BSH" => vec![bi, si, ni * di],
        "SBH" => vec![si, bi, ni * di],
        _ => vec![bi * si, ni, di],
    };
    let desc = lab.room(dtype, &dims);
    match values {
        Some(values) => lab.tensor(dtype, &dims, &reorder(layout, [b, n, s, d], values)),
        None => desc,
    }
}

/// From `[b, n, s, d]` to the layout's order.
fn reorder(layout: &str, [b, n, s, d]: [usize; 4], values: &[f64]) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    let from = |b: usize, h: usize, t: usize| &values[((b * n + h) * s + t) * d..][..d];
    match layout {
        "BNSD" => return values.to_vec(),
        "SBH" => (0..s * b * n).for_each(|at| out.extend(from(at / n % b, at % n, at / n / b))),
        _ => (0..b * s * n).for_each(|at| out.extend(from(at / n / s, at % n, at / n % s))),
    }
    out
}

/// The call with named arguments; the rest null, 0, false and empty.
fn named(op: OpId, given: &[(&str, A)]) -> Vec<A> {
    use acl_abi::Kind;
    for (name, _) in given {
        assert!(op.signature().position(name).is_some(), "{} has no {name}", op.name());
    }
    let params = op.signature().params.iter();
    params
        .map(|p| match given.iter().find(|(name, _)| *name == p.name) {
            Some((_, value)) => value.clone(),
            None => match p.kind {
                Kind::F32 | Kind::F64 => A::F(0.0),
                Kind::Bool => A::B(false),
                Kind::Str => A::Str(""),
                Kind::I8 | Kind::I32 | Kind::I64 | Kind::U64 => A::I(0),
                _ => A::Null,
            },
        })
        .collect()
}

fn basic(p: &Problem, layout: &'static str) -> Vec<(&'static str, A)> {
    let all = A::I(i64::from(i32::MAX));
    vec![
        ("scaleValue", A::F(0.5)),
        ("keepProb", A::F(1.0)),
        ("preTokens", all.clone()),
        ("nextTokens", all),
        ("headNum", A::I(i(p.n))),
        ("inputLayout", A::Str(layout)),
    ]
}

/// Runs the forward operator; result in `[b, n, s, d]`'s layout order, statistics as `[b, n, s]`.
fn run(p: &Problem, dtype: DataType, layout: &'static str, helpers: usize, more: More<'_>) -> [Vec<f64>; 3] {
    let mut lab = Lab::with_helpers(helpers);
    let mut given = basic(p, layout);
    let (b, n, nk, s, t, d) = (p.b, p.n, p.nk, p.s, p.t, p.d);
    let out = lay(&mut lab, dtype, layout, [b, n, s, d], None);
    given.push(("query", A::T(lay(&mut lab, dtype, layout, [b, n, s, d], Some(&p.q)))));
    given.push(("key", A::T(lay(&mut lab, dtype, layout, [b, nk, t, d], Some(&p.k)))));
    given.push(("value", A::T(lay(&mut lab, dtype, layout, [b, nk, t, d], Some(&p.v)))));
    let (op, statistics) = match layout {
        "TND" => {
            given.push(("actualSeqQLenOptional", A::Ints((1..=b).map(|x| i(x * s)).collect())));
            given.push(("actualSeqKvLenOptional", A::Ints((1..=b).map(|x| i(x * t)).collect())));
            (ops::aclnnFlashAttentionVarLenScore, [i(b * s), i(n), 8].to_vec())
        }
        _ => (ops::aclnnFlashAttentionScore, [i(b), i(n), i(s), 8].to_vec()),
    };
    let (largest, sum) = (lab.room(F32, &statistics), lab.room(F32, &statistics));
    let nothing = lab.room(F32, &[0]);
    given.extend([
        ("softmaxMaxOut", A::T(largest)),
        ("softmaxSumOut", A::T(sum)),
        ("softmaxOutOut", A::T(nothing)),
        ("attentionOutOut", A::T(out)),
    ]);
    given.extend(more(&mut lab));
    lab.ok(op, &named(op, &dedup(given)));
    let rows = |desc| {
        let all: Vec<f64> = lab.read(&desc);
        assert!(all.chunks(8).all(|copies| copies.iter().all(|v| v.to_bits() == copies[0].to_bits())));
        let all: Vec<f64> = all.into_iter().step_by(8).collect();
        if layout == "TND" {
            (0..all.len()).map(|at| all[(at / n / s * s + at % s) * n + at / s % n]).collect()
        } else {
            all
        }
    };
    [lab.read(&out), rows(largest), rows(sum)]
}

type More<'a> = &'a dyn Fn(&mut Lab) -> Vec<(&'static str, A)>;

/// Later values replace earlier ones of the same name.
fn dedup(given: Vec<(&'static str, A)>) -> Vec<(&'static str, A)> {
    let mut out: Vec<(&'static str, A)> = Vec::new();
    for (name, value) in given {
        out.retain(|(known, _)| *known != name);
        out.push((name, value));
    }
    out
}

#[test]
fn every_layout_gives_the_reference_with_grouped_heads() {
    let mut noise = Noise::new(50);
    for shape in [[2, 4, 2, 5, 7, 8], [1, 6, 1, 150, 150, 16], [3, 2, 2, 1, 33, 4], [2, 3, 3, 4, 0, 4]] {
        let p = Problem::new(&mut noise, shape);
        let [want, largest, sums] = p.forward(&|_, _, _, _, x| Some(0.5 * x), &|_, _, _, _| 1.0);
        for (dtype, tolerance) in [(F32, 3e-6), (BF16, 2e-2), (F16, 2e-3)] {
            for layout in ["BNSD", "BSND", "BSH", "SBH", "TND"] {
                let got = run(&p, dtype, layout, 1, &|_| Vec::new());
                close(&got[0], &reorder(layout, [p.b, p.n, p.s, p.d], &want), tolerance);
                for (got, want) in [(&got[1], &largest), (&got[2], &sums)] {
                    assert_eq!(got.len(), want.len());
                    assert!(got.iter().zip(want).all(|(g, w)| g == w || (g - w).abs() < 1e-4 * w.abs().max(1.0)));
                }
            }
        }
    }
}

#[test]
fn masks_of_every_shape_hide_what_they_mark_and_a_hidden_row_is_zero() {
    let mut noise = Noise::new(51);
    let p = Problem::new(&mut noise, [2, 4, 2, 5, 300, 8]);
    let count = 2 * 4 * 5 * 300;
    // Query 3 sees nothing.
    let flags: Vec<f64> = (0..count).map(|at| if at / 300 % 5 == 3 { 1.0 } else { noise.below(2) as f64 }).collect();
    for dtype in [Bool, U8] {
        for dims in [[2usize, 4, 5, 300], [2, 1, 5, 300], [1, 1, 5, 300], [1, 4, 5, 300]] {
            let flag = |b: usize, h: usize, i: usize, j: usize| {
                flags[((b.min(dims[0] - 1) * dims[1] + h.min(dims[1] - 1)) * 5 + i) * 300 + j] != 0.0
            };
            let [want, ..] = p.forward(&|b, h, i, j, x| (!flag(b, h, i, j)).then_some(0.5 * x), &|_, _, _, _| 1.0);
            for flat in [false, true] {
                if flat && (dims[0] > 1 || dims[1] > 1) {
                    continue;
                }
                let got = run(&p, F32, "BNSD", 0, &|lab| {
                    let shape: Vec<i64> = dims[if flat { 2 } else { 0 }..].iter().map(|&d| i(d)).collect();
                    let values = &flags[..dims.iter().product()];
                    let mask = lab.tensor(dtype, &shape, values);
                    vec![("attenMaskOptional", A::T(mask)), ("sparseMode", A::I(if flat { 1 } else { 0 }))]
                });
                close(&got[0], &want, 3e-6);
                assert!(got[0].chunks(8).enumerate().all(|(row, v)| row % 5 != 3 || v.iter().all(|&v| v == 0.0)));
            }
        }
    }
}

#[test]
fn bands_restrict_keys_and_infinities_outside_do_not_leak() {
    let mut noise = Noise::new(52);
    for (s, t) in [(6usize, 6usize), (3, 270), (300, 260)] {
        let mut p = Problem::new(&mut noise, [1, 2, 1, s, t, 4]);
        // (mode, pre, next, visible)
        type Sees = fn(i64, i64, i64) -> bool;
        let cases: [(i64, i64, i64, Sees); 4] = [
            (2, 99999, 0, |i, j, _| j <= i),
            (3, 99999, 0, |i, j, shift| j <= i + shift),
            (4, 2, 1, |i, j, shift| j >= i + shift - 2 && j <= i + shift + 1),
            (4, 140, -1, |i, j, shift| j >= i + shift - 140 && j < i + shift),
        ];
        for (mode, pre, next, sees) in cases {
            let shift = t as i64 - s as i64;
            let visible = |i: usize, j: usize| sees(i as i64, j as i64, shift);
            let plain = p.v.clone();
            for j in (0..t).filter(|&j| (0..s).all(|i| !visible(i, j))) {
                p.v[j * 4] = f64::INFINITY;
            }
            let finite = Problem { v: plain.clone(), ..p.clone() };
            let score = |_: usize, _: usize, i: usize, j: usize, x: f64| visible(i, j).then_some(0.5 * x);
            let [want, ..] = finite.forward(&score, &|_, _, _, _| 1.0);
            let got = run(&p, F32, "BSND", 1, &|lab| {
                let triangle = lab.tensor(Bool, &[4, 4], &[1.0; 16]);
                vec![
                    ("sparseMode", A::I(mode)),
                    ("preTokens", A::I(pre)),
                    ("nextTokens", A::I(next)),
                    ("attenMaskOptional", A::T(triangle)),
                ]
            });
            close(&got[0], &reorder("BSND", [1, 2, s, 4], &want), 3e-6);
            p.v = plain;
        }
    }
    // Mode 0 heeds the window where there is a mask, and only there.
    let p = Problem::new(&mut noise, [1, 1, 1, 4, 4, 4]);
    for masked in [false, true] {
        let sees = |i: usize, j: usize| !masked || j <= i;
        let [want, ..] = p.forward(&|_, _, i, j, x| sees(i, j).then_some(0.5 * x), &|_, _, _, _| 1.0);
        let got = run(&p, F32, "BNSD", 0, &|lab| {
            let mask = lab.tensor(Bool, &[4, 4], &[0.0; 16]);
            vec![("nextTokens", A::I(0)), ("attenMaskOptional", if masked { A::T(mask) } else { A::Null })]
        });
        close(&got[0], &want, 3e-6);
    }
}

#[test]
fn shifts_and_dropout_act_where_the_description_says() {
    let mut noise = Noise::new(53);
    let p = Problem::new(&mut noise, [2, 2, 1, 3, 5, 4]);
    let shift = noise.values(2 * 3 * 5);
    let bytes: Vec<f64> = (0..8).map(|_| noise.below(256) as f64).collect();
    let term = |h: usize, i: usize, j: usize| shift[(h * 3 + i) * 5 + j];
    let keep = |b: usize, h: usize, i: usize, j: usize| {
        let bit = ((b * 2 + h) * 3 + i) * 5 + j;
        f64::from(bytes[bit / 8] as u8 >> (bit % 8) & 1) / 0.75
    };
    let [want, _, sums] = p.forward(&|_, h, i, j, x| Some(0.5 * (x + term(h, i, j))), &keep);
    let got = run(&p, F32, "BNSD", 0, &|lab| {
        let bias = lab.tensor(F32, &[1, 2, 3, 5], &shift);
        let bits = lab.tensor(U8, &[8], &bytes);
        vec![("realShiftOptional", A::T(bias)), ("dropMaskOptional", A::T(bits)), ("keepProb", A::F(0.75))]
    });
    close(&got[0], &want, 3e-6);
    close(&got[2], &sums, 1e-4);
}

#[test]
fn gradients_match_differences_of_the_reference() {
    let mut noise = Noise::new(54);
    let bytes: Vec<f64> = (0..32).map(|_| noise.below(256) as f64).collect();
    for (case, shape) in
        [[2, 4, 2, 3, 5, 4], [1, 2, 2, 70, 6, 3], [2, 2, 1, 4, 4, 4], [1, 2, 1, 4, 3, 4]].into_iter().enumerate()
    {
        let p = Problem::new(&mut noise, shape);
        let &Problem { b, n, nk, s, t, d, .. } = &p;
        let dy = noise.values(b * n * s * d);
        let causal = case >= 2;
        let dropped = case == 0;
        let score = |_: usize, _: usize, i: usize, j: usize, x: f64| {
            (!causal || j as i64 <= i as i64 + t as i64 - s as i64).then_some(0.5 * x)
        };
        let keep = |b: usize, h: usize, i: usize, j: usize| {
            let bit = ((b * n + h) * s + i) * t + j;
            if dropped { f64::from(bytes[bit / 8] as u8 >> (bit % 8) & 1) / 0.5 } else { 1.0 }
        };
        let want = p.backward(&dy, &score, &keep);
        for layout in ["BNSD", "SBH", "BSND", "TND"] {
            if layout == "TND" && dropped {
                continue;
            }
            let mut lab = Lab::with_helpers(1);
            let (qs, ks) = ([b, n, s, d], [b, nk, t, d]);
            let mut given = basic(&p, layout);
            for (name, sizes, values) in
                [("query", qs, &p.q), ("keyIn", ks, &p.k), ("value", ks, &p.v), ("dy", qs, &dy)]
            {
                given.push((name, A::T(lay(&mut lab, F32, layout, sizes, Some(values)))));
            }
            let outs = [qs, ks, ks].map(|sizes| lay(&mut lab, F32, layout, sizes, None));
            for (name, out) in ["dqOut", "dkOut", "dvOut"].into_iter().zip(outs) {
                given.push((name, A::T(out)));
            }
            given.push(("sparseMode", A::I(if causal { 3 } else { 0 })));
            if dropped {
                given.push(("keepProb", A::F(0.5)));
                given.push(("dropMaskOptional", A::T(lab.tensor(U8, &[32], &bytes))));
            }
            let op = if layout == "TND" {
                given.push(("actualSeqQLenOptional", A::Ints((1..=b).map(|x| i(x * s)).collect())));
                given.push(("actualSeqKvLenOptional", A::Ints((1..=b).map(|x| i(x * t)).collect())));
                ops::aclnnFlashAttentionUnpaddingScoreGrad
            } else {
                ops::aclnnFlashAttentionScoreGrad
            };
            lab.ok(op, &named(op, &dedup(given)));
            for ((out, want), sizes) in outs.iter().zip(&want).zip([qs, ks, ks]) {
                close(&lab.read(out), &reorder(layout, sizes, want), 2e-4);
            }
        }
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let mut noise = Noise::new(55);
    let p = Problem::new(&mut noise, [1, 2, 2, 3, 3, 4]);
    let mut lab = Lab::new();
    let op = ops::aclnnFlashAttentionScore;
    let mut given = basic(&p, "BNSD");
    let t = A::T(lay(&mut lab, F32, "BNSD", [1, 2, 3, 4], Some(&p.q)));
    let statistics = A::T(lab.room(F32, &[1, 2, 3, 8]));
    for name in ["query", "key", "value", "attentionOutOut"] {
        given.push((name, t.clone()));
    }
    for name in ["softmaxMaxOut", "softmaxSumOut"] {
        given.push((name, statistics.clone()));
    }
    let bits = A::T(lab.tensor(U8, &[2], &[0.0; 2]));
    let small = A::T(lab.tensor(Bool, &[3, 2], &[0.0; 6]));
    for (name, value, part) in [
        ("keepProb", A::F(0.5), "dropMaskOptional: required with keepProb 0.5"),
        ("keepProb", A::F(0.0), "keepProb: 0 is not in 0..=1"),
        ("sparseMode", A::I(5), "sparseMode: 5 is not supported"),
        ("sparseMode", A::I(1), "attenMaskOptional: required with sparseMode 1"),
        ("attenMaskOptional", small, "attenMaskOptional: shape [1, 1, 3, 2] does not cover"),
        ("inputLayout", A::Str("TND"), "inputLayout: \"TND\" is not supported"),
        ("headNum", A::I(3), "key: 2 heads do not divide headNum 3"),
        ("paddingMaskOptional", statistics.clone(), "paddingMaskOptional: not supported"),
        ("softmaxMaxOut", t.clone(), "softmaxMaxOut: shape"),
    ] {
        let mut changed = given.clone();
        changed.push((name, value));
        lab.refused(op, &named(op, &dedup(changed)), part);
    }
    let mut changed = given.clone();
    changed.extend([("keepProb", A::F(0.5)), ("dropMaskOptional", bits)]);
    lab.refused(op, &named(op, &dedup(changed)), "want uint8 with a bit for each of 18 weights");
}
