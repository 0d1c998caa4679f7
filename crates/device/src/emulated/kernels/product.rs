//! Products of batched matrices around [`super::gemm`]: broadcasting, addends, threads, and element types.
//!
//! Float operands up to 32 bits, in any mixture and with any strides, accumulate in single precision and are rounded
//! once; the second matrix may lie in FRACTAL_NZ then. Doubles and integers are summed in their own lane by a plain loop, in order of `k`; integers wrap.

use acl_abi::MAX_DIMS;

use super::fault::{Outcome, ensure};
use super::gemm::{self, Matrix};
use super::lane::{self, Class, Lane, class};
use super::nest::broadcast_shape;
use super::view::View;
use super::{INTERMEDIATE_MAX, Machine, sized};
use crate::emulated::hbm::Hbm;

/// Multiply-adds, those of unused rows of a tile included, from which a product is worth waking other threads for: about
/// 100 µs of one core.
const PARALLEL_MACS_MIN: usize = 2 << 20;

/// Result elements computed at a time: bounds scratch, 32 MiB.
const SLAB_ELEMENTS: usize = 8 << 20;

/// Multiply-adds of a product in double precision or integers; more are refused, as they are slow.
const EXACT_MACS_MAX: usize = 1 << 32;

/// `beta·view + alpha·product`. torch skips the addend, NaN and all, where beta is 0.
#[derive(Clone, Copy)]
pub struct Addend {
    /// Broadcast to the result's shape.
    pub view: View,
    /// Factor of the addend.
    pub beta: f64,
    /// Factor of the product.
    pub alpha: f64,
}

/// Every pair of matrices of two views with at least two dimensions; leading dimensions broadcast to the result's.
pub fn batched(machine: &mut Machine, a: &View, b: &View, out: &View, addend: Option<Addend>) -> Outcome {
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
    let addend = match addend {
        Some(Addend { view, beta, alpha }) => {
            let view = view.broadcast(out.dims()).map_err(|f| f.about("self"))?;
            Some(Addend { view, beta, alpha })
        }
        None => None,
    };
    let count: usize = lead.iter().product();
    let problem = Problem { a, b, out: *out, addend };
    if problem.is_exact()? {
        let name = lane::name(out.dtype);
        ensure!(problem.b.strip_dim().is_none(), "FRACTAL_NZ of {name} is not supported (float32, float16, bfloat16)");
        return problem.exact(machine, count);
    }
    let (m, k, n) = problem.sizes();
    if count == 0 || m == 0 || n == 0 {
        return Ok(());
    }
    ensure!(k <= gemm::K_MAX, "sums of {k} products, at most {} are supported", gemm::K_MAX);
    let macs = m.max(gemm::TILE).saturating_mul(n).saturating_mul(k);
    let spread = macs < PARALLEL_MACS_MIN && macs.saturating_mul(count) >= PARALLEL_MACS_MIN;
    if spread && machine.pool.threads() > 1 {
        return problem.spread(machine, count);
    }
    (0..count).try_for_each(|index| problem.at(index).multiply(machine))
}

/// `out = beta·addend + alpha·Σᵢ a[i]·b[i]`, rounded once, for 3-d operands of one batch size.
pub fn summed(machine: &mut Machine, a: &View, b: &View, out: &View, addend: Addend) -> Outcome {
    check(a, b, out)?;
    let addend = Addend { view: addend.view.broadcast(out.dims()).map_err(|f| f.about("self"))?, ..addend };
    let (count, n) = (a.dim(0), out.dim(1));
    if out.elements() == 0 {
        return Ok(());
    }
    let whole = Problem { a: *a, b: *b, out: *out, addend: Some(addend) };
    if whole.is_exact()? {
        // Nothing is lost when a lane's sum is stored in between. The result so far is the next batch's addend.
        ensure!(count > 0, "batch1: no batches in {}", lane::name(out.dtype));
        return (0..count).try_for_each(|i| {
            let addend = if i == 0 { addend } else { Addend { view: *out, beta: 1.0, ..addend } };
            batched(machine, &a.select(0, i), &b.select(0, i), out, Some(addend))
        });
    }
    let (m, k) = (a.dim(1), a.dim(2));
    for size in [m.saturating_mul(k), k.saturating_mul(n)] {
        ensure!(size <= INTERMEDIATE_MAX, "matrices of {size} elements, at most {INTERMEDIATE_MAX} are supported");
    }
    let Machine { hbm, scratch, .. } = machine;
    let mut panel = Vec::new();
    let result = sized(&mut scratch.result, m * n)?;
    result.fill(0.0);
    for i in 0..count {
        let left = Matrix::of_view(hbm, &a.select(0, i), &mut scratch.operand);
        let right = Matrix::of_view(hbm, &b.select(0, i), &mut panel);
        gemm::multiply(left, right, result, n, true);
    }
    whole.store(hbm, 0, result, &mut scratch.operand)
}

/// Refuses matrices whose last two dimensions do not fit together.
pub fn check(a: &View, b: &View, out: &View) -> Outcome {
    let last = |view: &View| (view.dim(view.ndim() - 2), view.dim(view.ndim() - 1));
    let ((m, k), (depth, n)) = (last(a), last(b));
    let agree = depth == k && last(out) == (m, n);
    ensure!(agree, "shapes do not agree: {:?} · {:?} → {:?}", a.dims(), b.dims(), out.dims());
    Ok(())
}

/// Operands with the result's leading dimensions.
struct Problem {
    a: View,
    b: View,
    out: View,
    addend: Option<Addend>,
}

impl Problem {
    /// Rows, depth and columns of one product.
    fn sizes(&self) -> (usize, usize, usize) {
        let last = self.a.ndim() - 1;
        (self.a.dim(last - 1), self.a.dim(last), self.b.dim(last))
    }

    /// The product of index `index` of the leading dimensions, in row-major order.
    fn at(&self, index: usize) -> Self {
        let lead = &self.out.dims()[..self.out.ndim() - 2];
        let matrix = |view: &View| {
            let mut rest = index;
            (0..lead.len()).rev().fold(*view, |matrix, dim| {
                let at = rest % lead[dim];
                rest /= lead[dim];
                matrix.select(dim, at)
            })
        };
        let addend = self.addend.map(|a| Addend { view: matrix(&a.view), ..a });
        Self { a: matrix(&self.a), b: matrix(&self.b), out: matrix(&self.out), addend }
    }

    /// One product of 2-d views, in slabs of rows.
    fn multiply(&self, machine: &mut Machine) -> Outcome {
        let (m, k, n) = self.sizes();
        let rows_max = (SLAB_ELEMENTS / n.max(k)).max(1);
        for from in (0..m).step_by(rows_max) {
            let rows = rows_max.min(m - from);
            let narrow = |view: &View| view.narrow(0, from, rows);
            let addend = self.addend.map(|a| Addend { view: narrow(&a.view), ..a });
            Self { a: narrow(&self.a), b: self.b, out: narrow(&self.out), addend }.slab(machine)?;
        }
        Ok(())
    }

    /// One product of bounded size. Columns are split among threads; each part's result is a block of its own.
    fn slab(&self, machine: &mut Machine) -> Outcome {
        let Machine { hbm, pool, scratch, .. } = machine;
        let (rows, k, n) = self.sizes();
        let result = sized(&mut scratch.result, rows * n)?;
        let operand = Matrix::of_view(hbm, &self.a, &mut scratch.operand);
        let macs = rows.max(gemm::TILE).saturating_mul(n).saturating_mul(k);
        let parts = if macs < PARALLEL_MACS_MIN { 1 } else { pool.threads() };
        let width = n.div_ceil(parts).next_multiple_of(gemm::TILE).min(n);
        if scratch.panels.len() < parts {
            scratch.panels.resize_with(parts, Vec::new);
        }
        let memory = &*hbm;
        let mut blocks: Vec<_> = result.chunks_mut(rows * width).zip(&mut scratch.panels).collect();
        pool.for_each(&mut blocks, |part, (block, panel)| {
            let b = self.b.narrow(1, part * width, block.len() / rows);
            gemm::product(memory, operand, &b, block, panel);
        });
        for (part, block) in result.chunks_mut(rows * width).enumerate() {
            self.store(hbm, part * width, block, &mut scratch.operand)?;
        }
        Ok(())
    }

    /// Adds the addend to the columns from `from` on, `block` row by row, and rounds them into memory.
    fn store(&self, hbm: &mut Hbm, from: usize, block: &mut [f32], terms: &mut Vec<f32>) -> Outcome {
        let columns = block.len() / self.out.dim(0);
        for (i, row) in block.chunks_exact_mut(columns).enumerate() {
            if let Some(Addend { view, beta, alpha }) = &self.addend {
                let (beta, alpha) = (*beta as f32, *alpha as f32);
                let terms = sized(terms, columns)?;
                view.select(0, i).row().load(hbm, from, terms);
                for (value, term) in row.iter_mut().zip(terms) {
                    *value = if beta == 0.0 { alpha * *value } else { beta * *term + alpha * *value };
                }
            }
            self.out.select(0, i).row().store(hbm, from, row);
        }
        Ok(())
    }

    /// Many small products, shared among threads in waves.
    fn spread(&self, machine: &mut Machine, count: usize) -> Outcome {
        let Machine { hbm, pool, scratch, .. } = machine;
        let (m, _, n) = self.sizes();
        let parts = pool.threads();
        let share = count.div_ceil(parts).min((SLAB_ELEMENTS / parts / (m * n)).max(1));
        let mut first = 0;
        while first < count {
            let here = (share * parts).min(count - first);
            let result = sized(&mut scratch.result, here * m * n)?;
            let memory = &*hbm;
            let mut blocks: Vec<_> = result.chunks_mut(share * m * n).collect();
            pool.for_each(&mut blocks, |part, block| {
                let (mut operand, mut panel) = (Vec::new(), Vec::new());
                for (i, out) in block.chunks_exact_mut(m * n).enumerate() {
                    let own = self.at(first + part * share + i);
                    gemm::product(memory, Matrix::of_view(memory, &own.a, &mut operand), &own.b, out, &mut panel);
                }
            });
            for (i, block) in result.chunks_exact_mut(m * n).enumerate() {
                self.at(first + i).store(hbm, 0, block, &mut scratch.operand)?;
            }
            first += here;
        }
        Ok(())
    }

    /// True for doubles and integers. They do not mix with other types.
    fn is_exact(&self) -> Outcome<bool> {
        let classes = [&self.a, &self.b, &self.out].map(|view| class(view.dtype));
        let same = classes.iter().all(|&c| c == classes[0]);
        let [a, b, out] = [&self.a, &self.b, &self.out].map(|view| lane::name(view.dtype));
        ensure!(same, "element types {a} · {b} → {out} do not go together: all floats, all float64 or all integers");
        Ok(classes[0] != Class::Single)
    }

    fn exact(&self, machine: &mut Machine, count: usize) -> Outcome {
        let (m, k, n) = self.sizes();
        let macs = [m, k.max(1), n].into_iter().fold(count, usize::saturating_mul);
        ensure!(macs <= EXACT_MACS_MAX, "{macs} products in {}, at most {EXACT_MACS_MAX}", lane::name(self.out.dtype));
        let whole = |value: f64| value as i64;
        (0..count).try_for_each(|index| match class(self.out.dtype) {
            Class::Int => self.at(index).sums(
                machine,
                |sum: &mut i64, a, b| *sum = sum.wrapping_add(a.wrapping_mul(b)),
                |beta, term, alpha, sum| {
                    let scaled = whole(alpha).wrapping_mul(sum);
                    if beta == 0.0 { scaled } else { whole(beta).wrapping_mul(term).wrapping_add(scaled) }
                },
            ),
            _ => self.at(index).sums(
                machine,
                |sum: &mut f64, a, b| *sum += a * b,
                |beta, term, alpha, sum| if beta == 0.0 { alpha * sum } else { beta * term + alpha * sum },
            ),
        })
    }

    /// One product in order of `k`, in lane `L`.
    fn sums<L: Lane>(
        &self,
        machine: &mut Machine,
        add: impl Fn(&mut L, L, L),
        finish: impl Fn(f64, L, f64, L) -> L,
    ) -> Outcome {
        let (m, k, n) = self.sizes();
        if m == 0 || n == 0 {
            return Ok(());
        }
        let (mut all, mut row, mut sums, mut terms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (all, row) = (sized(&mut all, k.saturating_mul(n))?, sized(&mut row, k)?);
        let (sums, terms) = (sized(&mut sums, n)?, sized(&mut terms, n)?);
        for (j, b) in all.chunks_exact_mut(n).enumerate() {
            self.b.select(0, j).row().load(&machine.hbm, 0, b);
        }
        for i in 0..m {
            self.a.select(0, i).row().load(&machine.hbm, 0, row);
            sums.fill(L::default());
            for (a, b) in row.iter().zip(all.chunks_exact(n)) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| add(sum, *a, *b));
            }
            if let Some(Addend { view, beta, alpha }) = &self.addend {
                view.select(0, i).row().load(&machine.hbm, 0, terms);
                sums.iter_mut().zip(terms.iter()).for_each(|(sum, term)| *sum = finish(*beta, *term, *alpha, *sum));
            }
            self.out.select(0, i).row().store(&mut machine.hbm, 0, sums);
        }
        Ok(())
    }
}
