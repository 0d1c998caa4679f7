//! Looking values up and counting them: SearchSorted, Bucketize, Histc, Bincount, IsIn.

use acl_abi::{Scalar, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::indices::at_least_1d;
use super::lane::{self, Class, class};
use super::nest::{CHUNK, Nest, lines, load_all, store_all};
use super::number::{Number, with_lane};
use super::scatter::scalar_as;
use super::view::{Row, View};
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnBincount, bincount),
    (ops::aclnnBucketize, bucketize),
    (ops::aclnnHistc, histc),
    (ops::aclnnIsInScalarTensor, |args, machine| is_in(args, machine, 1, 0)),
    (ops::aclnnIsInTensorScalar, |args, machine| is_in(args, machine, 0, 1)),
    (ops::aclnnSearchSorted, search_sorted),
    (ops::aclnnSearchSorteds, search_sorted_scalar),
];

fn check_places(args: &Args<'_>, position: usize, out: &View, shape: &[usize]) -> Outcome {
    let name = args.name(position);
    ensure!(out.dims() == shape, "{name}: shape {:?}, want {shape:?}", out.dims());
    ensure!(class(out.dtype) == Class::Int, "{name}: type {}, want int32 or int64", lane::name(out.dtype));
    Ok(())
}

/// The lane that two types compare in.
fn common(a: &View, b: &View) -> Class {
    match (class(a.dtype), class(b.dtype)) {
        (Class::Double, _) | (_, Class::Double) => Class::Double,
        (Class::Int, Class::Int) => Class::Int,
        _ => Class::Single,
    }
}

/// How many elements of `sorted` come before `value`: those that are smaller, or not larger on the `right` side.
fn place<L: Number>(sorted: &[L], value: L, right: bool) -> i64 {
    let key = value.key();
    sorted.partition_point(|element| if right { element.key() <= key } else { element.key() < key }) as i64
}

/// `sortedSequence self outInt32 right sorter → out`: a sequence for every line of values, or one for all.
fn search_sorted(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (sequence, values, right, out) = (args.tensor(0)?, args.tensor(1)?, args.int(3)? != 0, args.output(5)?);
    let sorter = args.optional(4)?;
    check_places(args, 5, &out, values.dims())?;
    ensure!(sequence.ndim() > 0, "sortedSequence: at least one dimension is required");
    let last = sequence.ndim() - 1;
    let [values, out] = [values, out].map(at_least_1d);
    let lead = values.ndim() - 1;
    let shared = sequence.ndim() == 1;
    ensure!(
        shared || sequence.dims()[..last] == values.dims()[..lead],
        "sortedSequence: shape {:?} does not fit values of {:?}",
        sequence.dims(),
        values.dims()
    );
    let len = sequence.dim(last);
    ensure!(len <= INTERMEDIATE_MAX, "sortedSequence: {len} elements, at most {INTERMEDIATE_MAX} are supported");
    if let Some(sorter) = &sorter {
        let fits = sorter.dims() == sequence.dims() && class(sorter.dtype) == Class::Int;
        ensure!(fits, "sorter: shape {:?}, want {:?} of int64", sorter.dims(), sequence.dims());
    }
    if len == 0 {
        return super::fill::zero(machine, &out);
    }
    let order = sorter.unwrap_or(sequence);
    let mut bad = None;
    with_lane!(common(&sequence, &values), L => {
        let mut line = vec![L::default(); len];
        let mut loaded = None;
        lines(&values.dims()[..lead], [&out, &values, &sequence, &order], |[out, values, sequence, order]| {
            if loaded != Some(sequence) {
                sequence.load(&machine.hbm, 0, &mut line);
                if sorter.is_some() {
                    bad = bad.or(permute(machine, &mut line, &order));
                }
                loaded = Some(sequence);
            }
            look_up(machine, &line, &values, &out, right);
        })?;
    });
    match bad {
        Some(index) => {
            ensure!(false, "sorter: value {index} is not in 0..{len}");
            Ok(())
        }
        None => Ok(()),
    }
}

/// Puts a line in the order that `order` names; answers an index that names nothing.
fn permute<L: Number>(machine: &Machine, line: &mut [L], order: &Row) -> Option<i64> {
    let mut indices = vec![0i64; line.len()];
    order.load(&machine.hbm, 0, &mut indices);
    let at = |index: &i64| usize::try_from(*index).ok().and_then(|i| line.get(i)).copied();
    let bad = indices.iter().find(|index| at(index).is_none()).copied();
    let sorted: Vec<L> = indices.iter().filter_map(at).collect();
    line[..sorted.len()].copy_from_slice(&sorted);
    bad
}

fn look_up<L: Number>(machine: &mut Machine, sorted: &[L], values: &Row, out: &Row, right: bool) {
    let (mut piece, mut places) = ([L::default(); CHUNK], [0i64; CHUNK]);
    for from in (0..values.len).step_by(CHUNK) {
        let n = CHUNK.min(values.len - from);
        values.load(&machine.hbm, from, &mut piece[..n]);
        places.iter_mut().zip(&piece[..n]).for_each(|(at, &value)| *at = place(sorted, value, right));
        out.store(&mut machine.hbm, from, &places[..n]);
    }
}

/// `sortedSequence self outInt32 right sorter → out`: one host value in one sequence.
fn search_sorted_scalar(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (sequence, value, right, out) = (args.tensor(0)?, args.scalar(1)?, args.int(3)? != 0, args.output(5)?);
    let sorter = args.optional(4)?;
    ensure!(sequence.ndim() == 1, "sortedSequence: shape {:?}, want one dimension", sequence.dims());
    ensure!(out.elements() == 1, "out: shape {:?}, want one element", out.dims());
    ensure!(sequence.dim(0) <= INTERMEDIATE_MAX, "sortedSequence: {} elements are too many", sequence.dim(0));
    let found = with_lane!(class(sequence.dtype), L => {
        let mut line = vec![L::default(); sequence.dim(0)];
        load_all(machine, &sequence, &mut line)?;
        if let Some(sorter) = sorter {
            ensure!(sorter.dims() == sequence.dims(), "sorter: shape {:?}, want {:?}", sorter.dims(), sequence.dims());
            let bad = permute(machine, &mut line, &sorter.row());
            ensure!(bad.is_none(), "sorter: value {} is not in 0..{}", bad.unwrap_or(0), line.len());
        }
        place(&line, scalar_as::<L>(value, sequence.dtype), right)
    });
    store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(found))
}

/// `self boundaries outInt32 right → out`.
fn bucketize(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (values, boundaries, right, out) = (args.tensor(0)?, args.tensor(1)?, args.int(3)? != 0, args.output(4)?);
    check_places(args, 4, &out, values.dims())?;
    ensure!(boundaries.ndim() == 1, "boundaries: shape {:?}, want one dimension", boundaries.dims());
    let len = boundaries.dim(0);
    ensure!(len <= INTERMEDIATE_MAX, "boundaries: {len} elements, at most {INTERMEDIATE_MAX} are supported");
    let nest = Nest::new(values.dims(), [&values, &out])?;
    with_lane!(common(&values, &boundaries), L => {
        let mut line = vec![L::default(); len];
        load_all(machine, &boundaries, &mut line)?;
        nest.rows(|[values, out]| look_up(machine, &line, &values, &out, right));
    });
    Ok(())
}

/// `self bins min max → out`: how many elements fall into each of `bins` equal parts of min … max (of the elements' own range
/// where those are equal); the last part has its upper end, what lies outside is not counted.
fn histc(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, bins, out) = (args.tensor(0)?, args.int(1)?, args.output(4)?);
    let (mut low, mut high) = (args.scalar(2)?.as_f64(), args.scalar(3)?.as_f64());
    ensure!(bins >= 1 && out.dims() == [bins as usize], "out: shape {:?}, want [{bins}]", out.dims());
    let bins = out.dim(0);
    ensure!(x.elements() <= INTERMEDIATE_MAX, "self: {} elements are too many", x.elements());
    let mut values = vec![0.0f64; x.elements()];
    load_all(machine, &x, &mut values)?;
    if low == high && !values.is_empty() {
        low = values.iter().copied().fold(f64::INFINITY, f64::smaller);
        high = values.iter().copied().fold(f64::NEG_INFINITY, f64::larger);
    }
    if low == high {
        (low, high) = (low - 1.0, high + 1.0);
    }
    ensure!(low.is_finite() && high.is_finite() && low < high, "min: {low} to max {high} is no finite range");
    let mut counts = vec![0i64; bins];
    for value in values {
        if value >= low && value <= high {
            let bin = ((value - low) / (high - low) * bins as f64) as usize;
            counts[bin.min(bins - 1)] += 1;
        }
    }
    store_all(machine, &out, |from, piece: &mut [i64]| piece.copy_from_slice(&counts[from..from + piece.len()]))
}

/// `self weights minlength → out`: how often each value occurs, or the sum of its weights.
fn bincount(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, weights, out) = (args.tensor(0)?, args.optional(1)?, args.output(3)?);
    let least = args.int(2)?;
    ensure!(x.ndim() == 1 && out.ndim() == 1, "self: shape {:?}, want one dimension", x.dims());
    let size = out.dim(0);
    ensure!(least <= size as i64, "out: size {size}, want {least} at least");
    ensure!(size <= INTERMEDIATE_MAX, "out: {size} elements, at most {INTERMEDIATE_MAX} are supported");
    let values = super::indices::checked(machine, &x, size, super::indices::Negative::Refused);
    let values = values.map_err(|f| f.about("self"))?;
    let mut sums = vec![0.0f64; size];
    match weights {
        Some(weights) => {
            ensure!(weights.dims() == x.dims(), "weights: shape {:?}, want {:?}", weights.dims(), x.dims());
            let mut loaded = vec![0.0f64; values.len()];
            load_all(machine, &weights, &mut loaded)?;
            values.iter().zip(loaded).for_each(|(&value, weight)| sums[value as usize] += weight);
        }
        None => values.iter().for_each(|&value| sums[value as usize] += 1.0),
    }
    super::indices::give_back(machine, values);
    store_all(machine, &out, |from, piece: &mut [f64]| piece.copy_from_slice(&sums[from..from + piece.len()]))
}

/// `element testElements assumeUnique invert → out`, one of the first two a host value: whether the scalar is among the
/// tensor's elements, or which elements equal it.
fn is_in(args: &Args<'_>, machine: &mut Machine, tensor: usize, scalar: usize) -> Outcome {
    let (x, value, invert, out) = (args.tensor(tensor)?, args.scalar(scalar)?, args.int(3)? != 0, args.output(4)?);
    ensure!(out.dtype.bits() == 8, "out: type {}, want bool", lane::name(out.dtype));
    let each = tensor == 0;
    let want: &[usize] = if each { x.dims() } else { &[] };
    ensure!(out.dims() == want, "out: shape {:?}, want {want:?}", out.dims());
    let (elements, bytes) = (x.elements() as u64, machine.hbm.len());
    ensure!(elements <= bytes, "{elements} elements are more than the device has bytes");
    // An integer tensor and a fraction meet as fractions.
    let wide = class(x.dtype) == Class::Int && class(value.dtype) != Class::Int;
    let lane = if wide { Class::Double } else { class(x.dtype) };
    let nest = Nest::new(x.dims(), [&x, if each { &out } else { &x }])?;
    let mut any = false;
    with_lane!(lane, L => {
        let value: L = own(value, wide, &x);
        let (mut piece, mut flags) = ([L::default(); CHUNK], [0i64; CHUNK]);
        nest.rows(|[x, out]| {
            for from in (0..x.len).step_by(CHUNK) {
                let n = CHUNK.min(x.len - from);
                x.load(&machine.hbm, from, &mut piece[..n]);
                for (flag, element) in flags.iter_mut().zip(&piece[..n]) {
                    *flag = i64::from((*element == value) != invert);
                    any |= *element == value;
                }
                if each {
                    out.store(&mut machine.hbm, from, &flags[..n]);
                }
            }
        });
    });
    if each { Ok(()) } else { store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(i64::from(any != invert))) }
}

fn own<L: Number>(value: Scalar, wide: bool, x: &View) -> L {
    if wide { L::narrow(value.as_f64()) } else { scalar_as(value, x.dtype) }
}
