//! Largest and smallest elements, and where they are.
//!
//! NaN counts as more extreme than any number, so it spreads into the result; of equal elements the first one is named.

use acl_abi::ops;

use super::args::Args;
use super::axes::{Axes, Group, Reduction};
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::number::{Number, with_lane};
use super::view::View;
use super::{Family, Machine};
use crate::emulated::hbm::Hbm;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAmax, |args, machine| extreme(args, machine, &[Side::Largest], Over::Listed, 3)),
    (ops::aclnnAmin, |args, machine| extreme(args, machine, &[Side::Smallest], Over::Listed, 3)),
    (ops::aclnnAminmax, |args, machine| extreme(args, machine, &[Side::Smallest, Side::Largest], Over::Listed, 3)),
    (ops::aclnnAminmaxAll, |args, machine| extreme(args, machine, &[Side::Smallest, Side::Largest], Over::All, 1)),
    (ops::aclnnAminmaxDim, |args, machine| extreme(args, machine, &[Side::Smallest, Side::Largest], Over::One, 3)),
    (ops::aclnnArgMax, |args, machine| position(args, machine, Side::Largest, false)),
    (ops::aclnnArgMin, |args, machine| position(args, machine, Side::Smallest, false)),
    (ops::aclnnMax, |args, machine| extreme(args, machine, &[Side::Largest], Over::All, 1)),
    (ops::aclnnMaxDim, |args, machine| position(args, machine, Side::Largest, true)),
    (ops::aclnnMin, |args, machine| extreme(args, machine, &[Side::Smallest], Over::All, 1)),
    (ops::aclnnMinDim, |args, machine| position(args, machine, Side::Smallest, true)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Largest,
    Smallest,
}

/// Where an operator's reduced dimensions come from.
enum Over {
    /// All of them.
    All,
    /// The dimension in parameter 1.
    One,
    /// The int array in parameter 1.
    Listed,
}

impl Side {
    #[inline(always)]
    fn beats<L: Number>(self, a: L, b: L) -> bool {
        match self {
            Self::Largest => a > b,
            Self::Smallest => a < b,
        }
    }
}

/// Index and value of a group's extreme element, the first of equals; NaN before any number. `None` of an empty group.
fn find<L: Number>(hbm: &Hbm, group: &Group<'_>, side: Side) -> Option<(usize, L)> {
    let mut best: Option<(usize, L)> = None;
    group.pieces(hbm, |from, piece: &[L]| {
        let (value, nan) = match side {
            Side::Largest => best_of(piece, |a, b| Side::Largest.beats(a, b)),
            Side::Smallest => best_of(piece, |a, b| Side::Smallest.beats(a, b)),
        };
        let place = |want: &dyn Fn(L) -> bool| from + piece.iter().position(|&v| want(v)).unwrap_or(0);
        match best {
            Some((_, found)) if found.is_nan() => {}
            _ if nan => {
                let index = place(&|v| v.is_nan());
                best = Some((index, piece[index - from]));
            }
            Some((_, found)) if !side.beats(value, found) => {}
            _ => best = Some((place(&|v| v == value), value)),
        }
    });
    best
}

/// The extreme value of a piece, which has elements, and whether NaN is among them; eight at a time.
#[inline(always)]
fn best_of<L: Number>(piece: &[L], beats: impl Fn(L, L) -> bool + Copy) -> (L, bool) {
    const LANES: usize = 8;
    let mut lanes = [piece[0]; LANES];
    let mut nan = [false; LANES];
    let mut step = |lane: usize, value: L| {
        lanes[lane] = if beats(value, lanes[lane]) { value } else { lanes[lane] };
        nan[lane] |= value.is_nan();
    };
    let (chunks, tail) = piece.as_chunks::<LANES>();
    for chunk in chunks {
        chunk.iter().enumerate().for_each(|(lane, &value)| step(lane, value));
    }
    tail.iter().enumerate().for_each(|(lane, &value)| step(lane, value));
    let best = lanes.into_iter().reduce(|a, b| if beats(b, a) { b } else { a });
    (best.unwrap_or(piece[0]), nan.contains(&true))
}

fn check_type(args: &Args<'_>, position: usize, out: &View, x: &View) -> Outcome {
    let name = args.name(position);
    ensure!(out.dtype == x.dtype, "{name}: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    Ok(())
}

/// `self … → first second`: the extreme values over some dimensions, one output a side.
fn extreme(args: &Args<'_>, machine: &mut Machine, sides: &[Side], over: Over, first: usize) -> Outcome {
    let x = args.tensor(0)?;
    let axes = match over {
        Over::All => Axes::all(),
        Over::One => Axes::one(args.dim(1, x.ndim())?),
        Over::Listed => Axes::of(args, 1, x.ndim())?,
    };
    let reduction = Reduction::new(machine, &x, axes)?;
    let mut outputs = [x; 2];
    for (i, output) in outputs[..sides.len()].iter_mut().enumerate() {
        *output = reduction.output(args, first + i)?;
        check_type(args, first + i, output, &x)?;
    }
    ensure!(!reduction.lacks_elements(), "self: a reduced dimension of {:?} is empty", x.dims());
    with_lane!(class(x.dtype), L => reduction.each(&outputs[..sides.len()], |group, rows| {
        for (&side, row) in sides.iter().zip(rows) {
            if let Some((_, value)) = find::<L>(&machine.hbm, &group, side) {
                row.store(&mut machine.hbm, 0, &[value]);
            }
        }
    }))
}

/// `self dim keepdim → [values] indices`.
fn position(args: &Args<'_>, machine: &mut Machine, side: Side, with_values: bool) -> Outcome {
    let x = args.tensor(0)?;
    let dim = args.dim(1, x.ndim())?;
    let reduction = Reduction::new(machine, &x, Axes::one(dim))?;
    let at = if with_values { 4 } else { 3 };
    let indices = reduction.output(args, at)?;
    ensure!(
        class(indices.dtype) == Class::Int,
        "{}: type {}, want int32 or int64",
        args.name(at),
        lane::name(indices.dtype)
    );
    let values = if with_values { Some(reduction.output(args, 3)?) } else { None };
    if let Some(values) = &values {
        check_type(args, 3, values, &x)?;
    }
    ensure!(!reduction.lacks_elements(), "self: dimension {dim} is empty");
    let outputs = [indices, values.unwrap_or(indices)];
    with_lane!(class(x.dtype), L => reduction.each(&outputs, |group, [index_row, value_row, _]| {
        if let Some((index, value)) = find::<L>(&machine.hbm, &group, side) {
            if with_values {
                value_row.store(&mut machine.hbm, 0, &[value]);
            }
            index_row.store(&mut machine.hbm, 0, &[index as i64]);
        }
    }))
}
