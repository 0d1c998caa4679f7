//! SwiGlu.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::map2;
use super::view::View;
use super::{Family, Machine, math};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnSwiGlu, swi_glu)];

fn float(args: &Args<'_>, position: usize, view: &View) -> Outcome {
    let name = args.name(position);
    ensure!(class(view.dtype) == Class::Single, "{name}: type {} is not supported", lane::name(view.dtype));
    Ok(())
}

/// The halves of `whole` along the dimension that `position` names; `half` has the shape of one.
fn halves(args: &Args<'_>, position: usize, whole: &View, half: &View, half_name: &str) -> Outcome<[View; 2]> {
    ensure!(whole.ndim() > 0, "x: at least one dimension is required");
    let dim = args.dim(position, whole.ndim())?;
    let size = whole.dim(dim);
    ensure!(size.is_multiple_of(2), "x: size {size} of dimension {dim} is odd");
    let fits = half.ndim() == whole.ndim()
        && (0..whole.ndim()).all(|d| half.dim(d) == if d == dim { size / 2 } else { whole.dim(d) });
    ensure!(fits, "{half_name}: shape {:?} is not half of {:?} along dimension {dim}", half.dims(), whole.dims());
    Ok([whole.narrow(dim, 0, size / 2), whole.narrow(dim, size / 2, size / 2)])
}

/// `out = silu(a) · b`, where `a` and `b` are the halves of `x` along `dim`.
pub fn swi_glu(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(2)?);
    float(args, 0, &x)?;
    float(args, 2, &out)?;
    let [a, b] = halves(args, 1, &x, &out, "out")?;
    map2(machine, &out, &a, &b, |a: f32, b: f32| a * math::sigmoid(a) * b)
}
