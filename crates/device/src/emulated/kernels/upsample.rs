//! Resampling of the last one to three dimensions: nearest, linear and cubic, the latter two also with anti-aliasing, and the
//! gradients.
//!
//! Every form is separable: along a dimension an output is a weighted sum of a few inputs ([`Taps`]), one dimension after
//! another, and the gradient is the same with the roles exchanged. Weights are those of PyTorch's CPU, in double precision; sums
//! in the lane of the operands, rounded once.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::number::with_lane;
use super::real::{Real, float, read, with_real, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Kernel, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnUpsampleBicubic2d, |args, machine| forward(args, machine, Method::Cubic)),
    (ops::aclnnUpsampleBicubic2dAA, |args, machine| forward(args, machine, Method::SmoothCubic)),
    (ops::aclnnUpsampleBicubic2dAAGrad, |args, machine| backward(args, machine, Method::SmoothCubic)),
    (ops::aclnnUpsampleBicubic2dBackward, |args, machine| backward(args, machine, Method::Cubic)),
    (ops::aclnnUpsampleBilinear2d, LINEAR),
    (ops::aclnnUpsampleBilinear2dAA, |args, machine| forward(args, machine, Method::SmoothLinear)),
    (ops::aclnnUpsampleBilinear2dAABackward, |args, machine| backward(args, machine, Method::SmoothLinear)),
    (ops::aclnnUpsampleBilinear2dBackward, LINEAR_BACKWARD),
    (ops::aclnnUpsampleBilinear2dBackwardV2, LINEAR_BACKWARD),
    (ops::aclnnUpsampleLinear1d, LINEAR),
    (ops::aclnnUpsampleLinear1dBackward, LINEAR_BACKWARD),
    (ops::aclnnUpsampleNearest1d, NEAREST),
    (ops::aclnnUpsampleNearest1dBackward, NEAREST_BACKWARD),
    (ops::aclnnUpsampleNearest1dV2, NEAREST),
    (ops::aclnnUpsampleNearest2d, NEAREST),
    (ops::aclnnUpsampleNearest2dBackward, NEAREST_BACKWARD),
    (ops::aclnnUpsampleNearest2dV2, NEAREST),
    (ops::aclnnUpsampleNearest3d, NEAREST),
    (ops::aclnnUpsampleNearest3dBackward, NEAREST_BACKWARD),
    (ops::aclnnUpsampleNearestExact1d, EXACT),
    (ops::aclnnUpsampleNearestExact1dBackward, EXACT_BACKWARD),
    (ops::aclnnUpsampleNearestExact2d, EXACT),
    (ops::aclnnUpsampleNearestExact2dBackward, EXACT_BACKWARD),
    (ops::aclnnUpsampleNearestExact3d, EXACT),
    (ops::aclnnUpsampleNearestExact3dBackward, EXACT_BACKWARD),
    (ops::aclnnUpsampleTrilinear3d, LINEAR),
    (ops::aclnnUpsampleTrilinear3dBackward, LINEAR_BACKWARD),
];

const LINEAR: Kernel = |args, machine| forward(args, machine, Method::Linear);
const LINEAR_BACKWARD: Kernel = |args, machine| backward(args, machine, Method::Linear);
const NEAREST: Kernel = |args, machine| nearest(args, machine, 0.0);
const NEAREST_BACKWARD: Kernel = |args, machine| backward(args, machine, Method::Nearest(0.0));
const EXACT: Kernel = |args, machine| nearest(args, machine, 0.5);
const EXACT_BACKWARD: Kernel = |args, machine| backward(args, machine, Method::Nearest(0.5));

/// How an output is made of inputs.
#[derive(Clone, Copy)]
enum Method {
    /// The input under a point this far inside of the output.
    Nearest(f32),
    Linear,
    Cubic,
    SmoothLinear,
    SmoothCubic,
}

/// The inputs, with their weights, that each output along one dimension is made of.
type Taps = Vec<Vec<(usize, f64)>>;

/// What is known of one dimension.
#[derive(Clone, Copy)]
struct Line {
    input: usize,
    output: usize,
    /// True where the first and last points of both lie on each other.
    corners: bool,
    /// Outputs an input, where the caller says so.
    scale: Option<f64>,
    double: bool,
}

impl Line {
    /// Inputs an output.
    fn step(&self) -> f64 {
        if self.corners {
            return if self.output > 1 { (self.input as f64 - 1.0) / (self.output as f64 - 1.0) } else { 0.0 };
        }
        self.scale.map_or(self.input as f64 / self.output as f64, |scale| 1.0 / scale)
    }

    /// The input under output `at`; in the precision of the elements, because it jumps.
    fn nearest(&self, at: usize, inside: f32) -> usize {
        let place = if self.double {
            ((at as f64 + f64::from(inside)) * self.step()).floor() as usize
        } else {
            ((at as f32 + inside) * self.step() as f32).floor() as usize
        };
        place.min(self.input - 1)
    }

    /// The point of the input that lies under the middle of output `at`.
    fn point(&self, at: usize) -> f64 {
        if self.corners { at as f64 * self.step() } else { (at as f64 + 0.5) * self.step() - 0.5 }
    }

    fn taps(&self, method: Method) -> Taps {
        let all = 0..self.output;
        match method {
            Method::Nearest(inside) => all.map(|at| vec![(self.nearest(at, inside), 1.0)]).collect(),
            Method::Linear => all.map(|at| self.linear(at)).collect(),
            Method::Cubic => all.map(|at| self.cubic(at)).collect(),
            Method::SmoothLinear => all.map(|at| self.smooth(at, 1.0, |x| (1.0 - x.abs()).max(0.0))).collect(),
            Method::SmoothCubic => all.map(|at| self.smooth(at, 2.0, |x| cubic(x, -0.5))).collect(),
        }
    }

    fn linear(&self, at: usize) -> Vec<(usize, f64)> {
        let point = self.point(at).max(0.0);
        let first = (point as usize).min(self.input - 1);
        let part = (point - first as f64).clamp(0.0, 1.0);
        vec![(first, 1.0 - part), ((first + 1).min(self.input - 1), part)]
    }

    fn cubic(&self, at: usize) -> Vec<(usize, f64)> {
        let point = self.point(at);
        let (first, last) = (point.floor(), self.input as f64 - 1.0);
        let tap = |i: i32| {
            let place = first + f64::from(i);
            (place.clamp(0.0, last) as usize, cubic(point - place, -0.75))
        };
        (-1..3).map(tap).collect()
    }

    /// All inputs within `reach` of the output's middle, measured in outputs where these are further apart than inputs.
    fn smooth(&self, at: usize, reach: f64, weight: impl Fn(f64) -> f64) -> Vec<(usize, f64)> {
        let step = self.step();
        let width = step.max(1.0);
        let middle = (at as f64 + 0.5) * step;
        let from = (middle - reach * width + 0.5).max(0.0) as usize;
        let to = ((middle + reach * width + 0.5).max(0.0) as usize).min(self.input);
        let weights: Vec<f64> = (from..to).map(|i| weight((i as f64 - middle + 0.5) / width)).collect();
        let sum: f64 = weights.iter().sum();
        let whole = if sum == 0.0 { 1.0 } else { sum };
        (from..to).zip(weights.iter().map(|w| w / whole)).collect()
    }
}

/// Keys' cubic convolution kernel with parameter `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// The lines of a call between `big` and `small`: input and output, or their gradients.
fn lines(args: &Args<'_>, input: &View, output: &View) -> Outcome<Vec<Line>> {
    let named = |name: &str| args.params().iter().position(|p| p.name.starts_with(name));
    let sizes = args.ints(1).unwrap_or_default();
    let spatial = sizes.len();
    let known = (1..=3).contains(&spatial) && input.ndim() == spatial + 2 && output.ndim() == input.ndim();
    ensure!(known, "self: {:?} to {:?} in {spatial} dimensions is not supported", input.dims(), output.dims());
    ensure!(input.dims()[..2] == output.dims()[..2], "out: {:?} of {:?}", output.dims(), input.dims());
    for view in [input, output] {
        let (count, max) = (view.elements(), INTERMEDIATE_MAX);
        ensure!(count <= max, "self: {count} elements, at most {max}");
    }
    let corners = named("alignCorners").map_or(Ok(0), |at| args.int(at))? != 0;
    let line = |dim: usize| {
        let (have, out) = (input.dim(2 + dim), output.dim(2 + dim));
        ensure!(sizes[dim] == out as i64 && have > 0, "outputSize: {sizes:?} from {:?}", input.dims());
        let scale = named("scale").map(|at| args.float(at + dim)).transpose()?.filter(|&scale| scale > 0.0);
        Ok(Line { input: have, output: out, corners, scale, double: input.dtype == DataType::F64 })
    };
    (0..spatial).map(line).collect()
}

/// One dimension of `values`, `inner` elements between its elements, replaced by what `taps` make of it; the other way round
/// where `back`.
fn apply<R: Real>(values: &[R], inner: usize, [from, to]: [usize; 2], taps: &Taps, back: bool) -> Vec<R> {
    let outer = values.len() / (from * inner).max(1);
    let mut out = vec![R::from_f64(0.0); outer * to * inner];
    if out.is_empty() || values.is_empty() {
        return out;
    }
    for (values, out) in values.chunks_exact(from * inner).zip(out.chunks_exact_mut(to * inner)) {
        for (small, taps) in taps.iter().enumerate() {
            for &(big, weight) in taps {
                let (read, write) = if back { (small, big) } else { (big, small) };
                let weight = R::from_f64(weight);
                let read = &values[read * inner..][..inner];
                out[write * inner..][..inner].iter_mut().zip(read).for_each(|(out, &value)| *out += weight * value);
            }
        }
    }
    out
}

/// Resamples `from` to `to` along `lines`, last dimension first.
fn resample(machine: &mut Machine, lines: &[Line], method: Method, from: &View, to: &View, back: bool) -> Outcome {
    with_real!(from.dtype, R => {
        let mut values: Vec<R> = read(machine, from)?;
        let mut inner = 1;
        for line in lines.iter().rev() {
            let sides = if back { [line.output, line.input] } else { [line.input, line.output] };
            values = apply(&values, inner, sides, &line.taps(method), back);
            inner *= sides[1];
        }
        write(machine, to, &values)
    })
}

/// `self outputSize … → out`.
fn forward(args: &Args<'_>, machine: &mut Machine, method: Method) -> Outcome {
    let (x, y) = sides(args)?;
    float(&x, args.name(0))?;
    resample(machine, &lines(args, &x, &y)?, method, &x, &y, false)
}

/// `gradOut outputSize inputSize … → gradInput`.
fn backward(args: &Args<'_>, machine: &mut Machine, method: Method) -> Outcome {
    let (dy, dx) = sides(args)?;
    float(&dy, args.name(0))?;
    let want: Vec<i64> = dx.dims().iter().map(|&d| d as i64).collect();
    ensure!(args.ints(2) == Some(&want[..]), "inputSize: {:?}, but the result is {want:?}", args.ints(2));
    resample(machine, &lines(args, &dx, &dy)?, method, &dy, &dx, true)
}

/// The first and the last tensor, of one type.
fn sides(args: &Args<'_>) -> Outcome<(View, View)> {
    let last = args.params().len() - 1;
    let (from, to) = (args.tensor(0)?, args.output(last)?);
    let same = || Fault::new(format!("{}: type {}", args.name(last), lane::name(to.dtype)));
    if from.dtype == to.dtype { Ok((from, to)) } else { Err(same()) }
}

/// `self outputSize … → out`, which moves elements of any type.
fn nearest(args: &Args<'_>, machine: &mut Machine, inside: f32) -> Outcome {
    let (x, y) = sides(args)?;
    if class(x.dtype) != Class::Int {
        return forward(args, machine, Method::Nearest(inside));
    }
    let mut sources = vec![0];
    for line in lines(args, &x, &y)? {
        let places: Vec<usize> = (0..line.output).map(|at| line.nearest(at, inside)).collect();
        sources = sources.iter().flat_map(|&at| places.iter().map(move |&place| at * line.input + place)).collect();
    }
    let inputs: usize = x.dims()[2..].iter().product();
    with_lane!(class(x.dtype), L => {
        let values: Vec<L> = read(machine, &x)?;
        let planes = values.chunks_exact(inputs);
        let out: Vec<L> = planes.flat_map(|plane| sources.iter().map(|&at| plane[at])).collect();
        write(machine, &y, &out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(input: usize, output: usize, corners: bool) -> Line {
        Line { input, output, corners, scale: None, double: false }
    }

    #[test]
    fn weights_of_an_output_sum_to_one() {
        for method in [Method::Nearest(0.0), Method::Linear, Method::Cubic, Method::SmoothLinear, Method::SmoothCubic] {
            for (input, output) in [(1, 5), (5, 1), (4, 7), (7, 4), (3, 3)] {
                for corners in [false, true] {
                    for taps in line(input, output, corners).taps(method) {
                        let sum: f64 = taps.iter().map(|t| t.1).sum();
                        assert!((sum - 1.0).abs() < 1e-12 && taps.iter().all(|t| t.0 < input));
                    }
                }
            }
        }
    }

    #[test]
    fn corners_are_kept_where_they_are_to_be() {
        let taps = line(3, 5, true).taps(Method::Linear);
        assert_eq!((taps[0][0], taps[1].as_slice(), taps[4][0]), ((0, 1.0), &[(0, 0.5), (1, 0.5)][..], (2, 1.0)));
        let half = line(4, 2, false).taps(Method::Linear);
        assert_eq!(half, [[(0, 0.5), (1, 0.5)], [(2, 0.5), (3, 0.5)]]);
    }

    #[test]
    fn a_nearest_point_may_lie_in_the_middle() {
        let taps = |inside| line(5, 3, false).taps(Method::Nearest(inside)).iter().map(|t| t[0].0).collect::<Vec<_>>();
        assert_eq!((taps(0.0), taps(0.5)), (vec![0, 1, 3], vec![0, 2, 4]));
    }
}
