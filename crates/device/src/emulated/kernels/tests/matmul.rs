//! Products: against a naive sum, and the promise that a row's bits do not depend on its batch.

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, Lab, Lay, Noise, close, real, rounded};

use DataType::{BF16, F16, F32};

/// The tensor with its last two dimensions exchanged.
fn transposed(mut desc: TensorDesc) -> TensorDesc {
    let n = desc.ndim as usize;
    desc.dims.swap(n - 1, n - 2);
    desc.strides.swap(n - 1, n - 2);
    desc
}

fn naive(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
}

/// How the second matrix may lie, all of them `k × n` to the operator.
fn second(lab: &mut Lab, dtype: DataType, k: usize, n: usize, values: &[f64], variant: usize) -> TensorDesc {
    let (k, n) = (k as i64, n as i64);
    let turned = || -> Vec<f64> { (0..values.len() as i64).map(|i| values[(i % k * n + i / k) as usize]).collect() };
    match variant {
        0 => lab.tensor(dtype, &[k, n], values),
        1 => transposed(lab.tensor(dtype, &[n, k], &turned())),
        2 => lab.tensor_as(dtype, &[k, n], values, Lay::Sliced),
        _ => transposed(lab.tensor_as(dtype, &[n, k], &turned(), Lay::Sliced)),
    }
}

#[test]
fn products_match_a_naive_sum() {
    let mut noise = Noise::new(3);
    for (dtype, tolerance) in [(F32, 2e-6), (BF16, 4e-3), (F16, 1e-3)] {
        for (m, k, n) in [
            (1, 1, 1),
            (1, 8, 5),
            (2, 9, 7),
            (3, 64, 33),
            (5, 17, 40),
            (9, 300, 20),
            (4, 0, 3),
            (0, 4, 3),
            (33, 130, 65),
        ] {
            let (va, vb) = (noise.values(m * k), noise.values(k * n));
            let scale = tolerance * (k as f64).max(1.0);
            for variant in 0..4 {
                let mut lab = Lab::new();
                let a = lab.tensor(dtype, &[m as i64, k as i64], &va);
                let b = second(&mut lab, dtype, k, n, &vb, variant);
                let out = lab.room(dtype, &[m as i64, n as i64]);
                for op in [ops::aclnnMm, ops::aclnnMatmul] {
                    lab.ok(op, &[A::T(a), A::T(b), A::T(out), A::I(0)]);
                    close(&lab.read(&out), &naive(&va, &vb, m, k, n), scale);
                }
                // The first matrix may lie anyhow too, and the result be of another type.
                let a = transposed(lab.tensor_as(dtype, &[k as i64, m as i64], &turn(&va, m, k), Lay::Reversed));
                let out = lab.room_as(F32, &[m as i64, n as i64], Lay::Reversed);
                lab.ok(ops::aclnnMm, &[A::T(a), A::T(b), A::T(out), A::I(0)]);
                close(&lab.read(&out), &naive(&va, &vb, m, k, n), 2e-6 * (k as f64).max(1.0));
            }
        }
    }
}

fn turn(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

#[test]
fn leading_dimensions_broadcast_and_vectors_are_rows_or_columns() {
    let mut noise = Noise::new(4);
    let mut lab = Lab::new();
    let (va, vb) = (noise.values(2 * 3 * 4 * 5), noise.values(3 * 5 * 6));
    let (a, b) = (lab.tensor(F32, &[2, 3, 4, 5], &va), lab.tensor(F32, &[3, 5, 6], &vb));
    let out = lab.room(F32, &[2, 3, 4, 6]);
    lab.ok(ops::aclnnMatmul, &[A::T(a), A::T(b), A::T(out), A::I(0)]);
    let want: Vec<f64> = (0..6).flat_map(|i| naive(&va[i * 20..][..20], &vb[i % 3 * 30..][..30], 4, 5, 6)).collect();
    close(&lab.read(&out), &want, 1e-5);

    let (row, column) = (lab.tensor(F32, &[5], &va[..5]), lab.tensor(F32, &[5], &vb[..5]));
    let matrix = lab.tensor(F32, &[5, 6], &vb[..30]);
    let rows = lab.tensor(F32, &[4, 5], &va[..20]);
    for (a, b, dims, want) in [
        (row, matrix, &[6][..], naive(&va[..5], &vb[..30], 1, 5, 6)),
        (rows, column, &[4], naive(&va[..20], &vb[..5], 4, 5, 1)),
        (row, column, &[], naive(&va[..5], &vb[..5], 1, 5, 1)),
    ] {
        let out = lab.room(F32, dims);
        lab.ok(ops::aclnnMatmul, &[A::T(a), A::T(b), A::T(out), A::I(0)]);
        close(&lab.read(&out), &want, 1e-5);
    }
}

#[test]
fn addmm_scales_both_terms_before_rounding() {
    let mut noise = Noise::new(5);
    for dtype in [F32, BF16] {
        let mut lab = Lab::new();
        let (va, vb, vc) = (noise.values(3 * 16), noise.values(16 * 5), noise.values(5));
        let (a, b) = (lab.tensor(dtype, &[3, 16], &va), lab.tensor(dtype, &[16, 5], &vb));
        let (c, out) = (lab.tensor(dtype, &[5], &vc), lab.room(dtype, &[3, 5]));
        for (beta, alpha) in [(1.0, 1.0), (0.5, -2.0), (0.0, 1.0)] {
            lab.ok(ops::aclnnAddmm, &[A::T(c), A::T(a), A::T(b), real(beta), real(alpha), A::T(out), A::I(0)]);
            let want: Vec<f64> = naive(&va, &vb, 3, 16, 5)
                .iter()
                .enumerate()
                .map(|(i, product)| rounded(dtype, (beta * vc[i % 5] + alpha * product) as f32))
                .collect();
            // Multiples of 1/256 with few digits: sums are exact, so the rounding must be too.
            assert_eq!(lab.read(&out), want);
        }
        let poison = lab.tensor(dtype, &[5], &[f64::NAN; 5]);
        lab.ok(ops::aclnnAddmm, &[A::T(poison), A::T(a), A::T(b), real(0.0), real(1.0), A::T(out), A::I(0)]);
        assert!(lab.read(&out).iter().all(|v| v.is_finite()), "beta 0 ignores the term");
    }
}

/// The heart of batch invariance: row `i` of a product has the bits of the product of row `i` alone, for any number of
/// rows, layout of the weights, type and number of threads. Lengths lie on both sides of what the library sums at a time.
#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    const ROWS: [usize; 9] = [1, 2, 3, 7, 16, 33, 128, 5, 17];
    let rows_max = 128;
    let mut noise = Noise::new(6);
    for dtype in [F32, BF16, F16] {
        for (k, n) in [
            (1, 9),
            (7, 8),
            (64, 31),
            (100, 20),
            (129, 257),
            (255, 33),
            (256, 33),
            (257, 33),
            (300, 1700),
            (513, 48),
            (896, 70),
        ] {
            let va = noise.fractions(rows_max * k);
            let vb = noise.fractions(k * n);
            // The rows one by one, as decode steps compute them.
            let mut reference: Vec<f64> = Vec::new();
            {
                let mut lab = Lab::with_helpers(0);
                let b = second(&mut lab, dtype, k, n, &vb, 0);
                for row in va.chunks_exact(k).take(17) {
                    let (a, out) = (lab.tensor(dtype, &[1, k as i64], row), lab.room(F32, &[1, n as i64]));
                    lab.ok(ops::aclnnMm, &[A::T(a), A::T(b), A::T(out), A::I(0)]);
                    reference.extend(lab.read(&out));
                }
            }
            for variant in 0..4 {
                for helpers in [0, 2] {
                    let mut lab = Lab::with_helpers(helpers);
                    let b = second(&mut lab, dtype, k, n, &vb, variant);
                    for m in ROWS {
                        let a = lab.tensor(dtype, &[m as i64, k as i64], &va[..m * k]);
                        // Single precision shows every bit of the accumulator.
                        let out = lab.room(F32, &[m as i64, n as i64]);
                        lab.ok(ops::aclnnMatmul, &[A::T(a), A::T(b), A::T(out), A::I(0)]);
                        let got = lab.read(&out);
                        let known = reference.len().min(got.len());
                        assert!(got[..known] == reference[..known], "{dtype:?} {m}·{k}·{n} variant {variant}");
                        if got.len() > known {
                            reference = got;
                        }
                    }
                }
            }
        }
    }
}

/// A column neither depends on its neighbours: a tensor-parallel share of the weights gives the bits of the whole.
#[test]
fn a_column_has_the_same_bits_in_any_matrix() {
    let (m, k, n) = (3, 600, 100);
    let mut noise = Noise::new(7);
    for dtype in [F32, BF16] {
        let (va, vb) = (noise.fractions(m * k), noise.fractions(k * n));
        let mut lab = Lab::new();
        let a = lab.tensor(dtype, &[m as i64, k as i64], &va);
        for variant in 0..4 {
            let whole = second(&mut lab, dtype, k, n, &vb, variant);
            let out = lab.room(F32, &[m as i64, n as i64]);
            lab.ok(ops::aclnnMm, &[A::T(a), A::T(whole), A::T(out), A::I(0)]);
            let want = lab.read(&out);
            for (from, width) in [(0, 1), (5, 17), (36, 64), (99, 1)] {
                let mut part = whole;
                part.dims[1] = width as i64;
                part.offset += from as i64 * part.strides[1];
                let out = lab.room(F32, &[m as i64, width as i64]);
                lab.ok(ops::aclnnMm, &[A::T(a), A::T(part), A::T(out), A::I(0)]);
                let want: Vec<f64> = want.chunks_exact(n).flat_map(|row| &row[from..from + width]).copied().collect();
                assert!(lab.read(&out) == want, "{dtype:?} columns {from}+{width}, variant {variant}");
            }
        }
    }
}

/// A case of [`batches_addends_and_vectors_match_a_naive_sum`]: operator, shapes of its tensors, and what it computes.
struct Case {
    op: acl_abi::OpId,
    own: &'static [i64],
    a: &'static [i64],
    b: &'static [i64],
    out: &'static [i64],
    /// Batches, rows, depth, columns.
    sizes: [usize; 4],
}

#[test]
fn batches_addends_and_vectors_match_a_naive_sum() {
    use ops::*;
    let mut noise = Noise::new(8);
    let case = |op, own, a, b, out, sizes| Case { op, own, a, b, out, sizes };
    let cases: [Case; 20] = [
        case(aclnnBatchMatMul, &[], &[3, 4, 6], &[3, 6, 5], &[3, 4, 5], [3, 4, 6, 5]),
        case(aclnnBatchMatMulWeightNz, &[], &[3, 4, 6], &[3, 6, 5], &[3, 4, 5], [3, 4, 6, 5]),
        case(aclnnMatmulWeightNz, &[], &[4, 6], &[6, 5], &[4, 5], [1, 4, 6, 5]),
        case(aclnnBatchMatMul, &[], &[40, 16, 32], &[40, 32, 160], &[40, 16, 160], [40, 16, 32, 160]),
        case(aclnnBatchMatMul, &[], &[2, 3, 0], &[2, 0, 4], &[2, 3, 4], [2, 3, 0, 4]),
        case(aclnnMv, &[], &[4, 6], &[6], &[4], [1, 4, 6, 1]),
        case(aclnnDot, &[], &[6], &[6], &[], [1, 1, 6, 1]),
        case(aclnnDot, &[], &[0], &[0], &[], [1, 1, 0, 1]),
        case(aclnnAddmm, &[4, 1], &[4, 6], &[6, 5], &[4, 5], [1, 4, 6, 5]),
        case(aclnnAddmm, &[5], &[4, 0], &[0, 5], &[4, 5], [1, 4, 0, 5]),
        case(aclnnInplaceAddmm, &[4, 5], &[4, 6], &[6, 5], &[4, 5], [1, 4, 6, 5]),
        case(aclnnBaddbmm, &[3, 4, 5], &[3, 4, 6], &[3, 6, 5], &[3, 4, 5], [3, 4, 6, 5]),
        case(aclnnBaddbmm, &[5], &[3, 4, 6], &[3, 6, 5], &[3, 4, 5], [3, 4, 6, 5]),
        case(aclnnInplaceBaddbmm, &[3, 4, 5], &[3, 4, 6], &[3, 6, 5], &[3, 4, 5], [3, 4, 6, 5]),
        case(aclnnAddbmm, &[4, 5], &[3, 4, 6], &[3, 6, 5], &[4, 5], [3, 4, 6, 5]),
        case(aclnnInplaceAddbmm, &[4, 5], &[3, 4, 6], &[3, 6, 5], &[4, 5], [3, 4, 6, 5]),
        case(aclnnAddmv, &[4], &[4, 6], &[6], &[4], [1, 4, 6, 1]),
        case(aclnnAddmv, &[1], &[4, 6], &[6], &[4], [1, 4, 6, 1]),
        case(aclnnAddr, &[5], &[4], &[5], &[4, 5], [1, 4, 1, 5]),
        case(aclnnInplaceAddr, &[4, 5], &[4], &[5], &[4, 5], [1, 4, 1, 5]),
    ];
    for Case { op, own, a, b, out, sizes: [batches, m, k, n] } in cases {
        for (dtype, integers) in [
            (F32, false),
            (BF16, false),
            (F16, false),
            (DataType::F64, false),
            (DataType::I64, true),
            (DataType::I32, true),
        ] {
            let mut values = |dims: &[i64]| -> Vec<f64> {
                let all = noise.values(dims.iter().product::<i64>() as usize);
                all.into_iter().map(|v| if integers { (v * 8.0).trunc() } else { v }).collect()
            };
            let (vo, va, vb) = (values(own), values(a), values(b));
            let mut product: Vec<f64> = (0..batches)
                .flat_map(|i| naive(&va[i * m * k..][..m * k], &vb[i * k * n..][..k * n], m, k, n))
                .collect();
            if matches!(op.name(), "aclnnAddbmm" | "aclnnInplaceAddbmm") {
                product = (0..m * n).map(|at| product.iter().skip(at).step_by(m * n).sum()).collect();
            }
            let mut lab = Lab::with_helpers(1);
            let (ta, tb) = (lab.tensor_as(dtype, a, &va, Lay::Sliced), lab.tensor_as(dtype, b, &vb, Lay::Reversed));
            let target = lab.room(dtype, out);
            let factor = |v: i64| if integers { super::super::testing::whole(v) } else { real(v as f64) };
            let name = op.name();
            let adds = name.contains("dd");
            let inplace = name.contains("Inplace");
            let mut args = Vec::new();
            let to = lab.tensor_as(dtype, own, &vo, if inplace { Lay::Reversed } else { Lay::Plain });
            if adds {
                args.push(A::T(to));
            }
            args.extend([A::T(ta), A::T(tb)]);
            if adds {
                let (beta, alpha) = (factor(2), factor(3));
                args.extend(if name == "aclnnAddmv" { [alpha, beta] } else { [beta, alpha] });
            }
            if !inplace {
                args.push(A::T(target));
            }
            if !name.contains("ddr") && name != "aclnnDot" {
                args.push(A::I(0));
            }
            assert_eq!(args.len(), op.signature().params.len(), "{name}");
            lab.ok(op, &args);
            // Where the addend lies for element `at` of the result.
            let columns = if own == [4, 1] { 1 } else { usize::MAX };
            let term = |at: usize| match columns {
                1 => vo[at / n],
                _ => vo[at % vo.len()],
            };
            let want: Vec<f64> =
                product.iter().enumerate().map(|(at, p)| if adds { 2.0 * term(at) + 3.0 * p } else { *p }).collect();
            let got = lab.read(if inplace { &to } else { &target });
            let tolerance = if dtype == BF16 {
                8e-3
            } else if dtype == F16 {
                1e-3
            } else {
                1e-5
            };
            close(&got, &want, tolerance);
            if integers {
                assert_eq!(got, want, "{name} {dtype:?}");
            }
        }
    }
}

#[test]
fn transposed_batches_are_permuted_in_and_out() {
    let mut noise = Noise::new(9);
    let mut lab = Lab::new();
    let (va, vb, vc) = (noise.values(3 * 4 * 6), noise.values(3 * 6 * 5), noise.values(5));
    // x1 [M, B, K], x2 [B, N, K], out [M, B, N].
    let a: Vec<f64> = (0..72).map(|at| va[(at / 6 % 3 * 4 + at / 18) * 6 + at % 6]).collect();
    let b: Vec<f64> = (0..90).map(|at| vb[(at / 30 * 6 + at % 6) * 5 + at / 6 % 5]).collect();
    let (a, b) = (lab.tensor(F32, &[4, 3, 6], &a), lab.tensor(F32, &[3, 5, 6], &b));
    let (bias, out) = (lab.tensor(F32, &[5], &vc), lab.room(F32, &[4, 3, 5]));
    let args = [
        A::T(a),
        A::T(b),
        A::T(bias),
        A::Null,
        A::Ints(vec![1, 0, 2]),
        A::Ints(vec![0, 2, 1]),
        A::Ints(vec![1, 0, 2]),
        A::I(0),
        A::I(1),
        A::T(out),
    ];
    lab.ok(ops::aclnnTransposeBatchMatMul, &args);
    let products: Vec<f64> = (0..3).flat_map(|i| naive(&va[i * 24..][..24], &vb[i * 30..][..30], 4, 6, 5)).collect();
    let want: Vec<f64> = (0..60).map(|at| products[(at / 5 % 3 * 4 + at / 15) * 5 + at % 5] + vc[at % 5]).collect();
    close(&lab.read(&out), &want, 1e-5);
}

#[test]
fn malformed_products_are_refused() {
    let mut lab = Lab::new();
    let f = |lab: &mut Lab, dims: &[i64]| {
        let desc = lab.room(F32, dims);
        A::T(desc)
    };
    let (a, b, c) = (f(&mut lab, &[2, 3]), f(&mut lab, &[4, 5]), f(&mut lab, &[2, 5]));
    let batch = f(&mut lab, &[3, 2, 3]);
    let pair = f(&mut lab, &[2, 3, 5]);
    let int = A::T(lab.room(DataType::I32, &[2, 3]));
    let scalar = f(&mut lab, &[]);
    let k3 = f(&mut lab, &[3, 5]);
    for (op, args, part) in [
        (ops::aclnnMm, vec![a.clone(), b.clone(), c.clone(), A::I(0)], "shapes do not agree: [2, 3] · [4, 5] → [2, 5]"),
        (ops::aclnnMm, vec![batch.clone(), k3.clone(), c.clone(), A::I(0)], "operands must be 2-d"),
        (
            ops::aclnnMm,
            vec![int.clone(), k3.clone(), c.clone(), A::I(0)],
            "element types int32 · float32 → float32 do not go together",
        ),
        (ops::aclnnMatmul, vec![scalar, k3.clone(), c.clone(), A::I(0)], "at least one dimension"),
        (ops::aclnnMatmul, vec![batch.clone(), pair, c.clone(), A::I(0)], "do not broadcast"),
        (ops::aclnnMatmul, vec![batch, k3.clone(), c.clone(), A::I(0)], "shapes do not agree"),
        (ops::aclnnMatmul, vec![a.clone(), k3.clone(), A::Null, A::I(0)], "out: a tensor is required"),
        (
            ops::aclnnAddmm,
            vec![b, a.clone(), k3, real(1.0), real(1.0), c, A::I(0)],
            "self: shape [4, 5] does not broadcast",
        ),
    ] {
        lab.refused(op, &args, part);
    }
    // A sum over an expanded dimension that no memory holds.
    let mut endless = lab.room(F32, &[1, 1]);
    endless.dims[1] = 1 << 30;
    endless.strides = [0; 8];
    let (column, out) = (transposed(endless), f(&mut lab, &[1, 1]));
    lab.refused(ops::aclnnMm, &[A::T(endless), A::T(column), out, A::I(0)], "sums of 1073741824 products");
}
