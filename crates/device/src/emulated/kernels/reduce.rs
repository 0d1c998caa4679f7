//! Sums and products over dimensions, and whether all or any elements are true.
//!
//! Floating-point sums accumulate in double precision: eight lanes in order, then a tree ([`sum`]), so a result depends on
//! the reduced dimensions alone and is at least as close to the exact sum as CPU torch's. Elements are converted to the
//! output's kind before they are reduced, as torch's `dtype` argument asks. A sum of nothing is 0, a product 1, a mean NaN.

use acl_abi::{DataType, ops};

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
    (ops::aclnnAll, |args, machine| truth(args, machine, Quantifier::All)),
    (ops::aclnnAny, |args, machine| truth(args, machine, Quantifier::Any)),
    (ops::aclnnMean, mean),
    (ops::aclnnProd, |args, machine| prod(args, machine, Axes::all(), 1, 2)),
    (ops::aclnnProdDim, prod_dim),
    (ops::aclnnReduceNansum, |args, machine| reduce_sum(args, machine, |v| if v.is_nan() { 0.0 } else { v })),
    (ops::aclnnReduceSum, |args, machine| reduce_sum(args, machine, |v| v)),
];

/// Sum of `f` over a group's elements, which are loaded in lane `L`.
pub fn sum<L: Number>(hbm: &Hbm, group: &Group<'_>, f: impl Fn(f64) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    group.pieces(hbm, |_, piece: &[L]| {
        let (chunks, tail) = piece.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += f(value.wide());
            }
        }
        for (lane, value) in lanes.iter_mut().zip(tail) {
            *lane += f(value.wide());
        }
    });
    let four: [f64; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Sum of a group's elements as integers; wraps.
fn whole_sum(hbm: &Hbm, group: &Group<'_>) -> i64 {
    let mut total = 0i64;
    group.pieces(hbm, |_, piece: &[i64]| total = piece.iter().fold(total, |total, &v| total.wrapping_add(v)));
    total
}

/// Refuses a `dtype` argument that is not the output's type.
pub fn check_dtype(args: &Args<'_>, position: usize, out: &View) -> Outcome {
    let want = args.int(position)?;
    ensure!(
        i64::from(out.dtype.abi()) == want,
        "{}: {want}, but the output has type {}",
        args.name(position),
        lane::name(out.dtype)
    );
    Ok(())
}

/// The lane that floating-point elements of `x` are loaded in to be reduced to `out`.
pub fn load_class(x: &View, out: &View) -> Class {
    if class(x.dtype) == Class::Double || class(out.dtype) == Class::Double { Class::Double } else { Class::Single }
}

/// `self dim keepdim dtype → out`: sum of `f(element)`; integer outputs add the elements as they are.
fn reduce_sum(args: &Args<'_>, machine: &mut Machine, f: impl Fn(f64) -> f64 + Copy) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, Axes::of(args, 1, x.ndim())?)?;
    let out = reduction.output(args, 4)?;
    check_dtype(args, 3, &out)?;
    if class(out.dtype) == Class::Int {
        return reduction.each(&[out], |group, [out, ..]| {
            let total = whole_sum(&machine.hbm, &group);
            out.store(&mut machine.hbm, 0, &[total]);
        });
    }
    with_lane!(load_class(&x, &out), L => reduction.each(&[out], |group, [out, ..]| {
        let total = sum::<L>(&machine.hbm, &group, f);
        out.store(&mut machine.hbm, 0, &[total]);
    }))
}

/// `self dim keepdim dtype → out`.
fn mean(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, Axes::of(args, 1, x.ndim())?)?;
    let out = reduction.output(args, 4)?;
    check_dtype(args, 3, &out)?;
    ensure!(class(out.dtype) != Class::Int, "out: type {} holds no mean", lane::name(out.dtype));
    with_lane!(load_class(&x, &out), L => reduction.each(&[out], |group, [out, ..]| {
        let mean = sum::<L>(&machine.hbm, &group, |v| v) / group.len() as f64;
        out.store(&mut machine.hbm, 0, &[mean]);
    }))
}

/// `self dim keepdim dtype → out`.
fn prod_dim(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let dim = args.dim(1, args.tensor(0)?.ndim())?;
    prod(args, machine, Axes::one(dim), 3, 4)
}

fn prod(args: &Args<'_>, machine: &mut Machine, axes: Axes, dtype: usize, out: usize) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, axes)?;
    let out = reduction.output(args, out)?;
    check_dtype(args, dtype, &out)?;
    with_lane!(class(out.dtype), L => reduction.each(&[out], |group, [out, ..]| {
        let mut product = L::ONE;
        group.pieces(&machine.hbm, |_, piece: &[L]| product = piece.iter().fold(product, |p, &v| p.times(v)));
        out.store(&mut machine.hbm, 0, &[product]);
    }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    All,
    Any,
}

/// `self dim keepdim → out`: whether all, or any, elements differ from 0 (NaN does).
fn truth(args: &Args<'_>, machine: &mut Machine, quantifier: Quantifier) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, Axes::of(args, 1, x.ndim())?)?;
    let out = reduction.output(args, 3)?;
    ensure!(matches!(out.dtype, DataType::Bool | DataType::U8), "out: type {}, want bool", lane::name(out.dtype));
    with_lane!(class(x.dtype), L => reduction.each(&[out], |group, [out, ..]| {
        let (mut all, mut any) = (true, false);
        group.pieces(&machine.hbm, |_, piece: &[L]| {
            for value in piece {
                let set = *value != L::default();
                all &= set;
                any |= set;
            }
        });
        out.store(&mut machine.hbm, 0, &[i64::from(if quantifier == Quantifier::All { all } else { any })]);
    }))
}
