//! Distances between rows by a `p`-norm: of all pairs from two sets (Cdist), of the pairs of one (Pdist), and the gradient of
//! the former. Double precision, rounded once.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::nest::broadcast_shape;
use super::real::{float, read, read_as, shaped, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family =
    &[(ops::aclnnCdist, cdist), (ops::aclnnCdistBackward, cdist_backward), (ops::aclnnPdist, pdist)];

/// The `p`-norm of `a − b`; the number of elements that differ where `p` is 0.
fn distance(a: &[f64], b: &[f64], p: f64) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    if p == f64::INFINITY {
        differences.fold(0.0, |largest, d| if d > largest || d.is_nan() { d } else { largest })
    } else if p == 0.0 {
        differences.filter(|d| *d != 0.0).count() as f64
    } else if p == 1.0 {
        differences.sum()
    } else if p == 2.0 {
        differences.map(|d| d * d).sum::<f64>().sqrt()
    } else {
        differences.map(|d| d.powf(p)).sum::<f64>().powf(1.0 / p)
    }
}

/// The derivative of a distance by the first row's element that differs by `d`; 0 where the distance is 0.
fn slope(d: f64, distance: f64, p: f64) -> f64 {
    if p == 0.0 || d == 0.0 || distance == 0.0 {
        0.0
    } else if p == f64::INFINITY {
        if d.abs() == distance { d.signum() } else { 0.0 }
    } else {
        d.signum() * (d.abs() / distance).powf(p - 1.0)
    }
}

fn exponent(args: &Args<'_>, position: usize) -> Outcome<f64> {
    let p = args.float(position)?;
    ensure!((0.0..).contains(&p), "p: {p} is negative");
    Ok(p)
}

/// Rows of `[…, rows, width]`, as host values of the batch that two sets have in common.
struct Rows {
    rows: usize,
    width: usize,
    values: Vec<f64>,
}

/// Both sets of rows and their common batch.
fn pair(args: &Args<'_>, machine: &Machine, positions: [usize; 2]) -> Outcome<(Vec<usize>, [Rows; 2])> {
    let [a, b] = positions.map(|position| args.tensor(position));
    let (a, b) = (a?, b?);
    for (view, position) in [(&a, positions[0]), (&b, positions[1])] {
        float(view, args.name(position))?;
        ensure!(view.ndim() >= 2, "{}: {} dimensions, want two or more", args.name(position), view.ndim());
    }
    let lead = |view: &View| view.dims()[..view.ndim() - 2].to_vec();
    let batch = broadcast_shape(&lead(&a), &lead(&b))?.dims().to_vec();
    let (wide, other) = (a.dim(a.ndim() - 1), b.dim(b.ndim() - 1));
    ensure!(wide == other, "{}: rows of {other}, want {wide}", args.name(positions[1]));
    let rows = |view: &View| -> Outcome<Rows> {
        let rows = view.dim(view.ndim() - 2);
        let dims = [&batch[..], &[rows, wide]].concat();
        Ok(Rows { rows, width: wide, values: read_as(machine, view, &dims)? })
    };
    Ok((batch.clone(), [rows(&a)?, rows(&b)?]))
}

impl Rows {
    fn row(&self, batch: usize, row: usize) -> &[f64] {
        &self.values[(batch * self.rows + row) * self.width..][..self.width]
    }
}

/// `x1 x2 p compute_mode → out`; the mode only says how to get there.
fn cdist(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (p, out) = (exponent(args, 2)?, args.output(4)?);
    let (batch, [a, b]) = pair(args, machine, [0, 1])?;
    float(&out, args.name(4))?;
    shaped(&out, &[&batch[..], &[a.rows, b.rows]].concat(), args.name(4))?;
    ensure!(out.elements() <= INTERMEDIATE_MAX, "out: {} elements, at most {INTERMEDIATE_MAX}", out.elements());
    let (a, b) = (&a, &b);
    let distances: Vec<f64> = (0..batch.iter().product())
        .flat_map(|n| (0..a.rows).flat_map(move |i| (0..b.rows).map(move |j| distance(a.row(n, i), b.row(n, j), p))))
        .collect();
    write(machine, &out, &distances)
}

/// `grad x1 x2 cdist p → out`: the gradient of `x1`, expanded to the common batch.
fn cdist_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (p, out) = (exponent(args, 4)?, args.output(5)?);
    let (batch, [a, b]) = pair(args, machine, [1, 2])?;
    let dims = [&batch[..], &[a.rows, b.rows]].concat();
    let (slopes, distances): (Vec<f64>, Vec<f64>) =
        (read_as(machine, &args.tensor(0)?, &dims)?, read_as(machine, &args.tensor(3)?, &dims)?);
    float(&out, args.name(5))?;
    shaped(&out, &[&batch[..], &[a.rows, a.width]].concat(), args.name(5))?;
    let mut gradients = vec![0.0; out.elements()];
    for (at, (dy, distance)) in slopes.iter().zip(&distances).enumerate() {
        let (j, row) = (at % b.rows, at / b.rows);
        let (n, i) = (row / a.rows, row % a.rows);
        let pairs = a.row(n, i).iter().zip(b.row(n, j));
        for (gradient, (a, b)) in gradients[row * a.width..].iter_mut().zip(pairs) {
            *gradient += dy * slope(a - b, *distance, p);
        }
    }
    write(machine, &out, &gradients)
}

/// `self p → out`: the distances of row `i` and every later one, for each `i` in turn.
fn pdist(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, p, out) = (args.tensor(0)?, exponent(args, 1)?, args.output(2)?);
    float(&x, args.name(0))?;
    float(&out, args.name(2))?;
    ensure!(x.ndim() == 2, "self: {} dimensions, want two", x.ndim());
    let (rows, width) = (x.dim(0), x.dim(1));
    shaped(&out, &[rows * rows.saturating_sub(1) / 2], args.name(2))?;
    ensure!(out.elements() <= INTERMEDIATE_MAX, "out: {} elements, at most {INTERMEDIATE_MAX}", out.elements());
    let values: Vec<f64> = read(machine, &x)?;
    let row = |i: usize| &values[i * width..][..width];
    let distances: Vec<f64> =
        (0..rows).flat_map(|i| (i + 1..rows).map(move |j| (i, j))).map(|(i, j)| distance(row(i), row(j), p)).collect();
    write(machine, &out, &distances)
}
