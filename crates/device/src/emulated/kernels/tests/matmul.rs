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
        (ops::aclnnMm, vec![int.clone(), k3.clone(), c.clone(), A::I(0)], "self: element type int32"),
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
