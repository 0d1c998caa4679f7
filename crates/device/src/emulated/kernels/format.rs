//! Into the private format FRACTAL_NZ (`acl_abi::nz`) and out of it: NpuFormatCast, and TransMatmulWeight, which does it in place.
//!
//! Products read weights that lie so ([`super::gemm`]); other operators refuse them. Padding is zero.

use acl_abi::{TensorDesc, nz, ops};

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, with_elem};
use super::{Family, INTERMEDIATE_MAX, Machine};
use crate::interface::PhysAddr;

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnNpuFormatCast, format_cast), (ops::aclnnTransMatmulWeight, trans_weight)];

/// `srcTensor → dstTensor`: the same elements; shapes and types agree.
pub fn format_cast(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (from, to) = (args.matrix(0)?, args.matrix(1)?);
    args.writable(1, to)?;
    ensure!(to.dims() == from.dims(), "dstTensor: shape {:?}, want {:?}", to.dims(), from.dims());
    ensure!(to.dtype == from.dtype, "dstTensor: type {}, want {}", lane::name(to.dtype), lane::name(from.dtype));
    if let Some(desc) = args.desc(1)? {
        clear(desc, machine)?;
    }
    for (at, to_part) in to.pieces() {
        let from = to.strip_dim().map_or(from, |dim| from.narrow(dim, at, to_part.dim(dim)));
        for (at, piece) in from.pieces() {
            let to = from.strip_dim().map_or(to_part, |dim| to_part.narrow(dim, at, piece.dim(dim)));
            copy(machine, &to, &piece)?;
        }
    }
    Ok(())
}

/// `mmWeightRef`, whose elements lie row by row and which is tagged with the format that they get here.
pub fn trans_weight(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let about = |text: &str| Fault::new(text).about("mmWeightRef");
    let view = args.matrix(0)?;
    let desc = args.desc(0)?.ok_or_else(|| about("a tensor is required"))?;
    let found = nz::matrices(desc).ok().flatten();
    let private = found.ok_or_else(|| about("a matrix with elements that is tagged FRACTAL_NZ is required"))?;
    ensure!(desc.offset == 0, "mmWeightRef: offset {}, want 0", desc.offset);
    let count = view.elements();
    ensure!(count <= INTERMEDIATE_MAX, "mmWeightRef: {count} elements, at most {INTERMEDIATE_MAX} are supported");
    let start = view.start();
    with_elem!(view.dtype, E => {
        let plain: Vec<E> = machine.hbm.elements::<E>()[start..start + count].to_vec();
        clear(desc, machine)?;
        let memory: &mut [E] = machine.hbm.elements_mut();
        let [rows, columns] = [private.rows, private.columns].map(|dim| view.dim(dim));
        let [width, strip, matrix] = [private.width, private.strip, private.matrix].map(|n| n as usize);
        for (i, row) in plain.chunks_exact(columns).enumerate() {
            let at = start + i / rows * matrix + i % rows * width;
            for (s, part) in row.chunks(width).enumerate() {
                memory[at + s * strip..][..part.len()].copy_from_slice(part);
            }
        }
    }, else => return Err(about("its element type is not supported")));
    Ok(())
}

/// Zeroes what a tensor tagged FRACTAL_NZ takes, padding included.
fn clear(desc: &TensorDesc, machine: &mut Machine) -> Outcome {
    let private = nz::matrices(desc).ok().flatten();
    if let (Some(_), Ok(Some((first, end)))) = (private, desc.byte_span()) {
        let cleared = machine.hbm.fill(PhysAddr(desc.addr + first), end - first, 0);
        cleared.map_err(|e| Fault::new(e.to_string()))?;
    }
    Ok(())
}
