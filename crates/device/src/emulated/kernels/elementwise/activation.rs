//! Activations.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Fault, Outcome, ensure};
use super::super::view::View;
use super::arithmetic::add;
use super::number::{Number, Real};
use super::{Operand, operators, real_of};

operators! {
    number1 relu => aclnnRelu aclnnInplaceRelu;
    exact add_relu => aclnnAddRelu aclnnInplaceAddRelu;
    real1 Real::sigmoid => aclnnSigmoid aclnnInplaceSigmoid aclnnForeachSigmoid;
    real1 silu => aclnnSilu;
    real1 gelu => aclnnGelu;
    real gelu_by => aclnnGeluV2;
    real1 fast_gelu => aclnnFastGelu;
    real1 mish => aclnnMish aclnnInplaceMish;
    real1 log_sigmoid => aclnnLogSigmoid;
    custom log_sigmoid_forward => aclnnLogSigmoidForward;
    real softplus => aclnnSoftplus;
    real leaky_relu => aclnnLeakyRelu aclnnInplaceLeakyRelu;
    real elu => aclnnElu aclnnInplaceElu;
    real celu => aclnnCelu aclnnInplaceCelu;
    real1 hard_swish => aclnnHardswish aclnnInplaceHardswish;
    real1 hard_sigmoid => aclnnHardsigmoid aclnnInplaceHardsigmoid;
    real hard_shrink => aclnnHardshrink;
    real soft_shrink => aclnnSoftshrink;
    number threshold => aclnnThreshold aclnnInplaceThreshold;
    custom prelu => aclnnPrelu;
    custom glu => aclnnGlu;
    custom ge_glu => aclnnGeGluV3;
    custom gelu_mul => aclnnGeluMul;
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

/// `max(a + alpha·b, 0)`.
fn add_relu<T: Number>(operands: [T; 3]) -> T {
    relu(add(operands))
}

/// `ln(1 + eˣ)`, without overflow.
pub fn log_one_plus_exp(x: f64) -> f64 {
    x.larger(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn mish<T: Real>(x: T) -> T {
    x * x.by(|x| libm::tanh(log_one_plus_exp(x)))
}

/// `ln sigmoid(x)`.
fn log_sigmoid<T: Real>(x: T) -> T {
    x.by(|x| -log_one_plus_exp(-x))
}

/// `ln(1 + e^(beta·x)) / beta`; `x` itself where `beta·x` lies above the threshold.
fn softplus<T: Real>([x, beta, threshold]: [T; 3]) -> T {
    let scaled = x * beta;
    if scaled > threshold { x } else { scaled.by(|x| libm::log1p(libm::exp(x))) / beta }
}

fn leaky_relu<T: Real>([x, slope]: [T; 2]) -> T {
    if x > T::default() { x } else { x * slope }
}

/// `scale·x` above 0, `scale·alpha·(e^(input_scale·x) − 1)` below.
fn elu<T: Real>([x, alpha, scale, input_scale]: [T; 4]) -> T {
    if x < T::default() { (x * input_scale).by(libm::expm1) * (alpha * scale) } else { x * scale }
}

fn celu<T: Real>([x, alpha]: [T; 2]) -> T {
    elu([x, alpha, T::real(1.0), T::real(1.0) / alpha])
}

/// `x` moved into 0..6 after adding 3.
fn hard_step<T: Real>(x: T) -> T {
    (x + T::real(3.0)).larger(T::default()).smaller(T::real(6.0))
}

fn hard_swish<T: Real>(x: T) -> T {
    x * hard_step(x) / T::real(6.0)
}

fn hard_sigmoid<T: Real>(x: T) -> T {
    hard_step(x) / T::real(6.0)
}

fn hard_shrink<T: Real>([x, bound]: [T; 2]) -> T {
    if x >= -bound && x <= bound { T::default() } else { x }
}

fn soft_shrink<T: Real>([x, bound]: [T; 2]) -> T {
    if x > bound {
        x - bound
    } else if x < -bound {
        x + bound
    } else {
        // Keeps NaN.
        x * T::default()
    }
}

fn threshold<T: Number>([x, threshold, value]: [T; 3]) -> T {
    if x <= threshold { value } else { x }
}

/// `out = ln sigmoid(self)`; the buffer, where it has room, gets `e^−|self|`, which the gradient does not need here.
fn log_sigmoid_forward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn decay<T: Real>([x]: [T; 1]) -> T {
        (-Number::abs(x)).exp()
    }
    let (x, out, buffer) = (args.tensor(0)?, args.output(1)?, args.optional_output(2)?);
    if let Some(buffer) = buffer.filter(|b| b.dims() == x.dims() && b.start() != out.start()) {
        real_of(machine, &buffer, &[Operand::tensor(x)], "buffer", decay, decay)?;
    }
    real_of(machine, &out, &[Operand::tensor(x)], "out", |[x]| log_sigmoid(x), |[x]| log_sigmoid(x))
}

/// `self` where positive, `weight · self` elsewhere; a weight for every index of dimension 1, or one for all.
fn prelu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, weight, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    let operands = [Operand::tensor(x), Operand::tensor(per_channel(&weight, x.ndim()))];
    real_of(machine, &out, &operands, "out", leaky_relu, leaky_relu)
}

/// `weight`: a single one without dimensions, a one-dimensional one with the dimensions that broadcast it along dimension 1 of a tensor with `ndim` of them.
pub fn per_channel(weight: &View, ndim: usize) -> View {
    if weight.elements() == 1 {
        return weight.single();
    }
    let added = if weight.ndim() == 1 { 2..ndim } else { 0..0 };
    added.fold(*weight, |weight, _| weight.unsqueeze(weight.ndim()))
}

/// The halves of `x` along the dimension at `position`, and that dimension.
pub fn halves(args: &Args<'_>, position: usize, x: &View) -> Outcome<(View, View, usize)> {
    ensure!(x.ndim() > 0, "a tensor without dimensions has no halves");
    let dim = args.dim(position, x.ndim())?;
    let size = x.dim(dim);
    ensure!(size.is_multiple_of(2), "size {size} of dimension {dim} is odd");
    Ok((x.narrow(dim, 0, size / 2), x.narrow(dim, size / 2, size / 2), dim))
}

/// `a · sigmoid(b)` of the halves of `self` along `dim`.
fn glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn gate<T: Real>([a, b]: [T; 2]) -> T {
        a * b.sigmoid()
    }
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    let (a, b, _) = halves(args, 1, &x)?;
    real_of(machine, &out, &[Operand::tensor(a), Operand::tensor(b)], "out", gate, gate)
}

/// The GELU of the first half of `input` along its last dimension times the second.
fn gelu_mul(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn gate<T: Real>([a, b, approximate]: [T; 3]) -> T {
        gelu_by([a, approximate]) * b
    }
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    let last = x.ndim().checked_sub(1).filter(|&dim| x.dim(dim).is_multiple_of(2));
    let Some(dim) = last else { return Err(Fault::new(format!("input: shape {:?} has no halves", x.dims()))) };
    let half = x.dim(dim) / 2;
    let approximate = super::operand(args, 1, None)?;
    let operands = [Operand::tensor(x.narrow(dim, 0, half)), Operand::tensor(x.narrow(dim, half, half)), approximate];
    real_of(machine, &out, &operands, "out", gate, gate)
}

/// One half of `self` along `dim` times the GELU of the other, which is an output too. `approximate`: 0 exact, 1 by tanh;
/// `activateLeft`: whether the first half is the gate.
fn ge_glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn gate<T: Real>([a, gelu]: [T; 2]) -> T {
        a * gelu
    }
    let (x, out, activated) = (args.tensor(0)?, args.output(4)?, args.output(5)?);
    let (left, right, _) = halves(args, 1, &x)?;
    let approximate = args.int(2)?;
    ensure!(matches!(approximate, 0 | 1), "approximate: {approximate} is neither 0 (exact) nor 1 (tanh)");
    let (gated, factor) = if args.int(3)? != 0 { (left, right) } else { (right, left) };
    let operands = [Operand::tensor(gated), Operand::number(approximate as f64)];
    real_of(machine, &activated, &operands, "outGelu", gelu_by, gelu_by)?;
    real_of(machine, &out, &[Operand::tensor(factor), Operand::tensor(activated)], "out", gate, gate)
}
