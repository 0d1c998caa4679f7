//! Steps of optimizers: parameters and their moments, changed in place.
//!
//! Moments and parameters are computed in single precision (double for a double parameter) whatever their types, in the
//! order of torch's own optimizers.

use super::super::Machine;
use super::super::args::Args;
use super::super::fault::{Outcome, ensure};
use super::super::lane::{Class, class};
use super::super::nest::{CHUNK, Nest};
use super::super::view::View;
use super::number::Real;
use super::{check_shape, operators};

operators! {
    custom adam_w_v2 => aclnnApplyAdamWV2;
    custom adam_w => aclnnApplyAdamW;
    custom adam => aclnnApplyAdam;
    custom sgd => aclnnFusedSgd;
}

/// Runs `f` over every element of `N` tensors of one shape and stores the first `written` of its results.
fn update<L: Real, const N: usize>(
    machine: &mut Machine,
    views: [&View; N],
    written: usize,
    f: impl Fn([L; N]) -> [L; N],
) -> Outcome {
    let nest = Nest::new(views[0].dims(), views)?;
    let mut pieces = [[L::default(); CHUNK]; N];
    nest.rows(|rows| {
        for from in (0..rows[0].len).step_by(CHUNK) {
            let n = CHUNK.min(rows[0].len - from);
            for (row, piece) in rows.iter().zip(&mut pieces) {
                row.load(&machine.hbm, from, &mut piece[..n]);
            }
            for i in 0..n {
                let results = f(std::array::from_fn(|v| pieces[v][i]));
                for (piece, result) in pieces.iter_mut().zip(results) {
                    piece[i] = result;
                }
            }
            for (row, piece) in rows[..written].iter().zip(&pieces) {
                row.store(&mut machine.hbm, from, &piece[..n]);
            }
        }
    });
    Ok(())
}

/// The number in a tensor of one element.
fn value(args: &Args<'_>, machine: &Machine, position: usize) -> Outcome<f64> {
    let view = args.tensor(position)?;
    ensure!(view.elements() == 1, "{}: {} elements, want one", args.name(position), view.elements());
    let mut value = [0.0f64];
    super::super::nest::load_all(machine, &view, &mut value)?;
    Ok(value[0])
}

/// A tensor that is written, of the shape of the parameters.
fn state(args: &Args<'_>, position: usize, parameters: &View) -> Outcome<View> {
    let view = args.output(position)?;
    check_shape(args.name(position), &view, parameters.dims())?;
    Ok(view)
}

/// Numbers of one step of Adam.
#[derive(Clone, Copy)]
struct Adam {
    lr: f64,
    beta1: f64,
    beta2: f64,
    weight_decay: f64,
    eps: f64,
    /// `1 − β₁ᵗ`.
    correction1: f64,
    /// `1 − β₂ᵗ`.
    correction2: f64,
    maximize: bool,
}

impl Adam {
    /// `[parameter, m, v, largest v]` after a step with decoupled weight decay.
    fn step<T: Real>(self, [parameter, m, v, largest, gradient]: [T; 5], amsgrad: bool) -> [T; 5] {
        let one = T::real(1.0);
        let g = if self.maximize { -gradient } else { gradient };
        let (beta1, beta2) = (T::real(self.beta1), T::real(self.beta2));
        let decayed = parameter * T::real(1.0 - self.lr * self.weight_decay);
        let m = m + (one - beta1) * (g - m);
        let v = beta2 * v + (one - beta2) * g * g;
        let largest = if amsgrad { largest.larger(v) } else { largest };
        let second = if amsgrad { largest } else { v };
        let denominator = second.sqrt() / T::real(self.correction2.sqrt()) + T::real(self.eps);
        [decayed - T::real(self.lr / self.correction1) * m / denominator, m, v, largest, gradient]
    }

    /// Runs the step; `largest` for the form that divides by the largest second moment so far.
    fn run(self, machine: &mut Machine, views: [&View; 3], largest: Option<&View>, gradient: &View) -> Outcome {
        check_shape("grad", gradient, views[0].dims())?;
        let [parameter, m, v] = views;
        let (all, written) = match largest {
            Some(largest) => ([parameter, m, v, largest, gradient], 4),
            None => ([parameter, m, v, v, gradient], 3),
        };
        let amsgrad = largest.is_some();
        match class(parameter.dtype) {
            Class::Double => update(machine, all, written, |x: [f64; 5]| self.step(x, amsgrad)),
            _ => update(machine, all, written, |x: [f32; 5]| self.step(x, amsgrad)),
        }
    }
}

/// A step of AdamW; `step` counts the steps before this one.
fn adam_w_v2(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let parameters = args.output(0)?;
    let (m, v, gradient) = (state(args, 1, &parameters)?, state(args, 2, &parameters)?, args.tensor(4)?);
    let largest = if args.int(11)? != 0 { Some(state(args, 3, &parameters)?) } else { None };
    let step = value(args, machine, 5)? + 1.0;
    let (beta1, beta2) = (args.float(7)?, args.float(8)?);
    let adam = Adam {
        lr: args.float(6)?,
        beta1,
        beta2,
        weight_decay: args.float(9)?,
        eps: args.float(10)?,
        correction1: 1.0 - libm::pow(beta1, step),
        correction2: 1.0 - libm::pow(beta2, step),
        maximize: args.int(12)? != 0,
    };
    adam.run(machine, [&parameters, &m, &v], largest.as_ref(), &gradient)
}

/// A step of AdamW; the powers of β are those of the step before.
fn adam_w(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    let parameters = args.output(0)?;
    let (m, v, gradient) = (state(args, 1, &parameters)?, state(args, 2, &parameters)?, args.tensor(10)?);
    let largest = if args.int(12)? != 0 { Some(state(args, 11, &parameters)?) } else { None };
    let number = |position| value(args, machine, position);
    let (beta1, beta2) = (number(7)?, number(8)?);
    let adam = Adam {
        lr: number(5)?,
        beta1,
        beta2,
        weight_decay: number(6)?,
        eps: number(9)?,
        correction1: 1.0 - number(3)? * beta1,
        correction2: 1.0 - number(4)? * beta2,
        maximize: args.int(13)? != 0,
    };
    adam.run(machine, [&parameters, &m, &v], largest.as_ref(), &gradient)
}

/// A step of Adam without weight decay; the powers of β are those of this step.
fn adam(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    fn step<T: Real>([parameter, m, v, g]: [T; 4], [rate, beta1, beta2, eps]: [f64; 4], nesterov: bool) -> [T; 4] {
        let (left1, left2) = (T::real(1.0 - beta1), T::real(1.0 - beta2));
        let m = m + left1 * (g - m);
        let v = v + left2 * (g * g - v);
        let ahead = if nesterov { T::real(beta1) * m + left1 * g } else { m };
        [parameter - T::real(rate) * ahead / (v.sqrt() + T::real(eps)), m, v, g]
    }
    let parameters = args.output(0)?;
    let (m, v, gradient) = (state(args, 1, &parameters)?, state(args, 2, &parameters)?, args.tensor(9)?);
    check_shape("grad", &gradient, parameters.dims())?;
    let number = |position| value(args, machine, position);
    let rate = number(5)? * (1.0 - number(4)?).sqrt() / (1.0 - number(3)?);
    let numbers = [rate, number(6)?, number(7)?, number(8)?];
    let (nesterov, views) = (args.int(11)? != 0, [&parameters, &m, &v, &gradient]);
    match class(parameters.dtype) {
        Class::Double => update(machine, views, 3, |x: [f64; 4]| step(x, numbers, nesterov)),
        _ => update(machine, views, 3, |x: [f32; 4]| step(x, numbers, nesterov)),
    }
}

/// A step of stochastic gradient descent over lists; gradients that come scaled are divided first, in place.
fn sgd(args: &Args<'_>, machine: &mut Machine) -> Outcome {
    #[derive(Clone, Copy)]
    struct Sgd {
        scale: f64,
        weight_decay: f64,
        momentum: f64,
        lr: f64,
        dampening: f64,
        nesterov: bool,
        maximize: bool,
        first: bool,
    }
    impl Sgd {
        fn step<T: Real>(self, [parameter, gradient, buffer]: [T; 3]) -> [T; 3] {
            let scaled = gradient / T::real(self.scale);
            let g = if self.maximize { -scaled } else { scaled };
            let g = g + T::real(self.weight_decay) * parameter;
            if self.momentum == 0.0 {
                return [parameter - T::real(self.lr) * g, scaled, buffer];
            }
            let momentum = T::real(self.momentum);
            let buffer = if self.first { g } else { momentum * buffer + T::real(1.0 - self.dampening) * g };
            let ahead = if self.nesterov { g + momentum * buffer } else { buffer };
            [parameter - T::real(self.lr) * ahead, scaled, buffer]
        }
    }
    let scale = if args.is_absent(3) { 1.0 } else { value(args, machine, 3)? };
    let flag = |position| args.int(position).map(|v| v != 0);
    let sgd = Sgd {
        scale,
        weight_decay: args.float(4)?,
        momentum: args.float(5)?,
        lr: args.float(6)?,
        dampening: args.float(7)?,
        nesterov: flag(8)?,
        maximize: flag(9)?,
        first: flag(10)?,
    };
    let (parameters, gradients) = (args.tensors(0)?, args.tensors(1)?);
    let count = parameters.len();
    ensure!(gradients.len() == count, "gradsRef: {} elements, but paramsRef has {count}", gradients.len());
    let buffers: Vec<View> = match args.tensors(2) {
        Ok(list) => list.collect::<Outcome<_>>()?,
        Err(_) => Vec::new(),
    };
    ensure!(
        sgd.momentum == 0.0 || buffers.len() == count,
        "momentumBufferListOptionalRef: {} elements, but paramsRef has {count}",
        buffers.len()
    );
    for (i, (parameter, gradient)) in parameters.zip(gradients).enumerate() {
        let (parameter, gradient) = (args.writable(0, parameter?)?, args.writable(1, gradient?)?);
        check_shape("gradsRef", &gradient, parameter.dims())?;
        let buffer = match buffers.get(i) {
            Some(buffer) if sgd.momentum != 0.0 => args.writable(2, *buffer)?,
            _ => parameter,
        };
        check_shape("momentumBufferListOptionalRef", &buffer, parameter.dims())?;
        let views = [&parameter, &gradient, &buffer];
        let written = if sgd.momentum == 0.0 { 2 } else { 3 };
        match class(parameter.dtype) {
            Class::Double => update(machine, views, written, |x: [f64; 3]| sgd.step(x))?,
            _ => update(machine, views, written, |x: [f32; 3]| sgd.step(x))?,
        }
    }
    Ok(())
}
