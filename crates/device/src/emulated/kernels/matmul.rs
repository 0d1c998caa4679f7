//! Matrix products of every rank, with and without addends: shapes around [`super::product`].
//!
//! The second matrix may lie in the private format FRACTAL_NZ ([`super::format`]), whatever the operator is called: its tag says
//! so. The `…WeightNz` operators are the plain ones.

use acl_abi::{MAX_DIMS, ops};

use super::Family;
use super::Machine;
use super::args::Args;
use super::fault::{Outcome, ensure};
use super::product::{self, Addend, batched};
use super::view::View;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnAddbmm, addbmm),
    (ops::aclnnAddmm, addmm),
    (ops::aclnnAddmmWeightNz, addmm),
    (ops::aclnnAddmv, addmv),
    (ops::aclnnAddr, addr),
    (ops::aclnnBaddbmm, baddbmm),
    (ops::aclnnBatchMatMul, bmm),
    (ops::aclnnBatchMatMulWeightNz, bmm),
    (ops::aclnnDot, dot),
    (ops::aclnnInplaceAddbmm, inplace_addbmm),
    (ops::aclnnInplaceAddmm, inplace_addmm),
    (ops::aclnnInplaceAddr, inplace_addr),
    (ops::aclnnInplaceBaddbmm, inplace_baddbmm),
    (ops::aclnnMatmul, matmul),
    (ops::aclnnMatmulWeightNz, matmul),
    (ops::aclnnMm, mm),
    (ops::aclnnMv, mv),
    (ops::aclnnTransposeBatchMatMul, transpose_batch_matmul),
];

/// `out = self · mat2`, with torch's rules for 1-d operands and broadcasting of leading dimensions.
pub fn matmul(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out) = (args.tensor(0)?, args.matrix(1)?, args.output(2)?);
    ensure!(a.ndim() >= 1 && b.ndim() >= 1, "operands need at least one dimension: {:?} · {:?}", a.dims(), b.dims());
    let (a_row, b_column) = (a.ndim() == 1, b.ndim() == 1);
    let a = if a_row { a.unsqueeze(0) } else { a };
    let b = if b_column { b.unsqueeze(1) } else { b };
    let mut full = out;
    if b_column {
        full = unsqueeze(full, out.ndim())?;
    }
    if a_row {
        full = unsqueeze(full, full.ndim().saturating_sub(1))?;
    }
    batched(machine, &a, &b, &full, None)
}

fn unsqueeze(view: View, dim: usize) -> Outcome<View> {
    ensure!(view.ndim() < MAX_DIMS, "out: too many dimensions: {:?}", view.dims());
    Ok(view.unsqueeze(dim))
}

/// Refuses operands that do not all have `ndim` dimensions.
fn ranks(ndim: usize, views: [&View; 3]) -> Outcome {
    let [a, b, out] = views.map(View::dims);
    ensure!(views.iter().all(|v| v.ndim() == ndim), "operands must be {ndim}-d: {a:?} · {b:?} → {out:?}");
    Ok(())
}

/// `out = self · mat2` for 2-d operands.
pub fn mm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out) = (args.tensor(0)?, args.matrix(1)?, args.output(2)?);
    ranks(2, [&a, &b, &out])?;
    batched(machine, &a, &b, &out, None)
}

/// `out = self · mat2` for 3-d operands; a batch of 1 serves all.
pub fn bmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out) = (args.tensor(0)?, args.matrix(1)?, args.output(2)?);
    ranks(3, [&a, &b, &out])?;
    batched(machine, &a, &b, &out, None)
}

/// `out = beta·self + alpha·(mat1 · mat2)`; `self` broadcasts.
pub fn addmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.matrix(2)?, args.output(5)?);
    ranks(2, [&a, &b, &out])?;
    let addend = Addend { view: own, beta: args.scalar(3)?.as_f64(), alpha: args.scalar(4)?.as_f64() };
    batched(machine, &a, &b, &out, Some(addend))
}

/// `self = beta·self + alpha·(mat1 · mat2)`.
pub fn inplace_addmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, a, b) = (args.output(0)?, args.tensor(1)?, args.tensor(2)?);
    ranks(2, [&a, &b, &own])?;
    let addend = Addend { view: own, beta: args.scalar(3)?.as_f64(), alpha: args.scalar(4)?.as_f64() };
    batched(machine, &a, &b, &own, Some(addend))
}

/// `out[i] = beta·self[i] + alpha·(batch1[i] · batch2[i])`; `self` broadcasts.
pub fn baddbmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.output(5)?);
    ranks(3, [&a, &b, &out])?;
    let addend = Addend { view: own, beta: args.scalar(3)?.as_f64(), alpha: args.scalar(4)?.as_f64() };
    batched(machine, &a, &b, &out, Some(addend))
}

/// The same, into `self`.
pub fn inplace_baddbmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, a, b) = (args.output(0)?, args.tensor(1)?, args.tensor(2)?);
    ranks(3, [&a, &b, &own])?;
    let addend = Addend { view: own, beta: args.scalar(3)?.as_f64(), alpha: args.scalar(4)?.as_f64() };
    batched(machine, &a, &b, &own, Some(addend))
}

/// `out = beta·self + alpha·Σ batch1[i] · batch2[i]`.
pub fn addbmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, out) = (args.tensor(0)?, args.output(5)?);
    summed(args, machine, own, out)
}

/// The same, into `self`.
pub fn inplace_addbmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let own = args.output(0)?;
    summed(args, machine, own, own)
}

fn summed(args: &Args<'_>, machine: &mut Machine, own: View, out: View) -> Outcome {
    let (a, b) = (args.tensor(1)?, args.tensor(2)?);
    let addend = Addend { view: own, beta: args.scalar(3)?.as_f64(), alpha: args.scalar(4)?.as_f64() };
    let fits = a.ndim() == 3 && b.ndim() == 3 && out.ndim() == 2 && a.dim(0) == b.dim(0);
    ensure!(fits, "batch1: shapes do not agree: {:?} · {:?} → {:?}", a.dims(), b.dims(), out.dims());
    product::summed(machine, &a, &b, &out, addend)
}

/// `out = beta·self + alpha·(mat · vec)`.
pub fn addmv(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.output(5)?);
    ensure!(a.ndim() == 2 && b.ndim() == 1 && out.ndim() == 1, "mat: shape {:?}, vec: {:?}", a.dims(), b.dims());
    let own = own.broadcast(out.dims()).map_err(|f| f.about("self"))?.unsqueeze(1);
    let addend = Addend { view: own, alpha: args.scalar(3)?.as_f64(), beta: args.scalar(4)?.as_f64() };
    batched(machine, &a, &b.unsqueeze(1), &out.unsqueeze(1), Some(addend))
}

/// `out = self · vec`.
pub fn mv(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    let fits = a.ndim() == 2 && b.ndim() == 1 && out.ndim() == 1;
    ensure!(fits, "self: {:?} · vec {:?} → {:?}, want 2-d · 1-d → 1-d", a.dims(), b.dims(), out.dims());
    batched(machine, &a, &b.unsqueeze(1), &out.unsqueeze(1), None)
}

/// `out = Σ self·tensor`, both 1-d.
pub fn dot(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    let fits = a.ndim() == 1 && b.ndim() == 1 && out.elements() == 1 && out.ndim() <= 1;
    ensure!(fits, "self: {:?} · tensor {:?} → {:?}, want 1-d · 1-d → 0-d", a.dims(), b.dims(), out.dims());
    let out = if out.ndim() == 0 { out.unsqueeze(0) } else { out };
    batched(machine, &a.unsqueeze(0), &b.unsqueeze(1), &out.unsqueeze(0), None)
}

/// `out = beta·self + alpha·(vec1 ⊗ vec2)`; factors that are null are 1.
pub fn addr(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (own, out) = (args.tensor(0)?, args.output(5)?);
    outer(args, machine, own, out)
}

/// The same, into `self`.
pub fn inplace_addr(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let own = args.output(0)?;
    outer(args, machine, own, own)
}

fn outer(args: &Args<'_>, machine: &mut Machine, own: View, out: View) -> Outcome {
    let (a, b) = (args.tensor(1)?, args.tensor(2)?);
    let fits = a.ndim() == 1 && b.ndim() == 1 && out.ndim() == 2;
    ensure!(fits, "vec1: {:?} ⊗ vec2 {:?} → {:?}, want 1-d ⊗ 1-d → 2-d", a.dims(), b.dims(), out.dims());
    let factor = |position| if args.is_absent(position) { Ok(1.0) } else { args.scalar(position).map(|s| s.as_f64()) };
    let addend = Addend { view: own, beta: factor(3)?, alpha: factor(4)? };
    batched(machine, &a.unsqueeze(1), &b.unsqueeze(0), &out, Some(addend))
}

/// `x1 x2 bias scale permX1 permX2 permY … → out`: `out = permY(permX1(x1) · permX2(x2) + bias)` for 3-d operands.
pub fn transpose_batch_matmul(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, bias, out) = (args.tensor(0)?, args.tensor(1)?, args.optional(2)?, args.output(9)?);
    ensure!(args.is_absent(3), "scale: not supported, pass null");
    let split = args.int(8)?;
    ensure!(split <= 1, "batchSplitFactor: {split} is not supported (1)");
    ranks(3, [&a, &b, &out])?;
    let a = permuted(&a, args.ints(4)).map_err(|f| f.about("permX1"))?;
    let b = permuted(&b, args.ints(5)).map_err(|f| f.about("permX2"))?;
    let mut back = [0, 1, 2];
    let order = check_order(args.ints(6).unwrap_or(&[0, 1, 2])).map_err(|f| f.about("permY"))?;
    for (from, to) in order.into_iter().enumerate() {
        back[to] = from as i64;
    }
    let out = permuted(&out, Some(&back)).map_err(|f| f.about("permY"))?;
    let addend = bias.map(|view| Addend { view, beta: 1.0, alpha: 1.0 });
    batched(machine, &a, &b, &out, addend)
}

/// A 3-d view with dimensions in the order that `order` names.
fn permuted(view: &View, order: Option<&[i64]>) -> Outcome<View> {
    let Some(order) = order else { return Ok(*view) };
    Ok(match check_order(order)? {
        [0, 1, 2] => *view,
        [0, 2, 1] => view.transpose(1, 2),
        [1, 0, 2] => view.transpose(0, 1),
        [2, 1, 0] => view.transpose(0, 2),
        [1, 2, 0] => view.transpose(0, 1).transpose(1, 2),
        _ => view.transpose(0, 2).transpose(1, 2),
    })
}

fn check_order(order: &[i64]) -> Outcome<[usize; 3]> {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    ensure!(sorted == [0, 1, 2], "{order:?} is not an order of 3 dimensions");
    Ok([order[0] as usize, order[1] as usize, order[2] as usize])
}
