//! Losses and their gradients, in double precision, rounded once.
//!
//! `reduction`: 0 none, 1 mean, 2 sum. Operands of the pointwise losses broadcast; without reduction the result has their
//! common shape. A mean over nothing is NaN, as in torch.

use acl_abi::{MAX_DIMS, ops};

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::nest::broadcast_shape;
use super::real::{float, read_as, shaped, write};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnBinaryCrossEntropy, binary_cross_entropy),
    (ops::aclnnBinaryCrossEntropyBackward, binary_cross_entropy_backward),
    (ops::aclnnBinaryCrossEntropyWithLogits, with_logits),
    (ops::aclnnBinaryCrossEntropyWithLogitsBackward, with_logits_backward),
    (ops::aclnnKlDiv, kl_div),
    (ops::aclnnKlDivBackward, kl_div_backward),
    (ops::aclnnL1Loss, l1_loss),
    (ops::aclnnL1LossBackward, l1_loss_backward),
    (ops::aclnnMseLoss, mse_loss),
    (ops::aclnnMseLossBackward, mse_loss_backward),
    (ops::aclnnSmoothL1Loss, smooth_l1_loss),
    (ops::aclnnSmoothL1LossBackward, smooth_l1_loss_backward),
    (ops::aclnnSoftMarginLoss, soft_margin_loss),
    (ops::aclnnSoftMarginLossBackward, soft_margin_loss_backward),
];

/// How a loss becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// It does not.
    None,
    /// Mean.
    Mean,
    /// Sum.
    Sum,
}

impl Reduction {
    /// By number.
    pub fn of(args: &Args<'_>, position: usize) -> Outcome<Self> {
        Ok(match args.int(position)? {
            0 => Self::None,
            1 => Self::Mean,
            2 => Self::Sum,
            kind => return Err(Fault::new(format!("reduction: {kind} is not supported (0 none, 1 mean, 2 sum)"))),
        })
    }
}

/// Tensors that broadcast with each other, as host values of their common shape.
struct Operands {
    dims: [usize; MAX_DIMS],
    ndim: usize,
    values: Vec<Vec<f64>>,
}

impl Operands {
    /// The tensors at `positions`; those that may be null count as ones.
    fn read(args: &Args<'_>, machine: &Machine, must: &[usize], may: &[usize]) -> Outcome<Self> {
        let mut views = Vec::new();
        for &position in must {
            let view = args.tensor(position)?;
            float(&view, args.name(position))?;
            views.push(Some(view));
        }
        for &position in may {
            let view = args.optional(position)?;
            if let Some(view) = &view {
                float(view, args.name(position))?;
            }
            views.push(view);
        }
        // Optional factors fit what the others broadcast to.
        let mut shape: Vec<usize> = Vec::new();
        for view in views[..must.len()].iter().flatten() {
            shape = broadcast_shape(&shape, view.dims())?.dims().to_vec();
        }
        let count: usize = shape.iter().product();
        let mut values = Vec::new();
        for view in views {
            values.push(match view {
                Some(view) => read_as(machine, &view, &shape)?,
                None => vec![1.0; count],
            });
        }
        let mut dims = [0; MAX_DIMS];
        dims[..shape.len()].copy_from_slice(&shape);
        Ok(Self { dims, ndim: shape.len(), values })
    }

    fn dims(&self) -> &[usize] {
        &self.dims[..self.ndim]
    }

    fn at<const N: usize>(&self, index: usize) -> [f64; N] {
        std::array::from_fn(|i| self.values[i][index])
    }

    fn len(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }

    /// `f` of every element, reduced, into the output at `out`.
    fn loss<const N: usize>(
        &self,
        args: &Args<'_>,
        machine: &mut Machine,
        reduction: Reduction,
        out: usize,
        f: impl Fn([f64; N]) -> f64,
    ) -> Outcome {
        let losses: Vec<f64> = (0..self.len()).map(|i| f(self.at(i))).collect();
        store_loss(args, machine, reduction, out, self.dims(), &losses, losses.len() as f64)
    }
}

/// Writes losses of shape `dims`, or one number of them; a mean divides by `total`.
pub fn store_loss(
    args: &Args<'_>,
    machine: &mut Machine,
    reduction: Reduction,
    out: usize,
    dims: &[usize],
    losses: &[f64],
    total: f64,
) -> Outcome {
    let view = args.output(out)?;
    float(&view, args.name(out))?;
    if reduction == Reduction::None {
        shaped(&view, dims, args.name(out))?;
        return write(machine, &view, losses);
    }
    let fits = view.elements() == 1;
    ensure!(fits, "{}: shape {:?}, want one element", args.name(out), view.dims());
    let sum: f64 = losses.iter().sum();
    write(machine, &view, &[if reduction == Reduction::Mean { sum / total } else { sum }])
}

/// Gradients: the first operand is that of the loss, the second the one whose gradient is asked for. `f` is the derivative.
struct Backward {
    operands: Operands,
    factor: f64,
}

impl Backward {
    fn read(args: &Args<'_>, machine: &Machine, must: &[usize], may: &[usize], reduction: Reduction) -> Outcome<Self> {
        let operands = Operands::read(args, machine, must, may)?;
        let factor = if reduction == Reduction::Mean { 1.0 / operands.len() as f64 } else { 1.0 };
        Ok(Self { operands, factor })
    }

    fn store<const N: usize>(
        &self,
        args: &Args<'_>,
        machine: &mut Machine,
        out: usize,
        f: impl Fn([f64; N]) -> f64,
    ) -> Outcome {
        let view: View = args.output(out)?;
        float(&view, args.name(out))?;
        shaped(&view, self.operands.dims(), args.name(out))?;
        let gradients: Vec<f64> = (0..self.operands.len())
            .map(|i| {
                let all: [f64; N] = self.operands.at(i);
                all[0] * f(all) * self.factor
            })
            .collect();
        write(machine, &view, &gradients)
    }
}

/// `self target reduction → out`: `(self − target)²`.
pub fn mse_loss(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let reduction = Reduction::of(args, 2)?;
    Operands::read(args, machine, &[0, 1], &[])?.loss(args, machine, reduction, 3, |[x, t]| (x - t) * (x - t))
}

/// `gradOutput self target reduction → out`.
pub fn mse_loss_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let back = Backward::read(args, machine, &[0, 1, 2], &[], Reduction::of(args, 3)?)?;
    back.store(args, machine, 4, |[_, x, t]| 2.0 * (x - t))
}

/// `self target reduction → out`: `|self − target|`.
pub fn l1_loss(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let reduction = Reduction::of(args, 2)?;
    Operands::read(args, machine, &[0, 1], &[])?.loss(args, machine, reduction, 3, |[x, t]| (x - t).abs())
}

/// −1, 0 or 1; NaN of NaN.
fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// `gradOutput self target reduction → gradInput`.
pub fn l1_loss_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let back = Backward::read(args, machine, &[0, 1, 2], &[], Reduction::of(args, 3)?)?;
    back.store(args, machine, 4, |[_, x, t]| sign(x - t))
}

/// `self target reduction beta → result`: `d²/2β` where `|d| < β`, else `|d| − β/2`, with `d = self − target`.
pub fn smooth_l1_loss(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (reduction, beta) = (Reduction::of(args, 2)?, args.float(3)?);
    Operands::read(args, machine, &[0, 1], &[])?.loss(args, machine, reduction, 4, |[x, t]| {
        let d = (x - t).abs();
        if d < beta { 0.5 * d * d / beta } else { d - 0.5 * beta }
    })
}

/// `gradOut self target reduction beta → gradInput`.
pub fn smooth_l1_loss_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let beta = args.float(4)?;
    let back = Backward::read(args, machine, &[0, 1, 2], &[], Reduction::of(args, 3)?)?;
    back.store(args, machine, 5, |[_, x, t]| if (x - t).abs() < beta { (x - t) / beta } else { sign(x - t) })
}

/// Smallest logarithm of a probability, as torch has it.
const LOG_MIN: f64 = -100.0;

/// `self target weight reduction → out`: `−w·(t·ln x + (1 − t)·ln(1 − x))`, logarithms not below −100.
pub fn binary_cross_entropy(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let reduction = Reduction::of(args, 3)?;
    Operands::read(args, machine, &[0, 1], &[2])?.loss(args, machine, reduction, 4, |[x, t, w]| {
        w * ((t - 1.0) * (1.0 - x).ln().max(LOG_MIN) - t * x.ln().max(LOG_MIN))
    })
}

/// `gradOutput self target weight reduction → out`: `w·(x − t) / max(x·(1 − x), 10⁻¹²)`.
pub fn binary_cross_entropy_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let back = Backward::read(args, machine, &[0, 1, 2], &[3], Reduction::of(args, 4)?)?;
    back.store(args, machine, 5, |[_, x, t, w]| w * (x - t) / ((1.0 - x) * x).max(1e-12))
}

/// `ln(1 + e⁻ˣ)` without overflow.
fn softplus_of_minus(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `self target weight posWeight reduction → out`: `w·((1 − t)·x + (1 + (p − 1)·t)·ln(1 + e⁻ˣ))`.
pub fn with_logits(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let reduction = Reduction::of(args, 4)?;
    Operands::read(args, machine, &[0, 1], &[2, 3])?.loss(args, machine, reduction, 5, |[x, t, w, p]| {
        w * ((1.0 - t) * x + (1.0 + (p - 1.0) * t) * softplus_of_minus(x))
    })
}

/// `gradOutput self target weight posWeight reduction → out`.
pub fn with_logits_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let back = Backward::read(args, machine, &[0, 1, 2], &[3, 4], Reduction::of(args, 5)?)?;
    back.store(args, machine, 6, |[_, x, t, w, p]| {
        let sigmoid = 1.0 / (1.0 + (-x).exp());
        w * ((p * t + 1.0 - t) * sigmoid - p * t)
    })
}

/// `self target reduction logTarget → out`: `t·(ln t − x)`, 0 where `t` is 0; `eᵗ·(t − x)` of logarithms. A `reduction` of
/// 3 divides the sum by the batch.
pub fn kl_div(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let log_target = args.int(3)? != 0;
    let operands = Operands::read(args, machine, &[0, 1], &[])?;
    let f = |[x, t]: [f64; 2]| match log_target {
        true => t.exp() * (t - x),
        false if t > 0.0 || t.is_nan() => t * (t.ln() - x),
        false => 0.0,
    };
    if args.int(2)? == 3 {
        let losses: Vec<f64> = (0..operands.len()).map(|i| f(operands.at(i))).collect();
        let batch = operands.dims().first().copied().unwrap_or(1);
        return store_loss(args, machine, Reduction::Mean, 4, operands.dims(), &losses, batch as f64);
    }
    operands.loss(args, machine, Reduction::of(args, 2)?, 4, f)
}

/// `gradOutput self target reduction logTarget → out`.
pub fn kl_div_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let log_target = args.int(4)? != 0;
    let batched = args.int(3)? == 3;
    let reduction = if batched { Reduction::Sum } else { Reduction::of(args, 3)? };
    let mut back = Backward::read(args, machine, &[0, 1, 2], &[], reduction)?;
    if batched {
        back.factor = 1.0 / back.operands.dims().first().copied().unwrap_or(1) as f64;
    }
    back.store(args, machine, 5, |[_, _, t]| match log_target {
        true => -t.exp(),
        false if t > 0.0 || t.is_nan() => -t,
        false => 0.0,
    })
}

/// `self target reduction → out`: `ln(1 + e^(−t·x))`.
pub fn soft_margin_loss(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let reduction = Reduction::of(args, 2)?;
    Operands::read(args, machine, &[0, 1], &[])?.loss(args, machine, reduction, 3, |[x, t]| softplus_of_minus(t * x))
}

/// `gradOutput self target reduction → out`.
pub fn soft_margin_loss_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let back = Backward::read(args, machine, &[0, 1, 2], &[], Reduction::of(args, 3)?)?;
    back.store(args, machine, 4, |[_, x, t]| -t / (1.0 + (t * x).exp()))
}
