//! Operators over lists, and steps of optimizers.

use acl_abi::{DataType, OpId, ops};

use super::super::testing::{A, Lab, Lay, Noise, close, whole};
use super::operations::double;

use DataType::{BF16, F16, F32, F64, I64};

/// Two lists of tensors of several shapes and types, as rows of values.
fn lists(lab: &mut Lab) -> (Vec<acl_abi::TensorDesc>, Vec<acl_abi::TensorDesc>) {
    let a = vec![
        lab.tensor(F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        lab.tensor_as(BF16, &[3], &[-1.0, 0.5, 2.0], Lay::Sliced),
        lab.room(F32, &[0]),
        lab.tensor(F64, &[], &[8.0]),
    ];
    let b = vec![
        lab.tensor(F32, &[2, 2], &[4.0, 4.0, 2.0, 2.0]),
        lab.tensor(BF16, &[3], &[2.0, 2.0, -4.0]),
        lab.room(F32, &[0]),
        lab.tensor(F64, &[], &[2.0]),
    ];
    (a, b)
}

#[test]
fn lists_repeat_the_operation_on_each_element() {
    type Case = (OpId, bool, Vec<A>, fn(f64, f64) -> f64);
    let mut lab = Lab::new();
    let one = |lab: &mut Lab, v: f64| A::T(lab.tensor(F32, &[1], &[v]));
    let (two, zero_dim) = (one(&mut lab, 2.0), A::T(lab.tensor(F32, &[], &[2.0])));
    let cases: Vec<Case> = vec![
        (ops::aclnnForeachAddList, true, vec![two.clone()], |a, b| a + 2.0 * b),
        (ops::aclnnForeachAddListV2, true, vec![double(0.5)], |a, b| a + 0.5 * b),
        (ops::aclnnForeachSubList, true, vec![two.clone()], |a, b| a - 2.0 * b),
        (ops::aclnnForeachSubListV2, true, vec![whole(1)], |a, b| a - b),
        (ops::aclnnForeachMulList, true, vec![], |a, b| a * b),
        (ops::aclnnForeachDivList, true, vec![], |a, b| a / b),
        (ops::aclnnForeachMaximumList, true, vec![], f64::max),
        (ops::aclnnForeachMinimumList, true, vec![], f64::min),
        (ops::aclnnForeachLerpScalar, true, vec![double(0.25)], |a, b| a + 0.25 * (b - a)),
        (ops::aclnnForeachAddScalar, false, vec![zero_dim.clone()], |a, _| a + 2.0),
        (ops::aclnnForeachAddScalarV2, false, vec![double(2.0)], |a, _| a + 2.0),
        (ops::aclnnForeachSubScalar, false, vec![two.clone()], |a, _| a - 2.0),
        (ops::aclnnForeachSubScalarV2, false, vec![double(2.0)], |a, _| a - 2.0),
        (ops::aclnnForeachMulScalar, false, vec![two.clone()], |a, _| a * 2.0),
        (ops::aclnnForeachMulScalarV2, false, vec![double(2.0)], |a, _| a * 2.0),
        (ops::aclnnForeachDivScalar, false, vec![two.clone()], |a, _| a / 2.0),
        (ops::aclnnForeachDivScalarV2, false, vec![double(2.0)], |a, _| a / 2.0),
        (ops::aclnnForeachMaximumScalarV2, false, vec![double(1.5)], |a, _| a.max(1.5)),
        (ops::aclnnForeachMinimumScalar, false, vec![two.clone()], |a, _| a.min(2.0)),
        (ops::aclnnForeachPowScalarV2, false, vec![double(2.0)], |a, _| a * a),
        (ops::aclnnForeachNeg, false, vec![], |a, _| -a),
        (ops::aclnnForeachAbs, false, vec![], |a, _| a.abs()),
        (ops::aclnnForeachReciprocal, false, vec![], |a, _| 1.0 / a),
        (ops::aclnnForeachRoundOffNumberV2, false, vec![whole(2)], |a, _| a.floor()),
        (ops::aclnnForeachRoundOffNumber, false, vec![two.clone()], |a, _| a.floor()),
        (ops::aclnnForeachRoundOffNumberV2, false, vec![whole(3)], |a, _| a.ceil()),
        (ops::aclnnForeachCopy, false, vec![], |a, _| a),
    ];
    for (op, binary, rest, reference) in cases {
        let (a, b) = lists(&mut lab);
        let before: Vec<(Vec<f64>, Vec<f64>)> = a.iter().zip(&b).map(|(a, b)| (lab.read(a), lab.read(b))).collect();
        let out: Vec<_> = a.iter().map(|t| lab.room(t.dtype, t.dims())).collect();
        for out in [out, a.clone()] {
            let mut args = vec![A::List(a.clone())];
            args.extend(binary.then(|| A::List(b.clone())));
            args.extend(rest.iter().cloned());
            args.push(A::List(out.clone()));
            lab.ok(op, &args);
            for (out, (a, b)) in out.iter().zip(&before) {
                let want: Vec<f64> = a.iter().zip(b).map(|(a, b)| reference(*a, *b)).collect();
                let got = lab.read(out);
                assert!(
                    got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 4e-3 * w.abs()),
                    "{} {got:?} {want:?}",
                    op.name()
                );
            }
        }
    }
    let (a, b) = lists(&mut lab);
    lab.refused(
        ops::aclnnForeachMulList,
        &[A::List(a[..2].to_vec()), A::List(b.clone()), A::List(a.clone())],
        "2 elements",
    );
    lab.refused(ops::aclnnForeachRoundOffNumberV2, &[A::List(a.clone()), whole(4), A::List(a.clone())], "roundMode: 4");
    lab.ok(ops::aclnnForeachMulList, &[A::List(vec![]), A::List(vec![]), A::List(vec![])]);
    lab.ok(ops::aclnnForeachPowScalarV2, &[A::List(vec![]), double(2.0), A::List(vec![])]);
    lab.ok(ops::aclnnForeachZeroInplace, &[A::List(a.clone())]);
    assert!(a.iter().all(|t| lab.read(t).iter().all(|v| *v == 0.0)));
}

#[test]
fn lists_of_factors_have_one_an_element() {
    let mut lab = Lab::new();
    let x = vec![lab.tensor(F32, &[2], &[1.0, 2.0]), lab.tensor(F32, &[1], &[3.0])];
    let (t1, t2) = (
        vec![lab.tensor(F32, &[2], &[4.0, 6.0]), lab.tensor(F32, &[1], &[8.0])],
        vec![lab.tensor(F32, &[2], &[2.0, 2.0]), lab.tensor(F32, &[1], &[4.0])],
    );
    let out = vec![lab.room(F32, &[2]), lab.room(F32, &[1])];
    let factors = A::T(lab.tensor(F32, &[2], &[10.0, 100.0]));
    let read = |lab: &Lab| [lab.read(&out[0]), lab.read(&out[1])].concat();
    let lists =
        |rest: A| vec![A::List(x.clone()), A::List(t1.clone()), A::List(t2.clone()), rest, A::List(out.clone())];
    lab.ok(ops::aclnnForeachAddcmulScalarList, &lists(factors.clone()));
    assert_eq!(read(&lab), [81.0, 122.0, 3203.0]);
    lab.ok(ops::aclnnForeachAddcdivScalarList, &lists(factors));
    assert_eq!(read(&lab), [21.0, 32.0, 203.0]);
    lab.ok(ops::aclnnForeachAddcmulScalarV2, &lists(double(2.0)));
    assert_eq!(read(&lab), [17.0, 26.0, 67.0]);
    let single = A::T(lab.tensor(F32, &[1], &[2.0]));
    lab.ok(ops::aclnnForeachAddcdivScalar, &lists(single));
    assert_eq!(read(&lab), [5.0, 8.0, 7.0]);
}

#[test]
fn norms_of_every_order() {
    let mut lab = Lab::new();
    let x = vec![lab.tensor(F32, &[2, 2], &[3.0, -4.0, 0.0, 0.0]), lab.tensor(F16, &[1], &[-2.0]), lab.room(F32, &[0])];
    let out: Vec<_> = x.iter().map(|t| lab.room(t.dtype, &[])).collect();
    for (p, want) in
        [(2.0, [5.0, 2.0, 0.0]), (1.0, [7.0, 2.0, 0.0]), (f64::INFINITY, [4.0, 2.0, 0.0]), (0.0, [2.0, 1.0, 0.0])]
    {
        lab.ok(ops::aclnnForeachNorm, &[A::List(x.clone()), double(p), A::List(out.clone())]);
        let got: Vec<f64> = out.iter().flat_map(|t| lab.read(t)).collect();
        assert_eq!(got, want, "order {p}");
    }
}

#[test]
fn sums_of_products_and_quotients_and_steps_between() {
    let mut lab = Lab::new();
    let (x, a, b) =
        (lab.tensor(F32, &[2, 1], &[1.0, 2.0]), lab.tensor(F32, &[2], &[6.0, 8.0]), lab.tensor(F32, &[], &[2.0]));
    let out = lab.room(F32, &[2, 2]);
    lab.ok(ops::aclnnAddcmul, &[A::T(x), A::T(a), A::T(b), double(0.5), A::T(out)]);
    assert_eq!(lab.read(&out), [7.0, 9.0, 8.0, 10.0]);
    lab.ok(ops::aclnnAddcdiv, &[A::T(x), A::T(a), A::T(b), double(-1.0), A::T(out)]);
    assert_eq!(lab.read(&out), [-2.0, -3.0, -1.0, -2.0]);
    let (kept, dropped) = (lab.tensor(DataType::U8, &[2], &[1.0, 0.0]), lab.room(F32, &[2]));
    lab.ok(ops::aclnnMaskedScale, &[A::T(a), A::T(kept), A::F(1.25), A::T(dropped)]);
    assert_eq!(lab.read(&dropped), [7.5, 0.0]);
    let ints = lab.tensor(I64, &[2], &[3.0, 4.0]);
    lab.ok(ops::aclnnInplaceAddcmul, &[A::T(ints), A::T(ints), A::T(ints), whole(2)]);
    assert_eq!(lab.read(&ints), [21.0, 36.0]);
    let (start, end) = (lab.tensor(F32, &[2], &[0.0, 10.0]), lab.tensor(F32, &[2], &[4.0, 20.0]));
    let weight = lab.tensor(F32, &[2], &[0.25, 0.75]);
    lab.ok(ops::aclnnLerp, &[A::T(start), A::T(end), A::T(weight), A::T(start)]);
    assert_eq!(lab.read(&start), [1.0, 17.5]);
    lab.ok(ops::aclnnInplaceLerps, &[A::T(start), A::T(end), double(1.0)]);
    assert_eq!(lab.read(&start), [4.0, 20.0]);
}

/// AdamW as its paper has it, in double precision: `[parameter, m, v, largest v]` after steps with these gradients.
fn adam_w(start: f64, gradients: &[f64], [lr, b1, b2, decay, eps]: [f64; 5], amsgrad: bool) -> [f64; 4] {
    let [mut p, mut m, mut v, mut largest] = [start, 0.0, 0.0, 0.0f64];
    for (t, g) in gradients.iter().enumerate() {
        let t = t as i32 + 1;
        p -= lr * decay * p;
        m = b1 * m + (1.0 - b1) * g;
        v = b2 * v + (1.0 - b2) * g * g;
        largest = largest.max(v);
        let second = if amsgrad { largest } else { v } / (1.0 - b2.powi(t));
        p -= lr * (m / (1.0 - b1.powi(t))) / (second.sqrt() + eps);
    }
    [p, m, v, largest]
}

#[test]
fn steps_of_adam_w() {
    let numbers = [0.1, 0.9, 0.99, 0.05, 1e-8];
    let [lr, b1, b2, decay, eps] = numbers;
    let mut noise = Noise::new(6);
    let (starts, gradients) = (noise.values(600), [noise.values(600), noise.values(600), noise.values(600)]);
    for (dtype, tolerance) in [(F32, 1e-5), (F64, 1e-12)] {
        for (amsgrad, maximize) in [(false, false), (true, true)] {
            let sign = if maximize { -1.0 } else { 1.0 };
            let mut lab = Lab::new();
            let states: Vec<_> = (0..4)
                .map(|i| lab.tensor(dtype, &[600], &if i == 0 { starts.clone() } else { vec![0.0; 600] }))
                .collect();
            let other: Vec<_> = (0..4)
                .map(|i| lab.tensor(dtype, &[600], &if i == 0 { starts.clone() } else { vec![0.0; 600] }))
                .collect();
            for (t, g) in gradients.iter().enumerate() {
                let g = lab.tensor_as(dtype, &[600], g, Lay::Sliced);
                let one = |lab: &mut Lab, v: f64| A::T(lab.tensor(F64, &[1], &[v]));
                let step = A::T(lab.tensor(I64, &[1], &[t as f64]));
                let [a, b] = [amsgrad, maximize].map(A::B);
                let largest = if amsgrad { A::T(states[3]) } else { A::Null };
                lab.ok(
                    ops::aclnnApplyAdamWV2,
                    &[
                        A::T(states[0]),
                        A::T(states[1]),
                        A::T(states[2]),
                        largest,
                        A::T(g),
                        step,
                        A::F(lr),
                        A::F(b1),
                        A::F(b2),
                        A::F(decay),
                        A::F(eps),
                        a.clone(),
                        b.clone(),
                    ],
                );
                let largest = if amsgrad { A::T(other[3]) } else { A::Null };
                let powers = [b1.powi(t as i32), b2.powi(t as i32), lr, decay, b1, b2, eps].map(|v| one(&mut lab, v));
                let mut args = vec![A::T(other[0]), A::T(other[1]), A::T(other[2])];
                args.extend(powers);
                args.extend([A::T(g), largest, a, b]);
                lab.ok(ops::aclnnApplyAdamW, &args);
            }
            for states in [states, other] {
                let compared = if amsgrad { 4 } else { 3 };
                for (which, state) in states[..compared].iter().enumerate() {
                    let got = lab.read(state);
                    let want: Vec<f64> = (0..600)
                        .map(|i| adam_w(starts[i], &gradients.each_ref().map(|g| sign * g[i]), numbers, amsgrad)[which])
                        .collect();
                    close(&got, &want, tolerance);
                }
            }
        }
    }
}

#[test]
fn a_step_of_adam() {
    for nesterov in [false, true] {
        let mut lab = Lab::new();
        let [p, m, v, g] = [1.0, 0.5, 0.25, 2.0].map(|x| lab.tensor(F32, &[1], &[x]));
        let numbers = [0.81, 0.98, 0.1, 0.9, 0.99, 1e-3].map(|x| A::T(lab.tensor(F32, &[], &[x])));
        let mut args = vec![A::T(p), A::T(m), A::T(v)];
        args.extend(numbers);
        args.extend([A::T(g), A::B(false), A::B(nesterov)]);
        lab.ok(ops::aclnnApplyAdam, &args);
        let (m1, v1) = (0.9 * 0.5 + 0.1 * 2.0, 0.99 * 0.25 + 0.01 * 4.0f64);
        let rate = 0.1 * (1.0 - 0.98f64).sqrt() / (1.0 - 0.81);
        let ahead = if nesterov { 0.9 * m1 + 0.1 * 2.0 } else { m1 };
        close(
            &[lab.read(&p), lab.read(&m), lab.read(&v)].concat(),
            &[1.0 - rate * ahead / (v1.sqrt() + 1e-3), m1, v1],
            1e-6,
        );
    }
}

#[test]
fn steps_of_gradient_descent() {
    for (momentum, dampening, nesterov, maximize, first, scale) in [
        (0.0, 0.0, false, false, true, 1.0),
        (0.0, 0.0, false, true, false, 4.0),
        (0.9, 0.2, false, false, false, 1.0),
        (0.9, 0.2, false, false, true, 2.0),
        (0.9, 0.0, true, true, false, 1.0),
    ] {
        let mut lab = Lab::new();
        let (p, g, b) = (
            lab.tensor(F32, &[2], &[1.0, -2.0]),
            lab.tensor(F32, &[2], &[4.0, 8.0]),
            lab.tensor(F32, &[2], &[0.5, 0.25]),
        );
        let scaled = if scale == 1.0 { A::Null } else { A::T(lab.tensor(F32, &[1], &[scale])) };
        let buffers = if momentum == 0.0 { vec![] } else { vec![b] };
        lab.ok(
            ops::aclnnFusedSgd,
            &[
                A::List(vec![p]),
                A::List(vec![g]),
                A::List(buffers),
                scaled,
                A::F(0.1),
                A::F(momentum),
                A::F(0.5),
                A::F(dampening),
                A::B(nesterov),
                A::B(maximize),
                A::B(first),
            ],
        );
        let (mut want_p, mut want_b) = (vec![], vec![]);
        for (p, g, b) in [(1.0, 4.0, 0.5), (-2.0, 8.0, 0.25)] {
            let g = if maximize { -g } else { g } / scale + 0.1 * p;
            let buffer = if momentum == 0.0 {
                b
            } else if first {
                g
            } else {
                momentum * b + (1.0 - dampening) * g
            };
            let ahead = if momentum == 0.0 {
                g
            } else if nesterov {
                g + momentum * buffer
            } else {
                buffer
            };
            want_p.push(p - 0.5 * ahead);
            want_b.push(buffer);
        }
        close(&lab.read(&p), &want_p, 1e-6);
        close(&lab.read(&b), &want_b, 1e-6);
        close(&lab.read(&g), &[4.0 / scale, 8.0 / scale], 1e-6);
    }
    let mut lab = Lab::new();
    let p = lab.tensor(F32, &[1], &[1.0]);
    let list = || A::List(vec![p]);
    let flags = || vec![A::B(false), A::B(false), A::B(false)];
    let mut args = vec![list(), list(), A::List(vec![]), A::Null, A::F(0.0), A::F(0.9), A::F(0.1), A::F(0.0)];
    args.extend(flags());
    lab.refused(ops::aclnnFusedSgd, &args, "momentumBufferListOptionalRef: 0 elements, but paramsRef has 1");
}

#[test]
fn the_loss_scale_shrinks_after_infinities_and_grows_without() {
    let mut lab = Lab::new();
    let grads = vec![lab.tensor(F32, &[2], &[4.0, 8.0]), lab.tensor(F16, &[1], &[2.0])];
    let (found, inverse) = (lab.tensor(F32, &[], &[0.0]), lab.tensor(F32, &[], &[0.5]));
    let args = [A::List(grads.clone()), A::T(found), A::T(inverse)];
    lab.ok(ops::aclnnForeachNonFiniteCheckAndUnscale, &args);
    assert_eq!((lab.read(&grads[0]), lab.read(&grads[1]), lab.read(&found)), (vec![2.0, 4.0], vec![1.0], vec![0.0]));
    let bad = lab.tensor(F16, &[2], &[1.0, f64::INFINITY]);
    lab.ok(ops::aclnnForeachNonFiniteCheckAndUnscale, &[A::List(vec![bad, grads[1]]), A::T(found), A::T(inverse)]);
    assert_eq!((lab.read(&found), lab.read(&bad)), (vec![1.0], vec![0.5, f64::INFINITY]));
    for (scale, steps, found, want_scale, want_steps) in [
        (8.0, 1.0, 0.0, 8.0, 2.0),
        (8.0, 2.0, 0.0, 16.0, 0.0),
        (8.0, 2.0, 1.0, 4.0, 0.0),
        (3e38, 2.0, 0.0, f64::from(3e38f32), 0.0),
    ] {
        let (s, f) = (lab.tensor(F32, &[], &[scale]), lab.tensor(F32, &[], &[found]));
        let t = lab.tensor(DataType::I32, &[], &[steps]);
        lab.ok(ops::aclnnAmpUpdateScale, &[A::T(s), A::T(t), A::T(f), A::F(2.0), A::F(0.5), A::I(3), A::T(s), A::T(t)]);
        assert_eq!((lab.read(&s), lab.read(&t)), (vec![want_scale], vec![want_steps]));
    }
}
