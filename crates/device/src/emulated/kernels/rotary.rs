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
use super::{Machine, sized};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnApplyRotaryPosEmbV2, apply_rotary_pos_emb_v2),
    (ops::aclnnRotaryPositionEmbedding, rotary_position_embedding),
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
    let (query, key) = (args.output(0)?, args.output(1)?);
    let (cos, sin) = (args.tensor(2)?, args.tensor(3)?);
    let layout = args.int(4)?;
    let pairs = match args.text(5)? {
        "half" | "" => Pairs::Half,
        "interleave" => Pairs::Interleave,
        mode => return Err(Fault::new(format!("rotaryMode: {mode:?} is not supported (half, interleave)"))),
    };
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
