//! Products with weights of eight and four bits, however they are packed and scaled.

use acl_abi::{DataType, OpId, TensorDesc, nz, ops};

use super::super::testing::{A, Lab, Noise, rounded};
use DataType::{BF16, F16, F32, I4, I8, I32};

/// How the weights of a case lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pack {
    Bytes,
    Strips,
    Half,
    Eight,
}

/// A case: rows, depth, columns, group size (0: none), and whether the weights lie transposed.
struct Case {
    sizes: [usize; 3],
    group: usize,
    turned: bool,
    offsets: bool,
    bias: bool,
}

/// `[K, N]` whole numbers as weights.
fn weights(lab: &mut Lab, values: &[i8], k: usize, n: usize, pack: Pack, turned: bool) -> TensorDesc {
    let (rows, columns) = if turned { (n, k) } else { (k, n) };
    let stored: Vec<i8> = (0..k * n).map(|i| if turned { values[i % k * n + i / k] } else { values[i] }).collect();
    let dims = [rows as i64, columns as i64];
    let mut desc = match pack {
        Pack::Bytes | Pack::Strips => {
            let plain = lab.tensor(I8, &dims, &stored.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
            if pack == Pack::Strips {
                let addr = lab.room(I8, &nz::storage_dims(I8, &dims).unwrap()).addr;
                let strips = TensorDesc { format: 29, ..TensorDesc::contiguous(addr, I8, &dims) };
                lab.ok(ops::aclnnNpuFormatCast, &[A::T(plain), A::T(strips)]);
                strips
            } else {
                plain
            }
        }
        Pack::Half => {
            let bytes: Vec<f64> = stored
                .chunks(2)
                .map(|p| f64::from((p[0] as u8 & 15) | p.get(1).map_or(0, |&v| (v as u8) << 4)))
                .collect();
            let at = lab.tensor(DataType::U8, &[bytes.len() as i64], &bytes).addr;
            TensorDesc::contiguous(at, I4, &dims)
        }
        Pack::Eight => {
            let word = |p: &[i8]| (0..8).fold(0u32, |w, i| w | u32::from(p[i] as u8 & 15) << (4 * i));
            let words: Vec<f64> = stored.chunks_exact(8).map(|p| f64::from(word(p) as i32)).collect();
            lab.tensor(I32, &[dims[0], dims[1] / 8], &words)
        }
    };
    if turned {
        desc.dims.swap(0, 1);
        desc.strides.swap(0, 1);
    }
    desc
}

#[test]
fn every_packing_and_grouping_matches_a_naive_sum() {
    let mut noise = Noise::new(12);
    let cases = [
        Case { sizes: [3, 96, 48], group: 32, turned: true, offsets: false, bias: false },
        Case { sizes: [1, 40, 16], group: 32, turned: true, offsets: true, bias: true },
        Case { sizes: [2, 64, 24], group: 64, turned: false, offsets: true, bias: false },
        Case { sizes: [4, 32, 40], group: 0, turned: true, offsets: true, bias: true },
        Case { sizes: [2, 72, 33 * 8], group: 0, turned: false, offsets: false, bias: true },
        Case { sizes: [1, 2048, 1024], group: 128, turned: true, offsets: false, bias: false },
    ];
    for case in &cases {
        let [m, k, n] = case.sizes;
        let groups = if case.group == 0 { 1 } else { k.div_ceil(case.group) };
        for pack in [Pack::Bytes, Pack::Strips, Pack::Half, Pack::Eight] {
            for dtype in [F16, BF16, F32] {
                let mut lab = Lab::with_helpers(1);
                let range = if matches!(pack, Pack::Half | Pack::Eight) { 16 } else { 256 };
                let w: Vec<i8> = (0..k * n).map(|_| (noise.below(range) as i64 - range as i64 / 2) as i8).collect();
                let weight = weights(&mut lab, &w, k, n, pack, case.turned);
                let mut tensor = |dims: [usize; 2]| {
                    let values = noise.values(dims[0] * dims[1]);
                    (lab.tensor(dtype, &dims.map(|d| d as i64), &values), values)
                };
                let ((x, vx), (scale, vs)) = (tensor([m, k]), tensor([groups, n]));
                let (offset, vo) = tensor([groups, n]);
                let (bias, vb) = tensor([1, n]);
                let out = lab.room(dtype, &[m as i64, n as i64]);
                let or_null = |there: bool, desc| if there { A::T(desc) } else { A::Null };
                let args = [
                    A::T(x),
                    A::T(weight),
                    A::T(scale),
                    or_null(case.offsets, offset),
                    A::Null,
                    A::Null,
                    or_null(case.bias, bias),
                    A::I(case.group as i64),
                    A::T(out),
                ];
                lab.ok(ops::aclnnWeightQuantBatchMatmulV2, &args);
                let got = lab.read(&out);
                for (at, got) in got.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let (mut want, mut size) = (if case.bias { vb[j] } else { 0.0 }, 1.0);
                    for l in 0..k {
                        let g = l.checked_div(case.group).unwrap_or(0);
                        let o = if case.offsets { vo[g * n + j] } else { 0.0 };
                        let term = vx[i * k + l] * ((f64::from(w[l * n + j]) + o) * vs[g * n + j]);
                        want += term;
                        size += term.abs();
                    }
                    let rounding = (want - rounded(dtype, want as f32)).abs();
                    assert!((got - want).abs() <= 2.0 * rounding + 1e-5 * size, "{pack:?} {dtype:?} {got} {want}");
                }
                // The other names of the operator.
                let mut more = args.to_vec();
                lab.ok(ops::aclnnWeightQuantBatchMatmulNz, &more);
                more.insert(8, A::I(0));
                lab.ok(ops::aclnnWeightQuantBatchMatmulV3, &more);
                assert_eq!(lab.read(&out), got);
            }
        }
    }
}

#[test]
fn calls_that_do_not_fit_are_refused_by_parameter() {
    let mut lab = Lab::new();
    let op: OpId = ops::aclnnWeightQuantBatchMatmulV2;
    let (x, out) = (lab.room(F16, &[2, 64]), lab.room(F16, &[2, 16]));
    let (weight, scale) = (lab.room(I8, &[64, 16]), lab.room(F16, &[2, 16]));
    let args =
        |weight, scale, group| vec![A::T(x), weight, scale, A::Null, A::Null, A::Null, A::Null, A::I(group), A::T(out)];
    lab.ok(op, &args(A::T(weight), A::T(scale), 32));
    for (args, part) in [
        (args(A::T(weight), A::T(scale), 64), "antiquantScale: shape [2, 16], want [1], [16] or [1, 16]"),
        (args(A::T(weight), A::T(scale), -1), "antiquantGroupSize: below 0"),
        (args(A::T(scale), A::T(scale), 32), "weight: type float16, want int8, int4 or int32"),
        (args(A::T(TensorDesc::contiguous(weight.addr, I8, &[16, 64])), A::T(scale), 32), "weight: shape [16, 64]"),
        (args(A::T(TensorDesc::contiguous(weight.addr, I4, &[16, 64])), A::T(scale), 32), "weight: [16, 64] int4 hold"),
        (args(A::T(TensorDesc::contiguous(1, I4, &[64, 16])), A::T(scale), 32), "weight: "),
        (args(A::Null, A::T(scale), 32), "weight: a tensor is required"),
    ] {
        lab.refused(op, &args, part);
    }
    let mut quantised = args(A::T(weight), A::T(scale), 32);
    quantised[4] = A::T(scale);
    lab.refused(op, &quantised, "quantScaleOptional: not supported, pass null");
}
