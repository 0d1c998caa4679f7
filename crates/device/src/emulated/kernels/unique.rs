//! Distinct elements: Unique, Unique2, UniqueConsecutive, UniqueDim.
//!
//! How many there are depends on the data: values and counts are written contiguously from their outputs' start, the number
//! is reported in [`Machine::extent`]. NaN differs from NaN, so every one stays; both zeros are equal.

use acl_abi::{extent::NO_DIM, ops};

use super::args::{Args, wrap_dim};
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{load_all, store_all};
use super::number::{Number, with_lane};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnUnique, |args, machine| {
        unique(args, machine, &Form { inverse: 2, counts: None, first: 3, sorts: true, dim: None })
    }),
    (ops::aclnnUnique2, |args, machine| {
        unique(args, machine, &Form { inverse: 2, counts: Some(3), first: 4, sorts: true, dim: None })
    }),
    (ops::aclnnUniqueConsecutive, |args, machine| {
        unique(args, machine, &Form { inverse: 1, counts: Some(2), first: 4, sorts: false, dim: Some(3) })
    }),
    (ops::aclnnUniqueDim, |args, machine| {
        // Counts are always wanted.
        unique(args, machine, &Form { inverse: 2, counts: None, first: 4, sorts: true, dim: Some(3) })
    }),
];

/// Where an operator has its parameters, and what it does.
struct Form {
    /// Position of `returnInverse`.
    inverse: usize,
    /// Position of `returnCounts`.
    counts: Option<usize>,
    /// Position of the values, which inverse and counts follow.
    first: usize,
    /// Whether equal elements are found anywhere, or only side by side.
    sorts: bool,
    /// Position of `dim`: slices along it are what is compared.
    dim: Option<usize>,
}

/// What was found.
struct Distinct {
    /// An element (or slice) of each group of equal ones, in order.
    chosen: Vec<usize>,
    /// Group of every element.
    inverse: Vec<i64>,
    /// Size of every group.
    counts: Vec<i64>,
}

fn unique(args: &Args<'_>, machine: &mut Machine, form: &Form) -> Outcome {
    let x = args.tensor(0)?;
    let dim = match form.dim.map(|position| args.int(position)).transpose()? {
        None | Some(NO_DIM) => None,
        Some(dim) => Some(wrap_dim("dim", dim, x.ndim())?),
    };
    let (items, width) = match dim {
        Some(dim) => {
            ensure!(x.ndim() > 0, "self: at least one dimension is required");
            (x.dim(dim), x.without(dim).elements())
        }
        None => (x.elements(), 1),
    };
    let count = items.saturating_mul(width);
    ensure!(count <= INTERMEDIATE_MAX, "self: {count} elements, at most {INTERMEDIATE_MAX} are supported");
    ensure!(items <= INTERMEDIATE_MAX, "self: {items} slices, at most {INTERMEDIATE_MAX} are supported");
    let values = args.output(form.first)?;
    let name = args.name(form.first);
    ensure!(values.dtype == x.dtype, "{name}: type {}, want {}", lane::name(values.dtype), lane::name(x.dtype));
    // With its slices side by side, each is a run of `width` elements.
    let front = dim.map_or(x, |dim| super::indices::to_front(&x, dim, 1));
    with_lane!(class(x.dtype), L => {
        let mut elements = vec![L::default(); count];
        load_all(machine, &front, &mut elements)?;
        let distinct = find(&elements, items, width, form.sorts);
        write(args, machine, form, &distinct)?;
        let n = distinct.chosen.len();
        ensure!(values.is_contiguous(), "{name}: a contiguous tensor is required");
        let mut sizes = if dim.is_some() { x.dims().to_vec() } else { vec![0] };
        sizes[dim.unwrap_or(0)] = n;
        let room = values.elements();
        ensure!(sizes.iter().product::<usize>() <= room, "{name}: room for {room} elements, {sizes:?} are found");
        let packed = values.packed(&sizes);
        let packed = dim.map_or(packed, |dim| super::indices::to_front(&packed, dim, 1));
        store_all(machine, &packed, |from, piece: &mut [L]| {
            for (i, value) in piece.iter_mut().enumerate() {
                let at = from + i;
                *value = elements[distinct.chosen[at / width] * width + at % width];
            }
        })?;
        machine.extent = Some(n as u64);
        Ok(())
    })
}

/// Groups `items` runs of `width` elements.
fn find<L: Number>(elements: &[L], items: usize, width: usize, sorts: bool) -> Distinct {
    let run = |item: usize| &elements[item * width..(item + 1) * width];
    let keys = |item: usize| run(item).iter().map(|v| v.key());
    let mut order: Vec<usize> = (0..items).collect();
    if sorts {
        // Stable, so that the first of equal ones stands for them.
        order.sort_by(|&a, &b| keys(a).cmp(keys(b)));
    }
    let mut found = Distinct { chosen: Vec::new(), inverse: vec![0; items], counts: Vec::new() };
    let mut last = None;
    for item in order {
        let same = last.is_some_and(|last| run(last) == run(item));
        if !same {
            found.chosen.push(item);
            found.counts.push(0);
        }
        last = Some(item);
        found.inverse[item] = found.chosen.len() as i64 - 1;
        if let Some(count) = found.counts.last_mut() {
            *count += 1;
        }
    }
    found
}

/// Inverse and counts, where they are wanted.
fn write(args: &Args<'_>, machine: &mut Machine, form: &Form, found: &Distinct) -> Outcome {
    let always = form.dim.is_some() && form.counts.is_none();
    let whole = |view: &View, name: &str| -> Outcome {
        ensure!(class(view.dtype) == Class::Int, "{name}: type {}, want int64", lane::name(view.dtype));
        Ok(())
    };
    if args.int(form.inverse)? != 0 {
        let (view, name) = (args.output(form.first + 1)?, args.name(form.first + 1));
        whole(&view, name)?;
        let (have, want) = (view.elements(), found.inverse.len());
        ensure!(have == want, "{name}: shape {:?}, want {want} elements", view.dims());
        store_all(machine, &view, |from, piece: &mut [i64]| {
            piece.copy_from_slice(&found.inverse[from..from + piece.len()]);
        })?;
    }
    let wanted = form.counts.map_or(Ok(always), |position| args.int(position).map(|v| v != 0))?;
    if wanted {
        let (view, name) = (args.output(form.first + 2)?, args.name(form.first + 2));
        whole(&view, name)?;
        let (room, n) = (view.elements(), found.counts.len());
        ensure!(n <= room && view.is_contiguous(), "{name}: room for {room} counts, {n} are found");
        store_all(machine, &view.packed(&[n]), |from, piece: &mut [i64]| {
            piece.copy_from_slice(&found.counts[from..from + piece.len()]);
        })?;
    }
    Ok(())
}
