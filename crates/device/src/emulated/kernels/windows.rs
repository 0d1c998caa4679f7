//! Where the windows of a pooling lie: along each of three spatial dimensions, the input positions under every output
//! position.
//!
//! A tensor is planes of those dimensions, as many as its leading sizes multiply to; dimensions that it does not have come
//! first, with one position. Windows of a fixed kernel, stride, padding and dilation, and those that share an input among a
//! number of outputs (*adaptive*), are the same afterwards.

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::view::View;
use super::{INTERMEDIATE_MAX, real};

/// The positions of one dimension under one output position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First position.
    pub start: usize,
    /// Behind the last position.
    pub end: usize,
    /// From one to the next.
    pub step: usize,
    /// Taps of the kernel that lie before the input.
    pub skipped: usize,
    /// Length with the padding on both sides.
    pub padded: usize,
}

impl Span {
    /// The positions.
    pub fn positions(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        (self.start..self.end).step_by(self.step)
    }

    /// Positions inside of the input.
    pub fn count(&self) -> usize {
        self.end.saturating_sub(self.start).div_ceil(self.step)
    }
}

/// Kernel size, stride, padding and dilation of one dimension.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
}

impl Rule {
    /// Positions from the first to behind the last tap.
    fn reach(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// Number of output positions of `input` ones: PyTorch's rule, by which a window that would begin in the padding behind
    /// the input is left out where sizes round up.
    fn outputs(&self, input: usize, round_up: bool) -> Option<usize> {
        let room = (input + 2 * self.padding).checked_sub(self.reach())?;
        let mut outputs = (room + if round_up { self.stride - 1 } else { 0 }) / self.stride + 1;
        if round_up && (outputs - 1) * self.stride >= input + self.padding {
            outputs -= 1;
        }
        Some(outputs)
    }

    fn span(&self, output: usize, input: usize) -> Span {
        let first = output * self.stride;
        let skipped = self.padding.saturating_sub(first).div_ceil(self.dilation);
        let start = (first + skipped * self.dilation).saturating_sub(self.padding);
        let last = first + self.reach();
        let end = last.saturating_sub(self.padding).min(input);
        let padded = (first + self.kernel).min(input + 2 * self.padding) - first;
        Span { start: start.min(end), end, step: self.dilation, skipped, padded }
    }
}

/// The windows of one plane.
pub struct Windows {
    /// Sizes of the input.
    pub input: [usize; 3],
    /// Sizes of the output.
    pub output: [usize; 3],
    spans: [Vec<Span>; 3],
}

impl Windows {
    /// Windows of kernels, strides and paddings at `first` and the two positions behind, dilations at `dilation`; `big` and
    /// `small` are input and output, or their gradients. One number stands for all dimensions, no stride for the kernel's size.
    pub fn new(
        args: &Args<'_>,
        spatial: usize,
        sides: [&View; 2],
        first: usize,
        dilation: Option<usize>,
        round_up: bool,
    ) -> Outcome<Self> {
        let (input, output) = sizes(spatial, sides)?;
        let numbers = |position: usize, least: i64, otherwise: Option<[usize; 3]>| -> Outcome<[usize; 3]> {
            let (given, name) = (args.ints(position).unwrap_or_default(), args.name(position));
            if let (true, Some(otherwise)) = (given.is_empty(), otherwise) {
                return Ok(otherwise);
            }
            let fits = [1, spatial].contains(&given.len()) && given.iter().all(|v| (least..=1 << 20).contains(v));
            ensure!(fits, "{name}: {given:?}, want {spatial} numbers from {least} on");
            let mut all = [least as usize; 3];
            for (i, all) in all[3 - spatial..].iter_mut().enumerate() {
                *all = given[i.min(given.len() - 1)] as usize;
            }
            Ok(all)
        };
        let kernel = numbers(first, 1, None)?;
        let (stride, padding) = (numbers(first + 1, 1, Some(kernel))?, numbers(first + 2, 0, None)?);
        let dilation = dilation.map_or(Ok([1; 3]), |position| numbers(position, 1, None))?;
        let rule = |dim: usize| Rule {
            kernel: kernel[dim],
            stride: stride[dim],
            padding: padding[dim],
            dilation: dilation[dim],
        };
        Self::by_rules([input, output], [0, 1, 2].map(rule), round_up)
    }

    /// Windows by a rule for each dimension, of a plane of these input and output sizes.
    fn by_rules([input, output]: [[usize; 3]; 2], rules: [Rule; 3], round_up: bool) -> Outcome<Self> {
        let mut spans = [const { Vec::new() }; 3];
        for (dim, rule) in rules.into_iter().enumerate() {
            let want = rule.outputs(input[dim], round_up);
            ensure!(
                want == Some(output[dim]) && 2 * rule.padding <= rule.reach(),
                "out: {} positions of {} with {rule:?}, want {want:?}",
                output[dim],
                input[dim]
            );
            spans[dim] = (0..output[dim]).map(|o| rule.span(o, input[dim])).collect();
        }
        Ok(Self { input, output, spans })
    }

    /// Windows over two dimensions of these kernel sizes, strides and dilations, without padding.
    pub fn unpadded(sides: [&View; 2], [kernel, stride, dilation]: [[i64; 2]; 3], round_up: bool) -> Outcome<Self> {
        let (input, output) = sizes(2, sides)?;
        let all = [kernel, stride, dilation].as_flattened().iter().all(|v| (1..=1 << 20).contains(v));
        ensure!(all, "kernelShape: {kernel:?}, strides {stride:?}, dilations {dilation:?}: want numbers from 1 on");
        let rule = |at: usize| {
            let [kernel, stride, dilation] = [kernel, stride, dilation].map(|pair| pair[at] as usize);
            Rule { kernel, stride, padding: 0, dilation }
        };
        let one = Rule { kernel: 1, stride: 1, padding: 0, dilation: 1 };
        Self::by_rules([input, output], [one, rule(0), rule(1)], round_up)
    }

    /// Windows that share the input among the outputs, overlapping where that does not come out even.
    pub fn adaptive(spatial: usize, sides: [&View; 2]) -> Outcome<Self> {
        let (input, output) = sizes(spatial, sides)?;
        let spans = std::array::from_fn(|dim| {
            let (i, o) = (input[dim], output[dim]);
            let span = |at: usize| {
                let (start, end) = (at * i / o, ((at + 1) * i).div_ceil(o));
                Span { start, end, step: 1, skipped: 0, padded: end - start }
            };
            (0..o).map(span).collect()
        });
        Ok(Self { input, output, spans })
    }

    /// Input elements of a plane.
    pub fn inputs(&self) -> usize {
        self.input.iter().product()
    }

    /// Output elements of a plane.
    pub fn outputs(&self) -> usize {
        self.output.iter().product()
    }

    /// True if a window has no position in the input.
    pub fn has_empty(&self) -> bool {
        self.spans.iter().flatten().any(|span| span.count() == 0)
    }

    /// Calls `body` with each output's index and its spans.
    pub fn each(&self, mut body: impl FnMut(usize, [&Span; 3])) {
        let mut output = 0;
        for d in &self.spans[0] {
            for h in &self.spans[1] {
                for w in &self.spans[2] {
                    body(output, [d, h, w]);
                    output += 1;
                }
            }
        }
    }

    /// Calls `body` with the index in its plane of every input under a window.
    pub fn under(&self, [d, h, w]: [&Span; 3], mut body: impl FnMut(usize)) {
        for d in d.positions() {
            for h in h.positions() {
                let row = (d * self.input[1] + h) * self.input[2];
                w.positions().for_each(|w| body(row + w));
            }
        }
    }
}

/// Sizes of the spatial dimensions of input and output, whose leading sizes must agree.
fn sizes(spatial: usize, [big, small]: [&View; 2]) -> Outcome<([usize; 3], [usize; 3])> {
    let known = [spatial + 1, spatial + 2].contains(&big.ndim()) && small.ndim() == big.ndim();
    ensure!(known, "self: {:?} to {:?} is not supported in {spatial} dimensions", big.dims(), small.dims());
    let lead = big.ndim() - spatial;
    let same = big.dims()[..lead] == small.dims()[..lead];
    ensure!(same, "out: shape {:?} does not go with {:?}", small.dims(), big.dims());
    for view in [big, small] {
        ensure!(view.elements() <= INTERMEDIATE_MAX, "self: {} elements, at most {INTERMEDIATE_MAX}", view.elements());
    }
    let of = |view: &View| {
        let mut all = [1; 3];
        all[3 - spatial..].copy_from_slice(&view.dims()[lead..]);
        all
    };
    let (input, output) = (of(big), of(small));
    let empty = input.contains(&0) && !output.contains(&0) && small.elements() > 0;
    ensure!(!empty, "self: nothing to pool in {:?}", big.dims());
    Ok((input, output))
}

/// The position of parameter `name`.
pub fn position_of(args: &Args<'_>, name: &str) -> Outcome<usize> {
    let found = args.params().iter().position(|p| p.name == name);
    found.ok_or_else(|| Fault::new(format!("no parameter {name}")))
}

/// A floating-point tensor.
pub fn float(args: &Args<'_>, position: usize, view: View) -> Outcome<View> {
    real::float(&view, args.name(position))?;
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_count_what_lies_inside_and_what_the_padding_adds() {
        let rule = Rule { kernel: 3, stride: 2, padding: 1, dilation: 1 };
        assert_eq!((rule.outputs(4, false), rule.outputs(4, true)), (Some(2), Some(3)));
        let spans: Vec<_> = (0..3).map(|o| rule.span(o, 4)).map(|s| (s.start, s.end, s.skipped, s.padded)).collect();
        assert_eq!(spans, [(0, 2, 1, 3), (1, 4, 0, 3), (3, 4, 0, 2)]);
        let wide = Rule { kernel: 2, stride: 1, padding: 1, dilation: 3 };
        assert_eq!(wide.outputs(4, false), Some(3));
        let spans: Vec<_> = (0..3).map(|o| wide.span(o, 4)).collect();
        let positions: Vec<Vec<usize>> = spans.iter().map(|s| s.positions().collect()).collect();
        assert_eq!(positions, [vec![2], vec![0, 3], vec![1]]);
        assert_eq!(spans.iter().map(|s| (s.skipped, s.count())).collect::<Vec<_>>(), [(1, 1), (0, 2), (0, 1)]);
    }

    #[test]
    fn no_window_begins_behind_the_input() {
        // Three windows of 1 with stride 3 would need the last to begin at 6, in the padding.
        let rule = Rule { kernel: 2, stride: 3, padding: 1, dilation: 1 };
        assert_eq!((rule.outputs(5, true), rule.outputs(6, true)), (Some(2), Some(3)));
    }
}
