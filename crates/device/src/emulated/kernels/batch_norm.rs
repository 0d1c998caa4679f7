//! BatchNorm and its gradient: `y = (x − mean)·rstd·weight + bias` by channel, dimension 1, in double precision.

use acl_abi::ops;

use super::args::Args;
use super::fault::{Outcome, ensure};
use super::layer_norm::{block_gradient, store_wanted};
use super::real::{float, load, read, shaped, store, write};
use super::view::View;
use super::{Family, INTERMEDIATE_MAX, Machine};

/// Operators of this file.
pub const KERNELS: Family = &[(ops::aclnnBatchNorm, batch_norm), (ops::aclnnBatchNormBackward, batch_norm_backward)];

/// `input weight bias runningMean runningVar training momentum eps → output saveMean saveInvstd`. In training the batch's
/// own statistics count, are saved, and are mixed into the running ones (with the unbiased variance); otherwise the
/// running ones count.
pub fn batch_norm(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (x, y) = (args.tensor(0)?, args.output(8)?);
    let channels = channels(args, 0, &x)?;
    shaped(&y, x.dims(), args.name(8))?;
    float(&y, args.name(8))?;
    let training = args.int(5)? != 0;
    let (momentum, epsilon) = (args.float(6)?, args.float(7)?);
    let (weights, biases) = (parameter(args, machine, 1, channels, 1.0)?, parameter(args, machine, 2, channels, 0.0)?);
    let (mut means, mut variances) =
        (parameter(args, machine, 3, channels, 0.0)?, parameter(args, machine, 4, channels, 1.0)?);
    let known = !args.is_absent(3) && !args.is_absent(4);
    ensure!(training || known, "runningMean, runningVar: required outside of training");
    let count = x.elements() / channels.max(1);
    ensure!(count <= INTERMEDIATE_MAX, "channels of {count} elements, at most {INTERMEDIATE_MAX} are supported");
    let mut values = vec![0.0; count];
    let (mut saved, mut rstds) = (vec![0.0; channels], vec![0.0; channels]);
    for channel in 0..channels {
        load(&machine.hbm, &x.select(1, channel), &mut values)?;
        let (mut mean, mut variance) = (means[channel], variances[channel]);
        if training {
            mean = values.iter().sum::<f64>() / count as f64;
            let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
            variance = squares / count as f64;
            let mix = |running: &mut f64, own: f64| *running = (1.0 - momentum) * *running + momentum * own;
            mix(&mut means[channel], mean);
            mix(&mut variances[channel], squares / (count as f64 - 1.0));
        }
        let rstd = 1.0 / (variance + epsilon).sqrt();
        for value in &mut values {
            *value = (*value - mean) * rstd * weights[channel] + biases[channel];
        }
        store(&mut machine.hbm, &y.select(1, channel), &values)?;
        (saved[channel], rstds[channel]) = (mean, rstd);
    }
    if !training {
        return Ok(());
    }
    for (position, values) in [(3, &means), (4, &variances), (9, &saved), (10, &rstds)] {
        if let Some(view) = args.optional_output(position)? {
            shaped(&view, &[channels], args.name(position))?;
            float(&view, args.name(position))?;
            write(machine, &view, values)?;
        }
    }
    Ok(())
}

/// `gradOut input weight runningMean runningVar saveMean saveInvstd training eps outputMask → gradInput gradWeight
/// gradBias`.
pub fn batch_norm_backward(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let (dy, x) = (args.tensor(0)?, args.tensor(1)?);
    let channels = channels(args, 1, &x)?;
    shaped(&dy, x.dims(), args.name(0))?;
    float(&dy, args.name(0))?;
    let (training, epsilon) = (args.int(7)? != 0, args.float(8)?);
    let weights = parameter(args, machine, 2, channels, 1.0)?;
    let (mean_at, rstd_at) = if training { (5, 6) } else { (3, 4) };
    for position in [mean_at, rstd_at] {
        ensure!(!args.is_absent(position), "{}: required", args.name(position));
    }
    let means = parameter(args, machine, mean_at, channels, 0.0)?;
    let mut rstds = parameter(args, machine, rstd_at, channels, 1.0)?;
    if !training {
        rstds.iter_mut().for_each(|variance| *variance = 1.0 / (*variance + epsilon).sqrt());
    }
    let count = x.elements() / channels.max(1);
    ensure!(x.elements() <= INTERMEDIATE_MAX, "{} elements, at most {INTERMEDIATE_MAX}", x.elements());
    let (mut weight_sums, mut bias_sums) = (vec![0.0; channels], vec![0.0; channels]);
    // By channel, in the order in which the result is put back together below.
    let mut gradients = vec![0.0; x.elements()];
    let (mut xs, mut slopes) = (vec![0.0; count], vec![0.0; count]);
    let inner: usize = x.dims()[2..].iter().product();
    for channel in 0..channels {
        load(&machine.hbm, &x.select(1, channel), &mut xs)?;
        load(&machine.hbm, &dy.select(1, channel), &mut slopes)?;
        let (mean, rstd) = (means[channel], rstds[channel]);
        for (slope, x) in slopes.iter_mut().zip(&xs) {
            bias_sums[channel] += *slope;
            weight_sums[channel] += *slope * (x - mean) * rstd;
            *slope *= weights[channel];
        }
        if training {
            block_gradient(&mut slopes, &xs, mean, rstd);
        } else {
            slopes.iter_mut().for_each(|slope| *slope *= rstd);
        }
        for (i, slope) in slopes.iter().enumerate() {
            gradients[(i / inner * channels + channel) * inner + i % inner] = *slope;
        }
    }
    let dims = [channels];
    let results = [(10, x.dims(), &gradients), (11, &dims[..], &weight_sums), (12, &dims[..], &bias_sums)];
    store_wanted(args, machine, 9, results)
}

fn channels(args: &Args<'_>, position: usize, x: &View) -> Outcome<usize> {
    float(x, args.name(position))?;
    ensure!(x.ndim() >= 2, "{}: shape {:?}, want [N, C, …]", args.name(position), x.dims());
    Ok(x.dim(1))
}

/// A value for every channel, `otherwise` of null.
fn parameter(
    args: &Args<'_>,
    machine: &Machine,
    position: usize,
    channels: usize,
    otherwise: f64,
) -> Outcome<Vec<f64>> {
    ensure!(channels <= INTERMEDIATE_MAX, "{channels} channels, at most {INTERMEDIATE_MAX} are supported");
    let Some(view) = args.optional(position)? else { return Ok(vec![otherwise; channels]) };
    shaped(&view, &[channels], args.name(position))?;
    float(&view, args.name(position))?;
    read(machine, &view)
}
