//! Operators over lists that are not an operation on each element: copies, zeros, norms, the check of a loss scale.
//!
//! The others stand with the operation that they repeat.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Outcome, ensure};
use super::super::fill;
use super::super::lane::{self, Class, class};
use super::super::nest::{CHUNK, Nest, map1, store_all};
use super::super::view::View;
use super::number::Number;
use super::{check_shape, copy, operators};

operators! {
    custom copies => aclnnForeachCopy;
    custom zeros => aclnnForeachZeroInplace;
    custom norms => aclnnForeachNorm;
    custom round_off => aclnnForeachRoundOffNumber aclnnForeachRoundOffNumberV2;
    custom unscale => aclnnForeachNonFiniteCheckAndUnscale;
    custom update_scale => aclnnAmpUpdateScale;
}

/// Calls `body` with the elements of two lists of one length; the second is written.
fn pairs(
    args: &Args<'_>,
    machine: &mut Machine,
    [from, to]: [usize; 2],
    mut body: impl FnMut(&mut Machine, &View, &View) -> Outcome,
) -> Outcome {
    let (sources, outs) = (args.tensors(from)?, args.tensors(to)?);
    let (name, count) = (args.name(from), outs.len());
    ensure!(sources.len() == count, "{name}: {} elements, but {} has {count}", sources.len(), args.name(to));
    for (source, out) in sources.zip(outs) {
        body(machine, &source?, &args.writable(to, out?)?)?;
    }
    Ok(())
}

/// `out[i] = x[i]`, converted.
fn copies(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    pairs(args, machine, [0, 1], |machine, source, out| copy(machine, out, source))
}

/// `x[i] = 0`.
fn zeros(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    for view in args.tensors(0)? {
        fill::zero(machine, &args.writable(0, view?)?)?;
    }
    Ok(())
}

/// `out[i] = (Σ |x|^p)^(1/p)` over all elements of `x[i]`; the largest magnitude for p = ∞. Sums are in double precision, in
/// row-major order.
fn norms(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let p = args.scalar(1)?.as_f64();
    ensure!((0.0..).contains(&p), "scalar: a norm of order {p} is not supported");
    pairs(args, machine, [0, 2], |machine, x, out| {
        ensure!(class(x.dtype) != Class::Int, "x: type {} is not supported", lane::name(x.dtype));
        check_shape("out", out, &[])?;
        let mut sum = 0.0f64;
        let mut piece = [0.0f64; CHUNK];
        Nest::new(x.dims(), [x])?.rows(|[row]| {
            for from in (0..row.len).step_by(CHUNK) {
                let piece = &mut piece[..CHUNK.min(row.len - from)];
                row.load(&machine.hbm, from, piece);
                for x in piece.iter().map(|x| x.abs()) {
                    sum = match p {
                        0.0 => sum + f64::truth(x != 0.0),
                        1.0 => sum + x,
                        2.0 => sum + x * x,
                        f64::INFINITY => sum.larger(x),
                        _ => sum + libm::pow(x, p),
                    };
                }
            }
        });
        let norm = match p {
            0.0 | 1.0 | f64::INFINITY => sum,
            2.0 => sum.sqrt(),
            _ => libm::pow(sum, 1.0 / p),
        };
        store_all(machine, out, |_, piece: &mut [f64]| piece.fill(norm))
    })
}

/// The first element of a tensor that holds one number.
fn only(args: &Args<'_>, machine: &Machine, position: usize) -> Outcome<f64> {
    let view = args.tensor(position)?;
    ensure!(view.elements() == 1, "{}: {} elements, want one", args.name(position), view.elements());
    let mut value = [0.0f64];
    super::super::nest::load_all(machine, &view, &mut value)?;
    Ok(value[0])
}

/// Divides gradients by the loss scale, and sets `foundInf` to 1 if one of them was not finite.
fn unscale(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (found, factor) = (args.output(1)?, only(args, machine, 2)? as f32);
    ensure!(found.elements() == 1, "foundInf: {} elements, want one", found.elements());
    for view in args.tensors(0)? {
        let view = args.writable(0, view?)?;
        let finite = std::cell::Cell::new(true);
        map1(machine, &view, &view, |x: f32| {
            finite.set(finite.get() & x.is_finite());
            if factor == 1.0 { x } else { x * factor }
        })?;
        if !finite.get() {
            store_all(machine, &found, |_, piece: &mut [f32]| piece.fill(1.0))?;
        }
    }
    Ok(())
}

/// The loss scale of the next step: smaller after a gradient was not finite, larger after `growthInterval` steps without.
fn update_scale(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (scale, steps, found) = (only(args, machine, 0)?, only(args, machine, 1)?, only(args, machine, 2)?);
    let (growth, backoff, interval) = (args.float(3)?, args.float(4)?, args.int(5)?);
    let (out_scale, out_steps) = (args.output(6)?, args.output(7)?);
    let (scale, steps) = if found != 0.0 {
        (scale * backoff, 0.0)
    } else if steps + 1.0 == interval as f64 {
        let grown = (scale as f32 * growth as f32) as f64;
        (if grown.is_finite() { grown } else { scale }, 0.0)
    } else {
        (scale, steps + 1.0)
    };
    store_all(machine, &out_scale, |_, piece: &mut [f64]| piece.fill(scale))?;
    store_all(machine, &out_steps, |_, piece: &mut [f64]| piece.fill(steps))
}

/// `x[i]` rounded as `roundMode` says: 1 to nearest, ties to even, 2 down, 3 up, 5 towards zero; 7 is the fraction that the
/// last leaves. These are the modes that torch asks for.
fn round_off(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let mode = match args.scalar(1) {
        Ok(scalar) => scalar.as_i64(),
        Err(_) => only(args, machine, 1)? as i64,
    };
    let function: fn(f64) -> f64 = match mode {
        1 => f64::round_ties_even,
        2 => f64::floor,
        3 => f64::ceil,
        5 => f64::trunc,
        7 => f64::fract,
        other => return Err(super::Fault::new(format!("roundMode: {other} is not supported"))),
    };
    pairs(args, machine, [0, 2], |machine, x, out| map1(machine, out, x, function))
}
