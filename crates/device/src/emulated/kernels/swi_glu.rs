//! SwiGlu and its gradient.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{CHUNK, Nest, map2};
use super::view::View;
use super::{Family, Machine, math};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnSwiGlu, swi_glu), (ops::aclnnSwiGluGrad, swi_glu_grad)];

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

/// `yGrad x dim → out`: `da = g·b·σ(a)·(1 + a·(1 − σ(a)))`, `db = g·silu(a)`, halves of `out`.
pub fn swi_glu_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (g, x, out) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    for (position, view) in [(0, &g), (1, &x), (3, &out)] {
        float(args, position, view)?;
    }
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    let [a, b] = halves(args, 2, &x, &g, "yGrad")?;
    let [da, db] = halves(args, 2, &out, &g, "yGrad")?;
    let nest = Nest::new(g.dims(), [&da, &db, &g, &a, &b])?;
    let mut rows = [[0f32; CHUNK]; 3];
    nest.rows(|[da, db, g, a, b]| {
        for from in (0..g.len).step_by(CHUNK) {
            let n = CHUNK.min(g.len - from);
            let [gs, xs, ys] = &mut rows;
            g.load(&machine.hbm, from, &mut gs[..n]);
            a.load(&machine.hbm, from, &mut xs[..n]);
            b.load(&machine.hbm, from, &mut ys[..n]);
            for ((g, a), b) in gs.iter_mut().zip(xs.iter_mut()).zip(ys.iter()).take(n) {
                let (slope, sigma) = (*g, math::sigmoid(*a));
                *g = slope * *b * sigma * (1.0 + *a * (1.0 - sigma));
                *a = slope * *a * sigma;
            }
            da.store(&mut machine.hbm, from, &gs[..n]);
            db.store(&mut machine.hbm, from, &xs[..n]);
        }
    });
    Ok(())
}
