//! Operators that make values: zeros, ones, a scalar, a range, normal random numbers.

use acl_abi::{Scalar, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::store_all;
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnArange, arange),
    (ops::aclnnInplaceFillScalar, inplace_fill_scalar),
    (ops::aclnnInplaceNormal, inplace_normal),
    (ops::aclnnInplaceOne, inplace_one),
    (ops::aclnnInplaceZero, inplace_zero),
];

/// `selfRef = 0`.
pub fn inplace_zero(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    zero(machine, &args.output(0)?)
}

/// Sets every element to 0. A large contiguous tensor costs no writes: its pages go back to the system and read as zeros.
pub fn zero(machine: &mut Machine, out: &View) -> Outcome {
    if out.is_contiguous() {
        let size = (out.dtype.bits() / 8) as usize;
        machine.hbm.zero(out.start() * size, out.elements() * size);
        return Ok(());
    }
    store_all(machine, out, |_, piece: &mut [i64]| piece.fill(0))
}

/// `selfRef = 1`.
pub fn inplace_one(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out = args.output(0)?;
    store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(1))
}

/// `selfRef = value`.
pub fn inplace_fill_scalar(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, value) = (args.output(0)?, args.scalar(1)?);
    if class(out.dtype) == Class::Int && class(value.dtype) == Class::Int {
        let value = value.as_i64();
        return store_all(machine, &out, |_, piece: &mut [i64]| piece.fill(value));
    }
    let value = value.as_f64();
    store_all(machine, &out, |_, piece: &mut [f64]| piece.fill(value))
}

/// `start end step → out`: `start + i·step` for as many `i` as stay before `end`; in double precision unless out is of
/// integers.
pub fn arange(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (start, end, step) = (args.scalar(0)?, args.scalar(1)?, args.scalar(2)?);
    let out = args.output(3)?;
    ensure!(out.ndim() == 1, "out: shape {:?}, want one dimension", out.dims());
    let whole = class(out.dtype) == Class::Int;
    let fraction = [start, end, step].iter().any(|s: &Scalar| class(s.dtype) != Class::Int);
    let (first, last, stride) = (start.as_f64(), end.as_f64(), step.as_f64());
    ensure!(stride != 0.0 && stride.is_finite(), "step: {stride} leads nowhere");
    let count = ((last - first) / stride).ceil().max(0.0);
    let size = out.dim(0);
    ensure!(count == size as f64, "out: {size} elements, want {count} from {first} to {last} by {stride}");
    if whole && !fraction {
        let (start, step) = (start.as_i64(), step.as_i64());
        return store_all(machine, &out, |from, piece: &mut [i64]| {
            for (i, value) in piece.iter_mut().enumerate() {
                *value = start.wrapping_add(((from + i) as i64).wrapping_mul(step));
            }
        });
    }
    store_all(machine, &out, |from, piece: &mut [f64]| {
        for (i, value) in piece.iter_mut().enumerate() {
            *value = first + (from + i) as f64 * stride;
        }
    })
}

/// `selfRef ~ N(mean, std²)`, a function of the arguments alone.
///
/// Element `i` (row-major) is number `i mod 4` of Philox4x32-10's block `offset + i / 4` under key `seed`: the block's four
/// 32-bit words become two pairs by Box–Muller, `√(−2·ln u₁)·cos 2πu₂` and `…·sin 2πu₂` with `u = (word + 1)/2³²`.
pub fn inplace_normal(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out: View = args.output(0)?;
    let (mean, std) = (args.float(1)?, args.float(2)?);
    let (seed, offset) = (args.int(3)? as u64, args.int(4)? as u64);
    ensure!(class(out.dtype) != Class::Int, "selfRef: type {} holds no fractions", lane::name(out.dtype));
    ensure!((0.0..).contains(&std), "std: {std} is not 0 or more");
    let mut block = (u64::MAX, [0.0f64; 4]);
    store_all(machine, &out, |from, piece: &mut [f64]| {
        for (i, value) in piece.iter_mut().enumerate() {
            let index = (from + i) as u64;
            let counter = offset.wrapping_add(index / 4);
            if index.is_multiple_of(4) || block.0 != counter {
                block = (counter, normals(philox(counter, seed)));
            }
            *value = mean + std * block.1[(index % 4) as usize];
        }
    })
}

fn normals(words: [u32; 4]) -> [f64; 4] {
    let uniform = words.map(|word| (f64::from(word) + 1.0) / 4_294_967_296.0);
    let pair = |u: f64, v: f64| {
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        let radius = (-2.0 * u.ln()).sqrt();
        (radius * cos, radius * sin)
    };
    let ((a, b), (c, d)) = (pair(uniform[0], uniform[1]), pair(uniform[2], uniform[3]));
    [a, b, c, d]
}

/// Philox4x32 with ten rounds (Salmon et al., SC'11); the counter fills the low two words.
fn philox(counter: u64, key: u64) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let mut x = [counter as u32, (counter >> 32) as u32, 0, 0];
    let mut k = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let low = u64::from(MULTIPLIERS[0]) * u64::from(x[0]);
        let high = u64::from(MULTIPLIERS[1]) * u64::from(x[2]);
        x = [(high >> 32) as u32 ^ x[1] ^ k[0], high as u32, (low >> 32) as u32 ^ x[3] ^ k[1], low as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the generator.
    #[test]
    fn philox_gives_the_published_words() {
        assert_eq!(philox(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }
}
