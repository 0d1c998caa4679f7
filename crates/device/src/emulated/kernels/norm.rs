//! RmsNorm and its variants, and the gradient.
//!
//! `y = x · rstd · gamma` with `rstd = 1/√(mean(x²) + epsilon)` over the dimensions of gamma, the last ones of `x`, in
//! single precision, rounded once. The sum has one fixed order ([`math::sum_of_squares`]), so a row's result does not
//! depend on its neighbours.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::store_all;
use super::real::{leading, load, read, store, write};
use super::view::View;
use super::{Family, Machine, math, sized};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAddRmsNorm, add_rms_norm),
    (ops::aclnnAddRmsNormBias, add_rms_norm_bias),
    (ops::aclnnAddRmsNormCast, add_rms_norm_cast),
    (ops::aclnnGemmaRmsNorm, gemma_rms_norm),
    (ops::aclnnInplaceAddRmsNorm, inplace_add_rms_norm),
    (ops::aclnnRmsNorm, rms_norm),
    (ops::aclnnRmsNormGrad, rms_norm_grad),
];

/// `x gamma epsilon → yOut rstdOut`.
pub fn rms_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    plain(args, machine, 0.0)
}

/// The same with `1 + gamma` in the place of gamma.
pub fn gemma_rms_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    plain(args, machine, 1.0)
}

fn plain(args: &Args<'_>, machine: &mut Machine, gamma_more: f32) -> Outcome {
    let operands = Operands {
        x: args.tensor(0)?,
        other: None,
        gamma: args.tensor(1)?,
        gamma_more,
        beta: None,
        epsilon: args.float(2)?,
        y: args.output(3)?,
        wide: None,
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
        gamma_more: 0.0,
        beta: None,
        epsilon: args.float(3)?,
        y: args.output(4)?,
        wide: None,
        rstd: args.optional_output(5)?,
        sum: Some(args.output(6)?),
    };
    operands.run(machine)
}

/// `x1 x2 gamma betaOptional epsilon → yOut rstdOut xOut`: the same plus beta, an operator of vllm_ascend's own library.
pub fn add_rms_norm_bias(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let operands = Operands {
        x: args.tensor(0)?,
        other: Some(args.tensor(1)?),
        gamma: args.tensor(2)?,
        gamma_more: 0.0,
        beta: args.optional(3)?,
        epsilon: args.float(4)?,
        y: args.output(5)?,
        wide: None,
        rstd: args.optional_output(6)?,
        sum: Some(args.output(7)?),
    };
    operands.run(machine)
}

/// `x1 x2 gamma epsilon → y1Out y2Out rstdOut xOut`: the same with a result in single precision beside the other.
pub fn add_rms_norm_cast(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let operands = Operands {
        x: args.tensor(0)?,
        other: Some(args.tensor(1)?),
        gamma: args.tensor(2)?,
        gamma_more: 0.0,
        beta: None,
        epsilon: args.float(3)?,
        wide: Some(args.output(4)?),
        y: args.output(5)?,
        rstd: args.optional_output(6)?,
        sum: Some(args.output(7)?),
    };
    operands.run(machine)
}

/// `x1Ref x2Ref gamma epsilon → rstdOut`: the result goes to `x1`, the sum to `x2`.
pub fn inplace_add_rms_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, other) = (args.output(0)?, args.output(1)?);
    let operands = Operands {
        x,
        other: Some(other),
        gamma: args.tensor(2)?,
        gamma_more: 0.0,
        beta: None,
        epsilon: args.float(3)?,
        y: x,
        wide: None,
        rstd: args.optional_output(4)?,
        sum: Some(other),
    };
    operands.run(machine)
}

struct Operands {
    x: View,
    other: Option<View>,
    gamma: View,
    /// Added to gamma.
    gamma_more: f32,
    /// Added to the result, before it is rounded.
    beta: Option<View>,
    epsilon: f64,
    y: View,
    /// The result once more.
    wide: Option<View>,
    rstd: Option<View>,
    sum: Option<View>,
}

impl Operands {
    /// Number of leading dimensions that count rows.
    fn lead(&self) -> usize {
        self.x.ndim() - self.gamma.ndim()
    }

    fn check(&self) -> Outcome {
        let Self { x, other, gamma, y, wide, rstd, sum, .. } = self;
        ensure!(x.ndim() >= 1, "x: at least one dimension is required");
        for (name, view) in [("gamma", gamma), ("yOut", y), ("x", x)] {
            ensure!(class(view.dtype) == Class::Single, "{name}: type {} is not supported", lane::name(view.dtype));
        }
        ensure!(
            gamma.ndim() >= 1 && x.dims().ends_with(gamma.dims()),
            "gamma: shape {:?} is not that of the last dimensions of {:?}",
            gamma.dims(),
            x.dims()
        );
        if let Some(beta) = &self.beta {
            let fits = beta.dims() == gamma.dims() && class(beta.dtype) == Class::Single;
            ensure!(fits, "betaOptional: {:?} {}, want gamma's shape", beta.dims(), lane::name(beta.dtype));
        }
        ensure!(y.dims() == x.dims(), "yOut: shape {:?}, want {:?}", y.dims(), x.dims());
        if let Some(wide) = wide {
            let fits = wide.dims() == x.dims() && class(wide.dtype) == Class::Single;
            ensure!(fits, "y1Out: {:?} {}, want {:?} float32", wide.dims(), lane::name(wide.dtype), x.dims());
        }
        if let Some(other) = other {
            ensure!(other.dims() == x.dims(), "x2: shape {:?}, want {:?}", other.dims(), x.dims());
            ensure!(other.dtype == x.dtype, "x2: type {}, want {}", lane::name(other.dtype), lane::name(x.dtype));
        }
        if let Some(sum) = sum {
            ensure!(sum.dims() == x.dims(), "xOut: shape {:?}, want {:?}", sum.dims(), x.dims());
            ensure!(sum.dtype == x.dtype, "xOut: type {}, want {}", lane::name(sum.dtype), lane::name(x.dtype));
        }
        if let Some(rstd) = rstd {
            let rows: usize = x.dims()[..self.lead()].iter().product();
            ensure!(rstd.dtype == DataType::F32, "rstdOut: type {}, want float32", lane::name(rstd.dtype));
            ensure!(rstd.elements() == rows, "rstdOut: shape {:?} does not hold {rows} rows", rstd.dims());
        }
        Ok(())
    }

    fn run(&self, machine: &mut Machine) -> Outcome {
        self.check()?;
        let Self { x, other, gamma, gamma_more, beta, y, wide, rstd, sum, epsilon } = self;
        let lead = self.lead();
        let (width, rows) = (gamma.elements(), x.dims()[..lead].iter().product::<usize>());
        let mut buffer = std::mem::take(&mut machine.scratch.operand);
        let values = sized(&mut buffer, width.saturating_mul(4).saturating_add(rows))?;
        let (gammas, values) = values.split_at_mut(width);
        let (betas, values) = values.split_at_mut(width);
        let (row, values) = values.split_at_mut(width);
        let (term, rstds) = values.split_at_mut(width);
        let hbm = &mut machine.hbm;
        load(hbm, gamma, gammas)?;
        gammas.iter_mut().for_each(|gamma| *gamma += gamma_more);
        match beta {
            Some(beta) => load(hbm, beta, betas)?,
            None => betas.fill(0.0),
        }
        for (index, rstd) in rstds.iter_mut().enumerate() {
            let part = |view: &View| leading(view, lead, index);
            load(hbm, &part(x), row)?;
            if let Some(other) = other {
                load(hbm, &part(other), term)?;
                row.iter_mut().zip(term.iter()).for_each(|(x, term)| *x += *term);
            }
            if let Some(sum) = sum {
                store(hbm, &part(sum), row)?;
                load(hbm, &part(sum), row)?;
            }
            let mean = math::sum_of_squares(row) / width as f32;
            *rstd = 1.0 / (mean + *epsilon as f32).sqrt();
            for ((x, gamma), beta) in row.iter_mut().zip(gammas.iter()).zip(betas.iter()) {
                *x = *x * *rstd * *gamma + *beta;
            }
            store(hbm, &part(y), row)?;
            if let Some(wide) = wide {
                store(hbm, &part(wide), row)?;
            }
        }
        if let Some(view) = rstd {
            store_all(machine, view, |from, out| out.copy_from_slice(&rstds[from..from + out.len()]))?;
        }
        machine.scratch.operand = buffer;
        Ok(())
    }
}

/// `dy x rstd gamma → dxOut dgammaOut`: `dx = rstd·(g − x·rstd²·mean(g·x))` with `g = dy·gamma`; `dgamma = Σ dy·x·rstd`.
pub fn rms_norm_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, x, rstd, gamma) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.tensor(3)?);
    let (dx, dgamma) = (args.output(4)?, args.output(5)?);
    for (position, view) in [&dy, &x, &rstd, &gamma, &dx, &dgamma].into_iter().enumerate() {
        super::real::float(view, args.name(position))?;
    }
    for (position, view) in [(0, &dy), (4, &dx)] {
        super::real::shaped(view, x.dims(), args.name(position))?;
    }
    super::real::shaped(&dgamma, gamma.dims(), args.name(5))?;
    ensure!(
        gamma.ndim() >= 1 && x.dims().ends_with(gamma.dims()),
        "gamma: shape {:?} is not that of the last dimensions of {:?}",
        gamma.dims(),
        x.dims()
    );
    let width = gamma.elements();
    let rows: usize = x.dims()[..x.ndim() - gamma.ndim()].iter().product();
    ensure!(rstd.elements() == rows, "rstd: shape {:?} does not hold {rows} rows", rstd.dims());
    let (rstds, gammas): (Vec<f64>, Vec<f64>) = (read(machine, &rstd)?, read(machine, &gamma)?);
    let (mut xs, mut slopes): (Vec<f64>, Vec<f64>) = (read(machine, &x)?, read(machine, &dy)?);
    let mut sums = vec![0.0; width];
    for ((xs, slopes), rstd) in xs.chunks_exact_mut(width.max(1)).zip(slopes.chunks_exact_mut(width.max(1))).zip(rstds)
    {
        let mut mean = 0.0;
        for (i, (x, slope)) in xs.iter().zip(slopes.iter_mut()).enumerate() {
            sums[i] += *slope * x * rstd;
            *slope *= gammas[i];
            mean += *slope * x / width as f64;
        }
        for (x, slope) in xs.iter_mut().zip(slopes) {
            *x = rstd * (*slope - *x * rstd * rstd * mean);
        }
    }
    write(machine, &dx, &xs)?;
    write(machine, &dgamma, &sums)
}
