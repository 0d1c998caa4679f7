//! Random numbers: normal, uniform, whole, true or false, exponential; and dropout's masks.
//!
//! Every number is a function of the call's seed and offset and of its row-major index alone, never of layout or of what ran
//! before: element `i` takes 64 bits, half `i mod 2` of Philox4x32-10's block with the counter `(i / 2, offset)` under
//! the key `seed` (Salmon et al., SC'11). torch_npu advances the offset a little with every call, so the offset fills
//! counter words of its own: calls share no block. The *Tensor* forms read seed and offset from device memory, which is
//! what lets a captured graph draw anew at each replay.

use acl_abi::{DataType, ops};

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::lane::{self, Class, class};
use super::nest::{CHUNK, Nest, store_all};
use super::view::View;
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnInplaceBernoulli, |args, machine| bernoulli(args, machine, false)),
    (ops::aclnnInplaceBernoulliTensor, |args, machine| bernoulli(args, machine, true)),
    (ops::aclnnInplaceNormal, |args, machine| normal(args, machine, Source::fixed(args, 3)?)),
    (ops::aclnnInplaceNormalTensor, |args, machine| normal(args, machine, Source::stored(args, machine, 3)?)),
    (ops::aclnnInplaceRandom, |args, machine| random(args, machine, true, Source::fixed(args, 3)?)),
    (ops::aclnnInplaceRandomTensor, |args, machine| random(args, machine, true, Source::stored(args, machine, 3)?)),
    (ops::aclnnInplaceRandomWithoutFromTo, |args, machine| random(args, machine, false, Source::fixed(args, 1)?)),
    (ops::aclnnInplaceRandomWithoutFromToTensor, |args, machine| {
        random(args, machine, false, Source::stored(args, machine, 1)?)
    }),
    (ops::aclnnInplaceUniform, |args, machine| uniform(args, machine, Source::fixed(args, 3)?)),
    (ops::aclnnInplaceUniformTensor, |args, machine| uniform(args, machine, Source::stored(args, machine, 3)?)),
    (ops::aclnnNormalFloatFloat, |args, machine| normal_of(args, machine)),
    (ops::aclnnNormalFloatTensor, |args, machine| normal_of(args, machine)),
    (ops::aclnnNormalTensorFloat, |args, machine| normal_of(args, machine)),
    (ops::aclnnNormalTensorTensor, |args, machine| normal_of(args, machine)),
    (ops::aclnnSimThreadExponential, exponential),
];

/// A stream of random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    seed: u64,
    offset: u64,
}

impl Source {
    /// Seed and offset from the arguments at `position` and after it.
    pub fn fixed(args: &Args<'_>, position: usize) -> Outcome<Self> {
        Ok(Self { seed: args.bits(position)?, offset: args.bits(position + 1)? })
    }

    /// Seed and offset from one-element tensors at `position` and after it, and a number after those that is added to the
    /// offset.
    pub fn stored(args: &Args<'_>, machine: &Machine, position: usize) -> Outcome<Self> {
        let one = |position: usize| {
            let view = args.tensor(position)?;
            let fits = view.elements() == 1 && class(view.dtype) == Class::Int;
            ensure!(fits, "{}: shape {:?}, want one integer", args.name(position), view.dims());
            let mut value = [0i64];
            super::nest::load_all(machine, &view, &mut value)?;
            Ok(value[0] as u64)
        };
        Ok(Self { seed: one(position)?, offset: one(position + 1)?.wrapping_add(args.bits(position + 2)?) })
    }

    /// 64 random bits for element `index`.
    pub fn bits(self, index: usize) -> u64 {
        let words = philox([index as u64 / 2, self.offset], self.seed);
        let [low, high] = if index.is_multiple_of(2) { [words[0], words[1]] } else { [words[2], words[3]] };
        u64::from(high) << 32 | u64::from(low)
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn unit(self, index: usize) -> f64 {
        (self.bits(index) >> 11) as f64 * 2f64.powi(-53)
    }

    /// Exponentially distributed with rate 1, positive and finite.
    pub fn exponential(self, index: usize) -> f64 {
        -(((self.bits(index) >> 11) as f64 + 0.5) * 2f64.powi(-53)).ln()
    }

    /// Normally distributed with mean 0 and variance 1: the radius from the upper half of the bits, the angle from the
    /// lower (Box–Muller's first coordinate).
    fn normal(self, index: usize) -> f64 {
        let bits = self.bits(index);
        let unit = |word: u64| (word as f64 + 0.5) * 2f64.powi(-32);
        (-2.0 * unit(bits >> 32).ln()).sqrt() * (std::f64::consts::TAU * unit(bits & 0xffff_ffff)).cos()
    }
}

/// Philox4x32 with ten rounds; the counter's first half fills the low two words.
fn philox(counter: [u64; 2], key: u64) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let [a, b] = counter;
    let mut x = [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
    let mut k = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let low = u64::from(MULTIPLIERS[0]) * u64::from(x[0]);
        let high = u64::from(MULTIPLIERS[1]) * u64::from(x[2]);
        x = [(high >> 32) as u32 ^ x[1] ^ k[0], high as u32, (low >> 32) as u32 ^ x[3] ^ k[1], low as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    x
}

/// Bits of precision that a type's fractions have.
fn digits(dtype: DataType) -> u32 {
    match dtype {
        DataType::F64 => 53,
        DataType::F16 => 11,
        DataType::BF16 => 8,
        _ => 24,
    }
}

fn floating(args: &Args<'_>, position: usize, view: &View) -> Outcome {
    let (name, dtype) = (args.name(position), lane::name(view.dtype));
    ensure!(class(view.dtype) != Class::Int, "{name}: type {dtype} holds no fractions");
    Ok(())
}

/// Fills `out` with `value(index)`.
fn fill(machine: &mut Machine, out: &View, value: impl Fn(usize) -> f64) -> Outcome {
    store_all(machine, out, |from, piece: &mut [f64]| {
        piece.iter_mut().enumerate().for_each(|(i, slot)| *slot = value(from + i));
    })
}

/// `selfRef mean std … ~ N(mean, std²)`.
fn normal(args: &Args<'_>, machine: &mut Machine, source: Source) -> Outcome {
    let (out, mean, std) = (args.output(0)?, args.float(1)?, args.float(2)?);
    floating(args, 0, &out)?;
    ensure!((0.0..).contains(&std), "std: {std} is not 0 or more");
    fill(machine, &out, |i| mean + std * source.normal(i))
}

/// `mean std seed offset → out ~ N(mean, std²)`; mean and std are numbers or tensors, broadcast to out.
fn normal_of(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let out = args.output(4)?;
    floating(args, 4, &out)?;
    let source = Source::fixed(args, 2)?;
    fill(machine, &out, |i| source.normal(i))?;
    let mut parameters = [(0.0, None); 2];
    for (position, parameter) in parameters.iter_mut().enumerate() {
        *parameter = match args.float(position) {
            Ok(value) => (value, None),
            Err(_) => {
                (0.0, Some(args.tensor(position)?.broadcast(out.dims()).map_err(|f| f.about(args.name(position)))?))
            }
        };
    }
    let [(mean, means), (std, stds)] = parameters;
    ensure!((0.0..).contains(&std), "std: {std} is not 0 or more");
    // Deviations are drawn first and scaled in place; what is absent stands for itself and is not read.
    let nest = Nest::new(out.dims(), [&out, &means.unwrap_or(out), &stds.unwrap_or(out)])?;
    let mut pieces = [[0.0f64; CHUNK]; 3];
    let mut negative = false;
    nest.rows(|[out, mean_row, std_row]| {
        for from in (0..out.len).step_by(CHUNK) {
            let n = CHUNK.min(out.len - from);
            let [value, m, s] = &mut pieces;
            out.load(&machine.hbm, from, &mut value[..n]);
            m.fill(mean);
            s.fill(std);
            if means.is_some() {
                mean_row.load(&machine.hbm, from, &mut m[..n]);
            }
            if stds.is_some() {
                std_row.load(&machine.hbm, from, &mut s[..n]);
            }
            for i in 0..n {
                negative |= s[i] < 0.0;
                value[i] = m[i] + s[i] * value[i];
            }
            out.store(&mut machine.hbm, from, &value[..n]);
        }
    });
    ensure!(!negative, "std: an element is negative");
    Ok(())
}

/// `selfRef from to …`: uniform in [from, to), with as many random digits as the type holds.
fn uniform(args: &Args<'_>, machine: &mut Machine, source: Source) -> Outcome {
    let (out, from, to) = (args.output(0)?, args.float(1)?, args.float(2)?);
    floating(args, 0, &out)?;
    ensure!(from <= to && (to - from).is_finite(), "from: {from} to {to} is no range");
    let digits = digits(out.dtype);
    let scale = 2f64.powi(-(digits as i32));
    fill(machine, &out, |i| from + (source.bits(i) >> (64 - digits)) as f64 * scale * (to - from))
}

/// `selfRef [from to] …`: whole numbers in [from, to), or from 0 to the largest that the type counts to.
fn random(args: &Args<'_>, machine: &mut Machine, bounded: bool, source: Source) -> Outcome {
    let out = args.output(0)?;
    let (from, span) = if bounded {
        let (from, to) = (args.int(1)?, args.int(2)?);
        ensure!(from < to, "from: {from} to {to} is no range");
        (from, to.wrapping_sub(from) as u64)
    } else {
        let span = match out.dtype {
            DataType::Bool => 2,
            DataType::U8 => 1 << 8,
            DataType::I8 => 1 << 7,
            DataType::I16 => 1 << 15,
            DataType::I32 => 1 << 31,
            DataType::I64 => 1 << 63,
            float => (1 << digits(float)) + 1,
        };
        (0, span)
    };
    // The high word of bits·span is uniform below span to within span/2⁶⁴.
    let whole = |i: usize| from.wrapping_add(((u128::from(source.bits(i)) * u128::from(span)) >> 64) as i64);
    store_all(machine, &out, |from, piece: &mut [i64]| {
        piece.iter_mut().enumerate().for_each(|(i, slot)| *slot = whole(from + i));
    })
}

/// `selfRef prob seed offset`: 1 with probability `prob`, else 0.
fn bernoulli(args: &Args<'_>, machine: &mut Machine, from_tensor: bool) -> Outcome {
    let (out, source) = (args.output(0)?, Source::fixed(args, 2)?);
    if !from_tensor {
        let p = args.scalar(1)?.as_f64();
        ensure!((0.0..=1.0).contains(&p), "prob: {p} is not a probability");
        return fill(machine, &out, |i| f64::from(source.unit(i) < p));
    }
    let p = args.tensor(1)?.broadcast(out.dims()).map_err(|f| f.about("prob"))?;
    floating(args, 1, &p)?;
    let nest = Nest::new(out.dims(), [&out, &p])?;
    let mut bad = None;
    let mut piece = [0.0f64; CHUNK];
    nest.rows(|[_, p]| {
        for from in (0..p.len).step_by(CHUNK) {
            let piece = &mut piece[..CHUNK.min(p.len - from)];
            p.load(&machine.hbm, from, piece);
            bad = bad.or(piece.iter().copied().find(|p| !(0.0..=1.0).contains(p)));
        }
    });
    if let Some(p) = bad {
        ensure!(false, "prob: {p} is not a probability");
    }
    let mut index = 0;
    nest.rows(|[out, p]| {
        for from in (0..p.len).step_by(CHUNK) {
            let piece = &mut piece[..CHUNK.min(p.len - from)];
            p.load(&machine.hbm, from, piece);
            for value in piece.iter_mut() {
                *value = f64::from(source.unit(index) < *value);
                index += 1;
            }
            out.store(&mut machine.hbm, from, piece);
        }
    });
    Ok(())
}

/// `selfRef count lambda seed offset`: exponentially distributed with rate `lambda`, the first `count` elements.
fn exponential(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (out, count, lambda, source) = (args.output(0)?, args.int(1)?, args.float(2)?, Source::fixed(args, 3)?);
    floating(args, 0, &out)?;
    ensure!(lambda.is_finite() && lambda.is_sign_positive() && lambda != 0.0, "lambda: {lambda} is not positive");
    ensure!(count == out.elements() as i64, "count: {count} of {} elements", out.elements());
    fill(machine, &out, |i| source.exponential(i) / lambda)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the generator.
    #[test]
    fn philox_gives_the_published_words() {
        assert_eq!(philox([0, 0], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u64::MAX; 2], u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let (counter, key) = ([0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e], 0x299f_31d0_a409_3822);
        assert_eq!(philox(counter, key), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
