//! Operators that lay elements out anew, and those about diagonals.

use acl_abi::{DataType, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, real, whole};

use DataType::{BF16, Bool, F32, F64, I32, I64};

fn count(n: usize) -> Vec<f64> {
    (0..n as u32).map(f64::from).collect()
}

#[test]
fn tensors_are_joined_along_any_dimension() {
    let mut lab = Lab::new();
    let values = count(12);
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
        let (d, out) = (lab.tensor(I32, &[2, 3], &values[6..]), lab.room_as(F32, &[2, 3, 2], lay));
        lab.ok(ops::aclnnStack, &[A::List(vec![a, d]), A::I(-1), A::T(out)]);
        assert_eq!(lab.read(&out), [0.0, 6.0, 1.0, 7.0, 2.0, 8.0, 3.0, 9.0, 4.0, 10.0, 5.0, 11.0]);
        lab.refused(ops::aclnnStack, &[A::List(vec![a, b]), A::I(-1), A::T(out)], "shape [2, 1] of number 1");
    }
}

#[test]
fn copies_stand_side_by_side() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(F32, &[2, 3], &count(6), lay);
        let out = lab.room_as(F32, &[2, 4, 3], lay);
        lab.ok(ops::aclnnRepeat, &[A::T(x), A::Ints(vec![2, 2, 1]), A::T(out)]);
        let want: Vec<f64> = (0..24).map(|i| f64::from(i / 3 % 2 * 3 + i % 3)).collect();
        assert_eq!(lab.read(&out), want);
        let out = lab.room_as(F32, &[2, 9], lay);
        lab.ok(ops::aclnnRepeat, &[A::T(x), A::Ints(vec![1, 3]), A::T(out)]);
        assert_eq!(lab.read(&out), (0..18).map(|i| f64::from(i / 9 * 3 + i % 3)).collect::<Vec<_>>());
        lab.refused(ops::aclnnRepeat, &[A::T(x), A::Ints(vec![1, 2]), A::T(out)], "repeated [1, 2] times");
        let none = lab.room(F32, &[0, 3]);
        lab.ok(ops::aclnnRepeat, &[A::T(x), A::Ints(vec![0, 1]), A::T(none)]);
    }
    // More repeated dimensions than views can split.
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2; 6], &count(64));
    let out = lab.room(F32, &[4; 6]);
    lab.ok(ops::aclnnRepeat, &[A::T(x), A::Ints(vec![2; 6]), A::T(out)]);
    let at = |i: usize| (0..6).fold(0, |at, d| at * 2 + (i >> (2 * (5 - d))) % 2);
    assert_eq!(lab.read(&out), (0..4096).map(|i| at(i) as f64).collect::<Vec<_>>());
}

#[test]
fn slices_are_repeated_in_a_row_and_their_gradients_add_up() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0], lay);
        let times = lab.tensor(I64, &[2], &[2.0, 0.0]);
        let out = lab.room(F32, &[8]);
        lab.ok(ops::aclnnRepeatInterleaveInt, &[A::T(x), A::I(2), A::I(8), A::T(out)]);
        assert_eq!(lab.read(&out), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
        let out = lab.room_as(F32, &[2, 2], lay);
        lab.ok(ops::aclnnRepeatInterleaveWithDim, &[A::T(x), A::T(times), A::I(-1), A::I(2), A::T(out)]);
        assert_eq!(lab.read(&out), [1.0, 1.0, 3.0, 3.0]);
        let out = lab.room_as(F32, &[4, 2], lay);
        lab.ok(ops::aclnnRepeatInterleaveIntWithDim, &[A::T(x), A::I(2), A::I(0), A::I(4), A::T(out)]);
        assert_eq!(lab.read(&out), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        let grad = lab.tensor_as(F32, &[2, 3], &count(6), lay);
        let counts = lab.tensor(I64, &[3], &[1.0, 0.0, 2.0]);
        let out = lab.room_as(F32, &[2, 3], lay);
        lab.ok(ops::aclnnRepeatInterleaveGrad, &[A::T(grad), A::T(counts), A::I(1), A::T(out)]);
        assert_eq!(lab.read(&out), [0.0, 0.0, 3.0, 3.0, 0.0, 9.0]);
        let places = lab.room(I64, &[3]);
        lab.ok(ops::aclnnRepeatInterleaveTensor, &[A::T(counts), A::I(3), A::T(places)]);
        assert_eq!(lab.read(&places), [0.0, 2.0, 2.0]);
        let bad = lab.tensor(I64, &[3], &[1.0, -1.0, 3.0]);
        lab.refused(ops::aclnnRepeatInterleaveTensor, &[A::T(bad), A::I(3), A::T(places)], "a count is negative");
    }
}

#[test]
fn padding_adds_a_frame_and_cuts_where_it_is_negative() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(BF16, &[2, 3], &count(6), lay);
        let out = lab.room_as(BF16, &[3, 4], lay);
        lab.ok(ops::aclnnConstantPadNd, &[A::T(x), A::Ints(vec![1, 0, 0, 1]), real(-1.0), A::T(out)]);
        assert_eq!(lab.read(&out), [-1.0, 0.0, 1.0, 2.0, -1.0, 3.0, 4.0, 5.0, -1.0, -1.0, -1.0, -1.0]);
        let out = lab.room_as(BF16, &[2, 3], lay);
        lab.ok(ops::aclnnConstantPadNd, &[A::T(x), A::Ints(vec![-1, 1]), whole(9), A::T(out)]);
        assert_eq!(lab.read(&out), [1.0, 2.0, 9.0, 4.0, 5.0, 9.0]);
        lab.refused(ops::aclnnConstantPadNd, &[A::T(x), A::Ints(vec![1, 1]), whole(9), A::T(out)], "want 5");
        let huge = [A::T(x), A::Ints(vec![i64::MIN, i64::MAX]), whole(9), A::T(out)];
        assert!(lab.run(ops::aclnnConstantPadNd, &huge).is_err());
        // Everything cut on one side, only padding left.
        let out = lab.room_as(BF16, &[2, 1], lay);
        lab.ok(ops::aclnnConstantPadNd, &[A::T(x), A::Ints(vec![-5, 3]), whole(9), A::T(out)]);
        assert_eq!(lab.read(&out), [9.0, 9.0]);
    }
}

#[test]
fn elements_roll_round_the_end_and_turn_round() {
    for lay in LAYS {
        let mut lab = Lab::new();
        let x = lab.tensor_as(I64, &[2, 3], &count(6), lay);
        let out = lab.room_as(I64, &[2, 3], lay);
        lab.ok(ops::aclnnRoll, &[A::T(x), A::Ints(vec![1]), A::Ints(vec![-1]), A::T(out)]);
        assert_eq!(lab.read(&out), [2.0, 0.0, 1.0, 5.0, 3.0, 4.0]);
        lab.ok(ops::aclnnRoll, &[A::T(x), A::Ints(vec![-4, 3]), A::Ints(vec![1, 0]), A::T(out)]);
        assert_eq!(lab.read(&out), [4.0, 5.0, 3.0, 1.0, 2.0, 0.0]);
        lab.ok(ops::aclnnRoll, &[A::T(x), A::Ints(vec![-2]), A::Ints(vec![]), A::T(out)]);
        assert_eq!(lab.read(&out), [2.0, 3.0, 4.0, 5.0, 0.0, 1.0]);
        lab.ok(ops::aclnnFlip, &[A::T(x), A::Ints(vec![-1]), A::T(out)]);
        assert_eq!(lab.read(&out), [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]);
        lab.ok(ops::aclnnFlip, &[A::T(x), A::Ints(vec![0, 1]), A::T(out)]);
        assert_eq!(lab.read(&out), [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
    }
}

#[test]
fn parts_are_cut_out() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 5], &count(10));
    let outs = vec![lab.room(F32, &[2, 1]), lab.room(F32, &[2, 0]), lab.room(F32, &[2, 4])];
    lab.ok(ops::aclnnSplitWithSize, &[A::T(x), A::Ints(vec![1, 0, 4]), A::I(1), A::List(outs.clone())]);
    assert_eq!((lab.read(&outs[0]), lab.read(&outs[2])[..4].to_vec()), (vec![0.0, 5.0], vec![1.0, 2.0, 3.0, 4.0]));
    let short = [A::T(x), A::Ints(vec![1, 4]), A::I(1), A::List(vec![outs[0], outs[0]])];
    lab.refused(ops::aclnnSplitWithSize, &short, "of number 1 is not 4");
    let slice = |begin, end, step, masks: [i64; 5], out| {
        let mut args = vec![A::T(x), A::Ints(begin), A::Ints(end), A::Ints(step)];
        args.extend(masks.map(A::I));
        args.push(A::T(out));
        args
    };
    let out = lab.room(F32, &[2, 2]);
    lab.ok(ops::aclnnStridedSlice, &slice(vec![0, -4], vec![9, 5], vec![1, 3], [0; 5], out));
    assert_eq!(lab.read(&out), [1.0, 4.0, 6.0, 9.0]);
    lab.ok(ops::aclnnStridedSlice, &slice(vec![0, 3], vec![2, 0], vec![1, -2], [0; 5], out));
    assert_eq!(lab.read(&out), [3.0, 1.0, 8.0, 6.0]);
    let row = lab.room(F32, &[5]);
    lab.ok(ops::aclnnStridedSlice, &slice(vec![1, 0], vec![2, 0], vec![1, 1], [0, 2, 0, 0, 1], row));
    assert_eq!(lab.read(&row), [5.0, 6.0, 7.0, 8.0, 9.0]);
    lab.refused(ops::aclnnStridedSlice, &slice(vec![2], vec![3], vec![1], [0, 0, 0, 0, 1], row), "begin: 2");
    let chunks = lab.room(F32, &[2, 3]);
    let (a, b) = (lab.tensor(F32, &[3], &[1.0, 2.0, 3.0]), lab.tensor(F32, &[1], &[4.0]));
    lab.ok(ops::aclnnChunkCat, &[A::List(vec![a, b]), A::I(0), A::I(2), A::T(chunks)]);
    assert_eq!(lab.read(&chunks), [1.0, 2.0, 4.0, 3.0, 0.0, 0.0]);
}

#[test]
fn triangles_keep_one_side_of_a_diagonal() {
    for lay in LAYS {
        for diagonal in [-4i64, -1, 0, 1, 2, 9, i64::MIN, i64::MAX] {
            let mut lab = Lab::new();
            let values: Vec<f64> = (1..=24).map(f64::from).collect();
            let x = lab.tensor_as(F64, &[2, 3, 4], &values, lay);
            let out = lab.room_as(F64, &[2, 3, 4], lay);
            let above = |i: usize| i128::from((i % 4) as i64) - i128::from((i / 4 % 3) as i64) >= i128::from(diagonal);
            let below = |i: usize| i128::from((i % 4) as i64) - i128::from((i / 4 % 3) as i64) <= i128::from(diagonal);
            let keep = |keeps: &dyn Fn(usize) -> bool| -> Vec<f64> {
                (0..24).map(|i| if keeps(i) { values[i] } else { 0.0 }).collect()
            };
            lab.ok(ops::aclnnTriu, &[A::T(x), A::I(diagonal), A::T(out)]);
            assert_eq!(lab.read(&out), keep(&above), "{diagonal}");
            lab.ok(ops::aclnnTril, &[A::T(x), A::I(diagonal), A::T(out)]);
            assert_eq!(lab.read(&out), keep(&below), "{diagonal}");
            lab.ok(ops::aclnnInplaceTriu, &[A::T(x), A::I(diagonal)]);
            assert_eq!(lab.read(&x), keep(&above));
        }
    }
    let mut lab = Lab::new();
    let line = lab.room(F32, &[3]);
    lab.refused(ops::aclnnTriu, &[A::T(line), A::I(0), A::T(line)], "want at least two dimensions");
}

#[test]
fn diagonals_are_made_summed_and_filled() {
    let mut lab = Lab::new();
    let out = lab.room(Bool, &[2, 3]);
    lab.ok(ops::aclnnEye, &[A::I(2), A::I(3), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    for lay in LAYS {
        let x = lab.tensor_as(F32, &[3, 2], &count(6), lay);
        let sum = lab.room(F32, &[]);
        lab.ok(ops::aclnnTrace, &[A::T(x), A::T(sum)]);
        assert_eq!(lab.read(&sum), [3.0]);
        let tall = lab.tensor_as(I32, &[7, 2], &[0.0; 14], lay);
        lab.ok(ops::aclnnInplaceFillDiagonal, &[A::T(tall), whole(1), A::B(true)]);
        let got = lab.read(&tall);
        let set: Vec<usize> = (0..14).filter(|&i| got[i] == 1.0).collect();
        assert_eq!(set, [0, 3, 6, 9, 12], "a row is skipped each time the edge is reached");
        let cube = lab.tensor_as(F32, &[2, 2, 2], &[0.0; 8], lay);
        lab.ok(ops::aclnnInplaceFillDiagonal, &[A::T(cube), real(2.0), A::B(false)]);
        assert_eq!(lab.read(&cube), [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }
}

#[test]
fn numbers_are_evenly_spaced() {
    let mut lab = Lab::new();
    let out = lab.room(F32, &[5]);
    lab.ok(ops::aclnnLinspace, &[real(0.0), real(1.0), A::I(5), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, 0.25, 0.5, 0.75, 1.0]);
    let one = lab.room(F32, &[1]);
    lab.ok(ops::aclnnLinspace, &[real(3.0), real(9.0), A::I(1), A::T(one)]);
    assert_eq!(lab.read(&one), [3.0]);
    let powers = lab.room(F64, &[4]);
    lab.ok(ops::aclnnLogSpace, &[real(0.0), real(3.0), A::I(4), A::F(2.0), A::T(powers)]);
    close(&lab.read(&powers), &[1.0, 2.0, 4.0, 8.0], 1e-12);
    let steps = lab.room(I64, &[3]);
    lab.ok(ops::aclnnRange, &[whole(1), whole(5), whole(2), A::T(steps)]);
    assert_eq!(lab.read(&steps), [1.0, 3.0, 5.0]);
    lab.refused(ops::aclnnRange, &[whole(1), whole(4), whole(2), A::T(steps)], "want [2]");
    let value = lab.tensor(I32, &[1], &[4.0]);
    lab.ok(ops::aclnnInplaceFillTensor, &[A::T(out), A::T(value)]);
    assert_eq!(lab.read(&out), [4.0; 5]);
}

/// Each gradient is the transpose of its operator: `⟨f(x), y⟩ = ⟨x, f′(y)⟩` for whole numbers, exactly.
#[test]
fn windows_and_their_gradients_are_transposes() {
    let mut noise = Noise::new(23);
    for (kernel, dilation, padding, stride, rows, across) in [
        ([2i64, 2], [1i64, 1], [0i64, 0], [1i64, 1], 3i64, 4i64),
        ([3, 2], [1, 2], [1, 1], [2, 1], 2, 5),
        ([1, 3], [2, 1], [2, 0], [3, 2], 3, 2),
    ] {
        let mut lab = Lab::new();
        let x = noise.values(2 * 2 * 4 * 5);
        let width = (kernel[0] * kernel[1]) as usize;
        let y = noise.values(2 * 2 * width * (rows * across) as usize);
        let image = lab.tensor(F32, &[2, 2, 4, 5], &x);
        let columns = lab.room(F32, &[2, 2 * width as i64, rows * across]);
        let settings = [kernel, dilation, padding, stride].map(|pair| A::Ints(pair.to_vec()));
        lab.ok(ops::aclnnIm2col, &[&[A::T(image)][..], &settings, &[A::T(columns)]].concat());
        let got = lab.read(&columns);
        // The definition, element by element.
        for (i, value) in got.iter().enumerate() {
            let (l, row) = (i as i64 % (rows * across), i as i64 / (rows * across));
            let (tap, plane) = (row % width as i64, row / width as i64);
            let h = l / across * stride[0] - padding[0] + tap / kernel[1] * dilation[0];
            let w = l % across * stride[1] - padding[1] + tap % kernel[1] * dilation[1];
            let inside = (0..4).contains(&h) && (0..5).contains(&w);
            let want = if inside { x[(plane * 20 + h * 5 + w) as usize] } else { 0.0 };
            assert_eq!(*value, want, "{kernel:?} element {i}");
        }
        let grad = lab.tensor(F32, &[2, 2 * width as i64, rows * across], &y);
        let back = lab.room(F32, &[2, 2, 4, 5]);
        let args = [&[A::T(grad), A::Ints(vec![4, 5])][..], &settings, &[A::T(back)]].concat();
        lab.ok(ops::aclnnIm2colBackward, &args);
        let forward: f64 = got.iter().zip(&y).map(|(a, b)| a * b).sum();
        let backward: f64 = lab.read(&back).iter().zip(&x).map(|(a, b)| a * b).sum();
        assert_eq!(forward, backward);
    }
    let mut lab = Lab::new();
    // Windows of 3, 2 apart, over 5 elements: (0 1 2), (2 3 4).
    let grad = lab.tensor(F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let out = lab.room(F32, &[5]);
    lab.ok(ops::aclnnUnfoldGrad, &[A::T(grad), A::Ints(vec![5]), A::I(0), A::I(3), A::I(2), A::T(out)]);
    assert_eq!(lab.read(&out), [1.0, 2.0, 7.0, 5.0, 6.0]);
}

#[test]
fn cross_products() {
    let mut lab = Lab::new();
    let (a, b) =
        (lab.tensor(F32, &[2, 3], &[1.0, 0.0, 0.0, 1.0, 2.0, 3.0]), lab.tensor(F32, &[1, 3], &[4.0, 5.0, 6.0]));
    let out = lab.room(F32, &[2, 3]);
    lab.ok(ops::aclnnLinalgCross, &[A::T(a), A::T(b), A::I(-1), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, -6.0, 5.0, -3.0, 6.0, -3.0]);
    lab.refused(ops::aclnnLinalgCross, &[A::T(a), A::T(b), A::I(0), A::T(out)], "size 2 of dimension 0, want 3");
}

#[test]
fn channels_are_taken_from_each_group_in_turn() {
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(F32, &[1, 6, 1], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), lab.room(F32, &[1, 6, 1]));
    lab.ok(ops::aclnnChannelShuffle, &[A::T(x), A::I(2), A::T(out)]);
    assert_eq!(lab.read(&out), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    lab.refused(ops::aclnnChannelShuffle, &[A::T(x), A::I(4), A::T(out)], "groups: 4");
}
