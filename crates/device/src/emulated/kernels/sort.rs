//! Sorted lines and what is found by order: Sort, Argsort, Topk, Kthvalue, medians, the filter of top-k and top-p sampling.
//!
//! Every line is ordered by [`Number::key`] and then by index, which makes each sort stable and its result unique: NaN
//! counts as larger than any number, both zeros are equal, of equal elements the first comes first.

use acl_abi::ops;

use super::args::Args;
use super::axes::{Axes, Group, Reduction, move_last};
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::lines;
use super::number::{Number, with_lane};
use super::view::{Row, View};
use super::{Family, INTERMEDIATE_MAX, Machine};
use crate::emulated::hbm::Hbm;

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnApplyTopKTopP, apply_top_k_top_p),
    (ops::aclnnArgsort, argsort),
    (ops::aclnnKthvalue, kthvalue),
    (ops::aclnnMedian, |args, machine| median_of_all(args, machine, false)),
    (ops::aclnnMedianDim, |args, machine| median(args, machine, false)),
    (ops::aclnnNanMedian, |args, machine| median_of_all(args, machine, true)),
    (ops::aclnnNanMedianDim, |args, machine| median(args, machine, true)),
    (ops::aclnnSort, sort),
    (ops::aclnnTopk, topk),
];

/// A line and the order of its elements.
pub struct Ordered<L> {
    /// Elements in place.
    pub values: Vec<L>,
    /// Key and index of each element; an order of these is an order of the elements.
    pub entries: Vec<(u64, u32)>,
}

impl<L: Number> Ordered<L> {
    /// Nothing, with room for lines of `len` elements.
    pub fn with_room(len: usize) -> Outcome<Self> {
        ensure!(len <= INTERMEDIATE_MAX, "a line of {len} elements, at most {INTERMEDIATE_MAX} are supported");
        Ok(Self { values: vec![L::default(); len], entries: Vec::with_capacity(len) })
    }

    /// Takes a line; `descending` turns the order round, so that the largest comes first.
    pub fn load(&mut self, hbm: &Hbm, row: &Row, descending: bool) {
        self.values.resize(row.len, L::default());
        row.load(hbm, 0, &mut self.values);
        self.index(descending);
    }

    /// Takes a group's elements.
    fn gather(&mut self, hbm: &Hbm, group: &Group<'_>) {
        self.values.clear();
        group.pieces(hbm, |_, piece: &[L]| self.values.extend_from_slice(piece));
        self.index(false);
    }

    fn index(&mut self, descending: bool) {
        let flip = if descending { u64::MAX } else { 0 };
        self.entries.clear();
        self.entries.extend(self.values.iter().enumerate().map(|(i, v)| (v.key() ^ flip, i as u32)));
    }

    /// Sorts, the first `k` elements at least.
    pub fn sort(&mut self, k: usize) {
        if k < self.entries.len() && k > 0 {
            self.entries.select_nth_unstable(k - 1);
            self.entries[..k].sort_unstable();
        } else {
            self.entries.sort_unstable();
        }
    }

    /// Element and index at a place of the order.
    pub fn at(&self, place: usize) -> (L, i64) {
        let index = self.entries[place].1;
        (self.values[index as usize], i64::from(index))
    }

    /// The element with `place` smaller ones, alone.
    fn nth(&mut self, place: usize) -> (L, i64) {
        let (_, &mut (_, index), _) = self.entries.select_nth_unstable(place);
        (self.values[index as usize], i64::from(index))
    }
}

fn check_indices(args: &Args<'_>, position: usize, indices: &View) -> Outcome {
    let (name, dtype) = (args.name(position), lane::name(indices.dtype));
    ensure!(class(indices.dtype) == Class::Int, "{name}: type {dtype}, want int32 or int64");
    Ok(())
}

fn check_values(args: &Args<'_>, position: usize, values: &View, x: &View) -> Outcome {
    let (name, dtype) = (args.name(position), lane::name(values.dtype));
    ensure!(values.dtype == x.dtype, "{name}: type {dtype}, want {}", lane::name(x.dtype));
    Ok(())
}

/// `self stable dim descending → values indices`.
fn sort(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, descending) = (args.tensor(0)?, args.int(3)? != 0);
    let dim = args.dim(2, x.ndim())?;
    let len = move_last(&x, dim).dims().last().copied().unwrap_or(1);
    ordered(args, machine, dim, len, descending, Some(4), 5)
}

/// `self dim descending → out`: the indices of a stable sort.
fn argsort(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, descending) = (args.tensor(0)?, args.int(2)? != 0);
    let dim = args.dim(1, x.ndim())?;
    let len = move_last(&x, dim).dims().last().copied().unwrap_or(1);
    ordered(args, machine, dim, len, descending, None, 3)
}

/// `self k dim largest sorted → values indices`; sorted either way.
fn topk(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, k, largest) = (args.tensor(0)?, args.int(1)?, args.int(3)? != 0);
    let dim = args.dim(2, x.ndim())?;
    let len = move_last(&x, dim).dims().last().copied().unwrap_or(1);
    ensure!(k >= 0 && k as usize <= len, "k: {k} of {len} elements of dimension {dim}");
    ordered(args, machine, dim, k as usize, largest, Some(5), 6)
}

/// The first `k` elements of every line in order, to outputs that have `k` elements there.
fn ordered(
    args: &Args<'_>,
    machine: &mut Machine,
    dim: usize,
    k: usize,
    descending: bool,
    values: Option<usize>,
    indices: usize,
) -> Outcome {
    let x = args.tensor(0)?;
    for position in values.into_iter().chain([indices]) {
        let out = args.output(position)?;
        let fits = out.ndim() == x.ndim() && (0..x.ndim()).all(|d| out.dim(d) == if d == dim { k } else { x.dim(d) });
        ensure!(fits, "{}: shape {:?} does not fit {k} of {:?}", args.name(position), out.dims(), x.dims());
    }
    let indices_out = args.output(indices)?;
    check_indices(args, indices, &indices_out)?;
    let values_out = values.map(|position| args.output(position)).transpose()?;
    if let (Some(position), Some(view)) = (values, &values_out) {
        check_values(args, position, view, &x)?;
    }
    let values_view = values_out.unwrap_or(indices_out);
    let [x, values_view, indices_view] = [x, values_view, indices_out].map(|view| move_last(&view, dim));
    let last = x.ndim() - 1;
    with_lane!(class(x.dtype), L => {
        let mut line = Ordered::<L>::with_room(x.dim(last))?;
        let (mut best, mut places) = (vec![L::default(); k], vec![0i64; k]);
        lines(&x.dims()[..last], [&x, &values_view, &indices_view], |[x, values_row, indices_row]| {
            line.load(&machine.hbm, &x, descending);
            line.sort(k);
            for (i, (value, place)) in best.iter_mut().zip(&mut places).enumerate() {
                (*value, *place) = line.at(i);
            }
            if values_out.is_some() {
                values_row.store(&mut machine.hbm, 0, &best);
            }
            indices_row.store(&mut machine.hbm, 0, &places);
        })
    })
}

/// `self k dim keepdim → values indices`: the k-th smallest, from 1.
fn kthvalue(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, k) = (args.tensor(0)?, args.int(1)?);
    let reduction = Reduction::new(machine, &x, Axes::one(args.dim(2, x.ndim())?))?;
    let len = reduction.len();
    ensure!(k >= 1 && k as usize <= len, "k: {k} of {len} elements");
    choose(args, machine, &x, &reduction, 4, |_| Some(k as usize - 1))
}

/// `self dim keepdim → values indices`: the lower of the middle elements; NaN where there is one, or among the numbers
/// only.
fn median(args: &Args<'_>, machine: &mut Machine, ignore_nan: bool) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, Axes::one(args.dim(1, x.ndim())?))?;
    ensure!(!reduction.lacks_elements(), "self: a reduced dimension of {:?} is empty", x.dims());
    choose(args, machine, &x, &reduction, 3, |entries| middle(entries, ignore_nan))
}

/// Rank of the median among keys; `None` where NaN is what counts: the first NaN.
fn middle(entries: &[(u64, u32)], ignore_nan: bool) -> Option<usize> {
    let nans = entries.iter().filter(|(key, _)| *key == u64::MAX).count();
    // Integers never have NaN, but their largest value has its key.
    let numbers = entries.len() - nans;
    match (nans, numbers) {
        (0, n) => Some((n - 1) / 2),
        (_, 0) => Some(0),
        (_, n) if ignore_nan => Some((n - 1) / 2),
        (_, n) => Some(n),
    }
}

/// One element of every group by rank, to `values` at `first` and `indices` after it.
fn choose(
    args: &Args<'_>,
    machine: &mut Machine,
    x: &View,
    reduction: &Reduction,
    first: usize,
    rank: impl Fn(&[(u64, u32)]) -> Option<usize>,
) -> Outcome {
    let (values, indices) = (reduction.output(args, first)?, reduction.output(args, first + 1)?);
    check_values(args, first, &values, x)?;
    check_indices(args, first + 1, &indices)?;
    with_lane!(class(x.dtype), L => {
        let mut line = Ordered::<L>::with_room(reduction.len())?;
        reduction.each(&[values, indices], |group, [values, indices, _]| {
            line.gather(&machine.hbm, &group);
            if let Some(rank) = rank(&line.entries) {
                let (value, index) = line.nth(rank);
                values.store(&mut machine.hbm, 0, &[value]);
                indices.store(&mut machine.hbm, 0, &[index]);
            }
        })
    })
}

/// `self → out`: the median of every element.
fn median_of_all(args: &Args<'_>, machine: &mut Machine, ignore_nan: bool) -> Outcome {
    let x = args.tensor(0)?;
    let reduction = Reduction::new(machine, &x, Axes::all())?;
    let out = reduction.output(args, 1)?;
    check_values(args, 1, &out, &x)?;
    ensure!(!reduction.lacks_elements(), "self: shape {:?} has no elements", x.dims());
    with_lane!(class(x.dtype), L => {
        let mut line = Ordered::<L>::with_room(reduction.len())?;
        reduction.each(&[out], |group, [out, ..]| {
            line.gather(&machine.hbm, &group);
            if let Some(rank) = middle(&line.entries, ignore_nan) {
                out.store(&mut machine.hbm, 0, &[line.nth(rank).0]);
            }
        })
    })
}

/// `logits p k → out`: of each row, what is neither among the `k` largest nor in the smallest set of likely tokens with
/// probability `p` becomes −∞. `k` is applied first; either may be null.
fn apply_top_k_top_p(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (logits, p, k, out) = (args.tensor(0)?, args.optional(1)?, args.optional(2)?, args.output(3)?);
    ensure!(logits.ndim() == 2, "logits: shape {:?}, want [batch, vocabulary]", logits.dims());
    ensure!(class(logits.dtype) == Class::Single, "logits: type {} is not supported", lane::name(logits.dtype));
    ensure!(out.dims() == logits.dims(), "out: shape {:?}, want {:?}", out.dims(), logits.dims());
    check_values(args, 3, &out, &logits)?;
    let (batch, vocabulary) = (logits.dim(0), logits.dim(1));
    for (name, view) in [("p", &p), ("k", &k)] {
        let Some(view) = view else { continue };
        ensure!(view.dims() == [batch], "{name}: shape {:?}, want [{batch}]", view.dims());
    }
    let mut line = Ordered::<f32>::with_room(vocabulary)?;
    let mut kept = vec![f32::NEG_INFINITY; vocabulary];
    for row in 0..batch {
        line.load(&machine.hbm, &logits.select(0, row).row(), true);
        line.sort(vocabulary);
        let mut count = vocabulary;
        if let Some(k) = &k {
            let k = k.row().integer(&machine.hbm, row);
            // Elements equal to the k-th stay: only what is smaller goes.
            if k >= 1 && (k as usize) < vocabulary {
                let last = line.entries[k as usize - 1].0;
                count = line.entries.partition_point(|(key, _)| *key <= last);
            }
        }
        if let Some(p) = &p {
            let mut limit = [0.0f64];
            p.row().load(&machine.hbm, row, &mut limit);
            count = nucleus(&line, count, limit[0]);
        }
        kept.fill(f32::NEG_INFINITY);
        for (_, index) in &line.entries[..count] {
            kept[*index as usize] = line.values[*index as usize];
        }
        out.select(0, row).row().store(&mut machine.hbm, 0, &kept);
    }
    Ok(())
}

/// How many of the first `count` elements, which are sorted from the largest, have probability `p` together: at least one,
/// and an element stays while those before it have no more than `p`.
fn nucleus(line: &Ordered<f32>, count: usize, p: f64) -> usize {
    let Some(top) = (count > 0).then(|| line.at(0).0.wide()) else { return 0 };
    let weight = |place: usize| (line.at(place).0.wide() - top).exp();
    let total: f64 = (0..count).map(weight).sum();
    // From the least likely on: what lies in the tail of probability 1 − p goes.
    let mut tail = 0.0;
    for place in (1..count).rev() {
        tail += weight(place) / total;
        if tail > 1.0 - p {
            return place + 1;
        }
    }
    count.min(1)
}
