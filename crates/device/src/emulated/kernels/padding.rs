//! Padding of the last one to three dimensions with what lies inside: mirrored at the edge (reflection) or the edge itself
//! (replication); and the gradients. A negative padding cuts off.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::class;
use super::number::{Number, with_lane};
use super::real::{float, read, shaped, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnReflectionPad1d, |args, machine| pad(args, machine, 1, reflected)),
    (ops::aclnnReflectionPad1dBackward, |args, machine| pad_backward(args, machine, 1, reflected)),
    (ops::aclnnReflectionPad2d, |args, machine| pad(args, machine, 2, reflected)),
    (ops::aclnnReflectionPad2dBackward, |args, machine| pad_backward(args, machine, 2, reflected)),
    (ops::aclnnReflectionPad3d, |args, machine| pad(args, machine, 3, reflected)),
    (ops::aclnnReflectionPad3dBackward, |args, machine| pad_backward(args, machine, 3, reflected)),
    (ops::aclnnReplicationPad1d, |args, machine| pad(args, machine, 1, replicated)),
    (ops::aclnnReplicationPad1dBackward, |args, machine| pad_backward(args, machine, 1, replicated)),
    (ops::aclnnReplicationPad2d, |args, machine| pad(args, machine, 2, replicated)),
    (ops::aclnnReplicationPad2dBackward, |args, machine| pad_backward(args, machine, 2, replicated)),
    (ops::aclnnReplicationPad3d, |args, machine| pad(args, machine, 3, replicated)),
    (ops::aclnnReplicationPad3dBackward, |args, machine| pad_backward(args, machine, 3, replicated)),
];

/// The position among `size` that a position, negative before the first, shows; `None` where there is none.
type Rule = fn(position: i64, size: i64) -> Option<i64>;

fn reflected(position: i64, size: i64) -> Option<i64> {
    let last = size - 1;
    let inside = if position <= last { position.abs() } else { 2 * last - position };
    (0..size).contains(&inside).then_some(inside)
}

fn replicated(position: i64, size: i64) -> Option<i64> {
    (size > 0).then(|| position.clamp(0, size - 1))
}

/// Where every element of a padded plane comes from, row-major, and the sizes of an input and an output plane.
struct Planes {
    sources: Vec<usize>,
    inputs: usize,
}

impl Planes {
    /// For `big`, made of `small` by the padding at `position`: pairs of before and behind, last dimension first.
    fn new(args: &Args<'_>, position: usize, spatial: usize, small: &View, big: &View, rule: Rule) -> Outcome<Self> {
        let known = [spatial + 1, spatial + 2].contains(&small.ndim()) && big.ndim() == small.ndim();
        ensure!(known, "self: {:?} is not supported in {spatial} dimensions", small.dims());
        let (padding, name) = (args.ints(position).unwrap_or_default(), args.name(position));
        let lead = small.ndim() - spatial;
        let given = padding.len() == 2 * spatial && padding.iter().all(|p| p.unsigned_abs() <= 1 << 30);
        ensure!(given, "{name}: {padding:?}, want {} numbers", 2 * spatial);
        ensure!(big.dims()[..lead] == small.dims()[..lead], "out: {:?} of {:?}", big.dims(), small.dims());
        ensure!(big.elements() <= INTERMEDIATE_MAX, "out: {} elements, at most {INTERMEDIATE_MAX}", big.elements());
        let mut sources = vec![0];
        for dim in lead..small.ndim() {
            let pair = &padding[2 * (small.ndim() - 1 - dim)..][..2];
            let (size, want) = (small.dim(dim) as i64, small.dim(dim) as i64 + pair[0] + pair[1]);
            ensure!(want == big.dim(dim) as i64, "out: size {} of dimension {dim}, want {want}", big.dim(dim));
            let line: Option<Vec<usize>> =
                (0..want).map(|i| rule(i - pair[0], size).map(|source| source as usize)).collect();
            let line = line.ok_or_else(|| {
                Fault::new(format!("{name}: {pair:?} is too much for the {size} elements of dimension {dim}"))
            })?;
            let size = small.dim(dim);
            sources = sources.iter().flat_map(|&at| line.iter().map(move |&source| at * size + source)).collect();
        }
        Ok(Self { sources, inputs: small.dims()[lead..].iter().product() })
    }
}

/// `self padding → out`.
fn pad(args: &Args<'_>, machine: &mut Machine, spatial: usize, rule: Rule) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(2)?);
    let planes = Planes::new(args, 1, spatial, &x, &y, rule)?;
    if y.elements() == 0 {
        return Ok(());
    }
    with_lane!(class(x.dtype), L => {
        let values: Vec<L> = read(machine, &x)?;
        let planes_of = values.chunks_exact(planes.inputs);
        let out: Vec<L> = planes_of.flat_map(|plane| planes.sources.iter().map(|&at| plane[at])).collect();
        write(machine, &y, &out)
    })
}

/// `gradOutput self padding → gradInput`.
fn pad_backward(args: &Args<'_>, machine: &mut Machine, spatial: usize, rule: Rule) -> Outcome {
    let (dy, x, dx) = (args.tensor(0)?, args.tensor(1)?, args.output(3)?);
    float(&dx, args.name(3))?;
    shaped(&dx, x.dims(), args.name(3))?;
    let planes = Planes::new(args, 2, spatial, &dx, &dy, rule)?;
    with_lane!(class(dx.dtype), L => {
        let slopes: Vec<L> = read(machine, &dy)?;
        let mut out = vec![L::default(); dx.elements()];
        if !slopes.is_empty() {
            let pairs = slopes.chunks_exact(planes.sources.len()).zip(out.chunks_exact_mut(planes.inputs));
            for (slopes, out) in pairs {
                for (slope, &at) in slopes.iter().zip(&planes.sources) {
                    out[at] = out[at].plus(*slope);
                }
            }
        }
        write(machine, &dx, &out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_outside_show_what_lies_inside() {
        let all = |rule: Rule| (-3..7).map(|p| rule(p, 4).unwrap_or(-1)).collect::<Vec<_>>();
        assert_eq!(all(reflected), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
        assert_eq!(all(replicated), [0, 0, 0, 0, 1, 2, 3, 3, 3, 3]);
        assert_eq!([reflected(-4, 4), reflected(7, 4), reflected(0, 0), replicated(0, 0)], [None; 4]);
    }
}
