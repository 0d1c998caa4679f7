//! RReLU: elements up to zero are scaled by a number drawn between two bounds, in training, or by the bounds' middle.
//!
//! In training `noise` is written too: what each element was scaled by.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::random::Source;
use super::real::{float, read, shaped, write};
use super::{Family, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[
    (ops::aclnnInplaceRReluWithNoise, |args, machine| rrelu(args, machine, 0)),
    (ops::aclnnRReluWithNoise, |args, machine| rrelu(args, machine, 7)),
];

/// `self noise lower upper training seed offset [→ out]`.
fn rrelu(args: &Args<'_>, machine: &mut Machine, output: usize) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(output)?);
    let (lower, upper) = (args.scalar(2)?.as_f64(), args.scalar(3)?.as_f64());
    float(&y, args.name(output))?;
    shaped(&y, x.dims(), args.name(output))?;
    ensure!(lower <= upper && (upper - lower).is_finite(), "lower: {lower} to {upper} is no range");
    let mut values: Vec<f64> = read(machine, &x)?;
    if args.int(4)? == 0 {
        let slope = (lower + upper) / 2.0;
        values.iter_mut().filter(|x| **x <= 0.0).for_each(|x| *x *= slope);
        return write(machine, &y, &values);
    }
    let (noise, source) = (args.output(1)?, Source::fixed(args, 5)?);
    float(&noise, args.name(1))?;
    shaped(&noise, x.dims(), args.name(1))?;
    let slope = |(i, x): (usize, &f64)| if *x <= 0.0 { lower + (upper - lower) * source.unit(i) } else { 1.0 };
    let slopes: Vec<f64> = values.iter().enumerate().map(slope).collect();
    values.iter_mut().zip(&slopes).for_each(|(x, slope)| *x *= slope);
    write(machine, &noise, &slopes)?;
    write(machine, &y, &values)
}
