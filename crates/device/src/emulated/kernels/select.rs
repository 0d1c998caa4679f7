//! Operators that pick by a mask: Nonzero, MaskedSelect, MaskedScatter.
//!
//! How much Nonzero and MaskedSelect write depends on the data: the caller allocates for the worst case, the kernel writes
//! the result contiguously from the output's start and reports its size in [`Machine::extent`].

use acl_abi::{MAX_DIMS, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class, with_elem};
use super::nest::{Nest, broadcast_shape};
use super::number::with_lane;
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine, bits};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnInplaceMaskedScatter, inplace_masked_scatter),
    (ops::aclnnMaskedSelect, masked_select),
    (ops::aclnnNonzero, |args, machine| nonzero(args, machine, false)),
    (ops::aclnnNonzeroV2, |args, machine| nonzero(args, machine, true)),
];

/// Calls `body` with the position of every element that is not 0, in row-major order.
pub fn each_true(machine: &Machine, view: &View, mut body: impl FnMut(&[usize])) -> Outcome {
    let (elements, bytes) = (view.elements() as u64, machine.hbm.len());
    ensure!(elements <= bytes, "{elements} elements are more than the device has bytes");
    let mut position = [0usize; MAX_DIMS];
    let (dims, ndim) = (view.dims(), view.ndim());
    let nest = Nest::new(dims, [view])?;
    with_lane!(class(view.dtype), L => with_elem!(view.dtype, E => {
        use super::lane::Lane;
        let memory: &[E] = machine.hbm.elements();
        nest.rows(|[row]| {
            for i in 0..row.len {
                if L::of(memory[row.at(i)]) != L::default() {
                    body(&position[..ndim]);
                }
                // The next position in row-major order.
                for d in (0..ndim).rev() {
                    position[d] += 1;
                    if position[d] < dims[d] {
                        break;
                    }
                    position[d] = 0;
                }
            }
        });
    }, else => {}));
    Ok(())
}

/// `self → out`: positions of the elements that are not 0, one a row (`[n, ndim]`), or one a column (`transposed`).
fn nonzero(args: &Args<'_>, machine: &mut Machine, transposed: bool) -> Outcome {
    let (x, out) = (args.tensor(0)?, args.output(1)?);
    ensure!(class(out.dtype) == Class::Int, "out: type {}, want int64", lane::name(out.dtype));
    let (counted, listed) = if transposed { (1, 0) } else { (0, 1) };
    let fits = out.ndim() == 2 && out.dim(listed) == x.ndim() && out.is_contiguous();
    ensure!(fits, "out: shape {:?} does not hold positions of {:?}", out.dims(), x.dims());
    let room = out.dim(counted);
    let mut positions: Vec<i64> = Vec::new();
    let mut count = 0usize;
    each_true(machine, &x, |position| {
        count += 1;
        if count <= room {
            positions.extend(position.iter().map(|&at| at as i64));
        }
    })?;
    ensure!(count <= room, "out: room for {room} positions, {count} elements are not 0");
    let ndim = x.ndim();
    let found = out.packed(&if transposed { [ndim, count] } else { [count, ndim] });
    super::nest::store_all(machine, &found, |from, piece: &mut [i64]| {
        for (i, value) in piece.iter_mut().enumerate() {
            let at = from + i;
            *value = positions[if transposed { at % count * ndim + at / count } else { at }];
        }
    })?;
    machine.extent = Some(count as u64);
    Ok(())
}

/// `self mask → out`: the elements where the mask, broadcast with self, is set.
fn masked_select(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, mask, out) = (args.tensor(0)?, args.tensor(1)?, args.output(2)?);
    ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
    ensure!(out.ndim() == 1, "out: shape {:?}, want one dimension", out.dims());
    ensure!(mask.dtype.bits() == 8, "mask: type {}, want bool", lane::name(mask.dtype));
    let shape = broadcast_shape(x.dims(), mask.dims())?;
    let elements = x.broadcast(shape.dims())?.elements();
    ensure!(elements <= INTERMEDIATE_MAX, "mask: {elements} elements, at most {INTERMEDIATE_MAX} are supported");
    let room = out.dim(0);
    let nest = Nest::new(shape.dims(), [&x, &mask])?;
    let mut chosen = Vec::new();
    let flags: &[u8] = machine.hbm.elements();
    nest.rows(|[x, mask]| chosen.extend((0..x.len).filter(|&i| flags[mask.at(i)] != 0).map(|i| x.at(i))));
    ensure!(chosen.len() <= room, "out: room for {room} elements, {} are selected", chosen.len());
    let to = out.row();
    with_elem!(x.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        for (i, from) in chosen.iter().enumerate() {
            memory[to.at(i)] = memory[*from];
        }
    }, else => {});
    machine.extent = Some(chosen.len() as u64);
    Ok(())
}

/// `selfRef mask source`: where the mask, broadcast to self, is set, the next elements of source.
fn inplace_masked_scatter(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, mask, source) = (args.output(0)?, args.tensor(1)?, args.tensor(2)?);
    let dtype = lane::name(source.dtype);
    ensure!(source.dtype == out.dtype, "source: type {dtype}, want {}", lane::name(out.dtype));
    ensure!(mask.dtype.bits() == 8, "mask: type {}, want bool", lane::name(mask.dtype));
    let mask = mask.broadcast(out.dims()).map_err(|f| f.about("mask"))?;
    let nest = Nest::new(out.dims(), [&out, &mask])?;
    let mut places = Vec::new();
    let flags: &[u8] = machine.hbm.elements();
    nest.rows(|[out, mask]| places.extend((0..out.len).filter(|&i| flags[mask.at(i)] != 0).map(|i| out.at(i))));
    let have = source.elements();
    ensure!(places.len() <= have, "source: {have} elements, {} places are set", places.len());
    let mut values = Vec::new();
    bits::load(machine, &source, &mut values)?;
    bits::store_at(machine, out.dtype, &places, &values);
    Ok(())
}
