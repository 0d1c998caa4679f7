//! Order: sorts, selections, medians, sampling filters, distinct elements, look-ups.

use acl_abi::{DataType, extent::NO_DIM, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, real, whole};

use DataType::{BF16, Bool, F16, F32, F64, I32, I64, U8};

/// Indices of a stable sort, by comparing values; NaN is larger than any number.
fn sorted(values: &[f64], descending: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let rank = |v: f64| if v.is_nan() { (1, 0.0) } else { (0, v) };
    order.sort_by(|&a, &b| {
        let order = rank(values[a]).partial_cmp(&rank(values[b])).unwrap();
        if descending { order.reverse() } else { order }
    });
    order
}

#[test]
fn sorts_are_stable_and_put_nan_above_numbers() {
    let nan = f64::NAN;
    let rows = [
        vec![2.0, nan, -1.0, 2.0, 0.0, -0.0, nan, 2.0],
        vec![f64::INFINITY, nan, f64::NEG_INFINITY],
        vec![],
        vec![1.0],
    ];
    for values in rows {
        for dtype in [F32, F64, BF16, F16] {
            for descending in [false, true] {
                let mut lab = Lab::new();
                let dims = [values.len() as i64];
                let x = lab.tensor(dtype, &dims, &values);
                let (out, index) = (lab.room(dtype, &dims), lab.room(I64, &dims));
                let args = [A::T(x), A::B(true), A::I(-1), A::B(descending), A::T(out), A::T(index)];
                lab.ok(ops::aclnnSort, &args);
                let want = sorted(&values, descending);
                assert_eq!(lab.read(&index), want.iter().map(|&i| i as f64).collect::<Vec<_>>(), "{values:?}");
                let got = lab.read(&out);
                assert!(got.iter().zip(&want).all(|(g, &i)| *g == values[i] || g.is_nan() && values[i].is_nan()));
            }
        }
    }
}

#[test]
fn any_dimension_is_sorted_in_any_layout() {
    let values = Noise::new(3).values(60);
    for lay in LAYS {
        for dim in 0..3usize {
            let (size, stride) = ([3, 4, 5][dim], [20, 5, 1][dim]);
            let mut lab = Lab::new();
            let x = lab.tensor_as(F32, &[3, 4, 5], &values, lay);
            let (out, index) = (lab.room_as(F32, &[3, 4, 5], lay), lab.room(I64, &[3, 4, 5]));
            let mut shape = [3i64, 4, 5];
            shape[dim] = 2;
            let (best, places) = (lab.room_as(F32, &shape, lay), lab.room(I64, &shape));
            lab.ok(ops::aclnnSort, &[A::T(x), A::B(false), A::I(dim as i64), A::B(false), A::T(out), A::T(index)]);
            let topk = [A::T(x), A::I(2), A::I(dim as i64 - 3), A::B(true), A::B(true), A::T(best), A::T(places)];
            lab.ok(ops::aclnnTopk, &topk);
            let (got, at, best, places) = (lab.read(&out), lab.read(&index), lab.read(&best), lab.read(&places));
            for i in (0..60).filter(|i| i / stride % size == 0) {
                let line: Vec<f64> = (0..size).map(|k| values[i + k * stride]).collect();
                let order = sorted(&line, false);
                for k in 0..size {
                    assert_eq!((got[i + k * stride], at[i + k * stride]), (line[order[k]], order[k] as f64));
                }
                let down = sorted(&line, true);
                let first = i / (stride * size) * stride * 2 + i % stride;
                for k in 0..2 {
                    assert_eq!((best[first + k * stride], places[first + k * stride]), (line[down[k]], down[k] as f64));
                }
            }
            // In place, as `sort(out=…)` may ask.
            lab.ok(ops::aclnnSort, &[A::T(x), A::B(false), A::I(dim as i64), A::B(false), A::T(x), A::T(index)]);
            assert_eq!(lab.read(&x), got);
        }
    }
}

#[test]
fn topk_takes_the_smallest_too_and_no_more_than_there_are() {
    let mut lab = Lab::new();
    let x = lab.tensor(I64, &[5], &[4.0, 1.0, 3.0, 1.0, 5.0]);
    let (best, places) = (lab.room(I64, &[3]), lab.room(I64, &[3]));
    let args = |k| [A::T(x), A::I(k), A::I(0), A::B(false), A::B(true), A::T(best), A::T(places)];
    lab.ok(ops::aclnnTopk, &args(3));
    assert_eq!((lab.read(&best), lab.read(&places)), (vec![1.0, 1.0, 3.0], vec![1.0, 3.0, 2.0]));
    lab.refused(ops::aclnnTopk, &args(6), "k: 6 of 5 elements");
    lab.refused(ops::aclnnTopk, &args(2), "does not fit 2 of [5]");
    let flags = lab.tensor(Bool, &[3], &[0.0, 1.0, 0.0]);
    let (out, index) = (lab.room(Bool, &[3]), lab.room(I64, &[3]));
    lab.ok(ops::aclnnSort, &[A::T(flags), A::B(true), A::I(0), A::B(true), A::T(out), A::T(index)]);
    assert_eq!(lab.read(&index), [1.0, 0.0, 2.0]);
}

#[test]
fn medians_are_the_lower_middle_and_nan_wins_unless_ignored() {
    let mut lab = Lab::new();
    let nan = f64::NAN;
    let x = lab.tensor(F32, &[3, 4], &[4.0, 1.0, 3.0, 2.0, 5.0, nan, 1.0, nan, nan, nan, nan, nan]);
    let (out, index) = (lab.room(F32, &[3]), lab.room(I64, &[3]));
    lab.ok(ops::aclnnMedianDim, &[A::T(x), A::I(1), A::B(false), A::T(out), A::T(index)]);
    let got = lab.read(&out);
    assert!(got[0] == 2.0 && got[1].is_nan() && got[2].is_nan());
    assert_eq!(lab.read(&index), [3.0, 1.0, 0.0]);
    lab.ok(ops::aclnnNanMedianDim, &[A::T(x), A::I(1), A::B(false), A::T(out), A::T(index)]);
    assert_eq!((lab.read(&out)[1], lab.read(&index)[1]), (1.0, 2.0));
    let one = lab.room(F32, &[]);
    lab.ok(ops::aclnnMedian, &[A::T(x), A::T(one)]);
    assert!(lab.read(&one)[0].is_nan());
    lab.ok(ops::aclnnNanMedian, &[A::T(x), A::T(one)]);
    assert_eq!(lab.read(&one), [2.0]);
    let (value, place) = (lab.room(F32, &[3, 1]), lab.room(I64, &[3, 1]));
    lab.ok(ops::aclnnKthvalue, &[A::T(x), A::I(2), A::I(1), A::B(true), A::T(value), A::T(place)]);
    assert_eq!(lab.read(&value)[..2], [2.0, 5.0]);
    let none = [A::T(x), A::I(5), A::I(1), A::B(true), A::T(value), A::T(place)];
    lab.refused(ops::aclnnKthvalue, &none, "k: 5 of 4 elements");
}

#[test]
fn sampling_filters_keep_the_k_largest_and_the_likely() {
    let mut lab = Lab::new();
    let logs: Vec<f64> = [0.1f64, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect();
    let logits = lab.tensor(F32, &[2, 4], &[logs.clone(), logs].concat());
    let (k, p) = (lab.tensor(I32, &[2], &[3.0, 4.0]), lab.tensor(F32, &[2], &[1.0, 0.65]));
    let out = lab.room(F32, &[2, 4]);
    lab.ok(ops::aclnnApplyTopKTopP, &[A::T(logits), A::T(p), A::T(k), A::T(out)]);
    let kept: Vec<bool> = lab.read(&out).iter().map(|v| v.is_finite()).collect();
    assert_eq!(kept, [false, true, true, true, false, true, false, true]);
    lab.ok(ops::aclnnApplyTopKTopP, &[A::T(logits), A::Null, A::T(k), A::T(out)]);
    assert_eq!(lab.read(&out).iter().filter(|v| v.is_finite()).count(), 7);
}

#[test]
fn distinct_elements_with_inverse_and_counts() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 3], &[3.0, 1.0, 3.0, -2.0, 1.0, 3.0]);
    let (values, inverse, counts) = (lab.room(F32, &[6]), lab.room(I64, &[2, 3]), lab.room(I64, &[6]));
    let outs = [A::T(values), A::T(inverse), A::T(counts)];
    lab.ok(ops::aclnnUnique2, &[&[A::T(x), A::B(true), A::B(true), A::B(true)][..], &outs].concat());
    assert_eq!(lab.machine.extent, Some(3));
    assert_eq!(lab.read(&values)[..3], [-2.0, 1.0, 3.0]);
    assert_eq!(lab.read(&inverse), [2.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    assert_eq!(lab.read(&counts)[..3], [1.0, 2.0, 3.0]);
    lab.ok(ops::aclnnUniqueConsecutive, &[&[A::T(x), A::B(true), A::B(true), A::I(NO_DIM)][..], &outs].concat());
    assert_eq!(lab.machine.extent, Some(6));
    let runs = lab.tensor(I64, &[5], &[1.0, 1.0, 2.0, 1.0, 1.0]);
    let values = lab.room(I64, &[5]);
    let args = [A::T(runs), A::B(false), A::B(false), A::I(NO_DIM), A::T(values), A::Null, A::Null];
    lab.ok(ops::aclnnUniqueConsecutive, &args);
    assert_eq!((lab.machine.extent, &lab.read(&values)[..3]), (Some(3), &[1.0, 2.0, 1.0][..]));
    let nan = lab.tensor(F32, &[4], &[f64::NAN, 0.0, f64::NAN, -0.0]);
    let (values, inverse) = (lab.room(F32, &[4]), lab.room(I64, &[4]));
    lab.ok(ops::aclnnUnique, &[A::T(nan), A::B(true), A::B(true), A::T(values), A::T(inverse)]);
    assert_eq!(lab.machine.extent, Some(3), "NaN differs from NaN, both zeros are one");
    assert_eq!(lab.read(&inverse), [1.0, 0.0, 2.0, 0.0]);
}

#[test]
fn distinct_slices_are_packed_along_their_dimension() {
    let mut lab = Lab::new();
    // Columns (1, 4), (0, 9), (1, 4).
    let x = lab.tensor(F32, &[2, 3], &[1.0, 0.0, 1.0, 4.0, 9.0, 4.0]);
    let (values, inverse, counts) = (lab.tensor(F32, &[2, 3], &[7.0; 6]), lab.room(I64, &[3]), lab.room(I64, &[3]));
    let args = [A::T(x), A::B(true), A::B(true), A::I(1), A::T(values), A::T(inverse), A::T(counts)];
    lab.ok(ops::aclnnUniqueDim, &args);
    assert_eq!(lab.machine.extent, Some(2));
    assert_eq!(lab.read(&values), [0.0, 1.0, 9.0, 4.0, 7.0, 7.0], "as a contiguous [2, 2] tensor");
    assert_eq!((lab.read(&inverse), &lab.read(&counts)[..2]), (vec![1.0, 0.0, 1.0], &[1.0, 2.0][..]));
}

#[test]
fn values_are_found_in_sorted_sequences() {
    let mut lab = Lab::new();
    let sequence = lab.tensor(F32, &[2, 4], &[1.0, 3.0, 3.0, 7.0, 0.0, 1.0, 2.0, 3.0]);
    let values = lab.tensor(F32, &[2, 3], &[3.0, 0.0, f64::NAN, 1.5, 3.0, -1.0]);
    let out = lab.room(I64, &[2, 3]);
    for (right, want) in [(false, [1.0, 0.0, 4.0, 2.0, 3.0, 0.0]), (true, [3.0, 0.0, 4.0, 2.0, 4.0, 0.0])] {
        let args = [A::T(sequence), A::T(values), A::B(false), A::B(right), A::Null, A::T(out)];
        lab.ok(ops::aclnnSearchSorted, &args);
        assert_eq!(lab.read(&out), want);
    }
    let shuffled = lab.tensor(F32, &[3], &[5.0, 1.0, 3.0]);
    let order = lab.tensor(I64, &[3], &[1.0, 2.0, 0.0]);
    lab.ok(ops::aclnnSearchSorted, &[A::T(shuffled), A::T(values), A::B(false), A::B(false), A::T(order), A::T(out)]);
    assert_eq!(lab.read(&out)[..2], [1.0, 0.0]);
    let bad = lab.tensor(I64, &[3], &[1.0, 3.0, 0.0]);
    let args = [A::T(shuffled), A::T(values), A::B(false), A::B(false), A::T(bad), A::T(out)];
    lab.refused(ops::aclnnSearchSorted, &args, "sorter: value 3 is not in 0..3");
    let one = lab.room(I32, &[]);
    lab.ok(ops::aclnnSearchSorteds, &[A::T(shuffled), real(4.0), A::B(true), A::B(false), A::T(order), A::T(one)]);
    assert_eq!(lab.read(&one), [2.0]);
    let edges = lab.tensor(I64, &[3], &[1.0, 3.0, 5.0]);
    let ints = lab.tensor(I64, &[4], &[0.0, 3.0, 4.0, 9.0]);
    let out = lab.room(I64, &[4]);
    lab.ok(ops::aclnnBucketize, &[A::T(ints), A::T(edges), A::B(false), A::B(true), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, 2.0, 2.0, 3.0]);
}

#[test]
fn values_are_counted() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[6], &[0.0, 1.0, 2.0, 2.5, 4.0, 9.0]);
    let out = lab.room(F32, &[4]);
    lab.ok(ops::aclnnHistc, &[A::T(x), A::I(4), real(0.0), real(4.0), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, 1.0, 2.0, 1.0], "the upper end belongs to the last part");
    lab.ok(ops::aclnnHistc, &[A::T(x), A::I(4), real(0.0), real(0.0), A::T(out)]);
    assert_eq!(lab.read(&out), [3.0, 2.0, 0.0, 1.0], "the elements' own range");
    let ints = lab.tensor(U8, &[4], &[1.0, 3.0, 1.0, 0.0]);
    let counts = lab.room(I64, &[5]);
    lab.ok(ops::aclnnBincount, &[A::T(ints), A::Null, A::I(5), A::T(counts)]);
    assert_eq!(lab.read(&counts), [1.0, 2.0, 0.0, 1.0, 0.0]);
    let weights = lab.tensor(F32, &[4], &[0.5, 1.0, 0.25, 2.0]);
    let sums = lab.room(F64, &[4]);
    lab.ok(ops::aclnnBincount, &[A::T(ints), A::T(weights), A::I(0), A::T(sums)]);
    close(&lab.read(&sums), &[2.0, 0.75, 0.0, 1.0], 1e-12);
    let small = lab.room(I64, &[3]);
    lab.refused(
        ops::aclnnBincount,
        &[A::T(ints), A::Null, A::I(0), A::T(small)],
        "value 3 at position 1 is not in 0..3",
    );
    let (flags, one) = (lab.room(Bool, &[4]), lab.room(Bool, &[]));
    lab.ok(ops::aclnnIsInTensorScalar, &[A::T(ints), whole(1), A::B(false), A::B(true), A::T(flags)]);
    assert_eq!(lab.read(&flags), [0.0, 1.0, 0.0, 1.0]);
    lab.ok(ops::aclnnIsInScalarTensor, &[whole(3), A::T(ints), A::B(false), A::B(false), A::T(one)]);
    assert_eq!(lab.read(&one), [1.0]);
    lab.ok(ops::aclnnIsInScalarTensor, &[real(0.5), A::T(ints), A::B(false), A::B(false), A::T(one)]);
    assert_eq!(lab.read(&one), [0.0]);
}
