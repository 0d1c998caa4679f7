//! Small dense matrices, batch by batch: inverse, triangular systems, determinant, QR and singular values.
//!
//! Textbook methods in double precision, rounded once: elimination with partial pivots, Householder reflections, and one-sided
//! Jacobi rotations, which give every singular value to nearly full precision. A crate for them would bring three dozen others.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::real::{float, leading, read, shaped, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnInverse, inverse),
    (ops::aclnnLinalgQr, qr),
    (ops::aclnnSlogdet, slogdet),
    (ops::aclnnSvd, svd),
    (ops::aclnnTriangularSolve, triangular_solve),
];

/// Rotations go on until all columns are orthogonal to this part of their lengths, or so many sweeps are done.
const ORTHOGONAL: f64 = 1e-14;
/// A column this much shorter than another is what rounding left of nothing.
const NOTHING: f64 = 1e-14;
const SWEEPS_MAX: usize = 60;

/// A row-major matrix.
#[derive(Clone, Debug, PartialEq)]
struct Dense {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl std::ops::Index<(usize, usize)> for Dense {
    type Output = f64;
    fn index(&self, (i, j): (usize, usize)) -> &f64 {
        &self.values[i * self.columns + j]
    }
}

impl std::ops::IndexMut<(usize, usize)> for Dense {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut f64 {
        &mut self.values[i * self.columns + j]
    }
}

impl Dense {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    fn identity(size: usize) -> Self {
        let mut one = Self::zeros(size, size);
        (0..size).for_each(|i| one[(i, i)] = 1.0);
        one
    }

    fn read(machine: &Machine, view: &View) -> Outcome<Self> {
        Ok(Self { rows: view.dim(0), columns: view.dim(1), values: read(machine, view)? })
    }

    fn transposed(&self) -> Self {
        let mut other = Self::zeros(self.columns, self.rows);
        for i in 0..self.rows {
            for j in 0..self.columns {
                other[(j, i)] = self[(i, j)];
            }
        }
        other
    }

    /// The first `rows` rows and `columns` columns.
    fn corner(&self, rows: usize, columns: usize) -> Self {
        let values = (0..rows).flat_map(|i| (0..columns).map(move |j| self[(i, j)])).collect();
        Self { rows, columns, values }
    }

    fn column(&self, j: usize) -> impl Iterator<Item = f64> + '_ {
        (0..self.rows).map(move |i| self[(i, j)])
    }

    fn dot(&self, a: usize, b: usize) -> f64 {
        self.column(a).zip(self.column(b)).map(|(x, y)| x * y).sum()
    }

    /// Makes this square matrix upper triangular by exchanging rows and subtracting multiples of them, and does the same to
    /// `beside`; the sign of the exchanges.
    fn eliminate(&mut self, beside: &mut Self) -> f64 {
        let mut sign = 1.0;
        for at in 0..self.rows {
            let pivot = (at..self.rows).max_by(|&a, &b| self[(a, at)].abs().total_cmp(&self[(b, at)].abs()));
            let pivot = pivot.unwrap_or(at);
            if pivot != at {
                sign = -sign;
                (0..self.columns).for_each(|j| self.values.swap(pivot * self.columns + j, at * self.columns + j));
                (0..beside.columns)
                    .for_each(|j| beside.values.swap(pivot * beside.columns + j, at * beside.columns + j));
            }
            if self[(at, at)] == 0.0 {
                continue;
            }
            for below in at + 1..self.rows {
                let factor = self[(below, at)] / self[(at, at)];
                for matrix in [&mut *self, &mut *beside] {
                    for j in 0..matrix.columns {
                        let above = matrix[(at, j)];
                        matrix[(below, j)] -= factor * above;
                    }
                }
            }
        }
        sign
    }

    /// `X` of `self · X = right`, of which only the upper triangle counts (the lower, if `lower`; ones on the diagonal, if
    /// `unit`). A zero on the diagonal divides all the same.
    fn solve(&self, right: &Self, lower: bool, unit: bool) -> Self {
        let mut x = right.clone();
        let order: Vec<usize> = if lower { (0..self.rows).collect() } else { (0..self.rows).rev().collect() };
        for (done, &i) in order.iter().enumerate() {
            for j in 0..x.columns {
                let known: f64 = order[..done].iter().map(|&k| self[(i, k)] * x[(k, j)]).sum();
                x[(i, j)] = (x[(i, j)] - known) / if unit { 1.0 } else { self[(i, i)] };
            }
        }
        x
    }

    /// Orthogonal `Q`, square, and `R` with `Q·R` this matrix.
    fn qr(&self) -> (Self, Self) {
        let (mut q, mut r) = (Self::identity(self.rows), self.clone());
        for at in 0..self.columns.min(self.rows.saturating_sub(1)) {
            let mut v: Vec<f64> = r.column(at).collect();
            v[..at].fill(0.0);
            let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            if length == 0.0 {
                continue;
            }
            v[at] += length.copysign(v[at]);
            let square: f64 = v.iter().map(|x| x * x).sum();
            for j in 0..r.columns {
                let twice = 2.0 * r.column(j).zip(&v).map(|(r, v)| r * v).sum::<f64>() / square;
                (0..r.rows).for_each(|i| r[(i, j)] -= twice * v[i]);
            }
            for i in 0..q.rows {
                let twice = 2.0 * (0..q.columns).map(|k| q[(i, k)] * v[k]).sum::<f64>() / square;
                (0..q.columns).for_each(|k| q[(i, k)] -= twice * v[k]);
            }
            (at + 1..r.rows).for_each(|i| r[(i, at)] = 0.0);
        }
        (q, r)
    }

    /// `(U, σ, V)` with this matrix `U·σ·Vᵀ`, σ descending; of at least as many rows as columns, which is what `U` has too.
    fn tall_svd(&self) -> Outcome<(Self, Vec<f64>, Self)> {
        let (mut u, mut v) = (self.clone(), Self::identity(self.columns));
        for sweep in 0.. {
            let mut turned = false;
            for a in 0..u.columns {
                for b in a + 1..u.columns {
                    turned |= rotate(&mut u, &mut v, a, b);
                }
            }
            if !turned {
                break;
            }
            ensure!(sweep < SWEEPS_MAX, "input: singular values do not converge in {SWEEPS_MAX} sweeps");
        }
        let lengths: Vec<f64> = (0..u.columns).map(|j| u.dot(j, j).sqrt()).collect();
        let mut order: Vec<usize> = (0..u.columns).collect();
        order.sort_by(|&a, &b| lengths[b].total_cmp(&lengths[a]));
        let pick = |from: &Self, scale: &dyn Fn(usize) -> f64| {
            let mut to = Self::zeros(from.rows, from.columns);
            for (j, &source) in order.iter().enumerate() {
                (0..from.rows).for_each(|i| to[(i, j)] = from[(i, source)] * scale(source));
            }
            to
        };
        let least = NOTHING * order.first().map_or(0.0, |&j| lengths[j]);
        let inverse = |j: usize| if lengths[j] > least { 1.0 / lengths[j] } else { 0.0 };
        Ok((pick(&u, &inverse), order.iter().map(|&j| lengths[j]).collect(), pick(&v, &|_| 1.0)))
    }

    /// The first columns, which are orthonormal or zero, with others that make an orthonormal basis of them.
    fn completed(&self, columns: usize) -> Self {
        let mut basis = Self::zeros(self.rows, columns);
        let mut unit = 0..self.rows;
        for j in 0..columns {
            let given: Option<Vec<f64>> = (j < self.columns && self.dot(j, j) > 0.5).then(|| self.column(j).collect());
            let mut column = given.unwrap_or_else(|| vec![0.0; self.rows]);
            while column.iter().all(|x| *x == 0.0) {
                let Some(next) = unit.next() else { break };
                let mut candidate = vec![0.0; self.rows];
                candidate[next] = 1.0;
                // Twice is enough.
                for _ in 0..2 {
                    for k in (0..j).map(|k| (&basis, k)).chain((j..self.columns).map(|k| (self, k))) {
                        let along: f64 = k.0.column(k.1).zip(&candidate).map(|(a, b)| a * b).sum();
                        candidate.iter_mut().zip(k.0.column(k.1)).for_each(|(c, a)| *c -= along * a);
                    }
                }
                let length = candidate.iter().map(|x| x * x).sum::<f64>().sqrt();
                if length > 1e-6 {
                    column = candidate.iter().map(|x| x / length).collect();
                }
            }
            column.iter().enumerate().for_each(|(i, x)| basis[(i, j)] = *x);
        }
        basis
    }
}

/// Turns columns `a` and `b` of `u` until they are orthogonal, and those of `v` along; true unless they were.
fn rotate(u: &mut Dense, v: &mut Dense, a: usize, b: usize) -> bool {
    let (aa, bb, ab) = (u.dot(a, a), u.dot(b, b), u.dot(a, b));
    let (small, large) = (aa.min(bb), aa.max(bb));
    if ab.abs() <= ORTHOGONAL * (aa * bb).sqrt() || small.sqrt() <= NOTHING * large.sqrt() {
        return false;
    }
    let zeta = (bb - aa) / (2.0 * ab);
    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = cosine * tangent;
    for matrix in [u, v] {
        for i in 0..matrix.rows {
            let (x, y) = (matrix[(i, a)], matrix[(i, b)]);
            matrix[(i, a)] = cosine * x - sine * y;
            matrix[(i, b)] = sine * x + cosine * y;
        }
    }
    true
}

/// The tensor at `position` as matrices: its leading sizes and their product.
fn matrices(args: &Args<'_>, position: usize) -> Outcome<(View, Vec<usize>, usize)> {
    let (view, name) = (args.tensor(position)?, args.name(position));
    float(&view, name)?;
    ensure!(view.ndim() >= 2, "{name}: {} dimensions, want two or more", view.ndim());
    ensure!(view.elements() <= INTERMEDIATE_MAX, "{name}: {} elements, at most {INTERMEDIATE_MAX}", view.elements());
    let lead = view.dims()[..view.ndim() - 2].to_vec();
    let count = lead.iter().product();
    Ok((view, lead, count))
}

fn square(args: &Args<'_>, position: usize) -> Outcome<(View, Vec<usize>, usize)> {
    let (view, lead, count) = matrices(args, position)?;
    let [.., rows, columns] = view.dims() else { return Err(Fault::new("not a matrix")) };
    ensure!(rows == columns, "{}: {:?} is not square", args.name(position), view.dims());
    Ok((view, lead, count))
}

/// The output at `position`, of this shape.
fn result(args: &Args<'_>, position: usize, lead: &[usize], dims: &[usize]) -> Outcome<View> {
    let view = args.output(position)?;
    float(&view, args.name(position))?;
    shaped(&view, &[lead, dims].concat(), args.name(position))?;
    Ok(view)
}

/// `self → out`.
fn inverse(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, lead, count) = square(args, 0)?;
    let size = x.dim(lead.len());
    let out = result(args, 1, &lead, &[size, size])?;
    for n in 0..count {
        let (mut left, mut right) = (Dense::read(machine, &leading(&x, lead.len(), n))?, Dense::identity(size));
        left.eliminate(&mut right);
        ensure!((0..size).all(|i| left[(i, i)] != 0.0), "self: matrix {n} is singular");
        write(machine, &leading(&out, lead.len(), n), &left.solve(&right, false, false).values)?;
    }
    Ok(())
}

/// `self → signOut logOut`: of the determinant.
fn slogdet(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, lead, count) = square(args, 0)?;
    let size = x.dim(lead.len());
    let (signs, logs) = (result(args, 1, &lead, &[])?, result(args, 2, &lead, &[])?);
    let mut found = (Vec::new(), Vec::new());
    for n in 0..count {
        let mut left = Dense::read(machine, &leading(&x, lead.len(), n))?;
        let exchanges = left.eliminate(&mut Dense::zeros(size, 0));
        let diagonal = (0..size).map(|i| left[(i, i)]);
        let sign = |x: f64| if x == 0.0 || x.is_nan() { x } else { x.signum() };
        found.0.push(diagonal.clone().fold(exchanges, |s, x| s * sign(x)));
        found.1.push(diagonal.map(|x| x.abs().ln()).sum::<f64>());
    }
    write(machine, &signs, &found.0)?;
    write(machine, &logs, &found.1)
}

/// `self A upper transpose unitriangular → xOut mOut`: `A·x = self`; `mOut` is `A`.
fn triangular_solve(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (right, lead, count) = matrices(args, 0)?;
    let (a, same, _) = square(args, 1)?;
    let (size, columns) = (right.dim(lead.len()), right.dim(lead.len() + 1));
    ensure!(same == lead && a.dim(lead.len()) == size, "A: {:?} does not go with {:?}", a.dims(), right.dims());
    let (upper, turned, unit) = (args.int(2)? != 0, args.int(3)? != 0, args.int(4)? != 0);
    let out = result(args, 5, &lead, &[size, columns])?;
    let copy = result(args, 6, &lead, &[size, size])?;
    for n in 0..count {
        let left = Dense::read(machine, &leading(&a, lead.len(), n))?;
        let b = Dense::read(machine, &leading(&right, lead.len(), n))?;
        write(machine, &leading(&copy, lead.len(), n), &left.values)?;
        let left = if turned { left.transposed() } else { left };
        write(machine, &leading(&out, lead.len(), n), &left.solve(&b, upper == turned, unit).values)?;
    }
    Ok(())
}

/// `self mode → Q R`: 0 as many columns of `Q` as `self` has (or rows), 1 all of them, 2 `R` only.
fn qr(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, lead, count) = matrices(args, 0)?;
    let mode = args.int(1)?;
    ensure!((0..=2).contains(&mode), "mode: {mode} is not supported (0 reduced, 1 complete, 2 R only)");
    let (rows, columns) = (x.dim(lead.len()), x.dim(lead.len() + 1));
    let kept = if mode == 1 { rows } else { rows.min(columns) };
    let q_out = if mode == 2 { None } else { Some(result(args, 2, &lead, &[rows, kept])?) };
    let r_out = result(args, 3, &lead, &[kept, columns])?;
    for n in 0..count {
        let (q, r) = Dense::read(machine, &leading(&x, lead.len(), n))?.qr();
        if let Some(out) = &q_out {
            write(machine, &leading(out, lead.len(), n), &q.corner(rows, kept).values)?;
        }
        write(machine, &leading(&r_out, lead.len(), n), &r.corner(kept, columns).values)?;
    }
    Ok(())
}

/// `input fullMatrices computeUV → sigma u v`: `input = u·σ·vᵀ`.
fn svd(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, lead, count) = matrices(args, 0)?;
    let (full, vectors) = (args.int(1)? != 0, args.int(2)? != 0);
    let (rows, columns) = (x.dim(lead.len()), x.dim(lead.len() + 1));
    let few = rows.min(columns);
    let sigma = result(args, 3, &lead, &[few])?;
    let width = |own: usize| if full { own } else { few };
    let sides = if vectors {
        Some((result(args, 4, &lead, &[rows, width(rows)])?, result(args, 5, &lead, &[columns, width(columns)])?))
    } else {
        None
    };
    for n in 0..count {
        let matrix = Dense::read(machine, &leading(&x, lead.len(), n))?;
        let known = matrix.values.iter().all(|x| x.is_finite());
        ensure!(known, "input: matrix {n} has values that are not finite");
        let (u, values, v) = if rows >= columns {
            matrix.tall_svd()?
        } else {
            let (v, values, u) = matrix.transposed().tall_svd()?;
            (u, values, v)
        };
        write(machine, &leading(&sigma, lead.len(), n), &values)?;
        if let Some((left, right)) = &sides {
            write(machine, &leading(left, lead.len(), n), &u.completed(width(rows)).values)?;
            write(machine, &leading(right, lead.len(), n), &v.completed(width(columns)).values)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulated::kernels::testing::{Noise, close};

    fn product(a: &Dense, b: &Dense) -> Dense {
        let mut out = Dense::zeros(a.rows, b.columns);
        for i in 0..a.rows {
            for j in 0..b.columns {
                out[(i, j)] = (0..a.columns).map(|k| a[(i, k)] * b[(k, j)]).sum();
            }
        }
        out
    }

    fn matrices() -> Vec<Dense> {
        let mut noise = Noise::new(3);
        let mut all: Vec<_> = [(1, 1), (3, 3), (5, 3), (3, 5), (6, 6)]
            .map(|(rows, columns)| Dense { rows, columns, values: noise.fractions(rows * columns) })
            .into();
        // Of rank one, and of none.
        all.push(Dense {
            rows: 4,
            columns: 3,
            values: (0..12).map(|i| f64::from((i / 3 + 1) * (i % 3 + 1))).collect(),
        });
        all.push(Dense::zeros(3, 3));
        all
    }

    #[test]
    fn factors_multiply_to_the_matrix_and_are_orthogonal() {
        for a in matrices() {
            let (q, r) = a.qr();
            close(&product(&q, &r).values, &a.values, 1e-13);
            close(&product(&q.transposed(), &q).values, &Dense::identity(a.rows).values, 1e-13);
            assert!((0..r.rows).all(|i| (0..i.min(r.columns)).all(|j| r[(i, j)] == 0.0)), "{r:?}");

            let tall = if a.rows >= a.columns { a.clone() } else { a.transposed() };
            let (u, values, v) = tall.tall_svd().unwrap();
            assert!(values.is_sorted_by(|a, b| a >= b) && values.iter().all(|v| *v >= 0.0));
            let (u, v) = (u.completed(tall.rows), v.completed(tall.columns));
            let mut scaled = Dense::zeros(tall.rows, tall.columns);
            values.iter().enumerate().for_each(|(i, v)| scaled[(i, i)] = *v);
            close(&product(&product(&u, &scaled), &v.transposed()).values, &tall.values, 1e-12);
            for basis in [u, v] {
                close(&product(&basis.transposed(), &basis).values, &Dense::identity(basis.rows).values, 1e-12);
            }
        }
    }

    #[test]
    fn systems_are_solved_from_either_end() {
        let values = Noise::new(4).fractions(9);
        let a = Dense { rows: 3, columns: 3, values };
        let b = Dense { rows: 3, columns: 2, values: Noise::new(5).fractions(6) };
        for (lower, unit) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut part = Dense::zeros(3, 3);
            for (i, j) in (0..9).map(|at| (at / 3, at % 3)) {
                if i == j {
                    part[(i, j)] = if unit { 1.0 } else { a[(i, j)] };
                } else if (i > j) == lower {
                    part[(i, j)] = a[(i, j)];
                }
            }
            close(&product(&part, &a.solve(&b, lower, unit)).values, &b.values, 1e-12);
        }
    }
}
