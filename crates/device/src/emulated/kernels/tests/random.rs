//! Random numbers: what they depend on, and their distributions.

use acl_abi::{DataType, ops};

use super::super::testing::{A, Lab, Lay, close, real};

use DataType::{BF16, Bool, F16, F32, F64, I32, I64, U8};

const COUNT: usize = 100_000;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn variance(values: &[f64]) -> f64 {
    let middle = mean(values);
    mean(&values.iter().map(|v| (v - middle).powi(2)).collect::<Vec<_>>())
}

#[test]
fn uniform_numbers_fill_their_range_and_stay_below_its_end() {
    for dtype in [F32, F64, F16, BF16] {
        let mut lab = Lab::new();
        let x = lab.room(dtype, &[COUNT as i64]);
        lab.ok(ops::aclnnInplaceUniform, &[A::T(x), A::F(0.0), A::F(1.0), A::I(7), A::I(0)]);
        let values = lab.read(&x);
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)), "{dtype:?}");
        close(&[mean(&values), variance(&values)], &[0.5, 1.0 / 12.0], 0.005);
        let tenths = (0..10).map(|i| values.iter().filter(|v| (**v * 10.0) as i32 == i).count());
        assert!(
            tenths.clone().all(|n| n.abs_diff(COUNT / 10) < COUNT / 50),
            "{dtype:?} {:?}",
            tenths.collect::<Vec<_>>()
        );
    }
}

#[test]
fn the_stored_seed_and_offset_count_like_the_given_ones() {
    let mut lab = Lab::new();
    let (seed, offset) = (lab.tensor(I64, &[1], &[42.0]), lab.tensor(I64, &[1], &[5.0]));
    let (a, b) = (lab.room(F32, &[1000]), lab.room_as(F32, &[10, 100], Lay::Reversed));
    let pairs = [
        (
            ops::aclnnInplaceNormal,
            vec![A::F(1.0), A::F(2.0), A::I(42), A::I(8)],
            ops::aclnnInplaceNormalTensor,
            vec![A::F(1.0), A::F(2.0), A::T(seed), A::T(offset), A::I(3)],
        ),
        (
            ops::aclnnInplaceUniform,
            vec![A::F(-1.0), A::F(2.0), A::I(42), A::I(8)],
            ops::aclnnInplaceUniformTensor,
            vec![A::F(-1.0), A::F(2.0), A::T(seed), A::T(offset), A::I(3)],
        ),
        (
            ops::aclnnInplaceRandom,
            vec![A::I(-5), A::I(9), A::I(42), A::I(8)],
            ops::aclnnInplaceRandomTensor,
            vec![A::I(-5), A::I(9), A::T(seed), A::T(offset), A::I(3)],
        ),
        (
            ops::aclnnInplaceRandomWithoutFromTo,
            vec![A::I(42), A::I(8)],
            ops::aclnnInplaceRandomWithoutFromToTensor,
            vec![A::T(seed), A::T(offset), A::I(3)],
        ),
    ];
    for (given, first, stored, second) in pairs {
        lab.ok(given, &[&[A::T(a)][..], &first].concat());
        lab.ok(stored, &[&[A::T(b)][..], &second].concat());
        assert_eq!(lab.read(&a), lab.read(&b), "{} in another layout", stored.name());
        let two = lab.tensor(I64, &[2], &[1.0, 2.0]);
        let mut wrong = [&[A::T(b)][..], &second].concat();
        let at = wrong.len() - 3;
        wrong[at] = A::T(two);
        lab.refused(stored, &wrong, "seedTensor: shape [2], want one integer");
    }
}

#[test]
fn whole_numbers_stay_in_their_range() {
    let mut lab = Lab::new();
    let x = lab.room(I64, &[COUNT as i64]);
    lab.ok(ops::aclnnInplaceRandom, &[A::T(x), A::I(-3), A::I(3), A::I(1), A::I(0)]);
    let values = lab.read(&x);
    for want in -3..3 {
        let n = values.iter().filter(|v| **v == f64::from(want)).count();
        assert!(n.abs_diff(COUNT / 6) < COUNT / 100, "{want}: {n}");
    }
    assert!(values.iter().all(|v| (-3.0..3.0).contains(v)));
    lab.ok(ops::aclnnInplaceRandom, &[A::T(x), A::I(i64::MIN), A::I(i64::MAX), A::I(1), A::I(0)]);
    assert!(lab.read(&x).iter().any(|v| *v < -9e18) && lab.read(&x).iter().any(|v| *v > 9e18));
    lab.refused(ops::aclnnInplaceRandom, &[A::T(x), A::I(3), A::I(3), A::I(1), A::I(0)], "from: 3 to 3 is no range");
    for (dtype, largest) in [(U8, 255.0), (Bool, 1.0), (I32, 2_147_483_647.0), (BF16, 256.0)] {
        let x = lab.room(dtype, &[10_000]);
        lab.ok(ops::aclnnInplaceRandomWithoutFromTo, &[A::T(x), A::I(1), A::I(0)]);
        let values = lab.read(&x);
        assert!(values.iter().all(|v| (0.0..=largest).contains(v)), "{dtype:?}");
        assert!(values.iter().any(|v| *v > largest * 0.9), "{dtype:?}");
    }
}

#[test]
fn probabilities_and_rates_are_kept() {
    let mut lab = Lab::new();
    let x = lab.room(F32, &[COUNT as i64]);
    lab.ok(ops::aclnnInplaceBernoulli, &[A::T(x), real(0.3), A::I(1), A::I(0)]);
    let values = lab.read(&x);
    assert!(values.iter().all(|v| *v == 0.0 || *v == 1.0));
    close(&[mean(&values)], &[0.3], 0.01);
    let p = lab.tensor(F32, &[2, 1], &[0.0, 1.0]);
    let y = lab.room(Bool, &[2, 50]);
    lab.ok(ops::aclnnInplaceBernoulliTensor, &[A::T(y), A::T(p), A::I(1), A::I(0)]);
    assert_eq!(lab.read(&y), [vec![0.0; 50], vec![1.0; 50]].concat());
    let bad = lab.tensor(F32, &[2, 1], &[0.0, 1.5]);
    lab.refused(ops::aclnnInplaceBernoulliTensor, &[A::T(y), A::T(bad), A::I(1), A::I(0)], "1.5 is not a probability");
    lab.ok(ops::aclnnSimThreadExponential, &[A::T(x), A::I(COUNT as i64), A::F(2.0), A::I(1), A::I(0)]);
    let values = lab.read(&x);
    assert!(values.iter().all(|v| *v > 0.0 && v.is_finite()));
    close(&[mean(&values), variance(&values)], &[0.5, 0.25], 0.01);
    let (means, spreads) = (lab.tensor(F32, &[2, 1], &[-5.0, 5.0]), lab.tensor(F32, &[1, 5000], &[0.5; 5000]));
    let z = lab.room(F32, &[2, 5000]);
    lab.ok(ops::aclnnNormalTensorTensor, &[A::T(means), A::T(spreads), A::I(1), A::I(0), A::T(z)]);
    let values = lab.read(&z);
    close(&[mean(&values[..5000]), mean(&values[5000..])], &[-5.0, 5.0], 0.03);
    close(&[variance(&values[..5000]), variance(&values[5000..])], &[0.25, 0.25], 0.03);
    lab.ok(ops::aclnnNormalFloatTensor, &[A::F(3.0), A::T(spreads), A::I(1), A::I(0), A::T(z)]);
    close(&[mean(&lab.read(&z))], &[3.0], 0.03);
}

#[test]
fn draws_follow_their_weights() {
    let mut lab = Lab::new();
    let weights = lab.tensor(F32, &[2, 4], &[1.0, 0.0, 3.0, 4.0, 0.0, 0.0, 5.0, 0.0]);
    let out = lab.room(I64, &[2, COUNT as i64 / 10]);
    let args = |n: i64, replacement, out| [A::T(weights), A::I(n), A::B(replacement), A::I(9), A::I(0), A::T(out)];
    lab.ok(ops::aclnnMultinomial, &args(COUNT as i64 / 10, true, out));
    let drawn = lab.read(&out);
    let share = |c: f64| drawn[..10_000].iter().filter(|v| **v == c).count() as f64 / 10_000.0;
    close(&[share(0.0), share(1.0), share(2.0), share(3.0)], &[0.125, 0.0, 0.375, 0.5], 0.02);
    assert!(drawn[10_000..].iter().all(|v| *v == 2.0));
    let one = lab.tensor(F16, &[4], &[1.0, 0.0, 3.0, 4.0]);
    let mut firsts = [0usize; 4];
    for offset in 0..2000 {
        let out = lab.room(I64, &[3]);
        lab.ok(ops::aclnnMultinomial, &[A::T(one), A::I(3), A::B(false), A::I(9), A::I(offset), A::T(out)]);
        let mut drawn = lab.read(&out);
        firsts[drawn[0] as usize] += 1;
        drawn.sort_by(f64::total_cmp);
        assert_eq!(drawn, [0.0, 2.0, 3.0], "each category once");
    }
    close(&firsts.map(|n| n as f64 / 2000.0), &[0.125, 0.0, 0.375, 0.5], 0.05);
    let many = lab.room(I64, &[2, 2]);
    lab.refused(ops::aclnnMultinomial, &args(2, false, many), "2 of 1 possible categories");
    let bad = lab.tensor(F32, &[2], &[1.0, f64::NAN]);
    let pick = lab.room(I64, &[1]);
    lab.refused(ops::aclnnMultinomial, &[A::T(bad), A::I(1), A::B(true), A::I(9), A::I(0), A::T(pick)], "row 0");
}

#[test]
fn permutations_hold_every_number_once() {
    let mut lab = Lab::new();
    let out = lab.room(I64, &[5000]);
    lab.ok(ops::aclnnRandperm, &[A::I(5000), A::I(3), A::I(0), A::T(out)]);
    let mut order = lab.read(&out);
    let moved = order.iter().enumerate().filter(|(i, v)| **v != *i as f64).count();
    assert!(moved > 4900, "{moved}");
    order.sort_by(f64::total_cmp);
    assert_eq!(order, (0..5000).map(f64::from).collect::<Vec<_>>());
    lab.refused(ops::aclnnRandperm, &[A::I(4), A::I(3), A::I(0), A::T(out)], "want [4]");
}

#[test]
fn dropout_scales_what_its_mask_keeps() {
    let mut lab = Lab::new();
    let ones = lab.tensor(F32, &[100, 100], &[1.0; 10_000]);
    let mask = lab.room(U8, &[1264]);
    lab.ok(ops::aclnnDropoutGenMaskV2, &[A::Ints(vec![100, 100]), A::F(0.2), A::I(3), A::I(0), A::D(F32), A::T(mask)]);
    let out = lab.room_as(F32, &[100, 100], Lay::Reversed);
    lab.ok(ops::aclnnDropoutDoMask, &[A::T(ones), A::T(mask), A::F(0.2), A::T(out)]);
    let values = lab.read(&out);
    let kept = values.iter().filter(|v| **v == f64::from(1.25f32)).count();
    assert_eq!(kept + values.iter().filter(|v| **v == 0.0).count(), 10_000);
    assert!(kept.abs_diff(8000) < 150, "{kept}");
    let bytes = lab.read(&mask);
    assert!((0..10_000).all(|i| (bytes[i / 8] as u8 >> (i % 8) & 1 == 1) == (values[i] != 0.0)));
    assert!(bytes[1250..].iter().all(|b| *b == 0.0), "bits beyond the elements are 0");
    let (again, fused) = (lab.room(U8, &[1264]), lab.room(F32, &[100, 100]));
    let args = [A::T(ones), A::Null, A::F(0.2), A::I(3), A::I(0), A::T(fused), A::T(again)];
    lab.ok(ops::aclnnDropoutV3, &args);
    assert_eq!((lab.read(&again), lab.read(&fused)), (bytes, values));
    let grad = lab.room(F32, &[100, 100]);
    lab.ok(ops::aclnnDropoutV3Grad, &[A::T(ones), A::T(again), A::F(1.25), A::T(grad)]);
    assert_eq!(lab.read(&grad), lab.read(&fused));
    let short = lab.room(U8, &[1249]);
    lab.refused(ops::aclnnDropoutDoMask, &[A::T(ones), A::T(short), A::F(0.2), A::T(out)], "1249 bytes for 10000");
    lab.ok(ops::aclnnDropoutDoMask, &[A::T(ones), A::T(mask), A::F(1.0), A::T(out)]);
    let bools = lab.room(Bool, &[100, 100]);
    lab.refused(ops::aclnnDropoutDoMask, &[A::T(ones), A::T(bools), A::F(0.2), A::T(out)], "want uint8");
    assert!(lab.read(&out).iter().all(|v| *v == 0.0));
}
