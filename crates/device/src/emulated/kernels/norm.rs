//! RmsNorm and AddRmsNorm.
//!
//! `y = x · rstd · gamma` with `rstd = 1/√(mean(x²) + epsilon)` over the last dimension, in single precision, rounded
//! once. The sum has one fixed order ([`math::sum_of_squares`]), so a row's result does not depend on its neighbours.

use acl_abi::{DataType, ops};

use super::Family;
use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{lines, store_all};
use super::view::View;
use super::{Machine, math, sized};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnAddRmsNorm, add_rms_norm), (ops::aclnnRmsNorm, rms_norm)];

/// `x gamma epsilon → yOut rstdOut`.
pub fn rms_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let operands = Operands {
        x: args.tensor(0)?,
        other: None,
        gamma: args.tensor(1)?,
        epsilon: args.float(2)?,
        y: args.output(3)?,
        rstd: args.optional_output(4)?,
        sum: None,
    };
    operands.run(machine)
}

/// `x1 x2 gamma epsilon → yOut rstdOut xOut`: `xOut = x1 + x2`, rounded to its type, is what gets normalised, as a
/// separate addition would leave it.
pub fn add_rms_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let operands = Operands {
        x: args.tensor(0)?,
        other: Some(args.tensor(1)?),
        gamma: args.tensor(2)?,
        epsilon: args.float(3)?,
        y: args.output(4)?,
        rstd: args.optional_output(5)?,
        sum: Some(args.output(6)?),
    };
    operands.run(machine)
}

struct Operands {
    x: View,
    other: Option<View>,
    gamma: View,
    epsilon: f64,
    y: View,
    rstd: Option<View>,
    sum: Option<View>,
}

impl Operands {
    fn check(&self) -> Outcome {
        let Self { x, other, gamma, y, rstd, sum, .. } = self;
        ensure!(x.ndim() >= 1, "x: at least one dimension is required");
        for (name, view) in [("gamma", gamma), ("yOut", y)] {
            ensure!(class(view.dtype) == Class::Single, "{name}: type {} is not supported", lane::name(view.dtype));
        }
        ensure!(class(x.dtype) == Class::Single, "x: type {} is not supported", lane::name(x.dtype));
        let width = x.dim(x.ndim() - 1);
        ensure!(
            gamma.dims() == [width],
            "gamma: shape {:?}, want [{width}] (normalisation over the last dimension)",
            gamma.dims()
        );
        ensure!(y.dims() == x.dims(), "yOut: shape {:?}, want {:?}", y.dims(), x.dims());
        if let Some(other) = other {
            ensure!(other.dims() == x.dims(), "x2: shape {:?}, want {:?}", other.dims(), x.dims());
            ensure!(other.dtype == x.dtype, "x2: type {}, want {}", lane::name(other.dtype), lane::name(x.dtype));
        }
        if let Some(sum) = sum {
            ensure!(sum.dims() == x.dims(), "xOut: shape {:?}, want {:?}", sum.dims(), x.dims());
            ensure!(sum.dtype == x.dtype, "xOut: type {}, want {}", lane::name(sum.dtype), lane::name(x.dtype));
        }
        if let Some(rstd) = rstd {
            let rows: usize = x.dims()[..x.ndim() - 1].iter().product();
            ensure!(rstd.dtype == DataType::F32, "rstdOut: type {}, want float32", lane::name(rstd.dtype));
            ensure!(rstd.elements() == rows, "rstdOut: shape {:?} does not hold {rows} rows", rstd.dims());
        }
        Ok(())
    }

    fn run(&self, machine: &mut Machine) -> Outcome {
        self.check()?;
        let Self { x, other, gamma, y, rstd, sum, epsilon } = self;
        let lead = &x.dims()[..x.ndim() - 1];
        let (width, rows) = (x.dim(x.ndim() - 1), lead.iter().product::<usize>());
        let mut buffer = std::mem::take(&mut machine.scratch.operand);
        let values = sized(&mut buffer, 3 * width + rows)?;
        let (gammas, values) = values.split_at_mut(width);
        let (row, values) = values.split_at_mut(width);
        let (term, rstds) = values.split_at_mut(width);
        gamma.row().load(&machine.hbm, 0, gammas);
        let mut done = 0;
        // Absent operands stand in for themselves; they are not read.
        let (other_view, sum_view) = (other.as_ref().unwrap_or(x), sum.as_ref().unwrap_or(y));
        let outcome = lines(lead, [x, other_view, y, sum_view], |[x, other_row, y, sum_row]| {
            let hbm = &mut machine.hbm;
            x.load(hbm, 0, row);
            if other.is_some() {
                other_row.load(hbm, 0, term);
                for (x, term) in row.iter_mut().zip(term.iter()) {
                    *x += *term;
                }
            }
            if sum.is_some() {
                sum_row.store(hbm, 0, row);
                sum_row.load(hbm, 0, row);
            }
            let mean = math::sum_of_squares(row) / width as f32;
            let rstd = 1.0 / (mean + *epsilon as f32).sqrt();
            for (x, gamma) in row.iter_mut().zip(gammas.iter()) {
                *x = *x * rstd * *gamma;
            }
            y.store(hbm, 0, row);
            rstds[done] = rstd;
            done += 1;
        });
        let stored = match rstd {
            Some(view) => store_all(machine, view, |from, out| out.copy_from_slice(&rstds[from..from + out.len()])),
            None => Ok(()),
        };
        machine.scratch.operand = buffer;
        outcome.and(stored)
    }
}
