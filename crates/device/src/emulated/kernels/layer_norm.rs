//! LayerNorm, its variants and its gradient; GroupNorm likewise.
//!
//! `y = (x − mean)·rstd·weight + bias` with `rstd = 1/√(var + epsilon)`: over the last dimensions of `x` (LayerNorm), or over
//! the channels of one group of one sample and everything behind them (GroupNorm), where weight and bias go by channel.
//! Forward in the operands' lane with sums of one fixed order; gradients in double precision.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::real::{Real, float, leading, load, read, shaped, store, with_real, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAddLayerNorm, add_layer_norm),
    (ops::aclnnFastLayerNorm, layer_norm),
    (ops::aclnnGroupNorm, group_norm),
    (ops::aclnnGroupNormBackward, group_norm_backward),
    (ops::aclnnGroupNormSilu, group_norm_silu),
    (ops::aclnnLayerNorm, layer_norm),
    (ops::aclnnLayerNormBackward, layer_norm_backward),
];

/// `input normalizedShape weight bias eps → out mean rstd`; weight, bias and the last two results may be null.
pub fn layer_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = args.tensor(0)?;
    let lead = lead(args, 1, &x)?;
    let block = Block { dims: x.dims()[lead..].to_vec(), lead };
    let norm = Norm {
        weight: block.parameter(args, 2)?,
        bias: block.parameter(args, 3)?,
        epsilon: args.float(4)?,
        mean: args.optional_output(6)?,
        rstd: args.optional_output(7)?,
        repeat: 1,
        silu: false,
    };
    let y = args.output(5)?;
    shaped(&y, x.dims(), args.name(5))?;
    norm.run(machine, args, &x, &y, &block)
}

/// `x1 x2 gamma beta bias epsilon additionalOutput → y mean rstd x`: LayerNorm of `x = x1 + x2 + bias` over gamma's
/// dimensions; `x` is written where asked for.
pub fn add_layer_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, gamma) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (y, sum) = (args.output(7)?, args.optional_output(10)?);
    for (position, view) in [(1, &b), (7, &y)] {
        shaped(view, a.dims(), args.name(position))?;
        float(view, args.name(position))?;
    }
    float(&a, args.name(0))?;
    ensure!(gamma.ndim() >= 1 && a.dims().ends_with(gamma.dims()), "gamma: shape {:?} of {:?}", gamma.dims(), a.dims());
    let block = Block { dims: gamma.dims().to_vec(), lead: a.ndim() - gamma.ndim() };
    let norm = Norm {
        weight: block.parameter(args, 2)?,
        bias: block.parameter(args, 3)?,
        epsilon: args.float(5)?,
        mean: args.optional_output(8)?,
        rstd: args.optional_output(9)?,
        repeat: 1,
        silu: false,
    };
    let terms: Vec<f64> = match args.optional(4)? {
        Some(bias) => super::real::read_as(machine, &bias, a.dims()).map_err(|f| f.about(args.name(4)))?,
        None => Vec::new(),
    };
    let (mut xs, others): (Vec<f64>, Vec<f64>) = (read(machine, &a)?, read(machine, &b)?);
    for (i, (x, other)) in xs.iter_mut().zip(&others).enumerate() {
        *x = *x + other + terms.get(i).copied().unwrap_or(0.0);
    }
    if let Some(sum) = sum.filter(|_| args.int(6).is_ok_and(|wanted| wanted != 0)) {
        shaped(&sum, a.dims(), args.name(10))?;
        float(&sum, args.name(10))?;
        write(machine, &sum, &xs)?;
    }
    // Through the result: it is of the sum's shape, and every block is read before it is written.
    write(machine, &y, &xs)?;
    norm.run(machine, args, &y, &y, &block)
}

/// `self gamma beta N C HxW group eps → out mean rstd`.
pub fn group_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(8)?);
    let groups = Groups::new(args, &x, args.int(6)?)?;
    groups.expect(args, [3, 4, 5])?;
    groups.run(args, machine, &x, &y, [9, 10], args.float(7)?, false)
}

/// `self gamma beta group eps → out mean rstd`: GroupNorm, then `x·sigmoid(x)`.
pub fn group_norm_silu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(5)?);
    let groups = Groups::new(args, &x, args.int(3)?)?;
    groups.run(args, machine, &x, &y, [6, 7], args.float(4)?, true)
}

/// Number of leading dimensions that count rows, checked against `normalizedShape`.
fn lead(args: &Args<'_>, position: usize, x: &View) -> Outcome<usize> {
    let name = args.name(position);
    let shape = args.ints(position).ok_or_else(|| Fault::new(format!("{name}: an int array is required")))?;
    let fits = !shape.is_empty()
        && shape.len() <= x.ndim()
        && x.dims()[x.ndim() - shape.len()..].iter().zip(shape).all(|(&have, &want)| have as i64 == want);
    ensure!(fits, "{name}: {shape:?} is not the end of the input's shape {:?}", x.dims());
    Ok(x.ndim() - shape.len())
}

/// What is normalised together: the part of a tensor at each index of its leading dimensions.
struct Block {
    dims: Vec<usize>,
    lead: usize,
}

impl Block {
    fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// A weight or bias of the block's shape, or null.
    fn parameter(&self, args: &Args<'_>, position: usize) -> Outcome<Option<View>> {
        let view = args.optional(position)?;
        if let Some(view) = &view {
            shaped(view, &self.dims, args.name(position))?;
            float(view, args.name(position))?;
        }
        Ok(view)
    }
}

/// Parameters of a normalisation.
struct Norm {
    weight: Option<View>,
    bias: Option<View>,
    epsilon: f64,
    mean: Option<View>,
    rstd: Option<View>,
    /// Elements of a block that share an element of weight and bias.
    repeat: usize,
    silu: bool,
}

impl Norm {
    fn run(&self, machine: &mut Machine, args: &Args<'_>, x: &View, y: &View, block: &Block) -> Outcome {
        float(x, args.name(0))?;
        float(y, "out")?;
        let rows: usize = x.dims()[..block.lead].iter().product();
        for (name, view) in [("mean", &self.mean), ("rstd", &self.rstd)] {
            if let Some(view) = view {
                float(view, name)?;
                ensure!(view.elements() == rows, "{name}: shape {:?} does not hold {rows} rows", view.dims());
            }
        }
        with_real!(x.dtype, R => self.blocks::<R>(machine, x, y, block, rows))
    }

    fn blocks<R: Real>(&self, machine: &mut Machine, x: &View, y: &View, block: &Block, rows: usize) -> Outcome {
        let width = block.elements();
        ensure!(
            width <= INTERMEDIATE_MAX && rows <= INTERMEDIATE_MAX,
            "{rows} rows of {width} elements, at most {INTERMEDIATE_MAX} are supported"
        );
        let parameter = |view: &Option<View>| view.map_or(Ok(Vec::new()), |view| read::<R>(machine, &view));
        let (weights, biases) = (parameter(&self.weight)?, parameter(&self.bias)?);
        let mut row = vec![R::default(); width];
        let (mut means, mut rstds) = (vec![R::default(); rows], vec![R::default(); rows]);
        for index in 0..rows {
            load(&machine.hbm, &leading(x, block.lead, index), &mut row)?;
            let [mean, rstd] = statistics(&mut row, self.epsilon);
            self.affine(&mut row, rstd, &weights, &biases, 0);
            store(&mut machine.hbm, &leading(y, block.lead, index), &row)?;
            (means[index], rstds[index]) = (mean, rstd);
        }
        self.store_statistics(machine, &means, &rstds)
    }

    /// Centred values to results; parameters from `from` on.
    fn affine<R: Real>(&self, row: &mut [R], rstd: R, weights: &[R], biases: &[R], from: usize) {
        for (i, x) in row.iter_mut().enumerate() {
            let at = from + i / self.repeat;
            *x = *x * rstd;
            if let Some(weight) = weights.get(at) {
                *x = *x * *weight;
            }
            if let Some(bias) = biases.get(at) {
                *x += *bias;
            }
            if self.silu {
                *x = *x / (R::from_f64(1.0) + (R::default() - *x).exp());
            }
        }
    }

    fn store_statistics<R: Real>(&self, machine: &mut Machine, means: &[R], rstds: &[R]) -> Outcome {
        for (view, values) in [(&self.mean, means), (&self.rstd, rstds)] {
            if let Some(view) = view {
                write(machine, view, values)?;
            }
        }
        Ok(())
    }
}

/// Centres a row; its mean and the reciprocal of its deviation.
fn statistics<R: Real>(row: &mut [R], epsilon: f64) -> [R; 2] {
    let count = R::from_f64(row.len() as f64);
    let mean = R::sum(row) / count;
    row.iter_mut().for_each(|x| *x = *x - mean);
    let variance = R::sum_of_squares(row) / count;
    [mean, R::from_f64(1.0) / (variance + R::from_f64(epsilon)).sqrt()]
}

/// Groups of channels: `x` is `[samples, channels, …]`.
struct Groups {
    samples: usize,
    channels: usize,
    /// Elements of a channel.
    inner: usize,
    groups: usize,
}

impl Groups {
    fn new(args: &Args<'_>, x: &View, groups: i64) -> Outcome<Self> {
        ensure!(x.ndim() >= 2, "{}: shape {:?}, want [N, C, …]", args.name(0), x.dims());
        let groups = usize::try_from(groups).ok().filter(|&g| g > 0 && x.dim(1).is_multiple_of(g));
        let groups = groups.ok_or_else(|| Fault::new(format!("group: does not divide {} channels", x.dim(1))))?;
        Ok(Self { samples: x.dim(0), channels: x.dim(1), inner: x.dims()[2..].iter().product(), groups })
    }

    fn expect(&self, args: &Args<'_>, at: [usize; 3]) -> Outcome {
        for (position, have) in at.into_iter().zip([self.samples, self.channels, self.inner]) {
            let want = args.int(position)?;
            ensure!(want == have as i64, "{}: {want}, but the input has {have}", args.name(position));
        }
        Ok(())
    }

    fn each(&self) -> usize {
        self.channels / self.groups
    }

    /// The part of `x` that group `index` of all samples together is.
    fn part(&self, x: &View, index: usize) -> View {
        x.select(0, index / self.groups).narrow(0, index % self.groups * self.each(), self.each())
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        args: &Args<'_>,
        machine: &mut Machine,
        x: &View,
        y: &View,
        statistics_at: [usize; 2],
        epsilon: f64,
        silu: bool,
    ) -> Outcome {
        shaped(y, x.dims(), "out")?;
        float(x, args.name(0))?;
        float(y, "out")?;
        let per_channel = Block { dims: vec![self.channels], lead: 0 };
        let norm = Norm {
            weight: per_channel.parameter(args, 1)?,
            bias: per_channel.parameter(args, 2)?,
            epsilon,
            mean: args.optional_output(statistics_at[0])?,
            rstd: args.optional_output(statistics_at[1])?,
            repeat: self.inner.max(1),
            silu,
        };
        let rows = self.samples * self.groups;
        for (position, view) in statistics_at.into_iter().zip([&norm.mean, &norm.rstd]) {
            if let Some(view) = view {
                float(view, args.name(position))?;
                let fits = view.elements() == rows;
                ensure!(fits, "{}: shape {:?} does not hold {rows} groups", args.name(position), view.dims());
            }
        }
        with_real!(x.dtype, R => self.blocks::<R>(machine, x, y, &norm))
    }

    fn blocks<R: Real>(&self, machine: &mut Machine, x: &View, y: &View, norm: &Norm) -> Outcome {
        let (rows, width) = (self.samples * self.groups, self.each() * self.inner);
        ensure!(
            width <= INTERMEDIATE_MAX && rows <= INTERMEDIATE_MAX,
            "{rows} groups of {width} elements, at most {INTERMEDIATE_MAX} are supported"
        );
        let parameter = |view: &Option<View>| view.map_or(Ok(Vec::new()), |view| read::<R>(machine, &view));
        let (weights, biases) = (parameter(&norm.weight)?, parameter(&norm.bias)?);
        let mut row = vec![R::default(); width];
        let (mut means, mut rstds) = (vec![R::default(); rows], vec![R::default(); rows]);
        for index in 0..rows {
            load(&machine.hbm, &self.part(x, index), &mut row)?;
            let [mean, rstd] = statistics(&mut row, norm.epsilon);
            norm.affine(&mut row, rstd, &weights, &biases, index % self.groups * self.each());
            store(&mut machine.hbm, &self.part(y, index), &row)?;
            (means[index], rstds[index]) = (mean, rstd);
        }
        norm.store_statistics(machine, &means, &rstds)
    }
}

/// Whether result `index` of an output mask is wanted; all of them where the mask is null.
pub fn wanted(args: &Args<'_>, mask: usize, index: usize) -> bool {
    args.ints(mask).is_none_or(|mask| mask.get(index).is_some_and(|&wanted| wanted != 0))
}

/// Gradient of `x̂ = (x − mean)·rstd` for a block: `slopes` is that of `x̂`; answers that of `x`, in place.
pub fn block_gradient(slopes: &mut [f64], xs: &[f64], mean: f64, rstd: f64) {
    let count = slopes.len() as f64;
    let (mut sum, mut dot) = (0.0, 0.0);
    for (slope, x) in slopes.iter().zip(xs) {
        sum += slope;
        dot += slope * (x - mean) * rstd;
    }
    for (slope, x) in slopes.iter_mut().zip(xs) {
        *slope = rstd * (*slope - sum / count - (x - mean) * rstd * dot / count);
    }
}

/// `gradOut input normalizedShape mean rstd weight bias outputMask → gradInput gradWeight gradBias`.
pub fn layer_norm_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, x) = (args.tensor(0)?, args.tensor(1)?);
    float(&dy, args.name(0))?;
    float(&x, args.name(1))?;
    shaped(&dy, x.dims(), args.name(0))?;
    let lead = lead(args, 2, &x)?;
    let block = Block { dims: x.dims()[lead..].to_vec(), lead };
    let rows: usize = x.dims()[..lead].iter().product();
    let (mean, rstd) = (statistic(args, machine, 3, rows)?, statistic(args, machine, 4, rows)?);
    let weights = match block.parameter(args, 5)? {
        Some(view) => read::<f64>(machine, &view)?,
        None => vec![1.0; block.elements()],
    };
    let (mut slopes, xs): (Vec<f64>, Vec<f64>) = (read(machine, &dy)?, read(machine, &x)?);
    let width = block.elements();
    let (mut weight_sums, mut bias_sums) = (vec![0.0; width], vec![0.0; width]);
    for (row, (slopes, xs)) in slopes.chunks_exact_mut(width.max(1)).zip(xs.chunks_exact(width.max(1))).enumerate() {
        for (i, (slope, x)) in slopes.iter_mut().zip(xs).enumerate() {
            bias_sums[i] += *slope;
            weight_sums[i] += *slope * (x - mean[row]) * rstd[row];
            *slope *= weights[i];
        }
        block_gradient(slopes, xs, mean[row], rstd[row]);
    }
    let results = [(8, x.dims(), &slopes), (9, &block.dims, &weight_sums), (10, &block.dims, &bias_sums)];
    store_wanted(args, machine, 7, results)
}

/// `gradOut input mean rstd gamma N C HxW group outputMask → gradInput gradGamma gradBeta`.
pub fn group_norm_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, x) = (args.tensor(0)?, args.tensor(1)?);
    float(&dy, args.name(0))?;
    float(&x, args.name(1))?;
    shaped(&dy, x.dims(), args.name(0))?;
    let groups = Groups::new(args, &x, args.int(8)?)?;
    groups.expect(args, [5, 6, 7])?;
    let rows = groups.samples * groups.groups;
    let (mean, rstd) = (statistic(args, machine, 2, rows)?, statistic(args, machine, 3, rows)?);
    let per_channel = Block { dims: vec![groups.channels], lead: 0 };
    let weights = match per_channel.parameter(args, 4)? {
        Some(view) => read::<f64>(machine, &view)?,
        None => vec![1.0; groups.channels],
    };
    let (mut slopes, xs): (Vec<f64>, Vec<f64>) = (read(machine, &dy)?, read(machine, &x)?);
    let width = groups.each() * groups.inner;
    let (mut weight_sums, mut bias_sums) = (vec![0.0; groups.channels], vec![0.0; groups.channels]);
    for (row, (slopes, xs)) in slopes.chunks_exact_mut(width.max(1)).zip(xs.chunks_exact(width.max(1))).enumerate() {
        for (i, (slope, x)) in slopes.iter_mut().zip(xs).enumerate() {
            let channel = row % groups.groups * groups.each() + i / groups.inner;
            bias_sums[channel] += *slope;
            weight_sums[channel] += *slope * (x - mean[row]) * rstd[row];
            *slope *= weights[channel];
        }
        block_gradient(slopes, xs, mean[row], rstd[row]);
    }
    let results = [(10, x.dims(), &slopes), (11, &per_channel.dims, &weight_sums), (12, &per_channel.dims, &bias_sums)];
    store_wanted(args, machine, 9, results)
}

/// A statistic of `rows` rows.
fn statistic(args: &Args<'_>, machine: &Machine, position: usize, rows: usize) -> Outcome<Vec<f64>> {
    let (view, name) = (args.tensor(position)?, args.name(position));
    float(&view, name)?;
    ensure!(view.elements() == rows, "{name}: shape {:?} does not hold {rows} rows", view.dims());
    read(machine, &view)
}

/// Writes the results that the mask asks for: position, shape and values of each.
pub fn store_wanted(
    args: &Args<'_>,
    machine: &mut Machine,
    mask: usize,
    results: [(usize, &[usize], &Vec<f64>); 3],
) -> Outcome {
    for (index, (position, dims, values)) in results.into_iter().enumerate() {
        if !wanted(args, mask, index) {
            continue;
        }
        if let Some(view) = args.optional_output(position)? {
            shaped(&view, dims, args.name(position))?;
            float(&view, args.name(position))?;
            write(machine, &view, values)?;
        }
    }
    Ok(())
}
