//! SwiGlu.

use acl_abi::ops;

use super::Family;
use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::map2;
use super::view::View;
use super::{Machine, math};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnSwiGlu, swi_glu)];

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
