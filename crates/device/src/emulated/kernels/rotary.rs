//! Rotary position embedding, over tables of cosines and sines that the caller already gathered by position.
//!
//! `out = x·cos + rotate(x)·sin`, where `rotate` turns pairs by a right angle: elements `i` and `i + D/2` in *half* mode,
//! `2i` and `2i + 1` in *interleave* mode. Tables have the full width D and broadcast over heads. Single precision,
//! rounded once.

use acl_abi::ops;

use super::Family;
use super::args::Args;
use super::fault::{Fault, Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::lines;
use super::view::View;
use super::{Machine, real, sized};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnApplyRotaryPosEmb, apply_rotary_pos_emb),
    (ops::aclnnApplyRotaryPosEmbV2, apply_rotary_pos_emb_v2),
    (ops::aclnnRotaryPositionEmbedding, rotary_position_embedding),
    (ops::aclnnRotaryPositionEmbeddingGrad, rotary_position_embedding_grad),
];

/// Which elements form a pair.
#[derive(Clone, Copy)]
enum Pairs {
    Half,
    Interleave,
}

/// `queryRef keyRef cos sin layout rotaryMode`, in place. Layouts: 1 BSND, 2 SBND, 3 BNSD, each with four dimensions
/// or with heads merged into the last (H = N·D); 4 TND. Tables have the tensor's dimensions, with 1 for heads.
pub fn apply_rotary_pos_emb_v2(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let pairs = match args.text(5)? {
        "half" | "" => Pairs::Half,
        "interleave" => Pairs::Interleave,
        mode => return Err(Fault::new(format!("rotaryMode: {mode:?} is not supported (half, interleave)"))),
    };
    apply(args, machine, pairs)
}

/// `queryRef keyRef cos sin layout`: the same in *half* mode.
pub fn apply_rotary_pos_emb(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    apply(args, machine, Pairs::Half)
}

fn apply(args: &Args<'_>, machine: &mut Machine, pairs: Pairs) -> Outcome {
    let (query, key) = (args.output(0)?, args.output(1)?);
    let (cos, sin) = (args.tensor(2)?, args.tensor(3)?);
    let layout = args.int(4)?;
    ensure!((1..=4).contains(&layout), "layout: {layout} is not supported (1 BSND, 2 SBND, 3 BNSD, 4 TND)");
    for (position, view) in [(0, query), (1, key)] {
        let name = args.name(position);
        let view = with_heads(&view, &cos, layout).map_err(|f| f.about(name))?;
        rotate(machine, &view, &view, &cos, &sin, pairs).map_err(|f| f.about(name))?;
    }
    Ok(())
}

/// `x` with heads as a dimension of their own.
fn with_heads(x: &View, cos: &View, layout: i64) -> Outcome<View> {
    let want = if layout == 4 { 3 } else { 4 };
    if x.ndim() == 3 && want == 4 && layout != 3 && cos.ndim() == 4 {
        let (width, d) = (x.dim(2), cos.dim(3));
        ensure!(d > 0 && width % d == 0, "last dimension {width} is not a multiple of the tables' width {d}");
        return Ok(x.split(2, width / d, d));
    }
    ensure!(x.ndim() == want, "{} dimensions, layout {layout} has {want}", x.ndim());
    Ok(*x)
}

/// `x cos sin mode → out`; mode 0 half, 1 interleave.
pub fn rotary_position_embedding(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, cos, sin) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let pairs = match args.int(3)? {
        0 => Pairs::Half,
        1 => Pairs::Interleave,
        mode => return Err(Fault::new(format!("mode: {mode} is not supported (0 half, 1 interleave)"))),
    };
    let out = args.output(4)?;
    ensure!(out.dims() == x.dims(), "out: shape {:?}, want {:?}", out.dims(), x.dims());
    rotate(machine, &out, &x, &cos, &sin, pairs).map_err(|f| f.about("x"))
}

fn rotate(machine: &mut Machine, out: &View, x: &View, cos: &View, sin: &View, pairs: Pairs) -> Outcome {
    ensure!(x.ndim() >= 1, "at least one dimension is required");
    let width = x.dim(x.ndim() - 1);
    ensure!(width.is_multiple_of(2), "width {width} is odd");
    for (name, view) in [("cos", cos), ("sin", sin), ("tensor", x), ("result", out)] {
        let float = class(view.dtype) == Class::Single;
        ensure!(float, "{name}: element type {} is not supported", lane::name(view.dtype));
    }
    ensure!(
        cos.dims() == sin.dims() && cos.ndim() >= 1 && cos.dim(cos.ndim() - 1) == width,
        "tables of shape {:?} and {:?} do not fit width {width}",
        cos.dims(),
        sin.dims()
    );
    let lead = &x.dims()[..x.ndim() - 1];
    let mut buffer = std::mem::take(&mut machine.scratch.operand);
    let values = sized(&mut buffer, 4 * width)?;
    let (xs, values) = values.split_at_mut(width);
    let (coss, values) = values.split_at_mut(width);
    let (sins, results) = values.split_at_mut(width);
    let half = width / 2;
    // The same table row serves every head.
    let mut table_at = None;
    let outcome = lines(lead, [out, x, cos, sin], |[out, x, cos, sin]| {
        let hbm = &mut machine.hbm;
        x.load(hbm, 0, xs);
        if table_at != Some((cos, sin)) {
            cos.load(hbm, 0, coss);
            sin.load(hbm, 0, sins);
            table_at = Some((cos, sin));
        }
        match pairs {
            Pairs::Half => {
                let (low, high) = xs.split_at(half);
                for i in 0..half {
                    results[i] = low[i] * coss[i] - high[i] * sins[i];
                }
                for i in 0..half {
                    results[half + i] = high[i] * coss[half + i] + low[i] * sins[half + i];
                }
            }
            Pairs::Interleave => {
                for i in (0..width).step_by(2) {
                    results[i] = xs[i] * coss[i] - xs[i + 1] * sins[i];
                    results[i + 1] = xs[i + 1] * coss[i + 1] + xs[i] * sins[i + 1];
                }
            }
        }
        out.store(hbm, 0, results);
    });
    machine.scratch.operand = buffer;
    outcome.map_err(|f| f.about("cos, sin"))
}

/// `dy cos sin x mode → dx dcos dsin`; the tables' gradients are sums over what they broadcast to, and are written where
/// `x` is given.
pub fn rotary_position_embedding_grad(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, cos, sin, x) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.optional(3)?);
    let pairs = match args.int(4)? {
        0 => Pairs::Half,
        1 => Pairs::Interleave,
        mode => return Err(Fault::new(format!("mode: {mode} is not supported (0 half, 1 interleave)"))),
    };
    let dx = args.output(5)?;
    for (position, view) in [(0, &dy), (1, &cos), (2, &sin), (5, &dx)] {
        real::float(view, args.name(position))?;
    }
    real::shaped(&dx, dy.dims(), "dxOut")?;
    ensure!(dy.ndim() >= 1 && cos.dims() == sin.dims(), "cos, sin: shapes {:?}, {:?}", cos.dims(), sin.dims());
    let width = dy.dim(dy.ndim() - 1);
    ensure!(width.is_multiple_of(2), "dy: width {width} is odd");
    let slopes: Vec<f64> = real::read(machine, &dy)?;
    let coss: Vec<f64> = real::read_as(machine, &cos, dy.dims()).map_err(|f| f.about("cos"))?;
    let sins: Vec<f64> = real::read_as(machine, &sin, dy.dims()).map_err(|f| f.about("sin"))?;
    // Element `partner(i)` appears in result `i` with this sign.
    let partner = |i: usize| -> (usize, f64) {
        let (row, i) = (i / width * width, i % width);
        match pairs {
            Pairs::Half if i < width / 2 => (row + i + width / 2, -1.0),
            Pairs::Half => (row + i - width / 2, 1.0),
            Pairs::Interleave if i % 2 == 0 => (row + i + 1, -1.0),
            Pairs::Interleave => (row + i - 1, 1.0),
        }
    };
    let mut gradients = vec![0.0; slopes.len()];
    for (i, slope) in slopes.iter().enumerate() {
        let (other, sign) = partner(i);
        gradients[i] += slope * coss[i];
        gradients[other] += slope * sign * sins[i];
    }
    if let Some(x) = &x {
        real::shaped(x, dy.dims(), "xOptional")?;
        real::float(x, "xOptional")?;
        let xs: Vec<f64> = real::read(machine, x)?;
        let of_cos = |i: usize| slopes[i] * xs[i];
        let of_sin = |i: usize| {
            let (other, sign) = partner(i);
            slopes[i] * sign * xs[other]
        };
        table_gradient(args, machine, 6, &cos, dy.dims(), &of_cos)?;
        table_gradient(args, machine, 7, &sin, dy.dims(), &of_sin)?;
    }
    real::write(machine, &dx, &gradients)
}

/// Sums `of(i)` over the elements `i` of shape `dims` that an element of a table broadcasts to.
fn table_gradient(
    args: &Args<'_>,
    machine: &mut Machine,
    position: usize,
    table: &View,
    dims: &[usize],
    of: &dyn Fn(usize) -> f64,
) -> Outcome {
    let Some(out) = args.optional_output(position)? else { return Ok(()) };
    real::shaped(&out, table.dims(), args.name(position))?;
    real::float(&out, args.name(position))?;
    let mut sums = vec![0.0; table.elements()];
    let missing = dims.len() - table.ndim();
    for i in 0..dims.iter().product() {
        let (mut rest, mut at, mut step) = (i, 0, 1);
        for dim in (0..dims.len()).rev() {
            let index = rest % dims[dim];
            rest /= dims[dim];
            if let Some(own) = dim.checked_sub(missing) {
                at += if table.dim(own) == 1 { 0 } else { index } * step;
                step *= table.dim(own);
            }
        }
        sums[at] += of(i);
    }
    real::write(machine, &out, &sums)
}
