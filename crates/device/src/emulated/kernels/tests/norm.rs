//! RmsNorm and AddRmsNorm.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, rounded};

use DataType::{BF16, F16, F32};

fn reference(x: &[f64], gamma: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let width = gamma.len();
    let rstd: Vec<f64> = x
        .chunks(width)
        .map(|row| 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / width as f64 + epsilon).sqrt())
        .collect();
    let y = x.iter().enumerate().map(|(i, v)| v * rstd[i / width] * gamma[i % width]).collect();
    (y, rstd)
}

#[test]
fn norms_match_their_definition() {
    let mut noise = Noise::new(7);
    for (dtype, tolerance) in [(F32, 1e-6), (BF16, 8e-3), (F16, 1e-3)] {
        for dims in [&[3i64, 20][..], &[2, 2, 128], &[1, 7], &[5], &[0, 8]] {
            for lay in LAYS {
                let mut lab = Lab::new();
                let (width, count) = (dims[dims.len() - 1], dims.iter().product::<i64>() as usize);
                let (va, vb, vg) = (noise.values(count), noise.values(count), noise.values(width as usize));
                let (a, b) = (lab.tensor_as(dtype, dims, &va, lay), lab.tensor(dtype, dims, &vb));
                let gamma = lab.tensor(dtype, &[width], &vg);
                let (y, sum) = (lab.room_as(dtype, dims, lay), lab.room_as(dtype, dims, lay));
                let mut rows = dims.to_vec();
                rows[dims.len() - 1] = 1;
                let rstd = lab.room(F32, &rows);
                lab.ok(ops::aclnnRmsNorm, &[A::T(a), A::T(gamma), A::F(1e-5), A::T(y), A::T(rstd)]);
                let (want, want_rstd) = reference(&va, &vg, 1e-5);
                close(&lab.read(&y), &want, tolerance);
                close(&lab.read(&rstd), &want_rstd, 1e-5);
                lab.ok(ops::aclnnRmsNorm, &[A::T(a), A::T(gamma), A::F(1e-5), A::T(y), A::Null]);
                close(&lab.read(&y), &want, tolerance);

                lab.ok(
                    ops::aclnnAddRmsNorm,
                    &[A::T(a), A::T(b), A::T(gamma), A::F(1e-5), A::T(y), A::T(rstd), A::T(sum)],
                );
                let sums: Vec<f64> = va.iter().zip(&vb).map(|(a, b)| rounded(dtype, (a + b) as f32)).collect();
                assert_eq!(lab.read(&sum), sums);
                let (want, _) = reference(&sums, &vg, 1e-5);
                close(&lab.read(&y), &want, tolerance);
            }
        }
    }
}

#[test]
fn adding_first_or_in_the_same_operator_gives_the_same_bits() {
    let mut noise = Noise::new(8);
    for dtype in [F32, BF16] {
        let mut lab = Lab::new();
        let (a, b) =
            (lab.tensor(dtype, &[3, 100], &noise.fractions(300)), lab.tensor(dtype, &[3, 100], &noise.fractions(300)));
        let gamma = lab.tensor(dtype, &[100], &noise.fractions(100));
        let (y, z, sum) = (lab.room(dtype, &[3, 100]), lab.room(dtype, &[3, 100]), lab.room(dtype, &[3, 100]));
        lab.ok(ops::aclnnAdd, &[A::T(a), A::T(b), super::super::testing::real(1.0), A::T(sum)]);
        lab.ok(ops::aclnnRmsNorm, &[A::T(sum), A::T(gamma), A::F(1e-6), A::T(y), A::Null]);
        // In place: the sum replaces the first operand.
        lab.ok(ops::aclnnAddRmsNorm, &[A::T(a), A::T(b), A::T(gamma), A::F(1e-6), A::T(z), A::Null, A::T(a)]);
        assert_eq!(lab.read(&y), lab.read(&z));
        assert_eq!(lab.read(&a), lab.read(&sum));
        // And a row alone is the row in the batch.
        let (row, out) = (lab.tensor(dtype, &[1, 100], &lab.read(&sum)[100..200]), lab.room(dtype, &[1, 100]));
        lab.ok(ops::aclnnRmsNorm, &[A::T(row), A::T(gamma), A::F(1e-6), A::T(out), A::Null]);
        assert_eq!(lab.read(&out), lab.read(&y)[100..200]);
    }
}

#[test]
fn malformed_norms_are_refused() {
    let mut lab = Lab::new();
    let x = A::T(lab.room(F32, &[2, 4]));
    let half = A::T(lab.room(F16, &[2, 4]));
    let int = A::T(lab.room(DataType::I32, &[2, 4]));
    let (gamma, wrong) = (A::T(lab.room(F32, &[4])), A::T(lab.room(F32, &[4, 2])));
    let rstd = A::T(lab.room(F32, &[3]));
    for (args, part) in [
        (
            vec![x.clone(), wrong, A::F(1e-6), x.clone(), A::Null],
            "gamma: shape [4, 2] is not that of the last dimensions of [2, 4]",
        ),
        (vec![x.clone(), gamma.clone(), A::F(1e-6), gamma.clone(), A::Null], "yOut: shape [4], want [2, 4]"),
        (vec![x.clone(), gamma.clone(), A::F(1e-6), x.clone(), rstd], "rstdOut: shape [3] does not hold 2 rows"),
        (vec![int, gamma.clone(), A::F(1e-6), x.clone(), A::Null], "x: type int32"),
        (vec![x.clone(), gamma.clone(), A::I(1), x.clone(), A::Null], "epsilon: a number is required"),
    ] {
        lab.refused(ops::aclnnRmsNorm, &args, part);
    }
    lab.refused(
        ops::aclnnAddRmsNorm,
        &[x.clone(), half, gamma, A::F(1e-6), x.clone(), A::Null, x],
        "x2: type float16, want float32",
    );
}

#[test]
fn a_bias_is_added_before_the_result_is_rounded() {
    let mut noise = Noise::new(31);
    for (dtype, tolerance) in [(F32, 1e-6), (BF16, 8e-3), (F16, 1e-3)] {
        let mut lab = Lab::new();
        let (va, vb, vg, vt) = (noise.values(24), noise.values(24), noise.values(8), noise.values(8));
        let (a, b) = (lab.tensor(dtype, &[3, 8], &va), lab.tensor(dtype, &[3, 8], &vb));
        let (gamma, beta) = (lab.tensor(dtype, &[8], &vg), lab.tensor(dtype, &[8], &vt));
        let (y, sum, rstd) = (lab.room(dtype, &[3, 8]), lab.room(dtype, &[3, 8]), lab.room(F32, &[3, 1]));
        let rest = [A::F(1e-6), A::T(y), A::T(rstd), A::T(sum)];
        let with = |beta| [&[A::T(a), A::T(b), A::T(gamma), beta], &rest[..]].concat();
        lab.ok(ops::aclnnAddRmsNormBias, &with(A::T(beta)));
        let sums: Vec<f64> = va.iter().zip(&vb).map(|(a, b)| rounded(dtype, (a + b) as f32)).collect();
        assert_eq!(lab.read(&sum), sums);
        let (plain, _) = reference(&sums, &vg, 1e-6);
        let want: Vec<f64> = plain.iter().enumerate().map(|(i, v)| v + vt[i % 8]).collect();
        close(&lab.read(&y), &want, tolerance);
        lab.ok(ops::aclnnAddRmsNormBias, &with(A::Null));
        close(&lab.read(&y), &plain, tolerance);
        let short = lab.tensor(dtype, &[4], &vt[..4]);
        lab.refused(ops::aclnnAddRmsNormBias, &with(A::T(short)), "betaOptional");
    }
}
