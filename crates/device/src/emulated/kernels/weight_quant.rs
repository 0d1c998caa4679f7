//! Products with weights of eight or four bits, widened on the way: WeightQuantBatchMatmul.
//!
//! `y = x · ((weight + offset) · scale) + bias`, in single precision, rounded once. `x` is `[M, K]`, the weights `[K, N]`:
//! int8 with any strides or in FRACTAL_NZ; int4, two elements a byte, the first in the low bits; or int32 that holds eight int4,
//! the first in the lowest bits, along the dimension that is contiguous. Scales and offsets are
//!
//! | shape | of |
//! |---|---|
//! | `[1]` | all weights |
//! | `[N]` or `[1, N]` | each column |
//! | `[⌈K / group⌉, N]` | each column of a group of `antiquantGroupSize` rows |

use acl_abi::values::ACL_FORMAT_FRACTAL_NZ;
use acl_abi::{DataType, TensorDesc, ops};

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::gemm::{self, Matrix};
use super::lane;
use super::view::View;
use super::{Family, Machine, sized};
use crate::emulated::hbm::{Hbm, offset_of};
use crate::interface::PhysAddr;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnWeightQuantBatchMatmulNz, |args, machine| product(args, machine, 8)),
    (ops::aclnnWeightQuantBatchMatmulV2, |args, machine| product(args, machine, 8)),
    (ops::aclnnWeightQuantBatchMatmulV3, |args, machine| product(args, machine, 9)),
];

/// Result elements computed at a time, 32 MiB.
const SLAB_ELEMENTS: usize = 8 << 20;

/// `x weight antiquantScale antiquantOffset quantScale quantOffset bias antiquantGroupSize … → y`, which stands at `out`.
fn product(args: &Args<'_>, machine: &mut Machine, out: usize) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(out)?);
    for position in [4, 5] {
        ensure!(args.is_absent(position), "{}: not supported, pass null", args.name(position));
    }
    let floats = gemm::is_operand(x.dtype) && gemm::is_operand(y.dtype);
    ensure!(floats, "x: {} → {}, want float32, float16 or bfloat16", lane::name(x.dtype), lane::name(y.dtype));
    ensure!(x.ndim() == 2 && y.ndim() == 2, "x: shape {:?} → {:?}, want [M, K] → [M, N]", x.dims(), y.dims());
    let (m, k, n) = (x.dim(0), x.dim(1), y.dim(1));
    ensure!(y.dim(0) == m, "y: shape {:?}, want [{m}, N]", y.dims());
    let weight = Weight::new(args, k, n).map_err(|f| f.about("weight"))?;
    let group = usize::try_from(args.int(7)?).map_err(|_| Fault::new("antiquantGroupSize: below 0"))?;
    let scale = by_group(args.tensor(2)?, k, n, group).map_err(|f| f.about("antiquantScale"))?;
    let offset = match args.optional(3)? {
        Some(view) => Some(by_group(view, k, n, group).map_err(|f| f.about(args.name(3)))?),
        None => None,
    };
    let bias = match args.optional(6)? {
        Some(view) => Some(view.broadcast(&[m, n]).map_err(|f| f.about(args.name(6)))?),
        None => None,
    };
    ensure!(k <= gemm::K_MAX, "x: sums of {k} products, at most {} are supported", gemm::K_MAX);
    if m == 0 || n == 0 {
        return Ok(());
    }
    let Machine { hbm, scratch, .. } = machine;
    let (mut panel, mut terms): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    let step = gemm::panel_columns(k).min(n);
    let rows = (SLAB_ELEMENTS / k.max(step).max(1)).clamp(1, m);
    for top in (0..m).step_by(rows) {
        let rows = rows.min(m - top);
        for from in (0..n).step_by(step) {
            let columns = step.min(n - from);
            let block = sized(&mut scratch.result, rows * columns)?;
            let panel = sized(&mut panel, k * columns)?;
            weight.widen(hbm, from, columns, [Some(&scale), offset.as_ref()], panel);
            let left = Matrix::of_view(hbm, &x.narrow(0, top, rows), &mut scratch.operand);
            gemm::multiply(left, Matrix::rows(panel, k, columns), block, columns, false);
            for (i, row) in block.chunks_exact_mut(columns).enumerate() {
                if let Some(bias) = &bias {
                    let terms = sized(&mut terms, columns)?;
                    bias.select(0, top + i).row().load(hbm, from, terms);
                    row.iter_mut().zip(terms).for_each(|(value, term)| *value += *term);
                }
                y.select(0, top + i).row().store(hbm, from, row);
            }
        }
    }
    Ok(())
}

/// Scales or offsets, and how many rows of weights share a row of them.
struct Groups {
    view: View,
    rows: usize,
}

/// `view` as a row for each group of rows.
fn by_group(view: View, k: usize, n: usize, group: usize) -> Outcome<Groups> {
    ensure!(gemm::is_operand(view.dtype), "type {}, want float32, float16 or bfloat16", lane::name(view.dtype));
    let groups = if group == 0 { 1 } else { k.div_ceil(group) };
    let fits = match view.dims() {
        [1] | [1, 1] => true,
        [columns] | [1, columns] => *columns == n && groups == 1,
        [count, columns] => *count == groups && *columns == n,
        _ => false,
    };
    ensure!(fits, "shape {:?}, want [1], [{n}] or [{groups}, {n}] with antiquantGroupSize {group}", view.dims());
    let view = view.broadcast(&[groups, n])?;
    Ok(Groups { view, rows: if group == 0 { k.max(1) } else { group } })
}

/// The weights, `[K, N]`.
enum Weight {
    /// A byte an element.
    Bytes(View),
    /// Four bits an element: element `(k, n)` is number `start + k · strides[0] + n · strides[1]` of all half bytes of memory.
    Nibbles { start: usize, rows: usize, strides: [usize; 2] },
}

impl Weight {
    fn new(args: &Args<'_>, k: usize, n: usize) -> Outcome<Self> {
        let desc = args.desc(1)?.ok_or_else(|| Fault::new("a tensor is required"))?;
        let packed = match desc.dtype {
            DataType::I8 => {
                let view = args.matrix(1)?;
                ensure!(view.dims() == [k, n], "shape {:?}, want [{k}, {n}]", view.dims());
                return Ok(Self::Bytes(view));
            }
            DataType::I4 => 1,
            DataType::I32 => 8,
            other => return Err(Fault::new(format!("type {}, want int8, int4 or int32", lane::name(other)))),
        };
        let (dims, strides) = (desc.dims(), desc.strides());
        let plain = dims.len() == 2 && strides.iter().all(|&s| s >= 0) && desc.format != ACL_FORMAT_FRACTAL_NZ;
        ensure!(plain, "shape {dims:?}, strides {strides:?}, format {}: want a plain matrix", desc.format);
        // Several to an element: along the dimension whose elements are neighbours.
        let along = usize::from(strides[1] == 1);
        ensure!(strides[along] == 1 || dims[along] == 1, "strides {strides:?}: one must be 1");
        let mut sizes = [dims[0], dims[1]];
        sizes[along] = sizes[along].saturating_mul(packed);
        ensure!(sizes == [k as i64, n as i64], "{dims:?} {} hold {sizes:?}, want [{k}, {n}]", lane::name(desc.dtype));
        let mut steps = [strides[0], strides[1]].map(|s| s as usize);
        steps[1 - along] = steps[1 - along].saturating_mul(packed as usize);
        Ok(Self::Nibbles { start: first_nibble(desc, packed, args.total())?, rows: k, strides: steps })
    }

    /// Columns `from..from + columns` with their offsets and scales, row by row, into the beginning of `out`.
    fn widen(&self, hbm: &Hbm, from: usize, columns: usize, [scale, offset]: [Option<&Groups>; 2], out: &mut [f32]) {
        match self {
            Self::Bytes(view) => {
                let view = view.narrow(1, from, columns);
                for (at, piece) in view.pieces() {
                    let (top, left) = if view.strip_dim() == Some(0) { (at, 0) } else { (0, at) };
                    for row in 0..piece.dim(0) {
                        let out = &mut out[(top + row) * columns + left..][..piece.dim(1)];
                        piece.select(0, row).row().load(hbm, 0, out);
                    }
                }
            }
            Self::Nibbles { start, rows, strides } => {
                let bytes = hbm.bytes();
                for (row, out) in out.chunks_exact_mut(columns).enumerate().take(*rows) {
                    for (column, value) in out.iter_mut().enumerate() {
                        let at = start + row * strides[0] + (from + column) * strides[1];
                        // The low half first; four bits with a sign.
                        let half = bytes[at / 2] >> (at % 2 * 4) << 4;
                        *value = f32::from(half as i8 >> 4);
                    }
                }
            }
        }
        let mut terms = vec![0.0; columns];
        for (groups, combine) in [(offset, (|w, t| w + t) as fn(f32, f32) -> f32), (scale, |w, t| w * t)] {
            let Some(groups) = groups else { continue };
            for (group, rows) in out.chunks_mut(groups.rows.saturating_mul(columns)).enumerate() {
                groups.view.select(0, group).row().load(hbm, from, &mut terms);
                for row in rows.chunks_exact_mut(columns) {
                    row.iter_mut().zip(&terms).for_each(|(value, term)| *value = combine(*value, *term));
                }
            }
        }
    }
}

/// Where the first element of a tensor of four-bit elements, `packed` to one of its own, lies: in half bytes from the start of
/// memory.
fn first_nibble(desc: &TensorDesc, packed: i64, total: u64) -> Outcome<usize> {
    let overflow = || Fault::new("sizes and strides overflow, or reach below the storage");
    let Some((first, end)) = desc.byte_span().map_err(|()| overflow())? else { return Ok(0) };
    let addr = desc.addr.checked_add(first).ok_or_else(|| Fault::new("address overflows"))?;
    let low = offset_of(PhysAddr(addr), end - first, total).map_err(|e| Fault::new(e.to_string()))?;
    let base = 2 * (low as i64 - first as i64);
    desc.offset.checked_mul(packed).map(|offset| (base + offset) as usize).ok_or_else(overflow)
}
