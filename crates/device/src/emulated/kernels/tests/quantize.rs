//! Quantisation to int8.

use acl_abi::{DataType, TensorDesc, ops};

use super::super::testing::{A, LAYS, Lab, Lay, Noise, close, rounded};
use DataType::{BF16, F16, F32, I8, I32};

/// `round(x · scale + offset)` within int8, in the precision that is promised.
fn want(x: f64, scale: f64, offset: f64, round: fn(f32) -> f32) -> f64 {
    f64::from(round(x as f32 * scale as f32 + offset as f32).clamp(-128.0, 127.0))
}

#[test]
fn given_scales_are_of_all_or_of_each_element_along_an_axis() {
    let mut noise = Noise::new(41);
    for dtype in [F32, BF16, F16] {
        for lay in LAYS {
            let (values, scales) = (noise.values(24), noise.values(6));
            let (x, scales): (Vec<f64>, Vec<f64>) = (
                values.iter().map(|v| rounded(dtype, *v as f32 * 80.0)).collect(),
                scales.iter().map(|v| rounded(dtype, *v as f32 * 3.0)).collect(),
            );
            let mut lab = Lab::new();
            let on_device = lab.tensor_as(dtype, &[4, 6], &x, lay);
            let y = lab.room_as(I8, &[4, 6], lay);
            let rest = |desc: TensorDesc, offset, mode, sqrt| {
                vec![A::T(on_device), A::T(desc), offset, A::B(sqrt), A::Str(mode), A::I(2)]
            };
            let (six, four, one) = (
                lab.tensor(dtype, &[6], &scales),
                lab.tensor(dtype, &[4], &scales[..4]),
                lab.tensor(dtype, &[1], &[1.5]),
            );
            for (mode, round) in [
                ("round", f32::round_ties_even as fn(f32) -> f32),
                ("floor", f32::floor),
                ("ceil", f32::ceil),
                ("trunc", f32::trunc),
            ] {
                lab.ok(ops::aclnnAscendQuant, &[rest(six, A::T(six), mode, false), vec![A::T(y)]].concat());
                let each: Vec<f64> = (0..24).map(|i| want(x[i], scales[i % 6], scales[i % 6], round)).collect();
                assert_eq!(lab.read(&y), each, "{dtype:?} {lay:?} {mode}");
            }
            let rows: Vec<f64> = (0..24).map(|i| want(x[i], scales[i / 6], 0.0, f32::round_ties_even)).collect();
            lab.ok(ops::aclnnAscendQuantV3, &[rest(four, A::Null, "round", false), vec![A::I(-2), A::T(y)]].concat());
            assert_eq!(lab.read(&y), rows);
            let all: Vec<f64> = x.iter().map(|&x| want(x, 1.5 * 1.5, 0.0, f32::round_ties_even)).collect();
            lab.ok(ops::aclnnAscendQuantV3, &[rest(one, A::Null, "round", true), vec![A::I(1), A::T(y)]].concat());
            assert_eq!(lab.read(&y), all);
            assert!(all.contains(&127.0) && all.contains(&-128.0), "no value was out of range: {all:?}");
        }
    }
}

#[test]
fn each_row_gets_a_scale_that_its_largest_element_fills() {
    let mut noise = Noise::new(43);
    for dtype in [F32, BF16, F16] {
        for lay in [Lay::Plain, Lay::Sliced] {
            let mut x: Vec<f64> = noise.values(40).iter().map(|v| rounded(dtype, *v as f32)).collect();
            x[16..24].fill(0.0);
            let smooth: Vec<f64> = noise.fractions(8).iter().map(|v| rounded(dtype, *v as f32 + 0.5)).collect();
            let mut lab = Lab::new();
            let on_device = lab.tensor_as(dtype, &[5, 8], &x, lay);
            let factors = lab.tensor(dtype, &[8], &smooth);
            let (y, scale) = (lab.room_as(I8, &[5, 8], lay), lab.room(F32, &[5]));
            for smoothed in [false, true] {
                let given = if smoothed { A::T(factors) } else { A::Null };
                lab.ok(ops::aclnnDynamicQuant, &[A::T(on_device), given, A::T(y), A::T(scale)]);
                let x: Vec<f64> =
                    x.iter().enumerate().map(|(i, x)| if smoothed { x * smooth[i % 8] } else { *x }).collect();
                let (scales, whole) = (lab.read(&scale), lab.read(&y));
                for (row, (x, whole)) in x.chunks(8).zip(whole.chunks(8)).enumerate() {
                    let largest = x.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                    close(&[scales[row]], &[largest / 127.0], 1e-6);
                    let back: Vec<f64> = whole.iter().map(|w| w * scales[row]).collect();
                    close(&back, x, scales[row] * 0.5001);
                    let most = whole.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                    assert_eq!(most, if row == 2 { 0.0 } else { 127.0 });
                }
            }
        }
    }
}

#[test]
fn calls_that_do_not_fit_are_refused_by_parameter() {
    let mut lab = Lab::new();
    let (x, y, scale) = (lab.room(F16, &[2, 8]), lab.room(I8, &[2, 8]), lab.room(F32, &[2]));
    for (args, part) in [
        ([A::T(x), A::Null, A::T(x), A::T(scale)], "yOut: type float16, want int8"),
        ([A::T(x), A::Null, A::T(y), A::T(x)], "scaleOut: type float16, want float32"),
        ([A::T(x), A::T(scale), A::T(y), A::T(scale)], "smoothScalesOptional: shape [2], want [8]"),
    ] {
        lab.refused(ops::aclnnDynamicQuant, &args, part);
    }
    let (whole, three) = (lab.room(I32, &[1]), lab.room(F16, &[3]));
    let args =
        |scale, mode, dtype| vec![A::T(x), A::T(scale), A::Null, A::B(false), A::Str(mode), A::I(dtype), A::T(y)];
    for (args, part) in [
        (args(whole, "round", 2), "scale: type int32 is not supported"),
        (args(three, "round", 2), "scale: shape [3] does not broadcast to [8]"),
        (args(three, "round", 29), "dstType: 29, want 2, int8"),
        (args(three, "up", 2), "roundMode: \"up\", want round, floor, ceil or trunc"),
    ] {
        lab.refused(ops::aclnnAscendQuant, &args, part);
    }
}
