//! The largest of each window over two or three spatial dimensions, where it was, and the way back.
//!
//! Where it was is told in one of two ways: the index in the plane, or a *mask* with a bit for each tap of the kernel and each
//! output. The mask's layout is the device's own (on hardware too): a line of bytes for each tap, bit `i` (lowest first) for
//! output `i`. Of equal values the first counts, of several NaN, which are larger than anything, the last: as on PyTorch's CPU.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, class};
use super::number::{Number, with_lane};
use super::real::{Real, read, shaped, with_real, write};
use super::view::View;
use super::windows::{Span, Windows, float};
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAdaptiveMaxPool2d, |args, machine| adaptive(args, machine, 2)),
    (ops::aclnnAdaptiveMaxPool2dBackward, adaptive_backward),
    (ops::aclnnAdaptiveMaxPool3d, |args, machine| adaptive(args, machine, 3)),
    (ops::aclnnAdaptiveMaxPool3dBackward, adaptive_backward),
    (ops::aclnnMaxPool, max_pool),
    (ops::aclnnMaxPool2dWithIndices, |args, machine| pool(args, machine, 2, false)),
    (ops::aclnnMaxPool2dWithIndicesBackward, backward),
    (ops::aclnnMaxPool2dWithMask, |args, machine| pool(args, machine, 2, true)),
    (ops::aclnnMaxPool2dWithMaskBackward, masked_backward),
    (ops::aclnnMaxPool3dWithArgmax, |args, machine| pool(args, machine, 3, false)),
    (ops::aclnnMaxPool3dWithArgmaxBackward, backward),
    (ops::aclnnMaxUnpool2d, |args, machine| unpool(args, machine, 2, 3)),
    (ops::aclnnMaxUnpool3d, |args, machine| unpool(args, machine, 3, 5)),
];

/// The index of a window's largest value; the last NaN where there is one.
fn largest<L: Number>(windows: &Windows, values: &[L], window: [&Span; 3]) -> usize {
    let mut best: Option<usize> = None;
    windows.under(window, |at| {
        let larger = |best: usize| values[at] > values[best] || values[at].is_nan();
        if best.is_none_or(larger) {
            best = Some(at);
        }
    });
    best.expect("no window is empty")
}

/// Calls `found(plane, output, input, window)` for every window of `x` and writes the largest values to `y`.
fn each_largest(
    machine: &mut Machine,
    windows: &Windows,
    x: &View,
    y: &View,
    mut found: impl FnMut(usize, usize, usize, [&Span; 3]),
) -> Outcome {
    if y.elements() == 0 {
        return Ok(());
    }
    ensure!(!windows.has_empty(), "dilation: a window has all its taps in the padding");
    with_lane!(class(x.dtype), L => {
        let values: Vec<L> = read(machine, x)?;
        let mut out = vec![L::default(); y.elements()];
        let planes = values.chunks_exact(windows.inputs()).zip(out.chunks_exact_mut(windows.outputs()));
        for (plane, (x, y)) in planes.enumerate() {
            windows.each(|output, window| {
                let input = largest(windows, x, window);
                y[output] = x[input];
                found(plane, output, input, window);
            });
        }
        write(machine, y, &out)
    })
}

fn indices(machine: &mut Machine, windows: &Windows, x: &View, y: &View, out: &View) -> Outcome {
    let outputs = windows.outputs();
    let mut all = vec![0i64; y.elements()];
    each_largest(machine, windows, x, y, |plane, output, input, _| all[plane * outputs + output] = input as i64)?;
    write(machine, out, &all)
}

/// `self outputSize → outputOut indicesOut`.
fn adaptive(args: &Args<'_>, machine: &mut Machine, spatial: usize) -> Outcome {
    let (x, y, at) = (args.tensor(0)?, args.output(2)?, args.output(3)?);
    let windows = Windows::adaptive(spatial, [&x, &y])?;
    index(args, 3, &at, &y)?;
    indices(machine, &windows, &x, &y, &at)
}

/// `self kernelSize stride padding dilation ceilMode → out indices`.
fn pool(args: &Args<'_>, machine: &mut Machine, spatial: usize, masked: bool) -> Outcome {
    let (x, y, at) = (args.tensor(0)?, args.output(6)?, args.output(7)?);
    let windows = Windows::new(args, spatial, [&x, &y], 1, Some(4), args.int(5)? != 0)?;
    if !masked {
        index(args, 7, &at, &y)?;
        return indices(machine, &windows, &x, &y, &at);
    }
    let mask = Mask::new(args, 7, &at, y.elements() / windows.outputs().max(1), windows.outputs())?;
    let mut bits = vec![0i64; at.elements()];
    each_largest(machine, &windows, &x, &y, |plane, output, input, window| {
        let (byte, bit) = mask.place(plane, tap(&windows, mask.kernel, window, input), output);
        bits[byte] |= 1 << bit;
    })?;
    write(machine, &at, &bits)
}

/// `self kernelShape strides autoPad pads dilations ceilMode → out`, without padding and without telling where the largest were.
fn max_pool(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(7)?);
    let (auto, pads) = (args.int(3)?, args.ints(4).unwrap_or_default());
    ensure!(
        auto == 0 && pads.iter().all(|&p| p == 0),
        "pads: {pads:?} with autoPad {auto} is not supported, pad before"
    );
    ensure!(y.dtype == x.dtype, "out: type {}, want {}", lane::name(y.dtype), lane::name(x.dtype));
    let pair = |position: usize| match args.ints(position).unwrap_or_default() {
        [] if position == 5 => Ok([1, 1]),
        [both] => Ok([*both, *both]),
        [h, w] => Ok([*h, *w]),
        other => Err(Fault::new(format!("{}: {other:?}, want 2 numbers", args.name(position)))),
    };
    let windows = Windows::unpadded([&x, &y], [pair(1)?, pair(2)?, pair(5)?], args.int(6)? != 0)?;
    each_largest(machine, &windows, &x, &y, |_, _, _, _| ())
}

/// The tap of the kernel over input `at` of a window.
fn tap(windows: &Windows, [_, kernel_h, kernel_w]: [usize; 3], window: [&Span; 3], at: usize) -> usize {
    let [_, height, width] = windows.input;
    let at = [at / width / height, at / width % height, at % width];
    let [d, h, w] = [0, 1, 2].map(|dim| window[dim].skipped + (at[dim] - window[dim].start) / window[dim].step);
    (d * kernel_h + h) * kernel_w + w
}

/// Where the bits of a mask are.
struct Mask {
    kernel: [usize; 3],
    taps: usize,
    line: usize,
}

impl Mask {
    /// For the tensor at `position`, `[planes…, taps, bytes]`, of a call whose kernel has two dimensions.
    fn new(args: &Args<'_>, position: usize, view: &View, planes: usize, outputs: usize) -> Outcome<Self> {
        let name = args.name(position);
        let kernel = args.params().iter().position(|p| p.name == "kernelSize").and_then(|at| args.ints(at));
        let kernel = kernel.unwrap_or_default();
        ensure!([1, 2].contains(&kernel.len()), "kernelSize: {kernel:?}, want 2 numbers");
        let kernel = [1, kernel[0] as usize, kernel[kernel.len() - 1] as usize];
        let taps = kernel.iter().product::<usize>();
        let bits = view.dtype.bits() == 8 && view.ndim() >= 2;
        ensure!(bits, "{name}: {:?} {}, want bytes by tap", view.dims(), lane::name(view.dtype));
        let (lines, line) = (view.dim(view.ndim() - 2), view.dim(view.ndim() - 1));
        let fits = lines == taps && 8 * line >= outputs && view.elements() == planes * taps * line;
        ensure!(fits, "{name}: shape {:?} for {planes} planes, {taps} taps and {outputs} outputs", view.dims());
        Ok(Self { kernel, taps, line })
    }

    /// Index of the byte and of the bit in it.
    fn place(&self, plane: usize, tap: usize, output: usize) -> (usize, usize) {
        ((plane * self.taps + tap) * self.line + output / 8, output % 8)
    }
}

/// Checks the tensor of indices at `position`, one for each element of `of`.
fn index(args: &Args<'_>, position: usize, view: &View, of: &View) -> Outcome {
    let name = args.name(position);
    let whole = matches!(view.dtype, DataType::I32 | DataType::I64);
    ensure!(whole, "{name}: type {} is not supported (int32, int64)", lane::name(view.dtype));
    shaped(view, of.dims(), name)
}

/// `dx[plane, indices[plane, i]] += dy[plane, i]` (or `=`), all else 0, in planes of the last `spatial` dimensions.
fn spread(args: &Args<'_>, machine: &mut Machine, spatial: usize, [dy, at, dx]: [&View; 3], adds: bool) -> Outcome {
    let lead = dx.ndim().saturating_sub(spatial);
    let same = dy.ndim() == dx.ndim() && dy.dims()[..lead] == dx.dims()[..lead];
    ensure!(same, "{}: shape {:?} does not go with {:?}", args.name(0), dy.dims(), dx.dims());
    let (outputs, inputs) = (dy.dims()[lead..].iter().product(), dx.dims()[lead..].iter().product::<usize>());
    let places: Vec<i64> = read(machine, at)?;
    let inside = places.iter().all(|&at| usize::try_from(at).is_ok_and(|at| at < inputs));
    ensure!(inside, "indices: one is not in a plane of {inputs} elements");
    with_lane!(class(dx.dtype), L => {
        let values: Vec<L> = read(machine, dy)?;
        let mut out = vec![L::default(); dx.elements()];
        if !values.is_empty() {
            let planes = values.chunks_exact(outputs).zip(places.chunks_exact(outputs));
            for ((values, places), out) in planes.zip(out.chunks_exact_mut(inputs)) {
                for (value, &place) in values.iter().zip(places) {
                    let out = &mut out[place as usize];
                    *out = if adds { out.plus(*value) } else { *value };
                }
            }
        }
        write(machine, dx, &out)
    })
}

/// `gradOutput self indices … → gradInput`, the last parameter.
fn gradients(args: &Args<'_>) -> Outcome<[View; 3]> {
    let last = args.params().len() - 1;
    let (dy, x, at) = (float(args, 0, args.tensor(0)?)?, args.tensor(1)?, args.tensor(2)?);
    let dx = float(args, last, args.output(last)?)?;
    shaped(&dx, x.dims(), args.name(last))?;
    Ok([dy, at, dx])
}

/// `gradOutput self indices → gradInput`.
fn adaptive_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let spatial = if args.op() == ops::aclnnAdaptiveMaxPool2dBackward { 2 } else { 3 };
    let [dy, at, dx] = gradients(args)?;
    index(args, 2, &at, &dy)?;
    spread(args, machine, spatial, [&dy, &at, &dx], true)
}

/// `gradOutput self indices kernelSize stride padding dilation ceilMode → gradInput`.
fn backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let spatial = if args.op() == ops::aclnnMaxPool2dWithIndicesBackward { 2 } else { 3 };
    let [dy, at, dx] = gradients(args)?;
    Windows::new(args, spatial, [&dx, &dy], 3, Some(6), args.int(7)? != 0)?;
    index(args, 2, &at, &dy)?;
    spread(args, machine, spatial, [&dy, &at, &dx], true)
}

/// The same with a mask.
fn masked_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let [dy, at, dx] = gradients(args)?;
    let windows = Windows::new(args, 2, [&dx, &dy], 3, Some(6), args.int(7)? != 0)?;
    let (inputs, outputs) = (windows.inputs(), windows.outputs());
    let mask = Mask::new(args, 2, &at, dy.elements() / outputs.max(1), outputs)?;
    let bits: Vec<i64> = read(machine, &at)?;
    with_real!(dx.dtype, R => {
        let slopes: Vec<R> = read(machine, &dy)?;
        let mut out = vec![R::from_f64(0.0); dx.elements()];
        if !slopes.is_empty() {
            for (plane, (dy, dx)) in slopes.chunks_exact(outputs).zip(out.chunks_exact_mut(inputs)).enumerate() {
                windows.each(|output, window| {
                    windows.under(window, |input| {
                        let (byte, bit) = mask.place(plane, tap(&windows, mask.kernel, window, input), output);
                        if bits[byte] >> bit & 1 == 1 {
                            dx[input] += dy[output];
                        }
                    });
                });
            }
        }
        write(machine, &dx, &out)
    })
}

/// `self indices outputSize … → out`: each value where it came from, zeros elsewhere; of several for one place the last.
fn unpool(args: &Args<'_>, machine: &mut Machine, spatial: usize, output: usize) -> Outcome {
    let (x, at, out) = (args.tensor(0)?, args.tensor(1)?, args.output(output)?);
    index(args, 1, &at, &x)?;
    spread(args, machine, spatial, [&x, &at, &out], false)
}
