//! SwiGlu, Softmax.

use acl_abi::ops;

use super::Family;
use super::args::Args;
use super::fault::{Outcome, ensure};
use super::index::move_last;
use super::lane::{self, Class, class};
use super::nest::{lines, map2};
use super::view::View;
use super::{Machine, math, sized};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnSoftmax, softmax), (ops::aclnnSwiGlu, swi_glu)];

fn float(args: &Args<'_>, position: usize, view: &View) -> Outcome {
    let name = args.name(position);
    ensure!(class(view.dtype) == Class::Single, "{name}: type {} is not supported", lane::name(view.dtype));
    Ok(())
}

/// `out = silu(a) · b`, where `a` and `b` are the halves of `x` along `dim`.
pub fn swi_glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    float(args, 0, &x)?;
    float(args, 2, &out)?;
    ensure!(x.ndim() > 0, "x: at least one dimension is required");
    let dim = args.dim(1, x.ndim())?;
    let size = x.dim(dim);
    ensure!(size % 2 == 0, "x: size {size} of dimension {dim} is odd");
    let fits =
        out.ndim() == x.ndim() && (0..x.ndim()).all(|d| out.dim(d) == if d == dim { size / 2 } else { x.dim(d) });
    ensure!(fits, "out: shape {:?} is not half of {:?} along dimension {dim}", out.dims(), x.dims());
    let (a, b) = (x.narrow(dim, 0, size / 2), x.narrow(dim, size / 2, size / 2));
    map2(machine, &out, &a, &b, |a: f32, b: f32| a * math::sigmoid(a) * b)
}

/// `out = softmax(self)` along `dim`.
pub fn softmax(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    float(args, 0, &x)?;
    float(args, 2, &out)?;
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    let dim = args.dim(1, x.ndim())?;
    let (x, out) = if x.ndim() == 0 { (x.unsqueeze(0), out.unsqueeze(0)) } else { (x, out) };
    let (x, out) = (move_last(&x, dim), move_last(&out, dim));
    let last = x.ndim() - 1;
    let mut buffer = std::mem::take(&mut machine.scratch.operand);
    let row = sized(&mut buffer, x.dim(last))?;
    let outcome = lines(&x.dims()[..last], [&out, &x], |[out, x]| {
        x.load(&machine.hbm, 0, row);
        math::exp_shifted(row, math::max(row));
        let sum = math::sum(row);
        for value in row.iter_mut() {
            *value /= sum;
        }
        out.store(&mut machine.hbm, 0, row);
    });
    machine.scratch.operand = buffer;
    outcome
}
