//! Operators that write parts of a tensor where an index tensor says: ScatterNdUpdate, ScatterList, InplaceScatterUpdate,
//! OneHot; and LinalgCross.
//!
//! The first three are how caches are updated. Indices are checked before anything is written.

use acl_abi::ops;

use super::args::{Args, wrap_dim};
use super::elementwise::copy;
use super::fault::{Outcome, ensure};
use super::indices::{Negative, checked, each_block, give_back};
use super::lane::{self, class};
use super::nest::{Nest, broadcast_shape, load_all};
use super::number::{Number, with_lane};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnInplaceScatterUpdate, inplace_scatter_update),
    (ops::aclnnLinalgCross, linalg_cross),
    (ops::aclnnOneHot, one_hot),
    (ops::aclnnScatterList, scatter_list),
    (ops::aclnnScatterNdUpdate, scatter_nd_update),
];

fn same_type(name: &str, view: &View, table: &View) -> Outcome {
    ensure!(view.dtype == table.dtype, "{name}: type {}, want {}", lane::name(view.dtype), lane::name(table.dtype));
    Ok(())
}

/// `varRef indices updates`: `varRef[indices[i…]] = updates[i…]`, where the last dimension of the indices names the first
/// dimensions of the tensor.
fn scatter_nd_update(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (table, index, updates) = (args.output(0)?, args.tensor(1)?, args.tensor(2)?);
    same_type("updates", &updates, &table)?;
    ensure!(index.ndim() > 0, "indices: at least one dimension is required");
    let lead = index.ndim() - 1;
    let depth = index.dim(lead);
    ensure!(depth <= table.ndim(), "indices: {depth} coordinates for {:?}", table.dims());
    let block = (0..depth).fold(table, |view, _| view.without(0));
    let fits = updates.ndim() == lead + block.ndim() && updates.dims()[..lead] == index.dims()[..lead];
    ensure!(fits, "updates: shape {:?} does not fit {:?}", updates.dims(), index.dims());
    let count: usize = index.dims()[..lead].iter().product();
    ensure!(count <= INTERMEDIATE_MAX, "indices: {count} positions, at most {INTERMEDIATE_MAX} are supported");
    let mut offsets = vec![0isize; count];
    for d in 0..depth {
        let column = index.select(lead, d);
        let coordinates = checked(machine, &column, table.dim(d), Negative::Refused).map_err(|f| f.about("indices"))?;
        for (offset, &at) in offsets.iter_mut().zip(&coordinates) {
            *offset = offset.wrapping_add((at as isize).wrapping_mul(table.stride(d)));
        }
        give_back(machine, coordinates);
    }
    each_block(&updates, lead, &block, offsets.into_iter(), |[updates, block]| {
        block.copy_from(&mut machine.hbm, &updates);
    })
}

/// Where each batch's update starts along `axis`: checked against the room there.
fn starts(machine: &mut Machine, index: &View, batches: usize, room: usize, len: usize) -> Outcome<Vec<i64>> {
    ensure!(index.dims() == [batches], "shape {:?}, want [{batches}]", index.dims());
    ensure!(len <= room, "updates of {len} do not fit into {room}");
    checked(machine, index, room - len + 1, Negative::Refused)
}

/// `data indices updates axis`: `data[b, …, indices[b] + s, …] = updates[b, …, s, …]` along `axis`.
fn inplace_scatter_update(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (data, index, updates) = (args.output(0)?, args.tensor(1)?, args.tensor(2)?);
    same_type("updates", &updates, &data)?;
    let axis = args.dim(3, data.ndim())?;
    let fits = data.ndim() > 1
        && axis > 0
        && updates.ndim() == data.ndim()
        && (0..data.ndim()).all(|d| d == axis || updates.dim(d) == data.dim(d));
    ensure!(fits, "updates: shape {:?} does not fit {:?} along dimension {axis}", updates.dims(), data.dims());
    let len = updates.dim(axis);
    let starts = starts(machine, &index, data.dim(0), data.dim(axis), len).map_err(|f| f.about("indices"))?;
    let outcome = starts.iter().enumerate().try_for_each(|(batch, &from)| {
        copy(machine, &data.select(0, batch).narrow(axis - 1, from as usize, len), &updates.select(0, batch))
    });
    give_back(machine, starts);
    outcome
}

/// `varRef[] indice updates maskOptional reduce axis`: the same with a tensor of its own for every batch; a batch whose mask is
/// 0 is left as it is.
fn scatter_list(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (tables, index, updates) = (args.outputs(0)?, args.tensor(1)?, args.tensor(2)?);
    let reduce = args.text(4)?;
    ensure!(matches!(reduce, "" | "update"), "reduceOptional: {reduce:?} is not supported (update)");
    ensure!(updates.ndim() > 0 && updates.dim(0) == tables.len(), "updates: shape {:?}", updates.dims());
    let axis = wrap_dim("axis", args.int(5)?, updates.ndim())?;
    ensure!(axis > 0, "axis: {axis} is the dimension of the batches");
    let len = updates.dim(axis);
    let room = tables.iter().filter(|t| t.ndim() + 1 == updates.ndim()).map(|t| t.dim(axis - 1)).min().unwrap_or(0);
    let mut wanted = vec![1i64; tables.len()];
    if let Some(mask) = args.optional(3)? {
        ensure!(mask.dims() == [tables.len()], "maskOptional: shape {:?}, want [{}]", mask.dims(), tables.len());
        load_all(machine, &mask, &mut wanted)?;
    }
    for (i, table) in tables.iter().enumerate() {
        same_type("varRef", table, &updates)?;
        let fits = table.ndim() + 1 == updates.ndim()
            && (0..table.ndim()).all(|d| d + 1 == axis || table.dim(d) == updates.dim(d + 1));
        ensure!(fits, "varRef: shape {:?} of number {i} does not fit {:?}", table.dims(), updates.dims());
    }
    let starts = starts(machine, &index, tables.len(), room, len).map_err(|f| f.about("indice"))?;
    let outcome = tables.iter().enumerate().filter(|(i, _)| wanted[*i] != 0).try_for_each(|(i, table)| {
        copy(machine, &table.narrow(axis - 1, starts[i] as usize, len), &updates.select(0, i))
    });
    give_back(machine, starts);
    outcome
}

/// `self numClasses onValue offValue axis → out`: a new dimension of classes, `onValue` at the one that self names.
fn one_hot(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (index, classes, on, off) = (args.tensor(0)?, args.int(1)?, args.tensor(2)?, args.tensor(3)?);
    let out = args.output(5)?;
    ensure!(out.ndim() == index.ndim() + 1, "out: shape {:?} for {:?}", out.dims(), index.dims());
    let axis = args.dim(4, out.ndim())?;
    let front = super::axes::move_last(&out, axis);
    let last = front.ndim() - 1;
    let fits = front.dims()[..last] == *index.dims() && front.dim(last) as i64 == classes;
    ensure!(fits, "out: shape {:?}, want {:?} and {classes}", out.dims(), index.dims());
    for (name, value) in [("onValue", &on), ("offValue", &off)] {
        ensure!(value.elements() == 1 && value.ndim() <= 1, "{name}: shape {:?}, want one element", value.dims());
    }
    let indices = checked(machine, &index, out.dim(axis), Negative::Refused).map_err(|f| f.about("self"))?;
    let mut outcome = copy(machine, &out, &off);
    let [on, _] = [on, off].map(super::indices::at_least_1d);
    // The one element, converted once: what is copied then has one type on both sides.
    with_lane!(class(out.dtype), L => {
        let mut value = [L::default()];
        on.row().load(&machine.hbm, 0, &mut value);
        let mut next = indices.iter();
        outcome = outcome.and_then(|()| super::nest::lines(index.dims(), [&front], |[line]| {
            if let Some(&at) = next.next() {
                line.store(&mut machine.hbm, at as usize, &value);
            }
        }));
    });
    give_back(machine, indices);
    outcome
}

/// `self other dim → out`: cross products of vectors of three along `dim`.
fn linalg_cross(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (a, b, out) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    let shape = broadcast_shape(a.dims(), b.dims())?;
    ensure!(out.dims() == shape.dims(), "out: shape {:?}, want {:?}", out.dims(), shape.dims());
    ensure!(out.ndim() > 0, "self: at least one dimension is required");
    let dim = args.dim(2, out.ndim())?;
    ensure!(out.dim(dim) == 3, "dim: size {} of dimension {dim}, want 3", out.dim(dim));
    let [a, b] = [a.broadcast(shape.dims())?, b.broadcast(shape.dims())?];
    let parts = |view: &View| -> [View; 3] { std::array::from_fn(|i| view.select(dim, i)) };
    let ([a0, a1, a2], [b0, b1, b2], [o0, o1, o2]) = (parts(&a), parts(&b), parts(&out));
    with_lane!(class(out.dtype), L => {
        Nest::new(o0.dims(), [&a0, &a1, &a2, &b0, &b1, &b2, &o0, &o1, &o2])?.rows(|rows| {
            for i in 0..rows[0].len {
                let mut v = [L::default(); 6];
                for (value, row) in v.iter_mut().zip(&rows) {
                    row.load(&machine.hbm, i, std::slice::from_mut(value));
                }
                let [a0, a1, a2, b0, b1, b2] = v;
                let minus = |x: L, y: L| x.plus(y.times(L::narrow(-1.0)));
                let cross = [
                    minus(a1.times(b2), a2.times(b1)),
                    minus(a2.times(b0), a0.times(b2)),
                    minus(a0.times(b1), a1.times(b0)),
                ];
                for (value, row) in cross.iter().zip(&rows[6..]) {
                    row.store(&mut machine.hbm, i, std::slice::from_ref(value));
                }
            }
        });
    });
    Ok(())
}
