//! Losses over classes: NLLLoss (also per pixel), CrossEntropyLoss, SoftmaxCrossEntropyWithLogits, and their gradients.
//!
//! Logarithms of probabilities are `[N, C]` or `[C]` (`[N, C, H, W]` per pixel); a target names a class of each, or
//! `ignoreIndex`. `loss = −w[t]·x[t]`; a mean divides by the sum of the weights that count. Any other target outside of
//! the classes is refused before anything is written. Double precision, rounded once.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::loss::{Reduction, store_loss};
use super::real::{float, read, shaped, write};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnCrossEntropyLoss, cross_entropy_loss),
    (ops::aclnnCrossEntropyLossGrad, cross_entropy_loss_grad),
    (ops::aclnnNLLLoss, nll_loss),
    (ops::aclnnNLLLoss2d, nll_loss),
    (ops::aclnnNLLLoss2dBackward, nll_loss_backward),
    (ops::aclnnNLLLossBackward, nll_loss_backward),
    (ops::aclnnSoftmaxCrossEntropyWithLogits, softmax_cross_entropy),
];

/// `features labels → loss backprop`: rows of scores and of probabilities `[N, C]`; `loss = −Σ p·log softmax(x)`,
/// `backprop = softmax(x) − p`.
fn softmax_cross_entropy(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, labels, loss, back) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?, args.output(3)?);
    for (position, view) in [&x, &labels, &loss, &back].into_iter().enumerate() {
        float(view, args.name(position))?;
    }
    ensure!(x.ndim() == 2, "features: shape {:?}, want [N, C]", x.dims());
    shaped(&labels, x.dims(), "labels")?;
    shaped(&back, x.dims(), "backprop")?;
    shaped(&loss, &x.dims()[..1], "loss")?;
    let (mut scores, labels): (Vec<f64>, Vec<f64>) = (read(machine, &x)?, read(machine, &labels)?);
    let mut losses = Vec::with_capacity(x.dim(0));
    let classes = x.dim(1).max(1);
    for (scores, labels) in scores.chunks_exact_mut(classes).zip(labels.chunks_exact(classes)) {
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
        losses.push(-scores.iter().zip(labels).map(|(x, p)| p * (x - largest - sum.ln())).sum::<f64>());
        scores.iter_mut().zip(labels).for_each(|(x, p)| *x = (*x - largest).exp() / sum - p);
    }
    losses.resize(x.dim(0), 0.0);
    write(machine, &loss, &losses)?;
    write(machine, &back, &scores)
}

/// Rows of classes, and what is known of them.
struct Rows {
    /// Shape of the targets.
    dims: Vec<usize>,
    classes: usize,
    /// Elements from one class of a row to the next, in row-major order of the whole tensor.
    step: usize,
    /// The class of each row; none where it is ignored.
    targets: Vec<Option<usize>>,
    weights: Vec<f64>,
}

impl Rows {
    /// `x`'s rows with the targets and weights at these positions.
    fn new(args: &Args<'_>, machine: &Machine, x: &View, target: usize, weight: usize, ignore: i64) -> Outcome<Self> {
        float(x, args.name(0))?;
        let (labels, name) = (args.tensor(target)?, args.name(target));
        ensure!(class(labels.dtype) == Class::Int, "{name}: type {}, want an integer", lane::name(labels.dtype));
        let dim = usize::from(x.ndim() > 1);
        ensure!(x.ndim() >= 1, "{}: shape {:?}, want [N, C, …] or [C]", args.name(0), x.dims());
        let (classes, step) = (x.dim(dim), x.dims()[dim + 1..].iter().product());
        let dims: Vec<usize> = x.dims().iter().enumerate().filter(|&(i, _)| i != dim).map(|(_, &d)| d).collect();
        let fits = labels.dims() == dims || dims.is_empty() && labels.elements() == 1;
        ensure!(fits, "{name}: shape {:?}, want {dims:?}", labels.dims());
        let weights = match args.optional(weight)? {
            Some(view) => {
                float(&view, args.name(weight))?;
                shaped(&view, &[classes], args.name(weight))?;
                read(machine, &view)?
            }
            None => vec![1.0; classes],
        };
        let targets = read::<i64>(machine, &labels)?.into_iter().map(|label| match usize::try_from(label) {
            _ if label == ignore => Ok(None),
            Ok(label) if label < classes => Ok(Some(label)),
            _ => Err(Fault::new(format!("{name}: class {label} is not in 0..{classes}"))),
        });
        let targets = targets.collect::<Outcome<Vec<_>>>()?;
        Ok(Self { dims, classes, step, targets, weights })
    }

    /// Index of class `class` of row `row` in `x`.
    fn at(&self, row: usize, class: usize) -> usize {
        (row / self.step * self.classes + class) * self.step + row % self.step
    }

    /// Weight of a row: that of its class, 0 where it is ignored.
    fn weight(&self, row: usize) -> f64 {
        self.targets[row].map_or(0.0, |target| self.weights[target])
    }

    fn total(&self) -> f64 {
        (0..self.targets.len()).map(|row| self.weight(row)).sum()
    }
}

/// `self target weight reduction ignoreIndex → out totalWeight`.
pub fn nll_loss(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::of(args, 3)?;
    let rows = Rows::new(args, machine, &x, 1, 2, args.int(4)?)?;
    let values: Vec<f64> = read(machine, &x)?;
    let loss = |(row, target): (usize, &Option<usize>)| {
        target.map_or(0.0, |target| -rows.weights[target] * values[rows.at(row, target)])
    };
    let losses: Vec<f64> = rows.targets.iter().enumerate().map(loss).collect();
    let total = rows.total();
    store_loss(args, machine, reduction, 5, &rows.dims, &losses, total)?;
    if let Some(view) = args.optional_output(6)?
        && view.elements() == 1
    {
        float(&view, args.name(6))?;
        write(machine, &view, &[if reduction == Reduction::None { 0.0 } else { total }])?;
    }
    Ok(())
}

/// `gradOutput self target weight reduction ignoreIndex totalWeight → out`.
pub fn nll_loss_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(1)?, args.output(7)?);
    let reduction = Reduction::of(args, 4)?;
    let rows = Rows::new(args, machine, &x, 2, 3, args.int(5)?)?;
    shaped(&out, x.dims(), args.name(7))?;
    float(&out, args.name(7))?;
    let slopes = slopes(args, machine, &rows, reduction)?;
    let mut gradients = vec![0.0; x.elements()];
    for (row, target) in rows.targets.iter().enumerate() {
        if let Some(target) = target {
            gradients[rows.at(row, *target)] = -rows.weights[*target] * slopes[row];
        }
    }
    write(machine, &out, &gradients)
}

/// Gradient of every row's loss, from the first argument.
fn slopes(args: &Args<'_>, machine: &Machine, rows: &Rows, reduction: Reduction) -> Outcome<Vec<f64>> {
    let (view, name) = (args.tensor(0)?, args.name(0));
    float(&view, name)?;
    let count = rows.targets.len();
    if reduction == Reduction::None {
        ensure!(view.elements() == count, "{name}: shape {:?}, want {:?}", view.dims(), rows.dims);
        return read(machine, &view);
    }
    ensure!(view.elements() == 1, "{name}: shape {:?}, want one element", view.dims());
    let slope = read::<f64>(machine, &view)?[0];
    let total = if reduction == Reduction::Mean { rows.total() } else { 1.0 };
    Ok(vec![slope / total; count])
}

fn named_reduction(args: &Args<'_>, position: usize) -> Outcome<Reduction> {
    Ok(match args.text(position)? {
        "none" => Reduction::None,
        "mean" | "" => Reduction::Mean,
        "sum" => Reduction::Sum,
        text => return Err(Fault::new(format!("{}: {text:?} is not supported", args.name(position)))),
    })
}

/// Refuses the extra term of the logarithms' squares.
fn without_z_loss(args: &Args<'_>, scale: usize) -> Outcome {
    let factor = args.float(scale)?;
    ensure!(factor == 0.0, "{}: {factor} is not supported (0)", args.name(scale));
    Ok(())
}

/// `input [N, C] target weight reduction ignoreIndex labelSmoothing … → loss logProb zloss lseForZloss`.
///
/// With smoothing `s`, a row's loss is `(1 − s)·(−w[t]·p[t]) − s/C·Σ w·p`, where `p` are logarithms of the softmax.
pub fn cross_entropy_loss(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, log_prob) = (args.tensor(0)?, args.output(9)?);
    let reduction = named_reduction(args, 3)?;
    let smoothing = args.float(5)?;
    without_z_loss(args, 6)?;
    ensure!(args.int(7)? == 0, "returnZloss: not supported");
    ensure!(x.ndim() == 2, "input: shape {:?}, want [N, C]", x.dims());
    ensure!(x.dtype != DataType::F64, "input: type float64 is not supported");
    let rows = Rows::new(args, machine, &x, 1, 2, args.int(4)?)?;
    shaped(&log_prob, x.dims(), args.name(9))?;
    float(&log_prob, args.name(9))?;
    let mut values: Vec<f64> = read(machine, &x)?;
    for row in values.chunks_exact_mut(rows.classes.max(1)) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
        row.iter_mut().for_each(|x| *x -= sum);
    }
    let loss = |(row, target): (usize, &Option<usize>)| {
        let Some(target) = *target else { return 0.0 };
        let row = &values[row * rows.classes..][..rows.classes];
        let spread: f64 = row.iter().zip(&rows.weights).map(|(p, w)| p * w).sum();
        let own = (1.0 - smoothing) * rows.weights[target] * row[target];
        -own - if smoothing == 0.0 { 0.0 } else { smoothing / rows.classes as f64 * spread }
    };
    let losses: Vec<f64> = rows.targets.iter().enumerate().map(loss).collect();
    store_loss(args, machine, reduction, 8, &rows.dims, &losses, rows.total())?;
    write(machine, &log_prob, &values)
}

/// `gradLoss logProb target weight gradZloss lseForZloss reduction ignoreIndex labelSmoothing … → out`.
pub fn cross_entropy_loss_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (log_prob, out) = (args.tensor(1)?, args.output(10)?);
    let reduction = named_reduction(args, 6)?;
    let smoothing = args.float(8)?;
    without_z_loss(args, 9)?;
    ensure!(log_prob.ndim() == 2, "logProb: shape {:?}, want [N, C]", log_prob.dims());
    let rows = Rows::new(args, machine, &log_prob, 2, 3, args.int(7)?)?;
    shaped(&out, log_prob.dims(), args.name(10))?;
    float(&out, args.name(10))?;
    let slopes = slopes(args, machine, &rows, reduction)?;
    let mut values: Vec<f64> = read(machine, &log_prob)?;
    let all: f64 = rows.weights.iter().sum();
    for (row, values) in values.chunks_exact_mut(rows.classes.max(1)).enumerate() {
        let Some(target) = rows.targets[row] else {
            values.fill(0.0);
            continue;
        };
        // The loss is −Σ f·p with factors f; of −p the gradient is softmax − one-hot.
        let even = smoothing / rows.classes as f64;
        let total = (1.0 - smoothing) * rows.weights[target] + even * all;
        for (class, p) in values.iter_mut().enumerate() {
            let own = if class == target { (1.0 - smoothing) * rows.weights[target] } else { 0.0 };
            *p = slopes[row] * (p.exp() * total - own - even * rows.weights[class]);
        }
    }
    write(machine, &out, &values)
}
