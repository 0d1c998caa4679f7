//! Operators that make values.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Lay, real, whole};

use DataType::{BF16, Bool, F16, F32, F64, I8, I32, I64};

#[test]
fn fills_reach_every_element_and_no_other() {
    for dtype in [F32, BF16, F16, F64, I8, I32, I64, Bool] {
        for lay in LAYS {
            for dims in [&[3i64, 5][..], &[], &[0], &[1000]] {
                let mut lab = Lab::new();
                let x = lab.room_as(dtype, dims, lay);
                let ones = |lab: &Lab, want: f64| {
                    assert!(lab.read(&x).iter().all(|&v| v == want), "{dtype:?} {dims:?} {lay:?}")
                };
                lab.ok(ops::aclnnInplaceOne, &[A::T(x)]);
                ones(&lab, 1.0);
                lab.ok(ops::aclnnInplaceFillScalar, &[A::T(x), whole(3)]);
                ones(&lab, if dtype == Bool { 1.0 } else { 3.0 });
                lab.ok(ops::aclnnInplaceFillScalar, &[A::T(x), real(-2.0)]);
                ones(&lab, if dtype == Bool { 1.0 } else { -2.0 });
                lab.ok(ops::aclnnInplaceZero, &[A::T(x)]);
                ones(&lab, 0.0);
                if lay == Lay::Sliced {
                    let untouched = lab.machine.hbm.bytes()[..256].iter().filter(|&&b| b == 0xA5).count();
                    assert!(untouched > 0, "the gaps keep their bytes");
                }
            }
        }
    }
}

#[test]
fn a_large_tensor_is_zeroed_without_touching_its_neighbours() {
    let mut lab = Lab::new();
    let (before, large, after) = (lab.room(I8, &[100]), lab.room(I8, &[3 << 20]), lab.room(I8, &[100]));
    lab.ok(ops::aclnnInplaceZero, &[A::T(large)]);
    assert!(lab.read(&large).iter().all(|&v| v == 0.0));
    for neighbour in [before, after] {
        assert!(lab.read(&neighbour).iter().all(|&v| v == f64::from(0xA5u8 as i8)));
    }
}

#[test]
fn ranges_count_like_torch() {
    let mut lab = Lab::new();
    for (dtype, start, end, step, want) in [
        (I64, whole(0), whole(4), whole(1), vec![0.0, 1.0, 2.0, 3.0]),
        (I64, whole(5), whole(-1), whole(-2), vec![5.0, 3.0, 1.0]),
        (F32, real(0.0), real(1.0), real(0.25), vec![0.0, 0.25, 0.5, 0.75]),
        (BF16, whole(1), whole(4), whole(1), vec![1.0, 2.0, 3.0]),
        (I32, whole(3), whole(3), whole(1), vec![]),
    ] {
        let out = lab.room(dtype, &[want.len() as i64]);
        lab.ok(ops::aclnnArange, &[start, end, step, A::T(out)]);
        assert_eq!(lab.read(&out), want);
    }
    let out = lab.room(I64, &[3]);
    lab.refused(ops::aclnnArange, &[whole(0), whole(4), whole(1), A::T(out)], "out: 3 elements, want 4");
    lab.refused(ops::aclnnArange, &[whole(0), whole(4), whole(0), A::T(out)], "step: 0 leads nowhere");
    let square = lab.room(I64, &[2, 2]);
    lab.refused(ops::aclnnArange, &[whole(0), whole(4), whole(1), A::T(square)], "want one dimension");
}

#[test]
fn normal_numbers_depend_on_seed_and_index_only() {
    let mut lab = Lab::new();
    let count = 100_000usize;
    let draw = |lab: &mut Lab, lay, count: usize, seed, offset| {
        let x = lab.room_as(F32, &[count as i64 / 10, 10], lay);
        lab.ok(ops::aclnnInplaceNormal, &[A::T(x), A::F(1.0), A::F(2.0), A::I(seed), A::I(offset)]);
        lab.read(&x)
    };
    let values = draw(&mut lab, Lay::Plain, count, 42, 0);
    let mean = values.iter().sum::<f64>() / count as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
    let kurtosis = values.iter().map(|v| (v - mean).powi(4)).sum::<f64>() / count as f64 / variance.powi(2);
    assert!(
        (mean - 1.0).abs() < 0.03 && (variance - 4.0).abs() < 0.08 && (kurtosis - 3.0).abs() < 0.1,
        "{mean} {variance} {kurtosis}"
    );
    assert_eq!(draw(&mut lab, Lay::Reversed, 1000, 42, 0), values[..1000], "layout does not matter");
    let other = draw(&mut lab, Lay::Plain, 1000, 42, 10);
    let repeats = other.chunks_exact(4).any(|run| values.windows(4).any(|window| window == run));
    assert!(!repeats, "a call with another offset draws other numbers");
    assert_ne!(draw(&mut lab, Lay::Plain, 1000, 43, 0), values[..1000]);
    let int = lab.room(I32, &[4]);
    lab.refused(ops::aclnnInplaceNormal, &[A::T(int), A::F(0.0), A::F(1.0), A::I(0), A::I(0)], "holds no fractions");
    let x = lab.room(F32, &[4]);
    lab.refused(
        ops::aclnnInplaceNormal,
        &[A::T(x), A::F(0.0), A::F(-1.0), A::I(0), A::I(0)],
        "std: -1 is not 0 or more",
    );
}
