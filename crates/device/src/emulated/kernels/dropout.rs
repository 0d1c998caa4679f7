//! Dropout: masks of kept elements, one bit each, and their use.
//!
//! Bit `i` (lowest first) of the mask belongs to row-major element `i`; masks are padded to multiples of 128 bits. A kept
//! element is scaled by `1 / (1 − p)`, a dropped one is 0.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{CHUNK, Nest, load_all, store_all};
use super::random::Source;
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnDropoutDoMask, do_mask),
    (ops::aclnnDropoutGenMask, |args, machine| gen_mask(args, machine, Source::fixed(args, 2)?, 4)),
    (ops::aclnnDropoutGenMaskV2, |args, machine| gen_mask(args, machine, Source::fixed(args, 2)?, 5)),
    (ops::aclnnDropoutGenMaskV2Tensor, |args, machine| gen_mask(args, machine, Source::stored(args, machine, 2)?, 6)),
    (ops::aclnnDropoutV3, dropout),
    (ops::aclnnDropoutV3Grad, gradient),
];

fn probability(args: &Args<'_>, position: usize) -> Outcome<f64> {
    let (p, name) = (args.float(position)?, args.name(position));
    ensure!((0.0..=1.0).contains(&p), "{name}: {p} is not a probability");
    Ok(p)
}

/// A mask for `elements` elements, all of it.
fn mask_of(args: &Args<'_>, position: usize, elements: usize) -> Outcome<View> {
    let (mask, name) = (args.tensor(position)?, args.name(position));
    // One byte an element, which bools would be, is no mask of bits.
    ensure!(mask.dtype == DataType::U8, "{name}: type {}, want uint8 with a bit an element", lane::name(mask.dtype));
    let (bytes, want) = (mask.elements(), elements.div_ceil(8));
    ensure!((want..=INTERMEDIATE_MAX).contains(&bytes), "{name}: {bytes} bytes for {elements} elements");
    Ok(mask)
}

/// Draws a mask that keeps with probability `1 − p`; bits beyond the elements are 0.
fn draw(machine: &mut Machine, mask: &View, elements: usize, p: f64, source: Source) -> Outcome {
    store_all(machine, mask, |from, piece: &mut [i64]| {
        for (i, byte) in piece.iter_mut().enumerate() {
            let kept = |bit: &usize| {
                let element = (from + i) * 8 + bit;
                element < elements && source.unit(element) >= p
            };
            *byte = (0..8).filter(kept).fold(0, |byte, bit| byte | 1 << bit);
        }
    })
}

/// `shape prob … → out`.
fn gen_mask(args: &Args<'_>, machine: &mut Machine, source: Source, output: usize) -> Outcome {
    let shape = args.ints(0).unwrap_or_default();
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?));
    ensure!(elements.is_some_and(|n| n <= 8 * INTERMEDIATE_MAX as u64), "shape: {shape:?} is too large");
    let elements = elements.unwrap_or(0) as usize;
    let p = probability(args, 1)?;
    args.output(output)?;
    let mask = mask_of(args, output, elements)?;
    draw(machine, &mask, elements, p, source)
}

/// `out = kept ? self·scale : 0`.
fn apply(machine: &mut Machine, out: &View, x: &View, mask: &View, scale: f64) -> Outcome {
    let mut bits = vec![0i64; mask.elements()];
    load_all(machine, mask, &mut bits)?;
    let mut piece = [0.0f64; CHUNK];
    let mut next = 0usize;
    Nest::new(out.dims(), [out, x])?.rows(|[out, x]| {
        for from in (0..out.len).step_by(CHUNK) {
            let piece = &mut piece[..CHUNK.min(out.len - from)];
            x.load(&machine.hbm, from, piece);
            for value in piece.iter_mut() {
                *value = if bits[next / 8] >> (next % 8) & 1 == 1 { *value * scale } else { 0.0 };
                next += 1;
            }
            out.store(&mut machine.hbm, from, piece);
        }
    });
    Ok(())
}

/// Refuses what dropout cannot be from or to.
fn check(args: &Args<'_>, position: usize, out: &View, x: &View) -> Outcome {
    let name = args.name(position);
    ensure!(out.dims() == x.dims(), "{name}: shape {:?}, want {:?}", out.dims(), x.dims());
    ensure!(class(x.dtype) != Class::Int && out.dtype == x.dtype, "{name}: type {}", lane::name(out.dtype));
    Ok(())
}

fn scale_of(p: f64) -> f64 {
    if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 }
}

/// `self mask prob → out`.
fn do_mask(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, p, out) = (args.tensor(0)?, probability(args, 2)?, args.output(3)?);
    check(args, 3, &out, &x)?;
    let mask = mask_of(args, 1, x.elements())?;
    apply(machine, &out, &x, &mask, scale_of(p))
}

/// `input optionalNoiseShape p seed offset → out maskOut`.
fn dropout(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, p, out) = (args.tensor(0)?, probability(args, 2)?, args.output(5)?);
    ensure!(args.is_absent(1), "optionalNoiseShape: a shape of the noise is not supported");
    check(args, 5, &out, &x)?;
    let source = Source::fixed(args, 3)?;
    args.output(6)?;
    let mask = mask_of(args, 6, x.elements())?;
    draw(machine, &mask, x.elements(), p, source)?;
    apply(machine, &out, &x, &mask, scale_of(p))
}

/// `gradY mask scale → gradX`; the scale comes as it is, `1 / (1 − p)`.
fn gradient(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (grad, scale, out) = (args.tensor(0)?, args.float(2)?, args.output(3)?);
    check(args, 3, &out, &grad)?;
    let mask = mask_of(args, 1, grad.elements())?;
    apply(machine, &out, &grad, &mask, scale)
}
