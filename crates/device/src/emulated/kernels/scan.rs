//! Running sums, products and extremes along a dimension.
//!
//! Sums and products of floats accumulate in double precision, as torch's CPU kernels do. A line is loaded piece by piece
//! before it is stored, so the output may be the input.

use acl_abi::ops;

use super::args::{Args, wrap_dim};
use super::axes::move_last;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{CHUNK, lines};
use super::number::{Number, with_lane};
use super::reduce::{check_dtype, load_class};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnCummax, |args, machine| extreme(args, machine, true)),
    (ops::aclnnCummin, |args, machine| extreme(args, machine, false)),
    (ops::aclnnCumprod, cumprod),
    (ops::aclnnCumsum, cumsum),
];

/// `self dim dtype → out`.
fn cumsum(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let dim = args.dim(1, args.tensor(0)?.ndim())?;
    scan(args, machine, dim, (0.0, |a, b| a + b), (0, i64::wrapping_add))
}

/// `input dim dtype → out`; the dimension comes as a scalar.
fn cumprod(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = args.tensor(0)?;
    let dim = wrap_dim(args.name(1), args.scalar(1)?.as_i64(), x.ndim())?;
    scan(args, machine, dim, (1.0, |a, b| a * b), (1, i64::wrapping_mul))
}

/// A start and how the next element changes it.
type Step<T> = (T, fn(T, T) -> T);

fn scan(args: &Args<'_>, machine: &mut Machine, dim: usize, real: Step<f64>, whole: Step<i64>) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(3)?);
    check_dtype(args, 2, &out)?;
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    let (x, out) = (move_last(&x, dim), move_last(&out, dim));
    if class(out.dtype) == Class::Int {
        return scan_lines(machine, &x, &out, whole, |v: i64| v, |v| v);
    }
    with_lane!(load_class(&x, &out), L => scan_lines(machine, &x, &out, real, L::wide, L::narrow))
}

fn scan_lines<L: Number, T: Copy>(
    machine: &mut Machine,
    x: &View,
    out: &View,
    (start, step): Step<T>,
    widen: impl Fn(L) -> T,
    round: impl Fn(T) -> L,
) -> Outcome {
    let mut piece = [L::default(); CHUNK];
    lines(&x.dims()[..x.ndim() - 1], [out, x], |[out, x]| {
        let mut running = start;
        for from in (0..x.len).step_by(CHUNK) {
            let piece = &mut piece[..CHUNK.min(x.len - from)];
            x.load(&machine.hbm, from, piece);
            for value in piece.iter_mut() {
                running = step(running, widen(*value));
                *value = round(running);
            }
            out.store(&mut machine.hbm, from, piece);
        }
    })
}

/// `self dim → values indices`: the running extreme and where it is, the last of equals; NaN stays once it is met.
fn extreme(args: &Args<'_>, machine: &mut Machine, largest: bool) -> Outcome {
    let x = args.tensor(0)?;
    let dim = args.dim(1, x.ndim())?;
    let (values, indices) = (args.output(2)?, args.output(3)?);
    for (name, out) in [("valuesOut", &values), ("indicesOut", &indices)] {
        ensure!(out.dims() == x.dims(), "{name}: shape {:?}, want {:?}", out.dims(), x.dims());
    }
    ensure!(values.dtype == x.dtype, "valuesOut: type {}, want {}", lane::name(values.dtype), lane::name(x.dtype));
    ensure!(class(indices.dtype) == Class::Int, "indicesOut: type {}, want int64", lane::name(indices.dtype));
    let [x, values, indices] = [x, values, indices].map(|view| move_last(&view, dim));
    with_lane!(class(x.dtype), L => {
        let mut piece = [L::default(); CHUNK];
        let mut places = [0i64; CHUNK];
        lines(&x.dims()[..x.ndim() - 1], [&x, &values, &indices], |[x, values, indices]| {
            let mut best: Option<(L, usize)> = None;
            for from in (0..x.len).step_by(CHUNK) {
                let n = CHUNK.min(x.len - from);
                x.load(&machine.hbm, from, &mut piece[..n]);
                for i in 0..n {
                    let value = piece[i];
                    let found = match best {
                        Some((best, at)) => {
                            let beats = if largest { value >= best } else { value <= best };
                            if value.is_nan() || (!best.is_nan() && beats) { (value, from + i) } else { (best, at) }
                        }
                        None => (value, from + i),
                    };
                    best = Some(found);
                    piece[i] = found.0;
                    places[i] = found.1 as i64;
                }
                values.store(&mut machine.hbm, from, &piece[..n]);
                indices.store(&mut machine.hbm, from, &places[..n]);
            }
        })
    })
}
