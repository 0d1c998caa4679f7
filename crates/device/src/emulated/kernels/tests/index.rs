//! ArgMax, Cat, IndexSelect, Embedding.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Noise};

use DataType::{BF16, F16, F32, F64, I32, I64};

#[test]
fn the_first_largest_element_wins() {
    let mut lab = Lab::new();
    let nan = f64::NAN;
    for (dtype, values, want) in [
        (F32, vec![1.0, 3.0, 3.0, 2.0], 1.0),
        (BF16, vec![-3.0, -1.0, -1.0], 1.0),
        (F16, vec![5.0], 0.0),
        (F32, vec![1.0, nan, 9.0, nan], 1.0),
        (F32, vec![f64::NEG_INFINITY; 3], 0.0),
        (F64, vec![1.0, nan, 9.0], 1.0),
        (F64, vec![1.0, 1.0 + 1e-12], 1.0),
        (I64, vec![4.0, 9.0, 9.0], 1.0),
        (I32, vec![-4.0, -9.0], 0.0),
    ] {
        let (x, out) = (lab.tensor(dtype, &[values.len() as i64], &values), lab.room(I64, &[]));
        lab.ok(ops::aclnnArgMax, &[A::T(x), A::I(-1), A::B(false), A::T(out)]);
        assert_eq!(lab.read(&out), [want], "{dtype:?} {values:?}");
    }
    // Beyond one piece on the stack.
    let mut long = vec![0.0; 5000];
    long[4321] = 2.0;
    long[4400] = 2.0;
    let (x, out) = (lab.tensor(F32, &[5000], &long), lab.room(I32, &[1]));
    lab.ok(ops::aclnnArgMax, &[A::T(x), A::I(0), A::B(true), A::T(out)]);
    assert_eq!(lab.read(&out), [4321.0]);
}

#[test]
fn any_dimension_can_be_searched() {
    let mut noise = Noise::new(9);
    let values = noise.values(2 * 3 * 4);
    let dims = [2usize, 3, 4];
    for lay in LAYS {
        for dim in 0..3usize {
            for keep in [false, true] {
                let mut lab = Lab::new();
                let x = lab.tensor_as(F32, &[2, 3, 4], &values, lay);
                let mut shape: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
                if keep {
                    shape[dim] = 1;
                } else {
                    shape.remove(dim);
                }
                let out = lab.room(I64, &shape);
                lab.ok(ops::aclnnArgMax, &[A::T(x), A::I(dim as i64), A::B(keep), A::T(out)]);
                let inner: usize = dims[dim + 1..].iter().product();
                let want: Vec<f64> = (0..24 / dims[dim])
                    .map(|i| {
                        let at = |k: usize| values[i / inner * inner * dims[dim] + k * inner + i % inner];
                        (0..dims[dim]).rev().max_by(|&a, &b| at(a).total_cmp(&at(b))).unwrap() as f64
                    })
                    .collect();
                assert_eq!(lab.read(&out), want, "{lay:?} {dim} {keep}");
            }
        }
    }
}

#[test]
fn tensors_are_joined_along_any_dimension() {
    let mut lab = Lab::new();
    let values: Vec<f64> = (0..12).map(f64::from).collect();
    for lay in LAYS {
        let (a, b) = (lab.tensor_as(F32, &[2, 3], &values[..6], lay), lab.tensor(F32, &[2, 1], &values[6..8]));
        let nothing = lab.room(F32, &[0]);
        let out = lab.room_as(F32, &[2, 4], lay);
        lab.ok(ops::aclnnCat, &[A::List(vec![a, nothing, b]), A::I(-1), A::T(out)]);
        assert_eq!(lab.read(&out), [0.0, 1.0, 2.0, 6.0, 3.0, 4.0, 5.0, 7.0]);
        let (c, out) = (lab.tensor(F32, &[1, 3], &values[9..]), lab.room(F32, &[3, 3]));
        lab.ok(ops::aclnnCat, &[A::List(vec![c, a]), A::I(0), A::T(out)]);
        assert_eq!(lab.read(&out), [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        lab.refused(ops::aclnnCat, &[A::List(vec![a, b]), A::I(0), A::T(out)], "shape [2, 1] of number 1 does not fit");
        lab.refused(
            ops::aclnnCat,
            &[A::List(vec![a]), A::I(0), A::T(out)],
            "size 3 of dimension 0, the tensors have 2",
        );
    }
}

#[test]
fn rows_are_gathered_by_index() {
    let mut lab = Lab::new();
    let values: Vec<f64> = (0..12).map(f64::from).collect();
    for dtype in [F32, BF16, I64] {
        for index_type in [I32, I64] {
            for lay in LAYS {
                let table = lab.tensor_as(dtype, &[4, 3], &values, lay);
                let index = lab.tensor_as(index_type, &[2, 2], &[3.0, 0.0, 3.0, 1.0], lay);
                let out = lab.room_as(dtype, &[2, 2, 3], lay);
                lab.ok(ops::aclnnEmbedding, &[A::T(table), A::T(index), A::T(out)]);
                assert_eq!(lab.read(&out), [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 3.0, 4.0, 5.0]);
                let pick = lab.tensor(index_type, &[2], &[2.0, 0.0]);
                let out = lab.room_as(dtype, &[4, 2], lay);
                lab.ok(ops::aclnnIndexSelect, &[A::T(table), A::I(1), A::T(pick), A::T(out)]);
                assert_eq!(lab.read(&out), [2.0, 0.0, 5.0, 3.0, 8.0, 6.0, 11.0, 9.0]);
            }
        }
    }
}

/// Indices come out of device memory, so nothing but the kernel can check them; a bad one must change nothing.
#[test]
fn indices_outside_the_table_are_refused_before_anything_is_written() {
    let mut lab = Lab::new();
    let table = lab.tensor(F32, &[4, 3], &[1.0; 12]);
    for bad in [4.0, -1.0, 9e18, -9e18] {
        let index = lab.tensor(I64, &[2], &[0.0, bad]);
        let out = lab.tensor(F32, &[2, 3], &[7.0; 6]);
        lab.refused(ops::aclnnEmbedding, &[A::T(table), A::T(index), A::T(out)], "at position 1 is not in 0..4");
        lab.refused(
            ops::aclnnIndexSelect,
            &[A::T(table), A::I(0), A::T(index), A::T(out)],
            "at position 1 is not in 0..4",
        );
        assert_eq!(lab.read(&out), [7.0; 6]);
    }
    let float = lab.tensor(F32, &[1], &[0.0]);
    let out = lab.room(F32, &[1, 3]);
    lab.refused(ops::aclnnEmbedding, &[A::T(table), A::T(float), A::T(out)], "indices: type float32");
    let nothing = lab.tensor(F32, &[0, 3], &[]);
    let index = lab.tensor(I64, &[1], &[0.0]);
    lab.refused(ops::aclnnEmbedding, &[A::T(nothing), A::T(index), A::T(out)], "is not in 0..0");
}
