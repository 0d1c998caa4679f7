//! Averages of windows over two or three spatial dimensions, of fixed or adaptive size, and their gradients.
//!
//! A window's divisor is the number that the caller gives, else its size: with the padding on both sides, or what lies in the
//! input. Sums in the lane of the operands.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::real::{Real, read, with_real, write};
use super::view::View;
use super::windows::{Span, Windows, float, position_of};
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAdaptiveAvgPool2d, |args, machine| adaptive(args, machine, 2)),
    (ops::aclnnAdaptiveAvgPool2dBackward, |args, machine| adaptive_backward(args, machine, 2)),
    (ops::aclnnAdaptiveAvgPool3d, |args, machine| adaptive(args, machine, 3)),
    (ops::aclnnAdaptiveAvgPool3dBackward, |args, machine| adaptive_backward(args, machine, 3)),
    (ops::aclnnAvgPool2d, |args, machine| average(args, machine, 2)),
    (ops::aclnnAvgPool2dBackward, |args, machine| average_backward(args, machine, 2)),
    (ops::aclnnAvgPool3d, |args, machine| average(args, machine, 3)),
    (ops::aclnnAvgPool3dBackward, |args, machine| average_backward(args, machine, 3)),
];

/// What a window's sum is divided by.
#[derive(Clone, Copy)]
enum Divisor {
    Given(f64),
    Padded,
    Inside,
}

impl Divisor {
    /// `countIncludePad` at `position`, `divisorOverride` behind it; 0 means none.
    fn of(args: &Args<'_>, position: usize) -> Outcome<Self> {
        Ok(match args.int(position + 1)? {
            0 if args.int(position)? != 0 => Self::Padded,
            0 => Self::Inside,
            given => Self::Given(given as f64),
        })
    }

    fn value(self, window: [&Span; 3]) -> f64 {
        match self {
            Self::Given(value) => value,
            Self::Padded => window.iter().map(|span| span.padded).product::<usize>() as f64,
            Self::Inside => window.iter().map(|span| span.count()).product::<usize>() as f64,
        }
    }
}

fn forward(machine: &mut Machine, windows: &Windows, divisor: Divisor, x: &View, y: &View) -> Outcome {
    with_real!(x.dtype, R => {
        let values: Vec<R> = read(machine, x)?;
        let mut out = vec![R::from_f64(0.0); y.elements()];
        if out.is_empty() {
            return Ok(());
        }
        for (x, y) in values.chunks_exact(windows.inputs()).zip(out.chunks_exact_mut(windows.outputs())) {
            windows.each(|output, window| {
                let mut sum = R::from_f64(0.0);
                windows.under(window, |input| sum += x[input]);
                y[output] = sum / R::from_f64(divisor.value(window));
            });
        }
        write(machine, y, &out)
    })
}

fn backward(machine: &mut Machine, windows: &Windows, divisor: Divisor, dy: &View, dx: &View) -> Outcome {
    with_real!(dx.dtype, R => {
        let slopes: Vec<R> = read(machine, dy)?;
        let mut out = vec![R::from_f64(0.0); dx.elements()];
        if !slopes.is_empty() {
            for (dy, dx) in slopes.chunks_exact(windows.outputs()).zip(out.chunks_exact_mut(windows.inputs())) {
                windows.each(|output, window| {
                    let share = dy[output] / R::from_f64(divisor.value(window));
                    windows.under(window, |input| dx[input] += share);
                });
            }
        }
        write(machine, dx, &out)
    })
}

/// `self kernelSize strides paddings ceilMode countIncludePad divisorOverride … → out`.
fn average(args: &Args<'_>, machine: &mut Machine, spatial: usize) -> Outcome {
    let last = args.params().len() - 1;
    let (x, y) = (float(args, 0, args.tensor(0)?)?, float(args, last, args.output(last)?)?);
    let windows = Windows::new(args, spatial, [&x, &y], 1, None, args.int(4)? != 0)?;
    forward(machine, &windows, Divisor::of(args, 5)?, &x, &y)
}

/// `gradOutput self kernelSize stride padding ceilMode countIncludePad divisorOverride … → gradInput`.
fn average_backward(args: &Args<'_>, machine: &mut Machine, spatial: usize) -> Outcome {
    let last = args.params().len() - 1;
    let (dy, dx) = sides(args, last)?;
    let windows = Windows::new(args, spatial, [&dx, &dy], 2, None, args.int(5)? != 0)?;
    backward(machine, &windows, Divisor::of(args, 6)?, &dy, &dx)
}

/// `self outputSize → out`.
fn adaptive(args: &Args<'_>, machine: &mut Machine, spatial: usize) -> Outcome {
    let (x, y) = (float(args, 0, args.tensor(0)?)?, float(args, 2, args.output(2)?)?);
    let windows = Windows::adaptive(spatial, [&x, &y])?;
    forward(machine, &windows, Divisor::Inside, &x, &y)
}

/// `gradOutput self → gradInput`.
fn adaptive_backward(args: &Args<'_>, machine: &mut Machine, spatial: usize) -> Outcome {
    let (dy, dx) = sides(args, position_of(args, "out")?)?;
    let windows = Windows::adaptive(spatial, [&dx, &dy])?;
    backward(machine, &windows, Divisor::Inside, &dy, &dx)
}

/// The gradients of the output, at 0, and of the input, of the shape of the tensor at 1.
fn sides(args: &Args<'_>, output: usize) -> Outcome<(View, View)> {
    let (dy, dx) = (float(args, 0, args.tensor(0)?)?, float(args, output, args.output(output)?)?);
    let x = args.tensor(1)?;
    ensure!(dx.dims() == x.dims(), "{}: shape {:?}, want {:?}", args.name(output), dx.dims(), x.dims());
    Ok((dy, dx))
}
