//! Derivatives of activations: the gradient of an input from that of the output.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::Outcome;
use super::super::nest::{load_all, store_all};
use super::super::sized;
use super::super::view::View;
use super::activation::{FAST_GELU_SLOPE, gelu_tanh_inner, halves, log_one_plus_exp, per_channel, silu};
use super::number::{Number, Real};
use super::{Operand, check_shape, operators, real_of};

operators! {
    number threshold => aclnnThresholdBackward;
    real sigmoid => aclnnSigmoidBackward;
    real tanh => aclnnTanhBackward;
    real silu_grad => aclnnSiluBackward;
    real gelu => aclnnGeluBackward;
    real gelu_by => aclnnGeluBackwardV2;
    real fast_gelu => aclnnFastGeluBackward;
    real mish => aclnnMishBackward;
    custom log_sigmoid => aclnnLogSigmoidBackward;
    real softplus => aclnnSoftplusBackward;
    real leaky_relu => aclnnLeakyReluBackward;
    real elu => aclnnEluBackward;
    real hard_swish => aclnnHardswishBackward aclnnHardswishBackwardV2;
    real hard_sigmoid => aclnnHardsigmoidBackward;
    real hard_tanh => aclnnHardtanhBackward;
    real shrink => aclnnHardshrinkBackward aclnnSoftshrinkBackward;
    real logit => aclnnLogitGrad;
    custom prelu => aclnnPreluBackward;
    custom glu => aclnnGluBackward;
    custom swi_glu => aclnnSwiGluGrad;
    custom ge_glu => aclnnGeGluV3Backward;
}

fn one<T: Real>() -> T {
    T::real(1.0)
}

fn threshold<T: Number>([gradient, x, threshold]: [T; 3]) -> T {
    if x <= threshold { T::default() } else { gradient }
}

fn sigmoid<T: Real>([gradient, y]: [T; 2]) -> T {
    gradient * (one::<T>() - y) * y
}

fn tanh<T: Real>([gradient, y]: [T; 2]) -> T {
    gradient * (one::<T>() - y * y)
}

/// Derivative of `x·sigmoid(x)`.
fn silu_slope<T: Real>(x: T) -> T {
    let s = x.sigmoid();
    s * (one::<T>() + x * (one::<T>() - s))
}

fn silu_grad<T: Real>([gradient, x]: [T; 2]) -> T {
    gradient * silu_slope(x)
}

/// Derivative of `x·Φ(x)`.
fn gelu_slope<T: Real>(x: T) -> T {
    const FRAC_1_SQRT_TAU: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 / 2.0;
    let cumulative = T::real(0.5) * (one::<T>() + (x * T::real(std::f64::consts::FRAC_1_SQRT_2)).erf());
    cumulative + x * (x * x * T::real(-0.5)).exp() * T::real(FRAC_1_SQRT_TAU)
}

fn gelu<T: Real>([gradient, x]: [T; 2]) -> T {
    gradient * gelu_slope(x)
}

/// Derivative of the tanh approximation.
fn gelu_tanh_slope<T: Real>(x: T) -> T {
    let t = gelu_tanh_inner(x).tanh();
    let inner_slope = T::real(std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2)
        * (one::<T>() + T::real(3.0 * 0.044715) * x * x);
    T::real(0.5) * (one::<T>() + t) + T::real(0.5) * x * (one::<T>() - t * t) * inner_slope
}

fn gelu_by<T: Real>([gradient, x, approximate]: [T; 3]) -> T {
    gradient * if approximate == T::default() { gelu_slope(x) } else { gelu_tanh_slope(x) }
}

fn fast_gelu<T: Real>([gradient, x]: [T; 2]) -> T {
    let slope = T::real(FAST_GELU_SLOPE);
    let s = (slope * x).sigmoid();
    gradient * (s + slope * x * s * (one::<T>() - s))
}

fn mish<T: Real>([gradient, x]: [T; 2]) -> T {
    let t = x.by(|x| libm::tanh(log_one_plus_exp(x)));
    gradient * (t + x * x.sigmoid() * (one::<T>() - t * t))
}

/// The buffer of the forward pass, which may have any shape, is not needed.
fn log_sigmoid(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn slope<T: Real>([gradient, x]: [T; 2]) -> T {
        gradient * (-x).sigmoid()
    }
    let (operands, out) = ([args.tensor(0)?, args.tensor(1)?].map(Operand::tensor), args.output(3)?);
    real_of(machine, &out, &operands, "gradInput", slope, slope)
}

fn softplus<T: Real>([gradient, x, beta, threshold]: [T; 4]) -> T {
    if x * beta > threshold { gradient } else { gradient * (x * beta).sigmoid() }
}

/// The sign of the result is that of the input, so that either will do.
fn leaky_relu<T: Real>([gradient, x, slope, _]: [T; 4]) -> T {
    if x > T::default() { gradient } else { gradient * slope }
}

fn elu<T: Real>([gradient, alpha, scale, input_scale, is_result, x]: [T; 6]) -> T {
    if x > T::default() {
        return gradient * scale;
    }
    let rise = alpha * scale;
    gradient * input_scale * if is_result.holds() { x + rise } else { rise * (x * input_scale).exp() }
}

fn hard_swish<T: Real>([gradient, x]: [T; 2]) -> T {
    if x <= T::real(-3.0) {
        T::default()
    } else if x < T::real(3.0) {
        gradient * (x / T::real(3.0) + T::real(0.5))
    } else {
        gradient
    }
}

fn hard_sigmoid<T: Real>([gradient, x]: [T; 2]) -> T {
    if x > T::real(-3.0) && x < T::real(3.0) { gradient / T::real(6.0) } else { T::default() }
}

fn hard_tanh<T: Real>([gradient, x, low, high]: [T; 4]) -> T {
    if x <= low || x >= high { T::default() } else { gradient }
}

fn shrink<T: Real>([gradient, x, bound]: [T; 3]) -> T {
    if x >= -bound && x <= bound { T::default() } else { gradient }
}

/// 0 where the forward pass moved `x` away from the ends; NaN outside of 0..1 where it did not.
fn logit<T: Real>([x, gradient, eps]: [T; 3]) -> T {
    let slope = gradient / (x * (one::<T>() - x));
    if eps < T::default() {
        return if x < T::default() || x > one() { T::real(f64::NAN) } else { slope };
    }
    if x < eps || x > one::<T>() - eps { T::default() } else { slope }
}

/// `gradInput = gradOutput`, times the weight where `self` is not positive; `gradWeight[c]` sums `gradOutput · self` over
/// those elements of channel `c`, in double precision.
fn prelu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn slope<T: Real>([gradient, x, weight]: [T; 3]) -> T {
        if x > T::default() { gradient } else { gradient * weight }
    }
    let (gradient, x, weight) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (out, out_weight) = (args.output(3)?, args.output(4)?);
    check_shape("self", &x, gradient.dims())?;
    check_shape("gradWeight", &out_weight, weight.dims())?;
    let channels = weight.elements();
    let inner: usize = x.dims().iter().skip(2).product();
    let weight_of = |index: usize| if channels == 1 { 0 } else { index / inner.max(1) % channels };
    let (mut operand, mut result) =
        (std::mem::take(&mut machine.scratch.operand), std::mem::take(&mut machine.scratch.result));
    let mut sums = vec![0f64; channels];
    let mut sum = || -> Outcome {
        let (values, gradients) = (sized(&mut operand, x.elements())?, sized(&mut result, x.elements())?);
        load_all(machine, &x, values)?;
        load_all(machine, &gradient, gradients)?;
        for (i, (x, gradient)) in values.iter().zip(gradients).enumerate() {
            if *x <= 0.0 {
                sums[weight_of(i)] += f64::from(*x) * f64::from(*gradient);
            }
        }
        Ok(())
    };
    let summed = sum();
    (machine.scratch.operand, machine.scratch.result) = (operand, result);
    summed?;
    let operands = [gradient, x, per_channel(&weight, x.ndim())].map(Operand::tensor);
    real_of(machine, &out, &operands, "gradInput", slope, slope)?;
    store_all(machine, &out_weight, |from, piece: &mut [f64]| piece.copy_from_slice(&sums[from..from + piece.len()]))
}

/// Runs `left` into the first half of `out` along the dimension at `position` and `right` into the second. Operands may be
/// what `out` overwrites only if they are not its halves exchanged.
fn into_halves(
    args: &Args<'_>,
    machine: &mut Machine,
    (position, out): (usize, View),
    mut store: impl FnMut(&mut Machine, &View, bool) -> Outcome,
) -> Outcome {
    let (first, second, _) = halves(args, position, &out)?;
    store(machine, &first, true)?;
    store(machine, &second, false)
}

/// Gradients of `a · sigmoid(b)`.
fn glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn left<T: Real>([gradient, _, b]: [T; 3]) -> T {
        gradient * b.sigmoid()
    }
    fn right<T: Real>([gradient, a, b]: [T; 3]) -> T {
        let s = b.sigmoid();
        gradient * a * s * (one::<T>() - s)
    }
    let (gradient, x, out) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    let (a, b, _) = halves(args, 2, &x)?;
    let operands = [gradient, a, b].map(Operand::tensor);
    into_halves(args, machine, (2, out), |machine, half, first| match first {
        true => real_of(machine, half, &operands, "out", left, left),
        false => real_of(machine, half, &operands, "out", right, right),
    })
}

/// Gradients of `silu(a) · b`.
fn swi_glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn left<T: Real>([gradient, a, b]: [T; 3]) -> T {
        gradient * b * silu_slope(a)
    }
    fn right<T: Real>([gradient, a, _]: [T; 3]) -> T {
        gradient * silu(a)
    }
    let (gradient, x, out) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    let (a, b, _) = halves(args, 2, &x)?;
    let operands = [gradient, a, b].map(Operand::tensor);
    into_halves(args, machine, (2, out), |machine, half, first| match first {
        true => real_of(machine, half, &operands, "out", left, left),
        false => real_of(machine, half, &operands, "out", right, right),
    })
}

/// Gradients of a half of `self` times the GELU of the other, which the forward pass kept.
fn ge_glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn factor<T: Real>([gradient, gelu]: [T; 2]) -> T {
        gradient * gelu
    }
    fn gate<T: Real>([gradient, factor, x, approximate]: [T; 4]) -> T {
        gelu_by([gradient * factor, x, approximate])
    }
    let (gradient, x, activated, out) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.output(6)?);
    let (left, right, _) = halves(args, 3, &x)?;
    let (approximate, gate_first) = (Operand::number(args.int(4)? as f64), args.int(5)? != 0);
    let (gated, other) = if gate_first { (left, right) } else { (right, left) };
    into_halves(args, machine, (3, out), |machine, half, first| {
        let gradient = Operand::tensor(gradient);
        if first == gate_first {
            let operands = [gradient, Operand::tensor(other), Operand::tensor(gated), approximate];
            return real_of(machine, half, &operands, "gradInput", gate, gate);
        }
        real_of(machine, half, &[gradient, Operand::tensor(activated)], "gradInput", factor, factor)
    })
}
