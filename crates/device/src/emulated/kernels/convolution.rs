//! Convolution over one to three spatial dimensions, transposed or not, in groups; and its gradients.
//!
//! Every form is one product of weights `[Q, C·taps]` with *columns*: for every position of the *small* side, the values
//! under the kernel on the *big* side. A convolution gathers: `small = W·columns(big)`. A transposed one, and the gradient
//! of the input, spreads: `big = Σ columns⁻¹(Wᵀ·small)`. The gradient of the weights is `small·columns(big)ᵀ`. Which side
//! is the input only decides who is who. Columns are made a bounded number at a time; samples and groups are shared among
//! threads. Single precision, rounded once.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::gemm::{self, Matrix};
use super::lane;
use super::layer_norm::wanted;
use super::real::{load, read, shaped, store, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family =
    &[(ops::aclnnConvolution, convolution), (ops::aclnnConvolutionBackward, convolution_backward)];

/// Column values made at a time: 4 MiB.
const COLUMNS_MAX: usize = 1 << 20;

/// Numbers for the three spatial dimensions; those that a tensor does not have come first.
type Triple = [usize; 3];

/// What all forms share.
struct Geometry {
    transposed: bool,
    groups: usize,
    samples: usize,
    /// Channels of one group.
    big_channels: usize,
    small_channels: usize,
    big: Triple,
    small: Triple,
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
}

impl Geometry {
    /// From input `[N, C, …]`, weight and output, and the attributes from `stride` at position `first` on.
    fn new(args: &Args<'_>, first: usize, input: &View, weight: &View, output: &View) -> Outcome<Self> {
        for (name, view) in [("input", input), ("weight", weight), ("output", output)] {
            let known = gemm::is_operand(view.dtype) && (3..=5).contains(&view.ndim());
            ensure!(known, "{name}: {:?} {} is not supported", view.dims(), lane::name(view.dtype));
        }
        let same = weight.ndim() == input.ndim() && output.ndim() == input.ndim();
        ensure!(same, "weight: {:?} · {:?} → {:?}", weight.dims(), input.dims(), output.dims());
        let spatial = input.ndim() - 2;
        let triple = |position: usize, least: i64, otherwise: usize| -> Outcome<Triple> {
            let name = args.name(position);
            let given = args.ints(position).unwrap_or_default();
            let mut all = [otherwise; 3];
            let fits = given.len() == spatial && given.iter().all(|v| (least..=1 << 30).contains(v));
            ensure!(fits, "{name}: {given:?}, want {spatial} numbers from {least} on");
            all[3 - spatial..].iter_mut().zip(given).for_each(|(all, &given)| *all = given as usize);
            Ok(all)
        };
        let sizes = |view: &View| -> Triple {
            let mut all = [1; 3];
            all[3 - spatial..].copy_from_slice(&view.dims()[2..]);
            all
        };
        let transposed = args.int(first + 3)? != 0;
        let groups = usize::try_from(args.int(first + 5)?).ok().filter(|&g| (1..=1 << 20).contains(&g));
        let groups = groups.ok_or_else(|| Fault::new("groups: not positive"))?;
        let (big, small) = if transposed { (output, input) } else { (input, output) };
        let agree = big.dim(1).is_multiple_of(groups)
            && small.dim(1).is_multiple_of(groups)
            && weight.dim(0) == small.dim(1)
            && weight.dim(1) == big.dim(1) / groups
            && big.dim(0) == small.dim(0);
        ensure!(
            agree,
            "weight: shapes do not agree: {:?} · {:?} → {:?} in {groups} groups",
            weight.dims(),
            input.dims(),
            output.dims()
        );
        let geometry = Self {
            transposed,
            groups,
            samples: big.dim(0),
            big_channels: big.dim(1) / groups,
            small_channels: small.dim(1) / groups,
            big: sizes(big),
            small: sizes(small),
            kernel: sizes(weight),
            stride: triple(first, 1, 1)?,
            padding: triple(first + 1, 0, 0)?,
            dilation: triple(first + 2, 1, 1)?,
        };
        geometry.check(triple(first + 4, 0, 0)?)?;
        Ok(geometry)
    }

    /// One side's sizes follow from the other's; `more` is what a transposed result has behind the last window.
    fn check(&self, more: Triple) -> Outcome {
        for (dim, more) in more.into_iter().enumerate() {
            let reach = self.dilation[dim].saturating_mul(self.kernel[dim].saturating_sub(1)).saturating_add(1);
            let padded = self.big[dim] + 2 * self.padding[dim];
            let empty = self.samples == 0 || self.big[dim] == 0;
            if self.transposed {
                let last = self.small[dim].saturating_sub(1).saturating_mul(self.stride[dim]);
                let want = last.saturating_add(reach).saturating_add(more);
                ensure!(
                    padded == want || empty || self.small[dim] == 0,
                    "output: {} positions of {} with a kernel of {}, want {want} less a padding of {} on both sides",
                    self.big[dim],
                    self.small[dim],
                    self.kernel[dim],
                    self.padding[dim]
                );
                continue;
            }
            let want = padded.checked_sub(reach).map_or(0, |room| room / self.stride[dim] + 1);
            ensure!(
                self.small[dim] == want || empty,
                "output: {} positions of {} with a kernel of {}, want {want}",
                self.small[dim],
                self.big[dim],
                self.kernel[dim]
            );
        }
        let sides = [self.big_elements(), self.small_elements(), self.taps().saturating_mul(self.small_channels)];
        ensure!(sides.iter().all(|&n| n <= INTERMEDIATE_MAX), "{sides:?} elements a group, at most {INTERMEDIATE_MAX}");
        Ok(())
    }

    /// Weights of one small channel.
    fn taps(&self) -> usize {
        self.kernel.iter().fold(self.big_channels, |n, &k| n.saturating_mul(k))
    }

    fn positions(&self) -> usize {
        self.small.iter().product()
    }

    fn big_elements(&self) -> usize {
        self.big.iter().fold(self.big_channels, |n, &d| n.saturating_mul(d))
    }

    fn small_elements(&self) -> usize {
        self.small.iter().fold(self.small_channels, |n, &d| n.saturating_mul(d))
    }

    /// Calls `visit(index of the column value, index on the big side)` for every value inside of the big side, for
    /// positions `from .. from + count`.
    fn columns(&self, from: usize, count: usize, mut visit: impl FnMut(usize, usize)) {
        let [_, kernel_h, kernel_w] = self.kernel;
        let place = |dim: usize, out: usize, tap: usize| {
            let at = out * self.stride[dim] + tap * self.dilation[dim];
            at.checked_sub(self.padding[dim]).filter(|&at| at < self.big[dim])
        };
        for tap in 0..self.taps() {
            let taps = [tap / kernel_w / kernel_h % self.kernel[0], tap / kernel_w % kernel_h, tap % kernel_w];
            let channel = tap / kernel_w / kernel_h / self.kernel[0];
            for column in 0..count {
                let position = from + column;
                let outs = [
                    position / self.small[2] / self.small[1],
                    position / self.small[2] % self.small[1],
                    position % self.small[2],
                ];
                let places = (place(0, outs[0], taps[0]), place(1, outs[1], taps[1]), place(2, outs[2], taps[2]));
                if let (Some(d), Some(h), Some(w)) = places {
                    let at = ((channel * self.big[0] + d) * self.big[1] + h) * self.big[2] + w;
                    visit(tap * count + column, at);
                }
            }
        }
    }

    /// Ranges of positions whose columns are made together.
    fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        let (step, positions) = ((COLUMNS_MAX / self.taps().max(1)).max(1), self.positions());
        (0..positions).step_by(step).map(move |from| (from, step.min(positions - from)))
    }

    fn gathered(&self, big: &[f32], from: usize, count: usize) -> Vec<f32> {
        let mut columns = vec![0.0; self.taps() * count];
        self.columns(from, count, |column, at| columns[column] = big[at]);
        columns
    }

    /// `small = W·columns(big)`.
    fn gather(&self, weight: Matrix<'_>, big: &[f32], small: &mut [f32]) {
        for (from, count) in self.pieces() {
            let columns = self.gathered(big, from, count);
            let columns = Matrix::rows(&columns, self.taps(), count);
            gemm::multiply(weight, columns, &mut small[from..], self.positions(), false);
        }
    }

    /// `big = Σ columns⁻¹(Wᵀ·small)`.
    fn spread(&self, weight: Matrix<'_>, small: &[f32], big: &mut [f32]) {
        big.fill(0.0);
        for (from, count) in self.pieces() {
            let mut columns = vec![0.0; self.taps() * count];
            let dims = [self.small_channels, count];
            let part = Matrix::new(small, from, dims, [self.positions() as isize, 1]);
            gemm::multiply(weight.transposed(), part, &mut columns, count, false);
            self.columns(from, count, |column, at| big[at] += columns[column]);
        }
    }

    /// `out += small·columns(big)ᵀ`.
    fn correlate(&self, small: &[f32], big: &[f32], out: &mut [f32]) {
        for (from, count) in self.pieces() {
            let columns = self.gathered(big, from, count);
            let dims = [self.small_channels, count];
            let part = Matrix::new(small, from, dims, [self.positions() as isize, 1]);
            gemm::multiply(part, Matrix::rows(&columns, self.taps(), count).transposed(), out, self.taps(), true);
        }
    }

    /// The channels of a group of one sample.
    fn part(&self, view: &View, sample: usize, group: usize) -> View {
        let each = view.dim(1) / self.groups;
        view.select(0, sample).narrow(0, group * each, each)
    }

    /// Computes `to` from `from`: by gathering where `gathers`, by spreading otherwise. `finish` sees every result of a
    /// channel.
    fn map(
        &self,
        machine: &mut Machine,
        weights: &[f32],
        from: &View,
        to: &View,
        gathers: bool,
        bias: Option<&[f32]>,
    ) -> Outcome {
        let each = self.small_channels * self.taps();
        let (inputs, outputs) = if gathers {
            (self.big_elements(), self.small_elements())
        } else {
            (self.small_elements(), self.big_elements())
        };
        let mut items = (0..self.samples).flat_map(|s| (0..self.groups).map(move |g| (s, g))).peekable();
        while items.peek().is_some() {
            let wave = machine.pool.threads();
            let mut slots: Vec<_> = items.by_ref().take(wave).map(|(s, g)| (s, g, Ok(Vec::new()))).collect();
            let memory = &machine.hbm;
            machine.pool.for_each(&mut slots, |_, (sample, group, out)| {
                let weight = Matrix::rows(&weights[*group * each..][..each], self.small_channels, self.taps());
                let mut values = vec![0.0f32; inputs];
                *out = load(memory, &self.part(from, *sample, *group), &mut values).map(|()| {
                    let mut out = vec![0.0f32; outputs];
                    if gathers {
                        self.gather(weight, &values, &mut out);
                    } else {
                        self.spread(weight, &values, &mut out);
                    }
                    out
                });
            });
            for (sample, group, out) in slots {
                let (mut out, view) = (out?, self.part(to, sample, group));
                if let Some(bias) = bias {
                    let channel = (out.len() / view.dim(0).max(1)).max(1);
                    for (i, out) in out.chunks_exact_mut(channel).enumerate() {
                        out.iter_mut().for_each(|value| *value += bias[group * view.dim(0) + i]);
                    }
                }
                store(&mut machine.hbm, &view, &out)?;
            }
        }
        Ok(())
    }
}

/// A tensor with its channels first where it has no samples: `[1, C, …]`.
fn with_samples(view: View, ndim: usize) -> View {
    if view.ndim() + 1 == ndim { view.unsqueeze(0) } else { view }
}

/// `input weight bias stride padding dilation transposed outputPadding groups → output`. The padding of a transposed
/// result shows in its shape.
pub fn convolution(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (input, weight, output) = (args.tensor(0)?, args.tensor(1)?, args.output(9)?);
    let (input, output) = (with_samples(input, weight.ndim()), with_samples(output, weight.ndim()));
    let geometry = Geometry::new(args, 3, &input, &weight, &output)?;
    let bias: Option<Vec<f32>> = match args.optional(2)? {
        Some(bias) => {
            shaped(&bias, &[output.dim(1)], args.name(2))?;
            Some(read(machine, &bias)?)
        }
        None => None,
    };
    let weights: Vec<f32> = read(machine, &weight)?;
    geometry.map(machine, &weights, &input, &output, !geometry.transposed, bias.as_deref())
}

/// `gradOutput input weight biasSizes stride padding dilation transposed outputPadding groups outputMask → gradInput
/// gradWeight gradBias`.
pub fn convolution_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, input, weight) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (dy, input) = (with_samples(dy, weight.ndim()), with_samples(input, weight.ndim()));
    let geometry = Geometry::new(args, 4, &input, &weight, &dy)?;
    if wanted(args, 10, 0)
        && let Some(out) = args.optional_output(12)?
    {
        let out = with_samples(out, weight.ndim());
        shaped(&out, input.dims(), args.name(12))?;
        ensure!(gemm::is_operand(out.dtype), "gradInput: type {} is not supported", lane::name(out.dtype));
        let weights: Vec<f32> = read(machine, &weight)?;
        geometry.map(machine, &weights, &dy, &out, geometry.transposed, None)?;
    }
    if wanted(args, 10, 1)
        && let Some(out) = args.optional_output(13)?
    {
        shaped(&out, weight.dims(), args.name(13))?;
        ensure!(gemm::is_operand(out.dtype), "gradWeight: type {} is not supported", lane::name(out.dtype));
        let (big, small) = if geometry.transposed { (&dy, &input) } else { (&input, &dy) };
        let each = geometry.small_channels * geometry.taps();
        ensure!(weight.elements() <= INTERMEDIATE_MAX, "weight: {} elements", weight.elements());
        let mut sums = vec![0.0f32; each * geometry.groups];
        let (mut bigs, mut smalls) = (vec![0.0; geometry.big_elements()], vec![0.0; geometry.small_elements()]);
        for sample in 0..geometry.samples {
            for (group, sums) in sums.chunks_exact_mut(each.max(1)).enumerate() {
                load(&machine.hbm, &geometry.part(big, sample, group), &mut bigs)?;
                load(&machine.hbm, &geometry.part(small, sample, group), &mut smalls)?;
                geometry.correlate(&smalls, &bigs, sums);
            }
        }
        write(machine, &out, &sums)?;
    }
    if wanted(args, 10, 2)
        && let Some(out) = args.optional_output(14)?
    {
        let channels = dy.dim(1);
        shaped(&out, &[channels], args.name(14))?;
        ensure!(gemm::is_operand(out.dtype), "gradBias: type {} is not supported", lane::name(out.dtype));
        let mut sums = vec![0.0f64; channels];
        for (channel, sum) in sums.iter_mut().enumerate() {
            *sum = read::<f64>(machine, &dy.select(1, channel))?.iter().sum();
        }
        write(machine, &out, &sums)?;
    }
    Ok(())
}
