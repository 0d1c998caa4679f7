//! Matmul, Mm, Addmm: shapes and broadcasting around [`super::gemm`].
//!
//! Operands may have any strides. Float types only, in any mixture; accumulation in single precision, one rounding.

use acl_abi::{MAX_DIMS, ops};

use super::Family;
use super::args::Args;
use super::fault::{Outcome, ensure};
use super::gemm::{self, Matrix};
use super::lane;
use super::nest::broadcast_shape;
use super::view::View;
use super::{Machine, sized};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnAddmm, addmm), (ops::aclnnMatmul, matmul), (ops::aclnnMm, mm)];

/// Multiply-adds, those of unused rows of a tile included, from which a product is worth waking other threads for: about
/// 100 µs of one core.
const PARALLEL_MACS_MIN: usize = 2 << 20;

/// Result elements computed at a time: bounds scratch, 32 MiB.
const SLAB_ELEMENTS: usize = 8 << 20;

/// `out = self · mat2`, with torch's rules for 1-d operands and broadcasting of leading dimensions.
pub fn matmul(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b) = (operand(args, 0)?, operand(args, 1)?);
    operand(args, 2)?;
    let out = args.output(2)?;
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
    batched(machine, &a, &b, &full)
}

fn unsqueeze(view: View, dim: usize) -> Outcome<View> {
    ensure!(view.ndim() < MAX_DIMS, "out: too many dimensions: {:?}", view.dims());
    Ok(view.unsqueeze(dim))
}

/// `out = self · mat2` for 2-d operands.
pub fn mm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b) = (operand(args, 0)?, operand(args, 1)?);
    operand(args, 2)?;
    let out = args.output(2)?;
    ensure!(
        a.ndim() == 2 && b.ndim() == 2 && out.ndim() == 2,
        "operands must be 2-d: {:?} · {:?} → {:?}",
        a.dims(),
        b.dims(),
        out.dims()
    );
    batched(machine, &a, &b, &out)
}

/// `out = beta·self + alpha·(mat1 · mat2)`; `self` broadcasts.
pub fn addmm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (bias, a, b) = (operand(args, 0)?, operand(args, 1)?, operand(args, 2)?);
    let (beta, alpha) = (args.scalar(3)?.as_f64() as f32, args.scalar(4)?.as_f64() as f32);
    operand(args, 5)?;
    let out = args.output(5)?;
    ensure!(
        a.ndim() == 2 && b.ndim() == 2 && out.ndim() == 2,
        "mat1, mat2 and out must be 2-d: {:?} · {:?} → {:?}",
        a.dims(),
        b.dims(),
        out.dims()
    );
    check(&a, &b, &out)?;
    let bias = bias.broadcast(out.dims()).map_err(|f| f.about("self"))?;
    multiply(machine, &a, &b, &out, Some(Bias { view: bias, beta, alpha }))
}

fn operand(args: &Args<'_>, position: usize) -> Outcome<View> {
    let view = args.tensor(position)?;
    let name = args.name(position);
    ensure!(
        gemm::is_operand(view.dtype),
        "{name}: element type {} is not supported (float32, float16, bfloat16)",
        lane::name(view.dtype)
    );
    Ok(view)
}

/// `beta·view + alpha·product`.
struct Bias {
    view: View,
    beta: f32,
    alpha: f32,
}

/// Every pair of matrices of two views with at least two dimensions.
fn batched(machine: &mut Machine, a: &View, b: &View, out: &View) -> Outcome {
    ensure!(out.ndim() >= 2, "out: shape {:?} has too few dimensions for {:?} · {:?}", out.dims(), a.dims(), b.dims());
    let lead = &out.dims()[..out.ndim() - 2];
    let want = broadcast_shape(&a.dims()[..a.ndim() - 2], &b.dims()[..b.ndim() - 2])?;
    ensure!(lead == want.dims(), "shapes do not agree: {:?} · {:?} → {:?}", a.dims(), b.dims(), out.dims());
    let expand = |view: &View| -> Outcome<View> {
        let mut shape = [0; MAX_DIMS];
        shape[..lead.len()].copy_from_slice(lead);
        shape[lead.len()..out.ndim()].copy_from_slice(&view.dims()[view.ndim() - 2..]);
        view.broadcast(&shape[..out.ndim()])
    };
    check(a, b, out)?;
    let (a, b) = (expand(a)?, expand(b)?);
    let count: usize = lead.iter().product();
    let mut index = [0; MAX_DIMS];
    for _ in 0..count {
        multiply(machine, &matrix(&a, &index), &matrix(&b, &index), &matrix(out, &index), None)?;
        for dim in (0..lead.len()).rev() {
            index[dim] += 1;
            if index[dim] < lead[dim] {
                break;
            }
            index[dim] = 0;
        }
    }
    Ok(())
}

/// The matrix at `index` of the leading dimensions.
fn matrix(view: &View, index: &[usize; MAX_DIMS]) -> View {
    index[..view.ndim() - 2].iter().fold(*view, |matrix, &i| matrix.select(0, i))
}

/// Refuses matrices whose last two dimensions do not fit together.
fn check(a: &View, b: &View, out: &View) -> Outcome {
    let last = |view: &View| (view.dim(view.ndim() - 2), view.dim(view.ndim() - 1));
    let ((m, k), (depth, n)) = (last(a), last(b));
    let agree = depth == k && last(out) == (m, n);
    ensure!(agree, "shapes do not agree: {:?} · {:?} → {:?}", a.dims(), b.dims(), out.dims());
    Ok(())
}

/// One product of checked 2-d views.
fn multiply(machine: &mut Machine, a: &View, b: &View, out: &View, bias: Option<Bias>) -> Outcome {
    let (m, k, n) = (a.dim(0), a.dim(1), b.dim(1));
    if m == 0 || n == 0 {
        return Ok(());
    }
    ensure!(k <= gemm::K_MAX, "sums of {k} products, at most {} are supported", gemm::K_MAX);
    let rows_max = (SLAB_ELEMENTS / n.max(k)).max(1);
    for from in (0..m).step_by(rows_max) {
        let rows = rows_max.min(m - from);
        let a = a.narrow(0, from, rows);
        let out = out.narrow(0, from, rows);
        let bias = bias.as_ref().map(|b| Bias { view: b.view.narrow(0, from, rows), ..*b });
        slab(machine, &a, b, &out, bias)?;
    }
    Ok(())
}

/// One product of bounded size. Columns are split among threads; each part's result is a block of its own.
fn slab(machine: &mut Machine, a: &View, b: &View, out: &View, bias: Option<Bias>) -> Outcome {
    let Machine { hbm, pool, scratch, .. } = machine;
    let (rows, k, n) = (a.dim(0), a.dim(1), b.dim(1));
    let result = sized(&mut scratch.result, rows * n)?;
    let operand = Matrix::of_view(hbm, a, &mut scratch.operand);
    let macs = rows.max(gemm::TILE).saturating_mul(n).saturating_mul(k);
    let parts = if macs < PARALLEL_MACS_MIN { 1 } else { pool.threads() };
    let width = n.div_ceil(parts).next_multiple_of(gemm::TILE).min(n);
    if scratch.panels.len() < parts {
        scratch.panels.resize_with(parts, Vec::new);
    }
    let memory = &*hbm;
    let mut blocks: Vec<_> = result.chunks_mut(rows * width).zip(&mut scratch.panels).collect();
    pool.for_each(&mut blocks, |part, (block, panel)| {
        let b = b.narrow(1, part * width, block.len() / rows);
        gemm::product(memory, operand, &b, block, panel);
    });
    for (part, block) in result.chunks_mut(rows * width).enumerate() {
        let columns = block.len() / rows;
        for (i, row) in block.chunks_exact_mut(columns).enumerate() {
            if let Some(Bias { view, beta, alpha }) = &bias {
                let term = sized(&mut scratch.operand, columns)?;
                view.select(0, i).row().load(hbm, part * width, term);
                for (value, term) in row.iter_mut().zip(term) {
                    // torch skips the term, NaN and all, where beta is 0.
                    *value = if *beta == 0.0 { alpha * *value } else { beta * *term + alpha * *value };
                }
            }
            out.select(0, i).row().store(hbm, part * width, row);
        }
    }
    Ok(())
}
