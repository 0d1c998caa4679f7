//! Pooling, padding and resampling against their definitions, position by position.

use acl_abi::{DataType, OpId, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close};

use DataType::{BF16, F16, F32, F64, I8, I32, I64};

const TYPES: [(DataType, f64); 4] = [(F32, 1e-6), (F64, 1e-12), (F16, 2e-3), (BF16, 2e-2)];

/// A pooling of `[2, 3, 7, 6]` with kernel 3×2, stride 2×1 and padding 1×1.
const KERNEL: [i64; 2] = [3, 2];
const STRIDE: [i64; 2] = [2, 1];
const PADDING: [i64; 2] = [1, 1];
const IN: [i64; 4] = [2, 3, 7, 6];
const OUT: [i64; 4] = [2, 3, 4, 7];

/// Input rows and columns under each output of a plane; negative ones and those behind the end lie in the padding.
fn windows() -> Vec<Vec<(i64, i64)>> {
    let outputs = (0..OUT[2]).flat_map(|i| (0..OUT[3]).map(move |j| (i, j)));
    outputs
        .map(|(i, j)| {
            let taps = (0..KERNEL[0]).flat_map(|a| (0..KERNEL[1]).map(move |b| (a, b)));
            taps.map(|(a, b)| (i * STRIDE[0] - PADDING[0] + a, j * STRIDE[1] - PADDING[1] + b)).collect()
        })
        .collect()
}

fn inside((h, w): (i64, i64)) -> Option<usize> {
    ((0..IN[2]).contains(&h) && (0..IN[3]).contains(&w)).then(|| (h * IN[3] + w) as usize)
}

fn pair(values: [i64; 2]) -> A {
    A::Ints(values.to_vec())
}

#[test]
fn averages_of_windows_and_their_gradients() {
    let (values, slopes) = (Noise::new(1).values(2 * 3 * 42), Noise::new(2).values(2 * 3 * 28));
    for (dtype, tolerance) in TYPES {
        for lay in LAYS {
            for (padded, divisor) in [(true, 0), (false, 0), (true, 5)] {
                let share = |window: &[(i64, i64)]| match divisor {
                    0 if padded => 6.0,
                    0 => window.iter().filter(|at| inside(**at).is_some()).count() as f64,
                    given => f64::from(given),
                };
                let mut lab = Lab::new();
                let x = lab.tensor_as(dtype, &IN, &values, lay);
                let dy = lab.tensor_as(dtype, &OUT, &slopes, lay);
                let (y, dx) = (lab.room_as(dtype, &OUT, lay), lab.room_as(dtype, &IN, lay));
                let attributes = [pair(KERNEL), pair(STRIDE), pair(PADDING), A::B(false), A::B(padded)];
                let rest = [A::I(i64::from(divisor)), A::I(0)];
                let call = |first: &[A], out| [first, &attributes, &rest, &[A::T(out)]].concat();
                lab.ok(ops::aclnnAvgPool2d, &call(&[A::T(x)], y));
                lab.ok(ops::aclnnAvgPool2dBackward, &call(&[A::T(dy), A::T(x)], dx));
                let (mut want, mut want_dx) = (Vec::new(), vec![0.0; values.len()]);
                for plane in 0..6 {
                    for (output, window) in windows().iter().enumerate() {
                        let under: Vec<usize> = window.iter().filter_map(|at| inside(*at)).collect();
                        want.push(under.iter().map(|at| values[plane * 42 + at]).sum::<f64>() / share(window));
                        for at in under {
                            want_dx[plane * 42 + at] += slopes[plane * 28 + output] / share(window);
                        }
                    }
                }
                close(&lab.read(&y), &want, tolerance);
                close(&lab.read(&dx), &want_dx, tolerance);
            }
        }
    }
}

#[test]
fn adaptive_windows_share_the_input() {
    let values = Noise::new(3).values(2 * 5 * 7);
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 5, 7], &values);
    let (y, top) = (lab.room(F32, &[2, 2, 3]), lab.room(F32, &[2, 2, 3]));
    let (at, dx) = (lab.room(I64, &[2, 2, 3]), lab.room(F32, &[2, 5, 7]));
    lab.ok(ops::aclnnAdaptiveAvgPool2d, &[A::T(x), pair([2, 3]), A::T(y)]);
    lab.ok(ops::aclnnAdaptiveMaxPool2d, &[A::T(x), pair([2, 3]), A::T(top), A::T(at)]);
    let (mut means, mut tops, mut gradient) = (Vec::new(), Vec::new(), vec![0.0; 70]);
    for plane in 0..2 {
        for (rows, columns) in [(0..3, 0..3), (0..3, 2..5), (0..3, 4..7), (2..5, 0..3), (2..5, 2..5), (2..5, 4..7)] {
            let under: Vec<usize> = rows.flat_map(|h| columns.clone().map(move |w| plane * 35 + h * 7 + w)).collect();
            means.push(under.iter().map(|&i| values[i]).sum::<f64>() / 9.0);
            tops.push(under.iter().map(|&i| values[i]).fold(f64::MIN, f64::max));
            under.iter().for_each(|&i| gradient[i] += means.last().unwrap() / 9.0);
        }
    }
    close(&lab.read(&y), &means, 1e-6);
    assert_eq!(lab.read(&top), tops);
    let places = lab.read(&at);
    for (i, place) in places.iter().enumerate() {
        assert_eq!(values[i / 6 * 35 + *place as usize], tops[i]);
    }
    lab.ok(ops::aclnnAdaptiveAvgPool2dBackward, &[A::T(y), A::T(x), A::T(dx)]);
    close(&lab.read(&dx), &gradient, 1e-6);
    lab.ok(ops::aclnnAdaptiveMaxPool2dBackward, &[A::T(top), A::T(x), A::T(at), A::T(dx)]);
    let mut want = vec![0.0; 70];
    places.iter().zip(&tops).enumerate().for_each(|(i, (at, top))| want[i / 6 * 35 + *at as usize] += top);
    close(&lab.read(&dx), &want, 1e-6);
}

#[test]
fn the_largest_of_a_window_by_index_and_by_mask() {
    let values = Noise::new(5).values(2 * 3 * 42);
    let slopes = Noise::new(6).values(2 * 3 * 28);
    let (mut want, mut places, mut want_dx) = (Vec::new(), Vec::new(), vec![0.0; values.len()]);
    for plane in 0..6 {
        for (output, window) in windows().iter().enumerate() {
            let mut best: Option<usize> = None;
            for at in window.iter().filter_map(|at| inside(*at)) {
                if best.is_none_or(|best| values[plane * 42 + at] > values[plane * 42 + best]) {
                    best = Some(at);
                }
            }
            let best = best.unwrap();
            want.push(values[plane * 42 + best]);
            places.push(best as f64);
            want_dx[plane * 42 + best] += slopes[plane * 28 + output];
        }
    }
    let attributes = [pair(KERNEL), pair(STRIDE), pair(PADDING), pair([1, 1]), A::B(false)];
    for (dtype, lay) in [(F32, LAYS[0]), (F16, LAYS[1]), (F64, LAYS[2])] {
        let mut lab = Lab::new();
        let x = lab.tensor_as(dtype, &IN, &values, lay);
        let dy = lab.tensor_as(dtype, &OUT, &slopes, lay);
        let (at, mask) = (lab.room(I32, &OUT), lab.room(I8, &[2, 3, 6, 96]));
        let (y, dx) = (lab.room_as(dtype, &OUT, lay), lab.room_as(dtype, &IN, lay));
        let forms = [
            (ops::aclnnMaxPool2dWithIndices, ops::aclnnMaxPool2dWithIndicesBackward, at),
            (ops::aclnnMaxPool2dWithMask, ops::aclnnMaxPool2dWithMaskBackward, mask),
        ];
        for (forward, backward, at) in forms {
            lab.ok(forward, &[&[A::T(x)], &attributes[..], &[A::T(y), A::T(at)]].concat());
            assert_eq!(lab.read(&y), want);
            lab.ok(backward, &[&[A::T(dy), A::T(x), A::T(at)], &attributes[..], &[A::T(dx)]].concat());
            close(&lab.read(&dx), &want_dx, 2e-3);
        }
        assert_eq!(lab.read(&at), places);
        let small = lab.room(I8, &[2, 3, 6, 3]);
        let args = [&[A::T(x)], &attributes[..], &[A::T(y), A::T(small)]].concat();
        lab.refused(ops::aclnnMaxPool2dWithMask, &args, "6 taps and 28 outputs");
    }
}

#[test]
fn nan_is_the_largest_and_an_index_leads_back() {
    let mut lab = Lab::new();
    let nan = f64::NAN;
    let x = lab.tensor(F32, &[1, 1, 2, 4], &[1.0, nan, 3.0, 4.0, 2.0, 2.0, 4.0, 0.0]);
    let (y, at, back) = (lab.room(F32, &[1, 1, 1, 2]), lab.room(I64, &[1, 1, 1, 2]), lab.room(F32, &[1, 1, 2, 4]));
    let two = || pair([2, 2]);
    let one = || pair([1, 1]);
    let args = [A::T(x), two(), A::Ints(vec![]), pair([0, 0]), one(), A::B(false), A::T(y), A::T(at)];
    lab.ok(ops::aclnnMaxPool2dWithIndices, &args);
    assert_eq!((lab.read(&y)[0].is_nan(), lab.read(&y)[1], lab.read(&at)), (true, 4.0, vec![1.0, 3.0]));
    let seven = lab.tensor(F32, &[1, 1, 1, 2], &[7.0, 8.0]);
    lab.ok(ops::aclnnMaxUnpool2d, &[A::T(seven), A::T(at), pair([2, 4]), A::T(back)]);
    assert_eq!(lab.read(&back), [0.0, 7.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
    let wrong = lab.tensor(I64, &[1, 1, 1, 2], &[1.0, 8.0]);
    lab.refused(ops::aclnnMaxUnpool2d, &[A::T(seven), A::T(wrong), pair([2, 4]), A::T(back)], "8 elements");
}

#[test]
fn three_dimensions_pool_like_two() {
    let values = Noise::new(7).values(2 * 3 * 4 * 5);
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 3, 4, 5], &values);
    let (y, top, at) = (lab.room(F32, &[2, 1, 2, 2]), lab.room(F32, &[2, 1, 2, 2]), lab.room(I32, &[2, 1, 2, 2]));
    let triple = |v: [i64; 3]| A::Ints(v.to_vec());
    let plain = [triple([3, 2, 2]), A::Ints(vec![]), triple([0, 0, 0])];
    let rest = [A::B(false), A::B(true), A::I(0), A::T(y)];
    lab.ok(ops::aclnnAvgPool3d, &[&[A::T(x)], &plain[..], &rest].concat());
    let rest = [triple([1, 1, 1]), A::B(false), A::T(top), A::T(at)];
    lab.ok(ops::aclnnMaxPool3dWithArgmax, &[&[A::T(x)], &plain[..], &rest].concat());
    for (i, place) in lab.read(&at).into_iter().enumerate() {
        let (plane, h, w) = (i / 4, i / 2 % 2 * 2, i % 2 * 2);
        let under: Vec<usize> = (0..12).map(|t| plane * 60 + t / 4 * 20 + (h + t / 2 % 2) * 5 + w + t % 2).collect();
        let mean = under.iter().map(|&at| values[at]).sum::<f64>() / 12.0;
        close(&lab.read(&y)[i..=i], &[mean], 1e-6);
        let best = under.iter().map(|&at| values[at]).fold(f64::MIN, f64::max);
        assert_eq!((lab.read(&top)[i], values[plane * 60 + place as usize]), (best, best));
    }
}

/// The position among so many that a position, outside perhaps, shows.
type Shown = fn(i64, i64) -> i64;

#[test]
fn padding_shows_the_inside_and_its_gradient_comes_back() {
    let values = Noise::new(8).values(2 * 3 * 4);
    let cases: [(OpId, OpId, Shown); 2] = [
        (ops::aclnnReflectionPad2d, ops::aclnnReflectionPad2dBackward, |p, n| {
            if p < 0 {
                -p
            } else if p >= n {
                2 * n - 2 - p
            } else {
                p
            }
        }),
        (ops::aclnnReplicationPad2d, ops::aclnnReplicationPad2dBackward, |p, n| p.clamp(0, n - 1)),
    ];
    for (forward, backward, rule) in cases {
        for dtype in [F32, F64, BF16] {
            let mut lab = Lab::new();
            let x = lab.tensor(dtype, &[2, 3, 4], &values);
            let (y, dx) = (lab.room(dtype, &[2, 5, 6]), lab.room(dtype, &[2, 3, 4]));
            // Left 3, right −1; above 2, below 0.
            let padding = A::Ints(vec![3, -1, 2, 0]);
            lab.ok(forward, &[A::T(x), padding.clone(), A::T(y)]);
            let (mut want, mut want_dx) = (Vec::new(), vec![0.0; 24]);
            for at in 0..60 {
                let (plane, i, j) = (at / 30, at as i64 / 6 % 5, at as i64 % 6);
                let from = plane * 12 + (rule(i - 2, 3) * 4 + rule(j - 3, 4)) as usize;
                want.push(values[from]);
                want_dx[from] += values[from];
            }
            assert_eq!(lab.read(&y), want);
            lab.ok(backward, &[A::T(y), A::T(x), padding, A::T(dx)]);
            close(&lab.read(&dx), &want_dx, 2e-2);
        }
        let mut lab = Lab::new();
        let (x, y) = (lab.tensor(F32, &[2, 3, 4], &values), lab.room(F32, &[2, 3, 5]));
        lab.refused(forward, &[A::T(x), A::Ints(vec![2, 0, 0, 0]), A::T(y)], "want 6");
    }
    let mut lab = Lab::new();
    let (x, y) = (lab.tensor(F32, &[1, 2], &[1.0, 2.0]), lab.room(F32, &[1, 4]));
    lab.refused(ops::aclnnReflectionPad1d, &[A::T(x), pair([2, 0]), A::T(y)], "too much");
}

#[test]
fn resampling_by_two_keeps_means_and_its_gradient_is_the_transpose() {
    let values = Noise::new(9).values(2 * 4 * 6);
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[1, 2, 4, 6], &values);
    let y = lab.room(F32, &[1, 2, 2, 3]);
    let none = || [A::F(0.0), A::F(0.0)];
    let call = |x, out, corners| [&[A::T(x), pair([2, 3]), A::B(corners)], &none()[..], &[A::T(out)]].concat();
    lab.ok(ops::aclnnUpsampleBilinear2d, &call(x, y, false));
    let want: Vec<f64> = (0..12)
        .map(|at| {
            let base = at / 6 * 24 + at / 3 % 2 * 12 + at % 3 * 2;
            [0, 1, 6, 7].iter().map(|o| values[base + o]).sum::<f64>() / 4.0
        })
        .collect();
    close(&lab.read(&y), &want, 1e-6);
    // ⟨A·x, s⟩ = ⟨x, Aᵀ·s⟩ for every form.
    let forms = [
        (ops::aclnnUpsampleBilinear2d, ops::aclnnUpsampleBilinear2dBackward),
        (ops::aclnnUpsampleBicubic2d, ops::aclnnUpsampleBicubic2dBackward),
        (ops::aclnnUpsampleBilinear2dAA, ops::aclnnUpsampleBilinear2dAABackward),
        (ops::aclnnUpsampleBicubic2dAA, ops::aclnnUpsampleBicubic2dAAGrad),
    ];
    let slopes = Noise::new(10).values(2 * 7 * 3);
    for (forward, backward) in forms {
        for corners in [false, true] {
            let (y, dx) = (lab.room(F64, &[1, 2, 7, 3]), lab.room(F64, &[1, 2, 4, 6]));
            let (x, s) = (lab.tensor(F64, &[1, 2, 4, 6], &values), lab.tensor(F64, &[1, 2, 7, 3], &slopes));
            let shape = || [pair([7, 3]), A::Ints(vec![1, 2, 4, 6]), A::B(corners)];
            let [out, input, flag] = shape();
            lab.ok(forward, &[&[A::T(x), out.clone(), flag.clone()], &none()[..], &[A::T(y)]].concat());
            lab.ok(backward, &[&[A::T(s), out, input, flag], &none()[..], &[A::T(dx)]].concat());
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            close(&[dot(&lab.read(&y), &slopes)], &[dot(&lab.read(&dx), &values)], 1e-9);
        }
    }
}

#[test]
fn nearest_moves_elements_of_every_type() {
    let values: Vec<f64> = (0..6).map(f64::from).collect();
    for dtype in [F32, BF16, I8, I64] {
        let mut lab = Lab::new();
        let (x, y) = (lab.tensor(dtype, &[1, 2, 3], &values), lab.room(dtype, &[1, 2, 5]));
        lab.ok(ops::aclnnUpsampleNearest1d, &[A::T(x), A::Ints(vec![5]), A::T(y)]);
        assert_eq!(lab.read(&y), [0.0, 0.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0]);
        lab.ok(ops::aclnnUpsampleNearestExact1d, &[A::T(x), A::Ints(vec![5]), A::F(0.0), A::T(y)]);
        assert_eq!(lab.read(&y), [0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0, 5.0]);
    }
    let mut lab = Lab::new();
    let (x, y) = (lab.tensor(F32, &[1, 2, 3], &values), lab.room(F32, &[1, 2, 5]));
    let (dx, dy) = (lab.room(F32, &[1, 2, 3]), lab.tensor(F32, &[1, 2, 5], &[1.0; 10]));
    let args = [A::T(dy), A::Ints(vec![5]), A::Ints(vec![1, 2, 3]), A::F(0.0), A::T(dx)];
    lab.ok(ops::aclnnUpsampleNearest1dBackward, &args);
    assert_eq!(lab.read(&dx), [2.0, 2.0, 1.0, 2.0, 2.0, 1.0]);
    lab.refused(ops::aclnnUpsampleNearest1d, &[A::T(x), A::Ints(vec![4]), A::T(y)], "outputSize");
}

#[test]
fn the_largest_of_each_window_without_telling_where() {
    let mut lab = Lab::new();
    let values: Vec<f64> = (0..48).map(|i| f64::from(i * 37 % 48)).collect();
    let x = lab.tensor(F32, &[1, 2, 4, 6], &values);
    let out = lab.room(F32, &[1, 2, 2, 2]);
    let args = |kernel: &[i64], strides: &[i64], pads: &[i64], out| {
        let ints = |values: &[i64]| A::Ints(values.to_vec());
        vec![A::T(x), ints(kernel), ints(strides), A::I(0), ints(pads), ints(&[1, 1]), A::I(0), A::T(out)]
    };
    lab.ok(ops::aclnnMaxPool, &args(&[2, 3], &[2, 3], &[0, 0, 0, 0], out));
    let want: Vec<f64> = (0..8)
        .map(|at| {
            let (plane, h, w) = (at / 4, at / 2 % 2, at % 2);
            let under = (0..6).map(|tap| values[plane * 24 + (2 * h + tap / 3) * 6 + 3 * w + tap % 3]);
            under.fold(f64::NEG_INFINITY, f64::max)
        })
        .collect();
    assert_eq!(lab.read(&out), want);
    lab.refused(ops::aclnnMaxPool, &args(&[2, 3], &[2, 3], &[1, 0, 0, 0], out), "pads: [1, 0, 0, 0] with autoPad 0");
    let wide = lab.room(F32, &[1, 2, 2, 3]);
    lab.refused(ops::aclnnMaxPool, &args(&[2, 2], &[2, 3], &[], wide), "out: 3 positions of 6");
}
