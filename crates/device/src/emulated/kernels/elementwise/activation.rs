//! Activations.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Outcome, ensure};
use super::super::view::View;
use super::number::{Number, Real};
use super::{Operand, operators, real_of};

operators! {
    number1 relu => aclnnRelu aclnnInplaceRelu;
    real1 Real::sigmoid => aclnnSigmoid aclnnInplaceSigmoid;
    real1 silu => aclnnSilu;
    real1 gelu => aclnnGelu;
    real gelu_by => aclnnGeluV2;
    real1 fast_gelu => aclnnFastGelu;
    custom prelu => aclnnPrelu;
}

/// `max(x, 0)`; NaN of NaN.
fn relu<T: Number>(x: T) -> T {
    x.larger(T::default())
}

/// `x · sigmoid(x)`.
pub fn silu<T: Real>(x: T) -> T {
    x / (T::real(1.0) + (-x).exp())
}

/// `x · Φ(x)`, with the normal distribution's Φ.
pub fn gelu<T: Real>(x: T) -> T {
    x * T::real(0.5) * (T::real(1.0) + (x * T::real(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// The inner argument of [`gelu_tanh`]: `√(2/π)·(x + 0.044715·x³)`.
pub fn gelu_tanh_inner<T: Real>(x: T) -> T {
    T::real(std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) * (x + T::real(0.044715) * (x * x * x))
}

/// GELU with the cumulative distribution approximated by a tanh.
pub fn gelu_tanh<T: Real>(x: T) -> T {
    T::real(0.5) * x * (T::real(1.0) + gelu_tanh_inner(x).tanh())
}

/// GELU; `approximate` 0: exact, otherwise by tanh.
fn gelu_by<T: Real>([x, approximate]: [T; 2]) -> T {
    if approximate == T::default() { gelu(x) } else { gelu_tanh(x) }
}

/// Exponent of the logistic function that stands for Φ in [`fast_gelu`].
pub const FAST_GELU_SLOPE: f64 = 1.702;

/// `x · sigmoid(1.702·x)`.
pub fn fast_gelu<T: Real>(x: T) -> T {
    x * (T::real(FAST_GELU_SLOPE) * x).sigmoid()
}

/// `self` where positive, `weight · self` elsewhere; a weight for every index of dimension 1, or one for all.
fn prelu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn leaky<T: Real>([x, slope]: [T; 2]) -> T {
        if x > T::default() { x } else { slope * x }
    }
    let (x, weight, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    let operands = [Operand::tensor(x), Operand::tensor(per_channel(&weight, x.ndim())?)];
    real_of(machine, &out, &operands, "out", leaky, leaky)
}

/// `weight`, one-dimensional, with the dimensions that broadcast it along dimension 1 of a tensor with `ndim` of them.
fn per_channel(weight: &View, ndim: usize) -> Outcome<View> {
    if weight.elements() == 1 {
        return Ok(*weight);
    }
    ensure!(weight.ndim() == 1, "weight: shape {:?}, want one dimension", weight.dims());
    Ok((2..ndim).fold(*weight, |weight, _| weight.unsqueeze(weight.ndim())))
}
