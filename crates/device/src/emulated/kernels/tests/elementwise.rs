//! Arithmetic, conversions, copies, activations.

use acl_abi::{DataType, OpId, TensorDesc, ops};

use super::super::testing::{A, LAYS, Lab, Lay, Noise, close, real, rounded, whole};

use DataType::{BF16, Bool, F16, F32, F64, I8, I32, I64, U8};

/// Shapes of two operands and of the result.
const SHAPES: [(&[i64], &[i64], &[i64]); 9] = [
    (&[5], &[5], &[5]),
    (&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]),
    (&[700], &[700], &[700]),
    (&[2, 3], &[3], &[2, 3]),
    (&[4, 1, 3], &[2, 1], &[4, 2, 3]),
    (&[], &[3], &[3]),
    (&[], &[], &[]),
    (&[0, 3], &[1, 3], &[0, 3]),
    (&[1, 1], &[1], &[1, 1]),
];

/// Value of `from` at index `index` of `shape`, broadcast.
fn broadcast(values: &[f64], from: &[i64], shape: &[i64], mut index: usize) -> f64 {
    let mut at = 0;
    let mut stride = 1;
    for d in (0..shape.len()).rev() {
        let i = index % shape[d] as usize;
        index /= shape[d] as usize;
        if let Some(own) = (d + from.len()).checked_sub(shape.len()) {
            at += if from[own] == 1 { 0 } else { i } * stride;
            stride *= from[own] as usize;
        }
    }
    values[at]
}

fn count(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}

#[test]
fn binary_operators_match_single_precision_arithmetic_rounded_once() {
    type Case = (OpId, Option<f64>, fn(f32, f32) -> f32);
    let cases: [Case; 6] = [
        (ops::aclnnAdd, Some(1.0), |a, b| a + b),
        (ops::aclnnAdd, Some(-0.3), |a, b| a + -0.3 * b),
        (ops::aclnnSub, Some(1.0), |a, b| a - b),
        (ops::aclnnSub, Some(2.5), |a, b| a - 2.5 * b),
        (ops::aclnnMul, None, |a, b| a * b),
        (ops::aclnnDiv, None, |a, b| a / b),
    ];
    let mut noise = Noise::new(1);
    for (op, alpha, reference) in cases {
        for (ta, tb, to) in [
            (F32, F32, F32),
            (BF16, BF16, BF16),
            (F16, F16, F16),
            (BF16, F32, F32),
            (F16, BF16, F32),
            (I32, BF16, BF16),
        ] {
            let mut lab = Lab::new();
            for (sa, sb, so) in SHAPES {
                for lay in LAYS {
                    let va = noise
                        .values(count(sa))
                        .iter()
                        .map(|v| if ta == I32 { v.trunc() } else { *v })
                        .collect::<Vec<_>>();
                    // No zero divisors, to keep NaN out of the comparison.
                    let vb =
                        noise.values(count(sb)).iter().map(|v| if *v == 0.0 { 1.0 } else { *v }).collect::<Vec<_>>();
                    let a = lab.tensor_as(ta, sa, &va, lay);
                    let b = lab.tensor_as(tb, sb, &vb, Lay::Reversed);
                    let out = lab.room_as(to, so, lay);
                    let mut args = vec![A::T(a), A::T(b)];
                    args.extend(alpha.map(real));
                    args.push(A::T(out));
                    lab.ok(op, &args);
                    let want: Vec<f64> = (0..count(so))
                        .map(|i| {
                            rounded(to, reference(broadcast(&va, sa, so, i) as f32, broadcast(&vb, sb, so, i) as f32))
                        })
                        .collect();
                    assert_eq!(lab.read(&out), want, "{} {ta:?} {tb:?} {sa:?} {sb:?} {lay:?}", op.name());
                }
            }
        }
    }
}

#[test]
fn integers_stay_exact_and_wrap() {
    let mut lab = Lab::new();
    let big = (1i64 << 40) as f64;
    for (dtype, a, b, op, want) in [
        (I64, big + 1.0, big, ops::aclnnAdd, 2.0 * big + 1.0),
        (I64, big + 1.0, 3.0, ops::aclnnMul, 3.0 * big + 3.0),
        (I32, 2_147_483_647.0, 1.0, ops::aclnnAdd, -2_147_483_648.0),
        (U8, 3.0, 5.0, ops::aclnnSub, 254.0),
        (I8, 100.0, 2.0, ops::aclnnMul, -56.0),
        (Bool, 1.0, 1.0, ops::aclnnAdd, 1.0),
        (Bool, 1.0, 0.0, ops::aclnnMul, 0.0),
    ] {
        let (x, y) = (lab.tensor(dtype, &[1], &[a]), lab.tensor(dtype, &[1], &[b]));
        let out = lab.room(dtype, &[1]);
        let mut args = vec![A::T(x), A::T(y)];
        if op != ops::aclnnMul {
            args.push(whole(1));
        }
        args.push(A::T(out));
        lab.ok(op, &args);
        assert_eq!(lab.read(&out), [want], "{dtype:?} {}", op.name());
    }
    let (x, y, out) = (lab.tensor(I64, &[2], &[7.0, -1.0]), lab.tensor(I64, &[2], &[2.0, 4.0]), lab.room(F32, &[2]));
    lab.ok(ops::aclnnDiv, &[A::T(x), A::T(y), A::T(out)]);
    assert_eq!(lab.read(&out), [3.5, -0.25], "integer division is true division");
}

#[test]
fn double_precision_is_computed_in_double_precision() {
    let mut lab = Lab::new();
    let (a, b, out) = (lab.tensor(F64, &[1], &[1.0]), lab.tensor(F64, &[1], &[1e-12]), lab.room(F64, &[1]));
    lab.ok(ops::aclnnAdd, &[A::T(a), A::T(b), whole(1), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0 + 1e-12]);
}

#[test]
fn scalar_operators_keep_the_tensors_type() {
    let mut lab = Lab::new();
    for (dtype, to, other, values, sum, product) in [
        (BF16, BF16, real(0.3), [1.0, -2.0], [1.3f32, -1.7], [0.3f32, -0.6]),
        (F32, F32, whole(3), [1.5, 0.0], [4.5, 3.0], [4.5, 0.0]),
        (I64, F32, real(0.5), [3.0, 4.0], [3.5, 4.5], [1.5, 2.0]),
        (I64, I64, whole(3), [3.0, -4.0], [6.0, -1.0], [9.0, -12.0]),
    ] {
        for lay in LAYS {
            let x = lab.tensor_as(dtype, &[2, 1], &values, lay);
            let out = lab.room_as(to, &[2, 1], lay);
            lab.ok(ops::aclnnAdds, &[A::T(x), other.clone(), whole(1), A::T(out)]);
            assert_eq!(lab.read(&out), sum.map(|v| rounded(to, v)));
            lab.ok(ops::aclnnMuls, &[A::T(x), other.clone(), A::T(out)]);
            assert_eq!(lab.read(&out), product.map(|v| rounded(to, v)));
        }
    }
}

#[test]
fn an_operator_may_write_over_its_operand() {
    let mut lab = Lab::new();
    let values: Vec<f64> = (0..2000).map(f64::from).collect();
    let x = lab.tensor(F32, &[2000], &values);
    lab.ok(ops::aclnnAdd, &[A::T(x), A::T(x), real(1.0), A::T(x)]);
    assert!(lab.read(&x).iter().enumerate().all(|(i, &v)| v == 2.0 * i as f64));
}

#[test]
fn casts_convert_as_torch_does() {
    let mut lab = Lab::new();
    for (from, to, values, want) in [
        (F32, I64, [1.9, -1.9], [1.0, -1.0]),
        (F32, Bool, [0.0, -0.5], [0.0, 1.0]),
        (F32, BF16, [1.003_906_3, 3.1412], [1.0, 3.140_625]),
        (I64, F32, [16_777_217.0, -3.0], [16_777_216.0, -3.0]),
        (I64, I32, [4_294_967_297.0, -1.0], [1.0, -1.0]),
        (Bool, F16, [1.0, 0.0], [1.0, 0.0]),
        (F64, F32, [0.1, 2.0], [f64::from(0.1f32), 2.0]),
        (F32, F64, [0.5, 2.0], [0.5, 2.0]),
        (I64, F64, [9_007_199_254_740_991.0, 1.0], [9_007_199_254_740_991.0, 1.0]),
        (BF16, F32, [3.140_625, -0.5], [3.140_625, -0.5]),
    ] {
        for lay in LAYS {
            let x = lab.tensor_as(from, &[2], &values, lay);
            let out = lab.room(to, &[2]);
            lab.ok(ops::aclnnCast, &[A::T(x), A::D(to), A::T(out)]);
            assert_eq!(lab.read(&out), want, "{from:?} → {to:?}");
        }
    }
}

#[test]
fn copies_are_bit_for_bit_and_broadcast() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[3], &[f64::NAN, -0.0, 1.0]);
    // A signalling NaN keeps its payload.
    lab.machine.hbm.elements_mut::<u32>()[0] = 0x7f80_0001;
    let out = lab.room(F32, &[2, 3]);
    lab.ok(ops::aclnnInplaceCopy, &[A::T(out), A::T(x)]);
    let at = (out.addr - crate::emulated::hbm::PHYS_BASE) as usize / 4;
    assert_eq!(lab.machine.hbm.elements::<u32>()[at..at + 6], [0x7f80_0001, 1 << 31, 0x3f80_0000].repeat(2));
    for from in LAYS {
        for to in LAYS {
            let values: Vec<f64> = (0..24).map(f64::from).collect();
            let (x, out) = (lab.tensor_as(I32, &[2, 3, 4], &values, from), lab.room_as(I32, &[2, 3, 4], to));
            lab.ok(ops::aclnnInplaceCopy, &[A::T(out), A::T(x)]);
            assert_eq!(lab.read(&out), values, "{from:?} → {to:?}");
            let half = lab.room_as(F16, &[2, 3, 4], to);
            lab.ok(ops::aclnnInplaceCopy, &[A::T(half), A::T(x)]);
            assert_eq!(lab.read(&half), values);
        }
    }
}

#[test]
fn activations_match_their_definitions() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let mut noise = Noise::new(2);
    for (dtype, tolerance) in [(F32, 1e-6), (BF16, 4e-3), (F16, 5e-4)] {
        for lay in LAYS {
            let mut lab = Lab::new();
            let values = noise.values(6 * 10);
            let x = lab.tensor_as(dtype, &[6, 10], &values, lay);
            let out = lab.room_as(dtype, &[6, 10], lay);
            lab.ok(ops::aclnnSilu, &[A::T(x), A::T(out)]);
            close(&lab.read(&out), &values.iter().map(|v| silu(*v)).collect::<Vec<_>>(), tolerance);
            for (dim, rows, columns) in [(-1, 6, 5), (0, 3, 10)] {
                let out = lab.room_as(dtype, &[rows as i64, columns as i64], lay);
                lab.ok(ops::aclnnSwiGlu, &[A::T(x), A::I(dim), A::T(out)]);
                let want: Vec<f64> = (0..rows * columns)
                    .map(|i| (i / columns, i % columns))
                    .map(|(r, c)| {
                        let (a, b) =
                            if dim == 0 { (r * 10 + c, (r + 3) * 10 + c) } else { (r * 10 + c, r * 10 + c + 5) };
                        silu(values[a]) * values[b]
                    })
                    .collect();
                close(&lab.read(&out), &want, tolerance);
            }
            for dim in [1i64, -1, 0] {
                lab.ok(ops::aclnnSoftmax, &[A::T(x), A::I(dim), A::T(out)]);
                let along =
                    |i: usize| (0..60).filter(move |j| if dim == 0 { j % 10 == i % 10 } else { j / 10 == i / 10 });
                let want: Vec<f64> =
                    (0..60).map(|i| values[i].exp() / along(i).map(|j| values[j].exp()).sum::<f64>()).collect();
                close(&lab.read(&out), &want, tolerance);
            }
        }
    }
}

#[test]
fn softmax_of_hidden_and_huge_values() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 2], &[f64::NEG_INFINITY, 1e30, f64::NEG_INFINITY, f64::NEG_INFINITY]);
    let out = lab.room(F32, &[2, 2]);
    lab.ok(ops::aclnnSoftmax, &[A::T(x), A::I(-1), A::T(out)]);
    let got = lab.read(&out);
    assert_eq!(got[..2], [0.0, 1.0]);
    assert!(got[2].is_nan() && got[3].is_nan(), "as torch: a row without weight is NaN");
}

#[test]
fn malformed_calls_are_refused_with_the_reason() {
    let mut lab = Lab::new();
    let f = lab.tensor(F32, &[2, 3], &[0.0; 6]);
    let row = lab.tensor(F32, &[2], &[0.0; 2]);
    let int = lab.tensor(I64, &[2, 3], &[0.0; 6]);
    let flag = lab.tensor(Bool, &[2, 3], &[0.0; 6]);
    let complex = TensorDesc { dtype: DataType::Complex64, ..f };
    let nz = TensorDesc { format: 3, ..f };
    let expanded = TensorDesc { strides: [0; 8], ..f };
    let (add, cast) = (ops::aclnnAdd, ops::aclnnCast);
    for (op, args, part) in [
        (add, vec![A::T(f), A::T(row), real(1.0), A::T(f)], "shapes [2, 3] and [2] do not broadcast"),
        (add, vec![A::T(f), A::T(f), real(1.0), A::T(row)], "out: shape [2], want [2, 3]"),
        (add, vec![A::T(f), A::T(f), real(1.0), A::T(int)], "a float32 result cannot be stored as int64"),
        (add, vec![A::T(int), A::T(int), real(0.5), A::T(int)], "a fraction (0.5) cannot scale integers"),
        (add, vec![A::T(f), A::Null, real(1.0), A::T(f)], "other: a tensor is required"),
        (add, vec![A::T(f), A::T(f), A::Null, A::T(f)], "alpha: a scalar is required"),
        (add, vec![A::T(f), A::T(complex), real(1.0), A::T(f)], "other: element type complex64 is not supported"),
        (add, vec![A::T(f), A::T(nz), real(1.0), A::T(f)], "other: storage format 3 is not supported"),
        (add, vec![A::T(f), A::T(f), real(1.0), A::T(expanded)], "out: several indices name one element"),
        (ops::aclnnSub, vec![A::T(flag), A::T(flag), whole(1), A::T(flag)], "bool"),
        (ops::aclnnMul, vec![A::T(int), A::T(int), A::T(flag)], "cannot be stored as bool"),
        (ops::aclnnDiv, vec![A::T(int), A::T(int), A::T(int)], "cannot be stored as int64"),
        (ops::aclnnMuls, vec![A::T(int), real(0.5), A::T(int)], "cannot be stored as int64"),
        (cast, vec![A::T(f), A::D(BF16), A::T(f)], "dtype: 27, but out has type float32"),
        (cast, vec![A::T(f), A::D(F32), A::T(row)], "out: shape [2], want [2, 3]"),
        (ops::aclnnInplaceCopy, vec![A::T(row), A::T(f)], "src: shape [2, 3] does not broadcast to [2]"),
        (ops::aclnnSilu, vec![A::T(f), A::T(int)], "a float32 result cannot be stored as int64"),
        (ops::aclnnSwiGlu, vec![A::T(f), A::I(1), A::T(f)], "size 3 of dimension 1 is odd"),
        (ops::aclnnSwiGlu, vec![A::T(f), A::I(2), A::T(f)], "dim: dimension 2 of a tensor with 2"),
        (ops::aclnnSoftmax, vec![A::T(f), A::I(-3), A::T(f)], "dim: dimension -3 of a tensor with 2"),
    ] {
        lab.refused(op, &args, part);
    }
}

#[test]
fn complex_tensors_are_made_of_parts_and_copied() {
    let mut lab = Lab::new();
    let (re, im) = (lab.tensor(F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]), lab.tensor(F32, &[2, 2], &[5.0, 6.0, 7.0, 8.0]));
    // The lab stores no complex numbers: a tensor of pairs shows the same memory.
    let complex =
        |pairs: acl_abi::TensorDesc| acl_abi::TensorDesc::contiguous(pairs.addr, DataType::Complex64, &[2, 2]);
    let (pairs, copied) = (lab.room(F32, &[2, 2, 2]), lab.room(F32, &[2, 2, 2]));
    lab.ok(ops::aclnnComplex, &[A::T(re), A::T(im), A::T(complex(pairs))]);
    assert_eq!(lab.read(&pairs), [1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0]);
    let mut turned = complex(pairs);
    turned.strides.swap(0, 1);
    lab.ok(ops::aclnnInplaceCopy, &[A::T(complex(copied)), A::T(turned)]);
    assert_eq!(lab.read(&copied), [1.0, 5.0, 3.0, 7.0, 2.0, 6.0, 4.0, 8.0]);
    lab.ok(ops::aclnnInplaceCopy, &[A::T(complex(copied)), A::T(re)]);
    assert_eq!(lab.read(&copied), [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]);
    let real = lab.room(F32, &[2, 2]);
    lab.ok(ops::aclnnReal, &[A::T(complex(pairs)), A::T(real)]);
    assert_eq!(lab.read(&real), [1.0, 2.0, 3.0, 4.0]);
    lab.refused(ops::aclnnComplex, &[A::T(re), A::T(im), A::T(real)], "want complex64");
    lab.refused(ops::aclnnAbs, &[A::T(complex(pairs)), A::T(real)], "complex64 is not supported");
}
