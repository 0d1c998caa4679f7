//! Other spellings of rotary position embedding: ApplyRotaryPosEmb, InterleaveRope, RopeWithSinCosCache.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::real::{float, leading, load, read, shaped, store};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family =
    &[(ops::aclnnInterleaveRope, interleave_rope), (ops::aclnnRopeWithSinCosCache, rope_with_sin_cos_cache)];

/// `x cos sin → out`, `[B, N, S, D]`: elements 2i of a head come first, elements 2i + 1 behind them; then the halves are
/// rotated as pairs. Tables broadcast.
pub fn interleave_rope(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, cos, sin, out) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.output(3)?);
    for (position, view) in [(0, &x), (1, &cos), (2, &sin), (3, &out)] {
        float(view, args.name(position))?;
    }
    shaped(&out, x.dims(), args.name(3))?;
    ensure!(x.ndim() >= 1, "x: at least one dimension is required");
    let width = x.dim(x.ndim() - 1);
    ensure!(width.is_multiple_of(2) && width <= INTERMEDIATE_MAX, "x: width {width} is odd or too large");
    let cos = cos.broadcast(x.dims()).map_err(|f| f.about("cos"))?;
    let sin = sin.broadcast(x.dims()).map_err(|f| f.about("sin"))?;
    let (lead, half) = (x.ndim() - 1, width / 2);
    let rows: usize = x.dims()[..lead].iter().product();
    let [mut xs, mut coss, mut sins, mut ys] = std::array::from_fn(|_| vec![0.0f32; width]);
    for row in 0..rows {
        for (view, values) in [(&x, &mut xs), (&cos, &mut coss), (&sin, &mut sins)] {
            load(&machine.hbm, &leading(view, lead, row), values)?;
        }
        for i in 0..half {
            let (a, b) = (xs[2 * i], xs[2 * i + 1]);
            ys[i] = a * coss[i] - b * sins[i];
            ys[half + i] = b * coss[half + i] + a * sins[half + i];
        }
        store(&mut machine.hbm, &leading(&out, lead, row), &ys)?;
    }
    Ok(())
}

/// `positions queryIn keyIn cosSinCache mropeSection headSize isNeoxStyle → queryOut keyOut`.
///
/// `cosSinCache [positions, R]` holds R/2 cosines, then R/2 sines. The first R elements of every head of `[T, heads·size]`
/// are rotated: halves as pairs in neox style, neighbours otherwise. Sections of several positions a token are refused.
pub fn rope_with_sin_cos_cache(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (positions, cache) = (args.tensor(0)?, args.tensor(3)?);
    ensure!(
        args.ints(4).is_none_or(|sections| sections.iter().all(|&size| size == 0)),
        "mropeSection: several positions a token are not supported"
    );
    let integers = class(positions.dtype) == Class::Int && positions.ndim() == 1;
    ensure!(integers, "positions: {:?} {}, want 1-d int64", positions.dims(), lane::name(positions.dtype));
    float(&cache, args.name(3))?;
    ensure!(cache.ndim() == 2, "cosSinCache: shape {:?}, want [positions, size]", cache.dims());
    let head = usize::try_from(args.int(5)?).ok().filter(|&size| size > 0);
    let head = head.ok_or_else(|| Fault::new("headSize: not positive"))?;
    let rotated = cache.dim(1);
    ensure!(rotated.is_multiple_of(2) && rotated <= head, "cosSinCache: {rotated} elements of a head of {head}");
    let neox = args.int(6)? != 0;
    let places: Vec<i64> = read(machine, &positions)?;
    let outside = places.iter().find(|place| !(0..cache.dim(0) as i64).contains(*place));
    ensure!(outside.is_none(), "positions: {outside:?} is not in 0..{}", cache.dim(0));
    let mut pairs = Vec::new();
    for (from, to) in [(1, 7), (2, 8)] {
        let (x, out) = (args.tensor(from)?, args.output(to)?);
        pairs.push((check(args, from, x, places.len(), head)?, check(args, to, out, places.len(), head)?));
        shaped(&out, x.dims(), args.name(to))?;
    }
    let (mut table, mut row) = (vec![0.0f32; rotated], vec![0.0f32; head]);
    let half = rotated / 2;
    for (token, &place) in places.iter().enumerate() {
        cache.select(0, place as usize).row().load(&machine.hbm, 0, &mut table);
        for (x, out) in &pairs {
            for index in 0..x.dim(1) {
                x.select(0, token).select(0, index).row().load(&machine.hbm, 0, &mut row);
                for i in 0..half {
                    let (cos, sin) = (table[i], table[half + i]);
                    let (low, high) = if neox { (i, i + half) } else { (2 * i, 2 * i + 1) };
                    let (a, b) = (row[low], row[high]);
                    (row[low], row[high]) = (a * cos - b * sin, b * cos + a * sin);
                }
                out.select(0, token).select(0, index).row().store(&mut machine.hbm, 0, &row);
            }
        }
    }
    Ok(())
}

/// A tensor of `tokens` rows as `[tokens, heads, size]`.
fn check(args: &Args<'_>, position: usize, view: View, tokens: usize, head: usize) -> Outcome<View> {
    let name = args.name(position);
    float(&view, name)?;
    let fits = view.ndim() == 2 && view.dim(0) == tokens && view.dim(1).is_multiple_of(head);
    ensure!(fits, "{name}: shape {:?}, want [{tokens}, heads·{head}]", view.dims());
    ensure!(head <= INTERMEDIATE_MAX, "headSize: {head} is too large");
    Ok(view.split(1, view.dim(1) / head, head))
}
