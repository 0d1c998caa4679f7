//! Slices held to a largest norm: those of one dimension (Renorm), and the rows of an embedding table that are looked up.
//!
//! A slice whose `p`-norm exceeds the limit is scaled by `limit / (norm + 10⁻⁷)`. Norms in double precision.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::real::{float, read, shaped, write};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnEmbeddingRenorm, embedding_renorm),
    (ops::aclnnInplaceRenorm, |args, machine| renorm(args, machine, 0)),
    (ops::aclnnRenorm, |args, machine| renorm(args, machine, 4)),
];

/// Added to a norm before dividing by it, as torch does.
const SMALL: f64 = 1e-7;

/// What a slice with these values is multiplied by.
fn factor(values: &[f64], p: f64, limit: f64) -> f64 {
    let norm = if p == f64::INFINITY {
        values.iter().fold(0.0, |largest: f64, v| if v.abs() > largest || v.is_nan() { v.abs() } else { largest })
    } else if p == 0.0 {
        values.iter().filter(|v| **v != 0.0).count() as f64
    } else {
        values.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p)
    };
    if norm > limit { limit / (norm + SMALL) } else { 1.0 }
}

fn scale(machine: &mut Machine, from: &View, to: &View, p: f64, limit: f64) -> Outcome {
    let mut values: Vec<f64> = read(machine, from)?;
    let factor = factor(&values, p, limit);
    values.iter_mut().for_each(|v| *v *= factor);
    write(machine, to, &values)
}

/// `p` and the limit, which are not negative.
fn checked(p: f64, limit: f64) -> Outcome<(f64, f64)> {
    ensure!((0.0..).contains(&p) && (0.0..).contains(&limit), "p, maxNorm: {p} and {limit}, want no negative numbers");
    Ok((p, limit))
}

/// `self p dim maxNorm [→ out]`.
fn renorm(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(output)?);
    float(&x, args.name(0))?;
    float(&y, args.name(output))?;
    shaped(&y, x.dims(), args.name(output))?;
    ensure!(x.ndim() >= 2, "self: {} dimensions, want two or more", x.ndim());
    let dim = args.dim(2, x.ndim())?;
    let (p, limit) = checked(args.scalar(1)?.as_f64(), args.scalar(3)?.as_f64())?;
    (0..x.dim(dim)).try_for_each(|i| scale(machine, &x.select(dim, i), &y.select(dim, i), p, limit))
}

/// `selfRef indices maxNorm normType`: rows that are not looked up stay as they are.
fn embedding_renorm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (table, indices) = (args.output(0)?, args.tensor(1)?);
    float(&table, args.name(0))?;
    ensure!(table.ndim() == 2, "selfRef: {} dimensions, want two", table.ndim());
    let (p, limit) = checked(args.float(3)?, args.float(2)?)?;
    let mut rows: Vec<i64> = read(machine, &indices)?;
    rows.sort_unstable();
    rows.dedup();
    let inside = rows.iter().all(|&row| usize::try_from(row).is_ok_and(|row| row < table.dim(0)));
    ensure!(inside, "indices: one is not a row of {}", table.dim(0));
    for row in rows {
        let row = table.select(0, row as usize);
        scale(machine, &row, &row, p, limit)?;
    }
    Ok(())
}
