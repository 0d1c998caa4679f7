//! Reductions and scans against loops over positions.

use acl_abi::{DataType, OpId, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, rounded, whole};

use DataType::{BF16, Bool, F16, F32, F64, I8, I32, I64};

const DIMS: [i64; 3] = [3, 4, 5];

/// Values of each group of a `[3, 4, 5]` tensor reduced over `dims`, in row-major order of what is kept.
fn groups(values: &[f64], dims: &[usize]) -> Vec<Vec<f64>> {
    let mut groups = std::collections::BTreeMap::<Vec<usize>, Vec<f64>>::new();
    for (i, &value) in values.iter().enumerate() {
        let position = [i / 20, i / 5 % 4, i % 5];
        let kept = (0..3).filter(|d| !dims.contains(d)).map(|d| position[d]).collect();
        groups.entry(kept).or_default().push(value);
    }
    groups.into_values().collect()
}

fn kept_shape(dims: &[usize], keep: bool) -> Vec<i64> {
    (0..3).filter(|d| keep || !dims.contains(d)).map(|d| if dims.contains(&d) { 1 } else { DIMS[d] }).collect()
}

/// Arguments but for the output, from the tensor, the dimensions, keepdim and the type.
type Arguments = fn(A, A, A, DataType) -> Vec<A>;
type Reference = fn(&[f64]) -> f64;

fn extreme(values: &[f64], sign: f64) -> f64 {
    values.iter().fold(f64::NEG_INFINITY, |m, v| m.max(sign * v)) * sign
}

fn variance(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (values.len() as f64 - 1.0)
}

#[test]
fn every_set_of_dimensions_is_reduced_in_every_layout() {
    let values = Noise::new(5).values(60);
    let cases: [(OpId, Arguments, Reference); 9] = [
        (ops::aclnnReduceSum, |x, d, k, t| vec![x, d, k, A::D(t)], |v| v.iter().sum()),
        (ops::aclnnReduceNansum, |x, d, k, t| vec![x, d, k, A::D(t)], |v| v.iter().sum()),
        (ops::aclnnMean, |x, d, k, t| vec![x, d, k, A::D(t)], |v| v.iter().sum::<f64>() / v.len() as f64),
        (ops::aclnnAmax, |x, d, k, _| vec![x, d, k], |v| extreme(v, 1.0)),
        (ops::aclnnAmin, |x, d, k, _| vec![x, d, k], |v| extreme(v, -1.0)),
        (ops::aclnnVarCorrection, |x, d, k, _| vec![x, d, A::I(1), k], variance),
        (ops::aclnnStd, |x, d, k, _| vec![x, d, A::I(1), k], |v| variance(v).sqrt()),
        (ops::aclnnLogSumExp, |x, d, k, _| vec![x, d, k], |v| v.iter().map(|v| v.exp()).sum::<f64>().ln()),
        (
            ops::aclnnNorm,
            |x, d, k, _| vec![x, super::super::testing::real(3.0), d, k],
            |v| v.iter().map(|v| v.abs().powi(3)).sum::<f64>().cbrt(),
        ),
    ];
    for (op, arguments, reference) in cases {
        for dtype in [F32, F64, BF16, F16] {
            for lay in LAYS {
                for dims in [&[0usize][..], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]] {
                    for keep in [false, true] {
                        let mut lab = Lab::new();
                        let x = lab.tensor_as(dtype, &DIMS, &values, lay);
                        let out = lab.room_as(dtype, &kept_shape(dims, keep), lay);
                        // Negative dimensions count from the end; in any order.
                        let named = A::Ints(dims.iter().rev().map(|&d| d as i64 - 3).collect());
                        let mut args = arguments(A::T(x), named, A::B(keep), dtype);
                        args.push(A::T(out));
                        lab.ok(op, &args);
                        let want: Vec<f64> =
                            groups(&values, dims).iter().map(|v| rounded(dtype, reference(v) as f32)).collect();
                        let tolerance = if dtype == BF16 { 1e-2 } else { 1e-3 };
                        close(&lab.read(&out), &want, if matches!(dtype, F32 | F64) { 1e-6 } else { tolerance });
                    }
                }
            }
        }
    }
}

#[test]
fn no_dimensions_mean_all_and_expanded_inputs_count_each_time() {
    let mut lab = Lab::new();
    let mut x = lab.tensor(F32, &[4, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let out = lab.room(F32, &[]);
    for dims in [A::Null, A::Ints(vec![])] {
        lab.ok(ops::aclnnReduceSum, &[A::T(x), dims, A::B(false), A::D(F32), A::T(out)]);
        assert_eq!(lab.read(&out), [36.0]);
    }
    x.strides[0] = 0;
    lab.ok(ops::aclnnReduceSum, &[A::T(x), A::Null, A::B(false), A::D(F32), A::T(out)]);
    assert_eq!(lab.read(&out), [12.0]);
    // 0-d counts as one element; an expanded view larger than memory is refused, not waited for.
    let one = lab.tensor(F32, &[], &[3.5]);
    lab.ok(ops::aclnnReduceSum, &[A::T(one), A::Ints(vec![-1]), A::B(true), A::D(F32), A::T(out)]);
    assert_eq!(lab.read(&out), [3.5]);
    (x.dims[0], x.dims[1]) = (1 << 20, 2);
    x.strides[1] = 1;
    lab.ok(ops::aclnnReduceSum, &[A::T(x), A::Null, A::B(false), A::D(F32), A::T(out)]);
    x.dims[0] = 1 << 30;
    lab.refused(
        ops::aclnnReduceSum,
        &[A::T(x), A::Null, A::B(false), A::D(F32), A::T(out)],
        "more than the device has bytes",
    );
    let square = lab.room(F32, &[2, 2]);
    let twice = [A::T(square), A::Ints(vec![1, -1]), A::B(false), A::D(F32), A::T(out)];
    lab.refused(ops::aclnnReduceSum, &twice, "dimension 1 appears twice");
    lab.refused(
        ops::aclnnReduceSum,
        &[A::T(square), A::Ints(vec![2]), A::B(false), A::D(F32), A::T(out)],
        "dimension 2 of a tensor with 2",
    );
    lab.refused(ops::aclnnReduceSum, &[A::T(square), A::Ints(vec![1]), A::B(false), A::D(F32), A::T(out)], "shape []");
}

#[test]
fn empty_groups_have_the_neutral_element_or_are_refused() {
    let mut lab = Lab::new();
    let x = lab.room(F32, &[2, 0]);
    let out = lab.tensor(F32, &[2], &[9.0, 9.0]);
    let dim = || A::Ints(vec![1]);
    lab.ok(ops::aclnnReduceSum, &[A::T(x), dim(), A::B(false), A::D(F32), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, 0.0]);
    lab.ok(ops::aclnnProdDim, &[A::T(x), A::I(1), A::B(false), A::D(F32), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, 1.0]);
    lab.ok(ops::aclnnMean, &[A::T(x), dim(), A::B(false), A::D(F32), A::T(out)]);
    assert!(lab.read(&out).iter().all(|v| v.is_nan()));
    lab.ok(ops::aclnnLogSumExp, &[A::T(x), dim(), A::B(false), A::T(out)]);
    assert_eq!(lab.read(&out), [f64::NEG_INFINITY; 2]);
    let truth = lab.room(Bool, &[2]);
    lab.ok(ops::aclnnAll, &[A::T(x), dim(), A::B(false), A::T(truth)]);
    assert_eq!(lab.read(&truth), [1.0, 1.0]);
    lab.ok(ops::aclnnAny, &[A::T(x), dim(), A::B(false), A::T(truth)]);
    assert_eq!(lab.read(&truth), [0.0, 0.0]);
    lab.refused(ops::aclnnAmax, &[A::T(x), dim(), A::B(false), A::T(out)], "is empty");
    // Nothing to do is done.
    let (x, out) = (lab.room(F32, &[0, 2]), lab.room(F32, &[0]));
    lab.ok(ops::aclnnAmax, &[A::T(x), dim(), A::B(false), A::T(out)]);
}

#[test]
fn nan_spreads_or_is_left_out() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 3], &[1.0, f64::NAN, 2.0, 3.0, 5.0, 4.0]);
    let (out, dim) = (lab.room(F32, &[2]), || A::Ints(vec![1]));
    lab.ok(ops::aclnnReduceNansum, &[A::T(x), dim(), A::B(false), A::D(F32), A::T(out)]);
    assert_eq!(lab.read(&out), [3.0, 12.0]);
    for op in [ops::aclnnAmax, ops::aclnnAmin] {
        lab.ok(op, &[A::T(x), dim(), A::B(false), A::T(out)]);
        let got = lab.read(&out);
        assert!(got[0].is_nan() && got[1] == if op == ops::aclnnAmax { 5.0 } else { 3.0 });
    }
    let index = lab.room(I64, &[2]);
    lab.ok(ops::aclnnMinDim, &[A::T(x), A::I(-1), A::B(false), A::T(out), A::T(index)]);
    assert_eq!(lab.read(&index), [1.0, 0.0], "the first NaN is where the extreme is");
    let (low, high) = (lab.room(F32, &[]), lab.room(F32, &[]));
    let row = lab.tensor(F32, &[3], &[3.0, -5.0, 4.0]);
    lab.ok(ops::aclnnAminmaxAll, &[A::T(row), A::T(low), A::T(high)]);
    assert_eq!((lab.read(&low), lab.read(&high)), (vec![-5.0], vec![4.0]));
}

#[test]
fn integers_add_exactly_and_convert_first() {
    let mut lab = Lab::new();
    let big = (1i64 << 53) as f64;
    let x = lab.tensor(I64, &[3], &[big, 1.0, 0.0]);
    let out = lab.room(I64, &[]);
    lab.ok(ops::aclnnReduceSum, &[A::T(x), A::Null, A::B(false), A::D(I64), A::T(out)]);
    let mut bits = [0i64];
    let view = super::super::view::View::new(&out, super::super::testing::MEMORY_BYTES).unwrap();
    super::super::nest::load_all(&lab.machine, &view, &mut bits).unwrap();
    assert_eq!(bits, [(1 << 53) + 1], "not through floating point");
    let fractions = lab.tensor(F32, &[3], &[1.75, 2.75, -0.5]);
    lab.ok(ops::aclnnReduceSum, &[A::T(fractions), A::Null, A::B(false), A::D(I64), A::T(out)]);
    assert_eq!(lab.read(&out), [3.0], "elements are truncated before they are added");
    let flags = lab.tensor(Bool, &[4], &[1.0, 1.0, 0.0, 1.0]);
    lab.ok(ops::aclnnReduceSum, &[A::T(flags), A::Null, A::B(false), A::D(I64), A::T(out)]);
    assert_eq!(lab.read(&out), [3.0]);
    let small = lab.tensor(I8, &[3], &[100.0, 100.0, 3.0]);
    let narrow = lab.room(I8, &[]);
    lab.ok(ops::aclnnProd, &[A::T(small), A::D(I8), A::T(narrow)]);
    assert_eq!(lab.read(&narrow), [f64::from(30_000i32 as i8)], "wraps");
    let wrong = [A::T(small), A::Null, A::B(false), A::D(F32), A::T(out)];
    lab.refused(ops::aclnnReduceSum, &wrong, "but the output has type int64");
}

#[test]
fn long_sums_stay_exact_where_single_precision_would_not() {
    let mut lab = Lab::new();
    let count = 200_000usize;
    let x = lab.tensor(F32, &[count as i64], &vec![0.1; count]);
    let out = lab.room(F32, &[]);
    lab.ok(ops::aclnnReduceSum, &[A::T(x), A::Null, A::B(false), A::D(F32), A::T(out)]);
    close(&lab.read(&out), &[f64::from(0.1f32) * count as f64], 1e-7);
}

#[test]
fn scans_run_along_any_dimension_and_in_place() {
    let values = Noise::new(8).values(60);
    for lay in LAYS {
        for dim in 0..3usize {
            let stride = [20, 5, 1][dim];
            let along = |i: usize| (0..=i / stride % DIMS[dim] as usize).rev().map(move |k| i - k * stride);
            let mut lab = Lab::new();
            let x = lab.tensor_as(F32, &DIMS, &values, lay);
            let sums: Vec<f64> = (0..60).map(|i| along(i).map(|at| values[at]).sum()).collect();
            let products: Vec<f64> = (0..60).map(|i| along(i).map(|at| values[at]).product()).collect();
            let out = lab.room_as(F32, &DIMS, lay);
            lab.ok(ops::aclnnCumsum, &[A::T(x), A::I(dim as i64 - 3), A::D(F32), A::T(out)]);
            close(&lab.read(&out), &sums, 1e-6);
            lab.ok(ops::aclnnCumprod, &[A::T(x), whole(dim as i64), A::D(F32), A::T(out)]);
            close(&lab.read(&out), &products, 1e-5);
            let index = lab.room(I64, &DIMS);
            lab.ok(ops::aclnnCummax, &[A::T(x), A::I(dim as i64), A::T(out), A::T(index)]);
            // The last of equal elements.
            let places: Vec<usize> =
                (0..60).map(|i| along(i).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()).collect();
            assert_eq!(lab.read(&out), places.iter().map(|&at| values[at]).collect::<Vec<_>>());
            let coordinates: Vec<f64> = places.iter().map(|at| (at / stride % DIMS[dim] as usize) as f64).collect();
            assert_eq!(lab.read(&index), coordinates);
            lab.ok(ops::aclnnCumsum, &[A::T(x), A::I(dim as i64), A::D(F32), A::T(x)]);
            close(&lab.read(&x), &sums, 1e-6);
        }
    }
}

#[test]
fn running_extremes_keep_nan_and_long_lines_go_on_between_pieces() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[4], &[2.0, f64::NAN, 1.0, f64::NAN]);
    let (out, index) = (lab.room(F32, &[4]), lab.room(I64, &[4]));
    lab.ok(ops::aclnnCummin, &[A::T(x), A::I(0), A::T(out), A::T(index)]);
    assert_eq!(lab.read(&index), [0.0, 1.0, 1.0, 3.0]);
    assert!(lab.read(&out)[1..].iter().all(|v| v.is_nan()));
    let ones = lab.tensor(I32, &[3000], &[1.0; 3000]);
    let counted = lab.room(I64, &[3000]);
    lab.ok(ops::aclnnCumsum, &[A::T(ones), A::I(0), A::D(I64), A::T(counted)]);
    assert_eq!(lab.read(&counted), (1..=3000).map(f64::from).collect::<Vec<_>>());
}

#[test]
fn norms_of_every_order() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[4], &[3.0, 0.0, -4.0, 1.0]);
    let out = lab.room(F32, &[]);
    for (p, want) in [
        (0.0, 3.0),
        (1.0, 8.0),
        (2.0, 26f64.sqrt()),
        (f64::INFINITY, 4.0),
        (f64::NEG_INFINITY, 0.0),
        (-1.0, 0.0),
        (0.5, (3f64.sqrt() + 3.0).powi(2)),
    ] {
        let order = super::super::testing::real(p);
        lab.ok(ops::aclnnLinalgVectorNorm, &[A::T(x), order, A::Null, A::B(false), A::D(F32), A::T(out)]);
        close(&lab.read(&out), &[want], 1e-6);
    }
    lab.ok(ops::aclnnNorm, &[A::T(x), A::Null, A::Null, A::B(false), A::T(out)]);
    close(&lab.read(&out), &[26f64.sqrt()], 1e-6);
    let (var, mean) = (lab.room(F32, &[]), lab.room(F32, &[]));
    lab.ok(ops::aclnnVarMean, &[A::T(x), A::Null, A::I(0), A::B(false), A::T(var), A::T(mean)]);
    assert_eq!((lab.read(&var), lab.read(&mean)), (vec![6.5], vec![0.0]));
    // More corrected than there are: division by zero, not by a negative number.
    lab.ok(ops::aclnnVarCorrection, &[A::T(x), A::Null, A::I(9), A::B(false), A::T(var)]);
    assert_eq!(lab.read(&var), [f64::INFINITY]);
}
