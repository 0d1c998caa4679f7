//! Activations with parameters, and their derivatives against differences of the activations themselves.

use acl_abi::{DataType, OpId, ops};

use super::super::testing::{A, LAYS, Lab, Noise, close, rounded};
use super::operations::{check, double};

use DataType::{BF16, F16, F32, F64, I64};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// Away from the corners of every piecewise function below, and on both sides of them.
const POINTS: [f64; 9] = [-4.5, -2.75, -1.125, -0.6, -0.3, 0.3, 0.6, 1.125, 3.5];

/// A forward operator, its parameters, and what a backward operator is called with: `X` the input, `Y` the result, `G` the
/// gradient of the result.
#[derive(Clone)]
enum P {
    X,
    Y,
    G,
    Is(A),
}

fn is(value: f64) -> P {
    P::Is(double(value))
}

#[test]
fn derivatives_match_differences() {
    use P::{G, X, Y};
    type Case = (OpId, Vec<A>, OpId, Vec<P>);
    let cases: Vec<Case> = vec![
        (ops::aclnnSigmoid, vec![], ops::aclnnSigmoidBackward, vec![G, Y]),
        (ops::aclnnTanh, vec![], ops::aclnnTanhBackward, vec![G, Y]),
        (ops::aclnnSilu, vec![], ops::aclnnSiluBackward, vec![G, X]),
        (ops::aclnnGelu, vec![], ops::aclnnGeluBackward, vec![G, X]),
        (ops::aclnnGeluV2, vec![A::I(0)], ops::aclnnGeluBackwardV2, vec![G, X, P::Is(A::Str("none"))]),
        (ops::aclnnGeluV2, vec![A::I(1)], ops::aclnnGeluBackwardV2, vec![G, X, P::Is(A::Str("tanh"))]),
        (ops::aclnnFastGelu, vec![], ops::aclnnFastGeluBackward, vec![G, X]),
        (ops::aclnnMish, vec![], ops::aclnnMishBackward, vec![G, X]),
        (ops::aclnnLogSigmoid, vec![], ops::aclnnLogSigmoidBackward, vec![G, X, P::Is(A::Null)]),
        (ops::aclnnSoftplus, vec![double(2.0), double(6.0)], ops::aclnnSoftplusBackward, vec![G, X, is(2.0), is(6.0)]),
        (ops::aclnnLeakyRelu, vec![double(0.1)], ops::aclnnLeakyReluBackward, vec![G, X, is(0.1), P::Is(A::B(false))]),
        (
            ops::aclnnElu,
            vec![double(1.5), double(0.5), double(2.0)],
            ops::aclnnEluBackward,
            vec![G, is(1.5), is(0.5), is(2.0), P::Is(A::B(false)), X],
        ),
        (
            ops::aclnnElu,
            vec![double(1.5), double(0.5), double(2.0)],
            ops::aclnnEluBackward,
            vec![G, is(1.5), is(0.5), is(2.0), P::Is(A::B(true)), Y],
        ),
        (ops::aclnnHardswish, vec![], ops::aclnnHardswishBackward, vec![G, X]),
        (ops::aclnnHardswish, vec![], ops::aclnnHardswishBackwardV2, vec![G, X]),
        (ops::aclnnHardsigmoid, vec![], ops::aclnnHardsigmoidBackward, vec![G, X]),
        (
            ops::aclnnHardtanh,
            vec![double(-1.0), double(2.0)],
            ops::aclnnHardtanhBackward,
            vec![G, X, is(-1.0), is(2.0)],
        ),
        (ops::aclnnHardshrink, vec![double(0.5)], ops::aclnnHardshrinkBackward, vec![G, X, is(0.5)]),
        (ops::aclnnSoftshrink, vec![double(0.5)], ops::aclnnSoftshrinkBackward, vec![G, X, is(0.5)]),
        (ops::aclnnThreshold, vec![double(0.5), double(7.0)], ops::aclnnThresholdBackward, vec![G, X, is(0.5)]),
    ];
    const H: f64 = 1e-6;
    for (forward, parameters, backward, backward_args) in cases {
        let mut lab = Lab::new();
        let count = POINTS.len() as i64;
        let apply = |lab: &mut Lab, shift: f64| {
            let x = lab.tensor(F64, &[count], &POINTS.map(|x| x + shift));
            let y = lab.room(F64, &[count]);
            let args: Vec<A> = [A::T(x)].into_iter().chain(parameters.iter().cloned()).chain([A::T(y)]).collect();
            lab.ok(forward, &args);
            lab.read(&y)
        };
        let (above, below, result) = (apply(&mut lab, H), apply(&mut lab, -H), apply(&mut lab, 0.0));
        let upstream: Vec<f64> = (0..count).map(|i| 1.0 + i as f64 / 4.0).collect();
        let want: Vec<f64> = (0..POINTS.len()).map(|i| upstream[i] * (above[i] - below[i]) / (2.0 * H)).collect();
        for (dtype, tolerance) in [(F64, 1e-7), (F32, 2e-6), (BF16, 2e-2), (F16, 4e-3)] {
            for lay in LAYS {
                let x = lab.tensor_as(dtype, &[count], &POINTS, lay);
                let y = lab.tensor_as(dtype, &[count], &result, lay);
                let g = lab.tensor_as(dtype, &[count], &upstream, lay);
                let out = lab.room_as(dtype, &[count], lay);
                let of = |p: &P| match p {
                    X => A::T(x),
                    Y => A::T(y),
                    G => A::T(g),
                    P::Is(a) => a.clone(),
                };
                let args: Vec<A> = backward_args.iter().map(of).chain([A::T(out)]).collect();
                lab.ok(backward, &args);
                let got = lab.read(&out);
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    let near = (g - w).abs() <= tolerance * w.abs().max(1.0);
                    assert!(near, "{} {dtype:?} at {}: {g} instead of {w}", backward.name(), POINTS[i]);
                }
            }
        }
    }
}

#[test]
fn activations_with_parameters() {
    let x = [-4.0, -1.0, 0.0, 1.0, 4.0, NAN, INF, -INF];
    for dtype in [F32, BF16, F16, F64] {
        let third = |v: f64| if dtype == F64 { v } else { rounded(dtype, v as f32) };
        for (op, rest, want) in [
            (ops::aclnnLeakyRelu, vec![double(0.5)], [-2.0, -0.5, 0.0, 1.0, 4.0, NAN, INF, -INF]),
            (ops::aclnnHardtanh, vec![double(-1.0), double(2.0)], [-1.0, -1.0, 0.0, 1.0, 2.0, NAN, 2.0, -1.0]),
            (ops::aclnnHardshrink, vec![double(1.0)], [-4.0, 0.0, 0.0, 0.0, 4.0, NAN, INF, -INF]),
            (ops::aclnnSoftshrink, vec![double(0.5)], [-3.5, -0.5, 0.0, 0.5, 3.5, NAN, INF, -INF]),
            (ops::aclnnThreshold, vec![double(0.5), double(-9.0)], [-9.0, -9.0, -9.0, 1.0, 4.0, NAN, INF, -9.0]),
            (ops::aclnnSoftplus, vec![double(1.0), double(-5.0)], [-4.0, -1.0, 0.0, 1.0, 4.0, NAN, INF, 0.0]),
        ] {
            check(op, dtype, dtype, &[&x], &rest, &want);
        }
        // −∞ · 0 is not a number, as in torch.
        check(
            ops::aclnnHardswish,
            dtype,
            dtype,
            &[&x[..7]],
            &[],
            &[-0.0, third(-1.0 / 3.0), 0.0, third(2.0 / 3.0), 4.0, NAN, INF],
        );
        check(
            ops::aclnnHardsigmoid,
            dtype,
            dtype,
            &[&x],
            &[],
            &[0.0, third(1.0 / 3.0), 0.5, third(2.0 / 3.0), 1.0, NAN, 1.0, 0.0],
        );
    }
    check(
        ops::aclnnThreshold,
        I64,
        I64,
        &[&[1.0, 5.0]],
        &[A::S(acl_abi::Scalar { dtype: I64, bits: 2 }), double(7.0)],
        &[7.0, 5.0],
    );
    let mut lab = Lab::new();
    let (x, out) = (lab.tensor(F32, &[3], &[-1.0, 0.0, 2.0]), lab.room(F32, &[3]));
    lab.ok(ops::aclnnElu, &[A::T(x), double(2.0), double(3.0), double(0.5), A::T(out)]);
    close(&lab.read(&out), &[6.0 * ((-0.5f64).exp() - 1.0), 0.0, 6.0], 1e-6);
    lab.ok(ops::aclnnCelu, &[A::T(x), double(2.0), A::T(out)]);
    close(&lab.read(&out), &[2.0 * ((-0.5f64).exp() - 1.0), 0.0, 2.0], 1e-6);
    lab.ok(ops::aclnnInplaceMish, &[A::T(x)]);
    close(&lab.read(&x), &[-((-1f64).exp().ln_1p().tanh()), 0.0, 2.0 * 2f64.exp().ln_1p().tanh()], 1e-6);
    lab.refused(ops::aclnnGeluBackwardV2, &[A::T(x), A::T(x), A::Str("erf"), A::T(x)], "approximate: \"erf\"");
}

#[test]
fn gated_units_and_their_derivatives_take_halves() {
    let mut noise = Noise::new(5);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let gelu = |x: f64| x * 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
    for (dim, at) in [(1i64, [[0usize, 1], [4, 5]]), (0, [[0, 1], [2, 3]]), (-1, [[0, 1], [4, 5]])] {
        // Rows of a 4×4 tensor, or columns, in two halves.
        let index =
            |half: usize, i: usize, j: usize| if dim == 0 { (i + 2 * half) * 4 + j } else { i * 4 + j + 2 * half };
        let (rows, columns) = if dim == 0 { (2, 4) } else { (4, 2) };
        assert_eq!(at[0][0], index(0, 0, 0));
        for lay in LAYS {
            let mut lab = Lab::new();
            let values = noise.values(16);
            let x = lab.tensor_as(F64, &[4, 4], &values, lay);
            let (out, gate) = (lab.room_as(F64, &[rows, columns], lay), lab.room(F64, &[rows, columns]));
            let g_values = noise.values(8);
            let g = lab.tensor_as(F64, &[rows, columns], &g_values, lay);
            let both = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                (0..8)
                    .map(|k| (k / columns as usize, k % columns as usize))
                    .map(|(i, j)| f(values[index(0, i, j)], values[index(1, i, j)]))
                    .collect()
            };
            lab.ok(ops::aclnnGlu, &[A::T(x), A::I(dim), A::T(out)]);
            close(&lab.read(&out), &both(&|a, b| a * sigmoid(b)), 1e-12);
            for (left, want) in [(1, both(&|a, b| gelu(a) * b)), (0, both(&|a, b| a * gelu(b)))] {
                let args = [A::T(x), A::I(dim), A::I(0), A::B(left == 1), A::T(out), A::T(gate)];
                lab.ok(ops::aclnnGeGluV3, &args);
                close(&lab.read(&out), &want, 1e-12);
            }
            if dim != 0 {
                lab.ok(ops::aclnnGeluMul, &[A::T(x), A::Str("none"), A::T(out)]);
                close(&lab.read(&out), &both(&|a, b| gelu(a) * b), 1e-12);
            }
            // d(f(a, b)·g)/da and /db by differences.
            const H: f64 = 1e-6;
            let difference = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                let mut want = vec![0.0; 16];
                for (k, g) in g_values.iter().enumerate() {
                    let (i, j) = (k / columns as usize, k % columns as usize);
                    let (a, b) = (values[index(0, i, j)], values[index(1, i, j)]);
                    want[index(0, i, j)] = g * (f(a + H, b) - f(a - H, b)) / (2.0 * H);
                    want[index(1, i, j)] = g * (f(a, b + H) - f(a, b - H)) / (2.0 * H);
                }
                want
            };
            let into = lab.room_as(F64, &[4, 4], lay);
            lab.ok(ops::aclnnGluBackward, &[A::T(g), A::T(x), A::I(dim), A::T(into)]);
            close(&lab.read(&into), &difference(&|a, b| a * sigmoid(b)), 1e-7);
            lab.ok(ops::aclnnSwiGluGrad, &[A::T(g), A::T(x), A::I(dim), A::T(into)]);
            close(&lab.read(&into), &difference(&|a, b| a * sigmoid(a) * b), 1e-7);
            for left in [true, false] {
                let f = move |a: f64, b: f64| if left { gelu(a) * b } else { a * gelu(b) };
                lab.ok(ops::aclnnGeGluV3, &[A::T(x), A::I(dim), A::I(0), A::B(left), A::T(out), A::T(gate)]);
                let args = [A::T(g), A::T(x), A::T(gate), A::I(dim), A::I(0), A::B(left), A::T(into)];
                lab.ok(ops::aclnnGeGluV3Backward, &args);
                close(&lab.read(&into), &difference(&f), 1e-7);
            }
        }
    }
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[3], &[0.0; 3]);
    lab.refused(ops::aclnnGlu, &[A::T(x), A::I(0), A::T(x)], "size 3 of dimension 0 is odd");
    let scalar = lab.tensor(F32, &[], &[0.0]);
    lab.refused(ops::aclnnGlu, &[A::T(scalar), A::I(0), A::T(scalar)], "no halves");
}

#[test]
fn prelu_has_a_slope_a_channel() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[2, 2, 2], &[-1.0, 2.0, -3.0, 4.0, -5.0, -6.0, 7.0, -8.0]);
    let (weight, out) = (lab.tensor(F32, &[2], &[0.5, 0.25]), lab.room(F32, &[2, 2, 2]));
    lab.ok(ops::aclnnPrelu, &[A::T(x), A::T(weight), A::T(out)]);
    assert_eq!(lab.read(&out), [-0.5, 2.0, -0.75, 4.0, -2.5, -3.0, 7.0, -2.0]);
    let (g, out_weight) = (lab.tensor(F32, &[2, 2, 2], &[1.0; 8]), lab.room(F32, &[2]));
    lab.ok(ops::aclnnPreluBackward, &[A::T(g), A::T(x), A::T(weight), A::T(out), A::T(out_weight)]);
    assert_eq!(lab.read(&out), [0.5, 1.0, 0.25, 1.0, 0.5, 0.5, 1.0, 0.25]);
    assert_eq!(lab.read(&out_weight), [-12.0, -11.0]);
    let (single, out_single) = (lab.tensor(F32, &[1], &[2.0]), lab.room(F32, &[1]));
    lab.ok(ops::aclnnPreluBackward, &[A::T(g), A::T(x), A::T(single), A::T(out), A::T(out_single)]);
    assert_eq!(lab.read(&out_single), [-23.0]);
    let (alone, result) = (lab.tensor(F32, &[], &[-3.0]), lab.room(F32, &[]));
    lab.ok(ops::aclnnPrelu, &[A::T(alone), A::T(single), A::T(result)]);
    assert_eq!(lab.read(&result), [-6.0]);
    let three = lab.tensor(F32, &[3], &[1.0; 3]);
    lab.refused(ops::aclnnPrelu, &[A::T(x), A::T(three), A::T(out)], "do not broadcast");
}

#[test]
fn log_sigmoid_leaves_a_buffer_where_there_is_room() {
    let mut lab = Lab::new();
    let x = lab.tensor(F32, &[3], &[-2.0, 0.0, 200.0]);
    let (out, buffer, none) = (lab.room(F32, &[3]), lab.room(F32, &[3]), lab.room(F32, &[0]));
    let want = [-(2f64.exp().ln_1p()), -(2f64.ln()), 0.0];
    for buffer in [buffer, none] {
        lab.ok(ops::aclnnLogSigmoidForward, &[A::T(x), A::T(out), A::T(buffer)]);
        close(&lab.read(&out), &want, 1e-6);
    }
    close(&lab.read(&buffer), &[(-2f64).exp(), 1.0, 0.0], 1e-6);
}
