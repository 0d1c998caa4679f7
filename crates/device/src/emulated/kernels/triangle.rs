//! Operators about diagonals: Triu, Tril, Eye, Trace, FillDiagonal.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{CHUNK, lines, store_all};
use super::number::with_lane;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnEye, eye),
    (ops::aclnnInplaceFillDiagonal, inplace_fill_diagonal),
    (ops::aclnnInplaceTril, |args, machine| triangle(args, machine, Half::Lower, 0)),
    (ops::aclnnInplaceTriu, |args, machine| triangle(args, machine, Half::Upper, 0)),
    (ops::aclnnTrace, trace),
    (ops::aclnnTril, |args, machine| triangle(args, machine, Half::Lower, 2)),
    (ops::aclnnTriu, |args, machine| triangle(args, machine, Half::Upper, 2)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Upper,
    Lower,
}

/// `self diagonal → out`: of the last two dimensions, what lies on the diagonal and on one side of it; zeros elsewhere.
/// Output 0 means in place.
fn triangle(args: &Args<'_>, machine: &mut Machine, half: Half, output: usize) -> Outcome {
    let (x, diagonal, out) = (args.tensor(0)?, args.int(1)?, args.output(output)?);
    ensure!(x.ndim() >= 2, "self: shape {:?}, want at least two dimensions", x.dims());
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    let (rows, columns) = (x.dim(x.ndim() - 2), x.dim(x.ndim() - 1));
    let mut row = 0usize;
    with_lane!(class(x.dtype), L => {
        let mut piece = [L::default(); CHUNK];
        lines(&x.dims()[..x.ndim() - 1], [&out, &x], |[out, x]| {
            // First column of the upper part, or end of the lower one.
            let shift = diagonal.saturating_add(i64::from(half == Half::Lower));
            let edge = (row as i64).saturating_add(shift).clamp(0, columns as i64) as usize;
            for from in (0..x.len).step_by(CHUNK) {
                let piece = &mut piece[..CHUNK.min(x.len - from)];
                x.load(&machine.hbm, from, piece);
                for (i, value) in piece.iter_mut().enumerate() {
                    if (from + i < edge) == (half == Half::Upper) {
                        *value = L::default();
                    }
                }
                out.store(&mut machine.hbm, from, piece);
            }
            row = (row + 1) % rows;
        })
    })
}

/// `n m → out`: ones on the diagonal of an `[n, m]` matrix.
fn eye(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (n, m, out) = (args.int(0)?, args.int(1)?, args.output(2)?);
    let fits = out.ndim() == 2 && out.dim(0) as i64 == n && out.dim(1) as i64 == m;
    ensure!(fits, "out: shape {:?}, want [{n}, {m}]", out.dims());
    let columns = out.dim(1);
    store_all(machine, &out, |from, piece: &mut [i64]| {
        for (i, value) in piece.iter_mut().enumerate() {
            let at = from + i;
            *value = i64::from(at / columns == at % columns);
        }
    })
}

/// The diagonal of a matrix, as a view.
fn diagonal_of(x: &View) -> View {
    let count = x.dims().iter().copied().min().unwrap_or(1);
    x.diagonal(count)
}

/// `self → out`: sum of a matrix's diagonal.
fn trace(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(1)?);
    ensure!(x.ndim() == 2, "self: shape {:?}, want two dimensions", x.dims());
    ensure!(out.elements() == 1 && out.ndim() <= 1, "out: shape {:?}, want none", out.dims());
    let row = diagonal_of(&x).row();
    let (mut real, mut whole) = (0.0f64, 0i64);
    for i in 0..row.len {
        if class(x.dtype) == Class::Int {
            whole = whole.wrapping_add(row.integer(&machine.hbm, i));
        } else {
            let mut value = [0.0f64];
            row.load(&machine.hbm, i, &mut value);
            real += value[0];
        }
    }
    if class(x.dtype) == Class::Int {
        return store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(whole));
    }
    store_all(machine, &out, |_, piece: &mut [f64]| piece.fill(real))
}

/// `selfRef fillValue wrap`: the diagonal of a matrix, or of a tensor whose sizes are all equal. With `wrap` the diagonal of
/// a tall matrix starts over, one row later, each time it has reached the right edge.
fn inplace_fill_diagonal(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, value, wrap) = (args.output(0)?, args.scalar(1)?, args.int(2)? != 0);
    ensure!(x.ndim() >= 2, "selfRef: shape {:?}, want at least two dimensions", x.dims());
    let equal = x.dims().iter().all(|&d| d == x.dim(0));
    ensure!(x.ndim() == 2 || equal, "selfRef: sizes {:?} are not all equal", x.dims());
    super::fill::fill(machine, &diagonal_of(&x), value)?;
    if wrap && x.ndim() == 2 && x.dim(1) > 0 {
        let period = x.dim(1) + 1;
        for from in (period..x.dim(0)).step_by(period) {
            super::fill::fill(machine, &diagonal_of(&x.narrow(0, from, x.dim(0) - from)), value)?;
        }
    }
    Ok(())
}
