//! Operators that write single elements by index: Scatter in its forms and Put.
//!
//! `out[index[i][j]][j] ∘= src[i][j]` for `dim` 0, and so on. All indices are checked before anything is written; writes go
//! in row-major order of the index, so where several meet the last one stays, and sums have one order. Each step rounds
//! to the tensor's type, as CPU torch does.

use acl_abi::{DataType, Scalar, ops};

use super::args::Args;
use super::elementwise::copy;
use super::fault::{Fault, Outcome, ensure};
use super::gather::Places;
use super::indices::{Lines, Negative, at_least_1d, checked, give_back};
use super::lane::{self, Class, Lane, class, with_elem};
use super::nest::Nest;
use super::number::{Number, with_lane};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnInplacePut, inplace_put),
    (ops::aclnnInplaceScatter, |args, machine| scatter(args, machine, Some(4), None, 0)),
    (ops::aclnnInplaceScatterReduce, |args, machine| scatter(args, machine, Some(4), Some(5), 0)),
    (ops::aclnnInplaceScatterValue, |args, machine| scatter_value(args, machine, 0)),
    (ops::aclnnScatter, |args, machine| scatter(args, machine, Some(4), None, 5)),
    (ops::aclnnScatterAdd, |args, machine| scatter(args, machine, None, None, 4)),
    (ops::aclnnScatterReduce, |args, machine| scatter(args, machine, Some(4), Some(5), 6)),
    (ops::aclnnScatterValue, |args, machine| scatter_value(args, machine, 5)),
];

/// How a source element meets what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Replaces it.
    Assign,
    /// Is added.
    Add,
    /// Is multiplied.
    Multiply,
    /// The larger stays, or NaN.
    Max,
    /// The smaller stays, or NaN.
    Min,
    /// The mean of all that meet.
    Mean,
}

impl Combine {
    /// From the `reduce` argument.
    fn of(args: &Args<'_>, position: usize) -> Outcome<Self> {
        const ALL: [Combine; 6] =
            [Combine::Assign, Combine::Add, Combine::Multiply, Combine::Max, Combine::Min, Combine::Mean];
        let number = args.int(position)?;
        let known = usize::try_from(number).ok().and_then(|i| ALL.get(i));
        known.copied().ok_or_else(|| Fault::new(format!("reduce: {number} is not one of 0 to 5")))
    }

    /// The combined value.
    #[inline(always)]
    pub fn apply<L: Number>(self, old: L, new: L) -> L {
        match self {
            Self::Assign => new,
            Self::Add | Self::Mean => old.plus(new),
            Self::Multiply => old.times(new),
            Self::Max => old.larger(new),
            Self::Min => old.smaller(new),
        }
    }
}

/// `self dim index src [reduce [includeSelf]] → out`; output 0 means in place.
fn scatter(
    args: &Args<'_>,
    machine: &mut Machine,
    reduce: Option<usize>,
    include_self: Option<usize>,
    output: usize,
) -> Outcome {
    let (index, source) = (args.tensor(2)?, args.tensor(3)?);
    let combine = reduce.map_or(Ok(Combine::Add), |position| Combine::of(args, position))?;
    let include = include_self.map_or(Ok(true), |position| args.int(position).map(|v| v != 0))?;
    let out = target(args, machine, output)?;
    let name = args.name(3);
    ensure!(source.dtype == out.dtype, "{name}: type {}, want {}", lane::name(source.dtype), lane::name(out.dtype));
    if index.elements() == 0 {
        return Ok(());
    }
    let [index, source, out] = [index, source, out].map(at_least_1d);
    let dim = args.dim(1, out.ndim())?;
    let fits = source.ndim() == index.ndim() && (0..index.ndim()).all(|d| index.dim(d) <= source.dim(d));
    ensure!(fits, "{name}: shape {:?} does not hold an element for each index of {:?}", source.dims(), index.dims());
    let source = (0..index.ndim()).fold(source, |view, d| view.narrow(d, 0, index.dim(d)));
    let lines = Lines::new(&out, dim, index.dims()).map_err(|f| f.about("index"))?;
    let indices = checked(machine, &index, out.dim(dim), Negative::FromEnd).map_err(|f| f.about("index"))?;
    let outcome = write(machine, &lines, &source, &indices, combine, include);
    give_back(machine, indices);
    outcome
}

/// `self dim index value reduce → out`; output 0 means in place.
fn scatter_value(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let (index, value, combine) = (args.tensor(2)?, args.scalar(3)?, Combine::of(args, 4)?);
    let out = target(args, machine, output)?;
    if index.elements() == 0 {
        return Ok(());
    }
    let [index, out] = [index, out].map(at_least_1d);
    let dim = args.dim(1, out.ndim())?;
    let lines = Lines::new(&out, dim, index.dims()).map_err(|f| f.about("index"))?;
    let indices = checked(machine, &index, out.dim(dim), Negative::FromEnd).map_err(|f| f.about("index"))?;
    let outcome = with_lane!(class(out.dtype), L => with_elem!(out.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        let value: L = L::of::<E>(scalar_as::<L>(value, out.dtype).to());
        // The value is one for all: the index stands in for a source and is not read.
        lines.each(&index, &indices, |to, _| memory[to] = combine.apply(L::of(memory[to]), value).to())
    }, else => Ok(())));
    give_back(machine, indices);
    outcome
}

/// A host value in the lane of a tensor of type `dtype`.
pub fn scalar_as<L: Number>(value: Scalar, dtype: DataType) -> L {
    // An integer reaches an integer tensor without passing through floating point.
    if class(dtype) == Class::Int && class(value.dtype) == Class::Int {
        return L::of(value.as_i64());
    }
    L::narrow(value.as_f64())
}

/// The output that a scatter works on, holding self's elements.
fn target(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome<View> {
    let out = args.output(output)?;
    if output > 0 {
        let x = args.tensor(0)?;
        ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
        ensure!(out.dtype == x.dtype, "out: type {}, want {}", lane::name(out.dtype), lane::name(x.dtype));
        if out != x {
            copy(machine, &out, &x)?;
        }
    }
    Ok(out)
}

fn write(
    machine: &mut Machine,
    lines: &Lines,
    source: &View,
    indices: &[i64],
    combine: Combine,
    include: bool,
) -> Outcome {
    // How often an element is met: for means, and to tell the first meeting where what was there does not count.
    let counts = combine == Combine::Mean || !include;
    let mut met = std::collections::HashMap::<usize, u64>::new();
    with_lane!(class(source.dtype), L => with_elem!(source.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        lines.each(source, indices, |to, from| {
            let (old, new) = (L::of(memory[to]), L::of(memory[from]));
            let times = if counts { met.entry(to).or_insert(0) } else { &mut 1 };
            let fresh = *times == 0 && !include;
            *times += 1;
            memory[to] = if fresh { new } else { combine.apply(old, new) }.to();
        })?;
        if combine == Combine::Mean {
            for (&to, &times) in &met {
                memory[to] = L::of(memory[to]).over(times + u64::from(include)).to();
            }
        }
        Ok(())
    }, else => Ok(())))
}

/// `selfRef index source accumulate`: elements by their number in row-major order.
fn inplace_put(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, index, source) = (args.output(0)?, args.tensor(1)?, args.tensor(2)?);
    let combine = if args.int(3)? != 0 { Combine::Add } else { Combine::Assign };
    let count = index.elements();
    ensure!(source.elements() == count, "source: {} elements for {count} indices", source.elements());
    ensure!(source.dtype == out.dtype, "source: type {}, want {}", lane::name(source.dtype), lane::name(out.dtype));
    ensure!(count <= INTERMEDIATE_MAX, "index: {count} elements, at most {INTERMEDIATE_MAX} are supported");
    let indices = checked(machine, &index, out.elements(), Negative::FromEnd).map_err(|f| f.about("index"))?;
    let places = Places::new(&out);
    let mut next = indices.iter();
    let outcome = with_lane!(class(out.dtype), L => with_elem!(out.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        Nest::new(source.dims(), [&source]).map(|nest| nest.rows(|[row]| {
            for (i, &index) in next.by_ref().take(row.len).enumerate() {
                let to = places.of(index as usize);
                memory[to] = combine.apply(L::of(memory[to]), L::of(memory[row.at(i)])).to();
            }
        }))
    }, else => Ok(())));
    give_back(machine, indices);
    outcome
}
