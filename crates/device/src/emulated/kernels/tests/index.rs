//! Operators that read and write by index.

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, real, whole};

use DataType::{BF16, Bool, F16, F32, F64, I8, I32, I64};

fn count(n: usize) -> Vec<f64> {
    (0..n as u32).map(f64::from).collect()
}

/// `index` of a 0-d or larger table, naively: the operator's definition written out for three dimensions.
fn along(dim: usize, position: [usize; 3], index: usize) -> usize {
    let mut at = position;
    at[dim] = index;
    at[0] * 20 + at[1] * 5 + at[2]
}

#[test]
fn rows_are_selected_by_index() {
    for dtype in [F32, BF16, I64] {
        for index_type in [I32, I64] {
            for lay in LAYS {
                let mut lab = Lab::new();
                let table = lab.tensor_as(dtype, &[4, 3], &count(12), lay);
                let index = lab.tensor_as(index_type, &[2, 2], &[3.0, 0.0, 3.0, 1.0], lay);
                let out = lab.room_as(dtype, &[2, 2, 3], lay);
                lab.ok(ops::aclnnEmbedding, &[A::T(table), A::T(index), A::T(out)]);
                assert_eq!(lab.read(&out), [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 3.0, 4.0, 5.0]);
                let pick = lab.tensor(index_type, &[2], &[2.0, 0.0]);
                let out = lab.room_as(dtype, &[4, 2], lay);
                lab.ok(ops::aclnnIndexSelect, &[A::T(table), A::I(1), A::T(pick), A::T(out)]);
                assert_eq!(lab.read(&out), [2.0, 0.0, 5.0, 3.0, 8.0, 6.0, 11.0, 9.0]);
                // One batch a row: the index has the batch dimension too.
                let (pick, out) = (lab.tensor(index_type, &[4, 1], &[2.0, 0.0, 1.0, 2.0]), lab.room(dtype, &[4, 1]));
                let args = [A::T(table), A::I(1), A::T(pick), A::I(1), A::I(0), A::T(out)];
                lab.ok(ops::aclnnGatherV3, &args);
                assert_eq!(lab.read(&out), [2.0, 3.0, 7.0, 11.0]);
            }
        }
    }
}

/// Indices come out of device memory, so nothing but the kernel can check them; a bad one must change nothing.
#[test]
fn indices_outside_the_table_are_refused_before_anything_is_written() {
    let mut lab = Lab::new();
    let table = lab.tensor(F32, &[4, 3], &[1.0; 12]);
    for bad in [4.0, -1.0, -5.0, 9e18, -9e18] {
        let index = lab.tensor(I64, &[2], &[0.0, bad]);
        let square = lab.tensor(I64, &[2, 1], &[0.0, bad]);
        let out = lab.tensor(F32, &[2, 3], &[7.0; 6]);
        let rows = lab.tensor(F32, &[2, 3], &[5.0; 6]);
        let mine = lab.tensor(F32, &[4, 3], &[7.0; 12]);
        let part = "at position 1 is";
        lab.refused(ops::aclnnEmbedding, &[A::T(table), A::T(index), A::T(out)], part);
        lab.refused(ops::aclnnIndexSelect, &[A::T(table), A::I(0), A::T(index), A::T(out)], part);
        lab.refused(ops::aclnnInplaceIndexCopy, &[A::T(mine), A::I(0), A::T(index), A::T(rows)], part);
        let grad = lab.tensor(F32, &[4, 3], &[7.0; 12]);
        let args = [A::T(rows), A::T(index), A::I(4), A::I(-1), A::B(false), A::T(grad)];
        lab.refused(ops::aclnnEmbeddingDenseBackward, &args, part);
        assert_eq!(lab.read(&grad), [7.0; 12]);
        if bad != -1.0 {
            // These count negative indices from the end.
            lab.refused(ops::aclnnIndex, &[A::T(table), A::List(vec![index]), A::T(out)], part);
            let put = [A::T(mine), A::List(vec![index]), A::T(rows), A::B(false), A::B(false)];
            lab.refused(ops::aclnnIndexPutImpl, &put, part);
            lab.refused(ops::aclnnInplaceScatter, &[A::T(mine), A::I(0), A::T(square), A::T(rows), A::I(0)], part);
            lab.refused(ops::aclnnInplaceScatterValue, &[A::T(mine), A::I(0), A::T(square), real(1.0), A::I(1)], part);
            lab.refused(ops::aclnnInplaceIndexFill, &[A::T(mine), A::I(0), A::T(index), real(1.0)], part);
            let narrow = lab.room(F32, &[2, 1]);
            lab.refused(ops::aclnnGather, &[A::T(table), A::I(0), A::T(square), A::T(narrow)], part);
        }
        assert_eq!((lab.read(&out), lab.read(&mine)), (vec![7.0; 6], vec![7.0; 12]));
    }
    let float = lab.tensor(F32, &[1], &[0.0]);
    let out = lab.room(F32, &[1, 3]);
    lab.refused(ops::aclnnEmbedding, &[A::T(table), A::T(float), A::T(out)], "indices: type float32");
    let nothing = lab.tensor(F32, &[0, 3], &[]);
    let index = lab.tensor(I64, &[1], &[0.0]);
    lab.refused(ops::aclnnEmbedding, &[A::T(nothing), A::T(index), A::T(out)], "is not in 0..0");
}

#[test]
fn gather_and_scatter_are_each_others_inverse_along_any_dimension() {
    let mut noise = Noise::new(17);
    for lay in LAYS {
        for dim in 0..3usize {
            let mut lab = Lab::new();
            let table = lab.tensor_as(F32, &[3, 4, 5], &count(60), lay);
            // Smaller than the table in every dimension.
            let size = [2usize, 3, 4];
            let limit = [3, 4, 5][dim] as u64;
            let picks: Vec<i64> =
                (0..24).map(|_| noise.below(limit) as i64 - (noise.below(2) * limit) as i64).collect();
            let index = lab.tensor_as(I64, &[2, 3, 4], &picks.iter().map(|&i| i as f64).collect::<Vec<_>>(), lay);
            let at = |i: usize| {
                let position = [i / 12, i / 4 % size[1], i % size[2]];
                along(dim, position, picks[i].rem_euclid(limit as i64) as usize)
            };
            let out = lab.room_as(F32, &[2, 3, 4], lay);
            lab.ok(ops::aclnnGather, &[A::T(table), A::I(dim as i64 - 3), A::T(index), A::T(out)]);
            assert_eq!(lab.read(&out), (0..24).map(|i| at(i) as f64).collect::<Vec<_>>());
            // The source may be larger than the index.
            let values = Noise::new(4).values(60);
            let source = lab.tensor_as(F32, &[3, 4, 5], &values, lay);
            let source_at = |i: usize| values[i / 12 * 20 + i / 4 % 3 * 5 + i % 4];
            let result = lab.room_as(F32, &[3, 4, 5], lay);
            for (reduce, combine) in
                [(0i64, (|_, new| new) as fn(f64, f64) -> f64), (1, |a, b| a + b), (2, |a, b| a * b)]
            {
                let mut want = count(60);
                (0..24).for_each(|i| want[at(i)] = combine(want[at(i)], source_at(i)));
                let args = [A::T(table), A::I(dim as i64), A::T(index), A::T(source), A::I(reduce), A::T(result)];
                lab.ok(ops::aclnnScatter, &args);
                close(&lab.read(&result), &want, 1e-6);
                let args = [A::T(table), A::I(dim as i64), A::T(index), real(0.5), A::I(reduce), A::T(result)];
                lab.ok(ops::aclnnScatterValue, &args);
                let mut want = count(60);
                (0..24).for_each(|i| want[at(i)] = combine(want[at(i)], 0.5));
                close(&lab.read(&result), &want, 1e-6);
            }
            let mut want = count(60);
            (0..24).for_each(|i| want[at(i)] += source_at(i));
            lab.ok(ops::aclnnScatterAdd, &[A::T(table), A::I(dim as i64), A::T(index), A::T(source), A::T(table)]);
            close(&lab.read(&table), &want, 1e-6);
        }
    }
}

#[test]
fn scatters_reduce_with_and_without_what_was_there() {
    let mut lab = Lab::new();
    let index = lab.tensor(I64, &[4], &[0.0, 0.0, 2.0, 0.0]);
    let source = lab.tensor(F32, &[4], &[2.0, 4.0, f64::NAN, 3.0]);
    for (reduce, include, want) in [
        (1, true, [19.0, 10.0]),
        (1, false, [9.0, 10.0]),
        (2, true, [240.0, 10.0]),
        (3, true, [10.0, 10.0]),
        (3, false, [4.0, 10.0]),
        (4, true, [2.0, 10.0]),
        (5, true, [4.75, 10.0]),
        (5, false, [3.0, 10.0]),
    ] {
        let out = lab.tensor(F32, &[3], &[10.0, 10.0, 10.0]);
        let args = [A::T(out), A::I(0), A::T(index), A::T(source), A::I(reduce), A::B(include)];
        lab.ok(ops::aclnnInplaceScatterReduce, &args);
        let got = lab.read(&out);
        assert_eq!(got[..2], want, "{reduce} {include}");
        assert!(got[2].is_nan());
    }
    let out = lab.room(F32, &[3]);
    let args = [A::T(out), A::I(0), A::T(index), A::T(source), A::I(6)];
    lab.refused(ops::aclnnInplaceScatter, &args, "reduce: 6 is not one of 0 to 5");
}

#[test]
fn several_index_tensors_stand_where_torch_puts_them() {
    let values = count(60);
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(F32, &[3, 4, 5], &values, lay);
        let null = lab.room(F32, &[0]);
        let rows = lab.tensor(I64, &[2, 1], &[-1.0, 0.0]);
        let columns = lab.tensor(I32, &[3], &[1.0, 4.0, 0.0]);
        // Neighbours: x[:, rows, columns] is [3, 2, 3].
        let out = lab.room_as(F32, &[3, 2, 3], lay);
        lab.ok(ops::aclnnIndex, &[A::T(x), A::List(vec![null, rows, columns]), A::T(out)]);
        let want: Vec<f64> = (0..18).map(|i| values[i / 6 * 20 + [15, 0][i / 3 % 2] + [1, 4, 0][i % 3]]).collect();
        assert_eq!(lab.read(&out), want);
        // Apart: x[rows, :, columns] is [2, 3, 4].
        let out = lab.room_as(F32, &[2, 3, 4], lay);
        lab.ok(ops::aclnnIndex, &[A::T(x), A::List(vec![rows, null, columns]), A::T(out)]);
        let want: Vec<f64> = (0..24).map(|i| values[[40, 0][i / 12] + i % 4 * 5 + [1, 4, 0][i / 4 % 3]]).collect();
        assert_eq!(lab.read(&out), want);
        // The same places are written.
        let more = lab.tensor(F32, &[3, 1], &[100.0, 200.0, 300.0]);
        let args =
            |accumulate| [A::T(x), A::List(vec![rows, null, columns]), A::T(more), A::B(accumulate), A::B(false)];
        lab.ok(ops::aclnnIndexPutImpl, &args(true));
        lab.ok(ops::aclnnIndex, &[A::T(x), A::List(vec![rows, null, columns]), A::T(out)]);
        let added: Vec<f64> = (0..24).map(|i| want[i] + 100.0 * (i / 4 % 3 + 1) as f64).collect();
        assert_eq!(lab.read(&out), added);
        lab.ok(ops::aclnnIndexPutImpl, &args(false));
        lab.ok(ops::aclnnIndex, &[A::T(x), A::List(vec![rows, null, columns]), A::T(out)]);
        assert!(lab.read(&out).iter().enumerate().all(|(i, v)| *v == 100.0 * (i / 4 % 3 + 1) as f64));
        assert_eq!(lab.read(&x)[20], 20.0, "what is not indexed stays");
    }
}

#[test]
fn repeated_places_add_up_and_masks_stand_for_their_true_elements() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let twice = lab.tensor(I64, &[3], &[1.0, 1.0, 1.0]);
    let one = lab.tensor(F32, &[], &[10.0]);
    lab.ok(ops::aclnnIndexPutImpl, &[A::T(x), A::List(vec![twice]), A::T(one), A::B(true), A::B(false)]);
    assert_eq!(lab.read(&x), [1.0, 2.0, 33.0, 34.0]);
    let mask = lab.tensor(Bool, &[2, 2], &[0.0, 1.0, 1.0, 0.0]);
    let out = lab.room(F32, &[2]);
    lab.ok(ops::aclnnIndex, &[A::T(x), A::List(vec![mask]), A::T(out)]);
    assert_eq!(lab.read(&out), [2.0, 33.0]);
    lab.ok(ops::aclnnIndexPutImpl, &[A::T(x), A::List(vec![mask]), A::T(one), A::B(false), A::B(false)]);
    assert_eq!(lab.read(&x), [1.0, 10.0, 10.0, 34.0]);
    // Nothing indexed, nothing done.
    let none = lab.room(I64, &[0]);
    lab.ok(ops::aclnnIndexPutImpl, &[A::T(x), A::List(vec![none]), A::T(one), A::B(false), A::B(false)]);
    assert_eq!(lab.read(&x), [1.0, 10.0, 10.0, 34.0]);
    let half = lab.tensor(F16, &[], &[1.0]);
    let args = [A::T(x), A::List(vec![twice]), A::T(half), A::B(false), A::B(false)];
    lab.refused(ops::aclnnIndexPutImpl, &args, "values: type float16, want float32");
}

#[test]
fn slices_are_added_copied_and_filled() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(F32, &[2, 3], &count(6), lay);
        let index = lab.tensor(I64, &[2], &[2.0, 2.0]);
        let source = lab.tensor_as(F32, &[2, 2], &[10.0, 20.0, 30.0, 40.0], lay);
        let out = lab.room_as(F32, &[2, 3], lay);
        let args = [A::T(x), A::I(-1), A::T(index), A::T(source), real(2.0), A::T(out)];
        lab.ok(ops::aclnnIndexAdd, &args);
        assert_eq!(lab.read(&out), [0.0, 1.0, 62.0, 3.0, 4.0, 145.0]);
        lab.ok(ops::aclnnIndexCopy, &[A::T(x), A::I(1), A::T(index), A::T(source), A::T(out)]);
        assert_eq!(lab.read(&out), [0.0, 1.0, 20.0, 3.0, 4.0, 40.0], "the last one stays");
        assert_eq!(lab.read(&x), count(6));
        lab.ok(ops::aclnnInplaceIndexCopy, &[A::T(x), A::I(1), A::T(index), A::T(source)]);
        assert_eq!(lab.read(&x), [0.0, 1.0, 20.0, 3.0, 4.0, 40.0]);
        let back = lab.tensor(I64, &[], &[-2.0]);
        lab.ok(ops::aclnnIndexFill, &[A::T(x), A::I(1), A::T(back), whole(7), A::T(out)]);
        assert_eq!(lab.read(&out), [0.0, 7.0, 20.0, 3.0, 7.0, 40.0]);
        lab.ok(ops::aclnnInplaceIndexFillTensor, &[A::T(x), A::I(0), A::Ints(vec![-1]), real(0.5)]);
        assert_eq!(lab.read(&x), [0.0, 1.0, 20.0, 0.5, 0.5, 0.5]);
        lab.refused(ops::aclnnInplaceIndexFillTensor, &[A::T(x), A::I(0), A::Ints(vec![2]), real(0.5)], "index: 2");
    }
}

#[test]
fn gradients_of_an_embedding_gather_by_row() {
    for dtype in [F32, BF16] {
        let mut lab = Lab::new();
        let grad = lab.tensor(dtype, &[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let index = lab.tensor(I64, &[2, 2], &[3.0, 1.0, 3.0, 0.0]);
        let out = lab.room(dtype, &[4, 2]);
        let args = |padding, mean| [A::T(grad), A::T(index), A::I(4), A::I(padding), A::B(mean), A::T(out)];
        lab.ok(ops::aclnnEmbeddingDenseBackward, &args(-1, false));
        assert_eq!(lab.read(&out), [7.0, 8.0, 3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
        lab.ok(ops::aclnnEmbeddingDenseBackward, &args(1, true));
        assert_eq!(lab.read(&out), [7.0, 8.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]);
    }
}

#[test]
fn elements_are_taken_and_put_by_number() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(I8, &[2, 3], &count(6), lay);
        let index = lab.tensor(I64, &[3], &[5.0, -6.0, 2.0]);
        let out = lab.room(I8, &[3]);
        lab.ok(ops::aclnnTake, &[A::T(x), A::T(index), A::T(out)]);
        assert_eq!(lab.read(&out), [5.0, 0.0, 2.0]);
        let source = lab.tensor(I8, &[3], &[10.0, 20.0, 30.0]);
        lab.ok(ops::aclnnInplacePut, &[A::T(x), A::T(index), A::T(source), A::B(true)]);
        assert_eq!(lab.read(&x), [20.0, 1.0, 32.0, 3.0, 4.0, 15.0]);
        lab.ok(ops::aclnnInplacePut, &[A::T(x), A::T(index), A::T(source), A::B(false)]);
        assert_eq!(lab.read(&x), [20.0, 1.0, 30.0, 3.0, 4.0, 10.0]);
    }
}

#[test]
fn masks_select_and_report_how_much_they_found() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(F64, &[2, 3], &[0.0, 5.0, 0.0, f64::NAN, -1.0, -0.0], lay);
        let out = lab.room(I64, &[6, 2]);
        lab.ok(ops::aclnnNonzero, &[A::T(x), A::T(out)]);
        assert_eq!(lab.machine.extent, Some(3));
        assert_eq!(lab.read(&out)[..6], [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]);
        let out = lab.room(I64, &[2, 6]);
        lab.ok(ops::aclnnNonzeroV2, &[A::T(x), A::T(out)]);
        assert_eq!((lab.machine.extent, &lab.read(&out)[..6]), (Some(3), &[0.0, 1.0, 1.0, 1.0, 0.0, 1.0][..]));
        // The mask broadcasts, or self does.
        let mask = lab.tensor(Bool, &[3], &[1.0, 0.0, 1.0]);
        let out = lab.room(F64, &[6]);
        lab.ok(ops::aclnnMaskedSelect, &[A::T(x), A::T(mask), A::T(out)]);
        assert_eq!(lab.machine.extent, Some(4));
        let got = lab.read(&out);
        assert!(got[0] == 0.0 && got[1] == 0.0 && got[2].is_nan() && got[3] == 0.0);
        let source = lab.tensor(F64, &[5], &[1.0, 2.0, 3.0, 4.0, 5.0]);
        lab.ok(ops::aclnnInplaceMaskedScatter, &[A::T(x), A::T(mask), A::T(source)]);
        let got = lab.read(&x);
        assert_eq!([got[0], got[1], got[2], got[3], got[4], got[5]], [1.0, 5.0, 2.0, 3.0, -1.0, 4.0]);
        let short = lab.tensor(F64, &[3], &[0.0; 3]);
        lab.refused(ops::aclnnInplaceMaskedScatter, &[A::T(x), A::T(mask), A::T(short)], "3 elements, 4 places");
        lab.ok(ops::aclnnAbs, &[A::T(x), A::T(x)]);
        assert_eq!(lab.machine.extent, None, "an operator of fixed size reports nothing");
    }
    // A 0-d tensor has a position without coordinates.
    let mut lab = Lab::new();
    let (one, out) = (lab.tensor(F32, &[], &[2.0]), lab.room(I64, &[1, 0]));
    lab.ok(ops::aclnnNonzero, &[A::T(one), A::T(out)]);
    assert_eq!(lab.machine.extent, Some(1));
    // Nothing is found in nothing, whatever strides an output without elements has: PyTorch gives it those of ones.
    let strides = [1, 1, 0, 0, 0, 0, 0, 0];
    let empty = lab.tensor(F32, &[0, 3], &[]);
    let out = TensorDesc { strides, ..lab.room(I64, &[2, 0]) };
    lab.ok(ops::aclnnNonzeroV2, &[A::T(empty), A::T(out)]);
    assert_eq!(lab.machine.extent, Some(0));
    let (no, out) = (lab.tensor(F32, &[], &[0.0]), TensorDesc { strides, ..lab.room(I64, &[0, 0]) });
    lab.ok(ops::aclnnNonzero, &[A::T(no), A::T(out)]);
    assert_eq!(lab.machine.extent, Some(0));
}

#[test]
fn scalars_are_tables_of_one() {
    let mut lab = Lab::new();
    let (x, index, out) = (lab.tensor(F32, &[], &[3.0]), lab.tensor(I64, &[], &[0.0]), lab.room(F32, &[]));
    lab.ok(ops::aclnnGather, &[A::T(x), A::I(-1), A::T(index), A::T(out)]);
    assert_eq!(lab.read(&out), [3.0]);
    lab.ok(ops::aclnnIndexSelect, &[A::T(x), A::I(0), A::T(index), A::T(out)]);
    lab.ok(ops::aclnnInplaceScatterValue, &[A::T(x), A::I(0), A::T(index), real(4.0), A::I(1)]);
    assert_eq!(lab.read(&x), [7.0]);
    let table = lab.tensor(F32, &[3], &[1.0, 2.0, 3.0]);
    let expanded = TensorDesc { dims: [2, 0, 0, 0, 0, 0, 0, 0], strides: [0; 8], ..lab.tensor(I64, &[1], &[2.0]) };
    let out = lab.room(F32, &[2]);
    lab.ok(ops::aclnnGather, &[A::T(table), A::I(0), A::T(expanded), A::T(out)]);
    assert_eq!(lab.read(&out), [3.0, 3.0]);
}

#[test]
fn parts_are_updated_where_an_index_says() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 3], &count(6));
    let index = lab.tensor(I64, &[2, 2], &[1.0, 2.0, 0.0, 0.0]);
    let updates = lab.tensor(F32, &[2], &[10.0, 20.0]);
    lab.ok(ops::aclnnScatterNdUpdate, &[A::T(x), A::T(index), A::T(updates)]);
    assert_eq!(lab.read(&x), [20.0, 1.0, 2.0, 3.0, 4.0, 10.0]);
    let rows = lab.tensor(I64, &[1, 1], &[2.0]);
    let row = lab.tensor(F32, &[1, 3], &[0.0; 3]);
    lab.refused(ops::aclnnScatterNdUpdate, &[A::T(x), A::T(rows), A::T(row)], "value 2 at position 0 is not in 0..2");
    // Two sequences, each writes one token at its own place of [batch, tokens, width].
    let cache = lab.tensor(F32, &[2, 3, 2], &[0.0; 12]);
    let token = lab.tensor(F32, &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let at = lab.tensor(I64, &[2], &[2.0, 0.0]);
    lab.ok(ops::aclnnInplaceScatterUpdate, &[A::T(cache), A::T(at), A::T(token), A::I(-2)]);
    assert_eq!(lab.read(&cache), [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    let list: Vec<_> = (0..2).map(|_| lab.tensor(F32, &[3, 2], &[0.0; 6])).collect();
    let mask = lab.tensor(DataType::U8, &[2], &[0.0, 1.0]);
    let args = [A::List(list.clone()), A::T(at), A::T(token), A::T(mask), A::Str("update"), A::I(-2)];
    lab.ok(ops::aclnnScatterList, &args);
    assert_eq!((lab.read(&list[0]), &lab.read(&list[1])[..2]), (vec![0.0; 6], &[3.0, 4.0][..]));
    let far = lab.tensor(I64, &[2], &[3.0, 0.0]);
    lab.refused(ops::aclnnInplaceScatterUpdate, &[A::T(cache), A::T(far), A::T(token), A::I(1)], "is not in 0..3");
}

#[test]
fn classes_become_ones() {
    let mut lab = Lab::new();
    let index = lab.tensor(I64, &[2, 2], &[2.0, 0.0, 1.0, 2.0]);
    let (on, off) = (lab.tensor(I64, &[1], &[5.0]), lab.tensor(I64, &[1], &[-1.0]));
    let out = lab.room(I64, &[2, 2, 3]);
    lab.ok(ops::aclnnOneHot, &[A::T(index), A::I(3), A::T(on), A::T(off), A::I(-1), A::T(out)]);
    let want: Vec<f64> =
        [2, 0, 1, 2].iter().flat_map(|&c| (0..3).map(move |i| if i == c { 5.0 } else { -1.0 })).collect();
    assert_eq!(lab.read(&out), want);
    let small = lab.room(I64, &[2, 2, 2]);
    let args = [A::T(index), A::I(2), A::T(on), A::T(off), A::I(-1), A::T(small)];
    lab.refused(ops::aclnnOneHot, &args, "self: value 2 at position 0");
}
